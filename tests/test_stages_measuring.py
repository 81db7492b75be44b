"""`autointerp measure` on a planted dictionary: what each kind of task must answer is known, or made again by hand."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from support.commands import run
from support.planted_tokens import BIAS, WORDS, planted_in, table
from support.sentence_folder import write_folder

from autointerp import tasks
from autointerp.config_file import from_table
from autointerp.corpus.windows import token_ids
from autointerp.measure.texts import explain_ids
from autointerp.model.hooks import Hookpoint, hooked
from autointerp.records import Measurement, MeasureTask, stable_id
from autointerp.sae.formats import load_sae, save_saelens
from autointerp.stages import measuring
from autointerp.stages.measuring import KL_TOKENS, KL_WINDOWS, measure
from autointerp.stages.session import Session
from autointerp.store import Selection, Store
from autointerp.terminal import Terminal

KL = 0.005
STEERING = {"prompts": ["the harbour", "I"], "kl": KL, "n_tokens": 4, "n_random": 2, "temperature": 0.75, "seed": 3}
FIRST = 1 + BIAS
TEMPLATE = "{text}\nThis is about {label}"


@pytest.fixture(scope="module")
def base(tiny_gpt2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    planted = planted_in(tmp_path_factory.mktemp("planted"), tiny_gpt2)
    write_config(planted, tiny_gpt2)
    write_folder(planted / "bert")
    return planted


def test_every_kind_of_task_can_be_measured() -> None:
    """One that a scorer may ask and no stage answers would stay open for ever."""
    names = [kind.name for kind in measuring.KINDS]
    assert sorted(names) == sorted(asked.kind for asked in tasks.KINDS) and len(set(names)) == len(names)


def write_config(folder: Path, model: Path) -> None:
    (folder / "c.toml").write_text(
        f"""
[model]
name = "{model}"
dtype = "float32"
[corpus]
source = "texts"
context_length = 32
[[sae]]
name = "planted"
hookpoint = "transformer.wte"
path = "sae"
reading = "as read"
[store]
path = "planted.duckdb"
"""
    )


@pytest.fixture
def folder(base: Path, tiny_gpt2: Path, tmp_path: Path) -> Path:
    copy = Path(shutil.copytree(base, tmp_path / "project"))
    write_config(copy, tiny_gpt2)
    return copy


def ask(folder: Path, *tasks: tuple[int, str, Any]) -> list[str]:
    """The ids of tasks of (feature, kind, payload), now in the store."""
    made = [MeasureTask(stable_id(*task), 1, task[0], None, task[1], task[2]) for task in tasks]
    with Store.open(folder / "planted.duckdb") as store:
        store.insert_tasks(made)
    return [task.task_id for task in made]


def answers(folder: Path, ids: list[str]) -> list[Measurement]:
    with Store.open(folder / "planted.duckdb", read_only=True) as store:
        found = store.measurements_of(ids)
    return [found[task_id] for task_id in ids]


def session(folder: Path, model: Path) -> Session:
    return Session(from_table(table(folder, model)), Terminal())


def nll(loaded: Any, prefix: str, text: str) -> float:
    before, own = token_ids([prefix, text], loaded.tokenizer)
    ids = [0, *before, *own]
    with torch.no_grad():
        log_p = loaded.model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
    first = len(ids) - len(own)
    return -sum(float(log_p[first + i - 1, token]) for i, token in enumerate(own)) / len(own)


def kl_by_hand(session: Session, feature: int, value: float) -> float:
    """Of all but the BOS, with a hook of its own."""
    loaded, sae = session.model(), load_sae(session.sae_folder(session.config.sae[0]))
    ids = explain_ids(session.units(), KL_WINDOWS, KL_TOKENS)
    assert ids.shape == (KL_WINDOWS, KL_TOKENS)

    def edit(x: torch.Tensor) -> torch.Tensor:
        change = (value - sae.encode(x)[..., feature]) * (ids != 0)
        return x + change[..., None] * sae.W_dec[feature]

    with torch.no_grad():
        clean = loaded.model(input_ids=ids).logits.log_softmax(-1)
        with hooked(loaded.model, Hookpoint("transformer.wte"), edit=edit):
            steered = loaded.model(input_ids=ids).logits.log_softmax(-1)
    return float((steered.exp() * (steered - clean)).sum(-1)[:, 1:].mean())


def test_every_kind_is_answered_once(folder: Path, tiny_gpt2: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = ["boats and ropes", "low grey sky", "lamps with the self", ""]
    steering = [(f, "steering", STEERING) for f in range(len(WORDS))]
    gain = {"steering": STEERING, "template": TEMPLATE, "label": "old boats", "language_model": ""}
    ids = ask(
        folder,
        *((f, "activations", {"texts": texts}) for f in range(len(WORDS))),
        (1, "surprisal", {"prefixes": ["About: boats", "Various"], "texts": texts[:3], "language_model": ""}),
        (2, "similarity", {"query": "ropes", "texts": texts, "model": f"local:{folder}/bert"}),
        (3, "label_gain", gain),
        *steering,
    )
    code, _, err = run(capsys, "measure", "-c", str(folder / "c.toml"))
    assert code == 0, err
    assert f"measured {len(ids)} ok" in err
    found = answers(folder, ids)
    results: list[Any] = [one.result for one in found]
    assert {one.status for one in found} == {"ok"}
    for word, result in zip(WORDS, results, strict=False):
        expected = [FIRST if word in " " + text else 0.0 for text in texts[:3]]
        assert result["max"][:3] == pytest.approx(expected, abs=1e-5) and result["max"][3] is None
        assert all(result["n_tokens"][:3]) and result["n_tokens"][3] == 0
    surprisal, similarity, gained, *steered = results[len(WORDS) :]
    ours = session(folder, tiny_gpt2)
    expected = [[nll(ours.model(), p, t) for t in texts[:3]] for p in ("About: boats", "Various")]
    assert [*surprisal["nll"][0], *surprisal["nll"][1]] == pytest.approx(expected[0] + expected[1], abs=1e-4)
    assert len(similarity["cosine"]) == 4 and all(-1 <= c <= 1 for c in similarity["cosine"])
    for feature, result in enumerate(steered):
        assert result["kl"] == pytest.approx(KL, rel=0.11)
        assert kl_by_hand(ours, feature, result["strength"]) == pytest.approx(result["kl"], rel=0.05)
        others = [arm["feature"] for arm in result["random"]]
        assert len(set(others)) == 2 and feature not in others
        assert all(arm["kl"] == pytest.approx(KL, rel=0.11) for arm in result["random"])
        assert {len(t) for t in (result["clean"], result["steered"], *(a["texts"] for a in result["random"]))} == {2}
        assert result["clean"] == steered[0]["clean"]
    assert len({tuple(result["steered"]) for result in steered}) > 1
    assert len({tuple(arm["feature"] for arm in result["random"]) for result in steered}) > 1
    for row, written in zip(
        [gained["clean"], gained["steered"], *gained["random"]],
        [steered[3]["clean"], steered[3]["steered"], *(arm["texts"] for arm in steered[3]["random"])],
        strict=True,
    ):
        by_hand = [-nll(ours.model(), f"{text}\nThis is about", " old boats") for text in written]
        assert row == pytest.approx(by_hand, abs=1e-4)
    # What was written for the steering task was not written again for the label.
    assert found[ids.index(stable_id(3, "label_gain", gain))].n_forwards == 8

    code, _, err = run(capsys, "measure", "-c", str(folder / "c.toml"))
    assert code == 0 and "nothing to measure" in err
    assert answers(folder, ids) == found


def test_an_answer_does_not_depend_on_what_else_is_asked(folder: Path, tiny_gpt2: Path) -> None:
    asked = [
        (f, kind, p) for f in range(2) for kind, p in (("activations", {"texts": ["and the"]}), ("steering", STEERING))
    ]
    ids = ask(folder, *asked)
    other = Path(shutil.copytree(folder, folder.parent / "other"))
    with Store.open(folder / "planted.duckdb") as store:
        sae = session(folder, tiny_gpt2).config.sae[0]
        assert measure(session(folder, tiny_gpt2), store, sae, Selection()) == 4
        assert measure(session(folder, tiny_gpt2), store, sae, Selection()) == 0
    with Store.open(other / "planted.duckdb") as store:
        for feature in ("1", "0"):
            n = measure(session(other, tiny_gpt2), store, session(other, tiny_gpt2).config.sae[0], Selection(feature))
            assert n == 2
    for (_, kind, _), one, again in zip(asked, answers(folder, ids), answers(other, ids), strict=True):
        assert one.result is not None and again.result is not None
        if kind == "activations":
            assert one.result["max"] == pytest.approx(again.result["max"])
            continue
        assert one.result["strength"] == pytest.approx(again.result["strength"], rel=1e-3)
        assert [a["feature"] for a in one.result["random"]] == [a["feature"] for a in again.result["random"]]
        assert one.result["clean"] == again.result["clean"]


def test_a_task_that_cannot_be_answered_has_a_status(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    far = STEERING | {"kl": 1e4}
    gain = {"steering": far, "template": TEMPLATE, "label": "a", "language_model": ""}
    cases: list[tuple[int, str, Any, str]] = [
        (0, "steering", far, "kl_not_reached"),
        (0, "label_gain", gain, "kl_not_reached"),
        (0, "steering", STEERING | {"n_random": 6}, "bad_task"),
        (0, "steering", STEERING | {"prompts": ["and " * 200]}, "bad_task"),
        (99, "steering", STEERING, "bad_task"),
        (99, "activations", {"texts": ["a"]}, "bad_task"),
        (0, "activations", {"texts": "a"}, "bad_task"),
        (0, "guess", {}, "bad_task"),
        (0, "activations", {"texts": ["and"]}, "ok"),
    ]
    ids = ask(folder, *(case[:3] for case in cases))
    code, _, err = run(capsys, "measure", "-c", str(folder / "c.toml"))
    assert code == 0, err
    found = answers(folder, ids)
    assert [one.status for one in found] == [case[3] for case in cases]
    assert all((one.result is None) == (one.status != "ok") == bool(one.error) for one in found)


def test_another_language_model(folder: Path, tiny_neox: Path, capsys: pytest.CaptureFixture[str]) -> None:
    payload = {"prefixes": ["a", "b"], "texts": ["the boats"], "language_model": ""}
    ids = ask(folder, (0, "surprisal", payload), (0, "surprisal", payload | {"language_model": str(tiny_neox)}))
    assert run(capsys, "measure", "-c", str(folder / "c.toml"))[0] == 0
    own, other = (one.result for one in answers(folder, ids))
    assert own is not None and other is not None and abs(own["nll"][0][0] - other["nll"][0][0]) > 1e-3


def test_a_model_that_is_not_there_ends_the_command_and_keeps_what_is_done(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    payload = {"query": "a", "texts": ["b"], "model": "local:no_such_package"}
    ids = ask(folder, (0, "similarity", payload), (0, "activations", {"texts": ["and"]}))
    code, _, err = run(capsys, "measure", "-c", str(folder / "c.toml"))
    assert code == 2 and "no_such_package" in err
    with Store.open(folder / "planted.duckdb", read_only=True) as store:
        assert set(store.measurements_of(ids)) == {ids[1]}


def test_another_sae_than_the_stores_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ids = ask(folder, (0, "activations", {"texts": ["and"]}))
    sae = load_sae(folder / "sae")
    sae.b_enc += 0.01
    save_saelens(sae, folder / "sae", {"hook_name": "transformer.wte"})
    code, _, err = run(capsys, "measure", "-c", str(folder / "c.toml"))
    assert code == 8 and "sha256" in err
    with Store.open(folder / "planted.duckdb", read_only=True) as store:
        assert not store.measurements_of(ids)
