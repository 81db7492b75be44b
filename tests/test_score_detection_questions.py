"""Detection and fuzzing: which contexts are asked about, what is marked, how replies are read and scored; then the
whole way through the real client, a real server and a real store."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.known_words import CHOICE_SCORERS, WORDS, World, choice_question, contexts, job, toss, with_tokens
from support.llm_server import BrainReply, Fault, LlmServer

from autointerp import stats
from autointerp.ask.chat import ReplyError
from autointerp.ask.job import Job, Outcome
from autointerp.config import BudgetConfig, ExplainConfig, PriceConfig, ScoreConfig
from autointerp.errors import InputError, StoppedError
from autointerp.explain.explaining import explain
from autointerp.records import Context, Explanation
from autointerp.score.detection_questions import (
    DETECTION,
    FUZZING,
    Example,
    active_places,
    answer_of,
    balanced,
    batches,
    borrowed_places,
    choose_examples,
    detection_rows,
    pieces,
    read_answers,
)
from autointerp.score.score_rows import Answer, Identity
from autointerp.score.scoring import forecast_score, score
from autointerp.store import Store

# --- contexts -------------------------------------------------------------------------------------------------------


def with_deciles(feature: int = 0) -> list[Context]:
    """The planted contexts of a feature, the sampled ones in deciles 0, 0, 0, 0, 4, 4, 9, 9."""
    deciles = [0, 0, 0, 0, 4, 4, 9, 9]
    return [
        replace(c, decile=deciles[c.rank], position=100 + c.rank) if c.kind == "sampled" else c
        for c in contexts(feature, "report")
    ]


def test_deciles_and_tiers_take_turns() -> None:
    chosen = choose_examples(DETECTION, with_deciles(), 3, 0, 1)
    active = [e.context for e in chosen if e.active]
    assert len(chosen) == 12 and {c.kind for c in active} == {"sampled"}
    assert Counter(c.decile for c in active) == {0: 2, 4: 2, 9: 2}
    tiers = Counter(e.context.tier for e in chosen if not e.active)
    assert tiers == {"random": 3, "same_token": 2, "neighbour": 1}
    # Where a tier is short, the others fill in; without random ones there is no score of ordinary text.
    hard = [c for c in with_deciles() if c.tier != "random"]
    few = Counter(e.context.tier for e in choose_examples(DETECTION, with_deciles(), 4, 0, 1) if not e.active)
    assert few == {"random": 3, "same_token": 3, "neighbour": 2} and choose_examples(DETECTION, hard, 4, 0, 1) == []
    assert all(e.marked == () for e in chosen)


def test_top_contexts_fill_in_and_no_peak_is_shown_twice() -> None:
    every = with_deciles()
    chosen = choose_examples(DETECTION, every, 6, 0, 1)
    assert Counter(e.context.kind for e in chosen) == {"sampled": 8, "top": 4, "negative": 8}
    sampled = next(c for c in every if c.kind == "sampled")
    twin = replace(sampled, kind="top", context_id=777)
    assert twin not in [e.context for e in choose_examples(DETECTION, [*every, twin], 50, 0, 1)]
    assert choose_examples(DETECTION, [c for c in every if c.kind != "negative"], 6, 0, 1) == []
    assert choose_examples(FUZZING, [c for c in every if c.kind == "negative"], 6, 0, 1) == []


def test_the_order_is_the_seeds_and_the_base_rate_is_left_to_chance() -> None:
    every = with_deciles()
    one = choose_examples(DETECTION, every, 4, 0, 1)
    assert one == choose_examples(DETECTION, every, 4, 0, 1)
    assert one != choose_examples(DETECTION, every, 4, 1, 1)
    counts = Counter(
        sum(e.active for e in batch)
        for seed in range(60)
        for batch in batches(choose_examples(DETECTION, every, 4, seed, 1), 5)
    )
    assert {1, 2, 3, 4} <= set(counts)


def with_counts(active: int, silent: int) -> list[Example]:
    """That many contexts, told apart by their ids alone."""
    base = contexts(0, "report")
    yes, no = base[0], next(c for c in base if c.kind == "negative")
    return [
        *(Example(replace(yes, context_id=i)) for i in range(active)),
        *(Example(replace(no, context_id=1000 + i)) for i in range(silent)),
    ]


@given(st.integers(0, 24), st.integers(0, 24), st.integers(1, 9), st.booleans())
def test_a_deal_keeps_the_examples_and_few_batches_lack_an_activating_one(
    active: int, silent: int, size: int, again: bool
) -> None:
    every = with_counts(active, silent)
    dealt = batches(every, size, again)
    assert dealt == batches(every, size, again)
    assert sorted(e.context.context_id for b in dealt for e in b) == sorted(e.context.context_id for e in every)
    assert all(1 <= len(b) <= size for b in dealt)
    with_none = sum(not any(e.active for e in b) for b in dealt)
    assert with_none <= max(0, len(dealt) - 3 * active // 4)


@pytest.mark.parametrize("size", [2, 3, 5, 8])
def test_how_many_of_a_batch_are_activating_varies(size: int) -> None:
    """With 20 of either kind. By chance alone, 24 % of all pairs would lack an activating one."""
    every = with_counts(20, 20)
    found = Counter(
        sum(e.active for e in b) for seed in range(60) for b in batches(random.Random(seed).sample(every, 40), size)
    )
    assert found[0] / found.total() < (0.18 if size == 2 else 0.01)
    assert len([n for n in found if n > 0]) >= min(size, 4) and max(found.values()) / found.total() < 0.75
    mean = sum(n * times for n, times in found.items()) / found.total()
    assert mean == pytest.approx(size * 0.5, abs=0.3)


def test_features_with_few_activating_contexts_are_asked_about_fewer_silent_ones() -> None:
    every = with_deciles()
    two = [c for c in every if c.kind == "negative"] + [c for c in every if c.kind == "sampled"][:2]
    assert Counter(e.active for e in choose_examples(DETECTION, two, 4, 0, 1, 3)) == {True: 2, False: 4}
    assert Counter(e.active for e in choose_examples(DETECTION, two, 4, 0, 1, 1)) == {True: 2, False: 8}
    kept = [e.context.tier for e in choose_examples(DETECTION, two, 4, 0, 1, 3) if not e.active]
    assert kept.count("random") == 3


@pytest.mark.parametrize(("n", "size", "sizes"), [(0, 5, []), (1, 5, [1]), (10, 5, [5, 5]), (11, 5, [3, 4, 4])])
def test_batches_are_even(n: int, size: int, sizes: list[int]) -> None:
    example = Example(contexts(0, "report")[0])
    assert [len(b) for b in batches([example] * n, size)] == sizes


# --- marks ----------------------------------------------------------------------------------------------------------


def test_marks_of_an_activating_context() -> None:
    c = with_tokens(contexts(0, "report")[0], ["a", "b", "", "ü", "c"], [0.0, 3.0, 10.0, 0.0, 2.9])
    # The first piece of a character shows nothing: its mark is that of the piece that does.
    assert active_places(c) == (1, 3)
    assert pieces(Example(c, (1, 3))) == ["a", ["b"], ["ü"], "c"]
    assert active_places(with_tokens(c, ["", ""], [1.0, 0.0])) == ()


def test_silent_contexts_are_marked_like_activating_ones() -> None:
    """As many tokens at the same places: neither gives the answer away."""
    chosen = choose_examples(FUZZING, with_deciles(), 4, 0, 1)
    active = Counter(e.marked for e in chosen if e.active)
    silent = Counter(e.marked for e in chosen if not e.active)
    assert active == silent and sum(active.values()) == 8
    for e in chosen:
        if e.active:
            assert {e.context.tokens[i] for i in e.marked} == {WORDS[0]}


@given(
    st.lists(st.sampled_from(["", "a", "<<", ">>", '"]', "\n"]), max_size=12),
    st.lists(st.floats(0, 5), min_size=1, max_size=12),
)
def test_borrowed_places_show_and_are_as_many_as_can_be(tokens: list[str], activations: list[float]) -> None:
    base = contexts(0, "report")[0]
    lending = with_tokens(base, ["x"] * len(activations), activations)
    lender = Example(lending, active_places(lending))
    context = with_tokens(base, tokens, [0.0] * len(tokens))
    places = borrowed_places(context, lender)
    assert list(places) == sorted(set(places)) and all(tokens[i] for i in places)
    assert len(places) == min(len(lender.marked), sum(map(bool, tokens)))
    shown = pieces(Example(context, places))
    assert "".join(p if isinstance(p, str) else p[0] for p in shown) == "".join(tokens)


# --- replies --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "[1, 0, 1]", "[1,0,1]", "```json\n[1, 0, 1]\n```", "[true, false, true]", '{"answers": ["1", "0", "1"]}',
        "Excerpt 1 has it [0, 0]. So:\n[1, 0, 1]", "[1, 0, 1,]", "The first is [sic] it: [ 1 ,\n0 , 1 ]",
        "[0, 0, 0]\nNo, wait.\n[1, 0, 1]\n[see above]", "rows[ [1, 0, 1] and more",
    ],
)  # fmt: skip
def test_answers_are_read(text: str) -> None:
    if text.startswith("rows["):
        # An open bracket before it: this may be an array in an array, and is asked again.
        with pytest.raises(ReplyError):
            read_answers(text, 3)
        return
    assert read_answers(text, 3) == [True, False, True]


@pytest.mark.parametrize(
    ("text", "status"),
    [
        ("", "no_answer"), ("1, 0, 1", "no_answer"), ("[1, 0, 2]", "no_answer"), ("[1, , 1]", "no_answer"),
        ("[1, 0, maybe]", "no_answer"), ("[]", "no_answer"), ("[1, 0]", "answer_count"),
        ("[1, 0, 1, 0]", "answer_count"), ("[1, 0, 1] but of the last two [0, 1]", "answer_count"),
        ("[[1, 1, 0], [1, 0, 1]]", "no_answer"), ("[[1, 0, 1],\n   [2, 0, 0]]", "no_answer"),
        ("[1, 0, 1]" + " " * 100 + "]", "no_answer"),
    ],
)  # fmt: skip
def test_unusable_replies_are_errors(text: str, status: str) -> None:
    with pytest.raises(ReplyError) as caught:
        read_answers(text, 3)
    assert caught.value.status == status


def test_a_long_reply_is_read_in_no_time() -> None:
    for text in ("[" * 200_000, "[1," * 100_000, "[" + " " * 500_000, "[1]," * 100_000):
        with pytest.raises(ReplyError):
            read_answers(text, 3)


# --- scores ---------------------------------------------------------------------------------------------------------

LABEL = Explanation("e" * 32, 1, 0, 1, "contexts", "m", "t", "v", 0, "a label", "ok")
IDENTITY = Identity(LABEL, 1, "answers", None, "judge", "t" * 64, 0)


def answers(said: Any = None, failed: dict[int, str] | None = None) -> list[Answer]:
    """8 activating and 8 silent contexts in turn; `said(example)` is the answer, the truth where there is none."""
    chosen = sorted(choose_examples(DETECTION, with_deciles(), 4, 0, 1), key=lambda e: e.context.context_id)
    mixed = [e for pair in zip(chosen[:8], chosen[8:], strict=True) for e in pair]
    out = []
    for i, e in enumerate(mixed):
        status = (failed or {}).get(i, "ok")
        out.append(answer_of(e, (e.active if said is None else said(e)) if status == "ok" else None, status))
    return out


def test_the_rows_of_a_perfect_label() -> None:
    rows = detection_rows(IDENTITY, DETECTION, answers())
    assert [(r.scorer.removeprefix("detection"), r.n) for r in rows] == [
        ("_sensitivity_decile_0", 4), ("_sensitivity_decile_4", 2), ("_sensitivity_decile_9", 2),
        ("_specificity_random", 3), ("_specificity_same_token", 3), ("_specificity_neighbour", 2),
        ("_sensitivity", 8), ("_specificity", 8), ("", 16),
    ]  # fmt: skip
    assert all(r.value == 1.0 and r.status == "ok" and r.n_failed == 0 for r in rows)
    # Of few documents it is not known how much alike their contexts are; the headline's interval supposes that not.
    assert rows[-1].ci_high == 1.0 and {r.ci_high for r in rows} <= {1.0, None}
    # All right is no proof of always right: the interval stays open below.
    assert rows[-1].ci_low is not None and 0.6 < rows[-1].ci_low < 0.9
    assert len({r.score_id for r in rows}) == len(rows)
    assert [len(r.predictions) for r in rows] == [0] * 8 + [16]
    assert {(p.truth[0], p.predicted[0]) for p in rows[-1].predictions if p.predicted} == {(1.0, 1.0), (0.0, 0.0)}


def test_a_constant_judge_scores_a_half() -> None:
    for said, sensitivity in ((True, 1.0), (False, 0.0)):
        rows = {r.scorer: r for r in detection_rows(IDENTITY, DETECTION, answers(lambda _, s=said: s))}
        assert rows["detection"].value == 0.5
        assert rows["detection_sensitivity"].value == sensitivity
        assert rows["detection_specificity_neighbour"].value == 1.0 - sensitivity


def test_the_headline_counts_ordinary_silent_text_alone() -> None:
    """What features lack same-token or neighbour contexts for changes nothing in it."""
    rows = {r.scorer: r for r in detection_rows(IDENTITY, DETECTION, answers(lambda e: e.context.tier != "random"))}
    assert rows["detection"].value == 1.0 and rows["detection_specificity"].value == 3 / 8
    assert rows["detection_specificity_same_token"].value == rows["detection_specificity_neighbour"].value == 0.0
    fewer = [a for a in answers(lambda e: e.context.tier != "random") if a.context.tier != "same_token"]
    assert detection_rows(IDENTITY, DETECTION, fewer)[-1].value == 1.0


def test_failures_are_counted_and_never_answers() -> None:
    rows = {r.scorer: r for r in detection_rows(IDENTITY, DETECTION, answers(failed={0: "answer_count", 1: "refused"}))}
    headline = rows["detection"]
    assert (headline.n, headline.n_failed, headline.value, headline.status) == (16, 2, 1.0, "ok")
    assert rows["detection_sensitivity"].n_failed == rows["detection_specificity"].n_failed == 1
    assert sum(p.predicted is None for p in headline.predictions) == 2
    assert balanced(answers(failed=dict.fromkeys(range(9), "answer_count"))).status == "answer_count"
    assert balanced(answers(failed={3: "gave_up"})).status == "gave_up"
    # What is left is of one class: half of the contexts failed, no more.
    one_class = balanced(answers(failed=dict.fromkeys(range(0, 16, 2), "truncated")))
    assert one_class.status == "constant_truth" and one_class.estimate.value is None
    assert balanced([]).status == "no_contexts"
    assert [(r.status, r.value) for r in detection_rows(IDENTITY, DETECTION, [])] == [("no_contexts", None)] * 3


def test_the_interval_covers_the_truth() -> None:
    """Sensitivity .8, specificity .6, 20 contexts of each: about 95 % of the intervals hold .7."""
    draw = random.Random(0)
    held = 0
    for _ in range(2000):
        found = [sum(draw.random() < p for _ in range(20)) for p in (0.8, 0.6)]
        e = stats.balanced_accuracy_interval(found[0], 20, found[1], 20)
        assert e.low is not None and e.high is not None and e.value is not None and e.low <= e.value <= e.high
        held += e.low <= 0.7 <= e.high
    assert 0.93 < held / 2000 < 0.975
    assert stats.balanced_accuracy_interval(0, 0, 3, 3) == stats.Estimate(None, None, None, 3)


# --- the whole way --------------------------------------------------------------------------------------------------

N = 4
"""2 N activating and 2 N silent contexts in a score."""


def config(server: LlmServer, *scorers: str, **changed: Any) -> ScoreConfig:
    there = {"model": "test-model", "base_url": server.url, "scorers": scorers or CHOICE_SCORERS, "repeat_share": 0.0}
    return ScoreConfig(**{"contexts": N, **there, **changed})


def run_score(work: Job, settings_: ScoreConfig, control: str | None = None, explainer: str = "combined") -> Outcome:
    return asyncio.run(score(work, explainer, settings_, control))


def scores(store: Store, scorer: str, control: str | None = None) -> list[dict[str, Any]]:
    return store.dicts(
        "SELECT * FROM scores WHERE scorer = ? AND control IS NOT DISTINCT FROM ?::VARCHAR ORDER BY feature",
        [scorer, control],
    )


def judged(server: LlmServer) -> list[dict[str, Any]]:
    return [b for b in server.requests if "You judge" in b.get("messages", [{"content": ""}])[0]["content"]]


def test_an_oracle_scores_one(store: Store) -> None:
    with LlmServer(World()) as server:
        outcome = run_score(job(store), config(server))
        assert all(len(choice_question(b)[1]) <= 5 for b in judged(server))
        assert len(judged(server)) == len(server.requests) == 2 * 4 * len(WORDS)
    assert outcome.pending == 2 * len(WORDS) and outcome.statuses == {"ok": 2 * len(WORDS)}
    assert (outcome.method, outcome.failed) == ("answers_ordinary", 0)
    for scorer in CHOICE_SCORERS:
        rows = scores(store, scorer)
        found = [(r["value"], r["n"], r["n_failed"], r["method"]) for r in rows]
        assert found == [(1.0, 16, 0, "answers_ordinary")] * 6
        assert all(0.6 < r["ci_low"] < 1.0 == r["ci_high"] for r in rows)
        for part in ("sensitivity", "specificity", "sensitivity_decile_9", "specificity_same_token"):
            assert [r["value"] for r in scores(store, f"{scorer}_{part}")] == [1.0] * 6
    kept = store.rows(
        "SELECT s.scorer, c.kind = 'negative', p.truth, p.predicted, p.status, count(*) FROM predictions p "
        "JOIN scores s USING (score_id) JOIN contexts c USING (context_id) GROUP BY ALL ORDER BY ALL"
    )
    assert kept == [
        (scorer, silent, [0.0 if silent else 1.0], [0.0 if silent else 1.0], "ok", 8 * 6)
        for scorer in ("detection", "fuzzing")
        for silent in (False, True)
    ]
    assert store.check() == []


def test_a_coin_and_controls_score_about_a_half(store: Store) -> None:
    with LlmServer(World(choose=toss)) as server:
        run_score(job(store), config(server))
    for scorer in CHOICE_SCORERS:
        rows = scores(store, scorer)
        assert sum(r["value"] for r in rows) / len(rows) == pytest.approx(0.5, abs=0.15)
        assert sum(r["ci_low"] <= 0.5 <= r["ci_high"] for r in rows) >= len(rows) - 1
    with LlmServer(World()) as server:
        for control in ("shuffled", "empty"):
            run_score(job(store), config(server), control=control)
    for scorer in CHOICE_SCORERS:
        shuffled = scores(store, scorer, "shuffled")
        assert len(shuffled) == 6 and all(r["ci_low"] <= 0.5 <= r["ci_high"] for r in shuffled)
        # Another feature's word stands a little more often in the silent texts of this world, which have more room.
        assert 0.33 < sum(r["value"] for r in shuffled) / 6 < 0.6
        assert [r["value"] for r in scores(store, scorer, "empty")] == [0.5] * 6
        assert [r["value"] for r in scores(store, f"{scorer}_sensitivity", "empty")] == [0.0] * 6


def test_all_labels_of_a_feature_get_the_same_questions(store: Store) -> None:
    with LlmServer(World()) as server:
        few = job(store, features="2")
        run_score(few, config(server, DETECTION))
        run_score(few, config(server, DETECTION), control="empty")
        asked = [json.dumps(choice_question(b)[1]) for b in judged(server)]
    assert sorted(asked[:4]) == sorted(asked[4:])


def test_each_scorer_is_done_once(store: Store) -> None:
    with LlmServer(World()) as server:
        assert run_score(job(store), config(server, "simulation")).method == "numbers"
        simulated = len(server.requests)
        assert run_score(job(store), config(server, "simulation", DETECTION)).statuses == {"ok": len(WORDS)}
        added = len(server.requests) - simulated
        assert added == len(judged(server)) == 4 * len(WORDS)  # no probe: nothing is simulated
        outcome = run_score(job(store), config(server, FUZZING, "simulation", DETECTION))
        assert (outcome.pending, outcome.method) == (len(WORDS), "answers_ordinary")
        rows = store.row_counts()
        again = run_score(job(store), config(server, FUZZING, "simulation", DETECTION))
        assert (again.pending, again.method) == (0, None)
        assert store.row_counts() == rows and len(judged(server)) == 2 * 4 * len(WORDS)


def test_a_stopped_run_goes_on_and_pays_for_nothing_twice(store: Store) -> None:
    with LlmServer(World(), latency=0.01) as server:
        with pytest.raises(StoppedError):
            run_score(job(store, BudgetConfig(max_requests=9), max_connections=4), config(server))
        run_score(job(store), config(server))
        assert len({json.dumps(b) for b in judged(server)}) == len(judged(server)) == 2 * 4 * len(WORDS)
    assert all(r["value"] == 1.0 for scorer in CHOICE_SCORERS for r in scores(store, scorer))


def test_labels_with_rules_are_judged_by_an_llm(store: Store) -> None:
    asyncio.run(explain(job(store, features="0"), ExplainConfig(explainer="patterns")))
    few = job(store, features="0")
    with pytest.raises(InputError, match="'detection' asks an LLM; set score.model"):
        run_score(few, ScoreConfig(scorers=("simulation", DETECTION)), explainer="patterns")
    choose = lambda label, asked, found: "`alpha`" in label and " alpha" in "".join(found)  # noqa: E731
    with LlmServer(World(choose=choose)) as server:
        outcome = run_score(few, config(server, "simulation", DETECTION), explainer="patterns")
    assert (outcome.pending, outcome.method, outcome.statuses) == (2, "rule, answers_ordinary", {"ok": 2})
    assert scores(store, DETECTION)[0]["value"] == 1.0 and scores(store, "simulation")[0]["method"] == "rule"


def test_a_wrong_count_is_asked_again_once(store: Store) -> None:
    def spoil(kind: str, body: dict[str, Any], attempt: int) -> BrainReply | None:
        return BrainReply("[1]") if "could not be used" not in body["messages"][-1]["content"] else None

    with LlmServer(World(spoil=spoil)) as server:
        run_score(job(store, features="0"), config(server, DETECTION))
        assert len(judged(server)) == 8
    assert (scores(store, DETECTION)[0]["value"], scores(store, DETECTION)[0]["n_failed"]) == (1.0, 0)


def test_malformed_replies_are_failures_with_a_count(store: Store) -> None:
    """One request of four for good: its contexts are failures, never zeros. All of them: there is no score."""
    few = job(store, features="0")
    spoilt: set[str] = set()

    def one(kind: str, body: dict[str, Any], attempt: int) -> BrainReply | None:
        asked = body["messages"][1]["content"]
        if not spoilt:
            spoilt.add(asked)
        return BrainReply("I think all of them.") if asked in spoilt else None

    with LlmServer(World(spoil=one)) as server:
        run_score(few, config(server, FUZZING))
    row = scores(store, FUZZING)[0]
    assert (row["value"], row["n"], row["n_failed"], row["status"]) == (1.0, 16, 4, "ok")
    assert "I think all of them" in row["error"]
    assert store.rows("SELECT status, count(*) FROM predictions WHERE predicted IS NULL GROUP BY ALL") == [
        ("no_answer", 4)
    ]
    with LlmServer(World(spoil=lambda kind, body, attempt: BrainReply("[1, 2]"))) as server:
        outcome = run_score(few, config(server, FUZZING, seed=1))
    assert outcome.statuses == {"no_answer": 1} and outcome.failed == 1
    hopeless = next(r for r in scores(store, FUZZING) if r["seed"] == 1)
    assert hopeless["value"] is None and hopeless["n_failed"] == hopeless["n"] == 16


def test_an_endpoint_that_gives_up_is_asked_again_later(store: Store) -> None:
    few = job(store, features="0", attempts=1)
    with LlmServer(World(spoil=lambda kind, body, attempt: Fault("truncated_json"))) as server:
        assert run_score(few, config(server, DETECTION)).statuses == {"gave_up": 1}
    with LlmServer(World()) as server:
        assert run_score(few, config(server, DETECTION)).statuses == {"ok": 1}
    assert scores(store, DETECTION)[0]["value"] == 1.0 and store.check() == []
    assert store.rows("SELECT count(*) FROM predictions") == [(16,)]


def test_a_prompt_too_long_is_parted(store: Store) -> None:
    def spoil(kind: str, body: dict[str, Any], attempt: int) -> Fault | None:
        return Fault("ctx_too_long") if len(choice_question(body)[1]) > 2 else None

    with LlmServer(World(spoil=spoil)) as server:
        run_score(job(store, features="0"), config(server, DETECTION))
        assert sorted(len(choice_question(b)[1]) for b in judged(server)) == [2] * 8 + [4] * 4
    assert (scores(store, DETECTION)[0]["value"], scores(store, DETECTION)[0]["n_failed"]) == (1.0, 0)


def test_unknown_scorers_and_sizes_are_refused(store: Store) -> None:
    with pytest.raises(InputError, match="no scorer 'detecton'.*detection"):
        run_score(job(store), ScoreConfig(scorers=("detecton",)))
    with pytest.raises(InputError, match="examples_per_call"):
        ScoreConfig(examples_per_call=0)
    with pytest.raises(InputError, match="base_url"):
        ScoreConfig(base_url="no-url")


def test_forecasts_come_near_what_is_asked(store: Store) -> None:
    priced = job(store, prices={"test-model": PriceConfig(input=1.0, output=2.0)})
    with LlmServer(World()) as server:
        wanted = config(server, "simulation", *CHOICE_SCORERS)
        told = forecast_score(priced, "combined", wanted)
        assert not server.requests
        run_score(job(store), wanted)
        spent = dict(store.rows("SELECT stage, count(*) FROM llm_calls GROUP BY stage"))
        read = store.rows("SELECT sum(input_tokens) FROM llm_calls WHERE stage IN ('simulate', 'detection', 'fuzzing')")
        assert forecast_score(priced, "combined", wanted).calls == 0
    assert told.features == len(WORDS)
    assert told.calls == spent["simulate"] + spent["detection"] + spent["fuzzing"] == (3 * N + 8) * len(WORDS)
    assert told.input_tokens == pytest.approx(read[0][0], rel=0.5)
    assert told.usd == pytest.approx((told.input_tokens + 2 * told.output_tokens) / 1e6)
