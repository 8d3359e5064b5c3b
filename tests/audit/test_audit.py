"""Licences, SBOM and known vulnerabilities: what the policy does not allow is refused, and nothing passes for want of a
network."""

import datetime
import json
import os
import re
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from audit.licences import Judgement, judge
from audit.policy import load
from audit.sbom import bill, installed, licences, locked
from audit.vulnerabilities import Vulnerability, borne
from iusp.errors import InputError

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
POLICY = """
allowed = ["MIT", "Apache-2.0", "Apache-2.0 WITH LLVM-exception"]
[names]
"License :: OSI Approved :: Apache Software License" = "Apache-2.0"
[stated.silent]
metadata = []
licence = "MIT"
evidence = "its LICENSE"
[accepted.lesser]
licence = "LGPL-2.1-or-later"
reason = "unchanged"
"""
SILENT, LESSER = {"silent": ()}, {"lesser": ("LGPL-2.1-or-later",)}


def policy(folder: Path, text: str = POLICY) -> Any:
    path = folder / "policy.toml"
    path.write_text(text)
    return load(path)


def refusals(packages: dict[str, tuple[str, ...]], folder: Path) -> dict[str, str]:
    judgements = judge(SILENT | LESSER | packages, policy(folder))
    return {judgement.package: judgement.refused for judgement in judgements if judgement.refused}


@pytest.mark.parametrize(
    "metadata",
    [
        ("MIT",),
        ("License :: OSI Approved :: Apache Software License", "MIT"),
        ("AGPL-3.0-only OR MIT",),
        ("MIT AND (GPL-2.0-only OR Apache-2.0 WITH LLVM-exception)",),
    ],
)
def test_allowed_licences_pass(tmp_path: Path, metadata: tuple[str, ...]) -> None:
    assert not refusals({"package": metadata}, tmp_path)


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        (("AGPL-3.0-only",), "not allowed"),
        (("MIT AND GPL-2.0-only",), "not allowed"),
        (("MIT", "GPL-3.0-or-later"), "not allowed"),
        (("GPL-2.0-only WITH GCC-exception-2.0",), "not allowed"),
        (("MIT WITH LLVM-exception",), "not allowed"),
        ((), "name no licence"),
        (("Proprietary",), "no SPDX licence"),
        (("License :: OSI Approved :: BSD License",), "no SPDX licence"),
    ],
)
def test_other_licences_are_refused(tmp_path: Path, metadata: tuple[str, ...], words: str) -> None:
    (refused,) = refusals({"package": metadata}, tmp_path).items()
    assert refused[0] == "package"
    assert words in refused[1]


def test_an_exception_holds_for_what_was_looked_at_alone(tmp_path: Path) -> None:
    assert judge(SILENT | LESSER, policy(tmp_path)) == [
        Judgement("lesser", "LGPL-2.1-or-later", accepted="unchanged"),
        Judgement("silent", "MIT"),
    ]
    assert "have changed and say AGPL-3.0-only" in refusals({"silent": ("AGPL-3.0-only",)}, tmp_path)["silent"]
    assert "for another licence" in refusals({"lesser": ("GPL-2.0-only",)}, tmp_path)["lesser"]
    assert "for another licence" in refusals({"lesser": ("MIT",)}, tmp_path)["lesser"]
    assert "remove it" in judge(SILENT, policy(tmp_path))[-1].refused


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("[[", "policy.toml: "),
        ("X = 'no such licence'", "names.X: "),
        ("[accepted.x]\nlicence = 'MIT'\nreason = ' '", "accepted.x.reason: "),
        ("[accepted.X_y]\nlicence = 'MIT'\nreason = 'why'", "write x-y"),
        ("[vulnerabilities.CVE-2020-1]\npackage = 'x'\nreason = 'why'", "vulnerabilities.CVE-2020-1.until: "),
        ("[other]", "other: "),
    ],
)
def test_a_policy_that_says_too_little_is_refused(tmp_path: Path, line: str, words: str) -> None:
    with pytest.raises(InputError, match=re.escape(words)) as refused:
        policy(tmp_path, f"allowed = []\n[names]\n{line}\n")
    assert "\n" not in str(refused.value)


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Make an interpreter that finds packages of given metadata, and returns its path."""

    def make(packages: dict[str, str], also: list[str]) -> Path:
        folder = tmp_path_factory.mktemp("environment")
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
        (site,) = folder.glob("lib/python*/site-packages")
        for name, metadata in packages.items():
            info = site / f"{name}-1.0.dist-info"
            info.mkdir()
            (info / "METADATA").write_text(f"Metadata-Version: 2.4\nName: {name}\nVersion: 1.0\n{metadata}")
        (site / "also.pth").write_text("\n".join(also))
        return folder / "bin/python"

    return make


def test_the_bill_has_licences_hashes_and_who_needs_whom(planted: Callable[..., Path], tmp_path: Path) -> None:
    python = planted(
        {
            "Alpha_Package": "License-Expression: MIT\nSummary: The first.\nRequires-Dist: beta\n",
            "beta": "Classifier: License :: OSI Approved :: Apache Software License\nRequires-Dist: tool\n",
            "torch": "License-Expression: MIT\n",
            "tool": "License-Expression: MIT\n",
        },
        [],
    )
    digest = "a" * 64
    (tmp_path / "requirements.in").write_text("alpha-package\ntorch==1.0\n")
    lock = f"alpha-package==1.0 \\\n    --hash=sha256:{digest}\nbeta==1.0 \\\n    --hash=sha256:{digest}\n    # via x\n"
    lock += f"elsewhere==1.0 ; sys_platform == 'win32' \\\n    --hash=sha256:{digest}\n    # via alpha-package\n"
    (tmp_path / "requirements.lock").write_text(lock)
    (tmp_path / "requirements-dev.lock").write_text("tool==1.0\n")
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "all"\nversion = "1"\n')
    assert locked(tmp_path) == dict.fromkeys(("alpha-package", "beta", "torch", "tool"), "1.0")

    environment = installed(python)
    found = licences(environment, locked(tmp_path))
    assert found["beta"] == ("License :: OSI Approved :: Apache Software License",)
    document = bill(tmp_path, environment, {"alpha-package": "MIT", "beta": "Apache-2.0", "torch": "MIT"})
    alpha, beta, torch = (f"pkg:pypi/{name}@1.0" for name in ("alpha-package", "beta", "torch"))
    components = {component["purl"]: component for component in document["components"]}
    assert components.keys() == {alpha, beta, torch}
    assert components[alpha]["description"] == "The first."
    assert components[beta]["licenses"] == [{"expression": "Apache-2.0"}]
    assert components[alpha]["externalReferences"][0]["hashes"] == [{"alg": "SHA-256", "content": digest}]
    needs = {entry["ref"]: entry["dependsOn"] for entry in document["dependencies"]}
    assert needs == {"root-component": [alpha, torch], alpha: [beta], beta: [], torch: []}

    with pytest.raises(InputError, match=r"^beta: the lock has 2.0, the environment 1.0; make the environment anew$"):
        licences(environment, {"beta": "2.0"})
    with pytest.raises(InputError, match=r"^absent: the lock has 1.0, the environment none"):
        licences(environment, {"absent": "1.0"})


def test_make_sbom_refuses_planted_packages(planted: Callable[..., Path], tmp_path: Path) -> None:
    packages = {"strict": "License-Expression: AGPL-3.0-only\n", "mute": "Summary: says nothing of licences\n"}
    python = planted(packages, [str(ROOT), *(path for path in sys.path if path.endswith("site-packages"))])
    for name in ("requirements.in", "requirements.lock", "pyproject.toml"):
        (tmp_path / name).write_text((ROOT / name).read_text())
    tools = (ROOT / "requirements-dev.lock").read_text()
    (tmp_path / "requirements-dev.lock").write_text(f"{tools}\nstrict==1.0\nmute==1.0\n")
    target = tmp_path / "sbom.json"
    done = subprocess.run([python, "-m", "audit", "sbom", target], cwd=tmp_path, capture_output=True, text=True)
    # The policy also speaks of the packages of extras, which are not in this lock.
    refused = [
        line for line in done.stderr.splitlines() if not line.endswith("no such dependency; remove it from the policy")
    ]
    assert refused == [
        "iusp: mute: licence: its metadata name no licence; find it out and state it in the policy",
        "iusp: strict: AGPL-3.0-only: not allowed",
    ]
    assert done.returncode == 1
    assert not target.exists()


class Index:
    """A package index's JSON API, behind a proxy as companies have them: whatever host it is asked for, it is that one.

    Attributes:
        answers: for each package that is known, its vulnerabilities.
        environment: what leads clients here.
    """

    def __init__(self, folder: Path) -> None:
        self.answers: dict[str, list[Any]] = {}
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._pem = folder / "key.pem"
        encoding, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
        self._pem.write_bytes(self._key.private_bytes(encoding, form, serialization.NoEncryption()))
        self._authority = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "the company")])
        (folder / "authority.pem").write_bytes(self._certificate(None).public_bytes(encoding))
        index = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_CONNECT(self) -> None:
                host = self.path.partition(":")[0]
                chain = folder / f"{host}.pem"
                chain.write_bytes(index._certificate(host).public_bytes(encoding))
                self.send_response(200)
                self.end_headers()
                context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
                context.load_cert_chain(chain, index._pem)
                self.connection = context.wrap_socket(self.connection, server_side=True)
                self.rfile = self.connection.makefile("rb")
                self.wfile = self.connection.makefile("wb", buffering=0)
                self.close_connection = False  # the tunnel is asked for by HTTP/1.0

            def do_GET(self) -> None:
                name = self.path.split("/")[-3]
                known = index.answers.get(name)
                body = json.dumps({} if known is None else {"vulnerabilities": known}).encode()
                self.send_response(404 if known is None else 200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.environment = {
            "HTTPS_PROXY": f"http://127.0.0.1:{self._server.server_address[1]}",
            "REQUESTS_CA_BUNDLE": str(folder / "authority.pem"),
            "PIP_CACHE_DIR": str(folder / "cache"),
        }

    def _certificate(self, host: str | None) -> x509.Certificate:
        name = self._authority if host is None else x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host)])
        today = datetime.datetime.now(datetime.UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(self._authority)
            .public_key(self._key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(today - datetime.timedelta(days=1))
            .not_valid_after(today + datetime.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=host is None, path_length=None), critical=True)
        )
        if host is not None:
            builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(host)]), critical=False)
        return builder.sign(self._key, hashes.SHA256())

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Index]:
    index = Index(tmp_path)
    for name in ("https_proxy", "NO_PROXY", "no_proxy", "PIP_NO_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in index.environment.items():
        monkeypatch.setenv(name, value)
    yield index
    index.close()


@pytest.fixture
def audit(tmp_path: Path) -> Callable[[], subprocess.CompletedProcess[str]]:
    """`python -m audit vulnerabilities`, of alpha 1.0, beta 1.0 and torch 1.0."""
    project = tmp_path / "project"
    project.mkdir()
    (project / "requirements.in").write_text("torch==1.0\n")
    (project / "requirements.lock").write_text(f"alpha==1.0 \\\n    --hash=sha256:{'a' * 64}\n")
    (project / "requirements-dev.lock").write_text(f"beta==1.0 \\\n    --hash=sha256:{'a' * 64}\n")
    command = [sys.executable, "-m", "audit", "vulnerabilities"]

    def run() -> subprocess.CompletedProcess[str]:
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        return subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True)

    return run


def test_a_known_vulnerability_fails(index: Index, audit: Callable[[], subprocess.CompletedProcess[str]]) -> None:
    index.answers = {"alpha": [], "beta": [], "torch": []}
    done = audit()
    assert done.stdout == "3 packages: 0 known vulnerabilities, 0 not borne by the policy\n"
    assert (done.returncode, done.stderr) == (0, "")

    index.answers["beta"] = [
        {"id": "PYSEC-1", "aliases": ["CVE-1"], "summary": "bad", "fixed_in": ["2.0"]},
        {"id": "PYSEC-2", "aliases": [], "summary": "was none", "fixed_in": [], "withdrawn": "2020-01-01T00:00:00Z"},
    ]
    done = audit()
    assert re.search(r"beta\W+1\.0\W+PYSEC-1, CVE-1\W+2\.0", done.stdout)
    assert done.stdout.endswith("3 packages: 1 known vulnerabilities, 1 not borne by the policy\n")
    assert (done.returncode, done.stderr) == (1, "")


@pytest.mark.parametrize("how", ["a package is unknown", "no service is reached"])
def test_what_cannot_be_looked_up_is_no_good_news(
    index: Index,
    audit: Callable[[], subprocess.CompletedProcess[str]],
    monkeypatch: pytest.MonkeyPatch,
    how: str,
) -> None:
    index.answers = {"alpha": [], "beta": []}
    if how == "no service is reached":
        monkeypatch.setenv("HTTPS_PROXY", "http://somebody:s3cret@127.0.0.1:9")
    done = audit()
    (line,) = done.stderr.splitlines()
    assert line.startswith("iusp: known vulnerabilities could not be looked up, so there may be any: ")
    assert ("torch" in line) == (how == "a package is unknown")
    assert "s3cret" not in line
    assert (done.returncode, done.stdout) == (2, "")


def test_a_vulnerability_is_borne_until_a_day(tmp_path: Path) -> None:
    entry = '[vulnerabilities.CVE-1]\npackage = "beta"\nuntil = 2026-01-31\nreason = "not called"\n'
    with_entry = policy(tmp_path, POLICY + entry)
    known = Vulnerability("beta", "1.0", ("PYSEC-1", "CVE-1"), ())
    assert borne(known, with_entry, datetime.date(2026, 1, 31)) == "until 2026-01-31: not called"
    assert not borne(known, with_entry, datetime.date(2026, 2, 1))
    assert not borne(Vulnerability("beta", "1.0", ("PYSEC-2",), ()), with_entry, datetime.date(2026, 1, 1))
    assert not borne(Vulnerability("alpha", "1.0", ("CVE-1",), ()), with_entry, datetime.date(2026, 1, 1))
