"""Bundles: round trips, damage, and what must never be overwritten."""

import json

import jax
import numpy as np
import pytest

from walt.generation import bundle as bundles
from walt.generation.bundle import Bundle, BundleError, Component, read_bundle, write_bundle


def make_bundle(**changes):
    rng = np.random.default_rng(0)
    autoencoder = Component(
        {"latent_channels": 2, "strides": [[1, 2]]},
        {
            "encoder": {
                "stages": {"0": {"kernel": rng.normal(size=(3, 2)).astype(np.float32)}},
                "bias": np.zeros(2, np.float32),
            }
        },
        {"latent_mean": np.float32([1 / 3, 0.1])},
    )
    transformer = Component({"width": 4}, {"null_text": rng.normal(size=4).astype(np.float32)})
    parts = {"autoencoder": autoencoder, "transformer": transformer}
    return Bundle(
        **(
            {
                "components": parts,
                "tokenizer": b"words",
                "diffusion": {"schedule": "linear"},
                "licences": ("mine",),
                "card": {"steps": 3},
            }
            | changes
        )
    )


def equal(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    return all(np.array_equal(x, y) and x.dtype == y.dtype for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b)))


def test_round_trip(tmp_path):
    bundle = make_bundle()
    write_bundle(bundle, tmp_path / "there")
    loaded = read_bundle(tmp_path / "there")
    for name, part in bundle.components.items():
        assert equal(loaded.components[name].params, part.params) and equal(loaded.components[name].extra, part.extra)
        assert loaded.components[name].config == part.config
    assert (loaded.tokenizer, loaded.diffusion, loaded.sampler, loaded.licences, loaded.card) == (
        b"words",
        {"schedule": "linear"},
        None,
        ("mine",),
        {"steps": 3},
    )
    assert sorted(p.name for p in tmp_path.iterdir()) == ["there"]  # no temporary folder is left


def test_relocatable(tmp_path):
    write_bundle(make_bundle(), tmp_path / "a")
    (tmp_path / "a").rename(tmp_path / "b")
    assert read_bundle(tmp_path / "b").tokenizer == b"words"


def test_float16_loads_as_float32_and_keeps_statistics_exact(tmp_path):
    bundle = make_bundle()
    write_bundle(bundle, tmp_path / "half", dtype="float16")
    part, stored = bundle.components["autoencoder"], read_bundle(tmp_path / "half").components["autoencoder"]
    kernel = part.params["encoder"]["stages"]["0"]["kernel"]
    assert equal(stored.params["encoder"]["stages"]["0"]["kernel"], kernel.astype(np.float16).astype(np.float32))
    assert equal(stored.extra, part.extra)


def test_float16_refuses_what_it_cannot_hold(tmp_path):
    big = make_bundle(components={"transformer": Component({}, {"kernel": np.float32([1e6])})})
    with pytest.raises(BundleError, match=r"params/kernel holds 1e\+06"):
        write_bundle(big, tmp_path / "half", dtype="float16")
    assert not list(tmp_path.iterdir())


def test_an_autoencoder_alone(tmp_path):
    parts = {"autoencoder": make_bundle().components["autoencoder"]}
    write_bundle(Bundle(parts), tmp_path / "stage1")
    assert read_bundle(tmp_path / "stage1").tokenizer is None


def test_a_bundle_is_replaced_but_nothing_else_is(tmp_path):
    write_bundle(make_bundle(), tmp_path / "out")
    write_bundle(make_bundle(card={"steps": 4}), tmp_path / "out")
    assert read_bundle(tmp_path / "out").card == {"steps": 4}
    mine = tmp_path / "mine"
    mine.mkdir()
    write_bundle(make_bundle(), mine)  # an empty folder holds nothing to lose
    other = tmp_path / "thesis"
    other.mkdir()
    (other / "chapter").write_text("irreplaceable")
    with pytest.raises(BundleError, match="thesis exists and is not a bundle"):
        write_bundle(make_bundle(), other)
    file = tmp_path / "file"
    file.write_text("irreplaceable")
    with pytest.raises(BundleError, match="file exists and is not a bundle"):
        write_bundle(make_bundle(), file)
    assert (other / "chapter").read_text() == file.read_text() == "irreplaceable"


@pytest.mark.parametrize("name", ["README.md", "samples/ball.mp4", "text_encoder.safetensors"])
def test_a_bundle_with_other_files_is_left_as_it_is(tmp_path, name):
    write_bundle(make_bundle(), tmp_path / "out")
    (tmp_path / "out" / name).parent.mkdir(exist_ok=True)
    (tmp_path / "out" / name).write_text("irreplaceable")
    with pytest.raises(BundleError, match=rf"{name.partition('/')[0]} is not part of the bundle"):
        write_bundle(make_bundle(card={"steps": 4}), tmp_path / "out")
    assert (tmp_path / "out" / name).read_text() == "irreplaceable"
    assert read_bundle(tmp_path / "out").card == {"steps": 3}


def test_a_failed_replacement_keeps_the_old_bundle(tmp_path, monkeypatch):
    write_bundle(make_bundle(), tmp_path / "out")
    rename = bundles.epath.Path("").__class__.rename

    def fail_for_new(self, target):
        if str(self).endswith(".new"):
            raise OSError("disk full")
        return rename(self, target)

    monkeypatch.setattr(bundles.epath.Path("").__class__, "rename", fail_for_new)
    with pytest.raises(BundleError, match="disk full"):
        write_bundle(make_bundle(card={}), tmp_path / "out")
    monkeypatch.undo()
    assert read_bundle(tmp_path / "out").card == {"steps": 3}
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def edit(path, change):
    index = json.loads((path / "walt.json").read_text())
    change(index)
    (path / "walt.json").write_text(json.dumps(index))


DAMAGE = {
    "flipped bit": (
        lambda p: (p / "transformer.safetensors").write_bytes(b"x" + (p / "transformer.safetensors").read_bytes()[1:]),
        "transformer.safetensors is damaged",
    ),
    "cut short": (lambda p: (p / "autoencoder.safetensors").write_bytes(b"ab"), "autoencoder.safetensors is damaged"),
    "missing file": (lambda p: (p / "tokenizer.model").unlink(), "tokenizer.model is missing"),
    "missing index": (lambda p: (p / "walt.json").unlink(), "walt.json does not exist"),
    "index is no JSON": (lambda p: (p / "walt.json").write_text("{"), "walt.json cannot be read"),
    "index is a list": (lambda p: (p / "walt.json").write_text("[]"), "no format number"),
    "later format": (lambda p: edit(p, lambda i: i.update(format=2)), "format 2, and this version reads format 1"),
    "unknown component": (lambda p: edit(p, lambda i: i["components"].update(vae={})), "unknown component 'vae'"),
    "no components": (lambda p: edit(p, lambda i: i.update(components={})), "no components"),
    "no section": (lambda p: edit(p, lambda i: i.pop("components")), "'components' is missing"),
    "entry without file": (
        lambda p: edit(p, lambda i: i["components"]["transformer"].pop("file")),
        "components.transformer must name a file",
    ),
    "entry without config": (lambda p: edit(p, lambda i: i["components"]["transformer"].pop("config")), "no config"),
    "path that escapes": (
        lambda p: edit(p, lambda i: i["tokenizer"].update(file="../secret")),
        "not a plain file name",
    ),
    "absolute path": (
        lambda p: edit(p, lambda i: i["tokenizer"].update(file="/etc/hostname")),
        "not a plain file name",
    ),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_named(tmp_path, name):
    damage, message = DAMAGE[name]
    write_bundle(make_bundle(), tmp_path / "b")
    damage(tmp_path / "b")
    with pytest.raises(BundleError, match=message):
        read_bundle(tmp_path / "b")


def test_a_consistent_file_that_is_no_safetensors(tmp_path):
    write_bundle(make_bundle(), tmp_path / "b")
    (tmp_path / "b/transformer.safetensors").write_bytes(b"garbage")
    edit(tmp_path / "b", lambda i: i["components"]["transformer"].update(sha256=bundles._sha256(b"garbage")))
    with pytest.raises(BundleError, match="not a readable safetensors"):
        read_bundle(tmp_path / "b")


def test_a_card_must_be_json(tmp_path):
    with pytest.raises(BundleError, match="plain JSON"):
        write_bundle(make_bundle(card={"a": object()}), tmp_path / "b")
    assert not list(tmp_path.iterdir())
