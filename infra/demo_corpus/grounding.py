"""Grounding images: drawings pasted on photographs in, image files and one COCO JSON out; boxes exact by design."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from PIL import Image

from infra.demo_corpus.captions import encoded
from infra.demo_corpus.drawings import Drawing, render
from k25_pipelines.keys import random_key

LICENCE = "CC-BY-SA-4.0"
LICENCE_URL = "https://creativecommons.org/licenses/by-sa/4.0/"
SIDES = (140, 280)
"""Least and most width and height of an image [pixels]."""
OBJECT_SHARES = (20, 45)
"""Least and most side of an object [percent of the image's shorter side]."""
MAX_OBJECTS = 5
PLACEMENT_TRIES = 12
GAP = 2
"""Least distance of two boxes [pixels]."""
OPAQUE = 128
"""Least alpha of a pixel that belongs to an object."""
PLAIN_ONE_IN = 8
PLAIN_COLOURS = ("#f4f1e8", "#dfe9f5", "#e8f3df", "#f6e1e6", "#d8d8d8")
NUM_LABELS = 240

Box = tuple[int, int, int, int]
"""Left, top, width, height of the opaque pixels [pixels]; left and top are edges, as COCO counts them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GroundingImage:
    """One image with what stands where."""

    file: str
    data: bytes
    width: int
    height: int
    objects: tuple[tuple[str, Box], ...]
    """(label, box) in the order in which they were pasted."""
    source: str


def label_drawings(drawings: Sequence[Drawing]) -> list[Drawing]:
    """Return the drawings to paste: short plain names, never held out, so that each label recurs."""
    kept = [
        drawing
        for drawing in drawings
        if not drawing.is_held_out and not drawing.is_variant and _is_plain_name(drawing.name)
    ]
    return sorted(kept, key=lambda drawing: random_key("label", drawing.hex_code))[:NUM_LABELS]


def compose(number: int, drawings: Sequence[Drawing], backdrops: Sequence[tuple[str, Image.Image]]) -> GroundingImage:
    """Return grounding image `number`: up to five different drawings on a crop of a photograph, or on plain colour.

    A place where a box would overlap another's is rejected, so every object is whole.

    Args:
        number: names the image's draws.
        drawings: what may be pasted.
        backdrops: (source, pixels) of the photographs to paste on.
    """
    draw = _Draws(number)
    width, height = draw.between("width", *SIDES), draw.between("height", *SIDES)
    image, ground = _ground(draw, (width, height), backdrops)
    objects: list[tuple[str, Box]] = []
    for slot in range(draw.between("objects", 1, MAX_OBJECTS)):
        drawing = drawings[draw.below(f"drawing {slot}", len(drawings))]
        share = draw.between(f"share {slot}", *OBJECT_SHARES)
        pasted = render(drawing, max(16, min(width, height) * share // 100))
        place = _free_place(draw, slot, image.size, pasted, [box for _, box in objects])
        if place is not None and drawing.name not in [label for label, _ in objects]:
            image.paste(pasted, place, pasted)
            objects.append((drawing.name, _box(pasted, place)))
    is_jpeg = draw.below("file format", 5) != 0
    return GroundingImage(
        file=f"{number:06d}.{'jpg' if is_jpeg else 'png'}",
        data=encoded(image, is_jpeg=is_jpeg),
        width=width,
        height=height,
        objects=tuple(objects),
        source=f"{drawings[0].source.split(' ')[0]} drawings on {ground}",
    )


def coco(images: Sequence[GroundingImage]) -> bytes:
    """Return the COCO JSON of the images: licences, images with licence and source, categories, boxes."""
    labels = sorted({label for image in images for label, _ in image.objects})
    category = {label: number for number, label in enumerate(labels, start=1)}
    document = {
        "info": {"description": "Emoji drawings pasted on photographs", "version": "1"},
        "licenses": [{"id": 1, "name": LICENCE, "url": LICENCE_URL}],
        "images": [
            {
                "id": number,
                "file_name": image.file,
                "width": image.width,
                "height": image.height,
                "license": 1,
                "source": image.source,
            }
            for number, image in enumerate(images, start=1)
        ],
        "categories": [{"id": number, "name": label} for label, number in category.items()],
        "annotations": list(_annotations(images, category)),
    }
    return (json.dumps(document, ensure_ascii=False, indent=1) + "\n").encode()


def _annotations(images: Sequence[GroundingImage], category: dict[str, int]) -> Iterator[dict]:
    number = 0
    for image_id, image in enumerate(images, start=1):
        for label, box in image.objects:
            number += 1
            yield {
                "id": number,
                "image_id": image_id,
                "category_id": category[label],
                "bbox": list(box),
                "area": box[2] * box[3],
                "iscrowd": 0,
            }


class _Draws:
    """Integers drawn for one image, each under a name of its own."""

    def __init__(self, number: int) -> None:
        self.number = number

    def below(self, name: str, limit: int) -> int:
        return random_key("grounding", self.number, name) % limit

    def between(self, name: str, low: int, high: int) -> int:
        return low + self.below(name, high - low + 1)


def _ground(
    draw: _Draws, size: tuple[int, int], backdrops: Sequence[tuple[str, Image.Image]]
) -> tuple[Image.Image, str]:
    """Return what the objects stand on and a word on where it comes from."""
    if draw.below("plain", PLAIN_ONE_IN) == 0:
        return Image.new("RGB", size, PLAIN_COLOURS[draw.below("colour", len(PLAIN_COLOURS))]), "a plain ground"
    source, pixels = backdrops[draw.below("backdrop", len(backdrops))]
    (width, height), scale = size, draw.between("zoom", 100, 200) / 100
    cover = min(pixels.width / width, pixels.height / height)  # source pixels an output pixel, at most
    crop_width, crop_height = int(width * cover / scale), int(height * cover / scale)
    x, y = draw.below("x", pixels.width - crop_width + 1), draw.below("y", pixels.height - crop_height + 1)
    box = (x, y, x + crop_width, y + crop_height)
    return pixels.resize(size, Image.Resampling.BICUBIC, box=box), source


def _free_place(
    draw: _Draws, slot: int, size: tuple[int, int], pasted: Image.Image, taken: list[Box]
) -> tuple[int, int] | None:
    """Return where `pasted` fits inside the image without touching a taken box; None after some tries."""
    for attempt in range(PLACEMENT_TRIES):
        x = draw.below(f"x {slot} {attempt}", size[0] - pasted.width + 1)
        y = draw.below(f"y {slot} {attempt}", size[1] - pasted.height + 1)
        if not any(_touch(_box(pasted, (x, y)), box) for box in taken):
            return x, y
    return None


def _box(pasted: Image.Image, place: tuple[int, int]) -> Box:
    opaque = pasted.getchannel("A").point([255 if alpha >= OPAQUE else 0 for alpha in range(256)])
    left, top, right, bottom = opaque.getbbox() or (0, 0, 0, 0)
    return place[0] + left, place[1] + top, right - left, bottom - top


def _touch(one: Box, other: Box) -> bool:
    return (
        one[0] < other[0] + other[2] + GAP
        and other[0] < one[0] + one[2] + GAP
        and one[1] < other[1] + other[3] + GAP
        and other[1] < one[1] + one[3] + GAP
    )


def _is_plain_name(name: str) -> bool:
    """Return whether a name is short and of letters, and no button's: those are thin lines, lost on a photograph."""
    words = name.split(" ")
    return (
        len(words) <= 3
        and words[-1] != "button"
        and all(word.isascii() and word.replace("-", "").isalpha() for word in words)
    )
