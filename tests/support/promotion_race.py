"""Processes that promote at once; imported by a fork server, so that starting twenty costs little."""

import importlib
import multiprocessing
import os
import signal
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

from mlflow import MlflowClient

from iusp.registry.promotion import Outcome, promote, read_history, unsettled
from iusp.registry.versions import Registry
from tests.support.evidence import EVALUATION, GATE, register_versions

START_SECONDS = 300
for kind in ("tracking", "model_registry"):  # which MLflow imports when it first meets a database
    importlib.import_module(f"mlflow.store.{kind}.sqlalchemy_store")


def fork_server() -> multiprocessing.context.ForkServerContext:
    """Forks from a process that has imported this module and done nothing else."""
    # Python 3.11 preloads nothing that sys.path alone leads to.
    os.environ["PYTHONPATH"] = os.pathsep.join(
        filter(None, [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH")])
    )
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.support.promotion_race"])
    return context


def contend(uri: str, model_name: str, version: int, expected: int | None, start: Barrier, outcomes: Any) -> None:
    """Promote a version once all others are ready."""
    os.environ["MLFLOW_TRACKING_URI"] = uri
    registry = Registry(model_name)
    start.wait(START_SECONDS)
    try:
        outcomes.put(promote(registry, version, GATE, EVALUATION, why=f"process {os.getpid()}", expected=expected))
    except BaseException as error:
        outcomes.put(repr(error))
        raise


def race(uri: str, model_name: str, versions: list[int], expected: int | None) -> list[Outcome]:
    """Let a process for each of `versions` promote it, all at once, and return what each was told."""
    context = fork_server()
    start, outcomes = context.Barrier(len(versions)), context.Queue()
    processes = [
        context.Process(target=contend, args=(uri, model_name, version, expected, start, outcomes))
        for version in versions
    ]
    for process in processes:
        process.start()
    told = [outcomes.get(timeout=START_SECONDS) for _ in processes]
    for process in processes:
        process.join()
    assert all(isinstance(one, Outcome) for one in told), told
    return told


def check(registry: Registry, told: list[Outcome], before: int) -> None:
    """Assert that the history is one chain of the winners, every loser has a reason, and the aliases are the last's.

    Args:
        registry: the registered model.
        told: what each process was told.
        before: how many entries the history had.
    """
    history = read_history(registry)
    assert unsettled(registry, history) == {}
    assert registry.aliases()["champion"] == history.champion == history.entries[-1].change.champion
    for earlier, later in zip(history.entries, history.entries[1:], strict=False):
        assert later.change.before == earlier.change.champion
        assert later.change.follows == earlier.number
    won = {one.entry.change.id for one in told if one.entry}
    assert won == {entry.change.id for entry in history.entries[before:]}
    for one in told:
        # The winner, the loser, or one whose version somebody else had promoted.
        assert (one.entry is not None) + bool(one.reasons) + (one.verdict is None and not one.reasons) == 1
    # In MLflow's own views, too, there is nothing that did not happen.
    assert [record.number for record in registry.log("iusp.promotion")] == [entry.number for entry in history.entries]


def race_twice(uri: str, folder: Path) -> None:
    """Let twenty processes promote at once, first expecting that there is no champion, then whatever there is."""
    registry = Registry("race", MlflowClient(uri))
    versions = register_versions(registry, folder, [0.3, 0.29, 0.28, 0.27])
    told = race(uri, "race", versions * 5, expected=0)
    assert sum(one.entry is not None for one in told) == 1
    assert sum(bool(one.reasons) for one in told) == 19
    check(registry, told, before=0)
    # Without an expectation some may follow each other; nobody overwrites what they have not seen.
    told = race(uri, "race", versions * 5, expected=None)
    check(registry, told, before=1)


def killed(uri: str, model_name: str, version: int, method: str, calls: int, after: bool) -> None:
    """Promote, and be killed at the `calls`-th call of a method of the registry."""
    os.environ["MLFLOW_TRACKING_URI"] = uri
    registry = Registry(model_name)
    genuine, count = getattr(registry, method), 0

    def deadly(*arguments: Any) -> None:
        nonlocal count
        count += 1
        if count == calls and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        genuine(*arguments)
        if count == calls:
            os.kill(os.getpid(), signal.SIGKILL)

    setattr(registry, method, deadly)
    promote(registry, version, GATE, EVALUATION)


def kill(uri: str, model_name: str, version: int, method: str, calls: int, after: bool) -> None:
    """Run `killed` in a process and see it die."""
    process = fork_server().Process(target=killed, args=(uri, model_name, version, method, calls, after))
    process.start()
    process.join(START_SECONDS)
    assert process.exitcode == -signal.SIGKILL
