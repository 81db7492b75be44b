"""One feature in the JSON in which circuit-tracer's page shows it, and as the text of a node of its graphs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from autointerp.number_text import decimals, interval
from autointerp.records import Context
from autointerp.store.feature_details import FeatureDetail, ShownFeature

BARS = 40
"""Bars of the histogram, which that page draws side by side over 0 to the largest activation."""
_DECILES = 10
_SIGNS = str.maketrans({"\n": "⏎", "\t": "→", "\r": "↵"})


def feature_json(detail: FeatureDetail, dictionary: str, contexts: int) -> dict[str, Any]:
    """The feature as that page reads it, and our own key `autointerp` beside. `contexts`: the most of each group."""
    shown = detail.shown
    edges, counts = shown.histogram_edges or [], shown.histogram_counts or []
    groups = [*_strongest(detail, contexts), *_deciles(detail.drawn, contexts)]
    found: dict[str, Any] = {
        "transcoder_id": dictionary,
        "index": shown.feature,
        # The page has no field for a label: it stands above the contexts, as the name of an empty group.
        "examples_quantiles": [{"quantile_name": heading(shown), "examples": []}, *groups],
        "top_logits": [_on_one_line(token.token) for token in detail.tokens if token.sign == 1],
        "bottom_logits": [_on_one_line(token.token) for token in detail.tokens if token.sign == -1],
        "act_min": 0.0,
        "act_max": _short(shown.max_activation),
        "quantile_values": percentiles(edges, counts, shown.max_activation),
        "histogram": bars(edges, counts, shown.max_activation),
        "activation_frequency": _short(shown.token_density),
        "autointerp": {
            "label": shown.label,
            "second_label": shown.second_label,
            "explainer": shown.explainer,
            "scorer": shown.scorer,
            "score": shown.score,
            "ci_low": shown.ci_low,
            "ci_high": shown.ci_high,
            "label_from": shown.label_from,
            "status": shown.status,
        },
    }
    if shown.status == "dead":
        found["isDead"] = True
    return found


def node_text(shown: ShownFeature) -> str | None:
    """The label as the text of a node in a graph: short, with its score. None where there is no label."""
    if shown.label is None:
        return None
    return shown.label if shown.score is None else f"{shown.label} ({decimals(shown.score)})"


def heading(shown: ShownFeature) -> str:
    """The label, how well it does, and where it holds, in one line."""
    if shown.label is None:
        return f"No label: {why_no_label(shown)}"
    said = shown.label if shown.second_label is None else f"{shown.label}; also: {shown.second_label}"
    if shown.score is None:
        return f"{said} (not scored)"
    score = f"{shown.scorer} {decimals(shown.score)}{interval(shown.ci_low, shown.ci_high)}"
    return f"{said} ({score})" if not shown.label_from else f"{said} ({score}; holds from {shown.label_from:.3g})"


def why_no_label(shown: ShownFeature) -> str:
    if shown.status == "dead":
        return "dead"
    return shown.explanation_status or "not explained"


def bars(edges: Sequence[float], counts: Sequence[int], largest: float) -> list[float]:
    """The histogram, whose bins grow with the activation, as BARS bars of equal width from 0 to `largest`. A bin that
    lies over several bars is shared out evenly. The bars add up to the counts."""
    if not counts or largest <= 0:
        return []
    bounds, shares = _cumulated(edges, counts, largest)
    heights = np.diff(np.interp(np.linspace(0, largest, BARS + 1), bounds, shares))
    return [_short(height) for height in heights]


def percentiles(edges: Sequence[float], counts: Sequence[int], largest: float) -> list[float]:
    """The activations that 1 %, 2 %, ... 100 % of the active tokens do not exceed, exact to the histogram's bins."""
    if not counts or largest <= 0:
        return []
    bounds, shares = _cumulated(edges, counts, largest)
    # of bins without a token, the first bound reaches the share
    is_new = np.concatenate([[True], np.diff(shares) > 0])
    found = np.interp(np.arange(1, 101) / 100 * shares[-1], shares[is_new], bounds[is_new])
    return [_short(value) for value in found]


def _cumulated(edges: Sequence[float], counts: Sequence[int], largest: float) -> tuple[np.ndarray, np.ndarray]:
    """The bounds of the bins, cut at `largest`, and how many active tokens lie below each."""
    bounds = np.minimum(np.asarray(edges, dtype=np.float64), largest)
    below = np.concatenate([[0.0], np.cumsum(np.asarray(counts, dtype=np.float64))])
    if bounds[0] > 0:
        bounds, below = np.concatenate([[0.0], bounds]), np.concatenate([[0.0], below])
    if bounds[-1] < largest:
        bounds, below = np.append(bounds, largest), np.append(below, below[-1])
    return bounds, below


def _strongest(detail: FeatureDetail, contexts: int) -> list[dict[str, Any]]:
    named = (("Strongest contexts", detail.top), ("Strongest contexts of held-out text", detail.held_out))
    return [_group(name, found[:contexts]) for name, found in named if found]


def _deciles(drawn: Sequence[Context], contexts: int) -> list[dict[str, Any]]:
    """Contexts drawn from held-out text, the strongest tenth first."""
    groups = []
    for decile in reversed(range(_DECILES)):
        found = [context for context in drawn if context.decile == decile][:contexts]
        if found:
            place = {_DECILES - 1: " (the strongest)", 0: " (the weakest)"}.get(decile, "")
            groups.append(_group(f"Drawn from tenth {decile + 1}{place}", found))
    return groups


def _group(name: str, contexts: Sequence[Context]) -> dict[str, Any]:
    seen: set[tuple[str, ...]] = set()
    examples = []
    for context in contexts:
        text = tuple(context.tokens)
        acts = context.activations
        examples.append(
            {
                "tokens": [_on_one_line(token) for token in context.tokens],
                "tokens_acts_list": [_short(value) for value in acts],
                "train_token_ind": max(range(len(acts)), key=acts.__getitem__, default=0),
                "is_repeated_datapoint": text in seen,
            }
        )
        seen.add(text)
    return {"quantile_name": name, "examples": examples}


def _on_one_line(token: str) -> str:
    """The token with signs for line breaks and tabs, as that page has them in a prompt: it draws a context as one line,
    and breaks would lay it over the next."""
    return token.translate(_SIGNS)


def _short(value: float) -> float:
    """Five digits: the page shows two, and half of the bytes would be digits that nobody sees."""
    return float(f"{value:.5g}")
