"""The embedded data set: computed city scenes in SONYC-UST's format.

A scene is coloured background noise (the bed) with up to three sounds. Most sounds repeat one identical event (a hit, a
bark, a chord), because similarities between frames can show repetition within a clip. The annotations come from
simulated volunteers. The fainter a sound is, the more volunteers miss it or are unsure of its kind.

A clip depends only on seed, split and number, so every process can generate every clip independently.
"""

import csv
import importlib.resources
import io
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import soundfile

from iusp.data.taxonomy import Taxonomy, read_taxonomy
from iusp.io.files import atomic
from iusp.io.processes import in_order, worker_pool
from iusp.reporter import Reporter

Wave = npt.NDArray[np.float32]
Curve = npt.NDArray[np.float64]
Range = tuple[float, float]
Sound = Callable[[np.random.Generator], Wave]

SAMPLE_RATE = 16_000  # Hz
SECONDS = 10.0
SAMPLES = int(SECONDS * SAMPLE_RATE)

SENSORS = {"train": range(1, 31), "validate": range(31, 41), "test": range(41, 51)}
TAG_COUNT_SHARES = (0.04, 0.36, 0.40, 0.20)  # share of clips with 0, 1, 2, 3 coarse tags
LEAST_WEIGHT = 2  # smallest weight of a category, in fine tags; without it, categories with one fine tag would be rare
SNR_DB = (-16.0, 2.0)  # mean power of a sound's active frames, relative to the power of the bed
BED_DBFS = (-52.0, -38.0)  # root mean square
TILT = (-0.7, 0.7)  # coefficient a of the filter 1 + a z⁻¹: ±15 dB between 0 Hz and Nyquist
ACTIVE_DB = -20.0  # a frame is active if its power is above this, relative to the loudest frame
FRAME = 640  # samples; divides SAMPLES
LEAST_ACTIVE = 50  # frames: 2 s

VOLUNTEERS = 60  # number of volunteers of the training split
VOLUNTEERS_PER_CLIP = 3
FALSE_ALARM = 0.004  # probability per volunteer, clip and complete fine tag
MISS_HALF_DB = -14.0  # SNR at which half of the volunteers miss a sound
UNSURE_HALF_DB = -12.0  # SNR at which the doubt about a sound's kind is half of UNSURE_MOST
UNSURE_MOST = 0.4
SLOPE_DB = 4.0  # slope of both logistic curves
NEAR_DB, FAR_DB = -4.0, -10.0  # SNR above which a sound is near, and SNR below which it is far

CLIPS_PER_CHUNK = 25  # number of clips that a worker process generates per call
FLAC_COMPRESSION = 0.0  # libsndfile's fastest level
SCENE_STREAM, VOLUNTEER_STREAM = 0, 1  # independent random streams of a clip

TABLE_SIZE = 4096  # samples of a wavetable, a power of two
CONTROL_STEP = 16  # samples for which a slow curve is held: a control rate of 1 kHz
POOL_SAMPLES = 40 * SAMPLE_RATE
POOL_CORNER_HZ = 60.0  # below this frequency, coloured noise has a flat spectrum
WHITE, PINK, RED = 0.0, 1.0, 2.0  # exponents a of a power spectrum 1 / f^a
BED_COLOURS = (WHITE, 0.5, PINK, 1.5)

VOWELS_HZ = (
    (730, 1090, 2440),
    (530, 1840, 2480),
    (270, 2290, 3010),
    (570, 840, 2410),
    (300, 870, 2240),
    (500, 1500, 2500),
)
PENTATONIC = 2.0 ** (np.array([0, 2, 4, 7, 9, 12, 14, 16, 19, 21]) / 12)  # two octaves, as ratios to the root


@dataclass(frozen=True)
class Event:
    """One sound of a scene: its complete fine tag, and the SNR of its active frames in dB."""

    tag: str
    snr_db: float


@dataclass(frozen=True, eq=False)
class Scene:
    """A clip (float32, shape (160000,), in [-1, 1], 16 kHz) and the sounds that are in it."""

    samples: Wave
    events: tuple[Event, ...]


@dataclass(frozen=True)
class Scenes:
    """The embedded data set as a `Source`.

    Attributes:
        seed: seed of all scenes and volunteers.
        clips: number of clips by split.
        workers: number of processes that generate scenes.
    """

    seed: int
    clips: dict[str, int]
    workers: int

    @property
    def identity(self) -> tuple[()]:
        """An empty tuple, because only the settings and the code decide what is generated."""
        return ()

    def fetch(self, folder: Path, reporter: Reporter) -> Path:
        """Generate the data set in a folder and return the folder."""
        write(folder, self.seed, self.clips, self.workers, reporter)
        return folder


def write(folder: Path, seed: int, clips: dict[str, int], workers: int, reporter: Reporter) -> None:
    """Write an embedded data set in SONYC-UST's format. A killed run resumes.

    The folder gets `audio/<sensor>_<number>.flac` (16 bit), `annotations.csv` with the columns of 2019, and
    `dcase-ust-taxonomy.yaml`. Existing audio files are kept, so they must come from the same seed. The bytes depend
    neither on the number of workers nor on whether the run resumed.

    Args:
        folder: folder to write into; created if it is missing.
        seed: seed of all scenes and volunteers.
        clips: number of clips by split (`train`, `validate`, `test`).
        workers: number of processes that generate scenes.
        reporter: receives the number of finished clips.
    """
    audio = folder / "audio"
    audio.mkdir(parents=True, exist_ok=True)
    with atomic(folder / "dcase-ust-taxonomy.yaml") as temporary:
        temporary.write_bytes((importlib.resources.files("iusp.data") / "taxonomy.yaml").read_bytes())
    done, total = 0, sum(clips.values())
    with (
        atomic(folder / "annotations.csv") as temporary,
        temporary.open("w", encoding="utf-8", newline="") as stream,
        # Nothing here calls BLAS, so each process keeps to one core.
        worker_pool(workers) as pool,
    ):
        table = csv.writer(stream, lineterminator="\n")
        table.writerow(_columns(_taxonomy()))
        jobs = (partial(_write_clips, audio, seed, split, numbers) for split, numbers in _chunks(clips))
        for chunk in in_order(pool, jobs, workers):
            for rows in chunk:
                table.writerows(rows)
            done += len(chunk)
            reporter.progress("scenes", done, total)


def scene(seed: int, split: str, number: int) -> Scene:
    """Generate the clip with a number in a split."""
    rng = _generator(seed, split, number, SCENE_STREAM)
    events = _draw_events(rng)
    samples = _bed(rng)
    for event in events:
        sound = _tilted(SOUNDS[event.tag](rng), rng.uniform(*TILT))
        samples += _amplitude(event.snr_db) / _active_rms(sound) * sound
    samples *= _amplitude(rng.uniform(*BED_DBFS))
    samples /= max(1.0, float(np.abs(samples).max()))  # reduced in level instead of clipped
    return Scene(samples, events)


# ---------------------------------------------------------------------------------------------------------------------
# Files
# ---------------------------------------------------------------------------------------------------------------------


def _chunks(clips: dict[str, int]) -> Iterator[tuple[str, range]]:
    """Yield each split in ranges of clip numbers, one range per chunk."""
    for split, count in clips.items():
        for start in range(0, count, CLIPS_PER_CHUNK):
            yield split, range(start, min(start + CLIPS_PER_CHUNK, count))


def _write_clips(audio: Path, seed: int, split: str, numbers: range) -> list[list[list[str]]]:
    """Write the clips that are missing; return every clip's rows of the CSV."""
    for number in numbers:
        path = audio / _file_name(split, number)
        if not path.exists():
            pcm = np.rint(scene(seed, split, number).samples * np.iinfo(np.int16).max).astype(np.int16)
            encoded = io.BytesIO()
            soundfile.write(encoded, pcm, SAMPLE_RATE, format="FLAC", compression_level=FLAC_COMPRESSION)
            with atomic(path) as temporary:  # libsndfile itself does not report a full disk
                temporary.write_bytes(encoded.getbuffer())
    return [_rows(seed, split, number) for number in numbers]


def _sensor(split: str, number: int) -> int:
    return SENSORS[split][number % len(SENSORS[split])]


def _file_name(split: str, number: int) -> str:
    return f"{_sensor(split, number):02d}_{number:06d}.flac"


def _generator(seed: int, split: str, number: int, stream: int) -> np.random.Generator:
    """Return the generator of one random stream of one clip."""
    entropy = (seed, tuple(SENSORS).index(split), number, stream)
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(entropy)))


# ---------------------------------------------------------------------------------------------------------------------
# Annotations
# ---------------------------------------------------------------------------------------------------------------------


@cache
def _taxonomy() -> Taxonomy:
    """Read the packaged taxonomy."""
    with importlib.resources.as_file(importlib.resources.files("iusp.data") / "taxonomy.yaml") as path:
        return read_taxonomy(path)


def _category(tag: str) -> str:
    """Return the category id of a fine tag: ``1`` of ``1-2_medium-sounding-engine``."""
    return tag.partition("-")[0]


def _columns(taxonomy: Taxonomy) -> list[str]:
    """Return the header of SONYC-UST's CSV of 2019."""
    return [
        *("split", "sensor_id", "audio_filename", "annotator_id"),
        *(f"{tag}_presence" for tag in taxonomy.all_fine_tags),
        *(f"{tag}_proximity" for tag in taxonomy.all_fine_tags),
        *(f"{tag}_presence" for tag in taxonomy.coarse_tags),
    ]


def _rows(seed: int, split: str, number: int) -> list[list[str]]:
    """Return a clip's rows of the CSV: three volunteers in train, the truth (annotator 0) elsewhere."""
    taxonomy = _taxonomy()
    events = _draw_events(_generator(seed, split, number, SCENE_STREAM))
    if split == "train":
        rng = _generator(seed, split, number, VOLUNTEER_STREAM)
        annotators = 1 + rng.choice(VOLUNTEERS, VOLUNTEERS_PER_CLIP, replace=False)
        annotations = {int(annotator): _volunteer(rng, events, taxonomy) for annotator in annotators}
    else:
        annotations = {0: {event.tag: _proximity(event.snr_db) for event in events}}
    clip = [split, str(_sensor(split, number)), _file_name(split, number)]
    return [[*clip, str(annotator), *_cells(heard, taxonomy)] for annotator, heard in annotations.items()]


def _cells(heard: dict[str, str], taxonomy: Taxonomy) -> list[str]:
    """Return the 29 fine presences, 29 proximities and 8 coarse presences of an annotation (fine tag → proximity)."""
    categories = {_category(tag) for tag in heard}
    return [
        *(str(int(tag in heard)) for tag in taxonomy.all_fine_tags),
        *(heard.get(tag, "-1") for tag in taxonomy.all_fine_tags),
        *(str(int(category in categories)) for category in taxonomy.coarse),
    ]


def _volunteer(rng: np.random.Generator, events: tuple[Event, ...], taxonomy: Taxonomy) -> dict[str, str]:
    """Return the annotation of one volunteer: the proximity of each fine tag that the volunteer hears."""
    heard = {tag: "notsure" for tag in taxonomy.fine_tags if rng.random() < FALSE_ALARM}
    for event in events:
        if rng.random() < _fading(event.snr_db, MISS_HALF_DB):
            continue
        unsure = rng.random() < UNSURE_MOST * _fading(event.snr_db, UNSURE_HALF_DB)
        tag = taxonomy.uncertain.get(_category(event.tag), event.tag) if unsure else event.tag
        heard[tag] = _proximity(event.snr_db)
    return heard


def _fading(snr_db: float, half_db: float) -> float:
    """Return a probability that is one half at `half_db` and falls as the SNR rises."""
    return float(1 / (1 + np.exp((snr_db - half_db) / SLOPE_DB)))


def _proximity(snr_db: float) -> str:
    return "near" if snr_db > NEAR_DB else "far" if snr_db < FAR_DB else "notsure"


# ---------------------------------------------------------------------------------------------------------------------
# The scene around the sounds
# ---------------------------------------------------------------------------------------------------------------------


def _draw_events(rng: np.random.Generator) -> tuple[Event, ...]:
    """Draw the sounds of a clip: at most one sound of each category, with about equally frequent fine tags.

    A category with a single fine tag has the weight `LEAST_WEIGHT`.
    """
    categories = list(TAGS_BY_CATEGORY.values())
    weights = np.array([max(len(tags), LEAST_WEIGHT) for tags in categories])
    shares = weights / weights.sum()
    count = rng.choice(len(TAG_COUNT_SHARES), p=TAG_COUNT_SHARES)
    chosen = [categories[index] for index in rng.choice(len(categories), count, replace=False, p=shares)]
    return tuple(Event(tags[rng.integers(len(tags))], rng.uniform(*SNR_DB)) for tags in chosen)


def _bed(rng: np.random.Generator) -> Wave:
    """Return two coloured noises (mean power 1 together) that swell and fade slowly and independently."""
    layers = [_noise(rng, rng.choice(BED_COLOURS)) * _amplitude(_wander(rng, 4.0)) for _ in range(2)]
    return _unit(layers[0] + rng.uniform(0.2, 1.0) * layers[1])


def _tilted(wave: Wave, tilt: float) -> Wave:
    """Apply the filter 1 + tilt z⁻¹, which dulls or sharpens a sound as a distance, a wall or a microphone does."""
    result = wave.copy()
    result[1:] += tilt * wave[:-1]
    return result


def _active_rms(wave: Wave) -> float:
    """Return the root mean square over the active frames of a sound, so that pauses do not make it fainter.

    If a sound has fewer than `LEAST_ACTIVE` active frames, its energy is spread over `LEAST_ACTIVE` frames, because a
    short sound must be louder to be noticed as easily as a long sound.
    """
    power = np.square(wave).reshape(-1, FRAME).mean(axis=1)
    active = power[power > power.max() * 10 ** (ACTIVE_DB / 10)]
    return float(np.sqrt(active.sum() / max(len(active), LEAST_ACTIVE)))


# ---------------------------------------------------------------------------------------------------------------------
# Parts of sounds
# ---------------------------------------------------------------------------------------------------------------------


def _amplitude(decibels: npt.ArrayLike) -> Wave:
    return np.asarray(10 ** (np.asarray(decibels) / 20), dtype=np.float32)


def _unit(wave: Wave) -> Wave:
    """Scale to a root mean square of 1."""
    scaled: Wave = wave / np.sqrt(np.mean(np.square(wave)))
    return scaled


def _time(seconds: float) -> Wave:
    """Return the sample times of a short event in seconds."""
    return (np.arange(int(seconds * SAMPLE_RATE)) / SAMPLE_RATE).astype(np.float32)


@cache
def _noise_pool(colour: float) -> Wave:
    """Return 40 s of Gaussian noise of a power spectrum 1 / f^colour, the same in every process."""
    rng = np.random.Generator(np.random.Philox(int(10 * colour)))
    spectrum = np.fft.rfft(rng.standard_normal(POOL_SAMPLES))
    hertz = np.fft.rfftfreq(POOL_SAMPLES, 1 / SAMPLE_RATE)
    coloured = np.fft.irfft(spectrum / np.maximum(hertz, POOL_CORNER_HZ) ** (colour / 2), POOL_SAMPLES)
    return _unit(coloured.astype(np.float32))


def _noise(rng: np.random.Generator, colour: float, samples: int = SAMPLES) -> Wave:
    """Cut a random piece out of the pool of noise, which is much cheaper than generating new noise."""
    start = rng.integers(POOL_SAMPLES - samples)
    return _noise_pool(colour)[start : start + samples]


def _wavetable(rng: np.random.Generator, amplitudes: npt.ArrayLike) -> Wave:
    """Return one period (TABLE_SIZE samples) of harmonics 1, 2, … of these amplitudes, random phases, unit power."""
    amplitudes = np.asarray(amplitudes)
    spectrum = np.zeros(TABLE_SIZE // 2 + 1, dtype=np.complex128)
    spectrum[1 : len(amplitudes) + 1] = amplitudes * np.exp(2j * np.pi * rng.random(len(amplitudes)))
    return _unit(np.fft.irfft(spectrum).astype(np.float32))


def _oscillate(table: Wave, hertz: Curve | Wave) -> Wave:
    """Read a wavetable at the given frequency of every sample."""
    phase = np.cumsum(hertz * (TABLE_SIZE / SAMPLE_RATE), dtype=np.float64)
    samples: Wave = table[phase.astype(np.int32) & (TABLE_SIZE - 1)]
    return samples


def _harmonics(hertz: float, top_hz: float) -> Curve:
    """Return the frequencies of a tone's harmonics up to `top_hz`."""
    return hertz * np.arange(1.0, int(top_hz / hertz) + 1)


def _held(control: Curve) -> Wave:
    """Bring a curve from the control rate to the sample rate."""
    return np.repeat(control.astype(np.float32), CONTROL_STEP)


def _control_time() -> Curve:
    """Return the times of a clip's control points in seconds."""
    return np.arange(0, SAMPLES, CONTROL_STEP) / SAMPLE_RATE


def _wander(rng: np.random.Generator, spread: float) -> Wave:
    """Return a slow random curve over the clip, uniform in ±`spread` at eight points and linear between them."""
    knots = np.linspace(0, SECONDS, 8)
    return _held(np.interp(_control_time(), knots, rng.uniform(-spread, spread, len(knots))))


def _span(rng: np.random.Generator) -> Range:
    """Draw when a lasting sound is heard: 5–10 s within the clip, from start to stop in seconds."""
    length = rng.uniform(SECONDS / 2, SECONDS)
    start = rng.uniform(0, SECONDS - length)
    return start, start + length


def _gate(rng: np.random.Generator) -> Wave:
    """Return the envelope of a lasting sound: 1 within its span, with ramps of 0.3 s."""
    start, stop = _span(rng)
    return _held(np.interp(_control_time(), (start, start + 0.3, stop - 0.3, stop), (0, 1, 1, 0)))


def _beats(rng: np.random.Generator, period: float, jitter: float = 0.0) -> Curve:
    """Return the times in seconds of the beats that fill a span; `jitter` is the relative deviation of a period."""
    start, stop = _span(rng)
    periods = period * (1 + jitter * rng.standard_normal(int((stop - start) / period)))
    onsets: Curve = start + np.cumsum(periods) - periods[0]
    return onsets


def _paste(events: list[Wave], onsets: Iterable[float]) -> Wave:
    """Place one event at each onset (in seconds), cycling through the events; samples after the clip's end are cut."""
    clip = np.zeros(SAMPLES, dtype=np.float32)
    for index, onset in enumerate(onsets):
        event, start = events[index % len(events)], int(onset * SAMPLE_RATE)
        part = clip[start : start + len(event)]
        part += event[: len(part)]
    return clip


def _flat_top(time: Wave, ramp: float) -> Wave:
    """Return an envelope that rises and falls within `ramp` seconds."""
    envelope: Wave = np.clip(np.minimum(time, time[-1] - time) / ramp, 0, 1)
    return envelope


# ---------------------------------------------------------------------------------------------------------------------
# Sounds: each function returns float32 of shape (160000,) at an arbitrary level
# ---------------------------------------------------------------------------------------------------------------------


def _engine(rng: np.random.Generator, f0: Range) -> Wave:
    """Generate an engine that fires at f0 Hz: harmonics through two resonances, slow drift, and red noise."""
    # The table holds two firings. Its odd harmonics are the half orders that uneven cylinders produce.
    half_order = rng.uniform(*f0) / 2
    hertz = _harmonics(half_order, 4000)
    amplitudes = half_order / hertz
    for centre in rng.uniform((150, 600), (600, 2200)):
        amplitudes *= 1 + 8 * np.exp(-(((hertz - centre) / (0.25 * centre)) ** 2))
    amplitudes[::2] *= 0.35
    tone = _oscillate(_wavetable(rng, amplitudes), half_order * (1 + _wander(rng, 0.06)))
    return _gate(rng) * (tone + 0.4 * _noise(rng, RED))


def _hit(rng: np.random.Generator) -> Wave:
    """Generate one metallic hit of 0.3 s: four decaying partials and a burst of noise."""
    time = _time(0.3)
    hit: Wave = 0.7 * _noise(rng, WHITE, len(time)) * np.exp(-time / rng.uniform(0.008, 0.03))
    for hertz in np.geomspace(300, 4500, 4) * rng.uniform(0.6, 1.5, 4):
        envelope = rng.uniform(0.3, 1) * np.exp(-time / rng.uniform(0.02, 0.07))
        hit += envelope * np.sin(2 * np.pi * hertz * time)
    return hit


def _impact_machine(rng: np.random.Generator, hits_per_second: Range) -> Wave:
    """Generate a machine that repeats one hit at nearly even intervals."""
    return _paste([_hit(rng)], _beats(rng, 1 / rng.uniform(*hits_per_second), jitter=0.05))


def _impacts(rng: np.random.Generator) -> Wave:
    """Generate one to five hits at irregular times; they differ from a pile driver in rhythm, not in timbre."""
    return _paste([_hit(rng)], rng.uniform(0, SECONDS - 0.3, rng.integers(1, 6)))


def _saw(rng: np.random.Generator, f0: Range) -> Wave:
    """Generate a saw: a tone of equally strong harmonics up to 2–7.5 kHz, whose pitch f0 falls at a cut every 1–3 s."""
    hertz = rng.uniform(*f0)
    load = _held(0.5 - 0.5 * np.cos(2 * np.pi * _control_time() / rng.uniform(1, 3)))
    speed = 1 - rng.uniform(0.1, 0.35) * load
    table = _wavetable(rng, np.ones_like(_harmonics(hertz, rng.uniform(2000, 7500))))
    tone = _oscillate(table, hertz * speed * (1 + _wander(rng, 0.03)))
    return _gate(rng) * tone * (1 + load) * (1 + 0.6 * _noise(rng, WHITE))


def _car_horn(rng: np.random.Generator) -> Wave:
    """Generate one to four identical honks of 0.1–0.9 s, each with two notes a third apart."""
    time = _time(rng.uniform(0.1, 0.9))
    root = rng.uniform(300, 480)
    dyad = sum(
        _oscillate(_wavetable(rng, np.arange(1.0, 13) ** -0.5), np.full(len(time), hertz))
        for hertz in (root, root * rng.uniform(1.18, 1.27))
    )
    period = len(time) / SAMPLE_RATE + rng.uniform(0.1, 1.2)
    return _paste([dyad * _flat_top(time, 0.01)], rng.uniform(0, 5) + period * np.arange(rng.integers(1, 5)))


def _car_alarm(rng: np.random.Generator) -> Wave:
    """Generate an alarm of 3–8 equal chirps per second."""
    period = 1 / rng.uniform(3, 8)
    time = _time(0.85 * period)
    hertz = np.geomspace(rng.uniform(600, 1200), rng.uniform(1500, 2600), len(time))[:: rng.choice((-1, 1))]
    chirp = _oscillate(_wavetable(rng, (1, 0.4, 0.3)), hertz) * _flat_top(time, 0.005)
    return _paste([chirp], _beats(rng, period))


def _siren(rng: np.random.Generator) -> Wave:
    """Generate a tone that sweeps between 450 and 1700 Hz, slowly (wail) or fast (yelp)."""
    period = rng.uniform(2.5, 6) if rng.random() < 0.5 else rng.uniform(0.2, 0.5)
    low, high = rng.uniform(450, 700), rng.uniform(1100, 1700)
    turn = 0.5 - 0.5 * np.cos(2 * np.pi * (_control_time() / period + rng.random()))
    return _gate(rng) * _oscillate(_wavetable(rng, (1, 0.5, 0.4, 0.2)), _held(low * (high / low) ** turn))


def _reverse_beeper(rng: np.random.Generator) -> Wave:
    """Generate a beep of 0.95–1.5 kHz every 0.7–1.2 s."""
    period = rng.uniform(0.7, 1.2)
    time = _time(rng.uniform(0.4, 0.55) * period)
    beep = _oscillate(_wavetable(rng, (1, 0.15, 0.3)), np.full(len(time), rng.uniform(950, 1500)))
    return _paste([beep * _flat_top(time, 0.01)], _beats(rng, period))


def _music(rng: np.random.Generator, root: Range, notes: int, partials: tuple[float, ...], kick: float) -> Wave:
    """Generate a loop of 4 or 8 decaying chords at 70–150 bpm, on a root in Hz, with or without a kick drum."""
    time = _time(60 / rng.uniform(70, 150))
    table, lowest = _wavetable(rng, partials), rng.uniform(*root)
    decay = np.exp(-time / rng.uniform(0.1, 0.4)) * _flat_top(time, 0.005)
    drum = kick * np.sin(2 * np.pi * (55 * time + 5 * (1 - np.exp(-time / 0.03)))) * np.exp(-time / 0.1)
    loop = [
        decay * sum(_oscillate(table, np.full(len(time), lowest * ratio)) for ratio in chord) + drum
        for chord in rng.choice(PENTATONIC, (rng.choice((4, 8)), notes))
    ]
    return _gate(rng) * np.resize(np.concatenate(loop), SAMPLES)


def _syllable(rng: np.random.Generator, pitch: float, formants: Curve) -> Wave:
    """Generate a vowel of 0.1–0.28 s: harmonics of a falling pitch in Hz, weighted by formants in Hz."""
    time = _time(rng.uniform(0.1, 0.28))
    hertz = _harmonics(pitch, 4000)
    weights = sum(np.exp(-(((hertz - centre) / 120) ** 2)) * 500 / centre for centre in formants) + 0.02
    falling = pitch * np.linspace(rng.uniform(1, 1.25), rng.uniform(0.8, 1), len(time))
    syllable: Wave = _oscillate(_wavetable(rng, weights), falling) * np.sin(np.pi * time / time[-1])
    return syllable


def _voices(rng: np.random.Generator, speakers: int, pitch: Range, drive: float = 0.0) -> Wave:
    """Generate speakers who each repeat three syllables, 0.12–0.34 s apart; `drive` > 0 overdrives a loudspeaker."""
    speech = np.zeros(SAMPLES, dtype=np.float32)
    for _ in range(speakers):
        hertz = rng.uniform(*pitch)
        vowels = rng.permutation(VOWELS_HZ)[:3] * rng.uniform(0.85, 1.2)  # scaled by the length of the vocal tract
        syllables = [_syllable(rng, hertz, formants) for formants in vowels]
        start, stop = _span(rng)
        onsets = start + np.cumsum(rng.uniform(0.12, 0.34, int((stop - start) / 0.23)))
        speech += _paste(syllables, onsets[(onsets < SECONDS) & (rng.random(len(onsets)) < 0.85)])
    return np.tanh(drive * speech) if drive else speech


def _dog(rng: np.random.Generator) -> Wave:
    """Generate two to eight identical barks: a pitch that rises and falls within 250–850 Hz, and noise."""
    time = _time(rng.uniform(0.07, 0.2))
    arch = np.sin(np.pi * time / time[-1])
    low, high = rng.uniform(250, 450), rng.uniform(500, 850)
    bark = _oscillate(_wavetable(rng, np.arange(1.0, 9) ** -0.7), low + (high - low) * arch)
    bark = arch * (bark + 0.5 * _noise(rng, WHITE, len(time)))
    return _paste([bark], rng.uniform(0, 3) + np.cumsum(rng.uniform(0.25, 0.9, rng.integers(2, 9))))


_HARMONIC = tuple(1 / k for k in range(1, 9))
SOUNDS: dict[str, Sound] = {
    "1-1_small-sounding-engine": partial(_engine, f0=(70, 170)),
    "1-2_medium-sounding-engine": partial(_engine, f0=(38, 80)),
    "1-3_large-sounding-engine": partial(_engine, f0=(18, 42)),
    "2-1_rock-drill": partial(_impact_machine, hits_per_second=(22, 45)),
    "2-2_jackhammer": partial(_impact_machine, hits_per_second=(8, 20)),
    "2-3_hoe-ram": partial(_impact_machine, hits_per_second=(3.5, 8)),
    "2-4_pile-driver": partial(_impact_machine, hits_per_second=(0.6, 1.8)),
    "3-1_non-machinery-impact": _impacts,
    "4-1_chainsaw": partial(_saw, f0=(85, 190)),
    "4-2_small-medium-rotating-saw": partial(_saw, f0=(220, 520)),
    "4-3_large-rotating-saw": partial(_saw, f0=(110, 260)),
    "5-1_car-horn": _car_horn,
    "5-2_car-alarm": _car_alarm,
    "5-3_siren": _siren,
    "5-4_reverse-beeper": _reverse_beeper,
    "6-1_stationary-music": partial(_music, root=(110, 220), notes=3, partials=_HARMONIC, kick=0),
    "6-2_mobile-music": partial(_music, root=(110, 220), notes=3, partials=_HARMONIC, kick=2.5),
    "6-3_ice-cream-truck": partial(_music, root=(450, 750), notes=1, partials=(1, 0, 0.3), kick=0),
    "7-1_person-or-small-group-talking": partial(_voices, speakers=1, pitch=(90, 260)),
    "7-2_person-or-small-group-shouting": partial(_voices, speakers=2, pitch=(220, 420)),
    "7-3_large-crowd": partial(_voices, speakers=6, pitch=(90, 320)),
    "7-4_amplified-speech": partial(_voices, speakers=1, pitch=(90, 260), drive=4),
    "8-1_dog-barking-whining": _dog,
}
TAGS_BY_CATEGORY = {
    category: [tag for tag in SOUNDS if _category(tag) == category] for category in sorted(set(map(_category, SOUNDS)))
}
