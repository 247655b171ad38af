import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from walt.evaluation.clips import Clips
from walt.evaluation.prompts import fit_classifier, frame_features, prompt_accuracy, shuffled_labels


def test_features_are_cell_means_by_hand():
    frames = np.zeros((1, 32, 32, 3), np.uint8)
    frames[0, 2:4, 0:2] = 255  # exactly cell (1, 0) of 16x16
    frames[0, 0, 2, 1] = 51  # a quarter of cell (0, 1) in green
    features = frame_features(frames).reshape(16, 16, 3) + 0.5
    assert features[1, 0].tolist() == [1, 1, 1]
    assert features[0, 1] == pytest.approx([0, 0.05, 0], abs=1e-6)
    assert features.sum() == pytest.approx(3.05, abs=1e-4)


@pytest.mark.parametrize("size", [(5, 9), (16, 16), (17, 40), (64, 64)])
def test_features_of_any_size_keep_constant_frames_constant(size):
    features = frame_features(np.full((2, *size, 3), 204, np.uint8))
    assert features.shape == (2, min(size[0], 16) * min(size[1], 16) * 3)
    np.testing.assert_allclose(features, 0.3, atol=1e-6)


def test_real_clips_as_samples_are_all_named_right(footage):
    classifier = fit_classifier(footage(8, seed=1))
    assert classifier.real_accuracy == 1.0 and classifier.real_frame_accuracy == 1.0
    assert (classifier.fitted_clips, classifier.unseen_clips) == (24, 8)
    result = prompt_accuracy(classifier, footage(8, seed=2))
    assert (
        result.prompt_accuracy == 1.0
        and result.prompt_accuracy_shuffled == 0.0
        and result.prompt_accuracy_chance == 0.25
    )
    assert result.confusion == {name: {name: 8} for name in classifier.labels}


def test_wrong_prompts_score_nothing(footage):
    classifier, generated = fit_classifier(footage(8)), footage(4, seed=2)
    wrong = Clips(generated.videos, shuffled_labels(generated.labels))
    assert prompt_accuracy(classifier, wrong).prompt_accuracy == 0.0


def test_a_quarter_of_the_labels_wrong_is_three_quarters_right(footage):
    classifier, generated = fit_classifier(footage(8)), footage(4, seed=2)
    labels = tuple("coral" if label == "amber" else label for label in generated.labels)
    result = prompt_accuracy(classifier, Clips(generated.videos, labels))
    assert result.prompt_accuracy == 0.75
    assert result.per_label == {"blue": 1.0, "coral": 0.5, "dusk": 1.0}
    assert result.confusion["coral"] == {"amber": 4, "coral": 4}


def test_ignored_prompts_give_chance(footage):
    # The same picture of one game for every prompt: right for that game alone, and just as often when shuffled.
    real = footage(8)
    generated = Clips(np.repeat(real.videos[real.rows_of("blue")[:1]], 8, axis=0), real.label_names * 2)
    result = prompt_accuracy(fit_classifier(real), generated)
    assert result.prompt_accuracy == result.prompt_accuracy_shuffled == result.prompt_accuracy_chance == 0.25


def test_the_majority_of_frames_names_a_clip(footage):
    real = footage(8)
    blue, dusk = real.videos[real.rows_of("blue")[0]], real.videos[real.rows_of("dusk")[0]]
    mixed = np.concatenate([blue[:2], dusk[2:]])  # 2 frames against 3
    assert fit_classifier(real).name(mixed[None]) == ("dusk",)


def test_a_clip_is_named_by_the_mean_over_its_frames(footage):
    classifier, random = fit_classifier(footage(8)), np.random.default_rng(0)
    videos = random.integers(0, 256, (20, 5, 16, 16, 3), dtype=np.uint8)
    frames = videos.reshape(100, 1, 16, 16, 3)
    expected = classifier.probabilities(frames).reshape(20, 5, 4).mean(axis=1)
    np.testing.assert_allclose(classifier.probabilities(videos), expected, rtol=1e-6)
    np.testing.assert_allclose(expected.sum(axis=1), 1, rtol=1e-6)
    assert classifier.name(videos) == tuple(classifier.labels[column] for column in expected.argmax(axis=1))


def test_the_fit_never_sees_the_clips_it_is_measured_on():
    # Clips of pure noise with random labels: only a classifier measured on its own training clips would look good.
    random = np.random.default_rng(0)
    videos = random.integers(0, 256, (120, 4, 16, 16, 3), dtype=np.uint8)
    videos[:] = videos[:, :1]  # frames of a clip are equal: a split by frame would leak
    classifier = fit_classifier(Clips(videos, tuple(random.permutation(["a", "b"] * 60))))
    assert classifier.unseen_clips == 30
    assert 0.2 < classifier.real_accuracy < 0.8


def test_the_fit_is_deterministic_in_its_seed(footage):
    real, probe = footage(8), footage(2, seed=9)
    a, b, c = (fit_classifier(real, seed=seed).probabilities(probe.videos) for seed in (0, 0, 1))
    assert np.array_equal(a, b) and not np.array_equal(a, c)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from("abcde"), min_size=2, max_size=30))
def test_shuffled_prompts_are_the_same_ones_and_none_matches(labels):
    assume(2 * max(labels.count(label) for label in labels) <= len(labels))
    shuffled = shuffled_labels(labels)
    assert sorted(shuffled) == sorted(labels)
    assert all(a != b for a, b in zip(shuffled, labels, strict=True))
    assert shuffled == shuffled_labels(labels)


def test_a_shuffle_that_cannot_exist_is_refused_or_left_out(footage):
    with pytest.raises(ValueError, match="2 of 3 clips have the label 'a'"):
        shuffled_labels(["a", "a", "b"])
    real = footage(8)
    result = prompt_accuracy(fit_classifier(real), real.take([0, 1, 8]))
    assert result.prompt_accuracy == 1.0 and result.prompt_accuracy_shuffled is None


def test_what_cannot_be_named_is_an_error(footage):
    with pytest.raises(ValueError, match="at least 2 labels, got 1: amber"):
        fit_classifier(footage(4, games=("amber",)))
    real = footage(4)
    with pytest.raises(ValueError, match="'dusk' has 1 real clip"):
        fit_classifier(real.take(np.arange(13)))
    classifier = fit_classifier(real)
    with pytest.raises(ValueError, match="label 'other'"):
        prompt_accuracy(classifier, Clips(real.videos[:1], ("other",)))
    with pytest.raises(ValueError, match=r"fitted on frames of \[16, 16\], got frames of \[24, 24\]"):
        prompt_accuracy(classifier, footage(1, side=24))
