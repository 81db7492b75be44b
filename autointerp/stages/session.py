"""The session that all stages with a language model share. It has the model and the SAEs that fit it."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from autointerp.config import Config, CorpusConfig, SaeConfig
from autointerp.corpus.chat_template import chat_renderer
from autointerp.corpus.corpus_report import CorpusReport
from autointerp.corpus.sources import check_sources, corpus_fingerprint, read_documents, split_rule
from autointerp.corpus.token_text import TokenText
from autointerp.corpus.windows import NAME_A_BOS, bos_prefix, stand_in_for_bos, token_ids, work_units
from autointerp.deadline import Deadline
from autointerp.errors import InputError, MismatchError, NoProjection
from autointerp.model.hooks import Hookpoint, hidden_size_at
from autointerp.model.input_limits import unreadable_tokens
from autointerp.model.load import LoadedModel, folder_sha256, load_model
from autointerp.model.logit_path import LogitPath, find_logit_path
from autointerp.model.norm_gain import norm_gain
from autointerp.model.padding import checked
from autointerp.progress import Counting, uncounted
from autointerp.records import WorkUnit
from autointerp.sae.formats import load_sae, local_folder, sae_sha256
from autointerp.sae.formats.declared_hooks import is_declared, to_hookpoint
from autointerp.sae.formats.hooknames import check_processing, wants_bos
from autointerp.sae.readings import identity, with_reading
from autointerp.sae.sae import Sae
from autointerp.sae_reading import parse_reading
from autointerp.stages.checks import Check
from autointerp.stages.text_reading import check_windows, reading_notes
from autointerp.store.rows import DictionaryRow
from autointerp.store.store import Store
from autointerp.terminal import Terminal

FIRST_CHARACTERS = 100_000
"""About as much text is cut into windows to see whether it can be."""
TRAINED = "trained.json"
"""The file beside a finished SAE that says how it was trained, so that a second run knows that it is done."""

HELD_OUT = "report_held_out.json"
"""The file in an SAE's training folder that says that its training has never read the report split. It is made before
the first step, so that a training which an earlier version began does not get one."""


class Session:
    """The state that one command's stages share: the configuration, the terminal, and the model, loaded when needed."""

    def __init__(
        self, config: Config, terminal: Terminal, more_checks: Sequence[Check] = (), methods: Collection[str] = (),
        needs_promoted_tokens: bool = False,
    ) -> None:  # fmt: skip
        """`more_checks` are looked at before the model's, at the start of a pass; `methods` are the evidence methods
        that will be run after it. `needs_promoted_tokens`: without them the run has nothing to explain."""
        self.config, self.terminal = config, terminal
        self.more_checks, self.methods = tuple(more_checks), frozenset(methods)
        self.needs_promoted_tokens = needs_promoted_tokens
        self.deadline = Deadline.of(config.budget.deadline)
        self._loaded: LoadedModel | None = None
        self._text: TokenText | None = None
        self._notes: list[str] | None = None
        self._has_checked_sources = False
        self._told_reading = False
        self.expected_vectors: int | None = None
        """About how many activation vectors the corpus gives, once training_cache.py has measured it."""

    def model(self) -> LoadedModel:
        """The model. Raises InputError if it cannot read the corpus's windows, or if padding beside a window changes
        the activations in it, and whatever loading raises."""
        if self._loaded is None:
            if not self.config.model.name:
                raise InputError("the configuration names no model; set [model] name to a hub id or a folder")
            with self.terminal.working(f"loading {self.config.model.name}"):
                loaded = load_model(self.config.model)
                check_windows(loaded, self.config.corpus)
                self._loaded = checked(loaded, self.config.corpus.context_length, self.config.model.batch_tokens)
            if self._loaded.looks_ahead:
                self.terminal.say(
                    f"model {self._loaded.name} reads the tokens on both sides of a token: its batches get an "
                    "attention mask, and what needs a next-token prediction is refused or left out"
                )
            self.terminal.detail(
                f"model {self._loaded.name} on {self._loaded.device}, {str(self._loaded.dtype).removeprefix('torch.')}"
            )
        return self._loaded

    def token_text(self) -> TokenText:
        """The strings of the model's tokens. Reading the whole vocabulary takes seconds, so it is done once."""
        if self._text is None:
            self._text = TokenText(self.model().tokenizer)
        return self._text

    def check_corpus(self) -> None:
        """Raise InputError if the corpus has no usable text, before a model is loaded for it. Looks at every file, and
        reads up to the first usable document. A data set of the hub is not checked here."""
        if self._loaded is not None or self.config.corpus.source.startswith("hf:"):
            return
        self.describe_source()

    def describe_source(self) -> str:
        """Says which text comes first, after reading the corpus up to its first usable document, without the model.
        Raises InputError if there is none."""
        if self.config.corpus.source.startswith("hf:"):
            return f"{self.config.corpus.source} is a data set of the hub, which is opened when it is read"
        self._check_sources()
        documents = read_documents(self.config.corpus, CorpusReport(), lambda messages: str(messages))
        first = next(documents, None)
        if first is None:
            raise InputError(f"the corpus {self.config.corpus.source!r} holds no usable text")
        return f"{self.config.corpus.source} can be read; its first document is {first.name!r}"

    def units(
        self,
        corpus: CorpusConfig | None = None,
        report: CorpusReport | None = None,
        wanted: Callable[[int], bool] = lambda index: True,
    ) -> Iterator[WorkUnit]:
        """The `wanted` work units of `corpus`, or of the configured corpus."""
        corpus, report, tokenizer = corpus or self.config.corpus, report or CorpusReport(), self.model().tokenizer
        documents = read_documents(corpus, report, chat_renderer(tokenizer))
        unreadable = unreadable_tokens(self.model().model, tokenizer)
        return work_units(documents, tokenizer, corpus, wanted=wanted, report=report, unreadable=unreadable)

    def say_how_text_is_read(self) -> None:
        """Warns, once in a command, of what a person would not expect of how this model reads the corpus. Reads its
        first documents."""
        if not self._told_reading:
            self._told_reading = True
            for note in self._reading_notes():
                self.terminal.warn(note)

    def _reading_notes(self) -> list[str]:
        """`reading_notes`, for which the first documents are read once."""
        if self._notes is None:
            self._notes = list(reading_notes(self.model(), self.token_text(), self.config.corpus))
        return self._notes

    def _check_sources(self) -> None:
        """`check_sources`, which opens every file, once."""
        if not self._has_checked_sources:
            check_sources(self.config.corpus)
            self._has_checked_sources = True

    def describe_model(self) -> str:
        loaded = self.model()
        size = sum(p.numel() for p in loaded.model.parameters())
        runs = (
            f"{loaded.name} ({size:,} parameters) runs on {loaded.device} in {str(loaded.dtype).removeprefix('torch.')}"
        )
        return f"{runs}; it reads tokens on both sides, with a mask" if loaded.looks_ahead else runs

    def describe_corpus(self) -> str:
        """Says whether the corpus can be read, after reading its first documents. Raises InputError if it cannot."""
        report, loaded = CorpusReport(), self.model()
        self._check_sources()
        documents = read_documents(self.config.corpus, report, chat_renderer(loaded.tokenizer))
        first = next(documents, None)
        if first is None:
            raise InputError(f"the corpus {self.config.corpus.source!r} holds no usable text")
        few = min(self.config.corpus.unit_characters, FIRST_CHARACTERS)
        next(self.units(replace(self.config.corpus, unit_characters=few)), None)  # cut as a run cuts it, or refused
        n_tokens = len(token_ids([first.text[:10_000]], loaded.tokenizer)[0])
        source = self.config.corpus.source
        remarks = "".join(f"; so far {remark}" for remark in report.remarks())
        if split_rule(self.config.corpus) == "runs":
            remarks += (
                "; it has fewer than 64 documents, so they are cut and split by runs of blocks, and intervals, which "
                "count files, are wide or missing"
            )
        said = f"{source} can be read; its first document {first.name!r} begins with {n_tokens} tokens{remarks}"
        return ". ".join([said, *self._reading_notes()])

    def describe_sae(self, sae: SaeConfig, store: Store | None = None) -> str:
        """Says what the SAE is, or will be once it is trained. Raises what `loaded_sae` raises, and MismatchError if
        `store` holds another dictionary of its name."""
        loaded, folder = self.model(), self.sae_folder(sae)
        width = hidden_size_at(loaded, self.point(sae.hookpoint))
        if not sae.path and not (folder / TRAINED).exists():
            n_features = d_sae_of(sae, width)
            made = f"{sae.hookpoint} has width {width}; `autointerp train` makes {n_features:,} features for it"
            return f"{made}; {self._describe_projection(sae)}"
        weights, sha256 = loaded_sae(self, sae)
        if store is not None:
            store.known_dictionary(sae.dictionary, dictionary_values(self, store, sae, weights, sha256))
        held = f"{folder}: {weights.d_sae:,} features of {sae.hookpoint}, width {width}, sha256 {sha256[:16]}"
        return f"{held}; {self._describe_projection(sae)}"

    def _describe_projection(self, sae: SaeConfig) -> str:
        point, output = self.points(sae)
        try:
            return f"promoted tokens through {find_logit_path(self.model(), output or point)}"
        except NoProjection as reason:
            if self.needs_promoted_tokens:
                raise NoProjection(
                    f"{sae.dictionary} has no promoted tokens, and the explainer {self.config.explain.explainer!r} "
                    f"reads nothing else; choose another one ({reason})"
                ) from reason
            return f"no promoted tokens: {reason}"

    def sae_folder(self, sae: SaeConfig) -> Path:
        """The folder of the SAE, which may still have to be trained."""
        if sae.path:
            return local_folder(sae.path)
        return Path(self.config.store.path).parent / "sae" / file_name(sae.dictionary)

    def point(self, text: str) -> Hookpoint:
        """The hookpoint with this module path, or with a name under which files declare one."""
        return Hookpoint.parse(to_hookpoint(text, self.model().model) if is_declared(text) else text)

    def points(self, sae: SaeConfig) -> tuple[Hookpoint, Hookpoint | None]:
        """The hookpoint that the SAE reads and, for a transcoder, the one that it writes."""
        output = None if sae.output_hookpoint is None else self.point(sae.output_hookpoint)
        return self.point(sae.hookpoint), output

    def hookpoints(self, saes: Sequence[SaeConfig]) -> list[Hookpoint]:
        """All hookpoints that these SAEs read or write, one after the other."""
        return [point for sae in saes for point in self.points(sae) if point is not None]

    def work_folder(self, sae: SaeConfig) -> Path:
        """The folder in which harvested units wait for the merge."""
        store = Path(self.config.store.path)
        return store.with_suffix(".work") / file_name(sae.dictionary)


def held_out_from_training(folder: Path) -> bool:
    """Whether the SAE trained in `folder` has not read the report split."""
    return (folder / "training" / HELD_OUT).exists()


def file_name(name: str) -> str:
    """A dictionary's name as a file name. It is never a path, and different names give different file names."""
    plain = re.sub(r"[^A-Za-z0-9_.-]+", "_", name).lstrip(".")[:100] or "sae"
    return plain if plain == name else f"{plain}-{digest(name)[:8]}"


def digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def d_sae_of(sae: SaeConfig, d_in: int) -> int:
    return sae.d_sae or sae.expansion * d_in


def model_key(config: Config) -> list[Any]:
    """Everything that the activations depend on. A folder counts by its content, so a project may be moved."""
    folder = Path(config.model.name)
    name = folder_sha256(folder) if folder.is_dir() else config.model.name
    key = [name, config.model.revision, config.model.dtype]
    if config.model.random_weights is None:
        return key
    kept = " but the embeddings" if config.model.keep_embeddings else ""
    return [*key, f"random {config.model.random_weights}{kept}"]


def corpus_key(config: Config) -> list[Any]:
    """The text and how it is cut. The corpus's place does not count."""
    return [corpus_fingerprint(config.corpus), asdict(placeless(config.corpus))]


def harvest_fingerprint(config: Config) -> str:
    """`corpus_fingerprint`, with the rule of the splits where it is not "hash". A harvest keeps it, so that its explain
    text is known for what it is. Before there was another rule, small corpora were split by hash, too."""
    fingerprint, rule = corpus_fingerprint(config.corpus), split_rule(config.corpus)
    return fingerprint if rule == "hash" else f"{fingerprint} split by {rule}"


def check_splits(config: Config, row: DictionaryRow, harvested: Mapping[str, Any]) -> None:
    """Raise MismatchError if the text that was harvested is split by another rule now: text of the explain split of
    today may stand in the report split of the store. `harvested`: the config of the harvest."""
    if split_rule(config.corpus) == "hash":
        return
    if harvested.get("corpus_fingerprint") == corpus_fingerprint(config.corpus):  # which names no rule
        raise MismatchError(
            f"{row.name} was harvested when a corpus of few documents was split block by block, and not by runs of "
            "blocks; run `autointerp harvest` (or `run`) to harvest it anew. What is in the store stays valid, and "
            "`explain`, `score` and `verify` work on it"
        )


def placeless(corpus: CorpusConfig) -> CorpusConfig:
    return replace(corpus, source="")


def dictionary_id_of(session: Session, store: Store, sae: SaeConfig, weights: Sae, sha256: str) -> int:
    """The dictionary's id in the store. Raises MismatchError if another SAE or model has taken its name."""
    values = dictionary_values(session, store, sae, weights, sha256)
    return store.add_dictionary(name=sae.dictionary, **values, config=asdict(sae))


def dictionary_values(session: Session, store: Store, sae: SaeConfig, weights: Sae, sha256: str) -> dict[str, Any]:
    """What makes a dictionary that one and no other: its row's columns but the name. One that came into the store with
    the hash that its SAE had before the limit of length was part of it is known by that hash."""
    loaded = session.model()
    before = sha256_without_limit(session, sae)
    if any((row.name, row.sae_sha256) == (sae.dictionary, before) for row in store.dictionaries()):
        sha256 = before
    return {
        "model": loaded.name,
        "revision": loaded.revision,
        "hookpoint": sae.hookpoint,
        "output_hookpoint": sae.output_hookpoint,
        "architecture": weights.architecture,
        "d_in": weights.d_in,
        "d_out": weights.d_out,
        "d_sae": weights.d_sae,
        "sae_sha256": sha256,
        "tokenizer_sha256": loaded.tokenizer_sha256,
    }


def sha256_without_limit(session: Session, sae: SaeConfig) -> str:
    """What the hash of the SAE was before the limit of length was part of it; the same where its file names none."""
    counting = session.terminal.counting(sae.dictionary)
    return identity(
        sae_sha256(session.sae_folder(sae), sae.format, counting, with_limit=False), parse_reading(sae.reading)
    )


def loaded_sae(session: Session, sae: SaeConfig) -> tuple[Sae, str]:
    """The SAE on the model's device, and its sha256. Checks the widths of its hookpoints, and whether this run treats
    the model as the SAE's file says."""
    folder = session.sae_folder(sae)
    if not folder.exists():
        raise InputError(f"there is no SAE at {folder}; `autointerp train` makes it, or set path in its [[sae]] table")
    with session.terminal.working(f"{sae.dictionary}: loading the SAE"):
        weights, sha256 = load_sae(folder, sae.format), sae_digest(session, sae)
    loaded = session.model()
    point, output = session.points(sae)
    for what, width, where in (("reads", weights.d_in, point), ("writes", weights.d_out, output or point)):
        held = hidden_size_at(loaded, where)
        if held != width:
            raise MismatchError(
                f"the SAE at {folder} {what} vectors of width {width}, but {where} of {loaded.name} has width {held}; "
                "it belongs to another model or hookpoint"
                + ("" if output or weights.d_in == weights.d_out else " (a transcoder needs output_hookpoint)")
            )
    if sae.path:
        _check_origin(session, sae, weights, folder)
    weights, reading = weights.to(loaded.device), parse_reading(sae.reading)
    if reading is not None:
        weights = with_reading(weights, reading, norm_gain(loaded, point) if reading.before_gain else None)
    return weights, sha256


def sae_digest(session: Session, sae: SaeConfig, counting: Counting = uncounted) -> str:
    """The sha256 of all that decides the dictionary's numbers: its files, and how they are read."""
    return identity(sae_sha256(session.sae_folder(sae), sae.format, counting), parse_reading(sae.reading))


def logit_path(session: Session, sae: SaeConfig) -> LogitPath | NoProjection:
    """How what the SAE writes reaches the logits. Where it does not, or not in a way that can be followed, warns, and
    returns the reason: all other evidence can still be had."""
    point, output = session.points(sae)
    try:
        with session.terminal.working(f"{sae.dictionary}: following its directions to the logits"):
            return find_logit_path(session.model(), output or point)
    except NoProjection as reason:
        session.terminal.warn(f"{sae.dictionary}: no promoted tokens: {reason}")
        return reason


def matching_sae(session: Session, store: Store, sae: SaeConfig) -> tuple[DictionaryRow, Sae]:
    """The store's dictionary and its SAE on the model's device. Raises MismatchError if the dictionary was made with
    another SAE, model or tokenizer, and InputError if the store has no such dictionary."""
    row, folder = store.dictionary(sae.dictionary), session.sae_folder(sae)
    if not folder.exists():
        raise InputError(f"there is no SAE at {folder}, with which the store's dictionary {row.name!r} was made")
    with session.terminal.working(f"{sae.dictionary}: hashing the SAE"):
        sha256 = sae_digest(session, sae, session.terminal.counting(sae.dictionary))
    if row.sae_sha256 not in (sha256, sha256_without_limit(session, sae)):
        raise MismatchError(
            f"the SAE at {folder} has sha256 {sha256[:16]}..., but the store's dictionary {row.name!r} was made with "
            f"{row.sae_sha256[:16]}...; put the right file back, or harvest the new one under another name"
        )
    loaded = session.model()
    for what, held, now in (
        ("model revision", row.revision, loaded.revision),
        ("tokenizer sha256", row.tokenizer_sha256, loaded.tokenizer_sha256),
    ):
        if held != now:
            raise MismatchError(f"the store's dictionary {row.name!r} has {what} {held}, but this model has {now}")
    return row, loaded_sae(session, sae)[0]


def _check_origin(session: Session, sae: SaeConfig, weights: Sae, folder: Path) -> None:
    """Raise MismatchError or InputError if the SAE, by its file, was trained on something else than it will read."""
    check_processing(weights.metadata)
    _check_bos(session, weights, folder)
    written = weights.metadata.get("hook_name_out")
    if isinstance(written, str) and sae.output_hookpoint is None:
        raise MismatchError(
            f"the file of {sae.dictionary} says that it is a transcoder, which writes at {written}; set "
            f"output_hookpoint = {written!r} in its [[sae]] table"
        )
    for named, here in ((weights.metadata.get("hook_name"), sae.hookpoint), (written, sae.output_hookpoint)):
        if isinstance(named, str) and is_declared(named) and here is not None:
            meant = str(session.point(named))
            if meant != str(session.point(here)):
                session.terminal.say(
                    f"{sae.dictionary}: its file says it was trained at {named}, which is {meant} here, and it is used "
                    f"at {here}; `autointerp evaluate` shows whether that fits"
                )


def _check_bos(session: Session, weights: Sae, folder: Path) -> None:
    tokenizer = session.model().tokenizer
    own = tokenizer.bos_token_id is not None
    wanted = wants_bos(weights.metadata, tokenizer_has_bos=own)
    if wanted is None or wanted == bool(bos_prefix(tokenizer, session.config.corpus)):
        return
    advice = f"set corpus.prepend_bos = {'always' if wanted else 'never'!r}"
    if wanted and not own:
        stand_in = stand_in_for_bos(tokenizer)
        advice = (
            f"{advice} (the tokenizer has no BOS: {stand_in[1]!r} stands in, as in TransformerLens)" if stand_in
            else f"the tokenizer has neither a BOS nor an EOS token, so {NAME_A_BOS}"
        )  # fmt: skip
    raise MismatchError(
        f"the SAE at {folder} was trained {'with' if wanted else 'without'} a BOS token before each text, and this "
        f"configuration reads {'without' if wanted else 'with'} one; {advice}"
    )
