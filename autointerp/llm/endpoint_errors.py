"""How one attempt can fail, as exceptions of the LLM stage.

    AttemptError                 one attempt brought no usable reply; the retry layer decides what happens next
      RateLimitedError           429: all calls wait; not counted as a failure of this request
      UnreachableError           no connection, so nothing was sent or billed: all calls wait; not counted either
      UnavailableError           5xx, reset, short body: this request waits and tries again; not counted where a full
                                 queue refuses it and lets others in
      AttemptTimeoutError        no complete reply within llm.timeout; may be billed; at most twice per request
      BadReplyError              a 200 that is not a completion; at most two more tries
      DeclinedError              final for this request: filtered, refused, ctx_too_long
    RequestRefusedError          the endpoint refuses requests of this shape (InputError, exit code 2)
    EndpointCredentialsError     401, 403, 404 (CredentialsError, exit code 3)

An AttemptError never leaves the client: it ends as a Reply with a status. The other two end the run.
"""

from __future__ import annotations

from typing import Literal

from autointerp.errors import CredentialsError, InputError

DeclinedStatus = Literal["refused", "filtered", "ctx_too_long"]
RAW_KEPT = 2048
"""How many characters are kept of a reply that could not be read."""


class AttemptError(Exception):
    """An attempt brought no usable reply."""

    counted = True
    """Whether this failure uses up one of the request's attempts."""
    perhaps_billed = False
    """Whether the endpoint may have generated (and charged for) a reply that never arrived."""

    def __init__(self, message: str, *, raw: str | None = None, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.raw = raw[:RAW_KEPT] if raw is not None else None
        self.retry_after = retry_after
        """Seconds that the endpoint asks to wait; None where it does not ask."""


class RateLimitedError(AttemptError):
    counted = False


class UnreachableError(AttemptError):
    counted = False


class UnavailableError(AttemptError):
    overloaded = False
    """Whether the endpoint said that it is overloaded."""
    is_busy = False
    """Whether it also said, in words, that it has as many calls at work as it takes. A gateway whose server is away
    answers 503 too, but does not say that."""
    http_status: int | None = None
    """The status of its answer; None where the connection broke."""

    @property
    def perhaps_billed(self) -> bool:  # type: ignore[override]
        """True for a broken connection, which may hide a reply; false for an answer with an error status."""
        return self.raw is None


class AttemptTimeoutError(AttemptError):
    perhaps_billed = True


class BadReplyError(AttemptError):
    perhaps_billed = True


class DeclinedError(AttemptError):
    """The endpoint declined this request, and sending it again cannot help."""

    def __init__(self, status: DeclinedStatus, message: str, *, raw: str | None = None) -> None:
        super().__init__(message, raw=raw)
        self.status = status


class RequestRefusedError(InputError):
    """The endpoint answered 400, 405, 415, 422, a redirect, a 500 that names a field of the request, or several 500s to
    a field that it may not support: a parameter or the URL is wrong."""

    def __init__(self, message: str, http_status: int) -> None:
        super().__init__(message)
        self.http_status = http_status


class EndpointCredentialsError(CredentialsError):
    def __init__(self, message: str, http_status: int) -> None:
        super().__init__(message)
        self.http_status = http_status
