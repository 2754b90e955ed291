"""What `sample/renderings.py` promises: what is written is what is seen, and never longer than planned."""

import dataclasses
import io
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from k25_pipelines.errors import SampleError
from k25_pipelines.plan.draws import AUGMENTATIONS
from k25_pipelines.sample.decode import decode_image
from k25_pipelines.sample.example import example
from k25_pipelines.sample.renderings import settled_draws
from tests.sample.annotated import (
    ANNOTATED,
    CUP,
    FACE,
    HEIGHT,
    KIMI,
    POINT,
    SIGN,
    TOKENIZER,
    WIDTH,
    planned,
    sample,
    whole,
)

CAPTIONS = {
    "captions": ["a cup to the left of a bowl", "cup", "one long caption of a cup that stands near a bowl " * 3]
}
SHOWN = {"type": "image", "image": "any.png"}
SAMPLES = {
    **{kind: sample({"annotations": items}) for kind, items in ANNOTATED.items()},
    **{
        f"asked for {task}": sample({"annotations": ANNOTATED["mixed"], "task": task})
        for task in ("polygons", "points", "boxes")
    },
    "caption": sample(CAPTIONS, text="A cup,  left.\nA bowl, right."),
    "no words": sample(),
    "two images": sample(text="two", sizes=((120, 90), (300, 200))),
    "document": sample(text="Some  Words.\nAnd more.", sizes=()),
    "chat": sample(
        {
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": [SHOWN, {"type": "text", "text": "And this?"}, SHOWN]},
                {"role": "assistant", "content": "Both are cups."},
            ]
        },
        sizes=((120, 90), (300, 200)),
    ),
    "interleaved": sample({"content": [{"type": "text", "text": "One"}, SHOWN, {"type": "text", "text": "more."}]}),
}


def made(raw, draws, num_tokens=10**6, **options):
    return example(raw, draws, tokenizer=TOKENIZER, profile=KIMI, max_tokens=num_tokens, max_image_tokens=64, **options)


def told(one):
    """The rendering, pads left out, targets between [ and ]."""
    ids, labels = one.tokens.ids, one.tokens.is_target
    words = ids != TOKENIZER.media_pad
    ids, labels = ids[words], labels[words]
    edges = [0, *(np.flatnonzero(np.diff(labels)) + 1).tolist(), len(ids)]
    pieces = [(TOKENIZER.decode(ids[a:b].tolist()), labels[a]) for a, b in pairwise(edges)]
    return "".join(f"[{words}]" if is_target else words for words, is_target in pieces)


IMAGE = "<|media_begin|>image<|media_content|><|media_end|>"


@pytest.mark.parametrize("kind", SAMPLES)
def test_without_augmentation_the_loaded_counts_are_the_planned(kind):
    draws, num_tokens, num_patches = planned(SAMPLES[kind])
    one = made(SAMPLES[kind], draws, num_tokens)
    assert len(one.tokens.ids) == num_tokens
    assert len(one.patches) == num_patches == one.grid_thw.prod(axis=1).sum()


@pytest.mark.parametrize("kind", SAMPLES)
@settings(max_examples=25, deadline=None)
@given(number=st.integers(0, 10**6), augment=st.sets(st.sampled_from(AUGMENTATIONS)))
def test_under_any_draws_patches_are_the_planned_and_tokens_no_more(kind, number, augment):
    raw = SAMPLES[kind]
    draws, num_tokens, num_patches = planned(raw, augment if len(raw.media) < 2 else (), number=number)
    one = made(raw, draws, num_tokens)
    assert len(one.patches) == num_patches == one.grid_thw.prod(axis=1).sum()
    assert len(one.tokens.ids) <= num_tokens
    assert one.tokens.media[:, 1].sum() == num_patches // 4


def test_objects_lines_points_outlines_and_keypoints_have_their_numbers_between_markers():
    assert told(made(sample({"annotations": [CUP, CUP | {"angle": 359.7}]}), whole())) == (
        f"{IMAGE}[left cup<|box|>100 071 400 428<|/box|>left cup<|box|>100 071 400 428 000<|/box|><|end_of_text|>]"
    )
    assert (
        told(made(sample({"annotations": [POINT]}), whole())) == f"{IMAGE}[pole<|box|>752 503<|/box|><|end_of_text|>]"
    )
    assert told(made(sample({"annotations": [SIGN]}), whole())) == (
        f"{IMAGE}[STOP here<|box|>150 214 450 285 440 428 140 357<|/box|><|end_of_text|>]"
    )
    assert told(made(sample({"annotations": [FACE]}), whole())) == (
        f"{IMAGE}[person<|box|>200 143 699 856<|/box|>nose<|box|>450 500<|/box|>"
        "left_eye<|box|>350 285<|/box|><|end_of_text|>]"
    )


def test_keypoints_keep_apart_from_the_label_of_their_object():
    bare = {name: value for name, value in FACE.items() if name != "bbox"}
    ends = "<|box|>450 500<|/box|>{}<|box|>350 285<|/box|>{}<|end_of_text|>]"
    first, last = ends.format("left_eye", ""), ends.format("nose", "left_eye")
    assert told(made(sample({"annotations": [bare]}), whole())) == f"{IMAGE}[person: nose{first}"
    placed = told(made(sample({"annotations": [FACE]}), whole(words=1 | 1 << 1)))
    assert placed == f"{IMAGE}[<|box|>200 143 699 856<|/box|>person{last}"
    assert told(made(sample({"annotations": [bare]}), whole(words=1 | 3 << 1))) == f"{IMAGE}[1 person: nose{first}"


@pytest.mark.parametrize(
    ("wording", "words"),
    [
        (1, "<|box|>100 071 400 428<|/box|>left cup<|box|>752 503<|/box|>pole<|box|>100 071 400 428<|/box|>left cup"),
        (2, "left cup<|box|>100 071 400 428<|/box|><|box|>100 071 400 428<|/box|>pole<|box|>752 503<|/box|>"),
        (3, "2 left cup<|box|>100 071 400 428<|/box|><|box|>100 071 400 428<|/box|>1 pole<|box|>752 503<|/box|>"),
    ],
)
def test_the_draw_of_words_chooses_how_objects_are_listed(wording, words):
    raw = sample({"annotations": [CUP, POINT, CUP]})
    assert told(made(raw, whole(words=1 | wording << 1))) == f"{IMAGE}[{words}<|end_of_text|>]"


def test_a_wording_that_is_longer_than_planned_falls_back_step_by_step():
    raw = sample({"captions": ["a cup", "a cup that stands on a table"]})
    drawn = whole(words=1 | 1 << 1 | 1 << 32)
    room = [len(made(raw, draws).tokens.ids) for draws in (drawn, whole(words=1 | 1 << 1), whole())]
    assert [told(made(raw, drawn, num_tokens)) for num_tokens in room] == [
        f"{IMAGE}Describe the image.[a cup that stands on a table<|end_of_text|>]",
        f"{IMAGE}[a cup that stands on a table<|end_of_text|>]",
        f"{IMAGE}[a cup<|end_of_text|>]",
    ]


def test_a_cut_outline_with_too_many_vertices_is_simplified_to_the_planned_length():
    triangle = {"segmentation": [[-30, 70, 120, -40, 150, 180]], "category": "sail"}
    raw = sample({"annotations": [triangle]})
    draws, num_tokens, _ = planned(raw)
    assert told(made(raw, draws)).count(" ") > told(made(raw, draws, num_tokens)).count(" ")
    assert len(made(raw, draws, num_tokens).tokens.ids) == num_tokens


@pytest.mark.parametrize("kind", ["lines", "boxes"])
def test_a_mirror_is_given_up_where_text_is_seen(kind):
    draws = settled_draws(SAMPLES[kind], whole(flip=True))
    assert draws.flip == (kind == "boxes")


def test_a_turn_is_given_up_where_words_name_directions_and_no_count_changes():
    turned = whole(turns=3, width=HEIGHT, height=WIDTH)
    kept = settled_draws(SAMPLES["caption"], turned)
    assert (kept.turns, kept.width, kept.height) == (0, WIDTH, HEIGHT)
    assert settled_draws(SAMPLES["keypoints"], turned) == turned
    for draws in (kept, turned):
        assert len(made(SAMPLES["caption"], draws).patches) == 10 * 16


def test_keypoints_without_names_or_opposites_are_not_mirrored():
    for names in ([], ["nose", "left_eye", "left_ear"]):
        raw = sample({"annotations": [FACE | {"keypoint_names": names, "skeleton": []}]})
        assert not settled_draws(raw, whole(flip=True)).flip
    assert settled_draws(SAMPLES["keypoints"], whole(flip=True)).flip


def test_media_stand_where_a_conversation_shows_them_and_only_the_assistant_is_learnt():
    one = made(SAMPLES["chat"], planned(SAMPLES["chat"])[0])
    assert told(one) == (
        "<|im_system|>system<|im_middle|>Be brief.<|im_end|>"
        f"<|im_user|>user<|im_middle|>{IMAGE}And this?{IMAGE}<|im_end|>"
        "<|im_assistant|>assistant<|im_middle|><think>[</think>Both are cups.<|im_end|>]"
    )
    assert one.grid_thw.tolist() == [[1, 8, 10], [1, 14, 20]]
    assert one.tokens.media[:, 1].tolist() == [20, 70]


def test_an_interleaved_document_learns_its_words_and_its_end():
    one = made(SAMPLES["interleaved"], whole())
    assert told(one) == f"[One]{IMAGE}[more.<|end_of_text|>]"


@pytest.mark.parametrize(
    ("inline", "complaint"),
    [
        ({"messages": [{"role": "robot", "content": "hm"}]}, "role 'robot'"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "hm"}]}]}, "1 of its media have no place"),
        ({"content": [{"type": "image"}, {"type": "image"}]}, "cannot be written"),
        ({"content": [{"type": "sound"}]}, "not text, image or video"),
        ({"annotations": [CUP], "task": "song"}, "the task 'song' is none of"),
        ({"captions": "cup"}, "'captions' is not the list"),
    ],
)
def test_samples_that_cannot_be_written_are_bad(inline, complaint):
    with pytest.raises(SampleError, match=complaint):
        made(sample(inline), whole())


@pytest.mark.parametrize("orientation", [1, 6])
def test_a_large_augmented_jpeg_is_decoded_smaller_and_looks_the_same(orientation, monkeypatch):
    size = (1600, 1208) if orientation == 1 else (1208, 1600)
    raw = sample(sizes=(size,))
    part = dataclasses.replace(raw.line.parts[0], orientation=orientation)
    smooth = Image.fromarray(np.random.default_rng(1).integers(0, 256, (40, 50, 3), dtype=np.uint8))
    exif, buffer = Image.Exif(), io.BytesIO()
    exif[0x0112] = orientation
    smooth.resize((1600, 1208), Image.Resampling.BICUBIC).save(buffer, format="JPEG", quality=95, exif=exif)
    raw = dataclasses.replace(raw, line=dataclasses.replace(raw.line, parts=(part,)), media=(buffer.getvalue(),))
    draws, num_tokens, num_patches = planned(raw, ("crop", "rotate", "turn"), number=2, max_tokens=24)
    asked = []

    def decode(data, *, name, reduce):
        asked.append(reduce)
        return decode_image(data, name=name, reduce=reduce)

    monkeypatch.setattr("k25_pipelines.sample.example.decode_image", decode)
    made(raw, planned(raw, ("flip",), number=1, max_tokens=24)[0])
    small = made(raw, draws, num_tokens)
    monkeypatch.setattr("k25_pipelines.sample.example.dct_scale", lambda **_: 1)
    full = made(raw, draws, num_tokens)
    assert (asked[0], asked[1] > 1, asked[2]) == (1, True, 1)
    assert len(small.patches) == len(full.patches) == num_patches
    assert np.abs(small.patches - full.patches).mean() * 127.5 < 2


def test_patches_are_written_where_they_are_wanted():
    draws, _, num_patches = planned(SAMPLES["two images"])
    room = np.empty((num_patches, 3, 14, 14), np.float32)
    one = made(SAMPLES["two images"], draws, out=room)
    assert one.patches is room
    np.testing.assert_array_equal(room, made(SAMPLES["two images"], draws).patches)
    small = room[1:]
    assert made(SAMPLES["two images"], draws, out=small).patches is not small


def test_media_that_were_not_read_are_an_error():
    with pytest.raises(SampleError, match="its image was not read"):
        made(dataclasses.replace(SAMPLES["boxes"], media=()), whole())
