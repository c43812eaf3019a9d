"""The loader behind `fuelrail.torch.Loader` and `fuelrail.numpy.Loader`: everything but the array type."""

from __future__ import annotations

import difflib
import json
import logging
import os
import sys
import tempfile
import weakref
from abc import ABC, abstractmethod
from array import array
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, Self, TypedDict, TypeVar

from fuelrail import _native
from fuelrail.errors import ConfigError, EnvironmentFailure, FuelrailError, TokenError
from fuelrail.opening import Opening, log
from fuelrail.sources import Address, Mix, Source, finite
from fuelrail.transforms import Transform

logger = logging.getLogger("fuelrail")

Array = TypeVar("Array")


# torch.utils.data.DataLoader's arguments that have another place here.
_ELSEWHERE = {
    "sampler": "shuffle=, seed= and rank=/world_size= give the order, which is a pure function",
    "batch_sampler": "batch_size= and drop_last= give the batches",
    "collate_fn": "rows are written into the batch as they are decoded; change the batch after taking it",
    "worker_init_fn": "workers are threads of the daemon and run no Python; randomness comes from seed=",
    "generator": "use seed=; augmentation is a pure function of (seed, epoch, position)",
    "multiprocessing_context": "workers are threads of the daemon; nothing is forked",
    "persistent_workers": "the daemon stays for the life of the Loader; leave it out",
    "in_order": "batches always come in order, and slow records do not hold the others up; leave it out",
    "transform": "use transforms=[...]",
    "dataset": "pass the folder itself: Loader('data/train', ...)",
    "pin_memory": "pass device= to get batches on a device; leave pin_memory out",
}


class LoaderOptions(TypedDict, total=False):
    """Keyword arguments that every Loader takes; `fuelrail.torch.Loader` says what they mean."""

    batch_size: int
    shuffle: bool
    seed: int
    num_workers: int | None
    drop_last: bool
    layout: str
    prefetch_factor: int
    rank: int
    world_size: int
    timeout: float | None
    on_error: str
    error_budget: float | None
    quarantine: str | os.PathLike[str] | None
    image: str | Sequence[str] | None
    label: str | None
    fields: Sequence[str] | None
    tokens: Mapping[str, Any] | None
    classes: Sequence[str] | None
    split: str | None
    cache_dir: str | os.PathLike[str] | None
    cache_limit: int | str | None
    source_options: Mapping[str, Any] | None
    sampling: str | Mapping[str, float] | None
    weights: Any
    samples_per_epoch: int | None
    read_backend: str
    read_ahead_bytes: int | None
    max_sample_bytes: int | None
    truncated: str
    pipeline: str | None


class Batch(Generic[Array]):
    """One batch. Unpacks into images and labels; fields are also there by name.

    Fields: "image" (N, C, H, W), then the source's own fields (N, ...), "label" (N,) int64, "index" (N,) int64
    record numbers, "position" (N,) int64 places in the epoch, "substituted" (N,) bool: rows that hold another
    record because theirs was bad; of a mixture also "part" (N,) int64. Without images, it unpacks into the
    source's first field and the labels.
    """

    __slots__ = ("_fields", "dropped", "epoch", "position", "rows")

    def __init__(self, fields: dict[str, Array], native: _native.Batch) -> None:
        self._fields = fields
        #: Rows in this batch.
        self.rows = native.rows
        #: Epoch it belongs to.
        self.epoch = native.epoch
        #: Where its global batch begins in the epoch.
        self.position = native.position
        #: Rows left out because of bad records (`on_error="drop"`).
        self.dropped = native.dropped

    def __iter__(self) -> Iterator[Array]:
        first = next(iter(self._fields))
        return iter((self._fields[first], self._fields["label"]))

    def __getitem__(self, name: str) -> Array:
        try:
            return self._fields[name]
        except KeyError:
            known = ", ".join(self._fields)
            raise KeyError(f"a batch has no field {name!r}; it has {known}") from None

    def __len__(self) -> int:
        return 2

    def keys(self) -> list[str]:
        """Names of all fields."""
        return list(self._fields)

    def __repr__(self) -> str:
        return f"Batch(epoch={self.epoch}, position={self.position}, rows={self.rows}, fields={self.keys()})"


class BaseLoader(ABC, Generic[Array]):
    """Iterates over batches that a daemon prepares. Use `fuelrail.torch.Loader` or `fuelrail.numpy.Loader`."""

    def __init__(
        self,
        source: Address | Source | Mix | Mapping[str, Any],
        *,
        transforms: Sequence[Transform | Mapping[str, Any]] = (),
        batch_size: int = 1,
        shuffle: bool = False,
        seed: int = 0,
        num_workers: int | None = None,
        drop_last: bool = False,
        dtype: str | None = None,
        layout: str = "nchw",
        prefetch_factor: int = 2,
        rank: int = 0,
        world_size: int = 1,
        timeout: float | None = 300.0,
        on_error: str = "substitute",
        error_budget: float | None = None,
        quarantine: str | os.PathLike[str] | None = None,
        image: str | Sequence[str] | None = None,
        label: str | None = None,
        fields: Sequence[str] | None = None,
        tokens: Mapping[str, Any] | None = None,
        classes: Sequence[str] | None = None,
        split: str | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        cache_limit: int | str | None = None,
        source_options: Mapping[str, Any] | None = None,
        sampling: str | Mapping[str, float] | None = None,
        weights: Any = None,
        samples_per_epoch: int | None = None,
        read_backend: str = "auto",
        read_ahead_bytes: int | None = None,
        max_sample_bytes: int | None = None,
        truncated: str = "bad",
        pipeline: str | None = None,
        **unknown: Any,
    ) -> None:
        arguments = dict(locals())
        _refuse_unknown(unknown, type(self))
        self._timeout = None if not timeout else float(timeout)
        weights_folder = None
        for name, number in (("rank", rank), ("world_size", world_size)):
            if number < 0:
                raise ConfigError(f"{name} = {number} is negative")
        attach: dict[str, Any] = {"rank": rank, "world_size": world_size, "timeout": self._timeout}
        if isinstance(source, str) and source.startswith("unix://"):
            if pipeline is None:
                raise ConfigError("a daemon's socket needs pipeline=NAME, one of the daemon's pipelines")
            _refuse_decided(arguments)
            attach |= {"socket": source.removeprefix("unix://"), "name": pipeline}
        else:
            if pipeline is not None:
                raise ConfigError(
                    "pipeline=NAME goes with a daemon's socket (unix:///run/...), not with a source"
                )
            described = {
                "image": image,
                "label": label,
                "fields": fields,
                "tokens": tokens,
                "classes": classes,
                "split": split,
                "cache_dir": cache_dir,
                "cache_limit": cache_limit,
                **(source_options or {}),
            }
            config: dict[str, Any] = {
                "source": _source(source, described),
                "transforms": [_config(item, at) for at, item in enumerate(transforms)],
                "batch_size": batch_size,
                "drop_last": bool(drop_last),
                "shuffle": bool(shuffle),
                "seed": seed,
                "dtype": dtype,
                "layout": layout,
                "num_workers": num_workers or 0,
                "prefetch_factor": prefetch_factor,
                "read": {"backend": read_backend},
                "on_error": on_error,
                "truncated": truncated,
            }
            optional = {
                "error_budget": error_budget,
                "read_ahead_bytes": read_ahead_bytes,
                "max_sample_bytes": max_sample_bytes,
                "quarantine": None if quarantine is None else str(Path(quarantine).absolute()),
            }
            config |= {key: value for key, value in optional.items() if value is not None}
            sampled, weights_folder = _sampling(sampling, weights, samples_per_epoch)
            if sampled is not None:
                config["sampling"] = sampled
            attach |= {"binary": str(binary()), "pipeline": json.dumps(config)}
        opening = Opening()
        try:
            self._feed = _native.Feed(**attach, progress=opening, log=opening.log)
        finally:
            opening.close()
            # The daemon has read it, or never will.
            if weights_folder is not None:
                weights_folder.cleanup()
        self._attached: dict[str, Any] = json.loads(self._feed.attached())
        fields_: list[dict[str, Any]] = self._attached["fields"]
        # The records' own fields (the image first, if there is one) are views, the others copies.
        self._own, self._small = fields_[: self._attached["payload"]], fields_[self._attached["payload"] :]
        # Where the next iter() begins, and where the caller stands (what a token says).
        self._start = (0, 0)
        self._cursor = (0, 0)
        self._iterator: weakref.ref[_Iterator[Array]] | None = None
        self._closed = False
        self._log()

    # What a framework adds --------------------------------------------------------------------------------

    @abstractmethod
    def _convert(self, batch: _native.Batch) -> dict[str, Array]:
        """The fields of a native batch as the framework's arrays."""

    # Iteration --------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        """Batches per epoch, on each rank. A stream has no length: TypeError."""
        self._indexed("length")
        return self._batches_from(0)

    def __iter__(self) -> Iterator[Batch[Array]]:
        self._usable()
        # A stream without an end has one epoch: iterating again goes on where the last iteration was left.
        epoch, position = self._cursor if self.endless else self._start
        self._feed.seek(epoch, position)
        self._cursor = (epoch, position)
        self._start = (epoch + 1, 0)
        iterator = _Iterator(self, epoch)
        self._iterator = weakref.ref(iterator)
        return iterator

    @property
    def epoch(self) -> int:
        """The epoch under way, or the next one when none is."""
        return self._cursor[0]

    def set_epoch(self, epoch: int) -> None:
        """Make the next `iter()` begin at `epoch`; a loaded position within that epoch is kept."""
        if epoch < 0:
            raise ConfigError(f"set_epoch({epoch}): epochs count from 0")
        if self.endless and epoch > 0:
            raise ConfigError(f"set_epoch({epoch}): a stream without an end has one epoch, 0")
        if epoch == self._start[0]:
            return
        if self._start[1] != 0:
            logger.info(
                "set_epoch(%d): the loaded position %d of epoch %d is left; epoch %d begins at 0",
                epoch,
                self._start[1],
                self._start[0],
                epoch,
            )
        self._invalidate()
        self._start = self._cursor = (int(epoch), 0)

    def _next(self, epoch: int) -> Batch[Array] | None:
        try:
            native = self._feed.next(self._timeout)
        finally:
            self._log()
        if native is None:
            self._cursor = (epoch + 1, 0)
            return None
        batch = Batch(self._convert(native), native)
        self._cursor = self._feed.cursor()
        return batch

    def _invalidate(self) -> None:
        self._iterator = None

    # State ------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Where this run stands, as plain JSON data: save it with the model after the step on the batch in
        hand.

        It is global (the same on every rank), smaller than 1 KiB (of a stream: about 50 bytes a partition), and
        does not depend on batch size, world size or threads: loading it with others of these continues
        exactly.
        """
        return dict(json.loads(self._feed.token(*self._cursor)))

    def load_state_dict(self, state: Mapping[str, Any], *, allow: Sequence[str] = ()) -> None:
        """Go on from a saved state: the next `iter()` delivers exactly the samples that were left.

        Refused with `TokenError` when it was changed or belongs to another run. `allow=["pixels"]` permits
        other transforms or another dtype. An iterator that is under way ends with an error.
        """
        self._usable()
        # The daemon begins at once, not at the next iter().
        self._start = self._cursor = self._feed.load(_token_text(state), list(allow))
        self._invalidate()

    def checkpoint_saved(self, state: Mapping[str, Any]) -> None:
        """Tell the daemon that the checkpoint with this state is safely stored.

        Of a Kafka stream, what lies before it is then committed for the consumer group, which lag monitors
        read; nothing is ever read back from there. For other sources it does nothing.
        """
        self._usable()
        self._feed.saved(_token_text(state))

    # What there is to know --------------------------------------------------------------------------------

    @property
    def num_samples(self) -> int:
        """Samples in an epoch, over all ranks. A stream has no such number: TypeError."""
        self._indexed("number of samples")
        return int(self._attached["batching"]["len"])

    @property
    def endless(self) -> bool:
        """Whether epochs never end: a stream without an end. It has one epoch, 0."""
        stream = self._attached.get("stream")
        return stream is not None and not stream["bounded"]

    @property
    def batch_size(self) -> int:
        """Rows of a full batch on this rank."""
        return int(self._attached["batching"]["batch_size"])

    @property
    def classes(self) -> list[str]:
        """Class names; label i is `classes[i]`."""
        return list(self._attached["classes"])

    @property
    def class_to_idx(self) -> dict[str, int]:
        """Label of each class name."""
        return {name: index for index, name in enumerate(self._attached["classes"])}

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one image: (C, H, W)."""
        return self.shapes.get("image", ())

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of one row of each of the records' own fields."""
        return {field["name"]: tuple(field["shape"]) for field in self._own}

    @property
    def daemon_pid(self) -> int:
        """Process id of the daemon."""
        return self._feed.daemon_pid

    def keys(self, batch: Batch[Array]) -> list[str]:
        """Keys (paths) of the records in a batch, in row order."""
        self._usable()
        indices: Any = batch["index"]
        return self._feed.keys([int(index) for index in indices.tolist()], self._timeout)

    def stats(self) -> dict[str, Any]:
        """Counters of daemon and client, the memory budget, and the verdict: which stage was the limit.

        The daemon's counters ("substituted", "dropped", "read") include what it has prefetched.
        """
        self._usable()
        stats: dict[str, Any] = json.loads(self._feed.stats(self._timeout))
        counters = self._feed.counters()
        budget = self._attached["budget"]
        self._log()
        return {
            **counters,
            "data_wait_share": counters["data_wait_s"] / counters["iteration_s"]
            if counters["iteration_s"]
            else 0.0,
            "verdict": {"stage": stats["limit"], "text": stats["verdict"]},
            "budget": budget,
            "ring_bytes": budget["ring"],
            "peak_rss_bytes": stats["peak_rss_bytes"],
            "daemon_cpu_s": stats["cpu_ns"] / 1e9,
            "threads": stats["threads"],
            "substituted": stats["substituted"],
            "dropped": stats["dropped"],
            "read": {
                "backend": stats["backend"],
                "reads": stats["reads"],
                "submissions": stats["submissions"],
                "bytes": stats["read_bytes"],
            },
            **({"stream": stats["stream"]} if "stream" in stats else {}),
            "daemon": stats,
        }

    # Its end ----------------------------------------------------------------------------------------------

    def close(self) -> None:
        """End the feed, and the private daemon with its last one. Batches in hand stay readable."""
        if not self._closed:
            self._closed = True
            self._invalidate()
            self._log()
            self._feed.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _usable(self) -> None:
        if self._closed:
            raise FuelrailError("this Loader is closed; make a new one")

    def _indexed(self, what: str) -> None:
        if "stream" in self._attached:
            raise TypeError(f"a stream has no {what}; count steps instead")

    def _batches_from(self, position: int) -> int:
        batching = self._attached["batching"]
        rest = max(0, batching["len"] - position)
        size = batching["batch_size"] * batching["world_size"]
        return int(rest // size if batching["drop_last"] else -(-rest // size))

    def _log(self) -> None:
        for level, text in self._feed.take_logs():
            log(level, text)


class _Iterator(Iterator[Batch[Array]]):
    """One epoch. A later `iter()`, `load_state_dict` or `set_epoch` ends it with an error."""

    def __init__(self, loader: BaseLoader[Array], epoch: int) -> None:
        self._loader = loader
        self._epoch = epoch
        self._ended = False

    def __iter__(self) -> _Iterator[Array]:
        return self

    def __next__(self) -> Batch[Array]:
        if self._ended:
            raise StopIteration
        self._loader._usable()
        current = self._loader._iterator
        if current is None or current() is not self:
            raise FuelrailError(
                "this iterator was ended by a later iter(), set_epoch() or load_state_dict() on its Loader; "
                "iterate over the Loader again"
            )
        batch = self._loader._next(self._epoch)
        if batch is None:
            self._ended = True
            raise StopIteration
        return batch

    def __length_hint__(self) -> int:
        left = 0 if self._ended else self._loader._feed.batches_left()
        return NotImplemented if left is None else left


def _token_text(state: Mapping[str, Any]) -> str:
    try:
        return json.dumps(state)
    except (TypeError, ValueError, RecursionError) as error:
        raise TokenError(
            f"this is not a fuelrail loader state: {error}. Pass what `loader.state_dict()` returned, unchanged"
        ) from None


def binary() -> Path:
    """The daemon's binary: `FUELRAIL_BINARY`, or the one that came with the package."""
    override = os.environ.get("FUELRAIL_BINARY")
    path = Path(override) if override else Path(__file__).parent / "_bin" / "fuelrail"
    if not os.access(path, os.X_OK):
        hint = (
            "FUELRAIL_BINARY names it" if override else "install the wheel, or run `make setup` in a checkout"
        )
        raise EnvironmentFailure(f"the daemon's binary {path} is missing or not executable ({hint})")
    return path


def _refuse_unknown(unknown: Mapping[str, Any], loader: type) -> None:
    import inspect

    for name in unknown:
        if name in _ELSEWHERE:
            raise TypeError(f"Loader() has no {name}=: {_ELSEWHERE[name]}")
        known = {
            parameter.name
            for base in loader.__mro__
            if "__init__" in vars(base) and base is not object
            for parameter in inspect.signature(vars(base)["__init__"]).parameters.values()
            if parameter.kind is parameter.KEYWORD_ONLY
        }
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]}=?" if near else "it takes " + ", ".join(sorted(known))
        raise TypeError(f"Loader() got an unknown argument {name}=; {hint}")


def _refuse_decided(arguments: Mapping[str, Any]) -> None:
    """Refuses what the daemon's pipeline decides: ignored, it would train on something else than it says."""
    import inspect

    ours = ("self", "source", "rank", "world_size", "timeout", "pipeline", "unknown")
    for name, parameter in inspect.signature(BaseLoader.__init__).parameters.items():
        value = arguments[name]
        # Where the default is None anything else was given, arrays included, which do not compare to a bool.
        default = parameter.default
        given = value is not None if default is None else value != default
        if name not in ours and given and not (name == "transforms" and not value):
            raise ConfigError(
                f"{name}= is decided by the daemon's pipeline {arguments['pipeline']!r}: change it in the daemon's "
                "configuration and leave it out here"
            )


def _config(item: Transform | Mapping[str, Any], at: int) -> dict[str, Any]:
    if isinstance(item, Transform):
        return item.config()
    if isinstance(item, Mapping):
        return dict(item)
    raise ConfigError(
        f"transforms[{at}] is {type(item).__module__}.{type(item).__qualname__}, not one of "
        "fuelrail.transforms; they have torchvision's names and arguments and run in the daemon"
    )


def _source(source: Address | Source | Mix | Mapping[str, Any], described: dict[str, Any]) -> dict[str, Any]:
    if isinstance(source, str | os.PathLike) or (
        isinstance(source, Sequence) and not isinstance(source, Mapping)
    ):
        return Source(source, **described).config()
    for name, value in described.items():
        if value is not None:
            raise ConfigError(
                f"{name}= is decided where the source is described: give it to Source(...) instead"
            )
    if isinstance(source, Mapping):
        return dict(source)
    if isinstance(source, Source | Mix):
        return source.config()
    raise ConfigError(
        f"a source is a path, a URL, a list of them, fuelrail.Source or fuelrail.Mix, not {type(source).__qualname__}"
    )


def _sampling(
    sampling: str | Mapping[str, float] | None, weights: Any, samples_per_epoch: int | None
) -> tuple[dict[str, Any] | None, tempfile.TemporaryDirectory[str] | None]:
    """The configuration, and the folder of a file in it that the daemon reads while it attaches."""
    config: dict[str, Any]
    folder = None
    if weights is not None:
        if sampling is not None:
            raise ConfigError("sampling= and weights= exclude each other: draws by class, or by record")
        if isinstance(weights, str | os.PathLike):
            path = str(Path(weights).absolute())
        else:
            try:
                numbers = array("d", (float(weight) for weight in weights))
            except (TypeError, ValueError) as error:
                raise ConfigError(
                    f"weights= takes one number a record, or the path of an .npy file: {error}"
                ) from None
            folder = tempfile.TemporaryDirectory(prefix="fuelrail-")
            file = Path(folder.name, "weights.npy")
            file.write_bytes(_npy(numbers))
            path = str(file)
        config = {"type": "weights", "file": path}
    elif isinstance(sampling, Mapping):
        config = {
            "type": "class_shares",
            "shares": {str(name): finite(f"sampling[{name!r}]", share) for name, share in sampling.items()},
        }
    elif sampling == "class_balanced":
        config = {"type": "class_balanced"}
    elif sampling is None:
        if samples_per_epoch is not None:
            raise ConfigError("samples_per_epoch= goes with sampling= or weights=")
        return None, None
    else:
        raise ConfigError(
            f'sampling={sampling!r} is not understood: use "class_balanced" or a share for each class, like '
            '{"cat": 2, "dog": 1}; weights= takes one number a record'
        )
    if samples_per_epoch is not None:
        config["samples_per_epoch"] = samples_per_epoch
    return config, folder


def _npy(numbers: array[float]) -> bytes:
    """A .npy file (version 1.0) of float64, as numpy.save writes it."""
    if sys.byteorder == "big":
        numbers.byteswap()
    header = f"{{'descr': '<f8', 'fortran_order': False, 'shape': ({len(numbers)},), }}"
    header = header.ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + numbers.tobytes()
