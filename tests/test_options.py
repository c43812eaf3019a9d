"""A Loader's options have one list: its signature, its documentation and the daemon's configuration say the same."""

from __future__ import annotations

import dataclasses
import inspect
import re
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import pytest
from fuelrail import ConfigError, Source, loader
from fuelrail.loader import BaseLoader
from fuelrail.numpy import Loader
from fuelrail.options import CONFIGURED, DEFAULTS, DESCRIBING, OF_DEVICES, OPTIONS, LoaderOptions
from support import TINY

ROOT = Path(__file__).parents[1]

#: Every tenth record is bad, so that what becomes of these shows.
SOME_BAD = "synthetic://?count=40&width=16&height=16&corrupt_rate=0.1"

#: Keys of a pipeline that a Loader has no option for: two are arguments of their own, one is only for files.
OTHER_KEYS = {"source", "transforms", "blocked", "fields", "finish"}


@pytest.mark.parametrize("takes", [BaseLoader, Source])
def test_a_signature_has_the_options_with_their_types_and_defaults(takes: type) -> None:
    names = [*OPTIONS] if takes is BaseLoader else [*DESCRIBING]
    parameters = inspect.signature(takes).parameters
    hints, types = get_type_hints(takes.__init__), get_type_hints(LoaderOptions)
    kept = [name for name in parameters if name in OPTIONS]
    assert sorted(kept) == sorted(names)
    assert {name: hints[name] for name in names} == {name: types[name] for name in names}
    assert {name: parameters[name].default for name in names} == {name: DEFAULTS[name] for name in names}


def test_the_documentation_of_both_loaders_and_of_a_source_has_every_option_once() -> None:
    torch = pytest.importorskip("fuelrail.torch")
    for documented, names in [
        (LoaderOptions, OPTIONS),
        (torch.Loader, OPTIONS),
        (Loader, OPTIONS.keys() - set(OF_DEVICES)),
        (Source, DESCRIBING),
    ]:
        text = documented.__doc__
        entries = re.findall(r"^ {8}(\w+): ", text, re.MULTILINE)
        assert sorted(set(entries) & OPTIONS.keys()) == sorted(names)
        assert len(entries) == len(set(entries)) and "...:" not in text


def test_every_key_of_a_pipeline_is_an_option() -> None:
    text = (ROOT / "loader/src/config.rs").read_text()
    body = re.search(r"pub struct PipelineConfig \{\n(.*?)\n\}", text, re.DOTALL)
    assert body
    keys = set(re.findall(r"^    pub (\w+):", body[1], re.MULTILINE))
    ours = {
        CONFIGURED.get(name, (name,))[0]
        for name, option in OPTIONS.items()
        if option.whose == "pipeline" or (option.whose == "made" and option.key)
    }
    assert ours == keys - OTHER_KEYS


def test_the_defaults_are_the_daemons(monkeypatch: pytest.MonkeyPatch) -> None:
    def seen() -> dict[str, Any]:
        with Loader(SOME_BAD, transforms=TINY) as opened:
            rows = [
                (batch.rows, batch.dropped, *batch["index"], *batch["substituted"], batch["image"].sum())
                for batch in opened
            ]
            stats = opened.stats()
            return {
                "attached": opened._attached,
                "rows": rows,
                "backend": stats["read"]["backend"],
            }

    spelt_out = seen()
    pipeline = loader._pipeline

    def bare(*arguments: Any) -> Any:
        config, folder = pipeline(*arguments)
        given = {name for name, option in OPTIONS.items() if option.whose == "pipeline"}
        assert set(config) - OTHER_KEYS == {
            CONFIGURED.get(name, (name,))[0] for name in given if DEFAULTS[name] is not None
        }
        return {"source": config["source"], "transforms": config["transforms"]}, folder

    monkeypatch.setattr(loader, "_pipeline", bare)
    assert seen() == spelt_out
    assert any(row[2 + row[0]] for row in spelt_out["rows"]), "no record was bad"


def test_options_are_plain_data_that_nobody_changes() -> None:
    options = LoaderOptions(batch_size=np.int64(4), on_error="Drop", timeout=0, num_workers=None)
    assert (options.batch_size, options.on_error, options.timeout) == (4, "drop", None)
    assert type(options.batch_size) is int
    with pytest.raises(dataclasses.FrozenInstanceError):
        options.batch_size = 5  # type: ignore[misc]
    # What a change makes is checked again, and what was checked is taken as it is.
    assert vars(dataclasses.replace(options)) == vars(options)
    with pytest.raises(ConfigError, match="batch_size= takes a whole number"):
        dataclasses.replace(options, batch_size=0)
