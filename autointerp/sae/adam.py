"""Adam (Kingma & Ba 2015): torch's fused kernel, called without torch.optim.

Creating a torch.optim.Optimizer imports torch's compiler, which costs 3 s of CPU time, and its state is keyed by
position. Here the state is two named tensors per parameter, ready for a checkpoint.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class Adam:
    """Updates `parameters` in place, with betas 0.9 and 0.999 and no weight decay, on CPU, CUDA and MPS."""

    def __init__(self, parameters: dict[str, Tensor], eps: float) -> None:
        self.parameters, self.eps = parameters, eps
        self.mean = {name: torch.zeros_like(p) for name, p in parameters.items()}
        self.mean_square = {name: torch.zeros_like(p) for name, p in parameters.items()}
        # one step count per parameter, because the kernel wants it so
        self.steps = {name: torch.zeros((), device=p.device) for name, p in parameters.items()}

    @torch.no_grad()
    def step(self, gradients: dict[str, Tensor], lr: float) -> None:
        names = list(self.parameters)
        for name in names:
            self.steps[name] += 1
        torch._fused_adam_(
            [self.parameters[n] for n in names],
            [gradients[n] for n in names],
            [self.mean[n] for n in names],
            [self.mean_square[n] for n in names],
            [],
            [self.steps[n] for n in names],
            lr=lr,
            beta1=0.9,
            beta2=0.999,
            weight_decay=0.0,
            eps=self.eps,
            amsgrad=False,
            maximize=False,
        )

    def forget(self, names: Sequence[str], rows: Tensor) -> None:
        """Give these rows the average row's mean square and no momentum. Their own mean square comes from AuxK's
        gradients, which are ten to a hundred times smaller, so the next steps would be as many times too large."""
        for name in names:
            self.mean[name][rows] = 0.0
            self.mean_square[name][rows] = self.mean_square[name].mean(0)

    def state(self) -> dict[str, Tensor]:
        """The optimizer's tensors by name, without the parameters."""
        parts = {"mean": self.mean, "mean_square": self.mean_square, "steps": self.steps}
        return {f"adam.{part}.{name}": t for part, tensors in parts.items() for name, t in tensors.items()}

    def restore(self, state: dict[str, Tensor]) -> None:
        for part, tensors in (("mean", self.mean), ("mean_square", self.mean_square), ("steps", self.steps)):
            for name in tensors:
                tensors[name] = state[f"adam.{part}.{name}"]
