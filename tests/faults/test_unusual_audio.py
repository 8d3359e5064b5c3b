"""Recordings that are unusual and legitimate: they are read to the last sample, or refused with the true reason.

Most files are built byte by byte, so that their samples are known. Where ffmpeg is installed, as in CI, it decodes the
accepted files too; the standard library's `wave` decodes those that it knows.
"""

import io
import shutil
import struct
import subprocess
import wave
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from iusp.data.audio import BadAudio, probe, read, streamed
from tests.support.audio_files import (
    APE,
    ID3V1,
    ID3V2,
    LYRICS,
    RATE,
    chunk,
    encoded,
    flac_claiming,
    form,
    ogg_flac,
    ogg_page,
    ogg_pages,
    packed,
    patched,
    rf64,
    riff,
    w64,
)
from tests.support.project import Tried

FRAMES = 4000
INTEGERS = np.random.default_rng(0).integers(-30_000, 30_000, (FRAMES, 2))
MONO = INTEGERS[:, :1]
SAMPLES = MONO / 2**15
SENTINELS = (0, 0x7FFF0000, 0x7FFFF000, 0x7FFFFFDB, 0x7FFFFFFF, 0x80000000, 0xFFFFFFDB, 0xFFFFFFFE, 0xFFFFFFFF)
LOSSY = 2e-4  # largest difference between two decoders of Vorbis


@dataclass(frozen=True)
class Case:
    """A file, and what must come of it.

    Attributes:
        name: what is unusual.
        content: the bytes.
        expected: its samples (n, channels), or what the reason for its refusal must contain.
        rate: sample rate in Hz.
        tolerance: largest difference of a sample; ffmpeg's may be ten times as large.
        ffmpeg: whether ffmpeg reads all of such a file too.
        wave: whether Python's `wave` does.
    """

    name: str
    content: bytes
    expected: Any
    rate: int = RATE
    tolerance: float = 1e-6
    ffmpeg: bool = True
    wave: bool = False


Cases = Iterator[Case]


def decoded(content: bytes) -> Any:
    return soundfile.read(io.BytesIO(content), always_2d=True)[0]


def kinds_of_wav() -> Cases:
    for rate, channels, bits in [(rate, channels, bits) for rate in (8000, 44_100, 192_000) for channels in (1, 2)
                                 for bits in (8, 16, 24, 32)]:  # fmt: skip
        values = INTEGERS[:, :channels] * 2**bits // 2**16
        expected = values / 2 ** (bits - 1)
        fmt, samples = form(rate, channels, bits), packed(values, bits)
        name = f"{bits} bits, {channels} channels, {rate} Hz"
        if rate == 44_100:
            big = packed(values, bits, ">")
            rifx = riff(chunk(b"fmt ", form(rate, channels, bits, ">"), ">"), chunk(b"data", big, ">"), order=">")
            yield Case(f"RIFX, {name}", rifx, expected, rate, ffmpeg=bits == 8)
            extensible = chunk(b"fmt ", form(rate, channels, bits, extensible=True))
            yield Case(f"extensible, {name}", riff(extensible, chunk(b"data", samples)), expected, rate)
        elif rate == 8000:
            yield Case(f"RF64, {name}", rf64(fmt, samples, len(samples)), expected, rate)
            yield Case(f"BW64, {name}", rf64(fmt, samples, len(samples), b"BW64"), expected, rate)
            yield Case(f"W64, {name}", w64(fmt, samples), expected, rate)
        yield Case(f"RIFF, {name}", riff(chunk(b"fmt ", fmt), chunk(b"data", samples)), expected, rate, wave=True)
    for subtype in ("ULAW", "ALAW", "FLOAT", "DOUBLE", "MS_ADPCM", "IMA_ADPCM"):
        for order in ("LITTLE", "BIG") if "ADPCM" not in subtype else ("LITTLE",):
            content = encoded(SAMPLES, subtype=subtype, endian=order)
            yield Case(
                f"{subtype}, {order}",
                content,
                decoded(content),
                tolerance=1e-4,
                ffmpeg="ADPCM" not in subtype and order == "LITTLE",
            )
    for kind, name in ((0x45, "G.726"), (0x55, "MP3"), (0x161, "WMA"), (0x1234, "unknown")):
        content = riff(chunk(b"fmt ", form(RATE, 1, 8, kind=kind)), chunk(b"data", bytes(1000)))
        yield Case(f"WAV with {name}", content, f"compressed samples (format {kind:#06x}, {name})")


def sizes_of_wav() -> Cases:
    samples = packed(MONO, 16)
    fmt, data = chunk(b"fmt ", form(RATE, 1, 16)), chunk(b"data", samples)
    for size in SENTINELS:
        open_data = chunk(b"data", samples, size=size)
        yield Case(f"RIFF with size {size:#x}", riff(fmt, open_data, size=size), SAMPLES, ffmpeg=bool(size))
    for size in (0, 2**32 - 1):
        big = packed(MONO, 16, ">")
        parts = (chunk(b"fmt ", form(RATE, 1, 16, ">"), ">"), chunk(b"data", big, ">", size))
        yield Case(f"RIFX with size {size:#x}", riff(*parts, order=">"), SAMPLES, ffmpeg=False)
    for size in (0, 2**32 - 1, 2**63 - 1, 2**64 - 1):
        yield Case(f"RF64 with size {size:#x}", rf64(form(RATE, 1, 16), samples, size), SAMPLES, ffmpeg=False)
        yield Case(f"W64 with size {size:#x}", w64(form(RATE, 1, 16), samples, size), SAMPLES, ffmpeg=False)
    for size in (len(samples) + 2, 2**20, 2**31 - 2**20, 2**32 - 2**20):
        reason = f"truncated: {len(samples)} of {size} bytes of samples exist"
        yield Case(f"RIFF that is cut and states {size}", riff(fmt, chunk(b"data", samples, size=size)), reason)
    yield Case("RF64 that is cut", rf64(form(RATE, 1, 16), samples, 10**6), "truncated: 8000 of 1000000 bytes")
    yield Case("W64 that is cut", w64(form(RATE, 1, 16), samples, 10**6 + 24), "truncated: 8000 of 1000000 bytes")
    for size in (2, 100, len(samples) - 2):
        content = riff(fmt, chunk(b"data", samples, size=size))
        yield Case(f"RIFF with more than the {size} bytes it states", content, f"counts {size} bytes of samples, but")
    yield Case("W64 with more than it states", w64(form(RATE, 1, 16), samples, 124), "counts 100 bytes of samples, but")
    yield Case("RIFF with a wrong size of the whole", riff(fmt, data, size=100), SAMPLES)
    yield Case("two data chunks", riff(fmt, data, data), "several data chunks")
    yield Case("two data chunks, the second outside", riff(fmt, data) + data, "several data chunks")


def orders_of_wav() -> Cases:
    fmt, data = chunk(b"fmt ", form(RATE, 1, 16)), chunk(b"data", packed(MONO, 16))
    note, odd = chunk(b"LIST", b"INFOISFT\4\0\0\0iusp"), chunk(b"bext", b"odd")
    for name, content in {
        "chunks in front": (note, odd, fmt, note, data),
        "chunks behind": (fmt, data, note, odd, chunk(b"id3 ", ID3V2), chunk(b"user", b"1234")),
        "a fact chunk": (fmt, chunk(b"fact", struct.pack("<I", FRAMES)), data),
        "JUNK for a later RF64": (chunk(b"JUNK", bytes(28)), fmt, data),
        "FLLR up to 4 kB": (fmt, chunk(b"FLLR", bytes(4044)), data),
        "an odd chunk without its padding": (fmt, odd[:-1], data),
        "an odd chunk without its padding behind": (fmt, data, odd[:-1], note),
        "the last chunk without its padding": (fmt, data, odd[:-1]),
        "the last chunk cut off": (fmt, data, chunk(b"LIST", b"INFO", size=1000)),
        "the same fmt chunk twice": (fmt, fmt, data),
    }.items():
        yield Case(
            name, riff(*content), SAMPLES, ffmpeg="in front" in name or "fact" in name, wave="without" not in name
        )
    yield Case("samples in front of the fmt chunk", riff(data, fmt), SAMPLES, ffmpeg=False)
    other = chunk(b"fmt ", form(2 * RATE, 1, 16))
    yield Case("two fmt chunks that differ", riff(fmt, other, data), "two different fmt chunks")
    yield Case("a list of pieces", riff(fmt, chunk(b"LIST", b"wavl" + data)), "list of pieces (wavl)")
    values = MONO[:-1] // 2**8
    eight = chunk(b"data", packed(values, 8))
    for name, content in {
        "padding": eight + note,
        "no padding": eight[:-1] + note,
        "no padding at all": eight[:-1],
    }.items():
        whole = riff(chunk(b"fmt ", form(RATE, 1, 8)), content)
        yield Case(f"an odd number of samples of 8 bits with {name}", whole, values / 128)
    twelve = patched(fmt, 22, "<H", 12)
    yield Case("12 bits in 16", riff(twelve, data), SAMPLES, ffmpeg=False)


def wrappers() -> Cases:
    wav = riff(chunk(b"fmt ", form(RATE, 1, 16)), chunk(b"data", packed(MONO, 16)))
    rifx = encoded(SAMPLES, endian="BIG")
    flac, vorbis, opus = (encoded(SAMPLES, kind=kind, subtype=subtype)
                          for kind, subtype in (("FLAC", None), ("OGG", "VORBIS"), ("OGG", "OPUS")))  # fmt: skip
    contents = {"WAV": wav, "RIFX": rifx, "FLAC": flac, "Vorbis": vorbis, "Opus": opus}
    for name, content in contents.items():
        expected = decoded(content)
        tolerance = LOSSY if name in ("Vorbis", "Opus") else 1e-6
        for what, tag in {"ID3v1": ID3V1, "APEv2": APE, "Lyrics3": LYRICS, "zeros": bytes(2000),
                          "a tag of zeros": b"TAG" + bytes(125), "two tags": APE + ID3V1,
                          "zeros and a tag": bytes(512) + ID3V1}.items():  # fmt: skip
            yield Case(
                f"{name} and {what}", content + tag, expected, tolerance=tolerance, ffmpeg=name in ("WAV", "FLAC")
            )
        yield Case(f"ID3v2 and {name}", ID3V2 + content, expected, tolerance=tolerance, ffmpeg=name in ("WAV", "FLAC"))
        yield Case(f"twice ID3v2 and {name}, and ID3v1", ID3V2 * 2 + content + ID3V1, expected, ffmpeg=False)
        reason = "more bytes follow" if name != "FLAC" and tolerance < LOSSY else "or something was appended"
        yield Case(f"{name} and a page of HTML", content + b"<!DOCTYPE html>" * 20, reason)
    yield Case("WAV and FLAC", wav + flac, "more bytes follow that belong to no chunk")
    yield Case("FLAC and WAV", flac + wav, "something was appended")
    yield Case("Vorbis and WAV", vorbis + wav, "something was appended")


def streams_of_flac() -> Cases:
    long = np.tile(MONO, (5, 1)) / 2**15
    flac, stereo = encoded(long, kind="FLAC"), encoded(INTEGERS / 2**15, kind="FLAC")
    for length in (0, 1, 4096, len(long) - 1):
        yield Case(f"FLAC that states {length} samples", flac_claiming(flac, length), long)
        yield Case(f"FLAC that states {length}, and ID3v1", flac_claiming(flac, length) + ID3V1, long)
    for length in (len(long) + 1, 2**36 - 1):
        yield Case(
            f"FLAC that states {length} samples", flac_claiming(flac, length), f"truncated: {len(long)} of {length}"
        )
    for missing in (1, 2, 100, 5000):
        cut = flac_claiming(flac, 0)[:-missing]
        yield Case(f"FLAC of no length, without its last {missing} bytes", cut, "does not end with a whole FLAC frame")
    yield Case("two FLAC files", flac * 2, np.tile(long, (2, 1)), ffmpeg=False)
    yield Case("three FLAC files of no length", flac_claiming(flac, 0) * 3, np.tile(long, (3, 1)), ffmpeg=False)
    yield Case("FLAC, then another rate", flac + encoded(long, 16_000, "FLAC"), "8000 Hz with 1 channels, and 16000 Hz")
    yield Case("FLAC, then stereo", flac + stereo, "8000 Hz with 1 channels, and 8000 Hz with 2")
    for subtype in ("PCM_S8", "PCM_24"):
        content = encoded(long, kind="FLAC", subtype=subtype)
        yield Case(f"FLAC, {subtype}, of no length", flac_claiming(content, 0), decoded(content))
    yield Case("FLAC, stereo, of no length", flac_claiming(stereo, 0), INTEGERS / 2**15)
    for length in (0, FRAMES, 100):
        single = flac_claiming(encoded(SAMPLES, kind="FLAC", compression_level=0.5), length)
        yield Case(f"FLAC in OGG that states {length}", ogg_flac(single, FRAMES), SAMPLES)
    chained = ogg_flac(single, FRAMES) + ogg_flac(single, FRAMES, serial=9)
    yield Case("chained FLAC in OGG", chained, np.tile(SAMPLES, (2, 1)), ffmpeg=False)


def streams_of_ogg() -> Cases:
    other = np.sin(np.arange(2 * FRAMES) / 3)[:, None] / 2
    for subtype in ("VORBIS", "OPUS"):
        first, second = encoded(SAMPLES, kind="OGG", subtype=subtype), encoded(other, kind="OGG", subtype=subtype)
        halves = decoded(first), decoded(second)
        yield Case(f"chained {subtype}", first + second, np.concatenate(halves), tolerance=1e-6, ffmpeg=False)
        yield Case(f"chained {subtype}, 20 times", first * 20, np.tile(halves[0], (20, 1)), ffmpeg=False)
        yield Case(f"chained {subtype}, twice, and a tag", first * 2 + ID3V1, np.tile(halves[0], (2, 1)), ffmpeg=False)
        wrong = encoded(other, 16_000, "OGG", subtype)
        yield Case(f"chained {subtype} of two rates", first + wrong, "8000 Hz with 1 channels, and 16000 Hz with 1")
        stereo = encoded(np.repeat(other, 2, axis=1), kind="OGG", subtype=subtype)
        yield Case(f"chained {subtype}, mono and stereo", first + stereo, "8000 Hz with 1 channels, and 8000 Hz with 2")
        cut = b"".join(ogg_pages(first)[:-1])
        yield Case(f"chained {subtype}, the first cut", cut + second, "truncated: the last OGG page is missing")
        yield Case(f"chained {subtype}, the second cut", first + second[:-9], "truncated: the last OGG page is missing")
        pages = ogg_pages(encoded(np.tile(SAMPLES, (40, 1)), kind="OGG", subtype=subtype))
        lost = b"".join(pages[:3] + pages[4:])
        yield Case(f"{subtype} with a page missing", lost, "damaged: an OGG page is missing")
        skeleton = ogg_page(b"fishead\0" + bytes(56), 2, 0, 0, 99), ogg_page(b"", 4, 0, 1, 99)
        pages = ogg_pages(first)
        beside = skeleton[0] + pages[0] + pages[1] + skeleton[1] + b"".join(pages[2:])
        yield Case(f"{subtype} beside a skeleton", beside, halves[0], tolerance=LOSSY, ffmpeg=False)
        double = pages[0] + ogg_page(ogg_pages(second)[0][28:], 2, 0, 0, 99) + b"".join(pages[1:])
        yield Case(f"{subtype} twice side by side", double + ogg_page(b"", 4, 0, 1, 99), "several sounds side by side")
    vorbis, opus = (encoded(SAMPLES, kind="OGG", subtype=subtype) for subtype in ("VORBIS", "OPUS"))
    yield Case("Vorbis, then Opus", vorbis + opus, np.concatenate([decoded(vorbis), decoded(opus)]), ffmpeg=False)
    yield Case("Speex", ogg_page(b"Speex   1.2", 2, 0, 0) + ogg_page(b"", 4, 0, 1), "an OGG file with Speex")
    yield Case("Theora", ogg_page(b"\x80theora", 2, 0, 0) + ogg_page(b"", 4, 0, 1), "without Vorbis, Opus or FLAC")


def several_wavs() -> Cases:
    samples = packed(MONO, 16)
    fmt = form(RATE, 1, 16)
    wav = riff(chunk(b"fmt ", fmt), chunk(b"data", samples))
    unknown = riff(chunk(b"fmt ", fmt), chunk(b"data", samples, size=2**32 - 1), size=2**32 - 1)
    twice, thrice = np.tile(SAMPLES, (2, 1)), np.tile(SAMPLES, (3, 1))
    yield Case("two WAV files", wav * 2, twice, ffmpeg=False)
    yield Case("three WAV files from pipes", unknown * 3, thrice, ffmpeg=False)
    yield Case("WAV and W64", wav + w64(fmt, samples), twice, ffmpeg=False)
    yield Case("a WAV file from a pipe, and RF64", unknown + rf64(fmt, samples, len(samples)), twice, ffmpeg=False)
    faster = riff(chunk(b"fmt ", form(2 * RATE, 1, 16)), chunk(b"data", samples))
    yield Case("two WAV files of two rates", wav + faster, "8000 Hz with 1 channels, and 16000 Hz with 1")


def loudness() -> Cases:
    for subtype in ("FLOAT", "DOUBLE"):
        for peak in (1.5, 4.0, 16.0):
            loud = SAMPLES / np.abs(SAMPLES).max() * peak
            yield Case(f"{subtype} up to {peak}", encoded(loud, subtype=subtype), loud, tolerance=2e-6)
        for bits, peak in ((16, 100), (16, 32_767), (24, 8e6), (32, 2e9)):
            content = encoded(np.concatenate([SAMPLES, [[peak]]]), subtype=subtype)
            yield Case(f"{subtype} up to {peak}", content, f"divide integers of {bits} bits by {2 ** (bits - 1)}")
        content = encoded(np.concatenate([SAMPLES, [[1e12]]]), subtype=subtype)
        yield Case(
            f"{subtype} up to 1e12", content, "samples reach 1e+12, but floats must lie in -1..1: they are damaged"
        )


def other_formats() -> Cases:
    for kind, name in (("AIFF", "an AIFF"), ("CAF", "a CAF"), ("AU", "an AU"), ("MP3", "an MP3"), ("VOC", "a VOC"),
                       ("NIST", "a NIST SPHERE")):  # fmt: skip
        yield Case(kind, encoded(SAMPLES, kind=kind), f"{name} file: convert it to WAV, FLAC or OGG")
    yield Case("MP3 with ID3", ID3V2 + encoded(SAMPLES, kind="MP3"), "an MP3 file: convert it")
    for head, name in ((b"\0\0\0 ftypM4A ", "an MP4 or M4A"), (b"\x1aE\xdf\xa3\x01", "a Matroska or WebM"),
                       (b"\xff\xf1\x50\x80", "an AAC"), (b"#!AMR\n", "an AMR"), (b"wvpk", "a WavPack"),
                       (b"RIFF\0\0\0\0AVI LIST", "an AVI"), (b"0&\xb2u\x8e\x66\xcf\x11", "a WMA")):  # fmt: skip
        yield Case(name, head + bytes(500), f"{name} file: convert it to WAV, FLAC or OGG")


def read_by_ffmpeg(path: Path, case: Case) -> Any:
    command = ["ffmpeg", "-v", "error", "-i", path, "-f", "f64le", "-ar", str(case.rate), "-"]
    done = subprocess.run(command, capture_output=True, check=False)
    return np.frombuffer(done.stdout).reshape(-1, case.expected.shape[1])


def read_by_wave(path: Path) -> Any:
    with wave.open(str(path)) as file:
        width, channels, count = file.getsampwidth(), file.getnchannels(), file.getnframes()
        data = np.frombuffer(file.readframes(count), np.uint8).reshape(-1, width)
    wide = np.zeros((len(data), 4), np.uint8)
    wide[:, 4 - width :] = data ^ (0x80 if width == 1 else 0)
    return wide.view("<i4").reshape(-1, channels) / 2**31


def differs(found: Any, case: Case, factor: float = 1) -> bool:
    return found.shape != case.expected.shape or bool(np.abs(found - case.expected).max() > case.tolerance * factor)


def check(path: Path, case: Case) -> bool:
    """Assert what must come of a case, and return whether it was accepted."""
    if isinstance(case.expected, str):
        with pytest.raises(BadAudio) as caught:
            probe(path, 0, 60)
        assert case.expected in str(caught.value), case.name
        with pytest.raises(BadAudio), streamed(path) as (_, blocks):
            list(blocks)
        return False
    frames, channels = case.expected.shape
    found = probe(path, 0, 60)
    assert (found.sample_rate, found.channels, found.frames) == (case.rate, channels, frames), case.name
    expected = case.expected.mean(axis=1)
    with streamed(path) as (rate, blocks):
        heard = np.concatenate(list(blocks))
    for samples, found_rate in ((heard, rate), read(path)):
        assert found_rate == case.rate
        assert len(samples) == frames, case.name
        assert np.abs(samples - expected).max() <= case.tolerance, case.name
    return True


def test_unusual_audio(tmp_path: Path, tried: Tried) -> None:
    makers = (
        kinds_of_wav,
        sizes_of_wav,
        orders_of_wav,
        several_wavs,
        wrappers,
        streams_of_flac,
        streams_of_ogg,
        loudness,
    )
    cases = {}
    for number, case in enumerate(case for make in (*makers, other_formats) for case in make()):
        path = tmp_path / f"{number}.bin"
        path.write_bytes(case.content)
        cases[path] = case
    accepted = {path: case for path, case in cases.items() if check(path, case)}
    others = {path: read_by_wave(path) for path, case in accepted.items() if case.wave}
    assert not [cases[path].name for path, found in others.items() if differs(found, cases[path])]
    heard: dict[Path, Any] = {}
    if shutil.which("ffmpeg"):
        asked = {path: case for path, case in accepted.items() if case.ffmpeg}
        with ThreadPoolExecutor(4) as pool:
            heard = dict(zip(asked, pool.map(read_by_ffmpeg, asked, asked.values()), strict=True))
        assert not [cases[path].name for path, found in heard.items() if differs(found, cases[path], 10)]
        assert len(heard) > 50
    assert len(cases) > 200
    assert len(others) > 20
    tried(
        'audio: legitimate and unusual files: all kinds of WAV, FLAC and OGG, sizes that mean "until the end", chained '
        "and concatenated files, tags and padding around the audio, more samples than the header counts, loud floats, "
        "other formats",
        len(cases),
        f"{len(accepted)} are read to the last sample with the right values ({len(others)} compared with Python's "
        f"`wave`, {len(heard)} with ffmpeg); {len(cases) - len(accepted)} are refused with the true reason",
    )
