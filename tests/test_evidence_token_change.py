"""TokenChange against planted features and against numpy on logits from one feature at a time."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from autointerp.config import EvidenceConfig, ModelConfig
from autointerp.corpus.token_text import TokenText
from autointerp.errors import InputError
from autointerp.evidence.logit_shifts import SMALLEST_DEVIATION, Compared, token_change
from autointerp.model.hooks import Hookpoint
from autointerp.model.load import LoadedModel, load_model
from autointerp.sae.sae import Sae
from autointerp.steer.steering import UNTOUCHED, Steerer

LAST = {"tiny_gpt2": "transformer.h.2", "tiny_llama": "model.layers.2"}
D_SAE, NOTHING = 40, 39
"""NOTHING is a feature whose decoder row is zero."""
PLANTED = {0: 300, 1: 77, 2: 411, 3: 300}
"""Feature: the token whose unembedding row it writes; 3 writes its opposite."""
SCALES = dict.fromkeys(range(D_SAE), 1.0)
POOL = range(4, NOTHING)
CONFIG = EvidenceConfig(change_kl=0.01, change_random=12)


@pytest.fixture(scope="module")
def models(request: pytest.FixtureRequest) -> dict[str, LoadedModel]:
    return {
        name: load_model(ModelConfig(name=str(request.getfixturevalue(name)), device="cpu", dtype="float32"))
        for name in LAST
    }


def prompts() -> Tensor:
    ids = torch.randint(1, 600, (3, 6), generator=torch.Generator().manual_seed(5))
    ids[:, 0] = 0
    return ids


def planted_sae(loaded: LoadedModel) -> Sae:
    head = loaded.model.get_output_embeddings().weight.detach()
    generator = torch.Generator().manual_seed(1)
    W_dec = torch.randn(D_SAE, head.shape[1], generator=generator)
    for feature, token in PLANTED.items():
        W_dec[feature] = (head[token] - head.mean(0)) * (-1 if feature == 3 else 1)
    W_dec = torch.nn.functional.normalize(W_dec, dim=1)
    W_dec[NOTHING] = 0
    W_enc = torch.randn(head.shape[1], D_SAE, generator=generator)
    return Sae(W_enc, torch.zeros(D_SAE), W_dec, torch.zeros(head.shape[1]), k=3, b_pre=torch.zeros(head.shape[1]))


def steerer_of(loaded: LoadedModel, family: str) -> Steerer:
    return Steerer(loaded, planted_sae(loaded), Hookpoint.parse(LAST[family]), None, (0,))


@pytest.mark.parametrize("family", LAST)
def test_a_planted_token_comes_first(models: dict[str, LoadedModel], family: str) -> None:
    loaded = models[family]
    text, steerer = TokenText(loaded.tokenizer), steerer_of(loaded, family)
    features = [3, 0, NOTHING, 1, 2, 9]
    found = token_change(steerer, features, SCALES, prompts(), CONFIG, text, 5, 0, POOL)
    assert [change.feature for change in found] == features
    assert sum(c.n_forwards for c in found) == steerer.n_forwards > 0
    assert sum(c.n_tokens for c in found) == steerer.n_tokens
    for change in found:
        assert [r.rank for r in change.rows] == [*range(5), *range(5)] or change.feature == NOTHING
        assert all(r.sign * r.delta > 0 and r.token == text.tokens([r.token_id])[0] for r in change.rows)
        for sign in (1, -1):
            z = [sign * r.z for r in change.rows if r.sign == sign]
            assert z == sorted(z, reverse=True)
        if change.feature in PLANTED:
            sign = -1 if change.feature == 3 else 1
            first = next(r for r in change.rows if r.sign == sign)
            assert (first.token_id, first.rank) == (PLANTED[change.feature], 0)
            assert sign * first.z > 5
    nothing = found[2]
    assert (nothing.status, nothing.rows, nothing.strength.reached) == ("kl_not_reached", [], False)
    assert [c.status for c in found if c.feature != NOTHING] == ["ok"] * 5


@pytest.mark.parametrize("family", LAST)
def test_delta_and_z_against_a_plain_computation(models: dict[str, LoadedModel], family: str) -> None:
    """A feature of the pool, which is not compared with itself, and one that is not; each alone gives the same."""
    loaded, ids = models[family], prompts()
    text, steerer = TokenText(loaded.tokenizer), steerer_of(loaded, family)
    text.token_bytes[8] = b""  # as for an id that no token has
    pool = [20, 21, 22, 23, NOTHING]
    config = EvidenceConfig(change_kl=0.01, change_random=4)
    kept = np.array([i for i in range(600) if i not in (0, 8)])

    def logits(feature: int, value: float) -> np.ndarray:
        rows = torch.tensor([feature] * len(ids)), torch.full((len(ids),), value)
        counted = steerer.logits(ids, *rows)[:, 1:].double()  # without the BOS
        return counted.mean((0, 1)).numpy()[kept]

    def delta(feature: int) -> np.ndarray:
        strength = steerer.strengths([feature], ids, 0.01, [1.0])[0]
        assert strength.reached
        change = logits(feature, strength.value) - logits(UNTOUCHED, 0.0)
        return change - change.mean()

    for feature in (1, 21):
        (found,) = token_change(steerer, [feature], SCALES, ids, config, text, 1000, 7, pool)
        own = delta(feature)
        random = np.array([delta(f) for f in (20, 21, 22, 23) if f != feature])
        deviation = random.std(0, ddof=1)
        z = (own - random.mean(0)) / np.maximum(deviation, SMALLEST_DEVIATION * np.median(deviation))
        place = {int(token): i for i, token in enumerate(kept)}
        assert sorted(r.token_id for r in found.rows) == kept.tolist(), "every token, by the sign of its delta"
        at = [place[r.token_id] for r in found.rows]
        assert [r.delta for r in found.rows] == pytest.approx(own[at], abs=1e-5)
        assert [r.z for r in found.rows] == pytest.approx(z[at], rel=1e-2, abs=1e-2)
        both = token_change(steerer, [2, feature], SCALES, ids, config, text, 1000, 7, pool)
        assert {r.token_id: r.delta for r in both[1].rows} == pytest.approx(
            {r.token_id: r.delta for r in found.rows}, abs=1e-5
        )


def test_without_a_baseline_there_is_no_z(models: dict[str, LoadedModel]) -> None:
    loaded = models["tiny_gpt2"]
    text, steerer = TokenText(loaded.tokenizer), steerer_of(loaded, "tiny_gpt2")
    for pool in ([], [NOTHING], [5, 6]):  # of the last, only one is another feature than 5
        (found,) = token_change(steerer, [5], SCALES, prompts(), CONFIG, text, 5, 0, pool)
        assert (found.status, found.rows, found.strength.reached) == ("no_baseline", [], True)
    assert token_change(steerer, [], SCALES, prompts(), CONFIG, text, 5, 0, POOL) == []
    with pytest.raises(InputError, match="feature 6 is not given"):
        token_change(steerer, [5], {5: 1.0}, prompts(), CONFIG, text, 5, 0, [6])


def test_blocks_share_the_random_features(models: dict[str, LoadedModel]) -> None:
    """However features are cut into blocks, the rows are the same and the random features are steered once."""
    family = "tiny_gpt2"
    text, features, compared = TokenText(models[family].tokenizer), [3, 0, 1, 2, 9], Compared()
    steerer = steerer_of(models[family], family)
    whole = token_change(steerer, features, SCALES, prompts(), CONFIG, text, 5, 0, POOL)
    first = steerer.n_forwards
    steerer, parts, spent = steerer_of(models[family], family), [], []
    for feature in features:
        before = steerer.n_forwards
        parts += token_change(steerer, [feature], SCALES, prompts(), CONFIG, text, 5, 0, POOL, compared=compared)
        spent.append(steerer.n_forwards - before)
    for a, b in zip(whole, parts, strict=True):
        assert [(r.sign, r.rank, r.token_id) for r in a.rows] == [(r.sign, r.rank, r.token_id) for r in b.rows]
        np.testing.assert_allclose([r.z for r in a.rows], [r.z for r in b.rows], rtol=1e-3)
    assert max(spent[1:]) < spent[0] and sum(spent) < 1.5 * first
