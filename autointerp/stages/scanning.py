"""`autointerp scan`: where the rules of labels hold in any text. It needs neither the model nor torch.

A text is cut as the harvest cut its own: into windows and tiles of the same length, by the same tokenizer. So the share
of tiles that a rule claims can be compared with the share in which its feature fires, and its precision and recall say
what a claim is worth as far as the text is like the harvested one. The harvest leaves gaps between the blocks of a
large document; here they are left only in the text that was harvested, so that its tiles are the same ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from itertools import islice
from pathlib import Path
from typing import Any

from autointerp.config import Config, CorpusConfig, HarvestConfig
from autointerp.corpus.chat_template import chat_renderer
from autointerp.corpus.corpus_report import CorpusReport
from autointerp.corpus.sources import check_sources, read_documents
from autointerp.corpus.text_tiles import TextTile, tiles_of
from autointerp.corpus.token_text import TokenText
from autointerp.corpus.tokenizer_file import harvest_tokenizer
from autointerp.corpus.windows import work_units
from autointerp.errors import DamagedError, InputError, nearest
from autointerp.records import beginning_of
from autointerp.rules.language.forms import Forms
from autointerp.rules.language.matching import patterns_of
from autointerp.rules.many_texts import ManyTexts
from autointerp.rules.patterns import Rule
from autointerp.rules.scan_counts import ScanCounts, TileBlock
from autointerp.scan_rows import ScanRow
from autointerp.score.natural import CLAIM
from autointerp.store.rows import DictionaryRow, HarvestRow
from autointerp.store.rule_labels import RuleLabelRow
from autointerp.store.safety.reading import open_for_reading
from autointerp.store.selection import Selection
from autointerp.store.store import Store
from autointerp.terminal import Terminal

BLOCK_TOKENS = 1 << 19
"""Tokens that are read at a time, for all rules together."""
FORMS_KEPT = 1 << 17
"""Different forms of tokens from which on what is known of them is forgotten: a text may have any number."""
_WINDOWS = ["context_length", "prepend_bos"]
"""Settings of a corpus on which windows depend."""
_HIGHEST = 10.0
"""The strongest prediction."""


@dataclass(frozen=True)
class ScanOptions:
    """What to look for."""

    explainer: str | None = None
    """Whose labels; None: of each feature the one whose rule predicts ordinary text best."""
    at_least: float = CLAIM
    examples: int = 5
    """Of each feature."""

    @classmethod
    def of(cls, explainer: str | None, at_least: float | None, examples: int) -> ScanOptions:
        """`at_least` None: what a score counts as a claim."""
        return cls(explainer, CLAIM if at_least is None else at_least, examples)

    def __post_init__(self) -> None:
        if not 0.0 <= self.at_least <= _HIGHEST:  # nan neither
            raise InputError(f"--at-least must be from 0 to 10, not {self.at_least}")
        if self.examples < 0:
            raise InputError(f"--examples must be 0 or more, not {self.examples}")


class Scan:
    """A scan that is under way: iterate over `progress()`, then take the `rows`, of whatever was read until then."""

    def __init__(
        self, config: Config, source: str, selection: Selection | None = None, options: ScanOptions | None = None,
        dictionary: str | None = None, say: Callable[[str], None] | None = None,
    ) -> None:  # fmt: skip
        """`source`: whatever corpus.source takes. It is read as [corpus] says, but to its end. The harvested text
        itself is read just as it was harvested.

        Raises InputError where there is no such text, and where no chosen feature has a label with a rule.
        """
        self.options = options or ScanOptions()
        with open_for_reading(Path(config.store.path), say) as store:
            self.dictionary = store.dictionary(dictionary)
            harvest = _harvest_of(store, self.dictionary)
            harvest_source = store.corpus(harvest.corpus_id).source
            self.labels = _labels(store, self.dictionary, selection or Selection(), self.options.explainer)
        self._is_own = _is_same_text(source, harvest_source)
        self.corpus = _corpus_of(config.corpus, source, harvest, self._is_own)
        self._tile_tokens = _tile_tokens_of(config.harvest, harvest)
        check_sources(self.corpus)
        has_chats = self.corpus.chat_field is not None
        self._tokenizer = harvest_tokenizer(config.model, self.dictionary.tokenizer_sha256, needs_template=has_chats)
        self.report = CorpusReport()
        rules = [_rule_of(label) for label in self.labels]
        self.counts = ScanCounts.none(rules, self.options.at_least, self.options.examples)

    def progress(self) -> Iterator[int]:
        """Reads the text block by block; yields the number of tiles read. Raises InputError where there is no text."""
        tiles = self._tiles()
        patterns = list(patterns_of(clause for rule in self.counts.rules for clause in rule.clauses))
        forms = Forms(patterns)
        while block := list(islice(tiles, max(1, BLOCK_TOKENS // self._tile_tokens))):
            if len(forms) > FORMS_KEPT:
                forms = Forms(patterns)
            begins = [beginning_of(t.begins_document, t.begins_window) for t in block]
            texts = ManyTexts([t.tokens for t in block], begins, forms)
            self.counts = self.counts.plus(TileBlock([t.document for t in block], [t.start for t in block], texts))
            yield self.counts.n_tiles
        if not self.counts.n_tiles:
            raise InputError(f"the text {self.corpus.source!r} has no document of two tokens or more")

    def _tiles(self) -> Iterator[TextTile]:
        text = TokenText(self._tokenizer)
        renderer = chat_renderer(self._tokenizer) if self.corpus.chat_field is not None else None
        documents = read_documents(self.corpus, self.report, renderer, leaves_gaps=self._is_own)
        for unit in work_units(documents, self._tokenizer, self.corpus, report=self.report):
            for window in unit.windows:
                yield from tiles_of(window, text, self._tile_tokens)

    @property
    def rows(self) -> list[ScanRow]:
        """What was found so far, by feature."""
        counts, found = self.counts, []
        for label, count in zip(self.labels, counts.of_rule, strict=True):
            found.append(
                ScanRow(
                    dictionary=self.dictionary.name, feature=label.feature, label=label.text,
                    second_label=label.second_text, explainer=label.explainer, explanation_id=label.explanation_id,
                    at_least=self.options.at_least, n_tiles=counts.n_tiles, n_claimed=count.n_claimed,
                    share=count.n_claimed / max(1, counts.n_tiles), n_documents=count.n_documents,
                    n_tokens=count.n_tokens, density=label.density, natural=label.natural,
                    precision=label.precision, precision_low=label.precision_low, precision_high=label.precision_high,
                    recall=label.recall, recall_low=label.recall_low, recall_high=label.recall_high,
                    examples=count.examples,
                )
            )  # fmt: skip
        return found


def scan(config: Config, source: str, **options: Any) -> Iterator[ScanRow]:
    """Scans a text to its end and yields a row for each feature; the arguments are those of Scan."""
    found = Scan(config, source, **options)
    for _ in found.progress():
        pass
    yield from found.rows


def scan_with_progress(found: Scan, terminal: Terminal) -> bool:
    """Scans the text, on a terminal or with a log. Returns whether it was read to its end; Ctrl-C stops it, and what
    was found until then stays."""
    name = f"{found.dictionary.name}: scanning {found.corpus.source} for {len(found.labels)} labels"
    try:
        with terminal.progress(name, None, "tiles") as update:
            for n_tiles in found.progress():
                update(n_tiles)
    except KeyboardInterrupt:
        return False
    for remark in found.report.remarks():
        terminal.say(remark)
    return True


# --- what the store says ----------------------------------------------------------------------------------------------


def _harvest_of(store: Store, dictionary: DictionaryRow) -> HarvestRow:
    current = store.current_harvest(dictionary.dictionary_id)
    for row in store.harvests(dictionary.dictionary_id):
        if row.harvest_id == current:
            return row
    raise InputError(f"{dictionary.name} was not harvested yet; run `autointerp harvest` first")


def _corpus_of(corpus: CorpusConfig, source: str, harvest: HarvestRow, is_own: bool) -> CorpusConfig:
    """How the text is read: as configured, but with the windows of the harvest; the harvested text as it was read."""
    held = harvest.config.get("corpus", {})
    names = [f.name for f in fields(corpus) if f.name not in ("source", "exclude_tokens")] if is_own else _WINDOWS
    try:
        read = replace(corpus, **{"max_tokens": None, **{name: held[name] for name in names if name in held}})
    except (InputError, TypeError) as error:
        raise _unusable(harvest, error) from None
    return replace(read, source=source)


def _tile_tokens_of(configured: HarvestConfig, harvest: HarvestRow) -> int:
    held = harvest.config.get("harvest", {}).get("context_tokens", configured.context_tokens)
    try:
        return replace(configured, context_tokens=held).context_tokens
    except (InputError, TypeError) as error:
        raise _unusable(harvest, error) from None


def _unusable(harvest: HarvestRow, error: Exception) -> DamagedError:
    return DamagedError(f"harvest {harvest.harvest_id} has settings that cannot be used: {error}")


def _is_same_text(source: str, harvested: str) -> bool:
    if source == harvested or any(one == "stdlib" or one.startswith("hf:") for one in (source, harvested)):
        return source == harvested
    try:
        return Path(source).expanduser().resolve() == Path(harvested).expanduser().resolve()
    except (OSError, RuntimeError, ValueError):  # no such user, a loop of links, a NUL
        return False


def _labels(store: Store, dictionary: DictionaryRow, selection: Selection, explainer: str | None) -> list[RuleLabelRow]:
    """The labels whose rules are looked for."""
    number = dictionary.dictionary_id
    features = None if selection.is_all else store.selected_features(number, selection)
    found = store.rule_labels(number, features, explainer)
    if found:
        return found
    known = store.explainers_with_labels(number, with_rule=True)
    if explainer is not None and explainer not in known:
        there = f"labels by {', '.join(known)} do.{nearest(explainer, known)}" if known else "no label does yet."
        raise InputError(f"no label of {dictionary.name} by {explainer!r} carries a rule; {there}")
    raise InputError(
        f"none of the chosen features of {dictionary.name} has a label with a rule. `autointerp explain --explainer "
        "patterns` makes such labels without an LLM, and `autointerp compile` makes rules of labels in words"
    )


def _rule_of(label: RuleLabelRow) -> Rule:
    try:
        return Rule.from_json(label.rule)
    except ValueError as error:
        raise DamagedError(
            f"the rule of feature {label.feature} by {label.explainer} cannot be read: {error}. Leave the feature out, "
            "or make its label again"
        ) from None
