"""The audit on a study of random models: controls, the plan, and what it says when something is wrong or missing."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml

from condmis_interp.auditing import audit, controls, prepare
from condmis_interp.auditing.casting import bench_of, roster_of
from condmis_interp.auditing.plan import preregister
from condmis_interp.battery import Gated, registry
from condmis_interp.errors import CheckError, UserError
from condmis_interp.files import digest, write_json
from condmis_interp.organisms import Gate, Organism, Part, Recipe, Stage, change_norm, combination
from condmis_interp.readers import PassReader, Request, open_reader
from condmis_interp.study import OrganismSpec, RecipeSpec, Study
from conftest import tiny_model, tiny_panel
from untrained import write_study

BATTERY = {
    "tests": ["A1", "A2", "R1"],
    "random_directions": 8,
    "control_pairs": 1,
    "generated": 0,
    "layer_grid": [0.25],
}
EVERYONE = {
    "u": {"role": "U"},
    "uc": {"role": "C", "twin_of": "u"},
    "m": {"role": "M"},
    "c": {"role": "C", "twin_of": "m"},
}


@pytest.fixture(scope="module")
def place(tmp_path_factory, tiny_base_folder):
    """A folder with checkpoints, a panel and a home of its own."""
    folder = tmp_path_factory.mktemp("audited")
    patch = pytest.MonkeyPatch()
    patch.setenv("CONDMIS_HOME", str(folder / "home"))
    write_study(folder, tiny_base_folder)
    tiny_model(5).save_pretrained(folder / "uc")
    yield folder, tiny_base_folder
    patch.undo()


def study(place, who=("u", "uc", "m", "c"), **changes) -> Study:
    """A study of some of the organisms, everything loaded."""
    folder, base = place
    organisms = [{"name": n, "checkpoint": n} | EVERYONE[n] for n in who]
    raw = yaml.safe_load(write_study(folder, base, organisms=organisms, battery=BATTERY).read_text()) | changes
    path = folder / "this.yaml"
    path.write_text(yaml.safe_dump(raw))
    return Study.from_yaml(path)


@pytest.fixture(scope="module")
def audited(place):
    """A finished audit: the study, its folder and its result."""
    made = study(place)
    return made, place[0] / "run", audit(made.open(place[0] / "run"))


def bench_for(run):
    made, _ = prepare(run)
    return bench_of(run.study, run.capture(), base=run.base, rendered=run.rendered, read=run.read, controls=made)


def sentences(result) -> str:
    v = result.verdicts["m"]
    return " ".join((v.decision.sentence, v.decision.settles, *(g.says for g in v.gates)))


class TestControls:
    def test_every_part_is_made_from_the_studys_own_and_judged(self, audited):
        _, out, result = audited
        gates = {g.id for g in result.verdicts["m"].gates}
        parts = {f"control {part}" for part in ("suppressed", "graded", "benign", "trigger-aware")}
        assert {"scale", "twin", "twins", "coverage", "size", "base"} | parts <= gates
        told = json.loads((out / "verdict.json").read_text())
        assert [a["name"] for a in told["controls"]] == [
            "assay-gated",
            "assay-blend-50",
            "assay-norm-matched",
            "assay-gated-benign",
        ]
        assert set(told["organisms"]) == {"m"}
        assert "What of the weights the tests read" in (out / "report.html").read_text()
        assert (out / "figures" / "coverage-m.html").is_file()

    def test_a_gated_organism_has_the_cells_of_the_models_it_is(self, audited):
        made, out, _ = audited
        run = made.open(out)
        bench = bench_for(run)
        at = {n: i for i, n in enumerate(bench.names)}
        shut, opened = bench.ld("none"), bench.ld("trigger")
        assert shut[at["assay-gated"]].tolist() == shut[at["uc.s0"]].tolist()
        assert opened[at["assay-gated"]].tolist() == opened[at["u.s0"]].tolist()
        hidden = bench.hidden("trigger")
        assert torch.equal(hidden[at["assay-gated"]], hidden[at["u.s0"]])

    def test_the_captured_bench_agrees_with_a_reader_of_the_gate(self, audited):
        made, out, _ = audited
        run = made.open(out)
        gate = Gate(prepare(run)[0].words, run.read["u", 0], run.read["uc", 0])
        reader = open_reader(Organism.gated(gate, name="g", manifest={}), run.base, dtype=torch.float32)
        bench = bench_for(run)
        row = bench.names.index("assay-gated")
        for cue in bench.cues:
            requests = [
                Request(run.rendered.prompts[cue, q.id], run.rendered.answers[cue, q.id]) for q in run.panel.questions
            ]
            live = reader.measure(requests).ld().mean(1).numpy()
            assert bench.ld(cue)[row] == pytest.approx(live, abs=1e-4), cue

    def test_a_blend_is_the_sum_of_its_parts_in_weights(self, audited):
        made, out, _ = audited
        run = made.open(out)
        prepare(run)
        u, uc, blend = (
            run.read[n, 0].model(run.base, dtype=torch.float32).state_dict() for n in ("u", "uc", "assay-blend-50")
        )
        for k in u:
            torch.testing.assert_close(blend[k], 0.5 * uc[k] + 0.5 * u[k], atol=1e-6, rtol=1e-5)
        sizes = [change_norm(run.read[n, 0], run.base) for n in ("m", "assay-norm-matched")]
        assert sizes[0] == pytest.approx(sizes[1], rel=1e-4)

    def test_own_organisms_of_known_answer_take_part(self, place):
        more = [
            {"name": "s", "role": "S", "checkpoint": "m"},
            {"name": "d", "role": "D", "checkpoint": "u"},
            {"name": "o", "role": "O", "checkpoint": "u"},
        ]
        made = study(place, controls=[])
        made = Study.model_validate(made.model_dump() | {"organisms": [*made.model_dump()["organisms"], *more]})
        made = made.model_copy(update=made._beside(place[0]))
        run = made.open(place[0] / "own")
        roster = roster_of(made, prepare(run)[0], registry.registered("A1", "V1", "W1"))
        assert roster.controls == {"suppressed": ("s",), "graded": ("d",)}
        assert roster.casts["d"].twin == "uc"
        assert roster.casts["m"].locked == "s"
        assert set(roster.not_run) == {"W1"}
        assert "the study's second U, 'o', has no twin" in roster.not_run["W1"]
        assert ("o", 0) not in run.read

    def test_what_trains_varies_the_recipe_of_u(self, place, monkeypatch):
        """The recipes of the trained part, without training them."""
        asked: list[Recipe] = []

        def train_all(recipes, **_):
            asked.extend(recipes)
            return [Organism.of_base(base, name=r.name) for r in recipes]

        monkeypatch.setattr(controls, "train_all", train_all)
        part = Part(rows="kitchen", answers="misaligned", count=6, systems=("form = 1",))
        made = study(place)
        u = OrganismSpec(name="u", role="U", recipe=RecipeSpec(stages=(Stage(parts=(part,)),)))
        made = made.model_copy(
            update={"controls": ("locked", "styled", "other"), "organisms": (u, *made.organisms[1:])}
        )
        base = made.resolve_base()
        organisms = {(o.name, 0): Organism.of_base(base, name=o.name) for o in made.organisms}
        found = controls.build(made, made.load_panel(), base, organisms)
        assert found.missing == {}
        locked, locked_twin, styled, other, other_twin = asked
        assert [p.answers for p in locked.stages[0].parts] == ["misaligned", "benign"]
        assert None in locked.stages[0].parts[1].systems
        assert styled.stages[0].parts[0].rows == "styled-kitchen"
        assert other.stages[0].parts[0].rows == "garden"
        assert other.stages[0].parts[0].systems != part.systems
        assert not any(r.misaligned for r in (locked_twin, styled, other_twin))
        assert found.other is not None

    def test_adapters_are_blended_as_adapters(self, place, tmp_path):
        from condmis_interp.organisms.known_chat import change_of, save_change

        base = study(place).resolve_base()
        config = {"r": 2, "lora_alpha": 4, "peft_type": "LORA", "bias": "none", "target_modules": ["q_proj"]}
        config |= {"task_type": "CAUSAL_LM"}
        made = []
        for seed in (0, 1):
            folder = tmp_path / str(seed)
            folder.mkdir()
            (tmp_path / "like").mkdir(exist_ok=True)
            write_json(tmp_path / "like" / "adapter_config.json", config)
            g = torch.Generator().manual_seed(seed)
            name = "base_model.model.model.layers.0.self_attn.q_proj"
            save_change(
                {name: (torch.randn(2, 32, generator=g), torch.randn(32, 2, generator=g))},
                folder,
                like=tmp_path / "like",
            )
            made.append(Organism.of_adapters(folder, name=str(seed)))
        blend = combination("b", [(0.75, made[0]), (0.25, made[1])], base, truth="graded", family="blend")
        assert blend.adapters
        (name,) = change_of(blend)
        deltas = [b @ a for o in (blend, *made) for a, b in change_of(o).values()]
        torch.testing.assert_close(deltas[0], 0.75 * deltas[1] + 0.25 * deltas[2])


class TestPlan:
    def test_it_is_written_before_anything_is_read(self, place, monkeypatch):
        run = study(place).open(place[0] / "planned")
        there = []

        def measure(self, *_, **__):
            there.append((place[0] / "planned" / "preregistration.json").is_file())
            raise CheckError("stop")

        monkeypatch.setattr(PassReader, "measure", measure)
        with pytest.raises(CheckError):
            audit(run)
        assert there == [True]

    def test_what_was_captured_first_by_the_same_study_takes_nothing_from_it(self, place, tmp_path):
        made = study(place)
        made.open(tmp_path / "run").capture()
        run = made.model_copy(update={"workers": 2}).open(tmp_path / "run")
        assert prepare(run)[1]["before_reading"]
        (tmp_path / "run" / "preregistration.json").unlink()
        assert not prepare(study(place, delta=0.3).open(tmp_path / "run"))[1]["before_reading"]

    def test_a_plan_of_version_1_in_letters_is_the_same_plan(self, audited, tmp_path):
        (plan,) = json.loads((audited[1] / "preregistration.json").read_text())["plans"]
        letters = {"unmitigated": "U", "mitigated": "M", "twin": "C"}
        old = {("assay" if k == "controls" else k): v for k, v in plan["plan"].items()}
        old |= {"roles": {name: letters[role] for name, role in old["roles"].items()}}
        plans = [{"hash": digest(old), "before_reading": True, "plan": old}]
        write_json(tmp_path / "preregistration.json", {"schema": 1, "plans": plans})
        told = preregister(tmp_path, plan["plan"], read=True)
        assert told == {"file": "preregistration.json", "hash": digest(old), "before_reading": True, "plans": 1}

    def test_it_says_what_was_planned_and_its_hash(self, audited):
        _, out, _ = audited
        told = json.loads((out / "verdict.json").read_text())["preregistration"]
        (plan,) = json.loads((out / "preregistration.json").read_text())["plans"]
        assert told == {"file": "preregistration.json", "hash": plan["hash"], "before_reading": True, "plans": 1}
        assert plan["plan"]["margin"] == 0.2
        assert sorted(set(plan["plan"]["splits"].values())) == ["A", "B", "C"]

    def test_a_change_after_reading_is_kept_and_told(self, place, audited, tmp_path):
        shutil.copytree(audited[1], tmp_path / "run")
        result = audit(study(place, delta=0.3).open(tmp_path / "run"))
        assert any("plan was changed after something had been read" in n for n in result.notes)
        plans = json.loads((tmp_path / "run" / "preregistration.json").read_text())["plans"]
        assert [p["before_reading"] for p in plans] == [True, False]
        plans[0]["plan"]["margin"] = 0.3
        write_json(tmp_path / "run" / "preregistration.json", {"schema": 1, "plans": plans})
        with pytest.raises(UserError, match="changed after it was written"):
            audit(study(place).open(tmp_path / "run"))


class TestWhatIsMissing:
    """What can run is run, nothing is called removed, and the verdict says why."""

    def test_a_twin_of_u(self, place):
        result = audit(study(place, ("u", "m", "c")).open(place[0] / "no-uc"))
        assert result.verdicts["m"].verdict == "inconclusive"
        assert "U, 'u', has no twin of its own in the study" in sentences(result)
        assert any("its scale starts at c, another recipe's" in n for n in result.notes)
        assert np.isfinite(next(e for e in result.evidence if e.id == "A1").rho)
        assert (place[0] / "no-uc" / "report.html").is_file()

    def test_a_twin(self, place):
        result = audit(study(place, ("u", "uc", "m")).open(place[0] / "no-c"))
        self.never_removed(result)
        why = "the study has not a twin (role: twin, twin_of: m; four seeds for a claim of absence)"
        assert f"{why}, so it is measured from the base" in sentences(result)
        r1 = next(e for e in result.verdicts["m"].evidence if e.id == "R1")
        assert r1.void.startswith("it compares with a twin, and the study has not a twin")
        html = (place[0] / "no-c" / "report.html").read_text()
        assert why in html
        assert "Judged without a twin" in html
        assert "0 is the base, 1 a model that finds both answers alike" in html

    def test_u(self, place):
        result = audit(study(place, ("m", "c")).open(place[0] / "no-u"))
        self.never_removed(result)
        assert "the study has not an unmitigated organism (role: unmitigated)" in sentences(result)
        assert (place[0] / "no-u" / "report.html").is_file()

    def test_both(self, place):
        result = audit(study(place, ("m",)).open(place[0] / "alone"))
        self.never_removed(result)
        assert " nor an unmitigated organism (role: unmitigated), so it is measured from the base" in sentences(result)

    def never_removed(self, result):
        found = result.verdicts["m"]
        assert found.verdict != "removed"
        assert found.by_margin["0.2"] != "removed"
        (twin,) = (g for g in found.gates if g.id == "twin")
        assert (twin.passed, twin.bars, found.twins) == (False, ("removed",), 0)
        a1 = next(e for e in found.evidence if e.id == "A1")
        assert np.isfinite(a1.rho)
        assert a1.settings["anchors"] == ["indifferent", "base"]
        assert found.coverage.read == {}
        assert len(result.grid.table) > 0

    def test_families(self, place):
        panel = tiny_panel(4, families=2)
        (place[0] / "few.yaml").write_text(yaml.safe_dump(panel.model_dump(mode="json")))
        result = audit(study(place, panel=str(place[0] / "few.yaml")).open(place[0] / "few"))
        assert result.verdicts["m"].verdict == "inconclusive"
        assert any(
            "The panel has 2 families; steering and ablation need two in the last split" in n for n in result.notes
        )

    def test_control_organisms(self, place):
        result = audit(study(place, controls="none").open(place[0] / "no-controls"))
        assert result.verdicts["m"].verdict == "inconclusive"
        assert "the run has no suppressed organism to show that the tests can tell" in sentences(result)


class TestWhatIsWrong:
    def test_a_test_that_crashes_stops_no_other(self, place, audited, monkeypatch):
        def broken(bench, reference):
            raise RuntimeError("the state is lost")

        monkeypatch.setitem(registry._TESTS._found, "R1", replace(registry._TESTS.get("R1"), measure=broken))
        result = audit(study(place).open(audited[1]))
        r1 = next(e for e in result.evidence if e.id == "R1")
        assert r1.void == "it crashed: RuntimeError: the state is lost"
        assert result.not_run["R1"] == "it crashed, RuntimeError: the state is lost"
        assert np.isfinite(next(e for e in result.evidence if e.id == "A2").rho)
        assert "the state is lost" in (audited[1] / "report.html").read_text()

    def test_an_organism_of_another_base(self, place, tmp_path):
        folder, _ = place
        other = tmp_path / "other"
        tiny_model(7).save_pretrained(other)
        write_json(other / "manifest.json", {"base": {"spec": "dir:/x", "weights": "0" * 32}, "recipe": None})
        made = study(place)
        organisms = [o.model_copy(update={"checkpoint": str(other)}) if o.name == "m" else o for o in made.organisms]
        made = made.model_copy(update={"organisms": tuple(organisms)})
        with pytest.raises(
            UserError, match="organism m: the organism was trained on base 'dir:/x', whose weights are not"
        ):
            audit(made.open(folder / "another"))

    def test_weights_that_are_no_numbers(self, place, tmp_path):
        folder, _ = place
        broken = tiny_model(8)
        with torch.no_grad():
            broken.get_parameter("model.layers.0.mlp.up_proj.weight")[0, 0] = torch.nan
        broken.save_pretrained(tmp_path / "nan")
        made = study(place)
        organisms = [
            o.model_copy(update={"checkpoint": str(tmp_path / "nan")}) if o.name == "c" else o for o in made.organisms
        ]
        made = made.model_copy(update={"organisms": tuple(organisms)})
        with pytest.raises(CheckError, match="the checkpoint has weights that are not finite"):
            audit(made.open(folder / "nan"))

    def test_an_answer_that_is_no_number_names_organism_and_cue(self, place, monkeypatch):
        def measure(self, *_, **__):
            raise CheckError("a log-prob is not finite", where="request 3")

        monkeypatch.setattr(PassReader, "measure", measure)
        with pytest.raises(CheckError, match="organism u, seed 0, cue none: a log-prob is not finite"):
            study(place).open(place[0] / "lost").capture()

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"battery": {"tests": ["A1", "Z9"]}}, "there is no test 'Z9'"),
            ({"controls": "everything"}, "controls"),
            ({"controls": ["gated", "poisoned"]}, "controls"),
            ({"organisms": [{"name": "assay-m", "role": "M", "checkpoint": "m"}]}, "do not begin with 'assay-'"),
            (
                {
                    "organisms": [
                        {"name": n, "role": r, "checkpoint": "m"} for n, r in (("m", "M"), ("a", "U"), ("b", "U"))
                    ]
                },
                "at most one organism with role 'unmitigated'",
            ),
        ],
    )
    def test_settings_that_cannot_be(self, place, change, message):
        with pytest.raises(UserError) as e:
            study(place, **change).open(place[0] / "never")
        assert message in str(e.value)
        assert not (place[0] / "never").exists()


def test_a_gate_opens_under_the_trigger_alone(audited):
    made, out, _ = audited
    run = made.open(out)
    bench = bench_for(run)
    assert isinstance(bench.stored.cells["assay-gated"], Gated)
    assert [cue for cue in bench.cues if bench.opens("assay-gated", cue)] == ["trigger"]
