import importlib.util
import io
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from array_record.python import array_record_module
from PIL import Image

from walt.config import ConfigError
from walt.data import media, records
from walt.data.recipes import tfds as recipe
from walt.data.recipes.tfds import TfdsConfig

tfds = pytest.importorskip("tensorflow_datasets", reason="the tfds recipe needs the extra `tfds`")


def png(frame: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(frame).save(file, "PNG")
    return file.getvalue()


def build(directory: Path, lengths: list[int], video_feature: bool) -> Path:
    """A data set as `tfds build --file_format=array_record` leaves it, made without TensorFlow.

    Frame t of video i has the brightness 10 * i + t; the tags of the last video are unknown. `video_feature` describes
    the frames as tfds.features.Video, whose constructor needs TensorFlow, so the description is written by hand;
    examples are serialised alike in both cases.
    """
    from tensorflow_datasets.core import example_serializer

    directory.mkdir(parents=True)
    image = tfds.features.Image(shape=(12, 20, 3), encoding_format="png")
    features = tfds.features.FeaturesDict(
        {
            "video": tfds.features.Sequence(image),
            "label": tfds.features.ClassLabel(names=["ApplyEyeMakeup", "long_jump"]),
            "tags": tfds.features.Sequence(tfds.features.ClassLabel(names=["in_doors", "BlackAndWhite"])),
            "description": tfds.features.Text(),
        }
    )
    serializer = example_serializer.ExampleSerializer(features.get_serialized_info())
    splits = []
    for split, part in {"train": lengths, "test": lengths[:1]}.items():
        file = directory / f"toy-{split}.array_record-00000-of-00001"
        writer = array_record_module.ArrayRecordWriter(str(file), "group_size:1")
        for index, length in enumerate(part):
            frames = [png(np.full((12, 20, 3), 10 * index + t, np.uint8)) for t in range(length)]
            tags = [-1] if index == 4 else [index % 2, 1]
            example = {"video": frames, "label": index % 2, "tags": tags, "description": f"described {index}"}
            writer.write(serializer.serialize_example(example))
        writer.close()
        splits.append(tfds.core.SplitInfo(name=split, shard_lengths=[len(part)], num_bytes=file.stat().st_size))
    tfds.folder_dataset.write_metadata(data_dir=directory, features=features, split_infos=splits, check_data=False)
    if video_feature:
        path = directory / "features.json"
        description = json.loads(path.read_text())
        shape = {"dimensions": ["-1", "12", "20", "3"]}
        description["featuresDict"]["features"]["video"] = {
            "pythonClassName": "tensorflow_datasets.core.features.video_feature.Video",
            "video": {"shape": shape, "dtype": "uint8", "encodingFormat": "png"},
        }
        path.write_text(json.dumps(description))
    return directory


@pytest.fixture(scope="module", params=[False, True], ids=["Sequence(Image)", "Video"])
def toy(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("tfds") / "toy/1.0.0", [9, 9, 12, 9, 9], request.param)


def config(toy: Path, output: Path, **changes: object) -> TfdsConfig:
    options = {"height": 8, "width": 8, "num_frames": 5, "caption_feature": "label", "source_fps": 30.0, **changes}
    return TfdsConfig(directory=str(toy), output=str(output), **options)


def rows(directory: Path, split: str) -> dict[str, dict]:
    source = records.RecordSource(directory, split)
    return {source[i]["id"]: source[i] for i in range(len(source))}


def test_a_prepared_data_set_is_read_without_tensorflow(toy: Path, tmp_path: Path) -> None:
    manifest = recipe.prepare(config(toy, tmp_path / "out", frame_skip=2))
    assert importlib.util.find_spec("tensorflow") is None or "tensorflow" not in sys.modules
    assert (manifest.splits["train"].count, manifest.splits["heldout"].count, manifest.fps) == (4, 1, 15.0)
    found = rows(tmp_path / "out", "train") | rows(tmp_path / "out", "heldout")
    assert sorted(found) == [f"train#{i}" for i in range(5)]
    assert found["train#0"]["captions"] == ["a video of apply eye makeup"]
    assert found["train#1"]["captions"] == ["a video of long jump"] and found["train#1"]["label"] == "long_jump"
    for index in (0, 1, 3, 4):  # nine frames leave one place for five frames, every second one
        clip = media.decode_clip(found[f"train#{index}"]["clip"])
        np.testing.assert_array_equal(clip[:, 4, 4, 0], 10 * index + np.array([0, 2, 4, 6, 8]))
    start = int(media.decode_clip(found["train#2"]["clip"])[0, 0, 0, 0]) - 20
    assert 0 <= start <= 3


def test_texts_and_a_held_out_split(toy: Path, tmp_path: Path) -> None:
    recipe.prepare(config(toy, tmp_path / "out", caption_feature="description", heldout_split="test"))
    assert len(rows(tmp_path / "out", "train")) == 5
    assert rows(tmp_path / "out", "heldout")["test#0"]["captions"] == ["described 0"]


def test_several_labels(toy: Path, tmp_path: Path) -> None:
    recipe.prepare(config(toy, tmp_path / "out", caption_feature="tags", heldout=0.0, skip_bad=True))
    found = rows(tmp_path / "out", "train")
    assert sorted(found) == [f"train#{i}" for i in range(4)]  # the last one has no caption
    assert found["train#0"]["captions"] == ["a video of in doors", "a video of black and white"]
    assert found["train#0"]["label"] == ""
    assert found["train#1"]["captions"] == ["a video of black and white"]
    assert found["train#1"]["label"] == "BlackAndWhite"


def test_by_name(toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    options = {"directory": "", "name": "toy", "data_dir": str(toy.parent.parent)}
    by_name = config(toy, tmp_path / "out")
    by_name = TfdsConfig(**{**by_name.__dict__, **options})
    recipe.prepare(by_name)
    recipe.prepare(by_name)
    assert "already holds" in capsys.readouterr().out


def test_one_of_several_configurations_must_be_named(toy: Path, tmp_path: Path) -> None:
    """Which one `tfds build` wrote first says nothing of which one is meant."""
    for fold in ("fold_1", "fold_2"):
        shutil.copytree(toy, tmp_path / "data" / "many" / fold / toy.name)
    options = {"directory": "", "name": "many", "data_dir": str(tmp_path / "data")}
    with pytest.raises(ValueError, match=r"several configurations.*--name=many/fold_1, --name=many/fold_2"):
        recipe.prepare(TfdsConfig(**{**config(toy, tmp_path / "out").__dict__, **options}))
    named = options | {"name": "many/fold_2"}
    recipe.prepare(TfdsConfig(**{**config(toy, tmp_path / "out").__dict__, **named}))


def test_bad_requests(toy: Path, tmp_path: Path) -> None:
    def fail(problem: str, **changes: object) -> None:
        with pytest.raises(ValueError, match=problem):
            recipe.prepare(config(toy, tmp_path / "out", **changes))
        assert not any(tmp_path.iterdir())

    fail(r"no split 'validation'; it has \['test', 'train'\]", split="validation")
    fail(
        r"--caption_feature must be one of the features \['description', 'label', 'tags'\], got ''", caption_feature=""
    )
    fail(r"--media_feature must be one of the features \['video'\], got 'film'", media_feature="film")
    fail(r"Example train#\d has 9 frames, too few for 10", num_frames=10)
    fail(r"Example train#4 has no caption", caption_feature="tags", heldout=0.0)
    fail(r"Nothing to train on: all 1 files to train on are bad", split="test", num_frames=10, skip_bad=True)
    fail(r"heldout_split must be another split than split, got 'train' for both", heldout_split="train")
    with pytest.raises(records.DatasetError, match=r"holds no dataset_info\.json"):
        recipe.prepare(config(toy.parent, tmp_path / "out"))
    with pytest.raises(ConfigError, match="either directory or name"):
        TfdsConfig(output="x")
    for template in ("a video", "{} of {x}", "{} {}", "{", "{{}}", "{.name}", "{:d}"):
        with pytest.raises(ConfigError, match=r"template must contain \{\}"):
            config(toy, tmp_path, template=template)


@pytest.mark.parametrize("key", ["pythonClassName", "type"])
def test_a_module_that_the_features_name_is_not_imported(
    toy: Path, tmp_path: Path, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """tensorflow-datasets itself imports it, which runs whatever lies in the module."""
    (tmp_path / "planted.py").write_text("import pathlib\npathlib.Path(__file__).with_name('ran').touch()\n")
    monkeypatch.syspath_prepend(tmp_path)
    data = Path(shutil.copytree(toy, tmp_path / "toy"))
    features = json.loads((data / "features.json").read_text())
    label = {key: "planted.Feature"} | ({"content": {}} if key == "type" else {})
    features["featuresDict"]["features"]["label"] = label
    (data / "features.json").write_text(json.dumps(label if key == "type" else features))
    with pytest.raises(records.DatasetError, match=r"'planted\.Feature' is no feature of tensorflow-datasets"):
        recipe.prepare(config(data, tmp_path / "out"))
    assert not (tmp_path / "ran").exists()


def test_short_examples_can_be_skipped(toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    manifest = recipe.prepare(config(toy, tmp_path / "out", num_frames=10, skip_bad=True, heldout=0.0))
    assert manifest.splits["train"].count == 1 and len(manifest.extra["skipped"]) == 4
    assert "nearest: --num_frames=9 (not 10)." in capsys.readouterr().out
