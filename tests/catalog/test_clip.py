"""The window of a video: which frames lie in it, decided once for planner and loader."""

import pytest

from k25_pipelines.catalog.clip import window_frames, window_start
from k25_pipelines.errors import SampleError


@pytest.mark.parametrize(
    ("start", "end", "first", "frames"),
    [
        (None, None, 0, 50),
        (0, 5, 0, 50),
        (0, 99, 0, 50),
        (1, 2, 10, 10),
        (1.0, None, 10, 40),
        (0.3, 0.6, 3, 3),
        (0.35, 0.6, 3, 3),
        (0.1 + 0.2, 0.7, 3, 4),
        (4.9, 5, 49, 1),
        (0, 0.01, 0, 1),
    ],
)
def test_a_window_holds_the_frames_that_are_shown_in_it(start, end, first, frames):
    assert (window_start(start, 10.0), window_frames(start, end, frames=50, fps=10.0)) == (first, frames)


@pytest.mark.parametrize(
    ("start", "end", "said"),
    [
        (5, None, "the window from 5 to the end s holds no frame: the video has 50 frames, 10 a second"),
        (2, 2, "the window from 2 to 2 s holds no frame: the video has 50 frames, 10 a second"),
        (-1, 2, "'start' is -1, expected seconds from 0 on"),
        ("1", 2, "'start' is '1', expected seconds from 0 on"),
        (0, float("nan"), "'end' is nan, expected seconds from 0 on"),
    ],
)
def test_an_empty_window_is_named(start, end, said):
    with pytest.raises(SampleError) as failure:
        window_frames(start, end, frames=50, fps=10.0)
    assert str(failure.value) == said
