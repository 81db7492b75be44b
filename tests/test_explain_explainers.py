from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from support.known_words import evidence, rich_evidence
from support.label_prompts import LLM_EXPLAINERS, SIDES, label_prompt

from autointerp.ask.explanation_row import MAX_LABEL, evidence_sha256
from autointerp.config import ExplainConfig
from autointerp.explain.evidence_sections import hard_negatives
from autointerp.explain.label_replies import Label, parse_label


@pytest.mark.parametrize(
    ("reply", "label"),
    [
        ("LABEL: months of the year", Label("ok", "months of the year")),
        ("thinking\n\nLABEL: a\nLABEL:  the word `self`.  ", Label("ok", "the word `self`.")),
        ("The text says LABEL: hacked\nLABEL: real", Label("ok", "real")),
        ("**LABEL:** numbers after `=`", Label("ok", "numbers after `=`")),
        ("> Label: quoted", Label("ok", "quoted")),
        ("<think>LABEL: first thought</think>\nLABEL: second", Label("ok", "second")),
        ('LABEL: "in quotes"', Label("ok", "in quotes")),
        ("LABEL: `self` and `cls`", Label("ok", "`self` and `cls`")),
        ("LABEL: <opening tags>", Label("ok", "opening tags")),
        ("LABEL: see https://evil.example/x?y=1 for months", Label("ok", "see for months")),
        ("LABEL: a\u202eb\x00c\x1b[0m", Label("ok", "abc[0m")),
        ("LABEL: no pattern", Label("abstained")),
        ("LABEL: No clear pattern.", Label("abstained")),
        ("LABEL: N/A", Label("abstained")),
        ("LABEL: none of the above words", Label("ok", "none of the above words")),
        ("LABEL:", Label("unparseable")),
        ("months of the year", Label("unparseable")),
        ("", Label("unparseable")),
        ("I cannot help with that.", Label("unparseable")),
        ("SIDE: output\nLABEL: names", Label("ok", "names", "output")),
        ("**Side:** `Both`.\n**Label:** names", Label("ok", "names", "both")),
        ("SIDE: left\nLABEL: names", Label("ok", "names")),
        ("SIDE: input\nLABEL: no pattern", Label("abstained")),
        ('{"label": "months"}', Label("ok", "months")),
        ('{"side": "both", "label": "a\\nb \\u0007c"}', Label("ok", "a b c", "both")),
        ('```json\n{\n  "label": "months",\n  "side": "input"\n}\n```', Label("ok", "months", "input")),
        ('{"label": "first"} no, rather {"label": "second"}.', Label("ok", "second")),
        ('{"answer": {"label": "inside"}}', Label("ok", "inside")),
        ('{"label": "a {\\"label\\": \\"b\\"}"}', Label("ok", 'a {"label": "b"}')),
        ('{"label": null, "side": "input"}', Label("abstained")),
        ('{"label": "No pattern."}', Label("abstained")),
        ('{"label": ""}', Label("unparseable")),
        ('{"label": 7}', Label("unparseable")),
        ('{"label": "cut off', Label("unparseable")),
        ('The text says {"label": "hacked"}\nLABEL: real', Label("ok", "real")),
        ('LABEL: a draft\n{"label": "final", "side": "sideways"}', Label("ok", "final")),
        ('{"side": ' * 3000 + '{"label": "deep"}', Label("ok", "deep")),
    ],
)
def test_parse_label(reply: str, label: Label) -> None:
    assert parse_label(reply) == label


def test_of_a_long_reply_only_the_end_is_searched_for_json(monkeypatch: pytest.MonkeyPatch) -> None:
    """A decoder's error counts the lines of all that it was given: 10 s for 3.9 MB of braces."""
    lengths: list[int] = []

    class Noting(json.JSONDecoder):
        def raw_decode(self, text: str, idx: int = 0) -> tuple[Any, int]:
            lengths.append(len(text))
            return super().raw_decode(text, idx)

    monkeypatch.setattr(json, "JSONDecoder", Noting)
    assert parse_label('{ "' * 20_000) == Label("unparseable")
    assert len(lengths) > 1000 and max(lengths) <= 20_000
    object_, line, long = '{"label": "in JSON"}', "\nLABEL: in a line\n", "x" * 30_000
    assert parse_label(long + line + object_) == Label("ok", "in JSON")
    assert parse_label(long + object_ + line) == Label("ok", "in a line")
    assert parse_label(object_ + line + long) == Label("ok", "in a line")
    assert parse_label(object_ + long) == Label("unparseable")


def test_a_long_label_is_cut_at_a_word() -> None:
    label = parse_label("LABEL: " + "word " * 200)
    assert label.text is not None
    assert len(label.text) <= MAX_LABEL and label.text.endswith("word…")


@pytest.mark.parametrize("name", LLM_EXPLAINERS)
def test_every_label_says_its_side(name: str) -> None:
    explainer = label_prompt(name, ExplainConfig(model="m"), 0)
    said = explainer.read("SIDE: both\nLABEL: names")
    assert said.side == SIDES.get(name, "both")
    assert explainer.read("LABEL: names").side == (None if name == "combined" else SIDES[name])
    assert explainer.read("SIDE: both\nLABEL: no pattern").side is None
    in_json = replace(explainer, is_json=True)
    asked = in_json.request(rich_evidence(0), 3).body["response_format"]["json_schema"]["schema"]
    meanings = ["input", "share", "second", "second_share", "output"]
    assert asked["required"] == (meanings if name == "combined" else ["label"])
    assert "response_format" not in explainer.request(rich_evidence(0), 3).body


@pytest.mark.parametrize(
    ("name", "empty"),
    [
        ("contexts", ("top",)), ("combined", ("top",)), ("contrastive", ("top",)), ("contrastive", ("negatives",)),
        ("pruned", ("pruned",)), ("vocab_projection", ("promoted", "suppressed")), ("token_change", ("changed",)),
        ("jacobian_lens", ("lens",)),
        ("mutual_information", ("related_words", "input_words")),
    ],
)  # fmt: skip
def test_missing_evidence_is_noticed(name: str, empty: tuple[str, ...]) -> None:
    explainer = label_prompt(name, ExplainConfig(model="m"), 0)
    assert explainer.missing(rich_evidence(0)) is None
    assert explainer.missing(replace(rich_evidence(0), **{field: [] for field in empty}))
    if len(empty) > 1:
        assert explainer.missing(replace(rich_evidence(0), **{empty[0]: []})) is None


def test_only_pruned_contexts_that_keep_the_peak_are_evidence() -> None:
    explainer = label_prompt("pruned", ExplainConfig(model="m"), 0)
    assert "never shown" not in explainer.request(rich_evidence(0), 5).body["messages"][1]["content"]
    only = [p for p in rich_evidence(0).pruned if p.status == "not_kept"]
    assert explainer.missing(replace(rich_evidence(0), pruned=only))


def test_hard_negatives_come_first() -> None:
    tiers = [c.tier for c in hard_negatives(evidence(0).negatives, 6)]
    assert tiers == ["neighbour", "same_token", "neighbour", "same_token", "same_token", "random"]
    config = ExplainConfig(model="m", negatives=2)
    shown = label_prompt("contrastive", config, 0).request(evidence(0), 3).body["messages"][1]["content"]
    silent = shown.splitlines()[shown.splitlines().index("silent:") + 1 : -1]
    assert [json.loads(line) for line in silent] == [c.text for c in hard_negatives(evidence(0).negatives, 2)]


def test_a_seed_is_another_request() -> None:
    first, second = (
        label_prompt("contexts", ExplainConfig(model="m"), seed).request(evidence(0), 5) for seed in (0, 1)
    )
    assert first.sha256 != second.sha256
    assert "seed" not in first.body and second.body["seed"] == 1


def test_fields_of_the_endpoint() -> None:
    config = ExplainConfig(model="m", temperature=None, max_tokens=77, max_tokens_field="max_completion_tokens")
    body = label_prompt("combined", config, 0).request(evidence(0), 5).body
    assert body["max_completion_tokens"] == 77
    assert "temperature" not in body and "max_tokens" not in body


def test_the_evidence_hash_is_of_what_was_shown() -> None:
    few, all_ = evidence_sha256(evidence(0), 2), evidence_sha256(evidence(0))
    assert few != all_
    changed = evidence(0)
    changed.top[2].activations[0] += 1.0
    assert evidence_sha256(changed, 2) == few
    assert evidence_sha256(changed) != all_
    for field in ("pruned", "lens", "changed", "related_words", "input_words"):
        assert evidence_sha256(replace(rich_evidence(0), **{field: []})) != evidence_sha256(rich_evidence(0)), field
    assert evidence_sha256(replace(rich_evidence(0), stands_out=False)) != evidence_sha256(rich_evidence(0))
