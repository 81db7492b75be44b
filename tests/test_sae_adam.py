"""Our Adam against torch.optim's."""

from __future__ import annotations

import torch

from autointerp.sae.adam import Adam


def parameters() -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    return {"a": torch.randn(5, 3, generator=g), "b": torch.randn(4, generator=g)}


def test_equals_torch_optim() -> None:
    mine = parameters()
    theirs = {name: p.clone().requires_grad_() for name, p in mine.items()}
    ours, reference = Adam(mine, eps=1e-9), torch.optim.Adam(theirs.values(), lr=0.01, eps=1e-9)
    for _ in range(5):
        gradients = {name: torch.randn_like(p) for name, p in mine.items()}
        ours.step(gradients, 0.01)
        for name, p in theirs.items():
            p.grad = gradients[name]
        reference.step()
    for name in mine:
        torch.testing.assert_close(mine[name], theirs[name].detach())


def test_state_goes_round() -> None:
    first, second = parameters(), parameters()
    a, b = Adam(first, eps=1e-9), Adam(second, eps=1e-9)
    gradients = {name: torch.ones_like(p) for name, p in first.items()}
    a.step(gradients, 0.1)
    for name in second:
        second[name].copy_(first[name])
    b.restore({name: t.clone() for name, t in a.state().items()})
    a.step(gradients, 0.1)
    b.step(gradients, 0.1)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_forgotten_rows_get_the_average_row() -> None:
    adam = Adam(parameters(), eps=1e-9)
    adam.mean_square["a"] += torch.arange(5.0).unsqueeze(1)
    adam.mean["a"] += 1.0
    adam.forget(("a",), torch.tensor([0, 4]))
    assert adam.mean_square["a"][:, 0].tolist() == [2.0, 1.0, 2.0, 3.0, 2.0]
    assert adam.mean["a"][:, 0].tolist() == [0.0, 1.0, 1.0, 1.0, 0.0]
