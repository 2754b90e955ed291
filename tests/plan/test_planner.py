import json
from dataclasses import replace

import numpy as np
import pytest

from k25_pipelines.errors import PlanError, RecipeError
from k25_pipelines.plan.planner import default_lanes, first_start, plan_segments
from k25_pipelines.plan.segment import SCHEMA, plan_id
from k25_pipelines.plan.size import vision_tokens
from tests.plan.tables import images, recipe, rows, tables, text, videos


def plan(*, given=None, segment_steps=None, **fields):
    return list(plan_segments(given or tables(), recipe(**fields), segment_steps=segment_steps))


def lines_of(table, name):
    return table["line"].to_numpy()[np.array(table["dataset"].to_pylist()) == name]


def sums(table, column):
    """Sum of a column over the rows of each step."""
    return np.bincount(table["step"].to_numpy(), weights=table[column].to_numpy()).astype(np.int64)


def pack_sums(table, column):
    numbers = np.unique(np.stack([table["step"].to_numpy(), table["pack"].to_numpy()]), axis=1, return_inverse=True)[1]
    return np.bincount(numbers, weights=table[column].to_numpy())


def test_rows_are_sorted_and_every_step_has_its_packs():
    [segment] = plan()
    table = rows([segment])
    place = list(zip(*(table[name].to_pylist() for name in ("step", "pack", "slot")), strict=True))
    assert segment.table.schema == SCHEMA
    assert place == sorted(set(place))
    assert sorted({(step, pack) for step, pack, _ in place}) == [(s, p) for s in range(20) for p in range(8)]


def test_packs_hold_at_most_their_tokens_and_are_nearly_full():
    table = rows(plan(steps=40))
    tokens = pack_sums(table, "num_tokens")
    assert tokens.max() <= 2048
    assert tokens.mean() / 2048 > 0.995


def test_every_step_has_the_vision_share():
    table = rows(plan(steps=100))
    share = sums(table, "vision_tokens") / sums(table, "num_tokens")
    assert abs(share.mean() - 0.1) < 0.003
    assert share.std() < 0.02


def test_sources_get_their_weights_in_tokens():
    segments = plan(steps=100)
    table = rows(segments)
    names, tokens = np.array(table["dataset"].to_pylist()), table["num_tokens"].to_numpy()
    wiki, code = tokens[names == "wiki"].sum(), tokens[names == "code"].sum()
    assert abs(wiki / (wiki + code) - 5 / 7) < 0.02
    worst = max(segment.header["report"]["worst_debt_tokens"] for segment in segments)
    assert worst < 3 * 9000


def test_planned_sizes_are_those_of_the_published_rule():
    sources = [images("captions"), videos("clips"), text("wiki")]
    weights = {table.name: {"weight": 1} for table in sources}
    table = rows(plan(given=sources, sources=weights, max_image_tokens=400, vision_share=0.5))
    by_name = {source.name: source for source in sources}
    for row in table.to_pylist():
        source, line = by_name[row["dataset"]], row["line"]
        if row["dataset"] == "wiki":
            assert (row["vision_tokens"], row["patches"], row["media"]) == (0, 0, 0)
            continue
        frames = 1 if source.fps[line] == 0 else max(1, round(int(source.frames[line]) * 2.0 / 25.0))
        size = int(source.width[line]), int(source.height[line])
        tokens, (t, h, w) = vision_tokens(*size, frames, max_tokens=400)
        assert (row["vision_tokens"], row["patches"], row["media"]) == (tokens, frames * h * w, t)
        assert row["num_tokens"] == source.text_tokens[line] + tokens


@pytest.mark.parametrize("length", [1, 7, 10, 20])
def test_the_length_of_segments_changes_no_pack(length):
    assert rows(plan(steps=20, segment_steps=length)).equals(rows(plan(steps=20)))


def test_more_steps_extend_the_same_plan():
    short, long = plan(steps=12, segment_steps=6), plan(steps=24, segment_steps=6)
    assert [segment.digest for segment in long[:2]] == [segment.digest for segment in short]
    assert plan_id(short[0].header) == plan_id(long[0].header) == plan_id(first_start(tables(), recipe()))
    header = json.loads(json.dumps(short[1].header))
    resumed = list(plan_segments(tables(), recipe(steps=24), segment_steps=6, resume=(header, short[1].state)))
    assert [segment.digest for segment in resumed] == [segment.digest for segment in long[1:]]


@pytest.mark.parametrize("fields", [{"seed": 8}, {"name": "other"}, {"pack_window": 128}, {"lanes": 2}])
def test_whatever_the_recipe_says_bears_identity(fields):
    assert plan_id(first_start(tables(), recipe(**fields))) != plan_id(first_start(tables(), recipe()))


def test_a_resumed_plan_of_other_data_is_refused():
    [segment] = plan()
    resume = segment.header, segment.state
    with pytest.raises(PlanError, match="from another captions than this version; make a new plan or a fork"):
        list(plan_segments([images("captions", 99), *tables()[1:]], recipe(), resume=resume))
    with pytest.raises(PlanError, match="from another recipe or tokenizer"):
        list(plan_segments(tables(), recipe(seed=8), resume=resume))
    with pytest.raises(PlanError, match="was planned by plan-0"):
        list(plan_segments(tables(), recipe(), resume=({**segment.header, "plan_version": "plan-0"}, segment.state)))


def test_a_source_runs_over_each_sample_once_an_epoch_and_stops_at_its_maximum():
    sources = [text("wiki", 500, longest=2000), text("code", 5000)]
    mixed = {"code": {"weight": 1}, "wiki": {"weight": 1, "max_epochs": 2}}
    table = rows(plan(given=sources, vision_share=None, sources=mixed, steps=100, lanes=2))
    wiki = np.array(table["dataset"].to_pylist()) == "wiki"
    seen = np.stack([table[name].to_numpy()[wiki] for name in ("line", "epoch")], axis=1)
    assert len(np.unique(seen, axis=0)) == len(seen) == 2 * 500
    assert np.unique(seen[:, 1]).tolist() == [0, 1]
    assert table["step"].to_numpy()[wiki].max() < 99


def test_a_dry_group_ends_the_plan_with_its_name_after_giving_all_it_has():
    fields = {"steps": 1000, "vision_share": None, "sources": {"wiki": {"weight": 1, "max_epochs": 1}}}
    done = []
    with pytest.raises(RecipeError, match=r"ran dry at their max_epochs: wiki, at step \d+; plan at most"):
        done.extend(plan_segments([text("wiki")], recipe(**fields), segment_steps=1))
    table = rows(done)
    assert 0.95 < len(np.unique(table["line"].to_numpy())) / 3000 <= 1


def test_long_texts_are_split_and_every_token_is_planned_once():
    sources = [text("wiki", 300, longest=20_000)]
    only = {"wiki": {"weight": 1, "max_epochs": 1}}
    table = rows(plan(given=sources, vision_share=None, sources=only, steps=40, pack_window=64))
    length = sources[0].text_tokens
    assert length.max() > 8 * 2048
    starts, tokens, line = (table[name].to_numpy() for name in ("token_start", "num_tokens", "line"))
    assert (starts % 2048 == 0).all()
    assert (tokens == np.minimum(2048, length[line] - starts)).all()
    assert len({*zip(line.tolist(), starts.tolist(), strict=True)}) == len(line)


def test_long_media_samples_are_refused_named_and_counted():
    tokens = np.where(np.arange(1500) % 10 == 3, 5000, 50)
    captions = images("captions")
    sources = [replace(captions, text_tokens=tokens), *tables()[1:]]
    segments = plan(given=sources, steps=40)
    report = segments[0].header["report"]
    lines = lines_of(rows(segments), "captions")
    assert not (lines % 10 == 3).any()
    assert report["refused"]["captions"] > 0
    assert {line % 10 for line in report["refused_lines"]["captions"]} == {3}


def test_quarantined_lines_are_drawn_but_not_packed():
    quarantined = np.arange(3000) % 2 == 0
    segments = plan(given=[replace(tables()[1], quarantined=quarantined), tables()[0], tables()[2]])
    assert (lines_of(rows(segments), "wiki") % 2 == 1).all()


def test_limits_of_patches_and_media_hold_in_every_pack():
    table = rows(plan(vision_share=0.4, max_images_per_pack=3, max_patches_per_pack=2500))
    assert pack_sums(table, "media").max() <= 3
    assert pack_sums(table, "patches").max() <= 2500


def test_a_change_takes_effect_exactly_at_its_step():
    change = {"from_step": 30, "vision_share": 0.3, "packs_per_step": 16, "sources": {"wiki": {"weight": 1}}}
    changed, plain = rows(plan(steps=60, changes=[change])), rows(plan(steps=30))
    before = changed.filter(np.array(changed["step"].to_numpy() < 30))
    assert before.equals(plain)
    share = sums(changed, "vision_tokens") / sums(changed, "num_tokens")
    assert abs(share[:30].mean() - 0.1) < 0.01
    assert (np.abs(share[30:33] - 0.3) < 0.05).all()
    assert abs(share[30:].mean() - 0.3) < 0.01
    packs = np.bincount(changed["step"].to_numpy(), weights=changed["slot"].to_numpy() == 0)
    assert packs.tolist() == [8] * 30 + [16] * 30


def test_a_change_may_add_and_remove_sources_and_is_kept_by_resuming():
    sources = [*tables(), text("maths", 800)]
    changes = [{"from_step": 10, "sources": {"maths": {"weight": 3}, "code": {"weight": 0}}, "reason": "more maths"}]
    segments = plan(given=sources, steps=30, changes=changes, segment_steps=5)
    table = rows(segments)
    late = np.array(table["step"].to_numpy() >= 10)
    names = np.array(table["dataset"].to_pylist())
    assert (set(names[~late]), set(names[late])) == ({"captions", "wiki", "code"}, {"captions", "wiki", "maths"})
    for segment in segments[1:]:
        resume = segment.header, segment.state
        resumed = plan_segments(sources, recipe(steps=30, changes=changes), segment_steps=5, resume=resume)
        assert next(iter(resumed)).digest == segment.digest


def test_a_blend_by_samples_counts_samples():
    mixed = {"code": {"weight": 1}, "wiki": {"weight": 3}}
    table = rows(plan(blend="samples", vision_share=None, sources=mixed, steps=60))
    firsts = np.array(table["dataset"].to_pylist())[table["token_start"].to_numpy() == 0]
    assert abs((firsts == "wiki").mean() - 0.75) < 0.02


def test_licences_that_are_not_allowed_fail_closed():
    sources = [text("wiki", licences={"MIT": 2990, "CC-BY-NC-4.0": 10})]
    with pytest.raises(RecipeError, match=r"source wiki .* 10 of CC-BY-NC-4.0; allowed are MIT"):
        plan(given=sources, licences=["MIT"], vision_share=None, sources={"wiki": {"weight": 1}})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"sources": {"wiki": {"weight": 1}}}, "needs a multimodal source"),
        ({"sources": {"captions": {"weight": 1}}}, "needs a text-only source"),
        ({"sources": {"captions": {"weight": 1}, "nowhere": {"weight": 1}}}, "no table of source nowhere"),
        ({"vision_share": 0.97}, "vision_share 0.97 cannot be met"),
    ],
)
def test_a_recipe_that_its_sources_cannot_meet_is_refused(fields, message):
    with pytest.raises(RecipeError, match=message):
        plan(**fields)


def test_a_source_without_a_readable_sample_is_refused():
    sources = [text("wiki", 10, quarantined=np.ones(10, dtype=bool))]
    with pytest.raises(RecipeError, match="wiki has no readable sample"):
        plan(given=sources, vision_share=None, sources={"wiki": {"weight": 1}})


@pytest.mark.parametrize(
    ("packs", "chunks", "lanes"), [(8, 999, 1), (16, 999, 2), (64, 999, 8), (64, 5, 4), (1024, 999, 64), (7, 9, 1)]
)
def test_lanes_by_default_leave_each_eight_packs_a_step(packs, chunks, lanes):
    assert default_lanes(recipe(packs_per_step=packs), chunks) == lanes
