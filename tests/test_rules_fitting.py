"""What the parts of a rule are worth: invariants of the fit over random samples."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autointerp.rules.fitting import Fit, Parts, fitted, supported, tables_alone

SEEDS = st.integers(0, 2**32 - 1)


def sample(seed: int, tokens: int = 300, tables: int = 2, clauses: int = 4) -> Parts:
    """Sparse truth that some of the clauses and tables tell of, with noise, and silent tokens that weigh more."""
    draw = np.random.default_rng(seed)
    holds = draw.random((tokens, clauses)) < draw.uniform(0.01, 0.3, clauses)
    added = np.round(draw.normal(0.0, 1.0, (tokens, tables)) * (draw.random((tokens, tables)) < 0.3), 2)
    told = holds @ draw.uniform(-2.0, 8.0, clauses) + added @ draw.uniform(0.0, 2.0, tables)
    truth = np.clip(told + draw.normal(0.0, 1.0, tokens), 0.0, 10.0) * (draw.random(tokens) < 0.4)
    weights = np.where(truth > 0, 1.0, draw.uniform(1.0, 5.0))
    return Parts(round(float(np.average(truth, weights=weights)), 4), added, holds, truth, weights)


@settings(deadline=None, max_examples=60)
@given(SEEDS)
def test_nothing_is_below_zero_and_the_tables_alone_are_never_better(seed: int) -> None:
    parts = sample(seed)
    fit = fitted(parts)
    assert fit.base >= 0 and (fit.gains >= 0).all() and (fit.strengths >= 0).all() and (fit.strengths <= 10).all()
    assert parts.error(fit) <= parts.error(tables_alone(parts))
    predicted = fit.predict(parts.tables, parts.clauses)
    assert predicted.min() >= 0 and predicted.max() <= 10


@settings(deadline=None, max_examples=30)
@given(SEEDS)
def test_the_order_of_clauses_does_not_matter(seed: int) -> None:
    parts = sample(seed)
    order = np.random.default_rng(seed).permutation(parts.clauses.shape[1])
    turned = Parts(parts.base, parts.tables, parts.clauses[:, order], parts.truth, parts.weights)
    assert fitted(turned).strengths == pytest.approx(fitted(parts).strengths[order], abs=0.0021)


@settings(deadline=None, max_examples=30)
@given(SEEDS)
def test_silent_tokens_may_be_merged(seed: int) -> None:
    parts = sample(seed)
    assert len(parts.merged.truth) < len(parts.truth)
    assert parts.merged.weights.sum() == pytest.approx(parts.weights.sum())
    assert parts.merged.gram == pytest.approx(parts.gram)
    fit = fitted(parts)
    assert parts.merged.error(fit) == pytest.approx(parts.error(fit))


@settings(deadline=None, max_examples=30)
@given(SEEDS)
def test_no_step_of_one_part_makes_the_fit_better(seed: int) -> None:
    """Against brute force, in the error that is made smallest: of predictions that are cut at 0 on silent tokens."""
    parts = sample(seed, tokens=120)

    def error(fit: Fit) -> float:
        raw = fit.base + parts.tables @ fit.gains + parts.clauses @ fit.strengths
        missed = np.where(parts.truth > 0, parts.truth - raw, np.maximum(raw, 0.0))
        prior = 1e-3 * float(((fit.gains - 1.0) ** 2).sum()) + float((fit.strengths**2).sum())
        return float(parts.weights @ (missed * missed)) + prior

    fit = fitted(parts)
    best = error(fit)
    for place in range(len(fit.strengths)):
        for step in (-0.05, 0.05):
            strengths = fit.strengths.copy()
            strengths[place] = np.clip(strengths[place] + step, 0.0, 10.0)
            assert error(Fit(fit.base, fit.gains, strengths)) >= best - 0.02


def known() -> Parts:
    """Clause 0 tells the truth, 1 holds at random, 2 nowhere, 3 only where the feature is silent."""
    draw = np.random.default_rng(1)
    truth = np.where(draw.random(2000) < 0.05, 6.0, 0.0)
    holds = np.stack(
        [truth > 0, draw.random(2000) < 0.2, np.zeros(2000, bool), (truth == 0) & (draw.random(2000) < 0.1)]
    )
    return Parts(0.3, np.zeros((2000, 1)), holds.T, truth, np.ones(2000))


def test_a_true_clause_has_its_strength_and_useless_ones_none() -> None:
    fit = fitted(known())
    assert fit.strengths[0] == pytest.approx(6.0, abs=0.15)
    assert fit.strengths[1] < 0.1 and fit.strengths[2] == fit.strengths[3] == 0.0


def test_a_clause_that_holds_once_claims_little() -> None:
    truth = np.zeros(500)
    truth[:20] = 8.0
    holds = np.zeros((500, 1), dtype=bool)
    holds[0] = True
    fit = fitted(Parts(0.0, np.zeros((500, 0)), holds, truth, np.ones(500)))
    assert fit.strengths[0] == pytest.approx(4.0, abs=0.2)


def test_two_clauses_that_hold_together_share() -> None:
    parts = known()
    twice = Parts(parts.base, parts.tables, parts.clauses[:, [0, 0]], parts.truth, parts.weights)
    strengths = fitted(twice).strengths
    assert strengths[0] == pytest.approx(strengths[1], abs=0.01) and strengths.sum() == pytest.approx(6.0, abs=0.15)


def test_what_other_text_does_not_support_is_dropped() -> None:
    parts = known()
    other = known().truth  # text on which clause 1 is as useless
    asked: list[list[int]] = []

    def value(fit: Fit) -> float:
        asked.append(fit.kept)
        predicted = fit.predict(parts.tables, parts.clauses)
        return 0.0 if np.ptp(predicted) == 0 else float(np.corrcoef(predicted, other)[0, 1])

    fit = supported(parts, value)
    assert fit.kept == [0]
    assert all(set(kept) <= {0, 1} for kept in asked)
    assert supported(parts, lambda fit: 0.5).kept == []  # nothing is worth anything
    assert supported(parts, lambda fit: None).kept == []
    assert supported(parts, lambda fit: float(len(fit.kept))).kept == fitted(parts).kept
    second = np.array([False, True, False, False])
    assert supported(parts, lambda fit: float(len(fit.kept)), second).kept in ([], [1])


def test_without_clauses_or_tokens_the_tables_stand_alone() -> None:
    parts = known()
    none = Parts(parts.base, parts.tables, parts.clauses[:, :0], parts.truth, parts.weights)
    empty = Parts(0.3, np.zeros((0, 1)), np.zeros((0, 2), bool), np.zeros(0), np.zeros(0))
    for one in (none, empty):
        found = supported(one, lambda fit: 1.0)
        assert found.kept == [] and found.gains.tolist() == [1.0] and found.base == pytest.approx(0.3, abs=0.02)
