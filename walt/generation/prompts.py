"""What a model makes of prompts before it samples: labels of class names, or embeddings of text, which are kept."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Int

from walt.config import nearest
from walt.diffusion.text_to_latents import Text
from walt.generation import programs
from walt.generation.request import GenerationError
from walt.parallel.mesh import batch_sharding, batch_shards, put, read
from walt.text.prompt import PromptError, lost_words, parse_weights, token_weights
from walt.text.tokenizer import Tokenizer, WordPiece

CACHED = 1024
"""Prompts whose embeddings a pipeline keeps; T5-XL's of 64 tokens take half a megabyte each."""


class ClassReader(NamedTuple):
    """Reads class names.

    Attributes:
      names: in the order of their labels.
    """

    names: tuple[str, ...]

    def __call__(self, texts: Sequence[str], what: str) -> Int[np.ndarray, " n"]:
        """Their labels; `GenerationError` for what is no class."""
        for name in texts:
            if name not in self.names:
                raise GenerationError(
                    f"{what}: this model knows classes, and {name!r} is none of them{nearest(name, self.names)}"
                )
        return np.array([self.names.index(name) for name in texts], np.int32)


class TextReader:
    """Reads text, with the weights of `walt.text.prompt`.

    A prompt is embedded once, in company that does not depend on the call (one prompt per device), so that it is the same to the bit
    whatever was asked for before.

    Attributes:
      tokenizer: the bytes of its model.
    """

    def __init__(
        self, tokenizer: Tokenizer | WordPiece, config: programs.GeneratorConfig, weights: programs.Weights, mesh: Mesh
    ):
        self.tokenizer = tokenizer.model_bytes
        self._tokenizer, self._config, self._weights, self._mesh = tokenizer, config, weights, mesh
        self._length = config.diffusion.caption_length
        self._kept: OrderedDict[str, Text] = OrderedDict()

    def __call__(self, texts: Sequence[str], what: str) -> Text:
        """Their embeddings; prints which words of a text are too many for the model. `GenerationError` for weights that are none."""
        asked = list(dict.fromkeys(texts))
        found = {text: self._kept[text] for text in asked if text in self._kept}
        new = [text for text in asked if text not in found]
        found |= dict(zip(new, self._embed(new, what))) if new else {}
        for text in asked:
            self._kept[text] = found[text]
            self._kept.move_to_end(text)
        while len(self._kept) > CACHED:
            self._kept.popitem(last=False)
        return jax.tree.map(lambda *rows: np.stack(rows), *(found[text] for text in texts))

    def _embed(self, texts: Sequence[str], what: str) -> list[Text]:
        try:
            prompts = [parse_weights(text) for text in texts]
        except PromptError as error:
            raise GenerationError(f"{what}: {error}") from error
        spans = [self._tokenizer.spans(prompt.text) for prompt in prompts]
        for prompt, places in zip(prompts, spans):
            if lost := lost_words(prompt.text, places, self._length):
                print(f"{what} is longer than the {self._length} tokens the model reads, and its end is lost: {lost!r}")
        tokens, mask = self._tokenizer([prompt.text for prompt in prompts], self._length)
        emphasis = np.stack([token_weights(*each, self._length) for each in zip(prompts, spans)])
        together, embeddings = batch_shards(self._mesh), []
        for start in range(0, len(texts), together):
            rows = np.minimum(np.arange(start, start + together), len(texts) - 1)
            with jax.set_mesh(self._mesh):
                arrays = put((tokens[rows], mask[rows], emphasis[rows]), batch_sharding(self._mesh))
                embeddings.append(read(programs.embed(self._config, self._weights, *arrays)))
        return [Text(*row) for row in zip(np.concatenate(embeddings), mask)]
