"""The contract of an export target: what it is told, what it writes, and what it says it left out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from autointerp.progress import Counting, uncounted

if TYPE_CHECKING:
    from autointerp.sae.sae import Sae


@dataclass(frozen=True, slots=True)
class Source:
    """The files of one dictionary, and its places in the model by the names of other tools."""

    name: str
    hook_names: tuple[str, ...]
    """TransformerLens's names of what the dictionary reads; empty where it has none."""
    output_hook_names: tuple[str, ...] | None
    """The same for what it writes; None unless it is a transcoder."""
    base_path: str | None
    """The path, within the base model, of the module whose output the dictionary reconstructs; for a transcoder, of the
    module whose input it reads and whose output it writes. None where no single module is both."""
    n_layers: int | None
    """Blocks of the model; None where it has no list of blocks."""
    metadata: dict[str, Any]
    """Model, place and way of reading, under SAELens's names."""
    load: Callable[[], tuple[Sae, frozenset[str]]]
    """Reads the dictionary, on CPU in float32, checks it against the model, and returns it with the hashes by which
    stores know it: today's, and that of earlier versions."""


@dataclass(slots=True)
class Tally:
    """What an export holds, and what it lacks."""

    written: Counter[str] = field(default_factory=Counter)
    """How many of what was written: {"features with a label": 943}."""
    left_out: Counter[str] = field(default_factory=Counter)
    """How many were left out, by the reason: {"features without a label: not explained": 81}."""
    notes: list[str] = field(default_factory=list)
    """What a user of the other tool must know."""

    def note(self, text: str) -> None:
        """Adds a note, once."""
        if text not in self.notes:
            self.notes.append(text)


@dataclass(frozen=True, slots=True)
class Job:
    """What a target has to work with."""

    name: str
    """The name of the folder that is written."""
    store: Path
    dictionaries: tuple[str, ...] = ()
    """The chosen dictionaries; none chosen: all."""
    contexts: int = 5
    """The most contexts of each kind that a feature gets."""
    graphs: tuple[Path, ...] = ()
    sources: Callable[[], Sequence[Source]] | None = None
    """The chosen dictionaries' files; None unless the target `needs_weights`."""
    counting: Callable[[str], Counting] = lambda dictionary: uncounted
    """How far the work on a dictionary is."""
    say: Callable[[str], None] | None = None


class Target(Protocol):
    """One thing to export to: a file in this room and an entry in targets.py."""

    @property
    def name(self) -> str:
        """What a user types."""
        ...

    @property
    def about(self) -> str:
        """What is written, in half a line."""
        ...

    @property
    def needs_weights(self) -> bool:
        """Whether it reads the dictionaries' files, for which the model is loaded."""
        ...

    @property
    def reads_graphs(self) -> bool:
        """Whether it works on graphs that the other tool made (`Job.graphs`)."""
        ...

    def write(self, job: Job, folder: Path, tally: Tally) -> None:
        """Fills `folder`, which exists and is empty. Raises InputError for what the other tool has no form for."""
        ...
