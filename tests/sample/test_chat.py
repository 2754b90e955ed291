"""What `sample/chat.py` and `sample/mask.py` promise: one rendering, pinned, and its targets."""

import numpy as np
import pytest

from k25_pipelines.sample import chat
from k25_pipelines.sample.mask import labels_of, tokenized
from k25_pipelines.sample.tokens import SPECIAL_TOKENS, load_tokenizer


def written(spans, *, pads=2):
    """The rendering as words, targets between [ and ]."""
    pieces = []
    for span in spans:
        piece = "<|media_pad|>" * pads if span.media >= 0 else span.words or SPECIAL_TOKENS[span.special]
        pieces.append(f"[{piece}]" if span.is_target else piece)
    return "".join(pieces).replace("][", "")


IMAGE = "<|media_begin|>image<|media_content|><|media_pad|><|media_pad|><|media_end|>"


def volume(time):
    return f"{time}<|media_begin|>video<|media_content|><|media_pad|><|media_pad|><|media_end|>"


def test_a_document_is_all_target():
    assert written(chat.render_text("Hello")) == "[Hello<|end_of_text|>]"
    assert written(chat.render_text("")) == "[<|end_of_text|>]"


def test_a_caption_follows_its_image():
    assert written(chat.render_caption("A bear.", media=chat.image_media())) == f"{IMAGE}[A bear.<|end_of_text|>]"


def test_a_video_is_timestamped_volumes_with_nothing_between():
    spans = chat.render_caption("It runs.", media=chat.video_media([0.0, 2.0, 3661.9999]))
    times = ["00:00:00.000", "00:00:02.000", "01:01:01.999"]
    assert written(spans) == "".join(map(volume, times)) + "[It runs.<|end_of_text|>]"


def test_objects_are_labels_with_boxes_in_thousandths_of_the_content():
    boxes = chat.normalised_boxes(np.array([[-0.5, -0.5, 99.5, 49.5], [9.5, 4.5, 49.5, 24.5]]), width=100, height=50)
    spans = chat.render_grounding(["bear", "left paw"], boxes, media=chat.image_media())
    assert written(spans) == (
        f"{IMAGE}[bear<|box|>000 000 999 999<|/box|>left paw<|box|>100 100 500 500<|/box|><|end_of_text|>]"
    )


def test_written_boxes_lie_within_a_two_thousandth_of_the_boxes():
    boxes = np.random.default_rng(3).uniform(0, 400, (50, 4))
    back = chat.pixel_boxes(chat.normalised_boxes(boxes, width=640, height=480), width=640, height=480)
    assert (np.abs(back - boxes) <= np.array([640, 480, 640, 480]) / 999 / 2 + 1e-9).all()


def test_a_conversation_is_rendered_in_the_template_of_k25():
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "What is it?"},
        {"role": "assistant", "thinking": "hm", "content": "A bear."},
    ]
    head = (
        "<|im_system|>system<|im_middle|>Be brief.<|im_end|>"
        f"<|im_user|>user<|im_middle|>{IMAGE}What is it?<|im_end|><|im_assistant|>assistant<|im_middle|><think>"
    )
    assert written(chat.render_messages(messages, media=chat.image_media())) == f"{head}[hm</think>A bear.<|im_end|>]"
    assert written(chat.render_messages(messages[:2], media=chat.image_media(), generate=True)) == head


def test_a_tools_answer_is_a_system_turn_under_its_name_and_is_not_learnt():
    spans = chat.render_messages([{"role": "tool", "content": "42"}])
    assert written(spans) == "<|im_system|>tool<|im_middle|>42<|im_end|>"


def test_media_stand_between_the_words_of_a_turn():
    content = ["See ", chat.image_media(), "and ", chat.image_media(first=1), "?"]
    spans = chat.render_messages([{"role": "user", "content": content}])
    assert written(spans) == f"<|im_user|>user<|im_middle|>See {IMAGE}and {IMAGE}?<|im_end|>"
    assert [span.media for span in spans if span.media >= 0] == [0, 1]


def test_a_prompt_stands_before_the_caption_and_is_not_learnt():
    spans = chat.render_caption("A bear.", media=chat.image_media(), prompt="Caption:")
    assert written(spans) == f"{IMAGE}Caption:[A bear.<|end_of_text|>]"


def test_unknown_roles_and_homeless_images_are_refused():
    with pytest.raises(ValueError, match="role 'robot'"):
        chat.render_messages([{"role": "robot", "content": ""}])
    with pytest.raises(ValueError, match="no place"):
        chat.render_messages([{"role": "system", "content": "x"}], media=chat.image_media())


def test_the_token_ids_of_a_caption_are_those_that_past_runs_saw():
    tokenizer = load_tokenizer("default")
    sample = tokenized(chat.render_caption("A 12.", media=chat.image_media()), tokenizer, media_tokens=[3])
    kind, caption = tokenizer.encode("image"), tokenizer.encode("A 12.")
    ids = [tokenizer.media_begin, *kind, tokenizer.media_content, *[tokenizer.media_pad] * 3, tokenizer.media_end]
    assert sample.ids.tolist() == [*ids, *caption, tokenizer.eos]
    assert sample.is_target.tolist() == [False] * len(ids) + [True] * (len(caption) + 1)
    assert sample.media.tolist() == [[2 + len(kind), 3]]


def test_labels_are_unshifted_and_skip_the_first_token():
    tokenizer = load_tokenizer("default")
    sample = tokenized(chat.render_text("one two"), tokenizer)
    assert labels_of(sample.ids, sample.is_target).tolist() == [-100, *sample.ids[1:].tolist()]


def test_spans_that_place_other_media_than_given_are_refused():
    with pytest.raises(ValueError, match=r"vision items \[0\], but 2"):
        tokenized(chat.image_media(), load_tokenizer("default"), media_tokens=[1, 1])
