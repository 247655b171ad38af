"""The page about a distance: every part of it, what it escapes, and the command that writes it."""

import dataclasses
import re

import numpy as np
import pytest
import stand_in
from pages import Page

from walt import evaluate
from walt.evaluation import EvaluationError
from walt.evaluation.distance import evaluate_footage, read_real, write_real
from walt.evaluation.distance_report import DistanceReport, nearest, render
from walt.evaluation.footage import Footage, of_arrays

SECTIONS = {"figures", "sensitivity", "neighbours", "classes", "samples", "card", "environment"}


@pytest.fixture
def protocol(monkeypatch):
    return stand_in.install(monkeypatch)


def named(footage: Footage, labels, captions) -> Footage:
    videos = [
        dataclasses.replace(video, describe=lambda pair=(caption, label): pair)
        for video, label, caption in zip(footage.videos, labels, captions)
    ]
    return dataclasses.replace(footage, videos=videos)


@pytest.fixture
def page(footage, protocol):
    """Clips of four games, real and generated; one of the generated ones is a copy, one is noise, one has a caption that is code."""
    real, generated = footage(8, seed=1, side=24), footage(3, seed=2, side=24)
    videos = generated.videos.copy()
    videos[0] = real.videos[5]
    videos[4] = np.random.default_rng(0).integers(0, 256, videos[4].shape, dtype=np.uint8)
    captions = ["<script>alert('x')</script> & more", *generated.prompts[1:]]
    sets = (
        named(of_arrays(real.videos, "real"), real.labels, real.prompts),
        named(of_arrays(videos, "generated"), generated.labels, captions),
    )
    found = evaluate_footage(*sets, protocol, intervals=2, sensitivity=True)
    return DistanceReport("A <title>", found, protocol, summary="What it was.", environment={"commit": "abc"})


def test_the_page_has_every_part_and_needs_no_other_file(page):
    text = render(page)
    parsed = Page(text)
    assert parsed.sections == SECTIONS and parsed.sources
    assert all(source.startswith("data:image/") for source in parsed.sources)
    assert not re.search(r"<(script|link)|url\(|@import|https?://", re.sub(r'src="[^"]*"', "", text))
    # 12 pairs and 12 samples; the strip: a real clip, a generated one, and that spoilt in three ways
    assert len(parsed.sources) == 12 + 12 + 5
    for words in ("stand_in_distance", "frames shuffled", "as generated", "Note: with 12 clips", "amber", "commit"):
        assert words in parsed.text
    assert render(page) == text


def test_captions_and_titles_are_escaped(page):
    text = render(page)
    assert "<script" not in text and "&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt; &amp; more" in text
    assert "<title>A &lt;title&gt;</title>" in text


def test_copies_come_first_and_noise_comes_last(page):
    text = render(page)
    section = text[text.index('id="samples"') : text.index('id="card"')]
    captions = re.findall(r"<figcaption>([\d.e+-]+) · (.*?)</figcaption>", section)
    distances = [float(distance) for distance, _ in captions]
    assert distances == sorted(distances) and captions[-1][1] == "a game of blue"  # the fifth clip
    pairs = re.findall(r"<figcaption>([\d.e+-]+) · (.*?)</figcaption>", text[text.index('id="neighbours"') :])
    assert float(pairs[0][0]) == 0 and "script" in pairs[0][1]


def test_neighbours_are_those_of_all_distances():
    random = np.random.default_rng(0)
    real, generated = random.normal(1000, 1, (40, 6)), random.normal(1000, 1, (9, 6))
    found = nearest(real.astype(np.float32), generated.astype(np.float32))
    every = np.linalg.norm(generated[:, None] - real[None], axis=2)
    assert np.array_equal(found.nearest, every.argmin(1)) and np.allclose(found.distance, every.min(1), rtol=1e-3)
    assert np.allclose(found.typicality, np.sort(every, axis=1)[:, :5].mean(1), rtol=1e-3)


def test_stored_statistics_show_generated_clips_alone(page, protocol, tmp_path):
    write_real(page.found.real, tmp_path / "real.npz")
    generated = page.found.footage[1]
    found = evaluate_footage(read_real(tmp_path / "real.npz"), generated, protocol, intervals=0)
    parsed = Page(render(DistanceReport("t", found, protocol)))
    assert parsed.sections == {"figures", "classes", "samples", "card"} and len(parsed.sources) == 12
    with pytest.raises(EvaluationError, match="a report needs the footage that was measured"):
        render(DistanceReport("t", dataclasses.replace(found, footage=None), protocol))


def test_the_command_writes_it(protocol, footage, tmp_path):
    for name, seed in (("real", 1), ("generated", 2)):
        (tmp_path / name / "amber").mkdir(parents=True)
        np.savez(tmp_path / name / "amber" / "clips.npz", videos=footage(3, seed=seed, side=24).videos)
    flags = [f"--{name}={tmp_path / name}" for name in ("real", "generated", "cache")]
    out = tmp_path / "page.html"
    evaluate.main(["walt evaluate", *flags, f"--protocol={stand_in.NAME}", "--intervals=0", f"--report={out}"])
    parsed = Page(out.read_text())
    assert (
        parsed.sections == SECTIONS - {"sensitivity", "classes"} and "12 generated clips, 12 real clips" in parsed.text
    )
