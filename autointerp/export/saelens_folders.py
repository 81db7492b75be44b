"""Target `saelens`: a folder for each dictionary as SAELens version 6 saves it, which `SAE.load_from_disk` opens."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from autointerp.export.export_target import Job, Source, Tally
from autointerp.export.named_folders import folder_names
from autointerp.export.weights_notes import described, note_limits

if TYPE_CHECKING:
    from autointerp.sae.sae import Sae

_HUGGING_FACE = "AutoModelForCausalLM"


class SaelensFolders:
    name = "saelens"
    about = "the dictionaries for SAELens 6: a folder each"
    needs_weights = True
    reads_graphs = False

    def write(self, job: Job, folder: Path, tally: Tally) -> None:
        from autointerp.sae.formats import save_saelens

        assert job.sources is not None
        sources = job.sources()
        for source, name in zip(sources, folder_names([one.name for one in sources]), strict=True):
            sae, _ = source.load()
            save_saelens(sae, folder / name, _metadata(source, sae))
            note_limits(source, sae, tally)
            tally.written["dictionaries"] += 1
            tally.written["features"] += sae.d_sae


def _metadata(source: Source, sae: Sae) -> dict[str, Any]:
    """TransformerLens's name of the hookpoint where it has one. Else the module's path, which SAELens reads on the
    Hugging Face model itself (model_class_name)."""
    found = described(source, sae)
    if found.get("model_class_name") == _HUGGING_FACE and isinstance(sae.metadata.get("hook_name"), str):
        return {**found, "hook_name": sae.metadata["hook_name"]}
    if not source.hook_names:
        return {**found, "hook_name": source.metadata["module_path"], "model_class_name": _HUGGING_FACE}
    found = {**found, "hook_name": source.hook_names[0]}
    found.pop("model_class_name", None)
    return {**found, "hook_name_out": source.output_hook_names[0]} if source.output_hook_names else found


SAELENS = SaelensFolders()
