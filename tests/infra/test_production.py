"""The files of a production instance: valid, equal where they say the same, and working over a real Postgres."""

import os
import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import kubernetes_validate
import promql_parser
import pytest
import yaml

from tests.assets.tiny_lake import build, index_all
from tests.infra.postgres import served, server_folder

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import dagster as dg
    from dagster._config import process_config
    from dagster._core.instance.config import dagster_instance_config_schema

ROOT = Path(__file__).resolve().parents[2]
KUBERNETES = ROOT / "infra" / "kubernetes"
INSTANCE = ROOT / "infra" / "production" / "dagster.yaml"
MANIFESTS = [
    (path.name, document)
    for path in sorted(KUBERNETES.glob("*.yaml"))
    for document in yaml.safe_load_all(path.read_text())
    if document["kind"] != "Kustomization"
]
NAMES = [f"{file}:{document['kind']}/{document['metadata']['name']}" for file, document in MANIFESTS]


def pod_instance() -> dict:
    [found] = [each for _, each in MANIFESTS if each["metadata"]["name"] == "k25-instance"]
    return yaml.safe_load(found["data"]["dagster.yaml"])


@pytest.mark.parametrize("document", [document for _, document in MANIFESTS], ids=NAMES)
def test_a_manifest_is_valid(document):
    kubernetes_validate.validate(document, kubernetes_validate.latest_version(), strict=True)


def test_what_a_manifest_names_is_there():
    """Every ConfigMap, Secret, volume claim and account that a pod asks for is one of ours."""
    text = "\n".join(path.read_text() for path in KUBERNETES.glob("*.yaml"))
    asked = set(
        re.findall(r"(?:configMapRef|secretRef|configMap|persistentVolumeClaim): \{(?:name|claimName): ([\w-]+)", text)
    )
    asked |= set(re.findall(r"serviceAccountName: ([\w-]+)", text))
    assert asked - {document["metadata"]["name"] for _, document in MANIFESTS} == set()


def test_the_pods_instance_is_the_production_instance_with_a_launcher():
    own = pod_instance()
    own.pop("run_launcher")
    assert own == yaml.safe_load(INSTANCE.read_text())


@pytest.mark.filterwarnings("ignore")
def test_both_instances_have_dagsters_form(monkeypatch):
    for name in re.findall(r"env: (\w+)", INSTANCE.read_text()):
        monkeypatch.setenv(name, "5432")
    for config in (pod_instance(), yaml.safe_load(INSTANCE.read_text())):
        schema = dagster_instance_config_schema()
        known = {name: value for name, value in config.items() if name in schema}
        assert (set(config), process_config(schema, known).errors or []) == (set(known), [])


@pytest.mark.filterwarnings("ignore")
def test_the_launcher_of_pods_accepts_its_config():
    from dagster_k8s import K8sRunLauncher

    result = process_config(K8sRunLauncher.config_type(), pod_instance()["run_launcher"]["config"])
    assert result.success, result.errors


def rules() -> list[dict]:
    groups = yaml.safe_load((ROOT / "infra/prometheus/alerts.yaml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule["alert"])
def test_an_alert_is_promql_over_metrics_that_we_serve(rule):
    promql_parser.parse(rule["expr"])
    source = (ROOT / "k25_pipelines/telemetry.py").read_text()
    totals = {f"k25_{name}_total" for name in re.findall(r'^    "(\w+)": "', source, re.M)}
    served_names = set(re.findall(r'"(k25_\w+)"', source)) | totals | {f"k25_{name}" for name in ("loss",)}
    assert set(re.findall(r"k25_\w+", rule["expr"])) - served_names == set()
    assert rule["labels"]["severity"] in ("page", "ticket")


needs_postgres = pytest.mark.skipif(server_folder() is None, reason="no Postgres server on this machine")


@pytest.fixture
def production(tmp_path_factory):
    """A production instance over a real Postgres and a tiny lake: environment of a process that works there."""
    folder = tmp_path_factory.mktemp("production")
    (folder / "postgres").mkdir()
    (folder / "dagster").mkdir()
    shutil.copy(INSTANCE, folder / "dagster")
    lake = build(folder / "lake")
    index_all(lake)
    with served(folder / "postgres") as database:
        own = {"K25_LAKE": lake.url, "K25_WORK": str(folder / "work"), "K25_SCALE": "toy", "K25_THREADS": "1"}
        clean = {name: value for name, value in os.environ.items() if not name.startswith("K25_")}
        yield {**clean, **database, **own, "DAGSTER_HOME": str(folder / "dagster")}


@needs_postgres
@pytest.mark.filterwarnings("ignore")
def test_runs_and_their_events_are_kept_in_postgres(production, monkeypatch):
    command = [sys.executable, "-W", "ignore", "-m", "k25_pipelines", "backfill", "--days", "2026-11-20"]
    done = subprocess.run(command, cwd=ROOT, env=production, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr[-3000:]
    for name, value in production.items():
        monkeypatch.setenv(name, value)
    with dg.DagsterInstance.from_config(production["DAGSTER_HOME"]) as instance:
        [run] = instance.get_runs()
        event = instance.get_latest_materialization_event(dg.AssetKey("daily_index"))
        coordinator, launcher = type(instance.run_coordinator).__name__, type(instance.run_launcher).__name__
        place = type(instance.event_log_storage).__name__, type(instance.run_storage).__name__
    assert (run.status, event.asset_materialization.partition) == (dg.DagsterRunStatus.SUCCESS, "2026-11-20")
    assert (coordinator, launcher) == ("QueuedRunCoordinator", "DefaultRunLauncher")
    assert place == ("PostgresEventLogStorage", "PostgresRunStorage")
