from __future__ import annotations

import pytest

from autointerp.config import EndpointConfig
from autointerp.errors import InputError
from autointerp.llm.keys import NO_KEY, Redactor, api_key, is_local


@pytest.mark.parametrize(
    ("url", "local"),
    [
        ("http://127.0.0.1:8000/v1", True),
        ("http://[::1]:8000/v1", True),
        ("http://localhost:11434/v1", True),
        ("http://10.1.2.3/v1", True),
        ("http://gpu-node/v1", True),
        ("http://box.local/v1", True),
        ("https://api.openai.com/v1", False),
        ("https://8.8.8.8/v1", False),
        ("https://10.1.2.3.example.com/v1", False),
    ],
)
def test_is_local(url: str, local: bool) -> None:
    assert is_local(url) is local


def test_key_from_the_environment() -> None:
    public = EndpointConfig(model="m", api_key_env="MY_KEY")
    assert api_key(public, {"MY_KEY": " sk-abc\n"}) == "sk-abc"
    for environ in ({}, {"MY_KEY": "  "}):
        with pytest.raises(InputError, match="MY_KEY is not set") as caught:
            api_key(public, environ)
        assert caught.value.exit_code == 2
    assert api_key(EndpointConfig(base_url="http://127.0.0.1:1/v1", api_key_env="MY_KEY"), {}) == NO_KEY
    for bad in ("sk-a b", "sk-\u00e9", 'sk-"x', "sk-a\nb"):
        with pytest.raises(InputError, match="MY_KEY") as caught:
            api_key(public, {"MY_KEY": bad})
        assert bad not in str(caught.value)


def test_redactor() -> None:
    assert Redactor("sk-12345678")("key sk-12345678 and sk-1") == "key [api key] and sk-1"
    assert Redactor("none")("none of it") == "none of it"
