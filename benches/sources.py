"""The same photographs as folder, tar, Parquet, HDF5, npy, and behind a network: `make bench-sources DATA=folder`.

Warm: each source is measured by `fuelrail bench` (daemon, ring, client; task A), source by source and again and
again, so that a machine that slows down slows all of them. Figures are medians over the rounds, with the spread
of the CPU seconds. Behind S3 (moto) and http are the same shards, which a first epoch has brought into the cache
folder.

Cold (`--cold`): raw images of 224 x 224 in tar and in Parquet, at least 1.5 GB, cropped to a corner, so that
reading is the limit. Before each measurement the page cache is dropped; beside each, in the same round, the same
files are read from one end to the other with O_DIRECT. What is compared is bytes of files per second.

Writes build/bench-sources/{warm,cold}.{md,json,png}.
"""

from __future__ import annotations

import argparse
import io
import json
import mmap
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from fuelrail.loader import binary
from photos import write_photos
from PIL import Image

HERE = Path(__file__).parent
SIDE = 224
#: Bytes of images in a row group: what docs/tables.md advises.
GROUP = 16 << 20
#: The cheapest look at a raw image: nothing is resized.
CORNER = [{"type": "CenterCrop", "size": [16, 16]}]


def main() -> int:
    """Measures; returns 0."""
    parser = argparse.ArgumentParser(description="fuelrail's sources beside each other")
    parser.add_argument("--data", type=Path, help="folder of class folders (default: generated photographs)")
    parser.add_argument("--cold", action="store_true", help="measure cold reading instead")
    parser.add_argument(
        "--sources", help=f"comma-separated, of {', '.join(WARM)} or, cold, {', '.join(COLD)}"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each warm measurement")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--gb", type=float, default=1.5, help="size of the cold data, in 10^9 bytes")
    parser.add_argument("--out", type=Path, default=Path("build/bench-sources"))
    arguments = parser.parse_args()
    known = COLD if arguments.cold else WARM
    names = arguments.sources.split(",") if arguments.sources else list(known)
    for name in names:
        if name not in known:
            parser.error(f"unknown source {name!r}: there are {', '.join(known)}")
    arguments.out = arguments.out.resolve()
    arguments.out.mkdir(parents=True, exist_ok=True)
    os.environ["XDG_CACHE_HOME"] = str(arguments.out / "cache")
    photos = (arguments.data or arguments.out / "photos").resolve()
    if arguments.data is None:
        print("writing photographs …", flush=True)
        write_photos(photos)
    measure = cold if arguments.cold else warm
    text, results = measure(photos, names, arguments)
    kind = "cold" if arguments.cold else "warm"
    (arguments.out / f"{kind}.md").write_text(text + "\n")
    (arguments.out / f"{kind}.json").write_text(json.dumps(results, indent=1))
    print(f"\n{text}\n\ntable: {arguments.out / f'{kind}.md'}")
    try:
        draw(results, names, arguments.cold, arguments.out / f"{kind}.png")
        print(f"plot: {arguments.out / f'{kind}.png'}")
    except ImportError:
        print("plot: not drawn, matplotlib is not installed")
    return 0


# The sources ----------------------------------------------------------------------------------------------


def records(photos: Path) -> Iterator[tuple[int, bytes]]:
    """(label, bytes) in fuelrail's order."""
    for label, name in enumerate(sorted(path.name for path in photos.iterdir() if path.is_dir())):
        for path in sorted(path for path in (photos / name).rglob("*") if path.is_file()):
            yield label, path.read_bytes()


def folder(photos: Path, into: Path) -> list[str]:
    """As they are."""
    return [str(photos)]


def tar(photos: Path, into: Path) -> list[str]:
    """By `fuelrail pack`."""
    subprocess.run(
        [str(binary()), "pack", str(photos), str(into)],
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    return [f"{into}/*.tar"]


def parquet(photos: Path, into: Path, compression: str = "snappy") -> list[str]:
    """By pyarrow, in Hugging Face's layout, row groups of about 16 MiB."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    struct = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    schema = pa.schema([("image", struct), ("label", pa.int64())])
    with pq.ParquetWriter(into / "train.parquet", schema, compression=compression) as writer:
        group: list[tuple[int, bytes]] = []

        def flush() -> None:
            if group:
                images = pa.array([{"bytes": data, "path": None} for _, data in group], struct)
                labels = pa.array([label for label, _ in group], pa.int64())
                writer.write_table(pa.table([images, labels], schema), row_group_size=len(group))
                group.clear()

        for record in records(photos):
            group.append(record)
            if sum(len(data) for _, data in group) > GROUP:
                flush()
        flush()
    return [str(into / "train.parquet")]


def raw_parquet(photos: Path, into: Path) -> list[str]:
    """Not compressed, as JPEG bytes cannot be: what counts is bytes of files."""
    return parquet(photos, into, "none")


def hdf5(photos: Path, into: Path) -> list[str]:
    """By h5py: bytes of any length, 64 to a chunk."""
    import h5py

    found = list(records(photos))
    with h5py.File(into / "train.h5", "w") as file:
        images = file.create_dataset("images", (len(found),), h5py.vlen_dtype(np.uint8), chunks=(64,))
        for at, (_, data) in enumerate(found):
            images[at] = np.frombuffer(data, np.uint8)
        file.create_dataset("labels", data=np.array([label for label, _ in found]))
    return [str(into / "train.h5")]


def npy(photos: Path, into: Path) -> list[str]:
    """By numpy: pixels, 256 x 256, nothing left to decode."""
    found = list(records(photos))
    pixels = np.empty((len(found), 256, 256, 3), np.uint8)
    for at, (_, data) in enumerate(found):
        pixels[at] = np.asarray(Image.open(io.BytesIO(data)).convert("RGB").resize((256, 256)))
    np.save(into / "images.npy", pixels)
    np.save(into / "labels.npy", np.array([label for label, _ in found]))
    return [str(into / "images.npy")]


#: name: (how it is made, or whose files it is; what it is called in the table)
WARM: dict[str, tuple[Callable[[Path, Path], list[str]], str]] = {
    "folder": (folder, "folder of files"),
    "tar": (tar, "tar shards (`fuelrail pack`)"),
    "parquet": (parquet, "Parquet, row groups of 16 MiB"),
    "hdf5": (hdf5, "HDF5, JPEG bytes"),
    "s3": (tar, "tar shards on S3, in the cache"),
    "http": (tar, "tar shards on http, in the cache"),
    "npy": (npy, "npy, raw pixels 256 x 256 *"),
}
COLD: dict[str, tuple[Callable[[Path, Path], list[str]], str]] = {
    "tar": (tar, "tar shards (`fuelrail pack`)"),
    "parquet": (raw_parquet, "Parquet, row groups of 16 MiB"),
}


def made(name: str, make: Callable[[Path, Path], list[str]], photos: Path, root: Path) -> list[str]:
    """The addresses of a source; what is there already is taken as it is."""
    into, unfinished = root / name, root / f"{name}.part"
    if make is folder or into.exists():
        return [address.replace(str(unfinished), str(into)) for address in addresses(make, photos, into)]
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    print(f"writing {name} …", flush=True)
    found = make(photos, unfinished)
    unfinished.rename(into)
    return [address.replace(str(unfinished), str(into)) for address in found]


def addresses(make: Callable[[Path, Path], list[str]], photos: Path, into: Path) -> list[str]:
    """Where a source lies that was made in an earlier run."""
    endings = {
        tar: "*.tar",
        parquet: "train.parquet",
        raw_parquet: "train.parquet",
        hdf5: "train.h5",
        npy: "images.npy",
    }
    return [str(photos)] if make is folder else [f"{into}/{endings[make]}"]


@contextmanager
def served(name: str, shards: Path) -> Iterator[str]:
    """The shards behind a server of this machine."""
    sys.path.insert(0, str(HERE.parent / "tests"))
    import stores

    files = sorted(shards.glob("*.tar"))
    names = "{" + ",".join(file.name for file in files) + "}" if len(files) > 1 else files[0].name
    if name == "http":
        web = stores.Web(shards)
        yield f"{web.address}{names}"
        web.stop()
        return
    log = shards.parent / "server"
    shutil.rmtree(log, ignore_errors=True)
    with stores.running("s3", log) as store:
        for file in files:
            store.put(f"shards/{file.name}", file.read_bytes())
        os.environ.update(store.environment)
        yield f"{store.address}shards/{names}"


# Warm -----------------------------------------------------------------------------------------------------


def warm(photos: Path, names: list[str], arguments: argparse.Namespace) -> tuple[str, list[dict[str, Any]]]:
    """The table of warm figures, and each measurement."""
    root = arguments.out / "data"
    with ExitStack() as stack:
        places = {}
        for name in names:
            local = made("tar" if name in ("s3", "http") else name, WARM[name][0], photos, root)
            if name in ("s3", "http"):
                places[name] = stack.enter_context(served(name, root / "tar"))
            else:
                places[name] = local[0]
        # Indices, the cache folder and the page cache are filled before anything is measured.
        for name in names:
            bench(places[name], "--epochs", "1", "--num-workers", str(arguments.workers))
        results = []
        for number in range(arguments.rounds):
            for name in names:
                options = ["--seconds", str(arguments.seconds), "--num-workers", str(arguments.workers)]
                found = bench(places[name], *options)
                results.append({"source": name, "round": number, **found})
                print(
                    f"{number + 1}/{arguments.rounds} {WARM[name][1]:34} {found['images_per_s']:7.0f} images/s"
                    f"  {found['cpu_s_per_1000']:.3f} CPU s/1,000",
                    flush=True,
                )
    count = sum(1 for _ in records(photos))
    size = sum(len(data) for _, data in records(photos))
    header = (
        f"{count} photographs, mean {size / count / 1000:.0f} KB, page cache warm; task A, batch 64, "
        f"{arguments.workers} workers; {arguments.rounds} rounds of {arguments.seconds:g} s, interleaved; {machine()}."
    )
    lines = ["| source | images/s | to the folder | CPU s/1,000 | to the folder | first batch s | spread |"]
    lines.append("|---|--:|--:|--:|--:|--:|--:|")
    base = summary(results, "folder") if "folder" in names else None
    for name in names:
        found = summary(results, name)
        rates = ["", ""]
        if base:
            rates = [f"{ratio(results, name, key):.2f}" for key in ("images_per_s", "cpu_s_per_1000")]
        spread = f"{100 * found['spread']:.0f} %"
        lines.append(
            f"| {WARM[name][1]} | {found['images_per_s']:,.0f} | {rates[0]} | {found['cpu_s_per_1000']:.3f} "
            f"| {rates[1]} | {found['first_batch_s']:.2f} | {spread} |"
        )
    lines += [
        "",
        "Ratios are medians over the rounds of what each round gave. \\* Another workload: nothing is decoded.",
    ]
    return f"{header}\n\n" + "\n".join(lines), results


def bench(address: str, *options: str) -> dict[str, Any]:
    """One run of `fuelrail bench`."""
    command = [str(binary()), "bench", address, "--json", *options]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command)} failed: {done.stderr}")
    return json.loads(done.stdout)


def summary(results: list[dict[str, Any]], name: str) -> dict[str, float]:
    """Medians of one source; `spread` is that of the CPU seconds."""
    rows = [row for row in results if row["source"] == name]
    found = {
        key: statistics.median(row[key] for row in rows)
        for key in ("images_per_s", "cpu_s_per_1000", "first_batch_s")
    }
    cpu = [row["cpu_s_per_1000"] for row in rows]
    return {**found, "spread": (max(cpu) - min(cpu)) / found["cpu_s_per_1000"]}


def ratio(results: list[dict[str, Any]], name: str, key: str) -> float:
    """To the folder of the same round, for machines drift over a run; the median of the rounds."""
    folders = {row["round"]: row[key] for row in results if row["source"] == "folder"}
    return statistics.median(row[key] / folders[row["round"]] for row in results if row["source"] == name)


# Cold -----------------------------------------------------------------------------------------------------


def cold(photos: Path, names: list[str], arguments: argparse.Namespace) -> tuple[str, list[dict[str, Any]]]:
    """The table of cold figures, and each measurement."""
    root = arguments.out / "cold"
    raw = root / "raw"
    need = int(arguments.gb * 1e9 / (3 * SIDE * SIDE))
    missing = [name for name in names if not (root / name).exists()]
    if missing:
        print(f"writing {need} raw images …", flush=True)
        write_raw(photos, raw, need)
    places = {name: made(name, COLD[name][0], raw, root)[0] for name in names}
    shutil.rmtree(raw, ignore_errors=True)
    for name in names:
        bench(places[name], "--epochs", "1", "--transforms", json.dumps(CORNER))
    results, how = [], ""
    for number in range(arguments.rounds):
        for name in names:
            files = sorted(path for path in (root / name).iterdir() if path.suffix in (".tar", ".parquet"))
            size = sum(file.stat().st_size for file in files)
            how = drop(files)
            seconds = direct(files)
            drop(files)
            options = ["--epochs", "1", "--transforms", json.dumps(CORNER)]
            found = bench(places[name], *options, "--num-workers", str(arguments.workers))
            # The first batch is outside `wall_s`: its share of the bytes is, too.
            rows = found["stats"]["rows"]
            ours = size * found["images"] / rows / found["wall_s"]
            row = {
                "source": name,
                "round": number,
                "direct_mb_s": size / seconds / 1e6,
                "mb_s": ours / 1e6,
                **found,
            }
            results.append(row)
            print(
                f"{number + 1}/{arguments.rounds} {COLD[name][1]:34} {row['mb_s']:6.0f} MB/s, O_DIRECT"
                f" {row['direct_mb_s']:6.0f} MB/s: {row['mb_s'] / row['direct_mb_s']:.0%}",
                flush=True,
            )
    header = (
        f"{need} raw images of {SIDE} x {SIDE}, {need * 3 * SIDE * SIDE / 1e9:.1f} GB, {how}; shuffled, one epoch, "
        f"{arguments.workers} workers; {arguments.rounds} rounds, each beside an O_DIRECT read of the same files in "
        f"pieces of 8 MiB; {machine()}."
    )
    lines = [
        "| source | MB/s | O_DIRECT MB/s | share | of each round | CPU s/1,000 |",
        "|---|--:|--:|--:|---|--:|",
    ]
    for name in names:
        rows = [row for row in results if row["source"] == name]
        shares = [row["mb_s"] / row["direct_mb_s"] for row in rows]
        ours, theirs, cpu = (
            statistics.median(row[key] for row in rows) for key in ("mb_s", "direct_mb_s", "cpu_s_per_1000")
        )
        lines.append(
            f"| {COLD[name][1]} | {ours:,.0f} | {theirs:,.0f} | {100 * statistics.median(shares):.0f} % "
            f"| {', '.join(f'{100 * share:.0f}' for share in shares)} | {cpu:.3f} |"
        )
    return f"{header}\n\n" + "\n".join(lines), results


def write_raw(photos: Path, raw: Path, need: int) -> None:
    """`need` PPM files; no two alike, in case a disk notices."""
    pictures = []
    for _, data in records(photos):
        pictures.append(np.asarray(Image.open(io.BytesIO(data)).convert("RGB").resize((SIDE, SIDE))))
        if len(pictures) == 500:
            break
    header = f"P6 {SIDE} {SIDE} 255\n".encode()
    for number in range(need):
        place = raw / f"class-{number % 10}"
        place.mkdir(parents=True, exist_ok=True)
        picture = pictures[number % len(pictures)] ^ np.uint8(number // len(pictures) % 256)
        (place / f"{number:06}.ppm").write_bytes(header + picture.tobytes())


def drop(files: list[Path]) -> str:
    """Empties the page cache, or at least these files' part of it; says which."""
    os.sync()
    try:
        Path("/proc/sys/vm/drop_caches").write_text("3")
        return "page cache dropped"
    except OSError:
        for file in files:
            descriptor = os.open(file, os.O_RDONLY)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)
        return "files dropped from the page cache by posix_fadvise (no right to drop all of it)"


def direct(files: list[Path]) -> float:
    """Seconds to read files one after the other past the page cache."""
    with mmap.mmap(-1, 8 << 20) as memory:
        began = time.monotonic()
        for file in files:
            descriptor = os.open(file, os.O_RDONLY | os.O_DIRECT)
            while os.readv(descriptor, [memory]) == len(memory):
                pass
            os.close(descriptor)
        return time.monotonic() - began


# Both -----------------------------------------------------------------------------------------------------


def machine() -> str:
    """What was measured on, and how busy it was besides."""
    load = os.getloadavg()[0]
    return f"{os.cpu_count()} cores ({platform.machine()}), load {load:.1f} at the end; {time.strftime('%Y-%m-%d')}"


def draw(results: list[dict[str, Any]], names: list[str], is_cold: bool, target: Path) -> None:
    """Bars with each round as a dot."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    titles = {name: COLD[name][1] if is_cold else WARM[name][1] for name in names}
    titles = {name: title.replace("`", "") for name, title in titles.items()}
    panels: list[tuple[str, str, str]]
    if is_cold:
        panels = [("mb_s", "MB/s, page cache dropped (line: O_DIRECT, sequential)", "%.0f")]
    else:
        panels = [
            ("images_per_s", "images per second (more is better)", "%.0f"),
            ("cpu_s_per_1000", "CPU seconds per 1,000 images (less is better)", "%.2f"),
        ]
    figure, axes = pyplot.subplots(
        1,
        len(panels),
        figsize=(5 * len(panels) + 1, 0.9 + 0.45 * len(names)),
        layout="constrained",
        sharey=True,
    )
    for axis, (key, title, figures) in zip(np.atleast_1d(axes), panels, strict=True):
        medians = [statistics.median(row[key] for row in results if row["source"] == name) for name in names]
        colours = ["#b8bec9" if name == "folder" else "#c2571a" for name in names]
        bars = axis.barh(range(len(names)), medians, 0.75, color=colours)
        for label, name in zip(
            axis.bar_label(bars, fmt=figures, fontsize=9, label_type="center"), names, strict=True
        ):
            label.set_color("#1c1e21" if name == "folder" else "#ffffff")
        for place, name in enumerate(names):
            rounds = [row[key] for row in results if row["source"] == name]
            axis.plot(rounds, [place + 0.28] * len(rounds), ".", color="#1c1e21", markersize=4)
            if is_cold:
                bound = statistics.median(row["direct_mb_s"] for row in results if row["source"] == name)
                axis.plot([bound, bound], [place - 0.4, place + 0.4], color="#1c1e21")
        axis.set_title(title, fontsize=10)
        axis.set_yticks(range(len(names)), [titles[name] for name in names])
        axis.set_ylim(len(names) - 0.45, -0.55)
        axis.set_xlim(left=0)
        for side in ("top", "right"):
            axis.spines[side].set_visible(False)
    figure.savefig(target, dpi=130)


if __name__ == "__main__":
    raise SystemExit(main())
