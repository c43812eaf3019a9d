//! The one thing of EXIF that changes pixels: the orientation.

use super::markers;
use crate::geometry::Symmetry;

/// The symmetry that brings stored pixels upright for an EXIF orientation value; 1 and anything unknown change
/// nothing, as in every viewer.
pub(crate) fn symmetry(orientation: u16) -> Symmetry {
    match orientation {
        2 => Symmetry::FLIP_X,
        3 => Symmetry { transpose: false, flip_x: true, flip_y: true },
        4 => Symmetry::FLIP_Y,
        5 => Symmetry { transpose: true, flip_x: false, flip_y: false },
        6 => Symmetry { transpose: true, flip_x: true, flip_y: false },
        7 => Symmetry { transpose: true, flip_x: true, flip_y: true },
        8 => Symmetry { transpose: true, flip_x: false, flip_y: true },
        _ => Symmetry::IDENTITY,
    }
}

/// The orientation in the header of a JPEG file, which ends where its first scan's data begins. Broken EXIF data is
/// no error: the picture is whole without it.
pub(crate) fn of_jpeg(header: &[u8]) -> Symmetry {
    let mut xmp = None;
    for (marker, body) in markers::segments(header).filter(|(marker, _)| *marker == 0xE1) {
        debug_assert_eq!(marker, 0xE1);
        if body.starts_with(EXIF_NAME) {
            if let Some(value) = value(body) {
                return symmetry(value);
            }
        } else if let Some(packet) = body.strip_prefix(b"http://ns.adobe.com/xap/1.0/\0") {
            xmp = xmp.or_else(|| of_xmp(packet));
        }
    }
    symmetry(xmp.unwrap_or(1))
}

const EXIF_NAME: &[u8] = b"Exif\0\0";

/// The orientation that EXIF data or, where these say nothing of it, XMP data give: Pillow's `exif_transpose` reads
/// them in this order.
pub(crate) fn of_metadata(exif: Option<&[u8]>, xmp: Option<&[u8]>) -> Symmetry {
    symmetry(exif.and_then(value).or_else(|| xmp.and_then(of_xmp)).unwrap_or(1))
}

/// The orientation in EXIF data, which are a TIFF structure behind a name that may be there or not.
pub(crate) fn value(mut exif: &[u8]) -> Option<u16> {
    while let Some(rest) = exif.strip_prefix(EXIF_NAME) {
        exif = rest;
    }
    tiff_value(exif)
}

/// `tiff:Orientation` in XMP data, as an attribute or an element.
pub(crate) fn of_xmp(packet: &[u8]) -> Option<u16> {
    const NAME: &[u8] = b"tiff:Orientation";
    packet.windows(NAME.len() + 3).find_map(|window| match window.strip_prefix(NAME)? {
        [b'=', b'"' | b'\'', digit @ b'0'..=b'9'] | [b'>', digit @ b'0'..=b'9', _] => {
            Some(u16::from(digit - b'0'))
        }
        _ => None,
    })
}

/// Tag 0x0112 of the first directory of a TIFF structure.
fn tiff_value(tiff: &[u8]) -> Option<u16> {
    let big = match tiff.get(..4)? {
        b"MM\0*" => true,
        b"II*\0" => false,
        _ => return None,
    };
    let bytes = |at: usize| -> Option<[u8; 4]> { tiff.get(at..at.checked_add(4)?)?.try_into().ok() };
    let u16_at = |at: usize| -> Option<u16> {
        let bytes = tiff.get(at..at.checked_add(2)?)?.try_into().ok()?;
        Some(if big { u16::from_be_bytes(bytes) } else { u16::from_le_bytes(bytes) })
    };
    let u32_at = |at: usize| {
        let bytes = bytes(at)?;
        Some(if big { u32::from_be_bytes(bytes) } else { u32::from_le_bytes(bytes) })
    };
    let offset = u32_at(4)? as usize;
    let entries = usize::from(u16_at(offset)?);
    for entry in 0..entries {
        let at = offset.checked_add(2 + 12 * entry)?;
        if u16_at(at)? == 0x0112 {
            // Any whole number, of one byte, two or four.
            return match u16_at(at + 2)? {
                1 | 6 => tiff.get(at + 8).map(|&value| value.into()),
                3 | 8 => u16_at(at + 8),
                4 | 9 => u32_at(at + 8)?.try_into().ok(),
                _ => None,
            };
        }
    }
    None
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// An APP1 segment that says `orientation`.
    pub(crate) fn segment(orientation: u16, big: bool) -> Vec<u8> {
        let mut tiff = Vec::new();
        let short = |v: u16| if big { v.to_be_bytes() } else { v.to_le_bytes() };
        let long = |v: u32| if big { v.to_be_bytes() } else { v.to_le_bytes() };
        tiff.extend(if big { b"MM\0*" } else { b"II*\0" });
        tiff.extend(long(8));
        tiff.extend(short(1));
        tiff.extend(short(0x0112));
        tiff.extend(short(3));
        tiff.extend(long(1));
        tiff.extend(short(orientation));
        tiff.extend([0, 0]);
        tiff.extend(long(0));
        let mut out = vec![0xFF, 0xE1];
        out.extend(((tiff.len() + 8) as u16).to_be_bytes());
        out.extend(b"Exif\0\0");
        out.extend(tiff);
        out
    }

    /// A JPEG header with `segments` before its scan.
    fn header(segments: &[&[u8]]) -> Vec<u8> {
        let mut header = vec![0xFF, 0xD8, 0xFF, 0xE0, 0, 4, 1, 2];
        header.extend(segments.concat());
        header.extend([0xFF, 0xDA, 0, 2]);
        header
    }

    #[test]
    fn reads_both_byte_orders_and_survives_every_truncation() {
        for big in [false, true] {
            for orientation in 1..=8 {
                let header = header(&[&segment(orientation, big)]);
                assert_eq!(of_jpeg(&header), symmetry(orientation));
                for end in 0..header.len() {
                    let found = of_jpeg(&header[..end]);
                    assert!(found == Symmetry::IDENTITY || found == symmetry(orientation));
                }
            }
        }
    }

    #[test]
    fn junk_between_segments_fill_bytes_and_odd_number_types_do_not_hide_the_orientation() {
        let six = segment(6, true);
        for before in [&b"junk"[..], b"\xFF\xFF\xFF", b"\xFF\0", b"\xFF\xD3", b"\xFF\xE1\0\x04ab"] {
            assert_eq!(of_jpeg(&header(&[before, &six])), symmetry(6), "{before:02x?}");
        }
        for (big, kind, value) in [(true, 4, [0, 0, 0, 6]), (false, 4, [6, 0, 0, 0]), (true, 1, [6, 0, 0, 0])]
        {
            let mut odd = segment(1, big);
            let at = odd.len() - 16;
            odd[at + 2..at + 4].copy_from_slice(&if big { [0, kind] } else { [kind, 0] });
            odd[at + 8..at + 12].copy_from_slice(&value);
            assert_eq!(of_jpeg(&header(&[&odd])), symmetry(6), "type {kind}, big {big}");
        }
    }

    #[test]
    fn xmp_speaks_where_exif_is_silent() {
        let xmp = |text: &str| {
            let body = [b"http://ns.adobe.com/xap/1.0/\0", text.as_bytes()].concat();
            [&[0xFF, 0xE1][..], &(body.len() as u16 + 2).to_be_bytes(), &body].concat()
        };
        let attribute = xmp("<rdf:Description tiff:Orientation=\"6\"/>");
        assert_eq!(of_jpeg(&header(&[&attribute])), symmetry(6));
        assert_eq!(of_jpeg(&header(&[&xmp("<tiff:Orientation>8</tiff:Orientation>")])), symmetry(8));
        assert_eq!(of_jpeg(&header(&[&attribute, &segment(3, true)])), symmetry(3));
        assert_eq!(of_jpeg(&header(&[&xmp("tiff:Orientation")])), Symmetry::IDENTITY);
    }
}
