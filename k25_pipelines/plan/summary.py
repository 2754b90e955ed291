"""Headers and rows of a plan's segments -> what the plan amounts to, as plain data."""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa


def plan_summary(
    segments: Iterable[tuple[Mapping[str, Any], pa.Table]], *, num_steps: int, pack_tokens: int
) -> dict[str, Any]:
    """Return counts, fill, vision share and its spread over the steps, and epochs of each source.

    Args:
        segments: header and rows of each segment, in order; one is held at a time.
        num_steps: steps of the plan.
        pack_tokens: T [tokens].

    Returns:
        num_steps, num_packs, samples, tokens, vision_tokens, fill (real tokens over room),
        vision_share, vision_share_std (over steps), worst_debt_tokens (largest error of the
        blend in a lane), refused and refused_samples (media longer than a pack),
        samples_of_source and epochs (packed samples over lines; split texts count once).
    """
    tokens, vision, packs = (np.zeros(num_steps, dtype=np.int64) for _ in range(3))
    samples: Counter[str] = Counter()
    refused: Counter[str] = Counter()
    lines: dict[str, int] = {}
    worst = 0.0
    for header, table in segments:
        step = table["step"].to_numpy()
        np.add.at(tokens, step, table["num_tokens"].to_numpy())
        np.add.at(vision, step, table["vision_tokens"].to_numpy())
        np.maximum.at(packs, step, table["pack"].to_numpy() + 1)
        whole_or_first = table.filter(pa.array(table["token_start"].to_numpy() == 0))
        samples.update(whole_or_first["dataset"].cast(pa.string()).to_pylist())
        refused.update(header["report"]["refused"])
        worst = max(worst, header["report"]["worst_debt_tokens"])
        lines = {name: facts["num_lines"] for name, facts in header["datasets"].items()}
    return {
        "num_steps": num_steps,
        "num_packs": int(packs.sum()),
        "samples": samples.total(),
        "tokens": int(tokens.sum()),
        "vision_tokens": int(vision.sum()),
        "fill": float(tokens.sum() / max(1, packs.sum() * pack_tokens)),
        "vision_share": float(vision.sum() / max(1, tokens.sum())),
        "vision_share_std": float((vision / np.maximum(1, tokens)).std()),
        "worst_debt_tokens": worst,
        "refused": refused.total(),
        "refused_samples": dict(sorted(refused.items())),
        "samples_of_source": {name: samples[name] for name in lines},
        "epochs": {name: samples[name] / max(1, count) for name, count in lines.items()},
    }
