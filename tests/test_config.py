from __future__ import annotations

import re
import tomllib
import typing
from dataclasses import fields, is_dataclass
from pathlib import Path

import pytest

from autointerp.cli.config_template import config_template, field_docs
from autointerp.config import Config, PriceConfig, SaeConfig
from autointerp.config_file import environment_overrides, from_table, load
from autointerp.errors import InputError


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"modle": {}}, r"unknown configuration key 'modle'\. Did you mean model"),
        (
            {"harvest": {"top_context": 3}},
            r"unknown configuration key 'harvest.top_context'\. Did you mean top_contexts",
        ),
        ({"sae": [{"hookpoint": "a", "hok": 1}]}, r"unknown configuration key 'sae\[0\].hok'"),
        ({"model": {"name": 3}}, r"model.name must be str, not 3"),
        ({"model": {"dtype": "fp8"}}, r"model.dtype must be auto, float32, bfloat16 or float16, not 'fp8'"),
        ({"model": 3}, r"model must be a table, not 3"),
        ({"sae": [{"hookpoint": "a"}, {"hookpoint": "a"}]}, r"two \[\[sae\]\] tables have the name a"),
        ({"corpus": {"context_length": 16}, "harvest": {"context_tokens": 32}}, r"context_tokens \(32\) exceeds"),
        ({"explain": {"base_url": "http://user:pw@host/v1"}}, r"must not carry a user name, password, query or"),
        ({"score": {"base_url": "https://host/v1?key=hunter2"}}, r"must not carry(?!.*hunter2)"),
        ({"score": {"base_url": "ftp://user:hunter2@host/v1"}}, r"^(?!.*hunter2).*must be an http\(s\) URL"),
        ({"score": {"base_url": "https://user:hunter2@[host/v1"}}, r"^(?!.*hunter2).*must be an http\(s\) URL"),
        ({"score": {"api_key_env": "sk-hunter2"}}, r"^(?!.*hunter2).*api_key_env must be the name"),
        ({"score": {"api_key_env": "gsk_hunter2hunter2hunter2"}}, r"^(?!.*hunter2).*api_key_env must be the name"),
        ({"score": {"api_key": "sk-hunter2"}}, r"unknown configuration key 'score.api_key'(?!.*hunter2)"),
        ({"store": {"path": "a\0b"}}, r"store.path holds a NUL"),
        ({"explain": {"base_url": "file:///etc/passwd"}}, r"must be an http\(s\) URL"),
        ({"model": {"keep_embeddings": True}}, r"set model.random_weights too"),
        (
            {"sae": [{"hookpoint": "a", "frozen": "bias"}]},
            r"sae\[0\].frozen must be one of none, decoder, soft_decoder",
        ),
        ({"sae": [{"hookpoint": "a", "path": "p", "frozen": "encoder"}]}, r"sae.frozen = 'encoder' is for an SAE that"),
        ({"score": {"method": "magic"}}, r"score.method must be one of auto"),
        ({"train": {"batch_size": True}}, r"train.batch_size must be int, not True"),
    ],
)
def test_a_wrong_value_is_named(table: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        from_table(table)


def test_values_arrive_with_their_types() -> None:
    config = from_table(
        {
            "sae": [{"hookpoint": "h", "k": 4}],
            "llm": {"prices": {"m": {"input": 1, "output": 2.5}}},
            "corpus": {"exclude_tokens": ["a", "b"]},
        },
        {"store.path": "elsewhere.duckdb"},
    )
    assert config.sae[0].dictionary == "h"
    assert config.llm.prices["m"].input == 1.0
    assert config.corpus.exclude_tokens == ("a", "b")
    assert config.store.path == "elsewhere.duckdb"


def test_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    file = tmp_path / "autointerp.toml"
    file.write_text('[model]\nname = "model"\n[corpus]\nsource = "texts/*.txt"\n[[sae]]\nhookpoint = "h"\npath = "s"\n')
    config = load(file)
    assert config.model.name == str(tmp_path / "model")
    assert config.corpus.source == str(tmp_path / "texts/*.txt")
    assert config.sae[0].path == str(tmp_path / "s")
    assert config.store.path == str(tmp_path / "autointerp.duckdb")


def test_hub_ids_and_named_corpora_stay_as_they_are(tmp_path: Path) -> None:
    file = tmp_path / "autointerp.toml"
    file.write_text('[model]\nname = "owner/model"\n[corpus]\nsource = "hf:owner/data"\n')
    config = load(file)
    assert (config.model.name, config.corpus.source) == ("owner/model", "hf:owner/data")


def test_a_missing_file_and_bad_toml_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="autointerp init"):
        load(tmp_path / "none.toml")
    bad = tmp_path / "bad.toml"
    bad.write_text("[model\n")
    with pytest.raises(InputError, match="not valid TOML"):
        load(bad)


def test_variables_override_the_file() -> None:
    found = environment_overrides(
        {"AUTOINTERP_STORE__PATH": "x.duckdb", "AUTOINTERP_LLM__MAX_CONNECTIONS": "8", "AUTOINTERP_STORE": "y"}
    )
    assert found == {"store.path": "x.duckdb", "llm.max_connections": 8}


def _nullable() -> list[tuple[str, str]]:
    kinds = {**typing.get_type_hints(Config), "sae": SaeConfig, "price": PriceConfig}
    hints = [(s, n, h) for s, k in kinds.items() if is_dataclass(k) for n, h in typing.get_type_hints(k).items()]
    return [(section, name) for section, name, hint in hints if type(None) in typing.get_args(hint)]


@pytest.mark.parametrize(("section", "name"), _nullable())
def test_what_may_be_unset_takes_none(section: str, name: str) -> None:
    wanted = {name: "none"}
    if section == "sae":
        part: object = from_table({"sae": [{"hookpoint": "h", **wanted}]}).sae[0]
    elif section == "price":
        part = from_table({"llm": {"prices": {"m": wanted}}}).llm.prices["m"]
    else:
        part = getattr(from_table({section: wanted}), section)
        from_variable = environment_overrides({f"AUTOINTERP_{section}__{name}".upper(): "none"})
        assert getattr(getattr(from_table({}, from_variable), section), name) is None
    assert getattr(part, name) is None


def test_none_is_refused_where_a_value_is_needed() -> None:
    assert ("explain", "temperature") in _nullable() and ("llm", "timeout") not in _nullable()
    with pytest.raises(InputError, match="llm.timeout must be float, not 'none'"):
        from_table({"llm": {"timeout": "none"}})
    assert from_table({"model": {"quantization": "none"}}).model.quantization == "none"


def test_the_template_is_valid_and_documents_every_field() -> None:
    text = config_template()
    from_table(tomllib.loads(text))
    settings = "\n".join(re.sub(r"^# (\w+ = )", r"\1", line) for line in text.splitlines())
    settings = settings.split("\n# US dollars")[0] + settings[settings.index("[budget]") :]
    assert from_table(tomllib.loads(settings)).budget.deadline is None
    uncommented = "\n".join(
        line.removeprefix("# ") if line.startswith("# ") and " = " in line and "price" not in line else line
        for line in text.splitlines()
    )
    for section in (field.name for field in fields(Config) if field.name != "sae"):
        assert f"\n[{section}]\n" in text
        kind = type(getattr(Config(), section))
        for key in field_docs(kind):
            assert f"{key} =" in uncommented or key == "prices", f"[{section}] {key} is missing"
