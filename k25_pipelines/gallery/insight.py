"""The page of a dataset's statistics, and of a plan's balance: numbers of `insight` in, plots and tables out."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
import pyarrow as pa

from k25_pipelines.catalog.manifest import Manifest
from k25_pipelines.catalog.registry import load_manifest
from k25_pipelines.catalog.statistics import statistics
from k25_pipelines.errors import K25Error
from k25_pipelines.gallery import charts
from k25_pipelines.gallery.overlay import figure
from k25_pipelines.gallery.page import page, percent, table, tiles
from k25_pipelines.gallery.stored import UNREADABLE, frames_of, read_raw
from k25_pipelines.insight import Duplicates, Sizes, find_duplicates, sample_sizes
from k25_pipelines.insight.balance import Balance
from k25_pipelines.insight.fingerprints import Progress, fingerprints
from k25_pipelines.planning import Plan, tombstones
from k25_pipelines.storage.store import Store, open_store

GROUPS_SHOWN, OF_A_GROUP, WORDS_SHOWN = 6, 5, 110
GIB = 2**30


@dataclass(frozen=True, kw_only=True, slots=True)
class DatasetInsight:
    """What is known of one dataset, and of what it shares with others."""

    manifest: Manifest
    sizes: Sizes
    languages: Mapping[str, int]
    """Samples by language; those too short to tell are left out."""
    duplicates: Sequence[Duplicates]
    """Of it and of the datasets it was compared with."""
    num_faults: int
    """Samples that could not be read."""
    against: Sequence[str]


def dataset_insight(
    lake: Store, name: str, *, against: Sequence[str] = (), threads: int = 2, progress: Progress | None = None
) -> DatasetInsight:
    """Return the statistics of a dataset's newest version; what was read before is not read again.

    Args:
        lake: where it is.
        name: of the dataset.
        against: datasets that it may share samples with, such as one that is held out.
        threads: that read.
        progress: told lines done, lines in all, and what.
    """
    forgotten, prints, manifests = tombstones(lake).lines, dict[str, pa.Table](), dict[str, Manifest]()
    for each in dict.fromkeys([name, *against]):
        manifests[each] = load_manifest(lake, each)
        without = forgotten.get(each, np.empty(0, np.int64)).tolist()
        prints[each] = fingerprints(lake, manifests[each], without=without, threads=threads, progress=progress)
    own = prints[name]
    languages = Counter(word for word in own["language"].to_pylist() if word)
    return DatasetInsight(
        manifest=manifests[name],
        sizes=sample_sizes(lake, manifests[name], progress=progress),
        languages=dict(languages.most_common()),
        duplicates=find_duplicates(prints),
        num_faults=sum(fault != "" for fault in own["fault"].to_pylist()),
        against=tuple(against),
    )


def insight_facts(known: DatasetInsight) -> dict[str, Any]:
    """Return the statistics as plain data, for a table, JSON or the metadata of an asset."""
    sizes, facts = known.sizes, statistics(known.manifest)
    tokens = sizes.tokens[sizes.used]
    total = int(tokens.sum())
    return {
        "dataset": known.manifest.dataset,
        "version": known.manifest.digest,
        "samples": int(sizes.used.sum()),
        "unreadable": known.num_faults,
        "text_tokens": int(sizes.text_tokens[sizes.used].sum()),
        "vision_tokens": int(sizes.vision_tokens[sizes.used].sum()),
        "vision_share": float(sizes.vision_tokens[sizes.used].sum() / max(1, total)),
        "patches": int(sizes.patches[sizes.used].sum()),
        "longest_tokens": int(tokens.max(initial=0)),
        "median_tokens": float(np.median(tokens)) if len(tokens) else 0.0,
        "most_patches": int(sizes.patches.max(initial=0)),
        "languages": dict(known.languages),
        "by_licence": facts["by_licence"],
        "by_source": facts["by_source"],
        "duplicates": {
            each.way: {"groups": len(each.groups), "spare": each.num_spare, "across": len(each.across().groups)}
            for each in known.duplicates
        },
    }


def insight_page(lake: Store, known: DatasetInsight, *, links: Sequence[tuple[str, str]] = ()) -> str:
    """Return the page of a dataset's statistics: plots, and the groups of samples that are there more than once."""
    facts, sizes, manifest = insight_facts(known), known.sizes, known.manifest
    media, used = manifest.media_table(), sizes.used
    seen = used & (media["num_media"] > 0)
    shape = (media["width"] / media["height"].clip(1))[seen]
    plots = [
        charts.histogram("tokens of a sample", sizes.tokens[used], unit="tokens", logarithmic=True),
        charts.histogram("text tokens", sizes.text_tokens[used], unit="tokens", logarithmic=True),
        charts.histogram("vision tokens", sizes.vision_tokens[seen], unit="tokens", logarithmic=True),
        charts.histogram("patches of a sample", sizes.patches[seen], unit="patches", logarithmic=True),
        charts.histogram("width by height", shape, unit=": 1"),
        charts.shares("languages", known.languages),
        charts.shares("licences", facts["by_licence"]),
        charts.shares("sources", facts["by_source"]),
    ]
    numbers = tiles(
        [
            ("samples", facts["samples"]),
            ("text tokens", facts["text_tokens"]),
            ("vision tokens", facts["vision_tokens"] or None),
            ("vision", percent(facts["vision_share"]) if facts["vision_tokens"] else None),
            ("patches", facts["patches"] or None),
            ("longest sample, tokens", facts["longest_tokens"]),
            ("could not be read", known.num_faults or None),
        ]
    )
    with_others = f", compared with {escape(', '.join(known.against))}" if known.against else ""
    under = f"version <code>{manifest.digest}</code>{with_others}"
    body = numbers + f"<div class=plots>{''.join(plots)}</div>" + _duplicates(lake, known)
    return page(f"{manifest.dataset} in numbers", body, under=under, links=links)


def balance_page(
    plan: Plan,
    balance: Balance,
    *,
    num_ranks: int,
    limit_bytes: int | None = None,
    links: Sequence[tuple[str, str]] = (),
) -> str:
    """Return the page of a plan's balance: what steps ask of the rank that has the most to do.

    Args:
        plan: which plan.
        balance: its steps.
        num_ranks: that it was worked out for.
        limit_bytes: room for what the vision tower keeps, on a rank.
        links: words and addresses of other pages.
    """
    tower, over = balance.tower_bytes, balance.steps_over(limit_bytes) if limit_bytes else np.empty(0, np.int64)
    worst = int(balance.imbalance.argmax())
    most = f"most {balance.imbalance[worst]:.3f} at step {balance.steps[worst]:,}"
    told = f"median {np.median(balance.imbalance):.3f}, {most}"
    heaviest = f"most {tower.max() / GIB:.3g} GiB at step {balance.steps[tower.argmax()]:,}"
    room = limit_bytes / GIB if limit_bytes else None
    plots = [
        charts.line("imbalance", balance.imbalance, told=told, base=1.0),
        charts.line("GiB on the fullest rank", tower / GIB, told=heaviest, limit=room),
        charts.histogram("imbalance of a step", balance.imbalance, unit="x the mean"),
        charts.histogram("on the fullest rank", balance.most_patches, unit="patches"),
    ]
    numbers = tiles(
        [
            ("steps looked at", len(balance.steps)),
            ("ranks", num_ranks),
            ("waiting, of all time", percent(float(1 - 1 / balance.imbalance.mean()))),
            ("most patches on a rank", int(balance.most_patches.max())),
            ("GiB kept for them", round(float(tower.max() / GIB), 3)),
            ("steps above the limit", len(over) if limit_bytes else None),
        ]
    )
    body = f"{numbers}<div class=plots>{''.join(plots)}</div>{_heaviest(balance)}"
    under = f"recipe <b>{escape(plan.recipe.name)}</b> · plan <code>{plan.id}</code>"
    return page("Balance of the steps", body, under=under, links=links)


def _heaviest(balance: Balance) -> str:
    tower = balance.tower_bytes
    rows = [
        [
            int(balance.steps[at]),
            int(balance.most_patches[at]),
            round(float(tower[at] / GIB), 4),
            float(balance.imbalance[at]),
        ]
        for at in np.argsort(-tower, kind="stable")[:12].tolist()
    ]
    header = ["step", "patches on the fullest rank", "GiB of the tower", "imbalance"]
    how = f"<p class='small soft'>{balance.bytes_per_patch:,} bytes a patch; costs as the loader shares packs out.</p>"
    return f"<h2>Heaviest steps</h2>{table(rows, header)}{how}"


def _duplicates(lake: Store, known: DatasetInsight) -> str:
    rows = [[each.way, len(each.groups), each.num_spare, len(each.across().groups)] for each in known.duplicates]
    header = ["found by", "groups", "samples to spare", "groups across datasets"]
    shown = "".join(_groups(lake, each) for each in known.duplicates if each.groups)
    return f"<h2>There more than once</h2>{table(rows, header)}{shown}"


def _groups(lake: Store, found: Duplicates) -> str:
    first = found.across().groups[: GROUPS_SHOWN // 2]
    groups = [*first, *(group for group in found.groups if group not in first)][:GROUPS_SHOWN]
    cards = []
    for group in groups:
        inside = "".join(_small(lake, name, line) for name, line in group[:OF_A_GROUP])
        more = f"<p class='small soft'>and {len(group) - OF_A_GROUP} more</p>" if len(group) > OF_A_GROUP else ""
        is_across = len({name for name, _ in group}) > 1
        mark = "<b class=bad>across datasets</b>" if is_across else ""
        head = f"<div class=head><b>{len(group)} samples</b>{mark}</div>"
        cards.append(f"<div class=card>{head}{inside}{more}</div>")
    return f"<h2>{found.way.capitalize()}</h2><div class=cards>{''.join(cards)}</div>"


def _small(lake: Store, name: str, line: int) -> str:
    """Return a sample of a group: its first picture and its words in short."""
    manifest = load_manifest(lake, name)
    try:
        raw = read_raw(manifest, line, open_store(manifest.uri))
        shown = [figure(pixels, side=84) for pixels, _ in frames_of(raw, most=1)[:1]]
    except UNREADABLE as error:
        return f"<p class='small bad'>{escape(str(error))}</p>"
    words = " ".join((raw.text or "").split())
    cut = words if len(words) <= WORDS_SHOWN else f"{words[:WORDS_SHOWN]}…"
    told = f"<span class=small><b>{name}:{line}</b> {escape(cut)}</span>"
    return f"<div class=one>{''.join(shown)}{told}</div>"


def limit_of(words: str) -> int:
    """Return bytes told as GiB. Raises K25Error: it is no number above 0."""
    try:
        limit = float(words)
    except ValueError as error:
        raise K25Error(f"{words!r} is no number of GiB") from error
    if not limit > 0:
        raise K25Error(f"{words} GiB is no room; give a number above 0")
    return int(limit * GIB)
