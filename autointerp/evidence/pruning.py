"""The evidence method `pruning`: the shortest left context that keeps a top context's peak (Foote et al. 2023).

pruned_context_search.py says how it is found, and what is tried in the place of its important tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from statistics import median
from typing import Any, Literal

from autointerp.config import EvidenceConfig
from autointerp.evidence.method import Found, Study, fields_of
from autointerp.evidence.page_lines import token_text
from autointerp.log import visible
from autointerp.store.contexts import strongest_contexts
from autointerp.store.finding_tables import PRUNED_CONTEXTS, Row
from autointerp.store.findings import MethodRun

NEUTRAL_FROM = 64
"""Features, the first living ones, whose contexts say which token is commonest where the tokenizer has no mask."""
SHOWN = 3
"""Pruned contexts on a page, and lost substitutes of each."""
IMPORTANT = 0.5
"""A page marks a token without which so large a share of the activation is lost."""
CONTEXT_CHARACTERS = 60
_COLUMNS = (
    "feature", "rank", "context_id", "mode", "status", "tokens", "importance", "activation", "full_activation",
    "counterfactuals",
)  # fmt: skip


class Pruning:
    """Up to `pruned_contexts` rows of the table pruned_contexts for every chosen feature."""

    name = "pruning"
    table = PRUNED_CONTEXTS
    scope: Literal["feature"] = "feature"

    def settings(self, config: EvidenceConfig) -> Mapping[str, object]:
        return fields_of(config, "pruned_contexts", "prune_mode", "prune_keep", "prune_longest", "substitutes")

    def find(self, study: Study, features: Sequence[int]) -> Found:
        from autointerp.evidence.pruned_context_search import prune

        loaded, weights, text, config = study.model(), study.weights(), study.text(), study.evidence
        contexts = strongest_contexts(study.store, study.dictionary_id, features, config.pruned_contexts)
        found = prune(
            loaded, weights, study.points()[0], contexts, config, text, study.excluded_ids(),
            batch_tokens=study.batch_tokens, neutral_id=study.once(_neutral_id),
        )  # fmt: skip
        cost = {feature: [0, 0] for feature in features}
        rank = dict.fromkeys(features, 0)
        columns: dict[str, list[Any]] = {name: [] for name in _COLUMNS}
        for one in found:
            feature = one.context.feature
            cost[feature][0] += one.n_forwards
            cost[feature][1] += one.n_tokens
            row = {name: getattr(one.context, name) for name in _COLUMNS if name != "rank"}
            row |= {"rank": rank[feature], "counterfactuals": [asdict(c) for c in one.context.counterfactuals]}
            rank[feature] += 1
            for name in _COLUMNS:
                columns[name].append(row[name])
        runs = [
            MethodRun(f, "ok", None, *cost[f])
            if rank[f]
            else MethodRun(f, "no_contexts", "the explain split has no context of it")
            for f in features
        ]
        return Found(columns, runs)

    def page(self, rows: Sequence[Row]) -> list[str]:
        """How many tokens it needs, then the first contexts, with important tokens in [[ ]] and the substitutes that
        lose the activation:

        needs  1 token (median of 5 contexts)
          [[ raise 1.00]]  keeps 98 %; lost with ` return` for ` raise`
        """
        kept = [row for row in rows if row["status"] == "ok"]
        if not rows:
            return []
        failed = f", {len(rows) - len(kept)} not kept" if len(kept) < len(rows) else ""
        if not kept:
            return [f"needs  more text than was tried ({len(rows)} contexts)"]
        need = median(len(row["tokens"]) for row in kept)
        lines = [f"needs  {need:g} token{'' if need == 1 else 's'} (median of {len(kept)} contexts{failed})"]
        return lines + [_context_line(row) for row in kept[:SHOWN]]


def _neutral_id(study: Study) -> int:
    """What stands for a token that is taken away: the same for all features, however they are cut into blocks."""
    from autointerp.evidence.pruned_context_search import mask_id

    first = study.living()[:NEUTRAL_FROM]
    contexts = strongest_contexts(study.store, study.dictionary_id, first, study.evidence.pruned_contexts)
    return mask_id(study.model(), [context.token_ids for context in contexts], study.excluded_ids())


def _context_line(row: Row) -> str:
    share = row["activation"] / row["full_activation"] if row["full_activation"] > 0 else 0.0
    lost = [c for c in row["counterfactuals"] if not c["kept"]][:SHOWN]
    swaps = ", ".join(f"`{token_text(c['substitute'])}` for `{token_text(row['tokens'][c['position']])}`" for c in lost)
    return f"  {_marked(row)}  keeps {100 * share:.0f} %" + (f"; lost with {swaps}" if swaps else "")


def _marked(row: Row) -> str:
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
