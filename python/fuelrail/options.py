"""The options of a Loader: each with its type, default, accepted values, effect, and name in the daemon.

`LoaderOptions` is the only list. The daemon's configuration, the translation of the daemon's errors into the caller's
argument names, and the "Args" of `fuelrail.Source` and of both Loaders are made from it. Only their signatures repeat
the names, for editors and type checkers; `tests/test_options.py` checks that they agree.
"""

from __future__ import annotations

import difflib
import enum
import functools
import linecache
import os
import re
import textwrap
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from dataclasses import fields as fields_of
from typing import Annotated, Any, Final, Literal, TypeVar, get_type_hints

from fuelrail import checks
from fuelrail.checks import Check
from fuelrail.fields import Field, named

Documented = TypeVar("Documented", bound=type)


class Auto(enum.Enum):
    """The default of an argument where None has its own meaning."""

    AUTO = "auto"

    def __repr__(self) -> str:
        return "AUTO"


#: `label=AUTO`, the default: labels are found by name and type. `label=None`: no labels.
AUTO: Final = Auto.AUTO

#: What an option sets: a key of the daemon's pipeline or of its source; "made": keys derived from it by its own code;
#: "client": only the client.
Whose = Literal["pipeline", "source", "made", "client"]

#: The meaning of None: the default; a meaning of its own; or none, and the check refuses it.
WhenNone = Literal["default", "meant", "refused"]


@dataclass(frozen=True)
class Option:
    """Properties of an option besides its type, default and text."""

    whose: Whose
    takes: Check
    #: Its place in the daemon's configuration, if it has a different name there.
    key: str = ""
    none: WhenNone = "default"


#: Memory formats by torch's names.
_LAYOUTS = {
    "torch.channels_last": "nhwc",
    "channels_last": "nhwc",
    "torch.contiguous_format": "nchw",
    "channels_first": "nchw",
}

_ONE_BY_ONE = "samples without a batch are not made; batch_size=1 makes batches of one"


def _fields(value: Any) -> Any:
    """A list of names, or fields by name."""
    if isinstance(value, Mapping):
        return named(value)
    return checks.names('a list of names, or a mapping like {"caption": fields.Text("txt", max_bytes=512)}')(
        value
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class LoaderOptions:
    """The options of a Loader, validated, as plain data; an invalid value is refused with the option's name.

    A field's text is the option's entry in the docstrings of the Loaders (and of `fuelrail.Source`, if it has the
    option).

    Args:
        ...: the fields, below.
    """

    batch_size: Annotated[
        int, Option("pipeline", checks.whole(1, 1 << 20, none=_ONE_BY_ONE), none="refused")
    ] = 1
    """rows per batch and rank."""
    shuffle: Annotated[bool, Option("pipeline", checks.flag)] = False
    """a new order in every epoch; a pure function of (seed, epoch, position)."""
    seed: Annotated[int, Option("pipeline", checks.whole(0, (1 << 64) - 1))] = 0
    """seed of the order and the augmentation. The default is a constant."""
    num_workers: Annotated[
        int | None, Option("pipeline", checks.whole(0, 1024, zero="; 0 and None mean one per core"))
    ] = None
    """threads of the daemon for this loader; 0 or None: one per core."""
    drop_last: Annotated[bool, Option("pipeline", checks.flag)] = False
    """drop the last batch if it is not full."""
    device: Annotated[Any, Option("client", checks.anything)] = None
    """where batches go; None leaves them on the CPU. "cuda" copies ahead, from page-locked memory, during the training
    step; the copies use their own CUDA stream, which the current stream waits for."""
    pin: Annotated[str, Option("client", checks.choice("auto", "require", "off"))] = "auto"
    """whether copies to a GPU start from page-locked memory: "auto" where possible, "require" or "off"."""
    pin_memory: Annotated[bool, Option("client", checks.flag)] = False
    """as torch's: batches are copies in page-locked memory, for your own copies to a GPU. With device="cuda" it has no
    effect, as batches are already on the GPU."""
    device_buffers: Annotated[int | None, Option("client", checks.whole(2, 64))] = None
    """None: each batch on the GPU is a new tensor, which you can keep as long as you like. N: batches use N buffers in
    turn, at fixed addresses, as CUDA graphs need; a buffer is overwritten after N more batches."""
    dtype: Annotated[Any, Option("pipeline", checks.dtype)] = None
    """uint8, float32, float16 or bfloat16, as torch's or numpy's dtypes or as text. Default: float32 with a Normalize
    or a torchvision ToTensor, else uint8. float32 without Normalize is scaled so that white is 1."""
    layout: Annotated[Any, Option("pipeline", checks.choice("nchw", "nhwc", also=_LAYOUTS))] = "nchw"
    """memory order: "nchw" (contiguous, torch.contiguous_format) or "nhwc" (torch.channels_last; the same shape)."""
    prefetch_factor: Annotated[int, Option("pipeline", checks.whole(1, 64))] = 2
    """finished batches kept ahead."""
    rank: Annotated[
        int | Literal["auto"], Option("client", checks.auto_or(checks.whole(0, (1 << 32) - 1)))
    ] = "auto"
    """this process's rank: row j of a global batch belongs to rank j mod world_size. "auto": from torch.distributed if
    it is initialised, else from the environment variables of torchrun, Open MPI, PMI or Slurm, else 0."""
    world_size: Annotated[
        int | Literal["auto"], Option("client", checks.auto_or(checks.whole(1, (1 << 32) - 1)))
    ] = "auto"
    """processes that share the batches; "auto" as for rank, else 1."""
    mesh: Annotated[Any, Option("client", checks.anything)] = None
    """a torch DeviceMesh, instead of rank and world_size: processes that differ only in dimensions which do not split
    the data get the same rows."""
    data_dims: Annotated[
        Sequence[str] | None, Option("client", checks.names("a list of names of the mesh's dimensions"))
    ] = None
    """the names of the mesh's dimensions that split the data, like ["dp"]; not needed if the mesh has only one."""
    replication: Annotated[int, Option("client", checks.whole(1, (1 << 32) - 1))] = 1
    """the number of consecutive ranks that form one replica of the model (tensor, pipeline or context parallel) and get
    the same rows."""
    share: Annotated[str | Mapping[str, Any] | None, Option("pipeline", checks.share)] = None
    """the name of a feed shared by several processes: every process gets every batch, and each batch is decoded once.
    Or a mapping: "name", "clients" (the number of clients the first batch waits for), "laggards" ("wait" for a slow
    client, or "detach" it) and "patience_s"."""
    bagging: Annotated[bool | int, Option("client", checks.bagging)] = False
    """adds a field "weight": how often each row occurs in this model's bootstrap sample, Poisson(1), a function of
    seed, model, epoch and position. Give the model's number, or True for this client's number in the shared feed."""
    timeout: Annotated[float | None, Option("client", checks.seconds, none="meant")] = 300.0
    """seconds (or a timedelta) to wait for a batch, or for progress while the source is opened, before raising an
    error; 0 or None waits for ever."""
    on_error: Annotated[str, Option("pipeline", checks.choice("substitute", "drop", "fail"))] = "substitute"
    """what to do with a bad record: "substitute" another record, "drop" its row, or "fail"."""
    error_budget: Annotated[float | str | None, Option("pipeline", checks.budget)] = None
    """bad records tolerated: a share of the source (default 0.01, or "1%"; at least 16 records), or a whole number of
    records. 1 is one record, "100%" all records; 1.0 is refused as ambiguous."""
    quarantine: Annotated[str | os.PathLike[str] | None, Option("pipeline", checks.path)] = None
    """file to append bad records to, one JSON line each."""
    image: Annotated[
        str | Sequence[str] | None, Option("source", checks.names("a name, or a list of names", one=True))
    ] = None
    """the column, array, dataset or tar extensions that hold images. Default: found by name and type."""
    label: Annotated[
        str | Auto | None,
        Option("source", checks.text("the name of a column, array, dataset or member"), none="meant"),
    ] = AUTO
    """the column, array, dataset or tar member that holds labels: whole numbers or class names. Default
    (`fuelrail.AUTO`): found by name and type. None: no labels."""
    fields: Annotated[Sequence[str] | Mapping[str, Field] | None, Option("source", _fields)] = None
    """a list of names: numeric fields of fixed shape to deliver with the image. Or a mapping from names to
    `fuelrail.fields`, which then define the whole batch: images, masks, views, text, JSON, numbers (for a Loader; not
    for a Source)."""
    tokens: Annotated[
        Mapping[str, Any] | None,
        Option("source", checks.mapping('a mapping like {"column": "input_ids", "length": 1024}')),
    ] = None
    """a column or array of token ids, padded or packed into rows: `{"column": "input_ids", "length": 1024, "mode":
    "pack"}`."""
    classes: Annotated[
        Sequence[str] | None,
        Option("source", checks.names("a list of class names, in the order of their numbers")),
    ] = None
    """fixes the mapping from class names to labels (pass the training loader's to the validation loader)."""
    split: Annotated[
        str | None,
        Option(
            "source",
            checks.text(
                'text: "train[:90%]" for one part, "train[90%:]" for the other, "fold 2/5" and "not fold 2/5"'
            ),
        ),
    ] = None
    """a part of the source, "train[:90%]", or the held-out rest, "train[90%:]", by a hash of each key. For
    cross-validation, "fold 2/5" is the held-out fifth of the second round and "not fold 2/5" its training part. For a
    folder with subfolders for splits ("train", "val"), the name of one of them."""
    where: Annotated[
        str | None, Option("source", checks.text("a condition, as text: \"score > 0.3 and lang == 'en'\""))
    ] = None
    """only the records that fulfil a condition on columns of a table, or on JSON in tar shards: "score > 0.3 and lang
    in ['en', 'de']". Tested when the source is opened. A comparison with a null is false."""
    cache_dir: Annotated[str | os.PathLike[str] | None, Option("source", checks.path, key="cache.dir")] = None
    """where copies of remote and unpacked files are kept. Default: ~/.cache/fuelrail."""
    cache_limit: Annotated[
        int | str | None, Option("source", checks.bytes_or_text, key="cache.limit_bytes")
    ] = None
    """maximum size of that cache: bytes, or text like "100gb" (the default)."""
    source_options: Annotated[
        Mapping[str, Any] | None,
        Option("made", checks.mapping("a mapping of further keys of this kind of source")),
    ] = None
    """further options for this kind of source, like `{"root": "images/"}` for a manifest. They can also be given as
    arguments, `Loader("list.csv", root="images/")`, except a source's own `layout`."""
    sampling: Annotated[
        str | Mapping[str, float] | None, Option("made", checks.anything, key="sampling.shares")
    ] = None
    """how classes are drawn: "class_balanced" draws each class equally often, {"cat": 2, "dog": 1} in these
    proportions. Within a class, no record is repeated before all others were drawn. The order is random."""
    weights: Annotated[Any, Option("made", checks.anything, key="sampling.file")] = None
    """one number per record (or a .npy file of them): how often the record is drawn, relative to the others."""
    order: Annotated[Any, Option("made", checks.anything, key="sampling.indices")] = None
    """the records of an epoch, by number, in this order: a list, an array, a tensor or a .npy file, of shape (n,) for
    every epoch or (epochs, n). Numbers count the records of the source (of a part of it, with split or where) and can
    be repeated; each is a sample with its own augmentation. len() follows from it."""
    repeats: Annotated[int | None, Option("made", checks.whole(1, 1 << 16), key="sampling.repeats")] = None
    """repeated augmentation: each record at this many neighbouring positions, which the ranks share, each with its own
    augmentation. An epoch is that many times as long; samples_per_epoch shortens it."""
    per_class: Annotated[int | None, Option("made", checks.whole(1, 1 << 20), key="sampling.per_class")] = (
        None
    )
    """for metric learning: every batch has batch_size / per_class different classes with this many records of each, on
    every rank. The order is random. Batches that are not full are dropped."""
    samples_per_epoch: Annotated[
        int | None, Option("made", checks.whole(1, (1 << 63) - 1), key="sampling.samples_per_epoch")
    ] = None
    """draws per epoch, with sampling, weights, repeats or per_class. Default: the number of records (with repeats, that
    many times as many)."""
    read_backend: Annotated[
        str, Option("pipeline", checks.choice("auto", "io_uring", "threads"), key="read.backend")
    ] = "auto"
    """how files are read: "auto", "io_uring" or "threads"."""
    read_ahead_bytes: Annotated[int | None, Option("pipeline", checks.whole(1, (1 << 63) - 1))] = None
    """encoded bytes in flight (default 64 MiB)."""
    max_sample_bytes: Annotated[int | None, Option("pipeline", checks.whole(1, (1 << 63) - 1))] = None
    """maximum decoded size of a sample in bytes; larger ones are bad records (default 256 MiB)."""
    truncated: Annotated[str, Option("pipeline", checks.choice("bad", "fill"))] = "bad"
    """what to do with an image whose data end before the picture is complete: "bad" makes it a bad record, "fill"
    delivers the decoded part (JPEG, PNG and GIF), as Pillow's LOAD_TRUNCATED_IMAGES does."""
    pipeline: Annotated[str | None, Option("client", checks.text("the name of a pipeline of the daemon"))] = (
        None
    )
    """name of a pipeline of the daemon at `source`."""

    def __post_init__(self) -> None:
        for name, option in OPTIONS.items():
            value, default = getattr(self, name), DEFAULTS[name]
            if value is None and option.none == "default":
                value = default
            if value is not default and (value is not None or option.none == "refused"):
                value = checks.accept(name, value, option.takes)
            object.__setattr__(self, name, value)


#: Each option by its name.
OPTIONS: dict[str, Option] = {
    name: hint.__metadata__[0] for name, hint in get_type_hints(LoaderOptions, include_extras=True).items()
}

#: Each option's default.
DEFAULTS: dict[str, Any] = {each.name: each.default for each in fields_of(LoaderOptions)}

#: Each option's check.
CHECKS: dict[str, Check] = {name: option.takes for name, option in OPTIONS.items()}

#: Options that apply to every kind of source; also arguments of `fuelrail.Source`.
DESCRIBING = tuple(name for name, option in OPTIONS.items() if option.whose == "source")

#: Options for batches on a CUDA device.
OF_CUDA = ("pin", "pin_memory", "device_buffers")

#: Options for batches that leave the CPU; numpy's never do.
OF_DEVICES = ("device", *OF_CUDA)

#: Options with a different name in the configuration that a Loader makes for the daemon. It is made from this table,
#: and the daemon's errors are translated back with it.
CONFIGURED: dict[str, tuple[str, ...]] = {
    name: tuple(option.key.split(".")) for name, option in OPTIONS.items() if option.key
}


@functools.cache
def _texts() -> dict[str, str]:
    """The text under each field of `LoaderOptions`; empty if the package was installed without its source."""
    # Not by ast, which takes 10 ms of the import.
    source = "".join(linecache.getlines(__file__, globals()))
    fields = re.findall(r'^    (\w+): Annotated\[.*?^    """(.*?)"""$', source, re.DOTALL | re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in fields}


def documented(*names: str) -> Callable[[Documented], Documented]:
    """Replaces the entry `...` in a class's docstring with the texts of the options `names`."""
    texts = _texts()

    def entry(name: str) -> str:
        return textwrap.fill(
            f"{name}: {texts[name]}", 120, initial_indent=" " * 8, subsequent_indent=" " * 12
        )

    def complete(kind: Documented) -> Documented:
        # Under python -OO there is no docstring.
        if kind.__doc__ is not None and texts:
            entries = "\n".join(map(entry, names))
            kind.__doc__ = re.sub(r"^ +\.\.\.: .*$", lambda _: entries, kind.__doc__, flags=re.MULTILINE)
        return kind

    return complete


documented(*OPTIONS)(LoaderOptions)


def configure(config: dict[str, Any], name: str, value: Any) -> None:
    """Puts an argument where the daemon expects it."""
    *above, last = CONFIGURED.get(name, (name,))
    for key in above:
        config = config.setdefault(key, {})
    config[last] = value


def in_arguments(
    said: str, given: Collection[str], parts: Sequence[str] = (), raw: Iterable[str] = ()
) -> str:
    """The daemon's message about a configuration, with the names of the arguments that it was made from.

    Args:
        said: the daemon's message.
        given: the arguments that were given.
        parts: the names of a mixture's parts.
        raw: keys that were given under their names in the configuration, and keep them.
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
    """Replaces a configuration key with the argument's name."""
    key = re.escape(key)
    # Weights given as a list are in a temporary file, which the user does not know; a share belongs to a class.
    if name in ("weights", "order"):
        said = re.sub(rf"{key}:? \S*/fuelrail-\w+/\S+: ", f"{name}= ", said)
    if name == "sampling":
        said = re.sub(rf"{key}\.(.+?)(?= is |: )", lambda found: f"sampling[{found[1]!r}]", said)
    # Not inside a path or a longer name.
    said = re.sub(rf"(?<![\w./-]){key}(?![\w/-]|\.\w)", f"{name}=", said)
    return said.replace(f"{name}=: it takes ", f"{name}= takes ")


def _spelt_out(said: str, table: str, given: Collection[str]) -> str:
    """A table that several arguments fill: replaced by the given arguments in "unknown key", by all of them in a
    list."""
    names = [name for name, path in CONFIGURED.items() if path[0] == table]
    wrote = " and ".join(f"{name}=" for name in names if name in given)
    if wrote:
        said = said.replace(f'unknown key "{table}"', f"unknown argument {wrote}")
    return re.sub(rf"( take (?:\w+, )*){table}\b", lambda found: found[1] + ", ".join(names), said)


def _called(said: str, place: str, part: str) -> str:
    """Replaces the number of a mixture's part with its name."""
    numbers = {"weight": "weights", "repeat": "repeat"}
    said = re.sub(rf"\b{place}\.(weight|repeat)\b", lambda found: f"{numbers[found[1]]}[{part!r}]", said)
    said = re.sub(rf"\b{place}(?:\.source)?\.", lambda _: f"part {part!r}: ", said)
    return re.sub(rf"\b{place}", lambda _: f"part {part!r}", said)


# Arguments of torch.utils.data.DataLoader that are done differently here, and their values that have no effect.
_ELSEWHERE: dict[str, tuple[str, tuple[Any, ...]]] = {
    "sampler": (
        "shuffle= is a RandomSampler, weights= a WeightedRandomSampler, per_class= an MPerClassSampler, repeats= timm's "
        "RepeatAugSampler, and order= takes the records of an epoch by number",
        (None,),
    ),
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
    "pin_memory_device": ("pass device= to get batches on a device; leave it out", (None, "")),
}


def refuse_unknown(
    unknown: Mapping[str, Any], known: Iterable[str], source_keys: Sequence[str]
) -> dict[str, Any]:
    """The source keys among further keywords; any other keyword is refused with a suggestion."""
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
