from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from interpret_fixtures import evidence

from autointerp.config import ExplainConfig
from autointerp.interpret.explainers import MAX_LABEL, Label, LlmExplainer, evidence_sha256, parse_label


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
    ],
)
def test_parse_label(reply: str, label: Label) -> None:
    assert parse_label(reply) == label


def test_a_long_label_is_cut_at_a_word() -> None:
    label = parse_label("LABEL: " + "word " * 200)
    assert label.text is not None
    assert len(label.text) <= MAX_LABEL and label.text.endswith("word…")


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=400), st.booleans())
def test_any_reply_is_a_label_or_a_status(reply: str, marked: bool) -> None:
    label = parse_label(f"LABEL:{reply}" if marked else reply)
    assert (label.status == "ok") == (label.text is not None)
    if label.text is not None:
        assert 0 < len(label.text) <= MAX_LABEL
        assert "\n" not in label.text and label.text == label.text.strip()


def test_a_seed_is_another_request() -> None:
    first, second = (
        LlmExplainer.named("contexts", ExplainConfig(model="m"), seed).request(evidence(0), 5) for seed in (0, 1)
    )
    assert first.sha256 != second.sha256
    assert "seed" not in first.body and second.body["seed"] == 1


def test_fields_of_the_endpoint() -> None:
    config = ExplainConfig(model="m", temperature=None, max_tokens=77, max_tokens_field="max_completion_tokens")
    body = LlmExplainer.named("combined", config, 0).request(evidence(0), 5).body
    assert body["max_completion_tokens"] == 77
    assert "temperature" not in body and "max_tokens" not in body


def test_the_evidence_hash_is_of_what_was_shown() -> None:
    few, all_ = evidence_sha256(evidence(0), 2), evidence_sha256(evidence(0))
    assert few != all_
    changed = evidence(0)
    changed.top[2].activations[0] += 1.0
    assert evidence_sha256(changed, 2) == few
    assert evidence_sha256(changed) != all_
