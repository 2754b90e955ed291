"""`k25 forget`: samples that may not be learnt from any more, and who holds them already."""

import argparse
import getpass
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from k25_pipelines.commands.cache import FOLDER
from k25_pipelines.commands.parts import command, count, progress_bar
from k25_pipelines.environment import STATE, open_lake
from k25_pipelines.errors import K25Error
from k25_pipelines.keys import digest

SHOWN = 20
"""Samples and checkpoints that the page names; the receipt names all."""


def add_commands(commands) -> None:
    """Add it to the parser."""
    forget = command(
        commands,
        "forget",
        _forget,
        purpose="take samples down: nothing gives them out any more; prints a receipt of who holds them",
        example="k25 forget captions/000017 --reason 'asked by its author' --dry-run\n"
        "  k25 forget --image theirs.jpg --near 4 --dry-run          (shows all that look alike, and tells a WORD)\n"
        "  k25 forget --image theirs.jpg --near 4 --seen WORD --spare web:12 --reason 'asked by its author'\n"
        "  k25 forget --file ids.txt --reason 'opt-out list of March'",
    )
    forget.add_argument("ids", nargs="*", metavar="ID", help="dataset:line, dataset/key, a content id, or phash:HASH")
    forget.add_argument("--file", type=Path, help="of such ids, one a line; what follows a # is left out")
    forget.add_argument("--image", type=Path, action="append", default=[], help="a file: whoever holds it; repeat it")
    forget.add_argument(
        "--near", type=count, metavar="BITS", help="also images that differ in at most BITS of 64; try 4"
    )
    forget.add_argument("--spare", action="append", default=[], metavar="ID", help="a look-alike that may stay")
    forget.add_argument("--seen", metavar="WORD", help="that the look-alikes were looked at: the word told with them")
    forget.add_argument("--only", action="store_true", help="not the copies: only the samples that are named")
    forget.add_argument("--reason", help="why; kept for good")
    forget.add_argument("--author", metavar="NAME", help="who; your login name if not given")
    forget.add_argument("--dry-run", action="store_true", help="tell what would be forgotten, and who holds it")
    forget.add_argument("--cache", type=Path, action="append", default=[], help="another loader's cache to clear, too")
    forget.add_argument("--keep-copies", action="store_true", help="leave what k25 sync copied where it is")
    forget.add_argument("--list", action="store_true", help="print the takedowns of the lake")
    forget.add_argument("--receipt", metavar="TAKEDOWN", help="print the receipts of a takedown, checked")
    forget.add_argument("--json", action="store_true", help="the whole receipt")


def login_name(told: str | None) -> str:
    """Return who: as said, else the login name."""
    try:
        return told or getpass.getuser()
    except (KeyError, OSError) as error:  # a container's user need not have a name
        raise K25Error("this user has no login name; give --author NAME") from error


def _forget(options: argparse.Namespace) -> None:
    from k25_pipelines import governance

    lake = open_lake()
    if options.list:
        _list(lake, as_json=options.json)
        return
    if options.receipt:
        for told in governance.read_receipts(lake, options.receipt):
            print(json.dumps(told, indent=1, ensure_ascii=False) if options.json else _page(told))
        return
    selectors = _selectors(options)
    how = {"distance": options.near, "copies": not options.only, "spare": options.spare}
    if options.dry_run:
        with progress_bar("looking") as progress:
            looked = governance.preview(lake, selectors, **how, progress=progress)
        print(json.dumps(looked.facts, ensure_ascii=False) if options.json else _page(looked.facts))
        if alike := _look_alikes(lake, looked.found, options):
            print(alike, file=sys.stderr)
        print("nothing was changed; without --dry-run it is done", file=sys.stderr)
        return
    if not options.reason:
        raise K25Error("a takedown keeps why it was made; give --reason TEXT, or --dry-run to look first")
    _require_seen(lake, selectors, how, options)
    places = governance.Places(
        caches=(FOLDER, *options.cache), pages=STATE / "gallery", keep_synced=options.keep_copies
    )
    who = {"reason": options.reason, "author": login_name(options.author)}
    with progress_bar("forget") as progress:
        told = governance.forget(lake, selectors, **who, **how, places=places, progress=progress)
    print(json.dumps(told, ensure_ascii=False) if options.json else _page(told))


def _require_seen(lake, selectors: Sequence[str], how: Mapping[str, Any], options: argparse.Namespace) -> None:
    """Raise K25Error where pictures that merely look alike would go and nobody says to have seen them."""
    from k25_pipelines import governance

    if options.near is None and not any(selector.startswith("phash:") for selector in selectors):
        return  # exact copies alone
    with progress_bar("looking") as progress:
        found = governance.find(governance.Catalogue(lake, progress), selectors, **how)
    if (found.alike or found.spared) and options.seen != _word_of(found):
        raise K25Error(f"nothing was changed: {_look_alikes(lake, found, options)}")


def _look_alikes(lake, found, options: argparse.Namespace) -> str:
    """Write the page of the look-alikes and return what is to be done with it; empty where there are none."""
    from k25_pipelines.gallery import write_page
    from k25_pipelines.gallery.alike import alike_page

    if not (found.alike or found.spared):
        return ""
    asked = [(path.name, path.read_bytes()) for path in options.image]
    selected = [sample for sample, why in sorted(found.why.items()) if why == "selected"][:SHOWN]
    word = _word_of(found)
    page = write_page(
        STATE / "gallery",
        f"look-alikes-{word}",
        alike_page(lake, found.alike, found.spared, asked=asked, selected=selected),
    )
    count = len(found.alike) + len(found.spared)
    return (
        f"{count:,} {'picture only looks' if count == 1 else 'pictures only look'} alike; look at {page}, then say the "
        f"same with --seen {word}, and --spare ID for "
        "each that shows something else"
    )


def _word_of(found) -> str:
    """Return the word for a set of look-alikes, whether they are spared or not."""
    return digest("look-alikes", sorted(f"{name}:{line}" for name, line in [*found.alike, *found.spared]))[:8]


def _selectors(options: argparse.Namespace) -> list[str]:
    """Return all that is named: words, lines of a file, and what the images of files are known by."""
    from k25_pipelines.catalog.media import content_id
    from k25_pipelines.governance.hashes import UNREADABLE, image_hash

    selectors = list(options.ids)
    if options.file:
        lines = (line.partition("#")[0].strip() for line in options.file.read_text(encoding="utf-8").splitlines())
        selectors += [line for line in lines if line]
    for path in options.image:
        data = path.read_bytes()
        if (words := image_hash(data)) == UNREADABLE:
            raise K25Error(f"{path} is no image that can be decoded; give the content id or the key instead")
        selectors += [content_id(data), f"phash:{words}"]
    if not selectors:
        raise K25Error("nothing is named; give ids, --file FILE or --image FILE")
    return selectors


def _list(lake, *, as_json: bool) -> None:
    from k25_pipelines.governance import read_takedown, takedown_names

    takedowns = [read_takedown(lake, name) for name in takedown_names(lake)]
    rows = [
        {"id": t.id, "at": t.at, "author": t.author, "samples": len(t.samples), "reason": t.reason}
        for t in sorted(takedowns, key=lambda each: each.at)
    ]
    if as_json:
        print(json.dumps(rows, ensure_ascii=False))
        return
    for row in rows:
        print(f"{row['id'][:12]}  {row['at']}  {row['samples']:>6,} samples  {row['author']}: {row['reason']}")
    if not rows:
        print("nothing was ever taken down", file=sys.stderr)


def _page(told: Mapping[str, Any]) -> str:
    """Return a receipt as a person reads it."""
    lines = []
    if told.get("takedown"):
        lines += [f"takedown {told['takedown']}", f"{told['at']}, {told['author']}: {told['reason']}", ""]
    lines += [
        f"{told['num_samples']:,} samples: " + ", ".join(f"{n:,} of {name}" for name, n in told["datasets"].items())
    ]
    samples = [f"  {s['sample']:<24} {s['key'][:40]:<40} {s['why'][:60]}" for s in told["samples"]]
    lines += _cut(samples)
    lines += ["", f"{told['num_steps']:,} steps were trained on them"]
    for run in told["runs"]:
        steps = f"{run['num_steps']:,} steps from {run['first_step']} to {run['last_step']}"
        lines.append(f"  {run['run']:<28} {run['stage'] or '-':<14} {steps}, {run['num_samples']:,} samples")
    lines += ["", f"{len(told['checkpoints']):,} checkpoints hold them"]
    lines += _cut([_checkpoint_line(each) for each in told["checkpoints"]])
    if told["derived_datasets"]:
        lines += ["", "datasets that were made from these"]
        lines += [
            f"  {each['dataset']:<28} from {', '.join(each['derived_from'])}" for each in told["derived_datasets"]
        ]
    lines += ["", *_removed(told["removed"])]
    if told.get("digest"):
        objects = sorted({each["uri"] for sample in told["samples"] for each in sample["objects"]})
        lines += [f"the bytes themselves still lie in {len(objects):,} objects, which are their owner's to delete"]
        lines += [f"receipt {told['digest']}; again: k25 forget --receipt {told['takedown'][:12]}"]
    return "\n".join(lines)


def _checkpoint_line(row: Mapping[str, Any]) -> str:
    others = [name for name in row["through"] if name != row["checkpoint"]]
    by = ["by itself"] if len(others) < len(row["through"]) else []
    by += [f"through {name}" for name in others[:1]]
    by += [f"{len(others) - 1} more"] if len(others) > 1 else []
    held = f"{row['samples']:,} samples in {row['steps']:,} steps, {', '.join(by)}"
    return f"  {row['checkpoint']:<48} {row['stage'] or '-':<14} {held}"


def _removed(removed: Mapping[str, Any]) -> Sequence[str]:
    lines = [
        f"removed {each['files']:,} files, {each['bytes'] / 2**20:,.1f} MiB, from the cache {each['folder']}"
        for each in removed.get("caches", ())
    ]
    if removed.get("pages"):
        lines.append(f"removed {removed['pages']} pages that may show them")
    return [*lines, *(f"copy {each['url']}: {each['outcome']}" for each in removed["synced"])]


def _cut(lines: Sequence[str]) -> list[str]:
    more = [f"  and {len(lines) - SHOWN:,} more: --json"] if len(lines) > SHOWN else []
    return [*lines[:SHOWN], *more]
