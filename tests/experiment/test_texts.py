"""Captions embedded beforehand."""

import dataclasses
import shutil
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from walt import prepare
from walt.config import ConfigError, from_config_dict
from walt.data import records
from walt.data.loader import LatentLoader, LoaderConfig
from walt.experiment import texts
from walt.experiment.text_encoders import t5_bundle
from walt.generation.bundle import BundleError, read_bundle, write_bundle
from walt.text.config import TextEncoderConfig
from walt.text.encoder import make_encoder
from walt.text.tokenizer import Tokenizer
from walt.training.module import Functional

LENGTH, CAPTIONS = 7, ("a red ball", "a blue box moves", "ball")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Holds a T5 as the bundle `t5`, and the latents of 40 clips, the n-th of which has 1 + n % 3 captions."""
    folder = tmp_path_factory.mktemp("texts")
    model = shutil.copytree(Path(__file__).parents[1] / "text" / "data" / "t5", folder / "model")
    (model / "spiece.model").write_bytes(Tokenizer.train(CAPTIONS, 30).model_bytes)
    bundle = t5_bundle(model)
    part = bundle.components["text_encoder"]
    exact = dataclasses.replace(part, config={**part.config, "dtype": "float32"})  # bfloat16 depends on the batch
    write_bundle(dataclasses.replace(bundle, components={"text_encoder": exact}), folder / "t5")
    with records.new_dataset(folder / "latents") as directory:
        with records.RecordWriter(directory, "train", num_shards=2) as writer:
            for number in range(40):
                captions = [f"{text} {number}" for text in CAPTIONS[: 1 + number % 3]]
                latents = np.full((3, 2, 2, 4), number, np.float32)
                row = {"id": str(number), "captions": captions, "label": "", "video": latents.tobytes()}
                writer.write(row | {"images": latents[:2].tobytes()})
            splits = {"train": writer.close()}
        shapes = {"video": (3, 2, 2, 4), "images": (2, 2, 2, 4)}
        records.write_manifest(directory, records.Manifest("latents", splits, shapes, 8.0, 0, {}, {}))
    arguments = [f"--input={folder / 'latents'}", f"--output={folder / 'embedded'}", f"--encoder={folder / 't5'}"]
    prepare.main(["walt prepare", "text", *arguments, f"--length={LENGTH}"])
    return folder


@pytest.fixture(scope="module")
def encode(folder):
    bundle = read_bundle(folder / "t5")
    config = from_config_dict(TextEncoderConfig, bundle.components["text_encoder"].config)
    model = Functional(lambda rngs: make_encoder(config, rngs)).bind(bundle.components["text_encoder"].params)

    def run(caption):
        ids, mask = Tokenizer(bundle.tokenizer)([caption], LENGTH)
        return np.asarray(model(jnp.asarray(ids), jnp.asarray(mask)))[0], mask[0]

    return run


def test_every_caption_is_embedded_as_alone(folder, encode):
    manifest = records.read_manifest(folder / "embedded")
    assert manifest.shapes["text"] == (LENGTH, 24) and manifest.splits["train"].count == 40
    found, before = (
        {record["id"]: record for record in map(source.__getitem__, range(40))}
        for source in (records.RecordSource(folder / name, "train") for name in ("embedded", "latents"))
    )
    assert found.keys() == before.keys()
    for name in ("0", "1", "38"):
        record = found[name]
        assert record["video"] == before[name]["video"] and record["captions"] == before[name]["captions"]
        text = np.frombuffer(record["text"], np.float16).reshape(-1, LENGTH, 24)
        mask = np.frombuffer(record["text_mask"], bool).reshape(-1, LENGTH)
        assert len(text) == len(mask) == len(record["captions"])
        for number, caption in enumerate(record["captions"]):
            expected, real = encode(caption)
            np.testing.assert_array_equal(mask[number], real)
            np.testing.assert_allclose(text[number][real], expected[real], rtol=2e-3, atol=2e-3)


def test_batches_hold_the_embeddings_of_the_captions_that_were_drawn(folder, encode):
    config = {"path": str(folder / "embedded"), "batch_size": 6, "image_fraction": 0.5, "caption_length": LENGTH}
    loader, words = LatentLoader(LoaderConfig(**config), None), LatentLoader(LoaderConfig(**config), characters)
    for step in range(3):
        batch, drawn = loader.batch(step), words.batch(step)
        assert batch["text_embeddings"].shape == (6, 3, LENGTH, 24) and "caption_tokens" not in batch
        np.testing.assert_array_equal(batch["caption_index"], drawn["caption_index"])
        used = drawn["caption_mask"].any(-1)
        assert used.sum() == 3 + 3 * 3
        for row, slot in np.argwhere(used):
            number, which = drawn["caption_tokens"][row, slot, :2]
            expected, real = encode(f"{CAPTIONS[which]} {number}")
            np.testing.assert_array_equal(batch["caption_mask"][row, slot], real)
            np.testing.assert_allclose(batch["text_embeddings"][row, slot][real], expected[real], rtol=2e-3, atol=2e-3)
        assert not batch["caption_mask"][~used].any()


def characters(captions, length):
    """The number at the end of a caption, and which of CAPTIONS it is."""
    tokens, mask = np.zeros((len(captions), length), np.int32), np.zeros((len(captions), length), bool)
    for row, caption in enumerate(captions):
        text, _, number = caption.rpartition(" ")
        tokens[row, :2], mask[row, 0] = (int(number), CAPTIONS.index(text)), True
    return tokens, mask


def test_again_is_a_no_op_and_what_is_wrong_is_said(folder, tmp_path, capsys):
    texts.prepare(folder / "t5", folder / "latents", folder / "embedded", LENGTH)
    assert "already holds" in capsys.readouterr().out
    with pytest.raises(records.DatasetError, match=r"other arguments \(length 7 -> 8\)"):
        texts.prepare(folder / "t5", folder / "latents", folder / "embedded", 8)
    with pytest.raises(BundleError, match="does not exist"):
        texts.prepare(folder / "nothing", folder / "latents", tmp_path / "out")
    with pytest.raises(ConfigError, match="length must be"):
        texts.prepare(folder / "t5", folder / "latents", tmp_path / "out", 0)
