"""docker/compose.yaml is valid, refuses to start without passwords, and keeps what MLflow is given."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.support.docker_engine import ROOT, Engine, build_stand_ins
from tests.support.promotion_race import race_twice

pytestmark = pytest.mark.containers

FILE = ROOT / "docker/compose.yaml"
MLFLOW = """
import json, mlflow
with mlflow.start_run() as run:
    mlflow.log_metric("auprc", 0.5)
    mlflow.log_text("kept", "folder/note.txt")
print(json.dumps([run.info.run_id, run.info.artifact_uri]))
"""
READ = """
import sys, mlflow
run = mlflow.get_run(sys.argv[1])
print(run.data.metrics["auprc"], mlflow.artifacts.load_text(run.info.artifact_uri + "/folder/note.txt"))
"""


def compose(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    assert shutil.which("docker-compose"), "docker-compose is missing: apt-get install docker-compose"
    clean = {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/")}
    command = ["docker-compose", "--file", str(FILE), *arguments]
    return subprocess.run(command, env=clean | environment, capture_output=True, text=True, check=False, timeout=300)


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What docker/generate-env writes."""
    path = tmp_path_factory.mktemp("compose") / "env"
    subprocess.run([ROOT / "docker/generate-env", path], check=True)
    assert path.stat().st_mode & 0o077 == 0
    again = subprocess.run([ROOT / "docker/generate-env", path], capture_output=True, check=False)
    assert again.returncode != 0, "passwords of volumes that exist were overwritten"
    lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
    return dict(line.split("=", 1) for line in lines)


def test_the_example_holds_no_secret_and_the_command_makes_long_ones(settings: dict[str, str]) -> None:
    example = (ROOT / "docker/.env.example").read_text()
    secrets = re.findall(r"^(\w+)=$", example, re.MULTILINE)
    assert secrets == ["POSTGRES_PASSWORD", "S3_ACCESS_KEY", "S3_SECRET_KEY"]
    assert all(len(settings[name]) >= 40 for name in secrets)
    assert len({settings[name] for name in secrets}) == 3


@pytest.mark.parametrize("name", ["POSTGRES_PASSWORD", "S3_ACCESS_KEY", "S3_SECRET_KEY"])
def test_no_password_is_refused_with_what_to_do(settings: dict[str, str], name: str) -> None:
    done = compose({key: value for key, value in settings.items() if key != name}, "config")
    assert done.returncode != 0
    assert "run docker/generate-env" in done.stderr


def test_the_file_is_valid_and_only_this_machine_reaches_the_ports(settings: dict[str, str]) -> None:
    done = compose(settings, "config")
    assert done.returncode == 0, done.stderr
    services = yaml.safe_load(done.stdout)["services"]
    ports = [port for service in services.values() for port in service.get("ports", [])]
    assert len(ports) == 2
    assert all(str(port).startswith("127.0.0.1:") for port in ports)
    assert {name for name, service in services.items() if "healthcheck" in service} == {"mlflow", "postgres", "s3"}


@pytest.fixture(scope="module")
def stack(engine: Engine, light: str, settings: dict[str, str]) -> Iterator[dict[str, str]]:
    images = build_stand_ins(engine)
    environment = settings | {
        "DOCKER_HOST": engine.host,
        "COMPOSE_PROJECT_NAME": f"iusp-test-{os.getpid()}",
        "IUSP_IMAGE": light,
        "POSTGRES_IMAGE": images["postgres"],
        "S3_IMAGE": images["s3"],
        "MLFLOW_PORT": free_port(),
        "S3_PORT": free_port(),
    }
    try:
        yield environment
    finally:
        compose(environment, "down", "--volumes", "--timeout", "5")


def up(engine: Engine, stack: dict[str, str]) -> None:
    done = compose(stack, "up", "--detach")
    assert done.returncode == 0, done.stdout + done.stderr
    name = compose(stack, "ps", "--quiet", "mlflow").stdout.strip()
    end = time.monotonic() + 180
    while engine.docker("inspect", "--format", "{{.State.Health.Status}}", name).strip() != "healthy":
        assert time.monotonic() < end, engine.docker("logs", name, check=False)[-3000:]
        time.sleep(1)


def test_runs_outlive_the_stack(engine: Engine, stack: dict[str, str]) -> None:
    def python(script: str, *arguments: str) -> str:
        client = {
            "MLFLOW_TRACKING_URI": f"http://127.0.0.1:{stack['MLFLOW_PORT']}",
            "MLFLOW_ENABLE_PROXY_MULTIPART_DOWNLOAD": "false",
        }
        command = [sys.executable, "-c", script, *arguments]
        return subprocess.run(
            command, env=os.environ | client, stdout=subprocess.PIPE, text=True, check=True, timeout=120
        ).stdout

    up(engine, stack)
    run, artifacts = json.loads(python(MLFLOW).splitlines()[-1])
    # Through MLflow: the client has no key and does not know where they lie.
    assert artifacts.startswith("mlflow-artifacts:/")
    # The database outlives its container. (The S3 stand-in keeps nothing, so it goes on.)
    assert compose(stack, "rm", "--stop", "--force", "mlflow", "postgres").returncode == 0
    up(engine, stack)
    assert python(READ, run).splitlines()[-1] == "0.5 kept"


def test_twenty_promotions_at_once_on_postgres(engine: Engine, stack: dict[str, str], tmp_path: Path) -> None:
    up(engine, stack)
    race_twice(f"http://127.0.0.1:{stack['MLFLOW_PORT']}", tmp_path)
