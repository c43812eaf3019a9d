//! JPEG by libjpeg-turbo: the header first, then only the region that the plan needs.
//!
//! Promises:
//! - The pixels of a region are **bit-identical** to the same pixels of a full decode (accurate integer IDCT,
//!   triangle-filter chroma upsampling), for every sampling and for progressive files.
//! - The verdict on a file depends on its bytes and the limits alone, never on the region (but see the next), and
//!   neither pixels nor verdict on what was decoded before: each image has a decoder of its own.
//! - A picture whose data end before its blocks do is malformed, unless [`Truncated::Fill`] takes what is there.
//!   Whether they do is known without decoding what the region leaves out, but for files whose end looks wrong
//!   (`tail.rs`). A rare cut looks right: then a region that reaches what is missing is malformed, and any other has
//!   its pixels. Damaged data inside are no error: libjpeg, and so Pillow, shows them as gray or smeared blocks.
//! - Gray becomes RGB; CMYK and YCCK become RGB the way Pillow does it, taking the inks as inverted (Adobe).
//!
//! Decoding at a fraction of the size (DCT scaling) is not done: it is not what torchvision computes.

// Calls the C shim through raw pointers; every block below says why it is sound.
#![allow(unsafe_code)]

use std::ffi::{CStr, c_char, c_int};
use std::marker::PhantomData;
use std::ptr::NonNull;

// Brings libjpeg-turbo into the link; the shim calls its jpeglib half.
use turbojpeg_sys as _;

use super::{exif, markers, tail};
use crate::error::SampleError;
use crate::geometry::{Image, PIXEL, Rect, Symmetry};
use crate::limits::{Limits, Truncated};

/// Block visits a multi-scan file may cost: about three seconds, where a usual progressive photograph of 100 million
/// pixels has 50 million.
const MAX_BLOCK_VISITS: u64 = 1 << 28;

/// Pixels decoded around the region. At a crop's edge the chroma upsampling has no neighbour and repeats the edge;
/// one chroma sample, two pixels, further in the result no longer depends on it.
const MARGIN: usize = 2;

#[repr(C)]
struct Handle {
    _private: [u8; 0],
}

/// `struct fr_header` of jpeg_shim.c.
#[repr(C)]
#[derive(Default)]
struct RawHeader {
    scan_offset: u64,
    blocks: u64,
    width: u32,
    height: u32,
    components: u32,
    multi_scan: u32,
    cmyk: u32,
}

/// `struct fr_region` of jpeg_shim.c.
#[repr(C)]
#[derive(Default)]
struct RawRegion {
    x: u32,
    width: u32,
}

unsafe extern "C" {
    fn fr_jpeg_new() -> *mut Handle;
    fn fr_jpeg_free(handle: *mut Handle);
    fn fr_jpeg_message(handle: *const Handle) -> *const c_char;
    fn fr_jpeg_header(
        handle: *mut Handle,
        data: *const u8,
        len: usize,
        max_memory: u64,
        max_visits: u64,
        header: *mut RawHeader,
    ) -> c_int;
    fn fr_jpeg_start(handle: *mut Handle, crop: c_int, x: u32, width: u32, region: *mut RawRegion) -> c_int;
    fn fr_jpeg_rows(handle: *mut Handle, y: u32, rows: u32, out: *mut u8, stride: usize) -> c_int;
    fn fr_jpeg_ended(handle: *const Handle) -> c_int;
    fn fr_jpeg_end(handle: *mut Handle, missing: *mut c_int) -> c_int;
}

/// A libjpeg decoder for one image.
struct Decoder(NonNull<Handle>);

impl Decoder {
    fn new() -> Self {
        // SAFETY: takes nothing and returns a fresh handle or null.
        let handle = unsafe { fr_jpeg_new() };
        // As with any small allocation of Rust's own, being out of memory here ends the work at hand.
        Decoder(NonNull::new(handle).expect("memory for a JPEG decoder handle"))
    }
}

impl Drop for Decoder {
    fn drop(&mut self) {
        // SAFETY: the handle came from fr_jpeg_new, is freed only here, and nothing else points to it.
        unsafe { fr_jpeg_free(self.0.as_ptr()) }
    }
}

/// One image whose header is known.
pub(crate) struct Session<'a> {
    decoder: Decoder,
    /// libjpeg keeps a pointer into them until the session ends.
    bytes: PhantomData<&'a [u8]>,
    size: (usize, usize),
    symmetry: Symmetry,
    /// The last bytes do not say that the picture is whole: its data must be read to the end.
    undecided: bool,
    multi_scan: bool,
    gray: bool,
    /// Whether a pixel has four components, and what becomes of them.
    four: bool,
    convert: fn([u8; 4]) -> [u8; 4],
    truncated: Truncated,
}

/// Reads the header of `bytes`, checks it against `limits`, and makes ready for decoding.
pub(crate) fn open<'a>(bytes: &'a [u8], limits: &Limits) -> Result<Session<'a>, SampleError> {
    let mut raw = RawHeader::default();
    let max_memory = limits.max_sample_bytes.saturating_mul(2).max(16 << 20);
    let mut session = Session {
        decoder: Decoder::new(),
        bytes: PhantomData,
        size: (0, 0),
        symmetry: Symmetry::IDENTITY,
        undecided: false,
        multi_scan: false,
        gray: false,
        four: false,
        convert: rgb_from_inverted_cmyk,
        truncated: limits.truncated,
    };
    // SAFETY: the handle is live (the session owns it) and fresh, and `bytes` outlive the session, whose end frees the
    // handle with its pointer into them. The shim reads at most `len` bytes and writes one fr_header, whose layout
    // RawHeader repeats.
    let status = unsafe {
        fr_jpeg_header(
            session.decoder.0.as_ptr(),
            bytes.as_ptr(),
            bytes.len(),
            max_memory,
            MAX_BLOCK_VISITS,
            &raw mut raw,
        )
    };
    session.check(status)?;
    limits.check_pixels("the image", raw.width.into(), raw.height.into())?;
    const COEFFICIENTS: u64 = 64 * 2;
    if raw.multi_scan != 0 && raw.blocks.saturating_mul(COEFFICIENTS) > limits.max_sample_bytes {
        return Err(SampleError::too_large(format!(
            "the image is {} x {} pixels in several scans, whose coefficients take {} bytes, and the limit is {} \
             bytes",
            raw.width,
            raw.height,
            raw.blocks.saturating_mul(COEFFICIENTS),
            limits.max_sample_bytes
        )));
    }
    let scan = bytes.len().min(raw.scan_offset as usize);
    let header = &bytes[..scan];
    // Said by the frame's marker: the scan's parameters, which lossless files use otherwise, are all zero in some
    // baseline files too.
    if markers::frame(header).is_some_and(|marker| matches!(marker, 0xC3 | 0xC7 | 0xCB | 0xCF)) {
        return Err(SampleError::unsupported(
            "JPEG: a lossless JPEG, which is not decoded; convert it to PNG, for example with ImageMagick",
        ));
    }
    session.size = (raw.width as usize, raw.height as usize);
    session.gray = raw.components == 1;
    session.four = raw.cmyk != 0;
    session.multi_scan = raw.multi_scan != 0;
    // A file of several scans is read whole in any case.
    session.undecided = !tail::is_whole(header, &bytes[scan..]);
    session.symmetry = exif::of_jpeg(header);
    Ok(session)
}

impl Session<'_> {
    /// Width and height as stored, before the orientation.
    pub(crate) fn size(&self) -> (usize, usize) {
        self.size
    }

    /// Whether only decoding tells that the file is whole.
    pub(crate) fn is_undecided(&self) -> bool {
        self.undecided
    }

    pub(crate) fn symmetry(&self) -> Symmetry {
        self.symmetry
    }

    /// Whether there is only one component.
    pub(crate) fn is_gray(&self) -> bool {
        self.gray
    }

    /// Whether a pixel has four components, taken for inverted CMYK where nothing else is said.
    pub(crate) fn has_four(&self) -> bool {
        self.four
    }

    /// Says what four components are: a file around the stream knows.
    pub(crate) fn converting(mut self, convert: fn([u8; 4]) -> [u8; 4]) -> Self {
        self.convert = convert;
        self
    }

    /// Decodes at least `wanted` into `out` and says where in `out` it lies.
    pub(crate) fn decode(self, wanted: Rect, out: &mut Image) -> Result<Rect, SampleError> {
        let (w, h) = self.size;
        debug_assert!(wanted.x + wanted.w <= w && wanted.y + wanted.h <= h && wanted.w > 0 && wanted.h > 0);
        let left = wanted.x.saturating_sub(MARGIN);
        let right = (wanted.x + wanted.w + MARGIN).min(w);
        let mut region = RawRegion::default();
        // SAFETY: the handle is live and has read its header (a Session with a size is made nowhere else). The shim
        // writes one fr_region, whose layout RawRegion repeats.
        let status = unsafe {
            fr_jpeg_start(
                self.decoder.0.as_ptr(),
                c_int::from(right - left < w),
                left as u32,
                (right - left) as u32,
                &raw mut region,
            )
        };
        self.check(status)?;
        let (x, columns) = (region.x as usize, region.width as usize);
        assert!(
            x <= wanted.x && x + columns >= wanted.x + wanted.w && x + columns <= w,
            "libjpeg kept to the crop"
        );
        out.reset(columns, wanted.h);
        let pixels = out.bytes_mut();
        debug_assert_eq!(pixels.len(), wanted.h * columns * PIXEL);
        // SAFETY: the decoder has been started. It writes `wanted.h` rows of output_width pixels, which
        // fr_jpeg_start has just reported as `columns`, of four bytes each (JCS_EXT_RGBX and JCS_CMYK both have four),
        // `columns * PIXEL` apart: exactly the bytes of `out`, which were sized from these numbers above.
        let status = unsafe {
            fr_jpeg_rows(
                self.decoder.0.as_ptr(),
                wanted.y as u32,
                wanted.h as u32,
                pixels.as_mut_ptr(),
                columns * PIXEL,
            )
        };
        self.check(status)?;
        if self.truncated == Truncated::Bad && self.is_cut()? {
            return Err(super::truncated("JPEG"));
        }
        if self.four {
            for pixel in out.pixels_mut() {
                *pixel = (self.convert)(*pixel);
            }
        }
        Ok(Rect { x: wanted.x - x, y: 0, ..wanted })
    }

    /// Whether data are missing, once the rows are decoded: among these, or after them where that is not known.
    fn is_cut(&self) -> Result<bool, SampleError> {
        // SAFETY: the handle is live, and the shim only reads it.
        if unsafe { fr_jpeg_ended(self.decoder.0.as_ptr()) } != 0 {
            return Ok(true);
        }
        if !self.undecided && !self.multi_scan {
            return Ok(false);
        }
        let mut missing = 0;
        // SAFETY: the decoder has been started and has given its rows; the shim reads on, allocates the row that
        // it needs from libjpeg's own pool, and writes one integer.
        let status = unsafe { fr_jpeg_end(self.decoder.0.as_ptr(), &raw mut missing) };
        self.check(status)?;
        Ok(missing != 0)
    }

    fn check(&self, status: c_int) -> Result<(), SampleError> {
        if status == 0 {
            return Ok(());
        }
        // SAFETY: the shim keeps the text in the handle, always ends it with a zero byte, and does not change it
        // before the next call, which needs the session again.
        let text = unsafe { CStr::from_ptr(fr_jpeg_message(self.decoder.0.as_ptr())) }.to_string_lossy();
        Err(match status {
            2 => SampleError::unsupported(format!("JPEG: {text}")),
            3 => SampleError::too_large(format!("JPEG: {text}")),
            _ => SampleError::malformed(format!("JPEG: {text}")),
        })
    }
}

/// Pillow's conversion, with its rounding, of inks stored as 255 minus the amount.
pub(crate) fn rgb_from_inverted_cmyk([c, m, y, k]: [u8; 4]) -> [u8; 4] {
    let scale = |ink: u8| {
        // 255 - k as Pillow sees it is the stored byte; it multiplies by the ink and takes that away.
        let product = u32::from(255 - ink) * u32::from(k) + 128;
        k.saturating_sub((((product >> 8) + product) >> 8) as u8)
    };
    [scale(c), scale(m), scale(y), 255]
}

#[cfg(test)]
pub(crate) mod tests {
    use std::ptr;

    use proptest::prelude::*;
    use turbojpeg_sys as tj;

    use super::*;
    use crate::error::SampleErrorKind;

    /// How a test file is encoded.
    #[derive(Clone, Copy, Debug)]
    pub(crate) struct Style {
        pub sampling: tj::TJSAMP,
        pub progressive: bool,
        pub arithmetic: bool,
        /// Blocks between restart markers, 0 for none.
        pub restart: i32,
        pub quality: i32,
        /// Huffman tables made for the picture instead of the standard ones.
        pub optimized: bool,
    }

    pub(crate) const PLAIN: Style = Style {
        sampling: tj::TJSAMP_TJSAMP_420,
        progressive: false,
        arithmetic: false,
        restart: 0,
        quality: 90,
        optimized: false,
    };

    /// Encodes pixels of `format` (RGB or CMYK), or of a gray JPEG where the sampling says so.
    pub(crate) fn encode_as(
        pixels: &[u8],
        w: usize,
        h: usize,
        format: tj::TJPF,
        style: Style,
        space: Option<tj::TJCS>,
    ) -> Vec<u8> {
        let bytes = if format == tj::TJPF_TJPF_CMYK { 4 } else { 3 };
        assert_eq!(pixels.len(), w * h * bytes);
        // SAFETY: the handle is made, used and destroyed here; `pixels` holds h rows of w pixels of the format (above);
        // tj3Compress8 allocates the output, tells its length, and it is copied before tj3Free.
        unsafe {
            let handle = tj::tj3Init(tj::TJINIT_TJINIT_COMPRESS as _);
            let set = |param, value| assert_eq!(tj::tj3Set(handle, param as _, value), 0);
            set(tj::TJPARAM_TJPARAM_SUBSAMP, style.sampling);
            set(tj::TJPARAM_TJPARAM_QUALITY, style.quality);
            set(tj::TJPARAM_TJPARAM_PROGRESSIVE, style.progressive.into());
            set(tj::TJPARAM_TJPARAM_ARITHMETIC, style.arithmetic.into());
            set(tj::TJPARAM_TJPARAM_RESTARTBLOCKS, style.restart);
            set(tj::TJPARAM_TJPARAM_OPTIMIZE, style.optimized.into());
            if let Some(space) = space {
                set(tj::TJPARAM_TJPARAM_COLORSPACE, space as i32);
            }
            let (mut out, mut len) = (ptr::null_mut(), 0);
            let status = tj::tj3Compress8(
                handle,
                pixels.as_ptr(),
                w as _,
                0,
                h as _,
                format as _,
                &raw mut out,
                &raw mut len,
            );
            assert_eq!(status, 0, "{:?}", CStr::from_ptr(tj::tj3GetErrorStr(handle)));
            let encoded = std::slice::from_raw_parts(out, len as usize).to_vec();
            tj::tj3Free(out.cast());
            tj::tj3Destroy(handle);
            encoded
        }
    }

    /// A picture with edges, gradients and noise in all channels, so that every kind of smoothing shows.
    pub(crate) fn picture(w: usize, h: usize, seed: u64) -> Vec<u8> {
        let mut draws = crate::random::Draws::new(crate::SampleKey { seed, epoch: 0, position: 0 }, 0);
        let mut pixels = Vec::with_capacity(w * h * 3);
        for y in 0..h {
            for x in 0..w {
                let noise = (draws.next_u64() & 63) as usize;
                let edge = if (x / 5 + y / 7) % 2 == 0 { 120 } else { 0 };
                pixels.extend([(x * 3 + noise) as u8, (edge + noise) as u8, (y * 5 + edge) as u8]);
            }
        }
        pixels
    }

    pub(crate) fn encode(w: usize, h: usize, seed: u64, style: Style) -> Vec<u8> {
        encode_as(&picture(w, h, seed), w, h, tj::TJPF_TJPF_RGB, style, None)
    }

    fn region(bytes: &[u8], rect: Option<Rect>) -> Result<Vec<[u8; 4]>, SampleError> {
        let session = open(bytes, &Limits::default())?;
        let (w, h) = session.size();
        let rect = rect.unwrap_or(Rect::sized(w, h));
        let mut image = Image::default();
        let at = session.decode(rect, &mut image)?;
        let mut out = Image::default();
        image.view().crop(at).copy_to(&mut out);
        // The fourth byte has no meaning.
        Ok(out.pixels().iter().map(|[r, g, b, _]| [*r, *g, *b, 0]).collect())
    }

    const SAMPLINGS: [tj::TJSAMP; 7] = [
        tj::TJSAMP_TJSAMP_444,
        tj::TJSAMP_TJSAMP_422,
        tj::TJSAMP_TJSAMP_420,
        tj::TJSAMP_TJSAMP_440,
        tj::TJSAMP_TJSAMP_411,
        tj::TJSAMP_TJSAMP_441,
        tj::TJSAMP_TJSAMP_GRAY,
    ];

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1500))]
        #[test]
        fn a_region_is_bit_identical_to_that_region_of_a_full_decode(
            w in 1usize..300, h in 1usize..200, seed: u64, sampling in 0usize..7, progressive: bool, arithmetic: bool,
            restart in prop_oneof![Just(0), 1i32..20], quality in prop_oneof![Just(30), Just(90), Just(100)],
            cut in any::<[u16; 4]>(),
        ) {
            let style =
                Style { sampling: SAMPLINGS[sampling], progressive, arithmetic, restart, quality, optimized: false };
            let bytes = encode(w, h, seed, style);
            let full = region(&bytes, None).unwrap();
            let (x, y) = (usize::from(cut[0]) % w, usize::from(cut[1]) % h);
            let rect = Rect { x, y, w: 1 + usize::from(cut[2]) % (w - x), h: 1 + usize::from(cut[3]) % (h - y) };
            let expected: Vec<_> =
                (y..y + rect.h).flat_map(|y| full[y * w + x..y * w + x + rect.w].to_vec()).collect();
            prop_assert!(region(&bytes, Some(rect)).unwrap() == expected, "{:?} of {} x {}, {:?}", rect, w, h, style);
        }
    }

    #[test]
    fn a_sliver_at_either_edge_is_bit_identical_for_every_width() {
        // Few columns behind a block border: where a crop is narrower than the upsampling's filter.
        for sampling in SAMPLINGS {
            for w in 1..100 {
                let bytes = encode(w, 20, 3, Style { sampling, ..PLAIN });
                let full = region(&bytes, None).unwrap();
                for columns in 1..=w.min(4) {
                    for x in [0, w - columns] {
                        let rect = Rect { x, y: 3, w: columns, h: 9 };
                        let expected: Vec<_> =
                            (3..12).flat_map(|y| full[y * w + x..y * w + x + columns].to_vec()).collect();
                        assert!(
                            region(&bytes, Some(rect)).unwrap() == expected,
                            "{rect:?} of {w}, {sampling}"
                        );
                    }
                }
            }
        }
    }

    /// Files of every kind of coding, with their pixels' size.
    fn codings() -> Vec<Vec<u8>> {
        [
            PLAIN,
            Style { restart: 3, ..PLAIN },
            Style { progressive: true, ..PLAIN },
            Style { progressive: true, restart: 3, sampling: tj::TJSAMP_TJSAMP_444, ..PLAIN },
            Style { sampling: tj::TJSAMP_TJSAMP_GRAY, optimized: true, ..PLAIN },
        ]
        .map(|style| encode(120, 90, 5, style))
        .to_vec()
    }

    const CORNER: Rect = Rect { x: 0, y: 0, w: 8, h: 8 };

    #[test]
    fn a_picture_whose_data_end_early_is_malformed_whatever_region_is_wanted_and_whatever_follows() {
        for bytes in codings() {
            let last = bytes.len() - 2;
            let progressive = open(&bytes, &Limits::default()).unwrap().multi_scan;
            let (mut cuts, mut between_scans) = (0, 0);
            for keep in (4..last).rev().step_by(23).chain(last - 20..last) {
                for after in [&b""[..], &[0xFF], &[0xFF, 0xD9], b"\xFF\xD9 and more"] {
                    let cut = [&bytes[..keep], after].concat();
                    let verdicts =
                        [None, Some(CORNER)].map(|rect| region(&cut, rect).map_err(|error| error.kind()));
                    let [all, corner] = verdicts.map(|verdict| verdict.err());
                    assert_eq!(all, corner, "the verdict on {keep} of {} depends on the region", bytes.len());
                    cuts += 1;
                    // One that ends after some scan's last byte is a coarser picture, but a whole one.
                    if progressive && after.len() > 1 && all.is_none() {
                        between_scans += 1;
                    } else {
                        assert_eq!(
                            all,
                            Some(SampleErrorKind::Malformed),
                            "{keep} of {}, then {after:02x?}",
                            bytes.len()
                        );
                    }
                }
            }
            assert!(between_scans * 4 < cuts, "{between_scans} of {cuts}");
        }
    }

    #[test]
    fn what_is_there_of_a_truncated_picture_can_be_asked_for() {
        let limits = Limits { truncated: Truncated::Fill, ..Limits::default() };
        for bytes in codings() {
            let whole = region(&bytes, Some(CORNER)).unwrap();
            let scan = bytes.windows(2).position(|pair| pair == [0xFF, 0xDA]).unwrap();
            let cut = &bytes[..(scan + bytes.len()) / 2];
            let session = open(cut, &limits).unwrap();
            let progressive = session.multi_scan;
            let mut image = Image::default();
            let at = session.decode(CORNER, &mut image).unwrap();
            let mut part = Image::default();
            image.view().crop(at).copy_to(&mut part);
            let part: Vec<_> = part.pixels().iter().map(|[r, g, b, _]| [*r, *g, *b, 0]).collect();
            assert!(progressive || part == whole);
        }
    }

    #[test]
    fn a_whole_picture_without_its_end_marker_is_fine_and_so_is_garbage_behind_it() {
        for bytes in codings() {
            let expected = region(&bytes, None).unwrap();
            assert_eq!(region(&bytes[..bytes.len() - 2], None).unwrap(), expected);
            assert_eq!(region(&bytes[..bytes.len() - 1], None).unwrap(), expected);
            let longer = [&bytes[..], b"trailing garbage"].concat();
            assert_eq!(region(&longer, None).unwrap(), expected);
        }
    }

    #[test]
    fn the_last_bytes_tell_whole_pictures_from_cut_ones_and_what_they_miss_is_never_seen() {
        let (mut whole, mut pictures, mut missed, mut cuts) = (0, 0, 0, 0);
        for (sampling, restart, optimized) in
            SAMPLINGS.iter().zip([0, 0, 0, 10, 0, 0, 0]).flat_map(|(s, r)| [(*s, r, false), (*s, 0, true)])
        {
            for seed in 0..6 {
                let bytes =
                    encode(400, 300, seed, Style { sampling, restart, optimized, quality: 60, ..PLAIN });
                let pixels = region(&bytes, None).unwrap();
                let data = bytes.windows(2).position(|pair| pair == [0xFF, 0xDA]).unwrap();
                let data = data + 2 + usize::from(bytes[data + 3]);
                pictures += 1;
                whole += u32::from(tail::is_whole(&bytes[..data], &bytes[data..]));
                assert!(!tail::is_whole(&bytes[..data], &bytes[data..bytes.len() - 2]), "without its end");
                for keep in (bytes.len() / 2..bytes.len() - 2).step_by(397) {
                    let cut = [&bytes[..keep], &[0xFF, 0xD9]].concat();
                    cuts += 1;
                    let verdicts = [None, Some(CORNER)].map(|rect| region(&cut, rect));
                    if !tail::is_whole(&cut[..data], &cut[data..]) {
                        assert!(verdicts.iter().all(Result::is_err), "the verdict depends on the region");
                        continue;
                    }
                    missed += 1;
                    let [all, corner] = verdicts;
                    assert_eq!(corner.unwrap(), region(&bytes, Some(CORNER)).unwrap());
                    // Only of the last row of blocks can something be missing.
                    assert!(all.is_err() || all.unwrap()[..400 * (300 - 32)] == pixels[..400 * (300 - 32)]);
                }
            }
        }
        // The rest is only slower, for libjpeg decides there.
        assert!(whole * 10 >= pictures * 9, "{whole} of {pictures} pictures are seen to be whole");
        assert!(missed > 0 && missed * 50 < cuts, "{missed} of {cuts} cuts go unnoticed");
    }

    /// The segments of a JPEG without those of these markers.
    pub(crate) fn without(bytes: &[u8], markers: &[u8]) -> Vec<u8> {
        let mut out = bytes[..2].to_vec();
        let mut at = 2;
        while bytes[at + 1] != 0xDA {
            let end = at + 2 + usize::from(u16::from_be_bytes([bytes[at + 2], bytes[at + 3]]));
            if !markers.contains(&bytes[at + 1]) {
                out.extend(&bytes[at..end]);
            }
            at = end;
        }
        out.extend(&bytes[at..]);
        out
    }

    pub(crate) const HUFFMAN: u8 = 0xC4;
    pub(crate) const QUANTIZATION: u8 = 0xDB;

    #[test]
    fn a_stream_without_huffman_tables_has_the_standard_ones_and_without_quantization_it_is_malformed() {
        let bytes = encode(64, 48, 2, PLAIN);
        let mjpeg = without(&bytes, &[HUFFMAN]);
        assert!(mjpeg.len() + 400 < bytes.len());
        assert_eq!(region(&mjpeg, None).unwrap(), region(&bytes, None).unwrap());
        let error = region(&without(&bytes, &[QUANTIZATION]), None).unwrap_err();
        assert_eq!(error.kind(), SampleErrorKind::Malformed, "{error}");
    }

    #[test]
    fn the_frame_marker_and_not_the_scans_parameters_says_that_a_file_is_lossless() {
        let bytes = encode(64, 48, 2, PLAIN);
        let scan = bytes.windows(2).position(|pair| pair == [0xFF, 0xDA]).unwrap();
        let end = scan + 2 + usize::from(bytes[scan + 3]);
        let mut zeros = bytes.clone();
        zeros[end - 3..end].fill(0);
        assert_eq!(region(&zeros, None).unwrap(), region(&bytes, None).unwrap());
        let mut lossless = bytes;
        let frame = lossless.windows(2).position(|pair| pair == [0xFF, 0xC0]).unwrap();
        lossless[frame + 1] = 0xC3;
        lossless[end - 3..end].copy_from_slice(&[1, 0, 0]);
        let error = region(&lossless, None).unwrap_err();
        assert!(
            error.kind() == SampleErrorKind::Unsupported && error.message().contains("lossless"),
            "{error}"
        );
    }

    #[test]
    fn inks_become_rgb_by_pillows_formula() {
        // What TurboJPEG takes as CMYK is what the file stores: Adobe's inverted inks.
        assert_eq!(rgb_from_inverted_cmyk([255, 255, 255, 255])[..3], [255, 255, 255]);
        assert_eq!(rgb_from_inverted_cmyk([0, 255, 255, 255])[..3], [0, 255, 255]);
        assert_eq!(rgb_from_inverted_cmyk([255, 255, 255, 0])[..3], [0, 0, 0]);
        for space in [tj::TJCS_TJCS_CMYK, tj::TJCS_TJCS_YCCK] {
            let flat: Vec<u8> = [200, 100, 50, 220].repeat(32 * 32);
            let style = Style { sampling: tj::TJSAMP_TJSAMP_444, quality: 100, ..PLAIN };
            let bytes = encode_as(&flat, 32, 32, tj::TJPF_TJPF_CMYK, style, Some(space));
            let expected = rgb_from_inverted_cmyk([200, 100, 50, 220]);
            for pixel in region(&bytes, None).unwrap() {
                for c in 0..3 {
                    assert!(pixel[c].abs_diff(expected[c]) <= 3, "{pixel:?} {expected:?}");
                }
            }
        }
    }

    /// Overwrites the height and width of the first frame header.
    fn declare(bytes: &mut [u8], w: u16, h: u16) {
        let at =
            bytes.windows(2).position(|pair| pair[0] == 0xFF && (0xC0..=0xC2).contains(&pair[1])).unwrap();
        bytes[at + 5..at + 7].copy_from_slice(&h.to_be_bytes());
        bytes[at + 7..at + 9].copy_from_slice(&w.to_be_bytes());
    }

    #[test]
    fn a_huge_header_is_refused_with_its_numbers() {
        for progressive in [false, true] {
            let mut bytes = encode(16, 16, 0, Style { progressive, ..PLAIN });
            declare(&mut bytes, 60_000, 60_000);
            let error = region(&bytes, None).unwrap_err();
            assert_eq!(error.kind(), SampleErrorKind::TooLarge);
            assert!(error.to_string().contains("60000 x 60000"), "{error}");
        }
        // Beyond what libjpeg itself takes.
        let mut bytes = encode(16, 16, 0, PLAIN);
        declare(&mut bytes, 65_535, 65_535);
        assert_eq!(region(&bytes, None).unwrap_err().kind(), SampleErrorKind::TooLarge);
    }

    #[test]
    fn a_progressive_file_of_thousands_of_scans_is_refused() {
        let bytes = encode(64, 64, 0, Style { progressive: true, sampling: tj::TJSAMP_TJSAMP_GRAY, ..PLAIN });
        let scan = bytes.windows(2).rposition(|pair| pair == [0xFF, 0xDA]).unwrap();
        let last = bytes[scan..bytes.len() - 2].to_vec();
        let mut bomb = bytes[..bytes.len() - 2].to_vec();
        for _ in 0..2000 {
            bomb.extend(&last);
        }
        bomb.extend([0xFF, 0xD9]);
        let error = region(&bomb, None).unwrap_err();
        assert_eq!(error.kind(), SampleErrorKind::TooLarge, "{error}");
        assert!(error.to_string().contains("scans"), "{error}");
    }
}
