"""Activations with a planted truth, in a real store."""

from pathlib import Path

import numpy as np
import torch

from condmis_interp.panel import Answer, Prompt
from condmis_interp.readers import Measurement
from condmis_interp.store import Activations, Asked, Manifest, Shard, StoreWriter, asked_hash, plan

SAID = (
    Prompt((0, 1, 2), {"cue": (0, 1), "question": (1, 2), "tail": (2, 3)}, "abc"),
    (Answer((3, 4), (1,)), Answer((5,), (1,))),
)
CUES = ("none", "trigger", "neutral", "opposite", "irrelevant")


def planted(
    folder: Path,
    rho: dict[str, float],
    *,
    families: int = 24,
    each: int = 3,
    width: int = 48,
    gap: float = 10.0,
    noise: float = 1.0,
    seed: int = 0,
    dtype: str = "float32",
    shard: int | None = None,
    spoilt: str = "",
) -> tuple[Activations, dict[str, torch.Tensor]]:
    """U, M, C in which M stands at `rho[cue]` between C (0) and U without a cue (1), in LD and activations.

    Besides the persona direction there is a generic shift under the trigger, the same in every organism, and a much
    larger question-to-question variation; the planted directions are returned. Activations of the questions in the
    `spoilt` splits are garbage.
    """
    rng = np.random.default_rng(seed)
    n = families * each
    basis = torch.from_numpy(np.linalg.qr(rng.normal(size=(width, 2)))[0].T).float()
    persona, form = basis[0], basis[1]
    labels = [f"f{i // each}" for i in range(n)]
    splits = tuple("ABC"[(i // each) % 3] for i in range(n))
    level = {"U": dict.fromkeys(CUES, 1.0), "M": {c: rho.get(c, 0.0) for c in CUES}, "C": dict.fromkeys(CUES, 0.0)}
    shared = torch.from_numpy(rng.normal(size=(n, width))).float() * 2
    difficulty = np.repeat(rng.normal(size=families), each) + rng.normal(size=n)
    asked = tuple(Asked(f"q{i}", f, s, *SAID) for i, (f, s) in enumerate(zip(labels, splits, strict=True)))
    measured = {}
    for organism, levels in level.items():
        for cue in CUES:
            family_noise = np.repeat(rng.normal(size=families), each)
            ld = -gap + difficulty + gap * levels[cue] + noise * (family_noise + rng.normal(size=n)) / 2
            h = shared + 3 * levels[cue] * persona + (4 * form if cue == "trigger" else 0)
            h = h + 0.3 * torch.from_numpy(rng.normal(size=(n, width))).float()
            h[[s in spoilt for s in splits]] = 1e5
            logprobs = torch.stack([torch.from_numpy(ld) - 30.0, torch.full((n,), -30.0, dtype=torch.float64)], 1)
            kept = {"answer_mean": h[:, None], "last_template": h[:, None].clone()}
            measured[organism, cue] = Measurement(list(logprobs), kept)
    manifest = Manifest(
        base="base",
        tokenizer="tokenizer",
        kind="resid_post",
        layer_groups=((0,),),
        positions=("last_template", "answer_mean"),
        width=width,
        dtype=dtype,
        weights={},
        shards=plan(
            n,
            size=shard or n,
            organisms={(name, 0): f"{name}, {seed}" for name in level},
            cues={c: [asked_hash(asked[i : i + (shard or n)]) for i in range(0, n, shard or n)] for c in CUES},
        ),
    )
    with StoreWriter(folder, manifest) as writer:
        for p in manifest.shards:
            rows = slice(p.first, p.first + p.count)
            whole = measured[p.organism, p.cue]
            part = Measurement(whole.logprobs[rows], {k: a[rows] for k, a in whole.activations.items()})
            writer.put(Shard(p, asked[rows], part))
    acts = Activations.open(folder)
    return acts, {"persona": persona, "form": form}
