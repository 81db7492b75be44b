"""What scorers ask of the model, read from a task's JSON and checked: one class per kind of task.

A payload was written by another stage, perhaps of another version, so nothing of it is believed: what does not fit is
`NotMeasured("bad_task", ...)`, which says what is wrong with which field.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

Status = Literal["bad_task", "nonfinite", "kl_not_reached"]


class NotMeasured(Exception):
    """Why a task has no result: goes into the store as its status and error."""

    def __init__(self, status: Status, error: str) -> None:
        super().__init__(error)
        self.status, self.error = status, error


@dataclass(frozen=True, slots=True)
class Activations:
    """How strongly does the task's feature fire on each text?"""

    texts: list[str]


@dataclass(frozen=True, slots=True)
class Surprisal:
    """How badly is each text predicted after each prefix?"""

    prefixes: list[str]
    texts: list[str]
    language_model: str


@dataclass(frozen=True, slots=True)
class Similarity:
    """How near is each text to the query, by a sentence embedding?"""

    query: str
    texts: list[str]
    model: str


@dataclass(frozen=True, slots=True)
class Steering:
    """What does the model write after each prompt: untouched, steered by the feature, by random ones?"""

    prompts: list[str]
    kl: float
    """Nats per token by which steering moves the next-token distribution."""
    n_tokens: int
    n_random: int
    temperature: float
    seed: int


@dataclass(frozen=True, slots=True)
class LabelGain:
    """How likely is the label after what the model writes when it is steered?"""

    steering: dict[str, Any]
    """The payload of a Steering, for a cache's key."""
    steered: Steering
    before: str
    """Of the template: what stands before the text."""
    after: str
    """What stands between text and label."""
    label: str
    language_model: str


Asked = Activations | Surprisal | Similarity | Steering | LabelGain


def parse(kind: str, payload: Any) -> Asked:
    """The task. Raises NotMeasured (bad_task)."""
    readers: dict[str, Callable[[Mapping[str, Any]], Asked]] = {
        "activations": _activations,
        "surprisal": _surprisal,
        "similarity": _similarity,
        "steering": _steering,
        "label_gain": _label_gain,
    }
    if kind not in readers:
        raise _bad(f"no measurement is called {kind!r}; there are {', '.join(readers)}")
    if not isinstance(payload, dict):
        raise _bad(f"the payload must be an object, not {type(payload).__name__}")
    return readers[kind](payload)


def _bad(error: str) -> NotMeasured:
    return NotMeasured("bad_task", error)


def _activations(payload: Mapping[str, Any]) -> Activations:
    return Activations(_texts(payload, "texts"))


def _surprisal(payload: Mapping[str, Any]) -> Surprisal:
    return Surprisal(_texts(payload, "prefixes"), _texts(payload, "texts"), _text(payload, "language_model"))


def _similarity(payload: Mapping[str, Any]) -> Similarity:
    model = _text(payload, "model")
    if not model.removeprefix("local:") or not model.startswith("local:"):
        raise _bad(f"model must be local:FOLDER or local:PACKAGE, not {model!r}")
    return Similarity(_text(payload, "query"), _texts(payload, "texts"), model)


def _steering(payload: Mapping[str, Any]) -> Steering:
    return Steering(
        prompts=_texts(payload, "prompts"),
        kl=_number(payload, "kl", above=0.0),
        n_tokens=_whole(payload, "n_tokens", least=1),
        n_random=_whole(payload, "n_random", least=0),
        temperature=_number(payload, "temperature", least=0.0),
        seed=_whole(payload, "seed"),
    )


def _label_gain(payload: Mapping[str, Any]) -> LabelGain:
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
    return LabelGain(steering, _steering(steering), before, after, label, _text(payload, "language_model"))


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
