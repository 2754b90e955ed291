"""A folder that appears whole or not at all: built aside, then renamed."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from k25_pipelines.errors import CheckpointError


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Yield a folder to fill; it gets its name when the body ends well, and is removed when it does not.

    What an attempt that was killed left beside it is removed first.

    Raises:
        CheckpointError: the folder is there already.
    """
    _refuse_existing(folder)
    aside = folder.with_name(f".{folder.name}.unfinished")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        yield aside
        _refuse_existing(folder)
        aside.rename(folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _refuse_existing(folder: Path) -> None:
    if folder.exists() or folder.is_symlink():
        raise CheckpointError(f"{folder} is there already; name a new folder, or remove it first")
