"""Early, mid and late fusion: the same tokens of text and of vision, vision from the first step, the half or the end.

Needs the lake of `make demo`, whose vision tower of stage 1a each arm starts from; the language model starts from
nothing. An arm reads only text until its vision enters, and then so large a share of vision that all arms have read as
much of both in the end (Kimi K2.5 report, table 1). Measured on documents that no arm reads: what text costs at each
moment, above all around the step at which vision enters, and what captions cost with their own and another's picture.

Run: python -m benchmarks.fusion [--seeds 2] [--steps 300]
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from benchmarks.report import RESULTS, keep
from k25_pipelines.errors import ObjectNotFoundError
from k25_pipelines.keys import random_key
from k25_pipelines.loader import Batch, PlanLoader
from k25_pipelines.plan.recipe import parse_recipe
from k25_pipelines.planning import make_plan, open_plan
from k25_pipelines.sample.tokens import load_tokenizer
from k25_pipelines.storage.store import Store, open_store
from trainers.checkpoint import load_modules
from trainers.config import Run, TrainConfig
from trainers.engine import Engine, join_ranks, leave_ranks
from trainers.evaluations.captions import evaluate_captions
from trainers.inputs import inputs_of
from trainers.model.kimi_k25 import KimiK25
from trainers.recipes import FUSED_TEXT, FUSIONS, evaluation_recipe, fusion_recipe, model_config
from trainers.step import train_step

WORK = Path(__file__).resolve().parent.parent / ".k25" / "fusion"
COMMAND = "python -m benchmarks.fusion"
MODEL = "small"
PACKS_PER_STEP = 4
TEXT_PACKS = 8
"""Packs of held-out text."""
LEARNING_RATE = 8e-3
WARMUP_STEPS = 10
WINDOW = 10
"""How long after an entry the dip is looked for, and text measured more often [percent of the steps]."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Arm:
    """One training of the ablation."""

    fusion: str
    seed: int
    steps: int

    @property
    def path(self) -> Path:
        """Where its figures are written."""
        return WORK / f"{self.fusion}-{self.seed}-{self.steps}.json"

    def recipe(self) -> dict[str, Any]:
        """Return its data recipe; arms of one seed share the order of their text."""
        tokens, seed = model_config(MODEL).language.context, random_key("fusion", self.seed) >> 33
        return fusion_recipe(
            self.fusion, steps=self.steps, packs_per_step=PACKS_PER_STEP, pack_tokens=tokens, seed=seed
        )


def main() -> None:
    """Train the arms, as many at a time as there are cores, and keep what was measured."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=2, help="trainings of each arm")
    parser.add_argument("--steps", type=int, default=300, help="a multiple of 10")
    parser.add_argument("--as-arm", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    lake = open_lake()
    if options.as_arm:
        arm = Arm(fusion=options.as_arm[0], seed=int(options.as_arm[1]), steps=options.steps)
        arm.path.write_text(json.dumps(train_arm(arm, lake)))
        return
    WORK.mkdir(parents=True, exist_ok=True)
    arms = [Arm(fusion=name, seed=seed, steps=options.steps) for seed in range(options.seeds) for name in FUSIONS]
    for arm in arms:
        make_plan(lake, parse_recipe(arm.recipe()))
    run_all(arms)
    found = {arm: json.loads(arm.path.read_text()) for arm in arms}
    told = figures(found)
    print(json.dumps({name: told[name] for name in ("arms", "against_early")}, indent=1))
    draw(found, RESULTS / "fusion.png")
    print(keep("fusion", told, command=f"{COMMAND} --seeds {options.seeds} --steps {options.steps}"))


def open_lake() -> Store:
    """Return the lake of the environment. Raises SystemExit where there is none."""
    if not os.environ.get("K25_LAKE"):
        raise SystemExit("K25_LAKE is not set; make the lake with `make demo`, then `k25 up` and `. .k25/env`")
    return open_store(os.environ["K25_LAKE"])


def run_all(arms: Sequence[Arm]) -> None:
    """Train each arm in a process of one thread; one whose figures are there is not trained again."""
    waiting = [arm for arm in arms if not arm.path.exists()]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    running: dict[Arm, subprocess.Popen] = {}
    with tqdm(total=len(arms), initial=len(arms) - len(waiting), unit="arm") as bar:
        while waiting or running:
            while waiting and len(running) < (os.cpu_count() or 1):
                arm = waiting.pop(0)
                words = ["--as-arm", arm.fusion, str(arm.seed), "--steps", str(arm.steps)]
                running[arm] = subprocess.Popen([sys.executable, "-m", "benchmarks.fusion", *words], env=environment)
            arm, process = next(iter(running.items()))
            if process.wait():
                raise SystemExit(f"the arm {arm.fusion} of seed {arm.seed} ended with code {process.returncode}")
            del running[arm]
            bar.update()


def train_arm(arm: Arm, lake: Store) -> dict[str, Any]:
    """Train one arm and return its curves."""
    plan = make_plan(lake, parse_recipe(arm.recipe()))
    config = arm_config(arm, plan)
    run = Run(config=config, store=lake.url, run=f"fusion-{arm.fusion}-{arm.seed}", work=str(arm.path.with_suffix("")))
    Path(run.work).mkdir(parents=True, exist_ok=True)
    join_ranks(Path(run.work), threads=1)
    model = KimiK25(config.model, seed=config.seed)
    load_modules(model, lake, {"vision": tower(lake)})
    engine, pad = Engine(model, config), load_tokenizer("default").special["pad"]
    batch, kept = held_out_text(arm, lake)
    captions, all_kept = held_out_captions(lake)
    names = ("steps", "text", "vision_steps", "vision", "tokens", "vision_tokens")
    found: dict[str, Any] = {name: [] for name in names}
    with PlanLoader(plan, lake, threads=1) as loader:
        for step in range(arm.steps + 1):
            if is_measured(step, arm.steps):
                found["steps"].append(step)
                found["text"].append(mean_loss(model, batch, kept))
            if step % max(1, arm.steps // 10) == 0:
                found["vision_steps"].append(step)
                found["vision"].append(mean_loss(model, captions, all_kept))
            if step < arm.steps:
                metrics = train_step(engine, loader.batch(step), run, step=step, pad=pad).metrics
                for name in ("tokens", "vision_tokens"):
                    found[name].append(metrics[name])
    found["captions"] = evaluate_captions(model, lake, threads=1)
    leave_ranks()
    return {**found, "plan": plan, "text_targets": int(kept.sum())}


def arm_config(arm: Arm, plan: str) -> TrainConfig:
    """Return the config of an arm; the rate stays, so that what comes late is not learnt at a lower one."""
    return TrainConfig(
        stage="joint",
        model=replace(model_config(MODEL), contrastive=None),
        plan=plan,
        steps=arm.steps,
        learning_rate=LEARNING_RATE,
        warmup_steps=WARMUP_STEPS,
        final_learning_rate=1.0,
        optimizer="muonclip",
        trainable=("vision", "projector", "language"),
        seed=arm.seed,
    )


def tower(lake: Store) -> str:
    """Return the checkpoint of the demo's stage 1a. Raises SystemExit where the lake has none."""
    try:
        return json.loads(lake.get("k25/outputs/demo/main/vit_checkpoint.json"))["checkpoint"]
    except ObjectNotFoundError:
        raise SystemExit(f"{lake.url} holds no vision tower of stage 1a; run `make demo` first") from None


def held_out_text(arm: Arm, lake: Store) -> tuple[Batch, np.ndarray]:
    """Return some packs of text, and bool [targets]: those of documents that no arm of the seed reads."""
    recipe = Arm(fusion="early", seed=arm.seed, steps=arm.steps).recipe()
    plain = {name: recipe[name] for name in ("pack_tokens", "pack_window", "max_image_tokens")}
    told = {"name": "fusion-text", "seed": 11, "steps": 1, "packs_per_step": TEXT_PACKS, "sources": FUSED_TEXT}
    with PlanLoader(make_plan(lake, parse_recipe({**plain, **told})), lake, threads=1) as loader:
        batch = loader.batch(0)
    read = set()
    for fusion in FUSIONS:
        each = Arm(fusion=fusion, seed=arm.seed, steps=arm.steps)
        plan = open_plan(lake, make_plan(lake, parse_recipe(each.recipe())))
        for step in range(plan.num_steps):
            rows = plan.rows(step)
            read |= set(zip(rows["dataset"].to_pylist(), rows["line"].to_pylist(), strict=True))
    first, width = batch.provenance[0].pack, batch.input_ids.shape[1]
    starts = [(sample.pack - first) * width + sample.start for sample in batch.provenance]
    documents = np.searchsorted(batch.cu_seqlens, starts, side="right") - 1
    fresh = [
        document
        for document, sample in zip(documents, batch.provenance, strict=True)
        if (sample.dataset, sample.line) not in read
    ]
    return batch, np.isin(inputs_of(batch).target_document, fresh)


def is_measured(step: int, steps: int) -> bool:
    """Return whether text is measured before a step: fifty times, and three times as often where vision enters."""
    entries = [steps * percent // 100 for percent, _ in FUSIONS.values()]
    near = any(0 <= step - entry <= steps * WINDOW // 100 for entry in entries)
    every = max(1, steps // 50)
    return step % (max(1, every // 3) if near else every) == 0


def held_out_captions(lake: Store) -> tuple[Batch, np.ndarray]:
    """Return some packs of captions that nothing is trained on, and bool [targets]: all of them."""
    recipe = evaluation_recipe("captions_heldout", pack_tokens=model_config(MODEL).language.context)
    with PlanLoader(make_plan(lake, parse_recipe(recipe)), lake, threads=1) as loader:
        batch = loader.batch(0)
    return batch, np.ones(len(inputs_of(batch).target), dtype=bool)


@torch.no_grad()
def mean_loss(model: KimiK25, batch: Batch, kept: np.ndarray) -> float:
    """Return the mean loss of the kept targets [nats]."""
    return float(model(inputs_of(batch)).target_losses[torch.from_numpy(kept)].mean())


def figures(found: Mapping[Arm, Mapping[str, Any]]) -> dict[str, Any]:
    """Return final losses and dips of each arm, every seed's and the mean, and what each arm costs against early."""
    arms: dict[str, Any] = {name: {"seeds": []} for name in FUSIONS}
    for arm, told in found.items():
        own = {
            "tokens": sum(told["tokens"]),
            "vision_tokens": sum(told["vision_tokens"]),
            "text_loss": told["text"][-1],
            "vision_loss": told["captions"]["true_loss"],
            "vision_gap": told["captions"]["gap"],
            **dip(arm, told),
        }
        arms[arm.fusion]["seeds"].append(own)
    for told in arms.values():
        told["mean"] = {
            name: float(np.mean([own[name] for own in told["seeds"]]))
            for name in ("tokens", "vision_tokens", "text_loss", "vision_loss", "vision_gap", "dip")
        }
    against = {
        name: {
            loss: [own[loss] - early[loss] for own, early in zip(told["seeds"], arms["early"]["seeds"], strict=True)]
            for loss in ("text_loss", "vision_loss", "vision_gap")
        }
        for name, told in arms.items()
        if name != "early"
    }
    curves = {
        f"{arm.fusion}-{arm.seed}": {name: told[name] for name in ("steps", "text", "vision_steps", "vision")}
        for arm, told in found.items()
    }
    targets = {"text_targets": [told["text_targets"] for told in found.values()]}
    return {"model": MODEL, "arms": arms, "against_early": against, "curves": curves, **targets}


def dip(arm: Arm, told: Mapping[str, Any]) -> dict[str, Any]:
    """Return how far text rises above its loss at the entry of vision, and after how many steps it is back there.

    Beside it, how far it rises over as many steps where nothing enters: the loss of held-out text moves by itself, as
    what was read last resembles it more or less, and only a rise beyond that is vision's.
    """
    entry = arm.steps * FUSIONS[arm.fusion][0] // 100
    steps, text = np.array(told["steps"]), np.array(told["text"])
    before = float(text[steps == entry][0])
    reach = arm.steps * WINDOW // 100
    elsewhere = [
        float(text[(steps > step) & (steps <= step + reach)].max()) - float(text[steps == step][0])
        for step in steps[(steps >= reach) & (steps + reach <= arm.steps)].tolist()
        if not entry - reach < step < entry + reach
    ]
    window = (steps > entry) & (steps <= entry + reach)
    back = steps[(steps > entry) & (text <= before)]
    return {
        "entry_step": entry,
        "text_loss_at_entry": before,
        "dip": max(0.0, float(text[window].max()) - before) if entry else 0.0,
        "steps_to_recover": int(back[0]) - entry if len(back) else None,
        "rise_elsewhere_median": max(0.0, float(np.median(elsewhere))),
        "rise_elsewhere_largest": max(0.0, max(elsewhere)),
    }


def draw(found: Mapping[Arm, Mapping[str, Any]], path: Path) -> None:
    """Draw held-out losses over the steps, a line a training, vision's entries dotted."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.4), dpi=110, layout="constrained")
    panels = figure.subplots(1, 2)
    inks = dict(zip(FUSIONS, ("#2b5d8a", "#d1662f", "#4d8c57"), strict=True))
    for arm, told in found.items():
        label = arm.fusion if arm.seed == 0 else None
        panels[0].plot(told["steps"], told["text"], color=inks[arm.fusion], linewidth=1, label=label)
        panels[1].plot(told["vision_steps"], told["vision"], color=inks[arm.fusion], linewidth=1, label=label)
        for panel in panels:
            panel.axvline(
                arm.steps * FUSIONS[arm.fusion][0] / 100, color=inks[arm.fusion], linewidth=0.8, linestyle=":"
            )
    for panel, title in zip(panels, ("held-out text", "held-out captions, own picture"), strict=True):
        panel.set(xlabel="step", ylabel="nats a token", title=title)
        low = min(line.get_ydata()[-1] for line in panel.get_lines() if len(line.get_ydata()) > 2)
        panel.set_ylim(low - 0.2, low + 2.3)
    panels[0].legend(frameon=False)
    figure.savefig(path, metadata={"Software": None})


if __name__ == "__main__":
    main()
