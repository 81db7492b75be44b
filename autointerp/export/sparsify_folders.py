"""Target `sparsify`: a folder for each TopK SAE or transcoder, named after its module as sparsify names it.

`SparseCoder.load_many(OUT, local=True)` opens them all.
"""

from __future__ import annotations

from pathlib import Path

from autointerp.errors import InputError
from autointerp.export.export_target import Job, Source, Tally
from autointerp.export.weights_notes import described, note_limits


class SparsifyFolders:
    name = "sparsify"
    about = "TopK SAEs and transcoders for sparsify: a folder each, named after its module"
    needs_weights = True
    reads_graphs = False

    def write(self, job: Job, folder: Path, tally: Tally) -> None:
        from autointerp.sae.formats import save_sparsify

        assert job.sources is not None
        for source in job.sources():
            place = folder / _module(source)
            if place.exists():
                raise InputError(
                    f"two dictionaries are at {place.name}, after which sparsify names its folder; choose one with "
                    "--dictionary"
                )
            sae, _ = source.load()
            save_sparsify(sae, place, described(source, sae))
            note_limits(source, sae, tally)
            tally.written["dictionaries"] += 1
            tally.written["features"] += sae.d_sae


def _module(source: Source) -> str:
    if source.base_path is None:
        raise InputError(
            f"{source.name}: sparsify's coders reconstruct a module's output from that output or, as transcoders, from "
            "the same module's input (module:in), and this one reads or writes something else"
        )
    return source.base_path


SPARSIFY = SparsifyFolders()
