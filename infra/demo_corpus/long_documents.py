"""Long documents: modules of one standard-library package, or reference topics, joined until they are long."""

import sysconfig
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from pydoc_data.topics import topics

from infra.demo_corpus import code_files
from k25_pipelines.keys import random_key

LICENCE = "PSF-2.0"
MIN_CHARACTERS, MAX_CHARACTERS = 40_000, 120_000
"""A document ends at the first part that passes a length drawn between these; 40,000 are over 8,000 tokens."""
DOCUMENTS_PER_PACKAGE = 2
PACKAGES = frozenset(
    {
        "asyncio",
        "distutils",
        "email",
        "http",
        "idlelib",
        "importlib",
        "lib2to3",
        "logging",
        "multiprocessing",
        "tkinter",
        "unittest",
        "xml",
    }
)
"""Top-level packages that are shown here and not among the code files."""


def documents() -> Iterator[dict[str, str]]:
    """Yield long documents (key, text, licence, source): packages by name, then the reference's topics."""
    library = Path(sysconfig.get_paths()["stdlib"])
    for package in sorted(PACKAGES):
        paths = [path for path in code_files.module_paths(library) if path.parts[0] == package]
        texts = (
            (path.as_posix(), code_files.module_text(library / path)) for path in paths if not code_files.is_test(path)
        )
        parts = (f"# {name}\n{text}\n" for name, text in texts if text is not None)
        yield from islice(_joined(package, parts, source=f"package {package}"), DOCUMENTS_PER_PACKAGE)
    parts = (f"{name}\n\n{text}\n" for name, text in sorted(topics.items()))
    yield from _joined("topics", parts, source="pydoc topics of the language reference")


def _joined(name: str, parts: Iterator[str], *, source: str) -> Iterator[dict[str, str]]:
    """Yield documents of whole parts in their order; what is left at the end and short is dropped."""
    number, held, wanted = 0, "", _wanted_characters(name, 0)
    for part in parts:
        held += part
        if len(held) >= wanted:
            yield {
                "key": f"{name}-{number}",
                "text": held,
                "licence": LICENCE,
                "source": f"Python {sysconfig.get_python_version()} standard library, {source}",
            }
            number, held = number + 1, ""
            wanted = _wanted_characters(name, number)


def _wanted_characters(name: str, number: int) -> int:
    return MIN_CHARACTERS + random_key("long document", name, number) % (MAX_CHARACTERS - MIN_CHARACTERS)
