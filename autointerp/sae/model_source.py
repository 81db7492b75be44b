"""The model reading the corpus, as the source of activation vectors that training reads from."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from autointerp.config import CorpusConfig
from autointerp.corpus.report import CorpusReport
from autointerp.corpus.sources import read_documents
from autointerp.corpus.token_text import TokenText
from autointerp.corpus.windows import chat_renderer, work_units
from autointerp.model.batches import Halving, eligible, make_batches
from autointerp.model.hooks import Hookpoint, activations_at, hidden_size_at
from autointerp.model.load import LoadedModel


class ModelSource:
    """Activations [n, d] of a hookpoint on every token that counts, batch by batch, in the corpus's order.

    A position is [work unit, batch in the unit]: reading from there skips what lies before without running the model.
    """

    def __init__(self, loaded: LoadedModel, hookpoint: Hookpoint, corpus: CorpusConfig, batch_tokens: int) -> None:
        self.loaded, self.hookpoint, self.corpus, self.batch_tokens = loaded, hookpoint, corpus, batch_tokens
        self._d_in = hidden_size_at(loaded, hookpoint)
        excluded = sorted(TokenText(loaded.tokenizer).excluded_ids(corpus.exclude_tokens))
        self._excluded = torch.tensor(excluded, dtype=torch.int64, device=loaded.device)
        self._halving = Halving()

    @property
    def d_in(self) -> int:
        return self._d_in

    def read(self, position: Any) -> Iterator[tuple[Tensor, Any]]:
        first_unit, first_batch = position or (0, 0)
        report = CorpusReport()
        documents = read_documents(self.corpus, report, chat_renderer(self.loaded.tokenizer))
        units = work_units(
            documents, self.loaded.tokenizer, self.corpus, wanted=lambda index: index >= first_unit, report=report
        )
        for unit in units:
            batches = make_batches(unit.windows, self.batch_tokens, self.loaded.pad_id)
            skipped = first_batch if unit.index == first_unit else 0
            for number, batch in enumerate(batches[skipped:], start=skipped):
                parts = [
                    activations[eligible(part, self._excluded)]
                    for part, activations in self._halving.run(
                        batch.to(self.loaded.device),
                        lambda part: activations_at(self.loaded, self.hookpoint, part.ids),
                    )
                ]
                yield torch.cat(parts), [unit.index, number + 1]
