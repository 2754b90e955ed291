"""What people call a sample -> its dataset and line: a sample id, the dataset's own key, or the id of its content."""

from k25_pipelines.catalog.contents import lines_of_content
from k25_pipelines.catalog.manifest import Manifest
from k25_pipelines.catalog.registry import dataset_names, dataset_versions, load_manifest
from k25_pipelines.errors import LineageError
from k25_pipelines.runs import nearest
from k25_pipelines.storage.store import Store

CONTENT_LETTERS = 64
"""Of a content id, a SHA-256 in hexadecimal."""


def samples_called(lake: Store, told: str) -> list[tuple[str, int]]:
    """Return dataset and line of the samples that an id names: `dataset:line`, or a content id, which many may hold.

    Raises:
        LineageError: it names none.
    """
    if _is_content(told):
        return _samples_of_content(lake, told)
    name, colon, line = told.rpartition(":")
    if not colon or not line.isdecimal():
        raise LineageError(
            f"{told!r} is no sample id (dataset:line, such as captions:17) and no content id ({CONTENT_LETTERS} "
            "hexadecimal letters); by the dataset's own key: k25 trace --key NAME/KEY"
        )
    manifest = _manifest(lake, name)
    if int(line) >= manifest.num_lines:
        raise LineageError(f"dataset {name} has lines 0 to {manifest.num_lines - 1}, not {line}")
    return [(name, int(line))]


def samples_of_key(lake: Store, told: str) -> list[tuple[str, int]]:
    """Return dataset and line of the samples that a dataset calls by a key, told as `NAME/KEY`.

    Raises:
        LineageError: no such dataset or key; the nearest are named.
    """
    name, slash, key = told.partition("/")
    if not slash or not key:
        raise LineageError(f"{told!r} is no NAME/KEY; write the dataset's name, a slash and its key for the sample")
    manifest = _manifest(lake, name)
    keys = manifest.table["key"].to_pylist()
    lines = [line for line, each in enumerate(keys) if each == key]
    if not lines:
        raise LineageError(f"dataset {name} has no key {key!r}{nearest(key, keys)}")
    return [(name, line) for line in lines]


def key_of(lake: Store, dataset: str, line: int) -> str:
    """Return what a dataset calls a sample."""
    return _manifest(lake, dataset).line(line).key


def _is_content(told: str) -> bool:
    return len(told) == CONTENT_LETTERS and not set(told.lower()) - set("0123456789abcdef")


def _samples_of_content(lake: Store, told: str) -> list[tuple[str, int]]:
    found = list[tuple[str, int]]()
    for name in dataset_names(lake):
        if dataset_versions(lake, name):
            lines = lines_of_content(lake, load_manifest(lake, name), told.lower())
            found += [(name, line) for line in lines.tolist()]
    if not found:
        raise LineageError(
            f"no sample is known to hold content {told[:12]}..; k25 index NAME --deep learns all of them"
        )
    return found


def _manifest(lake: Store, name: str) -> Manifest:
    names = dataset_names(lake)
    if name not in names:
        raise LineageError(f"no dataset {name!r}{nearest(name, names)}")
    return load_manifest(lake, name)
