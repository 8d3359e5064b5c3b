"""Secrets are planted wherever people keep them, everything is run, and then they are looked for everywhere."""

import base64
import gzip
import io
import os
import re
import subprocess
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_plus

import pandas as pd
import pytest
from click.testing import CliRunner
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from mlflow import MlflowClient

from iusp.cli.main import main
from iusp.io.files import write_json
from tests.support import s3_servers
from tests.support.local_servers import environment, free_port
from tests.support.mlflow_server import Server, forking
from tests.support.project import Project, Tried
from tests.support.s3_servers import BUCKET, SECRET

SECRETS = {
    "AWS_SECRET_ACCESS_KEY": SECRET,  # which rclone asks for
    "AWS_SESSION_TOKEN": "Pl4nted/session+token=",
    "MLFLOW_TRACKING_PASSWORD": "Pl4nted/mlflow+password=",
    "MLFLOW_TRACKING_TOKEN": "Pl4nted-mlflow.token_",
    "of MLFLOW_TRACKING_URI": "Pl4nted-uri-password",
    "of AWS_ENDPOINT_URL": "Pl4nted-endpoint-password",
    "of dataset.dvc, mirror, s3": "Pl4nted-params-password",
    "of PIP_INDEX_URL": "Pl4nted-index-password",
    "in .env": "Pl4nted/dot+env=",
    "in .dvc/config.local": "Pl4nted/dvc+remote=",
    "in ~/.netrc": "Pl4nted-netrc",
    "in ~/.aws/credentials": "Pl4nted/aws+file=",
    "in a table": "Pl4nted-parquet",
}


def forms(secret: str) -> set[bytes]:
    """How a secret may be written: as it is, percent-encoded, or base64, whatever comes before it."""
    found = {secret, quote(secret, safe=""), quote_plus(secret)}
    for before in range(3):
        encoded = base64.b64encode(bytes(before) + secret.encode()).decode()
        # The first letters depend on what comes before, the last ones on what comes after.
        certain = encoded[(0, 2, 3)[before] : (before + len(secret)) // 3 * 4]
        found |= {certain, certain.replace("+", "-").replace("/", "_")}
    return {form.encode() for form in found}


def contents(path: Path) -> Iterator[bytes]:
    """A file's bytes, and those of what is packed in it."""
    raw = path.read_bytes()
    yield raw
    if raw[:2] == b"\x1f\x8b":
        yield gzip.decompress(raw)
    if zipfile.is_zipfile(io.BytesIO(raw)):
        with zipfile.ZipFile(io.BytesIO(raw)) as packed:
            yield from map(packed.read, packed.namelist())
    if raw[:4] == b"PAR1":
        yield pd.read_parquet(io.BytesIO(raw)).to_csv().encode()


def where(secrets: dict[str, str], contents_: bytes) -> set[str]:
    """Return the names of the secrets that are in there."""
    return {name for name, secret in secrets.items() if any(form in contents_ for form in forms(secret))}


@dataclass
class Place:
    """A project on a machine where secrets lie about, with servers of MLflow and S3.

    Attributes:
        project: in which everything is run.
        folder: all that anything is written to.
        secrets: what must not be found.
        planted: the files that secrets lie in.
        env: what a user has exported.
        mlflow, s3: addresses without secrets.
        heard: all that commands printed.
    """

    project: Project
    folder: Path
    secrets: dict[str, str]
    planted: set[Path]
    env: dict[str, str]
    mlflow: str
    s3: str
    heard: list[str] = field(default_factory=list)

    def run(self, *command: str) -> None:
        done = self.project.run(*command, **self.env)
        self.heard += [done.stdout, done.stderr]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("secrets")
    home, s3_folder = folder / "home", folder / "s3"
    (home / ".aws").mkdir(parents=True)
    s3_folder.mkdir()
    project = Project(folder / "project")
    params = project.params()
    params["students"] = {"small": params["students"]["small"] | {"seeds": [0]}}
    project.write_params(params)
    key = Ed25519PrivateKey.generate()
    pem, private = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    written = key.private_bytes(pem, private, serialization.NoEncryption())
    secrets = SECRETS | {"release's signing key": written.decode().splitlines()[1]}
    planted = {
        project.folder / ".env": f"PASSWORD='{SECRETS['in .env']}'\n",
        project.folder / ".dvc/config.local": (
            "[core]\n    remote = store\n['remote \"store\"']\n    url = s3://bucket/dvc\n"
            f"    secret_access_key = {SECRETS['in .dvc/config.local']}\n"
        ),
        home / ".netrc": f"machine 127.0.0.1\nlogin me\npassword {SECRETS['in ~/.netrc']}\n",
        home / ".aws/credentials": (
            f"[default]\naws_access_key_id = x\naws_secret_access_key = {SECRETS['in ~/.aws/credentials']}\n"
        ),
        home / "release.key": written.decode(),
    }
    for path, text in planted.items():
        path.write_text(text)
    # Compressed, without statistics: as bytes it is not to be seen.
    table = pd.DataFrame({"secret": [SECRETS["in a table"]]})
    table.to_parquet(home / "table.parquet", compression="gzip", write_statistics=False)
    (home / "release.pub").write_bytes(
        key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    with ExitStack() as stack:
        s3 = stack.enter_context(s3_servers.serving("rclone", s3_folder))
        server = Server(stack.enter_context(forking()), folder / "mlflow")
        server.start()
        stack.callback(server.kill)
        uri = server.address.replace("http://", f"http://me:{SECRETS['of MLFLOW_TRACKING_URI']}@")
        env = s3_servers.environment(s3) | {
            name: secret for name, secret in SECRETS.items() if re.fullmatch(r"[A-Z_]+", name)
        }
        env |= {
            "HOME": str(home),
            "MLFLOW_TRACKING_URI": uri,
            "MLFLOW_TRACKING_USERNAME": "me",
            "PIP_INDEX_URL": f"https://me:{SECRETS['of PIP_INDEX_URL']}@example.org/simple",
            "IUSP_SIGNING_KEY": str(home / "release.key"),
            "IUSP_PUBLIC_KEY": str(home / "release.pub"),
        }
        yield Place(project, folder, secrets, {*planted, home / "table.parquet"}, env, server.address, s3)


@pytest.fixture(scope="module")
def whole(place: Place) -> Place:
    """Everything that works, done as a user does it."""
    place.project.commit()
    place.run("dvc", "repro")
    # The gate would refuse so small a student.
    place.run("iusp", "promote", "1", "--force", "--reason", "it is the only one")
    place.run("iusp", "release", "--to", f"s3://{BUCKET}/device")
    place.run("iusp", "fetch", f"s3://{BUCKET}/device", "--to", "device")
    place.run("python", "-m", "pipelines", "compile", "-o", "compiled.yaml")
    place.run("python", "-m", "pipelines", "run")
    place.run("python", "-m", "pipelines", "trainjob", "--name", "teacher", "--claim", "work", "-o", "trainjob.yaml")
    place.run("git", "add", "--all")
    place.run("git", "commit", "--quiet", "--message", "all of it")
    return place


def test_what_works_writes_no_secret(whole: Place, tried: Tried) -> None:
    # Git's own compression is looked through by git.
    objects = subprocess.run(
        ["git", "cat-file", "--batch", "--batch-all-objects"],
        cwd=whole.project.folder,
        env=environment(),
        capture_output=True,
        check=True,
    ).stdout
    found: dict[Path, set[str]] = {}
    files = [path for path in whole.folder.rglob("*") if path.is_file() and not path.is_symlink()]
    for path in files:
        if names := set().union(*(where(whole.secrets, content) for content in contents(path))):
            found[path] = names
    # What was planted is found, and so would be what was not.
    assert set(found) == whole.planted
    assert where(whole.secrets, objects) == set()
    assert where(whole.secrets, "".join(whole.heard).encode()) == set()
    searched = {path.relative_to(whole.folder).parts[:2] for path in files}
    assert {("mlflow", "mlflow.db"), ("mlflow", "artifacts"), ("s3", "data"), ("s3", "log")} <= searched
    assert {("project", name) for name in (".dvc", "data", "models", "reports", "device", "compiled.yaml")} <= searched
    assert list((whole.project.folder / ".dvc/cache").rglob("*"))
    assert list(whole.project.folder.glob("kubeflow/*/iusp-*/registration/executor_output.json"))
    assert list((whole.folder / "mlflow/artifacts").rglob("MODEL_CARD.md"))
    what = (
        f"{len(whole.secrets)} secrets are set; the whole pipeline runs with DVC and with kfp, a pipeline is compiled, "
        "and a student is released"
    )
    tried(what, len(files), "all files, databases and logs are searched, and no secret is found")


def test_what_fails_tells_no_secret(place: Place, monkeypatch: pytest.MonkeyPatch, tried: Tried) -> None:
    monkeypatch.chdir(place.project.folder)
    # Registration asks MLflow once it has this.
    write_json(Path("data/dataset/dataset.json"), {"digest": "0123"})
    client = MlflowClient(place.mlflow)
    client.create_registered_model("elsewhere")
    client.create_model_version("elsewhere", f"s3://{BUCKET}/nowhere")
    dead = free_port()
    endpoint = f"http://me:{SECRETS['of AWS_ENDPOINT_URL']}@127.0.0.1:{dead}"
    mlflow = {"MLFLOW_TRACKING_URI": f"http://me:{SECRETS['of MLFLOW_TRACKING_URI']}@127.0.0.1:{dead}"}
    # As a file has it that ends in a line end, and as nobody would write it.
    token = {"MLFLOW_TRACKING_TOKEN": f"{SECRETS['MLFLOW_TRACKING_TOKEN']}\n"}
    token |= {"MLFLOW_TRACKING_USERNAME": "", "MLFLOW_TRACKING_PASSWORD": "", "MLFLOW_TRACKING_URI": place.mlflow}
    token["NETRC"] = os.devnull  # whose password would be sent instead
    s3 = {"AWS_ENDPOINT_URL": endpoint}
    password = SECRETS["of dataset.dvc, mirror, s3"]
    to = ("--to", "nowhere")
    git = {"url": f"https://me:{password}@127.0.0.1:{dead}/data.git", "revision": "v1", "path": "data"}
    query = {"url": f"https://127.0.0.1:{dead}/data.git?token={password}", "revision": "v1", "path": "data"}
    published: dict[str, Any] = {"version": 2019, "keep": None}
    failing: list[tuple[dict[str, str], tuple[str, ...], dict[str, Any]]] = [
        *((mlflow, command, {}) for command in (("registration",), ("models",), ("promote", "1"), ("history",))),
        (mlflow, ("tag", "recordings"), {}),
        (mlflow, ("release", "--to", f"s3://{BUCKET}/x"), {}),
        (token, ("models",), {}),
        (token, ("registration",), {}),
        (s3, ("fetch", f"s3://{BUCKET}/device", *to), {}),
        (s3, ("release", "--to", f"s3://{BUCKET}/device"), {}),
        (s3, ("tag", "recordings", "--model", "models:/elsewhere/1"), {}),
        (s3, ("dataset",), {"source": "s3", "s3": f"s3://{BUCKET}/x"}),
        (s3, ("dataset",), {"source": "sonyc-ust", "sonyc_ust": published | {"mirror": f"s3://{BUCKET}/x"}}),
        ({"AWS_ENDPOINT_URL": f"{endpoint} {SECRET}"}, ("fetch", f"s3://{BUCKET}/device", *to), {}),
        ({"AWS_SECRET_ACCESS_KEY": f"{SECRET}x"}, ("fetch", f"s3://{BUCKET}/device", *to), {}),
        ({}, ("release", "--to", "s3://no-such-bucket/x"), {}),
        ({}, ("release", "--to", f"s3://me:{password}@bucket/x"), {}),
        ({}, ("fetch", f"https://me:{password}@example.org/x", *to), {}),
        ({}, ("dataset",), {"source": "s3", "s3": f"s3://me:{password}@bucket/x"}),
        ({}, ("dataset",), {"source": "dvc", "dvc": git}),
        ({}, ("dataset",), {"source": "dvc", "dvc": query}),
        ({}, ("dataset",), {"source": "folder", "path": f"https://me:{password}@example.org/data"}),
        *(
            ({}, ("dataset",), {"source": "sonyc-ust", "sonyc_ust": published | {"mirror": mirror}})
            for mirror in (f"https://me:{password}@127.0.0.1:{dead}/x", f"https://127.0.0.1:{dead}/x?token={password}")
        ),
    ]
    for name, value in (place.env | {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "AWS_MAX_ATTEMPTS": "1"}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("iusp.io.s3.REQUESTS", 1)
    monkeypatch.setattr("iusp.io.download.FAILURES", 1)
    before = (place.project.folder / "params.yaml").read_text()
    for env, command, changes in failing:
        with pytest.MonkeyPatch.context() as patch:
            for name, value in env.items():
                patch.setenv(name, value)
            if changes:
                params = place.project.params()
                params["dataset"] |= changes
                place.project.write_params(params)
            done = CliRunner().invoke(main, command)
            (place.project.folder / "params.yaml").write_text(before)
        assert done.exit_code == 2, (command, done.output, done.exception)
        (line,) = done.stderr.splitlines()
        assert line.startswith("iusp: ")
        assert where(place.secrets, done.output.encode()) == set(), (command, line)
    tried("a command fails because of a wrong server, bucket, key or setting that contains secrets", len(failing),
          "the command prints a one-line error without any secret; its exit status is 2")  # fmt: skip
