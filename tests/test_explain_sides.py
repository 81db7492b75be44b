"""Both sides of a label end to end: from an LLM's answer to the store, to judges, and to what a person sees."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.known_words import World, copy_of, evidence, job
from support.llm_server import BrainReply, LlmServer
from support.store_fixtures import explanation

from autointerp.ask.job import Outcome
from autointerp.config import ExplainConfig, ScoreConfig
from autointerp.explain.explaining import explain
from autointerp.explain.revise import better, kept
from autointerp.records import Explanation
from autointerp.report.page import load_page
from autointerp.report.show import _label_lines
from autointerp.score.output import draw_questions
from autointerp.score.scorer import Told
from autointerp.score.scoring import score
from autointerp.store import Store

ANSWER = "INPUT: the word alpha\nSHARE: 60 %\nSECOND: the word beta\nSECOND SHARE: 30\nOUTPUT: names of letters"


@pytest.fixture
def store(tmp_path: Path, bare_world: Path) -> Iterator[Store]:
    with copy_of(bare_world, tmp_path / "x.duckdb") as opened:
        yield opened


def answering(text: str) -> World:
    def spoil(kind: str, body: dict[str, Any], attempt: int) -> BrainReply | None:
        is_asked = "INPUT:" in json.dumps(body.get("messages", ""))
        return BrainReply(text) if is_asked else None

    return World(spoil=spoil)


def run(store: Store, server: LlmServer, features: str, **changed: Any) -> Outcome:
    base = {"explainer": "combined", "model": "m", "base_url": server.url, "reply": "text"}
    config = ExplainConfig(**{**base, **changed})
    judge = ScoreConfig(model="m", base_url=server.url, contexts=3, scorers=("detection",))
    return asyncio.run(explain(job(store, features=features), config, judge))


def test_an_answer_of_both_sides(store: Store) -> None:
    with LlmServer(answering(ANSWER)) as server:
        assert run(store, server, "0").statuses == {"ok": 1}
        judge = ScoreConfig(model="m", base_url=server.url, contexts=3, scorers=("detection",))
        asyncio.run(score(job(store, features="0"), "combined", judge))
        asked = [b["messages"][1]["content"] for b in server.requests if "You judge" in b["messages"][0]["content"]]
    columns = "label, side, output_label, second_label, label_share, second_share, n_same_label, label_flag"
    assert store.rows(f"SELECT {columns} FROM labels WHERE feature = 0") == [
        ("the word alpha", "input", "names of letters", "the word beta", 0.6, 0.3, 1, None)
    ]
    # Judges are told of both meanings, and nothing of what the feature leads to.
    assert asked and all(text.startswith('description: "the word alpha; or the word beta"\n') for text in asked)
    assert _label_lines(load_page(store, 1, 0)) == [
        "label  the word alpha (about 60% of its places)", "    or the word beta (about 30% of its places)",
        "       leads to: names of letters", "       by combined (m); says what it responds to",
    ]  # fmt: skip
    assert [row["feature"] for row in store.search_labels("names of letters")] == [0]


def test_words_of_the_form_are_asked_for_again_and_then_no_label(store: Store) -> None:
    with LlmServer(answering(ANSWER.replace("the word alpha", "excerpts"))) as server:
        outcome = run(store, server, "0")
        assert outcome.statuses == {"unparseable": 1} and outcome.failed == 1 and len(server.requests) == 2
        assert "of your own" in server.requests[1]["messages"][-1]["content"]
    (row,) = store.dicts("SELECT text, status, error, output_text, share FROM explanations")
    assert row == {
        "text": None, "status": "unparseable", "output_text": None, "share": None,
        "error": "'excerpts' is made of words of the prompt's own form",
    }  # fmt: skip


def test_labels_that_repeat_are_told(store: Store) -> None:
    with LlmServer(World(label=lambda body: "parts of texts")) as server:
        first = run(store, server, "0-3")
        assert first.statuses == {"ok": 4} and first.notes == ()
        second = run(store, server, "0-5")
    assert second.notes == ("6 labels are repeated: many features have them word for word",)
    assert "repeated: 6 features have this label word for word" in _label_lines(load_page(store, 1, 0))[-1]


def test_the_best_of_n_has_all_that_its_choice_says(store: Store) -> None:
    with LlmServer(answering(ANSWER)) as server:
        assert run(store, server, "0", explainer="best_of_n", base="combined", samples=2).statuses == {"ok": 1}
    columns = "text, output_text, second_text, share, second_share, side"
    assert store.rows(f"SELECT {columns} FROM explanations WHERE explainer = 'best_of_n'") == [
        ("the word alpha", "names of letters", "the word beta", 0.6, 0.3, "input")
    ]


def _told(feature: int, text: str, **changed: Any) -> Explanation:
    return explanation(feature, text=text, status="ok", explanation_id=f"x{feature}", **changed)


def test_a_revision_stands_for_both_meanings() -> None:
    base = _told(0, "a", second_text="b", output_text="c", side="input", share=0.5, second_share=0.4)
    row = replace(base, text=None, status="gave_up", second_text=None, output_text=None, share=None, second_share=None)
    whole = kept(row, base, None)
    assert whole.status == "gave_up"
    same = better(row, base, replace(base, text="a; or b", second_text=None), None, None)  # type: ignore[arg-type]
    assert (same.text, same.second_text, same.output_text, same.share) == ("a", "b", "c", 0.5)
    assert "same label" in (same.error or "")


def test_who_is_told_what() -> None:
    own = _told(0, "a", second_text="b", output_text="c", side="input")
    told = Told(own, own, evidence(0).top)
    assert (told.label, told.whole_label) == ("a; or b", "a; or b; leads to c")
    assert (Told(own, None).label, Told(own, None).whole_label) == ("", "")
    leads = _told(1, "d", output_text="d", side="output")
    assert (leads.judged_text, leads.whole_text) == ("d", "d")
    others = [own, leads, _told(2, "e", output_text="f", side="input")]
    (question, *_) = draw_questions(own, own.whole_text, others, frozenset([0]), 2, 0)
    assert sorted(question.labels) == ["a; or b; leads to c", "d", "e; leads to f"]
