"""Losses of the steps before in; above which loss a step is a spike, out. And which samples of a step lost most."""

from collections.abc import Iterable, Sequence
from statistics import median
from typing import Any

import numpy as np

from k25_pipelines.loader import Batch

WINDOW, FEWEST = 64, 8
"""Steps before, of which the median is taken; with fewer of them nothing is called a spike."""
DEVIATIONS, LEAST = 6.0, 0.1
"""Above the median by so many deviations, and by this share of it, since a loss may stand still."""
NORMAL = 1.4826
"""Standard deviation of a normal distribution over its median absolute deviation."""
SAMPLES_NAMED = 8


def spike_limit(losses: Sequence[float]) -> tuple[float, float] | None:
    """Return the median of the last losses, and above what the next one is a spike [nats]; None: too few are known.

    Both are medians, so that neither a spike before nor the slow fall of a loss hides the next.

    Source: Hampel 1974, "The Influence Curve and its Role in Robust Estimation": the median absolute deviation; window
        and factors are choices.
    """
    if len(losses) < FEWEST:
        return None
    last = losses[-WINDOW:]
    middle = median(last)
    deviation = NORMAL * median([abs(loss - middle) for loss in last])
    return middle, middle + max(DEVIATIONS * deviation, LEAST * abs(middle))


def sample_losses(batch: Batch, target_losses: np.ndarray, target_document: np.ndarray) -> list[dict[str, Any]]:
    """Return each sample of a batch with the mean loss of its targets [nats], None where it has none.

    Args:
        batch: this rank's.
        target_losses: float [n] of all targets.
        target_document: int64 [n] the document of each, as in `Inputs`.
    """
    edges = np.asarray(batch.cu_seqlens, np.int64)
    starts = edges[:-1][np.diff(edges) > 0]
    counts = np.bincount(target_document, minlength=len(starts))
    sums = np.bincount(target_document, weights=target_losses.astype(np.float64), minlength=len(starts))
    row_of = {pack: row for row, pack in enumerate(sorted({place.pack for place in batch.provenance}))}
    told = []
    for place in batch.provenance:
        at = row_of[place.pack] * batch.input_ids.shape[1] + place.start
        document = int(np.searchsorted(starts, at, side="right")) - 1
        count = 0 if place.masked else int(counts[document])
        told.append(
            {
                "dataset": place.dataset,
                "key": place.key,
                "line": place.line,
                "pack": place.pack,
                "loss": float(sums[document]) / count if count else None,
                "targets": count,
            }
        )
    return told


def worst_first(samples: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return samples by their losses: those that are no number, then the largest, at last those without a target."""

    def rank(sample: dict[str, Any]) -> tuple:
        loss = sample["loss"]
        order = (2, 0.0) if loss is None else (1, -loss) if np.isfinite(loss) else (0, 0.0)
        return (*order, sample["pack"], sample["dataset"], sample["line"])

    return sorted(samples, key=rank)


def without_number(samples: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the samples whose losses are no numbers; none where all are, since then no sample is to blame."""
    losses = [sample for sample in samples if sample["loss"] is not None]
    wild = [sample for sample in losses if not np.isfinite(sample["loss"])]
    return wild if len(wild) < len(losses) else []


def named(samples: Sequence[dict[str, Any]]) -> str:
    """Return the first samples by name, with their losses."""
    words = [f"{each['dataset']}/{each['key']}{_loss(each['loss'])}" for each in samples[:SAMPLES_NAMED]]
    more = len(samples) - SAMPLES_NAMED
    return ", ".join(words) + (f" and {more} more" if more > 0 else "")


def _loss(loss: float | None) -> str:
    return "" if loss is None else f" ({loss:.3f})"
