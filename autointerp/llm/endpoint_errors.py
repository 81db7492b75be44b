"""What can become of one attempt, as exceptions of the LLM stage.

    AttemptError                 one attempt brought no usable reply; the retry layer decides what next
      RateLimitedError           429: everyone waits; not the request's fault, so not counted against it
      UnreachableError           no connection, so nothing was sent or billed: everyone waits; not counted either
      UnavailableError           5xx, reset, short body: this request waits, then tries again
      AttemptTimeoutError        no whole reply within llm.timeout; perhaps billed; twice at most per request
      BadReplyError              a 200 that is no completion; two more tries
      DeclinedError              final for this request: filtered, refused, ctx_too_long
    RequestRefusedError          the endpoint refuses requests of this shape (InputError, exit 2)
    EndpointCredentialsError     401, 403, 404 (CredentialsError, exit 3)

The first family never leaves the client: it ends as a Reply with a status. The rest end the run.
"""

from __future__ import annotations

from typing import Literal

from autointerp.errors import CredentialsError, InputError

DeclinedStatus = Literal["refused", "filtered", "ctx_too_long"]
RAW_KEPT = 2048
"""Characters kept of a reply that could not be read."""


class AttemptError(Exception):
    """One attempt that brought no usable reply."""

    counted = True
    """Whether it uses up one of the request's attempts."""
    perhaps_billed = False
    """Whether the endpoint may have generated (and charged for) a reply that never arrived."""

    def __init__(self, message: str, *, raw: str | None = None, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.raw = raw[:RAW_KEPT] if raw is not None else None
        self.retry_after = retry_after
        """Seconds the endpoint asks to wait, where it does."""


class RateLimitedError(AttemptError):
    counted = False


class UnreachableError(AttemptError):
    counted = False


class UnavailableError(AttemptError):
    overloaded = False
    """Whether the endpoint said that it has too much to do."""

    @property
    def perhaps_billed(self) -> bool:  # type: ignore[override]
        """A connection that broke tells nothing; an answer with an error status is not charged for."""
        return self.raw is None


class AttemptTimeoutError(AttemptError):
    perhaps_billed = True


class BadReplyError(AttemptError):
    perhaps_billed = True


class DeclinedError(AttemptError):
    """Sending the same request again cannot help."""

    def __init__(self, status: DeclinedStatus, message: str, *, raw: str | None = None) -> None:
        super().__init__(message, raw=raw)
        self.status = status


class RequestRefusedError(InputError):
    """The endpoint answered 400, 405, 415, 422 or a redirect: a parameter or the URL is wrong."""

    def __init__(self, message: str, http_status: int) -> None:
        super().__init__(message)
        self.http_status = http_status


class EndpointCredentialsError(CredentialsError):
    def __init__(self, message: str, http_status: int) -> None:
        super().__init__(message)
        self.http_status = http_status
