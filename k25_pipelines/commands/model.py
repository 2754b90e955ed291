"""`k25 export` and `k25 import`: a checkpoint to and from the layout that others load."""

import argparse
from pathlib import Path

from k25_pipelines.commands.parts import command
from k25_pipelines.environment import open_lake, run_child

DTYPES = ("float32", "bfloat16", "float16")


def add_commands(commands) -> None:
    """Add them to the parser."""
    export = command(
        commands,
        "export",
        _export,
        purpose="write a checkpoint as safetensors with the released names, as transformers loads it",
        example="k25 export joint-0123456789ab/00000070 --to exported\n"
        "  k25 export adapted-0123456789ab/00000100 --to exported --merge --dtype bfloat16\n"
        "  k25 export k2_5 --dry-run --dtype bfloat16",
    )
    export.add_argument("checkpoint", help="RUN/STEP, as its key ends after k25/checkpoints/")
    where = export.add_mutually_exclusive_group(required=True)
    where.add_argument("--to", type=Path, metavar="FOLDER", help="is made; appears when it is whole")
    where.add_argument(
        "--dry-run", action="store_true", help="say what would be written, of a checkpoint or of a model's name"
    )
    export.add_argument("--dtype", choices=DTYPES, help="of the weights; as imported, else float32, if not given")
    export.add_argument("--tokenizer", help="default, a digest or a URI; that of the checkpoint's plan if not given")
    export.add_argument("--merge", action="store_true", help="add low-rank adapters to the weights; else they go alone")
    load = command(
        commands,
        "import",
        _import,
        purpose="publish a folder of released names as a checkpoint that a stage can start from; prints its key",
        example="k25 import exported",
    )
    load.add_argument("folder", type=Path, help="config.json and safetensors, as `k25 export` writes them")
    load.add_argument("--tokenizer", help="default, a digest or a URI, where the folder has none that fits")


def _export(options: argparse.Namespace) -> int:
    where = ["--to", str(options.to.absolute())] if options.to else ["--dry-run"]
    words = [options.checkpoint, *where, *_common(options)]
    words += ["--dtype", options.dtype] if options.dtype else []
    return run_child("trainers.interchange.export", *words, *(["--merge"] if options.merge else []))


def _import(options: argparse.Namespace) -> int:
    return run_child("trainers.interchange.importing", str(options.folder.absolute()), *_common(options))


def _common(options: argparse.Namespace) -> list[str]:
    named = ["--tokenizer", _absolute(options.tokenizer)] if options.tokenizer else []
    return ["--store", open_lake().url, *named]


def _absolute(tokenizer: str) -> str:
    """Return a tokenizer's path as the child finds it, which runs in another folder; other names as they are."""
    path = Path(tokenizer)
    return str(path.absolute()) if path.is_file() else tokenizer
