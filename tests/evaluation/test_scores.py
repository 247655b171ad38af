"""Inception-v3, C3D and their scores: as torch computes them, with weights that users bring along, and refused without."""

import dataclasses
import hashlib
import json
import re
import zipfile

import jax
import numpy as np
import pytest
import torch_networks
from PIL import Image

from walt import command, convert, evaluate
from walt.evaluation import EvaluationError, c3d, evaluate_videos, inception, supplied
from walt.evaluation.footage import open_footage
from walt.evaluation.inception_score import inception_score
from walt.evaluation.networks import NETWORKS
from walt.evaluation.protocols import PROTOCOLS

NAMES = {"inception": "inception-v3", "c3d": "c3d"}


@pytest.fixture(scope="module")
def arrays():
    return {
        "inception": torch_networks.weights(inception.shapes()),
        "c3d": torch_networks.weights(c3d.shapes(5)),
    }


def made(name, arrays, clips):
    network = NETWORKS[NAMES[name]]
    tree = network.tree(arrays, 1e-3)
    return np.asarray(jax.jit(network.apply)(tree, clips))


def relative_error(a, b):
    return np.linalg.norm(a - b) / np.linalg.norm(b)


@pytest.mark.parametrize("name", NAMES)
def test_networks_are_those_of_torch(name, arrays):
    """Against what torch made of the same weights, which is stored."""
    with np.load(torch_networks.FIXTURE) as stored:
        expected = stored[name]
    clips = torch_networks.images()[:, None] if name == "inception" else torch_networks.clips()
    found = made(name, arrays[name], clips)
    assert found.shape == expected.shape and relative_error(found, expected) < 1e-5


@pytest.mark.parametrize("name", NAMES)
def test_what_is_stored_is_what_torch_makes(name, arrays):
    pytest.importorskip("torch")
    network = getattr(torch_networks, name)
    clips = torch_networks.images() if name == "inception" else torch_networks.clips()[:, :, 8:120, 8:120]
    with np.load(torch_networks.FIXTURE) as stored:
        assert relative_error(stored[name], torch_networks.made(network, arrays[name], clips)) < 1e-5


def test_scores_of_known_probabilities():
    certain = 50.0 * np.eye(4)[[0, 1, 2, 3] * 5]
    assert inception_score(certain).mean == pytest.approx(4) and inception_score(np.zeros((6, 4))).mean == 1
    assert inception_score(certain[::4]).mean == pytest.approx(1)  # one class alone
    halves = inception_score(np.concatenate([certain, certain[::4]]), splits=2)
    assert 1 < halves.mean < 4 and halves.std > 0
    probabilities = np.array([[0.7, 0.3], [0.4, 0.6]])
    mean = probabilities.mean(0)
    by_hand = np.exp((probabilities * np.log(probabilities / mean)).sum(1).mean())
    assert inception_score(np.log(probabilities) + 7).mean == pytest.approx(by_hand)
    with pytest.raises(EvaluationError, match="an Inception score of 3 splits needs as many clips, got 2"):
        inception_score(probabilities, splits=3)


@pytest.fixture
def small(monkeypatch):
    """Networks that take no time in place of both; their weights count as published where they say so."""

    def features(tree, clips):
        values = clips[:, 0].reshape(len(clips), -1)
        places = values[:, : 12 * (values.shape[1] // 12)].reshape(len(clips), 12, -1).mean(-1)
        return jax.numpy.concatenate([places, 3 * places[:, :4]], axis=1) * tree["scale"]

    for name, classes in (("inception-v3", 4), ("c3d", True)):
        network = dataclasses.replace(
            NETWORKS[name],
            read=lambda path: {"scale": np.ones(1, np.float32)},
            tree=lambda arrays, epsilon: dict(arrays),
            apply=features,
            published=lambda arrays: arrays["scale"][0] == 1,
            classes=classes,
        )
        monkeypatch.setitem(NETWORKS, name, network)


def test_pictures_have_a_fid_a_kid_and_a_score(small, tmp_path):
    for name, low in (("real", 0), ("generated", 60)):
        folder = tmp_path / name / "cat"
        folder.mkdir(parents=True)
        for row, frame in enumerate(np.random.default_rng(low).integers(low, 256, (24, 20, 20, 3), dtype=np.uint8)):
            Image.fromarray(frame).save(folder / f"{row}.png")
    assert len(open_footage(tmp_path / "real", stills=True)) == 24 and len(open_footage(tmp_path / "real")) == 1
    out, cache = tmp_path / "a.json", f"--cache={tmp_path / 'cache'}"
    flags = [f"--{name}={tmp_path / name}" for name in ("real", "generated")]
    evaluate.main(["walt evaluate", *flags, cache, "--protocol=pytorch-fid", f"--json={out}", "--intervals=2"])
    found = json.loads(out.read_text())
    assert found["fid"] > 0 and "kid" in found and 1 <= found["inception_score"] <= 4 and "fvd" not in found
    assert found["card"]["protocol"]["splits"] == 10 and found["card"]["clip_shape"] == [1, 20, 20, 3]
    assert found["num_real"] == found["num_generated"] == 24


def test_videos_have_a_score_of_c3d_and_no_distance(small):
    clips = np.random.default_rng(0).integers(0, 256, (12, 16, 24, 24, 3), dtype=np.uint8)
    figures = evaluate_videos(clips, clips[:10], "c3d-is", intervals=0).figures
    assert {"c3d_inception_score", "c3d_inception_score_std", "c3d_inception_score_real"} <= figures.keys()
    assert not any("distance" in name or name in ("fvd", "fid") for name in figures)


def test_weights_of_unknown_origin_make_no_fid(small):
    stills = np.random.default_rng(0).integers(0, 256, (12, 1, 24, 24, 3), dtype=np.uint8)
    found = evaluate_videos(stills, stills, "tf-fid", weights={"scale": np.float32([2])}, intervals=0)
    assert "fid" not in found.figures and "frechet_distance" in found.figures
    assert any("so this is no FID" in warning for warning in found.warnings)


@pytest.mark.parametrize(
    ("protocol", "sentence"),
    [
        (
            "pytorch-fid",
            r"the weights of Inception-v3 are in no package: get pt_inception-2015-12-05-6726825d\.pth of pytorch-fid, then walt convert",
        ),
        (
            "c3d-is",
            r"the weights of C3D are in no package: get a state dict of C3D .*, then walt convert c3d --input=FILE",
        ),
    ],
)
def test_without_weights_a_sentence_says_where_to_get_them(protocol, sentence, tmp_path):
    with pytest.raises(EvaluationError, match=sentence):
        evaluate_videos(np.zeros((4, 16, 8, 8, 3), np.uint8), np.zeros((4, 16, 8, 8, 3), np.uint8), protocol)
    with pytest.raises(EvaluationError, match=r"none\.safetensors is no readable safetensors file; walt convert"):
        NETWORKS[PROTOCOLS[protocol].network].read(str(tmp_path / "none.safetensors"))


def test_a_state_dict_is_converted_once_and_says_where_it_is_from(tmp_path, monkeypatch, capsys):
    """In place of the real file, which is large, one of few and small arrays in its format."""

    monkeypatch.setattr(supplied, "expected", lambda network, arrays: {"fc.weight": (2, 3)})
    numbers = np.arange(6, dtype=np.float32).reshape(2, 3)
    file = tmp_path / "inception.pth"
    # A pickle of {"fc.weight": a tensor of 2 x 3 in storage 0}, as torch.save writes it.
    storage = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x06tQ"
    tensor = (
        b"ctorch._utils\n_rebuild_tensor_v2\n("
        + storage
        + b"K\x00K\x02K\x03\x86K\x03K\x01\x86\x89ccollections\nOrderedDict\n)RtR"
    )
    content = b"\x80\x02}X\x09\x00\x00\x00fc.weight" + tensor + b"s."
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("inception/data.pkl", content)
        archive.writestr("inception/data/0", numbers.tobytes())
    sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
    out = tmp_path / "inception.safetensors"
    arguments = ["walt convert", "inception", f"--input={file}", f"--output={out}"]
    convert.main([*arguments, f"--sha256={sha256}"])
    assert "inception" in capsys.readouterr().out
    arrays = NETWORKS["inception-v3"].read(str(out))
    assert np.array_equal(arrays["fc.weight"], numbers) and arrays[supplied.ORIGIN].tobytes().hex() == sha256
    assert not supplied.is_of_inception(arrays)
    monkeypatch.setattr(supplied, "INCEPTION_SHA256", sha256[:8])
    assert supplied.is_of_inception(arrays)
    with pytest.raises(EvaluationError, match="damaged or another file: its SHA-256 is"):
        convert.main([*arguments, f"--sha256={'0' * 64}"])
    with pytest.raises(command.CommandError, match=re.escape("--sha256 is missing")):
        convert.main(arguments)
    monkeypatch.setattr(supplied, "expected", lambda network, arrays: {"fc.weight": (2, 4), "fc.bias": (2,)})
    with pytest.raises(
        EvaluationError, match=r"does not hold the weights of inception: fc\.bias and 0 others are missing"
    ):
        NETWORKS["inception-v3"].read(str(out))
