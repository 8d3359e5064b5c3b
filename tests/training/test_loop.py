import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch

from iusp import models
from iusp.config.methods import METHODS
from iusp.config.students import Weights, recipe
from iusp.distillation.losses import DistillationLosses
from iusp.distillation.method import Outputs, Subject
from iusp.distillation.skill import cluster_layers
from iusp.errors import InputError
from iusp.features.augmentation import augment, draw_view
from iusp.features.packed import read_features
from iusp.models.inference import predict
from iusp.models.maps import clip_embedding
from iusp.reporter import Reporter
from iusp.steps import teacher
from iusp.training.data import batches, epoch_order
from iusp.training.knowledge import EMBEDDING_DIMENSIONS, ask, read_knowledge
from iusp.training.loop import label_loss
from iusp.training.networks import choose_device, new_network
from tests.support.files import tree
from tests.support.training import (
    ALONE,
    AUGMENTATION,
    CLIPS,
    COMMON,
    EARLIER,
    FRONT_END,
    LONG,
    LONG_COMMON,
    ROOT,
    TAXONOMY,
    TEACHER,
    TRAINING,
    VIEWS,
    WATCHING,
    changed,
    folders,
    learn,
    make,
    record,
    teach,
    training_data,
)

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make(tmp_path_factory.mktemp("world") / "world")


@pytest.fixture(scope="module")
def taught(world, tmp_path_factory):
    """A teacher that nothing has disturbed."""
    output = tmp_path_factory.mktemp("taught") / "teacher"
    rows = []
    description = teach(world, output, on_epoch=rows.append)
    assert description.model_dump(mode="json") == json.loads((output / "config.json").read_text())
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4]
    return output


@pytest.fixture(scope="module")
def learnt(world, taught, tmp_path_factory):
    """A student of two seeds that nothing has disturbed."""
    output = tmp_path_factory.mktemp("learnt") / "student"
    rows = []
    summary = learn(world, taught, output, on_epoch=lambda seed, row: rows.append((seed, row["epoch"])))
    saved = {seed: json.loads((output / f"seed-{seed}/config.json").read_text()) for seed in (0, 5)}
    assert {seed: config.model_dump(mode="json") for seed, config in summary.items()} == saved
    assert all(config.weights == {"kd": 1.0, "sp": 30.0, "iusp": 20.0} for config in summary.values())
    assert sorted(rows) == [(seed, epoch) for seed in (0, 5) for epoch in (1, 2, 3, 4)]
    return output


@pytest.fixture(scope="module")
def long_learnt(world, taught, tmp_path_factory):
    """A student that trains for long, in bfloat16."""
    output = tmp_path_factory.mktemp("long") / "student"
    learn(world, taught, output, LONG, LONG_COMMON)
    return output


@pytest.fixture(scope="module")
def data(world):
    return training_data(world)


# The same bytes, undisturbed or killed.


def test_a_teacher_is_the_same_bytes_again(world, taught, tmp_path):
    teach(world, tmp_path / "teacher")
    assert tree(tmp_path / "teacher") == tree(taught)
    assert [path.name for path in tmp_path.iterdir()] == ["teacher"]
    expected = {"weights.safetensors", "config.json", "record.csv", "knowledge/knowledge.json"}
    expected |= {f"knowledge/view-00{view}/{name}.npy" for view in range(3) for name in SHAPES}
    assert set(tree(taught)) == expected


def test_a_student_is_the_same_bytes_again_on_any_number_of_cores(world, taught, learnt, tmp_path):
    learn(world, taught, tmp_path / "student", cores=1)
    assert tree(tmp_path / "student") == tree(learnt)
    assert [path.name for path in tmp_path.iterdir()] == ["student"]
    names = ("weights.safetensors", "config.json", "record.csv")
    assert set(tree(learnt)) == {f"seed-{seed}/{name}" for seed in (0, 5) for name in names}
    assert tree(learnt)["seed-0/weights.safetensors"] != tree(learnt)["seed-5/weights.safetensors"]


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from tests.support import training as tests

def die_at(epoch):
    def on_epoch(*arguments):
        if arguments[-1]["epoch"] == epoch:
            os.killpg(0, signal.SIGKILL)
    return on_epoch

def die_in_knowledge(task, done, total, message=""):
    if done == 2:
        os.killpg(0, signal.SIGKILL)

if __name__ == "__main__":
    what, world, taught, output = sys.argv[2], *map(Path, sys.argv[3:])
    if what == "teacher":
        tests.teach(world, output, on_epoch=die_at(2))
    elif what == "knowledge":
        tests.teach(world, output, progress=die_in_knowledge)
    else:
        tests.learn(world, taught, output, tests.LONG, tests.LONG_COMMON, on_epoch=die_at(2))
"""


def kill(tmp_path, what, world, taught, output):
    """Run a step in a process group of its own that ends as at a loss of power; return the folder it worked in."""
    script = tmp_path / "killed.py"
    script.write_text(KILLED)
    command = [sys.executable, str(script), str(ROOT.parent), what, str(world), str(taught), str(output)]
    # The same sources as here: work that other sources began is not resumed.
    environment = os.environ | {"PYTHONPATH": str(ROOT.parent)}
    done = subprocess.run(
        command, start_new_session=True, capture_output=True, text=True, env=environment, check=False, timeout=120
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not output.exists()
    (work,) = output.parent.iterdir()
    return work


def test_a_teacher_killed_in_training_goes_on(world, taught, tmp_path):
    output = tmp_path / "out" / "teacher"
    work = kill(tmp_path, "teacher", world, taught, output)
    told = []

    def on_epoch(row):
        saved = torch.load(work / "checkpoint.pt", weights_only=True)
        told.append((row["epoch"], len(saved["state"]["record"])))

    teach(world, output, on_epoch=on_epoch)
    assert told == [(1, 2), (2, 2), (3, 3), (4, 4)]  # two epochs are kept
    assert tree(output) == tree(taught)
    assert [path.name for path in output.parent.iterdir()] == ["teacher"]


def test_a_teacher_killed_in_its_knowledge_goes_on(world, taught, tmp_path):
    output = tmp_path / "out" / "teacher"
    work = kill(tmp_path, "knowledge", world, taught, output)
    assert (work / "knowledge" / "view-000" / "logits.npy").exists()
    assert not (work / "knowledge" / "view-001").exists()
    told, rows = [], []
    teach(world, output, on_epoch=rows.append, progress=lambda task, done, total, message="": told.append(done))
    assert told == [2, 3]  # the first view is kept
    assert rows == []  # and so is the training
    assert tree(output) == tree(taught)


def test_a_killed_student_goes_on(world, taught, long_learnt, tmp_path):
    output = tmp_path / "out" / "student"
    work = kill(tmp_path, "student", world, taught, output)
    checkpoint = torch.load(work / "seed-0" / "checkpoint.pt", weights_only=True)
    assert 2 <= len(checkpoint["state"]["record"]) < 30
    assert {name.split(".")[1] for name in checkpoint["auxiliary"]} == {"fitnet", "inter", "vic"}
    # What is trained beside the network is optimised with it: a weight and a bias of each of the three.
    parameters = len(list(models.load(long_learnt / "seed-0")[0].parameters()))
    assert len(checkpoint["optimiser"]["state"]) == parameters + 6
    epochs = []
    learn(world, taught, output, LONG, LONG_COMMON, on_epoch=lambda seed, row: epochs.append(row["epoch"]))
    assert epochs == list(range(1, 31))
    assert tree(output) == tree(long_learnt)
    assert [path.name for path in output.parent.iterdir()] == ["student"]


class StopError(Exception):
    pass


def stop_at(epoch):
    def on_epoch(row):
        if row["epoch"] == epoch:
            raise StopError

    return on_epoch


def test_what_a_kill_leaves_behind_does_not_reach_the_output(world, taught, tmp_path):
    with pytest.raises(StopError):
        teach(world, tmp_path / "teacher", on_epoch=stop_at(2))
    (work,) = tmp_path.iterdir()
    # Killed while it wrote a checkpoint, or its config.
    (work / ".checkpoint.pt.1.part").write_bytes(b"half")
    (work / ".config.json.1.part").write_text("{")
    teach(world, tmp_path / "teacher")
    assert tree(tmp_path / "teacher") == tree(taught)


def test_a_teacher_killed_before_it_drops_its_checkpoint_goes_on(world, taught, tmp_path):
    kept = []

    def progress(task, done, total, message=""):
        raise StopError

    with pytest.raises(StopError):
        teach(world, tmp_path / "teacher", on_epoch=lambda row: kept.append(1), progress=progress)
    (work,) = tmp_path.iterdir()
    assert (work / "config.json").exists()
    # `config.json` is written before the checkpoint is removed: a kill in between leaves both.
    (work / "checkpoint.pt").write_bytes(b"whole, and of no use any more")
    teach(world, tmp_path / "teacher")
    assert tree(tmp_path / "teacher") == tree(taught)


def test_knowledge_is_resumed_with_the_threads_of_the_config(world, tmp_path):
    # Threads change the order of sums: a killed run must go on with as many as it began with.
    def progress(task, done, total, message=""):
        raise StopError

    with pytest.raises(StopError):
        teach(world, tmp_path / "teacher", progress=progress)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        seen = []
        teach(
            world,
            tmp_path / "teacher",
            progress=lambda task, done, total, message="": seen.append(torch.get_num_threads()),
        )
    finally:
        torch.set_num_threads(threads)
    assert set(seen) == {TRAINING.threads}


def test_work_of_another_config_is_not_resumed(world, tmp_path):
    with pytest.raises(StopError):
        teach(world, tmp_path / "a" / "teacher", on_epoch=stop_at(2))
    other = TEACHER.model_copy(update={"seed": 1})
    teach(world, tmp_path / "a" / "teacher", other)
    teach(world, tmp_path / "b" / "teacher", other)
    assert tree(tmp_path / "a" / "teacher") == tree(tmp_path / "b" / "teacher")
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["teacher"]


# What training does.


def test_the_record_names_every_loss(taught, learnt):
    assert list(record(taught)) == ["epoch", "learning_rate", "loss_labels", "validate_micro_auprc"]
    for seed in (0, 5):
        columns = ["loss_labels", "loss_kd", "loss_sp", "loss_iusp"]
        assert list(record(learnt / f"seed-{seed}")) == ["epoch", "learning_rate", *columns, "validate_micro_auprc"]
        assert record(learnt / f"seed-{seed}")["epoch"].tolist() == [1, 2, 3, 4]
        assert np.isfinite(record(learnt / f"seed-{seed}").to_numpy()).all()


def test_the_teacher_learns(world, data, tmp_path):
    description = teach(world, tmp_path / "teacher", changed(TEACHER, epochs=30, patience=30))
    rows = record(tmp_path / "teacher")
    assert rows["loss_labels"].iloc[-3:].mean() < 0.6 * rows["loss_labels"].iloc[0]
    chance = data.truth.mean()
    assert description.validate_micro_auprc > chance + 0.25
    assert rows["learning_rate"].max() == pytest.approx(0.01, rel=0.05)
    assert rows["learning_rate"].iloc[-1] < 0.001


def test_every_loss_of_a_student_falls_also_in_bfloat16(taught, long_learnt, data):
    rows = record(long_learnt / "seed-0")
    # Soft labels cost their own entropy even to a student that knows all.
    knowledge = read_knowledge(taught, data)
    soft = torch.from_numpy(np.stack([knowledge.read("logits", number) for number in range(3)])).float() / 2
    entropy = 4 * torch.nn.functional.binary_cross_entropy_with_logits(soft, soft.sigmoid()).item()
    rows[["loss_kd", "loss_inter"]] -= entropy
    for name in ("loss_labels", *(f"loss_{term}" for term in LONG.terms)):
        assert 0 < rows[name].iloc[-3:].mean() < 0.9 * rows[name].iloc[0], name


@pytest.mark.parametrize("patience", [1, 2])
def test_patience_stops_early_and_keeps_the_best(world, data, tmp_path, patience):
    slow = {"epochs": 40, "learning_rate": 1e-3}
    whole, output = tmp_path / "whole", tmp_path / "teacher"
    config = changed(TEACHER.model_copy(update={"views": 1}), **slow, patience=40)
    teach(world, whole, config)
    description = teach(world, output, changed(config, patience=patience))
    scores = record(output)["validate_micro_auprc"]
    best = 0
    for epoch, score in enumerate(scores):
        best = epoch if score > scores[best] else best
        assert epoch - best < patience or epoch == len(scores) - 1, "trained on, past its patience"
    assert len(scores) < 40
    assert len(scores) - 1 - best == patience
    assert description.epoch == best + 1
    assert description.validate_micro_auprc == scores[best] == scores.max()
    # Until it stops, patience changes nothing.
    pd.testing.assert_frame_equal(record(whole).iloc[: len(scores)], record(output))
    # The weights are those of the best epoch, not of the last.
    assert data.validation_auprc(models.load(output)[0]) == pytest.approx(scores[best], abs=1e-9)
    assert abs(scores.iloc[-1] - scores[best]) > 1e-9


def test_patience_counts_also_over_a_kill(world, tmp_path):
    config = changed(TEACHER.model_copy(update={"views": 1}), epochs=40, learning_rate=1e-3, patience=1)
    teach(world, tmp_path / "a", config)
    last = int(record(tmp_path / "a")["epoch"].iloc[-1])
    with pytest.raises(StopError):
        teach(world, tmp_path / "b", config, on_epoch=stop_at(last))
    teach(world, tmp_path / "b", config)
    assert tree(tmp_path / "a") == tree(tmp_path / "b")


def test_a_network_says_what_it_is(world, taught, learnt, data):
    network, description = models.load(taught)
    assert description["tags"] == data.clips.tags
    assert description["predicts"] == "both"
    assert description["features"] == FRONT_END
    assert description["features_digest"] == data.features.digest
    assert description["parameters"] == models.parameter_count(network) <= TEACHER.parameters
    assert torch.equal(network.mean, data.features.mean)
    assert torch.equal(network.std, data.features.std)
    _, description = models.load(learnt / "seed-5")
    assert description["seed"] == 5
    assert description["method"] == "iusp+kd+sp"
    knowledge = json.loads((taught / "knowledge" / "knowledge.json").read_text())
    assert description["teacher"] == knowledge["teacher"]


@pytest.mark.parametrize("source", ["cached", "online"])
def test_each_row_is_the_losses_by_hand(world, taught, data, tmp_path, source):
    # One step an epoch, and next to no learning, so that each epoch's losses are those of the untrained network.
    common = changed(COMMON, batch_size=24, learning_rate=1e-12).model_copy(update={"knowledge": source})
    methods = "iusp+kd+sp+skill+consistency"
    config = LONG.model_copy(update={"method": methods, "seeds": [3], "weights": {"sp": 7.0}, "layers": {"sp": [1, 3]}})
    learn(world, taught, tmp_path / "student", config, common)
    shaped = recipe("small", config, common)
    names = shaped.knowledge_names
    assert names == ["embedding-1", "embedding-3", "logits", "similarity-1", "similarity-2", "similarity-3"]
    knowledge = read_knowledge(taught, data)
    network, _ = new_network("plain", 2500, data, common.training, 3)
    assert shaped.weights == {"kd": 1.0, "sp": 7.0, "iusp": 20.0, "skill": 1.0, "consistency": 1.0}
    assert shaped.layers == {"sp": [1, 3], "iusp": [1], "skill": [1, 2, 3]}
    stored = np.stack([knowledge.read(f"similarity-{layer}", 0) for layer in (1, 2, 3)]).astype(np.float32)
    clusters = [tuple(1 + index for index in cluster) for cluster in cluster_layers(torch.from_numpy(stored), 2)]
    tags = data.clips.tags
    distillation = DistillationLosses(shaped, Subject([], tags, TAXONOMY, lambda name: knowledge.read(name, 0)))
    assert distillation.methods["skill"].clusters == clusters
    for epoch, row in record(tmp_path / "student" / "seed-3").iterrows():
        order = epoch_order(24, 3, epoch)
        # Online, views are those that a teacher of this seed would be trained on.
        number = epoch % 3
        view = knowledge.view(number) if source == "cached" else draw_view(VIEWS, 3, "training", epoch, data.shape)
        log_mel, targets, mask = augment(view, data.clips, order, data.features.mean)
        logits, maps = network.train()(log_mel)
        if source == "cached":
            known = {name: torch.from_numpy(knowledge.read(name, number)[order]) for name in names}
        else:
            known = ask(models.load(taught)[0], log_mel, names)
        expected = {"labels": label_loss(logits, targets, mask)}
        expected |= distillation(Outputs(logits, maps, targets, mask, known))
        for name, loss in expected.items():
            assert row[f"loss_{name}"] == pytest.approx(loss.item(), rel=1e-5)
            assert loss.item() > 1e-4
    assert epoch == 3


@pytest.fixture(scope="module")
def bystander(world, taught, tmp_path_factory):
    """A student in which every method watches and none teaches: weights are next to nothing."""
    output = tmp_path_factory.mktemp("bystander") / "student"
    methods = dict.fromkeys(METHODS, WATCHING)
    config = LONG.model_copy(update={"method": "+".join(METHODS), "weights": methods, "layers": EARLIER})
    learn(world, taught, output, config, changed(COMMON, epochs=10))
    return record(output / "seed-0")


@pytest.mark.parametrize("method", METHODS)
def test_each_method_lowers_its_own_loss_further_than_the_labels_do(world, taught, bystander, tmp_path, method):
    weight = 100.0
    layers = {method: EARLIER[method]} if method in EARLIER else None
    config = LONG.model_copy(update={"method": method, "weights": {method: weight}, "layers": layers})
    learn(world, taught, tmp_path / "student", config, changed(COMMON, epochs=10))
    found = record(tmp_path / "student" / "seed-0")[f"loss_{method}"] / weight
    watched = bystander[f"loss_{method}"] / WATCHING
    assert found.iloc[-1] < found.iloc[0]
    assert found.iloc[-1] < watched.iloc[-1]


def test_the_label_loss_leaves_unknown_tags_out():
    logits = torch.tensor([[0.3, -2.0, 1.0], [0.1, 4.0, -1.0]], dtype=torch.float64)
    targets = torch.tensor([[1.0, 0.0, 0.25], [0.0, 1.0, 1.0]])
    mask = torch.tensor([[True, False, True], [True, True, False]])
    total = 0.0
    for z, y, known in zip(logits.flatten(), targets.flatten(), mask.flatten(), strict=True):
        p = 1 / (1 + np.exp(-float(z)))
        total -= known * (float(y) * np.log(p) + (1 - float(y)) * np.log(1 - p))
    assert label_loss(logits, targets, mask).item() == pytest.approx(float(total) / 4, rel=1e-6)
    assert label_loss(logits, targets, torch.zeros_like(mask)).item() == 0


def test_batches_are_each_clip_once(data):
    order = epoch_order(24, 0, 0)
    view = draw_view(VIEWS, 0, "training", 0, data.shape)
    rows = {"row": np.arange(24, dtype=np.float16)}
    for size, lengths in ((8, [8, 8, 8]), (10, [10, 10]), (100, [24])):
        found = [batch.knowledge["row"] for batch in batches(data, view, order, size, torch.device("cpu"), rows)]
        assert [len(batch) for batch in found] == lengths
        assert torch.cat(found).long().tolist() == order[: sum(lengths)].tolist()
    assert sorted(order) == list(range(24))
    orders = [tuple(epoch_order(24, seed, epoch)) for seed in range(3) for epoch in range(3)]
    assert len(set(orders)) == 9
    assert tuple(epoch_order(24, 1, 2)) == orders[5]


# Knowledge.


# Of one clip. Layer 3, of 7 frames and 4 bands, is stored at the last layer's 4 frames and 1 band.
SHAPES = {
    "logits": (31,),
    "pooled": (24,),
    "similarity-1": (4, 4),
    "similarity-2": (4, 4),
    "similarity-3": (4, 4),
    "embedding-1": (EMBEDDING_DIMENSIONS,),
    "embedding-2": (EMBEDDING_DIMENSIONS,),
    "embedding-3": (EMBEDDING_DIMENSIONS,),
    "attention-1": (4, 1),
    "attention-2": (4, 1),
    "attention-3": (4, 1),
    "hints-1": (4, 24),
    "hints-2": (4, 16),
    "hints-3": (4, 8),
}


def averaged(array, axis, count):
    """Average along an axis to `count` shares, each of every entry that it touches."""
    total = array.shape[axis]
    shares = [range(i * total // count, -(-(i + 1) * total // count)) for i in range(count)]
    return np.stack([array.take(share, axis).mean(axis) for share in shares], axis)


@pytest.mark.parametrize("number", range(3))
def test_knowledge_is_the_teacher_asked_about_the_view(taught, data, number):
    knowledge = read_knowledge(taught, data)
    assert knowledge.views == 3
    view = draw_view(VIEWS, TEACHER.seed, "knowledge", number, data.shape)
    log_mel, _, _ = augment(view, data.clips, np.arange(24), data.features.mean)
    network, _ = models.load(taught)
    with torch.inference_mode():
        logits, maps = network(log_mel)
    by_layer = {layer: maps[-layer].double().numpy() for layer in (1, 2, 3)}
    assert [array.shape for array in by_layer.values()] == [(24, 24, 4, 1), (24, 16, 4, 2), (24, 8, 7, 4)]
    bands = by_layer[1].mean(3)
    expected = {"logits": logits, "pooled": bands.mean(2) + bands.max(2)}
    for layer, array in by_layer.items():
        flat = array.transpose(0, 2, 1, 3).reshape(24, array.shape[2], -1)
        expected[f"embedding-{layer}"] = clip_embedding(torch.from_numpy(flat), EMBEDDING_DIMENSIONS)
        flat = averaged(flat, 1, 4)
        products = flat @ flat.transpose(0, 2, 1)
        expected[f"similarity-{layer}"] = products / products.max((1, 2), keepdims=True)
        energy = (array**2).sum(1)
        energy /= energy.max((1, 2), keepdims=True)
        expected[f"attention-{layer}"] = averaged(averaged(energy, 1, 4), 2, 1)
        expected[f"hints-{layer}"] = averaged(array.mean(3).transpose(0, 2, 1), 1, 4)
    assert expected.keys() == SHAPES.keys() == set(TEACHER.knowledge_names)
    for name, array in expected.items():
        found = knowledge.read(name, number)
        assert found.dtype == np.float16
        assert found.shape == (24, *SHAPES[name])
        assert found.std() > 0.01
        np.testing.assert_allclose(found.astype(np.float32), array, rtol=2e-3, atol=2e-3)
    assert not np.array_equal(knowledge.read("logits", number), knowledge.read("logits", (number + 1) % 3))


def test_bytes_of_a_clip(taught):
    # Two for each number, and a header of 128 for each file.
    sizes = {path.stem: path.stat().st_size for path in (taught / "knowledge" / "view-002").iterdir()}
    assert sizes == {name: 128 + 24 * 2 * int(np.prod(shape)) for name, shape in SHAPES.items()}


def test_only_what_is_listed_is_stored(world, tmp_path):
    config = changed(TEACHER, epochs=1).model_copy(
        update={"knowledge": ["logits", "hints"], "layers": [4, 2], "views": 1}
    )
    teach(world, tmp_path / "teacher", config)
    names = {path.name for path in (tmp_path / "teacher" / "knowledge" / "view-000").iterdir()}
    assert names == {"logits.npy", "hints-4.npy", "hints-2.npy"}


def test_targets_asked_online_are_the_stored_ones(taught, data):
    # The clips of a batch, as a student gets them, are those that the stored rows beside them are about.
    knowledge = read_knowledge(taught, data)
    network, _ = models.load(taught)
    known = {name: knowledge.read(name, 1) for name in SHAPES}
    subject = Subject((4, 6, 12), data.clips.tags, TAXONOMY, lambda name: knowledge.read(name, 0))
    config = LONG.model_copy(update={"method": "+".join(METHODS), "layers": EARLIER})
    weights = Weights(**dict.fromkeys(METHODS, 1.0))
    torch.manual_seed(0)
    common = COMMON.model_copy(update={"weights": weights})
    distillation = DistillationLosses(recipe("small", config, common), subject)
    steps = 0
    for batch in batches(data, knowledge.view(1), epoch_order(24, 7, 1), 8, torch.device("cpu"), known):
        online = ask(network, batch.log_mel, TEACHER.knowledge_names)
        torch.testing.assert_close(batch.knowledge["logits"].float(), online["logits"], rtol=2e-3, atol=2e-3)
        own = torch.randn(8, 31), [torch.rand(8, 4, 9, 4), torch.rand(8, 6, 7, 4), torch.rand(8, 12, 7, 2)]
        expected = distillation(Outputs(*own, batch.targets, batch.mask, online))
        found = distillation(Outputs(*own, batch.targets, batch.mask, batch.knowledge))
        for name, loss in expected.items():
            assert loss.item() > 1e-3
            assert found[name].item() == pytest.approx(loss.item(), rel=1e-2)
        steps += 1
    assert steps == 3


ONLINE = COMMON.model_copy(update={"knowledge": "online"})


def test_where_all_views_are_one_online_trains_as_cached_does(world, tmp_path):
    still = VIEWS.model_copy(update={"roll": False, "gain_db": 0.0, "mixup": 0.0, "time_masks": 0, "band_masks": 0})
    augmentation = AUGMENTATION.model_copy(update={"views": still})
    teacher.run(TEACHER, augmentation, folders(world), tmp_path / "teacher", Reporter())
    config = LONG.model_copy(update={"method": "+".join(METHODS), "layers": EARLIER})
    for name, common in (("cached", COMMON), ("online", ONLINE)):
        learn(world, tmp_path / "teacher", tmp_path / name, config, common)
    cached, online = (record(tmp_path / name / "seed-0") for name in ("cached", "online"))
    pd.testing.assert_frame_equal(online, cached, check_exact=False, rtol=0.01)
    assert not online.equals(cached)


def test_online_views_are_new_in_each_epoch_and_a_seed_gives_the_same_bytes(world, taught, tmp_path):
    for name, common in (("a", ONLINE), ("b", ONLINE), ("cached", COMMON)):
        learn(world, taught, tmp_path / name, ALONE, changed(common, epochs=2))
    assert tree(tmp_path / "a") == tree(tmp_path / "b")
    assert tree(tmp_path / "a").keys() == tree(tmp_path / "cached").keys()
    assert tree(tmp_path / "a") != tree(tmp_path / "cached")
    views = [read_knowledge(taught, training_data(world)).new_view(5, epoch) for epoch in range(6)]
    assert len({view.shift.tobytes() for view in views}) == 6


def test_labels_alone_ignore_what_the_teacher_knows(world, taught, tmp_path):
    config = ALONE.model_copy(update={"method": "labels"})
    learn(world, taught, tmp_path / "a", config)
    other = shutil.copytree(taught, tmp_path / "teacher")
    for path in (other / "knowledge").glob("view-*/*.npy"):
        np.save(path, -np.load(path))
    learn(world, other, tmp_path / "b", config)
    assert tree(tmp_path / "a") == tree(tmp_path / "b")
    assert list(record(tmp_path / "a" / "seed-0")) == ["epoch", "learning_rate", "loss_labels", "validate_micro_auprc"]


@pytest.fixture
def copied(taught, tmp_path):
    return shutil.copytree(taught, tmp_path / "copied")


def refused(what, folder, data):
    with pytest.raises(InputError, match=f"{folder}.*{what}") as caught:
        read_knowledge(folder, data)
    assert "\n" not in str(caught.value)


def test_knowledge_of_clips_in_another_order_is_refused(taught, data):
    names = data.clips.filenames
    other = [names[1], names[0], *names[2:]]
    refused("clips", taught, dataclasses.replace(data, clips=dataclasses.replace(data.clips, filenames=other)))


def test_knowledge_of_other_features_is_refused(taught, tmp_path):
    refused("features", taught, training_data(make(tmp_path / "world", seed=1)))


def test_knowledge_of_other_tags_is_refused(taught, world):
    refused("tags", taught, training_data(world, "coarse"))


def test_knowledge_of_another_teacher_is_refused(copied, data):
    read_knowledge(copied, data)
    weights = bytearray((copied / "weights.safetensors").read_bytes())
    weights[-1] ^= 1
    (copied / "weights.safetensors").write_bytes(weights)
    refused("teacher", copied, data)


def test_a_teacher_without_knowledge_is_refused(copied, data):
    (copied / "knowledge" / "knowledge.json").unlink()
    refused("knowledge.json", copied, data)


@pytest.mark.parametrize("how", ["gone", "cut", "empty", "a clip less", "other type", "a bit flipped"])
@pytest.mark.parametrize("name", ["logits", "pooled", "similarity-3", "embedding-1", "attention-1", "hints-3"])
def test_damaged_knowledge_is_refused(copied, data, name, how):
    path = copied / "knowledge" / "view-001" / f"{name}.npy"
    whole = path.read_bytes()
    array = np.load(path)
    path.unlink()
    if how == "cut":
        path.write_bytes(whole[:-1])
    elif how == "empty":
        path.touch()
    elif how == "a clip less":
        np.save(path, array[1:])
    elif how == "other type":
        np.save(path, array.astype(np.float32))
    elif how == "a bit flipped":
        path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    knowledge = read_knowledge(copied, data)
    knowledge.read(name, 0)
    with pytest.raises(InputError, match=rf"view-001/{name}\.npy"):
        knowledge.read(name, 1)


def test_a_view_that_comes_out_otherwise_is_refused(copied, data):
    path = copied / "knowledge" / "knowledge.json"
    description = json.loads(path.read_text())
    path.write_text(json.dumps(description | {"seed": 9}))
    with pytest.raises(InputError, match="view 0"):
        read_knowledge(copied, data).view(0)


def test_the_step_refuses_misaligned_knowledge(taught, tmp_path):
    other = make(tmp_path / "world", seed=1)
    with pytest.raises(InputError, match="features"):
        learn(other, taught, tmp_path / "student", ALONE)
    assert not (tmp_path / "student").exists()


# What goes wrong, and other precision.


def test_layers_that_the_teacher_lacks_are_refused_before_it_is_trained(world, tmp_path):
    with pytest.raises(
        InputError, match=r"teacher\.layers of a plain: layer 5 does not exist; the network has 4"
    ) as caught:
        teach(world, tmp_path / "teacher", TEACHER.model_copy(update={"layers": [1, 5]}))
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("method", ["fitnet", "iusp"])
def test_layers_that_a_student_lacks_are_refused_before_it_is_trained(world, taught, tmp_path, method):
    config = ALONE.model_copy(update={"method": method, "layers": {method: [1, 3]}})
    with pytest.raises(
        InputError, match=rf"layers\.{method} of a cnn_lstm: layer 3 does not exist; the network has 2"
    ) as caught:
        learn(world, taught, tmp_path / "student", config)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "student").exists()


def test_a_teacher_of_four_layers_may_teach_a_student_of_two_by_clusters(world, taught, tmp_path):
    config = ALONE.model_copy(update={"method": "skill"})
    learn(world, taught, tmp_path / "student", config)
    assert record(tmp_path / "student" / "seed-0")["loss_skill"].min() > 1e-6


def test_one_layer_is_a_cluster(world, taught, tmp_path):
    for method in ("skill", "iusp"):
        config = ALONE.model_copy(update={"method": method, "weights": {method: 5.0}, "layers": {method: [1]}})
        learn(world, taught, tmp_path / method, config)
    skill, iusp = (record(tmp_path / method / "seed-0") for method in ("skill", "iusp"))
    np.testing.assert_allclose(skill["loss_skill"], iusp["loss_iusp"], rtol=1e-5)


@pytest.mark.parametrize("batch_size", [2, 8, 24])
@pytest.mark.parametrize("rate", [1e9, 1e30])
def test_a_diverging_training_is_told_in_one_line(world, tmp_path, rate, batch_size):
    with pytest.raises(InputError, match="learning_rate") as caught:
        teach(world, tmp_path / "teacher", changed(TEACHER, learning_rate=rate, batch_size=batch_size, epochs=10))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "teacher").exists()


def test_bfloat16_trains_and_differs_little(world, taught, data, tmp_path):
    teach(world, tmp_path / "a", changed(TEACHER, precision="bfloat16"))
    teach(world, tmp_path / "b", changed(TEACHER, precision="bfloat16"))
    assert tree(tmp_path / "a") == tree(tmp_path / "b")
    losses = record(tmp_path / "a")["loss_labels"]
    np.testing.assert_allclose(losses, record(taught)["loss_labels"], rtol=0.05)
    assert (losses != record(taught)["loss_labels"]).any()
    network, _ = models.load(tmp_path / "a")
    assert all(parameter.dtype == torch.float32 for parameter in network.parameters())


@pytest.mark.parametrize("tags", ["coarse", "fine"])
def test_other_tags(world, tmp_path, tags):
    config = changed(TEACHER.model_copy(update={"tags": tags, "views": 1}), epochs=1)
    description = teach(world, tmp_path / "teacher", config)
    assert len(description.tags) == {"coarse": 8, "fine": 23}[tags]
    assert 0 < description.validate_micro_auprc <= 1


def test_fewer_clips_than_a_batch_are_one_batch(world, tmp_path):
    rows = []
    config = changed(TEACHER.model_copy(update={"views": 1}), batch_size=1000, epochs=2)
    teach(world, tmp_path / "teacher", config, on_epoch=rows.append)
    assert len(rows) == 2


def test_no_validate_clip_is_refused(world, tmp_path):
    copy = shutil.copytree(world, tmp_path / "world")
    description = json.loads((copy / "features" / "features.json").read_text())
    description["clips"] = CLIPS | {"validate": 0}
    (copy / "features" / "features.json").write_text(json.dumps(description))
    with pytest.raises(InputError, match="validate"):
        training_data(copy)


def test_validation_is_against_its_own_clips(world, tmp_path):
    # Misaligned truth would choose the best epoch by chance.
    copy = shutil.copytree(world, tmp_path / "world")
    labels = pd.read_parquet(copy / "dataset" / "labels.parquet")
    validate = labels.index[labels["split"] == "validate"]
    pd.concat([labels.drop(validate), labels.loc[validate[::-1]]]).to_parquet(copy / "dataset" / "labels.parquet")
    with pytest.raises(InputError, match="validate"):
        training_data(copy)


def test_predictions_do_not_depend_on_the_batches(taught, world):
    network, _ = models.load(taught)
    log_mel = read_features(world / "features").log_mel("validate")
    whole = predict(network, log_mel)
    assert whole.shape == (14, 31)
    assert whole.dtype == np.float64
    assert ((whole > 0) & (whole < 1)).all()
    np.testing.assert_allclose(predict(network, log_mel, batch_size=3), whole, atol=1e-6)


def test_a_device_that_is_not_there_is_refused():
    assert choose_device("cpu") == torch.device("cpu")
    if os.environ.get("CUDA_VISIBLE_DEVICES") != "" and torch.cuda.is_available():
        assert choose_device("auto").type == "cuda"
    else:
        assert choose_device("auto").type in ("cpu", "mps")
    with pytest.raises(InputError, match="cuda:99"):
        choose_device("cuda:99")
