import io
import os
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import soundfile

from iusp.data import audio
from iusp.data.audio import BadAudio, Probe, check_inside, check_samples, probe, read, streamed
from iusp.data.containers import wav
from iusp.io.files import is_file_name
from tests.support.audio_files import encoded, flac_claiming, patched

RATE = 16_000
NOISE = 0.1 * np.random.default_rng(0).standard_normal(2 * RATE)
FORMATS = ("wav", "flac", "ogg")


def write(folder, name="clip.wav", samples=NOISE, rate=RATE, **options):
    path = folder / name
    soundfile.write(path, samples, rate, **options)
    return path


def patch(path, offset, form, *values):
    """Overwrite a field of a file."""
    content = bytearray(path.read_bytes())
    struct.pack_into(form, content, offset, *values)
    path.write_bytes(content)


def refusal(path, low=0.5, high=60.0):
    with pytest.raises(BadAudio) as caught:
        probe(path, low, high)
    assert path.name not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("rate", [8000, 44_100])
def test_probes_and_reads(tmp_path, suffix, channels, rate):
    samples = np.column_stack([NOISE, -NOISE / 2][:channels])
    path = write(tmp_path, f"clip.{suffix}", samples, rate)
    assert probe(path, 0.5, 60) == Probe(rate, channels, len(NOISE), len(NOISE) / rate)
    mono, found = read(path)
    assert (mono.dtype, mono.shape, found) == (np.float32, (len(NOISE),), rate)
    expected = soundfile.read(path, always_2d=True, dtype="float32")[0].mean(axis=1)
    np.testing.assert_allclose(mono, expected, atol=1e-7)


@pytest.mark.parametrize("suffix", FORMATS)
def test_silence_is_a_clip(tmp_path, suffix):
    path = write(tmp_path, f"clip.{suffix}", np.zeros(RATE))
    assert probe(path, 0.5, 60).frames == RATE
    assert not read(path)[0].any()


@pytest.mark.parametrize("options", [{"subtype": "FLOAT"}, {"subtype": "DOUBLE"}, {"subtype": "PCM_24"}])
def test_the_usual_kinds_of_wav(tmp_path, options):
    assert probe(write(tmp_path, "CLIP.WAV", **options), 0.5, 60).frames == len(NOISE)


def test_compressed_wav_has_a_byte_rate_of_its_own(tmp_path):
    assert probe(write(tmp_path, subtype="IMA_ADPCM"), 0.5, 60).frames >= len(NOISE)


def test_a_wav_may_have_other_chunks(tmp_path):
    path = write(tmp_path)
    content = path.read_bytes()
    odd = b"LIST" + struct.pack("<I", 3) + b"abc\0"
    path.write_bytes(content[:12] + odd + content[12:])
    patch(path, 4, "<I", len(content) + len(odd) - 8)
    assert probe(path, 0.5, 60).frames == len(NOISE)


def test_blocks_cover_a_long_clip(tmp_path, monkeypatch):
    path = write(tmp_path, "clip.flac", np.column_stack([NOISE] * 3))
    whole, _ = read(path)
    monkeypatch.setattr(audio, "BLOCK_VALUES", 1000)
    np.testing.assert_array_equal(read(path)[0], whole)
    assert probe(path, 0.5, 60).frames == len(NOISE)


@pytest.mark.parametrize("suffix", FORMATS)
def test_an_empty_file(tmp_path, suffix):
    path = tmp_path / f"clip.{suffix}"
    path.touch()
    assert refusal(path) == "empty file"


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("content", [b"x", b"hello" * 1000, b"\0" * 1000, b"\x89PNG\r\n\x1a\n" + bytes(99)])
def test_other_bytes_are_not_audio(tmp_path, suffix, content):
    path = tmp_path / f"clip.{suffix}"
    path.write_bytes(content)
    assert refusal(path) == "not audio: neither WAV, FLAC nor OGG"


def test_other_formats(tmp_path):
    assert refusal(write(tmp_path, "clip.aiff")) == "an AIFF file: convert it to WAV, FLAC or OGG"


def test_things_that_are_no_files(tmp_path):
    (tmp_path / "folder.wav").mkdir()
    os.mkfifo(tmp_path / "pipe.wav")
    for name in ("folder.wav", "pipe.wav", "nothing.wav"):
        assert refusal(tmp_path / name) == "not a regular file"
    assert refusal(tmp_path / ("x" * 300 + ".wav")) == "cannot be read: File name too long"


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("share", [0.01, 0.3, 0.5, 0.9, 0.999])
def test_a_cut_file_is_truncated(tmp_path, suffix, share):
    path = write(tmp_path, f"clip.{suffix}")
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    assert "truncated" in refusal(path)


def test_a_flac_cut_between_frames_is_truncated(tmp_path):
    whole, half = write(tmp_path, "whole.flac"), write(tmp_path, "half.flac", NOISE[:RATE])
    half.write_bytes(whole.read_bytes()[:42] + half.read_bytes()[42:])  # the longer clip's header
    assert "truncated" in refusal(half)


@pytest.mark.parametrize("missing", [1, 20, 30])
def test_an_ogg_cut_in_its_last_page_is_truncated(tmp_path, missing):
    path = write(tmp_path, "clip.ogg")
    content = path.read_bytes()
    last = content.rfind(b"OggS")
    path.write_bytes(content[: last + 31 - missing])
    assert "truncated" in refusal(path)


def test_an_ogg_cut_between_pages_is_truncated(tmp_path):
    path = write(tmp_path, "clip.ogg")
    content = path.read_bytes()
    path.write_bytes(content[: content.rfind(b"OggS")])
    assert refusal(path) == "truncated: the last OGG page is missing or incomplete"


def test_an_ogg_with_a_damaged_page_decodes_short(tmp_path):
    path = write(tmp_path, "clip.ogg", np.tile(NOISE, 10))
    content = path.read_bytes()
    page = content.rfind(b"OggS", 0, content.rfind(b"OggS"))
    patch(path, page + 200, "<8x")
    assert "truncated" in refusal(path)


@pytest.mark.parametrize("suffix", ["wav", "ogg"])  # soundfile writes no FLAC without samples
def test_a_file_without_samples(tmp_path, suffix):
    path = write(tmp_path, f"clip.{suffix}", NOISE[:0])
    assert refusal(path) == "has no samples"


def test_a_wav_without_a_data_chunk(tmp_path):
    path = write(tmp_path)
    path.write_bytes(path.read_bytes()[:36])
    assert refusal(path) == "truncated: has no samples"


def test_a_wav_header_with_no_channels(tmp_path):
    path = write(tmp_path)
    patch(path, 22, "<H", 0)
    assert "not audio" in refusal(path)


def test_a_wav_header_that_contradicts_itself(tmp_path):
    path = write(tmp_path)
    patch(path, 24, "<I", 44_100)
    assert refusal(path) == "the header is inconsistent: 44100 Hz × 2 bytes is not 32000 bytes per second"


@pytest.mark.parametrize("suffix", ["wav", "flac"])
@pytest.mark.parametrize("rate", [1000, 384_000])
def test_a_rate_that_no_recorder_has(tmp_path, suffix, rate):
    path = write(tmp_path, f"clip.{suffix}", np.tile(NOISE, 10), rate)
    assert refusal(path) == f"the header states {rate} Hz, not 4000–192000 Hz: it is probably wrong"


def test_a_duration_out_of_range(tmp_path):
    path = write(tmp_path)
    assert probe(path, 2, 2).seconds == 2
    assert refusal(path, low=2.1).startswith("2 s long, not 2.1–60 s: ")
    assert refusal(path, high=1.9).endswith("the header's rate of 16000 Hz is probably wrong")


@pytest.mark.parametrize("subtype", ["FLOAT", "DOUBLE"])
@pytest.mark.parametrize(("broken", "count"), [(slice(None), 2 * RATE), (slice(100, 101), 1)])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_samples_that_are_not_finite(tmp_path, subtype, broken, count, value):
    samples = np.column_stack([NOISE, NOISE])
    samples[broken, 1] = value
    path = write(tmp_path, samples=samples, subtype=subtype)
    assert refusal(path) == f"{count} of {2 * RATE} frames are NaN, infinite or beyond float32"


@pytest.mark.parametrize("claim", [10 * 3600 * RATE, 2**36 - 1])
def test_a_header_that_claims_hours_takes_no_memory(tmp_path, claim):
    path = write(tmp_path, "clip.flac")
    fields = int.from_bytes(path.read_bytes()[18:26], "big") >> 36 << 36  # the last 36 bits are the length
    patch(path, 18, ">Q", fields | claim)
    tracemalloc.start()
    assert refusal(path) == f"truncated: {2 * RATE} of {claim} frames exist"
    with pytest.raises(BadAudio, match="truncated"):
        read(path)
    assert tracemalloc.get_traced_memory()[1] < 20e6
    tracemalloc.stop()


@pytest.mark.parametrize("name", ["00_000066.wav", "a b.wav", "ä.flac", "..wav", "x" * 196 + ".wav", "-rf.wav"])
def test_plain_names(name):
    assert is_file_name(name)


@pytest.mark.parametrize(
    "name",
    [
        *("", ".", "..", "/etc/passwd", "../a.wav", "b/../a.wav", "b/a.wav", "a/", "..\\a.wav", "C:\\a.wav", "C:a.wav"),
        *("a\0.wav", "a\n.wav", "\x1b[2J.wav", "x" * 201, "ä" * 101),
    ],
)
def test_names_that_are_paths_or_worse(name):
    assert not is_file_name(name)


def test_links_may_not_leave_the_folder(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    inside, outside = write(folder), write(tmp_path)
    links = {
        "good.wav": inside,
        "relative.wav": Path("clip.wav"),
        "out.wav": outside,
        "up.wav": Path("../clip.wav"),
        "dangling.wav": folder / "none.wav",
        "circle.wav": folder / "circle.wav",
    }
    for name, target in links.items():
        (folder / name).symlink_to(target)
    check_inside(inside, folder)
    check_inside(folder / "good.wav", folder)
    check_inside(folder / "relative.wav", folder)
    for name in ("out.wav", "up.wav"):
        with pytest.raises(BadAudio, match="leads out of the data set's folder"):
            check_inside(folder / name, folder)
    for name in ("dangling.wav", "circle.wav"):
        with pytest.raises(BadAudio, match="a broken link"):
            check_inside(folder / name, folder)


def written(folder, content):
    path = folder / "clip.bin"
    path.write_bytes(content)
    return path


def decoded(content):
    return soundfile.read(io.BytesIO(content), dtype="float32")[0]


@pytest.mark.parametrize("kind", [("WAV", None), ("FLAC", None), ("OGG", "VORBIS"), ("OGG", "OPUS")])
def test_all_streams_of_a_file_are_read(tmp_path, kind, monkeypatch):
    first, second = encoded(NOISE, RATE, *kind), encoded(NOISE[::-1], RATE, *kind)
    expected = np.concatenate([decoded(first), decoded(second)])
    path = written(tmp_path, first + second)
    for size in (audio.BLOCK_VALUES, 1000):
        monkeypatch.setattr(audio, "BLOCK_VALUES", size)
        assert probe(path, 4, 4).frames == len(expected)
        with streamed(path) as (_, blocks):
            np.testing.assert_array_equal(np.concatenate(list(blocks)), expected)
        np.testing.assert_array_equal(read(path)[0], expected)
    path = written(tmp_path, first + encoded(NOISE, 8000, *kind))
    assert refusal(path) == (
        "several streams in one file, which differ: 16000 Hz with 1 channels, and 8000 Hz with 1; split the file, or "
        "convert it to one stream"
    )


@pytest.mark.parametrize("size", [0, 0x7FFFF000, 0x7FFFFFDB, 0x80000000, 0xFFFFFFFF])
def test_a_wav_from_a_pipe_is_read_to_its_end(tmp_path, size):
    plain = encoded(NOISE, RATE)
    path = written(tmp_path, patched(patched(plain, 40, "<I", size), 4, "<I", size))
    assert probe(path, 2, 2).frames == len(NOISE)
    np.testing.assert_array_equal(read(path)[0], decoded(plain))


def test_a_flac_of_unknown_length_is_read_to_its_end(tmp_path):
    plain = encoded(NOISE, RATE, "FLAC")
    for length in (0, 1, len(NOISE) - 1):
        np.testing.assert_array_equal(read(written(tmp_path, flac_claiming(plain, length)))[0], decoded(plain))
    assert "does not end with a whole FLAC frame" in refusal(written(tmp_path, flac_claiming(plain, 0)[:-1]))


def test_samples_that_the_header_does_not_count_are_not_lost(tmp_path):
    plain = encoded(NOISE, RATE)
    assert refusal(written(tmp_path, patched(plain, 40, "<I", 1000))) == (
        "the header counts 1000 bytes of samples, but 63000 more bytes follow that belong to no chunk: the header is "
        "wrong, or something was appended"
    )


def test_a_recording_of_more_than_4_gb_is_decoded_in_several_streams(tmp_path, monkeypatch):
    monkeypatch.setattr(wav, "LONGEST_STREAM", 1001)
    for samples in (NOISE, np.column_stack([NOISE, NOISE[::-1]])):
        plain = encoded(samples, RATE, subtype="PCM_24")
        path = written(tmp_path, plain)
        assert probe(path, 2, 2).frames == len(NOISE)
        expected = soundfile.read(io.BytesIO(plain), dtype="float32", always_2d=True)[0].mean(axis=1)
        np.testing.assert_array_equal(read(path)[0], expected)


def test_many_streams_take_no_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(audio, "BLOCK_VALUES", 10_000)
    path = written(tmp_path, encoded(NOISE, RATE, "FLAC") * 200)
    tracemalloc.start()
    assert probe(path, 0, 1000).seconds == 400
    assert tracemalloc.get_traced_memory()[1] < 8e6
    tracemalloc.stop()


@pytest.mark.parametrize("peak", [1.5, 16.0])
def test_floats_may_be_louder_than_full_scale(tmp_path, peak):
    samples = np.append(NOISE, peak).astype(np.float32)
    np.testing.assert_array_equal(read(write(tmp_path, samples=samples, subtype="FLOAT"))[0], samples)
    assert probe(tmp_path / "clip.wav", 0, 60).frames == len(samples)
    np.testing.assert_array_equal(check_samples(samples, RATE)[0][0], samples)


@pytest.mark.parametrize(("peak", "bits"), [(17, 16), (32_767, 16), (32_768, 16), (2**23 - 1, 24), (2**31, 32)])
def test_integers_stored_as_floats_are_refused(tmp_path, peak, bits):
    samples = np.append(NOISE, -peak)
    reason = f"samples reach {np.float32(peak):.6g}, but floats must lie in -1..1: "
    reason += f"divide integers of {bits} bits by {2 ** (bits - 1)}"
    path = write(tmp_path, samples=samples, subtype="FLOAT")
    assert refusal(path) == reason
    with pytest.raises(BadAudio) as caught, streamed(path) as (_, blocks):
        list(blocks)
    assert str(caught.value) == reason
    with pytest.raises(BadAudio) as caught:
        check_samples(samples, RATE)
    assert str(caught.value) == reason
