//! The segments of a JPEG header, found as libjpeg finds them: whatever stands between two segments is passed over.

/// The start of a scan, the last segment of a header.
pub(crate) const SCAN: u8 = 0xDA;

/// Marker and content of each segment of `header`, which begins with a JPEG's first byte.
pub(crate) fn segments(header: &[u8]) -> impl Iterator<Item = (u8, &[u8])> {
    let mut at = 2;
    std::iter::from_fn(move || {
        loop {
            while *header.get(at)? != 0xFF {
                at += 1;
            }
            while *header.get(at)? == 0xFF {
                at += 1;
            }
            let marker = header[at];
            at += 1;
            // A zero is no marker; those of restarts, of the start and TEM have no content.
            if matches!(marker, 0 | 0x01 | 0xD0..=0xD8) {
                continue;
            }
            let length = usize::from(u16::from_be_bytes(header.get(at..at + 2)?.try_into().ok()?));
            let body = header.get(at + 2..at + length)?;
            at += length;
            return Some((marker, body));
        }
    })
}

/// The marker of the frame, which says how it is coded.
pub(crate) fn frame(header: &[u8]) -> Option<u8> {
    segments(header).map(|(marker, _)| marker).find(|marker| is_frame(*marker))
}

pub(crate) fn is_frame(marker: u8) -> bool {
    (0xC0..=0xCF).contains(&marker) && !matches!(marker, 0xC4 | 0xC8 | 0xCC)
}
