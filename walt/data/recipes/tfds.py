"""Recipe "tfds": a data set that tensorflow-datasets prepared as ArrayRecord, read without TensorFlow.

Make such a data set where TensorFlow is at hand (`tfds build ucf101 --file_format=array_record`) and name its folder here.
"""

import contextlib
import dataclasses
import importlib.util
import json
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from walt.config import ConfigError
from walt.data import media, records
from walt.data.recipes import common
from walt.data.recipes.common import option
from walt.untrusted import parse_json

_FEATURES = "tensorflow_datasets.core.features."


@dataclasses.dataclass(frozen=True)
class TfdsConfig:
    """Arguments of the recipe; every field is a flag of `walt prepare tfds`."""

    output: str = option("Folder to write; must be absent, empty, or hold just this data set.")
    directory: str = option("Folder of one version of a prepared data set, the one with dataset_info.json.", default="")
    name: str = option(
        "Instead of --directory: a name under --data_dir, e.g. ucf101; its newest version is taken.", default=""
    )
    data_dir: str = option("Where --name is looked for.", default="~/tensorflow_datasets")
    split: str = option("Split of the source to train on.", default="train")
    heldout_split: str = option("Split of the source to hold out; by default a share of --split is.", default="")
    heldout: float = option("Share of the examples that is held out when no --heldout_split is given.", default=0.1)
    media_feature: str = option("Video or image feature; needed only if there are several.", default="")
    caption_feature: str = option("Text or class label feature; needed only if there are several.", default="")
    template: str = option("Caption made of a class label.", default="a video of {}")
    height: int = option("Height of a frame in pixels.", default=64)
    width: int = option("Width of a frame in pixels.", default=64)
    num_frames: int = option("Frames of a clip.", default=17)
    frame_skip: int = option("Take every n-th frame.", default=1)
    source_fps: float = option("Frames per second of the source, which tfds does not store.", default=25.0)
    seed: int = option("Seed of the choice of held-out examples and of where clips start.", default=0)
    skip_bad: bool = option("Skip and list examples that cannot be used instead of stopping.", default=False)

    def __post_init__(self) -> None:
        if bool(self.directory) == bool(self.name):
            raise ConfigError("either directory or name must be given, to say which data set to read.")
        if not _takes_a_label(self.template):
            raise ConfigError(
                f"template must contain {{}} where the label goes, and no other braces, got {self.template!r}."
            )
        common.check_positive(self, "height", "width", "num_frames", "frame_skip", "source_fps")
        common.check_heldout(self.heldout)
        if self.heldout_split == self.split:
            raise ConfigError(f"heldout_split must be another split than split, got {self.split!r} for both.")


def _takes_a_label(template: str) -> bool:
    try:
        return "\0" in template.format("\0")
    except (LookupError, ValueError, AttributeError):  # what `format` raises for fields and braces of all kinds
        return False


@dataclasses.dataclass(frozen=True)
class _Source:
    """One split of the source, and how to read an example of it."""

    name: str
    data: Any
    media_feature: str
    caption_feature: str
    label_names: list[str] | None


def prepare(config: TfdsConfig) -> records.Manifest:
    """Makes clips of the examples and returns the manifest.

    Raises:
      records.DatasetError: tensorflow-datasets is missing, the source cannot be read, a feature is unclear, or the
        output folder is not free.
      media.MediaError: an example is too short or has no caption; with `skip_bad` such examples are listed instead.
    """
    if importlib.util.find_spec("tensorflow_datasets") is None:
        raise records.DatasetError(
            "The tfds recipe needs tensorflow-datasets; install it with `pip install walt[tfds]`."
        )
    directory = Path(config.directory).expanduser() if config.directory else _newest_version(config)
    if not (directory / "dataset_info.json").is_file():
        raise records.DatasetError(f"{directory} holds no dataset_info.json, so it is no prepared tfds data set.")
    request = dataclasses.asdict(config) | {"directory": str(directory.resolve())}
    del request["output"]
    finished = records.already_prepared(config.output, "tfds", request)
    if finished is not None:
        return finished
    common.warn_of_sizes(config)
    with _readable(directory) as readable, records.new_dataset(config.output) as output:
        items = _items(readable, config)
        splits, skipped = common.write_clips(
            output, items, lambda item: _clips(*item, config), skip_bad=config.skip_bad
        )
        manifest = records.Manifest(
            name="tfds",
            splits=splits,
            shapes={"clip": (config.num_frames, config.height, config.width, 3)},
            fps=config.source_fps / config.frame_skip,
            seed=config.seed,
            request=request,
            versions=records.package_versions("walt", "tensorflow-datasets", "numpy", "pillow", "array_record"),
            extra={"skipped": skipped},
        )
        records.write_manifest(output, manifest)
    return records.read_manifest(config.output)


def _newest_version(config: TfdsConfig) -> Path:
    folder = Path(config.data_dir).expanduser() / config.name
    found = [path.parent for path in folder.rglob("dataset_info.json")]
    if not found:
        raise records.DatasetError(f"There is no prepared data set under {folder}; `tfds build` makes one.")
    parents = sorted({path.parent.relative_to(folder.parent).as_posix() for path in found})
    if len(parents) > 1:
        raise records.DatasetError(
            f"{folder} holds several configurations of this data set; name one: "
            + ", ".join(f"--name={parent}" for parent in parents)
        )
    return max(found, key=lambda path: [int(number) for number in re.findall(r"\d+", path.name)])


@contextlib.contextmanager
def _readable(directory: Path) -> Iterator[Path]:
    """The folder, or a stand-in for it that tfds can open without TensorFlow.

    The constructor of tfds' Video feature (4.9.10) calls TensorFlow, though its examples are stored and read just like a
    Sequence of Image, which does not. So a folder of links gets a feature description that says Sequence of Image.
    """
    path = directory / "features.json"
    try:
        features = parse_json(path.read_bytes()) if path.is_file() else {}
        _check_classes(features)
        plain = _without_video_feature(features)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise records.DatasetError(f"{path} describes no features that can be read: {error}") from error
    if plain == features:
        yield directory
        return
    with tempfile.TemporaryDirectory() as temporary:
        for file in directory.iterdir():
            if file.name != "features.json":
                (Path(temporary) / file.name).symlink_to(file.resolve())
        (Path(temporary) / "features.json").write_text(json.dumps(plain))
        yield Path(temporary)


def _check_classes(node: Any) -> None:
    """Raises ValueError for the name of a class that is not tfds' own: tfds imports, and so runs, whatever module is named here."""
    if isinstance(node, dict):
        for key in ("pythonClassName", "type"):
            name = node.get(key, _FEATURES)
            if isinstance(name, str) and "." in name and not name.startswith(_FEATURES):
                raise ValueError(f"{name!r} is no feature of tensorflow-datasets, and code of others is not run")
    if isinstance(node, dict | list):
        for child in node.values() if isinstance(node, dict) else node:
            _check_classes(child)


def _without_video_feature(node: Any) -> Any:
    if isinstance(node, list):
        return [_without_video_feature(child) for child in node]
    if not isinstance(node, dict):
        return node
    if node.get("pythonClassName") != _FEATURES + "video_feature.Video":
        return {key: _without_video_feature(child) for key, child in node.items()}
    video = node["video"]
    dimensions = video.get("shape", {}).get("dimensions") or ["-1"] * 4
    image = {"shape": {"dimensions": dimensions[1:]}, "dtype": video.get("dtype", "uint8")}
    if "encodingFormat" in video:
        image["encodingFormat"] = video["encodingFormat"]
    feature = {"pythonClassName": _FEATURES + "image_feature.Image", "image": image}
    sequence = {"feature": feature, "length": dimensions[0]}
    return {"pythonClassName": _FEATURES + "sequence_feature.Sequence", "sequence": sequence}


def _items(directory: Path, config: TfdsConfig) -> dict[str, list[tuple[_Source, int]]]:
    """(source, example number) of every example, by split of the data set to be written."""
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder_from_directory(str(directory))
        info = builder.info
        names = [config.split, *([config.heldout_split] if config.heldout_split else [])]
        for name in names:
            if name not in info.splits:
                raise records.DatasetError(f"The data set has no split {name!r}; it has {sorted(info.splits)}.")
        sources = [_source(name, builder.as_data_source(split=name), info.features, config) for name in names]
    except records.DatasetError:
        raise
    except Exception as error:  # tfds raises whatever its many parsers raise
        raise records.DatasetError(f"tensorflow-datasets cannot read {directory}: {error}") from error
    items = [[(source, index) for index in range(len(source.data))] for source in sources]
    if config.heldout_split:
        return {"train": items[0], "heldout": items[1]}
    return common.split_items(items[0], config.heldout, config.seed)


def _source(name: str, data: Any, features: Any, config: TfdsConfig) -> _Source:
    import tensorflow_datasets as tfds

    def inner(feature: Any) -> Any:
        return inner(feature.feature) if isinstance(feature, tfds.features.Sequence) else feature

    def choose(given: str, kinds: tuple[type, ...], flag: str) -> str:
        found = sorted(key for key, feature in features.items() if isinstance(inner(feature), kinds))
        if given in found:
            return given
        if given or len(found) != 1:
            raise records.DatasetError(f"--{flag} must be one of the features {found}, got {given!r}.")
        return found[0]

    caption = choose(config.caption_feature, (tfds.features.Text, tfds.features.ClassLabel), "caption_feature")
    label = inner(features[caption])
    return _Source(
        name=name,
        data=data,
        media_feature=choose(config.media_feature, (tfds.features.Image,), "media_feature"),
        caption_feature=caption,
        label_names=list(label.names) if isinstance(label, tfds.features.ClassLabel) else None,
    )


def _clips(source: _Source, index: int, config: TfdsConfig) -> Iterator[dict[str, Any]]:
    name = f"{source.name}#{index}"
    try:
        example = source.data[index]
    except Exception as error:  # a damaged record or image: any type
        raise media.MediaError(f"Example {name} cannot be read: {error}") from error
    label, captions = _captions(example[source.caption_feature], source, config)
    if not captions:
        raise media.MediaError(f"Example {name} has no caption.")
    yield {
        "id": name,
        "clip": media.encode_clip(_cut(example[source.media_feature], name, config)),
        "captions": captions,
        "label": label,
        "fps": config.source_fps / config.frame_skip,
    }


def _captions(value: Any, source: _Source, config: TfdsConfig) -> tuple[str, list[str]]:
    """(label, captions) of the caption feature's value: a class number, a text or a list of either.

    The label is empty unless the value names just one class.
    """
    if source.label_names is not None:
        # tfds writes -1 where the class is unknown, as in the test splits of contests.
        numbers = dict.fromkeys(int(number) for number in np.ravel(value) if number >= 0)
        labels = [source.label_names[number] for number in numbers]
        # "ApplyEyeMakeup" and "apply_eye_makeup" -> "apply eye makeup"
        words = [re.sub(r"(?<=[a-z])(?=[A-Z])|[_\-]+", " ", label).lower() for label in labels]
        return labels[0] if len(labels) == 1 else "", [config.template.format(text) for text in words]
    values = [value] if isinstance(value, bytes | str) else list(value)
    texts = [text.decode() if isinstance(text, bytes) else str(text) for text in values]
    return "", [text.strip() for text in texts if text.strip()]


def _cut(value: Any, name: str, config: TfdsConfig) -> np.ndarray:
    """A clip of the wanted size out of an image or a list of frames."""
    frames = [value] if isinstance(value, np.ndarray) and value.ndim == 3 else list(value)
    if len(frames) == 1:
        frames = frames * (1 + (config.num_frames - 1) * config.frame_skip)
    room = len(frames) - 1 - (config.num_frames - 1) * config.frame_skip
    if room < 0:
        raise media.MediaError(
            f"Example {name} has {len(frames)} frames, too few for {config.num_frames} with a frame skip of {config.frame_skip}."
        )
    start = int(np.random.default_rng(common.seed_of(config.seed, name)).integers(room + 1))
    chosen = frames[start :: config.frame_skip][: config.num_frames]
    return np.stack([media.resize(_rgb(frame, name), config.height, config.width) for frame in chosen])


def _rgb(frame: np.ndarray, name: str) -> np.ndarray:
    if frame.dtype != np.uint8 or frame.shape[-1] not in (1, 3, 4):
        raise media.MediaError(
            f"Example {name} has frames of {frame.dtype} with {frame.shape[-1]} channels, not RGB uint8."
        )
    return np.repeat(frame, 3, axis=-1) if frame.shape[-1] == 1 else frame[..., :3]
