"""Clients of one shared feed beside one alone: `make bench-share DATA=folder`.

Compared are CPU seconds of everything together, daemon and clients, for some epochs at 224 pixels: of one client with a
feed of its own, of four that share a feed (`share=`), and of four that have a feed each. Each measurement is a tree of
processes of its own, and they take turns. Figures are medians over the rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from photos import write_photos

WAYS = ("one alone", "shared", "each its own")


def main() -> int:
    """Runs the comparison; returns 0."""
    parser = argparse.ArgumentParser(description="several clients on one decode")
    parser.add_argument("--data", type=Path, help="folder of photographs (default: generated ones)")
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("build/bench"))
    parser.add_argument("--client", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--tree", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.client:
        return client(*arguments.client)
    if arguments.tree:
        return tree(*arguments.tree, arguments.clients, arguments.epochs)
    arguments.out.mkdir(parents=True, exist_ok=True)
    data = arguments.data or arguments.out / "photos"
    if arguments.data is None:
        print("writing photographs …", flush=True)
        write_photos(data)
    found: dict[str, list[float]] = {way: [] for way in WAYS}
    for _ in range(arguments.rounds):
        for way in WAYS:
            done = subprocess.run(
                [
                    *(sys.executable, __file__, "--tree", way, data),
                    *("--clients", str(arguments.clients), "--epochs", str(arguments.epochs)),
                ],
                check=True,
                stdout=subprocess.PIPE,
                text=True,
            )
            found[way].append(json.loads(done.stdout)["cpu_s"])
    one = statistics.median(found["one alone"])
    print(f"{arguments.clients} clients, {arguments.epochs} epochs; CPU seconds and ratio to one alone")
    for way, seconds in found.items():
        middle = statistics.median(seconds)
        spread = (max(seconds) - min(seconds)) / middle
        print(f"  {way:13} {middle:7.2f} s   {middle / one:5.2f}   spread {spread:.0%}")
    return 0


def tree(way: str, data: str, clients: int, epochs: int) -> int:
    """The processes of one measurement; prints what they cost."""
    from fuelrail.loader import binary

    with tempfile.TemporaryDirectory(prefix="fuelrail-bench-") as folder:
        share = f'share = {{ name = "bench", clients = {clients} }}\n' if way == "shared" else ""
        file, socket = Path(folder, "pipelines.toml"), Path(folder, "s.sock")
        file.write_text(
            f"[pipelines.train]\nbatch_size = 64\nshuffle = true\n"
            f'source = {{ type = "folder", root = "{Path(data).absolute()}" }}\n'
            f'transforms = [{{ type = "RandomResizedCrop", size = 224 }}, {{ type = "RandomHorizontalFlip" }}]\n{share}'
        )
        daemon = subprocess.Popen(
            [str(binary()), "serve", str(file), "--socket", str(socket)], stderr=subprocess.PIPE, text=True
        )
        assert daemon.stderr is not None
        for line in daemon.stderr:
            if "listening on" in line:
                break
        count = 1 if way == "one alone" else clients
        command = [sys.executable, __file__, "--client", f"unix://{socket}", str(epochs)]
        running = [subprocess.Popen(command) for _ in range(count)]
        failed = [process.wait() for process in running]
        daemon.terminate()
        daemon.communicate()
        assert not any(failed), failed
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    # What it takes to start Python and import numpy is no part of it.
    started = resource.getrusage(resource.RUSAGE_CHILDREN)
    for _ in range(count):
        subprocess.run([sys.executable, "-c", "import fuelrail.numpy"], check=True)
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = ended.ru_utime + ended.ru_stime - started.ru_utime - started.ru_stime
    print(json.dumps({"cpu_s": used.ru_utime + used.ru_stime - start}))
    return 0


def client(url: str, epochs: str) -> int:
    """Takes batches and looks at a byte of each row."""
    from fuelrail.numpy import Loader

    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with Loader(url, pipeline="train") as loader:
        for _ in range(int(epochs)):
            for batch in loader:
                batch["image"][:, 0, 0, 0].sum()
    return 0


if __name__ == "__main__":
    sys.exit(main())
