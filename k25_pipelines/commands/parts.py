"""What every command is made of: its parser with an example, counts and ranges as arguments, a progress bar."""

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn

from tqdm import tqdm


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, as all of ours are."""

    def error(self, message: str) -> NoReturn:
        """Say it and leave with exit code 2."""
        self.exit(2, f"{self.prog}: {' '.join(message.split())}; see: {self.prog} --help\n")


def command(commands, name: str, run: Callable, *, purpose: str, example: str) -> argparse.ArgumentParser:
    """Add a command to the parser of all of them, and return its own."""
    parser = commands.add_parser(
        name,
        help=purpose,
        description=purpose[0].upper() + purpose[1:] + ".",
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    return parser


def count(words: str) -> int:
    """Return a number of things, of which there must be one."""
    if not (words.isdecimal() and int(words) > 0):
        raise argparse.ArgumentTypeError(f"{words!r} is not a whole number above 0")
    return int(words)


def step_range(words: str) -> tuple[int, int]:
    """Return the steps that A:B means: from A up to but not B."""
    first, _, end = words.partition(":")
    if not (first.isdecimal() and end.isdecimal() and int(first) < int(end)):
        raise argparse.ArgumentTypeError(f"{words!r} is no range of steps; write A:B, such as 0:4")
    return int(first), int(end)


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
