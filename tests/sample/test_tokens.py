"""What `sample/tokens.py` promises: words are words, and a tokenizer is named by its bytes."""

import pytest

from k25_pipelines.errors import RecipeError
from k25_pipelines.sample.tokens import SPECIAL_TOKENS, load_tokenizer, publish_tokenizer, tokenizer_key
from k25_pipelines.storage.store import open_store


def test_the_default_tokenizer_gives_back_what_it_encoded():
    tokenizer = load_tokenizer("default")
    text = "Zwei Bären, naïve 🐻 code: x = 3.14\n\tdef f(): pass"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.encode_batch([text, "b"])[0].tolist() == tokenizer.encode(text)


def test_a_special_token_spelled_in_a_document_stays_words():
    tokenizer = load_tokenizer("default")
    spelled = "".join(SPECIAL_TOKENS.values())
    assert set(tokenizer.encode(spelled)) & set(tokenizer.special.values()) == set()
    assert tokenizer.decode(tokenizer.encode(spelled)) == spelled


def test_every_digit_is_a_token_so_coordinates_have_one_length():
    tokenizer = load_tokenizer("default")
    assert {len(tokenizer.encode(words)) for words in ("000 000 000 000", "123 456 789 012", "999 111 222 333")} == {15}


def test_special_tokens_are_reached_by_name():
    tokenizer = load_tokenizer("default")
    assert tokenizer.decode([tokenizer.media_begin, tokenizer.media_pad, tokenizer.eos]) == (
        "<|media_begin|><|media_pad|><|end_of_text|>"
    )
    with pytest.raises(AttributeError, match="media_beginning"):
        _ = tokenizer.media_beginning


def test_a_published_tokenizer_is_found_by_its_digest(tmp_path):
    lake, tokenizer = open_store("memory://tokens"), load_tokenizer("default")
    assert publish_tokenizer(lake, tokenizer) == tokenizer.digest
    assert lake.get(tokenizer_key(tokenizer.digest)) == tokenizer.file
    (tmp_path / "mine.json").write_bytes(tokenizer.file)
    assert load_tokenizer(f"{tmp_path}/mine.json").digest == tokenizer.digest
    assert load_tokenizer(tokenizer.digest, lake) is load_tokenizer("default")


@pytest.mark.parametrize(
    ("name", "complaint"),
    [("f" * 32, "no tokenizer"), ("missing.json", "no tokenizer"), ("bad.json", "not a tokenizers JSON")],
)
def test_a_tokenizer_that_is_not_there_is_named(name, complaint, tmp_path):
    (tmp_path / "bad.json").write_text("{}")
    where = name if len(name) == 32 else f"{tmp_path}/{name}"
    with pytest.raises(RecipeError, match=complaint):
        load_tokenizer(where, open_store("memory://tokens-none"))


def test_a_tokenizer_without_the_media_tokens_is_refused(tmp_path):
    file = load_tokenizer("default").file.replace(b"<|media_pad|>", b"<|media_bad|>")
    (tmp_path / "lacking.json").write_bytes(file)
    with pytest.raises(RecipeError, match=r"lacks <\|media_pad\|>"):
        load_tokenizer(f"{tmp_path}/lacking.json")
