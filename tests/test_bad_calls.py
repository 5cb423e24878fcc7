"""Three hundred bad calls, by kind: each ends as a sentence that says what is wrong, and nothing is lost.

From Python a `CondmisError`; on the command line exit code 2 (1 where it is not the caller's fault).
"""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from condmis_interp import auditing, directions, organisms, panel, store, study
from condmis_interp.errors import CondmisError
from condmis_interp.readers import Ablate, Capture, Patch, Request, Site, Steer, Streams, TorchReader
from condmis_interp.readers.base import Decoding
from conftest import tiny_model, tiny_panel
from test_cli import run
from untrained import write_study

HOSTILE = ("../../etc/passwd", "<script>", "a\x00b", "\ud800", "", "x" * 5000, "[bold]", "{{ 1/0 }}", "-rf")
WRONG = (None, 7, 1.5, True, b"x", object(), ["x"], {"a": 1}, np.arange(3))


def sentence(error: BaseException) -> None:
    text = str(error)
    assert isinstance(error, CondmisError), f"{type(error).__name__}: {text}"
    assert text.rstrip().endswith((".", "?", "!"))
    assert not re.search(r"unexpected|KeyError|AttributeError|AssertionError|Traceback|object at 0x", text)


@pytest.fixture(scope="module")
def acts(captured):
    return store.Activations.open(captured / "activations", verify="used")


@pytest.fixture(scope="module")
def reader():
    return TorchReader(tiny_model())


@pytest.fixture(scope="module")
def asked(tokenizer):
    rendered = panel.render_panel(tokenizer, tiny_panel(2))
    return [Request(rendered.prompts["none", q], rendered.answers["none", q]) for q in ("q0", "q1")]


NAMES = ("nobody", "", "../x", 7, None, ["u"], b"u", "\ud800")
DID = {"organism": "m", "twin": "c", "layer": 1}
KINDS_OF_LAYERS = (99, -1, "one", None, 1.5, [1], float("nan"))
OF_ACTIVATIONS = {
    "difference_in_differences": (
        {"organism": "m", "twin": "c", "layer": 1},
        {"organism": NAMES, "twin": NAMES, "trigger": NAMES, "layer": KINDS_OF_LAYERS, "position": ("here", 7, None)},
    ),
    "difference_of_means": (
        {"plus": "m", "minus": "c", "cue": "none", "layer": 1},
        {"plus": NAMES, "cue": NAMES, "layer": KINDS_OF_LAYERS, "splits": (("Z",), "A B", 7, None)},
    ),
    "trigger_only": ({"twin": "c", "layer": 1}, {"twin": NAMES, "neutral": NAMES, "layer": KINDS_OF_LAYERS}),
    "rows_of": (
        {"plus": [("m", "none")], "minus": [("c", "none")]},
        {
            "plus": ([], "m", [("m",)], [("nobody", "none")], [7], None, [("m", "no-cue")]),
            "layers": ((99,), "all", [1.5], 3),
            "positions": (("here",), (), 7),
            "seed": (99, "one"),
        },
    ),
    "covariance_matched": (
        {"organisms": ("m",), "cues": ("none",), "layer": 1, "position": "answer_mean", "count": 2},
        {
            "organisms": (("nobody",), "m", 7),
            "cues": (("no",), None),
            "layer": KINDS_OF_LAYERS,
            "count": (0, -1, "two"),
        },
    ),
}


def of_activations():
    for name, (good, bad) in OF_ACTIVATIONS.items():
        for key, values in bad.items():
            for value in values:
                yield pytest.param(name, {**good, key: value}, id=f"{name}-{key}-{value!a:.20}")


@pytest.mark.parametrize(("name", "given"), of_activations())
def test_directions(acts, name, given):
    more = {"generator": torch.Generator().manual_seed(0)} if name == "covariance_matched" else {}
    with pytest.raises(Exception) as e:  # noqa: PT011 - `sentence` says which
        getattr(directions, name)(acts, **given, **more)
    sentence(e.value)


@pytest.mark.parametrize("value", WRONG, ids=lambda v: type(v).__name__)
@pytest.mark.parametrize("name", [*OF_ACTIVATIONS, "fit_probes", "probe_test", "gap_table", "erase"])
def test_something_else_for_the_activations(name, value):
    with pytest.raises(Exception) as e:  # noqa: PT011
        getattr(directions, name)(value)
    sentence(e.value)


@pytest.mark.parametrize(
    ("change", "given"),
    [
        ({}, {"folds": "five"}),
        ({}, {"folds": np.zeros(3)}),
        ({}, {"folds": np.full(10, np.nan)}),
        ({}, {"method": "svm"}),
        ({}, {"method": None}),
        ({}, {"strength": float("nan")}),
        ({}, {"strength": -1.0}),
        ({}, {"strength": 0.0}),
        ({}, {"strength": "much"}),
        ({}, {"massive": "maybe"}),
        ({"labels": np.ones(1)}, {}),
    ],
)
def test_probes(acts, change, given):
    from dataclasses import replace

    rows = directions.rows_of(acts, plus=[("m", "none")], minus=[("c", "none")], layers=(1,), splits=("A", "B", "C"))
    good = {"folds": np.arange(len(rows.labels)) % 2}
    with pytest.raises(Exception) as e:  # noqa: PT011
        directions.fit_probes(replace(rows, **change), **(good | given))
    sentence(e.value)


V, SITE = torch.ones(32), Site("resid_post", 1)
OF_EDITS = {
    "site": lambda: Site("resid_post", "one"),
    "site kind": lambda: Site("nowhere", 1),
    "site none": lambda: Site(None, 1),
    "site float": lambda: Site("resid_post", 1.5),
    "site parse": lambda: Site.parse("resid_post[x]"),
    "site parse hostile": lambda: Site.parse("a\x00b[1]"),
    "site parse none": lambda: Site.parse(None),
    "capture": lambda: Capture("all"),
    "capture number": lambda: Capture(3),
    "capture none": lambda: Capture(()),
    "capture text": lambda: Capture(("one",)),
    "capture twice": lambda: Capture((1, 1)),
    "capture back": lambda: Capture((2, 1)),
    "capture position": lambda: Capture((1,), positions=("here",)),
    "capture position text": lambda: Capture((1,), positions="answer_mean"),
    "capture kind": lambda: Capture((1,), kind="nowhere"),
    "capture named": lambda: Capture.named("blocks.x.hook_resid_post"),
    "capture nothing named": lambda: Capture.named(),
    "steer list": lambda: Steer(SITE, [1.0, 2.0]),
    "steer nan": lambda: Steer(SITE, V * torch.nan),
    "steer integers": lambda: Steer(SITE, V.long()),
    "steer matrix": lambda: Steer(SITE, V[None]),
    "steer site": lambda: Steer("resid_post[1]", V),
    "steer scope": lambda: Steer(SITE, V, scope=frozenset(("here",))),
    "steer no scope": lambda: Steer(SITE, V, scope=frozenset()),
    "steer scope number": lambda: Steer(SITE, V, scope=7),
    "steer elsewhere": lambda: Steer(SITE, V, fitted_at=Site("resid_post", 2)),
    "steer meta": lambda: Steer(SITE, V.to("meta")),
    "ablate basis": lambda: Ablate(SITE, V, {"answer": torch.zeros(1)}),
    "ablate not orthonormal": lambda: Ablate(SITE, V[None], {"answer": torch.zeros(1)}),
    "ablate target": lambda: Ablate(SITE, torch.eye(32)[:1], {"answer": torch.zeros(2)}),
    "ablate target list": lambda: Ablate(SITE, torch.eye(32)[:1], [1.0]),
    "ablate no target": lambda: Ablate(SITE, torch.eye(32)[:1], {}),
    "ablate nan": lambda: Ablate(SITE, torch.eye(32)[:1], {"answer": torch.tensor([torch.nan])}),
    "patch": lambda: Patch(SITE, "a recording"),
    "patch none": lambda: Patch(SITE, None),
    "no tokens": lambda: Decoding(0, frozenset()),
    "no generator": lambda: Decoding(3, frozenset(), temperature=1.0),
    "cold": lambda: Decoding(3, frozenset(), temperature=-1.0),
    "nan": lambda: Decoding(3, frozenset(), temperature=float("nan")),
    "tokens text": lambda: Decoding("three", frozenset()),
}


@pytest.mark.parametrize("name", OF_EDITS)
def test_edits(name):
    with pytest.raises(Exception) as e:  # noqa: PT011
        OF_EDITS[name]()
    sentence(e.value)


def prompts(asked):
    return [r.prompt for r in asked]


CAPTURE = Capture((1,))
OF_READERS = {
    **{f"measure {type(v).__name__}": lambda r, a, v=v: r.measure(v) for v in (None, 7, "text", [], ["text"], [None])},
    **{f"capture {type(v).__name__}": lambda r, a, v=v: r.capture(v, capture=CAPTURE) for v in (None, "x", [], [7])},
    **{f"generate {v!r}": lambda r, a, v=v: r.generate(v) for v in (None, "x", [], [7])},
    **{f"edits {v!r:.12}": lambda r, a, v=v: r.measure(a, edits=v) for v in (7, "x", [None], Steer(SITE, V))},
    **{f"record {v!r:.12}": lambda r, a, v=v: r.record(a, sites=v) for v in ((), [None], ["resid_post[1]"], 7)},
    **{f"layers {v!r}": lambda r, a, v=v: r.trunk(a, layers=v) for v in ((), (99,), (-1,), ("one",), None, 3)},
    **{f"points {v!r:.12}": lambda r, a, v=v: r.sweep(a, v) for v in ([], [[]], None, 7, [7], "x")},
    **{f"as capture {v!r}": lambda r, a, v=v: r.measure(a, capture=v) for v in ("x", 7, (1,))},
    **{f"prefix {v!r}": lambda r, a, v=v: r.measure(a, prefix=v) for v in ("u", 7)},
    **{f"tokens {v!r}": lambda r, a, v=v: r.generate(prompts(a), max_new_tokens=v) for v in (0, -1, "ten", None, 1.5)},
    **{f"stop {v!r}": lambda r, a, v=v: r.generate(prompts(a), stop_ids=v) for v in (7, "x", {None})},
    **{f"heat {v!r}": lambda r, a, v=v: r.generate(prompts(a), temperature=v) for v in (-1, "hot", 1.0, float("nan"))},
    "too far": lambda r, a: r.capture(prompts(a), capture=Capture((99,), positions=("last_template",))),
    "too wide": lambda r, a: r.measure(a, edits=[Steer(SITE, torch.ones(7))]),
    "generate too wide": lambda r, a: r.generate(prompts(a), edits=[Steer(SITE, torch.ones(7))]),
    "generate too far": lambda r, a: r.generate(prompts(a), edits=[Steer(Site("resid_post", 99), V)]),
    "name of": lambda r, a: r.name_of(Site("resid_post", 99)),
    "streams": lambda r, a: Streams(r).read([], [SITE]),
    "streams of text": lambda r, a: Streams(r).read(["text"], [SITE]),
    "streams nowhere": lambda r, a: Streams(r).read([[1]], []),
    "above": lambda r, a: list(Streams(r).above([[1, 2]], SITE, [torch.ones(1, 32)])),
    "dealt": lambda r, a: r.record(a, sites=[SITE]).dealt([99]),
    "no model": lambda r, a: TorchReader("a model"),
    "none": lambda r, a: TorchReader(None),
    "a module": lambda r, a: TorchReader(torch.nn.Linear(2, 2)),
}


@pytest.mark.parametrize("name", OF_READERS)
def test_readers(reader, asked, name):
    with pytest.raises(Exception) as e:  # noqa: PT011
        OF_READERS[name](reader, asked)
    sentence(e.value)


PATHS = ("nowhere.yaml", "", "\x00", ".", "list.yaml", "broken.yaml", "binary.yaml", "deep.yaml", 7, None, ["a"])
OPENERS = {
    "study": lambda p: study.Study.from_yaml(p),
    "recipe": lambda p: organisms.Recipe.from_yaml(p),
    "panel": lambda p: panel.load_panel(p),
    "rows": lambda p: organisms.read_rows(p),
    "chats": lambda p: organisms.read_chats(p, arm="benign"),
    "questions": lambda p: panel.read_published_questions(p),
    "row set": lambda p: organisms.load_rows(p),
    "base": lambda p: organisms.resolve_base(p),
    "folder base": lambda p: organisms.resolve_base(f"dir:{p}"),
    "adapter": lambda p: organisms.Organism.of_adapters(p, name="x"),
    "checkpoint": lambda p: organisms.Organism.of_checkpoint(p, name="x"),
    "organism": lambda p: organisms.Organism.open(p, name="x"),
    "store": lambda p: store.Activations.open(p),
    "capture": lambda p: study.capture(p, "out"),
    "audit": lambda p: auditing.audit(p),
    "result": lambda p: __import__("condmis_interp").verdict.AuditResult.load(p),
    "direction": lambda p: directions.Direction.load(p),
}


@pytest.fixture
def odd_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CONDMIS_HOME", str(tmp_path / "home"))
    (tmp_path / "list.yaml").write_text("- a")
    (tmp_path / "broken.yaml").write_text("{a: [")
    (tmp_path / "binary.yaml").write_bytes(bytes(range(256)))
    (tmp_path / "deep.yaml").write_text("[" * 5000)
    return tmp_path


@pytest.mark.parametrize("path", PATHS, ids=lambda p: f"{p!a:.14}")
@pytest.mark.parametrize("opener", OPENERS)
def test_files(odd_files, opener, path):
    before = sorted(odd_files.iterdir())
    with pytest.raises(Exception) as e:  # noqa: PT011
        OPENERS[opener](Path(path) if isinstance(path, str) and opener in ("adapter", "checkpoint") else path)
    sentence(e.value)
    assert sorted(p for p in odd_files.iterdir() if p.name not in ("home", "out")) == before


FIELDS = {
    "name": (*HOSTILE, None, 7, []),
    "base": ("", "nowhere", "dir:", "dir:nowhere", "hf:", None, 7, [], "\x00"),
    "panel": ("nowhere.yaml", "", None, 7, [], "../panel", "list.yaml"),
    "pairs": (0, -1, 99, "two", float("nan"), [], 1.5),
    "organisms": ([], None, "u", [7], [{}], [{"name": "m"}], [{"name": "m", "role": "boss", "checkpoint": "m"}]),
    "controls": ("some", 7, ["nobody"], ["blend", "blend"]),
    "site": ("resid", 7, None, []),
    "battery": (7, [], {"tests": []}, {"tests": ["nobody"]}, {"tests": ["A1", "A1"]}, {"doses": [float("nan"), 1]}),
    "delta": (0, 1, -1, float("nan"), float("inf"), "small", None),
    "seed": (-1, 1.5, "one", None, float("inf")),
    "reader": ("nobody", 7, None, ""),
    "device": ("gpu", "cuda:99", 7, None, "", "mps"),
    "workers": (0, -1, "all", 1.5),
    "dtype": ("float64", 7, None),
    "store_dtype": ("int8", []),
    "store_shard": (0, -1, "big", float("nan")),
    "cues": (7, [{"name": "t"}], [{"name": "t", "role": "boss"}], []),
    "nonsense": (1,),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_base_folder):
    made = tmp_path_factory.mktemp("fields")
    write_study(made, tiny_base_folder)
    (made / "list.yaml").write_text("- a")
    return made


@pytest.mark.parametrize(
    ("key", "value"), [pytest.param(k, v, id=f"{k}-{v!a:.20}") for k, vs in FIELDS.items() for v in vs]
)
def test_fields_of_a_study(folder, tiny_base_folder, tmp_path, monkeypatch, capsys, key, value):
    monkeypatch.setenv("CONDMIS_HOME", str(tmp_path / "home"))
    whole = yaml.safe_load(write_study(folder, tiny_base_folder).read_text())
    path = folder / "bad.yaml"
    path.write_text(yaml.safe_dump(whole | {key: value}, allow_unicode=False))
    out = tmp_path / "out"
    code, said, err = run(monkeypatch, capsys, "capture", path, "--out", out)
    assert code == 2, said + err
    assert err.startswith("error: ")
    assert err.rstrip().endswith((".", "?", "!"))
    assert not re.search(r"error: unexpected|Traceback|object at 0x", err)
    assert not list(out.rglob("*.safetensors"))


LINES = {
    **{
        f"{c} {p!a}": [c, p]
        for c in ("audit", "capture", "train")
        for p in ("nowhere", ".", "", "list.yaml", "deep.yaml")
    },
    **{f"{c} broken": [c, "broken.yaml"] for c in ("audit", "capture", "train")},
    **{f"{c} binary": [c, "binary.yaml"] for c in ("audit", "capture", "train")},
    **{f"{c} nothing": [c] for c in ("audit", "capture", "train", "report")},
    **{f"{c} unknown": [c, "--loud"] for c in ("audit", "capture", "train", "report", "demo", "doctor", "organisms")},
    **{f"{c} too many": [c, "list.yaml", "list.yaml"] for c in ("audit", "capture", "train", "report")},
    **{f"report {p!a}": ["report", p] for p in ("nowhere", ".", "list.yaml", "")},
    **{f"seeds {s!a}": ["calibrate", "--seeds", s] for s in ("x", "1-", "-", "1,,2", "3-1", "0-999999999999", "1,1")},
    **{f"delta {d}": ["calibrate", "--delta", d] for d in ("small", "nan", "2", "-1", "0")},
    "hostile": ["audit", "[bold]<script>"],
    "no such command": ["dance"],
    "an option's value": ["capture", "list.yaml", "--out"],
}


@pytest.mark.parametrize("name", LINES)
def test_command_lines(odd_files, monkeypatch, capsys, name):
    before = sorted(odd_files.iterdir())
    code, _, err = run(monkeypatch, capsys, *LINES[name])
    assert code == 2, err
    assert err.startswith("error: ")
    assert not re.search(r"error: unexpected|Traceback|object at 0x", err)
    assert sorted(odd_files.iterdir()) == before
