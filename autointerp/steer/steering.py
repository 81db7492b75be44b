"""Steering: what the model says while one feature is clamped to a value.

    x' = x + (v - z_i) s d_i

at every position that counts, with the feature's own activation z_i there, its decoder row d_i and, for a dictionary
that reads each vector scaled by itself, that scale s. Only the one feature's part of x changes: what the dictionary
does not explain (the error term) stays, so a feature clamped to the activation it has changes nothing (Templeton et
al. 2024). With a transcoder, z_i comes from the input hookpoint and x is the output hookpoint's activation in the same
pass. BOS, excluded ids and padding are never touched.

A dictionary that writes several hookpoints changes each of them by its part of d_i. One that reads several cannot know
z_i before the last of them, so the text is read once before, without steering. Where one hookpoint is a later state of
the residual stream of another, the change of the other one comes to it by itself, so x is there the state without
steering.

Many features are clamped side by side: every row of a batch has a feature and a value of its own.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from autointerp.errors import AutointerpError, InputError
from autointerp.model.hooks import Hookpoint, activations_at_all, hooked, model_inputs, own_columns, resolve
from autointerp.model.input_limits import n_positions
from autointerp.model.load import LoadedModel
from autointerp.model.padding import require_next_token
from autointerp.model.same_stream import carried_into
from autointerp.model.token_batches import Batch, Halving, eligible, make_batches
from autointerp.records import Window
from autointerp.sae.sae import Sae
from autointerp.steer.clamp import Clamp, per_token
from autointerp.steer.strength_search import StrengthSearch

# Logits are the largest tensors here: elements of one batch's, and of one block that is made float32.
_LOGITS_CPU, _LOGITS_DEVICE, _BLOCK = 1 << 24, 1 << 28, 1 << 24
UNTOUCHED = -1
"""Stands for a feature in rows that run without steering."""

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Strength:
    """The value to clamp a feature to so that the model is moved as far as asked, or the one that came closest."""

    feature: int
    value: float
    """Activation that the feature is clamped to, raw units."""
    kl: float
    """KL(steered || clean) of the next-token distributions at that value, nats per token. NaN where every value that
    was tried made the model overflow."""
    reached: bool


class Steerer:
    """Runs the model with features of one SAE (or transcoder) clamped.

    Raises InputError where a hookpoint names no module or is never run, a feature is not the SAE's, the model looks
    ahead, or a text is empty or longer than the model's positions; errors.OutOfMemoryError where halving the batches no
    longer helps.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        sae: Sae,
        point: Hookpoint,
        output: Hookpoint | None = None,
        excluded_ids: Iterable[int] = (),
        batch_tokens: int = 8192,
    ) -> None:
        """`output` is where a transcoder writes, None (or `point`) for an SAE. Fewer tokens than `batch_tokens` run at
        once where the vocabulary is large."""
        require_next_token(loaded, "steering")
        self.loaded, self.sae = loaded, sae
        self.source, self.target = point, output or point
        for where in {*self.source.own_parts, *self.target.own_parts}:
            resolve(loaded.model, where)
        self.columns = own_columns(loaded, self.target, sae.d_out)
        """Where the SAE writes in the model, and which columns of its vectors belong there."""
        carried = carried_into(loaded, self.target) if self.target.others else {}
        self.states = tuple(part for part in self.columns if any(part in later for later in carried.values()))
        """Those to which a change at another part comes by itself."""
        self.reads_first = bool(self.source.others) or self.source.of_other or bool(self.states)
        self.excluded = torch.tensor(sorted(excluded_ids), dtype=torch.int64, device=loaded.device)
        config = loaded.model.config.get_text_config()
        budget = _LOGITS_CPU if loaded.device.type == "cpu" else _LOGITS_DEVICE
        self.batch_tokens = max(1, min(batch_tokens, budget // (int(getattr(config, "vocab_size", 0)) or 1)))
        self.most_positions = n_positions(loaded.model)
        self.n_forwards = 0
        """Sequences that the model has read."""
        self.n_tokens = 0
        self._halving = Halving()

    # --- one pass --------------------------------------------------------------------------------------------------

    def logits(self, ids: Tensor, features: Tensor, values: Tensor) -> Tensor:
        """[B, T, V] in the model's dtype, on its device, of ids [B, T] with feature b clamped to value b in row b (both
        [B]; UNTOUCHED leaves a row alone). Rows may be padded on the right; logits at padding mean nothing."""
        found: list[tuple[int, Tensor]] = []
        for rows, logits in self._passes(ids.tolist(), features.tolist(), values.tolist(), lambda _, made: made):
            found += zip(rows, logits)
        return torch.stack([row for _, row in sorted(found, key=lambda pair: pair[0])])

    def mean_logits(self, ids: Tensor, features: Sequence[int], values: Sequence[float]) -> Tensor:
        """[F, V] float64 on CPU: for each feature clamped to its value (UNTOUCHED: none), the logits' mean over the
        prompts `ids` [P, T] and their positions that count."""
        n = self._n_counted(ids)
        total: Tensor | None = None
        for rows, sums in self._side_by_side(ids, features, values, lambda part, logits: _sums(logits, self._of(part))):
            for row, one in zip(rows, sums.cpu().double()):
                total = torch.zeros(len(features), one.shape[0], dtype=torch.float64) if total is None else total
                total[row // len(ids)] += one
        assert total is not None
        return total / n

    def strengths(
        self,
        features: Sequence[int],
        ids: Tensor,
        target_kl: float,
        scales: Sequence[float],
        *,
        tolerance: float = 0.1,
        most_steps: int = 15,
        span: float = 1000.0,
    ) -> list[Strength]:
        """For each feature the positive value at which the mean over the prompts `ids` [P, T] and their positions that
        count of KL(steered || clean), nats per token, is `target_kl` within `tolerance` (a share of it).

        `scales` are the values tried first, one per feature: its largest activation. `reached` is False where no value
        up to `span` times it, or none of `most_steps`, gets there. The clean logits [P, T, V] are held meanwhile.
        """
        for feature, scale in zip(features, scales, strict=True):
            if not (0 < scale < float("inf")):
                raise InputError(
                    f"feature {feature}: its largest activation is {scale}, so there is nothing to clamp to"
                )
        n = self._n_counted(ids)
        clean = self.logits(ids, torch.full((len(ids),), UNTOUCHED), torch.zeros(len(ids)))
        searches = [StrengthSearch(s, target_kl, tolerance=tolerance, most_steps=most_steps, span=span) for s in scales]
        going = list(range(len(features)))
        while going:
            sums = np.zeros(len(going))
            chosen, values = [features[i] for i in going], [searches[i].value for i in going]

            def divergence(part: Batch, logits: Tensor) -> Tensor:
                return _divergence(logits, clean, [i % len(clean) for i in part.indices], self._of(part))

            for rows, found in self._side_by_side(ids, chosen, values, divergence):
                np.add.at(sums, [row // len(ids) for row in rows], found.cpu().double().numpy())
            for i, total in zip(going, sums.tolist()):
                searches[i].tell(total / n)
            going = [i for i in going if not searches[i].is_done]
        return [
            Strength(feature, search.best, search.best_kl, search.is_reached)
            for feature, search in zip(features, searches)
        ]

    # --- sampling --------------------------------------------------------------------------------------------------

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        features: Sequence[int | None],
        values: Sequence[float],
        n_tokens: int,
        temperature: float,
        seed: int,
    ) -> list[list[int]]:
        """For each prompt (of any length) up to `n_tokens` sampled ids with its feature clamped to its value, at the
        prompt's and the sampled tokens' positions; None: the model as it is. A row ends before the model's end-of-text
        token. Temperature 0 takes the likeliest token.

        Each row draws from its own numbers, a function of the seed and the prompt (and of how often the same row stood
        there before): so a row does not depend on the others, and the same prompt with another feature gets the same
        draws, which makes the two comparable.
        """
        if temperature < 0 or n_tokens < 0:
            raise InputError(f"cannot generate {n_tokens} tokens at temperature {temperature}")
        chosen = [UNTOUCHED if feature is None else feature for feature in features]
        texts = [list(prompt) for prompt in prompts]
        self._check(texts, n_tokens - 1)
        draws = _draws(texts, chosen, values, n_tokens, seed)
        ends, n_known = _end_ids(self.loaded), len(self.loaded.tokenizer)
        going = list(range(len(texts)))
        for step in range(n_tokens):
            following: dict[int, int] = {}

            def sample(part: Batch, logits: Tensor, going: list[int] = going, step: int = step) -> list[int]:
                last = logits[torch.arange(len(logits), device=logits.device), part.lengths.to(logits.device) - 1]
                uniform = torch.tensor([draws[going[i]][step] for i in part.indices], dtype=torch.float64)
                return _sampled(last[:, :n_known].float().cpu().double(), uniform, temperature)

            now = [texts[i] for i in going], [chosen[i] for i in going], [values[i] for i in going]
            for rows, sampled in self._passes(*now, sample):
                following |= {going[row]: token for row, token in zip(rows, sampled)}
            going = [i for i in going if following[i] not in ends]
            for i in going:
                texts[i].append(following[i])
        return [text[len(prompt) :] for text, prompt in zip(texts, prompts)]

    # --- within ----------------------------------------------------------------------------------------------------

    def _side_by_side(
        self, ids: Tensor, features: Sequence[int], values: Sequence[float], work: Callable[[Batch, Tensor], Result]
    ) -> Iterator[tuple[list[int], Result]]:
        """`_passes` over every feature and prompt: row f * P + p is prompt p with feature f."""
        prompts = ids.tolist()
        repeated = [f for f in features for _ in prompts], [v for v in values for _ in prompts]
        return self._passes(prompts * len(features), *repeated, work)

    def _passes(
        self,
        texts: Sequence[Sequence[int]],
        features: Sequence[int],
        values: Sequence[float],
        work: Callable[[Batch, Tensor], Result],
    ) -> Iterator[tuple[list[int], Result]]:
        """(row numbers, work(batch, its logits)) of batches of the texts, each clamped as its row says."""
        self._check(texts)
        stray = [f for f in features if not UNTOUCHED <= f < self.sae.d_sae]
        if stray:
            raise InputError(f"the SAE has no feature {stray[0]}, its features are 0..{self.sae.d_sae - 1}")
        chosen, clamped = torch.tensor(features, dtype=torch.int64), torch.tensor(values, dtype=torch.float32)

        def read(part: Batch) -> Result:
            return work(part, self._pass(part, chosen[part.indices], clamped[part.indices]))

        windows = [Window("", 0, "explain", text) for text in texts]
        for batch in make_batches(windows, self.batch_tokens, self.loaded.pad_id):
            for part, result in self._halving.run(batch.to(self.loaded.device), read):
                self._count(part)
                yield part.indices, result

    def _count(self, part: Batch) -> None:
        self.n_forwards += len(part.windows)
        self.n_tokens += sum(len(window.token_ids) for window in part.windows)

    def _check(self, texts: Sequence[Sequence[int]], n_more: int = 0) -> None:
        longest, shortest = (f((len(text) for text in texts), default=1) for f in (max, min))
        if shortest < 1:
            raise InputError("a text without tokens cannot be steered: the model has no position to read")
        if self.most_positions is not None and longest + n_more > self.most_positions:
            raise InputError(
                f"{longest} tokens and {n_more} more do not fit into the {self.most_positions} positions of model "
                f"{self.loaded.name}; use shorter texts"
            )

    def _of(self, part: Batch) -> Tensor:
        """bool [B, T]: the positions that count."""
        return eligible(part, self.excluded)

    def _n_counted(self, ids: Tensor) -> int:
        n = int((~torch.isin(ids.to(self.excluded.device), self.excluded)).sum())
        if n == 0:
            raise InputError("none of the prompts' tokens counts, so there is nothing to clamp")
        return n

    def _pass(self, part: Batch, features: Tensor, values: Tensor) -> Tensor:
        """[B, T, V] of one forward pass."""
        is_steered = bool((features != UNTOUCHED).any())
        counted = self._of(part).cpu() & (features != UNTOUCHED)[:, None]
        clamp = Clamp(self.sae, counted, features, values)
        states: dict[Hookpoint, Tensor] = {}
        if self.reads_first and not clamp.is_empty:
            states = self._read_first(part, clamp)
        read: list[Tensor] = []
        edited: set[Hookpoint] = set()

        def edit(y: Tensor, at: Hookpoint) -> Tensor:
            edited.add(at)
            return y if clamp.is_empty else self._written(y, at, clamp, read, states)

        with torch.inference_mode(), ExitStack() as stack:
            if is_steered:
                if self.source != self.target and not self.reads_first:
                    stack.enter_context(hooked(self.loaded.model, self.source, capture=read))
                for at in self.columns:
                    stack.enter_context(hooked(self.loaded.model, at, edit=partial(edit, at=at)))
            logits: Tensor = self.loaded.model(**model_inputs(self.loaded, part.ids, part.lengths)).logits
        missing = [at for at in self.columns if at not in edited]
        if is_steered and missing:
            raise InputError(f"hookpoint {missing[0]}: the model's forward pass never runs this module")
        return logits

    def _read_first(self, part: Batch, clamp: Clamp) -> dict[Hookpoint, Tensor]:
        """Tells `clamp` what the dictionary reads in a pass of its own, and gives the states of the stream that are to
        be replaced."""
        x, *held = activations_at_all(self.loaded, [self.source, *self.states], part.ids, part.lengths)
        clamp.read(per_token(x, clamp.n_tokens, self.source))
        self._count(part)
        return {at: per_token(y, clamp.n_tokens, at) for at, y in zip(self.states, held, strict=True)}

    def _written(
        self, y: Tensor, at: Hookpoint, clamp: Clamp, read: list[Tensor], states: dict[Hookpoint, Tensor]
    ) -> Tensor:
        flat, (begin, end) = per_token(y, clamp.n_tokens, at), self.columns[at]
        if not clamp.has_read and self.source != self.target:
            if not read:
                raise InputError(f"hookpoint {self.source} is not computed before {at}, where its features write")
            clamp.read(per_token(read[-1], clamp.n_tokens, self.source))
        if flat.shape[1] != end - begin:
            raise InputError(
                f"the SAE writes vectors of width {end - begin}, but {at} has width {flat.shape[1]} "
                "(a transcoder needs its output hookpoint)"
            )
        if not clamp.has_read:
            clamp.read(flat)
        return clamp.written(flat, (begin, end), states.get(at)).view(y.shape)


def _sums(logits: Tensor, counted: Tensor) -> Tensor:
    """float32 [B, V]: the sum of logits [B, T, V] over the counted positions [B, T]."""
    mask = counted.to(logits.device)
    return torch.stack([row[keep].float().sum(0) for row, keep in zip(logits, mask)])


def _divergence(logits: Tensor, clean: Tensor, prompts: Sequence[int], counted: Tensor) -> Tensor:
    """float32 [B]: the sum over counted positions [B, T] of KL(logits || clean[prompt]), for logits [B, T, V] and clean
    logits [P, T, V], in blocks of rows."""
    size = max(1, _BLOCK // logits[0].numel())
    found = []
    for low in range(0, len(logits), size):
        log_p = F.log_softmax(logits[low : low + size].float(), dim=-1)
        log_q = F.log_softmax(clean[list(prompts[low : low + size])].float(), dim=-1)
        # A token that a model rules out has log-probability -inf in both.
        difference = torch.where(log_p > -torch.inf, log_p - log_q, 0.0)
        per_token = (log_p.exp() * difference).sum(-1)
        found.append(torch.where(counted[low : low + size].to(per_token.device), per_token, 0.0).sum(-1))
    return torch.cat(found)


def _draws(
    prompts: Sequence[Sequence[int]], features: Sequence[int], values: Sequence[float], n: int, seed: int
) -> list[np.ndarray]:
    """`n` uniform numbers in 0..1 for each row."""
    seen: Counter[str] = Counter()
    draws = []
    for prompt, feature, value in zip(prompts, features, values, strict=True):
        row = json.dumps([list(prompt), feature, None if feature == UNTOUCHED else float(value)])
        key = json.dumps([seed, list(prompt), seen[row]]).encode()
        seen[row] += 1
        draws.append(np.random.default_rng(int.from_bytes(hashlib.sha256(key).digest())).random(n))
    return draws


def _end_ids(loaded: LoadedModel) -> set[int]:
    """The ids at which the model ends a text."""
    config = getattr(loaded.model, "generation_config", None)
    named = getattr(config, "eos_token_id", None)
    ids = named if isinstance(named, (list, tuple)) else [named]
    return {int(i) for i in (*ids, loaded.tokenizer.eos_token_id) if i is not None}


def _sampled(logits: Tensor, uniform: Tensor, temperature: float) -> list[int]:
    """One id per row of float64 logits [B, V], at the place where the running sum of probabilities passes `uniform`."""
    if not bool(logits.isfinite().any(1).all()) or bool(logits.isnan().any()):
        raise AutointerpError(
            "the steered model's logits are NaN or infinite; clamp the feature to a smaller value, or use "
            "model.dtype = float32 or bfloat16"
        )
    if temperature == 0:
        return [int(i) for i in logits.argmax(-1)]
    total = (logits / temperature).softmax(-1).cumsum(-1)
    place = torch.searchsorted(total, (uniform * total[:, -1])[:, None], right=True)[:, 0]
    return [int(i) for i in place.clamp(max=logits.shape[1] - 1)]
