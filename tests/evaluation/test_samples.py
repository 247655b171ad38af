"""Videos that are made when they are asked for: each process its share, and any other video on request."""

import numpy as np
import pytest

from walt.evaluation.features import ALONE, Share
from walt.evaluation.footage import of_arrays
from walt.evaluation.protocols import PROTOCOLS
from walt.evaluation.samples import Prompts, footage_of_samples
from walt.experiment.measuring import how_many

PROMPTS = Prompts(tuple(f"prompt {row}" for row in range(11)), ("",) * 11, "a test")


@pytest.fixture
def asked():
    return []


@pytest.fixture
def sample(asked):
    def sample(rows):
        asked.append(list(rows))
        return np.stack([np.full((2, 4, 4, 3), row, np.uint8) for row in rows])

    return sample


def shown(footage, rows):
    return [int(footage.videos[row].clip(None, 1, lambda places: 0, fewest=1).max()) for row in rows]


@pytest.mark.parametrize("share", [ALONE, Share(0, 2), Share(1, 2), Share(2, 3)])
def test_a_process_makes_its_share_by_the_batch(sample, asked, share):
    footage = footage_of_samples(sample, PROMPTS, {}, share, batch=3)
    mine = list(range(share.index, 11, share.count))
    assert shown(footage, mine) == mine
    assert asked == [mine[start : start + 3] for start in range(0, len(mine), 3)]


def test_videos_of_other_shares_are_made_too(sample, asked):
    """As for a report, which one process writes."""
    footage = footage_of_samples(sample, PROMPTS, {}, Share(0, 2), batch=3)
    assert shown(footage, range(11)) == list(range(11))
    assert len(asked) == 4 and sorted(row for rows in asked for row in rows) == list(range(11))


def test_no_more_samples_are_drawn_than_a_protocol_measures(caplog):
    real = of_arrays(np.zeros((5, 2, 4, 4, 3), np.uint8), "real")
    for name, asked, count in (
        ("cd-fvd", None, 2048),
        ("cd-fvd", 3000, 2048),
        ("cd-fvd", 100, 100),
        ("magvit-ucf101", None, 40_000),
        ("magvit-ucf101", 15_000, 10_000),
        ("magvit-ucf101", 25_000, 20_000),
        ("magvit-ucf101", 50_000, 40_000),
        ("tfgan-reference", None, 5),
        ("tfgan-reference", 3000, 3000),
    ):
        assert how_many(PROTOCOLS[name], asked, real) == count
    assert "of 3000 samples cd-fvd measures 2048: no others are drawn" in caplog.text
