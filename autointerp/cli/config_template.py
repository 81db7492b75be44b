"""Makes the commented autointerp.toml of `autointerp init` from the config dataclasses, so that it always fits them."""

from __future__ import annotations

import ast
import inspect
import json
import textwrap
from typing import Any

from autointerp import config as settings

_HEAD = """\
# autointerp.toml: what to read, from which model, with which SAE, and how to label it.
# Lines that start with '#' show the defaults. API keys do not belong here: export the variable named by api_key_env.
# A setting with the default "none", and temperature, takes "none" for "not set".
# Every value can also be set by an environment variable, e.g. AUTOINTERP_MODEL__DEVICE=cuda:1
"""

_SET: dict[str, dict[str, Any]] = {
    "model": {"name": "gpt2"},
    "corpus": {"source": "texts/*.txt"},
    "sae": {"hookpoint": "transformer.h.6"},
    "explain": {"explainer": "combined", "model": "gpt-4o-mini"},
    "score": {"model": "gpt-4o-mini"},
}
"""Values that a new user has to look at. They are written out, not commented out."""

_SECTIONS: list[tuple[str, type]] = [
    ("model", settings.ModelConfig),
    ("corpus", settings.CorpusConfig),
    ("sae", settings.SaeConfig),
    ("train", settings.TrainConfig),
    ("harvest", settings.HarvestConfig),
    ("evidence", settings.EvidenceConfig),
    ("explain", settings.ExplainConfig),
    ("score", settings.ScoreConfig),
    ("llm", settings.LlmConfig),
    ("budget", settings.BudgetConfig),
    ("store", settings.StoreConfig),
]


def field_docs(kind: type) -> dict[str, str]:
    """The string under each field of a config dataclass and its bases, by field name."""
    docs: dict[str, str] = {}
    for owner in reversed(kind.__mro__[:-1]):
        body = ast.parse(textwrap.dedent(inspect.getsource(owner))).body[0]
        assert isinstance(body, ast.ClassDef)
        for node, after in zip(body.body, [*body.body[1:], None], strict=True):
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                text = ""
                if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
                    text = " ".join(str(after.value.value).split())
                docs[node.target.id] = text
    return docs


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if value is None:
        return '"none"'
    if isinstance(value, tuple):
        return json.dumps(list(value))
    return json.dumps(value)


def _section(name: str, kind: type) -> str:
    lines = ["[[sae]]" if name == "sae" else f"[{name}]"]
    defaults = kind()
    for key, doc in field_docs(kind).items():
        default, chosen = getattr(defaults, key), _SET.get(name, {})
        if isinstance(default, dict):
            continue
        lines += textwrap.wrap(doc, 110, initial_indent="# ", subsequent_indent="# ")
        if key in chosen:
            lines.append(f"{key} = {_toml(chosen[key])}")
        else:
            lines.append(f"# {key} = {_toml(default)}")
    return "\n".join(lines)


_PRICES = """\
# US dollars per million tokens, in one table for each model name. Without a table the model's costs are reported as 0.
# [llm.prices."gpt-4o-mini"]
# input = 0.15
# cached_input = 0.075
# output = 0.60
# batch_discount = 0.5  # the batch API's discount; or give batch_input, batch_cached_input, batch_output"""


def config_template() -> str:
    parts = [_HEAD]
    for name, kind in _SECTIONS:
        parts.append(_section(name, kind))
        if name == "llm":
            parts.append(_PRICES)
    return "\n\n".join(p.rstrip() for p in parts) + "\n"
