from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from k25_pipelines.errors import RecipeError
from k25_pipelines.plan.lane import Lane, Refusals, new_blend, refill
from k25_pipelines.plan.planner import plan_segments
from k25_pipelines.plan.recipe import recipe_at, source_names
from k25_pipelines.plan.shuffle import lane_samples
from k25_pipelines.plan.size import vision_tokens
from k25_pipelines.plan.source import SourceTable, sample_sizes, source_order
from k25_pipelines.plan.stream import Stream
from tests.plan.tables import images, recipe, rows, tables, text


def drawn(given, made, num_windows=3):
    """The samples that lane 0 draws in some windows, all still in the lane or in packs that left, and the lane."""
    names, by_name = source_names(made), {table.name: table for table in given}
    lane = Lane(number=0, cursors=[0] * len(names), blend=new_blend(recipe_at(made, 0), names, by_name))
    streams = [Stream(number=number, table=by_name[name]) for number, name in enumerate(names)]
    refusals = Refusals()
    for _ in range(num_windows):
        refill(lane, made, streams, lanes=1, refusals=refusals)
    return lane, refusals


def plainly_drawn(given, made, cursors):
    """The debts after the cursors stand so, by fractions: each sample from the source furthest behind."""
    names, by_name = source_names(made), {table.name: table for table in given}
    share = None if made.vision_share is None else Fraction(str(made.vision_share))
    debts, vision, at, left = [Fraction(0)] * len(names), Fraction(0), [0] * len(names), []
    live, worst, longest = set(range(len(names))), Fraction(0), 0
    sizes = []
    for name, cursor in zip(names, cursors, strict=True):
        order = source_order(by_name[name], made, 1)
        line, epoch = lane_samples(order, 0, np.arange(cursor + 1))
        found = sample_sizes(by_name[name], made.sources[name], made, line, epoch)
        sizes.append([*zip(line.tolist(), epoch.tolist(), *(found[k].tolist() for k in found), strict=True)])
    while sum(at) < sum(cursors):
        multimodal = {number for number in live if by_name[names[number]].multimodal}
        group = live if share is None else multimodal if vision > 0 else live - multimodal
        source = min(group, key=lambda number: (-debts[number], number))
        line, epoch, tokens, seen, *_ = sizes[source][at[source]]
        entry, table = made.sources[names[source]], by_name[names[source]]
        if entry.max_epochs is not None and epoch >= entry.max_epochs:
            for member in group:
                debts[member] = Fraction(0)
            live.discard(source)
            continue
        at[source] += 1
        if table.quarantined is not None and table.quarantined[line]:
            continue
        weight = sum(made.sources[names[number]].weight for number in group)
        for member in group:
            debts[member] += Fraction(made.sources[names[member]].weight, weight) * tokens
        debts[source] -= tokens
        vision += 0 if share is None else share * tokens - seen
        longest = max(longest, tokens)
        worst = max(worst, abs(vision), *(abs(debts[number]) for number in live))
        if table.excluded is None or not table.excluded[line]:
            left.append((source, line, epoch, tokens, seen))
    return at, left, worst, longest


def in_lane(lane):
    """Source, line, epoch, tokens and vision of whole samples that a lane holds."""
    items = np.concatenate([lane.carry, lane.pending.items])
    whole = items[items["start"] == 0]
    return sorted(zip(*(whole[name].tolist() for name in ("source", "line", "epoch")), strict=True))


CASES = {
    "one group": {"vision_share": None},
    "a share": {"vision_share": 0.1},
    "maximum epochs": {
        "vision_share": None,
        "sources": {"captions": {"weight": 1}, "code": {"weight": 4, "max_epochs": 1}},
    },
    "uneven weights": {
        "vision_share": 0.25,
        "sources": {
            "captions": {"weight": 7, "augment": ["resize", "crop"]},
            "code": {"weight": 1},
            "wiki": {"weight": 997},
        },
    },
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("left_out", ["excluded", "quarantined"])
def test_a_lane_draws_what_the_plain_rule_draws(case, left_out):
    made = recipe(**CASES[case])
    given = [table for table in (images("captions"), text("code", 300), text("wiki")) if table.name in made.sources]
    given[1] = replace(given[1], **{left_out: np.arange(300) % 3 == 1})
    lane, _ = drawn(given, made, num_windows=4)
    at, left, worst, longest = plainly_drawn(given, made, lane.cursors)
    assert at == lane.cursors
    assert in_lane(lane) == sorted(sample[:3] for sample in left)
    assert lane.blend.worst == pytest.approx(float(worst))
    assert lane.blend.worst < 3 * longest


@settings(max_examples=25, deadline=None)
@given(
    weights=st.lists(st.integers(1, 1000), min_size=2, max_size=5),
    tail=st.floats(0.7, 3),
    share=st.one_of(st.none(), st.integers(1, 30)),
    seed=st.integers(0, 2**31),
    epochs=st.one_of(st.none(), st.integers(1, 2)),
)
def test_debts_stay_below_three_longest_samples_on_heavy_tailed_lengths(weights, tail, share, seed, epochs):
    generator = np.random.Generator(np.random.PCG64(seed))
    given = []
    for number in range(len(weights)):
        lengths = np.minimum(30_000, 20 * (1 - generator.random(700)) ** (-1 / tail)).astype(np.int64)
        given.append(SourceTable(name=f"text{number}", digest="", chunk_lines=10, text_tokens=lengths))
    given[0] = replace(given[0], excluded=generator.random(700) < 0.2)
    sources = {table.name: {"weight": weight} for table, weight in zip(given, weights, strict=True)}
    sources["text1"]["max_epochs"] = epochs
    if share is not None:
        given.append(images("captions", 700))
        sources["captions"] = {"weight": 3, "augment": ["resize", "crop"]}
    made = recipe(vision_share=share and share / 100, sources=sources, pack_window=64, pack_tokens=2048)
    lane, _ = drawn(given, made, num_windows=12)
    assert lane.blend.worst < 3 * int(lane.blend.totals[2])


def test_excluded_lines_are_drawn_and_charged_but_never_packed():
    excluded = np.arange(3000) % 7 == 3
    given = [tables()[0], replace(tables()[1], excluded=excluded), tables()[2]]
    table = rows(list(plan_segments(given, recipe())))
    lines = table["line"].to_numpy()[np.array(table["dataset"].to_pylist()) == "wiki"]
    assert len(lines)
    assert not excluded[lines].any()
    plain, left_out = drawn(tables(), recipe(), 1)[0], drawn(given, recipe(), 1)[0]
    whole = recipe(blend="samples", vision_share=None)
    both = [drawn(these, whole, 3)[0] for these in (tables(), given)]
    assert left_out.blend.worst < 3 * int(left_out.blend.totals[2])
    assert plain.cursors[2] < left_out.cursors[2]  # what is left out makes room for others in a window
    assert [int(lane.blend.totals[1]) == sum(lane.cursors) for lane in both] == [True, True]


def test_a_source_of_excluded_lines_alone_is_refused_by_name():
    given = [tables()[0], replace(tables()[1], excluded=np.ones(3000, dtype=bool)), tables()[2]]
    with pytest.raises(RecipeError, match=r"no sample of wiki can be packed|wiki has no readable sample"):
        list(plan_segments(given, recipe()))


def test_samples_of_several_media_bring_all_of_them_at_full_frame():
    num = 200
    more = np.where(np.arange(num) % 4 == 0, 30, 0)
    table = images("albums", num, more_tokens=more, more_patches=4 * more, more_media=more // 30)
    made = recipe(sources={"albums": {"weight": 1, "augment": ["resize", "crop", "flip", "colour"]}}, vision_share=None)
    line = np.arange(num)
    sizes = sample_sizes(table, made.sources["albums"], made, line, line * 0)
    alone = sample_sizes(
        replace(table, more_media=None, more_tokens=None, more_patches=None),
        made.sources["albums"],
        made,
        line,
        line * 0,
    )
    single = more == 0
    assert all(np.array_equal(sizes[name][single], alone[name][single]) for name in sizes)
    for number in np.flatnonzero(~single).tolist():
        tokens, (t, h, w) = vision_tokens(int(table.width[number]), int(table.height[number]), max_tokens=1024)
        found = [int(sizes[name][number]) for name in ("vision_tokens", "patches", "media")]
        assert found == [tokens + 30, t * h * w + 120, 2]
    planned = rows(list(plan_segments([table], made)))
    several = planned.filter((planned["media"].to_numpy() == 2).tolist())
    assert several["crop_w"].to_pylist() == table.width[several["line"].to_numpy()].tolist()
    assert not any(several["flip"].to_pylist())


def test_weights_whose_debts_would_leave_64_bits_are_refused():
    sources = {name: {"weight": 2**31 - 1 - number} for number, name in enumerate(("captions", "code", "wiki"))}
    with pytest.raises(RecipeError, match="do not fit 64 bits"):
        list(plan_segments(tables(), recipe(sources=sources, pack_tokens=2**22)))
    long = replace(tables()[1], text_tokens=np.full(3000, 2**30))
    with pytest.raises(RecipeError, match=f"a sample of wiki has {2**30} tokens"):
        list(plan_segments([tables()[0], long, tables()[2]], recipe(sources=sources)))


def test_a_change_to_a_share_that_no_order_meets_is_refused_and_not_drawn_for_ever():
    changes = [{"from_step": 2, "vision_share": 0.95}]
    with pytest.raises(RecipeError, match="vision_share"):
        list(plan_segments(tables(), recipe(vision_share=0.1, changes=changes, steps=6)))
