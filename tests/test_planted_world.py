"""The planted world is what it says: the model and the SAE against the laws, the harvest, and three labels of known
quality through the scorers, judged by an oracle that errs in one answer of twenty.

What a scorer can see of a label is part of what is asserted. Detection asks about whole texts, so it cannot tell a
place in the model's input, which a text does not show, nor a broad label of a feature that fires in every text. Fuzzing
asks about marked words only, so a label that is too broad looks as good as the truth; one too narrow does not.
"""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from support.llm_server import LlmServer
from support.planted_features import END, QUALITIES, labels_of, planted_features, word_of
from support.planted_oracle import Oracle
from support.planted_scores import job
from support.planted_world import CLASSES, EXPLAINER, HOOKPOINT, PlantedWorld, build, harvested, insert_labels

from autointerp.config import ExplainConfig, ScoreConfig
from autointerp.config_file import load
from autointerp.corpus.token_text import TokenText
from autointerp.explain.explaining import explain
from autointerp.harvest.decoder_neighbours import decoder_neighbours
from autointerp.model.hooks import Hookpoint, activations_at, hooked
from autointerp.records import Window
from autointerp.sae.formats import load_sae
from autointerp.score.scoring import score
from autointerp.stages.session import Session
from autointerp.store import Store
from autointerp.terminal import Terminal

JUDGED = ("single", "context", "position", "output", "polysemantic", "dense", "duplicate")
QUALITY = 0.95
SAME_TOKEN = "detection_specificity_same_token"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> PlantedWorld:
    return build(tmp_path_factory.mktemp("planted") / "world")


@pytest.fixture(scope="module")
def session(world: PlantedWorld) -> Session:
    return Session(load(world.config), Terminal().silent())


@pytest.fixture(scope="module")
def windows(session: Session) -> list[Window]:
    return [window for unit in session.units() for window in unit.windows]


@pytest.fixture(scope="module")
def store(world: PlantedWorld) -> Iterator[Store]:
    """The harvest, and the labels of two features of each kind."""
    with harvested(world.folder) as opened:
        insert_labels(opened, [f for kind in JUDGED for f in world.of_kind(kind)[:2]])
        yield opened


# --- the world itself -------------------------------------------------------------------------------------------------


def test_the_dictionary_does_what_the_laws_say(world: PlantedWorld, session: Session, windows: list[Window]) -> None:
    loaded, sae = session.model(), load_sae(world.folder / "sae")
    text = TokenText(loaded.tokenizer)
    fired: Counter[str] = Counter()
    n_tokens = 0
    for length in sorted({len(w.token_ids) for w in windows}):
        same = [w for w in windows if len(w.token_ids) == length]
        residual = activations_at(loaded, Hookpoint.parse(HOOKPOINT), torch.tensor([w.token_ids for w in same]))
        found = sae.encode(residual)
        found[:, 0] = 0  # a BOS never counts
        tokens = [text.tokens(w.token_ids) for w in same]
        assert all(row[0] == END for row in tokens)
        expected = torch.tensor([[f.fires(row) for f in world.features] for row in tokens]).transpose(1, 2)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
        for row in tokens[::3]:  # the truths in words agree with the laws
            words = [word_of(token) for token in row[1:]]
            for f in world.features:
                assert [s > 0 for s in f.rules["truth"].strengths(words)] == [a > 0 for a in f.fires(row)[1:]]
        for feature in world.features:
            fired[feature.kind] += int((expected[..., feature.feature] > 0).sum())
        n_tokens += expected[:, 1:, 0].numel()
    assert n_tokens > 20_000 and fired["dead"] == 0
    assert all(fired[f.kind] > 0 for f in world.features if f.kind != "dead")


def test_the_model_predicts_better_than_frequencies(session: Session, windows: list[Window]) -> None:
    loaded = session.model()
    whole = torch.tensor([w.token_ids for w in windows if len(w.token_ids) == 32][::3])
    with torch.no_grad():
        logits = loaded.model(input_ids=whole).logits[:, 1:-1]
    following = whole[:, 2:]
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), following.flatten())
    share = torch.bincount(following.flatten()).float() / following.numel()
    entropy = -(share[share > 0] * share[share > 0].log()).sum()
    assert float(loss) < float(entropy) - 1.0


def test_steering_with_an_output_feature_says_its_words(world: PlantedWorld, session: Session) -> None:
    """Through the second block, the final norm and the unembedding."""
    loaded, sae = session.model(), load_sae(world.folder / "sae")
    ids = torch.tensor([[0, *loaded.tokenizer("the old heron watched the")["input_ids"]]])
    for feature in world.of_kind("output"):
        row = 4.0 * sae.W_dec[feature.feature]
        with torch.no_grad(), hooked(loaded.model, Hookpoint.parse(HOOKPOINT), edit=lambda x, row=row: x + row):
            top = loaded.model(input_ids=ids).logits[0, -1].topk(4).indices
        assert {loaded.tokenizer.decode([int(i)]).strip() for i in top} == set(feature.promoted)


def test_texts_outside_the_language_are_read_too(session: Session) -> None:
    tokenizer = session.model().tokenizer
    text = TokenText(tokenizer)
    ids = tokenizer("maple Zoë's maple, 東.\n oak maples")["input_ids"]
    pieces = text.tokens(ids)
    assert "".join(pieces) == " maple Zoë's maple, 東.\n oak maples"
    assert [p for p in pieces if len(p) > 1] == [" maple", " maple", " oak"]


def test_labels_mean_one_thing_each() -> None:
    for seed in (0, 1):
        features = planted_features(seed)
        assert [f.feature for f in features] == list(range(len(features)))
        rules = labels_of(features)
        assert all(rules[f.labels[q]] == f.rules[q] for f in features for q in f.labels)
        counts = Counter(f.kind for f in features)
        assert all(counts[kind] >= (2 if kind == "dense" else 3) for kind in counts)
        for f in features:
            if f.kind in JUDGED:
                assert set(f.labels) == set(QUALITIES) and len(set(f.labels.values())) == 3
                assert set(f.law.word) | set(f.law.before) <= set(CLASSES)


# --- the harvest ------------------------------------------------------------------------------------------------------


def test_the_harvest_finds_what_was_planted(world: PlantedWorld, store: Store) -> None:
    status = dict(store.rows("SELECT feature, status FROM features"))
    assert {f for f, s in status.items() if s == "dead"} == {f.feature for f in world.of_kind("dead")}
    assert all(s == "live" for f, s in status.items() if world.features[f].kind != "dead")
    density = dict(store.rows("SELECT feature, token_density FROM features"))
    dense = {f.feature for f in world.of_kind("dense")}
    assert {f for f, d in density.items() if d > 0.3} == dense
    strength = dict(store.rows("SELECT feature, mean_activation FROM features"))
    assert max(strength[f] for f in dense) < 0.3 < 1.0 < min(v for f, v in strength.items() if v and f not in dense)
    # Two twins stand nearest to each other, and the shown words of output features are those they promote.
    W_dec = load_sae(world.folder / "sae").W_dec
    nearest = decoder_neighbours(W_dec, 1)[:, 0]
    for feature in world.of_kind("duplicate"):
        assert feature.twin is not None and int(nearest[feature.feature]) == feature.twin
        assert float(W_dec[feature.feature] @ W_dec[feature.twin]) == pytest.approx(0.99, abs=2e-3)
    row = store.dictionary("planted")
    for feature in world.of_kind("output"):
        promoted = store.projected_tokens(row.dictionary_id, [feature.feature])[feature.feature]
        assert {t.token.strip() for t in promoted if t.sign == 1 and t.rank < 4} == set(feature.promoted)
    assert store.check() == []


def test_a_second_build_is_the_same(world: PlantedWorld, tmp_path: Path) -> None:
    again = build(tmp_path / "again")
    for name in ("corpus.jsonl", "autointerp.toml", "model/model.safetensors", "sae/sae_weights.safetensors"):
        assert (again.folder / name).read_bytes() == (world.folder / name).read_bytes()


# --- three labels -----------------------------------------------------------------------------------------------------

Means = dict[tuple[str, str], list[float]]
"""(scorer, kind) -> mean score of the truths, the near misses and the wrong labels."""


@pytest.fixture(scope="module")
def means(world: PlantedWorld, store: Store) -> Means:
    """By kind, of scores by a judge of QUALITY. A prediction that is the same everywhere counts as no correlation."""
    with LlmServer(Oracle(world.features, QUALITY)) as server, pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPENAI_API_KEY", "test")
        scorers = ("simulation", "detection", "fuzzing")
        kept = (*scorers, SAME_TOKEN)
        config = ScoreConfig(model="judge", base_url=server.url, scorers=scorers, contexts=5, examples_per_call=10)
        outcome = asyncio.run(score(job(store), EXPLAINER, config))
    assert outcome.failed == 0 and set(outcome.statuses) <= {"ok", "constant_prediction"}
    values: dict[tuple[str, str, str], list[float]] = defaultdict(list)
    for scorer, feature, quality, value in store.rows(
        "SELECT scorer, s.feature, e.model, value FROM scores s JOIN explanations e USING (explanation_id) "
        "WHERE scorer IN (SELECT unnest(?::VARCHAR[])) AND part = 'report'",
        [list(kept)],
    ):
        values[scorer, world.features[feature].kind, quality].append(0.0 if value is None else value)
    return {
        (scorer, kind): [sum(found) / len(found) for q in QUALITIES if (found := values[scorer, kind, q])]
        for scorer in kept
        for kind in JUDGED
    }


@pytest.mark.slow
def test_simulation_ranks_every_kind(means: Means) -> None:
    for kind in JUDGED:
        truth, near, wrong = means["simulation", kind]
        assert truth > 0.7 and truth > near + 0.02 and near > wrong + 0.2, kind
        assert abs(wrong) < 0.3


@pytest.mark.slow
def test_detection_ranks_what_a_text_shows(means: Means) -> None:
    for kind in ("single", "output", "polysemantic", "duplicate"):
        truth, near, wrong = means["detection", kind]
        assert truth > 0.85 and truth > near + 0.03 and near > wrong + 0.1, kind
    # Ordinary text seldom has the second word of a pair without the first, so in the headline a label that leaves out
    # the first is nearly as good as the truth. Silent texts that hold the second word tell them apart.
    truth, near, wrong = means["detection", "context"]
    assert truth > 0.85 and min(truth, near) > wrong + 0.2
    truth, near, _ = means[SAME_TOKEN, "context"]
    assert truth > 0.7 and truth > near + 0.5
    truth, near, wrong = means["detection", "dense"]  # every text has some of both
    assert min(truth, near) > wrong + 0.2
    assert all(abs(value - 0.5) < 0.2 for value in means["detection", "position"])


@pytest.mark.slow
def test_fuzzing_finds_narrow_labels_and_not_broad_ones(means: Means) -> None:
    for kind in ("output", "polysemantic", "dense"):
        truth, near, wrong = means["fuzzing", kind]
        assert truth > 0.8 and truth > near + 0.03 and near > wrong + 0.05, kind
    for kind in ("single", "context", "duplicate"):
        truth, near, wrong = means["fuzzing", kind]
        assert min(truth, near) > wrong + 0.2 and abs(truth - near) < 0.15, kind
    assert all(abs(value - 0.5) < 0.2 for value in means["fuzzing", "position"])


def test_contexts_show_an_oracle_every_kind_of_feature(world: PlantedWorld, store: Store) -> None:
    """Asked for the best of all labels, from the top contexts alone. A twin's rare exception may not stand in them, and
    of two meanings the weaker one does not."""
    with LlmServer(Oracle(world.features)) as server, pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPENAI_API_KEY", "test")
        # Of every feature, also of those whose shape alone would give them a label.
        config = ExplainConfig(explainer=EXPLAINER, model="oracle", base_url=server.url, shape_labels=False)
        asyncio.run(explain(job(store), config))
    labels = dict(store.rows("SELECT feature, text FROM explanations WHERE model = 'oracle' AND status = 'ok'"))
    assert set(labels) == {f.feature for f in world.features if f.kind != "dead"}
    missed = [world.features[f].kind for f in labels if labels[f] != world.features[f].truth_label]
    assert set(missed) <= {"duplicate", "polysemantic"} and missed.count("duplicate") <= 2


@pytest.mark.parametrize("method", ["generated_logprobs", "prompt_logprobs"])
def test_the_oracle_simulates_by_logprobs_too(
    world: PlantedWorld, store: Store, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "test")
    context = world.of_kind("context")[0].feature
    with LlmServer(Oracle(world.features, logprobs=(method.split("_")[0],))) as server:
        config = ScoreConfig(model=method, base_url=server.url, contexts=4)
        assert asyncio.run(score(job(store, str(context)), EXPLAINER, config)).method == method
    value = dict(
        store.rows(
            "SELECT e.model, value FROM scores s JOIN explanations e USING (explanation_id) "
            "WHERE scorer = 'simulation' AND part = 'report' AND method = ? AND s.feature = ?",
            [method, context],
        )
    )
    assert value["truth"] > 0.9 and value["truth"] > value["near_miss"] > value["wrong"] + 0.2


def test_the_oracle_errs_as_often_as_told_whatever_the_label(world: PlantedWorld) -> None:
    judge, sure = Oracle(world.features, QUALITY), Oracle(world.features)
    texts = [[f"{word} {other} maple heron"] for word in CLASSES[4:] for other in CLASSES[4:24]]
    wrong: dict[str, list[bool]] = {}
    for label in ("the word `maple`", "the word `lantern`"):
        wrong[label] = [judge._choose(label, "", text) != sure._choose(label, "", text) for text in texts]
        assert 0.03 < sum(wrong[label]) / len(texts) < 0.07
    assert wrong["the word `maple`"] == wrong["the word `lantern`"]
    assert sure._choose("the word `maple`", "", ["a maple"]) and not sure._choose("unknown", "", ["a maple"])
