"""`k25 cache show`, `k25 cache clear`: what loaders keep of the store on this machine's disk."""

import argparse
import json
from datetime import datetime
from pathlib import Path

from k25_pipelines.commands.parts import command
from k25_pipelines.environment import STATE

FOLDER = STATE / "cache"
"""What `k25 batch` and trainers on this machine keep chunks in."""


def add_commands(commands) -> None:
    """Add them to the parser."""
    cache = command(
        commands,
        "cache",
        _cache,
        purpose="show or clear what is kept of the store on this machine's disk",
        example="k25 cache show   or   k25 cache clear --folder /scratch/cache",
    )
    cache.add_argument("action", choices=["show", "clear"], help="clear asks nothing; who reads meanwhile fetches anew")
    cache.add_argument("--folder", type=Path, default=FOLDER, help="default: %(default)s")
    cache.add_argument("--json", action="store_true")


def _cache(options: argparse.Namespace) -> None:
    from k25_pipelines.storage.cache import cache_summary, clear_cache

    if options.folder == FOLDER and not FOLDER.exists():
        facts = {"folder": str(FOLDER), "files": 0, "bytes": 0}
    elif options.action == "show":
        facts = cache_summary(options.folder)
    else:
        facts = clear_cache(options.folder)
    if options.json:
        print(json.dumps(facts, indent=1))
    elif options.action == "clear":
        print(f"removed {facts['files']:,} files, {_size(facts['bytes'])}, from {facts['folder']}")
    else:
        _show(facts)


def _show(facts: dict) -> None:
    limit = facts.get("limit")
    print(f"{'folder':<12} {facts['folder']}")
    print(f"{'files':<12} {facts['files']:,}")
    print(f"{'size':<12} {_size(facts['bytes'])}" + (f" of {_size(limit)}" if limit else ""))
    if oldest := facts.get("oldest_use"):
        print(f"{'oldest use':<12} {datetime.fromtimestamp(oldest).astimezone().isoformat(timespec='seconds')}")
    if facts.get("stale_files"):
        left = f"{facts['stale_files']:,} files, {_size(facts['stale_bytes'])}"
        print(f"{'left over':<12} {left}, of writers that died; `k25 cache clear` removes them")


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 2**20:,.1f} MiB"
