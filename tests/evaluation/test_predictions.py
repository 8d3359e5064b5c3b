from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import iusp
from iusp.data.taxonomy import read_taxonomy
from iusp.errors import InputError
from iusp.evaluation.metrics import interval, score
from iusp.evaluation.predictions import compare_files, read_predictions, score_file, write_predictions

TAXONOMY = read_taxonomy(Path(iusp.__file__).with_name("data") / "taxonomy.yaml")
COARSE, FINE = list(TAXONOMY.coarse_tags), list(TAXONOMY.all_fine_tags)
CLIPS = [f"00_{number:06}.wav" for number in range(12)]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "predictions.csv"


@pytest.fixture
def annotations(tmp_path):
    """Truth of 12 validate clips, a volunteer's row, and coarse columns that contradict the fine ones in engine."""
    generator = np.random.default_rng(0)
    table = pd.DataFrame(generator.integers(0, 2, (12, 37)), columns=[f"{tag}_presence" for tag in FINE + COARSE])
    table.insert(0, "annotator_id", 0)
    table.insert(0, "audio_filename", CLIPS)
    table.insert(0, "sensor_id", 0)
    table.insert(0, "split", "validate")
    volunteer = table.head(1).assign(annotator_id=5)
    file = tmp_path / "annotations.csv"
    pd.concat([table, volunteer]).to_csv(file, index=False)
    return file


def random_scores(tags, seed=1):
    return np.random.default_rng(seed).random((len(CLIPS), len(tags)))


def test_round_trip_keeps_every_bit(path):
    scores = random_scores(COARSE + FINE)
    scores[0, :4] = 0, 1, 5e-324, np.nextafter(1, 0)
    write_predictions(path, CLIPS, scores, COARSE + FINE)
    table = read_predictions(path, TAXONOMY)
    assert list(table.index) == CLIPS
    assert list(table.columns) == COARSE + FINE
    np.testing.assert_array_equal(table.to_numpy(), scores)
    assert path.read_text().startswith("audio_filename,1_engine,2_machinery-impact")
    assert list(path.parent.iterdir()) == [path]


def test_float32_scores_keep_their_value(path):
    scores = random_scores(COARSE).astype(np.float32)
    write_predictions(path, CLIPS, scores, COARSE)
    np.testing.assert_array_equal(read_predictions(path, TAXONOMY)[COARSE].to_numpy(), scores.astype(float))


@pytest.mark.parametrize("separator", [";", "\t", "|"])
@pytest.mark.parametrize("first", ["", "sep={}\n"])
def test_reads_other_separators_and_decimal_commas(path, separator, first):
    table = pd.DataFrame(random_scores(COARSE).round(6), columns=COARSE)
    table.insert(0, "audio_filename", [f"Gleis 1,{clip}" for clip in CLIPS])
    text = table.to_csv(sep=separator, decimal=",", index=False) + separator * 8 + "\n"
    path.write_text(first.format(separator) + text)
    found = read_predictions(path, TAXONOMY)
    assert list(found.index) == list(table["audio_filename"])
    np.testing.assert_array_equal(found[COARSE], table[COARSE])


def test_missing_column_counts_as_zero(path):
    path.write_text("audio_filename,8_dog\na.wav,0.5\n")
    table = read_predictions(path, TAXONOMY)
    assert table.loc["a.wav", "8_dog"] == 0.5
    assert table.to_numpy().sum() == 0.5


def test_reads_what_a_spreadsheet_writes(path):
    path.write_bytes("\ufeffaudio_filename,8_dog\r\na.wav,0.5\r\n\r\n".encode())
    assert read_predictions(path, TAXONOMY).loc["a.wav", "8_dog"] == 0.5


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "has no predictions; write"),
        (b"audio_filename,8_dog\n", "has no predictions; write"),
        (b"\x89PNG\r\n\x1a\n\x00\xff", "is not a CSV file"),
        (b"\x00\x01\n\x02\x03\n", "lacks the column audio_filename"),
        (b'audio_filename,8_dog\n"' + b"a" * 200_000, "is not a CSV file"),
        (b"file,8_dog\na.wav,0.5\n", "lacks the column audio_filename"),
        (b"audio_filename,dog\na.wav,0.5\n", "column 'dog' is not a tag"),
        (b"audio_filename,8_dog,8_dog\na.wav,0.5,0.5\n", "column 8_dog occurs twice"),
        (b"audio_filename,8_dog\na.wav,0.5\na.wav,0.5\n", "line 3 repeats the clip a.wav of line 2"),
        (b"audio_filename,8_dog\na.wav\n", "line 2 has 1 cells, but the header has 2"),
        (b"audio_filename,8_dog\n\na.wav,0.5,1\n", "line 3 has 3 cells, but the header has 2"),
        (b"audio_filename,8_dog\na.wav,nan\n", "line 2, column 8_dog: 'nan' must be a number from 0 to 1"),
        (b"audio_filename,8_dog\na.wav,\n", "line 2, column 8_dog: '' must"),
        (b"audio_filename,8_dog\na.wav,high\n", "line 2, column 8_dog: 'high' must"),
        (b"audio_filename,8_dog\na.wav,0\nb.wav,1.5\n", "line 3, column 8_dog: '1.5' must"),
        (b"audio_filename,8_dog\na.wav,-1e-9\n", "line 2, column 8_dog: '-1e-9' must"),
    ],
)
def test_refuses(path, content, problem):
    path.write_bytes(content)
    with pytest.raises(InputError) as refusal:
        read_predictions(path, TAXONOMY)
    message = str(refusal.value)
    assert message.startswith(f"{path}: {problem}")
    assert "\n" not in message


def test_refuses_a_missing_file(path):
    with pytest.raises(InputError, match="No such file"):
        read_predictions(path, TAXONOMY)


@pytest.mark.parametrize("coarse", ["from-fine", "as-published"])
@pytest.mark.parametrize("level", ["coarse", "fine"])
def test_scores_a_file_whatever_its_order(path, annotations, level, coarse):
    scores = random_scores(COARSE + FINE)
    write_predictions(path, CLIPS[::-1], scores[::-1], COARSE + FINE)
    result = score_file(path, annotations, TAXONOMY, "validate", level, coarse)

    table = pd.read_csv(annotations).head(12)
    fine, published = (table[[f"{tag}_presence" for tag in tags]].to_numpy(bool) for tags in (FINE, COARSE))
    from_fine = [fine[:, [tag[0] == category for tag in FINE]].any(axis=1) for category in TAXONOMY.coarse]
    truth = {"fine": fine, "coarse": published if coarse == "as-published" else np.stack(from_fine, axis=1)}[level]
    expected = score(truth, scores[:, :8] if level == "coarse" else scores[:, 8:], TAXONOMY, level)
    assert result == {
        "micro_auprc": expected.micro_auprc,
        "micro_f1": expected.micro_f1,
        "macro_auprc": expected.macro_auprc,
        "classwise": expected.classwise,
        "absent": expected.absent,
    }


def test_refuses_other_clips_than_the_truths(path, annotations):
    write_predictions(path, [*CLIPS[4:], "x.wav"], random_scores(COARSE)[:9], COARSE)
    with pytest.raises(InputError) as refusal:
        score_file(path, annotations, TAXONOMY, "validate", "coarse", "from-fine")
    assert str(refusal.value) == (
        f"{path}: must have exactly the 12 clips of split validate in {annotations}; it lacks 4 (00_000000.wav, "
        "00_000001.wav, 00_000002.wav, …) and has 1 other (x.wav)"
    )


def test_refuses_a_split_without_truth(path, annotations):
    write_predictions(path, CLIPS, random_scores(COARSE), COARSE)
    with pytest.raises(InputError, match="split test has no agreed ground truth"):
        score_file(path, annotations, TAXONOMY, "test", "coarse", "from-fine")


def test_refuses_a_level_that_the_annotations_lack(path, annotations):
    table = pd.read_csv(annotations)
    table.drop(columns=[f"{tag}_presence" for tag in FINE]).to_csv(annotations, index=False)
    write_predictions(path, CLIPS, random_scores(COARSE), COARSE)
    with pytest.raises(InputError, match="lacks 1-1_small-sounding-engine_presence, which level fine needs"):
        score_file(path, annotations, TAXONOMY, "validate", "fine", "as-published")


def test_compares_on_the_clips_that_both_have(path, annotations):
    """A twin that draws the shared clips again and again, and scores both systems on each draw."""
    ours, others = (random_scores(COARSE, seed) for seed in (1, 2))
    reference = path.with_name("reference.csv")
    write_predictions(path, [*CLIPS[:10], "new.wav"], ours[:11], COARSE)
    write_predictions(reference, CLIPS[:2:-1], others[:2:-1], COARSE)
    result = compare_files(path, reference, annotations, TAXONOMY, "validate", "coarse", "as-published", 30, 5)

    table = pd.read_csv(annotations).head(12)
    truth = table[[f"{tag}_presence" for tag in COARSE]].to_numpy(bool)[3:10]
    pair = ours[3:10], others[3:10]
    assert result["clips"] == {"compared": 7, "split": 12, "predictions": 11, "reference": 9}
    scored = [score(truth, one, TAXONOMY, "coarse") for one in pair]
    assert [result[name]["macro_auprc"] for name in ("predictions", "reference")] == [one.macro_auprc for one in scored]
    assert result["difference"] == scored[0].micro_auprc - scored[1].micro_auprc
    generator, differences = np.random.default_rng(5), []
    for _ in range(30):
        drawn = generator.integers(7, size=7)
        first, second = (score(truth[drawn], one[drawn], TAXONOMY, "coarse").micro_auprc for one in pair)
        differences.append(first - second)
    assert (result["low"], result["high"]) == interval(np.array(differences))
    assert result["probability_worse"] == np.mean(np.array(differences) < 0)

    write_predictions(reference, ["new.wav"], others[:1], COARSE)
    with pytest.raises(InputError, match=r"shares no clip of split validate .* with .*reference\.csv"):
        compare_files(path, reference, annotations, TAXONOMY, "validate", "coarse", "from-fine", 30, 5)
