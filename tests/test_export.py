"""Exports from the store: features and graphs for circuit-tracer, and folders that are written whole or not at all."""

from __future__ import annotations

import gzip
import json
import os
import re
import resource
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.commands import run
from support.store_fixtures import N_FEATURES, STATUSES, copied, explanation, score
from support.without_torch import run_without_torch

from autointerp.errors import DamagedError, DiskFullError, InputError
from autointerp.export.circuit_tracer_graph import pairing, read_graph, unpaired
from autointerp.export.feature_json import BARS, bars, feature_json, percentiles
from autointerp.export.named_folders import folder_names
from autointerp.export.whole_folder import MARK, whole_folder
from autointerp.records import Context, PromotedToken
from autointerp.store import Store
from autointerp.store.feature_details import FeatureDetail, ShownFeature

HOSTILE = "</script><img src=x onerror=alert(1)>\u2028 [bold]"


@pytest.fixture
def store(filled_store: Path, tmp_path: Path) -> Path:
    """Six features of layer 3: one has a label and a score, one a hostile label, one was refused, one is dead."""
    path = copied(filled_store, tmp_path)
    with Store.open(path) as opened:
        labels = [explanation(0), explanation(1, text=HOSTILE), explanation(2, status="refused", error="no")]
        opened.insert_explanations(labels)
        opened.insert_scores([score(labels[0], value=0.876, scorer="simulation")])
    return path


def page_feature(folder: Path, layer: int, feature: int) -> dict[str, Any]:
    """A feature as circuit-tracer's page reads it: index, a range of bytes, four bytes of length, inflate."""
    index = json.loads(gzip.decompress((folder / "index.json.gz").read_bytes()))[str(layer)]
    begin, end = index["offsets"][feature], index["offsets"][feature + 1]
    data = (folder / index["filename"]).read_bytes()[begin : end + 1]  # the page's range has one byte too many
    length = int.from_bytes(data[:4], "little")
    assert length == end - begin - 4
    found: dict[str, Any] = json.loads(gzip.decompress(data[4 : 4 + length]))
    return found


def test_every_feature_is_read_as_the_page_reads_it(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    code, _, told = run(capsys, "export", "circuit-tracer-features", str(out), "--store", str(store))
    assert code == 0, told
    found = [page_feature(out / "features", 3, feature) for feature in range(N_FEATURES)]
    assert [one["index"] for one in found] == list(range(N_FEATURES))
    assert [one.get("isDead", False) for one in found] == [status == "dead" for status in STATUSES]
    headings = [one["examples_quantiles"][0]["quantile_name"] for one in found]
    assert headings[0] == "words about 0 (simulation 0.88 [0.25, 0.75])"
    assert headings[1:4] == [f"{HOSTILE} (not scored)", "No label: refused", "No label: dead"]
    group = found[4]["examples_quantiles"][1]
    assert group["quantile_name"] == "Strongest contexts"
    assert group["examples"][0] == {
        "tokens": [" cat", " sat", " on", " the"],
        "tokens_acts_list": [0.0, 0.5, 0.0, 5.0],
        "train_token_ind": 3,
        "is_repeated_datapoint": False,
    }
    assert found[4]["act_max"] == 4.5 and len(found[4]["histogram"]) == BARS
    assert "Strongest contexts of held-out text" in [one["quantile_name"] for one in found[4]["examples_quantiles"]]
    mark = json.loads((out / MARK).read_text())
    assert mark["written"] == {"features": 6, "labels": 2}
    assert mark["left_out"] == {"labels: dead": 1, "labels: not explained": 2, "labels: refused": 1}
    assert "left out: 2 labels: not explained" in told


def test_contexts_limits_every_group(store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for limit, most in (("1", 1), ("0", 0)):
        out = tmp_path / f"out{limit}"
        arguments = ("export", "circuit-tracer-features", str(out), "--store", str(store), "--contexts", limit)
        assert run(capsys, *arguments)[0] == 0
        groups = page_feature(out / "features", 3, 0)["examples_quantiles"][1:]
        assert [len(group["examples"]) for group in groups] == [most] * len(groups) and bool(groups) == bool(most)


@pytest.mark.slow
def test_features_are_exported_where_torch_is_not_installed(store: Path, tmp_path: Path) -> None:
    done = run_without_torch("export", "circuit-tracer-features", str(tmp_path / "out"), "--store", str(store))
    assert done.returncode == 0, done.stderr
    done = run_without_torch("export", "saelens", str(tmp_path / "other"), "--store", str(store))
    assert done.returncode == 2 and not (tmp_path / "other").exists()


# --- graphs -----------------------------------------------------------------------------------------------------------


def node(layer: int, feature: int, **changed: Any) -> dict[str, Any]:
    number = pairing(layer, feature)
    return {
        "node_id": f"{layer}_{feature}_1", "feature": number, "layer": str(layer), "ctx_idx": 1, "clerp": "",
        "feature_type": "cross layer transcoder", **changed,
    }  # fmt: skip


def graph_file(path: Path, *nodes: dict[str, Any], slug: str = "a-graph") -> Path:
    embedding = {"node_id": "E_5_0", "feature": 0, "layer": "E", "feature_type": "embedding", "clerp": ""}
    metadata = {"slug": slug, "scan": "somewhere", "transcoder_list": [], "prompt_tokens": ["a"], "prompt": "a"}
    path.write_text(json.dumps({"metadata": metadata, "nodes": [embedding, *nodes], "links": [], "qParams": {}}))
    return path


def test_a_graph_gets_labels_and_the_features_that_it_shows(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nodes = [node(3, 0), node(3, 1), node(3, 2), node(3, 4, clerp="by hand"), node(7, 1)]
    graph, out = graph_file(tmp_path / "graph.json", *nodes), tmp_path / "out"
    arguments = ("export", "circuit-tracer-graph", str(out), "--store", str(store), "--graph", str(graph))
    code, _, told = run(capsys, *arguments)
    assert code == 0, told
    written = json.loads((out / "a-graph.json").read_text())
    assert [one["clerp"] for one in written["nodes"]] == ["", "words about 0 (0.88)", HOSTILE, "", "by hand", ""]
    assert written["metadata"]["scan"] == "./data/features"
    assert json.loads((out / "graph-metadata.json").read_text())["graphs"] == [written["metadata"]]
    files = sorted(int(path.stem) for path in (out / "features").iterdir())
    assert files == sorted(pairing(3, feature) for feature in (0, 1, 2, 4))
    assert json.loads((out / "features" / f"{pairing(3, 1)}.json").read_text())["index"] == 1
    left_out = json.loads((out / MARK).read_text())["left_out"]
    assert left_out["features: the store has no dictionary of layer 7"] == 1
    assert left_out["nodes: have a text already"] == 1


def test_a_graph_of_other_transcoders_is_refused(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    graph, out = graph_file(tmp_path / "graph.json", node(3, 6)), tmp_path / "out"
    arguments = ("export", "circuit-tracer-graph", str(out), "--store", str(store), "--graph", str(graph))
    code, _, told = run(capsys, *arguments)
    assert code == 2 and "feature 6 of layer 3" in told and "other transcoders" in told
    assert not out.exists()


@pytest.mark.parametrize("text", [
    "", "[]", "{}", '{"metadata": {"slug": "a"}, "nodes": [1]}', "[" * 100_000,
    '{"metadata": {"slug": "../a"}, "nodes": []}', '{"metadata": {"slug": "graph-metadata"}, "nodes": []}',
    '{"metadata": {"slug": "a"}, "nodes": [{"feature_type": "cross layer transcoder", "feature": -1}]}',
    '{"metadata": {"slug": "a"}, "nodes": [{"feature_type": "cross layer transcoder", "feature": true}]}',
])  # fmt: skip
def test_files_that_are_no_graphs_are_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "graph.json"
    path.write_text(text)
    with pytest.raises(DamagedError, match="graph.json"):
        read_graph(path)


def test_a_graph_is_asked_for_where_it_is_needed(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, own = str(tmp_path / "out"), ("--store", str(store))
    assert "with --graph" in run(capsys, "export", "circuit-tracer-graph", out, *own)[2]
    assert "reads no graph" in run(capsys, "export", "circuit-tracer-features", out, *own, "--graph", "g")[2]
    code, _, told = run(capsys, "export", "circuit-tracer", out, "--dictionary", "x", "--store", str(store / "nothing"))
    assert code == 2, told
    code, _, told = run(capsys, "export", "circuittracer", out, *own)
    assert code == 2 and "Did you mean circuit-tracer" in told


@given(st.integers(0, 10**4), st.integers(0, 10**7))
def test_the_number_of_a_feature_goes_both_ways(layer: int, feature: int) -> None:
    assert unpaired(pairing(layer, feature)) == (layer, feature)


# --- numbers ----------------------------------------------------------------------------------------------------------


@st.composite
def histograms(draw: st.DrawFn) -> tuple[list[float], list[int], float]:
    widths = draw(st.lists(st.floats(0.1, 50), min_size=1, max_size=16))
    edges = np.cumsum([draw(st.floats(0, 10)), *widths]).tolist()
    counts = draw(st.lists(st.integers(0, 10**6), min_size=len(widths), max_size=len(widths)))
    last = max((i for i, n in enumerate(counts) if n), default=0)
    largest = draw(st.floats(edges[last] + 1e-3, edges[last + 1]))
    return edges, counts, largest


def test_a_context_stays_on_one_line() -> None:
    """Else circuit-tracer's page lays it over the next."""
    shown = ShownFeature(
        feature=0, status="live", token_density=0.1, max_activation=1.0, histogram_edges=[0.5, 1.0],
        histogram_counts=[2], label=None, second_label=None, explanation_status=None, explainer=None, scorer=None,
        score=None, ci_low=None, ci_high=None, label_from=None,
    )  # fmt: skip
    context = Context(0, 0, "explain", "top", None, None, 0, "a", 0, ["a\n", "\t", "\r\n"], [0.0, 1.0, 0.0])
    told = feature_json(FeatureDetail(shown, [PromotedToken("\n\n", 1.0, 0, 1)], [context], [], []), "a", 5)
    assert told["examples_quantiles"][1]["examples"][0]["tokens"] == ["a⏎", "→", "↵⏎"]
    assert told["top_logits"] == ["⏎⏎"]


@given(histograms())
def test_bars_keep_every_token_and_percentiles_rise_to_the_largest(
    histogram: tuple[list[float], list[int], float],
) -> None:
    edges, counts, largest = histogram
    heights = bars(edges, counts, largest)
    assert len(heights) == BARS and min(heights) >= 0
    assert sum(heights) == pytest.approx(sum(counts), rel=1e-3)
    found = percentiles(edges, counts, largest)
    assert len(found) == 100 and all(a <= b for a, b in zip(found, found[1:], strict=False))
    assert found[0] >= 0 and found[-1] <= largest * 1.0001
    if sum(counts):
        assert found[-1] == pytest.approx(largest, rel=1e-3)


def test_a_dead_feature_has_neither() -> None:
    assert bars([], [], 0.0) == percentiles([], [], 0.0) == []


@given(st.lists(st.text(min_size=1), unique=True, max_size=8))
def test_folder_names_differ_and_are_no_paths(names: list[str]) -> None:
    found = folder_names(names)
    assert len(set(map(str.lower, found))) == len(names)
    assert all(name not in ("", ".", "..") and "/" not in name and "\0" not in name for name in found)


# --- whole or not at all ----------------------------------------------------------------------------------------------


def write(out: Path, text: str, force: bool = False) -> None:
    with whole_folder(out, force, lambda: {"written": text}) as folder:
        (folder / "inside").mkdir()
        (folder / "inside" / "file").write_text(text)


def content(out: Path) -> str | None:
    return (out / "inside" / "file").read_text() if out.exists() else None


def in_a_child(work: Callable[[], object]) -> int:
    """How a forked process that does `work` ended: the exit code of its error, or minus the signal."""
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException as error:
            os._exit(getattr(error, "exit_code", 1))
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_an_export_is_replaced_only_when_asked(tmp_path: Path) -> None:
    out = tmp_path / "out"
    write(out, "first")
    with pytest.raises(InputError, match="--force replaces it"):
        write(out, "second")
    assert content(out) == "first"
    write(out, "second", force=True)
    assert content(out) == "second" and [path.name for path in tmp_path.iterdir()] == ["out"]
    shutil.rmtree(out)
    out.mkdir()
    write(out, "into an empty folder")
    assert json.loads((out / MARK).read_text()) == {"written": "into an empty folder", "holds": ["inside"]}
    for added in (".git", "README.md"):
        (out / added).mkdir()
        with pytest.raises(InputError, match=f"what no export wrote .*{re.escape(added)}"):
            write(out, "third", force=True)
        (out / added).rmdir()
    (out / MARK).write_text("[1")
    with pytest.raises(InputError, match="what no export wrote"):
        write(out, "third", force=True)


def test_what_is_no_export_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "thesis.tex").write_text("years of work")
    (tmp_path / "file").write_text("more")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name, why in (("folder", "what no export wrote"), ("file", "is no folder"), ("link", "is no folder")):
        with pytest.raises(InputError, match=why):
            write(tmp_path / name, "x", force=True)
    for path, why in ((tmp_path / "no" / "out", "there is no folder"), (tmp_path / "..", "names no folder")):
        with pytest.raises(InputError, match=why):
            write(path, "x")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder", "link"]


def test_an_export_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    out = tmp_path / "out"
    for held in (None, "first"):
        if held:
            write(out, held)
        with pytest.raises(ZeroDivisionError), whole_folder(out, True, dict) as folder:
            (folder / "half").write_text("half")
            raise ZeroDivisionError
        assert content(out) == held
        assert [path.name for path in tmp_path.iterdir()] == (["out"] if held else [])


@pytest.mark.parametrize("moment", ["writing", "marking", "replacing"])
def test_an_export_that_is_killed_leaves_what_was_there(tmp_path: Path, moment: str) -> None:
    out = tmp_path / "out"
    write(out, "first")
    rename = os.rename

    def kill() -> Any:
        os.kill(os.getpid(), signal.SIGKILL)

    def killed_rename(source: Path, target: Path) -> None:
        rename(source, target)
        kill()

    def work() -> None:
        if moment == "replacing":
            os.rename = killed_rename  # type: ignore[assignment]
        with whole_folder(out, True, kill if moment == "marking" else dict) as folder:
            (folder / "inside").mkdir()
            if moment == "writing":
                kill()

    assert in_a_child(work) == -signal.SIGKILL
    assert content(out) == (None if moment == "replacing" else "first")
    with pytest.raises(InputError, match="--force replaces it"):  # it is there again
        write(out, "second")
    assert content(out) == "first"
    write(out, "second", force=True)
    assert content(out) == "second" and [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_full_disk_leaves_what_was_there(tmp_path: Path) -> None:
    """A limit on the size of files stands in for the full disk."""
    out = tmp_path / "out"
    write(out, "first")

    def work() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        write(out, "second" * 1000, force=True)

    assert in_a_child(work) == DiskFullError.exit_code
    assert content(out) == "first" and [path.name for path in tmp_path.iterdir()] == ["out"]


def test_two_exports_to_one_place_do_not_mix(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with whole_folder(out, False, dict) as folder:
        assert in_a_child(lambda: write(out, "other")) == 75
        (folder / "inside").mkdir()
        (folder / "inside" / "file").write_text("own")
    assert content(out) == "own"


def every_file(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.is_file())


def test_the_same_store_gives_the_same_bytes(store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a", "b"):
        assert run(capsys, "export", "circuit-tracer-features", str(tmp_path / name), "--store", str(store))[0] == 0
    first, second = (
        {path.name: path.read_bytes() for path in every_file(tmp_path / name) if path.name != MARK} for name in "ab"
    )
    assert first == second and len(first) == 2
