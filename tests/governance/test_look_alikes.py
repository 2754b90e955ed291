"""`k25 forget --near`: what merely looks alike is shown before it goes, and may stay."""

import io
import json
import re
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

from k25_pipelines.catalog.registry import Registration, index_dataset, register
from k25_pipelines.planning import tombstones
from k25_pipelines.storage.store import open_store
from tests.fed_run import k25


def drawing(*, mark: bool) -> bytes:
    """A ramp with a block; a small mark changes few bits of its perceptual hash, or none."""
    image = Image.radial_gradient("L").resize((112, 112)).convert("RGB")
    ImageDraw.Draw(image).rectangle((20, 30, 60, 50), fill=(200, 30, 30))
    if mark:
        ImageDraw.Draw(image).rectangle((100, 100, 104, 104), fill=(0, 0, 0))
    sink = io.BytesIO()
    image.save(sink, "PNG")
    return sink.getvalue()


@pytest.fixture
def lake(tmp_path, monkeypatch):
    lake = open_store(str(tmp_path / "lake"))
    lake.put("raw/web/asked.png", drawing(mark=False))
    lake.put("raw/web/other.png", drawing(mark=True))
    register(
        lake,
        Registration(name="web", uri=f"{lake.url}/raw/web", kind="images", licence="CC0-1.0", source="drawn for tests"),
    )
    index_dataset(lake, "web")
    monkeypatch.setenv("K25_LAKE", lake.url)
    monkeypatch.setattr("k25_pipelines.commands.governance.STATE", tmp_path / "state")
    (tmp_path / "theirs.png").write_bytes(drawing(mark=False))
    return lake


def ask(lake, *words: str) -> int:
    theirs = Path(lake.url).parent / "theirs.png"
    return k25("forget", "--image", theirs, "--near", "8", "--reason", "asked", "--author", "test", *words)


def word_of(words: str) -> str:
    found = re.search(r"--seen ([0-9a-f]{8})", words)
    assert found, words
    return found[1]


def test_nothing_goes_before_the_look_alikes_were_seen(lake, capsys, tmp_path):
    assert ask(lake) == 2
    said = capsys.readouterr().err
    assert "nothing was changed: 1 picture only looks alike" in said
    assert len(tombstones(lake)) == 0
    [page] = (tmp_path / "state" / "gallery").glob("look-alikes-*.html")
    assert str(page) in said
    assert "<b>web:1</b><span>" in page.read_text()
    assert "Asked for" in page.read_text()


def test_what_was_seen_goes(lake, capsys):
    ask(lake)
    assert ask(lake, "--seen", word_of(capsys.readouterr().err)) == 0
    assert list(tombstones(lake)) == [("web", 0), ("web", 1)]


def test_a_look_alike_that_shows_something_else_may_stay(lake, capsys):
    ask(lake)
    assert ask(lake, "--seen", word_of(capsys.readouterr().err), "--spare", "web:1", "--json") == 0
    assert list(tombstones(lake)) == [("web", 0)]
    assert json.loads(capsys.readouterr().out)["num_samples"] == 1


def test_an_exact_copy_cannot_be_spared(lake, capsys):
    assert ask(lake, "--spare", "web:0") == 2
    assert "web:0 is no look-alike of what is asked for" in capsys.readouterr().err
