"""`make demo`: an image folder to a trained model, with the pictures at the end.

Without --data: the handwritten digits and the small CNN, about a minute on two cores. With --data: any folder
of class folders (a validation folder beside it, or a split by key hash) and ResNet-18 at a size that two
cores can train in minutes. Other options go to `fuelrail train` as they are.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

from digits import write_digits

BUILD = Path("build/demo")


def main() -> int:
    """Runs `fuelrail train` with the demo's settings; returns its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--data", type=Path)
    arguments, others = parser.parse_known_args()
    if arguments.data is None:
        data = BUILD / "digits"
        write_digits(data)
        settings = DIGITS
    else:
        data = arguments.data
        settings = PHOTOGRAPHS
    out = BUILD / "run" / (data.resolve().name or "data")
    # The demo's own folder: each demo is a new run.
    shutil.rmtree(out, ignore_errors=True)
    command = [
        str(Path(sys.executable).with_name("fuelrail")),
        "train",
        "--data",
        str(data),
        "--out",
        str(out),
    ]
    command += [*settings, *others]
    print(f"$ {' '.join(['fuelrail', *command[1:]])}", flush=True)
    # ctrl-C reaches both; the child decides how it ends, and its exit code is ours.
    child = subprocess.Popen(command)
    while True:
        try:
            code = child.wait()
            break
        except KeyboardInterrupt:
            continue
    if code == 0:
        print(f"\nlook at {out / 'curve.png'} and {out / 'samples.png'}")
    return code if code >= 0 else 128 - code


#: Digits have no mirror images, and a crop must not cut the strokes away.
DIGITS = ["--model", "small_cnn", "--size", "32", "--epochs", "8", "--batch-size", "64"]
DIGITS += ["--no-flip", "--min-scale", "0.6"]
PHOTOGRAPHS = ["--model", "resnet18", "--size", "96", "--epochs", "12", "--batch-size", "32"]


if __name__ == "__main__":
    raise SystemExit(main())
