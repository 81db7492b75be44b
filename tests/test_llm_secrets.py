"""What the environment holds for OpenAI goes to OpenAI only, and a secret in an address is neither stored nor shown."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from support.batch_client import Asked, texts
from support.batch_server import BatchServer
from support.llm_helpers import ask_all, chat, client_for, echo
from support.llm_server import BrainReply, Fault, LlmServer
from support.store_fixtures import add_dictionary

from autointerp.config import Config, EndpointConfig, ExplainConfig, LlmConfig, secret_parts
from autointerp.config_file import as_dict
from autointerp.errors import AutointerpError, InputError
from autointerp.llm.keys import Redactor, api_key, is_openai
from autointerp.llm.transport import Transport
from autointerp.store import Store

OF_OPENAI = {
    "OPENAI_ORG_ID": "org-secret", "OPENAI_PROJECT_ID": "proj-secret",
    "OPENAI_CUSTOM_HEADERS": "X-Secret: hidden\nAuthorization: Bearer other",
}  # fmt: skip


@pytest.fixture
def openai_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in OF_OPENAI.items():
        monkeypatch.setenv(name, value)


@pytest.mark.usefixtures("openai_settings")
def test_other_endpoints_get_nothing_of_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TEST_LLM_KEY", "sk-our-own-key")
    with LlmServer(echo()) as server:
        ask_all(client_for(server), chat("a"))
    with Store.open(tmp_path / "x.duckdb", create=True) as store, BatchServer(echo()) as batches:
        add_dictionary(store, "d")
        assert Asked(batches, store, *texts(1)).ok  # files and batches are asked for by other ways of the SDK
    for headers in (*server.headers, *batches.all_headers):
        assert headers["Authorization"] == "Bearer sk-our-own-key"
        assert headers["Accept-Encoding"] == "identity"
        told = json.dumps(headers).lower()
        assert not any(word in told for word in ("secret", "hidden", "other", "openai-organization", "openai-project"))
    assert len(batches.all_headers) >= 4


@pytest.mark.usefixtures("openai_settings")
@pytest.mark.parametrize("url", ["https://api.openai.com/v1", "https://eu.api.openai.com/v1"])
def test_openai_gets_what_is_meant_for_it(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-our-own-key")

    async def sent() -> dict[str, object]:
        async with Transport(EndpointConfig(model="m", base_url=url), LlmConfig()) as transport:
            return dict(transport._client.default_headers)

    headers = asyncio.run(sent())
    assert headers["OpenAI-Organization"] == "org-secret" and headers["OpenAI-Project"] == "proj-secret"
    assert headers["X-Secret"] == "hidden"


@pytest.mark.parametrize(
    "url",
    ["https://api.openai.com.evil.test/v1", "https://openai.com/v1", "https://evilapi.openai.com/v1",
     "https://x.test/api.openai.com/v1", "http://127.0.0.1:8000/v1"],
)  # fmt: skip
def test_what_is_not_openai(url: str) -> None:
    assert not is_openai(url)


# --- a secret in the address ----------------------------------------------------------------------------------------

SECRET = "gw_9f8e7d6c5b4a39281706f5e4d3c2b1a0"


@pytest.mark.parametrize(
    ("path", "hidden"),
    [
        ("v1", []),
        ("openai/deployments/gpt-4o-mini-2024-07-18", []),
        ("models/meta-llama/Llama-3.1-8B-Instruct/v1", []),
        ("compatible-mode/v1", []),
        (f"{SECRET}/v1", [SECRET]),
        (f"v1;key={SECRET}", [SECRET]),
        ("sk-short/v1", ["sk-short"]),
        ("123e4567-e89b-12d3-a456-426614174000/v1", ["123e4567-e89b-12d3-a456-426614174000"]),
    ],
)
def test_which_parts_of_a_path_may_be_secrets(path: str, hidden: list[str]) -> None:
    url = f"https://gateway.test/{path}"
    assert secret_parts(url) == hidden
    shown = EndpointConfig(model="m", base_url=url).address
    assert shown.count("[hidden ") == len(hidden) and (shown == url) == (not hidden)
    assert not any(secret in shown for secret in hidden) and shown.startswith("https://gateway.test/")


def test_two_addresses_stay_two() -> None:
    one, other = (EndpointConfig(base_url=f"https://x.test/{SECRET}{n}/v1").address for n in (1, 2))
    assert one != other and one == EndpointConfig(base_url=f"https://x.test/{SECRET}1/v1").address


def test_a_secret_in_the_address_is_in_no_message(capsys: pytest.CaptureFixture[str]) -> None:
    def brain(kind: str, body: dict[str, object], attempt: int) -> BrainReply | Fault:
        return Fault("404")

    with LlmServer(brain) as server:
        base = server.url.replace("/v1", f"/{SECRET}/v1")
        client = client_for(base)
        with pytest.raises(AutointerpError) as caught:
            ask_all(client, chat("a"))
        assert SECRET not in f"{caught.value}{caught.value!r}{client!r}" and "[hidden" in str(caught.value)
    with pytest.raises(AutointerpError) as unreachable:
        ask_all(client_for(f"http://127.0.0.1:1/{SECRET}/v1"), chat("a"))
    assert SECRET not in str(unreachable.value) and "[hidden" in str(unreachable.value)
    with pytest.raises(InputError) as keyless:
        api_key(EndpointConfig(base_url=f"https://x.test/{SECRET}/v1", api_key_env="NO_SUCH_KEY"), {})
    assert SECRET not in str(keyless.value)
    assert Redactor("sk-12345678", SECRET)(f"GET /{SECRET}/v1 sk-12345678") == "GET /[api key]/v1 [api key]"
    assert SECRET not in capsys.readouterr().err


def test_a_secret_in_the_address_is_not_stored(tmp_path: Path) -> None:
    path = tmp_path / "x.duckdb"
    config = Config(explain=ExplainConfig(model="m", base_url=f"http://127.0.0.1:1/{SECRET}/v1"))
    assert as_dict(config)["explain"]["base_url"] == config.explain.address
    with Store.open(path, create=True) as store:
        add_dictionary(store, "d")
        store.begin_run("explain", as_dict(config), {})
        with BatchServer(echo(), held=True, prefix=f"/{SECRET}") as server:
            Asked(server, store, *texts(2), until=lambda: bool(server.batches))
            kept = store.rows("SELECT base_url FROM batches")
            server.held = False
            assert len(Asked(server, store, *texts(2)).ok) == 2
            assert server.sizes == [2], "the batch was found again under the address that the store keeps"
    assert kept == [(EndpointConfig(base_url=server.url).address,)] and SECRET in server.url
    assert not [file for file in tmp_path.iterdir() if SECRET.encode() in file.read_bytes()]


def test_a_batch_that_an_older_version_wrote_down_by_its_whole_address_is_found(tmp_path: Path) -> None:
    with (
        Store.open(tmp_path / "x.duckdb", create=True) as store,
        BatchServer(echo(), held=True, prefix=f"/{SECRET}") as server,
    ):
        add_dictionary(store, "d")
        Asked(server, store, *texts(2), until=lambda: bool(store.rows("FROM batches WHERE batch_id IS NOT NULL")))
        with store.transaction() as con:
            con.execute("UPDATE batches SET base_url = ?", [server.url])
        server.held = False
        assert len(Asked(server, store, *texts(2)).ok) == 2 and server.sizes == [2]
