"""A checkpoint of the lake, opened for an export: what it is, and its weights as they will be written."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from k25_pipelines.errors import CheckpointError
from k25_pipelines.lineage_tables import checkpoint_key
from k25_pipelines.plan.size import PROFILES, Profile
from k25_pipelines.planning import open_plan
from k25_pipelines.sample.tokens import Tokenizer, load_tokenizer
from k25_pipelines.storage.store import Store
from trainers.checkpoint import RECORD, read_record
from trainers.config import ModelConfig, parse
from trainers.interchange import lora
from trainers.interchange.lora_config import LoraConfig
from trainers.interchange.weights import Weights, open_weights

ALWAYS_FLOAT32 = "e_score_correction_bias"
"""The bias that chooses experts moves by less than a narrow type can tell."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Told:
    """What is known of an export before a weight is read."""

    key: str
    record: Mapping[str, Any]
    config: ModelConfig
    tokenizer: Tokenizer
    profile: Profile
    dtype: str
    dtype_of: Callable[[str], torch.dtype]


def find(store: Store, checkpoint: str, *, dtype: str | None, tokenizer: str | None) -> Told:
    """Return what is known of an export before a weight is read. Raises K25Error: no such checkpoint or tokenizer."""
    key = _key(store, checkpoint)
    record = read_record(store, key)
    return Told(
        key=key,
        record=record,
        config=parse(ModelConfig, record["config"]["model"]),
        tokenizer=_tokenizer(store, record, tokenizer),
        profile=_profile(store, record),
        dtype=dtype or record.get("published", {}).get("dtype", "float32"),
        dtype_of=types_of(record, dtype),
    )


def open_found(store: Store, told: Told, *, merge: bool) -> tuple[Weights, LoraConfig | None]:
    """Return the weights to write, and what the adapters are if those go alone.

    Raises:
        CheckpointError: a file of weights is gone or broken, or there is nothing to merge.
    """
    weights = open_weights(store, told.key, told.record["files"])
    adapters = _adapters(told.key, told.record, weights, merge=merge)
    return (lora.Merged(weights, adapters), None) if adapters and merge else (weights, adapters)


def _adapters(key: str, record: Mapping, weights: Weights, *, merge: bool) -> LoraConfig | None:
    if not lora.has_adapters(weights.shapes):
        if merge:
            raise CheckpointError(f"{key} has no adapters to merge; leave out --merge")
        return None
    told = record["config"].get("lora")
    if not told:
        raise CheckpointError(f"{key} has adapters, and its config has no `lora` to say their scale; train it anew")
    return parse(LoraConfig, told, "config.lora.")


def types_of(record: Mapping[str, Any], dtype: str | None) -> Callable[[str], torch.dtype]:
    """Return the type of each tensor: as it was imported, or one for all but what must be float32."""
    if dtype is None and "published" in record:
        known = record["published"]
        return lambda name: getattr(torch, known["others"].get(name, known["dtype"]))
    chosen = getattr(torch, dtype or "float32")
    return lambda name: torch.float32 if name.endswith(ALWAYS_FLOAT32) else chosen


def _key(store: Store, told: str) -> str:
    ending = f"/{RECORD}"
    keys = [info.key for info in store.list("k25/checkpoints/")]
    return checkpoint_key(told, [key.removesuffix(ending) for key in keys if key.endswith(ending)])


def _tokenizer(store: Store, record: Mapping, name: str | None) -> Tokenizer:
    if name is None and record.get("plan"):
        name = open_plan(store, record["plan"]).tokenizer
    name = name or record.get("tokenizer")
    if name is None:
        raise CheckpointError(
            "the checkpoint names no plan and no tokenizer; name one with --tokenizer, such as default"
        )
    return load_tokenizer(name, store)


def _profile(store: Store, record: Mapping) -> Profile:
    return PROFILES[open_plan(store, record["plan"]).profile if record.get("plan") else "kimi_k25"]


def check_fit(config: ModelConfig, tokenizer: Tokenizer, profile: Profile) -> None:
    """Raise CheckpointError where a model is not of this tokenizer or profile."""
    if tokenizer.num_tokens > config.language.vocab:
        raise CheckpointError(
            f"the tokenizer has {tokenizer.num_tokens} tokens, the model's vocab is {config.language.vocab}; "
            "name the tokenizer it was trained with"
        )
    vision = config.vision
    if vision and (vision.patch, vision.merge) != (profile.patch, profile.merge):
        raise CheckpointError(
            f"model.vision has patch {vision.patch} and merge {vision.merge}, profile {profile.name} "
            f"{profile.patch} and {profile.merge}; export with the profile it was trained with"
        )
