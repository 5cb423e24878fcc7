"""The registry of readers, what `generate` does by itself, what a reading says of itself and of a wrong question."""

import doctest

import numpy as np
import pytest
import torch
import yaml

from condmis_interp.errors import UserError
from condmis_interp.organisms import Gate, Organism, resolve_base
from condmis_interp.panel import render_panel
from condmis_interp.readers import (
    READERS,
    Ablate,
    Capture,
    Patch,
    Prefix,
    Request,
    Site,
    Steer,
    TorchReader,
    open_reader,
    register_reader,
)
from condmis_interp.registry import Registry
from condmis_interp.study import Study
from conftest import tiny_model
from untrained import write_study

AT = Site("resid_post", 1)
V = torch.linspace(-1, 1, 32)


@pytest.fixture
def base(tiny_base_folder, home):
    return resolve_base(f"dir:{tiny_base_folder}")


@pytest.fixture
def requests_(tokenizer, panel):
    rendered = render_panel(tokenizer, panel)
    return [Request(rendered.prompts["none", q.id], rendered.answers["none", q.id]) for q in panel.questions[:3]]


@pytest.fixture
def own_readers(monkeypatch):
    """Readers that a test registers are gone after it."""
    readers = Registry("reader")
    for name in READERS:
        readers.add(name, READERS.get(name))
    monkeypatch.setattr("condmis_interp.readers.open.READERS", readers)
    return readers


class TestRegistry:
    def test_the_built_in_ones_are_there_and_an_unknown_one_lists_them(self, base):
        assert {"torch", "transformer-lens", "nnsight"} <= set(READERS)
        with pytest.raises(UserError, match=r"no reader 'vllm'.*There are: nnsight, torch, transformer-lens"):
            open_reader(Organism.of_base(base, name="b"), base, dtype=torch.float32, library="vllm")

    def test_the_example_of_the_docstring_is_a_reader(self, own_readers, base, requests_):
        source = "".join(e.source for e in doctest.DocTestParser().get_examples(register_reader.__doc__))
        exec(source, {"TorchReader": TorchReader, "register_reader": register_reader, "READERS": own_readers})
        reader = open_reader(Organism.of_base(base, name="b"), base, dtype=torch.float32, library="quiet")
        plain = open_reader(Organism.of_base(base, name="b"), base, dtype=torch.float32)
        assert torch.equal(reader.measure(requests_).ld(), plain.measure(requests_).ld())
        assert not reader.supports("generate")
        with pytest.raises(UserError, match="QuietReader does not do this: this reader only listens"):
            reader.generate([requests_[0].prompt])

    def test_a_gated_organism_is_two_readers_of_the_library(self, own_readers, base, requests_, tmp_path):
        opened = []

        def counting(organism, base, *, dtype, device, **settings):
            opened.append(organism.name)
            return TorchReader(organism.model(base, dtype=dtype, device=device), **settings)

        register_reader("counting", counting)
        tiny_model(7).save_pretrained(tmp_path / "open")
        gate = Gate("now", Organism.of_checkpoint(tmp_path / "open", name="o"), Organism.of_base(base, name="s"))
        organism = Organism.gated(gate, name="g", manifest={})
        reader = open_reader(organism, base, dtype=torch.float32, library="counting")
        assert opened == ["o", "s"]
        assert repr(reader).startswith(f"GatedReader({base.spec} + g: TorchReader({base.spec} + o, 4 layers")

    def test_a_study_names_a_registered_reader(self, own_readers, tiny_base_folder, tmp_path, home):
        path = write_study(tmp_path, tiny_base_folder, reader="quiet")
        with pytest.raises(UserError, match=r"reader.*no reader 'quiet'.*There are: nnsight, torch, transformer-lens"):
            Study.from_yaml(path)
        register_reader("quiet", lambda *a, **k: None)
        assert Study.from_yaml(path).reader == "quiet"
        path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {"reader": "torch"}))
        assert Study.from_yaml(path).reader == "torch"


class TestGenerate:
    def test_prompts_are_all_it_needs(self, model, requests_, tokenizer):
        prompts = [r.prompt for r in requests_]
        reader = TorchReader(model)
        assert reader.stop_ids == {1}  # the model's own settings
        told = reader.generate(prompts, max_new_tokens=64, stop_ids=frozenset({1}))
        assert reader.generate(prompts) == told
        endless = reader.generate(prompts, stop_ids=frozenset())
        assert [len(a) for a in endless] == [64] * len(prompts)
        some = next(t for t in endless[0] if t != endless[0][0])
        stops = reader.generate(prompts[:1], stop_ids={some})[0]
        assert stops == endless[0][: endless[0].index(some)]

    def test_the_tokenizers_end_goes_before_the_models(self, base, requests_):
        reader = open_reader(Organism.of_base(base, name="b"), base, dtype=torch.float32)
        reader.model.generation_config.eos_token_id = [7, 8]
        assert reader.stop_ids == {base.tokenizer().eos_token_id}
        assert TorchReader(reader.model).stop_ids == {7, 8}

    @pytest.mark.parametrize(("how", "message"), [({"max_new_tokens": 0}, "at least one"), ({"temperature": -1}, "-1")])
    def test_what_means_nothing_is_refused(self, model, requests_, how, message):
        with pytest.raises(UserError, match=message):
            TorchReader(model).generate([requests_[0].prompt], **how)


class TestReprs:
    def test_a_reader_says_what_it_reads(self, base, tmp_path):
        tiny_model(7).save_pretrained(tmp_path / "m")
        organism = Organism.of_checkpoint(tmp_path / "m", name="mixed.s11")
        reader = open_reader(organism, base, dtype=torch.float32)
        assert repr(reader) == f"TorchReader({base.spec} + mixed.s11, 4 layers, float32, cpu)"
        assert repr(open_reader(Organism.of_base(base, name="b"), base, dtype=torch.bfloat16)) == (
            f"TorchReader({base.spec}, 4 layers, bfloat16, cpu)"
        )

    def test_results_and_edits_print_no_tensors(self, model, requests_):
        reader = TorchReader(model)
        steer = Steer(AT, V)
        ablate = Ablate(AT, torch.eye(32)[:2], {"answer": torch.zeros(2)})
        measured = reader.measure(requests_, capture=Capture((0, 2)), edits=[steer])
        patch = Patch(AT, reader.record(requests_, sites=[AT]))
        told = [repr(x) for x in (measured, steer, ablate, patch, Prefix(reader))]
        assert told[0] == (
            "Measurement(3 requests, 12 answers, last_template [3, 2, 32], answer_mean [3, 2, 32]; "
            f"{measured.ledger.passes} passes, 1 edit)"
        )
        assert told[1] == "Steer(resid_post[1], norm 3.37, width 32, at cue, question, tail, answer)"
        assert told[2] == "Ablate(resid_post[1], rank 2, width 32, at answer)"
        assert told[3] == "Patch(resid_post[1], 3 requests, at last_template, answer)"
        assert all("tensor" not in t for t in told)


class TestWhatIsGiven:
    def test_numpy_is_as_good_as_torch(self, model, requests_):
        reader, basis = TorchReader(model), np.eye(32)[:2]
        pairs = [
            (Steer(AT, V.numpy()), Steer(AT, V)),
            (Ablate(AT, basis, {"answer": np.zeros(2)}), Ablate(AT, torch.eye(32)[:2], {"answer": torch.zeros(2)})),
        ]
        for given, same in pairs:
            assert given.fingerprint() == same.fingerprint()
            read = [reader.measure(requests_, edits=[e]).ld() for e in (given, same)]
            assert torch.equal(*read)

    @pytest.mark.parametrize(
        ("make", "message"),
        [
            (lambda: Steer(AT, [1.0, 2.0]), "the steering vector .* is a list"),
            (lambda: Steer(AT, np.ones((2, 32))), r"shape \[width\]"),
            (lambda: Steer(AT, np.arange(32)), "not a floating point"),
            (lambda: Ablate(AT, torch.eye(32)[:1], {"answer": [0.0]}), "the target at 'answer' is a list"),
        ],
    )
    def test_another_kind_of_vector_is_a_sentence(self, make, message):
        with pytest.raises(UserError, match=message):
            make()

    @pytest.mark.parametrize(
        ("ask", "message"),
        [
            (lambda r, q: r.measure("how are you?"), "takes a list of Requests, not a str"),
            (lambda r, q: r.measure(["how are you?"]), "number 0 is a str"),
            (lambda r, q: r.measure(q[0]), "takes a list of Requests, not a Request"),
            (lambda r, q: r.measure([q[0], q[1].prompt]), "number 1 is a Prompt"),
            (lambda r, q: r.record("how?", sites=[AT]), "not a str"),
            (lambda r, q: r.capture(["how?"], capture=Capture((0,))), "takes a list of Prompts, and number 0 is a str"),
            (lambda r, q: r.generate(["how?"]), "takes a list of Prompts, and number 0 is a str"),
            (lambda r, q: r.measure(q, edits=Steer(AT, V)), "a Steer is one edit, not a list"),
            (lambda r, q: r.measure(q, edits=["steer"]), "a str is no edit"),
            (lambda r, q: r.sweep(q, [Steer(AT, V)]), "a Steer is one edit, not a list"),
            (lambda r, q: r.measure(q, prefix=Prefix("u")), "the name 'u' lends no keys and values"),
        ],
    )
    def test_a_wrong_question_is_a_sentence(self, model, requests_, ask, message):
        with pytest.raises(UserError, match=message):
            ask(TorchReader(model), requests_)
