"""The perceptual hash: ImageHash's to the bit, and near for images that look alike."""

import imagehash
import numpy as np
import pytest
from PIL import Image

from k25_pipelines.governance.hashes import near
from k25_pipelines.sample.perceptual import hash_bits, perceptual_hash
from tests.sample.small_lake import photo


@pytest.mark.parametrize(("number", "width", "height"), [(1, 200, 140), (2, 64, 300), (5, 33, 31)])
def test_it_is_the_hash_of_imagehash(number, width, height):
    image = photo(number, width, height)
    assert perceptual_hash(np.asarray(image)) == str(imagehash.phash(image))


def test_it_stays_near_where_an_image_is_made_smaller_and_far_from_another():
    rng = np.random.default_rng(4)
    clouds = [Image.fromarray(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8)).resize((320, 240)) for _ in range(2)]
    whole, small, other = clouds[0], clouds[0].resize((150, 113)), clouds[1]
    hashes = [perceptual_hash(np.asarray(image)) for image in (whole, small, other)]
    assert set(near([None, *hashes[1:]], [(hashes[0], 6)])) == {1}


def test_nearness_counts_bits_and_the_nearest_wanted_hash_is_told():
    hashes = ["00000000000000ff", None, "0000000000000001"]
    assert near(hashes, [("00000000000000fe", 1), ("00000000000000ff", 0)]) == {0: ("00000000000000ff", 0)}
    assert near(hashes, [("0000000000000003", 2)]) == {2: ("0000000000000003", 1)}


def test_words_that_are_no_hash_are_refused():
    assert hash_bits("00000000000000ff") == 255
    with pytest.raises(ValueError, match="16 hexadecimal"):
        hash_bits("ff")


def test_a_flat_image_has_a_hash_that_does_not_depend_on_noise():
    flat = Image.new("RGB", (60, 40), (127,) * 3)
    assert perceptual_hash(np.asarray(flat)) == str(imagehash.phash(flat)) == "8000000000000000"
