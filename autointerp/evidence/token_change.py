"""The evidence method `token_change`: what the model says more, and less, when a feature is clamped (Gur-Arieh et al.
2025).

logit_shifts.py says how the tokens are ranked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from autointerp.config import EvidenceConfig
from autointerp.evidence.method import Found, Study, fields_of
from autointerp.evidence.page_lines import LISTED, token_text
from autointerp.store.finding_tables import TOKEN_CHANGES, Row
from autointerp.store.findings import MethodRun

if TYPE_CHECKING:
    from torch import Tensor

    from autointerp.evidence.logit_shifts import Compared
    from autointerp.steer.steering import Steerer

_COLUMNS = ("feature", "sign", "rank", "token_id", "token", "delta", "z", "strength", "kl")
_WHY = {
    "kl_not_reached": "no clamp value moves the model by {} nats per token",
    "no_baseline": "too few random features move the model by {} nats per token to compare with",
}


class TokenChange:
    """Up to `words` rows of token_changes for every chosen feature and sign."""

    name = "token_change"
    table = TOKEN_CHANGES
    scope: Literal["feature"] = "feature"

    def settings(self, config: EvidenceConfig) -> Mapping[str, object]:
        return fields_of(config, "change_prompts", "change_tokens", "change_kl", "change_random", "words", "seed")

    def find(self, study: Study, features: Sequence[int]) -> Found:
        from autointerp.evidence.logit_shifts import token_change

        steerer, scales, ids = study.once(_steerer), study.once(_scales), study.once(_prompts)
        config = study.evidence
        found = token_change(
            steerer, features, scales, ids, config, study.text(), config.words, config.seed, list(scales),
            compared=study.once(_compared),
        )  # fmt: skip
        columns: dict[str, list[Any]] = {name: [] for name in _COLUMNS}
        runs = []
        for one in found:
            error = None if one.status == "ok" else _WHY[one.status].format(config.change_kl)
            runs.append(MethodRun(one.feature, one.status, error, one.n_forwards, one.n_tokens))
            for row in one.rows:
                shift = (row.sign, row.rank, row.token_id, row.token, row.delta, row.z)
                values = (one.feature, *shift, one.strength.value, one.strength.kl)
                for name, value in zip(_COLUMNS, values, strict=True):
                    columns[name].append(value)
        return Found(columns, runs)

    def page(self, rows: Sequence[Row]) -> list[str]:
        """says more   TypeError +9.12   Error +8.01  (by z; clamped to 120, KL 0.5)"""
        return [*_line("says more", rows, 1), *_line("says less", rows, -1)]


def _steerer(study: Study) -> Steerer:
    from autointerp.steer.steering import Steerer

    point, output = study.points()
    return Steerer(study.model(), study.weights(), point, output, study.excluded_ids(), study.batch_tokens)


def _compared(study: Study) -> Compared:
    from autointerp.evidence.logit_shifts import Compared

    return Compared()


def _scales(study: Study) -> dict[int, float]:
    return study.store.max_activations(study.dictionary_id)


def _prompts(study: Study) -> Tensor:
    from autointerp.measure.texts import explain_ids

    return explain_ids(study.units(), study.evidence.change_prompts, study.evidence.change_tokens)


def _line(title: str, rows: Sequence[Row], sign: int) -> list[str]:
    chosen = [row for row in rows if row["sign"] == sign]
    if not chosen:
        return []
    shown = "  ".join(f"{token_text(row['token'])} {row['delta']:+.2f}" for row in chosen[:LISTED])
    clamp = f"  (by z; clamped to {chosen[0]['strength']:.3g}, KL {chosen[0]['kl']:.2g})" if sign == 1 else ""
    return [f"{title}  {shown}{clamp}"]
