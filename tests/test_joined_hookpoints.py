"""Joined hookpoints: what is read at them, what their parts are to each other, and what is changed at them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from autointerp.config import ModelConfig
from autointerp.errors import InputError, NoProjection
from autointerp.evaluate.splice import splice_metrics
from autointerp.model.hooks import Hookpoint, activations_at, activations_at_all, hidden_size_at, part_columns
from autointerp.model.joined_path import find_path
from autointerp.model.load import LoadedModel, load_model
from autointerp.model.logit_path import find_logit_path
from autointerp.model.same_stream import carried_into
from autointerp.records import Window
from autointerp.sae import balance
from autointerp.sae.sae import Sae
from autointerp.steer.steering import UNTOUCHED, Steerer

BLOCKS = {
    "tiny_gpt2": ("transformer.h.0", "transformer.h.2"), "tiny_llama": ("model.layers.0", "model.layers.2"),
    "tiny_neox": ("gpt_neox.layers.0", "gpt_neox.layers.1"),
}  # fmt: skip
D_SAE = 40


@pytest.fixture(scope="module")
def models(request: pytest.FixtureRequest) -> dict[str, LoadedModel]:
    return {
        name: load_model(ModelConfig(name=str(request.getfixturevalue(name)), device="cpu", dtype="float32"))
        for name in BLOCKS
    }


def joined(*texts: str) -> Hookpoint:
    return Hookpoint.parse(" + ".join(texts))


def ids_of(n: int, length: int, seed: int = 0) -> Tensor:
    ids = torch.randint(1, 600, (n, length), generator=torch.Generator().manual_seed(seed))
    ids[:, 0] = 0  # a BOS, which is never touched
    return ids


def crosscoder(d_in: int, d_out: int | None = None, seed: int = 1) -> Sae:
    generator = torch.Generator().manual_seed(seed)
    d_out = d_in if d_out is None else d_out
    W_dec = torch.nn.functional.normalize(torch.randn(D_SAE, d_out, generator=generator), dim=1)
    W_enc = 3 * torch.randn(d_in, D_SAE, generator=generator)
    zeros = torch.zeros(D_SAE)
    return Sae(W_enc, zeros, W_dec, torch.zeros(d_out), threshold=zeros, b_pre=torch.zeros(d_in))


def with_edits(loaded: LoadedModel, ids: Tensor, edits: dict[str, Callable[[Tensor], Tensor]]) -> Tensor:
    """The logits with modules' outputs replaced, by plain hooks."""
    handles = []
    for path, change in edits.items():

        def on_output(_: object, args: object, output: Any, change: Callable[[Tensor], Tensor] = change) -> Any:
            first = output[0] if isinstance(output, tuple) else output
            new = change(first)
            return (new, *output[1:]) if isinstance(output, tuple) else new

        handles.append(loaded.model.get_submodule(path).register_forward_hook(on_output))
    with torch.no_grad():
        logits: Tensor = loaded.model(input_ids=ids).logits
    for handle in handles:
        handle.remove()
    return logits


def test_a_joined_hookpoint_is_written_and_read_back() -> None:
    point = Hookpoint.parse(" h.3 +h.7:in+ other/h.3:out")
    assert str(point) == "h.3 + h.7:in + other/h.3" and Hookpoint.parse(str(point)) == point
    assert [str(part) for part in point.own_parts] == ["h.3", "h.7:in"]
    assert Hookpoint.parse("h.3").parts == (Hookpoint("h.3"),) and hash(point) == hash(Hookpoint.parse(str(point)))
    for text, reason in (
        ("h.3 + h.3:out", "names h.3 twice"), ("h.3 +", "'' is not of the form"), ("h.3:on + h.4", "'h.3:on' is not"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=reason):
            Hookpoint.parse(text)


@pytest.mark.parametrize("family", BLOCKS)
def test_its_vector_is_those_of_its_parts_side_by_side(models: dict[str, LoadedModel], family: str) -> None:
    loaded, (first, second) = models[family], BLOCKS[family]
    point, single, ids = joined(second, f"{first}:in"), Hookpoint(second), ids_of(3, 7)
    both, alone = activations_at_all(loaded, [point, single], ids)
    parts = [activations_at(loaded, part, ids) for part in point.parts]
    assert torch.equal(both, torch.cat(parts, dim=-1)) and torch.equal(alone, parts[0])
    width = hidden_size_at(loaded, single)
    assert part_columns(loaded, point) == [(0, width), (width, 2 * width)]
    assert hidden_size_at(loaded, point) == 2 * width


def test_a_second_model_reads_the_same_ids(models: dict[str, LoadedModel]) -> None:
    loaded, other, ids = models["tiny_llama"], models["tiny_gpt2"], ids_of(2, 6)
    pair = replace(loaded, other=other)
    point = joined("model.layers.1", "other/transformer.h.1")
    found = activations_at(pair, point, ids)
    apart = [activations_at(loaded, Hookpoint("model.layers.1"), ids)]
    apart.append(activations_at(other, Hookpoint("transformer.h.1"), ids))
    assert torch.equal(found, torch.cat(apart, dim=-1))
    with pytest.raises(InputError, match=r"one of a second model; name it with model\.other"):
        activations_at(loaded, point, ids)
    assert str(find_path(pair, point)) == str(find_logit_path(loaded, Hookpoint("model.layers.1")))
    with pytest.raises(NoProjection, match="of the second model"):
        find_path(pair, Hookpoint.parse("other/transformer.h.1"))
    sae = crosscoder(found.shape[-1])
    steered = Steerer(pair, sae, point).logits(ids, torch.tensor([3, UNTOUCHED]), torch.tensor([5.0, 0.0]))
    clean = loaded.model(input_ids=ids).logits
    assert torch.allclose(steered[1], clean[1], atol=1e-5) and (steered[0] - clean[0]).abs().max() > 1e-2


@pytest.mark.parametrize("family", BLOCKS)
def test_block_outputs_are_states_of_one_stream_and_mlp_outputs_are_added_to_it(
    models: dict[str, LoadedModel], family: str
) -> None:
    loaded, (first, second) = models[family], BLOCKS[family]
    a, b, mlp_a, mlp_b = (Hookpoint(name) for name in (first, second, f"{first}.mlp", f"{second}.mlp"))
    for states in (joined(first, second), joined(second, first)):
        assert carried_into(loaded, states) == {a: (b,), b: ()}
    assert carried_into(loaded, Hookpoint.joined([mlp_b, mlp_a])) == {mlp_a: (), mlp_b: ()}
    mixed = carried_into(loaded, Hookpoint.joined([b, a, mlp_b, mlp_a]))
    assert list(mixed) == [mlp_a, a, mlp_b, b]
    assert mixed == {mlp_a: (a, b), a: (b,), mlp_b: (b,), b: ()}


@pytest.mark.parametrize("family", ["tiny_gpt2", "tiny_llama"])
def test_the_last_state_or_the_sum_of_additions_reaches_the_logits(models: dict[str, LoadedModel], family: str) -> None:
    loaded, (first, second) = models[family], BLOCKS[family]
    width = hidden_size_at(loaded, Hookpoint(first))
    x = torch.randn(5, 2 * width, generator=torch.Generator().manual_seed(3))
    last = find_logit_path(loaded, Hookpoint(second))
    states = find_path(loaded, joined(second, first))
    assert states.width == 2 * width
    torch.testing.assert_close(states.hidden(x), last.hidden(x[:, :width]))
    added = find_path(loaded, joined(f"{first}.mlp", f"{second}.mlp"))
    torch.testing.assert_close(added.hidden(x), last.hidden(x[:, :width] + x[:, width:]))
    assert "the sum of 2 parts" in str(added) and "sum" not in str(states)


@pytest.mark.parametrize("family", ["tiny_gpt2", "tiny_llama"])
def test_steering_a_crosscoder_sets_each_state_and_a_cross_layer_transcoder_adds_to_each(
    models: dict[str, LoadedModel], family: str
) -> None:
    loaded, (first, second) = models[family], BLOCKS[family]
    width, ids = hidden_size_at(loaded, Hookpoint(first)), ids_of(2, 6)
    clean = loaded.model(input_ids=ids).logits
    features, values = torch.tensor([3, 7]), torch.tensor([4.0, -2.0])
    counted = torch.ones(ids.shape, dtype=torch.bool)
    counted[:, 0] = False

    def pushed(sae: Sae, x: Tensor) -> Tensor:
        """[B, T, d_out]: what each row's feature is changed by."""
        held = sae.encode(x)[torch.arange(2), :, features]
        return (counted * (values[:, None] - held))[..., None] * sae.W_dec[features][:, None]

    states = joined(first, second)
    x = activations_at(loaded, states, ids)
    sae = crosscoder(2 * width)
    found = Steerer(loaded, sae, states, None, (0,)).logits(ids, features, values)
    wanted = x + pushed(sae, x)
    expected = with_edits(loaded, ids, {
        first: lambda y: torch.where(counted[..., None], wanted[..., :width], y),
        second: lambda y: torch.where(counted[..., None], wanted[..., width:], y),
    })  # fmt: skip
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert (found - clean).abs().max() > 1e-2

    source, targets = Hookpoint(f"{first}.mlp", "in"), joined(f"{first}.mlp", f"{second}.mlp")
    transcoder = crosscoder(width, 2 * width, seed=2)
    found = Steerer(loaded, transcoder, source, targets, (0,)).logits(ids, features, values)
    push = pushed(transcoder, activations_at(loaded, source, ids))
    expected = with_edits(loaded, ids, {
        f"{first}.mlp": lambda y: y + push[..., :width], f"{second}.mlp": lambda y: y + push[..., width:],
    })  # fmt: skip
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_a_feature_clamped_to_what_it_has_changes_nothing(models: dict[str, LoadedModel]) -> None:
    loaded, (first, second) = models["tiny_llama"], BLOCKS["tiny_llama"]
    states, ids = joined(first, second), ids_of(1, 2)
    x = activations_at(loaded, states, ids)
    sae = crosscoder(x.shape[-1])
    own = sae.encode(x)[0, 1]
    feature = int(own.argmax())
    found = Steerer(loaded, sae, states, None, (0,)).logits(ids, torch.tensor([feature]), own[feature].view(1))
    assert own[feature] > 0
    torch.testing.assert_close(found, loaded.model(input_ids=ids).logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["states", "additions"])
def test_a_splice_replaces_every_part(models: dict[str, LoadedModel], kind: str) -> None:
    loaded, (first, second) = models["tiny_llama"], BLOCKS["tiny_llama"]
    names = (first, second) if kind == "states" else (f"{first}.mlp", f"{second}.mlp")
    point, width = joined(*names), hidden_size_at(loaded, joined(*names))
    windows = [Window(f"d{i}", 0, "report", ids, 1) for i, ids in enumerate(ids_of(4, 9).tolist())]
    eye = torch.eye(width)
    exact = Sae(
        torch.cat([eye, -eye], 1), torch.zeros(2 * width), torch.cat([eye, -eye]), torch.zeros(width),
        threshold=torch.zeros(2 * width),
    )  # fmt: skip
    for sae, is_exact in ((exact, True), (crosscoder(width), False)):
        found = {m.metric: m.value for m in splice_metrics(loaded, sae, point, None, windows, (), 64)}
        assert found["ce_with_error_term"] == pytest.approx(found["ce_clean"], abs=1e-5)
        if is_exact:
            assert found["delta_ce"] == pytest.approx(0, abs=1e-5)
            assert abs((found["ce_zero_ablation"] or 0) - (found["ce_clean"] or 0)) > 1e-4
        else:
            ids = torch.tensor([w.token_ids for w in windows])
            logits = spliced_by_hand(loaded, sae, point, ids)
            loss = torch.nn.functional.cross_entropy(logits[:, 1:-1].flatten(0, 1), ids[:, 2:].flatten())
            assert found["ce_sae"] == pytest.approx(float(loss), abs=1e-4)


def spliced_by_hand(loaded: LoadedModel, sae: Sae, point: Hookpoint, ids: Tensor) -> Tensor:
    """The logits where both parts of every token but the BOS are what the dictionary makes of the clean model's."""
    x = activations_at(loaded, point, ids)
    y_hat = sae.reconstruct(x.flatten(0, 1))[0].view_as(x)
    counted = torch.ones(ids.shape, dtype=torch.bool)
    counted[:, 0] = False
    first, second = (part.path for part in point.parts)
    half = x.shape[-1] // 2
    return with_edits(loaded, ids, {
        first: lambda y: torch.where(counted[..., None], y_hat[..., :half], y),
        second: lambda y: torch.where(counted[..., None], y_hat[..., half:], y),
    })  # fmt: skip


def test_balanced_parts_have_equal_spread_and_the_weights_undo_it() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.cat([torch.randn(500, 4, generator=generator) + 3, 40 * torch.randn(500, 6, generator=generator)], dim=1)
    factors = balance.factors(x, [4, 6])
    spread = [(part - part.mean(0)).square().sum(1).mean() for part in (x * factors).split([4, 6], dim=1)]
    assert float(spread[0]) == pytest.approx(float(spread[1]), rel=1e-4)
    whole = (x - x.mean(0)).square().sum(1).mean()
    assert float(sum(spread)) == pytest.approx(float(whole), rel=1e-4)
    assert torch.equal(balance.factors(torch.ones(5, 4), [2, 2]), torch.ones(4)), "nothing varies"
    for settings in ({"k": 5}, {"threshold": torch.rand(D_SAE, generator=generator)}):
        made = crosscoder(10)
        sae = Sae(made.W_enc, made.b_enc + 0.1, made.W_dec, torch.randn(10, generator=generator), **settings)
        raw = balance.undone(sae, factors, factors)
        torch.testing.assert_close(raw(x), sae(x * factors) / factors, atol=1e-3, rtol=1e-4)
        assert torch.equal(raw.encode(x) > 0, sae.encode(x * factors) > 0)
        torch.testing.assert_close(raw.W_dec.norm(dim=1), torch.ones(D_SAE))
