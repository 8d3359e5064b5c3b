"""The images are what docker/Dockerfile promises, built for real."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from audit.sbom import pins
from tests.support.docker_engine import PLANTED, ROOT, Engine, build

pytestmark = pytest.mark.containers


@pytest.fixture(params=["light", "cpu"])
def image(request: pytest.FixtureRequest) -> str:
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="session")
def locked() -> dict[str, str]:
    return pins((ROOT / "requirements.lock").read_text())


def inspect(engine: Engine, image: str, what: str) -> Any:
    return json.loads(engine.docker("image", "inspect", "--format", f"{{{{json .{what}}}}}", image))


def installed(engine: Engine, image: str) -> dict[str, str]:
    script = """
import importlib.metadata as m, json, re
print(json.dumps({re.sub("[-_.]+", "-", d.name).lower(): d.version for d in m.distributions()}))
"""
    return json.loads(engine.run(image, "python", "-c", script))


def test_no_entrypoint_a_numeric_user_and_labels(engine: Engine, image: str) -> None:
    # Kubeflow ignores an entry point on the cluster and keeps it locally: there must be none.
    assert not inspect(engine, image, "Config.Entrypoint")
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", inspect(engine, image, "Config.User"))
    assert inspect(engine, image, "Config.Labels") == {
        "org.opencontainers.image.title": "iusp",
        "org.opencontainers.image.licenses": "Apache-2.0",
        "org.opencontainers.image.version": "1.2.3",
        "org.opencontainers.image.revision": "0123abc",
    }


@pytest.mark.parametrize("user", ["10001:10001", "1000680000:0"], ids=["own", "openshift"])
def test_works_as_any_user_on_a_read_only_file_system(engine: Engine, image: str, user: str) -> None:
    script = "id -u; iusp --help; dvc --version; git --version; python -c 'import getpass; print(getpass.getuser())'"
    lines = engine.run(image, "sh", "-ec", script, options=("--user", user)).splitlines()
    assert lines[0] == user.split(":")[0]
    assert lines[-1] == "iusp"


def test_users_can_write_nothing_but_temporary_files(engine: Engine, image: str) -> None:
    # Not read-only this time: the image itself must not allow it.
    script = "find / -xdev -writable -not -type l -not -path '/proc/*' -not -path '/dev/*' 2>/dev/null; true"
    found = engine.docker("run", "--rm", "--network=none", "--user=1000680000:0", image, "sh", "-c", script)
    assert set(found.splitlines()) <= {"/tmp", "/var/tmp", "/run/lock"}


def test_code_data_and_native_libraries_are_there(engine: Engine, image: str) -> None:
    script = """
import kfp, mlflow, soundfile, psycopg2, boto3, pygit2
import iusp.steps.dataset, iusp.steps.registration
import sys
from pathlib import Path
package = Path(iusp.__file__).parent
assert sys.prefix != sys.base_prefix, "no environment of its own"
assert package.is_relative_to(sys.prefix), package
assert (package / "data/taxonomy.yaml").exists() and (package / "evaluation/report.html").exists()
for source in package.rglob("*.py"):
    (compiled,) = source.parent.glob(f"__pycache__/{source.stem}.*.pyc")
    assert int.from_bytes(compiled.read_bytes()[8:12], "little") == int(source.stat().st_mtime), f"{source} is stale"
"""
    engine.run(image, "python", "-c", script)


def test_light_has_no_torch(engine: Engine, light: str) -> None:
    assert "No module named 'torch'" in engine.run(light, "python", "-c", "import torch", check=False)


def test_cpu_has_the_torch_that_is_required(engine: Engine, cpu: str) -> None:
    version = re.search(r"^torch==(.*)", (ROOT / "requirements.in").read_text(), re.MULTILINE)
    assert version
    script = "import torch; print(torch.__version__, torch.version.cuda, (torch.ones(2, 2) @ torch.ones(2)).tolist())"
    printed = engine.run(cpu, "python", "-c", script).strip()
    assert re.fullmatch(rf"{re.escape(version[1])}(\+\w+)? None \[2\.0, 2\.0\]", printed)


def test_every_package_is_the_locks(engine: Engine, image: str, locked: dict[str, str]) -> None:
    packages = installed(engine, image)
    assert {name: packages.get(name) for name in locked} == locked
    assert set(packages) - set(locked) == ({"iusp", "torch"} if image.endswith("cpu") else {"iusp"})


def test_packages_fit_each_other(engine: Engine, cpu: str) -> None:
    # The base has a pip; the environment, on purpose, has none.
    script = """
import subprocess, sys
subprocess.run([f"{sys.base_prefix}/bin/python3", "-m", "pip", "--python", sys.executable, "check"])
"""
    assert engine.run(cpu, "python", "-c", script, check=False).strip() == "No broken requirements found."


def test_nothing_of_the_build_is_left(engine: Engine, image: str) -> None:
    script = """
for name in gcc cc g++ make; do command -v $name; done
ls -A -d /wheelhouse /source /project /torch /*.lock /*.in /etc/pip.conf /root/.cache /root/.pip 2>/dev/null
ls -A /tmp
find / -xdev '(' -name '*.whl' -o -name pip.conf -o -name .netrc -o -name .env -o -name .git ')' \
    -not -path '/usr/share/python-wheels/*' -not -path '/proc/*' 2>/dev/null
true
"""
    assert engine.docker("run", "--rm", "--network=none", image, "sh", "-c", script) == ""
    assert "PIP_" not in engine.docker("image", "history", "--no-trunc", "--format", "{{.CreatedBy}}", image)


def test_nothing_that_lay_about_is_in_a_layer(engine: Engine, image: str) -> None:
    needle, there, kept = PLANTED.encode(), 0, b""
    # Layers are not compressed in what this writes.
    with subprocess.Popen(["docker", "save", image], env=engine.environment(), stdout=subprocess.PIPE) as client:
        assert client.stdout
        while block := client.stdout.read(2**24):
            # What was at the end of one block may go on in the next one.
            assert needle not in kept + block
            there += b"Intra-utterance similarity" in block
            kept = block[-len(needle) :]
    assert client.returncode == 0
    assert there, "what is looked for could not be found"
    for shown in (("history", "--no-trunc"), ("inspect",)):
        assert PLANTED not in engine.docker("image", *shown, image)


def test_new_code_is_a_small_last_layer(engine: Engine, light: str, cpu: str) -> None:
    layers = inspect(engine, light, "RootFS.Layers")
    assert layers[:-1] == inspect(engine, cpu, "RootFS.Layers")[: len(layers) - 1]
    history = engine.docker("image", "history", "--human=false", "--format", "{{.Size}} {{.CreatedBy}}", cpu)
    sizes = [int(size) for size, _, step in (line.partition(" ") for line in history.splitlines()) if "COPY" in step]
    project, torch, dependencies = sizes
    assert project < 5_000_000 < torch < dependencies


def test_cuda_refuses_a_cpu_build_of_torch(engine: Engine) -> None:
    with pytest.raises(AssertionError, match=r"\n.*this torch is a CPU build: build the target cpu"):
        build(engine, "cuda")


@pytest.mark.parametrize("way", ["secret", "argument"])
def test_without_a_wheelhouse_the_given_index_is_asked(engine: Engine, tmp_path: Path, way: str) -> None:
    index = "http://127.0.0.1:9/some-index"  # where nobody listens
    (tmp_path / "pip.conf").write_text(f"[global]\nindex-url = {index}\n")
    option = {
        "secret": f"--secret=id=pip.conf,src={tmp_path}/pip.conf",
        "argument": f"--build-arg=PIP_INDEX_URL={index}",
    }[way]
    with pytest.raises(AssertionError, match="some-index/setuptools"):
        build(engine, "light", option, packages=False)


def test_the_sbom_is_what_is_in_the_image(engine: Engine, cpu: str, tmp_path: Path) -> None:
    target = tmp_path / "sbom.json"
    subprocess.run([sys.executable, "-m", "audit", "sbom", target], cwd=ROOT, check=True)
    bom = json.loads(target.read_text())
    assert bom["bomFormat"] == "CycloneDX"
    listed = {component["name"]: component["version"] for component in bom["components"]}
    # The lock names a version of torch, the image has a build of it.
    packages = {name: version.partition("+")[0] for name, version in installed(engine, cpu).items()}
    assert listed | {"iusp": packages["iusp"]} == packages
