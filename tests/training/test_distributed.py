"""Two processes that torchrun starts train what one trains. Run by torchrun, this file is one of them."""

import os
import shutil
import signal
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

import iusp
from iusp import models
from iusp.errors import InputError
from iusp.features.augmentation import draw_view
from iusp.reporter import Reporter
from iusp.steps import teacher
from iusp.training import distributed
from iusp.training.data import batches, epoch_order
from iusp.training.knowledge import KnowledgeRequest, write_knowledge
from tests.support.files import tree
from tests.support.training import AUGMENTATION, TAXONOMY, TEACHER, VIEWS, changed, make, record, teach, training_data

pytestmark = pytest.mark.slow

# Nine clips are five and four.
CONFIG = changed(TEACHER, batch_size=9, epochs=3)

# Rounding is 2e-7 of a loss and 4e-7 of a weight here. With the denominator or the batch statistics of one rank in the
# place of all ranks', losses are off by 8e-3 and weights by 2e-2.
LOSS_TOLERANCE, WEIGHT_TOLERANCE = 1e-5, 1e-4


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Clips of which each third has few known tags, so that the ranks' shares of a batch weigh differently."""
    folder = make(tmp_path_factory.mktemp("world") / "world")
    path = folder / "dataset" / "labels.parquet"
    labels = pd.read_parquet(path)
    uncertain = list(TAXONOMY.uncertain.values())
    labels[uncertain] = np.float32(0)
    labels.loc[::3, uncertain] = np.float32(1)
    labels.to_parquet(path, index=False)
    return folder


def launch(world, output, what="train"):
    """Start two ranks of this file; return their exit status, the seconds they took and what they said."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", __file__]
    # The same sources as here: work that other sources began is not resumed.
    environment = os.environ | {"PYTHONPATH": str(Path(iusp.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    begin = time.monotonic()
    done = subprocess.run(
        [*command, what, str(world), str(output)],
        start_new_session=True,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    return done.returncode, time.monotonic() - begin, done.stderr


@pytest.fixture(scope="module")
def alone(world, tmp_path_factory):
    output = tmp_path_factory.mktemp("alone") / "teacher"
    teach(world, output, CONFIG)
    return output


@pytest.fixture(scope="module")
def together(world, tmp_path_factory):
    output = tmp_path_factory.mktemp("together") / "teacher"
    status, _, errors = launch(world, output)
    assert status == 0, errors
    assert [path.name for path in output.parent.iterdir()] == ["teacher"]
    return output


def test_two_ranks_train_what_one_process_trains(alone, together):
    assert tree(together).keys() == tree(alone).keys()
    pd.testing.assert_frame_equal(record(together), record(alone), check_exact=False, rtol=LOSS_TOLERANCE, atol=0)
    one, two = load_file(alone / "weights.safetensors"), load_file(together / "weights.safetensors")
    assert two.keys() == one.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=0, atol=WEIGHT_TOLERANCE, msg=f"{name} differs")


def test_knowledge_is_that_of_one_process_to_the_byte(world, together, tmp_path):
    shutil.copy(together / "weights.safetensors", tmp_path)
    network, _ = models.load(together)
    request = KnowledgeRequest(AUGMENTATION.views, CONFIG.seed, CONFIG.views, CONFIG.knowledge_names)
    write_knowledge(tmp_path, network, training_data(world), request, Reporter())
    assert tree(tmp_path / "knowledge") == tree(together / "knowledge")


def test_killed_ranks_go_on(world, together, tmp_path):
    output = tmp_path / "teacher"
    assert launch(world, output, "kill all after the first epoch")[0] == -signal.SIGKILL
    (work,) = tmp_path.iterdir()
    assert (work / "checkpoint.pt").exists()
    # One dead rank ends the others, and the job says so.
    status, seconds, errors = launch(world, output, "kill one in the third epoch")
    assert status > 0
    assert "SIGKILL" in errors
    assert seconds < 60
    epochs = torch.load(work / "checkpoint.pt", weights_only=True)["state"]["record"]
    assert len(epochs) == 2
    status, _, errors = launch(world, output)
    assert status == 0, errors
    assert tree(output) == tree(together)
    assert [path.name for path in tmp_path.iterdir()] == ["teacher"]


def test_a_silent_rank_fails_the_job(world, tmp_path):
    status, seconds, errors = launch(world, tmp_path / "teacher", "sleep in the first epoch")
    assert status > 0
    assert "imed out" in errors
    assert seconds < 60


@pytest.mark.parametrize("size", [8, 9, 24])
def test_the_shares_of_a_batch_are_the_batch(world, monkeypatch, size):
    data, device = training_data(world), torch.device("cpu")
    view, order = draw_view(VIEWS, 0, "training", 0, data.shape), epoch_order(24, 0, 0)
    whole = list(batches(data, view, order, size, device, {}))
    monkeypatch.setattr(distributed, "ranks", lambda: 5)
    shares = []
    for rank in range(5):
        monkeypatch.setattr(distributed, "rank", lambda number=rank: number)
        shares.append(list(batches(data, view, order, size, device, {})))
    for batch, *parts in zip(whole, *shares, strict=True):
        assert {len(part.mask) for part in parts} <= {size // 5, size // 5 + 1}
        for name in ("log_mel", "targets", "mask"):
            assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(batch, name))


def test_more_ranks_than_clips_of_a_batch_are_refused(world, tmp_path, monkeypatch):
    monkeypatch.setattr(distributed, "ranks", lambda: 10)
    with pytest.raises(InputError, match="10 processes cannot share batches of 9 clips"):
        teach(world, tmp_path / "teacher", CONFIG)


def main(what, world, output):
    """Be one rank."""

    def on_epoch(row):
        if what.startswith("kill all"):
            for process in (os.getppid(), int(other), os.getpid()):
                os.kill(process, signal.SIGKILL)

    def order(clips, seed, epoch):
        if what.startswith("kill one") and distributed.rank() == 1 and epoch == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        if what.startswith("sleep") and distributed.rank() == 1:
            time.sleep(100)
        return epoch_order(clips, seed, epoch)

    teacher.epoch_order = order
    if what.startswith("sleep"):
        distributed.TIMEOUT = timedelta(seconds=5)
    with distributed.group():
        other = distributed.summed(torch.tensor(os.getpid())) - os.getpid()
        teach(Path(world), Path(output), CONFIG, on_epoch)


if __name__ == "__main__":
    main(*sys.argv[1:])
