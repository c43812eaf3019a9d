"""Where samples come from, as plain data for the daemon: one source, or several mixed.

>>> from fuelrail import Mix, Source
>>> Source("shards/train-{000..127}.tar", label="cls")
Source('shards/train-{000..127}.tar', label='cls')
>>> Mix({"photos": "photos/", "web": Source("web/*.parquet", image="jpg")}, weights={"photos": 3, "web": 1})
Mix(photos=Source('photos/'), web=Source('web/*.parquet', image='jpg'))
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fuelrail.checks import accept
from fuelrail.errors import ConfigError
from fuelrail.fields import Field
from fuelrail.options import AUTO, CHECKS, DESCRIBING, Auto, configure, documented

#: One path or URL, or several that form one source.
Address = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]


#: Source options that a Loader accepts as arguments. `layout` is not one of them: a Loader's is the layout of its
#: batches.
KEYS = (
    *("root", "format", "delimiter"),
    *("start", "end", "window_records", "window_bytes", "window_seconds", "window_offsets"),
    *("value", "max_record_bytes", "properties"),
    *("count", "width", "height", "width_max", "height_max", "block_records", "delay_us"),
    *("straggler_every", "straggler_ms", "corrupt_rate", "fail_rate", "flaky_rate"),
    "missing_rate",
)


@documented(*DESCRIBING)
class Source:
    """A data source. Its kind is detected from its file extension or, for a folder, from its contents.

    Args:
        address: a folder of class folders; tar shards (`"train-{000..127}.tar"`, also .tar.gz and .tar.zst);
            Parquet, Arrow or Feather files; .csv and .jsonl manifests; .h5, .npy and .npz arrays; any of these
            at `s3://`, `gs://`, `az://` or `https://`; `"synthetic://?count=1000"`. Several addresses of one kind
            form one source.
        ...: as the fields with these names in `fuelrail.options.LoaderOptions`.
        options: further options for this kind of source; an unknown one is refused.
    """

    def __init__(
        self,
        address: Address,
        *,
        image: str | Sequence[str] | None = None,
        label: str | Auto | None = AUTO,
        fields: Sequence[str] | Mapping[str, Field] | None = None,
        tokens: Mapping[str, Any] | None = None,
        classes: Sequence[str] | None = None,
        split: str | None = None,
        where: str | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        cache_limit: int | str | None = None,
        **options: Any,
    ) -> None:
        arguments = dict(locals())
        if isinstance(fields, Mapping):
            raise ConfigError(
                "fields= as a mapping says what a batch holds: give it to the Loader, not to Source(...)"
            )
        one = isinstance(address, str | bytes | os.PathLike)
        addresses: Sequence[Any] = [address] if one else list(address)  # type: ignore[arg-type]
        self._addresses: list[str] = [_address(item) for item in addresses]
        given = {name: arguments[name] for name in DESCRIBING}
        given["label"] = None if label is AUTO else "" if label is None else label
        # Procedural images have no class names, only a number of classes.
        counted = (
            {"classes"} if self._addresses[:1] and self._addresses[0].startswith("synthetic:") else set()
        )
        self._options = {
            key: accept(key, value, CHECKS[key]) if key in DESCRIBING and key not in counted else value
            for key, value in {**given, **options}.items()
            if value is not None
        }

    def config(self) -> dict[str, Any]:
        """The source as the daemon takes it; relative paths are resolved against the current directory."""
        config: dict[str, Any] = {"type": "address", "address": self._addresses}
        absolute = all(address.startswith("/") or "://" in address for address in self._addresses)
        try:
            config["base"] = _folder()
        except ConfigError:
            # Without a current directory, only absolute addresses work.
            if not absolute:
                raise
        for key, value in self._options.items():
            if key == "split":
                config["split"] = _split(value)
            elif key in ("type", "address", "base"):
                raise ConfigError(f"{key}= is no option of a source")
            else:
                configure(config, key, _plain(value))
        return config

    @property
    def given(self) -> frozenset[str]:
        """Names of the arguments that were given."""
        return frozenset(self._options)

    def __repr__(self) -> str:
        addresses = self._addresses[0] if len(self._addresses) == 1 else self._addresses
        # Kafka's properties include passwords.
        shown: dict[str, Any] = {
            key: dict.fromkeys(value, "…") if key == "properties" and isinstance(value, Mapping) else value
            for key, value in self._options.items()
        }
        if shown.get("label") == "":
            shown["label"] = None
        options = "".join(f", {key}={value!r}" for key, value in shown.items())
        return f"Source({addresses!r}{options})"


class Mix:
    """Several sources combined in proportion; every batch contains them in nearly these proportions.

    A part's records come in passes: no record is repeated before all others of the part were delivered, even across
    epochs. `batch["part"]` is the part a row is from (its number in the mapping). Order and resume are as exact as
    with one source.

    Args:
        parts: sources (or addresses) by name.
        weights: each part's share of an epoch's draws, relative to the others.
        repeat: instead of weights, how often an epoch goes through each part (default 1; 0.5 is half of the part).
        samples_per_epoch: draws per epoch, with weights. Default: the number of records.
    """

    def __init__(
        self,
        parts: Mapping[str, Source | Address],
        *,
        weights: Mapping[str, float] | None = None,
        repeat: Mapping[str, float] | None = None,
        samples_per_epoch: int | None = None,
    ) -> None:
        if not isinstance(parts, Mapping):
            raise ConfigError(
                f'the parts of a mixture have names: Mix({{"a": …, "b": …}}), not a {type(parts).__name__}'
            )
        for name, part in parts.items():
            if isinstance(part, Mix):
                raise ConfigError(
                    f"part {name!r} is a mixture; give its parts to this one, with their weights multiplied"
                )
        self._parts = {
            name: part if isinstance(part, Source) else Source(part) for name, part in parts.items()
        }
        for argument, numbers in (("weights", weights), ("repeat", repeat)):
            for name in numbers or {}:
                if name not in self._parts:
                    known = ", ".join(self._parts)
                    raise ConfigError(
                        f"{argument}[{name!r}]: the mixture has no part of this name; it has {known}"
                    )
                finite(f"{argument}[{name!r}]", (numbers or {})[name])
        if weights is not None:
            if repeat is not None:
                raise ConfigError(
                    "weights= and repeat= exclude each other: shares of an epoch, or passes in it"
                )
            for name in self._parts:
                if name not in weights:
                    raise ConfigError(f"weights has no weight for part {name!r}; give every part one")
        self._weights = weights
        self._repeat = repeat
        name = "samples_per_epoch"
        self._samples_per_epoch = (
            None if samples_per_epoch is None else accept(name, samples_per_epoch, CHECKS[name])
        )

    def config(self) -> dict[str, Any]:
        """The mixture as the daemon takes it."""
        parts = []
        for name, source in self._parts.items():
            part: dict[str, Any] = {"source": source.config(), "name": name}
            if self._weights is not None:
                part["weight"] = float(self._weights[name])
            if self._repeat is not None and name in self._repeat:
                part["repeat"] = float(self._repeat[name])
            parts.append(part)
        config: dict[str, Any] = {"type": "mix", "parts": parts}
        if self._samples_per_epoch is not None:
            config["samples_per_epoch"] = self._samples_per_epoch
        return config

    @property
    def parts(self) -> Mapping[str, Source]:
        """Its sources by name."""
        return self._parts

    def __repr__(self) -> str:
        return "Mix(" + ", ".join(f"{name}={part!r}" for name, part in self._parts.items()) + ")"


def _address(item: Any) -> str:
    if not isinstance(item, str | os.PathLike):
        raise ConfigError(f"an address is a path or a URL, not {type(item).__name__} ({item!r})")
    address = os.fspath(item)
    if not isinstance(address, str):
        raise ConfigError(f"an address is text, not {address!r}; os.fsdecode() makes text of bytes")
    return _text(address, "an address")


def _text(path: str, what: str) -> str:
    """Refuses a path that is not UTF-8: bytes that Python represents as surrogates."""
    try:
        path.encode()
    except UnicodeEncodeError:
        raise ConfigError(
            f"{what} is {os.fsencode(path)!r}, which is not UTF-8; rename it, or give a symbolic link that leads there "
            "(names of files inside may be anything)"
        ) from None
    return path


def _folder() -> str:
    """The current directory, against which relative paths are resolved."""
    try:
        return _text(str(Path.cwd()), "the current folder")
    except FileNotFoundError:
        raise ConfigError(
            "the current folder is gone (deleted while this process is in it), so a relative path leads nowhere; "
            "give an absolute one, or change the folder with os.chdir"
        ) from None


def finite(name: str, value: Any) -> float:
    """A finite number, given as `name`."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise ConfigError(f"{name} is {value!r}; a number is expected") from None
    if not math.isfinite(number):
        raise ConfigError(f"{name} is {number}; it must be finite")
    return number


def _plain(value: Any) -> Any:
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(item) for item in value]
    return value


def _split(value: Any) -> Any:
    """Checks only the type; the daemon, which knows the source, interprets the text."""
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping):
        return _plain(value)
    raise ConfigError(
        f'split={value!r} is not text: write "train[:90%]" for one part and "train[90%:]" for what is held out of it, '
        'or "fold 2/5" and "not fold 2/5"'
    )
