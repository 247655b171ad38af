"""The shipped autoencoder beside simple codes, through the command; and the progress of a run from its log."""

import json

import numpy as np
import pytest

from walt import command, evaluate
from walt.data import media
from walt.data.records import Manifest, RecordWriter, new_dataset, write_manifest
from walt.experiment.comparison import progress_of


@pytest.fixture
def real(tmp_path):
    """Eight held-out clips of a bright square on slow scenery."""
    rng = np.random.default_rng(0)
    scenery = np.linspace(40, 140, 32)[None, :, None, None] + rng.normal(0, 5, (1, 32, 32, 3))
    with new_dataset(tmp_path / "real") as folder:
        with RecordWriter(folder, "heldout") as writer:
            for index in range(8):
                video = np.repeat(scenery, 5, axis=0).clip(0, 255).astype(np.uint8)
                for frame in range(5):
                    video[frame, 8:16, index + frame : index + frame + 8] = 250
                fields = {"id": str(index), "clip": media.encode_clip(video), "captions": ["a square"]}
                writer.write({**fields, "label": "square", "fps": 8.0})
            heldout = writer.close()
        extra = {"attribution": "squares by nobody"}
        shape = {"clip": (5, 32, 32, 3)}
        write_manifest(folder, Manifest("test", {"heldout": heldout}, shape, 8.0, 0, {}, {}, extra))
    return tmp_path / "real"


def test_an_autoencoder_is_measured_beside_simple_codes(real, tmp_path, capsys):
    out, page = tmp_path / "result.json", tmp_path / "page.html"
    evaluate.main(["walt evaluate", f"--real={real}", "--autoencoder=mini", f"--json={out}", f"--report={page}"])
    found = json.loads(out.read_text())
    codes = found["codes"]
    assert found["clips"] == 8 and list(codes) == ["autoencoder", "… as bytes", "downsampled", "JPEG", "mean colour"]
    assert codes["autoencoder"]["kept"] == "256 numbers"  # 2 x 4 x 4 positions of 8 channels
    assert codes["autoencoder"]["psnr"] > codes["mean colour"]["psnr"] > 5
    assert all(0 < code["ssim"] <= 1 and code["sharpness"] >= 0 for code in codes.values())
    # A byte for each number is nearly as good as a float.
    assert abs(codes["… as bytes"]["psnr"] - codes["autoencoder"]["psnr"]) < 0.5
    assert "8 held-out clips of 5x32x32" in capsys.readouterr().out
    text = page.read_text()
    assert "squares by nobody" in text and text.count("data:image/webp") == 8 and "hours of training" not in text


def test_progress_joins_figures_and_hours(tmp_path):
    lines = [
        {"step": 25, "loss": 1.0, "seconds": 900.0},
        {"step": 50, "loss": 0.5, "seconds": 1800.0},
        {"step": 50, "heldout/psnr": 20.0, "heldout/ssim": 0.5},
        {"step": 60, "heldout/psnr": 21.0},  # no line of the training at this step tells its time
        {"step": 100, "loss": 0.4, "seconds": 3600.0},
        {"step": 100, "heldout/psnr": 22.0},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert progress_of(tmp_path) == [{"hours": 0.5, "psnr": 20.0, "ssim": 0.5}, {"hours": 1.0, "psnr": 22.0}]
    assert progress_of("mini") == []


def test_one_of_two_things_is_measured(real):
    for flags in ([], ["--generated=a", "--autoencoder=b"]):
        with pytest.raises(command.CommandError, match=r"give one of --generated.* and --autoencoder"):
            evaluate.main(["walt evaluate", f"--real={real}", *flags])
