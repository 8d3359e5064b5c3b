"""Promotion of a version to champion, rollback, and the history of both.

The history decides which version is the champion, and the aliases follow it. Each change is one entry in the registry's
log (`iusp.registry.versions.Registry`) and names the entry that it follows. If several entries follow the same one, the
first in the log counts and the others are ignored. This is the compare-and-set that MLflow's aliases lack. It works on
every backend, without a lock that a killed process could leave behind. After appending its entry, a process sets the
aliases until they match the history. If it is killed before that, the next command does so.
"""

import getpass
import os
import random
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace
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
PAUSES = (0.2, 0.4, 0.8, 1.6, 3.2, 6.4)  # seconds between retries


class Change(BaseModel):
    """Content of one entry of the log.

    Attributes:
        id: random id, by which a process recognises its own entry.
        follows: number of the newest entry at the time of the decision, 0 for none.
        action: `promote` or `rollback`.
        before: champion before the change, None for none.
        champion: champion after the change.
        who: user who made the change.
        why: reason that the user gave.
        forced: whether the version was promoted although the gate refused.
        verdict: verdict of the gate; None for a rollback.
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
        number: number in the log; missing numbers belong to changes that came second.
        time: time of the entry, by the server's clock.
        change: content of the entry.
    """

    number: int
    time: datetime
    change: Change


@dataclass(frozen=True)
class History:
    """All changes that took effect.

    Attributes:
        entries: the changes, the oldest first.
        stack: champions, today's champion last; each rollback removes the last one.
    """

    entries: tuple[Entry, ...]
    stack: tuple[int, ...]

    @property
    def newest(self) -> int:
        """Number of the newest entry; 0 if the history is empty."""
        return self.entries[-1].number if self.entries else 0

    @property
    def champion(self) -> int | None:
        """Today's champion, if there is one."""
        return self.stack[-1] if self.stack else None

    @property
    def previous(self) -> int | None:
        """Champion that a rollback would restore, if there is one."""
        return self.stack[-2] if len(self.stack) > 1 else None


@dataclass(frozen=True)
class Outcome:
    """Result of a promotion or a rollback.

    Attributes:
        champion: champion afterwards, if there is one.
        reasons: reasons for a refusal; empty if the request was carried out or needed no change.
        entry: new entry of the history, if the champion changed.
        verdict: verdict of the gate, if it was asked.
        repaired: whether the aliases did not match the history before and were corrected.
    """

    champion: int | None
    reasons: Sequence[str] = ()
    entry: Entry | None = None
    verdict: Verdict | None = None
    repaired: bool = False


def read_history(registry: Registry) -> History:
    """Read the log, without the entries that came second. If the log is empty, the alias `champion` decides.

    Raises:
        InputError: the log is damaged, or the registered model does not exist.
    """
    entries: list[Entry] = []
    newest = 0
    for record in registry.log(TAG):
        try:
            change = Change.model_validate_json(record.content)
            if change.follows > newest:
                raise ValueError(f"it follows entry {change.follows}, which is missing")
        except ValueError as error:  # pydantic's ValidationError is a ValueError
            reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else error
            raise InputError(
                f"{registry.log_name}: version {record.number} is damaged ({reason}); delete that registered model, "
                "then a new history starts from today's aliases"
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
    """Return the aliases that do not match the history: a promotion was killed, or someone moved them.

    Returns:
        The correct version of each such alias; None for an alias that must be removed.
    """
    if not history.entries:
        return {}
    aliases = {version.number: version.aliases for version in registry.versions()}
    wrong: dict[str, int | None] = {}
    for alias, version in ((CHAMPION, history.champion), (PREVIOUS, history.previous)):
        # MLflow deletes the aliases of a version together with it.
        wanted = version if version in aliases else None
        if wanted != next((number for number, names in aliases.items() if alias in names), None):
            wrong[alias] = wanted
    return wrong


def settle(registry: Registry) -> bool:
    """Point the aliases to the versions that the history names.

    Several processes may do this at once. Each one reads the history again after it has written, and writes again if
    the history has grown. So the aliases match the newest entry when all processes have ended.

    Returns:
        Whether an alias had to be changed.

    Raises:
        InputError: MLflow failed on every retry; the next command sets the aliases.
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
                    f"{error}; the history is correct, and the next promotion or rollback sets the aliases"
                ) from None
            _wait(pause)
    return written


def _wait(pause: float) -> None:
    """Wait for a random part of a pause, so that processes do not retry at the same time."""
    time.sleep(random.uniform(pause / 2, pause))  # noqa: S311


def user() -> str:
    """Return the name of the operating system's user, or the user id if it has no name."""
    try:
        return getpass.getuser()
    except KeyError:
        return f"uid {os.getuid()}"


def examine(registry: Registry, version: int, champion: int | None, gate: Gate, evaluation: Evaluation) -> Verdict:
    """Ask the gate whether a version may replace a champion.

    Args:
        registry: registry of the model.
        version: version that would become the champion.
        champion: version to compare it with, or None.
        gate: thresholds of the gate.
        evaluation: settings of the bootstrap.

    Raises:
        InputError: the version does not exist.
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
    """Make a version the champion, if it passes the gate, and record the change.

    Args:
        registry: registry of the model.
        version: version to promote.
        gate: thresholds of the gate.
        evaluation: settings of the gate's bootstrap.
        why: reason, for the history.
        force: promote even if the gate refuses; needs `why`.
        expected: version that must be the champion now, 0 for no champion; None accepts any.

    Returns:
        The result. If the version is the champion already, the history gets no entry.

    Raises:
        InputError: the version does not exist, or `force` is given without `why`.
    """
    if force and not why:
        raise InputError("--force needs --reason, which the history keeps; add it")
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
    return replace(_change(registry, history, version, why, verdict), repaired=repaired)


def rollback(registry: Registry, why: str = "") -> Outcome:
    """Make the previous champion the champion again and record the change. The gate is not asked.

    Args:
        registry: registry of the model.
        why: reason, for the history.

    Raises:
        InputError: there is no previous champion.
    """
    _check_reason(why)
    repaired = settle(registry)
    history = read_history(registry)
    if history.previous is None:
        raise InputError(f"{registry.model_name} has no previous champion to go back to; iusp history shows why")
    registry.version(history.previous)
    return replace(_change(registry, history, history.previous, why, None), repaired=repaired)


def promote_challenger(registry: Registry, version: int, gate: Gate, evaluation: Evaluation) -> Outcome:
    """Promote the challenger if it passes the gate, unless it was champion before and has been replaced."""
    history = read_history(registry)
    if history.champion != version and any(entry.change.champion == version for entry in history.entries):
        return Outcome(
            history.champion,
            [f"version {version} was the champion before; to promote it again, run iusp promote {version}"],
        )
    return promote(registry, version, gate, evaluation, why="registration.auto_promote")


def _check_reason(why: str) -> None:
    if len(why) > LONGEST_REASON:
        raise InputError(f"--reason has {len(why)} characters; give at most {LONGEST_REASON}")


def _change(registry: Registry, history: History, version: int, why: str, verdict: Verdict | None) -> Outcome:
    """Append a change to the log, unless another change came first, and set the aliases.

    Args:
        registry: registry of the model.
        history: history that the change follows.
        version: champion after the change.
        why: reason that the user gave.
        verdict: verdict of the gate; None for a rollback.
    """
    change = Change(
        id=uuid.uuid4().hex,
        follows=history.newest,
        action="promote" if verdict else "rollback",
        before=history.champion,
        champion=version,
        who=user(),
        why=why,
        forced=bool(verdict and verdict.reasons),
        verdict=verdict,
    )
    description = f"{change.action} {change.before or 'none'} → {version} by {change.who}{why and f': {why}'}"
    now, after = _record(registry, change, description)
    if after.change.id == change.id:
        settle(registry)
        return Outcome(version, entry=after, verdict=verdict)
    reason = (
        f"meanwhile {after.change.who} made version {after.change.champion} the champion "
        f"(entry {after.number} of iusp history); check it and decide again"
    )
    return Outcome(now.champion, [reason], verdict=verdict)


def _record(registry: Registry, change: Change, description: str) -> tuple[History, Entry]:
    """Append a change to the log, unless an entry that follows the same one exists.

    MLflow's answer is not trusted: the history is read afterwards and decides. If a request was carried out twice, the
    first entry counts and the second is removed.

    Returns:
        The history, and its entry that follows the same one as `change`: the entry of `change`, or another process's.

    Raises:
        InputError: the history cannot be read.
    """
    appended, failure = False, "what was written cannot be read"
    for pause in (*PAUSES, None):
        try:
            with uncertain():
                now = read_history(registry)
                if after := next((entry for entry in now.entries if entry.change.follows == change.follows), None):
                    registry.remove([number for number in _numbers(registry, change.id) if number != after.number])
                    return now, after
                # Append only once: a database that is read from a replica shows an entry late. And never in the last
                # round, after which nothing reads the history again.
                if pause and not appended:
                    registry.append(change.champion, TAG, change.model_dump_json(), description)
                    appended = True
                    continue
        except UncertainError as error:
            failure = str(error)
        if pause:
            _wait(pause)
    raise InputError(f"{registry.log_name}: {failure}; check iusp history before you try again")


def _numbers(registry: Registry, change_id: str) -> list[int]:
    """Return the numbers of a change in the log: two if MLflow's client repeated a request whose answer was lost."""
    return [record.number for record in registry.log(TAG) if Change.model_validate_json(record.content).id == change_id]
