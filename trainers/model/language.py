"""The decoder: embeddings of packed documents in, hidden states out; attention never leaves a document.

Kimi K2's: multi-head latent attention, a mixture of experts after the first dense layers, RMSNorm, SwiGLU, rotary
positions with YaRN. Sizes come from the config, names from the released checkpoint.
"""

# Shapes: N places of all packs on this rank, D width.

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional

from trainers.config import LanguageConfig
from trainers.model.attention import Groups
from trainers.model.mla import MLA
from trainers.model.mlp import GatedMLP
from trainers.model.moe import MoE
from trainers.model.recompute import forgetting, on_cpu
from trainers.model.rope import text_turns


class Language(nn.Module):
    """Embedding, blocks and head; the three are called one by one, since vision enters between the first two.

    With `offload` what the layers keep for the backward pass waits in the CPU's memory.
    """

    def __init__(self, config: LanguageConfig):
        """Build embedding, blocks and head."""
        super().__init__()
        self.config = config
        self.offload = False
        self.embed_tokens = nn.Embedding(config.vocab, config.width)
        self.layers = nn.ModuleList(Block(config, layer) for layer in range(config.layers))
        self.norm = nn.RMSNorm(config.width, eps=1e-5)
        self.lm_head = None if config.tied else nn.Linear(config.width, config.vocab, bias=False)

    def forward(self, embedded: Tensor, position: Tensor, groups: Groups) -> Tensor:
        """Return normalised hidden states, float [N, D].

        Args:
            embedded: float [N, D] token embeddings, vision embeddings in their slots.
            position: int64 [N], restarting in each document.
            groups: the documents, from `causal_groups`.
        """
        turns = self.turns(position)
        with on_cpu(embedded, when=self.offload):
            for layer in self.layers:
                embedded = layer(embedded, turns, groups)
        return self.norm(embedded)

    def turns(self, position: Tensor) -> Tensor:
        """Return what every layer turns its rotated channels by, complex64 [N, head_rope / 2]."""
        c = self.config
        return text_turns(position, c.head_rope, theta=c.rope_theta, context=c.context, factor=c.yarn_factor)

    def logits(self, hidden: Tensor) -> Tensor:
        """Return float [n, vocab] of hidden states float [n, D]."""
        weight = self.embed_tokens.weight if self.lm_head is None else self.lm_head.weight
        return functional.linear(hidden, weight)


class Block(nn.Module):
    """A pre-norm decoder block: latent attention, then experts, or one MLP in the first layers and in dense models."""

    recompute: frozenset[str] = frozenset()

    def __init__(self, config: LanguageConfig, layer: int):
        """Build the block that stands at number `layer`."""
        super().__init__()
        self.input_layernorm = nn.RMSNorm(config.width, eps=1e-5)
        self.self_attn = MLA(config)
        self.post_attention_layernorm = nn.RMSNorm(config.width, eps=1e-5)
        is_sparse = config.experts > 0 and layer >= config.dense_layers
        self.mlp = MoE(config) if is_sparse else GatedMLP(config.width, config.mlp)

    def forward(self, x: Tensor, turns: Tensor, groups: Groups) -> Tensor:
        """Return float [N, D]."""
        x = x + self._after(self.input_layernorm, x, lambda y: self.self_attn(y, turns, groups))
        return x + self._after(self.post_attention_layernorm, x, lambda y: self._feed(y, groups))

    def _feed(self, x: Tensor, groups: Groups) -> Tensor:
        return self.mlp(x, groups.real) if isinstance(self.mlp, MoE) else self.mlp(x)

    def _after(self, norm: nn.Module, x: Tensor, branch: Callable[[Tensor], Tensor]) -> Tensor:
        normed = norm(x)
        with forgetting(normed, lambda: norm(x), when="norm" in self.recompute):
            return branch(normed)


def mla_layers(model: nn.Module) -> list[MLA]:
    """Return the attention of every decoder layer of a model, in their order."""
    return [module for module in model.modules() if isinstance(module, MLA)]


def moe_layers(model: nn.Module) -> list[MoE]:
    """Return the experts of every decoder layer of a model that has some, in their order."""
    return [module for module in model.modules() if isinstance(module, MoE)]


def record_over_forwards(model: nn.Module, keeps: bool) -> None:
    """Set whether loads add up and maximal logits rise over forwards, as micro-batches need; else the last one's stand.

    Whoever keeps them calls `forget_records` before each step.
    """
    for module in (*mla_layers(model), *moe_layers(model)):
        module.keep_records = keeps


def forget_records(model: nn.Module) -> None:
    """Empty the loads and the maximal logits of all layers."""
    for attention in mla_layers(model):
        attention.last_max_logit.fill_(float("-inf"))
    for experts in moe_layers(model):
        experts.last_load.zero_()


def track_logits(model: nn.Module, on: bool) -> None:
    """Set whether training forwards look for each head's largest logit."""
    for attention in mla_layers(model):
        attention.track_logits = on
