import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from walt.transformer import attention
from walt.transformer.attention import CrossAttention, WindowAttention
from walt.transformer.windows import Windows

CASES = {
    "spatial": ((2, 4, 4), (1, 2, 2)),
    "spatial, whole frames": ((3, 2, 4), (1, 16, 16)),
    "spatiotemporal": ((3, 4, 4), (3, 2, 2)),
    "spatiotemporal, full": ((2, 3, 2), (2, 3, 2)),
    "height and width not divisible": ((2, 5, 3), (2, 2, 2)),
    "time not divisible": ((5, 2, 4), (2, 2, 4)),
    "nothing divisible": ((3, 5, 7), (2, 3, 4)),
    "one frame of a longer window": ((1, 4, 4), (5, 2, 2)),
}


@jax.jit
def apply(layer, args, kwargs):
    return layer(*args, **kwargs)


def compiled(layer, *args, **kwargs):
    return np.asarray(apply(layer, args, kwargs))


def linear(layer, x):
    return x @ np.asarray(layer.kernel[...]) + np.asarray(layer.bias[...])


def head_norm(norm, x):
    """LayerNorm over the head width (last axis), with scale."""
    if norm is None:
        return x
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6) * np.asarray(norm.scale[...])


def dense_weights(layer, query, key, bias, mask):
    """Softmax of one row's scores over all keys, written out: [heads, queries, keys]."""
    heads = layer.heads

    def split(x):
        return x.reshape(len(x), heads, -1).transpose(1, 0, 2)

    query = head_norm(layer.query_norm, split(query))
    key = head_norm(layer.key_norm, split(key))
    scores = query @ key.transpose(0, 2, 1) / np.sqrt(query.shape[-1]) + bias
    scores = np.where(mask, scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def mixed(layer, weights, value):
    value = value.reshape(len(value), layer.heads, -1).transpose(1, 0, 2)
    return linear(layer.out, (weights @ value).transpose(1, 0, 2).reshape(weights.shape[1], -1))


def places(grid):
    return np.array(list(itertools.product(*(range(side) for side in grid))))


def same_window(grid, window):
    """[tokens, tokens]: whether two tokens share a window."""
    box = places(grid) // np.array(window)
    return (box[:, None] == box[None]).all(-1)


def dense_bias(layer, grid, window):
    """The learned bias of every pair of tokens of one window, 0 elsewhere."""
    place = places(grid)
    table = np.asarray(layer.relative_bias.table[...])
    bias = np.zeros((layer.heads, len(place), len(place)), np.float32)
    for q, k in zip(*np.nonzero(same_window(grid, window))):
        offset = place[k] - place[q] + np.array(window) - 1
        bias[:, q, k] = table[(slice(None), *offset)]
    return bias


@pytest.mark.parametrize("case", CASES)
def test_window_attention_equals_dense_attention_under_the_mask(case, small_config, randomised):
    grid, window = CASES[case]
    config = small_config(qk_norm=case != "spatial")
    layer = randomised(lambda rngs: WindowAttention(config, window, rngs))
    x = np.random.default_rng(0).normal(size=(2, *grid, 16)).astype(np.float32)
    out = compiled(layer, x).reshape(2, -1, 16)
    bias, mask = dense_bias(layer, grid, window), same_window(grid, window)
    for row, tokens in enumerate(x.reshape(2, -1, 16)):
        query, key, value = (linear(part, tokens) for part in (layer.query, layer.key, layer.value))
        expected = mixed(layer, dense_weights(layer, query, key, bias, mask), value)
        np.testing.assert_allclose(out[row], expected, atol=2e-5)


@pytest.mark.parametrize("per_frame", [True, False])
@pytest.mark.parametrize("grid, window", [((3, 4, 4), (1, 2, 4)), ((2, 3, 5), (1, 2, 2)), ((3, 2, 2), (1, 16, 16))])
def test_cross_attention_equals_dense_attention_over_window_and_caption(
    grid, window, per_frame, small_config, randomised
):
    config = small_config(spatial_window=window)
    layer = randomised(lambda rngs: CrossAttention(config, rngs))
    random = np.random.default_rng(0)
    x = random.normal(size=(2, *grid, 16)).astype(np.float32)
    captions = grid[0] if per_frame else 1
    text = random.normal(size=(2, captions, 6, 16)).astype(np.float32)
    text_mask = np.arange(6) < random.integers(0, 6, (2, captions, 1))  # a caption may even be all padding
    out = compiled(layer, x, text, text_mask).reshape(2, -1, 16)

    frame = places(grid)[:, 0]
    caption_of_word = np.arange(captions).repeat(6)
    for row, tokens in enumerate(x.reshape(2, -1, 16)):
        sees_word = (caption_of_word == (frame[:, None] if per_frame else 0 * frame[:, None])) & text_mask[row].ravel()
        mask = np.concatenate([same_window(grid, window), sees_word], axis=1)
        context = np.concatenate([tokens, text[row].reshape(-1, 16)])
        key, value = linear(layer.key, context), linear(layer.value, context)
        expected = mixed(layer, dense_weights(layer, linear(layer.query, tokens), key, 0.0, mask), value)
        np.testing.assert_allclose(out[row], expected, atol=2e-5)


def test_identity_rows_give_their_own_projected_values(small_config, randomised):
    layer = randomised(lambda rngs: WindowAttention(small_config(), (3, 2, 2), rngs))
    x = np.random.default_rng(0).normal(size=(2, 3, 4, 4, 16)).astype(np.float32)
    out = compiled(layer, x, identity=jnp.array([False, True]))
    np.testing.assert_allclose(out[1], linear(layer.out, linear(layer.value, x[1])), atol=2e-5)
    np.testing.assert_allclose(out[0], compiled(layer, x)[0], atol=1e-6)


@pytest.mark.parametrize("window", [(1, 2, 2), (3, 2, 2)])
def test_a_token_moves_its_own_window_only(window, small_config, randomised):
    layer = randomised(lambda rngs: WindowAttention(small_config(), window, rngs))
    x = np.random.default_rng(0).normal(size=(1, 3, 4, 4, 16)).astype(np.float32)
    other = x.copy()
    other[0, 1, 2, 3] += 1
    moved = np.abs(compiled(layer, other) - compiled(layer, x)).max((0, -1)) > 1e-6
    expected = np.zeros((3, 4, 4), bool)
    expected[1 if window[0] == 1 else slice(None), 2:, 2:] = True
    np.testing.assert_array_equal(moved, expected)


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("scores", [1, 2 * 2 * 3 * 6 * 6, 10**9])
def test_heads_in_groups_are_heads_at_once_with_gradients(monkeypatch, scores, masked, biased):
    """One head at a time, two, or all six; softmax first, as written."""
    monkeypatch.setattr(attention, "SCORES_IN_CACHE", scores)
    rng = np.random.default_rng(0)
    query, key, value, cotangent = (jnp.asarray(rng.normal(size=(2, 3, 6, 6, 4)), jnp.float32) for _ in range(4))
    bias = jnp.asarray(rng.normal(size=(6, 6, 6)), jnp.float32) if biased else None
    mask = jnp.asarray(rng.random((2, 3, 6)) < 0.7).at[..., 0].set(True) if masked else None

    def written_out(query, key, value, bias):
        scores = jnp.einsum("bwqhd,bwkhd->bwhqk", query, key) + (0 if bias is None else bias)
        scores = scores if mask is None else jnp.where(mask[:, :, None, None], scores, -jnp.inf)
        return jnp.einsum("bwhqk,bwkhd->bwqhd", jax.nn.softmax(scores), value)

    def ours(query, key, value, bias):
        own = jnp.concatenate([x.reshape(2, 3, 1, 6, 24) for x in (query, key, value)], axis=-1)
        flags = None if mask is None else mask[:, :, None].astype(jnp.int32)
        none = jnp.zeros((1, 24))
        shared = attention.Shared((none, none, none), none + 1, bias)
        windows = Windows((3, 1, 6), (1, 1, 6))
        return attention.attend(attention.Tokens(own, None, flags), shared, windows, heads=6).reshape(2, 3, 6, 6, 4)

    found, expected = (
        jax.jit(lambda *inputs, f=f: (f(*inputs), jax.vjp(f, *inputs)[1](cotangent)))(query, key, value, bias)
        for f in (ours, written_out)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), found, expected)
