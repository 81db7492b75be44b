"""The evidence method `jacobian_lens`: the tokens that a feature promotes and suppresses by way of the blocks that come
after it.

    logits_i = U (N(J d_i) - N(0)),  minus their mean over the vocabulary

d_i is the feature's decoder row and J the mean Jacobian from where it is written to the end of the residual stream
(Gurnee, Sofroniew, Lindsey et al. 2026; see model/mean_jacobian.py), N the final norm and U the unembedding, as in the
vocabulary projection, which leaves J out. For a dictionary of the last block the two are the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from autointerp.config import EvidenceConfig
from autointerp.deadline import Deadline
from autointerp.errors import InputError, NoProjection
from autointerp.evidence.method import PROJECTED, Found, Study, fields_of, no_output_space
from autointerp.evidence.page_lines import LISTED, token_text
from autointerp.harvest.sealed_files import file_hashes
from autointerp.store.finding_tables import LENS_TOKENS, Row

if TYPE_CHECKING:
    from torch import Tensor

    from autointerp.model.hooks import Hookpoint
    from autointerp.model.load import LoadedModel

LENS_FOLDER = ".jacobian_lens"
"""The folder inside the store's work folder; no dictionary's folder begins with a dot."""

SEVERAL = "the dictionary writes several hookpoints, and a Jacobian lens begins at one"
SECOND = "the dictionary writes in the second model, and the Jacobian lens is one of the first"


class JacobianLens:
    """Up to `words` rows of lens_tokens for every feature and sign."""

    name = "jacobian_lens"
    table = LENS_TOKENS
    scope: Literal["dictionary"] = "dictionary"

    def settings(self, config: EvidenceConfig) -> Mapping[str, object]:
        if config.lens_file:
            return {"file": lens_file_sha256(config.lens_file), **fields_of(config, "words"), **PROJECTED}
        seed = ("seed",) if config.lens_effects == "same" else ()
        return {
            **fields_of(config, "lens_prompts", "lens_tokens", "lens_effects", "lens_every", "words", *seed),
            **PROJECTED,
        }

    def find(self, study: Study, features: Sequence[int]) -> Found:
        from autointerp.harvest.vocab_projection import vocab_projection
        from autointerp.model.logit_path import find_logit_path, find_stream_end
        from autointerp.model.padding import require_next_token

        loaded, sae = study.model(), study.weights()
        require_next_token(loaded, "a Jacobian lens")
        try:
            end = find_stream_end(loaded)
            path = find_logit_path(loaded, end)
            lens, n_prompts, n_tokens = _lens(study, end)
        except NoProjection as reason:
            return no_output_space(features, reason)
        through = lens.to(sae.W_dec.device)
        found = vocab_projection(path, sae, study.text(), study.evidence.words, study.counting, through)
        columns = {
            "feature": found.feature.tolist(), "sign": found.sign.tolist(), "rank": found.rank.tolist(),
            "token_id": found.token_id.tolist(), "token": found.token, "logit": found.logit.tolist(),
        }  # fmt: skip
        return Found(columns, n_forwards=n_prompts, n_tokens=n_tokens)

    def page(self, rows: Sequence[Row]) -> list[str]:
        """lens promotes  TypeError +9.12   Error +8.01"""
        return [*_line("lens promotes", rows, 1), *_line("lens suppresses", rows, -1)]


def describe_lens(loaded: LoadedModel, config: EvidenceConfig, written: Hookpoint) -> str:
    """Says which lens `jacobian_lens` will use. Raises what reading the file raises."""
    from autointerp.evidence.lens_file import read_lens
    from autointerp.model.hooks import hidden_size_at
    from autointerp.model.padding import require_next_token

    require_next_token(loaded, "a Jacobian lens")
    if written.others:
        return f"none: {SEVERAL}"
    if written.of_other:
        return f"none: {SECOND}"
    width = hidden_size_at(loaded, written)
    if not config.lens_file:
        return f"{config.lens_prompts:,} prompts, with {-(-width // config.lens_every):,} backward passes each"
    read_lens(Path(config.lens_file), loaded, written, width)
    return f"{config.lens_file} has one of {written}"


def lens_file_sha256(name: str) -> str:
    path = Path(name)
    try:
        found = path.stat()
    except OSError as error:
        raise InputError(f"evidence.lens_file = {name!r} cannot be read: {error.strerror or error}") from None
    if not path.is_file():
        raise InputError(f"evidence.lens_file = {name!r} is not a file; name the .pt itself")
    return _sha256(path, found.st_size, found.st_mtime_ns)


@lru_cache(maxsize=8)
def _sha256(path: Path, size: int, changed: int) -> str:
    """Of the file as it was at that size and time: a lens has gigabytes, and settings are asked for often."""
    return file_hashes([path])[path.name]


def _lens(study: Study, end: Hookpoint) -> tuple[Tensor, int, int]:
    """(the Jacobian from where the SAE writes to `end`, prompts that were read for it now, their tokens)."""
    from autointerp.evidence.lens_file import read_lens
    from autointerp.evidence.lens_fit import LensFit, prompts_of

    config, loaded = study.evidence, study.model()
    read, written = study.points()
    written = written or read
    if written.others:
        raise NoProjection(SEVERAL)
    if written.of_other:
        raise NoProjection(SECOND)
    if config.lens_file:
        return read_lens(Path(config.lens_file), loaded, written, study.weights().d_out), 0, 0
    length = min(config.lens_tokens, study.config.corpus.context_length)
    prompts = prompts_of(study.windows(), config.lens_prompts, length)
    model = study.config.model
    identity = {
        "model": None if loaded.revision.startswith("local:") else loaded.name, "revision": loaded.revision,
        "quantization": model.quantization, "random_weights": model.random_weights,
        "keep_embeddings": model.keep_embeddings,
    }  # fmt: skip
    fit = LensFit(
        loaded, written, end, prompts, config.lens_effects, config.seed, config.lens_every, study.batch_tokens, identity
    )
    folder = Path(study.config.store.path).with_suffix(".work") / LENS_FOLDER
    lens, n_read = fit.run(folder, study.counting, Deadline.of(study.config.budget.deadline))
    return lens, n_read, n_read * length


def _line(title: str, rows: Sequence[Row], sign: int) -> list[str]:
    chosen = [row for row in rows if row["sign"] == sign]
    shown = "  ".join(f"{token_text(row['token'])} {row['logit']:+.2f}" for row in chosen[:LISTED])
    return [f"{title}  {shown}"] if chosen else []
