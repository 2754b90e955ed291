"""`k25`: the data layer at the command line. Words in; facts, progress and an exit code out.

Exit codes: 0 done, 1 ran and found something wrong, 2 bad input (one line: what, where, the way out).
Trainers, Dagster and the embedded server are child processes, started in the repository's root.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import TextIOWrapper
from pathlib import Path
from typing import NoReturn

from tqdm import tqdm

from k25_pipelines.environment import STATE, keep_server, open_lake, run_child, served_lake
from k25_pipelines.errors import K25Error

STAGES = ("warmup", "vit", "projector", "joint", "long_context")


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit code."""
    name = "k25"
    if isinstance(sys.stdout, TextIOWrapper):  # a terminal that cannot show a sign is no reason to stop
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        try:
            options = build_parser().parse_args(arguments)
            name = f"k25 {options.command}"
            return options.run(options) or 0
        finally:
            sys.stdout.flush()  # here, where what goes wrong can still be told
    except K25Error as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the same command goes on where this one stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output has gone, as `head` does
        _drop_output()
        return 0
    except OSError as error:
        print(f"{name}: {error.filename or 'output'}: {error.strerror or error}; check path and space", file=sys.stderr)
        _drop_output()
        return 2


def _drop_output() -> None:
    """Let Python's last flush of what could not be written go nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, as all of ours are."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {' '.join(message.split())}; see: {self.prog} --help\n")


def _count(words: str) -> int:
    """Return a number of things, of which there must be one."""
    if not (words.isdecimal() and int(words) > 0):
        raise argparse.ArgumentTypeError(f"{words!r} is not a whole number above 0")
    return int(words)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of every command, each with a line of purpose and an example."""
    parser = _Parser(
        prog="k25",
        description="A deterministic S3 data layer for vision-language training.",
        epilog="examples:\n"
        "  k25 demo                                    everything, end to end, on real data\n"
        "  k25 register captions s3://lake/raw/captions --kind webdataset --licence CC-BY-SA-4.0 --source OpenMoji\n"
        "  k25 index captions\n"
        "  k25 plan recipe.yaml --steps 200            the last line printed is the plan id\n"
        "  k25 batch PLAN --steps 0:4 --digest         what every rank of a run is fed\n\n"
        "The lake is K25_LAKE (s3://bucket/prefix or a folder); S3 is configured by the standard AWS_* variables.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _server_commands(commands)
    _dataset_commands(commands)
    _plan_commands(commands)
    _training_commands(commands)
    return parser


def _command(commands, name: str, run: Callable, *, purpose: str, example: str) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        name,
        help=purpose,
        description=purpose[0].upper() + purpose[1:] + ".",
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    return parser


# The embedded server, the demo, the web page: child processes


def _server_commands(commands) -> None:
    up = _command(
        commands, "up", _up, purpose="start the embedded S3 server", example="k25 up --background && . .k25/env"
    )
    up.add_argument("--port", type=int, help="a free one if not given")
    up.add_argument("--background", action="store_true", help="return when it answers; `k25 down` stops it")
    _command(commands, "down", _down, purpose="stop the embedded S3 server", example="k25 down")
    demo = _command(
        commands, "demo", _demo, purpose="build the demo lake and run the main job on it", example="k25 demo"
    )
    demo.add_argument("--scale", choices=["demo", "toy"], default="demo", help="toy: seconds a stage, for a look")
    ui = _command(commands, "ui", _ui, purpose="open the Dagster web page over the lake", example="k25 ui --port 3000")
    ui.add_argument("--port", type=int, default=3000)


def _up(options: argparse.Namespace) -> int:
    keep_server()
    words = ["up", *(["--port", str(options.port)] if options.port else [])]
    return run_child("infra.s3_server", *words, *(["--background"] if options.background else []))


def _down(options: argparse.Namespace) -> int:
    return run_child("infra.s3_server", "down")


def _demo(options: argparse.Namespace) -> int:
    """Run the demo on the lake of the environment, or on the embedded server, which is stopped again."""
    with served_lake():
        return run_child("infra.demo_corpus") or run_child("assets.demo", "--scale", options.scale)


def _ui(options: argparse.Namespace) -> int:
    with served_lake():
        return run_child("assets.web", "--port", str(options.port))


# Datasets


def _dataset_commands(commands) -> None:
    register = _command(
        commands,
        "register",
        _register,
        purpose="name a dataset that lies in a bucket; nothing is copied",
        example="k25 register web s3://lake/raw/web --kind parquet --licence CC-BY-4.0 --source 'Our crawl'",
    )
    register.add_argument("name")
    register.add_argument("uri", help="s3://bucket/prefix or a folder, where the objects lie")
    register.add_argument("--kind", required=True, help="webdataset, images, parquet, jsonl, text or video")
    register.add_argument("--annotations", help="COCO JSON (images) or JSONL (video)")
    register.add_argument("--licence", required=True, help="SPDX id, for samples that name none")
    register.add_argument("--source", required=True, help="where it comes from, for samples that name none")

    index = _command(
        commands,
        "index",
        _index,
        purpose="scan a dataset in place into a manifest; prints the version's digest",
        example="k25 index web",
    )
    index.add_argument("name")
    index.add_argument("--threads", type=_count, default=8)

    datasets = _command(
        commands, "datasets", _datasets, purpose="list the datasets of the lake", example="k25 datasets"
    )
    datasets.add_argument("--json", action="store_true")
    stats = _command(commands, "stats", _stats, purpose="what a dataset looks like", example="k25 stats web --json")
    stats.add_argument("name")
    stats.add_argument("--json", action="store_true")

    browse = _command(
        commands,
        "browse",
        _browse,
        purpose="write a page of samples, as stored and as the model sees them",
        example="k25 browse grounding   or   k25 browse --plan PLAN --step 0",
    )
    browse.add_argument("name", nargs="?")
    browse.add_argument("--plan")
    browse.add_argument("--step", type=int, default=0)
    browse.add_argument("--samples", type=_count, default=24)
    browse.add_argument("--output", type=Path, help="the page; below .k25/gallery if not given")


def _register(options: argparse.Namespace) -> None:
    from k25_pipelines.catalog import registry

    chosen = registry.Registration(
        name=options.name,
        uri=options.uri.rstrip("/"),
        kind=options.kind,
        annotations=options.annotations,
        licence=options.licence,
        source=options.source,
    )
    registry.register(open_lake(), chosen)
    print(f"{options.name}: registered; next: k25 index {options.name}")


def _index(options: argparse.Namespace) -> None:
    from k25_pipelines.catalog import registry

    with progress_bar(f"index {options.name}") as progress:
        manifest = registry.index_dataset(open_lake(), options.name, threads=options.threads, progress=progress)
    num_quarantined = int(manifest.media_table()["quarantined"].sum())
    if num_quarantined:
        told = f"{num_quarantined} of {manifest.num_lines} samples quarantined; k25 stats {options.name} says why"
        print(f"{options.name}: {told}", file=sys.stderr)
    print(manifest.digest)


def _datasets(options: argparse.Namespace) -> None:
    from k25_pipelines.catalog import registry

    lake = open_lake()
    rows = []
    for name in registry.dataset_names(lake):
        versions = registry.dataset_versions(lake, name)
        rows.append({"name": name, "versions": len(versions), **(versions[-1] if versions else {})})
    if options.json:
        print(json.dumps(rows, indent=1))
        return
    if not rows:
        print("no datasets yet; k25 register NAME URI --kind KIND --licence SPDX --source TEXT", file=sys.stderr)
    for row in rows:
        told = f"{row['num_lines']:>8,} samples  {row['num_quarantined']:>4} quarantined  {row['digest'][:12]}"
        print(f"{row['name']:<20} {told if row['versions'] else 'registered, not indexed: k25 index ' + row['name']}")


def _stats(options: argparse.Namespace) -> None:
    from k25_pipelines.catalog import registry
    from k25_pipelines.catalog.statistics import statistics

    facts = statistics(registry.load_manifest(open_lake(), options.name))
    if options.json:
        print(json.dumps(facts, indent=1))
        return
    for name, value in facts.items():
        if isinstance(value, dict):
            print(f"{name}")
            for inner, count in value.items():
                print(f"    {inner:<44} {count:>12,}" if isinstance(count, int) else f"    {inner:<44} {count}")
        else:
            print(f"{name:<24} {value:,}" if isinstance(value, int) else f"{name:<24} {value}")


def _browse(options: argparse.Namespace) -> None:
    from k25_pipelines import gallery

    lake = open_lake()
    if bool(options.name) == bool(options.plan):
        raise K25Error("browse takes a dataset's NAME or --plan PLAN --step N; give one of the two")
    with progress_bar("gallery") as progress:
        if options.plan:
            page = gallery.step_page(lake, options.plan, step=options.step, progress=progress)
            name = f"{options.plan[:12]}-step-{options.step}"
        else:
            page = gallery.dataset_page(lake, options.name, num_samples=options.samples, progress=progress)
            name = options.name
    output = options.output or STATE / "gallery" / f"{name}.html"
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(page, encoding="utf-8")
    print(output)


# Plans and batches


def _plan_commands(commands) -> None:
    plan = _command(
        commands,
        "plan",
        _plan,
        purpose="write which samples fill which pack of which step; the last line printed is the plan id",
        example="k25 plan recipe.yaml --steps 200   or   k25 plan show PLAN",
    )
    plan.add_argument("words", nargs="+", metavar="RECIPE.yaml | show PLAN")
    plan.add_argument("--steps", type=_count, help="the recipe's, if not given; more steps extend the same plan")
    plan.add_argument("--json", action="store_true")

    batch = _command(
        commands,
        "batch",
        _batch,
        purpose="build batches of a plan, and say what is in them",
        example="k25 batch PLAN --steps 0:4 --rank 1 --num-ranks 4 --digest",
    )
    batch.add_argument("plan")
    batch.add_argument("--steps", required=True, type=_step_range, metavar="A:B", help="from A up to but not B")
    batch.add_argument("--rank", type=int, default=0)
    batch.add_argument("--num-ranks", type=_count, default=1)
    batch.add_argument("--threads", type=_count, default=os.cpu_count() or 1)
    batch.add_argument("--digest", action="store_true", help="one line a pack: step=<n> pack=<i> sha256=<hex>")
    batch.add_argument("--show", action="store_true", help="one line a sample")


def _step_range(words: str) -> tuple[int, int]:
    first, _, end = words.partition(":")
    if not (first.isdecimal() and end.isdecimal() and int(first) < int(end)):
        raise argparse.ArgumentTypeError(f"{words!r} is no range of steps; write A:B, such as 0:4")
    return int(first), int(end)


def _plan(options: argparse.Namespace) -> None:
    from k25_pipelines import planning

    lake = open_lake()
    match options.words:
        case ["show", plan_id]:
            plan = planning.open_plan(lake, plan_id)
        case [recipe]:
            with progress_bar("plan") as progress:
                chosen = planning.read_recipe(Path(recipe))
                plan = planning.open_plan(
                    lake, planning.make_plan(lake, chosen, steps=options.steps, progress=progress)
                )
        case _:
            raise K25Error(f"plan takes RECIPE.yaml or `show PLAN`, not {' '.join(options.words)!r}")
    facts = plan.summary()
    if options.json:
        print(json.dumps({"plan": plan.id, **facts}, indent=1))
        return
    for name, value in facts.items():
        print(f"{name:<20} {json.dumps(value)}")
    print(plan.id)


def _batch(options: argparse.Namespace) -> None:
    from k25_pipelines.loader import PlanLoader

    first, end = options.steps
    if not 0 <= options.rank < options.num_ranks:
        raise K25Error(f"--rank {options.rank} of --num-ranks {options.num_ranks}: ranks are counted from 0")
    cache = STATE / "cache"
    with PlanLoader(
        options.plan, open_lake(), rank=options.rank, num_ranks=options.num_ranks, threads=options.threads, cache=cache
    ) as loader:
        loader.plan.segment_of(end - 1)  # a range past the end is refused before anything of it is printed
        for step in tqdm(range(first, end), desc="batches", unit="step", disable=not sys.stderr.isatty()):
            batch = loader.batch(step)
            if options.digest:
                for _, pack, sha256 in loader.pack_digests(step):
                    print(f"step={step} pack={pack} sha256={sha256}")
            elif options.show:
                for sample in batch.provenance:
                    print(json.dumps({"step": step, **_plain(sample)}))
            else:
                print(_batch_line(step, batch))


def _batch_line(step: int, batch) -> str:
    num_real = sum(sample.num_tokens for sample in batch.provenance)
    num_vision = int(batch.media_slots[:, 2].sum()) if len(batch.media_slots) else 0
    fill = num_real / max(1, batch.input_ids.size)
    return (
        f"step {step}: {len(batch.input_ids)} packs, {len(batch.provenance)} samples, {num_real:,} tokens "
        f"(fill {fill:.4f}), {num_vision:,} vision tokens, {len(batch.patches):,} patches"
    )


def _plain(sample) -> dict:
    return {name: getattr(sample, name) for name in sample.__slots__}


# Training


def _training_commands(commands) -> None:
    train = _command(
        commands,
        "train",
        _train,
        purpose="train one stage by hand: what the Dagster asset launches",
        example="k25 train warmup --scale toy",
    )
    train.add_argument("stage", choices=STAGES)
    train.add_argument("--config", type=Path, help="a run file; made from the stage's recipe if not given")
    train.add_argument("--scale", choices=["demo", "toy"], default="demo")
    train.add_argument("--resume", action="store_true", help="go on from the newest checkpoint (also the default)")
    train.add_argument("--restart", action="store_true", help="a new run beside the older one, from step 0")


def _train(options: argparse.Namespace) -> int:
    lake = open_lake()  # so that a missing lake is said before a trainer starts
    words = [options.stage, "--scale", options.scale, "--store", lake.url]
    words += ["--config", str(options.config.resolve())] if options.config else []
    return run_child("trainers.launch", *words, *(["--restart"] if options.restart else []))


@contextmanager
def progress_bar(what: str) -> Iterator[Callable[[int, int, str], None]]:
    """Yield a callback (done, total, what is at hand) that draws a bar on standard error."""
    with tqdm(desc=what, unit="", dynamic_ncols=True, file=sys.stderr, leave=False, disable=None) as bar:

        def report(done: int, total: int, at_hand: str = "") -> None:
            bar.total = total
            bar.n = done
            bar.set_postfix_str(at_hand[-40:], refresh=False)
            bar.refresh()

        yield report


if __name__ == "__main__":
    sys.exit(main())
