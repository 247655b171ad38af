"""Every task at tiny size: what is known comes back, strengths are monotone, rings roll, and a seed means a video."""

import itertools

import numpy as np
import pytest
from PIL import Image

from walt.generation import clips, seam
from walt.generation.canvas import begun, blank, held, joined, latent_mask, stacked
from walt.generation.fit import VideoSize
from walt.generation.long_tasks import decode_ring, in_place
from walt.generation.pipeline import Pipeline
from walt.generation.request import GenerationError
from walt.generation.sampling import Sampling
from walt.generation.shots import Shot, Storyboard, parse_script, parse_storyboard, read_storyboard
from walt.generation.storyboards import frames_of

from .conftest import of_frames

BALL, BOX = "a red ball moves left", "a blue box moves right"
FRAMES = 4  # latent frames of a window: 13 pictures


@pytest.fixture(scope="module")
def pipeline(tiny, tiny_bundle):
    """The tiny model with a canvas, of 13 frames of 16x16."""
    return Pipeline(of_frames(FRAMES, tiny, tiny_bundle, in_channels=7, canvas=True))


@pytest.fixture(scope="module")
def clip():
    return np.random.default_rng(0).integers(0, 256, (13, 16, 16, 3), np.uint8)


def close(a, b):
    """Up to what another batch size makes of rounding."""
    return a.shape == b.shape and np.abs(a.astype(int) - b).max() <= 2


def differ(a, b):
    return np.abs(a.astype(int) - b).mean() > 1


def test_a_canvas_holds_what_it_masks(pipeline):
    rng = np.random.default_rng(0)
    canvas = held(rng.normal(size=pipeline.latent_shape).astype(np.float32))
    canvas.mask[1, 0, 1] = canvas.mask[3] = 0
    latents = pipeline.paint(BALL, canvas, Sampling())
    kept = canvas.mask[..., 0] > 0
    np.testing.assert_allclose(latents[kept], canvas.known[kept], atol=1e-6)
    assert np.abs(latents - canvas.known)[~kept].min() > 1e-3


def test_a_seed_means_a_video_whatever_is_beside_it(pipeline):
    rng = np.random.default_rng(0)
    latents = rng.normal(size=(3, *pipeline.latent_shape)).astype(np.float32)
    first = blank(latents.shape[1:])._replace(known=latents[0])
    sheets = stacked([first, held(latents[1]), begun(latents[2], 0.6)])
    sheets.mask[1, 1:] = 0
    prompts = [BALL, BOX, BALL]
    together = pipeline.paint(prompts, sheets, Sampling(seed=5))
    for row in range(3):
        alone = pipeline.paint(prompts[row], type(sheets)(*(x[row] for x in sheets)), Sampling(seed=5), row=row)
        np.testing.assert_allclose(alone, together[row], atol=1e-3)
    np.testing.assert_allclose(pipeline.paint(prompts, sheets, Sampling(seed=5), batch_size=1), together, atol=1e-3)


def test_pictures_begin_and_pass_through_a_video(pipeline, clip):
    made = pipeline.animate(clip[0], BALL)
    assert made.shape == clip.shape and close(made[:1], pipeline.reconstruct(clip[:1]))
    kept = pipeline.keyframes({0: clip[0], 7: clip[7]}, BALL, keep_pixels=True)
    np.testing.assert_array_equal(kept[[0, 7]], clip[[0, 7]])
    longer = pipeline.animate(clip[0], BALL, num_frames=20)
    assert longer.shape == (20, 16, 16, 3) and close(longer[:1], made[:1])


def test_a_clip_is_continued(pipeline, clip):
    made = pipeline.predict(clip, BALL)
    assert made.shape == clip.shape and close(made[:5], pipeline.reconstruct(clip[-5:]))
    both = pipeline.extend(clip, BALL, seconds=1.0, direction="both")  # of 12.5 pictures a second
    assert both.shape == (12 + 13 + 12, 16, 16, 3)
    np.testing.assert_array_equal(both[12:25], pipeline.reconstruct(clip))
    kept = pipeline.extend(clip, BALL, 0.4, "backward", keep_pixels=True)
    np.testing.assert_array_equal(kept[5:], clip)
    assert close(pipeline.extend(clip[:2], BALL, 0.2), pipeline.extend(clip[:2], BALL, 0.4)[:4]), "windows are the same"


def test_latents_at_the_end_of_a_window_are_those_of_their_place(pipeline, clip):
    """Nothing of the clip is in a latent frame that is generated, and what is held is the encoding at that place."""
    before = np.repeat(clip[:1], 5, axis=0)
    latents = in_place(pipeline, clip, 2, before)
    np.testing.assert_allclose(latents, pipeline.encode(np.concatenate([before, clip[:8]]))[-2:], atol=1e-5)
    canvas = joined(blank((2, *latents.shape[1:])), held(latents))
    np.testing.assert_allclose(pipeline.paint(BALL, canvas)[2:], latents, atol=1e-6)


@pytest.mark.parametrize("frames", [4, 8, 16])
def test_a_transition_keeps_both_ends(pipeline, clip, frames):
    other = clip[::-1].copy()
    made = pipeline.connect(clip, other, BALL, num_frames=frames)
    assert len(made) == 26 + frames
    np.testing.assert_array_equal(made[:13], pipeline.reconstruct(clip))
    np.testing.assert_array_equal(made[-13:], pipeline.reconstruct(other))
    kept = pipeline.connect(clip, other, BALL, num_frames=frames, keep_pixels=True)
    np.testing.assert_array_equal(np.concatenate([kept[:13], kept[-13:]]), np.concatenate([clip, other]))


def test_a_ring_of_rolled_latents_has_the_rolled_pictures(pipeline):
    """Latent frames are 4 pictures each."""
    latents = np.random.default_rng(0).normal(size=(6, *pipeline.latent_shape[1:])).astype(np.float32)
    pictures = decode_ring(pipeline, latents)
    assert pictures.shape == (24, 16, 16, 3)
    assert close(decode_ring(pipeline, np.roll(latents, 2, axis=0)), np.roll(pictures, 8, axis=0))


def test_loops_have_their_length_or_say_so(pipeline, clip, capsys):
    assert pipeline.loop(BALL).shape == (12, 16, 16, 3) and "rounded up" not in capsys.readouterr().out
    assert len(pipeline.loop(BALL, num_frames=11)) == 12
    assert "a loop of 11 frames is rounded up to 12: whole latent frames" in capsys.readouterr().out
    closed = pipeline.loop(BALL, video=clip, num_frames=8, keep_pixels=True)
    np.testing.assert_array_equal(closed[:13], clip)
    assert len(closed) == 21


def test_both_ends_of_what_closes_a_clip_are_blended(pipeline, clip, monkeypatch):
    """The picture before the clip begins anew is changed as much as the one after it has ended."""
    monkeypatch.setattr(pipeline, "reconstruct", lambda video: video // 2)
    plain, kept = (
        pipeline.loop(BALL, video=np.full_like(clip, 100), num_frames=16, keep_pixels=keep) for keep in (False, True)
    )
    assert len(plain) == len(kept) == 29
    error = kept.astype(int) - plain
    inside = (plain > 0) & (plain < 200)  # where nothing is clipped
    for frame in (13, 28):
        assert np.median(error[frame][inside[frame]]) > 25


def test_an_edit_forgets_as_much_as_it_is_told_to(pipeline, clip):
    video = np.concatenate([clip, clip])[:21]
    plain = pipeline.reconstruct(video)
    assert close(pipeline.edit(video, BALL, strength=0.0), plain)
    # Random weights make noise of noise: how faithful a trained model is at each strength is asked in test_shipped.py.
    little, much = (
        np.square(pipeline.edit(clip, BALL, strength=strength).astype(float) - plain[:13]).mean()
        for strength in (0.25, 1.0)
    )
    assert 1 < little < much
    assert differ(pipeline.vary(clip, 1), pipeline.vary(clip, 2))


def test_a_box_is_painted_and_the_rest_kept(pipeline, clip):
    mask = np.zeros((13, 16, 16), bool)
    mask[5:, :8, :8] = True
    made = pipeline.inpaint(clip, mask, BALL, keep_pixels=True)
    np.testing.assert_array_equal(made[~mask], clip[~mask])
    assert differ(made[mask], clip[mask])
    other = np.where(mask[..., None], 255 - clip, clip)
    np.testing.assert_array_equal(pipeline.inpaint(other, mask, BALL), pipeline.inpaint(clip, mask, BALL))
    wide = pipeline.outpaint(clip, 16, 32, BALL, keep_pixels=True)
    assert wide.shape == (13, 16, 32, 3)
    np.testing.assert_array_equal(wide[:, :, 8:24], clip)


def test_pictures_between_pictures(pipeline, clip):
    made = pipeline.interpolate(clip[:5], 3)
    assert made.shape == (13, 16, 16, 3)
    np.testing.assert_array_equal(made[::3], clip[:5])


def test_a_stream_has_no_end_and_prompts_may_change(pipeline):
    asked = []

    def prompts():
        for prompt in (BALL, BOX):
            asked.append(prompt)
            yield prompt

    frames = pipeline.stream(prompts())
    begin = [next(frames) for _ in range(13)]
    assert asked == [BALL], "the next prompt is asked for when it is needed"
    more = list(itertools.islice(frames, 30))
    assert asked == [BALL, BOX] and more[-1].shape == (16, 16, 3)
    alone = list(itertools.islice(pipeline.stream(BALL), 43))
    assert close(np.stack(alone[:13]), np.stack(begin)) and differ(np.stack(alone[13:]), np.stack(more))
    np.testing.assert_array_equal(np.stack(list(pipeline.stream([BALL, BALL], num_frames=20))), np.stack(alone[:20]))
    with pytest.raises(GenerationError, match=r"20 frames of a stream are made in 2 windows, .* 3 prompts are given"):
        pipeline.stream([BALL] * 3, num_frames=20)


def test_a_storyboard(pipeline, clip, tmp_path):
    board = Storyboard(
        (
            Shot(BALL, num_frames=9),
            Shot(BOX, seconds=1.2, transition="continue"),
            Shot(BALL, num_frames=6, transition="morph", transition_seconds=0.32),
        )
    )
    assert pipeline.storyboard(board).shape == (9 + 15 + 4 + 6, 16, 16, 3)
    assert frames_of(pipeline, board.shots) == 34
    file = tmp_path / "board.yaml"
    file.write_text(f"shots:\n- prompt: {BALL}\n  num_frames: 9\n")
    np.testing.assert_array_equal(pipeline.storyboard(file), pipeline.storyboard(board)[:9])
    Image.fromarray(clip[3]).save(tmp_path / "first.png")
    file.write_text(f"shots:\n- prompt: {BALL}\n  num_frames: 9\n  image: first.png\n")
    assert list(read_storyboard(file).pictures) == [0]
    assert close(pipeline.storyboard(file)[:1], pipeline.reconstruct(clip[3:4]))


def test_no_two_windows_of_a_shot_and_its_morph_are_drawn_from_the_same_row(pipeline, monkeypatch):
    rows, paint = [], pipeline.paint

    def noted(prompt, canvas, sampling, *, row=0, **told):
        rows.append((sampling.seed, row))
        return paint(prompt, canvas, sampling, row=row, **told)

    monkeypatch.setattr(pipeline, "paint", noted)
    morph = Shot(BOX, num_frames=20, transition="morph", transition_seconds=2.0)
    pipeline.storyboard(Storyboard((Shot(BALL, num_frames=9), morph)))
    assert len(rows) >= 5 and len(set(rows)) == len(rows)


@pytest.mark.parametrize(
    ("shots", "message"),
    [
        ([], "shots is missing or empty"),
        ({}, "shots must be a list"),
        ([{"promt": "x"}], "shot 0: unknown key 'promt', .* did you mean 'prompt'"),
        ([{"seconds": 2}], "shot 0 has no prompt"),
        ([{"prompt": "x", "seconds": "two"}], "shot 0: seconds must be a number, got 'two'"),
        ([{"prompt": "x", "transition": "continue"}], "the first shot follows none"),
        ([{"prompt": "x"}, {"prompt": "y", "transition": "fade"}], "shot 1: transition must be cut, continue, morph"),
        ([{"prompt": "x", "seconds": 1, "num_frames": 3}], "give seconds or num_frames, not both"),
        ([{"prompt": "x", "seconds": -1}], "seconds must be positive"),
        ([{"prompt": "x", "seconds": float("nan")}], "seconds must be positive"),
        ([{"prompt": "x", "num_frames": 16**9999}], "num_frames must be a whole number, got int"),
        ([{"prompt": "x", "seed": -1}], "shot 0: seed must be an integer from 0"),
        ([{"prompt": "x"}, {"prompt": "y", "transition": "continue", "image": "a.png"}], "cannot begin with an image"),
    ],
)
def test_a_storyboard_that_is_none(shots, message):
    with pytest.raises(GenerationError, match=message):
        parse_storyboard({"shots": shots})


def test_a_storyboard_whose_aliases_have_no_end():
    """Two to the hundredth words, if anybody wrote them out."""
    lists = ["&l0 [x, x]", *(f"&l{n} [*l{n - 1}, *l{n - 1}]" for n in range(1, 100))]
    for text, message in (
        (f"shots: [{{prompt: [{', '.join(lists)}]}}]", "shot 0: prompt must be text, got list"),
        (f"shots: [{', '.join(lists)}]", "shot 0 must be a mapping with .* got list"),
    ):
        with pytest.raises(GenerationError, match=message):
            parse_script(text, "YAML")


def test_a_storyboard_file_that_is_none(tmp_path):
    for name, text, message in (
        ("a.txt", "", "is a .json, .yaml or .yml file"),
        ("a.json", "{", "is no JSON"),
        ("a.yaml", "a: [", "is no YAML"),
        ("b.yaml", "!!python/object/apply:os.system [ls]", "is no YAML"),
    ):
        (tmp_path / name).write_text(text)
        with pytest.raises(GenerationError, match=message):
            read_storyboard(tmp_path / name)


def test_a_model_without_a_canvas_conditions_by_replacement(tiny, tiny_bundle, clip):
    plain = Pipeline(of_frames(FRAMES, tiny, tiny_bundle))
    assert plain.conditioning == "replacement"
    made = plain.animate(clip[0], BALL)
    assert close(made[:1], plain.reconstruct(clip[:1]))
    assert not close(made[1:], plain.animate(clip[5], BALL)[1:])
    assert not close(made[1:], plain.animate(clip[0], BALL, visits=3)[1:])


def test_clips_of_another_size_or_rate_are_converted_and_said(pipeline, capsys):
    large = np.zeros((26, 32, 64, 3), np.uint8)
    made = pipeline.edit(large, BALL, strength=0.0, clip_fps=25.0)
    assert made.shape == (13, 16, 16, 3)
    lines = capsys.readouterr().out
    assert "26 frames at 25 fps are 13 at 12.5 fps" in lines and "32x64 is scaled and cropped to 16x16" in lines


def test_a_slow_clip_is_scaled_before_its_frames_are_repeated(monkeypatch):
    """At its own size it would take many times its memory."""
    scaled, filled = [], clips._filled
    monkeypatch.setattr(clips, "_filled", lambda frame, *size: scaled.append(1) or filled(frame, *size))
    video = np.random.default_rng(0).integers(0, 256, (3, 32, 64, 3), np.uint8)
    small = clips.as_clip(video, VideoSize(4, 16, 16))
    made = clips.as_clip(video, VideoSize(4, 16, 16), clip_fps=0.1, fps=10.0)
    assert len(made) == 300 and len(scaled) == 6
    np.testing.assert_array_equal(made[[0, 49, 149, 151, 299]], small[[0, 0, 1, 2, 2]])
    for rate in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(GenerationError, match="the frame rate of a clip must be positive"):
            clips.as_clip(video, VideoSize(4, 16, 16), clip_fps=rate, fps=10.0)


def test_clips_of_another_rate_are_converted_before_they_are_mixed_or_framed(pipeline, clip):
    between = pipeline.interpolate(clip[:10], 2, clip_fps=25.0)
    assert between.shape == (9, 16, 16, 3)
    np.testing.assert_array_equal(between[::2], clip[:10:2])
    wide = pipeline.outpaint(clip[:10], 16, 32, BALL, clip_fps=25.0, keep_pixels=True)
    np.testing.assert_array_equal(wide[:, :, 8:24], clip[:10:2])
    with pytest.raises(GenerationError, match=r"at least 2 frames at 12\.5 fps, got 1"):
        pipeline.interpolate(clip[:2], 2, clip_fps=25.0)


def test_larger_pictures_and_longer_videos(pipeline):
    assert pipeline.generate(BALL, height=32, width=16).shape == (13, 32, 16, 3)
    video = pipeline.generate([BALL, BOX], num_frames=30)
    assert video.shape == (2, 30, 16, 16, 3)
    assert close(video[1], pipeline.generate(BOX, num_frames=30, numbers=[1]))
    assert pipeline.generate(BALL, num_frames=1).shape == (1, 16, 16, 3)
    with pytest.raises(GenerationError, match="0 to 524,287 for each of 1 videos longer than a window"):
        pipeline.generate(BALL, num_frames=30, numbers=[2**19])


@pytest.mark.parametrize(
    ("task", "arguments", "message"),
    [
        ("edit", {"prompt": BALL, "strength": 1.5}, r"strength must be a number from 0 .* got 1.5"),
        (
            "inpaint",
            {"prompt": BALL, "mask": np.ones((8, 16), bool)},
            "mask is of 8x16, but the video has 13 frames of 16x16",
        ),
        ("inpaint", {"prompt": BALL, "mask": np.zeros((16, 16), bool)}, "nothing to paint"),
        ("inpaint", {"prompt": BALL, "mask": np.full((16, 16), 7)}, "mask must be True"),
        ("extend", {"prompt": BALL, "seconds": 0}, "seconds must be a positive number, got 0"),
        ("extend", {"prompt": BALL, "seconds": 10**400}, "seconds must be below 1,000,000"),
        ("extend", {"prompt": BALL, "seconds": 1, "direction": "up"}, "direction must be forward, backward or both"),
        ("outpaint", {"prompt": BALL, "height": 8, "width": 32}, "a size larger than the video's 16x16, got 8x32"),
        ("interpolate", {"factor": 1}, "factor must be 2 or more"),
        ("predict", {"prompt": BALL, "num_frames": 1}, "num_frames must be more than the 5 .* got 1"),
        (
            "predict",
            {"prompt": BALL, "num_frames": 3, "keep_pixels": True},
            "num_frames must be more than the 5 .* got 3",
        ),
    ],
)
def test_what_cannot_be_done_is_named(pipeline, clip, task, arguments, message):
    with pytest.raises(GenerationError, match=message):
        getattr(pipeline, task)(clip, **arguments)


def test_keyframes_that_cannot_be(pipeline, clip):
    for pictures, message in (
        ({}, "pictures by their frame"),
        ({13: clip[0]}, "frame 13 is none of the video's, 0 to 12"),
        ({1: clip[0], 3: clip[1]}, r"keyframes \[1, 3\] are too close together"),
        ({0: clip}, "keyframe 0 must be one picture"),
    ):
        with pytest.raises(GenerationError, match=message):
            pipeline.keyframes(pictures, BALL)
    with pytest.raises(GenerationError, match="context_noise must be 0 or more"):
        pipeline.stream(BALL, context_noise=1.0)
    with pytest.raises(GenerationError, match="keep_pixels is for a loop of a video"):
        pipeline.loop(BALL, keep_pixels=True)


def test_a_latent_position_is_known_if_all_its_pixels_are():
    known = np.ones((9, 16, 16), bool)
    known[0, :4, :4] = known[6, 8:, :] = False
    mask = latent_mask(known, 4, 8)[..., 0]
    np.testing.assert_array_equal(mask, [[[0, 1], [1, 1]], [[1, 1], [1, 1]], [[1, 1], [0, 0]]])


def test_a_seam_fades():
    """Known pixels are kept to the bit; beside them the error of the reconstruction is taken off, and far away nothing."""
    video, made = np.full((1, 8, 64, 3), 100, np.uint8), np.full((1, 8, 64, 3), 90, np.uint8)
    known = np.zeros((1, 8, 64), bool)
    known[..., :16] = True
    row = seam.keep_pixels(made, video, known)[0, 4, :, 0].astype(int)
    assert (row[:16] == 100).all() and 98 <= row[16] <= 100 and row[-1] == 90 and (np.diff(row) <= 0).all()
    np.testing.assert_array_equal(seam.filled(video, known)[known], video[known])
