"""The parts of the explainer `rule`: which mistakes are shown, when a round counts, and the words of the label."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from support.known_words import evidence, job
from support.label_prompts import rule_prompt
from support.rule_world import FEATURES, world_store

from autointerp.ask.explanation_row import MAX_LABEL
from autointerp.config import ExplainConfig
from autointerp.explain.rule_mistakes import WIDTH, Mistakes, ReadText, marked_text, mistakes_in
from autointerp.explain.rule_question import Proposal
from autointerp.explain.rule_rounds import improves
from autointerp.explain.rule_study import Draft, RuleStudy
from autointerp.explain.rule_texts import RuleTexts
from autointerp.explain.rule_words import words_of
from autointerp.rules.language.parsing import clauses_of
from autointerp.rules.patterns import Rule
from autointerp.stats import Estimate

TOPIC = next(f for f, one in enumerate(FEATURES) if one.kind == "topic")


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RuleStudy]:
    with world_store(tmp_path_factory.mktemp("rules") / "x.duckdb", documents=60) as store:
        texts = RuleTexts(job(store))
        (of,) = texts.read([store.feature_evidence(1, 1, [TOPIC], 1000)[TOPIC]])
        yield RuleStudy(of, texts)


def proposed(*clauses: object, label: str = "the LLM's own words") -> Proposal:
    found, _ = clauses_of({"clauses": list(clauses)})
    return Proposal(label, tuple(found))


TRUTH, WRONG = FEATURES[TOPIC].truth, FEATURES[TOPIC].wrong


# --- mistakes ---------------------------------------------------------------------------------------------------------


def text(token: str, truth: float, predicted: float, length: int = 3) -> ReadText:
    """A text whose last token has this truth and this prediction."""
    values = np.zeros(length), np.zeros(length)
    values[0][-1], values[1][-1] = truth, predicted
    return ReadText([*[" of"] * (length - 1), f" {token}"], *values)


def test_the_largest_mistakes_of_either_kind_are_shown() -> None:
    texts = [text("a", 5, 1), text("b", 9, 0), text("c", 0, 4), text("d", 0, 2), text("e", 4, 3), text("f", 0, 0.5)]
    found = mistakes_in(texts, 8)
    assert [json.loads(line)[-1] for line in found.missed] == [[" b", 9, 0], [" a", 5, 1]]
    assert [json.loads(line)[-1] for line in found.false_alarms] == [[" c", 0, 4], [" d", 0, 2]]
    assert len(mistakes_in(texts, 1).missed) == 1 and not mistakes_in(texts, 0) and not mistakes_in(texts[4:], 8)


def test_other_tokens_come_before_a_third_text_with_the_same() -> None:
    texts = [*(text("same", 9 - i / 10, 0, 3 + i) for i in range(5)), text("other", 3, 0), text("same", 9, 0)]
    shown = [json.loads(line)[-1][0] for line in mistakes_in(texts, 4).missed]
    assert shown == [" same", " same", " other", " same"]
    assert len(mistakes_in(texts, 8).missed) == 6  # texts that are shown alike are shown once


def test_a_long_text_is_cut_around_its_worst_token() -> None:
    long = ReadText([f" {i}" for i in range(100)], np.zeros(100), np.eye(100)[60] * 7, "document")
    shown = json.loads(marked_text(long, 60))
    assert [" 60", 0, 7] in shown and not any(isinstance(piece, dict) for piece in shown)
    assert len("".join(p if isinstance(p, str) else p[0] for p in shown).split()) == WIDTH
    assert json.loads(marked_text(replace(long, predicted=np.eye(100)[2]), 2))[0] == {"begins": "document"}


def test_a_rule_goes_back_without_the_words_that_were_found() -> None:
    """So that near words of a new rule are looked for again."""
    near = {"near": {"word": ["shore"], "least": 0.5, "words": ["shore", "coast"]}}
    clauses, _ = clauses_of({"clauses": [{"strength": 1.23456, "all": [near, {"not": near}]}]})
    evidence_of = evidence(0)
    prompt = rule_prompt(ExplainConfig(model="m"))
    asked = prompt.mend_request(evidence_of, "x", clauses, Mistakes([], [])).body["messages"][1]["content"]
    assert "coast" not in asked and '"strength": 1.2,' in asked
    (clause,) = json.loads(asked.split("\nrule: ")[1].split("\n")[0])["clauses"]
    assert clause["all"][0] == {"near": {"word": ["shore"], "least": 0.5}} == clause["all"][1]["not"]


# --- drafts -----------------------------------------------------------------------------------------------------------


def test_the_order_of_clauses_makes_no_difference(study: RuleStudy) -> None:
    one, other = study.draft(proposed(*TRUTH, *WRONG)), study.draft(proposed(*reversed(WRONG), *TRUTH))
    assert one.rule.to_json() == other.rule.to_json() and one.natural.value == other.natural.value


def test_useless_clauses_are_dropped_and_the_label_says_what_is_left(study: RuleStudy) -> None:
    said = [{**TRUTH[0], "says": "`bank` in text about rivers"}, {**WRONG[0], "says": "gardens"}]
    draft = study.draft(proposed(*said))
    assert [c.says for c in draft.kept] == ["`bank` in text about rivers"]
    assert draft.natural.value is not None and draft.natural.value > 0.95
    assert words_of(study, draft) == "`bank` in text about rivers"
    assert words_of(study, study.draft(proposed(said[0]))) == "the LLM's own words"
    silent = {name: value for name, value in said[0].items() if name != "says"}
    assert "`bank`" in words_of(study, study.draft(proposed(silent, said[1])))


def test_without_a_useful_clause_the_rule_is_that_of_patterns(study: RuleStudy) -> None:
    draft = study.draft(proposed(*WRONG))
    assert not draft.kept and draft.rule is study.patterns and draft.rule.to_json().startswith('{"version":1')
    assert {c.strength for c in draft.clauses} == {0.0}


def test_what_tables_add_is_named(study: RuleStudy, monkeypatch: pytest.MonkeyPatch) -> None:
    draft = study.draft(proposed(*TRUTH))
    shares = {" alpha": 5.0, " beta": 3.0, "\n": 0.1}
    for share, label in ((0.2, "the LLM's own words"), (0.6, "the LLM's own words; also `alpha` and `beta`")):
        monkeypatch.setattr(study, "table_share", lambda draft, share=share: (share, shares))
        assert words_of(study, draft) == label
    long = replace(draft, proposal=replace(draft.proposal, label="word " * 60))
    assert len(words_of(study, long)) <= MAX_LABEL


def test_the_stored_rule_predicts_what_was_fitted(study: RuleStudy) -> None:
    draft = study.draft(proposed(*TRUTH, {"strength": 3, "all": [{"word": ["shore"]}]}))
    read = Rule.from_json(draft.rule.to_json())
    assert read.combine == "sum" and read.clauses == draft.rule.clauses
    predicted = study._own.predict(read)
    assert np.corrcoef(predicted, study._truth)[0, 1] > 0.95
    # Stored labels, which the free first pass judges, are worth on the select part what drafts are.
    assert study._select.natural_of(read).value == pytest.approx(draft.natural.value, abs=1e-3)


def test_a_round_counts_only_if_it_brings_more_than_noise(study: RuleStudy) -> None:
    draft = study.draft(proposed(*TRUTH))

    def of(value: float | None, influences: dict[str, float] | None) -> Draft:
        return replace(draft, natural=Estimate(value, None, None, 10, influences))

    old = of(0.5, {"a": 0.01, "b": -0.02})
    assert improves(of(0.6, {"a": 0.01, "b": 0.0}), old)
    assert not improves(of(0.51, {"a": 0.01, "b": 0.0}), old)  # the standard error is .02
    assert not improves(of(0.5 + 1e-15, {"a": 0.01, "b": -0.02}), old)  # rounding is no improvement
    assert not improves(of(0.4, {"a": 0.01, "b": -0.02}), old)
    assert not improves(of(0.9, None), old) and not improves(of(None, None), old)
