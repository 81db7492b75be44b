"""Thoughts are taken out of replies before anything reads them, and their tokens out of the logprobs."""

from __future__ import annotations

import json
import time
from collections.abc import Collection
from typing import Any

import pytest
from support.llm_helpers import chat, completion
from support.llm_server import BrainReply, chat_payload, completions_payload

from autointerp.explain.label_replies import parse_label
from autointerp.llm.replies import read_envelope, read_logprobs
from autointerp.llm.requests import TokenLogprob
from autointerp.llm.thoughts import answer_of, answer_rows
from autointerp.score.detection_questions import read_answers
from autointerp.score.simulation_replies import expected_numbers, read_lines

DRAFT = "The excerpts may be\nLABEL: names of animals\nNo, they are all code."
PAIRS = [
    ("<think>", "</think>"), ("<thinking>", "</thinking>"), ("<reasoning>", "</reasoning>"),
    ("<THOUGHT>", "</thought>"),
    ('<think budget="5">', "</think >"), ("[THINK]", "[/THINK]"), ("◁think▷", "◁/think▷"),
    ("<|START_THINKING|>", "<|END_THINKING|>"), ("<|channel|>analysis<|message|>", "<|channel|>final<|message|>"),
]  # fmt: skip


@pytest.mark.parametrize(("opening", "closing"), PAIRS)
def test_thoughts_of_every_family(opening: str, closing: str) -> None:
    answer = "LABEL: code words"
    assert answer_of(f"{opening}{DRAFT}{closing}\n\n{answer}") == answer
    assert answer_of(f"{answer}\n{opening}{DRAFT}{closing}\n") == answer
    assert answer_of(f"{DRAFT}\n{closing}\n{answer}") == answer  # the prompt held the opening tag
    assert answer_of(f"{answer}\n  {opening}{DRAFT}") == answer  # never closed
    assert answer_of(f"{opening}{DRAFT}") == answer_of(f"{DRAFT}{closing}") == ""
    assert answer_of(f"{opening}a{opening}b{closing}c{closing}{answer}") == answer  # nested
    assert answer_of(f"{opening}{DRAFT}{closing}LABEL: code {opening}{DRAFT}{closing}words") == "LABEL: code words"


@pytest.mark.parametrize(
    "text",
    [
        "LABEL: plain  ", '{"label": "the <think> tag, and </think>"}', '```json\n{"label": "</think>"}\n```',
        'LABEL: the tags "<think>" and "</think>"', "LABEL: `</think>` at the end", "LABEL: the <think> tag",
        '"<think>"\t10\n" </think>\\n"\t0', "LABEL: <thinker> or </b>, thinking",
    ],
)  # fmt: skip
def test_a_tag_that_is_named_is_text(text: str) -> None:
    assert answer_of(text) == text
    assert answer_of(f"<think>hm</think>\n{text}") == text.strip()


def envelope_text(content: Any, **message: Any) -> str:
    payload = chat_payload(chat().body, BrainReply("x"))
    payload["choices"][0]["message"].update(content=content, **message)
    return read_envelope(chat(), payload, json.dumps(payload)).text


def test_fields_and_parts_with_thoughts_are_not_read() -> None:
    assert envelope_text(None, reasoning_content=f"{DRAFT} LABEL: x", reasoning="LABEL: y") == ""
    assert envelope_text("LABEL: code", reasoning_content=DRAFT) == "LABEL: code"
    parts = [
        {"type": "thinking", "thinking": [{"type": "text", "text": DRAFT}]}, {"type": "reasoning", "text": DRAFT},
        {"type": "text", "text": DRAFT, "thought": True}, {"type": "text", "text": "LABEL: "}, "code",
    ]  # fmt: skip
    assert envelope_text(parts) == "LABEL: code"
    payload = completions_payload(completion("One").body, BrainReply(f"<think>{DRAFT}</think> fine"))
    assert read_envelope(completion("One"), payload, "").text == "fine"


def test_explainers_and_judges_read_the_answer_only() -> None:
    assert parse_label(envelope_text(f"<think>{DRAFT}</think>\nIn short: words in code.")).status == "unparseable"
    assert parse_label(envelope_text(f"<think>{DRAFT}</think>\nLABEL: code words")).text == "code words"
    assert read_answers(envelope_text("<think>[1, 1, 1]? No.</think>\n[0, 1, 0]"), 3) == [False, True, False]


TOKENS = [" a", " b"]
ANSWER = '" a"\t4\n" b"\t7'


def simulated(text: str, cut: list[str], drafts: Collection[int] = ()) -> list[float]:
    """The numbers read from a reply `text` whose tokens are `cut`. A digit has itself as its only alternative; those at
    the places `drafts` have a 1 there, which must never be read."""
    rows = [
        (t, -0.1, [("1" if i in drafts else t, -0.1)] if t.strip().isdigit() else [(t, -0.1)])
        for i, t in enumerate(cut)
    ]
    request = chat(logprobs=True, top_logprobs=1)
    payload = chat_payload(request.body, BrainReply("".join(cut), tokens=rows))
    payload["choices"][0]["message"]["content"] = text
    envelope = read_envelope(request, payload, "")
    written, _ = read_logprobs(request, envelope)
    return expected_numbers(envelope.text, written, read_lines(envelope.text, TOKENS))


def test_positions_of_logprobs_move_with_the_thoughts_taken_out() -> None:
    draft = ["<th", "ink>", "Draft:\n", '" a"\t', "4", '\n" b"\t', "7", "\n. ", "</", "think>\n\n"]
    answer = ['" a"\t', "4", '\n" b"\t', "7"]
    whole, drafts = "".join([*draft, *answer]), {4, 6}
    assert simulated(whole, [*draft, *answer], drafts) == [4.0, 7.0]
    assert simulated(ANSWER, [*draft, *answer], drafts) == [4.0, 7.0]  # the server took the thoughts out of the text
    assert simulated(ANSWER, [*draft[2:8], *answer], {2, 4}) == [4.0, 7.0]  # and their tags out of the tokens
    assert simulated(whole, [*draft[:-1], 'think>\n\n" a"\t', *answer[1:]], drafts) == [4.0, 7.0]  # one token in both
    assert simulated(f"{ANSWER}\n<think>so</think>", [*answer, "\n<think>", "so", "</think>"]) == [4.0, 7.0]


def test_rows_without_thoughts_are_the_rows() -> None:
    rows = [TokenLogprob(token, -0.1, ()) for token in ("a", " <b>", "c")]
    assert answer_rows(rows) == rows
    assert answer_rows([TokenLogprob(t, None, ()) for t in ("x</think>", "\n", "y")])[-1].token == "y"


@pytest.mark.parametrize(
    "piece", ["<think>", "</think>", "<think></think>", "x <think>", '{"</think>', "<think ", "\n"]
)
def test_no_reply_takes_long(piece: str) -> None:
    text = piece * (2_000_000 // len(piece))
    started = time.process_time()
    answer_of(text)
    answer_rows([TokenLogprob(piece, None, ())] * 50_000)
    assert time.process_time() - started < 10
