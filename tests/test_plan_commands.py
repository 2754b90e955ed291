"""`k25 plan` and `k25 quote` as a user meets them: facts as tables or JSON, one line and exit code 2 for bad input."""

import json

import pytest
import yaml

from k25_pipelines.catalog.registry import index_dataset
from k25_pipelines.cli import main
from k25_pipelines.planning import make_plan, open_plan
from k25_pipelines.storage.store import open_store
from tests.sample.small_lake import new_lake
from tests.test_planning import RECIPE, recipe


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("lake")
    new_lake(str(path))
    return path


@pytest.fixture
def k25(folder, monkeypatch, capsys):
    """Run a command on the lake, in this process, and return exit code, output and what was said of errors."""
    monkeypatch.setenv("K25_LAKE", str(folder))

    def run(*words: object):
        capsys.readouterr()
        try:
            code = main([str(word) for word in words])
        except SystemExit as left:
            code = left.code
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


@pytest.fixture
def recipe_file(tmp_path):
    def write(name="recipe.yaml", **fields):
        path = tmp_path / name
        path.write_text(yaml.safe_dump({**RECIPE, **fields}))
        return path

    return write


@pytest.fixture(scope="module")
def plan(folder):
    return make_plan(open_store(str(folder)), recipe())


def assert_refused(done, *said: str) -> None:
    code, out, err = done
    assert (code, out) == (2, "")
    assert len(err.strip().splitlines()) == 1, err
    for words in said:
        assert words in err


@pytest.mark.parametrize(
    "words", [["plan"], ["plan", "show"], ["plan", "diff"], ["plan", "fork"], ["plan", "amend"], ["quote"]]
)
def test_every_command_has_help_with_an_example(k25, words):
    code, out, _ = k25(*words, "--help")
    assert code == 0
    assert f"example:\n  k25 {' '.join(words)} " in out


def test_a_plan_is_written_and_shown_with_its_id_last(k25, recipe_file, plan):
    path = recipe_file()
    code, out, _ = k25("plan", path)
    assert (code, out.splitlines()[-1]) == (0, plan)
    assert k25("plan", "show", plan)[1] == out
    facts = json.loads(k25("plan", "show", plan, "--json")[1])
    assert {name: facts[name] for name in ("plan", "parent", "num_steps")} == {
        "plan": plan, "parent": None, "num_steps": 6,
    }  # fmt: skip
    assert f"tokens         {facts['tokens']:,}" in out
    projected = json.loads(k25("plan", "show", plan, "--project-to", 600, "--json")[1])["projected_epochs"]
    assert projected["wiki"] == pytest.approx(100 * facts["epochs"]["wiki"])
    assert "epochs at 600" in k25("plan", "show", plan, "--project-to", 600)[1]


def test_more_steps_extend_the_plan(k25, recipe_file, folder):
    path = recipe_file(name="other.yaml", seed=9)
    made = k25("plan", path, "--steps", 3)[1].splitlines()[-1]
    assert open_plan(open_store(str(folder)), made).num_steps == 3
    assert k25("plan", path)[1].splitlines()[-1] == made
    assert open_plan(open_store(str(folder)), made).num_steps == 6


def test_a_fork_is_made_shown_and_compared(k25, plan):
    words = ["--at-step", 3, "--without", "wiki:3", "--reason", "spike", "--author", "me"]
    code, out, _ = k25("plan", "fork", plan, *words)
    fork = out.splitlines()[-1]
    assert (code, fork != plan) == (0, True)
    assert f"forked from    {plan} at step 3 by me: spike" in out
    assert "without        wiki:3 (1 samples)" in out
    code, told, _ = k25("plan", "diff", plan, fork)
    assert code == 0
    assert "first differing step" in told
    assert "spike" in told
    facts = json.loads(k25("plan", "diff", plan, fork, "--json")[1])
    assert facts["first_differing_step"] in (3, 4)
    assert facts["plans"] == [plan, fork]
    assert "none: the same steps" in k25("plan", "diff", plan, plan)[1]


def test_a_fork_takes_another_recipe_and_another_version(k25, recipe_file, plan, folder):
    lake = open_store(str(folder))
    path = recipe_file(packs_per_step=8)
    out = k25("plan", "fork", plan, "--at-step", 3, "--recipe", path, "--reason", "batch")[1]
    opened = open_plan(lake, out.splitlines()[-1])
    assert set(opened.rows(3)["pack"].to_pylist()) == set(range(8))
    lake.put("raw/code/1.jsonl", b'{"content": "print(1)", "path": "x.py"}\n')
    newest = index_dataset(lake, "code").digest
    for words in ("code", f"code={newest}"):
        out = k25("plan", "fork", plan, "--at-step", 3, "--dataset", words, "--steps", 8, "--reason", "more")[1]
        opened = open_plan(lake, out.splitlines()[-1])
        assert (opened.datasets["code"], opened.num_steps) == (newest, 8)


def test_an_amend_without_a_run_is_a_fork_under_the_fields_that_are_set(k25, plan, folder):
    words = ["--set", "sources.code.weight=5", "--set", "packs_per_step=8", "--reason", "more code", "--author", "me"]
    code, out, err = k25("plan", "amend", plan, "--from-step", 2, *words)
    assert (code, err) == (0, "")
    amended = open_plan(open_store(str(folder)), out.splitlines()[-1])
    assert (amended.recipe.packs_per_step, amended.recipe.sources["code"].weight) == (8, 5)
    assert amended.parent is not None
    assert (amended.parent["parent"], amended.parent["step"], amended.parent["author"]) == (plan, 2, "me")
    out = k25("plan", "amend", plan, "--from-step", 2, "--without", "wiki:3", "--reason", "bad line")[1]
    amended = open_plan(open_store(str(folder)), out.splitlines()[-1])
    assert amended.parent is not None
    assert amended.parent["without"] == ["wiki:3"]


def test_a_quote_is_told_before_anything_is_planned(k25, recipe_file):
    path = recipe_file(seed=77)
    code, out, _ = k25("quote", path, "--gpus", 8, "--usd-per-gpu-hour", 4)
    assert code == 0
    for words in ("GETs", "GPU hours", "heaviest step", "usd per gpu hour 4", "wiki", "$"):
        assert words in out
    told = json.loads(k25("quote", path, "--gpus", 8, "--json")[1])
    assert (told["gpus"], told["steps"], told["problems"]) == (8, 6, [])


def test_a_quote_that_runs_dry_ends_with_one(k25, recipe_file):
    sources = {**RECIPE["sources"], "code": {"weight": 1, "max_epochs": 50}}
    code, out, _ = k25("quote", recipe_file(sources=sources), "--steps", 4000)
    assert code == 1
    assert "problem: code reaches its max_epochs 50" in out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["plan"], ["RECIPE.yaml", "k25 plan --help"]),
        (["plan", "absent.yaml"], ["absent.yaml", "give the path of a YAML file"]),
        (["plan", "show", "nothing"], ["no plan 'nothing'", "k25 plan RECIPE.yaml"]),
        (["plan", "fork", "nothing", "--at-step", 1, "--reason", "x"], ["no plan 'nothing'"]),
        (["plan", "fork", "PLAN", "--reason", "x"], ["--at-step", "k25 plan fork --help"]),
        (["plan", "fork", "PLAN", "--at-step", -1, "--reason", "x"], ["--at-step"]),
        (["plan", "fork", "PLAN", "--at-step", 1, "--reason", "x"], ["differs in nothing"]),
        (["plan", "fork", "PLAN", "--at-step", 99, "--without", "wiki:1", "--reason", "x"], ["from 0 to 6"]),
        (["plan", "fork", "PLAN", "--at-step", 1, "--without", "wikis", "--reason", "x"], ["step=N/pack=M"]),
        (["plan", "diff", "PLAN", "nothing"], ["no plan 'nothing'"]),
        (["plan", "amend", "PLAN", "--from-step", 1, "--reason", "x"], ["differs in nothing"]),
        (["plan", "amend", "PLAN", "--from-step", 1, "--set", "x", "--reason", "x"], ["FIELD=VALUE"]),
        (["plan", "amend", "PLAN", "--from-step", 1, "--set", "sedd=1", "--reason", "x"], ["sedd", "seed"]),
        (["quote", "absent.yaml"], ["absent.yaml"]),
        (["quote", "absent.yaml", "--usd-per-gb", "cheap"], ["'cheap' is not a number"]),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(k25, plan, words, said):
    assert_refused(k25(*(plan if word == "PLAN" else word for word in words)), *said)
