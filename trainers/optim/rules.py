"""Which weight is moved by what: a name and a shape in, Muon or AdamW, decay or none, out. One table, read downwards.

Muon takes a weight whose rows and columns are the two sides of one linear map inside the model: every projection of
attention, MLPs and experts, the projector, and the router. AdamW takes what is looked up or read one row at a time.
"""

# Shapes: n matrices of r rows and c columns.

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

from torch import Size


@dataclass(frozen=True, kw_only=True, slots=True)
class Rule:
    """What happens to the weights of some names."""

    name: str
    """Pattern of the whole name, as `fnmatch` reads it."""
    optimizer: Literal["muon", "adamw"]
    decays: bool
    why: str
    parts: int = 1
    """Equal blocks of rows that are matrices of their own, stored as one."""


RULES = (
    Rule(name="*embed_tokens.weight", optimizer="adamw", decays=False, why="a row a token, looked up alone; K2"),
    Rule(name="*lm_head.weight", optimizer="adamw", decays=True, why="a row a token; K2"),
    Rule(name="*pos_emb*", optimizer="adamw", decays=False, why="a row a place, looked up alone"),
    Rule(name="*patch_embed.proj.weight", optimizer="adamw", decays=True, why="pixels' embedding, the first layer"),
    Rule(name="*experts.gate_up", optimizer="muon", decays=True, why="gate and up are two matrices elsewhere", parts=2),
    Rule(name="*experts.down", optimizer="muon", decays=True, why="a stack of matrices, an expert each"),
    Rule(name="*mlp.gate.weight", optimizer="muon", decays=True, why="the router: a matrix, which K2 does not except"),
)
"""The first that fits. What none of them names: a matrix is Muon's and decays, a vector is AdamW's and does not."""
MATRIX = Rule(name="*", optimizer="muon", decays=True, why="a matrix; K2")
VECTOR = Rule(name="*", optimizer="adamw", decays=False, why="norms, biases and single numbers; K2")


def rule_of(name: str, shape: Size) -> Rule:
    """Return what happens to a weight.

    Source: Kimi K2 report, section 2.1, and Moonlight (arXiv 2502.16982), whose published example excepts the
        embedding and the head from Muon and no other matrix. Choice: position table and patch embedding, which a
        language model does not have.

    Raises:
        ValueError: a weight of three dimensions or more that no rule names: it could be one matrix or many.
    """
    if rule := next((rule for rule in RULES if fnmatchcase(name, rule.name)), None):
        return rule
    if len(shape) > 2:
        raise ValueError(f"{name} has shape {tuple(shape)}: say in trainers/optim/rules.py which matrices these are")
    return MATRIX if len(shape) == 2 else VECTOR


def matrices_of(rule: Rule, shape: Sequence[int]) -> tuple[int, int, int]:
    """Return (n, r, c): how a weight under Muon is seen as matrices that lie one after another."""
    *stack, rows, columns = shape
    number = rule.parts
    for length in stack:
        number *= length
    return number, rows // rule.parts, columns
