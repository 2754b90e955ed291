"""A dataset version as pages of an index sorted by key: two versions share the pages in which they agree.

k25/datasets/<name>/pages/<manifest digest>.root     a row a page: name, lines, bytes
k25/datasets/<name>/pages/<page name>.page           a row a sample: key, licence, source, digests of the rest

Pages end where a hash of the key says so, not at a number of lines, so what is put in or taken out changes the pages
around it and moves no other (Muthitacharoen et al. 2001, "A Low-bandwidth Network File System").
"""

# pyright: reportAttributeAccessIssue=false
# pyarrow.compute makes its functions when it is imported.

import hashlib
import io
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from k25_pipelines.catalog.columns import one_array
from k25_pipelines.catalog.contents import content_ids
from k25_pipelines.catalog.manifest import Manifest, part_columns
from k25_pipelines.errors import ManifestError, ObjectNotFoundError
from k25_pipelines.keys import digest, mix64
from k25_pipelines.storage.store import Store

PAGES_VERSION = "pages-1"
PAGE_LINES = 1024
"""Lines of a page, on average."""
DIGESTS = ("facts", "place", "content")
"""Of a sample: what the manifest says of it; where its bytes stand and under which etags; its content ids, 0 where one
of its parts has none."""
PAGE = pa.schema(
    [("key", pa.string()), ("licence", pa.string()), ("source", pa.string()), *((d, pa.uint64()) for d in DIGESTS)]
)
ROOT = pa.schema([("page", pa.string()), ("num_lines", pa.int64()), ("num_bytes", pa.int64())])


@dataclass(frozen=True, kw_only=True, slots=True)
class Pages:
    """The pages of a dataset version, in the order of their keys."""

    dataset: str
    root: pa.Table
    """Of ROOT."""
    root_bytes: int
    """Size of the root's object [bytes]."""


def open_pages(lake: Store, manifest: Manifest) -> Pages:
    """Return the pages of a version; those of one that has none are written first."""
    with suppress(ObjectNotFoundError):
        return stored_pages(lake, manifest.dataset, manifest.digest)
    return write_pages(lake, manifest)


def stored_pages(lake: Store, dataset: str, version: str) -> Pages:
    """Return the pages of a version without its manifest: one GET. Raises ObjectNotFoundError: it has none yet."""
    data = lake.get(_root_key(dataset, version))
    return Pages(dataset=dataset, root=_table(data), root_bytes=len(data))


def write_pages(lake: Store, manifest: Manifest, *, anew: bool = False) -> Pages:
    """Write the pages of a version that are not there yet, then its root, and return them.

    Args:
        lake: where the manifest is.
        manifest: the version.
        anew: write pages that there are, too: more content ids are known by now, which names no page.
    """
    prefix = f"k25/datasets/{manifest.dataset}/pages/"
    known = {info.key: info.num_bytes for info in lake.list(prefix)}
    table, rows = page_rows(manifest, content_ids(lake, manifest)), list[dict]()
    for first, end in zip(*_bounds(table), strict=True):
        page = table.slice(first, end - first)
        name = _page_name(page)
        key = _page_key(manifest.dataset, name)
        if anew or key not in known:
            data = _bytes(page)
            lake.put(key, data)
            known[key] = len(data)
        rows.append({"page": name, "num_lines": page.num_rows, "num_bytes": known[key]})
    root = pa.Table.from_pylist(rows, schema=ROOT)
    lake.put(_root_key(manifest.dataset, manifest.digest), data := _bytes(root))
    return Pages(dataset=manifest.dataset, root=root, root_bytes=len(data))


def read_page(lake: Store, dataset: str, name: str) -> pa.Table:
    """Return a page, compared with its name. Raises ManifestError: it is another one."""
    page = _table(lake.get(_page_key(dataset, name)))
    if _page_name(page) != name:
        raise ManifestError(f"{lake.url}/{_page_key(dataset, name)} is not the page it is named for; delete it")
    return page


def page_rows(manifest: Manifest, contents: list[str | None]) -> pa.Table:
    """Return a row of PAGE for each line that is used, sorted by key; lines of one key in their order.

    Args:
        manifest: the version.
        contents: the content id of each part, None where it is unknown.
    """
    table = manifest.table.select(["key", "licence", "source"])
    for name, values in zip(DIGESTS, _digests(manifest, contents), strict=True):
        table = table.append_column(name, pa.array(values))
    table = table.append_column("line", pa.array(np.arange(manifest.num_lines)))
    table = table.filter(pa.array(~manifest.quarantined)).combine_chunks()
    return table.sort_by([("key", "ascending"), ("line", "ascending")]).select(PAGE.names).combine_chunks()


def _digests(manifest: Manifest, contents: list[str | None]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return uint64 [lines] for each of DIGESTS."""
    parts, table = part_columns(manifest), manifest.table
    facts = _hashed(_strings(parts["kind"]))
    for name in ("num_bytes", "width", "height", "frames", "orientation"):
        values = np.where(parts["row"] >= 0, 0, parts[name]) if name == "num_bytes" else parts[name]
        facts = _mixed(facts, values.astype(np.uint64))  # of a table, the bytes are those of a whole row group
    place = _mixed(_hashed(_strings(parts["etag"])), _hashed(_strings(parts["column"])))
    for name in ("offset", "row"):
        place = _mixed(place, parts[name].astype(np.uint64))
    content = _hashed(pa.array([each or "" for each in contents], pa.string()))
    known = np.array([each is not None for each in contents], dtype=bool)
    whole = np.bincount(parts["line"][~known], minlength=manifest.num_lines) == 0
    line = _mixed(_summed(manifest, parts, facts), table["text_length"].to_numpy().astype(np.uint64))
    line = _mixed(line, _hashed(one_array(table["inline"])))
    return line, _summed(manifest, parts, place), np.where(whole, _summed(manifest, parts, content), np.uint64(0))


def _summed(manifest: Manifest, parts: dict[str, np.ndarray], values: np.ndarray) -> np.ndarray:
    """Return uint64 [lines] of values of their parts, in their order."""
    first = np.asarray(manifest.columns.first_part)
    place = np.arange(len(values), dtype=np.int64) - first[parts["line"]]
    summed = np.zeros(manifest.num_lines, np.uint64)
    np.add.at(summed, parts["line"], _mixed(values, place.astype(np.uint64)))
    return summed


def _strings(values: np.ndarray) -> pa.Array:
    return pa.array(values.tolist(), pa.string())


def _hashed(array: pa.Array) -> np.ndarray:
    """Return uint64 of strings: the same for the same string, wherever it is asked for."""
    encoded = array.dictionary_encode()
    words = encoded.dictionary.to_pylist()
    hashed = [hashlib.blake2b(word.encode(), digest_size=8).digest() for word in words]
    return np.frombuffer(b"".join(hashed), "<u8")[encoded.indices.to_numpy()] if words else np.empty(0, np.uint64)


def _mixed(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return 64 bits that depend on both words, and on which is which."""
    return mix64(a ^ mix64(mix64(b) + np.uint64(len(PAGES_VERSION))))


def _bounds(table: pa.Table) -> tuple[list[int], list[int]]:
    """Return first rows and ends of the pages: one begins at each key whose hash says so. One key is in one page."""
    keys = one_array(table["key"]) if table.num_rows else pa.array([], pa.string())
    chosen = _hashed(keys) % np.uint64(PAGE_LINES) == 0
    if len(chosen) > 1:
        chosen[1:] &= pc.not_equal(keys[1:], keys[:-1]).to_numpy(zero_copy_only=False)
    starts = np.unique(np.concatenate([[0], np.flatnonzero(chosen)])).tolist() if table.num_rows else []
    return starts, [*starts[1:], table.num_rows] if starts else []


def _page_name(page: pa.Table) -> str:
    plain: list[object] = [np.ascontiguousarray(page[name].to_numpy()) for name in DIGESTS[:2]]
    for name in ("key", "licence", "source"):
        words = page[name].to_pylist()
        plain += [np.array([len(word) for word in words], np.int64), "".join(words)]
    return digest(PAGES_VERSION, *plain)


def _bytes(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    with pa.ipc.new_file(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write_table(table.combine_chunks())
    return sink.getvalue()


def _table(data: bytes) -> pa.Table:
    return pa.ipc.open_file(pa.BufferReader(data)).read_all()


def _root_key(dataset: str, version: str) -> str:
    return f"k25/datasets/{dataset}/pages/{version}.root"


def _page_key(dataset: str, name: str) -> str:
    return f"k25/datasets/{dataset}/pages/{name}.page"
