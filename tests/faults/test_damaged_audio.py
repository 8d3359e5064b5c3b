"""One folder with good recordings, and every kind of file that only looks like one."""

import os
import random
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import soundfile
import yaml

from iusp.data.audio import read
from iusp.data.taxonomy import read_taxonomy
from tests.support.audio_files import ogg_checksum, patched
from tests.support.damage import HANG, mutated
from tests.support.local_servers import environment
from tests.support.project import ROOT, SMALL, Tried, merged

RATE = 8000
RANDOM = random.Random(0)
NOISE = 0.1 * np.random.default_rng(0).standard_normal(RATE)
GOOD = {"train": 6, "validate": 2, "test": 2}
MEMORY = 800 * 2**20  # what a process may take; torch itself takes half of it
SHORTS = (0, 1, 2, 3, 0x11, 0x55, 0x7FFF, 0x8000, 0xFFFE, 0xFFFF)
LONGS = (0, 1, 15, 17, 3999, 4000, 192_001, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF)
MUTATED, CUTS = 12, 12  # of each format

Named = Iterator[tuple[str, bytes]]


def written(folder: Path, suffix: str, samples: Any = NOISE, **options: Any) -> bytes:
    path = folder / f"base.{suffix}"
    soundfile.write(path, samples, RATE, **options)
    return path.read_bytes()


def wav(samples: bytes, rate: int = RATE, channels: int = 1, bits: int = 16, kind: int = 1, claim: int = -1) -> bytes:
    """Return a header that agrees with itself, whatever it says, and samples."""
    width = channels * ((bits + 7) // 8) & 0xFFFF
    header = struct.pack("<4sI4s4sIHHIIHH4sI", b"RIFF", 36 + len(samples) & 0xFFFFFFFF, b"WAVE", b"fmt ", 16, kind,
                         channels, rate, rate * width & 0xFFFFFFFF, width, bits, b"data",
                         len(samples) if claim < 0 else claim)  # fmt: skip
    return header + samples


def damaged_wavs(folder: Path) -> Named:
    plain = written(folder, "wav")
    samples = plain[44:]
    fields = {"format": (20, "<H"), "channels": (22, "<H"), "block align": (32, "<H"), "bits": (34, "<H")}
    fields |= {"RIFF size": (4, "<I"), "fmt size": (16, "<I"), "rate": (24, "<I"), "byte rate": (28, "<I")}
    fields |= {"data size": (40, "<I"), "RIFF": (0, "<I"), "WAVE": (8, "<I"), "fmt tag": (12, "<I"), "data": (36, "<I")}
    for field, (offset, form) in fields.items():
        size = struct.calcsize(form)
        for value in (*(SHORTS if size == 2 else LONGS), RANDOM.getrandbits(8 * size)):
            yield f"wav {field} {value:#x}", patched(plain, offset, form, value)
    for bits in (0, 1, 3, 8, 12, 24, 32, 64, 255, 65535):
        yield f"wav bits {bits} consistently", wav(samples, bits=bits)
    for channels in (0, 2, 255, 1024, 1025, 65535):
        yield f"wav channels {channels} consistently", wav(samples, channels=channels)
    for rate in (0, 1, 3999, 192_001, 2**31, 2**32 - 1):
        yield f"wav rate {rate} consistently", wav(samples, rate=rate)
    for kind in (0, 2, 3, 6, 7, 0x11, 0x31, 0x50, 0x55, 0x161, 0xFFFE):
        yield f"wav format {kind:#x} consistently", wav(samples, kind=kind)
    for name, claim in (("4 GB", 2**32 - 1), ("2 GB", 2**31), ("nothing", 0), ("an odd length", len(samples) - 1)):
        yield f"wav of 44 bytes that claims {name}", wav(b"", claim=claim)
        yield f"wav that claims {name}", wav(samples, claim=claim)
    fmt, data = plain[12:36], plain[36:]
    noise = b"LIST" + struct.pack("<I", 4) + b"note"
    yield "wav data before fmt", plain[:12] + data + fmt
    yield "wav without fmt", plain[:12] + data
    yield "wav without data", plain[:12] + fmt
    yield "wav fmt twice", plain[:12] + fmt + patched(fmt, 12, "<I", 44_100) + data
    yield "wav data twice", plain[:12] + fmt + data + data
    yield "wav 20,000 chunks and no samples", plain[:12] + fmt + noise * 20_000
    yield "wav a chunk of 4 GB", plain[:12] + fmt + b"LIST" + b"\xff" * 4 + data
    yield "wav a chunk over the samples", plain[:12] + fmt + b"LIST" + struct.pack("<I", 4000) + data
    floats = NOISE.astype(np.float32)
    for name, value in (("NaN", np.nan), ("infinity", np.inf), ("minus infinity", -np.inf), ("1e38", 1e38)):
        for where in (slice(0, 1), slice(-1, None), slice(None)):
            broken = floats.copy()
            broken[where] = value
            yield f"wav {name} at {where}", written(folder, "wav", broken, subtype="FLOAT")
    broken = NOISE.copy()
    broken[5] = 1e300
    yield "wav 1e300", written(folder, "wav", broken, subtype="DOUBLE")
    yield "wav one sample", wav(samples[:2])
    yield "wav half a sample", wav(samples[:1])


def damaged_flacs(folder: Path) -> Named:
    plain = written(folder, "flac")
    first = plain.index(b"\xff\xf8", 42)
    # The first block's header, and STREAMINFO: sizes, rate, channels, bits, length, some of the MD5.
    for place in (*range(4, 27), 41):
        for value in {0, 0x7F, 0x80, 0xFF, plain[place] ^ 1 << RANDOM.randrange(8)} - {plain[place]}:
            yield f"flac byte {place} {value:#x}", patched(plain, place, "B", value)
    for place in range(first, first + 8):  # a frame's sync, block size, rate, channels, bits, number, checksum
        for value in {0, 0xFF, plain[place] ^ 0x10} - {plain[place]}:
            yield f"flac frame byte {place - first} {value:#x}", patched(plain, place, "B", value)
    yield "flac without STREAMINFO", plain[:4] + plain[42:]
    yield "flac STREAMINFO twice", plain[:42] + plain[4:42] + plain[42:]
    yield "flac without frames", plain[:first]
    yield "flac a block of 16 MB that is not there", plain[:42] + b"\x04\xff\xff\xff" + plain[42:]
    yield "flac a picture of 4 GB", plain[:42] + b"\x06\x00\x00\x20" + b"\xff" * 32 + plain[42:]
    yield "flac 4 GB of comments", plain[:42] + b"\x04\x00\x00\x08" + b"\xff" * 8 + plain[42:]


def damaged_oggs(folder: Path) -> Named:
    plain = written(folder, "ogg")
    pages = [place for place in range(len(plain)) if plain.startswith(b"OggS", place)]
    fields = {"version": (4, "B"), "type": (5, "B"), "granule": (6, "<Q"), "serial": (14, "<I"), "number": (18, "<I")}
    fields |= {"checksum": (22, "<I"), "segments": (26, "B"), "first segment": (27, "B")}
    for page in (pages[0], pages[1], pages[-1]):
        end = min([one for one in pages if one > page] or [len(plain)])
        for field, (offset, form) in fields.items():
            most = 2 ** (8 * struct.calcsize(form)) - 1
            for value in (0, 1, most // 2, most, RANDOM.randint(0, most)):
                name = f"ogg page {pages.index(page)} {field} {value:#x}"
                spoilt = patched(plain, page + offset, form, value)
                yield name, spoilt
                if field in ("granule", "serial", "type") and page != pages[1]:  # with the checksum that belongs to it
                    body = patched(spoilt[page:end], 22, "<I", 0)
                    yield (
                        f"{name}, consistently",
                        plain[:page] + patched(body, 22, "<I", ogg_checksum(body)) + plain[end:],
                    )
    # Vorbis' own header: version, channels, rate, bit rates, block sizes, framing.
    for offset, form in ((7, "<I"), (11, "B"), (12, "<I"), (16, "<i"), (20, "<i"), (24, "<i"), (28, "B"), (29, "B")):
        for value in (0, 1, 127, RANDOM.randint(0, 127)) + ((0x7FFFFFFF,) if form != "B" else (255,)):
            body = patched(patched(plain[: pages[1]], 28 + offset, form, value), 22, "<I", 0)
            yield f"vorbis field {offset} {value:#x}", patched(body, 22, "<I", ogg_checksum(body)) + plain[pages[1] :]


def damaged_anyhow(folder: Path) -> Named:
    contents = {suffix: written(folder, suffix) for suffix in ("wav", "flac", "ogg")}
    contents["float wav"] = written(folder, "wav", subtype="FLOAT")
    contents["24 bit wav"] = written(folder, "wav", np.column_stack([NOISE, NOISE]), subtype="PCM_24")
    contents["adpcm wav"] = written(folder, "wav", subtype="IMA_ADPCM")
    for seed, (name, content) in enumerate(contents.items()):
        for number, spoilt in enumerate(mutated(content, MUTATED, seed)):
            yield f"{name} by chance {number}", spoilt
        for end in (1, 4, 11, 12, 20, 43, len(content) - 1, *(RANDOM.randrange(len(content)) for _ in range(CUTS - 7))):
            yield f"{name} cut at {end}", content[:end]
        other = "ogg" if "wav" in name else "wav"
        yield f"{other} {name} by another name", content
    for suffix in ("wav", "flac", "ogg"):
        for name, content in {
            "empty": b"",
            "zeros": bytes(5000),
            "text": b"hello\n" * 500,
            "noise": RANDOM.randbytes(5000),
            "magic alone": contents[suffix][:12],
            "page": b"<!DOCTYPE html>" * 100,
            "archive": b"PK\x03\x04" + bytes(1000),
            "pickle": b"\x80\x04cos\nsystem\n(S'touch run'\ntR.",
            "AIFF": written(folder, "aiff"),
            "RF64": written(folder, "rf64"),
            "two files in one": contents[suffix] * 2,
        }.items():
            yield f"{suffix} {name}", content


def things(folder: Path) -> list[str]:
    """Put what is no file, or is none of this folder's, where recordings are, and return the names."""
    audio = folder / "audio"
    os.mkfifo(audio / "pipe.wav")
    (audio / "folder.wav").mkdir()
    shutil.copyfile(audio / "train0.wav", folder.parent / "outside.wav")
    links = {"circle.wav": "circle.wav", "up.wav": "../../outside.wav", "zero.wav": "/dev/zero", "none.wav": "nowhere"}
    links |= {"here": ".", "above": ".."}
    for name, target in links.items():
        (audio / name).symlink_to(target)
    for name in (b"caf\xe9.wav", b"two\nlines.wav", b"\x1b[2J.wav", b"a" * 240 + b".wav", b"\xff\xfe.ogg"):
        shutil.copyfile(audio / "train0.wav", os.fsencode(audio) + b"/" + name)
    names = ["pipe.wav", "folder.wav", *links, "two\nlines.wav", "\x1b[2J.wav", "a" * 240 + ".wav"]
    return [*names, "../../outside.wav", "/etc/passwd", "..", "a\0.wav", "nothing.wav", "folder.wav/x.wav"]


# A process's peak counts what its parent had when it was started: so the parent is a small one.
MEASURED = """
import resource, subprocess, sys
status = subprocess.call([sys.executable, "-m", "iusp", *sys.argv[2:]])
with open(sys.argv[1], "w") as peak:
    peak.write(str(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024))
sys.exit(status)
"""


def measured(folder: Path, *command: str) -> tuple[str, int]:
    """Run a step in a process of its own; return what it says and the most memory that it or a worker took."""
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, "peak", *command],
        cwd=folder,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=HANG,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout, int((folder / "peak").read_text())


def test_damaged_audio(tmp_path: Path, tried: Tried) -> None:
    folder = tmp_path / "recordings"
    audio = folder / "audio"
    audio.mkdir(parents=True)
    shutil.copy(ROOT / "iusp/data/taxonomy.yaml", folder)
    rows = []
    for split, count in GOOD.items():
        for clip in range(count):
            suffix = ("wav", "flac", "ogg")[clip % 3]
            rows.append((split, f"{split}{clip}.{suffix}"))
            noise = np.random.default_rng(clip).standard_normal(RATE + clip)
            soundfile.write(audio / rows[-1][1], 0.1 * noise, RATE)
    good = {name: (audio / name).read_bytes() for _, name in rows}
    damaged: dict[str, str] = {}
    for number, (what, content) in enumerate(
        one for make in (damaged_wavs, damaged_flacs, damaged_oggs, damaged_anyhow) for one in make(tmp_path)
    ):
        name = f"d{number:04}.{what.split()[0] if what.split()[0] in ('flac', 'ogg') else 'wav'}"
        (audio / name).write_bytes(content)
        damaged[name] = what
    damaged |= {name: name for name in things(folder)}
    tags = read_taxonomy(folder / "taxonomy.yaml")
    table = pd.DataFrame([*rows, *(("train", name) for name in damaged)], columns=["split", "audio_filename"])
    for place, tag in enumerate([*tags.coarse_tags, *tags.all_fine_tags]):
        table[f"{tag}_presence"] = (table.index % 5 == place % 5).astype(int)
    table.to_csv(folder / "annotations.csv", index=False)
    params = merged(yaml.safe_load((ROOT / "params.yaml").read_text()), SMALL | {"students": None})
    params["dataset"] |= {"source": "folder", "path": "recordings", "max_bad_share": 1}
    params["students"] = {"small": {"architecture": "plain", "parameters": 2500, "method": "labels", "seeds": [0]}}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    most = 0
    for step in ("dataset", "features"):
        said, memory = measured(tmp_path, step)
        assert "Traceback" not in said
        assert all(line.isprintable() for line in said.splitlines())
        most = max(most, memory)
    assert most < MEMORY, most
    # The good ones came through as they were.
    taken = {path.name: path.read_bytes() for path in (tmp_path / "data/recordings").iterdir()}
    assert {name: taken[name] for name in good} == good
    # Every other one is out, with a reason, or is audio as far as anybody can tell.
    reasons = {}
    for listing in ("quarantine.csv", "unmatched.csv"):
        with (tmp_path / "data/dataset" / listing).open(newline="") as stream:
            listed = pd.read_csv(stream, dtype=str, keep_default_na=False)
        reasons |= dict(zip(listed["audio_filename"], listed["reason"], strict=True))
    index = pd.read_parquet(tmp_path / "data/dataset/index.parquet")
    sound = set(index["audio_filename"]) - set(good)
    assert {what: name for name, what in damaged.items() if name not in sound | set(reasons)} == {}
    assert all(reason and reason.isprintable() for reason in reasons.values())
    for name in sound:
        samples, _ = read(tmp_path / "data/recordings" / name)
        assert np.isfinite(samples).all()
        assert len(samples)
    for split in GOOD:
        log_mel = np.load(tmp_path / f"data/features/{split}.npy")
        assert np.isfinite(log_mel).all()
    quarantined = len(damaged) - len(sound)
    assert len(damaged) > 500
    tried(
        "audio: a header field of a WAV, FLAC or OGG file is changed (each field in turn), a file is truncated or "
        "changed at random, or a file is of another type, a pipe, a link or has an unusual name; `iusp dataset` and "
        f"`iusp features` run once on all these files and {len(good)} good clips",
        len(damaged),
        f"{quarantined} files are quarantined with a reason, and {len(sound)} files decode to finite samples; the good "
        f"clips do not change; no process takes more than {most / 2**20:.0f} MiB",
    )
