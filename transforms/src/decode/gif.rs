//! The first frame of a GIF, on a canvas that holds it: the screen, or more where the frame reaches beyond it.
//!
//! Read as Pillow reads it, which takes more than the standard says: bytes between blocks that begin none are passed
//! over (encoders that write a palette of the wrong length leave some there), extensions may have any label, and
//! nothing after the frame matters, neither its end nor the file's. Only the codes are left to a crate.
//!
//! ```text
//!  header, screen [palette]  ( stray bytes | '!' label blocks | ',' place, size [palette] code size, blocks )*  ';'
//! ```

use weezl::{BitOrder, LzwError, decode};

use super::{Session, Want, check_size, truncated, values};
use crate::error::SampleError;
use crate::geometry::{Image, Symmetry};
use crate::limits::{Limits, Truncated};

struct Gif<'a> {
    size: (usize, usize),
    frame: Frame<'a>,
    truncated: Truncated,
    raw: &'a mut Vec<u8>,
}

/// The first frame, its codes not yet read.
struct Frame<'a> {
    /// Left, top, width and height.
    place: [usize; 4],
    colors: [[u8; 4]; 256],
    /// The colour where the frame leaves the canvas open.
    background: u8,
    interlaced: bool,
    code_size: u8,
    /// What follows: blocks of codes, then anything.
    rest: &'a [u8],
}

pub(super) fn open<'a>(
    bytes: &'a [u8],
    limits: &Limits,
    want: Want,
    raw: &'a mut Vec<u8>,
) -> Result<impl Session + 'a, SampleError> {
    let mut reader = Reader(bytes);
    let [_, _, _, _, _, _, w0, w1, h0, h1, flags, _, _] = *reader.array()?;
    let palette = reader.palette(flags)?;
    let mut frame = reader.frame(palette)?;
    if want.is_values() {
        frame.colors = std::array::from_fn(|index| values::pixel(index as u16));
    }
    let [left, top, w, h] = frame.place;
    if w == 0 || h == 0 {
        return Err(SampleError::malformed(format!("GIF: a frame of {w} x {h} pixels")));
    }
    let screen = [[w0, w1], [h0, h1]].map(u16::from_le_bytes).map(usize::from);
    let size =
        check_size("GIF", ((left + w).max(screen[0]) as u32, (top + h).max(screen[1]) as u32), limits)?;
    Ok(Gif { size, frame, truncated: limits.truncated, raw })
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn array<const N: usize>(&mut self) -> Result<&'a [u8; N], SampleError> {
        let (found, rest) = self.0.split_first_chunk().ok_or_else(ended)?;
        self.0 = rest;
        Ok(found)
    }

    /// The next block of at most 255 bytes; the last one is empty.
    fn block(&mut self) -> Result<&'a [u8], SampleError> {
        let [length] = *self.array()?;
        let (found, rest) = self.0.split_at_checked(length.into()).ok_or_else(ended)?;
        self.0 = rest;
        Ok(found)
    }

    /// The palette that `flags` announces. Pillow takes indices for gray values where it says no more than they do.
    fn palette(&mut self, flags: u8) -> Result<Option<Vec<[u8; 3]>>, SampleError> {
        if flags & 0x80 == 0 {
            return Ok(None);
        }
        let colors: Result<Vec<_>, _> = (0..2 << (flags & 7)).map(|_| self.array().copied()).collect();
        Ok(Some(colors?))
    }

    fn frame(&mut self, global: Option<Vec<[u8; 3]>>) -> Result<Frame<'a>, SampleError> {
        let mut background = 0;
        loop {
            let [kind] = *self.array()?;
            match kind {
                b'!' => {
                    let [label] = *self.array()?;
                    let mut block = self.block()?;
                    if let (0xF9, [flags, _, _, transparent, ..]) = (label, block)
                        && flags & 1 != 0
                    {
                        background = *transparent;
                    }
                    while !block.is_empty() {
                        block = self.block()?;
                    }
                }
                b',' => {
                    let [place @ .., flags] = self.array::<9>()?;
                    let local = self.palette(*flags)?;
                    let [code_size] = *self.array()?;
                    if code_size > 11 {
                        return Err(SampleError::malformed(format!("GIF: codes of {code_size} bits")));
                    }
                    let pairs = place.as_chunks::<2>().0;
                    return Ok(Frame {
                        place: std::array::from_fn(|at| u16::from_le_bytes(pairs[at]).into()),
                        colors: colors(local.or(global)),
                        background,
                        interlaced: flags & 0x40 != 0,
                        code_size,
                        rest: self.0,
                    });
                }
                b';' => return Err(SampleError::malformed("GIF: a file without a frame")),
                _ => {}
            }
        }
    }
}

fn ended() -> SampleError {
    SampleError::malformed("GIF: the file ends before its picture begins")
}

/// What each index means; past the end of a palette it is black.
fn colors(palette: Option<Vec<[u8; 3]>>) -> [[u8; 4]; 256] {
    let gray = |at: usize| [at as u8; 3];
    let palette = palette.filter(|palette| palette.iter().enumerate().any(|(at, color)| *color != gray(at)));
    std::array::from_fn(|at| {
        let color = palette.as_ref().map_or(gray(at), |palette| palette.get(at).copied().unwrap_or_default());
        [color[0], color[1], color[2], 255]
    })
}

impl Session for Gif<'_> {
    fn size(&self) -> (usize, usize) {
        self.size
    }

    fn symmetry(&self) -> Symmetry {
        Symmetry::IDENTITY
    }

    fn decode(self: Box<Self>, out: &mut Image) -> Result<(), SampleError> {
        let Gif { size, frame, truncated: what_to_do, raw } = *self;
        let [left, top, w, h] = frame.place;
        raw.resize(w * h, 0);
        let found = match frame.indices(raw) {
            (found, _) if what_to_do == Truncated::Fill => found,
            (found, result) => result.map(|()| found)?,
        };
        let pixels = out.pixels_mut();
        pixels.fill(frame.colors[usize::from(frame.background)]);
        for (row, y) in raw[..found].chunks(w).zip(rows(h, frame.interlaced)) {
            let at = (top + y) * size.0 + left;
            for (pixel, index) in pixels[at..at + w].iter_mut().zip(row) {
                *pixel = frame.colors[usize::from(*index)];
            }
        }
        Ok(())
    }
}

impl Frame<'_> {
    /// Reads the codes up to the last pixel and says how many pixels there are.
    fn indices(&self, out: &mut [u8]) -> (usize, Result<(), SampleError>) {
        let mut rest = self.rest;
        let mut decoder =
            decode::Configuration::new(BitOrder::Lsb, self.code_size).with_yield_on_full_buffer(true).build();
        let mut found = 0;
        while let Some((&length @ 1.., after)) = rest.split_first() {
            // The file may end inside a block.
            let (mut block, behind) = after.split_at(after.len().min(length.into()));
            rest = behind;
            loop {
                let step = decoder.decode_bytes(block, &mut out[found..]);
                block = &block[step.consumed_in..];
                found += step.consumed_out;
                if found == out.len() {
                    return (found, Ok(()));
                }
                match step.status {
                    Err(LzwError::InvalidCode) => {
                        return (found, Err(SampleError::malformed("GIF: a damaged code")));
                    }
                    Ok(weezl::LzwStatus::Ok) => {}
                    Ok(weezl::LzwStatus::NoProgress) => break,
                    Ok(weezl::LzwStatus::Done) => return (found, Err(truncated("GIF"))),
                }
            }
        }
        (found, Err(truncated("GIF")))
    }
}

/// The rows of a picture in the order in which they are stored.
fn rows(h: usize, interlaced: bool) -> impl Iterator<Item = usize> {
    // First row, rows apart.
    const PASSES: [(usize, usize); 4] = [(0, 8), (4, 8), (2, 4), (1, 2)];
    let passes = if interlaced { &PASSES[..] } else { &[(0, 1)] };
    passes.iter().flat_map(move |&(first, apart)| (first..h).step_by(apart))
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::geometry::Rect;

    /// What lies between two blocks, or after the file.
    #[derive(Clone, Debug)]
    enum Between {
        /// Bytes that begin no block.
        Stray(Vec<u8>),
        Extension {
            label: u8,
            blocks: Vec<Vec<u8>>,
        },
        Transparent(u8),
    }

    impl Between {
        fn write(&self, out: &mut Vec<u8>) {
            match self {
                Between::Stray(bytes) => out.extend(bytes.iter().filter(|byte| !b"!,;".contains(byte))),
                Between::Extension { label, blocks } => {
                    out.extend([b'!', *label]);
                    write_blocks(blocks.iter().map(Vec::as_slice), out);
                }
                Between::Transparent(index) => out.extend([b'!', 0xF9, 4, 1, 0, 0, *index, 0]),
            }
        }
    }

    fn write_blocks<'a>(blocks: impl Iterator<Item = &'a [u8]>, out: &mut Vec<u8>) {
        for block in blocks.filter(|block| !block.is_empty()) {
            out.push(block.len() as u8);
            out.extend(block);
        }
        out.push(0);
    }

    fn between() -> impl Strategy<Value = Between> {
        let bytes = |most| prop::collection::vec(any::<u8>(), 0..most);
        prop_oneof![
            bytes(40).prop_map(Between::Stray),
            // 0xF9 says which colour is transparent; a menu for itself.
            (
                any::<u8>().prop_filter("no colour", |label| *label != 0xF9),
                prop::collection::vec(bytes(256), 0..4)
            )
                .prop_map(|(label, blocks)| Between::Extension { label, blocks }),
            any::<u8>().prop_map(Between::Transparent),
        ]
    }

    #[derive(Clone, Debug)]
    pub(crate) struct Picture {
        pub screen: (u16, u16),
        pub place: [u16; 4],
        pub palette: Vec<[u8; 3]>,
        pub local: bool,
        pub interlaced: bool,
    }

    impl Picture {
        fn index(x: usize, y: usize) -> u8 {
            (x * 3 + y * y) as u8 & 15
        }

        /// The file, with these things before and after its frame.
        fn write(&self, before: &[Between], after: &[u8]) -> Vec<u8> {
            let flags = 0x80 | (self.palette.len().ilog2() - 1) as u8;
            let mut out = b"GIF89a".to_vec();
            out.extend([self.screen.0.to_le_bytes(), self.screen.1.to_le_bytes()].concat());
            out.extend([if self.local { 0 } else { flags }, 0, 0]);
            let palette = self.palette.concat();
            if !self.local {
                out.extend(&palette);
            }
            for part in before {
                part.write(&mut out);
            }
            out.push(b',');
            out.extend(self.place.iter().flat_map(|side| side.to_le_bytes()));
            out.push(u8::from(self.interlaced) << 6 | if self.local { flags } else { 0 });
            if self.local {
                out.extend(&palette);
            }
            let [_, _, w, h] = self.place.map(usize::from);
            // The passes, written down as the standard has them.
            let order: Vec<usize> = if self.interlaced {
                let every = |first, apart| (first..h).step_by(apart);
                every(0, 8).chain(every(4, 8)).chain(every(2, 4)).chain(every(1, 2)).collect()
            } else {
                (0..h).collect()
            };
            let indices: Vec<u8> = order.iter().flat_map(|y| (0..w).map(|x| Self::index(x, *y))).collect();
            out.push(4);
            let codes = weezl::encode::Encoder::new(BitOrder::Lsb, 4).encode(&indices).unwrap();
            write_blocks(codes.chunks(200), &mut out);
            out.extend(after);
            out
        }

        pub(crate) fn plain(&self) -> Vec<u8> {
            self.write(&[], b";")
        }

        /// RGB pixels of the canvas.
        fn expected(&self, background: u8) -> Vec<[u8; 3]> {
            let [left, top, w, h] = self.place.map(usize::from);
            let (right, bottom) = (left + w, top + h);
            let size = (right.max(self.screen.0.into()), bottom.max(self.screen.1.into()));
            let color = |index: u8| self.palette.get(usize::from(index)).copied().unwrap_or_default();
            (0..size.1)
                .flat_map(|y| (0..size.0).map(move |x| (x, y)))
                .map(|(x, y)| {
                    let inside = (left..right).contains(&x) && (top..bottom).contains(&y);
                    color(if inside { Self::index(x - left, y - top) } else { background })
                })
                .collect()
        }
    }

    fn decoded(bytes: &[u8], truncated: Truncated) -> Result<Vec<[u8; 3]>, SampleError> {
        let mut decoders = super::super::Decoders::default();
        let opened = decoders.open(bytes, &Limits { truncated, ..Limits::default() }, Want::Colors)?;
        let (w, h) = opened.stored_size();
        let mut image = Image::default();
        opened.decode(Rect::sized(w, h), &mut image)?;
        Ok(image.pixels().iter().map(|[r, g, b, _]| [*r, *g, *b]).collect())
    }

    fn picture() -> impl Strategy<Value = Picture> {
        let side = || 1u16..40;
        let palette = (1u32..8).prop_flat_map(|bits| prop::collection::vec(any::<[u8; 3]>(), 1 << bits));
        ((0u16..60, 0u16..60), [0u16..9, 0..9, side().start..side().end, 1..40], palette, any::<[bool; 2]>())
            .prop_map(|(screen, place, palette, [local, interlaced])| Picture {
                screen,
                place,
                palette,
                local,
                interlaced,
            })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(600))]
        #[test]
        fn whatever_lies_between_its_blocks_and_after_them_the_frame_is_found(
            picture in picture(), before in prop::collection::vec(between(), 0..6), after: Vec<u8>, end: bool,
        ) {
            let mut after = after;
            if end {
                after.insert(0, b';');
            }
            let background = before.iter().rev().find_map(|part| match part {
                Between::Transparent(index) => Some(*index),
                _ => None,
            });
            let bytes = picture.write(&before, &after);
            let found = decoded(&bytes, Truncated::Bad).unwrap();
            prop_assert!(found == picture.expected(background.unwrap_or(0)));
        }

        #[test]
        fn a_frame_that_is_cut_is_bad_or_filled_with_the_background(picture in picture(), cut: prop::sample::Index) {
            let whole = picture.write(&[], b"");
            // Bytes that begin no GIF are none.
            let data = 6 + cut.index(whole.len() - 6);
            let bytes = &whole[..data];
            let expected = picture.expected(0);
            match decoded(bytes, Truncated::Bad) {
                // Only the code of the end and the empty block are missing.
                Ok(found) => prop_assert!(found == expected && data + 4 >= whole.len()),
                Err(error) => prop_assert!(error.message().contains("ends before its picture"), "{error}"),
            }
            if let Ok(found) = decoded(bytes, Truncated::Fill) {
                let color = |at: usize| picture.palette.get(at).copied().unwrap_or_default();
                prop_assert!(found.iter().zip(&expected).all(|(found, right)| found == right || *found == color(0)));
            }
        }
    }

    #[test]
    fn a_file_without_a_frame_and_a_frame_without_pixels_are_named() {
        let picture = Picture {
            screen: (4, 4),
            place: [0, 0, 4, 4],
            palette: vec![[1, 2, 3], [4, 5, 6]],
            local: false,
            interlaced: false,
        };
        let error = |bytes: &[u8]| decoded(bytes, Truncated::Fill).unwrap_err().to_string();
        let start = picture.plain()[..13 + 6].to_vec();
        assert!(error(&[&start[..], b";"].concat()).contains("without a frame"));
        assert!(error(&start).contains("ends before its picture begins"));
        assert!(error(&Picture { place: [0, 0, 4, 0], ..picture }.plain()).contains("4 x 0 pixels"));
    }

    #[test]
    fn indices_without_a_palette_or_with_one_that_says_no_more_are_gray_values() {
        let picture = Picture {
            screen: (9, 9),
            place: [0, 0, 9, 9],
            palette: vec![[0; 3], [1; 3], [2; 3], [3; 3]],
            local: false,
            interlaced: false,
        };
        let expected: Vec<_> = (0..81).map(|at| [Picture::index(at % 9, at / 9); 3]).collect();
        let mut bytes = picture.plain();
        assert_eq!(decoded(&bytes, Truncated::Bad).unwrap(), expected);
        bytes[10] = 0;
        bytes.drain(13..13 + 12);
        assert_eq!(decoded(&bytes, Truncated::Bad).unwrap(), expected);
    }
}
