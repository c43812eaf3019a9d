"""What an index of millions of records costs: start, memory, and each batch. `.venv/bin/python benches/many.py`.

For each kind, two data sets are written, one of them a thousandth, and read with the cheapest transform. Given are
the time until the first batch, the processor time until then, what the source itself says that its index holds, the
daemon's peak memory, and its processor time for a record, which must not depend on how many there are.

A tar file spends 2 KiB on each of these records, so there is a tenth of them in it: 2 GB. CPU time is what counts on a
machine that is busy with other things.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

TINY = {"transforms": [{"type": "Resize", "size": [8, 8]}]}


def main() -> int:
    """Measures; returns 0."""
    parser = argparse.ArgumentParser(description="indices of millions of records")
    parser.add_argument("--records", type=int, default=10_000_000)
    parser.add_argument("--kinds", default=",".join(KINDS), help="comma-separated")
    parser.add_argument("--rows", type=int, default=100_000, help="read after the start")
    parser.add_argument("--out", type=Path, default=Path("build/bench-many"))
    arguments = parser.parse_args()
    out = arguments.out.resolve()
    os.environ["XDG_CACHE_HOME"] = str(out / "cache")
    lines = [
        "| source | records | first start s | later start s | its CPU s | index B/record | peak MiB | CPU us/record |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for name in arguments.kinds.split(","):
        write, title, options = KINDS[name]
        found: list[dict[str, Any]] = []
        records = arguments.records // (10 if name == "tar" else 1)
        for count in (max(1000, records // 1000), records):
            place = out / f"{name}-{count}"
            if not place.exists():
                unfinished = out / f"{name}-{count}.part"
                shutil.rmtree(unfinished, ignore_errors=True)
                unfinished.mkdir(parents=True)
                print(f"writing {count:,} records as {name} …", flush=True)
                write(unfinished, count)
                unfinished.rename(place)
            # Tar has an index to build at the first start, which later ones find.
            first = run(place / FILES[name], options, 0) if name == "tar" else None
            later = run(place / FILES[name], options, arguments.rows)
            found.append({"first": first or later, "later": later, "count": count})
        large = found[1]
        index = large["later"]["index_bytes"] / large["count"]
        costs = [each["later"]["cpu_us"] for each in found]
        later = large["later"]
        peaks = [each["later"]["peak_bytes"] / 2**20 for each in found]
        lines.append(
            f"| {title} | {large['count']:,} | {large['first']['first_batch_s']:.2f} | {later['first_batch_s']:.2f} "
            f"| {later['start_cpu_s']:.1f} | {index:.1f} | {peaks[1]:,.0f} ({peaks[0]:,.0f}) "
            f"| {costs[1]:.1f} ({costs[0]:.1f}) |"
        )
        print(lines[-1], flush=True)
    lines += ["", "In parentheses: a thousandth of the records."]
    text = "\n".join(lines)
    (out / "table.md").write_text(text + "\n")
    print(f"\n{text}\n\ntable: {out / 'table.md'}")
    return 0


#: A process of its own each time: with a daemon of its own, whose peak is that of this source.
READ = """
import json, sys, time
from fuelrail.numpy import Loader
options, rows = json.loads(sys.argv[1]), int(sys.argv[2])
began = time.monotonic()
with Loader(options.pop("source"), batch_size=1000, shuffle=True, prefetch_factor=1, **options) as loader:
    batches = iter(loader)
    next(batches)
    found = {"first_batch_s": time.monotonic() - began, "index_bytes": loader.stats()["budget"]["index"]}
    before = loader.stats()["daemon"]
    found["start_cpu_s"] = before["cpu_ns"] / 1e9
    for _ in range(rows // 1000):
        if next(batches, None) is None:
            batches = iter(loader)
    after = loader.stats()["daemon"]
    found["cpu_us"] = (after["cpu_ns"] - before["cpu_ns"]) / 1e3 / max(1, after["rows"] - before["rows"])
    found["peak_bytes"] = after["peak_rss_bytes"]
print(json.dumps(found))
"""


def run(source: Path, options: dict[str, Any], rows: int) -> dict[str, Any]:
    """Opens a source and reads so many rows of it."""
    arguments = json.dumps({"source": str(source), **options})
    done = subprocess.run([sys.executable, "-c", READ, arguments, str(rows)], capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"{source} cannot be read: {done.stderr}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def image() -> bytes:
    """A tiny PNG."""
    file = io.BytesIO()
    Image.fromarray(np.arange(192, dtype=np.uint8).reshape(8, 8, 3)).save(file, "png")
    return file.getvalue()


def manifest(into: Path, count: int, line: Callable[[int], str], head: str, name: str) -> None:
    """A list of names, a thousand of which are one image each; a list may name a file again."""
    (into / "images").mkdir()
    for number in range(1000):
        (into / "images" / f"{number:08}.png").write_bytes(image())
    with (into / name).open("w") as file:
        file.write(head)
        for begin in range(0, count, 100_000):
            file.writelines(line(number) for number in range(begin, min(count, begin + 100_000)))


def csv(into: Path, count: int) -> None:
    """path,label"""
    manifest(into, count, lambda n: f"images/{n % 1000:08}.png,{n % 1000}\n", "path,label\n", "list.csv")


def jsonl(into: Path, count: int) -> None:
    """{"path": …, "label": …}"""
    manifest(
        into,
        count,
        lambda n: f'{{"path": "images/{n % 1000:08}.png", "label": {n % 1000}}}\n',
        "",
        "list.jsonl",
    )


def tar(into: Path, count: int) -> None:
    """Shards of a hundred thousand samples: an image and its class."""
    data = image()
    blocks = -(-len(data) // 512) * 512
    for shard, begin in enumerate(range(0, count, 100_000)):
        with (into / f"train-{shard:04}.tar").open("wb", buffering=1 << 20) as file:
            for number in range(begin, min(count, begin + 100_000)):
                label = str(number % 1000).encode()
                for ending, content, size in (("png", data, blocks), ("cls", label, 512)):
                    info = tarfile.TarInfo(f"{number:08}.{ending}")
                    info.size = len(content)
                    file.write(info.tobuf(tarfile.USTAR_FORMAT))
                    file.write(content.ljust(size, b"\0"))
            file.write(bytes(1024))


def parquet(into: Path, count: int) -> None:
    """Four floats and a label a row, in files of a million rows."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    draw = np.random.default_rng(1)
    for part, begin in enumerate(range(0, count, 1_000_000)):
        rows = min(1_000_000, count - begin)
        values = pa.FixedSizeListArray.from_arrays(draw.random(4 * rows, np.float32), 4)
        labels = pa.array(np.arange(begin, begin + rows) % 1000)
        pq.write_table(
            pa.table({"x": values, "label": labels}), into / f"part-{part:03}.parquet", row_group_size=100_000
        )


FILES = {"csv": "list.csv", "jsonl": "list.jsonl", "tar": "*.tar", "parquet": "*.parquet"}
#: How each is written, what it is called, and the loader's options.
KINDS: dict[str, tuple[Callable[[Path, int], None], str, dict[str, Any]]] = {
    "csv": (csv, "CSV manifest", TINY),
    "jsonl": (jsonl, "JSONL manifest", TINY),
    "tar": (tar, "tar, 8 x 8 PNG and .cls", TINY),
    "parquet": (parquet, "Parquet, 4 floats and a label", {"image": "", "fields": ["x"]}),
}

if __name__ == "__main__":
    raise SystemExit(main())
