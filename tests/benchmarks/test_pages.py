from pathlib import Path

import pytest

from benchmarks.pages import replace_section, table


def test_text_is_aligned_to_the_left_and_numbers_to_the_right() -> None:
    assert table(["a", "b", "c"], [["x", "y", "1"]], 2) == "| a | b | c |\n| --- | --- | --: |\n| x | y | 1 |\n"


def test_only_the_marked_section_changes(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- drift -->\nold\n<!-- /drift -->\nafter\n")
    replace_section(page, "new\n", "drift")
    assert page.read_text() == "before\n<!-- drift -->\nnew\n<!-- /drift -->\nafter\n"
    with pytest.raises(ValueError, match=r"the marks <!-- results --> and <!-- /results --> are missing"):
        replace_section(page, "new\n")
