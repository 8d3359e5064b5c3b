"""The engine and the images that tests in containers share."""

from collections.abc import Iterator

import pytest

from tests.support.docker_engine import Engine, build, docker_engine

LABELS = ("--build-arg=VERSION=1.2.3", "--build-arg=REVISION=0123abc")


@pytest.fixture(scope="session")
def engine() -> Iterator[Engine]:
    with docker_engine() as engine:
        yield engine


@pytest.fixture(scope="session")
def light(engine: Engine) -> str:
    return build(engine, "light", *LABELS)


@pytest.fixture(scope="session")
def cpu(engine: Engine) -> str:
    return build(engine, "cpu", *LABELS)
