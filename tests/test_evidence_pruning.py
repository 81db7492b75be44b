"""Pruning against a plain loop over every length, token and substitute, one forward pass at a time."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from support.small_models import VOCAB, byte_fallback_tokenizer, save_model

from autointerp.config import EvidenceConfig, ModelConfig
from autointerp.corpus.token_text import TokenText
from autointerp.errors import InputError
from autointerp.evidence.pruned_context_search import mask_id, prune
from autointerp.model.hooks import Hookpoint, activations_at
from autointerp.model.load import LoadedModel, load_model
from autointerp.records import Counterfactual
from autointerp.sae.sae import Sae
from autointerp.store.contexts import StoredContext

POINTS = {"gpt2": "transformer.h.1", "llama": "model.layers.1"}
D_SAE = 24
EXCLUDED = frozenset({0, 17})
Mode = Literal["delete", "mask"]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, LoadedModel]:
    """Random weights so large that what stands before a token matters to it."""
    from transformers import GPT2Config, LlamaConfig

    configs: dict[str, Any] = {
        "gpt2": GPT2Config(vocab_size=VOCAB, n_positions=64, n_embd=32, n_layer=3, n_head=4, initializer_range=0.4,
                           bos_token_id=0, eos_token_id=0),
        "llama": LlamaConfig(vocab_size=VOCAB, hidden_size=32, intermediate_size=48, num_hidden_layers=3,
                             num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64,
                             initializer_range=0.4, tie_word_embeddings=False, bos_token_id=0, eos_token_id=0,
                             pad_token_id=None),
    }  # fmt: skip
    folders: dict[str, Path] = {name: tmp_path_factory.mktemp(name) for name in configs}
    return {
        name: load_model(ModelConfig(name=str(save_model(folder, configs[name])), device="cpu", dtype="float32"))
        for name, folder in folders.items()
    }


def random_sae(loaded: LoadedModel, k: int | None = None) -> Sae:
    generator = torch.Generator().manual_seed(2)
    W_dec = torch.nn.functional.normalize(torch.randn(D_SAE, 32, generator=generator), dim=1)
    threshold = None if k else torch.zeros(D_SAE)
    return Sae(W_dec.T.contiguous(), torch.full((D_SAE,), -0.3), W_dec, torch.zeros(32), k=k, threshold=threshold)


def some_contexts(loaded: LoadedModel, sae: Sae, point: Hookpoint, n: int, n_prefix: int) -> list[StoredContext]:
    """Stretches of random windows, each with the activations of one feature that fires there; excluded ids within."""
    generator = torch.Generator().manual_seed(n_prefix)
    contexts: list[StoredContext] = []
    while len(contexts) < n:
        length = int(torch.randint(5, 24, (1,), generator=generator))
        ids = torch.randint(1, VOCAB, (length,), generator=generator)
        ids[torch.rand(length, generator=generator) < 0.1] = 17
        window = [0] * n_prefix + ids.tolist()
        feature = int(torch.randint(0, D_SAE, (1,), generator=generator))
        column = sae.encode(activations_at(loaded, point, torch.tensor([window])))[0, :, feature]
        column[torch.tensor([i in EXCLUDED for i in window])] = 0
        offset = n_prefix + int(torch.randint(0, 3, (1,), generator=generator))
        positions = [p - offset for p in range(offset, len(window)) if column[p] > 0]
        if positions:
            values = [float(column[p + offset]) for p in positions]
            contexts.append(StoredContext(len(contexts), feature, len(contexts), window, n_prefix, offset,
                                          len(window) - offset, positions, values))  # fmt: skip
    return contexts


class Plain:
    """The same, one sequence at a time."""

    def __init__(self, loaded: LoadedModel, sae: Sae, point: Hookpoint, config: EvidenceConfig, mask: int) -> None:
        self.loaded, self.sae, self.point, self.config, self.mask = loaded, sae, point, config, mask

    def activation(self, ids: list[int], feature: int) -> float:
        x = activations_at(self.loaded, self.point, torch.tensor([ids]))
        return float(self.sae.encode(x)[0, -1, feature])

    def prune(self, context: StoredContext, text: TokenText) -> dict[str, Any]:
        full = max(context.values)
        peak = context.offset + context.positions[context.values.index(full)]
        window, prefix = context.token_ids[: peak + 1], context.token_ids[: context.n_prefix]
        starts = [p for p in range(context.n_prefix, peak + 1) if window[p] not in EXCLUDED][::-1]
        for start in starts[: self.config.prune_longest]:
            masks = [self.mask] * (start - len(prefix)) if self.config.prune_mode == "mask" else []
            ids = [*prefix, *masks, *window[start:]]
            activation = self.activation(ids, context.feature)
            if activation >= self.config.prune_keep * full:
                break
        is_kept = activation >= self.config.prune_keep * full
        places = [p for p in range(start, peak + 1) if window[p] not in EXCLUDED]
        first = len(ids) - len(window)  # a place in the window, plus this, is one in what the model reads

        def changed(place: int, token: int) -> float:
            new = list(ids)
            new[place + first] = token
            return self.activation(new, context.feature)

        importance = [1 - changed(p, self.mask) / activation if activation > 0 else 0.0 for p in places[:-1]] + [1.0]
        best = sorted(range(len(places)), key=lambda i: (i != len(places) - 1, -importance[i]))[:3]
        counterfactuals = []
        for i in sorted(best):
            if not is_kept or importance[i] < 0.5 or places[i] == 0:
                continue
            with torch.no_grad():
                logits = self.loaded.model(input_ids=torch.tensor([window[: places[i]]])).logits[0, -1]
            old, chosen = text.pieces[window[places[i]]], []
            for token in logits.argsort(descending=True).tolist():
                piece = text.pieces[token]
                is_variant = old is not None and piece is not None and piece.strip().lower() == old.strip().lower()
                if piece and not is_variant and token not in (*EXCLUDED, window[places[i]]):
                    chosen.append(token)
            for token in chosen[: self.config.substitutes]:
                value = changed(places[i], token)
                counterfactuals.append(
                    Counterfactual(i, text.tokens([token])[0], value, value >= self.config.prune_keep * activation)
                )
        return {
            "status": "ok" if is_kept else "not_kept",
            "tokens": [t for p, t in zip(range(start, peak + 1), text.tokens(window[start:])) if p in places],
            "importance": importance,
            "activation": activation,
            "full_activation": full,
            "counterfactuals": counterfactuals,
        }


@pytest.mark.parametrize("family", POINTS)
@pytest.mark.parametrize("mode", ["delete", "mask"])
@pytest.mark.parametrize(("n_prefix", "k", "keep", "longest"), [(1, None, 0.8, 7), (0, 6, 0.5, 32)])
def test_against_every_length_tried_alone(
    models: dict[str, LoadedModel], family: str, mode: Mode, n_prefix: int, k: int | None, keep: float, longest: int
) -> None:
    loaded, point = models[family], Hookpoint.parse(POINTS[family])
    sae, text = random_sae(loaded, k), TokenText(loaded.tokenizer)
    config = EvidenceConfig(prune_mode=mode, prune_keep=keep, prune_longest=longest, substitutes=2)
    contexts = some_contexts(loaded, sae, point, 24, n_prefix)
    found = prune(loaded, sae, point, contexts, config, text, EXCLUDED, batch_tokens=60)
    plain = Plain(loaded, sae, point, config, mask_id(loaded, [], EXCLUDED))
    lengths, statuses, kept = set(), set(), set()
    for context, pruned in zip(contexts, found, strict=True):
        own, expected = pruned.context, plain.prune(context, text)
        assert (own.context_id, own.feature, own.mode) == (context.context_id, context.feature, mode)
        assert (own.status, own.tokens) == (expected["status"], expected["tokens"])
        assert own.full_activation == expected["full_activation"]
        assert own.activation == pytest.approx(expected["activation"], abs=1e-4)
        assert own.importance == pytest.approx(expected["importance"], rel=1e-3, abs=1e-3)
        assert [dataclasses.replace(c, activation=0) for c in own.counterfactuals] == [
            dataclasses.replace(c, activation=0) for c in expected["counterfactuals"]
        ]
        assert [c.activation for c in own.counterfactuals] == pytest.approx(
            [c.activation for c in expected["counterfactuals"]], abs=1e-4
        )
        assert pruned.n_forwards >= 1 and pruned.n_tokens >= pruned.n_forwards
        lengths.add(len(own.tokens))
        statuses.add(own.status)
        kept |= {c.kept for c in own.counterfactuals}
    # Or the comparison says nothing.
    assert len(lengths) >= 4 and kept == {True, False}
    assert statuses == ({"ok", "not_kept"} if longest == 7 else {"ok"})


def test_a_feature_of_one_token_needs_that_token_alone(tiny_gpt2: Path) -> None:
    """On the embeddings nothing else matters; the sequence is read once for all contexts and features."""
    loaded = load_model(ModelConfig(name=str(tiny_gpt2), device="cpu", dtype="float32"))
    text, point = TokenText(loaded.tokenizer), Hookpoint.parse("transformer.wte")
    row = loaded.model.get_input_embeddings().weight.detach()[300]
    W_enc = torch.stack([row / row.square().sum()] * 2, 1)
    sae = Sae(W_enc, torch.full((2,), -0.9), W_enc.T.contiguous(), torch.zeros(48), threshold=torch.zeros(2))
    windows = [[0, 5, 6, 300, 8], [0, 300], [0, 9, 9, 9, 300]]
    contexts = [
        StoredContext(i, i % 2, i, ids, 1, 1, len(ids) - 1, [ids.index(300) - 1], [0.1])
        for i, ids in enumerate(windows)
    ]
    found = prune(loaded, sae, point, contexts, EvidenceConfig(substitutes=0), text, EXCLUDED)
    assert [p.context.tokens for p in found] == [text.tokens([300])] * 3
    assert [p.context.importance for p in found] == [[1.0]] * 3
    assert [p.context.activation for p in found] == pytest.approx([0.1] * 3, abs=1e-5)
    # Lengths 1..3 of the first; none of the second's is new; [0, 9, 300], [0, 9, 9, 300] and the third's own.
    assert [(p.n_forwards, p.n_tokens) for p in found] == [(3, 2 + 3 + 4), (0, 0), (3, 3 + 4 + 5)]
    with_substitutes = prune(loaded, sae, point, contexts, EvidenceConfig(), text, EXCLUDED)
    tried = [c for p in with_substitutes for c in p.context.counterfactuals]
    assert len(tried) == 9 and not any(c.kept for c in tried)
    assert prune(loaded, sae, point, [], EvidenceConfig(), text, EXCLUDED) == []
    silent = dataclasses.replace(contexts[0], positions=[], values=[])
    with pytest.raises(InputError, match="no activation"):
        prune(loaded, sae, point, [silent], EvidenceConfig(), text, EXCLUDED)


def test_a_peak_that_nothing_keeps(tiny_gpt2: Path) -> None:
    """The stored activation is out of reach, and the feature silent: nothing to lose, and no division by zero."""
    loaded = load_model(ModelConfig(name=str(tiny_gpt2), device="cpu", dtype="float32"))
    sae = Sae(torch.zeros(48, 1), torch.full((1,), -1.0), torch.zeros(1, 48), torch.zeros(48), threshold=torch.zeros(1))
    context = StoredContext(7, 0, 0, [0, 5, 6, 7, 8], 1, 2, 3, [1], [4.0])
    (found,) = prune(loaded, sae, Hookpoint.parse("transformer.h.0"), [context], EvidenceConfig(prune_longest=2),
                     TokenText(loaded.tokenizer), EXCLUDED)  # fmt: skip
    own = found.context
    assert (own.status, own.importance, own.counterfactuals) == ("not_kept", [0.0, 1.0], [])
    assert own.tokens == TokenText(loaded.tokenizer).tokens([6, 7])
    assert (own.activation, own.full_activation, found.n_forwards) == (0.0, 4.0, 2)


def test_the_neutral_token(tiny_gpt2: Path) -> None:
    loaded = load_model(ModelConfig(name=str(tiny_gpt2), device="cpu", dtype="float32"))
    windows = [[0, 5, 17, 17, 17], [9, 5, 9]]
    assert mask_id(loaded, windows, EXCLUDED) == 0, "its padding"
    other = dataclasses.replace(loaded, tokenizer=byte_fallback_tokenizer())
    other.tokenizer.add_special_tokens({"pad_token": "</s>"})
    assert mask_id(other, windows, EXCLUDED) == other.tokenizer.unk_token_id == 0
    other.tokenizer.unk_token = None
    assert mask_id(other, windows, EXCLUDED) == 2, "its padding again"
    other.tokenizer.pad_token = other.tokenizer.eos_token = None
    assert mask_id(other, windows, EXCLUDED) == 5, "the commonest; the lower of two"
    other.tokenizer.add_special_tokens({"mask_token": "<mask>", "eos_token": "</s>"})
    assert other.tokenizer.mask_token_id is not None
    small = dataclasses.replace(other)
    small.model.resize_token_embeddings(int(other.tokenizer.mask_token_id))
    assert mask_id(small, windows, EXCLUDED) == 2, "a token that the model has no embedding for is passed over"
