"""One affine map for pixels, points, boxes and polygons: source coordinates in, output coordinates out.

The convention of the whole project (OpenCV's): (x, y) is (column, row) of a pixel's centre and
the first pixel's centre is (0, 0), so an image W wide spans [-0.5, W - 0.5]. Boxes are
x0, y0, x1, y1 in the same coordinates. Readers of other conventions convert at the door:
`boxes_from_edges` does so for COCO's and Pillow's, which count from the first pixel's corner.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from PIL import Image

from k25_pipelines.sample.resample import resized as resampled
from k25_pipelines.sample.resample import transposed

cv2.setNumThreads(1)  # the loader owns the threads; OpenCV's own would only take turns with them

STRAIGHT = 1e-9
"""A matrix entry below this, of a map that neither turns nor shears, is rounding."""
INSIDE = 1e-3
"""A part that reaches out of the source by less than this is inside [pixels]."""
SNAP = 6
"""Decimals of a crop's edge read back from a matrix [pixels]."""


@dataclass(frozen=True, slots=True, eq=False)
class Affine:
    """A map from source to output pixel centres, and the output's size."""

    matrix: np.ndarray
    """float64 [3, 3], last row 0 0 1; acts on columns (x, y, 1)."""
    width: int
    """Of the output [pixels]."""
    height: int
    """Of the output [pixels]."""

    def __post_init__(self) -> None:
        """Check the matrix and the size."""
        matrix = np.array(self.matrix, dtype=np.float64)
        if matrix.shape != (3, 3) or not np.array_equal(matrix[2], [0, 0, 1]):
            raise ValueError(f"an affine matrix is 3x3 with last row 0 0 1, not {matrix.tolist()}")
        if not np.isfinite(matrix).all() or abs(np.linalg.det(matrix)) < 1e-12:
            raise ValueError(f"the matrix {matrix.tolist()} flattens the image and cannot be undone")
        if self.width < 1 or self.height < 1:
            raise ValueError(f"an output of {self.width}x{self.height} pixels holds nothing")
        object.__setattr__(self, "matrix", matrix)

    def points(self, xy: np.ndarray) -> np.ndarray:
        """Return float64 [n, 2] output coordinates of [n, 2] source coordinates."""
        xy = np.asarray(xy, dtype=np.float64).reshape(-1, 2)
        return xy @ self.matrix[:2, :2].T + self.matrix[:2, 2]

    def boxes(self, xyxy: np.ndarray) -> np.ndarray:
        """Return float64 [n, 4] upright envelopes of the moved boxes, not clipped to the output."""
        corners = np.asarray(xyxy, dtype=np.float64).reshape(-1, 4)[:, [0, 1, 2, 1, 2, 3, 0, 3]]
        moved = self.points(corners).reshape(-1, 4, 2)
        return np.concatenate([moved.min(axis=1), moved.max(axis=1)], axis=1)

    def polygons(self, polygons: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Return each polygon of [k, 2] source vertices as float64 [k, 2] output vertices, not clipped."""
        return [self.points(polygon) for polygon in polygons]

    def pixels(self, image: np.ndarray, *, reduced: int = 1) -> np.ndarray:
        """Return the output uint8 [height, width, 3] of a source uint8 [H, W, 3].

        Crop, resize, flips and quarter turns are Pillow's antialiased bicubic of the cropped
        source, `Image.resize(size, BICUBIC, box=crop)`, then an exact reversal or exchange of rows
        and columns, so pixels that are only resized equal the reference processor's. Any other
        map is one area reduction by a whole factor, its half-pixel shift folded into the
        matrix, then one bicubic warp. What lies outside the source is black; where the whole
        output lies inside, its edge repeats the source's, so no black bleeds in.

        Args:
            image: the source's pixels.
            reduced: it was decoded at one over this of its sides (`decode.decode_image`); the
                matrix still starts at the whole source.
        """
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise ValueError(f"pixels are uint8 [H, W, 3], not {image.dtype} {list(image.shape)}")
        if reduced > 1:
            return self.after(enlargement(reduced, reduced, width=self.width, height=self.height)).pixels(image)
        matrix = self.matrix
        if _vanishes(matrix[0, 0], matrix[1, 1], matrix):  # a quarter turn: rows and columns change places at the end
            straight = Affine(matrix[[1, 0, 2]], self.height, self.width).pixels(image)
            return transposed(straight)
        box = self._crop(image) if _vanishes(matrix[0, 1], matrix[1, 0], matrix) else None
        if box is None:
            return _warped(image, self)
        flips = {"flip_x": matrix[0, 0] < 0, "flip_y": matrix[1, 1] < 0}
        return resampled(image, (self.width, self.height), box, **flips)

    def after(self, first: "Affine") -> "Affine":
        """Return the map that does `first` and then this one."""
        return Affine(self.matrix @ first.matrix, self.width, self.height)

    def stays_inside(self, width: int, height: int) -> bool:
        """Return whether every output pixel's area lies in a source of this size [pixels]."""
        edges = np.array([[-0.5, -0.5], [self.width - 0.5, -0.5], [-0.5, self.height - 0.5]])
        corners = np.linalg.solve(self.matrix[:2, :2], (edges - self.matrix[:2, 2]).T).T
        corners = np.concatenate([corners, [corners[1] + corners[2] - corners[0]]]) + 0.5
        return bool((corners >= -INSIDE).all() and (corners <= np.array([width, height]) + INSIDE).all())

    def _crop(self, source: np.ndarray) -> tuple[float, float, float, float] | None:
        """Return the source's part that fills the output, in edges; None if it reaches outside."""
        sides = []
        for axis, length in ((0, self.width), (1, self.height)):
            ends = (np.array([-0.5, length - 0.5]) - self.matrix[axis, 2]) / self.matrix[axis, axis] + 0.5
            low, high = sorted(round(float(end), SNAP) for end in ends)
            limit = source.shape[1 - axis]
            if low < -INSIDE or high > limit + INSIDE:
                return None
            sides.append((max(0.0, low), min(float(limit), high)))
        return sides[0][0], sides[1][0], sides[0][1], sides[1][1]


def crop_resize_flip(crop: tuple[float, float, float, float], *, width: int, height: int, flip: bool = False) -> Affine:
    """Return the map that cuts a part out of an image, resizes it, and mirrors it left to right.

    Args:
        crop: x, y, width, height of the part, from the source's upper left corner [pixels].
        width: of the output [pixels].
        height: of the output [pixels].
        flip: mirror after resizing.
    """
    x, y, crop_width, crop_height = crop
    scale_x, scale_y = width / crop_width, height / crop_height
    shift_x, shift_y = (0.5 - x) * scale_x - 0.5, (0.5 - y) * scale_y - 0.5
    if flip:
        scale_x, shift_x = -scale_x, width - 1 - shift_x
    return Affine(np.array([[scale_x, 0, shift_x], [0, scale_y, shift_y], [0, 0, 1]]), width, height)


def resize(source_width: int, source_height: int, *, width: int, height: int) -> Affine:
    """Return the map of a whole image to another size."""
    return crop_resize_flip((0, 0, source_width, source_height), width=width, height=height)


def flip(width: int, height: int) -> Affine:
    """Return the map that mirrors an image left to right."""
    return crop_resize_flip((0, 0, width, height), width=width, height=height, flip=True)


def rotation(degrees: float, *, width: int, height: int, about: tuple[float, float] | None = None) -> Affine:
    """Return the turn about a point, clockwise as seen, keeping an image's size.

    Args:
        degrees: how far; any number.
        width: of source and output [pixels].
        height: the same.
        about: the point that stays, in pixel centres; None is the image's middle.
    """
    cosine, sine = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    x, y = about or ((width - 1) / 2, (height - 1) / 2)
    turn = [[cosine, -sine, x - cosine * x + sine * y], [sine, cosine, y - sine * x - cosine * y], [0, 0, 1]]
    return Affine(np.array(turn), width, height)


def quarter_turns(turns: int, *, width: int, height: int) -> Affine:
    """Return the turn of a whole image by quarters, clockwise as seen, in whole numbers: no pixel is lost.

    Args:
        turns: how many quarters; any whole number.
        width: of the source [pixels].
        height: of the source [pixels].
    """
    last_x, last_y = width - 1, height - 1
    matrix = (
        [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
        [[0, -1, last_y], [1, 0, 0], [0, 0, 1]],
        [[-1, 0, last_x], [0, -1, last_y], [0, 0, 1]],
        [[0, 1, 0], [-1, 0, last_x], [0, 0, 1]],
    )[turns % 4]
    return Affine(np.array(matrix), *((height, width) if turns % 2 else (width, height)))


def enlargement(factor_x: int, factor_y: int, *, width: int, height: int) -> Affine:
    """Return the map of an image that was reduced by whole factors, from its first pixel on, back to the whole one.

    The first pixel of the reduced image stands in the middle of the `factor` pixels it came from:
    half a pixel less than `factor` halves. That is so of area means and of a JPEG's reduced DCT.
    """
    shift_x, shift_y = (factor_x - 1) / 2, (factor_y - 1) / 2
    return Affine(np.array([[factor_x, 0, shift_x], [0, factor_y, shift_y], [0, 0, 1]]), width, height)


def boxes_from_edges(xyxy: np.ndarray) -> np.ndarray:
    """Return boxes counted from the first pixel's corner as boxes in pixel centres: half a pixel less."""
    return np.asarray(xyxy, dtype=np.float64).reshape(-1, 4) - 0.5


def boxes_from_coco(xywh: np.ndarray) -> np.ndarray:
    """Return COCO boxes (x, y, width, height from the first pixel's corner) as xyxy in pixel centres."""
    xywh = np.asarray(xywh, dtype=np.float64).reshape(-1, 4)
    return boxes_from_edges(np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1))


def _vanishes(first: float, second: float, matrix: np.ndarray) -> bool:
    return max(abs(first), abs(second)) < STRAIGHT * np.abs(matrix[:2, :2]).max()


def _warped(image: np.ndarray, affine: Affine) -> np.ndarray:
    shrink = np.linalg.norm(affine.matrix[:2, :2], axis=0)
    factor_x, factor_y = (max(1, int(1 / value + 1e-9)) for value in shrink)
    reduced = image
    if factor_x > 1 or factor_y > 1:  # Pillow copies the image even where nothing is reduced
        reduced = np.asarray(Image.fromarray(image).reduce((factor_x, factor_y)))
    matrix = affine.after(enlargement(factor_x, factor_y, width=affine.width, height=affine.height)).matrix[:2]
    inside = affine.stays_inside(image.shape[1], image.shape[0])
    border = cv2.BORDER_REPLICATE if inside else cv2.BORDER_CONSTANT
    return cv2.warpAffine(reduced, matrix, (affine.width, affine.height), flags=cv2.INTER_CUBIC, borderMode=border)
