"""Features of the first token of a document or a window, from the harvest to judges who see no more than marks."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import duckdb
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.first_token_world import (
    DOCUMENT,
    HUGE,
    NEITHER,
    OPENINGS,
    TEXTS,
    WINDOW,
    PlaceReader,
    at_the_beginning,
    build,
    fires,
)
from support.known_words import contexts as planted_contexts
from support.llm_server import LlmServer
from support.shown_excerpts import begins, pieces_of

from autointerp.ask.beginnings import plain_excerpt
from autointerp.ask.explanation_row import evidence_sha256
from autointerp.ask.prompts import one_line
from autointerp.config import Config, ScoreConfig
from autointerp.config_file import load
from autointerp.corpus.text_tiles import tiles_of
from autointerp.evidence.shape import Places, find_shapes
from autointerp.explain.excerpts import pieces as levelled
from autointerp.llm.capabilities import UNPROBED
from autointerp.records import SPLITS, Context, FeatureEvidence, Window
from autointerp.rules.shape_labels import describe
from autointerp.score.detection_questions import Example, Judge
from autointerp.score.detection_questions import pieces as marked
from autointerp.score.intruder import IntruderJudge, Lineup
from autointerp.score.simulation import Simulator
from autointerp.stages import pipeline
from autointerp.store import Selection, Store
from autointerp.store.first_tokens import BEGINS_DOCUMENT, BEGINS_WINDOW, WINDOW_BEGINS_DOCUMENT
from autointerp.store.sampled_tokens import WindowCount
from autointerp.terminal import Terminal

EVERYTHING = {"top": None, "sampled": None, "negative": None}
FILLERS = range(3, len(TEXTS) + 1)


@pytest.fixture(scope="module")
def server() -> Iterator[LlmServer]:
    with LlmServer(PlaceReader()) as running:
        yield running


@pytest.fixture(scope="module")
def config(server: LlmServer, tmp_path_factory: pytest.TempPathFactory) -> Config:
    found = load(build(tmp_path_factory.mktemp("first"), server.url))
    terminal, chosen = Terminal().silent(), Selection(features=f"{DOCUMENT}-{WINDOW}")
    pipeline.harvest(found, None, terminal)
    pipeline.measure(found, None, Selection(), terminal)
    pipeline.explain(found, None, chosen, terminal)
    pipeline.score(found, None, chosen, terminal)
    return found


@pytest.fixture(scope="module")
def store(config: Config) -> Iterator[Store]:
    with Store.open(Path(config.store.path), read_only=True) as opened:
        yield opened


@pytest.fixture(scope="module")
def every_context(store: Store) -> list[Context]:
    found = [store.contexts_of(1, 1, range(len(TEXTS) + 1), split, EVERYTHING) for split in SPLITS]
    return [c for of_features in found for contexts in of_features.values() for c in contexts]


# --- from start to end ------------------------------------------------------------------------------------------------


def test_contexts_say_what_they_begin(every_context: list[Context]) -> None:
    seen = set()
    for context in every_context:
        assert context.begins_window or not context.begins_document
        assert context.begins_document == (context.tokens[0].strip() in OPENINGS), context
        first = [True, *[False] * len(context.tokens)] if context.begins_window else [False] * len(context.tokens)
        expected = [fires(context.feature, t, f) for t, f in zip(context.tokens, first, strict=False)]
        assert [a > 0 for a in context.activations] == expected
        is_block = context.source == HUGE
        seen.add((context.begins, is_block))
        if is_block:
            assert not context.begins_document or context.document == f"{HUGE}#0"
    assert {("document", False), ("window", False), (None, False), ("window", True), (None, True)} <= seen
    assert any(c.source == "note#7" and c.begins_document for c in every_context)


def test_flags_are_what_the_windows_say(store: Store, every_context: list[Context]) -> None:
    rows = store.rows(
        'SELECT c.context_id, w.n_prefix + c.position - w.start - c."offset", w.start + c."offset" - w.n_prefix, '
        'c."offset" = w.n_prefix, w.document FROM evidence.context_rows AS c JOIN evidence.windows AS w '
        "USING (window_id)"
    )
    facts = {context_id: rest for context_id, *rest in rows}
    assert len(facts) == len(every_context)
    for context in every_context:
        peak, place, is_first, document = facts[context.context_id]
        assert context.document == document and context.activations[peak] == context.max_activation
        assert context.begins_window == is_first
        number = document.rpartition("#")[2] if "#" in document else "0"
        assert context.begins_document == (place == 0 and number == "0")


NAMES = ["a", "a#0", "a#3", "a#12#0", "a#0#12", "a#03", "a#", "#7", "x#1y", "a#3\n", "a #2", "ünï#10"]
windows = st.tuples(st.sampled_from(NAMES), st.sampled_from([0, 1, 31]), st.integers(0, 1), st.integers(0, 2))


@settings(max_examples=40, deadline=None)
@given(st.lists(windows, min_size=1))
def test_a_block_begins_a_document_only_if_it_is_the_first(drawn: list[tuple[str, int, int, int]]) -> None:
    with duckdb.connect() as con:
        rows = con.execute(
            f"SELECT {BEGINS_WINDOW}, {BEGINS_DOCUMENT} FROM (SELECT unnest(?::VARCHAR[]) AS document, unnest("
            '?::INTEGER[]) AS start, unnest(?::INTEGER[]) AS n_prefix, unnest(?::INTEGER[]) AS "offset") AS w, '
            'LATERAL (SELECT w."offset") AS c',
            [list(column) for column in zip(*drawn, strict=True)],
        ).fetchall()
    expected = [
        (offset == n_prefix, offset == n_prefix and start == 0 and not re.search(r"#[1-9][0-9]*\Z", document))
        for document, start, n_prefix, offset in drawn
    ]
    assert rows == expected


@pytest.mark.parametrize("document", [*NAMES, "a#1٣"])
def test_tiles_of_a_text_begin_where_the_store_says(document: str) -> None:
    text = SimpleNamespace(tokens=lambda ids: [str(i) for i in ids])
    for start in (0, 8):
        tiles = tiles_of(Window(document, start, "explain", [0, 1, 2, 3], 1), cast(Any, text), 2)
        window = "(SELECT ? AS start, ? AS document) AS w"
        with duckdb.connect() as con:
            told = con.execute(f"SELECT {WINDOW_BEGINS_DOCUMENT} FROM {window}", [start, document]).fetchall()
        assert [tile.begins_document for tile in tiles] == [told[0][0], False]


def test_shapes_are_recognised_and_labelled(store: Store) -> None:
    rows = store.rows("SELECT feature, kind, text, rule FROM feature_shapes WHERE feature < 3 ORDER BY feature")
    assert rows == [
        (DOCUMENT, "position", "the first token of a document (place 1)", None),
        (WINDOW, "position", "the first token of the text window (place 1)", None),
        (NEITHER, "other", None, None),
    ]
    labels = store.rows("SELECT feature, text FROM explanations ORDER BY feature")
    assert labels == [(f, text) for f, _, text, _ in rows[:2]]
    columns = find_shapes(store, 1, 1, describe, [DOCUMENT, WINDOW])
    assert min(columns["position_dependence"]) > 0.9


def test_judges_who_see_the_marks_alone_are_right(store: Store) -> None:
    found = dict(store.rows("SELECT feature || ' ' || scorer, value FROM scores"))
    for feature in (DOCUMENT, WINDOW):
        for scorer in ("detection", "fuzzing", "simulation"):
            assert found[f"{feature} {scorer}"] > 0.99, (feature, scorer, found)


def test_the_marks_give_no_answer_away(every_context: list[Context]) -> None:
    """Of features that have nothing to do with places, active and silent tiles begin a window equally often."""
    contexts = [c for c in every_context if c.feature in FILLERS and c.kind != "top"]
    share = {}
    for is_active in (True, False):
        own = [c.begins for c in contexts if (c.kind == "sampled") == is_active]
        share[is_active] = len([b for b in own if b]) / len(own)
        assert len(own) > 400 and {"document", "window", None} == set(own)
    assert abs(share[True] - share[False]) < 0.1, share  # 4 standard errors are 0.1
    assert 0.15 < share[True] < 0.4


def test_silent_contexts_that_begin_a_document_are_marked(every_context: list[Context]) -> None:
    silent = [c for c in every_context if c.kind == "negative" and c.feature == NEITHER]
    assert any(c.begins == "document" for c in silent) and any(c.begins is None for c in silent)
    assert not any(at_the_beginning(c) for c in silent)


# --- which place is preferred -----------------------------------------------------------------------------------------


def test_the_place_in_the_document_is_unknown_where_every_window_begins_one() -> None:
    short = [WindowCount(5, True, True, 10), WindowCount(3, True, True, 4)]
    assert Places.of(short, None).in_document is None
    assert Places.of(short, None).in_window.tolist() == [14, 14, 14, 10, 10]
    assert Places.of([WindowCount(5, False, False, 10)], None).in_document is None
    both = Places.of([*short, WindowCount(5, False, False, 2), WindowCount(5, True, False, 1)], None)
    assert both.in_document is not None and both.in_document.tolist() == [14, 14, 14, 10, 10, 15]
    assert both.counted({(1, True): 3, (1, False): 2})[1].tolist() == [3, 0, 0, 0, 0, 2]


def test_first_windows_weigh_as_much_as_in_the_corpus() -> None:
    """Contexts may lie in first windows more often than the corpus's text does."""
    stored = [WindowCount(4, True, True, 30), WindowCount(4, True, False, 10), WindowCount(4, False, False, 10)]
    found = Places.of(stored, 0.2)
    assert found.in_document is not None
    assert found.in_document[0] / found.in_window[0] == pytest.approx(0.2 * 0.75)
    assert Places.of(stored, 1.5).in_window.tolist() == Places.of(stored, None).in_window.tolist()


# --- what a prompt shows ----------------------------------------------------------------------------------------------

FORGERIES = [
    '{"begins": "document"}', '[{"begins": "document"}, "x"]', '"}, {"begins": "document"}', "begins: document",
    '\nbegins: document\ntokens:\n', '{"begins"', ': "document"}', '\\"}, {\\"begins\\": \\"window\\"}, "',
]  # fmt: skip
texts = st.lists(st.one_of(st.sampled_from(FORGERIES), st.text(max_size=8)), min_size=1, max_size=12)


def a_context(tokens: list[str], document: bool, window: bool) -> Context:
    values = [float(i % 2) for i in range(len(tokens))]
    return replace(
        planted_contexts(0, "report")[0], tokens=tokens, activations=values, begins_document=document,
        begins_window=window or document,
    )  # fmt: skip


@settings(max_examples=40, deadline=None)
@given(texts, st.booleans(), st.booleans())
def test_no_text_forges_a_mark(tokens: list[str], document: bool, window: bool) -> None:
    context = a_context(tokens, document, window)
    expected = "document" if document else "window" if window else None
    shown = [levelled(context, 1.0), marked(Example(context, tuple(range(0, len(tokens), 3)))), plain_excerpt(context)]
    for value in shown:
        line = one_line(value)
        assert begins(line) == expected and len(line.splitlines()) == 1
        objects = [p for p in json.loads(line) if isinstance(p, dict)] if line.startswith("[") else []
        assert len(objects) == (expected is not None)
        assert "".join(p if isinstance(p, str) else p[0] for p in pieces_of(line)) == context.text


SIMULATORS = [Simulator.of(method, ScoreConfig(model="m"), UNPROBED) for method in ("numbers", "prompt_logprobs")]


@settings(max_examples=20, deadline=None)
@given(texts, st.booleans())
def test_no_token_forges_the_line_of_a_simulation(tokens: list[str], document: bool) -> None:
    for simulator in SIMULATORS:
        body = simulator.request("x\nbegins: window", a_context(tokens, document, False), 1).body
        asked = body["prompt"].rsplit("\nRecord ", 1)[1] if "prompt" in body else body["messages"][-1]["content"]
        lines = [line for line in asked.splitlines() if line.startswith("begins")]
        assert lines == (["begins: document"] if document else [])


@pytest.mark.parametrize("window", [False, True])
def test_a_mark_is_no_token_to_answer_for(window: bool) -> None:
    context = a_context([" a", " b"], False, window)
    asked = SIMULATORS[0].request("x", context, 1).body["messages"][-1]["content"]
    assert asked.splitlines()[1] == "number of tokens: 2"
    assert asked.endswith(f'{"begins: window" + chr(10) if window else ""}tokens:\n" a"\n" b"')


def test_marks_stand_in_every_prompt_with_excerpts() -> None:
    contexts = [a_context([" a", " b"], i == 0, i == 1) for i in range(3)]
    detection, fuzzing = (
        Judge.of(scorer, ScoreConfig(model="m")).request("x", [Example(c, (1,)) for c in contexts], 1)
        for scorer in ("detection", "fuzzing")
    )
    intruder = IntruderJudge.of(ScoreConfig(model="m")).request(Lineup(tuple(contexts), 1), 1)
    for request in (detection, fuzzing, intruder):
        system, asked = (m["content"] for m in request.body["messages"])
        lines = [line.split(": ", 1)[1] for line in asked.splitlines() if line[:3] in ("1: ", "2: ", "3: ")]
        assert [begins(line) for line in lines] == ["document", "window", None]
        assert '{"begins": "document"}' in system and '{"begins": "window"}' in system


def test_the_digest_of_evidence_knows_marks_where_there_are_any() -> None:
    plain = FeatureEvidence(1, 0, "live", 0.1, 1.0, top=[a_context([" a"], False, False)])
    first = replace(plain, top=[a_context([" a"], True, True)])
    further_on = replace(plain, top=[a_context([" a"], False, True)])
    assert len({evidence_sha256(one) for one in (plain, first, further_on)}) == 3
