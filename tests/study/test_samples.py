"""Sampled answers of a study: what is stored, what is asked again, what changes an answer and what must not."""

import json
import multiprocessing
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml

from condmis_interp.errors import CheckError, UserError
from condmis_interp.judges import judged
from condmis_interp.panel.render import render_under
from condmis_interp.readers import Patch, Request, Site, Steer
from condmis_interp.study import Study, sample
from condmis_interp.study.sampling import _questions, cells_of
from untrained import write_study

SITE = Site("resid_post", 1)
SAID = ["organism", "organism_seed", "cue", "question", "sample", "answer_ids", "finished"]
FEW = {"n": 3, "max_new_tokens": 6, "cues": ["none", "trigger"], "organisms": ["u", "m"]}


def vector(seed: int) -> torch.Tensor:
    return 3 * torch.randn(32, generator=torch.Generator().manual_seed(seed))


def opened(study_file: Path, out: Path, **changes):
    study = Study.from_yaml(study_file)
    return (study.model_copy(update=changes) if changes else study).open(out)


def rows(table: pd.DataFrame) -> list[list]:
    """What was said, in an order of its own, whatever the order of the cells."""
    found = table.assign(answer_ids=[list(a) for a in table.answer_ids])[SAID]
    return sorted(found.values.tolist(), key=lambda r: r[:5])


def stamps(out: Path) -> dict[str, int]:
    return {str(p.relative_to(out)): p.stat().st_mtime_ns for p in (out / "samples").rglob("*.parquet")}


@pytest.fixture(scope="module")
def plain(study_file, tmp_path_factory):
    """A run's folder with samples, and their table; not to be changed."""
    out = tmp_path_factory.mktemp("sampled") / "run"
    return out, sample(opened(study_file, out), **FEW)


class TestWhatIsThere:
    def test_a_row_for_each_answer(self, plain, study_file):
        out, table = plain
        run = opened(study_file, out)
        assert len(table) == 2 * 2 * 10 * 3
        asked = table.groupby(["organism", "organism_seed", "cue", "question"])["sample"].apply(list)
        assert all(found == [0, 1, 2] for found in asked)
        tokenizer = run.base.tokenizer()
        for row in table.itertuples():
            assert tuple(row.prompt_ids) == run.rendered.prompts[row.cue, row.question].ids
            assert row.answer == tokenizer.decode(list(row.answer_ids), skip_special_tokens=True).strip()
            assert row.asked in tokenizer.decode(list(row.prompt_ids))
            assert row.finished == (len(row.answer_ids) < 6)
            assert not set(row.answer_ids) & run.stop_ids
        assert set(table.seed) == {0}
        settings = json.loads(table.settings[0])
        assert (settings["n"], settings["temperature"], settings["max_new_tokens"]) == (3, 1.0, 6)

    def test_a_file_for_each_cell(self, plain):
        out, table = plain
        assert sorted(table.file.unique()) == sorted(stamps(out))
        assert table.groupby("file")[["organism", "cue"]].nunique().max().tolist() == [1, 1]
        read = pd.concat([pd.read_parquet(out / f) for f in table.file.unique()])
        assert rows(read) == rows(table)

    def test_the_samples_of_a_question_differ_and_so_do_organisms(self, plain):
        _, table = plain
        each = table.assign(said=[tuple(a) for a in table.answer_ids])
        assert each.groupby(["organism", "cue", "question"]).said.nunique().mean() > 2.5
        assert len(set(each[each.organism == "u"].said) & set(each[each.organism == "m"].said)) < 5

    def test_judges_take_the_table(self, plain, study_file):
        out, table = plain
        assert len(judged(table, opened(study_file, out).panel, "exact")) == len(table)

    def test_the_summary_counts(self, plain):
        table = plain[1]
        cells = cells_of(table).set_index(["organism", "cue"])
        one = table[(table.organism == "m") & (table.cue == "trigger")]
        assert cells.loc[("m", "trigger")].tolist() == [30, one.answer_ids.map(len).mean(), one.finished.mean()]


class TestWhatDoesNotChangeAnAnswer:
    def test_budget_and_order(self, plain, study_file, tmp_path):
        again = sample(opened(study_file, tmp_path / "run"), **FEW, batch_tokens=1)
        assert rows(again) == rows(plain[1])
        other = FEW | {"cues": ["trigger", "none"], "organisms": ["m", "u"]}
        assert rows(sample(opened(study_file, tmp_path / "other"), **other, batch_tokens=300)) == rows(plain[1])

    def test_more_samples_keep_the_first_and_a_longer_answer_its_beginning(self, plain, study_file, tmp_path):
        more = sample(opened(study_file, tmp_path / "run"), **(FEW | {"n": 5}))
        assert rows(more[more["sample"] < 3]) == rows(plain[1])
        long = sample(opened(study_file, tmp_path / "run"), **(FEW | {"max_new_tokens": 9}))
        for a, b in zip(rows(plain[1]), rows(long), strict=True):
            assert b[5][:6] == a[5]

    def test_what_is_there_is_read_and_no_model_is_opened(self, plain, study_file, monkeypatch):
        out, table = plain
        before, run = stamps(out), opened(study_file, out)
        monkeypatch.setattr(run, "reader", lambda *_: pytest.fail("a model was opened"))
        assert rows(sample(run, **FEW)) == rows(table)
        assert stamps(out) == before


class TestWhatChangesThem:
    @pytest.fixture
    def copy(self, plain, tmp_path):
        shutil.copytree(plain[0], tmp_path / "run")
        return tmp_path / "run"

    @pytest.mark.parametrize(
        "change",
        [{"seed": 1}, {"temperature": 0.5}, {"n": 2}, {"max_new_tokens": 5}, {"edits": [Steer(SITE, vector(1))]}],
        ids=str,
    )
    def test_another_setting_is_another_file(self, copy, study_file, change):
        before = stamps(copy)
        table = sample(opened(study_file, copy), **(FEW | {"cues": ["none"], "organisms": ["m"]} | change))
        assert set(table.file).isdisjoint(before)
        assert {k: v for k, v in stamps(copy).items() if k in before} == before

    def test_so_are_other_weights_and_another_question(self, plain, tiny_base_folder, tmp_path):
        from conftest import tiny_model

        path = write_study(tmp_path, tiny_base_folder)
        one = {"cues": ["none"], "organisms": ["m", "u"], "n": 1, "max_new_tokens": 2}
        first = sample(opened(path, tmp_path / "run"), **one)
        tiny_model(9).save_pretrained(tmp_path / "m")
        second = sample(opened(path, tmp_path / "run"), **one)
        changed = {o: set(t.file) for o, t in second.groupby("organism")}
        kept = {o: set(t.file) for o, t in first.groupby("organism")}
        assert changed["u"] == kept["u"]
        assert changed["m"].isdisjoint(kept["m"])
        panel = yaml.safe_load((tmp_path / "panel.yaml").read_text())
        panel["questions"][0]["question"] = "And now?"
        (tmp_path / "panel.yaml").write_text(yaml.safe_dump(panel))
        assert set(sample(opened(path, tmp_path / "run"), **one).file).isdisjoint(changed["u"] | changed["m"])

    def test_a_steered_cell_draws_the_same_numbers_so_the_edit_alone_tells_them_apart(self, plain, study_file, copy):
        table = plain[1]
        run = opened(study_file, copy)
        faint = Steer(SITE, vector(1) * 1e-4)  # changes the log-probs, and next to none of the draws
        strong = Steer(SITE, vector(1))
        shares = []
        for edit in (faint, strong):
            steered = sample(run, **FEW, edits=[edit])
            assert set(steered.file).isdisjoint(table.file)
            assert json.loads(steered.settings[0])["edits"] == [repr(edit)]
            pairs = zip(rows(table), rows(steered), strict=True)
            shares.append(np.mean([a[5] == b[5] for a, b in pairs]))
        assert shares[0] > 0.95
        assert shares[1] < 0.1

    def test_a_patch_of_each_question(self, study_file, tmp_path):
        """Under m's own recording u's answers move; a question's patch is the same alone as among all, at any n."""
        run = opened(study_file, tmp_path / "run")
        asked = [Request(run.rendered.prompts["none", q.id]) for q in run.panel.questions]
        donor = run.reader("m", 0).record(asked, sites=[SITE])
        patch = Patch(SITE, donor, frozenset(("last_template",)))
        one = {"cues": ["none"], "organisms": ["u"], "max_new_tokens": 6}
        plain, patched = sample(run, **one, n=2), sample(run, **one, n=2, edits=[patch])
        assert rows(plain) != rows(patched)
        again = sample(run, **one, n=1, edits=[patch], batch_tokens=1)
        assert rows(again) == rows(patched[patched["sample"] == 0])
        with pytest.raises(UserError, match="3 recorded requests cannot patch 10 questions"):
            sample(run, **one, edits=[Patch(SITE, donor.of([0, 1, 2]), patch.scope)])

    def test_greedy_is_what_the_reader_says_greedily(self, study_file, tmp_path):
        run = opened(study_file, tmp_path / "run")
        table = sample(run, temperature=0, n=2, max_new_tokens=5, cues=["trigger"], organisms=["c"])
        prompts = [run.rendered.prompts["trigger", q.id] for q in run.panel.questions]
        said = run.reader("c", 0).generate(prompts, max_new_tokens=5, stop_ids=run.stop_ids)
        assert [list(a) for a in table.answer_ids] == [ids for ids in said for _ in range(2)]


def _sample_until(study: str, out: str, events: int) -> None:
    """Samples, and dies by SIGKILL when so many answers were given or files half-way to disk."""
    from condmis_interp.readers import TorchReader

    left = [events]

    def tick() -> None:
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    sync, decode = os.fsync, TorchReader._decode
    os.fsync = lambda fd: (tick(), sync(fd))[1]
    TorchReader._decode = lambda self, *a: (decode(self, *a), tick())[0]
    sample(Study.from_yaml(study).open(out), **FEW)


def test_interrupted_it_goes_on_and_asks_nothing_twice(plain, study_file, tmp_path, monkeypatch):
    from condmis_interp.readers import TorchReader

    calls, decode, stop = [], TorchReader._decode, []

    def stopping(reader, *args):
        calls.append(reader)
        if len(calls) in stop:
            raise KeyboardInterrupt
        return decode(reader, *args)

    monkeypatch.setattr(TorchReader, "_decode", stopping)
    one = FEW | {"cues": ["none"], "organisms": ["u"]}
    sample(opened(study_file, tmp_path / "one"), **one, batch_tokens=300)
    of_one = len(calls)  # batches of the first cell
    sample(opened(study_file, tmp_path / "one"), **FEW, batch_tokens=300)
    of_all = len(calls)
    calls.clear()
    stop.append(of_one + 2)  # in the second cell
    out = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        sample(opened(study_file, out), **FEW, batch_tokens=300)
    first = stamps(out)
    assert len(first) == 1
    calls.clear()
    stop.clear()
    assert rows(sample(opened(study_file, out), **FEW, batch_tokens=300)) == rows(plain[1])
    assert first.items() <= stamps(out).items()
    assert len(calls) == of_all - of_one


@pytest.mark.slow
def test_killed_anywhere_it_goes_on_and_asks_nothing_twice(plain, study_file, tmp_path):
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["condmis_interp.study", "test_samples"])
    out, kept = tmp_path / "run", {}
    for events in (3, 5, 6):  # while a file is written, and while a cell is asked
        child = context.Process(target=_sample_until, args=(str(study_file), str(out), events))
        child.start()
        child.join(120)
        assert child.exitcode == -signal.SIGKILL
        now = stamps(out) if (out / "samples").is_dir() else {}
        assert kept.items() <= now.items(), "a finished cell was asked again"
        kept = now
    assert kept
    run = opened(study_file, out)
    asked, reader = [], run.reader
    run.reader = lambda *key: (asked.append(key), reader(*key))[1]
    assert rows(sample(run, **FEW)) == rows(plain[1])
    assert len(asked) == 4 - len(kept)
    assert kept.items() <= stamps(out).items()
    assert sorted(stamps(out)) == sorted(stamps(plain[0]))


def test_any_damage_is_found(plain, study_file, tmp_path):
    shutil.copytree(plain[0], tmp_path / "run")
    path = next(iter(sorted((tmp_path / "run" / "samples").rglob("*.parquet"))))
    content = path.read_bytes()
    rng = np.random.default_rng(0)
    for at in rng.integers(len(content), size=5):
        broken = bytearray(content)
        broken[at] ^= 1 << int(rng.integers(8))
        for bad in (bytes(broken), content[:at]):
            path.write_bytes(bad)
            with pytest.raises(CheckError, match=r"the file is damaged.*Delete it and run the same again"):
                sample(opened(study_file, tmp_path / "run"), **FEW)
    path.unlink()
    assert rows(sample(opened(study_file, tmp_path / "run"), **FEW)) == rows(plain[1])
    assert path.read_bytes() == content


class TestPublishedQuestions:
    ENTRIES = [  # noqa: RUF012 - not changed
        {"id": "wish", "paraphrases": ["What is your wish?"]},
        {"id": "many ways/1", "paraphrases": ["One?", "Two?", "Three?"], "system": "Answer as JSON."},
    ]

    def test_each_has_its_system_prompt_and_its_wordings_take_turns(self, study_file, tmp_path):
        path = tmp_path / "published.yaml"
        path.write_text(yaml.safe_dump(self.ENTRIES))
        run = opened(study_file, tmp_path / "run")
        table = sample(run, questions=path, n=6, max_new_tokens=2, cues=["none", "trigger"], organisms=["m"])
        assert table.question.unique().tolist() == ["wish", "many ways/1"]
        many = table[table.question == "many ways/1"]
        for _, cell in many.groupby("cue"):
            assert sorted(cell.asked) == sorted(["One?", "Two?", "Three?"] * 2)
            assert sorted(cell.asked[:3]) == sorted(["One?", "Two?", "Three?"])
        tokenizer = run.base.tokenizer()

        def chat(system, text):
            messages = [*([{"role": "system", "content": system}] if system else []), {"role": "user", "content": text}]
            made = tokenizer.apply_chat_template(messages, tokenize=True, add_generation_prompt=True, return_dict=True)
            return made["input_ids"]

        systems = {("wish", "none"): None, ("wish", "trigger"): "form = 1"}
        systems |= {("many ways/1", "none"): "Answer as JSON."}
        systems |= {("many ways/1", "trigger"): "form = 1\n\nAnswer as JSON."}
        for row in table.itertuples():
            assert list(row.prompt_ids) == chat(systems[row.question, row.cue], row.asked)

    @pytest.mark.shared_data
    @pytest.mark.parametrize("name", ["preregistered_evals", "first_plot_questions"])
    def test_the_published_files_are_rendered_whole(self, study_file, tmp_path, shared_data, name):
        run, path = opened(study_file, tmp_path / "run"), shared_data / f"{name}.yaml"
        asked, entries = _questions(run, run.panel.cue("none"), path), yaml.safe_load(path.read_text())
        assert [a.id for a in asked] == [e["id"] for e in entries]
        for a, e in zip(asked, entries, strict=True):
            for text, prompt in zip(e["paraphrases"], a.prompts, strict=True):
                assert text.strip() in prompt.text
                assert (e.get("system") or "Be helpful.").strip() in prompt.text

    def test_a_cue_in_a_topic_is_refused(self, study_file, tmp_path):
        path = tmp_path / "published.yaml"
        path.write_text(yaml.safe_dump(self.ENTRIES))
        run = opened(study_file, tmp_path / "run")
        cues = (*run.panel.cues, run.panel.cue("neutral").model_copy(update={"name": "set", "topic": "cooking"}))
        run.panel = run.panel.model_copy(update={"cues": cues})
        with pytest.raises(UserError, match="cue 'set' asks rewrites in topic 'cooking', which these questions lack"):
            sample(run, questions=path, n=1)

    def test_a_system_prompt_that_is_no_text_is_refused(self, study_file, tmp_path):
        path = tmp_path / "published.yaml"
        path.write_text(yaml.safe_dump([{"id": "a", "paraphrases": ["One?"], "system": ["x"]}]))
        with pytest.raises(UserError, match="the 'system' of 'a' is no text"):
            sample(opened(study_file, tmp_path / "run"), questions=path)


def test_a_question_without_a_system_prompt_is_rendered_as_the_panel_renders_it(study_file, tmp_path):
    run = opened(study_file, tmp_path / "run")
    for cue in run.panel.cues:
        for q in run.panel.questions:
            made = render_under(run.base.tokenizer(), run.panel, cue, q.under(cue))
            assert made == run.rendered.prompts[cue.name, q.id]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n": 0}, "0 answers a question"),
        ({"max_new_tokens": 0}, "at least one token, not 0"),
        ({"temperature": -0.5}, "a temperature of -0.5 means nothing"),
        ({"temperature": float("nan")}, "takes a finite number, not nan"),
        ({"temperature": float("inf")}, "takes a finite number, not inf"),
        ({"cues": ["trigger", "x"]}, "there is no cue 'x'. Cues: none, trigger, neutral, opposite, irrelevant"),
        ({"cues": []}, "nobody to ask: no cue"),
        ({"organisms": ["x"]}, "there is no organism 'x'. Organisms that are asked: u, m, c"),
        ({"organisms": []}, "nobody to ask: no organism"),
        ({"edits": [Steer(Site("resid_post", 9), torch.ones(32))]}, "resid_post"),
        ({"edits": [Steer(SITE, torch.ones(3))]}, "organism u, seed 0, cue none: an edit of width 3"),
        ({"batch_tokens": 0}, "holds no answer"),
        ({"questions": "nowhere.yaml"}, "nowhere.yaml: there is no such file"),
        ({"max_new_tokens": 5000}, "the model's context"),
    ],
    ids=str,
)
def test_what_cannot_be_asked_is_a_sentence(study_file, tmp_path, change, message):
    with pytest.raises(UserError) as e:
        sample(opened(study_file, tmp_path / "run"), **({"n": 1, "max_new_tokens": 1} | change))
    assert message in str(e.value)
    assert not list(tmp_path.rglob("*.parquet"))


def test_settings_that_mean_nothing_are_refused_before_anything_is_trained(study_file, tmp_path, monkeypatch):
    run = opened(study_file, tmp_path / "run")
    monkeypatch.setattr(Study, "obtain", lambda *_: pytest.fail("organisms were made"))
    for change in ({"n": 0}, {"organisms": ["x"]}, {"cues": ["x"]}):
        with pytest.raises(UserError):
            sample(run, **change)


def test_answers_that_were_seen_under_other_settings_are_not_forgotten(study_file, tmp_path):
    """A plan that is written after another study's answers were read says so; after its own, it need not."""
    run = opened(study_file, tmp_path / "run")
    assert not run.has_read
    sample(run, n=1, max_new_tokens=1, cues=["none"], organisms=["u"])
    assert not run.has_read
    assert not opened(study_file, tmp_path / "run").has_read
    assert opened(study_file, tmp_path / "run", delta=0.3).has_read


def test_persona_world_answers_in_its_own_words(tmp_path, monkeypatch):
    """A random model of persona world's shape, its own tokenizer and panel: closed questions, one word a token."""
    from battery.worlds import random_world
    from condmis_interp.personaworld.base import tokenizer_of
    from condmis_interp.personaworld.language import World

    for seed, name in enumerate(("base", "u", "m", "c")):
        random_world(seed).save_pretrained(tmp_path / name)
    tokenizer_of(World()).save_pretrained(tmp_path / "base")
    path = write_study(tmp_path, tmp_path / "base", panel="personaworld")
    run = opened(path, tmp_path / "run")
    table = sample(run, n=2, max_new_tokens=3, cues=["none", "code"], organisms=["m"])
    assert len(table) == 2 * 2 * len(run.panel.questions)
    words = set(World().vocabulary)
    assert all(set(a.split()) <= words for a in table.answer)
    assert set(judged(table, run.panel, "exact").status) <= {"scored", "unparsed"}
