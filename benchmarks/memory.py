"""What recomputation and offloading save, and what they cost: bytes that wait for the backward pass, and CPU time.

Run: python -m benchmarks.memory      (no lake needed; writes benchmarks/results/memory.json)

The decoder's layers at `small` and at a slice of `base`, packs of words. `kept_bytes` counts what the forward pass made
and the backward pass still needs; the weights are not in it. Time is forward and backward together, CPU seconds of one
thread, as the median over rounds of the ratio to keeping all. Offloading copies to the CPU's memory, which is where
everything lies here: on this hardware it shows its cost and saves nothing, so only its bytes under way are told.
"""

import argparse
import json
from dataclasses import replace

import torch

from benchmarks.pipeline import inputs_for
from benchmarks.report import keep
from benchmarks.training import SLICE, in_turns, ratio
from trainers.config import ModelConfig
from trainers.model.kimi_k25 import KimiK25
from trainers.model.recompute import PARTS, kept_bytes, set_recompute
from trainers.models import SMALL

CHOICES: dict[str, tuple[tuple[str, ...], bool]] = {
    "nothing": ((), False),
    **{part: ((part,), False) for part in PARTS},
    "all three": (PARTS, False),
    "offload": ((), True),
    "all three and offload": (PARTS, True),
}
"""Name -> parts made again, and whether the rest is offloaded."""


def main() -> None:
    """Measure, print and keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    told = {}
    for config, packs, rounds in ((SMALL, 4, options.rounds), (SLICE, 1, min(options.rounds, 2))):
        told[config.name] = measured(config, packs=packs, rounds=rounds)
        print(config.name, json.dumps(told[config.name], indent=1), flush=True)
    hardware = "CPU, one thread; no GPU took part. Activations are not stored in FP8."
    print(keep("memory", {"hardware": hardware, **told}, command="python -m benchmarks.memory"))


def measured(config: ModelConfig, *, packs: int, rounds: int) -> dict:
    """Return bytes kept and time of each choice, beside those of keeping all."""
    model = KimiK25(replace(config, vision=None, contrastive=None), seed=3).train()
    inputs = inputs_for(packs, 512)
    x = torch.randn(packs * 512, config.language.width, requires_grad=True)

    def forward(name: str) -> torch.Tensor:
        parts, model.language.offload = CHOICES[name]
        set_recompute(model, parts)
        return model.language(x, inputs.position, inputs.groups)

    def step(name: str) -> None:
        forward(name).sum().backward()
        model.zero_grad()

    kept = {name: kept_bytes(lambda each=name: forward(each)) for name in CHOICES}
    spent = in_turns({name: lambda each=name: step(each) for name in CHOICES}, rounds)
    return {
        name: {
            "kept_bytes_per_place": round(kept[name] / len(x)),
            "of_all": kept[name] / kept["nothing"],
            "time_of_all": ratio(spent[name], spent["nothing"]),
        }
        for name in CHOICES
    }


if __name__ == "__main__":
    main()
