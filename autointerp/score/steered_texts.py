"""How `output` and `intervention` ask for steered text: which beginnings the model continues, and how far it is pushed.

The beginnings are those of silent texts of other features, the same for (almost) all features of a dictionary: neutral
for the feature at hand, and of the corpus's own kind, whatever that is. They are of the `select` part, as everything
is that is asked before a report.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import zip_longest

from autointerp.ask.job import Job
from autointerp.config import ScoreConfig
from autointerp.records import Context
from autointerp.store import Selection
from autointerp.tasks import Steering

PROMPTS = 3
"""Beginnings that are continued (as published: Paulo et al. 2024, Gur-Arieh et al. 2025)."""
POOL = 16
"""Features whose silent texts the beginnings are taken from."""
RANDOM_FEATURES = 3
"""Features that are pushed equally far, for comparison."""
TEMPERATURE = 0.75
_TOKENS = 8
"""Length of a beginning."""
_LETTERS = 4
"""Letters and digits that it holds at least: brackets and blanks alone may begin anything."""


def beginnings(contexts: Mapping[int, Sequence[Context]]) -> list[tuple[int, str]]:
    """(feature, text) of every beginning there is, each text once: the first of every feature, then the second ones.
    Contexts of kind negative, tier random; a function of them alone."""
    of_feature = []
    for feature in contexts:
        silent = sorted(
            (c for c in contexts[feature] if c.kind == "negative" and c.tier in ("random", None)),
            key=lambda c: (c.rank, c.context_id),
        )
        texts = ["".join(c.tokens[:_TOKENS]).rstrip() for c in silent]
        of_feature.append([(feature, t) for t in texts if sum(map(str.isalnum, t)) >= _LETTERS])
    rounds = [one for group in zip_longest(*of_feature) for one in group if one is not None]
    once: dict[str, int] = {}
    for feature, text in rounds:
        once.setdefault(text, feature)
    return [(feature, text) for text, feature in once.items()]


def pool_of(job: Job, seed: int) -> list[tuple[int, str]]:
    """`beginnings` of the dictionary, from the silent texts of POOL features drawn with `seed`."""
    features = job.store.selected_features(job.dictionary_id, Selection(random=POOL, seed=seed))
    return beginnings(job.store.contexts_of(job.dictionary_id, job.harvest_id, features, "select", {"negative": None}))


def prompts_for(pool: Sequence[tuple[int, str]], feature: int) -> list[str]:
    """Up to PROMPTS beginnings, none of them from the feature's own contexts."""
    return [text for of, text in pool if of != feature][:PROMPTS]


def steering_asked(prompts: Sequence[str], config: ScoreConfig) -> Steering:
    """How the model continues these beginnings: untouched, steered by the feature, and by random features."""
    return Steering(
        prompts=list(prompts),
        kl=config.steering_kl,
        n_tokens=config.steered_tokens,
        n_random=RANDOM_FEATURES,
        temperature=TEMPERATURE,
        seed=config.seed,
    )
