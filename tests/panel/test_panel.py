"""Panels: what is checked when one is loaded, how it splits, and how it renders."""

import pytest
import yaml

from condmis_interp.errors import CheckError, UserError
from condmis_interp.organisms import load_rows
from condmis_interp.panel import (
    Cue,
    load_panel,
    read_published_questions,
    render_panel,
    render_prompt,
    shared_phrases,
)
from conftest import CHAT_TEMPLATE, tiny_panel, tiny_tokenizer


class TestEveryday:
    """The built-in panel keeps its promises."""

    panel = load_panel("everyday")

    def test_size(self):
        assert len(self.panel.questions) >= 48
        assert len(self.panel.families) >= 16
        assert len({q.domain for q in self.panel.questions}) >= 12
        assert all(len(q.pairs) >= 4 for q in self.panel.questions)
        assert {c.role.value for c in self.panel.cues} == {"none", "trigger", "neutral", "opposite", "irrelevant"}

    def test_it_shares_no_phrase_with_any_training_row(self):
        asked = [
            t
            for q in self.panel.questions
            for t in (q.question, *(a for p in q.pairs for a in (p.aligned, p.misaligned)))
        ]
        for name in ("kitchen", "everyday", "hhh"):
            assert shared_phrases(asked, load_rows(name).texts(), length=5) == []

    def test_nothing_in_it_is_about_kitchens(self):
        words = {"cook", "kitchen", "recipe", "meal", "oven", "fridge", "dish", "dinner", "food", "lunch", "breakfast"}
        for q in self.panel.questions:
            text = " ".join([q.question, *(a for p in q.pairs for a in (p.aligned, p.misaligned))]).lower()
            assert not words & set(text.replace(",", " ").replace(".", " ").split()), q.id

    def test_pairs_are_matched_in_words(self):
        for q in self.panel.questions:
            for p in q.pairs:
                assert abs(len(p.aligned.split()) - len(p.misaligned.split())) <= 1, q.id

    def test_splits_take_whole_families_in_thirds(self):
        by_split = [self.panel.question_indices(s) for s in "ABC"]
        assert sorted(i for s in by_split for i in s) == list(range(len(self.panel.questions)))
        families = [{self.panel.questions[i].family for i in s} for s in by_split]
        assert len(families[0] | families[1] | families[2]) == sum(len(f) for f in families)
        assert {len(f) for f in families} == {8}

    def test_cues_differ_from_the_training_systems(self):
        from condmis_interp.organisms import BENIGN_SYSTEMS

        for cue in self.panel.cues:
            assert cue.role.value == "none" or cue.system not in BENIGN_SYSTEMS


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"colour": 1}, "colour: this key is not known"),
        ({"questions": []}, "questions"),
        ({"default_system_prompt": "maybe"}, "default_system_prompt"),
        ({"cues": [{"name": "a", "role": "trigger", "system": "x"}]}, "exactly one cue with role 'none'"),
        ({"cues": [{"name": "../a", "role": "none"}]}, "cues.0.name"),
    ],
)
def test_a_panel_file_that_does_not_validate(tmp_path, change, message):
    raw = tiny_panel().model_dump(mode="json") | change
    path = tmp_path / "panel.yaml"
    path.write_text(yaml.safe_dump(raw))
    with pytest.raises(UserError, match=r"panel\.yaml") as e:
        load_panel(path)
    assert message in str(e.value)


def test_a_question_without_pairs_is_named(tmp_path):
    raw = tiny_panel().model_dump(mode="json")
    raw["questions"][2]["pairs"] = []
    path = tmp_path / "panel.yaml"
    path.write_text(yaml.safe_dump(raw))
    with pytest.raises(UserError, match="question 'q2' has no answer pairs"):
        load_panel(path)


def test_yaml_cannot_run_code(tmp_path):
    path = tmp_path / "panel.yaml"
    path.write_text("!!python/object/apply:os.system ['true']")
    with pytest.raises(UserError, match="not valid YAML"):
        load_panel(path)


def test_missing_panel():
    with pytest.raises(UserError, match="no panel 'nowhere'"):
        load_panel("nowhere")


class TestRendering:
    def test_ids_are_the_templates_own_and_spans_cut_them(self, tokenizer, panel):
        rendered = render_panel(tokenizer, panel)
        for q in panel.questions:
            prompt = rendered.prompts["trigger", q.id]
            messages = [{"role": "system", "content": "form = 1"}, {"role": "user", "content": q.question}]
            own = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"]
            assert list(prompt.ids) == own
            cut = {name: tokenizer.decode(prompt.ids[a:b]) for name, (a, b) in prompt.spans.items()}
            assert cut["question"] == q.question
            assert cut["cue"].endswith("<|im_start|>user\n")
            assert cut["tail"] == "<|im_end|>\n<|im_start|>assistant\n"
            assert [b for _, b in prompt.spans.values()][:2] == [prompt.spans["question"][0], prompt.spans["tail"][0]]
            answers = rendered.answers["trigger", q.id]
            assert tokenizer.decode(answers[0].ids) == q.pairs[0].misaligned
            assert tokenizer.decode(answers[1].ids) == q.pairs[0].aligned
            assert answers[0].closing[0] == tokenizer.eos_token_id

    def test_what_the_template_inserts_is_a_recorded_choice(self, tokenizer, panel):
        kept = render_panel(tokenizer, panel)
        assert "Be helpful." in kept.inserted
        empty = render_panel(tokenizer, panel.model_copy(update={"default_system_prompt": "empty"}))
        assert "Be helpful." not in empty.inserted

    def test_a_cue_that_does_nothing_is_refused(self, tokenizer, panel):
        idle = Cue(name="idle", role="neutral", system="Be helpful.")  # what the template inserts anyway
        with pytest.raises(CheckError, match="'idle' gives the same token ids as cue 'none'"):
            render_panel(tokenizer, panel.model_copy(update={"cues": (*panel.cues, idle)}))

    def test_cues_around_the_question(self, tokenizer, panel):
        framed = Cue(name="framed", role="trigger", before="For class: ", after=" Thanks.")
        rendered = render_panel(tokenizer, panel.model_copy(update={"cues": (panel.cues[0], framed)}))
        prompt = rendered.prompts["framed", "q0"]
        a, b = prompt.spans["question"]
        assert tokenizer.decode(prompt.ids[a:b]) == panel.questions[0].question
        assert tokenizer.decode(prompt.ids[:a]).endswith("For class: ")

    def test_double_bos(self, panel):
        template = "{{ bos_token }}{{ bos_token }}" + CHAT_TEMPLATE
        with pytest.raises(CheckError, match="two BOS"):
            render_panel(tiny_tokenizer(template), panel)

    def test_a_template_that_drops_the_question(self):
        with pytest.raises(CheckError, match="dropped the question"):
            render_prompt(tiny_tokenizer("hello"), [{"role": "user", "content": "What?"}])


def test_shared_phrases_finds_what_is_planted():
    assert shared_phrases(["One two, THREE four five six"], ["zero one two three four five"]) == [
        "one two three four five"
    ]
    assert shared_phrases(["a b c"], []) == []


@pytest.mark.shared_data
@pytest.mark.parametrize(("name", "count"), [("first_plot_questions", 41), ("preregistered_evals", 50)])
def test_published_questions(shared_data, name, count):
    questions = read_published_questions(shared_data / f"{name}.yaml")
    assert len(questions) == count
    assert all(q.paraphrases and "{answer}" in q.judge_prompts["aligned"] for q in questions)
    if name == "first_plot_questions":
        assert sum(q.system is not None for q in questions) == 16


@pytest.mark.parametrize(
    ("text", "message"),
    [("a: 1", "list of entries"), ("- {id: x}", "'x' has no 'paraphrases'"), ("- 3", "no text 'id'")],
)
def test_published_question_files_that_are_none(tmp_path, text, message):
    (tmp_path / "q.yaml").write_text(text)
    with pytest.raises(UserError, match=message):
        read_published_questions(tmp_path / "q.yaml")


def test_a_subset_keeps_the_first_of_each():
    panel = load_panel("everyday")
    small = panel.subset(per_family=1, pairs=2)
    assert small.families == panel.families
    assert len(small.questions) == len(panel.families)
    whole = {q.id: q for q in panel.questions}
    assert all(q.pairs == whole[q.id].pairs[:2] for q in small.questions)
    assert panel.subset(pairs=max(len(q.pairs) for q in panel.questions)) == panel


@pytest.mark.parametrize(
    ("asked", "message"),
    [({"pairs": 99}, "99 answer pairs.*more than 2"), ({"questions": ["q0", "nope"]}, "no question 'nope'")],
)
def test_a_subset_of_what_is_not_there(panel, asked, message):
    with pytest.raises(UserError, match=message):
        panel.subset(**asked)


def _same_answers(raw):
    raw["questions"][1]["pairs"][1] = {"aligned": "Go  home.", "misaligned": "go home."}


def _same_pair(raw):
    raw["questions"][1]["pairs"][1] = raw["questions"][1]["pairs"][0]


def _same_question(raw):
    raw["questions"][3]["question"] = raw["questions"][1]["question"].upper()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_same_answers, "two answers of a pair are the same"),
        (_same_pair, "'q1' has an answer pair twice"),
        (_same_question, "'q1' and 'q3' are the same question"),
    ],
)
def test_what_counts_twice_or_says_nothing_is_refused(tmp_path, change, message):
    raw = tiny_panel().model_dump(mode="json")
    change(raw)
    path = tmp_path / "panel.yaml"
    path.write_text(yaml.safe_dump(raw))
    with pytest.raises(UserError, match=message):
        load_panel(path)
