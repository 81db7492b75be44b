"""The mean Jacobian against differences of the plain model, and the models that have none."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from autointerp.config import ModelConfig
from autointerp.errors import InputError, NoProjection
from autointerp.model.hooks import Hookpoint, hooked
from autointerp.model.load import LoadedModel, load_model
from autointerp.model.logit_path import find_stream_end
from autointerp.model.mean_jacobian import SHORTEST_PROMPT, SKIPPED, Effects, mean_jacobian

STEP = 1e-4
EARLY = {"tiny_gpt2": "transformer.h.0", "tiny_llama": "model.layers.1:in", "tiny_neox": "gpt_neox.layers.0.mlp"}
END = {"tiny_gpt2": "transformer.ln_f:in", "tiny_llama": "model.norm:in", "tiny_neox": "gpt_neox.final_layer_norm:in"}


def model(request: pytest.FixtureRequest, name: str) -> LoadedModel:
    folder: Path = request.getfixturevalue(name)
    return load_model(ModelConfig(name=str(folder), device="cpu", dtype="float32"))


def in_double(loaded: LoadedModel) -> LoadedModel:
    """The same model in float64, for differences of small steps."""
    return replace(loaded, model=copy.deepcopy(loaded.model).double(), dtype=torch.float64)


def prompts(n: int, length: int) -> Tensor:
    return torch.randint(1, 600, (n, length), generator=torch.Generator().manual_seed(3))


def jacobian(loaded: LoadedModel, early: str, ids: Tensor, effects: Effects, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    end, rows = find_stream_end(loaded), range(loaded.model.config.hidden_size)
    return mean_jacobian(loaded, Hookpoint.parse(early), end, ids, rows, effects, generator)


def by_differences(loaded: LoadedModel, name: str, ids: Tensor, at: int, effects: Effects) -> Tensor:
    """Of one prompt `ids` [1, T]: how the end of the stream answers to steps in each coordinate at position `at`."""
    point, end = Hookpoint.parse(EARLY[name]), Hookpoint.parse(END[name])
    found: list[Tensor] = []
    with torch.no_grad(), hooked(loaded.model, point, capture=found, stop=True):
        loaded.model(input_ids=ids, use_cache=False)
    width = found[0].shape[-1]
    steps = torch.cat([torch.eye(width), -torch.eye(width)]) * STEP

    def step(held: Tensor) -> Tensor:
        moved = held.clone()
        moved[:, at] += steps.to(held)
        return moved

    ends: list[Tensor] = []
    with torch.no_grad(), hooked(loaded.model, point, edit=step), hooked(loaded.model, end, capture=ends, stop=True):
        loaded.model(input_ids=ids.expand(2 * width, -1), use_cache=False)
    slopes = (ends[0][:width] - ends[0][width:]) / (2 * STEP)  # [width, T, width]
    return (slopes[:, at:-1].sum(1) if effects == "later" else slopes[:, at]).T


@pytest.mark.parametrize("name", list(EARLY))
def test_against_differences_of_the_model(name: str, request: pytest.FixtureRequest) -> None:
    """Two prompts with three positions that count: what each does there and later, but at the last position."""
    loaded = model(request, name)
    assert str(find_stream_end(loaded)) == END[name]
    ids = prompts(2, SKIPPED + 4)
    double = in_double(loaded)
    steps = [by_differences(double, name, one[None], at, "later") for one in ids for at in (16, 17, 18)]
    expected = torch.stack(steps).mean(0)
    found = jacobian(loaded, EARLY[name], ids, "later").double()
    assert (found - expected).norm() <= 1e-3 * (expected - torch.eye(len(expected))).norm()


def test_one_position_is_all_that_it_does_itself(request: pytest.FixtureRequest) -> None:
    """With two positions that count, the random signs leave what each does to itself, plus or minus what the first does
    to the second."""
    loaded = model(request, "tiny_llama")
    name, ids = "tiny_llama", prompts(1, SKIPPED + 3)
    early, double = EARLY[name], in_double(loaded)
    same = torch.stack([by_differences(double, name, ids, at, "same") for at in (16, 17)]).mean(0)
    other = torch.stack([by_differences(double, name, ids, at, "later") for at in (16, 17)]).mean(0) - same
    seen = set()
    for seed in range(3):
        found = jacobian(loaded, early, ids, "same", seed)
        assert torch.equal(found, jacobian(loaded, early, ids, "same", seed))
        sides = [(found - same - sign * other).norm(dim=1) for sign in (1, -1)]
        assert (torch.minimum(*sides) <= 1e-3).all()
        seen.add(tuple((sides[0] < sides[1]).tolist()))
    assert len(seen) == 3
    alone = ids[:, :SHORTEST_PROMPT]
    assert torch.allclose(jacobian(loaded, early, alone, "same"), jacobian(loaded, early, alone, "later"), atol=1e-6)


def test_from_the_last_block_it_is_the_identity(request: pytest.FixtureRequest) -> None:
    loaded = model(request, "tiny_gpt2")
    rows: list[int] = []
    found = mean_jacobian(
        loaded, Hookpoint("transformer.h.2"), find_stream_end(loaded), prompts(2, 20), [7, 3, 40], "later",
        torch.Generator(), lambda: rows.append(1),
    )  # fmt: skip
    assert torch.equal(found, torch.eye(48)[[7, 3, 40]]) and len(rows) == 3
    assert not any(p.requires_grad for p in loaded.model.parameters())


def test_what_has_no_jacobian_is_told(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = model(request, "tiny_gpt2")
    end, ids = find_stream_end(loaded), prompts(1, 20)

    def of(early: Hookpoint, late: Hookpoint = end, text: Tensor = ids) -> Tensor:
        return mean_jacobian(loaded, early, late, text, [0], "later", torch.Generator())

    with pytest.raises(InputError, match="a prompt of 17 tokens is too short"):
        of(Hookpoint("transformer.h.0"), text=ids[:, :17])
    with pytest.raises(InputError, match=r"does not run lm_head and then transformer\.ln_f:in"):
        of(Hookpoint("lm_head"))
    with pytest.raises(InputError, match="has no module 'transformer.h.9'"):
        of(Hookpoint("transformer.h.9"))

    block = loaded.model.get_submodule("transformer.h.1")
    forward = block.forward
    monkeypatch.setattr(block, "forward", lambda *args, **kwargs: forward(*args, **kwargs).detach())
    with pytest.raises(NoProjection, match=r"transformer\.ln_f:in does not depend on what transformer\.h\.0 holds"):
        of(Hookpoint("transformer.h.0"))

    def rounded(x: Tensor, *args: object, **kwargs: object) -> Tensor:
        return _NoDerivative.apply(x)  # type: ignore[no-any-return]

    monkeypatch.setattr(block, "forward", rounded)
    with pytest.raises(NoProjection, match="GPT2LMHeadModel cannot be differentiated from .*: no way back"):
        of(Hookpoint("transformer.h.0"))


class _NoDerivative(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        raise RuntimeError("no way back")
