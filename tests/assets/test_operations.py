"""How the graph is run day by day: retries, pools, blocking checks, the cost guard, alerts."""

import json
import threading
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, HTTPServer

import dagster as dg
import pytest

from assets import policies
from assets.alerts import alert, tell
from assets.guard import QUOTED_TAG, Price, refusal, spent_usd
from assets.policies import retry_the_store, wait_seconds
from assets.resources import LakeResource, RetrainingSettings, retraining_from_env
from k25_pipelines.errors import DatasetError, K25Error, StoreError
from k25_pipelines.storage.store import open_store
from tests.assets.tiny_lake import build

SETTINGS = RetrainingSettings(cron="0 2 * * *", is_on=True, stages=("warmup",), most_usd=10, most_usd_per_month=25)


def attempts(error: Exception, *, failures: int) -> tuple[bool, int]:
    """Return whether an asset that fails so often in this way is made, and how often it was tried."""
    tried = []

    @dg.asset
    @retry_the_store
    def shaky(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
        tried.append(1)
        if len(tried) <= failures:
            raise error
        return dg.MaterializeResult()

    made = dg.materialize([shaky], raise_on_error=False).success
    return made, len(tried)


@pytest.mark.parametrize(
    ("error", "failures", "told"),
    [
        (StoreError("503"), 2, (True, 3)),
        (StoreError("503"), 9, (False, 1 + policies.STORE_RETRIES)),
        (DatasetError("a torn tar"), 1, (False, 1)),
    ],
)
def test_the_store_is_tried_again_and_bad_data_never(monkeypatch, error, failures, told):
    monkeypatch.setattr(policies, "FIRST_WAIT_SECONDS", 0.0)
    assert attempts(error, failures=failures) == told


def test_waits_double_up_to_ten_minutes():
    assert [wait_seconds(number) for number in range(6)] == [30, 60, 120, 240, 480, 600]


def test_trainers_and_readers_of_the_store_stand_in_their_pools():
    from assets.definitions import defs

    graph = defs.resolve_asset_graph()
    names = ("joint_checkpoint", "needle_evaluation", "dataset_manifest", "daily_index", "joint_plan")
    found = {name: graph.get(dg.AssetKey(name)).pools for name in names}
    assert found == {
        "joint_checkpoint": {"gpu"},
        "needle_evaluation": {"gpu"},
        "dataset_manifest": {"store"},
        "daily_index": {"store"},
        "joint_plan": {"store"},
    }


def test_a_dataset_with_too_many_broken_samples_is_refused_to_plans_and_trainers(tmp_path):
    from assets.data_layer import QUARANTINE_CHECK, index_one, register_listed
    from k25_pipelines.catalog.registry import load_manifest
    from k25_pipelines.verdicts import VerdictError, require_passed

    lake = build(tmp_path / "lake", num_broken=9)
    register_listed(lake, "captions")
    made = index_one(lake, "captions")
    assert [(check.check_name, check.passed) for check in made.check_results] == [(QUARANTINE_CHECK, False)]
    with pytest.raises(VerdictError, match="dataset captions failed quarantine_within_budget"):
        require_passed(lake, {"dataset captions": load_manifest(lake, "captions").digest})


def test_a_broken_dataset_stops_what_follows_in_its_run(place):
    build(place.folder / "lake", num_broken=9)
    place.instance.add_dynamic_partitions("dataset", ["captions"])
    result = place.make(partition="captions", job="index_datasets", raise_on_error=False)
    made = {event.asset_key.to_user_string() for event in result.get_asset_materialization_events()}
    assert (result.success, made) == (False, {"dataset_manifest"})


@pytest.mark.timeout(300)
def test_a_trainer_refuses_a_plan_that_a_check_refused_whoever_starts_it(place):
    from assets.instance import add_datasets
    from k25_pipelines.runs import start_run, take_stretch
    from k25_pipelines.verdicts import Verdict, VerdictError, accept, write_verdict

    place.index(*add_datasets(place.instance, place.lake))
    place.make("lake_catalog", "warmup_plan", job="pretraining")
    plan = place.metadata("warmup_plan")["plan"]
    write_verdict(place.lake, Verdict(subject=plan, check="fill", passed=False, blocking=True, figures={}))
    start_run(place.lake, "by-hand", plan)
    with pytest.raises(VerdictError, match=f"plan {plan} failed fill"):
        take_stretch(place.lake, "by-hand", 0)
    accept(place.lake, plan, "fill", author="tests", reason="tests")
    assert take_stretch(place.lake, "by-hand", 0).plan == plan


def test_the_plans_check_is_kept_where_trainers_look(indexed):
    from k25_pipelines.verdicts import verdicts

    indexed.make("lake_catalog", "warmup_plan", job="pretraining")
    [verdict] = verdicts(indexed.lake, indexed.metadata("warmup_plan")["plan"])
    assert (verdict.check, verdict.figures["refused"]) == ("may_be_trained_on", "")


def test_a_retraining_above_its_budget_is_refused_in_words():
    asked = Price(usd=12.5, hours=1)
    assert refusal(asked, SETTINGS, spent_usd=0) == (
        "the retraining is quoted at $12.50, and K25_RETRAIN_USD allows $10.00; "
        "raise it, or name fewer stages in K25_RETRAIN_STAGES"
    )


def test_retrainings_of_a_month_share_a_budget():
    asked = Price(usd=9, hours=1)
    assert refusal(asked, SETTINGS, spent_usd=16) is None
    assert "of the last 30 days were quoted at $17.00, this one at $9.00" in (
        refusal(asked, SETTINGS, spent_usd=17) or ""
    )


def test_what_was_spent_is_what_the_runs_were_quoted_at(place):
    job = place.defs.resolve_job_def("retraining")
    for usd in (1.25, 2.5):
        place.instance.create_run_for_job(job, tags=Price(usd=usd, hours=1).tags())
    assert spent_usd(place.instance, "retraining") == 3.75


def test_a_run_is_ended_after_twice_the_hours_of_its_quote():
    assert Price(usd=1, hours=3).tags() == {QUOTED_TAG: "1.00", "dagster/max_runtime": str(6 * 3600)}


def test_the_schedule_quotes_before_it_starts(indexed, monkeypatch):
    from assets import schedules

    monkeypatch.setenv("K25_LAKE", indexed.lake.url)
    monkeypatch.setenv("K25_SCALE", "toy")
    context = dg.build_schedule_context(
        indexed.instance, scheduled_execution_time=datetime(2026, 11, 24, 2, tzinfo=UTC)
    )
    cheap = RetrainingSettings(cron="", is_on=True, stages=("warmup",), most_usd=1000)
    monkeypatch.setattr(schedules, "RETRAINING", cheap)
    [request] = schedules.nightly_retraining.evaluate_tick(context).run_requests
    assert QUOTED_TAG in request.tags
    dear = RetrainingSettings(cron="", is_on=True, stages=("warmup",), most_usd=0, rates={"usd_per_gpu_hour": 9e9})
    monkeypatch.setattr(schedules, "RETRAINING", dear)
    tick = schedules.nightly_retraining.evaluate_tick(context)
    assert tick.run_requests == []
    assert "K25_RETRAIN_USD allows $0.00" in tick.skip_message


def test_a_budget_that_is_no_number_is_named(monkeypatch):
    monkeypatch.setenv("K25_RETRAIN_USD", "ten")
    with pytest.raises(K25Error, match="K25_RETRAIN_USD is 'ten'; write a number of at least 0"):
        retraining_from_env(("warmup",))


@pytest.fixture
def webhook(monkeypatch):
    heard = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            heard.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("K25_ALERT_WEBHOOK", f"http://127.0.0.1:{server.server_address[1]}/")
        yield heard
        server.shutdown()


def test_a_failure_is_kept_and_sent_as_it_happens(place, webhook):
    place.instance.add_dynamic_partitions("dataset", ["nowhere"])
    result = place.make(partition="nowhere", job="index_datasets", raise_on_error=False)
    [told] = webhook
    assert (told["what"], told["partition"]) == ("dataset_manifest", "nowhere")
    assert "unknown dataset 'nowhere'" in told["words"]
    assert json.loads(place.lake.get(f"k25/alerts/{result.run_id}/dataset_manifest.json")) == told


def test_an_alert_that_cannot_be_sent_is_kept_and_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("K25_ALERT_WEBHOOK", "http://127.0.0.1:9/")
    told = alert(run_id="1" * 32, job="demo", what="run", partition=None, words="gone")
    said = tell(told, LakeResource(url=str(tmp_path)))
    assert said.startswith("alert kept in the lake, not sent to K25_ALERT_WEBHOOK: ")
    assert json.loads(open_store(str(tmp_path)).get(f"k25/alerts/{'1' * 32}/run.json")) == told
