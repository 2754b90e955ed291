"""Annotations of loose images: COCO whole, JSON lines, and what is wrong with them by field and value."""

import json

import pytest

from k25_pipelines.catalog.annotation import annotation_counts, annotation_fault, annotation_words, cleaned
from k25_pipelines.catalog.registry import index_dataset
from tests.catalog.conftest import json_bytes, json_lines, picture, tar
from tests.catalog.test_media_kinds import indexed, lines

RLE = {"size": [6, 8], "counts": "abc"}


def test_a_coco_file_gives_boxes_polygons_keypoints_captions_and_licences(lake):
    coco = {
        "images": [
            {"id": 1, "file_name": "a.jpg", "width": 8, "height": 6, "license": 3},
            {"id": 2, "file_name": "b.jpg", "caption": "both"},
        ],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 4, 4], "segmentation": RLE, "iscrowd": 1},
            {"id": 2, "image_id": 1, "category_id": 1, "bbox": [0, 0, 4, 4], "keypoints": [1, 1, 2, 3, 3, 0]},
            {"id": 3, "image_id": 1, "category_id": 2, "segmentation": [[0, 0, 4, 0, 4, 4]], "bbox": [0, 0, 4, 4]},
            {"id": 4, "image_id": 1, "caption": "a person"},
        ],
        "categories": [
            {"id": 1, "name": "person", "keypoints": ["left_eye", "right_eye"], "skeleton": [[1, 2]]},
            {"id": 2, "name": "cup"},
        ],
        "licenses": [{"id": 3, "name": "CC-BY-4.0", "url": "https://creativecommons.org/licenses/by/4.0/"}],
    }
    objects = {"a.jpg": picture(), "b.jpg": picture(), "coco.json": json_bytes(coco)}
    first, second = lines(indexed(lake, "images", objects, "coco.json"))
    box = {"bbox": [0, 0, 4, 4]}
    assert json.loads(first.inline) == {
        "annotations": [
            {"id": 1, "category": "person", **box, "iscrowd": 1},
            {
                "id": 2,
                "category": "person",
                **box,
                "keypoints": [1, 1, 2, 3, 3, 0],
                "keypoint_names": ["left_eye", "right_eye"],
                "skeleton": [[1, 2]],
            },
            {"id": 3, "category": "cup", **box, "segmentation": [[0, 0, 4, 0, 4, 4]]},
            {"id": 4, "caption": "a person"},
        ],
        "left_out": {"rle": 1},
    }
    assert (first.licence, second.licence) == ("CC-BY-4.0", "CC0-1.0")
    assert (first.text_length, second.text_length) == (len("personpersoncupa person"), 4)
    assert json.loads(second.inline) == {"annotations": [], "caption": "both"}


def test_loose_images_are_annotated_by_json_lines_too(lake):
    word = {"text": "STOP", "polygon": [0, 0, 4, 0, 4, 2, 0, 2]}
    records = json_lines(
        {"file": "f/a.jpg", "annotations": [word, {"point": [1, 2], "label": "nose"}], "licence": "MIT"},
        {"file": "b.png", "caption": "b", "source": "me"},
        {"file": "b.png", "key": "b again", "annotations": [{"angle": 12.5, "label": "arrow"}]},
        {"file": "gone.png"},
    )
    objects = {"f/a.jpg": picture(), "b.png": picture(5, 4, "PNG"), "unlisted.jpg": picture(), "notes.jsonl": records}
    found = lines(indexed(lake, "images", objects, "notes.jsonl"))
    assert [(line.key, line.parts[0].shard, line.licence, line.source, line.quarantine) for line in found] == [
        ("b again", "b.png", "CC0-1.0", "drawn for a test", ""),
        ("b.png", "b.png", "CC0-1.0", "me", ""),
        ("f/a.jpg", "f/a.jpg", "MIT", "drawn for a test", ""),
        ("gone.png", "gone.png", "CC0-1.0", "drawn for a test", "the annotations list it, but there is no such object"),
    ]
    assert json.loads(found[2].inline) == {"annotations": [word, {"point": [1, 2], "label": "nose"}]}
    assert index_dataset(lake, "x").num_lines == 4


FAULTS = {
    "annotations[0].bbox is [1, 2, 3], expected 4 finite numbers": {"bbox": [1, 2, 3]},
    "annotations[0].bbox is [1, 2, 3, nan], expected 4 finite numbers": {"bbox": [1, 2, 3, float("nan")]},
    "annotations[0].bbox is 'all', expected 4 finite numbers": {"bbox": "all"},
    "annotations[0].point is [1], expected 2 finite numbers": {"point": [1]},
    "annotations[0].angle is True, expected a finite number of degrees": {"angle": True},
    "annotations[0].label is 5, expected a string": {"label": 5},
    "annotations[0].polygon is [0, 0, 1, 1], expected [x0, y0, x1, y1, x2, y2, ...]": {"polygon": [0, 0, 1, 1]},
    "annotations[0].segmentation is [[0, 0, 1, 1, 2]], expected a list of polygons [x0, y0, x1, y1, x2, y2, ...]": {
        "segmentation": [[0, 0, 1, 1, 2]]
    },
    "annotations[0].keypoints is [1, 2], expected [x, y, visibility, ...]": {"keypoints": [1, 2]},
    "annotations[0].keypoint_names is ['a', 'b'], expected 1 strings, one a keypoint": {
        "keypoints": [1, 2, 2],
        "keypoint_names": ["a", "b"],
    },
}


@pytest.mark.parametrize("said", FAULTS)
def test_a_wrong_annotation_is_named_with_its_field_and_value(said):
    assert annotation_fault({"annotations": [FAULTS[said]]}) == said


def test_wrong_lists_are_named():
    assert annotation_fault({"annotations": {"bbox": 1}}) == "'annotations' is {'bbox': 1}, expected a list of objects"
    assert annotation_fault({"captions": "one"}) == "'captions' is 'one', expected a list of strings"
    assert annotation_fault({"captions": ["one"], "annotations": None}) == ""


@pytest.mark.parametrize("kind", ["images", "webdataset"])
def test_a_wrong_annotation_quarantines_its_sample_alone(lake, kind):
    records = {"a": {"annotations": [{"bbox": [1, 2, 3, 4]}]}, "b": {"annotations": [{"bbox": [1]}]}}
    if kind == "images":
        named = json_lines(*({"file": f"{name}.jpg", **record} for name, record in records.items()))
        found = lines(indexed(lake, kind, {"a.jpg": picture(), "b.jpg": picture(), "n.jsonl": named}, "n.jsonl"))
    else:
        members = {
            f"{n}.{k}": picture() if k == "jpg" else json_bytes(r) for n, r in records.items() for k in ("jpg", "json")
        }
        found = lines(indexed(lake, kind, {"0.tar": tar(members)}))
    said = "annotations[0].bbox is [1], expected 4 finite numbers"
    assert [line.quarantine.removeprefix("b.json: ") for line in found] == ["", said]


def test_masks_are_left_out_and_everything_else_is_counted():
    record = cleaned(
        {
            "annotations": [
                {"bbox": [0, 0, 1, 1], "segmentation": RLE, "label": "ab"},
                {"segmentation": [[0, 0, 1, 0, 1, 1]], "keypoints": [1, 1, 1]},
                {"text": "word", "polygon": [0, 0, 1, 0, 1, 1]},
                {"point": [1, 1], "angle": 3, "caption": "c"},
            ],
            "caption": "one",
            "captions": ["one", "two"],
        }
    )
    assert record["left_out"] == {"rle": 1}
    assert annotation_counts(record) == {
        "angles": 1,
        "boxes": 1,
        "captions": 4,
        "keypoints": 1,
        "points": 1,
        "polygons": 1,
        "rle_left_out": 1,
        "texts": 1,
    }
    assert annotation_words(record) == len("ab" + "word" + "c" + "one")
