"""Who stands where among stages, replicas and experts, and which numbers of ranks cannot share a model."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainers.config import ParallelConfig, TrainConfig
from trainers.parallel.pipeline import fitting
from trainers.parallel.ranks import Place, check_parallel
from trainers.recipes import model_config

CONFIG = TrainConfig(
    stage="joint",
    model=model_config("toy"),
    plan="none",
    steps=1,
    learning_rate=0.01,
    trainable=("language",),
    optimizer="muonclip",
)


def places(num_ranks: int, stages: int, expert_ranks: int) -> list[Place]:
    return [
        Place(rank=rank, num_ranks=num_ranks, stages=stages, expert_ranks=expert_ranks) for rank in range(num_ranks)
    ]


def test_places_in_view():
    sixth = places(8, 2, 2)[6]
    assert (sixth.stage, sixth.replica, sixth.expert_rank) == (1, 2, 0)
    assert (sixth.pipeline(), sixth.same_stage()) == ((2, 6), (4, 5, 6, 7))
    assert (sixth.expert_group(), sixth.same_experts()) == ((6, 7), (4, 6))


@given(stages=st.integers(1, 4), experts=st.integers(1, 4), sets=st.integers(1, 3))
def test_every_weight_has_its_ranks_and_every_rank_its_weights(stages, experts, sets):
    every = places(stages * experts * sets, stages, experts)
    for kind in ("pipeline", "same_stage", "expert_group", "same_experts"):
        groups = {getattr(place, kind)() for place in every}
        assert sorted(rank for group in groups for rank in group) == list(range(len(every)))
        assert all(place.rank in getattr(place, kind)() for place in every)
    for place in every:
        assert [every[rank].stage for rank in place.pipeline()] == list(range(stages))
        assert {every[rank].replica for rank in place.pipeline()} == {place.replica}
        assert [every[rank].expert_rank for rank in place.expert_group()] == list(range(experts))
        assert {(every[rank].stage, every[rank].expert_rank) for rank in place.same_experts()} == {
            (place.stage, place.expert_rank)
        }


@pytest.mark.parametrize(
    ("changes", "ranks", "told"),
    [
        ({"expert_ranks": 0}, 2, r"parallel\.expert_ranks is 0; expected at least 1"),
        ({"pipeline_stages": -1}, 2, r"parallel\.pipeline_stages is -1"),
        ({"virtual_stages": 0}, 2, r"parallel\.virtual_stages is 0"),
        ({"expert_ranks": 2}, 3, r"3 ranks .* parallel\.expert_ranks \(2\): start a multiple of 2"),
        ({"expert_ranks": 3}, 3, r"parallel\.expert_ranks is 3; it must divide language\.experts \(4\)"),
        ({"pipeline_stages": 2, "virtual_stages": 9}, 2, r"parallel\.virtual_stages \(9\) are more stages than"),
    ],
)
def test_what_cannot_be_shared_is_refused_by_the_name_of_its_field(changes, ranks, told):
    with pytest.raises(ValueError, match=told):
        check_parallel(ParallelConfig(**changes), CONFIG, ranks)


def test_experts_of_a_dense_model_cannot_be_shared():
    dense = replace(CONFIG, model=replace(CONFIG.model, language=replace(CONFIG.model.language, experts=0)))
    with pytest.raises(ValueError, match=r"it must divide language\.experts \(0\)"):
        check_parallel(ParallelConfig(expert_ranks=2), dense, 2)


def test_a_pipeline_compares_no_pictures_with_captions():
    with pytest.raises(ValueError, match=r"config\.contrastive_weight 1\.0"):
        check_parallel(ParallelConfig(pipeline_stages=2, virtual_stages=1), replace(CONFIG, contrastive_weight=1.0), 2)


def test_zero_1_has_all_weights_on_every_rank():
    with pytest.raises(ValueError, match=r"config\.optimizer is 'adamw'"):
        check_parallel(ParallelConfig(expert_ranks=2), replace(CONFIG, optimizer="adamw"), 2)
    check_parallel(ParallelConfig(), replace(CONFIG, optimizer="adamw"), 3)


def test_packs_are_filled_up_to_what_rounds_can_deal_out():
    assert [fitting(packs, 2) for packs in range(7)] == [1, 1, 2, 3, 4, 6, 6]
    assert [fitting(packs, 4) for packs in (3, 7, 9, 10, 13)] == [3, 7, 10, 10, 15]
