"""Headers: size as displayed, orientation, and whether the end is there; without decoding a pixel."""

import io
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from k25_pipelines.catalog import probe
from k25_pipelines.catalog.probe import HEAD_BYTES, WHOLE_BYTES, MediaHeader, probe_image, probe_image_at, probe_video
from k25_pipelines.errors import SampleError
from tests.catalog.conftest import film, picture, turned

KINDS = ["JPEG", "PNG", "WEBP"]


def noise(kind: str, side: int = 700, **options) -> bytes:
    data = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (side, side + 10, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(data, kind, **options)
    return data.getvalue()


@pytest.mark.parametrize("kind", KINDS)
def test_the_size_is_read(kind):
    assert probe_image(picture(13, 7, kind)) == MediaHeader(width=13, height=7)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_size_is_the_one_displayed(kind, orientation):
    expected = (13, 7) if orientation < 5 else (7, 13)
    header = probe_image(picture(13, 7, kind, exif=turned(orientation)))
    assert (header.width, header.height, header.orientation) == (*expected, orientation)


@given(
    st.integers(1, 90),
    st.integers(1, 90),
    st.sampled_from(["L", "RGB", "CMYK"]),
    st.sampled_from([{}, {"progressive": True}, {"comment": b"c" * 70}, {"icc_profile": b"p" * 99}, {"dpi": (9, 9)}]),
    st.integers(0, 9),
    st.integers(0, 2**32),
)
@settings(max_examples=150, deadline=None)
def test_the_short_way_through_a_jpeg_agrees_with_pillow(width, height, mode, options, harm, place):
    buffer = io.BytesIO()
    Image.new(mode, (width, height)).save(buffer, "JPEG", exif=turned(6) if harm == 8 else b"", **options)
    data = bytearray(buffer.getvalue())
    if harm < 3:  # one byte of the header changed, or the file cut there
        data[place % 200] ^= 1 << harm
    if harm == 9:
        del data[place % len(data) :]
    found = probe._plain_jpeg(bytes(data))
    if found is not None:
        assert probe._parsed_by_pillow(bytes(data)) == (found, "JPEG")


@pytest.mark.parametrize("orientation", [0, 9, 300])
def test_an_orientation_that_means_nothing_is_none(orientation):
    assert probe_image(picture(13, 7, exif=turned(orientation))) == MediaHeader(width=13, height=7)


def test_an_orientation_behind_the_pixels_of_a_png_is_seen():
    data = picture(13, 7, "PNG", exif=turned(6))
    start = data.index(b"eXIf") - 4
    length = struct.unpack_from(">I", data, start)[0] + 12
    end = data.index(b"IEND") - 4
    moved = data[:start] + data[start + length : end] + data[start : start + length] + data[end:]
    assert probe_image(moved) == MediaHeader(width=7, height=13, orientation=6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cut", [1, 20])
def test_a_truncated_image_is_refused(kind, cut):
    with pytest.raises(SampleError):
        probe_image(picture(64, 64, kind)[:-cut] if kind != "PNG" else picture(64, 64, kind)[: -8 - cut])


def test_the_end_of_a_thumbnail_is_not_the_end_of_the_image():
    data = picture(64, 64, exif=b"Exif\0\0" + picture(4, 4))
    assert probe_image(data).width == 64
    with pytest.raises(SampleError, match="truncated JPEG"):
        probe_image(data[:-2])


@pytest.mark.parametrize(
    "data", [b"", b"not an image", b"\xff\xd8\xff\xe0", b"\x89PNG\r\n\x1a\n", b"GIF89a" + bytes(90)]
)
def test_what_is_no_image_is_refused(data):
    with pytest.raises(SampleError):
        probe_image(data)


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_of_a_large_image_only_head_and_tail_are_read(kind):
    data, asked = noise(kind, quality=95), []
    assert len(data) > WHOLE_BYTES

    def read(offset: int, num_bytes: int) -> bytes:
        asked.append((offset, num_bytes))
        return data[offset : offset + num_bytes]

    assert probe_image_at(read, len(data)) == MediaHeader(width=710, height=700)
    assert asked == [(0, HEAD_BYTES), (len(data) - HEAD_BYTES, HEAD_BYTES)]


@pytest.mark.parametrize("kind", KINDS)
def test_a_large_image_cut_short_is_refused(kind):
    data = noise(kind, lossless=True, quality=95)
    assert probe_image(data) == MediaHeader(width=710, height=700)
    with pytest.raises(SampleError):
        probe_image(data[: len(data) - 1000])


def test_bytes_after_the_end_do_no_harm():
    assert probe_image(noise("JPEG", quality=95) + bytes(100_000)).width == 710


def test_a_film_is_probed(tmp_path):
    data = film(tmp_path, frames=7, width=48, height=32, fps=10)
    expected = MediaHeader(width=48, height=32, frames=7, fps=10.0)
    (tmp_path / "film.mp4").write_bytes(data)
    assert [probe_video(data), probe_video(str(tmp_path / "film.mp4"))] == [expected] * 2


@pytest.mark.parametrize(
    "harm", [lambda data: data[:-200], lambda data: data[:50], lambda data: b"", lambda data: b"x" * 99]
)
def test_a_broken_film_is_refused(tmp_path, harm):
    with pytest.raises(SampleError):
        probe_video(harm(film(tmp_path)))
