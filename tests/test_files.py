"""Files people write: what a loader would pass over in silence is an error with its place."""

import time

import pytest

from condmis_interp.errors import UserError
from condmis_interp.files import LARGEST_YAML, read_mapping, read_yaml
from condmis_interp.study import Study


@pytest.mark.parametrize(
    ("text", "key", "lines"),
    [
        ("name: a\nbase: b\nname: c\n", "name", (1, 3)),
        ("a:\n  b: 1\n  c: 2\n  b: 1\n", "b", (2, 4)),
        ("- {x: 1}\n- {y: 1,\n   y: 2}\n", "y", (2, 3)),
        ("a: &x {k: 1}\nb:\n  <<: *x\n  m: 1\n  m: 2\n", "m", (4, 5)),
        ("1: a\n2: b\n1: c\n", "1", (1, 3)),
        ("'q': a\nq: b\n", "q", (1, 2)),
    ],
)
def test_a_key_given_twice(tmp_path, text, key, lines):
    (tmp_path / "f.yaml").write_text(text)
    with pytest.raises(UserError) as e:
        read_yaml(tmp_path / "f.yaml")
    assert f"key {key!r} is given twice, in lines {lines[0]} and {lines[1]}" in str(e.value)
    assert "f.yaml" in str(e.value)


def test_what_is_no_key_given_twice(tmp_path):
    (tmp_path / "f.yaml").write_text("a: &x {k: 1}\nb: {<<: *x, k: 2}\nc: {k: 3}\n1: i\n'1': s\n")
    assert read_yaml(tmp_path / "f.yaml") == {"a": {"k": 1}, "b": {"k": 2}, "c": {"k": 3}, 1: "i", "1": "s"}


@pytest.mark.parametrize("line", ["- {id: x, question: what, pairs: [1, 2]}\n", "k: [", "a"])
def test_a_large_file_is_refused_at_once(tmp_path, line):
    (tmp_path / "f.yaml").write_text(line * (LARGEST_YAML * 6 // len(line)))
    started = time.process_time()
    with pytest.raises(UserError, match=r"6\.0 MB"):
        Study.from_yaml(tmp_path / "f.yaml")
    assert time.process_time() - started < 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('a: "cut \\ud83d"\n', "half a character|invalid Unicode"),
        ('"\\udc00": 1\n', "half a character|invalid Unicode"),
        ("a: [" * 5000, "nested too deeply|not valid YAML"),
        ("a: 2001-99-99\n", "not valid YAML"),
        ("{a: 1", "not valid YAML"),
    ],
)
def test_a_file_that_does_not_read(tmp_path, text, message):
    (tmp_path / "f.yaml").write_text(text)
    with pytest.raises(UserError, match=message):
        read_yaml(tmp_path / "f.yaml")


def test_marks_and_line_ends_of_other_systems(tmp_path):
    (tmp_path / "f.yaml").write_bytes(b"\xef\xbb\xbfname: a\r\nbase: b\r\n")
    assert read_mapping(tmp_path / "f.yaml", what="a mapping") == {"name": "a", "base": "b"}


def test_a_file_that_contains_itself(tmp_path):
    (tmp_path / "f.yaml").write_text("a: &a [1, *a]\n")
    assert read_yaml(tmp_path / "f.yaml")["a"][0] == 1
