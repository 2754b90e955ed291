"""Duplicates are found and nothing else is; statistics agree with what plans count; what is read once stays read."""

import json

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from k25_pipelines.catalog import registry
from k25_pipelines.catalog.registration import Registration
from k25_pipelines.cli import main
from k25_pipelines.insight import balance, sample_sizes, step_balance
from k25_pipelines.insight.duplicates import find_duplicates, near_pairs
from k25_pipelines.insight.fingerprints import fingerprints
from k25_pipelines.insight.words import language, minhash, words_id
from k25_pipelines.plan.recipe import parse_recipe
from k25_pipelines.planning import make_plan, open_plan
from k25_pipelines.storage.store import open_store
from tests.sample.annotated import picture

TEXT = (
    "The wheel is one of the oldest and most important inventions, and nobody knows for certain who made the first. "
    * 3
)


@pytest.fixture
def lake(tmp_path):
    return open_store(f"memory://{tmp_path.name}")


def indexed(lake, name, kind, objects):
    for key, data in objects.items():
        lake.put(f"raw/{name}/{key}", data)
    registry.register(
        lake, Registration(name=name, uri=f"{lake.url}/raw/{name}", kind=kind, licence="CC0-1.0", source="made here")
    )
    return registry.index_dataset(lake, name)


def texts(lake, name, words):
    return indexed(lake, name, "jsonl", {"a.jsonl": "\n".join(json.dumps({"text": one}) for one in words).encode()})


def resaved(png: bytes) -> bytes:
    pixels = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR)
    return cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, 70])[1].tobytes()


def groups(lake, *manifests):
    found = find_duplicates({m.dataset: fingerprints(lake, m) for m in manifests})
    return {each.way: each.groups for each in found}


def test_the_same_bytes_and_a_picture_that_was_saved_again_are_found_also_across_datasets(lake):
    first = indexed(
        lake, "train", "images", {"a.png": picture(seed=1), "b.png": picture(seed=1), "c.png": picture(seed=9)}
    )
    other = indexed(lake, "held", "images", {"a.jpg": resaved(picture(seed=9)), "b.png": picture(seed=40)})
    found = find_duplicates({m.dataset: fingerprints(lake, m) for m in (first, other)})
    assert {each.way: each.groups for each in found} == {
        "same media": ((("train", 0), ("train", 1)),),
        "near pictures": ((("held", 0), ("train", 2)),),
        "same words": (),
        "near words": (),
    }
    assert [each.across().groups for each in found if each.groups] == [(), ((("held", 0), ("train", 2)),)]


def test_pictures_that_show_nothing_are_near_no_other(lake):
    blank = [cv2.imencode(".png", np.full((40, 40, 3), level, np.uint8))[1].tobytes() for level in (250, 252)]
    manifest = indexed(lake, "blank", "images", {"a.png": blank[0], "b.png": blank[1]})
    assert groups(lake, manifest)["near pictures"] == ()


def test_words_are_the_same_whatever_their_case_and_space_and_near_where_little_differs(lake):
    words = [
        TEXT,
        TEXT.upper().replace(" ", "  "),
        TEXT.replace("oldest", "finest", 1),
        "Something else entirely, of no length.",
    ]
    found = groups(lake, texts(lake, "notes", words))
    assert found["same words"] == ((("notes", 0), ("notes", 1)),)
    assert found["near words"] == ((("notes", 0), ("notes", 1), ("notes", 2)),)


@given(st.lists(st.integers(0, 2**64 - 1), min_size=2, max_size=30), st.integers(0, 7), st.data())
def test_near_pairs_are_those_that_comparing_all_with_all_finds(values, near_bits, data):
    flips = data.draw(st.lists(st.sets(st.integers(0, 63), max_size=8), min_size=len(values), max_size=len(values)))
    values = values + [value ^ sum(1 << bit for bit in bits) for value, bits in zip(values, flips, strict=True)]
    hashes = np.array(values, dtype=np.uint64)
    everything = {
        (a, b)
        for a in range(len(values))
        for b in range(a + 1, len(values))
        if (values[a] ^ values[b]).bit_count() <= near_bits
    }
    assert set(near_pairs(hashes, near_bits)) == everything


def test_a_minhash_is_the_one_that_earlier_fingerprints_hold():
    assert minhash("one two") is None
    assert minhash("one two three four")[:4].tolist() == minhash("One, two: three FOUR!")[:4].tolist()
    assert words_id(" A  b ") == words_id("a b") != words_id("ab")


@pytest.mark.parametrize(
    ("text", "name"),
    [
        (TEXT, "en"),
        ("Il pleut sur la ville et je ne sais pas pourquoi les enfants jouent dehors.", "fr"),
        ("Das Rad ist eine der ältesten Erfindungen, und niemand weiß, wer es erfand.", "de"),
        ("hm", ""),
    ],
)
def test_languages_are_told_and_short_words_are_not(text, name):
    assert language(text) == name


def test_a_later_version_reads_only_blocks_whose_lines_are_new(lake, monkeypatch):
    monkeypatch.setattr("k25_pipelines.insight.fingerprints.FINGERPRINT_LINES", 4)
    first = texts(lake, "notes", [f"{TEXT} {number}" for number in range(8)])
    before = fingerprints(lake, first)
    lake.put("raw/notes/b.jsonl", json.dumps({"text": "new words of a later day, some of them"}).encode())
    second = registry.index_dataset(lake, "notes")
    told = []
    after = fingerprints(lake, second, progress=lambda done, total, what: told.append(done))
    assert after.slice(0, 8).equals(before)
    assert told == [4, 8, 9, 9]


def test_forgotten_lines_are_not_read_and_what_was_known_of_them_is_not_told(lake):
    manifest = texts(lake, "notes", [TEXT, TEXT])
    fingerprints(lake, manifest)
    assert fingerprints(lake, manifest, without=[1])["words"].to_pylist() == [words_id(TEXT), ""]


def test_sizes_are_those_that_a_plan_counts(lake):
    manifest = indexed(
        lake, "pictures", "images", {f"{n}.png": picture(60 + 9 * n, 200 - 7 * n, seed=n) for n in range(9)}
    )
    recipe = {
        "name": "all",
        "seed": 1,
        "pack_tokens": 2048,
        "packs_per_step": 1,
        "steps": 1,
        "sources": {"pictures": {"weight": 1}},
    }
    sizes = sample_sizes(lake, manifest)
    plan = open_plan(lake, make_plan(lake, parse_recipe(recipe)))
    for row in plan.rows(0).to_pylist():
        line = row["line"]
        assert (row["vision_tokens"], row["patches"]) == (sizes.vision_tokens[line], sizes.patches[line])
        assert row["num_tokens"] == sizes.tokens[line]


def test_balance_is_even_with_one_rank_and_counts_every_patch(lake):
    indexed(lake, "pictures", "images", {f"{n}.png": picture(60 + 19 * n, 90, seed=n) for n in range(12)})
    recipe = {
        "name": "all",
        "seed": 1,
        "pack_tokens": 96,
        "packs_per_step": 4,
        "steps": 3,
        "sources": {"pictures": {"weight": 1}},
    }
    plan = open_plan(lake, make_plan(lake, parse_recipe(recipe)))
    patches = [sum(row["patches"] for row in plan.rows(step).to_pylist()) for step in range(3)]
    alone = step_balance(plan, num_ranks=1)
    assert (alone.most_patches.tolist(), alone.imbalance.tolist()) == (patches, [1.0] * 3)
    shared = step_balance(plan, num_ranks=4, bytes_per_patch=10)
    assert (shared.mean_patches * 4).tolist() == patches
    assert (shared.imbalance >= 1).all()
    fullest = int(shared.tower_bytes.max())
    assert shared.steps_over(fullest).tolist() == []
    assert shared.steps_over(fullest - 1).tolist() == np.flatnonzero(shared.tower_bytes == fullest).tolist()
    assert balance.BYTES_PER_PATCH == 34 * 1152 * 27


def test_the_command_finds_on_s3_what_a_held_out_set_shares_and_reads_nothing_twice(s3_environment, capsys):
    lake = open_store(s3_environment["K25_LAKE"])
    indexed(lake, "train", "images", {f"{n}.png": picture(seed=n) for n in (1, 9)})
    indexed(lake, "held", "images", {"a.jpg": resaved(picture(seed=9)), "b.png": picture(seed=40)})
    assert main(["insight", "train", "--against", "held", "--json"]) == 0
    first = capsys.readouterr().out
    told = json.loads(first)
    assert told["duplicates"]["near pictures"] == {"groups": 1, "spare": 1, "across": 1}
    assert (told["samples"], told["unreadable"], told["by_licence"]) == (2, 0, {"CC0-1.0": 2})
    for info in list(lake.list("raw/")):
        lake.delete(info.key)
    assert main(["insight", "train", "--against", "held", "--json"]) == 0
    assert capsys.readouterr().out == first
