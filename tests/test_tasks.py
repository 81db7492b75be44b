"""The contract between asking, measuring and judging: payloads are those that task ids were made of, both ways."""

from __future__ import annotations

import json
from typing import Any

import pytest
from support.known_words import contexts

from autointerp.ask.prompts import load_template
from autointerp.config import ScoreConfig
from autointerp.errors import AutointerpError
from autointerp.score.detection_questions import DETECTION, choose_examples
from autointerp.score.embedding import similarity_asked
from autointerp.score.intervention import gain_asked
from autointerp.score.steered_texts import steering_asked
from autointerp.score.surprisal import surprisal_asked
from autointerp.tasks import (
    KINDS,
    ActivationsAnswer,
    Asked,
    LabelGainAnswer,
    SimilarityAnswer,
    SteeredByOther,
    Steering,
    SteeringAnswer,
    SurprisalAnswer,
    parse,
)

CONFIG = ScoreConfig(model="m", language_model="gpt2", embedding_model="local:mini")


def asked_by_scorers() -> dict[str, dict[str, Any]]:
    """One payload of each kind, as scorers build it."""
    examples = choose_examples(DETECTION, contexts(0, "report"), 2, 0, 1)
    steering = steering_asked(["def f", "import"], CONFIG)

    def asked(ask: Any, prompt: str, model: str | None) -> dict[str, Any]:
        payload: dict[str, Any] = ask("a word", examples, load_template(f"score/{prompt}"), model).payload()
        return payload

    return {
        "activations": {"texts": ["a", "b"]},
        "surprisal": asked(surprisal_asked, "surprisal", CONFIG.language_model),
        "similarity": asked(similarity_asked, "embedding", CONFIG.embedding_model),
        "steering": steering.payload(),
        "label_gain": gain_asked(
            "a word", steering, load_template("score/intervention"), CONFIG.language_model
        ).payload(),
    }


def test_every_kind_reads_what_scorers_write_and_writes_the_same() -> None:
    payloads = asked_by_scorers()
    assert [asked.kind for asked in KINDS] == list(payloads)
    for kind, payload in payloads.items():
        task: Asked = parse(kind, json.loads(json.dumps(payload)))
        assert task.kind == kind and task.payload() == payload
        assert json.dumps(task.payload(), sort_keys=True) == json.dumps(payload, sort_keys=True)


def test_the_template_of_a_label_is_cut_around_the_text() -> None:
    task: Any = parse("label_gain", asked_by_scorers()["label_gain"])
    assert task.before + "{text}" + task.after + "{label}" == task.template
    assert task.steering == parse("steering", asked_by_scorers()["steering"])


def test_numbers_of_a_payload_are_not_converted() -> None:
    """A configuration may say steering_kl = 1: a task whose payload says 1.0 would have another id."""
    asked = steering_asked(["a"], ScoreConfig(model="m", steering_kl=1)).payload()
    assert '"kl": 1,' in json.dumps(asked) and json.dumps(Steering(**asked).payload()) == json.dumps(asked)


ANSWERS: list[tuple[Any, tuple[int, ...], dict[str, Any]]] = [
    (ActivationsAnswer([1.5, None], [3, 0]), (2,), {"max": [1.5, None], "n_tokens": [3, 0]}),
    (SurprisalAnswer([[1.0, 2.0], [3.0, None]]), (2, 2), {"nll": [[1.0, 2.0], [3.0, None]]}),
    (SimilarityAnswer([0.5, -1.0]), (2,), {"cosine": [0.5, -1.0]}),
    (
        SteeringAnswer(9.0, 0.5, ["a"], ["b"], [SteeredByOther(3, 8.0, 0.4, ["c"])]),
        (1,),
        {"strength": 9.0, "kl": 0.5, "clean": ["a"], "steered": ["b"],
         "random": [{"feature": 3, "strength": 8.0, "kl": 0.4, "texts": ["c"]}]},
    ),
    (LabelGainAnswer([-1.0], [-0.5], [[-2.0], [None]]), (1,),
     {"clean": [-1.0], "steered": [-0.5], "random": [[-2.0], [None]]}),
]  # fmt: skip


@pytest.mark.parametrize(("answer", "counts", "result"), ANSWERS, ids=lambda value: type(value).__name__)
def test_an_answer_is_read_as_it_was_written(answer: Any, counts: tuple[int, ...], result: dict[str, Any]) -> None:
    assert answer.result() == result
    assert type(answer).parse_result(json.loads(json.dumps(result)), *counts) == answer
    wrong = [n + 1 for n in counts]
    with pytest.raises(AutointerpError, match=f"should be a list of {wrong[0]} values"):
        type(answer).parse_result(result, *wrong)


def test_what_is_no_finite_number_is_none() -> None:
    found = SimilarityAnswer.parse_result({"cosine": [float("nan"), True, "1", 1]}, 4)
    assert found.cosine == [None, None, None, 1.0]
    with pytest.raises(AutointerpError, match="lacks 'kl'"):
        SteeringAnswer.parse_result({"strength": 1.0, "clean": [], "steered": []}, 0)
