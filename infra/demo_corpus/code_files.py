"""Code: the modules of the Python standard library, as JSON lines with their path."""

import json
import sysconfig
from collections.abc import Iterator
from pathlib import Path

LICENCE = "PSF-2.0"
MAX_TEST_BYTES = 100_000
MIN_BYTES = 200
FILES_PER_SHARD = 300
LEFT_OUT = frozenset({"site-packages", "dist-packages", "__pycache__", "idle_test", "pydoc_data", "lib-dynload"})
"""Folders that are no part of the library, or no code to learn from."""


def documents(*, without: frozenset[str] = frozenset()) -> Iterator[dict[str, str]]:
    """Yield code files (path, content, licence, source) of the standard library, packages before tests.

    Args:
        without: top-level packages to leave out, those that another dataset shows.
    """
    library = Path(sysconfig.get_paths()["stdlib"])
    for path in module_paths(library):
        content = module_text(library / path)
        if path.parts[0] in without or content is None or (is_test(path) and len(content) > MAX_TEST_BYTES):
            continue
        yield {
            "path": path.as_posix(),
            "content": content,
            "licence": LICENCE,
            "source": f"Python {sysconfig.get_python_version()} standard library, {path.as_posix()}",
        }


def module_paths(library: Path) -> list[Path]:
    """Return the modules below `library`, relative to it, sorted, the library's tests last."""
    found = [path.relative_to(library) for path in library.rglob("*.py")]
    kept = [path for path in found if not LEFT_OUT.intersection(path.parts)]
    return sorted(kept, key=lambda path: (is_test(path), path.as_posix()))


def is_test(path: Path) -> bool:
    """Return whether a module of the library is one of its tests."""
    return bool({"test", "tests"}.intersection(path.parts[:-1]))


def shards(rows: list[dict[str, str]]) -> Iterator[tuple[str, bytes]]:
    """Yield (file name, bytes) of the JSONL shards that hold `rows` in order."""
    for number, first in enumerate(range(0, len(rows), FILES_PER_SHARD)):
        yield f"{number:05d}.jsonl", jsonl(rows[first : first + FILES_PER_SHARD])


def jsonl(rows: list[dict]) -> bytes:
    """Return rows as JSON lines in UTF-8, keys in their order, no escapes that UTF-8 does not need."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def module_text(path: Path) -> str | None:
    """Return the text of a module, None where it is tiny or not UTF-8 (the library tests other encodings)."""
    try:
        content = path.read_bytes().decode("utf-8")
    except UnicodeDecodeError:
        return None
    return content if len(content) >= MIN_BYTES else None
