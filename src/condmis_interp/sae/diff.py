"""Which latents differ: ranked by difference in differences and by attribution to LD, with false-discovery control.

On split A, for each latent i and question q, with a_X(c) the latent's mean over the positions that predict an answer
token of model X under cue c:

    d_iq = [a_M(T) - a_M(0)] - [a_C(T) - a_C(0)]

Under the null hypothesis the signs of the families' sums S_ik = sum_{q in family k} d_iq are exchangeable. The
statistic t_i = sum_k S_ik / sqrt(sum_k S_ik^2) has the same denominator under every flip of signs, so all flips cost
one matrix product. Its null distribution is pooled over latents (Tusher et al. 2001; Storey & Tibshirani 2003), because
8 families allow only 2^8 flips, too few for one latent's own p-value to survive thousands of others; Benjamini-Hochberg
then controls the false-discovery rate. What is pooled holds the true differences too, which makes it conservative.

Attribution (delta-attribution of Wang et al. 2025 in the form that the causal test will use), one backward pass for all
latents: with g_t = d LD / d h_t of M under the trigger and C's latents on the same tokens,

    A_i = sum_t (g_t . d_i) (f_it^M - f_it^C),

the first-order estimate of how much LD falls when latent i is set to the twin's value at every token.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch

from condmis_interp import theme
from condmis_interp.errors import UserError
from condmis_interp.sae.dictionary import Dictionary
from condmis_interp.sae.fidelity import Fidelity
from condmis_interp.sae.reading import SKIP, Reading, cells_of, codes, question_means
from condmis_interp.sae.stream import TokenReader

_ALL_FLIPS = 12
"""Up to so many families all flips of signs are gone through."""


@dataclass(frozen=True)
class FeatureDiff:
    """Latents that differ between an organism and its twin, under the trigger against without it.

    Attributes:
        table: One row for each latent that was tested, best first: latent, did, t, p, q, attribution (nats), rate
            (share of M's tokens under the trigger where it is active), significant, chosen.
        data: What was compared.
        by: What was tested: `difference` or `attribution`.
        families: Number of families.
        level: False-discovery rate.
        tested: Number of latents tested.
        significant: Number with q <= level.

    Example:
        From `feature_diff`, here written down:

        >>> table = pd.DataFrame({"latent": [7, 3], "did": [2.0, 0.1], "q": [0.01, 0.6], "chosen": [True, False]})
        >>> FeatureDiff(table, "(M - C) x (trigger - none)", "difference", 8, 0.05, tested=2, significant=1)
        FeatureDiff((M - C) x (trigger - none), by difference: 1 of 2 latents at a false-discovery rate of 0.05,
        8 families; chosen [7])
    """

    table: pd.DataFrame = field(repr=False)
    data: str
    by: str
    families: int
    level: float
    tested: int
    significant: int

    @property
    def chosen(self) -> list[int]:
        """The latents chosen for causal tests, best first."""
        return [int(i) for i in self.table[self.table.chosen].latent]

    def to_pandas(self) -> pd.DataFrame:
        """Returns the table."""
        return self.table

    def figure(self) -> go.Figure:
        """Draws attribution against difference in differences."""
        figure = go.Figure()
        for chosen, name, colour in ((False, "tested", theme.GREY), (True, "chosen", theme.VERMILION)):
            rows = self.table[self.table.chosen == chosen]
            figure.add_scatter(
                x=rows.did,
                y=rows.attribution,
                mode="markers+text" if chosen else "markers",
                text=[str(i) for i in rows.latent] if chosen else None,
                textposition="top center",
                name=name,
                marker={"color": colour, "size": 9 if chosen else 5},
                hovertext=[f"latent {i}, q = {q:.3f}" for i, q in zip(rows.latent, rows.q, strict=True)],
            )
        return theme.styled(figure, x="difference in differences of the latent", y="attribution to LD, nats")

    def __repr__(self) -> str:
        return (
            f"FeatureDiff({self.data}, by {self.by}: {self.significant} of {self.tested} latents at a false-discovery "
            f"rate of {self.level}, {self.families} families; chosen {self.chosen})"
        )


def benjamini_hochberg(p_values: np.ndarray) -> np.ndarray:
    """Returns adjusted p-values in the order given (Benjamini & Hochberg 1995).

    Example:
        >>> benjamini_hochberg(np.array([0.01, 0.02, 0.5])).round(3)
        array([0.03, 0.03, 0.5 ])
    """
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p)[::-1]
    scaled = p[order] * len(p) / np.arange(len(p), 0, -1)
    out = np.empty(len(p))
    out[order] = np.minimum(1.0, np.minimum.accumulate(scaled))
    return out


def flip_test(
    values: np.ndarray, families: Sequence[str], *, generator: np.random.Generator, draws: int = 2000
) -> tuple[np.ndarray, np.ndarray]:
    """Tests for each column whether its mean is 0, by flipping the signs of whole families, null pooled over columns.

    Args:
        values: Array [questions, columns]; no column may be 0 throughout.
        families: Family of each question.
        generator: Source of randomness, for more than 12 families.
        draws: Flips drawn then.

    Returns:
        Statistics and two-sided p-values, both [columns].

    Example:
        One column that points one way in all six families, and one that does not:

        >>> families = [f"f{i}" for i in range(6)]
        >>> values = np.array([[1.0, 1.1, 0.9, 1.2, 0.8, 1.0], [1.0, -1.1, 0.9, -1.2, 0.8, -1.0]]).T
        >>> t, p = flip_test(values, families, generator=np.random.default_rng(0))
        >>> t.round(2), p.round(2)
        (array([ 2.43, -0.24]), array([0.03, 0.75]))
    """
    codes = {f: k for k, f in enumerate(dict.fromkeys(families))}
    sums = np.zeros((len(codes), values.shape[1]))
    np.add.at(sums, [codes[f] for f in families], values)
    k = len(codes)
    if k <= _ALL_FLIPS:  # a flip of all signs gives the same |t|, so half of them do
        signs = 1.0 - 2.0 * ((np.arange(2 ** (k - 1))[:, None] >> np.arange(k)) & 1)
    else:
        signs = np.concatenate([np.ones((1, k)), generator.choice([-1.0, 1.0], (draws, k))])
    unit = sums / np.sqrt((sums**2).sum(0))
    t = unit.sum(0)
    null = np.sort(np.abs(signs @ unit).ravel())
    at_least = len(null) - np.searchsorted(null, np.abs(t) - 1e-9)
    return t, at_least / len(null)


def latent_attribution(dictionary: Dictionary, reader: TokenReader, organism: Reading, twin: Reading) -> np.ndarray:
    """Returns each latent's attribution to the organism's LD, by question, nats, [questions, latents].

    Args:
        dictionary: The SAE.
        reader: The organism's.
        organism: The organism's reading of a cell.
        twin: Its twin's, of the same tokens.

    Example:
        With a model whose LD is the sum of the first dimension, so that the attribution is exact:

        >>> from types import SimpleNamespace
        >>> from sae_lens import StandardSAE, StandardSAEConfig
        >>> from condmis_interp.readers import Site
        >>> from condmis_interp.sae import Text
        >>> sae = StandardSAE(StandardSAEConfig(d_in=2, d_sae=2, apply_b_dec_to_input=False))
        >>> sae.W_enc.data, sae.W_dec.data = torch.eye(2), torch.eye(2)
        >>> def gradients(texts, hidden):
        ...     signs = [0.5 if t.answer == 0 else -0.5 for t in texts]
        ...     return [torch.tensor([[s, 0.0]]).expand(len(h), 2) for s, h in zip(signs, hidden)]
        >>> texts = [Text((1, 2, 3), 2, "none", "q", "f", answer) for answer in (0, 1)]
        >>> def read(name, value): return Reading(name, "none", texts, [torch.full((3, 2), value)] * 2, torch.zeros(2))
        >>> m, c = read("M", 2.0), read("C", 1.0)
        >>> dictionary, reader = Dictionary(sae, Site("resid_post", 3), "mine"), SimpleNamespace(gradients=gradients)
        >>> latent_attribution(dictionary, reader, m, c)
        array([[2., 0.]])
    """
    ours, theirs = codes(dictionary, organism, twin)
    gradients = torch.cat([g[SKIP:] for g in reader.gradients(organism.texts, organism.hidden)])
    pairs = torch.bincount(torch.tensor([organism.questions.index(t.question) for t in organism.texts])) / 2
    signs = [(1.0 if t.answer % 2 == 0 else -1.0) for t in organism.texts for _ in range(len(t.ids) - SKIP)]
    weight = torch.tensor(signs) / pairs[organism.owners]
    found = torch.zeros(len(organism.questions), dictionary.latents, dtype=torch.float64)
    effect = (gradients @ dictionary.decoder.T) * (ours - theirs)
    effect *= weight[:, None] * dictionary.scale(organism.tokens)
    return found.index_add_(0, organism.owners, effect.double()).numpy()


def feature_diff(
    dictionary: Dictionary,
    reader: TokenReader,
    readings: Mapping[tuple[str, str], Reading],
    *,
    organism: str,
    twin: str,
    gate: Fidelity,
    generator: np.random.Generator,
    trigger: str = "trigger",
    none: str = "none",
    by: Literal["difference", "attribution"] = "difference",
    level: float = 0.05,
    limit: int = 10,
) -> FeatureDiff:
    """Ranks the latents on split A.

    Args:
        dictionary: The SAE.
        reader: The organism's.
        readings: Split A's readings of the organism and its twin under both cues.
        organism: M.
        twin: Its C.
        gate: The SAE's fidelity; the four cells must have passed.
        generator: Source of randomness.
        trigger: The cue of interest.
        none: The cue it is compared with.
        by: What is tested for being 0: the difference in differences of the activation, or the attribution to LD.
        level: False-discovery rate.
        limit: Most latents that are chosen: those with q <= level whose attribution to LD is highest (and positive).

    Raises:
        CheckError: if a cell did not pass the gate.
        UserError: if a reading is missing, or there are fewer than 5 families.

    Example:
        In six families M has more of the first dimension under its trigger, and that is what LD is made of:

        >>> from types import SimpleNamespace
        >>> from sae_lens import StandardSAE, StandardSAEConfig
        >>> from condmis_interp.readers import Site
        >>> from condmis_interp.sae import Text, fidelity
        >>> sae = StandardSAE(StandardSAEConfig(d_in=2, d_sae=2, apply_b_dec_to_input=False))
        >>> sae.W_enc.data, sae.W_dec.data = torch.eye(2), torch.eye(2)
        >>> def gradients(texts, hidden):
        ...     signs = [0.5 if t.answer == 0 else -0.5 for t in texts]
        ...     return [torch.tensor([[s, 0.0]]).expand(len(h), 2) for s, h in zip(signs, hidden)]
        >>> cells = [(organism, cue) for organism in ("M", "C") for cue in ("none", "trigger")]
        >>> readings = {}
        >>> for organism, cue in cells:
        ...     texts = [Text((1, 2, 3), 2, cue, f"q{i}", f"f{i}", answer) for i in range(6) for answer in (0, 1)]
        ...     own = torch.tensor([1.0 + 2.0 * ((organism, cue) == ("M", "trigger")), 1.0])
        ...     readings[organism, cue] = Reading(organism, cue, texts, [own.expand(3, 2)] * 12, torch.zeros(12))
        >>> row = {"explained": 1.0, "recovered": 1.0, "l0": 2.0, "ld": 0.0, "ld_shift": 0.0}
        >>> gate = fidelity([row | {"organism": o, "cue": c} for o, c in cells], base="C")
        >>> found = feature_diff(
        ...     Dictionary(sae, Site("resid_post", 3), "mine"), SimpleNamespace(gradients=gradients), readings,
        ...     organism="M", twin="C", gate=gate, generator=np.random.default_rng(0),
        ... )
        >>> found.chosen, found.to_pandas().did.tolist(), found.to_pandas().attribution.tolist()
        ([0], [2.0], [4.0])
    """
    read = (organism,) if dictionary.reads == "difference" else (organism, twin)
    gate.require([(o, c) for o in read for c in (trigger, none)])
    m_t, m_0 = cells_of(readings, organism, trigger, none)
    c_t, c_0 = cells_of(readings, twin, trigger, none)
    if len(set(m_t.families)) < 5:
        raise UserError(
            f"{len(set(m_t.families))} families allow too few flips of signs for a false-discovery rate",
            fix="Give split A at least 5 families.",
        )
    triggered, plain = codes(dictionary, m_t, c_t), codes(dictionary, m_0, c_0)
    a = [question_means(m_t, f) for f in triggered] + [question_means(m_0, f) for f in plain]
    did = (a[0] - a[2]) - (a[1] - a[3])
    attribution = latent_attribution(dictionary, reader, m_t, c_t)
    active = np.maximum.reduce([(x > 0).mean(0) for x in a])
    values = did if by == "difference" else attribution
    tested = np.flatnonzero((active >= 0.25) & (np.abs(values).max(0) > 0))
    if not len(tested):
        raise UserError("no latent is active in a quarter of the questions", where=str(dictionary))
    t, p = flip_test(values[:, tested], m_t.families, generator=generator)
    table = pd.DataFrame(
        {
            "latent": tested,
            "did": did[:, tested].mean(0),
            "t": t,
            "p": p,
            "q": benjamini_hochberg(p),
            "attribution": attribution[:, tested].mean(0),
            "rate": (triggered[0] > 0).float().mean(0).numpy()[tested],
        }
    )
    table["significant"] = table.q <= level
    table = table.sort_values(["significant", "attribution"], ascending=False, ignore_index=True)
    table["chosen"] = table.significant & (table.attribution > 0) & (table.index < limit)
    return FeatureDiff(
        table,
        f"({organism} - {twin}) x ({trigger} - {none})",
        by,
        len(set(m_t.families)),
        level,
        len(tested),
        int(table.significant.sum()),
    )
