"""Small real datasets: pictures drawn here, tars, Parquet, JSON lines and a film, in stores in memory."""

import io
import json
import tarfile
from collections.abc import Mapping
from uuid import uuid4

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from k25_pipelines.catalog.registration import Registration
from k25_pipelines.catalog.registry import register
from k25_pipelines.storage.store import Store, open_store


@pytest.fixture
def lake() -> Store:
    """An empty lake in memory."""
    return open_store(f"memory://{uuid4().hex}")


def registered(lake: Store, name: str, kind: str, **fields) -> Registration:
    """Register `raw/<name>` of the lake."""
    base = {"uri": f"{lake.url}/raw/{name}", "licence": "CC0-1.0", "source": "drawn for a test"}
    return register(lake, Registration(name=name, kind=kind, **{**base, **fields}))


def picture(width: int = 8, height: int = 6, kind: str = "JPEG", **options) -> bytes:
    """Encode a flat picture."""
    data = io.BytesIO()
    Image.new("RGB", (width, height), (200, 40, 90)).save(data, kind, **options)
    return data.getvalue()


def turned(orientation: int) -> Image.Exif:
    """EXIF that says how a picture is turned."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def tar(members: Mapping[str, bytes]) -> bytes:
    """Write members into a tar, in their order."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return data.getvalue()


def json_bytes(value: object) -> bytes:
    """Write JSON."""
    return json.dumps(value).encode()


def json_lines(*records: object) -> bytes:
    """Write JSON lines."""
    return b"".join(json_bytes(record) + b"\n" for record in records)


def parquet(columns: Mapping[str, list], rows_of_group: int = 2) -> bytes:
    """Write a Parquet table of small row groups."""
    data = io.BytesIO()
    pq.write_table(pa.table(dict(columns)), data, row_group_size=rows_of_group)
    return data.getvalue()


def film(folder, frames: int = 5, width: int = 32, height: int = 16, fps: int = 10) -> bytes:
    """Encode a film of flat frames."""
    import imageio_ffmpeg

    path = folder / f"{uuid4().hex}.mp4"
    writer = imageio_ffmpeg.write_frames(str(path), (width, height), fps=fps, macro_block_size=2, codec="libx264")
    writer.send(None)
    for frame in range(frames):
        writer.send(bytes([frame * 20]) * (width * height * 3))
    writer.close()
    return path.read_bytes()
