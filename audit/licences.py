"""Licences of dependencies, judged by the policy.

A licence is an SPDX expression: of `A OR B` one must be allowed, of `A AND B` both. What metadata list without saying
which of the two is meant is taken for AND.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from license_expression import ExpressionError

from audit.policy import SPDX, Policy


@dataclass(frozen=True)
class Judgement:
    """What the policy says of a package.

    Attributes:
        package: its name.
        licence: an SPDX expression; empty if it is not known.
        accepted: why it is taken although its licence is not allowed, if it is.
        refused: why it is not taken, if it is not.
    """

    package: str
    licence: str = ""
    accepted: str = ""
    refused: str = ""


def judge(packages: Mapping[str, tuple[str, ...]], policy: Policy) -> list[Judgement]:
    """Judge the licences of all packages.

    Args:
        packages: names as the lock has them, and the licences in their metadata.
        policy: what it goes by. An entry that nothing needs is refused, too: it would be there for a later package.

    Returns:
        For each package, and for each entry of the policy that nothing needs.
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
