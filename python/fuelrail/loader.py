"""The loader behind `fuelrail.torch.Loader` and `fuelrail.numpy.Loader`: everything but the array type."""

from __future__ import annotations

import json
import logging
import os
import tempfile
from abc import ABC, abstractmethod
from collections.abc import ItemsView, Iterator, Mapping, Sequence, ValuesView
from dataclasses import replace
from pathlib import Path
from typing import Any, Generic, Literal, NoReturn, Self, TypeVar, overload

from fuelrail import _native, arrays, checks, interop, options, ranks
from fuelrail.errors import ConfigError, EnvironmentFailure, FuelrailError, SourceError, TokenError
from fuelrail.fields import Field
from fuelrail.opening import Opening
from fuelrail.options import AUTO, Auto, LoaderOptions
from fuelrail.sources import KEYS, Address, Mix, Source, finite
from fuelrail.uploads import Uploads, finished
from fuelrail.values import Held, Ragged, Rows

logger = logging.getLogger("fuelrail")

Array = TypeVar("Array")
Default = TypeVar("Default")


class Batch(Generic[Array]):
    """One batch. Unpacks into images and labels, as torchvision's datasets do; every field is available by name.

    Fields: "image" (N, C, H, W) and the source's own fields (N, ...), or those that `fields=` of the Loader lists; then
    "label" (N,) int64 if the source has labels, "index" (N,) int64 record numbers, "position" (N,) int64 positions in
    the epoch, "substituted" (N,) bool: rows that hold another record because theirs was bad; for a mixture also "part"
    (N,) int64. It unpacks into the first field and the labels.

    Text is a `list[str]`, bytes a `list[bytes]`, JSON a list of parsed values, each created on access;
    `batch.ragged(name)` has their bytes as an array. Rows of numbers of varying length are a `Ragged`.

    By name, a batch is used like a dict: `batch["image"]`, `"image" in batch`, `batch.get("mask")`, `.keys()`,
    `.values()`, `.items()`, `dict(batch)`, `model(**batch)`. Iterating gives the two arrays that it unpacks into, not
    names; `batch[0]`, `batch[1]` and `len(batch) == 2` are consistent with that, so it is not a `Mapping` for
    `isinstance`. `batch.rows` is the number of samples.
    """

    __slots__ = ("_fields", "dropped", "epoch", "position", "rows")

    def __init__(self, fields: Held[Array], native: _native.Batch) -> None:
        self._fields = fields
        #: Rows in this batch.
        self.rows = native.rows
        #: Epoch it belongs to.
        self.epoch = native.epoch
        #: Where its global batch starts in the epoch.
        self.position = native.position
        #: Rows dropped because of bad records (`on_error="drop"`).
        self.dropped = native.dropped

    def __iter__(self) -> Iterator[Array]:
        first = next(iter(self._fields))
        if "label" not in self._fields:
            raise ConfigError(
                f"this source has no labels: say where they are (label=...), or use batch[{first!r}]"
            )
        return iter((self._fields[first], self._fields["label"]))

    def __getitem__(self, name: str | int) -> Array:
        if isinstance(name, int):
            # The first field exists even without labels.
            return next(iter(self._fields.values())) if name in (0, -2) else tuple(self)[name]
        try:
            value: Array = self._fields[name]
            return value
        except (KeyError, TypeError):
            known = ", ".join(self._fields)
            given = repr(name) if isinstance(name, str) else f"{type(name).__name__} as its name"
            raise KeyError(
                f"a batch has no field {given}; it has {known}. Iterate over batch.items() for all of them"
            ) from None

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and name in self._fields

    def __len__(self) -> int:
        return 2

    def keys(self) -> list[str]:
        """Names of all fields."""
        return list(self._fields)

    def values(self) -> ValuesView[Array]:
        """All fields."""
        return self._fields.values()

    def items(self) -> ItemsView[str, Array]:
        """All fields with their names."""
        return self._fields.items()

    @overload
    def get(self, name: str) -> Array | None: ...
    @overload
    def get(self, name: str, default: Default) -> Array | Default: ...
    def get(self, name: str, default: Any = None) -> Any:
        """A field, or `default` if the batch has no field of this name."""
        return self._fields.get(name, default)

    def ragged(self, name: str) -> Ragged[Array]:
        """A field of varying length as padded rows and their lengths: numbers, or the bytes of text and JSON."""
        self[name]
        ragged = self._fields.ragged(name)
        if ragged is None:
            raise KeyError(f"{name!r} has one shape in all records; batch[{name!r}] is all of it")
        return ragged

    def as_dict(self) -> dict[str, Array]:
        """All fields as a dict."""
        return dict(self._fields)

    def replaced(self, fields: Mapping[str, Array]) -> Self:
        """The same batch with some fields replaced or added."""
        held = self._fields.mapped(lambda field: field)
        for name, value in fields.items():
            held[name] = value
        return self._with(held)

    def _with(self, fields: Held[Array]) -> Self:
        """The same rows as other arrays."""
        batch = object.__new__(type(self))
        batch._fields = fields
        batch.rows, batch.epoch, batch.position, batch.dropped = (
            self.rows,
            self.epoch,
            self.position,
            self.dropped,
        )
        return batch

    def __repr__(self) -> str:
        return f"Batch(epoch={self.epoch}, position={self.position}, rows={self.rows}, fields={self.keys()})"


class BaseLoader(ABC, Generic[Array]):
    """Iterates over batches that a daemon prepares. Use `fuelrail.torch.Loader` or `fuelrail.numpy.Loader`."""

    _feed: _native.Feed
    _attached: dict[str, Any]
    _batch: type[Batch[Array]] = Batch
    #: Whether the framework has page-locked memory to hand out.
    _pins = False
    #: Copies to the GPU, if batches go to one.
    _uploads: Uploads[Array] | None = None

    def __init__(
        self,
        source: Address | Source | Mix | Mapping[str, Any],
        *,
        transforms: Any = (),
        batch_size: int = 1,
        shuffle: bool = False,
        seed: int = 0,
        num_workers: int | None = None,
        drop_last: bool = False,
        device: Any = None,
        pin: str = "auto",
        pin_memory: bool = False,
        device_buffers: int | None = None,
        dtype: Any = None,
        layout: Any = "nchw",
        prefetch_factor: int = 2,
        rank: int | Literal["auto"] = "auto",
        world_size: int | Literal["auto"] = "auto",
        mesh: Any = None,
        data_dims: Sequence[str] | None = None,
        replication: int = 1,
        share: str | Mapping[str, Any] | None = None,
        bagging: bool | int = False,
        timeout: float | None = 300.0,
        on_error: str = "substitute",
        error_budget: float | str | None = None,
        quarantine: str | os.PathLike[str] | None = None,
        image: str | Sequence[str] | None = None,
        label: str | Auto | None = AUTO,
        fields: Sequence[str] | Mapping[str, Field] | None = None,
        tokens: Mapping[str, Any] | None = None,
        classes: Sequence[str] | None = None,
        split: str | None = None,
        where: str | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        cache_limit: int | str | None = None,
        source_options: Mapping[str, Any] | None = None,
        sampling: str | Mapping[str, float] | None = None,
        weights: Any = None,
        order: Any = None,
        repeats: int | None = None,
        per_class: int | None = None,
        samples_per_epoch: int | None = None,
        read_backend: str = "auto",
        read_ahead_bytes: int | None = None,
        max_sample_bytes: int | None = None,
        truncated: str = "bad",
        pipeline: str | None = None,
        **source_keys: Any,
    ) -> None:
        given = dict(locals())
        keys = options.refuse_unknown(source_keys, [*options.OPTIONS, "transforms"], KEYS)
        chosen = LoaderOptions(**{name: given[name] for name in options.OPTIONS})
        steps, asked = interop.chain(transforms)
        if isinstance(chosen.fields, Mapping):
            asked = asked or _dtype_asked(chosen.fields)
        chosen = replace(chosen, dtype=self._dtype(chosen.dtype or asked))
        self._device = self._place(chosen.device)
        self._chosen = chosen
        self._seat = seat = ranks.seat(
            chosen.rank, chosen.world_size, chosen.mesh, chosen.data_dims, chosen.replication
        )
        self._rank, self._timeout = seat.rank, chosen.timeout
        attach: dict[str, Any] = {
            "rank": seat.rank,
            "world_size": seat.world_size,
            "timeout": chosen.timeout,
        }
        weights_folder = None
        if isinstance(source, str) and source.startswith("unix://"):
            if pipeline is None:
                raise ConfigError("a daemon's socket needs pipeline=NAME, one of the daemon's pipelines")
            _refuse_decided(chosen, {**keys, "transforms": steps or None})
            attach |= {"socket": source.removeprefix("unix://"), "name": pipeline}
        else:
            if pipeline is not None:
                raise ConfigError(
                    "pipeline=NAME goes with a daemon's socket (unix:///run/...), not with a source"
                )
            config, weights_folder = _pipeline(source, steps, chosen, keys)
            if self._finishes():
                config["finish"] = "client"
            attach |= {"binary": str(binary()), "pipeline": json.dumps(config)}
        opening = Opening()
        try:
            with seat.member() as member:
                if "binary" in attach and isinstance(chosen.share, dict):
                    # One daemon for all processes of this user on this machine that name the feed, whatever their job.
                    attach |= {"job": f"share {chosen.share['name']}", "member": (0, 1, 1, None)}
                elif "binary" in attach and seat.job is not None:
                    attach |= {"job": seat.job, "member": member}
                self._feed = _native.Feed(
                    **attach, progress=opening if seat.is_first_here else None, log=opening.log
                )
        except (ConfigError, SourceError) as error:
            if "name" in attach:  # the pipeline was not made from these arguments
                raise
            raise type(error)(_in_arguments(str(error), source, chosen)) from None
        finally:
            opening.close()
            # The daemon has read it, or never will.
            if weights_folder is not None:
                weights_folder.cleanup()
        self._attached = json.loads(self._feed.attached())
        # The records' own fields (the image first, if there is one) are views; the daemon's columns about each row are
        # copies.
        self._own: list[dict[str, Any]] = self._attached["layout"]["fields"]
        self._columns: list[dict[str, Any]] = self._attached["layout"]["columns"]
        self._source = _shown(source)
        ranks.warn_of_empty_batches(self._attached["batching"])
        self._closed = False
        try:
            self._model = self._joined(chosen)
            self._refuse_without_gpu(chosen)
            self._opened()
        except BaseException:
            self.close()
            raise

    # What a framework adds --------------------------------------------------------------------------------

    _ragged: type[Ragged[Array]] = Ragged

    @abstractmethod
    def _tensor(self, batch: _native.Batch, at: int) -> Array:
        """Field `at` of a native batch as the framework's array, on its device."""

    @abstractmethod
    def _finish(self, at: int, array: Array, left: Mapping[str, Any], beside: Array | None) -> Array:
        """Converts field `at`, which came as bytes, to floats; `fuelrail.uploads.Place.finish` does the same on a
        GPU."""

    @abstractmethod
    def _column(self, column: bytearray, dtype: str, name: str) -> Array:
        """One number per row: a column of a batch, or one derived from it."""

    def _take(self, iteration: int) -> tuple[_native.Batch, Held[Array]] | None:
        """The next batch and its fields as the framework's arrays."""
        native = self._feed.next(iteration, self._timeout)
        if native is None:
            return None
        tensors = [self._tensor(native, at) for at in range(len(self._own))]
        finished(self._own, tensors, self._finish)
        return native, self._convert(native, tensors, {})

    def _convert(
        self, batch: _native.Batch, tensors: list[Array], columns: Mapping[int, Array]
    ) -> Held[Array]:
        """The fields of a batch by name: the records' own, and columns, some of which are already converted."""
        fields: Held[Array] = Held()
        for at, field in enumerate(self._own):
            if not _is_beside(field):
                lengths = (
                    tensors[at + 1] if at + 1 < len(tensors) and _is_lengths(self._own[at + 1]) else None
                )
                fields.put(field, tensors[at], lengths, Rows(self._ragged, batch, at))
        for at, column in enumerate(self._columns):
            name, dtype = column["name"], column["dtype"]
            fields[name] = columns[at] if at in columns else self._column(batch.column(at), dtype, name)
        if self._model is not None:
            position = next(at for at, column in enumerate(self._columns) if column["name"] == "position")
            weights = self._feed.bagging(self._model, batch.epoch, bytes(batch.column(position)))
            fields["weight"] = self._column(weights, "f32", "weight")
        return fields

    def _dtype(self, name: str | None) -> str | None:
        """The daemon's name of a pixel type, if the framework has it."""
        return name

    def _place(self, device: Any) -> Any:
        """Where batches go; refused if the framework does not support it."""
        return device

    def _joined(self, chosen: LoaderOptions) -> int | None:
        """Logs the shared feed that this client joined; returns the number of the model, for bagging."""
        joined = self._attached.get("share")
        if joined is not None:
            logger.info(
                "client %d of a shared feed, from epoch %d on", joined["member"], joined["start"]["epoch"]
            )
        if chosen.bagging is False:
            return None
        if chosen.bagging is True and joined is None:
            raise ConfigError(
                "bagging=True takes this client's number in a shared feed (share=), and this feed is not shared: give "
                "the model's number, bagging=3"
            )
        return int(joined["member"]) if chosen.bagging is True and joined is not None else int(chosen.bagging)

    def _refuse_without_gpu(self, chosen: LoaderOptions) -> None:
        if getattr(self._device, "type", None) != "cuda":
            if chosen.pin == "require":
                raise ConfigError('pin="require" needs a GPU that the loader copies to: give device="cuda"')
            if chosen.device_buffers is not None:
                raise ConfigError('device_buffers= is for a GPU: give device="cuda", or leave it out')
        if chosen.pin_memory and not self._pins:
            raise ConfigError("pin_memory=True is for torch's tensors: use fuelrail.torch, or leave it out")

    def _finishes(self) -> bool:
        """Whether the daemon sends bytes, which are converted to floats here."""
        return False

    def _opened(self) -> None:
        """Called once the daemon has described the batches."""

    # Iteration --------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        """Batches per epoch, on each rank. A stream has no length: TypeError."""
        self._indexed("length")
        return self._batches_from(0)

    def __iter__(self) -> Iterator[Batch[Array]]:
        self._usable()
        self._seat.check()
        return _Iterator(self, *self._feed.begin())

    @property
    def epoch(self) -> int:
        """The current epoch, or the next one if none has started."""
        return self._feed.stood()[0]

    def set_epoch(self, epoch: int) -> None:
        """Make the next `iter()` start at `epoch`; a loaded position within that epoch is kept."""
        epoch = checks.accept("epoch", epoch, _EPOCH)
        if self.endless and epoch > 0:
            raise ConfigError(f"set_epoch({epoch}): a stream without an end has one epoch, 0")
        was, position = self._feed.set_epoch(epoch)
        if was != epoch and position != 0:
            logger.info(
                "set_epoch(%d): the loaded position %d of epoch %d is left; epoch %d begins at 0",
                epoch,
                position,
                was,
                epoch,
            )

    def _next(self, iteration: int) -> Batch[Array] | None:
        taken = self._take(iteration)
        if taken is None:
            return None
        native, fields = taken
        batch = self._batch(fields, native)
        # The last step before the caller gets it, so that a state saved by a signal handler counts this batch, too.
        self._feed.took(native)
        return batch

    def _batches_left(self, iteration: int) -> int | None:
        left = self._feed.batches_left(iteration)
        return left if left is None or self._uploads is None else left + self._uploads.waiting(iteration)

    # State ------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """The position of this run, as plain JSON data: save it with the model after the step on the current batch.

        It is global (the same on every rank), smaller than 1 KiB (for a stream: about 50 bytes per partition), and does
        not depend on batch size, world size or threads: loading it with different ones continues exactly.
        """
        return dict(json.loads(self._feed.token()))

    def load_state_dict(self, state: Mapping[str, Any], *, allow: Sequence[str] = ()) -> None:
        """Continue from a saved state: the next `iter()` delivers exactly the remaining samples.

        Raises `TokenError` if the state was changed or belongs to another run. `allow=["pixels"]` permits different
        transforms or another dtype. An iterator in progress ends with an error.
        """
        self._usable()
        allowed = [allow] if isinstance(allow, str) else list(allow or ())
        for name in allowed:
            if name != "pixels":
                raise ConfigError(
                    f'allow={checks.shown(name)} is not known; "pixels" can be allowed to differ'
                )
        self._feed.load(_token_text(state), allowed)

    def checkpoint_saved(self, state: Mapping[str, Any]) -> None:
        """Tell the daemon that the checkpoint with this state is safely stored.

        For a Kafka stream, its offsets are then committed for the consumer group, for lag monitors; they are never read
        back. For other sources it does nothing.
        """
        self._usable()
        self._feed.saved(_token_text(state))

    # Properties and statistics --------------------------------------------------------------------------

    @property
    def num_samples(self) -> int:
        """Samples per epoch, over all ranks. A stream has no such number: TypeError."""
        self._indexed("number of samples")
        return int(self._attached["batching"]["len"])

    @property
    def endless(self) -> bool:
        """Whether this is a stream without an end. It has one epoch, 0."""
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
    def labelled(self) -> bool:
        """Whether batches have labels."""
        return any(column["name"] == "label" for column in self._columns)

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
        """Shape of one row of each of the records' own fields; if rows vary in length, of the longest."""
        return {field["name"]: tuple(field["shape"]) for field in self._own if not _is_beside(field)}

    @property
    def daemon_pid(self) -> int:
        """Process id of the daemon."""
        return self._feed.daemon_pid

    def keys(self, batch: Batch[Array]) -> list[str]:
        """Keys (paths) of the records in a batch, in row order."""
        self._usable()
        if not isinstance(batch, Batch):
            raise TypeError(f"keys() takes a batch of this Loader, not {checks.shown(batch)}")
        indices: Any = batch["index"]
        return self._feed.keys([int(index) for index in indices.tolist()], self._timeout)

    def stats(self) -> dict[str, Any]:
        """Counters of daemon and client, the memory budget, and the verdict: which stage was the bottleneck.

        The daemon's counters ("substituted", "dropped", "read") include what it has prefetched.
        """
        self._usable()
        stats: dict[str, Any] = json.loads(self._feed.stats(self._timeout))
        counters = self._feed.counters()
        budget = self._attached["budget"]
        return {
            **counters,
            "data_wait_share": counters["data_wait_s"] / counters["iteration_s"]
            if counters["iteration_s"]
            else 0.0,
            "verdict": {"stage": stats["limit"], "text": stats["verdict"]},
            "budget": budget,
            "ring_bytes": budget["ring"],
            "pinned": self._uploads is not None and self._uploads.pinned,
            "copy_wait_s": None if self._uploads is None else self._uploads.copy_wait_s,
            "uploaded_bytes": 0 if self._uploads is None else self._uploads.bytes,
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

    # Closing --------------------------------------------------------------------------------------------

    def close(self) -> None:
        """End the feed, and with its last feed the private daemon. Batches already taken stay readable."""
        if not self._closed:
            self._closed = True
            if self._uploads is not None:
                self._uploads.close()
            self._feed.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        name = f"{type(self).__module__}.{type(self).__qualname__}"
        if "_closed" not in vars(self):
            return f"<{name}, not open yet>"
        batching = self._attached["batching"]
        many = ["a stream"] if "stream" in self._attached else [f"{batching['len']:,} samples"]
        if "stream" not in self._attached:
            many.append(f"{self._batches_from(0):,} batches per epoch")
        share = [f"rank {self._rank} of {batching['world_size']}"] if batching["world_size"] > 1 else []
        try:
            epoch, position = self._feed.stood()
            stands = "closed" if self._closed else f"at position {position:,} of epoch {epoch}"
        except FuelrailError:  # in a forked child
            stands = "of another process"
        parts = [self._source, f"batch_size={batching['batch_size']}", *many, *share, stands]
        return f"<{name}: {', '.join(parts)}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError(_NO_COPY)

    def __deepcopy__(self, memo: object) -> NoReturn:
        raise TypeError(_NO_COPY)

    __copy__ = __reduce__

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


def _is_beside(field: Mapping[str, Any]) -> bool:
    """Whether it describes the field before it rather than being a field of its own."""
    return field.get("content") in ("lengths", "erased")


def _is_lengths(field: Mapping[str, Any]) -> bool:
    """Whether this holds the lengths of the rows of the field before it."""
    return field.get("content") == "lengths"


#: The error text for pickle and copy.
_NO_COPY = (
    "a Loader is a connection to a daemon and cannot be pickled or copied. Make another one with the same arguments "
    "where it is used (in a child process: there), and take the state along: state_dict() here, load_state_dict() there"
)


class _Iterator(Iterator[Batch[Array]]):
    """One epoch. A later `iter()`, `load_state_dict` or `set_epoch` ends it with an error."""

    def __init__(self, loader: BaseLoader[Array], iteration: int, epoch: int) -> None:
        self._loader = loader
        self._iteration = iteration
        self._epoch = epoch
        self._ended = False

    def __iter__(self) -> _Iterator[Array]:
        return self

    def __next__(self) -> Batch[Array]:
        if self._ended:
            raise StopIteration
        batch = self._loader._next(self._iteration)
        if batch is None:
            self._ended = True
            raise StopIteration
        return batch

    def __length_hint__(self) -> int:
        left = 0 if self._ended else self._loader._batches_left(self._iteration)
        return NotImplemented if left is None else left

    def __repr__(self) -> str:
        return f"<iterator over epoch {self._epoch} of {self._loader!r}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError(_NO_COPY)

    def __deepcopy__(self, memo: object) -> NoReturn:
        raise TypeError(_NO_COPY)


_EPOCH = checks.whole(0, (1 << 63) - 1)


def _token_text(state: Mapping[str, Any]) -> str:
    def strange(value: object) -> NoReturn:
        raise TypeError(f"it holds {checks.shown(value)}")

    try:
        return json.dumps(state if isinstance(state, Mapping) else None, default=strange)
    except (TypeError, ValueError, RecursionError) as error:
        raise TokenError(
            f"this is not a fuelrail loader state: {error}. Pass what `loader.state_dict()` returned, unchanged"
        ) from None


def binary() -> Path:
    """The daemon's binary: `FUELRAIL_BINARY`, or the one in the package."""
    override = os.environ.get("FUELRAIL_BINARY")
    path = Path(override) if override else Path(__file__).parent / "_bin" / "fuelrail"
    if not os.access(path, os.X_OK):
        hint = (
            "FUELRAIL_BINARY names it" if override else "install the wheel, or run `make setup` in a checkout"
        )
        raise EnvironmentFailure(f"the daemon's binary {path} is missing or not executable ({hint})")
    return path


def _refuse_decided(chosen: LoaderOptions, keys: Mapping[str, Any]) -> None:
    """Refuses options that the daemon's pipeline sets: if they were ignored, the script would not train on what it
    says."""
    decided = {
        name: getattr(chosen, name) for name, option in options.OPTIONS.items() if option.whose != "client"
    }
    for name, value in {**decided, **keys}.items():
        default = options.DEFAULTS.get(name)
        # If the default is None, anything else was given, including arrays, whose comparison is not a bool.
        if value is not None if default is None else value != default:
            raise ConfigError(
                f"{name}= is decided by the daemon's pipeline {chosen.pipeline!r}: change it in the daemon's "
                "configuration and leave it out here"
            )


def _pipeline(
    source: Any, steps: Sequence[Mapping[str, Any]], chosen: LoaderOptions, keys: Mapping[str, Any]
) -> tuple[dict[str, Any], tempfile.TemporaryDirectory[str] | None]:
    """The pipeline as the daemon takes it, and a folder to delete once the daemon has read it."""
    described = {name: getattr(chosen, name) for name in options.DESCRIBING}
    fields = described["fields"]
    if isinstance(fields, Mapping):
        described["fields"] = None
    further = chosen.source_options or {}
    twice = [name for name in further if keys.get(name) is not None]
    if twice:
        raise ConfigError(f"{twice[0]}= is given twice: as an argument and in source_options")
    config = {"source": _source(source, {**described, **keys, **further}), "transforms": steps}
    if isinstance(fields, Mapping):
        config["fields"] = [each.config(name) for name, each in fields.items()]
    for name, option in options.OPTIONS.items():
        if option.whose == "pipeline" and (value := getattr(chosen, name)) is not None:
            options.configure(config, name, value)
    sampled, folder = _sampling(chosen)
    if sampled is not None:
        config["sampling"] = sampled
    return config, folder


def _dtype_asked(fields: Mapping[str, Field]) -> str | None:
    """The pixel type requested by conversions in the fields' transforms."""
    asked = {each.dtype_asked for each in fields.values() if each.dtype_asked is not None}
    if len(asked) > 1:
        raise ConfigError(
            f"the transforms of fields ask for several dtypes ({', '.join(sorted(asked))}); give dtype="
        )
    return asked.pop() if asked else None


def _in_arguments(said: str, source: Any, chosen: LoaderOptions) -> str:
    """The daemon's message about the configuration, with the caller's argument names."""
    sources = source.parts.values() if isinstance(source, Mix) else [source]
    of_sources = [name for each in sources if isinstance(each, Source) for name in each.given]
    given = [name for name in options.OPTIONS if getattr(chosen, name) is not None]
    raw = [*source] if isinstance(source, Mapping) else [*(chosen.source_options or {}), *of_sources]
    parts = [*source.parts] if isinstance(source, Mix) else []
    return options.in_arguments(said, [*given, *of_sources], parts, raw)


def _shown(source: Any) -> str:
    """A source in a repr: short, and without a URL's query, which may hold a signature."""
    if isinstance(source, Source | Mix):
        return repr(source)
    if isinstance(source, Mapping):
        return f"a source of type {source.get('type')!r}"
    first, *more = [source] if isinstance(source, str | os.PathLike) else list(source)
    text = os.fspath(first)
    text = text if text.startswith("synthetic:") or "://" not in text else text.partition("?")[0]
    return repr(text) + (f" and {len(more)} more" if more else "")


def _source(source: Address | Source | Mix | Mapping[str, Any], described: dict[str, Any]) -> dict[str, Any]:
    if isinstance(source, str | os.PathLike) or (
        isinstance(source, Sequence) and not isinstance(source, Mapping)
    ):
        return Source(source, **described).config()
    for name, value in described.items():
        if value is not (AUTO if name == "label" else None):
            raise ConfigError(
                f"{name}= is decided where the source is described: give it to Source(...) instead"
            )
    if isinstance(source, Mapping):
        return dict(source)
    if isinstance(source, Source | Mix):
        return source.config()
    root = getattr(source, "root", None)
    hint = f" (its files: Loader({os.fspath(root)!r}, ...))" if isinstance(root, str | os.PathLike) else ""
    raise ConfigError(
        "a source is a path, a URL, a list of them, fuelrail.Source or fuelrail.Mix; "
        f"{checks.shown(source)} was given{hint}"
    )


def _sampling(
    chosen: LoaderOptions,
) -> tuple[dict[str, Any] | None, tempfile.TemporaryDirectory[str] | None]:
    """The configuration, and the folder of a file that the daemon reads while attaching."""
    given = [name for name in _SAMPLINGS if getattr(chosen, name) is not None]
    if len(given) > 1:
        raise ConfigError(
            f"{given[0]}= and {given[1]}= exclude each other: each says which records an epoch has"
        )
    if chosen.order is not None and chosen.shuffle:
        raise ConfigError("order= and shuffle=True exclude each other: leave out shuffle=")
    several = [name for name in _SAMPLINGS if name != "order"]
    if chosen.samples_per_epoch is not None and not set(given) & set(several):
        raise ConfigError(
            f"samples_per_epoch= goes with {'=, '.join(several[:-1])}= or {several[-1]}="
            + ("; the length of an epoch is that of order=" if given else "")
        )
    if not given:
        return None, None
    config: dict[str, Any]
    numbers: str | bytes = ""
    if chosen.weights is not None:
        config, numbers = {"type": "weights"}, arrays.weights(chosen.weights)
    elif chosen.order is not None:
        config, numbers = {"type": "order"}, arrays.order(chosen.order)
    elif chosen.repeats is not None:
        config = {"type": "repeated", "repeats": chosen.repeats}
    elif chosen.per_class is not None:
        config = {"type": "per_class", "per_class": chosen.per_class}
    elif isinstance(chosen.sampling, Mapping):
        shares = {str(name): finite(f"sampling[{name!r}]", share) for name, share in chosen.sampling.items()}
        config = {"type": "class_shares", "shares": shares}
    elif chosen.sampling == "class_balanced":
        config = {"type": "class_balanced"}
    else:
        raise ConfigError(
            'sampling= takes "class_balanced", or a share for each class, like {"cat": 2, "dog": 1}; '
            f"{checks.shown(chosen.sampling)} was given (weights= takes one number per record)"
        )
    folder = None
    if isinstance(numbers, bytes):
        folder = tempfile.TemporaryDirectory(prefix="fuelrail-")
        file = Path(folder.name, f"{given[0]}.npy")
        file.write_bytes(numbers)
        numbers = str(file)
    if numbers:
        *_, key = options.CONFIGURED[given[0]]
        config[key] = numbers
    if chosen.samples_per_epoch is not None:
        config["samples_per_epoch"] = chosen.samples_per_epoch
    return config, folder


#: Options that say which records an epoch has; at most one of them is given.
_SAMPLINGS = ("sampling", "weights", "repeats", "per_class", "order")
