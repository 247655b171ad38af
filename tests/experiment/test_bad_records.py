"""Jobs that go through a whole data set once: records that cannot be read are left out, up to a limit."""

import types
from pathlib import Path

import numpy as np
import pytest

from walt.data import media, records
from walt.data.config import LoaderConfig
from walt.data.faults import TooManyBadRecordsError
from walt.experiment import latents, stage2

SHAPE = (2, 4, 4, 3)
CLIP = media.encode_clip(np.zeros(SHAPE, np.uint8))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Eight clips; the third has no pixels and the fourth a caption that is a number."""
    bad = {2: {"clip": b"broken"}, 3: {"captions": [5]}}
    with records.new_dataset(tmp_path / "data") as folder:
        with records.RecordWriter(folder, "train") as writer:
            for index in range(8):
                row = {"id": f"clip-{index}", "clip": CLIP, "captions": [f"caption {index}"], "label": "x"}
                writer.write(row | bad.get(index, {}))
            splits = {"train": writer.close()}
        records.write_manifest(folder, records.Manifest("test", splits, {"clip": SHAPE}, 8.0, 0, {}, {}))
    return tmp_path / "data"


def test_clips_that_cannot_be_encoded_are_left_out(data: Path) -> None:
    found = list(latents._clips(records.RecordSource(data), limit=0, max_bad_records=2))
    assert [kept["id"] for kept, _ in found] == [f"clip-{index}" for index in (0, 1, 4, 5, 6, 7)]
    with pytest.raises(TooManyBadRecordsError, match=r"and --max_bad_records allows 1;(.*\n.*){2}5") as stopped:
        list(latents._clips(records.RecordSource(data), limit=0, max_bad_records=1))
    assert "example 2: These 6 bytes" in str(stopped.value)


def test_a_tokenizer_is_made_of_the_captions_that_can_be_read(data: Path) -> None:
    experiment = types.SimpleNamespace(data=LoaderConfig(str(data), max_bad_records=1))
    captions = [captions for captions, _ in stage2._descriptions(experiment)]
    assert captions == [[f"caption {index}"] for index in (0, 1, 2, 4, 5, 6, 7)]
    with pytest.raises(TooManyBadRecordsError):
        list(stage2._descriptions(types.SimpleNamespace(data=LoaderConfig(str(data), max_bad_records=0))))
