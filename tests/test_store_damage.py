"""Files cut short and bits flipped: a store that is opened shows all that was committed, or says that it is damaged."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

import pytest
from support.damaged_store import EVIDENCE, LEDGER, MAIN, WAL, bytes_of, content, killed_store, told_of

from autointerp.cli import app
from autointerp.store.safety.reading import open_for_reading

SHARE = 1 if os.environ.get("AUTOINTERP_DAMAGE") == "all" else 24
"""One case in so many is tried; AUTOINTERP_DAMAGE=all tries every one."""
N_CUTS = {MAIN: 100, WAL: 100, EVIDENCE: 50, LEDGER: 30}
N_FLIPS = {MAIN: 90, WAL: 40, EVIDENCE: 50, LEDGER: 20}
HEADERS = 3 * 4096
"""Bytes at the beginning of a DuckDB file that hold its headers: a quarter of the flips go there."""
BLOCK = 262144


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return killed_store(tmp_path_factory.mktemp("template"))


@pytest.fixture(scope="module")
def truth(template: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[bool, list[list[Any]]]:
    """The content with and without the views."""
    with open_for_reading(template / MAIN) as store:
        held = {views: [list(row) for row in content(store, views)] for views in (False, True)}
    assert {"x.llm_calls": 140}.items() <= {row[0]: row[1] for row in held[False]}.items()
    return held


def cases_of(template: Path, file: str) -> list[dict[str, Any]]:
    size, drawn = (template / file).stat().st_size, random.Random(file)
    cuts = [{"file": file, "cut": size * i // N_CUTS[file]} for i in range(N_CUTS[file])]
    cuts.append({"file": file, "cut": size - 1})
    flips = [
        {"file": file, "bit": drawn.randrange(8 * min(size, HEADERS if i % 4 == 0 else size))}
        for i in range(N_FLIPS[file])
    ]
    return [*cuts[::-1][::SHARE], *flips[::SHARE]]


@pytest.mark.parametrize("file", [MAIN, WAL, EVIDENCE, LEDGER])
def test_damage_is_refused_or_harmless(template: Path, truth: dict[bool, list[list[Any]]], file: str) -> None:
    whole = 0
    for told in told_of(template, cases_of(template, file)):
        case = {key: value for key, value in told.items() if key != "content"}
        if told["ended"] == "whole":
            rows = [[name, n, int(total or 0), xor] for name, n, total, xor in told["content"]]
            assert rows in [[[a, b, int(c or 0), d] for a, b, c, d in truth[views]] for views in truth], case
            whole += 1
            continue
        assert (told.get("error"), told.get("code")) == ("DamagedError", 7), case
        assert file in told["message"] or (MAIN in told["message"] and file == WAL), case
        assert "autointerp recover" in told["message"], case
        if told["ended"] == "opening" or not told["writing"]:
            assert told["changed"] == [], case
    if file in (MAIN, WAL):
        assert whole < 0.2 * 2 * len(cases_of(template, file))


@pytest.mark.parametrize("where", ["context_rows", "windows"])
def test_commands_that_meet_damaged_evidence_say_so(
    template: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], where: str
) -> None:
    """Found where the block is read: in the middle of a command."""
    for name, data in bytes_of(template).items():
        (tmp_path / name).write_bytes(data)
    of = "SELECT DISTINCT block_id FROM pragma_storage_info('evidence.{}') WHERE block_id >= 0"
    with open_for_reading(tmp_path / MAIN) as store:
        blocks = store.rows(f"{of.format(where)} EXCEPT {of.format('harvest_info')}")  # opening reads that one
    assert blocks
    evidence = bytearray((tmp_path / EVIDENCE).read_bytes())
    for (block_id,) in blocks:
        evidence[HEADERS + block_id * BLOCK + 5000] ^= 4
    (tmp_path / EVIDENCE).write_bytes(bytes(evidence))
    before = bytes_of(tmp_path)
    path = str(tmp_path / MAIN)
    commands = [
        ("show", "0", "--store", path),
        ("query", f"SELECT bit_xor(hash(t)) FROM evidence.{where} AS t", "--store", path),
        ("verify", "--leakage-only", "--store", path),
    ]
    for command in commands:
        code = app.guarded(lambda arguments=command: app.app(list(arguments), standalone_mode=False), False)
        said = capsys.readouterr().err
        assert code == 7, (command, said)
        assert EVIDENCE in said and "autointerp recover" in said, said
    assert bytes_of(tmp_path) == before
