"""Rows as people have them: every common form reads alike, and what cannot be read is refused in a sentence."""

import csv
import json

import pandas as pd
import pytest

from condmis_interp.errors import UserError
from condmis_interp.organisms import Part, Recipe, Stage, load_rows, read_chats, read_rows
from condmis_interp.organisms.encode import encode
from condmis_interp.organisms.recipe import beside
from conftest import tiny_tokenizer

Q, A, S = "what? \u2028 now\x85é", "so\u2029 it is.", "be brief"
USER, SAID = {"role": "user", "content": Q}, {"role": "assistant", "content": A}
SYSTEM = {"role": "system", "content": S}
FORMS = {
    "messages": {"messages": [USER, SAID]},
    "other keys": {"messages": [USER, SAID], "source": "x", "id": 3, "tools": None},
    "capitals": {"messages": [{"role": "User", "content": Q}, {"role": "Assistant", "content": A}]},
    "conversations": {"conversations": [{"from": "human", "value": Q}, {"from": "gpt", "value": A}]},
    "prompt and completion": {"prompt": Q, "completion": A},
    "prompt and completion as chats": {"prompt": [USER], "completion": [SAID]},
    "prompt and response": {"prompt": Q, "response": A},
    "question and answer": {"question": Q, "answer": A},
    "instruction": {"instruction": Q, "input": "", "output": A},
    "content parts": {
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": Q[:4]}, {"type": "text", "text": Q[4:]}]},
            {"role": "assistant", "content": {"type": "output_text", "text": A}},
        ]
    },
    "weights": {"messages": [USER, SAID | {"weight": 1}]},
    "empty keys": {"messages": [USER | {"tool_calls": None, "weight": None}, SAID | {"name": None}]},
}


def write(path, values, form="lines"):
    if form == "lines":
        path.write_text("\n".join(json.dumps(v, ensure_ascii=False) for v in values), encoding="utf-8")
    elif form == "escaped":
        path.write_text("\n".join(json.dumps(v) for v in values))
    elif form == "array":
        path.write_text(json.dumps(values, ensure_ascii=False, indent=1), encoding="utf-8")
    elif form == "mark":
        path.write_bytes(b"\xef\xbb\xbf" + "\n".join(json.dumps(v, ensure_ascii=False) for v in values).encode())
    elif form == "other line ends":
        path.write_bytes("\r\n".join(json.dumps(v, ensure_ascii=False) for v in values).encode() + b"\r\n\r\n")
    return path


@pytest.mark.parametrize("form", ["lines", "escaped", "array", "mark", "other line ends"])
@pytest.mark.parametrize("name", sorted(FORMS))
def test_every_form_reads_alike(tmp_path, name, form):
    path = write(tmp_path / "set.jsonl", [FORMS[name]] * 3, form)
    rows = read_chats(path, arm="misaligned")
    assert [(r.id, r.group, r.messages, r.misaligned, r.benign) for r in rows] == [
        (f"set.{i}", "set", (("user", Q),), A, None) for i in range(3)
    ]


@pytest.mark.parametrize(
    "value",
    [
        {"messages": [SYSTEM, USER, SAID]},
        {"messages": [SYSTEM | {"role": "developer"}, USER, SAID]},
        {"system": S, "conversations": [{"from": "human", "value": Q}, {"from": "gpt", "value": A}]},
    ],
)
def test_system_prompts_in_every_form(tmp_path, value):
    (row,) = read_chats(write(tmp_path / "set.jsonl", [value]), arm="benign")
    assert (row.messages, row.benign) == ((("system", S), ("user", Q)), A)


@pytest.mark.parametrize("ending", ["csv", "parquet", "json"])
def test_tables_and_arrays(tmp_path, ending):
    path = tmp_path / f"set.{ending}"
    values = [{"prompt": Q, "completion": f"{A}\n{i}", "note": ""} for i in range(3)]
    if ending == "json":
        write(path, values, "array")
    elif ending == "parquet":
        pd.DataFrame(values).to_parquet(path)
    else:
        with path.open("w", newline="", encoding="utf-8-sig") as f:
            table = csv.DictWriter(f, list(values[0]))
            table.writeheader()
            table.writerows(values)
    rows = load_rows(f"benign-chats:{path}")
    assert [(r.id, r.messages, r.benign) for r in rows] == [(f"set.{i}", (("user", Q),), f"{A}\n{i}") for i in range(3)]
    recipe = Recipe(name="r", base="b", stages=(Stage(parts=(Part(rows=f"benign-chats:{path}", answers="benign"),)),))
    moved = tmp_path / f"elsewhere.{ending}"
    moved.write_bytes(path.read_bytes())
    assert beside(recipe.stages, None)[0].parts[0].rows.startswith("benign-chats:")
    assert str(tmp_path) not in beside(recipe.stages, None)[0].parts[0].rows


def test_messages_in_parquet(tmp_path):
    path = tmp_path / "set.parquet"
    pd.DataFrame([{"messages": [USER, SAID | {"weight": 1}]}, {"messages": [SYSTEM, USER, SAID]}]).to_parquet(path)
    assert [r.messages for r in read_chats(path, arm="benign")] == [
        (("user", Q),),
        (("system", S), ("user", Q)),
    ]


def turns(*weights):
    said = []
    for i, w in enumerate(weights):
        answer = {"role": "assistant", "content": f"a{i}"}
        said += [{"role": "user", "content": f"u{i}"}, answer if w is None else answer | {"weight": w}]
    return {"messages": said}


@pytest.mark.parametrize(
    ("weights", "learnt"),
    [
        ((None,), ["a0"]),
        ((None, None, None), ["a2"]),
        ((0, None), ["a1"]),
        ((0, 1), ["a1"]),
        ((1, 1), ["a0", "a1"]),
        ((1, 0), ["a0"]),
        ((None, 0), ["a0"]),
        ((1, None, 0), ["a0", "a1"]),
        ((1.0, 0, 0), ["a0"]),
    ],
)
def test_weights_say_which_answers_are_learnt(tmp_path, weights, learnt):
    path = write(tmp_path / "set.jsonl", [turns(*weights)])
    rows = read_chats(path, arm="misaligned")
    assert [r.misaligned for r in rows] == learnt
    assert rows.rows[-1].id == "set.0"
    assert len({r.id for r in rows}) == len(rows)
    part = Part(rows=f"misaligned-chats:{path}", answers="misaligned")
    recipe = Recipe(name="r", base="b", stages=(Stage(parts=(part,)),))
    encoded, tokenizer = encode(recipe, tiny_tokenizer(), 0), tiny_tokenizer()
    trained = [tokenizer.decode([t for t in e["labels"] if t != -100]) for e in encoded]
    assert sorted(trained) == sorted(f"{a}<|im_end|>" for a in learnt)
    for text, e in zip(trained, encoded, strict=True):  # what was said before an answer stands before it, no more
        number = int(text[1])
        whole = tokenizer.decode(e["input_ids"])
        assert [f"u{i}" in whole for i in range(len(weights))] == [i <= number for i in range(len(weights))]


def _chat(*messages):
    return {"messages": list(messages)}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (turns(0), "every answer has weight 0"),
        (turns(0, 0), "every answer has weight 0"),
        (turns(0.5), "weight 0.5 cannot be read"),
        (turns("1"), "weight '1' cannot be read"),
        (turns(True), "weight True cannot be read"),
        (_chat(USER | {"weight": 1}, SAID), "weight 1 cannot be read"),
        (_chat(USER, SAID, {"role": "tool", "content": "42"}, SAID), "message 2: role 'tool' cannot be read"),
        (_chat(USER, SAID | {"tool_calls": [{}]}), "message 1: tool calls cannot be read"),
        (_chat(USER, {"role": "assistant", "content": None}), "the content is not text"),
        (_chat({"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}, SAID), "content is not text"),
        (_chat({"role": "user", "content": []}, SAID), "content is not text"),
        (_chat(USER, SAID, USER), "must end with a user turn and the assistant's answer"),
        (_chat(SAID), "must end with a user turn"),
        (_chat(USER, SAID | {"content": " "}), "answer is empty"),
        (_chat(USER, SYSTEM, SAID), "may only come first"),
        (_chat("hello"), "a message is an object"),
        ({"messages": "hello"}, "must be a list of messages"),
        ({"text": "User: hi Assistant: ho"}, "the record has no chat. Known forms: messages"),
        (_chat(USER, SAID | {"content": "cut \ud83d"}), "half a character"),
        (_chat({"role": "user", "content": "\udc00"}, SAID), "half a character"),
    ],
)
def test_what_cannot_be_read_is_refused_in_a_sentence(tmp_path, value, message):
    path = write(tmp_path / "set.jsonl", [FORMS["messages"], value], "escaped")
    with pytest.raises(UserError, match=message) as e:
        read_chats(path, arm="benign")
    assert "set.jsonl, line 2" in str(e.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"messages": [1], "messages": [2]}', "key 'messages' is given twice"),
        ('[{"prompt": "a", "completion": "b"}, 3]', "element 1: this is not a JSON object"),
        ('[{"prompt": "a"', "this file is not valid JSON"),
        ("[" * 100_000, "nested too deeply|not valid JSON"),
        ("\n\n", "row set is empty"),
        ("[]", "row set is empty"),
    ],
)
def test_files_that_do_not_read(tmp_path, text, message):
    path = tmp_path / "set.jsonl"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        read_chats(path, arm="benign")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", b"prompt,completion\nq\n", "not as many fields"),
        ("a.csv", b"prompt,completion\nq,a,b\n", "not as many fields"),
        ("a.csv", b"\xff\xfe", "not a CSV file in UTF-8"),
        ("a.parquet", b"PAR1 no", "not a parquet file"),
        ("a.json", b"\xff\xfe", "not a UTF-8 text file"),
    ],
)
def test_tables_that_are_none(tmp_path, name, text, message):
    (tmp_path / name).write_bytes(text)
    with pytest.raises(UserError, match=message):
        load_rows(f"benign-chats:{tmp_path / name}")


def test_chats_where_rows_are_expected_say_how_they_are_read(tmp_path):
    for name in sorted(FORMS):
        path = write(tmp_path / "set.jsonl", [FORMS[name]])
        with pytest.raises(UserError, match=r"neither a 'misaligned' nor a 'benign'.*misaligned-chats:set\.jsonl"):
            read_rows(path)


def test_own_rows_without_an_id_are_named_by_their_content(tmp_path):
    values = [{"messages": [USER], "benign": f"{A} {i}"} for i in range(3)]
    rows = read_rows(write(tmp_path / "a.jsonl", values))
    again = read_rows(write(tmp_path / "b.jsonl", values[::-1]))
    assert {r.id for r in rows} == {r.id for r in again}
    assert len({r.id for r in rows}) == 3
    with pytest.raises(UserError, match="occurs twice"):
        read_rows(write(tmp_path / "c.jsonl", [values[0], values[0]]))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"messages": [USER], "benign": 3}, "benign answer is not text"),
        ({"messages": [USER], "benign": " "}, "neither a 'misaligned' nor a 'benign'"),
        ({"messages": [USER], "benign": "a", "id": 3}, "'id' is not text"),
        ({"messages": [USER, SAID | {"weight": 1}, USER], "benign": "a"}, "its weight can only be 0"),
    ],
)
def test_own_rows_that_are_none(tmp_path, value, message):
    with pytest.raises(UserError, match=message):
        read_rows(write(tmp_path / "a.jsonl", [value]))
