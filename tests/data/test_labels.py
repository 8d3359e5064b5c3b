from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

import iusp
from iusp.data import labels
from iusp.data.labels import derive_labels, derive_truth, read_annotations, training_targets
from iusp.data.taxonomy import Taxonomy, read_taxonomy
from iusp.errors import InputError

SMALL = Taxonomy(
    coarse={"1": "1_engine", "2": "2_dog"},
    fine={"1": ("1-1_small", "1-2_large"), "2": ("2-1_bark",)},
    uncertain={"1": "1-X_other"},
)
FINE = SMALL.all_fine_tags
FULL = read_taxonomy(Path(iusp.__file__).parent / "data/taxonomy.yaml")
SONYC = Path(__file__).parents[3] / "shared/data/sonyc-ust-2019"


def row(name="a.wav", annotator=1, split="train", tags="", taxonomy=SMALL, **others):
    """One annotation; `tags` are the ids of what was heard, as in '1 1-X'."""
    every = taxonomy.coarse_tags + taxonomy.all_fine_tags
    presences = {f"{tag}_presence": int(tag.split("_")[0] in tags.split()) for tag in every}
    return {"split": split, "sensor_id": "7", "audio_filename": name, "annotator_id": annotator} | presences | others


def write(folder, rows, drop=()):
    path = folder / "annotations.csv"
    pd.DataFrame(rows).drop(columns=list(drop)).to_csv(path, index=False)
    return path


def targets(frame, name):
    return frame.set_index("audio_filename").drop(columns="split").loc[name].to_dict()


def test_reads_what_was_written(tmp_path):
    rows = [row(tags="1 1-2", weather=3), row(annotator=2, split="train")]
    frame = read_annotations(write(tmp_path, rows), SMALL)
    assert list(frame.columns) == list(row())
    assert frame.to_dict("records") == [row(tags="1 1-2"), row(annotator=2)]
    assert frame["1_engine_presence"].dtype == np.int8
    assert frame.attrs == {"junk_rows": [], "duplicate_rows": []}


def test_place_and_time_stay_as_they_are(tmp_path):
    rows = [row(borough=3, hour=9, latitude="40.70", weather=1), row(annotator=2)]
    frame = read_annotations(write(tmp_path, rows), SMALL)
    assert frame[["borough", "latitude", "hour"]].to_numpy().tolist() == [["3.0", "40.70", "9.0"], ["", "", ""]]
    assert set(frame) - set(row()) == {"borough", "latitude", "hour"}


@pytest.mark.parametrize("text", ["1", "1.0", "1.00", " 1"])
def test_a_presence_may_be_spelt_as_a_fraction(tmp_path, text):
    frame = read_annotations(write(tmp_path, [row() | {"1_engine_presence": text}]), SMALL)
    assert frame["1_engine_presence"].tolist() == [1]


def test_sensors_and_names_stay_text(tmp_path):
    frame = read_annotations(write(tmp_path, [row(name="001", sensor_id="007"), row(name="NA")]), SMALL)
    assert frame[["audio_filename", "sensor_id"]].to_numpy().tolist() == [["001", "007"], ["NA", "7"]]


@pytest.mark.parametrize("tags", [SMALL.coarse_tags, SMALL.all_fine_tags])
def test_either_kind_of_tags_is_enough_and_annotator_and_sensor_may_lack(tmp_path, tags):
    drop = [f"{tag}_presence" for tag in tags]
    frame = read_annotations(write(tmp_path, [row()], [*drop, "annotator_id", "sensor_id"]), SMALL)
    assert not set(drop) & set(frame.columns)
    assert frame["annotator_id"].tolist() == [0]
    assert frame["sensor_id"].tolist() == [""]


def test_a_row_that_claims_everything_is_dropped_and_reported(tmp_path):
    everything = " ".join(tag.split("_")[0] for tag in FULL.coarse_tags + FULL.all_fine_tags)
    coarse = " ".join(FULL.coarse)
    rows = [row(annotator=n, tags=tags, taxonomy=FULL) for n, tags in enumerate([coarse, everything, ""])]
    frame = read_annotations(write(tmp_path, rows), FULL)
    assert frame["annotator_id"].tolist() == [0, 2]
    assert frame.attrs["junk_rows"] == ["a.wav (annotator 1)"]


@pytest.mark.parametrize("annotator", [0, 1])
def test_a_row_that_is_there_twice_is_dropped_and_reported(tmp_path, annotator):
    rows = [row(annotator=annotator, tags="1"), row(annotator=2), row(annotator=annotator, tags="1", weather=3)]
    frame = read_annotations(write(tmp_path, rows), SMALL)
    assert frame["annotator_id"].tolist() == [annotator, 2]
    assert frame.attrs == {"junk_rows": [], "duplicate_rows": [f"a.wav (annotator {annotator})"]}


def test_a_row_that_claims_everything_twice_is_dropped_twice(tmp_path):
    everything = " ".join(tag.split("_")[0] for tag in FULL.coarse_tags + FULL.all_fine_tags)
    rows = [row(taxonomy=FULL), *[row(annotator=7, tags=everything, taxonomy=FULL)] * 2]
    frame = read_annotations(write(tmp_path, rows), FULL)
    assert frame["annotator_id"].tolist() == [1]
    assert frame.attrs["junk_rows"] == frame.attrs["duplicate_rows"] == ["a.wav (annotator 7)"]


def test_with_few_labels_a_clip_may_have_them_all(tmp_path):
    frame = read_annotations(write(tmp_path, [row(tags="1 1-1 1-2 1-X 2 2-1")]), SMALL)
    assert len(frame) == 1


def test_all_sounds_of_another_vocabulary_may_be_in_a_clip(tmp_path):
    taxonomy = Taxonomy(
        coarse={str(n): f"{n}_thing" for n in range(1, 21)},
        fine={str(n): (f"{n}-1_kind",) for n in range(1, 21)},
        uncertain={},
    )
    tags = taxonomy.coarse_tags + taxonomy.all_fine_tags
    rows = [{"split": "train", "audio_filename": "a.wav"} | {f"{tag}_presence": 1 for tag in tags}]
    frame = read_annotations(write(tmp_path, rows), taxonomy)
    assert len(frame) == 1
    assert frame.attrs["junk_rows"] == []


def test_a_category_may_have_no_fine_tags(tmp_path):
    mixed = Taxonomy({"1": "1_engine", "2": "2_dog"}, {"1": ("1-1_small", "1-2_large"), "2": ()}, {})
    rows = [row(tags="1-2"), row("b.wav", tags="2"), row("c.wav")]
    frame = read_annotations(
        write(tmp_path, rows, ["1_engine_presence", "1-X_other_presence", "2-1_bark_presence"]), mixed
    )
    found = derive_labels(frame, mixed, "any", "from-fine").set_index("audio_filename")
    assert found["1_engine"].tolist() == [1, 0, 0]
    assert found["2_dog"].tolist() == [0, 1, 0]
    with pytest.raises(InputError, match=r"lacks coarse columns .1_engine_presence.* and fine columns .2_dog_presence"):
        read_annotations(
            write(tmp_path, rows, ["1_engine_presence", "2_dog_presence", "1-X_other_presence", "2-1_bark_presence"]),
            mixed,
        )


def test_no_category_needs_fine_tags(tmp_path):
    flat = Taxonomy({"1": "1_engine", "2": "2_dog"}, {"1": (), "2": ()}, {})
    fine = [name for name in row() if "-" in name and name.endswith("_presence")]
    frame = read_annotations(write(tmp_path, [row(tags="2"), row("b.wav", tags="1")], fine), flat)
    found = derive_labels(frame, flat, "any", "from-fine")
    assert found[["1_engine", "2_dog"]].to_numpy().tolist() == [[0, 1], [1, 0]]
    targets, mask, names = training_targets(found, flat, "both")
    assert names == ["1_engine", "2_dog"]
    assert mask.all()
    assert targets.tolist() == [[0, 1], [1, 0]]


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("first", ["", "sep={}\n", "sep={}{}{}\n"])
@pytest.mark.parametrize("end", ["", "{0}{0}{0}{0}{0}{0}{0}{0}\n\n{0}\n"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_tables_as_spreadsheets_write_them(tmp_path, separator, first, end, encoding):
    rows = [row(name="Bahnhof, Gleis 1; größer|kleiner.wav", tags="1-1"), row("b.wav", tags="2-1", annotator=4)]
    frame = read_annotations(write(tmp_path, rows), SMALL)
    text = pd.DataFrame(rows).to_csv(sep=separator, index=False)
    path = tmp_path / "other.csv"
    path.write_text(first.format(*separator * 3) + text + end.format(separator), encoding=encoding)
    pd.testing.assert_frame_equal(read_annotations(path, SMALL), frame)


def test_errors_name_the_row_of_the_file(tmp_path):
    path = tmp_path / "annotations.csv"
    rows = [row(), row("b.wav") | {"2_dog_presence": 2}]
    header, *lines = pd.DataFrame(rows).to_csv(sep=";", index=False).splitlines()
    path.write_text("\n".join(["sep=;", header, lines[0], "", ";;", lines[1]]))
    with pytest.raises(InputError, match="row 6, column 2_dog_presence: '2' must"):
        read_annotations(path, SMALL)


@pytest.mark.parametrize(
    ("rows", "drop", "message"),
    [
        ([row()], ["split"], "lacks the column split"),
        ([row()], ["audio_filename"], "lacks the column audio_filename"),
        ([row()], ["1_engine_presence", "1-X_other_presence"], "1_engine_presence.*1-X_other_presence"),
        ([row(**{"3_bird_presence": 1})], [], "3_bird_presence is not a tag"),
        ([row(**{"1_engine_presence.1": 1})], [], "1_engine_presence occurs twice"),
        ([row(), row(annotator=2) | {"2_dog_presence": 2}], [], "row 3, column 2_dog_presence: '2' must"),
        ([row() | {"2_dog_presence": "yes"}], [], "row 2, column 2_dog_presence: 'yes' must"),
        ([row() | {"2_dog_presence": ""}], [], "row 2, column 2_dog_presence: '' must"),
        ([row() | {"2_dog_presence": 0.5}], [], "row 2, column 2_dog_presence: '0.5' must"),
        ([row() | {"2_dog_presence": "inf"}], [], "row 2, column 2_dog_presence: 'inf' must"),
        ([row(annotator="me")], [], "row 2, column annotator_id: 'me' must"),
        ([row(annotator=1e300)], [], "row 2, column annotator_id: '1e\\+300' must"),
        ([row(split="dev")], [], "row 2, column split: 'dev' must be one of train, validate, test"),
        ([row(name="")], [], "row 2, column audio_filename: '' must name"),
        (
            [row(), row(), row(annotator=3, split="test")],
            [],
            "row 4, column audio_filename: 'a.wav' is in another split",
        ),
        ([row(), row(tags="2")], [], "row 3, column audio_filename: 'a.wav' has another row of the same annotator"),
        ([row(), row(), row(tags="2"), row()], [], "row 4, .*another row of the same annotator .*1 such rows among 4"),
        ([row(borough=1), row(borough=3)], [], "row 3, .*another row of the same annotator"),
        ([row(), row(tags="2", annotator=2)], ["annotator_id"], "'a.wav' has another row of the same annotator"),
    ],
)
def test_refuses_a_wrong_table(tmp_path, rows, drop, message):
    with pytest.raises(InputError, match=f"annotations.csv: .*{message}") as refusal:
        read_annotations(write(tmp_path, rows, drop), SMALL)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a readable CSV"),
        (b"\n\n", "not a readable CSV"),
        (b"split,audio_filename\ntrain,\xff\xfe.wav\n", "not a readable CSV"),
        ("split,audio_filename\n".encode("utf-16"), "not a readable CSV"),
        (b"split,audio_filename\ntrain,a.wav\ntrain,a.wav,1\n", "not a readable CSV"),
        (b"split,audio_filename\ntrain,a.wav,1\n", "row 2 has more cells"),
        (b"split,audio_filename\n", "has no annotations"),
        (b"split:audio_filename\ntrain:a.wav\n", "lacks the column split, audio_filename"),
        (b"split;audio_filename\n;\n;\n", "has no annotations"),
    ],
)
def test_refuses_a_file_that_is_no_such_csv(tmp_path, content, message):
    path = tmp_path / "annotations.csv"
    path.write_bytes(content)
    with pytest.raises(InputError, match=f"annotations.csv: .*{message}") as refusal:
        read_annotations(path, SMALL)
    assert "\n" not in str(refusal.value)


def test_refuses_a_missing_file(tmp_path):
    with pytest.raises(InputError, match="No such file"):
        read_annotations(tmp_path / "annotations.csv", SMALL)


def test_many_rows_are_read_like_few(tmp_path, monkeypatch):
    rows = [row(name=f"{number}.wav", annotator=number % 3) for number in range(7)]
    whole = read_annotations(write(tmp_path, rows), SMALL)
    monkeypatch.setattr(labels, "ROWS", 3)
    pd.testing.assert_frame_equal(read_annotations(write(tmp_path, rows), SMALL), whole)
    for wrong, message in (
        (rows[5] | {"2_dog_presence": 2}, "'2' must"),
        (rows[0] | {"split": "test"}, "0.wav' is in"),
    ):
        with pytest.raises(InputError, match=rf"row 7, .*{message}"):
            read_annotations(write(tmp_path, [*rows[:5], wrong, rows[6]]), SMALL)


def test_a_member_may_have_several_rows_of_a_clip(tmp_path):
    assert len(read_annotations(write(tmp_path, [row(annotator=-3), row(annotator=-3)]), SMALL)) == 2


# What `derive_labels` should do, a clip and a tag at a time.
def naive_label(rows, split, tag, rule, coarse):
    if split == "train" and any(annotator > 0 for annotator, _ in rows):
        used = [presences for annotator, presences in rows if annotator > 0]
    else:
        used = [presences for annotator, presences in rows if annotator == 0]
    votes = []
    for presences in used:
        vote = presences[tag]
        if coarse == "from-fine" and "-" not in tag.split("_")[0]:
            fine = [presences[name] for name in FINE if name[0] == tag[0]]
            vote = 1 if 1 in fine else 0 if 0 in fine else -1
        if vote != -1:
            votes.append(vote)
    yes = sum(votes)
    if rule == "any":
        return float(yes > 0)
    if rule == "majority":
        return float(yes > len(votes) - yes)
    return yes / len(votes) if votes else 0.0


TAGS = SMALL.coarse_tags + FINE
presences = st.fixed_dictionaries({tag: st.sampled_from([-1, 0, 1]) for tag in TAGS})
clips = st.dictionaries(
    st.sampled_from(["a.wav", "b.wav", "c.wav"]),
    st.tuples(
        st.sampled_from(labels.SPLITS),
        st.lists(st.tuples(st.integers(-1, 3), presences), min_size=1, max_size=4, unique_by=lambda pair: pair[0]),
    ),
    min_size=1,
)


@pytest.mark.integration
@given(clips, st.sampled_from(["any", "majority", "mean"]), st.sampled_from(["from-fine", "as-published"]))
def test_labels_are_those_of_a_naive_twin(clips, rule, coarse):
    annotations = pd.DataFrame(
        [
            {"split": split, "audio_filename": name, "annotator_id": annotator}
            | {f"{tag}_presence": presence for tag, presence in presences.items()}
            for name, (split, rows) in clips.items()
            for annotator, presences in rows
        ]
    )
    frame = derive_labels(annotations, SMALL, rule, coarse)
    expected = {
        name: {tag: pytest.approx(naive_label(rows, split, tag, rule, coarse)) for tag in TAGS}
        for name, (split, rows) in clips.items()
        if any(annotator == 0 or (split == "train" and annotator > 0) for annotator, _ in rows)
    }
    assert {name: targets(frame, name) for name in frame["audio_filename"]} == expected
    assert list(frame.columns) == ["audio_filename", "split", *TAGS]
    assert (frame[list(TAGS)].dtypes == np.float32).all()
    order = list(zip(frame["split"], frame["audio_filename"], strict=True))
    assert order == sorted(order)

    for split in labels.SPLITS:
        truth = derive_truth(annotations, SMALL, split, coarse)
        agreed = {
            name: {tag: bool(naive_label([pair], split, tag, "any", coarse)) for tag in TAGS}
            for name, (home, rows) in clips.items()
            for pair in rows
            if home == split and pair[0] == 0
        }
        assert truth.to_dict("index") == agreed
        assert list(truth.index) == sorted(truth.index)


def test_as_published_needs_the_coarse_columns_and_from_fine_the_fine_ones(tmp_path):
    fine = [f"{tag}_presence" for tag in FINE]
    coarse = [f"{tag}_presence" for tag in SMALL.coarse_tags]
    only_coarse = read_annotations(write(tmp_path, [row(tags="1")], fine), SMALL)
    only_fine = read_annotations(write(tmp_path, [row(tags="1-X")], coarse), SMALL)
    with pytest.raises(InputError, match=r"choose coarse: as-published"):
        derive_labels(only_coarse, SMALL, "any", "from-fine")
    with pytest.raises(InputError, match=r"choose coarse: from-fine"):
        derive_truth(only_fine, SMALL, "train", "as-published")
    assert targets(derive_labels(only_coarse, SMALL, "any", "as-published"), "a.wav") == {"1_engine": 1, "2_dog": 0}
    assert targets(derive_labels(only_fine, SMALL, "any", "from-fine"), "a.wav")["1_engine"] == 1


LABELS = pd.DataFrame(
    [[1, 0, 1, 0, 0, 0], [1, 1, 0, 0, 1 / 3, 1]], columns=["1_engine", "2_dog", *FINE[:2], FINE[2], FINE[3]], dtype="f4"
)


@pytest.mark.parametrize(
    ("tags", "names", "second_mask"),
    [
        ("coarse", ["1_engine", "2_dog"], [True, True]),
        ("fine", ["1-1_small", "1-2_large", "2-1_bark"], [False, False, True]),
        ("both", ["1_engine", "2_dog", "1-1_small", "1-2_large", "2-1_bark"], [True, True, False, False, True]),
    ],
)
def test_fine_tags_are_masked_where_the_kind_is_uncertain(tags, names, second_mask):
    values, mask, found = training_targets(LABELS, SMALL, tags)
    assert found == names
    assert (values.dtype, mask.dtype) == (np.float32, np.bool_)
    np.testing.assert_array_equal(values, LABELS[names].to_numpy())
    assert mask.tolist() == [[True] * len(names), second_mask]


@pytest.mark.parametrize(("lost", "tags"), [("2_dog", "both"), ("2-1_bark", "fine"), ("1-X_other", "fine")])
def test_targets_need_their_columns(lost, tags):
    with pytest.raises(InputError, match=f"lack {lost}; set teacher.tags"):
        training_targets(LABELS.drop(columns=lost), SMALL, tags)


@pytest.mark.shared
class TestSonyc:
    """The counts that SONYC-UST.md gives, over all rows; one junk row is a training volunteer's."""

    TRAIN = (1269, 634, 276, 244, 549, 125, 778, 151)
    VALIDATE = (223, 16, 73, 23, 86, 25, 199, 6)

    def positives(self, coarse):
        frame = read_annotations(SONYC / "annotations.csv", FULL)
        counts = derive_labels(frame, FULL, "any", coarse).groupby("split")[list(FULL.coarse_tags)].sum()
        truth = derive_truth(frame, FULL, "validate", coarse)[list(FULL.coarse_tags)].sum()
        assert truth.tolist() == counts.loc["validate"].tolist()
        return tuple(counts.loc["train"]), tuple(counts.loc["validate"])

    def test_the_two_junk_rows(self):
        frame = read_annotations(SONYC / "annotations.csv", FULL)
        assert frame.attrs["junk_rows"] == ["00_000066.wav (annotator 95)", "31_003024.wav (annotator 1167)"]
        assert len(frame) == 10_349 - 2
        assert frame.groupby("split")["audio_filename"].nunique().to_dict() == {"train": 2351, "validate": 443}

    def test_positives_with_the_junk_row(self, monkeypatch):
        monkeypatch.setattr(labels, "SONYC_UST", None)
        assert self.positives("from-fine") == (self.TRAIN, self.VALIDATE)
        train, validate = list(self.TRAIN), list(self.VALIDATE)
        train[1], validate[1] = 848, 88
        assert self.positives("as-published") == (tuple(train), tuple(validate))

    def test_positives_without_the_junk_row(self):
        train, validate = self.positives("from-fine")
        assert validate == self.VALIDATE
        assert [full - clean for full, clean in zip(self.TRAIN, train, strict=True)] == [1] * 8

    def test_fine_tags_without_a_validate_positive(self):
        truth = derive_truth(read_annotations(SONYC / "annotations.csv", FULL), FULL, "validate", "from-fine")
        absent = [tag.split("_")[0] for tag in FULL.all_fine_tags if not truth[tag].any()]
        assert absent == ["2-3", "2-4", "5-2", "5-X", "7-3"]
