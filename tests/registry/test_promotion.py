"""Promotion against real registries: a database, and MLflow's server on one."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result
from mlflow import MlflowClient

from iusp.artifacts.dataset import Source
from iusp.artifacts.evaluation import EvaluationFolder
from iusp.cli.main import main
from iusp.config.params import load
from iusp.errors import InputError
from iusp.registry.promotion import TAG, promote, promote_challenger, read_history, rollback, settle, unsettled
from iusp.registry.tracking import Tracker, connect_or_create
from iusp.registry.versions import Registry, source_tags
from iusp.reporter import Reporter
from iusp.steps.registration import run
from tests.support.evidence import (
    BAD,
    BETTER,
    EVALUATION,
    GATE,
    GOOD,
    evaluated,
    register_version,
    register_versions,
)
from tests.support.local_servers import mlflow_server
from tests.support.project import ROOT, merged
from tests.support.promotion_race import kill, race_twice
from tests.support.s3_servers import Fault, Proxy, proxying

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow') / 'mlflow.db'}"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with mlflow_server(tmp_path_factory.mktemp("server")) as address:
        yield address


@pytest.fixture(autouse=True)
def _store(database: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", database)
    monkeypatch.setenv("LOGNAME", "rao")
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def registry(database: str, request: pytest.FixtureRequest) -> Registry:
    return Registry(f"model-{abs(hash(request.node.name))}", connect_or_create())


@pytest.fixture
def iusp(registry: Registry, tmp_path: Path) -> Callable[..., Result]:
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    changes = {"registration": {"model_name": registry.model_name}, "evaluation": {"resamples": 100}}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(merged(params, changes)))
    return lambda *arguments: CliRunner().invoke(main, arguments)


def champions(registry: Registry) -> list[tuple[int | None, int]]:
    return [(entry.change.before, entry.change.champion) for entry in read_history(registry).entries]


def test_promotions_and_rollbacks_move_both_aliases_and_are_recorded(registry: Registry, tmp_path: Path) -> None:
    one, two, three = register_versions(registry, tmp_path, [GOOD, BETTER, 0.2])
    first = promote(registry, one, GATE, EVALUATION, why="the first", expected=0)
    assert first.entry
    assert first.verdict
    assert first.verdict.comparison is None
    assert registry.aliases() == {"champion": one}
    second = promote(registry, two, GATE, EVALUATION, why="better", expected=one)
    assert second.verdict
    assert second.verdict.comparison
    assert second.verdict.comparison.difference > 0
    promote(registry, three, GATE, EVALUATION)
    assert registry.aliases() == {"champion": three, "previous_champion": two}
    assert rollback(registry, "noisy in the rain").champion == two
    assert registry.aliases() == {"champion": two, "previous_champion": one}
    rollback(registry)
    assert registry.aliases() == {"champion": one}
    with pytest.raises(InputError, match="no previous champion to go back to"):
        rollback(registry)
    assert champions(registry) == [(None, one), (one, two), (two, three), (three, two), (two, one)]
    last = read_history(registry).entries[-2]
    assert (last.change.who, last.change.why, last.change.verdict) == ("rao", "noisy in the rain", None)
    # A refused promotion afterwards starts from what the rollbacks left.
    promote(registry, three, GATE, EVALUATION)
    assert registry.aliases() == {"champion": three, "previous_champion": one}


def test_the_gate_refuses_with_reasons_and_force_is_recorded(registry: Registry, tmp_path: Path) -> None:
    good, bad = register_versions(registry, tmp_path, [GOOD, BAD])
    promote(registry, good, GATE, EVALUATION)
    refused = promote(registry, bad, GATE, EVALUATION)
    assert len(refused.reasons) >= 3
    assert refused.entry is None
    assert registry.aliases() == {"champion": good}
    with pytest.raises(InputError, match="--force needs --reason"):
        promote(registry, bad, GATE, EVALUATION, force=True)
    promote(registry, bad, GATE, EVALUATION, force=True, why="the only one that fits")
    assert registry.aliases() == {"champion": bad, "previous_champion": good}
    change = read_history(registry).entries[-1].change
    assert change.forced
    assert change.verdict
    assert change.verdict.reasons == refused.reasons
    # What needs no force is not marked so.
    assert promote(registry, good, GATE, EVALUATION, force=True, why="back").entry
    assert not read_history(registry).entries[-1].change.forced


def test_what_cannot_be_read_is_a_reason(registry: Registry, tmp_path: Path) -> None:
    (good,) = register_versions(registry, tmp_path / "a", [GOOD])
    (bare,) = register_versions(registry, tmp_path / "b", [None])
    assert promote(registry, bare, GATE, EVALUATION).reasons == [
        f"{registry.model_name} version {bare}: has no artifact evaluation; run the evaluation and registration steps "
        "(dvc repro)"
    ]
    promote(registry, bare, GATE, EVALUATION, force=True, why="the first")
    refused = promote(registry, good, GATE, EVALUATION)
    assert refused.reasons == [
        f"cannot be compared with the champion: {registry.model_name} version {bare}: has no artifact evaluation; run "
        "the evaluation and registration steps (dvc repro)"
    ]
    run = registry.version(good).run_id
    damaged = tmp_path / "truth.csv"
    damaged.write_text("audio_filename,1_engine\n")
    registry.client.log_artifact(run, str(damaged), "student/evaluation")
    (reason,) = promote(registry, good, GATE, EVALUATION).reasons
    assert reason.startswith(f"version {good}: evaluation/truth.csv: ")
    assert str(tmp_path) not in reason
    registry.client.delete_model_version(registry.model_name, str(bare))
    with pytest.raises(InputError, match=f"has no version {bare}; iusp models lists all versions"):
        promote(registry, bare, GATE, EVALUATION)
    # The champion is gone, with its alias; the history still knows it.
    assert unsettled(registry, read_history(registry)) == {}
    assert promote(registry, good, GATE, EVALUATION, force=True, why="the champion was deleted").entry
    assert registry.aliases() == {"champion": good}
    with pytest.raises(InputError, match=f"has no version {bare}"):
        rollback(registry)


def test_the_same_network_evaluated_anew_is_the_same_version_with_new_evidence(
    registry: Registry, tmp_path: Path
) -> None:
    experiment = registry.client.create_experiment(registry.model_name)
    version = register_version(registry, tmp_path / "model", experiment, None)
    assert promote(registry, version, GATE, EVALUATION).reasons
    for path in (tmp_path / "model/extra_files").iterdir():
        path.unlink()
    (tmp_path / "model/extra_files").rmdir()
    assert register_version(registry, tmp_path / "model", experiment, GOOD) == version
    assert promote(registry, version, GATE, EVALUATION).entry


def test_expectations(registry: Registry, tmp_path: Path) -> None:
    one, two = register_versions(registry, tmp_path, [GOOD, BETTER])
    assert promote(registry, one, GATE, EVALUATION, expected=two).reasons == [f"no version is the champion, not {two}"]
    promote(registry, one, GATE, EVALUATION)
    assert promote(registry, two, GATE, EVALUATION, expected=0).reasons == [f"version {one} is the champion, not none"]
    again = promote(registry, one, GATE, EVALUATION)
    assert (again.champion, again.entry, again.reasons) == (one, None, ())
    assert champions(registry) == [(None, one)]


def test_aliases_of_before_the_history_are_honoured(registry: Registry, tmp_path: Path) -> None:
    one, two = register_versions(registry, tmp_path, [GOOD, BAD])
    registry.point("champion", one)
    assert promote(registry, two, GATE, EVALUATION).reasons
    promote(registry, two, GATE, EVALUATION, force=True, why="test")
    assert champions(registry) == [(one, two)]
    assert registry.aliases() == {"champion": two, "previous_champion": one}
    rollback(registry)
    assert registry.aliases() == {"champion": one}


@pytest.mark.parametrize("where", ["database", "server"])
def test_twenty_promotions_at_once(where: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    race_twice(request.getfixturevalue(where), tmp_path)


@pytest.mark.parametrize(
    ("method", "calls", "after", "recorded"),
    [
        ("append", 1, False, False),
        ("append", 1, True, True),
        ("point", 1, True, True),
        ("point", 2, True, True),
    ],
)
def test_a_killed_promotion_is_there_or_not_and_the_next_command_puts_the_aliases_right(
    registry: Registry,
    database: str,
    iusp: Callable[..., Result],
    tmp_path: Path,
    method: str,
    calls: int,
    after: bool,
    recorded: bool,
) -> None:
    one, two = register_versions(registry, tmp_path, [GOOD, BETTER])
    promote(registry, one, GATE, EVALUATION)
    kill(database, registry.model_name, two, method, calls, after)
    assert champions(registry) == [(None, one), (one, two)][: 1 + recorded]
    wrong = (method, after) == ("append", True) or (method, calls) == ("point", 1)
    shown = iusp("history")
    assert shown.exit_code == 0
    assert ("a promotion was interrupted" in shown.stderr) == wrong
    again = iusp("promote", str(two))
    assert again.exit_code == 0, again.output
    assert ("the aliases did not match the history; they are corrected now" in again.stderr) == wrong
    assert registry.aliases() == {"champion": two, "previous_champion": one}
    assert champions(registry) == [(None, one), (one, two)]


APPEND, POINT = (f"POST api/2.0/mlflow/{path}" for path in ("model-versions/create", "registered-models/alias"))


@pytest.fixture
def unreliable(server: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[tuple[Registry, Proxy]]:
    """A registry whose server's answers may be lost, with two versions, of which the first is the champion."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setattr("iusp.registry.promotion.PAUSES", (0.01,) * 3)
    with proxying(server) as proxy:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", proxy.address)
        registry = Registry(tmp_path.name)
        one, _ = register_versions(registry, tmp_path, [GOOD, BETTER])
        promote(registry, one, GATE, EVALUATION)
        proxy.requests.clear()
        yield registry, proxy


def logged(registry: Registry) -> list[int]:
    """What is in the log, the same as what counts."""
    numbers = [record.number for record in registry.log(TAG)]
    assert numbers == [entry.number for entry in read_history(registry).entries]
    return numbers


@pytest.mark.parametrize("what", [APPEND, POINT])
@pytest.mark.parametrize("late", [False, True], ids=["not done", "done"])
def test_a_promotion_whose_answer_is_lost_counts_once(
    unreliable: tuple[Registry, Proxy], what: str, late: bool
) -> None:
    registry, proxy = unreliable
    proxy.fault = lambda key, before: Fault(500, late) if key == what and before < 2 else None
    done = promote(registry, 2, GATE, EVALUATION)
    assert done.entry
    assert not done.reasons
    assert champions(registry) == [(None, 1), (1, 2)]
    assert registry.aliases() == {"champion": 2, "previous_champion": 1}
    # Where it had been recorded, it was found, not written again.
    assert proxy.requests.count(APPEND) == (1 if what == POINT or late else 3)
    assert len(logged(registry)) == 2


def test_whoever_was_slower_is_told_so_though_their_answer_is_lost(
    unreliable: tuple[Registry, Proxy], server: str, tmp_path: Path
) -> None:
    registry, proxy = unreliable
    (three,) = register_versions(registry, tmp_path / "third", [0.2])

    def fault(key: str, before: int) -> Fault | None:
        if key == APPEND:
            # Somebody else is faster; this one is recorded after that, and cannot count.
            promote(Registry(registry.model_name, MlflowClient(server)), three, GATE, EVALUATION)
            return Fault(502, late=True)
        return None

    proxy.fault = fault
    told = promote(registry, 2, GATE, EVALUATION)
    assert told.entry is None
    assert told.champion == three
    (reason,) = told.reasons
    assert reason.startswith(f"meanwhile rao made version {three} the champion (entry 2 of iusp history)")
    assert champions(registry) == [(None, 1), (1, three)]
    assert len(logged(registry)) == 2


def test_a_server_that_goes_on_failing_is_one_line_and_nothing_is_recorded(
    unreliable: tuple[Registry, Proxy],
) -> None:
    registry, proxy = unreliable
    proxy.fault = lambda key, before: Fault(500) if key == APPEND else None
    with pytest.raises(InputError) as refused:
        promote(registry, 2, GATE, EVALUATION)
    assert str(refused.value).startswith(f"{registry.log_name}: MLflow at {proxy.address}: ")
    assert str(refused.value).endswith("check iusp history before you try again")
    assert "\n" not in str(refused.value)
    assert proxy.requests.count(APPEND) == 3
    assert champions(registry) == [(None, 1)]
    proxy.fault = lambda key, before: Fault(500) if key == POINT else None
    with pytest.raises(InputError, match="the history is correct, and the next promotion or rollback sets the aliases"):
        promote(registry, 2, GATE, EVALUATION)
    assert registry.aliases() == {"champion": 1}
    proxy.fault = lambda key, before: None
    assert promote(registry, 2, GATE, EVALUATION).repaired
    assert registry.aliases() == {"champion": 2, "previous_champion": 1}
    assert champions(registry) == [(None, 1), (1, 2)]
    assert len(logged(registry)) == 2


def test_an_alias_that_somebody_moved_is_reported_and_put_back(
    registry: Registry, iusp: Callable[..., Result], tmp_path: Path
) -> None:
    one, two = register_versions(registry, tmp_path, [GOOD, BETTER])
    promote(registry, one, GATE, EVALUATION)
    registry.point("champion", two)
    registry.point("previous_champion", two)
    assert unsettled(registry, read_history(registry)) == {"champion": one, "previous_champion": None}
    done = iusp("release", "--to", "s3://bucket/prefix")
    assert done.exit_code == 2
    assert f"the alias champion does not point to version {one}, as the history says; see iusp history" in done.stderr
    assert settle(registry)
    assert registry.aliases() == {"champion": one}
    assert not settle(registry)


def test_a_damaged_history_is_one_line(registry: Registry, iusp: Callable[..., Result], tmp_path: Path) -> None:
    one, two, three = register_versions(registry, tmp_path, [GOOD, BETTER, 0.2])
    for version in (one, two):
        promote(registry, version, GATE, EVALUATION)
    # A version that somebody else made in that registered model is none of ours.
    registry.client.create_model_version(registry.log_name, f"models:/{registry.model_name}/{three}")
    assert champions(registry) == [(None, one), (one, two)]
    registry.remove([1])
    done = iusp("promote", str(three))
    assert done.exit_code == 2
    assert "version 2 is damaged (it follows entry 1, which is missing); delete that registered model" in done.stderr
    registry.client.delete_registered_model(registry.log_name)
    assert iusp("promote", str(three)).exit_code == 0
    assert champions(registry) == [(two, three)]
    registry.append(one, TAG, "{}", "by hand")
    assert "version 2 is damaged" in iusp("history").stderr


def test_the_registration_step_may_promote_but_never_brings_back_what_was_replaced(
    registry: Registry, tmp_path: Path
) -> None:
    good, bad, better = register_versions(registry, tmp_path, [GOOD, BAD, BETTER])
    assert promote_challenger(registry, good, GATE, EVALUATION).entry
    assert promote_challenger(registry, good, GATE, EVALUATION).entry is None
    assert promote_challenger(registry, bad, GATE, EVALUATION).reasons
    promote_challenger(registry, better, GATE, EVALUATION)
    rollback(registry, "a person's act")
    assert promote_challenger(registry, better, GATE, EVALUATION).reasons == [
        f"version {better} was the champion before; to promote it again, run iusp promote {better}"
    ]
    assert [entry.change.why for entry in read_history(registry).entries] == [
        "registration.auto_promote",
        "registration.auto_promote",
        "a person's act",
    ]


def test_the_command_line(registry: Registry, iusp: Callable[..., Result], tmp_path: Path) -> None:
    missing = iusp("models")
    assert missing.exit_code == 2
    assert f"MLflow has no registered model {registry.model_name}; run the registration step" in missing.stderr
    good, bad = register_versions(registry, tmp_path, [GOOD, BAD])
    assert iusp("promote", str(good), "--expect", "none", "--reason", "[b]first[/b]").exit_code == 0
    refused = iusp("promote", str(bad))
    assert refused.exit_code == 1
    assert f"refused; version {good} is the champion" in refused.stderr
    assert refused.stderr.count("\n  - ") >= 3
    as_json = iusp("promote", str(bad), "--json")
    assert as_json.exit_code == 1
    assert json.loads(as_json.stdout)["reasons"]
    assert "--force needs --reason" in iusp("promote", str(bad), "--force").stderr
    forced = iusp("promote", str(bad), "--force", "--reason", "why not")
    assert forced.exit_code == 0
    assert "forced although the gate refuses:" in forced.stdout
    assert "probability of being worse 1.000" in forced.stdout
    assert iusp("promote", "99").exit_code == iusp("promote", "0").exit_code == 2
    assert iusp("rollback", "--reason", "x" * 1001).exit_code == 2
    assert iusp("rollback", "--json").exit_code == 0
    table = iusp("models").stdout
    assert "champion" in table
    assert "0.700 [0.700, 0.700]" in table
    assert "1.23 / –" in table
    assert [one["aliases"] for one in json.loads(iusp("models", "--json").stdout)] == [[], ["champion"]]
    shown = iusp("models", "show", str(bad)).stdout
    assert "gate: would refuse it" in shown
    assert "(why not)" in shown
    assert json.loads(iusp("models", "show", str(good), "--json").stdout)["gate"]["reasons"] == []
    written = iusp("history").stdout
    assert "[b]first[/b]" in written
    assert "forced against" in written
    entries = json.loads(iusp("history", "--json").stdout)
    assert [(one["action"], one["from"], one["to"], one["who"]) for one in entries] == [
        ("promote", None, good, "rao"),
        ("promote", good, bad, "rao"),
        ("rollback", bad, good, "rao"),
    ]


def test_the_registration_step_promotes_only_if_it_may_and_says_what_came_of_it(
    registry: Registry, tmp_path: Path
) -> None:
    def registration(name: str, noise: float, auto_promote: bool) -> dict[str, Any]:
        folder = tmp_path / name
        if not folder.exists():
            evaluated(folder, noise)
        config = load(ROOT / "params.yaml")
        names = {"model_name": registry.model_name, "auto_promote": auto_promote}
        config = config.model_copy(update={"registration": config.registration.model_copy(update=names)})
        tracker = Tracker.of(config, folder / "dataset")
        result = run(
            config, tracker, folder / "dataset", folder / "evaluation", folder / "registration.json", Reporter()
        )
        written: dict[str, Any] = json.loads((folder / "registration.json").read_text())
        assert written == result.model_dump(mode="json", exclude_none=True)
        return written

    first = registration("first", GOOD, False)
    assert "promotion" not in first
    assert set(registry.aliases()) == {"challenger"}
    for _ in range(2):
        assert registration("first", GOOD, True)["promotion"] == {"promoted": True, "reasons": []}
    assert champions(registry) == [(None, 1)]
    tags = registry.version(1).tags
    assert (tags["latency_ms.float32.onnx"], tags["bytes.int8.onnx"]) == ("1.2", "20000")
    data = EvaluationFolder(tmp_path / "first/evaluation").metrics.data
    assert registry.version(1).data == Source(name=data.name, generated=data.generated, license=data.license)
    described = registry.client.get_model_version(registry.model_name, "1").description
    assert described.startswith(f"Trained on {data.name}. {data.licence_note}")
    second = registration("second", BAD, True)
    assert not second["promotion"]["promoted"]
    assert len(second["promotion"]["reasons"]) >= 3
    assert registry.aliases() == {"challenger": 2, "champion": 1}


def test_where_the_data_came_from_is_said_wherever_a_version_is_shown(
    registry: Registry, iusp: Callable[..., Result], tmp_path: Path
) -> None:
    generated = Source(name="embedded", generated=True, license="Apache-2.0")
    recorded = Source(name="street recordings", license="CC-BY-NC-4.0")
    experiment = registry.client.create_experiment(registry.model_name)
    for number, source in enumerate((generated, recorded, Source(name="unlicensed")), start=1):
        register_version(registry, tmp_path / str(number), experiment, GOOD, source_tags(source))
        assert registry.version(number).data == source
        found = registry.client.get_model_version(registry.model_name, str(number))
        assert found.description == " ".join(
            filter(None, (f"Trained on {source.name}.", source.licence_note, source.warning))
        )
    listed = iusp("models")
    assert all(name in listed.stdout for name in ("embedded", "street", "unlicensed"))
    assert "trained on generated scenes, not on recordings: version 1;" in listed.stderr
    assert json.loads(iusp("models", "--json").stdout)[2]["data"]["warning"] == generated.warning
    for command in (("models", "show"), ("promote",)):
        shown = iusp(*command, "1")
        assert shown.exit_code == 0
        assert "data: embedded. The licence of the generated scenes is Apache-2.0" in shown.stdout
        assert f"iusp: version 1: {generated.warning}" in shown.stderr
        shown = iusp(*command, "2")
        assert "data: street recordings. The licence of the recordings is CC-BY-NC-4.0" in shown.stdout
        assert not shown.stderr
    assert "data: embedded." in iusp("rollback").stdout
    assert "The licence of the recordings is not stated" in iusp("models", "show", "3").stdout


def test_a_version_that_is_registered_again_keeps_what_a_person_wrote(registry: Registry, tmp_path: Path) -> None:
    experiment = registry.client.create_experiment(registry.model_name)

    def register_again(source: Source) -> None:
        shutil.rmtree(tmp_path / "model", ignore_errors=True)
        register_version(registry, tmp_path / "model", experiment, GOOD, source_tags(source))

    def description() -> str:
        return str(registry.client.get_model_version(registry.model_name, "1").description)

    register_again(Source(name="folder", license="CC0-1.0"))
    register_again(Source(name="folder"))
    assert description() == "Trained on folder. " + Source(name="folder").licence_note
    assert registry.version(1).data == Source(name="folder")
    registry.client.update_model_version(registry.model_name, "1", "Ours, from the harbour.")
    register_again(Source(name="folder", license="CC0-1.0"))
    assert description() == "Ours, from the harbour."
    assert len(registry.versions()) == 1


def test_a_version_of_another_program_says_that_its_data_are_unknown(
    registry: Registry, iusp: Callable[..., Result], tmp_path: Path
) -> None:
    register_versions(registry, tmp_path, [GOOD])
    assert registry.version(1).data is None
    assert "data: version 1 does not say what it was trained on" in iusp("models", "show", "1").stdout
