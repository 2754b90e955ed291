"""The words of a sample as one text, their language and their MinHash: what was read in, small facts out."""

import functools
import hashlib
import json
import re

import numpy as np
from datasketch import MinHash
from py3langid.langid import MODEL_FILE, LanguageIdentifier

from k25_pipelines.sample.read import RawSample

NUM_HASHES = 64
"""Of a MinHash: its estimate of the share of common shingles has a standard deviation of at most 0.0625."""
SHINGLE_WORDS = 3
SEED = 1
MOST_CHARACTERS = 20_000
"""Of a text, from which its shingles are taken."""
LANGUAGE_CHARACTERS = 1_000
SHORTEST = 20
"""Characters of which a language can be told."""
SURE = 0.5
UNSURE = "unsure"
"""Where no language is likelier than not, as of program text and of a few words."""
WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]|\w+")
"""A word, or a character of a script that sets no spaces."""


def words_of(raw: RawSample) -> str:
    """Return the words of a sample as it has them: its text, the turns of a conversation, a document around media."""
    messages, content = raw.inline.get("messages"), raw.inline.get("content")
    if isinstance(messages, list):
        return "\n".join(f"{one.get('role', '')}: {_content(one.get('content'))}" for one in messages)
    return _content(content) if isinstance(content, list) else raw.text or ""


def words_id(text: str) -> str:
    """Return 32 hexadecimal characters that are the same for texts that differ in case and white space alone."""
    plain = " ".join(text.lower().split())
    return hashlib.sha256(plain.encode("utf-8", "surrogatepass")).hexdigest()[:32] if plain else ""


def minhash(text: str) -> np.ndarray | None:
    """Return the MinHash of a text's shingles of words, uint32 [NUM_HASHES]; None: it is shorter than a shingle.

    Source: Broder 1997, "On the resemblance and containment of documents".
    """
    words = WORD.findall(text[:MOST_CHARACTERS].lower())
    shingles = {" ".join(words[at : at + SHINGLE_WORDS]) for at in range(len(words) - SHINGLE_WORDS + 1)}
    if not shingles:
        return None
    (hashed,) = MinHash.bulk([[one.encode("utf-8", "surrogatepass") for one in sorted(shingles)]], **how())
    return np.asarray(hashed.hashvalues, dtype=np.uint32)


def how() -> dict:
    """Return how every MinHash is made; the scheme is named, so that another release makes the same."""
    return {"num_perm": NUM_HASHES, "seed": SEED, "scheme": "affine32"}


def language(text: str) -> str:
    """Return the ISO 639-1 name of a text's language, UNSURE, or "" where it is too short to tell."""
    plain = " ".join(text[:LANGUAGE_CHARACTERS].split())
    if len(plain) < SHORTEST:
        return ""
    name, confidence = _identifier().classify(plain.encode("utf-8", "replace").decode())
    return name if confidence >= SURE else UNSURE


@functools.cache
def _identifier() -> LanguageIdentifier:
    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


def _content(content: object) -> str:
    if isinstance(content, str) or content is None:
        return content or ""
    if not isinstance(content, list):
        return json.dumps(content, ensure_ascii=False)
    told = []
    for piece in content:
        words = piece if isinstance(piece, str) else (piece.get("text") if isinstance(piece, dict) else None)
        kind = piece.get("type", "medium") if isinstance(piece, dict) else "medium"
        told.append(words if isinstance(words, str) else f"[{kind}]")
    return "\n".join(told)
