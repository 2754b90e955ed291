"""What is left out of plans: the lake's tombstones, and the selectors of a fork as line numbers."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from k25_pipelines.catalog.manifest import Manifest
from k25_pipelines.errors import ObjectNotFoundError, PlanError
from k25_pipelines.keys import digest
from k25_pipelines.plan.compact import compact, expanded
from k25_pipelines.plan.segment import NO_TOMBSTONES
from k25_pipelines.planning.plan import Plan
from k25_pipelines.planning.sources import Lines
from k25_pipelines.storage.store import Store

TOMBSTONES = "k25/tombstones/"
EXCLUSIONS = "k25/exclusions/"
SELECTORS = "NAME, NAME:LINE, NAME/KEY, step=N, step=N/pack=M, licence=SPDX, source=TEXT"


@dataclass(frozen=True, kw_only=True, slots=True)
class Tombstones:
    """A list of samples that are forgotten: lines by dataset. `(dataset, line) in tombstones` asks for one."""

    digest: str = NO_TOMBSTONES
    lines: Lines = field(default_factory=dict)

    def __contains__(self, sample: tuple[str, int]) -> bool:
        """Whether a sample is forgotten."""
        return sample[0] in self.lines and bool(np.isin(sample[1], self.lines[sample[0]]))

    def __iter__(self) -> Iterator[tuple[str, int]]:
        """Yield (dataset, line) of every sample, in order."""
        return iter([(name, line) for name in sorted(self.lines) for line in self.lines[name].tolist()])

    def __len__(self) -> int:
        """Return how many samples are forgotten."""
        return sum(len(lines) for lines in self.lines.values())


def tombstones(lake: Store, name: str | None = None) -> Tombstones:
    """Return the lake's list of forgotten samples: the one in force, or the one of a digest.

    The pointer `k25/tombstones/current.json` holds {"digest"}; the list itself, named by it, sorted words
    `dataset:line`. Where there is no pointer nothing is forgotten.

    Raises:
        PlanError: there is no such list, or it is not the one it is named for.
    """
    if name is None:
        try:
            name = json.loads(lake.get(f"{TOMBSTONES}current.json"))["digest"]
        except ObjectNotFoundError:
            return Tombstones()
    if name == NO_TOMBSTONES:
        return Tombstones()
    assert name is not None
    key = f"{TOMBSTONES}{name}.json"
    try:
        samples = json.loads(lake.get(key))
    except ObjectNotFoundError as error:
        raise PlanError(f"no list of tombstones {lake.url}/{key}; restore it") from error
    if tombstones_digest(samples) != name:
        raise PlanError(f"{lake.url}/{key} is not the list of tombstones it is named for; restore it")
    return Tombstones(digest=name, lines=lines_by_dataset(samples))


def put_tombstones(lake: Store, samples: Sequence[str]) -> str:
    """Put a list of forgotten samples in force, words `dataset:line`, and return its name.

    Plans are told of it from the next segment on; loaders that open from now on give none of them.
    """
    name = tombstones_digest(samples)
    if name != NO_TOMBSTONES:
        lake.put_new(f"{TOMBSTONES}{name}.json", json.dumps(sorted(set(samples))).encode())
    lake.put(f"{TOMBSTONES}current.json", json.dumps({"digest": name}).encode())
    return name


def lines_by_dataset(samples: Iterable[str]) -> dict[str, np.ndarray]:
    """Return the line numbers of samples told as `dataset:line`, int64, ascending, each once."""
    found: dict[str, set[int]] = {}
    for sample in samples:
        name, _, line = sample.rpartition(":")
        found.setdefault(name, set()).add(int(line))
    return {name: np.array(sorted(lines), dtype=np.int64) for name, lines in sorted(found.items())}


def tombstones_digest(samples: Sequence[str]) -> str:
    """Return the name of a list of tombstones, words `dataset:line` in any order; of none, NO_TOMBSTONES."""
    return digest("tombstones", *sorted(set(samples)))


def selected(
    plan: Plan, manifests: Mapping[str, Manifest], without: Sequence[str]
) -> tuple[dict[str, np.ndarray], set[str]]:
    """Return the lines that selectors choose, by dataset, and the sources that they choose as a whole.

    Args:
        plan: whose steps `step=` speaks of.
        manifests: of the datasets that a fork goes on with.
        without: each NAME, NAME:LINE, NAME/KEY, step=N, step=N/pack=M, licence=SPDX or source=TEXT.

    Raises:
        PlanError: a selector that cannot be read, or that chooses nothing.
    """
    lines: dict[str, list[np.ndarray]] = {}
    whole: set[str] = set()
    for selector in without:
        if selector in manifests:
            whole.add(selector)
            continue
        chosen = {name: found for name, found in _chosen(plan, manifests, selector).items() if found.size}
        if not chosen:
            raise PlanError(
                f"without {selector!r}: no sample of {', '.join(sorted(manifests))} is chosen; see k25 stats"
            )
        for name, found in chosen.items():
            lines.setdefault(name, []).append(found)
    return {name: np.unique(np.concatenate(found)) for name, found in sorted(lines.items())}, whole


def write_exclusions(lake: Store, lines: Lines) -> None:
    """Keep the lines that a fork leaves out, those of its parents included."""
    if lines:
        lake.put_new(_key(exclusions_told(lines)), compact(dict(lines)))


def read_exclusions(lake: Store, fork: Mapping[str, Any] | None) -> dict[str, np.ndarray]:
    """Return the lines that a plan leaves out, from what its header tells of its newest fork; none where it is none.

    Raises:
        PlanError: the lake holds other exclusions.
    """
    if fork is None or not fork["excluded"]:
        return {}
    key = _key(fork["excluded"])
    lines = expanded(lake.get(key))
    if exclusions_told(lines) != fork["excluded"]:
        raise PlanError(f"{lake.url}/{key} holds other exclusions than a fork was made with; restore it")
    return lines


def exclusions_told(lines: Lines) -> dict[str, list]:
    """Return what a header tells of exclusions: count and digest by dataset."""
    return {name: [len(found), digest("excluded", np.asarray(found, dtype=np.int64))] for name, found in lines.items()}


def _chosen(plan: Plan, manifests: Mapping[str, Manifest], selector: str) -> dict[str, np.ndarray]:
    """Return the lines one selector chooses."""
    kind, _, words = selector.partition("=")
    if kind == "step" and words:
        return {name: lines for name, lines in _of_step(plan, selector).items() if name in manifests}
    if kind in ("licence", "source") and words:
        return {name: _where(manifest, kind, words) for name, manifest in manifests.items()}
    for mark in (":", "/"):
        name, found, rest = selector.partition(mark)
        if found and name in manifests and rest:
            return {name: _of_name(manifests[name], mark, rest, selector)}
    raise PlanError(f"without {selector!r}: not a selector, or of no source of the recipe; write one of {SELECTORS}")


def _of_name(manifest: Manifest, mark: str, words: str, selector: str) -> np.ndarray:
    if mark == "/":
        return _where(manifest, "key", words)
    if not words.isdecimal() or int(words) >= manifest.num_lines:
        raise PlanError(f"without {selector!r}: {manifest.dataset} has lines 0 to {manifest.num_lines - 1}")
    return np.array([int(words)], dtype=np.int64)


def _where(manifest: Manifest, column: str, words: str) -> np.ndarray:
    """Return the lines whose column says exactly these words."""
    encoded = manifest.table[column].combine_chunks().dictionary_encode()
    encoded = encoded.combine_chunks() if isinstance(encoded, pa.ChunkedArray) else encoded
    names = encoded.dictionary.to_pylist()
    code = names.index(words) if words in names else -1
    return np.flatnonzero(encoded.indices.to_numpy() == code)


def _of_step(plan: Plan, selector: str) -> dict[str, np.ndarray]:
    """Return what a step, or a pack of it, of the parent holds."""
    words, _, pack = selector.removeprefix("step=").partition("/pack=")
    if not words.isdecimal() or (pack and not pack.isdecimal()) or ("/" in selector and not pack):
        raise PlanError(f"without {selector!r}: write step=N or step=N/pack=M")
    rows = plan.rows(int(words))
    chosen = rows["pack"].to_numpy() == int(pack) if pack else np.ones(rows.num_rows, dtype=bool)
    names, lines = np.array(rows["dataset"].to_pylist())[chosen], rows["line"].to_numpy()[chosen]
    return {name: np.unique(lines[names == name]) for name in sorted(set(names.tolist()))}


def _key(told: Mapping[str, Any]) -> str:
    return f"{EXCLUSIONS}{digest('exclusions', told)}.bin"
