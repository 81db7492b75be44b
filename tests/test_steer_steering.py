"""Steering against a plain reference with hooks of its own, row by row; the search for a strength; sampling."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from autointerp.config import ModelConfig
from autointerp.errors import InputError
from autointerp.model.hooks import Hookpoint, activations_at
from autointerp.model.load import LoadedModel, load_model
from autointerp.sae.sae import Normalize, Sae
from autointerp.steer.steering import UNTOUCHED, Steerer
from autointerp.steer.strength_search import StrengthSearch

POINTS = {"tiny_gpt2": "transformer.h.1", "tiny_llama": "model.layers.1"}
MLPS = {"tiny_gpt2": "transformer.h.1.mlp", "tiny_llama": "model.layers.1.mlp"}
EXCLUDED = (0, 17)
D_SAE = 40


@pytest.fixture(scope="module")
def models(request: pytest.FixtureRequest) -> dict[str, LoadedModel]:
    return {
        name: load_model(ModelConfig(name=str(request.getfixturevalue(name)), device="cpu", dtype="float32"))
        for name in POINTS
    }


def random_ids(n: int, length: int, seed: int = 0) -> Tensor:
    """Each begins with a BOS and has an excluded id within."""
    ids = torch.randint(1, 600, (n, length), generator=torch.Generator().manual_seed(seed))
    ids[:, 0], ids[:, length // 2] = 0, 17
    return ids


def random_sae(
    d: int, *, k: int | None = None, normalize: Normalize = "none", scale: float = 1.0, seed: int = 1
) -> Sae:
    """`scale`: of the encoder, so that features fire on activations as small as a random model's."""
    generator = torch.Generator().manual_seed(seed)
    W_dec = torch.nn.functional.normalize(torch.randn(D_SAE, d, generator=generator), dim=1)
    W_enc = scale * torch.randn(d, D_SAE, generator=generator)
    norms = None if k is None else torch.linspace(0.5, 2, D_SAE)
    return Sae(W_enc, torch.zeros(D_SAE), W_dec, torch.zeros(d), k=k, row_norms=norms, b_pre=torch.zeros(d),
               threshold=None if k else torch.zeros(D_SAE), normalize=normalize)  # fmt: skip


def plain_logits(
    loaded: LoadedModel, sae: Sae, path: str, ids: list[int], feature: int, value: float, transcoder: bool = False
) -> Tensor:
    """[T, V] of one text, without batches, padding or the sparse encoder; the error term written out."""
    module: Any = loaded.model.get_submodule(path)

    def on_output(_: object, args: tuple[Tensor, ...], output: Any) -> Any:
        y = output[0] if isinstance(output, tuple) else output
        x = args[0] if transcoder else y
        new = y.clone()
        for t, token in enumerate(ids):
            if token not in EXCLUDED:
                u, scale, mean = sae.normalized(x[0, t])
                codes = sae.encode(x[0, t])
                changed = codes.clone()
                changed[feature] = value
                before, after = (sae.completed(sae.decode(c), x[0, t]) for c in (codes, changed))
                new[0, t] = after + (y[0, t] - before)
        return (new, *output[1:]) if isinstance(output, tuple) else new

    handle = module.register_forward_hook(on_output) if feature != UNTOUCHED else None
    with torch.no_grad():
        logits: Tensor = loaded.model(input_ids=torch.tensor([ids])).logits[0]
    if handle is not None:
        handle.remove()
    return logits


@pytest.mark.parametrize("family", POINTS)
@pytest.mark.parametrize(("k", "normalize"), [(None, "none"), (4, "none"), (4, "layer_norm"), (None, "constant_norm")])
def test_logits_against_a_plain_reference(
    models: dict[str, LoadedModel], family: str, k: int | None, normalize: Normalize
) -> None:
    loaded, path = models[family], POINTS[family]
    sae = random_sae(loaded.model.config.hidden_size, k=k, normalize=normalize)
    ids = random_ids(5, 9)
    features, values = torch.tensor([3, 3, UNTOUCHED, 7, 39]), torch.tensor([2.0, -1.5, 9.0, 0.0, 4.0])
    steerer = Steerer(loaded, sae, Hookpoint.parse(path), None, EXCLUDED, batch_tokens=20)
    found = steerer.logits(ids, features, values)
    expected = torch.stack(
        [plain_logits(loaded, sae, path, i, f, v) for i, f, v in zip(ids.tolist(), features.tolist(), values.tolist())]
    )
    assert torch.allclose(found, expected, atol=1e-5)
    clean = loaded.model(input_ids=ids).logits
    assert torch.allclose(found[2], clean[2], atol=1e-6)
    assert torch.equal(found[:, 0], steerer.logits(ids, torch.full((5,), UNTOUCHED), values)[:, 0]), "a BOS is left"
    assert (found - clean).abs().amax((1, 2))[[0, 1, 4]].min() > 1e-3
    assert (steerer.n_forwards, steerer.n_tokens) == (10, 90)


@pytest.mark.parametrize("family", MLPS)
def test_a_transcoder_reads_one_hookpoint_and_writes_at_another(models: dict[str, LoadedModel], family: str) -> None:
    loaded, path = models[family], MLPS[family]
    sae, ids = random_sae(loaded.model.config.hidden_size, scale=3.0, k=5), random_ids(4, 8)
    steerer = Steerer(loaded, sae, Hookpoint(path, "in"), Hookpoint(path), EXCLUDED)
    codes = sae.encode(activations_at(loaded, Hookpoint(path, "in"), ids))[~torch.isin(ids, torch.tensor(EXCLUDED))]
    feature = int((codes > 0).sum(0).argmax())
    found = steerer.logits(ids, torch.full((4,), feature), torch.full((4,), 0.5))
    expected = torch.stack([plain_logits(loaded, sae, path, i, feature, 0.5, True) for i in ids.tolist()])
    assert torch.allclose(found, expected, atol=1e-5)
    wrong_way = Steerer(loaded, sae, Hookpoint(path), Hookpoint(path, "in"))
    with pytest.raises(InputError, match="not computed before"):
        wrong_way.logits(ids, torch.full((4,), feature), torch.full((4,), 0.5))


@pytest.mark.parametrize("family", POINTS)
def test_the_value_that_is_there_changes_nothing(models: dict[str, LoadedModel], family: str) -> None:
    """Bit for bit: of a feature silent in the text clamped to 0, and of an active one on a single token."""
    loaded, point = models[family], Hookpoint.parse(POINTS[family])
    sae = random_sae(loaded.model.config.hidden_size, k=3)
    steerer = Steerer(loaded, sae, point, None, EXCLUDED)
    ids = random_ids(1, 6)
    codes = sae.encode_sparse(activations_at(loaded, point, ids)[0])
    silent = min(set(range(D_SAE)) - set(codes.features.tolist()))
    untouched = torch.tensor([UNTOUCHED])
    clean = steerer.logits(ids, untouched, torch.zeros(1))
    assert torch.equal(steerer.logits(ids, torch.tensor([silent]), torch.zeros(1)), clean)
    one = ids[:, 1:2]
    codes = sae.encode_sparse(activations_at(loaded, point, one)[0])
    found = steerer.logits(one, codes.features[:1], codes.values[:1])
    assert torch.equal(found, steerer.logits(one, untouched, torch.zeros(1)))
    assert not torch.equal(found, steerer.logits(one, codes.features[:1], codes.values[:1] + 1))


def divergence(loaded: LoadedModel, sae: Sae, path: str, ids: Tensor, feature: int, value: float) -> float:
    """Mean over counted tokens of KL(steered || clean), in float64 from the reference above."""
    found = []
    for text in ids.tolist():
        p, q = (plain_logits(loaded, sae, path, text, f, value).double().log_softmax(-1) for f in (feature, UNTOUCHED))
        found += [float((p[t].exp() * (p[t] - q[t])).sum()) for t, i in enumerate(text) if i not in EXCLUDED]
    return sum(found) / len(found)


@pytest.mark.parametrize("family", POINTS)
@pytest.mark.parametrize("target", [0.01, 0.015])
def test_strengths_reach_the_kl(models: dict[str, LoadedModel], family: str, target: float) -> None:
    loaded, path, ids = models[family], POINTS[family], random_ids(3, 8)
    sae = random_sae(loaded.model.config.hidden_size, k=4)
    sae.W_dec[5] = 0.0  # moves nothing, however far it is clamped
    features, scales = [2, 5, 11, 30], [0.5, 1.0, 40.0, 0.01]
    steerer = Steerer(loaded, sae, Hookpoint.parse(path), None, EXCLUDED, batch_tokens=64)
    found = steerer.strengths(features, ids, target, scales)
    assert [s.feature for s in found] == features
    assert [s.reached for s in found] == [True, False, True, True]
    for strength in found:
        kl = divergence(loaded, sae, path, ids, strength.feature, strength.value)
        assert strength.kl == pytest.approx(kl, rel=0.01, abs=1e-6)
        if strength.reached:
            assert strength.value > 0 and kl == pytest.approx(target, rel=0.11)
    alone = Steerer(loaded, sae, Hookpoint.parse(path), None, EXCLUDED).strengths([11], ids, target, [40.0])[0]
    assert alone.value == pytest.approx(found[2].value, rel=1e-3)
    assert steerer.n_forwards <= 3 * (1 + 15 * 4)


def test_what_cannot_be_steered(models: dict[str, LoadedModel]) -> None:
    loaded, ids = models["tiny_gpt2"], random_ids(2, 8)
    sae = random_sae(48)
    steerer = Steerer(loaded, sae, Hookpoint.parse(POINTS["tiny_gpt2"]), None, EXCLUDED)
    with pytest.raises(InputError, match="largest activation is 0"):
        steerer.strengths([1], ids, 0.1, [0.0])
    with pytest.raises(InputError, match="no feature 40"):
        steerer.logits(ids, torch.tensor([1, D_SAE]), torch.ones(2))
    with pytest.raises(InputError, match="none of the prompts' tokens"):
        steerer.strengths([1], torch.zeros(1, 4, dtype=torch.int64), 0.1, [1.0])
    with pytest.raises(InputError, match="without tokens"):
        steerer.generate([[]], [None], [0.0], 3, 1.0, 0)
    with pytest.raises(InputError, match="128 positions"):
        steerer.logits(torch.ones(1, 129, dtype=torch.int64), torch.tensor([1]), torch.ones(1))
    with pytest.raises(InputError, match="128 positions"):
        steerer.generate([[5] * 100], [None], [0.0], 30, 1.0, 0)
    assert len(steerer.generate([[5] * 125], [None], [0.0], 4, 0.0, 0)[0]) == 4, "the last token needs no position"
    with pytest.raises(InputError, match="width 48"):
        Steerer(loaded, random_sae(20), Hookpoint("transformer.h.0")).logits(ids, torch.tensor([1, 1]), torch.ones(2))


@settings(max_examples=300, deadline=None)
@given(
    scale=st.floats(1e-3, 1e3),
    gain=st.floats(-4, 4),
    power=st.floats(0.7, 3),
    ceiling=st.floats(-2, 3),
    target=st.floats(1e-3, 5),
)
def test_a_search_finds_every_kl_that_can_be_reached(
    scale: float, gain: float, power: float, ceiling: float, target: float
) -> None:
    """KLs that rise by a power of the value and level off, and overflow far above."""

    def kl(value: float) -> float:
        if value > 500 * scale:
            return math.nan
        return 10**ceiling * -math.expm1(-(10 ** (gain - ceiling)) * (value / scale) ** power)

    search = StrengthSearch(scale, target)
    tried: list[float] = []
    while not search.is_done:
        tried.append(search.value)
        search.tell(kl(search.value))
    assert len(tried) <= 15
    assert 0.99e-3 * scale <= min(tried) and max(tried) <= 1010 * scale
    assert search.best in tried and search.best_kl == kl(search.best)
    assert search.is_reached == (abs(search.best_kl - target) <= 0.1 * target)
    if kl(scale / 900) < target < 0.97 * kl(450 * scale):
        assert search.is_reached


def test_what_is_reached_is_what_is_given_back() -> None:
    """0.9 times the target is within the tolerance, 1.105 times it is not, though its logarithm is closer."""
    search = StrengthSearch(1.0, 1.0)
    search.tell(1.105)
    value = search.value
    search.tell(0.9)
    assert (search.is_reached, search.best, search.best_kl) == (True, value, 0.9)


PROMPTS = [[0, 5, 9, 44], [0, 7], [0, 5, 9, 44], [0, *range(30, 50)], [3]]
FEATURES: list[int | None] = [2, None, None, 30, 11]
VALUES = [3.0, 0.0, 0.0, 8.0, 5.0]


@pytest.mark.parametrize("family", POINTS)
def test_generation_does_not_depend_on_the_batch(models: dict[str, LoadedModel], family: str) -> None:
    loaded, point = models[family], Hookpoint.parse(POINTS[family])
    sae = random_sae(loaded.model.config.hidden_size, k=4)
    together = Steerer(loaded, sae, point, None, EXCLUDED).generate(PROMPTS, FEATURES, VALUES, 7, 1.0, 3)
    small = Steerer(loaded, sae, point, None, EXCLUDED, batch_tokens=9)
    assert small.generate(PROMPTS[::-1], FEATURES[::-1], VALUES[::-1], 7, 1.0, 3) == together[::-1]
    alone = [small.generate([p], [f], [v], 7, 1.0, 3)[0] for p, f, v in zip(PROMPTS, FEATURES, VALUES)]
    assert alone == together
    assert all(0 < len(row) <= 7 for row in together)
    assert small.generate(PROMPTS, FEATURES, VALUES, 7, 1.0, 4) != together
    twice = small.generate([PROMPTS[1]] * 2, [None] * 2, [0.0] * 2, 7, 1.0, 3)
    assert twice[0] == together[1] and twice[1] != twice[0], "the same row again is another sample"


def test_greedy_generation_against_a_plain_loop(models: dict[str, LoadedModel]) -> None:
    loaded, path = models["tiny_llama"], POINTS["tiny_llama"]
    sae = random_sae(64, k=4)
    found = Steerer(loaded, sae, Hookpoint.parse(path), None, EXCLUDED).generate(PROMPTS, FEATURES, VALUES, 6, 0.0, 0)
    for prompt, feature, value, row in zip(PROMPTS, FEATURES, VALUES, found):
        text = list(prompt)
        for _ in range(6):
            logits = plain_logits(loaded, sae, path, text, UNTOUCHED if feature is None else feature, value)
            text.append(int(logits[-1].argmax()))
        assert row == text[len(prompt) :]


def test_samples_follow_the_models_probabilities(models: dict[str, LoadedModel]) -> None:
    loaded, n, temperature = models["tiny_gpt2"], 2000, 0.04
    steerer = Steerer(loaded, random_sae(48), Hookpoint.parse(POINTS["tiny_gpt2"]), None, EXCLUDED)
    probability = (loaded.model(input_ids=torch.tensor([[9, 8]])).logits[0, -1].double() / temperature).softmax(-1)
    rows = steerer.generate([[9, 8]] * n, [None] * n, [0.0] * n, 1, temperature, 1)
    count = torch.bincount(torch.tensor([row[0] for row in rows if row]), minlength=600)
    likely = probability.topk(5)
    assert 0.02 < float(likely.values[0]) < 0.98
    for p, i in zip(likely.values.tolist(), likely.indices.tolist()):
        assert int(count[i]) == pytest.approx(n * p, abs=4.5 * math.sqrt(n * p * (1 - p)) + 1)


def test_a_row_ends_where_the_model_ends_its_text(models: dict[str, LoadedModel]) -> None:
    """Features that write the unembedding row of one token make the model say it; id 0 is its end of text."""
    loaded = models["tiny_llama"]
    head = loaded.model.get_output_embeddings().weight.detach()
    sae = random_sae(64)
    sae.W_dec[:2] = torch.nn.functional.normalize(head[[0, 77]], dim=1)
    steerer = Steerer(loaded, sae, Hookpoint.parse("model.layers.2"), None, ())
    found = steerer.generate([[5, 6]] * 2, [0, 1], [100.0, 100.0], 4, 0.1, 0)
    assert found == [[], [77] * 4]


def test_a_model_in_bfloat16_keeps_what_is_not_clamped(models: dict[str, LoadedModel]) -> None:
    loaded = models["tiny_llama"]
    half = dataclasses.replace(
        loaded, model=load_model(ModelConfig(name=loaded.name, device="cpu", dtype="bfloat16")).model
    )
    sae, ids = random_sae(64, k=3), random_ids(2, 8)
    steerer = Steerer(half, sae, Hookpoint.parse(POINTS["tiny_llama"]), None, EXCLUDED)
    codes = sae.encode_sparse(activations_at(half, steerer.source, ids).flatten(0, 1))
    silent = min(set(range(D_SAE)) - set(codes.features.tolist()))
    clean = steerer.logits(ids, torch.full((2,), UNTOUCHED), torch.zeros(2))
    assert clean.dtype == torch.bfloat16
    assert torch.equal(steerer.logits(ids, torch.full((2,), silent), torch.zeros(2)), clean)
    assert not torch.equal(steerer.logits(ids, torch.full((2,), silent), torch.ones(2)), clean)
