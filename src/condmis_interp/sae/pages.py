"""Feature pages: what a latent is about, on one offline HTML page.

For each latent: the contexts where it fires most, the tokens its decoder row makes more and less likely (through the
final norm's weights and the unembedding, without the norm's own scale), its mean in every cell (organism x cue), and
its cosine with given directions. Texts of models and data sets are hostile until shown otherwise: all is escaped.
"""

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
import plotly.graph_objects as go
import torch

from condmis_interp import theme
from condmis_interp.sae.dictionary import Dictionary
from condmis_interp.sae.reading import SKIP, Reading, question_means
from condmis_interp.sae.stream import TokenReader


@dataclass(frozen=True)
class Context:
    """A place where a latent fires.

    Attributes:
        organism: Which model.
        cue: Under which cue.
        before: Text before the token.
        token: The token.
        after: Text after it.
        value: The latent's value there.
    """

    organism: str
    cue: str
    before: str
    token: str
    after: str
    value: float


@dataclass(frozen=True)
class FeaturePage:
    """What a latent is about.

    Attributes:
        latent: Which.
        contexts: Where it fires most, at most one a text.
        up: Tokens its decoder row makes more likely, with the logit's change for a unit of the latent.
        down: Those it makes less likely.
        cells: Its mean by organism (rows) and cue (columns).
        cosines: Its cosine with given directions.

    Example:
        >>> cells = pd.DataFrame({"none": [0.1], "trigger": [2.0]}, index=["<m>"])
        >>> page = FeaturePage(7, (Context("<m>", "trigger", "a", "b", "c", 2.0),), ((" <b>", 0.5),), (), cells, {})
        >>> "<m>" in page.html(), "&lt;m&gt;" in page.html()
        (False, True)
    """

    latent: int
    contexts: tuple[Context, ...] = field(repr=False)
    up: tuple[tuple[str, float], ...]
    down: tuple[tuple[str, float], ...] = field(repr=False)
    cells: pd.DataFrame = field(repr=False)
    cosines: dict[str, float] = field(repr=False)

    def to_pandas(self) -> pd.DataFrame:
        """Returns the contexts as a table."""
        return pd.DataFrame([vars(c) for c in self.contexts])

    def figure(self) -> go.Figure:
        """Draws the latent's mean in every cell."""
        figure = go.Figure(
            go.Heatmap(
                z=self.cells.to_numpy(),
                x=list(self.cells.columns),
                y=list(self.cells.index),
                colorscale=[[0, "#ffffff"], [1, theme.VERMILION]],
                texttemplate="%{z:.2f}",
            )
        )
        return theme.styled(figure, x="cue", y="", height=140 + 26 * len(self.cells))

    def html(self) -> str:
        """Returns the page's part of an HTML file; every text is escaped."""
        rows = "".join(
            f"<tr><td>{c.value:.2f}</td><td>{_text(c.organism)}, {_text(c.cue)}</td>"
            f"<td>{_text(c.before)}<b>{_text(c.token)}</b>{_text(c.after)}</td></tr>"
            for c in self.contexts
        )
        highest = float(self.cells.to_numpy().max()) or 1.0
        head = "".join(f"<th>{_text(str(c))}</th>" for c in self.cells.columns)
        grid = "".join(
            f"<tr><th>{_text(str(o))}</th>"
            + "".join(f'<td style="background:{_shade(v / highest)}">{v:.2f}</td>' for v in values)
            + "</tr>"
            for o, values in zip(self.cells.index, self.cells.to_numpy(), strict=True)
        )
        cosines = "".join(f"<li>{_text(n)}: {v:+.2f}</li>" for n, v in self.cosines.items())
        return (
            f'<section id="latent-{self.latent}"><h2>Latent {self.latent}</h2>'
            f"<p>Makes likelier: {_tokens(self.up)}</p><p>Makes less likely: {_tokens(self.down)}</p>"
            + (f"<p>Cosine with</p><ul>{cosines}</ul>" if cosines else "")
            + f"<table><tr><th></th>{head}</tr>{grid}</table>"
            f"<table><tr><th>value</th><th>cell</th><th>context</th></tr>{rows}</table></section>"
        )


@dataclass(frozen=True)
class FeaturePages:
    """Pages of several latents of one SAE.

    Example:
        >>> cells = pd.DataFrame({"none": [0.1], "trigger": [2.0]}, index=["m"])
        >>> page = FeaturePage(7, (Context("m", "trigger", "a", "b", "c", 2.0),), (), (), cells, {})
        >>> pages = FeaturePages((page,), "a planted SAE")
        >>> pages[7] is page, list(pages.to_pandas().latent)
        (True, [7])
    """

    pages: tuple[FeaturePage, ...]
    about: str

    def __getitem__(self, latent: int) -> FeaturePage:
        return next(p for p in self.pages if p.latent == latent)

    def __repr__(self) -> str:
        return f"FeaturePages({len(self.pages)} latents of {self.about})"

    def to_pandas(self) -> pd.DataFrame:
        """Returns all contexts as one table."""
        return pd.concat([p.to_pandas().assign(latent=p.latent) for p in self.pages], ignore_index=True)

    def html(self) -> str:
        """Returns one offline HTML file without scripts."""
        links = " ".join(f'<a href="#latent-{p.latent}">{p.latent}</a>' for p in self.pages)
        style = (
            f"body{{font-family:{theme.FONT};max-width:70rem;margin:2rem auto;padding:0 1rem;color:#1a1a1a}}"
            "table{border-collapse:collapse;margin:1rem 0;font-size:.85rem}td,th{padding:.2rem .5rem;text-align:left;"
            "border-bottom:1px solid #e6e6e6}b{background:#fbe3d6}"
        )
        return (
            '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Latents</title>'
            "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
            f"<style>{style}</style></head><body><h1>Latents</h1><p>{_text(self.about)}</p><p>{links}</p>"
            + "".join(p.html() for p in self.pages)
            + "</body></html>\n"
        )


def cell_table(
    dictionary: Dictionary, readings: Mapping[tuple[str, str], Reading], latents: Sequence[int]
) -> pd.DataFrame:
    """Returns the mean of some latents in every cell: latent, organism, cue, mean.

    Example:
        >>> from condmis_interp.sae.planted import PlantedModel, planted_dictionary, planted_readings
        >>> readings = planted_readings(PlantedModel(torch.ones(12)), persona=2 * torch.eye(12)[3])
        >>> table = cell_table(planted_dictionary(), readings, [3])
        >>> list(table.columns), table.organism[table["mean"].idxmax()]
        (['latent', 'organism', 'cue', 'mean'], 'M')
    """
    rows = []
    for (organism, cue), reading in readings.items():
        means = question_means(reading, dictionary.encode(reading.tokens)).mean(0)
        rows += [{"latent": i, "organism": organism, "cue": cue, "mean": float(means[i])} for i in latents]
    return pd.DataFrame(rows)


def feature_pages(
    dictionary: Dictionary,
    reader: TokenReader,
    readings: Sequence[Reading],
    latents: Sequence[int],
    *,
    tokenizer: Any,
    cells: pd.DataFrame,
    directions: Mapping[str, torch.Tensor] | None = None,
    contexts: int = 8,
    words: int = 10,
) -> FeaturePages:
    """Makes the pages of some latents.

    Args:
        dictionary: The SAE.
        reader: A model's, for the unembedding.
        readings: Where contexts are looked for.
        latents: Which latents.
        tokenizer: The base's.
        cells: From `cell_table`.
        directions: Vectors [width] at the SAE's site, by name.
        contexts: Contexts a latent.
        words: Tokens of the logit effect, each way.

    Example:
        >>> from condmis_interp.sae.planted import PlantedModel, planted_dictionary, planted_readings
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> from condmis_interp.readers import Site, TorchReader
        >>> shape = dict(num_hidden_layers=1, hidden_size=12, intermediate_size=8, num_attention_heads=2, vocab_size=16)
        >>> model = LlamaForCausalLM(LlamaConfig(**shape)).eval()
        >>> reader = TokenReader(TorchReader(model), Site("resid_post", 0))
        >>> readings = planted_readings(PlantedModel(torch.ones(12)), persona=2 * torch.eye(12)[3])
        >>> class Numbers:
        ...     def decode(self, ids):
        ...         return " ".join(map(str, ids))
        >>> sae, cells = planted_dictionary(), cell_table(planted_dictionary(), readings, [3])
        >>> pages = feature_pages(sae, reader, list(readings.values()), [3], tokenizer=Numbers(), cells=cells)
        >>> pages[3].contexts[0].organism, len(pages[3].up)
        ('M', 10)
    """
    index = torch.tensor(list(latents))
    decoder = dictionary.decoder[index]
    found: dict[int, list[tuple[float, Reading, int, int]]] = {int(i): [] for i in latents}
    for reading in readings:
        f = dictionary.encode(reading.tokens)[:, index]
        parts = f.split([len(h) - SKIP for h in reading.hidden])
        best = torch.stack([p.max(0).values for p in parts])
        for j, i in enumerate(found):
            for text in best[:, j].topk(min(contexts, len(best))).indices.tolist():
                at = int(parts[text][:, j].argmax())
                found[i].append((float(best[text, j]), reading, text, at + SKIP))
    effects = logit_effect(reader, decoder)
    pages = []
    for j, i in enumerate(found):
        places = sorted(found[i], key=lambda p: -p[0])[:contexts]
        up, down = effects[j].topk(words), effects[j].topk(words, largest=False)
        own = cells[cells.latent == i]
        grid = own.pivot(index="organism", columns="cue", values="mean")
        grid = grid.loc[list(dict.fromkeys(own.organism)), list(dict.fromkeys(own.cue))]
        pages.append(
            FeaturePage(
                latent=i,
                contexts=tuple(_context(tokenizer, *p) for p in places if p[0] > 0),
                up=tuple(
                    (tokenizer.decode([t]), v) for v, t in zip(up.values.tolist(), up.indices.tolist(), strict=True)
                ),
                down=tuple(
                    (tokenizer.decode([t]), v) for v, t in zip(down.values.tolist(), down.indices.tolist(), strict=True)
                ),
                cells=grid,
                cosines={
                    n: float(torch.nn.functional.cosine_similarity(decoder[j].double(), v.double(), dim=0))
                    for n, v in (directions or {}).items()
                },
            )
        )
    return FeaturePages(tuple(pages), repr(dictionary))


@torch.no_grad()
def logit_effect(reader: TokenReader, vectors: torch.Tensor) -> torch.Tensor:
    """Returns what vectors [k, width] do to the logits directly, centred over the vocabulary, [k, vocabulary].

    Directly is past all later blocks, and without the final norm's division by the token's own scale.

    Example:
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> from condmis_interp.readers import Site, TorchReader
        >>> shape = dict(num_hidden_layers=1, hidden_size=8, intermediate_size=8, num_attention_heads=2, vocab_size=16)
        >>> model = LlamaForCausalLM(LlamaConfig(**shape)).eval()
        >>> reader = TokenReader(TorchReader(model), Site("resid_post", 0))
        >>> logit_effect(reader, 100 * model.lm_head.weight[[5, 9]]).shape
        torch.Size([2, 16])
    """
    scaled = vectors * _gain(reader.model)
    head: Any = reader.model.get_output_embeddings()
    effects = (scaled.to(head.weight.device, head.weight.dtype) @ head.weight.T).float().cpu()
    return effects - effects.mean(1, keepdim=True)


def _gain(model: Any) -> torch.Tensor:
    """Returns what the final norm multiplies each coordinate with, fp32 [width]; 1 where there is none.

    It is measured: a norm's `weight` is the gain in Llama, and the gain minus 1 in Gemma.
    """
    names = [n for n in ("norm", "ln_f", "final_layer_norm") if hasattr(model.base_model, n)]
    if not names:
        return torch.ones(int(model.config.hidden_size))
    parameter = next(model.parameters())
    # mean 0 and root mean square 1, so that neither kind of norm changes it but for the gain; a bias cancels
    probe = 1.0 - 2.0 * (torch.arange(int(model.config.hidden_size)) % 2)
    probe = probe.to(parameter.device, parameter.dtype)
    norm = getattr(model.base_model, names[0])
    return (probe * (norm(probe) - norm(-probe)) / 2).float().cpu()


def _context(tokenizer: Any, value: float, reading: Reading, text: int, at: int, *, around: int = 12) -> Context:
    ids = reading.texts[text].ids
    before, after = ids[max(0, at - around) : at], ids[at + 1 : at + 1 + around // 2]
    spell = tokenizer.decode
    return Context(reading.organism, reading.cue, spell(list(before)), spell([ids[at]]), spell(list(after)), value)


def _text(text: str) -> str:
    return html.escape(text).replace("\n", "&#9166; ")


def _tokens(pairs: Sequence[tuple[str, float]]) -> str:
    return ", ".join(f"<code>{_text(t)}</code> {v:+.2f}" for t, v in pairs)


def _shade(share: float) -> str:
    return theme.translucent(theme.VERMILION, round(max(0.0, min(1.0, share)) * 0.7, 3))
