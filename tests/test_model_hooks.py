"""Hooks: what is captured is what the full forward pass computes, for three families, both sides, blocks and parts."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from autointerp.config import ModelConfig
from autointerp.errors import InputError
from autointerp.model.hooks import (
    Hookpoint,
    activations_at,
    activations_at_all,
    hidden_size_at,
    hooked,
    resolve,
)
from autointerp.model.load import LoadedModel, load_model

FAMILIES = {
    "tiny_gpt2": ("transformer.h.{}", ("mlp", "attn", "ln_2")),
    "tiny_llama": ("model.layers.{}", ("mlp", "self_attn", "mlp.up_proj")),
    "tiny_neox": ("gpt_neox.layers.{}", ("mlp", "attention", "post_attention_layernorm")),
}
ALL_POINTS = [
    (family, (block + "." + part if part else block).format(1) + side)
    for family, (block, parts) in FAMILIES.items()
    for part in ("", *parts)
    for side in ("", ":in")
]


@pytest.fixture(scope="module")
def models(request: pytest.FixtureRequest) -> dict[str, LoadedModel]:
    return {name: load_model(ModelConfig(name=str(request.getfixturevalue(name)), device="cpu")) for name in FAMILIES}


def some_ids(rows: int = 3, tokens: int = 11) -> Tensor:
    return torch.randint(1, 600, (rows, tokens), generator=torch.Generator().manual_seed(0))


def by_full_forward(loaded: LoadedModel, point: Hookpoint, ids: Tensor) -> Tensor:
    """The activation by plain torch hooks and a complete forward pass with an explicit attention mask."""
    found: list[Tensor] = []
    module = loaded.model.get_submodule(point.path)

    def before(_: object, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
        found.append((args[0] if args else kwargs["hidden_states"]).clone())

    def after(_: object, args: object, output: Tensor | tuple[Tensor, ...]) -> None:
        found.append((output if isinstance(output, Tensor) else output[0]).clone())

    handle = (
        module.register_forward_pre_hook(before, with_kwargs=True)
        if point.side == "in"
        else module.register_forward_hook(after)
    )
    with torch.no_grad():
        loaded.model(input_ids=ids, attention_mask=torch.ones_like(ids))
    handle.remove()
    return found[0]


@pytest.mark.parametrize(("family", "point"), ALL_POINTS)
def test_stopping_after_a_hookpoint_changes_nothing(models: dict[str, LoadedModel], family: str, point: str) -> None:
    loaded, hookpoint, ids = models[family], Hookpoint.parse(point), some_ids()
    found = activations_at(loaded, hookpoint, ids)
    torch.testing.assert_close(found, by_full_forward(loaded, hookpoint, ids), rtol=1e-5, atol=1e-6)
    assert hidden_size_at(loaded, hookpoint) == found.shape[-1]
    assert not found.requires_grad


@pytest.mark.parametrize("family", FAMILIES)
def test_block_outputs_are_the_hidden_states(models: dict[str, LoadedModel], family: str) -> None:
    loaded, ids = models[family], some_ids()
    block = FAMILIES[family][0]
    states = loaded.model(input_ids=ids, output_hidden_states=True).hidden_states
    torch.testing.assert_close(activations_at(loaded, Hookpoint(block.format(0)), ids), states[1])
    torch.testing.assert_close(activations_at(loaded, Hookpoint(block.format(0), "in"), ids), states[0])
    torch.testing.assert_close(activations_at(loaded, Hookpoint(block.format(1), "in"), ids), states[1])


@pytest.mark.parametrize("family", FAMILIES)
def test_right_padding_changes_nothing(models: dict[str, LoadedModel], family: str) -> None:
    loaded = models[family]
    point = Hookpoint(FAMILIES[family][0].format(1))
    ids = some_ids(4, 20)
    lengths = [20, 13, 7, 2]
    for row, length in enumerate(lengths):
        ids[row, length:] = loaded.pad_id
    batched = activations_at(loaded, point, ids)
    for row, length in enumerate(lengths):
        alone = activations_at(loaded, point, ids[row : row + 1, :length])[0]
        torch.testing.assert_close(batched[row, :length], alone, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_several_hookpoints_share_one_forward_pass(models: dict[str, LoadedModel], family: str) -> None:
    loaded, ids = models[family], some_ids()
    points = [Hookpoint.parse(point) for name, point in ALL_POINTS if name == family]
    calls: list[int] = []
    handle = loaded.model.get_input_embeddings().register_forward_hook(lambda *_: calls.append(1))
    together = activations_at_all(loaded, points, ids)
    handle.remove()
    assert len(calls) == 1
    for point, found in zip(points, together, strict=True):
        torch.testing.assert_close(found, activations_at(loaded, point, ids), rtol=0, atol=0)


def test_nothing_beyond_the_hookpoint_runs(models: dict[str, LoadedModel]) -> None:
    loaded = models["tiny_gpt2"]
    ran: list[str] = []
    before = [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in loaded.model.modules()]
    handles = [
        module.register_forward_pre_hook(lambda *_, name=name: ran.append(name))
        for name, module in loaded.model.named_modules()
    ]
    activations_at(loaded, Hookpoint("transformer.h.1.mlp", "in"), some_ids())
    for handle in handles:
        handle.remove()
    assert "transformer.h.1.attn" in ran and "transformer.h.1.mlp.c_fc" not in ran
    assert "" not in ran and "lm_head" not in ran
    after = [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in loaded.model.modules()]
    assert after == before  # transformers puts hooks of its own on some modules


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("side", ["in", "out"])
def test_an_edit_moves_the_logits_as_computing_from_it_would(
    models: dict[str, LoadedModel], family: str, side: str
) -> None:
    """Replacing block 1's output (block 2's input, or the final norm's) by that of other ids gives their logits."""
    loaded, ids = models[family], some_ids()
    other = ids.flip(0)
    point = Hookpoint(FAMILIES[family][0].format(1), "in" if side == "in" else "out")
    target = activations_at(loaded, point, other).clone()
    seen: list[Tensor] = []
    with torch.no_grad():
        with hooked(loaded.model, point, capture=seen, edit=lambda x: target):
            edited = loaded.model(input_ids=ids).logits
        torch.testing.assert_close(edited, loaded.model(input_ids=other).logits, rtol=1e-4, atol=1e-5)
        before = activations_at(loaded, point, ids)
    torch.testing.assert_close(seen[0], before)  # captured before the edit


def test_edits_reach_gradients(models: dict[str, LoadedModel]) -> None:
    loaded = models["tiny_llama"]
    push = torch.zeros(64, requires_grad=True)
    with hooked(loaded.model, Hookpoint("model.layers.0.mlp"), edit=lambda x: x + push):
        loaded.model(input_ids=some_ids()).logits.sum().backward()
    assert push.grad is not None and push.grad.abs().sum() > 0


def test_parse() -> None:
    assert Hookpoint.parse(" a.b:out ") == Hookpoint("a.b", "out") == Hookpoint.parse("a.b")
    assert str(Hookpoint.parse("a.b:in")) == "a.b:in" and str(Hookpoint("a.b")) == "a.b"
    for bad in ("", ":in", "a:both", "a:"):
        with pytest.raises(InputError, match="not of the form"):
            Hookpoint.parse(bad)


def test_wrong_hookpoints_say_what_is_there(models: dict[str, LoadedModel]) -> None:
    loaded = models["tiny_gpt2"]
    with pytest.raises(InputError, match=r"no module 'transformer\.h\.9'.*transformer\.h\.[012]"):
        resolve(loaded.model, Hookpoint("transformer.h.9"))
    with pytest.raises(InputError, match="begin with transformer, lm_head"):
        resolve(loaded.model, Hookpoint("#"))
    with pytest.raises(InputError, match="never runs"):
        activations_at(loaded, Hookpoint("transformer.h"), some_ids())
    with pytest.raises(InputError, match="int64 of shape"):
        activations_at(loaded, Hookpoint("transformer.wte", "in"), some_ids())


def test_an_error_inside_leaves_no_hook(models: dict[str, LoadedModel]) -> None:
    loaded = models["tiny_gpt2"]
    point = Hookpoint("transformer.h.0")
    n_hooks = len(resolve(loaded.model, point)._forward_hooks)
    with pytest.raises(ZeroDivisionError), hooked(loaded.model, point, edit=lambda x: x / (1 // 0)):
        loaded.model(input_ids=some_ids())
    assert len(resolve(loaded.model, point)._forward_hooks) == n_hooks


def test_the_lm_head_is_a_hookpoint_too(models: dict[str, LoadedModel]) -> None:
    for family in FAMILIES:
        logits = activations_at(models[family], Hookpoint("lm_head"), some_ids())
        torch.testing.assert_close(logits, models[family].model(input_ids=some_ids()).logits)
