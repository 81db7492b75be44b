"""What is configured for the controls of a dictionary, and that SAEs trained before there were any stay as they are."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import pytest
from support.store_fixtures import add_features, filled

from autointerp.config import Config, CorpusConfig, ModelConfig, SaeConfig, StoreConfig, TrainConfig
from autointerp.dictionary_controls import DICTIONARY_CONTROLS
from autointerp.errors import InputError
from autointerp.stages.control_dictionaries import check_names, control_configs
from autointerp.stages.session import corpus_key, digest, model_key
from autointerp.stages.training import _training_key
from autointerp.store import Store
from autointerp.terminal import Terminal

SAE = SaeConfig(hookpoint="h", name="h", architecture="gated", d_sae=64, k=4)
CONFIG = Config(model=ModelConfig(name="m"), sae=(SAE,), train=TrainConfig(seed=3))


def test_controls_of_one_model_are_trained_together_and_differ_in_one_thing() -> None:
    random, with_embeddings, frozen = control_configs(CONFIG, [SAE], DICTIONARY_CONTROLS, Terminal())
    assert random.model == replace(CONFIG.model, random_weights=3)
    assert with_embeddings.model == replace(CONFIG.model, random_weights=3, keep_embeddings=True)
    assert random.sae == (replace(SAE, name="h (random_model)"),)
    assert frozen.model == CONFIG.model and frozen.sae == (
        replace(SAE, name="h (frozen_decoder)", frozen="decoder"),
        replace(SAE, name="h (soft_frozen)", frozen="soft_decoder"),
        replace(SAE, name="h (frozen_encoder)", frozen="encoder"),
    )
    for made in (random, with_embeddings, frozen):
        assert replace(made, model=CONFIG.model, sae=CONFIG.sae) == CONFIG
    assert control_configs(CONFIG, [SAE], ["soft_frozen"], Terminal())[0].sae == (frozen.sae[1],)
    with pytest.raises(InputError, match="is the name of a control"):
        check_names([sae.dictionary for sae in random.sae])


def test_a_loaded_sae_has_controls_of_its_size(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store, dictionary, harvest = filled(tmp_path / "x.duckdb")
    add_features(store, dictionary, harvest, ["live"] * 6)
    k = store.mean_active(dictionary)
    store.close()
    sae = SaeConfig(hookpoint="h", name="layer3", path="somewhere", format="gemma_scope", architecture="relu", k=2)
    config = replace(CONFIG, sae=(sae,), store=StoreConfig(path=str(tmp_path / "x.duckdb")))
    (made,) = control_configs(config, [sae], ["frozen_decoder"], Terminal())
    (control,) = made.sae
    assert (control.path, control.format, control.d_sae, control.architecture) == (None, "auto", 6, "relu")
    assert k is not None and control.k == max(1, round(k))
    assert "a loaded SAE of the architecture topk; its controls are trained as relu" in " ".join(
        capsys.readouterr().err.split()
    )
    with Store.open(tmp_path / "x.duckdb") as store:
        store.add_dictionary(
            name="new", model="demo", revision="abc", hookpoint="h", architecture="topk", d_in=8, d_out=8, d_sae=6,
            sae_sha256="other", tokenizer_sha256="tok", config={},
        )  # fmt: skip
    with pytest.raises(InputError, match="new was not harvested yet"):
        control_configs(config, [replace(sae, name="new")], ["frozen_decoder"], Terminal())


def test_what_was_trained_before_there_was_a_choice_need_not_be_trained_again(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text " * 50)
    config = replace(CONFIG, corpus=CorpusConfig(source=str(tmp_path)))
    later = ("name", "path", "format", "frozen", "reading", "source_layer", "source_layers")
    before = {k: v for k, v in asdict(SAE).items() if k not in later}
    new = ("checkpoint_every", "cache", "cache_vectors", "longest")
    train = {k: v for k, v in asdict(config.train).items() if k not in new}
    key = digest({"model": ["m", None, "auto"], "corpus": corpus_key(config), "sae": before, "train": train})
    assert _training_key(config, SAE) == key
    assert _training_key(config, replace(SAE, frozen="decoder")) != key
    random = replace(config, model=replace(config.model, random_weights=3))
    assert model_key(random) == ["m", None, "auto", "random 3"]
    assert model_key(replace(random, model=replace(random.model, keep_embeddings=True)))[-1] != "random 3"
