"""The committed tokenizer keeps its promises, and training it again gives the same file."""

import hashlib

import pytest
from tokenizers import Tokenizer

from infra import train_tokenizer
from infra.demo_corpus import code_files

TEXTS = [
    "",
    " ",
    "a  b\t\r\n",
    "Ωmega 東京 👩🏽‍🚀",
    "e\u0301 é \u00a0\u200b\x00\x7f",
    "١٢٣ ½ 2026-11-23",
    "def f(x):\n    return x\n",
]


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.from_file(str(train_tokenizer.OUTPUT))


def test_the_committed_tokenizer_keeps_its_promises(tokenizer):
    assert train_tokenizer.faults(tokenizer, TEXTS) == []
    assert train_tokenizer.OUTPUT.stat().st_size < 1_000_000


def test_a_coordinate_has_as_many_tokens_as_digits(tokenizer):
    encoded = tokenizer.encode("cat<|box|>012 345 678 999<|/box|>").tokens
    assert encoded[-17:] == ["<|box|>", *"012", "Ġ", *"345", "Ġ", *"678", "Ġ", *"999", "<|/box|>"]


def test_training_twice_gives_the_same_tokenizer():
    texts = [document["content"] for _, document in zip(range(60), code_files.documents(), strict=False)]
    once, again = (train_tokenizer.train(iter(texts)).to_str() for _ in range(2))
    assert hashlib.sha256(once.encode()).hexdigest() == hashlib.sha256(again.encode()).hexdigest()


def test_the_committed_file_is_the_one_that_plans_and_batches_were_made_with():
    assert hashlib.sha256(train_tokenizer.OUTPUT.read_bytes()).hexdigest()[:16] == "c2f19ac6d0298185"
