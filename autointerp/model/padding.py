"""Finds out, by running a model, whether the padding beside a text changes the text's activations.

It must not: batches are padded on the right, and a window's activations may not depend on the windows beside it. A
causal model never sees its padding. BERT and its kin (causal-LM classes to transformers, though they look both ways)
need an attention mask. A model that the mask does not help either (its positions are scaled by the longest row, it
hashes at random, it drops what is beyond a batch's capacity) is refused, since no batch of it can be trusted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import cycle, islice
from math import ceil

import torch
from torch import Tensor

from autointerp.config import ModelConfig
from autointerp.errors import InputError
from autointerp.model.hooks import Hookpoint, hooked, model_inputs
from autointerp.model.load import LoadedModel, load_model
from autointerp.model.token_batches import Halving, make_batches
from autointerp.records import Window

TOLERANCE = {torch.float32: 0.01, torch.bfloat16: 0.1, torch.float16: 0.1}
"""The largest accepted change between a window alone and the same window padded, as a share of the distance between
tokens, by the model's dtype. Another batch shape alone changes the last bits, and in a deep model they add up."""
NOTHING = 1e-5
"""A change that is none, in any dtype, where two batches of one shape are compared."""
MASKED_SHARE = 0.25
"""A mask that leaves less than this share of a change has hidden what caused it."""
SHARES = (1.0, 0.8, 0.65, 0.5)
"""The lengths of the windows that are tried, as shares of the longest. A harvest pads no shorter ones."""
FIRST_POSITIONS = 4
"""Positions that some models keep for padding (RoBERTa), at most."""
TEXT = (
    "The harbour lay quiet under a low grey sky, and the boats turned slowly on their ropes as the tide came in. An "
    "old woman sold oranges by the steps; she counted the coins twice and put them into a tin box. In 1969 the first "
    "message went from one machine to another: it was meant to be 'login', and only 'lo' arrived."
)


def load_checked(config: ModelConfig, context_length: int) -> LoadedModel:
    """The model, tried on windows of up to `context_length` tokens in one padded batch and alone. `looks_ahead` is set
    where it needs a mask. Raises what `load_model` raises, and InputError where the mask does not help either, or where
    the model cannot be run on token ids alone."""
    return checked(load_model(config), context_length, config.batch_tokens)


def checked(loaded: LoadedModel, context_length: int, batch_tokens: int) -> LoadedModel:
    """`load_checked` of a model that is loaded already."""
    try:
        return _checked(loaded, _Trial(loaded, context_length, batch_tokens))
    except (RuntimeError, ValueError, TypeError, IndexError, AttributeError, AssertionError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(f"model {loaded.name} cannot read a batch of plain token ids: {reason}") from error


def _checked(loaded: LoadedModel, trial: _Trial) -> LoadedModel:
    change = trial.change(loaded)
    if change <= NOTHING:
        return loaded
    masked = replace(loaded, looks_ahead=True)
    looks_ahead = trial.looks_ahead(loaded, masked)
    if looks_ahead:
        change = trial.change(masked)
    tolerance = TOLERANCE[loaded.dtype]
    if change <= tolerance:
        return masked if looks_ahead else loaded
    raise InputError(
        f"the activations of model {loaded.name} depend on what stands beside a text in its batch"
        f"{', with an attention mask too' if looks_ahead else ''}: by {change:.2g} of the distance between tokens "
        f"(tolerance {tolerance:g}), on windows of up to {trial.longest} tokens. No batch of it can be trusted. If its "
        "positions are scaled for long texts, lower corpus.context_length to what it was trained on; if "
        "model.quantization is on, try without"
    )


def require_next_token(loaded: LoadedModel, what: str) -> None:
    """Raise InputError if the model sees the token that `what` lets it predict."""
    if loaded.looks_ahead:
        raise InputError(
            f"{what} lets model {loaded.name} predict a next token, but this model looks ahead: it reads the tokens on "
            "both sides, so it sees what it should predict. Leave this out, or use a causal model"
        )


class _Trial:
    """Windows of several lengths, and what a model makes of them alone and in one padded batch."""

    def __init__(self, loaded: LoadedModel, context_length: int, batch_tokens: int) -> None:
        self.windows = _windows(loaded, context_length)
        self.longest = len(self.windows[0].token_ids)
        # Padded together whatever batch_tokens says, as long as the memory allows it.
        self._room = max(batch_tokens, len(self.windows) * self.longest)
        self._alone = [self._states(loaded, [window], loaded.pad_id)[0] for window in self.windows[1:]]

    def change(self, loaded: LoadedModel) -> float:
        """How far the padded windows' states are from those of the windows alone; see `_change`."""
        return _change(self._alone, self._states(loaded, self.windows, loaded.pad_id)[1:])

    def looks_ahead(self, plain: LoadedModel, masked: LoadedModel) -> bool:
        """Whether the padding's ids change the states of the text before them, and a mask undoes that. The batches
        compared have one shape, so the rounding of another kernel is no part of it."""
        seen = self._change_by_filler(plain)
        if seen <= NOTHING:
            return False
        try:
            return self._change_by_filler(masked) < MASKED_SHARE * seen
        except TypeError:  # its forward pass takes no attention_mask
            return False

    def _change_by_filler(self, loaded: LoadedModel) -> float:
        other = next((i for i in self.windows[0].token_ids if i != loaded.pad_id), loaded.pad_id + 1)
        padded, filled = (self._states(loaded, self.windows, i) for i in (loaded.pad_id, other))
        return _change(padded[1:], filled[1:])

    def _states(self, loaded: LoadedModel, windows: Sequence[Window], pad_id: int) -> list[Tensor]:
        """What each window's tokens have come to before the model's last step, float32 [T, d] on CPU each."""
        halving, found = Halving(), dict[int, Tensor]()
        for batch in make_batches(windows, self._room, pad_id):
            for part, states in halving.run(
                batch.to(loaded.device), lambda part: _last_states(loaded, part.ids, part.lengths)
            ):
                for row, index in enumerate(part.indices):
                    found[index] = states[row, : int(part.lengths[row])].float().cpu()
        return [found[i] for i in range(len(windows))]


def _windows(loaded: LoadedModel, context_length: int) -> list[Window]:
    positions = getattr(loaded.model.config.get_text_config(), "max_position_embeddings", None)
    longest = context_length
    if isinstance(positions, int) and positions > 0:
        longest = max(2, min(longest, positions - FIRST_POSITIONS))
    ids = loaded.tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    ids = [i for i in ids if i < len(loaded.model.get_input_embeddings().weight)] or [0]  # type: ignore[arg-type]
    # Each begins elsewhere in the text, so that no two are alike.
    return [
        Window("", 0, "explain", list(islice(cycle(ids), at, at + ceil(share * longest))))
        for at, share in enumerate(SHARES)
    ]


def _last_states(loaded: LoadedModel, ids: Tensor, lengths: Tensor) -> Tensor:
    """What the unembedding reads, [B, T, d]; the logits where there is none."""
    model, captured = loaded.model, list[Tensor]()
    head = model.get_output_embeddings()
    path = next((name for name, module in model.named_modules() if module is head), None)
    with torch.inference_mode():
        inputs = model_inputs(loaded, ids, lengths)
        if head is None or path is None:
            return torch.as_tensor(model(**inputs).logits)
        with hooked(model, Hookpoint(path, "in"), capture=captured, stop=True):
            output = model(**inputs)
    return captured[0] if captured else torch.as_tensor(output.logits)


def _change(one: Sequence[Tensor], other: Sequence[Tensor]) -> float:
    """How far the states [T, d] of the padded windows are from those of the same windows alone, or padded with other
    ids, as a share of the median distance of a token's state from the mean.

    It is the largest of the medians over each window's tokens, and of the median over the windows' last tokens, which
    stand next to the padding. Medians, since a router that sends one token elsewhere because of a last bit is no leak.
    A token whose state is finite in neither is not compared.
    """
    states = torch.cat(list(one))
    states = states[states.isfinite().all(1)]
    if not len(states):
        return 0.0
    scale = float((states - states.mean(0)).norm(dim=1).median()) or 1.0
    errors = [_finite((b - a).norm(dim=1) / scale, a, b) for a, b in zip(one, other, strict=True)]
    last = torch.cat([error[-1:] for error in errors])
    medians = torch.stack([last.nanmedian(), *(error.nanmedian() for error in errors)])
    return float(medians.nan_to_num(0.0, posinf=torch.inf).max())


def _finite(error: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """`error` [T], with NaN where neither of the states [T, d] is finite, and infinity where one alone is not."""
    good_a, good_b = a.isfinite().all(1), b.isfinite().all(1)
    error = torch.where(good_a & good_b, error, torch.inf)
    return torch.where(good_a | good_b, error, torch.nan)
