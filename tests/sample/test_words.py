"""What `sample/words.py` promises: mirrors exchange sides, words that a change would belie forbid it."""

import pytest

from k25_pipelines.sample.words import (
    chosen,
    mirror_misleads,
    mirrored_order,
    mirrored_words,
    noised,
    pairs_are_whole,
    turn_misleads,
)


@pytest.mark.parametrize(
    ("words", "mirrored"),
    [
        ("a bear to the left of a tree", "a bear to the right of a tree"),
        ("Left LEFT rIght left_eye", "Right RIGHT left right_eye"),
        ("bright leftovers, right-hand", "bright leftovers, left-hand"),
        ("the leftmost cup, RIGHTWARDS", "the rightmost cup, LEFTWARDS"),
        ("it turns clockwise, then counter-clockwise", "it turns counterclockwise, then clockwise"),
    ],
)
def test_a_mirror_exchanges_the_words_for_sides(words, mirrored):
    assert mirrored_words(words) == mirrored


@pytest.mark.parametrize(
    ("words", "mirror", "turn"),
    [
        ("a bear to the left of a tree", False, True),
        ("a cup and a bowl", False, False),
        ("a cup above a bowl", False, True),
        ('a shop called "Lila"', True, False),
        ("a sign that reads stop", True, False),
        ("the signal is assigned to a letterbox", False, False),
        ("the western gate", True, True),
        ("una taza a la izquierda", True, True),
        ("左边有一只猫", True, True),
        ("all right, it was left behind", True, True),
        ("the bus has just left", True, True),
        ("a bright pastime", False, False),
    ],
)
def test_words_that_would_no_longer_be_true_are_known(words, mirror, turn):
    assert (mirror_misleads(["fine", words]), turn_misleads(["fine", words])) == (mirror, turn)


def test_keypoints_change_places_in_a_mirror():
    assert mirrored_order(["nose", "left_eye", "right_eye", "left_ear"]) == [0, 2, 1, 3]
    assert pairs_are_whole(["nose", "left_eye", "right_eye"])
    assert not pairs_are_whole(["nose", "left_eye"])


def test_the_draw_of_words_is_the_first_where_nothing_was_drawn():
    assert [chosen("abc", words) for words in (0, 1, 3, 5, 7)] == ["a", "a", "b", "c", "a"]


@pytest.mark.parametrize(
    ("case", "space", "noisy"),
    [
        (7, 7, " A cup.\nTwo  cups. "),
        (0, 7, " a cup.\ntwo  cups. "),
        (1, 7, " A CUP.\nTWO  CUPS. "),
        (7, 0, "A cup. Two cups."),
        (7, 1, "A cup.\nTwo  cups."),
        (7, 3, " A cup.\nTwo  cups. \n"),
    ],
)
def test_noise_changes_case_and_whitespace_as_its_bits_say(case, space, noisy):
    assert noised(" A cup.\nTwo  cups. ", 1 | case << 1 | space << 4) == noisy


def test_without_a_draw_there_is_no_noise_and_with_any_the_letters_stay():
    text = "Two  cups\n on a Table."
    assert noised(text, 0) == text
    for bits in range(1, 4096, 2):
        assert "".join(noised(text, bits * 0x9E3779B97F4A7C15 & (2**64 - 1)).lower().split()) == "twocupsonatable."
