import jax
import jax.numpy as jnp
import numpy as np
import pytest

from walt.training.module import Functional
from walt.transformer import Transformer
from walt.transformer.model import patchify, unpatchify


@pytest.fixture(scope="module")
def model(small_transformer):
    return small_transformer()


@jax.jit
def apply(model, inputs):
    return model(**inputs)


@pytest.fixture(scope="module")
def run(model):
    """The model, compiled once for all tests; arguments by name."""
    return lambda **inputs: apply(model, inputs)


@pytest.fixture
def inputs(model, small_inputs):
    """Row 0 is a video, row 1 a stack of images; no caption is dropped."""
    return {**small_inputs(model.config), "drop_text": jnp.zeros((2, 3), bool)}


def changed_frames(a, b):
    """[B, F]: whether anything of a latent frame differs."""
    return np.abs(np.asarray(a) - np.asarray(b)).max((2, 3, 4)) > 1e-6


def test_patches_are_square_and_stay_in_their_frame():
    x = jnp.arange(2 * 2 * 4 * 4 * 3.0).reshape(2, 2, 4, 4, 3)
    cut = patchify(x, 2)
    assert cut.shape == (2, 2, 2, 2, 12)
    np.testing.assert_array_equal(cut[1, 0, 1, 0], x[1, 0, 2:4, 0:2].reshape(-1))
    np.testing.assert_array_equal(unpatchify(cut, 2), x)


def test_an_image_depends_on_itself_its_caption_and_its_timestep_only(run, inputs):
    before = run(**inputs)
    for name, value in (
        ("latents", inputs["latents"].at[1, 1].add(1.0)),
        ("timestep", inputs["timestep"].at[1, 1].set(3.0)),
        ("text_embeddings", inputs["text_embeddings"].at[1, 1].add(1.0)),
        ("drop_text", inputs["drop_text"].at[1, 1].set(True)),
    ):
        moved = changed_frames(run(**{**inputs, name: value}), before)
        np.testing.assert_array_equal(moved, [[False] * 3, [False, True, False]], err_msg=name)


def test_an_image_is_the_same_in_every_slot(run, inputs):
    order = np.array([2, 0, 1])
    shuffled = dict(inputs)
    for name in ("latents", "timestep", "text_embeddings", "text_mask"):
        shuffled[name] = inputs[name].at[1].set(inputs[name][1, order])
    np.testing.assert_allclose(run(**shuffled)[1], run(**inputs)[1, order], atol=1e-5)


def test_an_image_is_the_same_alone(model, run, inputs):
    names = ("latents", "timestep", "text_embeddings", "text_mask")
    alone = apply(model, {**{name: inputs[name][1:, :1] for name in names}, "is_image": jnp.array([True])})
    np.testing.assert_allclose(alone[0, 0], run(**inputs)[1, 0], atol=1e-5)


def test_frames_of_a_video_see_each_other_and_their_order(run, inputs):
    before = run(**inputs)
    moved = changed_frames(run(**{**inputs, "latents": inputs["latents"].at[0, 2].add(1.0)}), before)
    np.testing.assert_array_equal(moved, [[True] * 3, [False] * 3])
    reversed_latents = {**inputs, "latents": inputs["latents"].at[0].set(inputs["latents"][0, ::-1])}
    reversed_latents["timestep"] = inputs["timestep"].at[0].set(500.0)
    forward = run(**{**inputs, "timestep": reversed_latents["timestep"]})
    assert np.abs(run(**reversed_latents)[0, ::-1] - forward[0]).max() > 1e-3


def test_padded_text_and_unused_captions_change_nothing(run, inputs):
    before = run(**inputs)
    padding = ~inputs["text_mask"][..., None]
    changed = run(**{**inputs, "text_embeddings": jnp.where(padding, 100.0, inputs["text_embeddings"])})
    np.testing.assert_allclose(changed, before, atol=1e-5)
    unused = inputs["text_embeddings"].at[0, 1:].add(1.0)  # a video has the caption of slot 0
    np.testing.assert_array_equal(run(**{**inputs, "text_embeddings": unused})[0], before[0])
    used = inputs["text_embeddings"].at[0, 0].add(1.0)
    assert changed_frames(run(**{**inputs, "text_embeddings": used}), before)[0].all()


def test_a_dropped_caption_is_forgotten(run, inputs):
    dropped = {**inputs, "drop_text": jnp.ones((2, 3), bool)}
    before = run(**dropped)
    other = {**dropped, "text_embeddings": inputs["text_embeddings"] + 1, "text_mask": ~inputs["text_mask"]}
    np.testing.assert_array_equal(run(**other), before)
    assert changed_frames(before, run(**inputs)).all()


def test_one_caption_equals_the_same_caption_in_every_slot(model, run, inputs):
    one = {**inputs, "is_image": jnp.array([False, False]), "caption_index": jnp.zeros((2, 3), jnp.int32)}
    short = {name: one[name][:, :1] for name in ("text_embeddings", "text_mask", "drop_text")}
    np.testing.assert_allclose(run(**{**one, **short}), run(**one), atol=1e-5)


def test_class_conditional_model_with_separate_adaln_and_patches(small_transformer, small_inputs):
    model = small_transformer(text_width=None, num_classes=3, adaln="separate", patch=2, spatial_window=(1, 2, 2))
    inputs = {**small_inputs(model.config), "class_label": jnp.array([[0, 0, 0], [1, 2, 0]])}
    out = apply(model, inputs)
    assert out.shape == (2, 3, 4, 4, 2) and out.dtype == jnp.float32
    other = apply(model, {**inputs, "class_label": jnp.array([[0, 0, 0], [1, 0, 0]])})
    np.testing.assert_array_equal(changed_frames(other, out), [[False] * 3, [False, True, False]])


def test_the_image_model_is_all_spatial(small_transformer):
    model = small_transformer(latent_shape=(1, 4, 4), spacetime_window=None, depth=3, text_width=None)
    assert model.blocks.spacetime is None and model.blocks.spatial.mlp.up.kernel.shape == (3, 16, 64)
    inputs = {"latents": jnp.ones((2, 1, 4, 4, 4)), "timestep": jnp.full((2, 1), 10.0), "is_image": jnp.ones(2, bool)}
    assert apply(model, inputs).shape == (2, 1, 4, 4, 2)


@pytest.mark.parametrize(
    ("spatial", "spacetime", "reached"),
    [
        ((3, 4, 4), None, "all"),  # full attention
        ((1, 1, 1), (3, 1, 1), "column"),  # over time alone
        ((1, 4, 4), (3, 1, 1), "all"),  # space, then time: factorised
        ((1, 4, 4), None, "frame"),
    ],
)
def test_windows_decide_how_far_a_token_is_seen(small_transformer, small_inputs, spatial, spacetime, reached):
    depth = 1 if spacetime is None else 2
    model = small_transformer(text_width=None, spatial_window=spatial, spacetime_window=spacetime, depth=depth)
    inputs = small_inputs(model.config)  # a video, and a row of stills
    moved = {**inputs, "latents": inputs["latents"].at[:, 1, 2, 3].add(1)}
    changed = np.any(np.asarray(apply(model, moved)) != np.asarray(apply(model, inputs)), axis=-1)
    expected = np.zeros((3, 4, 4), bool)
    expected[{"all": slice(None), "column": (slice(None), 2, 3), "frame": 1}[reached]] = True
    np.testing.assert_array_equal(changed[0], expected)
    assert not changed[1, [0, 2]].any()  # stills never see one another


@pytest.fixture(scope="module")
def training(small_config, small_inputs):
    """(The model's structure, a compiled function from its parameters to the loss and its gradients.)"""
    config = small_config()
    functional = Functional(lambda rngs: Transformer(config, rngs))
    inputs = {**small_inputs(config), "drop_text": jnp.zeros((2, 3), bool).at[1, 0].set(True)}
    return functional, jax.jit(jax.value_and_grad(lambda p: jnp.mean((functional.bind(p)(**inputs) - 1.0) ** 2)))


def test_starts_at_zero_and_opens_step_by_step(training):
    functional, step = training
    params, _ = jax.jit(functional.init)(jax.random.key(0, impl="unsafe_rbg"))  # compiles faster
    loss, grads = step(params)
    assert loss == 1.0
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))
    assert np.any(grads["final"]["projection"]["kernel"])
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(grads["blocks"]))
    # One step later the gates, the output of cross-attention and all before the blocks learn; closed gates still hide the rest.
    _, grads = step(jax.tree.map(lambda p, g: p - 0.1 * g, params, grads))
    learning = (
        grads["conditioning"]["modulation"]["kernel"],
        grads["blocks"]["spatial"]["modulation"]["up"]["kernel"],
        grads["blocks"]["spacetime"]["cross_attention"]["out"]["kernel"],
        grads["patch_embedding"]["kernel"],
        grads["position"]["temporal"],
    )
    assert all(np.any(leaf) for leaf in learning)
    assert not np.any(grads["blocks"]["spatial"]["mlp"]["up"]["kernel"])


def test_with_open_gates_every_parameter_learns(training):
    functional, step = training
    random = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: random.normal(0.1, 0.2, leaf.shape).astype(np.float32), functional.abstract_params
    )
    _, grads = step(params)
    for path, leaf in jax.tree_util.tree_leaves_with_path(grads):
        assert np.isfinite(leaf).all() and np.abs(leaf).max() > 1e-9, jax.tree_util.keystr(path)


def test_bfloat16_stays_close_to_float32(run, inputs, small_transformer):
    rough = small_transformer(dtype="bfloat16")
    a, b = run(**inputs), apply(rough, inputs)
    assert b.dtype == jnp.float32 and all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(rough))
    assert np.linalg.norm(a - b) / np.linalg.norm(a) < 0.05
    text = str(jax.make_jaxpr(lambda inputs: rough(**inputs))(inputs))
    softmax = [line for line in text.splitlines() if " exp " in line]
    assert softmax and all("f32" in line.split("=")[0] for line in softmax)


def test_parameter_names(small_config):
    config = small_config(num_classes=3)
    params = Functional(lambda rngs: Transformer(config, rngs)).abstract_params
    names = {
        "/".join(str(key.key) for key in path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    }
    expected = {
        "blocks/spatial/attention/query/kernel": (2, 16, 16),
        "blocks/spatial/attention/key_norm/scale": (2, 8),
        "blocks/spacetime/attention/relative_bias/table": (2, 2, 5, 3, 3),
        "blocks/spacetime/cross_attention/value/bias": (2, 16),
        "blocks/spatial/mlp/up/kernel": (2, 16, 64),
        "blocks/spatial/modulation/down/kernel": (2, 16, 2),
        "blocks/spatial/modulation/up/kernel": (2, 2, 96),
        "conditioning/class_table": (4, 16),
        "conditioning/modulation/kernel": (16, 96),
        "final/projection/kernel": (16, 2),
        "patch_embedding/kernel": (4, 16),
        "position/spatial": (4, 4, 16),
        "position/temporal": (3, 16),
        "text/null_text": (6,),
        "text/projection/kernel": (6, 16),
    }
    assert {name: names.get(name) for name in expected} == expected


@pytest.mark.parametrize(
    "change, message",
    [
        ({"latents": jnp.zeros((2, 3, 4, 4, 3))}, r"latents must be \[B, F, 4, 4, 4\] with F at most 3"),
        ({"latents": jnp.zeros((2, 4, 4, 4, 4))}, "F at most 3"),
        ({"timestep": jnp.zeros((2,))}, "timestep must have one value per row and latent frame"),
        ({"is_image": jnp.zeros((2,))}, "is_image must be bool"),
        ({"text_embeddings": None}, "needs text_embeddings"),
        ({"text_embeddings": jnp.zeros((2, 3, 5, 7))}, r"text_embeddings must be \[2, C, L, 6\]"),
        ({"class_label": jnp.zeros((2, 3), int)}, "without classes"),
    ],
)
def test_wrong_inputs_are_named(model, inputs, change, message):
    with pytest.raises(ValueError, match=message):
        model(**{**inputs, **change})


def test_float64_throughout(run, inputs, small_transformer):
    with jax.enable_x64(True):
        exact = small_transformer(dtype="float64")
        wide = {name: value.astype("float64") if value.dtype == "float32" else value for name, value in inputs.items()}
        program = str(jax.make_jaxpr(lambda inputs: exact(**inputs))(wide))
        narrow = [line for line in program.splitlines() if "f32[" in line.split("=")[0] and "dot_general" in line]
        assert not narrow
        out = apply(exact, wide)
    assert out.dtype == np.float64
    np.testing.assert_allclose(run(**inputs), out, atol=1e-4)
