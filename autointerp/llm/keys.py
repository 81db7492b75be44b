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
"""Sent to a local server where no key is set: the protocol wants some value."""
_KEY = re.compile(r"[!#-\[\]-~]+")  # printable ASCII without space, quote and backslash
_SECRET_LENGTH = 8
"""Shorter keys ("none", "EMPTY") are placeholders; blotting them out would spoil ordinary text."""
_BLOT = "[api key]"
_AN_ESCAPE = re.compile(r"\\(?:/|u00[2-7])")
"""In JSON, of a character that a key may have; few replies have any."""


def is_local(base_url: str) -> bool:
    """Whether the host is this machine or on a private network, by its name or address alone (nothing is resolved)."""
    host = (urlsplit(base_url).hostname or "").lower()
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return "." not in host or host.endswith((".localhost", ".local", ".internal", ".lan"))
    return address.is_private or address.is_loopback


def api_key(endpoint: EndpointConfig, environ: Mapping[str, str] = os.environ) -> str:
    """The key for `endpoint`, stripped of surrounding white space.

    InputError: none is set and the endpoint is not a local one, or it has characters that no HTTP header takes.
    The key itself is in no message.
    """
    key = environ.get(endpoint.api_key_env, "").strip()
    if not key:
        if is_local(endpoint.base_url):
            return NO_KEY
        raise InputError(
            f"no API key: the environment variable {endpoint.api_key_env} is not set, and {endpoint.base_url} "
            f"needs one; set it, or name another variable with api_key_env"
        )
    if not _KEY.fullmatch(key):
        raise InputError(
            f"the API key in {endpoint.api_key_env} has characters that cannot be sent (spaces, line breaks, quotes "
            f"or non-ASCII ones); copy it again"
        )
    return key


class Redactor:
    """Blots one key out of text that others will see, also where JSON has written some of its characters as escapes
    (`\\/`, `\\u003c`): a reply that repeats it would hold it again once it is parsed."""

    def __init__(self, key: str) -> None:
        self._key = key if len(key) >= _SECRET_LENGTH else None
        either = (f"(?:{re.escape(c)}|{_escape(c)})" for c in key)
        self._escaped = re.compile("".join(either))

    def __call__(self, text: str) -> str:
        if self._key is None:
            return text
        text = text.replace(self._key, _BLOT)
        return self._escaped.sub(_BLOT, text) if _AN_ESCAPE.search(text) else text


def _escape(character: str) -> str:
    """A pattern of the ways in which JSON may write a printable ASCII character beside itself."""
    return rf"\\u00(?i:{ord(character):02x})" + (r"|\\/" if character == "/" else "")
