"""`k25 register`, `index`, `datasets`, `stats`, `browse`: what there is."""

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from k25_pipelines.commands.governance import login_name
from k25_pipelines.commands.parts import command, count, progress_bar
from k25_pipelines.environment import STATE, open_lake
from k25_pipelines.errors import K25Error

if TYPE_CHECKING:
    from k25_pipelines.catalog.manifest import Manifest
    from k25_pipelines.storage.store import Store

KINDS = {
    "webdataset": "*.tar shards",
    "images": "loose images, alone or with COCO or JSONL annotations",
    "parquet": "tables with words, media bytes or keys of media",
    "jsonl": "lines with text or content",
    "text": "plain text and code trees",
    "chat": "JSONL of messages",
    "interleaved": "JSONL of documents with media",
    "video": "files, alone or with JSONL captions",
}
"""What a dataset of each kind looks like."""
IDENTITY = ("uri", "kind", "licence", "source", "annotations")
"""What a dataset is registered as, once and for all."""
ABOUT = ("description", "owners", "pii", "keep_until", "derived_from")
"""What may be said about it at any time."""


def add_commands(commands) -> None:
    """Add them to the parser."""
    _add_register(commands)
    _add_index(commands)
    _add_datasets(commands)
    stats = command(
        commands,
        "stats",
        _stats,
        purpose="count what a manifest says of a dataset; reads no sample (k25 insight reads them all)",
        example="k25 stats web --json    (tokens, languages, duplicates and plots: k25 insight web)",
    )
    stats.add_argument("name")
    stats.add_argument("--json", action="store_true")

    browse = command(
        commands,
        "browse",
        _browse,
        purpose="write the page of a dataset or of one planned step (k25 gallery: steps of a run, and a rank's)",
        example="k25 browse grounding   or   k25 browse --plan PLAN --step 0",
    )
    browse.add_argument("name", nargs="?")
    browse.add_argument("--plan")
    browse.add_argument("--step", type=int, default=0)
    browse.add_argument("--samples", type=count, default=24)
    browse.add_argument("--output", type=Path, help="the page; below .k25/gallery if not given")


def _add_register(commands) -> None:
    register = command(
        commands,
        "register",
        _register,
        purpose="name a dataset that lies in a bucket, or say more about one that is named; nothing is copied",
        example="k25 register web s3://lake/raw/web --kind parquet --licence CC-BY-4.0 --source 'Our crawl'\n"
        "  k25 register web --owner 'data team' --pii present --keep-until 2027-12-31",
    )
    register.add_argument("name")
    register.add_argument("uri", nargs="?", help="s3://bucket/prefix or a folder, where the objects lie")
    register.add_argument("--kind", help="; ".join(f"{kind}: {what}" for kind, what in KINDS.items()))
    register.add_argument("--annotations", help="key or URI of COCO JSON or JSONL (images), of JSONL (video)")
    register.add_argument("--licence", help="SPDX id, for samples that name none")
    register.add_argument("--source", help="where it comes from, for samples that name none")
    about = register.add_argument_group("about it", "may be said again at any time; what was said before is kept")
    about.add_argument("--description")
    about.add_argument("--owner", action="append", dest="owners", metavar="NAME", help="who answers for it; repeat it")
    about.add_argument("--pii", help="whether it shows persons: unknown, none, present or removed")
    about.add_argument("--keep-until", metavar="DAY", help="last day on which it may be kept, as 2027-12-31")
    about.add_argument("--derived-from", action="append", metavar="NAME", help="dataset or checkpoint it was made from")
    about.add_argument("--author", metavar="NAME", help="who says so; your login name if not given")


def _add_datasets(commands) -> None:
    datasets = command(
        commands,
        "datasets",
        _datasets,
        purpose="list the datasets of the lake; compare one with its objects, or two versions",
        example="k25 datasets   or   k25 datasets --drift web --deep   or   k25 datasets --diff web@1 web",
    )
    what = datasets.add_mutually_exclusive_group()
    what.add_argument("--drift", metavar="NAME", help="objects that were overwritten or are gone; exit code 1 if any")
    what.add_argument(
        "--diff", nargs=2, metavar=("A", "B"), help="what B has more, less and otherwise than A; NAME[@N]"
    )
    what.add_argument("--about", metavar="NAME", help="what was said about a dataset, by whom and when")
    datasets.add_argument("--deep", action="store_true", help="with --drift: read the media and compare digests")
    datasets.add_argument("--json", action="store_true")


def _add_index(commands) -> None:
    index = command(
        commands,
        "index",
        _index,
        purpose="scan a dataset in place into a manifest; prints the version's digest",
        example="k25 index web   or   k25 index web --deep --tokens default",
    )
    index.add_argument("name")
    index.add_argument("--threads", type=count, default=8, help="objects read at once")
    index.add_argument("--processes", type=count, default=1, help="more than 1: shards scanned on as many cores")
    index.add_argument("--deep", action="store_true", help="read every medium once and name it by its content")
    index.add_argument("--perceptual", action="store_true", help="hash every image, so that look-alikes are found fast")
    index.add_argument("--tokens", metavar="TOKENIZER", help="also keep the token ids of text under this tokenizer")
    index.add_argument("--profile", default="kimi_k25", help="of the model that --tokens is for")


def _register(options: argparse.Namespace) -> None:
    from k25_pipelines.catalog import about, registry

    lake = open_lake()
    changes = {name: getattr(options, name) for name in ABOUT if getattr(options, name) is not None}
    changes = {name: tuple(value) if isinstance(value, list) else value for name, value in changes.items()}
    given = [name for name in IDENTITY if getattr(options, name) is not None]
    missing = [name for name in IDENTITY[:4] if name not in given]
    is_known = options.name in registry.dataset_names(lake)
    if missing and (given or not is_known):
        flags = ", ".join(name if name == "uri" else f"--{name}" for name in missing)
        raise K25Error(
            f"{options.name} is {'' if is_known else 'not '}registered; to register a dataset give {flags}, too"
        )
    if given:
        fields = {name: getattr(options, name) for name in IDENTITY}
        registry.register(lake, registry.Registration(name=options.name, **fields))
    told = about.state_about(lake, options.name, changes, author=login_name(options.author)) if changes else None
    if told:
        print(f"{options.name}: {', '.join(f'{name} {getattr(told, name)!r}' for name in changes)}")
    if not is_known:
        print(f"{options.name}: registered; next: k25 index {options.name}")
    elif not told:
        print(f"{options.name}: registered already, and nothing is different")


def _index(options: argparse.Namespace) -> None:
    from k25_pipelines.governance import index_dataset

    lake = open_lake()
    with progress_bar(f"index {options.name}") as progress:
        manifest = index_dataset(
            lake, options.name, threads=options.threads, processes=options.processes, progress=progress
        )
    num_quarantined = int(manifest.quarantined.sum())
    if num_quarantined:
        told = f"{num_quarantined} of {manifest.num_lines} samples quarantined; k25 stats {options.name} says why"
        print(f"{options.name}: {told}", file=sys.stderr)
    if options.deep:
        _name_contents(lake, manifest, threads=options.threads)
    if options.perceptual:
        _hash_images(lake, manifest, threads=options.threads)
    if options.tokens:
        _keep_tokens(lake, manifest, tokenizer=options.tokens, profile=options.profile)
    print(manifest.digest)


def _name_contents(lake: "Store", manifest: "Manifest", *, threads: int) -> None:
    from k25_pipelines.catalog.contents import fill_contents
    from k25_pipelines.catalog.pages import write_pages
    from k25_pipelines.sample.read import cell_reader

    with progress_bar(f"contents of {manifest.dataset}") as progress:
        found = fill_contents(lake, manifest, cells=cell_reader(manifest), threads=threads, progress=progress)
        write_pages(lake, manifest, anew=True)
    print(f"{manifest.dataset}: {found} media named by their content", file=sys.stderr)


def _hash_images(lake: "Store", manifest: "Manifest", *, threads: int) -> None:
    from k25_pipelines.governance.hashes import fill_hashes

    with progress_bar(f"images of {manifest.dataset}") as progress:
        hashes = fill_hashes(lake, manifest, threads=threads, progress=progress)
    print(f"{manifest.dataset}: {sum(each is not None for each in hashes)} images hashed", file=sys.stderr)


def _keep_tokens(lake: "Store", manifest: "Manifest", *, tokenizer: str, profile: str) -> None:
    from k25_pipelines.sample import token_cache
    from k25_pipelines.sample.tokens import load_tokenizer

    with progress_bar(f"tokens of {manifest.dataset}") as progress:
        token_cache.build(lake, manifest, load_tokenizer(tokenizer, lake), profile, progress=progress)


def _datasets(options: argparse.Namespace) -> int:
    from k25_pipelines.commands import versions

    lake = open_lake()
    if options.deep and not options.drift:
        raise K25Error("--deep is of --drift NAME; name the dataset with it")
    if options.drift:
        return versions.drift(lake, options.drift, deep=options.deep, as_json=options.json)
    if options.diff:
        return versions.diff(lake, *options.diff, as_json=options.json)
    if options.about:
        return versions.about(lake, options.about, as_json=options.json)
    return versions.datasets(lake, as_json=options.json)


def _stats(options: argparse.Namespace) -> None:
    from k25_pipelines.catalog import registry
    from k25_pipelines.catalog.contents import annotation_totals
    from k25_pipelines.catalog.statistics import statistics

    lake = open_lake()
    manifest = registry.load_manifest(lake, options.name)
    facts = statistics(manifest, annotations=annotation_totals(lake, manifest))
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
