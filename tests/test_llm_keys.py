from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

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


@given(st.data())
def test_no_way_of_writing_json_hides_a_key(data: st.DataObject) -> None:
    known = st.characters(codec="ascii", categories=["L", "N", "P", "S"], exclude_characters='"\\')
    key = "sk-" + data.draw(st.text(known, min_size=8))
    ways = (
        lambda c: c, lambda c: f"\\u{ord(c):04x}", lambda c: f"\\u{ord(c):04X}", lambda c: "\\/" if c == "/" else c,
    )  # fmt: skip
    written = "".join(data.draw(st.sampled_from(ways))(c) for c in key)
    raw = f'{{"error": "it is {written}, \\u003cb\\u003e"}}'
    assert json.loads(raw)["error"] == f"it is {key}, <b>"
    assert json.loads(Redactor(key)(raw))["error"] == "it is [api key], <b>"
