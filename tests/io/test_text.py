"""Texts in messages: one line, the first names of many, no credentials."""

import pytest

from iusp.io.text import SECRETS, first_names, one_line, without_secrets


def test_white_space_is_collapsed_and_long_texts_are_cut() -> None:
    assert one_line(ValueError(" a\n\tb  c ")) == "a b c"
    assert one_line("abcdef", 3) == "abc"


@pytest.mark.parametrize(
    ("names", "total", "expected"),
    [
        ([], None, ""),
        (["a", "b", "c"], None, "a, b, c"),
        (["a", "b", "c", "d"], None, "a, b, c and 1 more"),
        (["a", "b", "c"], 9, "a, b, c and 6 more"),
    ],
)
def test_only_the_first_names_are_written_out(names: list[str], total: int | None, expected: str) -> None:
    assert first_names(names, total) == expected


@pytest.mark.parametrize("name", SECRETS)
def test_no_credential_is_repeated(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "s3/cr+t=")
    told = without_secrets("key s3/cr+t= or s3%2Fcr%2Bt%3D at https://user:p/ss@w@host/path")
    assert told == "key … or … at https://host/path"
