import importlib
import inspect
import json

import numpy as np
import pytest

from walt import cli, command, evaluate
from walt.data import media
from walt.data.records import DatasetError, Manifest, RecordWriter, new_dataset, write_manifest
from walt.evaluation import source
from walt.evaluation.clips import Clips


def prepare(directory, **splits: Clips):
    """A prepared data set as the recipes make it."""
    with new_dataset(directory) as folder:
        written = {}
        for name, clips in splits.items():
            with RecordWriter(folder, name, num_shards=2) as writer:
                for row, video in enumerate(clips.videos):
                    captions = [clips.prompts[row], "a game"]
                    fields = {"id": clips.ids[row], "clip": media.encode_clip(video), "captions": captions}
                    writer.write({**fields, "label": clips.labels[row], "fps": 8.0})
                written[name] = writer.close()
        shapes = {"clip": next(iter(splits.values())).clip_shape}
        write_manifest(folder, Manifest("test", written, shapes, fps=8.0, seed=0, request={}, versions={}))
    return directory


@pytest.fixture
def real(footage, tmp_path):
    return prepare(tmp_path / "real", train=footage(6, seed=1, side=32), heldout=footage(6, seed=2, side=32))


def write_folder(folder, clips: Clips, suffix: str = ".gif", scale: int = 1):
    """Videos with their prompts beside them."""
    folder.mkdir(parents=True, exist_ok=True)
    for row, video in enumerate(clips.videos):
        media.write_video(folder / f"{row:03d}{suffix}", video, 8.0, scale=scale)
        (folder / f"{row:03d}.txt").write_text(clips.prompts[row] + "\n")
    return folder


def test_prepared_clips_come_back_whole_in_chunks_and_as_often_as_wanted(real):
    whole = source.read_clips(real, "train")
    chunks = source.PreparedClips(real, "train", chunk=7)
    for _ in range(2):
        pieces = list(chunks)
        assert [len(piece) for piece in pieces] == [7, 7, 7, 3]
        assert np.array_equal(np.concatenate([piece.videos for piece in pieces]), whole.videos)
        assert sum((piece.ids for piece in pieces), ()) == whole.ids
    limited = source.read_clips(real, "train", limit=5)
    assert len(limited) == 5 and set(limited.ids) < set(whole.ids)


def test_caption_labels_leave_out_what_several_labels_share(real):
    labels = source.caption_labels(real)
    assert labels == {f"a game of {game}": game for game in ("amber", "blue", "coral", "dusk")}


def test_a_whole_evaluation_writes_its_figures(real, footage, tmp_path, capsys):
    generated = footage(3, seed=9, side=32)
    folder = write_folder(tmp_path / "samples", generated)
    out, page = tmp_path / "result.json", tmp_path / "page.html"
    evaluate.main(["walt evaluate", f"--real={real}", f"--generated={folder}", f"--json={out}", f"--report={page}"])
    figures = json.loads(out.read_text())
    assert figures["prompt_accuracy"] == 1.0 and figures["prompt_accuracy_shuffled"] == 0.0
    assert figures["motion_labels_within"] == 4 and figures["diversity_ratio"] > 0.25
    assert figures["protocol"]["name"] == "atari-mini" and figures["protocol"]["generated_clips"] == 12
    assert "heldout_psnr" not in figures
    printed = capsys.readouterr().out
    assert (
        "12 generated clips, 24 real held-out clips" in printed
        and "none of these figures is a Fréchet video distance (FVD)" in printed
    )
    assert "“a game of dusk”" in page.read_text()


def test_enlarged_samples_measure_as_the_samples_themselves(real, footage, tmp_path):
    generated, heldout, labels = footage(2, seed=9, side=32), source.read_clips(real), source.caption_labels(real)
    folder = write_folder(tmp_path / "large", generated, suffix=".mp4", scale=4)
    assert media.read_video(folder / "000.mp4")[0].shape == (5, 128, 128, 3)
    large = source.read_generated(folder, heldout, labels)
    assert large.clip_shape == generated.clip_shape
    # What H.264 does to this noisy scenery; the games lie about 50 apart.
    assert np.abs(large.videos.astype(int) - generated.videos).mean() < 8
    assert large.labels == generated.labels and large.prompts == generated.prompts
    # Sides that are no whole multiple are left alone, and refused where they meet the real clips.
    odd = source.read_generated(write_folder(tmp_path / "odd", footage(2, side=40)), heldout, labels)
    assert odd.clip_shape == (5, 40, 40, 3)


def test_shrinking_takes_the_mean_of_each_block(real, tmp_path):
    large = np.zeros((5, 64, 64, 3), np.uint8)
    large[:, ::2, ::2] = np.array([200, 100, 200, 100, 200])[:, None, None, None]
    folder = tmp_path / "blocks"
    media.write_video(folder / "a.gif", large, 8.0)
    (folder / "a.txt").write_text("a game of dusk")
    small = source.read_generated(folder, source.read_clips(real), source.caption_labels(real)).videos
    assert small.shape == (1, 5, 32, 32, 3)
    assert np.abs(small[0].mean(axis=(1, 2, 3)) - [50, 25, 50, 25, 50]).max() <= 1


def test_a_prepared_data_set_can_be_the_generated_one(real):
    clips = source.read_generated(real, source.read_clips(real), {})
    assert len(clips) == 24 and clips.labels == source.read_clips(real, "heldout").labels


def test_labels_come_from_the_table_the_folder_or_the_caption(real, footage, tmp_path):
    heldout = source.read_clips(real)
    folder, one = tmp_path / "mixed", footage(1, side=32)
    for place in ("a.gif", "coral/b.gif", "c.gif"):
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        media.write_video(folder / place, one.videos[0], 8.0)
    rows = [("a.gif", "something new", "blue"), ("coral/b.gif", "a game of dusk", ""), ("c.gif", "a game of dusk", "")]
    lines = [json.dumps({"file": file, "caption": caption, "label": label}) for file, caption, label in rows]
    (folder / "captions.jsonl").write_text("\n".join(lines))
    clips = source.read_generated(folder, heldout, source.caption_labels(real))
    assert dict(zip(clips.ids, clips.labels)) == {"a.gif": "blue", "coral/b.gif": "coral", "c.gif": "dusk"}
    (folder / "captions.csv").write_text('file,caption,label\na.gif,"x, y",dusk\ncoral/b.gif,z,\nc.gif,w,amber\n')
    clips = source.read_generated(folder, heldout, {})
    assert clips.prompts == ("x, y", "w", "z") and clips.labels == ("dusk", "amber", "coral")


def test_a_folder_without_usable_prompts_is_named(real, footage, tmp_path):
    heldout, labels = source.read_clips(real), source.caption_labels(real)
    folder = write_folder(tmp_path / "samples", footage(1, side=32))
    (folder / "002.txt").write_text("a game of chess\n")
    with pytest.raises(
        source.EvaluationError, match=r"002\.gif: no real clip has the caption 'a game of chess'.*amber, blue"
    ):
        source.read_generated(folder, heldout, labels)
    (folder / "002.txt").write_text("\n")
    with pytest.raises(source.EvaluationError, match=r"002\.gif has no prompt: write it to 002\.txt"):
        source.read_generated(folder, heldout, labels)
    (folder / "002.txt").write_bytes("ein Spiel für zwei".encode("latin-1"))
    with pytest.raises(media.MediaError, match=r"002\.txt is not UTF-8 text"):
        source.read_generated(folder, heldout, labels)
    (folder / "captions.jsonl").write_text('{"file": 5, "caption": "a game of dusk"}\n')
    with pytest.raises(media.MediaError, match=r"Entry 1 of .*captions\.jsonl must have a `file` and a `caption`"):
        source.read_generated(folder, heldout, labels)


def test_videos_of_unlike_shapes_and_empty_folders_are_named(real, footage, tmp_path):
    heldout, labels = source.read_clips(real), source.caption_labels(real)
    folder = write_folder(tmp_path / "samples", footage(1, side=32))
    media.write_video(folder / "001.gif", footage(1, side=24).videos[0], 8.0)
    with pytest.raises(source.EvaluationError, match=r"001\.gif is \[5, 24, 24, 3\] but 000\.gif is \[5, 32, 32, 3\]"):
        source.read_generated(folder, heldout, labels)
    (tmp_path / "empty").mkdir()
    with pytest.raises(source.EvaluationError, match=r"empty holds no videos \(\.mp4, \.webm, \.gif\)"):
        source.read_generated(tmp_path / "empty", heldout, labels)
    with pytest.raises(source.EvaluationError, match=r"there is no folder of generated videos at .*nowhere"):
        source.read_generated(tmp_path / "nowhere", heldout, labels)
    (folder / "001.gif").write_bytes(b"GIF89a no more")
    with pytest.raises(media.MediaError, match=r"001\.gif"):
        source.read_generated(folder, heldout, labels)


def test_stills_are_measured_without_their_motion(footage, tmp_path, capsys):
    stills = [footage(6, seed=seed, side=32, frames=1) for seed in (1, 2, 9)]
    real = prepare(tmp_path / "stills", train=stills[0], heldout=stills[1])
    folder = write_folder(tmp_path / "samples", stills[2])
    out, page = tmp_path / "result.json", tmp_path / "page.html"
    evaluate.main(["walt evaluate", f"--real={real}", f"--generated={folder}", f"--json={out}", f"--report={page}"])
    figures = json.loads(out.read_text())
    assert figures["prompt_accuracy"] == 1.0 and figures["diversity_ratio"] > 0.25
    assert not any(name.startswith("motion") for name in figures)
    assert "“a game of dusk”" in page.read_text()


def test_figures_that_the_clips_do_not_define_are_left_out(footage, tmp_path, caplog):
    """One sample of each prompt, and a label with a single real clip: no diversity, no classifier, but all the rest."""
    heldout = footage(2, seed=2, side=32)
    real = prepare(tmp_path / "real", train=footage(2, seed=1, side=32), heldout=heldout.take(range(1, len(heldout))))
    folder, out = write_folder(tmp_path / "samples", footage(1, seed=9, side=32)), tmp_path / "result.json"
    page = tmp_path / "page.html"
    evaluate.main(["walt evaluate", f"--real={real}", f"--generated={folder}", f"--json={out}", f"--report={page}"])
    figures = json.loads(out.read_text())
    assert "motion_ratio" in figures and "nearest_distance" in figures
    assert "prompt_accuracy" not in figures and "diversity_ratio" not in figures
    assert "left out: the label 'amber' has 1 real clip" in caplog.text and "left out: diversity needs" in caplog.text
    assert "“a game of dusk”" in page.read_text()


def test_errors_of_the_command_say_what_would_be_right(real, tmp_path):
    flags = ["walt evaluate", f"--real={real}", f"--generated={real}"]
    with pytest.raises(command.CommandError, match="give one of --generated"):
        evaluate.main(flags[:2])
    with pytest.raises(
        ValueError,
        match="unknown protocol 'ucf101-magvit': there is atari-mini and, for distances, magvit-ucf101",
    ):
        evaluate.main([*flags, "--protocol=ucf101-magvit"])
    with pytest.raises(command.CommandError, match=r"real is a folder; the output must be the name of a file"):
        evaluate.main([*flags, f"--json={real}"])
    with pytest.raises(DatasetError, match="nowhere"):
        evaluate.main(["walt evaluate", f"--real={tmp_path}/nowhere", f"--generated={real}"])


def test_an_error_is_one_sentence_and_a_status(real, capsys):
    with pytest.raises(SystemExit) as stopped:
        command.run(evaluate.main, ["walt evaluate", f"--real={real}", f"--generated={real}", "--protocol=fvd"])
    assert stopped.value.code == 1
    error = capsys.readouterr().err
    assert error.startswith("walt evaluate: unknown protocol 'fvd'") and error.count("\n") == 1


@pytest.mark.parametrize("name", cli.available())
def test_every_command_runs_as_a_module(name):
    """`python -m walt.NAME` of a module that only defines `main` does nothing and says so to nobody."""
    source = inspect.getsource(importlib.import_module(f"walt.{name}"))
    assert source.rstrip().endswith('if __name__ == "__main__":\n    command.run(main)')
