"""Several views of one photograph, beside one view: `make bench-views DATA=folder`.

DINO's ten views, two of 224 pixels and eight of 96, are made from one decode. Compared are the CPU milliseconds
for a photograph with one view of 224 by the same chain, and with all ten, of fuelrail's chain (no daemon), of
torchvision v2 on Pillow images, and of DALI on the CPU where it is installed; one thread each. Every measurement
is a process of its own, and they take turns, so that a machine that slows down slows all of them. Figures are
medians over the rounds; the spread is (largest - smallest) / median.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

from photos import write_photos

HERE = Path(__file__).parent
PEERS = {"fuelrail": "fuelrail", "torch": "torchvision v2 on Pillow", "dali": "DALI on the CPU"}
TASKS = ("one", "ten")


def main() -> int:
    """Runs the comparison; returns 0."""
    parser = argparse.ArgumentParser(description="ten views of a photograph beside one")
    parser.add_argument("--data", type=Path, help="folder of photographs (default: generated ones)")
    parser.add_argument("--peers", default=",".join(PEERS), help="comma-separated")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=500, help="images per measurement")
    parser.add_argument("--out", type=Path, default=Path("build/bench"))
    arguments = parser.parse_args()
    peers = arguments.peers.split(",")
    for peer in peers:
        if peer not in PEERS:
            parser.error(f"unknown peer {peer!r}: there are {', '.join(PEERS)}")
    if "dali" in peers and not has_dali():
        print("DALI is not installed (pip install nvidia-dali-cuda120): left out")
        peers.remove("dali")
    arguments.out.mkdir(parents=True, exist_ok=True)
    data = arguments.data or arguments.out / "photos"
    if arguments.data is None:
        print("writing photographs …", flush=True)
        write_photos(data)
    found: dict[tuple[str, str], list[float]] = {}
    for round in range(arguments.rounds):
        for peer in peers:
            for task in TASKS:
                cpu = run_peer(peer, task, data, arguments.images)
                found.setdefault((peer, task), []).append(cpu)
                print(f"{round + 1}/{arguments.rounds} {PEERS[peer]:25} {task} {cpu:7.2f} ms", flush=True)
    text = table(found, peers)
    (arguments.out / "views.md").write_text(text)
    print(f"\n{text}\ntable: {arguments.out / 'views.md'}")
    return 0


def has_dali() -> bool:
    """Whether DALI is installed. Other packages have modules below `nvidia` too."""
    try:
        return importlib.util.find_spec("nvidia.dali") is not None
    except ModuleNotFoundError:
        return False


def run_peer(peer: str, task: str, data: Path, images: int) -> float:
    """CPU milliseconds for an image, measured in a process of its own."""
    binary = HERE.parent / os.environ.get("CARGO_TARGET_DIR", "target") / "release" / "views"
    script = [sys.executable, str(HERE / "peers" / "views_peer.py"), "--peer", peer]
    command = [str(binary)] if peer == "fuelrail" else script
    command += ["--task", task, "--data", str(data), "--images", str(images)]
    # numpy's and torch's own threads would count twice what one thread does.
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    output = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout
    return float(json.loads(output.splitlines()[-1])["cpu_ms"])


def table(found: dict[tuple[str, str], list[float]], peers: list[str]) -> str:
    """The markdown table: medians, what ten cost beside one, and how much cheaper fuelrail is."""
    lines = [
        "| peer | one view, CPU ms | ten views, CPU ms | ten / one | spread | ten beside fuelrail's |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    own = statistics.median(found["fuelrail", "ten"]) if "fuelrail" in peers else None
    for peer in peers:
        one, ten = (statistics.median(found[peer, task]) for task in TASKS)
        spread = max(
            (max(row) - min(row)) / statistics.median(row) for row in (found[peer, t] for t in TASKS)
        )
        beside = f"{ten / own:.2f}" if own else ""
        lines.append(f"| {PEERS[peer]} | {one:.2f} | {ten:.2f} | {ten / one:.2f} | {spread:.0%} | {beside} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
