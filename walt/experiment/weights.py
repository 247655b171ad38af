"""Weights a run starts from."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping

import jax
from tqdm import tqdm

from walt.config import ConfigError
from walt.generation.bundle import Bundle
from walt.generation.init_from import InitRules, init_from
from walt.generation.parts import component_of, config_of
from walt.generation.sources import open_bundle
from walt.text.tokenizer import Tokenizer, WordPiece, read_tokenizer
from walt.training.task import Tree
from walt.transformer.config import TransformerConfig
from walt.transformer.widen import widen


def initial_weights(
    rules: InitRules, abstract: Mapping[str, Tree], transformer: TransformerConfig | None = None
) -> dict[str, Tree]:
    """Parameters by component: those of the bundle where it has them, the shapes of `abstract` where the rules skip.

    Prints what came from where. Raises `ConfigError` listing what does not fit, `BundleError` if there is no bundle.
    """
    bundle = open_bundle(rules.path)
    if rules.widen and transformer is not None:
        bundle = _widened(bundle, transformer)
    params, report = init_from(dict(abstract), bundle, rules)
    if jax.process_index() == 0:
        tqdm.write("\n".join(report))
    return params


def _widened(bundle: Bundle, transformer: TransformerConfig) -> Bundle:
    part = component_of(bundle, "transformer")
    old = config_of(TransformerConfig, part.config, "transformer")
    part = dataclasses.replace(part, params=widen(part.params, old, transformer))
    return dataclasses.replace(bundle, components={**bundle.components, "transformer": part})


def check_same_tokens(rules: InitRules, tokenizer: Tokenizer | WordPiece) -> None:
    """`ConfigError` if the rules take a text encoder that was trained with other tokens than `tokenizer` has."""
    stored = open_bundle(rules.path).tokenizer
    taken = not any(re.search(pattern, "text_encoder/embedding") for pattern in rules.skip)
    # Not the bytes of the files: those also hold how the model was trained, which changes no id.
    if taken and stored and read_tokenizer(stored).pieces != tokenizer.pieces:
        raise ConfigError(
            f"init_from {rules.path}: its text encoder was trained with other tokens than these captions give; "
            "leave it out with init_from.skip=('text_encoder',)"
        )
