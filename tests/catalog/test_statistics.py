"""Statistics count what is used, and say why the rest is not."""

from k25_pipelines.catalog.contents import annotation_totals
from k25_pipelines.catalog.registry import index_dataset
from k25_pipelines.catalog.statistics import statistics
from tests.catalog.conftest import json_bytes, picture, registered, tar


def test_a_dataset_is_described_by_plain_numbers(lake):
    members = {
        "a.jpg": picture(200, 100),
        "a.txt": b"a caption",
        "b.jpg": b"",
        "b.txt": b"lost",
        "c.jpg": picture(20, 10),
        "c.json": json_bytes({"licence": "MIT", "caption": "c", "annotations": [{"bbox": [0, 0, 1, 1]}] * 3}),
    }
    lake.put("raw/captions/0.tar", tar(members))
    registered(lake, "captions", "webdataset")
    manifest = index_dataset(lake, "captions")
    assert statistics(manifest, annotations=annotation_totals(lake, manifest)) == {
        "dataset": "captions",
        "digest": manifest.digest,
        "kind": "webdataset",
        "uri": f"{lake.url}/raw/captions",
        "num_lines": 3,
        "num_used": 2,
        "num_quarantined": 1,
        "num_chunks": 3,
        "chunk_lines": 1,
        "num_shards": 1,
        "num_bytes": sum(map(len, members.values())),
        "num_parts": {"image": 3, "text": 2, "json": 1},
        "annotations": {"boxes": 3, "captions": 1},
        "text_characters": 10,
        "video_frames": 0,
        "by_licence": {"CC0-1.0": 1, "MIT": 1},
        "by_source": {"drawn for a test": 2},
        "pixels": {"0": 1, "16384": 1, "65536": 0, "262144": 0, "1048576": 0, "4194304": 0},
        "text_length": {"0": 0, "1": 2, "100": 0, "1000": 0, "10000": 0, "100000": 0},
        "frames": {"0": 2, "2": 0, "30": 0, "300": 0, "3000": 0},
        "quarantined": {"b.jpg: empty: 0 bytes": 1},
    }
