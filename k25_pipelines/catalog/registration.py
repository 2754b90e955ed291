"""What a dataset is called, where it lies and under which terms: checked once, then never changed."""

import difflib
import os
import re
from dataclasses import dataclass

from k25_pipelines.errors import DatasetError

NAME = re.compile(r"[a-z0-9_]+")


@dataclass(frozen=True, kw_only=True, slots=True)
class Registration:
    """A dataset in place: nothing is copied or converted."""

    name: str
    """Lower-case letters, digits and underscores."""
    uri: str
    """Prefix or folder below which the dataset's objects lie."""
    kind: str
    """Name of a module in `catalog/kinds`."""
    annotations: str | None = None
    """URI or key below `uri` of the file that says what is on the images or videos."""
    licence: str
    """SPDX name, of the samples that name none themselves."""
    source: str
    """Where it came from, of the samples that name none themselves."""


def checked_registration(registration: Registration, kinds: tuple[str, ...]) -> Registration:
    """Return a registration whose `uri` does not depend on the current folder.

    Raises:
        DatasetError: a name of other characters, an unknown kind, or an empty field.
    """
    name = registration.name
    if not NAME.fullmatch(name):
        raise DatasetError(f"dataset name {name!r} is not made of a-z, 0-9 and _ alone; choose another")
    if registration.kind not in kinds:
        raise DatasetError(f"{name}: unknown kind {registration.kind!r}{nearest(registration.kind, kinds)}")
    for field in ("uri", "licence", "source"):
        if not getattr(registration, field).strip():
            raise DatasetError(
                f"{name}: {field} is empty; every dataset says where it lies, its licence and its source"
            )
    fields = {field: getattr(registration, field) for field in Registration.__slots__}
    return Registration(**{**fields, "uri": absolute(registration.uri)})


def absolute(uri: str) -> str:
    """Return a URI without a slash at its end; a folder's path becomes absolute."""
    return uri.rstrip("/") if "://" in uri else os.path.abspath(uri)


def nearest(word: str, known: tuple[str, ...] | list[str]) -> str:
    """Return the end of an error: the known word most like `word`, and all of them."""
    close = difflib.get_close_matches(word, known, n=1)
    meant = f"; did you mean {close[0]!r}?" if close else ";"
    return f"{meant} known: {', '.join(sorted(known)) or 'none'}"
