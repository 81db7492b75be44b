"""The session that all stages with a language model share. It has the model and the SAEs that fit it."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from autointerp.config import Config, CorpusConfig, SaeConfig
from autointerp.corpus.corpus_report import CorpusReport
from autointerp.corpus.sources import corpus_fingerprint, read_documents, split_rule
from autointerp.corpus.token_text import TokenText
from autointerp.corpus.windows import chat_renderer, work_units
from autointerp.deadline import Deadline
from autointerp.errors import InputError, MismatchError
from autointerp.evaluate.structural import EARLY_TOKENS, SUSPICIOUS_FVU, quick_fvu
from autointerp.model.hooks import Hookpoint, hidden_size_at
from autointerp.model.load import LoadedModel, folder_sha256, load_model
from autointerp.records import WorkUnit
from autointerp.sae.formats import load_sae, local_folder, sae_sha256
from autointerp.sae.formats.hooknames import check_processing, to_module_path, wants_bos
from autointerp.sae.sae import Sae
from autointerp.store.rows import DictionaryRow
from autointerp.store.store import Store
from autointerp.terminal import Terminal

TRAINED = "trained.json"
"""The file beside a finished SAE that says how it was trained, so that a second run knows that it is done."""

HELD_OUT = "report_held_out.json"
"""The file in an SAE's training folder that says that its training has never read the report split. It is made before
the first step, so that a training which an earlier version began does not get one."""


class Session:
    """The state that one command's stages share: the configuration, the terminal, and the model, loaded when needed."""

    def __init__(self, config: Config, terminal: Terminal) -> None:
        self.config, self.terminal = config, terminal
        self.deadline = Deadline.of(config.budget.deadline)
        self._loaded: LoadedModel | None = None

    def model(self) -> LoadedModel:
        if self._loaded is None:
            if not self.config.model.name:
                raise InputError("the configuration names no model; set [model] name to a hub id or a folder")
            with self.terminal.working(f"loading {self.config.model.name}"):
                self._loaded = load_model(self.config.model)
            self.terminal.detail(
                f"model {self._loaded.name} on {self._loaded.device}, {str(self._loaded.dtype).removeprefix('torch.')}"
            )
        return self._loaded

    def check_corpus(self) -> None:
        """Raise InputError if the corpus has no usable text, before a model is loaded for it. Reads up to the first
        usable document. A data set of the hub is not checked here."""
        if self._loaded is not None or self.config.corpus.source.startswith("hf:"):
            return
        documents = read_documents(self.config.corpus, CorpusReport(), lambda messages: str(messages))
        next(documents, None)

    def units(
        self,
        corpus: CorpusConfig | None = None,
        report: CorpusReport | None = None,
        wanted: Callable[[int], bool] = lambda index: True,
    ) -> Iterator[WorkUnit]:
        """The `wanted` work units of `corpus`, or of the configured corpus."""
        corpus, report, tokenizer = corpus or self.config.corpus, report or CorpusReport(), self.model().tokenizer
        documents = read_documents(corpus, report, chat_renderer(tokenizer))
        return work_units(documents, tokenizer, corpus, wanted=wanted, report=report)

    def describe_model(self) -> str:
        loaded = self.model()
        size = sum(p.numel() for p in loaded.model.parameters())
        return (
            f"{loaded.name} ({size:,} parameters) runs on {loaded.device} in {str(loaded.dtype).removeprefix('torch.')}"
        )

    def describe_corpus(self) -> str:
        """Says whether the corpus can be read, after reading its first documents. Raises InputError if it cannot."""
        report, loaded = CorpusReport(), self.model()
        documents = read_documents(self.config.corpus, report, chat_renderer(loaded.tokenizer))
        first = next(documents, None)
        if first is None:
            raise InputError(f"the corpus {self.config.corpus.source!r} holds no usable text")
        n_tokens = len(loaded.tokenizer(first.text[:10_000], add_special_tokens=False)["input_ids"])
        few = (
            "; it has fewer than 64 documents, so they are cut and split by runs of blocks, and intervals, which count "
            "files, are wide or missing"
        )
        return (
            f"{self.config.corpus.source} can be read; its first document {first.name!r} begins with {n_tokens} tokens"
            + (few if split_rule(self.config.corpus) == "runs" else "")
        )

    def describe_sae(self, sae: SaeConfig) -> str:
        loaded, folder = self.model(), self.sae_folder(sae)
        width = hidden_size_at(loaded, self.point(sae.hookpoint))
        if not sae.path and not (folder / TRAINED).exists():
            n_features = d_sae_of(sae, width)
            return f"{sae.hookpoint} has width {width}; `autointerp train` makes {n_features:,} features for it"
        weights, sha256 = loaded_sae(self, sae)
        return f"{folder}: {weights.d_sae:,} features of {sae.hookpoint}, width {width}, sha256 {sha256[:16]}"

    def sae_folder(self, sae: SaeConfig) -> Path:
        """The folder of the SAE, which may still have to be trained."""
        if sae.path:
            return local_folder(sae.path)
        return Path(self.config.store.path).parent / "sae" / file_name(sae.dictionary)

    def point(self, text: str) -> Hookpoint:
        """The hookpoint with this module path, or with this TransformerLens name."""
        if text.startswith(("blocks.", "hook_")):
            text = to_module_path(text, self.model().model)
        return Hookpoint.parse(text)

    def points(self, sae: SaeConfig) -> tuple[Hookpoint, Hookpoint | None]:
        """The hookpoint that the SAE reads and, for a transcoder, the one that it writes."""
        output = None if sae.output_hookpoint is None else self.point(sae.output_hookpoint)
        return self.point(sae.hookpoint), output

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
    return key if config.model.random_weights is None else [*key, f"random {config.model.random_weights}"]


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
    then, now = str(harvested.get("corpus_fingerprint", "")), harvest_fingerprint(config)
    if then == now.split(" ")[0]:
        raise MismatchError(
            f"{row.name} was harvested when a corpus of few documents was split block by block, and not by runs of "
            "blocks; run `autointerp harvest` (or `run`) to harvest it anew. What is in the store stays valid, and "
            "`explain`, `score` and `verify` work on it"
        )


def placeless(corpus: CorpusConfig) -> CorpusConfig:
    return replace(corpus, source="")


def dictionary_id_of(session: Session, store: Store, sae: SaeConfig, weights: Sae, sha256: str) -> int:
    """The dictionary's id in the store. Raises MismatchError if another SAE or model has taken its name."""
    loaded = session.model()
    return store.add_dictionary(
        name=sae.dictionary,
        model=loaded.name,
        revision=loaded.revision,
        hookpoint=sae.hookpoint,
        output_hookpoint=sae.output_hookpoint,
        architecture=weights.architecture,
        d_in=weights.d_in,
        d_out=weights.d_out,
        d_sae=weights.d_sae,
        sae_sha256=sha256,
        tokenizer_sha256=loaded.tokenizer_sha256,
        config=asdict(sae),
    )


def loaded_sae(session: Session, sae: SaeConfig) -> tuple[Sae, str]:
    """The SAE on the model's device, and its sha256. Checks the widths of its hookpoints, and whether this run treats
    the model as the SAE's file says."""
    folder = session.sae_folder(sae)
    if not folder.exists():
        raise InputError(f"there is no SAE at {folder}; `autointerp train` makes it, or set path in its [[sae]] table")
    with session.terminal.working(f"{sae.dictionary}: loading the SAE"):
        weights, sha256 = load_sae(folder, sae.format), sae_sha256(folder, sae.format)
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
    return weights.to(loaded.device), sha256


def matching_sae(session: Session, store: Store, sae: SaeConfig) -> tuple[DictionaryRow, Sae]:
    """The store's dictionary and its SAE on the model's device. Raises MismatchError if the dictionary was made with
    another SAE, model or tokenizer, and InputError if the store has no such dictionary."""
    row, folder = store.dictionary(sae.dictionary), session.sae_folder(sae)
    if not folder.exists():
        raise InputError(f"there is no SAE at {folder}, with which the store's dictionary {row.name!r} was made")
    with session.terminal.working(f"{sae.dictionary}: hashing the SAE"):
        sha256 = sae_sha256(folder, sae.format)
    if sha256 != row.sae_sha256:
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
    wanted, corpus, loaded = wants_bos(weights.metadata), session.config.corpus, session.model()
    has_bos = corpus.prepend_bos != "never" and loaded.tokenizer.bos_token_id is not None
    if wanted is not None and wanted != has_bos:
        setting = "always" if wanted else "never"
        raise MismatchError(
            f"the SAE at {folder} was trained {'with' if wanted else 'without'} a BOS token before each text, and this "
            f"configuration reads {'without' if wanted else 'with'} one; set corpus.prepend_bos = {setting!r}"
        )
    named = weights.metadata.get("hook_name")
    if isinstance(named, str) and named.startswith(("blocks.", "hook_")):
        meant = to_module_path(named, loaded.model)
        if meant != str(session.point(sae.hookpoint)):
            session.terminal.say(
                f"{sae.dictionary}: its file says it was trained at {named}, which is {meant} here, and it is read at "
                f"{sae.hookpoint}; `autointerp evaluate` shows whether that fits"
            )


def warn_of_misfit(session: Session, sae: SaeConfig, weights: Sae) -> None:
    """Warns if a loaded SAE explains hardly anything of the first tokens: its hookpoint, model or scaling is wrong."""
    point, output = session.points(sae)
    excluded = TokenText(session.model().tokenizer).excluded_ids(session.config.corpus.exclude_tokens)
    batch_tokens = session.config.model.batch_tokens
    unexplained = quick_fvu(session.model(), weights, point, output, session.units(), excluded, batch_tokens)
    if not unexplained <= SUSPICIOUS_FVU:
        session.terminal.warn(
            f"{sae.dictionary}: it leaves {unexplained:.2f} of the variance of {sae.hookpoint} unexplained (on "
            f"{EARLY_TOKENS:,} tokens): model, hookpoint or input scaling is not what it was trained with"
        )
