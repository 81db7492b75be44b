"""Matching dictionaries by their decoders: what is known to be the same, what is known to be chance."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from autointerp.errors import InputError
from autointerp.evaluate import stability as module
from autointerp.evaluate.stability import match, random_like, stability


def rows(n: int, d: int = 16, seed: int = 0) -> Tensor:
    return F.normalize(torch.randn(n, d, generator=torch.Generator().manual_seed(seed)), dim=1)


def values(*decoders: Tensor, seed: int = 0) -> dict[str, float | None]:
    return {row["metric"]: row["value"] for row in stability(decoders, seed, n_boot=200)}


def test_the_same_features_in_another_order_and_at_another_length_are_all_found() -> None:
    a = rows(60)
    found = values(a, 3.0 * a[torch.randperm(60, generator=torch.Generator().manual_seed(1))])
    assert found["stability_hungarian_mean_cosine"] == pytest.approx(1.0, abs=1e-5)
    assert found["stability_hungarian_shared"] == 1.0
    random = found["stability_hungarian_mean_cosine_random"]
    assert random is not None and random < 0.8


def test_random_rows_score_what_the_random_baseline_scores() -> None:
    by_metric = {row["metric"]: row for row in stability([rows(200), rows(200, seed=1)], n_boot=200)}
    real, random = (by_metric[f"stability_hungarian_mean_cosine{e}"] for e in ("", "_random"))
    assert real["value"] == pytest.approx(random["value"], abs=0.02)
    assert real["n"] == 200 and real["unit"] == "features"
    assert real["ci_low"] < real["value"] < real["ci_high"]  # type: ignore[operator]


def test_the_shared_share_counts_the_smaller_dictionary() -> None:
    a = rows(40, d=64)
    found = values(torch.cat([a, rows(100, 64, seed=3)]), torch.cat([a[:30], rows(10, 64, seed=4)]))
    assert found["stability_hungarian_shared"] == pytest.approx(30 / 40)


def test_the_baseline_has_the_mean_and_covariance_of_the_rows() -> None:
    # All rows in a narrow cone: unrelated dictionaries match well there, and the baseline must say so.
    cone = F.normalize(rows(300, 8) * 0.2 + torch.ones(8), dim=1)
    drawn = random_like(cone, 0)
    assert torch.allclose(drawn.norm(dim=1), torch.ones(300))
    assert torch.allclose(drawn.mean(0), cone.mean(0), atol=0.02)
    other = F.normalize(rows(300, 8, seed=5) * 0.2 + torch.ones(8), dim=1)
    found = values(cone, other)
    real, random = (found[f"stability_hungarian_mean_cosine{e}"] for e in ("", "_random"))
    assert real is not None and real > 0.9
    assert real == pytest.approx(random, abs=0.01)


def test_large_dictionaries_are_matched_by_mutual_nearest_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    a = rows(50, 32)
    b = torch.cat([a[torch.randperm(50, generator=torch.Generator().manual_seed(1))], rows(30, 32, seed=2)])
    exact = match(a, b)
    monkeypatch.setattr(module, "LARGEST_ASSIGNMENT", 60)
    monkeypatch.setattr(module, "_BLOCK", 7)
    near = match(a, b)
    assert (exact.method, near.method) == ("hungarian", "mutual_nn")
    assert len(near.cosines) == 50
    assert near.cosines.mean() == pytest.approx(exact.cosines.mean(), abs=1e-5)
    assert values(a, b)["stability_mutual_nn_shared"] == 1.0


def test_three_dictionaries_give_three_pairs_and_their_mean() -> None:
    a = rows(30)
    found = values(a, a, rows(30, seed=9))
    pairs = [found[f"stability_hungarian_mean_cosine [{i}, {j}]"] for i, j in ((0, 1), (0, 2), (1, 2))]
    assert pairs[0] == pytest.approx(1.0, abs=1e-5)
    assert found["stability_hungarian_mean_cosine"] == pytest.approx(sum(p or 0 for p in pairs) / 3)


@pytest.mark.parametrize(
    "decoders", [[rows(3)], [rows(3), rows(3, 8)], [rows(3), rows(3)[:0]], [rows(3), rows(3) * float("nan")]]
)
def test_what_cannot_be_compared_is_refused(decoders: list[Tensor]) -> None:
    with pytest.raises(InputError):
        stability(decoders)
