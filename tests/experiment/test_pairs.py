"""Settings that are right one by one, and do not go together: refused before anything is trained."""

import pytest

from walt.config import ConfigError, apply_overrides, load
from walt.experiment.config import parse


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        (
            "classes/atari",
            {"diffusion.class_dropout": "0.0"},
            "needs a model that is sometimes told nothing; set diffusion.class_dropout above 0",
        ),
        ("t2v/atari", {"diffusion.text_dropout": "0.0"}, "set diffusion.text_dropout above 0"),
        (
            "frames/k600",
            {"sampler.known_guidance": "2.0", "diffusion.known_rate": "1.0"},
            "sometimes shown no frames; set diffusion.known_rate below 1",
        ),
        (
            "t2v/atari",
            {"transformer.spatial_window": "5,4,4", "transformer.spacetime_window": "None"},
            "data.image_fraction must be 0 for a transformer whose windows all span frames",
        ),
        (
            "t2v/atari",
            {"text.architecture": "bert", "data.caption_length": "600", "diffusion.caption_length": "600"},
            "caption_length is 600, but this text encoder takes at most 512 tokens",
        ),
        (
            "t2v/atari",
            {
                "diffusion.schedule": "cosine",
                "diffusion.zero_terminal_snr": "False",
                "sampler.spacing": "karras",
                "sampler.steps": "50",
            },
            "'karras' with 50 steps visits some of the 1000 times of the schedule twice",
        ),
        ("t2v/atari", {"sampler.churn_range": "5,1"}, "churn_range: .5.0, 1.0. is not low < high"),
    ],
)
def test_what_cannot_work_together_is_named(name, overrides, message):
    parse(load(name))
    with pytest.raises(ConfigError, match=message):
        parse(apply_overrides(load(name), overrides))
