"""Raw samples made by hand: an image with any annotations, several media, and what a plan would say of them."""

import io
import json

import numpy as np
from PIL import Image

from k25_pipelines.catalog.line import Line, Part
from k25_pipelines.plan.draws import DrawRule, draw
from k25_pipelines.plan.size import patch_grid, profile, resized_size
from k25_pipelines.sample.augment import Draws, draws_of_row
from k25_pipelines.sample.read import RawSample
from k25_pipelines.sample.renderings import candidate_spans
from k25_pipelines.sample.tokens import load_tokenizer

KIMI = profile("kimi_k25")
TOKENIZER = load_tokenizer("default")
WIDTH, HEIGHT = 200, 140

CUP = {"bbox": [20, 10, 60, 50], "label": "left cup"}
BOWL = {"bbox": [100, 30, 90, 100], "category": "bowl", "angle": 30.0}
OUTLINE = {"segmentation": [[20, 20, 120, 10, 180, 100, 90, 60, 40, 130]], "category": "cloud"}
POINT = {"point": [150.5, 70.5], "label": "pole"}
FACE = {
    "bbox": [40, 20, 100, 100],
    "category": "person",
    "keypoint_names": ["nose", "left_eye", "right_eye"],
    "skeleton": [[1, 2], [1, 3]],
    "keypoints": [90, 70, 2, 70, 40, 1, 0, 0, 0],
}
SIGN = {"text": "STOP here", "polygon": [30, 30, 90, 40, 88, 60, 28, 50]}
PRICE = {"text": "5,90", "bbox": [120, 80, 30, 12]}

ANNOTATED = {
    "boxes": [CUP, BOWL, CUP],
    "polygons": [OUTLINE, OUTLINE | {"category": "right wing"}],
    "points": [POINT, POINT | {"point": [10, 10]}],
    "keypoints": [FACE],
    "lines": [SIGN, PRICE],
    "mixed": [CUP, OUTLINE | CUP, POINT, FACE],
}


def picture(width=WIDTH, height=HEIGHT, *, seed=1):
    rows, columns = np.mgrid[0:height, 0:width]
    waves = [127 + 100 * np.sin((columns * (1 + channel) + rows * seed) / 17) for channel in range(3)]
    buffer = io.BytesIO()
    Image.fromarray(np.stack(waves, axis=2).astype(np.uint8)).save(buffer, format="PNG")
    return buffer.getvalue()


def sample(inline=None, *, text=None, sizes=((WIDTH, HEIGHT),)):
    """A sample with images of these sizes."""
    parts = tuple(Part(kind="image", shard=f"{n}.png", width=w, height=h, frames=1) for n, (w, h) in enumerate(sizes))
    line = Line(
        key="sample", parts=parts, text_length=0, licence="CC0-1.0", source="made here", inline="", quarantine=""
    )
    media = tuple(picture(w, h, seed=n) for n, (w, h) in enumerate(sizes))
    return RawSample(line=line, text=text, media=media, inline=json.loads(json.dumps(inline or {})))


def planned(raw, augment=(), *, number=0, max_tokens=64):
    """Draws, length and patches that a plan would give the sample."""
    columns = [np.array([part.width for part in raw.media_parts]), np.array([part.height for part in raw.media_parts])]
    rule = DrawRule(seed=3, dataset="sample", augment=tuple(augment))
    first = (
        {"width": columns[0][:1], "height": columns[1][:1]}
        if len(columns[0])
        else dict.fromkeys(("width", "height"), np.zeros(1))
    )
    drawn = draw(rule, np.array([number]), np.array([0]), **first, max_tokens=max_tokens, profile=KIMI)
    row = {name: column[0].item() for name, column in drawn.items()}
    widths, heights = resized_size(columns[0], columns[1], max_tokens, KIMI)
    rows, cols = patch_grid(np.append(row["out_w"], widths[1:]), np.append(row["out_h"], heights[1:]), KIMI)
    patches = int((rows * cols).sum()) if len(widths) else 0
    words = max(sum(map(span_tokens, spans)) for spans in candidate_spans(raw, KIMI))
    return draws_of_row(row), words + patches // 4, patches


def span_tokens(span):
    """Tokens of a span, pads of media not counted."""
    return len(TOKENIZER.encode(span.words)) if span.words else int(span.media < 0)


def whole(**changes):
    """Draws that show the whole image as it is."""
    return Draws(**{"crop": (0.0, 0.0, float(WIDTH), float(HEIGHT)), "width": WIDTH, "height": HEIGHT, **changes})
