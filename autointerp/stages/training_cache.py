"""Where the training stage keeps activations on disk (`[train] cache`), and whether the disk has room for them.

The cache of one model and one text lies in a folder of its own, named by a digest of both, with a folder for every
hookpoint. So one train.cache serves any number of configurations, and what does not fit is never read.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from autointerp.config import Config, SaeConfig
from autointerp.corpus.chat_template import chat_renderer
from autointerp.corpus.corpus_report import CorpusReport
from autointerp.corpus.sources import read_documents, split_rule
from autointerp.corpus.windows import token_ids
from autointerp.errors import DiskFullError, InputError
from autointerp.harvest.memory import disk_space
from autointerp.model.hooks import Hookpoint
from autointerp.sae import files, parallel
from autointerp.sae.activation_cache import CachedSource, Held, cached, fill, filling, next_stretch
from autointerp.sae.activation_shards import SHARD_VECTORS, Shards
from autointerp.sae.model_source import TRAINING_SPLITS, ModelSource, VectorColumns, columns_of
from autointerp.stages.session import TRAINED, Session, corpus_key, digest, file_name, model_key

SAMPLED_DOCUMENTS, SAMPLED_CHARACTERS = 200, 2_000
"""The beginnings of the first documents tell about how many characters a token has."""
MARGIN = 1.1
"""Factor on the number of vectors that is estimated so."""


def cached_source(session: Session, saes: Sequence[SaeConfig]) -> CachedSource:
    """The activations that training `saes` reads, all of them on disk. What is missing is made first, in one pass of
    the model. Raises DiskFullError, which describe_cache foresees, StoreBusyError if another process makes them, and
    InputError if the folder cannot be used."""
    config, loaded, terminal = session.config, session.model(), session.terminal
    wanted, columns, key = _wanted(config), columns_of(loaded, session.hookpoints(saes)), _key(session)
    folder = _folder(config, key)

    def source_of(points: Sequence[Hookpoint]) -> ModelSource:
        return ModelSource(loaded, points, config.corpus, config.model.batch_tokens)

    try:
        held = _held(folder, columns, key)
        if next_stretch(held, wanted) is not None:
            with filling(folder):
                if parallel.is_first():
                    _write_facts(session, folder)
                held = _held(folder, columns, key)
                total = min(wanted, max(_expected(session, wanted), _first_missing(held, wanted)))
                names = ", ".join(map(str, columns))
                what = f"filling the activation cache of {names}"
                with terminal.progress(what, total, "vectors", done=_first_missing(held, wanted)) as update:

                    def on_progress(done: int) -> None:
                        update(done, max(total, done))
                        if parallel.world_size() == 1 and done % SHARD_VECTORS == 0:  # a whole shard is on disk
                            session.deadline.check()

                    n_vectors = fill(held, wanted, source_of, on_progress)
                    if n_vectors < total:  # the corpus has fewer than was estimated
                        update(n_vectors, n_vectors)
        n_vectors = cached(held, wanted)
    except OSError as error:
        raise _unusable(folder, error) from None
    terminal.say(f"the activation cache {folder} holds {n_vectors:,} vectors of {', '.join(map(str, columns))}")
    return CachedSource(held, columns, n_vectors, key=key, seed=config.train.seed, device=loaded.device)


def describe_cache(session: Session, saes: Sequence[SaeConfig]) -> str:
    """Says what is in the cache for those of `saes` that are still to be trained. Raises DiskFullError if the disk has
    no room for what is missing, and InputError if the folder cannot be used."""
    untrained = [sae for sae in saes if not sae.path and not (session.sae_folder(sae) / TRAINED).exists()]
    if not untrained:
        return "no SAE is to be trained, so it is not read"
    config, wanted, key = session.config, _wanted(session.config), _key(session)
    folder, columns = _folder(config, key), columns_of(session.model(), session.hookpoints(untrained))
    try:
        held = _held(folder, columns, key)
        if next_stretch(held, wanted) is None:
            return f"{folder} holds {cached(held, wanted):,} vectors of {', '.join(map(str, columns))}"
        place, free = disk_space(folder)
        if not os.access(place, os.W_OK | os.X_OK) or not place.is_dir():
            raise InputError(f"the activation cache cannot be made in {place}, where nothing can be written; {_ELSE}")
    except OSError as error:
        raise _unusable(folder, error) from None
    needed = _bytes_missing(session, held, columns)
    if needed > free:
        raise DiskFullError(
            f"the activation cache of {', '.join(map(str, columns))} needs {_size(needed)}, and {_size(free)} are free "
            f"at {place}. Free some space, name a folder on another disk in train.cache, or keep fewer vectors "
            f"(train.cache_vectors, which is {wanted:,} now)"
        )
    return f"{folder} will take about {_size(needed)} more, of {_size(free)} that are free"


_ELSE = "name another folder in train.cache"


def _unusable(folder: Path, error: OSError) -> InputError:
    return InputError(f"the activation cache {folder} cannot be used: {error.strerror or error}; {_ELSE}")


def _size(n_bytes: int) -> str:
    return f"{n_bytes / 2**20:,.1f} MiB"


def _wanted(config: Config) -> int:
    return config.train.tokens if config.train.cache_vectors is None else config.train.cache_vectors


def _facts(session: Session) -> dict[str, Any]:
    """Everything that the vectors and their order depend on."""
    config, loaded = session.config, session.model()
    return {
        "model": model_key(config),
        "quantization": config.model.quantization,
        "corpus": corpus_key(config),
        "splits": [list(TRAINING_SPLITS), split_rule(config.corpus)],
        "batch_tokens": config.model.batch_tokens,
        "device": loaded.device.type,
        "dtype": str(loaded.dtype).removeprefix("torch."),
    }


def _key(session: Session) -> str:
    return digest(_facts(session))


def _folder(config: Config, key: str) -> Path:
    assert config.train.cache is not None
    return Path(config.train.cache) / key[:16]


def _held(folder: Path, columns: VectorColumns, key: str) -> Held:
    return {
        point: Shards(folder / file_name(str(point)), {"key": key, "hookpoint": str(point), "width": end - begin})
        for point, (begin, end) in columns.items()
    }


def _write_facts(session: Session, folder: Path) -> None:
    """Write what the folder's name stands for, so that a person can tell whose cache it is."""
    config = session.config
    named = {"model": config.model.name, "source": config.corpus.source, **_facts(session)}
    text = json.dumps(named, indent=1, default=str) + "\n"
    files.write_atomically(folder / "of.json", lambda temporary: temporary.write_text(text, encoding="utf-8"))


def _first_missing(held: Held, wanted: int) -> int:
    stretch = next_stretch(held, wanted)
    return wanted if stretch is None else stretch[0] * SHARD_VECTORS


def _bytes_missing(session: Session, held: Held, columns: VectorColumns) -> int:
    wanted = _wanted(session.config)
    total = min(cached(held, wanted), _expected(session, wanted))
    missing = 0
    for point, (begin, end) in columns.items():
        for first in range(0, total, SHARD_VECTORS):
            size = min(SHARD_VECTORS, total - first)
            if not held[point].holds(first // SHARD_VECTORS, size):
                missing += size * (end - begin)
    return missing * session.model().dtype.itemsize


def _expected(session: Session, most: int) -> int:
    """About how many vectors the corpus gives, but at most `most`. All text is looked at, or as much as gives `most`;
    of a data set of the hub, which would have to be fetched for that, nothing is."""
    corpus = session.config.corpus
    if corpus.max_tokens is not None:
        most = min(most, corpus.max_tokens)
    if corpus.source.startswith("hf:"):
        return most
    if session.expected_vectors is None:
        with session.terminal.working("measuring the corpus for the activation cache"):
            session.expected_vectors = _measured(session, most)
    return min(most, session.expected_vectors)


def _measured(session: Session, most: int) -> int:
    tokenizer, corpus = session.model().tokenizer, replace(session.config.corpus, max_tokens=None)
    documents = read_documents(corpus, CorpusReport(), chat_renderer(tokenizer))
    n_characters, n_tokens, per_character = 0, 0.0, 0.0
    while sample := list(islice(documents, SAMPLED_DOCUMENTS)):
        if not per_character:
            texts = [document.text for document in sample]
            ids = token_ids([text[:SAMPLED_CHARACTERS] for text in texts], tokenizer)
            n_read = sum(min(len(text), SAMPLED_CHARACTERS) for text in texts)
            per_character = sum(map(len, ids)) / max(1, n_read)
        n_characters += sum(len(d.text) for d in sample if d.split in TRAINING_SPLITS)
        n_tokens = MARGIN * per_character * n_characters
        if n_tokens >= most:
            break
    return max(1, int(n_tokens))
