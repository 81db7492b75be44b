"""The explainer `rule` on features whose truth is a rule: a real store, and a server that reads what it is shown."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.known_words import copy_of, count_tiles, job, planted_store
from support.llm_server import BrainReply, Fault, LlmServer
from support.rule_oracle import RuleOracle
from support.rule_world import FEATURES, Truths, world_store

from autointerp.config import ExplainConfig, ScoreConfig
from autointerp.errors import InputError
from autointerp.explain.explaining import explain, forecast_explain
from autointerp.rules.patterns import Rule
from autointerp.score.scoring import score
from autointerp.store import Store

KINDS = {one.kind: f for f, one in enumerate(FEATURES)}
Row = dict[str, Any]


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("template") / "rules.duckdb"
    world_store(path).close()
    return path


@pytest.fixture
def store(template: Path, tmp_path: Path) -> Iterator[Store]:
    with copy_of(template, tmp_path / "x.duckdb") as store:
        yield store


def config(server: LlmServer, **changed: Any) -> ExplainConfig:
    return ExplainConfig(**{"explainer": "rule", "model": "m", "base_url": server.url, "reply": "text", **changed})


def labelled(store: Store, oracle: Any, features: str | None = None, **changed: Any) -> tuple[list[Row], LlmServer]:
    """The rows that the explainer writes, by feature, and the server that was asked."""
    before = {identity for (identity,) in store.rows("SELECT explanation_id FROM explanations")}
    with LlmServer(oracle) as server:
        asyncio.run(explain(job(store, features=features, attempts=1, timeout=60.0), config(server, **changed)))
    columns = "feature, text, status, error, rule, side, output_text, input_tokens, output_tokens"
    rows = store.rows(
        f"SELECT {columns} FROM explanations WHERE explainer = 'rule' AND NOT list_contains(?, explanation_id) "
        "ORDER BY feature",
        [list(before)],
    )
    return [dict(zip(columns.split(", "), row, strict=True)) for row in rows], server


def patterns_of(store: Store) -> dict[int, Rule]:
    asyncio.run(explain(job(store), ExplainConfig(explainer="patterns")))
    rows = store.rows("SELECT feature, rule FROM explanations WHERE explainer = 'patterns'")
    return {feature: Rule.from_json(rule) for feature, rule in rows}


def reported(rows: list[Row], store: Store) -> dict[str, float]:
    """The correlation of each row's rule with the truth on the report part, by the feature's kind."""
    truths = Truths(store)
    return {FEATURES[r["feature"]].kind: truths.value(Rule.from_json(r["rule"]), r["feature"]) for r in rows}


# --- what it finds ----------------------------------------------------------------------------------------------------


def test_the_true_rule_of_every_kind_scores_above_95_and_is_scored_for_free(store: Store) -> None:
    """Labels keep the LLM's words, one call is enough, and `score` needs none."""
    rows, server = labelled(store, RuleOracle("truth"))
    assert len(server.requests) == len(FEATURES) and all(r["status"] == "ok" and r["error"] is None for r in rows)
    assert [r["text"] for r in rows] == [one.label("truth") for one in FEATURES]
    values = reported(rows, store)
    assert min(values.values()) > 0.95, values
    asyncio.run(score(job(store), "rule", ScoreConfig(contexts=5)))
    scored = dict(
        store.rows("SELECT feature, value FROM scores WHERE scorer = 'simulation_natural' AND control IS NULL")
    )
    assert scored.keys() == set(range(len(FEATURES))) and min(scored.values()) > 0.95
    parts = dict(store.rows("SELECT scorer || coalesce('/' || control, ''), count(*) FROM scores GROUP BY ALL"))
    assert parts["simulation_precision"] == parts["simulation_natural/token_lookup"] == len(FEATURES)
    assert store.rows("SELECT DISTINCT method FROM scores") == [("rule",)]
    holding = store.rows("SELECT count(*) FROM scores WHERE scorer = 'simulation_natural' AND label_from IS NOT NULL")
    assert holding[0][0] > 0


def test_a_near_miss_is_mended_by_its_mistakes(store: Store) -> None:
    rows, server = labelled(store, RuleOracle("near_miss"))
    values = reported(rows, store)
    assert sum(value > 0.95 for value in values.values()) >= 0.9 * len(FEATURES), values
    assert len(server.requests) <= 3 * len(FEATURES)
    asked = [r["messages"][1]["content"] for r in server.requests if "it made mistakes" in r["messages"][0]["content"]]
    shown = [json.loads(line[6:]) for one in asked for line in one.split("\n") if line.startswith("rule: ")]
    assert shown and all(c["strength"] == round(c["strength"], 1) for rule in shown for c in rule["clauses"])
    (mended,) = [r for r in rows if FEATURES[r["feature"]].kind == "topic"]
    assert mended["text"] == "truth of topic" and mended["input_tokens"] > 0


def test_a_wrong_rule_is_not_made_to_look_right(store: Store) -> None:
    """What is left is the rule of `patterns`, under its own words."""
    patterns = patterns_of(store)
    rows, _ = labelled(store, RuleOracle("wrong", stubborn=True))
    differences, truths = [], Truths(store)
    for row in rows:
        feature, rule = row["feature"], Rule.from_json(row["rule"])
        report, before = (truths.value(one, feature) for one in (rule, patterns[feature]))
        assert report == pytest.approx(before, abs=0.03)
        differences.append(truths.value(rule, feature, "select") - report)
    assert abs(sum(differences)) / len(differences) < 0.03
    assert sum(row["rule"] == patterns[row["feature"]].to_json() for row in rows) >= len(rows) - 2
    assert sum("that of patterns" in (row["error"] or "") for row in rows) >= len(rows) - 2
    assert not any("wrong of" in (row["text"] or "") for row in rows if not Rule.from_json(row["rule"]).clauses)


@pytest.mark.slow
@pytest.mark.parametrize("quality", ["truth", "near_miss", "wrong"])
def test_more_worlds(quality: str, tmp_path: Path) -> None:
    mended, optimism = [], []
    for seed in range(1, 6):
        with world_store(tmp_path / f"{seed}.duckdb", seed=seed) as store:
            rows, _ = labelled(store, RuleOracle(quality, stubborn=quality == "wrong"))
            values, truths = reported(rows, store), Truths(store)
            mended += [value > 0.95 for value in values.values()]
            optimism += [
                truths.value(Rule.from_json(r["rule"]), r["feature"], "select") - values[FEATURES[r["feature"]].kind]
                for r in rows
            ]
    assert abs(sum(optimism)) / len(optimism) < 0.02
    if quality != "wrong":
        assert sum(mended) >= (0.9 if quality == "near_miss" else 1.0) * len(mended)


def test_the_report_part_is_never_read(store: Store, tmp_path: Path) -> None:
    some = "0,2,4"
    rows, _ = labelled(store, RuleOracle("near_miss"), some)
    with world_store(tmp_path / "poisoned.duckdb", poison="bank") as poisoned:
        assert labelled(poisoned, RuleOracle("near_miss"), some)[0] == rows


# --- replies ----------------------------------------------------------------------------------------------------------


def test_a_reply_that_cannot_be_read_is_asked_once_more_and_told_why(store: Store) -> None:
    bad = {"label": "x", "clauses": [{"says": "", "strength": 3, "all": [{"wrd": ["bank"]}]}]}

    def spoil(kind: str, body: dict[str, Any], attempt: int) -> BrainReply | None:
        return BrainReply(json.dumps(bad)) if len(body["messages"]) == 2 else None

    rows, server = labelled(store, RuleOracle("truth", spoil=spoil), "2-3", rounds=0)
    assert [r["text"] for r in rows] == ["truth of topic", "truth of not_topic"] and len(server.requests) == 4
    again = next(r["messages"] for r in server.requests if len(r["messages"]) == 4)
    assert json.loads(again[2]["content"]) == bad
    assert "unknown key 'wrd'" in again[3]["content"] and "word" in again[3]["content"]


@pytest.mark.parametrize(
    ("reply", "status", "why"),
    [
        ("I cannot say.", "unparseable", "no JSON object"),
        ('{"label": "x", "clauses": []}', "unparseable", "clauses"),
        ('{"label": null, "clauses": [{"strength": 1, "all": [{"word": ["a"]}]}]}', "unparseable", "no phrase"),
        ('{"label": "label", "clauses": [{"strength": 1, "all": [{"word": ["a"]}]}]}', "unparseable", "own form"),
        ('{"label": "x", "clauses": [{"strength": 99, "all": [{"word": ["a"]}]}]}', "unparseable", "strength"),
        ('{"label": null, "output": null, "clauses": []}', "abstained", None),
    ],
)
def test_a_reply_without_a_rule(store: Store, reply: str, status: str, why: str | None) -> None:
    ((row,), server) = labelled(store, lambda *_: BrainReply(reply), "2")
    assert (row["status"], row["text"]) == (status, None)
    assert len(server.requests) == (2 if status == "unparseable" else 1)
    assert (row["error"] is None) if why is None else why in row["error"]


def test_the_last_object_of_a_reply_counts(store: Store) -> None:
    topic = FEATURES[KINDS["topic"]]
    reply = f"{topic.reply('wrong')}\nNo:\n```json\n{topic.reply('truth')}\n```\nDone."
    ((row,), _) = labelled(store, lambda *_: BrainReply(reply), "2")
    assert row["text"] == "truth of topic"


def test_what_only_leads_to_something_is_a_label_of_the_output_side(store: Store) -> None:
    reply = '{"label": null, "output": "names of rivers", "clauses": []}'
    ((row,), _) = labelled(store, lambda *_: BrainReply(reply), "2")
    assert (row["status"], row["text"], row["side"]) == ("ok", "names of rivers", "output")
    asyncio.run(score(job(store), "rule", ScoreConfig(contexts=5)))


def test_a_round_that_fails_leaves_the_rule_as_it_was(store: Store) -> None:
    def spoil(kind: str, body: dict[str, Any], attempt: int) -> Any:
        return BrainReply("no") if "it made mistakes" in body["messages"][0]["content"] else None

    ((row,), server) = labelled(store, RuleOracle("near_miss", spoil=spoil), "2")
    assert row["status"] == "ok" and row["text"].startswith("near miss of topic") and "round 1: " in row["error"]
    assert len(server.requests) == 3


def test_a_round_that_the_endpoint_gives_up_on_is_asked_again_by_the_next_run(store: Store) -> None:
    def spoil(kind: str, body: dict[str, Any], attempt: int) -> Any:
        return Fault("500") if "it made mistakes" in body["messages"][0]["content"] else None

    ((row,), server) = labelled(store, RuleOracle("near_miss", spoil=spoil), "2")
    assert row["status"] == "gave_up" and "round 1: " in row["error"]
    _, server = labelled(store, RuleOracle("near_miss"), "2")
    assert store.rows("SELECT status, text FROM explanations WHERE explainer = 'rule'") == [("ok", "truth of topic")]
    assert all("it made mistakes" in r["messages"][0]["content"] for r in server.requests)  # the first is in the ledger


def test_one_that_learns_nothing_is_asked_no_more(store: Store) -> None:
    """A round without gain is the last; without mistakes there is none."""
    ((row,), server) = labelled(store, RuleOracle("near_miss", stubborn=True), "2", rounds=5)
    assert len(server.requests) == 2 and row["text"].startswith("near miss of topic")
    _, server = labelled(store, RuleOracle("near_miss"), "3", rounds=0)
    assert len(server.requests) == 1


# --- runs -------------------------------------------------------------------------------------------------------------


def test_labels_are_made_once_and_again_for_other_rounds(store: Store) -> None:
    some = job(store, features="0-3", timeout=60.0)
    with LlmServer(RuleOracle("truth")) as server:
        forecast = forecast_explain(some, config(server))
        assert (forecast.features, forecast.calls) == (4, 3 * 4)
        assert forecast_explain(some, config(server, rounds=0)).calls == 4
        assert asyncio.run(explain(some, config(server))).statuses == {"ok": 4}
        sent = len(server.requests)
        assert asyncio.run(explain(some, config(server))).pending == 0
        assert asyncio.run(explain(some, config(server, rounds=1))).pending == 4
        assert len(server.requests) == sent  # the same calls: nothing is paid for twice
    read, written = store.rows("SELECT sum(input_tokens), sum(output_tokens) FROM llm_calls")[0]
    assert read <= forecast.input_tokens and written <= forecast.output_tokens


def test_a_harvest_that_did_not_count_its_tiles_is_refused(store: Store) -> None:
    with store.transaction() as con:
        con.execute("UPDATE harvests SET report = '{}'")
    with pytest.raises(InputError, match="did not count how many tiles"):
        labelled(store, RuleOracle("truth"))


def test_evidence_without_known_tiles_will_do(tmp_path: Path) -> None:
    """That of older harvests: the contexts alone are fitted to, and silent ones stand for the corpus."""
    path = tmp_path / "planted.duckdb"
    planted_store(path, 2).close()
    count_tiles(path, "select", 60)
    reply = {"label": "greek", "clauses": [{"strength": 5, "all": [{"word": ["alpha", "beta"]}]}]}
    with Store.open(path) as store:
        rows, _ = labelled(store, lambda *_: BrainReply(json.dumps(reply)), rounds=1)
    assert [row["status"] for row in rows] == ["ok", "ok"]


def test_without_a_model_it_is_refused(store: Store) -> None:
    with pytest.raises(InputError, match=r"set explain\.model"):
        asyncio.run(explain(job(store), ExplainConfig(explainer="rule")))
