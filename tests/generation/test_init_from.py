"""Starting from another run's weights."""

import numpy as np
import pytest

from walt.config import ConfigError
from walt.generation.bundle import Bundle, Component
from walt.generation.init_from import InitRules, init_from

BUNDLE = Bundle(
    {
        "transformer": Component(
            {}, {"blocks": {"kernel": np.ones((2, 3), np.float32)}, "head": {"bias": np.full(4, 2, np.float32)}}
        ),
        "autoencoder": Component({}, {"encoder": {"kernel": np.full(5, 3, np.float32)}}),
    }
)


def target(head=4):
    return {
        "transformer": {
            "blocks": {"kernel": np.zeros((2, 3), np.float32)},
            "head": {"bias": np.zeros(head, np.float32)},
        }
    }


def test_everything_fits_and_other_components_do_not_matter():
    params, lines = init_from(target(), BUNDLE, InitRules("b"))
    assert params["transformer"]["blocks"]["kernel"].sum() == 6 and params["transformer"]["head"]["bias"].sum() == 8
    assert lines == ["init_from b: 2 arrays (10 numbers) loaded, 0 fresh"]


def test_strict_lists_every_misfit():
    wanted = target(head=7)
    wanted["transformer"]["new"] = np.zeros(1)
    del wanted["transformer"]["blocks"]
    with pytest.raises(ConfigError) as error:
        init_from(wanted, BUNDLE, InitRules("b"))
    text = str(error.value)
    assert "transformer/head/bias: (4,) in the bundle, (7,) in the model" in text
    assert "transformer/new: not in the bundle" in text
    assert "transformer/blocks/kernel: in the bundle, but the model has no such parameter" in text


def test_skip_keeps_fresh_values_and_says_so():
    params, lines = init_from(target(head=7), BUNDLE, InitRules("b", skip=("/head/",)))
    assert params["transformer"]["blocks"]["kernel"].sum() == 6 and params["transformer"]["head"]["bias"].sum() == 0
    assert lines[1:] == ["  fresh: transformer/head/bias (skipped)"]


def test_not_strict_takes_what_fits_and_says_what_does_not():
    params, lines = init_from(target(head=7), BUNDLE, InitRules("b", strict=False))
    assert params["transformer"]["blocks"]["kernel"].sum() == 6 and params["transformer"]["head"]["bias"].shape == (7,)
    assert any("transformer/head/bias: (4,) in the bundle" in line for line in lines)


def test_rename():
    wanted = {"generator": {"encoder": {"weight": np.zeros(5)}}}
    rules = InitRules("b", rename=(("^autoencoder/", "generator/"), ("kernel$", "weight")))
    params, _ = init_from(wanted, BUNDLE, rules)
    np.testing.assert_array_equal(params["generator"]["encoder"]["weight"], 3)


def test_colliding_renames_and_bad_patterns():
    with pytest.raises(ConfigError, match="two stored arrays"):
        init_from(target(), BUNDLE, InitRules("b", rename=(("^.*$", "transformer/x"),)))
    with pytest.raises(ConfigError, match="not a regular expression"):
        InitRules("b", skip=("(",))
