"""Pixels to pixels of another size: Pillow's antialiased bicubic, bit for bit, at several times its speed.

Integer arithmetic as Pillow's: weights are computed in double, normalised, rounded to 22 bits after
the point; each pass rounds to whole levels. A pass mixes whole rows, so that the processor takes
many columns at once; the horizontal pass does so on blocks of rows that are transposed and back.
"""

import threading

import numpy as np
from numba import njit

WEIGHT_BITS = 22
"""Binary places of a weight; with 8 bits of level and 2 of overshoot it fills 32."""
HALF = np.int32(1 << (WEIGHT_BITS - 1))
REACH = 2.0
"""Support of the bicubic filter [source pixels when enlarging, else output pixels]."""
BLOCK_ROWS = 64
"""Rows transposed at once: a block of a photograph stays in the second-level cache."""
SCRATCH_BYTES = 16 * 2**20
"""What a thread keeps between two images at most [bytes]."""

_THREAD = threading.local()


def resized(
    source: np.ndarray,
    size: tuple[int, int],
    box: tuple[float, float, float, float],
    *,
    flip_x: bool = False,
    flip_y: bool = False,
) -> np.ndarray:
    """Return a part of an image at another size: the bits of `Image.resize(size, BICUBIC, box=box)`.

    Mirroring costs nothing: it is where the last writes go.

    Args:
        source: uint8 [H, W, 3].
        size: width and height of the output, at least 1 [pixels].
        box: left, upper, right, lower edge of the part, inside the source [pixels].
        flip_x: mirror left to right afterwards.
        flip_y: mirror top to bottom afterwards.

    Returns:
        uint8 [height, width, 3], C-contiguous; the source itself where nothing changes.

    Raises:
        ValueError: the output or the box is empty, or the box reaches outside.

    Source: Pillow 13.0.0, `libImaging/Resample.c`; its pass order (vertical first where the height
        loses more than twice what the width does, since 13.0.0) was checked against the library.
    """
    height, width, _ = source.shape
    left, upper, right, lower = (np.float32(edge) for edge in box)
    if min(size) < 1 or not (0 <= left < right <= width and 0 <= upper < lower <= height):
        raise ValueError(f"cannot resize the part {tuple(box)} of {width}x{height} pixels to {size[0]}x{size[1]}")
    if tuple(size) == (width, height) and (left, upper, right, lower) == (0, 0, width, height):
        if not flip_x and not flip_y:
            return np.ascontiguousarray(source)
        return np.ascontiguousarray(source[:: -1 if flip_y else 1, :: -1 if flip_x else 1])
    scratch = _scratch(3 * max(size[1] * width, height * size[0]))
    edges, flips = (left, upper, right, lower), (flip_x, flip_y)
    return _resized(_writable(source), int(size[0]), int(size[1]), edges, flips, scratch)


def transposed(source: np.ndarray) -> np.ndarray:
    """Return uint8 [W, H, 3], rows and columns exchanged, of uint8 [H, W, 3]; C-contiguous."""
    source = _writable(source)
    height, width, _ = source.shape
    out = np.empty((width, height, 3), dtype=np.uint8)
    for first in range(0, height, BLOCK_ROWS):
        rows = min(BLOCK_ROWS, height - first)
        _turn(source, first, rows, 0, width, out, first)
    return out


def _writable(pixels: np.ndarray) -> np.ndarray:
    """Return pixels as the one type that is compiled for: C-contiguous, writable."""
    pixels = np.ascontiguousarray(pixels)
    return pixels if pixels.flags.writeable else pixels.copy()


def _scratch(num_bytes: int) -> np.ndarray:
    """Return uint8 [num_bytes or more] that this thread wrote before: fresh memory costs more than the resize."""
    kept = getattr(_THREAD, "scratch", None)
    if kept is None or len(kept) < num_bytes:
        kept = np.empty(num_bytes, dtype=np.uint8)
        if num_bytes <= SCRATCH_BYTES:
            _THREAD.scratch = kept
    return kept


@njit(cache=True, nogil=True)
def _resized(source, width, height, box, flips, scratch):
    rows, columns, _ = source.shape
    first_x, count_x, weight_x = weights(columns, box[0], box[2], width)
    first_y, count_y, weight_y = weights(rows, box[1], box[3], height)
    out = np.empty((height, width, 3), dtype=np.uint8)
    if _starts_vertically(rows, columns, height, width):
        between = scratch[: height * columns * 3].reshape((height, columns, 3))
        _vertical(source, first_y, count_y, weight_y, between, flips[1])
        _horizontal(between, 0, height, first_x, count_x, weight_x, out, flips[0])
    else:
        low, high = first_y[0], first_y[-1] + count_y[-1]
        between = scratch[: (high - low) * width * 3].reshape((high - low, width, 3))
        _horizontal(source, low, high, first_x, count_x, weight_x, between, flips[0])
        _vertical(between, first_y - low, count_y, weight_y, out, flips[1])
    return out


@njit(cache=True, nogil=True)
def _starts_vertically(rows, columns, height, width):
    """Return whether the vertical pass comes first: the height loses more than twice what the width does."""
    return height < rows and rows - height > 2 * (columns - width)


@njit(cache=True, nogil=True)
def weights(source_length, low, high, length):
    """Return which source pixels make each output pixel of one axis, and with what weights.

    Args:
        source_length: of the axis [pixels].
        low: float32, the part's first edge [pixels].
        high: float32, the part's last edge [pixels].
        length: of the output's axis [pixels].

    Returns:
        int64 [length] first source pixel, int64 [length] number of them, int32 [length, widest]
        weights in units of 2**-WEIGHT_BITS, zero past the number.
    """
    scale = np.float64(high - low) / length
    spread = max(scale, 1.0)
    reach, shrink = REACH * spread, 1.0 / spread
    widest = int(np.ceil(reach)) * 2 + 1
    first, count = np.empty(length, dtype=np.int64), np.empty(length, dtype=np.int64)
    fixed, real = np.zeros((length, widest), dtype=np.int32), np.empty(widest, dtype=np.float64)
    for place in range(length):
        centre = np.float64(low) + (place + 0.5) * scale
        begin = max(int(centre - reach + 0.5), 0)
        num = min(int(centre + reach + 0.5), source_length) - begin
        total = 0.0
        for tap in range(num):
            real[tap] = _bicubic((tap + begin - centre + 0.5) * shrink)
            total += real[tap]
        for tap in range(num):
            weight = (real[tap] / total if total != 0.0 else real[tap]) * (1 << WEIGHT_BITS)
            fixed[place, tap] = int(weight - 0.5) if weight < 0 else int(weight + 0.5)
        first[place], count[place] = begin, num
    return first, count, fixed


@njit(cache=True, nogil=True)
def _bicubic(x):
    x = abs(x)
    if x < 1.0:
        return (1.5 * x - 2.5) * x * x + 1
    if x < 2.0:
        return (((x - 5) * x + 8) * x - 4) * -0.5
    return 0.0


@njit(cache=True, nogil=True)
def _vertical(source, first, count, weight, out, flip):
    """Mix the rows of `source` into those of `out`, which has as many columns."""
    width = 3 * out.shape[1]
    lines, mixed = source.reshape(source.shape[0], width), out.reshape(out.shape[0], width)
    _mix(lines, width, first, count, weight, mixed, flip)


@njit(cache=True, nogil=True)
def _horizontal(source, low, high, first, count, weight, out, flip):
    """Mix the columns of source rows [low, high) into those of `out`, which has as many rows."""
    length, begin, end = out.shape[1], first[0], first[-1] + count[-1]
    turned = np.empty((end, BLOCK_ROWS, 3), dtype=np.uint8)
    mixed = np.empty((length, BLOCK_ROWS, 3), dtype=np.uint8)
    lines, columns = turned.reshape(end, BLOCK_ROWS * 3), mixed.reshape(length, BLOCK_ROWS * 3)
    for start in range(low, high, BLOCK_ROWS):
        rows = min(BLOCK_ROWS, high - start)
        _turn(source, start, rows, begin, end, turned, 0)
        _mix(lines, 3 * rows, first, count, weight, columns, flip)
        _turn_back(mixed, rows, out, start - low)


@njit(cache=True, nogil=True)
def _turn(source, start, rows, begin, end, turned, column):
    """Write columns [begin, end) of `rows` source rows as rows of `turned`, from its `column` on."""
    for y in range(rows):
        for x in range(begin, end):
            for band in range(3):
                turned[x, column + y, band] = source[start + y, x, band]


@njit(cache=True, nogil=True)
def _turn_back(mixed, rows, out, start):
    """Write the first `rows` columns of `mixed` as rows of `out`, from row `start` on."""
    for y in range(rows):
        for x in range(mixed.shape[0]):
            for band in range(3):
                out[start + y, x, band] = mixed[x, y, band]


@njit(cache=True, nogil=True)
def _mix(lines, length, first, count, weight, out, flip):
    """Write weighted sums of lines, `length` levels each, as the lines of `out`, to whole levels."""
    sums = np.empty(length, dtype=np.int32)
    for place in range(first.shape[0]):
        begin, num = first[place], count[place]
        to = first.shape[0] - 1 - place if flip else place
        if num <= 4:  # all there is when enlarging: no sums in memory
            one, two, three = begin + min(1, num - 1), begin + min(2, num - 1), begin + min(3, num - 1)
            a, b, c, d = weight[place, 0], weight[place, 1], weight[place, 2], weight[place, 3]
            for i in range(length):
                pairs = np.int32(lines[begin, i]) * a + np.int32(lines[one, i]) * b + HALF
                level = np.int32(pairs + np.int32(lines[two, i]) * c + np.int32(lines[three, i]) * d) >> WEIGHT_BITS
                out[to, i] = min(max(level, 0), 255)
            continue
        for i in range(length):
            sums[i] = HALF
        for tap in range(0, num - 3, 4):
            line = begin + tap
            a, b, c, d = weight[place, tap], weight[place, tap + 1], weight[place, tap + 2], weight[place, tap + 3]
            for i in range(length):
                pairs = np.int32(lines[line, i]) * a + np.int32(lines[line + 1, i]) * b
                sums[i] += pairs + np.int32(lines[line + 2, i]) * c + np.int32(lines[line + 3, i]) * d
        for tap in range(num - num % 4, num):
            line, a = begin + tap, weight[place, tap]
            for i in range(length):
                sums[i] += np.int32(lines[line, i]) * a
        for i in range(length):
            out[to, i] = min(max(sums[i] >> WEIGHT_BITS, 0), 255)
