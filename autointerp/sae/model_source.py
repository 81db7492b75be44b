"""The source of activation vectors for training: the model reads the corpus."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from autointerp.config import CorpusConfig
from autointerp.corpus.chat_template import chat_renderer
from autointerp.corpus.corpus_report import CorpusReport
from autointerp.corpus.sources import read_documents
from autointerp.corpus.token_text import TokenText
from autointerp.corpus.windows import work_units
from autointerp.model.hooks import Hookpoint, activations_at_all, hidden_size_at
from autointerp.model.input_limits import unreadable_tokens
from autointerp.model.load import LoadedModel
from autointerp.model.token_batches import Batch, Halving, eligible, make_batches
from autointerp.records import Split
from autointerp.sae import parallel

TRAINING_SPLITS: tuple[Split, ...] = ("explain", "select")
"""The report split is kept from training, so that a dictionary can be evaluated on text it was not fitted to."""


VectorColumns = dict[Hookpoint, tuple[int, int]]
"""Where the vectors of each hookpoint stand in vectors that lie side by side: the first column, and the one after the
last."""


def columns_of(loaded: LoadedModel, hookpoints: Sequence[Hookpoint]) -> VectorColumns:
    """The columns of these hookpoints, in their order. Raises InputError for one that the model does not have."""
    columns: VectorColumns = {}
    end = 0
    for point in dict.fromkeys(hookpoints):
        begin, end = end, end + hidden_size_at(loaded, point)
        columns[point] = (begin, end)
    return columns


class ModelSource:
    """Activations [n, sum of widths] of hookpoints, side by side, on every token that counts of TRAINING_SPLITS, in the
    corpus's order.

    One forward pass serves all hookpoints, and `columns` gives the columns of each. A position is [work unit, batch in
    the unit]; reading from it skips everything before it without running the model. Under torchrun each process runs
    the model on its share of the batches, and every process gets all vectors.
    """

    def __init__(
        self, loaded: LoadedModel, hookpoints: Sequence[Hookpoint], corpus: CorpusConfig, batch_tokens: int
    ) -> None:
        self.loaded, self.corpus, self.batch_tokens = loaded, corpus, batch_tokens
        self.columns = columns_of(loaded, hookpoints)
        self.hookpoints = list(self.columns)
        excluded = sorted(TokenText(loaded.tokenizer).excluded_ids(corpus.exclude_tokens))
        self._excluded = torch.tensor(excluded, dtype=torch.int64, device=loaded.device)
        self._halving = Halving()

    @property
    def d_in(self) -> int:
        return max(end for _, end in self.columns.values())

    def read(self, position: Any) -> Iterator[tuple[Tensor, Any]]:
        first_unit, first_batch = position or (0, 0)
        report = CorpusReport()
        documents = read_documents(self.corpus, report, chat_renderer(self.loaded.tokenizer))
        units = work_units(
            documents, self.loaded.tokenizer, self.corpus, wanted=lambda index: index >= first_unit, report=report,
            unreadable=unreadable_tokens(self.loaded.model, self.loaded.tokenizer),
        )  # fmt: skip
        size = parallel.world_size()
        for unit in units:
            windows = [window for window in unit.windows if window.split in TRAINING_SPLITS]
            batches = make_batches(windows, self.batch_tokens, self.loaded.pad_id)
            skipped = first_batch if unit.index == first_unit else 0
            for number in range(skipped, len(batches), size):
                own = batches[number + parallel.rank() : number + parallel.rank() + 1]
                vectors = self._vectors(own[0]) if own else torch.zeros(0, self.d_in, device=self.loaded.device)
                yield parallel.gathered(vectors), [unit.index, number + size]

    def _vectors(self, batch: Batch) -> Tensor:
        parts = []
        for part, activations in self._halving.run(
            batch.to(self.loaded.device),
            lambda part: activations_at_all(self.loaded, self.hookpoints, part.ids, part.lengths),
        ):
            counted = eligible(part, self._excluded)
            parts.append(torch.cat([x[counted.to(x.device)].to(self.loaded.device) for x in activations], dim=1))
        return torch.cat(parts)
