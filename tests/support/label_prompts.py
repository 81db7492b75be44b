"""The program's own questions to an LLM explainer, by name."""

from __future__ import annotations

from dataclasses import replace

from autointerp.config import ExplainConfig
from autointerp.explain.explainers import BUILT_IN
from autointerp.explain.label_question import LabelPrompt
from autointerp.explain.one_call import OneCall
from autointerp.explain.revise import REVISER

ONE_CALL = tuple(one for one in BUILT_IN if isinstance(one, OneCall))
LLM_EXPLAINERS = tuple(one.name for one in ONE_CALL)
SIDES = {one.name: one.side for one in ONE_CALL if one.side is not None}


def label_prompt(name: str, config: ExplainConfig, seed: int) -> LabelPrompt:
    """How the explainer `name`, or `revise`, asks."""
    (one,) = (one for one in (*ONE_CALL, REVISER) if one.name == name)
    return one.prompt(replace(config, seed=seed))
