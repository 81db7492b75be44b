"""SAEs from the hub: the real client against a hub on this machine, in a process of its own since it reads its address
when it is imported."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from support.sae_format_helpers import FIXTURES

from autointerp.errors import InputError
from autointerp.sae.formats import hub as hub_paths
from autointerp.sae.formats.hub import HubPath, local_folder, parse

SHA = "0123456789abcdef0123456789abcdef01234567"
FILES = {f"a/{name}": FIXTURES / "sparsify" / "sae" / name for name in ("cfg.json", "sae.safetensors")}
FILES |= {f"a/deeper/{name}": path for name, path in ((Path(n).name, p) for n, p in list(FILES.items()))}
FILES["b/params.npz"] = FIXTURES / "gemma_scope" / "params" / "params.npz"
FILES["b/optimizer.bin"] = FILES["b/params.npz"]


class Hub(BaseHTTPRequestHandler):
    """As much of the hub as a download of a repository asks for."""

    asked: list[str] = []

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self.asked.append(self.path)
        path, _, _ = self.path.partition("?")
        if "/o/gated" in path:
            self.answer(403, b"", {"X-Error-Code": "GatedRepo"})
        elif "/o/saes" not in path:
            self.answer(404, b"", {"X-Error-Code": "RepoNotFound"})
        elif "nowhere" in path:
            self.answer(404, b"", {"X-Error-Code": "RevisionNotFound"})
        elif path.startswith("/api/models/o/saes/tree/"):
            tree = [{"type": "file", "path": n, "size": p.stat().st_size, "oid": oid(p)} for n, p in FILES.items()]
            self.answer(200, json.dumps(tree).encode(), {"Content-Type": "application/json"})
        elif path.startswith("/api/models/o/saes"):
            siblings = [{"rfilename": name} for name in FILES]
            info = {"id": "o/saes", "sha": SHA, "siblings": siblings, "private": False, "downloads": 0, "tags": []}
            self.answer(200, json.dumps(info).encode(), {"Content-Type": "application/json"})
        else:
            file = FILES[path.split(f"/resolve/{SHA}/")[1]]
            self.answer(200, file.read_bytes(), {"ETag": f'"{oid(file)}"', "X-Repo-Commit": SHA})

    def answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)


def oid(path: Path) -> str:
    return hashlib.sha1(path.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def hub() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


SCRIPT = """
import json, sys
from autointerp.errors import InputError
from autointerp.sae.formats import load_sae
from autointerp.sae.formats.hub import local_folder
results = []
for path in json.loads(sys.argv[1]):
    try:
        folder = local_folder(path)
        sae = load_sae(path)
        results.append([sae.d_sae, sorted(p.name for p in (folder if folder.is_dir() else folder.parent).iterdir())])
    except InputError as error:
        results.append(str(error))
print(json.dumps(results))
"""


def ask(paths: list[str], home: Path, **environment: str) -> list[object]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    clean |= {"HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "127.0.0.1"}
    run = [sys.executable, "-c", SCRIPT, json.dumps(paths)]
    done = subprocess.run(run, env=clean | environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return list(json.loads(done.stdout))


@pytest.mark.slow
def test_only_the_folder_is_downloaded_and_errors_say_what_to_do(hub: str, tmp_path: Path) -> None:
    paths = ["hf:o/saes//a", "hf:o/saes//b/params.npz", "hf:o/saes@main//b/", "hf:o/saes//c", "hf:o/saes@nowhere//a"]
    paths += ["hf:o/gated//a", "hf:o/other//a"]
    found = ask(paths, tmp_path / "home", HF_ENDPOINT=hub)
    assert found[0] == [16, ["cfg.json", "sae.safetensors"]]
    assert found[1] == found[2] == [16, ["params.npz"]]
    assert "o/saes has no 'c'" in str(found[3])
    assert "no revision 'nowhere'" in str(found[4])
    assert "o/gated is gated: accept its terms on the hub, and set HF_TOKEN" in str(found[5])
    assert "no repository o/other, or it is private" in str(found[6])
    assert not any("deeper" in path or "optimizer" in path for path in Hub.asked)
    # what is kept is found without the hub, and what is not says so
    again = ask(["hf:o/saes//a", "hf:o/elsewhere//a"], tmp_path / "home", HF_ENDPOINT=hub, HF_HUB_OFFLINE="1")
    assert again[0] == found[0]
    assert "cannot be reached (or HF_HUB_OFFLINE is set), and no copy is kept here" in str(again[1])


@pytest.mark.slow
def test_a_hub_that_does_not_answer_is_an_input_error(tmp_path: Path) -> None:
    found = ask(["hf:o/saes//a"], tmp_path / "home", HF_ENDPOINT="http://127.0.0.1:9")
    assert "hf:o/saes//a could not be downloaded: the hub cannot be reached" in str(found[0])


@pytest.mark.parametrize("inside", ["", "L8R-8x", "a[b]/L8R"])
def test_of_the_folders_below_only_the_last_checkpoint_is_wanted(inside: str) -> None:
    from huggingface_hub.utils import filter_repo_objects

    folder = f"{inside}/" if inside else ""
    wanted = ["hyperparams.json", "cfg.json", "config.yaml", "x.safetensors", "checkpoints/final.safetensors"]
    left = [
        "examples.safetensors",
        "deeper/x.json",
        "checkpoints/5.safetensors",
        "checkpoints/a/final.safetensors",
        "check/x.json",
    ]
    left += ["checkpoints_old/x.safetensors", "chat/x.json", "c/x.json", "other/checkpoints/final.safetensors"]
    names = [folder + name for name in (*wanted, *left)] + (["elsewhere/cfg.json"] if inside else [])
    kept = filter_repo_objects(
        names, allow_patterns=hub_paths._wanted(inside), ignore_patterns=hub_paths._unwanted(inside)
    )
    assert list(kept) == [folder + name for name in wanted]


def test_what_lies_beside_a_file_is_wanted_too() -> None:
    assert hub_paths._wanted("a/layer_3.safetensors") == ["a/layer_3.safetensors", "a/config.json", "a/config.yaml"]


def test_paths_of_this_machine_are_left_alone() -> None:
    assert local_folder("some/folder") == Path("some/folder")
    assert local_folder("C:/sae") == Path("C:/sae")


@pytest.mark.parametrize("path, parts", [
    ("hf:owner/name", ("owner/name", None, "")),
    ("hf:owner/na.me-2_b//layer_3/width_16k/", ("owner/na.me-2_b", None, "layer_3/width_16k")),
    ("hf:owner/name@v1.0//x", ("owner/name", "v1.0", "x")),
    ("hf:owner/name@refs/pr/1//x", ("owner/name", "refs/pr/1", "x")),
])  # fmt: skip
def test_the_parts_of_a_hub_path(path: str, parts: tuple[str, str | None, str]) -> None:
    assert parse(path) == HubPath(*parts)


@pytest.mark.parametrize(
    "path", ["hf:name", "hf:", "hf:a/b/c", "hf:a/b//../x", "hf:a/b//x\\y", "hf:a b/c//d", "hf:/b//c", "a/b"]
)
def test_other_text_is_an_input_error(path: str) -> None:
    with pytest.raises(InputError, match="is not of the form hf:owner/name//folder"):
        parse(path)
