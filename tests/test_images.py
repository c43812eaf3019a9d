"""Image files as people have them, against what Pillow makes of them: kinds of pixels, codings, orientations, files that
are cut, and formats that are named instead of decoded. What each conversion does is written in docs/images.md.
"""

from __future__ import annotations

import io
import itertools
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import photographs
import pytest
from fuelrail.errors import DataError
from fuelrail.transforms import CenterCrop, RandomResizedCrop
from PIL import Image, ImageFile, ImageOps, features
from support import Loader

W, H = 61, 47
RGB = photographs.photograph(7, W, H)
GRAY = RGB.convert("L")
ALPHA = RGB.copy()
ALPHA.putalpha(GRAY)
BLACK_AND_WHITE = RGB.convert("1")
UPPER = np.random.default_rng(5).integers(0, 1 << 16, (H, W)).astype(np.uint16)


def encoded(picture: Image.Image, kind: str, **options: Any) -> bytes:
    out = io.BytesIO()
    picture.save(out, kind, **options)
    return out.getvalue()


def expected(content: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(content)) as picture:
        return np.asarray(ImageOps.exif_transpose(picture).convert("RGB"))


def load(root: Path, files: dict[str, bytes], **options: Any) -> list[np.ndarray | None]:
    """Pixels (H, W, C) of each file; None for a bad record. All must be of one size."""
    (root / "class").mkdir(parents=True)
    for number, content in enumerate(files.values()):
        # The name says nothing of the format.
        (root / "class" / f"{number:04}.jpg").write_bytes(content)
    found: list[np.ndarray | None] = [None] * len(files)
    options = {"transforms": [CenterCrop((H, W))], "on_error": "drop", "error_budget": 1000, **options}
    with Loader(root, batch_size=8, **options) as loader:
        for batch in loader:
            for at, image in zip(batch["position"].tolist(), batch["image"], strict=True):
                found[at] = np.array(image).transpose(1, 2, 0)
    return found


def refusal(root: Path, content: bytes, **options: Any) -> str:
    with pytest.raises(DataError) as caught:
        load(root, {"": content}, on_error="fail", **options)
    return str(caught.value)


# Files made by hand, for what Pillow cannot write ----------------------------------------------------------------------


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png_chunks(content: bytes) -> list[bytes]:
    """A PNG as its chunks, behind its first eight bytes."""
    at, out = 8, []
    while at < len(content):
        end = at + 12 + int.from_bytes(content[at : at + 4], "big")
        out.append(content[at:end])
        at = end
    return out


def interlaced_png(pixels: np.ndarray) -> bytes:
    """RGB or gray of eight bits in the seven passes of Adam7."""
    kind = 2 if pixels.ndim == 3 else 0
    rows = b""
    for x, dx, y, dy in [
        (0, 8, 0, 8),
        (4, 8, 0, 8),
        (0, 4, 4, 8),
        (2, 4, 0, 4),
        (0, 2, 2, 4),
        (1, 2, 0, 2),
        (0, 1, 1, 2),
    ]:
        rows += b"".join(b"\0" + row.tobytes() for row in pixels[y::dy, x::dx] if row.size)
    header = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], 8, kind, 0, 0, 1)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def tiff(
    data: list[bytes], *, big: bool = False, order: str = "<", tags: dict[int, list[int]] | None = None
) -> bytes:
    """A TIFF or BigTIFF of these strips, or tiles where the tags say so."""
    tiled = 322 in (tags or {})
    entries = {256: [W], 257: [H], 258: [8, 8, 8], 259: [1], 262: [2], 277: [3], 278: [H], **(tags or {})}
    word = 8 if big else 4
    start = (16 if big else 8) + sum(map(len, data))
    offsets = [(16 if big else 8) + sum(map(len, data[:at])) for at in range(len(data))]
    entries |= {324 if tiled else 273: offsets, 325 if tiled else 279: [len(part) for part in data]}
    directory, values = b"", b""
    after = start + (8 + 20 * len(entries) + 8 if big else 2 + 12 * len(entries) + 4)
    for tag, numbers in sorted(entries.items()):
        packed = struct.pack(f"{order}{len(numbers)}I", *numbers)
        where = after + len(values)
        if len(packed) > word:
            values += packed
            packed = struct.pack(f"{order}Q" if big else f"{order}I", where)
        head = struct.pack(f"{order}HHQ" if big else f"{order}HHI", tag, 4, len(numbers))
        directory += head + packed.ljust(word, b"\0")
    mark = b"II" if order == "<" else b"MM"
    if big:
        head = mark + struct.pack(f"{order}HHHQ", 43, 8, 0, start)
        directory = struct.pack(f"{order}Q", len(entries)) + directory + bytes(8)
    else:
        head = mark + struct.pack(f"{order}HI", 42, start)
        directory = struct.pack(f"{order}H", len(entries)) + directory + bytes(4)
    return head + b"".join(data) + directory + values


def tiff_with_pixels_last(data: bytes, *, compression: int) -> bytes:
    """A gray TIFF in one strip, at the file's end."""
    entries = {256: W, 257: H, 258: 8, 259: compression, 262: 1, 277: 1, 278: H, 279: len(data)}
    entries[273] = 8 + 2 + 12 * (len(entries) + 1) + 4
    directory = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(entries.items()))
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + directory + bytes(4) + data


def tiles(pixels: np.ndarray, side: int) -> list[bytes]:
    padded = np.pad(pixels, ((0, -H % side), (0, -W % side), (0, 0)))
    return [
        padded[y : y + side, x : x + side].tobytes()
        for y in range(0, padded.shape[0], side)
        for x in range(0, padded.shape[1], side)
    ]


def os2_bmp() -> bytes:
    """A BMP with the header of OS/2's second version: Windows' one, and 24 bytes more."""
    windows = encoded(RGB, "BMP")
    offset = int.from_bytes(windows[10:14], "little") + 24
    head = windows[:10] + struct.pack("<II", offset, 64) + windows[18:54]
    return head + bytes(24) + windows[54:]


def core_bmp() -> bytes:
    rows = np.asarray(RGB)[::-1, :, ::-1]
    body = b"".join(row.tobytes().ljust((3 * W + 3) // 4 * 4, b"\0") for row in rows)
    return b"BM" + struct.pack("<IIIIHHHH", 26 + len(body), 0, 26, 12, W, H, 1, 24) + body


def gif_at(
    width: int, height: int, left: int = 0, top: int = 0, size: tuple[int, int] = (W, H), **options: int
) -> bytes:
    """A GIF whose screen and whose frame's place are these."""
    content = bytearray(encoded(RGB.resize(size).quantize(64), "GIF", **options))
    content[6:10] = struct.pack("<HH", width, height)
    frame = content.index(b"\x2c", 13 + 3 * 64)
    content[frame + 1 : frame + 5] = struct.pack("<HH", left, top)
    return bytes(content)


def stray_gif(picture: Image.Image) -> bytes:
    """A GIF with what no standard has between its blocks, and cut off after its last code."""
    content = encoded(picture, "GIF", comment=b"x" * 300)
    frame = content.index(b"\x2c", 13 + 3 * 128)
    odd = b"\0\0\xff" + b"!\x77\3abc\0" + b"\0\1\2" + b"!\xff\x0bNETSCAPE2.0\3\1\0\0\0\0"
    return content[:frame] + odd + content[frame:-2]


def gif_of_odd_palette(colours: int = 19) -> bytes:
    """A palette of a length that GIF has not, which Pillow writes as it is, with zeros after it."""
    picture = RGB.quantize(32)
    palette = np.random.default_rng(3).integers(0, 256, 4 * colours).astype(np.uint8)
    picture.putpalette(palette.tobytes(), "RGBA")
    return encoded(picture, "GIF", optimize=False)


def pam() -> bytes:
    """Pillow does not read it."""
    return f"P7\nWIDTH {W}\nHEIGHT {H}\nDEPTH 3\nMAXVAL 255\nTUPLTYPE RGB\nENDHDR\n".encode() + RGB.tobytes()


def jpeg(**options: Any) -> bytes:
    return encoded(RGB, "JPEG", quality=92, **options)


def without_segments(content: bytes, *markers: int) -> bytes:
    out, at = content[:2], 2
    while content[at + 1] != 0xDA:
        end = at + 2 + int.from_bytes(content[at + 2 : at + 4], "big")
        out += b"" if content[at + 1] in markers else content[at:end]
        at = end
    return out + content[at:]


def zero_scan_parameters() -> bytes:
    content = bytearray(jpeg())
    scan = content.index(b"\xff\xda")
    end = scan + 2 + int.from_bytes(content[scan + 2 : scan + 4], "big")
    content[end - 3 : end] = bytes(3)
    return bytes(content)


pixels = np.asarray(RGB)
rows = [pixels[y : y + 10].tobytes() for y in range(0, H, 10)]
planes = [np.ascontiguousarray(pixels[:, :, plane]).tobytes() for plane in range(3)]

# Exactly Pillow's pixels.
EXACT: dict[str, Callable[[], bytes]] = {
    "PNG": lambda: encoded(RGB, "PNG"),
    "gray PNG": lambda: encoded(GRAY, "PNG"),
    "gray and alpha PNG": lambda: encoded(ALPHA.convert("LA"), "PNG"),
    "alpha PNG": lambda: encoded(ALPHA, "PNG"),
    "palette PNG": lambda: encoded(RGB.quantize(200), "PNG"),
    "palette PNG of 4 bits": lambda: encoded(RGB.quantize(16), "PNG", bits=4),
    "palette PNG of 2 bits": lambda: encoded(RGB.quantize(4), "PNG", bits=2),
    "palette PNG with a transparent colour": lambda: encoded(RGB.quantize(50), "PNG", transparency=3),
    "palette PNG with alpha for each colour": lambda: encoded(
        RGB.quantize(50), "PNG", transparency=bytes(range(50))
    ),
    "RGB PNG with a transparent colour": lambda: encoded(RGB, "PNG", transparency=(1, 2, 3)),
    "one bit PNG": lambda: encoded(BLACK_AND_WHITE, "PNG"),
    "interlaced PNG": lambda: interlaced_png(pixels),
    "interlaced gray PNG": lambda: interlaced_png(np.asarray(GRAY)),
    "animated PNG": lambda: encoded(RGB, "PNG", save_all=True, append_images=[RGB.rotate(90)]),
    "PNG without its last chunk": lambda: encoded(RGB, "PNG")[:-12],
    "PNG without the checksum of its picture": lambda: encoded(RGB, "PNG")[:-16],
    "PNG and what follows it": lambda: encoded(RGB, "PNG") + b"more",
    "GIF": lambda: encoded(RGB.quantize(100), "GIF"),
    "gray GIF": lambda: encoded(GRAY, "GIF"),
    "interlaced GIF": lambda: encoded(RGB.quantize(100), "GIF", interlace=True),
    "transparent GIF": lambda: encoded(RGB.quantize(100), "GIF", transparency=5),
    "animated GIF": lambda: encoded(RGB.quantize(99), "GIF", save_all=True, append_images=[GRAY.quantize(9)]),
    "GIF with stray bytes between its blocks": lambda: stray_gif(RGB.quantize(99)),
    "GIF with a palette of the wrong length": lambda: gif_of_odd_palette(),
    "GIF of indices past its palette": lambda: gif_of_odd_palette(20),
    "GIF whose frame is smaller than the screen": lambda: gif_at(W, H, 3, 5, size=(30, 20)),
    "transparent GIF whose frame is smaller than the screen": lambda: gif_at(
        W, H, 3, 5, size=(30, 20), transparency=7
    ),
    "GIF without a screen": lambda: gif_at(0, 0),
    "GIF whose frame is larger than the screen": lambda: gif_at(20, 20),
    "BMP": lambda: encoded(RGB, "BMP"),
    "gray BMP": lambda: encoded(GRAY, "BMP"),
    "palette BMP": lambda: encoded(RGB.quantize(64), "BMP"),
    "one bit BMP": lambda: encoded(BLACK_AND_WHITE, "BMP"),
    "alpha BMP": lambda: encoded(ALPHA, "BMP"),
    "OS/2 BMP": os2_bmp,
    "OS/2 BMP of the first version": core_bmp,
    "WebP without loss": lambda: encoded(RGB, "WEBP", lossless=True),
    "alpha WebP without loss": lambda: encoded(ALPHA, "WEBP", lossless=True, exact=True),
    "animated WebP": lambda: encoded(
        RGB, "WEBP", lossless=True, save_all=True, append_images=[RGB.rotate(9)]
    ),
    "PPM": lambda: encoded(RGB, "PPM"),
    "PGM": lambda: encoded(GRAY, "PPM"),
    "PBM": lambda: encoded(BLACK_AND_WHITE, "PPM"),
    "PPM as text": lambda: (
        f"P3 # comment\n{W} {H}\n255\n".encode() + b" ".join(b"%d" % v for v in pixels.ravel())
    ),
    "PGM as text": lambda: (
        f"P2\n{W} {H} 255\n".encode() + b"\n".join(b"%d" % v for v in np.asarray(GRAY).ravel())
    ),
    **{
        f"{name} TIFF, {compression}": lambda picture=picture, compression=compression: encoded(
            picture, "TIFF", compression=compression
        )
        for name, picture in {
            "RGB": RGB,
            "gray": GRAY,
            "palette": RGB.quantize(70),
            "alpha": ALPHA,
            "CMYK": RGB.convert("CMYK"),
            "one bit": BLACK_AND_WHITE,
        }.items()
        for compression in ("raw", "packbits", "tiff_lzw", "tiff_adobe_deflate", "zstd", "lzma")
    },
    **{
        f"one bit TIFF, {compression}": lambda compression=compression: encoded(
            BLACK_AND_WHITE, "TIFF", compression=compression
        )
        for compression in ("group3", "group4", "tiff_ccitt")
    },
    "TIFF with differences": lambda: encoded(RGB, "TIFF", compression="tiff_lzw", tiffinfo={317: 2}),
    "gray TIFF with differences": lambda: encoded(GRAY, "TIFF", compression="zstd", tiffinfo={317: 2}),
    "TIFF in several strips": lambda: encoded(RGB, "TIFF", compression="tiff_lzw", tiffinfo={278: 10}),
    "TIFF of several pages": lambda: encoded(RGB, "TIFF", save_all=True, append_images=[GRAY]),
    "big-endian TIFF": lambda: tiff([pixels.tobytes()], order=">"),
    "BigTIFF": lambda: encoded(RGB, "TIFF", big_tiff=True),
    "BigTIFF in strips": lambda: tiff(rows, big=True, tags={278: [10]}),
    "TIFF in tiles": lambda: tiff(tiles(pixels, 16), tags={322: [16], 323: [16]}),
    "TIFF in planes": lambda: tiff(planes, tags={284: [2]}),
    "TIFF whose zero is white": lambda: tiff([GRAY.tobytes()], tags={258: [8], 262: [0], 277: [1]}),
    "palette TIFF of 4 bits": lambda: tiff(
        [
            np.packbits(
                np.unpackbits((pixels[:, :, :1] // 16), axis=2)[:, :, 4:].reshape(H, -1), axis=1
            ).tobytes()
        ],
        tags={258: [4], 262: [3], 277: [1], 320: [257 * (v * 5 % 256) for v in range(48)]},
    ),
}

# Alike but for the rounding of a lossy decoder.
ALIKE: dict[str, Callable[[], bytes]] = {
    "JPEG": jpeg,
    "JPEG of one colour plane": lambda: encoded(GRAY, "JPEG"),
    "progressive JPEG": lambda: jpeg(progressive=True),
    "optimised JPEG": lambda: jpeg(optimize=True),
    "4:4:4 JPEG": lambda: jpeg(subsampling=0),
    "4:2:2 JPEG": lambda: jpeg(subsampling=1),
    "RGB JPEG": lambda: jpeg(keep_rgb=True),
    "JPEG with restarts": lambda: jpeg(restart_marker_rows=1),
    "JPEG with a profile": lambda: jpeg(icc_profile=b"x" * 300),
    "CMYK JPEG": lambda: encoded(RGB.convert("CMYK"), "JPEG", quality=95),
    "JPEG and what follows it": lambda: jpeg() + b"more" * 99,
    "several JPEGs in one (MPO)": lambda: encoded(RGB, "MPO", save_all=True, append_images=[RGB.rotate(90)]),
    "JPEG whose scan parameters are zero": zero_scan_parameters,
    "JPEG without Huffman tables (a frame of MJPEG)": lambda: without_segments(jpeg(), 0xC4),
    "WebP": lambda: encoded(RGB, "WEBP", quality=95),
    "alpha WebP": lambda: encoded(ALPHA, "WEBP", quality=95),
    "Lab TIFF": lambda: encoded(RGB.convert("LAB"), "TIFF"),
    "Lab TIFF, tiff_lzw": lambda: encoded(RGB.convert("LAB"), "TIFF", compression="tiff_lzw"),
    "Lab TIFF of all colours": lambda: tiff(
        [np.random.default_rng(2).integers(0, 256, (H, W, 3)).astype(np.uint8).tobytes()], tags={262: [8]}
    ),
    "JPEG in TIFF": lambda: encoded(RGB, "TIFF", compression="jpeg", quality=95),
    "gray JPEG in TIFF": lambda: encoded(GRAY, "TIFF", compression="jpeg", quality=95),
    "alpha JPEG in TIFF": lambda: encoded(ALPHA, "TIFF", compression="jpeg", quality=95),
    "CMYK JPEG in TIFF": lambda: encoded(RGB.convert("CMYK"), "TIFF", compression="jpeg", quality=95),
    "YCbCr JPEG in TIFF": lambda: encoded(RGB.convert("YCbCr"), "TIFF", compression="jpeg", quality=95),
}


def test_files_of_every_kind_have_pillows_pixels(tmp_path: Path) -> None:
    files = {name: make() for name, make in (EXACT | ALIKE).items()}
    wrong = []
    for (name, content), image in zip(files.items(), load(tmp_path, files), strict=True):
        if image is None:
            wrong.append(f"{name}: a bad record")
            continue
        difference = np.abs(image.astype(int) - expected(content))
        if difference.max() > (0 if name in EXACT else 3):
            wrong.append(f"{name}: mean {difference.mean():.2f}, at most {difference.max()}")
    assert not wrong, "\n".join(wrong)


def test_whatever_gif_pillow_writes_has_pillows_pixels(tmp_path: Path) -> None:
    pictures = {
        "1": BLACK_AND_WHITE,
        "L": GRAY,
        "LA": ALPHA.convert("LA"),
        "P of 2": RGB.quantize(2),
        "P of 100": RGB.quantize(100),
        "P of 256": RGB.quantize(256),
        "P with alpha": ALPHA.quantize(50),
        "RGB": RGB,
        "RGBA": ALPHA,
    }
    files = {}
    for (name, picture), transparency, interlace, optimize, frames in itertools.product(
        pictures.items(), (None, 0, 255), (False, True), (False, True), (1, 3)
    ):
        options: dict[str, Any] = {"interlace": interlace, "optimize": optimize}
        if transparency is not None:
            options["transparency"] = transparency
        if frames > 1:
            others = [picture.rotate(90), picture.rotate(180)]
            options |= {"save_all": True, "append_images": others, "duration": 40, "loop": 0}
            options |= {"disposal": len(files) % 4, "comment": b"of several blocks" * 20}
        files[f"{name}, {transparency=}, {interlace=}, {optimize=}, {frames=}"] = encoded(
            picture, "GIF", **options
        )
    for (name, content), image in zip(files.items(), load(tmp_path, files), strict=True):
        assert image is not None and np.array_equal(image, expected(content)), name


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow writes no AVIF")
def test_avif_has_pillows_pixels(tmp_path: Path) -> None:
    noisy = photographs.photograph(3, W, H)
    files = {
        f"{name}, {subsampling}, quality {quality}": encoded(
            picture, "AVIF", quality=quality, subsampling=subsampling, **options
        )
        for name, picture, options in [
            ("RGB", noisy, {}),
            ("limited range", noisy, {"range": "limited"}),
            ("alpha", ALPHA, {}),
            ("gray", GRAY, {}),
        ]
        for subsampling in ("4:2:0", "4:2:2", "4:4:4", "4:0:0")
        for quality in (50, 95)
    }
    files["animated"] = encoded(noisy, "AVIF", save_all=True, append_images=[RGB])
    for (name, content), image in zip(files.items(), load(tmp_path, files), strict=True):
        assert image is not None, name
        difference = np.abs(image.astype(int) - expected(content))
        assert difference.max() <= 3 and difference.mean() < 0.8, (
            f"{name}: {difference.mean():.2f}, {difference.max()}"
        )


def box(kind: bytes, *content: bytes, version: int | None = None) -> bytes:
    body = (b"" if version is None else struct.pack(">I", version << 24)) + b"".join(content)
    return struct.pack(">I", len(body) + 8) + kind + body


def avif_grid(
    tiles: list[bytes], columns: int, rows: int, size: tuple[int, int], tile: int, **changes: int
) -> bytes:
    """An AVIF picture of square tiles, each a stream of AV1 data, with properties of its own."""
    count = len(tiles)
    grid = struct.pack(">BBBBHH", 0, 0, rows - 1, columns - 1, *size)
    ids = range(2, count + 2)
    items = [box(b"infe", struct.pack(">HH", at, 0), b"av01", b"\0", version=2) for at in ids]
    properties = [
        box(b"ispe", struct.pack(">II", *size), version=0),
        box(b"ispe", struct.pack(">II", tile, tile), version=0),
        box(b"irot", bytes([changes.get("turns", 0)])),
        box(b"pixi", b"\x03\x08\x08\x08", version=0),
        box(b"av1C", b"\x81\0\0\0"),
    ]
    links = struct.pack(">HBBBB", 1, 3, 1, 4, 0x83) + b"".join(
        struct.pack(">HBBBB", at, 3, 2, 4, 0x85) for at in ids
    )

    def meta(start: int) -> bytes:
        places = struct.pack(">HHHHII", 1, 1, 0, 1, 0, len(grid))
        for at, data in zip(ids, tiles, strict=True):
            places += struct.pack(">HHHHII", at, 0, 0, 1, start, len(data))
            start += len(data)
        return box(
            b"meta",
            box(b"hdlr", bytes(4), b"pict", bytes(13), version=0),
            box(b"pitm", struct.pack(">H", 1), version=0),
            box(
                b"iinf",
                struct.pack(">H", count + 1),
                box(b"infe", b"\0\x01\0\0grid\0", version=2),
                *items,
                version=0,
            ),
            box(b"iloc", struct.pack(">HH", 0x4400, count + 1), places, version=1),
            box(b"iref", box(b"dimg", struct.pack(f">HH{count}H", 1, count, *ids)), version=0),
            box(
                b"iprp",
                box(b"ipco", *properties),
                box(b"ipma", struct.pack(">I", count + 1), links, version=0),
            ),
            box(b"idat", grid),
            version=0,
        )

    head = box(b"ftyp", b"avif", bytes(4), b"avifmif1miaf")
    return head + meta(len(head) + len(meta(0)) + 8) + box(b"mdat", *tiles)


def av1_data(picture: Image.Image) -> bytes:
    content = encoded(picture, "AVIF", quality=90, subsampling="4:4:4")
    at = content.index(b"mdat")
    return content[at + 4 : at - 4 + int.from_bytes(content[at - 4 : at], "big")]


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow writes no AVIF")
def test_a_grid_of_avif_pictures_is_one_and_a_damaged_one_is_bad(tmp_path: Path) -> None:
    whole = photographs.photograph(8, 128, 128)
    parts = [av1_data(whole.crop((x, y, x + 64, y + 64))) for y in (0, 64) for x in (0, 64)]
    files = {
        "grid": avif_grid(parts, 2, 2, (119, 119), 64),
        "turned": avif_grid(parts, 2, 2, (119, 119), 64, turns=1),
        "of too few tiles": avif_grid(parts[:3], 2, 2, (119, 119), 64),
        "larger than its tiles": avif_grid(parts, 2, 2, (129, 129), 64),
        "of tiles of another size": avif_grid(parts, 2, 2, (119, 119), 60),
        "huge": avif_grid(parts, 200, 200, (60_000, 60_000), 64),
    }
    grid, turned, *bad = load(tmp_path, files, transforms=[CenterCrop(119)])
    assert grid is not None and turned is not None
    assert np.abs(grid.astype(int) - expected(files["grid"])).max() <= 3
    assert np.abs(turned.astype(int) - expected(files["turned"])).max() <= 3
    assert np.array_equal(np.rot90(grid), turned)
    assert bad == [None] * 4


def exif(orientation: int, *, kind: int = 3) -> bytes:
    value = struct.pack(">I" if kind == 4 else ">HH", *((orientation,) if kind == 4 else (orientation, 0)))
    return b"MM\0*" + struct.pack(">IHHHI", 8, 1, 0x0112, kind, 1) + value + bytes(4)


def app1(body: bytes) -> bytes:
    return b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body


def with_chunks(before: list[bytes], after: list[bytes]) -> bytes:
    chunks = png_chunks(encoded(RGB, "PNG"))
    return b"\x89PNG\r\n\x1a\n" + b"".join([chunks[0], *before, *chunks[1:-1], *after, chunks[-1]])


def oriented(orientation: int) -> dict[str, bytes]:
    """The same picture, which says of itself how it lies, in all the ways there are."""
    data = exif(orientation)
    profile = f"\nexif\n      {len(data)}\n{data.hex()}\n".encode()
    xmp = f'<x:xmpmeta><rdf:Description tiff:Orientation="{orientation}"/></x:xmpmeta>'.encode()
    start, rest = jpeg()[:2], jpeg()[2:]
    name = b"Exif\0\0"
    files = {
        "JPEG": start + app1(name + data) + rest,
        "JPEG, a number of four bytes": start + app1(name + exif(orientation, kind=4)) + rest,
        "JPEG, behind junk": start + b"\xff\xe0\0\x02junk" + app1(name + data) + rest,
        "JPEG, after fill bytes": start + b"\xff\xff\xff" + app1(name + data) + rest,
        "JPEG, in XMP alone": start + app1(b"http://ns.adobe.com/xap/1.0/\0" + xmp) + rest,
        "PNG": with_chunks([chunk(b"eXIf", data)], []),
        "PNG, after the picture": with_chunks([], [chunk(b"eXIf", data)]),
        "PNG, a raw profile": with_chunks([chunk(b"tEXt", b"Raw profile type exif\0" + profile)], []),
        "PNG, a packed raw profile": with_chunks(
            [chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(profile))], []
        ),
        "PNG, in XMP alone": with_chunks([chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp)], []),
        "WebP": encoded(RGB, "WEBP", lossless=True, exif=name + data),
        "TIFF": encoded(RGB, "TIFF", tiffinfo={0x0112: orientation}),
        "BigTIFF": tiff([pixels.tobytes()], big=True, tags={0x0112: [orientation]}),
    }
    if features.check("avif"):
        files["AVIF"] = encoded(RGB, "AVIF", quality=95, exif=name + data)
    return files


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_orientation_is_found_wherever_a_file_keeps_it(orientation: int, tmp_path: Path) -> None:
    files = oriented(orientation)
    size = (W, H) if orientation >= 5 else (H, W)
    images = load(tmp_path, files, transforms=[CenterCrop(size)])
    for (name, content), image in zip(files.items(), images, strict=True):
        assert image is not None, name
        difference = np.abs(image.astype(int) - expected(content))
        assert difference.max() <= (5 if name == "AVIF" else 3), f"{name}: {difference.max()}"


def test_what_pillow_does_not_read_is_read(tmp_path: Path) -> None:
    files = {
        "PAM": (pam(), pixels),
        "big-endian BigTIFF": (tiff(rows, big=True, order=">", tags={278: [10]}), pixels),
        "JPEG without its end marker": (jpeg()[:-2], expected(jpeg())),
        "progressive JPEG without its end marker": (
            jpeg(progressive=True)[:-2],
            expected(jpeg(progressive=True)),
        ),
        "JPEG without half of its end marker": (jpeg()[:-1], expected(jpeg())),
    }
    images = load(tmp_path, {name: content for name, (content, _) in files.items()})
    for (name, (_, right)), image in zip(files.items(), images, strict=True):
        assert image is not None, name
        assert np.abs(image.astype(int) - right).max() <= 3, name


def test_of_sixteen_bits_the_upper_eight_are_taken_in_every_format(tmp_path: Path) -> None:
    gray = Image.fromarray(UPPER)
    upper = [np.ascontiguousarray(UPPER.astype(order)).tobytes() for order in ("<u2", ">u2")]
    files = {
        "PNG": encoded(gray, "PNG"),
        "TIFF": encoded(gray, "TIFF"),
        "TIFF, LZW with differences": encoded(gray, "TIFF", compression="tiff_lzw", tiffinfo={317: 2}),
        "big-endian TIFF": tiff([upper[1]], order=">", tags={258: [16], 262: [1], 277: [1]}),
        "PGM": b"P5 %d %d 65535\n" % (W, H) + upper[1],
    }
    for name, image in zip(files, load(tmp_path, files), strict=True):
        assert image is not None, name
        assert np.array_equal(image[:, :, 0], (UPPER >> 8).astype(np.uint8)), name


def cut(content: bytes, share: float = 0.6) -> bytes:
    return content[: int(len(content) * share)]


CUT: dict[str, Callable[[], bytes]] = {
    "JPEG": lambda: cut(jpeg()),
    "JPEG with an end marker": lambda: cut(jpeg()) + b"\xff\xd9",
    "JPEG with an end marker and more": lambda: cut(jpeg()) + b"\xff\xd9 more",
    "progressive JPEG": lambda: cut(jpeg(progressive=True), 0.9),
    "JPEG with restarts": lambda: cut(jpeg(restart_marker_rows=1)),
    "JPEG with restarts and an end marker": lambda: cut(jpeg(restart_marker_rows=1)) + b"\xff\xd9",
    "PNG": lambda: cut(encoded(RGB, "PNG")),
    "interlaced PNG": lambda: cut(interlaced_png(pixels)),
    "GIF": lambda: cut(encoded(RGB.quantize(64), "GIF"), 0.7),
    "TIFF": lambda: cut(encoded(RGB, "TIFF")),
    "TIFF in strips": lambda: cut(encoded(RGB, "TIFF", tiffinfo={278: 10})),
}


def test_a_picture_that_is_not_all_there_is_a_bad_record_whatever_the_crop(tmp_path: Path) -> None:
    files = {name: make() for name, make in CUT.items()}
    for at, chain in enumerate([[CenterCrop((H, W))], [CenterCrop(8)], [RandomResizedCrop(8, (0.01, 0.02))]]):
        images = load(tmp_path / str(at), files, transforms=chain)
        assert [name for name, image in zip(files, images, strict=True) if image is not None] == []


def test_what_is_there_of_a_picture_can_be_asked_for(tmp_path: Path) -> None:
    files = {name: make() for name, make in CUT.items()}
    for (name, content), image in zip(files.items(), load(tmp_path, files, truncated="fill"), strict=True):
        assert image is not None, name
        if "interlaced" in name or "progressive" in name:
            continue
        # The upper quarter is all there.
        whole = RGB.quantize(64).convert("RGB") if name == "GIF" else RGB
        difference = np.abs(image[: H // 4].astype(int) - np.asarray(whole)[: H // 4])
        assert difference.mean() < 8, f"{name}: {difference.mean():.2f} from {len(content)} bytes"


def test_of_a_cut_tiff_without_compression_pillow_fills_the_same_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures = [RGB, GRAY, RGB.quantize(50), RGB.convert("CMYK"), BLACK_AND_WHITE]
    whole = [encoded(picture, "TIFF") for picture in pictures]
    assert all(int.from_bytes(content[4:8], "little") == 8 for content in whole), "the pixels come last"
    files = {
        f"{at}, {share}": cut(whole[at], share) for at in range(len(whole)) for share in (0.7, 0.8, 0.97)
    }
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    for (name, content), image in zip(files.items(), load(tmp_path, files, truncated="fill"), strict=True):
        assert image is not None, name
        assert np.abs(image.astype(int) - expected(content)).max() <= 1, name


def test_a_cut_file_that_cannot_be_filled_is_refused_with_no_promise(tmp_path: Path) -> None:
    files = {
        "TIFF": cut(tiff_with_pixels_last(zlib.compress(GRAY.tobytes()), compression=8), 0.9),
        "WebP": cut(encoded(RGB, "WEBP")),
    }
    if features.check("avif"):
        files["AVIF"] = cut(encoded(RGB, "AVIF"), 0.9)
    for name, content in files.items():
        message = refusal(tmp_path / name, content, truncated="fill")
        assert name in message and "truncated=" not in message, message


def test_the_refusal_of_a_cut_file_says_what_can_be_done(tmp_path: Path) -> None:
    assert 'truncated="fill"' in refusal(tmp_path, cut(jpeg()))


UNSUPPORTED: dict[str, tuple[bytes, list[str]]] = {
    "HEIC": (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", ["HEIC images are not decoded", "heif-convert"]),
    "JPEG XL": (b"\xff\x0a" + bytes(99), ["JPEG XL images are not decoded", "djxl"]),
    "JPEG 2000": (b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(99), ["JPEG 2000 images are not decoded", "magick"]),
    "ICO": (encoded(RGB, "ICO"), ["ICO images are not decoded", "magick"]),
    "TGA": (encoded(RGB, "TGA"), ["TGA images are not decoded", "magick"]),
    "SVG": (b'<svg xmlns="http://www.w3.org/2000/svg"/>', ["SVG images are not decoded", "rsvg-convert"]),
    "PDF": (encoded(RGB, "PDF"), ["PDF document", "pdftoppm"]),
    "HTML": (b"<!DOCTYPE html><html>", ["HTML page", "download"]),
    "float TIFF": (
        encoded(Image.fromarray(np.zeros((H, W), np.float32)), "TIFF"),
        ["32-bit float samples", "magick"],
    ),
    "32-bit TIFF": (encoded(Image.fromarray(np.zeros((H, W), np.int32)), "TIFF"), ["32-bit", "magick"]),
}


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_a_format_that_is_not_decoded_is_named_with_the_remedy(name: str, tmp_path: Path) -> None:
    content, words = UNSUPPORTED[name]
    message = refusal(tmp_path, content)
    for word in words:
        assert word in message, message


def test_no_record_shows_what_came_before_it(tmp_path: Path) -> None:
    """Every kind of file among all others, by one thread and by eight: pixels and verdict are the same each time."""
    menu = {name: make() for name, make in (EXACT | ALIKE | CUT).items()}
    menu |= {
        "no quantisation tables": without_segments(jpeg(), 0xDB),
        "no tables": without_segments(jpeg(), 0xDB, 0xC4),
        "optimised without tables": without_segments(jpeg(optimize=True), 0xC4),
        **{name: content for name, (content, _) in UNSUPPORTED.items()},
    }
    if features.check("avif"):
        menu["AVIF"] = encoded(RGB, "AVIF")
        menu["AVIF, cut"] = cut(menu["AVIF"])
    draw = np.random.default_rng(11)
    names = [name for turn in range(6) for name in draw.permutation(list(menu))]
    many = {str(at): menu[name] for at, name in enumerate(names)}
    first: dict[str, bytes | None] = {}
    for threads in (1, 8):
        images = load(tmp_path / str(threads), many, num_workers=threads)
        for name, image in zip(names, images, strict=True):
            found = None if image is None else image.tobytes()
            assert first.setdefault(name, found) == found, f"{name} with {threads} threads"
