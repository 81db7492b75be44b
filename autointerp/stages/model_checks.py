"""What can be known of the model, the text and the SAEs before a pass over the text begins."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from autointerp.config import SaeConfig
from autointerp.errors import InputError
from autointerp.evidence.jacobian_lens import describe_lens
from autointerp.model.forward_speed import bfloat16_gain
from autointerp.stages.checks import Check
from autointerp.stages.fit_check import described_fit
from autointerp.stages.session import Session
from autointerp.stages.training_cache import describe_cache
from autointerp.store.store import Store

NEXT_TOKEN_METHODS = ("token_change", "jacobian_lens")
NEXT_TOKEN_SCORERS = ("surprisal", "output", "intervention")
"""They steer the model, follow it to its next token, or ask it how likely a text is."""
MUCH_FASTER = 2.0
"""The gain of bfloat16 from which on doctor advises it."""


def model_checks(session: Session, saes: Sequence[SaeConfig], store: Store | None = None) -> list[Check]:
    """The checks of a command that reads the text with the model for `saes`, whose dictionaries `store` may hold. Those
    that the session was given come first: they need no model."""

    def fits(sae: SaeConfig) -> Callable[[], str]:
        return lambda: session.describe_sae(sae, store)

    odd_text = "pieces and windows that do not fit the model end a pass in its midst"
    misfit = "one of another model or hookpoint, or of a name that is taken, ends a run or makes wrong features"
    return [
        *session.more_checks,
        Check("corpus", "text that cannot be read ends a run once the model is loaded", session.describe_source),
        Check("model", "its batches may change what is read, or it does not load", session.describe_model),
        Check("text", odd_text, session.describe_corpus, after=("corpus", "model")),
        Check("next token", "a run ends after its harvest", lambda: _next_token(session), after=("model",)),
        *(Check(f"SAE {sae.dictionary}", misfit, fits(sae), after=("model",)) for sae in saes),
        *(_fit_check(session, sae, store) for sae in saes if sae.path),
        *(_lens_check(session, sae) for sae in saes if "jacobian_lens" in session.methods),
        *([] if session.config.train.cache is None else [_cache_check(session, saes)]),
    ]


def _fit_check(session: Session, sae: SaeConfig, store: Store | None) -> Check:
    why = "one that is read otherwise than it was trained gives wrong features, and all that follows is about them"
    look = partial(described_fit, session, sae, store)
    return Check(f"reading of {sae.dictionary}", why, look, after=("corpus", "model", "text", f"SAE {sae.dictionary}"))


def _lens_check(session: Session, sae: SaeConfig) -> Check:
    why = "a lens of another model, or without the hookpoint, ends a run after its harvest"

    def described() -> str:
        point, output = session.points(sae)
        return describe_lens(session.model(), session.config.evidence, output or point)

    return Check(f"Jacobian lens of {sae.dictionary}", why, described, after=("next token",))


def _cache_check(session: Session, saes: Sequence[SaeConfig]) -> Check:
    why = "a disk that fills up, or a folder that cannot be written, ends a run in the midst of its pass"
    return Check("activation cache", why, lambda: describe_cache(session, saes), after=("text",))


def dtype_check(session: Session) -> Check:
    """Doctor's look at whether this CPU would run the model much faster in another dtype. It never fails."""
    why = "a CPU that computes bfloat16 several times as fast may spend most of a harvest for nothing"
    return Check("dtype", why, lambda: _described_dtype(session), after=("model",))


def _described_dtype(session: Session) -> str:
    loaded = session.model()
    dtype = str(loaded.dtype).removeprefix("torch.")
    if loaded.device.type != "cpu" or dtype != "float32" or session.config.model.quantization != "none":
        return f"{dtype} on {loaded.device}"
    gain = bfloat16_gain(loaded.model)
    if gain is None:
        return "float32; this model has no matrices to compare bfloat16 on"
    if gain < MUCH_FASTER:
        return f"float32; bfloat16 would not pay here (its matrix products are {gain:.1f} times as fast)"
    return (
        f"float32, and this CPU computes matrix products of the model's sizes {gain:.1f} times as fast in bfloat16: "
        'consider model.dtype = "bfloat16". Activations then differ by some per cent, and a dictionary is trained and '
        "harvested in the same dtype"
    )


def _next_token(session: Session) -> str:
    config, loaded = session.config, session.model()
    asked = [f"the evidence method {name}" for name in NEXT_TOKEN_METHODS if name in session.methods]
    if "pruning" in session.methods and config.evidence.substitutes:
        asked.append(f"evidence.substitutes = {config.evidence.substitutes}")
    for name in NEXT_TOKEN_SCORERS:
        by_other = name == "surprisal" and config.score.language_model not in ("", None, config.model.name)
        if name in config.score.scorers and not by_other:
            asked.append(f"the scorer {name}")
    if not loaded.looks_ahead:
        return "the model predicts one, and is asked for it" if asked else "nothing asks for one"
    if asked:
        raise InputError(
            f"model {loaded.name} reads the tokens on both sides, so it predicts no next token, and {', '.join(asked)} "
            "asks for one; leave it out, or use a causal model"
        )
    return "the model predicts none, and nothing asks for one; `evaluate` leaves out the loss"
