"""`k25 plan`: which samples fill which pack of which step."""

import argparse
import json
from pathlib import Path

from k25_pipelines.commands.parts import command, count, progress_bar
from k25_pipelines.environment import open_lake
from k25_pipelines.errors import K25Error


def add_commands(commands) -> None:
    """Add them to the parser."""
    plan = command(
        commands,
        "plan",
        _plan,
        purpose="write which samples fill which pack of which step; the last line printed is the plan id",
        example="k25 plan recipe.yaml --steps 200   or   k25 plan show PLAN",
    )
    plan.add_argument("words", nargs="+", metavar="RECIPE.yaml | show PLAN")
    plan.add_argument("--steps", type=count, help="the recipe's, if not given; more steps extend the same plan")
    plan.add_argument("--json", action="store_true")


def _plan(options: argparse.Namespace) -> None:
    from k25_pipelines import planning

    lake = open_lake()
    match options.words:
        case ["show", plan_id]:
            plan = planning.open_plan(lake, plan_id)
        case [recipe]:
            with progress_bar("plan") as progress:
                chosen = planning.read_recipe(Path(recipe))
                plan = planning.open_plan(
                    lake, planning.make_plan(lake, chosen, steps=options.steps, progress=progress)
                )
        case _:
            raise K25Error(f"plan takes RECIPE.yaml or `show PLAN`, not {' '.join(options.words)!r}")
    facts = plan.summary()
    if options.json:
        print(json.dumps({"plan": plan.id, **facts}, indent=1))
        return
    for name, value in facts.items():
        print(f"{name:<20} {json.dumps(value)}")
    print(plan.id)
