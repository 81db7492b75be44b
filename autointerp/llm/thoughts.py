"""Tells what a model thinks aloud from what it answers, in replies of servers that do not do so themselves.

Thoughts stand between tags: `<think>`, `<thinking>`, `<thought>`, `<reasoning>` and the special tokens of some model
families. A closing tag without an opening one ends a thought that began with the reply, since many chat templates write
the opening tag into the prompt. An opening tag without a closing one begins a thought that never ended.

A label or a token may name such a tag. So a tag in quotes or backticks is text, JSON is read as it is, and an opening
tag that is never closed counts only at the beginning of a line.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace

from autointerp.llm.requests import TokenLogprob

Span = tuple[int, int]
_NAMES = r"(?:think|thinking|thoughts?|reasoning|seed:think)"
_TAG = re.compile(
    rf"(?P<open><(?i:{_NAMES})(?:\s[^<>\n]{{0,100}})?>|\[THINK\]|<\|START_THINKING\|>|◁think▷"
    r"|<\|channel\|>(?:analysis|commentary)\s?[^<>]{0,100}<\|message\|>)"
    rf"|(?P<close></(?i:{_NAMES})\s?>|\[/THINK\]|<\|END_THINKING\|>|◁/think▷|<\|channel\|>final\s?<\|message\|>)"
)
"""Angle brackets: DeepSeek, Qwen, EXAONE, Seed and others. Then Magistral, Command A, Kimi, gpt-oss."""
_QUOTES = "\"'`“”‘’"
_JSON_TRIES = 4
"""How many times the rest of a reply is read as JSON before it is taken for other text."""

_INDENT = 100
"""Most white space before a tag at the beginning of a line."""


def answer_spans(text: str) -> list[Span]:
    """The parts (begin, end) of `text` that are no thoughts, in order. All of it where there are none."""
    if _TAG.search(text) is None or _is_json(text):
        return [(0, len(text))]
    tags = [tag for tag in _TAG.finditer(text) if not _is_quoted(text, tag)]
    last_close = max((tag.start() for tag in tags if tag["close"]), default=-1)
    kept: list[Span] = []
    at, thinking, tries = 0, False, _JSON_TRIES
    for tag in tags:
        if tag["close"]:
            kept = kept if thinking else []  # what came before an unopened one was a thought
            thinking, at = False, tag.end()
            if (tries := tries - 1) >= 0 and _is_json(text[at:]):
                break
        elif not thinking and (tag.start() < last_close or _begins_line(text, tag.start())):
            kept.append((at, tag.start()))
            thinking = True
    if not thinking:
        kept.append((at, len(text)))
    return [(begin, end) for begin, end in kept if begin < end]


def answer_of(text: str) -> str:
    """`text` without thoughts, and without the white space around what is left where there were some."""
    spans = answer_spans(text)
    if spans == [(0, len(text))]:
        return text
    return "".join(text[begin:end] for begin, end in spans).strip()


def answer_rows(rows: Sequence[TokenLogprob]) -> list[TokenLogprob]:
    """The rows of a reply's tokens without those of its thoughts. A token that belongs to both keeps its share of the
    answer's characters."""
    text = "".join(row.token for row in rows)
    spans = answer_spans(text)
    return list(rows) if spans == [(0, len(text))] else list(_kept(rows, spans))


def _kept(rows: Sequence[TokenLogprob], spans: Sequence[Span]) -> Iterator[TokenLogprob]:
    at = first = 0
    for row in rows:
        begin, at = at, at + len(row.token)
        while first < len(spans) and spans[first][1] <= begin:
            first += 1
        parts: list[str] = []
        here = first
        while here < len(spans) and spans[here][0] < at:
            start, stop = spans[here]
            parts.append(row.token[max(start, begin) - begin : min(stop, at) - begin])
            here += 1
        left = "".join(parts)
        if left:
            yield row if left == row.token else replace(row, token=left)


def _begins_line(text: str, at: int) -> bool:
    before = text[max(0, at - _INDENT) : at].rpartition("\n")
    return not before[2].strip() and (bool(before[1]) or at <= _INDENT)


def _is_quoted(text: str, tag: re.Match[str]) -> bool:
    """Whether the tag stands between quotes, perhaps with a space or an escaped line break beside it."""
    before = text[max(0, tag.start() - 2) : tag.start()].rstrip(" ")[-1:]
    after = re.sub(r"^(?:\\[nrt]| )+", "", text[tag.end() : tag.end() + 8])[:1]
    return bool(before) and before in _QUOTES and bool(after) and after in _QUOTES


def _is_json(text: str) -> bool:
    """Whether `text` is one JSON object or array, fenced or not."""
    text = text.strip()
    if text.startswith("```") and text.endswith("```"):
        text = text[3:-3].removeprefix("json").strip()
    if text[:1] + text[-1:] not in ("{}", "[]"):
        return False
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True
