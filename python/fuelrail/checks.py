"""Checks arguments: converts the values that users pass to plain data, or refuses them with a clear error.

numpy's and torch's numbers and dtypes, enumerations and paths are accepted. Nothing here imports numpy or torch: the
value itself is inspected. An error names the argument, the accepted values and the given one.
"""

from __future__ import annotations

import datetime
import difflib
import math
import operator
import os
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from fuelrail.errors import ConfigError

#: Converts a value to plain data, or raises `Refused`.
Check = Callable[[Any], Any]


class Refused(Exception):
    """The accepted values of an argument, and a hint about the given one."""

    def __init__(self, takes: str, hint: str = "") -> None:
        super().__init__(takes)
        self.takes, self.hint = takes, hint


def whole(least: int, most: int, *, zero: str = "", none: str = "") -> Check:
    """A whole number; bools, floats and text are refused. `zero` describes 0, `none` is the error text for None."""
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
            raise Refused(takes, none if value is None else "") from None
        if not least <= number <= most:
            raise Refused(takes)
        return number

    return check


def flag(value: Any) -> bool:
    """True or False, including numpy's and torch's, and 0 or 1."""
    value = _scalar(value)
    if _is_bool(value) or (isinstance(value, int) and value in (0, 1)):
        return bool(value)
    raise Refused("True or False")


def choice(*known: str, also: Mapping[str, str] | None = None) -> Check:
    """One of some words, in any case. `also` has aliases, as `str` gives them."""
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
    """Seconds; None and 0 mean no limit."""
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
    """Number of bad records tolerated: a share or a count."""
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
    """A list of texts, or a single text."""

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


def share(value: Any) -> dict[str, Any]:
    """A shared feed: its name, or a mapping with its settings."""
    takes = (
        'a name, or a mapping like {"name": "trials", "clients": 4, "laggards": "detach", "patience_s": 60}'
    )
    if isinstance(value, str):
        value = {"name": value}
    if not isinstance(value, Mapping) or not isinstance(value.get("name"), str) or not value["name"]:
        raise Refused(takes)
    if unknown := set(value) - {"name", "clients", "laggards", "patience_s"}:
        raise Refused(takes, f"{min(map(str, unknown))!r} is not known")
    return dict(value)


def bagging(value: Any) -> bool | int:
    """A flag, or the number of a model."""
    if _is_bool(value):
        return bool(value)
    return int(whole(0, (1 << 63) - 1)(value))


def bytes_or_text(value: Any) -> int | str:
    """A number of bytes, or text like "100gb"."""
    if isinstance(value, str):
        return str(value)
    try:
        return int(whole(0, (1 << 63) - 1)(value))
    except Refused:
        raise Refused('a number of bytes, or text like "100gb"') from None


#: The daemon's names of pixel types, by each library's name.
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


def auto_or(check: Check) -> Check:
    """ "auto", or a value that another check accepts."""

    def either(value: Any) -> Any:
        if isinstance(value, str) and value.lower() == "auto":
            return "auto"
        try:
            return check(value)
        except Refused as refused:
            raise Refused(f'"auto", or {refused.takes}', refused.hint) from None

    return either


def anything(value: Any) -> Any:
    """A value that is checked where it is used."""
    return value


def accept(name: str, value: Any, check: Check) -> Any:
    """One argument as plain data; raises a ConfigError that names it if it is invalid."""
    try:
        return check(value)
    except Refused as refused:
        hint = f" ({refused.hint})" if refused.hint else ""
        raise ConfigError(f"{name}= takes {refused.takes}; {shown(value)} was given{hint}") from None


def shown(value: Any) -> str:
    """A value as shown in an error: short, on one line, with its type if that is not obvious."""
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


def _is_bool(value: Any) -> bool:
    return isinstance(value, bool) or str(getattr(value, "dtype", "")) in ("bool", "torch.bool")


def _scalar(value: Any) -> Any:
    """numpy's and torch's numbers as Python's; everything else unchanged."""
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
