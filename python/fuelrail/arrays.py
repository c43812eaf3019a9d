"""Numbers that users give, as .npy files for the daemon: weights, and the records of an order.

numpy's and torch's arrays are taken as they are, anything else number by number. Nothing here imports numpy or torch.
"""

from __future__ import annotations

import operator
import os
import sys
from array import array
from collections.abc import Iterable, Mapping, Sequence, Set
from pathlib import Path
from typing import Any

from fuelrail.checks import shown
from fuelrail.errors import ConfigError

_TAKES = "order= takes record numbers: a list, an array or a tensor of them (or of a row for each epoch), or a .npy file"


def weights(given: Any) -> str | bytes:
    """The weights of records: the path of a file, or the contents of one."""
    if isinstance(given, str | os.PathLike):
        return _file("weights", given)
    try:
        numbers = array("d", (float(weight) for weight in given))
    except (TypeError, ValueError):
        raise ConfigError(
            f"weights= takes one number per record, or the path of an .npy file; {shown(given)} was given"
        ) from None
    return _npy("<f8", (len(numbers),), _little(numbers))


def order(given: Any) -> str | bytes:
    """The records of an order: the path of a file, or the contents of one."""
    if isinstance(given, str | os.PathLike):
        return _file("order", given)
    if callable(given):
        raise ConfigError(
            f"{_TAKES}, not a function: call it for each epoch and give the rows, "
            "numpy.stack([f(epoch) for epoch in range(epochs)])"
        )
    if isinstance(given, bytes | Mapping | Set):
        why = "; it has no order" if isinstance(given, Set) else ""
        raise ConfigError(f"{_TAKES}; {shown(given)} was given{why}")
    # pandas' and torch's, as numpy's.
    for step in ("to_numpy", "detach", "cpu", "numpy"):
        if hasattr(given, step) and hasattr(given, "dtype") and not hasattr(given, "__array_interface__"):
            given = getattr(given, step)()
    if hasattr(given, "__array_interface__") and hasattr(given, "astype"):
        return _of_array(given)
    return _of_list(given)


def _of_array(given: Any) -> bytes:
    kind, shape = given.dtype.kind, tuple(given.shape)
    if kind not in "iu":
        remedy = {
            "b": "; a mask becomes numbers by numpy.flatnonzero(mask)",
            "f": "; convert it with .astype(numpy.int64)",
        }.get(kind, "")
        raise ConfigError(f"{_TAKES}; an array of {given.dtype} was given{remedy}")
    if len(shape) not in (1, 2):
        raise ConfigError(f"order= has the shape {shape}; record numbers have the shape (n,), or (epochs, n)")
    _refuse_empty(shape)
    descr = "<u8" if kind == "u" else "<i8"
    return _npy(descr, shape, given.astype(descr).tobytes())


def _of_list(given: Any) -> bytes:
    if not isinstance(given, Iterable):
        raise ConfigError(f"{_TAKES}; {shown(given)} was given")
    rows = list(given)
    is_row = [
        (isinstance(row, Sequence) and not isinstance(row, str | bytes)) or getattr(row, "ndim", 0) > 0
        for row in rows
    ]
    if not any(is_row):
        shape: tuple[int, ...] = (len(rows),)
        numbers = array("q", _whole(rows, ""))
    else:
        if not all(is_row):
            at = [bool(row) for row in is_row].index(False)
            raise ConfigError(
                f"order[{at}] is {shown(rows[at])}, and other items are rows: give rows, or numbers"
            )
        lengths = [len(row) for row in rows]
        odd = next((at for at, length in enumerate(lengths) if length != lengths[0]), None)
        if odd is not None:
            raise ConfigError(
                f"order[{odd}] has {lengths[odd]} records and order[0] has {lengths[0]}: "
                "every epoch needs the same number of them"
            )
        shape = (len(rows), lengths[0])
        numbers = array("q", (number for at, row in enumerate(rows) for number in _whole(row, f"{at}, ")))
    _refuse_empty(shape)
    return _npy("<i8", shape, _little(numbers))


def _whole(numbers: Iterable[Any], before: str) -> Iterable[int]:
    for at, number in enumerate(numbers):
        place = f"order[{before}{at}]"
        try:
            whole = operator.index(number)
        except TypeError:
            whole = None
        if (
            whole is None
            or isinstance(number, bool)
            or str(getattr(number, "dtype", "")) in ("bool", "torch.bool")
        ):
            raise ConfigError(f"{place} is {shown(number)}; record numbers are whole numbers")
        if not 0 <= whole < 1 << 63:
            raise ConfigError(f"{place} is {whole}; records are numbered from 0 on")
        yield whole


def _refuse_empty(shape: tuple[int, ...]) -> None:
    if 0 in shape:
        raise ConfigError("order= is empty: it needs at least one record in an epoch")


def _file(name: str, path: str | os.PathLike[str]) -> str:
    absolute = str(Path(path).absolute())
    if not Path(absolute).is_file():
        raise ConfigError(f"{name}={shown(path)}: there is no such file; it takes an .npy file")
    return absolute


def _little(numbers: array[Any]) -> bytes:
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers.tobytes()


def _npy(descr: str, shape: tuple[int, ...], data: bytes) -> bytes:
    """A .npy file (version 1.0), as written by numpy.save."""
    header = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}"
    header = header.ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + data
