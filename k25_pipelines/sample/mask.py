"""Spans to token ids, and which of them are targets: rendered samples and their vision items in, arrays out."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from k25_pipelines.sample.chat import Span
from k25_pipelines.sample.tokens import Tokenizer

IGNORED = -100
"""What a label is where nothing is to be predicted."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenizedSample:
    """A sample as token ids, with the places of its vision items."""

    ids: np.ndarray
    """int64 [n] token ids."""
    is_target: np.ndarray
    """bool [n] whether the model is to predict the token."""
    media: np.ndarray
    """int64 [m, 2] first pad and number of pads of each vision item, in order."""


def tokenized(spans: Sequence[Span], tokenizer: Tokenizer, *, media_tokens: Sequence[int] = ()) -> TokenizedSample:
    """Return the token ids of rendered spans.

    Args:
        spans: what `chat` rendered.
        tokenizer: words to ids.
        media_tokens: pads of each vision item that the spans name [tokens].

    Raises:
        ValueError: the spans name other vision items than `media_tokens` counts.
    """
    named = [span.media for span in spans if span.media >= 0]
    if named != list(range(len(media_tokens))):
        raise ValueError(f"the spans place vision items {named}, but {len(media_tokens)} are given")
    words = iter(tokenizer.encode_batch([span.words for span in spans if span.words]))
    pieces, targets, starts, length = [], [], [], 0
    for span in spans:
        piece = next(words) if span.words else _marks(span, tokenizer, media_tokens)
        if span.media >= 0:
            starts.append((length, len(piece)))
        pieces.append(piece)
        targets.append(np.full(len(piece), span.is_target))
        length += len(piece)
    return TokenizedSample(
        ids=np.concatenate([np.zeros(0, dtype=np.int64), *pieces]),
        is_target=np.concatenate([np.zeros(0, dtype=bool), *targets]),
        media=np.array(starts, dtype=np.int64).reshape(-1, 2),
    )


def labels_of(ids: np.ndarray, is_target: np.ndarray) -> np.ndarray:
    """Return int64 labels, unshifted: the id where it is a target, else -100.

    The first token of a sample is never a target: nothing stands before it to predict it from.
    """
    labels = np.where(is_target, ids, IGNORED)
    labels[:1] = IGNORED
    return labels


def _marks(span: Span, tokenizer: Tokenizer, media_tokens: Sequence[int]) -> np.ndarray:
    if span.media >= 0:
        return np.full(media_tokens[span.media], tokenizer.special["media_pad"], dtype=np.int64)
    return np.array([tokenizer.special[span.special]], dtype=np.int64)
