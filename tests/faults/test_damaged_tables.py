"""Annotations, taxonomy and predictions, damaged by hand and by chance."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import pandas as pd
import pytest

from iusp.data.taxonomy import read_taxonomy
from tests.support.damage import called, mutated, refusal
from tests.support.project import ROOT, Tried
from tests.support.sampling import often

TAXONOMY = (ROOT / "iusp/data/taxonomy.yaml").read_text()
TAGS = read_taxonomy(ROOT / "iusp/data/taxonomy.yaml")
ALL_TAGS = [*TAGS.coarse_tags, *TAGS.all_fine_tags]
MUTATIONS = often(60, 15)
BIG = 10_000_000  # letters in one cell

Files = dict[str, bytes]
Damage = Mapping[str, bytes | str]


def annotations() -> str:
    rows = [
        {"split": split, "sensor_id": "5", "audio_filename": f"{split}{clip}.wav", "annotator_id": annotator}
        | {f"{tag}_presence": int((clip + place) % 3 == 0) for place, tag in enumerate(ALL_TAGS)}
        for split, annotator in (("validate", 0), ("train", 1))
        for clip in range(6)
    ]
    return pd.DataFrame(rows).to_csv(index=False)


def predictions() -> str:
    rows = [
        {"audio_filename": f"validate{clip}.wav"} | {tag: clip * place % 7 / 7 for place, tag in enumerate(ALL_TAGS)}
        for clip in range(6)
    ]
    return pd.DataFrame(rows).to_csv(index=False)


def without(text: str, column: str) -> str:
    names, *rows = [line.split(",") for line in text.splitlines()]
    place = names.index(column)
    return "".join(",".join(row[:place] + row[place + 1 :]) + "\n" for row in (names, *rows))


ROWS = annotations()
HEADER, FIRST = ROWS.splitlines()[:2]
LAST = ROWS.splitlines()[-1]
ENGINE = FIRST.replace("validate0.wav,0,1", "validate0.wav,0,{}", 1)
SAID = predictions()
SCORE = "validate1.wav,0.0"


def with_engine(cell: str) -> str:
    return ROWS.replace(FIRST, ENGINE.format(cell))


REFUSED_ANNOTATIONS: Damage = {
    **{
        f"without {name}": without(ROWS, name)
        for name in ("split", "audio_filename", "1-1_small-sounding-engine_presence")
    },
    **{f"{name} renamed": ROWS.replace(name, name.upper(), 1) for name in ("split", "audio_filename", "8-1_dog")},
    **{
        f"{name} twice": "".join(f"{line},{line.split(',')[place]}\n" for line in ROWS.splitlines())
        for place, name in ((0, "split"), (2, "audio_filename"), (3, "annotator_id"), (4, "1_engine_presence"))
    },
    **{f"presence {cell!r}": with_engine(cell) for cell in ("2", "-2", "0.5", "1e400", "nan", "", "x", "True", "0x1")},
    **{
        f"presence {cell!r}": with_engine(cell)
        for cell in ("1\0", "\x1b[2J", "=1+1", "=HYPERLINK(1)", "１", "1_0", "1;")
    },
    "10 MB in a cell": with_engine("7" * BIG),
    "10 MB in the header": f"{'s' * BIG}_presence,{ROWS}",
    "10 MB without a line": "," * BIG,
    "10 MB of columns": f"{','.join(map(str, range(BIG // 8)))},{ROWS}",
    "another tag": ROWS.replace("8_dog_presence", "8_wolf_presence"),
    "UTF-16": ROWS.encode("utf-16"),
    "UTF-32": ROWS.encode("utf-32"),
    "Latin-1": ROWS.replace("validate0", "caf\xe9").encode("latin-1"),
    "NUL in the header": ROWS.replace("split", "split\0", 1),
    "NUL alone": bytes(1000),
    "empty": "",
    "blank lines": "\n\n\n",
    "only the header": f"{HEADER}\n",
    "no header": ROWS.removeprefix(f"{HEADER}\n"),
    "open quote": ROWS.replace("validate0", '"validate0'),
    "open quote at the end": ROWS.removesuffix("\n") + '"',
    "surplus cell": ROWS.replace(LAST, f"{LAST},1"),
    "surplus cells from the first row": ROWS.replace("\n", ",1\n").replace(f"{HEADER},1", HEADER),
    "cells lacking": ROWS.replace(LAST, LAST[:-4]),
    "a split that is none": ROWS.replace("train,", "dev,"),
    "no name": ROWS.replace("validate0.wav", ""),
    "annotator twice, contradicting": f"{ROWS}{FIRST.replace('.wav,0,1', '.wav,0,0')}\n",
    "a clip in two splits": f"{ROWS}{FIRST.replace('validate', 'test', 1)}\n",
    "annotator in words": ROWS.replace(".wav,1,", ".wav,me,"),
    "annotator beyond 32 bit": ROWS.replace(".wav,1,", f".wav,{2**40},"),
    "a picture": b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 10,
    "a ZIP archive": b"PK\x03\x04" + bytes(range(256)) * 10,
    "JSON": json.dumps({"split": "train"}),
}
SAME_ANNOTATIONS: Damage = {
    "semicolons": ROWS.replace(",", ";"),
    "tabs": ROWS.replace(",", "\t"),
    "byte order mark": f"\ufeff{ROWS}",
    "CRLF": ROWS.replace("\n", "\r\n"),
    "CR": ROWS.replace("\n", "\r"),
    "blank lines between": ROWS.replace("\n", "\n\n"),
    "all quoted": "".join(",".join(f'"{cell}"' for cell in line.split(",")) + "\n" for line in ROWS.splitlines()),
    "columns backwards": "".join(",".join(line.split(",")[::-1]) + "\n" for line in ROWS.splitlines()),
    "a column of formulas": "".join(f"{line},=cmd|'/C calc'!A0\n" for line in ROWS.splitlines()),
    "10 MB in a column of nobody's": "".join(
        f"{line},{'x' * (BIG // 12) if place else 'note'}\n" for place, line in enumerate(ROWS.splitlines())
    ),
    "fractions": with_engine("1.0"),
    "a row twice": f"{ROWS}{LAST}\n",
    "no end of the last line": ROWS.removesuffix("\n"),
}
REFUSED_TAXONOMIES: Damage = {
    "empty": "",
    "words": "hello",
    "number": "1",
    "list": "[1, 2]",
    "UTF-16": TAXONOMY.encode("utf-16"),
    "Latin-1": TAXONOMY.encode() + b"# caf\xe9\n",
    "NUL": f"{TAXONOMY}\0",
    "tab": TAXONOMY.replace("    1:", "\t1:", 1),
    "without coarse": TAXONOMY.partition("coarse:")[0],
    "without fine": "coarse:" + TAXONOMY.partition("coarse:")[2],
    "fine twice": f"{TAXONOMY}fine: {{}}\n",
    "swapped": TAXONOMY.replace("coarse:", "x:").replace("fine:", "coarse:").replace("x:", "fine:"),
    "a category less": TAXONOMY.replace("    8: dog\n", ""),
    "a category more": f"{TAXONOMY}    9: cat\n",
    "a category twice": f"{TAXONOMY}    8: cat\n",
    "a category twice, once as text": f'{TAXONOMY}    "8": cat\n',
    "a fine tag twice": TAXONOMY.replace("        1: rock-drill", "        1: rock-drill\n        1: hoe"),
    "a name that is null": TAXONOMY.replace("8: dog", "8: null"),
    "a name that is empty": TAXONOMY.replace("8: dog", "8: ''"),
    "a name that YAML takes for a truth": TAXONOMY.replace("8: dog", "8: no"),
    "a name that is a list": TAXONOMY.replace("8: dog", "8: [dog]"),
    "a name that is a mapping": TAXONOMY.replace("8: dog", "8: {1: dog}"),
    "a name of two lines": TAXONOMY.replace("8: dog", '8: "d\\nog"'),
    "a name that clears the screen": TAXONOMY.replace("8: dog", '8: "\\e[2Jdog"'),
    "half a character": TAXONOMY.replace("8: dog", '8: "\\ud800"'),
    "a key that is null": TAXONOMY.replace("8:", "null:"),
    "a key that is a fraction": TAXONOMY.replace("8:", "8.5:"),
    "a category without fine tags": TAXONOMY.replace("1: dog-barking-whining", "{}"),
    "fine tags as a list": TAXONOMY.replace("1: dog-barking-whining", "- dog-barking-whining"),
    "a Python object": TAXONOMY.replace("8: dog", "8: !!python/object/apply:os.system [touch run]"),
    "aliases that stand for 9^40 words": "b0: &b0 [lol]\n"
    + "".join(f"b{n}: &b{n} [{', '.join([f'*b{n - 1}'] * 9)}]\n" for n in range(1, 41))
    + TAXONOMY.replace("8: dog", "8: *b40"),
    "an alias within itself": TAXONOMY.replace("8: dog", "8: &x [*x]"),
    "lists 5,000 deep": TAXONOMY.replace("8: dog", f"8: {'[' * 5000}"),
    "a number of 5,000 digits": TAXONOMY.replace("8: dog", f"8: {'9' * 5000}"),
    "two documents": f"{TAXONOMY}---\n{TAXONOMY}",
    "a file of 20 MB": TAXONOMY + f"# {'x' * 2 * BIG}\n",
    "CSV": ROWS,
}
REFUSED_PREDICTIONS: Damage = {
    **{
        f"score {cell!r}": SAID.replace(SCORE, f"validate1.wav,{cell}", 1) for cell in ("nan", "inf", "-0.1", "1.1", "")
    },
    **{f"score {cell!r}": SAID.replace(SCORE, f"validate1.wav,{cell}", 1) for cell in ("x", "=1/2", "1e400", "0,5")},
    "10 MB in a cell": SAID.replace(SCORE, f"validate1.wav,{'7' * BIG}", 1),
    "10 MB in the header": SAID.replace("1_engine", "x" * BIG, 1),
    "10 MB without a line": "," * BIG,
    "10 MB of columns": f"{','.join(map(str, range(BIG // 8)))},{SAID}",
    "no clips' names": without(SAID, "audio_filename"),
    "clips' names twice": SAID.replace("1_engine", "audio_filename", 1),
    "a tag twice": SAID.replace("8_dog", "1_engine", 1),
    "another tag": SAID.replace("8_dog", "8_wolf", 1),
    "a clip twice": SAID.replace("validate1", "validate0"),
    "another clip": SAID.replace("validate1", "other"),
    "a clip less": "".join(SAID.splitlines(keepends=True)[:-1]),
    "a surplus cell": SAID.removesuffix("\n") + ",0\n",
    "a cell less": SAID.removesuffix("\n").rpartition(",")[0],
    "cut": SAID[: len(SAID) // 2],
    "NUL": SAID.replace(SCORE, "validate1.wav,0\0", 1),
    "NUL alone": bytes(1000),
    "UTF-16": SAID.encode("utf-16"),
    "Latin-1": SAID.replace("validate1", "caf\xe9").encode("latin-1"),
    "empty": "",
    "only the header": SAID.splitlines()[0],
    "open quote": SAID.replace("validate1", '"validate1'),
    "colons": SAID.replace(",", ":"),
}
SAME_PREDICTIONS: Damage = {
    "semicolons": SAID.replace(",", ";"),
    "decimal commas": SAID.replace(",", ";").replace(".", ",").replace(",wav", ".wav"),
}
WHOLE: Files = {"annotations.csv": ROWS.encode(), "taxonomy.yaml": TAXONOMY.encode(), "predictions.csv": SAID.encode()}


@pytest.fixture
def score(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., object]:
    """A function that runs `iusp score` on the files, one of them damaged."""
    monkeypatch.chdir(tmp_path)

    def run(**changed: bytes) -> object:
        for name, content in (WHOLE | {f"{name}": content for name, content in changed.items()}).items():
            Path(name).write_bytes(content)
        return called("score", "predictions.csv", "--annotations", "annotations.csv", "--taxonomy", "taxonomy.yaml")

    return run


def encoded(content: bytes | str) -> bytes:
    return content if isinstance(content, bytes) else content.encode(errors="surrogatepass")


@pytest.mark.parametrize(
    ("name", "refused", "same"),
    [
        ("annotations.csv", REFUSED_ANNOTATIONS, SAME_ANNOTATIONS),
        ("taxonomy.yaml", REFUSED_TAXONOMIES, {}),
        ("predictions.csv", REFUSED_PREDICTIONS, SAME_PREDICTIONS),
    ],
)
def test_damaged_tables(
    name: str, refused: Damage, same: Damage, score: Callable[..., object], tmp_path: Path, tried: Tried
) -> None:
    undamaged = score()
    assert undamaged.exit_code == 0, undamaged.output
    params = (ROOT / "params.yaml").read_text().replace("source: embedded", "source: folder")
    for what, content in refused.items():
        assert encoded(content) != WHOLE[name], what
        line = refusal(score(**{name: encoded(content)}))
        assert name.partition(".")[0] in line, (what, line)
        if name == "predictions.csv":
            continue
        # The step that takes the table over says the same.
        folder = tmp_path / "recordings"
        folder.mkdir(exist_ok=True)
        for one in WHOLE:
            (folder / one).write_bytes((tmp_path / one).read_bytes())
        (tmp_path / "params.yaml").write_text(params)
        assert name.partition(".")[0] in refusal(called("dataset")), what
    for what, content in same.items():
        assert score(**{name: encoded(content)}).output == undamaged.output, what
    assert not (tmp_path / "run").exists()
    accepted = 0
    for content in mutated(WHOLE[name], MUTATIONS, seed=1):
        done = score(**{name: content})
        if done.exit_code == 0:
            accepted += 1  # such as another digit in a score: a table like any other
            assert 0 <= json.loads(done.output)["micro_auprc"] <= 1
        else:
            refusal(done)
    tried(
        f"{name}: columns, cells, the encoding or quotes are damaged by hand, or a cell contains 10 MB or code",
        len(refused) + len(same),
        f"{len(refused)} files cause a one-line error"
        + (f"; {len(same)} files still have the same content and give the same score" if same else ""),
    )
    tried(
        f"{name}: random bytes are replaced, removed, repeated or inserted",
        MUTATIONS,
        f"{MUTATIONS - accepted} files cause a one-line error; {accepted} files are valid, with other content",
    )
