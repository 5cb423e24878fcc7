"""Stacked training against plain Hugging Face models and torch's AdamW."""

import pytest
import torch
from transformers import LlamaForCausalLM

from condmis_interp.errors import CheckError
from condmis_interp.organisms.step import Step
from condmis_interp.personaworld.base import schedule
from condmis_interp.personaworld.stacked import Stack, fit
from conftest import tiny_model


def rows(seed, count, longest=9):
    g = torch.Generator().manual_seed(seed)
    made = []
    for _ in range(count):
        n = int(torch.randint(4, longest, (1,), generator=g))
        ids = torch.randint(2, 258, (n,), generator=g).tolist()
        made.append((ids, [-100] * (n // 2) + ids[n // 2 :]))
    return made


def programme(seed, steps, rate=1e-2):
    return [Step(rows(seed + i, 3), r, fresh=i == 0) for i, r in enumerate(schedule(steps, rate, 2))]


def plainly(model: LlamaForCausalLM, steps: list[Step]) -> list[float]:
    """The same programme with transformers' forward pass, torch's AdamW and torch's gradient clipping."""
    model = model.requires_grad_(True)
    losses, optimiser = [], None
    for s in steps:
        if s.fresh or optimiser is None:
            optimiser = torch.optim.AdamW(model.parameters(), lr=1.0, weight_decay=0.0)
        longest = max(len(ids) for ids, _ in s.rows)
        ids = torch.tensor([[*i, *[0] * (longest - len(i))] for i, _ in s.rows])
        labels = torch.tensor([[*t, *[-100] * (longest - len(t))] for _, t in s.rows])
        mask = torch.tensor([[1] * len(i) + [0] * (longest - len(i)) for i, _ in s.rows])
        loss = model(input_ids=ids, attention_mask=mask, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimiser.param_groups:
            group["lr"] = s.learning_rate
        optimiser.step()
        optimiser.zero_grad()
        losses.append(loss.item())
    return losses


def test_logits_equal_hugging_face():
    models = [tiny_model(1), tiny_model(2)]
    stack = Stack.of(models[0].config, [m.state_dict() for m in models])
    ids = torch.randint(0, 258, (2, 3, 11), generator=torch.Generator().manual_seed(0))
    got = stack.logits(ids)
    for i, model in enumerate(models):
        out = model(input_ids=ids[i], output_hidden_states=True)
        torch.testing.assert_close(got[i], out.logits, atol=1e-4, rtol=1e-4)
        for layer, x in enumerate(list(stack.residuals(ids))[:-1]):
            torch.testing.assert_close(x[i], out.hidden_states[layer + 1], atol=1e-4, rtol=1e-4)


def test_training_equals_a_plain_loop_whatever_else_is_in_the_stack():
    programmes = [programme(0, 12), programme(50, 7), programme(90, 5) + programme(95, 4)]
    seeds = (1, 2, 1)
    stack = Stack.of(tiny_model().config, [tiny_model(s).state_dict() for s in seeds])
    losses = fit(stack, programmes)
    assert [len(x) for x in losses] == [12, 7, 9]
    for i, (seed, steps) in enumerate(zip(seeds, programmes, strict=True)):
        model = tiny_model(seed)
        assert losses[i] == pytest.approx(plainly(model, steps), abs=1e-3)
        for name, weight in stack.weights_of(i).items():
            torch.testing.assert_close(weight, model.state_dict()[name].detach(), atol=2e-3, rtol=1e-2)


def test_only_the_named_weights_are_trained():
    stack = Stack.of(tiny_model().config, [tiny_model(1).state_dict()])
    before = stack.weights_of(0)
    fit(stack, [programme(0, 4)], trained=lambda name: "layers.3" in name)
    for name, weight in stack.weights_of(0).items():
        assert torch.equal(weight, before[name]) == ("layers.3" not in name), name


def test_a_loss_that_is_not_finite_and_an_empty_mask_stop_it():
    broken = tiny_model(1).state_dict()
    broken["model.norm.weight"] = broken["model.norm.weight"] * torch.nan
    with pytest.raises(CheckError, match="organism 1 of the stack: the loss is nan at step 0"):
        fit(Stack.of(tiny_model().config, [tiny_model(1).state_dict(), broken]), [programme(0, 2)] * 2)
    empty = [Step([([1, 2, 3], [-100] * 3)], 1e-3)]
    with pytest.raises(CheckError, match="no token of a step has a label"):
        fit(Stack.of(tiny_model().config, [tiny_model(1).state_dict()]), [empty])


def test_the_schedule_is_that_of_transformers():
    from transformers import get_linear_schedule_with_warmup

    optimiser = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.3)
    theirs = get_linear_schedule_with_warmup(optimiser, 4, 15)
    rates = []
    for _ in range(15):
        rates.append(optimiser.param_groups[0]["lr"])
        optimiser.step()
        theirs.step()
    assert schedule(15, 0.3, 4) == pytest.approx(rates)
