"""`doctor --endpoint` tells what servers of several kinds honour, and takes a tiny store through them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from support.batch_server import BatchServer
from support.commands import run
from support.known_words import World
from support.llm_server import BrainReply, Fault, Kind, LlmServer, prompt_text

from autointerp.errors import AutointerpError
from autointerp.stages.checked_endpoint import CheckedEndpoint
from autointerp.stages.checks import Lack
from autointerp.stages.endpoint_checks import TINY, endpoint_checks
from autointerp.terminal import Terminal

Spoil = Callable[[str, dict[str, Any], int], BrainReply | Fault | None]


def says_all(kind: str, body: dict[str, Any], attempt: int) -> BrainReply | Fault | None:
    """What a good server answers to the questions that are about the server itself."""
    if body["model"] != "test-model":
        return Fault("404")
    if kind == "chat" and len(prompt_text(body)) > 9000:
        return Fault("ctx_too_long")
    if kind == "chat" and "Count from" in prompt_text(body):
        return BrainReply("1\n2\n3\n4\n", finish_reason="length", input_tokens=20, output_tokens=body["max_tokens"])
    return BrainReply(f"town {body['seed']}") if "a town by the sea" in prompt_text(body) else None


def predicted(label: str, tokens: list[str]) -> list[int]:
    return [i % 5 for i in range(len(tokens))]


def brain(spoil: Spoil = says_all, logprobs: tuple[str, ...] = ("prompt", "generated")) -> World:
    return World(
        predict=predicted, logprobs=logprobs, spoil=spoil, schema=True, label=lambda body: "forms of a word",
        choose=lambda label, asked, pieces: len(str(pieces)) % 2 == 0,
    )  # fmt: skip


def lines_of(out: str) -> dict[str, tuple[str, str]]:
    """The lines by their check's name: (ok, none, FAIL or skip; what is said)."""
    found = {}
    for line in out.splitlines():
        state, _, rest = line.partition("  ")
        name, _, said = rest.strip().partition(": ")
        if state != "note":
            found[name] = (state, said)
    return found


def looked(url: str, **more: Any) -> dict[str, str]:
    """What each look before the round trip said; a Lack is marked by a minus, an error by an exclamation mark."""
    said = {}
    with endpoint_checks(CheckedEndpoint(url, **more), Terminal()) as checks:
        for check in checks:
            if check.name == TINY:  # without it there is no round trip
                continue
            try:
                found = check.look()
                said[check.name] = f"-{found}" if isinstance(found, Lack) else found
            except AutointerpError as error:
                said[check.name] = f"!{error}"
    return said


def test_a_server_that_can_do_everything_lacks_nothing() -> None:
    with BatchServer(brain()) as server:
        said = looked(server.url)
    assert len(said) == 12 and not [name for name, what in said.items() if what[0] in "-!"], said
    assert said["seed"].startswith("the same seed brought the same text") and "20 a token" in said["prompt logprobs"]


@pytest.mark.slow
def test_a_round_trip_by_every_way(capsys: pytest.CaptureFixture[str]) -> None:
    with BatchServer(brain()) as server:
        code, out, err = run(capsys, "doctor", "--endpoint", server.url, "--batch")
    lines = lines_of(out)
    assert code == 0, out + err
    assert {name for name, (state, _) in lines.items() if state != "ok"} == set(), out
    assert list(lines) == [
        "model", "chat", "JSON schemas", "seed", "prompt logprobs", "written logprobs", "finish reason", "usage",
        "unknown model", "embeddings", "batch API", "tiny store", "explain",
        "simulation by prompt_logprobs", "simulation by generated_logprobs", "simulation by numbers", "detection",
        "embedding", "batch", "long prompt",
    ]  # fmt: skip
    assert lines["explain"][1] == "2 label rows: 2 ok, such as 'forms of a word'"
    assert lines["batch"][1] == lines["explain"][1] and len(server.batches) == 1
    kinds = set(server.kinds)
    assert kinds == {"chat", "completions", "embeddings"}


def poor(kind: str, body: dict[str, Any], attempt: int) -> BrainReply | Fault | None:
    """A server that ignores what it does not know, and ends every reply alike."""
    if kind != "chat":
        return Fault("404")
    if body["model"] != "test-model" or len(prompt_text(body)) > 9000:
        return BrainReply("yes", input_tokens=3000, output_tokens=1)
    if "Count from" in prompt_text(body):
        return BrainReply("1\n2\n3\n4\n5\n6", finish_reason="stop", input_tokens=20, output_tokens=200)
    return BrainReply("blue" if "response_format" in body else "the same")


def test_what_a_poor_server_lacks_is_told_with_what_follows() -> None:
    with LlmServer(brain(poor)) as server:
        said = looked(server.url)
    assert said["chat"].startswith("answers") and said["model"].startswith("test-model")
    starts = {
        "JSON schemas": "-not honoured", "seed": "-three seeds brought the same text",
        "prompt logprobs": "-no completions", "written logprobs": "-no logprobs of written tokens",
        "finish reason": "-a reply that was cut off", "usage": "-200 tokens were written where max_tokens said 8",
        "unknown model": "-answered as if it had it", "long prompt": "-a prompt of 3,000 words (3,000 tokens)",
        "embeddings": "-none (", "batch API": "-http://127.0.0.1",
    }  # fmt: skip
    for name, start in starts.items():
        assert said[name].startswith(start), (name, said[name])
    assert "best_of_n" in said["seed"] and "max_tokens_field" in said["usage"] and "llm.batch off" in said["batch API"]


def refuses(kind: Kind | str, body: dict[str, Any], attempt: int) -> BrainReply | Fault | None:
    if "seed" in body or body["model"] != "test-model":
        return Fault("422")
    return Fault("500") if len(prompt_text(body)) > 9000 else None


def test_refusals_are_told_apart_from_silence() -> None:
    with LlmServer(brain(refuses, logprobs=())) as server:
        said = looked(server.url)
    assert said["seed"].startswith("-`seed` is refused") and "temperature alone" in said["seed"]
    assert said["unknown model"].startswith("refused with 422") and "exit code 2" in said["unknown model"]
    assert said["long prompt"].startswith("-a prompt of 3,000 words got no reply (")
    assert said["JSON schemas"].startswith("honoured")


def test_the_model_is_named_where_the_list_holds_several(capsys: pytest.CaptureFixture[str]) -> None:
    with LlmServer(brain(), model_names=("test-model", "other")) as server:
        assert looked(server.url)["model"].startswith("!the endpoint lists 2 models (test-model, other)")
        assert looked(server.url, model="test-model")["chat"].startswith("answers")
        assert looked(server.url, model="third")["model"].startswith("-third is not in the list")
        code, out, _ = run(capsys, "doctor", "--endpoint", server.url)
    assert code == 2 and lines_of(out)["chat"] == ("skip", "it needs the model")


def test_an_address_where_nobody_listens(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "doctor", "--endpoint", "http://127.0.0.1:9/v1")
    state, said = lines_of(out)["model"]
    assert code == 1 and state == "FAIL" and said.startswith("cannot reach http://127.0.0.1:9/v1")


def test_an_address_without_v1_is_told_what_is_missing() -> None:
    with LlmServer(brain()) as server:
        said = looked(server.url.removesuffix("/v1"))
    assert said["model"].startswith("!") and "base_url to end in /v1" in said["model"]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--model", "m"), "--model says how --endpoint URL is checked"),
        (("--batch",), "--batch says how --endpoint URL is checked"),
        (("--endpoint", "http://127.0.0.1:9/v1", "--no-calls"), "--no-calls forbids it"),
        (("--endpoint", "127.0.0.1:9"), "base_url must be an http(s) URL"),
        (("--endpoint", "https://llm.example.org/v1", "--model", "m"), "no API key"),
    ],
)
def test_flags_that_do_not_go_together(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, flags: tuple[str, ...], said: str
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    code, out, err = run(capsys, "doctor", *flags)
    assert code == 2 and said in out + err
