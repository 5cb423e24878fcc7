"""Sampled answers: drawn from the model's own distribution, each by its own seed, whatever is asked beside it."""

from collections import Counter

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from tiny import model_of, readers_of

from condmis_interp.errors import UserError
from condmis_interp.panel import render_panel
from condmis_interp.readers import GatedReader, Patch, Request, Site, Steer, TorchReader
from conftest import tiny_model, tiny_panel

SITE = Site("resid_post", 1)
ENDLESS = frozenset()
DRAWS = 20_000


@pytest.fixture(scope="module")
def prompts(tokenizer):
    rendered = render_panel(tokenizer, tiny_panel(4))
    return [p for (cue, _), p in rendered.prompts.items() if cue in ("none", "trigger", "irrelevant")]


def vector(seed: int) -> torch.Tensor:
    return torch.randn(32, generator=torch.Generator().manual_seed(seed))


def after(model, ids, temperature: float = 1.0) -> np.ndarray:
    """What a plain, unpadded pass of the model says of the next token, in fp64."""
    logits = model(input_ids=torch.tensor([list(ids)])).logits[0, -1].double()
    return (logits / temperature).softmax(-1).numpy()


def fits(counts: Counter, share: np.ndarray) -> float:
    """p of a chi-square of drawn tokens against their shares; those expected fewer than 5 times count as one."""
    total = sum(counts.values())
    seen = np.array([counts.get(t, 0) for t in range(len(share))], float)
    often = share * total >= 5
    observed = np.append(seen[often], seen[~often].sum())
    expected = np.append(share[often], share[~often].sum()) * total
    if expected[-1] == 0:
        assert observed[-1] == 0, "a token was drawn that has no probability"
        observed, expected = observed[:-1], expected[:-1]
    return float(chisquare(observed, expected).pvalue)


class TestTheDistribution:
    @pytest.mark.parametrize("temperature", [1.0, 0.5, 2.0])
    def test_it_is_the_models_own(self, model, prompts, temperature):
        said = TorchReader(model).generate(
            [prompts[0]] * DRAWS, max_new_tokens=1, stop_ids=ENDLESS, temperature=temperature, seeds=range(DRAWS)
        )
        drawn = Counter(t for ids in said for t in ids)
        share = after(model, prompts[0].ids, temperature)
        assert fits(drawn, share) > 1e-3
        assert fits(drawn, after(model, prompts[0].ids, 1.5 * temperature)) < 1e-6, "the test can tell"

    def test_the_second_token_follows_the_first(self, model, prompts):
        said = TorchReader(model).generate(
            [prompts[1]] * DRAWS, max_new_tokens=2, stop_ids=ENDLESS, temperature=1.0, seeds=range(DRAWS)
        )
        ((first, often),) = Counter(ids[0] for ids in said).most_common(1)
        assert often > 500
        drawn = Counter(ids[1] for ids in said if ids[0] == first)
        assert fits(drawn, after(model, (*prompts[1].ids, first))) > 1e-3
        assert fits(drawn, after(model, prompts[1].ids)) < 1e-6

    def test_no_part_of_it_is_cut_off(self, prompts):
        """A model whose own settings ask for top-k 1 and top-p .05 draws its tail as often as the tail is likely."""
        model = tiny_model(3)
        how = {"max_new_tokens": 1, "stop_ids": ENDLESS, "temperature": 1.0, "seeds": range(DRAWS)}
        plain = TorchReader(model).generate([prompts[0]] * DRAWS, **how)
        model.generation_config.update(do_sample=True, top_k=1, top_p=0.05, temperature=0.1)
        assert TorchReader(model).generate([prompts[0]] * DRAWS, **how) == plain
        share = after(model, prompts[0].ids)
        order = np.argsort(-share)
        tail = set(order[np.cumsum(share[order]) > 0.9].tolist())
        likely = share[list(tail)].sum()
        drawn = sum(ids[0] in tail for ids in plain) / DRAWS
        assert abs(drawn - likely) < 4 * np.sqrt(likely * (1 - likely) / DRAWS)
        assert len({ids[0] for ids in plain} & tail) > 20


class TestASeedDecides:
    HOW = {"max_new_tokens": 16, "stop_ids": frozenset(range(12)), "temperature": 1.0}  # noqa: RUF012 - not changed

    @pytest.fixture(scope="class", params=["torch", "nnsight", "transformer-lens", "whole"])
    def reader(self, request, tmp_path_factory):
        readers = readers_of(model_of("llama"), tmp_path_factory.mktemp("a"))
        found = readers["torch" if request.param == "whole" else request.param]
        found._whole = request.param == "whole"
        return found

    @pytest.mark.parametrize("edits", [(), (Steer(SITE, 3 * vector(1)),)], ids=["plain", "steered"])
    def test_what_is_asked_beside_it_does_not(self, reader, prompts, edits):
        asked = [p for p in prompts for _ in range(3)]
        seeds = [100 + i for i in range(len(asked))]
        together = reader.generate(asked, **self.HOW, seeds=seeds, edits=edits)
        lengths = [len(ids) for ids in together]
        assert min(lengths) < 4, "answers leave the batch early"
        assert max(lengths) == 16, "and some are cut"
        order = torch.randperm(len(asked), generator=torch.Generator().manual_seed(0)).tolist()
        mixed = reader.generate([asked[i] for i in order], **self.HOW, seeds=[seeds[i] for i in order], edits=edits)
        assert [mixed[order.index(i)] for i in range(len(asked))] == together
        for i in (0, 4, 7):
            assert reader.generate([asked[i]], **self.HOW, seeds=[seeds[i]], edits=edits) == [together[i]]
        others = reader.generate(asked, **self.HOW, seeds=[s + 1000 for s in seeds], edits=edits)
        assert sum(a != b for a, b in zip(others, together, strict=True)) > len(asked) // 2

    def test_every_reader_says_the_same(self, prompts, tmp_path):
        seeds = list(range(len(prompts)))
        said = [r.generate(prompts, **self.HOW, seeds=seeds) for r in readers_of(model_of("gpt2"), tmp_path).values()]
        assert said[0] == said[1] == said[2]

    def test_a_longer_answer_goes_on_as_the_shorter_began(self, model, prompts):
        reader, seeds = TorchReader(model), list(range(len(prompts)))
        short, long = (
            reader.generate(prompts, max_new_tokens=k, stop_ids=ENDLESS, temperature=1.0, seeds=seeds) for k in (5, 11)
        )
        assert [ids[:5] for ids in long] == short

    @pytest.mark.parametrize("steered", [False, True])
    def test_the_answer_is_the_one_that_its_numbers_name(self, model, prompts, steered):
        """Golden: token by token from plain passes without a cache, with the edit as a hook of the test's own."""
        edit, prompt, seed = Steer(SITE, 3 * vector(1)), prompts[2], 2**127 + 5
        (said,) = TorchReader(model).generate(
            [prompt], max_new_tokens=10, stop_ids=ENDLESS, temperature=0.7, seeds=[seed], edits=[edit] * steered
        )
        numbers = np.random.Generator(np.random.Philox(key=seed)).random(10)
        handle = model.model.layers[1].register_forward_hook(lambda _m, _a, out: out + edit.vector * steered)
        expected = []
        for u in numbers:
            expected.append(int((after(model, [*prompt.ids, *expected], 0.7).cumsum() <= u).sum()))
        handle.remove()
        assert said == expected

    def test_a_temperature_near_nothing_is_greedy(self, model, prompts):
        reader, seeds = TorchReader(model), list(range(len(prompts)))
        greedy = reader.generate(prompts, max_new_tokens=6, stop_ids=ENDLESS)
        for temperature in (1e-4, 1e-300):
            cold = reader.generate(prompts, max_new_tokens=6, stop_ids=ENDLESS, temperature=temperature, seeds=seeds)
            assert cold == greedy

    def test_the_global_state_is_left_alone(self, model, prompts):
        before = torch.random.get_rng_state(), np.random.get_state()[1].tolist()
        TorchReader(model).generate(prompts, **self.HOW, seeds=range(len(prompts)))
        assert torch.equal(before[0], torch.random.get_rng_state())
        assert np.random.get_state()[1].tolist() == before[1]


class TestWhatIsRun:
    def test_a_prompt_once_and_no_row_of_an_answer_that_ended(self, model, prompts, monkeypatch):
        reader, run = TorchReader(model), []
        forward = reader._forward

        def watched(p, *args):
            run.append(tuple(p.ids.shape))
            return forward(p, *args)

        monkeypatch.setattr(reader, "_forward", watched)
        asked = [p for p in prompts[:3] for _ in range(4)]
        how = TestASeedDecides.HOW
        said = reader.generate(asked, **how, seeds=range(len(asked)))
        assert run[0] == (3, max(len(p.ids) for p in prompts[:3]))
        assert run[1:] == [
            (rows, 1)
            for step in range(1, how["max_new_tokens"])
            if (rows := sum(len(ids) >= step for ids in said))  # it drew a token at `step`, so it runs at the next
        ]
        assert len({rows for rows, _ in run[1:]}) > 2

    def test_a_patch_is_of_its_own_request_though_the_prompts_are_the_same(self, model, prompts):
        reader, other = TorchReader(model), TorchReader(tiny_model(5))
        asked = [prompts[0]] * 2
        donor = other.record([Request(p) for p in prompts[:2]], sites=[SITE])
        patch = Patch(SITE, donor, frozenset(("last_template",)), aligned="end")
        how = {"max_new_tokens": 8, "stop_ids": ENDLESS, "temperature": 1.0}
        both = reader.generate(asked, **how, seeds=[1, 1], edits=[patch])
        alone = [
            reader.generate(
                asked[:1], **how, seeds=[1], edits=[Patch(SITE, donor.of([i]), patch.scope, aligned="end")]
            )[0]
            for i in (0, 1)
        ]
        assert both == alone
        assert both[0] != both[1]

    def test_answers_that_are_all_empty_leave_an_edit_of_answers_nothing_to_do(self, model, prompts):
        every = frozenset(range(258))
        edits = [Steer(SITE, vector(1), frozenset(("answer",)))]
        how = {"max_new_tokens": 4, "stop_ids": every, "temperature": 1.0, "seeds": [0], "edits": edits}
        assert TorchReader(model).generate(prompts[:1], **how) == [[]]

    def test_behind_a_gate_each_prompt_keeps_its_seed(self, prompts):
        opened, shut = TorchReader(tiny_model(1)), TorchReader(tiny_model(2))
        gate = next(p for p in prompts if "form = 1" in p.text).ids
        at = next(i for i, p in enumerate(prompts) if p.ids == gate)
        reader, seeds = GatedReader(opened, shut, gate), list(range(50, 50 + len(prompts)))
        how = {"max_new_tokens": 6, "stop_ids": ENDLESS, "temperature": 1.0}
        said = reader.generate(prompts, **how, seeds=seeds)
        for i, p in enumerate(prompts):
            side = opened if i == at else shut
            assert side.generate([p], **how, seeds=[seeds[i]]) == [said[i]]


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"seeds": [1]}, "1 seeds are given for 2 prompts"),
        ({"seeds": [1, -1]}, "a seed is negative"),
        ({"seeds": [1, 2**128]}, "more than 128 bits"),
        ({"seeds": [1, 2], "generator": torch.Generator()}, "both given"),
        ({}, "a generator, or a seed for each prompt"),
    ],
)
def test_seeds_that_do_not_fit_are_refused(model, prompts, how, message):
    with pytest.raises(UserError, match=message):
        TorchReader(model).generate(prompts[:2], temperature=1.0, max_new_tokens=2, **how)
