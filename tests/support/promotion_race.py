"""Processes that promote at the same time. A fork server imports this module, so that twenty processes start fast."""

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
for kind in ("tracking", "model_registry"):  # MLflow imports these when it first opens a database
    importlib.import_module(f"mlflow.store.{kind}.sqlalchemy_store")


def fork_server() -> multiprocessing.context.ForkServerContext:
    """Return a context whose processes are forked from one that has only imported this module."""
    # The fork server of Python 3.11 finds modules by PYTHONPATH only, not by sys.path.
    os.environ["PYTHONPATH"] = os.pathsep.join(
        filter(None, [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH")])
    )
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.support.promotion_race"])
    return context


def contend(uri: str, model_name: str, version: int, expected: int | None, start: Barrier, outcomes: Any) -> None:
    """Promote a version as soon as all other processes are ready."""
    os.environ["MLFLOW_TRACKING_URI"] = uri
    registry = Registry(model_name)
    start.wait(START_SECONDS)
    try:
        outcomes.put(promote(registry, version, GATE, EVALUATION, why=f"process {os.getpid()}", expected=expected))
    except BaseException as error:
        outcomes.put(repr(error))
        raise


def race(uri: str, model_name: str, versions: list[int], expected: int | None) -> list[Outcome]:
    """Promote all `versions` at once, each in a process of its own, and return the outcomes."""
    context = fork_server()
    start, outcomes = context.Barrier(len(versions)), context.Queue()
    processes = [
        context.Process(target=contend, args=(uri, model_name, version, expected, start, outcomes))
        for version in versions
    ]
    for process in processes:
        process.start()
    results = [outcomes.get(timeout=START_SECONDS) for _ in processes]
    for process in processes:
        process.join()
    assert all(isinstance(outcome, Outcome) for outcome in results), results
    return results


def check(registry: Registry, results: list[Outcome], before: int) -> None:
    """Assert that the winners form one chain, that every loser has a reason, and that the aliases match the last entry.

    Args:
        registry: registry of the model.
        results: outcome of each process.
        before: number of entries that the history had.
    """
    history = read_history(registry)
    assert unsettled(registry, history) == {}
    assert registry.aliases()["champion"] == history.champion == history.entries[-1].change.champion
    for earlier, later in zip(history.entries, history.entries[1:], strict=False):
        assert later.change.before == earlier.change.champion
        assert later.change.follows == earlier.number
    won = {outcome.entry.change.id for outcome in results if outcome.entry}
    assert won == {entry.change.id for entry in history.entries[before:]}
    for outcome in results:
        # A winner, a loser, or a process whose version another one had promoted already.
        unchanged = outcome.verdict is None and not outcome.reasons
        assert (outcome.entry is not None) + bool(outcome.reasons) + unchanged == 1
    # MLflow's own pages show these changes and no others.
    assert [record.number for record in registry.log("iusp.promotion")] == [entry.number for entry in history.entries]


def race_twice(uri: str, folder: Path) -> None:
    """Let twenty processes promote at once: first expecting no champion, then without an expectation."""
    registry = Registry("race", MlflowClient(uri))
    versions = register_versions(registry, folder, [0.3, 0.29, 0.28, 0.27])
    results = race(uri, "race", versions * 5, expected=0)
    assert sum(outcome.entry is not None for outcome in results) == 1
    assert sum(bool(outcome.reasons) for outcome in results) == 19
    check(registry, results, before=0)
    # Without an expectation, several may succeed one after the other. None overwrites a change that it has not seen.
    results = race(uri, "race", versions * 5, expected=None)
    check(registry, results, before=1)


def killed(uri: str, model_name: str, version: int, method: str, calls: int, after: bool) -> None:
    """Promote a version, and kill this process at a call of one of the registry's methods.

    Args:
        uri: address of the registry.
        model_name: name of the registered model.
        version: version to promote.
        method: name of the method.
        calls: number of the call, from 1.
        after: kill after the call instead of before it.
    """
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
    """Run `killed` in a process and check that it was killed."""
    process = fork_server().Process(target=killed, args=(uri, model_name, version, method, calls, after))
    process.start()
    process.join(START_SECONDS)
    assert process.exitcode == -signal.SIGKILL
