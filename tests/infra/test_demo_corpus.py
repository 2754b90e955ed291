"""The small demo corpus: counts, licences, exact boxes, shards that webdataset reads, the same bytes each time."""

import gc
import hashlib
import io
import json
import warnings
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import webdataset
from PIL import Image, ImageChops
from tokenizers import Tokenizer

from infra.demo_corpus import DATASETS, clips, drawings, emoji_names, grounding, packages, photographs
from infra.demo_corpus.build import LIST_KEY, build
from infra.demo_corpus.material import small_material
from k25_pipelines.catalog.probe import probe_video
from k25_pipelines.errors import DatasetError
from k25_pipelines.storage.store import open_store

TOKENIZER = Path(__file__).resolve().parents[2] / "k25_pipelines" / "sample" / "tokenizer.json"


def silent(done, total, what):
    assert 0 < done <= total
    assert what


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lake")
    facts, is_new = build(open_store(str(folder)), folder / "no wheels", small=True, progress=silent)
    assert is_new
    return folder, facts


def files_of(folder):
    """Return the digest of each file by its name, but for the list that names its folder."""
    found = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    return {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in found.items() if name != LIST_KEY}


def caption_samples(folder, name):
    shards = sorted(str(path) for path in (folder / "raw" / name).glob("*.tar"))
    with warnings.catch_warnings(action="ignore", category=ResourceWarning):  # webdataset leaves shards open
        samples = list(webdataset.WebDataset(shards, shardshuffle=False))
        gc.collect()
    return samples


def image_size(path):
    with Image.open(path) as image:
        return image.size


def json_lines(folder, pattern):
    return [json.loads(line) for path in sorted(folder.glob(pattern)) for line in path.read_text().splitlines()]


def test_every_dataset_has_the_samples_that_the_facts_state(corpus):
    folder, facts = corpus
    coco = json.loads((folder / "raw/grounding/annotations.json").read_text())
    assert facts.samples == {
        "captions": len(caption_samples(folder, "captions")),
        "captions_heldout": len(caption_samples(folder, "captions_heldout")),
        "grounding": len(coco["images"]),
        "wiki": sum(pq.read_metadata(path).num_rows for path in (folder / "raw/wiki").glob("*.parquet")),
        "code": len(json_lines(folder, "raw/code/*.jsonl")),
        "clips": len(json_lines(folder, "raw/clips/captions.jsonl")),
        "long_documents": len(json_lines(folder, "raw/long_documents/*.jsonl")),
    }
    assert min(facts.samples.values()) >= 2
    assert set(facts.samples) == {dataset["name"] for dataset in DATASETS}


def test_the_list_holds_a_registration_of_each_dataset(corpus):
    folder, _ = corpus
    listed = json.loads((folder / LIST_KEY).read_text())
    assert [entry["uri"] for entry in listed] == [f"{folder}/raw/{entry['name']}" for entry in listed]
    assert [entry | {"uri": None} for entry in listed] == [dataset | {"uri": None} for dataset in DATASETS]


def test_every_sample_states_its_licence_and_source(corpus):
    folder, _ = corpus
    facts = [json.loads(s["json"]) for n in ("captions", "captions_heldout") for s in caption_samples(folder, n)]
    facts += [row for path in (folder / "raw/wiki").glob("*.parquet") for row in pq.read_table(path).to_pylist()]
    facts += json_lines(folder, "raw/*/*.jsonl")
    assert [fact for fact in facts if not (fact["licence"] and fact["source"])] == []


def test_a_caption_sample_is_an_image_with_its_words(corpus):
    folder, _ = corpus
    for sample in caption_samples(folder, "captions"):
        (suffix,) = {"png", "jpg"} & set(sample)
        image = Image.open(io.BytesIO(sample[suffix]))
        facts = json.loads(sample["json"])
        assert image.format == {"png": "PNG", "jpg": "JPEG"}[suffix]
        assert sample["txt"].decode() == facts["caption"] != ""
        assert all(56 <= side <= 512 for side in image.size)


def test_no_family_of_emoji_is_both_shown_and_held_out(corpus):
    folder, _ = corpus
    shown, held_out = (
        {emoji_names.family(json.loads(sample["json"]).get("emoji", "0")) for sample in caption_samples(folder, name)}
        for name in ("captions", "captions_heldout")
    )
    assert shown & held_out == set()
    assert emoji_names.family("1F469-1F3FD-200D-1F680") == emoji_names.family("1F9D1-200D-1F680")
    assert emoji_names.family("1F3FF") == "1F3FF", "a tone alone is an emoji too"


def test_held_out_photographs_and_drawings_are_never_pasted_or_pasted_on():
    table = photographs.photographs()
    assert [picture.key for picture in table if picture.is_held_out] == ["flower", "tesla-tower1"]
    assert sum(not picture.is_held_out for picture in table) == 30
    assert len({picture.key for picture in table}) == len(table)
    assert not any(drawing.is_held_out for drawing in grounding.label_drawings(drawings.glyph_drawings()))


def test_the_coco_file_is_consistent_and_its_boxes_lie_inside_and_apart(corpus):
    folder, _ = corpus
    coco = json.loads((folder / "raw/grounding/annotations.json").read_text())
    images = {image["id"]: image for image in coco["images"]}
    assert {image["license"] for image in images.values()} == {licence["id"] for licence in coco["licenses"]}
    assert {note["category_id"] for note in coco["annotations"]} == {label["id"] for label in coco["categories"]}
    assert {note["image_id"] for note in coco["annotations"]} == set(images)
    for image in images.values():
        assert image_size(folder / "raw/grounding" / image["file_name"]) == (image["width"], image["height"])
        boxes = [note["bbox"] for note in coco["annotations"] if note["image_id"] == image["id"]]
        for number, (x, y, width, height) in enumerate(boxes):
            assert 0 <= x < x + width <= image["width"]
            assert 0 <= y < y + height <= image["height"]
            for ox, oy, other_width, other_height in boxes[:number]:
                assert x >= ox + other_width or ox >= x + width or y >= oy + other_height or oy >= y + height


def test_a_box_bounds_the_pixels_that_the_drawing_changed():
    labels = grounding.label_drawings(drawings.glyph_drawings())
    backdrop = ("grey", Image.new("RGB", (300, 300), "#808080"))
    lone = next(image for image in (grounding.compose(n, labels, [backdrop]) for n in range(99)) if is_lone_png(image))
    image = Image.open(io.BytesIO(lone.data))
    changed = ImageChops.difference(image, Image.new("RGB", image.size, "#808080")).convert("L")
    left, top, right, bottom = changed.getbbox()
    x, y, width, height = lone.objects[0][1]
    # Pixels under half opaque lie outside the box: one at each edge, where the glyph is smoothed.
    assert max(abs(left - x), abs(top - y), abs(right - x - width), abs(bottom - y - height)) <= 1


def is_lone_png(image):
    return len(image.objects) == 1 and image.file.endswith("png") and "plain" not in image.source


def test_a_clip_shows_the_scenes_of_its_window_and_a_film_gives_twenty(corpus):
    folder, _ = corpus
    bikes = clips.FILMS[0]
    assert clips.caption(bikes, start=2.3, seconds=2.4) == (
        "A taxi drives past waiting cars; then cars rush past a cyclist with a helmet who waits beside a van."
    )
    assert len([window for film in clips.FILMS for window in clips.windows(film)]) == 21
    for line in json_lines(folder, "raw/clips/captions.jsonl"):
        header = probe_video((folder / "raw/clips" / line["file"]).read_bytes())
        assert header.frames / header.fps == pytest.approx(line["seconds"])


def test_a_long_document_has_over_eight_thousand_tokens(corpus):
    folder, _ = corpus
    tokenizer = Tokenizer.from_file(str(TOKENIZER))
    documents = json_lines(folder, "raw/long_documents/*.jsonl")
    assert all(len(tokenizer.encode(document["text"]).ids) > 8_000 for document in documents)


def test_a_second_build_skips_and_a_build_elsewhere_has_the_same_bytes(corpus, tmp_path):
    folder, facts = corpus
    assert build(open_store(str(folder)), tmp_path, small=True, progress=silent) == (facts, False)
    assert build(open_store(str(tmp_path)), tmp_path, small=True, progress=silent) == (facts, True)
    assert files_of(tmp_path) == files_of(folder)


def test_a_build_that_was_cut_short_is_finished_and_cleared_of_leftovers(corpus, tmp_path):
    folder, facts = corpus
    build(open_store(str(tmp_path)), tmp_path, small=True, progress=silent)
    (tmp_path / LIST_KEY).unlink()
    (tmp_path / "raw/captions/00000.tar").write_bytes(b"torn")
    (tmp_path / "raw/captions/00099.tar").write_bytes(b"left by an older builder")
    kept = (tmp_path / "raw/grounding/annotations.json").stat().st_mtime_ns
    assert build(open_store(str(tmp_path)), tmp_path, small=True, progress=silent) == (facts, True)
    assert files_of(tmp_path) == files_of(folder)
    assert (tmp_path / "raw/grounding/annotations.json").stat().st_mtime_ns == kept, "an equal object stays"


def test_the_small_corpus_draws_on_installed_packages_only():
    assert {picture.package for picture, _ in small_material().photographs} == {"matplotlib"}


def test_a_wheel_with_other_bytes_is_refused_by_name(tmp_path):
    wheel = packages.WHEELS["imgaug"]
    (tmp_path / wheel.file).write_bytes(b"something else")
    with pytest.raises(DatasetError, match=f"{wheel.file} has SHA-256 .*, pinned is {wheel.sha256}"):
        packages.open_wheel("imgaug", tmp_path)
