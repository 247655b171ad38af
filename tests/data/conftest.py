"""Small record folders made of random pixels."""

from pathlib import Path

import numpy as np
import pytest

from walt.data import media, records

SHAPE = (5, 8, 12, 3)
LATENTS, STILLS = (3, 2, 2, 4), (2, 2, 2, 4)


def make_dataset(directory: Path, rows: list[dict], shapes: dict[str, tuple[int, ...]], num_shards: int = 3) -> Path:
    """A finished record folder with the rows as its training split."""
    with records.new_dataset(directory) as temporary:
        with records.RecordWriter(temporary, "train", num_shards) as writer:
            for row in rows:
                writer.write(row)
            splits = {"train": writer.close()}
        manifest = records.Manifest(
            "test", splits, shapes, 8.0, 0, {"rows": len(rows)}, records.package_versions("numpy")
        )
        records.write_manifest(temporary, manifest)
    return directory


def clip_row(index: int) -> dict:
    """A clip record whose first pixel holds its number."""
    video = np.random.default_rng(index).integers(0, 256, SHAPE, np.uint8)
    video[0, 0, 0] = index
    return {
        "id": f"clip-{index}",
        "clip": media.encode_clip(video),
        "captions": [f"clip number {index}", f"number {index}"],
        "label": str(index % 4),
        "fps": 8.0,
    }


def latents_row(index: int) -> dict:
    """A latents record: video filled with its number, still k with its number + (k + 1) / 10."""
    stills = np.stack([np.full(STILLS[1:], index + (k + 1) / 10, np.float32) for k in range(STILLS[0])])
    return {
        "id": f"latents-{index}",
        "captions": [f"{index} a", f"{index} b", f"{index} c"],
        "label": "even" if index % 2 == 0 else "odd",
        "video": np.full(LATENTS, index, np.float32).tobytes(),
        "images": stills.tobytes(),
    }


@pytest.fixture(scope="session")
def clips_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """17 clips in 3 shards."""
    return make_dataset(tmp_path_factory.mktemp("data") / "clips", [clip_row(i) for i in range(17)], {"clip": SHAPE})


@pytest.fixture(scope="session")
def latents_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """10 latents with 2 stills each."""
    rows = [latents_row(i) for i in range(10)]
    return make_dataset(tmp_path_factory.mktemp("data") / "latents", rows, {"video": LATENTS, "images": STILLS})
