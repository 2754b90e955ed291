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


def encoded(path, *options, num_frames=96):
    """Write a clip whose frames carry their number as eight black or white blocks; return what FFmpeg reads of it."""
    frames = np.random.default_rng(0).integers(60, 180, (8, 16, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
    frames = np.stack([np.roll(frames, 2 * number, axis=1) for number in range(num_frames)])
    for bit in range(8):
        frames[:, 16:32, bit * 16 : bit * 16 + 16] = (255 * (np.arange(num_frames) >> bit & 1))[:, None, None, None]
    run = [imageio_ffmpeg.get_ffmpeg_exe(), "-y", "-v", "error"]
    raw = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", "128x64", "-r", "24", "-i", "-"]
    subprocess.run([*run, *raw, *options, "-pix_fmt", "yuv420p", str(path)], input=frames.tobytes(), check=True)
    read = subprocess.run(
        [*run, "-i", str(path), "-f", "rawvideo", "-pix_fmt", "rgb24", "-"], capture_output=True, check=True
    )
    return np.frombuffer(read.stdout, np.uint8).reshape(-1, 64, 128, 3)


def number_of(frame):
    return sum(1 << bit for bit in range(8) if frame[20:28, bit * 16 + 4 : bit * 16 + 12].mean() > 128)


CODECS = {
    "h264": ["-c:v", "libx264", "-g", "24"],
    "h264-one-group": ["-c:v", "libx264", "-bf", "0", "-g", "250"],
    "h264-open-groups": ["-c:v", "libx264", "-g", "24", "-bf", "3", "-x264-params", "open-gop=1"],
    "h264-short-open-groups": ["-c:v", "libx264", "-g", "8", "-bf", "4", "-x264-params", "open-gop=1"],
    "hevc": ["-c:v", "libx265", "-g", "30", "-x265-params", "log-level=none"],
    "mpeg4": ["-c:v", "mpeg4", "-bf", "2", "-g", "24"],
    "vp9": ["-c:v", "libvpx-vp9", "-g", "24", "-cpu-used", "8"],
}


@pytest.mark.parametrize("codec", CODECS)
def test_every_frame_is_the_one_that_carries_its_number(codec, tmp_path):
    path = tmp_path / ("clip.webm" if codec == "vp9" else "clip.mp4")
    frames = encoded(path, *CODECS[codec])
    assert [number_of(frame) for frame in frames] == list(range(96))
    generator = np.random.default_rng(3)
    asked = [np.sort(generator.choice(96, size, replace=False)) for size in (1, 2, 3, 5, 8, 13, 21)]
    for indices in [frame_indices(96, 8), np.arange(20, 96), np.array([30, 30, 31, 31]), *asked]:
        runs = volumes(indices, 4)
        seen = list(decode_volumes(path.read_bytes(), runs, resize=lambda frame: frame, size=(128, 64)))
        assert [len(volume) for volume in seen] == [len(run) for run in runs]
        np.testing.assert_array_equal(np.concatenate(seen), frames[indices])


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


def test_a_transport_stream_is_refused_since_its_frames_would_be_others(tmp_path):
    encoded(tmp_path / "clip.ts", "-c:v", "libx264")
    data = (tmp_path / "clip.ts").read_bytes()
    with pytest.raises(SampleError, match="clips:3: an MPEG transport stream"):
        list(decode_volumes(data, [np.array([0])], resize=lambda frame: frame, size=(128, 64), name="clips:3"))


def test_broken_videos_are_named_errors(clip, capfd):
    runs = volumes(frame_indices(12, 6), 4)
    for data in (b"", clip[: len(clip) // 2], b"x" * 1000):
        with pytest.raises(SampleError, match="clips:3"):
            list(decode_volumes(data, runs, resize=lambda frame: frame, size=(64, 48), name="clips:3"))
    with pytest.raises(SampleError, match="fewer than the manifest"):
        list(decode_volumes(clip, volumes(frame_indices(40, 6), 4), resize=lambda frame: frame, size=(64, 48)))
    with pytest.raises(SampleError, match="64x48 pixels, the manifest says 65x48"):
        list(decode_volumes(clip, runs, resize=lambda frame: frame, size=(65, 48)))
