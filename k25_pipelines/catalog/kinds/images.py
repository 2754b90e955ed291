"""Loose images, alone or with COCO annotations: objects `*.jpg`, `*.jpeg`, `*.png`, `*.webp`.

The annotations of an image stand in its line as JSON text, as COCO wrote them (boxes are x, y,
width, height from the corner of the image as displayed) with the category's name in place of its
number: {"annotations": [{"bbox": [x, y, w, h], "category": "cat", "segmentation": ..., ...}]}, and
`caption` if the image has one.
"""

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from functools import partial

from k25_pipelines.catalog.annotated import Entry, line_of, new_entries
from k25_pipelines.catalog.manifest import Line, Part
from k25_pipelines.catalog.probe import probe_image_at
from k25_pipelines.catalog.scan import ScanJob, compact_json, field_text, media_part
from k25_pipelines.errors import DatasetError, SampleError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
COCO_KEYS = ("images", "annotations")


def scan(job: ScanJob) -> Iterator[Line]:
    """Yield a line for each image: of the annotation file if there is one, else of the listing.

    Raises:
        DatasetError: the annotation file is no COCO, or annotates an image that it does not list.
    """
    if job.registration.annotations:
        entries = new_entries(job, coco_entries(job))
    else:
        entries = [Entry(key=info.key, shard=info.key, **job.terms({})) for info in job.new]
    return job.lines(lambda entry: [_line(job, entry)], entries)


def coco_entries(job: ScanJob) -> list[Entry]:
    """Return an entry for each image that a COCO file lists."""
    where, data = job.annotations()
    coco = _parsed_coco(where, data)
    try:
        categories = {item["id"]: item["name"] for item in coco.get("categories", ())}
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
            if annotation["category_id"] not in categories:
                raise DatasetError(f"{name} is of category {annotation['category_id']!r}, which 'categories' lacks")
            item["category"] = categories[annotation["category_id"]]
        found[image].append(item)
    return found


def _entry(job: ScanJob, image: dict, annotations: list[dict], licences: Mapping) -> Entry:
    if not isinstance(image["file_name"], str):
        raise TypeError("'file_name'")
    inline = {"annotations": annotations} | ({"caption": image["caption"]} if image.get("caption") else {})
    words = [field_text(item, "label", "category", "caption") for item in annotations] + [field_text(image, "caption")]
    licence = licences.get(image.get("license"), "")
    return Entry(
        key=image["file_name"],
        shard=image["file_name"],
        inline=compact_json(inline),
        text_length=sum(map(len, words)),
        width=image.get("width") or 0,
        height=image.get("height") or 0,
        **job.terms({"licence": licence, **{name: image[name] for name in ("licence", "source") if image.get(name)}}),
    )


def _line(job: ScanJob, entry: Entry) -> Line:
    info = job.objects.get(entry.shard)
    if info is None:
        reason = "the annotations list it, but there is no such object"
        return line_of(entry, Part(kind="image", shard=entry.shard), reason)
    try:
        header = probe_image_at(partial(job.store.get_range, info.key, etag=info.etag), info.num_bytes)
    except SampleError as error:
        return line_of(entry, media_part("image", info, None), str(error))
    stated, shown = (entry.width, entry.height), (header.width, header.height)
    reason = (
        "" if stated in (shown, (0, 0)) else f"annotated as {stated[0]}x{stated[1]}, shown as {shown[0]}x{shown[1]}"
    )
    return line_of(entry, media_part("image", info, header), reason)
