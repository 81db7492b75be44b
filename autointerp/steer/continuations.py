"""What the model writes when a feature steers it, when nothing does, and when random features do.

All steering moves the model's next-token distribution equally far: by the KL that is asked for, in nats per token, on
the first tokens of some windows of the explain split. So a feature's texts are compared with those of controls that
disturb the model as much. A random feature that does not reach this KL is replaced by another one.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from autointerp.corpus.token_text import TokenText
from autointerp.corpus.windows import token_ids
from autointerp.errors import AutointerpError
from autointerp.model.input_limits import spelled_unreadable
from autointerp.model.load import LoadedModel
from autointerp.records import stable_id
from autointerp.steer.steering import Steerer, Strength
from autointerp.tasks import NotMeasured, Steering

MOST_DRAWN = 4
"""Random features tried, as a multiple of those asked for."""


@dataclass(frozen=True, slots=True)
class Arm:
    """The texts that the model writes while one feature steers it."""

    feature: int
    strength: float
    """What the feature is held at, raw units."""
    kl: float
    texts: list[str]


@dataclass(slots=True)
class Steered:
    """The texts of one task: for each prompt what the model wrote after it, without the prompt."""

    own: Arm
    clean: list[str]
    random: list[Arm] = field(default_factory=list)
    n_forwards: int = 0
    n_tokens: int = 0

    def arms(self) -> list[list[str]]:
        """The texts written without steering, with it, then under each random feature."""
        return [self.clean, self.own.texts, *(arm.texts for arm in self.random)]


class SteeredTexts:
    """Steers the model for one task after another. It finds a feature's strength once for each KL."""

    def __init__(
        self, loaded: LoadedModel, steerer: Steerer, text: TokenText, prefix: Sequence[int], kl_ids: Tensor,
        firing: Mapping[int, tuple[str, float]],
    ) -> None:  # fmt: skip
        """`prefix`: ids before every prompt (a BOS). `kl_ids` [P, T]: the prompts over which the KL is taken. `firing`:
        status and largest activation of every feature that fires."""
        self.loaded, self.steerer, self.text = loaded, steerer, text
        self.prefix, self.kl_ids, self.firing = list(prefix), kl_ids, firing
        self.live = [feature for feature, (status, _) in firing.items() if status == "live"]
        self._strengths: dict[tuple[int, float], Strength] = {}

    def prepare(self, tasks: Sequence[tuple[int, Steering]]) -> None:
        """Finds the strengths that these (feature, task) will need, in common batches."""
        for kl in dict.fromkeys(asked.kl for _, asked in tasks):
            wanted = []
            for feature, asked in tasks:
                if asked.kl == kl and feature in self.firing:
                    wanted += [feature, *self._drawn(feature, asked)[: asked.n_random]]
            self._find(wanted, kl)

    def measure(self, feature: int, asked: Steering) -> Steered:
        """The texts of one task. Raises NotMeasured: bad_task (the feature never fires, there are too few features, a
        prompt does not fit), kl_not_reached, nonfinite."""
        if feature not in self.firing:
            raise NotMeasured(
                "bad_task", f"feature {feature} never fires, so there is nothing to scale its steering by"
            )
        forwards, tokens = self.steerer.n_forwards, self.steerer.n_tokens
        own = self._find([feature], asked.kl)[0]
        _check_reached(own, asked.kl)
        chosen = [own, *self._random(feature, asked)]
        prompts = self._prompts(asked)
        arms = [None, *(strength.feature for strength in chosen)]
        values = [0.0, *(strength.value for strength in chosen)]
        rows = [arm for arm in arms for _ in prompts], [value for value in values for _ in prompts]
        try:
            ids = self.steerer.generate(prompts * len(arms), *rows, asked.n_tokens, asked.temperature, asked.seed)
        except AutointerpError as error:
            if type(error) is not AutointerpError:  # bad input, or out of memory
                raise
            raise NotMeasured("nonfinite", str(error)) from error
        texts = [self._written(generated) for generated in ids]
        clean, *steered = [texts[i : i + len(prompts)] for i in range(0, len(texts), len(prompts))]
        made = [Arm(s.feature, s.value, s.kl, own_texts) for s, own_texts in zip(chosen, steered, strict=True)]
        n_forwards, n_tokens = self.steerer.n_forwards - forwards, self.steerer.n_tokens - tokens
        return Steered(made[0], clean, made[1:], n_forwards, n_tokens)

    def _drawn(self, feature: int, asked: Steering) -> list[int]:
        """Random features in the order in which they are tried: a function of the seed, the feature and the live
        features alone."""
        others = [other for other in self.live if other != feature]
        rng = random.Random(stable_id("random features", asked.seed, feature))
        return rng.sample(others, min(len(others), MOST_DRAWN * asked.n_random))

    def _random(self, feature: int, asked: Steering) -> list[Strength]:
        candidates, found = self._drawn(feature, asked), list[Strength]()
        if len(candidates) < asked.n_random:
            raise NotMeasured("bad_task", f"{asked.n_random} random features asked for, {len(candidates)} are live")
        while len(found) < asked.n_random and candidates:
            n = asked.n_random - len(found)
            found += [s for s in self._find(candidates[:n], asked.kl) if s.reached and _is_finite(s)]
            candidates = candidates[n:]
        if len(found) < asked.n_random:
            raise NotMeasured(
                "kl_not_reached",
                f"of {MOST_DRAWN * asked.n_random} random features {len(found)} reach a KL of {asked.kl:g}, "
                f"{asked.n_random} are needed",
            )
        return found

    def _find(self, features: Iterable[int], kl: float) -> list[Strength]:
        wanted = list(features)
        missing = [f for f in dict.fromkeys(wanted) if (f, kl) not in self._strengths]
        if missing:
            scales = [self.firing[f][1] for f in missing]
            for strength in self.steerer.strengths(missing, self.kl_ids, kl, scales):
                self._strengths[strength.feature, kl] = strength
        return [self._strengths[f, kl] for f in wanted]

    def _prompts(self, asked: Steering) -> list[list[int]]:
        prompts = [self.prefix + ids for ids in token_ids(asked.prompts, self.loaded.tokenizer)]
        limit = self.steerer.most_positions
        unreadable = spelled_unreadable(self.loaded.model, self.loaded.tokenizer, prompts)
        for i, ids in enumerate(prompts):
            if i in unreadable:
                raise NotMeasured("bad_task", f"prompts[{i}] {unreadable[i]}")
            if not ids:
                raise NotMeasured("bad_task", f"prompts[{i}] has no tokens, and no BOS stands before it")
            if limit is not None and len(ids) + asked.n_tokens > limit:
                raise NotMeasured(
                    "bad_task",
                    f"prompts[{i}] has {len(ids)} tokens: with {asked.n_tokens} more it does not fit the model's "
                    f"context of {limit}",
                )
        return prompts

    def _written(self, ids: Sequence[int]) -> str:
        """The text up to where the model ended it, without other special tokens."""
        end = self.loaded.tokenizer.eos_token_id
        kept = list(ids[: ids.index(end)] if end in ids else ids)
        return "".join(self.text.tokens([i for i in kept if i not in self.text.special_ids]))


def _is_finite(strength: Strength) -> bool:
    return math.isfinite(strength.value) and math.isfinite(strength.kl)


def _check_reached(strength: Strength, kl: float) -> None:
    if not _is_finite(strength):
        raise NotMeasured(
            "nonfinite", f"held at {strength.value}, the feature moves the model by a KL of {strength.kl}"
        )
    if not strength.reached:
        raise NotMeasured(
            "kl_not_reached",
            f"held at {strength.value:g}, the feature moves the model by a KL of {strength.kl:.3g}, not {kl:g}",
        )
