"""How likely a language model finds a text after another one: the surprisal of contexts, the likelihood of labels.

Both are the mean negative log-probability, in nats, of the text's own tokens; the model only reads what stands before
it. The text must have the same tokens whatever stands before it, or two means could not be compared. So prefix and text
are tokenised apart, and a text that is too long loses its end, while the prefix stays whole.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from autointerp.corpus.windows import token_ids
from autointerp.model.hooks import model_inputs
from autointerp.model.input_limits import n_positions, spelled_unreadable
from autointerp.model.load import LoadedModel
from autointerp.model.padding import require_next_token
from autointerp.model.token_batches import Batch, Halving, make_batches
from autointerp.records import Window
from autointerp.tasks import LabelGain, NotMeasured, Surprisal

MOST_TOKENS = 4096
"""Longest sequence that is read, even where the model would take more."""
# Logits are the largest tensors here: elements of one batch's, and of one block that is made float32.
_LOGITS_CPU, _LOGITS_DEVICE, _BLOCK = 1 << 24, 1 << 28, 1 << 24


@dataclass(frozen=True, slots=True)
class Continuation:
    """Ids that the model reads, then ids whose probability is asked for. Neither is empty."""

    prefix: list[int]
    ids: list[int]


Plan = list[list[Continuation]]


@dataclass(slots=True)
class Likelihoods:
    """Nats per token of one task's sequences."""

    rows: list[list[float]]
    n_forwards: int = 0
    n_tokens: int = 0


def longest_sequence(loaded: LoadedModel) -> int:
    """How many tokens the model reads at once, at most."""
    positions = n_positions(loaded.model)
    return MOST_TOKENS if positions is None else min(positions, MOST_TOKENS)


def surprisal(
    loaded: LoadedModel, asked: Sequence[Surprisal], batch_tokens: int, halving: Halving
) -> list[Likelihoods | NotMeasured]:
    """Mean nats per token of each text after each prefix (a list per prefix), a BOS first where there is one.

    A text is cut to what fits after the longest of its prefixes, so that the same tokens are counted after each.
    NotMeasured (bad_task) where a text has no tokens, or a prefix has none or fills the model's context; (nonfinite)
    where a loss is NaN or infinite. Raises errors.OutOfMemoryError where halving the batches no longer helps.
    """
    plans: list[Plan | NotMeasured] = []
    for one in asked:
        try:
            plans.append(_surprisal_plan(loaded, one))
        except NotMeasured as reason:
            plans.append(reason)
    return _measured(loaded, plans, batch_tokens, halving)


def label_likelihood(
    loaded: LoadedModel, asked: Sequence[tuple[LabelGain, Sequence[Sequence[str]]]], batch_tokens: int,
    halving: Halving,
) -> list[Likelihoods | NotMeasured]:  # fmt: skip
    """Mean log-probability per token of the label, where it stands in its template after each text: a list for each
    list of texts. NotMeasured and errors are those of `surprisal`."""
    plans: list[Plan | NotMeasured] = []
    for task, arms in asked:
        try:
            plans.append(_label_plan(loaded, task, arms))
        except NotMeasured as reason:
            plans.append(reason)
    found = _measured(loaded, plans, batch_tokens, halving)
    for one in found:
        if isinstance(one, Likelihoods):
            one.rows = [[-nll for nll in row] for row in one.rows]
    return found


def _surprisal_plan(loaded: LoadedModel, asked: Surprisal) -> Plan:
    prefixes = _with_bos(loaded, asked.prefixes)
    texts = _ids(loaded, asked.texts)
    room = _room(loaded, prefixes)
    for i, ids in enumerate(texts):
        if not ids:
            raise NotMeasured("bad_task", f"texts[{i}] has no tokens")
    return [[Continuation(prefix, ids[:room]) for ids in texts] for prefix in prefixes]


def _label_plan(loaded: LoadedModel, asked: LabelGain, arms: Sequence[Sequence[str]]) -> Plan:
    after, label = _label_ids(loaded, asked)
    prefixes = _with_bos(loaded, [asked.before + text + after for arm in arms for text in arm])
    room = _room(loaded, prefixes)
    rows = iter(prefixes)
    return [[Continuation(next(rows), label[:room]) for _ in arm] for arm in arms]


def _label_ids(loaded: LoadedModel, asked: LabelGain) -> tuple[str, list[int]]:
    """(what stands between the text and the label's tokens, those tokens), the same for every text.

    White space before the label goes to the label, as most tokenizers keep a word's space in the word's token; its ids
    are those it has in the template. Where a token reaches across that boundary, the two are tokenised apart.
    """
    after = asked.after.rstrip()
    label = asked.after[len(after) :] + asked.label
    before, whole, alone = _ids(loaded, [after, after + label, asked.label])
    within = bool(before) and whole[: len(before)] == before
    after, ids = (after, whole[len(before) :]) if within else (asked.after, alone)
    if not ids:
        raise NotMeasured("bad_task", "label has no tokens")
    return after, ids


def _with_bos(loaded: LoadedModel, texts: Sequence[str]) -> list[list[int]]:
    bos = loaded.tokenizer.bos_token_id
    return [([] if bos is None else [int(bos)]) + ids for ids in _ids(loaded, texts)]


def _ids(loaded: LoadedModel, texts: Sequence[str]) -> list[list[int]]:
    """The ids of each text. Raises NotMeasured (bad_task) for a text that the model has no embeddings for."""
    found = token_ids(texts, loaded.tokenizer)
    for why in spelled_unreadable(loaded.model, loaded.tokenizer, found).values():
        raise NotMeasured("bad_task", f"a text {why}")
    return found


def _room(loaded: LoadedModel, prefixes: Sequence[Sequence[int]]) -> int:
    """Tokens that fit after the longest prefix. Raises NotMeasured (bad_task)."""
    if not all(prefixes):
        raise NotMeasured("bad_task", "a prefix has no tokens, and the tokenizer has no BOS to predict a text from")
    longest, limit = max(map(len, prefixes)), longest_sequence(loaded)
    if longest >= limit:
        raise NotMeasured("bad_task", f"a prefix of {longest} tokens fills the model's context of {limit}")
    return limit - longest


def _measured(
    loaded: LoadedModel, plans: Sequence[Plan | NotMeasured], batch_tokens: int, halving: Halving
) -> list[Likelihoods | NotMeasured]:
    """Measures the sequences of all plans in common batches."""
    flat = [one for plan in plans if not isinstance(plan, NotMeasured) for row in plan for one in row]
    values = iter(mean_nll(loaded, flat, batch_tokens, halving))
    results: list[Likelihoods | NotMeasured] = []
    for plan in plans:
        if isinstance(plan, NotMeasured):
            results.append(plan)
            continue
        found = Likelihoods([[next(values) for _ in row] for row in plan])
        found.n_forwards = sum(map(len, plan))
        found.n_tokens = sum(len(one.prefix) + len(one.ids) for row in plan for one in row)
        good = all(math.isfinite(value) for row in found.rows for value in row)
        results.append(found if good else NotMeasured("nonfinite", "a loss is NaN or infinite"))
    return results


def mean_nll(
    loaded: LoadedModel, continuations: Sequence[Continuation], batch_tokens: int, halving: Halving
) -> list[float]:
    """Mean nats per token of each one's `ids`, given all ids before each. Not finite where the model's logits are not.

    Raises InputError where the model looks ahead, errors.OutOfMemoryError where halving the batches no longer helps.
    """
    require_next_token(loaded, "the probability of a text")
    result = [math.nan] * len(continuations)
    windows = [Window("", 0, "report", [*one.prefix, *one.ids], len(one.prefix)) for one in continuations]
    budget = _LOGITS_CPU if loaded.device.type == "cpu" else _LOGITS_DEVICE
    vocabulary = int(getattr(loaded.model.config.get_text_config(), "vocab_size", 0)) or 1

    def work(part: Batch) -> Tensor:
        return _batch_nll(loaded, part)

    for batch in make_batches(windows, max(1, min(batch_tokens, budget // vocabulary)), loaded.pad_id):
        for part, means in halving.run(batch.to(loaded.device), work):
            for index, value in zip(part.indices, means.tolist(), strict=True):
                result[index] = value
    return result


def _batch_nll(loaded: LoadedModel, batch: Batch) -> Tensor:
    """float64 [B] on CPU."""
    position = torch.arange(batch.ids.shape[1], device=batch.ids.device)
    row, at = ((position >= batch.prefixes[:, None]) & (position < batch.lengths[:, None])).nonzero(as_tuple=True)
    with torch.inference_mode():
        logits: Tensor = loaded.model(**model_inputs(loaded, batch.ids, batch.lengths)).logits
    target, device = batch.ids[row, at], logits.device
    row, at, target = row.to(device), at.to(device), target.to(device)
    size = max(1, _BLOCK // logits.shape[-1])
    blocks = zip(row.split(size), at.split(size), target.split(size), strict=True)
    losses = [F.cross_entropy(logits[r, a - 1].float(), t, reduction="none").cpu().double() for r, a, t in blocks]
    sums = torch.zeros(len(batch.windows), dtype=torch.float64).index_add_(0, row.cpu(), torch.cat(losses))
    return sums / (batch.lengths - batch.prefixes).cpu()
