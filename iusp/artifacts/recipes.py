"""Recipes of the students, one file per student, so that a change re-trains only the students that it affects.

A file holds the student's recipe and the SHA-256 of the code of its methods. DVC compares the files: the stage of a
student depends on its file instead of on all settings and all methods.
"""

import ast
from collections.abc import Iterable
from pathlib import Path

from iusp.config.students import Recipe
from iusp.io.files import sha256, write_json

METHODS_FOLDER = Path(__file__).parents[1] / "distillation"


def write_recipes(recipes: Iterable[Recipe], folder: Path) -> None:
    """Write `<student>.json` for each student, and delete the files of other students.

    Args:
        recipes: recipes of all students.
        folder: folder to write.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written = set()
    for recipe in recipes:
        path = folder / f"{recipe.name}.json"
        write_json(path, {"recipe": recipe.model_dump(mode="json"), "code": code_digests(recipe.weights)})
        written.add(path)
    for path in set(folder.glob("*.json")) - written:
        path.unlink()


def code_digests(methods: Iterable[str]) -> dict[str, str]:
    """Return the SHA-256 of the modules of some methods, and of the modules of the package that those import, by name.

    Args:
        methods: names of distillation methods.
    """
    found: dict[str, str] = {}
    pending = sorted(methods)
    while pending:
        module = pending.pop()
        path = METHODS_FOLDER / f"{module}.py"
        if module not in found:
            found[module] = sha256(path)
            pending += _imported_modules(path)
    return dict(sorted(found.items()))


def _imported_modules(path: Path) -> list[str]:
    """Return the modules of `iusp.distillation` that a module imports."""
    prefix = "iusp.distillation."
    return [
        node.module.removeprefix(prefix)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith(prefix)
    ]
