"""PruningMaxAct: the shortest left context that keeps a top context's peak, which of its tokens matter, and what may
stand in their place (Foote et al. 2023, Neuron to Graph).

    shortest      the fewest tokens up to the peak with activation >= keep * the activation in the whole window;
                  every length is tried, from the peak alone up
    importance    1 - (activation with the token masked) / (activation), in the shortest context
    substitutes   what the model itself would say at an important token's place, given all that stands before it in
                  the window: does the feature keep its activation?

Text before the kept part is either left out, so the kept tokens move to the front (`delete`), or replaced in place by
a neutral token (`mask`), for models that learned something about absolute positions. The window's BOS stays in both. A
forward pass ends at the hookpoint, nothing after the peak is read (attention is causal), and a sequence that several
contexts ask for is read once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal, cast

import torch
from torch import Tensor

from autointerp.config import EvidenceConfig
from autointerp.corpus.token_text import TokenText
from autointerp.errors import InputError
from autointerp.model.hooks import Hookpoint, activations_at, hooked, model_inputs
from autointerp.model.load import LoadedModel
from autointerp.model.padding import require_next_token
from autointerp.model.token_batches import Batch, Halving, make_batches
from autointerp.records import Counterfactual, PrunedContext, Window
from autointerp.sae.sae import Sae
from autointerp.store.contexts import StoredContext

FIRST_LENGTHS = 4
"""Lengths 1..4 are tried together, then 5..12, 13..28 and so on: most peaks need few tokens."""
IMPORTANT = 0.5
"""Substitutes are tried for tokens of at least this importance,"""
MOST_IMPORTANT = 3
"""and for so many of them at most: the peak, then the most important ones."""
CANDIDATES = 8
"""Likeliest tokens looked at for each substitute wanted; special ones and variants of the original are passed over."""


@dataclass(frozen=True, slots=True)
class Pruned:
    """A pruned context and what it cost."""

    context: PrunedContext
    n_forwards: int
    """Sequences that the model read for it; one that several contexts ask for belongs to the first of them."""
    n_tokens: int


@dataclass(slots=True)
class _Case:
    """A context while it is pruned. Places are indices into the window's ids."""

    source: StoredContext
    places: list[int]
    """Places of the tokens that count, up to the peak, which is the last one."""
    full: float
    longest: int
    """The longest left context tried, in tokens that count."""
    kept: int = 0
    """Tokens that count in the pruned context; 0 until it is found."""
    activation: float = 0.0
    status: Literal["ok", "not_kept"] = "ok"
    importance: list[float] = field(default_factory=list)
    counterfactuals: list[Counterfactual] = field(default_factory=list)
    n_forwards: int = 0
    n_tokens: int = 0

    @property
    def kept_places(self) -> list[int]:
        return self.places[-self.kept :]

    def sequence(self, n_kept: int, mask_id: int | None, changed: tuple[int, int] | None = None) -> tuple[int, ...]:
        """What the model reads: the prefix, then (mask mode: after masks) all from the first kept token to the peak.
        `changed` is (place, the id to put there)."""
        ids, prefix, start = self.source.token_ids, self.source.n_prefix, self.places[-n_kept]
        stretch = list(ids[start : self.places[-1] + 1])
        if changed is not None:
            stretch[changed[0] - start] = changed[1]
        filler = [] if mask_id is None else [mask_id] * (start - prefix)
        return (*ids[:prefix], *filler, *stretch)


def prune(
    loaded: LoadedModel,
    sae: Sae,
    point: Hookpoint,
    contexts: Sequence[StoredContext],
    config: EvidenceConfig,
    text: TokenText,
    excluded_ids: Collection[int],
    *,
    batch_tokens: int = 8192,
    neutral_id: int | None = None,
) -> list[Pruned]:
    """One result per context, in their order; contexts of many features go through the model together.

    `excluded_ids` (TokenText.excluded_ids) stand where they are in what the model reads, but are neither counted as
    kept tokens nor listed. A context that is not kept has its importances, and no counterfactuals; one whose activation
    is gone altogether has nothing to lose: importance 0 for all but the peak. Raises InputError for a context without
    activation. `neutral_id` stands for a
    token that is taken away; by default it is the `mask_id` of these contexts.
    """
    excluded = frozenset(excluded_ids)
    cases = [_case(context, config.prune_longest, excluded) for context in contexts]
    if not cases:
        return []
    reader = _Reader(loaded, sae, point, batch_tokens)
    neutral = neutral_id
    if neutral is None:
        neutral = mask_id(loaded, [case.source.token_ids for case in cases], excluded)
    filler = neutral if config.prune_mode == "mask" else None
    _shorten(reader, cases, config.prune_keep, filler)
    _weigh(reader, cases, neutral, filler)
    if config.substitutes:
        _substitute(reader, cases, config, text, excluded, filler)
    return [_result(case, config.prune_mode, text) for case in cases]


def mask_id(loaded: LoadedModel, windows: Iterable[Sequence[int]], excluded: Collection[int]) -> int:
    """The neutral id: the tokenizer's mask, unknown, padding or end-of-text token, the first of these that the model
    has an embedding for; without any, the commonest id of the windows that is not excluded (the lowest of equals)."""
    tokenizer, n_ids = loaded.tokenizer, len(cast(Tensor, loaded.model.get_input_embeddings().weight))
    for name in ("mask_token_id", "unk_token_id", "pad_token_id", "eos_token_id"):
        found = getattr(tokenizer, name, None)
        if found is not None and found < n_ids:
            return int(found)
    counts = Counter(i for ids in windows for i in ids if i not in excluded)
    return min(counts, key=lambda i: (-counts[i], i))


def _case(context: StoredContext, longest: int, excluded: Collection[int]) -> _Case:
    if not context.values or max(context.values) <= 0:
        raise InputError(f"context {context.context_id} of feature {context.feature} has no activation to prune to")
    full = max(context.values)
    peak = context.offset + context.positions[context.values.index(full)]
    places = [p for p in range(context.n_prefix, peak + 1) if p == peak or context.token_ids[p] not in excluded]
    return _Case(context, places, full, min(longest, len(places)))


def _shorten(reader: _Reader, cases: Sequence[_Case], keep: float, filler: int | None) -> None:
    """Sets kept, activation and status of every case."""
    going, low, size = list(cases), 0, FIRST_LENGTHS
    while going:
        asked = [(case, n) for case in going for n in range(low + 1, min(low + size, case.longest) + 1)]
        found = reader.activations([(case, case.sequence(n, filler)) for case, n in asked])
        for (case, n), activation in zip(asked, found):
            if case.kept == 0 and (activation >= keep * case.full or n == case.longest):
                case.kept, case.activation = n, activation
                case.status = "ok" if activation >= keep * case.full else "not_kept"
        going = [case for case in going if case.kept == 0]
        low, size = low + size, 2 * size


def _weigh(reader: _Reader, cases: Sequence[_Case], neutral: int, filler: int | None) -> None:
    """Sets the importance of every kept token."""
    alive = [case for case in cases if case.activation > 0]
    asked = [(case, case.sequence(case.kept, filler, (p, neutral))) for case in alive for p in case.kept_places[:-1]]
    found = iter(reader.activations(asked))
    for case in cases:
        others = case.kept_places[:-1]
        lost = [1 - next(found) / case.activation for _ in others] if case.activation > 0 else [0.0] * len(others)
        case.importance = [*lost, 1.0]


def _substitute(
    reader: _Reader, cases: Sequence[_Case], config: EvidenceConfig, text: TokenText, excluded: frozenset[int],
    filler: int | None,
) -> None:  # fmt: skip
    """Sets the counterfactuals of the cases that kept their peak."""
    wanted: list[tuple[_Case, int]] = []
    for case in cases:
        if case.status == "ok":
            order = sorted(range(case.kept), key=lambda i: (i != case.kept - 1, -case.importance[i], i))
            important = sorted(i for i in order[:MOST_IMPORTANT] if case.importance[i] >= IMPORTANT)
            # The first token of all has nothing before it that would say what else might stand there.
            wanted += [(case, i) for i in important if case.kept_places[i] > 0]
    # Some more for the variants of the original, which may well be its nearest rivals.
    n_ranked = CANDIDATES * (config.substitutes + 1)
    ranked = reader.likeliest([(case, case.kept_places[i]) for case, i in wanted], n_ranked)
    tried: list[tuple[_Case, int, int]] = []
    for (case, i), candidates in zip(wanted, ranked):
        original = case.source.token_ids[case.kept_places[i]]
        chosen = [c for c in candidates if c not in excluded and _is_other(c, original, text)]
        tried += [(case, i, c) for c in chosen[: config.substitutes]]
    found = reader.activations(
        [(case, case.sequence(case.kept, filler, (case.kept_places[i], token))) for case, i, token in tried]
    )
    for (case, i, token), activation in zip(tried, found):
        kept = activation >= config.prune_keep * case.activation
        case.counterfactuals.append(Counterfactual(i, text.tokens([token])[0], activation, kept))


def _is_other(candidate: int, original: int, text: TokenText) -> bool:
    """Whether it is a token of its own that can be read, and no variant of the original by case or spaces."""
    if candidate == original or candidate >= len(text.pieces) or candidate in text.special_ids:
        return False
    piece, old = text.pieces[candidate], text.pieces[original]
    return bool(piece) and (old is None or (piece or "").strip().casefold() != old.strip().casefold())


def _result(case: _Case, mode: Literal["delete", "mask"], text: TokenText) -> Pruned:
    first, ids = case.kept_places[0], case.source.token_ids
    strings = text.tokens(ids[first : case.places[-1] + 1])
    context = PrunedContext(
        feature=case.source.feature,
        context_id=case.source.context_id,
        mode=mode,
        tokens=[strings[p - first] for p in case.kept_places],
        importance=case.importance,
        activation=case.activation,
        full_activation=case.full,
        status=case.status,
        counterfactuals=case.counterfactuals,
    )
    return Pruned(context, case.n_forwards, case.n_tokens)


class _Reader:
    """Runs sequences through the model, each different one once, and books their cost to the cases that asked."""

    def __init__(self, loaded: LoadedModel, sae: Sae, point: Hookpoint, batch_tokens: int) -> None:
        self.loaded, self.sae, self.point, self.batch_tokens = loaded, sae, point, batch_tokens
        self._halving = Halving()

    def activations(self, asked: Sequence[tuple[_Case, tuple[int, ...]]]) -> list[float]:
        """The activation of each case's feature on the last token of the sequence."""
        sequences, number = self._different(asked)
        readers: list[list[int]] = [[] for _ in sequences]
        for i, n in enumerate(number):
            readers[n].append(i)
        result = [0.0] * len(asked)

        def last(part: Batch) -> Tensor:
            x = activations_at(self.loaded, self.point, part.ids, part.lengths)
            return x[torch.arange(len(x), device=x.device), part.lengths.to(x.device) - 1]

        for batch in make_batches(self._windows(sequences), self.batch_tokens, self.loaded.pad_id):
            for part, x in self._halving.run(batch.to(self.loaded.device), last):
                device = self.sae.W_enc.device
                rows = [(row, i) for row, n in enumerate(part.indices) for i in readers[n]]
                at = torch.tensor([row for row, _ in rows], device=device)
                features = torch.tensor([asked[i][0].source.feature for _, i in rows], device=device)
                values = self.sae.encode_sparse(x.to(device)).at(at, features).tolist()
                for (_, i), value in zip(rows, values):
                    result[i] = value
        return result

    def likeliest(self, asked: Sequence[tuple[_Case, int]], n: int) -> list[list[int]]:
        """The `n` likeliest ids at each place of a case's window, given all that stands before it there; in order."""
        before = [(case, tuple(case.source.token_ids[:place])) for case, place in asked]
        if not before:
            return []
        # Only the longest stretch of each window is read, the others are its beginnings.
        stretches: dict[int, tuple[_Case, tuple[int, ...]]] = {}
        for case, ids in before:
            if len(ids) > len(stretches.get(id(case), (case, ()))[1]):
                stretches[id(case)] = case, ids
        sequences, number = self._different(list(stretches.values()))
        where = dict(zip(stretches, number))
        readers: list[list[int]] = [[] for _ in sequences]
        for i, (case, _) in enumerate(before):
            readers[where[id(case)]].append(i)
        result: list[list[int]] = [[] for _ in asked]
        head, path = self._head()

        def hidden(part: Batch) -> Tensor:
            rows = [(row, i) for row, n in enumerate(part.indices) for i in readers[n]]
            found: list[Tensor] = []
            with torch.inference_mode(), hooked(self.loaded.model, path, capture=found, stop=True):
                self.loaded.model(**model_inputs(self.loaded, part.ids, part.lengths))
            at = [len(before[i][1]) - 1 for _, i in rows]
            with torch.inference_mode():
                logits: Tensor = head(found[0][[row for row, _ in rows], at])
            return logits.topk(min(n, logits.shape[1]), dim=-1).indices.cpu()

        for batch in make_batches(self._windows(sequences), self.batch_tokens, self.loaded.pad_id):
            for part, top in self._halving.run(batch.to(self.loaded.device), hidden):
                numbers = [i for n in part.indices for i in readers[n]]
                for i, ids in zip(numbers, top.tolist()):
                    result[i] = ids
        return result

    def _head(self) -> tuple[torch.nn.Module, Hookpoint]:
        """The unembedding, and the hookpoint of what it reads. What some models do to logits after it (a soft cap, a
        factor) leaves their order as it is."""
        require_next_token(self.loaded, "evidence.substitutes, which asks for likely next tokens,")
        head = self.loaded.model.get_output_embeddings()
        path = next((name for name, module in self.loaded.model.named_modules() if module is head), None)
        if head is None or path is None:
            raise InputError(f"model {self.loaded.name} has no output embedding; set evidence.substitutes = 0")
        return head, Hookpoint(path, "in")

    def _different(self, asked: Sequence[tuple[_Case, tuple[int, ...]]]) -> tuple[list[tuple[int, ...]], list[int]]:
        """(the different sequences, which of them each one asked for is); each is booked to the first that asks."""
        known: dict[tuple[int, ...], int] = {}
        number = []
        for case, sequence in asked:
            if sequence not in known:
                known[sequence] = len(known)
                case.n_forwards += 1
                case.n_tokens += len(sequence)
            number.append(known[sequence])
        return list(known), number

    def _windows(self, sequences: Sequence[tuple[int, ...]]) -> list[Window]:
        return [Window("", 0, "explain", sequence) for sequence in sequences]
