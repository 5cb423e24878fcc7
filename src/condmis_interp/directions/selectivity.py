"""Selectivity: how much of a probe's accuracy is memory of which question it reads.

A control task (Hewitt & Liang 2019) gives every question a label at random, the same in all its cells. A probe can only
learn it by knowing the questions, so it is trained on some cells and tested on others *of the same questions*:

    selectivity = AUROC(class) - AUROC(control task),    same rows, same folds, same probe

The folds here part the cells of a question on purpose; that is what makes memory visible. A high control AUROC is no
fault of the direction, it says that folds by row would have been worthless, and how much.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch

from condmis_interp.calls import checked
from condmis_interp.directions.gram import Method, SiteGram, Split, TrainingGram, fit_dual
from condmis_interp.directions.rows import Massive, Rows
from condmis_interp.errors import UserError
from condmis_interp.stats.ranks import auroc


@dataclass(frozen=True)
class Selectivity:
    """A task against its control task.

    Attributes:
        task: AUROC of the class, folds by row.
        control: AUROC of each control task, [tasks].
        method: Which probe.

    Example:
        >>> found = Selectivity(0.9, np.array([0.6, 0.5]), "means")
        >>> round(found.selectivity, 3)
        0.35
        >>> found.to_pandas()
                task  auroc
        0      class    0.9
        1  control 0    0.6
        2  control 1    0.5
    """

    task: float
    control: np.ndarray
    method: Method

    @property
    def selectivity(self) -> float:
        """Task less mean control."""
        return self.task - float(self.control.mean())

    def to_pandas(self) -> pd.DataFrame:
        """Returns one row for each task: task, auroc."""
        names = ["class", *[f"control {i}" for i in range(len(self.control))]]
        return pd.DataFrame({"task": names, "auroc": [self.task, *self.control]})

    def __repr__(self) -> str:
        return (
            f"Selectivity({self.selectivity:.2f}: AUROC {self.task:.2f}, control {self.control.mean():.2f} over "
            f"{len(self.control)} random tasks; {self.method}, folds by row)"
        )


@checked
def selectivity(
    rows: Rows,
    *,
    layer: int,
    position: str,
    rng: np.random.Generator,
    method: Method = "logistic",
    strength: float = 0.01,
    tasks: int = 20,
    folds: int = 5,
    massive: Massive = "drop",
) -> Selectivity:
    """Compares the class with control tasks at one site.

    Args:
        rows: Labelled rows; every question needs two rows or more.
        layer: 0-based layer.
        position: Position.
        rng: Draws folds and control tasks.
        method: Which probe.
        strength: C of the logistic probe.
        tasks: Number of control tasks.
        folds: Folds, by row.
        massive: Whether massive dimensions are left out.

    Raises:
        UserError: if a question has one row alone, so that memory cannot show.

    Example:
        Rows that hold the class and nothing of their question:

        >>> y, q = np.repeat([1, 0], 8), tuple(f"q{i}" for i in range(8)) * 2
        >>> x = torch.randn(16, 3, generator=torch.Generator().manual_seed(0))
        >>> x[:8, 0] += 9
        >>> cells, rng = (("U", "none"),) * 8 + (("C", "none"),) * 8, np.random.default_rng(0)
        >>> rows = Rows(x[None, None], y, q, q, cells, (3,), ("answer_mean",), "resid_post", "U - C", ("A",))
        >>> found = selectivity(rows, layer=3, position="answer_mean", rng=rng, method="means")
        >>> bool(found.task > 0.95 > found.control.mean())
        True
    """
    keys = list(zip(rows.families, rows.questions, strict=True))
    code = {k: i for i, k in enumerate(dict.fromkeys(keys))}
    question = np.array([code[k] for k in keys])
    if np.bincount(question).min() < 2:
        raise UserError("a question has one row alone, so a control task cannot be learned", where=rows.data)
    half = np.arange(len(code)) % 2
    controls = np.stack([rng.permutation(half)[question] for _ in range(tasks)])
    every = np.concatenate([rows.labels[None], controls])
    fold = rng.permutation(np.arange(rows.n) % folds)
    site = SiteGram(rows.flat[rows.sites.index((layer, position))], fold, massive)
    y = torch.from_numpy(every.T.copy()).double()
    scores = np.empty((len(every), rows.n))
    for k in range(folds):
        split = Split.of(fold, (k,))
        labels, part = y[split.rows], TrainingGram(site, split)
        dual = fit_dual(method, part.gram, labels, strength=strength, width=part.width)
        scores[:, split.held.numpy()] = part.in_gaps(dual, labels)[0].mT.numpy()
    areas = auroc(scores, every)
    return Selectivity(float(areas[0]), areas[1:], method)
