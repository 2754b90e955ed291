"""The reading order is the import order: each layer may import only what stands above it."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

READING_ORDER = [
    "k25_pipelines.errors",
    "k25_pipelines.keys",
    "k25_pipelines.storage",
    "k25_pipelines.catalog",
    "k25_pipelines.retention",
    "k25_pipelines.verdicts",
    "k25_pipelines.ingestion",
    "k25_pipelines.plan",
    "k25_pipelines.sample",
    "k25_pipelines.planning",
    "k25_pipelines.run_log",
    "k25_pipelines.runs",
    "k25_pipelines.timing",
    "k25_pipelines.prefetch",
    "k25_pipelines.loader",
    "k25_pipelines.sync",
    "k25_pipelines.naming",
    "k25_pipelines.lineage_tables",
    "k25_pipelines.sql",
    "k25_pipelines.lineage",
    "k25_pipelines.lake_tables",
    "k25_pipelines.insight",
    "k25_pipelines.gc",
    "k25_pipelines.replay",
    "k25_pipelines.governance",
    "k25_pipelines.gallery",
    "k25_pipelines.telemetry",
    "k25_pipelines.environment",
    "k25_pipelines.commands",
    "k25_pipelines.cli",
    "trainers",
    "assets",
]
"""Infra stands outside: it may import the data layer, and nobody imports it."""

ONE_DOOR = {
    "boto3": ["k25_pipelines/storage/s3.py"],
    "botocore": ["k25_pipelines/storage/s3.py"],
    "s3fs": [],
    "fsspec": ["k25_pipelines/storage/arrow.py"],
    "duckdb": ["k25_pipelines/sql.py"],
    "PIL": ["k25_pipelines/sample/", "k25_pipelines/catalog/probe.py"],
    "cv2": ["k25_pipelines/sample/"],
    "decord": ["k25_pipelines/sample/", "k25_pipelines/catalog/probe.py"],
    "simplejpeg": ["k25_pipelines/sample/"],
    "torch": ["trainers/"],
    "deepspeed": ["trainers/engine.py"],
    "dagster": ["assets/"],
    "openlineage": ["assets/openlineage.py"],
    "dagster_pipes": ["trainers/report.py", "assets/"],
    "datasketch": ["k25_pipelines/insight/"],
    "py3langid": ["k25_pipelines/insight/words.py"],
    "webdataset": [],
    "safetensors": ["trainers/interchange/"],
    "transformers": [],
}
"""Heavy library -> the places of k25_pipelines, trainers and assets that may import it."""

ASSETS_MAY_IMPORT_OF_TRAINERS = {"trainers.config", "trainers.recipes"}


def modules(*folders: str) -> list[Path]:
    return [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]


def imports_of(path: Path) -> set[str]:
    """Every absolute name a file imports, at its top or inside a function."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def layer_of(name: str) -> int | None:
    found = [place for place, layer in enumerate(READING_ORDER) if f"{name}.".startswith(f"{layer}.")]
    return found[0] if found else None


def dotted(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


@pytest.mark.parametrize("path", modules("k25_pipelines", "trainers", "assets"), ids=dotted)
def test_a_module_imports_only_what_stands_above_it(path):
    own = layer_of(dotted(path))
    if own is None:  # the package itself and its __main__
        return
    below = {name for name in imports_of(path) if (layer := layer_of(name)) is not None and layer > own}
    assert below == set()


@pytest.mark.parametrize("path", modules("k25_pipelines", "trainers", "assets"), ids=dotted)
def test_a_heavy_library_has_one_door(path):
    place = str(path.relative_to(ROOT))
    through_a_wall = {
        name
        for name in imports_of(path)
        if (doors := ONE_DOOR.get(name.split(".")[0])) is not None and not any(place.startswith(door) for door in doors)
    }
    assert through_a_wall == set()


@pytest.mark.parametrize("path", modules("k25_pipelines", "trainers", "assets"), ids=dotted)
def test_nobody_imports_infra(path):
    assert {name for name in imports_of(path) if name.split(".")[0] == "infra"} == set()


@pytest.mark.parametrize("path", modules("assets"), ids=dotted)
def test_assets_import_only_plain_data_from_trainers(path):
    taken = {name for name in imports_of(path) if name.split(".")[0] == "trainers"}
    allowed = {name for name in taken if any(f"{name}.".startswith(f"{ok}.") for ok in ASSETS_MAY_IMPORT_OF_TRAINERS)}
    assert taken == allowed


@pytest.mark.parametrize("path", modules("k25_pipelines/plan"), ids=dotted)
def test_a_plan_does_no_io(path):
    doors = {
        "os",
        "io",
        "pathlib",
        "socket",
        "subprocess",
        "urllib",
        "requests",
        "time",
        "datetime",
        "random",
        "tempfile",
    }
    assert {name for name in imports_of(path) if name.split(".")[0] in doors} == set()
