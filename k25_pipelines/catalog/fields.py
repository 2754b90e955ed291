"""Which columns of a Parquet schema hold words, media, annotations and terms: a schema in, their names out."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa

from k25_pipelines.errors import DatasetError

TEXTS = ("text", "caption", "captions", "texts", "content")
ANNOTATIONS = ("annotations", "objects")
KEYS = ("key", "id")
TERMS = ("licence", "license", "source")
MEDIA_NAMES = ("image", "images", "img", "jpg", "jpeg", "png", "webp", "image_bytes", "video", "videos", "mp4")
FILE_NAMES = ("file", "file_name")
"""Columns of strings that name media only where they end as those do: tables of code have such columns too."""
PLACE_NAMES = ("image", "images", "image_path", "video", "videos", "video_path", *FILE_NAMES)
VIDEO_NAMES = ("video", "videos", "video_path", "mp4")


@dataclass(frozen=True, kw_only=True, slots=True)
class Column:
    """A column, and what its cells are."""

    name: str
    kind: str
    """`text`, `image` or `video`."""
    is_list: bool
    """A cell holds several."""
    has_bytes: bool = False
    """Media: the bytes stand in the cell, so may a path; else the cell is a key below the dataset's URI."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Fields:
    """The columns that samples are made of."""

    text: Column | None
    media: tuple[Column, ...]
    """In the order of the schema."""
    annotations: tuple[str, ...]
    terms: tuple[str, ...]
    """Columns of keys, licences and sources."""
    class_names: Mapping[str, Sequence[str]]
    """Hugging Face: column of annotations -> the words for its numbers."""

    @property
    def names(self) -> list[str]:
        """Every column that is read."""
        texts = [self.text.name] if self.text else []
        return list(dict.fromkeys([*texts, *(c.name for c in self.media), *self.annotations, *self.terms]))


def sample_fields(schema: pa.Schema, *, where: str) -> Fields:
    """Return the columns of a table that samples are made of.

    Args:
        schema: of the table.
        where: what it is called in errors.

    Raises:
        DatasetError: it has neither words nor media, or words of another type.
    """
    text = next((_text(schema.field(name), where) for name in TEXTS if name in schema.names), None)
    media = tuple(column for field in schema if (column := _medium(field)) and column.name != (text and text.name))
    if text is None and not media:
        raise DatasetError(
            f"{where} has neither words ({', '.join(TEXTS)}) nor media ({', '.join(MEDIA_NAMES[:3])}, ...);"
            f" its columns are {', '.join(schema.names)}"
        )
    annotations = tuple(name for name in ANNOTATIONS if name in schema.names)
    return Fields(
        text=text,
        media=media,
        annotations=annotations,
        terms=tuple(name for name in (*KEYS, *TERMS) if name in schema.names),
        class_names={name: found for name in annotations if (found := _class_names(schema, name))},
    )


def _text(field: pa.Field, where: str) -> Column:
    kind, is_list = _item_type(field.type)
    if not _is_string(kind):
        raise DatasetError(f"{where}: column {field.name!r} holds {field.type}, expected strings")
    return Column(name=field.name, kind="text", is_list=is_list)


def _medium(field: pa.Field) -> Column | None:
    kind, is_list = _item_type(field.type)
    name = field.name.lower()
    if pa.types.is_struct(kind):
        place = kind.get_field_index("bytes")
        has_bytes = place >= 0 and _is_binary(kind.field(place).type)
    else:
        has_bytes = _is_binary(kind) and name in MEDIA_NAMES
    if not has_bytes and not (_is_string(kind) and name in PLACE_NAMES):
        return None
    shown = "video" if name in VIDEO_NAMES else "image"
    return Column(name=field.name, kind=shown, is_list=is_list, has_bytes=has_bytes)


def _item_type(kind: pa.DataType) -> tuple[pa.DataType, bool]:
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    item = kind.value_type if is_list or pa.types.is_dictionary(kind) else kind
    return (item.value_type if pa.types.is_dictionary(item) else item), is_list


def _is_string(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def _is_binary(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)


def _class_names(schema: pa.Schema, name: str) -> Sequence[str]:
    """Return the words for a column's categories, as Hugging Face keeps them in the schema's metadata."""
    try:
        features = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))["info"]["features"]
    except (ValueError, KeyError, TypeError):
        return ()
    return _names_below(_value_of(_value_of(features, name), "category", "label")) or ()


def _value_of(features: object, *names: str) -> object:
    """Return the first value under one of the names, at any depth."""
    items = list(features.items()) if isinstance(features, Mapping) else []
    items += [("", item) for item in features] if isinstance(features, list) else []
    for key, value in items:
        if key in names:
            return value
    return next((found for _, value in items if (found := _value_of(value, *names)) is not None), None)


def _names_below(features: object) -> Sequence[str] | None:
    found = _value_of(features, "names")
    return found if isinstance(found, list) and all(isinstance(name, str) for name in found) else None
