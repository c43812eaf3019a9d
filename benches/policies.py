"""Augmentation policies beside torchvision's: `make bench-policies DATA=folder`.

A photograph is decoded and goes through RandomResizedCrop(224), a flip and a policy, by fuelrail's chain (no daemon)
and by torchvision v2 on Pillow images; one thread each. Every measurement is a process of its own, and they take turns,
so that a machine that slows down slows both. Figures are medians over the rounds of CPU milliseconds for an image; the
spread is (largest - smallest) / median.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from photos import write_photos

HERE = Path(__file__).parent
START = [{"type": "RandomResizedCrop", "size": 224}, {"type": "RandomHorizontalFlip"}]
POLICIES = ("none", "RandAugment", "TrivialAugmentWide", "AutoAugment", "AugMix")


def main() -> int:
    """Runs the comparison; returns 0."""
    parser = argparse.ArgumentParser(description="augmentation policies, beside torchvision's")
    parser.add_argument("--data", type=Path, help="folder of photographs (default: generated ones)")
    parser.add_argument("--policies", default=",".join(POLICIES), help="comma-separated")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=500, help="images per measurement")
    parser.add_argument("--out", type=Path, default=Path("build/bench"))
    parser.add_argument("--torchvision", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.torchvision:
        print(json.dumps({"cpu_ms": by_torchvision(arguments.torchvision, arguments.data, arguments.images)}))
        return 0
    policies = arguments.policies.split(",")
    if unknown := set(policies) - set(POLICIES):
        parser.error(f"unknown policy {unknown.pop()!r}: there are {', '.join(POLICIES)}")
    arguments.out.mkdir(parents=True, exist_ok=True)
    data = arguments.data or arguments.out / "photos"
    if arguments.data is None:
        write_photos(data)
    found: dict[tuple[str, str], list[float]] = {}
    for round in range(arguments.rounds):
        for policy in policies:
            for peer, command in commands(policy).items():
                cpu = measured([*command, "--data", str(data), "--images", str(arguments.images)])
                found.setdefault((peer, policy), []).append(cpu)
                print(f"{round + 1}/{arguments.rounds} {policy:20} {peer:12} {cpu:7.2f} ms", flush=True)
    text = table(found, policies)
    (arguments.out / "policies.md").write_text(text)
    print(f"\n{text}\ntable: {arguments.out / 'policies.md'}")
    return 0


def commands(policy: str) -> dict[str, list[str]]:
    """The command of each peer."""
    binary = HERE.parent / os.environ.get("CARGO_TARGET_DIR", "target") / "release" / "views"
    steps = START if policy == "none" else [*START, {"type": policy}]
    return {
        "fuelrail": [str(binary), "--transforms", json.dumps(steps)],
        "torchvision": [sys.executable, __file__, "--torchvision", policy],
    }


def measured(command: list[str]) -> float:
    """CPU milliseconds for an image, measured in a process of its own."""
    # numpy's and torch's own threads would count twice what one thread does.
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    output = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout
    return float(json.loads(output.splitlines()[-1])["cpu_ms"])


def by_torchvision(policy: str, data: Path, count: int) -> float:
    """The same chain by torchvision, from files that have been read, to a tensor of bytes."""
    import torch
    from PIL import Image
    from torchvision.transforms import v2

    torch.set_num_threads(1)
    steps: list[Callable[[Any], Any]] = [v2.RandomResizedCrop(224), v2.RandomHorizontalFlip()]
    steps += [] if policy == "none" else [getattr(v2, policy)()]
    chain = v2.Compose([*steps, v2.PILToTensor()])
    files = [path.read_bytes() for path in sorted(data.rglob("*")) if path.is_file()]

    def run(images: int) -> None:
        for content in islice(cycle(files), images):
            chain(Image.open(io.BytesIO(content)).convert("RGB"))

    run(10)
    began = time.process_time()
    run(count)
    return 1000 * (time.process_time() - began) / count


def table(found: dict[tuple[str, str], list[float]], policies: list[str]) -> str:
    """The markdown table; with the chain without a policy among them, what each policy costs beyond it."""
    lines = [
        "| RandomResizedCrop(224), flip and | fuelrail, ms | torchvision, ms | ratio | policy alone | spread |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    none = [
        statistics.median(found[peer, "none"]) for peer in ("fuelrail", "torchvision") if "none" in policies
    ]
    for policy in policies:
        rows = [found[peer, policy] for peer in ("fuelrail", "torchvision")]
        ours, theirs = (statistics.median(row) for row in rows)
        spread = max((max(row) - min(row)) / statistics.median(row) for row in rows)
        alone = f"{(theirs - none[1]) / (ours - none[0]):.1f}" if none and policy != "none" else ""
        lines.append(
            f"| {policy} | {ours:.2f} | {theirs:.2f} | {theirs / ours:.1f} | {alone} | {spread:.0%} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
