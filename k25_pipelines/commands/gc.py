"""`k25 lifecycle` and `k25 gc`: what dataset versions may be used for; what nothing needs any more."""

import argparse
import getpass
import json
from collections import Counter
from dataclasses import asdict
from typing import TYPE_CHECKING

from k25_pipelines.commands.parts import command, count, progress_bar
from k25_pipelines.commands.tables import aligned, short
from k25_pipelines.environment import open_lake
from k25_pipelines.errors import K25Error

if TYPE_CHECKING:
    from k25_pipelines.gc import Findings

AUTHOR = "who; your login name if not given"


def add_commands(commands) -> None:
    """Add them to the parser."""
    lifecycle = command(
        commands,
        "lifecycle",
        _lifecycle,
        purpose="show or change what a dataset version may be used for",
        example='k25 lifecycle web   or   k25 lifecycle web deprecated --reason "superseded by web2"',
    )
    lifecycle.add_argument("name", help="of a dataset")
    lifecycle.add_argument("state", nargs="?", help="draft, active, deprecated, archived or deleted; without it: show")
    lifecycle.add_argument("--version", metavar="DIGEST", help="of the dataset; the newest by default")
    lifecycle.add_argument("--reason", default="", metavar="TEXT", help="why; kept with the change")
    lifecycle.add_argument("--author", metavar="NAME", help=AUTHOR)
    lifecycle.add_argument("--json", action="store_true")
    gc = command(
        commands,
        "gc",
        _gc,
        purpose="say what of the lake nothing references any more; delete it with --delete",
        example="k25 gc   or   k25 gc --unused-plans --keep-checkpoints 2 --delete",
    )
    gc.add_argument("--delete", action="store_true", help="delete it; without this nothing is changed")
    gc.add_argument("--older-than", type=float, default=7.0, metavar="DAYS", help="spare what is younger; default: 7")
    gc.add_argument("--unused-plans", action="store_true", help="also plans that no run, checkpoint or output names")
    gc.add_argument(
        "--keep-checkpoints",
        type=count,
        metavar="N",
        help="also weights beyond each run's N newest, but those that were evaluated or trained on; records stay",
    )
    gc.add_argument("--data", action="store_true", help="also a deleted version's own objects that no other names")
    gc.add_argument("--author", metavar="NAME", help=AUTHOR)
    gc.add_argument("--list", action="store_true", help="name every object")
    gc.add_argument("--json", action="store_true")


def _lifecycle(options: argparse.Namespace) -> None:
    from k25_pipelines import retention
    from k25_pipelines.catalog.registry import dataset_versions

    lake = open_lake()
    versions = [version["digest"] for version in dataset_versions(lake, options.name)]
    if not versions:
        raise K25Error(f"{options.name} is registered but not indexed yet; run: k25 index {options.name}")
    if options.state:
        digest = _version(options.version, versions, options.name)
        change = retention.set_state(
            lake, options.name, digest, options.state, reason=options.reason, author=_author(options)
        )
        print(f"{options.name}@{digest[:12]}: {change.previous} -> {change.state}; {retention.MEANING[change.state]}")
        return
    told = {digest: retention.history(lake, options.name, digest) for digest in versions}
    if options.json:
        print(
            json.dumps({digest: [asdict(change) for change in changes] for digest, changes in told.items()}, indent=1)
        )
        return
    rows = []
    for digest, changes in told.items():
        rows += [[digest[:12], c.state, c.at, c.author, c.reason] for c in changes or [retention.ACTIVE]]
    print(aligned(rows, header=["version", "state", "since", "by", "reason"]))


def _version(told: str | None, versions: list[str], name: str) -> str:
    """Return the version that a digest, or the beginning of one, names; the newest where none is told."""
    found = [digest for digest in versions if digest.startswith(told)] if told else versions[-1:]
    if len(found) != 1:
        raise K25Error(f"{name} has {len(found)} versions that begin with {told}; see: k25 lifecycle {name}")
    return found[0]


def _gc(options: argparse.Namespace) -> None:
    from k25_pipelines.gc import Policy, find, sweep

    if options.older_than < 0:
        raise K25Error(f"--older-than {options.older_than:g}: write a number of days from 0 up")
    policy = Policy(
        older_than_days=options.older_than,
        keep_checkpoints=options.keep_checkpoints,
        unused_plans=options.unused_plans,
        data=options.data,
    )
    lake = open_lake()
    with progress_bar("gc") as progress:
        if options.delete:
            found = sweep(lake, policy, author=_author(options), progress=progress)
        else:
            found = find(lake, policy)
    _tell(found, options)


def _tell(found: "Findings", options: argparse.Namespace) -> None:
    objects = found.all_objects
    counts, sizes = Counter(each.why for each in objects), Counter[str]()
    for each in objects:
        sizes[each.why] += each.num_bytes
    if options.json:
        facts = {why: {"objects": counts[why], "bytes": sizes[why]} for why in sorted(counts)}
        keys = [each.key for each in objects]
        print(
            json.dumps({"deleted": options.delete, "why": facts, "uploads": len(found.uploads), "keys": keys}, indent=1)
        )
        return
    if options.list:
        for each in objects:
            print(f"{each.key}  {each.num_bytes}  {each.why}")
    for why in sorted(counts):
        print(f"{counts[why]:>8,} objects  {short(sizes[why]):>8}B  {why}")
    if found.uploads:
        print(f"{len(found.uploads):>8,} uploads                begun in parts and never ended")
    whole = f"{found.num_stored:,} objects, {short(found.num_bytes)}B below k25/"
    if options.delete:
        print(f"deleted {len(objects):,} objects, {short(sum(sizes.values()))}B, of {whole}")
    else:
        print(f"{len(objects):,} objects, {short(sum(sizes.values()))}B, of {whole} may go; nothing is deleted yet")
        if objects or found.uploads:
            print("delete them with the same command and --delete")


def _author(options: argparse.Namespace) -> str:
    try:
        return options.author or getpass.getuser()
    except (KeyError, OSError) as error:
        raise K25Error("this user has no login name; give --author NAME") from error
