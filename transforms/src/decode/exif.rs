//! The one thing of EXIF that changes pixels: the orientation.

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
    symmetry(jpeg_value(header).unwrap_or(1))
}

fn jpeg_value(header: &[u8]) -> Option<u16> {
    let mut at = 2;
    loop {
        // Fill bytes may stand before a marker.
        while *header.get(at)? == 0xFF && *header.get(at + 1)? == 0xFF {
            at += 1;
        }
        if header[at] != 0xFF {
            return None;
        }
        let marker = *header.get(at + 1)?;
        let length = usize::from(u16::from_be_bytes(header.get(at + 2..at + 4)?.try_into().ok()?));
        let body = header.get(at + 4..at + 2 + length)?;
        if marker == 0xE1
            && let Some(tiff) = body.strip_prefix(b"Exif\0\0")
        {
            return tiff_value(tiff);
        }
        if marker == 0xDA {
            return None;
        }
        at += 2 + length;
    }
}

/// Tag 0x0112 of the first directory of a TIFF structure.
fn tiff_value(tiff: &[u8]) -> Option<u16> {
    let big = match tiff.get(..4)? {
        b"MM\0*" => true,
        b"II*\0" => false,
        _ => return None,
    };
    let u16_at = |at: usize| -> Option<u16> {
        let bytes = tiff.get(at..at.checked_add(2)?)?.try_into().ok()?;
        Some(if big { u16::from_be_bytes(bytes) } else { u16::from_le_bytes(bytes) })
    };
    let offset = tiff.get(4..8)?.try_into().ok()?;
    let offset = if big { u32::from_be_bytes(offset) } else { u32::from_le_bytes(offset) } as usize;
    let entries = usize::from(u16_at(offset)?);
    for entry in 0..entries {
        let at = offset.checked_add(2 + 12 * entry)?;
        if u16_at(at)? == 0x0112 {
            const SHORT: u16 = 3;
            return (u16_at(at + 2)? == SHORT).then(|| u16_at(at + 8)).flatten();
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

    #[test]
    fn reads_both_byte_orders_and_survives_every_truncation() {
        for big in [false, true] {
            for orientation in 1..=8 {
                let mut header = vec![0xFF, 0xD8, 0xFF, 0xE0, 0, 4, 1, 2];
                header.extend(segment(orientation, big));
                assert_eq!(jpeg_value(&header), Some(orientation));
                for end in 0..header.len() {
                    let value = jpeg_value(&header[..end]);
                    assert!(value.is_none() || value == Some(orientation));
                }
            }
        }
    }
}
