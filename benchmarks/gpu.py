"""What `base` reaches on a GPU in bfloat16: its share of the peak, text beside text with pictures, the largest kernels.

Called by `benchmarks.training` where a GPU is at hand; elsewhere nothing of it runs. Work is counted as model FLOPs:
6 for each active weight and place, 6 for each channel of queries and of values and pair of places that really see each
other, and the same for the tower; what is made twice counts once.
"""

# Shapes: N places, P patches, L places of a document.

import statistics
import time
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from benchmarks.dep import batch_of
from k25_pipelines.loader import Batch
from trainers.inputs import Inputs, Pairs, inputs_of
from trainers.model.attention import Groups, groups_on
from trainers.model.kimi_k25 import KimiK25
from trainers.model.sizes import count_parameters
from trainers.models import BASE
from trainers.parallel.layout import volume_work

PACK_TOKENS, PACKS, DOCUMENTS = 4096, 4, 8
VISION_SHARE = 0.1
LARGEST_KERNELS = 5


def measured(rounds: int, peaks: Mapping[str, float]) -> dict:
    """Return the figures of this machine's first GPU.

    Args:
        rounds: steps of each kind.
        peaks: dense bfloat16 FLOP/s, by a part of the device's name.
    """
    device = torch.cuda.get_device_name()
    peak = next((each for part, each in peaks.items() if part in device), None)
    model = KimiK25(replace(BASE, contrastive=None), seed=3).cuda().train()
    told: dict[str, Any] = {"device": device, "peak_flops": peak, "model": BASE.name}
    for name, share in (("text", 0.0), ("text and pictures", VISION_SHARE)):
        batch = drawn(share)
        inputs = on_device(inputs_of(batch))
        seconds = statistics.median(step_seconds(model, inputs) for _ in range(rounds + 2))
        flops = work(batch)
        told[name] = {
            "step_seconds": seconds,
            "vision_share": float(batch.media_slots[:, 2].sum() / batch.input_ids.size),
            "places_per_second": batch.input_ids.size / seconds,
            "flops": flops,
            "of_peak": flops / seconds / peak if peak else None,
        }
    words, both = told["text"], told["text and pictures"]
    told["efficiency_beside_text_only"] = (both["flops"] / both["step_seconds"]) / (
        words["flops"] / words["step_seconds"]
    )
    told["largest_kernels"] = kernels(model, inputs)
    return told


def drawn(share: float) -> Batch:
    """Return packs of equal documents, the first ones with a picture each until `share` of the places is vision's."""
    tokens = PACK_TOKENS // DOCUMENTS
    pictures = round(share * PACK_TOKENS / (tokens // 2))
    rows = [
        {"num_tokens": tokens, "media": 1, "patches": 2 * tokens} if number < pictures else {"num_tokens": tokens}
        for number in range(DOCUMENTS)
    ]
    return batch_of([[{"media": 0, "patches": 0, **row} for row in rows]] * PACKS, PACK_TOKENS)


def work(batch: Batch) -> float:
    """Return the FLOPs of forward and backward."""
    counts, language = count_parameters(BASE), BASE.language
    lengths = np.diff(batch.cu_seqlens).astype(np.float64)
    channels = language.heads * (language.head_nope + language.head_rope + language.head_value) * language.layers
    pairs = float((lengths * (lengths + 1) / 2).sum())
    assert BASE.vision is not None
    vision = float(volume_work(batch.grid_thw.prod(axis=1), BASE.vision).sum()) if len(batch.grid_thw) else 0.0
    projected = int(batch.media_slots[:, 2].sum()) * counts.projector
    return 6 * (batch.input_ids.size * counts.active + pairs * channels + vision + projected)


def step_seconds(model: KimiK25, inputs: Inputs) -> float:
    """Return the wall seconds of forward and backward."""
    torch.cuda.synchronize()
    started = time.perf_counter()
    forward_backward(model, inputs)
    torch.cuda.synchronize()
    return time.perf_counter() - started


def forward_backward(model: KimiK25, inputs: Inputs) -> None:
    """Do what a step does before its optimizer, in bfloat16 where autocast says so."""
    with torch.autocast("cuda", torch.bfloat16):
        loss = model(inputs).target_losses.mean()
    loss.backward()
    model.zero_grad()


def kernels(model: KimiK25, inputs: Inputs) -> list[dict]:
    """Return the kernels with the most time on the device, with their shares of it."""
    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        forward_backward(model, inputs)
        torch.cuda.synchronize()
    rows = [(each.self_device_time_total, each.key, each.count) for each in seen.key_averages()]
    whole = sum(seconds for seconds, _, _ in rows)
    largest = sorted(rows, reverse=True)[:LARGEST_KERNELS]
    return [{"kernel": key, "share": spent / whole, "calls": count} for spent, key, count in largest]


def on_device(inputs: Any) -> Any:
    """Return inputs, or their pairs, with all tensors on the GPU."""
    moved = {}
    for each in fields(inputs):
        value = getattr(inputs, each.name)
        if isinstance(value, Tensor):
            moved[each.name] = value.cuda()
        elif isinstance(value, Groups):
            moved[each.name] = groups_on(value, torch.device("cuda"))
        elif isinstance(value, Pairs):
            moved[each.name] = on_device(value)
    return replace(inputs, **moved)
