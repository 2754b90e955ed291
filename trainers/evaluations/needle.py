"""Does the context reach? A number told somewhere in a long real text, asked for at its end.

Measured at the context the positions were first trained for and at both stretches of it: how many digits are the
likeliest, what they cost, and what they cost where the text never told them. Beside it, what the text itself costs up
to each context's end and beyond, which needs no recall: positions that the model cannot use show there first.
"""

# Shapes: n targets of one text.

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

from k25_pipelines.catalog.registry import load_manifest
from k25_pipelines.errors import DatasetError
from k25_pipelines.keys import random_key
from k25_pipelines.loader import Batch
from k25_pipelines.sample.read import read_line
from k25_pipelines.sample.tokens import Tokenizer
from k25_pipelines.storage.store import Store, open_store
from trainers.inputs import IGNORED, inputs_of
from trainers.model.kimi_k25 import KimiK25
from trainers.recipes import stretches_of_model

DATASET = "long_documents"
NUM_TEXTS = 3
LONGEST_TEXTS = 1
"""Texts at the second stretch, where each costs as much as all others."""
DEPTHS = (0.1, 0.5, 0.9)
NAMES = ("Amsterdam", "Kyoto", "Lima", "Nairobi", "Oslo", "Quebec", "Samarkand", "Tunis")
NUM_DIGITS = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """One text with a question at its end."""

    ids: list[int]
    """The digits of the answer are the last tokens."""
    told: bool
    """Whether the text holds the answer."""


@torch.no_grad()
def evaluate_needle(model: KimiK25, store: Store, *, tokenizer: Tokenizer) -> dict:
    """Return the figures at the three lengths, and the text's loss between their ends.

    Args:
        model: whose config says the first context; its name says how far the others reach.
        store: the lake, in which long_documents is registered.
        tokenizer: the model's.
    """
    context, stretches = model.config.language.context, stretches_of_model(model.config.name)
    lengths = {"context": context, "extended": context * stretches[0], "longest": context * stretches[1]}
    texts = long_texts(store, tokenizer, num_tokens=lengths["longest"])
    found: dict = {"context": context, "extended_context": lengths["extended"], "longest_context": lengths["longest"]}
    for where, length in lengths.items():
        used = texts[:LONGEST_TEXTS] if where == "longest" else texts
        asked = [one for number, text in enumerate(used) for one in questions(text, tokenizer, number, length=length)]
        found |= {f"{name}_{where}": value for name, value in _figures(model, asked).items()}
    extended = torch.stack([_losses(model, text[: lengths["extended"]])[0] for text in texts]).mean(dim=0)
    longest = torch.stack([_losses(model, text)[0] for text in texts[:LONGEST_TEXTS]]).mean(dim=0)
    found["text_nll_within_context"] = float(extended[: context - 1].mean())
    found["text_nll_beyond_context"] = float(extended[context - 1 :].mean())
    found["text_nll_beyond_extended"] = float(longest[lengths["extended"] - 1 :].mean())
    return found


def questions(text: list[int], tokenizer: Tokenizer, number: int, *, length: int) -> list[Asked]:
    """Return one text with the needle at each depth, and one without it, of `length` tokens each."""
    name = NAMES[random_key("needle name", number) % len(NAMES)]
    secret = f"{random_key('needle', number) % 10**NUM_DIGITS:0{NUM_DIGITS}d}"
    question = tokenizer.encode(f"\nThe secret number of {name} is ") + tokenizer.encode(secret)
    needle = tokenizer.encode(f"\nThe secret number of {name} is {secret}.\n")
    asked = [Asked(ids=text[: length - len(question)] + question, told=False)]
    room = length - len(question) - len(needle)
    for depth in DEPTHS:
        before = int(room * depth)
        asked.append(Asked(ids=text[:before] + needle + text[before:room] + question, told=True))
    return asked


def long_texts(store: Store, tokenizer: Tokenizer, *, num_tokens: int) -> list[list[int]]:
    """Return the first tokens of some long documents, in a keyed order.

    Raises:
        DatasetError: no document is long enough.
    """
    manifest = load_manifest(store, DATASET)
    fetch = _fetch(open_store(manifest.uri))
    found = []
    for line in sorted(range(manifest.num_lines), key=lambda number: random_key("long text", number)):
        ids = tokenizer.encode(read_line(manifest, line, fetch).text or "")
        found += [ids[:num_tokens]] if len(ids) >= num_tokens else []
        if len(found) == NUM_TEXTS:
            return found
    if not found:
        raise DatasetError(f"{DATASET}: no document has {num_tokens} tokens; register longer ones")
    return found


def _fetch(store: Store) -> Callable[[str, int, int, str], bytes]:
    return lambda shard, offset, num_bytes, etag: store.get_range(shard, offset, num_bytes, etag=etag)


def _figures(model: KimiK25, asked: list[Asked]) -> dict:
    told, untold, right = [], [], []
    for one in asked:
        losses, likeliest = _losses(model, one.ids)
        (told if one.told else untold).append(float(losses[-NUM_DIGITS:].mean()))
        if one.told:
            right.append([a == b for a, b in zip(likeliest[-NUM_DIGITS:].tolist(), one.ids[-NUM_DIGITS:], strict=True)])
    return {
        "digit_accuracy": float(np.mean(right)),
        "exact_accuracy": float(np.mean([all(each) for each in right])),
        "digit_nll": float(np.mean(told)),
        "digit_nll_untold": float(np.mean(untold)),
    }


def _losses(model: KimiK25, ids: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the loss of every token but the first, float [n], and the likeliest token in its place, int64 [n]."""
    inputs = inputs_of(_text_batch(ids))
    logits = model.logits(inputs, None)
    return functional.cross_entropy(logits, inputs.target, reduction="none"), logits.argmax(dim=-1)


def _text_batch(ids: list[int]) -> Batch:
    tokens = np.array([ids], dtype=np.int64)
    labels = tokens.copy()
    labels[0, 0] = IGNORED
    return Batch(
        input_ids=tokens,
        labels=labels,
        position_ids=np.arange(len(ids))[None],
        cu_seqlens=np.array([0, len(ids)], dtype=np.int32),
        patches=np.zeros((0, 3, 14, 14), dtype=np.float32),
        grid_thw=np.zeros((0, 3), dtype=np.int64),
        media_slots=np.zeros((0, 3), dtype=np.int64),
        provenance=[],
    )
