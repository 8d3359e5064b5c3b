from pathlib import Path

import pytest
import yaml

from iusp.data.taxonomy import Taxonomy, read_taxonomy
from iusp.errors import InputError


def read(folder: Path, **sections: object) -> Taxonomy:
    path = folder / "taxonomy.yaml"
    path.write_text(yaml.safe_dump(sections, allow_unicode=True, sort_keys=False), encoding="utf-8")
    return read_taxonomy(path)


def test_fine_tags_are_optional(tmp_path: Path) -> None:
    assert read(tmp_path, coarse={1: "dog"}) == Taxonomy({"1": "1_dog"}, {"1": ()}, {})
    assert read(tmp_path, coarse={1: "dog"}, fine=None) == Taxonomy({"1": "1_dog"}, {"1": ()}, {})
    mixed = read(tmp_path, coarse={1: "dog", 2: "saw"}, fine={1: {1: "bark", "X": "other"}, 2: None})
    assert mixed == Taxonomy({"1": "1_dog", "2": "2_saw"}, {"1": ("1-1_bark",), "2": ()}, {"1": "1-X_other"})
    assert mixed.all_fine_tags == ("1-1_bark", "1-X_other")


def test_an_unknown_kind_that_stands_alone_is_a_kind(tmp_path: Path) -> None:
    found = read(tmp_path, coarse={1: "dog", 2: "saw"}, fine={1: {"X": "unsure"}, 2: {1: "small", "X": "unsure"}})
    assert found.fine == {"1": ("1-X_unsure",), "2": ("2-1_small",)}
    assert found.uncertain == {"2": "2-X_unsure"}
    assert found.fine_tags == ("1-X_unsure", "2-1_small")
    assert found.all_fine_tags == ("1-X_unsure", "2-1_small", "2-X_unsure")


@pytest.mark.parametrize("key", ["1", 1, "01", "dog", "Hund groß", "v1.2", "한국", "A" * 40])
@pytest.mark.parametrize(
    "name", ["dog, small", "engine (idle)", "a&b", 'the "dog"', "a;b|c", "_presence", "1-1", "犬", "x" * 200]
)
def test_keys_and_names_that_work(tmp_path: Path, key: object, name: str) -> None:
    found = read(tmp_path, coarse={key: name}, fine={key: {key: name}})
    assert found.coarse == {str(key): f"{key}_{name}"}
    assert found.fine == {str(key): (f"{key}-{key}_{name}",)}


@pytest.mark.parametrize(
    "key",
    ["dog, small", "engine (idle)", "a&b", "a_b", "1-1", "", " 1", "1 ", "a  b", "..", "a/b", "a:b", "a\nb", "A" * 41],
)
@pytest.mark.parametrize("section", ["coarse", "fine"])
def test_keys_that_a_later_step_could_not_use(tmp_path: Path, key: str, section: str) -> None:
    sections = {"coarse": {key: "dog"}} if section == "coarse" else {"coarse": {1: "dog"}, "fine": {1: {key: "bark"}}}
    with pytest.raises(InputError, match=r"taxonomy\.yaml: the key .* must have letters and digits") as refusal:
        read(tmp_path, **sections)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("key", ["micro", "audio"])
def test_keys_with_a_meaning_of_their_own(tmp_path: Path, key: str) -> None:
    with pytest.raises(InputError, match=f"the key '{key}' has a meaning of its own; choose another"):
        read(tmp_path, coarse={key: "filename"})


@pytest.mark.parametrize("name", ["", " ", " dog", "dog ", "a\tb", "a\nb", "x" * 201, None, 1, ["dog"], True])
def test_names_that_a_later_step_could_not_use(tmp_path: Path, name: object) -> None:
    with pytest.raises(InputError, match=r"taxonomy\.yaml: the name of 1 must be printable text"):
        read(tmp_path, coarse={1: name})


@pytest.mark.parametrize(
    "keys", [["a", "A"], ["1", 1], ["é", "e\N{COMBINING ACUTE ACCENT}"], ["ß", "SS"], [True], [1.5], [None], []]
)
def test_keys_that_cannot_be_told_apart(tmp_path: Path, keys: list[object]) -> None:
    with pytest.raises(InputError, match=r"taxonomy\.yaml: the keys .* must"):
        read(tmp_path, coarse=dict.fromkeys(keys, "dog"))


def test_names_are_in_one_unicode_form(tmp_path: Path) -> None:
    found = read(tmp_path, coarse={"e\N{COMBINING ACUTE ACCENT}": "cafe\N{COMBINING ACUTE ACCENT}"})
    assert found.coarse == {"é": "é_café"}


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({}, "needs the key coarse"),
        ({"coarse": {}}, "must be numbers or texts, at least one"),
        ({"coarse": "dog"}, "not a taxonomy"),
        ({"coarse": {1: "dog"}, "fine": "bark"}, "not a taxonomy"),
        ({"coarse": {1: "dog"}, "fine": {1: "bark"}}, "not a taxonomy"),
        ({"coarse": {1: "dog"}, "fine": {2: {1: "bark"}}}, r"fine has the categories \['2'\], which coarse lacks"),
    ],
)
def test_files_that_are_no_taxonomy(tmp_path: Path, sections: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=rf"taxonomy\.yaml: .*{message}") as refusal:
        read(tmp_path, **sections)
    assert "\n" not in str(refusal.value)
