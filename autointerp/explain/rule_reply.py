"""Rules in the replies of an LLM: how they are asked for, and how they are read. No I/O here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from autointerp.ask.chat import ReplyError
from autointerp.rules.language.conditions import Clause, Combine
from autointerp.rules.language.parsing import RuleError, clauses_of
from autointerp.rules.near import NearWords

REPLY_TOKENS = 900
"""A rule with long lists of words takes so many tokens; `explain.max_tokens` counts where it is more."""


def clauses_in(found: Mapping[str, Any], near: NearWords) -> tuple[list[Clause], Combine]:
    """The clauses of a JSON object, and how they combine. Raises ReplyError, which says what is wrong with them."""
    try:
        return clauses_of({name: found[name] for name in ("clauses", "combine") if name in found}, near)
    except RuleError as error:
        raise ReplyError("unparseable", str(error)) from None


def rule_format(texts: Sequence[str] = ()) -> dict[str, Any]:
    """The outline of a rule, after fields `texts` that are a phrase or null. Conditions have too many forms for the
    schemas that endpoints take, so these are left open and checked when they are read."""
    clause = {
        "type": "object",
        "properties": {
            "says": {"type": "string"}, "strength": {"type": "number"},
            "all": {"type": "array", "items": {"type": "object"}},
        },
        "required": ["says", "strength", "all"],
    }  # fmt: skip
    properties = {
        **{name: {"type": ["string", "null"]} for name in texts},
        "clauses": {"type": "array", "items": clause}, "combine": {"type": "string", "enum": ["max", "sum"]},
    }  # fmt: skip
    schema = {"type": "object", "properties": properties, "required": list(properties)}
    return {"type": "json_schema", "json_schema": {"name": "rule", "strict": False, "schema": schema}}
