//! Which format bytes are of, by their content; and, for those that are not decoded, what they are and what to do.

use crate::error::SampleError;

/// A format that is decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    Jpeg,
    Png,
    Gif,
    Bmp,
    Tiff,
    WebP,
    Pnm,
    Avif,
}

impl Format {
    /// The format of `bytes`, or why they are none.
    pub(crate) fn of(bytes: &[u8]) -> Result<Self, SampleError> {
        match bytes {
            [0xFF, 0xD8, 0xFF, ..] => Ok(Format::Jpeg),
            [0x89, b'P', b'N', b'G', 0x0D, 0x0A, 0x1A, 0x0A, ..] => Ok(Format::Png),
            [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] => Ok(Format::WebP),
            [b'G', b'I', b'F', b'8', b'7' | b'9', b'a', ..] => Ok(Format::Gif),
            [b'I', b'I', b'*' | b'+', 0, ..] | [b'M', b'M', 0, b'*' | b'+', ..] => Ok(Format::Tiff),
            [b'P', b'1'..=b'7', b' ' | b'\n' | b'\r' | b'\t' | b'#', ..] => Ok(Format::Pnm),
            [b'B', b'M', ..] => Ok(Format::Bmp),
            [_, _, _, _, b'f', b't', b'y', b'p', ..] if is_avif(bytes) => Ok(Format::Avif),
            _ => Err(refuse(bytes)),
        }
    }

    /// As people write it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Format::Jpeg => "JPEG",
            Format::Png => "PNG",
            Format::Gif => "GIF",
            Format::Bmp => "BMP",
            Format::Tiff => "TIFF",
            Format::WebP => "WebP",
            Format::Pnm => "PNM",
            Format::Avif => "AVIF",
        }
    }

    /// As file names write it.
    pub(crate) fn id(self) -> &'static str {
        match self {
            Format::Jpeg => "jpeg",
            Format::Png => "png",
            Format::Gif => "gif",
            Format::Bmp => "bmp",
            Format::Tiff => "tiff",
            Format::WebP => "webp",
            Format::Pnm => "pnm",
            Format::Avif => "avif",
        }
    }
}

/// The brands of a file of ISO's media format: the major one, then those it is compatible with.
fn brands(bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    let length = bytes.first_chunk::<4>().map_or(0, |length| u32::from_be_bytes(*length) as usize);
    let body = bytes.get(8..length.min(bytes.len())).unwrap_or_default();
    // Between the major brand and the others is a version number.
    body.chunks_exact(4).enumerate().filter(|(i, _)| *i != 1).map(|(_, brand)| brand)
}

fn is_avif(bytes: &[u8]) -> bool {
    brands(bytes).any(|brand| brand == b"avif" || brand == b"avis")
}

/// How a format is called and converted.
const IMAGE_MAGICK: &str = "convert it to JPEG or PNG, for example with `magick in OUT.png`";

/// Other image formats by their first bytes.
const IMAGES: [(&[u8], &str, &str); 22] = [
    (&[0xFF, 0x0A], "JPEG XL", "convert it to JPEG or PNG, for example with `djxl in.jxl out.png`"),
    (
        b"\0\0\0\x0CJXL \r\n\x87\n",
        "JPEG XL",
        "convert it to JPEG or PNG, for example with `djxl in.jxl out.png`",
    ),
    (b"\0\0\0\x0CjP  \r\n\x87\n", "JPEG 2000", IMAGE_MAGICK),
    (&[0xFF, 0x4F, 0xFF, 0x51], "JPEG 2000", IMAGE_MAGICK),
    (b"II\xBC\x01", "JPEG XR", IMAGE_MAGICK),
    (&[0, 0, 1, 0], "ICO", IMAGE_MAGICK),
    (&[0, 0, 2, 0], "CUR", IMAGE_MAGICK),
    (b"icns", "ICNS", IMAGE_MAGICK),
    (b"8BPS", "Photoshop (PSD)", IMAGE_MAGICK),
    (b"gimp xcf ", "GIMP (XCF)", IMAGE_MAGICK),
    (b"DDS ", "DDS", IMAGE_MAGICK),
    (b"qoif", "QOI", IMAGE_MAGICK),
    (b"farbfeld", "farbfeld", IMAGE_MAGICK),
    (b"FLIF", "FLIF", IMAGE_MAGICK),
    (b"BPG\xFB", "BPG", IMAGE_MAGICK),
    (&[0x01, 0xDA], "SGI", IMAGE_MAGICK),
    (&[0x0A, 0x05, 0x01], "PCX", IMAGE_MAGICK),
    (&[0x59, 0xA6, 0x6A, 0x95], "Sun raster", IMAGE_MAGICK),
    (&[0x76, 0x2F, 0x31, 0x01], "OpenEXR", IMAGE_MAGICK),
    (b"#?RADIANCE", "Radiance HDR", IMAGE_MAGICK),
    (b"SIMPLE  =", "FITS", "convert it to 8-bit PNG, for example with astropy and Pillow"),
    (b"/* XPM */", "XPM", IMAGE_MAGICK),
];

/// What is no image at all, but often found in its place.
const OTHERS: [(&[u8], &str); 13] = [
    (b"%PDF", "a PDF document; render its pages to images, for example with `pdftoppm -png`"),
    (b"%!PS", "a PostScript document; render it to an image, for example with `magick in OUT.png`"),
    (b"PK\x03\x04", "a ZIP archive; unpack it first"),
    (b"\x1F\x8B", "gzip data; unpack them first"),
    (b"7z\xBC\xAF\x27\x1C", "a 7z archive; unpack it first"),
    (b"Rar!", "a RAR archive; unpack it first"),
    (b"\x93NUMPY", "a NumPy array; open the file itself as the source instead of its folder"),
    (b"\x89HDF", "an HDF5 file; open the file itself as the source instead of its folder"),
    (b"\x1A\x45\xDF\xA3", "a Matroska or WebM video; extract its frames first, for example with ffmpeg"),
    (b"RIFF", "a RIFF file that is no WebP image, such as an AVI video or a WAV sound"),
    (b"version https://git-lfs", "a Git LFS pointer; fetch the files with `git lfs pull`"),
    (b"{", "JSON text, perhaps the answer of a server to a failed download; fetch the file again"),
    (b"Pf", "a float PNM image (PFM); convert it to 8 or 16 bit integers"),
];

/// Why `bytes`, which are of no format that is decoded, are refused.
fn refuse(bytes: &[u8]) -> SampleError {
    let unsupported = |name: &str, remedy: &str| {
        SampleError::unsupported(format!("{name} images are not decoded; {remedy}"))
    };
    if bytes.get(4..8) == Some(b"ftyp") {
        let heif = [&b"heic"[..], b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"];
        return if brands(bytes).any(|brand| heif.contains(&brand)) {
            unsupported("HEIC", "convert it to JPEG or PNG, for example with `heif-convert in.heic out.jpg`")
        } else {
            SampleError::malformed(
                "not an image: an MP4 or QuickTime video; extract its frames first, for example with ffmpeg",
            )
        };
    }
    if bytes.get(128..132) == Some(b"DICM") {
        return unsupported("DICOM", "convert it to PNG, for example with `dcm2img`");
    }
    let uncompressed_or_packed = matches!(bytes, [_, 0, 2 | 3 | 10 | 11, 0, 0, 0, 0, ..]);
    if bytes.ends_with(b"TRUEVISION-XFILE.\0") || uncompressed_or_packed {
        return unsupported("TGA", IMAGE_MAGICK);
    }
    if let Some((_, name, remedy)) = IMAGES.iter().find(|(magic, ..)| bytes.starts_with(magic)) {
        return unsupported(name, remedy);
    }
    let text = bytes.trim_ascii_start();
    let text = text.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(text);
    let head = text[..text.len().min(512)].to_ascii_lowercase();
    let holds = |word: &[u8]| head.windows(word.len()).any(|window| window == word);
    if head.starts_with(b"<svg") || head.starts_with(b"<?xml") && holds(b"<svg") {
        return unsupported("SVG", "render it to PNG, for example with `rsvg-convert in.svg -o out.png`");
    }
    if head.starts_with(b"<!doctype html") || head.starts_with(b"<html") || holds(b"<head") {
        return SampleError::malformed(
            "not an image: an HTML page, perhaps the answer of a server to a failed download; fetch the file again",
        );
    }
    if let Some((_, what)) = OTHERS.iter().find(|(magic, _)| text.starts_with(magic)) {
        return SampleError::malformed(format!("not an image: {what}"));
    }
    SampleError::malformed(format!(
        "not an image format fuelrail knows (starts with \"{}\")",
        bytes[..bytes.len().min(12)].escape_ascii()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::SampleErrorKind;

    #[test]
    fn a_format_that_is_not_decoded_is_named_with_the_remedy() {
        let brand = |brand: &[u8]| [b"\0\0\0\x18ftyp", brand, b"\0\0\0\0mif1", b"miaf"].concat();
        let tga = [&[0; 40][..], b"TRUEVISION-XFILE.\0"].concat();
        for (bytes, words) in [
            (brand(b"heic"), ["HEIC images", "heif-convert"]),
            (brand(b"mif1"), ["HEIC images", "heif-convert"]),
            (b"\0\0\0\x10ftypisom\0\0\0\0".to_vec(), ["video", "ffmpeg"]),
            (b"\xFF\x0Awhatever".to_vec(), ["JPEG XL images", "djxl"]),
            (b"\xFF\x4F\xFF\x51\0".to_vec(), ["JPEG 2000 images", "magick"]),
            (b"\0\0\x01\0\x01\0".to_vec(), ["ICO images", "magick"]),
            (b"8BPS\0\x01".to_vec(), ["PSD", "magick"]),
            (tga, ["TGA images", "magick"]),
            (b"<?xml version=\"1.0\"?>\n<svg>".to_vec(), ["SVG images", "rsvg-convert"]),
            (b"\n <!DOCTYPE HTML>".to_vec(), ["HTML page", "fetch"]),
            (b"%PDF-1.7".to_vec(), ["PDF", "pdftoppm"]),
            (b"version https://git-lfs.github.com/spec/v1".to_vec(), ["Git LFS", "git lfs pull"]),
        ] {
            let error = Format::of(&bytes).unwrap_err();
            for word in words {
                assert!(error.message().contains(word), "{error} does not say {word}");
            }
            let expected = if error.message().contains("images are not decoded") {
                SampleErrorKind::Unsupported
            } else {
                SampleErrorKind::Malformed
            };
            assert_eq!(error.kind(), expected, "{error}");
        }
        assert_eq!(Format::of(&brand(b"avif")).unwrap(), Format::Avif);
    }
}
