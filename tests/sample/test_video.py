"""What `sample/video.py` promises: the sampled frames, their times and their pixels."""

import subprocess

import imageio_ffmpeg
import numpy as np
import pytest

from k25_pipelines.errors import SampleError
from k25_pipelines.sample.video import decode_volumes, frame_indices, start_seconds, volumes


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """12 grey frames at 8 a second, each brighter than the one before."""
    path = tmp_path_factory.mktemp("video") / "clip.mp4"
    source = "color=c=black:size=64x48:rate=8:duration=1.5,format=gray,geq=lum='16+N*18'"
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-f", "lavfi", "-i", source]
    subprocess.run([*command, "-pix_fmt", "yuv420p", str(path)], check=True)
    return path.read_bytes()


def test_frames_are_spread_evenly_from_the_first_to_the_last():
    assert frame_indices(12, 3).tolist() == [0, 6, 11]
    assert frame_indices(1, 1).tolist() == [0]
    assert frame_indices(250, 20)[[0, 1, -1]].tolist() == [0, 13, 249]


def test_volumes_are_runs_of_four_and_start_at_their_first_frame():
    runs = volumes(frame_indices(12, 6), 4)
    assert [run.tolist() for run in runs] == [[0, 2, 4, 7], [9, 11]]
    assert start_seconds(runs, 8.0) == [0.0, 1.125]


def test_the_frames_asked_for_are_the_frames_given(clip):
    runs = volumes(frame_indices(12, 6), 4)
    seen = list(decode_volumes(clip, runs, resize=lambda frame: frame[:24, :32], size=(64, 48)))
    assert [volume.shape for volume in seen] == [(4, 24, 32, 3), (2, 24, 32, 3)]
    brightness = np.concatenate(seen).mean(axis=(1, 2, 3))
    expected = [16 + 18 * number for number in (0, 2, 4, 7, 9, 11)]
    np.testing.assert_allclose(brightness, expected, atol=2)


def test_a_narrow_video_with_padded_rows_loses_its_padding(tmp_path):
    path, run = tmp_path / "narrow.mp4", [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error"]
    command = [*run, "-f", "lavfi", "-i", "testsrc=size=96x64:rate=8:duration=1", "-pix_fmt", "yuv420p", str(path)]
    subprocess.run(command, check=True)
    raw = subprocess.run([*run, "-i", str(path), "-f", "rawvideo", "-pix_fmt", "rgb24", "-"], capture_output=True)
    frames = np.frombuffer(raw.stdout, np.uint8).reshape(8, 64, 96, 3)
    (seen,) = decode_volumes(path.read_bytes(), [np.array([1, 5])], resize=lambda frame: frame, size=(96, 64))
    np.testing.assert_array_equal(seen, frames[[1, 5]])


def test_broken_videos_are_named_errors(clip, capfd):
    runs = volumes(frame_indices(12, 6), 4)
    for data in (b"", clip[: len(clip) // 2], b"x" * 1000):
        with pytest.raises(SampleError, match="clips:3"):
            list(decode_volumes(data, runs, resize=lambda frame: frame, size=(64, 48), name="clips:3"))
    with pytest.raises(SampleError, match="fewer than the manifest"):
        list(decode_volumes(clip, volumes(frame_indices(40, 6), 4), resize=lambda frame: frame, size=(64, 48)))
    with pytest.raises(SampleError, match="64x48 pixels, the manifest says 65x48"):
        list(decode_volumes(clip, runs, resize=lambda frame: frame, size=(65, 48)))
