"""Video bytes to frames: which frames a model sees, when they are shown, and their pixels."""

import io
from collections.abc import Callable, Iterator, Sequence

import decord
import numpy as np

from k25_pipelines.errors import SampleError

decord.logging.set_level(decord.logging.FATAL)


def frame_indices(num_frames: int, num_sampled: int) -> np.ndarray:
    """Return which frames of a video are seen: evenly spread, first and last included.

    Args:
        num_frames: of the video [frames].
        num_sampled: how many are seen, as `plan.size.sampled_frames` says [frames].

    Returns:
        int64 [num_sampled], ascending, in [0, num_frames).
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
    try:
        reader = decord.VideoReader(io.BytesIO(data), num_threads=1)
        num_frames = len(reader)
    except (RuntimeError, decord.DECORDError) as error:
        raise SampleError(f"{name}: {len(data)} bytes are no readable video ({type(error).__name__})") from error
    if num_frames <= max(int(run[-1]) for run in runs):
        raise SampleError(f"{name}: {num_frames} frames, fewer than the manifest states; index the dataset anew")
    for run in runs:
        try:
            frames = _frames(reader, run.tolist())
        except (RuntimeError, decord.DECORDError, IndexError) as error:
            raise SampleError(f"{name}: frames {run.tolist()} cannot be decoded ({type(error).__name__})") from error
        if frames.shape[2:0:-1] != size:
            seen = "x".join(map(str, frames.shape[2:0:-1]))
            raise SampleError(f"{name}: {seen} pixels, the manifest says {size[0]}x{size[1]}; index the dataset anew")
        yield np.stack([resize(frame) for frame in frames])


def _frames(reader: decord.VideoReader, run: list[int]) -> np.ndarray:
    """Return frames, uint8 [t, H, W, 3].

    Of narrow videos whose rows are padded (96 pixels wide, for one) decord takes the padding for
    channels and refuses batches; their frames are read one by one and the padding cut off.
    """
    height, width, channels = reader[run[0]].shape
    if channels == 3:
        return reader.get_batch(run).asnumpy()
    rows = [reader[frame].asnumpy().reshape(height, width * channels)[:, : width * 3] for frame in run]
    return np.stack(rows).reshape(len(run), height, width, 3)
