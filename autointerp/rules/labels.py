"""Labels made by rule, without an LLM: `patterns` and the baseline `token_lookup`; and which labels carry a rule."""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass

from autointerp.ask.explanation_row import blank_row, evidence_sha256
from autointerp.ask.job import Job
from autointerp.config import ExplainConfig
from autointerp.records import Explanation, FeatureEvidence, Side
from autointerp.rules import patterns
from autointerp.rules.learning import learn, token_lookup
from autointerp.rules.reference import NO_REFERENCE, Reference
from autointerp.rules.samples import sample_of
from autointerp.rules.sentences import leads_to, lookup_sentence, sentence

PATTERNS = "patterns"
TOKEN_LOOKUP = "token_lookup"
RULE = "rule"
"""Its rules are proposed by an LLM (see explain/rule.py)."""
COMPILED = "compiled:"
"""Before the name of an explainer: its labels, each written as a rule (see explain/compiled.py)."""
_LEARNING = 2
"""Raised when learning.py makes another rule of the same evidence, so that labels are made again."""
_WORDING = 5
"""The same for sentences.py, when it says the same rule in other words."""


def carries_rules(explainer: str) -> bool:
    """Whether every label of the explainer carries a rule (see patterns.Rule), so that it is scored without an LLM."""
    return explainer in (PATTERNS, TOKEN_LOOKUP, RULE) or explainer.startswith(COMPILED)


@dataclass(frozen=True)
class RuleLabel:
    """What a rule says of one feature."""

    text: str | None
    """The label; None if the rule finds nothing to say."""
    side: Side | None = None
    """What the text describes; needed where there is one."""
    rule: str | None = None
    """The rule as JSON (see patterns.Rule.to_json), where it is one that predicts activations."""
    output: str | None = None
    """What the feature makes the model say next, where the evidence shows it; judges of where it fires are not told."""


def by_patterns(evidence: FeatureEvidence, reference: Reference = NO_REFERENCE) -> RuleLabel:
    """The sentence of the rule that best predicts where the feature fires."""
    sample = sample_of(evidence, reference)
    rule = learn(sample, near=reference.near)
    text = sentence(sample, rule, reference)
    return _rule_label(text, rule, None if text is None else leads_to(evidence.promoted, sample))


def by_token_lookup(evidence: FeatureEvidence) -> RuleLabel:
    """The tokens with the largest mean activation (the baseline of Bills et al. 2023)."""
    rule = token_lookup(sample_of(evidence))
    return _rule_label(lookup_sentence(rule), rule)


def _rule_label(text: str | None, rule: patterns.Rule, output: str | None = None) -> RuleLabel:
    return RuleLabel(text, None if text is None else "input", rule.to_json(), output)


def patterns_sha256(reference: Reference) -> str:
    """Stands for the template of `patterns`: with other tables, or with near words where there were none, it is another
    explainer."""
    return settings_sha256(PATTERNS, *PATTERNS_SETTINGS, "near words" if reference.has_near_words else "no near words")


def token_lookup_sha256() -> str:
    return settings_sha256(TOKEN_LOOKUP, *LOOKUP_SETTINGS)


PATTERNS_SETTINGS: tuple[object, ...] = (patterns.RULE_VERSION, patterns.TABLES, _LEARNING, _WORDING)
LOOKUP_SETTINGS: tuple[object, ...] = (patterns.RULE_VERSION, patterns.TOKEN_LOOKUP)
"""What the labels depend on besides the evidence."""


def settings_sha256(explainer: str, *settings: object) -> str:
    """The digest of an explainer without a template, by its name and its settings."""
    return hashlib.sha256(repr([explainer, *settings]).encode()).hexdigest()


def rule_row(label: RuleLabel, evidence: FeatureEvidence, job: Job, config: ExplainConfig, digest: str) -> Explanation:
    """The row of a label made by rule; `digest` stands for the template."""
    row = blank_row(job, config, evidence.feature, config.explainer, digest, evidence_sha256(evidence))
    if label.text is None:
        return dataclasses.replace(row, status="abstained", rule=label.rule)
    return dataclasses.replace(
        row, text=label.text, status="ok", side=label.side, rule=label.rule, output_text=label.output
    )
