"""Files of lines, written by programs that are killed and on disks that are full."""

import contextlib
import resource

import pytest

from walt import jsonlines


@contextlib.contextmanager
def no_file_larger_than(size):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_lines_are_added_and_read(tmp_path):
    file = tmp_path / "list.jsonl"
    jsonlines.append(file, [{"a": 1}, {"b": "\u2028\n"}])
    jsonlines.append(file, [{"c": None}])
    assert list(jsonlines.read(file)) == [{"a": 1}, {"b": "\u2028\n"}, {"c": None}]
    assert file.read_text().count("\n") == 3


def test_a_line_that_was_cut_short_spoils_no_other(tmp_path):
    file = tmp_path / "list.jsonl"
    file.write_text('{"a": 1}\n{"a": 2, "re')
    jsonlines.append(file, [{"a": 3}])
    assert list(jsonlines.read(file)) == [{"a": 1}, {"a": 3}]


def test_a_full_disk_leaves_no_half_line_and_is_named(tmp_path):
    file = tmp_path / "list.jsonl"
    jsonlines.append(file, [{"a": 1}])
    before = file.read_bytes()
    with no_file_larger_than(len(before) + 4), pytest.raises(OSError, match=r"list\.jsonl"):
        jsonlines.append(file, [{"a": 2}])
    assert file.read_bytes() == before


def test_a_file_is_rewritten_as_a_whole_or_left_alone(tmp_path):
    file = tmp_path / "run" / "list.jsonl"
    jsonlines.rewrite(file, [{"a": 1}, {"a": 2}])
    written = file.stat().st_mtime_ns
    jsonlines.rewrite(file, [{"a": 1}, {"a": 2}])
    assert file.stat().st_mtime_ns == written
    with no_file_larger_than(4), pytest.raises(OSError, match=r"list\.jsonl"):
        jsonlines.rewrite(file, [{"a": 3}])
    assert list(file.parent.iterdir()) == [file]
    assert list(jsonlines.read(file)) == [{"a": 1}, {"a": 2}]
    jsonlines.rewrite(file, [])
    assert list(jsonlines.read(file)) == []


def test_a_file_in_a_bucket_keeps_its_lines(bucket):
    file = "gs://runs/film/list.jsonl"
    jsonlines.rewrite(file, [{"a": 1}])
    for number in (2, 3):
        jsonlines.append(file, [{"a": number}])
    assert list(jsonlines.read(file)) == [{"a": 1}, {"a": 2}, {"a": 3}]
    local = bucket.folder / "runs" / "film" / "list.jsonl"
    assert list(local.parent.iterdir()) == [local]
    local.write_text('{"a": 1}\n{"a": 2, "re')
    jsonlines.append(file, [{"a": 3}])
    assert list(jsonlines.read(file)) == [{"a": 1}, {"a": 3}]
