"""contrib/repair_wheel.py: a wheel that brings OpenSSL names its licence. `make wheel` tries a real one."""

import base64
import csv
import hashlib
import importlib.util
import tomllib
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pytest

ROOT = Path(__file__).parents[1]
INFO = "torkit-0.1.0.dist-info"


@pytest.fixture(scope="module")
def repair_wheel() -> Any:
    spec = importlib.util.spec_from_file_location("repair_wheel", ROOT / "contrib" / "repair_wheel.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def make_wheel(path: Path, metadata: str) -> None:
    with ZipFile(path, "w") as wheel:
        wheel.mkdir("torkit.libs")
        wheel.writestr("torkit/__init__.py", "x = 1\n")
        wheel.writestr(f"{INFO}/METADATA", metadata)
        wheel.writestr(f"{INFO}/RECORD", "of before\n")


def test_the_licence_is_added_and_every_file_recorded(repair_wheel: Any, tmp_path: Path) -> None:
    make_wheel(tmp_path / "in.whl", f"Name: torkit\n{repair_wheel.OURS}License-File: LICENSE\n\nText\n")
    repair_wheel.add_licence(tmp_path / "in.whl", tmp_path / "out.whl")
    with ZipFile(tmp_path / "out.whl") as wheel:
        files = {info.filename: wheel.read(info) for info in wheel.infolist()}
        modes = {info.filename: info.external_attr >> 16 for info in wheel.infolist()}
    metadata = files[f"{INFO}/METADATA"].decode()
    assert "License-Expression: BSD-3-Clause AND Apache-2.0\nLicense-File: OpenSSL.txt\n" in metadata
    assert "License-File: LICENSE\n" in metadata
    licence = files[f"{INFO}/licenses/OpenSSL.txt"]
    assert b"Apache License" in licence
    assert modes[f"{INFO}/licenses/OpenSSL.txt"] == 0o644
    rows = list(csv.reader(files[f"{INFO}/RECORD"].decode().splitlines()))
    assert rows.pop() == [f"{INFO}/RECORD", "", ""]
    assert {row[0] for row in rows} == files.keys() - {f"{INFO}/RECORD"}
    for name, digest, length in rows:
        found = base64.urlsafe_b64encode(hashlib.sha256(files[name]).digest()).decode().rstrip("=")
        assert (digest, int(length)) == (f"sha256={found}", len(files[name]))


def test_metadata_that_says_another_licence_is_an_error(repair_wheel: Any, tmp_path: Path) -> None:
    make_wheel(tmp_path / "in.whl", "Name: torkit\nLicense-Expression: MIT\n\n")
    with pytest.raises(SystemExit, match="no line"):
        repair_wheel.add_licence(tmp_path / "in.whl", tmp_path / "out.whl")


def test_the_licence_that_is_replaced_is_the_projects(repair_wheel: Any) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert f"License-Expression: {project['license']}\n" == repair_wheel.OURS
