"""Video bytes to frames: which frames a model sees, when they are shown, and their pixels."""

import bisect
import io
from collections.abc import Callable, Iterator, Sequence

import decord
import numpy as np

from k25_pipelines.errors import SampleError

decord.logging.set_level(decord.logging.FATAL)

REORDERED_FRAMES = 16
"""How far a frame may be shown from where it is stored; the most that H.264 and HEVC allow [frames]."""
TRANSPORT_PACKET = 188
"""Of an MPEG transport stream; each begins with a G. decord never gets back to its first frame [bytes]."""


def frame_indices(num_frames: int, num_sampled: int) -> np.ndarray:
    """Return which frames of a video are seen: evenly spread, first and last included.

    Args:
        num_frames: of the video [frames].
        num_sampled: how many are seen, as `plan.size.sampled_frames` says [frames].

    Returns:
        int64 [num_sampled], ascending, in [0, num_frames).

    Source: how many is the published Kimi K2.5 rule, 2 a second or the video's own rate if that is
        lower, `max(round(frames * min(fps, 2) / fps), 1)`, and 4 in a row make a volume. Which ones
        is not published; numpy's `linspace(0, frames - 1, sampled)`, rounded, is what readers of its kind do.
    """
    return np.linspace(0, num_frames - 1, num_sampled).round().astype(np.int64)


def volumes(indices: np.ndarray, volume_frames: int) -> list[np.ndarray]:
    """Return the sampled frames in consecutive runs of `volume_frames`, the last perhaps shorter."""
    return [indices[first : first + volume_frames] for first in range(0, len(indices), volume_frames)]


def start_seconds(runs: Sequence[np.ndarray], fps: float) -> list[float]:
    """Return when the first frame of each volume is shown, at `fps` frames a second [seconds]."""
    return [int(run[0]) / fps for run in runs]


def decode_volumes(
    data: bytes,
    runs: Sequence[np.ndarray],
    *,
    resize: Callable[[np.ndarray], np.ndarray],
    size: tuple[int, int],
    name: str = "video",
) -> Iterator[np.ndarray]:
    """Yield the resized frames of each volume, uint8 [t, height, width, 3].

    Frames are resized as they are decoded, so that memory holds one volume at full size.

    Args:
        data: MP4, WebM or what else FFmpeg reads.
        runs: frame numbers of each volume, ascending.
        resize: one frame, uint8 [H, W, 3], to the size the plan counted.
        size: width and height that the manifest states [pixels].
        name: what the video is called in errors.

    Raises:
        SampleError: the bytes are no video, are cut short, or it has other frames than stated.
    """
    if data[: 2 * TRANSPORT_PACKET + 1 : TRANSPORT_PACKET] == b"GGG":
        raise SampleError(f"{name}: an MPEG transport stream, in which frames cannot be found; remux it to MP4")
    try:
        reader = decord.VideoReader(io.BytesIO(data), num_threads=1)
        num_frames = len(reader)
    except (RuntimeError, decord.DECORDError) as error:
        raise SampleError(f"{name}: {len(data)} bytes are no readable video ({type(error).__name__})") from error
    if num_frames <= max(int(run[-1]) for run in runs):
        raise SampleError(f"{name}: {num_frames} frames, fewer than the manifest states; index the dataset anew")
    cursor = _Cursor(reader)
    for run in runs:
        try:
            frames = [cursor.frame(int(number)) for number in run]
        except (RuntimeError, StopIteration, decord.DECORDError, IndexError) as error:
            raise SampleError(f"{name}: frames {run.tolist()} cannot be decoded ({type(error).__name__})") from error
        if frames[0].shape[1::-1] != size:
            seen = "x".join(map(str, frames[0].shape[1::-1]))
            raise SampleError(f"{name}: {seen} pixels, the manifest says {size[0]}x{size[1]}; index the dataset anew")
        yield np.stack([resize(frame) for frame in frames])


class _Cursor:
    """A place in a video that only moves forward, and to the right frame.

    decord counts key frames in the order in which frames are stored. Where a group is open (HEVC's
    default) some frames that are shown before a key frame are stored after it, and a jump to one of
    them, or to the key frame, lands some frames further on, as do all that follow in its group. So
    just past a key frame we come by reading on from before it; anywhere else a jump lands right.
    """

    def __init__(self, reader: decord.VideoReader) -> None:
        self.reader, self.place = reader, 0
        self.keys = sorted(int(key) for key in reader.get_key_indices()) or [0]
        self.newest: np.ndarray | None = None

    def frame(self, number: int) -> np.ndarray:
        """Return frame `number`, which is not before the one asked for last, uint8 [H, W, 3]."""
        if self.newest is not None and number == self.place - 1:
            return self.newest
        if number < self.place:
            raise ValueError(f"frame {number} lies before {self.place}; frames are asked for in order")
        if number > self.place:
            self._move(number)
        self.place, self.newest = number + 1, _pixels(self.reader.next().asnumpy())
        return self.newest

    def _move(self, number: int) -> None:
        key = self.keys[max(0, bisect.bisect_right(self.keys, number) - 1)]
        if key <= self.place or number > key + REORDERED_FRAMES:
            self.reader.seek_accurate(number)
        else:
            if key - 1 > self.place:
                self._move(key - 1)
                self.place = key - 1
            for _ in range(number - self.place):
                self.reader.next()
        self.place = number


def _pixels(frame: np.ndarray) -> np.ndarray:
    """Return a frame without the padding of its rows.

    Of narrow videos whose rows are padded (96 pixels wide, for one) decord takes it for channels.
    """
    height, width, channels = frame.shape
    if channels == 3:
        return frame
    return np.ascontiguousarray(frame.reshape(height, width * channels)[:, : width * 3]).reshape(height, width, 3)
