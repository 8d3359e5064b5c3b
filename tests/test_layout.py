"""Where things lie in tests/."""

import ast
from pathlib import Path

import pytest

TESTS = Path(__file__).parent


def imported(path: Path) -> set[str]:
    """Return the last name of every module that a file imports, wherever in the file."""
    nodes = list(ast.walk(ast.parse(path.read_text())))
    modules = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    for node in nodes:
        if isinstance(node, ast.ImportFrom):
            modules |= {node.module or "", *(alias.name for alias in node.names)}
    return {module.rpartition(".")[2] for module in modules}


@pytest.mark.parametrize("path", sorted(TESTS.rglob("*.py")), ids=lambda path: str(path.relative_to(TESTS)))
def test_no_file_imports_a_test_file(path: Path) -> None:
    test_files = {path.stem for path in TESTS.rglob("test_*.py")}
    assert not imported(path) & test_files, "shared code belongs in tests/support, fixtures in conftest.py"
