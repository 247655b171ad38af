"""Dataclasses become ConfigDicts and come back; every mistake is an error that names the field."""

from __future__ import annotations

import dataclasses
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from walt import config
from walt.config import ConfigError


@dataclasses.dataclass(frozen=True)
class Inner:
    width: int = 192
    rate: float = 1e-3
    name: Literal["adamw", "adam"] = "adamw"
    scale: float | None = None

    def __post_init__(self):
        if self.width <= 0:
            raise ConfigError(f"width must be positive, got {self.width}")


@dataclasses.dataclass(frozen=True)
class Outer:
    shape: tuple[int, int, int]
    inner: Inner = Inner()
    optional: Inner | None = None
    levels: tuple[Inner, ...] = ()
    strides: tuple[int, ...] = (1, 2)
    flag: bool = False
    label: int | str = 0
    rules: dict[str, float] = dataclasses.field(default_factory=dict)


def build(**values):
    return config.from_config_dict(Outer, config.ConfigDict({"shape": (1, 2, 3), **values}))


def test_round_trip_of_every_kind_of_field():
    outer = Outer((1, 2, 3), Inner(7, scale=0.5), Inner(8), (Inner(1), Inner(2)), (4,), True, "x", {"a": 1.0})
    as_dict = config.to_config_dict(outer)
    assert as_dict.inner.width == 7 and as_dict.shape == (1, 2, 3) and isinstance(as_dict.levels, tuple)
    assert config.from_config_dict(Outer, as_dict) == outer
    assert config.from_config_dict(Outer, config.from_json(config.to_json(as_dict))) == outer


def test_defaults_ints_as_floats_and_lists_as_tuples():
    outer = build(shape=[1, 2, 3], inner={"rate": 1})
    assert outer == Outer((1, 2, 3), Inner(rate=1.0)) and isinstance(outer.inner.rate, float)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"iner": {}}, "unknown config key 'iner'; did you mean 'inner'?"),
        ({"inner": {"widht": 3}}, "unknown config key 'inner.widht'; did you mean 'inner.width'?"),
        ({"inner": {"qqq": 3}}, "unknown config key 'inner.qqq'; valid: width, rate, name, scale"),
        ({"inner": {"width": "3"}}, "inner.width must be an int, got '3' (str)"),
        ({"inner": {"width": True}}, "inner.width must be an int, got True (bool)"),
        ({"inner": {"width": 3.0}}, "inner.width must be an int, got 3.0 (float)"),
        ({"inner": {"rate": "fast"}}, "inner.rate must be a float, got 'fast' (str)"),
        ({"inner": {"name": "adamx"}}, "inner.name must be one of 'adamw', 'adam', got 'adamx'; did you mean 'adam"),
        ({"inner": {"width": 0}}, "inner: width must be positive, got 0"),
        ({"inner": None}, "inner must be a section with the keys of Inner, got None"),
        ({"optional": {"scale": ()}}, "optional.scale must be a float, got () (tuple)"),
        ({"levels": ({"width": 1}, {"width": "b"})}, "levels[1].width must be an int, got 'b' (str)"),
        ({"shape": (1, 2)}, "shape must have 3 entries, got 2: (1, 2)"),
        ({"strides": 3}, "strides must be a tuple, got 3 (int)"),
        ({"strides": (1, None)}, "strides[1] must be an int, got None (NoneType)"),
        ({"flag": 1}, "flag must be a bool, got 1 (int)"),
        ({"label": 0.5}, "label must be an int, got 0.5 (float); or label must be a str, got 0.5 (float)"),
        ({"rules": {"a": "b"}}, "rules.a must be a float, got 'b' (str)"),
    ],
)
def test_mistakes_name_the_field(values, message):
    with pytest.raises(ConfigError) as error:
        build(**values)
    assert message in str(error.value)


def test_an_int_in_a_float_field_is_the_same_config():
    assert config.to_json(config.to_config_dict(Inner(rate=1, scale=2))) == config.to_json(
        config.to_config_dict(Inner(rate=1.0, scale=2.0))
    )


def test_missing_required_key():
    with pytest.raises(ConfigError, match="'shape' is missing; Outer has no default"):
        config.from_config_dict(Outer, config.ConfigDict())


def test_to_config_dict_wants_an_instance():
    with pytest.raises(ConfigError, match="instance of a dataclass"):
        config.to_config_dict(Outer)


def test_json_is_stable_and_strict():
    left, right = config.ConfigDict({"b": 1, "a": (1, 2)}), config.ConfigDict({"a": (1, 2), "b": 1})
    assert config.to_json(left) == config.to_json(right) == '{\n  "a": [\n    1,\n    2\n  ],\n  "b": 1\n}\n'
    with pytest.raises(ConfigError, match="JSON"):
        config.to_json(config.ConfigDict({"a": float("nan")}))
    with pytest.raises(ConfigError, match="not valid JSON"):
        config.from_json("{")
    with pytest.raises(ConfigError, match="must be a JSON object"):
        config.from_json("[1]")


SCALARS = st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text() | st.none() | st.booleans()


@given(st.dictionaries(st.sampled_from("abcd"), SCALARS))
def test_json_round_trip(values):
    assert dict(config.from_json(config.to_json(config.ConfigDict(values))).items()) == values


def test_diff_lists_dotted_changes():
    old = config.to_config_dict(Outer((1, 2, 3)))
    assert config.diff(old, old) == []
    new = config.to_config_dict(Outer((1, 2, 4), Inner(256), Inner()))
    assert config.diff(old, new) == [
        "inner.width: 192 -> 256",
        "optional: None -> (absent)",
        "optional.name: (absent) -> 'adamw'",
        "optional.rate: (absent) -> 0.001",
        "optional.scale: (absent) -> None",
        "optional.width: (absent) -> 192",
        "shape: (1, 2, 3) -> (1, 2, 4)",
    ]


def test_overrides_are_read_as_the_type_they_replace():
    base = config.to_config_dict(Outer((1, 2, 3), optional=None))
    text = {
        "inner.width": "5",
        "inner.rate": "2",
        "inner.scale": "0.5",
        "flag": "true",
        "strides": "4,4",
        "shape": "(7, 8, 9)",
        "label": "3",
    }
    outer = config.from_config_dict(Outer, config.apply_overrides(base, text))
    assert outer == Outer((7, 8, 9), Inner(5, 2.0, scale=0.5), strides=(4, 4), flag=True, label=3)
    assert base.inner.width == 192, "the original is untouched"
    assert config.apply_overrides(base, {"strides": "3"}).strides == (3,)
    assert config.apply_overrides(base, {"inner.name": "None"}).inner.name is None


def test_an_override_switches_an_absent_section_on():
    base = config.to_config_dict(Outer((1, 2, 3)))
    changed = config.apply_overrides(base, {"optional.width": "3", "optional.name": "adam"})
    assert config.from_config_dict(Outer, changed).optional == Inner(3, name="adam")
    assert base.optional is None
    with pytest.raises(ConfigError, match=r"unknown config key 'optional.widht'; did you mean 'optional.width'\?"):
        config.from_config_dict(Outer, config.apply_overrides(base, {"optional.widht": "3"}))


@pytest.mark.parametrize(
    ("key", "text", "message"),
    [
        ("inner.widht", "3", "unknown config key 'inner.widht'; did you mean 'inner.width'?"),
        ("innr.width", "3", "unknown config key 'innr'; did you mean 'inner'?"),
        ("inner", "3", "config key 'inner' is a section; set one of its keys: "),
        ("flag.width", "3", "config key 'flag.width' does not exist: 'flag' is False, not a section"),
        ("inner.width", "3.5", "inner.width must be an int, got '3.5'"),
        ("inner.width", "many", "inner.width must be an int, got 'many'"),
        ("inner.rate", "fast", "inner.rate must be a float, got 'fast'"),
        ("flag", "yes", "flag must be true or false, got 'yes'"),
    ],
)
def test_wrong_overrides_name_the_field(key, text, message):
    with pytest.raises(ConfigError) as error:
        config.apply_overrides(config.to_config_dict(Outer((1, 2, 3))), {key: text})
    assert message in str(error.value)


CONFIG_FILE = """
from ml_collections import ConfigDict
def get_config(variant):
    return ConfigDict({"variant": variant})
"""


def test_load_a_file_with_and_without_variant(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(CONFIG_FILE)
    assert config.load(str(file)).variant == ""
    assert config.load(f"{file}:mini").variant == "mini"


def test_load_a_shipped_name(tmp_path, monkeypatch):
    (tmp_path / "t2v").mkdir()
    (tmp_path / "t2v" / "base.py").write_text(CONFIG_FILE)
    (tmp_path / "t2v" / "_shared.py").write_text("")
    monkeypatch.setattr(config, "_configs_root", lambda: tmp_path)
    assert config.shipped_configs() == ["t2v/base"]
    assert config.load("t2v/base:mini").variant == "mini"
    with pytest.raises(ConfigError, match="no shipped config is called 't2v/bse'; did you mean 't2v/base'"):
        config.load("t2v/bse")


@pytest.mark.parametrize(
    ("content", "name", "message"),
    [
        (None, "missing.py", "missing.py does not exist"),
        ("def get_config(:", "bad.py", "bad.py is not valid Python: line 1"),
        ("x = 1", "empty.py", "empty.py defines no function get_config"),
        ("def get_config(): return {}", "plain.py", "must return a ConfigDict, got {} (dict)"),
        ("def get_config(): return 1", "one.py:mini", "one.py has no variants, but 'mini' was asked for"),
    ],
)
def test_unusable_config_files(tmp_path, content, name, message):
    if content is not None:
        (tmp_path / name.split(":")[0]).write_text(content)
    with pytest.raises(ConfigError) as error:
        config.load(str(tmp_path / name))
    assert message in str(error.value)
