"""What a dataset version may be used for, and who said so."""

import json

import pytest

from k25_pipelines.catalog import registry
from k25_pipelines.errors import DatasetError
from k25_pipelines.retention import (
    ACTIVE,
    STATES,
    TRANSITIONS,
    Change,
    check_plannable,
    checked_transition,
    history,
    planning_words,
    set_state,
    state_of,
)
from k25_pipelines.storage.store import Store, open_store

WHO = {"reason": "superseded", "author": "the test"}


def in_state(state: str) -> Change:
    return Change(state=state, previous="active", author="the test", reason="superseded", at="")


@pytest.fixture
def lake(tmp_path) -> Store:
    made = open_store(str(tmp_path / "lake"))
    made.put("raw/notes/0.jsonl", b'{"text": "words"}')
    registry.register(
        made,
        registry.Registration(
            name="notes", uri=f"{made.url}/raw/notes", kind="jsonl", licence="MIT", source="made here"
        ),
    )
    registry.index_dataset(made, "notes")
    return made


@pytest.fixture
def version(lake) -> str:
    return registry.load_manifest(lake, "notes").digest


def test_nothing_new_is_planned_from_where_a_version_can_be_deleted():
    sources = [state for state in STATES if "deleted" in TRANSITIONS[state]]
    assert sources == ["draft", "archived"]
    assert TRANSITIONS["deleted"] == ()


@pytest.mark.parametrize(
    ("state", "refused", "warned"),
    [("draft", 0, 1), ("active", 0, 0), ("deprecated", 0, 1), ("archived", 1, 0), ("deleted", 1, 0)],
)
def test_a_new_plan_is_refused_or_warned_by_the_state_of_its_sources(state, refused, warned):
    refusals, warnings = planning_words({"notes": in_state(state)})
    assert (len(refusals), len(warnings)) == (refused, warned)


def test_a_plan_that_there_is_goes_on_over_an_archived_version_and_not_over_a_deleted_one():
    states = {"a": in_state("archived"), "b": in_state("deleted")}
    refusals, warnings = planning_words(states, is_new=False)
    assert (len(refusals), warnings) == (1, [])
    assert refusals[0].startswith("dataset b is deleted (superseded, the test)")


def test_what_is_written_down_is_the_state_and_its_history(lake, version):
    assert state_of(lake, "notes", version) == ACTIVE
    set_state(lake, "notes", version, "deprecated", **WHO)
    set_state(lake, "notes", version, "archived", **WHO)
    assert [
        (change.previous, change.state, change.author, change.reason) for change in history(lake, "notes", version)
    ] == [
        ("active", "deprecated", "the test", "superseded"),
        ("deprecated", "archived", "the test", "superseded"),
    ]
    with pytest.raises(DatasetError, match="dataset notes is archived"):
        check_plannable(lake, {"notes": version})
    assert check_plannable(lake, {"notes": version}, is_new=False) == []


def test_a_version_that_was_just_indexed_may_become_a_draft_and_no_other(lake, version):
    set_state(lake, "notes", version, "draft", **WHO)
    set_state(lake, "notes", version, "active", **WHO)
    with pytest.raises(DatasetError, match="is active and cannot become draft"):
        set_state(lake, "notes", version, "draft", **WHO)


@pytest.mark.parametrize(
    ("state", "how", "said"),
    [
        ("gone", WHO, "no state 'gone'; write one of draft, active"),
        ("deleted", WHO, "is active and cannot become deleted; after active comes deprecated or archived"),
        ("archived", {"reason": " ", "author": "x"}, "wants a reason and an author"),
    ],
)
def test_a_change_that_may_not_be_is_refused(lake, version, state, how, said):
    with pytest.raises(DatasetError, match=said):
        set_state(lake, "notes", version, state, **how)
    assert history(lake, "notes", version) == []


def test_every_state_is_reached_from_the_first():
    reached, ahead = set[str](), ["draft"]
    while ahead:
        if (state := ahead.pop()) not in reached:
            reached.add(state)
            ahead += [checked_transition(state, then, where="x") for then in TRANSITIONS[state]]
    assert reached == set(STATES)


def test_the_command_changes_and_shows_it(lake, version, k25):
    done = k25("lifecycle", "notes", "archived", "--reason", "moved", "--author", "the test", K25_LAKE=lake.url)
    assert done.stdout == f"notes@{version[:12]}: active -> archived; no new plan; plans that there are go on\n"
    shown = k25("lifecycle", "notes", "--json", K25_LAKE=lake.url)
    assert [change["state"] for change in json.loads(shown.stdout)[version]] == ["archived"]
    refused = k25("lifecycle", "notes", "draft", "--reason", "x", K25_LAKE=lake.url)
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
