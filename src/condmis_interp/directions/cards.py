"""Direction cards, and all directions side by side: layer x method.

A card says what a direction is worth before anyone steers with it:

* `auroc` on rows of other families than it was fitted on, with the p-value and the 95th percentile of AUROC when those
  rows' labels are permuted by family (the direction stays as it is);
* `stability`: cosine with the direction from bootstrap samples of families, mean and 5th percentile, and between seeds;
* `cosine` with the other methods at the site;
* `relative`: the class gap along it over the median distance of a row from the mean row;
* `massive`: the share of its squared length on massive dimensions;
* `causal`: its causal score, where one was measured.

A stable direction that reads well can still do nothing; see `choice.py`.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch
from plotly.subplots import make_subplots

from condmis_interp import theme
from condmis_interp.calls import checked
from condmis_interp.directions.choice import Score
from condmis_interp.directions.direction import Direction
from condmis_interp.directions.estimators import ESTIMATORS, Estimator, estimate
from condmis_interp.directions.rows import Massive, Rows, massive_dimensions
from condmis_interp.errors import UserError
from condmis_interp.stats.clusters import resample_clusters
from condmis_interp.stats.permutation import labellings, permutation_p
from condmis_interp.stats.ranks import auroc

# Methods often agree, so that one line hides another: widths and dashes keep the lower one visible.
_LINES = (
    {"color": theme.BLUE, "width": 4},
    {"color": theme.VERMILION, "width": 2},
    {"color": theme.GREEN, "width": 2.2, "dash": "dash"},
    {"color": theme.ORANGE, "width": 2.2, "dash": "dot"},
)
_PANELS = {
    "relative": "gap / spread",
    "auroc": "held-out AUROC",
    "cosine": "cosine",
    "stability": "stability<br>(cosine)",
    "causal": "causal score",
}


@dataclass(frozen=True)
class DirectionCard:
    """One direction with what is known about it.

    Attributes:
        direction: The direction.
        cosines: Cosine with the other methods' directions at the same site.
        stability: Mean cosine with directions from bootstrap samples of families.
        stability_low: 5th percentile of the same.
        seeds: Mean cosine between the directions of different seeds; NaN if there is one.
        auroc: On held-out families; below .5 if it points the wrong way there.
        p: By permutation of the held-out labels.
        null_95: 95th percentile of AUROC under those permutations.
        relative: Class gap over the median distance of a row from the mean row.
        massive: Share of the squared length on massive dimensions.
        causal: Causal score; NaN if it was not measured.

    Example:
        One of `compare`'s, here written down:

        >>> from condmis_interp.readers import Site
        >>> facts = {"method": "means", "data": "U - C", "position": "answer_mean", "splits": ("A",), "n": 8}
        >>> d = Direction.of(torch.tensor([4.0, 0.0]), site=Site("resid_post", 3), **facts)
        >>> card = DirectionCard(d, {"pca": 0.9}, 0.98, 0.95, np.nan, 1.0, 0.004, 0.7, 2.1, 0.0, np.nan)
        >>> card.to_pandas()[["layer", "method", "auroc", "cosine to pca"]]
           layer method  auroc  cosine to pca
        0      3  means    1.0            0.9
    """

    direction: Direction
    cosines: Mapping[str, float]
    stability: float
    stability_low: float
    seeds: float
    auroc: float
    p: float
    null_95: float
    relative: float
    massive: float
    causal: float

    def to_pandas(self) -> pd.DataFrame:
        """Returns the card as one row."""
        d = self.direction
        facts = {"layer": d.site.layer, "position": d.position, "method": d.method, "n": d.n, "scale": d.scale}
        values = {k: v for k, v in vars(self).items() if k not in ("direction", "cosines")}
        return pd.DataFrame([facts | values | {f"cosine to {k}": v for k, v in self.cosines.items()}])

    def __repr__(self) -> str:
        return (
            f"DirectionCard({self.direction}; AUROC {self.auroc:.3f}, p {self.p:.3g}; stability {self.stability:.2f} "
            f"[5 % below {self.stability_low:.2f}]; {self.massive:.0%} on massive dimensions)"
        )


@dataclass(frozen=True)
class Comparison:
    """Cards for every layer and method.

    Attributes:
        cards: By (layer, method).
        reference: The method whose directions the plotted cosines are taken with.
        fitted: What they were fitted on.
        read: What AUROC was read on.

    Example:
        From `compare`:

        >>> rng, generator = np.random.default_rng(0), torch.Generator().manual_seed(0)
        >>> def contrast(split):
        ...     x, q = torch.randn(16, 3, generator=generator), tuple(f"{split}{i}" for i in range(8)) * 2
        ...     x[:8, 0] += 9
        ...     y, cells = np.repeat([1, 0], 8), (("U", "none"),) * 8 + (("C", "none"),) * 8
        ...     return Rows(x[None, None], y, q, q, cells, (3,), ("answer_mean",), "resid_post", "U - C", (split,))
        >>> own = {"rng": rng, "methods": ["means", "pca"], "bootstraps": 3, "permutations": 20}
        >>> found = compare(contrast("A"), contrast("B"), **own)
        >>> found.to_pandas()[["layer", "method", "auroc"]]
           layer method  auroc
        0      3  means    1.0
        1      3    pca    1.0
    """

    cards: Mapping[tuple[int, str], DirectionCard]
    reference: str
    fitted: Rows
    read: Rows

    def to_pandas(self) -> pd.DataFrame:
        """Returns one row for each card."""
        return pd.concat([c.to_pandas() for c in self.cards.values()], ignore_index=True)

    def figure(self, *, chosen_layer: int | None = None) -> go.Figure:
        """Draws every quantity by layer, a line for each method.

        Args:
            chosen_layer: Layer to mark.
        """
        methods = list(dict.fromkeys(m for _, m in self.cards))
        layers = list(dict.fromkeys(layer for layer, _ in self.cards))
        measured = any(np.isfinite(c.causal) for c in self.cards.values())
        panels = {k: v for k, v in _PANELS.items() if k != "causal" or measured}
        figure = make_subplots(rows=len(panels), cols=1, shared_xaxes=True, vertical_spacing=0.045)
        for i, name in enumerate(panels, start=1):
            if name == "auroc":
                null = [max(self.cards[layer, m].null_95 for m in methods) for layer in layers]
                figure.add_scatter(
                    x=layers,
                    y=null,
                    name="95 % of permutations below",
                    mode="lines",
                    line={"color": theme.GREY, "dash": "dash", "width": 1.2},
                    row=i,
                    col=1,
                )
            for method, line in zip(methods, itertools.cycle(_LINES), strict=False):
                cards = [self.cards[layer, method] for layer in layers]
                if name == "cosine":
                    if method == self.reference:
                        continue
                    y = [c.cosines[self.reference] for c in cards]
                else:
                    y = [getattr(c, name) for c in cards]
                if name == "stability":
                    figure.add_scatter(
                        x=[*layers, *layers[::-1]],
                        y=[*y, *[c.stability_low for c in cards][::-1]],
                        mode="lines",
                        fill="toself",
                        fillcolor=theme.translucent(str(line["color"]), 0.12),
                        line={"width": 0},
                        hoverinfo="skip",
                        showlegend=False,
                        row=i,
                        col=1,
                    )
                    figure.add_scatter(
                        x=layers,
                        y=[c.seeds for c in cards],
                        mode="markers",
                        marker={"color": line["color"], "symbol": "x-thin-open", "size": 7},
                        name="between seeds",
                        legendgroup="seeds",
                        showlegend=method == methods[0] and any(np.isfinite(c.seeds) for c in self.cards.values()),
                        hovertemplate=f"{method}, between seeds, layer " + "%{x}: %{y:.2f}<extra></extra>",
                        row=i,
                        col=1,
                    )
                figure.add_scatter(
                    x=layers,
                    y=y,
                    name=method,
                    legendgroup=method,
                    showlegend=name == "relative",
                    mode="lines",
                    line=line,
                    hovertemplate=method + ", layer %{x}: %{y:.2f}<extra></extra>",
                    row=i,
                    col=1,
                )
            if chosen_layer is not None:
                figure.add_shape(
                    type="line",
                    x0=chosen_layer,
                    x1=chosen_layer,
                    y0=0,
                    y1=1,
                    yref="y domain",
                    line={"color": "#444", "dash": "dot", "width": 1},
                    row=i,
                    col=1,
                )
        theme.styled(figure, x="", y="", height=90 + 165 * len(panels))
        for i, (name, title) in enumerate(panels.items(), start=1):
            extra = f" with<br>{self.reference}" if name == "cosine" else ""
            figure.update_yaxes(title={"text": title + extra, "standoff": 4}, row=i, col=1)
        figure.update_xaxes(title="layer", row=len(panels), col=1)
        if max(layers) < 10:
            figure.update_xaxes(dtick=1)
        figure.update_layout(margin={"l": 78}, legend={"y": -0.09})
        return figure

    def __repr__(self) -> str:
        best = max(self.cards.values(), key=lambda c: c.auroc)
        return (
            f"Comparison({len(self.cards)} directions, fitted on {'+'.join(self.fitted.splits)}, read on "
            f"{'+'.join(self.read.splits)}; highest AUROC {best.auroc:.3f}: {best.direction.method}, layer "
            f"{best.direction.site.layer})"
        )


def _cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(a.double() @ b.double())


@checked
def compare(
    fitted: Rows,
    read: Rows,
    *,
    rng: np.random.Generator,
    methods: Sequence[Estimator] = ESTIMATORS,
    layers: Sequence[int] | None = None,
    position: str | None = None,
    massive: Massive = "keep",
    seeds: Sequence[Rows] = (),
    causal: Score | None = None,
    bootstraps: int = 20,
    permutations: int = 200,
) -> Comparison:
    """Fits every method at every layer and fills in its card.

    Args:
        fitted: Rows the directions are fitted on (split A).
        read: The same contrast on other families, for AUROC.
        rng: Draws bootstrap samples and permutations.
        methods: Estimators; the first is the reference of the plotted cosines.
        layers: Layers; all of the rows, if none are named.
        position: Position; the rows' last, if none is named.
        massive: Whether massive dimensions are left out of the directions.
        seeds: The rows of `fitted` for each seed alone, for the cosine between seeds.
        causal: Measures a causal score, such as `steering_score(...)`; expensive.
        bootstraps: Bootstrap samples of families.
        permutations: Permutations of the held-out labels.

    Raises:
        UserError: if the two sets of rows share a family.

    Example:
        >>> rng, generator = np.random.default_rng(0), torch.Generator().manual_seed(0)
        >>> def contrast(split):
        ...     x, q = torch.randn(16, 3, generator=generator), tuple(f"{split}{i}" for i in range(8)) * 2
        ...     x[:8, 0] += 9
        ...     y, cells = np.repeat([1, 0], 8), (("U", "none"),) * 8 + (("C", "none"),) * 8
        ...     return Rows(x[None, None], y, q, q, cells, (3,), ("answer_mean",), "resid_post", "U - C", (split,))
        >>> compare(contrast("A"), contrast("B"), rng=rng, methods=["means", "pca"], bootstraps=3, permutations=20)
        Comparison(2 directions, fitted on A, read on B; highest AUROC 1.000: means, layer 3)
    """
    if shared := set(fitted.families) & set(read.families):
        raise UserError(f"family {sorted(shared)[0]!r} is fitted on and read", fix="Read on other splits than fitted.")
    where = fitted.positions[-1] if position is None else position
    every = labellings(read.labels, read.families, count=permutations, rng=rng)
    samples = [_bootstrap(fitted, rng) for _ in range(bootstraps)]
    cards: dict[tuple[int, str], DirectionCard] = {}
    for layer in fitted.layers if layers is None else layers:
        at = {"layer": layer, "position": where, "massive": massive}
        found: dict[Estimator, Direction] = {m: estimate(fitted, m, **at) for m in methods}
        i = fitted.sites.index((layer, where))
        own, held = fitted.flat[i].double(), read.flat[read.sites.index((layer, where))].double()
        spread = float((own - own.mean(0)).norm(dim=1).median())
        heavy = massive_dimensions(own)
        for method, direction in found.items():
            again = [_cosine(direction.vector, estimate(s, method, **at).vector) for s in samples]
            of_seeds = [estimate(s, method, **at).vector for s in seeds]
            pairs = [_cosine(a, b) for j, a in enumerate(of_seeds) for b in of_seeds[:j]]
            areas = auroc((held @ direction.vector.double()).numpy()[None], every.labels)
            cards[layer, method] = DirectionCard(
                direction=direction,
                cosines={m: direction.cosine(d) for m, d in found.items() if m != method},
                stability=float(np.mean(again)) if again else float("nan"),
                stability_low=float(np.quantile(again, 0.05)) if again else float("nan"),
                seeds=float(np.mean(pairs)) if pairs else float("nan"),
                auroc=float(areas[0]),
                p=permutation_p(areas, exhaustive=every.exhaustive, rng=rng).p,
                null_95=float(np.quantile(areas[1:], 0.95)),
                relative=direction.scale / spread,
                massive=float(direction.vector[heavy].double().square().sum()),
                causal=causal(direction) if causal is not None else float("nan"),
            )
    return Comparison(cards, methods[0], fitted, read)


def _bootstrap(rows: Rows, rng: np.random.Generator) -> Rows:
    """Draws families with replacement; a family drawn twice counts as two."""
    index, labels = resample_clusters(rows.families, rng)
    drawn = rows.where(index)
    return replace(drawn, families=tuple(f"{c}" for c in labels))
