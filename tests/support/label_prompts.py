"""The program's own questions to an LLM explainer, by name."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from autointerp.config import ExplainConfig
from autointerp.explain.explainers import BUILT_IN
from autointerp.explain.label_question import LabelPrompt
from autointerp.explain.one_call import OneCall
from autointerp.explain.revise import REVISER
from autointerp.explain.rule import WrittenRule
from autointerp.explain.rule_mistakes import Mistakes, ReadText, marked_text
from autointerp.explain.rule_question import RulePrompt
from autointerp.llm.requests import Request
from autointerp.records import Context, FeatureEvidence
from autointerp.rules.language.parsing import clauses_of

ONE_CALL = tuple(one for one in BUILT_IN if isinstance(one, OneCall))
LLM_EXPLAINERS = tuple(one.name for one in ONE_CALL)
SIDES = {one.name: one.side for one in ONE_CALL if one.side is not None}


def label_prompt(name: str, config: ExplainConfig, seed: int) -> LabelPrompt:
    """How the explainer `name`, or `revise`, asks."""
    (one,) = (one for one in (*ONE_CALL, REVISER) if one.name == name)
    return one.prompt(replace(config, seed=seed))


def rule_prompt(config: ExplainConfig) -> RulePrompt:
    """How the explainer `rule` asks."""
    (one,) = (one for one in BUILT_IN if isinstance(one, WrittenRule))
    return one.prompt(config)


def mend_request(prompt: RulePrompt, evidence: FeatureEvidence, label: str) -> Request:
    """The request for a better rule than one that predicts 3 on every token of the feature's first contexts."""
    clauses, _ = clauses_of({"clauses": [{"says": label, "strength": 3, "all": [{"exact": [label[:40]]}]}]})

    def shown(c: Context) -> str:
        text = ReadText(c.tokens, np.array(c.activations), np.full(len(c.tokens), 3.0), c.begins)
        return marked_text(text, len(c.tokens) - 1)

    mistakes = Mistakes([shown(c) for c in evidence.top[:2]], [shown(c) for c in evidence.negatives[:1]])
    return prompt.mend_request(evidence, label, clauses, mistakes)
