"""The page of a training step: a plan in, its packs, and each sample as stored beside as the model saw it, out."""

from collections.abc import Callable, Mapping, Sequence
from html import escape
from itertools import groupby

from k25_pipelines.catalog.manifest import Manifest
from k25_pipelines.catalog.registry import load_manifest
from k25_pipelines.gallery import packs
from k25_pipelines.gallery.kept import link, sample_name
from k25_pipelines.gallery.page import colours_of, page, percent, tiles
from k25_pipelines.gallery.seen import first_words, seen_pictures, seen_words, taught_tokens
from k25_pipelines.gallery.stored import UNREADABLE, read_raw, stored_html, unreadable, whereabouts
from k25_pipelines.loader import Batch, PlanLoader, Provenance
from k25_pipelines.plan.size import profile as profile_named
from k25_pipelines.planning import Plan, open_plan
from k25_pipelines.sample.read import RawSample
from k25_pipelines.sample.tokens import Tokenizer, load_tokenizer
from k25_pipelines.storage.store import Store, open_store

Progress = Callable[[int, int, str], None]

MOST_BARS = 96
"""Packs on the map of a step; a step of the largest runs has thousands."""


def step_page(
    lake: Store,
    plan_id: str,
    *,
    step: int,
    rank: int = 0,
    num_ranks: int = 1,
    most_packs: int = 32,
    run: str | None = None,
    links: Sequence[tuple[str, str]] = (),
    served: bool = False,
    progress: Progress | None = None,
) -> str:
    """Return a self-contained page of one training step.

    A map of its packs, then each sample of the rank's packs: as stored beside as the model saw it.

    Args:
        lake: where plan and datasets are.
        plan_id: of the plan.
        step: which step.
        rank: whose packs are shown whole.
        num_ranks: ranks that share the step.
        most_packs: a rank's packs that are shown whole.
        run: in whose name the page is headed.
        links: words and addresses of neighbouring pages.
        served: link each sample to its lineage, on the server of the lake's pages.
        progress: told packs done, packs in all, and which.
    """
    plan = open_plan(lake, plan_id)
    with PlanLoader(plan, lake, rank=rank, num_ranks=num_ranks) as loader:
        batch = loader.batch(step)
    rows = plan.rows(step).to_pylist()
    colours = colours_of(row["dataset"] for row in rows)
    sections = _sections(_Cards(lake, plan, batch, served=served), rows, colours, most_packs, progress)
    whose = f"rank {rank} of {num_ranks} · " if num_ranks > 1 else ""
    of_run = f"run <b>{escape(run)}</b> · " if run else ""
    under = f"{of_run}{whose}recipe <b>{escape(plan.recipe.name)}</b> · plan <code>{plan.id}</code>"
    body = _numbers(rows, batch, plan) + _map(rows, batch, plan, colours) + _reading() + sections
    return page(f"Step {step}", body, under=under, links=links)


def _sections(
    cards: "_Cards", rows: Sequence[Mapping], colours: Mapping[str, str], most_packs: int, progress: Progress | None
) -> str:
    """Return the rank's packs, one after the other, as many as are shown."""
    shown, sections = sorted({sample.pack for sample in cards.batch.provenance})[:most_packs], []
    for done, pack in enumerate(shown):
        sections.append(_section(cards, pack, [row for row in rows if row["pack"] == pack], colours))
        if progress:
            progress(done + 1, len(shown), f"pack {pack}")
    return "".join(sections)


class _Cards:
    """Makes the cards of a step's samples."""

    def __init__(self, lake: Store, plan: Plan, batch: Batch, *, served: bool) -> None:
        self.plan, self.batch, self._lake, self._served = plan, batch, lake, served
        self.tokenizer: Tokenizer = load_tokenizer(plan.tokenizer, lake)
        self.profile = profile_named(plan.profile)
        self.sample_at = {(sample.pack, sample.slot): sample for sample in batch.provenance}
        self._opened: dict[str, tuple[Manifest, Store]] = {}

    def card(self, row: Mapping) -> str:
        """Return the card of one sample: both sides, and where its bytes are."""
        sample = self.sample_at[row["pack"], row["slot"]]
        manifest, store = self._open(sample.dataset)
        piece = f", from token {row['token_start']:,} of its text" if row["token_start"] else ""
        told = f"{sample.num_tokens} tokens, {taught_tokens(sample, self.batch)} predicted{piece}"
        name = link(sample_name(sample.dataset, sample.line), f"{sample.dataset}:{sample.line}", served=self._served)
        head = f"<b>{name}</b><span>epoch {sample.epoch} · {told}</span>"
        where = whereabouts(manifest, sample.line, manifest.line(sample.line))
        sides = self._sides(row, sample, manifest, store)
        return f"<div class=card id='p{sample.pack}s{sample.slot}'><div class=head>{head}</div>{sides}{where}</div>"

    def _sides(self, row: Mapping, sample: Provenance, manifest: Manifest, store: Store) -> str:
        if sample.masked:
            told = "<p class=soft>Its span is padding; nothing was learnt of it.</p>"
            return f"<p class=bad>masked: {escape(sample.masked)}</p>{told}"
        raw: RawSample | None = None
        try:
            raw = read_raw(manifest, sample.line, store)
            left = stored_html(
                raw, around=first_words(sample, self.batch, self.tokenizer) if row["token_start"] else ""
            )
        except UNREADABLE as error:
            left = unreadable(error)
        right = seen_words(sample, self.batch, self.tokenizer)
        if raw is not None and row["media"]:
            right = seen_pictures(raw, row, sample, self.batch, self.profile) + right
        return (
            f"<div class=pair><div><div class=label>as stored</div>{left}</div>"
            f"<div><div class=label>as the model saw it</div>{right}</div></div>"
        )

    def _open(self, name: str) -> tuple[Manifest, Store]:
        if name not in self._opened:
            manifest = load_manifest(self._lake, name, self.plan.datasets[name])
            self._opened[name] = manifest, open_store(manifest.uri)
        return self._opened[name]


def _section(cards: _Cards, pack: int, rows: Sequence[Mapping], colours: Mapping[str, str]) -> str:
    length = cards.plan.recipe.pack_tokens
    num_samples = f"{len(rows)} sample{'' if len(rows) == 1 else 's'}"
    told = f"{num_samples}, {sum(row['num_tokens'] for row in rows):,} of {length:,} tokens"
    title = f"<h2 id='p{pack}'>pack {pack} <span class='soft small'>{told}</span></h2>"
    cells = "".join(cards.card(row) for row in rows)
    seen = packs.who_sees_whom(rows, length, colours)
    return f"{title}<div class=beside>{seen}<div class='cards wide'>{cells}</div></div>"


def _numbers(rows: Sequence[Mapping], batch: Batch, plan: Plan) -> str:
    tokens, vision = (sum(row[name] for row in rows) for name in ("num_tokens", "vision_tokens"))
    num_packs = rows[-1]["pack"] + 1 if rows else 0
    masked = sum(sample.masked is not None for sample in batch.provenance)
    return tiles(
        [
            ("packs", num_packs),
            ("samples", len(rows)),
            ("tokens", tokens),
            ("of the packs filled", percent(tokens / max(1, num_packs * plan.recipe.pack_tokens))),
            ("vision", percent(vision / max(1, tokens))),
            ("of the tokens here predicted", percent(float((batch.labels >= 0).mean()))),
            ("patches", sum(row["patches"] for row in rows)),
            ("masked samples", masked or None),
        ]
    )


def _map(rows: Sequence[Mapping], batch: Batch, plan: Plan, colours: Mapping[str, str]) -> str:
    taught: dict[int, dict[int, int]] = {}
    for sample in batch.provenance:
        taught.setdefault(sample.pack, {})[sample.slot] = taught_tokens(sample, batch)
    bars = []
    for pack, inside in groupby(rows, key=lambda row: row["pack"]):
        if len(bars) < MOST_BARS:
            bars.append(
                packs.pack_bar(pack, list(inside), plan.recipe.pack_tokens, colours, taught=taught.get(pack, {}))
            )
    left = rows[-1]["pack"] + 1 - len(bars) if rows else 0
    more = f"<p class='small soft'>and {left:,} more packs</p>" if left else ""
    return f"<h2>Map of the packs</h2>{packs.legend(colours)}{''.join(bars)}{more}"


def _reading() -> str:
    return (
        "<p class='small soft' style='margin-top:1.4rem'>Words: <span class=taught>predicted by the model</span>, "
        "<span class=masked>read but not predicted</span>, <span class=token>special token</span>. "
        "On pictures that the model saw, a square is one token.</p>"
    )
