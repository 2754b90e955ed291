"""What a training run is: plain data without torch. A JSON run file in, frozen dataclasses out, and back.

A config's fields bear identity: they stand in the checkpoint and in its digest. Where and on what a run happens
(store, work folder, threads) is the run file's other half and changes no digest.
"""

import difflib
import json
import math
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from k25_pipelines.keys import digest
from trainers.checks import check_training
from trainers.interchange.lora_config import LoraConfig
from trainers.model.checks import check_model

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Config = TypeVar("Config", bound="DataclassInstance")

MODULES = ("vision", "projector", "language", "contrastive")


@dataclass(frozen=True, kw_only=True, slots=True)
class VisionConfig:
    """Sizes of MoonViT-3D; the published one has width 1152, 27 layers, 16 heads, mlp 4304."""

    width: int
    layers: int
    heads: int
    mlp: int
    table: int = 64
    """Rows and columns of the learned position table, which is interpolated to each image's patches."""
    patch: int = 14
    """Side of a patch [pixels]."""
    merge: int = 2
    """Patches on a side that become one token."""
    max_frames: int = 4
    """Longest volume [frames]."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LanguageConfig:
    """Sizes of the decoder and the reach of its positions; what is not told is as published, with dense MLPs."""

    width: int
    layers: int
    heads: int
    mlp: int
    vocab: int = 4096
    tied: bool = True
    """Whether the output head is the embedding table; the published model's is not."""
    rope_theta: float = 50000.0
    context: int = 1024
    """Positions the frequencies were first trained for [tokens]."""
    yarn_factor: float = 1.0
    """How far YaRN stretches `context`; 1 is plain RoPE."""
    q_rank: int | None = 1536
    """Width of the queries' latent; None: queries come straight from the hidden state."""
    kv_rank: int = 512
    """Width of the latent that keys and values share."""
    head_nope: int = 128
    """Channels of a head's queries and keys without position."""
    head_rope: int = 64
    """Channels of a head's queries that turn with their place; the keys have as many for all heads together."""
    head_value: int = 128
    experts: int = 0
    """Routed experts of a layer; 0: an MLP of width `mlp` in every layer."""
    experts_per_token: int = 8
    shared_experts: int = 1
    """Experts that every token has, as one MLP of so many times `expert_mlp`."""
    expert_mlp: int = 2048
    """Hidden width of one expert."""
    dense_layers: int = 1
    """First layers with an MLP of width `mlp` in place of experts."""
    routed_scale: float = 2.827
    """Factor of the routed experts' normalised weights: about the root of `experts_per_token`."""
    balance_rate: float = 1e-3
    """What the bias of an expert's choice moves a step, towards an even load."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ContrastiveConfig:
    """The two heads and the small text tower that compare pictures with captions in stage 1a."""

    width: int
    layers: int
    heads: int


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """A whole model; without `vision` it is a language model, without `contrastive` it only predicts tokens."""

    name: str
    language: LanguageConfig
    vision: VisionConfig | None = None
    contrastive: ContrastiveConfig | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """One stage's run: model, data, optimizer. Loss = caption_weight * tokens + contrastive_weight * SigLIP."""

    stage: str
    model: ModelConfig
    plan: str
    """Id of the plan that is read from its step 0, until an amend moves the run to a fork of it."""
    steps: int
    learning_rate: float
    """Peak, reached after `warmup_steps`, then a cosine down to `final_learning_rate` times it."""
    trainable: tuple[str, ...]
    """Modules whose weights move; the others are frozen."""
    seed: int = 7
    warmup_steps: int = 0
    final_learning_rate: float = 0.1
    optimizer: str = "adamw"
    """`muonclip`, as the published model, or `adamw`."""
    muon_momentum: float = 0.95
    qk_clip_threshold: float = 100.0
    """Largest attention logit of a head that MuonClip leaves alone."""
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.95)
    gradient_clip: float = 1.0
    caption_weight: float = 1.0
    contrastive_weight: float = 0.0
    initial: dict[str, str] = field(default_factory=dict)
    """Module -> checkpoint key (`k25/checkpoints/<run>/<step>`) its weights start from; random where absent."""
    checkpoint_every: int = 0
    """Steps between checkpoints; 0: only the last step has one."""
    lora: LoraConfig | None = None
    """Adapters that are trained instead of the modules' own weights."""
    continues: str | None = None
    """Key of another run's checkpoint that this run goes on from: its weights, optimizer, random state and step."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ParallelConfig:
    """How the ranks of a run share the work; what is learnt is the same but for rounding."""

    decoupled_vision: bool = True
    """Whether media are encoded by all ranks alike (DEP), wherever their packs are."""
    expert_ranks: int = 1
    """Ranks that share one set of experts."""
    pipeline_stages: int = 1
    """Ranks that the decoder's layers are spread over."""
    virtual_stages: int = 2
    """Runs of layers that each rank of a pipeline has (interleaved 1F1B)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """A run file: the config, and where and on what it happens."""

    config: TrainConfig
    store: str
    """URL of the lake."""
    run: str
    """Name of the run; its checkpoints lie below `k25/checkpoints/<run>/`."""
    work: str
    """Local folder for metrics, checkpoints on their way, and caches."""
    threads: int = 2
    """Compute threads of one rank: pinned, since sums depend on it."""
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    recompute: tuple[str, ...] = ()
    """Parts of the decoder made again for the backward pass, of `trainers.model.recompute.PARTS`; the bits stay."""
    offload: bool = False
    """Whether what the backward pass needs waits in the CPU's memory."""
    tensorboard: bool = False
    """Whether metrics also go to event files below `work`/tensorboard."""
    stop_at: int | None = None
    """Leave after this many steps of the config, with a checkpoint there; for tests and slices of a run."""


def checkpoint_key(run: str, step: int) -> str:
    """Return where the checkpoint after `step` steps of a run lies in the lake."""
    return f"k25/checkpoints/{run}/{step:08d}"


def run_name(config: TrainConfig) -> str:
    """Return the run that a config names: the same config goes on with the same run, another is another run."""
    told = {name: value for name, value in plain(config).items() if name != "continues" or value}
    return f"{config.stage}-{digest(told)[:12]}"


def load_run(path: str | Path) -> Run:
    """Return the run that a JSON file describes. Raises ValueError naming the file, or an unknown or missing key."""
    try:
        told = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else f"not JSON ({error})"
        raise ValueError(f"run file {path}: {reason}; give the path of a run file, as `k25 train` writes") from error
    return parse(Run, told)


def check_config(config: TrainConfig) -> None:
    """Raise ValueError where the fields of a config contradict each other."""
    present = {"language"} | ({"vision", "projector"} if config.model.vision else set())
    present |= {"contrastive"} if config.model.contrastive else set()
    for name in (*config.trainable, *config.initial):
        if name not in present:
            raise ValueError(f"config.{config.stage}: the model has no module {name!r}; it has {sorted(present)}")
    check_model(config.model)
    if not config.trainable:
        raise ValueError("config.trainable is empty: name at least one module that is trained")
    if config.contrastive_weight and not config.model.contrastive:
        raise ValueError("config.contrastive_weight is set, and model.contrastive is not: give its sizes")
    if config.steps < 1:
        raise ValueError(f"config.steps is {config.steps}; train at least one step")
    check_training(config)


def plain(config: "DataclassInstance") -> dict:
    """Return a config as JSON-like data: what is written beside a checkpoint."""
    return json.loads(json.dumps(asdict(config)))


def parse(kind: type[Config], data: object, where: str = "") -> Config:
    """Return a frozen dataclass of `kind` from JSON-like data, strictly.

    Args:
        kind: one of the dataclasses above.
        data: mapping of field names; a field with a default may be absent.
        where: the path to `data`, for messages.

    Raises:
        ValueError: an unknown key (the nearest known one is named), a missing key, a wrong type, or
            a number that is none (NaN) or infinite.
    """
    types_of = typing.get_type_hints(kind)
    place = where.rstrip(".") or kind.__name__
    if not isinstance(data, Mapping):
        raise ValueError(f"{place} is {data!r}; expected a mapping with keys {sorted(types_of)}")
    for key in data:
        if key not in types_of:
            near = difflib.get_close_matches(key, types_of, n=1) or sorted(types_of)
            raise ValueError(f"unknown key {where}{key!s}: did you mean {', '.join(near)}?")
    if missing := sorted(_needed(kind) - set(data)):
        raise ValueError(f"{place} lacks {', '.join(missing)}")
    return kind(**{key: _value(types_of[key], value, f"{where}{key}") for key, value in data.items()})


def _needed(kind: "type[DataclassInstance]") -> set[str]:
    return {f.name for f in fields(kind) if f.default is MISSING and f.default_factory is MISSING}


def _value(kind: object, value: object, where: str) -> object:
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        given = next(option for option in inner if option is not types.NoneType)
        return None if value is None else _value(given, value, where)
    if isinstance(kind, type) and is_dataclass(kind):
        return value if isinstance(value, kind) else parse(kind, value, f"{where}.")
    if origin is tuple and isinstance(value, list | tuple):
        return _elements(inner, value, where)
    if origin is dict and isinstance(value, Mapping):
        return {key: _value(inner[1], each, f"{where}.{key}") for key, each in value.items()}
    if kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        return _number(value, where)
    wanted = origin or kind
    assert isinstance(wanted, type), f"{where}: no rule reads a field of type {kind}"
    if isinstance(value, wanted) and (wanted is bool or not isinstance(value, bool)):
        return value
    raise ValueError(f"{where} is {value!r}; expected {wanted.__name__}")


def _number(value: float, where: str) -> float:
    try:
        number = float(value)
    except OverflowError:  # a whole number of more than 308 digits
        number = math.inf
    if not math.isfinite(number):
        raise ValueError(f"{where} is {number}; expected a finite number")
    return number


def _elements(kinds: tuple, values: Sequence, where: str) -> tuple:
    each = (kinds[0],) * len(values) if kinds[-1] is ... else kinds
    if len(each) != len(values):
        raise ValueError(f"{where} has {len(values)} elements; expected {len(each)}")
    return tuple(_value(kind, value, f"{where}[{i}]") for i, (kind, value) in enumerate(zip(each, values, strict=True)))
