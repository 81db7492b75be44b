"""`autointerp demo`: labels the features of the shipped model on the standard library's text.

Nothing here is special: it writes the configuration that a user would write, and runs the pipeline on it.
"""

from __future__ import annotations

import time
from pathlib import Path

from autointerp.cli.demo_config import is_written, toml_path, write_config
from autointerp.config_file import load
from autointerp.report.label_table import print_labels
from autointerp.resources import data_folder
from autointerp.stages import pipeline
from autointerp.store.selection import Selection
from autointerp.terminal import Terminal

_CONFIG = """\
# The demo: a small language model of Python code, and an SAE on the output of its third block.

[model]
name = {model}

[corpus]
source = "stdlib"        # the standard library of the interpreter that runs this
max_tokens = {tokens}

[[sae]]
name = "demo"
hookpoint = "model.layers.2"
architecture = "topk"
d_sae = 1024
k = 16

[train]
tokens = {train_tokens}
lr = 3e-3

[harvest]
sampled_contexts = 60    # so many come from 20 files and more, which tests of a label against its controls take

[explain]
explainer = "patterns"   # needs no LLM; "combined" asks one (set model and base_url)

[score]
scorers = ["simulation"]

[store]
path = "demo.duckdb"
"""

TOKENS = 1_000_000


def run_demo(out: Path, tokens: int | None, terminal: Terminal) -> None:
    """Write OUT/autointerp.toml unless it exists, run every stage, and print the table of labels."""
    path = out / "autointerp.toml"
    if not is_written(path):
        count = tokens or TOKENS
        model = toml_path(str(data_folder() / "demo_model"))
        write_config(path, _CONFIG.format(model=model, tokens=count, train_tokens=count))
        terminal.say(f"wrote {path}")
    begun = time.monotonic()
    config = load(path)
    pipeline.run(config, None, Selection(), terminal)
    print_labels(Path(config.store.path), "demo", terminal)
    terminal.say(f"done in {time.monotonic() - begun:.0f} s; everything is in {out}")
    terminal.say(f'look further: cd {out} && autointerp show 0   or   autointerp query "SELECT * FROM labels LIMIT 5"')
