"""What each rank of some tests runs: python -m tests.trainers.two_ranks PLAN.json under torchrun, or `as_rank`.

PLAN.json: {"runs": [run file, ...], "look": run file, "out": folder, "dies": {"rank", "writing"}}. The runs are trained
one after another; then, if it is told to, a few steps of another are looked at, and every rank writes what it saw of
them to <out>/<rank>.json. A rank that is to die is killed when it would write an object whose key holds some words.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

import deepspeed.ops  # noqa: F401  here, so that a server of forks has it

from k25_pipelines.loader import PlanLoader, step_digest
from k25_pipelines.sample.tokens import load_tokenizer
from k25_pipelines.storage.local import LocalStore
from k25_pipelines.storage.store import open_store
from trainers.checkpoint import checkpoint_digest
from trainers.config import Run, parse
from trainers.engine import Engine, join_ranks, leave_ranks
from trainers.pretrain import build_model, main
from trainers.step import train_step

LOOK_STEPS = 3


def look(run: Run) -> dict:
    """Return what this rank sees of the first steps: losses, digests, its packs, its part of the optimizer."""
    store = open_store(run.store)
    engine = Engine(build_model(run.config, store), run.config)
    ranks = {"rank": engine.rank, "num_ranks": engine.num_ranks}
    losses, digests, packs, media, places = [], [], [], [], 0
    pad = load_tokenizer("default").special["pad"]
    with PlanLoader(
        run.config.plan,
        store,
        threads=run.threads,
        rank=engine.rank,
        num_ranks=engine.num_ranks,
        ranks_per_node=engine.num_ranks,
    ) as loader:
        for step in range(LOOK_STEPS):
            batch = loader.batch(step)
            losses.append(train_step(engine, batch, run, step=step, pad=pad).metrics["loss"])
            own = engine.gather([(pack, name) for _, pack, name in loader.pack_digests(step)])
            digests.append(step_digest([name for _, name in sorted(pair for part in own for pair in part)]))
            packs.append(len(batch.input_ids))
            media.append(len(batch.grid_thw))
            places = int((batch.input_ids != pad).sum())
    return {
        **ranks,
        "losses": losses,
        "digests": digests,
        "packs": packs,
        "media": media,
        "max_logit": engine.seen.max_logit,
        "expert_loads": engine.seen.expert_loads,
        "places": places,
        "weights": checkpoint_digest(engine.weights(), {"config": {}, "plan": "", "segments": [], "step": LOOK_STEPS}),
        "optimizer_elements": engine.partition_elements(),
        "trained_elements": sum(weight.numel() for weight in engine.model.parameters() if weight.requires_grad),
    }


def train_all(path: str) -> None:
    """Do what a plan file says, as the rank that the environment names."""
    told = json.loads(Path(path).read_text())
    rank = join_ranks(Path(told["out"]), threads=1)
    if told.get("dies", {}).get("rank") == rank:
        die_writing(told["dies"]["writing"])
    for each in told["runs"]:
        main(parse(Run, each))
    if "look" in told:
        seen = look(parse(Run, told["look"]))
        (Path(told["out"]) / f"{rank}.json").write_text(json.dumps(seen))
    leave_ranks()


def die_writing(words: str) -> None:
    """Let this process be killed when it would write an object whose key holds `words`, and half of it is there."""
    for name in ("put", "put_new"):
        write = getattr(LocalStore, name)

        def dying(store: LocalStore, key: str, *given: object, write=write, **named: object) -> object:
            if words in key:
                while not list(store.list(f"{key.split('/engine/')[0].removesuffix('/record.json')}/")):
                    time.sleep(0.01)  # for the other rank's first object
                os.kill(os.getpid(), signal.SIGKILL)
            return write(store, key, *given, **named)

        setattr(LocalStore, name, dying)


def as_rank(environment: dict[str, str], path: str) -> None:
    """Be a rank in a process that was forked for it; what it says goes to `log` beside the plan file."""
    with (Path(path).parent / "log").open("ab") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    os.environ.update(environment)
    train_all(path)


if __name__ == "__main__":
    train_all(sys.argv[1])
