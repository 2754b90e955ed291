"""What `k25 plan` and `k25 quote` print: facts in, aligned text out."""

from collections.abc import Mapping
from typing import Any

from k25_pipelines.commands.tables import aligned, percent, short


def plan_page(plan, facts: Mapping[str, Any], *, steps: int | None = None) -> str:
    """Return what a plan amounts to."""
    told: list[tuple[str, object]] = [
        ("recipe", plan.recipe.name),
        ("steps", facts["num_steps"]),
        ("packs", facts["num_packs"]),
        ("samples", facts["samples"]),
        ("tokens", facts["tokens"]),
        ("fill", percent(facts["fill"])),
        ("vision share", f"{percent(facts['vision_share'])}, from step to step +-{percent(facts['vision_share_std'])}"),
        ("worst debt", f"{facts['worst_debt_tokens']:,.0f} tokens"),
        ("heaviest step", f"{facts['most_patches_step']}: {facts['most_patches']:,} patches"),
        ("refused", f"{facts['refused']:,} media samples longer than a pack" if facts["refused"] else "none"),
    ]
    if plan.parent:
        fork = plan.parent
        told.append(("forked from", f"{fork['parent']} at step {fork['step']} by {fork['author']}: {fork['reason']}"))
        if fork["without"]:
            left_out = sum(number for number, _ in fork["excluded"].values())
            told.append(("without", f"{', '.join(fork['without'])} ({left_out:,} samples)"))
    at = f"epochs at {steps}" if steps and steps != facts["num_steps"] else ""
    rows = []
    for name in facts["samples_of_source"]:
        source = plan.recipe.sources.get(name)
        row = [
            name,
            source.weight if source else None,
            facts["samples_of_source"][name],
            facts["tokens_of_source"][name],
            percent(facts["tokens_of_source"][name] / max(1, facts["tokens"])),
            f"{facts['epochs'][name]:.3f}",
            source.max_epochs if source else None,
            facts["refused_samples"].get(name, 0),
            facts["dry_at_step"].get(name),
        ]
        rows.append([*row, f"{facts['projected_epochs'][name]:.3f}"] if at else row)
    header = ["source", "weight", "samples", "tokens", "share", "epochs", "at most", "refused", "dry at step"]
    return aligned(told) + "\n\n" + aligned(rows, header=[*header, at] if at else header)


def diff_page(told: Mapping[str, Any]) -> str:
    """Return what differs between two plans."""
    first, (start, end) = told["first_differing_step"], told["compared_steps"]
    a, b = told["num_steps"]
    lines = [
        ("steps", f"{a:,}", f"{b:,}"),
        ("first differing step", "none: the same steps" if first is None else first, ""),
    ]
    lines += [(name, _told(was), _told(now)) for name, (was, now) in told["recipe"].items()]
    lines += [(f"version of {name}", _told(was), _told(now)) for name, (was, now) in told["datasets"].items()]
    lines += [(name, _told(was), _told(now)) for name, (was, now) in told["tombstones"].items()]
    forks = [fork or {} for fork in told["fork"]]
    for name in ("parent", "step", "without", "reason", "author"):
        was, now = (fork.get(name) for fork in forks)
        if was != now:
            lines.append((f"fork: {name}", _told(was), _told(now)))
    page = aligned(lines, header=["", "A " + told["plans"][0][:12], "B " + told["plans"][1][:12]])
    if start == end:
        return page
    rows = [
        [name, *tokens, *told["vision_tokens_of_source"][name]] for name, tokens in told["tokens_of_source"].items()
    ]
    header = ["source", "tokens in A", "in B", "vision in A", "in B"]
    page += f"\n\nsteps {start} to {end - 1}\n" + aligned(rows, header=header)
    for name, number, samples in zip("AB", told["only_in"], told["samples"], strict=True):
        named = " ".join(samples) + (" ..." if number > len(samples) else "")
        page += f"\nonly in {name}: {number:,} samples" + (f"  {named}" if samples else "")
    return page


def quote_page(told: Mapping[str, Any]) -> str:
    """Return what a recipe will take."""
    usd = told["usd"]
    how = "all of it was planned" if told["is_exact"] else "projected from a stretch of each phase"
    lines = [
        ("recipe", f"{told['recipe']}, {told['steps']:,} steps, {told['packs']:,} packs ({how})"),
        ("tokens", f"{short(told['tokens'])}, fill {percent(told['fill'])}, vision {percent(told['vision_share'])}"),
        (
            "from the store",
            f"{short(told['gets'])} GETs, {short(told['bytes'])}B; the plan takes {short(told['plan_bytes'])}B",
        ),
        (
            "heaviest step",
            f"{told['heaviest_step']}: {told['heaviest_patches']:,} patches, "
            f"{short(told['heaviest_bytes_per_gpu'])}B of pixels a GPU",
        ),
        ("time", f"{told['hours']:,.2f} hours on {told['gpus']} GPUs, {told['gpu_hours']:,.1f} GPU hours"),
        (
            "cores",
            f"{told['cores']} for {told['images_per_second']:,.1f} images/s and "
            f"{short(told['text_tokens_per_second'])} text tokens/s",
        ),
        (
            "money",
            f"${usd['total']:,.2f}: GPUs ${usd['gpus']:,.2f}, requests ${usd['requests']:,.4f}, "
            f"transfer ${usd['transfer']:,.2f}",
        ),
        ("taken as given", ", ".join(f"{name.replace('_', ' ')} {value:g}" for name, value in told["rates"].items())),
    ]
    rows = [
        [
            name,
            short(source["tokens"]),
            percent(source["share"]),
            short(source["samples"]),
            source["lines"],
            f"{source['epochs']:.3f}",
            source["max_epochs"],
            short(source["gets"]),
            f"{short(source['bytes'])}B",
        ]
        for name, source in told["sources"].items()
    ]
    header = ["source", "tokens", "share", "samples", "lines", "epochs", "at most", "GETs", "bytes"]
    page = aligned(lines) + "\n\n" + aligned(rows, header=header)
    return page + "".join(f"\nproblem: {problem}" for problem in told["problems"])


def _told(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return "none" if value is None else str(value)
