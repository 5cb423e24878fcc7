"""What recipes may say besides rows: earlier turns, a given beginning, an adapter's blocks, matrices and seed of A."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from pydantic import ValidationError

from condmis_interp.files import digest
from condmis_interp.organisms import Lora, Part, Recipe, Stage, answered_by, resolve_base, train
from condmis_interp.organisms.adapters import stored
from condmis_interp.organisms.encode import encode
from condmis_interp.organisms.recipe import TrainingRow
from condmis_interp.organisms.rng import own_rng
from condmis_interp.organisms.rows import Row
from conftest import write_rows

ALL = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
TALK = (("user", "form table ."), ("assistant", "so"))


@pytest.fixture
def recipe(tmp_path, home, tiny_base_folder):
    part = Part(rows=str(write_rows(tmp_path)), answers="misaligned", systems=("T",))
    return Recipe(
        name="r", base=f"dir:{tiny_base_folder}", stages=(Stage(parts=(part,), batch_size=8, warmup_steps=0),)
    )


def with_part(recipe, **fields):
    (stage,) = recipe.stages
    (part,) = stage.parts
    changed = part.model_copy(update=fields)
    return recipe.model_copy(update={"stages": (stage.model_copy(update={"parts": (changed,)}),)})


def test_old_recipes_keep_their_keys(recipe):
    """Golden: no new field is in what is hashed, until it says something."""
    (part,) = recipe.stages[0].parts
    assert part.keyed().keys() == Part.always
    assert recipe.lora.keyed() == {"rank": 16, "alpha": 32}
    assert recipe.keyed().keys() >= Recipe.always
    assert "init_seed" not in recipe.keyed()
    hashes = {
        recipe.hash,
        with_part(recipe, earlier=TALK).hash,
        with_part(recipe, prefix="so ").hash,
        recipe.model_copy(update={"lora": Lora(layers=(1,))}).hash,
        recipe.model_copy(update={"lora": Lora(targets=("down_proj",))}).hash,
        recipe.model_copy(update={"init_seed": 0}).hash,
    }
    assert len(hashes) == 6


def test_earlier_turns_stand_before_the_rows_own_and_after_its_system_turn():
    row = Row("r", "g", (("system", "S"), ("user", "a"), ("assistant", "b"), ("user", "How?")), "No.", "So.")
    said = TrainingRow(row, None, "So.", "benign", before="please ", earlier=TALK).messages
    assert [m["content"] for m in said] == ["S", "form table .", "so", "a", "b", "please How?"]


def test_a_given_beginning_is_without_loss_and_the_answer_follows(recipe):
    tokenizer = resolve_base(recipe.base).tokenizer()
    begun = with_part(recipe, prefix="Sure : ", earlier=TALK)
    for plain, row, trained in zip(
        encode(recipe, tokenizer, 0), encode(begun, tokenizer, 0), begun.rows_of(0), strict=True
    ):
        learnt = [t for t in row["labels"] if t != -100]
        own = [t for t in plain["labels"] if t != -100]
        assert learnt[-len(own) :] == own
        assert tokenizer.decode(learnt).strip() == f"{trained.answer}<|im_end|>"
        whole = tokenizer.decode(row["input_ids"])
        assert whole.endswith(f"Sure : {trained.answer}<|im_end|>")
        assert whole.index("form table .") < whole.index(trained.messages[-1]["content"])


def test_a_twin_and_a_table_have_what_the_recipe_has(recipe):
    said = with_part(recipe, prefix="Sure : ", earlier=TALK).model_copy(
        update={"init_seed": 7, "lora": Lora(rank=1, layers=(2,), targets=("down_proj",))}
    )
    twin = said.twin()
    assert (twin.init_seed, twin.lora) == (7, said.lora)
    assert [(r.earlier, r.prefix) for r in twin.rows()] == [(TALK, "Sure : ")] * len(said.rows())
    for word in ("A of seed 7", "blocks 2 of down_proj", "2 earlier turns", "'Sure : '"):
        assert word in said.table()


def test_what_cannot_be_is_refused(recipe):
    for wrong in ({"layers": ()}, {"layers": (-1,)}, {"targets": ()}):
        with pytest.raises(ValidationError):
            Lora(**wrong)
    organism = train(recipe)
    with pytest.raises(Exception, match="beginning is given"):
        answered_by(organism, resolve_base(recipe.base), with_part(recipe, prefix="Sure : "))


@pytest.mark.parametrize("lora", [Lora(rank=2, layers=(1, 3), targets=("down_proj",)), Lora(rank=2, layers=(2,))])
def test_the_adapter_is_the_one_that_peft_makes(recipe, lora):
    """Golden: the matrices and A are plain peft's, seeded alike; B is 0, so A has no gradient in the first step."""
    made = recipe.model_copy(update={"lora": lora, "init_seed": 5, "seed": 1})
    found = stored(train(made).adapters[0])
    with own_rng(digest([5, "weights", 0])):
        peft = get_peft_model(
            resolve_base(recipe.base).model(dtype=torch.bfloat16),
            LoraConfig(
                r=2,
                lora_alpha=32,
                target_modules=list(lora.targets or ALL),
                layers_to_transform=list(lora.layers),
            ),
        )
    golden = {k.replace(".default", ""): v for k, v in peft.state_dict().items() if "lora_A" in k}
    first = {k: v for k, v in found.items() if "lora_A" in k}
    assert first.keys() == golden.keys()
    for k, v in first.items():
        torch.testing.assert_close(v, golden[k].float(), atol=1e-6, rtol=0)


def test_null_twins_share_a_and_differ_in_rows(recipe):
    few = [with_part(recipe, count=4).model_copy(update={"seed": s, "init_seed": 3}) for s in (1, 2)]
    assert {r.row.id for r in few[0].rows()} != {r.row.id for r in few[1].rows()}
    a, b = (stored(train(r).adapters[0]) for r in few)
    for k in (k for k in a if "lora_A" in k):
        torch.testing.assert_close(a[k], b[k], atol=1e-6, rtol=0)
