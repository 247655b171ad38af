"""Features of many videos: the same whatever was kept, interrupted or decoded ahead; bad videos are counted and named.

The network is replaced by one that is quick: this is about how videos reach it.
"""

import contextlib
import dataclasses
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from walt.data import media
from walt.evaluation import EvaluationError, features, i3d_weights
from walt.evaluation.features import Extractor, extract_features
from walt.evaluation.footage import Footage, Video, of_arrays, open_footage
from walt.evaluation.i3d import I3D
from walt.evaluation.protocols import CD_FVD, PROTOCOLS, Protocol
from walt.evaluation.resize import Resize
from walt.parallel.config import MeshConfig
from walt.parallel.mesh import make_mesh

PLAIN = PROTOCOLS["tfgan-reference"]
NINE = Protocol("nine", "a test", 9, "random", (Resize(224, "half-pixel"),), None, None, "any", "N", "eigh")


def quick(self, weights, clips):
    """Means over blocks of the frames that the network would see."""
    frames = clips.astype(jnp.float32)
    for resize in self.protocol.resizes:
        frames = resize.on_device(frames)
    return frames[:, :9].reshape(len(clips), 9, 28, 8, 28, 8, 3).mean(axis=(1, 3, 5)).reshape(len(clips), -1)[:, :400]


@pytest.fixture(scope="module")
def weights():
    return {name: np.ones(shape, np.float32) for name, shape in i3d_weights.shapes().items()}


@pytest.fixture
def network(monkeypatch, weights):
    monkeypatch.setattr(Extractor, "_features", quick)
    return lambda protocol=PLAIN, **options: Extractor(protocol, weights, **options)


@pytest.fixture
def few_in_a_part(monkeypatch):
    monkeypatch.setattr(features, "PART", 8)


def videos(count: int, frames: int = 9, side: int = 12, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, frames, side, side, 3), dtype=np.uint8)


def run(footage: Footage, extractor: Extractor, cache=None, *, random_start=False, seed=0):
    return extract_features(footage, extractor, random_start=random_start, seed=seed, cache=cache, title="real")


def test_every_clip_has_its_own_features_whatever_the_batches(network, few_in_a_part):
    clips = videos(19)
    found = run(of_arrays(clips, "real"), network())
    expected = np.asarray(quick(network(), None, jnp.asarray(clips)))
    assert found.values.shape == (19, 400) and not found.bad and found.clip_shape == (9, 12, 12, 3)
    assert np.abs(found.values - expected).max() < 1e-3
    one = network(mesh=make_mesh(MeshConfig(), jax.devices()[:1]))
    assert one.batch_size == 1 and np.abs(run(of_arrays(clips, "real"), one).values - expected).max() < 1e-3


def test_random_clips_are_the_same_for_a_seed(network, few_in_a_part):
    footage = of_arrays(videos(6, frames=30), "real")
    first, again, other = (run(footage, network(NINE), random_start=True, seed=seed).values for seed in (0, 0, 1))
    assert np.array_equal(first, again) and not np.array_equal(first, other)
    assert not np.array_equal(first, run(footage, network(NINE)).values)
    alike = run(of_arrays(np.repeat(videos(1, frames=30), 6, axis=0), "real"), network(NINE), random_start=True).values
    assert len(np.unique(alike, axis=0)) > 3  # each video has a start of its own


def counted(extractor: Extractor, stop_after: int | None = None) -> list[int]:
    """Sizes of the batches that reach the network from here on."""
    batches, call = [], extractor._run

    def count(weights, clips):
        if stop_after is not None and len(batches) == stop_after:
            raise KeyboardInterrupt
        batches.append(len(clips))
        return call(weights, clips)

    extractor._run = count
    return batches


def test_an_interrupted_run_goes_on_where_it_was(network, few_in_a_part, tmp_path):
    footage, extractor = of_arrays(videos(40), "real"), network()
    whole = run(footage, extractor).values
    counted(extractor, stop_after=3)
    with pytest.raises(KeyboardInterrupt):
        run(footage, extractor, tmp_path)
    resumed = network()
    batches = counted(resumed)
    assert np.array_equal(run(footage, resumed, tmp_path).values, whole) and batches == [8, 8]
    assert np.array_equal(run(footage, resumed, tmp_path).values, whole) and batches == [8, 8]


def test_nothing_stale_is_taken_and_damaged_parts_are_made_again(network, few_in_a_part, tmp_path):
    clips, extractor = videos(16), network()
    first = run(of_arrays(clips, "real"), extractor, tmp_path).values
    batches = counted(extractor)
    changed = clips.copy()
    changed[3, 0, 0, 0, 0] += 1
    assert not np.array_equal(run(of_arrays(changed, "real"), extractor, tmp_path).values, first) and len(batches) == 2
    run(of_arrays(clips, "real"), extractor, tmp_path, seed=1)
    assert len(batches) == 4
    for protocol in (NINE, dataclasses.replace(PLAIN, epsilon=1e-5), dataclasses.replace(PLAIN, stride=2, frames=None)):
        other = network(protocol)
        batches = counted(other)
        run(of_arrays(np.repeat(clips, 2, axis=1), "real"), other, tmp_path)
        assert len(batches) == 2
    batches = counted(extractor)
    for part in tmp_path.rglob("00000008.npz"):
        part.write_bytes(part.read_bytes()[:100])
    assert np.array_equal(run(of_arrays(clips, "real"), extractor, tmp_path).values, first) and len(batches) == 1


def test_bad_videos_are_named_and_tolerated_up_to_a_share(network, few_in_a_part, tmp_path, monkeypatch):
    for row, video in enumerate(videos(20)):
        np.save(tmp_path / f"{row:02d}.npy", video)
    (tmp_path / "07.npy").write_bytes(b"nothing")
    np.save(tmp_path / "11.npy", videos(1, frames=8)[0])
    extractor = network()
    with pytest.raises(
        EvaluationError,
        match=r"real: 2 of 20 videos cannot be used, more than 2%; the first: 07\.npy.*; 11\.npy has 8 frames",
    ):
        run(open_footage(tmp_path), extractor)
    monkeypatch.setattr(features, "MOST_BAD", 0.1)
    cache, kept = tmp_path.parent / "cache", open_footage(tmp_path)
    for _ in range(2):  # the second time the last four from the cache
        found = run(kept, extractor, cache)
        assert len(found.values) == 18 and len(found.bad) == 2 and "11.npy has 8 frames" in found.bad[1]
    assert [file.name for file in cache.rglob("*.npz")] == ["00000016.npz"]
    # A video that can be read in the end, of the same contents: a decoder was missing, or a disk.
    mended = Footage(kept.description, [*kept.videos[:7], kept.videos[0], *kept.videos[8:]], kept.fingerprint)
    assert len(run(mended, extractor, cache).values) == 19


def as_processes(monkeypatch, footage, extractor, count=2):
    """What every process of a job finds, one after the other: first all are asked what they tell, then all are told."""
    told = {}

    def ask(index):
        given = []

        def exchanged(mine):
            given.append(mine)
            told[index, len(given)] = mine
            return [told.get((process, len(given)), mine) for process in range(count)]

        monkeypatch.setattr(features, "exchanged", exchanged)
        share = features.Share(index, count)
        return extract_features(footage, extractor, random_start=False, seed=0, cache=None, title="real", share=share)

    def first(index):
        with contextlib.suppress(ValueError):
            ask(index)

    for index in range(count):
        first(index)
    return [ask(index) for index in range(count)]


def test_bad_videos_are_the_same_on_one_host_and_on_several(network, few_in_a_part, tmp_path, monkeypatch):
    extractor = network()
    for row, video in enumerate(videos(40)):
        np.save(tmp_path / f"{row:02d}.npy", video)
    for row in (8, 13):  # one of each of two hosts
        np.save(tmp_path / f"{row:02d}.npy", videos(1, frames=8)[0])
    with pytest.raises(EvaluationError, match=r"real: 2 of 40 videos cannot be used, more than 2%; the first: 08"):
        as_processes(monkeypatch, open_footage(tmp_path), extractor)
    monkeypatch.setattr(features, "MOST_BAD", 0.2)
    for row in (9, 11):
        np.save(tmp_path / f"{row:02d}.npy", videos(1, frames=8)[0])
    alone = run(open_footage(tmp_path), extractor)
    for found in as_processes(monkeypatch, open_footage(tmp_path), extractor):
        assert found.bad == alone.bad and len(found.bad) == 4 and np.array_equal(found.rows, alone.rows)


def test_clips_of_unlike_shapes_are_named(network, few_in_a_part):
    for other in (videos(1, frames=10), videos(1, side=13)):
        footage = of_arrays([*videos(3), *other], "real")
        with pytest.raises(
            EvaluationError, match=r"real video 3 gives a clip of \[.*\] but real video 0 one of \[9, 12, 12, 3\]"
        ):
            run(footage, network())


def test_memory_is_bounded_and_videos_are_decoded_ahead(network, few_in_a_part, monkeypatch):
    """However slow the network, only a few clips wait for it; and some do, while it computes."""
    extractor, lock, decoded, used, ahead = network(), threading.Lock(), [0], [0], []
    clip = videos(1)[0]

    def read(span, choose):
        with lock:
            decoded[0] += 1
        return clip

    call = Extractor.__call__

    def slow(self, clips):
        used[0] += len(clips)
        threading.Event().wait(0.02)
        ahead.append(decoded[0] - used[0])
        return call(self, clips)

    monkeypatch.setattr(Extractor, "__call__", slow)
    run(Footage("x", [Video(str(row), read) for row in range(60)], lambda: "x"), extractor)
    workers = features.available_cores()
    assert decoded[0] == 60 and max(ahead) <= 2 * workers + 2 * features.PER_DEVICE and max(ahead) >= 1


def test_frames_reach_the_network_resized_and_between_minus_one_and_one(weights, monkeypatch):
    """The whole path of a protocol against its parts, with the network itself."""
    extractor = Extractor(PLAIN, weights, make_mesh(MeshConfig(), jax.devices()[:1]))
    clip = videos(1, side=8)[0]
    seen = []
    monkeypatch.setattr(I3D, "__call__", lambda self, x: seen.append(x) or jnp.zeros((len(x), 400)))
    with jax.disable_jit():
        extractor._features(extractor._weights, jnp.asarray(clip[None]))
    assert np.allclose(seen[0][0], Resize(224, "tf1").on_host(clip) / 127.5 - 1, atol=1e-5)
    assert np.allclose(extractor._weights["conv_1a"]["scale"], 1 / np.sqrt(1 + 1e-3))
    assert np.allclose(Extractor(CD_FVD, weights)._weights["conv_1a"]["scale"], 1 / np.sqrt(1 + 1e-5), rtol=1e-6)


def test_media_errors_of_files_are_bad_videos(network, tmp_path, monkeypatch):
    media.write_video(tmp_path / "a.mp4", videos(1)[0], 8.0)
    (tmp_path / "b.mp4").write_bytes(b"no film")
    monkeypatch.setattr(features, "MOST_BAD", 0.5)
    found = run(open_footage(tmp_path), network())
    assert len(found.values) == 1 and "b.mp4 cannot be read as a video" in found.bad[0]
