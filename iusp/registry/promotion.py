"""Who is the champion: promotion through the gate, rollback, and the history that decides.

The history is the truth, and the aliases follow it. Every change is one entry of the registry's log
(`iusp.registry.versions.Registry`), which names the entry that it follows. Of several that follow the same one, the
first in the log counts and the others count for nothing: that is the compare-and-set that MLflow's aliases lack, on
any backend, with no lock that a killed process could leave behind. After its entry a process sets the aliases, and
again until they
are what the history says; if it is killed before, the next command does that.
"""

import getpass
import os
import random
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from iusp.config.evaluation import Evaluation
from iusp.config.registration import Gate
from iusp.errors import InputError
from iusp.registry.gate import Evidence, Verdict, judge, read_evidence
from iusp.registry.versions import EVALUATION, Registry, UncertainError, fetch_artifacts, uncertain

CHAMPION, PREVIOUS = "champion", "previous_champion"
TAG = "iusp.promotion"
LONGEST_REASON = 1000
PAUSES = (0.2, 0.4, 0.8, 1.6, 3.2, 6.4)  # seconds, before MLflow is asked again


class Change(BaseModel):
    """What the log keeps of one change.

    Attributes:
        id: by which a process knows its own entry again.
        follows: number of the entry that was the newest one when this was decided, 0 for none.
        action: what was asked for.
        before: the champion until then.
        champion: the champion from then on.
        who: user who asked for it.
        why: the reason that was given.
        forced: the gate had reasons against it.
        verdict: the gate's; a rollback has none.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    id: str
    follows: int
    action: Literal["promote", "rollback"]
    before: int | None
    champion: int
    who: str
    why: str
    forced: bool
    verdict: Verdict | None


@dataclass(frozen=True)
class Entry:
    """A change that took effect.

    Attributes:
        number: in the log; numbers that are missing lost a race.
        time: by the server's clock.
        change: what it was.
    """

    number: int
    time: datetime
    change: Change


@dataclass(frozen=True)
class History:
    """What took effect, in order, and what follows from it.

    Attributes:
        entries: the oldest first.
        stack: the champion is the last; each rollback takes one off.
    """

    entries: tuple[Entry, ...]
    stack: tuple[int, ...]

    @property
    def newest(self) -> int:
        """Number of the newest entry, 0 if there is none."""
        return self.entries[-1].number if self.entries else 0

    @property
    def champion(self) -> int | None:
        """Today's champion."""
        return self.stack[-1] if self.stack else None

    @property
    def previous(self) -> int | None:
        """What a rollback restores."""
        return self.stack[-2] if len(self.stack) > 1 else None


@dataclass(frozen=True)
class Outcome:
    """What came of a promotion or a rollback.

    Attributes:
        champion: afterwards.
        reasons: why nothing was changed; none if what was asked for is so.
        entry: of the history, if something was changed.
        verdict: the gate's, if it was asked.
        repaired: the aliases were not what the history said, and are now.
    """

    champion: int | None
    reasons: Sequence[str] = ()
    entry: Entry | None = None
    verdict: Verdict | None = None
    repaired: bool = False


def read_history(registry: Registry) -> History:
    """Read the log and leave out what lost a race. Where it is empty, the alias says who is the champion.

    Raises:
        InputError: it is damaged, or there is no such registered model.
    """
    entries: list[Entry] = []
    newest = 0
    for record in registry.log(TAG):
        try:
            change = Change.model_validate_json(record.content)
            if change.follows > newest:
                raise ValueError(f"it follows entry {change.follows}, which is missing")
        except ValueError as error:  # a ValidationError is one, too
            reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else error
            raise InputError(
                f"{registry.log_name}: version {record.number} is damaged ({reason}); delete that registered model, "
                "and a new history begins with today's aliases"
            ) from None
        if change.follows == newest:
            entries.append(Entry(record.number, record.time, change))
            newest = record.number
    if not entries:
        aliases = registry.aliases()
        return History((), (aliases[CHAMPION],) if CHAMPION in aliases else ())
    first = entries[0].change.before
    stack = [] if first is None else [first]
    for entry in entries:
        if entry.change.action == "rollback":
            stack.pop()
        else:
            stack.append(entry.change.champion)
    return History(tuple(entries), tuple(stack))


def unsettled(registry: Registry, history: History) -> dict[str, int | None]:
    """Return the aliases that do not point to where the history says: a promotion was killed, or somebody moved them.

    Returns:
        Alias → version that the history says; None for an alias that must not be.
    """
    if not history.entries:
        return {}
    aliases = {version.number: version.aliases for version in registry.versions()}
    wrong: dict[str, int | None] = {}
    for alias, version in ((CHAMPION, history.champion), (PREVIOUS, history.previous)):
        # A version that was deleted took its aliases along.
        wanted = version if version in aliases else None
        if wanted != next((number for number, names in aliases.items() if alias in names), None):
            wrong[alias] = wanted
    return wrong


def settle(registry: Registry) -> bool:
    """Set the aliases to what the history says; True if they were something else.

    Several processes may do so at once. Whoever writes an alias last reads the history after that, and writes again if
    it has gone on: when all are done, the aliases are those of the newest entry.

    Raises:
        InputError: MLflow failed again and again; the next command will do it.
    """
    written = False
    pauses = iter(PAUSES)
    while wrong := unsettled(registry, read_history(registry)):
        try:
            with uncertain():
                for alias, version in wrong.items():
                    registry.point(alias, version)
            written = True
        except UncertainError as error:
            pause = next(pauses, None)
            if pause is None:
                raise InputError(
                    f"{error}; the history is as it should be, the next promotion sets its aliases"
                ) from None
            _wait(pause)
    return written


def _wait(pause: float) -> None:
    """Wait about as long as that, so that not all who wait try again at once."""
    time.sleep(random.uniform(pause / 2, pause))  # noqa: S311


def user() -> str:
    """Return the name of the operating system's user, or their number where they have no name."""
    try:
        return getpass.getuser()
    except KeyError:
        return f"uid {os.getuid()}"


def examine(registry: Registry, version: int, champion: int | None, gate: Gate, evaluation: Evaluation) -> Verdict:
    """Ask the gate about a version, as the successor of a champion.

    Raises:
        InputError: there is no such version.
    """
    registry.version(version)
    try:
        candidate = _evidence(registry, version)
    except InputError as error:
        return Verdict(reasons=[str(error)])
    unreadable = []
    incumbent = None
    if champion is not None:
        try:
            incumbent = _evidence(registry, champion)
        except InputError as error:
            unreadable = [f"cannot be compared with the champion: {error}"]
    verdict = judge(candidate, incumbent, gate, evaluation)
    return verdict.model_copy(update={"reasons": verdict.reasons + unreadable})


def _evidence(registry: Registry, version: int) -> Evidence:
    with TemporaryDirectory(prefix="iusp-gate-") as folder:
        fetch_artifacts(registry.client, registry.model_name, version, EVALUATION, Path(folder))
        try:
            return read_evidence(Path(folder) / EVALUATION, version)
        except InputError as error:
            raise InputError(f"version {version}: {str(error).replace(f'{folder}/', '')}") from None


def promote(
    registry: Registry,
    version: int,
    gate: Gate,
    evaluation: Evaluation,
    *,
    why: str = "",
    force: bool = False,
    expected: int | None = None,
) -> Outcome:
    """Make a version the champion, if the gate lets it, and record it.

    Args:
        registry: the registered model.
        version: the one to promote.
        gate: thresholds.
        evaluation: resamples and seed of the gate's bootstrap.
        why: the reason, for the history.
        force: promote against the gate's reasons; needs `why`.
        expected: version that must be the champion now, 0 for none; None: any.

    Returns:
        What came of it. A version that is the champion already needs no entry.

    Raises:
        InputError: there is no such version, or `force` without `why`.
    """
    if force and not why:
        raise InputError("--force needs --reason; the history keeps it")
    _check_reason(why)
    registry.version(version)
    repaired = settle(registry)
    history = read_history(registry)
    if expected is not None and expected != (history.champion or 0):
        found = f"version {history.champion}" if history.champion else "no version"
        return Outcome(history.champion, [f"{found} is the champion, not {expected or 'none'}"], repaired=repaired)
    if history.champion == version:
        return Outcome(version, repaired=repaired)
    verdict = examine(registry, version, history.champion, gate, evaluation)
    if verdict.reasons and not force:
        return Outcome(history.champion, verdict.reasons, verdict=verdict, repaired=repaired)
    return _change(registry, history, "promote", version, why, verdict, repaired)


def rollback(registry: Registry, why: str = "") -> Outcome:
    """Make the previous champion the champion again, and record it. The gate isn't asked: it was in use before.

    Raises:
        InputError: there is nothing to go back to.
    """
    _check_reason(why)
    repaired = settle(registry)
    history = read_history(registry)
    if history.previous is None:
        raise InputError(f"{registry.model_name} has no previous champion to go back to; iusp history shows why")
    registry.version(history.previous)
    return _change(registry, history, "rollback", history.previous, why, None, repaired)


def promote_challenger(registry: Registry, version: int, gate: Gate, evaluation: Evaluation) -> Outcome:
    """Make the challenger the champion if the gate lets it and nobody has replaced it as champion before."""
    history = read_history(registry)
    if history.champion != version and any(entry.change.champion == version for entry in history.entries):
        return Outcome(history.champion, [f"version {version} was the champion before; iusp promote {version} does it"])
    return promote(registry, version, gate, evaluation, why="registration.auto_promote")


def _check_reason(why: str) -> None:
    if len(why) > LONGEST_REASON:
        raise InputError(f"--reason has {len(why)} characters; give at most {LONGEST_REASON}")


def _change(
    registry: Registry,
    history: History,
    action: Literal["promote", "rollback"],
    version: int,
    why: str,
    verdict: Verdict | None,
    repaired: bool,
) -> Outcome:
    """Append a change to the log, unless another one has come first, and let the aliases follow."""
    change = Change(
        id=uuid.uuid4().hex,
        follows=history.newest,
        action=action,
        before=history.champion,
        champion=version,
        who=user(),
        why=why,
        forced=bool(verdict and verdict.reasons),
        verdict=verdict,
    )
    description = f"{action} {change.before or 'none'} → {version} by {change.who}{why and f': {why}'}"
    now, after = _record(registry, change, description)
    if after.change.id == change.id:
        settle(registry)
        return Outcome(version, entry=after, verdict=verdict, repaired=repaired)
    reason = (
        f"meanwhile {after.change.who} made version {after.change.champion} the champion "
        f"(entry {after.number} of iusp history); look, and decide again"
    )
    return Outcome(now.champion, [reason], verdict=verdict, repaired=repaired)


def _record(registry: Registry, change: Change, description: str) -> tuple[History, Entry]:
    """Append a change to the log, unless another one that follows the same entry is there.

    Whatever MLflow answers, the history is read afterwards, and says what came of it. Of what was written although it
    seemed not to be, the first counts, and what does not count is removed.

    Returns:
        The history, and the entry of it that follows what `change` does: its own, or of whoever was faster.

    Raises:
        InputError: that cannot be found out.
    """
    appended, failure = False, "what was written cannot be read"
    for pause in (*PAUSES, None):
        try:
            with uncertain():
                now = read_history(registry)
                if after := next((entry for entry in now.entries if entry.change.follows == change.follows), None):
                    registry.remove([number for number in _numbers(registry, change.id) if number != after.number])
                    return now, after
                # Not once more if it was written and is not to be seen: a database that is read from a replica lags
                # behind. And not at last, when nobody would look any more.
                if pause and not appended:
                    registry.append(change.champion, TAG, change.model_dump_json(), description)
                    appended = True
                    continue
        except UncertainError as error:
            failure = str(error)
        if pause:
            _wait(pause)
    raise InputError(f"{registry.log_name}: {failure}; look at iusp history before you try again")


def _numbers(registry: Registry, change_id: str) -> list[int]:
    """Return a change's numbers in the log: two if an answer was lost and MLflow's client asked again."""
    return [record.number for record in registry.log(TAG) if Change.model_validate_json(record.content).id == change_id]
