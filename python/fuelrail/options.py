"""What each argument of a Loader takes: one table, one checker, one form of refusal.

A value becomes plain data (numpy's and torch's numbers and dtypes, enumerations and paths included) or is refused with
the argument's name, what it takes and what was given. Nothing here imports numpy or torch: what a value is, is asked of
the value. Defaults are those of the signature; `None` stands for them everywhere but in `batch_size`.
"""

from __future__ import annotations

import datetime
import difflib
import math
import operator
import os
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fuelrail.errors import ConfigError

#: Makes plain data of a value, or raises `Refused`.
Check = Callable[[Any], Any]


class Refused(Exception):
    """What an argument takes, and a hint on what was given."""

    def __init__(self, takes: str, hint: str = "") -> None:
        super().__init__(takes)
        self.takes, self.hint = takes, hint


def whole(least: int, most: int, *, zero: str = "") -> Check:
    """A whole number; bools, floats and text are none."""
    takes = (
        f"a whole number from {least:,} to {most:,}" if most < 1 << 62 else f"a whole number from {least} on"
    )
    if most == (1 << 64) - 1:
        takes = "a whole number from 0 to 2**64 - 1"
    takes += zero

    def check(value: Any) -> int:
        if _is_bool(value):
            raise Refused(takes)
        if isinstance(value, str | bytes):
            raise Refused(takes, "convert text with int()" if value.strip().isdigit() else "")
        number = _scalar(value)
        if isinstance(number, float):
            hint = f"write {int(number)}, or divide with //" if number.is_integer() else ""
            raise Refused(takes, hint)
        try:
            number = operator.index(number)
        except TypeError:
            raise Refused(takes) from None
        if not least <= number <= most:
            raise Refused(takes)
        return number

    return check


def real(least: float, takes: str) -> Check:
    """A finite number."""

    def check(value: Any) -> float | int:
        number = _number(value, takes)
        if not math.isfinite(number) or number < least:
            raise Refused(takes)
        return number

    return check


def flag(value: Any) -> bool:
    """True or False, also numpy's and torch's, and 0 or 1."""
    value = _scalar(value)
    if _is_bool(value) or (isinstance(value, int) and value in (0, 1)):
        return bool(value)
    raise Refused("True or False")


def choice(*known: str, also: Mapping[str, str] | None = None) -> Check:
    """One of some words, in any case. `also` has further names of them, as `str` gives them."""
    takes = "one of " + ", ".join(repr(word) for word in known)

    def check(value: Any) -> str:
        word = str(value) if isinstance(value, str) or str(value) in (also or {}) else None
        if word is None:
            raise Refused(takes)
        word = (also or {}).get(word, word.lower())
        if word not in known:
            near = difflib.get_close_matches(word, known, n=1)
            raise Refused(takes, f"did you mean {near[0]!r}?" if near else "")
        return word

    return check


def seconds(value: Any) -> float | None:
    """Seconds; None where there is no end, as for 0."""
    takes = "a number of seconds; None or 0 waits for ever"
    if isinstance(value, datetime.timedelta):
        value = value.total_seconds()
    number = _number(value, takes)
    if number == math.inf:
        return None
    if not 0 <= number <= 1e9:
        raise Refused(takes)
    return float(number) or None


def budget(value: Any) -> float | int | str:
    """Bad records that are tolerated: a share or a count."""
    takes = 'a share of the records below 1 (0.01, or "1%"), or a whole number of records (20)'
    if isinstance(value, str) and re.fullmatch(r"\s*\d+(\.\d+)?\s*%\s*", value):
        if float(value.strip().rstrip("%")) <= 100:
            return str(value)
        raise Refused(takes)
    number = _number(value, takes)
    if not math.isfinite(number) or number < 0:
        raise Refused(takes)
    if isinstance(number, float) and number == 1:
        raise Refused(takes, '1.0 may mean one record or all of them: write 1 for one record, "100%" for all')
    if number > 1:
        if number != int(number):
            raise Refused(takes)
        return int(number)
    return number


def path(value: Any) -> str:
    """An absolute path."""
    if not isinstance(value, str | os.PathLike) or not isinstance(os.fspath(value), str):
        raise Refused("a path: text or a pathlib.Path")
    return str(Path(value).absolute())


def text(takes: str) -> Check:
    """Text."""

    def check(value: Any) -> str:
        if not isinstance(value, str):
            raise Refused(takes)
        return str(value)

    return check


def names(takes: str, *, one: bool = False) -> Check:
    """A list of texts; or just one text."""

    def check(value: Any) -> str | list[str]:
        if isinstance(value, str):
            if one:
                return str(value)
            raise Refused(takes, f"for one name write [{value!r}]")
        if isinstance(value, Mapping):
            raise Refused(takes)
        value = value.tolist() if hasattr(value, "tolist") else value
        listed = list(value) if isinstance(value, Iterable) else None
        if listed is None or not all(isinstance(name, str) for name in listed):
            raise Refused(takes)
        return [str(name) for name in listed]

    return check


def mapping(takes: str) -> Check:
    """A mapping, as a dict."""

    def check(value: Any) -> dict[Any, Any]:
        if not isinstance(value, Mapping):
            raise Refused(takes)
        return dict(value)

    return check


def bytes_or_text(value: Any) -> int | str:
    """A number of bytes, or text like "100gb"."""
    if isinstance(value, str):
        return str(value)
    try:
        return int(whole(0, (1 << 63) - 1)(value))
    except Refused:
        raise Refused('a number of bytes, or text like "100gb"') from None


#: The daemon's names of pixel types, by every library's.
DTYPES = {
    **{"uint8": "u8", "u1": "u8", "float32": "f32", "f4": "f32", "single": "f32"},
    **{"float16": "f16", "f2": "f16", "half": "f16", "bfloat16": "bf16", "fp32": "f32", "fp16": "f16"},
}


def dtype(value: Any) -> str:
    """The daemon's name of a pixel type: torch's, numpy's, or text."""
    name = (
        value if isinstance(value, str) else getattr(value, "name", None) or getattr(value, "__name__", None)
    )
    name = str(value if name is None else name).removeprefix("torch.").lstrip("<=|")
    known = DTYPES.get(name, name)
    if known not in DTYPES.values() or value is float:
        raise Refused(
            "uint8, float32, float16 or bfloat16: numpy's, torch's or as text; the daemon makes no other"
        )
    return known


def anything(value: Any) -> Any:
    """What is checked where it is used."""
    return value


#: Memory formats by torch's names.
_LAYOUTS = {
    "torch.channels_last": "nhwc",
    "channels_last": "nhwc",
    "torch.contiguous_format": "nchw",
    "channels_first": "nchw",
}

#: The arguments of every Loader, in no order.
CHECKS: dict[str, Check] = {
    "batch_size": whole(1, 1 << 20),
    "shuffle": flag,
    "seed": whole(0, (1 << 64) - 1),
    "num_workers": whole(0, 1024, zero="; 0 and None mean one per core"),
    "drop_last": flag,
    "device": anything,
    "dtype": dtype,
    "layout": choice("nchw", "nhwc", also=_LAYOUTS),
    "prefetch_factor": whole(1, 64),
    "rank": whole(0, (1 << 32) - 1),
    "world_size": whole(1, (1 << 32) - 1),
    "timeout": seconds,
    "on_error": choice("substitute", "drop", "fail"),
    "truncated": choice("bad", "fill"),
    "error_budget": budget,
    "quarantine": path,
    "image": names("a name, or a list of names", one=True),
    "label": text("the name of a column, array, dataset or member"),
    "fields": names("a list of names"),
    "tokens": mapping('a mapping like {"column": "input_ids", "length": 1024}'),
    "classes": names("a list of class names, in the order of their numbers"),
    "split": text('text: "train[:90%]" for one part, "train[90%:]" for the other'),
    "cache_dir": path,
    "cache_limit": bytes_or_text,
    "source_options": mapping("a mapping of further keys of this kind of source"),
    "sampling": anything,
    "weights": anything,
    "samples_per_epoch": whole(1, (1 << 63) - 1),
    "read_backend": choice("auto", "io_uring", "threads"),
    "read_ahead_bytes": whole(1, (1 << 63) - 1),
    "max_sample_bytes": whole(1, (1 << 63) - 1),
    "pipeline": text("the name of a pipeline of the daemon"),
}

#: Arguments that have another name in the configuration that a Loader makes for the daemon. The one list of them: the
#: configuration is made by it, and what the daemon says of it is said of the argument.
CONFIGURED: dict[str, tuple[str, ...]] = {
    "cache_dir": ("cache", "dir"),
    "cache_limit": ("cache", "limit_bytes"),
    "read_backend": ("read", "backend"),
    "samples_per_epoch": ("sampling", "samples_per_epoch"),
    "sampling": ("sampling", "shares"),
    "weights": ("sampling", "file"),
}


def configure(config: dict[str, Any], name: str, value: Any) -> None:
    """Puts an argument where the daemon looks for it."""
    *above, last = CONFIGURED.get(name, (name,))
    for key in above:
        config = config.setdefault(key, {})
    config[last] = value


def in_arguments(
    said: str, given: Collection[str], parts: Sequence[str] = (), raw: Iterable[str] = ()
) -> str:
    """What the daemon says of a configuration, in the names of the arguments that it was made from.

    Args:
        said: its words.
        given: the arguments that were given.
        parts: the names of a mixture's parts.
        raw: keys that were given as they are in the configuration, and keep their names.
    """
    tables = {path[0] for path in CONFIGURED.values()} - set(raw)
    for name, path in CONFIGURED.items():
        if path[0] in tables:
            said = _renamed(said, name, ".".join(path))
    for table in sorted(tables):
        said = _spelt_out(said, table, given)
    for at, part in enumerate(parts):
        said = _called(said, rf"parts\[{at}\]", part)
    return said


def _renamed(said: str, name: str, key: str) -> str:
    """A key of the configuration by the argument's name."""
    key = re.escape(key)
    # The weights of a list are in a file that nobody has named; a share is one of the classes'.
    if name == "weights":
        said = re.sub(rf"{key}:? \S+: ", "weights= ", said)
    if name == "sampling":
        said = re.sub(rf"{key}\.(.+?)(?= is |: )", lambda found: f"sampling[{found[1]!r}]", said)
    # Not where it is a piece of a path or of a longer name.
    said = re.sub(rf"(?<![\w./-]){key}(?![\w/-]|\.\w)", f"{name}=", said)
    return said.replace(f"{name}=: it takes ", f"{name}= takes ")


def _spelt_out(said: str, table: str, given: Collection[str]) -> str:
    """A table that several arguments fill: the ones that were given where it is unknown, all of them in a list."""
    names = [name for name, path in CONFIGURED.items() if path[0] == table]
    wrote = " and ".join(f"{name}=" for name in names if name in given)
    if wrote:
        said = said.replace(f'unknown key "{table}"', f"unknown argument {wrote}")
    return re.sub(rf"( take (?:\w+, )*){table}\b", lambda found: found[1] + ", ".join(names), said)


def _called(said: str, place: str, part: str) -> str:
    """A part of a mixture by its name."""
    numbers = {"weight": "weights", "repeat": "repeat"}
    said = re.sub(rf"\b{place}\.(weight|repeat)\b", lambda found: f"{numbers[found[1]]}[{part!r}]", said)
    said = re.sub(rf"\b{place}(?:\.source)?\.", lambda _: f"part {part!r}: ", said)
    return re.sub(rf"\b{place}", lambda _: f"part {part!r}", said)


# torch.utils.data.DataLoader's arguments that have another place here, and the values of them that ask for nothing.
_ELSEWHERE: dict[str, tuple[str, tuple[Any, ...]]] = {
    "sampler": ("shuffle=, seed= and rank=/world_size= give the order, which is a pure function", (None,)),
    "batch_sampler": ("batch_size= and drop_last= give the batches", (None,)),
    "collate_fn": (
        "rows are written into the batch as they are decoded; change the batch after taking it",
        (None,),
    ),
    "worker_init_fn": (
        "workers are threads of the daemon and run no Python; randomness comes from seed=",
        (None,),
    ),
    "generator": ("use seed=; augmentation is a pure function of (seed, epoch, position)", (None,)),
    "multiprocessing_context": ("workers are threads of the daemon; nothing is forked", (None,)),
    "persistent_workers": ("the daemon stays for the life of the Loader; leave it out", (None, False)),
    "in_order": (
        "batches always come in order, and slow records do not hold the others up; leave it out",
        (None, True),
    ),
    "transform": ("use transforms=[...]", (None,)),
    "target_transform": ("map labels after taking the batch, or fix their numbers with classes=", (None,)),
    "dataset": ("pass the folder itself: Loader('data/train', ...)", ()),
    "pin_memory": ("pass device= to get batches on a device; leave pin_memory out", (None, False)),
    "pin_memory_device": ("pass device= to get batches on a device; leave it out", (None, "")),
}


#: Arguments for which None is no default: no labels; and what torch means by it, no batches, is refused.
_NONE_HAS_A_MEANING = ("batch_size", "label")


def checked(given: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """All arguments as plain data. `given` has a value for each; None is replaced by the default."""
    values = {}
    for name, value in given.items():
        if value is None and name not in _NONE_HAS_A_MEANING:
            value = defaults[name]
        checks = value is not defaults[name] and (value is not None or name == "batch_size")
        values[name] = accept(name, value, CHECKS[name]) if checks else value
    return values


def accept(name: str, value: Any, check: Check) -> Any:
    """One argument as plain data; a ConfigError that names it when it is something else."""
    try:
        return check(value)
    except Refused as refused:
        hint = refused.hint
        if name == "batch_size" and value is None:
            hint = "samples without a batch are not made; batch_size=1 makes batches of one"
        raise ConfigError(
            f"{name}= takes {refused.takes}; {shown(value)} was given" + (f" ({hint})" if hint else "")
        ) from None


def shown(value: Any) -> str:
    """A value in an error: short, on one line, with its type where that does not show."""
    if value is None or isinstance(value, bool | int | float | str):
        try:
            text = repr(value)
        except ValueError:  # an integer of more than 4,300 digits
            return "a number of thousands of digits"
    else:
        kind = type(value)
        module = "" if kind.__module__ == "builtins" else f"{kind.__module__}."
        try:
            text = f"{value!r} (a {module}{kind.__qualname__})"
        except Exception:  # foreign code
            text = f"a {module}{kind.__qualname__}"
    text = " ".join(text.split())
    return text if len(text) <= 120 else f"{text[:117]}..."


def refuse_unknown(
    unknown: Mapping[str, Any], known: Iterable[str], source_keys: Sequence[str]
) -> dict[str, Any]:
    """The keys of a source among further keywords; every other keyword is refused with what was meant."""
    keys = {}
    for name, value in unknown.items():
        if name in _ELSEWHERE:
            why, nothing = _ELSEWHERE[name]
            if any(value is empty or (isinstance(value, str) and value == empty) for empty in nothing):
                continue
            raise TypeError(f"Loader() has no {name}=: {why}")
        if name in source_keys:
            keys[name] = value
            continue
        near = difflib.get_close_matches(name, [*known, *source_keys], n=1)
        hint = f"did you mean {near[0]}=?" if near else "it takes " + ", ".join(sorted(known))
        raise TypeError(f"Loader() got an unknown argument {name}=; {hint}")
    return keys


def _is_bool(value: Any) -> bool:
    return isinstance(value, bool) or str(getattr(value, "dtype", "")) in ("bool", "torch.bool")


def _scalar(value: Any) -> Any:
    """numpy's and torch's numbers as Python's; everything else as it is."""
    if getattr(value, "shape", None) == () and hasattr(value, "item"):
        try:
            return value.item()
        except (TypeError, ValueError, RuntimeError):
            return value
    return value


def _number(value: Any, takes: str) -> float | int:
    if _is_bool(value) or isinstance(value, str | bytes):
        raise Refused(takes, "convert text with float()" if isinstance(value, str | bytes) else "")
    value = _scalar(value)
    if isinstance(value, int):
        return value
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        raise Refused(takes) from None
