"""The check whether a dictionary that was made elsewhere is read as it was trained.

Before its first harvest or evaluation, its L0 and FVU are measured on the first tokens of the corpus and compared with
what its files declare (evaluate/reading_trials.py). Where they are far off, nothing goes on, and the message shows what
was measured under each plausible reading. Nothing is corrected in silence: a reading is chosen by `reading` in the
[[sae]] table. A dictionary that the store holds already goes on, with a warning.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from autointerp.config import CorpusConfig, SaeConfig
from autointerp.corpus.windows import bos_prefix
from autointerp.errors import InputError, MismatchError
from autointerp.evaluate.reading_trials import (
    Figures,
    Sample,
    Trial,
    best,
    fits,
    fvu_fits,
    is_alarming,
    l0_fits,
    measure,
    take_sample,
    tried,
)
from autointerp.model.norm_gain import norm_gain
from autointerp.sae.formats import detect, load_sae
from autointerp.sae.formats.declared import Declared, declared
from autointerp.sae.formats.hooknames import from_base_model_path, wants_bos
from autointerp.sae.readings import with_reading
from autointerp.sae.sae import Sae
from autointerp.sae_reading import AS_READ, Reading, meaning, parse_reading
from autointerp.stages.session import Session, sae_digest, sha256_without_limit
from autointerp.store.store import Store

_COLUMNS = ("reading", "L0", "FVU", "fits")
_FOUND: WeakKeyDictionary[Session, dict[SaeConfig, Fit]] = WeakKeyDictionary()
"""What was measured in this session: several stages of one command ask for it."""


@dataclass(frozen=True, slots=True)
class Fit:
    """What one dictionary declares and does."""

    name: str
    folder: Path
    hookpoint: str
    n_tokens: int
    declared: Declared
    reading: Reading | None
    """The configured reading; None where none is."""
    figures: Figures
    """Measured as configured."""
    trials: Sequence[Trial] = ()
    """The plausible readings, where they were tried."""

    @property
    def is_good(self) -> bool:
        return fits(self.declared, self.figures)

    @property
    def stops(self) -> bool:
        """Whether nobody should go on with it."""
        return is_alarming(self.declared, self.figures) and self.reading != Reading()

    @property
    def line(self) -> str:
        """What was found, as one line."""
        measured = f"L0 {self.figures.l0:.4g} and FVU {self.figures.fvu:.3g} on {self.n_tokens:,} tokens"
        how = "" if self.reading is None else f', reading = "{self.reading}"'
        return f"{measured}{how}; its files declare {self.declared}"

    @property
    def rows(self) -> list[tuple[str, str, str, str]]:
        """The trials as a table."""
        return [(one.name, f"{one.figures.l0:.4g}", f"{one.figures.fvu:.3g}", _yes(one.fits)) for one in self.trials]

    @property
    def advice(self) -> str:
        """What to do about a dictionary that does not fit."""
        found = best(self.declared, self.trials)
        accept = (
            f'If the file is right as it is, because the text is in another language or of another kind than what it '
            f'was trained on, set reading = "{AS_READ}" in its [[sae]] table.'
        )  # fmt: skip
        if found is None:
            return (
                "None of these readings fits: the hookpoint, the layer or the model is probably not the one that it "
                f"was trained on. {accept}"
            )
        settings = [f'set reading = "{found.reading}" in its [[sae]] table'] if found.reading.n_changes else []
        settings += [f"set {found.text}"] if found.text else []
        settings = settings or ["leave out its reading"]
        meant = f" ({meaning(found.reading)})" if found.reading.n_changes else ""
        others = sum(one.fits for one in self.trials) - 1
        also = f" {others} other(s) of these fit too, less well." if others else ""
        return f"What fits best is {found.name}{meant}: {' and '.join(settings)}.{also} {accept}"

    @property
    def message(self) -> str:
        """What does not fit, what was measured under each reading, and what to do."""
        wrong = [] if l0_fits(self.declared, self.figures.l0) else ["its L0 is not the declared one"]
        if not fvu_fits(self.declared, self.figures.fvu):
            wrong.append(f"it leaves {self.figures.fvu:.2f} of the variance of {self.hookpoint} unexplained")
        return (
            f"{self.name}: the dictionary at {self.folder} is probably not read as it was trained: "
            f"{' and '.join(wrong)} ({self.line})\n{_as_text([_COLUMNS, *self.rows])}\n{self.advice}"
        )


def described_fit(session: Session, sae: SaeConfig, store: Store | None) -> str:
    """What the dictionary declares and does, as one line. Raises MismatchError where these are far apart, unless
    `store` holds the dictionary; then, and where they differ less, it warns."""
    fit = fit_of(session, sae)
    if fit.is_good:
        return fit.line
    if fit.reading == Reading():
        return f'{fit.line}; accepted by reading = "{AS_READ}"'
    own = (sae_digest(session, sae), sha256_without_limit(session, sae))
    held = store is not None and any(
        row.name == sae.dictionary and row.sae_sha256 in own for row in store.dictionaries()
    )
    if fit.stops and not held:
        raise MismatchError(fit.message)
    session.terminal.warn(fit.message)
    return f"{fit.line}; {'the store holds it already' if fit.stops else 'that is more than was declared'}"


def fit_of(session: Session, sae: SaeConfig, try_all: bool = False) -> Fit:
    """What `sae` declares and does. Other readings are tried where it does not fit, or where `try_all`."""
    known = _FOUND.setdefault(session, {})
    if sae in known and (known[sae].trials or not try_all):
        return known[sae]
    with session.terminal.working(f"{sae.dictionary}: trying the SAE on the first tokens"):
        known[sae] = _measured(session, sae, try_all)
    return known[sae]


def _measured(session: Session, sae: SaeConfig, try_all: bool) -> Fit:
    loaded, point, folder = session.model(), session.points(sae)[0], session.sae_folder(sae)
    base = load_sae(folder, sae.format).to(loaded.device)
    told, reading = declared(base), parse_reading(sae.reading)
    gain = norm_gain(loaded, point)
    configured = base if reading is None else with_reading(base, reading, gain)
    sample = _sample(session, sae, session.config.corpus)
    fit = Fit(
        sae.dictionary, folder, str(point), len(sample.x), told, reading, measure(configured, sample)
    )  # fmt: skip
    if (fit.is_good or reading == Reading()) and not try_all:
        return fit
    samples = {"": sample, **_other_bos(session, sae, base)}
    trials = list(tried(base, told, samples, gain))
    if reading is not None and reading.n_changes:
        trials.insert(1, Trial(reading, "", fit.figures, fit.is_good))
    return replace(fit, trials=tuple(trials))


def _sample(session: Session, sae: SaeConfig, corpus: CorpusConfig) -> Sample:
    point, output = session.points(sae)
    excluded = session.token_text().excluded_ids(corpus.exclude_tokens)
    return take_sample(
        session.model(), point, output, session.units(corpus), excluded, session.config.model.batch_tokens
    )  # fmt: skip


def _other_bos(session: Session, sae: SaeConfig, base: Sae) -> Mapping[str, Sample]:
    """The sample with, or without, a BOS before each window, by the setting that does so; {} where the file says
    whether there was one, or where the tokenizer has no choice."""
    tokenizer, corpus = session.model().tokenizer, session.config.corpus
    if wants_bos(base.metadata, tokenizer_has_bos=tokenizer.bos_token_id is not None) is not None:
        return {}
    has_one = bool(bos_prefix(tokenizer, corpus))
    other = replace(corpus, prepend_bos="never" if has_one else "always")
    try:
        bos_prefix(tokenizer, other)
    except InputError:  # there is no such token
        return {}
    return {f'corpus.prepend_bos = "{other.prepend_bos}"': _sample(session, sae, other)}


def check_file(session: Session, sae: SaeConfig) -> tuple[list[dict[str, Any]], str | None]:
    """Check the dictionary at `sae.path` by itself and print the table. Its hookpoints are those that the configuration
    or its file names. Returns the rows, and what to do where it does not fit (None where it does)."""
    sae = _placed(session, sae)
    session.describe_sae(sae)  # refuses one of another width or kind of text
    fit = fit_of(session, sae, try_all=True)
    session.terminal.table(_COLUMNS, fit.rows, f"{fit.folder} at {fit.hookpoint}: {fit.line}")
    rows = [
        {
            "reading": one.name, "l0": one.figures.l0, "fvu": one.figures.fvu, "fits": one.fits,
            "declared_l0": fit.declared.l0, "declared_fvu": fit.declared.fvu, "n_tokens": fit.n_tokens,
        }
        for one in fit.trials
    ]  # fmt: skip
    if not fit.is_good:
        return rows, f"{fit.name} is probably not read as it was trained ({fit.line}). {fit.advice}"
    session.terminal.say(f"{fit.name} is read as it was trained, as far as its files tell")
    return rows, None


def _placed(session: Session, sae: SaeConfig) -> SaeConfig:
    """`sae` with the hookpoints of its file, where it has none itself."""
    if sae.hookpoint:
        return sae
    folder = session.sae_folder(sae)
    metadata = load_sae(folder, sae.format).metadata
    named = next((metadata[key] for key in ("module_path", "hook_name") if isinstance(metadata.get(key), str)), None)
    if named is None and detect(folder) == "sparsify":  # whose folders bear the hookpoint's name
        with suppress(InputError):
            named = from_base_model_path(folder.name, session.model().model)
    if named is None:
        raise InputError(f"the files of {sae.path} name no hookpoint; name it with --hookpoint")
    written = metadata.get("hook_name_out")
    output = written if isinstance(written, str) and written != named and not sae.output_hookpoint else None
    return replace(sae, hookpoint=named, output_hookpoint=sae.output_hookpoint or output)


def _yes(is_so: bool) -> str:
    return "yes" if is_so else "no"


def _as_text(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(f"  {line.rstrip()}" for line in lines)
