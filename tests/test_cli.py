"""`k25` as a user meets it: real processes, a real S3 server, one line and exit code 2 for bad input."""

import io
import json
import os
import re
import subprocess
import sys
import tarfile

import pytest
from PIL import Image

from k25_pipelines.storage.store import open_store
from tests.conftest import ROOT

RECIPE = """
name: words
seed: 7
pack_tokens: 128
packs_per_step: 4
steps: 6
blend: samples
sources:
  notes: {weight: 1}
"""


def picture(width: int, height: int, *, form: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.linear_gradient("L").resize((width, height)).convert("RGB").save(buffer, format=form)
    return buffer.getvalue()


def tar_of(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


@pytest.fixture
def lake(s3_environment):
    return open_store(s3_environment["K25_LAKE"])


@pytest.fixture
def register(k25, lake):
    """Register a dataset below the lake's raw/ folder."""

    def run(name: str, kind: str, *words: str):
        done = k25(
            "register", name, f"{lake.url}/raw/{name}", "--kind", kind, "--licence", "MIT", "--source", "test", *words
        )
        assert (done.returncode, done.stderr) == (0, "")

    return run


def assert_refused(done, *said: str) -> None:
    """The command ended with 2 and one line that says each of the words."""
    assert done.returncode == 2, done
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    for words in said:
        assert words in done.stderr
    assert done.stdout == ""


def notes(lake, count: int = 200) -> None:
    lines = [
        json.dumps({"text": f"note {number}: " + "some words of it " * (number % 9 + 1)}) for number in range(count)
    ]
    lake.put("raw/notes/notes.jsonl", "\n".join(lines).encode())


def test_help_shows_an_example_of_every_command(k25):
    assert "k25 demo" in k25("--help").stdout
    for command in ("up", "down", "demo", "register", "index", "datasets", "stats", "browse", "plan", "batch", "train"):
        assert "example:" in k25(command, "--help").stdout, command


def test_the_way_from_objects_to_batches(k25, lake, register, tmp_path):
    notes(lake)
    register("notes", "jsonl")
    indexed = k25("index", "notes")
    assert indexed.returncode == 0, indexed.stderr
    assert k25("index", "notes").stdout == indexed.stdout
    assert json.loads(k25("datasets", "--json").stdout)[0]["num_lines"] == 200
    assert json.loads(k25("stats", "notes", "--json").stdout)["num_lines"] == 200
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    planned = k25("plan", tmp_path / "recipe.yaml")
    assert planned.returncode == 0, planned.stderr
    plan = planned.stdout.splitlines()[-1]
    assert k25("plan", "show", plan).stdout.splitlines()[-1] == plan
    whole = k25("batch", plan, "--steps", "0:3", "--digest")
    assert whole.returncode == 0, whole.stderr
    lines = whole.stdout.splitlines()
    assert len(lines) == 12
    assert all(re.fullmatch(r"step=\d+ pack=\d+ sha256=[0-9a-f]{64}", line) for line in lines)
    ranks = [k25("batch", plan, "--steps", "0:3", "--digest", "--rank", rank, "--num-ranks", 2) for rank in (0, 1)]
    assert sorted(lines) == sorted(line for rank in ranks for line in rank.stdout.splitlines())


def test_an_unknown_dataset_is_named_with_those_that_there_are(k25, lake, register):
    notes(lake)
    register("notes", "jsonl")
    assert_refused(k25("index", "nodes"), "nodes", "notes")


def test_a_dataset_of_an_unknown_kind_is_refused_with_the_nearest(k25, lake):
    done = k25(
        "register", "notes", f"{lake.url}/raw/notes", "--kind", "parquett", "--licence", "MIT", "--source", "test"
    )
    assert_refused(done, "parquett", "parquet")


def test_an_empty_prefix_is_named(k25, lake, register):
    register("nothing", "webdataset")
    assert_refused(k25("index", "nothing"), "raw/nothing", ".tar")


def test_a_missing_bucket_is_named(k25, s3_environment):
    assert_refused(k25("datasets", K25_LAKE="s3://no-such-bucket/lake"), "no-such-bucket")


def test_wrong_credentials_are_told_from_a_missing_bucket(k25, s3_environment):
    assert_refused(k25("datasets", AWS_SECRET_ACCESS_KEY="wrong" * 8), "access refused", "AWS_SECRET_ACCESS_KEY")


def test_an_endpoint_that_nobody_serves_is_named(k25, s3_environment):
    assert_refused(k25("datasets", AWS_ENDPOINT_URL="http://127.0.0.1:9"), "http://127.0.0.1:9")


def test_no_lake_says_how_to_name_one(s3_environment, monkeypatch, tmp_path, capsys):
    from k25_pipelines import cli, environment

    monkeypatch.setattr(environment, "STATE", tmp_path)
    monkeypatch.delenv("K25_LAKE")
    assert cli.main(["datasets"]) == 2
    assert capsys.readouterr().err == (
        "k25 datasets: no lake: set K25_LAKE to s3://bucket/prefix or a folder, "
        "or start the embedded one with `k25 up`\n"
    )


def test_a_truncated_tar_is_named_and_nothing_is_written(k25, lake, register):
    whole = tar_of({f"{number:03}.png": picture(30, 30) for number in range(9)})
    lake.put("raw/cut/0.tar", whole[: len(whole) // 2])
    register("cut", "webdataset")
    assert_refused(k25("index", "cut"), "0.tar", "byte")
    assert [info.key for info in lake.list("k25/")] == ["k25/datasets/cut/registration.json"]


def test_a_broken_image_is_quarantined_with_its_reason(k25, lake, register):
    members = {"a.png": picture(30, 30), "a.txt": b"a ramp", "b.png": picture(30, 30)[:60], "b.txt": b"half a ramp"}
    lake.put("raw/ramps/0.tar", tar_of(members))
    register("ramps", "webdataset")
    indexed = k25("index", "ramps")
    assert (indexed.returncode, "1 of 2 samples quarantined" in indexed.stderr) == (0, True)
    facts = json.loads(k25("stats", "ramps", "--json").stdout)
    assert (facts["num_lines"], facts["num_quarantined"]) == (2, 1)


def test_an_annotation_for_a_missing_image_is_named(k25, lake, register):
    lake.put("raw/boxes/one.png", picture(30, 30))
    annotations = {
        "images": [{"id": 1, "file_name": "one.png", "width": 30, "height": 30}],
        "annotations": [{"id": 5, "image_id": 77, "bbox": [1, 1, 5, 5], "category_id": 1}],
        "categories": [{"id": 1, "name": "ramp"}],
    }
    lake.put("raw/boxes/annotations.json", json.dumps(annotations).encode())
    register("boxes", "images", "--annotations", f"{lake.url}/raw/boxes/annotations.json")
    assert_refused(k25("index", "boxes"), "77")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("notes: {weight: 1}", ["notes", "not indexed"]),
        ("notes: {wieght: 1}", ["wieght", "weight"]),
        ("notes: {weight: 0}", ["weight", "0"]),
        ("notes: {weight: -3}", ["weight", "-3"]),
    ],
)
def test_a_recipe_that_cannot_be_planned_says_why(k25, lake, register, tmp_path, line, said):
    notes(lake)
    register("notes", "jsonl")
    (tmp_path / "recipe.yaml").write_text(RECIPE.replace("notes: {weight: 1}", line))
    assert_refused(k25("plan", tmp_path / "recipe.yaml"), *said)
    assert [info.key for info in lake.list("k25/plans")] == []


def test_a_recipe_with_a_share_that_is_no_share_is_refused(k25, lake, tmp_path):
    recipe = RECIPE.replace("blend: samples", "blend: tokens\nvision_share: 0")
    (tmp_path / "recipe.yaml").write_text(recipe)
    assert_refused(k25("plan", tmp_path / "recipe.yaml"), "vision_share", "0")


def test_a_range_of_steps_past_the_plan_is_refused(k25, lake, register, tmp_path):
    notes(lake)
    register("notes", "jsonl")
    k25("index", "notes")
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    plan = k25("plan", tmp_path / "recipe.yaml").stdout.splitlines()[-1]
    assert_refused(k25("batch", plan, "--steps", "6:9", "--digest"), "steps 0 to 5", "more: k25 plan")
    assert_refused(k25("batch", "0" * 32, "--steps", "0:1"), "0" * 32)


@pytest.fixture
def folder_lake(k25, tmp_path, monkeypatch):
    """A lake in a folder over notes in another whose name is odd, and the id of a plan of them."""
    raw = tmp_path / "my data é%20"
    raw.mkdir()
    for number in range(40):
        (raw / f"nöte #{number} 'q'&.txt").write_text(f"note {number}: " + "some words of it " * 9, encoding="utf-8")
    monkeypatch.setenv("K25_LAKE", str(tmp_path / "lake"))
    done = k25("register", "notes", f"{raw}/", "--kind", "text", "--licence", "MIT", "--source", "Größe")
    assert (done.returncode, done.stderr) == (0, "")
    assert k25("index", "notes").returncode == 0
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    return k25("plan", tmp_path / "recipe.yaml").stdout.splitlines()[-1]


def test_a_lake_in_a_folder_is_the_same_from_any_working_directory(k25, folder_lake, tmp_path, monkeypatch):
    expected = k25("batch", folder_lake, "--steps", "0:2", "--digest").stdout
    assert len(expected.splitlines()) == 8
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("K25_LAKE", "lake")
    command = [sys.executable, "-m", "k25_pipelines", "batch", folder_lake, "--steps", "0:2", "--digest"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    assert subprocess.run(command, env=environment, capture_output=True, text=True).stdout == expected
    page = k25("browse", "notes", "--output", tmp_path / "page.html", K25_LAKE=str(tmp_path / "lake"))
    assert (page.returncode, "Größe" in (tmp_path / "page.html").read_text(encoding="utf-8")) == (0, True)


def test_children_of_a_lake_in_a_relative_folder_get_its_whole_path(tmp_path, monkeypatch):
    from k25_pipelines import cli

    seen = {}
    monkeypatch.setattr(subprocess, "call", lambda *_, env, **__: seen.update(env) or 0)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("K25_LAKE", "lake")
    assert (cli.main(["down"]), seen["K25_LAKE"]) == (0, str(tmp_path / "lake"))


def test_a_terminal_that_cannot_show_a_sign_gets_its_number(k25, folder_lake):
    done = k25("stats", "notes", PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stderr, r"my data \xe9%20" in done.stdout) == (0, "", True)


@pytest.mark.parametrize("words", [["--help"], ["datasets"], ["batch", "--help"]])
def test_a_reader_that_has_gone_is_no_error(folder_lake, words):
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    command = [sys.executable, "-m", "k25_pipelines", *words]
    pipe = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, cwd=ROOT, env=environment, **pipe) as process:
        process.stdout.close()
        assert (process.stderr.read(), process.wait()) == (b"", 0)


def test_output_that_cannot_be_written_is_one_line(k25, folder_lake, tmp_path):
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "k25_pipelines", "datasets"]
        done = subprocess.run(command, cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (
        2,
        "k25 datasets: output: No space left on device; check path and space\n",
    )
    assert_refused(k25("browse", "notes", "--output", tmp_path), str(tmp_path), "Is a directory")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--rank", 5, "--num-ranks", 2], "--rank 5 of --num-ranks 2: ranks are counted from 0"),
        (["--rank", -1], "--rank -1"),
        (["--num-ranks", 0], "'0' is not a whole number above 0"),
        (["--threads", -2], "'-2' is not a whole number above 0"),
        (["--thread", "many"], "'many' is not a whole number above 0; see: k25 batch --help"),
        (["--steps", "1:1"], "'1:1' is no range of steps"),
        (["--steps", "4:9"], "steps 0 to 5, not 8; more: k25 plan"),
    ],
)
def test_a_batch_that_cannot_be_is_refused_in_one_line_and_nothing_is_printed(k25, folder_lake, words, said):
    assert_refused(k25("batch", folder_lake, "--steps", "0:6", "--digest", *words), said)


def test_an_object_that_was_overwritten_stops_the_batch_in_one_line(k25, folder_lake, tmp_path):
    for note in (tmp_path / "my data é%20").iterdir():
        note.write_bytes(note.read_bytes().replace(b"note", b"nope"))
    assert_refused(
        k25("batch", folder_lake, "--steps", "0:1", "--digest"), "notes: ", ".txt was overwritten: its etag is "
    )


def test_two_buckets_a_lake_in_one_and_a_dataset_in_the_other(k25, s3_environment):
    import boto3

    boto3.client("s3", endpoint_url=s3_environment["AWS_ENDPOINT_URL"]).create_bucket(Bucket="my-own.bucket")
    own = open_store("s3://my-own.bucket/some prefix/é+%20&")
    own.put("notes/a.txt", b"A note of its own.")
    told = ["--kind", "text", "--licence", "MIT", "--source", "own"]
    assert k25("register", "own", f"{own.url}/notes/", *told).returncode == 0
    assert k25("index", "own").returncode == 0
    assert json.loads(k25("stats", "own", "--json").stdout)["num_lines"] == 1
    assert [info.key for info in own.list()] == ["notes/a.txt"]


def test_a_server_left_by_a_killed_command_is_stopped_by_the_next_and_a_wanted_one_is_not(tmp_path, monkeypatch):
    from k25_pipelines import environment

    asked: list[tuple[str, ...]] = []
    monkeypatch.delenv("K25_LAKE", raising=False)
    monkeypatch.setattr(environment, "STATE", tmp_path)
    monkeypatch.setattr(environment, "BORROWED", tmp_path / "s3.borrowed")
    monkeypatch.setattr(environment, "run_child", lambda _, *words, **__: asked.append(words) or 0)  # it answers
    (tmp_path / "env").write_text("")
    with environment.served_lake():
        pass
    assert ("down",) not in asked
    dead = subprocess.Popen(["true"])
    dead.wait()
    (tmp_path / "s3.borrowed").write_text(str(dead.pid))
    with environment.served_lake():
        assert (tmp_path / "s3.borrowed").read_text() == str(os.getpid())
    assert asked[-1] == ("down",)
    assert not (tmp_path / "s3.borrowed").exists()


def test_a_stage_by_hand_is_refused_in_one_line_before_anything_is_trained(k25, lake):
    for words, said in (
        (["--ranks", "0"], "'0' is not a whole number above 0; see: k25 train --help"),
        (["--config", "nowhere.json", "--lora", 8], "--lora changes what is learnt, and --config names a run as it is"),
        ([], "unknown dataset 'code'"),
    ):
        assert_refused(k25("train", "warmup", *words), said)
    assert [info.key for info in lake.list("k25/runs/")] == []


def test_a_dry_run_of_an_export_counts_a_models_weights_without_making_them(k25, lake):
    done = k25("export", "base", "--dry-run", "--dtype", "bfloat16")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "base: 2436 weights in 1 files, 2689648896 bytes\n"
