"""`k25 replay`, `k25 trace`: what a run was fed, and what was made of a sample."""

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from tqdm import tqdm

from k25_pipelines.commands.parts import command, count, step_range
from k25_pipelines.environment import STATE, open_lake
from k25_pipelines.errors import LineageError

SHOWN = 8
"""Differing samples of a step that its line names."""


def add_commands(commands) -> None:
    """Add them to the parser."""
    replay = command(
        commands,
        "replay",
        _replay,
        purpose="rebuild what a run was fed and compare it with the digests it logged; a line a step",
        example="k25 replay joint-5f2a --steps 120:121   or   k25 replay joint-5f2a --steps 0:200 --verify",
    )
    replay.add_argument("name", metavar="RUN")
    replay.add_argument("--steps", required=True, type=step_range, metavar="A:B", help="from A up to but not B")
    replay.add_argument("--verify", action="store_true", help="trust no cache: read every byte from the store again")
    replay.add_argument("--threads", type=count, default=os.cpu_count() or 1)
    replay.add_argument("--json", action="store_true", help="a JSON object a step")

    trace = command(
        commands,
        "trace",
        _trace,
        purpose="which runs, steps and checkpoints consumed a sample; or what a checkpoint was trained on",
        example="k25 trace captions:17   or   k25 trace --key captions/000017   or   "
        "k25 trace --checkpoint joint-5f2a/00000200 --step 120",
    )
    what = trace.add_mutually_exclusive_group(required=True)
    what.add_argument("id", nargs="?", metavar="ID", help="dataset:line, or a content id (SHA-256 of a medium)")
    what.add_argument("--key", metavar="NAME/KEY", help="a dataset's name and what it calls the sample")
    what.add_argument("--checkpoint", metavar="C", help="what it was trained on, itself and through its parents")
    what.add_argument("--ask", metavar="SQL", help="a question of your own over the tables that --sql shows in use")
    trace.add_argument("--step", type=int, help="with --checkpoint: the samples of one of its steps")
    trace.add_argument("--sql", action="store_true", help="print the questions that were asked of the tables, too")
    trace.add_argument("--json", action="store_true")


def _replay(options: argparse.Namespace) -> int:
    from k25_pipelines.replay import as_plain, replay

    lake, steps = open_lake(), range(*options.steps)
    cache = None if options.verify else STATE / "cache"
    replayed = replay(lake, options.name, steps, threads=options.threads, cache=cache)
    num_differing = 0
    for step in tqdm(replayed, "replay", len(steps), unit="step", leave=False, disable=not sys.stderr.isatty()):
        num_differing += not step.agrees
        print(json.dumps(as_plain(step)) if options.json else _step_line(step))
    if not options.json:
        told = f"{num_differing} of {len(steps)} steps differ" if num_differing else f"{len(steps)} steps agree"
        print(f"{options.name}: {told} with what the run logged", file=sys.stderr)
    return 1 if num_differing else 0


def _step_line(step) -> str:
    masked = f", {step.num_masked} masked as before" if step.num_masked else ""
    withheld = f", withheld: {' '.join(step.withheld)}" if step.withheld else ""
    facts = f"{step.num_packs} packs, {step.num_samples} samples{masked}{withheld}"
    if step.agrees:
        return f"step {step.step}: ok ({facts})"
    told = [f"pack {each.pack} {each.sample or 'layout'} ({each.why})" for each in step.differences[:SHOWN]]
    more = f"; and {len(step.differences) - SHOWN} more" if len(step.differences) > SHOWN else ""
    return f"step {step.step}: differs: {'; '.join(told)}{more} ({facts})"


def _trace(options: argparse.Namespace) -> None:
    from k25_pipelines import lineage, naming
    from k25_pipelines.governance.takedown import forgotten_by

    lake = open_lake()
    if options.step is not None and options.checkpoint is None:
        raise LineageError("--step is of a checkpoint; name it with --checkpoint C")
    if options.ask is not None:
        rows = lineage.ask(lake, options.ask)
        _say(options, [options.ask], rows, lambda: _table(rows))
        return
    if options.checkpoint is not None:
        question = lineage.DATASETS_OF_CHECKPOINT if options.step is None else lineage.SAMPLES_OF_STEP
        rows = lineage.trace_checkpoint(lake, options.checkpoint, step=options.step)
        _say(options, [question], rows, lambda: _table(rows))
        return
    named = naming.samples_of_key(lake, options.key) if options.key else naming.samples_called(lake, options.id)
    found = []
    for name, line in named:
        told = {"sample": f"{name}:{line}", "key": naming.key_of(lake, name, line)}
        if gone := forgotten_by(lake, name, line):
            told["forgotten"] = f"{gone.at}, {gone.author}: {gone.reason} (takedown {gone.id[:12]})"
        found.append({**told, **lineage.trace_sample(lake, dataset=name, line=line)})
    _say(
        options,
        [lineage.RUNS_OF_SAMPLE, lineage.CHECKPOINTS_OF_SAMPLE],
        found,
        lambda: "\n\n".join(_sample_page(sample) for sample in found),
    )


def _say(options: argparse.Namespace, questions: Sequence[str], facts: Any, page) -> None:
    """Print facts as JSON or as a page, the questions before it if they are wanted."""
    if options.json:
        told = {"sql": [each.strip() for each in questions], "found": facts} if options.sql else facts
        print(json.dumps(told, default=str))  # a question of one's own may have dates and decimals for an answer
        return
    if options.sql:
        print("\n\n".join(each.strip() for each in questions), end="\n\n")
    print(page())


def _sample_page(sample: Mapping[str, Any]) -> str:
    head = f"{sample['sample']} (key {sample['key']})"
    if sample.get("forgotten"):
        head = f"forgotten {sample['forgotten']}\n{head}"
    if not sample["runs"]:
        return f"{head}: no run has consumed it"
    runs = [
        {
            "run": row["run"],
            "stage": row["stage"] or "-",
            "step": row["step"],
            "pack": row["pack"],
            "slot": row["slot"],
            "epoch": row["epoch"],
            "tokens": f"{row['token_start']}+{row['num_tokens']}",
            "plan": row["plan"][:12],
            "outcome": f"masked: {row['masked']}" if row["masked"] else "trained",
        }
        for row in sample["runs"]
    ]
    holding = [
        {
            "checkpoint": row["checkpoint"],
            "through": "itself" if row["through"] == row["checkpoint"] else row["through"],
            "steps": " ".join(map(str, row["steps"])),
        }
        for row in sample["checkpoints"]
    ]
    told = _table(holding) if holding else "no checkpoint holds it"
    return f"{head}\n\nconsumed by\n{_table(runs)}\n\ncheckpoints trained on it\n{told}"


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return rows under their names, in columns."""
    if not rows:
        return "nothing"
    lines = [list(rows[0]), *([_cell(value) for value in row.values()] for row in rows)]
    widths = [max(len(line[place]) for line in lines) for place in range(len(lines[0]))]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)


def _cell(value: Any) -> str:
    return "-" if value is None else str(value)
