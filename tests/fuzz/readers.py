"""Every reader of what others wrote, with good inputs to start from and the errors that it may end in."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import pickle
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import orbax.checkpoint as ocp
import safetensors.numpy
import yaml
from etils import epath
from mutations import JSON, LINES, MSGPACK, SAFETENSORS, Codec
from PIL import Image

from walt.autoencoder.torch_file import MAGIC, PROTOCOL, TorchFileError, read_tensors
from walt.config import ConfigError, from_json
from walt.data import caption_files, media, records
from walt.data.faults import FaultLog
from walt.data.latents import LatentsFormat, record_field
from walt.evaluation.clips import EvaluationError
from walt.evaluation.footage import open_footage
from walt.generation.bundle import BundleError, read_bundle
from walt.generation.record import Record, RecordError, parse_record, read_record
from walt.generation.request import GenerationError
from walt.generation.rewriter import RewriterError, read_rules
from walt.generation.shots import read_storyboard
from walt.text.hugging_face import ModelFolderError, Source, read_arrays
from walt.text.t5 import read_t5
from walt.text.tokenizer import Tokenizer, TokenizerError, read_tokenizer
from walt.training import checksums
from walt.training.anomalies import SkippedBatches
from walt.training.checkpoint import restore_parts, stored_clock, stored_config
from walt.training.folder import CheckpointError
from walt.training.metrics import MetricsError, read_metrics


@dataclasses.dataclass(frozen=True, repr=False)
class Reader:
    """A reader under test.

    Attributes:
      seeds: good inputs.
      read: reads the bytes, by way of files in a folder if need be.
      errors: what it may raise.
      codec: the format as a value, if it has one.
      tokens: bytes that mean something in the format.
      share: of the inputs, relative to the other readers; slow ones get fewer.
    """

    seeds: tuple[bytes, ...]
    read: Callable[[bytes, Path], Any]
    errors: tuple[type[Exception], ...]
    codec: Codec | None = None
    tokens: tuple[bytes, ...] = ()
    share: float = 1.0


def written(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


# ---- data

CLIP = media.encode_clip(np.random.default_rng(0).integers(0, 256, (3, 4, 4, 3), np.uint8))
LATENTS = {
    "id": "a",
    "captions": ["one", "two"],
    "label": "x",
    "video": np.ones((2, 1, 1, 2), np.float32).tobytes(),
    "images": np.ones((2, 1, 1, 2), np.float32).tobytes(),
    "text": np.ones((2, 3, 2), np.float16).tobytes(),
    "text_mask": bytes(6),
}
FORMAT = LatentsFormat({"video": (2, 1, 1, 2), "images": (2, 1, 1, 2)}, False, (3, 2), {"x": 0})


def read_latents(data: bytes, folder: Path) -> None:
    try:
        record = records.unpack(data)
    except Exception as error:  # as RecordSource does
        raise records.DatasetError("unreadable") from error
    FORMAT.decode(record)
    FORMAT.decode(record, 1)


def read_clip_record(data: bytes, folder: Path) -> None:
    try:
        record = records.unpack(data)
    except Exception as error:
        raise records.DatasetError("unreadable") from error
    media.decode_clip(record_field(record, "clip", bytes), (3, 4, 4, 3))


def arrays(*, several: bool, packed: bool) -> bytes:
    file, videos = io.BytesIO(), np.random.default_rng(0).integers(0, 256, (2, 9, 4, 4, 3), np.uint8)
    save = np.savez if packed else np.save
    save(file, videos if several else videos[0])
    return file.getvalue()


def read_footage(suffix: str) -> Callable[[bytes, Path], None]:
    """Clips of a few of the videos that a file of arrays holds."""

    def read(data: bytes, folder: Path) -> None:
        written(folder / suffix / f"a{suffix}", data)
        for video in open_footage(folder / suffix).videos[:4]:
            video.clip(9, 1, lambda places: 0)

    return read


def read_member(data: bytes, folder: Path) -> None:
    """An npz whose member is the input, so that no checksum stands before it."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("video.npy", data)
    read_footage(".npz")(file.getvalue(), folder)


def dataset(folder: Path) -> Path:
    if not folder.exists():
        folder.mkdir(parents=True)
        with records.RecordWriter(folder, "train", 1) as writer:
            for index in range(3):
                writer.write({"id": str(index), "clip": CLIP})
            splits = {"train": writer.close()}
        records.write_manifest(folder, records.Manifest("test", splits, {"clip": (3, 4, 4, 3)}, 8.0, 0, {}, {"a": "1"}))
    return folder


def read_shard(data: bytes, folder: Path) -> None:
    written(dataset(folder / "data") / records.shard_name("train", 0, 1), data)
    source = records.RecordSource(folder / "data", retry_seconds=0.0)
    for index in range(len(source)):
        try:
            source[index]
        except records.DatasetError:
            continue


def read_manifest(data: bytes, folder: Path) -> None:
    written(folder / "manifest" / records.MANIFEST, data)
    records.read_manifest(folder / "manifest").summary()


def as_file(suffix: str, read: Callable[[Path], Any]) -> Callable[[bytes, Path], Any]:
    return lambda data, folder: read(written(folder / f"file{suffix}", data))


def encoded(kind: str) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (9, 7, 3), np.uint8)).save(file, kind)
    return file.getvalue()


def video(folder: Path, suffix: str) -> bytes:
    pixels = np.random.default_rng(2).integers(0, 256, (5, 16, 16, 3), np.uint8)
    media.write_video(folder / f"seed{suffix}", pixels, 8)
    return (folder / f"seed{suffix}").read_bytes()


def noted(folder: Path, suffix: str) -> bytes:
    """A video that says how it was made."""
    pixels = np.random.default_rng(3).integers(0, 256, (2, 16, 16, 3), np.uint8)
    media.write_video(folder / f"noted{suffix}", pixels, 8, note=RECORD.to_json())
    return (folder / f"noted{suffix}").read_bytes()


RECORD = Record(
    "generate",
    ("ab",),
    ("a ball",),
    ("ball",),
    "",
    "",
    5,
    16,
    16,
    8.0,
    4,
    2.0,
    "ddim",
    0,
    0,
    {"strength": 0.5},
    {"video": "cd"},
)
BOARD = {
    "shots": [
        {"prompt": "a ball", "seconds": 1.5, "seed": 3},
        {"prompt": "a box", "num_frames": 9, "transition": "morph", "transition_seconds": 0.5},
    ]
}
YAML = Codec(yaml.safe_load, lambda value: JSON.encode(value))  # which is YAML too
RULES = {"replace": {"a": "b"}, "before": "x", "after": "y"}
SMALL = media.Limits(pixels=2**16, frames=200, seconds=100, megabytes=1, decoded_megabytes=16)


# ---- weights


def read_bundle_index(data: bytes, folder: Path) -> None:
    written(folder / "bundle" / "walt.json", data)
    written(folder / "bundle" / "autoencoder.safetensors", WEIGHTS)
    written(folder / "bundle" / "tokenizer.model", b"bytes")
    read_bundle(folder / "bundle")


def read_weights(data: bytes, folder: Path) -> None:
    entry = {"file": "a.safetensors", "sha256": hashlib.sha256(data).hexdigest(), "config": {}}
    written(folder / "weights" / "a.safetensors", data)
    written(folder / "weights" / "walt.json", JSON.encode({"format": 1, "components": {"autoencoder": entry}}))
    read_bundle(folder / "weights")


def read_model_config(data: bytes, folder: Path) -> None:
    written(folder / "t5" / "config.json", data)
    read_t5(folder / "t5")  # its weights are missing, and at most that is found


def read_model_arrays(data: bytes, folder: Path) -> None:
    written(folder / "single" / "model.safetensors", data)
    read_arrays(folder / "single", {"a": Source("params/a")}, {"a": np.zeros((2, 3))})


def read_model_index(data: bytes, folder: Path) -> None:
    written(folder / "several" / "part.safetensors", WEIGHTS)
    written(folder / "several" / "model.safetensors.index.json", data)
    read_arrays(folder / "several", {"a": Source("params/a")}, {"a": np.zeros((2, 3))})


WEIGHTS = safetensors.numpy.save({"params/a": np.ones((2, 3), np.float32), "extra/b": np.ones(2, np.float16)})
INDEX = {
    "format": 1,
    "components": {
        "autoencoder": {
            "file": "autoencoder.safetensors",
            "sha256": hashlib.sha256(WEIGHTS).hexdigest(),
            "config": {"width": 1},
        }
    },
    "tokenizer": {"file": "tokenizer.model", "sha256": hashlib.sha256(b"bytes").hexdigest()},
    "diffusion": {"a": 1},
    "sampler": None,
    "licences": ["none"],
    "card": {"fps": 8},
}
T5 = {
    "model_type": "t5",
    "feed_forward_proj": "gated-gelu",
    **{"vocab_size": 8, "d_model": 4, "num_layers": 1, "num_heads": 2, "d_kv": 2, "d_ff": 4},
}


WORD_PIECE = {
    "version": "1.0",
    "added_tokens": [{"id": 0, "content": "[UNK]", "single_word": False, "lstrip": False, "rstrip": False,
                      "normalized": False, "special": True}],
    "normalizer": {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True, "strip_accents": None, "lowercase": True},
    "pre_tokenizer": {"type": "BertPreTokenizer"},
    "post_processor": {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "[CLS]", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"[CLS]": {"id": "[CLS]", "ids": [1], "tokens": ["[CLS]"]}},
    },
    "model": {
        "type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##", "max_input_chars_per_word": 100,
        "vocab": {"[UNK]": 0, "[CLS]": 1, "a": 2, "ball": 3},
    },
}  # fmt: skip


def torch_pickle() -> bytes:
    """An ordered dict of two tensors, as torch pickles them."""

    def text(value: str) -> bytes:
        return b"X" + struct.pack("<I", len(value)) + value.encode()

    def tensor(offset: int, shape: bytes, strides: bytes) -> bytes:
        storage = b"(" + text("storage") + b"ctorch\nFloatStorage\nq\x01" + text("0") + text("cpu") + b"K\x06NtQ"
        return b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"K" + bytes([offset]) + shape + strides + (
            b"\x89ccollections\nOrderedDict\n)RtRq\x02"
        )  # fmt: skip

    first = text("a") + tensor(0, b"K\x02K\x03\x86", b"K\x03K\x01\x86")
    return b"\x80\x02ccollections\nOrderedDict\n)R(" + first + text("b") + tensor(2, b"K\x04\x85", b"K\x01\x85") + b"u."


def torch_legacy() -> bytes:
    facts = {"protocol_version": PROTOCOL, "little_endian": True}
    head = b"".join(pickle.dumps(value, 2) for value in (MAGIC, PROTOCOL, facts))
    return head + torch_pickle() + pickle.dumps(["0"], 2) + struct.pack("<q", 6) + np.arange(6, dtype="<f4").tobytes()


def torch_zip() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("x/data.pkl", torch_pickle())
        archive.writestr("x/data/0", np.arange(6, dtype="<f4").tobytes())
    return file.getvalue()


def read_torch_program(data: bytes, folder: Path) -> None:
    """A zip file whose pickle is the input, so that no checksum stands before it."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("x/data.pkl", data)
        archive.writestr("x/data/0", bytes(24))
    read_torch(file.getvalue(), folder)


def read_torch(data: bytes, folder: Path) -> None:
    read_tensors(written(folder / "a.pth", data), hashlib.sha256(data).hexdigest())


OPCODES = tuple(bytes([code]) for code in b"()]}N.aeusbtRQ\x81\x85\x86\x87\x88\x89\x90\x91\x93\x94Rcio012dlg") + (
    b"K\x05", b"J\xff\xff\xff\x7f", b"M\x00\x01", b"q\x00", b"h\x00", b"h\x01", b"r\xff\xff\xff\xff", b"j\xff\xff\xff\xff",
    b"cos\nsystem\n", b"cbuiltins\neval\n", b"ctorch\nFloatStorage\n", b"X\x01\x00\x00\x00a", b"\x8a\x08" + b"\xff" * 7 + b"\x7f",
    b"B\xff\xff\xff\x7f", b"\x8e" + b"\xff" * 8, b"\x8b\xff\xff\xff\x7f", b"\x95" + b"\xff" * 8, b"\x86" * 40, b"2\x86" * 40,
)  # fmt: skip


# ---- checkpoints

CLOCK = {"seconds": 1.5, "window": {"loss": 2.0}, "window_steps": 1, "skipped_in_a_row": 0, "finished": False}
CONFIG = {"stage": "x", "data": {"path": "y", "seed": 0}, "sizes": [1, 2]}


def checkpoint(folder: Path) -> Path:
    """A work directory with a checkpoint of a few numbers."""
    step = folder / "run" / "checkpoints" / "3"
    if not step.exists():
        weights = {"params": {"model": {"a": np.ones((2, 3), np.float32)}}, "ema": {}, "extra": {"b": np.ones(2)}}
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(step / "weights", weights)
        for item in ("weights", "training", "config", "clock", "."):
            written(step / item / "commit_success.txt", b"")
    written(step / "config" / "metadata", JSON.encode(CONFIG))
    written(step / "clock" / "metadata", JSON.encode(CLOCK))
    return folder / "run"


def read_clock(data: bytes, folder: Path) -> None:
    workdir = checkpoint(folder)
    written(workdir / "checkpoints" / "3" / "clock" / "metadata", data)
    stored_clock(workdir)


def read_config(data: bytes, folder: Path) -> None:
    workdir = checkpoint(folder)
    written(workdir / "checkpoints" / "3" / "config" / "metadata", data)
    stored_config(workdir)


def checkpoint_reader(folder: Path) -> Reader:
    """The input is a file of a checkpoint's weights, behind one byte that says which."""
    whole = checkpoint(folder) / "checkpoints" / "3" / "weights"
    files = sorted(path.relative_to(whole) for path in whole.rglob("*") if path.is_file())

    def read(data: bytes, folder: Path) -> None:
        workdir = checkpoint(folder)
        weights = workdir / "checkpoints" / "3" / "weights"
        shutil.rmtree(weights)
        shutil.copytree(whole, weights)
        (weights / files[sum(data[:1]) % len(files)]).write_bytes(data[1:])
        restore_parts(workdir)

    seeds = tuple(bytes([index]) + (whole / file).read_bytes() for index, file in enumerate(files))
    return Reader(seeds, read, (CheckpointError,), share=0.1)


def checksums_reader(folder: Path) -> Reader:
    step = checkpoint(folder) / "checkpoints" / "3"
    whole = folder / "whole"
    shutil.copytree(step / "weights", whole)
    checksums.write(epath.Path(step), ("weights", "config"))
    seed = (step / checksums.FILE).read_bytes()
    (step / checksums.FILE).unlink()

    def read(data: bytes, folder: Path) -> None:
        workdir = checkpoint(folder)
        step = workdir / "checkpoints" / "3"
        shutil.rmtree(step / "weights")
        shutil.copytree(whole, step / "weights")  # no two checkpoints are made at the same time, which they hold
        written(step / checksums.FILE, data)
        restore_parts(workdir)

    return Reader((seed,), read, (CheckpointError,), JSON, share=0.2)


def read_left_out(data: bytes, folder: Path) -> None:
    written(folder / "skipped_batches.0.jsonl", data)
    SkippedBatches(folder, None)


def read_log(data: bytes, folder: Path) -> None:
    written(folder / "skipped_records.0.jsonl", data)
    FaultLog("data", 5, folder).resume(10)


def read_metric_log(data: bytes, folder: Path) -> None:
    written(folder / "metrics.jsonl", data)
    read_metrics(folder)


ARRAYS = tuple(arrays(several=several, packed=False) for several in (False, True))
NPY = (b"|u1", b"<f8", b"|O", b"|V0", b"(300000, 9, 4, 4, 3)", b"(0,)", b"True", b"\x93NUMPY\x02\x00")
FAULT = {"step": 1, "row": 0, "slot": 0, "example": 5, "is_image": False, "reason": "r"}


def all_readers(folder: Path) -> dict[str, Reader]:
    """By name; the folder is for making the seeds."""
    dataset_folder = dataset(folder / "data")
    manifest = (dataset_folder / records.MANIFEST).read_bytes()
    shard = (dataset_folder / records.shard_name("train", 0, 1)).read_bytes()
    table = (
        JSON.encode({"file": "a.mp4", "caption": "x", "label": "y"})
        + b"\n"
        + JSON.encode({"file": "b", "caption": "z"})
    )
    pieces = Tokenizer.train(["a red ball", "a blue box moves"] * 9, 48).model_bytes
    of_data, of_media = (records.DatasetError,), (media.MediaError,)
    of_footage = (*of_media, EvaluationError)
    return {
        "latents record": Reader((msgpack.packb(LATENTS),), read_latents, of_data, MSGPACK),
        "clip record": Reader((msgpack.packb({"id": "a", "clip": CLIP}),), read_clip_record, of_data + of_media, MSGPACK),
        "clip": Reader((CLIP,), lambda data, _: media.decode_clip(data), of_media, tokens=(b"IDAT", b"tEXt", b"zTXt")),
        "shard": Reader((shard,), read_shard, of_data, share=0.3),
        "manifest": Reader((manifest,), read_manifest, of_data, JSON),
        "captions.csv": Reader(
            (b'file,caption,label\na.mp4,"x, y",z\n',), as_file(".csv", caption_files.read_table), of_media, tokens=(b'"', b"\n", b"\0")
        ),
        "captions.jsonl": Reader((table,), as_file(".jsonl", caption_files.read_table), of_media, LINES, (b"[" * 5000,)),
        "captions.txt": Reader(("a\né\n".encode(),), as_file(".txt", caption_files.read_lines), of_media),
        "image": Reader(
            tuple(encoded(kind) for kind in ("PNG", "JPEG", "WEBP", "BMP")),
            as_file(".png", lambda path: media.read_image(path, SMALL)),
            of_media,
        ),
        "video": Reader(
            tuple(video(folder, suffix) for suffix in (".mp4", ".webm", ".gif")),
            as_file(".mp4", lambda path: media.read_video(path, SMALL)),
            of_media,
            share=0.5,
        ),
        "footage.npy": Reader(ARRAYS, read_footage(".npy"), of_footage, tokens=NPY),
        "footage.npz": Reader((arrays(several=True, packed=True),), read_footage(".npz"), of_footage, tokens=NPY, share=0.5),
        "footage member": Reader(ARRAYS, read_member, of_footage, tokens=NPY),
        "bundle index": Reader((JSON.encode(INDEX),), read_bundle_index, (BundleError,), JSON),
        "bundle weights": Reader((WEIGHTS,), read_weights, (BundleError,), SAFETENSORS),
        "model config": Reader((JSON.encode(T5),), read_model_config, (ModelFolderError,), JSON, share=0.1),
        "model arrays": Reader((WEIGHTS,), read_model_arrays, (ModelFolderError,), SAFETENSORS),
        "model index": Reader(
            (JSON.encode({"weight_map": {"params/a": "part.safetensors"}}),), read_model_index, (ModelFolderError,), JSON
        ),
        "torch legacy": Reader((torch_legacy(),), read_torch, (TorchFileError,), tokens=OPCODES),
        "torch zip": Reader((torch_zip(),), read_torch, (TorchFileError,), tokens=OPCODES),
        "torch program": Reader((torch_pickle(),), read_torch_program, (TorchFileError,), tokens=OPCODES, share=2.0),
        "tokenizer.json": Reader(
            (JSON.encode(WORD_PIECE),), lambda data, _: read_tokenizer(data)(["a ball"], 8), (TokenizerError,), JSON
        ),
        "tokenizer": Reader((pieces,), lambda data, _: read_tokenizer(data)(["a ball"], 8), (TokenizerError,)),
        "stored config": Reader((JSON.encode(CONFIG),), read_config, (CheckpointError,), JSON),
        "stored clock": Reader((JSON.encode(CLOCK),), read_clock, (CheckpointError,), JSON),
        "checkpoint": checkpoint_reader(folder),
        "checksums": checksums_reader(folder),
        "config text": Reader((JSON.encode(CONFIG),), lambda data, _: from_json(data.decode("utf-8", "replace")), (ConfigError,), JSON),
        "metrics": Reader((JSON.encode({"step": 1, "loss": 2.0}) + b"\n",), read_metric_log, (MetricsError,), LINES),
        "record": Reader((RECORD.to_json().encode(),), lambda data, _: parse_record(data.decode("utf-8", "replace")), (ValueError,), JSON),
        "noted video": Reader((noted(folder, ".mp4"),), as_file(".mp4", lambda path: read_record(path, SMALL)), (*of_media, RecordError), share=0.5),
        "noted picture": Reader(
            (noted(folder, ".gif"), noted(folder, ".webp")),
            as_file(".gif", lambda path: read_record(path, SMALL)),
            (*of_media, RecordError),
            tokens=(b"comment", b"EXIF", b"tEXt", b"zTXt", b"iTXt"),
            share=0.5,
        ),
        "rewriting rules": Reader((JSON.encode(RULES),), as_file(".json", lambda path: read_rules(path)("a b")), (RewriterError,), JSON),
        "storyboard.json": Reader((JSON.encode(BOARD),), as_file(".json", read_storyboard), (GenerationError, *of_media), JSON, share=0.5),
        "storyboard.yaml": Reader((yaml.safe_dump(BOARD).encode(),), as_file(".yaml", read_storyboard), (GenerationError, *of_media), YAML, share=0.5),
        "skipped records": Reader((JSON.encode(FAULT) + b"\n",), read_log, (), LINES),
        "skipped batches": Reader((JSON.encode({"step": 1, "example_ids": [[5]]}) + b"\n",), read_left_out, (), LINES),
    }  # fmt: skip
