//! Each format's numbers, from files whose samples are known.

use std::io::Write;

use image::{ExtendedColorType, ImageFormat};
use turbojpeg_sys as tj;

use super::*;
use crate::decode::Decoders;
use crate::decode::gif::tests::Picture as GifPicture;
use crate::decode::jpeg::tests::{PLAIN, Style, encode, encode_as};
use crate::geometry::Rect;
use crate::limits::Limits;
use crate::tests::save;

/// The numbers of a rectangle of a mask, or of all of it.
fn part(bytes: &[u8], wide: bool, rect: Option<Rect>) -> Result<Vec<u16>, SampleError> {
    let (mut decoders, mut image, mut out) = (Decoders::default(), Image::default(), Image::default());
    let opened = decoders.open(bytes, &Limits::default(), Want::Values { wide })?;
    let (w, h) = opened.stored_size();
    let at = opened.decode(rect.unwrap_or(Rect::sized(w, h)), &mut image)?;
    image.view().crop(at).copy_to(&mut out);
    Ok(out.pixels().iter().map(|pixel| value(*pixel)).collect())
}

fn all(bytes: &[u8]) -> Vec<u16> {
    part(bytes, true, None).unwrap()
}

/// Samples of `bits` each in rows, each row filled up to whole bytes, those of 16 bits with the upper byte first.
fn packed(rows: &[Vec<u16>], bits: usize) -> Vec<Vec<u8>> {
    let row = |row: &Vec<u16>| {
        let mut out = vec![0u8; (row.len() * bits).div_ceil(8)];
        for (at, sample) in row.iter().enumerate() {
            for bit in 0..bits {
                let place = at * bits + bit;
                out[place / 8] |= ((sample >> (bits - 1 - bit) & 1) as u8) << (7 - place % 8);
            }
        }
        out
    };
    rows.iter().map(row).collect()
}

/// A PNG of these samples (`channels` together), with a palette of grays that are not their indices where it has one.
fn png(color: u8, channels: usize, bits: usize, interlaced: bool, rows: &[Vec<u16>]) -> Vec<u8> {
    let (w, h) = (rows[0].len() / channels, rows.len());
    let passes: &[[usize; 4]] = if interlaced {
        &[[0, 8, 0, 8], [4, 8, 0, 8], [0, 4, 4, 8], [2, 4, 0, 4], [0, 2, 2, 4], [1, 2, 0, 2], [0, 1, 1, 2]]
    } else {
        &[[0, 1, 0, 1]]
    };
    let mut data = Vec::new();
    for &[x, dx, y, dy] in passes {
        let columns: Vec<usize> = (x..w).step_by(dx).collect();
        let of_pass = |y: usize| {
            columns
                .iter()
                .flat_map(|x| rows[y][x * channels..(x + 1) * channels].to_vec())
                .collect::<Vec<_>>()
        };
        let pass: Vec<_> = (y..h).step_by(dy).filter(|_| !columns.is_empty()).map(of_pass).collect();
        for row in packed(&pass, bits) {
            data.push(0);
            data.extend(row);
        }
    }
    let mut zip = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::default());
    zip.write_all(&data).unwrap();
    let mut out = b"\x89PNG\r\n\x1a\n".to_vec();
    let mut chunk = |kind: &[u8; 4], data: &[u8]| {
        let body = [kind, data].concat();
        let mut sum = flate2::Crc::new();
        sum.update(&body);
        out.extend((data.len() as u32).to_be_bytes());
        out.extend(body);
        out.extend(sum.sum().to_be_bytes());
    };
    let size = [(w as u32).to_be_bytes(), (h as u32).to_be_bytes()].concat();
    chunk(b"IHDR", &[&size[..], &[bits as u8, color, 0, 0, u8::from(interlaced)]].concat());
    if color == 3 {
        let palette: Vec<u8> = (0..1usize << bits).flat_map(|index| [200 - index as u8 / 2; 3]).collect();
        chunk(b"PLTE", &palette);
        // Void is often made transparent.
        chunk(b"tRNS", &[0]);
    }
    chunk(b"IDAT", &zip.finish().unwrap());
    chunk(b"IEND", &[]);
    out
}

/// Samples that differ everywhere, of at most `bits`.
fn samples(w: usize, h: usize, bits: usize) -> Vec<Vec<u16>> {
    let last = ((1u32 << bits) - 1) as usize;
    (0..h).map(|y| (0..w).map(|x| ((x * 7 + y * 13 + x * y * 1021) & last) as u16).collect()).collect()
}

/// What samples mean: indices and one bit and eight and more as they are, gray of two and four bits spread.
fn meant(rows: &[Vec<u16>], bits: usize, palette: bool) -> Vec<u16> {
    let factor = match bits {
        2 if !palette => 85,
        4 if !palette => 17,
        _ => 1,
    };
    rows.concat().iter().map(|sample| sample * factor).collect()
}

#[test]
fn a_png_gives_indices_and_levels_at_every_depth() {
    for (color, depths) in [(0, &[1, 2, 4, 8, 16][..]), (3, &[1, 2, 4, 8])] {
        for &bits in depths {
            for interlaced in [false, true] {
                for (w, h) in [(1, 1), (13, 9), (16, 5)] {
                    let rows = samples(w, h, bits);
                    let found = all(&png(color, 1, bits, interlaced, &rows));
                    assert_eq!(
                        found,
                        meant(&rows, bits, color == 3),
                        "color {color}, {bits} bits, {interlaced}"
                    );
                }
            }
        }
    }
    for bits in [8, 16] {
        let rows = samples(13, 9, bits);
        let with = |channels: usize, gray: usize| -> Vec<Vec<u16>> {
            let pixel = |v: &u16| (0..channels).map(|c| if c < gray { *v } else { 9 }).collect::<Vec<_>>();
            rows.iter().map(|row| row.iter().flat_map(pixel).collect()).collect()
        };
        for (color, channels, gray) in [(4, 2, 1), (2, 3, 3), (6, 4, 3)] {
            assert_eq!(all(&png(color, channels, bits, false, &with(channels, gray))), rows.concat());
        }
    }
}

#[test]
fn what_is_no_mask_is_refused_with_a_remedy() {
    let mut colors = vec![vec![5u16; 12]; 3];
    colors[1][3] = 6;
    for bytes in [
        png(2, 3, 8, false, &colors),
        png(2, 3, 16, false, &colors),
        save(&[1, 2, 3], 1, 1, ExtendedColorType::Rgb8, ImageFormat::WebP),
        encode(16, 16, 1, PLAIN),
    ] {
        let error = part(&bytes, true, None).unwrap_err().to_string();
        assert!(error.contains("has colours") && error.contains("palette or gray PNG"), "{error}");
    }
    let error = part(&png(2, 3, 8, false, &colors), true, None).unwrap_err().to_string();
    assert!(error.contains("(6, 5, 5) at column 1, row 1"), "{error}");
    let wide = png(0, 1, 16, false, &[vec![255, 7], vec![8, 256]]);
    assert_eq!(all(&wide), [255, 7, 8, 256]);
    let error = part(&wide, false, None).unwrap_err().to_string();
    assert!(error.contains("256 at column 1, row 1") && error.contains("dtype \"u16\""), "{error}");
}

#[test]
fn a_gray_jpeg_gives_its_levels_in_any_part_and_one_in_colour_is_judged_as_a_whole() {
    let gray = encode(60, 40, 3, Style { sampling: tj::TJSAMP_TJSAMP_GRAY, ..PLAIN });
    let whole = all(&gray);
    let rect = Rect { x: 21, y: 10, w: 20, h: 9 };
    let cut = |whole: &[u16]| -> Vec<u16> {
        (rect.y..rect.y + rect.h).flat_map(|y| whole[y * 60 + rect.x..][..rect.w].to_vec()).collect()
    };
    assert_eq!(part(&gray, false, Some(rect)).unwrap(), cut(&whole));
    // Three components without colour; then with one coloured corner far from the part.
    let mut pixels: Vec<u8> = (0..60 * 40).flat_map(|at| [(at % 60 * 4) as u8; 3]).collect();
    let style = Style { sampling: tj::TJSAMP_TJSAMP_444, ..PLAIN };
    let three = encode_as(&pixels, 60, 40, tj::TJPF_TJPF_RGB, style, None);
    assert_eq!(part(&three, false, Some(rect)).unwrap(), cut(&all(&three)));
    pixels[..24].copy_from_slice(&[255, 0, 0].repeat(8));
    let corner = encode_as(&pixels, 60, 40, tj::TJPF_TJPF_RGB, style, None);
    assert!(part(&corner, false, Some(rect)).is_err());
}

#[test]
fn a_gif_gives_indices() {
    let palette = vec![[0, 0, 0], [9, 9, 9], [0, 0, 0], [1, 2, 3]];
    let picture = GifPicture { screen: (8, 6), place: [2, 1, 5, 4], palette, local: false, interlaced: true };
    let inside = |x: usize, y: usize| (2..7).contains(&x) && (1..5).contains(&y);
    let expected: Vec<u16> = (0..6usize)
        .flat_map(|y| (0..8usize).map(move |x| (x, y)))
        .map(|(x, y)| if inside(x, y) { ((x - 2) * 3 + (y - 1) * (y - 1)) as u16 & 15 } else { 0 })
        .collect();
    assert_eq!(all(&picture.plain()), expected);
}

#[test]
fn a_bmp_gives_indices_also_those_beyond_its_palette() {
    for bits in [1, 4, 8] {
        for header in [12u32, 40, 108] {
            let rows = samples(13, 5, bits);
            let core = header == 12;
            // Shorter than what the indices reach: 255 stands for void in many masks of 21 classes.
            let colors = if core { 1 << bits } else { 2 };
            let palette: Vec<u8> =
                (0..colors).flat_map(|_| [9u8, 8, 7, 0][..if core { 3 } else { 4 }].to_vec()).collect();
            let offset = 14 + header + palette.len() as u32;
            let mut out = [&b"BM\0\0\0\0\0\0\0\0"[..], &offset.to_le_bytes(), &header.to_le_bytes()].concat();
            if core {
                out.extend([13u16, 5, 1, bits as u16].map(u16::to_le_bytes).concat());
            } else {
                out.extend([13u32, 5].map(u32::to_le_bytes).concat());
                out.extend([1u16, bits as u16].map(u16::to_le_bytes).concat());
                out.extend([0u32, 0, 0, 0, colors, 0].map(u32::to_le_bytes).concat());
                out.resize(14 + header as usize, 0);
            }
            out.extend(palette);
            for mut row in packed(&rows, bits).into_iter().rev() {
                row.resize(row.len().next_multiple_of(4), 0);
                out.extend(row);
            }
            assert_eq!(all(&out), rows.concat(), "{bits} bits, header of {header}");
        }
    }
}

/// A TIFF in one strip: photometric interpretation, bits and samples of a pixel.
fn tiff(photometric: u32, bits: u32, channels: u32, big: bool, w: u32, data: &[Vec<u8>]) -> Vec<u8> {
    let u16_of = |v: u16| if big { v.to_be_bytes() } else { v.to_le_bytes() };
    let u32_of = |v: u32| if big { v.to_be_bytes() } else { v.to_le_bytes() };
    let strip = data.concat();
    let count = 11u16;
    let behind = 8 + 2 + u32::from(count) * 12 + 4;
    let colors = if photometric == 3 { 3 << bits } else { 1 };
    let entries: [(u16, u16, u32, u32); 11] = [
        (256, 4, 1, w),
        (257, 4, 1, data.len() as u32),
        (258, 4, 1, bits),
        (259, 4, 1, 1),
        (262, 4, 1, photometric),
        (273, 4, 1, behind + 2 * colors),
        (277, 4, 1, channels),
        (278, 4, 1, data.len() as u32),
        (279, 4, 1, strip.len() as u32),
        (284, 4, 1, 1),
        // One number of a colour map that is not used lies in its entry; none reads it.
        (320, 3, colors, behind),
    ];
    let mut out = if big { b"MM\0*".to_vec() } else { b"II*\0".to_vec() };
    out.extend(u32_of(8));
    out.extend(u16_of(count));
    for (tag, kind, count, value) in entries {
        out.extend(u16_of(tag));
        out.extend(u16_of(kind));
        out.extend(u32_of(count));
        out.extend(u32_of(value));
    }
    out.extend([0; 4]);
    out.resize(out.len() + 2 * colors as usize, 77);
    out.extend(strip);
    out
}

#[test]
fn a_tiff_gives_indices_and_levels_at_every_depth_and_byte_order() {
    for big in [false, true] {
        for bits in [1, 2, 4, 8, 12, 16] {
            let rows = samples(13, 5, bits);
            let mut data = packed(&rows, bits);
            if bits == 16 && !big {
                data.iter_mut()
                    .for_each(|row| row.as_chunks_mut::<2>().0.iter_mut().for_each(|pair| pair.reverse()));
            }
            let file = |photometric| tiff(photometric, bits as u32, 1, big, 13, &data);
            assert_eq!(all(&file(1)), meant(&rows, bits, false), "{bits} bits");
            if bits <= 8 {
                assert_eq!(all(&file(3)), meant(&rows, bits, true), "{bits} bits, palette");
                let last = if bits == 1 { 1 } else { 255 };
                let inverted: Vec<_> = meant(&rows, bits, false).iter().map(|v| last - v).collect();
                assert_eq!(all(&file(0)), inverted, "{bits} bits, 0 is white");
            } else {
                assert_eq!(all(&file(0)), meant(&rows, bits, false), "{bits} bits, 0 is white");
            }
        }
        let rgb: Vec<Vec<u8>> = vec![vec![4, 4, 4, 250, 250, 250]];
        assert_eq!(all(&tiff(2, 8, 3, big, 2, &rgb)), [4, 250]);
    }
}

#[test]
fn pnm_and_webp_give_levels_and_a_bitmap_0_and_1() {
    assert_eq!(all(b"P4 10 1\n\x40\x80"), [1, 0, 1, 1, 1, 1, 1, 1, 0, 1]);
    assert_eq!(all(b"P1 3 1\n0 1 0\n"), [1, 0, 1]);
    assert_eq!(all(b"P5 3 1 255\n\x00\x07\xff"), [0, 7, 255]);
    assert_eq!(all(b"P5 2 1 65535\n\x01\x02\xff\xff"), [0x102, 0xFFFF]);
    assert_eq!(all(b"P6 2 1 255\n\x07\x07\x07\x09\x09\x09"), [7, 9]);
    let webp = save(&[7, 7, 7, 200, 200, 200], 2, 1, ExtendedColorType::Rgb8, ImageFormat::WebP);
    assert_eq!(all(&webp), [7, 200]);
}
