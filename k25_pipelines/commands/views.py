"""`k25 gallery`, `k25 insight`, `k25 lineage`, `k25 pages`: pages to look at, and the numbers on them."""

import argparse
import json
import signal
import sys
from pathlib import Path

from k25_pipelines.commands.parts import command, count, progress_bar, step_range
from k25_pipelines.commands.tables import aligned
from k25_pipelines.environment import STATE, open_lake
from k25_pipelines.errors import K25Error

FOLDER = STATE / "gallery"
PAGES_PORT = 3080
"""Where materialisations expect pages unless K25_PAGES_URL says otherwise."""


def add_commands(commands) -> None:
    """Add them to the parser."""
    gallery = command(
        commands,
        "gallery",
        _gallery,
        purpose="write pages of samples as stored beside as the model saw them, with a map of the packs",
        example="k25 gallery grounding   or   k25 gallery --run joint-5f2a --steps 120:124",
    )
    what = gallery.add_mutually_exclusive_group(required=True)
    what.add_argument("name", nargs="?", help="a dataset")
    what.add_argument("--plan", help="its steps, as they are planned")
    what.add_argument("--run", dest="fed", metavar="RUN", help="its steps, as it was fed them")
    gallery.add_argument("--steps", type=step_range, default=(0, 1), metavar="A:B", help="from A up to but not B")
    gallery.add_argument("--rank", type=int, default=0, help="whose packs, of --ranks")
    gallery.add_argument("--ranks", type=count, default=1)
    gallery.add_argument("--packs", type=count, default=32, help="packs of a step shown whole")
    gallery.add_argument("--samples", type=count, default=24, help="of a dataset")
    gallery.add_argument("--output", type=Path, default=FOLDER, help="a folder")
    _add_insight(commands)
    lineage = command(
        commands,
        "lineage",
        _lineage,
        purpose="write the page of a sample (bytes, steps, checkpoints, evaluations) or of a checkpoint (the way back)",
        example="k25 lineage captions:17   or   k25 lineage --checkpoint joint-5f2a/00000200",
    )
    of = lineage.add_mutually_exclusive_group(required=True)
    of.add_argument("id", nargs="?", metavar="ID", help="dataset:line, or a content id (SHA-256 of a medium)")
    of.add_argument("--key", metavar="NAME/KEY", help="a dataset's name and what it calls the sample")
    of.add_argument("--checkpoint", metavar="C")
    lineage.add_argument("--output", type=Path, default=FOLDER, help="a folder")
    pages = command(
        commands,
        "pages",
        _pages,
        purpose="serve the lake's pages, read-only, until Ctrl-C: links in Dagster's web page lead here",
        example="k25 pages   or   k25 pages --host 0.0.0.0 --name k25.example.org     (k25 ui serves them, too)",
    )
    pages.add_argument("--port", type=count, default=PAGES_PORT)
    pages.add_argument("--host", default="127.0.0.1", help="on which address; pages show the data, and have no login")
    pages.add_argument("--name", action="append", default=[], help="by which browsers call this server; repeat it")


def _add_insight(commands) -> None:
    insight = command(
        commands,
        "insight",
        _insight,
        purpose="what a dataset is in tokens, patches, languages and duplicates; or how evenly a plan loads ranks",
        example="k25 insight captions --against captions_heldout   or   k25 insight --plan PLAN --ranks 64 --limit 40",
    )
    what = insight.add_mutually_exclusive_group(required=True)
    what.add_argument("name", nargs="?", help="a dataset")
    what.add_argument("--plan")
    insight.add_argument("--against", action="append", default=[], metavar="NAME", help="a dataset it may share with")
    insight.add_argument("--threads", type=count, default=2, help="that read")
    insight.add_argument("--ranks", type=count, default=1, help="with --plan: that share a step")
    insight.add_argument("--ranks-per-node", type=count, default=1, help="with --plan: that share a machine")
    insight.add_argument("--limit", metavar="GIB", help="with --plan: room for what the vision tower keeps, on a rank")
    insight.add_argument("--bytes-per-patch", type=count, help="with --plan: what a tower keeps of a patch")
    insight.add_argument("--json", action="store_true", help="the numbers alone")
    insight.add_argument("--output", type=Path, default=FOLDER, help="a folder")


def _pages(options: argparse.Namespace) -> int:
    from k25_pipelines.gallery.serving import PageServer

    server = PageServer(open_lake(), port=options.port, host=options.host, names=options.name)
    print(f"pages: {server.url}   (Ctrl-C stops it)", flush=True)
    try:
        signal.pause()
    except KeyboardInterrupt:
        server.close()
    return 0


def _gallery(options: argparse.Namespace) -> None:
    from k25_pipelines import gallery

    lake = open_lake()
    if not 0 <= options.rank < options.ranks:
        raise K25Error(f"--rank {options.rank} is none of 0 to {options.ranks - 1}; --ranks says how many there are")
    if options.name:
        with progress_bar(f"gallery {options.name}") as progress:
            page = gallery.dataset_page(lake, options.name, num_samples=options.samples, progress=progress)
        print(gallery.write_page(options.output, options.name, page))
        return
    first, end = options.steps
    with progress_bar("gallery") as progress:
        for step in range(first, end):
            plan = options.plan or _plan_of(lake, options.fed, step)
            page = gallery.step_page(
                lake,
                plan,
                step=step,
                rank=options.rank,
                num_ranks=options.ranks,
                most_packs=options.packs,
                run=options.fed,
                links=_beside(options, step),
                progress=progress,
            )
            print(gallery.write_page(options.output, _page_name(options, step), page))


def _page_name(options: argparse.Namespace, step: int) -> str:
    rank = f"-rank-{options.rank}-of-{options.ranks}" if options.ranks > 1 else ""
    return f"{options.fed or options.plan[:12]}-step-{step}{rank}"


def _beside(options: argparse.Namespace, step: int) -> list[tuple[str, str]]:
    """Return the pages of the steps before and after, of those that are written."""
    from k25_pipelines.gallery.page import file_name

    first, end = options.steps
    near = [("← step", step - 1), ("step", step + 1)]
    return [
        (f"{words} {other}{' →' if other > step else ''}", f"{file_name(_page_name(options, other))}.html")
        for words, other in near
        if first <= other < end
    ]


def _plan_of(lake, run: str, step: int) -> str:
    """Return the plan whose step a run was really fed."""
    from k25_pipelines.run_log import consumed
    from k25_pipelines.runs import read_pointer

    read_pointer(lake, run)  # an unknown run is told with the nearest name
    return consumed(lake, run, steps=range(step, step + 1))["plan"][0].as_py()


def _insight(options: argparse.Namespace) -> int:
    if options.plan:
        return _balance(options)
    from k25_pipelines.gallery import insight, write_page

    lake = open_lake()
    with progress_bar(f"insight {options.name}") as progress:
        known = insight.dataset_insight(
            lake, options.name, against=options.against, threads=options.threads, progress=progress
        )
    facts = insight.insight_facts(known)
    if options.json:
        print(json.dumps(facts, indent=1, ensure_ascii=False))
        return 0
    plain = [(name.replace("_", " "), value) for name, value in facts.items() if not isinstance(value, dict)]
    print(aligned(plain), end="\n\n")
    ways = [[way, *found.values()] for way, found in facts["duplicates"].items()]
    print(aligned(ways, header=["found by", "groups", "to spare", "across datasets"]), end="\n\n")
    print(aligned(list(facts["languages"].items())[:8], header=["language", "samples"]), end="\n\n")
    print(write_page(options.output, f"{options.name}-insight", insight.insight_page(lake, known)))
    return 0


def _balance(options: argparse.Namespace) -> int:
    from k25_pipelines.gallery import insight, write_page
    from k25_pipelines.insight.balance import BYTES_PER_PATCH, step_balance
    from k25_pipelines.planning import open_plan

    plan = open_plan(open_lake(), options.plan)
    limit = insight.limit_of(options.limit) if options.limit else None
    with progress_bar("balance") as progress:
        balance = step_balance(
            plan,
            num_ranks=options.ranks,
            ranks_per_node=options.ranks_per_node,
            bytes_per_patch=options.bytes_per_patch or BYTES_PER_PATCH,
            progress=progress,
        )
    over = balance.steps_over(limit).tolist() if limit else []
    facts = {
        "plan": plan.id,
        "steps looked at": len(balance.steps),
        "ranks": options.ranks,
        "imbalance, mean": round(float(balance.imbalance.mean()), 4),
        "imbalance, most": round(float(balance.imbalance.max()), 4),
        "most patches on a rank": int(balance.most_patches.max()),
        "bytes of the vision tower": int(balance.tower_bytes.max()),
        "steps above the limit": len(over) if limit else None,
    }
    print(json.dumps({**facts, "steps": over}) if options.json else aligned(list(facts.items())))
    if not options.json:
        page = insight.balance_page(plan, balance, num_ranks=options.ranks, limit_bytes=limit)
        print(write_page(options.output, f"{plan.id[:12]}-balance", page))
    if over:
        told = " ".join(map(str, over[:12])) + (" ..." if len(over) > 12 else "")
        print(f"steps that may not fit: {told}; raise --ranks or lower max_image_tokens in the recipe", file=sys.stderr)
    return 1 if over else 0


def _lineage(options: argparse.Namespace) -> None:
    from k25_pipelines import naming
    from k25_pipelines.gallery import lineage, write_page

    lake = open_lake()
    if options.checkpoint:
        page = lineage.checkpoint_lineage_page(lake, options.checkpoint)
        print(write_page(options.output, f"checkpoint-{options.checkpoint.strip('/').replace('/', '-')}", page))
        return
    named = naming.samples_of_key(lake, options.key) if options.key else naming.samples_called(lake, options.id)
    for name, line in named:
        print(write_page(options.output, f"{name}-{line}", lineage.sample_lineage_page(lake, name, line)))
