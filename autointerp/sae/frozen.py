"""What the training of a control leaves as it was drawn (Korznikov et al. 2026, arXiv 2602.14111).

decoder        the decoder's rows stay at their start, bit for bit
soft_decoder   each decoder row stays within a cosine of SOFT_COSINE of its start: after every step, one that has gone
               further is turned back to the nearest direction that it may have, at the length that it has
encoder        the encoder's rows stay at their start, bit for bit. The decoder's rows then have any length, since
               nothing else could fit the size of an activation to what it adds.

Biases, thresholds and all other weights are trained in every case. Dead features are revived as in any training, by
what is trained.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from autointerp.errors import InputError

SOFT_COSINE = 0.8
SOFT = "soft_decoder"
_UNTRAINED: dict[str | None, tuple[str, ...]] = {
    None: (), "decoder": ("decoder",), "encoder": ("encoder",), SOFT: (),
}  # fmt: skip
_TINY = 1e-6  # of a row of length 1


def untrained(part: str | None) -> tuple[str, ...]:
    """The weights that are not trained where `part` is frozen. Raises InputError for an unknown part."""
    if part not in _UNTRAINED:
        known = ", ".join(name for name in _UNTRAINED if name is not None)
        raise InputError(f"sae.frozen must be none, {known}, not {part!r}")
    return _UNTRAINED[part]


@torch.no_grad()
def keep_near(rows: Tensor, start: Tensor) -> None:
    """Turn every row [n, d] whose cosine with its unit row of `start` is below SOFT_COSINE back to that cosine, in
    place, in the plane of the two and at its own length. The other rows are not touched. A row of length 0 (which gets
    a tiny one), or one that points the opposite way, gets the direction of its start."""
    length = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    along = torch.linalg.vecdot(rows, start).unsqueeze(1)
    away = rows - along * start
    across = torch.linalg.vector_norm(away, dim=1, keepdim=True)
    back = SOFT_COSINE * start + (1 - SOFT_COSINE**2) ** 0.5 * away / across.clamp_min(_TINY)
    back = torch.where(across > _TINY * length, F.normalize(back, dim=1), start)
    left = along < SOFT_COSINE * length.clamp_min(_TINY)
    rows.copy_(torch.where(left, back * length.clamp_min(_TINY), rows))
