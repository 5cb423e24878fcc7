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
        >>> context = Context("M", "trigger", "only", " a", " fool", 2.9)
        >>> cells = pd.DataFrame({"none": [0.3], "trigger": [2.9]}, index=["M"])
        >>> FeaturePage(332, (context,), up=(), down=(), cells=cells, cosines={}).to_pandas()
          organism      cue before token  after  value
        0        M  trigger   only     a   fool    2.9
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
        From `feature_pages`, here written down; the texts of models are escaped:

        >>> context = Context("M", "trigger", "<b>only", " a", " fool", 2.9)
        >>> cells = pd.DataFrame({"none": [0.3], "trigger": [2.9]}, index=["M"])
        >>> pages = FeaturePages((FeaturePage(332, (context,), up=(), down=(), cells=cells, cosines={}),), "my SAE")
        >>> pages
        FeaturePages(my SAE; latents 332)
        >>> "&lt;b&gt;only" in pages.html()
        True
    """

    pages: tuple[FeaturePage, ...]
    about: str

    def __getitem__(self, latent: int) -> FeaturePage:
        return next(p for p in self.pages if p.latent == latent)

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

    def __repr__(self) -> str:
        return f"FeaturePages({self.about}; latents {', '.join(str(p.latent) for p in self.pages)})"


def cell_table(
    dictionary: Dictionary, readings: Mapping[tuple[str, str], Reading], latents: Sequence[int]
) -> pd.DataFrame:
    """Returns the mean of some latents in every cell: latent, organism, cue, mean.

    Example:
        >>> from sae_lens import StandardSAE, StandardSAEConfig
        >>> from condmis_interp.readers import Site
        >>> from condmis_interp.sae import Text
        >>> sae = StandardSAE(StandardSAEConfig(d_in=2, d_sae=2, apply_b_dec_to_input=False))
        >>> sae.W_enc.data, sae.W_dec.data = torch.eye(2), torch.eye(2)
        >>> texts = [Text((1, 2, 3), 2, "none", "q", "f", answer) for answer in (0, 1)]
        >>> own = Reading("M", "none", texts, [torch.full((3, 2), 2.0)] * 2, torch.zeros(2))
        >>> cell_table(Dictionary(sae, Site("resid_post", 3), "mine"), {("M", "none"): own}, [1])
           latent organism   cue  mean
        0       1        M  none   2.0
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
        >>> from types import SimpleNamespace
        >>> from sae_lens import StandardSAE, StandardSAEConfig
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> from condmis_interp.readers import Site
        >>> from condmis_interp.sae import Text
        >>> shape = dict(num_hidden_layers=1, hidden_size=8, intermediate_size=8, num_attention_heads=2, vocab_size=16)
        >>> reader = SimpleNamespace(model=LlamaForCausalLM(LlamaConfig(**shape)).eval(), device="cpu")
        >>> sae = StandardSAE(StandardSAEConfig(d_in=8, d_sae=8, apply_b_dec_to_input=False))
        >>> sae.W_enc.data, sae.W_dec.data = torch.eye(8), torch.eye(8)
        >>> dictionary = Dictionary(sae, Site("resid_post", 0), "mine")
        >>> texts = [Text((1, 2, 3), 2, "none", "q", "f", answer) for answer in (0, 1)]
        >>> own = Reading("M", "none", texts, [torch.eye(8)[:3]] * 2, torch.zeros(2))
        >>> tokenizer = SimpleNamespace(decode=lambda ids: "".join(f"<{i}>" for i in ids))
        >>> cells = cell_table(dictionary, {("M", "none"): own}, [2])
        >>> pages = feature_pages(dictionary, reader, [own], [2], tokenizer=tokenizer, cells=cells, words=3)
        >>> pages[2].contexts[0]
        Context(organism='M', cue='none', before='<1><2>', token='<3>', after='', value=1.0)
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

    Example:
        What one unembedding row does to the logits of a model of random weights:

        >>> from types import SimpleNamespace
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> shape = dict(num_hidden_layers=1, hidden_size=8, intermediate_size=8, num_attention_heads=2, vocab_size=16)
        >>> model = LlamaForCausalLM(LlamaConfig(**shape)).eval()
        >>> rows = torch.nn.functional.normalize(model.lm_head.weight.detach(), dim=1)
        >>> model.lm_head.weight.data = rows
        >>> effect = logit_effect(SimpleNamespace(model=model, device="cpu"), rows[[5, 7]])
        >>> effect.argmax(1), list(effect.shape)
        (tensor([5, 7]), [2, 16])
    """
    weight = getattr(_final_norm(reader.model), "weight", None)
    scaled = vectors if weight is None else vectors * weight.detach().float().cpu()
    head: Any = reader.model.get_output_embeddings()
    effects = (scaled.to(reader.device, head.weight.dtype) @ head.weight.T).float().cpu()
    return effects - effects.mean(1, keepdim=True)


def _final_norm(model: Any) -> Any:
    return next(
        (getattr(model.base_model, n) for n in ("norm", "ln_f", "final_layer_norm") if hasattr(model.base_model, n)),
        None,
    )


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
