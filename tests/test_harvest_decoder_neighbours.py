"""Nearest decoder rows against the whole matrix of cosines."""

from __future__ import annotations

import pytest
import torch

import autointerp.harvest.decoder_neighbours as module
from autointerp.harvest.decoder_neighbours import decoder_cosines, decoder_neighbours


@pytest.mark.parametrize("block", [1 << 24, 200])
def test_against_the_whole_matrix(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLOCK_ELEMENTS", block)
    W = torch.randn(37, 8, generator=torch.Generator().manual_seed(0)) * torch.rand(37, 1).add(0.1)
    rows = torch.nn.functional.normalize(W, dim=1)
    cosine = (rows @ rows.T).fill_diagonal_(-2)
    assert decoder_neighbours(W, 4).tolist() == cosine.topk(4, dim=1).indices.tolist()
    values, indices = decoder_cosines(W, 4)
    torch.testing.assert_close(values, cosine.gather(1, indices))


def test_few_features() -> None:
    assert decoder_neighbours(torch.eye(3), 5).shape == (3, 2)
    assert decoder_neighbours(torch.ones(1, 4), 5).shape == (1, 0)
    assert decoder_cosines(torch.ones(1, 4), 5)[0].shape == (1, 0)
