"""The command line: `python -m audit`, which `make sbom` and `make audit` call in the project's folder."""

import sys
from collections import defaultdict
from datetime import UTC, datetime
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from audit import sbom as bills
from audit import vulnerabilities as known
from audit.licences import judge
from audit.policy import load
from iusp.cli.console import Commands
from iusp.io.files import write_json

ROOT = Path()


def _show(table: Table) -> None:
    Console(width=None if sys.stdout.isatty() else 160).print(table, markup=False)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Check the licences and known vulnerabilities of all dependencies, and write the images' SBOM."""


@main.command()
@click.argument("output", type=click.Path(dir_okay=False, path_type=Path))
def sbom(output: Path) -> None:
    """Check all licences, and write the images' SBOM to OUTPUT (CycloneDX JSON). Needs no network."""
    packages = bills.locked(ROOT)
    environment = bills.installed(Path(sys.executable))
    judgements = judge(bills.licences(environment, packages), load())
    names = defaultdict(list)
    for judgement in judgements:
        names[judgement.licence, judgement.accepted or judgement.refused].append(judgement.package)
    table = Table(title=f"Licences of {len(packages)} packages", show_lines=True)
    for column in ("licence", "packages", "accepted or refused, because"):
        table.add_column(column)
    for (licence, reason), of in sorted(names.items(), key=lambda item: -len(item[1])):
        table.add_row(licence or "unknown", ", ".join(of), reason)
    _show(table)
    if refused := [judgement for judgement in judgements if judgement.refused]:
        for judgement in refused:
            click.echo(f"iusp: {judgement.package}: {judgement.licence or 'licence'}: {judgement.refused}", err=True)
        sys.exit(1)
    licence_of = {judgement.package: judgement.licence for judgement in judgements}
    write_json(output, bills.bill(ROOT, environment, licence_of))
    click.echo(f"All licences are allowed or accepted. SBOM: {output}")


@main.command()
def vulnerabilities() -> None:
    """Look up the known vulnerabilities of all packages, and fail if the policy does not accept one."""
    packages = bills.locked(ROOT)
    policy = load()
    found = known.look_up(packages)
    today = datetime.now(UTC).date()
    reasons = [known.borne(vulnerability, policy, today) for vulnerability in found]
    table = Table(title=f"Known vulnerabilities of {len(packages)} packages")
    for column in ("package", "version", "vulnerability", "fixed in", "borne"):
        table.add_column(column)
    for one, reason in zip(found, reasons, strict=True):
        table.add_row(one.package, one.version, ", ".join(one.identifiers), ", ".join(one.fixed_in), reason)
    if found:
        _show(table)
    open_ = reasons.count("")
    click.echo(f"{len(packages)} packages: {len(found)} known vulnerabilities, {open_} not borne by the policy")
    if open_:
        sys.exit(1)


if __name__ == "__main__":
    main(prog_name="python -m audit")
