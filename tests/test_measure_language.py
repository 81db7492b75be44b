"""Surprisal and the likelihood of labels against one forward pass per sequence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from autointerp.config import ModelConfig
from autointerp.corpus.windows import token_ids
from autointerp.measure.language import Likelihoods, label_likelihood, longest_sequence, surprisal
from autointerp.model.load import LoadedModel, load_model
from autointerp.model.token_batches import Halving
from autointerp.resources import data_folder
from autointerp.tasks import LabelGain, NotMeasured, Surprisal, parse

PREFIXES = ["Description: names of harbours.\n", "Various."]
TEXTS = ["The harbour lay quiet", "twice", " two for a penny, she said", "Zoë 東京 🙂"]
STEERING = {"prompts": ["I think"], "kl": 0.5, "n_tokens": 4, "n_random": 1, "temperature": 1.0, "seed": 0}


@pytest.fixture(scope="module", params=["tiny_gpt2", "tiny_llama", "tiny_neox", "demo"])
def loaded(request: pytest.FixtureRequest) -> LoadedModel:
    name = str(data_folder() / "demo_model") if request.param == "demo" else str(request.getfixturevalue(request.param))
    return load_model(ModelConfig(name=name, device="cpu", dtype="float32"))


def by_hand(loaded: LoadedModel, prefix: list[int], ids: list[int]) -> float:
    bos = [] if loaded.tokenizer.bos_token_id is None else [loaded.tokenizer.bos_token_id]
    whole = [*bos, *prefix, *ids]
    with torch.no_grad():
        log_p = loaded.model(input_ids=torch.tensor([whole])).logits[0].double().log_softmax(-1)
    first = len(whole) - len(ids)
    return -sum(float(log_p[first + i - 1, token]) for i, token in enumerate(ids)) / len(ids)


def ids_of(loaded: LoadedModel, text: str) -> list[int]:
    return token_ids([text], loaded.tokenizer)[0]


@pytest.mark.parametrize("batch_tokens", [16, 4096])
def test_surprisal_against_one_pass_per_text(loaded: LoadedModel, batch_tokens: int) -> None:
    asked = [Surprisal(PREFIXES, TEXTS, ""), Surprisal(PREFIXES[::-1], TEXTS[1:2], "")]
    both = surprisal(loaded, asked, batch_tokens, Halving())
    for one, found in zip(asked, both, strict=True):
        assert isinstance(found, Likelihoods)
        for prefix, row in zip(one.prefixes, found.rows, strict=True):
            expected = [by_hand(loaded, ids_of(loaded, prefix), ids_of(loaded, text)) for text in one.texts]
            assert row == pytest.approx(expected, abs=1e-4)
        assert found.n_forwards == len(one.prefixes) * len(one.texts)


def test_a_long_text_loses_its_end_and_is_the_same_after_each_prefix(loaded: LoadedModel) -> None:
    long, limit = "the boats turned slowly " * 200, longest_sequence(loaded)
    found = surprisal(loaded, [Surprisal(PREFIXES, [long], "")], 4096, Halving())[0]
    assert isinstance(found, Likelihoods)
    prefixes = [ids_of(loaded, prefix) for prefix in PREFIXES]
    has_bos = loaded.tokenizer.bos_token_id is not None
    kept = ids_of(loaded, long)[: limit - max(map(len, prefixes)) - has_bos]
    assert len(kept) < len(ids_of(loaded, long))
    assert [row[0] for row in found.rows] == pytest.approx([by_hand(loaded, p, kept) for p in prefixes], abs=1e-4)


def test_what_cannot_be_measured_says_so_and_spoils_no_other(loaded: LoadedModel) -> None:
    asked = [
        Surprisal(["x " * 5000, "y"], TEXTS, ""), Surprisal(PREFIXES, ["a", ""], ""), Surprisal(PREFIXES, ["a"], ""),
    ]  # fmt: skip
    prefix, text, good = surprisal(loaded, asked, 4096, Halving())
    assert isinstance(prefix, NotMeasured) and prefix.status == "bad_task" and "fills" in prefix.error
    assert isinstance(text, NotMeasured) and "texts[1]" in text.error
    assert isinstance(good, Likelihoods)


def test_infinite_losses_are_no_values(tiny_llama: Path) -> None:
    loaded = load_model(ModelConfig(name=str(tiny_llama), device="cpu", dtype="float32"))
    with torch.no_grad():
        loaded.model.lm_head.weight[ids_of(loaded, "twice")[0]] = torch.nan
    found = surprisal(loaded, [Surprisal(PREFIXES, ["twice"], "")], 4096, Halving())[0]
    assert isinstance(found, NotMeasured) and found.status == "nonfinite"


def gain(template: str, label: str) -> LabelGain:
    found = parse("label_gain", gain_payload(template, label))
    assert isinstance(found, LabelGain)
    return found


def test_a_label_is_read_where_it_stands_in_the_template(loaded: LoadedModel) -> None:
    """The white space before it is its own: with these tokenizers that is how the whole template is cut."""
    task = gain("Text: {text}\nThis is about {label}", "old boats")
    arms = [["the harbour", "a {text} in braces"], ["", "bread\n"]]
    found = label_likelihood(loaded, [(task, arms)], 64, Halving())[0]
    assert isinstance(found, Likelihoods)
    label = ids_of(loaded, " old boats")
    for row, arm in zip(found.rows, arms, strict=True):
        for value, text in zip(row, arm, strict=True):
            prefix = ids_of(loaded, f"Text: {text}\nThis is about")
            assert ids_of(loaded, f"Text: {text}\nThis is about old boats") == prefix + label
            assert value == pytest.approx(-by_hand(loaded, prefix, label), abs=1e-4)


def test_a_metaspace_tokenizer_puts_no_space_before_the_label(
    tiny_llama: Path, metaspace_tokenizer: Any, tmp_path: Path
) -> None:
    """Tokenised alone, a text gets a metaspace in front; within the template the label has the one that is there."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(vocab_size=len(metaspace_tokenizer), hidden_size=16, intermediate_size=16, num_hidden_layers=1,
                         num_attention_heads=2, max_position_embeddings=64)  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    metaspace_tokenizer.save_pretrained(tmp_path)
    loaded = load_model(ModelConfig(name=str(tmp_path), device="cpu", dtype="float32"))
    found = label_likelihood(loaded, [(gain("{text} Q {label}", "boats"), [["sky"]])], 64, Halving())[0]
    assert isinstance(found, Likelihoods)
    whole, prefix = ids_of(loaded, "sky Q boats"), ids_of(loaded, "sky Q")
    assert whole[: len(prefix)] == prefix
    assert found.rows[0][0] == pytest.approx(-by_hand(loaded, prefix, whole[len(prefix) :]), abs=1e-5)


def test_where_a_token_reaches_into_the_label_the_two_are_cut_apart(loaded: LoadedModel) -> None:
    found = label_likelihood(loaded, [(gain("{text} the har{label}", "bour"), [["low"]])], 64, Halving())[0]
    assert isinstance(found, Likelihoods)
    expected = -by_hand(loaded, ids_of(loaded, "low the har"), ids_of(loaded, "bour"))
    assert found.rows[0][0] == pytest.approx(expected, abs=1e-4)


def gain_payload(template: str, label: str = "a", **more: Any) -> dict[str, Any]:
    return {"steering": STEERING, "template": template, "label": label, "language_model": ""} | more


@pytest.mark.parametrize(
    ("kind", "payload", "says"),
    [
        ("guess", {}, "guess"),
        ("activations", [], "object"),
        ("activations", {}, "texts is missing"),
        ("activations", {"texts": []}, "at least one"),
        ("activations", {"texts": ["a", 3]}, r"texts\[1\]"),
        ("activations", {"texts": ["\ud800"]}, "surrogate"),
        ("surprisal", {"prefixes": ["a"], "texts": ["b"]}, "language_model"),
        ("similarity", {"query": "a", "texts": ["b"], "model": "text-embedding"}, "local:"),
        ("similarity", {"query": "a", "texts": ["b"], "model": "local:"}, "local:"),
        ("steering", STEERING | {"kl": 0}, "kl"),
        ("steering", STEERING | {"kl": "0.5"}, "kl"),
        ("steering", STEERING | {"kl": float("nan")}, "kl"),
        ("steering", STEERING | {"n_tokens": 0}, "n_tokens"),
        ("steering", STEERING | {"n_random": True}, "n_random"),
        ("steering", STEERING | {"temperature": -1}, "temperature"),
        ("label_gain", gain_payload("{label} {text}"), "end"),
        ("label_gain", gain_payload("{text} {label}."), "end"),
        ("label_gain", gain_payload("{text} {label}", " "), "empty"),
        ("label_gain", gain_payload("{text} {label}", steering={}), "prompts"),
        ("label_gain", gain_payload("{text} {label}", steering=None), "steering"),
    ],
)
def test_a_malformed_payload_is_named(kind: str, payload: Any, says: str) -> None:
    with pytest.raises(NotMeasured, match=says) as error:
        parse(kind, payload)
    assert error.value.status == "bad_task"


def test_memory_that_runs_out_halves_the_batch_and_changes_nothing(loaded: LoadedModel) -> None:
    def refuse(module: Any, args: Any, given: dict[str, Any]) -> None:
        if len(given["input_ids"]) > 2:
            raise torch.OutOfMemoryError("out of memory")

    asked = [Surprisal(PREFIXES, TEXTS, "")]
    whole = surprisal(loaded, asked, 4096, Halving())[0]
    handle, halving = loaded.model.register_forward_pre_hook(refuse, with_kwargs=True), Halving()
    try:
        halved = surprisal(loaded, asked, 4096, halving)[0]
    finally:
        handle.remove()
    assert isinstance(whole, Likelihoods) and isinstance(halved, Likelihoods) and halving.halvings
    for row, again in zip(whole.rows, halved.rows, strict=True):
        assert row == pytest.approx(again, abs=1e-4)
