"""Whatever a file holds, its reader ends in a value or in its own error, within seconds and without eating the memory."""

from __future__ import annotations

import resource
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mutations import Edit, mutate
from readers import Reader, all_readers

SECONDS, MEGABYTES = 5, 1024
NAMES = (
    "latents record", "clip record", "clip", "shard", "manifest", "captions.csv", "captions.jsonl", "captions.txt", "image", "video",
    "footage.npy", "footage.npz", "footage member",
    "bundle index", "bundle weights", "model config", "model arrays", "model index", "torch legacy", "torch zip", "torch program",
    "tokenizer.json", "tokenizer", "stored config", "stored clock", "checkpoint", "checksums", "config text", "metrics", "record",
    "noted video", "noted picture", "rewriting rules", "storyboard.json", "storyboard.yaml", "skipped records", "skipped batches",
)  # fmt: skip

EDITS = st.lists(
    st.builds(Edit, st.integers(0, 11), st.integers(0, 2**31), st.integers(0, 80), st.integers(0, 2**63)), min_size=1, max_size=5
)  # fmt: skip


@pytest.fixture(scope="module")
def readers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Reader]:
    found = all_readers(tmp_path_factory.mktemp("seeds"))
    assert tuple(found) == NAMES
    return found


class Hang(BaseException):
    """Not an Exception, which a reader might take for one of its own."""


@pytest.fixture(autouse=True)
def no_hang() -> Iterator[None]:
    def give_up(*_: object) -> None:
        raise Hang(f"a reader took longer than {SECONDS} s")

    before = signal.signal(signal.SIGALRM, give_up)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("name", NAMES)
def test_good_inputs_are_read(readers: dict[str, Reader], name: str, tmp_path: Path) -> None:
    for seed in readers[name].seeds:
        if name == "model config":  # a config without weights
            with pytest.raises(readers[name].errors, match="holds neither"):
                readers[name].read(seed, tmp_path)
        else:
            readers[name].read(seed, tmp_path)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("total", [2_000, pytest.param(100_000, marks=pytest.mark.slow)])
def test_bad_inputs_end_in_the_reader_s_own_error(
    readers: dict[str, Reader], name: str, total: int, tmp_path: Path
) -> None:
    reader = readers[name]
    count = -(-round(total * reader.share) // round(sum(each.share for each in readers.values())))
    ended = {"value": 0, "error": 0}

    @settings(max_examples=count, database=None, suppress_health_check=list(HealthCheck))
    @given(which=st.integers(0, 99), edits=EDITS, noise=st.binary(min_size=1, max_size=100))
    def fuzz(which: int, edits: list[Edit], noise: bytes) -> None:
        data = mutate(reader.seeds[which % len(reader.seeds)], edits, reader.codec, reader.tokens)
        data = noise if which >= 95 else data
        signal.alarm(SECONDS)
        try:
            reader.read(data, tmp_path)
            ended["value"] += 1
        except reader.errors:
            ended["error"] += 1
        finally:
            signal.alarm(0)

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    fuzz()
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    print(f"{name}: {ended}, {grown:.0f} MB")
    assert ended["error"] or not reader.errors  # the inputs reach what refuses them
    assert grown < MEGABYTES
