"""What `sample/decode.py` promises: strict, upright, three channels, Pillow's pixels."""

import io

import numpy as np
import pytest
from PIL import Image, ImageOps

from k25_pipelines.errors import SampleError
from k25_pipelines.sample import decode
from k25_pipelines.sample.decode import dct_scale, decode_image


def picture(width=61, height=40):
    rows, columns = np.mgrid[0:height, 0:width]
    noise = np.random.default_rng(1).integers(0, 40, (height, width))
    return np.stack([columns * 4 % 256, rows * 6 % 256, (rows + columns + noise) % 256], axis=2).astype(np.uint8)


def encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_the_fast_path_of_jpeg_gives_the_bits_of_pillow(subsampling, progressive, mode):
    image = Image.fromarray(picture(333, 217)).convert(mode)
    data = encoded(image, "JPEG", quality=83, subsampling=subsampling if mode == "RGB" else 0, progressive=progressive)
    with Image.open(io.BytesIO(data)) as opened:
        expected = np.asarray(opened.convert("RGB"))
    np.testing.assert_array_equal(decode_image(data), expected)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_the_orientation_comes_first(orientation, kind):
    exif = Image.Exif()
    exif[decode.ORIENTATION_TAG] = orientation
    data = encoded(Image.fromarray(picture()), kind, exif=exif)
    with Image.open(io.BytesIO(data)) as opened:
        expected = np.asarray(ImageOps.exif_transpose(opened))
    np.testing.assert_array_equal(decode_image(data), expected)


def test_colour_is_kept_and_alpha_dropped():
    pixels = picture()
    alpha = np.dstack([pixels, np.full(pixels.shape[:2], 90, np.uint8)])
    np.testing.assert_array_equal(decode_image(encoded(Image.fromarray(alpha))), pixels)


def test_palettes_with_transparency_become_their_colours():
    image = Image.fromarray(picture() // 64 * 64).quantize(32)
    expected = np.asarray(image.convert("RGB"))
    np.testing.assert_array_equal(decode_image(encoded(image, transparency=3)), expected)
    np.testing.assert_array_equal(decode_image(encoded(image, "GIF")), expected)


def test_sixteen_bit_grey_is_scaled_and_not_clipped():
    levels = np.linspace(0, 65535, 256).round().astype(np.uint16).reshape(16, 16)
    grey = decode_image(encoded(Image.fromarray(levels)))
    assert grey[:, :, 0].ravel().tolist() == list(range(256))


def test_cmyk_becomes_rgb():
    cmyk = Image.fromarray(picture()).convert("CMYK")
    assert np.abs(decode_image(encoded(cmyk, "JPEG", quality=95)).astype(int) - picture()).mean() < 12


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF"])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9])
def test_a_picture_that_is_cut_short_is_a_named_error(kind, share):
    data = encoded(Image.fromarray(picture(200, 150)), kind)
    with pytest.raises(SampleError, match="captions:7"):
        decode_image(data[: int(len(data) * share)], name="captions:7")


def test_a_png_with_a_flipped_byte_is_a_named_error():
    data = bytearray(encoded(Image.fromarray(picture())))
    data[len(data) // 2] ^= 1
    with pytest.raises(SampleError, match="checksum of the IDAT chunk"):
        decode_image(bytes(data))


def test_a_bomb_is_refused_before_it_is_decoded(monkeypatch):
    monkeypatch.setattr(decode, "MAX_PIXELS", 61 * 40 - 1)
    with pytest.raises(SampleError, match="61x40 pixels, more than"):
        decode_image(encoded(Image.fromarray(picture())))


def smooth(width, height):
    rows, columns = np.mgrid[0:height, 0:width]
    waves = [128 + 100 * np.sin(columns / 31 + band) * np.cos(rows / 23 - band) for band in range(3)]
    return np.stack(waves, axis=2).round().astype(np.uint8)


@pytest.mark.parametrize("reduce", [2, 4, 8])
@pytest.mark.parametrize("size", [(160, 96), (161, 99), (19, 10)])
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_reduced_decode_is_the_mean_of_whole_squares(reduce, size, kind):
    image = Image.fromarray(smooth(*size))
    found = decode_image(encoded(image, kind, **({"quality": 97} if kind == "JPEG" else {})), reduce=reduce)
    assert found.shape == (-(-size[1] // reduce), -(-size[0] // reduce), 3)
    squares = np.asarray(image.reduce(reduce)).astype(int)
    whole = found[: size[1] // reduce, : size[0] // reduce]  # what lies past the end of a JPEG is the encoder's
    assert np.abs(whole - squares[: whole.shape[0], : whole.shape[1]]).max() <= 6


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_reduced_decode_is_upright(orientation):
    exif = Image.Exif()
    exif[decode.ORIENTATION_TAG] = orientation
    data = encoded(Image.fromarray(smooth(160, 96)), "JPEG", exif=exif, quality=97)
    expected = np.asarray(Image.fromarray(decode_image(data)).reduce(4)).astype(int)
    found = decode_image(data, reduce=4)
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= 6


@pytest.mark.parametrize("reduce", [1, 2, 4, 8])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
def test_a_jpeg_that_is_cut_short_is_an_error_at_every_scale(reduce, share):
    data = encoded(Image.fromarray(picture(400, 300)), "JPEG", quality=90)
    with pytest.raises(SampleError, match="captions:7"):
        decode_image(data[: int(len(data) * share)], name="captions:7", reduce=reduce)


def test_another_scale_is_refused():
    with pytest.raises(ValueError, match="reduced by 1, 8, 4, 2, not 3"):
        decode_image(encoded(Image.fromarray(picture())), reduce=3)


def test_the_scale_leaves_a_reduction_of_two_to_the_bicubic():
    def scales(*reductions, **more):
        return [dct_scale((1000, 800), (1000 / r, 800 / r), source=(1000, 800), **more) for r in reductions]

    assert scales(0.5, 1, 3.9, 4, 7.9, 8, 15.9, 16, 40) == [1, 1, 1, 2, 2, 4, 4, 8, 8]
    assert dct_scale((1000, 800), (10, 400), source=(1000, 800)) == 1  # the lesser of the two sides decides
    assert dct_scale((1001, 800), (50, 40), source=(1001, 800)) == 8
    assert dct_scale((1001, 800), (50, 40), source=(1001, 800), orientation=3) == 1
    assert dct_scale((1004, 800), (50, 40), source=(1004, 800), orientation=6) == 4
