"""`autointerp scan`: where the rules of labels hold in any text. It needs neither the model nor torch.

A text is cut as the harvest cut its own: into windows and tiles of the same length, by the same tokenizer. So the share
of tiles that a rule claims can be compared with the share in which its feature fires, and its precision and recall say
what a claim is worth as far as the text is like the harvested one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from autointerp.config import Config, CorpusConfig
from autointerp.corpus.chat_template import chat_renderer
from autointerp.corpus.corpus_report import CorpusReport
from autointerp.corpus.sources import check_sources, read_documents
from autointerp.corpus.text_tiles import TextTile, tiles_of
from autointerp.corpus.token_text import TokenText
from autointerp.corpus.tokenizer_file import harvest_tokenizer
from autointerp.corpus.windows import work_units
from autointerp.errors import DamagedError, InputError, nearest
from autointerp.records import beginning_of
from autointerp.rules.many_texts import ManyTexts
from autointerp.rules.patterns import Rule
from autointerp.rules.scan_counts import Example, ScanCounts, TileBlock
from autointerp.score.natural import CLAIM
from autointerp.store.rows import DictionaryRow, HarvestRow
from autointerp.store.rule_labels import RuleLabelRow
from autointerp.store.safety.reading import open_for_reading
from autointerp.store.selection import Selection
from autointerp.store.store import Store
from autointerp.terminal import Terminal

BLOCK_TILES = 2048
"""Tiles that are read at a time, for all rules together."""
EXAMPLES = 5
_HIGHEST = 10.0
"""The strongest prediction."""


@dataclass(frozen=True, slots=True)
class ScanRow:
    """What a scan found of one feature's label."""

    dictionary: str
    feature: int
    label: str
    second_label: str | None
    explainer: str
    explanation_id: str
    at_least: float
    """From which prediction on, 0..10, a tile counts as claimed."""
    n_tiles: int
    """Tiles that were scanned."""
    n_claimed: int
    """Tiles in which the rule predicts that much somewhere."""
    share: float
    """n_claimed of n_tiles."""
    n_documents: int
    """Documents with a claimed tile."""
    n_tokens: int
    """Tokens on which the rule predicts that much."""
    density: float
    """The share of tiles of the harvested text in which the feature fires."""
    natural: float | None
    """How well the rule predicts ordinary text of the harvest (simulation_natural)."""
    precision: float | None
    """The share of claimed tiles of that text in which the feature fires, at a claim of 1 and more."""
    precision_low: float | None
    precision_high: float | None
    recall: float | None
    """The share of the tiles of that text in which it fires that are claimed."""
    recall_low: float | None
    recall_high: float | None
    examples: tuple[Example, ...]
    """The strongest places, each from another document."""


@dataclass(frozen=True)
class ScanOptions:
    """What to look for."""

    explainer: str | None = None
    """Whose labels; None: of each feature the one whose rule predicts ordinary text best."""
    at_least: float = CLAIM
    examples: int = EXAMPLES
    """Of each feature."""


class Scan:
    """A scan that is under way: iterate over `progress()`, then take the `rows`, of whatever was read until then."""

    def __init__(
        self, config: Config, source: str, selection: Selection | None = None, options: ScanOptions | None = None,
        dictionary: str | None = None, say: Callable[[str], None] | None = None,
    ) -> None:  # fmt: skip
        """`source`: whatever corpus.source takes; all else of [corpus] holds for it too, but for max_tokens.

        Raises InputError where there is no such text, and where no chosen feature has a label with a rule.
        """
        self.options = options or ScanOptions()
        if not 0.0 <= self.options.at_least <= _HIGHEST:
            raise InputError(f"--at-least must be from 0 to 10, not {self.options.at_least}")
        if self.options.examples < 0:
            raise InputError(f"--examples must be 0 or more, not {self.options.examples}")
        with open_for_reading(Path(config.store.path), say) as store:
            self.dictionary = store.dictionary(dictionary)
            harvest = _harvest_of(store, self.dictionary)
            self.labels = _labels(store, self.dictionary, selection or Selection(), self.options.explainer)
        self.corpus = _as_harvested(replace(config.corpus, source=source, max_tokens=None), harvest)
        self._tile_tokens = int(harvest.config.get("harvest", {}).get("context_tokens", config.harvest.context_tokens))
        check_sources(self.corpus)
        has_chats = self.corpus.chat_field is not None
        self._tokenizer = harvest_tokenizer(config.model, self.dictionary.tokenizer_sha256, needs_template=has_chats)
        self.report = CorpusReport()
        self.counts = ScanCounts(
            [_rule_of(label) for label in self.labels], self.options.at_least, self.options.examples
        )

    def progress(self) -> Iterator[int]:
        """Reads the text block by block; yields the number of tiles read. Raises InputError where there is no text."""
        tiles = self._tiles()
        while block := list(islice(tiles, BLOCK_TILES)):
            texts = ManyTexts([t.tokens for t in block], [beginning_of(t.begins_document, t.begins_window) for t in block])
            self.counts = self.counts.plus(TileBlock([t.document for t in block], [t.start for t in block], texts))
            yield self.counts.n_tiles
        if not self.counts.n_tiles:
            raise InputError(f"the text {self.corpus.source!r} has no document of two tokens or more")

    def _tiles(self) -> Iterator[TextTile]:
        text = TokenText(self._tokenizer)
        renderer = chat_renderer(self._tokenizer) if self.corpus.chat_field is not None else None
        documents = read_documents(self.corpus, self.report, renderer)
        for unit in work_units(documents, self._tokenizer, self.corpus, report=self.report):
            for window in unit.windows:
                yield from tiles_of(window, text, self._tile_tokens)

    @property
    def rows(self) -> list[ScanRow]:
        """What was found so far, by feature."""
        counts, found = self.counts, []
        for label, count in zip(self.labels, counts.of_rule, strict=False):
            found.append(
                ScanRow(
                    self.dictionary.name, label.feature, label.text, label.second_text, label.explainer,
                    label.explanation_id, self.options.at_least, counts.n_tiles, count.n_claimed,
                    count.n_claimed / max(1, counts.n_tiles), count.n_documents, count.n_tokens, label.density,
                    label.natural, label.precision, label.precision_low, label.precision_high, label.recall,
                    label.recall_low, label.recall_high, count.examples,
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


def _as_harvested(corpus: CorpusConfig, harvest: HarvestRow) -> CorpusConfig:
    """`corpus` with the length of windows and the BOS of the harvest, on which it depends what a rule sees."""
    held = harvest.config.get("corpus", {})
    names = ("context_length", "prepend_bos")
    try:
        return replace(corpus, **{name: held[name] for name in names if name in held})
    except InputError as error:
        raise DamagedError(f"harvest {harvest.harvest_id} has settings that cannot be used: {error}") from None


def _labels(
    store: Store, dictionary: DictionaryRow, selection: Selection, explainer: str | None
) -> list[RuleLabelRow]:
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
