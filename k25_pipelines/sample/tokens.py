"""Words to token ids: one tokenizer, named by the digest of its file, with the ids of K2.5's special tokens."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import tokenizers

from k25_pipelines.errors import ObjectNotFoundError, RecipeError
from k25_pipelines.keys import DIGEST_BYTES, digest
from k25_pipelines.storage.store import Store, open_store

DEFAULT_FILE = Path(__file__).with_name("tokenizer.json")

SPECIAL_TOKENS = {
    "bos": "<|begin_of_text|>",
    "eos": "<|end_of_text|>",
    "pad": "<|pad|>",
    "media_begin": "<|media_begin|>",
    "media_content": "<|media_content|>",
    "media_end": "<|media_end|>",
    "media_pad": "<|media_pad|>",
    "im_system": "<|im_system|>",
    "im_user": "<|im_user|>",
    "im_assistant": "<|im_assistant|>",
    "im_middle": "<|im_middle|>",
    "im_end": "<|im_end|>",
    "think": "<think>",
    "end_think": "</think>",
    "box": "<|box|>",
    "end_box": "<|/box|>",
}
"""Name in code -> token. Words of a sample never become one of these: only the renderer places them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Tokenizer:
    """A tokenizer and what it is named by."""

    digest: str
    """32 hexadecimal characters of the file's bytes."""
    special: dict[str, int]
    """Id of each name of SPECIAL_TOKENS; also as attributes, such as `.eos`."""
    file: bytes = field(repr=False)
    """The Hugging Face `tokenizers` JSON."""
    model: tokenizers.Tokenizer = field(repr=False)

    def encode(self, text: str) -> list[int]:
        """Return the ids of plain words; a special token spelled in them is words too."""
        return self.model.encode_batch_fast([text], add_special_tokens=False)[0].ids

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Return the ids of each text as int64, all tokenized by the thread that asks.

        One text a call: given several, the library spreads them over threads of its own, which
        take turns with the loader's. Without offsets (`fast`) it is about a sixth faster.
        """
        return [np.array(self.encode(text), dtype=np.int64) for text in texts]

    def decode(self, ids: Sequence[int]) -> str:
        """Return the words and special tokens of ids."""
        return self.model.decode([int(token) for token in ids], skip_special_tokens=False)

    @property
    def num_tokens(self) -> int:
        """Size of the vocabulary, special tokens included."""
        return self.model.get_vocab_size(with_added_tokens=True)

    def __getattr__(self, name: str) -> int:
        """Return the id of a special token by its name in code."""
        if name in SPECIAL_TOKENS:
            return self.special[name]
        raise AttributeError(f"a Tokenizer has no {name!r}; special tokens: {', '.join(SPECIAL_TOKENS)}")


def load_tokenizer(name_or_uri: str, lake: Store | None = None) -> Tokenizer:
    """Return the tokenizer called `default`, named by a digest, or stored at a URI.

    Args:
        name_or_uri: `default` (committed beside this file), 32 hexadecimal characters of a
            tokenizer published in the lake, or a path or `s3://` URI of a tokenizers JSON.
        lake: where digests are looked up.

    Raises:
        RecipeError: there is no such tokenizer, or it lacks a special token.
    """
    if name_or_uri == "default":
        return _default()
    if len(name_or_uri) == 2 * DIGEST_BYTES and set(name_or_uri) <= set("0123456789abcdef"):
        if DEFAULT_FILE.exists() and _default().digest == name_or_uri:
            return _default()
        if lake is not None:
            return _read(lake, tokenizer_key(name_or_uri), name_or_uri)
    folder, _, file_name = name_or_uri.rpartition("/")
    return _read(open_store(folder or "."), file_name, name_or_uri)


def tokenizer_key(name: str) -> str:
    """Return the lake's key of the tokenizer with this digest."""
    return f"k25/tokenizers/{name}.json"


def publish_tokenizer(lake: Store, tokenizer: Tokenizer) -> str:
    """Write the tokenizer's file to the lake under its digest, and return the digest."""
    lake.put_new(tokenizer_key(tokenizer.digest), tokenizer.file)
    return tokenizer.digest


def tokenizer_of(file: bytes, name: str = "tokenizer") -> Tokenizer:
    """Return the tokenizer of a tokenizers JSON.

    Raises:
        RecipeError: the JSON is no tokenizer, or lacks one of SPECIAL_TOKENS.
    """
    try:
        model = tokenizers.Tokenizer.from_buffer(file)
    except ValueError as error:
        raise RecipeError(f"{name}: not a tokenizers JSON ({error}); save it with Tokenizer.save") from error
    found = {key: model.token_to_id(token) for key, token in SPECIAL_TOKENS.items()}
    ids = {key: token for key, token in found.items() if token is not None}
    if lacking := [SPECIAL_TOKENS[key] for key in found if key not in ids]:
        raise RecipeError(f"{name}: lacks {', '.join(lacking)}; add them as special tokens and index it anew")
    model.no_padding()
    model.no_truncation()
    model.encode_special_tokens = True  # "<|im_end|>" in a document is words, not the end of a turn
    return Tokenizer(digest=digest(file), special=ids, file=file, model=model)


@functools.cache
def _default() -> Tokenizer:
    if not DEFAULT_FILE.exists():
        raise RecipeError(f"the default tokenizer {DEFAULT_FILE.name} is missing; run python -m infra.train_tokenizer")
    return tokenizer_of(DEFAULT_FILE.read_bytes(), "default")


def _read(store: Store, key: str, name: str) -> Tokenizer:
    try:
        return tokenizer_of(store.get(key), name)
    except ObjectNotFoundError as error:
        raise RecipeError(f"no tokenizer {name!r}: {error}; use default, a published digest or a URI") from error
