from pathlib import Path

import pytest

from walt.data.caption_files import Caption, find_table, read_lines, read_table
from walt.data.media import MediaError


def test_a_table_in_either_form(tmp_path: Path) -> None:
    assert find_table(tmp_path) is None
    jsonl, csv = tmp_path / "captions.jsonl", tmp_path / "captions.csv"
    jsonl.write_text('{"file": "a/b.mp4", "caption": " one "}\n\n{"file": "a/b.mp4", "caption": "two", "label": "x"}\n')
    assert find_table(tmp_path) == jsonl
    csv.write_text('\ufefffile,caption,label\na/b.mp4, one ,\na/b.mp4,"two",x\n', encoding="utf-8")
    assert find_table(tmp_path) == csv
    assert read_table(jsonl) == read_table(csv) == {"a/b.mp4": [Caption("one", ""), Caption("two", "x")]}


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("a.jsonl", b'{"file": "a.mp4", "caption": "x"}\n{"file": 5, "caption": "x"}', r"Entry 2 of .*a\.jsonl must"),
        ("a.jsonl", b'{"file": ["a.mp4"], "caption": "x"}', "Entry 1 of .* both of them text"),
        ("a.jsonl", b'{"file": "a.mp4", "caption": {"text": "x"}}', "Entry 1 of .* both of them text"),
        ("a.jsonl", b'["a.mp4", "x"]', "Entry 1 of .* must have a `file` and a `caption`"),
        ("a.jsonl", b"{oops", r"a\.jsonl cannot be read"),
        ("a.csv", b"name,text\na.mp4,x\n", "Entry 1 of .* must have a `file` and a `caption`"),
        ("a.csv", b"file,caption\na.mp4, \n", "Entry 1 of .* must have a `file` and a `caption`"),
        ("a.csv", b"file,caption\na.mp4,caf\xe9\n", r"a\.csv cannot be read"),
        ("a.txt", b"x", r"a\.txt must end in \.csv or \.jsonl"),
    ],
)
def test_mistakes_in_tables(tmp_path: Path, name: str, content: bytes, problem: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(MediaError, match=problem):
        read_table(tmp_path / name)


def test_lines_of_a_text_file(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("\n one \n\ntwo")
    assert read_lines(file) == ["one", "two"]
    file.write_bytes(b"caf\xe9")
    with pytest.raises(MediaError, match=r"a\.txt is not UTF-8 text"):
        read_lines(file)
