"""The taxonomy of SONYC-UST: coarse categories and the fine tags below each."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from iusp.errors import InputError
from iusp.io.files import parse_yaml
from iusp.io.text import one_line


@dataclass(frozen=True)
class Taxonomy:
    """Coarse and fine tags by name, in the taxonomy's order.

    Attributes:
        coarse: tag of each category by its id, for example ``{"1": "1_engine"}``.
        fine: complete tags of each category by its id, for example ``{"1": ("1-1_small-sounding-engine", …)}``.
        uncertain: ``X`` tag (kind unknown) of each category that has one, by its id.
    """

    coarse: dict[str, str]
    fine: dict[str, tuple[str, ...]]
    uncertain: dict[str, str]

    @property
    def coarse_tags(self) -> tuple[str, ...]:
        """The 8 coarse tags."""
        return tuple(self.coarse.values())

    @property
    def fine_tags(self) -> tuple[str, ...]:
        """The 23 complete fine tags, without the ``X`` tags."""
        return tuple(tag for tags in self.fine.values() for tag in tags)

    @property
    def all_fine_tags(self) -> tuple[str, ...]:
        """The 29 fine tags, including the ``X`` tags, in the order of SONYC-UST's columns."""
        return tuple(tag for category in self.coarse for tag in self.category_tags(category))

    def category_tags(self, category: str) -> tuple[str, ...]:
        """Return the fine tags of one category, its ``X`` tag last."""
        uncertain = self.uncertain.get(category)
        return self.fine[category] + ((uncertain,) if uncertain else ())


def read_taxonomy(path: Path) -> Taxonomy:
    """Read a taxonomy YAML file with the keys ``coarse`` and ``fine``, the format of SONYC-UST.

    Raises:
        InputError: the file is missing or has another format.
    """
    try:
        document = parse_yaml(path.read_text(encoding="utf-8"))
        coarse = {key: f"{key}_{name}" for key, name in _names(document["coarse"]).items()}
        fine = {str(key): _names(tags) for key, tags in document["fine"].items()}
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; SONYC-UST ships its taxonomy as dcase-ust-taxonomy.yaml") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        reason = one_line(error)
        raise InputError(
            f"{path}: not a taxonomy ({reason}); it needs the keys coarse and fine, as in dcase-ust-taxonomy.yaml"
        ) from None
    if not coarse or set(fine) != set(coarse):
        raise InputError(
            f"{path}: coarse has the categories {sorted(coarse)}, fine has {sorted(fine)}; make them equal"
        )
    return Taxonomy(
        coarse=coarse,
        fine={key: tuple(f"{key}-{kind}_{fine[key][kind]}" for kind in fine[key] if kind != "X") for key in coarse},
        uncertain={key: f"{key}-X_{fine[key]['X']}" for key in coarse if "X" in fine[key]},
    )


def _names(section: dict[Any, Any]) -> dict[str, str]:
    """Return the names of a section by their keys, converted to text.

    Raises:
        ValueError: there is no name, a name is not printable text, or two keys are equal as text.
    """
    names = {str(key): name for key, name in section.items() if isinstance(key, str) or type(key) is int}
    if not section or len(names) < len(section):
        raise ValueError(f"the keys {list(section)} must be numbers or texts, all different, and at least one")
    for key, name in names.items():
        if not isinstance(name, str) or not name or not name.isprintable():
            raise ValueError(f"the name of {key} is not printable text")
    return names
