"""Reads an explainer's reply, as JSON or as lines, and cleans it: one label (`LABEL:`), or the meanings of both sides
(`INPUT:`, `OUTPUT:`, ...). Replies cannot be trusted: whatever comes back, a text that leaves here is one printable
line of limited length, or there is a status."""

from __future__ import annotations

import json
import math
import re
import unicodedata
from collections.abc import Mapping, Sequence
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
    output_text: str | None = None
    """What the feature makes the model say; the text itself where the side is 'output'."""
    second_text: str | None = None
    """A second meaning of the input side."""
    share: float | None = None
    """The share of the feature's active places that the text covers, 0..1."""
    second_share: float | None = None
    error: str | None = None
    """Why nothing could be read, where more is known than that."""


_MARKER = re.compile(r"^[ \t>*_#`]*label[*_`]*[ \t]*:[*_`]*(.*)$", re.IGNORECASE | re.MULTILINE)
_SIDE = re.compile(
    r"^[ \t>*_#`]*side[*_`]*[ \t]*:[ \t*_`\"']*(input|output|both)(?:[^\S\n]|[*_`\"'.])*$", re.IGNORECASE | re.MULTILINE
)
_FIELD_LINE = re.compile(
    r"^[ \t>*_#`-]*(input|output|second share|second|share)[*_`]*[ \t]*:[*_`]*(.*)$", re.IGNORECASE | re.MULTILINE
)
_NUMBER = re.compile(r"(?<![-0-9.,])([0-9]{1,9}(?:[.,][0-9]{1,9})?)")
_OBJECT = re.compile(r'\{(?=\s*")')
_URL = re.compile(r"\b(?:https?|ftp)://\S+|\bwww\.\S+", re.IGNORECASE)
_ABSTAINED = re.compile(
    r"(?:no (?:(?:clear|single|common|consistent|obvious|discernible) )?pattern|none|null|n/?a|unclear|cannot tell)\.?",
    re.IGNORECASE,
)


def parse_label(reply: str) -> Label:
    """The label in a reply, cleaned (see `clean_label`): the last JSON object with a "label", fenced or not, or the
    last `LABEL:` line, whichever comes later.

    Status 'abstained' where the LLM says that there is no pattern (in JSON also null), 'unparseable' where nothing
    holds a phrase.
    """
    lines = list(_MARKER.finditer(reply))
    found = _last_object(reply, ("label",))
    if found is not None and (not lines or found[0] > lines[-1].start()):
        raw, side = found[1]["label"], found[1].get("side")
        if raw is None:
            return Label("abstained")
        return _label(raw, side if side in ("input", "output", "both") else None)
    if not lines:
        return Label("unparseable")
    sides = _SIDE.findall(reply)
    return _label(_of_line(lines[-1]), sides[-1].lower() if sides else None)


def parse_meanings(reply: str) -> Label:
    """The meanings in a reply, cleaned: the last JSON object with an "input" or "output", or the last lines `INPUT:`,
    `SHARE:`, `SECOND:`, `SECOND SHARE:` and `OUTPUT:`, whichever come later; the lines may be in any order and some may
    be missing. The text is the input side and, where there is none, the output side. A reply in the form of
    `parse_label`, as a template of somebody's own may ask for it, is read as that.

    Status 'abstained' where neither side has a phrase, 'unparseable' where no form is there.
    """
    block = _last_block(reply)
    found = _last_object(reply, ("input", "output"))
    label = _last_object(reply, ("label",))
    old = max([m.start() for m in _MARKER.finditer(reply)] + [label[0] if label else -1])
    newest = max((one for one in (block, found) if one is not None), key=lambda one: one[0], default=None)
    if newest is None or old > newest[0]:
        return parse_label(reply)
    return _meanings(newest[1])


def _meanings(fields: Mapping[str, Any]) -> Label:
    first, second, output = (phrase_of(fields.get(name)) for name in ("input", "second", "output"))
    share, second_share = _shares(fields.get("share"), fields.get("second_share"))
    if first is None:
        first, share, second, second_share = second, second_share, None, None
    if second is None or (first or "").lower() == second.lower():
        second, second_share = None, None
    if share is not None and share + (second_share or 0.0) > 1.0 + 1e-9:
        share, second_share = None, None  # no shares of one whole
    if first is None:
        if output is None:
            return Label("abstained")
        return Label("ok", output, "output", output_text=output)
    if output is not None and output.lower() == first.lower():
        output = None
    return Label("ok", first, "input", output, second, share, second_share)


def phrase_of(raw: Any) -> str | None:
    """The phrase, cleaned (see `clean_label`), or None where the LLM says that there is none."""
    text = clean_label(raw) if isinstance(raw, str) else ""
    return None if not text or _ABSTAINED.fullmatch(text) else text


def _shares(*told: Any) -> list[float | None]:
    """Shares from 0 to 1 of the meanings of one reply; None where one is no number or too large.

    Percent are asked for, so 1 means 1 %. Some LLMs write shares all the same. A number is taken for a share where it
    has decimals and is at most 1, and where all that are told sum up to 1; never where it is said to be percent.
    """
    numbers = [_number(raw) for raw in told]
    are_shares = math.isclose(sum(n.value for n in numbers), 1.0, abs_tol=1e-9)

    def share(n: _Number) -> float:
        is_share = not n.is_percent and (are_shares or (n.has_decimals and n.value <= 1))
        return n.value if is_share else n.value / 100

    return [value if 0 <= value <= 1 else None for value in map(share, numbers)]


@dataclass(frozen=True, slots=True)
class _Number:
    value: float
    """nan where there is none."""
    is_percent: bool = False
    has_decimals: bool = False


def _number(raw: Any) -> _Number:
    if isinstance(raw, str) and (found := _NUMBER.search(raw)):
        is_percent = "%" in raw or "percent" in raw.lower()
        return _Number(float(found[1].replace(",", ".")), is_percent, not found[1].isdigit())
    is_number = isinstance(raw, (int, float)) and not isinstance(raw, bool)
    if is_number and abs(raw) <= 100:  # an integer of JSON may be too large for a float
        return _Number(float(raw), has_decimals=isinstance(raw, float))
    return _Number(math.nan)


def _last_block(reply: str) -> tuple[int, dict[str, str]] | None:
    """The last lines `INPUT:`, `OUTPUT:` and their like that stand together, as (where they begin, the values by name).
    Blank lines may stand between them. A name that comes again begins a new answer."""
    last: tuple[int, dict[str, str]] | None = None
    current: dict[str, str] = {}
    at = end = 0
    for line in _FIELD_LINE.finditer(reply):
        name = "_".join(line[1].lower().split())
        if name in current or reply[end : line.start()].strip(" \t\r\n>*_#`"):
            current, at = {}, line.start()
        current[name], end = _of_line(line, 2), line.end()
        if "input" in current or "output" in current:
            last = (at, current)
    return last


def _of_line(line: re.Match[str], group: int = 1) -> str:
    """What stands after the marker."""
    raw = line[group].rstrip()
    if raw.endswith("`") and raw.count("`") % 2 and line[0].count("`") % 2 == 0:
        raw = raw[:-1]  # the line is in backticks, not the label
    return raw


def _label(raw: str, side: Side | None) -> Label:
    text = clean_label(raw)
    if not text:
        return Label("unparseable")
    if _ABSTAINED.fullmatch(text):
        return Label("abstained")
    return Label("ok", text, side)


def _last_object(reply: str, names: Sequence[str]) -> tuple[int, dict[str, Any]] | None:
    """The last outermost JSON object with one of the names, each a string or null, as (where it ends, the object)."""
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
        told = [value[name] for name in names if name in value]
        if told and all(isinstance(one, (str, type(None))) for one in told):
            last, at = (begin + end, value), end
    return last


def clean_label(text: str) -> str:
    """`text` as one line, without control characters, URLs, and the marks and quotes around it; as many of its words as
    make at most MAX_LABEL characters."""
    text = _URL.sub("", text)
    text = "".join(" " if c.isspace() else c for c in text if c.isspace() or unicodedata.category(c)[0] != "C")
    text = re.sub(r" +", " ", text).strip(" *_")
    if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'`" and text[0] not in text[1:-1]:
        text = text[1:-1].strip()
    if text.startswith("<") and text.endswith(">"):
        text = text[1:-1].strip()
    return text if len(text) <= MAX_LABEL else text[: MAX_LABEL - 1].rsplit(" ", 1)[0].rstrip(" ,;:") + "…"
