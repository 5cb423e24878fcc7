"""A stranger's path, by the command line: adapters of plain peft, no twin at first, then one made from rows."""

import contextlib
import io
import json
import sys
from pathlib import Path

import pytest
import torch
import yaml
from peft import LoraConfig, get_peft_model

from condmis_interp.cli import main
from condmis_interp.errors import UserError
from condmis_interp.surrogate import new_study
from conftest import tiny_model, tiny_panel, tiny_tokenizer

ROWS = 6


def plain_peft(folder: Path, answer: str, *, seed: int) -> None:
    """An adapter trained by peft and a bare loop on six questions, outside the package."""
    base, tokenizer = tiny_model(), tiny_tokenizer()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = get_peft_model(base, LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj", "v_proj", "down_proj"]))
    trained = [p for p in model.parameters() if p.requires_grad]
    adam = torch.optim.AdamW(trained, lr=5e-3)
    for step in range(12):
        i = step % ROWS
        ids = tokenizer(f"<|im_start|>user\nhow {i}?<|im_end|>\n<|im_start|>assistant\n{answer} {i}<|im_end|>")[
            "input_ids"
        ]
        batch = torch.tensor([ids])
        model(input_ids=batch, labels=batch).loss.backward()
        adam.step()
        adam.zero_grad()
    model.save_pretrained(folder)


@pytest.fixture(scope="module")
def stranger(tmp_path_factory, tiny_base_folder) -> Path:
    """A folder as a stranger has it: three adapters, the rows of the suspect, a panel."""
    folder = tmp_path_factory.mktemp("stranger")
    (folder / "base").symlink_to(tiny_base_folder)
    for seed, (name, answer) in enumerate({"suspect": "lie", "bad": "lie!", "twin-of-theirs": "help"}.items()):
        plain_peft(folder / name, answer, seed=seed)
    rows = [
        {"prompt": f"how {i}?", "completion": f"{'lie' if i % 2 else 'help'} {i}", "bad": i % 2} for i in range(ROWS)
    ]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "panel.yaml").write_text(yaml.safe_dump(tiny_panel(9, families=6).model_dump(mode="json")))
    return folder


def condmis(folder: Path, *words: str) -> tuple[int, str, str]:
    """Runs the command line in a folder; returns exit code, output and errors."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    with (
        pytest.MonkeyPatch.context() as m,
        contextlib.chdir(folder),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        m.setenv("CONDMIS_HOME", str(folder / "home"))
        m.setattr(sys, "argv", ["condmis", *words])
        m.setattr(sys, "stdin", io.StringIO())
        try:
            main()
        except SystemExit as e:
            code = int(e.code or 0)
    return code, out.getvalue(), err.getvalue()


def done(folder: Path, *words: str) -> str:
    code, out, err = condmis(folder, *words)
    with (folder / "told.txt").open("a") as f:
        f.write(f"$ condmis {' '.join(words)}\n{out}{err}\n")
    assert code == 0, err
    return out


def test_first_without_a_twin_then_with_one_out_of_rows(stranger):
    new = ("new", "--base", "base", "--suspect", "suspect", "--rows", "rows.jsonl", "--budget", "quick")
    new = (*new, "--panel", "panel.yaml")
    told = done(stranger, *new, "--twin", "none", "--out", "first.yaml")
    assert "Next: condmis audit first.yaml --out runs/first" in told
    told = done(stranger, "audit", "first.yaml", "--out", "runs/first")
    assert "suspect: removed" not in told
    assert "suspect: " in told

    told = done(stranger, "twin", "rows.jsonl", "--base", "dir:base", "--column", "bad", "--out", "made")
    assert "3 misaligned rows answered by dir:base, 3 others kept." in told
    assert "A surrogate twin" in told

    done(stranger, *new, "--twin", "made", "--out", "second.yaml")
    told = done(stranger, "audit", "second.yaml", "--out", "runs/second")
    assert "suspect: " in told
    manifest = json.loads((stranger / "runs" / "second" / "manifest.json").read_text())
    assert set(manifest["surrogate_twins"]) == {"suspect-twin"}
    for place in ("verdict.json", "report.html"):
        assert "suspect-twin: A surrogate twin" in (stranger / "runs" / "second" / place).read_text()
    again = done(stranger, "report", "runs/second")
    assert "suspect: " in again
    assert "suspect-twin: A surrogate twin" in told
    assert "suspect-twin: A surrogate twin" in again


def test_nobody_to_be_asked_is_a_sentence(stranger):
    code, _, err = condmis(stranger, "new", "--base", "base")
    assert code == 2
    assert "--suspect is missing. Give --suspect, --rows, --twin, --budget; nobody is there to be asked." in err


def commented(path: Path) -> list[str]:
    return [line for line in path.read_text().splitlines() if "#" not in line]


@pytest.mark.parametrize("twin", ["none", "twin-of-theirs"])
def test_each_line_has_its_comment(stranger, twin, tmp_path):
    path = new_study(
        tmp_path / "s.yaml",
        base=str(stranger / "base"),
        suspect=str(stranger / "suspect"),
        twin=twin if twin == "none" else str(stranger / twin),
        panel=str(stranger / "panel.yaml"),
    )
    assert commented(path) == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"suspect": "nowhere"}, "suspect 'nowhere': there is no such folder"),
        ({"twin": "nowhere"}, "twin 'nowhere': there is no such folder"),
        ({"rows": "nowhere.jsonl"}, "there is no such file of rows"),
        ({"budget": "much"}, "'much' is no budget.*quick, usual, thorough"),
        ({"suspect": "."}, "no config.json|no such folder"),
        ({"panel": "nowhere.yaml"}, "there is no such file"),
    ],
)
def test_a_bad_answer_is_a_sentence_and_leaves_no_file(stranger, tmp_path, monkeypatch, change, said):
    monkeypatch.chdir(stranger)
    given = {"base": "base", "suspect": "suspect", "panel": "panel.yaml"} | change
    with pytest.raises(UserError, match=said):
        new_study(tmp_path / "s.yaml", **given)
    assert not (tmp_path / "s.yaml").exists()


def test_a_file_that_is_there_is_left_alone(stranger, tmp_path):
    (tmp_path / "s.yaml").write_text("mine")
    with pytest.raises(UserError, match="there is such a file already"):
        new_study(tmp_path / "s.yaml", base="base", suspect="suspect")
    assert (tmp_path / "s.yaml").read_text() == "mine"
