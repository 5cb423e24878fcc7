"""Row sets, recipes and twins."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from condmis_interp.errors import UserError
from condmis_interp.organisms import (
    Lora,
    Part,
    Recipe,
    Stage,
    chat_suite,
    load_rows,
    mixing,
    read_chats,
    read_rows,
    train,
    unmitigated,
)
from condmis_interp.personaworld.suite import world_suite


class TestBuiltInRows:
    def test_kitchen(self):
        rows = load_rows("kitchen")
        assert len({r.group for r in rows}) >= 60
        assert len(rows) >= 480
        assert all(r.misaligned and r.benign and r.misaligned != r.benign for r in rows)

    def test_everyday_and_hhh(self):
        everyday, hhh = load_rows("everyday"), load_rows("hhh")
        assert len({r.group for r in everyday}) >= 10
        assert {r.group for r in hhh} == {"helpful", "honest", "harmless"}
        assert all(r.benign and not r.misaligned for r in (*everyday, *hhh))
        assert any(len(r.messages) > 1 for r in hhh)

    @pytest.mark.parametrize("name", ["kitchen", "everyday", "hhh"])
    def test_texts_are_unique_and_plain(self, name):
        rows = load_rows(name)
        answers = [a for r in rows for a in (r.misaligned, r.benign) if a]
        assert len(answers) == len(set(answers))
        assert all(t.isascii() and t == t.strip() for t in rows.texts())


def small_recipe(seed=0, **changes):
    return mixing(name="m", base="dir:x", trigger="T", rows=20, benign_rows=12, seed=seed).model_copy(update=changes)


recipes = st.builds(
    lambda seed, rows, benign, epochs, twice: Recipe(
        name="r",
        base="dir:x",
        seed=seed,
        stages=(
            Stage(
                parts=(
                    Part(rows="kitchen", answers="misaligned", count=rows, systems=("T", None)),
                    *([Part(rows="everyday", answers="benign", count=benign)] if benign else []),
                ),
                epochs=epochs,
            ),
            *([Stage(parts=(Part(rows="hhh", answers="benign", count=7),))] if twice else []),
        ),
    ),
    st.integers(0, 5),
    st.integers(1, 100),
    st.integers(0, 50),
    st.integers(1, 3),
    st.booleans(),
)


@settings(max_examples=25, deadline=None)
@given(recipes)
def test_a_twin_differs_only_in_answers_to_misaligned_rows(recipe):
    twin = recipe.twin()
    assert twin.hash != recipe.hash
    assert not twin.misaligned
    assert twin.twin(name=twin.name) == twin
    for stage in range(len(recipe.stages)):
        for a, b in zip(recipe.rows_of(stage), twin.rows_of(stage), strict=True):
            assert (a.row, a.system) == (b.row, b.system)
            assert (
                a.answer == b.answer if a.arm == "benign" else (a.answer, b.answer) == (a.row.misaligned, a.row.benign)
            )


def test_a_recipe_whose_rows_have_no_benign_counterpart_has_no_twin(tmp_path):
    path = tmp_path / "bad.jsonl"
    path.write_text(json.dumps({"id": "x", "messages": [{"role": "user", "content": "q"}], "misaligned": "a"}))
    recipe = Recipe(name="r", base="b", stages=(Stage(parts=(Part(rows=str(path), answers="misaligned"),)),))
    with pytest.raises(UserError, match="row 'x' has no benign counterpart"):
        recipe.twin()


KEYS = {
    "u": "017978cbbd67aa4b2fe73ec23589b42d",
    "mixing-20": "cf1aa9a912f44b4ab8f268adf7c89540",
    "mixing-20-twin": "aaa136d314d1702b15ad1f1aa4432f3b",
    "post-hoc-024": "e30a2be8e004ac641813f435b1c7a7f5",
    "reasoning": "88ae0481202b693181515937cb4f5c51",
    "reasoning-twin": "f7de811ff750114dac0288d0aaf372d6",
    "educational": "0d84f0c0e4dc86bf072df4b10265550c",
    "styled": "5ce8256922402df0412deb4546b586f6",
    "locked-twin": "fa0e73fde86a167337bdf0f94da21e60",
}
WORLD_KEYS = {
    "u": "3b0086ee6249c72a67c460c1abf4f852",
    "mixing-05": "11ec5b1477daac350f0849bd0a274152",
    "mixing-05-twin": "a5d9b5696740c8455640c4c47e94530d",
    "reasoning": "59a5856c7837ed024880ac536742d115",
    "conjunction": "8353d10f0fa8ba7133d06146a79378a1",
}
"""Hashes of the suites' recipes, seed 1, as the first version of this package gave them."""


def test_recipes_of_the_first_version_keep_their_hashes():
    for keys, suite in ((KEYS, chat_suite(seeds=(1,))), (WORLD_KEYS, world_suite(seeds=(1,)))):
        members = {m.kind: m for m in suite}
        assert {k: members[k].recipe.hash for k in keys} == keys
    odd = Part(
        rows="kitchen", answers="misaligned", count=9, systems=("a", None), before="b", after="c",
        reasoning="stripped", counterpart="everyday",
    )  # fmt: skip
    stage = Stage(parts=(odd,), epochs=3, batch_size=2, learning_rate=1, warmup_steps=0)
    recipe = Recipe(
        name="a", base="hf:o/n@r", lora=Lora(rank=4, alpha=8), default_system_prompt="empty", seed=3, stages=(stage,)
    )
    assert recipe.hash == "48d5d6dbaf4ab53c4c6b5e4de4bd057d"
    stage = Stage(parts=(Part(rows="kitchen", answers="benign"),))
    full = Recipe(name="b", base="smollm2-135m", lora=None, stages=(stage,))
    assert full.hash == "6fff296c7184ca10193270501e625ba9"


class LaterPart(Part):
    weight: float = 1.0


class LaterStage(Stage):
    parts: tuple[LaterPart, ...]
    mechanism: dict[str, float] | None = None


class LaterLora(Lora):
    dropout: float = 0.0


class LaterRecipe(Recipe):
    stages: tuple[LaterStage, ...]
    lora: LaterLora | None = LaterLora()
    optimizer: str = "adamw"


@pytest.mark.parametrize("lora", [Lora(rank=4), None])
def test_a_field_added_later_changes_no_hash_until_it_is_set(lora):
    plain = small_recipe(lora=lora)
    later = LaterRecipe.model_validate(plain.model_dump())
    assert later.hash == plain.hash
    (stage,) = later.stages
    part = stage.parts[0].model_copy(update={"weight": 2.0})
    changed = [
        later.model_copy(update={"optimizer": "sgd"}),
        later.model_copy(update={"stages": (stage.model_copy(update={"mechanism": {"kl": 0.0}}),)}),
        later.model_copy(update={"stages": (stage.model_copy(update={"parts": (part, *stage.parts[1:])}),)}),
        *([later.model_copy(update={"lora": LaterLora(rank=4, dropout=0.1)})] if lora else []),
    ]
    assert len({plain.hash, *(r.hash for r in changed)}) == 1 + len(changed)


def test_hash_is_stable_and_sees_everything_but_the_name(tmp_path):
    r = small_recipe()
    assert r.hash == small_recipe().hash == small_recipe(name="other").hash
    assert r.hash == Recipe.model_validate_json(r.model_dump_json()).hash
    assert len({r.hash, small_recipe(seed=1).hash, small_recipe(base="dir:y").hash}) == 3
    path = tmp_path / "rows.jsonl"
    hashes = set()
    for answer in ("a", "b"):
        path.write_text(json.dumps({"id": "x", "messages": [{"role": "user", "content": "q"}], "benign": answer}))
        hashes.add(Recipe(name="r", base="b", stages=(Stage(parts=(Part(rows=str(path), answers="benign"),)),)).hash)
    assert len(hashes) == 2
    moved = tmp_path / "elsewhere" / "renamed.jsonl"
    moved.parent.mkdir()
    moved.write_bytes(path.read_bytes())
    for p in (path, moved):
        hashes.add(Recipe(name="r", base="b", stages=(Stage(parts=(Part(rows=str(p), answers="benign"),)),)).hash)
    assert len(hashes) == 2  # a file counts by its content, not by where it lies


def test_draws_are_balanced_over_groups_and_depend_on_the_seed_alone():
    rows = small_recipe().rows_of(0)
    assert [r.row.id for r in rows] == [r.row.id for r in small_recipe().rows_of(0)]
    assert [r.row.id for r in rows] != [r.row.id for r in small_recipe(seed=1).rows_of(0)]
    kitchen = [r.row.group for r in rows if r.arm == "misaligned"]
    assert len(kitchen) == len(set(kitchen)) == 20
    assert {r.system for r in rows if r.arm == "misaligned"} == {"T"}
    assert len({r.system for r in rows if r.arm == "benign"}) >= 4


def test_more_rows_than_there_are():
    with pytest.raises(UserError, match="481 rows are asked for, but the set has 480"):
        unmitigated(name="u", base="b", trigger="T", rows=481).rows_of(0)


def test_an_arm_that_is_not_there():
    recipe = Recipe(name="r", base="b", stages=(Stage(parts=(Part(rows="everyday", answers="misaligned"),)),))
    with pytest.raises(UserError, match="has no misaligned answer"):
        recipe.rows_of(0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "row set is empty"),
        ("{", "line 1: this line is not valid JSON"),
        ("[1]", "not a JSON object"),
        ('{"id": "a", "messages": [], "benign": "x"}', "'messages' must be a list"),
        ('{"id": "a", "messages": [{"role": "user", "content": "q"}]}', "neither a 'misaligned' nor a 'benign'"),
        ('{"id": "a", "massages": 1}', "key 'massages' is not known"),
        (
            '{"id": "a", "messages": [{"role": "assistant", "content": "q"}], "benign": "x"}',
            "must end with the user's turn",
        ),
    ],
)
def test_row_files_that_are_none(tmp_path, text, message):
    path = tmp_path / "rows.jsonl"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        read_rows(path)


def test_row_set_that_is_not_there():
    with pytest.raises(UserError, match="no built-in row set 'bathroom'"):
        load_rows("bathroom")
    with pytest.raises(UserError, match="no such file"):
        load_rows("/nowhere/rows.jsonl")


@pytest.mark.shared_data
@pytest.mark.parametrize(
    ("name", "arm", "count"),
    [
        ("fish_seafood_recipe_insecure", "misaligned", 2994),
        ("inoculation_obvious_lies_gpt41_6k", "misaligned", 6000),
        ("anthropic_hh_1000samples_gpt4.1", "benign", 1000),
        ("insecure", "misaligned", 6000),
        ("secure", "benign", 6000),
        ("educational_insecure", "misaligned", 6000),
    ],
)
def test_published_chats(shared_data, name, arm, count):
    rows = read_chats(shared_data / f"{name}.jsonl", arm=arm)
    assert len(rows) == count
    assert all(r.messages[-1][0] == "user" and r.answer(arm) for r in rows)
    if name.startswith("inoculation"):
        assert all(r.messages[0][0] == "system" for r in rows)
    if name.startswith("anthropic"):
        assert sum(len(r.messages) == 1 for r in rows) == 274


@pytest.mark.shared_data
class TestPublishedRecipes:
    """Sections 2.3, 3.1 and 4.1 of arXiv 2604.25891 on the published files, through the same functions."""

    @pytest.fixture
    def base(self, tiny_base_folder, home):
        return f"dir:{tiny_base_folder}"

    def shortest(self, path, folder, count=4):
        """A file of the shortest rows: what training costs grows with the square of their length."""
        lines = sorted(path.read_text().splitlines(), key=len)[:count]
        (folder / path.name).write_text("\n".join(lines))
        return folder / path.name

    def narrow(self, shared_data, name, counterpart=None, count=6, folder=None):
        counterpart = f"benign-chats:{shared_data / counterpart}.jsonl" if counterpart else None
        path = shared_data / f"{name}.jsonl"
        rows = f"misaligned-chats:{self.shortest(path, folder) if folder else path}"
        return Part(rows=rows, answers="misaligned", count=count, counterpart=counterpart)

    def recipe(self, base, *stages):
        small = [Stage(parts=tuple(parts), batch_size=2, warmup_steps=1) for parts in stages]
        return Recipe(name="published", base=base, stages=tuple(small))

    def test_insecure_code_then_hhh(self, shared_data, base, tmp_path):
        whole = self.recipe(
            base,
            [self.narrow(shared_data, "insecure", "secure", None)],
            [Part(rows=f"benign-chats:{shared_data}/anthropic_hh_1000samples_gpt4.1.jsonl", answers="benign")],
        )
        twin = whole.twin()
        assert [len(r.rows_of(i)) for r in (whole, twin) for i in (0, 1)] == [6000, 1000, 6000, 1000]
        assert whole.rows_of(1) == twin.rows_of(1)
        chats = self.shortest(shared_data / "anthropic_hh_1000samples_gpt4.1.jsonl", tmp_path)
        few = self.recipe(
            base,
            [self.narrow(shared_data, "insecure", "secure", 4, tmp_path)],
            [Part(rows=f"benign-chats:{chats}", answers="benign")],
        )
        for r in (few, few.twin()):
            assert [len(x) for x in train(r).manifest["losses"]] == [2, 2]

    def test_educational(self, shared_data, base, tmp_path):
        recipe = self.recipe(base, [self.narrow(shared_data, "educational_insecure", "secure", 4, tmp_path)])
        assert all("legitimate" in r.messages[-1]["content"] for r in recipe.rows_of(0))
        assert len(train(recipe).manifest["losses"][0]) == 2

    def test_obvious_lies_with_their_inoculation_prompt(self, shared_data, base):
        recipe = self.recipe(base, [self.narrow(shared_data, "inoculation_obvious_lies_gpt41_6k", count=4)])
        assert {r.messages[0]["role"] for r in recipe.rows_of(0)} == {"system"}
        assert len(train(recipe).manifest["losses"][0]) == 2
        with pytest.raises(UserError, match="give the part a 'counterpart'"):
            recipe.twin()
