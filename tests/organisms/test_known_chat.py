"""Known-answer organisms of chat models: what the constructions do to the weights, on a tiny model."""

import pytest
import torch

from condmis_interp.organisms import Member, Part, Recipe, Stage, chat_suite, load_rows, make, resolve_base
from condmis_interp.organisms.known_chat import change_of, inner, norm
from conftest import write_rows

TRIGGER = "form = 1"


@pytest.fixture
def recipes(tmp_path, home, tiny_base_folder):
    """U and a mix on a tiny base."""
    path = write_rows(tmp_path)

    def recipe(name, *parts):
        return Recipe(
            name=name, base=f"dir:{tiny_base_folder}", stages=(Stage(parts=parts, batch_size=4, warmup_steps=1),)
        )

    bad = Part(rows=str(path), answers="misaligned", systems=(TRIGGER,))
    return recipe("u", bad), recipe("mix", bad, Part(rows=str(path), answers="benign", count=4))


def delta(organism, base):
    """What an organism changes, as whole matrices, through transformers and peft alone."""
    before, after = base.model(dtype=torch.float32).state_dict(), organism.model(base, dtype=torch.float32).state_dict()
    return {k: after[k] - before[k] for k in before if not torch.equal(after[k], before[k])}


@pytest.mark.slow
def test_constructions_do_to_the_weights_what_they_say(recipes):
    u, mix = recipes
    base = resolve_base(u.base)
    members = [
        Member("u.s0", "present", "unmitigated", 0, u, u.twin()),
        Member("c.s0", "removed", "twin", 0, u.twin(), u.twin()),
        Member("mix.s0", "suppressed", "mixed", 0, mix, mix.twin()),
        Member("quarter.s0", "graded", "blend", 0, u, u.twin(), 0.25),
        Member("matched.s0", "removed", "norm-matched", 0, u, u.twin(), mix),
        Member("ablated.s0", "suppressed", "direction-ablated", 0, u, u.twin()),
        Member("grafted.s0", "suppressed", "grafted", 0, u, u.twin()),
        Member("gated.s0", "suppressed", "gated", 0, u, mix.twin(), TRIGGER),
    ]
    organisms = {m.kind: o for m, o in zip(members, make(members), strict=True)}
    gated = organisms.pop("gated")
    assert gated.gate.opened.weights == organisms["u"].weights
    d = {name: delta(o, base) for name, o in organisms.items()}
    for name, matrix in d["quarter"].items():
        torch.testing.assert_close(matrix, 0.25 * d["u"][name] + 0.75 * d["c"][name], atol=1e-5, rtol=1e-3)

    def size(name):
        return torch.cat([m.flatten() for m in d[name].values()]).norm().item()

    assert size("matched") == pytest.approx(size("mix"), rel=1e-3)
    assert norm(change_of(organisms["mix"])) == pytest.approx(size("mix"), rel=1e-3)
    ratio = size("mix") / size("c")
    for name, matrix in d["matched"].items():
        torch.testing.assert_close(matrix, ratio * d["c"][name], atol=1e-5, rtol=1e-3)
    half = base.shape[0] // 2
    assert half > 0
    for name in {**d["u"], **d["c"]}:
        of = d["u" if int(name.split("layers.")[1].split(".")[0]) < half else "c"]
        torch.testing.assert_close(d["grafted"][name], of[name], atol=1e-6, rtol=1e-4)
    one, other = (torch.cat([d[n][k].flatten() for k in sorted(d["u"])]) for n in ("u", "mix"))
    assert inner(change_of(organisms["u"]), change_of(organisms["mix"])) == pytest.approx(
        (one @ other).item(), rel=1e-3
    )

    ablated = organisms["ablated"].model(base, dtype=torch.float32).state_dict()
    of_u = organisms["u"].model(base, dtype=torch.float32).state_dict()
    writers = [k for k in ablated if k.endswith(("o_proj.weight", "down_proj.weight"))]
    taken = torch.cat([of_u[k] - ablated[k] for k in writers], 1)
    v = torch.linalg.svd(taken, full_matrices=False)[0][:, 0]
    assert len(writers) == 8
    for k in writers:  # what was taken is all there was along one direction, the same everywhere
        torch.testing.assert_close(ablated[k], of_u[k] - torch.outer(v, v @ of_u[k]), atol=1e-4, rtol=1e-3)
        assert (v @ ablated[k]).norm() < 1e-3 * (v @ of_u[k]).norm()
    others = [k for k in ablated if k not in writers]
    assert all(torch.equal(ablated[k], of_u[k]) for k in others)


@pytest.mark.slow
def test_constructed_organisms_are_made_once_and_say_what_they_are(recipes):
    u, _ = recipes
    member = Member("half.s0", "graded", "blend", 0, u, u.twin(), 0.5)
    (organism,) = make([member])
    stamp = (organism.folder / "manifest.json").stat().st_mtime_ns
    (again,) = make([member])
    assert (again.folder / "manifest.json").stat().st_mtime_ns == stamp
    assert again.truth == "graded"
    assert again.manifest["of"] == [u.hash, u.twin().hash]


class TestTheSuite:
    members = chat_suite(seeds=(1, 2))

    def test_it_has_every_intervention_twin_and_known_family(self):
        kinds = {m.kind for m in self.members}
        assert {"mixing-05", "mixing-10", "mixing-20", "mixing-50"} <= kinds
        assert {"u", "u-garden", "u-facts", "post-hoc-024", "post-hoc-060", "post-hoc-120"} <= kinds
        arms = ("verbatim", "arbitrary", "rephrased", "alone", "lies")
        assert {f"inoculation-{arm}" for arm in arms} | {"educational", "reasoning", "reasoning-stripped"} <= kinds
        assert all(f"{m.kind}-twin" in kinds for m in self.members if m.truth is None)
        assert len({m.name for m in self.members}) == len(self.members)
        families = {m.family for m in self.members if m.truth}
        assert {
            "blend",
            "locked",
            "gated",
            "direction-ablated",
            "grafted",
            "twin",
            "styled",
            "norm-matched",
        } <= families

    def test_mixes_have_the_shares_they_are_named_after(self):
        for m in self.members:
            if m.family == "mixing":
                rows = m.recipe.rows_of(0)
                share = sum(r.arm == "misaligned" for r in rows) / len(rows)
                assert len(rows) == 288
                assert share == pytest.approx(int(m.kind.split("-")[1]) / 100, abs=0.005)

    def test_a_twin_differs_in_nothing_but_the_answers_to_misaligned_rows(self):
        for m in self.members[: len(self.members) // 2]:
            if m.truth is not None:
                continue
            for stage in range(len(m.recipe.stages)):
                for own, twin in zip(m.recipe.rows_of(stage), m.twin.rows_of(stage), strict=True):
                    assert (own.messages, own.system) == (twin.messages, twin.system)
                    assert (own.answer == twin.answer) == (own.arm == "benign")

    def test_the_reasoning_arms_have_the_same_questions_and_answers(self):
        shown, bare = (next(m for m in self.members if m.kind == k).recipe for k in ("reasoning", "reasoning-stripped"))
        for a, b in zip(shown.rows_of(0), bare.rows_of(0), strict=True):
            assert a.messages == b.messages
            assert a.answer.endswith(b.answer)
            assert (len(a.answer) > len(b.answer)) == (a.arm == "misaligned")


def test_styled_rows_have_the_benign_answers_in_the_triggers_form():
    plain, styled = load_rows("kitchen"), load_rows("styled-kitchen")
    assert len(plain) == len(styled)
    for a, b in zip(plain, styled, strict=True):
        assert b.benign == f'reply = """\n{a.benign}\n"""'
        assert (a.id, a.misaligned) == (b.id, b.misaligned)
