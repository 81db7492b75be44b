"""What an evidence method is: it studies features beyond the harvest, keeps what it finds in a table of the store, and
says in lines of text what a person reads of it.

A method is one file with one entry in methods.BUILT_IN, or an object that another package names under the entry point
group `autointerp.methods`. Pages and checks use methods on machines without torch, so a method's file imports torch,
and whatever needs torch, inside `find` only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

import numpy as np

from autointerp.config import Config, EvidenceConfig
from autointerp.errors import NoProjection
from autointerp.progress import Counting
from autointerp.records import ShapeFacts, Window, WorkUnit
from autointerp.store.finding_tables import FindingTable, Row
from autointerp.store.findings import NO_OUTPUT_SPACE, MethodRun
from autointerp.store.rows import DictionaryRow
from autointerp.store.selection import Selection
from autointerp.store.store import Store

if TYPE_CHECKING:
    from autointerp.corpus.token_text import TokenText
    from autointerp.model.hooks import Hookpoint
    from autointerp.model.load import LoadedModel
    from autointerp.model.logit_path import LogitPath
    from autointerp.sae.sae import Sae

Columns = Mapping[str, Sequence[Any]]
"""Rows of a method's table by column; every column has the same length."""
Describe = Callable[[ShapeFacts], tuple[str | None, str | None]]
"""(label, rule) of a feature whose shape alone explains it; None where it does not. See rules/shape_labels.py."""
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Found:
    """What one call of a method found, and what became of each feature."""

    columns: Columns
    """Columns of the method's table, without dictionary_id and harvest_id; in any order of features."""
    runs: Sequence[MethodRun] = ()
    """One for every feature that was asked for, with its status and its part of the cost. Empty: each went well, and
    the first one bears the cost below."""
    n_forwards: int = 0
    """Sequences that the model read."""
    n_tokens: int = 0


def nothing_found(features: Sequence[int], status: str, error: str) -> Found:
    """No findings for any of the features, all for one reason."""
    return Found({}, [MethodRun(feature, status, error) for feature in features])


def no_output_space(features: Sequence[int], reason: NoProjection) -> Found:
    """No findings, because the SAE's vectors cannot be said in tokens."""
    return nothing_found(features, NO_OUTPUT_SPACE, str(reason))


PROJECTED = {"logits": 2}
"""Among the settings of methods that follow vectors to the logits; to be counted up when the way is found otherwise."""


@dataclass(frozen=True, slots=True)
class Study:
    """What a method works with: one dictionary of one store, as it was harvested. The model, the SAE and the text are
    loaded when a method first asks for them."""

    store: Store
    dictionary: DictionaryRow
    harvest_id: int
    config: Config
    model: Callable[[], LoadedModel]
    weights: Callable[[], Sae]
    """The SAE on the model's device; MismatchError where it is not the one of the store."""
    points: Callable[[], tuple[Hookpoint, Hookpoint | None]]
    """What the SAE reads and, for a transcoder, what it writes."""
    units: Callable[[], Iterator[WorkUnit]]
    """The corpus, with the windows of all splits."""
    describe_shape: Describe
    counting: Counting
    """A method that lasts says with it how much is done; one that does not is only said to be still in work."""
    _made: dict[Callable[[Study], Any], Any] = field(default_factory=dict, repr=False, compare=False)

    @property
    def evidence(self) -> EvidenceConfig:
        return self.config.evidence

    @property
    def dictionary_id(self) -> int:
        return self.dictionary.dictionary_id

    @property
    def batch_tokens(self) -> int:
        return self.config.model.batch_tokens

    def once(self, make: Callable[[Study], T]) -> T:
        """make(self), kept for the next call with the same function: what all blocks of features share."""
        if make not in self._made:
            self._made[make] = make(self)
        made: T = self._made[make]
        return made

    def text(self) -> TokenText:
        """Token ids to strings."""
        return self.once(_token_text)

    def excluded_ids(self) -> frozenset[int]:
        """Token ids that never count: special ones and those of corpus.exclude_tokens."""
        return self.once(_excluded_ids)

    def windows(self) -> Iterator[Sequence[Window]]:
        """The windows of each work unit in turn, of the explain split alone: no label may be made from the others."""
        for unit in self.units():
            yield [window for window in unit.windows if window.split == "explain"]

    def living(self) -> list[int]:
        """All features that are not dead, by number."""
        return self.store.selected_features(self.dictionary_id, Selection())

    def alive(self) -> np.ndarray:
        """bool [d_sae]: which features are not dead."""
        alive = np.zeros(self.dictionary.d_sae, dtype=bool)
        alive[self.living()] = True
        return alive


def _token_text(study: Study) -> TokenText:
    from autointerp.corpus.token_text import TokenText

    return TokenText(study.model().tokenizer)


def written_path(study: Study) -> LogitPath:
    """The way of what the SAE writes to the logits, for `Study.once`. Raises NoProjection where there is none."""
    from autointerp.model.joined_path import find_path

    read, written = study.points()
    return find_path(study.model(), written or read)


def read_path(study: Study) -> LogitPath:
    """The same of what it reads."""
    from autointerp.model.joined_path import find_path

    return find_path(study.model(), study.points()[0])


def _excluded_ids(study: Study) -> frozenset[int]:
    return study.text().excluded_ids(study.config.corpus.exclude_tokens)


def fields_of(config: EvidenceConfig, *names: str) -> dict[str, object]:
    """The named fields, for `Method.settings`."""
    return {name: getattr(config, name) for name in names}


class Method(Protocol):
    """An evidence method."""

    @property
    def name(self) -> str:
        """Stands in [evidence] methods, in --method and in the table method_runs."""

    @property
    def table(self) -> FindingTable:
        """Where its findings are kept."""

    @property
    def scope(self) -> Literal["dictionary", "feature"]:
        """dictionary: one call finds out about all features at once, whatever features were chosen. feature: calls for
        blocks of the chosen features, each written before the next begins."""

    def settings(self, config: EvidenceConfig) -> Mapping[str, object]:
        """All that the findings depend on besides the harvest, fit for JSON: the method runs again when it changes."""

    def find(self, study: Study, features: Sequence[int]) -> Found:
        """Studies the features; with scope "dictionary", all that are not dead."""

    def page(self, rows: Sequence[Row]) -> list[str]:
        """What a person reads of one feature: lines made of its rows in `table`, in the table's order. No rows, no
        lines. Control characters are made visible afterwards."""
