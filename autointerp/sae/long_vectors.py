"""Leaves out activation vectors that are far longer than the others.

In many language models one token in a thousand, often the first of a text, has a vector a hundred times as long as that
of other tokens and always in the same direction (an attention sink). Such vectors carry most of the variance of a
batch, so they would take most of the loss, and what a dictionary learns of all others would be what is left.
"""

from __future__ import annotations

from torch import Tensor


def ordinary(vectors: Tensor, multiple: float) -> Tensor:
    """bool [n]: which of `vectors` [n, d] are at most `multiple` times as long as their median; all for 0. A vector
    that holds NaN or infinite values stays, so that whoever looks for those finds them."""
    if not multiple:
        return vectors.new_ones(len(vectors)).bool()
    lengths = vectors.norm(dim=1)
    return ~(lengths.isfinite() & (lengths > multiple * lengths.nanmedian()))
