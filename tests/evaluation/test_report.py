import dataclasses
import re

import numpy as np
import pytest
from pages import Page

from walt.evaluation.bars import atari_mini_bars
from walt.evaluation.clips import Clips
from walt.evaluation.report import Report, render, write_report
from walt.evaluation.result import evaluate_clips


@pytest.fixture
def full(footage):
    heldout, training, generated = footage(4, seed=1), footage(4, seed=2), footage(3, seed=3)
    result = evaluate_clips(heldout, reconstructions=heldout.videos, generated=generated, training=[training])
    metrics = [{"step": i, "time": 1e9 + i, "loss": 1 / (i + 1), "l2_grads": 1} for i in range(60)]
    return Report(
        title="A run",
        summary="What it was.",
        result=result,
        bars=atari_mini_bars(result),
        metrics={"Stage 1": metrics, "Stage 2": []},
        heldout=heldout,
        reconstructions=heldout.videos,
        generated=generated,
        seconds_by_stage={"record": 30.0, "train": 270.0},
        configs={"Stage 1 config": '{"width": 192}'},
        environment={"commit": "abc123", "packages": {"jax": "0.10.2", "numpy": "2.0"}, "unknown": None},
    )


def test_a_full_page_has_every_section_and_needs_no_other_file(full):
    text = render(full)
    page = Page(text)
    assert page.sections == {
        "cards",
        "generated",
        "reconstructions",
        "labels",
        "training",
        "seconds",
        "configs",
        "environment",
    }
    assert page.sources and all(source.startswith("data:image/") for source in page.sources)
    assert not re.search(r"<(script|link)|url\(|@import|https?://", re.sub(r'src="[^"]*"', "", text))
    # 12 samples, 4 reconstructions, the loss of the one stage that was trained
    assert len(page.sources) == 12 + 4 + 1
    assert "Stage 1" in page.text and "Stage 2" not in page.text
    assert page.text.count("✓ reached") == sum(bar.passed is True for bar in full.bars) > 0
    assert "“a game of coral”" in page.text and "5 min 00 s in all" in page.text
    assert '{"width": 192}' in page.text and "jax 0.10.2, numpy 2.0" in page.text and "unknown" not in page.text


def test_curves_are_losses_first_and_few():
    names = (
        "learning_rate",
        "eval/psnr",
        "loss",
        "l2_grads",
        "examples_per_second",
        "adversarial_loss",
        "perceptual_loss",
    )
    metrics = {"step": 1, "time": 5.0, "broken_loss": None, **dict.fromkeys(names, 0.5)}
    text = render(Report("t", metrics={"Stage 1": [metrics]}))
    shown = re.findall(r'alt="(\S+) over steps, last value 0.5"', text)
    assert shown == ["loss", "adversarial_loss", "perceptual_loss", "eval/psnr"]


def test_missed_and_undefined_bars_are_marked(full):
    missed, undefined = (dataclasses.replace(full.bars[0], passed=passed) for passed in (False, None))
    page = Page(render(Report("t", bars=(missed, undefined))))
    assert "✗ missed" in page.text and "not defined ·" in page.text and "reached" not in page.text


def test_an_empty_report_is_a_title_alone():
    page = Page(render(Report("Only a title")))
    assert page.sections == set() and page.sources == [] and "Only a title" in page.text


@pytest.mark.parametrize(
    ("absent", "section"),
    [
        ({"bars": ()}, "cards"),
        ({"metrics": {}}, "training"),
        ({"reconstructions": None}, "reconstructions"),
        ({"generated": None}, "generated"),
        ({"seconds_by_stage": {}}, "seconds"),
        ({"environment": {}}, "environment"),
        ({"result": None}, "labels"),
    ],
)
def test_an_absent_part_is_left_out_alone(full, absent, section):
    everything = Page(render(full)).sections
    assert Page(render(dataclasses.replace(full, **absent))).sections == everything - {section}


def test_samples_without_figures_are_shown_alone(footage):
    page = Page(render(Report("t", generated=footage(2))))
    assert len(page.sources) == 8 and "nearest" not in page.text and "✓" not in page.text


def test_wrong_samples_are_marked_wrong(full, footage):
    generated = footage(2, seed=3)
    labels = tuple(reversed(generated.labels))
    result = evaluate_clips(full.heldout, generated=Clips(generated.videos, labels, generated.prompts))
    page = Page(render(Report("t", result=result, generated=Clips(generated.videos, labels, generated.prompts))))
    assert "✗ amber" in page.text and "✓ amber" not in page.text


def test_the_label_of_the_nearest_clip_is_named_where_it_differs(full, footage):
    nearest = full.result.nearest
    assert re.search(r"✓ amber · 0\.\d{3}", Page(render(full)).text)
    others = dataclasses.replace(nearest, clips=Clips(nearest.clips.videos, ("elsewhere",) * 12))
    changed = dataclasses.replace(full, result=dataclasses.replace(full.result, nearest=others))
    assert Page(render(changed)).text.count("· elsewhere 0.") == 12


def test_text_from_outside_cannot_become_markup():
    evil = "<script>alert('x')</script>"
    clips = Clips(np.zeros((1, 2, 4, 4, 3), np.uint8), (evil,), (evil,))
    report = Report(
        evil,
        summary=evil,
        generated=clips,
        configs={evil: evil},
        environment={evil: evil},
        seconds_by_stage={evil: 1.0},
    )
    text = render(report)
    assert "<script" not in text and text.count("&lt;script&gt;") >= 7


def test_captions_cannot_leave_the_attribute_or_cell_they_stand_in(footage):
    games = ("<script>alert(1)</script>", '" onerror="alert(2)', "'><img src=x onerror=alert(3)>", "{{ 7 * 7 }}")
    real, made = footage(4, seed=1, games=games), footage(3, seed=2, games=games)
    result = evaluate_clips(real, reconstructions=real.videos, generated=made, training=[footage(4, games=games)])
    text = render(Report("t", result=result, heldout=real, reconstructions=real.videos, generated=made))
    page = Page(text)
    assert "<script" not in text and "<img src=x" not in text and 'onerror="alert(2)' not in text.replace("&#34;", "'")
    assert all(source.startswith("data:image/") for source in page.sources)
    assert "{{ 7 * 7 }}" in page.text and "a game of <script>alert(1)</script>" in page.text


def test_the_same_inputs_give_the_same_bytes_and_replace_the_old_page(full, tmp_path):
    path = tmp_path / "runs" / "report.html"
    assert write_report(full, path) == path
    first = path.read_bytes()
    write_report(dataclasses.replace(full, title="Another"), path)
    assert path.read_bytes() != first
    write_report(full, path)
    assert path.read_bytes() == first
    assert [file.name for file in path.parent.iterdir()] == ["report.html"]


def test_the_reconstruction_shown_is_the_one_of_median_motion(footage, monkeypatch):
    from walt.evaluation import figures

    still = np.zeros((3, 3, 4, 4, 3), np.uint8)
    still[0, 1], still[2, 1] = 200, 100  # motion: most, none, median
    clips = Clips(still, ("a",) * 3)
    shown = []
    monkeypatch.setattr(figures, "side_by_side", lambda videos: shown.append(videos) or videos[0])
    render(Report("t", heldout=clips, reconstructions=255 - still))
    ((original, reconstruction),) = shown
    assert np.array_equal(original, still[2]) and np.array_equal(reconstruction, 255 - still[2])


def test_parts_that_do_not_fit_are_refused(full, footage):
    with pytest.raises(ValueError, match="needs `heldout`"):
        Report("t", reconstructions=full.reconstructions)
    with pytest.raises(ValueError, match="reconstructions are"):
        Report("t", heldout=full.heldout, reconstructions=full.reconstructions[1:])
    with pytest.raises(ValueError, match="8 generated clips but 12 nearest"):
        Report("t", result=full.result, generated=footage(2))
