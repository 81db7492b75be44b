"""TokenChange: which tokens the model says more, and less, when a feature is clamped (Gur-Arieh et al. 2025).

    delta_t = mean over prompts and positions of (logit_t steered - logit_t clean), less its mean over the vocabulary
    z_t     = (delta_t - mean of delta_t over random features) / their standard deviation

Every feature, the random ones included, is clamped to the value that moves the next-token distribution by the same KL.
Tokens are ranked by z and not by delta. The logits of some tokens move far under any push off the usual activations, so
by delta alone every feature seems to promote (or suppress) them. Random pushes of the same size move such a token as
well, so its deviation or its mean is large and its z is small.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from autointerp.config import EvidenceConfig
from autointerp.corpus.token_text import TokenText
from autointerp.errors import InputError
from autointerp.harvest.vocab_projection import ordinary_ids
from autointerp.steer.steering import UNTOUCHED, Steerer, Strength

SMALLEST_DEVIATION = 0.1
"""A token's deviation counts as at least this share of the median token's: a few random features may agree by luck."""
FEWEST_RANDOM = 2
MOST_DRAWS = 4
"""Random features tried at most, for each one wanted."""
BLOCK_ELEMENTS = 1 << 24
"""Changes (features x vocabulary, float64) held at once."""


@dataclass(frozen=True, slots=True)
class TokenShift:
    """One token of a feature; a row of the table token_changes."""

    sign: Literal[1, -1]
    """1: said more often, -1: less."""
    rank: int
    token_id: int
    token: str
    delta: float
    z: float


@dataclass(frozen=True, slots=True)
class TokenChange:
    """What was found about one feature. There are no rows where the status is not 'ok'."""

    feature: int
    strength: Strength
    rows: list[TokenShift]
    """Said more often, then said less often; each by rank."""
    status: Literal["ok", "kl_not_reached", "no_baseline"]
    """kl_not_reached: no clamp value moves the model as far as asked. no_baseline: too few random features do."""
    n_forwards: int
    """This feature's part of the sequences that the model read in the whole call; the parts add up to it."""
    n_tokens: int


def token_change(
    steerer: Steerer,
    features: Sequence[int],
    scales: Mapping[int, float],
    ids: Tensor,
    config: EvidenceConfig,
    text: TokenText,
    n_kept: int,
    seed: int,
    pool: Sequence[int],
    *,
    compared: Compared | None = None,
) -> list[TokenChange]:
    """One result per feature, in their order, from the prompts `ids` [P, T].

    `scales` has the largest activation of every feature and of every feature of `pool`, the live ones from which
    `config.change_random` random ones are drawn: once for all features, and a feature is never compared with itself.
    Of each sign, the `n_kept` tokens whose delta has that sign and whose z is furthest in its direction. `compared`:
    what several calls with the same prompts, configuration, seed and pool share, measured when it is first needed.
    """
    lacking = [f for f in (*features, *pool) if f not in scales]
    if lacking:
        raise InputError(f"token_change: the largest activation of feature {lacking[0]} is not given")
    if not features:
        return []
    n_before = steerer.n_forwards, steerer.n_tokens
    compared = compared or Compared()
    shift = compared.shift(steerer, ids, text)
    strengths = steerer.strengths(features, ids, config.change_kl, [scales[f] for f in features])
    random, deltas = compared.baseline(scales, config, seed, pool) if any(s.reached for s in strengths) else ([], None)
    found: list[tuple[list[TokenShift], Literal["ok", "kl_not_reached", "no_baseline"]]] = []
    size = max(1, BLOCK_ELEMENTS // len(shift.ids))
    for low in range(0, len(strengths), size):
        block = strengths[low : low + size]
        reached = [s for s in block if s.reached]
        changes = iter(shift.deltas(reached))
        for strength in block:
            if not strength.reached:
                found.append(([], "kl_not_reached"))
                continue
            delta = next(changes)
            others = [i for i, f in enumerate(random) if f != strength.feature][: config.change_random]
            if deltas is None or len(others) < FEWEST_RANDOM:
                found.append(([], "no_baseline"))
                continue
            found.append((_rows(delta, deltas[others], shift, n_kept), "ok"))
    spent = [n - before for n, before in zip((steerer.n_forwards, steerer.n_tokens), n_before)]
    parts = [[n * (i + 1) // len(features) - n * i // len(features) for n in spent] for i in range(len(features))]
    return [
        TokenChange(strength.feature, strength, rows, status, n_forwards, n_tokens)
        for strength, (rows, status), (n_forwards, n_tokens) in zip(strengths, found, parts)
    ]


class Compared:
    """What features are compared with: the untouched model and random features. Measured once, however many blocks of
    features are compared with it."""

    def __init__(self) -> None:
        self._shift: _Shift | None = None
        self._baseline: tuple[list[int], np.ndarray] | None = None

    def shift(self, steerer: Steerer, ids: Tensor, text: TokenText) -> _Shift:
        if self._shift is None:
            self._shift = _Shift(steerer, ids, text)
        return self._shift

    def baseline(
        self, scales: Mapping[int, float], config: EvidenceConfig, seed: int, pool: Sequence[int]
    ) -> tuple[list[int], np.ndarray]:
        """(random features, their deltas); `shift` comes first."""
        assert self._shift is not None
        if self._baseline is None:
            self._baseline = _baseline(self._shift, scales, config, seed, pool)
        return self._baseline


class _Shift:
    """Changes of the mean logits against the clean model, for the tokens that take part."""

    def __init__(self, steerer: Steerer, ids: Tensor, text: TokenText) -> None:
        self.steerer, self.prompts, self.text = steerer, ids, text
        clean = steerer.mean_logits(ids, [UNTOUCHED], [0.0])[0]
        self.ids = np.array(ordinary_ids(text, len(clean)), dtype=np.int64)
        self._kept = torch.from_numpy(self.ids)
        self._clean = clean[self._kept]

    def deltas(self, strengths: Sequence[Strength]) -> np.ndarray:
        """float64 [len(strengths), tokens], each row with a mean of 0."""
        if not strengths:
            return np.zeros((0, len(self.ids)))
        chosen, values = [s.feature for s in strengths], [s.value for s in strengths]
        change = self.steerer.mean_logits(self.prompts, chosen, values)[:, self._kept] - self._clean
        return (change - change.mean(1, keepdim=True)).numpy()


def _baseline(
    shift: _Shift, scales: Mapping[int, float], config: EvidenceConfig, seed: int, pool: Sequence[int]
) -> tuple[list[int], np.ndarray]:
    """(random features, their deltas). There is one feature more than a comparison needs, as a feature may be among
    them. A feature that does not reach the KL is replaced by the next one of the pool, in its random order."""
    order = [sorted(set(pool))[i] for i in np.random.default_rng(seed).permutation(len(set(pool)))]
    wanted = config.change_random + 1
    chosen: list[Strength] = []
    order = order[: MOST_DRAWS * wanted]
    while order and len(chosen) < wanted:
        n = wanted - len(chosen)
        drawn, order = order[:n], order[n:]
        found = shift.steerer.strengths(drawn, shift.prompts, config.change_kl, [scales[f] for f in drawn])
        chosen += [s for s in found if s.reached]
    return [s.feature for s in chosen], shift.deltas(chosen)


def _rows(delta: np.ndarray, random: np.ndarray, shift: _Shift, n_kept: int) -> list[TokenShift]:
    deviation = random.std(0, ddof=1)
    least = max(SMALLEST_DEVIATION * float(np.median(deviation)), 1e-9)
    z = (delta - random.mean(0)) / np.maximum(deviation, least)
    rows = []
    signs: tuple[Literal[1, -1], ...] = (1, -1)
    for sign in signs:
        order = np.argsort(-sign * z, kind="stable")
        best = order[sign * delta[order] > 0][:n_kept]
        for rank, i in enumerate(best.tolist()):
            token_id = int(shift.ids[i])
            token = shift.text.tokens([token_id])[0]
            rows.append(TokenShift(sign, rank, token_id, token, float(delta[i]), float(z[i])))
    return rows
