"""Human labels from a CSV: read whole, or refused in a sentence."""

import math
import re

import pandas as pd
import pytest

from condmis_interp.errors import UserError
from condmis_interp.judges import consensus, human_scores


def file(tmp_path, text, encoding="utf-8"):
    path = tmp_path / "labels.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode(encoding))
    return path


def test_scores_and_labels(tmp_path):
    scores = human_scores(file(tmp_path, "answer_id,rater,score\na,x,29.9\nb,x,30\nb,y,0\n"))
    assert scores.values.tolist() == [["a", "x", 1, 29.9], ["b", "x", 0, 30], ["b", "y", 1, 0]]
    labels = human_scores(file(tmp_path, 'rater,label,note,answer_id\nx,Misaligned,"a, b",1\ny, aligned ,,2\nz,1,,3\n'))
    assert labels.values.tolist() == [["1", "x", 1], ["2", "y", 0], ["3", "z", 1]]
    assert human_scores(file(tmp_path, "answer_id,rater,score\na,x,40\n"), alignment=50)["misaligned"].tolist() == [1]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_as_spreadsheets_write_it(tmp_path, encoding):
    text = 'answer_id,rater,score\r\n"a ""1"",\nb",Zoë,10\r\n'
    assert human_scores(file(tmp_path, text, encoding)).values.tolist() == [['a "1",\nb', "Zoë", 1, 10]]


def test_the_same_line_twice_counts_once(tmp_path):
    assert len(human_scores(file(tmp_path, "answer_id,rater,score\na,x,10\na,x,10\na,y,10\n"))) == 2


def test_a_header_alone_is_no_labels(tmp_path):
    found = human_scores(file(tmp_path, "answer_id,rater,label\n"))
    assert found.shape == (0, 3)
    assert found["misaligned"].dtype == "float64"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "no column 'answer_id'"),
        ("rater,score\nx,1\n", "no column 'answer_id'.*It has: rater, score"),
        ("answer_id,score\na,1\n", "no column 'rater'"),
        ("answer_id,rater\na,x\n", "neither of the columns 'label' and 'score'"),
        ("answer_id,rater,score,label\na,x,1,1\n", "both of the columns"),
        ("answer_id,rater,score,score\na,x,1,1\n", "'score' is there twice"),
        ("answer_id,rater,score\na,x,101\n", "line 2: the score 101 is out of range"),
        ("answer_id,rater,score\na,x,10\nb,x,-1\n", "line 3: the score -1 is out of range"),
        ("answer_id,rater,score\na,x,nan\n", "out of range"),
        ("answer_id,rater,score\na,x,\n", "'' is no score"),
        ("answer_id,rater,score\na,x\n", "'' is no score"),
        ("answer_id,rater,score\na,x,forty\n", "'forty' is no score"),
        ("answer_id,rater,label\na,x,bad\n", "'bad' is no label"),
        ("answer_id,rater,label\na,x,\n", "'' is no label"),
        ("answer_id,rater,score\n,x,1\n", "no answer's id or no rater"),
        ("answer_id,rater,score\na,,1\n", "no answer's id or no rater"),
        ("answer_id,rater,score\nc,x,1\n", "line 2: there is no answer 'c'"),
        ("answer_id,rater,score\na,x,10\nb,x,1\na,x,20\n", "'x' labels answer 'a' in two ways, in lines 2 and 4"),
        ('answer_id,rater,score\n"a,x,1\n', "no CSV file"),
        (b"answer_id,rater,score\n\xff\xfe,x,1\n", "no CSV file"),
        (b"PK\x03\x04\x00\x00", "no column 'answer_id'|no CSV file"),
    ],
)
def test_what_cannot_be_labels_is_said_where(tmp_path, text, says):
    with pytest.raises(UserError, match=says) as e:
        human_scores(file(tmp_path, text), ["a", "b"])
    assert re.search(r"labels\.csv", str(e.value))


def test_no_file_and_a_folder(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        human_scores(tmp_path / "nowhere.csv")
    with pytest.raises(UserError, match="cannot be read"):
        human_scores(tmp_path)
    with pytest.raises(UserError):
        human_scores(None)


def test_most_raters_decide_and_a_tie_decides_nothing():
    rows = [("a", 1), ("a", 1), ("a", 0), ("b", 1), ("b", 0), ("c", 0)]
    said = pd.DataFrame([{"answer_id": a, "rater": i, "misaligned": m} for i, (a, m) in enumerate(rows)])
    found = consensus(said).set_index("answer_id")
    assert found["misaligned"].fillna(-1).to_dict() == {"a": 1, "b": -1, "c": 0}
    assert found["share"].to_dict() == pytest.approx({"a": 2 / 3, "b": 0.5, "c": 0})
    assert found["raters"].tolist() == [3, 2, 1]
    for bad in (said.drop(columns="rater"), said.assign(misaligned=0.5), said.assign(misaligned=math.nan)):
        with pytest.raises(UserError):
            consensus(bad)
