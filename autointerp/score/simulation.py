"""The simulation scorer (Bills et al. 2023): predict each token's activation from the label, correlate with the truth.

No I/O here: contexts are chosen, requests built, replies read and predictions scored; score_run.py asks. Four methods,
recorded in `scores.method` and never averaged together:

    prompt_logprobs     one forward pass of a completions endpoint: every activation in the prompt is a question mark,
                        and the digits' logprobs at those places give an expected value for every token at once
    generated_logprobs  a chat model lists the tokens with numbers; the expected value over the number's alternatives
    numbers             the same reply without logprobs: the numbers themselves
    rule                no LLM: the rule that came with the label (`patterns`)

Predictions and truth are on the 0..10 scale of scale.py. In prompts for completions the scale is 0..9 (and the
expected value is stretched by 10/9): a "10" would be one token for some tokenizers and two for others, and two cannot
be read in one pass.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from autointerp.ask.chat import ReplyError, chat_body
from autointerp.ask.prompts import PromptTemplate, load_template, one_line
from autointerp.ask.scale import TOP
from autointerp.config import EndpointConfig
from autointerp.llm.capabilities import Capabilities, prompt_logprob_fields
from autointerp.llm.requests import Reply, Request, TokenLogprob
from autointerp.records import Context

LLM_METHODS = ("prompt_logprobs", "generated_logprobs", "numbers")
RULE = "rule"
KINDS = ("top", "sampled", "negative")
UNKNOWN = "?"
DIGITS = 9
"""Largest activation in prompts for completions."""


# --- which contexts -------------------------------------------------------------------------------------------------


def choose_contexts(contexts: Sequence[Context], n: int) -> list[Context]:
    """N top, N sampled and N negative contexts of one split, N = `n` or what the scarcest kind has.

    Half of the negatives are random silent tiles, the rest same-token and neighbour ones in turn; where a tier is short
    the others fill in. Sampled contexts that show a chosen top context's peak come last. In the store's rank order, so
    that the choice is the same in every run.
    """
    top = [c for c in contexts if c.kind == "top"]
    negatives = [c for c in contexts if c.kind == "negative"]
    peaks = {(c.document, c.position) for c in top[:n]}
    sampled = sorted(
        (c for c in contexts if c.kind == "sampled"), key=lambda c: ((c.document, c.position) in peaks, c.rank)
    )
    n = min(n, len(top), len(sampled), len(negatives))
    return [*top[:n], *sampled[:n], *_mixed_tiers(negatives, n)]


def _mixed_tiers(negatives: Sequence[Context], n: int) -> list[Context]:
    random = [c for c in negatives if c.tier == "random"]
    hard = zip_longest(
        [c for c in negatives if c.tier == "same_token"], [c for c in negatives if c.tier == "neighbour"]
    )
    near = [c for pair in hard for c in pair if c is not None]
    half = (n + 1) // 2
    take = max(min(half, len(random)), n - len(near))
    return [*random[:take], *near[: n - take]]


def is_random_only(context: Context) -> bool:
    """Whether a context counts for the random-only score: a uniform sample of activating, or of silent tiles."""
    return context.kind == "sampled" or context.tier == "random"


# --- requests -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Simulator:
    """Builds requests and reads replies for one of LLM_METHODS."""

    method: str
    template: PromptTemplate
    endpoint: EndpointConfig
    capabilities: Capabilities
    seed: int = 0

    @classmethod
    def of(
        cls,
        method: str,
        endpoint: EndpointConfig,
        capabilities: Capabilities,
        seed: int = 0,
        prompts: Path | None = None,
    ) -> Simulator:
        return cls(method, template_of(method, prompts), endpoint, capabilities, seed)

    def request(self, label: str, context: Context, dictionary_id: int, examples: int | None = None) -> Request:
        """The question about one context, with the first `examples` worked examples (None: all)."""
        shown = self.template.examples if examples is None else self.template.examples[:examples]
        if self.method == "prompt_logprobs":
            fields = {**prompt_logprob_fields(self.capabilities)}
            body = {"model": self.endpoint.model, "prompt": self._prompt(label, context.tokens, shown), **fields}
            if self.endpoint.temperature is not None:
                body["temperature"] = self.endpoint.temperature
            return Request("completions", body, "simulate", dictionary_id=dictionary_id, feature=context.feature)
        messages = [{"role": "system", "content": self.template.block("system")}]
        for example in shown:
            lines = list(zip(map(one_line, example["tokens"]), _numbers(example), strict=True))
            messages.append({"role": "user", "content": self._question(example["label"], example["tokens"])})
            messages.append({"role": "assistant", "content": self.template.block("assistant", answer=lines)})
        messages.append({"role": "user", "content": self._question(label, context.tokens)})
        return self._chat(messages, context, dictionary_id)

    def again(self, request: Request, reply: str, problem: str, context: Context, dictionary_id: int) -> Request | None:
        """Asks once more after an unusable reply; None for prompt_logprobs, where asking again gives the same."""
        if request.kind != "chat":
            return None
        text = self.template.block("again", problem=problem, tokens=context.tokens)
        messages = [
            *request.body["messages"],
            {"role": "assistant", "content": reply},
            {"role": "user", "content": text},
        ]
        return self._chat(messages, context, dictionary_id)

    def _chat(self, messages: list[dict[str, str]], context: Context, dictionary_id: int) -> Request:
        extra: dict[str, Any] = {}
        if self.method == "generated_logprobs":
            extra = {"logprobs": True, "top_logprobs": self.capabilities.generated_top}
        # A line repeats its token as JSON, and tokens of strange bytes cost several of the LLM's own.
        limit = max(self.endpoint.max_tokens, 64 + 12 * len(context.tokens))
        body = chat_body(self.endpoint, messages, limit, seed=self.seed, **extra)
        return Request("chat", body, "simulate", dictionary_id=dictionary_id, feature=context.feature)

    def _question(self, label: str, tokens: Sequence[str]) -> str:
        return self.template.block("user", label=one_line(label), tokens=[one_line(t) for t in tokens])

    def _prompt(self, label: str, tokens: Sequence[str], examples: Sequence[Mapping[str, Any]]) -> str:
        parts = [self.template.block("head")]
        for number, example in enumerate(examples, start=1):
            digits = [str(round(n * DIGITS / TOP)) for n in _numbers(example)]
            digits = [UNKNOWN if i < example["known_from"] else d for i, d in enumerate(digits)]
            parts.append(self._record(number, example["label"], example["tokens"], digits))
        parts.append(self._record(len(examples) + 1, label, tokens, [UNKNOWN] * len(tokens)).rstrip("\n") + "\n")
        return "\n".join(parts)

    def _record(self, number: int, label: str, tokens: Sequence[str], digits: Sequence[str]) -> str:
        lines = list(zip(map(one_line, tokens), digits, strict=True))
        return self.template.block("record", number=number, label=one_line(label), lines=lines)

    def read(self, reply: Reply, context: Context) -> list[float]:
        """One expected activation, 0..10, per token. Raises ReplyError."""
        if self.method == "prompt_logprobs":
            return read_prompt_logprobs(reply.prompt_logprobs, len(context.tokens))
        lines = read_lines(reply.text, context.tokens)
        if self.method == "numbers":
            return [line.number for line in lines]
        return expected_numbers(reply.text, reply.token_logprobs, lines)


def template_of(method: str, prompts: Path | None = None) -> PromptTemplate:
    """The chat methods share one prompt."""
    name = "simulation_completions" if method == "prompt_logprobs" else "simulation_chat"
    return load_template(f"score/{name}", prompts, examples="examples.toml")


def _numbers(example: Mapping[str, Any]) -> list[int]:
    active = {int(position): int(number) for position, number in example["active"].items()}
    return [active.get(i, 0) for i in range(len(example["tokens"]))]


# --- replies --------------------------------------------------------------------------------------------------------


def read_prompt_logprobs(rows: Sequence[TokenLogprob] | None, n_tokens: int) -> list[float]:
    """Expected activations from the logprobs at the question marks of the prompt's last `n_tokens` lines.

    Lines are counted from the end: tokens of the prompt are JSON on one line, so a line break or a tab of the text can
    only be the prompt's own, however the endpoint spells its first token or incomplete characters.
    """
    if not rows:
        raise ReplyError("no_logprobs", "the reply has no logprobs of the prompt")
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
        raise ReplyError("no_logprobs", "no number is among the likely tokens where one should stand")
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
        raise ReplyError("no_logprobs", "the reply has no logprobs of its tokens")
    if "".join(row.token for row in rows) != text:
        # An endpoint may trim the text of a reply; the rows are then searched for where it begins.
        joined = "".join(row.token for row in rows)
        shift = joined.find(text)
        if not text or shift < 0:
            raise ReplyError("no_logprobs", "the logprobs are not those of the reply's text")
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
