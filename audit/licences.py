"""Licences of dependencies, judged by the policy.

A licence is an SPDX expression. For `A OR B`, one of the two must be allowed; for `A AND B`, both. Several licences in
the metadata of a package count as AND.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from license_expression import ExpressionError

from audit.policy import SPDX, Policy


@dataclass(frozen=True)
class Judgement:
    """The verdict of the policy on a package.

    Attributes:
        package: name of the package.
        licence: SPDX expression of its licence; empty if unknown.
        accepted: reason of an exception; empty if the licence is allowed or the package is refused.
        refused: reason of the refusal; empty if the package is not refused.
    """

    package: str
    licence: str = ""
    accepted: str = ""
    refused: str = ""


def judge(packages: Mapping[str, tuple[str, ...]], policy: Policy) -> list[Judgement]:
    """Judge the licences of all packages.

    Args:
        packages: licences in the metadata of each package, by the name in the lock.
        policy: rules to apply. An unused entry is refused, too, because it could silently admit a later package.

    Returns:
        One verdict per package and per unused entry of the policy.
    """
    unneeded = (policy.stated.keys() | policy.accepted.keys()) - packages.keys()
    return [
        *(_judge(name, packages[name], policy) for name in sorted(packages)),
        *(Judgement(name, refused="no such dependency; remove it from the policy") for name in sorted(unneeded)),
    ]


def _judge(name: str, metadata: tuple[str, ...], policy: Policy) -> Judgement:
    stated = policy.stated.get(name)
    if stated and stated.metadata != metadata:
        says = ", ".join(metadata) or "nothing"
        return Judgement(name, refused=f"its metadata have changed and say {says}; look at its licence again")
    if not stated and not metadata:
        return Judgement(name, refused="its metadata name no licence; find it out and state it in the policy")
    text = stated.licence if stated else " AND ".join(f"({policy.names.get(licence, licence)})" for licence in metadata)
    try:
        expression = SPDX.parse(text, validate=True, strict=True).simplify()
    except ExpressionError:
        return Judgement(name, refused=f"{', '.join(metadata)}: no SPDX licence; state in the policy which it is")
    licence = str(expression)
    verdicts = {symbol: SPDX.TRUE if str(symbol) in policy.allowed else SPDX.FALSE for symbol in expression.symbols}
    allowed = expression.subs(verdicts).simplify() == SPDX.TRUE
    accepted = policy.accepted.get(name)
    if accepted and (allowed or accepted.licence != licence):
        return Judgement(name, licence, refused="it is accepted in the policy for another licence; look at it again")
    if allowed or accepted:
        return Judgement(name, licence, accepted=accepted.reason if accepted else "")
    return Judgement(name, licence, refused="not allowed")
