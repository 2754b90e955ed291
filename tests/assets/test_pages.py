"""What a materialisation leads to: pages in the lake, statistics beside them, lineage events, runs in MLflow."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

import dagster as dg
import pytest

from assets.experiments import mlflow_run
from assets.openlineage import emit, sensors
from k25_pipelines.catalog.registry import load_manifest
from k25_pipelines.errors import K25Error
from k25_pipelines.gallery.kept import kept_names, kept_page

BASE = "http://127.0.0.1:3080"


class Receiver:
    """A local HTTP server that keeps what it is sent and answers as it is told."""

    def __init__(self, answers=None):
        outer, self.received = self, []

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                self.do_POST()

            def do_POST(self):
                length = int(self.headers.get("Content-Length") or 0)
                body = json.loads(self.rfile.read(length)) if length else None
                outer.received.append((urlsplit(self.path).path, body))
                reply = json.dumps((answers or {}).get(urlsplit(self.path).path, {})).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(reply)))
                self.end_headers()
                self.wfile.write(reply)

            def log_message(self, format, *args):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def receiver():
    made = []

    def start(answers=None):
        made.append(Receiver(answers))
        return made[-1]

    yield start
    for each in made:
        each.server.shutdown()
        each.server.server_close()


def made_of(result, name):
    [made] = result.asset_materializations_for_node(name)
    return {key: entry.value for key, entry in made.metadata.items()}


def page_behind(place, url):
    assert url.startswith(f"{BASE}/")
    return (kept_page(place.lake, url.removeprefix(f"{BASE}/").removesuffix(".html")) or b"").decode()


def test_a_dataset_leads_to_its_samples_and_its_statistics(indexed):
    result = indexed.make(partition="grounding", job="index_datasets")
    manifest, look = made_of(result, "dataset_manifest"), made_of(result, "dataset_insight")
    version = load_manifest(indexed.lake, "grounding").digest
    assert manifest["gallery_page"] == f"{BASE}/datasets/grounding/{version}/gallery.html"
    assert "href='/samples/grounding/" in page_behind(indexed, manifest["gallery_page"])
    assert "grounding in numbers" in page_behind(indexed, look["insight_page"])
    assert (look["dagster/row_count"], look["unreadable"], look["vision_share"] > 0) == (20, 0, True)
    assert look["licences"] == "| licence | samples | share |\n| --- | --- | --- |\n| CC0-1.0 | 20 | 100.0% |"
    assert look["sizes"].startswith("![](data:image/png;base64,")
    assert next(iter(manifest)) == "gallery_page"  # what people look for comes first


def test_what_a_dataset_shares_with_another_is_told_when_asked_for(indexed):
    config = {"ops": {"dataset_insight": {"config": {"against": ["captions_heldout"]}}}}
    result = indexed.defs.resolve_job_def("index_datasets").execute_in_process(
        instance=indexed.instance,
        partition_key="captions",
        asset_selection=[dg.AssetKey("dataset_insight")],
        run_config=config,
    )
    page = page_behind(indexed, made_of(result, "dataset_insight")["insight_page"])
    assert "compared with captions_heldout" in page


def test_a_plan_leads_to_its_balance_and_its_first_step(indexed):
    told = made_of(indexed.make("joint_plan"), "joint_plan")
    assert "Balance of the steps" in page_behind(indexed, told["balance_page"])
    assert "Map of the packs" in page_behind(indexed, told["step_page"])
    assert told["balance"].count("\n") == 4
    assert told["imbalance"].startswith("![](data:image/png;base64,")


def test_a_page_that_cannot_be_made_fails_no_asset(indexed, monkeypatch):
    def broken(*_, **__):
        raise K25Error("no room")

    monkeypatch.setattr("k25_pipelines.gallery.serving.step_page", broken)
    told = made_of(indexed.make("warmup_plan"), "warmup_plan")
    assert told["step_page"] == "not written: no room"
    assert f"plans/{told['plan']}/balance" in kept_names(indexed.lake)


def test_a_run_is_told_with_what_it_read_and_made(indexed, receiver, monkeypatch):
    from openlineage.client import OpenLineageClient

    collector = receiver()
    monkeypatch.setenv("OPENLINEAGE_URL", collector.url)
    result = indexed.make("dataset_manifest", "dataset_lengths", partition="wiki", job="index_datasets")
    run = indexed.instance.get_run_by_id(result.run_id)
    assert run is not None
    for _ in range(2):  # told twice, it is the same
        assert emit(OpenLineageClient(), indexed.instance, run, lake=indexed.lake.url) == 6
    told = [body for _, body in collector.received]
    assert [json.dumps(event) for event in told[:6]] == [json.dumps(event) for event in told[6:]]
    ends = {event["job"]["name"]: event for event in told[:6] if event["eventType"] == "COMPLETE"}
    lengths = ends["index_datasets.dataset_lengths"]
    version = load_manifest(indexed.lake, "wiki").digest
    assert [(each["namespace"], each["name"]) for each in lengths["outputs"]] == [
        (indexed.lake.url, "dataset_lengths/wiki")
    ]
    assert [(each["name"], each["facets"]["version"]["datasetVersion"]) for each in lengths["inputs"]] == [
        ("dataset_manifest/wiki", version)
    ]
    made = ends["index_datasets.dataset_manifest"]["outputs"][0]
    assert (made["facets"]["version"]["datasetVersion"], made["outputFacets"]["outputStatistics"]["rowCount"]) == (
        version,
        load_manifest(indexed.lake, "wiki").num_lines,
    )
    assert lengths["run"]["facets"]["parent"]["run"]["runId"] == result.run_id
    assert ends["index_datasets"]["run"]["runId"] == result.run_id


def test_a_failed_step_is_told_as_one(place, receiver, monkeypatch):
    from openlineage.client import OpenLineageClient

    collector = receiver()
    monkeypatch.setenv("OPENLINEAGE_URL", collector.url)
    result = place.make("joint_plan", raise_on_error=False)  # nothing is indexed
    run = place.instance.get_run_by_id(result.run_id)
    assert run is not None
    emit(OpenLineageClient(), place.instance, run, lake=place.lake.url)
    ends = {body["job"]["name"]: body["eventType"] for _, body in collector.received if body["eventType"] != "START"}
    assert ends == {"demo.joint_plan": "FAIL", "demo": "FAIL"}


def test_the_sensor_tells_a_run_that_ended(indexed, receiver, monkeypatch):
    collector = receiver()
    monkeypatch.setenv("OPENLINEAGE_URL", collector.url)
    result = indexed.make("lake_catalog")
    run = indexed.instance.get_run_by_id(result.run_id)
    assert run is not None
    [sensor] = [each for each in sensors() if each.name == "openlineage_complete"]
    context = dg.build_run_status_sensor_context(
        sensor_name=sensor.name,
        dagster_instance=indexed.instance,
        dagster_run=run,
        dagster_event=result.get_run_success_event(),
        resources={"lake": indexed.resources["lake"]},
    )
    sensor(context)
    [end] = [body for _, body in collector.received if body["job"]["name"] == "demo.lake_catalog" and body["outputs"]]
    names = {each["name"] for each in end["inputs"]}
    assert {"dataset_manifest/wiki", "dataset_lengths/clips"} <= names


def test_nothing_is_told_unless_a_collector_is_named(monkeypatch):
    monkeypatch.delenv("OPENLINEAGE_URL", raising=False)
    assert sensors() == []
    monkeypatch.setenv("OPENLINEAGE_URL", "http://127.0.0.1:1")
    assert [sensor.name for sensor in sensors()] == ["openlineage_complete", "openlineage_fail", "openlineage_abort"]


def test_a_run_in_mlflow_is_found_by_its_tag(receiver):
    api = "/api/2.0/mlflow"
    server = receiver(
        {
            f"{api}/experiments/get-by-name": {"experiment": {"experiment_id": "7"}},
            f"{api}/runs/search": {"runs": [{"info": {"run_id": "abc", "experiment_id": "7"}}]},
        }
    )
    assert mlflow_run("joint-1", uri=server.url) == {
        "id": "abc",
        "url": f"{server.url}/#/experiments/7/runs/abc",
    }
    path, body = server.received[-1]
    assert path == f"{api}/runs/search"
    assert body == {"experiment_ids": ["7"], "filter": "tags.`k25.run` = 'joint-1'", "max_results": 1}


@pytest.mark.parametrize(
    ("uri", "why"),
    [("mlruns", "is no server"), ("http://127.0.0.1:1", "was asked in vain"), ("{server}", "was asked in vain")],
)
def test_a_run_that_cannot_be_found_in_mlflow_is_said(receiver, uri, why):
    assert why in mlflow_run("joint-1", uri=uri.format(server=receiver().url))["unknown"]
