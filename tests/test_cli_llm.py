"""The command line against a real HTTP server: labels and scores by an LLM, budgets, resuming, secrets."""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from support.commands import run, write_config, write_corpus
from support.llm_server import BrainReply, Fault, LlmServer
from support.token_reader import TokenReader

KEY = "sk-canary-0123456789abcdef"


@pytest.fixture(scope="module")
def harvested(tiny_gpt2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llm")
    write_corpus(folder / "texts")
    config = write_config(folder, tiny_gpt2)
    from autointerp.config_file import load
    from autointerp.stages import pipeline
    from autointerp.terminal import Terminal

    pipeline.train(load(config), None, Terminal())
    pipeline.harvest(load(config), None, Terminal())
    return folder


@pytest.fixture
def project(harvested: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "project"
    shutil.copytree(harvested, folder)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    return folder


def configure(project: Path, url: str, extra: str = "") -> str:
    path = project / "autointerp.toml"
    endpoint = f'model = "m"\nbase_url = "{url}"\n'
    text = path.read_text().replace('explainer = "patterns"', f'explainer = "combined"\n{endpoint}')
    text = text.replace("[score]\n", f"[score]\n{endpoint}")
    text += f'\n[llm]\nrequests_per_minute = 60000\n[llm.prices."m"]\ninput = 1.0\noutput = 2.0\n{extra}'
    path.write_text(text)
    return str(path)


def test_labels_and_scores_by_an_llm_are_paid_once(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with LlmServer(TokenReader()) as server:
        config = configure(project, server.url)
        store = str(project / "tiny.duckdb")
        code, out, err = run(capsys, "run", "-c", config, "--limit", "3", "--dry-run")
        assert code == 0, err
        assert "explain: 3 pending, 3 calls" in out
        assert not server.requests
        code, _, err = run(capsys, "run", "-c", config, "--limit", "3")
        assert code == 0, err
        sent = len(server.requests)
        assert sent > 3 + 9  # three labels, and several contexts for each
        code, _, err = run(capsys, "run", "-c", config, "--limit", "3")
        assert code == 0, err
        assert "nothing to do" in err
        assert len(server.requests) == sent
    code, out, err = run(
        capsys, "query", "SELECT label, score, method FROM labels WHERE label IS NOT NULL", "--store", store,
        "--format", "json",
    )  # fmt: skip
    rows = json.loads(out)
    assert len(rows) == 3
    assert all(row["label"].startswith("the token") and row["method"] == "numbers" for row in rows)
    code, out, _ = run(capsys, "status", "--store", store, "--json")
    spent = json.loads(out)["spent"]
    assert sent - spent["requests"] in (0, 1), "all but the probe's refused call, which costs nothing"
    assert spent["usd"] == pytest.approx((spent["input_tokens"] + 2 * spent["output_tokens"]) / 1e6)


def test_a_budget_stops_the_run_and_a_larger_one_goes_on(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with LlmServer(TokenReader()) as server:
        config = configure(project, server.url, "[budget]\nmax_requests = 2\n")
        code, _, err = run(capsys, "explain", "-c", config, "--limit", "5")
        assert code == 4, err
        assert "max_requests" in err
        assert re.search(r"explain: \d labelled, 0 scored, 0 failed; [12] requests, .*\n.*max_requests", err), err
        assert len(server.requests) <= 2
        text = Path(config).read_text().replace("max_requests = 2", "max_requests = 100")
        Path(config).write_text(text)
        code, _, err = run(capsys, "explain", "-c", config, "--limit", "5")
        assert code == 0, err
        assert len(server.requests) == 1 + 5  # whether it keeps to a JSON schema is asked once


UNPRICED = {
    "judge": ('scorers = ["detection"]', ("run", "--limit", "2"), "other"),
    "second scorer": (
        'scorers = ["detection", "embedding"]\nembedding_model = "embedder"', ("score", "--explainer", "patterns"),
        "embedder",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", UNPRICED)
def test_every_price_is_asked_for_before_the_first_request(
    case: str, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where the store is harvested, and another model, which has a price, would be asked first."""
    scorers, command, model = UNPRICED[case]
    with LlmServer(TokenReader()) as server:
        config = configure(project, server.url, "[budget]\nmax_usd = 5.0\n")
        text = Path(config).read_text()
        assert run(capsys, "explain", "-c", config, "--explainer", "patterns")[0] == 0
        before, _, judge = text.partition("[score]\n")
        judge = judge.replace('model = "m"', f'model = "{model}"', 1) if case == "judge" else judge
        Path(config).write_text(f"{before}[score]\n{scorers}\n{judge}")
        for dry in ((), ("--dry-run",)):
            code, _, err = run(capsys, *command, *dry, "-c", config)
            assert code == 2 and f"the price of model '{model}' is not known" in err, err
        (project / "tiny.duckdb").rename(project / "kept.duckdb")
        code, _, err = run(capsys, "run", "--dry-run", "-c", config)
        assert code == 2 and f"the price of model '{model}' is not known" in err, err
        assert not server.requests


def test_prompts_of_ones_own(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = project / "own"
    (folder / "explain").mkdir(parents=True)
    source = (Path(__file__).parents[1] / "prompts" / "explain" / "combined.md").read_text()
    (folder / "explain" / "combined.md").write_text(source.replace("At most 30 words", "One single word"))
    with LlmServer(TokenReader()) as server:
        config = configure(project, server.url)
        for prompts in ("own", "own", "nowhere"):
            code, _, err = run(capsys, "explain", "-c", config, "--limit", "1", "--prompts", str(project / prompts))
            assert code == (2 if prompts == "nowhere" else 0), err
        assert "no folder of prompts" in err
        code, _, err = run(capsys, "score", "-c", config, "--limit", "1", "--prompts", str(folder))
        assert code == 2 and "no prompt template" in err
        systems = [body["messages"][0]["content"] for body in server.requests if len(body["messages"]) > 1]
    assert len(systems) == 1 and "One single word" in systems[0]


def test_a_refused_key_stops_at_once_and_stays_secret(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    faults = dict.fromkeys(range(100), Fault("401"))
    with LlmServer(TokenReader(faults)) as server:
        config = configure(project, server.url)
        code, out, err = run(capsys, "explain", "-c", config, "--limit", "5", "-v")
    assert code == 3, err
    assert KEY not in out + err
    for file in project.rglob("*"):
        if file.is_file():
            assert KEY.encode() not in file.read_bytes(), file


def test_doctor_says_what_the_endpoint_returns(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with LlmServer(TokenReader()) as server:
        code, out, err = run(capsys, "doctor", "-c", configure(project, server.url))
    assert code == 0, out + err
    assert "ok    model" in out and "ok    corpus" in out and "ok    SAE tiny" in out
    assert "numbers" in out
    assert out.count("JSON schemas: not honoured") == 2, "explain and score"


def test_doctor_tells_an_endpoint_that_keeps_to_a_schema(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def brain(kind: str, body: dict[str, Any], attempt: int) -> BrainReply | Fault:
        return (
            BrainReply(text='{"answer": "blue"}') if "response_format" in body else TokenReader()(kind, body, attempt)
        )

    with LlmServer(brain) as server:
        code, out, err = run(capsys, "doctor", "-c", configure(project, server.url))
    assert code == 0, out + err
    assert out.count("JSON schemas: honoured") == 2


def test_a_scheduled_run_asks_only_for_what_changed(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """More features, another model, another prompt: new rows beside the old ones, and nothing else is asked."""
    own = project / "own"
    shutil.copytree(Path(__file__).parents[1] / "prompts", own)
    with LlmServer(TokenReader()) as server:
        config = Path(configure(project, server.url))

        def asked(*options: str) -> Counter[str]:
            before = len(server.requests)
            code, _, err = run(capsys, "run", "-c", str(config), *options)
            assert code == 0, err
            questions = Counter[str]()
            for body in server.requests[before:]:
                systems = [m["content"] for m in body.get("messages", []) if m["role"] == "system"]
                explains = systems and systems[0].startswith("You study")
                questions["label" if explains else "score" if systems else "probe"] += 1
            return questions

        first = asked("--limit", "2")
        assert first["label"] == 2 and first["score"] > 0
        assert not asked("--limit", "2")
        more = asked("--limit", "3")
        assert more["label"] == 1 and 0 < more["score"] < first["score"]

        plain = config.read_text()
        config.write_text(plain.replace('explainer = "combined"\nmodel = "m"', 'explainer = "combined"\nmodel = "n"'))
        another = asked("--limit", "3")
        assert another["label"] == 3, "a label by the new model for each feature"
        assert not asked("--limit", "3")

        prompt = own / "explain" / "combined.md"
        prompt.write_text(prompt.read_text().replace("several kinds of", "many kinds of"))
        reworded = asked("--limit", "3", "--prompts", str(own))
        assert reworded["label"] == 3
        assert not asked("--limit", "3", "--prompts", str(own))

    def value(sql: str) -> list[dict[str, Any]]:
        code, out, err = run(capsys, "query", sql, "--store", str(project / "tiny.duckdb"), "--format", "json")
        assert code == 0, err
        rows: list[dict[str, Any]] = json.loads(out)
        return rows

    made = value("SELECT model, count(*) AS n, count(DISTINCT template_sha256) AS prompts FROM explanations GROUP BY 1")
    assert {row["model"]: (row["n"], row["prompts"]) for row in made} == {"m": (3, 1), "n": (6, 2)}
    assert len(value("SELECT feature FROM labels WHERE label IS NOT NULL")) == 3
