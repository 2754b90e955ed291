"""What an evaluation asks: words kept and only pictures moved; a needle where it is said to be, and its digits."""

import json
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from torch.nn import functional

from k25_pipelines.errors import CheckpointError, DatasetError
from k25_pipelines.loader import PlanLoader
from k25_pipelines.plan.recipe import parse_recipe
from k25_pipelines.planning import make_plan
from k25_pipelines.sample.tokens import load_tokenizer
from tests.trainers.batches import Media, batch_of
from tests.trainers.conftest import toy_config, train
from trainers import evaluate
from trainers.evaluations.captions import partners, swapped
from trainers.evaluations.needle import DEPTHS, NAMES, NUM_DIGITS, Asked, _figures, long_texts, questions
from trainers.recipes import STRETCHES, evaluation_recipe

TOKENIZER = load_tokenizer("default")
TEXT = TOKENIZER.encode("Far away the river bends and nobody counts the stones in it. " * 60)
LENGTH = 256


@pytest.fixture(scope="module")
def held_out(lake):
    """The batch of real held-out captions that the evaluation looks at."""
    plan = make_plan(lake, parse_recipe(evaluation_recipe("captions_heldout", pack_tokens=LENGTH)))
    with PlanLoader(plan, lake, threads=1) as loader:
        return loader.batch(0)


@pytest.fixture(scope="module")
def checkpoints(lake, one_rank, tmp_path_factory) -> dict[str, str]:
    """Evaluation -> a checkpoint it can be asked of."""
    work = tmp_path_factory.mktemp("evaluated")
    stages = {"captions": "vit", "needle": "long_context"}
    records = {name: train(lake, toy_config(lake, stage), f"evaluated-{stage}", work) for name, stage in stages.items()}
    return {name: f"k25/checkpoints/{record['run']}/{record['step']:08d}" for name, record in records.items()}


def pictures(batch) -> list[bytes]:
    ends = np.cumsum(batch.grid_thw.prod(axis=1))[:-1]
    return [pixels.tobytes() for pixels in np.split(batch.patches, ends)]


def run_of(lake, checkpoint: str, work) -> evaluate.EvaluationRun:
    return evaluate.EvaluationRun(checkpoint=checkpoint, store=lake.url, run="e", work=str(work), threads=1)


def test_shuffled_pictures_leave_every_word_and_place_where_it_was(held_out):
    shuffled = swapped(held_out, partners(held_out, key=1))
    told = [each for each in fields(held_out) if not each.name.startswith("_")]
    same = [each.name for each in told if getattr(shuffled, each.name) is getattr(held_out, each.name)]
    assert same == [each.name for each in told if each.name != "patches"]
    assert not np.array_equal(shuffled.patches, held_out.patches)


def test_no_sample_that_takes_part_keeps_its_picture_and_no_picture_is_lost(held_out):
    partner = partners(held_out, key=1)
    taking_part = np.flatnonzero(partner != np.arange(len(partner)))
    assert 2 < len(taking_part) <= len({(sample.dataset, sample.line) for sample in held_out.provenance})
    assert sorted(partner) == list(range(len(partner)))
    before, after = pictures(held_out), pictures(swapped(held_out, partner))
    assert after == [before[number] for number in partner]
    assert all(after[number] != before[number] for number in taking_part)


def test_a_picture_moves_only_between_samples_of_its_grid_with_one_picture_each():
    documents = [
        [1, Media(thw=(1, 4, 4), seed=1), 5],
        [1, Media(thw=(1, 2, 8), seed=2), 5],  # as many patches, another grid
        [1, Media(thw=(1, 4, 4), seed=3), 5],
        [1, Media(thw=(1, 4, 4), seed=4), Media(thw=(1, 4, 4), seed=5), 5],  # two pictures
        [1, Media(thw=(1, 4, 4), seed=6), 5],
        [7, 8, 9],
    ]
    batch = batch_of([documents[:3], documents[3:]], length=24)
    partner = partners(batch, key=3)
    assert [int(number) for number in np.flatnonzero(partner == np.arange(6))] == [1, 3, 4]
    assert sorted(partner[[0, 2, 5]]) == [0, 2, 5]


def test_a_sample_shown_twice_takes_part_once():
    batch = batch_of([[[1, Media(thw=(1, 2, 2), seed=seed), 5] for seed in (1, 2, 1)]], length=24)
    twice = replace(batch, provenance=[replace(sample, line=sample.line % 2) for sample in batch.provenance])
    assert partners(batch, key=1).tolist() in ([1, 2, 0], [2, 0, 1])
    assert partners(twice, key=1).tolist() == [1, 0, 2]


def test_the_shuffle_is_named_by_its_key(held_out):
    assert partners(held_out, key=1).tolist() == partners(held_out, key=1).tolist()
    assert partners(held_out, key=1).tolist() != partners(held_out, key=2).tolist()


@pytest.mark.parametrize("number", range(3))
def test_a_needle_stands_at_its_depth_and_the_question_at_the_end_asks_for_it(number):
    untold, *told = questions(TEXT, TOKENIZER, number, length=LENGTH)
    assert [len(one.ids) for one in (untold, *told)] == [LENGTH] * (1 + len(DEPTHS))
    assert [one.told for one in (untold, *told)] == [False, True, True, True]
    secret = TOKENIZER.decode(told[0].ids[-NUM_DIGITS:])
    name = next(name for name in NAMES if f"of {name} is {secret}." in TOKENIZER.decode(told[0].ids))
    needle = TOKENIZER.encode(f"\nThe secret number of {name} is {secret}.\n")
    question = TOKENIZER.encode(f"\nThe secret number of {name} is ") + TOKENIZER.encode(secret)
    room = LENGTH - len(needle) - len(question)
    for depth, one in zip(DEPTHS, told, strict=True):
        at = int(depth * room)
        assert one.ids == TEXT[:at] + needle + TEXT[at:room] + question
    assert untold.ids == TEXT[: LENGTH - len(question)] + question
    assert secret not in TOKENIZER.decode(untold.ids[:-NUM_DIGITS])


def test_each_text_hides_another_number_and_the_numbers_are_those_of_past_runs():
    secrets = [TOKENIZER.decode(questions(TEXT, TOKENIZER, n, length=LENGTH)[0].ids[-NUM_DIGITS:]) for n in range(3)]
    assert secrets == ["3521", "5913", "1786"]


class Parrot:
    """Says the tokens that come true from the `knows`-th last on, and token 0 before them."""

    def __init__(self, knows: int):
        self.knows = knows

    def logits(self, inputs, merged) -> torch.Tensor:
        said = inputs.target.clone()
        said[: len(said) - self.knows] = 0
        return 100.0 * functional.one_hot(said, TOKENIZER.num_tokens).float()


def test_the_answers_digits_and_nothing_else_are_scored():
    asked = questions(TEXT, TOKENIZER, 0, length=LENGTH)
    perfect = {"digit_accuracy": 1.0, "exact_accuracy": 1.0, "digit_nll": 0.0, "digit_nll_untold": 0.0}
    assert _figures(Parrot(NUM_DIGITS), asked) == perfect
    half = _figures(Parrot(2), asked)
    assert (half["digit_accuracy"], half["exact_accuracy"]) == (0.5, 0.0)
    assert half["digit_nll"] == half["digit_nll_untold"] == 50.0


def test_what_was_never_told_is_counted_apart():
    ids = questions(TEXT, TOKENIZER, 0, length=LENGTH)[0].ids
    wrong_only_where_untold = [Asked(ids=ids, told=True), Asked(ids=[*ids[:-1], 1], told=False)]
    assert _figures(Parrot(NUM_DIGITS), wrong_only_where_untold)["digit_accuracy"] == 1.0


def test_long_texts_are_the_starts_of_long_documents_and_too_short_ones_are_an_error(lake):
    texts = long_texts(lake, TOKENIZER, num_tokens=300)
    assert [len(text) for text in texts] == [300, 300, 300]
    assert len({tuple(text) for text in texts}) == 3
    assert texts == long_texts(lake, TOKENIZER, num_tokens=300)
    with pytest.raises(DatasetError, match="long_documents: no document has 99999 tokens; register longer ones"):
        long_texts(lake, TOKENIZER, num_tokens=99999)


@pytest.mark.parametrize("name", ["captions", "needle"])
def test_an_evaluation_is_kept_under_the_digest_of_its_checkpoint(lake, checkpoints, tmp_path, name):
    found = evaluate.main(name, run_of(lake, checkpoints[name], tmp_path))
    digest = json.loads(lake.get(f"{checkpoints[name]}/record.json"))["digest"]
    assert json.loads(lake.get(f"k25/evaluations/{digest}/{name}.json")) == found
    assert found["checkpoint"] == checkpoints[name]
    assert all(np.isfinite(value) for value in found.values() if isinstance(value, float))
    assert evaluate.main(name, run_of(lake, checkpoints[name], tmp_path)) == found


def test_captions_are_measured_with_their_own_and_with_other_pictures(lake, checkpoints, tmp_path, held_out):
    found = evaluate.main("captions", run_of(lake, checkpoints["captions"], tmp_path))
    assert found["gap"] == found["shuffled_loss"] - found["true_loss"] != 0
    assert found["samples"] == np.count_nonzero(partners(held_out, key=1) != np.arange(len(held_out.grid_thw)))
    assert 0 <= found["retrieval_top1"] <= 1


def test_the_needle_is_looked_for_within_the_first_context_and_both_stretches_of_it(lake, checkpoints, tmp_path):
    found = evaluate.main("needle", run_of(lake, checkpoints["needle"], tmp_path))
    first, second = STRETCHES["toy"]
    lengths = (found["context"], found["extended_context"], found["longest_context"])
    assert lengths == (256, 256 * first, 256 * second)
    figures = {"digit_accuracy", "exact_accuracy", "digit_nll", "digit_nll_untold"}
    for where in ("_context", "_extended", "_longest"):
        named = {name.removesuffix(where) for name in found if name.endswith(where)}
        assert named >= figures


def test_an_evaluation_or_a_checkpoint_that_is_not_there_is_named(lake, tmp_path):
    with pytest.raises(ValueError, match="no evaluation is called 'taste'; there are captions, needle"):
        evaluate.main("taste", run_of(lake, "k25/checkpoints/nobody/00000001", tmp_path))
    with pytest.raises(CheckpointError, match="k25/checkpoints/nobody/00000001 is no published checkpoint"):
        evaluate.main("needle", run_of(lake, "k25/checkpoints/nobody/00000001", tmp_path))
