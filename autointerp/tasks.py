"""What scorers ask of the model, and what it answers: the one contract between asking, measuring and judging.

A scorer asks (a task is a row in the store), `autointerp measure` answers (another row), the scorer judges. One class
here for each kind of task, one for each kind of answer. Both travel as JSON:

    kind          payload                                      result
    activations   texts                                        max, n_tokens: a number (or null) for each text
    surprisal     prefixes, texts, language_model              nll: for each prefix a number for each text
    similarity    query, texts, model                          cosine: a number for each text
    steering      prompts, kl, n_tokens, n_random,             strength, kl, clean, steered: a text for each prompt;
                  temperature, seed                            random: feature, strength, kl and texts of each one
    label_gain    steering, template, label, language_model    clean, steered, random: a number for each prompt; random
                                                               holds a list for each random feature

A payload was written by another stage, perhaps of another version, so nothing in it is believed: what does not fit is
NotMeasured("bad_task", ...), which says what is wrong with which field. A result that does not fit is AutointerpError:
the two sides disagree.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar, Literal, Self

from autointerp.errors import AutointerpError

Status = Literal["bad_task", "nonfinite", "kl_not_reached"]
Number = float | None
"""A finite number, or None if there is no number."""


class NotMeasured(Exception):
    """Why a task has no result: goes into the store as its status and error."""

    def __init__(self, status: Status, error: str) -> None:
        super().__init__(error)
        self.status, self.error = status, error


# --- tasks ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Activations:
    """How strongly does the task's feature fire on each text?"""

    kind: ClassVar = "activations"
    texts: list[str]

    def payload(self) -> dict[str, Any]:
        return _payload(self)

    @classmethod
    def parse(cls, payload: Mapping[str, Any]) -> Self:
        return cls(_texts(payload, "texts"))


@dataclass(frozen=True, slots=True)
class Surprisal:
    """How badly is each text predicted after each prefix?"""

    kind: ClassVar = "surprisal"
    prefixes: list[str]
    texts: list[str]
    language_model: str
    """A hub id or folder; "" is the subject model."""

    def payload(self) -> dict[str, Any]:
        return _payload(self)

    @classmethod
    def parse(cls, payload: Mapping[str, Any]) -> Self:
        return cls(_texts(payload, "prefixes"), _texts(payload, "texts"), _text(payload, "language_model"))


@dataclass(frozen=True, slots=True)
class Similarity:
    """How near is each text to the query, by a sentence embedding?"""

    kind: ClassVar = "similarity"
    query: str
    texts: list[str]
    model: str
    """local:FOLDER or local:PACKAGE."""

    def payload(self) -> dict[str, Any]:
        return _payload(self)

    @classmethod
    def parse(cls, payload: Mapping[str, Any]) -> Self:
        model = _text(payload, "model")
        if not model.removeprefix("local:") or not model.startswith("local:"):
            raise _bad(f"model must be local:FOLDER or local:PACKAGE, not {model!r}")
        return cls(_text(payload, "query"), _texts(payload, "texts"), model)


@dataclass(frozen=True, slots=True)
class Steering:
    """What does the model write after each prompt: untouched, steered by the feature, by random ones?"""

    kind: ClassVar = "steering"
    prompts: list[str]
    kl: float
    """Nats per token by which steering moves the next-token distribution."""
    n_tokens: int
    n_random: int
    temperature: float
    seed: int

    def payload(self) -> dict[str, Any]:
        return _payload(self)

    @classmethod
    def parse(cls, payload: Mapping[str, Any]) -> Self:
        return cls(
            prompts=_texts(payload, "prompts"),
            kl=_number(payload, "kl", above=0.0),
            n_tokens=_whole(payload, "n_tokens", least=1),
            n_random=_whole(payload, "n_random", least=0),
            temperature=_number(payload, "temperature", least=0.0),
            seed=_whole(payload, "seed"),
        )


@dataclass(frozen=True, slots=True)
class LabelGain:
    """How likely is the label after what the model writes when it is steered?"""

    kind: ClassVar = "label_gain"
    steering: Steering
    template: str
    """Holds {text} once and ends with {label}."""
    label: str
    language_model: str
    """A hub id or folder; "" is the subject model."""

    @property
    def before(self) -> str:
        """What stands before the text in the template."""
        return self.template.partition("{text}")[0]

    @property
    def after(self) -> str:
        """What stands between text and label in the template."""
        return self.template.partition("{text}")[2].removesuffix("{label}")

    def payload(self) -> dict[str, Any]:
        return {**_payload(self), "steering": self.steering.payload()}

    @classmethod
    def parse(cls, payload: Mapping[str, Any]) -> Self:
        template, label = _text(payload, "template"), _text(payload, "label")
        before, has_text, rest = template.partition("{text}")
        after, has_label, end = rest.partition("{label}")
        if not has_text or not has_label or end or "{text}" in after or "{label}" in before:
            raise _bad(f"template must hold {{text}} once and end with {{label}}, not {template!r}")
        if not label.strip():
            raise _bad("label is empty")
        steering = _field(payload, "steering")
        if not isinstance(steering, dict):
            raise _bad(f"steering must be an object, not {type(steering).__name__}")
        return cls(Steering.parse(steering), template, label, _text(payload, "language_model"))


Asked = Activations | Surprisal | Similarity | Steering | LabelGain
KINDS: tuple[type[Asked], ...] = (Activations, Surprisal, Similarity, Steering, LabelGain)


def parse(kind: str, payload: Any) -> Asked:
    """The task. Raises NotMeasured (bad_task)."""
    classes = {asked.kind: asked for asked in KINDS}
    if kind not in classes:
        raise _bad(f"no measurement is called {kind!r}; there are {', '.join(classes)}")
    if not isinstance(payload, dict):
        raise _bad(f"the payload must be an object, not {type(payload).__name__}")
    return classes[kind].parse(payload)


def _payload(task: Asked) -> dict[str, Any]:
    """The fields as they are: the hash of a payload is a task's id, so nothing is converted."""
    return {one.name: getattr(task, one.name) for one in fields(task)}


# --- answers ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ActivationsAnswer:
    """One entry for each text."""

    max: Sequence[Number]
    """Largest activation on a counted token, raw units, 0 where the feature is silent; None: no counted token."""
    n_tokens: Sequence[int]
    """Counted tokens. May be empty in an answer that is read: nothing is judged by it."""

    def result(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def parse_result(cls, result: Mapping[str, Any], n_texts: int) -> Self:
        n_tokens = _listed(result, "n_tokens", n_texts) if "n_tokens" in result else []
        return cls(_numbers(result, "max", n_texts), n_tokens)


@dataclass(frozen=True, slots=True)
class SurprisalAnswer:
    """The values, as one list for each prefix, with one entry for each text."""

    nll: Sequence[Sequence[Number]]
    """Mean nats per token of the text's own tokens after the prefix."""

    def result(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def parse_result(cls, result: Mapping[str, Any], n_prefixes: int, n_texts: int) -> Self:
        return cls([_numbers({"nll": row}, "nll", n_texts) for row in _listed(result, "nll", n_prefixes)])


@dataclass(frozen=True, slots=True)
class SimilarityAnswer:
    """One entry for each text."""

    cosine: Sequence[Number]
    """Cosine of the text's vector with the query's, -1 to 1."""

    def result(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def parse_result(cls, result: Mapping[str, Any], n_texts: int) -> Self:
        return cls(_numbers(result, "cosine", n_texts))


@dataclass(frozen=True, slots=True)
class SteeredByOther:
    """What the model writes when another feature steers it equally far."""

    feature: int
    strength: float
    kl: float
    texts: list[str]


@dataclass(frozen=True, slots=True)
class SteeringAnswer:
    """The texts that the model wrote, one after each prompt; the prompts themselves are not included."""

    strength: float
    """The value to which the feature was clamped, raw units."""
    kl: float
    """The KL divergence reached with it, nats per token."""
    clean: list[str]
    steered: list[str]
    random: list[SteeredByOther]

    def result(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def parse_result(cls, result: Mapping[str, Any], n_prompts: int) -> Self:
        others = [
            SteeredByOther(
                _member(one, "feature"), _member(one, "strength"), _member(one, "kl"), _listed(one, "texts", n_prompts)
            )
            for one in result.get("random", [])
        ]
        clean, steered = _listed(result, "clean", n_prompts), _listed(result, "steered", n_prompts)
        return cls(_member(result, "strength"), _member(result, "kl"), clean, steered, others)


@dataclass(frozen=True, slots=True)
class LabelGainAnswer:
    """The mean log-probability per token of the label after the text written for each prompt, in nats."""

    clean: Sequence[Number]
    steered: Sequence[Number]
    random: Sequence[Sequence[Number]]
    """One list for each random feature."""

    def result(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def parse_result(cls, result: Mapping[str, Any], n_prompts: int) -> Self:
        others = [_numbers({"random": one}, "random", n_prompts) for one in result.get("random", [])]
        return cls(_numbers(result, "clean", n_prompts), _numbers(result, "steered", n_prompts), others)


Answer = ActivationsAnswer | SurprisalAnswer | SimilarityAnswer | SteeringAnswer | LabelGainAnswer


def _member(result: Mapping[str, Any], key: str) -> Any:
    if key not in result:
        raise AutointerpError(f"a measurement lacks {key!r}")
    return result[key]


def _listed(result: Mapping[str, Any], key: str, n: int) -> list[Any]:
    """The list of `n` values under `key` of a result. Raises AutointerpError if it is not such a list."""
    values = result.get(key)
    if not isinstance(values, list) or len(values) != n:
        raise AutointerpError(f"a measurement's {key!r} should be a list of {n} values, not {str(values)[:80]}")
    return values


def _numbers(result: Mapping[str, Any], key: str, n: int) -> list[Number]:
    return [_finite(value) for value in _listed(result, key, n)]


def _finite(value: Any) -> Number:
    """`value` where it is a finite number, else None: what could not be measured."""
    if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    return None


# --- reading a payload ------------------------------------------------------------------------------------------------


def _bad(error: str) -> NotMeasured:
    return NotMeasured("bad_task", error)


def _field(payload: Mapping[str, Any], name: str) -> Any:
    if name not in payload:
        raise _bad(f"{name} is missing")
    return payload[name]


def _checked_text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise _bad(f"{where} must be a string, not {type(value).__name__}")
    try:
        value.encode()
    except UnicodeEncodeError:  # JSON may hold one; tokenizers refuse it
        raise _bad(f"{where} holds half a surrogate pair") from None
    return value


def _text(payload: Mapping[str, Any], name: str) -> str:
    return _checked_text(_field(payload, name), name)


def _texts(payload: Mapping[str, Any], name: str) -> list[str]:
    value = _field(payload, name)
    if not isinstance(value, list) or not value:
        raise _bad(f"{name} must be a list of at least one string")
    return [_checked_text(text, f"{name}[{i}]") for i, text in enumerate(value)]


def _number(payload: Mapping[str, Any], name: str, *, above: float = -math.inf, least: float = -math.inf) -> float:
    value = _field(payload, name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise _bad(f"{name} must be a number, not {value!r}")
    if value <= above or value < least:
        raise _bad(f"{name} must be {f'above {above:g}' if value <= above else f'{least:g} or more'}, not {value!r}")
    return float(value)


def _whole(payload: Mapping[str, Any], name: str, *, least: int | None = None) -> int:
    value = _field(payload, name)
    if isinstance(value, bool) or not isinstance(value, int) or abs(value) >= 2**63:
        raise _bad(f"{name} must be a whole number, not {value!r}")
    if least is not None and value < least:
        raise _bad(f"{name} must be {least} or more, not {value}")
    return value
