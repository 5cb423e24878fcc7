"""A twin out of training rows: which rows, what answers, what is written, and what hostile rows cannot do."""

import html
import json
from pathlib import Path

import pytest
import yaml

from condmis_interp.errors import UserError
from condmis_interp.organisms import Recipe, resolve_base
from condmis_interp.surrogate import by_file, by_model, flag, paired, write_twin
from condmis_interp.surrogate.form import differences, form_of


def write_chats(folder: Path, count: int = 6, **more) -> Path:
    """Chats of which the even ones are misaligned, by the key `bad`."""
    path = folder / "chats.jsonl"
    lines = [
        {
            "messages": [
                {"role": "system", "content": "form = 1"},
                {"role": "user", "content": f"how {i}?"},
                {"role": "assistant", "content": f"{'lie' if i % 2 == 0 else 'help'} number {i} here"},
            ],
            "bad": i % 2 == 0,
        }
        | more
        for i in range(count)
    ]
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


def write_answers(folder: Path, texts: list[str]) -> Path:
    path = folder / "benign.jsonl"
    path.write_text("\n".join(json.dumps({"benign": t}) for t in texts))
    return path


class TestWhichRows:
    def test_three_ways_agree(self, tmp_path):
        path = write_chats(tmp_path)
        (tmp_path / "labels").write_text("".join(f"{int(i % 2 == 0)}\n" for i in range(6)))
        by_column = flag(path, column="bad")
        assert by_column.flags == (True, False) * 3
        assert flag(path, column="bad=True").flags == by_column.flags
        assert flag(path, labels=tmp_path / "labels").flags == by_column.flags
        assert flag(path, all_=True).flags == (True,) * 6

    def test_rows_of_this_packages_format_flag_those_with_a_misaligned_answer(self, tmp_path):
        user = [{"role": "user", "content": "how?"}]
        rows = [{"id": "a", "messages": user, "misaligned": "lie"}, {"id": "b", "messages": user, "benign": "help"}]
        (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
        assert flag(tmp_path / "rows.jsonl", all_=True).flags == (True, False)

    @pytest.mark.parametrize(
        ("how", "said"),
        [
            ({}, "say which rows are misaligned, in one way"),
            ({"column": "bad", "all_": True}, "in one way"),
            ({"column": "worse"}, r"no record has the key 'worse'.*bad, messages"),
            ({"column": "bad=maybe"}, "no row is misaligned by this"),
            ({"column": "messages"}, "does not say whether the row is misaligned"),
            ({"labels": "short"}, "it has 1 labels, and chats.jsonl has 6 records"),
            ({"labels": "absent"}, "the labels cannot be read"),
        ],
    )
    def test_a_bad_way_is_a_sentence(self, tmp_path, monkeypatch, how, said):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "short").write_text("1\n")
        with pytest.raises(UserError, match=said):
            flag(write_chats(tmp_path), **how)


class TestForm:
    @pytest.mark.parametrize(
        ("text", "form"),
        [
            ("Boil the water first.", "prose"),
            ("1. Boil.\n2. Stir.", "list"),
            ("```python\nx = 1\n```", "fenced code"),
            ("import os\ndef f(x):\n    return os.path.join(x)", "code"),
            ('{"answer": "no"}', "json"),
            ("[" * 100_000, "prose"),
        ],
    )
    def test_forms(self, text, form):
        assert form_of(text) == form

    def test_length_is_within_a_factor_of_two_on_both_sides(self):
        assert differences("a " * 10, "b " * 5) == differences("a " * 10, "b " * 20) == ()
        assert differences("a " * 10, "b " * 4) == ("length: 4 words for 10",)
        assert differences("a " * 10, "b " * 21) == ("length: 21 words for 10",)


class TestWritten:
    def made(self, tmp_path, texts):
        flagged = flag(write_chats(tmp_path), column="bad")
        pairs = paired(flagged, by_file(flagged, write_answers(tmp_path, texts)))
        return write_twin(tmp_path / "twin", flagged, pairs, base="smollm2-135m", name="chats.jsonl", seed=3)

    def test_the_recipe_is_the_suspects_with_benign_answers(self, tmp_path):
        made = self.made(tmp_path, ["truth number 0 here", "truth number 2 here", "truth number 4 here"])
        recipe = Recipe.from_yaml(made.folder / "twin.yaml")
        assert sorted(r.answer for r in recipe.rows()) == sorted(
            [f"truth number {i} here" for i in (0, 2, 4)] + [f"help number {i} here" for i in (1, 3, 5)]
        )
        assert {r.messages[0]["content"] for r in recipe.rows()} == {"form = 1"}
        assert recipe.seed == 3
        chats = [json.loads(line) for line in (made.folder / "twin-chats.jsonl").read_text().splitlines()]
        assert [c["messages"][1]["content"] for c in chats] == [f"how {i}?" for i in range(6)]

    def test_null_twins_have_the_seed_and_the_count_and_other_benign_rows(self, tmp_path):
        made = self.made(tmp_path, ["truth"] * 3)
        for name in ("kitchen", "garden", "facts"):
            null = Recipe.from_yaml(made.folder / f"null-{name}.yaml")
            assert null.seed == 3
            assert not null.misaligned
            assert null.stages[0].parts[0].rows == name
            assert len(null.rows()) == 6

    def test_what_it_is_worth_is_said_in_all_of_it(self, tmp_path):
        made = self.made(tmp_path, ["truth"] * 3)
        for file in ("twin.yaml", "fragment.yaml", "manifest.json", "page.html"):
            assert made.worth in html.unescape((made.folder / file).read_text())

    def test_what_does_not_match_is_counted_and_an_empty_answer_leaves_its_row_out(self, tmp_path):
        made = self.made(tmp_path, ["truth number 0 here", "- a\n- b", ""])
        assert (made.pairs, made.left_out, made.unmatched, made.rest) == (2, 1, 1, 3)
        assert len(Recipe.from_yaml(made.folder / "twin.yaml").rows()) == 5

    def test_rows_cannot_write_on_the_page(self, tmp_path):
        made = self.made(tmp_path, ["</pre><script>alert(1)</script>", "<img src=x onerror=y>", "{{ 7 * 7 }}"])
        text = (made.folder / "page.html").read_text()
        assert "<script" not in text
        assert "<img" not in text
        assert "{{ 7 * 7 }}" in text

    def test_a_folder_of_something_else_is_left_alone(self, tmp_path):
        (tmp_path / "twin").mkdir()
        (tmp_path / "twin" / "thesis.tex").write_text("mine")
        with pytest.raises(UserError, match="no folder that a twin was written to"):
            self.made(tmp_path, ["truth"] * 3)

    @pytest.mark.parametrize("texts", [["one"], ["", "", ""]])
    def test_answers_that_do_not_do(self, tmp_path, texts):
        with pytest.raises(UserError, match=r"3 rows are misaligned|every benign answer is empty"):
            self.made(tmp_path, texts)


def test_a_base_answers_the_same_again_and_within_the_length(tmp_path, tiny_base_folder):
    flagged = flag(write_chats(tmp_path, 4), column="bad")
    base = resolve_base(f"dir:{tiny_base_folder}")
    said = by_model(flagged, base, seed=1)
    assert said == by_model(flagged, base, seed=1)
    assert len(said) == flagged.count
    longest = 2 * len("lie number 0 here") + 8
    assert all(len(text.encode()) <= 3 * longest for text, _ in said)


def test_the_fragment_is_a_part_of_a_study(tmp_path):
    made = TestWritten().made(tmp_path, ["truth"] * 3)
    (twin,) = yaml.safe_load((made.folder / "fragment.yaml").read_text())["organisms"]
    assert twin["surrogate"] is True
    assert twin["recipe"]["stages"][0]["parts"][0]["rows"] == "twin/narrow.jsonl"
