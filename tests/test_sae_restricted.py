"""Files from strangers: nothing in a .pt or .npz runs, and none of them unfolds into more than it is."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pickle
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.sae_format_helpers import FIXTURES

from autointerp.errors import AutointerpError, DamagedError, InputError
from autointerp.sae.formats import load_memory, load_sae, restricted, sae_sha256

PT = FIXTURES / "dictionary_learning" / "AutoEncoderTopK" / "ae.pt"
NPZ = FIXTURES / "gemma_scope" / "params" / "params.npz"


class Runs:
    """Pickled, it is a call that leaves a file behind."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("layout", ["archive", "archive inside tensors", "old", "plain pickle"])
@pytest.mark.parametrize("format", ["auto", "dictionary_learning", "openai"])
def test_a_pickle_that_would_run_something_runs_nothing(tmp_path: Path, layout: str, format: str) -> None:
    marker, file = tmp_path / "marker", tmp_path / "ae.pt"
    value = torch.load(PT, weights_only=True) | {"extra": Runs(marker)} if "inside" in layout else Runs(marker)
    if layout == "plain pickle":
        file.write_bytes(pickle.dumps(value))
    else:
        torch.save(value, file, _use_new_zipfile_serialization=layout != "old")
    error, message = InputError, "would run or build (posix|nt).system. Nothing of it was run"
    if layout == "plain pickle":
        error, message = DamagedError, "no file that torch.save wrote .*nothing of it was run"
    for path in (file, tmp_path):
        with pytest.raises(error, match=message) as caught:
            load_sae(path, format)
        assert "weights_only" not in str(caught.value)
    assert not marker.exists()


def test_the_file_would_have_run_it(tmp_path: Path) -> None:
    """That the test above tests something."""
    torch.save(Runs(tmp_path / "marker"), tmp_path / "a.pt")
    torch.load(tmp_path / "a.pt", weights_only=False)
    assert (tmp_path / "marker").exists()


def test_a_whole_module_and_a_script_are_refused(tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(2, 2), tmp_path / "a.pt")
    with pytest.raises(InputError, match="would run or build torch.nn.modules.linear.Linear"):
        restricted.read_pt(tmp_path / "a.pt")
    with zipfile.ZipFile(tmp_path / "b.pt", "w") as archive:
        archive.writestr("b/data.pkl", b"")
        archive.writestr("b/constants.pkl", b"")
    with pytest.raises(InputError, match="TorchScript program"):
        restricted.read_pt(tmp_path / "b.pt")


def test_arrays_of_python_objects_are_refused(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    np.savez(tmp_path / "params.npz", W_enc=np.array([Runs(marker)], dtype=object))
    with pytest.raises(InputError, match="W_enc holds Python objects"):
        load_sae(tmp_path)
    assert not marker.exists()


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("original", [PT, NPZ])
def test_truncated_files_are_damaged(tmp_path: Path, original: Path, share: float) -> None:
    file = tmp_path / original.name
    whole = original.read_bytes()
    file.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(DamagedError, match="is damaged"):
        load_sae(tmp_path)


@pytest.mark.parametrize("original", [PT, NPZ])
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_flipped_bytes_are_read_or_named(tmp_path: Path, original: Path, data: st.DataObject) -> None:
    file = tmp_path / original.name
    content = bytearray(original.read_bytes())
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    file.write_bytes(content)
    try:
        load_sae(file)
    except AutointerpError:
        pass
    finally:
        file.unlink()


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=5,
)
CONFIGURATIONS = {
    "saelens/jumprelu": "cfg.json",
    "saelens/v3_topk": "cfg.json",
    "saelens/v4_scaling_factor": "cfg.json",
    "saelens/skip_transcoder": "cfg.json",
    "sparsify/skip_transcoder": "cfg.json",
    "dictionary_learning/BatchTopKSAE": "config.json",
}


@pytest.mark.parametrize("name", CONFIGURATIONS)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_configurations_of_any_values_are_read_or_named(tmp_path: Path, name: str, data: st.DataObject) -> None:
    folder = tmp_path / "sae"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(FIXTURES / name, folder)
    file = folder / CONFIGURATIONS[name]
    config = json.loads(file.read_text())
    table = config.get("trainer", config)
    for key in data.draw(st.lists(st.sampled_from([*table, "architecture", "metadata"]), min_size=1, max_size=3)):
        table[key] = data.draw(VALUES)
    file.write_text(json.dumps(config))
    for read in (load_sae, sae_sha256):
        with contextlib.suppress(AutointerpError):
            read(folder)


def test_a_repeated_number_is_no_matrix(tmp_path: Path) -> None:
    """A few bytes that claim 400 GB: a tensor without strides."""
    state = torch.load(PT, weights_only=True) | {"encoder.weight": torch.zeros(1).expand(100_000, 1_000_000)}
    torch.save(state, tmp_path / "ae.pt")
    with pytest.raises(DamagedError, match=r"\[100000, 1000000\] that is not all there"):
        load_sae(tmp_path)
    torch.save({"W_enc": torch.eye(3).to_sparse()}, tmp_path / "ae.pt")
    with pytest.raises(DamagedError, match="not all there"):
        load_sae(tmp_path)


def test_a_compressed_archive_is_not_unfolded(tmp_path: Path) -> None:
    bomb = tmp_path / "ae.pt"
    with zipfile.ZipFile(PT) as good, zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in good.namelist():
            archive.writestr(name, good.read(name))
        archive.writestr("ae/data/99", bytes(50_000_000))
    with pytest.raises(DamagedError, match="PyTorch does not compress"):
        load_sae(tmp_path)
    with zipfile.ZipFile(bomb, "w") as archive:
        archive.writestr("readme", b"")
    with pytest.raises(DamagedError, match="has no data.pkl"):
        load_sae(tmp_path)


def test_an_array_that_claims_more_than_it_holds_is_not_allocated(tmp_path: Path) -> None:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "<f4", "fortran_order": False, "shape": (1_000_000, 1_000_000)}
    )
    with zipfile.ZipFile(tmp_path / "params.npz", "w") as archive:
        archive.writestr("W_enc.npy", header.getvalue())
    with pytest.raises(DamagedError, match=r"W_enc claims the shape \[1000000, 1000000\], which is more than is there"):
        load_sae(tmp_path)


def test_files_beyond_the_limits_are_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open(tmp_path / "ae.pt", "wb") as file:
        file.truncate(load_memory.MAX_BYTES + 1)  # of holes
    with pytest.raises(InputError, match="files above 64 GiB are not read"):
        load_sae(tmp_path)
    monkeypatch.setattr(load_memory, "free_memory", lambda: 1000)
    shutil.copy(PT, tmp_path / "ae.pt")
    shutil.copy(NPZ, tmp_path / "params.npz")
    for path in (tmp_path / "ae.pt", tmp_path / "params.npz", FIXTURES / "saelens" / "topk"):
        with pytest.raises(InputError, match="of memory are free"):
            load_sae(path)
    with pytest.raises(InputError, match="there is no file"):
        restricted.read_pt(tmp_path / "nowhere.pt")


@pytest.mark.parametrize("kind", ["<f4", "<f2", "<f8"])
def test_memory_for_a_npz_is_asked_for_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Six bytes a number: float32, and one of the two matrices once more while it is scaled."""
    with np.load(NPZ) as file:
        arrays = {name: array.astype(kind) for name, array in file.items()}
    np.savez_compressed(tmp_path / "params.npz", **arrays)
    needed = sum(array.size for array in arrays.values()) * {"<f4": 6, "<f2": 6, "<f8": 12}[kind]
    monkeypatch.setattr(load_memory, "free_memory", lambda: needed / load_memory.SHARE_OF_MEMORY - 1)
    with pytest.raises(InputError, match="params.npz takes .* GiB, and .* are free"):
        load_sae(tmp_path)
    monkeypatch.setattr(load_memory, "free_memory", lambda: needed / load_memory.SHARE_OF_MEMORY + 1)
    assert load_sae(tmp_path).W_enc.dtype == torch.float32


PEAK = """
import json, os, resource, sys
from pathlib import Path
import numpy as np, torch
from safetensors.torch import save_file
from autointerp.sae.formats import load_memory, load_sae
torch.set_num_threads(1)
d, s, root = 512, 49_152, Path(sys.argv[1])
dims = {"W_enc": (d, s), "W_dec": (s, d), "b_enc": (s,), "threshold": (s,), "b_dec": (d,)}
def npz(kind):
    np.savez(root / "params.npz", **{name: np.full(shape, .01, kind) for name, shape in dims.items()})
def pt():
    state = {"encoder.weight": torch.full((s, d), .01), "encoder.bias": torch.zeros(s), "b_dec": torch.zeros(d)}
    torch.save({**state, "decoder.weight": torch.full((d, s), .01), "k": torch.tensor(8)}, root / "ae.pt")
    (root / "config.json").write_text('{"trainer": {"dict_class": "AutoEncoderTopK"}}')
def saelens():
    save_file({name: torch.full(shape, .01) for name, shape in dims.items()}, root / "sae_weights.safetensors")
    config = {"architecture": "jumprelu", "d_in": d, "d_sae": s, "apply_b_dec_to_input": True, "metadata": {}}
    (root / "cfg.json").write_text(json.dumps({**config, "normalize_activations": "none"}))
def child(work):
    if os.fork() == 0:
        work()
        sys.stdout.flush()
        os._exit(0)
    assert os.wait()[1] == 0
def load():
    asked, free = [], load_memory.free_memory
    real = load_memory.require_memory
    def spy(path, n_bytes):
        held = int(open("/proc/self/statm").read().split()[1]) * 4096
        asked.append(held + n_bytes)
        real(path, n_bytes)
    from autointerp.sae.formats import restricted
    load_memory.require_memory = restricted.require_memory = spy
    torch.ones(9).isfinite().all()
    load_sae(root)
    (peak,) = (int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
    print(peak * 1024, max(asked))
for make in (lambda: npz("f4"), lambda: npz("f2"), lambda: npz("f8"), pt, saelens):
    for file in root.iterdir(): file.unlink()
    child(make)
    child(load)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the peak is read from /proc")
def test_loading_takes_no_more_memory_than_was_asked_for(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PEAK, str(tmp_path)], capture_output=True, text=True, env={**os.environ}, check=True
    )
    lines = [line.split() for line in done.stdout.splitlines()]
    assert len(lines) == 5
    for peak, asked in lines:
        assert int(peak) < int(asked) + 60_000_000, done.stdout  # besides torch's own buffers


def test_the_hash_needs_no_reading(tmp_path: Path) -> None:
    """Of a named format, the digest is of bytes: damaged files have one too, and it differs."""
    shutil.copy(PT, tmp_path / "ae.pt")
    before = sae_sha256(tmp_path, "dictionary_learning")
    (tmp_path / "ae.pt").write_bytes(PT.read_bytes()[:-1])
    assert sae_sha256(tmp_path, "dictionary_learning") != before


def test_numbers_of_other_kinds_are_read_as_they_are(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", big=np.arange(3, dtype=">f4"), whole=np.arange(3), flag=np.array(True))
    found = restricted.read_npz(tmp_path / "a.npz")
    assert found["big"].tolist() == [0, 1, 2] and found["flag"].item() is True
    np.savez(tmp_path / "a.npz", text=np.array(["a"]))
    with pytest.raises(InputError, match="text holds <U1, which are not numbers"):
        restricted.read_npz(tmp_path / "a.npz")
