"""`k25 up`, `down`, `demo`, `ui`: the embedded server, the demo and the web page, each a child process."""

import argparse

from k25_pipelines.commands.parts import command
from k25_pipelines.environment import keep_server, run_child, served_lake


def add_commands(commands) -> None:
    """Add them to the parser."""
    up = command(
        commands, "up", _up, purpose="start the embedded S3 server", example="k25 up --background && . .k25/env"
    )
    up.add_argument("--port", type=int, help="a free one if not given")
    up.add_argument("--background", action="store_true", help="return when it answers; `k25 down` stops it")
    command(commands, "down", _down, purpose="stop the embedded S3 server", example="k25 down")
    demo = command(
        commands, "demo", _demo, purpose="build the demo lake and run the main job on it", example="k25 demo"
    )
    demo.add_argument("--scale", choices=["demo", "toy"], default="demo", help="toy: seconds a stage, for a look")
    ui = command(commands, "ui", _ui, purpose="open the Dagster web page over the lake", example="k25 ui --port 3000")
    ui.add_argument("--port", type=int, default=3000)


def _up(options: argparse.Namespace) -> int:
    keep_server()
    words = ["up", *(["--port", str(options.port)] if options.port else [])]
    return run_child("infra.s3_server", *words, *(["--background"] if options.background else []))


def _down(options: argparse.Namespace) -> int:
    return run_child("infra.s3_server", "down")


def _demo(options: argparse.Namespace) -> int:
    """Run the demo on the lake of the environment, or on the embedded server, which is stopped again."""
    with served_lake():
        return run_child("infra.demo_corpus") or run_child("assets.demo", "--scale", options.scale)


def _ui(options: argparse.Namespace) -> int:
    with served_lake():
        return run_child("assets.web", "--port", str(options.port))
