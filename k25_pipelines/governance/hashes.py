"""Perceptual hashes of a dataset version's images, kept beside its manifest; and the words of samples without media.

k25/datasets/<name>/perceptual/<manifest digest>.arrow    a hash a part, null where it is no image or nobody looked yet
"""

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa

from k25_pipelines.catalog.line import MEDIA_KINDS, Line, Part
from k25_pipelines.catalog.manifest import Manifest, part_columns
from k25_pipelines.catalog.registry import dataset_versions
from k25_pipelines.catalog.scan import compact_json
from k25_pipelines.errors import ObjectNotFoundError, SampleError
from k25_pipelines.sample.decode import decode_image
from k25_pipelines.sample.perceptual import hash_bits, perceptual_hash
from k25_pipelines.sample.read import RawSample, Tables, cell_reader, part_bytes, read_line
from k25_pipelines.storage.store import Store, open_store

Progress = Callable[[int, int, str], None]
KEPT_EVERY = 2048
"""Images after which what is known is written down, so that a command that was killed goes on from there."""
UNREADABLE = "0" * 16
"""Hash of an image that cannot be decoded: it is near to nothing that anybody asks for."""
_SCHEMA = pa.schema([("hash", pa.string())])


def read_hashes(lake: Store, manifest: Manifest) -> list[str | None]:
    """Return the perceptual hash of each part, in the order of the manifest's parts, as far as they are known."""
    num_parts = int(manifest.columns.first_part[-1])
    try:
        known = _read(lake, manifest.dataset, manifest.digest)
    except (ObjectNotFoundError, pa.ArrowInvalid):
        known = _of_an_earlier_version(lake, manifest)
    return [*known, *[None] * (num_parts - len(known))][:num_parts]


def fill_hashes(
    lake: Store, manifest: Manifest, *, threads: int = 4, progress: Progress | None = None
) -> list[str | None]:
    """Hash the images of which nobody knows it yet, write that down, and return the hash of each part.

    Args:
        lake: where hashes are kept.
        manifest: the dataset version.
        threads: images read at once.
        progress: told images done, images in all, and what.
    """
    known, cells = read_hashes(lake, manifest), cell_reader(manifest)
    columns = part_columns(manifest)
    images = (columns["kind"] == "image") & ~manifest.quarantined[columns["line"]]
    wanted = [place for place in np.flatnonzero(images).tolist() if known[place] is None]
    first = manifest.columns.first_part

    def hashed(place: int) -> str:
        line = int(columns["line"][place])
        return image_hash(cells(manifest.line(line).parts[place - first[line]]))

    with ThreadPoolExecutor(threads if (columns["row"] < 0).all() else 1, thread_name_prefix="perceptual") as pool:
        for begin in range(0, len(wanted), KEPT_EVERY):
            some = wanted[begin : begin + KEPT_EVERY]
            for done, (place, words) in enumerate(zip(some, pool.map(hashed, some), strict=True), start=begin + 1):
                known[place] = words
                if progress:
                    progress(done, len(wanted), "images hashed")
            lake.put(_key(manifest.dataset, manifest.digest), _bytes(known))
    return known


def image_hash(data: bytes) -> str:
    """Return the perceptual hash of an encoded image, UNREADABLE of what is none."""
    try:
        return perceptual_hash(decode_image(data))
    except SampleError:
        return UNREADABLE


def near(hashes: Sequence[str | None], wanted: Sequence[tuple[str, int]]) -> dict[int, tuple[str, int]]:
    """Return which of some hashes lie near wanted ones: place -> the nearest wanted hash and the bits between.

    Args:
        hashes: as `read_hashes` gives them.
        wanted: hashes, each with the most bits that may differ.
    """
    places = [place for place, words in enumerate(hashes) if words not in (None, UNREADABLE)]
    bits = np.array([hash_bits(hashes[place] or "") for place in places], dtype=np.uint64)
    found: dict[int, tuple[str, int]] = {}
    for words, distance in wanted:
        apart = np.bitwise_count(bits ^ np.uint64(hash_bits(words))).astype(np.int64)
        for at in np.flatnonzero(apart <= distance).tolist():
            place, bits_apart = places[at], int(apart[at])
            if place not in found or bits_apart < found[place][1]:
                found[place] = words, bits_apart
    return found


def has_media(line: Line) -> bool:
    """Whether a sample has an image or a video: then these are what it is known by, and not its words."""
    return any(part.kind in MEDIA_KINDS for part in line.parts)


def words_of(manifest: Manifest, line: int) -> str:
    """Return the digest of the words of a sample without media, wherever they stand. Raises SampleError."""
    store = open_store(manifest.uri)

    def fetch(shard: str, offset: int, num_bytes: int, etag: str) -> bytes:
        return store.get_range(shard, offset, num_bytes, etag=etag or None)

    return words_id(read_line(manifest, line, fetch, with_media=False))


def part_reader(manifest: Manifest) -> Callable[[Part], bytes]:
    """Return what reads the parts of a manifest as they are now, whatever their objects' etags are."""
    store, tables = open_store(manifest.uri), Tables()

    def fetch(shard: str, offset: int, num_bytes: int, etag: str) -> bytes:
        return store.get_range(shard, offset, num_bytes)

    return lambda part: part_bytes(part, fetch, tables, name=f"{manifest.dataset}: {part.shard}")


def words_id(raw: RawSample) -> str:
    """Return the digest of the words of a sample: its text, or else all that its JSON says."""
    words = raw.text if raw.text is not None else compact_json(raw.inline)
    return hashlib.sha256(words.encode()).hexdigest()


def _of_an_earlier_version(lake: Store, manifest: Manifest) -> list[str | None]:
    """Return the hashes of the longest earlier version that has any: lines keep their numbers, so parts keep theirs."""
    prefix = f"k25/datasets/{manifest.dataset}/perceptual/"
    versions = [info.key for info in lake.list(prefix)]
    known = [
        v["digest"] for v in dataset_versions(lake, manifest.dataset) if _key(manifest.dataset, v["digest"]) in versions
    ]
    num_parts = int(manifest.columns.first_part[-1])
    for name in reversed(known):
        if len(hashes := _read(lake, manifest.dataset, name)) <= num_parts:
            return hashes
    return []


def _read(lake: Store, dataset: str, version: str) -> list[str | None]:
    return pa.ipc.open_file(pa.BufferReader(lake.get(_key(dataset, version)))).read_all()["hash"].to_pylist()


def _bytes(known: Sequence[str | None]) -> bytes:
    sink = pa.BufferOutputStream()
    table = pa.table({"hash": pa.array(known, pa.string())}, schema=_SCHEMA)
    with pa.ipc.new_file(sink, _SCHEMA, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def _key(dataset: str, version: str) -> str:
    return f"k25/datasets/{dataset}/perceptual/{version}.arrow"
