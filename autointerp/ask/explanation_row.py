"""The row of a label: its key, the digest of the evidence that it is made from, and all that another label says."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from autointerp.ask.job import Job
from autointerp.config import ExplainConfig
from autointerp.records import Context, Explanation, FeatureEvidence, stable_id

MAX_LABEL = 300
"""Characters of a label, at most."""


def blank_row(
    job: Job, config: ExplainConfig, feature: int, model: str, template_sha256: str, evidence_digest: str
) -> Explanation:
    """An explanation without a text and with status 'gave_up'. The caller fills in the label once it has one."""
    key = (
        job.dictionary_id, feature, job.harvest_id, config.explainer, model, template_sha256, evidence_digest,
        config.seed,
    )  # fmt: skip
    return Explanation(
        explanation_id=stable_id(*key),
        dictionary_id=job.dictionary_id,
        feature=feature,
        harvest_id=job.harvest_id,
        explainer=config.explainer,
        model=model,
        template_sha256=template_sha256,
        evidence_sha256=evidence_digest,
        seed=config.seed,
        text=None,
        status="gave_up",
    )


def with_meanings(row: Explanation, label: Explanation, note: str | None = None) -> Explanation:
    """`row` with all that `label` says."""
    return replace(
        row, text=label.text, status="ok", side=label.side, output_text=label.output_text,
        second_text=label.second_text, share=label.share, second_share=label.second_share, error=note,
    )  # fmt: skip


def evidence_sha256(evidence: FeatureEvidence, contexts: int | None = None) -> str:
    """The digest of what an explainer reads: the first `contexts` of each kind (None: all of them), and all that
    evidence methods have found."""

    def part(of: Sequence[Context]) -> list[Any]:
        return [
            [c.document, c.position, c.tokens, [round(a, 6) if a else a for a in c.activations]] for c in of[:contexts]
        ]

    seen: list[Any] = [
        part(evidence.top), part(evidence.sampled), part(evidence.negatives),
        [[t.token, t.rank, t.sign] for t in (*evidence.promoted, *evidence.suppressed)],
    ]  # fmt: skip
    begins = [[c.begins for c in of[:contexts]] for of in (evidence.top, evidence.sampled, evidence.negatives)]
    findings: dict[str, Any] = {
        "begins": begins if any(map(any, begins)) else [],
        "pruned": [
            [p.status, p.tokens, [round(i, 6) for i in p.importance],
             [[c.position, c.substitute, c.kept] for c in p.counterfactuals]]
            for p in evidence.pruned
        ],
        "changed": [[t.token, t.rank, t.sign] for t in evidence.changed],
        "lens": [[t.token, t.rank, t.sign] for t in evidence.lens],
        "related_words": [w.word for w in evidence.related_words],
        "input_words": [w.word for w in evidence.input_words],
        "is_output": [] if evidence.stands_out is None else [evidence.stands_out],  # as digests have always called it
        "recurring": [[name, list(tokens)] for name, tokens in sorted(evidence.recurring.items())],
    }  # fmt: skip
    # Absent findings leave no trace, so that labels made before there were any keep their digest.
    seen += [[name, value] for name, value in findings.items() if value]
    return hashlib.sha256(json.dumps(seen, ensure_ascii=True).encode()).hexdigest()
