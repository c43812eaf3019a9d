"""Marks the daemon inside a wheel as executable; maturin packs included files as plain ones.

    executable.py WHEEL

Only the archive's directory is written again, with the mode that pip and uv give the file they unpack;
contents and their hashes stay.
"""

import sys
from zipfile import ZipFile

with ZipFile(sys.argv[1], "a") as wheel:
    entry = wheel.getinfo("fuelrail/_bin/fuelrail")
    entry.external_attr = 0o100755 << 16
    # Setting the comment is what makes ZipFile write the directory again when it closes.
    wheel.comment = b""
