"""The explainers there are: the program's own, and those of other installed packages.

Without an LLM:

    patterns            the sentence of a rule learned from the contexts (see rules/patterns.py)
    token_lookup        the tokens with the largest mean activation, the baseline of Bills et al. (2023)

One question to an LLM about each feature, by the template prompts/explain/NAME.md:

    contexts            the strongest contexts with their activations (MaxAct; Bills et al. 2023)
    pruned              the least text that keeps each peak, and what each token is worth (Foote et al. 2023)
    vocab_projection    next tokens that its decoder row promotes and suppresses
    jacobian_lens       next tokens that it promotes and suppresses by way of the blocks after it (Gurnee et al. 2026)
    mutual_information  words tied to the feature, by its direction and by where it fires (Wu et al. 2025)
    token_change        tokens that the model says more and less when it is clamped (Gur-Arieh et al. 2025)
    contrastive         the strongest contexts, against silent contexts that look alike (hard negatives)
    combined            all of that but jacobian_lens (of the silent contexts those with the token of a peak), contexts
                        drawn at random by decile, and what came after the peaks (the "raw ensemble" of Gur-Arieh et
                        al. 2025); it tells the input side and the output side apart, and a second meaning

One question, and up to `rounds` more about the mistakes of the answer (rule.py):

    rule                all that `combined` is shown; it answers with a rule that can be run on text

Made of other labels: concat, best_of_n, revise (each in the file of its name).

Rules made of the words of other labels: compiled:NAME (compiled.py), for any NAME that has labels in the store.
"""

from __future__ import annotations

from autointerp.explain.best_of_n import BestOfN
from autointerp.explain.compiled import Compiled
from autointerp.explain.concat import Concat
from autointerp.explain.evidence_sections import (
    AFTER_PEAKS,
    CUT_TEXTS,
    DRAWN,
    EXCERPTS,
    INPUT_WORDS,
    LENS_PROMOTED,
    LENS_SUPPRESSED,
    LOWERED,
    PROMOTED,
    PRUNED,
    RAISED,
    RELATED_WORDS,
    SAME_TOKEN_SILENT,
    SILENT,
    STANDS_OUT,
    SUPPRESSED,
)
from autointerp.explain.explainer import Explainer, named
from autointerp.explain.one_call import OneCall
from autointerp.explain.revise import Revise
from autointerp.explain.rule import WrittenRule
from autointerp.explain.rule_explainers import Patterns, RuleExplainer
from autointerp.plugins import with_plugins
from autointerp.rules.labels import COMPILED, LOOKUP_SETTINGS, PATTERNS, TOKEN_LOOKUP, by_patterns, by_token_lookup

ALL_EVIDENCE = (
    EXCERPTS, DRAWN, SAME_TOKEN_SILENT, CUT_TEXTS, AFTER_PEAKS, PROMOTED, SUPPRESSED, RAISED, LOWERED, RELATED_WORDS,
    INPUT_WORDS, STANDS_OUT,
)  # fmt: skip

BUILT_IN: tuple[Explainer, ...] = (
    Patterns(PATTERNS, (EXCERPTS, DRAWN, SILENT, PROMOTED), by_patterns),
    RuleExplainer(TOKEN_LOOKUP, (EXCERPTS, DRAWN, SILENT), by_token_lookup, LOOKUP_SETTINGS),
    OneCall("contexts", (EXCERPTS,), "input"),
    OneCall("pruned", (PRUNED,), "input"),
    OneCall("vocab_projection", (PROMOTED, SUPPRESSED), "output"),
    OneCall("jacobian_lens", (LENS_PROMOTED, LENS_SUPPRESSED), "output"),
    OneCall("mutual_information", (RELATED_WORDS, INPUT_WORDS), "input"),
    OneCall("token_change", (RAISED, LOWERED), "output"),
    OneCall("contrastive", (EXCERPTS, SILENT), "input"),
    OneCall("combined", ALL_EVIDENCE, listed=15, answers="meanings"),
    WrittenRule(ALL_EVIDENCE),
    Concat(),
    BestOfN(),
    Revise(),
)
"""A further explainer is one entry here."""


def explainers() -> tuple[Explainer, ...]:
    """All explainers. Raises InputError where an installed package brings one that cannot be used."""
    return with_plugins(BUILT_IN, "explainers")


def explainers_with(name: str) -> tuple[Explainer, ...]:
    """All explainers, and `name` among them if it stands for the compiled labels of one."""
    of = name.removeprefix(COMPILED)
    return (*explainers(), Compiled(of)) if of and of != name else explainers()


def explainer_named(name: str) -> Explainer:
    """The explainer with this name. Otherwise raises InputError, which names the nearest one."""
    return named(explainers_with(name), name)
