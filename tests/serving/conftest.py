"""The tiny model of the tests of generation, behind a page."""

import time

import pytest
from generation.conftest import tiny, tiny_bundle  # noqa: F401  # fixtures

from walt.generation.cascade import Cascade
from walt.generation.pipeline import Pipeline
from walt.serving import jobs
from walt.serving.limits import Limits
from walt.serving.studio import Studio


@pytest.fixture(scope="module")
def studio(tiny_bundle, tmp_path_factory):  # noqa: F811
    limits = Limits(max_frames=12, max_side=64, max_steps=400, max_megabytes=1, max_characters=200, max_queue=4)
    return Studio(Cascade([Pipeline(tiny_bundle)]), limits, tmp_path_factory.mktemp("videos"))


@pytest.fixture
def slow_steps(monkeypatch):
    """Sampling that takes long enough to be stopped, whatever the machine."""
    progress = jobs.Progress
    monkeypatch.setattr(jobs, "Progress", lambda *where: time.sleep(0.7) or progress(*where))
