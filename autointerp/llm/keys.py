"""The API key: read from the environment, checked, and kept out of everything that is written or shown."""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Mapping
from urllib.parse import urlsplit

from autointerp.config import EndpointConfig
from autointerp.errors import InputError

NO_KEY = "none"
"""Sent to a local server when no key is set, since the protocol needs some value."""
_KEY = re.compile(r"[!#-\[\]-~]+")  # printable ASCII without space, quote and backslash
_SECRET_LENGTH = 8
"""Shorter keys ("none", "EMPTY") are placeholders. Removing them would spoil ordinary text."""
_BLOT = "[api key]"
_AN_ESCAPE = re.compile(r"\\(?:/|u00[2-7])")
"""A JSON escape of a character that a key may hold. Few replies contain one."""


def is_local(base_url: str) -> bool:
    """Whether the host is this machine or on a private network, judged by its name or address without resolving it."""
    host = (urlsplit(base_url).hostname or "").lower()
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return "." not in host or host.endswith((".localhost", ".local", ".internal", ".lan"))
    return address.is_private or address.is_loopback


def is_openai(base_url: str) -> bool:
    """Whether this is OpenAI's own API, also one of its regions."""
    host = (urlsplit(base_url).hostname or "").lower()
    return host == "api.openai.com" or host.endswith(".api.openai.com")


def api_key(endpoint: EndpointConfig, environ: Mapping[str, str] = os.environ) -> str:
    """The key for `endpoint`, without surrounding white space.

    Raises InputError when no key is set and the endpoint is not local, or when the key has characters that no HTTP
    header can hold. No message contains the key.
    """
    key = environ.get(endpoint.api_key_env, "").strip()
    if not key:
        if is_local(endpoint.base_url):
            return NO_KEY
        raise InputError(
            f"no API key: the environment variable {endpoint.api_key_env} is not set, and {endpoint.address} "
            f"needs one; set it, or name another variable with api_key_env"
        )
    if not _KEY.fullmatch(key):
        raise InputError(
            f"the API key in {endpoint.api_key_env} has characters that cannot be sent (spaces, line breaks, quotes "
            f"or non-ASCII ones); copy it again"
        )
    return key


class Redactor:
    """Removes secrets (the key, and parts of an address) from text that others will see, also where JSON has escaped
    some of their characters (`\\/`, `\\u003c`): a secret would otherwise be back once the reply is parsed."""

    def __init__(self, *secrets: str) -> None:
        self._secrets = [secret for secret in secrets if len(secret) >= _SECRET_LENGTH]
        ways = ("".join(f"(?:{re.escape(c)}|{_escape(c)})" for c in secret) for secret in self._secrets)
        self._escaped = re.compile("|".join(ways))

    def __call__(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, _BLOT)
        return self._escaped.sub(_BLOT, text) if self._secrets and _AN_ESCAPE.search(text) else text


def _escape(character: str) -> str:
    """A pattern for the escapes by which JSON may write a printable ASCII character."""
    return rf"\\u00(?i:{ord(character):02x})" + (r"|\\/" if character == "/" else "")
