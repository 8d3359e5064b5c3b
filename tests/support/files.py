"""Comparing folders."""

from pathlib import Path


def tree(folder: Path) -> dict[str, bytes]:
    """Return the content of every file in a folder by its relative path."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
