"""Explainers beyond one question on contexts, through the real client, a real server and a real store: labels made of
labels, labels by shape, evidence that was never gathered, and replies in JSON."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.known_words import (
    WORDS,
    World,
    contexts,
    fits,
    job,
    plant_findings,
    question,
    strongest,
)
from support.llm_server import BrainReply, Fault, LlmServer
from support.shown_excerpts import pieces_of

from autointerp.ask.job import Job, Outcome
from autointerp.config import BudgetConfig, ExplainConfig, PriceConfig, ScoreConfig
from autointerp.errors import InputError, StoppedError
from autointerp.explain.best_of_n import TEMPERATURE
from autointerp.explain.explaining import explain, forecast_explain
from autointerp.explain.validation import halves
from autointerp.score.scoring import score
from autointerp.store import Selection, Store


@pytest.fixture
def planted(bare_world: Path) -> Path:
    return bare_world


def run(work: Job, server: LlmServer, explainer: str, **changed: Any) -> Outcome:
    return asyncio.run(explain(work, explain_config(server, explainer, **changed), score_config(server)))


def explain_config(server: LlmServer, explainer: str, **changed: Any) -> ExplainConfig:
    base = {"explainer": explainer, "model": "m", "base_url": server.url, "reply": "text", "base": "contexts"}
    return ExplainConfig(**{**base, **changed})


def score_config(server: LlmServer) -> ScoreConfig:
    return ScoreConfig(model="m", base_url=server.url, contexts=3, scorers=("detection",))


def labels(store: Store, explainer: str) -> list[dict[str, Any]]:
    return store.dicts("SELECT * FROM explanations WHERE explainer = ? ORDER BY feature, seed", [explainer])


def true_label(feature: int) -> str:
    return f"the word{WORDS[feature]}"


def liar(body: dict[str, Any]) -> str:
    """The truth in some samples, another word in the others."""
    true = strongest(body)
    draw = random.Random(f"{body.get('seed')} {true}")
    return f"the word {true if draw.random() < 0.4 else draw.choice([w.strip() for w in WORDS if w.strip() != true])}"


def texts_shown(body: dict[str, Any]) -> set[str]:
    """Every context that a request shows, marks and activations taken away."""
    found = set()
    for line in "\n".join(m["content"] for m in body.get("messages", ())).split("\n"):
        start = line.split(": ", 1)[-1]
        try:
            read = json.loads(line if line[:1] in '["' else start)
        except ValueError:
            continue
        if isinstance(read, list):
            read = "".join(p if isinstance(p, str) else str(p[0]) for p in read if isinstance(p, (str, list)) and p)
        if isinstance(read, str):
            found.add(read)
    if "messages" in body and "tokens:\n" in body["messages"][-1]["content"]:
        found.add("".join(question(body)[1]))
    return found


def split_texts(store: Store, split: str) -> set[str]:
    return {"".join(tokens) for (tokens,) in store.rows("SELECT tokens FROM contexts WHERE split = ?", [split])}


# --- best of n ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "validator", ["detection", *(pytest.param(name, marks=pytest.mark.slow) for name in ("fuzzing", "simulation"))]
)
def test_the_best_of_n_is_the_true_label(store: Store, validator: str) -> None:
    """Where it is among the samples, and found without a look at the report part."""
    with LlmServer(World(label=liar)) as server:
        outcome = run(job(store), server, "best_of_n", samples=4, validator=validator)
        shown = set().union(*map(texts_shown, server.requests))
        sent = len(server.requests)
        assert run(job(store), server, "best_of_n", samples=4, validator=validator).pending == 0
        assert len(server.requests) == sent
    assert outcome.statuses == {"ok": len(WORDS)}
    assert not shown & split_texts(store, "report") and len(shown & split_texts(store, "select")) >= 12
    assert store.rows("SELECT DISTINCT part FROM scores") == [("select",)]
    candidates = labels(store, "contexts")
    assert Counter(row["seed"] for row in candidates) == dict.fromkeys(range(4), len(WORDS))
    found = 0
    for row in labels(store, "best_of_n"):
        mine = [c for c in candidates if c["feature"] == row["feature"]]
        assert row["derived_from"] == [c["explanation_id"] for c in mine]
        assert row["side"] == "input" and row["text"] in [c["text"] for c in mine]
        if true_label(row["feature"]) in [c["text"] for c in mine]:
            found += row["text"] == true_label(row["feature"])
    assert found >= 4 and found == sum(
        any(c["text"] == true_label(f) for c in candidates if c["feature"] == f) for f in range(len(WORDS))
    )
    asked = [b for b in server.requests if "You study" in str(b.get("messages"))]
    assert {(b.get("seed"), b["temperature"]) for b in asked} == {(None, 0.0), *((i, TEMPERATURE) for i in (1, 2, 3))}


def test_a_base_label_stays_the_one_that_is_scored_and_shown(store: Store) -> None:
    """Samples made for best_of_n after it are newer labels by the same explainer, and stand in for nothing."""
    with LlmServer(World(label=liar)) as server:
        run(job(store), server, "contexts")
        (base,) = {row["seed"] for row in labels(store, "contexts")}
        texts = {row["feature"]: row["text"] for row in labels(store, "contexts")}
        run(job(store), server, "best_of_n", samples=3)
    store.set_label_choice(1, "contexts", None)
    assert dict(store.rows("SELECT feature, label FROM labels")) == texts
    waiting = store.explanations_to_score(1, "contexts", "x", None, "", "", "report", job(store).selection)
    assert {e.feature: e.text for e in waiting} == texts and {e.seed for e in waiting} == {base}


def test_a_stopped_best_of_n_goes_on_and_pays_for_nothing_twice(store: Store) -> None:
    with LlmServer(World(label=liar)) as server:
        for most in (5, 20):
            with pytest.raises(StoppedError):
                run(job(store, BudgetConfig(max_requests=most)), server, "best_of_n")
        assert labels(store, "best_of_n") == []
        assert run(job(store), server, "best_of_n").statuses == {"ok": len(WORDS)}
        assert max(Counter(map(json.dumps, server.requests)).values()) == 1


def test_candidates_without_a_label_or_a_score(store: Store) -> None:
    broken = {"judge": True}

    def spoil(kind: str, body: dict[str, Any], attempt: int) -> BrainReply | Fault | None:
        system = body["messages"][0]["content"]
        if '[" alpha", 10]' in str(body):
            return BrainReply("LABEL: no pattern")
        if '[" beta", 10]' in str(body):
            return BrainReply("LABEL: no pattern") if "seed" in body else BrainReply("", refusal="no")
        if "You judge" in system and "the word gamma" in str(body) and broken["judge"]:
            return Fault("truncated_json")
        return BrainReply("who knows") if "You judge" in system and "the word delta" in str(body) else None

    few = job(store, features="0-4", attempts=1)
    with LlmServer(World(spoil=spoil)) as server:
        assert run(few, server, "best_of_n").statuses == {"abstained": 2, "gave_up": 1, "ok": 2}
        by_feature = {row["feature"]: row for row in labels(store, "best_of_n")}
        assert by_feature[3]["text"] == labels(store, "contexts")[9]["text"]
        assert "no candidate has a score: no_answer" in by_feature[3]["error"]
        assert by_feature[4]["error"] is None
        broken["judge"] = False
        assert run(few, server, "best_of_n").statuses == {"ok": 1}


# --- revise ---------------------------------------------------------------------------------------------------------


def test_revising_mends_a_label_that_is_too_broad(store: Store) -> None:
    """The first label of feature 0 is right already; the others fit any text, until the mistakes are seen."""

    def first_then_better(body: dict[str, Any]) -> str:
        if "better description" in body["messages"][0]["content"]:
            assert '"any word at all"' in body["messages"][1]["content"]
            assert "false alarms:" in body["messages"][1]["content"]
            return f"the word {strongest(body)}"
        return "the word alpha" if strongest(body) == "alpha" else "any word at all"

    def broad(label: str, asked: str, pieces: list[Any]) -> bool:
        return "any word at all" in label or fits(label, asked, pieces)

    with LlmServer(World(label=first_then_better, choose=broad)) as server:
        assert run(job(store), server, "revise", mistakes=4).statuses == {"ok": len(WORDS)}
        rewritten = [b for b in server.requests if "better description" in b["messages"][0]["content"]]
        shown = set().union(*map(texts_shown, server.requests))
        assert len(rewritten) == len(WORDS) - 1
        sent = len(server.requests)
        assert run(job(store), server, "revise", mistakes=4).pending == 0 and len(server.requests) == sent
        for explainer in ("contexts", "revise"):
            asyncio.run(score(job(store), explainer, score_config(server)))
    assert not shown & split_texts(store, "report")
    found = labels(store, "revise")
    assert [row["text"] for row in found] == [true_label(f) for f in range(len(WORDS))]
    drafts = labels(store, "revise_draft")
    assert [row["feature"] for row in drafts] == list(range(1, len(WORDS)))
    assert all(row["output_tokens"] > 0 for row in drafts) and not any(row["output_tokens"] for row in found)
    assert [row["derived_from"] for row in found] == [
        [row["explanation_id"], *(d["explanation_id"] for d in drafts if d["feature"] == row["feature"])]
        for row in labels(store, "contexts")
    ]
    assert [row["side"] for row in found] == ["input"] * len(WORDS)
    assert {row[0] for row in store.rows("SELECT explainer FROM labels")} == {"revise"}
    alarms = [b["messages"][1]["content"].split("false alarms:\n")[1].count("\n") for b in rewritten]
    assert set(alarms) <= {2, 3, 4}  # all of its mistakes on one half are false alarms, and no more than asked for
    means = dict(
        store.rows(
            "SELECT e.explainer, avg(s.value) FROM scores s JOIN explanations e USING (explanation_id) "
            "WHERE s.part = 'report' AND s.scorer = 'detection' AND s.feature > 0 GROUP BY ALL"
        )
    )
    assert means == {"contexts": 0.5, "revise": 1.0}


def test_missed_contexts_are_shown_with_their_activations(store: Store) -> None:
    def label(body: dict[str, Any]) -> str:
        return "the word alpha" if "better description" in body["messages"][0]["content"] else "nothing there is"

    with LlmServer(World(label=label)) as server:
        run(job(store, features="0"), server, "revise", validator="simulation", mistakes=2)
        asked = next(
            body["messages"][1]["content"]
            for body in server.requests
            if "messages" in body and "better description" in body["messages"][0]["content"]
        )
    missed = asked.split("missed:\n")[1].splitlines()[:-1]
    assert len(missed) == 2 and "false alarms" not in asked
    select = split_texts(store, "select")
    for line in missed:
        pieces = json.loads(line)
        assert [" alpha", 10] in pieces and "".join(p if isinstance(p, str) else p[0] for p in pieces) in select


@pytest.mark.parametrize("validator", ["detection", "simulation"])
def test_a_rewrite_that_fits_only_the_mistakes_it_was_shown_is_not_kept(store: Store, validator: str) -> None:
    """The second label names the very texts that were shown to it: right on them, and as wrong as before on others.
    The third feature's rewrite is worse, the fourth's the same, the fifth's none."""
    shown: set[str] = set()

    def label(body: dict[str, Any]) -> str:
        if "better description" not in body["messages"][0]["content"]:
            return f"any word at all {strongest(body)}"
        asked = body["messages"][1]["content"].split("false alarms:\n")[1].splitlines()[:-1]
        shown.update("".join(pieces_of(line)) for line in asked)
        by_word = {
            "alpha": "overfitted alpha", "beta": "nothing there is", "gamma": "any word at all gamma",
            "delta": "no pattern",
        }  # fmt: skip
        return by_word.get(strongest(body), f"the word {strongest(body)}")

    def choose(label: str, asked: str, pieces: list[Any]) -> bool:
        text = "".join(p if isinstance(p, str) else p[0] for p in pieces)
        if "overfitted" in label:
            return text not in shown
        return "any word" in label or fits(label, asked, pieces)

    def predict(label: str, tokens: list[str]) -> list[int]:
        if "overfitted" in label or "any word" in label:
            return [0 if "".join(tokens) in shown and "overfitted" in label else 5] * len(tokens)
        word = label.removeprefix("the word ")
        return [10 * (token.strip() == word) for token in tokens]

    with LlmServer(World(label=label, choose=choose, predict=predict)) as server:
        work = job(store, features="0-4")
        outcome = run(work, server, "revise", mistakes=9, validator=validator)
        assert outcome.statuses == {"ok": 5}
    found = labels(store, "revise")
    names = [word.strip() for word in WORDS[:5]]
    assert [row["text"] for row in found] == [
        *(f"any word at all {name}" for name in names[:4]), f"the word {names[4]}",
    ]  # fmt: skip
    errors = [row["error"] for row in found]
    if validator == "detection":
        assert errors[0].startswith("not revised, the rewrite scores 0.50 on contexts it was not made from")
    assert "the rewrite scores" in errors[0] and "the rewrite scores" in errors[1]
    assert "the same label" in errors[2] and "abstained" in errors[3] and errors[4] is None


def test_halves_share_no_document_and_both_have_both_kinds() -> None:
    every = contexts(2, "select")
    first, second = halves(every)
    assert sorted(c.context_id for c in (*first, *second)) == [c.context_id for c in every]
    assert not {c.document for c in first} & {c.document for c in second}
    for half in (first, second):
        assert sum(c.kind == "negative" for c in half) == 4 and sum(c.kind != "negative" for c in half) == 8
    assert halves(every[::-1])[0] and {c.context_id for c in halves(every[::-1])[0]} == {c.context_id for c in first}


def test_blocks_of_a_document_are_in_one_half() -> None:
    every = contexts(2, "select")
    blocks = halves([replace(c, document=f"{c.document}#{c.context_id}") for c in every])
    assert [[c.context_id for c in half] for half in blocks] == [[c.context_id for c in half] for half in halves(every)]


# --- concat ---------------------------------------------------------------------------------------------------------


def test_concat_joins_both_sides(store: Store) -> None:
    def label(body: dict[str, Any]) -> str:
        asked = body["messages"][1]["content"]
        if "promoted: " not in asked:
            return f"the word {strongest(body)}"
        return (
            "no pattern"
            if " betas" in asked
            else f"forms of {json.loads(asked.split('promoted: ')[1].split(chr(10))[0])[0].strip()}"
        )

    plant_findings(store, [], [0, 1, 2], {})
    with LlmServer(World(label=label)) as server:
        assert run(job(store, features="0-3"), server, "concat").statuses == {"ok": 4}
        assert len(server.requests) == 7  # one of the features promotes nothing that is known
        assert run(job(store, features="0-3"), server, "concat").pending == 0
        # Its parts are labels like any others.
        assert run(job(store, features="0-3"), server, "contexts").pending == 0
        assert len(server.requests) == 7
    found = labels(store, "concat")
    assert [row["text"] for row in found] == [f"the word {word.strip()}" for word in WORDS[:4]]
    assert [row["output_text"] for row in found] == ["forms of alphas", None, "forms of gammas", None]
    assert [row["side"] for row in found] == ["input"] * 4
    assert [row["side"] for row in labels(store, "vocab_projection")] == ["output", None, "output", None]
    parts = {row["explanation_id"] for e in ("contexts", "vocab_projection") for row in labels(store, e)}
    assert {i for row in found for i in row["derived_from"]} == parts


# --- without a call -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "explainer", ["combined", *(pytest.param(name, marks=pytest.mark.slow) for name in ("contexts", "best_of_n"))]
)
def test_a_label_by_shape_takes_no_call(store: Store, explainer: str) -> None:
    plant_findings(store, [], [], {1: "the word beta", 4: "the word\nomega"})
    few = job(store, features="1,4")
    with LlmServer(World()) as server:
        assert forecast_explain(few, explain_config(server, explainer), score_config(server)).calls == 0
        outcome = run(few, server, explainer)
        assert outcome.statuses == {"ok": 2} and "2 features" in outcome.notes[0]
        assert run(few, server, explainer).pending == 0 and server.requests == []
        found = labels(store, explainer)
        assert [row["text"] for row in found] == ["the word beta", "the word omega"]
        assert {(row["model"], row["side"], row["rule"]) for row in found} == {("shape", "input", "{}")}
        assert run(job(store, features="0-2"), server, explainer).statuses == {"ok": 2}
        assert run(few, server, explainer, shape_labels=False).statuses == {"ok": 2}
    assert Counter(row["model"] for row in labels(store, explainer)) == {"shape": 2, "m": 4} or explainer == "best_of_n"


def test_a_single_label_by_shape_can_be_shuffled(store: Store) -> None:
    plant_findings(store, [], [], {1: "the word beta"})
    with LlmServer(World()) as server:
        run(job(store, features="0-2"), server, "contexts")
        asyncio.run(score(job(store, features="0-2"), "contexts", score_config(server), "shuffled"))
    values = store.rows("SELECT value FROM scores WHERE scorer = 'detection' AND control = 'shuffled'")
    assert len(values) == 3 and all(value < 0.8 for (value,) in values)


def test_evidence_that_was_never_gathered(store: Store) -> None:
    with LlmServer(World()) as server:
        for explainer, method in (("pruned", "pruning"), ("token_change", "token_change"),
                                  ("mutual_information", "words"), ("vocab_projection", "harvest")):  # fmt: skip
            with pytest.raises(InputError, match=f"no chosen feature has what '{explainer}' reads.*{method}"):
                run(job(store), server, explainer)
        with pytest.raises(InputError, match="autointerp measure"):
            run(job(store), server, "best_of_n", base="pruned")
        assert labels(store, "pruned") == [] and server.requests == []
        plant_findings(store, [0, 2], [], {})
        assert run(job(store), server, "pruned").statuses == {"ok": 2, "abstained": 4}
        assert run(job(store), server, "pruned").pending == 0 and len(server.requests) == 2
        lacking = [row for row in labels(store, "pruned") if row["status"] == "abstained"]
        assert all("`autointerp measure`" in row["error"] and row["text"] is None for row in lacking)
        # What was found since is asked about; the rest waits on.
        plant_findings(store, [0, 1, 2], [], {})
        assert run(job(store), server, "pruned").statuses == {"ok": 1} and len(server.requests) == 3
    shown = store.rows("SELECT label FROM labels WHERE label IS NOT NULL ORDER BY feature")
    assert [text for (text,) in shown] == [f"{true_label(f)}, stronger after `the`" for f in range(3)]


def test_what_cannot_be_composed(store: Store) -> None:
    with LlmServer(World()) as server:
        with pytest.raises(InputError, match="explain.base is 'vocab_projection'"):
            run(job(store), server, "best_of_n", base="vocab_projection")
        with pytest.raises(InputError, match="explain.base is 'revise'"):
            run(job(store), server, "revise", base="revise")
        with pytest.raises(InputError, match="score.model"):
            asyncio.run(explain(job(store), explain_config(server, "best_of_n")))
        with pytest.raises(InputError, match="explain.model"):
            run(job(store), server, "concat", model="")
        assert server.requests == []


# --- JSON -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("schema", [True, False])
def test_replies_in_json_where_the_endpoint_keeps_to_a_schema(store: Store, schema: bool) -> None:
    few = job(store, features="0-2")
    with LlmServer(World(schema=schema)) as server:
        assert run(few, server, "combined", reply="auto").statuses == {"ok": 3}
        assert run(job(store, features="0-3"), server, "combined", reply="auto").statuses == {"ok": 1}
        assert len(server.requests) == 1 + 4  # the endpoint is asked once what it can do
        with_schema = [b for b in server.requests if "response_format" in b]
    assert len(with_schema) == (5 if schema else 1)
    found = labels(store, "combined")
    assert [row["text"] for row in found] == [f"{true_label(f)}, stronger after `the`" for f in range(4)]
    assert {(row["side"], row["share"]) for row in found} == {("input", 0.8)}


def test_json_that_is_none_is_asked_for_again(store: Store) -> None:
    def spoil(kind: str, body: dict[str, Any], attempt: int) -> BrainReply | None:
        return None if "no JSON object" in body["messages"][-1]["content"] else BrainReply('{"label": ')

    with LlmServer(World(schema=True, spoil=spoil)) as server:
        assert run(job(store, features="0"), server, "contexts", reply="json").statuses == {"ok": 1}
        assert len(server.requests) == 2


# --- forecasts ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("explainer", "validator"), [("concat", "detection"), ("best_of_n", "detection"),
                                                      ("best_of_n", "simulation"), ("revise", "fuzzing")])  # fmt: skip
def test_forecasts_of_composites(store: Store, explainer: str, validator: str) -> None:
    plant_findings(store, [], list(range(len(WORDS))), {})
    # Labels that tell the judge nothing: all have mistakes, and none is like another.
    numbers = iter(range(1000))
    world = World(
        label=lambda body: f"nothing {next(numbers)}",
        choose=lambda label, asked, pieces: False,
        predict=lambda label, tokens: [9] * len(tokens),
    )
    work = replace(job(store), llm=replace(job(store).llm, prices={"m": PriceConfig(input=1.0, output=2.0)}))
    with LlmServer(world) as server:
        config = explain_config(server, explainer, validator=validator)
        work = replace(work, selection=Selection(features="0-2"))
        told = forecast_explain(work, config, score_config(server))
        assert server.requests == []
        run(work, server, explainer, validator=validator)
        spent = store.rows("SELECT count(*), sum(input_tokens) FROM llm_calls WHERE stage <> 'probe'")[0]
    assert (told.features, told.calls) == (3, spent[0])
    assert told.input_tokens == pytest.approx(spent[1], rel=0.5)
    assert told.usd == pytest.approx((told.input_tokens + 2 * told.output_tokens) / 1e6)


def test_the_fixture_reads_back_what_judges_are_shown(store: Store) -> None:
    """`texts_shown` finds report contexts where they are shown, or its absence would say nothing."""
    with LlmServer(World()) as server:
        run(job(store, features="0"), server, "contexts")
        for scorer in ("detection", "fuzzing", "simulation"):
            server.requests.clear()
            config = replace(score_config(server), scorers=(scorer,))
            asyncio.run(score(job(store, features="0"), "contexts", config))
            shown = set().union(*map(texts_shown, server.requests))
            assert len(shown & split_texts(store, "report")) >= 9, scorer
