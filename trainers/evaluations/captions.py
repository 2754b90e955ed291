"""Does the model look? The loss of held-out captions with their own pictures, and with another sample's.

Words and places stay what they are; only pixels move. Pictures of the same grid are dealt round among themselves so
that none keeps its own, so the two losses differ by nothing but what the model sees.
"""

# Shapes: M media and P patches of the batch, n targets, S samples.

from dataclasses import replace

import numpy as np
import torch

from k25_pipelines.keys import random_bits, random_key
from k25_pipelines.loader import Batch, PlanLoader
from k25_pipelines.plan.recipe import parse_recipe
from k25_pipelines.planning import make_plan
from k25_pipelines.storage.store import Store
from trainers.inputs import Inputs, inputs_of
from trainers.model.kimi_k25 import KimiK25
from trainers.recipes import evaluation_recipe

DATASET = "captions_heldout"


@torch.no_grad()
def evaluate_captions(model: KimiK25, store: Store, *, threads: int) -> dict:
    """Return both losses, their gap, and how many samples and targets they cover.

    Args:
        model: with a vision tower.
        store: the lake, in which captions_heldout is registered.
        threads: that decode.
    """
    plan = make_plan(store, parse_recipe(evaluation_recipe(DATASET, pack_tokens=model.config.language.context)))
    with PlanLoader(plan, store, threads=threads) as loader:
        batch = loader.batch(0)
    partner = partners(batch, key=random_key("shuffled pictures", plan))
    inputs = inputs_of(batch)
    counted = np.isin(inputs.target_document, inputs.media_document[partner != np.arange(len(partner))])
    true, shuffled = (_mean_loss(model, each, counted) for each in (inputs, inputs_of(swapped(batch, partner))))
    found = {"true_loss": true, "shuffled_loss": shuffled, "gap": shuffled - true}
    samples = len(np.unique(inputs.target_document[counted]))
    return {**found, "samples": samples, "targets": int(counted.sum()), "plan": plan, **_retrieval(model, inputs)}


def partners(batch: Batch, *, key: int) -> np.ndarray:
    """Return int64 [M]: whose pixels each medium gets; its own where it takes no part.

    Media with as many patches and tokens in the same grid are put in a keyed order, and each gets the pixels of the
    next. A sample that the plan shows twice, one with several media, and a medium alone in its grid take no part.
    """
    partner = np.arange(len(batch.grid_thw))
    grids = [tuple(grid) for grid in batch.grid_thw.tolist()]
    free = _single_media(batch)
    for grid in sorted(set(grids)):
        members = np.array([m for m in free if grids[m] == grid], dtype=np.int64)
        order = members[np.argsort(random_bits(key, members), kind="stable")]
        partner[order] = np.roll(order, -1)
    return partner


def swapped(batch: Batch, partner: np.ndarray) -> Batch:
    """Return the batch with each medium's pixels replaced by its partner's."""
    ends = np.cumsum(batch.grid_thw.prod(axis=1))[:-1]
    pixels = np.split(batch.patches, ends)
    return replace(batch, patches=np.concatenate([pixels[m] for m in partner]))


def _single_media(batch: Batch) -> list[int]:
    """Return the media that are the only one of their sample, of each sample's first showing."""
    width = batch.input_ids.shape[1]
    place = batch.media_slots[:, 0] * width + batch.media_slots[:, 1]
    document = np.searchsorted(batch.cu_seqlens, place, side="right") - 1
    first_pack = batch.provenance[0].pack
    starts = [(sample.pack - first_pack) * width + sample.start for sample in batch.provenance]
    shown = {}
    for sample, start in zip(batch.provenance, starts, strict=True):
        shown.setdefault((sample.dataset, sample.line), np.searchsorted(batch.cu_seqlens, start, side="right") - 1)
    firsts, counts = set(shown.values()), np.bincount(document, minlength=1)
    return [m for m, each in enumerate(document) if each in firsts and counts[each] == 1]


def _mean_loss(model: KimiK25, inputs: Inputs, counted: np.ndarray) -> float:
    return float(model(inputs).target_losses[torch.from_numpy(counted)].mean())


def _retrieval(model: KimiK25, inputs: Inputs) -> dict:
    """Return, for a model with a contrastive head, how often a picture's nearest caption is its own."""
    outputs = model(inputs)
    if outputs.images is None or outputs.texts is None:
        return {}
    nearest = (outputs.images @ outputs.texts.T).argmax(dim=1)
    hits = inputs.pairs.caption[nearest] == inputs.pairs.caption
    return {"retrieval_top1": float(hits.float().mean()), "retrieval_chance": 1 / max(1, len(hits))}
