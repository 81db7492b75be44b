"""How strongly features fire on texts from outside the corpus: sentences that an LLM wrote, texts that a user brings.

A text is one window, made as the corpus's are: the same BOS rule, cut off at the context length. Tokens that never
count in the harvest (BOS, special and excluded tokens) do not count here either.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from autointerp.config import CorpusConfig
from autointerp.corpus.windows import SHORTEST_WINDOW, bos_prefix, token_ids
from autointerp.errors import InputError
from autointerp.model.hooks import Hookpoint, activations_at
from autointerp.model.input_limits import spelled_unreadable
from autointerp.model.load import LoadedModel
from autointerp.model.token_batches import Batch, Halving, eligible, make_batches
from autointerp.records import Window, WorkUnit
from autointerp.sae.sae import Sae
from autointerp.tasks import NotMeasured

LONGEST_SEARCH = 2000
"""Windows of the explain split that are looked through for long ones."""


@dataclass(slots=True)
class Maxima:
    """One feature on some texts."""

    maximum: list[float | None] = field(default_factory=list)
    """Largest activation on a counted token, raw units, 0 where the feature is silent; None: no counted token."""
    n_tokens: list[int] = field(default_factory=list)
    """Counted tokens."""
    n_forwards: int = 0
    """Texts that the model read; one that several ask for counts for the first of them."""
    n_read: int = 0
    """Tokens that it read, BOS included."""


def feature_maxima(
    loaded: LoadedModel, sae: Sae, hookpoint: Hookpoint, asked: Sequence[tuple[int, Sequence[str]]],
    corpus: CorpusConfig, excluded_ids: Iterable[int] | Tensor, batch_tokens: int, halving: Halving,
) -> list[Maxima | NotMeasured]:  # fmt: skip
    """One result for each (feature, texts). The model reads a text once, whatever number of features asks for it.

    `corpus` gives context_length and prepend_bos. `excluded_ids`: see TokenText.excluded_ids. NotMeasured
    (nonfinite) where the vectors of one of the texts, or the feature on it, are NaN or infinite; (bad_task) where the
    dictionary has no such feature, or a text spells a token that the model has no embedding for. Raises
    errors.OutOfMemoryError where halving the batches no longer helps.
    """
    prefix = bos_prefix(loaded.tokenizer, corpus)
    texts = list(dict.fromkeys(text for _, own in asked for text in own))
    place = {text: i for i, text in enumerate(texts)}
    wanted = sorted({feature for feature, _ in asked if 0 <= feature < sae.d_sae})
    column = {feature: j for j, feature in enumerate(wanted)}
    ids = token_ids(texts, loaded.tokenizer) if texts else []
    unreadable = spelled_unreadable(loaded.model, loaded.tokenizer, ids)
    # A text of no tokens has no window: nothing of it can be read.
    windows = {
        i: Window(str(i), 0, "report", [*prefix, *own[: corpus.context_length - len(prefix)]], len(prefix))
        for i, own in enumerate(ids)
        if own and i not in unreadable
    }
    maximum, n_tokens = _read(loaded, sae, hookpoint, windows, len(texts), wanted, excluded_ids, batch_tokens, halving)
    results: list[Maxima | NotMeasured] = []
    paid: set[int] = set()
    for feature, own in asked:
        if feature not in column:
            results.append(NotMeasured("bad_task", f"the dictionary of {sae.d_sae} features has no feature {feature}"))
            continue
        why = next((unreadable[place[text]] for text in own if place[text] in unreadable), None)
        if why is not None:
            results.append(NotMeasured("bad_task", f"a text {why}"))
            continue
        found = Maxima()
        for text in own:
            i = place[text]
            found.n_tokens.append(n_tokens[i])
            found.maximum.append(float(maximum[i, column[feature]]) if n_tokens[i] else None)
            if i in windows and i not in paid:
                paid.add(i)
                found.n_forwards, found.n_read = found.n_forwards + 1, found.n_read + len(windows[i].token_ids)
        bad = [i for i, value in enumerate(found.maximum) if value is not None and not math.isfinite(value)]
        results.append(NotMeasured("nonfinite", f"NaN or infinite activations on text {bad[0]}") if bad else found)
    return results


def _read(
    loaded: LoadedModel, sae: Sae, hookpoint: Hookpoint, windows: dict[int, Window], n_texts: int,
    wanted: Sequence[int], excluded_ids: Iterable[int] | Tensor, batch_tokens: int, halving: Halving,
) -> tuple[Tensor, list[int]]:  # fmt: skip
    """([n_texts, wanted] largest activations, NaN where a text's vectors are not finite; counted tokens per text)."""
    maximum, n_tokens = torch.zeros(n_texts, len(wanted)), [0] * n_texts
    device = sae.W_enc.device
    slot = torch.full((sae.d_sae,), -1, dtype=torch.int64, device=device)
    slot[torch.tensor(wanted, dtype=torch.int64, device=device)] = torch.arange(len(wanted), device=device)

    def largest(part: Batch) -> tuple[Tensor, Tensor]:
        x = activations_at(loaded, hookpoint, part.ids, part.lengths)
        counted = eligible(part, excluded_ids).to(x.device)
        row = counted.nonzero(as_tuple=True)[0].to(device)
        vectors = x[counted].to(device)
        codes = sae.encode_sparse(vectors)
        held = slot[codes.features] >= 0
        at = row[codes.rows[held]] * len(wanted) + slot[codes.features[held]]
        best = torch.zeros(len(counted) * len(wanted), device=device)
        best = best.scatter_reduce(0, at, codes.values[held].to(best.dtype), "amax").view(len(counted), len(wanted))
        # A NaN passes no threshold, so the codes do not show it: the vectors do.
        best[row[~torch.isfinite(vectors.sum(-1, dtype=torch.float32))]] = torch.nan
        return best.cpu(), counted.sum(1).cpu()

    order = list(windows)
    for batch in make_batches([windows[i] for i in order], batch_tokens, loaded.pad_id):
        for part, (best, counts) in halving.run(batch.to(loaded.device), largest):
            for index, values, n in zip(part.indices, best, counts.tolist(), strict=True):
                maximum[order[index]], n_tokens[order[index]] = values, n
    return maximum, n_tokens


def explain_ids(units: Iterable[WorkUnit], n: int, length: int) -> Tensor:
    """int64 [P, T]: the first T <= `length` ids, BOS included, of P <= `n` windows of the explain split, one to a
    document: the first windows that are long enough, else the longest of LONGEST_SEARCH.

    Raises InputError where the corpus has none of two tokens.
    """
    found: list[Window] = []
    documents: set[str] = set()
    n_long = 0
    for window in _explain_windows(units):
        if window.document in documents or len(window.token_ids) - window.n_prefix < SHORTEST_WINDOW:
            continue
        documents.add(window.document)
        found.append(window)
        n_long += len(window.token_ids) >= length
        if n_long == n or len(found) == LONGEST_SEARCH:
            break
    found.sort(key=lambda window: -min(length, len(window.token_ids)))  # stable: equal lengths in corpus order
    chosen = found[:n]
    if not chosen:
        raise InputError("the corpus's explain split has no text to steer on")
    shortest = min(length, *(len(window.token_ids) for window in chosen))
    return torch.tensor([list(window.token_ids[:shortest]) for window in chosen], dtype=torch.int64)


def _explain_windows(units: Iterable[WorkUnit]) -> Iterator[Window]:
    for unit in units:
        yield from (window for window in unit.windows if window.split == "explain")
