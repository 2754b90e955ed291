"""`k25 plan` and `k25 quote`: which samples fill which pack of which step, what differs, and what it will cost."""

import argparse
import getpass
import json
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import yaml

from k25_pipelines.commands.parts import Parser, command, count, progress_bar
from k25_pipelines.commands.plan_pages import diff_page, plan_page, quote_page
from k25_pipelines.environment import open_lake
from k25_pipelines.errors import K25Error

SELECTORS = "NAME, NAME:LINE, NAME/KEY, step=N, step=N/pack=M, licence=SPDX or source=TEXT"


def add_commands(commands) -> None:
    """Add them to the parser."""
    plan = command(
        commands,
        "plan",
        _plan,
        purpose="write which samples fill which pack of which step; the last line printed is the plan id",
        example="k25 plan recipe.yaml --steps 200\n\n"
        "a plan that there is (each with --help):\n"
        "  k25 plan show PLAN                                          what it amounts to\n"
        "  k25 plan diff PLAN OTHER                                    what differs, from which step on\n"
        "  k25 plan fork PLAN --at-step 900 --without code --reason 'loss spike'\n"
        "  k25 plan amend PLAN --from-step 900 --set sources.wiki.weight=9 --reason 'more text'",
    )
    plan.add_argument("recipe", type=Path, metavar="RECIPE.yaml")
    plan.add_argument("--steps", type=count, help="the recipe's, if not given; more steps extend the same plan")
    plan.add_argument("--json", action="store_true", help="facts as JSON")
    _with_verbs(plan, {"show": _show_parser, "diff": _diff_parser, "fork": _fork_parser, "amend": _amend_parser})
    _add_quote(commands)


def _with_verbs(parser: argparse.ArgumentParser, verbs: dict[str, Callable[[], argparse.ArgumentParser]]) -> None:
    """Let a parser hand over to another one where its first word is a verb."""
    own = parser.parse_known_args

    def parse_known_args(args: Sequence[str], namespace: Any = None) -> tuple[Any, list[str]]:
        if args and args[0] in verbs:
            return verbs[args[0]]().parse_known_args(args[1:], namespace)
        return own(args, namespace)

    setattr(parser, "parse_known_args", parse_known_args)  # noqa: B010  the type checker sees a method there


def _verb(name: str, run: Callable, *, purpose: str, example: str) -> argparse.ArgumentParser:
    parser = Parser(
        prog=f"k25 plan {name}",
        description=f"{purpose[0].upper()}{purpose[1:]}.",
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    parser.add_argument("plan", metavar="PLAN")
    parser.add_argument("--json", action="store_true", help="facts as JSON")
    return parser


def _show_parser() -> argparse.ArgumentParser:
    parser = _verb(
        "show", _show, purpose="show what a plan amounts to", example="k25 plan show 1a2b... --project-to 100000"
    )
    parser.add_argument("--project-to", type=count, metavar="STEP", help="epochs of each source at that step")
    return parser


def _diff_parser() -> argparse.ArgumentParser:
    purpose = "show what differs between two plans: first step, recipes, datasets, exclusions, tokens, samples"
    parser = _verb("diff", _diff, purpose=purpose, example="k25 plan diff 1a2b... 3c4d...")
    parser.add_argument("other", metavar="OTHER")
    parser.add_argument("--steps", type=count, default=1000, help="most steps whose samples are compared")
    return parser


def _fork_parser() -> argparse.ArgumentParser:
    parser = _verb(
        "fork",
        _fork,
        purpose="write a plan that is another one's up to a step and goes on otherwise; earlier steps are shared",
        example="k25 plan fork 1a2b... --at-step 900 --without code:17 --without step=912 --reason 'loss spike'",
    )
    parser.add_argument("--at-step", type=_step, required=True, metavar="N", help="the first step that may differ")
    parser.add_argument(
        "--recipe",
        type=Path,
        metavar="FILE",
        help="what holds from there on; if not given, the plan's newest recipe, as after its last amend",
    )
    _add_exclusions(parser)
    parser.add_argument("--steps", type=count, help="how far to plan; the recipe's if not given")
    _add_why(parser)
    return parser


def _amend_parser() -> argparse.ArgumentParser:
    parser = _verb(
        "amend",
        _amend,
        purpose="change a plan from a step on for the runs that follow it, while they are going on",
        example="k25 plan amend 1a2b... --from-step 900 --set sources.wiki.weight=9 --set packs_per_step=16 "
        "--reason 'more text'",
    )
    parser.add_argument("--from-step", type=_step, required=True, metavar="N", help="a step that no run has read yet")
    changes = parser.add_mutually_exclusive_group()
    changes.add_argument("--recipe", type=Path, metavar="FILE", help="what holds from there on")
    changes.add_argument("--set", action="append", metavar="FIELD=VALUE", help="a field of the recipe; repeatable")
    _add_exclusions(parser)
    parser.add_argument(
        "--run", dest="of_run", metavar="RUN", help="only this run; all that follow the plan if not given"
    )
    _add_why(parser)
    return parser


def _add_exclusions(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--without", action="append", default=[], metavar="SELECTOR", help=f"{SELECTORS}; repeatable")
    parser.add_argument(
        "--dataset", action="append", default=[], metavar="NAME[=DIGEST]", help="go on with its newest, or that version"
    )


def _add_why(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--reason", required=True, help="why; kept in the plan")
    parser.add_argument("--author", default=None, metavar="NAME", help="who; your login name if not given")


def _add_quote(commands) -> None:
    parser = command(
        commands,
        "quote",
        _quote,
        purpose="what a recipe will take before it starts: tokens, epochs, requests, memory, cores, money",
        example="k25 quote recipe.yaml --gpus 64 --tokens-per-gpu-second 3500 --usd-per-gpu-hour 1.9",
    )
    parser.add_argument("recipe", type=Path, metavar="RECIPE.yaml")
    parser.add_argument("--gpus", type=count, default=1)
    parser.add_argument("--steps", type=count, help="the recipe's, if not given")
    for name, default in _rates().items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=_amount, default=default, help="taken: %(default)s")
    parser.add_argument("--json", action="store_true", help="facts as JSON")


def _plan(options: argparse.Namespace) -> None:
    from k25_pipelines import planning

    lake = open_lake()
    recipe = planning.read_recipe(options.recipe)
    with progress_bar("plan") as progress:
        made = planning.make_plan(lake, recipe, steps=options.steps, progress=progress)
    _tell_plan(planning.open_plan(lake, made), options, steps=recipe.steps)


def _show(options: argparse.Namespace) -> None:
    from k25_pipelines import planning

    _tell_plan(planning.open_plan(open_lake(), options.plan), options, steps=options.project_to)


def _diff(options: argparse.Namespace) -> None:
    from k25_pipelines import planning

    with progress_bar("diff") as progress:
        told = planning.diff_plans(
            open_lake(), options.plan, options.other, most_steps=options.steps, progress=progress
        )
    print(json.dumps(told, indent=1) if options.json else diff_page(told))


def _fork(options: argparse.Namespace) -> None:
    from k25_pipelines import planning

    lake = open_lake()
    with progress_bar("fork") as progress:
        made = planning.fork_plan(
            lake,
            options.plan,
            at_step=options.at_step,
            recipe=options.recipe and planning.read_recipe(options.recipe),
            without=options.without,
            datasets=dict(_version(lake, words) for words in options.dataset),
            steps=options.steps,
            reason=options.reason,
            author=_author(options),
            progress=progress,
        )
    _tell_plan(planning.open_plan(lake, made), options)


def _amend(options: argparse.Namespace) -> None:
    from k25_pipelines import planning, runs

    lake = open_lake()
    with progress_bar("amend") as progress:
        made = runs.amend(
            lake,
            options.plan,
            from_step=options.from_step,
            recipe=options.recipe and planning.read_recipe(options.recipe),
            changes=dict(_setting(words) for words in options.set or []),
            without=options.without,
            datasets=dict(_version(lake, words) for words in options.dataset),
            reason=options.reason,
            author=_author(options),
            run=options.of_run,
            progress=progress,
        )
    _tell_plan(planning.open_plan(lake, made), options)


def _quote(options: argparse.Namespace) -> int:
    from k25_pipelines import planning

    recipe = planning.read_recipe(options.recipe)
    rates = planning.Rates(**{name: getattr(options, name) for name in _rates()})
    with progress_bar("quote") as progress:
        told = planning.quote(
            open_lake(),
            replace(recipe, steps=options.steps or recipe.steps),
            gpus=options.gpus,
            rates=rates,
            progress=progress,
        )
    print(json.dumps(told, indent=1) if options.json else quote_page(told))
    return 1 if told["problems"] else 0


def _tell_plan(plan, options: argparse.Namespace, *, steps: int | None = None) -> None:
    """Print what a plan amounts to; its id is the last line."""
    facts = plan.summary(steps=steps)
    if options.json:
        print(json.dumps({"plan": plan.id, "parent": plan.parent and dict(plan.parent), **facts}, indent=1))
        return
    print(plan_page(plan, facts, steps=steps))
    print(plan.id)


def _author(options: argparse.Namespace) -> str:
    """Return who: as said, else the login name."""
    try:
        return options.author or getpass.getuser()
    except (KeyError, OSError) as error:  # a container's user need not have a name
        raise K25Error("this user has no login name; give --author NAME") from error


def _rates() -> dict[str, float]:
    """Return names and defaults of what a quote takes for granted."""
    from k25_pipelines.plan.rates import Rates

    return {entry.name: entry.default for entry in fields(Rates)}  # pyright: ignore[reportReturnType]


def _version(lake, words: str) -> tuple[str, str]:
    """Return dataset and manifest digest that NAME or NAME=DIGEST means."""
    from k25_pipelines.catalog.registry import load_manifest

    name, _, digest = words.partition("=")
    return name, digest or load_manifest(lake, name).digest


def _setting(words: str) -> tuple[str, Any]:
    name, found, value = words.partition("=")
    if not found or not name:
        raise K25Error(f"--set {words!r}: write FIELD=VALUE, such as sources.wiki.weight=9")
    try:
        return name, yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise K25Error(f"--set {words!r}: {value!r} is no YAML value") from error


def _step(words: str) -> int:
    if not words.isdecimal():
        raise argparse.ArgumentTypeError(f"{words!r} is not a step; write a whole number from 0 on")
    return int(words)


def _amount(words: str) -> float:
    try:
        amount = float(words)
    except ValueError:
        amount = -1.0
    if not 0 <= amount < float("inf"):
        raise argparse.ArgumentTypeError(f"{words!r} is not a number of at least 0")
    return amount
