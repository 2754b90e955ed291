"""The read-only server of the lake's pages: what is kept is given, what is not is made, and nothing else answers."""

import re
import urllib.error
import urllib.request

import pytest

from k25_pipelines import governance
from k25_pipelines.catalog.registry import load_manifest
from k25_pipelines.errors import K25Error
from k25_pipelines.gallery.kept import address, gallery_name, keep_page, sample_name, step_name
from k25_pipelines.gallery.serving import PageServer
from tests.assets import tiny_lake
from tests.fed_run import planned


@pytest.fixture(scope="module")
def lake(tmp_path_factory):
    return tiny_lake.index_all(tiny_lake.build(tmp_path_factory.mktemp("lake"), num_broken=0))


@pytest.fixture(scope="module")
def server(lake):
    server = PageServer(lake)
    yield server
    server.close()


def get(server: PageServer, path: str, **headers: str) -> tuple[int, str]:
    request = urllib.request.Request(f"{server.url}{path}", headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_a_page_that_is_kept_is_given_as_it_is_and_listed(lake, server):
    keep_page(lake, "plans/abc/balance", "<p>even</p>")
    assert get(server, "/plans/abc/balance.html") == (200, "<p>even</p>")
    assert "href='/plans/abc/balance.html'" in get(server, "/")[1]


def test_pages_that_are_not_kept_are_made_and_lead_to_each_other(lake, server):
    plan = planned(lake)
    status, step = get(server, address(step_name(plan, 1)))
    assert (status, "step-0.html" in step, "step-2.html" in step) == (200, True, True)
    samples = re.findall(r"href='(/samples/[a-z_]+/\d+\.html)'", step)
    assert get(server, samples[0])[0] == 200
    version = load_manifest(lake, "grounding").digest
    gallery = get(server, address(gallery_name("grounding", version)))[1]
    assert address(sample_name("grounding", 3)) in gallery


@pytest.mark.parametrize(
    "path",
    [
        "/plans/none/step-0.html",
        "/datasets/none/1/gallery.html",
        "/samples/wiki/999999.html",
        "/checkpoints/none/00000001.html",
        "/../../raw/datasets.json",
        "/%2e%2e/%2e%2e/raw/datasets.json",
        "/plans/x/balance.html",
    ],
)
def test_what_there_is_not_is_said(server, path):
    status, words = get(server, path)
    assert (status, "No such page" in words) == (404, True)


def test_a_name_that_was_made_to_lead_here_is_refused(server):
    assert get(server, "/", Host="evil.example")[0] == 403


def test_nothing_can_be_written(server):
    request = urllib.request.Request(f"{server.url}/plans/abc/balance.html", data=b"x", method="PUT")
    with pytest.raises(urllib.error.HTTPError, match="501"):
        urllib.request.urlopen(request, timeout=10)


def test_a_forgotten_sample_is_on_no_page_that_is_made(tmp_path):
    lake = tiny_lake.index_all(tiny_lake.build(tmp_path, num_broken=0))
    version = load_manifest(lake, "clips").digest
    keep_page(lake, gallery_name("clips", version), "<p>all four</p>")
    governance.forget(lake, ["clips:2"], reason="asked", author="test")
    server = PageServer(lake)
    try:
        gallery = get(server, address(gallery_name("clips", version)))[1]
    finally:
        server.close()
    assert ("all four" in gallery, "clips:1<" in gallery, "clips:2<" in gallery) == (False, True, False)


def test_a_taken_port_is_said(server, lake):
    with pytest.raises(K25Error, match=r"pages cannot be served on port \d+"):
        PageServer(lake, port=int(server.url.rpartition(":")[2]))
