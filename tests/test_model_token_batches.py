"""Batches: every window once, a function of the unit alone, the right tokens count, and memory that runs out."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from autointerp.config import ModelConfig
from autointerp.errors import OutOfMemoryError
from autointerp.model.hooks import Hookpoint, activations_at
from autointerp.model.load import LoadedModel, load_model
from autointerp.model.token_batches import Batch, Halving, activation_batches, eligible, make_batches
from autointerp.records import Window

POINT = Hookpoint("transformer.h.1")


def windows_of(lengths: list[int], seed: int = 0, n_prefix: int = 1) -> list[Window]:
    rng = random.Random(seed)
    return [
        Window(f"d{i}", 0, "explain", [0] * n_prefix + [rng.randrange(600) for _ in range(n - n_prefix)], n_prefix)
        for i, n in enumerate(lengths)
    ]


@pytest.fixture(scope="module")
def loaded(tiny_gpt2: Path) -> LoadedModel:
    return load_model(ModelConfig(name=str(tiny_gpt2), device="cpu"))


@settings(max_examples=80, deadline=None)
@given(
    lengths=st.lists(st.integers(2, 64), max_size=60),
    batch_tokens=st.integers(1, 600),
    pad_id=st.integers(0, 599),
)
def test_every_window_stands_in_one_batch_of_bounded_size(lengths: list[int], batch_tokens: int, pad_id: int) -> None:
    windows = windows_of(lengths)
    batches = make_batches(windows, batch_tokens, pad_id)
    assert sorted(i for batch in batches for i in batch.indices) == list(range(len(windows)))
    longest_first = [len(w.token_ids) for batch in batches for w in batch.windows]
    assert longest_first == sorted(longest_first, reverse=True)
    order = [i for batch in batches for i in batch.indices]
    assert order == sorted(order, key=lambda i: (-lengths[i], i))
    for batch in batches:
        assert batch.ids.dtype == torch.int64 and batch.ids.shape[0] == len(batch.windows)
        assert batch.ids.numel() <= batch_tokens or len(batch.windows) == 1
        assert batch.lengths.min() >= batch.ids.shape[1] / 2 and batch.lengths.max() == batch.ids.shape[1]
        for row, (index, window) in enumerate(zip(batch.indices, batch.windows, strict=True)):
            assert window is windows[index]
            n = int(batch.lengths[row])
            assert batch.ids[row, :n].tolist() == window.token_ids
            assert (batch.ids[row, n:] == pad_id).all()
            assert batch.prefixes[row] == window.n_prefix


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(2, 20), min_size=1, max_size=12), st.sets(st.integers(0, 599), max_size=300))
def test_eligible_tokens_are_those_of_the_text_that_are_not_excluded(lengths: list[int], excluded: set[int]) -> None:
    for batch in make_batches(windows_of(lengths), 100, pad_id=7):
        mask = eligible(batch, excluded)
        assert torch.equal(mask, eligible(batch, torch.tensor(sorted(excluded), dtype=torch.int64)))
        for row, window in enumerate(batch.windows):
            expected = [i >= window.n_prefix and token not in excluded for i, token in enumerate(window.token_ids)]
            padding = batch.ids.shape[1] - len(expected)
            assert mask[row].tolist() == expected + [False] * padding


def test_activations_are_those_of_each_window_alone(loaded: LoadedModel) -> None:
    windows = windows_of([40, 3, 17, 40, 25, 2, 31])
    stream = activation_batches(loaded, POINT, windows, 100)
    seen = []
    for batch, acts in stream:
        assert acts.shape == (*batch.ids.shape, 48) and acts.dtype == loaded.dtype
        for row, index in enumerate(batch.indices):
            alone = activations_at(loaded, POINT, torch.tensor([windows[index].token_ids]))[0]
            torch.testing.assert_close(acts[row, : len(alone)], alone, rtol=1e-5, atol=1e-6)
            seen.append(index)
    assert sorted(seen) == list(range(7)) and stream.halvings == 0


def test_the_same_unit_gives_the_same_bytes(loaded: LoadedModel) -> None:
    windows = windows_of([30, 12, 40, 8, 22] * 4)
    first, second = (list(activation_batches(loaded, POINT, windows, 200)) for _ in range(2))
    for (one, a), (two, b) in zip(first, second, strict=True):
        assert one.indices == two.indices and torch.equal(a, b)


def test_no_windows_no_batches(loaded: LoadedModel) -> None:
    assert make_batches([], 100, 0) == [] and list(activation_batches(loaded, POINT, [], 100)) == []


# --- memory ----------------------------------------------------------------------------------------------------------


class Hungry(torch.nn.Module):
    """Raises as a device would when it is given more than `limit` tokens at once."""

    def __init__(self, block: torch.nn.Module, limit: int, error: Exception) -> None:
        super().__init__()
        self.block, self.limit, self.error = block, limit, error
        self.sizes: list[int] = []

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        size = hidden_states.shape[0] * hidden_states.shape[1]
        self.sizes.append(size)
        if size > self.limit:
            raise self.error
        return self.block(hidden_states, *args, **kwargs)


CUDA = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
MPS = RuntimeError("MPS backend out of memory (MPS allocated: 5 GB)")
CPU = RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes")


@pytest.fixture
def hungry(loaded: LoadedModel) -> Any:
    blocks = loaded.model.transformer.h
    original = blocks[0]

    def install(limit: int, error: Exception) -> Hungry:
        blocks[0] = Hungry(original, limit, error)
        return blocks[0]

    yield install
    blocks[0] = original


@pytest.mark.parametrize("error", [CUDA, MPS, CPU])
def test_a_batch_that_runs_out_of_memory_is_halved(loaded: LoadedModel, hungry: Any, error: Exception) -> None:
    windows = windows_of([32] * 20)
    whole = activation_batches(loaded, POINT, windows, 256)
    expected = {i: acts[row] for batch, acts in whole for row, i in enumerate(batch.indices)}
    module = hungry(64, error)
    stream = activation_batches(loaded, POINT, windows, 256)  # 8 windows a batch, of which 2 fit
    found = {i: acts[row] for batch, acts in stream for row, i in enumerate(batch.indices)}
    assert stream.halvings == 2
    assert sorted(found) == list(range(20))
    for i, acts in found.items():
        torch.testing.assert_close(acts, expected[i], rtol=1e-5, atol=1e-6)
    # Failed twice, then never again: the level stays.
    assert [size for size in module.sizes if size > 64] == [256, 128]
    later = activation_batches(loaded, POINT, windows, 256, halvings=stream.halvings)
    module.sizes.clear()
    assert [len(batch.windows) for batch, _ in later] == [2] * 8 + [1] * 4 and max(module.sizes) == 64


def test_after_four_halvings_it_gives_up(loaded: LoadedModel, hungry: Any) -> None:
    hungry(40, CUDA)
    with pytest.raises(OutOfMemoryError, match=r"4 windows of 20 tokens, after 4 halvings .*batch_tokens") as caught:
        list(activation_batches(loaded, POINT, windows_of([20] * 64), 20 * 64))
    assert caught.value.exit_code == 9


def test_a_single_window_cannot_be_halved(loaded: LoadedModel, hungry: Any) -> None:
    hungry(10, CUDA)
    with pytest.raises(OutOfMemoryError, match="1 windows of 20 tokens"):
        list(activation_batches(loaded, POINT, windows_of([20, 20]), 100))


def test_other_errors_pass_through(loaded: LoadedModel, hungry: Any) -> None:
    hungry(10, RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="mat1"):
        list(activation_batches(loaded, POINT, windows_of([20, 20]), 100))


def test_halving_runs_any_work_over_all_rows_in_order() -> None:
    """What comes after the forward pass (an SAE's encoder) can run inside the same protection."""
    batch = make_batches(windows_of([9] * 7 + [5] * 4), 1000, 0)[0]
    halving = Halving()

    def work(part: Batch) -> int:
        if len(part.windows) > 3:
            raise CUDA
        return len(part.windows)

    parts = list(halving.run(batch, work))
    assert [i for part, _ in parts for i in part.indices] == batch.indices
    assert [n for _, n in parts] == [2, 2, 2, 2, 2, 1] and halving.halvings == 2
    assert parts[-1][0].ids.shape == (1, 5)  # padded no further than it needs
