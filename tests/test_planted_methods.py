"""Every evidence method, scorer and explainer against the planted world, where the truth is known: what each finds, and
what it cannot see, is asserted kind by kind. Judges err in one answer of twenty.

What the planted model is matters to three methods. It sees one word back, so the words that go with a direction by its
weights are those that come next, never the feature's own; and a word's code settles what comes next, so its decoder row
stands out in the output, too, only far less than that of an output feature. Steering by it says nothing that a label of
the input would name, so `output` and `intervention` are asked about labels of the output.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from typing import Any

import pytest
from support.llm_server import LlmServer
from support.planted_bag_model import save_bag_model
from support.planted_features import QUALITIES, Rule, labels_of, planted_features
from support.planted_oracle import Oracle, sentence
from support.planted_reading import best_by_texts, texts_in, words_in
from support.planted_scores import Means, job, means, score_and_measure
from support.planted_world import (
    EXPLAINER,
    OUTPUT_EXPLAINER,
    PlantedWorld,
    build,
    corpus_words,
    harvested,
    insert_labels,
)

from autointerp.config import ExplainConfig, ScoreConfig
from autointerp.config_file import load
from autointerp.evidence.methods import BUILT_IN
from autointerp.explain.explaining import explain
from autointerp.stages import gathering, labelling
from autointerp.stages.session import Session
from autointerp.store import Selection, Store
from autointerp.terminal import Terminal

QUALITY = 0.95
SENTENCES = 20
"""Of each kind that `generation` asks for. What a wrong label's texts do is chance: with 5 of a kind its mean over two
features was anywhere in .44 to .66 over ten seeds of the judge, with 20 in .45 to .58."""
JUDGED = ("single", "context", "position", "output", "polysemantic", "dense", "duplicate")
CLAMPED = ("single", "output", "dense")
"""Kinds whose first three features are clamped for token_change, which takes the longest."""

RANKED = {
    "embedding": ("single", "output", "polysemantic"),
    "surprisal": ("single", "output", "polysemantic"),
    "generation": ("single", "output"),
}
"""Kinds in which a scorer puts truth above near miss above wrong."""
TRUE_ABOVE_WRONG = {
    # A determiner is in every text; which word stood before, a bag does not hold. A random silent text seldom has the
    # second word of a pair without the first, so there the headline takes the second alone for the truth.
    "embedding": ("context", "dense", "duplicate"),
    "surprisal": ("context", "duplicate"),
    # Texts for a label that is too narrow activate the feature; those for one that leaves out what must stand before
    # hardly ever have it by chance, so it looks as bad as a wrong one.
    "generation": ("context", "polysemantic", "dense", "duplicate"),
}
"""Kinds in which it tells the truth from what is wrong, but not surely from the near miss."""
BLIND = {
    "embedding": ("position",),
    "surprisal": ("position",),  # and dense: to this reader function words say nothing
    "generation": ("position",),  # every text has a first word, so no text is silent
}
"""Kinds in which all three labels look alike: a text does not show places in the model's input."""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> PlantedWorld:
    return build(tmp_path_factory.mktemp("methods") / "world")


@pytest.fixture(scope="module")
def session(world: PlantedWorld) -> Session:
    return Session(load(world.config), Terminal().silent())


@pytest.fixture(scope="module")
def store(world: PlantedWorld, session: Session) -> Iterator[Store]:
    """The harvest with what all methods find, and labels of two features of each kind."""
    sae = session.config.sae[0]
    clamped = ",".join(str(f.feature) for kind in CLAMPED for f in world.of_kind(kind)[:3])
    with harvested(world.folder) as opened:
        for method in (method.name for method in BUILT_IN):
            chosen = Selection(features=clamped if method == "token_change" else None)
            gathering.gather(session, opened, sae, [method], labelling.describe_shape, chosen)
        insert_labels(opened, [f for kind in JUDGED for f in world.of_kind(kind)[: 3 if kind == "output" else 2]])
        yield opened


# --- evidence ---------------------------------------------------------------------------------------------------------


def test_shapes_are_told_and_named(world: PlantedWorld, store: Store) -> None:
    rows = store.rows("SELECT feature, kind, is_dense, text FROM feature_shapes")
    shapes = {feature: (kind, is_dense, text) for feature, kind, is_dense, text in rows}
    assert set(shapes) == {f.feature for f in world.features if f.kind != "dead"}
    for f in world.of_kind("single", "filler"):
        assert shapes[f.feature] == ("token", False, f"the token ` {next(iter(f.law.word))}`")
    for first, second in ((f, world.features[f.twin]) for f in world.of_kind("duplicate") if f.twin == f.feature + 1):
        # The second twin is silent after `the`: the token alone does not explain it.
        assert shapes[first.feature][0] == "token" and shapes[second.feature][0] == "other"
    for f, n in zip(world.of_kind("position"), (1, 2, 4), strict=True):
        kind, _, text = shapes[f.feature]
        assert kind == "position" and ("(place 1)" if n == 1 else f"(places 1 to {n})") in text
    assert all(shapes[f.feature][0] == "dense" and shapes[f.feature][1] for f in world.of_kind("dense"))
    for f in world.of_kind("context", "output", "polysemantic"):
        assert shapes[f.feature] == ("other", False, None)


def test_words_where_a_feature_fires(world: PlantedWorld, store: Store) -> None:
    found = lists(store, "SELECT feature, word FROM input_words ORDER BY feature, rank")
    for f in world.of_kind("single", "duplicate", "filler"):
        assert found[f.feature][0] == next(iter(f.law.word)), f.labels
    for f in world.of_kind("context"):
        assert set(found[f.feature][:2]) == {*f.law.word, *f.law.before}
    shown = [set(found[f.feature][:2]) & set(f.law.word) for f in world.of_kind("polysemantic")]
    assert all(shown) and sum(len(words) == 2 for words in shown) >= 2
    # A place is no word, function words are everywhere, and each of an output feature's eight words is too rare here.
    # One of these features may list a word by chance: of the words that are found, a twentieth may be false.
    assert not any(found.get(f.feature) for f in world.of_kind("dead"))
    assert sum(bool(found.get(f.feature)) for f in world.of_kind("position", "dense")) <= 1
    for f in world.of_kind("output"):
        assert set(found.get(f.feature, [])) <= set(f.law.word)


def test_neighbours_find_the_twins(world: PlantedWorld, store: Store) -> None:
    nearest = {
        (feature, relation): (neighbour, value)
        for feature, relation, neighbour, value in store.rows(
            "SELECT feature, relation, neighbour, value FROM neighbours WHERE rank = 0"
        )
    }
    for f in world.of_kind("duplicate"):
        for relation, least in (("decoder", 0.98), ("coactive", 0.6), ("correlated", 0.8)):
            neighbour, value = nearest[f.feature, relation]
            assert neighbour == f.twin and value > least, (f.labels, relation)
    places = [f.feature for f in world.of_kind("position")]  # each fires where the next one does
    assert all(nearest[f, relation][0] in places for f in places for relation in ("coactive", "correlated"))
    # Nothing excludes a word but another word in its place: what fires on determiners and prepositions and what fires
    # after them exclude each other most, and the former excludes every feature of a noun.
    here, after = (f.feature for f in world.of_kind("dense"))
    assert nearest[here, "anticorrelated"][0] == after and nearest[after, "anticorrelated"][0] == here
    for f in world.of_kind("single", "polysemantic", "duplicate", "context"):
        assert nearest[f.feature, "anticorrelated"][0] == here
    pairs = {relation for feature, relation in nearest if feature in {f.feature for f in world.of_kind("dead")}}
    assert not pairs


def test_output_features_stand_out_of_the_unembedding(world: PlantedWorld, store: Store) -> None:
    rows = {f: (k, s, t, o) for f, k, s, t, o in store.rows(
        "SELECT feature, kurtosis, skew, threshold, is_output FROM output_statistics"
    )}  # fmt: skip
    outputs = [f.feature for f in world.of_kind("output")]
    others = [kurtosis for f, (kurtosis, *_) in rows.items() if f not in outputs]
    assert all(rows[f][3] and rows[f][1] > 5 for f in outputs)
    assert min(rows[f][0] for f in outputs) > 4 * max(others)
    # The model reads nothing of places and of the word before, and little of a class of words.
    assert not any(rows[f.feature][3] for f in world.of_kind("position", "dense"))
    # One word settles what comes next in a model that reads nothing else: its row passes the threshold, or nearly.
    assert all(0.5 < rows[f.feature][0] / rows[f.feature][2] < 2 for f in world.of_kind("single", "context"))


def test_mutual_information_lists_what_comes_next(world: PlantedWorld, store: Store) -> None:
    found = lists(store, "SELECT feature, word FROM mutual_information ORDER BY feature, rank")
    for f in world.of_kind("output"):
        assert set(found[f.feature][:4]) == set(f.promoted)
    # The vocabulary is that of the unembedding, which here reads no feature's own word but what follows it.
    for f in world.of_kind("single", "duplicate"):
        assert next(iter(f.law.word)) not in found[f.feature][:10]


def test_pruning_keeps_the_word_and_what_it_needs(world: PlantedWorld, store: Store) -> None:
    rows = store.rows("SELECT feature, status, tokens, importance, counterfactuals FROM pruned_contexts")
    seen = set()
    for feature, status, tokens, importance, tried in rows:
        f = world.features[feature]
        words = [token.strip() for token in tokens]
        seen.add(f.kind)
        assert status == "ok"
        if f.kind == "context":
            assert words == [*f.law.before, *f.law.word] and importance == [1.0, 1.0]
            first = [c["kept"] for c in tried if c["position"] == 0]
            assert first and not any(first)  # another word before it, and the feature is silent
        elif f.kind in ("single", "polysemantic", "output", "duplicate", "filler"):
            assert len(words) == 1 and words[0] in f.law.word and tried
            assert all(c["kept"] == (c["substitute"].strip() in f.law.word) for c in tried)
        elif f.kind == "position":  # any word will do, and text moved to the front is at the front
            assert len(words) == 1 and all(c["kept"] for c in tried)
        elif f.labels["truth"].startswith("whatever follows"):
            assert len(words) == 2 and words[0] in f.law.before
    assert seen == {*JUDGED, "filler"}


def test_clamping_an_output_feature_says_its_words(world: PlantedWorld, store: Store) -> None:
    found = lists(
        store, "SELECT feature, struct_pack(token := token, z := z) FROM token_changes WHERE sign = 1 ORDER BY rank"
    )
    runs = dict(store.rows("SELECT feature, status FROM method_runs WHERE method = 'token_change'"))
    assert set(runs.values()) == {"ok"} and set(found) == set(runs)
    for f in world.of_kind("output"):
        top = found[f.feature]
        assert {t["token"].strip() for t in top[:4]} == set(f.promoted)
        assert top[3]["z"] > 5 * top[4]["z"] > 0  # against random features at the same KL nothing else stands out
    for f in world.of_kind("single"):
        assert found[f.feature][0]["z"] < 5


def lists(store: Store, sql: str) -> dict[int, list[Any]]:
    found: dict[int, list[Any]] = {}
    for feature, value in store.rows(sql):
        found.setdefault(feature, []).append(value)
    return found


# --- scorers ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def scored(world: PlantedWorld, session: Session, store: Store) -> Means:
    bag = save_bag_model(world.folder / "bag", corpus_words(0, 360))
    with LlmServer(Oracle(world.features, QUALITY)) as server, pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPENAI_API_KEY", "test")
        for explainer, scorers in (
            (EXPLAINER, (*RANKED, "intruder")),
            (OUTPUT_EXPLAINER, ("output", "intervention")),
        ):
            config = ScoreConfig(
                model="judge", base_url=server.url, scorers=scorers, contexts=5, embedding_model="words",
                language_model=str(bag), sentences=SENTENCES,
            )  # fmt: skip
            outcome = score_and_measure(session, store, explainer, config)
            assert outcome.waiting == outcome.failed == 0 and set(outcome.statuses) == {"ok"}
    return means(store, world.features)


@pytest.mark.parametrize(("scorer", "kind"), [(s, kind) for s, kinds in RANKED.items() for kind in kinds])
def test_scorers_rank_true_near_and_wrong(scored: Means, scorer: str, kind: str) -> None:
    truth, near, wrong = (scored[scorer, kind, quality] for quality in QUALITIES)
    assert truth > 0.8 and truth > near + 0.05 and near > wrong + 0.05


@pytest.mark.parametrize(("scorer", "kind"), [(s, kind) for s, kinds in TRUE_ABOVE_WRONG.items() for kind in kinds])
def test_scorers_tell_true_from_wrong(scored: Means, scorer: str, kind: str) -> None:
    truth, near, wrong = (scored[scorer, kind, quality] for quality in QUALITIES)
    assert truth > 0.8 and truth > wrong + 0.1 and truth > near - 0.05


@pytest.mark.parametrize("scorer", ["embedding", "surprisal"])
def test_texts_with_the_same_word_tell_what_must_stand_before(scored: Means, scorer: str) -> None:
    truth, near, _ = (scored[f"{scorer}_same_token", "context", quality] for quality in QUALITIES)
    assert truth > 0.75 and truth > near + 0.3


@pytest.mark.parametrize(("scorer", "kind"), [(s, kind) for s, kinds in BLIND.items() for kind in kinds])
def test_scorers_do_not_see_places(scored: Means, scorer: str, kind: str) -> None:
    assert max(scored[scorer, kind, quality] for quality in QUALITIES) < 0.75
    assert abs(scored[scorer, kind, "truth"] - scored[scorer, kind, "near_miss"]) < 0.1


def test_steering_ranks_what_a_feature_makes_the_model_say(scored: Means) -> None:
    truth, near, wrong = (scored["intervention", "output", quality] for quality in QUALITIES)
    assert truth > near + 0.05 and near > wrong + 0.05 and truth > 0.2 and abs(wrong) < 0.1
    assert all(abs(scored["intervention_random", "output", quality]) < 0.1 for quality in QUALITIES)
    # A judge who chooses among labels of other features finds half of the words enough.
    truth, near, wrong = (scored["output", "output", quality] for quality in QUALITIES)
    assert min(truth, near) > 0.8 and wrong < 0.5
    assert all(scored["output_random", "output", quality] < 0.7 for quality in QUALITIES)


def test_intruders_are_found_where_texts_share_something(scored: Means) -> None:
    for kind in ("single", "context", "polysemantic", "dense", "duplicate", "filler"):
        assert scored["intruder", kind, None] > 0.6, kind
    assert scored["intruder", "output", None] > 0.4  # eight unrelated words
    assert scored["intruder", "position", None] < 0.3
    assert ("intruder", "dead", None) not in scored


# --- explainers -------------------------------------------------------------------------------------------------------

NOT_SHOWN = {
    "contexts": {"polysemantic", "duplicate"},
    "contrastive": {"polysemantic", "duplicate"},
    "pruned": {"polysemantic", "duplicate", "position", "dense"},
    "combined": {"duplicate"},
}
"""Kinds of which not every feature's truth stands in what an explainer shows. The strongest contexts of a feature of
two meanings are all of the stronger one (`combined` draws others as well); that the first twin fires after `the` too
may not be among them; cut texts stand at the beginning of the model's input, so that they show no place, and few words
of a dense feature."""


@pytest.mark.parametrize("explainer", list(NOT_SHOWN))
def test_explainers_show_what_an_oracle_needs(world: PlantedWorld, store: Store, explainer: str) -> None:
    labels = labels_by_oracle(world, store, explainer)
    assert set(labels) == {f.feature for f in world.features if f.kind != "dead"}
    missed = {f: label for f, label in labels.items() if label != world.features[f].truth_label}
    assert {world.features[f].kind for f in missed} <= NOT_SHOWN[explainer]
    for f, label in missed.items():  # what was taken for the truth is the next thing to it
        feature = world.features[f]
        if feature.kind == "duplicate":
            assert feature.twin is not None and label == world.features[feature.twin].truth_label
        elif feature.kind in ("polysemantic", "dense"):
            assert label == feature.near_miss_label
        else:
            assert feature.kind == "position"


@pytest.mark.parametrize("explainer", ["vocab_projection", "jacobian_lens", "token_change"])
def test_output_explainers_show_what_is_said(world: PlantedWorld, store: Store, explainer: str) -> None:
    labels = labels_by_oracle(world, store, explainer)
    assert labels == {f.feature: f.output_label for f in world.of_kind("output")}


def labels_by_oracle(world: PlantedWorld, store: Store, explainer: str) -> dict[int, str]:
    with LlmServer(Oracle(world.features)) as server, pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPENAI_API_KEY", "test")
        config = ExplainConfig(explainer=explainer, model="oracle", base_url=server.url, shape_labels=False)
        asyncio.run(explain(job(store), config))
    rows = store.rows(
        "SELECT feature, text FROM explanations WHERE model = 'oracle' AND explainer = ? AND status = 'ok'", [explainer]
    )
    return dict(rows)


# --- the oracle itself ------------------------------------------------------------------------------------------------


def test_the_oracle_writes_by_the_rule() -> None:
    for rule in labels_of(planted_features()).values():
        if rule.words == {} or rule.first is not None or (rule.after is not None and rule.words is None):
            continue
        for is_active in (True, False):
            texts = [sentence(rule, is_active, i, random.Random(i)) for i in range(6)]
            assert [any(rule.strengths(words_in(text))) for text in texts] == [is_active] * 6, rule


def test_the_oracle_reads_replacements_as_texts() -> None:
    prompt = 'Cut texts, x\n[[" stone", 10], [" bridge", 10]]\n  no longer active: [[1, " stone", " old"]]\nEnd, x'
    texts = texts_in(prompt)
    assert texts == [(["stone", "bridge"], [False, True]), (["old", "bridge"], [False, False])]
    rules = {"any": Rule({"bridge": 1.0}), "after": Rule({"bridge": 1.0}, after=frozenset({"stone"}))}
    assert best_by_texts(rules, texts)[0] == "after"
