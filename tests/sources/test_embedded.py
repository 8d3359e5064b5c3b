import hashlib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile

from iusp.data.taxonomy import read_taxonomy
from iusp.reporter import Reporter
from iusp.sources import embedded
from tests.support.listener import Listener

SEED = 7
CLIPS = {"train": 300, "validate": 60, "test": 20}
# Of the header line of SONYC-UST's own annotations.csv (2019), without its line end.
SONYC_UST_HEADER = "fab3f045537da02775e4f17a5f737362eb515a5f9dad72513ad8fb36156eab3b"


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def rng(number: int = 0) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(number))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("embedded")
    embedded.write(folder, SEED, CLIPS, 1, Reporter())
    return folder


@pytest.fixture(scope="module")
def table(folder) -> pd.DataFrame:
    return pd.read_csv(folder / "annotations.csv")


@pytest.fixture(scope="module")
def taxonomy(folder):
    return read_taxonomy(folder / "dcase-ust-taxonomy.yaml")


@pytest.fixture(scope="module")
def scenes() -> list[embedded.Scene]:
    return [embedded.scene(SEED, "validate", number) for number in range(CLIPS["validate"])]


# --- write ---


def test_two_workers_write_the_bytes_of_one(tmp_path, folder):
    calls = []
    embedded.write(tmp_path, SEED, CLIPS, 2, Listener(lambda task, done, total, message: calls.append((done, total))))
    assert contents(tmp_path) == contents(folder)
    done = [call[0] for call in calls]
    assert done == sorted(set(done))
    assert calls[-1] == (380, 380)


def test_killed_run_resumes_to_the_same_bytes_and_keeps_what_is_there(tmp_path):
    clips = {"train": 30, "validate": 3}
    embedded.write(tmp_path, SEED, clips, 1, Reporter())
    before = contents(tmp_path)
    audio = sorted((tmp_path / "audio").iterdir())
    kept = {path: path.stat().st_mtime_ns for path in audio[::2]}
    for path in audio[1::2]:
        path.unlink()
    (tmp_path / "annotations.csv").unlink()

    embedded.write(tmp_path, SEED, clips, 2, Reporter())

    assert contents(tmp_path) == before
    assert {path: path.stat().st_mtime_ns for path in kept} == kept


def test_more_clips_leave_the_earlier_ones_as_they_were(tmp_path, folder):
    embedded.write(tmp_path, SEED, {"train": 27, "validate": 2}, 1, Reporter())
    small, large = contents(tmp_path), contents(folder)
    assert {name for name in small if name.endswith(".flac")} < set(large)
    assert all(small[name] == large[name] for name in small if name.endswith(".flac"))
    rows = (tmp_path / "annotations.csv").read_text().splitlines()
    assert set(rows) < set((folder / "annotations.csv").read_text().splitlines())


def test_another_seed_makes_other_clips():
    first, second = embedded.scene(1, "train", 0), embedded.scene(2, "train", 0)
    assert not np.array_equal(first.samples, second.samples)


def test_splits_share_no_clip():
    clips = [embedded.scene(SEED, split, 0).samples for split in CLIPS]
    assert len({clip.tobytes() for clip in clips}) == 3


# --- annotations ---


def test_columns_are_those_of_sonyc_ust(folder):
    header = (folder / "annotations.csv").read_text().partition("\n")[0]
    assert hashlib.sha256(header.encode()).hexdigest() == SONYC_UST_HEADER


def test_train_has_three_volunteers_and_the_other_splits_one_truth(table):
    assert (table["split"] + table["audio_filename"]).nunique() == sum(CLIPS.values())
    train, rest = table[table["split"] == "train"], table[table["split"] != "train"]
    assert (train.groupby("audio_filename")["annotator_id"].nunique() == 3).all()
    assert len(train) == 3 * CLIPS["train"]
    assert train["annotator_id"].min() > 0
    assert (rest["annotator_id"] == 0).all()
    assert rest["split"].value_counts().to_dict() == {"validate": 60, "test": 20}


def test_splits_have_sensors_of_their_own_and_files_are_named_by_them(table):
    sensors = table.groupby("split")["sensor_id"].agg(set)
    assert not sensors["train"] & sensors["validate"]
    assert not sensors["train"] & sensors["test"]
    assert not sensors["validate"] & sensors["test"]
    assert table["audio_filename"].str.fullmatch(r"\d\d_\d{6}\.flac").all()
    assert (table["audio_filename"].str[:2].astype(int) == table["sensor_id"]).all()


def test_coarse_tags_follow_from_fine_ones(table, taxonomy):
    for category, coarse in taxonomy.coarse.items():
        fine = table[[f"{tag}_presence" for tag in taxonomy.category_tags(category)]]
        assert (table[f"{coarse}_presence"] == fine.max(axis=1)).all()


def test_proximity_is_given_where_a_tag_is_present(table, taxonomy):
    for tag in taxonomy.all_fine_tags:
        present = table[f"{tag}_presence"] == 1
        proximity = table[f"{tag}_proximity"].astype(str)
        assert (proximity[~present] == "-1").all()
        assert proximity[present].isin(["near", "far", "notsure"]).all()


def test_every_tag_is_learnable(table, taxonomy):
    train = table[table["split"] == "train"]
    for tag in taxonomy.fine_tags:
        assert train.groupby("audio_filename")[f"{tag}_presence"].max().sum() >= 8, tag
    assert all(train[f"{tag}_presence"].any() for tag in taxonomy.uncertain.values())


def test_truth_is_what_the_scenes_hold(table, taxonomy, scenes):
    truth = table[table["split"] == "validate"].reset_index(drop=True)
    for number, scene in enumerate(scenes):
        present = {tag for tag in taxonomy.all_fine_tags if truth.loc[number, f"{tag}_presence"]}
        assert present == {event.tag for event in scene.events}


def test_volunteers_miss_more_of_what_is_fainter_and_seldom_invent(table, taxonomy):
    train = table[table["split"] == "train"]
    missed: dict[bool, list[bool]] = {False: [], True: []}
    invented = heard_as_uncertain = 0
    for number, (_, rows) in enumerate(train.groupby("audio_filename", sort=False)):
        events = embedded.scene(SEED, "train", number).events
        categories = {event.tag[0] for event in events}
        for category in taxonomy.coarse:
            presence = rows[f"{taxonomy.coarse[category]}_presence"]
            if category not in categories:
                invented += presence.sum()
        for event in events:
            presence = rows[f"{taxonomy.coarse[event.tag[0]]}_presence"]
            missed[event.snr_db < -7].extend(presence == 0)
            uncertain = taxonomy.uncertain.get(event.tag[0])
            heard_as_uncertain += rows[f"{uncertain}_presence"].sum() if uncertain else 0
    events_heard = sum(map(len, missed.values()))
    assert np.mean(missed[False]) < 0.15
    assert 0.25 < np.mean(missed[True]) < 0.6
    assert 0.001 < invented / (len(train) * 23) < 0.008
    assert 0.02 < heard_as_uncertain / events_heard < 0.2


# --- audio ---


def test_files_are_ten_seconds_of_16_bit_flac_at_16_khz(folder):
    for path in sorted((folder / "audio").iterdir())[::40]:
        info = soundfile.info(path)
        assert (info.frames, info.samplerate, info.channels) == (160_000, 16_000, 1)
        assert (info.format, info.subtype) == ("FLAC", "PCM_16")


def test_file_holds_the_scene(folder):
    samples, _ = soundfile.read(folder / "audio" / "02_000001.flac", dtype="float32")
    assert np.abs(samples - embedded.scene(SEED, "train", 1).samples).max() < 2 / 2**15


def test_scenes_are_finite_unclipped_and_at_a_street_microphones_level(scenes):
    for scene in scenes:
        assert scene.samples.dtype == np.float32
        assert scene.samples.shape == (160_000,)
        assert np.isfinite(scene.samples).all()
        assert np.abs(scene.samples).max() <= 1
        assert (np.abs(scene.samples) == np.abs(scene.samples).max()).sum() < 10
        assert -55 < 20 * np.log10(scene.samples.std()) < -30


def test_scenes_have_up_to_three_categories(scenes):
    counts = np.array([len(scene.events) for scene in scenes])
    assert counts.max() == 3
    assert 1.4 < counts.mean() < 2.1
    assert all(len({event.tag[0] for event in scene.events}) == len(scene.events) for scene in scenes)
    snr_db = [event.snr_db for scene in scenes for event in scene.events]
    assert -16 <= min(snr_db) < -13
    assert -1 < max(snr_db) <= 2


@pytest.mark.parametrize("tag", embedded.SOUNDS)
def test_sound_fits_the_clip_and_varies(tag):
    first, again, other = (embedded.SOUNDS[tag](rng(number)) for number in (0, 0, 1))
    assert first.shape == (160_000,)
    assert first.dtype == np.float32
    assert np.isfinite(first).all()
    assert first.std() > 0
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def periodicity(sound: np.ndarray, shortest: float, longest: float) -> float:
    """Return how far a 200-Hz envelope's autocorrelation rises between half a period and that period.

    The period is the lag of the highest correlation between `shortest` and `longest` seconds. Noise or a decay gives
    about 0 or less, a train of equal pulses up to 1 and more.
    """
    envelope = np.abs(sound).reshape(-1, 80).mean(axis=1)
    envelope = envelope[envelope.cumsum() > 0][: 5 * 200]  # its first 5 s: a lasting sound is there throughout
    envelope -= envelope.mean()
    correlation = np.correlate(envelope, envelope, "full")[len(envelope) - 1 :] / np.square(envelope).sum()
    low = int(shortest * 200)
    lag = low + int(np.argmax(correlation[low : int(longest * 200) + 1]))
    return float(correlation[lag] - correlation[lag // 2])


@pytest.mark.parametrize(
    ("tag", "shortest", "longest"),
    [("2-2_jackhammer", 1 / 20, 1 / 8), ("2-3_hoe-ram", 1 / 8, 1 / 3.5), ("5-4_reverse-beeper", 0.7, 1.2)],
)
def test_repeating_sounds_repeat(tag, shortest, longest):
    repeating = [periodicity(embedded.SOUNDS[tag](rng(number)), shortest, longest) for number in range(10)]
    irregular = [
        periodicity(embedded.SOUNDS["3-1_non-machinery-impact"](rng(number)), shortest, longest) for number in range(10)
    ]
    assert np.median(repeating) > 0.5
    assert np.median(irregular) < 0.1


def test_barks_of_a_dog_are_identical():
    sound = embedded.SOUNDS["8-1_dog-barking-whining"](rng(3))
    loud = np.flatnonzero(sound)
    barks = np.split(loud, np.flatnonzero(np.diff(loud) > 800) + 1)
    assert len(barks) >= 2
    assert all(np.array_equal(sound[bark], sound[barks[0]]) for bark in barks)
