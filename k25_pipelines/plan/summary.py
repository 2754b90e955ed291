"""Rows of a plan's segments -> running totals, and these -> what the plan amounts to, as plain data."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from k25_pipelines.plan.recipe import Recipe, recipe_at

SHARE_UNITS = 10**6
"""Shares of steps are summed as whole millionths, so that the sum depends on no order."""

Totals = dict[str, Any]
"""num_steps, num_packs, room [tokens]; samples, tokens, vision_tokens, refused by source; shares and share_squares over
the steps; most_patches and most_patches_step, the heaviest step. All whole numbers; empty before the first step."""


def totals_after(
    totals: Mapping[str, Any], table: pa.Table, *, num_packs: int, room: int, refused: Mapping[str, int]
) -> Totals:
    """Return the totals with the rows of one more segment."""
    step, first, names, code = _places(table)
    tokens, vision, patches = (table[name].to_numpy() for name in ("num_tokens", "vision_tokens", "patches"))
    step_tokens, step_vision, step_patches = (_sums(step, values) for values in (tokens, vision, patches))
    share = step_vision * SHARE_UNITS // np.maximum(1, step_tokens)
    heaviest = int(step_patches.argmax())
    is_heavier = int(step_patches[heaviest]) > totals.get("most_patches", -1)
    whole_or_first = table["token_start"].to_numpy() == 0
    by_source = {
        "samples": np.bincount(code[whole_or_first], minlength=len(names)),
        "tokens": _sums(code, tokens, len(names)),
        "vision_tokens": _sums(code, vision, len(names)),
    }
    return {
        "num_steps": totals.get("num_steps", 0) + len(step_tokens),
        "num_packs": totals.get("num_packs", 0) + num_packs,
        "room": totals.get("room", 0) + room,
        "shares": totals.get("shares", 0) + int(share.sum()),
        "share_squares": totals.get("share_squares", 0) + int((share * share).sum()),
        "most_patches": int(step_patches[heaviest]) if is_heavier else totals["most_patches"],
        "most_patches_step": first + heaviest if is_heavier else totals["most_patches_step"],
        "refused": _added(totals.get("refused", {}), refused),
        **{
            name: _added(totals.get(name, {}), dict(zip(names, counts.tolist(), strict=True)))
            for name, counts in by_source.items()
        },
    }


def plan_summary(header: Mapping[str, Any], recipe: Recipe, *, steps: int | None = None) -> dict[str, Any]:
    """Return counts, fill, vision share and its spread over the steps, and epochs of each source.

    Args:
        header: of the plan's last segment: its totals are the plan's.
        recipe: the plan's, as far as it is planned.
        steps: how far the epochs are projected; as far as it is planned by default [steps].

    Returns:
        num_steps, num_packs, samples, tokens, vision_tokens, fill (real tokens over room),
        vision_share, vision_share_std (over steps), worst_debt_tokens (largest error of the
        blend in a lane), refused and refused_samples (media longer than a pack),
        most_patches (of the heaviest step) and most_patches_step, samples_of_source,
        tokens_of_source, epochs (packed samples over lines; split texts count once),
        projected_epochs (at `steps`, if the sources go on as so far) and dry_at_step (where a
        source reaches its max_epochs at this rate).
    """
    totals, lines = header["report"]["totals"], {name: d["num_lines"] for name, d in header["datasets"].items()}
    tokens, vision = sum(totals["tokens"].values()), sum(totals["vision_tokens"].values())
    planned = totals["num_steps"]
    samples = {name: totals["samples"].get(name, 0) for name in lines}
    epochs = {name: samples[name] / max(1, count) for name, count in lines.items()}
    mean = totals["shares"] / planned
    variance = max(0.0, totals["share_squares"] / planned - mean**2)
    return {
        "num_steps": planned,
        "num_packs": totals["num_packs"],
        "samples": sum(samples.values()),
        "tokens": tokens,
        "vision_tokens": vision,
        "fill": tokens / max(1, totals["room"]),
        "vision_share": vision / max(1, tokens),
        "vision_share_std": variance**0.5 / SHARE_UNITS,
        "worst_debt_tokens": header["report"]["worst_debt_tokens"],
        "refused": sum(totals["refused"].values()),
        "refused_samples": dict(sorted(totals["refused"].items())),
        "most_patches": totals["most_patches"],
        "most_patches_step": totals["most_patches_step"],
        "samples_of_source": samples,
        "tokens_of_source": {name: totals["tokens"].get(name, 0) for name in lines},
        "epochs": epochs,
        "projected_epochs": {name: share * (steps or planned) / planned for name, share in epochs.items()},
        "dry_at_step": _dry_at(epochs, recipe, planned),
    }


def _dry_at(epochs: Mapping[str, float], recipe: Recipe, planned: int) -> dict[str, int]:
    """Return at which step sources with max_epochs are used up if they go on as so far."""
    live = recipe_at(recipe, planned).sources
    return {
        name: int(planned * source.max_epochs / epochs[name])
        for name, source in sorted(live.items())
        if source.max_epochs is not None and epochs.get(name, 0) > 0
    }


def _places(table: pa.Table) -> tuple[np.ndarray, int, list[str], np.ndarray]:
    """Return each row's step counted from the first, that first step, and the datasets' names and each row's number."""
    steps = table["step"].to_numpy()
    column = table["dataset"].combine_chunks()
    encoded = column.chunk(0) if isinstance(column, pa.ChunkedArray) else column
    return steps - steps[0], int(steps[0]), encoded.dictionary.to_pylist(), encoded.indices.to_numpy()


def _sums(place: np.ndarray, values: np.ndarray, length: int = 0) -> np.ndarray:
    """Return the sum of the values at each place, exact below 2^53, int64."""
    return np.bincount(place, weights=values, minlength=length).astype(np.int64)


def _added(counts: Mapping[str, int], more: Mapping[str, int]) -> dict[str, int]:
    return {name: counts.get(name, 0) + more.get(name, 0) for name in sorted({*counts, *more})}
