"""Shards, loose images and films, in place: what is broken is quarantined, what is cut short is named."""

import gzip
import io
import json

import pytest

from k25_pipelines.catalog.manifest import Manifest
from k25_pipelines.catalog.registry import index_dataset
from k25_pipelines.errors import DatasetError, ManifestError
from tests.catalog.conftest import film, json_bytes, json_lines, picture, registered, tar, turned


def indexed(lake, kind: str, objects: dict[str, bytes], annotations: str | None = None) -> Manifest:
    for key, data in objects.items():
        lake.put(f"raw/x/{key}", data)
    registered(lake, "x", kind, annotations=annotations)
    return index_dataset(lake, "x")


def lines(manifest: Manifest) -> list:
    return [manifest.line(number) for number in range(manifest.num_lines)]


def bytes_of(lake, part) -> bytes:
    return lake.get_range(f"raw/x/{part.shard}", part.offset, part.num_bytes)


def test_members_of_one_stem_are_one_sample_and_each_part_leads_to_its_bytes(lake):
    members = {
        "f/a.txt": "één".encode(),
        "f/a.jpg": picture(13, 7, exif=turned(6)),
        "f/b.cam.PNG": picture(5, 5, "PNG"),
        "f/b.json": json_bytes({"caption": "b!", "licence": "MIT", "source": "me"}),
        "c.txt": b"text alone",
        "c.cls": b"7",
    }
    found = lines(indexed(lake, "webdataset", {"0.tar": tar(members)}))
    assert [(line.key, line.text_length, line.licence, line.source, line.quarantine) for line in found] == [
        ("f/a", 3, "CC0-1.0", "drawn for a test", ""),
        ("f/b", 2, "MIT", "me", ""),
        ("c", 10, "CC0-1.0", "drawn for a test", ""),
    ]
    assert [[(part.kind, part.column, bytes_of(lake, part)) for part in line.parts] for line in found] == [
        [("image", "", members["f/a.jpg"]), ("text", "", members["f/a.txt"])],
        [("image", "", members["f/b.cam.PNG"]), ("json", "caption", members["f/b.json"])],
        [("text", "", members["c.txt"])],
    ]
    image = found[0].parts[0]
    assert (image.width, image.height, image.frames, image.fps, image.orientation) == (7, 13, 1, 0.0, 6)


def test_a_shard_that_the_webdataset_library_wrote_is_read(lake, tmp_path):
    from webdataset.writer import TarWriter

    long_name = "folder/" * 20 + "a"
    with TarWriter(str(tmp_path / "0.tar")) as writer:
        writer.write({"__key__": long_name, "jpg": picture(), "txt": "long", "json": {"licence": "MIT"}})
        writer.write({"__key__": "b", "png": picture(kind="PNG"), "txt": "short"})
    found = lines(indexed(lake, "webdataset", {"0.tar": (tmp_path / "0.tar").read_bytes()}))
    assert [(line.key, line.text_length, line.licence) for line in found] == [
        (long_name, 4, "MIT"),
        ("b", 5, "CC0-1.0"),
    ]
    assert bytes_of(lake, found[1].parts[1]) == b"short"


BROKEN_MEMBERS = {
    "no image": (
        {"a.jpg": b"garbage", "a.txt": b"x"},
        "a.jpg: no JPEG, PNG or WebP: the first bytes are 67 61 72 62 61 67 65",
    ),
    "nothing": ({"a.jpg": b"", "a.txt": b"x"}, "a.jpg: empty: 0 bytes"),
    "cut": (
        {"a.jpg": picture()[:-2], "a.txt": b"x"},
        "a.jpg: truncated JPEG: the end of the image is missing after 630 bytes",
    ),
    "text": ({"a.jpg": picture(), "a.txt": b"\xff"}, "a.txt: not UTF-8 at byte 0"),
    "json": ({"a.jpg": picture(), "a.json": b"{"}, "a.json: not JSON"),
    "two": ({"a.jpg": b"", "a.json": b"{"}, "a.jpg: empty: 0 bytes; a.json: not JSON"),
    "alone": ({"a.json": b"{}"}, "neither an image nor a text"),
}


@pytest.mark.parametrize("case", BROKEN_MEMBERS)
def test_a_broken_member_quarantines_its_sample_alone(lake, case):
    members, expected = BROKEN_MEMBERS[case]
    around = {"0.jpg": picture()}, {"z.jpg": picture()}
    found = lines(indexed(lake, "webdataset", {"0.tar": tar({**around[0], **members, **around[1]})}))
    assert [(line.key, line.quarantine) for line in found] == [("0", ""), ("a", expected), ("z", "")]


@pytest.mark.parametrize("cut", [10_240 + 700, 10_240 + 512 + 5, 4096, 1536, 1024, 700, 300, 0])
def test_a_truncated_shard_is_named_with_its_byte(lake, cut):
    whole = tar({f"{name}.jpg": picture(exif=turned(1)) + bytes(100) for name in "abcdefghij"})
    message = f"^x: shard {lake.url}/raw/x/1.tar is truncated at byte {cut}; upload it again"
    with pytest.raises(DatasetError, match=message):
        indexed(lake, "webdataset", {"0.tar": whole, "1.tar": whole[:cut]})
    assert [info.key for info in lake.list("k25/") if "/scans/" not in info.key] == ["k25/datasets/x/registration.json"]


def test_a_shard_with_a_garbled_header_is_named_with_its_byte(lake):
    data = bytearray(tar({"a.txt": b"a", "b.txt": b"b"}))
    data[1024:1100] = b"\xaa" * 76
    with pytest.raises(DatasetError, match=r"0\.tar: the bytes at 1024 are no tar header"):
        indexed(lake, "webdataset", {"0.tar": bytes(data)})


def test_a_member_whose_name_is_no_text_is_a_sample_like_others(lake):
    data = tar({"a?.txt": b"a"}).replace(b"a?.txt", b"a\xff.txt")
    data = data[:148] + f"{sum(data[:148]) + 8 * 32 + sum(data[156:512]):06o}\0 ".encode() + data[156:]
    (line,) = lines(indexed(lake, "webdataset", {"0.tar": data}))
    assert (line.key, line.quarantine) == ("a\\udcff", "")


def test_what_is_no_tar_is_named(lake):
    with pytest.raises(DatasetError, match=r"x/0\.tar is no tar"):
        indexed(lake, "webdataset", {"0.tar": b"no tar at all" * 100})


@pytest.mark.parametrize("key", ["0.tar", "0.tar.gz", "0.tgz"])
def test_a_compressed_shard_is_refused(lake, key):
    with pytest.raises(DatasetError, match=rf"raw/x/{key} is (gzip-)?compressed: .* plain tar"):
        indexed(lake, "webdataset", {key: gzip.compress(tar({"a.txt": b"a"})), "1.tar": tar({"a.txt": b"a"})})


def coco(**changes) -> bytes:
    return json_bytes(
        {
            "images": [
                {"id": 7, "file_name": "b.png", "width": 5, "height": 4, "license": 2},
                {"id": 3, "file_name": "a.jpg", "source": "me"},
            ],
            "annotations": [
                {"id": 1, "image_id": 7, "category_id": 9, "bbox": [1, 1, 2, 2], "segmentation": [[1, 1, 2, 2, 1, 2]]},
                {"id": 2, "image_id": 7, "category_id": 4, "bbox": [0, 0, 5, 4]},
            ],
            "categories": [{"id": 4, "name": "chat"}, {"id": 9, "name": "dog"}],
            "licenses": [{"id": 2, "name": "MIT"}],
            **changes,
        }
    )


PICTURES = {"a.jpg": picture(), "b.png": picture(5, 4, "PNG"), "unlisted.jpg": picture()}


def test_images_of_a_coco_file_carry_their_annotations(lake):
    found = lines(indexed(lake, "images", {**PICTURES, "coco.json": coco()}, "coco.json"))
    assert [(line.key, line.licence, line.source, line.text_length) for line in found] == [
        ("a.jpg", "CC0-1.0", "me", 0),
        ("b.png", "MIT", "drawn for a test", 7),
    ]
    assert json.loads(found[0].inline) == {"annotations": []}
    assert json.loads(found[1].inline) == {
        "annotations": [
            {"id": 1, "category": "dog", "bbox": [1, 1, 2, 2], "segmentation": [[1, 1, 2, 2, 1, 2]]},
            {"id": 2, "category": "chat", "bbox": [0, 0, 5, 4]},
        ]
    }
    assert [bytes_of(lake, line.parts[0]) for line in found] == [PICTURES["a.jpg"], PICTURES["b.png"]]


def test_annotations_may_lie_anywhere(lake):
    lake.put("elsewhere/coco.json", coco())
    found = lines(indexed(lake, "images", PICTURES, f"{lake.url}/elsewhere/coco.json"))
    assert [line.key for line in found] == ["a.jpg", "b.png"]


def test_a_listed_image_that_is_missing_broken_or_of_another_size_is_quarantined(lake):
    images = [{"id": name, "file_name": f"{name}.jpg", "width": 8, "height": 6} for name in "abcd"]
    objects = {"a.jpg": picture(), "b.jpg": picture()[:99], "c.jpg": picture(exif=turned(6))}
    data = coco(images=images, annotations=[])
    assert [
        line.quarantine for line in lines(indexed(lake, "images", {**objects, "coco.json": data}, "coco.json"))
    ] == [
        "",
        "broken header",
        "annotated as 8x6, shown as 6x8",
        "the annotations list it, but there is no such object",
    ]


WRONG_COCO = {
    b"{": "is not JSON",
    b"[]": "is not COCO: it lacks the list 'images' and 'annotations'",
    coco(annotations=None): "is not COCO: it lacks the list 'annotations'",
    coco(images=[{"id": 1}], annotations=[]): "is not COCO: an item lacks or misuses 'file_name'",
    coco(images=[{"id": 1, "file_name": None}], annotations=[]): "is not COCO: an item lacks or misuses 'file_name'",
    coco(images=[{"id": 1, "file_name": "\ud800"}], annotations=[]): "is not Unicode",
    coco(images=[1]): "is not COCO: an item lacks or misuses",
    coco(annotations=[{"id": 5, "image_id": 99}]): "annotation 5 is of image 99, which 'images' does not list",
    coco(annotations=[{"id": 5, "image_id": 7, "category_id": 99}]): "annotation 5 is of category 99",
    coco(images=[{"id": n, "file_name": "a.jpg"} for n in (3, 7)]): "'a.jpg' is annotated twice",
}


@pytest.mark.parametrize("data", WRONG_COCO, ids=WRONG_COCO.values())
def test_a_wrong_coco_file_is_named(lake, data):
    with pytest.raises(DatasetError) as failure:
        indexed(lake, "images", {**PICTURES, "coco.json": data}, "coco.json")
    assert WRONG_COCO[data] in str(failure.value)
    assert "\n" not in str(failure.value)


def test_annotations_may_grow_but_not_change(lake):
    first = indexed(lake, "images", {**PICTURES, "coco.json": coco()}, "coco.json")
    images = json.loads(coco())["images"]
    lake.put("raw/x/coco.json", coco(images=[*images, {"id": 1, "file_name": "unlisted.jpg"}]))
    second = index_dataset(lake, "x")
    assert lines(second)[:2] == lines(first)
    assert [line.key for line in lines(second)] == ["a.jpg", "b.png", "unlisted.jpg"]
    for change, said in (({"annotations": []}, "changed"), ({"images": images[1:], "annotations": []}, "are gone")):
        lake.put("raw/x/coco.json", coco(**change))
        with pytest.raises(ManifestError, match=rf"x: the annotations of 'b.png' \(line 1\) {said} since version"):
            index_dataset(lake, "x")


def test_loose_images_need_no_annotations(lake):
    found = lines(indexed(lake, "images", {"f/b.webp": picture(kind="WEBP"), "a.JPG": picture(), "notes.txt": b""}))
    assert [(line.key, line.inline, line.parts[0].width) for line in found] == [("a.JPG", "", 8), ("f/b.webp", "", 8)]


def test_films_carry_their_captions(lake, tmp_path):
    captions = json_lines(
        {"file": "b.mp4", "caption": "dark", "start": 0, "end": 0.2, "licence": "MIT"},
        {"file": "b.mp4", "caption": "light", "start": 0.2, "end": 0.5},
        {"file": "a.mp4", "caption": "all of it"},
        {"file": "c.mp4", "caption": "lost"},
        {"file": "d.mp4", "caption": "cut"},
    )
    movie = film(tmp_path)
    objects = {"a.mp4": movie, "b.mp4": film(tmp_path, width=48), "d.mp4": movie[:99], "captions.jsonl": captions}
    found = lines(indexed(lake, "video", objects, "captions.jsonl"))
    assert [(line.key, line.text_length, line.licence, line.quarantine) for line in found] == [
        ("a.mp4", 9, "CC0-1.0", ""),
        ("b.mp4#0-0.2", 4, "MIT", ""),
        ("b.mp4#0.2-0.5", 5, "CC0-1.0", ""),
        ("c.mp4", 4, "CC0-1.0", "the annotations list it, but there is no such object"),
        ("d.mp4", 3, "CC0-1.0", "no video that can be decoded, or its end is missing"),
    ]
    assert [json.loads(line.inline) for line in found[1:3]] == [
        {"caption": "dark", "start": 0, "end": 0.2},
        {"caption": "light", "start": 0.2, "end": 0.5, "first_frame": 2},
    ]
    assert [line.parts[0].frames for line in found] == [5, 2, 3, 0, 0]
    part = found[1].parts[0]
    assert (part.kind, part.width, part.height, part.fps) == ("video", 48, 16, 10.0)
    assert index_dataset(lake, "x").num_lines == 5
    assert bytes_of(lake, part) == objects["b.mp4"]


def test_films_need_no_captions(lake, tmp_path):
    (line,) = lines(indexed(lake, "video", {"a.mp4": film(tmp_path)}))
    assert (line.key, line.inline, line.parts[0].frames) == ("a.mp4", "", 5)


@pytest.mark.parametrize("caption", [b"{", b'{"caption": "of what?"}'])
def test_a_wrong_caption_line_is_named(lake, tmp_path, caption):
    with pytest.raises(DatasetError, match=r"captions\.jsonl: line 2: "):
        indexed(lake, "video", {"a.mp4": film(tmp_path), "captions.jsonl": b"\n" + caption}, "captions.jsonl")


def test_a_missing_annotation_file_is_named(lake):
    with pytest.raises(Exception, match=r"raw/x/none\.json: no such object"):
        indexed(lake, "images", PICTURES, "none.json")


def test_a_picture_larger_than_a_block_is_found_in_its_shard(lake):
    huge = picture(64, 64) + bytes(9 * 2**20)
    found = lines(indexed(lake, "webdataset", {"0.tar": tar({"a.jpg": huge, "b.txt": b"after"})}))
    assert [(line.key, line.quarantine) for line in found] == [("a", ""), ("b", "")]
    assert io.BytesIO(bytes_of(lake, found[1].parts[0])).read() == b"after"
