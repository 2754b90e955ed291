"""Loose images, alone or with annotations: objects with a suffix of `media.IMAGES`.

Annotations are one COCO file, or JSON lines {"file", "annotations", "caption", "licence", ...}. Those
of an image stand in its line as JSON text (`catalog/annotation.py`): boxes are x, y, width, height
from the corner of the image as displayed, with the category's name in place of its number, the
category's keypoint names beside the keypoints, and without run-length encoded masks, which are counted.
"""

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import replace

import pyarrow as pa

from k25_pipelines.catalog.annotated import (
    Entry,
    described,
    json_line_entries,
    line_of,
    missing_line,
    new_entries,
)
from k25_pipelines.catalog.line import Line
from k25_pipelines.catalog.media import IMAGES, probed_object
from k25_pipelines.catalog.scan import ScanJob
from k25_pipelines.errors import DatasetError
from k25_pipelines.storage.store import ObjectInfo

SUFFIXES = IMAGES
JSON_LINES = (".jsonl", ".ndjson")
COCO_KEYS = ("images", "annotations")
UNIT = 64
"""Images that are found and kept together."""


def scan(job: ScanJob) -> Iterator[pa.Table]:
    """Yield a line for each image: of the annotation file if there is one, else of the listing.

    Raises:
        DatasetError: the annotation file is no COCO, or annotates an image that it does not list.
    """
    place = job.registration.annotations
    if place:
        read = json_line_entries if place.endswith(JSON_LINES) else coco_entries
        entries = new_entries(job, read(job))
    else:
        entries = [Entry(key=info.key, shard=info.key, **job.terms({})) for info in job.new]
    return job.tables(_image_lines, [(job.objects.get(entry.shard), entry) for entry in entries], unit=UNIT)


def coco_entries(job: ScanJob) -> list[Entry]:
    """Return an entry for each image that a COCO file lists."""
    where, data = job.annotations()
    coco = _parsed_coco(where, data)
    try:
        categories = {item["id"]: item for item in coco.get("categories", ())}
        licences = {item["id"]: item["name"] for item in coco.get("licenses", ())}
        annotations = _by_image(where, coco, categories)
        return [_entry(job, image, annotations[image["id"]], licences) for image in coco["images"]]
    except (KeyError, TypeError, AttributeError) as error:
        raise DatasetError(f"{where} is not COCO: an item lacks or misuses {error}; see cocodataset.org") from error


def _parsed_coco(where: str, data: bytes) -> dict:
    try:
        coco = json.loads(data)
    except ValueError as error:
        raise DatasetError(f"{where} is not JSON ({error}); expected a COCO file") from error
    missing = [key for key in COCO_KEYS if not isinstance(coco, dict) or not isinstance(coco.get(key), list)]
    if missing:
        raise DatasetError(f"{where} is not COCO: it lacks the list {' and '.join(map(repr, missing))}")
    return coco


def _by_image(where: str, coco: dict, categories: Mapping) -> Mapping[object, list[dict]]:
    known = {image["id"] for image in coco["images"]}
    found: dict[object, list[dict]] = defaultdict(list)
    for number, annotation in enumerate(coco["annotations"]):
        image = annotation["image_id"]
        name = f"{where}: annotation {annotation.get('id', number)}"
        if image not in known:
            raise DatasetError(f"{name} is of image {image!r}, which 'images' does not list; add the image or drop it")
        item = {key: value for key, value in annotation.items() if key not in ("image_id", "category_id")}
        if "category_id" in annotation:
            category = categories.get(annotation["category_id"])
            if category is None:
                raise DatasetError(f"{name} is of category {annotation['category_id']!r}, which 'categories' lacks")
            item["category"] = category["name"]
            if "keypoints" in annotation and "keypoints" in category:
                item["keypoint_names"] = category["keypoints"]
                item |= {"skeleton": category["skeleton"]} if category.get("skeleton") else {}
        found[image].append(item)
    return found


def _entry(job: ScanJob, image: dict, annotations: list[dict], licences: Mapping) -> Entry:
    if not isinstance(image["file_name"], str):
        raise TypeError("'file_name'")
    record = {"annotations": annotations} | ({"caption": image["caption"]} if image.get("caption") else {})
    licence = licences.get(image.get("license"), "")
    terms = {"licence": licence, **{name: image[name] for name in ("licence", "source") if image.get(name)}}
    entry = Entry(key=image["file_name"], shard=image["file_name"], **job.terms(terms))
    return replace(described(entry, record), width=image.get("width") or 0, height=image.get("height") or 0)


def _image_lines(job: ScanJob, image: tuple[ObjectInfo | None, Entry]) -> Iterator[Line]:
    info, entry = image
    if info is None:
        yield missing_line(entry, "image")
        return
    part, reason = probed_object(job.store, info, "image")
    stated, shown = (entry.width, entry.height), (part.width, part.height)
    if not reason and stated not in (shown, (0, 0)):
        reason = f"annotated as {stated[0]}x{stated[1]}, shown as {shown[0]}x{shown[1]}"
    yield line_of(entry, part, reason)
