"""What one step wrote and the next one reads, damaged in between."""

import io
import json
import os
import random
import shutil
import struct
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load, save

from iusp.io.files import sha256
from tests.support.damage import called, is_one_line, mutated
from tests.support.local_servers import environment
from tests.support.project import Project, Tried, merged
from tests.support.sampling import often, sampled

Damaged = Iterator[tuple[str, bytes | None]]
Make = Callable[[bytes], Damaged]
CHECKPOINTS = often(30, 6)  # damaged by chance
STEP = 4  # a sample has every fourth damage of a file
PASSING = {
    "floors": {"micro_auprc": 0, "macro_auprc": 0},
    "budgets": {"latency_ms": {"float32.onnx": 10_000, "int8.onnx": 10_000}},
    "parity": {"auprc_loss": 1},
}


class Threads(ThreadPoolExecutor):
    """Stands for processes, of which each would import torch anew."""

    def __init__(self, workers: int, context: object, begin: object, arguments: tuple[Any, Any]) -> None:
        super().__init__(1, initializer=arguments[0], initargs=arguments[1])


class Code:
    """What a pickle would run."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch run",)


def anything(content: bytes) -> Damaged:
    yield "empty", b""
    yield "cut", content[: len(content) // 2]
    yield "zeros", bytes(len(content))
    yield "noise", random.Random(0).randbytes(len(content))
    yield "another kind", b'{"a": 1}\n'
    yield "missing", None


def stored(array: Any) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=True)
    return stream.getvalue()


def npy(header: str) -> bytes:
    text = header.encode() + b" " * (63 - (len(header) + 10) % 64) + b"\n"
    return b"\x93NUMPY\x01\0" + struct.pack("<H", len(text)) + text + bytes(1000)


def arrays(content: bytes) -> Damaged:
    yield from anything(content)
    array = np.load(io.BytesIO(content))
    yield "a byte less", content[:-1]
    yield "other numbers", stored(array.astype(np.float32))
    yield "a pickle", stored(np.array([Code()] * len(array), dtype=object))
    yield "a clip less", stored(array[:-1])
    yield "one number", stored(np.float16(1))
    fields = "'fortran_order': False, 'shape': "
    for shape in ("(10**15, 9)", f"({10**15}, 9)", f"({10**30}, 9)", "(-1, 9)", "(1.5,)", "None"):
        yield f"shape {shape}", npy(f"{{'descr': '<f2', {fields}{shape}, }}")
    yield "code", npy(f"{{'descr': __import__('os').system('touch run'), {fields}(1,), }}")
    yield "brackets", npy("(" * 9000)
    yield "minuses", npy("-" * 9000 + "1")
    yield "format 9", content[:6] + b"\x09\0" + content[8:]
    yield "a header of 64 kB", content[:8] + b"\xff\xff" + content[10:]
    for number, header in enumerate(mutated(content[:80], 20, seed=0)):
        if number % 6 != 1 and header[:80] != content[:80]:  # a flipped bit may fall into the padding
            yield f"header by chance {number}", header.replace(b"float", b"") + b"\xff" * 8 + content[200:]


def weights(content: bytes) -> Damaged:
    yield from anything(content)
    length = struct.unpack("<Q", content[:8])[0]
    header, body = json.loads(content[8 : 8 + length]), content[8 + length :]
    tensors = load(content)
    name = next(one for one, tensor in tensors.items() if tensor.is_floating_point())

    def described(changed: dict[str, Any]) -> bytes:
        text = json.dumps(changed).encode()
        return struct.pack("<Q", len(text)) + text + body

    for size in (2**63, 2**30, 0):
        yield f"a header of {size} bytes", struct.pack("<Q", size) + content[8:]
    yield "other numbers", described(header | {name: header[name] | {"dtype": "F64"}})
    yield "a huge shape", described(header | {name: header[name] | {"shape": [2**40]}})
    yield "offsets beyond", described(header | {name: header[name] | {"data_offsets": [0, 2**50]}})
    yield "a name lost", described({one: value for one, value in header.items() if one != name})
    yield "another name", described({"other" if one == name else one: value for one, value in header.items()})
    yield "one more", save(tensors | {"other": torch.zeros(1)})
    yield "flat", save({one: tensor.flatten() for one, tensor in tensors.items()})
    yield "NaN", save({one: torch.full_like(tensor, float("nan")) for one, tensor in tensors.items()
                       if tensor.is_floating_point()} | {one: tensor for one, tensor in tensors.items()
                                                         if not tensor.is_floating_point()})  # fmt: skip


def objects(*keys: str) -> Make:
    """Return what damages a JSON object, and each of its keys, which may be dotted."""

    def damaged(content: bytes) -> Damaged:
        yield from anything(content)
        yield "a list", b"[]"
        yield "lists 100,000 deep", b"[" * 100_000
        yield "a number of 5,000 digits", b'{"a": ' + b"9" * 5000 + b"}"
        yield "UTF-16", content.decode().encode("utf-16")
        for dotted in keys:
            for value in (None, "words", -1.5, float("nan"), "lost"):
                document = json.loads(content)
                section = document
                *above, last = dotted.split(".")
                for key in above:
                    section = section[key]
                if isinstance(section[last], str) and value == "words":
                    continue
                if value == "lost":
                    del section[last]
                else:
                    section[last] = value
                yield f"{dotted} {value}", json.dumps(document).encode()

    return damaged


def tables(content: bytes) -> Damaged:
    yield from anything(content)
    yield "words", content.replace(b"1", b"x")
    yield "semicolons", content.replace(b",", b";")


FEATURES = objects(
    "config", "config.hop_length", "digest", "mean", "std", "clips", "clips.train", "sha256", "sha256.train"
)
NETWORK = ("architecture", "width", "tags", "features", "features.mel_bands", "features_digest", "parameters", "sha256")
METRICS = objects(
    "split", "teacher", "teacher.sha256", "teacher.coarse", "students", "students.small", "students.small.seeds",
    "students.small.best_seed", "students.small.coarse.micro_auprc", "students.small.weights", "students.small.macs",
    "students.small.validate_micro_auprc",
)  # fmt: skip
STUDENT, TEACHER = ("student", "small"), Path("models/teacher")
PLAN: list[tuple[str, Make, list[tuple[str, ...]]]] = [
    ("data/dataset/index.parquet", anything, [("features",)]),
    ("data/dataset/labels.parquet", anything, [("teacher",), STUDENT, ("evaluation",)]),
    ("data/dataset/taxonomy.yaml", anything, [("teacher",), ("evaluation",)]),
    ("data/dataset/dataset.json", objects("digest"), [("teacher",), ("registration",)]),
    ("data/features/index.parquet", anything, [("teacher",), ("evaluation",)]),
    ("data/features/features.json", FEATURES, [("teacher",), ("evaluation",)]),
    ("data/features/train.npy", arrays, [("teacher",)]),
    ("data/features/validate.npy", arrays, [("teacher",)]),
    ("data/features/test.npy", arrays, [("evaluation",)]),
    ("models/teacher/config.json", objects("predicts", *NETWORK), [("evaluation",)]),
    ("models/teacher/weights.safetensors", weights, [STUDENT, ("evaluation",)]),
    ("models/teacher/record.csv", anything, [("evaluation",)]),
    (
        "models/teacher/knowledge/knowledge.json",
        objects("augmentation", "seed", "views", "clips", "teacher", "sha256"),
        [STUDENT],
    ),
    ("models/teacher/knowledge/view-000/similarity-1.npy", arrays, [STUDENT]),
    ("models/teacher/knowledge/view-000/embedding-1.npy", anything, [STUDENT]),
    (
        "models/students/small/seed-0/config.json",
        objects("method", "validate_micro_auprc", *NETWORK),
        [("evaluation",)],
    ),
    ("models/students/small/seed-0/weights.safetensors", weights, [("evaluation",)]),
    ("models/students/small/seed-0/record.csv", tables, [("evaluation",)]),
    ("reports/evaluation/metrics.json", METRICS, [("registration",), ("results",)]),
    ("reports/evaluation/latency.json", objects("teacher", "small", "small.torch.network.p50"), [("results",)]),
    ("reports/evaluation/features.json", objects("digest"), [("registration",)]),
    ("reports/evaluation/networks/teacher/record.csv", tables, [("registration",)]),
    ("reports/registration.json", objects("versions", "challenger"), [("results",)]),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A project in which every step has run; the working folder."""
    project = Project(tmp_path_factory.mktemp("artifacts") / "project")
    params = merged(project.params(), {"dataset": {"clips": {"train": 8, "validate": 4, "test": 4}}})
    params["teacher"] |= {"training": params["teacher"]["training"] | {"epochs": 1}, "views": 1}
    params["distillation"]["training"]["epochs"] = 1
    params["evaluation"]["latency_runs"] = 1
    params["registration"]["gate"] = merged(params["registration"]["gate"], PASSING)
    params["students"] = {"small": {"architecture": "plain", "parameters": 2500, "method": "iusp+sp", "seeds": [0]}}
    project.write_params(params)
    with pytest.MonkeyPatch.context() as patch:
        # Not all of MLflow's variables: iusp has set some as it was imported.
        for name in [name for name in os.environ if name.startswith("IUSP_")]:
            patch.delenv(name, raising=False)
        # MLflow keeps a connection for each address, so a relative one could lead to the project of an earlier test.
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{project.folder}/mlflow.db")
        patch.chdir(project.folder)
        patch.setattr("iusp.io.processes.ProcessPoolExecutor", Threads)
        for step in (
            ("dataset",),
            ("features",),
            ("teacher",),
            ("recipes",),
            STUDENT,
            ("evaluation",),
            ("registration",),
        ):
            done = called(*step)
            assert done.exit_code == 0, done.output
        yield project.folder


def damages(path: Path, make: Make) -> Iterator[str]:
    """Put each damage in a file's place, and the file back at last.

    Where a description beside arrays or weights has their SHA-256, it gets the new one, as of a step that wrote them
    so: they must be refused for what they are.
    """
    whole = path.read_bytes()
    checksum, described = sha256(path), {}
    if path.suffix in (".npy", ".safetensors"):
        beside = [*path.parent.glob("*.json"), *path.parent.parent.glob("*.json")]
        described = {one: text for one in beside if checksum in (text := one.read_text())}
        assert described
    for damage, content in sampled(make(whole), STEP):
        assert content != whole, (path, damage)
        path.unlink(missing_ok=True)
        if content is not None:
            path.write_bytes(content)
            for one, text in described.items():
                one.write_text(text.replace(checksum, sha256(path)))
        yield damage
    path.write_bytes(whole)
    for one, text in described.items():
        one.write_text(text)


def answer(done: Any) -> str:
    """Return the line with which something was refused, or what is wrong with it."""
    if not isinstance(done.exception, SystemExit):
        return f"TRACEBACK {done.exception!r}" if done.exception else "TAKEN"
    lines = done.stderr.splitlines()
    return lines[-1] if done.exit_code == 2 and len(lines) == 1 and is_one_line(done.stderr) else f"LINES {lines}"


def test_damaged_artifacts(folder: Path, tried: Tried) -> None:
    wrong = []
    counts: dict[str, int] = {}
    for name, make, commands in PLAN:
        path = Path(name)
        for damage in damages(path, make):
            for command in commands:
                line = answer(called(*command))
                counts[command[0]] = counts.get(command[0], 0) + 1
                if not line.startswith("iusp: ") or (path.parent.name not in line and path.name not in line):
                    wrong.append((name, damage, command[0], line[:300]))
    assert not wrong, "\n".join(map(str, wrong))
    assert not Path("run").exists(), "code was run"
    for command, count in counts.items():
        tried(
            f"{command}: an input file is truncated, is emptied, is replaced by another type or shape or by a pickle, "
            "lacks keys, has extra keys, or has wrong sizes in its header",
            count,
            "the command stops with a one-line error that names the file",
        )


class KilledError(Exception):
    """Ends a training behind its last checkpoint."""


def test_damaged_checkpoints(folder: Path, tried: Tried, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("iusp.models.save", lambda *arguments: (_ for _ in ()).throw(KilledError))
        assert isinstance(called("teacher").exception, KilledError)
    (checkpoint,) = Path("models").glob(".teacher.work-*/checkpoint.pt")
    whole = checkpoint.read_bytes()
    saved = torch.load(checkpoint, weights_only=True)

    def with_state(**changed: Any) -> bytes:
        stream = io.BytesIO()
        torch.save({name: value for name, value in (saved | changed).items() if value is not None}, stream)
        return stream.getvalue()

    certain = {name: content for name, content in anything(whole) if content is not None}
    certain |= {f"without {name}": with_state(**{name: None}) for name in saved}
    certain |= {f"{name} of another kind": with_state(**{name: value}) for name in saved for value in (7, {"a": 1})}
    certain |= {"a network of another size": with_state(network={name: torch.zeros(3) for name in saved["network"]})}
    certain |= {"a pickle": with_state(network=Code()), "a list": stored(np.zeros(3))}
    for name, content in certain.items():
        checkpoint.write_bytes(content)
        assert answer(called("teacher")) == f"iusp: {checkpoint}: is damaged; delete it to train from the beginning", (
            name
        )
    taken = 0
    weights_file = TEACHER / "weights.safetensors"
    expected = weights_file.read_bytes()
    for content in mutated(whole, CHECKPOINTS, seed=0):
        checkpoint.parent.mkdir(exist_ok=True)
        checkpoint.write_bytes(content)
        line = answer(called("teacher"))
        if line == "TAKEN":
            taken += 1
            assert weights_file.read_bytes() == expected, "what nothing reads was damaged"
        else:
            assert line == f"iusp: {checkpoint}: is damaged; delete it to train from the beginning"
    assert not Path("run").exists(), "code was run"
    count = len(certain) + CHECKPOINTS
    tried(
        "teacher: the checkpoint is truncated, belongs to another network, is a pickle, lacks keys, or has changed "
        "bytes",
        count,
        f"{count - taken} checkpoints cause a one-line error (PyTorch's own CRC-32 is checked); in {taken} "
        "checkpoints, only padding changed, and the same teacher is trained",
    )


def test_damaged_versions(folder: Path, tried: Tried) -> None:
    (stored_at,) = Path("mlruns").rglob("artifacts/student")
    measured = objects("split", "coarse", "parameters", "macs", "bytes", "latency_ms", "parity", "tags", "features")
    judged = [("measurements.json", measured), ("truth.csv", tables), ("predictions.csv", tables)]
    count = 0
    for name, make in judged:
        for damage in damages(stored_at / "evaluation" / name, make):
            done = called("promote", "1")
            assert isinstance(done.exception, SystemExit), (name, damage, repr(done.exception))
            assert (done.exit_code, "evaluation/" in done.output) == (1, True), (name, damage, done.output)
            count += 1
    tried(
        "promote: the measurements, the truth or the predictions of the version are damaged",
        count,
        "the promotion is refused with a reason that names the file; the champion does not change",
    )
    assert called("promote", "1").exit_code == 0
    count = 0
    recording = next(Path("data/recordings").iterdir())
    for name, make in (("device.json", objects("tags", "thresholds", "features", "files")), ("float32.onnx", networks)):
        for damage in damages(stored_at / "device" / name, make):
            commands: list[tuple[Any, ...]] = [("tag", recording)]
            if damage.split()[0] not in ("tags", "thresholds", "features"):  # which are a device's to read
                commands.append(("release", "--to", "s3://bucket/prefix"))
            for command in commands:
                line = answer(called(*command))
                assert line.startswith("iusp: "), (name, damage, command[0], line)
                assert name in line or "device" in line, (name, damage, command[0], line)
                count += 1
    tried(
        "tag and release: the champion's device.json or network is damaged; the network is also changed at random",
        count,
        "the command stops with a one-line error, because device.json has the SHA-256 of every file",
    )


def networks(content: bytes) -> Damaged:
    yield from anything(content)
    yield from ((f"by chance {number}", one) for number, one in enumerate(mutated(content, 10, seed=0)))


def test_bits_that_flip_in_numbers(folder: Path, tried: Tried) -> None:
    Path(".dvc/config.local").write_text("[core]\n    no_scm = true\n")
    for unfinished in Path("models").glob(".*.work-*"):  # of the tests before, with a damaged checkpoint
        shutil.rmtree(unfinished)

    def dvc(*arguments: str) -> str:
        done = subprocess.run(["dvc", *arguments], env=environment(), capture_output=True, text=True, check=True)
        return done.stdout

    def flip(path: Path) -> bytes:
        whole = path.read_bytes()
        place = len(whole) * 3 // 4
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        return whole

    dvc("commit", "--force", "--quiet")
    assert json.loads(dvc("status", "--json")) == {}
    flipped = [
        (next(Path("data/recordings").iterdir()), ("features",)),
        (TEACHER / "weights.safetensors", STUDENT),
        (Path("models/students/small/seed-0/weights.safetensors"), ("evaluation",)),
        (TEACHER / "knowledge/view-000/similarity-1.npy", STUDENT),
        (Path("data/features/train.npy"), ("teacher",)),
    ]
    wholes = {path: flip(path) for path, _ in flipped}
    changed = dvc("status", "--json")
    for path, content in wholes.items():
        assert f'"{Path(*path.parts[: 3 if "students" in path.parts else 2])}"' in changed, changed
        path.write_bytes(content)
    lost = 0
    for path, command in flipped:
        flip(path)
        line = answer(called(*command))
        lost += line == "TAKEN"
        assert line.startswith(f"iusp: {path}: ") or (
            path.parent == TEACHER and "does not match the current teacher" in line
        ), (path, line)
        path.write_bytes(wholes[path])
    tried(
        "one bit is flipped in the data of a recording, of the teacher, of a student, of the knowledge or of the "
        "features",
        len(wholes),
        f"`dvc status` detects {len(wholes)} of {len(wholes)} flipped bits by MD5; the next step detects "
        f"{len(wholes) - lost} of {len(wholes)} by SHA-256",
        lost,
    )
