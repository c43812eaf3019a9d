"""The code's shape: which crate may depend on which, and what importing the package costs a trainer."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

#: Edges between our crates. A new one is a decision: it belongs in ARCHITECTURE.md first.
EDGES = {
    "fuelrail-transforms": set(),
    "fuelrail-connectors": set(),
    "fuelrail-loader": {"fuelrail-transforms", "fuelrail-connectors"},
    "fuelrail-python": {"fuelrail-loader"},
}


def cargo(*arguments: str) -> str:
    found = shutil.which("cargo") or shutil.which("cargo", path=str(Path.home() / ".cargo" / "bin"))
    if found is None:
        pytest.skip("cargo is not installed")
    # The lock file says what is used; no network is needed to read it.
    done = subprocess.run(
        [found, *arguments, "--locked"], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def packages() -> dict[str, dict]:
    metadata = json.loads(cargo("metadata", "--format-version", "1", "--no-deps"))
    return {package["name"]: package for package in metadata["packages"]}


def test_crates_depend_on_each_other_only_as_drawn() -> None:
    edges = {
        name: {
            dependency["name"]
            for dependency in package["dependencies"]
            if dependency["name"] in EDGES and dependency["kind"] is None
        }
        for name, package in packages().items()
    }
    # benches stand beside the crates of the product and may look at all of them.
    assert {name: edges for name, edges in edges.items() if name in EDGES} == EDGES


def test_python_links_only_the_client_half_of_the_loader() -> None:
    dependency = next(
        d for d in packages()["fuelrail-python"]["dependencies"] if d["name"] == "fuelrail-loader"
    )
    assert dependency["features"] == ["client", "cuda"] and not dependency["uses_default_features"]
    tree = cargo("tree", "-p", "fuelrail-python", "-e", "normal", "--prefix", "none")
    linked = {line.split()[0] for line in tree.splitlines() if line.strip()}
    heavy = {
        "tokio",
        "rayon",
        "image",
        "io-uring",
        "turbojpeg",
        "turbojpeg-sys",
        "mozjpeg-sys",
        "clap",
        "toml",
    }
    assert not linked & (heavy | {"fuelrail-transforms", "fuelrail-connectors"}), linked
    assert "fuelrail-loader" in linked


@pytest.mark.parametrize(
    "module", ["fuelrail", "fuelrail.transforms", "fuelrail.errors", "fuelrail.__main__"]
)
def test_importing_the_package_imports_neither_torch_nor_numpy(module: str) -> None:
    code = (
        f"import sys, {module}; print(sorted(set(sys.modules) & {{'torch', 'numpy', 'torchvision', 'PIL'}}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]", done.stderr


def test_the_numpy_loader_does_not_import_torch_nor_the_other_way_round_matplotlib() -> None:
    for module, absent in (("fuelrail.numpy", "torch"), ("fuelrail.torch", "matplotlib")):
        pytest.importorskip(module.rsplit(".")[-1])
        code = f"import sys, {module}; print('{absent}' in sys.modules)"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
        assert done.stdout.strip() == "False", done.stderr


def test_the_extension_carries_no_decoder_and_no_async_runtime() -> None:
    """What the trainer maps into its process is small: the daemon has the rest."""
    from fuelrail import _native
    from fuelrail.loader import binary

    extension = Path(_native.__file__)
    content = extension.read_bytes()
    for name in (b"libjpeg-turbo version", b"tokio-runtime-worker", b"fuelrail-work"):
        assert name not in content, name
    assert extension.stat().st_size < binary().stat().st_size


def test_torch_is_imported_only_where_it_belongs() -> None:
    package = ROOT / "python" / "fuelrail"
    allowed = {*(package / "torch").rglob("*.py"), *(package / "train").rglob("*.py")}
    importing = {
        path
        for path in package.rglob("*.py")
        for line in path.read_text().splitlines()
        if line.strip().startswith(("import torch", "from torch"))
    }
    assert importing <= allowed


#: Where a name's bytes are made text for something else than to be shown: to compare, to look up, or because they
#: came as text.
LOSSY = {
    "connectors/src/sources/address.rs": "comparing names; a path that was given as text",
    "connectors/src/sources/array/unpack.rs": "comparing names",
    "connectors/src/bytes/cache.rs": "comparing names",
    "connectors/src/bytes/cache/room.rs": "comparing names",
    "connectors/src/sources/folder.rs": "comparing names",
    "connectors/src/json.rs": "a word of ASCII",
    "connectors/src/sources/mod.rs": "a path that was given as text",
    "connectors/src/bytes/remote/client.rs": "what a server says, without its controls",
    "connectors/src/sources/images.rs": "a path that was given as text",
    "connectors/src/sources/images/parts.rs": "keys of a bucket, which are text",
    "connectors/src/bytes/shards.rs": "comparing names",
    "connectors/src/sources/table/coco.rs": "text of JSON; a name that is compared",
    "connectors/src/sources/table/dialect.rs": "cells of a table",
    "connectors/src/sources/table/mod.rs": "a path that was given as text",
    "connectors/src/sources/table/text.rs": "cells of a table, keys of an object",
    "connectors/src/sources/tar/unpack.rs": "a folder that is checked to be UTF-8",
    "loader/src/cli/pack/mod.rs": "comparing names",
    "loader/src/client/node.rs": "what a daemon said that could not start",
    "loader/src/client/private.rs": "comparing names of variables",
    "loader/src/permission.rs": "a path that was given as text",
    "transforms/src/decode/jpeg.rs": "what libjpeg says",
}


def test_names_of_files_are_shown_by_one_function() -> None:
    """Else bytes that are no text are lost, and a terminal obeys what a name holds. (`{:?}` of a path escapes too; it is
    for the client's half, which links no connectors.)"""
    raw, lossy = {}, set()
    for crate in ("connectors", "transforms", "loader", "python"):
        for path in (ROOT / crate / "src").rglob("*.rs"):
            name = str(path.relative_to(ROOT))
            if "/tests" in name or path.name == "tests.rs":
                continue
            text = path.read_text().split("#[cfg(test)]\nmod tests {")[0]
            if found := re.findall(r".*\.display\(\)", text):
                raw[name] = found
            if re.search(r"to_string_lossy|from_utf8_lossy", text):
                lossy.add(name)
    assert not raw, "fuelrail_connectors::shown() is for this"
    assert lossy == set(LOSSY), "the list and its reasons are kept in step"


def test_unsafe_code_lives_in_modules_that_allow_it_by_name() -> None:
    """The workspace denies unsafe code; every module that has some says so at its top and proves each block."""
    assert 'unsafe_code = "deny"' in (ROOT / "Cargo.toml").read_text()
    for crate in ("connectors", "transforms", "loader", "python"):
        manifest = (ROOT / crate / "Cargo.toml").read_text()
        assert "[lints]\nworkspace = true" in manifest, crate
        for path in (ROOT / crate / "src").rglob("*.rs"):
            text = path.read_text()
            if "#![allow(unsafe_code)]" in text:
                assert "SAFETY" in text, f"{path} has no proof"
