"""Reads the reply to a simulation: one number from 0 to 10 for every token, or a ReplyError. No I/O here.

See simulation.py for the scoring methods.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from autointerp.ask.chat import ReplyError
from autointerp.ask.scale import TOP
from autointerp.llm.requests import TokenLogprob

UNKNOWN = "?"
"""Stands in a completions prompt wherever a number is asked for."""
DIGITS = 9
"""Largest activation in prompts for completions."""


def read_prompt_logprobs(rows: Sequence[TokenLogprob] | None, n_tokens: int) -> list[float]:
    """Expected activations from the logprobs at the question marks of the prompt's last `n_tokens` lines.

    Lines are counted from the end: tokens of the prompt are JSON on one line, so a line break or a tab of the text can
    only be the prompt's own, however the endpoint spells its first token or incomplete characters.
    """
    if not rows:
        raise ReplyError("no_logprobs", "the reply has no logprobs of the prompt", is_final=True)
    text = "".join(row.token for row in rows)
    owners = [i for i, row in enumerate(rows) for _ in row.token]
    end = len(text.rstrip())
    starts = [m.end() for m in re.finditer(r"\n", text[:end])][-n_tokens:]
    if len(starts) < n_tokens:
        raise ReplyError("token_count", f"the prompt's logprobs have {len(starts)} lines, {n_tokens} were asked for")
    out = []
    for start, stop in zip(starts, [*starts[1:], end + 1], strict=True):
        at = text.rfind("\t", start, stop) + 1
        if at == 0 or text[at : at + 1] != UNKNOWN:
            raise ReplyError("token_mismatch", f"no question mark in a line of the prompt: {text[start:stop]!r}")
        weights = _digit_weights(rows[owners[at]].top, DIGITS)
        out.append(_expected(weights) * TOP / DIGITS)
    return out


_SPELLED = {str(number): number for number in range(TOP + 1)}


def _digit_weights(top: Sequence[tuple[str, float]], largest: int) -> dict[int, float]:
    """Probability of each number among the alternatives, spellings with white space around it added up."""
    weights: dict[int, float] = {}
    for token, logprob in top:
        core = token.strip()
        if core in _SPELLED and _SPELLED[core] <= largest:
            weights[_SPELLED[core]] = weights.get(_SPELLED[core], 0.0) + math.exp(min(0.0, logprob))
    return weights


def _expected(weights: Mapping[int, float]) -> float:
    whole = sum(weights.values())
    if whole <= 0.0:
        raise ReplyError("no_logprobs", "no number is among the likely tokens where one should stand", is_final=True)
    # Rounding may carry a mean past the largest number.
    return min(sum(number * weight for number, weight in weights.items()) / whole, max(weights))


@dataclass(frozen=True)
class Line:
    """One line of a chat reply. `at` is where its number begins in the reply's text."""

    number: float
    at: int
    digits: str


_NUMBER = re.compile(r"(?<=[\t :|=])-?[0-9]+(?:\.[0-9]+)?$")
_SEPARATORS = (":", "|", "=")
_LONGEST_NUMBER = 40
"""Characters at the end of a line in which its number is looked for, so that no line takes long."""
MAX_STRAY_TOKENS = 0.1
"""Share of lines whose token may come back misspelt; more of them mean that the lines are out of step."""


def read_lines(text: str, tokens: Sequence[str]) -> list[Line]:
    """The reply's lines, one per token. Raises ReplyError where they are not exactly that."""
    lines: list[Line] = []
    stray = 0
    at = 0
    for raw in text.split("\n"):
        start, at = at, at + len(raw) + 1
        if not raw.strip() or raw.strip().startswith("```"):
            continue
        line = raw.rstrip("\r").rstrip(" \t")
        match = _NUMBER.search(line, max(0, len(line) - _LONGEST_NUMBER))
        head = line[: match.start()] if match else ""
        token = head.rstrip(" \t")
        if match is None or not token or head in _SEPARATORS:
            raise ReplyError("token_count", f"the line {raw.strip()[:60]!r} is not a token, a tab and a number")
        number = float(match[0])
        if not 0.0 <= number <= TOP:
            raise ReplyError("bad_number", f"{match[0]} is not a number from 0 to {TOP}")
        if len(lines) < len(tokens):
            stray += not _same_token(token, tokens[len(lines)])
        lines.append(Line(number, start + match.start(), match[0]))
    if len(lines) != len(tokens):
        raise ReplyError("token_count", f"it has {len(lines)} lines, not {len(tokens)}")
    if stray > MAX_STRAY_TOKENS * len(tokens):
        raise ReplyError("token_mismatch", f"{stray} of {len(tokens)} lines do not repeat the token given")
    return lines


def _same_token(written: str, token: str) -> bool:
    """Whether what stands before a number and white space is the token, as JSON or plain, perhaps with a separator."""
    candidates = [written]
    if written.endswith(_SEPARATORS):
        candidates.append(written[:-1].rstrip(" \t"))
    return any(_plain(one).strip() == token.strip() for one in candidates)


def _plain(written: str) -> str:
    if not written.startswith('"'):
        return written
    try:
        return str(json.loads(written))
    except json.JSONDecodeError:
        return written


def expected_numbers(text: str, rows: Sequence[TokenLogprob] | None, lines: Sequence[Line]) -> list[float]:
    """Expected value over the alternatives at each line's number.

    Where the tokenizer writes 10 as "1" and "0", the mass of "1" is split by the probability of "0" after it if the
    reply says it (P(10) = P(1) P(0|1)); where another number was written, nothing is known of what would have followed
    a "1", and it counts as 1 or 10, whichever is nearer to the number written.
    """
    if not rows:
        raise ReplyError("no_logprobs", "the reply has no logprobs of its tokens", is_final=True)
    if "".join(row.token for row in rows) != text:
        # An endpoint may trim the text of a reply, or take thoughts out of it; the rows are then searched for where it
        # begins: at its last occurrence, since a thought may hold a draft of it.
        joined = "".join(row.token for row in rows)
        shift = joined.rfind(text)
        if not text or shift < 0:
            raise ReplyError("no_logprobs", "the logprobs are not those of the reply's text", is_final=True)
    else:
        shift = 0
    owners = [i for i, row in enumerate(rows) for _ in row.token]
    places = [owners[line.at + shift] for line in lines]
    ten_is_one_token = any(row.token.strip() == "10" for row in rows) or any(
        alternative.strip() == "10" for place in places for alternative, _ in rows[place].top
    )
    out = []
    for place, line in zip(places, lines, strict=True):
        weights = _digit_weights(rows[place].top, TOP)
        if 1 in weights and not ten_is_one_token:
            of_ten = _share_of_ten(rows, place, line)
            one = weights[1]
            weights = {**weights, 1: one * (1.0 - of_ten), 10: one * of_ten}
        out.append(_expected(weights))
    return out


def _share_of_ten(rows: Sequence[TokenLogprob], place: int, line: Line) -> float:
    """P(0 | 1) at a number's place: how much of the "1" there means 10."""
    if not line.digits.startswith("1"):
        return 1.0 if line.number > 5.5 else 0.0
    following = rows[place + 1] if place + 1 < len(rows) else None
    if following is None or not following.top:
        return 1.0 if line.digits == "10" else 0.0
    return min(1.0, sum(math.exp(min(0.0, lp)) for token, lp in following.top if token.startswith("0")))
