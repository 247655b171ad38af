"""Configurations: frozen dataclasses in the program, `ConfigDict` in config files, JSON in checkpoints and golden files.

Every room owns its own `@dataclass(frozen=True)` and checks values in `__post_init__`. This file knows none of them: it
turns any such class into an `ml_collections.ConfigDict` and back by its type hints, so that a misspelt key or a wrong
type is an error that names the field. Nothing here imports jax.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import importlib.util
import inspect
import json
import types
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from ml_collections import ConfigDict

from walt.untrusted import parse_json

T = TypeVar("T")


class ConfigError(ValueError):
    """A configuration cannot be used; the message names the field or file and says what would be right."""


# ---- dataclass <-> ConfigDict


def to_config_dict(dataclass_obj: Any) -> ConfigDict:
    """The nested `ConfigDict` of a dataclass instance; tuples stay tuples, nested dataclasses become nested dicts."""
    if not dataclasses.is_dataclass(dataclass_obj) or isinstance(dataclass_obj, type):
        raise ConfigError(f"to_config_dict expects an instance of a dataclass, got {_describe(dataclass_obj)}")
    return ConfigDict(_plain(dataclass_obj))


def from_config_dict(cls: type[T], config_dict: Mapping[str, Any] | ConfigDict) -> T:
    """An instance of the dataclass `cls`, checked against its type hints.

    Absent keys take the dataclass's defaults. An unknown key, a missing required key, a wrong type and a value that the
    class itself refuses each raise `ConfigError` with the dotted path of the field. An int is accepted where a float is
    expected and a list where a tuple is.
    """
    return _build(cls, _as_mapping(config_dict), "")


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        hints = typing.get_type_hints(type(value))
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value) if field.init}
        # `rate=1` and `rate=1.0` are the same config: they must not differ in a golden file or refuse a resume.
        return {
            name: float(child) if type(child) is int and _is_float(hints[name]) else _plain(child)
            for name, child in fields.items()
        }
    if isinstance(value, (Mapping, ConfigDict)):
        return {key: _plain(child) for key, child in _as_mapping(value).items()}
    if isinstance(value, (tuple, list)):
        return tuple(_plain(child) for child in value)
    return value


def _is_float(hint: Any) -> bool:
    return hint is float or (
        float in typing.get_args(hint) and int not in typing.get_args(hint) and typing.get_origin(hint) is not tuple
    )


def _as_mapping(value: Mapping[str, Any] | ConfigDict) -> Mapping[str, Any]:
    return dict(value.items()) if isinstance(value, ConfigDict) else value


def _build(cls: type[T], values: Mapping[str, Any], path: str) -> T:
    hints = typing.get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}  # type: ignore[arg-type]
    for key in values:
        if key not in fields:
            raise ConfigError(f"unknown config key {_join(path, key)!r}{nearest(key, fields, prefix=path)}")
    for name, field in fields.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and name not in values:
            raise ConfigError(f"config key {_join(path, name)!r} is missing; {cls.__name__} has no default for it")
    arguments = {name: _convert(hints[name], value, _join(path, name)) for name, value in values.items()}
    try:
        return cls(**arguments)
    except ConfigError as error:
        if not path:
            raise
        raise ConfigError(f"{path}: {error}") from error


def _convert(hint: Any, value: Any, path: str) -> Any:
    """`value` as an instance of the type hint, or `ConfigError`."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any or hint is object:
        return value
    if origin in (typing.Union, types.UnionType):
        return _convert_union(arguments, value, path)
    if origin is typing.Literal:
        if not any(value == option and type(value) is type(option) for option in arguments):
            hint_text = nearest(value, arguments) if isinstance(value, str) else ""
            raise ConfigError(f"{path} must be one of {', '.join(map(repr, arguments))}, got {value!r}{hint_text}")
        return value
    if dataclasses.is_dataclass(hint):
        if isinstance(value, hint):  # type: ignore[arg-type]
            return value
        if not isinstance(value, (Mapping, ConfigDict)):
            raise _type_error(path, f"a section with the keys of {hint.__name__}", value)  # type: ignore[union-attr]
        return _build(hint, _as_mapping(value), path)  # type: ignore[arg-type]
    if hint is tuple or origin is tuple:
        return _convert_tuple(arguments, value, path)
    if hint is dict or origin in (dict, Mapping):
        if not isinstance(value, (Mapping, ConfigDict)):
            raise _type_error(path, "a dict", value)
        child = arguments[1] if arguments else Any
        return {key: _convert(child, item, _join(path, key)) for key, item in _as_mapping(value).items()}
    return _convert_scalar(hint, value, path)


def _convert_union(options: tuple[Any, ...], value: Any, path: str) -> Any:
    if value is None and type(None) in options:
        return None
    options = tuple(option for option in options if option is not type(None))
    if len(options) == 1:
        return _convert(options[0], value, path)
    errors = []
    for option in options:
        try:
            return _convert(option, value, path)
        except ConfigError as error:
            errors.append(str(error))
    raise ConfigError("; or ".join(errors))


def _convert_tuple(arguments: tuple[Any, ...], value: Any, path: str) -> tuple[Any, ...]:
    if not isinstance(value, (tuple, list)):
        raise _type_error(path, "a tuple", value)
    if not arguments:
        return tuple(value)
    if len(arguments) == 2 and arguments[1] is Ellipsis:
        arguments = (arguments[0],) * len(value)
    if len(arguments) != len(value):
        raise ConfigError(f"{path} must have {len(arguments)} entries, got {len(value)}: {tuple(value)!r}")
    return tuple(_convert(hint, item, f"{path}[{i}]") for i, (hint, item) in enumerate(zip(arguments, value)))


def _convert_scalar(hint: Any, value: Any, path: str) -> Any:
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    # bool is a subclass of int in Python, but `num_steps=True` is a mistake.
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise _type_error(path, f"{_article(hint.__name__)} {hint.__name__}", value)
    return value


# ---- files, overrides


def load(name_or_path: str) -> ConfigDict:
    """The `ConfigDict` of a shipped config (`"t2v/atari:mini"`) or of a config file (`"my/config.py:variant"`).

    The file's `get_config(variant)` is called, with `""` when no variant is given. Config files are Python code: load
    only those you trust.
    """
    path, variant = _locate(name_or_path)
    spec = importlib.util.spec_from_file_location(f"walt_config_{path.stem}", path)
    assert spec is not None and spec.loader is not None  # the suffix is .py
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except SyntaxError as error:
        raise ConfigError(f"config file {path} is not valid Python: line {error.lineno}: {error.msg}") from error
    get_config = getattr(module, "get_config", None)
    if not callable(get_config):
        raise ConfigError(f"config file {path} defines no function get_config(variant) that returns a ConfigDict")
    takes_variant = bool(inspect.signature(get_config).parameters)
    if variant and not takes_variant:
        raise ConfigError(f"config file {path} has no variants, but {variant!r} was asked for")
    config = get_config(variant) if takes_variant else get_config()
    if not isinstance(config, ConfigDict):
        raise ConfigError(f"get_config in {path} must return a ConfigDict, got {_describe(config)}")
    return config


def shipped_configs() -> list[str]:
    """The names of the configs that come with the package, such as `"t2v/atari"`, sorted."""
    root = _configs_root()
    files = (file.relative_to(root) for file in root.rglob("*.py")) if root.is_dir() else ()
    return sorted(file.with_suffix("").as_posix() for file in files if not file.name.startswith("_"))


def _configs_root() -> Path:
    # `configs/` of a checkout is installed as `walt/_configs`; an editable install has only the former.
    package = Path(__file__).resolve().parent
    installed = package / "_configs"
    return installed if installed.is_dir() else package.parent / "configs"


def _locate(name_or_path: str) -> tuple[Path, str]:
    stem, colon, variant = name_or_path.rpartition(":")
    name, variant = (stem, variant) if colon and "/" not in variant else (name_or_path, "")
    if name.endswith(".py"):
        path = Path(name).expanduser()
        if not path.is_file():
            raise ConfigError(f"config file {name} does not exist")
        return path, variant
    names = shipped_configs()
    if name not in names:
        listing = f"shipped: {', '.join(names)}; " if names else ""
        hint = nearest(name, names) if names else ""
        raise ConfigError(f"no shipped config is called {name!r}{hint} ({listing}a config file's path ends in .py)")
    return _configs_root() / f"{name}.py", variant


def apply_overrides(config: ConfigDict, overrides: Mapping[str, str]) -> ConfigDict:
    """A copy of `config` with dotted keys set from text, as in `{"training.num_steps": "100"}`.

    The text is read as the type of the value it replaces (a tuple as `1,2,3`; `None` is always None, of a section as well). A section
    that is None is switched on by setting one of its keys. An unknown key raises `ConfigError` with the nearest valid one.
    """
    config = ConfigDict(_plain(config))
    opened = set()  # optional sections that were None; what they may hold is checked when the config is parsed
    for dotted, text in overrides.items():
        *sections, last = dotted.split(".")
        node, path = config, ""
        for key in sections:
            parent, node, path = node, _child(node, key, path, dotted), _join(path, key)
            if node is None:
                opened.add(path)
                with parent.ignore_type():
                    node = parent[key] = ConfigDict()
        current = node.get(last) if path in opened else _child(node, last, path, dotted)
        if isinstance(current, ConfigDict) and text != "None":  # whether it may be None, parsing will tell
            raise ConfigError(f"config key {dotted!r} is a section; set one of its keys: {', '.join(current.keys())}")
        with node.ignore_type():
            node[last] = _parse(text, current, dotted)
    return config


def _child(node: Any, key: str, path: str, dotted: str) -> Any:
    if not isinstance(node, ConfigDict):
        raise ConfigError(f"config key {dotted!r} does not exist: {path!r} is {node!r}, not a section")
    if key not in node:
        raise ConfigError(f"unknown config key {_join(path, key)!r}{nearest(key, node.keys(), prefix=path)}")
    return node[key]


def _parse(text: str, current: Any, path: str) -> Any:
    if text == "None":
        return None
    if isinstance(current, str):
        return text
    is_bool = text.lower() in ("true", "false")
    if isinstance(current, bool) and not is_bool:
        raise ConfigError(f"{path} must be true or false, got {text!r}")
    if is_bool and (current is None or isinstance(current, bool)):
        return text.lower() == "true"
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        value = text
    if current is None:
        return value
    if isinstance(current, tuple) and not isinstance(value, (tuple, list)):
        value = (value,)
    expected = {int: "an int", float: "a float", tuple: "a tuple"}.get(type(current), type(current).__name__)
    if isinstance(current, float) and type(value) is int:
        value = float(value)
    if isinstance(value, list):
        value = tuple(value)
    if type(value) is not type(current):
        raise ConfigError(f"{path} must be {expected}, got {text!r}")
    return value


# ---- JSON, differences


def to_json(config_dict: ConfigDict) -> str:
    """Indented JSON with sorted keys: equal configs give equal text.

    Tuples become lists; anything JSON cannot hold raises `ConfigError`.
    """
    try:
        return json.dumps(_plain(config_dict), indent=2, sort_keys=True, allow_nan=False) + "\n"
    except (TypeError, ValueError) as error:
        raise ConfigError(f"config cannot be written as JSON: {error}") from error


def from_json(text: str) -> ConfigDict:
    """The inverse of `to_json`; every JSON list becomes a tuple."""
    try:
        values = parse_json(text)
    except ValueError as error:
        raise ConfigError(f"stored config is not valid JSON: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"stored config must be a JSON object, got {_describe(values)}")
    try:
        return ConfigDict(_plain(values))
    except Exception as error:  # names that no config can have, such as those with dots
        raise ConfigError(f"stored config is none: {error}") from error


def diff(old: ConfigDict, new: ConfigDict) -> list[str]:
    """One line per differing field, `"transformer.width: 192 -> 256"`, sorted by dotted path; empty when equal."""
    before, after = _flatten(_plain(old)), _flatten(_plain(new))
    show = lambda values, key: repr(values[key]) if key in values else "(absent)"  # noqa: E731
    changed = [key for key in sorted(before | after) if show(before, key) != show(after, key)]
    return [f"{key}: {show(before, key)} -> {show(after, key)}" for key in changed]


def _flatten(values: dict[str, Any], path: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flatten(value, _join(path, key)) if isinstance(value, dict) and value else {_join(path, key): value}
    return flat


# ---- messages


def nearest(name: Any, candidates: Iterable[Any], prefix: str = "") -> str:
    """`"; did you mean 'width'?"` for the closest candidate, or the full list of valid names when nothing is close."""
    names = [str(candidate) for candidate in candidates]
    close = difflib.get_close_matches(str(name), names, n=1, cutoff=0.5)
    if close:
        return f"; did you mean {_join(prefix, close[0])!r}?"
    return f"; valid: {', '.join(names)}" if 0 < len(names) <= 40 else ""


def _join(path: str, key: Any) -> str:
    return f"{path}.{key}" if path else str(key)


def _article(name: str) -> str:
    return "an" if name[:1] in "aeio" else "a"


def _describe(value: Any) -> str:
    return f"{value!r} ({type(value).__name__})"


def _type_error(path: str, expected: str, value: Any) -> ConfigError:
    return ConfigError(f"{path} must be {expected}, got {_describe(value)}")
