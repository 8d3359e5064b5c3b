import json
import shutil
import subprocess
import sys
import unicodedata

import numpy as np
import pandas as pd
import pytest
import soundfile

from iusp.artifacts.dataset import INDEX, Examples
from iusp.data.clips import NO_ANNOTATION, NO_FILE, NO_TRUTH
from iusp.data.labels import derive_labels, read_annotations
from iusp.errors import InputError
from iusp.io import files
from iusp.sources.choice import find_source, source_version
from iusp.sources.folder import find_annotations
from iusp.steps import dataset
from tests.support.datasets import DEFAULTS, RATE, TAXONOMY, config, ingest, make, reasons, recordings, row
from tests.support.files import tree
from tests.support.listener import Listener
from tests.support.outcomes import outcome

pytestmark = pytest.mark.integration

NAMES = {"train": ["t1.wav", "t2.flac", "t3.ogg"], "validate": ["v1.wav", "v2.ogg"], "test": ["e1.flac"]}
ROWS = [
    *(row(name, annotator=annotator, heard=["1-1"]) for name in NAMES["train"] for annotator in (1, 2)),
    *(row(name, split, 0, heard=["8-1", "2_"]) for split in ("validate", "test") for name in NAMES[split]),
]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return make(tmp_path_factory.mktemp("source") / "data", ROWS)


@pytest.fixture(scope="module")
def ingested(source, tmp_path_factory):
    output = tmp_path_factory.mktemp("output") / "dataset"
    return output, ingest(config(source), output, workers=1)


def test_audio_is_taken_over_as_it_came(source, ingested):
    output, _ = ingested
    assert tree(recordings(output)) == tree(source / "audio")
    for name in ("annotations.csv", "taxonomy.yaml"):
        assert (output / name).read_bytes() == (source / name).read_bytes()


def test_the_index_tells_what_the_clips_are(source, ingested):
    index = pd.read_parquet(ingested[0] / "index.parquet")
    order = [(split, name) for split in sorted(NAMES) for name in NAMES[split]]
    assert list(zip(index["split"], index["audio_filename"], strict=True)) == order
    assert list(index.columns) == INDEX
    for clip in index.itertuples():
        path = source / "audio" / clip.audio_filename
        known = soundfile.info(path)
        assert (clip.sample_rate, clip.channels) == (known.samplerate, known.channels)
        assert clip.seconds == known.frames / known.samplerate
        assert clip.sha256 == files.sha256(path)
        assert clip.sensor_id == clip.split


def test_the_labels_are_of_the_same_clips(source, ingested):
    labels = pd.read_parquet(ingested[0] / "labels.parquet")
    annotations = read_annotations(source / "annotations.csv", TAXONOMY)
    pd.testing.assert_frame_equal(labels, derive_labels(annotations, TAXONOMY, "any", "from-fine"))


def test_the_summary(ingested):
    output, summary = ingested
    assert json.loads((output / "dataset.json").read_text()) == summary.model_dump(exclude_none=True)
    assert summary.clips == {"train": 3, "validate": 2, "test": 1}
    assert {tag: count for tag, count in summary.positives["train"].items() if count} == {
        "1_engine": 3,
        "1-1_small-sounding-engine": 3,
    }
    assert {tag: count for tag, count in summary.positives["validate"].items() if count} == {
        "8_dog": 2,
        "8-1_dog-barking-whining": 2,
    }
    for kind in ("quarantined", "missing", "unannotated", "without_truth", "junk_rows", "duplicate_rows"):
        assert getattr(summary, kind) == Examples(count=0, names=[])
    assert summary.shared_sensors == summary.shared_clips == Examples(count=0, names=[])
    assert summary.absent_tags.count == 7 + 7 + 7
    assert summary.absent_tags.names[:2] == ["train: 2_machinery-impact", "train: 3_non-machinery-impact"]
    assert {path.name for path in output.iterdir()} == {
        *("annotations.csv", "taxonomy.yaml", "index.parquet", "labels.parquet"),
        *("quarantine.csv", "unmatched.csv", "dataset.json"),
    }
    assert sorted(output.parent.iterdir()) == [output, recordings(output)]


def test_two_workers_write_the_same_bytes(source, ingested, tmp_path):
    ingest(config(source), tmp_path / "out", workers=2)
    assert tree(tmp_path / "out") == tree(ingested[0])
    assert tree(recordings(tmp_path / "out")) == tree(recordings(ingested[0]))


def test_its_own_output_is_a_source_and_a_run_replaces_the_last_one(ingested, tmp_path):
    shutil.copytree(ingested[0], tmp_path / "source")
    shutil.copytree(recordings(ingested[0]), tmp_path / "source/audio")
    output = tmp_path / "out"
    for folder in (output, recordings(output)):
        folder.mkdir()
        (folder / "old").touch()
    ingest(config(tmp_path / "source"), output, workers=1)
    assert outcome(output, recordings(output)) == outcome(ingested[0], recordings(ingested[0]))


def test_the_digest_follows_labels_and_audio(source, ingested, tmp_path):
    changed = config(source, coarse="as-published")
    summary = ingest(changed, tmp_path / "out", workers=1)
    assert summary.positives["validate"]["2_machinery-impact"] == 2
    assert summary.digest != ingested[1].digest


def test_the_embedded_data_set_goes_the_same_way(tmp_path):
    small = DEFAULTS.clips.model_copy(update={"train": 3, "validate_": 2, "test": 1})
    embedded = DEFAULTS.model_copy(update={"clips": small})
    for workers in (1, 2):
        summary = ingest(embedded, tmp_path / f"out{workers}", workers)
    assert tree(tmp_path / "out1") == tree(tmp_path / "out2")
    assert summary.clips == {"train": 3, "validate": 2, "test": 1}
    assert not (tmp_path / "out2/source").exists()
    index = pd.read_parquet(tmp_path / "out2/index.parquet")
    assert sorted(index["audio_filename"]) == sorted(path.name for path in recordings(tmp_path / "out2").iterdir())


@pytest.fixture(scope="module")
def damaged(tmp_path_factory):
    """Something of everything that can be wrong, beside good clips."""
    folder = tmp_path_factory.mktemp("damaged") / "data"
    names = ["good", "silent", "empty", "text", "cut", "rate", "short", "long", "nan", "link", "double", "gone", "own"]
    rows = [row(f"{name}.wav") for name in names]
    rows += [row(name) for name in ("../secret.wav", "/etc/passwd", "train/own.wav", "..", "song.mp3", "integers.wav")]
    rows += [row("member.wav", annotator=-1), row("unlabelled.wav", "validate", 5), row("misplaced.wav", "test", 0)]
    rows += [row("good.wav", annotator=7, everything=True), row("good.wav")]
    own = ["good", "cut", "rate", "double", "member", "unlabelled", "stray"]
    paths = [*(f"audio/{name}.wav" for name in own), "audio/deep/double.wav", "train/own.wav", "train/misplaced.wav"]
    make(folder, rows, paths)
    audio = folder / "audio"
    (audio / "empty.wav").touch()
    (audio / "text.wav").write_text("not found")
    (audio / "cut.wav").write_bytes((audio / "cut.wav").read_bytes()[:5000])
    content = (audio / "rate.wav").read_bytes()
    (audio / "rate.wav").write_bytes(content[:24] + (44_100).to_bytes(4, "little") + content[28:])
    soundfile.write(audio / "song.mp3", np.zeros(RATE), RATE)
    soundfile.write(audio / "integers.wav", np.full(RATE, 20_000.0), RATE, subtype="FLOAT")
    soundfile.write(audio / "silent.wav", np.zeros(RATE), RATE)
    soundfile.write(audio / "short.wav", np.zeros(100), RATE)
    soundfile.write(audio / "long.wav", np.zeros(61 * RATE), RATE)
    soundfile.write(audio / "nan.wav", np.full(RATE, np.nan), RATE, subtype="FLOAT")
    for secret in (folder.parent / "secret.wav", folder / "secret.wav"):
        shutil.copy(audio / "good.wav", secret)
    (audio / "link.wav").symlink_to(folder.parent / "nowhere.wav")
    return folder


def test_bad_clips_are_quarantined_with_their_reason(damaged, tmp_path):
    notes = []
    summary = dataset.run(
        config(damaged, max_bad_share=1.0),
        tmp_path / "out",
        recordings(tmp_path / "out"),
        Listener(lambda *call: notes.extend(filter(None, call[3:]))),
        workers=2,
    )
    output = tmp_path / "out"
    found = reasons(output / "quarantine.csv")
    expected = {
        "empty.wav": "empty file",
        "text.wav": "not audio: neither WAV, FLAC nor OGG",
        "cut.wav": "truncated: ",
        "rate.wav": "the header is inconsistent: ",
        "short.wav": "0.0125 s long",
        "long.wav": "61 s long",
        "nan.wav": "8000 of 8000 frames are NaN, infinite or beyond float32",
        "song.mp3": "an MP3 file: convert it to WAV, FLAC or OGG",
        "integers.wav": "samples reach 20000, but floats must lie in -1..1: divide integers of 16 bits by 32768",
        "link.wav": "a broken link",
        "double.wav": "several files of this name: audio/deep/double.wav, audio/double.wav",
        **dict.fromkeys(("../secret.wav", "/etc/passwd", "train/own.wav", ".."), "not a plain file name"),
    }
    assert {name: reason[: len(expected[name])] for name, reason in found.items()} == expected
    assert reasons(output / "unmatched.csv") == {
        "gone.wav": NO_FILE,
        "misplaced.wav": NO_FILE,
        "member.wav": NO_TRUTH,
        "unlabelled.wav": NO_TRUTH,
        "audio/stray.wav": NO_ANNOTATION,
        "train/misplaced.wav": NO_ANNOTATION,
    }
    assert sorted(path.name for path in recordings(output).iterdir()) == ["good.wav", "own.wav", "silent.wav"]
    assert len(pd.read_parquet(output / "labels.parquet")) == len(pd.read_parquet(output / "index.parquet")) == 3
    assert summary.quarantined.count == len(expected)
    assert summary.missing == Examples(count=2, names=["misplaced.wav", "gone.wav"])
    assert summary.unannotated == Examples(count=2, names=["audio/stray.wav", "train/misplaced.wav"])
    assert summary.without_truth == Examples(count=2, names=["member.wav", "unlabelled.wav"])
    assert summary.junk_rows == Examples(count=1, names=["good.wav (annotator 7)"])
    assert "junk rows: good.wav (annotator 7)" in notes
    assert summary.duplicate_rows == Examples(count=1, names=["good.wav (annotator 1)"])
    assert "duplicate rows: good.wav (annotator 1)" in notes
    assert [note for note in notes if note.startswith("quarantined: ") and note.endswith(" and 12 more")]


def test_too_many_bad_clips_fail_with_a_list_that_stays(damaged, tmp_path):
    listing = tmp_path / "out.quarantine.csv"
    with pytest.raises(InputError, match=r"17 of 22 clips .77\.3%, .*is 0\.5.*misplaced\.wav: no such file") as refusal:
        ingest(config(damaged, max_bad_share=0.5), tmp_path / "out", workers=1)
    assert str(listing) in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert len(reasons(listing)) == 17
    assert reasons(listing)["gone.wav"] == NO_FILE
    assert not (tmp_path / "out").exists()
    ingest(config(damaged, max_bad_share=17 / 22), tmp_path / "out", workers=1)
    assert sorted(tmp_path.iterdir()) == [tmp_path / "out", recordings(tmp_path / "out")]


@pytest.mark.parametrize("only", [row("a.wav", annotator=-1), row("a.wav", everything=True)])
def test_nothing_usable_is_refused(tmp_path, only):
    folder = make(tmp_path / "data", [only])
    with pytest.raises(InputError, match="no clip has both audio and ground truth"):
        ingest(config(folder), tmp_path / "out", workers=1)


def test_sensors_that_cross_splits(tmp_path):
    rows = [row("a.wav", sensor=3), row("b.wav", "validate", 0, 3, ["1-1"]), row("c.wav", "test", 0, sensor=4)]
    folder = make(tmp_path / "data", rows)
    with pytest.raises(InputError, match="sensors with clips in two splits: 3; move"):
        ingest(config(folder, shared_sensors="refuse"), tmp_path / "out", workers=1)
    summary = ingest(config(folder), tmp_path / "out", workers=1)
    assert summary.shared_sensors == Examples(count=1, names=["3"])


def test_unknown_sensors_are_not_shared(tmp_path):
    folder = make(tmp_path / "data", [row("a.wav", sensor=""), row("b.wav", "validate", 0, "", ["1-1"])])
    refusing = config(folder, shared_sensors="refuse")
    assert ingest(refusing, tmp_path / "out", workers=1).shared_sensors.count == 0


def test_the_same_audio_in_two_splits(tmp_path):
    rows = [row("a.wav"), row("b.wav", "validate", 0, heard=["1-1"]), row("c.wav", "test", 0), row("d.wav")]
    folder = make(tmp_path / "data", rows)
    shutil.copy(folder / "audio/a.wav", folder / "audio/c.wav")
    shutil.copy(folder / "audio/a.wav", folder / "audio/d.wav")
    with pytest.raises(
        InputError, match=r"same audio is in two splits: test/c\.wav = train/a\.wav = train/d\.wav; keep"
    ):
        ingest(config(folder, shared_clips="refuse"), tmp_path / "out", workers=1)
    summary = ingest(config(folder), tmp_path / "out", workers=1)
    assert summary.shared_clips == Examples(count=1, names=["test/c.wav = train/a.wav = train/d.wav"])
    assert "shared clips: test/c.wav = train/a.wav = train/d.wav" in summary.notes


def test_a_validate_split_without_any_tag_is_refused(tmp_path):
    folder = make(
        tmp_path / "data", [row("a.wav", heard=["1-1"]), row("b.wav", "validate", 0), row("c.wav", "test", 0)]
    )
    with pytest.raises(InputError, match=r"annotations\.csv: no clip of validate has a tag, .*; move clips with tags"):
        ingest(config(folder), tmp_path / "out", workers=1)


@pytest.fixture
def plain(tmp_path):
    """A folder without links, and what the step makes of it."""
    rows = [*(row(f"clip{number}.wav") for number in range(4)), row("v.wav", "validate", 0, heard=["1-1"])]
    folder = make(tmp_path / "plain/data", rows, [*(f"audio/deep/clip{n}.wav" for n in range(4)), "audio/v.wav"])
    ingest(config(folder), tmp_path / "plain/out")
    return folder, tmp_path / "plain/out"


def test_every_file_may_be_a_link(plain, tmp_path):
    folder, expected = plain
    linked = shutil.copytree(folder, tmp_path / "linked")
    for path in filter(lambda path: path.is_file(), sorted(linked.rglob("*"))):
        cached = tmp_path / "cache" / files.sha256(path)
        cached.parent.mkdir(exist_ok=True)
        shutil.move(path, cached)
        path.symlink_to(cached)
    ingest(config(linked), tmp_path / "out")
    assert outcome(tmp_path / "out", recordings(tmp_path / "out")) == outcome(expected, recordings(expected))
    assert not any(path.is_symlink() for path in recordings(tmp_path / "out").iterdir())


@pytest.mark.parametrize("place", ["audio", "audio/deep", "."])
def test_every_folder_may_be_a_link(plain, tmp_path, place):
    folder, expected = plain
    linked = shutil.copytree(folder, tmp_path / "linked")
    shutil.move(linked / place, tmp_path / "other-disk")
    (linked / place).symlink_to(tmp_path / "other-disk")
    ingest(config(linked), tmp_path / "out")
    assert outcome(tmp_path / "out", recordings(tmp_path / "out")) == outcome(expected, recordings(expected))


def test_links_in_a_circle_and_links_to_the_same_folder(plain, tmp_path):
    folder, expected = plain
    (folder / "audio/deep/up").symlink_to(folder / "audio")
    (folder / "audio/again").symlink_to(folder / "audio/deep")
    (folder / "audio/deep/itself").symlink_to("itself")
    ingest(config(folder), tmp_path / "out")
    assert tree(recordings(tmp_path / "out")) == tree(recordings(expected))
    assert reasons(tmp_path / "out/unmatched.csv") == {"audio/again/itself": NO_ANNOTATION}


def test_a_change_behind_a_link_is_a_change(plain):
    folder, _ = plain
    settings = config(folder)
    path = folder / "audio/v.wav"
    shutil.move(path, folder.parent / "v.wav")
    path.symlink_to(folder.parent / "v.wav")
    before = source_version(settings)
    assert source_version(settings) == before
    (folder.parent / "v.wav").write_bytes(path.read_bytes() + bytes(2))
    assert source_version(settings) != before


@pytest.mark.parametrize(("in_table", "on_disk"), [("NFC", "NFD"), ("NFD", "NFC"), ("NFD", "NFD")])
def test_names_match_in_every_unicode_form(tmp_path, in_table, on_disk):
    names = ["Straße größer.wav", "café.wav", "한국.wav"]
    rows = [row(unicodedata.normalize(in_table, name)) for name in names]
    folder = make(tmp_path / "data", rows, [f"audio/{unicodedata.normalize(on_disk, name)}" for name in names])
    summary = ingest(config(folder), tmp_path / "out")
    assert summary.clips["train"] == 3
    index = pd.read_parquet(tmp_path / "out/index.parquet")
    assert set(index["audio_filename"]) == {unicodedata.normalize("NFC", name) for name in names}


def test_two_files_of_one_name_in_two_unicode_forms(tmp_path):
    forms = [unicodedata.normalize(form, "café.wav") for form in ("NFC", "NFD")]
    folder = make(
        tmp_path / "data", [row(forms[0]), row("b.wav")], [*(f"audio/{name}" for name in forms), "audio/b.wav"]
    )
    ingest(config(folder, max_bad_share=0.5), tmp_path / "out")
    assert reasons(tmp_path / "out/quarantine.csv")[forms[0]].startswith("several files of this name")


def test_the_annotations_may_have_another_name(source, tmp_path):
    (tmp_path / "annotations-dev.csv").write_text("sep=;\nsplit;audio_filename\n")
    (tmp_path / "sources.csv").write_text("clip,licence\n")
    assert find_annotations(tmp_path).name == "annotations-dev.csv"
    (tmp_path / "more.csv").write_text("audio_filename\n")
    with pytest.raises(InputError, match=r"needs annotations\.csv, or just one .*; found annotations-dev\.csv, more"):
        find_annotations(tmp_path)
    (tmp_path / "annotations.csv").touch()
    assert find_annotations(tmp_path).name == "annotations.csv"


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "needs annotations.csv, or just one .*found none"),
        (["annotations.csv"], "needs just one of dcase-ust-taxonomy.yaml and taxonomy.yaml; found none"),
        (
            ["annotations.csv", "dcase-ust-taxonomy.yaml", "taxonomy.yaml"],
            "found dcase-ust-taxonomy.yaml, taxonomy.yaml",
        ),
    ],
)
def test_a_folder_without_what_is_needed(tmp_path, names, message):
    folder = tmp_path / "data"
    folder.mkdir()
    for name in names:
        (folder / name).touch()
    with pytest.raises(InputError, match=message):
        ingest(config(folder), tmp_path / "out")
    assert list(tmp_path.iterdir()) == [folder]


def test_no_folder(tmp_path):
    with pytest.raises(InputError, match="no such folder; set dataset"):
        ingest(config(tmp_path / "none"), tmp_path / "out")


@pytest.mark.parametrize("output", ["", "audio", "audio/out", "train", ".."])
def test_the_output_may_not_replace_the_recordings(source, output):
    before = tree(source)
    with pytest.raises(InputError, match="write elsewhere"):
        ingest(config(source), source / output)
    assert tree(source) == before


# Runs the step, and hangs half-way through one copy. Spawned workers run the lines above `if` too.
HANGING = """
import sys, time
from contextlib import contextmanager
from pathlib import Path
from iusp.io import files
from iusp.config.dataset import Dataset
from iusp.reporter import Reporter
from iusp.steps import dataset

finish = files.atomic

@contextmanager
def atomic(path):
    with finish(path) as temporary:
        if path.name == "clip19.wav":
            temporary.write_bytes(b"half")
            print("half-way", flush=True)
            time.sleep(600)
        yield temporary

files.atomic = atomic
if __name__ == "__main__":
    dataset.run(Dataset.model_validate_json(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), Reporter(), workers=1)
"""


def test_a_killed_run_resumes_and_leaves_no_process(tmp_path):
    folder = make(tmp_path / "data", [row(f"clip{number:02d}.wav") for number in range(40)])
    (tmp_path / "hanging.py").write_text(HANGING)
    output = tmp_path / "killed/out"
    process = subprocess.Popen(
        [
            sys.executable,
            tmp_path / "hanging.py",
            config(folder).model_dump_json(by_alias=True),
            output,
            recordings(output),
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "half-way\n"
    process.kill()
    process.communicate(timeout=60)  # returns when the last process that could write there has ended
    [_, work] = sorted(output.parent.iterdir(), key=lambda path: "recordings" in path.name)
    kept = {path.name: path.stat().st_ino for path in work.glob("clip*.wav")}
    assert len(kept) == 19
    assert len(list(work.glob(".clip19.wav.*.part"))) == 1

    ingest(config(folder), output, workers=2)
    assert {name: (recordings(output) / name).stat().st_ino for name in kept} == kept
    ingest(config(folder), tmp_path / "undisturbed", workers=1)
    for written in (output, recordings(output)):
        assert tree(written) == tree(
            tmp_path / "undisturbed" if written == output else recordings(tmp_path / "undisturbed")
        )
    assert sorted(output.parent.iterdir()) == [output, recordings(output)]


def test_a_changed_source_is_not_resumed_from(source, tmp_path):
    folder = tmp_path / "data"
    shutil.copytree(source, folder)

    def key(settings):
        return dataset.work_key(settings, find_source(settings))

    before = key(config(folder))
    assert key(config(folder)) == before
    assert key(config(folder, max_seconds=5.0)) != before
    soundfile.write(folder / "audio/t1.wav", np.zeros(RATE), RATE)
    assert key(config(folder)) != before


def test_the_source_s_version_follows_its_files(source, tmp_path):
    folder = tmp_path / "data"
    shutil.copytree(source, folder)
    before = source_version(config(folder))
    assert source_version(config(folder)) == before
    (folder / "audio/another.wav").write_bytes(b"RIFF")
    assert source_version(config(folder)) != before
