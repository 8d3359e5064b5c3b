"""What the command line and a cluster's pods show people: reporter, and errors in one line."""

import csv
import errno
import json
import shutil
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from iusp.errors import InputError
from iusp.reporter import Reporter

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rich.progress import Progress as Bars
    from rich.progress import TaskID

    from iusp.config.evaluation import Evaluation
    from iusp.config.registration import Gate
    from iusp.device.drift import Drift
    from iusp.device.runtime import DeviceModel, Window
    from iusp.registry.gate import Verdict
    from iusp.registry.promotion import Entry, History, Outcome
    from iusp.registry.versions import RegisteredVersion, Registry

ADVICE = dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "; make room and run again, it goes on where it was")
ADVICE |= dict.fromkeys((errno.EROFS, errno.EACCES, errno.EPERM), "; let this user write there")
LONGEST_LINE = 4000  # characters


@contextmanager
def readable_failures() -> Iterator[None]:
    """Turn what went wrong for the user into one line and exit status 2."""
    try:
        yield
        return
    except InputError as error:
        reason = str(error)
    except BrokenProcessPool:
        reason = "a worker process was killed, perhaps for want of memory; run again, it goes on where it was"
    except BrokenPipeError:  # the reader of our output has gone: click ends quietly
        raise
    except shutil.Error as error:  # of a folder's copy: a list of what went wrong
        _, target, why = error.args[0][0]
        reason = f"{target}: {why}"
    except OSError as error:
        if error.filename is None and error.errno is None:
            raise
        reason = f"{error.filename2 or error.filename or 'disk'}: {error.strerror}{ADVICE.get(error.errno or 0, '')}"
    click.echo(f"iusp: {_one_line(reason)}", err=True)
    sys.exit(2)


def _one_line(text: str) -> str:
    """Make one line of bounded length of what may quote anything, so that no name from outside acts on a terminal."""
    shown = f"{text[:LONGEST_LINE]} …" if len(text) > LONGEST_LINE else text
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in shown)


class _ConsoleReporter(Reporter):
    """Shows an epoch as progress of its network, and warnings on standard error."""

    def warning(self, message: str) -> None:
        click.echo(f"iusp: {_one_line(message)}", err=True)

    def epoch(self, network: str, row: "Mapping[str, float]", epochs: int) -> None:
        losses = ", ".join(f"{name.removeprefix('loss_')} {row[name]:.4f}" for name in row if name.startswith("loss_"))
        message = f"loss {losses}; validate micro AUPRC {row['validate_micro_auprc']:.3f}"
        self.progress(network, int(row["epoch"]), epochs, message)


class _LineReporter(_ConsoleReporter):
    """Prints the lines that are worth keeping, and each tenth of a task."""

    def __init__(self) -> None:
        self._tenths: dict[str, int] = {}

    def progress(self, task: str, done: int, total: int, message: str = "") -> None:
        tenth = 10 * done // max(total, 1)
        if message or tenth != self._tenths.get(task, 0):
            self._tenths[task] = tenth
            click.echo(f"{task}: {done}/{total}{f', {_one_line(message)}' if message else ''}")


class _BarReporter(_ConsoleReporter):
    """Draws a progress bar for each task."""

    def __init__(self, bars: "Bars") -> None:
        self._bars = bars
        self._tasks: dict[str, TaskID] = {}

    def progress(self, task: str, done: int, total: int, message: str = "") -> None:
        if task not in self._tasks:
            self._tasks[task] = self._bars.add_task(task, total=total, message="")
        self._bars.update(self._tasks[task], completed=done, total=total, message=_one_line(message))


@contextmanager
def shown_progress() -> Iterator[Reporter]:
    """Draw progress bars on a terminal; elsewhere print lines."""
    if not sys.stdout.isatty():
        yield _LineReporter()
        return
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[message]}"),
    )
    with Bars(*columns) as bars:
        yield _BarReporter(bars)


def show_results(evaluation: Path, registration: Path) -> None:
    """Print what the pipeline computed as a table.

    Args:
        evaluation: folder that the evaluation step wrote.
        registration: file that the registration step wrote.

    Raises:
        InputError: there is none.
    """
    from rich.console import Console
    from rich.table import Table

    from iusp.artifacts.untyped import Latencies, Registration, read_metrics
    from iusp.io.files import read_json

    metrics = read_metrics(evaluation)
    latency = read_json(evaluation / "latency.json", "teacher", *metrics["students"], form=Latencies)
    registered = read_json(registration, form=Registration)
    table = Table(title=f"Coarse tags of {metrics['clips']} {metrics['split']} clips, 95 % intervals over clips")
    table.add_column("network", overflow="fold")
    table.add_column("method", overflow="fold")
    for column in ("parameters", "MACs", "ms/clip", "micro AUPRC", "macro AUPRC", "seeds", "version"):
        table.add_column(column, justify="right", overflow="fold")
    for name, network in {"teacher": metrics["teacher"], **metrics["students"]}.items():
        coarse = network["coarse"]
        version = registered["versions"].get(name, "")
        several = len(network.get("seeds", ())) > 1
        table.add_row(
            name,
            network.get("method", "labels"),
            f"{network['parameters']:,}",
            f"{network['macs'] / 1e6:.1f} M",
            f"{latency[name]['torch']['network']['p50']:.2f}",
            *(
                f"{coarse[kind]:.3f} [{coarse[f'{kind}_low']:.3f}, {coarse[f'{kind}_high']:.3f}]"
                for kind in ("micro_auprc", "macro_auprc")
            ),
            f"{network['seeds_mean']:.3f} ± {network['seeds_std']:.3f}" if several else "",
            f"{version}{' (challenger)' if name == registered['challenger'] else ''}",
        )
    console = Console(width=None if sys.stdout.isatty() else 160)
    console.print(table, markup=False)
    click.echo("ms/clip: the network alone, one thread. seeds: micro AUPRC, mean ± standard deviation over all seeds.")
    click.echo(f"Report: {evaluation / 'report.html'}")


def _print_json(value: Any) -> None:
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


def _print_table(title: str, columns: list[str], rows: list[list[str]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title)
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*row)
    Console(width=None if sys.stdout.isatty() else 200).print(table, markup=False)


def _age(since: datetime) -> str:
    seconds = (datetime.now(UTC) - since).total_seconds()
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return "now"


def _version_json(version: "RegisteredVersion") -> dict[str, Any]:
    return {
        "version": version.number,
        "aliases": list(version.aliases),
        "registered": version.registered.isoformat(timespec="seconds"),
        "run_id": version.run_id,
        "source": version.source,
        "tags": version.tags,
    }


def _entry_json(entry: "Entry") -> dict[str, Any]:
    change = entry.change
    return {
        "entry": entry.number,
        "time": entry.time.isoformat(timespec="seconds"),
        "who": change.who,
        "action": change.action,
        "from": change.before,
        "to": change.champion,
        "reason": change.why,
        "forced": change.forced,
        "verdict": change.verdict.model_dump() if change.verdict else None,
    }


def _warn_if_unsettled(registry: "Registry", history: "History") -> None:
    from iusp.registry.promotion import unsettled

    for alias, version in unsettled(registry, history).items():
        click.echo(
            f"iusp: the alias {alias} is not where the history says (version {version or 'none'}): a promotion was "
            "interrupted, or somebody moved it; the next iusp promote or rollback puts it right",
            err=True,
        )


def show_models(registry: "Registry", as_json: bool) -> None:
    """Print the registered versions, the newest first."""
    from iusp.registry.promotion import read_history

    _warn_if_unsettled(registry, read_history(registry))
    versions = registry.versions()
    if as_json:
        _print_json([_version_json(version) for version in versions])
        return

    def number(tags: dict[str, str], name: str, form: str, scale: float = 1) -> str:
        try:
            return format(float(tags[name]) * scale, form)
        except (KeyError, ValueError):  # registered by other means than ours
            return "–"

    rows = []
    for version in versions:
        tags = version.tags
        rows.append(
            [
                str(version.number),
                ", ".join(version.aliases),
                tags.get("student", "–"),
                tags.get("method", "–"),
                *(
                    f"{number(tags, kind, '.3f')} [{number(tags, f'{kind}_low', '.3f')}, "
                    f"{number(tags, f'{kind}_high', '.3f')}]"
                    for kind in ("micro_auprc", "macro_auprc")
                ),
                number(tags, "parameters", ",.0f"),
                *(
                    " / ".join(number(tags, f"{kind}.{file}.onnx", form, scale) for file in ("float32", "int8"))
                    for kind, form, scale in (("latency_ms", ".2f", 1), ("bytes", ",.0f", 1e-3))
                ),
                tags.get("iusp.data", "–")[:8],
                _age(version.registered),
            ]
        )
    columns = ["version", "alias", "student", "method", "micro AUPRC [95 %]", "macro AUPRC [95 %]", "parameters"]
    columns += ["ms float32 / int8", "kB float32 / int8", "data", "age"]
    _print_table(f"Versions of {registry.model_name}", columns, rows)


def _print_verdict(verdict: "Verdict") -> None:
    if verdict.comparison:
        click.echo(str(verdict.comparison))
    for reason in verdict.reasons:
        click.echo(f"  - {reason}")


def show_version(registry: "Registry", number: int, gate: "Gate", evaluation: "Evaluation", as_json: bool) -> None:
    """Print all that is known of a version, and what the gate says of it as the next champion."""
    from iusp.registry.promotion import examine, read_history

    history = read_history(registry)
    version = registry.version(number)
    champion = history.champion if history.champion != number else None
    verdict = examine(registry, number, champion, gate, evaluation)
    entries = [entry for entry in history.entries if number in (entry.change.before, entry.change.champion)]
    if as_json:
        described = _version_json(version) | {"gate": verdict.model_dump()}
        _print_json(described | {"history": [_entry_json(entry) for entry in entries]})
        return
    described = _version_json(version)
    described |= {"aliases": ", ".join(version.aliases) or "–"} | described.pop("tags")
    width = max(map(len, described))
    for name, value in described.items():
        click.echo(f"{name:{width}}  {value}")
    for entry in entries:
        click.echo(_sentence(entry))
    click.echo("gate: would refuse it" if verdict.reasons else "gate: passes")
    _print_verdict(verdict)


def _sentence(entry: "Entry") -> str:
    change = entry.change
    return (
        f"entry {entry.number}: {entry.time:%Y-%m-%d %H:%M} UTC {change.who}: {change.action} "
        f"{change.before or 'none'} → {change.champion}{change.why and f' ({change.why})'}"
    )


def show_outcome(outcome: "Outcome", as_json: bool) -> None:
    """Print what came of a promotion or a rollback; what was not done goes to stderr."""
    if as_json:
        _print_json(
            {
                "champion": outcome.champion,
                "changed": outcome.entry is not None,
                "reasons": list(outcome.reasons),
                "entry": _entry_json(outcome.entry) if outcome.entry else None,
                "verdict": outcome.verdict.model_dump() if outcome.verdict else None,
                "repaired": outcome.repaired,
            }
        )
        return
    if outcome.repaired:
        click.echo("iusp: the aliases were not where the history says; they are now", err=True)
    if outcome.reasons:
        still = f"version {outcome.champion} is the champion" if outcome.champion else "there is no champion"
        click.echo(f"iusp: refused; {still}", err=True)
        for reason in outcome.reasons:
            click.echo(f"  - {reason}", err=True)
        if outcome.verdict and outcome.verdict.comparison:
            click.echo(str(outcome.verdict.comparison), err=True)
    elif outcome.entry:
        click.echo(_sentence(outcome.entry))
        if outcome.verdict and outcome.verdict.reasons:
            click.echo("forced against the gate:")
        if outcome.verdict:
            _print_verdict(outcome.verdict)
    else:
        click.echo(f"version {outcome.champion} is the champion already")


def show_history(registry: "Registry", as_json: bool) -> None:
    """Print every change of the champion, the newest last."""
    from iusp.registry.promotion import read_history

    history = read_history(registry)
    _warn_if_unsettled(registry, history)
    if as_json:
        _print_json([_entry_json(entry) for entry in history.entries])
        return
    rows = []
    for entry in history.entries:
        change = entry.change
        verdict = "not asked"
        if change.verdict:
            verdict = f"forced against {len(change.verdict.reasons)} reasons" if change.forced else "passed"
            if compared := change.verdict.comparison:
                verdict += f"; {compared.difference:+.3f} [{compared.low:+.3f}, {compared.high:+.3f}]"
                verdict += f", worse: {compared.probability_worse:.2f}"
        moved = [str(change.before or "none"), str(change.champion)]
        time = f"{entry.time:%Y-%m-%d %H:%M:%S}"
        rows.append([str(entry.number), time, change.who, change.action, *moved, change.why, verdict])
    columns = ["entry", "time (UTC)", "who", "action", "from", "to", "why", "gate"]
    _print_table(f"Champions of {registry.model_name}", columns, rows)


def show_drift(drifts: "Sequence[Drift]") -> None:
    """Print how each column was distributed then, and is now, as a table."""
    from rich.console import Console
    from rich.table import Table

    clips = drifts[0]
    table = Table(title=f"{clips.new.count:,} new clips against {clips.reference.count:,} of the reference")
    table.add_column("column", overflow="fold")
    for column in ("mean", "10 %", "50 %", "90 %", "above threshold", "PSI", "KS", "p (Holm)"):
        table.add_column(column, justify="right", overflow="fold")
    table.add_column("")
    for drift in drifts:
        then, now = drift.reference, drift.new
        pairs = ((then.mean, now.mean), *zip(then.quantiles, now.quantiles, strict=True))
        above = "" if then.above is None else f"{then.above:.1%} → {now.above:.1%}"
        table.add_row(
            drift.column,
            *(f"{before:.3g} → {after:.3g}" for before, after in pairs),
            above,
            f"{drift.psi:.3f}",
            f"{drift.ks:.3f}",
            f"{drift.p_value:.2g}",
            "drifted" if drift.drifted else "",
        )
    Console(width=None if sys.stdout.isatty() else 160).print(table, markup=False)


def show_tags(
    recordings: Path,
    model: "DeviceModel",
    window: float | None,
    hop: float | None,
    form: Literal["json", "csv"] | None,
) -> bool:
    """Tag recordings and print what is in each window, as soon as it is known.

    Args:
        recordings: a file, a folder of them, or `-` for standard input.
        model: the network.
        window: seconds; the model's clip by default.
        hop: seconds from one window's start to the next one's; half of the window by default.
        form: `json`: print an object for each window; `csv`: a header, and all probabilities of each window.

    Returns:
        Whether every recording could be tagged; those that cannot get a line on standard error each.

    Raises:
        InputError: there is no recording, or window and hop do not fit.
    """
    from iusp.data.audio import BadAudio

    good = True
    table = csv.writer(sys.stdout, lineterminator="\n")
    with _found(recordings) as found:
        if form == "csv":
            table.writerow(["audio_filename", *model.tags])
        for name, path in found:
            shown = name if name.isprintable() else ascii(name)
            try:
                for number, one in enumerate(model.tag(path, window=window, hop=hop)):
                    if form == "csv":
                        table.writerow([Path(shown).name, *one.probabilities.values()])
                    elif form == "json":
                        click.echo(json.dumps({"recording": shown, **vars(one)}))
                    else:
                        click.echo(_line(one) if number else f"{shown}\n{_line(one)}")
            except BadAudio as reason:
                click.echo(f"iusp: {shown}: {reason}", err=True)
                good = False
    return good


@contextmanager
def _found(recordings: Path) -> Iterator[list[tuple[str, Path]]]:
    """Yield names and paths of the recordings."""
    from iusp.data.audio import SUFFIXES

    if str(recordings) == "-":
        # Decoding must move about in a file, which a pipe does not allow.
        with tempfile.NamedTemporaryFile() as copy:
            shutil.copyfileobj(sys.stdin.buffer, copy)
            copy.flush()
            yield [("-", Path(copy.name))]
        return
    if not recordings.exists():
        raise InputError(f"{recordings}: no such file or folder; name a recording, a folder of them, or -")
    if not recordings.is_dir():
        yield [(str(recordings), recordings)]
        return
    paths = sorted(path for path in recordings.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not paths:
        raise InputError(f"{recordings}: holds no recording; name a folder with {', '.join(SUFFIXES)} files")
    yield [(str(path), path) for path in paths]


def _line(window: "Window") -> str:
    tags = ", ".join(f"{name} {window.probabilities[name]:.2f}" for name in window.tags)
    return f"{window.start:9.1f} – {window.end:.1f} s  {tags or '–'}"
