"""Controls for a whole dictionary: what the pipeline finds where a part of the dictionary was never learned.

Each is a dictionary of its own in the store, made like the one that it is a control for but for one thing, harvested,
labelled and scored. Its name is that dictionary's with the control's in brackets: "h6 (frozen_decoder)".

    random_model             on the model with random weights
    random_model_embeddings  the same with the trained embeddings
    frozen_decoder           decoder rows stay as drawn, the rest is trained
    soft_frozen              decoder rows stay near where they were drawn
    frozen_encoder           encoder rows stay as drawn, the rest is trained

The last three are from Korznikov et al. 2026 (arXiv 2602.14111), the first two from Heap et al. 2025 (2501.17727).
"""

from __future__ import annotations

from typing import Literal

RANDOM_MODELS = ("random_model", "random_model_embeddings")
FROZEN_PARTS: dict[str, Literal["decoder", "soft_decoder", "encoder"]] = {
    "frozen_decoder": "decoder", "soft_frozen": "soft_decoder", "frozen_encoder": "encoder",
}  # fmt: skip
"""For each control that is trained on the model as it is, its `sae.frozen`."""
DICTIONARY_CONTROLS = (*RANDOM_MODELS, *FROZEN_PARTS)
LABEL_CONTROLS = ("shuffled", "neighbour_label", "empty", "token_lookup")
"""The controls of single labels: what can stand in for one (see score/controls.py)."""


def control_name(dictionary: str, control: str) -> str:
    return f"{dictionary} ({control})"


def is_control(name: str) -> bool:
    """Whether the dictionary of this name is a control of another one."""
    return name.endswith(tuple(control_name("", control) for control in DICTIONARY_CONTROLS))
