"""The page that goes with exported weights: a lineage in, Markdown out."""

from collections.abc import Mapping, Sequence
from typing import Any

from trainers.config import ModelConfig
from trainers.interchange.names import is_published

LINEAGE = "lineage.json"
"""The same as data, with every digest."""
LIMITS = (
    "A special token that is spelled in a message becomes that token, where training keeps it words: apply the "
    "template with `sanitize_control_tokens=True` (words then, if not always the same tokens), or strip such words.",
    "Neighbouring pieces of words in one message are tokenized as one string, where training tokenizes each.",
    "Training writes a video's volumes after the time of each, `HH:MM:SS.mmm`; the template does so for a piece "
    '`{"type": "video", "seconds": [...]}` and leaves one pad a volume for a processor to repeat.',
)
MEANING = (
    "Everything that made it follows from these: the plan names each sample of each step, the checkpoint's record in "
    "the lake holds config, packages and loader state. `lineage.json` has the segments' digests too."
)


def lineage_of(record: Mapping[str, Any], key: str) -> dict[str, Any]:
    """Return what a checkpoint's record says of where it comes from, without what only a resume needs."""
    told = {name: record.get(name) for name in ("digest", "run", "stage", "step", "plan", "parent", "code_version")}
    source = record.get("published", {}).get("files")
    return {"checkpoint": key, **told, "segments": list(record.get("segments", [])), "imported_files": source}


def model_card(config: ModelConfig, lineage: Mapping[str, Any], *, is_adapter: bool = False) -> str:
    """Return README.md.

    Args:
        config: the model's sizes.
        lineage: as `lineage.json` holds it.
        is_adapter: whether the folder holds adapters alone.
    """
    kind = "Low-rank adapters for a model" if is_adapter else "A model"
    lines = [*_front(config, is_adapter=is_adapter), "", f"# {config.name}, {lineage['stage']}", ""]
    lines += [f"{kind} of the Kimi K2.5 architecture, trained by k25_pipelines. {_sizes(config)}", ""]
    lines += ["## Lineage", "", *_table(_facts(lineage)), ""]
    lines += [MEANING, ""]
    lines += ["## Files", "", *_table([("file", "SHA-256"), *sorted(lineage["files"].items())]), ""]
    if not is_adapter:
        lines += ["## Limits", "", *(f"- {line}" for line in LIMITS), ""]
    return "\n".join(lines)


def left_out(names: Sequence[str]) -> list[str]:
    """Return the modules whose weights have no place in the released layout."""
    return sorted({name.split(".")[0] for name in names if not is_published(name)})


def _front(config: ModelConfig, *, is_adapter: bool) -> list[str]:
    task = "image-text-to-text" if config.vision else "text-generation"
    library = "peft" if is_adapter else "transformers"
    return ["---", f"library_name: {library}", f"pipeline_tag: {task}", "tags: [kimi_k25, k25_pipelines]", "---"]


def _sizes(config: ModelConfig) -> str:
    c = config.language
    experts = f", {c.experts} experts of which {c.experts_per_token} a token" if c.experts else ""
    vision = config.vision
    tower = f" Tower: {vision.layers} layers of width {vision.width}." if vision else " No vision tower."
    reach = int(c.context * c.yarn_factor)
    return f"Decoder: {c.layers} layers of width {c.width}{experts}; context {reach} tokens.{tower}"


def _facts(lineage: Mapping[str, Any]) -> list[tuple[str, str]]:
    plan = lineage["plan"] or "none: imported"
    facts = [
        ("what", "which"),
        ("checkpoint", f"`{lineage['checkpoint']}`"),
        ("checkpoint's digest", f"`{lineage['digest']}`"),
        ("steps", str(lineage["step"])),
        ("plan", f"`{plan}`"),
        ("segments of the plan", str(len(lineage["segments"]))),
        ("started from", _parents(lineage["parent"])),
        ("weights' digest", f"`{lineage['weights']}`"),
        ("written as", lineage["dtype"]),
        ("tokenizer", f"`{lineage['tokenizer']}`"),
        ("code", f"`{lineage['code_version']}`"),
    ]
    return [*facts, ("left out", ", ".join(lineage["left_out"]))] if lineage["left_out"] else facts


def _parents(parent: str | Sequence[str] | None) -> str:
    if not parent:
        return "nothing that was trained"
    return ", ".join(f"`{key}`" for key in ([parent] if isinstance(parent, str) else parent))


def _table(rows: Sequence[tuple[str, str]]) -> list[str]:
    head, *body = rows
    return [f"| {head[0]} | {head[1]} |", "|---|---|", *(f"| {name} | {value} |" for name, value in body)]
