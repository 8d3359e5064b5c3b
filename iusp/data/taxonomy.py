"""Taxonomies in the format of SONYC-UST: coarse categories and the fine tags below each."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from iusp.errors import InputError
from iusp.io.files import parse_yaml
from iusp.io.text import normalised, one_line

# Tags are named `<category>_<name>` and `<category>-<kind>_<name>`. The keys are also part of MLflow's metric names.
KEY = re.compile(r"[^\W_]+([. ][^\W_]+)*")
LONGEST_KEY, LONGEST_NAME = 40, 200  # characters; MLflow's names have at most 250
UNKNOWN_KIND = "X"
RESERVED = ("micro", "audio")  # `micro` names the micro average, and a tag of `audio` could be `audio_filename`


@dataclass(frozen=True)
class Taxonomy:
    """Coarse and fine tags by name, in the taxonomy's order.

    Attributes:
        coarse: tag of each category by its id, for example ``{"1": "1_engine"}``.
        fine: complete tags of each category by its id, for example ``{"1": ("1-1_small-sounding-engine", …)}``; a
            category may have none. If ``X`` is its only tag, that tag is complete.
        uncertain: ``X`` tag (kind unknown) of each category that has one beside complete tags, by its id.
    """

    coarse: dict[str, str]
    fine: dict[str, tuple[str, ...]]
    uncertain: dict[str, str]

    @property
    def coarse_tags(self) -> tuple[str, ...]:
        """The coarse tags (SONYC-UST: 8)."""
        return tuple(self.coarse.values())

    @property
    def fine_tags(self) -> tuple[str, ...]:
        """The complete fine tags, without the ``X`` tags (SONYC-UST: 23)."""
        return tuple(tag for tags in self.fine.values() for tag in tags)

    @property
    def all_fine_tags(self) -> tuple[str, ...]:
        """The fine tags, including the ``X`` tags, in the order of SONYC-UST's columns (SONYC-UST: 29)."""
        return tuple(tag for category in self.coarse for tag in self.category_tags(category))

    def category_tags(self, category: str) -> tuple[str, ...]:
        """Return the fine tags of one category, its ``X`` tag last."""
        uncertain = self.uncertain.get(category)
        return self.fine[category] + ((uncertain,) if uncertain else ())


def read_taxonomy(path: Path) -> Taxonomy:
    """Read a taxonomy YAML file in the format of SONYC-UST.

    The file has the key ``coarse`` and may have the key ``fine``. A category may have no fine tags.

    Raises:
        InputError: the file is missing or has another format, or a key or a name cannot be used in a later step.
    """
    try:
        document = parse_yaml(path.read_text(encoding="utf-8"))
        coarse = {key: f"{key}_{name}" for key, name in _names(path, document["coarse"]).items()}
        fine = {normalised(str(key)): _names(path, tags) for key, tags in (document.get("fine") or {}).items() if tags}
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; SONYC-UST ships its taxonomy as dcase-ust-taxonomy.yaml") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        reason = one_line(error)
        raise InputError(
            f"{path}: not a taxonomy ({reason}); it needs the key coarse and may have the key fine, as in "
            "dcase-ust-taxonomy.yaml"
        ) from None
    if unknown := sorted(fine.keys() - coarse.keys()):
        raise InputError(f"{path}: fine has the categories {unknown}, which coarse lacks; add them to coarse")
    kinds = {key: fine.get(key, {}) for key in coarse}
    complete = {key: [kind for kind in kinds[key] if kind != UNKNOWN_KIND] or list(kinds[key]) for key in coarse}
    return Taxonomy(
        coarse=coarse,
        fine={key: tuple(f"{key}-{kind}_{kinds[key][kind]}" for kind in complete[key]) for key in coarse},
        uncertain={
            key: f"{key}-{UNKNOWN_KIND}_{kinds[key][UNKNOWN_KIND]}"
            for key in coarse
            if UNKNOWN_KIND in kinds[key] and UNKNOWN_KIND not in complete[key]
        },
    )


def _names(path: Path, section: dict[Any, Any]) -> dict[str, str]:
    """Return the names of a section by their keys, converted to text in Unicode form C.

    Raises:
        InputError: there is no name, a key or a name cannot be used, or two keys differ only in case or Unicode form.
    """
    keys = [key for key in section if isinstance(key, str) or type(key) is int]
    if not keys or len({normalised(str(key)).casefold() for key in keys}) < len(section):
        raise InputError(
            f"{path}: the keys {list(section)} must be numbers or texts, at least one, and must not differ only in case"
        )
    names = {}
    for key, name in section.items():
        text = normalised(str(key))
        if text in RESERVED:
            raise InputError(f"{path}: the key {text!r} has a meaning of its own; choose another key")
        if not KEY.fullmatch(text) or len(text) > LONGEST_KEY:
            raise InputError(
                f"{path}: the key {text!r} must have letters and digits, with single dots or spaces between them, and "
                f"at most {LONGEST_KEY} characters; put other characters into the name"
            )
        if (
            not isinstance(name, str)
            or not name.isprintable()
            or not 1 <= len(name.strip()) == len(name) <= LONGEST_NAME
        ):
            raise InputError(
                f"{path}: the name of {text} must be printable text of 1 to {LONGEST_NAME} characters that neither "
                "begins nor ends with a space"
            )
        names[text] = normalised(name)
    return names
