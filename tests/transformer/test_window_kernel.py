"""The TPU kernel, interpreted, against XLA's operations and against attention written out; and that programs for TPUs hold it."""

import importlib.util
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from walt.parallel.config import MeshConfig
from walt.parallel.mesh import make_mesh, replicated
from walt.planning.program import parse_program
from walt.planning.topology import parse_topology
from walt.transformer import attention, window_kernel
from walt.transformer.attention import attend
from walt.transformer.config import TransformerConfig
from walt.transformer.window_kernel import Shared, Tokens, attend_in_windows, supports
from walt.transformer.windows import Windows


def inputs(windows, rows, words, width, heads, *, biased, masked, identity, dtype=jnp.float32):
    """`words` of captions, one per frame."""
    random = np.random.default_rng(0)

    def normal(*shape):
        return jnp.asarray(random.normal(size=shape), dtype)

    keys = windows.tokens + words
    mask = jnp.asarray(random.random((rows, windows.number, 1, keys)) < 0.7, jnp.int32).at[..., 0].set(1)
    tokens = Tokens(
        normal(rows, *windows.grid, 3 * width),
        normal(rows, windows.counts[0], words, 2 * width) if words else None,
        mask if masked else None,
        jnp.arange(rows, dtype=jnp.int32)[:, None, None] % 2 if identity else None,
    )
    offsets = normal(1, width), normal(1, width), normal(1, width)
    bias = normal(heads, windows.tokens, keys) if biased else None
    return (
        tokens,
        Shared(offsets, normal(1, width) / (width // heads) ** 0.5, bias),
        normal(rows, *windows.grid, width),
    )


def written_out(tokens, shared, windows, heads, norm):
    """Window by window, cut and put back by `split` and `merge`."""

    def by_head(x):
        return x.reshape(*x.shape[:3], heads, -1)

    def layer_norm(x):
        wide = by_head(x)
        centred = wide - wide.mean(-1, keepdims=True)
        return (centred / jnp.sqrt(jnp.square(centred).mean(-1, keepdims=True) + 1e-6)).reshape(x.shape)

    cut = windows.split(tokens.own)[:, :, 0]  # [rows, windows, tokens, 3 d]
    query, key, value = jnp.split(cut, 3, axis=-1)
    if tokens.caption is not None:
        words = jnp.split(windows.of_frames(tokens.caption), 2, axis=-1)
        key, value = (jnp.concatenate(pair, axis=2) for pair in zip((key, value), words))
    query, key, value = (x + offset for x, offset in zip((query, key, value), shared.offsets))
    if norm:
        query, key = layer_norm(query), layer_norm(key)
    scores = jnp.einsum("bwnhd,bwmhd->bwhnm", by_head(query * shared.scale), by_head(key))
    scores = scores if shared.bias is None else scores + shared.bias
    scores = scores if tokens.mask is None else jnp.where(tokens.mask[:, :, None] > 0, scores, -jnp.inf)
    mixed = jnp.einsum("bwhnm,bwmhd->bwnhd", jax.nn.softmax(scores), by_head(value)).reshape(query.shape)
    if tokens.identity is not None:
        mixed = jnp.where(tokens.identity[..., None] > 0, value, mixed)
    return windows.merge(mixed[:, :, None])


def with_gradients(function, tokens, shared, cotangent):
    result, pull = jax.vjp(function, tokens, shared)
    leaves = jax.tree.leaves((result, pull(cotangent)))
    return [np.asarray(leaf, np.float32) for leaf in leaves if leaf.dtype != jax.dtypes.float0]


def assert_close(found, expected, tolerance):
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        # Gradients that are zero but for rounding, such as that of a key's offset without norm, are compared with the scale of all.
        scale = max(np.linalg.norm(theirs), 1e-2 * max(np.linalg.norm(x) for x in expected))
        assert np.linalg.norm(ours - theirs) <= tolerance * scale


SIZES = {  # grid, window, words, width, heads
    "heads of whole lanes, a frame's window in its grid": ((2, 2, 16), (1, 2, 8), 16, 256, 2),
    "heads across lanes, windows that span frames": ((2, 2, 16), (2, 1, 8), 0, 384, 4),
    "several heads in the lanes of one": ((1, 2, 8), (1, 2, 8), 0, 128, 4),
    "windows one after another": ((3, 1, 16), (1, 1, 16), 16, 128, 2),
}


@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("size", SIZES)
def test_kernel_is_attention_written_out_with_gradients(size, norm):
    grid, window, words, width, heads = SIZES[size]
    windows = Windows(grid, window)
    given = inputs(windows, 2, words, width, heads, biased=True, masked=True, identity=not words)
    ours = with_gradients(
        lambda tokens, shared: attend_in_windows(tokens, shared, windows, heads=heads, norm=norm, interpret=True),
        *given,
    )
    assert_close(ours, with_gradients(lambda *each: written_out(*each, windows, heads, norm), *given), 3e-5)


@pytest.mark.slow
@settings(max_examples=6, deadline=None)
@given(
    counts=st.tuples(*[st.integers(1, 2)] * 3),
    window=st.sampled_from([(1, 2, 8), (2, 1, 8), (1, 1, 16)]),
    one_caption=st.booleans(),
    head_width=st.sampled_from([32, 64, 128]),
    biased=st.booleans(),
    masked=st.booleans(),
)
def test_kernel_and_operations_agree(counts, window, one_caption, head_width, biased, masked):
    windows = Windows(tuple(count * side for count, side in zip(counts, window)), window)
    words, heads = 16 * (window[0] == 1), 128 // head_width
    tokens, *rest = inputs(windows, 2, words, 128, heads, biased=biased, masked=masked, identity=False)
    if words and one_caption:
        tokens = tokens._replace(caption=tokens.caption[:, :1])
    ours = with_gradients(
        lambda tokens, shared: attend_in_windows(tokens, shared, windows, heads=heads, norm=True, interpret=True),
        tokens,
        *rest,
    )
    expected = with_gradients(
        lambda tokens, shared: attend(tokens, shared, windows, heads=heads, norm=True), tokens, *rest
    )
    assert_close(ours, expected, 3e-5)


def test_bfloat16_rounds_and_no_more():
    grid, window, words, width, heads = SIZES["heads across lanes, windows that span frames"]
    windows = Windows(grid, window)
    given = inputs(windows, 2, words, width, heads, biased=True, masked=True, identity=True, dtype=jnp.bfloat16)
    wide = jax.tree.map(lambda x: x.astype(jnp.float32) if x.dtype == jnp.bfloat16 else x, given)
    ours = with_gradients(
        lambda tokens, shared: attend_in_windows(tokens, shared, windows, heads=heads, norm=True, interpret=True),
        *given,
    )
    assert_close(ours, with_gradients(lambda *each: written_out(*each, windows, heads, True), *wide), 3e-2)


@pytest.mark.parametrize(
    ("grid", "window", "of_a_device"),
    [((2, 4, 8), (1, 2, 8), (2, 2, 8)), ((4, 1, 16), (1, 1, 16), (2, 1, 16))],
    ids=["bands of rows", "windows one after another"],
)
def test_each_device_runs_the_kernel_on_its_rows_windows_and_heads(grid, window, of_a_device, monkeypatch):
    """Four rows on data 2 x context 2 x tensor 2, with gradients, those of what all windows share included."""
    windows = Windows(grid, window)
    given = inputs(windows, 4, 16, 256, 4, biased=True, masked=True, identity=False)
    monkeypatch.setattr(attention, "supports", lambda *_, **__: True)
    seen = set()

    def kernel(tokens, shared, windows, **options):
        seen.add(tokens.own.shape)
        return attend_in_windows(tokens, shared, windows, interpret=True, **options)

    monkeypatch.setattr(attention, "attend_in_windows", kernel)

    def on_tpu(tokens, shared):
        return attention._attend_on_tpu(tokens, shared, windows=windows, heads=4, norm=True)

    def operations(tokens, shared):
        return attend(tokens, shared, windows, heads=4, norm=True)

    def run(function):
        return jax.jit(
            lambda *given: jax.tree.leaves((function(*given[:2]), jax.vjp(function, *given[:2])[1](given[2])))
        )

    expected = run(operations)(*given)
    seen.clear()  # what was traced for the reference
    mesh = make_mesh(MeshConfig(data=2, context=2, tensor=2))
    with jax.set_mesh(mesh):
        # On two devices of `tensor`, what each has of queries, keys and values lies side by side.
        grouped = jax.tree.map(lambda x: x, given[0])._replace(
            own=grouped_by_device(given[0].own, 3), caption=grouped_by_device(given[0].caption, 2)
        )
        mixed, of_own, of_caption, *rest = run(on_tpu)(*jax.device_put((grouped, *given[1:]), replicated(mesh)))
    assert seen == {(2, *of_a_device, 3 * 128)}  # half of the rows, of the windows, and of the width
    found = [mixed, grouped_by_device(of_own, 3, back=True), grouped_by_device(of_caption, 2, back=True), *rest]
    real = [(a, b) for a, b in zip(found, expected, strict=True) if a.dtype != jax.dtypes.float0]
    assert_close(*([np.asarray(x) for x in side] for side in zip(*real)), 3e-5)


def grouped_by_device(x, parts, *, back=False):
    """What `side_by_side` makes on two devices of `tensor`, from what it makes on one; or `back`."""
    shape = (2, parts) if back else (parts, 2)
    return x.reshape(*x.shape[:-1], *shape, -1).swapaxes(-3, -2).reshape(x.shape)


def test_no_kernel_but_for_a_tpu():
    windows = Windows((2, 2, 8), (1, 2, 8))
    tokens, shared, _ = inputs(windows, 2, 16, 128, 2, biased=False, masked=False, identity=False)
    assert not supports(tokens, shared.bias, windows)


@pytest.mark.parametrize(
    ("megabytes", "window", "heads_over", "fits"),
    [
        (128, (1, 16, 16), 1, True),
        (64, (1, 16, 16), 1, True),
        (16, (1, 16, 16), 1, False),
        (16, (1, 4, 16), 1, True),
        (128, (1, 16, 4), 1, False),  # rows of four tokens
        (128, (1, 16, 16), 2, False),  # four and a half slabs of lanes a device
    ],
)
def test_a_kernel_needs_the_memory_of_a_core_and_whole_tiles(megabytes, window, heads_over, fits, monkeypatch):
    monkeypatch.setattr(
        window_kernel.tpu,
        "core",
        lambda: SimpleNamespace(vmem_capacity_bytes=megabytes * 2**20, get_sublane_tiling=lambda _: 8),
    )
    windows = Windows((5, 16, 16), window)
    own = jax.ShapeDtypeStruct((4, 5, 16, 16, 3456), jnp.bfloat16)
    bias = jax.ShapeDtypeStruct((16, windows.tokens, windows.tokens), jnp.float32)
    assert supports(Tokens(own), bias, windows, heads_over=heads_over) == fits


@pytest.mark.parametrize(("megabytes", "stays"), [(None, True), (128, True), (16, False)])
def test_tokens_that_no_kernel_takes_in_their_grid_are_cut_into_windows_first(megabytes, stays, monkeypatch):
    core = SimpleNamespace(vmem_capacity_bytes=(megabytes or 0) * 2**20, get_sublane_tiling=lambda _: 8)
    monkeypatch.setattr(window_kernel.tpu, "core", lambda: core if megabytes else None)
    laid = []
    monkeypatch.setattr(
        attention, "attend", lambda tokens, shared, windows, **_: laid.append(windows) or tokens.own[..., :128]
    )
    config = TransformerConfig(
        latent_shape=(3, 16, 16),
        in_channels=4,
        out_channels=2,
        width=128,
        depth=2,
        heads=2,
        spatial_window=(1, 16, 16),
        spacetime_window=(3, 8, 8),
    )
    layer = nnx.eval_shape(lambda: attention.WindowAttention(config, (3, 16, 16), nnx.Rngs(0)))
    x = jax.ShapeDtypeStruct((2, 3, 16, 16, 128), jnp.float32)
    assert jax.eval_shape(lambda layer, x: layer(x), layer, x).shape == x.shape
    windows = Windows((3, 16, 16), (3, 16, 16))
    assert laid == [windows if stays else windows.apart]


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason='needs libtpu: pip install "walt[tpu]"')
@pytest.mark.parametrize(
    ("topology", "window", "kernels"),
    [
        ("v5p:2x2x1", (1, 16, 16), 2),
        ("v5e:2x2", (5, 8, 8), 2),
        ("tpu7x:2x2x1", (5, 8, 8), 2),  # in tiles of 16 columns: cut apart first
        ("v4:2x2x1", (5, 8, 8), 0),
        ("v5e:2x2", (5, 2, 2), 0),
    ],
)
def test_programs_for_tpus_hold_the_kernel_where_it_fits(topology, window, kernels):
    mesh = make_mesh(MeshConfig(), parse_topology(topology).devices())
    windows = Windows((5, 16, 16), window)
    own = jax.ShapeDtypeStruct((8, *windows.grid, 3072), jnp.bfloat16, sharding=replicated(mesh))
    vector = jax.ShapeDtypeStruct((1, 1024), jnp.float32, sharding=replicated(mesh))
    tokens, shared = Tokens(own), Shared((vector,) * 3, vector)

    def loss(tokens, shared):
        return jnp.square(attend(tokens, shared, windows, heads=16, norm=True).astype(jnp.float32)).sum()

    with jax.set_mesh(mesh):
        text = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(tokens, shared).compile().as_text()
    found = parse_program(text).kernels()
    assert len(found) == kernels and all(kernel.flops and kernel.bytes for kernel in found)
