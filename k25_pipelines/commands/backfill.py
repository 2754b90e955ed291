"""`k25 backfill`: make up for datasets, days or stages through Dagster; `k25 checks`: what stands against something."""

import argparse
import getpass

from k25_pipelines.commands.parts import command
from k25_pipelines.commands.tables import aligned
from k25_pipelines.environment import open_lake, run_child


def add_commands(commands) -> None:
    """Add them to the parser."""
    backfill = command(
        commands,
        "backfill",
        _backfill,
        purpose="make what is missing, a run of the Dagster graph each: datasets, days, or a whole stage",
        example="k25 backfill --days 2026-11-01:2026-11-07   or   k25 backfill --stage joint --parents",
    )
    backfill.add_argument("--datasets", metavar="NAMES", help="with commas, or `all`: index them, count their tokens")
    backfill.add_argument("--days", metavar="A:B", help="index what arrived from day A to B, both included")
    backfill.add_argument("--stage", help="plan and train it; finished work is found, not made again")
    backfill.add_argument("--parents", action="store_true", help="with --stage: the stages before it, too")
    backfill.add_argument("--edition", metavar="NAME", help="with --stage: of which training; default: main")
    backfill.add_argument("--scale", choices=["demo", "toy"], help="with --stage; K25_SCALE if not given")
    backfill.add_argument("--server", metavar="URL", help="hand the runs over to the web server there, which queues")
    backfill.add_argument("--again", action="store_true", help="all of it, also what a stopped backfill has made")
    backfill.add_argument("--dry-run", action="store_true", help="name the runs and make none")
    checks = command(
        commands,
        "checks",
        _checks,
        purpose="show what checks found of a dataset or plan, or accept a failure by name",
        example='k25 checks web   or   k25 checks web --accept quarantine_within_budget --reason "known bad scans"',
    )
    checks.add_argument("subject", help="a dataset's name, a version's digest, or a plan's id")
    checks.add_argument("--accept", metavar="CHECK", help="let plans and trainers use it though this check failed")
    checks.add_argument("--reason", default="", metavar="TEXT", help="why; kept with the acceptance")
    checks.add_argument("--author", metavar="NAME", help="who; your login name if not given")


def _backfill(options: argparse.Namespace) -> int:
    open_lake()  # so that a missing lake is said before Dagster starts
    given = {name: getattr(options, name) for name in ("datasets", "days", "stage", "edition", "scale", "server")}
    words = [word for name, value in given.items() if value for word in (f"--{name}", value)]
    switches = [f"--{name.replace('_', '-')}" for name in ("parents", "again", "dry_run") if getattr(options, name)]
    return run_child("assets.backfill", *words, *switches)


def _checks(options: argparse.Namespace) -> int:
    from k25_pipelines import verdicts
    from k25_pipelines.catalog.registry import dataset_names, load_manifest

    lake, subject = open_lake(), options.subject
    if subject in dataset_names(lake):
        subject = load_manifest(lake, subject).digest
    if options.accept:
        author = options.author or getpass.getuser()
        verdicts.accept(lake, subject, options.accept, author=author, reason=options.reason)
    rows, refused = [], 0
    for verdict in verdicts.verdicts(lake, subject):
        told = verdicts.acceptance(lake, subject, verdict.check)
        refused += verdict.blocking and not verdict.passed and told is None
        state = "passed" if verdict.passed else f"accepted by {told['author']}: {told['reason']}" if told else "failed"
        figures = ", ".join(f"{name} {value}" for name, value in sorted(verdict.figures.items()))
        rows.append([verdict.check, "yes" if verdict.blocking else "no", state, figures])
    if not rows:
        print(f"nothing was checked of {subject}; checks run when Dagster materialises it")
        return 0
    print(aligned(rows, header=["check", "blocks", "state", "figures"]))
    return 1 if refused else 0
