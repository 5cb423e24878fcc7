"""What the chosen latents do, on questions they were not chosen on, and whether PCA of equal rank does it better.

Ablation, in M under the trigger, on split B: the latents are set to the twin's values at the same token, the
reconstruction error kept. Its score is the share of the gap to the twin that it takes back,

    share = mean (LD_M - LD_edited) / mean (LD_M - LD_C),    Fieller's interval over families.

Baselines go through the same code with the same texts and the same donor: the first k principal components of h_M - h_C
on split A (uncentred, so that the mean difference is among them), latents drawn at random from those as active as the
chosen ones, and the whole residual stream of the twin, which no edit at this site can beat by much. SAEs add nothing
unless they beat PCA-k on split B (methods: 2.3); `beats_pca` says whether they do.

Steering, in C without a cue: + dose x median norm along a latent's decoder row, on every token.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch

from condmis_interp import theme
from condmis_interp.errors import CheckError, UserError
from condmis_interp.sae.dictionary import Dictionary
from condmis_interp.sae.diff import FeatureDiff
from condmis_interp.sae.fidelity import Fidelity
from condmis_interp.sae.reading import Reading, cells_of, codes
from condmis_interp.sae.stream import TokenReader
from condmis_interp.stats import anchored_ratio, cluster_mean, holm

DOSE = 0.4
"""Steering dose in median residual norms (Wang et al. 2025)."""


@dataclass(frozen=True)
class FeatureCauses:
    """What latents and their baselines do on held-out questions.

    Attributes:
        ablations: One row an edit: kind (`latent`, `latents`, `pca`, `random latents`, `everything`), name, rank,
            share, low, high, ld, gate_z, p (Holm, of share <= 0, over single latents).
        steering: One row an edit: kind (`latent`, `pca`, `random latents`), name, shift of LD in nats, low, high.
        gain: Mean over questions of LD under PCA minus LD under the latents, nats: positive if the latents take back
            more; its interval over families.
        over_random: The same against random latents (mean over the sets); NaN where there were none.
        ld: LD of organism and twin in the cell.
        data: What was compared.
        split_families: Families of the questions used here.

    Example:
        From `feature_causes`, here written down:

        >>> ablations = pd.DataFrame({
        ...     "kind": ["latents", "pca"], "name": ["10 latents", "PCA-10"], "rank": [10, 10],
        ...     "share": [0.12, 0.56], "low": [0.05, 0.35], "high": [0.21, 0.95],
        ... })
        >>> gain, random, ld = (-1.9, -2.7, -1.1), (0.5, 0.2, 0.8), (-1.0, -5.3)
        >>> found = FeatureCauses(ablations, pd.DataFrame(), gain, random, ld, "M against C under trigger", ("f0",))
        >>> found.beats_pca
        False
        >>> print(found.sentence())
        On held-out questions 10 SAE latents lose to 10 principal components: the SAE takes back 0.12 [0.05, 0.21] ...
        >>> FeatureCauses.from_json(found.to_json()).gain == gain
        True
    """

    ablations: pd.DataFrame = field(repr=False)
    steering: pd.DataFrame = field(repr=False)
    gain: tuple[float, float, float]
    over_random: tuple[float, float, float]
    ld: tuple[float, float]
    data: str
    split_families: tuple[str, ...] = field(repr=False)

    @property
    def rank(self) -> int:
        """How many latents were tested together."""
        return int(self._share("latents")["rank"])

    @property
    def beats_pca(self) -> bool:
        """Whether the latents take back more than PCA of equal rank: the interval of the gain lies above 0."""
        return self.gain[1] > 0

    def _share(self, kind: str) -> dict[str, Any]:
        at = int((self.ablations.kind == kind).to_numpy().argmax())
        return {str(k): v for k, v in self.ablations.iloc[at].items()}

    def sentence(self) -> str:
        """Returns the comparison as a sentence."""
        own, pca = self._share("latents"), self._share("pca")
        gain, low, high = self.gain
        if self.beats_pca:
            verdict = "beat"
        elif high < 0:
            verdict = "lose to"
        else:
            verdict = "cannot be told from"
        plural = "s" if self.rank > 1 else ""
        if not plural:
            verdict = {"beat": "beats", "lose to": "loses to", "cannot be told from": "cannot be told from"}[verdict]
        shares = [f"{r['share']:.2f} [{r['low']:.2f}, {r['high']:.2f}]" for r in (own, pca)]
        return (
            f"On held-out questions {self.rank} SAE latent{plural} {verdict} {self.rank} principal component{plural}: "
            f"the SAE takes back {shares[0]} of the gap to the twin, PCA {shares[1]}; "
            f"difference {gain:+.2f} nats [{low:+.2f}, {high:+.2f}]; to random latents {_signed(self.over_random)}."
        )

    def to_json(self) -> dict[str, Any]:
        """Returns the whole result as JSON; intervals that are not bounded become null."""
        tables = {"ablations": self.ablations, "steering": self.steering}
        rows = {
            name: json.loads(str(table.to_json(orient="records", double_precision=15)))
            for name, table in tables.items()
        }
        return rows | {
            "gain": list(self.gain), "over_random": [v if np.isfinite(v) else None for v in self.over_random],
            "ld": list(self.ld), "data": self.data, "families": list(self.split_families),
        }  # fmt: skip

    @classmethod
    def from_json(cls, stored: dict[str, Any]) -> "FeatureCauses":
        """Returns the result that `to_json` gave."""
        gain, ld = stored["gain"], stored["ld"]
        over = [np.nan if v is None else v for v in stored["over_random"]]
        return cls(
            pd.DataFrame(stored["ablations"]),
            pd.DataFrame(stored["steering"]),
            (gain[0], gain[1], gain[2]),
            (over[0], over[1], over[2]),
            (ld[0], ld[1]),
            stored["data"],
            tuple(stored["families"]),
        )

    def to_pandas(self) -> pd.DataFrame:
        """Returns ablations and steering as one table."""
        return pd.concat([self.ablations.assign(edit="ablate"), self.steering.assign(edit="steer")], ignore_index=True)

    def figure(self) -> go.Figure:
        """Draws the share of the gap that each ablation takes back."""
        figure = go.Figure()
        colours = {"latent": theme.SKY, "latents": theme.BLUE, "pca": theme.VERMILION, "everything": theme.BLACK}
        for kind, rows in self.ablations.groupby("kind", sort=False):
            figure.add_scatter(
                x=rows.share,
                y=rows.name,
                mode="markers",
                name=str(kind),
                marker={"color": colours.get(str(kind), theme.GREY), "size": 9},
                error_x={
                    "type": "data",
                    "symmetric": False,
                    "array": rows.high - rows.share,
                    "arrayminus": rows.share - rows.low,
                    "thickness": 1,
                },
            )
        figure.add_vline(x=0, line={"color": "#444", "width": 1})
        figure.update_yaxes(autorange="reversed")
        height = 160 + 22 * len(self.ablations)
        return theme.styled(figure, x="share of the gap to the twin taken back (1 = all)", y="", height=height)

    def __repr__(self) -> str:
        return f"FeatureCauses({self.data}): {self.sentence()}"


def difference_components(organism: Reading, twin: Reading, rank: int) -> torch.Tensor:
    """Returns the first uncentred principal components of the differences from the twin, orthonormal [rank, width].

    Args:
        organism: M's reading of a cell of split A.
        twin: C's, of the same tokens.
        rank: How many.

    Example:
        >>> from condmis_interp.sae import Text
        >>> texts = [Text((1, 2, 3), 2, "none", "q", "f", answer) for answer in (0, 1)]
        >>> m = Reading("M", "none", texts, [torch.tensor([[0.0, 0.0], [5.0, 1.0], [3.0, 1.0]])] * 2, torch.zeros(2))
        >>> c = Reading("C", "none", texts, [torch.tensor([[0.0, 0.0], [1.0, 1.0], [1.0, 1.0]])] * 2, torch.zeros(2))
        >>> difference_components(m, c, rank=1).abs()
        tensor([[1., 0.]])
    """
    organism.paired(twin)
    d = organism.tokens.double() - twin.tokens.double()
    values, vectors = torch.linalg.eigh(d.T @ d)
    return vectors[:, values.argsort(descending=True)[:rank]].T.float().contiguous()


def feature_causes(
    dictionary: Dictionary,
    readers: tuple[TokenReader, TokenReader],
    readings: Mapping[tuple[str, str], Reading],
    diff: FeatureDiff,
    *,
    components: torch.Tensor,
    organism: str,
    twin: str,
    gate: Fidelity,
    selected_on: Sequence[str],
    generator: torch.Generator,
    latents: Sequence[int] | None = None,
    trigger: str = "trigger",
    none: str = "none",
    random_sets: int = 5,
    dose: float = DOSE,
) -> FeatureCauses:
    """Tests latents by ablation and steering on split B.

    Args:
        dictionary: The SAE.
        readers: The organism's and its twin's.
        readings: Split B's readings of both under both cues.
        diff: Where the latents come from.
        components: `difference_components` of split A, at least as many as latents.
        organism: M.
        twin: Its C.
        gate: The SAE's fidelity; the cells used must have passed.
        selected_on: Families that the latents were chosen on.
        generator: Source of randomness.
        latents: Which latents; by default the chosen ones. Others are exploratory, and the caller's to name so.
        trigger: The cue of interest.
        none: The cue without anything.
        random_sets: How many sets of random latents of equal number.
        dose: Steering dose in median norms of the twin's residual stream.

    Raises:
        CheckError: if a cell did not pass the gate, or an edit changed nothing.
        UserError: if there are no latents, or a question's family was used to choose them.

    Example:
        A model whose LD is the first dimension, and an SAE that has it as latent 0: set to the twin's value, that
        latent takes back the whole gap, as one principal component does:

        >>> from types import SimpleNamespace
        >>> from sae_lens import StandardSAE, StandardSAEConfig
        >>> from condmis_interp.readers import Site
        >>> from condmis_interp.sae import Text, fidelity
        >>> sae = StandardSAE(StandardSAEConfig(d_in=2, d_sae=2, apply_b_dec_to_input=False))
        >>> sae.W_enc.data, sae.W_dec.data = torch.eye(2), torch.eye(2)
        >>> def finish(texts, hidden):
        ...     signs = [0.5 if t.answer == 0 else -0.5 for t in texts]
        ...     return torch.stack([s * h[1:, 0].sum() for s, h in zip(signs, hidden)]).double()
        >>> cells, readings = [("M", "trigger"), ("C", "trigger"), ("C", "none")], {}
        >>> for organism, cue in cells:
        ...     texts = [Text((1, 2, 3), 2, cue, f"q{i}", f"f{i}", answer) for i in range(6) for answer in (0, 1)]
        ...     hidden = [torch.tensor([[1.0 + 2.0 * (organism == "M") + t.answer, 1.0]]).expand(3, 2) for t in texts]
        ...     hidden = [h + 0.1 * i for i, h in enumerate(hidden)]
        ...     readings[organism, cue] = Reading(organism, cue, texts, hidden, finish(texts, hidden))
        >>> row = {"explained": 1.0, "recovered": 1.0, "l0": 2.0, "ld": 0.0, "ld_shift": 0.0}
        >>> table = pd.DataFrame({"latent": [0], "did": [2.0], "rate": [1.0], "chosen": [True]})
        >>> found = feature_causes(
        ...     Dictionary(sae, Site("resid_post", 3), "mine"), (SimpleNamespace(finish=finish),) * 2, readings,
        ...     FeatureDiff(table, "M against C", "difference", 6, 0.05, 1, 1), organism="M", twin="C",
        ...     gate=fidelity([row | {"organism": o, "cue": c} for o, c in cells], base="C"), selected_on=["another"],
        ...     components=torch.tensor([[1.0, 0.0]]), generator=torch.Generator().manual_seed(0),
        ... )
        >>> found.ablations[["kind", "share"]].round(2)
                 kind  share
        0      latent    1.0
        1     latents    1.0
        2         pca    1.0
        3       pca-1    1.0
        4  everything    1.0
    """
    read = (organism,) if dictionary.reads == "difference" else (organism, twin)
    gate.require([(o, trigger) for o in read])
    chosen = list(diff.chosen if latents is None else latents)
    if not chosen:
        raise UserError("there is no latent to test", where=diff.data, fix="None survived; say so, or name latents.")
    if len(components) < len(chosen):
        raise UserError(f"{len(components)} components are no match for {len(chosen)} latents")
    (m,) = cells_of(readings, organism, trigger)
    c, c_0 = cells_of(readings, twin, trigger, none)
    if shared := sorted(set(m.families) & set(selected_on)):
        raise UserError(
            f"family {shared[0]!r} was used to choose the latents and cannot be used to test them",
            fix="Give the readings of another split.",
        )
    m.paired(c)
    m_reader, c_reader = readers
    pool = _as_active(diff, chosen)
    sets = [pool[torch.randperm(len(pool), generator=generator)[: len(chosen)]].tolist() for _ in range(random_sets)]
    sets = [s for s in sets if s]  # there are none where every latent that differs at all was chosen

    ours, theirs = codes(dictionary, m, c)
    decoder, scale = dictionary.decoder, dictionary.scale(m.tokens)

    def patched(which: Sequence[int]) -> torch.Tensor:
        index = torch.tensor(list(which))
        return m.tokens + scale * ((theirs - ours)[:, index] @ decoder[index])

    def projected(basis: torch.Tensor) -> torch.Tensor:
        return m.tokens + (c.tokens - m.tokens) @ basis.T @ basis

    edits: list[tuple[str, str, int, torch.Tensor]] = [
        *(("latent", f"latent {i}", 1, patched([i])) for i in chosen),
        ("latents", f"{len(chosen)} latents", len(chosen), patched(chosen)),
        ("pca", f"PCA-{len(chosen)}", len(chosen), projected(components[: len(chosen)])),
        ("pca-1", "PCA-1", 1, projected(components[:1])),
        *(("random latents", f"random set {k}", len(s), patched(s)) for k, s in enumerate(sets, 1)),
        ("everything", "all of the twin's", dictionary.width, c.tokens),
    ]
    ablations, edited = _ablated(edits, m_reader, m, c)
    latents_ld = edited["latents"][0]
    better = cluster_mean(edited["pca"][0] - latents_ld, m.families)
    over = (np.nan, np.nan, np.nan)
    if sets:
        random = cluster_mean(np.mean(edited["random latents"], axis=0) - latents_ld, m.families)
        over = (random.mean, random.low, random.high)
    signs = {int(i): 1.0 if did >= 0 else -1.0 for i, did in zip(diff.table.latent, diff.table.did, strict=True)}
    toward = (m.tokens - c.tokens).mean(0)
    first = components[0] * (components[0] @ toward).sign()
    vectors = [
        *(("latent", f"latent {i}", signs.get(i, 1.0) * decoder[i]) for i in chosen),
        ("pca-1", "component 1", first),
        *(("random latents", f"latent {s[0]}", signs.get(s[0], 1.0) * decoder[s[0]]) for s in sets),
    ]
    return FeatureCauses(
        ablations,
        _steered(vectors, c_reader, c_0, dose),
        (better.mean, better.low, better.high),
        over,
        (float(np.mean(m.ld)), float(np.mean(c.ld))),
        f"{organism} against {twin} under {trigger}",
        m.families,
    )


def _ablated(
    edits: Sequence[tuple[str, str, int, torch.Tensor]], reader: TokenReader, m: Reading, c: Reading
) -> tuple[pd.DataFrame, dict[str, list[np.ndarray]]]:
    """Returns the share of the gap that each edit (kind, name, rank, tokens) takes back; LD by question, by kind."""
    rows: list[dict[str, Any]] = []
    edited: dict[str, list[np.ndarray]] = {}
    for kind, name, rank, tokens in edits:
        if kind in ("latents", "pca", "everything") and not bool((tokens != m.tokens).any()):
            raise CheckError("the edit changed nothing", where=name)
        ld = m.ld_from(reader.finish(m.texts, m.back(tokens)))
        edited.setdefault(kind, []).append(ld)
        ratio = anchored_ratio(m.ld - ld, m.ld - c.ld, m.families)
        row = {"kind": kind, "name": name, "rank": rank, "share": ratio.rho, "low": ratio.low, "high": ratio.high}
        rows.append(row | {"ld": float(ld.mean()), "gate_z": ratio.gate_z, "p": ratio.p_above(0.0)})
    table = pd.DataFrame(rows)
    single = (table.kind == "latent").to_numpy()
    table.loc[single, "p"] = holm(table.p[single].tolist())
    return table, edited


def _steered(
    vectors: Sequence[tuple[str, str, torch.Tensor]], reader: TokenReader, c: Reading, dose: float
) -> pd.DataFrame:
    """Returns the shift of the twin's LD by each vector (kind, name, direction)."""
    strength = dose * float(c.tokens.norm(dim=1).median())
    rows = []
    for kind, name, vector in vectors:
        tokens = c.tokens + strength * vector / vector.norm()
        mean = cluster_mean(c.ld_from(reader.finish(c.texts, c.back(tokens))) - c.ld, c.families)
        rows.append({"kind": kind, "name": name, "shift": mean.mean, "low": mean.low, "high": mean.high})
    return pd.DataFrame(rows)


def _signed(interval: tuple[float, float, float]) -> str:
    return "none" if np.isnan(interval[0]) else "{:+.2f} [{:+.2f}, {:+.2f}]".format(*interval)


def _as_active(diff: FeatureDiff, chosen: Sequence[int]) -> torch.Tensor:
    """Returns tested latents that were not chosen, the half most like the chosen ones in how often they fire."""
    others = diff.table[~diff.table.latent.isin(chosen)]
    typical = diff.table[diff.table.latent.isin(chosen)].rate.median()
    near = (others.rate - typical).abs().sort_values()
    keep = near.index[: max(2 * len(chosen), len(near) // 2)]
    return torch.tensor(others.loc[keep].latent.to_numpy())
