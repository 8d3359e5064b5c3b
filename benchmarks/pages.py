"""Pieces that generated pages share."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from iusp.io.files import atomic

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PICTURES = DOCS / "pictures"


def table(head: Sequence[str], rows: Iterable[Sequence[str]], text_columns: int = 1) -> str:
    """Return a Markdown table that ends with a newline.

    Args:
        head: titles of the columns.
        rows: cells of each row.
        text_columns: number of leading columns that hold text; the others hold numbers and are aligned to the right.
    """
    align = ["---"] * text_columns + ["--:"] * (len(head) - text_columns)
    return "".join(f"| {' | '.join(cells)} |\n" for cells in (head, align, *rows))


def write_page(path: Path, text: str) -> None:
    """Replace a page in one step, so that no reader sees half of it."""
    with atomic(path) as temporary:
        temporary.write_text(text)


def replace_section(path: Path, text: str, mark: str = "results") -> None:
    """Replace what a page has between `<!-- mark -->` and `<!-- /mark -->`.

    Args:
        path: Markdown page.
        text: new content; it ends with a newline.
        mark: name of the section.

    Raises:
        ValueError: the page does not have both marks.
    """
    before, start, rest = path.read_text().partition(f"<!-- {mark} -->\n")
    _, end, after = rest.partition(f"<!-- /{mark} -->")
    if not start or not end:
        raise ValueError(f"{path}: the marks <!-- {mark} --> and <!-- /{mark} --> are missing; add them")
    write_page(path, f"{before}{start}{text}{end}{after}")
