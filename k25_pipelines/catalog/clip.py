"""The window of a video that a caption is about: seconds in, frames out; index and loader both use it."""

import math

from k25_pipelines.errors import SampleError

EDGE = 1e-6
"""A time this close to a frame's edge is on it [frames]."""


def window_start(start: object, fps: float) -> int:
    """Return the first frame of a window that starts at `start` [seconds], 0 if that is None.

    Raises:
        SampleError: `start` is no number of seconds.
    """
    return int(_seconds("start", start, 0.0) * fps + EDGE)


def window_frames(start: object, end: object, *, frames: int, fps: float) -> int:
    """Return how many frames of a video lie in a window, the end not included [frames].

    Args:
        start: of the window [seconds]; None is the start of the video.
        end: of the window [seconds]; None is the end of the video, as is any later time.
        frames: of the whole video.
        fps: frames a second.

    Raises:
        SampleError: a time is no number of seconds, or no frame lies between the two.
    """
    first = window_start(start, fps)
    last = min(math.ceil(_seconds("end", end, math.inf) * fps - EDGE), frames) if end is not None else frames
    if first >= last:
        raise SampleError(
            f"the window from {start or 0} to {'the end' if end is None else end} s holds no frame:"
            f" the video has {frames} frames, {fps:g} a second"
        )
    return last - first


def _seconds(name: str, value: object, absent: float) -> float:
    if value is None:
        return absent
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise SampleError(f"{name!r} is {value!r}, expected seconds from 0 on")
    return float(value)
