import numpy as np
import pytest

from k25_pipelines.plan.draws import AUGMENTATIONS, COLOUR_RANGE, DRAW_DTYPES, SMALLEST_AREA, DrawRule, draw
from k25_pipelines.plan.size import profile, resized_size

KIMI = profile("kimi_k25")
N = 4000
WIDTH = np.tile([640, 31, 5000, 1, 0], N // 5)
LINES = np.arange(N)
HEIGHT = np.tile([480, 900, 40, 1, 0], N // 5)


def drawn(augment=(), *, seed=1, dataset="captions", epoch=0, flip_safe=True, lines=LINES):
    rule = DrawRule(seed=seed, dataset=dataset, augment=tuple(augment), flip_safe=flip_safe)
    width, height = WIDTH[lines], HEIGHT[lines]
    epochs = np.full(len(lines), epoch)
    return draw(rule, lines, epochs, width=width, height=height, max_tokens=1024, profile=KIMI)


def test_without_augmentation_the_whole_frame_has_the_published_size():
    columns = drawn()
    out_w, out_h = resized_size(WIDTH, HEIGHT, 1024, KIMI)
    plain = {
        "crop_x": 0, "crop_y": 0, "crop_w": WIDTH, "crop_h": HEIGHT, "out_w": out_w * (WIDTH > 0),
        "out_h": out_h * (WIDTH > 0), "flip": False, "brightness": 1, "contrast": 1, "saturation": 1, "words": 0,
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
    columns = drawn(["colour"])
    for name in ("brightness", "contrast", "saturation"):
        assert abs(columns[name].mean() - 1) < 0.02
        assert np.abs(columns[name] - 1).max() <= COLOUR_RANGE
    assert abs(np.corrcoef(columns["brightness"], columns["contrast"])[0, 1]) < 0.06


def test_a_sample_draws_the_same_alone_and_other_epochs_draw_others():
    columns = drawn(AUGMENTATIONS)
    alone = drawn(AUGMENTATIONS, lines=np.array([35]))
    assert {name: column[35] for name, column in columns.items()} == {name: c[0] for name, c in alone.items()}
    for other in ({"epoch": 1}, {"seed": 2}, {"dataset": "grounding"}):
        assert (drawn(AUGMENTATIONS, **other)["brightness"] != columns["brightness"]).mean() > 0.99


def test_one_augmentation_does_not_move_the_draws_of_another():
    assert (drawn(["colour"])["contrast"] == drawn(AUGMENTATIONS)["contrast"]).all()
