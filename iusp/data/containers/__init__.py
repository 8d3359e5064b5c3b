"""Find the audio in a WAV, FLAC or OGG file. The content of the file tells its format, and its header is checked."""

import re
from typing import BinaryIO

from iusp.data.containers import flac, ogg, wav
from iusp.data.containers.errors import BadAudio
from iusp.data.containers.spans import Spans
from iusp.data.containers.tags import skip_id3

HEAD = 64  # bytes that tell the format
# The format of a file, by its first bytes.
FORMATS = (
    (rb"(RIFF|RIFX|RF64|BW64)....WAVE|riff\x2e\x91\xcf\x11", "a WAV file"),
    (rb"fLaC", "a FLAC file"),
    (rb"OggS\x00", "an OGG file"),
    (rb"FORM....AIF[FC]", "an AIFF file"),
    (rb"caff\x00", "a CAF file"),
    (rb"\.snd\x00\x00|dns\...\x00\x00", "an AU file"),
    (rb"....ftyp", "an MP4 or M4A file"),
    (rb"\x1aE\xdf\xa3", "a Matroska or WebM file"),
    (rb"0&\xb2u\x8e\x66\xcf\x11", "a WMA file"),
    (rb"\xff[\xf0\xf1\xf8\xf9][\x40-\x7f\x80-\xbf]", "an AAC file"),
    (rb"ID3[\x02-\x04]|\xff[\xe2-\xe5\xf2-\xf5\xfa-\xfd][\x10-\xef]", "an MP3 file"),
    (rb"#!AMR", "an AMR file"),
    (rb"\x0bw.{3}[\x30-\x60]", "an AC-3 file"),
    (rb"wvpk", "a WavPack file"),
    (rb"MAC .[\x0b-\x10]", "a Monkey's Audio file"),
    (rb"TTA1\x01\x00", "a True Audio file"),
    (rb"Creative Voice File", "a VOC file"),
    (rb"NIST_1A", "a NIST SPHERE file"),
    (rb"DSD \x1c\x00|FRM8\x00", "a DSD file"),
    (rb"RIFF....AVI ", "an AVI file"),
    (rb"MThd\x00\x00\x00\x06", "a MIDI file"),
)
SUPPORTED = ("a WAV file", "a FLAC file", "an OGG file")


def find_streams(file: BinaryIO, size: int) -> list[Spans]:
    """Return one or more files that libsndfile can decode, one after the other, to the whole recording.

    Their headers state the number of samples that they contain. Nothing that the container holds is left out: what
    cannot be decoded is refused.

    Args:
        file: the file; it must stay open while the streams are read.
        size: its size in bytes.

    Raises:
        BadAudio: the file is empty, truncated, inconsistent, in another format, or contains more than it states.
    """
    if not size:
        raise BadAudio("empty file")
    whole = Spans(file, [range(size)])
    content = whole.joined(range(skip_id3(whole, 0), size))
    # MP3 is the format that usually begins with an ID3 tag.
    name = format_of(content.at(0, HEAD)) or format_of(whole.at(0, HEAD))
    match name:
        case "a WAV file":
            return wav.find_streams(content)
        case "a FLAC file":
            return flac.find_streams(content)
        case "an OGG file":
            return ogg.find_streams(content)
        case None:
            raise BadAudio("not audio: neither WAV, FLAC nor OGG")
    raise BadAudio(f"{name}: convert it to WAV, FLAC or OGG")


def format_of(head: bytes) -> str | None:
    """Return the audio or video format of a file, by its first `HEAD` bytes; None for any other file."""
    return next((name for magic, name in FORMATS if re.match(magic, head, re.DOTALL)), None)
