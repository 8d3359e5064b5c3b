"""The commands for registered versions, the champion and its history."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from iusp.cli.console import print_json, print_table, warn
from iusp.cli.context import load_gate_settings, load_registry_settings

if TYPE_CHECKING:
    from iusp.config.params import RegistrySettings
    from iusp.registry.gate import Verdict
    from iusp.registry.promotion import Entry, History, Outcome
    from iusp.registry.versions import RegisteredVersion, Registry

UNKNOWN = "–"
WIDE = 220  # characters of the table of versions

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")
reason_option = click.option("--reason", default="", help="Reason for the change; kept in the history.")


def _open(settings: "RegistrySettings") -> "Registry":
    from iusp.registry.versions import Registry

    return Registry(settings.registration.model_name)


@click.group(invoke_without_command=True)
@json_option
@click.pass_context
def models(ctx: click.Context, as_json: bool) -> None:
    """List the registered versions, the newest first.

    Shows the aliases of each version, its quality with 95 % intervals, the cost of its files for devices (float32 /
    int8), the data that it was trained on, and its age. `iusp models show` prints everything about one version.

    \b
    Reads:   params.yaml (registration.model_name), MLflow's registry
    Prints:  a table; with --json every tag
    Example: iusp models
             iusp models show 3
    """
    if ctx.invoked_subcommand:
        return
    from iusp.registry.promotion import read_history
    from iusp.registry.tracking import readable_errors

    with readable_errors():
        registry = _open(load_registry_settings(ctx))
        _warn_if_unsettled(registry, read_history(registry))
        versions = registry.versions()
    if as_json:
        print_json([_version_json(version) for version in versions])
        return
    columns = ["version", "alias", "student", "method", "micro AUPRC [95 %]", "macro AUPRC [95 %]", "parameters"]
    columns += ["ms float32 / int8", "kB float32 / int8", "trained on", "data", "age"]
    print_table(f"Versions of {registry.model_name}", columns, [_row(version) for version in versions], width=WIDE)
    if generated := [str(version.number) for version in versions if version.data and version.data.generated]:
        warn(f"trained on generated scenes, not on recordings: version {', '.join(generated)}; see iusp models show")


def _row(version: "RegisteredVersion") -> list[str]:
    tags = version.tags
    return [
        str(version.number),
        ", ".join(version.aliases),
        tags.get("student", UNKNOWN),
        tags.get("method", UNKNOWN),
        *(
            f"{_number(tags, kind, '.3f')} [{_number(tags, f'{kind}_low', '.3f')}, "
            f"{_number(tags, f'{kind}_high', '.3f')}]"
            for kind in ("micro_auprc", "macro_auprc")
        ),
        _number(tags, "parameters", ",.0f"),
        *(
            " / ".join(_number(tags, f"{kind}.{file}.onnx", form, scale) for file in ("float32", "int8"))
            for kind, form, scale in (("latency_ms", ".2f", 1), ("bytes", ",.0f", 1e-3))
        ),
        version.data.name if version.data else UNKNOWN,
        tags.get("iusp.data", UNKNOWN)[:8],
        _age(version.registered),
    ]


def _number(tags: Mapping[str, str], name: str, form: str, scale: float = 1) -> str:
    try:
        return format(float(tags[name]) * scale, form)
    except (KeyError, ValueError):  # a version that another program registered
        return UNKNOWN


def _age(since: datetime) -> str:
    seconds = (datetime.now(UTC) - since).total_seconds()
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return "now"


@models.command()
@click.argument("version", type=click.IntRange(min=1))
@json_option
@click.pass_context
def show(ctx: click.Context, version: int, as_json: bool) -> None:
    """Show one VERSION: its tags, its data, its history, and the gate's verdict today.

    The gate decides whether VERSION may replace today's champion. The command changes nothing.

    \b
    Reads:   params.yaml (registration.gate, evaluation), MLflow's registry
    Prints:  text, or JSON
    Example: iusp models show 3
    """
    from iusp.registry.promotion import examine, read_history
    from iusp.registry.tracking import readable_errors

    with readable_errors():
        config = load_gate_settings(ctx)
        registry = _open(config)
        history = read_history(registry)
        registered = registry.version(version)
        champion = history.champion if history.champion != version else None
        verdict = examine(registry, version, champion, config.registration.gate, config.evaluation)
    entries = [entry for entry in history.entries if version in (entry.change.before, entry.change.champion)]
    if as_json:
        record = _version_json(registered) | {"gate": verdict.model_dump()}
        print_json(record | {"history": [_entry_json(entry) for entry in entries]})
        return
    _print_fields(registered)
    _print_data(registered)
    for entry in entries:
        click.echo(_sentence(entry))
    click.echo("gate: would refuse it" if verdict.reasons else "gate: passes")
    _print_verdict(verdict)


def _print_fields(version: "RegisteredVersion") -> None:
    fields = {
        "version": str(version.number),
        "aliases": ", ".join(version.aliases) or UNKNOWN,
        "registered": version.registered.isoformat(timespec="seconds"),
        "run_id": version.run_id or UNKNOWN,
        "source": version.source,
        **version.tags,
    }
    width = max(map(len, fields))
    for name, value in fields.items():
        click.echo(f"{name:{width}}  {value}")


def _print_data(version: "RegisteredVersion") -> None:
    """Print where the data of a version came from, with a warning on standard error if they are generated scenes."""
    if version.data is None:
        click.echo(f"data: version {version.number} does not say what it was trained on")
        return
    click.echo(f"data: {version.data.name}. {version.data.licence_note}")
    if version.data.warning:
        warn(f"version {version.number}: {version.data.warning}")


class _Champion(click.ParamType[int]):
    name = "version|none"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if value == "none":
            return 0
        return int(click.IntRange(min=1).convert(value, param, ctx))


@click.command()
@click.argument("version", type=click.IntRange(min=1))
@click.option("--expect", type=_Champion(), help="Promote only if this version (or none) is the champion now.")
@reason_option
@click.option("--force", is_flag=True, help="Promote although the gate refuses; needs --reason, and is recorded.")
@json_option
@click.pass_context
def promote(ctx: click.Context, version: int, expect: int | None, reason: str, force: bool, as_json: bool) -> None:
    """Make VERSION the champion, if it passes the gate.

    The gate (`registration.gate` in params.yaml) compares the version's measurements with floors, budgets and parity
    limits, and its scores with those of today's champion on the same clips. The alias `champion` then moves to VERSION,
    and `previous_champion` to the champion before. If the gate refuses, or another promotion came first, the command
    lists every reason, changes nothing and exits with status 1.

    \b
    Reads:   params.yaml (registration.gate, evaluation), MLflow's registry
    Writes:  the aliases and the history of the registry
    Example: iusp promote 3 --reason "better on rain"
    """
    from iusp.registry.promotion import promote
    from iusp.registry.tracking import readable_errors

    with readable_errors():
        config = load_gate_settings(ctx)
        registry = _open(config)
        gate, evaluation = config.registration.gate, config.evaluation
        outcome = promote(registry, version, gate, evaluation, why=reason, force=force, expected=expect)
        _show_outcome(registry, outcome, as_json)
    ctx.exit(1 if outcome.reasons else 0)


@click.command()
@reason_option
@json_option
@click.pass_context
def rollback(ctx: click.Context, reason: str, as_json: bool) -> None:
    """Make the previous champion the champion again.

    The gate does not check this version, because it was in use before. A second rollback goes back one champion
    further. If another promotion came first, the command changes nothing and exits with status 1.

    \b
    Reads:   params.yaml (registration.model_name), MLflow's registry
    Writes:  the aliases and the history of the registry
    Example: iusp rollback --reason "false alarms in the rain"
    """
    from iusp.registry.promotion import rollback
    from iusp.registry.tracking import readable_errors

    with readable_errors():
        registry = _open(load_registry_settings(ctx))
        outcome = rollback(registry, reason)
        _show_outcome(registry, outcome, as_json)
    ctx.exit(1 if outcome.reasons else 0)


@click.command()
@json_option
@click.pass_context
def history(ctx: click.Context, as_json: bool) -> None:
    """Show every promotion and rollback, the newest last.

    Each entry says who changed the champion, when, from which version to which, why, and what the gate decided.

    \b
    Reads:   params.yaml (registration.model_name), MLflow's registry
    Prints:  a table; with --json also the gate's verdicts
    Example: iusp history
    """
    from iusp.registry.promotion import read_history
    from iusp.registry.tracking import readable_errors

    with readable_errors():
        registry = _open(load_registry_settings(ctx))
        past = read_history(registry)
        _warn_if_unsettled(registry, past)
    if as_json:
        print_json([_entry_json(entry) for entry in past.entries])
        return
    rows = []
    for entry in past.entries:
        change = entry.change
        versions = [str(change.before or "none"), str(change.champion)]
        time = f"{entry.time:%Y-%m-%d %H:%M:%S}"
        rows.append([str(entry.number), time, change.who, change.action, *versions, change.why, _short_verdict(entry)])
    columns = ["entry", "time (UTC)", "who", "action", "from", "to", "why", "gate"]
    print_table(f"Champions of {registry.model_name}", columns, rows, width=WIDE)


def _short_verdict(entry: "Entry") -> str:
    verdict = entry.change.verdict
    if verdict is None:
        return "not asked"
    text = f"forced against {len(verdict.reasons)} reasons" if entry.change.forced else "passed"
    if compared := verdict.comparison:
        text += f"; {compared.difference:+.3f} [{compared.low:+.3f}, {compared.high:+.3f}]"
        text += f", worse: {compared.probability_worse:.2f}"
    return text


def _version_json(version: "RegisteredVersion") -> dict[str, object]:
    return {
        "version": version.number,
        "aliases": list(version.aliases),
        "registered": version.registered.isoformat(timespec="seconds"),
        "run_id": version.run_id,
        "source": version.source,
        "data": _data_json(version),
        "tags": version.tags,
    }


def _data_json(version: "RegisteredVersion") -> dict[str, object] | None:
    return version.data.model_dump(mode="json") | {"warning": version.data.warning} if version.data else None


def _entry_json(entry: "Entry") -> dict[str, object]:
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
        warn(
            f"the alias {alias} does not point to version {version or 'none'}, as the history says: a promotion was "
            "interrupted, or someone moved the alias; the next iusp promote or rollback corrects it"
        )


def _show_outcome(registry: "Registry", outcome: "Outcome", as_json: bool) -> None:
    """Print the result of a promotion or a rollback; a refusal goes to standard error."""
    champion = registry.find(outcome.champion)
    if as_json:
        print_json(
            {
                "champion": outcome.champion,
                "changed": outcome.entry is not None,
                "reasons": list(outcome.reasons),
                "entry": _entry_json(outcome.entry) if outcome.entry else None,
                "verdict": outcome.verdict.model_dump() if outcome.verdict else None,
                "repaired": outcome.repaired,
                "data": _data_json(champion) if champion else None,
            }
        )
        return
    if outcome.repaired:
        warn("the aliases did not match the history; they are corrected now")
    if outcome.reasons:
        _print_refusal(outcome)
        return
    if outcome.entry:
        click.echo(_sentence(outcome.entry))
        if outcome.verdict and outcome.verdict.reasons:
            click.echo("forced although the gate refuses:")
        if outcome.verdict:
            _print_verdict(outcome.verdict)
    else:
        click.echo(f"version {outcome.champion} is the champion already")
    if champion:
        _print_data(champion)


def _print_refusal(outcome: "Outcome") -> None:
    state = f"version {outcome.champion} is the champion" if outcome.champion else "there is no champion"
    warn(f"refused; {state}")
    for reason in outcome.reasons:
        click.echo(f"  - {reason}", err=True)
    if outcome.verdict and outcome.verdict.comparison:
        click.echo(str(outcome.verdict.comparison), err=True)


def _print_verdict(verdict: "Verdict") -> None:
    if verdict.comparison:
        click.echo(str(verdict.comparison))
    for reason in verdict.reasons:
        click.echo(f"  - {reason}")


def _sentence(entry: "Entry") -> str:
    change = entry.change
    return (
        f"entry {entry.number}: {entry.time:%Y-%m-%d %H:%M} UTC {change.who}: {change.action} "
        f"{change.before or 'none'} → {change.champion}{change.why and f' ({change.why})'}"
    )
