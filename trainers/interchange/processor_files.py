"""What stands beside weights so that others can speak to a model: tokenizer, chat template, sizes of pictures.

The template says what `k25_pipelines.sample.chat.render_messages` says. Two things a template cannot keep: a special
token that is spelled in a message becomes that token (unless the caller asks transformers to sanitize them), and
neighbouring pieces of words are tokenized as one.
"""

import json
from typing import Any

from k25_pipelines.plan.size import Profile
from k25_pipelines.sample.chat import ROLES
from k25_pipelines.sample.tokens import SPECIAL_TOKENS, Tokenizer

HALF = [0.5, 0.5, 0.5]
"""Mean and deviation of a channel: pixels become -1 to 1."""
BICUBIC = 3
"""Pillow's number for it."""


def processor_files(tokenizer: Tokenizer, profile: Profile, *, context: int, has_vision: bool) -> dict[str, bytes]:
    """Return the files by name.

    Args:
        tokenizer: the one the model was trained with.
        profile: of its pictures.
        context: positions the model reaches [tokens].
        has_vision: whether it has a tower; without one nothing is said of pictures.
    """
    files: dict[str, Any] = {
        "tokenizer_config.json": _tokenizer_config(context),
        "generation_config.json": _generation_config(tokenizer),
    }
    if has_vision:
        files |= {
            "preprocessor_config.json": _image_processor(profile),
            "video_preprocessor_config.json": _video_processor(profile),
        }
    told = {name: (json.dumps(data, indent=2, ensure_ascii=False) + "\n").encode() for name, data in files.items()}
    return {"tokenizer.json": tokenizer.file, **told}


def chat_template() -> str:
    """Return the conversation's template in Jinja.

    A message has `role`, `content` and, of the assistant, optionally `thinking` (or `reasoning_content`). Content is
    words, or pieces: {"type": "text", "text"}, {"type": "image"}, and {"type": "video", "seconds"} with the time of the
    first frame of each volume. A picture is one pad, for a processor to repeat.
    """
    return "".join(line.strip() for line in _TEMPLATE.splitlines()) % _WORDS


_WORDS = {
    **{name: token.replace("'", "\\'") for name, token in SPECIAL_TOKENS.items()},
    "openers": "{" + ", ".join(f"'{role}': '{SPECIAL_TOKENS[name]}'" for role, name in ROLES.items()) + "}",
    "roles": ", ".join(ROLES),
}
_TEMPLATE = """
{%%- set openers = %(openers)s -%%}
{%%- macro medium(kind) -%%}
{{- '%(media_begin)s' + kind + '%(media_content)s%(media_pad)s%(media_end)s' -}}
{%%- endmacro -%%}
{%%- macro clock(seconds) -%%}
{%%- set ms = (seconds * 1000 + 0.000001) | int -%%}
{{- '%%02d:%%02d:%%02d.%%03d' | format(ms // 3600000, ms // 60000 %% 60, ms // 1000 %% 60, ms %% 1000) -}}
{%%- endmacro -%%}
{%%- macro said(content) -%%}
{%%- if content is string -%%}{{- content -}}
{%%- else -%%}
{%%- for piece in content -%%}
{%%- if piece is string -%%}{{- piece -}}
{%%- elif piece.type == 'text' -%%}{{- piece.text -}}
{%%- elif piece.type in ('image', 'image_url') -%%}{{- medium('image') -}}
{%%- elif piece.type == 'video' and piece.seconds is defined -%%}
{%%- for second in piece.seconds -%%}{{- clock(second) + medium('video') -}}{%%- endfor -%%}
{%%- else -%%}
{{- raise_exception('a piece is text, image, or video with the seconds of its volumes') -}}
{%%- endif -%%}
{%%- endfor -%%}
{%%- endif -%%}
{%%- endmacro -%%}
{%%- for message in messages -%%}
{%%- if message.role not in openers -%%}{{- raise_exception('a role is one of %(roles)s') -}}{%%- endif -%%}
{{- openers[message.role] + message.role + '%(im_middle)s' -}}
{%%- if message.role == 'assistant' -%%}
{{- '%(think)s' + (message.thinking or message.reasoning_content or '') + '%(end_think)s' -}}
{%%- endif -%%}
{{- said(message.content) + '%(im_end)s' -}}
{%%- endfor -%%}
{%%- if add_generation_prompt -%%}
{{- '%(im_assistant)sassistant%(im_middle)s%(think)s' -}}
{%%- endif -%%}
"""


def _tokenizer_config(context: int) -> dict[str, Any]:
    tokens = {f"{name}_token": SPECIAL_TOKENS[name] for name in ("bos", "eos", "pad")}
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **tokens,
        "model_max_length": context,
        "clean_up_tokenization_spaces": False,
        "chat_template": chat_template(),
    }


def _generation_config(tokenizer: Tokenizer) -> dict[str, Any]:
    special = tokenizer.special
    stops = [special["eos"], special["im_end"]]
    return {
        "bos_token_id": special["bos"],
        "eos_token_id": stops,
        "pad_token_id": special["pad"],
        "do_sample": False,
    }


def _image_processor(p: Profile) -> dict[str, Any]:
    return {
        "image_processor_type": "Kimi_K25ImageProcessor",
        "processor_class": "Kimi_K25Processor",
        **_pixels(p, max_patches=p.max_image_tokens * p.merge**2),
        "media_proc_cfg": {  # the released code's own words for the same
            "in_patch_limit": p.max_image_tokens * p.merge**2,
            "in_patch_limit_each_frame": p.max_frame_tokens * p.merge**2,
            "in_patch_limit_video": None,
            "max_num_frames_each_video": None,
            "fixed_output_tokens": None,
            "patch_limit_on_one_side": p.max_side_patches,
            "patch_size": p.patch,
            "merge_kernel_size": p.merge,
            "temporal_merge_kernel_size": p.volume_frames,
            "sample_fps": p.sample_fps,
            "timestamp_mode": "hh:mm:ss.fff",
            "image_mean": HALF,
            "image_std": HALF,
        },
    }


def _video_processor(p: Profile) -> dict[str, Any]:
    return {
        "video_processor_type": "Kimi_K25VideoProcessor",
        "processor_class": "Kimi_K25Processor",
        **_pixels(p, max_patches=p.max_frame_tokens * p.merge**2),
        "temporal_patch_size": p.volume_frames,
        "fps": p.sample_fps,
        "do_sample_frames": True,
    }


def _pixels(p: Profile, *, max_patches: int) -> dict[str, Any]:
    return {
        "do_resize": True,
        "do_rescale": True,
        "do_normalize": True,
        "do_convert_rgb": True,
        "resample": BICUBIC,
        "rescale_factor": 1 / 255,
        "image_mean": HALF,
        "image_std": HALF,
        "patch_size": p.patch,
        "merge_size": p.merge,
        "max_patches": max_patches,
        "size": {"max_height": p.max_side_patches, "max_width": p.max_side_patches},
    }
