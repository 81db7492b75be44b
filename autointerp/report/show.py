"""What a person reads of a store: one feature's page, search hits, the table of labels."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.markup import escape

from autointerp.errors import InputError
from autointerp.records import HEADLINE_SCORERS, Context, PromotedToken
from autointerp.report.show_evidence import evidence_lines
from autointerp.store.rows import DictionaryRow
from autointerp.store.safety.reading import open_for_reading
from autointerp.terminal import Terminal, visible

_LABEL_COLUMNS = ("feature", "label", "score", "ci_low", "ci_high", "density")
_DECILE = re.compile(r"_decile_\d")
_SHADES = (
    (0.75, "black on bright_yellow"),
    (0.5, "black on yellow"),
    (0.25, "bold yellow"),
    (0.0, "yellow"),
)
"""Style of a token by its share of the feature's maximum: the first threshold it exceeds."""


def print_labels(path: Path, dictionary: str, terminal: Terminal, rows: int = 20) -> None:
    """The summary that ends a demo: how many features of each status, how well they score, the best of them."""
    with open_for_reading(path, terminal.say) as store:
        summary = store.label_summary(store.dictionary(dictionary).dictionary_id)
        best = store.best_labels(store.dictionary(dictionary).dictionary_id, rows)
    counts = ", ".join(f"{n} {status}" for status, n in summary["features"].items())
    terminal.result(f"{dictionary}: {counts}; {summary['labelled']} labelled, {summary['scored']} scored")
    for row in summary["scores"]:
        terminal.result(
            f"{row['explainer']} / {row['scorer']} ({row['method']}): mean {row['mean_score']:.3f} "
            f"[{row['ci_low']:.3f}, {row['ci_high']:.3f}] over {row['n']} features, "
            f"{row['n_without_score']} without a score"
        )
    terminal.table(
        _LABEL_COLUMNS, [[r[c] for c in _LABEL_COLUMNS] for r in best], title=f"the {len(best)} best-scored features"
    )


def print_search(path: Path, text: str, dictionary: str | None, limit: int, as_json: bool, terminal: Terminal) -> None:
    """Labels that hold words of `text`."""
    with open_for_reading(path, terminal.say) as store:
        chosen = store.dictionary(dictionary).dictionary_id if dictionary else None
        found = store.search_labels(text, chosen, limit)
    if as_json:
        terminal.result(_json(found))
        return
    if not found:
        terminal.say(f"no label mentions {text!r}")
        return
    columns = ("name", *_LABEL_COLUMNS)
    terminal.table(columns, [[row[c] for c in columns] for row in found])


def print_feature(
    path: Path, feature: str, dictionary: str | None, contexts: int, as_json: bool, terminal: Terminal
) -> None:
    """Everything about one feature. `feature` is NUMBER or NAME:NUMBER."""
    name, _, number = feature.rpartition(":")
    if not number.isdigit():
        raise InputError(f"{feature!r} is not a feature; write a number, or NAME:NUMBER to name the dictionary")
    with open_for_reading(path, terminal.say) as store:
        row = store.dictionary(name or dictionary)
        page = store.feature_page(row.dictionary_id, int(number), contexts)
    if as_json:
        terminal.result(_json(page))
        return
    _print_page(row, page, contexts, terminal)


def _print_page(row: DictionaryRow, page: dict[str, Any], limit: int, terminal: Terminal) -> None:
    facts, label = page["feature"], page["label"]
    say = terminal.result
    say(f"[bold]{escape(row.name)}:{facts['feature']}[/bold]  {escape(row.model)} {escape(row.hookpoint)}"
        if terminal.out.is_terminal
        else f"{row.name}:{facts['feature']}  {row.model} {row.hookpoint}", markup=True)  # fmt: skip
    say(
        f"{facts['status']}; fires in {_percent(facts['density'])} of tiles and on {_percent(facts['token_density'])} "
        f"of tokens; maximum {facts['max_activation']:.3g}, mean {facts['mean_activation']:.3g}"
    )
    say("")
    if label["label"]:
        say(f"label  {visible(label['label'])}")
        say(f"       by {label['explainer']} ({label['model'] or 'no LLM'}){_origin_of(label, page['explanations'])}")
    else:
        say(f"label  none ({label['explanation_status'] or 'not explained yet'})")
    for line in score_lines([s for s in page["scores"] if s["explanation_id"] in (label["explanation_id"], None)]):
        say(line)
    _print_tokens("promotes", page["promoted"], terminal)
    _print_tokens("suppresses", page["suppressed"], terminal)
    _print_histogram(facts, terminal)
    for line in evidence_lines(page):
        say(line)
    for split, kind, title in (
        ("explain", "top", "strongest contexts"),
        ("explain", "sampled", "contexts drawn at random from those where it fires"),
        ("report", "top", "held out: strongest contexts"),
        ("explain", "negative", "silent, though alike"),
    ):
        chosen = [c for c in page["contexts"] if c.split == split and c.kind == kind][:limit]
        if chosen:
            say("")
            say(title)
            for context in chosen:
                _print_context(context, facts["max_activation"], terminal)


def _origin_of(label: dict[str, Any], explanations: Sequence[dict[str, Any]]) -> str:
    """Which side of the feature its label describes, and from which other labels it was made."""
    known = {row["explanation_id"]: row for row in explanations}
    shown = known.get(label["explanation_id"], {})
    side = {"input": "what it responds to", "output": "what it makes the model say", "both": "both sides"}
    told = f"; says {side[shown['side']]}" if shown.get("side") in side else ""
    parts = [known[i]["explainer"] if i in known else i for i in shown.get("derived_from") or ()]
    counts = ", ".join(f"{n} by {name}" for name, n in Counter(parts).items())
    return told + (f"; made of {len(parts)} labels: {counts}" if parts else "")


def score_lines(scores: Sequence[dict[str, Any]]) -> list[str]:
    """One label's rows of `scores`, in any order, as text: a line per scorer with its controls at the end, and where
    the score has parts a second line with those. Of several rows of one kind (seeds) the latest counts."""
    latest: dict[tuple[Any, ...], dict[str, Any]] = {}
    for score in sorted(scores, key=lambda s: s["created_at"]):
        latest[(score["scorer"], *_origin(score), score["control"])] = score
    real = [s for s in latest.values() if s["control"] is None and headline_of(s["scorer"]) == s["scorer"]]
    lines = []
    for score in sorted(real, key=lambda s: (s["part"], _place(s["scorer"]), *_origin(s))):
        same = [s for s in latest.values() if _origin(s) == _origin(score)]
        floors = [f"{s['control']} {_number(s)}" for s in same if s["control"] and s["scorer"] == score["scorer"]]
        interval = "" if score["ci_low"] is None else f" [{score['ci_low']:.2f}, {score['ci_high']:.2f}]"
        beside = f"; {', '.join(sorted(floors))}" if floors else ""
        lines.append(
            f"score  {_number(score)}{interval}  {score['scorer']}, {score['method']}, on {score['part']}; "
            f"n {score['n']}, {score['n_failed']} failed{beside}"
        )
        parts = {
            s["scorer"].removeprefix(f"{score['scorer']}_"): s
            for s in same
            if s["control"] is None and s is not score and headline_of(s["scorer"]) == score["scorer"]
        }
        if parts:
            lines.append(f"       {_strata(parts)}")
    return lines


def headline_of(scorer: str) -> str:
    """The scorer that a row is a part of: "detection" of "detection_sensitivity"; itself where it is none's part."""
    if scorer in HEADLINE_SCORERS:
        return scorer
    return max((h for h in HEADLINE_SCORERS if scorer.startswith(f"{h}_")), key=len, default=scorer)


def _origin(score: dict[str, Any]) -> tuple[str, str, str]:
    return score["part"], score["method"], score["model"]


def _place(scorer: str) -> tuple[int, str]:
    known = HEADLINE_SCORERS.index(scorer) if scorer in HEADLINE_SCORERS else len(HEADLINE_SCORERS)
    return known, scorer


def _number(score: dict[str, Any]) -> str:
    return score["status"] if score["value"] is None else f"{score['value']:.2f}"


def _strata(parts: dict[str, dict[str, Any]]) -> str:
    """Parts by name as text; one whose name goes on another's in brackets behind that one:

    sensitivity 0.92 (deciles 0: 0.80, 9: 1.00), specificity 0.97 (random 1.00, same token 0.90)
    """
    roots = [name for name in sorted(parts) if not any(name.startswith(f"{other}_") for other in parts)]
    told = []
    for root in roots:
        below = sorted(name for name in parts if name.startswith(f"{root}_"))
        deciles = [
            f"{name.rpartition('_')[2]}: {_number(parts[name])}" for name in below if _DECILE.fullmatch(name, len(root))
        ]
        rest = [
            f"{name.removeprefix(f'{root}_').replace('_', ' ')} {_number(parts[name])}"
            for name in below
            if not _DECILE.fullmatch(name, len(root))
        ]
        inside = [*([f"deciles {', '.join(deciles)}"] if deciles else []), *rest]
        told.append(f"{root.replace('_', ' ')} {_number(parts[root])}" + (f" ({', '.join(inside)})" if inside else ""))
    return ", ".join(told)


def _print_tokens(word: str, tokens: Sequence[PromotedToken], terminal: Terminal) -> None:
    if tokens:
        shown = "  ".join(f"{visible(repr(t.token)[1:-1])} {t.logit:+.2f}" for t in tokens[:8])
        terminal.result(f"{word}  {shown}")


def _print_histogram(facts: dict[str, Any], terminal: Terminal) -> None:
    counts, edges = facts["histogram_counts"], facts["histogram_edges"]
    if not counts:
        return
    blocks = "\u2581\u2582\u2583\u2584\u2585\u2586\u2587\u2588"
    largest = max(counts)
    bars = "".join(blocks[min(7, int(8 * n / largest))] if n else " " for n in counts)
    terminal.result(f"activations  {edges[0]:.2g} {bars} {edges[-1]:.2g}")


def _print_context(context: Context, scale: float, terminal: Terminal) -> None:
    """One context on one line: shaded on a terminal, <<marked>> in a pipe, where colours do not reach."""
    where = f"{context.document}@{context.position}"
    peak = f"{context.max_activation:6.2f}"
    if terminal.out.is_terminal:
        shaded = "".join(
            f"[{_shade(a / scale)}]{escape(visible(t))}[/]" if a > 0 and scale > 0 else escape(visible(t))
            for t, a in zip(context.tokens, context.activations, strict=True)
        )
        terminal.out.print(f"  {peak}  {shaded}  [dim]{escape(visible(where))}[/dim]", soft_wrap=True)
        return
    marked = "".join(
        f"<<{visible(t)}>>" if a > 0.3 * context.max_activation > 0 else visible(t)
        for t, a in zip(context.tokens, context.activations, strict=True)
    )
    terminal.result(f"  {peak}  {marked}  ({visible(where)})")


def _shade(share: float) -> str:
    return next((style for threshold, style in _SHADES if share > threshold), _SHADES[-1][1])


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"


def _json(value: Any) -> str:
    def plain(item: Any) -> Any:
        if hasattr(item, "__dataclass_fields__"):
            return {name: getattr(item, name) for name in item.__dataclass_fields__}
        return str(item)

    return json.dumps(value, default=plain, ensure_ascii=False, indent=1)
