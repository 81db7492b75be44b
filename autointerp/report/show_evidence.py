"""What evidence methods found of one feature, as lines of its page. Only what is there; nothing is said of methods that
were not run.

    shape  other; 34 % of its active tokens are ` raise`; position dependence 0.02
    output  its promoted tokens stand out: kurtosis 41.2 (1 in 100 random directions exceeds 1.3), skew +3.7
    says more   TypeError +9.12   Error +8.01  (by z; clamped to 120, KL 0.5)
    neighbours  by direction    12 (0.71) `def` at the start of a line; 33 (0.61) ...
    needs  1 token (median of 5 contexts)
      [[ raise 1.00]]  keeps 98 %; lost with ` return` for ` raise`
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from autointerp.terminal import visible

SHOWN = 3
"""Neighbours of each relation, pruned contexts, lost substitutes."""
LISTED = 8
"""Tokens or words on one line."""
IMPORTANT = 0.5
"""A token without which so large a share of the activation is lost is marked."""
LABEL_CHARACTERS = 48
CONTEXT_CHARACTERS = 60
RELATIONS = {
    "decoder": "by direction",
    "coactive": "firing together",
    "correlated": "correlated",
    "anticorrelated": "anticorrelated",
}


def evidence_lines(page: Mapping[str, Any]) -> list[str]:
    """Lines for the keys of `store.findings_page`, in a fixed order."""
    return [
        *_shape(page["shape"]),
        *_output(page["output_statistic"]),
        *_changes("says more", page["changed"], 1),
        *_changes("says less", page["changed"], -1),
        *_words("words of its direction", page["related_words"], "score"),
        *_words("words where it fires", page["input_words"], "pmi"),
        *_neighbours(page["neighbours"]),
        *_pruned(page["pruned"]),
        *_failures(page["method_runs"]),
    ]


def _shape(shape: Mapping[str, Any] | None) -> list[str]:
    if shape is None:
        return []
    told = [shape["kind"]]
    told += [word for word in ("dense", "rare") if shape[f"is_{word}"] and word != shape["kind"]]
    if shape["unigram_purity"] is not None:
        told.append(
            f"{100 * shape['unigram_purity']:.0f} % of its active tokens are `{_token(shape['unigram'] or '')}`"
        )
    if shape["position_dependence"] is not None:
        told.append(f"position dependence {shape['position_dependence']:.2f}")
    return [f"shape  {'; '.join(told)}"]


def _output(found: Mapping[str, Any] | None) -> list[str]:
    if found is None:
        return []
    acts = "its promoted tokens stand out" if found["is_output"] else "its promoted tokens do not stand out"
    chance = f"1 in 100 random directions exceeds {found['threshold']:.1f}"
    return [f"output  {acts}: kurtosis {found['kurtosis']:.1f} ({chance}), skew {found['skew']:+.1f}"]


def _changes(word: str, changed: Sequence[Mapping[str, Any]], sign: int) -> list[str]:
    chosen = [row for row in changed if row["sign"] == sign]
    if not chosen:
        return []
    shown = "  ".join(f"{_token(row['token'])} {row['delta']:+.2f}" for row in chosen[:LISTED])
    clamp = f"  (by z; clamped to {chosen[0]['strength']:.3g}, KL {chosen[0]['kl']:.2g})" if sign == 1 else ""
    return [f"{word}  {shown}{clamp}"]


def _words(title: str, rows: Sequence[Mapping[str, Any]], number: str) -> list[str]:
    shown = ", ".join(f"{visible(row['word'])} {row[number]:.2g}" for row in rows[:LISTED])
    return [f"{title}  {shown}"] if rows else []


def _neighbours(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    lines: list[str] = []
    for relation, name in RELATIONS.items():
        near = [row for row in rows if row["relation"] == relation][:SHOWN]
        if near:
            told = "; ".join(
                f"{row['neighbour']} ({row['value']:.2f})" + (f" {_short(row['label'])}" if row["label"] else "")
                for row in near
            )
            lines.append(f"{'neighbours' if not lines else '':10}  {name:15} {told}")
    return lines


def _pruned(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """How many tokens it needs, then the first contexts: important tokens in [[ ]], and which substitutes lose it."""
    kept = [row for row in rows if row["status"] == "ok"]
    if not rows:
        return []
    failed = f", {len(rows) - len(kept)} not kept" if len(kept) < len(rows) else ""
    if not kept:
        return [f"needs  more text than was tried ({len(rows)} contexts)"]
    need = median(len(row["tokens"]) for row in kept)
    lines = [f"needs  {need:g} token{'' if need == 1 else 's'} (median of {len(kept)} contexts{failed})"]
    for row in kept[:SHOWN]:
        share = row["activation"] / row["full_activation"] if row["full_activation"] > 0 else 0.0
        lost = [c for c in row["counterfactuals"] if not c["kept"]][:SHOWN]
        swaps = ", ".join(f"`{_token(c['substitute'])}` for `{_token(row['tokens'][c['position']])}`" for c in lost)
        lines.append(f"  {_marked(row)}  keeps {100 * share:.0f} %" + (f"; lost with {swaps}" if swaps else ""))
    return lines


def _marked(row: Mapping[str, Any]) -> str:
    """The kept tokens, from the right as far as there is room: `def [[ raise 1.00]]`."""
    pieces = [
        f"[[{visible(token)} {importance:.2f}]]" if importance >= IMPORTANT else visible(token)
        for token, importance in zip(row["tokens"], row["importance"], strict=True)
    ]
    room, shown = CONTEXT_CHARACTERS, 0
    for piece in reversed(pieces):
        if room < len(piece) and shown:
            break
        room, shown = room - len(piece), shown + 1
    return ("…" if shown < len(pieces) else "") + "".join(pieces[len(pieces) - shown :])


def _failures(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    failed = [f"{run['method']} ({run['status']})" for run in runs if run["status"] != "ok"]
    return [f"nothing found by  {', '.join(failed)}"] if failed else []


def _token(token: str) -> str:
    return visible(repr(token)[1:-1])


def _short(label: str) -> str:
    told = visible(label)
    return told if len(told) <= LABEL_CHARACTERS else f"{told[: LABEL_CHARACTERS - 1].rstrip()}…"
