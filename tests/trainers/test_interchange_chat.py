"""What goes with the weights: the template says what the renderer says, and pictures are sized as the loader does."""

import json

import pytest

from k25_pipelines.plan.size import PROFILES
from k25_pipelines.sample.chat import Span, image_media, render_messages, video_media
from k25_pipelines.sample.mask import tokenized
from k25_pipelines.sample.tokens import SPECIAL_TOKENS, load_tokenizer
from trainers.interchange.processor_files import processor_files

transformers = pytest.importorskip("transformers")

TOKENIZER = load_tokenizer("default")
FILES = processor_files(TOKENIZER, PROFILES["kimi_k25"], context=256, has_vision=True)
SECONDS = [0.0, 2.0, 61.25, 3601.5, 7.999]


@pytest.fixture(scope="module")
def public(tmp_path_factory):
    """The tokenizer as transformers finds it in an exported folder."""
    folder = tmp_path_factory.mktemp("tokenizer")
    for name, data in FILES.items():
        (folder / name).write_bytes(data)
    return transformers.AutoTokenizer.from_pretrained(folder)


def spelled(spans: list[Span]) -> str:
    """The text of spans, a picture as one pad."""
    pads = SPECIAL_TOKENS["media_pad"]
    return "".join(s.words or (SPECIAL_TOKENS[s.special] if s.special else pads) for s in spans)


def message(role: str, content, **more) -> dict:
    return {"role": role, "content": content, **more}


IMAGE, VIDEO = {"type": "image"}, {"type": "video", "seconds": SECONDS}
CONVERSATIONS = {
    "words": ([message("user", "How many?")],) * 2,
    "system, thoughts and a tool": (
        [
            message("system", "Be brief.\n"),
            message("user", "2 + 2?"),
            message("assistant", "4 {{ x }}", thinking="two and two"),
            message("tool", '{"ok": true}'),
            message("assistant", ""),
        ],
    )
    * 2,
    "pictures among words": (
        [message("user", [image_media(), "left or ", image_media(first=1), "right?"]), message("assistant", "left")],
        [message("user", [IMAGE, {"type": "text", "text": "left or "}, IMAGE, "right?"]), message("assistant", "left")],
    ),
    "a video": ([message("user", [video_media(SECONDS), "Next?"])], [message("user", [VIDEO, "Next?"])]),
}


@pytest.mark.parametrize("name", CONVERSATIONS)
@pytest.mark.parametrize("generate", [False, True], ids=["as trained on", "prompted"])
def test_the_template_writes_what_the_renderer_writes(public, name, generate):
    ours, theirs = CONVERSATIONS[name]
    spans = render_messages(ours, generate=generate)
    text = public.apply_chat_template(theirs, tokenize=False, add_generation_prompt=generate)
    assert text == spelled(spans)
    pads = [1] * sum(span.media >= 0 for span in spans)
    ids = public.apply_chat_template(theirs, tokenize=True, add_generation_prompt=generate, return_dict=False)
    assert ids == tokenized(spans, TOKENIZER, media_tokens=pads).ids.tolist()


def test_thoughts_may_have_the_name_that_servers_give_them(public):
    told = [message("user", "?"), message("assistant", "4", reasoning_content="two")]
    text = public.apply_chat_template(told, tokenize=False)
    assert text == spelled(render_messages([told[0], message("assistant", "4", thinking="two")]))


def test_special_tokens_in_words_stay_words_where_the_caller_asks_for_it(public):
    told = [message("user", "say <|im_end|> and <think>")]
    ids = public.apply_chat_template(told, return_dict=False, sanitize_control_tokens=True)
    assert public.decode(ids) == spelled(render_messages(told))
    names = ("im_user", "im_middle", "im_end")
    assert [token for token in ids if token in TOKENIZER.special.values()] == [TOKENIZER.special[n] for n in names]


def test_a_role_or_piece_that_training_does_not_know_is_an_error(public):
    for wrong in ([message("critic", "?")], [message("user", [{"type": "audio"}])]):
        with pytest.raises(Exception, match=r"a role is one of system, user|a piece is text, image, or video"):
            public.apply_chat_template(wrong, tokenize=False)


def test_the_public_tokenizer_has_the_same_ids(public):
    assert public("A dog, 犬.\n  x = 1", add_special_tokens=False).input_ids == TOKENIZER.encode("A dog, 犬.\n  x = 1")
    assert (public.bos_token_id, public.eos_token_id, public.pad_token_id) == (
        TOKENIZER.bos,
        TOKENIZER.eos,
        TOKENIZER.pad,
    )
    assert {name: public.convert_tokens_to_ids(token) for name, token in SPECIAL_TOKENS.items()} == TOKENIZER.special


def test_generation_ends_with_the_turn_or_the_text():
    assert json.loads(FILES["generation_config.json"])["eos_token_id"] == [TOKENIZER.eos, TOKENIZER.im_end]


def test_pictures_and_frames_have_the_published_limits():
    image, video = (json.loads(FILES[f"{kind}preprocessor_config.json"]) for kind in ("", "video_"))
    kinds = ("patch_size", "merge_size", "max_patches", "size", "image_mean", "image_std", "resample")
    side = {"max_height": 512, "max_width": 512}
    assert [image[key] for key in kinds] == [14, 2, 16384, side, [0.5] * 3, [0.5] * 3, 3]
    assert [video[key] for key in (*kinds, "fps", "temporal_patch_size")] == [
        14,
        2,
        4096,
        side,
        [0.5] * 3,
        [0.5] * 3,
        3,
        2.0,
        4,
    ]
    assert image["media_proc_cfg"]["in_patch_limit"] == 16384
