"""`k25 sync` as a user runs it: datasets, accounts, kills."""

import json
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from k25_pipelines.catalog import registry
from k25_pipelines.planning.exclusions import TOMBSTONES, tombstones_digest
from k25_pipelines.sync.rclone import MIB, pending_uploads
from tests.conftest import ROOT

LARGE = 12 * MIB


@pytest.fixture
def notes(two) -> registry.Registration:
    """A dataset of two objects, beside one that is none of it."""
    for key, words in {"0.jsonl": ["a", "b"], "1.jsonl": ["c"], "README.md": ["no sample"]}.items():
        two.lake.put(f"raw/notes/{key}", "\n".join(json.dumps({"text": word}) for word in words).encode())
    registered = registry.Registration(
        name="notes", uri=f"{two.lake.url}/raw/notes", kind="jsonl", licence="MIT", source="made here"
    )
    registry.register(two.lake, registered)
    registry.index_dataset(two.lake, "notes")
    return registered


def facts_of(done: subprocess.CompletedProcess[str]) -> dict:
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_dataset_is_priced_copied_and_shown(two, notes, k25):
    words = ["sync", "notes", two.there.url, "--dst-access", two.access_file]
    told = facts_of(k25(*words, "--dry-run", "--json"))
    assert (told["objects"], told["to_copy"], two.copies()) == (2, 2, {})
    done = k25(*words)
    assert (done.returncode, done.stdout.splitlines()[1]) == (0, "2 of 2 copies hold what their sources do, by digest")
    assert sorted(two.copies()) == ["0.jsonl", "1.jsonl"]
    assert f"notes {notes.uri} -> {two.there.url}" in k25("sync", "--targets").stdout


def test_a_budget_that_is_reached_is_exit_code_1_and_says_what_is_left(two, notes, k25):
    done = k25("sync", "notes", two.there.url, "--dst-access", two.access_file, "--budget-gb", "0")
    assert (done.returncode, done.stdout.splitlines()[-1]) == (
        1,
        "the budget is reached: 2 objects, 40B are left; the same command goes on from here",
    )


def test_an_object_that_drifted_from_the_manifest_is_named_and_not_copied(two, notes, k25):
    two.lake.put("raw/notes/1.jsonl", b'{"text": "d"}')
    done = k25("sync", "notes", two.there.url, "--dst-access", two.access_file)
    assert done.returncode == 2
    assert "raw/notes/1.jsonl was overwritten" in done.stderr
    assert two.copies() == {}


def test_objects_of_forgotten_samples_alone_are_not_copied(two, notes, k25):
    forgotten = ["notes:1", "notes:2"]  # one of two in the first object, and all of the second
    name = tombstones_digest(forgotten)
    two.lake.put(f"{TOMBSTONES}{name}.json", json.dumps(forgotten).encode())
    two.lake.put(f"{TOMBSTONES}current.json", json.dumps({"digest": name}).encode())
    told = facts_of(k25("sync", "notes", two.there.url, "--dst-access", two.access_file, "--json"))
    assert (told["withheld"], list(two.copies())) == (1, ["0.jsonl"])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["notes"], "sync takes SRC and DST"),
        (["nots", "s3://lake/x"], "unknown dataset 'nots'"),
        (["s3://lake/nothing/here", "s3://lake/x"], "holds no objects"),
        (["notes", "s3://lake/x", "--dst-access", "no/such.env"], "no/such.env: no such file of AWS_* exports"),
        (["notes", "s3://lake/x", "--budget-gb", "much"], "'much' is not a number"),
        (["notes", "memory://x"], "memory://x lives in this process alone"),
    ],
)
def test_bad_input_is_one_line_that_says_what(notes, k25, words, said):
    done = k25("sync", *words)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert said in done.stderr


def test_a_profile_of_aws_config_is_used_like_a_file(two, notes, k25, tmp_path):
    variables = dict(line.removeprefix("export ").split("=") for line in two.access_file.read_text().splitlines())
    config, secrets = tmp_path / "config", tmp_path / "credentials"
    config.write_text(f"[profile far]\nendpoint_url = {variables['AWS_ENDPOINT_URL']}\nregion = us-east-1\n")
    secrets.write_text(
        f"[far]\naws_access_key_id = {variables['AWS_ACCESS_KEY_ID']}\n"
        f"aws_secret_access_key = {variables['AWS_SECRET_ACCESS_KEY']}\n".replace("'", "")
    )
    files = {"AWS_CONFIG_FILE": str(config), "AWS_SHARED_CREDENTIALS_FILE": str(secrets)}
    done = k25("sync", "notes", two.there.url, "--dst-access", "far", **files)
    assert done.returncode == 0, done.stderr
    assert sorted(two.copies()) == ["0.jsonl", "1.jsonl"]


def test_a_sync_that_is_killed_in_the_middle_of_an_upload_goes_on_and_leaves_no_parts(two, k25):
    made = {"a.bin": os.urandom(1000), "b.bin": os.urandom(LARGE)}
    for key, data in made.items():
        two.lake.put(f"raw/{key}", data)
    words = ["sync", f"{two.lake.url}/raw", two.there.url, "--dst-access", str(two.access_file), "--multipart-mib", "6"]
    place = two.job().places[1]
    started = subprocess.Popen(
        [sys.executable, "-m", "k25_pipelines", *words],
        cwd=ROOT,
        env={**os.environ, "K25_S3_BYTES_PER_SECOND": str(MIB)},
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 60
    while not (pending_uploads(place) and "a.bin" in two.copies()):
        assert time.monotonic() < deadline
        assert started.poll() is None
    started.send_signal(signal.SIGSTOP)  # so that it cannot put in order what its engine leaves
    for child in psutil.Process(started.pid).children(recursive=True):
        child.kill()
    started.kill()
    started.wait()
    assert [upload.key.rpartition("/")[2] for upload in pending_uploads(place)] == ["b.bin"]
    told = facts_of(k25(*words, "--json"))
    assert (told["aborted_uploads"], told["there"] + told["compared"], told["copied"]) == (1, 1, 1)
    assert (pending_uploads(place), two.copies()) == ([], made)
