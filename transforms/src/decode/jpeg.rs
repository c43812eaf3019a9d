//! JPEG by libjpeg-turbo: the header first, then only the region that the plan needs.
//!
//! Promises:
//! - The pixels of a region are **bit-identical** to the same pixels of a full decode (accurate integer IDCT,
//!   triangle-filter chroma upsampling), for every sampling and for progressive files.
//! - The verdict on a file depends on its bytes and the limits alone, never on the region: what could only be noticed
//!   behind the region's last row is either found without decoding (a missing end) or is no error (corrupt
//!   entropy-coded data, which libjpeg, and so Pillow, shows as gray or smeared blocks).
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

use super::exif;
use crate::error::SampleError;
use crate::geometry::{Image, PIXEL, Rect, Symmetry};
use crate::limits::Limits;

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
    arithmetic: u32,
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
    fn fr_jpeg_ran_dry(handle: *const Handle) -> c_int;
    fn fr_jpeg_abort(handle: *mut Handle);
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
}

/// A libjpeg decoder, kept by its thread and used for one image after another.
pub(crate) struct Decoder {
    handle: NonNull<Handle>,
}

// SAFETY: the handle is a heap object that only this Decoder points to (fr_jpeg_new returns a fresh one, fr_jpeg_free
// in Drop is its end), and libjpeg keeps no per-thread or global mutable state (its tables of messages and constants
// are read-only, its SIMD detection is `static THREAD_LOCAL`). So it may move to another thread between calls.
unsafe impl Send for Decoder {}

impl Decoder {
    pub(crate) fn new() -> Self {
        // SAFETY: takes nothing and returns a fresh handle or null.
        let handle = unsafe { fr_jpeg_new() };
        // As with any small allocation of Rust's own, being out of memory here ends the work at hand.
        Decoder { handle: NonNull::new(handle).expect("memory for a JPEG decoder handle") }
    }

    /// Reads the header of `bytes`, checks it against `limits`, and makes ready for decoding.
    pub(crate) fn open<'a>(
        &'a mut self,
        bytes: &'a [u8],
        limits: &Limits,
    ) -> Result<Session<'a>, SampleError> {
        let mut raw = RawHeader::default();
        let max_memory = limits.max_sample_bytes.saturating_mul(2).max(16 << 20);
        // The session exists before libjpeg has seen the bytes, so that every way out of here makes it forget them.
        let mut session = Session {
            decoder: self,
            bytes,
            size: (0, 0),
            symmetry: Symmetry::IDENTITY,
            whole: false,
            cmyk: false,
            _bytes: PhantomData,
        };
        // SAFETY: `handle` is live (owned by the Decoder that is borrowed for the session's life) and `bytes` outlive
        // the session, whose Drop calls fr_jpeg_abort, after which the shim no longer holds the pointer. The shim
        // reads at most `len` bytes of it and writes one fr_header, whose layout RawHeader repeats.
        let status = unsafe {
            fr_jpeg_header(
                session.decoder.handle.as_ptr(),
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
        if !has_end(&bytes[scan..]) {
            // Such a file may still be whole (some cameras forget the marker). Only decoding all of it tells, and only
            // where the entropy code says when it runs dry.
            if raw.multi_scan != 0 || raw.arithmetic != 0 {
                return Err(truncated(bytes.len()));
            }
            session.whole = true;
        }
        session.size = (raw.width as usize, raw.height as usize);
        session.cmyk = raw.cmyk != 0;
        session.symmetry = exif::of_jpeg(&bytes[..scan]);
        Ok(session)
    }
}

impl Drop for Decoder {
    fn drop(&mut self) {
        // SAFETY: the handle came from fr_jpeg_new, is freed only here, and no Session borrows it any more.
        unsafe { fr_jpeg_free(self.handle.as_ptr()) }
    }
}

/// One image whose header is known.
pub(crate) struct Session<'a> {
    decoder: &'a mut Decoder,
    bytes: &'a [u8],
    size: (usize, usize),
    symmetry: Symmetry,
    /// Decode everything to learn whether the file is complete.
    whole: bool,
    cmyk: bool,
    /// libjpeg keeps a pointer into the bytes until the session ends.
    _bytes: PhantomData<&'a [u8]>,
}

impl Session<'_> {
    /// Width and height as stored, before the orientation.
    pub(crate) fn size(&self) -> (usize, usize) {
        self.size
    }

    /// Whether it has no end marker, so that only decoding tells whether it is whole.
    pub(crate) fn is_undecided(&self) -> bool {
        self.whole
    }

    pub(crate) fn symmetry(&self) -> Symmetry {
        self.symmetry
    }

    /// Decodes at least `wanted` into `out` and says where in `out` it lies.
    pub(crate) fn decode(self, wanted: Rect, out: &mut Image) -> Result<Rect, SampleError> {
        let (w, h) = self.size;
        debug_assert!(wanted.x + wanted.w <= w && wanted.y + wanted.h <= h && wanted.w > 0 && wanted.h > 0);
        let (rows, left, right) = if self.whole {
            (0..h, 0, w)
        } else {
            let left = wanted.x.saturating_sub(MARGIN);
            let right = (wanted.x + wanted.w + MARGIN).min(w);
            (wanted.y..wanted.y + wanted.h, left, right)
        };
        let mut region = RawRegion::default();
        // SAFETY: the handle is live and has read its header (a Session with a size is made nowhere else). The shim
        // writes one fr_region, whose layout RawRegion repeats.
        let status = unsafe {
            fr_jpeg_start(
                self.decoder.handle.as_ptr(),
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
        out.reset(columns, rows.len());
        let pixels = out.bytes_mut();
        debug_assert_eq!(pixels.len(), rows.len() * columns * PIXEL);
        // SAFETY: the decoder has been started. It writes `rows.len()` rows of output_width pixels, which
        // fr_jpeg_start has just reported as `columns`, of four bytes each (JCS_EXT_RGBX and JCS_CMYK both have four),
        // `columns * PIXEL` apart: exactly the bytes of `out`, which were sized from these numbers above.
        let status = unsafe {
            fr_jpeg_rows(
                self.decoder.handle.as_ptr(),
                rows.start as u32,
                rows.len() as u32,
                pixels.as_mut_ptr(),
                columns * PIXEL,
            )
        };
        self.check(status)?;
        // SAFETY: the handle is live; the call reads one field.
        if self.whole && unsafe { fr_jpeg_ran_dry(self.decoder.handle.as_ptr()) } != 0 {
            return Err(truncated(self.bytes.len()));
        }
        if self.cmyk {
            for pixel in out.pixels_mut() {
                *pixel = rgb_from_inverted_cmyk(*pixel);
            }
        }
        Ok(Rect { x: wanted.x - x, y: wanted.y - rows.start, ..wanted })
    }

    fn check(&self, status: c_int) -> Result<(), SampleError> {
        if status == 0 {
            return Ok(());
        }
        // SAFETY: the shim keeps the text in the handle, always ends it with a zero byte, and does not change it
        // before the next call, which needs the session again.
        let text = unsafe { CStr::from_ptr(fr_jpeg_message(self.decoder.handle.as_ptr())) }.to_string_lossy();
        Err(match status {
            2 => SampleError::unsupported(format!("JPEG: {text}")),
            3 => SampleError::too_large(format!("JPEG: {text}")),
            _ => SampleError::malformed(format!("JPEG: {text}")),
        })
    }
}

impl Drop for Session<'_> {
    fn drop(&mut self) {
        // SAFETY: the handle is live; the call makes libjpeg give up its image and its pointer into the bytes.
        unsafe { fr_jpeg_abort(self.decoder.handle.as_ptr()) }
    }
}

fn truncated(len: usize) -> SampleError {
    SampleError::malformed(format!(
        "JPEG: truncated: the file of {len} bytes ends before its picture does, without an end-of-image marker"
    ))
}

/// Whether an end-of-image marker stands in `data`. Inside entropy-coded data an FF byte is followed by 00 or a
/// restart marker, so FF D9 can be nothing else; behind the picture there may be anything, so the search goes on.
fn has_end(data: &[u8]) -> bool {
    data.array_windows().rev().any(|pair| pair == &[0xFF, 0xD9])
}

/// Pillow's conversion, with its rounding, of inks stored as 255 minus the amount.
fn rgb_from_inverted_cmyk([c, m, y, k]: [u8; 4]) -> [u8; 4] {
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
    }

    pub(crate) const PLAIN: Style = Style {
        sampling: tj::TJSAMP_TJSAMP_420,
        progressive: false,
        arithmetic: false,
        restart: 0,
        quality: 90,
    };

    /// Encodes pixels of `format` (RGB or CMYK), or of a gray JPEG where the sampling says so.
    fn encode_as(
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
        let mut decoder = Decoder::new();
        let session = decoder.open(bytes, &Limits::default())?;
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
            let style = Style { sampling: SAMPLINGS[sampling], progressive, arithmetic, restart, quality };
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

    #[test]
    fn a_truncated_file_is_malformed_whatever_region_is_wanted() {
        for progressive in [false, true] {
            let bytes = encode(120, 90, 5, Style { progressive, ..PLAIN });
            let corner = Rect { x: 0, y: 0, w: 8, h: 8 };
            for keep in (4..bytes.len() - 2).step_by(37) {
                for rect in [None, Some(corner)] {
                    let error = region(&bytes[..keep], rect).unwrap_err();
                    assert_eq!(
                        error.kind(),
                        SampleErrorKind::Malformed,
                        "{keep} of {}: {error}",
                        bytes.len()
                    );
                }
            }
        }
    }

    #[test]
    fn a_whole_picture_without_its_end_marker_is_fine_and_so_is_garbage_behind_it() {
        let bytes = encode(120, 90, 5, PLAIN);
        let expected = region(&bytes, None).unwrap();
        assert_eq!(region(&bytes[..bytes.len() - 2], None).unwrap(), expected);
        let mut longer = bytes.clone();
        longer.extend(b"trailing garbage");
        assert_eq!(region(&longer, None).unwrap(), expected);
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

    #[test]
    fn a_decoder_goes_on_after_an_error() {
        let good = encode(50, 40, 1, PLAIN);
        let mut decoder = Decoder::new();
        let mut image = Image::default();
        for bad in [&good[..20], &good[..good.len() / 2], b"\xFF\xD8\xFFnonsense"] {
            let result = decoder
                .open(bad, &Limits::default())
                .and_then(|session| session.decode(Rect::sized(50, 40), &mut image));
            assert!(result.is_err());
            let session = decoder.open(&good, &Limits::default()).unwrap();
            session.decode(Rect::sized(50, 40), &mut image).unwrap();
        }
    }
}
