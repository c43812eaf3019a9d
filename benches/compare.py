"""fuelrail against its peers, interleaved in one run: `make bench DATA=folder`.

Each measurement is a process of its own (peers/*_peer.py); tasks and counting are in tasks.py. The order is
task by task, and inside a task peer by peer, again and again: a machine that slows down slows all of them.
Figures are medians over the rounds; the spread (largest - smallest, as a share of the median) is printed
beside them.

Peak memory is the proportional set size (PSS) of the process and all its descendants, sampled from outside:
shared pages count once.

Writes build/bench/{table.md,results.json,plot.png}.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from photos import write_photos

HERE = Path(__file__).parent
PEERS = {
    "torch_pil": "torch DataLoader, PIL",
    "torch_v2": "torch DataLoader, decode_jpeg + v2",
    "fuelrail": "fuelrail",
    # The same reads and transforms in one Rust program: what is above it is our own overhead.
    "bare": "the bare chain, no daemon",
}
REFERENCE = "torch_pil"
TASKS = {
    "A": "RandomResizedCrop(224), flip, normalise, f32 NCHW",
    "B": "Resize(256), CenterCrop(224), normalise, f32 NCHW",
    "C": "RandomResizedCrop(224), flip, u8 NHWC",
}


def main() -> int:
    """Runs the comparison; returns 1 when a peer failed."""
    parser = argparse.ArgumentParser(description="fuelrail against torch's DataLoader")
    parser.add_argument("--data", type=Path, help="folder of class folders (default: generated photographs)")
    parser.add_argument("--tasks", default="ABC", help="which of A, B, C")
    parser.add_argument("--peers", default=",".join(PEERS), help="comma-separated")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", type=int, default=3000, help="images per measurement")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("build/bench"))
    arguments = parser.parse_args()
    tasks = [task for task in TASKS if task in arguments.tasks]
    peers = arguments.peers.split(",")
    for peer in peers:
        if peer not in PEERS:
            parser.error(f"unknown peer {peer!r}: there are {', '.join(PEERS)}")
    arguments.out.mkdir(parents=True, exist_ok=True)
    data = arguments.data or arguments.out / "photos"
    if arguments.data is None:
        print("writing photographs …", flush=True)
        write_photos(data)
    described = describe(data, arguments)
    print(described, flush=True)

    results: list[dict[str, Any]] = []
    for task in tasks:
        for round in range(arguments.rounds):
            for peer in peers:
                found = run_peer(peer, task, data, arguments)
                results.append({"peer": peer, "task": task, "round": round, **found})
                print(
                    f"{task} {round + 1}/{arguments.rounds} {PEERS[peer]:35}"
                    f" {found['images_per_s']:7.0f} img/s"
                    f"  {found['cpu_s_per_1000']:5.2f} CPU s/1000  first batch {found['first_batch_s']:.2f} s"
                    f"  peak {found['peak_pss_mib']:5.0f} MiB",
                    flush=True,
                )
    text = f"{described}\n\n{table(results, tasks, peers)}\n"
    (arguments.out / "table.md").write_text(text)
    (arguments.out / "results.json").write_text(json.dumps({"run": described, "results": results}, indent=1))
    print(f"\n{text}\ntable: {arguments.out / 'table.md'}")
    try:
        draw(results, tasks, peers, arguments.out / "plot.png")
        print(f"plot: {arguments.out / 'plot.png'}")
    except ImportError:
        print("plot: not drawn, matplotlib is not installed")
    return 0


def run_peer(peer: str, task: str, data: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """One measurement in a process of its own, its memory sampled meanwhile."""
    bare = HERE.parent / os.environ.get("CARGO_TARGET_DIR", "target") / "release" / "bare"
    program = [str(bare)] if peer == "bare" else [sys.executable, str(HERE / "peers" / f"{peer}_peer.py")]
    command = [*program, "--task", task, "--data", str(data)]
    command += ["--images", str(arguments.images), "--batch-size", str(arguments.batch_size)]
    command += ["--workers", str(arguments.workers)]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    sampler = PeakMemory(child.pid)
    assert child.stdout
    output, _ = child.communicate()
    peak = sampler.stop()
    if child.returncode != 0:
        raise SystemExit(
            f"{peer} failed in task {task} with exit code {child.returncode}: {' '.join(command)}"
        )
    found: dict[str, Any] = json.loads(output.splitlines()[-1])
    return {**found, "peak_pss_mib": peak / 2**20}


class PeakMemory:
    """The largest PSS of a process tree seen in samples of half a second; bytes."""

    def __init__(self, pid: int) -> None:
        self._pid, self._peak, self._over = pid, 0, threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()

    def stop(self) -> int:
        """Ends the sampling; returns the peak."""
        self._over.set()
        self._thread.join()
        return self._peak

    def _sample(self) -> None:
        while not self._over.wait(0.5):
            self._peak = max(self._peak, sum(_pss(pid) for pid in _tree(self._pid)))


def _tree(root: int) -> list[int]:
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                # The name in parentheses may hold spaces; what follows the last one does not.
                status = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            parents.setdefault(int(status[1]), []).append(int(entry.name))
    found, todo = [], [root]
    while todo:
        found.append(todo.pop())
        todo += parents.get(found[-1], [])
    return found


def _pss(pid: int) -> int:
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return 1024 * int(line.split()[1])
    except (OSError, ProcessLookupError):
        pass
    return 0


def table(results: list[dict[str, Any]], tasks: list[str], peers: list[str]) -> str:
    """The markdown table: medians, ratios to the reference, spread."""
    lines = [
        "| task | peer | images/s | ratio | CPU s/1,000 | times cheaper | first batch s | MiB | spread |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for task in tasks:
        reference = summary(results, task, REFERENCE) if REFERENCE in peers else None
        for peer in peers:
            found = summary(results, task, peer)
            faster = f"{found['images_per_s'] / reference['images_per_s']:.2f}" if reference else ""
            cheaper = f"{reference['cpu_s_per_1000'] / found['cpu_s_per_1000']:.2f}" if reference else ""
            lines.append(
                f"| {task} | {PEERS[peer]} | {found['images_per_s']:.0f} | {faster}"
                f" | {found['cpu_s_per_1000']:.2f} | {cheaper} | {found['first_batch_s']:.2f}"
                f" | {found['peak_pss_mib']:.0f} | {found['spread']:.0%} |"
            )
    lines += ["", *(f"{task}: {TASKS[task]}.  " for task in tasks)]
    return "\n".join(lines).replace("% |", " % |")


def summary(results: list[dict[str, Any]], task: str, peer: str) -> dict[str, float]:
    """Medians of one peer in one task; `spread` is that of the CPU seconds."""
    rows = [row for row in results if (row["task"], row["peer"]) == (task, peer)]
    names = ("images_per_s", "cpu_s_per_1000", "first_batch_s", "peak_pss_mib")
    found = {name: statistics.median(row[name] for row in rows) for name in names}
    cpu = [row["cpu_s_per_1000"] for row in rows]
    return {**found, "spread": (max(cpu) - min(cpu)) / found["cpu_s_per_1000"]}


def describe(data: Path, arguments: argparse.Namespace) -> str:
    """Reads every file once (the page cache is warm afterwards) and says what was measured on what."""
    import torch
    import torchvision

    files = [path for path in data.rglob("*") if path.is_file()]
    if not files:
        raise SystemExit(f"{data} holds no files")
    # Whole epochs where the folder is small: nothing read ahead at the end is left uncounted or wasted.
    if arguments.images > len(files):
        arguments.images = -(-arguments.images // len(files)) * len(files)
    size = sum(len(path.read_bytes()) for path in files)
    return (
        f"{len(files)} files, mean {size / len(files) / 1000:.0f} KB, page cache warm; "
        f"{arguments.images} images a measurement, batch {arguments.batch_size}, "
        f"{arguments.workers} workers, {arguments.rounds} rounds interleaved; "
        f"{os.cpu_count()} cores ({platform.machine()}), torch {torch.__version__}, "
        f"torchvision {torchvision.__version__}; {time.strftime('%Y-%m-%d')}."
    )


def draw(results: list[dict[str, Any]], tasks: list[str], peers: list[str], target: Path) -> None:
    """Bars: images/s, and CPU seconds per 1,000 images, of each peer in each task; dots are single rounds."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    inks = {"torch_pil": "#1c1e21", "torch_v2": "#ffffff", "fuelrail": "#ffffff", "bare": "#1c1e21"}
    colours = {"torch_pil": "#b8bec9", "torch_v2": "#7d8797", "fuelrail": "#c2571a", "bare": "#e6b89c"}
    figure, panels = pyplot.subplots(1, 2, figsize=(10, 4.2), layout="constrained")
    for axes, name, title in (
        (panels[0], "images_per_s", "images per second (more is better)"),
        (panels[1], "cpu_s_per_1000", "CPU seconds per 1,000 images (less is better)"),
    ):
        width = 0.8 / len(peers)
        for place, peer in enumerate(peers):
            centres = [index + (place - (len(peers) - 1) / 2) * width for index in range(len(tasks))]
            medians = [summary(results, task, peer)[name] for task in tasks]
            bars = axes.bar(centres, medians, width * 0.92, color=colours[peer], label=PEERS[peer])
            figures = "%.0f" if name == "images_per_s" else "%.2f"
            axes.bar_label(bars, fmt=figures, fontsize=9, label_type="center", color=inks[peer])
            for centre, task in zip(centres, tasks, strict=True):
                rounds = [row[name] for row in results if (row["task"], row["peer"]) == (task, peer)]
                axes.plot([centre + 0.36 * width] * len(rounds), rounds, ".", color="#1c1e21", markersize=4)
        axes.set_title(title, fontsize=10)
        axes.set_xticks(range(len(tasks)), [f"task {task}" for task in tasks])
        axes.margins(y=0.12)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(peers), frameon=False, fontsize=9)
    figure.savefig(target, dpi=130)


if __name__ == "__main__":
    raise SystemExit(main())
