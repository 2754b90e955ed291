"""Tiny models of the whole structure, a lake with one checkpoint, and the public classes as a second opinion."""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from k25_pipelines.sample.tokens import load_tokenizer
from k25_pipelines.storage.store import Store
from trainers.config import ContrastiveConfig, LanguageConfig, ModelConfig, VisionConfig, plain
from trainers.interchange.importing import publish_weights
from trainers.model.kimi_k25 import KimiK25

LANGUAGE: Mapping[str, Any] = {
    "width": 32,
    "layers": 3,
    "heads": 2,
    "mlp": 48,
    "context": 64,
    "yarn_factor": 4.0,
    "q_rank": 24,
    "kv_rank": 16,
    "head_nope": 16,
    "head_rope": 8,
    "head_value": 12,
    "experts": 6,
    "experts_per_token": 2,
    "expert_mlp": 20,
    "tied": False,
}
VISION = VisionConfig(width=32, layers=2, heads=2, mlp=40, table=8)
CONTRASTIVE = ContrastiveConfig(width=16, layers=1, heads=2)


def tiny(*, vision: bool = True, contrastive: bool = False, **language: Any) -> ModelConfig:
    """Return sizes with every feature on: MLA, experts, YaRN, a head of its own."""
    return ModelConfig(
        name="tiny",
        language=LanguageConfig(**{**LANGUAGE, **language}),
        vision=VISION if vision else None,
        contrastive=CONTRASTIVE if contrastive else None,
    )


def grown(config: ModelConfig, *, seed: int = 3) -> KimiK25:
    """Return a model none of whose weights is a constant, balancing biases included."""
    model = KimiK25(config, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in model.state_dict().values():
            value += 0.05 * torch.randn(value.shape, generator=generator)
    return model.eval()


def checkpoint(
    store: Store, state: Mapping[str, Tensor], config: ModelConfig, *, run: str = "joint-1", **more: Any
) -> str:
    """Publish weights as the 70th step of a run on no plan, with the default tokenizer; return the key."""
    key = f"k25/checkpoints/{run}/00000070"
    told = {"stage": "joint", "model": plain(config), **more}
    tokenizer = load_tokenizer("default").digest
    facts = {"run": run, "stage": "joint", "step": 70, "plan": None, "segments": ["5" * 32], "parent": None}
    facts |= {"step_range": [0, 70]}
    publish_weights(store, key, state, {**facts, "digest": "d" * 32, "tokenizer": tokenizer, "config": told})
    return key


def public_model(folder: Path, name: str = "Kimi_K25ForConditionalGeneration") -> Any:
    """Return a folder loaded by a public class; every key found its place."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import transformers

        kind = getattr(transformers, name)
        model, told = kind.from_pretrained(folder, output_loading_info=True, dtype=torch.float32)
    assert {what: list(names) for what, names in told.items()} == {
        "missing_keys": [],
        "unexpected_keys": [],
        "mismatched_keys": [],
        "error_msgs": [],
    }
    return model.eval()
