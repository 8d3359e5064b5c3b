"""`policy.toml`, typed: which licences we take, what packages' metadata do not say, and what we bear, until when."""

import tomllib
from datetime import date
from pathlib import Path
from typing import Annotated

from license_expression import ExpressionError, get_spdx_licensing
from packaging.utils import canonicalize_name
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, ValidationError

from iusp.errors import InputError

POLICY = Path(__file__).with_name("policy.toml")
SPDX = get_spdx_licensing()


def _expression(text: str) -> str:
    """Return an SPDX expression as it is, if it is one."""
    try:
        SPDX.parse(text, validate=True, strict=True)
    except ExpressionError as error:
        raise ValueError(f"is no SPDX expression: {error}") from None
    return text


def _text(text: str) -> str:
    if not text.strip():
        raise ValueError("must say why")
    return text


Expression = Annotated[str, AfterValidator(_expression)]
Reason = Annotated[str, AfterValidator(_text)]
Names = Annotated[tuple[str, ...], BeforeValidator(tuple)]
Licences = Annotated[frozenset[Expression], BeforeValidator(frozenset)]


class Entry(BaseModel):
    """A part of the policy: immutable and strict; an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Stated(Entry):
    """The licence of a package whose metadata lack it or state it wrongly."""

    metadata: Names
    licence: Expression
    evidence: Reason


class Accepted(Entry):
    """A package that is accepted although its licence is not allowed."""

    licence: Expression
    reason: Reason


class Borne(Entry):
    """A known vulnerability that is accepted until a date."""

    package: str
    until: date
    reason: Reason


class Policy(Entry):
    """The whole policy.

    Attributes:
        allowed: SPDX licences, with their exceptions, that any dependency may have.
        names: SPDX expression for each other name of a licence in metadata.
        stated: licences by package.
        accepted: exceptions by package.
        vulnerabilities: accepted vulnerabilities by identifier: CVE, GHSA or PYSEC.
    """

    allowed: Licences
    names: dict[str, Expression]
    stated: dict[str, Stated] = {}
    accepted: dict[str, Accepted] = {}
    vulnerabilities: dict[str, Borne] = {}


def load(path: Path = POLICY) -> Policy:
    """Read the policy.

    Raises:
        InputError: the file is not a valid policy.
    """
    try:
        policy = Policy.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{path}: {error}") from None
    except ValidationError as error:
        detail = error.errors()[0]
        raise InputError(f"{path}: {'.'.join(map(str, detail['loc']))}: {detail['msg']}") from None
    borne = [entry.package for entry in policy.vulnerabilities.values()]
    for name in (*policy.stated, *policy.accepted, *borne):
        if name != canonicalize_name(name):
            raise InputError(f"{path}: {name}: write {canonicalize_name(name)}, as the lock does")
    return policy
