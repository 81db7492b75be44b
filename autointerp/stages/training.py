"""The stage that trains all dictionaries together from one stream of activations."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from autointerp.config import Config, SaeConfig, TrainConfig
from autointerp.errors import DamagedError, MismatchError, OutOfMemoryError
from autointerp.model.token_batches import is_out_of_memory
from autointerp.sae import files, parallel
from autointerp.sae.activation_cache import CachedSource
from autointerp.sae.formats import load_sae, sae_sha256, save_saelens, save_sparsify
from autointerp.sae.formats.declared import DECLARED
from autointerp.sae.kept_fill import KeptFill
from autointerp.sae.model_source import TRAINING_SPLITS, ModelSource, VectorColumns
from autointerp.sae.sae import Sae
from autointerp.sae.trainer import CHECKPOINT, Trainer
from autointerp.sae.training_run import SaeSpec
from autointerp.stages.checks import require
from autointerp.stages.held_weights import origin_of
from autointerp.stages.model_checks import model_checks
from autointerp.stages.session import (
    HELD_OUT,
    TRAINED,
    Session,
    corpus_key,
    d_sae_of,
    dictionary_id_of,
    digest,
    model_key,
)
from autointerp.stages.training_cache import cached_source
from autointerp.store.store import Store
from autointerp.terminal import Progress, Terminal

OVERSHOOTING = 3.0
"""The AuxK loss from which on training warns. 1 is what no reconstruction at all would have."""


def _training_key(config: Config, sae: SaeConfig) -> str:
    """A hash of everything on which a trained SAE depends: model, text, hookpoint, sizes, recipe."""
    of_sae = {k: v for k, v in asdict(sae).items() if k not in ("name", "path", "format", "reading")}
    if sae.frozen == "none":  # an SAE that was trained before there was a choice is the same
        del of_sae["frozen"]
    return digest(
        {
            "model": model_key(config),
            "corpus": corpus_key(config),
            "sae": of_sae,
            "train": _recipe(config),
        }
    )


def _recipe(config: Config) -> dict[str, Any]:
    """The settings of [train] that a trained SAE depends on. A cache changes where its vectors come from and their
    order, not which SAE is asked for; a bound on it changes how many different ones there are."""
    recipe = asdict(config.train)
    del recipe["checkpoint_every"], recipe["cache"]
    if recipe["cache_vectors"] is None:  # an SAE that was trained before there was a bound is the same
        del recipe["cache_vectors"]
    if recipe["longest"] == TrainConfig().longest:  # the same holds for one that was trained on long vectors too
        del recipe["longest"]
    return recipe


@contextmanager
def parallel_processes() -> Iterator[bool]:
    """Joins the processes that torchrun started, if any. Yields whether this is the process that writes."""
    parallel.start()
    try:
        yield parallel.is_first()
    finally:
        parallel.stop()


def train(session: Session, store: Store | None, saes: Sequence[SaeConfig]) -> bool:
    """Train those of `saes` that name no path and do not exist yet, together from one stream of activations. Returns
    whether anything was done. Metrics go to the store and to metrics.jsonl. Under torchrun only the first process has a
    store, and only it writes.
    """
    config, terminal = session.config, session.terminal
    with terminal.working("reading the corpus and the model for their hashes"):
        keys = {sae.dictionary: _training_key(config, sae) for sae in saes if not sae.path}
    todo = [sae for sae in saes if not sae.path and not _is_trained(session, sae, keys[sae.dictionary])]
    if not todo:
        return False
    require(model_checks(session, saes, store))
    loaded = session.model()
    session.say_how_text_is_read()
    if parallel.is_first():
        for sae in todo:
            _mark_held_out(session.sae_folder(sae) / "training")
    source = _source(session, todo)
    specs = [_spec(session, sae, source.columns) for sae in todo]
    last: dict[str, Mapping[str, float]] = {}
    warned: set[str] = set()
    steps = max(1, config.train.tokens // config.train.batch_size)
    n_features = ", ".join(f"{spec.d_sae:,}" for spec in specs)
    names = ", ".join(spec.name for spec in specs)
    what = f"{names}: training {n_features} features"
    trainer: Trainer | None = None
    kept = _kept_fill(session, todo[0], source) if isinstance(source, ModelSource) else None
    with terminal.progress(what, steps, "steps") as update, _Filling(terminal, names) as filling:

        def stop_at_deadline() -> None:
            if parallel.world_size() == 1 and session.deadline.left_s <= 0:
                if trainer is not None:  # while the first buffer fills there is no weight to save
                    trainer.save_checkpoints()
                session.deadline.check()

        def on_metrics(name: str, step: int, metrics: Mapping[str, float]) -> None:
            if metrics["auxk"] > OVERSHOOTING and name not in warned:
                warned.add(name)
                terminal.warn(overshooting(name, step, metrics["auxk"], config.train.dead_after))
            last[name] = metrics

        def on_progress(step: int, _: int) -> None:
            notes = (f"loss {m['loss']:.3f}, L0 {m['l0']:.0f}, dead {m['dead']:.1%}" for m in last.values())
            update(step, note="; ".join(notes))
            if step < steps:
                stop_at_deadline()

        def on_fill(vectors: int, of: int) -> None:
            if isinstance(source, ModelSource):  # the cache takes no time to speak of
                filling(vectors, of)
            if vectors < of:
                stop_at_deadline()

        try:
            trainer = Trainer(
                source,
                config.train,
                [(spec, session.sae_folder(sae) / "training") for spec, sae in zip(specs, todo, strict=True)],
                device=loaded.device,
                on_metrics=on_metrics,
                on_progress=on_progress,
                on_fill=on_fill,
                kept=kept,
            )
            update.begin_at(trainer.step)
            trained = trainer.train()
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            raise OutOfMemoryError(
                f"out of memory while training {names} ({str(error).splitlines()[0]}). Free some and run again, which "
                "goes on from the last checkpoint; or lower train.batch_size, train.buffer_vectors or the number of "
                "features, and delete the SAE's folder"
            ) from None
    if kept is not None:
        kept.delete()
    if store is not None:
        for sae, weights in zip(todo, trained, strict=True):
            _keep_trained(session, store, sae, weights, keys[sae.dictionary])
    return True


def overshooting(name: str, step: int, auxk: float, dead_after: int) -> str:
    """The warning that the features which count as dead are driven too hard."""
    return (
        f"{name}: at step {step:,} the features that count as dead reconstruct what the others leave {auxk:.0f} times "
        f"as badly as nothing would. Mostly they are not dead but rare: raise train.dead_after ({dead_after:,} "
        "vectors), above all where k is small and the dictionary large, or lower train.lr; then delete the SAE's "
        "folder and train anew"
    )


def _mark_held_out(folder: Path) -> None:
    """Notes that this training does not read the report split, unless it goes on from steps without such a note."""
    if not (folder / CHECKPOINT).exists():
        folder.mkdir(parents=True, exist_ok=True)
        note = json.dumps({"splits": list(TRAINING_SPLITS)}) + "\n"
        files.write_atomically(folder / HELD_OUT, lambda temporary: temporary.write_text(note, encoding="utf-8"))


def _source(session: Session, todo: Sequence[SaeConfig]) -> ModelSource | CachedSource:
    """What gives the vectors: the model while the SAEs train, or what it once gave and the cache holds."""
    config = session.config
    if config.train.cache is not None:
        return cached_source(session, todo)
    return ModelSource(session.model(), session.hookpoints(todo), config.corpus, config.model.batch_tokens)


def _kept_fill(session: Session, first: SaeConfig, source: ModelSource) -> KeptFill | None:
    """Where a slow fill of the shuffle buffer is kept: beside the first SAE's checkpoint. None under torchrun, where
    all processes would have to find the same on disk."""
    if parallel.world_size() > 1:
        return None
    config, loaded = session.config, source.loaded
    # the buffer holds all vectors of the model, long ones too; only a source of another kind reads a cache
    elsewhere = ("cache", "cache_vectors", "longest")
    key = digest(
        {
            "model": model_key(config),
            "corpus": corpus_key(config),
            "train": {name: value for name, value in asdict(config.train).items() if name not in elsewhere},
            "batch_tokens": config.model.batch_tokens,
            "hookpoints": [str(point) for point in source.hookpoints],
            "device": loaded.device.type,
            "splits": TRAINING_SPLITS,
        }
    )
    return KeptFill(session.sae_folder(first) / "training" / "buffer", key, loaded.device)


class _Filling:
    """The progress of filling the shuffle buffer, as a separate step that restarts at every refill."""

    def __init__(self, terminal: Terminal, names: str) -> None:
        self._terminal, self._names = terminal, names
        self._stack = ExitStack()
        self._update: Progress | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def __call__(self, vectors: int, of: int) -> None:
        if vectors >= of:
            self._stack.close()
            self._update = None
        elif self._update is None:
            step = self._terminal.progress(f"{self._names}: filling the shuffle buffer", of, "vectors", done=vectors)
            self._update = self._stack.enter_context(step)
        else:
            self._update(vectors)


def _is_trained(session: Session, sae: SaeConfig, key: str) -> bool:
    """Whether the SAE is trained already. Raises MismatchError if its folder holds one that was trained differently."""
    folder = session.sae_folder(sae)
    if not (folder / TRAINED).exists():
        return False
    try:
        found = json.loads((folder / TRAINED).read_text(encoding="utf-8"))["key"]
    except (OSError, ValueError, RecursionError, TypeError, KeyError):
        raise DamagedError(f"{folder / TRAINED} cannot be read; delete the folder to train again") from None
    if found != key:
        raise MismatchError(
            f"{folder} holds an SAE trained with other settings or other text; give this [[sae]] a new name, or delete "
            "the folder to train again"
        )
    session.terminal.say(f"{sae.dictionary}: trained already ({folder})")
    return True


def _spec(session: Session, sae: SaeConfig, columns: VectorColumns) -> SaeSpec:
    point, output = session.points(sae)
    begin, end = columns[point]
    settings: dict[str, Any] = {"decoder_norm_penalty": sae.decoder_norm_penalty, "p_end": sae.p_end}
    return SaeSpec(
        name=sae.dictionary,
        architecture=sae.architecture,
        d_sae=d_sae_of(sae, end - begin),
        k=sae.k,
        inputs=(begin, end),
        outputs=None if output is None else columns[output],
        skip=sae.skip,
        penalty=sae.penalty,
        seed=session.config.train.seed if sae.seed is None else sae.seed,
        frozen=None if sae.frozen == "none" else sae.frozen,
        settings=settings | {"prefixes": list(sae.prefixes), "bandwidth": sae.bandwidth},
    )


def _keep_trained(session: Session, store: Store, sae: SaeConfig, weights: Sae, key: str) -> None:
    folder = session.sae_folder(sae)
    # SAELens has no class for a transcoder that chooses by k
    save = save_sparsify if sae.output_hookpoint is not None and weights.k is not None else save_saelens
    metrics = _all_metrics(folder / "training" / "metrics.jsonl")
    # From the file, not from the loop: a run killed at its very end has no steps left.
    last = {row["metric"]: row["value"] for row in metrics}
    origin = {**origin_of(session, sae), "dataset": session.config.corpus.source}
    figures = {DECLARED: {"l0": last["l0"], "fvu": last["reconstruction"]}}
    save(weights, folder, {**weights.metadata, **origin, **figures})
    sha256, saved = sae_sha256(folder, sae.format), load_sae(folder)
    dictionary_id = dictionary_id_of(session, store, sae, saved, sha256)
    store.insert_metrics(dictionary_id, metrics)
    mark = json.dumps({"key": key, "sae_sha256": sha256}) + "\n"
    files.write_atomically(folder / TRAINED, lambda temporary: temporary.write_text(mark, encoding="utf-8"))
    session.terminal.say(
        f"{sae.dictionary}: trained {weights.d_sae:,} features ({sae.architecture}), unexplained variance "
        f"{last['reconstruction']:.3f} at L0 {last['l0']:.1f} -> {folder}"
    )


def _all_metrics(path: Path) -> list[Mapping[str, Any]]:
    """The metrics of every logged step, those before a resume included."""
    rows: list[Mapping[str, Any]] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        logged = json.loads(line)
        step = logged.pop("step")
        rows.extend({"step": step, "metric": name, "value": value} for name, value in logged.items())
    return rows
