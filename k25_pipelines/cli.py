"""`k25`: the data layer at the command line. Words in; facts, progress and an exit code out.

Exit codes: 0 done, 1 ran and found something wrong, 2 bad input (one line: what, where, the way out).
Trainers, Dagster and the embedded server are child processes, started in the repository's root.
"""

import argparse
import os
import sys
from io import TextIOWrapper

from k25_pipelines.commands import (
    backfill,
    batches,
    cache,
    datasets,
    gc,
    governance,
    lineage,
    model,
    plans,
    server,
    sql,
    sync,
    telemetry,
    training,
    views,
)
from k25_pipelines.commands.parts import Parser
from k25_pipelines.errors import K25Error


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


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of every command, each with a line of purpose and an example."""
    parser = Parser(
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
    topics = (server, datasets, plans, batches, lineage, cache, training, model, sync, gc, governance, views, sql)
    for topic in (*topics, backfill, telemetry):
        topic.add_commands(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
