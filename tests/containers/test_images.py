"""The images are what docker/Dockerfile promises, built for real."""

import json
import os
import re
import subprocess
from pathlib import Path

import pytest
from docker_engine import ROOT, Engine, base_archive, build, import_base, wheelhouse

pytestmark = pytest.mark.containers

IMAGES = ["light", "cpu"]


@pytest.fixture(params=IMAGES)
def image(request: pytest.FixtureRequest) -> str:
    return request.getfixturevalue(request.param)


def inspect(engine: Engine, image: str) -> dict:
    return json.loads(engine.docker("image", "inspect", image))[0]["Config"]


def test_no_entrypoint_a_numeric_user_and_labels(engine: Engine, image: str) -> None:
    config = inspect(engine, image)
    assert not config["Entrypoint"]
    user, group = config["User"].split(":")
    assert int(user) > 0
    assert int(group) > 0
    assert config["Labels"] == {
        "org.opencontainers.image.title": "iusp",
        "org.opencontainers.image.licenses": "Apache-2.0",
        "org.opencontainers.image.version": "1.2.3",
        "org.opencontainers.image.revision": "0123abc",
    }


# The user of the image, and one that OpenShift might pick.
@pytest.mark.parametrize("options", [(), ("--user", "1000680000:0")])
def test_works_as_any_user_on_a_read_only_file_system(engine: Engine, image: str, options: tuple[str, ...]) -> None:
    script = "id -u; iusp --version; dvc --version; git --version; python -c 'import getpass; print(getpass.getuser())'"
    lines = engine.run(image, "sh", "-ec", script, options=options).splitlines()
    assert lines[0] == (options[1].split(":")[0] if options else inspect(engine, image)["User"].split(":")[0])
    assert lines[-1] == "iusp"


def test_a_user_can_write_nothing_but_temporary_files(engine: Engine, image: str) -> None:
    # Without --read-only: the image itself must not allow it.
    writable = "find / -xdev -writable -not -type l -not -path '/proc/*' -not -path '/dev/*' -print"
    found = engine.docker(
        "run", "--rm", "--network=none", "--user=1000680000:0", image, "sh", "-c", writable, check=False
    )
    folders = {line for line in found.splitlines() if line.startswith("/")}
    assert folders <= {"/tmp", "/var/tmp", "/run/lock"}
    setuid = "find /opt -xdev -perm /6000 -print"
    assert engine.run(image, "sh", "-c", setuid) == ""


def test_the_code_and_its_data_are_there(engine: Engine, image: str) -> None:
    script = """
import kfp, mlflow, soundfile, psycopg2, boto3
import iusp.taxonomy, iusp.steps.dataset, iusp.steps.registration
from pathlib import Path
package = Path(iusp.__file__).parent
assert str(package).startswith("/opt/iusp/lib"), package
assert (package / "taxonomy.yaml").exists() and (package / "templates/report.html").exists()
assert list(package.glob("__pycache__/config.*.pyc")), "not compiled"
print(soundfile.__libsndfile_version__)
"""
    assert engine.run(image, "python", "-c", script)


def test_light_has_no_torch(engine: Engine, light: str) -> None:
    script = "import importlib.util as u; print(u.find_spec('torch'))"
    assert engine.run(light, "python", "-c", script).strip() == "None"


def test_cpu_has_the_required_torch(engine: Engine, cpu: str) -> None:
    version = re.search(r"^torch==(.*)", (ROOT / "requirements.in").read_text(), re.MULTILINE)
    assert version
    script = (
        "import torch; print(torch.__version__, torch.version.cuda, (torch.ones(2, 2) @ torch.ones(2)).sum().item())"
    )
    assert re.fullmatch(rf"{re.escape(version[1])}(\+\w+)? None 4.0", engine.run(cpu, "python", "-c", script).strip())


def test_every_package_is_the_locks(engine: Engine, image: str) -> None:
    script = """
import importlib.metadata as m, json, re
print(json.dumps({re.sub("[-_.]+", "-", d.name).lower(): d.version for d in m.distributions()}))
"""
    installed = json.loads(engine.run(image, "python", "-c", script))
    locked = dict(re.findall(r"^([a-z0-9.-]+)==(\S+)", (ROOT / "requirements.lock").read_text(), re.MULTILINE))
    extra = set(installed) - set(locked)
    assert extra == ({"iusp", "torch"} if image.endswith("cpu") else {"iusp"})
    assert {name: installed.get(name) for name in locked} == locked


def test_torch_fits_the_lock(engine: Engine, cpu: str) -> None:
    # The base image has a pip; the environment, on purpose, has none.
    report = engine.run(cpu, "python3", "-c", "import sys; sys.exit(0)")
    assert report == ""
    check = ["/usr/bin/python3", "-m", "pip", "--python", "/opt/iusp/bin/python", "check"]
    assert "No broken requirements" in engine.run(cpu, *check, check=False)


def test_nothing_of_the_build_is_left(engine: Engine, image: str) -> None:
    script = """
for name in pip gcc cc g++ make; do
    path=$(command -v $name) && case $path in /opt/*) echo "$path";; esac
done
command -v gcc cc g++ make
ls -d /wheelhouse /source /project /torch /requirements* /etc/pip.conf /root/.cache /tmp/* 2>/dev/null
find / -xdev '(' -name '*.whl' -o -name 'pip.conf' -o -name '.netrc' -o -name '.env' ')' -not -path '/usr/share/python-wheels/*' 2>/dev/null
"""
    assert engine.run(image, "sh", "-c", script + "true") == ""
    history = engine.docker("image", "history", "--no-trunc", "--format", "{{.CreatedBy}}", image)
    assert "PIP_" not in history


def test_layers_that_do_not_change_with_the_code_come_first(engine: Engine, light: str, cpu: str) -> None:
    def layers(image: str) -> list[str]:
        return json.loads(engine.docker("image", "inspect", "--format", "{{json .RootFS.Layers}}", image))

    sizes = [
        (size, step)
        for step, size in (
            line.split("\t")
            for line in engine.docker(
                "image", "history", "--no-trunc", "--human=false", "--format", "{{.CreatedBy}}\t{{.Size}}", cpu
            ).splitlines()
        )
    ]
    changing = next(int(size) for size, step in sizes if "COPY /project" in step)
    assert changing < 5_000_000
    # light and cpu share all but torch and the code.
    shared = os.path.commonprefix([layers(light), layers(cpu)])
    assert len(shared) == len(layers(light)) - 1


def test_cuda_is_refused_where_torch_is_a_cpu_build(engine: Engine) -> None:
    with pytest.raises(
        AssertionError, match="this torch is a CPU build: build the target cuda|this torch is a CPU build"
    ):
        build(engine, "cuda")


def test_a_secret_of_the_build_reaches_pip_and_no_image(engine: Engine, light: str, tmp_path: Path) -> None: ...


def test_sbom_lists_what_is_in_the_image() -> None: ...
