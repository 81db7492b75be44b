"""Reads the label in an explainer's reply, as JSON or as the line `LABEL:`, and cleans it. Replies cannot be trusted:
whatever comes back, what leaves here is one printable line of limited length, or a status."""

from __future__ import annotations

import json
import re
import unicodedata
from dataclasses import dataclass
from typing import Any

from autointerp.ask.explanation_row import MAX_LABEL
from autointerp.records import ExplanationStatus, Side

_SEARCHED = 20_000
"""JSON is looked for in this many characters at the end of a reply; a longer object holds no label."""


@dataclass(frozen=True)
class Label:
    """What was read from a reply. There is a text where status is 'ok', and none otherwise."""

    status: ExplanationStatus
    text: str | None = None
    side: Side | None = None
    """What the text describes, where the reply says so."""


_MARKER = re.compile(r"^[ \t>*_#`]*label[*_`]*[ \t]*:[*_`]*(.*)$", re.IGNORECASE | re.MULTILINE)
_SIDE = re.compile(
    r"^[ \t>*_#`]*side[*_`]*[ \t]*:[ \t*_`\"']*(input|output|both)(?:[^\S\n]|[*_`\"'.])*$", re.IGNORECASE | re.MULTILINE
)
_OBJECT = re.compile(r'\{(?=\s*")')
_URL = re.compile(r"\b(?:https?|ftp)://\S+|\bwww\.\S+", re.IGNORECASE)
_ABSTAINED = re.compile(
    r"(?:no (?:(?:clear|single|common|consistent|obvious|discernible) )?pattern|none|n/?a|unclear|cannot tell)\.?",
    re.IGNORECASE,
)


def parse_label(reply: str) -> Label:
    """The label in a reply, cleaned (see `clean_label`): the last JSON object with a "label", fenced or not, or the
    last `LABEL:` line, whichever comes later.

    Status 'abstained' where the LLM says that there is no pattern (in JSON also null), 'unparseable' where nothing
    holds a phrase.
    """
    lines = list(_MARKER.finditer(reply))
    found = _last_object(reply)
    if found is not None and (not lines or found[0] > lines[-1].start()):
        raw, side = found[1]["label"], found[1].get("side")
        if raw is None:
            return Label("abstained")
        return _label(raw, side if side in ("input", "output", "both") else None)
    if not lines:
        return Label("unparseable")
    sides = _SIDE.findall(reply)
    raw = lines[-1][1].rstrip()
    if raw.endswith("`") and raw.count("`") % 2 and lines[-1][0].count("`") % 2 == 0:
        raw = raw[:-1]  # the line is in backticks, not the label
    return _label(raw, sides[-1].lower() if sides else None)


def _label(raw: str, side: Side | None) -> Label:
    text = clean_label(raw)
    if not text:
        return Label("unparseable")
    if _ABSTAINED.fullmatch(text):
        return Label("abstained")
    return Label("ok", text, side)


def _last_object(reply: str) -> tuple[int, dict[str, Any]] | None:
    """The last outermost JSON object whose "label" is a string or null, as (where it ends, the object)."""
    begin = max(0, len(reply) - _SEARCHED)
    tail = reply[begin:]  # a decoder's error counts the lines of all that it was given
    decoder = json.JSONDecoder()
    last: tuple[int, dict[str, Any]] | None = None
    at = 0
    while (start := _OBJECT.search(tail, at)) is not None:
        at = start.end()
        try:
            value, end = decoder.raw_decode(tail, start.start())
        except (ValueError, RecursionError):  # no JSON, a number of thousands of digits, nested too deep
            continue
        if "label" in value and isinstance(value["label"], (str, type(None))):
            last, at = (begin + end, value), end
    return last


def clean_label(text: str) -> str:
    """`text` as one line of at most MAX_LABEL characters, without control characters, URLs, and the marks and quotes
    around it."""
    text = _URL.sub("", text)
    text = "".join(" " if c.isspace() else c for c in text if c.isspace() or unicodedata.category(c)[0] != "C")
    text = re.sub(r" +", " ", text).strip(" *_")
    if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'`" and text[0] not in text[1:-1]:
        text = text[1:-1].strip()
    if text.startswith("<") and text.endswith(">"):
        text = text[1:-1].strip()
    return shortened(text, MAX_LABEL)


def shortened(text: str, most: int) -> str:
    """`text`, or as many of its words as make at most `most` characters with an ellipsis."""
    if len(text) <= most:
        return text
    return text[: most - 1].rsplit(" ", 1)[0].rstrip(" ,;:") + "…"
