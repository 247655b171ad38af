"""The TPU kernel, interpreted, against XLA's operations and against attention written out; and that programs for TPUs hold it."""

import importlib.util
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from walt.parallel.config import MeshConfig
from walt.parallel.mesh import make_mesh, replicated
from walt.planning.program import parse_program
from walt.planning.topology import parse_topology
from walt.transformer import attention, window_kernel
from walt.transformer.attention import attend
from walt.transformer.window_kernel import Shared, Tokens, attend_in_windows, supports
from walt.transformer.windows import Windows


def inputs(windows, queries, parts, width, heads, *, biased, masked, identity, dtype=jnp.float32):
    random = np.random.default_rng(0)

    def normal(*shape):
        return jnp.asarray(random.normal(size=shape), dtype)

    keys = sum(parts)
    mask = jnp.asarray(random.random((windows, 1, keys)) < 0.7, jnp.int32).at[..., 0].set(1)
    tokens = Tokens(
        normal(windows, queries, width),
        tuple(normal(windows, part, width) for part in parts),
        tuple(normal(windows, part, width) for part in parts),
        mask if masked else None,
        jnp.arange(windows, dtype=jnp.int32)[:, None, None] % 2 if identity else None,
    )
    offsets = normal(1, width), normal(1, width), normal(1, width)
    shared = Shared(
        offsets, normal(1, width) / (width // heads) ** 0.5, normal(heads, queries, keys) if biased else None
    )
    return tokens, shared, normal(windows, queries, width)


def written_out(tokens, shared, heads, norm):
    def by_head(x):
        return x.reshape(*x.shape[:2], heads, -1)

    def layer_norm(x):
        wide = by_head(x)
        centred = wide - wide.mean(-1, keepdims=True)
        return (centred / jnp.sqrt(jnp.square(centred).mean(-1, keepdims=True) + 1e-6)).reshape(x.shape)

    query = tokens.query + shared.offsets[0]
    key, value = (jnp.concatenate(parts, 1) + offset for parts, offset in zip(tokens[1:3], shared.offsets[1:]))
    if norm:
        query, key = layer_norm(query), layer_norm(key)
    scores = jnp.einsum("gnhd,gmhd->ghnm", by_head(query * shared.scale), by_head(key))
    scores = scores if shared.bias is None else scores + shared.bias
    scores = scores if tokens.mask is None else jnp.where(tokens.mask[:, None] > 0, scores, -jnp.inf)
    mixed = jnp.einsum("ghnm,gmhd->gnhd", jax.nn.softmax(scores), by_head(value)).reshape(query.shape)
    return mixed if tokens.identity is None else jnp.where(tokens.identity > 0, value, mixed)


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


SIZES = {  # windows, queries, parts of keys, width, heads
    "heads of whole lanes": (4, 16, (32,), 256, 2),
    "heads across lanes": (3, 32, (16, 16), 240, 4),
    "several heads in the lanes of one": (2, 16, (16,), 64, 2),
    "a last slab that is no whole one": (4, 32, (16, 16), 144, 2),
}


@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("size", SIZES)
def test_kernel_is_attention_written_out_with_gradients(size, norm):
    windows, queries, parts, width, heads = SIZES[size]
    identity = sum(parts) == queries
    given = inputs(windows, queries, parts, width, heads, biased=True, masked=True, identity=identity)
    ours = with_gradients(
        lambda tokens, shared: attend_in_windows(tokens, shared, heads=heads, norm=norm, interpret=True), *given
    )
    assert_close(ours, with_gradients(lambda *each: written_out(*each, heads, norm), *given), 3e-5)


@settings(max_examples=4, deadline=None)
@given(
    windows=st.integers(1, 4),
    tiles=st.integers(1, 2),
    text=st.booleans(),
    head_width=st.sampled_from([8, 24, 72, 128]),
    heads=st.integers(1, 3),
    biased=st.booleans(),
    masked=st.booleans(),
)
def test_kernel_and_operations_agree(windows, tiles, text, head_width, heads, biased, masked):
    """As models call them: [rows, windows, …], here of one window each."""
    parts = (16 * tiles, 16) if text else (16 * tiles,)
    given = inputs(windows, 16 * tiles, parts, heads * head_width, heads, biased=biased, masked=masked, identity=False)
    ours = with_gradients(
        lambda tokens, shared: attend_in_windows(tokens, shared, heads=heads, norm=True, interpret=True), *given
    )

    def operations(tokens, shared):
        return attend(jax.tree.map(lambda x: x[:, None], tokens), shared, heads=heads, norm=True)[:, 0]

    assert_close(ours, with_gradients(operations, *given), 3e-5)


def test_bfloat16_rounds_and_no_more():
    windows, queries, parts, width, heads = SIZES["heads across lanes"]
    given = inputs(windows, queries, parts, width, heads, biased=True, masked=True, identity=True, dtype=jnp.bfloat16)
    wide = jax.tree.map(lambda x: x.astype(jnp.float32) if x.dtype == jnp.bfloat16 else x, given)
    ours = with_gradients(
        lambda tokens, shared: attend_in_windows(tokens, shared, heads=heads, norm=True, interpret=True), *given
    )
    assert_close(ours, with_gradients(lambda *each: written_out(*each, heads, True), *wide), 2e-2)


@pytest.mark.parametrize(
    ("grid", "window", "by"),
    [((4, 4, 8), (1, 4, 8), "windows"), ((1, 4, 8), (1, 4, 8), "queries")],
    ids=["windows", "queries"],
)
def test_each_device_runs_the_kernel_on_its_rows_windows_and_heads(grid, window, by, monkeypatch):
    """Four rows on data 2 x context 2 x tensor 2, with gradients, those of what all windows share included."""
    windows = Windows(grid, window)
    assert windows.divided_over(2) == by
    tokens, shared, cotangent = inputs(
        4 * windows.number, windows.tokens, (windows.tokens, 16), 64, 4, biased=True, masked=True, identity=False
    )
    rows, cotangent = jax.tree.map(lambda x: x.reshape(4, -1, *x.shape[1:]), (tokens, cotangent))
    monkeypatch.setattr(attention, "supports", lambda *_, **__: True)
    of_a_device = set()

    def kernel(tokens, shared, **options):
        of_a_device.add(tokens.query.shape)
        return attend_in_windows(tokens, shared, interpret=True, **options)

    monkeypatch.setattr(attention, "attend_in_windows", kernel)

    def on_tpu(tokens, shared):
        return attention._attend_on_tpu(tokens, shared, heads=4, norm=True, windows=windows)

    def operations(tokens, shared):
        return attend(tokens, shared, heads=4, norm=True)

    def run(function):
        return jax.jit(
            lambda *given: jax.tree.leaves((function(*given[:2]), jax.vjp(function, *given[:2])[1](given[2])))
        )

    expected = run(operations)(rows, shared, cotangent)
    of_a_device.clear()  # what was traced for the reference
    mesh = make_mesh(MeshConfig(data=2, context=2, tensor=2))
    with jax.set_mesh(mesh):
        found = run(on_tpu)(*jax.device_put((rows, shared, cotangent), replicated(mesh)))
    per_row, queries = (windows.number // 2, windows.tokens) if by == "windows" else (1, windows.tokens // 2)
    assert of_a_device == {(2 * per_row, queries, 32)}  # half of the rows, of the windows or queries, and of the width
    real = [(a, b) for a, b in zip(found, expected, strict=True) if a.dtype != jax.dtypes.float0]
    assert_close(*([np.asarray(x) for x in side] for side in zip(*real)), 3e-5)


def test_no_kernel_but_for_a_tpu():
    tokens, shared, _ = inputs(2, 16, (16,), 64, 2, biased=False, masked=False, identity=False)
    assert not supports(tokens, shared)


@pytest.mark.parametrize(
    ("megabytes", "queries_over", "fits"),
    [(128, 1, True), (64, 1, True), (16, 1, False), (16, 4, True), (128, 32, False)],
)
def test_a_kernel_needs_the_memory_of_a_core_and_whole_tiles(megabytes, queries_over, fits, monkeypatch):
    monkeypatch.setattr(
        window_kernel.tpu, "core", lambda: SimpleNamespace(vmem_capacity_bytes=megabytes * 2**20, num_cores=1)
    )
    token, vector = jax.ShapeDtypeStruct((4, 5, 256, 1152), jnp.bfloat16), jax.ShapeDtypeStruct((1, 1152), jnp.float32)
    shared = Shared((vector,) * 3, vector, jax.ShapeDtypeStruct((16, 256, 256), jnp.float32))
    assert supports(Tokens(token, (token,), (token,)), shared, queries_over=queries_over) == fits


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason='needs libtpu: pip install "walt[tpu]"')
@pytest.mark.parametrize(
    ("topology", "keys", "kernels"),
    [("v5p:2x2x1", 256, 2), ("v5e:2x2", 256, 2), ("v4:2x2x1", 256, 0), ("v5e:2x2", 250, 0)],
)
def test_programs_for_tpus_hold_the_kernel_where_it_fits(topology, keys, kernels):
    mesh = make_mesh(MeshConfig(), parse_topology(topology).devices())

    def shaped(*shape):
        return jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=replicated(mesh))

    vector = jax.ShapeDtypeStruct((1, 1024), jnp.float32, sharding=replicated(mesh))
    key = shaped(4, 5, keys, 1024)
    tokens, shared = Tokens(shaped(4, 5, 256, 1024), (key,), (key,)), Shared((vector,) * 3, vector)

    def loss(tokens, shared):
        return attend(tokens, shared, heads=16, norm=True).astype(jnp.float32).sum()

    with jax.set_mesh(mesh):
        text = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(tokens, shared).compile().as_text()
    found = parse_program(text).kernels()
    assert len(found) == kernels and all(kernel.flops and kernel.bytes for kernel in found)
