"""What a Loader takes: each argument in the forms that people have it in, and a refusal that names it for all others."""

from __future__ import annotations

import copy
import datetime
import itertools
import json
import math
import os
import pickle
import re
from fractions import Fraction
from pathlib import Path
from typing import Any

import fuelrail
import numpy as np
import photographs
import pytest
from fuelrail import ConfigError, FuelrailError, options
from fuelrail import transforms as T
from fuelrail.numpy import Loader
from fuelrail.sources import KEYS
from support import TINY, Script
from support import fuelrail as run

torch = pytest.importorskip("torch")

FEW = "synthetic://?count=12&width=16&height=16"

# Values of any kind that no argument takes in silence.
ODD = [
    object(),
    datetime.datetime(2026, 1, 1),
    b"8",
    2 + 3j,
    {1},
    len,
    int,
    Exception("x"),
    float("nan"),
    ...,
]

#: Words that name the machinery, not the matter.
MACHINERY = (
    r"(?i)serde|pyo3|JSON serializable|expected u\d|invalid type|unknown variant|unknown field|NoneType"
)


def make(**arguments: Any) -> Loader:
    return Loader(FEW, **({"transforms": TINY} | arguments))


@pytest.mark.parametrize("name", sorted(set(options.CHECKS) - {"batch_size"}))
def test_none_stands_for_the_default(name: str) -> None:
    with make(**{name: None}) as loader:
        assert loader.num_samples == 12


@pytest.mark.parametrize("name", sorted(options.CHECKS))
def test_a_value_that_an_argument_does_not_take_is_refused_by_its_name(name: str) -> None:
    for value in ODD:
        with pytest.raises((ConfigError, FuelrailError)) as error:
            make(**{name: value}).close()
        text = str(error.value)
        assert name in text and "\n" not in text and len(text) < 600, text
        assert not re.search(MACHINERY, text), text


@pytest.mark.parametrize(
    ("name", "value", "same"),
    [
        ("batch_size", np.int64(3), 3),
        ("batch_size", np.array(3), 3),
        ("batch_size", np.uint8(3), 3),
        ("batch_size", torch.tensor(3), 3),
        ("seed", np.uint64(2**64 - 1), 2**64 - 1),
        ("seed", torch.tensor(7), 7),
        ("num_workers", 0, None),
        ("shuffle", np.True_, True),
        ("shuffle", torch.tensor(True), True),
        ("shuffle", 1, True),
        ("drop_last", np.bool_(False), False),
        ("dtype", np.float32, "f32"),
        ("dtype", np.dtype("<f4"), "f32"),
        ("dtype", "<f4", "f32"),
        ("dtype", torch.float32, "f32"),
        ("dtype", "torch.float32", "f32"),
        ("dtype", torch.half, "f16"),
        ("layout", torch.channels_last, "nhwc"),
        ("layout", torch.contiguous_format, "nchw"),
        ("layout", "NHWC", "nhwc"),
        ("layout", "channels_last", "nhwc"),
        ("timeout", datetime.timedelta(minutes=5), 300),
        ("timeout", np.float32(30), 30.0),
        ("timeout", 0, None),
        ("timeout", math.inf, None),
        ("error_budget", np.float64(0.5), 0.5),
        ("error_budget", np.int32(4), 4),
        ("error_budget", 20.0, 20),
        ("error_budget", 1, "100%"),
        ("error_budget", "1 %", 0.01),
        ("error_budget", Fraction(1, 4), 0.25),
        ("on_error", "Drop", "drop"),
        ("device", "cpu", None),
        ("prefetch_factor", np.int16(2), 2),
        ("samples_per_epoch", None, None),
    ],
)
def test_a_value_is_taken_in_the_forms_that_people_have_it_in(name: str, value: Any, same: Any) -> None:
    with make(**{name: value}) as loader, make(**({} if same is None else {name: same})) as other:
        first, second = next(iter(loader)), next(iter(other))
        assert first["index"].tolist() == second["index"].tolist()
        assert first["image"].dtype == second["image"].dtype and (first["image"] == second["image"]).all()
        assert first["image"].strides == second["image"].strides


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("batch_size", None, r"None was given.*batch_size=1"),
        ("batch_size", True, r"whole number from 1 to 1,048,576; True"),
        ("batch_size", 64.0, r"64\.0.*write 64"),
        ("batch_size", 2.5, r"whole number"),
        ("batch_size", "8", r"int\(\)"),
        pytest.param("batch_size", 10**10000, r"digits", id="a huge batch_size"),
        ("batch_size", torch.tensor([1, 2]), r"whole number.*tensor"),
        ("seed", -1, r"0 to 2\*\*64 - 1; -1"),
        ("seed", 2**64, r"0 to 2\*\*64 - 1"),
        ("rank", "0", r"rank=.*'0'.*int\(\)"),
        ("world_size", 0, r"from 1"),
        ("shuffle", "false", r"True or False; 'false'"),
        ("shuffle", 2, r"True or False"),
        ("timeout", -1, r"seconds; None or 0 waits for ever; -1"),
        ("timeout", math.nan, r"nan"),
        ("timeout", 1e300, r"seconds"),
        ("error_budget", 1.0, r"write 1 for one"),
        ("error_budget", 2.5, r"whole number of records"),
        ("error_budget", True, r"share"),
        ("error_budget", "101%", r"share"),
        ("error_budget", "one", r"share"),
        ("layout", torch.preserve_format, r"'nchw', 'nhwc'"),
        ("layout", "chw", r"did you mean 'nchw'"),
        ("on_error", "substitude", r"did you mean 'substitute'"),
        ("read_backend", "aio", r"'io_uring'"),
        ("dtype", torch.int64, r"uint8, float32, float16 or bfloat16.*torch\.int64"),
        ("dtype", float, r"dtype="),
        ("dtype", "bfloat16", r"numpy has no bfloat16"),
        ("fields", "box", r"\['box'\]"),
        ("classes", {"a": 0}, r"list of class names"),
        ("tokens", [1], r"mapping"),
        ("split", 0.9, r"train\[:90%\]"),
        ("quarantine", 3, r"path"),
        ("device", "cuda", r"numpy"),
        ("sampling", "balanced", r"class_balanced"),
        ("weights", "no.npy", r"no\.npy"),
        ("weights", [1, 2], r"weights= has shape \[2\]; one number for each of 12"),
        ("weights", 5, r"one number per record.*5 was given"),
        ("transforms", lambda image: image, r"transforms is a Python function.*batch"),
        ("transforms", "Resize", r"text.*Resize\(\.\.\.\)"),
        ("transforms", [T.Resize], r"transforms\[0\] is the class Resize.*Resize\(\.\.\.\)"),
        ("transforms", [torch.nn.Identity()], r"torch module"),
        ("transforms", [3], r"transforms\[0\] is 3"),
    ],
)
def test_a_refusal_says_what_the_argument_takes(name: str, value: Any, words: str) -> None:
    with pytest.raises((FuelrailError, TypeError), match=words) as error:
        make(**{name: value})
    assert name in str(error.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("collate_fn", None),
        ("sampler", None),
        ("batch_sampler", None),
        ("worker_init_fn", None),
        ("generator", None),
        ("pin_memory_device", ""),
        ("persistent_workers", False),
        ("multiprocessing_context", None),
        ("in_order", True),
        ("transform", None),
        ("target_transform", None),
    ],
)
def test_what_asks_for_nothing_is_accepted_as_torchs_dataloader_has_it(name: str, value: Any) -> None:
    make(**{name: value}).close()


def test_the_arguments_are_those_that_an_editor_shows() -> None:
    import inspect

    from fuelrail.torch import Loader as TorchLoader

    for loader in (Loader, TorchLoader):
        shown = inspect.signature(loader).parameters
        assert set(options.CHECKS) <= set(shown), set(options.CHECKS) - set(shown)
        assert set(shown) - set(options.CHECKS) == {"source", "transforms", "source_keys"}
        assert shown["batch_size"].default == 1 and shown["shuffle"].default is False, "as torch's"


def test_the_keys_of_a_source_are_arguments_too(tmp_path: Path) -> None:
    photographs.folder(tmp_path / "data", 4, seed=3, most=80)
    files = sorted(
        path.relative_to(tmp_path / "data") for path in (tmp_path / "data").rglob("*.*") if path.is_file()
    )
    (tmp_path / "list.csv").write_text(
        "path,label\n" + "".join(f"{path},{at}\n" for at, path in enumerate(files))
    )
    with Loader(tmp_path / "list.csv", root=tmp_path / "data", transforms=TINY, batch_size=4) as loader:
        assert next(iter(loader))["label"].tolist() == [0, 1, 2, 3][: len(files)]
    with pytest.raises(ConfigError, match=r"root= is given twice"):
        Loader(tmp_path / "list.csv", root=tmp_path / "data", source_options={"root": "x"}, transforms=TINY)
    with pytest.raises(TypeError, match=r"rot=; did you mean root=\?"):
        Loader(tmp_path / "list.csv", rot=tmp_path / "data", transforms=TINY)
    assert not set(KEYS) & set(options.CHECKS)


def test_what_describes_a_source_is_taken_as_lists_arrays_and_paths(tmp_path: Path) -> None:
    folder = photographs.folder(tmp_path / "data", 6, seed=4, most=80)
    names = sorted(path.name for path in folder.iterdir())
    for classes in (names, tuple(names), np.array(names), dict.fromkeys(names).keys()):
        with Loader(
            folder, transforms=TINY, classes=classes, cache_limit=np.int64(1 << 30), cache_dir=tmp_path
        ) as loader:
            assert loader.classes == names


def test_a_share_and_a_count_stay_different_on_their_way_through_configurations(tmp_path: Path) -> None:
    config = tmp_path / "fuelrail.toml"

    def tells(budget: str) -> str:
        config.write_text(f'[pipelines.a]\nsource = "{FEW}"\nbatch_size = 4\nerror_budget = {budget}\n')
        done = run("serve", config, "--socket", tmp_path / "no" / "socket")
        return done.stderr

    assert "1 for one record" in tells("1.0")
    assert "share" in tells("2.5")
    for budget in ("1", "0.5", "20", "20.0", "0", '"100%"'):
        assert "error_budget" not in tells(budget)


# The loader and its batches as objects ---------------------------------------------------------------------------------


def test_a_loader_says_what_it_is_and_that_it_cannot_be_copied() -> None:
    loader = make(batch_size=5)
    text = repr(loader)
    for word in ("synthetic", "batch_size=5", "12 samples", "3 batches per epoch", "position 0 of epoch 0"):
        assert word in text, text
    iterator = iter(loader)
    batch = next(iterator)
    assert "position 5 of epoch 0" in repr(loader)
    for thing in (loader, iterator):
        for attempt in (pickle.dumps, copy.copy, copy.deepcopy):
            with pytest.raises(TypeError, match="state_dict"):
                attempt(thing)
    # A copy of a batch is a batch of its own.
    same = pickle.loads(pickle.dumps(batch))
    deep = copy.deepcopy(batch)
    image = batch["image"].copy()
    batch["image"][:] = 0
    assert (same["image"] == image).all() and (deep["image"] == image).all() and same.rows == 5
    loader.close()
    assert "closed" in repr(loader)

    class Early(Loader):
        def _place(self, device: Any) -> Any:
            assert "not open yet" in repr(self)
            return super()._place(device)

    Early(FEW, transforms=TINY).close()


def test_a_batch_is_used_by_name_and_by_place() -> None:
    with make(batch_size=4) as loader:
        batch = next(iter(loader))
        images, labels = batch
        assert batch[0] is images is batch["image"] and batch[1] is labels is batch[-1]
        assert len(batch) == 2 and next(iter(batch)) is images
        assert "image" in batch and "mask" not in batch and 0 not in batch
        assert batch.get("mask") is None and batch.get("mask", 3) == 3 and batch.get("label") is labels
        assert dict(batch).keys() == batch.as_dict().keys() == dict(batch.items()).keys() == set(batch.keys())
        assert next(iter(batch.values())) is images

        def model(*, image: Any, label: Any, **rest: Any) -> int:
            return len(image) + len(label)

        assert model(**batch) == 8
        with pytest.raises(KeyError, match=r"no field 'mask'; it has image, label"):
            batch["mask"]
        with pytest.raises(IndexError):
            batch[2]
        with pytest.raises(KeyError, match=r"items\(\)"):
            batch[images]
        assert not hasattr(batch, "to"), "arrays do not move"


def test_a_batch_of_tensors_moves_as_one() -> None:
    from fuelrail.torch import Batch
    from fuelrail.torch import Loader as TorchLoader
    from torch.utils.data._utils.pin_memory import pin_memory

    with TorchLoader(FEW, transforms=TINY, batch_size=4, device="cpu") as loader:
        batch = next(iter(loader))
        assert isinstance(batch, Batch)
        moved = batch.to("meta", non_blocking=True)
        assert isinstance(moved, Batch) and {field.device.type for field in moved.values()} == {"meta"}
        assert (moved.rows, moved.epoch, moved.position) == (batch.rows, batch.epoch, batch.position)
        assert batch["image"].device.type == "cpu"
        images, _labels = batch.to(torch.device("cpu"))
        assert images is batch["image"], "what is there already is not copied"
        if torch.cuda.is_available():
            assert pin_memory(batch)["image"].is_pinned() and batch.pin_memory()["label"].is_pinned()


def test_a_device_that_is_not_there_is_refused_at_once() -> None:
    from fuelrail.torch import Loader as TorchLoader

    for device in ("cuda:77", "cuda" if not torch.cuda.is_available() else "cuda:99", "gpu", 1.5, "xpu"):
        with pytest.raises(ConfigError, match=r"device="):
            TorchLoader(FEW, transforms=TINY, device=device)


@pytest.mark.parametrize("missing", ["torch", "numpy"])
def test_a_framework_that_is_not_installed_is_named(missing: str) -> None:
    code = f"""
        import importlib.abc
        class Block(importlib.abc.MetaPathFinder):
            def find_spec(self, name, path=None, target=None):
                if name == "{missing}":
                    raise ModuleNotFoundError("No module named '{missing}'", name="{missing}")
        sys.meta_path.insert(0, Block())
        try:
            import fuelrail.{missing}
        except ImportError as error:
            say(str(error))
    """
    with Script(code) as script:
        assert f"pip install {missing}" in script.hears()


@pytest.mark.deadline(240)
def test_the_habits_of_dataloader_users_work() -> None:
    with make(batch_size=5) as loader:
        rows = [5, 5, 2]
        assert [batch.rows for _, batch in enumerate(loader)] == rows
        assert [batch.rows for batch, _ in zip(loader, range(10), strict=False)] == rows
        assert next(iter(loader)).rows == 5 and next(iter(loader))["index"][0] == 0
        assert [batch.rows for batch in itertools.islice(loader, 2)] == [5, 5]
        assert [batch.rows for batch in itertools.chain(loader, loader)] == rows * 2
        assert len(loader) == 3 and len(list(loader)) == 3
        assert [len(images) for images, labels in loader] == rows
        for _ in loader:
            break
        assert [batch.rows for batch in loader] == rows
        generator = (batch.rows for batch in loader)
        assert sum(generator) == 12
        assert [batch.rows for batch in reversed(list(loader))] == rows[::-1]
        first, second = itertools.tee(loader)
        assert [batch.rows for batch in first] == [batch.rows for batch in second] == rows
        assert max(batch["index"].max() for batch in loader) == 11
        cycle = itertools.cycle(loader)
        assert [next(cycle).rows for _ in range(7)] == [*rows, *rows, 5]
        assert bool(loader) and loader == loader and hash(loader)
        iterator = iter(loader)
        assert iter(iterator) is iterator
        del iterator
        json.dumps(loader.state_dict())
        with pytest.raises(TypeError):
            loader[0]


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"cache_limit": "1gb"}, "unknown argument cache_limit=; it belongs to image folders, tar shards"),
    ({"cache_dir": "/tmp"}, "unknown argument cache_dir=; it belongs to"),
    ({"cache_dir": "/tmp", "cache_limit": 5}, "unknown argument cache_dir= and cache_limit=; it belongs to"),
    # As it is written in the configuration, so is it refused.
    ({"source_options": {"cache": {"dir": "/tmp"}}}, 'unknown key "cache"; it belongs to'),
    ({"sampling": {f"class-{label}": -1 for label in range(10)}}, "sampling['class-0'] is -1; a share is"),
    ({"sampling": {"0": 0.0}}, "sampling= has no share for class"),
    ({"weights": [1.0, 2.0]}, "weights= has shape [2]"),
    ({"weights": [-1.0] * 12}, "weights= weight 0 is -1"),
    (
        {"sampling": "class_balanced", "samples_per_epoch": 1 << 50},
        "samples_per_epoch= = 1125899906842624 is not",
    ),
    ({"max_sample_bytes": 1}, "the limit is 1 bytes"),
]


@pytest.mark.parametrize(("arguments", "said"), REFUSED)
def test_the_daemon_refuses_an_argument_by_the_name_that_the_caller_has_for_it(
    arguments: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        make(**arguments).close()
    text = str(refused.value)
    assert said in text, text
    if "source_options" not in arguments:
        for path in options.CONFIGURED.values():
            assert ".".join(path) not in text, text


def test_a_limit_that_is_no_size_and_a_source_with_a_cache(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text('{"path": "a.png"}\n')
    with pytest.raises(ConfigError, match="cache_limit= takes a number of bytes, or a string like"):
        Loader(tmp_path / "x.jsonl", transforms=TINY, cache_limit="much")
    # What a source takes is listed by its arguments' names.
    with pytest.raises(
        ConfigError, match=r"image folders take classes, label, split, cache_dir, cache_limit$"
    ):
        Loader(tmp_path, transforms=TINY, start="earliest")


def test_the_parts_of_a_mixture_are_called_by_their_names() -> None:
    for mixture, said in [
        (fuelrail.Mix({"a": FEW, "b": FEW}, weights={"a": 1, "b": -1}), "weights['b'] is -1"),
        (fuelrail.Mix({"a": FEW, "b": FEW}, repeat={"a": -2}), "repeat['a'] is -2"),
        (fuelrail.Mix({"a": fuelrail.Source(FEW, cache_limit=5)}), "unknown argument cache_limit="),
    ]:
        with pytest.raises(ConfigError) as refused:
            Loader(mixture, transforms=TINY)
        assert said in str(refused.value) and "parts[" not in str(refused.value), refused.value


def test_a_name_of_a_key_in_a_path_stays_what_it_is() -> None:
    text = "/data/cache.dir/x and read.backend.old: no such file; set cache.dir. Or cache.limit_bytes"
    assert options.in_arguments(text, []) == (
        "/data/cache.dir/x and read.backend.old: no such file; set cache_dir=. Or cache_limit="
    )


def test_a_loader_made_in_a_spawned_process_works() -> None:
    import multiprocessing

    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        assert pool.apply(_rows, (FEW,)) == 12
    with make() as loader, pytest.raises(TypeError, match="in a child process: there"):
        context.Process(target=print, args=(loader,)).start()


def _rows(source: str) -> int:
    with Loader(source, transforms=TINY, batch_size=5) as loader:
        return sum(batch.rows for batch in loader)


def test_what_transforms_lack_is_answered() -> None:
    for name, words in [
        ("ToTensor", "not needed"),
        ("FiveCrop", "It has .*CenterCrop"),
        ("RandomResizeCrop", "did you mean RandomResizedCrop"),
        ("Lambda", "no Python"),
    ]:
        with pytest.raises(AttributeError, match=words):
            getattr(T, name)
    assert not hasattr(T, "__path__")
    assert T.Compose([T.Resize(8)]) == [T.Resize(8)]
    assert fuelrail.transforms is T and os.fspath(Path("x")) == "x"
