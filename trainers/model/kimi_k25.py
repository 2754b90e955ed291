"""Kimi K2.5 at any size: a batch's tensors in, a loss for each target and the vectors of pictures and captions out."""

# Shapes: N places, V vision tokens, n targets, S pairs, D language width, W contrastive width.

import math
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from k25_pipelines.keys import random_key
from trainers.config import MODULES, ModelConfig
from trainers.inputs import Inputs
from trainers.model.checks import check_model
from trainers.model.contrastive import Contrastive
from trainers.model.head import token_losses
from trainers.model.language import Language
from trainers.model.moonvit3d import MoonViT3D
from trainers.model.projector import Projector

BRANCH_ENDS = ("o_proj", "down_proj", "experts.down", "wo", "fc1")
"""Last matrices of residual branches: drawn smaller, so that depth leaves the residual's size alone."""


class Outputs(NamedTuple):
    """What a stage's loss is made of; a tuple, since DeepSpeed hooks onto the tensors it finds in one."""

    target_losses: Tensor
    """float [n] cross-entropy of each target."""
    images: Tensor | None
    """float [S, W] unit vectors; None without a contrastive module."""
    texts: Tensor | None
    """float [S, W]."""


class KimiK25(nn.Module):
    """`.vision`, `.projector`, `.language`, and in stage 1a `.contrastive`; what the config lacks is None.

    Names of weights are those of the released checkpoint, but that experts are stacked.
    """

    def __init__(self, config: ModelConfig, *, seed: int = 0):
        """Build the modules the config has sizes for, with the weights that `seed` names."""
        super().__init__()
        self.config = config
        check_model(config)
        vision, language, contrastive = config.vision, config.language, config.contrastive
        self.vision = MoonViT3D(vision) if vision else None
        self.projector = (
            Projector(vision_width=vision.width, merge=vision.merge, language_width=language.width) if vision else None
        )
        self.language = Language(language)
        self.contrastive = (
            Contrastive(contrastive, vision_width=vision.width, vocab=language.vocab)
            if contrastive and vision
            else None
        )
        initialise(self, seed)

    def forward(self, inputs: Inputs) -> Outputs:
        """Return the losses of all targets, in the order of `inputs.target`."""
        merged = self.see(inputs) if len(inputs.slots) else None
        losses = token_losses(self.logits(inputs, merged), inputs.target)
        images, texts = self._vectors(merged, inputs)
        parts = {"vision": merged, "projector": merged, "contrastive": images}
        idle = [name for name, seen in parts.items() if seen is None] if len(inputs.input_ids) else list(MODULES)
        losses = losses + self._nothing(idle)
        return Outputs(target_losses=losses, images=images, texts=texts)

    def see(self, inputs: Inputs) -> Tensor:
        """Return the merged features of the batch's media, float [V, 4, vision width]."""
        if self.vision is None:
            raise ValueError(f"model {self.config.name} has no vision tower, and the batch holds media")
        return self.vision(inputs.patches, inputs.grid_thw)

    def logits(self, inputs: Inputs, merged: Tensor | None) -> Tensor:
        """Return float [n, vocab] at the places before the targets; `merged` is what `see` gave, if any."""
        x = self.language.embed_tokens(inputs.input_ids)
        if merged is not None:
            assert self.projector is not None, "merged features come from a tower, and a tower has a projector"
            x = x.index_copy(0, inputs.slots, self.projector(merged))
        hidden = self.language(x, inputs.position, inputs.groups)
        return self.language.logits(hidden.index_select(0, inputs.source))

    def _nothing(self, idle: Iterable[str]) -> Tensor | float:
        """Return 0, made of the trained weights of idle modules: ranks then agree on which gradients exist.

        Only of those: such a zero costs a pass over the weight, and over all of them a sixth of a step.
        """
        modules = [getattr(self, name) for name in idle]
        weights = [weight for module in modules if module is not None for weight in module.parameters()]
        return sum(0.0 * weight.flatten()[0] for weight in weights if weight.requires_grad)

    def _vectors(self, merged: Tensor | None, inputs: Inputs) -> tuple[Tensor | None, Tensor | None]:
        pairs = inputs.pairs
        if self.contrastive is None or merged is None or not pairs.count:
            return None, None
        images = self.contrastive.images(merged.index_select(0, pairs.vision), pairs.vision_pair, pairs.count)
        texts = self.contrastive.texts(
            pairs.token, pairs.position, pairs.groups, sample=pairs.token_pair, num_samples=pairs.count
        )
        return images, texts


@torch.no_grad()
def initialise(model: nn.Module, seed: int) -> None:
    """Draw every weight from a generator of its own, named by seed and parameter.

    Another module beside it or another order of modules changes no weight. Matrices: N(0, 1 / fan in), smaller by
    sqrt(2 layers) at the ends of residual branches, experts' as if they stood alone; embeddings N(0, 1 / width); the
    position table N(0, 0.1); norms 1, biases 0; SigLIP's scale and bias keep their published start. On the meta device
    there is nothing to draw.
    """
    for name, weight in model.named_parameters():
        if weight.is_meta:
            continue
        generator = torch.Generator().manual_seed(random_key("initial weights", seed, name) >> 1)
        if name.endswith(("log_scale", "contrastive.bias")):
            continue
        if weight.ndim == 1:
            weight.fill_(0.0 if name.endswith("bias") else 1.0)
            continue
        weight.normal_(std=_spread(model, name, weight), generator=generator)


def _spread(model: nn.Module, name: str, weight: Tensor) -> float:
    if name.endswith("pos_emb.weight"):
        return 0.1
    spread = (weight.shape[-1] if ".experts." in name else weight[0].numel()) ** -0.5
    if any(f"{end}." in f"{name}." for end in BRANCH_ENDS):
        layers = next(len(m) for key, m in _stacks(model) if name.startswith(key))
        spread /= math.sqrt(2 * layers)
    return spread


def _stacks(model: nn.Module) -> list[tuple[str, nn.ModuleList]]:
    return [(key, m) for key, m in model.named_modules() if isinstance(m, nn.ModuleList)]
