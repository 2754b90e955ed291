"""What `sample/example.py` and `sample/lengths.py` promise: what is loaded is what was planned, for every kind."""

import dataclasses
import json

import numpy as np
import pytest

from k25_pipelines.catalog.registry import load_manifest
from k25_pipelines.errors import SampleError
from k25_pipelines.plan.draws import AUGMENTATIONS
from k25_pipelines.plan.size import profile
from k25_pipelines.sample import chat
from k25_pipelines.sample.annotations import annotations_of
from k25_pipelines.sample.augment import Draws, draws_of_row
from k25_pipelines.sample.example import as_planned, example
from k25_pipelines.sample.lengths import lengths_key, text_lengths
from k25_pipelines.sample.read import read_line
from k25_pipelines.sample.tokens import load_tokenizer
from k25_pipelines.storage.store import open_store
from tests.sample.small_lake import KINDS, PACK_TOKENS, encoded, new_lake, photo, planned_rows

MODEL = profile("kimi_k25")


@pytest.fixture(scope="module")
def lake():
    return new_lake()


def raw_sample(lake, name, line):
    manifest = load_manifest(lake, name)
    store = open_store(manifest.uri)
    return read_line(manifest, line, lambda *extent: store.get_range(*extent[:3]))


def made(lake, row, **changes):
    raw = raw_sample(lake, row["dataset"], row["line"])
    draws = dataclasses.replace(draws_of_row(row), **changes)
    whole = example(raw, draws, tokenizer=load_tokenizer("default"), profile=MODEL, max_tokens=row["num_tokens"])
    return as_planned(whole, row, name=raw.line.key, pack_tokens=PACK_TOKENS)


@pytest.mark.parametrize("name", KINDS)
def test_without_augmentation_the_loaded_length_is_the_planned_length(lake, name):
    rows = planned_rows(lake, name, 0, augment=())
    loaded = [made(lake, row) for row in rows]
    assert [len(one.tokens.ids) for one in loaded] == [row["num_tokens"] for row in rows]


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("epoch", range(4))
def test_under_any_draws_patches_are_the_planned_and_tokens_no_more(lake, name, epoch):
    for row in planned_rows(lake, name, epoch, augment=AUGMENTATIONS):
        one = made(lake, row)
        assert len(one.patches) == row["patches"] == one.grid_thw.prod(axis=1).sum()
        assert len(one.tokens.ids) <= row["num_tokens"]
        assert one.tokens.media[:, 1].sum() == row["vision_tokens"]


def test_pieces_of_a_long_document_are_the_document(lake):
    tokenizer = load_tokenizer("default")
    rows = [row for row in planned_rows(lake, "long_documents", 0) if row["line"] == 1]
    pieces = np.concatenate([made(lake, row).tokens.ids for row in rows])
    assert pieces.tolist() == [*tokenizer.encode("chapter 1 " * 700), tokenizer.eos]


def words(lake, one):
    tokenizer = load_tokenizer("default")
    return tokenizer.decode(one.tokens.ids[one.tokens.is_target])


def test_a_mirrored_caption_names_the_other_side(lake):
    row = planned_rows(lake, "captions", 0, augment=())[2]
    assert words(lake, made(lake, row)) == "a bear on the left<|end_of_text|>"
    assert words(lake, made(lake, row, flip=True)) == "a bear on the right<|end_of_text|>"


def test_a_caption_that_is_longer_than_planned_falls_back_to_the_plain_one(lake):
    row = planned_rows(lake, "captions", 0, augment=())[2]
    seen = {words(lake, made(lake, row, words=2 * number + 1)) for number in range(4)}
    assert seen == {"a bear on the left<|end_of_text|>", "b<|end_of_text|>"}


def test_boxes_are_written_after_the_transform(lake):
    row = planned_rows(lake, "grounding", 0, augment=())[1]
    plain = "left hand<|box|>050 071 350 428<|/box|>cup<|box|>500 214 949 928<|/box|><|end_of_text|>"
    mirrored = "right hand<|box|>649 071 949 428<|/box|>cup<|box|>050 214 500 928<|/box|><|end_of_text|>"
    assert words(lake, made(lake, row)) == plain
    assert words(lake, made(lake, row, flip=True)) == mirrored
    half = row | {"patches": 80, "crop_w": 100.0, "out_w": 100}
    assert words(lake, made(lake, half)) == "left hand<|box|>100 071 699 428<|/box|><|end_of_text|>"


def test_written_boxes_point_at_what_the_patches_show(lake):
    row = planned_rows(lake, "grounding", 0, augment=())[3]
    raw = raw_sample(lake, "grounding", 3)
    for draws in (draws_of_row(row), Draws(crop=(15.0, 3.0, 170.0, 130.0), width=140, height=100, flip=True)):
        affine = draws.affine
        moved = affine.boxes(np.array([one.box for one in annotations_of(raw.inline, name="sample")]))
        inside = np.clip(moved, -0.5, np.array([draws.width, draws.height] * 2) - 0.5)
        written = chat.normalised_boxes(inside, width=draws.width, height=draws.height)
        back = chat.pixel_boxes(written, width=draws.width, height=draws.height)
        assert np.abs(back - inside).max() <= 0.5


def test_a_clip_shows_the_times_of_its_volumes(lake):
    row = planned_rows(lake, "clips", 0, augment=())[0]
    one = made(lake, row)
    text = load_tokenizer("default").decode(one.tokens.ids[~one.tokens.is_target]).replace("<|media_pad|>", "")
    media = "<|media_begin|>video<|media_content|><|media_end|>"
    assert text == f"00:00:00.000{media}00:00:02.250{media}"
    assert one.grid_thw.tolist() == [[4, 6, 8], [2, 6, 8]]


def test_a_caption_of_a_window_shows_as_many_frames_as_the_window_has(lake):
    one = made(lake, planned_rows(lake, "clips", 0, augment=())[1])
    text = load_tokenizer("default").decode(one.tokens.ids)
    assert (text[:12], text.count("<|media_begin|>")) == ("00:00:01.000", 1)
    assert one.grid_thw.tolist() == [[2, 6, 8]]


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"patches": 4}, "patches where 4 were planned"),
        ({"num_tokens": 9}, "tokens from token 0 on, where 9 were planned"),
        ({"token_start": 400}, "tokens from token 400 on"),
    ],
)
def test_a_sample_that_is_not_as_planned_is_bad(lake, change, complaint):
    row = planned_rows(lake, "captions", 0, augment=())[0] | change
    with pytest.raises(SampleError, match=complaint):
        made(lake, row)


def test_an_image_of_another_size_than_the_manifest_says_is_bad(lake):
    raw = raw_sample(lake, "captions", 0)
    other = dataclasses.replace(raw, media=(encoded(photo(1, 90, 90)),))
    draws = draws_of_row(planned_rows(lake, "captions", 0, augment=())[0])
    with pytest.raises(SampleError, match="90x90 pixels, the manifest says 150x120"):
        example(other, draws, tokenizer=load_tokenizer("default"), profile=MODEL, max_tokens=99)


def test_lengths_are_counted_once_and_kept(lake):
    manifest, tokenizer = load_manifest(lake, "wiki"), load_tokenizer("default")
    told = []
    fresh = new_lake()
    moved = dataclasses.replace(manifest, uri=f"{fresh.url}/raw/wiki")
    first = text_lengths(fresh, moved, tokenizer, "kimi_k25", progress=lambda *news: told.append(news))
    assert told[-1] == (manifest.num_chunks, manifest.num_chunks, "tokenizing wiki")
    for key in [info.key for info in fresh.list("raw/")]:
        fresh.delete(key)
    np.testing.assert_array_equal(text_lengths(fresh, moved, tokenizer, MODEL), first)
    fresh.delete(lengths_key(moved, tokenizer, MODEL))
    assert first.tolist()[:3] == text_lengths(lake, manifest, tokenizer, MODEL).tolist()[:3]


def test_json_with_half_a_character_is_bad(lake):
    fresh = new_lake()
    manifest = load_manifest(fresh, "code")
    part = manifest.line(0).parts[0]
    broken = json.dumps({"content": "\ud800" + "x" * 10}).encode().ljust(part.num_bytes)
    with pytest.raises(SampleError, match=r"code:0 .*JSON cannot be read"):
        read_line(manifest, 0, lambda *_: broken)
