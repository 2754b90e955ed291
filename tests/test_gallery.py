"""Pages hold the pictures they promise, as stored and as the model sees them, and need nothing from outside."""

import base64
import io
import json
import re

import numpy as np
import pytest
from PIL import Image

from k25_pipelines import gallery
from k25_pipelines.catalog import registry
from k25_pipelines.catalog.registration import Registration
from k25_pipelines.plan.draws import AUGMENTATIONS
from k25_pipelines.plan.recipe import parse_recipe
from k25_pipelines.planning import make_plan, open_plan
from k25_pipelines.planning.exclusions import put_tombstones
from k25_pipelines.storage.store import open_store
from tests.assets import tiny_lake
from tests.sample.annotated import ANNOTATED, picture

RECIPE = {
    "name": "looked at",
    "seed": 7,
    "pack_tokens": 256,
    "packs_per_step": 2,
    "steps": 2,
    "max_image_tokens": 64,
    "sources": {"captions": {"weight": 1}, "grounding": {"weight": 1, "augment": ["flip"]}, "clips": {"weight": 1}},
}


@pytest.fixture(scope="module")
def lake(tmp_path_factory):
    """The tiny lake in a folder, with one broken image, indexed."""
    return tiny_lake.index_all(tiny_lake.build(tmp_path_factory.mktemp("lake")))


def pictures(page: str) -> list[Image.Image]:
    found = re.findall(r"data:image/jpeg;base64,([A-Za-z0-9+/=]+)", page)
    return [Image.open(io.BytesIO(base64.b64decode(data))) for data in found]


@pytest.mark.parametrize(("name", "at_least"), [("captions", 10), ("grounding", 10), ("clips", 4), ("wiki", 0)])
def test_a_dataset_page_shows_samples_with_their_licence(lake, name, at_least):
    page = gallery.dataset_page(lake, name, num_samples=12)
    assert len(pictures(page)) >= at_least
    assert "CC0-1.0" in page
    assert not re.search(r"(src|href)='?https?:", page)


def test_quarantined_samples_are_not_shown(lake):
    manifest = registry.load_manifest(lake, "captions")
    lines = gallery.sample_lines(manifest, 1000)
    assert len(lines) == manifest.num_lines - 1
    assert not manifest.quarantined[lines].any()


def test_a_sheet_is_a_picture_and_text_has_none(lake):
    manifest = registry.load_manifest(lake, "grounding")
    sheet = Image.open(io.BytesIO(gallery.contact_sheet(lake, manifest, [0, 1, 2])))
    assert sheet.size == (792, 132)
    assert gallery.contact_sheet(lake, registry.load_manifest(lake, "wiki"), [0]) == b""


def test_a_step_page_shows_each_sample_of_the_step_beside_what_the_model_saw(lake):
    plan = open_plan(lake, make_plan(lake, parse_recipe(RECIPE)))
    page = gallery.step_page(lake, plan.id, step=1)
    rows = plan.rows(1).to_pylist()
    assert page.count("<div class=card id=") == len(rows)
    assert page.count("as stored</div>") == page.count("as the model saw it</div>") == len(rows)
    assert page.count("<h2 id='p") == 2
    for row in rows:
        assert f"<b>{row['dataset']}:{row['line']}</b><span>epoch {row['epoch']} · {row['num_tokens']} tokens" in page
    assert all(np.asarray(shown).std() > 0 for shown in pictures(page))


def test_the_map_of_packs_has_a_block_for_each_sample_as_wide_as_its_tokens(lake):
    plan = open_plan(lake, make_plan(lake, parse_recipe(RECIPE)))
    rows, page = plan.rows(0).to_pylist(), gallery.step_page(lake, plan.id, step=0)
    blocks = re.findall(r"<a href='#p(\d+)s(\d+)' title='[^']*' style='width:([\d.]+)%", page)
    assert blocks == [
        (str(row["pack"]), str(row["slot"]), f"{100 * row['num_tokens'] / RECIPE['pack_tokens']:.3f}") for row in rows
    ]


def test_the_page_of_a_rank_shows_its_packs_and_no_others(lake):
    plan = make_plan(lake, parse_recipe(RECIPE))
    whole = gallery.step_page(lake, plan, step=0)
    shown = [gallery.step_page(lake, plan, step=0, rank=rank, num_ranks=2) for rank in range(2)]
    card = re.compile(r"<div class=card id='(p\d+s\d+)'>(.*?)</details></div>", re.DOTALL)
    assert [set(re.findall(r"<h2 id='(p\d)'", page)) for page in shown] == [{"p0"}, {"p1"}]
    assert card.findall(shown[0]) + card.findall(shown[1]) == card.findall(whole)


def test_words_that_are_not_predicted_are_marked_and_vision_tokens_counted(lake):
    recipe = RECIPE | {"sources": {"captions": {"weight": 1}}, "steps": 1}
    plan = open_plan(lake, make_plan(lake, parse_recipe(recipe)))
    page, rows = gallery.step_page(lake, plan.id, step=0), plan.rows(0).to_pylist()
    assert [int(n) for n in re.findall(r"▦ (\d+) vision token", page)] == [row["vision_tokens"] for row in rows]
    assert page.count("<span class='masked'>image</span>") + page.count("<span class=masked>image</span>") == len(rows)


def test_forgotten_samples_are_on_no_page(lake, tmp_path):
    plan = make_plan(lake, parse_recipe(RECIPE))
    row = next(row for row in open_plan(lake, plan).rows(0).to_pylist() if row["dataset"] == "captions")
    copy = open_store(f"memory://{tmp_path.name}")
    for info in lake.list("k25/"):
        copy.put(info.key, lake.get(info.key))
    put_tombstones(copy, [f"captions:{line}" for line in range(60)])
    assert pictures(gallery.dataset_page(copy, "captions")) == []
    card = gallery.step_page(copy, plan, step=0).split(f"<div class=card id='p{row['pack']}s{row['slot']}'>")[1]
    assert "masked: withheld" in card.split("<div class=card")[0]
    assert pictures(card.split("<div class=card")[0]) == []


def test_a_step_page_shows_what_was_left_of_the_annotations_and_no_padding(tmp_path):
    lake = open_store(f"memory://{tmp_path.name}")
    lines = []
    for number, items in enumerate(ANNOTATED.values()):
        lake.put(f"raw/marks/{number}.png", picture(seed=number))
        lines.append(json.dumps({"file": f"{number}.png", "annotations": items}))
    lake.put("raw/marks/a.jsonl", "\n".join(lines).encode())
    terms = {"annotations": "a.jsonl", "licence": "CC0-1.0", "source": "made here"}
    registry.register(lake, Registration(name="marks", uri=f"{lake.url}/raw/marks", kind="images", **terms))
    registry.index_dataset(lake, "marks")
    stored = gallery.dataset_page(lake, "marks")
    for label in ("left cup", "cloud", "pole", "person", "STOP here"):
        assert label in stored
    recipe = RECIPE | {"steps": 1, "sources": {"marks": {"weight": 1, "augment": list(AUGMENTATIONS)}}}
    page = gallery.step_page(lake, make_plan(lake, parse_recipe(recipe)), step=0)
    assert "masked:" not in page
    assert "pad|&gt;" not in page
    assert len(pictures(page)) == 2 * page.count("<div class=card id=")
    assert {"<rect x=", "<polygon points=", "stroke-linecap=round"} <= {
        mark for mark in ("<rect x=", "<polygon points=", "stroke-linecap=round") if mark in page
    }
