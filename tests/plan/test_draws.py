import numpy as np
import pytest

from k25_pipelines.keys import random_bits, random_key, random_unit
from k25_pipelines.plan.draws import (
    AUGMENTATIONS,
    COLOUR_RANGE,
    DRAW_DTYPES,
    LARGEST_ANGLE,
    PLACES,
    QUALITIES,
    SIGMAS,
    SMALLEST_AREA,
    DrawRule,
    draw,
)
from k25_pipelines.plan.size import profile, resized_size

KIMI = profile("kimi_k25")
N = 4000
WIDTH = np.tile([640, 31, 5000, 1, 0], N // 5)
LINES = np.arange(N)
HEIGHT = np.tile([480, 900, 40, 1, 0], N // 5)


def drawn(augment=(), *, seed=1, dataset="captions", epoch=0, flip_safe=True, lines=LINES, **options):
    rule = DrawRule(seed=seed, dataset=dataset, augment=tuple(augment), flip_safe=flip_safe)
    width, height = WIDTH[lines], HEIGHT[lines]
    epochs = np.full(len(lines), epoch)
    return draw(rule, lines, epochs, width=width, height=height, max_tokens=1024, profile=KIMI, **options)


def test_without_augmentation_the_whole_frame_has_the_published_size():
    columns = drawn()
    out_w, out_h = resized_size(WIDTH, HEIGHT, 1024, KIMI)
    plain = {
        "crop_x": 0, "crop_y": 0, "crop_w": WIDTH, "crop_h": HEIGHT, "out_w": out_w * (WIDTH > 0),
        "out_h": out_h * (WIDTH > 0), "flip": False, "turns": 0, "angle": 0, "brightness": 1, "contrast": 1,
        "saturation": 1, "blur": 0, "jpeg": 0, "words": 0, "noise": 0,
    }  # fmt: skip
    for name, value in plain.items():
        assert (columns[name] == value).all(), name


@pytest.mark.parametrize("augment", [(), AUGMENTATIONS])
def test_columns_have_the_types_of_the_table(augment):
    assert {name: column.dtype for name, column in drawn(augment).items()} == {
        name: np.dtype(dtype) for name, dtype in DRAW_DTYPES.items()
    }


def test_crops_lie_inside_and_keep_their_area():
    columns = drawn(["crop"])
    seen = WIDTH > 0
    x, y, w, h = (columns[name][seen] for name in ("crop_x", "crop_y", "crop_w", "crop_h"))
    assert (x >= 0).all()
    assert (y >= 0).all()
    assert (x + w <= WIDTH[seen]).all()
    assert (y + h <= HEIGHT[seen]).all()
    assert (w * h >= SMALLEST_AREA * WIDTH[seen] * HEIGHT[seen] - 1e-6).all()
    assert (w >= 1).all()
    assert (h >= 1).all()
    part = (w * h / (WIDTH[seen] * HEIGHT[seen]))[::4]
    assert 0.7 < part.mean() < 0.8


def test_resizing_never_scales_up_nor_passes_the_budget_of_the_plain_size():
    plain, columns = drawn(), drawn(["resize"])
    assert (columns["out_w"] <= plain["out_w"]).all()
    assert (columns["out_h"] <= plain["out_h"]).all()
    assert (columns["out_w"][WIDTH > 28] >= 28).all()


def test_half_of_the_flip_safe_samples_are_flipped_and_none_of_the_others():
    assert 0.45 < drawn(["flip"])["flip"][WIDTH > 0].mean() < 0.55
    assert not drawn(["flip"], flip_safe=False)["flip"].any()


def test_colours_spread_around_one():
    columns = {name: column[WIDTH > 0] for name, column in drawn(["colour"]).items()}
    for name in ("brightness", "contrast", "saturation"):
        assert abs(columns[name].mean() - 1) < 0.02
        assert np.abs(columns[name] - 1).max() <= COLOUR_RANGE
    assert abs(np.corrcoef(columns["brightness"], columns["contrast"])[0, 1]) < 0.06


def test_a_sample_draws_the_same_alone_and_other_epochs_draw_others():
    columns = drawn(AUGMENTATIONS)
    alone = drawn(AUGMENTATIONS, lines=np.array([35]))
    assert {name: column[35] for name, column in columns.items()} == {name: c[0] for name, c in alone.items()}
    for other in ({"epoch": 1}, {"seed": 2}, {"dataset": "grounding"}):
        assert (drawn(AUGMENTATIONS, **other)["brightness"] != columns["brightness"])[WIDTH > 0].mean() > 0.99


def test_one_augmentation_does_not_move_the_draws_of_another():
    together = drawn(AUGMENTATIONS)
    for name, alone in (
        ("colour", "contrast"),
        ("turn", "turns"),
        ("blur", "blur"),
        ("jpeg", "jpeg"),
        ("noise", "noise"),
    ):
        assert (drawn([name])[alone] == together[alone]).all(), name


def test_numbers_are_those_of_the_projects_key_stream():
    key, columns = random_key("draws", 1, "captions"), drawn(AUGMENTATIONS)
    zeros = np.zeros(N, dtype=np.int64)
    unit = random_unit(key, LINES, zeros, PLACES.index("flip"))
    np.testing.assert_array_equal(columns["flip"], (unit < 0.5) & (WIDTH > 0))
    bits = random_bits(key, LINES, zeros, PLACES.index("noise")) | np.uint64(1)
    np.testing.assert_array_equal(columns["noise"], bits)


def test_quarter_turns_are_even_and_exchange_the_sides():
    columns, plain = drawn(["turn"]), drawn()
    counts = np.bincount(columns["turns"][WIDTH > 0], minlength=4)
    assert (np.abs(counts / counts.sum() - 0.25) < 0.02).all()
    odd = columns["turns"] % 2 == 1
    np.testing.assert_array_equal(columns["out_w"], np.where(odd, plain["out_h"], plain["out_w"]))
    np.testing.assert_array_equal(columns["out_h"], np.where(odd, plain["out_w"], plain["out_h"]))


@pytest.mark.parametrize("augment", [["rotate"], ["rotate", "crop"]])
def test_a_turned_part_lies_in_the_frame_and_keeps_most_of_each_side(augment):
    columns = drawn(augment)
    seen = WIDTH > 0
    x, y, w, h, angle = (columns[name][seen] for name in ("crop_x", "crop_y", "crop_w", "crop_h", "angle"))
    radians = np.deg2rad(np.abs(angle))
    across = (w * np.cos(radians) + h * np.sin(radians)) / 2
    down = (w * np.sin(radians) + h * np.cos(radians)) / 2
    for middle, reach, side in ((x + w / 2, across, WIDTH[seen]), (y + h / 2, down, HEIGHT[seen])):
        assert (middle - reach >= -1e-9 * side).all()
        assert (middle + reach <= side * (1 + 1e-9)).all()
    assert np.abs(angle).max() <= LARGEST_ANGLE
    assert abs(np.abs(angle[::4]).mean() - LARGEST_ANGLE / 2) < 0.3
    if "crop" not in augment:
        assert (w >= 0.74 * WIDTH[seen]).all()
        assert (h >= 0.74 * HEIGHT[seen]).all()


@pytest.mark.parametrize(("name", "lowest", "highest"), [("blur", *SIGMAS), ("jpeg", *QUALITIES)])
def test_half_of_the_samples_are_blurred_or_compressed_within_the_stated_range(name, lowest, highest):
    column = drawn([name])[name][WIDTH > 0]
    some = column[column > 0]
    assert 0.45 < len(some) / len(column) < 0.55
    assert (some >= lowest).all()
    assert (some <= highest).all()
    assert abs(some.mean() - (lowest + highest) / 2) < 0.03 * highest


def test_samples_said_to_be_plain_keep_their_pixels_and_only_draw_words():
    plain = LINES % 3 == 0
    mixed, drawn_all, undrawn = drawn(AUGMENTATIONS, plain=plain), drawn(AUGMENTATIONS), drawn(["words", "noise"])
    for name in DRAW_DTYPES:
        np.testing.assert_array_equal(mixed[name], np.where(plain, undrawn[name], drawn_all[name]))
        assert mixed[name].dtype == DRAW_DTYPES[name]


@pytest.mark.parametrize("augment", [(), AUGMENTATIONS])
def test_sizes_alone_are_the_sizes_of_the_whole_draw(augment):
    sizes, columns = drawn(augment, only_sizes=True), drawn(augment)
    assert sorted(sizes) == ["out_h", "out_w"]
    for name in sizes:
        np.testing.assert_array_equal(sizes[name], columns[name])
