"""What loaders do with records that cannot be used, storage that fails and workers that die."""

import itertools
import json
import multiprocessing
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jobs
import msgpack
import numpy as np
import pytest

from walt.config import ConfigError
from walt.data import media, records
from walt.data.config import LoaderConfig
from walt.data.faults import Fault, FaultLog, TooManyBadRecordsError
from walt.data.loader import ClipLoader, LatentLoader


def rewritten(source: Path, target: Path, change: Callable[[int, dict], bytes | dict]) -> Path:
    """A copy of a data set with the records that `change` makes of number and record."""
    shutil.copytree(source, target)
    before = records.RecordSource(source)
    with records.RecordWriter(target, "train", 3) as writer:
        for index in sorted(range(len(before)), key=lambda index: int(before[index]["id"].split("-")[1])):
            row = change(int(before[index]["id"].split("-")[1]), before[index])
            if isinstance(row, bytes):
                position = sum(writer._counts) % 3
                writer._writers[position].write(row)
                writer._counts[position] += 1
            else:
                writer.write(row)
    return target


def broken(source: Path, target: Path, bad: set[int]) -> Path:
    return rewritten(source, target, lambda number, row: row | {"clip": b"broken"} if number in bad else row)


def take(loader: ClipLoader | LatentLoader, count: int, start: int = 0) -> list[dict[str, np.ndarray]]:
    batches = loader.batches(start)
    try:
        return list(itertools.islice(batches, count))
    finally:
        batches.close()


def listed(workdir: Path, process: int = 0) -> list[dict]:
    path = workdir / f"skipped_records.{process}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]


# ---- counting, listing, stopping


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_records_are_counted_and_listed_when_their_batch_is_used(
    clips_dir: Path, tmp_path: Path, workers: int
) -> None:
    data = broken(clips_dir, tmp_path / "broken", {4, 11})
    config = LoaderConfig(str(data), batch_size=4, workers=workers)
    loader = ClipLoader(config, workdir=tmp_path / "run")
    batches, counts = loader.batches(), []
    for _ in range(12):
        next(batches)
        counts.append(loader.counts["data/bad_records"])
    batches.close()
    # What was read ahead does not count: each is listed at the first step that wanted it.
    wanted = [set(loader.example_ids(step)[:, 0].tolist()) for step in range(12)]
    ids = [int(records.RecordSource(data)[index]["id"].split("-")[1]) for index in range(17)]
    firsts = sorted(next(s for s, w in enumerate(wanted) if ids.index(number) in w) for number in (4, 11))
    redrawn = [line for line in listed(tmp_path / "run")]
    assert len(redrawn) == 2 and {ids[line["example"]] for line in redrawn} == {4, 11}
    assert all(line["step"] <= first for line, first in zip(redrawn, firsts, strict=True))
    assert counts == [sum(line["step"] <= step for line in redrawn) for step in range(12)]
    assert all("not an encoded clip" in line["reason"] for line in redrawn)
    assert loader.counts["data/replaced"] >= 4  # three epochs, less what re-draws met


@pytest.mark.parametrize("workers", [0, 1])
def test_too_many_bad_records_stop_the_run_with_the_list(clips_dir: Path, tmp_path: Path, workers: int) -> None:
    data = broken(clips_dir, tmp_path / "broken", {1, 4, 11})
    config = LoaderConfig(str(data), batch_size=2, workers=workers, max_bad_records=2)
    with pytest.raises(TooManyBadRecordsError) as stopped:
        take(ClipLoader(config, workdir=tmp_path / "run"), 100)
    message = str(stopped.value)
    assert message.startswith(f"3 records of {data} (train) cannot be used, and data.max_bad_records allows 2;")
    numbers = [line["example"] for line in listed(tmp_path / "run")]
    assert len(numbers) == 3 and all(f"\n  example {number}: These 6 bytes are not" in message for number in numbers)
    allowed = LoaderConfig(str(data), batch_size=2, max_bad_records=3)
    assert len(take(ClipLoader(allowed), 30)) == 30


def test_a_run_that_goes_on_has_the_list_of_one_that_never_stopped(clips_dir: Path, tmp_path: Path) -> None:
    data = broken(clips_dir, tmp_path / "broken", {1, 4, 7, 11})
    config = LoaderConfig(str(data), batch_size=2)
    whole = ClipLoader(config, workdir=tmp_path / "whole")
    take(whole, 12)
    take(ClipLoader(config, workdir=tmp_path / "parts"), 9)  # the steps from 5 on are trained again
    with (tmp_path / "parts" / "skipped_records.0.jsonl").open("a") as file:
        file.write('{"step": 3, "row"')  # what an interruption leaves
    resumed = ClipLoader(config, workdir=tmp_path / "parts")
    take(resumed, 7, start=5)
    assert listed(tmp_path / "parts") == listed(tmp_path / "whole")
    assert len(listed(tmp_path / "whole")) == 4
    assert resumed.counts["data/bad_records"] == whole.counts["data/bad_records"] == 4
    take(ClipLoader(config, workdir=tmp_path / "parts"), 1)  # from the beginning: the old list is gone
    assert len(listed(tmp_path / "parts")) < 4


def test_another_number_of_processes_takes_up_the_lists_of_all(clips_dir: Path, tmp_path: Path) -> None:
    data = broken(clips_dir, tmp_path / "broken", {1, 4, 7, 11})
    for process in range(4):
        config = LoaderConfig(str(data), batch_size=4)
        take(ClipLoader(config, workdir=tmp_path, process_index=process, process_count=4), 8)
    found = {line["example"] for process in range(4) if (tmp_path / f"skipped_records.{process}.jsonl").exists()
             for line in listed(tmp_path, process)}  # fmt: skip
    assert len(found) == 4
    logs = [FaultLog("data", 100, tmp_path, process, 2) for process in range(2)]
    for log in logs:
        log.resume(8)
        assert {number for number, _ in log.known} == found
    for log in logs:  # between them they tidy the lists of all four
        log.resume(0)
    assert not any(listed(tmp_path, process) for process in range(4) if (tmp_path / f"skipped_records.{process}.jsonl").exists())  # fmt: skip


def bad(step: int, *examples: int) -> list[Fault]:
    return [Fault(step, 0, 0, example, False, "damaged") for example in examples]


def test_the_limit_is_one_for_all_processes_and_starts(tmp_path: Path) -> None:
    for start, count in enumerate((2, 2, 3, 1)):  # as if each had trained one more step
        logs = [FaultLog("data", 8, tmp_path, process, count) for process in range(count)]
        for log in logs:
            log.resume(start)
        for process, log in enumerate(logs):
            log.add(bad(start, 2 * start, 2 * start + process % 2))
    assert {number for number, _ in logs[0].known} == {0, 1, 2, 3, 4, 5, 6}
    logs = [FaultLog("data", 8, tmp_path, process, 2) for process in range(2)]
    for log in logs:
        log.resume(4)
    logs[0].add(bad(4, 7))
    logs[0].add(bad(5, 7))
    with pytest.raises(TooManyBadRecordsError, match=r"^9 records of data .* allows 8;(.*\n.*){9}example 8: damaged"):
        logs[1].add(bad(5, 8))


def test_what_other_processes_list_changes_no_list(tmp_path: Path) -> None:
    def start(step: int) -> list[FaultLog]:
        logs = [FaultLog("data", 8, tmp_path, process, 2) for process in range(2)]
        for log in logs:
            log.resume(step)
        return logs

    start(0)[0].add(bad(0, 5))
    stopped = start(1)[1]
    assert not stopped.bad and len(stopped.known) == 1
    stopped.add(bad(1, 5))  # listed as by a run that was never stopped
    assert [line["example"] for line in listed(tmp_path, 1)] == [5] and len(stopped.bad) == 1


def test_lists_in_a_bucket_are_kept_and_taken_up(bucket: Any) -> None:
    log = FaultLog("data", 3, "gs://runs/film")
    log.resume(0)
    log.add(bad(0, 4, 5))
    log.add(bad(2, 6))
    resumed = FaultLog("data", 3, "gs://runs/film")
    resumed.resume(2)
    assert [line["example"] for line in listed(bucket.folder / "runs" / "film")] == [4, 5]
    with pytest.raises(TooManyBadRecordsError, match=r"4 records"):
        resumed.add(bad(2, 6, 7))


def test_a_long_list_is_shortened_and_says_where_the_rest_is(tmp_path: Path) -> None:
    log = FaultLog("data", 30, tmp_path)
    with pytest.raises(TooManyBadRecordsError, match=r"… and 11 more, all of them in .*skipped_records\.0\.jsonl"):
        log.add(Fault(0, row, 0, row, False, "reason") for row in range(31))
    assert len(listed(tmp_path)) == 31


@pytest.mark.parametrize("field", ["max_bad_records", "retry_seconds", "max_worker_restarts", "max_example_megabytes"])
def test_limits_of_a_loader_are_checked(field: str) -> None:
    with pytest.raises(ConfigError, match=f"{field} must"):
        LoaderConfig("x", **{field: -1})


# ---- what can be wrong with a record


def latin1(row: dict) -> bytes:
    """The record with a caption that is not UTF-8."""
    packed = msgpack.packb(row | {"captions": ["cafe"]})
    return packed.replace(b"cafe", b"caf\xe9")


NAN = np.full((3, 2, 2, 4), np.nan, np.float32).tobytes()
DAMAGES: dict[str, Callable[[dict], dict | bytes]] = {
    "can't decode byte 0xe9": latin1,
    "a caption must be str, got 5": lambda row: row | {"captions": [5]},
    "lacks the field 'captions'": lambda row: row | {"captions": "one"},
    "have no caption": lambda row: row | {"captions": []},
    "label must be str": lambda row: row | {"label": ["even"]},
    "infinite values, or some that are no numbers": lambda row: row | {"video": NAN},
    "have 5 bytes in 'video'": lambda row: row | {"video": b"short"},
    "lacks the field 'video'": lambda row: {name: value for name, value in row.items() if name != "video"},
    "it is not a msgpack map": lambda row: msgpack.packb([1, 2]),
    "is not a msgpack map with names": lambda row: msgpack.packb({b"video": b""}),
    "exceeds max_array_len": lambda row: b"\x81\xa1a\xdd\x7f\xff\xff\xff",
}


@pytest.mark.parametrize("reason", DAMAGES)
def test_damaged_latents_are_replaced_and_say_why(latents_dir: Path, tmp_path: Path, reason: str) -> None:
    damage = DAMAGES[reason]
    data = rewritten(latents_dir, tmp_path / "data", lambda number, row: damage(row) if number == 3 else row)

    def tokenize(texts: list[str], length: int) -> tuple[np.ndarray, np.ndarray]:
        return np.zeros((len(texts), length), np.int32), np.ones((len(texts), length), bool)

    loader = LatentLoader(LoaderConfig(str(data), batch_size=10), tokenize)
    (batch,) = take(loader, 1)
    assert 3 not in batch["latents"][:, 0, 0, 0, 0].tolist() and np.isfinite(batch["latents"]).all()
    (fault,) = loader.faults.bad.values()
    assert reason in fault.reason


def test_a_flipped_bit_costs_one_record(clips_dir: Path, tmp_path: Path) -> None:
    data = Path(shutil.copytree(clips_dir, tmp_path / "data"))
    shard = sorted(data.glob("*.arrayrecord"))[1]
    content = bytearray(shard.read_bytes())
    content[content.index(b"IDAT") + 100] ^= 4  # in the middle of the shard's first record
    shard.write_bytes(content)
    loader = ClipLoader(LoaderConfig(str(data), batch_size=17, retry_seconds=60))
    began = time.perf_counter()
    (batch,) = take(loader, 1)
    assert time.perf_counter() - began < 5  # damage is not waited for
    (fault,) = loader.faults.bad.values()
    assert "hash mismatch" in fault.reason
    whole = ClipLoader(LoaderConfig(str(clips_dir), batch_size=17)).batch(0)
    assert (batch["video"] != whole["video"]).any(axis=(1, 2, 3, 4)).sum() == 1


def test_a_clip_that_would_unpack_into_something_larger_is_not_unpacked(
    clips_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bomb = media.encode_clip(np.zeros((5, 800, 1200, 3), np.uint8))
    data = rewritten(clips_dir, tmp_path / "data", lambda number, row: row | {"clip": bomb} if number == 3 else row)
    unpacked = []
    load = media.PngImagePlugin.PngImageFile.load
    monkeypatch.setattr(
        media.PngImagePlugin.PngImageFile, "load", lambda image: unpacked.append(image.size) or load(image)
    )
    loader = ClipLoader(LoaderConfig(str(data), batch_size=17))
    take(loader, 1)
    assert set(unpacked) == {(12, 40)}
    (fault,) = loader.faults.bad.values()
    assert "4000x1200 pixels in all, which is not the shape" in fault.reason


def test_a_record_with_more_bytes_than_allowed_is_not_looked_into(clips_dir: Path, tmp_path: Path) -> None:
    data = rewritten(
        clips_dir, tmp_path / "data", lambda number, row: row | {"more": bytes(2**20)} if number == 3 else row
    )
    loader = ClipLoader(LoaderConfig(str(data), batch_size=17, max_example_megabytes=1))
    take(loader, 1)
    (fault,) = loader.faults.bad.values()
    assert "more than 1,048,576" in fault.reason


def test_a_manifest_with_absurd_shapes_is_refused_before_anything_is_allocated(clips_dir: Path, tmp_path: Path) -> None:
    data = Path(shutil.copytree(clips_dir, tmp_path / "data"))
    manifest = json.loads((data / "manifest.json").read_text())
    manifest["shapes"]["clip"] = [2**30, 2**30, 2**30, 3]
    (data / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(records.DatasetError, match=r"larger than the 1024 MB of data\.max_example_megabytes"):
        ClipLoader(LoaderConfig(str(data)))


# ---- storage


def test_a_shard_that_is_away_for_a_while_changes_nothing(clips_dir: Path, tmp_path: Path) -> None:
    data = Path(shutil.copytree(clips_dir, tmp_path / "corruption"))  # a word that errors about damage have too
    loader = ClipLoader(LoaderConfig(str(data), batch_size=17))
    shard = sorted(data.glob("*.arrayrecord"))[0]
    shard.rename(tmp_path / "away")
    threading.Timer(1.0, lambda: (tmp_path / "away").rename(shard)).start()
    (batch,) = take(loader, 1)
    whole = ClipLoader(LoaderConfig(str(clips_dir), batch_size=17)).batch(0)
    np.testing.assert_array_equal(batch["video"], whole["video"])
    assert loader.counts["data/retries"] >= 1 and not loader.faults.bad


def test_a_shard_that_is_gone_is_waited_for_once_and_its_records_are_listed(clips_dir: Path, tmp_path: Path) -> None:
    data = Path(shutil.copytree(clips_dir, tmp_path / "data"))
    loader = ClipLoader(LoaderConfig(str(data), batch_size=17, retry_seconds=0.5, max_bad_records=5))
    sorted(data.glob("*.arrayrecord"))[0].unlink()
    began = time.perf_counter()
    with pytest.raises(TooManyBadRecordsError, match=r"6 records of .*\n  example 0: .*No such file(.*\n.*){5}"):
        take(loader, 1)
    assert time.perf_counter() - began < 3
    with pytest.raises(records.DatasetError, match=r"train-00000-of-00003.arrayrecord is missing"):
        ClipLoader(LoaderConfig(str(data)))  # before a run it is an error at once


def test_a_file_that_is_cut_short_while_it_is_read_is_no_empty_record(clips_dir: Path, tmp_path: Path) -> None:
    data = Path(shutil.copytree(clips_dir, tmp_path / "data"))
    source = records.RecordSource(data, retry_seconds=0.0)
    source[0]
    os.truncate(sorted(data.glob("*.arrayrecord"))[0], 100)
    with pytest.raises(records.DatasetError, match=r"Record 1 of .* cannot be read"):
        source[1]


# ---- workers


def workers_of_this_process() -> list[multiprocessing.Process]:
    return [child for child in multiprocessing.active_children() if "prefetch" in child.name]


def test_killed_workers_are_replaced_without_loss_until_they_are_too_many(latents_dir: Path) -> None:
    config = {"path": str(latents_dir), "batch_size": 4, "image_fraction": 0.5, "seed": 1}
    loader = LatentLoader(LoaderConfig(**config, workers=1, max_worker_restarts=1), None)
    batches = loader.batches(3)
    found = [next(batches) for _ in range(2)]
    os.kill(workers_of_this_process()[0].pid, signal.SIGKILL)
    found += [next(batches) for _ in range(10)]
    for left, right in zip(found, take(LatentLoader(LoaderConfig(**config), None), 12, start=3), strict=True):
        for name in left:
            np.testing.assert_array_equal(left[name], right[name])
    assert loader.counts["data/worker_restarts"] == 1
    os.kill(workers_of_this_process()[0].pid, signal.SIGKILL)
    with pytest.raises(
        records.DatasetError, match=r"killed by signal 9 \(out of memory, most likely\), after 1 others"
    ):
        list(itertools.islice(batches, 10))
    assert not workers_of_this_process()


def test_workers_end_with_a_parent_that_was_killed(clips_dir: Path) -> None:
    program = f"""
import multiprocessing, os
from walt.data.config import LoaderConfig
from walt.data.loader import ClipLoader
batches = ClipLoader(LoaderConfig({str(clips_dir)!r}, batch_size=2, workers=1)).batches()
next(batches)
print(*(child.pid for child in multiprocessing.active_children()), flush=True)
os.kill(os.getpid(), 9)
"""
    [process] = jobs.start(["-c", program], 1)
    pids = [int(pid) for pid in process.stdout.readline().split()]
    assert pids, process.stderr.read()
    for pid in pids:
        jobs.wait_until_gone(pid)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_worker_that_was_told_to_stop_is_not_replaced(clips_dir: Path, number: int) -> None:
    message = f"Worker process was terminated unexpectedly with exit code -{int(number)}. Search the logs"
    with pytest.raises(RuntimeError, match="terminated"):
        ClipLoader(LoaderConfig(str(clips_dir)))._replace_workers(RuntimeError(message))


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_memory_does_not_grow_over_ten_thousand_batches(clips_dir: Path, tmp_path: Path, workers: int) -> None:
    """Resident memory of this process and its workers after 1,000 and after 10,000 batches, bad records included."""
    data = broken(clips_dir, tmp_path / "broken", {4, 11})
    loader = ClipLoader(LoaderConfig(str(data), batch_size=8, workers=workers, cache_megabytes=0))
    batches = loader.batches()

    def resident() -> float:
        pids = [os.getpid(), *(child.pid for child in workers_of_this_process())]
        pages = [int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in pids]
        return sum(pages) * os.sysconf("SC_PAGE_SIZE") / 2**20

    for _ in range(1000):
        next(batches)
    before = resident()
    for _ in range(9000):
        next(batches)
    after = resident()
    batches.close()
    print(f"{workers} workers: {before:.1f} MB after 1,000 batches, {after:.1f} MB after 10,000")
    assert after < before + 8
