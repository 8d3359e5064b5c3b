"""OGG: Vorbis, Opus and FLAC, in one stream or in a chain of streams. Video beside the sound is skipped."""

from dataclasses import dataclass, field
from typing import NamedTuple

from iusp.data.containers import flac
from iusp.data.containers.errors import BadAudio
from iusp.data.containers.spans import Part, Spans
from iusp.data.containers.tags import end_of_content

MAGIC = b"OggS"
PAGE_HEADER = 27  # bytes, without the table of segments
FIRST, LAST = 0x02, 0x04  # flags of the first and of the last page of a stream
NO_POSITION = -1  # on this page no packet ends
FLAC_START = 9  # bytes before the native stream, in the first page of FLAC
SOUND = {b"\x01vorbis": "Vorbis", b"OpusHead": "Opus", b"\x7fFLAC": "FLAC"}
OTHER_SOUND = {b"Speex": "Speex", b"CELT": "CELT", b"\x00pcm": "PCM", b"PCM ": "PCM"}
TRUNCATED = "truncated: the last OGG page is missing or incomplete"


class _Page(NamedTuple):
    start: int
    body: int  # position
    end: int
    flags: int
    granule: int  # number of samples up to the end of the page, in units of the codec
    serial: int
    number: int


@dataclass
class _Stream:
    """A logical stream: the pages with one serial number.

    Attributes:
        codec: first bytes of its first packet.
        parts: the ranges of its pages; in FLAC, of their contents.
        granule: its last position.
        number: number of its last page.
        is_complete: whether its last page has been seen.
    """

    codec: bytes
    parts: list[range] = field(default_factory=list)
    granule: int = NO_POSITION
    number: int = 0
    is_complete: bool = False

    @property
    def name(self) -> str:
        return next((name for magic, name in SOUND.items() if self.codec.startswith(magic)), "")

    def add(self, page: _Page) -> None:
        """Append a page.

        Raises:
            BadAudio: a page is missing, the positions of the pages decrease, or the page follows the last one.
        """
        if self.is_complete:
            raise BadAudio("damaged: more pages follow the last page of an OGG stream")
        # Who records a radio programme gets the header and then any later page.
        if page.number != self.number + 1 and self.granule > 0:
            raise BadAudio("damaged: an OGG page is missing")
        self.number = page.number
        if page.granule != NO_POSITION:
            if page.granule < self.granule:
                raise BadAudio("damaged: the positions of the OGG pages decrease")
            self.granule = page.granule
        self.is_complete = bool(page.flags & LAST)
        start = page.start
        if self.name == "FLAC":
            start = page.body if self.parts else page.body + FLAC_START
        if self.parts and self.parts[-1].stop == start:
            start = self.parts.pop().start
        self.parts.append(range(start, page.end))


def find_streams(file: Spans) -> list[Spans]:
    """Return the audio streams of a file, in their order.

    Reads the header of every page, because libsndfile takes any last page for the end and reads the first stream only.

    Raises:
        BadAudio: a page is missing or damaged, or the file does not contain exactly one supported stream at a time.
    """
    streams: list[Spans] = []
    group: dict[int, _Stream] = {}  # streams side by side
    has_started = False  # whether the group has more than its first pages
    position = 0
    while position < file.size:
        page = _page(file, position)
        if page is None:
            if group and end_of_content(file, position, file.size) == position:
                break
            raise BadAudio("truncated or damaged: an OGG page is broken, or something was appended")
        if page.flags & FIRST:
            if has_started or all(stream.is_complete for stream in group.values()):
                streams += _closed(file, group)
                group, has_started = {}, False
            group[page.serial] = _Stream(file.at(page.body, 8))
        else:
            has_started = True
        if page.serial not in group:
            raise BadAudio("damaged: an OGG page belongs to no stream")
        group[page.serial].add(page)
        position = page.end
    if position > file.size:
        raise BadAudio(TRUNCATED)
    return streams + _closed(file, group)


def _page(file: Spans, position: int) -> _Page | None:
    head = file.at(position, PAGE_HEADER + 255)
    if len(head) < PAGE_HEADER or not head.startswith(MAGIC):
        return None
    body = PAGE_HEADER + head[26]
    return _Page(
        start=position,
        body=position + body,
        end=position + body + sum(head[PAGE_HEADER:body]),
        flags=head[5],
        granule=int.from_bytes(head[6:14], "little", signed=True),
        serial=int.from_bytes(head[14:18], "little"),
        number=int.from_bytes(head[18:22], "little"),
    )


def _closed(file: Spans, group: dict[int, _Stream]) -> list[Spans]:
    """Return the audio stream of streams that lie side by side; none at the start of the file."""
    if not all(stream.is_complete for stream in group.values()):
        raise BadAudio(TRUNCATED)
    for stream in group.values():
        for magic, name in OTHER_SOUND.items():
            if stream.codec.startswith(magic):
                raise BadAudio(f"an OGG file with {name}: convert it to WAV, FLAC or OGG with Vorbis or Opus")
    sound = [stream for stream in group.values() if stream.name]
    if len(sound) > 1:
        names = " and ".join(stream.name for stream in sound)
        raise BadAudio(f"several sounds side by side in one OGG file ({names}): extract one of them")
    if group and not sound:
        raise BadAudio("an OGG file without Vorbis, Opus or FLAC: convert it to WAV, FLAC or OGG")
    streams: list[Spans] = []
    for stream in sound:
        parts: list[Part] = [*stream.parts]
        joined = file.joined(*parts)
        # libsndfile is built without FLAC in OGG, whose packets are those of the native format.
        streams += flac.find_streams(joined) if stream.name == "FLAC" else [joined]
    return streams
