import itertools
import logging
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from walt.config import ConfigError
from walt.data import records
from walt.data.loader import Batch, ClipLoader, LatentLoader, LoaderConfig


def tokenize(texts: list[str], length: int) -> tuple[np.ndarray, np.ndarray]:
    """The bytes of a text."""
    tokens = np.zeros((len(texts), length), np.int32)
    for row, text in enumerate(texts):
        tokens[row, : len(text)] = list(text.encode())
    return tokens, tokens > 0


def take(loader: ClipLoader | LatentLoader, count: int, start: int = 0) -> list[Batch]:
    return list(itertools.islice(loader.batches(start), count))


def assert_same(left: Batch, right: Batch) -> None:
    assert left.keys() == right.keys()
    for name in left:
        np.testing.assert_array_equal(left[name], right[name])
        assert left[name].dtype == right[name].dtype


def numbers(batch: Batch) -> list[int]:
    """Which clips of the fixture a batch holds."""
    return batch["video"][:, 0, 0, 0, 0].tolist()


def joined(parts: list[Batch]) -> Batch:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


# ---- clips


def test_a_clip_batch(clips_dir: Path) -> None:
    (batch,) = take(ClipLoader(LoaderConfig(str(clips_dir), batch_size=4)), 1)
    assert batch["video"].shape == (4, 5, 8, 12, 3) and batch["video"].dtype == np.uint8
    np.testing.assert_array_equal(batch["row"], np.arange(4, dtype=np.int32))


def test_an_epoch_visits_every_clip_once(clips_dir: Path) -> None:
    batches = take(ClipLoader(LoaderConfig(str(clips_dir), batch_size=4)), 17)
    seen = np.reshape([numbers(batch) for batch in batches], (4, 17))
    for epoch in seen:
        assert sorted(epoch) == list(range(17))
    assert len({tuple(epoch) for epoch in seen}) == 4


def test_the_seed_decides(clips_dir: Path) -> None:
    first, again, other = (
        [numbers(b) for b in take(ClipLoader(LoaderConfig(str(clips_dir), batch_size=4, seed=s)), 5)] for s in (3, 3, 4)
    )
    assert first == again != other


@settings(max_examples=20)
@given(step=st.integers(0, 2000), processes=st.sampled_from([2, 3, 4, 6, 12]), images=st.sampled_from([0.0, 0.25, 1.0]))
def test_the_number_of_processes_changes_no_batch(
    clips_dir: Path, latents_dir: Path, step: int, processes: int, images: float
) -> None:
    def batch(count: int, index: int) -> list[Batch]:
        where = {"process_index": index, "process_count": count}
        latents = LoaderConfig(str(latents_dir), batch_size=12, image_fraction=images)
        return [
            ClipLoader(LoaderConfig(str(clips_dir), batch_size=12), **where).batch(step),
            LatentLoader(latents, tokenize, **where).batch(step),
        ]

    parts = [batch(processes, index) for index in range(processes)]
    for whole, split in zip(batch(1, 0), zip(*parts, strict=True), strict=True):
        assert_same(whole, joined(list(split)))


def test_a_process_may_have_any_rows(clips_dir: Path, latents_dir: Path) -> None:
    """Those that its devices hold, which on a pod are seldom neighbours."""
    clips, rows = LoaderConfig(str(clips_dir), batch_size=12), (0, 1, 8, 9)
    latents = LoaderConfig(str(latents_dir), batch_size=12, image_fraction=0.25)
    where = {"process_index": 1, "process_count": 3, "rows": rows}
    for whole, part in (
        (ClipLoader(clips), ClipLoader(clips, **where)),
        (LatentLoader(latents, tokenize), LatentLoader(latents, tokenize, **where)),
    ):
        assert_same({name: entry[list(rows)] for name, entry in whole.batch(5).items()}, part.batch(5))
        np.testing.assert_array_equal(part.example_ids(5), whole.example_ids(5)[list(rows)])


def test_resuming_equals_skipping(clips_dir: Path, latents_dir: Path) -> None:
    for loader in (
        ClipLoader(LoaderConfig(str(clips_dir), batch_size=3)),
        LatentLoader(LoaderConfig(str(latents_dir), batch_size=3, image_fraction=0.4), tokenize),
    ):
        for whole, resumed in zip(take(loader, 9)[6:], take(loader, 3, start=6), strict=True):
            assert_same(whole, resumed)


def test_the_number_of_workers_changes_no_batch(latents_dir: Path) -> None:
    """Also: workers start where no app has parsed absl flags, as in this process."""
    config = {"path": str(latents_dir), "batch_size": 4, "image_fraction": 0.5, "seed": 1}
    threads = take(LatentLoader(LoaderConfig(**config), tokenize), 5, start=3)
    processes = take(LatentLoader(LoaderConfig(**config, workers=2), tokenize), 5, start=3)
    for left, right in zip(threads, processes, strict=True):
        assert_same(left, right)


def test_the_cache_changes_no_batch_and_stays_in_bounds(clips_dir: Path) -> None:
    cached, uncached = (ClipLoader(LoaderConfig(str(clips_dir), batch_size=8, cache_megabytes=m)) for m in (1, 0))
    cached._cache._limit = 5 * 5 * 8 * 12 * 3
    for step in range(5):
        assert_same(cached.batch(step), uncached.batch(step))
    assert len(cached._cache._values) == 5 and not uncached._cache._values


# ---- latents


def test_a_latents_batch(latents_dir: Path) -> None:
    loader = LatentLoader(LoaderConfig(str(latents_dir), batch_size=6, image_fraction=0.5, caption_length=9), tokenize)
    for batch in take(loader, 4):
        assert batch["latents"].shape == (6, 3, 2, 2, 4) and batch["latents"].dtype == np.float32
        assert batch["caption_tokens"].shape == (6, 3, 9) and batch["caption_tokens"].dtype == np.int32
        assert batch["is_image"].tolist() == [False, True, False, True, False, True]
        for row in range(6):
            number = batch["latents"][row, :, 0, 0, 0]
            texts = ["".join(map(chr, t[m])) for t, m in zip(batch["caption_tokens"][row], batch["caption_mask"][row])]
            if batch["is_image"][row]:
                assert batch["caption_index"][row].tolist() == [0, 1, 2]
                assert len(set(number.tolist())) == 3  # three different stills
                assert [text.split()[0] for text in texts] == [str(int(n)) for n in number]
            else:
                assert batch["caption_index"][row].tolist() == [0, 0, 0]
                assert (number == number[0]).all()
                assert texts[0].split()[0] == str(int(number[0])) and texts[1:] == ["", ""]


def test_classes_in_place_of_captions(latents_dir: Path) -> None:
    config = LoaderConfig(str(latents_dir), batch_size=6, image_fraction=0.5)
    for batch in take(LatentLoader(config, None, ("even", "odd")), 3):
        assert not [name for name in batch if name.startswith("caption")]
        assert batch["fps"].tolist() == [8.0] * 6
        number = batch["latents"][..., 0, 0, 0].astype(int)
        np.testing.assert_array_equal(batch["class_label"], number % 2)
    # A record of another class is replaced in place, as every bad one.
    (batch,) = take(LatentLoader(config, None, ("even",)), 1)
    assert set(batch["latents"][..., 0, 0, 0].astype(int).ravel() % 2) == {0}


def test_an_epoch_visits_every_still_once(latents_dir: Path) -> None:
    loader = LatentLoader(LoaderConfig(str(latents_dir), batch_size=2, image_fraction=0.5), tokenize)
    batches = take(loader, 20)
    stills = np.concatenate([b["latents"][1, :, 0, 0, 0] for b in batches])
    expected = np.sort([np.float32(i + (k + 1) / 10) for i in range(10) for k in range(2)])
    for epoch in stills.reshape(3, 20):
        np.testing.assert_allclose(np.sort(epoch), expected, rtol=1e-6)


def test_every_caption_of_an_example_is_used(latents_dir: Path) -> None:
    loader = LatentLoader(LoaderConfig(str(latents_dir), batch_size=10), tokenize)
    used = {tuple(tokens[tokens > 0]) for b in take(loader, 30) for tokens in b["caption_tokens"][:, 0]}
    assert len(used) == 30  # 10 examples with 3 captions each


def test_the_cache_counts_the_bytes_it_holds(latents_dir: Path) -> None:
    """A view of one still would hold the bytes of the whole record."""
    loader = LatentLoader(LoaderConfig(str(latents_dir), batch_size=4, image_fraction=0.5), tokenize)
    for step in range(8):
        loader.batch(step)
    held = {}
    for example in loader._cache._values.values():
        owner = example.latents
        while isinstance(owner, np.ndarray) and owner.base is not None:
            owner = owner.base
        held[id(owner)] = len(memoryview(owner).cast("B"))
    assert {is_image for _, is_image in loader._cache._values} == {False, True}
    assert sum(held.values()) == loader._cache._used


# ---- bad records and bad requests


def break_clips(source: Path, target: Path, bad: set[int]) -> Path:
    shutil.copytree(source, target)
    records_of = records.RecordSource(source)
    with records.RecordWriter(target, "train", 3) as writer:
        for index in range(17):
            row = records_of[index]
            writer.write(row | {"clip": b"broken"} if int(row["id"].removeprefix("clip-")) in bad else row)
    return target


def test_bad_records_are_replaced_in_place(clips_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    broken = break_clips(clips_dir, tmp_path / "broken", {4, 11})
    config = LoaderConfig(str(broken), batch_size=17, cache_megabytes=0)
    reference = break_clips(clips_dir, tmp_path / "whole", set())
    with caplog.at_level(logging.WARNING, logger="absl"):
        batches = [ClipLoader(config).batch(step) for step in range(3)]
    whole = [ClipLoader(LoaderConfig(str(reference), batch_size=17)).batch(step) for step in range(3)]
    for left, right in zip(batches, whole, strict=True):
        kept = np.array([n not in (4, 11) for n in numbers(right)])
        assert_same({"v": left["video"][kept]}, {"v": right["video"][kept]})  # nobody else moves
        assert not {4, 11} & set(numbers(left))
    halves = [ClipLoader(config, process_index=0, process_count=1).batch(2)]
    assert_same(halves[0], batches[2])  # a re-draw is a function of the step, not of what came before
    assert "not an encoded clip" in caplog.text


def test_a_bad_record_is_logged_once(clips_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    broken = break_clips(clips_dir, tmp_path / "broken", {4})
    loader = ClipLoader(LoaderConfig(str(broken), batch_size=17))
    with caplog.at_level(logging.WARNING, logger="absl"):
        for step in range(5):
            loader.batch(step)
    assert caplog.text.count("a record cannot be used") == 1


def test_a_broken_data_set_is_an_error(clips_dir: Path, tmp_path: Path) -> None:
    broken = break_clips(clips_dir, tmp_path / "broken", set(range(17)))
    with pytest.raises(records.DatasetError, match=r"16 examples in a row of .*broken .* cannot be read"):
        next(ClipLoader(LoaderConfig(str(broken), batch_size=2)).batches())


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"prefetch": 0}, "prefetch must be at least 1"),
        ({"workers": -1}, "workers must not be negative"),
        ({"image_fraction": 1.5}, "image_fraction must lie between 0 and 1"),
        ({"image_fraction": 0.02}, "makes 0 of the 16 rows .*; it must be 0 or 1, or between 0.0625 and 0.9375"),
        ({"image_fraction": 0.98}, "makes 16 of the 16 rows .*; it must be 0 or 1, or between 0.0625 and 0.9375"),
        (
            {"image_fraction": 0.25, "batch_size": 1},
            "makes 0 of the 1 rows .*; it must be 0 or 1, or batch_size larger",
        ),
    ],
)
def test_bad_configs(changes: dict, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        LoaderConfig("x", **changes)


@pytest.mark.parametrize("batch_size", [2, 3, 7, 96])
def test_the_image_fractions_an_error_names_are_right(batch_size: int) -> None:
    with pytest.raises(ConfigError) as caught:
        LoaderConfig("x", batch_size=batch_size, image_fraction=0.001)
    named = re.search(r"must be 0 or 1, or (?:between )?([\d.]+?)(?: and ([\d.]+))?\.$", str(caught.value))
    assert named is not None
    low, high = float(named[1]), float(named[2] or named[1])  # of two rows one share alone is right
    assert LoaderConfig("x", batch_size=batch_size, image_fraction=low).image_rows == 1
    assert LoaderConfig("x", batch_size=batch_size, image_fraction=high).image_rows == batch_size - 1


def test_bad_requests(clips_dir: Path, latents_dir: Path, tmp_path: Path) -> None:
    clips, latents = LoaderConfig(str(clips_dir), batch_size=4), LoaderConfig(str(latents_dir), batch_size=4)
    with pytest.raises(ConfigError, match="batch_size must be a multiple of the 3 processes, got 4"):
        ClipLoader(clips, process_count=3)
    with pytest.raises(ConfigError, match="multiple of the 8 processes"):
        ClipLoader(clips, process_count=8)
    with pytest.raises(ConfigError, match=r"process_index must lie in \[0, 2\), got 2"):
        ClipLoader(clips, process_index=2, process_count=2)
    with pytest.raises(ConfigError, match=r"data\.path must name"):
        ClipLoader(LoaderConfig())
    with pytest.raises(ConfigError, match="image_fraction must be 0 for clips"):
        ClipLoader(LoaderConfig(str(clips_dir), image_fraction=0.5))
    with pytest.raises(records.DatasetError, match="holds no latents"):
        LatentLoader(clips, tokenize)
    with pytest.raises(records.DatasetError, match="holds latents, not clips"):
        ClipLoader(latents)
    with pytest.raises(records.DatasetError, match="There is no data set"):
        ClipLoader(LoaderConfig(str(tmp_path / "nothing")))


def test_the_room_imports_no_jax() -> None:
    code = "import sys, walt.data.loader, walt.data.contact_sheet, walt.data.recipes.video_folder, walt.prepare"
    subprocess.run([sys.executable, "-c", f"{code}; assert 'jax' not in sys.modules"], check=True)
