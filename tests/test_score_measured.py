"""Scorers that need the model: what they ask of it and of the LLM, how both answers are read and scored; then the whole
way through a real client, server and store, with a measurer that knows which words the planted features fire on."""

from __future__ import annotations

import asyncio
import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.hostile_text import HOSTILE
from support.known_words import FILLERS, MEASURED_SCORERS, WORDS, World, contexts, job, planted_store, truth
from support.llm_server import BrainReply, Fault, LlmServer
from support.prompt_snapshots import check, written

from autointerp import stats
from autointerp.ask.chat import ReplyError
from autointerp.ask.job import Outcome
from autointerp.ask.prompts import load_template
from autointerp.clustered_shares import share_of
from autointerp.config import BudgetConfig, Config, ExplainConfig, PriceConfig, ScoreConfig
from autointerp.errors import AutointerpError, InputError, StoppedError
from autointerp.explain.explaining import explain
from autointerp.records import Explanation, Measurement, MeasureTask
from autointerp.score.auroc import auroc_rows, number_answer
from autointerp.score.detection_questions import DETECTION, choose_examples
from autointerp.score.embedding import similarity_asked
from autointerp.score.generation import MAX_TEXT, Author, Texts, generation_rows, read_texts, snippets
from autointerp.score.intervention import gain_asked, intervention_rows
from autointerp.score.ordinary_firing import OrdinaryFiring
from autointerp.score.output import (
    QUESTIONS,
    Choice,
    Chooser,
    Question,
    ShownText,
    draw_questions,
    output_rows,
    read_choice,
)
from autointerp.score.score_rows import Identity
from autointerp.score.scoring import forecast_score, score
from autointerp.score.steered_texts import PROMPTS, beginnings, prompts_for
from autointerp.score.surprisal import surprisal_answers, surprisal_asked
from autointerp.stages import labelling
from autointerp.stages.labelling import Labelling
from autointerp.store import Selection, Store
from autointerp.tasks import Steering
from autointerp.terminal import Terminal

# --- prompts ---------------------------------------------------------------------------------------------------------


def question(*labels: str) -> Question:
    return Question(labels, 0)


def test_generation_prompt() -> None:
    author = Author.of(ScoreConfig(model="some-model", sentences=3))
    shown = snippets(contexts(0, "select"))
    assert len(shown) == 2 and not any(WORDS[0] in text for text in shown)
    request = author.request('the word "alpha"\nExcerpts', shown, 1, 0)
    check("generation", written(request))
    assert (request.stage, request.dictionary_id, request.feature) == ("generation", 1, 0)
    check("generation_again", written(author.again(request, "No.", "there is no JSON object")))


def test_output_prompt() -> None:
    chooser = Chooser.of(ScoreConfig(model="some-model"))
    texts = [ShownText(" the tree", " is of", " alpha alpha"), ShownText("seven (", " a)", " the alpha")]
    asked = question("the word alpha", 'the word "beta"\n2: fake', "")
    request = chooser.request(asked, texts, 1, 0)
    check("output", written(request))
    check("output_again", written(chooser.again(request, "7", "there is no description 7", asked)))


def test_texts_and_labels_stay_data() -> None:
    """Neither a text of the corpus, nor what the model wrote, nor a label ends a line or forges a mark."""
    nasty = "".join(HOSTILE)
    chooser = Chooser.of(ScoreConfig(model="m"))
    asked = chooser.request(question(nasty, "b"), [ShownText(nasty, nasty, nasty)], 1, 0)
    lines = asked.body["messages"][1]["content"].splitlines()
    assert len(lines) == 7 and all(line.isprintable() for line in lines)
    assert json.loads(lines[1]) == {"beginning": nasty, "as usual": nasty, "changed": nasty}
    assert json.loads(lines[4].removeprefix("1: ")) == nasty
    author = Author.of(ScoreConfig(model="m"))
    lines = author.request(nasty, [nasty], 1, 0).body["messages"][1]["content"].splitlines()
    assert len(lines) == 5 and json.loads(lines[3]) == nasty
    fence = lines[2].rsplit(" ", 1)[1]
    assert [line for line in lines if fence in line] == [lines[2], lines[4]]


def test_what_a_language_model_reads() -> None:
    examples = choose_examples(DETECTION, contexts(0, "report"), 2, 0, 1)
    payload = surprisal_asked("{{ the }}\nword", examples, load_template("score/surprisal"), "gpt2").payload()
    described, undescribed = payload["prefixes"]
    assert described.endswith("in common: {{ the }} word\n") and undescribed.endswith("things\n")
    assert payload["texts"] == [e.context.text for e in examples] and payload["language_model"] == "gpt2"
    steering = Steering(["a"], 0.5, 20, 3, 0.75, 0)
    gain = gain_asked(" the\nword ", steering, load_template("score/intervention"), "").payload()
    assert gain["label"] == "the word" and gain["template"].endswith("{label}") and "\n{text}\n" in gain["template"]
    mini = "local:models/mini"
    similar = similarity_asked("the word", examples, load_template("score/embedding"), mini).payload()
    assert (similar["query"], similar["model"]) == ("the word", "local:models/mini")


# --- replies ---------------------------------------------------------------------------------------------------------


def test_a_text_is_cut_and_fit_for_the_store() -> None:
    written_ = {"active": ["x" * 499 + " y" * 400], "silent": ["a\ud800\x00\tb\n"], "lookalike": ["c"]}
    found = read_texts(json.dumps(written_), 1)
    assert found == Texts(["x" * 499], ["a\tb"], ["c"]) and MAX_TEXT == 500


@pytest.mark.parametrize(
    "reply",
    [
        '{"active": ["a"], "silent": ["b", "c"], "lookalike": ["d", "e"]}',
        '{"active": ["a", "b", "c"], "silent": ["b", "c"], "lookalike": ["d", "e"]}',
        '{"active": ["a", " \\u0007 "], "silent": ["b", "c"], "lookalike": ["d", "e"]}',
        '{"active": ["a", "b"], "silent": ["b", "c"], "lookalike": ["d", 1]}',
    ],
)  # fmt: skip
def test_wrong_counts_are_no_answer(reply: str) -> None:
    with pytest.raises(ReplyError) as problem:
        read_texts(reply, 2)
    assert problem.value.status == "sentence_count"


def test_nested_replies_do_no_harm() -> None:
    for text in ("{" * 200_000, '{"a":' * 50_000, "[" * 100_000 + '{"active":[', '{"a":["{"' * 20_000):
        with pytest.raises(ReplyError):
            read_texts(text, 1)
    assert read_texts('{"active": ["f() { return {} }"], "silent": ["{\\"active\\": []}"], "lookalike": ["["]}', 1)


@pytest.mark.parametrize(
    ("reply", "choice"),
    [
        ('{"answer": 2}', 1), ('First {"answer": 1}, no: {"answer": "3"}.', 2), (" 3.\n", 2), ("**1**", 0),
        ('{"answer": 4}', None), ('{"answer": 0}', None), ('{"answer": true}', None), ('{"answer": 1.5}', None),
        ("It is description 2", None), ("", None), ('{"answer": [1]}', None), ("²", None),
    ],
)  # fmt: skip
def test_choices_are_read(reply: str, choice: int | None) -> None:
    if choice is None:
        with pytest.raises(ReplyError, match="answer|description"):
            read_choice(reply, 3)
    else:
        assert read_choice(reply, 3) == choice


# --- what is asked ---------------------------------------------------------------------------------------------------


def explanation(feature: int, text: str = "", model: str = "m") -> Explanation:
    return Explanation(
        f"e{feature}{text}{model}", 1, feature, 1, "combined", model, "t", "v", 0, text or f"the word{WORDS[feature]}",
        "ok",
    )  # fmt: skip


@given(st.integers(1, 8), st.integers(0, 5), st.integers(0, 3))
def test_questions_hold_the_label_among_others(n: int, feature: int, seed: int) -> None:
    every = [explanation(f) for f in range(6)]
    every += [explanation(4, every[0].text or ""), explanation(5, "elsewhere", "another")]
    own = every[feature]
    told = own.text or ""
    excluded = frozenset({feature, 1})
    found = draw_questions(own, told, every, excluded, n, seed)
    assert found == draw_questions(own, told, every[::-1], excluded, n, seed)
    allowed = {e.text for e in every if e.feature not in excluded and e.model == "m"} - {told}
    assert len(found) == len({q.labels for q in found}) == QUESTIONS
    for q in found:
        assert q.labels[q.right] == told and len(set(q.labels)) == len(q.labels) == 1 + min(n, len(allowed))
        assert set(q.labels) - {told} <= allowed
    assert draw_questions(own, told, [own], excluded, n, seed) == []


def test_questions_differ_in_order() -> None:
    every = [explanation(f) for f in range(6)]
    right = Counter(q.right for f in range(6) for seed in range(20) for q in draw_questions(
        every[f], every[f].text or "", every, frozenset({f}), 4, seed))  # fmt: skip
    assert set(right) == set(range(5)) and max(right.values()) < 3 * min(right.values())


def test_beginnings_are_other_features_silent_texts() -> None:
    pool = beginnings({f: contexts(f, "select") for f in range(3)})
    random_tier = {c.text for f in range(3) for c in contexts(f, "select") if c.tier == "random"}
    assert [f for f, _ in pool[:3]] == [0, 1, 2] and len({text for _, text in pool}) == len(pool)
    for feature, text in pool:
        assert any(whole.startswith(text) for whole in random_tier) and WORDS[feature] not in text
    for feature in range(3):
        chosen = prompts_for(pool, feature)
        assert len(chosen) == PROMPTS and not {t for f, t in pool if f == feature} & set(chosen)
    assert prompts_for(beginnings({0: contexts(0, "select")}), 0) == []


# --- scores ----------------------------------------------------------------------------------------------------------

IDENTITY = Identity(explanation(0), 1, "m", None, "judge", "t", 0)


TEXTS = Texts(["a", "b", "c", "d"], ["e", "f", "g", "h"], ["i", "j", "k", "l"])


def test_rows_of_generated_texts() -> None:
    result = {"max": [2.0, 1.0, None, 0.0, 0.0, 1.5, 0.0, 0.0, 3.0, 0.0, None, 0.0], "n_tokens": [16] * 12}
    ordinary = OrdinaryFiring(stats.wilson(100, 1000), 32.0)
    rows = {r.scorer.removeprefix("generation"): r for r in generation_rows(IDENTITY, TEXTS, result, ordinary)}
    assert list(rows) == ["_sensitivity", "_specificity", "_lookalikes", "_ordinary", "_lift", "_success", ""]
    # Of 3 x 4 pairs: 2 beats all, 1 beats the three zeros, 0 ties with three and loses one.
    assert rows[""].value == pytest.approx((4 + 3 + 1.5) / 12)
    assert (rows[""].n, rows[""].n_failed) == (8, 1)
    found = {part: (r.value, r.n, r.n_failed) for part, r in rows.items()}
    assert found["_sensitivity"] == (pytest.approx(2 / 3), 4, 1) and found["_specificity"] == (0.75, 4, 0)
    assert found["_lookalikes"] == (pytest.approx(2 / 3), 4, 1) and found["_success"] == (1.0, 8, 1)
    # Half as many tokens as a tile's: the share of two halves in which it does not fire is .9.
    assert found["_ordinary"] == (pytest.approx(1 - 0.9**0.5), 1000, 0)
    assert found["_lift"] == (pytest.approx(2 / 3 / (1 - 0.9**0.5)), 4, 1)
    for part in ("_ordinary", "_lift"):
        row = rows[part]
        assert row.ci_low is not None and row.value is not None and row.ci_high is not None
        assert row.ci_low < row.value < row.ci_high
    assert rows["_success"].ci_low is None
    low, high = rows[""].ci_low, rows[""].ci_high
    assert low is not None and high is not None and low < 0.5 < high
    tied = {r.scorer: r for r in generation_rows(IDENTITY, TEXTS, {"max": [1.0] * 12})}
    assert tied["generation"].value == 0.5 and tied["generation_success"].value == 0.0
    assert tied["generation_lookalikes"].value == 0.0
    assert tied["generation_ordinary"].status == tied["generation_lift"].status == "no_contexts"
    for values in ([None] * 12, [None] * 5 + [1.0] * 7, [None] * 4 + [1.0] * 8):
        nothing = generation_rows(IDENTITY, TEXTS, {"max": values})
        assert {(r.status, r.value, r.n) for r in nothing} == {("no_tokens", None, 12)}
    alone = generation_rows(IDENTITY, TEXTS, {"max": [1.0] * 8 + [None] * 4})
    assert [r.status for r in alone if r.scorer == "generation_lookalikes"] == ["no_tokens"]
    assert alone[-1].status == "ok"
    with pytest.raises(AutointerpError, match="list of 12 values"):
        generation_rows(IDENTITY, TEXTS, {"max": [1.0]})


def test_a_feature_that_fires_in_no_known_tile_has_a_lower_end_of_its_lift() -> None:
    result = {"max": [2.0] * 4 + [0.0] * 8, "n_tokens": [32] * 12}
    rows = {r.scorer: r for r in generation_rows(IDENTITY, TEXTS, result, OrdinaryFiring(stats.wilson(0, 2048), 32.0))}
    assert rows["generation_ordinary"].value == 0.0
    lift = rows["generation_lift"]
    assert (lift.status, lift.value, lift.ci_high) == ("no_false_alarm", None, None)
    assert lift.ci_low is not None and lift.ci_low > 200


def test_intervals_of_shares_and_ratios_hold_the_truth() -> None:
    """Tiles of one document fire together: half of them are the document's own draw."""
    rng = np.random.default_rng(2)
    names = [str(i // 8) for i in range(1600)]
    held = {"share": 0, "ratio": 0, "as if independent": 0}
    for _ in range(400):
        own, common = rng.random(1600) < 0.06, np.repeat(rng.random(200) < 0.06, 8)
        fires = np.where(rng.random(1600) < 0.5, own, common).astype(float)
        share = share_of(fires, names)
        plain = stats.wilson(int(fires.sum()), 1600)
        ratio = stats.ratio_of_shares(stats.wilson(rng.binomial(30, 0.7), 30), share)
        assert share.low is not None and share.high is not None and plain.low is not None and plain.high is not None
        assert ratio.low is not None and ratio.high is not None and share.low <= (share.value or 0.0) <= share.high
        held["share"] += share.low <= 0.06 <= share.high
        held["as if independent"] += plain.low <= 0.06 <= plain.high
        held["ratio"] += ratio.low <= 0.7 / 0.06 <= ratio.high
    assert 0.915 < held["share"] / 400 < 0.985 and 0.915 < held["ratio"] / 400 < 0.985
    assert held["as if independent"] / 400 < 0.9
    silent = share_of(np.zeros(16), ["a"] * 16)
    assert silent.value == 0.0 and silent.high is None  # one document


def test_rows_of_choices() -> None:
    right, wrong = Choice(True), Choice(False)
    rows = {r.scorer: r for r in output_rows(IDENTITY, 5, [right] * 5, [wrong] * 4 + [right])}
    assert [(s, r.value, r.n) for s, r in rows.items()] == [
        ("output_accuracy", 1.0, 5), ("output_random", 0.2, 5), ("output", 1.0, 5),
    ]  # fmt: skip
    plain, headline = rows["output_accuracy"], rows["output"]
    assert plain.ci_low is not None and headline.ci_low == pytest.approx((plain.ci_low - 0.2) / 0.8)
    chance = output_rows(IDENTITY, 5, [right] + [wrong] * 4, [])
    assert chance[-1].value == pytest.approx(0.0) and chance[1].status == "no_random_features"
    lost = Choice(None, "no_answer", "what?")
    some = output_rows(IDENTITY, 5, [right, right, right, lost, lost], [right])[-1]
    assert (some.value, some.n, some.n_failed, some.error) == (1.0, 5, 2, "what?")
    assert output_rows(IDENTITY, 5, [right, right, lost, lost, lost], [right])[-1].status == "no_answer"
    gone = output_rows(IDENTITY, 5, [*[right] * 4, Choice(None, "gave_up", "away")], [right])
    assert [r.status for r in gone] == ["gave_up", "ok", "gave_up"]


def test_rows_of_an_intervention() -> None:
    result = {"clean": [-3.0, -4.0, -3.5], "steered": [-1.0, -1.5, -2.0],
              "random": [[-3.0, -4.0, -3.0], [-2.0, -4.0, -3.0]]}  # fmt: skip
    rows = {r.scorer: r for r in intervention_rows(IDENTITY, 3, result)}
    assert list(rows) == ["intervention_gain", "intervention_random", "intervention"]
    assert rows["intervention_gain"].value == pytest.approx(2.0)  # 2, 2.5, 1.5
    assert rows["intervention_random"].value == pytest.approx(1 / 3)  # .5, 0, .5
    assert rows["intervention"].value == pytest.approx(5 / 3)  # 1.5, 2.5, 1
    spread = 4.303 * 0.7638 / 3**0.5
    assert rows["intervention"].ci_low == pytest.approx(5 / 3 - spread, abs=1e-3)
    partly = intervention_rows(IDENTITY, 3, {**result, "steered": [None, -1.5, -2.0]})[-1]
    assert (partly.n, partly.n_failed, partly.value) == (3, 1, pytest.approx(1.75))
    assert intervention_rows(IDENTITY, 3, {**result, "clean": [None, None, -1.0]})[-1].status == "no_tokens"
    assert [r.status for r in intervention_rows(IDENTITY, 3, {**result, "random": []})] == [
        "ok", "no_random_features", "no_random_features",
    ]  # fmt: skip


def test_rows_of_numbers() -> None:
    examples = choose_examples(DETECTION, contexts(0, "report"), 4, 0, 1)
    answers = [number_answer(e, 1.0 if e.active else 0.5 * (e.context.tier == "neighbour")) for e in examples]
    rows = auroc_rows(IDENTITY, "surprisal", answers)
    tiers = ["surprisal_random", "surprisal_same_token", "surprisal_neighbour"]
    assert [r.scorer for r in rows] == [*tiers, "surprisal"]
    assert [(r.value, r.n) for r in rows] == [(1.0, 11), (1.0, 11), (1.0, 10), (1.0, 16)]
    assert [len(r.predictions) for r in rows] == [0, 0, 0, 16]
    # Perfect separation of a few documents leaves room below.
    for row in rows:
        if row.scorer == "surprisal_neighbour":  # of two documents, which are too few
            assert row.ci_low is None
        else:
            assert row.ci_low is not None and row.ci_low < 0.95 and row.ci_high == 1.0
    worse = [number_answer(e, float(e.active != (e.context.tier == "neighbour"))) for e in examples]
    assert {r.scorer: r.value for r in auroc_rows(IDENTITY, "x", worse)}["x_neighbour"] == 0.5
    with_gap = surprisal_answers(examples, {"nll": [[2.0] * 15 + [None], [3.0] * 16]})
    assert [a.prediction.predicted for a in with_gap] == [[1.0]] * 15 + [None]
    headline = auroc_rows(IDENTITY, "x", with_gap)[-1]
    assert (headline.value, headline.n, headline.n_failed, headline.status) == (0.5, 16, 1, "ok")
    assert auroc_rows(IDENTITY, "x", [a for a in answers if a.prediction.truth == [1.0]])[-1].status == "constant_truth"
    assert [(r.scorer, r.status) for r in auroc_rows(IDENTITY, "x", [])] == [("x", "no_contexts")]


# --- the whole way ---------------------------------------------------------------------------------------------------

N = 4
LABELS = len(WORDS)


def word_of(label: str) -> str | None:
    return next((word for word in WORDS if f"the word{word}" in label), None)


class Writer(World):
    """Writes texts with the label's word and without any, and picks the description whose word the push brought."""

    def __call__(self, kind: str, body: dict[str, Any], attempt: int) -> BrainReply | Fault:
        spoiled = self.spoil(kind, body, attempt)
        if spoiled is not None:
            return spoiled
        system, asked = body["messages"][0]["content"], body["messages"][1]["content"].split("\n")
        if system.startswith("You write test texts"):
            word = word_of(json.loads(asked[0].removeprefix("description: "))) or ""
            n = int(asked[1].rsplit(" ", 1)[1])
            answer = {
                "active": [f"It is{i} the{word} tree" for i in range(n)],
                "silent": [f"It is{i}" for i in range(n)],
                "lookalike": [f"It is{i} the{word.upper()} tree" for i in range(n)],
            }
            return BrainReply(f"Here they are:\n```json\n{json.dumps(answer)}\n```")
        if system.startswith("You find out what a push did"):
            end = next(i for i, line in enumerate(asked) if line.startswith("End of texts"))
            changed = "".join(json.loads(line)["changed"] for line in asked[1:end])
            labels = [json.loads(line.split(": ", 1)[1]) for line in asked[end + 2 : -1]]
            fits = [i for i, label in enumerate(labels, 1) if (word := word_of(label)) and word in changed]
            return BrainReply(json.dumps({"answer": fits[0] if fits else 1}))
        return super().__call__(kind, body, attempt)


def tokens_of(text: str) -> list[str]:
    return re.findall(r" ?\w+|\W", text)


def answer(task: MeasureTask) -> dict[str, Any]:
    """What a model with the planted features would say."""
    p = task.payload
    if task.kind == "activations":
        found = [truth(task.feature, tokens_of(text)) for text in p["texts"]]
        return {"max": [max(values, default=None) for values in found], "n_tokens": [len(v) for v in found]}
    if task.kind == "surprisal":
        told = word_of(p["prefixes"][0])
        noisy = [3.0 + len(text) % 7 / 10 for text in p["texts"]]
        saved = [0.5 if told is not None and told in text else 0.0 for text in p["texts"]]
        return {"nll": [[n - s for n, s in zip(noisy, saved, strict=True)], noisy]}
    if task.kind == "similarity":
        word = word_of(p["query"])
        return {"cosine": [0.8 if word is not None and word in text else 0.1 for text in p["texts"]]}
    steering = p if task.kind == "steering" else p["steering"]
    n = len(steering["prompts"])
    others = [(task.feature + 1 + k) % LABELS for k in range(steering["n_random"])]
    clean = [f" of{FILLERS[6]} {i}" for i in range(n)]
    pushed = {f: [f" the{WORDS[f]}{WORDS[f]} {i}" for i in range(n)] for f in (task.feature, *others)}
    if task.kind == "steering":
        return {"strength": 9.0, "kl": steering["kl"], "clean": clean, "steered": pushed[task.feature],
                "random": [{"feature": f, "strength": 9.0, "kl": 0.5, "texts": pushed[f]} for f in others]}  # fmt: skip
    word = word_of(p["label"]) or "?"
    gain = lambda texts: [(-1.0 if word in t else -3.0) - 0.1 * i for i, t in enumerate(texts)]  # noqa: E731
    return {"clean": gain(clean), "steered": gain(pushed[task.feature]), "random": [gain(pushed[f]) for f in others]}


def measure(store: Store, reply: Callable[[MeasureTask], Measurement] | None = None) -> Counter[str]:
    """Answers everything that is asked; how many tasks of each kind there were."""
    tasks = store.tasks_to_measure(1)
    default = lambda task: Measurement(task.task_id, "ok", answer(task), None, 1, 1)  # noqa: E731
    store.insert_measurements([(reply or default)(task) for task in tasks])
    return Counter(task.kind for task in tasks)


def config(server: LlmServer | None, *scorers: str, **changed: Any) -> ScoreConfig:
    there = {} if server is None else {"model": "test-model", "base_url": server.url}
    chosen = scorers or MEASURED_SCORERS
    defaults = {"contexts": N, "scorers": chosen, "embedding_model": "local:mini", "steering_kl": 0.4}
    return ScoreConfig(**{**defaults, **there, **changed})


def run_score(store: Store, settings_: ScoreConfig, control: str | None = None, **of_job: Any) -> Outcome:
    return asyncio.run(score(job(store, **of_job), "combined", settings_, control))


def scores(store: Store, scorer: str, control: str | None = None) -> list[dict[str, Any]]:
    return store.dicts(
        "SELECT * FROM scores WHERE scorer = ? AND control IS NOT DISTINCT FROM ?::VARCHAR ORDER BY feature",
        [scorer, control],
    )


def values(store: Store, scorer: str, control: str | None = None) -> list[float | None]:
    return [row["value"] for row in scores(store, scorer, control)]


def test_true_labels_score_high(store: Store) -> None:
    """Ask, measure, judge: with the first run everything is asked, with the second everything is scored."""
    with LlmServer(Writer()) as server:
        first = run_score(store, config(server))
        assert (first.pending, first.waiting, first.done, first.failed) == (5 * LABELS, 5 * LABELS, 0, 0)
        assert len(server.requests) == LABELS and store.row_counts()["scores"] == 0
        assert measure(store) == dict.fromkeys(
            ("activations", "steering", "surprisal", "label_gain", "similarity"), LABELS
        )
        second = run_score(store, config(server))
        assert (second.pending, second.waiting, second.statuses) == (5 * LABELS, 0, {"ok": 5 * LABELS})
        assert second.method == "sentences, choose_label, language_model_ordinary, label_gain, cosine_ordinary"
        assert len(server.requests) == LABELS + 2 * QUESTIONS * LABELS
        third = run_score(store, config(server))
        assert (third.pending, third.method) == (0, None) and len(server.requests) == LABELS * (1 + 2 * QUESTIONS)
    for scorer in ("generation", "generation_success", "generation_sensitivity", "generation_specificity",
                   "generation_lookalikes", "output", "output_accuracy", "surprisal",
                   "surprisal_same_token", "embedding"):  # fmt: skip
        assert values(store, scorer) == [1.0] * LABELS, scorer
    assert values(store, "intervention") == [pytest.approx(2.0)] * LABELS
    assert values(store, "intervention_random") == [pytest.approx(0.0)] * LABELS
    # One of the texts of random features may fit by chance, as another description is not on offer.
    assert sum(v or 0.0 for v in values(store, "output_random")) / LABELS < 0.3
    models = {r["scorer"]: (r["model"], r["method"]) for r in store.dicts("SELECT * FROM scores")}
    assert models["generation"] == ("test-model", "sentences") and models["output"] == ("test-model", "choose_label")
    assert models["surprisal"] == ("subject model", "language_model_ordinary")
    assert models["intervention"] == ("subject model", "label_gain")
    assert models["embedding_random"] == ("local:mini", "cosine_ordinary")
    kept = store.rows(
        "SELECT s.scorer, count(*), count(DISTINCT c.split) FROM predictions p JOIN scores s USING (score_id) "
        "JOIN contexts c USING (context_id) WHERE c.split = 'report' GROUP BY ALL ORDER BY ALL"
    )
    assert kept == [("embedding", 4 * N * LABELS, 1), ("surprisal", 4 * N * LABELS, 1)]
    assert store.check() == []


def test_controls_score_low(store: Store) -> None:
    with LlmServer(Writer()) as server:
        for control in ("shuffled", "empty"):
            first = run_score(store, config(server), control)
            measure(store)
            second = run_score(store, config(server), control)
            assert second.waiting == first.failed == second.failed == 0
            assert first.done + second.done == 5 * LABELS
    for control in ("shuffled", "empty"):
        assert values(store, "generation", control) == [0.5] * LABELS
        assert values(store, "generation_sensitivity", control) == [0.0] * LABELS
        assert values(store, "generation_success", control) == [0.0] * LABELS
        for scorer in ("surprisal", "embedding"):
            # A word that two labels share moves one of them a little; the mean is at chance.
            found = [value or 0.0 for value in values(store, scorer, control)]
            assert abs(sum(found) / LABELS - 0.5) < 0.12
        chosen = [v or 0.0 for v in values(store, "output", control)]
        assert -0.25 <= sum(chosen) / LABELS < 0.4 and max(chosen) < 0.8
    assert all(v is not None and v < 1e-9 for v in values(store, "intervention", "shuffled"))
    assert {(r["status"], r["value"]) for r in scores(store, "intervention", "empty")} == {("empty_label", None)}
    assert scores(store, "generation") == []


def test_no_endpoint_is_needed_where_no_llm_is_asked(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    alone = config(None, "surprisal", "intervention", "embedding", language_model="some/lm")
    assert run_score(store, alone).waiting == 3 * LABELS
    assert {t.payload.get("language_model") for t in store.tasks_to_measure(1)} == {"some/lm", None}
    measure(store)
    assert run_score(store, alone).statuses == {"ok": 3 * LABELS}
    assert {r["model"] for r in scores(store, "surprisal")} == {"some/lm"}
    # The interval is of the contexts that detection asks about: another number of them is another task.
    asyncio.run(explain(job(store, features="0"), ExplainConfig(explainer="patterns")))
    outcome = asyncio.run(score(job(store, features="0"), "patterns", config(None, "surprisal")))
    assert outcome.waiting == 1


def test_what_depends_on_the_label_is_asked_for_each_and_the_rest_once(store: Store) -> None:
    few: dict[str, Any] = {"features": "0-1"}
    with LlmServer(Writer()) as server:
        for control in (None, "shuffled", "empty"):
            run_score(store, config(server), control, **few)
        tasks = store.tasks_to_measure(1)
    kinds = Counter((t.kind, t.feature) for t in tasks)
    assert {kinds[("steering", f)] for f in (0, 1)} == {1}
    assert {kinds[(k, f)] for f in (0, 1) for k in ("surprisal", "similarity", "activations")} == {3}
    assert {kinds[("label_gain", f)] for f in (0, 1)} == {2}
    shared = [t for t in tasks if t.explanation_id is None]
    assert {t.kind for t in shared} == {"steering"}
    for task in shared:
        assert task.payload == {
            "prompts": task.payload["prompts"], "kl": 0.4, "n_tokens": 25, "n_random": 3, "temperature": 0.75, "seed": 0
        }  # fmt: skip
        assert len(task.payload["prompts"]) == PROMPTS
        gain = next(t for t in tasks if t.kind == "label_gain" and t.feature == task.feature)
        assert gain.payload["steering"] == task.payload
    assert {len(t.payload["texts"]) for t in tasks if t.kind == "activations"} == {15}


def test_a_stopped_run_goes_on_and_pays_for_nothing_twice(store: Store) -> None:
    with LlmServer(Writer(), latency=0.01) as server:
        with pytest.raises(StoppedError):
            run_score(store, config(server, "generation"), budget=BudgetConfig(max_requests=3), max_connections=2)
        assert 1 <= len(store.tasks_to_measure(1)) <= 3  # what was paid for can be measured
        assert run_score(store, config(server, "generation")).waiting == LABELS
        assert run_score(store, config(server, "generation")).waiting == LABELS
        assert len(server.requests) == LABELS == len(store.tasks_to_measure(1))
        both = config(server, "output", "generation")
        assert run_score(store, both).waiting == 2 * LABELS
        measure(store)
        with pytest.raises(StoppedError):
            run_score(store, both, budget=BudgetConfig(max_requests=7), max_connections=2)
        run_score(store, both)
        assert len({json.dumps(b) for b in server.requests}) == len(server.requests) == LABELS * (1 + 2 * QUESTIONS)
    assert values(store, "output") == values(store, "generation") == [1.0] * LABELS and store.check() == []


def test_what_the_model_could_not_do_is_a_row(store: Store) -> None:
    def failed(task: MeasureTask) -> Measurement:
        status = "kl_not_reached" if task.kind in ("steering", "label_gain") else "out_of_memory"
        return Measurement(task.task_id, status, None, f"{status} with all strengths")

    with LlmServer(Writer()) as server:
        run_score(store, config(server), features="2")
        measure(store, failed)
        outcome = run_score(store, config(server), features="2")
        assert outcome.statuses == {"kl_not_reached": 2, "out_of_memory": 3} and outcome.failed == 3
        assert run_score(store, config(server), features="2").pending == 0
    for scorer in MEASURED_SCORERS:
        (row,) = scores(store, scorer)
        assert row["value"] is None and row["ci_low"] is None and row["error"].endswith("with all strengths")
    assert {r["status"] for r in scores(store, "surprisal_random")} == {"out_of_memory"}
    assert scores(store, "surprisal")[0]["n_failed"] == scores(store, "surprisal")[0]["n"] == 4 * N


def test_unusable_replies_are_rows_with_a_count(store: Store) -> None:
    few: dict[str, Any] = {"features": "0"}
    wrong = lambda kind, body, attempt: BrainReply('{"active": ["a"], "silent": [], "lookalike": [], "answer": 77}')  # noqa: E731
    with LlmServer(Writer(spoil=wrong)) as server:
        outcome = run_score(store, config(server, "generation", "output"), **few)
        assert (outcome.statuses, outcome.waiting) == ({"sentence_count": 1}, 1)
        assert len(server.requests) == 2 and "could not be used" in server.requests[1]["messages"][-1]["content"]
        measure(store)
        assert run_score(store, config(server, "generation", "output"), **few).statuses == {"no_answer": 1}
        assert len(server.requests) == 2 + 2 * 2 * QUESTIONS
    (row,) = scores(store, "generation")
    assert (row["value"], row["n"], row["n_failed"]) == (None, 15, 15) and "holds 1 texts, not 5" in row["error"]
    (row,) = scores(store, "output")
    assert (row["value"], row["n"], row["n_failed"]) == (None, QUESTIONS, QUESTIONS)


def test_a_second_reply_is_as_good(store: Store) -> None:
    def spoil(kind: str, body: dict[str, Any], attempt: int) -> BrainReply | None:
        return BrainReply("I cannot say.") if "could not be used" not in body["messages"][-1]["content"] else None

    with LlmServer(Writer(spoil=spoil)) as server:
        for _ in range(2):
            run_score(store, config(server, "generation", "output"), features="0")
            measure(store)
    assert values(store, "generation") == values(store, "output") == [1.0]


def test_an_endpoint_that_gives_up_is_asked_again_later(store: Store) -> None:
    few: dict[str, Any] = {"features": "0", "attempts": 1}
    with LlmServer(Writer(spoil=lambda kind, body, attempt: Fault("truncated_json"))) as server:
        assert run_score(store, config(server, "generation"), **few).statuses == {"gave_up": 1}
    with LlmServer(Writer()) as server:
        assert run_score(store, config(server, "generation"), **few).waiting == 1
        measure(store)
        assert run_score(store, config(server, "generation"), **few).statuses == {"ok": 1}
    assert values(store, "generation") == [1.0]


def test_features_with_nothing_to_compare_with(store: Store, tmp_path: Path) -> None:
    with planted_store(tmp_path / "one.duckdb", n_features=1) as one, LlmServer(Writer()) as server:
        asyncio.run(explain(job(one), ExplainConfig(explainer="patterns")))
        # Whatever text there is, is the feature's own.
        outcome = asyncio.run(score(job(one), "patterns", config(server, "output", "intervention")))
        assert outcome.statuses == {"no_contexts": 2} and outcome.failed == 0
        asyncio.run(explain(job(store, features="0"), ExplainConfig(explainer="patterns")))
        outcome = asyncio.run(score(job(store), "patterns", config(server, "output")))
        assert outcome.statuses == {"no_distractors": 1} and outcome.failed == 0 and not server.requests


def test_what_is_missing_is_said_before_anything_is_asked(store: Store) -> None:
    for scorer in ("generation", "output"):
        with pytest.raises(InputError, match=f"'{scorer}' asks an LLM; set score.model"):
            run_score(store, config(None, "surprisal", scorer))
    with pytest.raises(InputError, match="set score.embedding_model"):
        run_score(store, config(None, "embedding", embedding_model="local:"))
    assert store.row_counts()["scores"] == 0 and store.tasks_to_measure(1) == []


def test_a_person_is_told_what_waits(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    whole = Config(explain=ExplainConfig(explainer="combined", model="m"), score=config(None, "surprisal"))
    row = store.dictionary()
    for expected in (
        "6 wait for `autointerp measure`, then `autointerp score` again",
        "(method language_model_ordinary): 6 ok",
    ):
        assert labelling.score(Labelling(whole, store, "run", Selection(), Terminal()), row) == 0
        assert expected in capsys.readouterr().err
        measure(store)


def test_forecasts_count_what_is_still_to_be_asked(store: Store) -> None:
    priced = job(store, features="0-2", prices={"test-model": PriceConfig(input=1.0, output=2.0)})
    with LlmServer(Writer()) as server:
        paid = config(server, "generation", "output")
        calls = lambda: forecast_score(priced, "combined", paid).calls  # noqa: E731
        assert calls() == 3 * (1 + 2 * QUESTIONS) and store.tasks_to_measure(1) == []
        free = forecast_score(priced, "combined", config(None, "surprisal", "intervention"))
        assert (free.features, free.calls, free.usd) == (3, 0, 0.0)
        run_score(store, paid, features="0-2")
        assert calls() == 3 * 2 * QUESTIONS
        measure(store)
        told = forecast_score(priced, "combined", paid)
        run_score(store, paid, features="0-2")
        read = store.rows("SELECT sum(input_tokens) FROM llm_calls WHERE stage = 'output'")[0][0]
        assert told.calls == 3 * 2 * QUESTIONS and told.input_tokens == pytest.approx(read, rel=0.3)
        assert told.usd == pytest.approx((told.input_tokens + 2 * told.output_tokens) / 1e6)
        assert calls() == 0
