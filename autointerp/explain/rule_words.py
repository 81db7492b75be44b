"""The label of a rule as it ended, after clauses were dropped and tables were learned beside them.

Where all clauses of the LLM were kept, its own words say what they mean. Where some were dropped, these words would
claim what the rule does not do, so the label is what the kept clauses say. Where the learned tables predict much of the
activation, the label names the tokens that they add.
"""

from __future__ import annotations

from autointerp.ask.explanation_row import MAX_LABEL
from autointerp.explain.label_replies import clean_label
from autointerp.explain.rule_study import Draft, RuleStudy
from autointerp.rules.language.wording import clause_in_words
from autointerp.rules.token_names import listed, token_name

TABLES_TELL_FROM = 0.4
"""Share of the predicted activation that tables must make for the label to name what they add."""
NAMED_FROM = 0.1
"""Share of what tables add where no clause holds that a token must have to be named."""
NAMED = 3
"""Tokens named, at most."""


def words_of(study: RuleStudy, draft: Draft) -> str:
    """The label of a rule with at least one clause, at most MAX_LABEL characters."""
    kept = draft.kept
    if len(kept) == len(draft.clauses) and draft.proposal.label is not None:
        parts = [draft.proposal.label]
    else:
        parts = [clean_label(clause_in_words(clause)) for clause in kept]
    also = _also(study, draft)
    return _joined(list(dict.fromkeys(parts)), also)


def _also(study: RuleStudy, draft: Draft) -> str | None:
    """The tokens that tables add, most first; None where they add little, or nothing that stands out."""
    share, of_token = study.table_share(draft)
    whole = sum(of_token.values())
    if share < TABLES_TELL_FROM or whole <= 0:
        return None
    most = sorted(of_token.items(), key=lambda one: (-one[1], one[0]))
    names = [token_name(token) for token, mass in most if mass >= NAMED_FROM * whole]
    return f"also {listed(list(dict.fromkeys(names))[:NAMED])}" if names else None


def _joined(parts: list[str], also: str | None) -> str:
    """The parts with what is also there. Where all would be too long, the last parts are left out."""
    end = [] if also is None else [also]
    while len(parts) > 1 and len("; ".join([*parts, *end])) > MAX_LABEL:
        parts.pop()
    text = "; ".join([*parts, *end])
    return text if len(text) <= MAX_LABEL else clean_label("; ".join(parts))
