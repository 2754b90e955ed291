"""The perceptual hash of an image: 64 bits that stay nearly the same where it is resized, compressed or recoloured.

It is `phash` of the ImageHash library to the bit: 32x32 grey pixels, their discrete cosine transform, and of its 8x8
lowest frequencies which lie above the median.
"""

import numpy as np
from PIL import Image

BITS = 64
SIDE, LOW = 32, 8


def perceptual_hash(pixels: np.ndarray) -> str:
    """Return 16 hexadecimal characters for uint8 [H, W, 3] pixels, upright."""
    grey = Image.fromarray(pixels).convert("L").resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    low = (_COSINES @ np.asarray(grey, dtype=np.float64) @ _COSINES.T)[:LOW, :LOW]
    low = np.round(low, 6)  # what should be nothing is noise, which differs between processors
    bits = (low > np.median(low)).reshape(-1)
    return np.packbits(bits).tobytes().hex()


def hash_bits(words: str) -> int:
    """Return a hash told as 16 hexadecimal characters as a whole number. Raises ValueError: it is none."""
    if len(words) != BITS // 4:
        raise ValueError(f"{words!r} is no perceptual hash: {BITS // 4} hexadecimal characters")
    return int(words, 16)


def _cosines() -> np.ndarray:
    """Return the matrix of the discrete cosine transform II, not normalised, as ImageHash asks SciPy for it."""
    rows, columns = np.mgrid[0:SIDE, 0:SIDE]
    return 2 * np.cos(np.pi * rows * (2 * columns + 1) / (2 * SIDE))


_COSINES = _cosines()
