"""A real Docker engine, and the project's images built in it, for tests/containers and for people.

No image registry and no package index are needed while images are built: Debian's own installer makes a stand-in for
python:3.11-slim-bookworm, and the packages come from a wheelhouse. Both are made once and kept in IUSP_TEST_CACHE
(~/.cache/iusp-tests without it). What is missing is an error that says what to do, never a reason to skip.

    python tests/docker_engine.py              start an engine, build light and cpu, print how to use it; Ctrl-C ends it
    python tests/docker_engine.py cache        only fill the cache

DOCKER_HOST names an engine that is there already, to be used instead of a new one.
"""

import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
CACHE = Path(os.environ.get("IUSP_TEST_CACHE") or Path.home() / ".cache" / "iusp-tests")
# What `docker build` may see, by .dockerignore; copied, so that the wheelhouse of a working tree is left alone.
CONTEXT = (
    ".dockerignore",
    "LICENSE",
    "README.md",
    "components",
    "docker",
    "iusp",
    "pipelines",
    "pyproject.toml",
    "requirements.in",
    "requirements.lock",
)
# Debian's client builds by BuildKit without a plugin; another one that comes first on the path may lack it.
CLIENT = "/usr/bin/docker"
BASE = "iusp:test-base"
# What lies about where people build, and must not get into an image; tests look for it there.
PLANTED = "Pl4nted-where-images-are-built"
LYING_ABOUT = (".env", ".dvc/config.local", ".netrc", "mlflow.db", "recordings/clip.wav", "reports/registration.json")


def _needed(program: str, package: str) -> str:
    path = shutil.which(program, path=f"{os.environ['PATH']}{os.pathsep}/usr/sbin")
    assert path, f"{program} is missing: apt-get install {package}"
    return path


@dataclass(frozen=True)
class Engine:
    """A Docker engine that answers at `host`, and how to speak to it."""

    host: str

    def environment(self) -> dict[str, str]:
        """The environment in which a Docker client, Kubeflow's included, finds this engine."""
        return os.environ | {"DOCKER_HOST": self.host, "DOCKER_BUILDKIT": "1"}

    def docker(self, *arguments: str | Path, check: bool = True) -> str:
        """Run a docker command and return what it printed, both streams where it may fail."""
        client = CLIENT if Path(CLIENT).exists() else _needed("docker", "docker.io")
        done = subprocess.run([client, *arguments], env=self.environment(), capture_output=True, text=True, check=False)
        assert not check or done.returncode == 0, f"docker {' '.join(map(str, arguments))}\n{done.stdout}{done.stderr}"
        return done.stdout if check else done.stdout + done.stderr

    def run(self, image: str, *command: str, options: tuple[str, ...] = (), check: bool = True) -> str:
        """Run a command in a new container as strictly as a careful cluster does, and return what it printed."""
        strict = ("--read-only", "--tmpfs", "/tmp", "--cap-drop", "ALL", "--security-opt", "no-new-privileges")
        return self.docker("run", "--rm", "--network", "none", *strict, *options, image, *command, check=check)


@contextmanager
def docker_engine() -> Iterator[Engine]:
    """An engine for the time of this context: DOCKER_HOST's, or a new one that leaves nothing behind."""
    if host := os.environ.get("DOCKER_HOST"):
        engine = Engine(host)
        engine.docker("version")
        yield engine
        return
    # Not in pytest's folder: the path of a socket has at most 107 characters.
    with tempfile.TemporaryDirectory(prefix="iusp-docker-") as name:
        folder = Path(name)
        try:
            process = _start(folder, "overlay2") or _start(folder, "vfs")
            assert process, f"dockerd does not start:\n{(folder / 'log').read_text()[-3000:]}"
            engine = Engine(_host(folder))
            try:
                yield engine
            finally:
                if left := engine.docker("ps", "--quiet", check=False).split():
                    engine.docker("kill", *left, check=False)
                process.terminate()
                process.wait(60)
        finally:
            # One that gave up leaves its folder mounted on itself.
            subprocess.run(["umount", folder / "data"], stderr=subprocess.DEVNULL, check=False)


def _host(folder: Path) -> str:
    return f"unix://{folder}/docker.sock"


def _start(folder: Path, driver: str) -> "subprocess.Popen[bytes] | None":
    """Start dockerd below `folder`; None if it gives up, as overlay2 makes it on some file systems."""
    assert os.geteuid() == 0, "dockerd needs root; or set DOCKER_HOST to an engine that is running"
    command = [
        # It ends with its parent, whatever ends that.
        *(_needed("setpriv", "util-linux"), "--pdeathsig", "TERM", _needed("dockerd", "docker.io")),
        # No firewall rules and no docker0: nothing of the host is changed.
        *("--bridge=none", "--iptables=false", "--ip6tables=false", f"--storage-driver={driver}"),
        *(f"--host={_host(folder)}", f"--pidfile={folder}/pid"),
        *(f"--data-root={folder}/data", f"--exec-root={folder}/run"),
    ]
    with (folder / "log").open("ab") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    while process.poll() is None:
        if "Server Version" in Engine(_host(folder)).docker("info", check=False):
            return process
        time.sleep(0.2)
    return None


def _kept(name: str, make: Callable[[Path], None]) -> Path:
    """Return `name` in the cache, made by `make` if it is not there yet."""
    path = CACHE / name
    if not path.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".", dir=CACHE) as folder:
            make(Path(folder) / name)
            (Path(folder) / name).rename(path)
    return path


def base_archive() -> Path:
    """The stand-in for python:3.11-slim-bookworm: Debian 12's own Python is 3.11. Takes a minute the first time."""
    packages = "ca-certificates,git,python3,python3-pip,python3-venv"

    def make(archive: Path) -> None:
        root = archive.with_suffix(".root")
        bootstrap = _needed("debootstrap", "debootstrap")
        command: list[str | Path] = [bootstrap, "--variant=minbase", f"--include={packages}", "bookworm", root]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        shutil.rmtree(root / "var/cache/apt/archives")
        subprocess.run(["tar", "--create", "--file", archive, "--directory", root, "."], check=True)

    return _kept("base-bookworm.tar", make)


def wheelhouse() -> Path:
    """The packages of today's lock, as `make wheelhouse` downloads them."""
    inputs = ("requirements.lock", "requirements.in", "docker/fill-wheelhouse")
    key = hashlib.sha256(b"".join((ROOT / name).read_bytes() for name in inputs)).hexdigest()[:12]

    def make(folder: Path) -> None:
        folder.mkdir()
        environment = os.environ | {"PYTHON": sys.executable}
        subprocess.run([ROOT / "docker/fill-wheelhouse", folder], env=environment, check=True)

    return _kept(f"wheelhouse-{key}", make)


def s3_packages() -> Path:
    """The packages of the stand-in for the S3 server, in the versions of the tests' own lock."""
    lock = (ROOT / "requirements-dev.lock").read_text()
    pins = dict(re.findall(r"^([a-z0-9.-]+)==(\S+)", lock, re.MULTILINE))

    def make(folder: Path) -> None:
        folder.mkdir()
        constraints = folder.with_suffix(".txt")
        constraints.write_text("".join(f"{name}=={version}\n" for name, version in pins.items()))
        options: list[str | Path] = ["--quiet", "--dest", folder, "--constraint", constraints]
        subprocess.run([sys.executable, "-m", "pip", "download", *options, "moto[server]"], check=True)

    return _kept(f"moto-{pins['moto']}", make)


def import_base(engine: Engine) -> str:
    """Put the stand-in into the engine and return its name."""
    if not engine.docker("images", "--quiet", BASE):
        engine.docker("import", base_archive(), BASE)
    return BASE


def build(engine: Engine, target: str, *options: str, packages: bool = True) -> str:
    """Build a target of docker/Dockerfile from the wheelhouse, without any network, and return the image's name."""
    image = f"iusp:test-{target}"
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE, prefix=".context-") as name:
        context, secret = Path(name) / "context", Path(name) / "pip.conf"
        context.mkdir()
        for entry in CONTEXT:
            source = ROOT / entry
            if source.is_dir():
                shutil.copytree(source, context / entry, ignore=shutil.ignore_patterns("wheelhouse", "__pycache__"))
            elif source.exists():
                shutil.copy(source, context)
        (context / "docker/wheelhouse").mkdir()
        for entry in LYING_ABOUT:
            (context / entry).parent.mkdir(exist_ok=True)
            (context / entry).write_text(PLANTED)
        if packages:
            shutil.copytree(wheelhouse(), context / "docker/wheelhouse", copy_function=os.link, dirs_exist_ok=True)
            secret.write_text(f"[global]\nproxy = http://user:{PLANTED}@127.0.0.1:9\n")
            options = (*options, f"--secret=id=pip.conf,src={secret}")
        engine.docker(
            *("build", "--network=none", f"--build-arg=BASE_IMAGE={import_base(engine)}", *options),
            *(f"--file={context}/docker/Dockerfile", f"--target={target}", f"--tag={image}", context),
        )
    return image


def build_stand_ins(engine: Engine) -> dict[str, str]:
    """Build what tests/containers/stand_ins has; return the images by their service's name in docker/compose.yaml."""
    source = ROOT / "tests/containers/stand_ins"
    with tempfile.TemporaryDirectory(dir=CACHE, prefix=".context-") as name:
        context = Path(name) / "stand_ins"
        shutil.copytree(source, context)
        shutil.copytree(s3_packages(), context / "wheels", copy_function=os.link)
        for target in ("postgres", "s3"):
            engine.docker(
                *("build", "--network=host", f"--build-arg=BASE_IMAGE={import_base(engine)}"),
                *(f"--target={target}", f"--tag=iusp:test-{target}", context),
            )
    return {"postgres": "iusp:test-postgres", "s3": "iusp:test-s3"}


def main() -> None:
    """Fill the cache; then build both images in an engine and keep it up."""
    base_archive(), wheelhouse(), s3_packages()
    if sys.argv[1:] == ["cache"]:
        return
    with docker_engine() as engine:
        print(f"export DOCKER_HOST={engine.host}", flush=True)
        print(f"{build(engine, 'light')} and {build(engine, 'cpu')} are built; Ctrl-C ends the engine", flush=True)
        with suppress(KeyboardInterrupt):
            signal.pause()


if __name__ == "__main__":
    main()
