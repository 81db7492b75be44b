"""Every reader of LLM replies on thousands of replies: only its own error, and never a wrong value.

Each test asks two things of one reader, on 10,000 examples drawn as bytes, every byte a choice (which is cheap, and
shrinks to few and first choices):

    garbage  pieces of real replies in any order (brackets, numbers, JSON, markers, fences, control characters, line
             breaks, surrogates) are a value of the promised shape, or the reader's own error
    a reply  the same answer in one of the ways in which LLMs write it, amid words that are no answer, is that answer
"""

from __future__ import annotations

import json
import math
import os
import random
import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from support.llm_helpers import chat, completion, embedding

from autointerp.ask.chat import ReplyError
from autointerp.ask.explanation_row import MAX_LABEL
from autointerp.ask.prompts import one_line
from autointerp.explain.label_replies import Label, parse_label
from autointerp.llm.endpoint_errors import BadReplyError
from autointerp.llm.replies import (
    Envelope,
    Usage,
    load_json,
    read_envelope,
    read_logprobs,
    read_usage,
    storable_reply,
)
from autointerp.llm.requests import Request, TokenLogprob
from autointerp.llm.transport import error_in_ok_reply
from autointerp.score.detection_questions import read_answers
from autointerp.score.generation import MAX_TEXT, Texts, read_texts
from autointerp.score.intruder import read_place
from autointerp.score.output import read_choice
from autointerp.score.simulation_replies import expected_numbers, read_lines, read_prompt_logprobs

T = TypeVar("T")
EXAMPLES = int(os.environ.get("AUTOINTERP_FUZZ_EXAMPLES", "500"))


class Dice:
    """Choices made by bytes; the first one of each kind where there are no bytes left."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def roll(self, n: int) -> int:
        """From 0 to n - 1."""
        self._at += 1
        return self._data[self._at - 1] % n if self._at <= len(self._data) else 0

    def pick(self, options: Sequence[T]) -> T:
        return options[self.roll(len(options))]

    def some(self, options: Sequence[T], most: int) -> list[T]:
        return [self.pick(options) for _ in range(self.roll(most + 1))]

    def text(self, options: Sequence[str], most: int) -> str:
        return "".join(self.some(options, most))

    def shuffled(self, items: Sequence[T]) -> list[T]:
        left = list(items)
        return [left.pop(self.roll(len(left))) for _ in items]


def of_bytes(test: Callable[[bytes], None]) -> Callable[[], None]:
    chosen = settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate, Phase.shrink],
    )
    return chosen(given(st.binary(min_size=48, max_size=48))(test))


# --- pieces of replies -----------------------------------------------------------------------------------------------

SPACES = ["", " ", "\n", "\t", "\r\n", "\n\n", "  ", " \n ", "\x0b", "\x1c", "\x85", "\u2028", "\u2029", "\xa0", "\r"]
PIECES = [
    *SPACES, "[", "]", "{", "}", "(", ")", ",", ":", ".", "-", '"', "'", "`", "*", "#", "|", "=", ">", "<", "\\", "?",
    "0", "1", "2", "3", "7", "9", "10", "11", "42", "-1", "0.5", "1e3", "1e400", "NaN", "Infinity", "٣", "１", "²",
    "true", "false", "null", "none", "no pattern", "[1, 0, 1]", "[0]", "[1,", ", 0]", "[3]", "[[", "]]",
    '{"label": ', '{"label": "x"}', '"side": "input"', '{"answer": ', '{"answer": 2}', '{"answer": "3"}', "}}", '{"',
    '{"active": ["a", "b"], "silent": ["c", "d"], "lookalike": ["e", "f"]}', '{"active": [', '"], "silent": ["',
    '"], "lookalike": ["', '": "', '", "', "\\ud800",
    "\\u0000", "\\", "LABEL:", "\nLABEL: ", "**Label:** ", "\nSIDE: both\n", "label", "ANSWER: ", "answer is ",
    "Excerpt ", "```", "```json\n", "\n```\n", '" the"\t', '" the"\t3\n', '" alpha"\t0\n', " the\t", "\t3\n", "\t10\n",
    "Sure! Here it is:\n", "Hope this helps.", "the word ", "word " * 80, "https://x.y/z", "\x00", "\x07", "\x1b[31m",
    "\u202e", "\u200b", "\ufeff", "\ud800", "\udc00", "\U0001f642", "é", "東",
]  # fmt: skip
HUGE = [
    "7" * 5000,
    "[" * 3000,
    '{"a":' * 3000,
    '{"answer":' * 3000,
    '"' + "x" * 9000,
    " " * 9000,
    "\n" * 9000,
    "{" * 9000,
]
NO_ANSWER = [
    "", "Let me think. ", "In 2 of 3 excerpts, ", "so-called {braces}, ", 'the word "the", ', "{", '{"a": 1} ', "1. ",
    "(see below) ", "\n", " \n\n", "\u2028", "```\n", "```json\n", "**", "é\ud800 ", "\x00", "\u200b", "0 or 1; ",
    "my choice: ", "> ", "<think>\nhm\n</think>\n", "word " * 30, "\\", '{"note": "none"}\n', "1, 0. ", "\t", "}",
]  # fmt: skip
"""What may stand before an answer and is none by any reader's rules (pieces that a reader takes are left out there)."""
BEFORE = ["", "```json\n", "```\n", "Sure! Here it is:\n\n", "<think>It says 3, or [2].\n</think>\n", "\n \t\n", "> "]
AFTER = ["", "\n```", "\n\n", "\nHope this helps!", "\n(It was not easy.)", "\r\n", "\u2028"]


def garbage(data: bytes) -> str:
    dice = Dice(data)
    rare = [dice.pick(HUGE)] if dice.roll(256) == 255 else []
    return "".join(dice.shuffled([*dice.some(PIECES, 14), *rare]) if rare else dice.some(PIECES, 14))


def own_statuses(read: Callable[[], T], *statuses: str) -> T | None:
    try:
        return read()
    except ReplyError as error:
        assert error.status in statuses and len(str(error)) < 1000
        return None


def as_json(dice: Dice, value: Any) -> str:
    """One of the ways of writing a value as JSON."""
    return json.dumps(
        value,
        indent=dice.pick([None, None, 2, "\t"]),
        separators=dice.pick([None, (",", ":"), (" , ", " : ")]),
        ensure_ascii=dice.pick([True, False]),
    )


# --- labels ----------------------------------------------------------------------------------------------------------

WORDS = [
    "the word", "names of", "quoted “text”", '"the"', "a:b", "{x}", "1969", "Zoë", "東京", "after a comma,", "label",
    "don't", "<b> tags", "x = y", "[brackets]", "side: input", "no pattern", "`a`", "none of", "🙂", "a\\b",
]  # fmt: skip
ABSTAINING = ["no pattern", "No pattern.", "none", "N/A", "no clear pattern", "Unclear", "no consistent pattern."]


@of_bytes
def test_labels(data: bytes) -> None:
    found = parse_label(garbage(data))
    assert found.status in ("ok", "abstained", "unparseable") and found.side in (None, "input", "output", "both")
    assert (found.status == "ok") == (found.text is not None) and (found.side is None or found.text is not None)
    if found.text is not None:
        assert 0 < len(found.text) <= MAX_LABEL and found.text == found.text.strip()
        assert not any(unicodedata.category(c)[0] == "C" or c in "\u2028\u2029" for c in found.text)

    dice = Dice(data)
    text = " ".join(["words", *dice.some(WORDS, 5), "here"])
    abstains = dice.roll(5) == 0
    written = dice.pick(ABSTAINING) if abstains else text
    side = dice.pick(["both", "input", "output", None])
    old = dice.pick(["", "LABEL: an older one\n", '{"label": "older", "side": "both"}\n', "LABEL:\n"])
    reply = dice.text(NO_ANSWER, 4) + "\n" + old + dice.text(NO_ANSWER, 3)
    reply += label_as_json(dice, written, side) if dice.roll(2) else label_as_line(dice, written, side)
    reply += dice.pick(AFTER)
    expected = Label("abstained") if abstains else Label("ok", text, side)
    assert parse_label(reply) == expected


def label_as_json(dice: Dice, written: str, side: str | None) -> str:
    fields = {"why": 'it says "label: x"', "label": written, **({} if side is None else {"side": side})}
    names = dice.shuffled(list(fields))
    return as_json(dice, {name: fields[name] for name in names})


def label_as_line(dice: Dice, written: str, side: str | None) -> str:
    line = dice.pick(
        ["LABEL: {}", "Label: {}", "**LABEL:** {}", "**Label**: {}", "> LABEL: {}", "## label : {}", "**LABEL: {}**",
         "LABEL:{}", "LABEL:\t{} \r", "LABEL: <{}>", "`LABEL: {}`", "`LABEL:` {}", "LABEL: **{}**", "LABEL: _{}_",
         "LABEL: {} https://a.b/c?d=1", "LABEL: \u201c{}\u201d", "LABEL: {}\x00", "LABEL: \u200b{}"]
    )  # fmt: skip
    if "\u201c" in line and '"' not in written:
        line = 'LABEL: "{}"'
    said = line.replace("\u201c", "").replace("\u201d", "").replace("{}", written)
    if side is None:
        return f"\n{said}"
    where = dice.pick(["SIDE: {}", "**Side:** {}", "side: `{}`", "> SIDE : {}."]).replace("{}", side)
    return dice.pick([f"\n{where}\n{said}", f"\n{said}\n{where}"])


# --- yes or no -------------------------------------------------------------------------------------------------------


@of_bytes
def test_answers(data: bytes) -> None:
    for count in (1, 3):
        found = own_statuses(partial(read_answers, garbage(data), count), "no_answer", "answer_count")
        assert found is None or (len(found) == count and all(type(said) is bool for said in found))

    dice = Dice(data)
    said = [dice.roll(2) == 1 for _ in range(1 + dice.roll(6))]
    one, zero = dice.pick([("1", "0"), ("true", "false"), ("True", "False"), ('"1"', '"0"'), (" 1 ", "\n0")])
    between = dice.pick([", ", ",", ",\n  ", " ,\t", ",\u2028"])
    array = "[" + dice.pick(SPACES) + between.join(one if s else zero for s in said)
    array += dice.pick(["", ",", ",\n"]) + dice.pick(SPACES) + "]"
    wrapped = dice.pick(["{}", '{"answers": {}}', '{"why": "-", "answers":{}}', "**{}**", "`{}`", "ANSWER: {}."])
    before = dice.text([*NO_ANSWER, "[2] says so. ", "[1, 0]: no. ", "[yes, no]\n\n Or rather ", "I see [x, 0]. "], 6)
    after = dice.pick([*AFTER, "\n(excerpt [2] was hard)", " since [a, b] are"])
    reply = before + wrapped.replace("{}", array) + after
    assert read_answers(reply, len(said)) == said
    for other in (len(said) + 1, len(said) - 1):
        with pytest.raises(ReplyError):
            read_answers(reply, other)


# --- simulated activations -------------------------------------------------------------------------------------------

TOKENS = [
    " the",
    " alpha",
    "a",
    "\n",
    '"',
    "3",
    " 3",
    "\t3",
    "```",
    "\\",
    "{",
    "é",
    "\u2028",
    "",
    ":",
    "|",
    "東",
    "\ud800",
]
LINE_PIECES = [*PIECES, '" the"\t3\n', '" alpha"\t0\n', '" the": 3\n', '"a" | 10\n', "a\t2\n", '"a"\t2.5\n', "\t", "\n"]


@of_bytes
def test_numbers(data: bytes) -> None:
    said = Dice(data).text(LINE_PIECES, 14)
    shown = [" the", " alpha", "a"][: 1 + data[-1] % 3]
    found = own_statuses(lambda: read_lines(said, shown), "token_count", "token_mismatch", "bad_number")
    if found is not None:
        assert len(found) == len(shown) and all(0.0 <= line.number <= 10.0 for line in found)
        assert all(float(said[line.at : line.at + len(line.digits)]) == line.number for line in found)

    dice = Dice(data)
    tokens = [dice.pick(TOKENS) for _ in range(1 + dice.roll(8))]
    numbers = [dice.pick(["0", "1", "7", "10", "3.5", "0.25", "10.0"]) for _ in tokens]
    write = dice.pick([one_line, json.dumps])
    between = dice.pick(["\t", ": ", " | ", " = ", ":", "=", "  ", "\t\t"])
    end = dice.pick(["\n", "\r\n", "\n\n", " \n", "\t\n"])
    lines = [write(t) + between + n + end for t, n in zip(tokens, numbers, strict=True)]
    reply = dice.pick(["", "\n", "```\n", "```json\n"]) + "".join(lines) + dice.pick(["", "\n", "```", "```\n"])
    read = read_lines(reply, tokens)
    assert [line.number for line in read] == [float(n) for n in numbers]
    assert [reply[line.at : line.at + len(line.digits)] for line in read] == numbers
    with pytest.raises(ReplyError):
        read_lines(reply, [*tokens, "a"])


def test_numbers_after_tokens_as_they_are() -> None:
    text = "a:\t3\nb|\t0\n:\t1\n =\t10\nc: 2\n[[\t5"
    assert [line.number for line in read_lines(text, ["a:", "b|", ":", " =", "c", "[["])] == [3, 0, 1, 10, 2, 5]


ALTERNATIVES = [
    "0",
    "1",
    "3",
    "7",
    "9",
    "10",
    " 1",
    "\t3",
    "11",
    "05",
    "-1",
    "x",
    "",
    "٣",
    "²",
    "7" * 5000,
    "10 ",
    "1\n",
]


def top_of(dice: Dice, options: Sequence[str], most: int = 5) -> list[tuple[str, float]]:
    """Different alternatives with some probability each."""
    return [(token, dice.pick([0.5, 0.25, 0.1, 1e-9])) for token in dict.fromkeys(dice.some(options, most))]


def row(token: str, top: Sequence[tuple[str, float]]) -> TokenLogprob:
    return TokenLogprob(token, -0.5, tuple((text, math.log(p)) for text, p in top))


def mean_number(top: Sequence[tuple[str, float]], largest: int) -> float:
    """Expected value over the spellings of the numbers from 0 to `largest`, from the definition."""
    mass = [(n, p) for text, p in top for n in range(largest + 1) if text.strip() == str(n)]
    return sum(n * p for n, p in mass) / sum(p for _, p in mass)


@of_bytes
def test_generated_logprobs(data: bytes) -> None:
    dice = Dice(data)
    top = tuple((dice.pick(ALTERNATIVES), dice.pick([0.0, -0.5, -1e9, -math.inf, math.inf, 7.0])) for _ in range(3))
    parts = dice.some(['"a"', "\t", "3", "1", "0", "\t3", "10", "\n", "", " ", ".5", '"a"\t3\n', "7" * 5000, "x"], 9)
    rows = [TokenLogprob(part, -0.5, top[: dice.roll(4)]) for part in parts]
    text = dice.pick(["{}", "{}", "{} ", "\n{}"]).replace("{}", "".join(parts))
    text = text.strip() if dice.roll(2) else text

    def expected() -> list[float]:
        return expected_numbers(text, rows, read_lines(text, ["a"]))

    found = own_statuses(expected, "token_count", "token_mismatch", "bad_number", "no_logprobs")
    assert found is None or (len(found) == 1 and 0.0 <= found[0] <= 10.0)

    dice = Dice(data)
    split_ten = dice.roll(2) == 0
    tokens = [dice.pick(["a", " the", "10", "\n"]) for _ in range(1 + dice.roll(4))]
    rows, wanted = [], []
    for token in tokens:
        said = dice.pick(["0", "1", "7", "9"] if split_ten else ["0", "1", "7", "10"])
        space = dice.pick(["", " ", "\t"])
        rows += [row(part, [(part, 0.5)]) for part in (one_line(token), "" if space == "\t" else "\t")]
        if not split_ten:
            # The tokenizer writes 10 as one token: it is seen among the alternatives.
            alternatives = [(said, 0.3), ("10 ", 1e-6), *((t, p) for t, p in top_of(dice, ALTERNATIVES) if t != said)]
            rows.append(row(space + said, alternatives))
            wanted.append(mean_number(alternatives, 10))
        else:
            plain = [t for t in ALTERNATIVES if t.strip() not in ("10", "1", said)]
            alternatives = [(said, 0.3), *top_of(dice, plain)]
            one = dice.pick([0.0, 0.2])
            if said != "1" and one:
                alternatives.append(("1", one))
            rows.append(row(space + said, alternatives))
            if said == "1":
                # Whether a 0 follows is said by the next row: it is 1 so far as something else follows.
                ends = dice.pick([("\n", "0", 0.25), ("0", "\n", 0.75)])
                of_ten = 0.25 if ends[0] == "\n" else 0.75
                rows.append(row(ends[0], [(ends[0], 0.75), (ends[1], 0.25)]))
                share = [(t, p * (1 - of_ten) if t.strip() == "1" else p) for t, p in alternatives]
                wanted.append(mean_number([*share, ("10", 0.3 * of_ten)], 10))
            else:
                ten = said in ("7", "9")  # nearer to 10 than to 1
                wanted.append(mean_number([("10" if t == "1" and ten else t, p) for t, p in alternatives], 10))
        rows.append(row("\n", [("\n", 0.9)]))
    text = "".join(r.token for r in rows)
    text = text.strip() if dice.roll(2) else text
    assert expected_numbers(text, rows, read_lines(text, tokens)) == pytest.approx(wanted)
    with pytest.raises(ReplyError):
        expected_numbers(text + "\n\n\n", rows, read_lines(text, tokens))


@of_bytes
def test_prompt_logprobs(data: bytes) -> None:
    dice = Dice(data)
    top = tuple((dice.pick(ALTERNATIVES), dice.pick([0.0, -0.5, -1e9, -math.inf, math.inf, 7.0])) for _ in range(3))
    parts = dice.some(["\n", "?", "\t", "\t?", '"a"\t?\n', "", "\ufffd", " ", "x", "?\n", "\n\t?"], 12)
    rows = [TokenLogprob(part, None, top[: dice.roll(4)]) for part in parts]
    found = own_statuses(
        lambda: read_prompt_logprobs(rows, 1 + dice.roll(2)), "token_count", "token_mismatch", "no_logprobs"
    )
    assert found is None or (1 <= len(found) <= 2 and all(0.0 <= n <= 10.0 for n in found))

    dice = Dice(data)
    tokens = [dice.pick(TOKENS) for _ in range(1 + dice.roll(5))]
    rows = [
        row(part, [])
        for part in ("<s>", "Activations? ", "1\n", '"x"', "\t", "?", "\n", "\n", "label:", ' "a\\t?"', "\n")
    ]
    wanted = []
    for token in tokens:
        written = one_line(token).replace("é", "\ufffd\ufffd")
        cut = dice.roll(len(written) + 1)
        rows += [row(written[:cut], [("3", 1.0)]), row(written[cut:], [("4", 1.0)])]
        alternatives = [
            (dice.pick(["0", "9", "5"]), 0.4),
            *top_of(dice, ["1", " 2", "\t3", "10", "x", "?", "7" * 5000, "²"]),
        ]
        wanted.append(mean_number(alternatives, 9) * 10 / 9)
        tab, end = dice.roll(2) == 1, dice.roll(2) == 1
        if tab:
            rows.append(row("\t", [("8", 1.0)]))
        rows.append(row(("" if tab else "\t") + "?" + ("\n" if end else ""), alternatives))
        if not end:
            rows.append(row("\n", [("6", 1.0)]))
    rows += [row(part, [("2", 1.0)]) for part in dice.pick([[], ["\n"], ["", ""], [" "]])]
    assert read_prompt_logprobs(rows, len(tokens)) == pytest.approx(wanted)
    with pytest.raises(ReplyError):
        read_prompt_logprobs([replace(r, token=r.token.replace("?", "3")) for r in rows], len(tokens))


# --- which excerpt, which label --------------------------------------------------------------------------------------


@of_bytes
def test_places(data: bytes) -> None:
    reply = garbage(data)
    found = own_statuses(lambda: read_place(reply, 5), "no_answer", "out_of_range")
    assert found is None or (type(found) is int and 0 <= found < 5 and str(found + 1) in reply)

    dice = Dice(data)
    place = dice.roll(9)
    before = dice.text(
        ["Excerpt 2 is about ships.\n", "[1] and [4] are not.\n", "1\n", "ANSWER: 2\n", "In 3, 4 and 5: a colon.\n",
         "\n", "é\ud800\n", "The answer is not 3\n", '{"a": 1}\n', "```\n", "1, 2\n", "2.5\n", "-3\n", "Is it 4?\u2028",
         "{\n"],
        5,
    )  # fmt: skip
    said = dice.pick(
        ["{}", "{}.", "[{}]", "[ {} ]", "`{}`", "**{}**", '"{}"', "#{}", "Excerpt {}", "[\n {}\n]", "ANSWER: {}",
         "**ANSWER:** {}", "Answer: **{}**.", "answer = {}", "The answer is {}.", "So the answer is excerpt {}.",
         '{"answer": {}}', '{"answer": "{}"}', '{"why": "[2]", "answer":{}}', '{\n  "answer": {}\n}', "\tANSWER:\t{}",
         "> ANSWER: [{}]", "Final answer: #{}", '```json\n{"answer": [{}]}']
    )  # fmt: skip
    after = dice.pick([*AFTER[:-1], "\nExcerpt 2 came close.", "\n[1], [3]: no", "\u2028\n", "\n2 of them are"])
    assert read_place(before + said.replace("{}", str(place + 1)) + after, 9) == place
    if place:
        with pytest.raises(ReplyError):
            read_place(before + said.replace("{}", str(place + 1)) + after, place)


@of_bytes
def test_choices(data: bytes) -> None:
    reply = garbage(data)
    found = own_statuses(lambda: read_choice(reply, 3), "no_answer")
    assert found is None or (type(found) is int and 0 <= found < 3 and str(found + 1) in reply)

    dice = Dice(data)
    choice = dice.roll(12)
    number = str(choice + 1)
    if dice.roll(3) == 0:
        said = dice.pick(["{}", " {}\n", "**{}**", "`{}`", '"{}"', "{}.", "\t{}\u2028", "'{}'."])
        reply = said.replace("{}", number)
    else:
        value: Any = dice.pick([choice + 1, number, f" {number} ", f"{number}."])
        fields = {"why": 'it is {"answer": 3}', "answer": value, "sure": True}
        answer = as_json(dice, {name: fields[name] for name in dice.shuffled(list(fields))})
        before = dice.text([*NO_ANSWER, '{"answer": 2}\n', '{"answer": null} ', '{"answer": {'], 5)
        reply = before + answer + dice.pick([*AFTER, " {", '\n{"a": 1}', " }", '\n{"answer'])
    assert read_choice(reply, 12) == choice
    if choice:
        with pytest.raises(ReplyError):
            read_choice(reply, choice)


@pytest.mark.parametrize(
    "reply", [".3", "0.3", "-3", "3.5", "3 or 1", "3e0", "+3", "²", "٣", '{"answer": ".3"}', '{"answer": 3.0}']
)
def test_what_is_no_choice(reply: str) -> None:
    with pytest.raises(ReplyError):
        read_choice(reply, 5)


# --- written texts ---------------------------------------------------------------------------------------------------

WRITTEN = [
    "the cat", "{", "}", '"', "\\", '{"active": ["x"], "silent": ["y"]}', "\n", "\t", "é", "東", "\ud800", "\x00", " ",
    "def f():\n    return {}", "[1]", "\x1b", "\u2028", "```", "word " * 120,
]  # fmt: skip


@of_bytes
def test_texts(data: bytes) -> None:
    found = own_statuses(lambda: read_texts(garbage(data), 2), "no_sentences", "sentence_count")
    if found is not None:
        assert len(found.active) == len(found.silent) == len(found.lookalike) == 2
        every = found.asked.texts
        assert all(0 < len(text) <= MAX_TEXT and text == text.strip() for text in every)
        assert not re.search("[\ud800-\udfff\x00-\x08]", "".join(every))

    dice = Dice(data)
    count = 1 + dice.roll(3)
    kinds = [["a" + dice.text(WRITTEN, 3) for _ in range(count)] for _ in range(3)]
    fields: dict[str, Any] = {"active": kinds[0], "silent": kinds[1], "lookalike": kinds[2], "note": "{"}
    answer = as_json(dice, {name: fields[name] for name in dice.shuffled(list(fields))})
    before = dice.text(
        [*NO_ANSWER, '{"active": ["old"], "silent": ["older"], "lookalike": []}\n', '{"active": [{', '{"active": 1} '],
        5,
    )
    reply = before + answer + dice.pick([*AFTER, " {", '\n{"a": 1}', " }", '\n{"active": ["'])
    assert read_texts(reply, count) == Texts(*([fit(text) for text in kind] for kind in kinds))
    with pytest.raises(ReplyError):
        read_texts(reply, count + 1)


def fit(text: str) -> str:
    return re.sub("[\ud800-\udfff\x00-\x08\x0b-\x1f\x7f-\x9f]", "", text).strip()[:500].rstrip()


# --- the endpoint's JSON ---------------------------------------------------------------------------------------------


def nested(depth: int) -> Any:
    value: Any = []
    for _ in range(depth):
        value = [value]
    return value


_ODD: list[Any] = [
    None, True, False, 0, 1, -1, 2.5, 10**400, -(10**400), 1e308, math.inf, -math.inf, math.nan, "", "x", "7",
    "\ud800", "1e5", [], {}, [None], [[]], [{}], {"a": 1}, [1, "x"], {"token": "a"}, "length",
    {"message": "m\ud800", "code": 429}, [{"text": {"a": 1}}], ["x"], [{"text": 3}], "error", "content_filter",
    [0.5, None], nested(300), {"logprob": 10**400, "token": "a"},
]  # fmt: skip
ODD = [json.dumps(value) for value in _ODD]


def written_rows(dice: Dice) -> list[dict[str, Any]]:
    return [
        {"token": dice.pick(["a", " 1", "\ud800"]), "logprob": -0.5, "bytes": [1],
         "top_logprobs": [{"token": t, "logprob": -lp, "bytes": [2]} for lp, t in enumerate(dice.some(["a", "b"], 2))]}
        for _ in range(1 + dice.roll(2))
    ]  # fmt: skip


def endpoints_reply(dice: Dice, kind: str) -> dict[str, Any]:
    """A reply as servers send them."""
    usage = {"prompt_tokens": 5, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 1}, "cost": 0.5}
    head = {"id": "x", "model": "m", "usage": usage, "error": None}
    if kind == "embeddings":
        return {**head, "data": [{"index": i, "embedding": [0.5, -1]} for i in range(2)]}
    prompt_rows = [None, {"7": {"logprob": -0.25, "rank": 1, "decoded_token": "p"}, "8": {"logprob": -1}}]
    choice: dict[str, Any] = {"index": 0, "finish_reason": "stop"}
    if kind == "chat":
        content: Any = dice.pick(["text", [{"type": "text", "text": "te"}, {"type": "text", "text": "xt"}]])
        choice["message"] = {"role": "assistant", "content": content, "refusal": None}
        choice["logprobs"] = {"content": written_rows(dice), "refusal": None}
        return {**head, "choices": [choice], "prompt_logprobs": prompt_rows}
    tops = [None, {"p": -0.5}, {"a": -0.5, "b": -1.5}]
    choice["text"] = "pqa"
    choice["logprobs"] = {
        "tokens": ["p", "q", "a"], "token_logprobs": [None, -0.5, -0.75], "top_logprobs": tops, "text_offset": [0, 1, 2]
    }  # fmt: skip
    return {**head, "choices": [{**choice, "prompt_logprobs": prompt_rows}]}


def slots(value: Any, depth: int = 8) -> list[tuple[Any, Any]]:
    """(container, key) of everything inside of `value`, down to a depth."""
    found: list[tuple[Any, Any]] = []
    pairs = (
        list(value.items()) if isinstance(value, dict) else list(enumerate(value)) if isinstance(value, list) else []
    )
    for key, inner in pairs:
        found += [(value, key), *(slots(inner, depth - 1) if depth else [])]
    return found


REQUESTS = {
    "chat": chat(logprobs=True, top_logprobs=2),
    "completions": completion("pq", echo=True, logprobs=2),
    "embeddings": embedding("a", "b"),
}


def check_envelope(request: Request, payload: Any) -> Envelope | None:
    """The envelope of any JSON, its shape checked, or None where it was refused with our own error."""
    assert error_in_ok_reply(payload) in (None, 401, 402, 403, 429)
    if (usage := read_usage(payload)) is not None:
        counts = (usage.input_tokens, usage.cached_tokens, usage.output_tokens)
        assert all(type(count) is int and 0 <= count < 2**63 for count in counts) and counts[0] >= counts[1]
        assert sum(counts) > 0 or usage.cost_usd, "what states neither tokens nor a cost is no usage"
        assert usage.cost_usd is None or (type(usage.cost_usd) is float and 0.0 <= usage.cost_usd < math.inf)
    try:
        envelope = read_envelope(request, payload, "raw")
    except BadReplyError as error:
        assert error.raw == "raw" and str(error).isprintable()
        return None
    assert envelope.status in ("ok", "refused", "filtered", "truncated")
    assert (envelope.status == "ok") == (envelope.error is None)
    assert not re.search("[\ud800-\udfff]", envelope.text + (envelope.error or ""))
    if request.kind == "embeddings":
        vectors = envelope.vectors
        assert vectors is not None and len(vectors) == 2 and len(vectors[0]) == len(vectors[1]) > 0
        assert all(type(x) is float and abs(x) < 3.5e38 for vector in vectors for x in vector)
    for rows in read_logprobs(request, envelope):
        assert rows is None or all(type(r) is TokenLogprob and type(r.token) is str for r in rows)
        shown = [*((r.token, r.logprob) for r in rows or ()), *(pair for r in rows or () for pair in r.top)]
        assert all(type(t) is str and (lp is None or lp == lp) for t, lp in shown)
    return envelope


@of_bytes
def test_envelopes(data: bytes) -> None:
    dice = Dice(data)
    kind = dice.pick(["chat", "completions"])
    request = REQUESTS[kind]
    whole = endpoints_reply(dice, kind)
    envelope = check_envelope(request, whole)
    assert envelope is not None and envelope.status == "ok"
    assert read_usage(whole) == Usage(5, 1, 2, 0.5)
    assert envelope.text == ("text" if kind == "chat" else "a")
    written, prompt = read_logprobs(request, envelope)
    if kind == "chat":
        rows = whole["choices"][0]["logprobs"]["content"]
        assert written == [
            TokenLogprob(r["token"], -0.5, tuple((t["token"], t["logprob"]) for t in r["top_logprobs"])) for r in rows
        ]
        assert prompt == [TokenLogprob("", None, ()), TokenLogprob("p", -0.25, (("p", -0.25), ("", -1.0)))]
    else:
        assert written == [TokenLogprob("a", -0.75, (("a", -0.5), ("b", -1.5)))] and prompt is not None

    payload: Any = whole
    for _ in range(1 + dice.roll(3)):
        container, key = dice.pick(slots(payload))
        if dice.roll(4) == 0 and isinstance(container, dict):
            del container[key]
        else:
            container[key] = json.loads(dice.pick(ODD))
    envelope = check_envelope(request, payload)
    if envelope is not None:
        # What is kept of a long reply is read as the reply was.
        before = envelope.status, envelope.text, read_usage(payload), read_logprobs(request, envelope)
        kept = load_json(storable_reply(request.kind, LONG, payload))
        again = read_envelope(request, kept, "kept")
        assert (again.status, again.text, read_usage(kept), read_logprobs(request, again)) == before


LONG = " " * 262_145


@of_bytes
def test_vectors(data: bytes) -> None:
    dice = Dice(data)
    whole = endpoints_reply(dice, "embeddings")
    for _ in range(1 + dice.roll(3)):
        container, key = dice.pick(slots(whole))
        container[key] = json.loads(
            dice.pick([*ODD, "[0.5, -1]", "[1e39]", '{"embedding": [1, 2]}', "[1.0]", '"AACAPw=="'])
        )
    envelope = check_envelope(REQUESTS["embeddings"], whole)
    if envelope is not None:
        kept = load_json(storable_reply("embeddings", LONG, whole))
        assert read_envelope(REQUESTS["embeddings"], kept, "kept").vectors == envelope.vectors

    n = 1 + dice.roll(5)
    draw = random.Random(data)
    numbers = [0.0, 1, -3, 1e-9, -3.3e38, draw.gauss(0, 1), draw.gauss(0, 1e5)]
    vectors = [[dice.pick(numbers) for _ in range(3)] for _ in range(n)]
    rows = [{"object": "embedding", "index": i, "embedding": vector} for i, vector in enumerate(vectors)]
    raw = as_json(dice, {"object": "list", "data": dice.shuffled(rows), "model": "m"})
    found = read_envelope(embedding(*map(str, range(n))), load_json(raw), raw).vectors
    assert found is not None and len(found) == n
    for read, meant in zip(found, vectors, strict=True):
        assert read == pytest.approx(meant, rel=6e-7, abs=0.0)


@of_bytes
def test_bodies(data: bytes) -> None:
    """A body of any text is JSON, or our own error; JSON of any shape is an envelope, or our own error."""
    raw = garbage(data)
    try:
        payload = load_json(raw)
    except BadReplyError as error:
        assert error.raw is not None and raw.startswith(error.raw)
        return
    for request in REQUESTS.values():
        check_envelope(request, payload)
