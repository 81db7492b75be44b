"""The stage that checks a store against its model and its dictionary."""

from __future__ import annotations

from collections.abc import Sequence

from autointerp.config import SaeConfig
from autointerp.errors import AutointerpError, InputError
from autointerp.harvest.recompute import recompute
from autointerp.stages.session import Session, matching_sae
from autointerp.store.contexts import stored_contexts
from autointerp.store.store import Store


def verify(session: Session, store: Store, sae: SaeConfig, sample: int, leaks: Sequence[str] = ()) -> None:
    """Check the store against model and SAE. `leaks` are the laws that the leakage check found broken, which are
    reported with the rest. Raises MismatchError (exit 8) if store, model and SAE do not belong together, and
    AutointerpError (exit 1) if a recomputed activation differs beyond the tolerance, or a law of the store is
    broken."""
    terminal, (row, weights), loaded = session.terminal, matching_sae(session, store, sae), session.model()
    with terminal.working(f"{row.name}: checking the rows"):
        broken = [*store.check(), *leaks]
    excluded = session.token_text().excluded_ids(session.config.corpus.exclude_tokens)
    contexts = stored_contexts(store, row.dictionary_id, sample)
    if not contexts:
        raise InputError(f"{row.name} has no stored contexts to verify; run `autointerp harvest` first")
    point, batch_tokens = session.point(sae.hookpoint), session.config.model.batch_tokens
    with terminal.progress(f"{row.name}: recomputing", None, "windows") as update:
        deviation = recompute(loaded, point, weights, contexts, batch_tokens, excluded, update)
    terminal.result(
        f"{row.name}: recomputed {deviation.n_contexts} contexts ({deviation.n_activations:,} tokens): largest "
        f"deviation {deviation.absolute:.2g}, {deviation.relative:.2g} of the peak (tolerance {deviation.tolerance:g})"
    )
    if not deviation.is_ok:
        raise AutointerpError(
            f"{row.name}: stored activations differ from the model's by {deviation.relative:.2g} of the peak, beyond "
            f"{deviation.tolerance:g}; the worst is context {deviation.worst_context}. The store was changed, or "
            "model and SAE are not those it was made with"
        )
    if broken:
        raise AutointerpError(f"{store.path}: {'; '.join(broken)}")
    terminal.result(f"{row.name}: splits are disjoint, rows agree with the ledger")
