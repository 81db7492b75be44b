"""`autointerp show`: the page of one feature on a terminal."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from autointerp.errors import InputError
from autointerp.holds import WholePrecision, holds_line
from autointerp.number_text import decimals, interval
from autointerp.records import Context, Kind, PromotedToken, Split
from autointerp.report.control_tests import control_lines
from autointerp.report.page import FeatureFacts, FeaturePage, ShownLabel, load_page
from autointerp.report.score_groups import ScoreGroup, ScorePart, ScoreRow, score_groups
from autointerp.report.show_evidence import evidence_lines
from autointerp.report.show_json import as_json_text, findings_rows, page_rows
from autointerp.scorer_names import MIXTURES, NATURAL
from autointerp.store.safety.reading import open_for_reading
from autointerp.terminal import Terminal, visible

SHOWN_TOKENS = 8
"""Promoted or suppressed tokens on one line."""
SHOWN_HEADS = 3
MARKED = 0.3
"""In a pipe, tokens with more than this share of the context's largest activation are marked."""
SIDES = {"input": "what it responds to", "output": "what it makes the model say", "both": "both sides"}
SECTIONS: tuple[tuple[Split, Kind, str], ...] = (
    ("explain", "top", "strongest contexts"),
    ("explain", "sampled", "contexts drawn at random from those where it fires"),
    ("report", "top", "held out: strongest contexts"),
    ("explain", "negative", "silent, though alike"),
)
_BLOCKS = "\u2581\u2582\u2583\u2584\u2585\u2586\u2587\u2588"
_DECILE = re.compile(r"decile_(\d)")
_SHADES = (
    (0.75, "black on bright_yellow"),
    (0.5, "black on yellow"),
    (0.25, "bold yellow"),
    (0.0, "yellow"),
)
"""Style of a token by its share of the feature's maximum: the first threshold it exceeds."""


def print_feature(
    path: Path, feature: str, dictionary: str | None, contexts: int, as_json: bool, terminal: Terminal
) -> None:
    """Prints everything about one feature. `feature` is NUMBER or NAME:NUMBER.

    Raises InputError where it is neither, or the store has no such dictionary or feature.
    """
    name, _, number = feature.rpartition(":")
    if not (number.isascii() and number.isdigit() and len(number) <= 18):  # of 64 bits, as in the store
        raise InputError(f"{feature!r} is not a feature; write a number, or NAME:NUMBER to name the dictionary")
    with open_for_reading(path, terminal.say) as store:
        row = store.dictionary(name or dictionary)
        page = load_page(store, row.dictionary_id, int(number), contexts)
    if as_json:
        terminal.result(as_json_text(page_rows(page)))
        return
    _print_page(page, terminal)


def _print_page(page: FeaturePage, terminal: Terminal) -> None:
    facts, say = page.facts, terminal.result
    where = f"{page.dictionary.model} {page.dictionary.hookpoint}"
    if terminal.out.is_terminal:
        terminal.styled((page.name, "bold"), f"  {where}")
    else:
        say(f"{page.name}  {where}")
    say(
        f"{facts.status}; fires in {_percent(facts.density)} of tiles and on {_percent(facts.token_density)} "
        f"of tokens; maximum {facts.max_activation:.3g}, mean {facts.mean_activation:.3g}"
    )
    say("")
    scores = (line for group in page.label_scores for line in _group_lines(group))
    for line in (*_label_lines(page), *scores, *control_lines(page)):
        say(line)
    for line in (
        *_token_lines(page),
        *_head_lines(page),
        *_histogram_lines(facts),
        *evidence_lines(findings_rows(page)),
    ):
        say(line)
    for split, kind, title in SECTIONS:
        if chosen := page.contexts_of(split, kind):
            say("")
            say(title)
            for context in chosen:
                _print_context(context, facts.max_activation, terminal)


def _label_lines(page: FeaturePage) -> list[str]:
    """The label and who made it, of what."""
    label, explanation = page.label, page.shown_explanation
    if not label.label:
        return [f"label  none ({label.explanation_status or 'not explained yet'})"]
    side = SIDES.get(explanation.side or "") if explanation else None
    told = f"; says {side}" if side else ""
    if parts := page.made_of:
        counts = ", ".join(f"{n} by {name}" for name, n in Counter(parts).items())
        told += f"; made of {len(parts)} labels: {counts}"
    return [
        f"label  {visible(label.label)}{_share(label.label_share)}",
        *_further_meanings(label),
        f"       by {label.explainer} ({label.model or 'no LLM'}){told}",
        *_flag_lines(label),
    ]


def _further_meanings(label: ShownLabel) -> list[str]:
    """A second meaning of the input side, and what the feature leads to where that is told beside it."""
    lines = []
    if label.second_label:
        lines.append(f"    or {visible(label.second_label)}{_share(label.second_share)}")
    if label.output_label and label.side != "output":
        lines.append(f"       leads to: {visible(label.output_label)}")
    return lines


def _share(share: float | None) -> str:
    return "" if share is None else f" (about {share:.0%} of its places)"


def _flag_lines(label: ShownLabel) -> list[str]:
    if label.label_flag is None:
        return []
    return [f"       {label.label_flag}: {label.n_same_label:,} features have this label word for word"]


def score_lines(scores: Sequence[ScoreRow]) -> list[str]:
    """The scores of one label, given in any order, as text: a line for each scorer that ends with its controls, a
    second line where the score has parts, and a third where it says from which activation on the label holds."""
    return [line for group in score_groups(scores) for line in _group_lines(group)]


def _group_lines(group: ScoreGroup) -> list[str]:
    score = group.score
    controls = sorted(f"{control.control} {_number(control)}" for control in group.controls)
    documents = "" if score.n_documents is None else f" of {score.n_documents} documents"
    beside = f"; {', '.join(controls)}" if controls else ""
    head = "ranks  " if score.scorer in MIXTURES else "score  "
    name = f"how well it predicts ordinary text ({NATURAL})" if score.scorer == NATURAL else score.scorer
    lines = [
        f"{head}{_number(score)}{_interval(score)}  {name}, {score.method}, on {score.part}; "
        f"n {score.n}{documents}, {score.n_failed} failed{beside}"
    ]
    if group.parts:
        lines.append(f"       {', '.join(_part(part) for part in group.parts)}")
    if holds := holds_line(score, _whole_precision(group)):
        lines.append(f"       {visible(holds)}")
    return lines


def _whole_precision(group: ScoreGroup) -> WholePrecision | None:
    found = next((part.score for part in group.parts if part.name == "precision"), None)
    return None if found is None else WholePrecision(found.value, found.ci_low)


def _part(part: ScorePart) -> str:
    """One part with those below it in brackets: `specificity 0.97 [0.93, 0.99] (random 1.00, same token 0.90)`."""
    deciles = {match[1]: one for one in part.parts if (match := _DECILE.fullmatch(one.name))}
    inside = [f"{_words(one)} {_number(one.score)}" for one in part.parts if one not in deciles.values()]
    if deciles:
        told = ", ".join(f"{decile}: {_number(one.score)}" for decile, one in deciles.items())
        inside.insert(0, f"deciles {told}")
    return f"{_words(part)} {_number(part.score)}{_interval(part.score)}" + (
        f" ({', '.join(inside)})" if inside else ""
    )


def _words(part: ScorePart) -> str:
    return part.name.replace("_", " ")


def _number(score: ScoreRow) -> str:
    """The value, and the status where it says more than that there is one."""
    if score.value is None and score.status == "no_false_alarm" and score.ci_low is not None:
        return f"at least {decimals(score.ci_low)}"
    if score.value is None:
        return score.status
    return decimals(score.value) if score.status == "ok" else f"{decimals(score.value)} ({score.status})"


def _interval(score: ScoreRow) -> str:
    return "" if score.value is None else interval(score.ci_low, score.ci_high)


def _token_lines(page: FeaturePage) -> list[str]:
    if page.no_projection is not None:
        return [f"promotes  not known: {visible(page.no_projection)}"]
    both = (("promotes", page.promoted), ("suppresses", page.suppressed))
    return [f"{word}  {'  '.join(_token(t) for t in tokens[:SHOWN_TOKENS])}" for word, tokens in both if tokens]


def _head_lines(page: FeaturePage) -> list[str]:
    """The attention heads that make up most of the feature."""
    if not page.heads:
        return []
    listed = ", ".join(
        f"{one.head} ({one.decoder_share:.0%} of its decoder row, {one.output_share:.0%} of what it writes)"
        for one in page.heads[:SHOWN_HEADS]
    )
    return [f"heads  {listed}"]


def _token(token: PromotedToken) -> str:
    return f"{visible(repr(token.token)[1:-1])} {token.logit:+.2f}"


def _histogram_lines(facts: FeatureFacts) -> list[str]:
    found = facts.histogram
    if found is None:
        return []
    largest = max(found.counts)
    bars = "".join(_BLOCKS[min(7, int(8 * n / largest))] if n else " " for n in found.counts)
    return [f"activations  {found.edges[0]:.2g} {bars} {found.edges[-1]:.2g}"]


def _print_context(context: Context, scale: float, terminal: Terminal) -> None:
    """Prints one context on one line: shaded on a terminal, <<marked>> in a pipe, where colours do not reach."""
    where = f"{context.document}@{context.position}"
    peak = f"{context.max_activation:6.2f}"
    if terminal.out.is_terminal:
        shaded = [
            (token, _shade(a / scale)) if a > 0 and scale > 0 else token
            for token, a in zip(context.tokens, context.activations, strict=True)
        ]
        terminal.styled(f"  {peak}  ", *shaded, "  ", (where, "dim"))
        return
    marked = "".join(
        f"<<{visible(t)}>>" if a > MARKED * context.max_activation > 0 else visible(t)
        for t, a in zip(context.tokens, context.activations, strict=True)
    )
    terminal.result(f"  {peak}  {marked}  ({visible(where)})")


def _shade(share: float) -> str:
    return next((style for threshold, style in _SHADES if share > threshold), _SHADES[-1][1])


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"
