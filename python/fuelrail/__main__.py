"""The `fuelrail` command: commands that train and use models run here; all others are in the daemon's binary."""

from __future__ import annotations

import os
import sys

from fuelrail.errors import FuelrailError


def main() -> int:
    """Run `fuelrail ...`."""
    arguments = sys.argv[1:]
    if arguments[:1] == ["train"]:
        from fuelrail.train.cli import main as train

        return train(arguments[1:])
    if arguments[:1] in (["eval"], ["predict"], ["export"]):
        from fuelrail.train.applying import main as apply

        return apply(arguments[0], arguments[1:])
    if arguments[:1] == ["bench"] and "--gpu" in arguments:
        from fuelrail.train.gpu_bench import main as gpu_bench

        return gpu_bench(arguments[1:])
    if arguments[:1] == ["runs"]:
        from fuelrail.train.comparing import main as compare

        return compare(arguments[1:])
    from fuelrail.loader import binary

    try:
        path = str(binary())
    except FuelrailError as error:
        print(f"fuelrail: {error}", file=sys.stderr)
        return 1
    os.execv(path, ["fuelrail", *arguments])


if __name__ == "__main__":
    sys.exit(main())
