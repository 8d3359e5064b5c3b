"""Prepare quick/, a small copy of the project for `make run QUICK=1`: `python -m scripts.quick`.

quick/ has its own params.yaml, outputs, DVC cache and MLflow database, so a quick run changes nothing of a full one.
"""

import shutil
from pathlib import Path

from omegaconf import OmegaConf

# The stages depend on the code, which DVC follows through a link.
LINKED = "iusp"


def prepare(root: Path, folder: Path) -> None:
    """Write the small copy; outputs of an earlier quick run stay, and DVC repeats only what has changed.

    Args:
        root: folder of the project.
        folder: folder of the copy.
    """
    (folder / ".dvc").mkdir(parents=True, exist_ok=True)
    (folder / "recordings").mkdir(exist_ok=True)
    for name in ("dvc.yaml", ".dvcignore", ".dvc/config", ".dvc/plots.html"):
        shutil.copy(root / name, folder / name)
    (folder / ".dvc/config.local").write_text("[core]\n    no_scm = true\n", encoding="utf-8")
    if not (folder / LINKED).is_symlink():
        (folder / LINKED).symlink_to(root.resolve() / LINKED)
    params = OmegaConf.merge(OmegaConf.load(root / "params.yaml"), OmegaConf.load(root / "params-quick.yaml"))
    for student in params.students.values():
        student.seeds = [0]
    OmegaConf.save(params, folder / "params.yaml")


if __name__ == "__main__":
    prepare(Path(), Path("quick"))
