"""The SBOM of the images: the packages of the lock, with licences from the metadata of installed packages."""

import json
import re
import subprocess
import sys
from collections.abc import Iterable
from functools import reduce
from operator import or_
from pathlib import Path
from typing import Any

from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from packaging.markers import Marker
from packaging.utils import canonicalize_name

from iusp.errors import InputError

Document = dict[str, Any]

PINNED = re.compile(r"([A-Za-z0-9._-]+)==([^\s;\\]+)(?: ; ([^\\\n]+))?")
VERSION = SchemaVersion.V1_6


def locked(root: Path) -> dict[str, str]:
    """Return name and version of every package of all locks, and of torch.

    Raises:
        InputError: a file cannot be read, or requirements.in does not pin torch.
    """
    locks = (pins(path.read_text(encoding="utf-8")) for path in sorted(root.glob("requirements-*.lock")))
    return reduce(or_, locks, pins(image_requirements(root)))


def image_requirements(root: Path) -> str:
    """Return what the images hold, as a requirements file. torch has no hash, because it differs between its builds."""
    requirements = (root / "requirements.in").read_text(encoding="utf-8")
    if not (torch := re.search(r"^torch==.*$", requirements, re.MULTILINE)):
        raise InputError(f"{root / 'requirements.in'}: pins no version of torch; write torch==…")
    lock = (root / "requirements.lock").read_text(encoding="utf-8")
    return "".join([*_entries(lock), f"{torch[0]}\n"])


def pins(requirements: str) -> dict[str, str]:
    """Return name and version of each package of a requirements file that this platform needs."""
    pinned = (PINNED.match(entry) for entry in _entries(requirements))
    return {canonicalize_name(match[1]): match[2] for match in pinned if match}


def _entries(requirements: str) -> list[str]:
    """Return the entries, each with its hashes, whose marker holds for this platform and Python version."""
    entries = re.split(r"^(?=[A-Za-z0-9])", f"{requirements}\n", flags=re.MULTILINE)[1:]
    return [entry for entry in entries if not (match := PINNED.match(entry)) or _applies(match[3])]


def _applies(marker: str | None) -> bool:
    return marker is None or Marker(marker).evaluate()


def _cyclonedx(*arguments: str, text: str = "") -> Document:
    command = [sys.executable, "-m", "cyclonedx_py", *arguments, "--no-validate", "--output-reproducible"]
    done = subprocess.run(command, input=text, capture_output=True, text=True)  # noqa: S603
    if done.returncode:
        raise InputError(f"cyclonedx-py {arguments[0]} failed: {(done.stderr.strip() or '?').splitlines()[-1]}")
    document: Document = json.loads(done.stdout)
    return document


def installed(python: Path) -> Document:
    """Return the SBOM of an environment.

    Args:
        python: interpreter of the environment.
    """
    return _cyclonedx("environment", str(python))


def licences(environment: Document, packages: dict[str, str]) -> dict[str, tuple[str, ...]]:
    """Return the licences in the metadata of packages: SPDX expressions, classifiers or free text.

    Args:
        environment: SBOM of an environment with the packages.
        packages: version of each package.

    Raises:
        InputError: the environment lacks a package, or has another version of it.
    """
    components = _by_name(environment)
    for name, version in packages.items():
        there = components.get(name, {}).get("version", "none")
        if there.partition("+")[0] != version:
            raise InputError(f"{name}: the lock has {version}, the environment {there}; make the environment anew")
    return {name: tuple(_names(components[name])) for name in packages}


def _names(component: Document) -> Iterable[str]:
    for entry in component.get("licenses", ()):
        licence = entry.get("license", {})
        yield entry.get("expression") or licence.get("id") or licence["name"]


def _by_name(document: Document) -> dict[str, Document]:
    return {canonicalize_name(component["name"]): component for component in document["components"]}


def bill(root: Path, environment: Document, licence_of: dict[str, str]) -> Document:
    """Return the valid CycloneDX SBOM of the images, which is the same for the same lock.

    Args:
        root: folder of the project.
        environment: SBOM of an environment with the packages.
        licence_of: SPDX expression of each package.

    Raises:
        InputError: the SBOM does not follow CycloneDX's schema.
    """
    arguments = ("--spec-version", VERSION.to_version(), "--pyproject", str(root / "pyproject.toml"), "-")
    document = _cyclonedx("requirements", *arguments, text=image_requirements(root))
    there = _by_name(environment)
    needs = {entry["ref"]: entry.get("dependsOn", ()) for entry in environment["dependencies"]}
    listed = _by_name(document)
    for name, component in listed.items():
        component["bom-ref"] = component["purl"]
        component["licenses"] = [{"expression": licence_of[name]}]
        component["description"] = there[name].get("description", "")
    refs = {there[name]["bom-ref"]: component["bom-ref"] for name, component in listed.items()}
    direct = re.findall(r"^[A-Za-z0-9._-]+", (root / "requirements.in").read_text(encoding="utf-8"), re.MULTILINE)
    document["dependencies"] = [
        {"ref": "root-component", "dependsOn": sorted(listed[canonicalize_name(name)]["bom-ref"] for name in direct)},
        *(
            {"ref": ref, "dependsOn": sorted(refs[need] for need in needs[old] if need in refs)}
            for old, ref in refs.items()
        ),
    ]
    if error := JsonStrictValidator(VERSION).validate_str(json.dumps(document)):
        raise InputError(f"the SBOM is not valid: {error}")
    return document
