"""`autointerp compare`: explainers against one another and against their controls, paired over the same features; and
how well labels and scorers agree.

A difference is the mean over the features that both sides have a score for. Its 95 % interval is by features and by the
documents on which many features were scored at once (means.feature_mean); where it is not known which those are, by
features alone. Each interval is for one comparison alone: of twenty comparisons without any difference, one excludes 0.

On how many features a label scores higher than its control says little: of labels that are as good as their controls,
half do. So each feature is tested by itself (see store/label_controls.py), and of those where the labels are better, or
worse, in these tests, at most a twentieth is expected to be so by chance.

The similarity of two labels is the F1 of their sets of words, lower-cased and without stop words. It needs no
embeddings and knows no synonyms, so it is a lower bound on how much the labels say the same.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np

from autointerp import means, stats
from autointerp.errors import InputError, nearest
from autointerp.report.record_table import RowsFormat, print_records
from autointerp.store.comparisons import (
    NOT_TESTED,
    Comparison,
    Contender,
    Kind,
    LabelRow,
    Paired,
    Tested,
    compared_scores,
)
from autointerp.store.safety.reading import open_for_reading
from autointerp.terminal import Terminal


@dataclass(frozen=True, slots=True)
class Difference:
    """a minus b over the same features."""

    scorer: str
    method: str
    scorer_model: str
    a: str
    b: str
    """Another explainer, or a control of a's own labels."""
    n: int
    n_unpaired: int
    mean_a: float | None
    mean_b: float | None
    difference: float | None
    ci_low: float | None
    ci_high: float | None
    higher: float | None
    """Share of the n features on which a scores higher, by however little."""
    lower: float | None
    n_tested: int | None
    """Features that were tested one by one; None where b is another explainer, and for scores that are not tested."""
    share_better: float | None
    """Share of those on which a is better in that test, adjusted over the features."""
    share_worse: float | None
    se_features: float | None
    """Standard error of the difference if features were independent."""
    se_both: float | None
    """Standard error by features and documents; None where it is not known which documents move the scores."""
    n_documents: int | None
    """Documents that the features share; None as for se_both."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """One number that tells how well labels, or scorers, agree."""

    measure: str
    """label_similarity: F1 of the words of two labels of one feature. score_sd: standard deviation of their scores.
    rank_correlation: Spearman's rank correlation of two scorers over the same labels."""
    among: str
    """What differs between the two labels while all else is equal: seed, template, explainer or model. For
    rank_correlation: scorer."""
    explainer: str
    scorer: str
    n: int
    """Number of features; of labels for rank_correlation."""
    value: float | None
    ci_low: float | None
    ci_high: float | None


# --- differences -----------------------------------------------------------------------------------------------------


def differences(found: Comparison, against: str | None = None) -> list[Difference]:
    """Compares every pair of explainers for every kind of score, or each explainer with `against`; then each explainer
    with its controls.

    Raises InputError where `against` names no explainer that has scored labels.
    """
    contenders = found.contenders()
    names = contender_names(contenders)
    pairs = _pairs(contenders, names, against)
    rows = []
    for kind in found.kinds():
        for a, b in pairs:
            paired = found.pair(kind, a, b)
            if len(paired.a):
                rows.append(difference(kind, names[a], names[b], paired))
    for contender, kind, control in found.controls():
        paired, tested = found.lift(contender, kind, control), found.tested(contender, kind, control)
        rows.append(difference(kind, names[contender], f"control: {control}", paired, tested))
    return rows


def _pairs(
    contenders: Sequence[Contender], names: dict[Contender, str], against: str | None
) -> list[tuple[Contender, Contender]]:
    if against is None:
        return list(combinations(contenders, 2))
    chosen = [c for c in contenders if against in (c.explainer, names[c])]
    if not chosen:
        known = sorted({*names.values(), *(c.explainer for c in contenders)})
        raise InputError(
            f"no scored labels by {against!r}; there are labels by {', '.join(known) or 'nobody'}."
            f"{nearest(against, known)}"
        )
    return [(c, base) for base in chosen for c in contenders if c not in chosen]


def contender_names(contenders: Iterable[Contender]) -> dict[Contender, str]:
    """Names each contender by its explainer, and by its model too where several models are behind one explainer."""
    every = list(contenders)
    times = Counter(c.explainer for c in every)
    return {c: c.explainer if times[c.explainer] == 1 else f"{c.explainer} ({c.model})" for c in every}


def difference(kind: Kind, a: str, b: str, paired: Paired, tested: Tested = NOT_TESTED) -> Difference:
    """The paired difference of a and b (names to show). The numbers are None where no feature has both scores."""
    delta = paired.a - paired.b
    mean = means.feature_mean(delta, paired.shared)
    found, n = mean.estimate, mean.estimate.n
    return Difference(
        kind.scorer, kind.method, kind.model, a, b, n, paired.n_unpaired,
        mean_a=float(paired.a.mean()) if n else None, mean_b=float(paired.b.mean()) if n else None,
        difference=found.value, ci_low=found.low, ci_high=found.high,
        higher=float(np.mean(delta > 0)) if n else None, lower=float(np.mean(delta < 0)) if n else None,
        n_tested=tested.n_tested, share_better=tested.share_better, share_worse=tested.share_worse,
        se_features=mean.se_features, se_both=mean.se_both, n_documents=mean.n_documents,
    )  # fmt: skip


# --- agreement -------------------------------------------------------------------------------------------------------


def agreement(found: Comparison) -> list[Agreement]:
    """How stable labels are when one thing about their making changes, and how alike scorers rank them."""
    return [*label_agreement(found), *scorer_agreement(found)]


def label_agreement(found: Comparison) -> list[Agreement]:
    """Similarity and spread of scores over features with labels that were made in ways that differ in one thing. Every
    feature counts once, with the mean over its pairs of labels."""
    similar: dict[tuple[str, str], list[float]] = defaultdict(list)
    spread: dict[tuple[str, str, Kind], list[float]] = defaultdict(list)
    for labels in found.labels():
        likeness: dict[tuple[str, str], list[float]] = defaultdict(list)
        gaps: dict[tuple[str, str, Kind], list[float]] = defaultdict(list)
        words = [label_words(label.text) for label in labels]
        for i, j in combinations(range(len(labels)), 2):
            a, b = labels[i], labels[j]
            varies = what_varies(a, b)
            if varies is None:
                continue
            key = (varies, _both_names(a, b))
            likeness[key].append(word_f1(words[i], words[j]))
            for kind in a.scores.keys() & b.scores.keys():
                gaps[(*key, kind)].append((a.scores[kind] - b.scores[kind]) ** 2)
        for key, values in likeness.items():
            similar[key].append(math.fsum(values) / len(values))
        for gap, squares in gaps.items():
            # The variance of a sample is half the mean square of the differences between its pairs.
            spread[gap].append(math.sqrt(math.fsum(squares) / len(squares) / 2))
    rows = [_agreement("label_similarity", *key, "", similar[key]) for key in sorted(similar)]
    return rows + [
        _agreement("score_sd", varies, who, _kind_name(kind), spread[varies, who, kind])
        for varies, who, kind in sorted(spread)
    ]


def _agreement(measure: str, among: str, explainer: str, scorer: str, values: Sequence[float]) -> Agreement:
    e = means.mean_interval(values)
    return Agreement(measure, among, explainer, scorer, e.n, e.value, e.low, e.high)


def scorer_agreement(found: Comparison) -> list[Agreement]:
    """Rank correlation of every two kinds of score, over each explainer's labels and over all labels. The interval
    resamples features, so two labels of one feature are drawn together."""
    names = contender_names(found.contenders())
    groups: list[tuple[str, Contender | None]] = [(name, c) for c, name in names.items()]
    if len(groups) > 1:
        groups.append(("all", None))
    rows = []
    for a, b in combinations(found.kinds(), 2):
        for name, contender in groups:
            x, y, features = found.both(a, b, contender)
            if len(features) > 2:
                e = stats.spearman_interval(x, y, features)
                both = f"{_kind_name(a)} ~ {_kind_name(b)}"
                rows.append(Agreement("rank_correlation", "scorer", name, both, e.n, e.value, e.low, e.high))
    return rows


def _kind_name(kind: Kind) -> str:
    return f"{kind.scorer} ({', '.join(dict.fromkeys(n for n in (kind.method, kind.model) if n))})"


def _both_names(a: LabelRow, b: LabelRow) -> str:
    if a.contender.explainer != b.contender.explainer:
        return " ~ ".join(sorted((a.contender.explainer, b.contender.explainer)))
    models = sorted({a.contender.model, b.contender.model})
    return f"{a.contender.explainer} ({' ~ '.join(models)})"


def what_varies(a: LabelRow, b: LabelRow) -> str | None:
    """The one thing in which the making of two labels differs: seed, template, explainer or model. None where nothing
    differs, or several things do. Another explainer has another template and other evidence, and where it asks no LLM
    another model, so those do not count beside it."""
    if a.harvest_id != b.harvest_id:
        return None
    one, other = a.contender, b.contender
    if one.explainer != other.explainer:
        by_rule = one.model == one.explainer or other.model == other.explainer
        return "explainer" if a.seed == b.seed and (by_rule or one.model == other.model) else None
    if a.evidence_sha256 != b.evidence_sha256:
        return None
    different = [
        name
        for name, x, y in (
            ("seed", a.seed, b.seed),
            ("template", a.template_sha256, b.template_sha256),
            ("model", one.model, other.model),
        )
        if x != y
    ]
    return different[0] if len(different) == 1 else None


_WORD = re.compile(r"`([^`]+)`|(\w+)")
STOP_WORDS = frozenset(
    {
        "a", "an", "and", "are", "as", "at", "be", "by", "for", "from", "in", "into", "is", "it", "its", "of", "often",
        "on", "or", "that", "the", "their", "these", "this", "to", "token", "tokens", "used", "usually", "when",
        "where", "which", "with", "word", "words",
    }
)  # fmt: skip
"""Words that say nothing about a label, among them those that nearly every label holds."""


def label_words(text: str) -> frozenset[str]:
    """The words of a label, lower-cased; what it quotes in backticks counts as one word. Stop words are left out unless
    the label holds nothing else."""
    found = {(quoted or plain).strip().lower() for quoted, plain in _WORD.findall(text)} - {""}
    return frozenset(found - STOP_WORDS or found)


def word_f1(a: frozenset[str], b: frozenset[str]) -> float:
    """2 |a and b| / (|a| + |b|); 1 for two empty sets."""
    return 2 * len(a & b) / (len(a) + len(b)) if a or b else 1.0


# --- printing --------------------------------------------------------------------------------------------------------


def print_comparison(
    path: Path, dictionary: str | None, against: str | None, agree: bool, strata: bool, form: RowsFormat,
    terminal: Terminal,
) -> None:  # fmt: skip
    """Prints differences, or with `agree` how well labels and scorers agree. `strata`: also the parts of scores.

    Raises InputError where the store has no such dictionary, or no scored labels by `against`.
    """
    with (
        open_for_reading(path, terminal.say) as store,
        compared_scores(store, store.dictionary(dictionary).dictionary_id, strata=strata) as found,
    ):
        rows: Sequence[Difference | Agreement]
        rows = agreement(found) if agree else differences(found, against)
        scored = bool(found.contenders())
    print_records(Agreement if agree else Difference, rows, form, terminal)
    if not rows:
        terminal.say(_why_empty(agree, scored))


def _why_empty(agree: bool, scored: bool) -> str:
    if agree:
        return "nothing to compare: no feature has several labels, and no label scores by several scorers"
    if not scored:
        return "nothing to compare: no label was scored yet; run `autointerp score`"
    return (
        "nothing to compare: only one explainer's labels were scored, and no control; explain and score with another "
        "(`--explainer`)"
    )
