"""Where the sound lies in a file: WAV, FLAC and OGG are told apart by their content, and their headers are checked."""

import re
from typing import BinaryIO

from iusp.data.containers import flac, ogg, wav
from iusp.data.containers.errors import BadAudio
from iusp.data.containers.spans import Spans
from iusp.data.containers.tags import skip_id3

# Formats that people mistake for WAV, FLAC or OGG, by the first bytes of the file.
OTHER_FORMATS = (
    (rb"FORM....AIF[FC]", "an AIFF file"),
    (rb"caff", "a CAF file"),
    (rb"\.snd|dns\.", "an AU file"),
    (rb"....ftyp", "an MP4 or M4A file"),
    (rb"\x1aE\xdf\xa3", "a Matroska or WebM file"),
    (rb"0&\xb2u\x8e\x66\xcf\x11", "a WMA file"),
    (rb"\xff[\xf0\xf1\xf8\xf9][\x40-\x7f\x80-\xbf]", "an AAC file"),
    (rb"\xff[\xe2-\xe5\xf2-\xf5\xfa-\xfd][\x10-\xef]", "an MP3 file"),
    (rb"#!AMR", "an AMR file"),
    (rb"\x0bw", "an AC-3 file"),
    (rb"wvpk", "a WavPack file"),
    (rb"MAC ", "a Monkey's Audio file"),
    (rb"TTA[12]", "a True Audio file"),
    (rb"Creative Voice File", "a VOC file"),
    (rb"NIST_1A", "a NIST SPHERE file"),
    (rb"DSD |FRM8", "a DSD file"),
    (rb"RIFF....AVI ", "an AVI file"),
    (rb"MThd", "a MIDI file"),
)
HEAD = 32  # bytes that tell the format


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
    head = content.at(0, HEAD)
    if wav.is_wav(content):
        return wav.find_streams(content)
    if head.startswith(flac.MAGIC):
        return flac.find_streams(content)
    if head.startswith(ogg.MAGIC):
        return ogg.find_streams(content)
    # MP3 is the format that begins with an ID3 tag.
    name = other_format(head) or ("an MP3 file" if content.size < size else None)
    raise BadAudio(f"{name}: convert it to WAV, FLAC or OGG" if name else "not audio: neither WAV, FLAC nor OGG")


def other_format(head: bytes) -> str | None:
    """Name the audio format that a file's first bytes belong to, if it is not WAV, FLAC or OGG."""
    return next((name for magic, name in OTHER_FORMATS if re.match(magic, head, re.DOTALL)), None)
