"""A takedown where the data was copied to another real server: copies go, and no later sync brings them back."""

import io
from uuid import uuid4

import pytest
from PIL import Image

from k25_pipelines import governance
from k25_pipelines.catalog.registry import Registration, index_dataset, register
from k25_pipelines.gallery.kept import keep_page, kept_names
from k25_pipelines.storage.store import open_store
from k25_pipelines.sync import SyncTarget, run
from k25_pipelines.sync.targets import write_target

WHY = {"reason": "asked by its author", "author": "the test"}


def png(shade: int) -> bytes:
    sink = io.BytesIO()
    Image.new("RGB", (56, 56), (shade, 90, 30)).save(sink, "PNG")
    return sink.getvalue()


@pytest.fixture
def pictures(two):
    """A dataset of three pictures in the lake's server, and its name."""
    name = f"pictures_{uuid4().hex[:8]}"
    for shade in (10, 120, 230):
        two.lake.put(f"raw/{name}/{shade:03}.png", png(shade))
    uri = f"{two.lake.url}/raw/{name}"
    register(two.lake, Registration(name=name, uri=uri, kind="images", licence="CC0-1.0", source="drawn for tests"))
    index_dataset(two.lake, name)
    return name


def test_copies_on_another_server_go_and_no_later_sync_brings_them_back(two, pictures):
    source = f"{two.lake.url}/raw/{pictures}"
    assert run(two.job(source))["copied"] == 3
    receipt = governance.forget(two.lake, [f"{pictures}:1"], **WHY)
    assert receipt["removed"]["synced"] == [{"url": f"{two.there.url}/120.png", "outcome": "deleted"}]
    assert sorted(two.copies()) == ["010.png", "230.png"]
    again = two.job(source)
    assert (again.selection.withheld, again.to_copy) == (1, ())
    run(again)
    assert sorted(two.copies()) == ["010.png", "230.png"]
    assert two.lake.head(f"raw/{pictures}/120.png").num_bytes > 0  # its owner's to delete


def test_a_new_copy_is_made_without_what_was_taken_down_before(two, pictures):
    governance.forget(two.lake, [f"{pictures}:1"], **WHY)
    job = two.job(f"{two.lake.url}/raw/{pictures}")
    assert (job.selection.withheld, run(job)["copied"], sorted(two.copies())) == (1, 2, ["010.png", "230.png"])


def test_pages_of_the_lake_go_and_so_do_their_copies(tmp_path):
    lake, copy = open_store(str(tmp_path / "lake")), open_store(str(tmp_path / "copy"))
    lake.put("raw/web/a.png", png(10))
    lake.put("raw/web/b.png", png(200))
    uri = f"{lake.url}/raw/web"
    register(lake, Registration(name="web", uri=uri, kind="images", licence="CC0-1.0", source="drawn for tests"))
    index_dataset(lake, "web")
    for store in (lake, copy):
        keep_page(store, "datasets/web/1/gallery", "<p>shows a.png</p>")
    write_target(lake, SyncTarget(source=lake.url, destination=copy.url))
    receipt = governance.forget(lake, ["web:0"], **WHY)
    assert (kept_names(lake), kept_names(copy), receipt["removed"]["pages"]) == ([], [], 1)
    assert {"url": f"{copy.url}/k25/pages/", "outcome": "pages deleted"} in receipt["removed"]["synced"]
