"""The main job as a user runs it, at toy scale: all of it, and then again."""

import re
import subprocess
import sys

import dagster as dg

from tests.assets.conftest import ROOT
from trainers.recipes import STAGES


def demo(place) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-m", "assets.demo", "--scale", "toy"]
    done = subprocess.run(words, cwd=ROOT, env=place.environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def test_the_demo_makes_everything_once(place):
    first = demo(place)
    days = dg.AssetKey("daily_index")  # the demo's datasets come all at once
    made = [spec.key for spec in place.defs.resolve_all_asset_specs() if spec.key != days]
    assert [key for key in made if place.instance.get_latest_materialization_event(key) is None] == []
    runs = place.instance.get_runs()
    assert {run.status for run in runs} == {dg.DagsterRunStatus.SUCCESS}
    assert [run.job_name for run in runs] == ["demo", *["index_datasets"] * 7]
    assert "Traceback" not in first.stderr

    versions = {key: version(place, key) for key in made}
    again = demo(place)
    assert "(found)" not in first.stdout
    assert again.stdout.count("(found)") == 6 + 7  # every checkpoint and manifest: nothing is trained or indexed again
    assert {key: version(place, key) for key in made} == versions
    assert tables(again.stdout) == tables(first.stdout)

    page = (place.folder / "report" / "index.html").read_text()
    assert re.findall(r'(?:src|href)="(?!data:)', page) == []
    assert all(stage in page for stage in STAGES)
    told = place.metadata("joint_checkpoint")
    assert {"loss", "vision share", "largest attention logit", "expert load", "step time", "spikes"} <= told.keys()
    parts = [told[f"{part}_share_of_time"] for part in ("wait", "vision", "backbone", "optimizer")]
    assert 0.5 < sum(parts) < 1.001


def version(place, key: dg.AssetKey) -> str:
    return place.instance.get_latest_materialization_event(key).asset_materialization.tags["dagster/data_version"]


def tables(printed: str) -> str:
    """The closing summary."""
    return printed[printed.index("stage ") :]
