"""Known vulnerabilities of dependencies, which pip-audit finds and the policy judges."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from audit.policy import Policy
from iusp.errors import InputError


@dataclass(frozen=True)
class Vulnerability:
    """A known vulnerability of a package.

    Attributes:
        package: name of the package.
        version: version in the lock.
        identifiers: CVE, GHSA and PYSEC identifiers; the first one is the database's own.
        fixed_in: versions that fix it.
    """

    package: str
    version: str
    identifiers: tuple[str, ...]
    fixed_in: tuple[str, ...]


def look_up(packages: Mapping[str, str]) -> list[Vulnerability]:
    """Look up every package in the service of pip-audit (PyPI, or PIP_AUDIT_VULNERABILITY_SERVICE).

    Args:
        packages: version of each package.

    Raises:
        InputError: the service does not answer, or does not know a package. Neither counts as "no vulnerability".
    """
    with tempfile.TemporaryDirectory() as folder:
        requirements = Path(folder) / "requirements.txt"
        requirements.write_text("".join(f"{name}=={version}\n" for name, version in packages.items()), encoding="utf-8")
        # Without --strict, pip-audit reports unknown packages as "no known vulnerabilities".
        command = [sys.executable, "-m", "pip_audit", "--requirement", str(requirements), "--no-deps", "--disable-pip"]
        command += ["--strict", "--format", "json", "--aliases", "on", "--desc", "off", "--progress-spinner", "off"]
        done = subprocess.run(command, capture_output=True, text=True)  # noqa: S603
    try:
        found = json.loads(done.stdout)["dependencies"]
    except ValueError:
        reason = (done.stderr.strip() or "pip-audit was ended").splitlines()[-1].removeprefix("ERROR:pip_audit._cli:")
        raise InputError(
            f"known vulnerabilities could not be looked up, so there may be any: {reason}; run it where the service of "
            "vulnerabilities answers"
        ) from None
    if packages.keys() != {dependency["name"] for dependency in found}:
        raise InputError("pip-audit did not look up every package; see what `pip-audit --strict` says")
    return [
        Vulnerability(
            dependency["name"],
            dependency["version"],
            (vulnerability["id"], *sorted(vulnerability["aliases"])),
            tuple(vulnerability["fix_versions"]),
        )
        for dependency in found
        for vulnerability in dependency["vulns"]
    ]


def borne(vulnerability: Vulnerability, policy: Policy, today: date) -> str:
    """Return why and until when the policy accepts a vulnerability, or an empty string if it does not."""
    for identifier in vulnerability.identifiers:
        entry = policy.vulnerabilities.get(identifier)
        if entry and entry.package == vulnerability.package and today <= entry.until:
            return f"until {entry.until}: {entry.reason}"
    return ""
