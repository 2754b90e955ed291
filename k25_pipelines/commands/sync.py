"""`k25 sync`: objects of a dataset, or all below a URL, to another store; priced before, verified after."""

import argparse
import json
import os
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

from k25_pipelines.commands.parts import command, count, progress_bar
from k25_pipelines.commands.tables import short
from k25_pipelines.environment import open_lake
from k25_pipelines.errors import K25Error
from k25_pipelines.storage.store import Store

if TYPE_CHECKING:
    from k25_pipelines.catalog.manifest import Manifest
    from k25_pipelines.sync import Job, Prices, Settings

GB = 10**9
EXAMPLE = (
    "k25 sync web s3://mirror/web --dry-run                       what it will take\n"
    "  k25 sync web s3://mirror/web --dst-access mirror.env --budget-usd 20\n"
    "  k25 sync s3://lake s3://copy --dst-access PROFILE            a whole lake\n"
    "  k25 sync --targets                                           where copies are"
)


def add_commands(commands) -> None:
    """Add it to the parser."""
    sync = command(commands, "sync", _sync, purpose="copy objects to another store, and verify them", example=EXAMPLE)
    sync.add_argument("source", nargs="?", metavar="SRC", help="a dataset's name, or s3://bucket/prefix, or a folder")
    sync.add_argument("destination", nargs="?", metavar="DST", help="s3://bucket/prefix, or a folder")
    sync.add_argument("--targets", action="store_true", help="show what was synced from this lake, and end")
    sync.add_argument("--dry-run", action="store_true", help="say what it will take, and move nothing")
    sync.add_argument("--budget-gb", type=_amount, metavar="G", help="most gigabytes (10^9) that this run moves")
    sync.add_argument("--budget-usd", type=_amount, metavar="U", help="most money that this run takes")
    sync.add_argument("--version", metavar="DIGEST", help="of the dataset; the newest by default")
    sync.add_argument("--overwrite", action="store_true", help="replace other objects under the same keys")
    access = "a file of AWS_* exports, or a profile of AWS's config; the environment by default"
    sync.add_argument("--src-access", metavar="ACCESS", help=access)
    sync.add_argument("--dst-access", metavar="ACCESS", help=access)
    sync.add_argument("--transfers", type=count, default=8, help="objects under way at once; default: %(default)s")
    sync.add_argument("--multipart-mib", type=count, default=1024, help="send objects from this size on in parts")
    sync.add_argument("--usd-per-gb", type=_amount, help="of bytes that leave a store; 0.09, within one store 0")
    sync.add_argument("--usd-per-1000-gets", type=_amount, help="0.0004 by default")
    sync.add_argument("--usd-per-1000-puts", type=_amount, help="0.005 by default")
    sync.add_argument("--json", action="store_true")


def _sync(options: argparse.Namespace) -> int:
    from k25_pipelines import sync

    lake = open_lake()
    if options.targets:
        return _targets(lake, as_json=options.json)
    if not (options.source and options.destination):
        raise K25Error("sync takes SRC and DST, such as: k25 sync web s3://mirror/web --dry-run")
    with progress_bar("listing"):
        job = _job(lake, options)
    facts = sync.estimate(job)
    if options.dry_run:
        print(json.dumps(facts, indent=1) if options.json else _estimate_told(facts))
        return 0
    gb, usd = options.budget_gb, options.budget_usd
    budget = sync.Budget(num_bytes=None if gb is None else int(gb * GB), usd=usd)
    with progress_bar("sync") as progress:
        report = sync.run(job, budget=budget, progress=progress)
    print(json.dumps({**facts, **report}, indent=1) if options.json else _report_told(report))
    return 1 if report["left"] else 0


def _job(lake: Store, options: argparse.Namespace) -> "Job":
    """Return the sync that the options name, looked at."""
    from k25_pipelines import sync

    access = sync.read_access(options.src_access, os.environ), sync.read_access(options.dst_access, os.environ)
    return sync.look(
        lake,
        _source(lake, options),
        options.destination,
        access=access,
        settings=_settings(options),
        prices=_prices(options, sync.default_prices(access)),
        overwrite=options.overwrite,
    )


def _source(lake: Store, options: argparse.Namespace) -> "str | Manifest":
    """Return the dataset version that is meant, or the URL or folder."""
    from k25_pipelines.catalog import registry

    if "/" in options.source or os.path.isdir(options.source):
        return options.source
    return registry.load_manifest(lake, options.source, options.version)


def _settings(options: argparse.Namespace) -> "Settings":
    from k25_pipelines.sync import Settings
    from k25_pipelines.sync.rclone import MIB

    return Settings(
        transfers=options.transfers,
        multipart_bytes=options.multipart_mib * MIB,
        requests_per_second=_limit("K25_S3_REQUESTS_PER_SECOND"),
        bytes_per_second=_limit("K25_S3_BYTES_PER_SECOND"),
    )


def _limit(name: str) -> float | None:
    """Return a limit of the environment, which opening a store has checked."""
    return float(os.environ[name]) if os.environ.get(name) else None


def _prices(options: argparse.Namespace, prices: "Prices") -> "Prices":
    """Return prices, with those that are given in their place."""
    given = {field.name: getattr(options, field.name, None) for field in fields(prices)}
    return replace(prices, **{name: value for name, value in given.items() if value is not None})


def _estimate_told(facts: Mapping[str, Any]) -> str:
    there = facts["there"] + facts["to_compare"]
    lines = [
        ("from", facts["source"]),
        ("to", facts["destination"]),
        ("objects", f"{facts['objects']:,}, {_bytes(facts['bytes'])}"),
        ("there already", f"{there:,}, of which {facts['to_compare']:,} are still to be compared"),
        ("to copy", f"{facts['to_copy']:,}, {_bytes(facts['copy_bytes'])}"),
        ("moves", f"{_bytes(facts['moved_bytes'])} in {facts['gets']:,} GETs and {facts['puts']:,} PUTs"),
        ("costs", f"${facts['usd']:,.4f}, and ${facts['usd_a_month']:,.4f} a month to keep"),
    ]
    if facts["withheld"]:
        lines.insert(3, ("withheld", f"{facts['withheld']:,}: all in them is forgotten"))
    return "\n".join(f"{name:<14} {value}" for name, value in lines)


def _report_told(report: Mapping[str, Any]) -> str:
    fine = report["objects"] - report["left"]
    lines = [
        f"copied {report['copied']:,} objects; moved {_bytes(report['moved_bytes'])} for about ${report['usd']:,.4f}",
        f"{fine:,} of {report['objects']:,} copies hold what their sources do, by digest",
    ]
    if report["aborted_uploads"]:
        lines.append(f"aborted {report['aborted_uploads']:,} uploads that a killed run had begun")
    if report["left"]:
        left = f"{report['left']:,} objects, {_bytes(report['left_bytes'])}"
        lines.append(f"the budget is reached: {left} are left; the same command goes on from here")
    return "\n".join(lines)


def _targets(lake: Store, *, as_json: bool) -> int:
    from dataclasses import asdict

    from k25_pipelines.sync import sync_targets

    found = sync_targets(lake)
    if as_json:
        print(json.dumps([{"id": target.id, **asdict(target)} for target in found], indent=1))
    for target in [] if as_json else found:
        what = f"{target.dataset} " if target.dataset else ""
        print(f"{what}{target.source} -> {target.destination} {target.destination_endpoint}".rstrip())
    return 0


def _bytes(number: int) -> str:
    return f"{short(number)}B"


def _amount(words: str) -> float:
    try:
        value = float(words)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{words!r} is not a number from 0 up")
    return value
