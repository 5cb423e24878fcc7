"""The fidelity gate: no feature is read in a cell where the SAE does not reconstruct the model.

For each organism and cue, on questions the SAE was not trained on:

    explained   1 - sum |h - h'|^2 / sum |h - mean h|^2                              (all tokens but the first)
    recovered   1 - KL(own || with h') / KL(own || with the cell's mean of h)        (where answer tokens are predicted)
    ld_shift    LD with h' in place of h, minus LD, nats

`recovered` is the usual loss recovered with the divergence from the model's own predictions as the loss: the answers
are teacher-forced, and half of them are ones the model would never give, so their cross-entropy gets *better* when the
model is broken. A cell passes if both are at least their floors and `explained` is no more than `drop` (5 points) below
the base model's in the same cell: an SAE that fits the base and not the organism finds features of the misfit.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch

from condmis_interp import theme
from condmis_interp.errors import CheckError, UserError
from condmis_interp.sae.dictionary import Dictionary, explained_variance, l0
from condmis_interp.sae.reading import Reading
from condmis_interp.sae.stream import TokenReader


@dataclass(frozen=True)
class Fidelity:
    """How well an SAE reconstructs each organism under each cue.

    Attributes:
        table: One row a cell: organism, cue, explained, recovered, l0, ld, ld_shift, drop (explained variance below
            the base's in the same cell), passed, why.
        base: Name of the base model; `None` for a difference SAE, which reads no base.
        explained_floor: Least explained variance.
        recovered_floor: Least share of the divergence recovered.
        drop: Most that explained variance may lie below the base's.

    Example:
        From `fidelity`, here written down:

        >>> table = pd.DataFrame({"organism": ["M"], "cue": ["trigger"], "explained": [0.6], "passed": [False]})
        >>> table["why"] = "it explains 0.600 of the variance, less than 0.7"
        >>> gate = Fidelity(table, "base", 0.7, 0.7, 0.05)
        >>> gate.passed("M", "trigger")
        False
        >>> gate.require([("M", "trigger")])
        Traceback (most recent call last):
            ...
        condmis_interp.errors.CheckError: M under trigger: no SAE feature can be read here: it explains 0.600 of ...
    """

    table: pd.DataFrame = field(repr=False)
    base: str | None
    explained_floor: float
    recovered_floor: float
    drop: float

    def passed(self, organism: str, cue: str) -> bool:
        """Returns whether a cell passed."""
        return bool(self._row(organism, cue)["passed"])

    def require(self, cells: Sequence[tuple[str, str]]) -> None:
        """Refuses SAE evidence that rests on a cell which did not pass.

        Raises:
            CheckError: naming the first such cell and why.
        """
        for organism, cue in cells:
            row = self._row(organism, cue)
            if not row["passed"]:
                raise CheckError(
                    f"no SAE feature can be read here: {row['why']}",
                    where=f"{organism} under {cue}",
                    fix="Train the SAE on this organism's activations too, or with more latents.",
                )

    def _row(self, organism: str, cue: str) -> dict[str, Any]:
        at = ((self.table.organism == organism) & (self.table.cue == cue)).to_numpy()
        if at.sum() != 1:
            raise UserError(f"the SAE's fidelity was not measured for {organism} under {cue}")
        return {str(k): v for k, v in self.table.iloc[int(at.argmax())].items()}

    def to_pandas(self) -> pd.DataFrame:
        """Returns the table."""
        return self.table

    def figure(self) -> go.Figure:
        """Draws explained variance and share recovered by cell."""
        figure, cues = go.Figure(), [str(c) for c in dict.fromkeys(self.table.cue)]
        for column, symbol in (("explained", "circle"), ("recovered", "diamond")):
            for cue, rows in self.table.groupby("cue", sort=False):
                figure.add_scatter(
                    x=rows[column],
                    y=rows.organism,
                    mode="markers",
                    name=f"{column}, {cue}",
                    marker={"symbol": symbol, "size": 9, "color": theme.cue_style(str(cue), cues).colour},
                )
        figure.add_vline(x=self.explained_floor, line={"dash": "dot", "color": "#444", "width": 1})
        return theme.styled(figure, x="share (1 = perfect)", y="", height=140 + 26 * self.table.organism.nunique())

    def __repr__(self) -> str:
        return (
            f"Fidelity({int(self.table.passed.sum())} of {len(self.table)} cells passed; explained variance "
            f"{self.table.explained.min():.3f} to {self.table.explained.max():.3f})"
        )


def measure_fidelity(
    dictionary: Dictionary,
    reader: TokenReader,
    readings: Mapping[str, Reading],
    *,
    twins: Mapping[str, Reading] | None = None,
) -> list[dict[str, Any]]:
    """Returns the rows of one organism: what the SAE explains and recovers in each of its cells.

    Args:
        dictionary: The SAE.
        reader: The organism's.
        readings: Its readings by cue, on questions that the SAE was not trained on.
        twins: For a difference SAE, the other model's readings of the same tokens. It is then differences that are
            explained, and `recovered` is relative to putting the other model's activations in place.

    Example:
        With an SAE that reconstructs everything and a reader that is a formula, nothing is lost:

        >>> from types import SimpleNamespace
        >>> from sae_lens import StandardSAE, StandardSAEConfig
        >>> from condmis_interp.readers import Site
        >>> from condmis_interp.sae import Text
        >>> sae = StandardSAE(StandardSAEConfig(d_in=2, d_sae=2, apply_b_dec_to_input=False))
        >>> sae.W_enc.data, sae.W_dec.data = torch.eye(2), torch.eye(2)
        >>> def divergences(texts, hidden, *edited):
        ...     return [torch.stack([(a - b).norm() for a, b in zip(hidden, e)]) for e in edited]
        >>> def finish(texts, hidden): return torch.stack([h.sum() for h in hidden]).double()
        >>> texts = [Text((1, 2, 3), 2, "none", "q", "f", answer) for answer in (0, 1)]
        >>> hidden = [torch.tensor([[0.0, 0.0], [1.0, 2.0], last]) for last in ([3.0, 0.0], [0.0, 1.0])]
        >>> cells = {"none": Reading("M", "none", texts, hidden, finish(texts, hidden))}
        >>> reader = SimpleNamespace(divergences=divergences, finish=finish)
        >>> (row,) = measure_fidelity(Dictionary(sae, Site("resid_post", 3), "mine"), reader, cells)
        >>> row["explained"], row["recovered"], row["ld_shift"]
        (1.0, 1.0, 0.0)
    """
    rows = []
    for cue, reading in readings.items():
        tokens, zero = reading.tokens, torch.zeros(())
        if dictionary.reads == "difference":
            if twins is None:
                raise UserError("a difference SAE needs the other model's readings", where=str(dictionary))
            reading.paired(twins[cue])
            zero = twins[cue].tokens
        read = tokens - zero
        reconstruction = dictionary.reconstruct(read)
        # what an SAE that knew nothing would put in place: the mean, or no difference at all
        without = zero if dictionary.reads == "difference" else tokens.mean(0).expand_as(tokens)
        with_it = reading.back(zero + reconstruction)
        kl, kl_without = reader.divergences(reading.texts, reading.hidden, with_it, reading.back(without))
        ld = reading.ld
        # below, a ratio of means: in a mean of ratios the texts that hardly anything moves would count most
        rows.append(
            {
                "organism": reading.organism,
                "cue": cue,
                "explained": explained_variance(read, reconstruction),
                "recovered": 1 - float(kl.mean() / kl_without.mean()),
                "l0": l0(dictionary.encode(read)),
                "ld": float(np.mean(ld)),
                "ld_shift": float(np.mean(reading.ld_from(reader.finish(reading.texts, with_it)) - ld)),
            }
        )
    return rows


def fidelity(
    rows: Sequence[Mapping[str, Any]],
    *,
    base: str | None,
    explained_floor: float = 0.7,
    recovered_floor: float = 0.7,
    drop: float = 0.05,
) -> Fidelity:
    """Decides which cells pass.

    Args:
        rows: From `measure_fidelity`, of every organism and of the base, under the same cues.
        base: Name of the base model; `None` for a difference SAE, which reads no base.
        explained_floor: Least explained variance.
        recovered_floor: Least share of the divergence recovered.
        drop: Most that explained variance may lie below the base's in the same cell.

    Raises:
        UserError: if the base was not measured under each cue.

    Example:
        An organism in which the SAE explains much less than in the base does not pass:

        >>> row = {"cue": "trigger", "recovered": 0.95, "l0": 12.0, "ld": 0.0, "ld_shift": 0.1}
        >>> rows = [row | {"organism": "base", "explained": 0.95}, row | {"organism": "M", "explained": 0.85}]
        >>> gate = fidelity(rows, base="base")
        >>> gate
        Fidelity(1 of 2 cells passed; explained variance 0.850 to 0.950)
        >>> gate.to_pandas().why[1]
        'it explains 10.0 points less of the variance than in the base'
    """
    table = pd.DataFrame(list(rows))
    own = table[table.organism == base].set_index("cue").explained
    if base is not None and (missing := sorted(set(table.cue) - set(own.index))):
        raise UserError(f"the base was not measured under {missing[0]!r}", fix="Measure it under every cue.")
    table["drop"] = table.cue.map(own) - table.explained
    why = []
    for explained, below, recovered in zip(table.explained, table["drop"], table.recovered, strict=True):
        if not explained >= explained_floor:
            why.append(f"it explains {explained:.3f} of the variance, less than {explained_floor}")
        elif below > drop:
            why.append(f"it explains {100 * below:.1f} points less of the variance than in the base")
        elif not recovered >= recovered_floor:
            why.append(f"it recovers {recovered:.3f} of the model's predictions, less than {recovered_floor}")
        else:
            why.append("")
    table["passed"] = [not w for w in why]
    table["why"] = why
    return Fidelity(table, base, explained_floor, recovered_floor, drop)
