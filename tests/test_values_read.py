"""Files and flags that hold nonsense: each is one of our own errors, never an unexpected one."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.commands import run
from support.sae_format_helpers import FIXTURES

from autointerp.config import SaeConfig
from autointerp.config_file import environment_overrides, from_table, load
from autointerp.errors import AutointerpError, DamagedError, InputError
from autointerp.evaluate.labelled_texts import _records
from autointerp.sae.files import read_state
from autointerp.sae.formats import FORMATS, load_sae, sae_sha256
from autointerp.stages.training import TRAINED, _is_trained
from autointerp.store.progress_file import read_progress
from autointerp.store.safety.paths import progress_path_of
from autointerp.store.safety.row_ledger import RowLedger

DEEP = 20_000


@pytest.mark.parametrize(
    "text",
    [
        "[budget]\nmax_requests = " + "9" * 5000,
        "x = " + "[" * DEEP + "]" * DEEP,
        "x = " + "{a = " * DEEP + "1" + "}" * DEEP,
        "[" + ".".join("a" * DEEP) + "]",
        "[store]\npath = [" + "[" * 100 + "]" * 100 + "]",
        "[budget]\ndeadline = 0001-01-01",
        "[budget]\ndeadline = '0001-01-01'",
        "[budget]\ndeadline = 9999-12-31T23:59:59-14:00",
        "[corpus]\nsource = '~no-such-user-here/x'",
        "[explain]\nexplainer = 3",
        "\0",
    ],
)
def test_a_configuration_of_nonsense_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "autointerp.toml"
    file.write_text(text, "utf-8")
    with pytest.raises(InputError):
        load(file)


def test_a_configuration_that_is_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read: Is a directory"):
        load(tmp_path)
    with pytest.raises(InputError, match="/dev/zero is no configuration: it is longer than 16 MiB"):
        load(Path("/dev/zero"))
    (tmp_path / "a.toml").write_bytes(b"\xff")
    with pytest.raises(InputError, match="not valid TOML"):
        load(tmp_path / "a.toml")
    (tmp_path / "b.toml").write_text("[model]\nname = '" + "a" * 5000 + "'")
    assert load(tmp_path / "b.toml").model.name == "a" * 5000, "too long for a file: a name of the hub"
    (tmp_path / "c.toml").write_bytes(b"[model]\r\nname = 'm'\r\n")
    assert load(tmp_path / "c.toml").model.name == "m"


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("AUTOINTERP_BUDGET__MAX_USD", "[" * DEEP, "budget.max_usd must be float"),
        ("AUTOINTERP_BUDGET__MAX_REQUESTS", "9" * 5000, "budget.max_requests must be int"),
        ("AUTOINTERP_SAE__NAME", "x", "sae is not a table"),
        ("AUTOINTERP_STORE__PATH__X", "1", "path is not a table"),
    ],
)
def test_a_variable_of_nonsense_is_refused(name: str, value: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        from_table({"sae": [{"hookpoint": "h"}], "store": {"path": "p"}}, environment_overrides({name: value}))


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
        max_leaves=8,
    ),
    st.sampled_from(["model", "corpus", "sae", "train", "llm", "budget", "store", "explain.base_url", "explain.seed",
                     "budget.deadline", "corpus.exclude_tokens", "llm.prices", "score.scorers", "store.path"]),
)  # fmt: skip
def test_any_value_anywhere_is_taken_or_refused(value: object, key: str) -> None:
    with contextlib.suppress(AutointerpError):
        from_table({}, {key: value})


@pytest.mark.parametrize("line", ['{"text": ' + "9" * 5000 + "}", "[" * DEEP, "{", "3"])
def test_a_probe_file_of_nonsense_is_refused(tmp_path: Path, line: str) -> None:
    (tmp_path / "p.jsonl").write_text(line)
    with pytest.raises(InputError, match="p.jsonl, line 1"):
        _records(tmp_path / "p.jsonl")


@pytest.mark.parametrize("text", ["", '{"key": "a', "[" * DEEP, "3", "{}", '{"key": ' + "9" * 5000 + "}"])
def test_a_torn_mark_of_training_is_told(tmp_path: Path, text: str) -> None:
    class Session:
        def sae_folder(self, sae: SaeConfig) -> Path:
            return tmp_path

    (tmp_path / TRAINED).write_text(text)
    with pytest.raises(DamagedError, match="cannot be read; delete the folder to train again"):
        _is_trained(Session(), SaeConfig(hookpoint="h"), "k")  # type: ignore[arg-type]


NONSENSE = (
    "", "[" * DEEP, '{"a": ' * DEEP, "{", "3", "null", "{}", '{"d_in": ' + "9" * 5000 + "}", "\0", '{"d_in": 1e999}',
    '{"commit_number": Infinity, "rows": {}, "store_id": "s"}', '{"format": 1, "host": "h", "pid": 1e999}',
    '{"format": 1, "host": "h", "process_started": "unknown", "updated_at": "0001-01-01"}',
)  # fmt: skip
NAMES = ("saelens/standard_scaled_checkpoint", "saelens/topk", "sparsify/sae", "dictionary_learning/AutoEncoderTopK",
         "gemma_scope/params", "openai/TopK")  # fmt: skip
SAES = [FIXTURES / name for name in NAMES]
SAE_FILES = [(folder, file.name) for folder in SAES for file in sorted(folder.iterdir()) if file.name != "expected.npz"]


def copied_sae(folder: Path, to: Path) -> Path:
    shutil.copytree(folder, to / "sae")
    return to / "sae"


def load_or_refuse(folder: Path) -> None:
    """Read and hash the SAE under every format's name; no error but ours may come out."""
    for format in ("auto", *FORMATS):
        for work in (load_sae, sae_sha256):
            with contextlib.suppress(AutointerpError):
                work(folder, format)


@pytest.mark.parametrize(("folder", "name"), SAE_FILES, ids=lambda value: getattr(value, "name", value))
def test_an_sae_file_of_nonsense_is_refused(tmp_path: Path, folder: Path, name: str) -> None:
    sae = copied_sae(folder, tmp_path)
    for text in NONSENSE:
        (sae / name).write_text(text)
        load_or_refuse(sae)
        header = text.encode()
        (sae / name).write_bytes(len(header).to_bytes(8, "little") + header)  # as a safetensors header
        load_or_refuse(sae)


@pytest.mark.parametrize(("folder", "name"), SAE_FILES, ids=lambda value: getattr(value, "name", value))
def test_an_sae_file_that_is_no_file_is_refused_and_does_not_hang(tmp_path: Path, folder: Path, name: str) -> None:
    sae = copied_sae(folder, tmp_path)
    for kind in ("pipe", "folder", "device", "loop"):
        path = sae / name
        if path.is_dir() and not path.is_symlink():
            path.rmdir()
        else:
            path.unlink()
        if kind == "pipe":
            os.mkfifo(path)
        elif kind == "folder":
            path.mkdir()
        else:
            path.symlink_to("/dev/zero" if kind == "device" else path)
        load_or_refuse(sae)
        load_or_refuse(path)
        if name.startswith(("cfg", "sae", "ae", "params")) and kind != "loop":
            with pytest.raises(InputError, match=f"{name} is not a regular file"):
                load_sae(sae, folder.parent.name)


def test_a_state_of_nonsense_is_told(tmp_path: Path) -> None:
    for text in NONSENSE:
        header = json.dumps({"__metadata__": {"state": text}}).encode()
        (tmp_path / "t.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
        with contextlib.suppress(DamagedError):
            read_state(tmp_path / "t.safetensors")


@pytest.mark.parametrize("text", NONSENSE)
def test_a_ledger_or_progress_file_of_nonsense_is_told_or_left_out(tmp_path: Path, text: str) -> None:
    store = tmp_path / "s.duckdb"
    (tmp_path / "ledger").write_text(text + "\n")
    with pytest.raises(DamagedError, match="the last line of the row ledger is not readable"):
        RowLedger(tmp_path / "ledger").last()
    progress_path_of(store).write_text(text)
    assert read_progress(store) == [] or "0001" in text
    progress_path_of(store).unlink()
    os.mkfifo(progress_path_of(store))
    assert read_progress(store) == []


@pytest.mark.parametrize(
    "arguments",
    [
        ("show", "\u00b2"), ("show", "\u0663"), ("show", "9" * 30), ("show", "9" * 5000), ("show", "a:b:\u00b2"),
        ("show", "1", "--contexts", "9" * 20), ("search", "a", "--limit", "9" * 20),
        ("query", "SELECT 1", "--timeout", "inf"), ("query", "SELECT 1", "--timeout", "nan"),
        ("query", "SELECT 1", "--timeout", "1e300"), ("query", "SELECT 1", "--timeout", "-1"),
        ("explain", "--limit", "9" * 20), ("explain", "--random", "9" * 20), ("verify", "--sample", "9" * 20),
        ("harvest", "--num-shards", "9" * 20), ("evaluate", "--tokens", "-3"), ("explain", "-c", "."),
        ("query", "SELECT 1", "-c", "/dev/zero"), ("explain", "--deadline", "0001-01-01"),
    ],
)  # fmt: skip
def test_a_flag_of_nonsense_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "autointerp.toml").write_text(f"[store]\npath = {json.dumps(str(tmp_path / 's.duckdb'))}\n")
    code, _, err = run(capsys, *arguments)
    assert code == 2 and "unexpected" not in err and "Traceback" not in err, err
