"""`k25 cache`: what it shows, what it removes, and that it touches nothing else."""

import argparse
import json
import os
import time
from datetime import datetime
from pathlib import Path

import pytest

from k25_pipelines.commands import cache as cache_command
from k25_pipelines.commands.parts import Parser
from k25_pipelines.errors import StoreError
from k25_pipelines.storage.cache import ChunkCache
from k25_pipelines.storage.store import open_store

MIB = 2**20


def run(*words: object) -> int:
    parser = Parser(prog="k25")
    cache_command.add_commands(parser.add_subparsers(dest="command", required=True))
    options: argparse.Namespace = parser.parse_args(["cache", *map(str, words)])
    return options.run(options) or 0


@pytest.fixture
def folder(tmp_path) -> Path:
    """A cache of three chunks of 1 MiB, last used in 2001, and what a dead writer left."""
    store = open_store("memory://cache-command")
    store.put("object", bytes(3 * MIB))
    cache = ChunkCache(tmp_path / "cache", disk_bytes=64 * MIB)
    for number in range(3):
        cache.read(store, "object", number * MIB, MIB, "")
    chunks = list((tmp_path / "cache").glob("??/*"))
    for chunk in chunks:
        os.utime(chunk, (1_000_000_000, 1_000_000_000))
    left = chunks[0].with_name(".left")
    left.write_bytes(bytes(MIB))
    os.utime(left, (time.time() - 7200,) * 2)
    return tmp_path / "cache"


SIZE = 3 * (MIB + 17 * 4)


def test_show_tells_files_size_limit_and_oldest_use(folder, capsys):
    assert run("show", "--folder", folder) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[:3] == [["folder", str(folder)], ["files", "3"], ["size", "3.0", "MiB", "of", "64.0", "MiB"]]
    assert lines[3][:2] == ["oldest", "use"]
    assert datetime.fromisoformat(lines[3][2]).timestamp() == 1e9
    assert " ".join(lines[4]) == "left over 1 files, 1.0 MiB, of writers that died; `k25 cache clear` removes them"
    assert len(lines) == 5


def test_show_prints_its_facts_as_json(folder, capsys):
    assert run("show", "--folder", folder, "--json") == 0
    assert json.loads(capsys.readouterr().out) == {
        "folder": str(folder),
        "files": 3,
        "bytes": SIZE,
        "limit": 64 * MIB,
        "oldest_use": 1e9,
        "stale_files": 1,
        "stale_bytes": MIB,
    }


def test_clear_says_what_it_removed_and_leaves_an_empty_cache(folder, capsys):
    assert run("clear", "--folder", folder) == 0
    assert capsys.readouterr().out == f"removed 4 files, 4.0 MiB, from {folder}\n"
    assert list(folder.glob("??/*")) == []
    assert run("clear", "--folder", folder, "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"folder": str(folder), "files": 0, "bytes": 0}


def test_a_cache_that_was_never_used_is_empty(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(cache_command, "FOLDER", tmp_path / "none")
    assert (run("show"), run("clear")) == (0, 0)
    assert capsys.readouterr().out == (
        f"folder       {tmp_path / 'none'}\nfiles        0\nsize         0.0 MiB\n"
        f"removed 0 files, 0.0 MiB, from {tmp_path / 'none'}\n"
    )


def test_a_folder_that_is_no_cache_is_refused_and_left_alone(tmp_path):
    (tmp_path / "mine").write_bytes(b"mine")
    for action in ("show", "clear"):
        with pytest.raises(StoreError, match=f"cache folder {tmp_path}: no cache lies there; name the folder"):
            run(action, "--folder", tmp_path)
    assert (tmp_path / "mine").read_bytes() == b"mine"
