"""Labels made by rule, without an LLM, and the row that every label is written to."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from typing import Any

from autointerp.ask.job import Job
from autointerp.config import ExplainConfig
from autointerp.records import Context, Explanation, FeatureEvidence, stable_id
from autointerp.rules import patterns
from autointerp.rules.sentences import lookup_sentence, sentence, side_of

RULE_EXPLAINERS = ("patterns", "token_lookup")
PATTERNS = "patterns"


def rule_sha256(explainer: str) -> str:
    """Stands for the template of an explainer without one: another set of tables is another explainer."""
    settings = [explainer, patterns.RULE_VERSION, patterns.TABLES if explainer == "patterns" else patterns.TOKEN_LOOKUP]
    return hashlib.sha256(repr(settings).encode()).hexdigest()


def rule_explanation(evidence: FeatureEvidence, job: Job, config: ExplainConfig, digest: str) -> Explanation:
    sample = patterns.sample_of(evidence)
    if config.explainer == "patterns":
        rule = patterns.learn(sample)
        text = sentence(evidence, sample, rule)
    else:
        rule = patterns.token_lookup(sample)
        text = lookup_sentence(rule)
    row = blank(job, evidence.feature, config, config.explainer, digest, evidence_sha256(evidence))
    row = dataclasses.replace(row, status="abstained", rule=rule.to_json())
    return row if text is None else dataclasses.replace(row, text=text, status="ok", side=side_of(text))


def blank(job: Job, feature: int, config: ExplainConfig, model: str, digest: str, evidence_digest: str) -> Explanation:
    """The row of a label that is still to be found."""
    key = (
        job.dictionary_id, feature, job.harvest_id, config.explainer, model, digest, evidence_digest, config.seed,
    )  # fmt: skip
    return Explanation(
        explanation_id=stable_id(*key),
        dictionary_id=job.dictionary_id,
        feature=feature,
        harvest_id=job.harvest_id,
        explainer=config.explainer,
        model=model,
        template_sha256=digest,
        evidence_sha256=evidence_digest,
        seed=config.seed,
        text=None,
        status="gave_up",
    )


def evidence_sha256(evidence: FeatureEvidence, contexts: int | None = None) -> str:
    """Of what an explainer reads: the first `contexts` of each kind (None: all), and what else is known."""

    def part(of: Sequence[Context]) -> list[Any]:
        return [[c.document, c.position, c.tokens, [round(a, 6) for a in c.activations]] for c in of[:contexts]]

    seen: list[Any] = [
        part(evidence.top), part(evidence.sampled), part(evidence.negatives),
        [[t.token, t.rank, t.sign] for t in (*evidence.promoted, *evidence.suppressed)],
    ]  # fmt: skip
    findings: dict[str, Any] = {
        "pruned": [
            [p.status, p.tokens, [round(i, 6) for i in p.importance],
             [[c.position, c.substitute, c.kept] for c in p.counterfactuals]]
            for p in evidence.pruned
        ],
        "changed": [[t.token, t.rank, t.sign] for t in evidence.changed],
        "related_words": [w.word for w in evidence.related_words],
        "input_words": [w.word for w in evidence.input_words],
        "is_output": [] if evidence.is_output is None else [evidence.is_output],
    }  # fmt: skip
    # Absent findings leave no trace, so that labels made before there were any keep their digest.
    seen += [[name, value] for name, value in findings.items() if value]
    return hashlib.sha256(json.dumps(seen, ensure_ascii=True).encode()).hexdigest()
