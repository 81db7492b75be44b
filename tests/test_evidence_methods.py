"""The table of evidence methods, and a stranger's method from its installation to the page of a feature."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest
from support.commands import run
from support.known_words import planted_store

from autointerp import plugins
from autointerp.config import EvidenceConfig, SaeConfig
from autointerp.config_file import from_table
from autointerp.errors import AutointerpError, DamagedError, InputError
from autointerp.evidence.method import Found, Study
from autointerp.evidence.methods import BUILT_IN, check_methods, methods
from autointerp.records import FeatureEvidence
from autointerp.stages.gathering import gather, settings_sha256
from autointerp.stages.session import Session
from autointerp.store import Selection, Store
from autointerp.store import finding_tables as tables
from autointerp.store.finding_tables import FindingTable, Row, from_note
from autointerp.store.findings import MethodRun
from autointerp.store.safety.salvage import salvage
from autointerp.terminal import Terminal

N_FEATURES = 6
NEEDS_TORCH = {"torch", "transformers", "safetensors", "tokenizers", "huggingface_hub", "datasets", "scipy"}


class Longest:
    """The longest tokens on which a feature fires: a method that a package of somebody else brings along."""

    name = "longest"
    table = FindingTable(
        "longest", "longest_tokens", order=("-characters", "token"),
        columns={"token": "VARCHAR", "characters": "INTEGER"},
    )  # fmt: skip
    scope = "feature"
    calls: list[list[int]] = []

    def settings(self, config: EvidenceConfig) -> Mapping[str, object]:
        return {"kept": 2}

    def find(self, study: Study, features: Sequence[int]) -> Found:
        self.calls.append(list(features))
        columns: dict[str, list[object]] = {"feature": [], "token": [], "characters": []}
        found = study.store.contexts_of(study.dictionary_id, study.harvest_id, features, "explain", {"top": None})
        for feature, contexts in found.items():
            tokens = {t for c in contexts for t, a in zip(c.tokens, c.activations, strict=True) if a > 0}
            for token in sorted(tokens, key=lambda t: (-len(t), t))[:2]:
                columns["feature"].append(feature)
                columns["token"].append(token)
                columns["characters"].append(len(token))
        return Found(columns)

    def page(self, rows: Sequence[Row]) -> list[str]:
        return [f"longest  {', '.join(row['token'] for row in rows)}"] if rows else []


class Entry:
    """An entry point of an installed package."""

    name, value, dist = "longest", "somebody:LONGEST", None

    def load(self) -> Longest:
        return Longest()


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(plugins, "entry_points", lambda group: [Entry()] if group == "autointerp.methods" else [])
    monkeypatch.setattr(Longest, "calls", [])
    yield


def gathered(path: Path, selection: Selection) -> bool:
    config = from_table({"sae": [{"name": "planted", "hookpoint": "h"}], "store": {"path": str(path)}})
    with Store.open(path) as store:
        session = Session(config, Terminal().silent())
        return gather(session, store, SaeConfig(name="planted", hookpoint="h"), ["longest"], lambda facts: (None, None),
                      selection)  # fmt: skip


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "s.duckdb"
    planted_store(file, N_FEATURES).close()
    return file


# --- the table --------------------------------------------------------------------------------------------------------


def test_every_built_in_method_has_its_table_and_only_one() -> None:
    """A method either has a table of the migrations or declares the columns of its own."""
    assert len({method.name for method in BUILT_IN}) == len({method.table.name for method in BUILT_IN}) == len(BUILT_IN)
    migrated = {method.name: method.table for method in BUILT_IN if not method.table.columns}
    assert migrated == {table.method: table for table in tables.BUILT_IN}
    assert all(method.page([]) == [] for method in BUILT_IN)
    fields = FeatureEvidence.__dataclass_fields__
    filled = [table.fills for table in tables.BUILT_IN if table.fills is not None]
    assert len(set(filled)) == len(filled) and set(filled) <= set(fields)


def test_settings_are_what_they_were_when_stores_were_written() -> None:
    """Other digests would run every method again on every store there is. Those of the methods that follow vectors to
    the logits changed on purpose, when the way was no longer guessed."""
    digests = {method.name: settings_sha256(method, EvidenceConfig())[:16] for method in BUILT_IN}
    assert digests | {
        "shape": "76da5e74dde818fe", "words": "39a0c576981c0ed8", "neighbours": "c79aafa270d963fa",
        "output_statistic": "bb5d612a063056bb", "mutual_information": "2997fca88b062aa9",
        "pruning": "3dc7a31297909ab6", "token_change": "9911104f284a9f05",
    } == digests  # fmt: skip


def test_names_are_checked_and_put_in_order(installed: None) -> None:
    assert [method.name for method in check_methods(["longest", "pruning", "shape"])] == ["shape", "pruning", "longest"]
    with pytest.raises(InputError, match=r"no method 'prunning'; there are shape, .*longest\..*pruning"):
        check_methods(["prunning"])


def test_a_wrong_name_ends_a_command_before_any_work(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "c.toml"
    config.write_text(
        '[model]\nname = "nowhere"\n[corpus]\nsource = "stdlib"\n[[sae]]\nhookpoint = "h"\n'
        f'[evidence]\nmethods = ["shapes"]\n[store]\npath = "{tmp_path}/s.duckdb"\n'
    )
    for command in ("harvest", "merge", "measure", "run"):
        code, _, err = run(capsys, command, "-c", str(config))
        assert code == 2 and "no method 'shapes'" in err, (command, err)
    assert not (tmp_path / "s.duckdb").exists()


def test_the_methods_import_where_torch_is_not_installed() -> None:
    code = f"""
import importlib.abc, sys
class Refuse(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {NEEDS_TORCH!r}:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Refuse())
from autointerp.evidence.methods import methods
print(*(method.name for method in methods()))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[: len(BUILT_IN)] == [method.name for method in BUILT_IN]


# --- a method of somebody else ----------------------------------------------------------------------------------------


def test_a_strangers_method_is_gathered_shown_and_asked_for(
    installed: None, path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert methods()[-1].name == "longest"
    assert gathered(path, Selection(features="1-2"))
    assert not gathered(path, Selection(features="1-2")) and Longest.calls == [[1, 2]]
    assert gathered(path, Selection()) and Longest.calls[1:] == [[0, 3, 4, 5]]

    code, out, err = run(capsys, "show", "2", "--store", str(path), "--contexts", "0")
    assert code == 0, err
    (line,) = (line for line in out.splitlines() if line.startswith("longest"))
    code, out, err = run(capsys, "show", "2", "--store", str(path), "--json")
    page = json.loads(out)
    assert page["longest"] and line == f"longest  {', '.join(row['token'] for row in page['longest'])}"
    assert page["longest"][0]["characters"] == len(page["longest"][0]["token"])
    assert [one["method"] for one in page["method_runs"]] == ["longest"]

    code, out, err = run(capsys, "query", "SELECT count(DISTINCT feature) AS n FROM longest_tokens",
                         "--store", str(path), "--format", "json")  # fmt: skip
    assert code == 0 and json.loads(out) == [{"n": N_FEATURES}], err
    code, out, err = run(capsys, "status", "--store", str(path))
    assert f"evidence: longest {N_FEATURES}" in out
    with Store.open(path, read_only=True) as store:
        where = "feature IN (SELECT feature FROM longest_tokens WHERE characters > 0 AND feature < 2)"
        assert store.selected_features(1, Selection(where=where)) == [0, 1]
        assert store.features_with_findings("longest", 1) == set(range(N_FEATURES))


def test_its_findings_stay_readable_without_its_package(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Store.open(path) as store:
        store.add_finding_table(Longest.table)
        columns = {"feature": [3], "token": [" x\n"], "characters": [3]}
        store.replace_findings("longest", 1, 1, "s", [MethodRun(3), MethodRun(4, "no_text", "none")], columns)
    code, out, err = run(capsys, "show", "3", "--store", str(path), "--contexts", "0")
    assert code == 0 and "longest  token  x↵, characters 3" in out.splitlines(), err
    code, out, err = run(capsys, "show", "4", "--store", str(path), "--contexts", "0")
    assert "nothing found by  longest (no_text)" in out.splitlines()


def test_its_table_survives_the_salvage_of_a_damaged_store(path: Path, tmp_path: Path) -> None:
    with Store.open(path) as store:
        store.add_finding_table(Longest.table)
        columns = {"feature": [3], "token": ["x"], "characters": [1]}
        store.replace_findings("longest", 1, 1, "s", [MethodRun(3)], columns)
    saved = {table.name: table.saved for table in salvage(path, tmp_path / "new.duckdb", None, 0)}
    assert saved["longest_tokens"] == 1
    with Store.open(tmp_path / "copy.duckdb", create=True) as store:
        assert [table.name for table in store.finding_tables()] == [table.name for table in tables.BUILT_IN]


def test_a_note_that_cannot_be_read_stops_no_recovery(path: Path, tmp_path: Path) -> None:
    with Store.open(path) as store:
        store.add_finding_table(Longest.table)
        store.replace_findings(
            "longest", 1, 1, "s", [MethodRun(3)], {"feature": [3], "token": ["x"], "characters": [1]}
        )
        store.con.execute("UPDATE settings SET value = '{' WHERE name = 'finding_table:longest'")
    saved = {table.name: table for table in salvage(path, tmp_path / "new.duckdb", None, 0)}
    assert saved["features"].saved == N_FEATURES
    assert saved["longest_tokens"].saved == 0 and saved["longest_tokens"].lost is None


def test_a_note_of_a_newer_version_is_read_as_far_as_it_is_known() -> None:
    newer = json.dumps(json.loads(Longest.table.noted()) | {"shown_as": "chart"})
    assert from_note(newer) == from_note(Longest.table.noted()) == Longest.table


def test_a_page_is_readable_beside_a_broken_package(
    path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Broken(Entry):
        def load(self) -> Longest:
            raise ImportError("no torch here")

    monkeypatch.setattr(plugins, "entry_points", lambda group: [Broken()])
    code, out, err = run(capsys, "show", "2", "--store", str(path), "--contexts", "0")
    assert code == 0 and "no torch here" in out, err


def test_a_method_answers_for_every_feature(installed: None, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Longest, "find", lambda self, study, features: Found({}, [MethodRun(features[0])]))
    with pytest.raises(AutointerpError, match="no run for feature 1"):
        gathered(path, Selection())


@pytest.mark.parametrize(
    ("table", "says"),
    [
        (FindingTable("m", "m; DROP TABLE runs", columns={"a": "INTEGER"}), "small letters"),
        (FindingTable("m", "own", columns={"a b": "INTEGER"}), "small letters"),
        (FindingTable("m", "own", columns={"a": "INTEGER; --"}), "SQL type"),
        (FindingTable("m", "own", columns={"feature": "INTEGER"}), "none of them may be called"),
        (FindingTable("m", "own"), "must have columns"),
        (FindingTable("m", "own", ("rank",), {"a": "INTEGER"}), "no column 'rank'"),
        (FindingTable("m", "own", columns={"a": "INTEGER"}, other_feature="b"), "no column 'b'"),
        (FindingTable("m", "own", columns={"a": "INTEGER"}, fills="pruned"), "built-in"),
        (FindingTable("scores", "own", columns={"a": "INTEGER"}), "something else under that name"),
        (FindingTable("m", "runs", columns={"a": "INTEGER"}), "which there is"),
        (FindingTable("m", "labels", columns={"a": "INTEGER"}), "which there is"),
    ],
)
def test_a_table_that_cannot_be_made_is_refused(path: Path, table: FindingTable, says: str) -> None:
    with Store.open(path) as store, pytest.raises(InputError, match=says):
        store.add_finding_table(table)


def test_a_table_is_made_once_and_never_changed(path: Path) -> None:
    table = FindingTable("m", "own", ("-a",), {"a": "INTEGER", "other": "INTEGER[]"}, other_feature="a")
    with Store.open(path) as store:
        for _ in range(2):
            store.add_finding_table(table)
        with pytest.raises(InputError, match="declared otherwise"):
            store.add_finding_table(FindingTable("m", "own", (), {"a": "DOUBLE"}))
        assert store.finding_table("m") == table
        store.replace_findings("m", 1, 1, "s", [MethodRun(0)], {"feature": [0, 0], "a": [1, 2], "other": [[1], []]})
        rows = store.findings_page(1, 0)["m"]
    assert [(row["a"], row["other"], row["label"]) for row in rows] == [(2, [], None), (1, [1], None)]
    with pytest.raises(DamagedError, match="cannot be read"):
        from_note('{"method": "m"}')
