import json
import os
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch

import iusp
from iusp.config.features import Features
from iusp.data.labels import SPLITS
from iusp.data.resampling import resampled
from iusp.data.taxonomy import read_taxonomy
from iusp.errors import InputError
from iusp.features.log_mel import clip_length, frame_count, log_mel
from iusp.features.packed import features_digest, labelled_clips, read_features
from iusp.features.torchaudio_transforms import melscale_fbanks
from iusp.io.files import sha256
from iusp.reporter import Reporter
from iusp.steps import features
from iusp.training.data import TrainingFolders, read_training_data
from tests.support.listener import Listener

pytestmark = pytest.mark.integration

ROOT = Path(iusp.__file__).parent
TAXONOMY = read_taxonomy(ROOT / "data/taxonomy.yaml")
CONFIG = Features(
    sample_rate=8000,
    clip_seconds=0.5,
    window_length=128,
    hop_length=80,
    mel_bands=16,
    low_hz=50.0,
    high_hz=4000.0,
    log_offset=1e-6,
    clips_per_shard=2,
)


def noise(length, seed=0):
    return (0.1 * np.random.default_rng(seed).standard_normal(length)).astype(np.float32)


def tone(hertz, rate, seconds):
    return torch.from_numpy(0.5 * np.sin(2 * np.pi * hertz * np.arange(int(rate * seconds)) / rate)).float()


# Twins: HTK's mel scale, and a Fourier transform by its definition.


def mel_matrix(config):
    """Return (bands, bins): triangles between equally spaced points of 2595 log10(1 + f / 700)."""
    low, high = (2595 * np.log10(1 + hertz / 700) for hertz in (config.low_hz, config.high_hz))
    corners = 700 * (10 ** (np.linspace(low, high, config.mel_bands + 2) / 2595) - 1)
    matrix = np.zeros((config.mel_bands, config.window_length // 2 + 1))
    for band in range(config.mel_bands):
        left, centre, right = corners[band : band + 3]
        for number in range(matrix.shape[1]):
            hertz = number * config.sample_rate / config.window_length
            matrix[band, number] = max(0, min((hertz - left) / (centre - left), (right - hertz) / (right - centre)))
    return matrix


def naive_log_mel(samples, config):
    length, window = clip_length(config), config.window_length
    padded = np.zeros(length)
    padded[: min(length, len(samples))] = samples[:length]
    padded = np.pad(padded, window // 2, mode="reflect")
    time = np.arange(window)
    hann = np.sin(np.pi * time / window) ** 2
    waves = np.exp(-2j * np.pi * np.outer(np.arange(window // 2 + 1), time) / window)
    frames = []
    for frame in range(1 + length // config.hop_length):
        piece = padded[frame * config.hop_length :][:window] * hann
        frames.append(np.log(mel_matrix(config) @ np.abs(waves @ piece) ** 2 + config.log_offset))
    return np.array(frames)


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"window_length": 200, "hop_length": 64, "mel_bands": 23},
        {"low_hz": 300.0, "high_hz": 3000.0, "log_offset": 1e-3},
        {"clip_seconds": 0.31},
    ],
)
def test_log_mel_is_its_definition(change):
    config = CONFIG.model_copy(update=change)
    samples = noise(4000)
    found = log_mel(torch.from_numpy(samples), config)
    assert found.dtype == torch.float32
    assert found.shape == (frame_count(config), config.mel_bands)
    np.testing.assert_allclose(found, naive_log_mel(samples.astype(np.float64), config), atol=1e-4)


def test_torchaudio_works_on_whatever_torch_is_installed():
    # With or without torchaudio's compiled part.
    filters = melscale_fbanks(65, 50.0, 4000.0, 16, 8000)
    torch.testing.assert_close(filters.T, torch.from_numpy(mel_matrix(CONFIG)).float())


def test_one_module_imports_torchaudio():
    importing = [path.name for path in ROOT.rglob("*.py") if "import torchaudio" in path.read_text().replace("``", "")]
    using = [path.name for path in ROOT.rglob("*.py") if "from torchaudio" in path.read_text()]
    assert using == ["torchaudio_transforms.py"]
    assert set(importing) <= {"torchaudio_transforms.py"}


def test_short_clips_are_padded_and_long_ones_cut():
    samples = torch.from_numpy(noise(9000))
    short = log_mel(samples[:2000], CONFIG)
    zeros = log_mel(torch.cat([samples[:2000], torch.zeros(2000)]), CONFIG)
    assert torch.equal(short, zeros)
    # Frames that see no sample hold the offset alone.
    assert torch.equal(short[27:], torch.full((24, 16), 1e-6).log())
    assert torch.equal(log_mel(samples, CONFIG), log_mel(samples[:4000], CONFIG))
    assert log_mel(torch.zeros(0), CONFIG).shape == (51, 16)


def log_mel_at(samples, rate, config=CONFIG):
    """Return the log-mel of samples (n,) of any rate."""
    blocks = resampled([samples.numpy()], rate, config.sample_rate)
    return log_mel(torch.from_numpy(np.concatenate(list(blocks))), config)


def chord(rate, seconds=0.6):
    """Two hundred tones below 3.9 kHz: the same sound at any rate."""
    random = np.random.default_rng(0)
    hertz, phase = random.uniform(50, 3900, 200), random.uniform(0, 2 * np.pi, 200)
    time = np.arange(round(rate * seconds)) / rate
    return torch.from_numpy(0.02 * np.sin(2 * np.pi * hertz * time[:, None] + phase).sum(axis=1)).float()


@pytest.mark.parametrize(("rate", "tolerance"), [(48000, 0.01), (44100, 0.1), (22050, 0.1), (11025, 0.1), (44101, 0.1)])
def test_a_sound_has_the_same_features_at_every_rate(rate, tolerance):
    expected = log_mel(chord(8000), CONFIG)[1:-1]
    found = log_mel_at(chord(rate), rate)[1:-1]
    assert (found - expected).abs().max() < tolerance


@pytest.mark.parametrize("rate", [44100, 48000, 6000])
def test_hops_that_are_no_whole_number_of_samples_do_not_drift(rate):
    config = CONFIG.model_copy(update={"clip_seconds": 30.0, "hop_length": 77})
    click = torch.zeros(30 * rate)
    click[29 * rate] = 1
    found = log_mel_at(click, rate, config).sum(dim=1).argmax().item()
    assert found == round(29 * 8000 / 77)


@pytest.mark.parametrize("rate", [44100, 48000, 22050, 6000])
@pytest.mark.parametrize("hertz", [440, 1000, 2500])
def test_a_tone_keeps_its_band(rate, hertz):
    expected = log_mel(tone(hertz, 8000, 0.5), CONFIG)[5:-5].mean(dim=0)
    found = log_mel_at(tone(hertz, rate, 0.5), rate)[5:-5].mean(dim=0)
    assert found.argmax() == expected.argmax() == mel_matrix(CONFIG)[:, round(hertz * 128 / 8000)].argmax()
    assert found.max().item() == pytest.approx(expected.max().item(), abs=0.3)


def test_nothing_is_left_of_what_is_too_high():
    loud = log_mel_at(tone(3000, 44100, 0.5), 44100)[5:-5].exp().sum(dim=1)
    aliased = log_mel_at(tone(5000, 44100, 0.5), 44100)[5:-5].exp().sum(dim=1)
    assert (aliased < 1e-4 * loud).all()


@pytest.mark.parametrize("window", [128, 200])
@pytest.mark.parametrize("seconds", [0.1, 0.5, 0.503])
def test_the_number_of_frames_is_known_before(window, seconds):
    config = CONFIG.model_copy(update={"window_length": window, "clip_seconds": seconds})
    assert len(log_mel(torch.zeros(100), config)) == frame_count(config)


# The step. Rates, channels, formats and lengths differ; `train` is not the first split by name.
NAMES = {
    "test": ["e1.wav"],
    "train": ["t1.wav", "t2.flac", "t3.wav", "t4.wav", "t5.wav", "t6.wav", "t7.wav"],
    "validate": ["v1.wav", "v2.wav", "v3.wav"],
}
CLIPS = {split: len(names) for split, names in NAMES.items()}


def make(folder):
    """Write what the dataset step writes, as far as the features step reads it."""
    (folder / "audio").mkdir(parents=True)
    shutil.copy(ROOT / "data/taxonomy.yaml", folder)
    rows = []
    for split, names in NAMES.items():
        for name in names:
            seed = len(rows)
            rate, channels = (8000, 44100, 16000)[seed % 3], 1 + seed % 2
            samples = noise((int(rate * (0.3 + 0.1 * seed)), channels), seed) * (1 + seed)
            soundfile.write(folder / "audio" / name, samples, rate)
            checksum = sha256(folder / "audio" / name)
            rows.append([name, split, "1", checksum, len(samples) / rate, rate, channels])
    columns = ["audio_filename", "split", "sensor_id", "sha256", "seconds", "sample_rate", "channels"]
    index = pd.DataFrame(rows, columns=columns)
    index.to_parquet(folder / "index.parquet", index=False)
    labels = index[["audio_filename", "split"]].copy()
    for number, tag in enumerate(TAXONOMY.coarse_tags + TAXONOMY.all_fine_tags):
        labels[tag] = ((np.arange(len(labels)) + number) % 3 == 0).astype("float32")
    labels.to_parquet(folder / "labels.parquet", index=False)
    return folder


def tree(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return make(tmp_path_factory.mktemp("dataset") / "data")


@pytest.fixture(scope="module")
def packed(dataset, tmp_path_factory):
    output = tmp_path_factory.mktemp("packed") / "features"
    assert features.run(CONFIG, features.Inputs(dataset, dataset / "audio"), output, Reporter(), workers=2) == CLIPS
    return output


def relabelled(dataset, folder, change):
    """Copy a data set's tables, its labels changed."""
    folder.mkdir()
    shutil.copy(dataset / "taxonomy.yaml", folder)
    change(pd.read_parquet(dataset / "labels.parquet")).to_parquet(folder / "labels.parquet", index=False)
    return folder


def test_a_split_holds_its_clips_in_order(dataset, packed):
    opened = read_features(packed)
    assert opened.clips == CLIPS
    for split, names in NAMES.items():
        assert opened.filenames(split) == names
        log_mels = opened.log_mel(split)
        assert log_mels.dtype == np.float16
        assert log_mels.shape == (len(names), 51, 16)
        for row, name in enumerate(names):
            samples, rate = soundfile.read(dataset / "audio" / name, dtype="float32", always_2d=True)
            expected = log_mel_at(torch.from_numpy(samples.mean(axis=1)), rate)
            np.testing.assert_allclose(log_mels[row].astype(np.float32), expected, rtol=1e-3, atol=1e-3)
    assert {path.name for path in packed.iterdir()} == {
        *(f"{split}.npy" for split in SPLITS),
        "index.parquet",
        "features.json",
    }
    assert [path.name for path in packed.parent.iterdir()] == ["features"]


def test_what_is_lost_is_said(dataset, packed, tmp_path):
    index = pd.read_parquet(dataset / "index.parquet")
    said = []

    class Told(Reporter):
        def warning(self, message):
            said.append(message)

    def run(name, **changes):
        said.clear()
        settings = CONFIG.model_copy(update=changes)
        features.run(settings, features.Inputs(dataset, dataset / "audio"), tmp_path / name, Told(), workers=1)
        return [*said]

    longer = (index["seconds"] > 0.5).sum()
    (line,) = run("default")
    assert line == (
        f"{longer} of 11 clips are longer than features.clip_seconds (0.5 s); only their start is used. "
        "`iusp cut` divides recordings into clips."
    )
    assert run("long", clip_seconds=2.0) == []
    lines = run("high", clip_seconds=2.0, sample_rate=16_000, high_hz=8000.0)
    assert [line.partition(";")[0] for line in lines] == [
        "4 of 11 clips have a sample rate below 16,000 Hz (the lowest: 8,000 Hz)"
    ]
    lines = run("narrow", clip_seconds=2.0, mel_bands=64)
    empty = int((melscale_fbanks(65, 50.0, 4000.0, 64, 8000).sum(dim=0) == 0).sum())
    assert empty
    assert lines == [
        f"{empty} of 64 mel bands contain no FFT bin and are always empty. Lower features.mel_bands or raise "
        "features.window_length."
    ]


def test_statistics_are_of_train_alone(packed):
    opened = read_features(packed)
    frames = opened.log_mel("train").reshape(-1, 16).astype(np.float64)
    description = json.loads((packed / "features.json").read_text())
    np.testing.assert_allclose(description["mean"], frames.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(description["std"], frames.std(axis=0), rtol=1e-9)
    np.testing.assert_allclose(opened.mean, frames.mean(axis=0), rtol=1e-6)
    everything = np.concatenate([opened.log_mel(split) for split in SPLITS]).reshape(-1, 16).astype(np.float64)
    assert np.abs(everything.mean(axis=0) - description["mean"]).max() > 1e-3


def test_neither_workers_nor_shards_change_the_bytes(dataset, packed, tmp_path):
    features.run(CONFIG, features.Inputs(dataset, dataset / "audio"), tmp_path / "alone", Reporter(), workers=1)
    assert tree(tmp_path / "alone") == tree(packed)
    whole = CONFIG.model_copy(update={"clips_per_shard": 100})
    features.run(whole, features.Inputs(dataset, dataset / "audio"), tmp_path / "whole", Reporter(), workers=1)
    for split in SPLITS:
        assert (tmp_path / "whole" / f"{split}.npy").read_bytes() == (packed / f"{split}.npy").read_bytes()
    assert torch.equal(read_features(tmp_path / "whole").mean, read_features(packed).mean)


KILLED = """
import os, signal, sys
from pathlib import Path
from iusp.config.features import Features
from iusp.reporter import Reporter
from iusp.steps import features

class Killer(Reporter):
    def progress(self, task, done, total, message=""):
        # The whole group, workers included, as at a loss of power; or the step alone.
        if done == 2:
            os.killpg(0, signal.SIGKILL) if sys.argv[4] == "all" else os.kill(os.getpid(), signal.SIGKILL)

if __name__ == "__main__":
    config = Features.model_validate_json(sys.argv[3])
    inputs = features.Inputs(Path(sys.argv[1]), Path(sys.argv[1]) / "audio")
    features.run(config, inputs, Path(sys.argv[2]), Killer(), workers=1)
"""


def killed(folder, dataset, output, config, what):
    script = folder / "killed.py"
    script.write_text(KILLED)
    arguments = [sys.executable, str(script), str(dataset), str(output), config.model_dump_json(), what]
    environment = os.environ | {"PYTHONPATH": str(ROOT.parent)}
    return subprocess.Popen(
        arguments, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment
    )


def test_a_killed_run_goes_on_and_ends_with_the_same_bytes(dataset, packed, tmp_path):
    output = tmp_path / "out" / "features"
    process = killed(tmp_path, dataset, output, CONFIG, "all")
    error = process.communicate()[1]
    assert process.returncode == -signal.SIGKILL, error.decode()
    assert not output.exists()
    (work,) = output.parent.iterdir()
    made = len(list((work / "parts").glob("[a-z]*.npy")))
    total = 4 + 2 + 1
    assert 2 <= made < total
    # What a kill in the middle of a small file leaves behind.
    (work / ".features.json.1.part").write_text("{")
    told = []
    features.run(
        CONFIG,
        features.Inputs(dataset, dataset / "audio"),
        output,
        Listener(lambda task, done, total, message: told.append((done, total))),
        workers=1,
    )
    assert told[0] == (made + 1, total)  # finished shards are not made again
    assert told[-1] == (total, total)
    assert {name: tree(output)[name] for name in tree(packed)} == tree(packed)
    assert set(tree(output)) == set(tree(packed))
    assert [path.name for path in output.parent.iterdir()] == ["features"]


def test_shards_of_other_code_are_made_again(dataset, tmp_path, monkeypatch):
    process = killed(tmp_path, dataset, tmp_path / "features", CONFIG, "all")
    process.communicate()
    monkeypatch.setattr(features, "code_digest", lambda: "other")
    told = []
    features.run(
        CONFIG,
        features.Inputs(dataset, dataset / "audio"),
        tmp_path / "features",
        Listener(lambda task, done, *_: told.append(done)),
        workers=1,
    )
    assert told[0] == 1


def test_workers_end_with_a_killed_step(dataset, tmp_path):
    process = killed(tmp_path, dataset, tmp_path / "features", CONFIG, "step")
    try:
        # Every process of the group holds the pipe: it ends only when the last of them does.
        error = process.communicate(timeout=20)[1]
        assert process.returncode == -signal.SIGKILL, error.decode()
    except subprocess.TimeoutExpired:
        pytest.fail("workers outlive the killed step")
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.parametrize("damage", ["unreadable", "missing", "changed"])
def test_a_clip_that_is_not_the_indexed_one_is_refused_by_name(dataset, tmp_path, damage):
    copy = shutil.copytree(dataset, tmp_path / "data")
    clip = copy / "audio" / "t3.wav"
    if damage == "unreadable":
        clip.write_bytes(b"RIFF nothing")
    elif damage == "missing":
        clip.unlink()
    else:
        shutil.copy(copy / "audio" / "t4.wav", clip)
    with pytest.raises(InputError, match=r"t3\.wav") as caught:
        features.run(CONFIG, features.Inputs(copy, copy / "audio"), tmp_path / "features", Reporter(), workers=1)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "features").exists()


def test_no_training_clip_is_refused(dataset, tmp_path):
    index = pd.read_parquet(dataset / "index.parquet")
    index[index["split"] != "train"].to_parquet(tmp_path / "index.parquet", index=False)
    with pytest.raises(InputError, match=r"index\.parquet.*training"):
        features.run(
            CONFIG, features.Inputs(tmp_path, tmp_path / "audio"), tmp_path / "features", Reporter(), workers=1
        )


def test_the_digest_names_settings_clips_and_order():
    pairs = [("a.wav", "1"), ("b.wav", "2")]
    changes = [
        {"sample_rate": 9000},
        {"clip_seconds": 0.6},
        {"window_length": 130},
        {"hop_length": 81},
        {"mel_bands": 17},
        {"low_hz": 51.0},
        {"high_hz": 3999.0},
        {"log_offset": 2e-6},
        {"clips_per_shard": 3},
    ]
    assert {name for change in changes for name in change} == set(Features.model_fields)
    digests = [features_digest(CONFIG.model_copy(update=change), pairs) for change in [{}, *changes]]
    digests += [
        features_digest(CONFIG, other)
        for other in (pairs[::-1], pairs[:1], [("a.wav", "1"), ("b.wav", "3")], [("a.wav", "1"), ("c.wav", "2")], [])
    ]
    assert len(set(digests)) == len(digests)
    assert features_digest(CONFIG, pairs) == digests[0]


def test_the_written_digest_is_of_these_settings_and_clips(dataset, packed):
    index = pd.read_parquet(dataset / "index.parquet")
    pairs = list(zip(index["audio_filename"], index["sha256"], strict=True))
    assert read_features(packed).digest == features_digest(CONFIG, pairs)
    assert read_features(packed).config == CONFIG


def test_labels_join_row_by_row(dataset, packed):
    clips = labelled_clips(read_features(packed), dataset, "train", "both", TAXONOMY)
    labels = pd.read_parquet(dataset / "labels.parquet").set_index("audio_filename")
    assert clips.filenames == NAMES["train"]
    assert len(clips) == 7
    assert clips.tags == [*TAXONOMY.coarse_tags, *TAXONOMY.fine_tags]
    for row, name in enumerate(clips.filenames):
        assert clips.targets[row].tolist() == labels.loc[name, clips.tags].tolist()
    for tags, count in {"coarse": 8, "fine": 23, "both": 31}.items():
        clips = labelled_clips(read_features(packed), dataset, "train", tags, TAXONOMY)
        assert clips.targets.shape == clips.mask.shape == (7, count)


OTHERS = {
    "renamed": lambda labels, rows: labels.replace(
        {"audio_filename": {labels.loc[rows[0], "audio_filename"]: "x.wav"}}
    ),
    "missing": lambda labels, rows: labels.drop(rows[0]),
    "reordered": lambda labels, rows: pd.concat([labels.drop(rows), labels.loc[rows[::-1]]]),
}


@pytest.mark.parametrize("split", ["train", "validate"])
@pytest.mark.parametrize("change", OTHERS)
def test_labels_of_other_clips_are_refused(dataset, packed, tmp_path, split, change):
    def changed(labels):
        return OTHERS[change](labels, labels.index[labels["split"] == split])

    other = relabelled(dataset, tmp_path / "data", changed)
    with pytest.raises(InputError, match=f"{split} clips"):
        read_training_data(TrainingFolders(other, packed), "coarse")


def test_labels_without_the_tags_are_refused(dataset, packed, tmp_path):
    other = relabelled(dataset, tmp_path / "data", lambda labels: labels.drop(columns=TAXONOMY.fine_tags[0]))
    with pytest.raises(InputError, match=TAXONOMY.fine_tags[0]):
        labelled_clips(read_features(packed), other, "train", "both", TAXONOMY)
    assert len(labelled_clips(read_features(packed), other, "train", "coarse", TAXONOMY)) == 7


def damage(path, how):
    whole = path.read_bytes()
    path.unlink()
    if how == "cut":
        path.write_bytes(whole[:-1])
    elif how == "header only":
        path.write_bytes(whole[:20])
    elif how == "empty":
        path.touch()
    elif how == "other clips":
        np.save(path, np.zeros((2, 51, 16), np.float16))
    elif how == "other type":
        np.save(path, np.zeros((7, 51, 16), np.float32))
    elif how == "pickled":
        np.save(path, np.array([{}] * 7, dtype=object), allow_pickle=True)
    elif how == "a bit flipped":
        path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))


@pytest.mark.parametrize(
    "how", ["gone", "cut", "header only", "empty", "other clips", "other type", "pickled", "a bit flipped"]
)
def test_damaged_features_are_refused(packed, tmp_path, how):
    copy = shutil.copytree(packed, tmp_path / "features")
    damage(copy / "train.npy", how)
    with pytest.raises(InputError, match=r"train\.npy"):
        read_features(copy).log_mel("train")


def test_features_are_digested_once_in_a_process(packed, tmp_path, monkeypatch):
    copy, digested = shutil.copytree(packed, tmp_path / "features"), []
    monkeypatch.setattr("iusp.features.packed.sha256", lambda path: digested.append(path.name) or sha256(path))
    for _ in range(3):
        opened = read_features(copy)
        for split in ("train", "validate"):
            opened.log_mel(split)
    assert digested == ["train.npy", "validate.npy"]


def test_features_that_an_older_version_wrote_are_to_be_made_again(packed, tmp_path):
    copy = shutil.copytree(packed, tmp_path / "features")
    description = json.loads((copy / "features.json").read_text())
    del description["sha256"]
    (copy / "features.json").write_text(json.dumps(description))
    with pytest.raises(InputError, match=r"features\.json.*lacks.*run its step again"):
        read_features(copy)


def test_a_folder_without_features_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"features\.json"):
        read_features(tmp_path)


def test_digital_silence_is_not_divided_by(tmp_path):
    data = tmp_path / "data"
    (data / "audio").mkdir(parents=True)
    soundfile.write(data / "audio" / "s.wav", np.zeros(4000), 8000)
    index = pd.DataFrame({"audio_filename": ["s.wav"], "split": "train", "sha256": sha256(data / "audio" / "s.wav")})
    index = index.assign(seconds=0.5, sample_rate=8000)
    index.to_parquet(data / "index.parquet", index=False)
    features.run(CONFIG, features.Inputs(data, data / "audio"), tmp_path / "features", Reporter(), workers=1)
    opened = read_features(tmp_path / "features")
    assert torch.equal(opened.std, torch.ones(16))
    assert opened.mean.tolist() == pytest.approx([float(np.float16(np.log(1e-6)))] * 16)
    assert opened.log_mel("test").shape == (0, 51, 16)
