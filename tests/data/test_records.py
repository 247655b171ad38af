import json
import pickle
import shutil
from pathlib import Path

import pytest
from array_record.python import array_record_module

from walt.data import records


@pytest.fixture
def copy(clips_dir: Path, tmp_path: Path) -> Path:
    """A data set that a test may damage."""
    return Path(shutil.copytree(clips_dir, tmp_path / "copy"))


def edit_manifest(directory: Path, **changes: object) -> None:
    path = directory / records.MANIFEST
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_records_come_back_whole_and_spread_over_shards(clips_dir: Path) -> None:
    source = records.RecordSource(clips_dir)
    assert len(source) == 17
    assert sorted(source[i]["id"] for i in range(17)) == sorted(f"clip-{i}" for i in range(17))
    assert [shard.count for shard in source.manifest.splits["train"].shards] == [6, 6, 5]
    assert source[0].keys() == {"id", "clip", "captions", "label", "fps"}
    with pytest.raises(IndexError):
        source[17]


def test_source_pickles(clips_dir: Path) -> None:
    source = records.RecordSource(clips_dir)
    source[3]
    assert pickle.loads(pickle.dumps(source))[3] == source[3]


def test_manifest_round_trip(clips_dir: Path) -> None:
    manifest = records.read_manifest(clips_dir)
    assert manifest.shapes == {"clip": (5, 8, 12, 3)}
    assert manifest == records.verify(clips_dir)
    assert "numpy" in manifest.versions


def test_missing_data_set(tmp_path: Path) -> None:
    with pytest.raises(records.DatasetError, match=r"There is no data set at .*nowhere; make one with `walt prepare"):
        records.RecordSource(tmp_path / "nowhere")


def test_half_written_data_set(copy: Path) -> None:
    (copy / records.MANIFEST).unlink()
    with pytest.raises(
        records.DatasetError, match=r"is no prepared data set, or a damaged one: it has no manifest\.json"
    ):
        records.RecordSource(copy)
    with pytest.raises(records.DatasetError, match=r"it has no manifest\.json"):
        records.already_prepared(copy, "test", {"rows": 17})


def test_missing_shard_and_unknown_split(copy: Path) -> None:
    with pytest.raises(records.DatasetError, match=r"no split 'heldout'; it has \['train'\]"):
        records.RecordSource(copy, "heldout")
    (copy / "train-00001-of-00003.arrayrecord").unlink()
    with pytest.raises(records.DatasetError, match=r"train-00001-of-00003\.arrayrecord is missing"):
        records.RecordSource(copy)
    with pytest.raises(records.DatasetError, match=r"train-00001-of-00003\.arrayrecord is missing"):
        records.verify(copy)


@pytest.mark.parametrize("keep", [0, 100, 70_000])
def test_half_a_shard_is_found_before_training(copy: Path, keep: int) -> None:
    path = copy / "train-00001-of-00003.arrayrecord"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(records.DatasetError, match=r"train-00001-of-00003\.arrayrecord (is half written|holds)"):
        records.RecordSource(copy)


def test_only_local_folders(tmp_path: Path) -> None:
    for use in (records.RecordSource, records.read_manifest, lambda d: records.already_prepared(d, "x", {})):
        with pytest.raises(records.DatasetError, match="gs://bucket/data is not a local path"):
            use("gs://bucket/data")


def test_changed_bytes_fail_the_checksum(copy: Path) -> None:
    path = copy / "train-00002-of-00003.arrayrecord"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(records.DatasetError, match=r"train-00002-of-00003\.arrayrecord is damaged"):
        records.verify(copy)


@pytest.mark.parametrize("changes", [{"format": 99}, {"splits": 3}, {"surprise": 1}])
def test_unreadable_manifests(copy: Path, changes: dict) -> None:
    edit_manifest(copy, **changes)
    with pytest.raises(records.DatasetError, match=r"manifest\.json"):
        records.read_manifest(copy)


@pytest.mark.parametrize("file", ["../data/x", "/etc/passwd", "..", "", "a\\b", "a\0", 5])
def test_a_shard_is_a_plain_file_of_the_folder(copy: Path, file: object) -> None:
    splits = json.loads((copy / records.MANIFEST).read_text())["splits"]
    splits["train"]["shards"][0]["file"] = file
    edit_manifest(copy, splits=splits)
    with pytest.raises(records.DatasetError, match=r"is not a plain file name|file must be str"):
        records.read_manifest(copy)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"fps": 0}, "fps must be positive"),
        ({"fps": "8"}, "fps must be float, got '8'"),
        ({"seed": True}, "seed must be int, got True"),
        ({"shapes": {"clip": [-1, 2]}}, r"clip cannot have the shape \(-1, 2\)"),
        ({"shapes": {"clip": [1.5]}}, "the shape of clip must be int"),
        ({"splits": {"train": {"count": 3, "shards": []}}}, "a split of 3 records has shards with 0"),
        ({"splits": {"train": {"count": -1, "shards": []}}}, "count must be a number of records, got -1"),
        ({"versions": {"numpy": 2}}, "the version of numpy must be str"),
        ({"surplus": 1}, "a manifest has no field 'surplus'"),
    ],
)
def test_what_is_wrong_with_a_manifest_is_said(copy: Path, changes: dict, problem: str) -> None:
    edit_manifest(copy, **changes)
    with pytest.raises(records.DatasetError, match=problem):
        records.read_manifest(copy)


def test_manifest_that_is_no_json(copy: Path) -> None:
    (copy / records.MANIFEST).write_text("{")
    with pytest.raises(records.DatasetError, match="is not a manifest"):
        records.read_manifest(copy)


def test_a_record_that_is_no_msgpack_is_named(copy: Path) -> None:
    writer = array_record_module.ArrayRecordWriter(str(copy / "train-00000-of-00003.arrayrecord"), "group_size:1")
    for _ in range(6):
        writer.write(b"\xc1")
    writer.close()
    with pytest.raises(records.DatasetError, match=r"Record 2 of .* cannot be read"):
        records.RecordSource(copy)[2]


def test_prepared_again(clips_dir: Path, tmp_path: Path) -> None:
    assert records.already_prepared(tmp_path / "new", "test", {}) is None
    (tmp_path / "empty").mkdir()
    assert records.already_prepared(tmp_path / "empty", "test", {}) is None
    manifest = records.already_prepared(clips_dir, "test", {"rows": 17})
    assert manifest is not None and manifest.name == "test"
    with pytest.raises(records.DatasetError, match=r"other arguments \(rows 17 -> 18\)"):
        records.already_prepared(clips_dir, "test", {"rows": 18})
    with pytest.raises(records.DatasetError, match="holds a 'test' data set, not 'atari'"):
        records.already_prepared(clips_dir, "atari", {"rows": 17})
    (tmp_path / "file").touch()
    with pytest.raises(records.DatasetError, match="is a file"):
        records.already_prepared(tmp_path / "file", "test", {})


def test_a_failed_recipe_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), records.new_dataset(tmp_path / "data") as temporary:
        (temporary / "shard").touch()
        raise RuntimeError
    assert not any(tmp_path.iterdir())


def test_a_folder_that_appears_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    with (
        pytest.raises(records.DatasetError, match="this data set is in"),
        records.new_dataset(tmp_path / "data") as temp,
    ):
        (temp / "mine").touch()
        (tmp_path / "data").mkdir()
        (tmp_path / "data/theirs").touch()
    assert [p.name for p in (tmp_path / "data").iterdir()] == ["theirs"]
    assert (temp / "mine").exists()
