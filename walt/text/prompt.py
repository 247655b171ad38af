"""Prompts as people write them: weights on their parts, and which words of one that is too long are lost.

`a (red ball:1.3) moves` is the prompt `a red ball moves` with weight 1.3 on two of its words. Only parentheses that end in a colon and
a number are read so; all others belong to the prompt. Imports no jax.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

MAX_WEIGHT = 4.0
"""Far above what is of use (0.5 to 1.5): embeddings beyond that mean nothing to a model."""

_WEIGHTED = re.compile(r"\(([^()]*):\s*([+-]?(?:\d+\.?\d*|\.\d+))\s*\)")
Span = tuple[int, int]


class PromptError(ValueError):
    """A prompt that cannot be read; the message says why."""


class Weighted(NamedTuple):
    """A prompt without its marks, and the weight of each of its characters."""

    text: str
    weights: tuple[float, ...]


def parse_weights(prompt: str) -> Weighted:
    """The prompt without its weights, and they. Raises `PromptError` for a weight that is out of range or on no words."""
    text, weights, end = "", [], 0
    for part in _WEIGHTED.finditer(prompt):
        words, weight = part[1], float(part[2])
        if not 0 <= weight <= MAX_WEIGHT:
            raise PromptError(
                f"{part[0]!r} has a weight out of range: 0 (says nothing) to {MAX_WEIGHT:g}, 1 being none"
            )
        if not words.strip():
            raise PromptError(f"{part[0]!r} is a weight on no words: write it as (words:{part[2]})")
        plain = prompt[end : part.start()]
        text, end = text + plain + words, part.end()
        weights += [1.0] * len(plain) + [weight] * len(words)
    rest = prompt[end:]
    return Weighted(text + rest, (*weights, *([1.0] * len(rest))))


def token_weights(prompt: Weighted, spans: Sequence[Span], length: int) -> Float[np.ndarray, " l"]:
    """The weight of each of `length` tokens, of which the prompt's are the first: that of the token's last character. Tokens that
    stand for no character have 1."""
    weights = np.ones(length, np.float32)
    for number, (begin, end) in enumerate(cut(spans, length)):
        weights[number] = prompt.weights[end - 1] if end > begin else 1.0
    return weights


def cut(spans: Sequence[Span], length: int) -> list[Span]:
    """What tokenizers leave of too many tokens: the first ones, and the last, which ends the text."""
    return list(spans) if len(spans) <= length else [*spans[: length - 1], spans[-1]]


def lost_words(text: str, spans: Sequence[Span], length: int) -> str:
    """The words of which a token is cut off, as they stand in the text; empty if none is."""
    if len(spans) <= length:
        return ""
    begin, end = spans[length - 1]
    first = text[begin:end].lstrip()
    begin = end - len(first)  # a token brings the space before it along
    words = [word.start() for word in re.finditer(r"\S+", text) if word.end() > begin]
    return text[words[0] :].rstrip() if words else ""
