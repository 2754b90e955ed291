"""What people ask to have forgotten -> the samples that hold it, wherever in the lake, and how to know it again.

A selector is `dataset:line`, `dataset/key`, a content id (64 hexadecimal characters), or `phash:` and a perceptual
hash (16). Every exact copy of what it names is found as well: the same media, or for a sample without any the same
words. With a distance, images that look alike are, too.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from k25_pipelines.catalog.blocked import Blocked
from k25_pipelines.catalog.contents import content_ids
from k25_pipelines.catalog.line import MEDIA_KINDS
from k25_pipelines.catalog.manifest import Manifest, part_columns
from k25_pipelines.catalog.media import content_id
from k25_pipelines.catalog.registration import nearest
from k25_pipelines.catalog.registry import dataset_names, dataset_versions, load_manifest
from k25_pipelines.errors import LineageError, SampleError
from k25_pipelines.governance.hashes import fill_hashes, has_media, image_hash, near, words_of
from k25_pipelines.sample.perceptual import hash_bits
from k25_pipelines.sample.read import cell_reader
from k25_pipelines.storage.store import Store

CONTENT_LETTERS = 64
PHASH = "phash:"
LOOKS_LIKE = "looks like "
Sample = tuple[str, int]
Progress = Callable[[int, int, str], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Wanted:
    """Selectors, sorted by what they are."""

    lines: Mapping[str, np.ndarray]
    """By dataset, int64, ascending."""
    contents: Sequence[str] = ()
    perceptual: Sequence[tuple[str, int]] = ()
    """Hash, and the most bits that may differ."""


@dataclass(kw_only=True, slots=True)
class Found:
    """The samples that are meant, and the ids by which they are known wherever they turn up."""

    why: dict[Sample, str] = field(default_factory=dict)
    """Every sample -> the selector, or what it has in common with one that was selected."""
    media: dict[str, int | None] = field(default_factory=dict)
    """Content id -> length [bytes], None where no sample of the lake holds it."""
    words: dict[str, int] = field(default_factory=dict)
    """Digest of words -> length of the sample's text [characters]."""
    perceptual: dict[str, int] = field(default_factory=dict)
    """Hash -> the most bits that may differ."""

    spared: dict[Sample, str] = field(default_factory=dict)
    """Look-alikes that somebody looked at and let stay."""

    @property
    def alike(self) -> dict[Sample, str]:
        """Samples that are meant because they look alike, and for nothing else."""
        return {sample: why for sample, why in self.why.items() if why.startswith(LOOKS_LIKE)}

    def let_stay(self, names: Sequence[str]) -> None:
        """Leave look-alikes out, told as `dataset:line`. Raises LineageError: one is none."""
        known = {f"{name}:{line}": (name, line) for name, line in self.alike}
        for name in names:
            if name not in known:
                raise LineageError(f"{name} is no look-alike of what is asked for{nearest(name, sorted(known))}")
            self.spared[known[name]] = self.why.pop(known[name])

    def blocked(self, takedown: str) -> Blocked:
        """Return what may not be indexed again because of them."""
        told = {"takedown": takedown}
        return Blocked(
            media={key: {**told, "num_bytes": size} for key, size in sorted(self.media.items())},
            words={key: {**told, "text_length": size} for key, size in sorted(self.words.items())},
            perceptual={key: {**told, "distance": bits} for key, bits in sorted(self.perceptual.items())},
        )


class Catalogue:
    """The newest version of every dataset, opened once, with what is known of its media."""

    def __init__(self, lake: Store, progress: Progress | None = None) -> None:
        """Open the lake's datasets, those that are indexed."""
        self.lake, self.progress = lake, progress
        self.names = [name for name in dataset_names(lake) if dataset_versions(lake, name)]
        self._manifests: dict[str, Manifest] = {}
        self._contents: dict[str, list[str | None]] = {}
        self._parts: dict[str, dict[str, np.ndarray]] = {}

    def manifest(self, name: str) -> Manifest:
        """Return a dataset's newest version. Raises LineageError: there is none."""
        if name not in self.names:
            raise LineageError(f"no indexed dataset {name!r} in {self.lake.url}{nearest(name, self.names)}")
        if name not in self._manifests:
            self._manifests[name] = load_manifest(self.lake, name)
        return self._manifests[name]

    def parts(self, name: str) -> dict[str, np.ndarray]:
        """Return every field of every part of a dataset, and its line."""
        if name not in self._parts:
            self._parts[name] = part_columns(self.manifest(name))
        return self._parts[name]

    def contents(self, name: str) -> list[str | None]:
        """Return the content ids of a dataset's parts, as far as they are known; what is found out may be put in."""
        if name not in self._contents:
            self._contents[name] = content_ids(self.lake, self.manifest(name))
        return self._contents[name]


def find(
    catalogue: Catalogue,
    selectors: Iterable[str],
    *,
    distance: int | None = None,
    copies: bool = True,
    spare: Sequence[str] = (),
) -> Found:
    """Return the samples that selectors name and, unless told otherwise, every copy of them.

    Args:
        catalogue: of the lake.
        selectors: as above.
        distance: also images whose perceptual hash differs in at most so many of 64 bits; None: exact copies alone,
            and for `phash:` selectors 0.
        copies: False finds nothing but what selectors name.
        spare: `dataset:line` of look-alikes that are left out.

    Raises:
        LineageError: a selector that cannot be read, or names nothing.
    """
    selectors = list(dict.fromkeys(selectors))
    found = Found()
    wanted = _sorted_out(catalogue, selectors, found, distance or 0)
    if copies:
        _identify(catalogue, wanted.lines, found, look=distance)
    found.media |= {content: found.media.get(content) for content in wanted.contents}
    found.perceptual |= {words: max(bits, found.perceptual.get(words, 0)) for words, bits in wanted.perceptual}
    if found.media or found.words or found.perceptual:
        _learn_sizes(catalogue, found)
        for name in catalogue.names:
            _find_copies(catalogue, name, found, whole=None in found.media.values())
    found.let_stay(spare)
    return found


def _learn_sizes(catalogue: Catalogue, found: Found) -> None:
    """Note the lengths of media that were told by their content id, where some sample is known to hold them."""
    for name in catalogue.names if None in found.media.values() else ():
        parts = catalogue.manifest(name).columns.parts
        for place, content in enumerate(catalogue.contents(name)):
            if content in found.media and found.media[content] is None:
                found.media[content] = _size(parts["num_bytes"][place], parts["row"][place], None)


def _sorted_out(catalogue: Catalogue, selectors: Sequence[str], found: Found, distance: int) -> Wanted:
    """Read selectors, and note the samples that they name outright."""
    lines, keys, contents, hashes = dict[str, set[int]](), dict[str, set[str]](), list[str](), list[tuple[str, int]]()
    for selector in selectors:
        name, colon, rest = selector.rpartition(":")
        if len(selector) == CONTENT_LETTERS and not set(selector.lower()) - set("0123456789abcdef"):
            contents.append(selector.lower())
        elif selector.startswith(PHASH):
            hashes.append((_checked_hash(rest), distance))
        elif colon and "/" not in name and rest.isdecimal():
            lines.setdefault(name, set()).add(_checked_line(catalogue, name, int(rest)))
        elif "/" in selector:
            keys.setdefault(selector.partition("/")[0], set()).add(selector.partition("/")[2])
        else:
            raise LineageError(
                f"{selector!r} names no sample; write dataset:line, dataset/key, a content id of {CONTENT_LETTERS} "
                f"hexadecimal characters, or {PHASH}HASH"
            )
    for name, named in keys.items():
        lines.setdefault(name, set()).update(_lines_of_keys(catalogue, name, named))
    for name, numbers in lines.items():
        found.why.update({(name, line): "selected" for line in sorted(numbers)})
    by_dataset = {name: np.array(sorted(numbers), np.int64) for name, numbers in lines.items()}
    return Wanted(lines=by_dataset, contents=contents, perceptual=hashes)


def _checked_hash(words: str) -> str:
    try:
        hash_bits(words)
    except ValueError as error:
        raise LineageError(f"{error}; k25 forget --image FILE knows that of a file") from error
    return words.lower()


def _checked_line(catalogue: Catalogue, name: str, line: int) -> int:
    num_lines = catalogue.manifest(name).num_lines
    if line >= num_lines:
        raise LineageError(f"dataset {name} has lines 0 to {num_lines - 1}, not {line}")
    return line


def _lines_of_keys(catalogue: Catalogue, name: str, named: set[str]) -> list[int]:
    keys = catalogue.manifest(name).table["key"].to_pylist()
    lines = [line for line, key in enumerate(keys) if key in named]
    if missing := sorted(named - {keys[line] for line in lines}):
        raise LineageError(f"dataset {name} has no key {missing[0]!r}{nearest(missing[0], keys)}")
    return lines


def _identify(catalogue: Catalogue, lines: Mapping[str, np.ndarray], found: Found, *, look: int | None) -> None:
    """Note by which ids selected samples are known, reading those of which nobody knows them."""
    for name, numbers in lines.items():
        manifest, contents = catalogue.manifest(name), catalogue.contents(name)
        cells, first = cell_reader(manifest), manifest.columns.first_part
        for line in numbers.tolist():
            known = manifest.line(line)
            if known.quarantine:
                continue
            if not has_media(known):
                found.words[words_of(manifest, line)] = known.text_length
            for place, part in enumerate(known.parts, start=first[line]):
                if part.kind not in MEDIA_KINDS:
                    continue
                data = None if contents[place] and look is None and part.row < 0 else cells(part)
                contents[place] = contents[place] or content_id(data or b"")
                found.media[contents[place] or ""] = _size(part.num_bytes, part.row, data)
                if look is not None and part.kind == "image":
                    found.perceptual[image_hash(data or b"")] = look


def _size(num_bytes: int, row: int, data: bytes | None) -> int | None:
    """Return the length of a medium: of a table's cell only the bytes themselves tell it."""
    return num_bytes if row < 0 else None if data is None else len(data)


def _find_copies(catalogue: Catalogue, name: str, found: Found, *, whole: bool) -> None:
    """Note the samples of a dataset that hold the same media or words, or images that look alike."""
    manifest = catalogue.manifest(name)
    columns = catalogue.parts(name)
    _learn_contents(catalogue, name, columns, None if whole else set(found.media.values()))
    for place, content in enumerate(catalogue.contents(name)):
        if content in found.media:
            _note(found, manifest, int(columns["line"][place]), f"content {content}")
    if found.perceptual and (columns["kind"] == "image").any():
        hashes = fill_hashes(catalogue.lake, manifest, progress=catalogue.progress)
        for place, (words, bits) in near(hashes, list(found.perceptual.items())).items():
            _note(found, manifest, int(columns["line"][place]), f"{LOOKS_LIKE}{PHASH}{words}, {bits} bits apart")
    if found.words:
        for line, words in lines_of_words(manifest, set(found.words.values())):
            if words in found.words:
                _note(found, manifest, line, f"words {words}")


def _note(found: Found, manifest: Manifest, line: int, why: str) -> None:
    if not manifest.quarantined[line]:
        found.why.setdefault((manifest.dataset, line), why)


def _learn_contents(catalogue: Catalogue, name: str, columns: Mapping[str, np.ndarray], sizes: set | None) -> None:
    """Read the media whose content id nobody knows and which may be what is looked for, by their length."""
    manifest, contents = catalogue.manifest(name), catalogue.contents(name)
    media = np.isin(columns["kind"], MEDIA_KINDS) & ~manifest.quarantined[columns["line"]]
    unknown = [place for place in np.flatnonzero(media).tolist() if contents[place] is None]
    maybe = [p for p in unknown if sizes is None or columns["row"][p] >= 0 or int(columns["num_bytes"][p]) in sizes]
    cells, first = cell_reader(manifest), manifest.columns.first_part
    for done, place in enumerate(maybe, start=1):
        line = int(columns["line"][place])
        contents[place] = content_id(cells(manifest.line(line).parts[place - first[line]]))
        if catalogue.progress:
            catalogue.progress(done, len(maybe), f"media of {name} read")


def lines_of_words(manifest: Manifest, lengths: set[int]) -> Iterable[tuple[int, str]]:
    """Yield the lines without media whose text is of one of some lengths, each with the digest of its words."""
    bare = ~manifest.quarantined & (manifest.media_table()["num_media"] == 0)
    same = np.isin(manifest.table["text_length"].to_numpy(), np.array(sorted(lengths), np.int64))
    for line in np.flatnonzero(bare & same).tolist():
        try:
            yield line, words_of(manifest, line)
        except SampleError:
            continue
