"""What a trainer says: lines to a file, and to Dagster where it listens."""

import base64
import json
import zlib

from trainers.report import open_report

LINE = {"loss": 2.5, "tokens": 100}


def encoded(value: dict) -> str:
    """Return how Pipes writes a parameter in an environment variable."""
    return base64.b64encode(zlib.compress(json.dumps(value).encode())).decode()


def test_metrics_are_lines_of_a_file_that_begins_with_the_steps_done(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("of a run that was killed\n")
    with open_report(tmp_path, rank=0, num_steps=2) as report:
        report.resume([{"step": 0, **LINE}])
        report.step({"step": 1, **LINE})
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [{"step": 0, **LINE}, {"step": 1, **LINE}]


def test_only_rank_zero_speaks(tmp_path, capfd):
    with open_report(tmp_path, rank=1, num_steps=1) as report:
        report.resume([])
        report.step({"step": 0, **LINE})
        report.say("nothing")
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr() == ("", "")


def test_dagster_hears_every_step_of_a_short_run(tmp_path, monkeypatch):
    blank = dict.fromkeys(("asset_keys", "code_version_by_asset_key", "provenance_by_asset_key", "partition_key"))
    rest = dict.fromkeys(("partition_key_range", "partition_time_window", "job_name"))
    context = {**blank, **rest, "run_id": "r", "retry_number": 0, "extras": {}}
    monkeypatch.setenv("DAGSTER_PIPES_CONTEXT", encoded({"data": context}))
    monkeypatch.setenv("DAGSTER_PIPES_MESSAGES", encoded({"path": str(tmp_path / "messages")}))
    with open_report(tmp_path, rank=0, num_steps=2) as report:
        report.step({"step": 0, **LINE})
        report.step({"step": 1, **LINE})
    said = [json.loads(line) for line in (tmp_path / "messages").read_text().splitlines()]
    steps = [each["params"]["payload"] for each in said if each["method"] == "report_custom_message"]
    assert steps == [{"step": 0, **LINE}, {"step": 1, **LINE}]
    assert [each["params"]["message"] for each in said if each["method"] == "log"][-1].startswith("step 2/2, loss 2.5")
