//! One array's rows as parts of records: pixels become images in binary PNM, numbers become little-endian fields.
//!
//! | rows of a u8 array | delivered as |
//! |---|---|
//! | `(H, W)`, `(H, W, 1)`, `(1, H, W)` | `P5` |
//! | `(H, W, 3)`, `(3, H, W)` | `P6` |
//! | `(H, W, 4)`, `(4, H, W)` | PAM `P7`, RGBA |
//!
//! What arrays promise no decoder: the header is made here, from a shape that was checked when the source was opened.

use half::f16;
use serde::{Deserialize, Serialize};

use crate::labels::Raw;
use crate::{ElementType, FieldSpec, MAX_PART_BYTES};

/// A record's pixels may not take more than this; a larger array is not an array of images.
const MAX_IMAGE_BYTES: u64 = 1 << 30;

/// What the axes of an image array are, after the first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PixelLayout {
    /// `hw` when there are two, `hwc` when the last has 1, 3 or 4 elements, else `chw` when the first has.
    #[default]
    Auto,
    /// Height, width.
    Hw,
    /// Height, width, channels.
    Hwc,
    /// Channels, height, width.
    Chw,
}

impl PixelLayout {
    pub(crate) fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// How elements lie in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stored {
    pub element: ElementType,
    /// Big-endian.
    pub big: bool,
}

/// How one row is written into a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Part {
    /// Written before the row: an image's header.
    header: Vec<u8>,
    /// Bytes of the row as stored.
    stored: usize,
    /// Bytes of it in the record, without the header.
    written: usize,
    convert: Convert,
    /// Width and height, of pixels.
    size: Option<(u32, u32)>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Convert {
    Plain,
    /// Bytes of each element turned round.
    Swap(usize),
    /// Any byte but 0 is true: a tensor of booleans may hold nothing but 0 and 1.
    Bool,
    /// Planes of this many pixels become pixels of this many channels.
    Interleave {
        channels: usize,
        plane: usize,
    },
    /// Integers of one type become another.
    Integers {
        from: Stored,
        to: ElementType,
    },
}

impl Part {
    /// Rows of bytes that are images already, each as long as the file says.
    pub(crate) fn encoded(stored: usize) -> Self {
        Self { header: Vec::new(), stored, written: stored, convert: Convert::Plain, size: None }
    }

    /// Rows of numbers, or what is wrong with them.
    pub(crate) fn field(name: &str, stored: Stored, shape: &[u64]) -> Result<(Self, FieldSpec), String> {
        let spec = FieldSpec { name: name.to_owned(), dtype: stored.element, shape: shape.to_vec() };
        let bytes = product(shape).and_then(|count| count.checked_mul(stored.element.size() as u64));
        let bytes = match bytes {
            Some(bytes) if bytes <= crate::MAX_FIELD_BYTES => bytes as usize,
            _ => {
                return Err(format!(
                    "its rows of shape {shape:?} are larger than {} MiB",
                    crate::MAX_FIELD_BYTES >> 20
                ));
            }
        };
        let convert = match (stored.element, stored.element.size()) {
            (ElementType::Bool, _) => Convert::Bool,
            (_, size) if stored.big && size > 1 => Convert::Swap(size),
            _ => Convert::Plain,
        };
        Ok((Self { header: Vec::new(), stored: bytes, written: bytes, convert, size: None }, spec))
    }

    /// `length` integers that become integers of another type, checked one by one.
    pub(crate) fn tokens(length: u64, from: Stored, to: ElementType) -> Result<(Self, FieldSpec), String> {
        let (mut part, _) = Self::field("tokens", from, &[length])?;
        let (_, spec) = Self::field("tokens", Stored { element: to, big: false }, &[length])?;
        part.written = spec.bytes();
        part.convert = Convert::Integers { from, to };
        Ok((part, spec))
    }

    /// Rows of u8 pixels; `None` when rows of this shape are no images.
    pub(crate) fn pixels(element: ElementType, shape: &[u64], layout: PixelLayout) -> Option<Self> {
        if element != ElementType::U8 {
            return None;
        }
        let known = |channels: u64| matches!(channels, 1 | 3 | 4);
        let layout = match (layout, shape) {
            (PixelLayout::Auto, [_, _]) => PixelLayout::Hw,
            (PixelLayout::Auto, [_, _, channels]) if known(*channels) => PixelLayout::Hwc,
            (PixelLayout::Auto, [channels, _, _]) if known(*channels) => PixelLayout::Chw,
            (layout, _) => layout,
        };
        let (height, width, channels) = match (layout, shape) {
            (PixelLayout::Hw, &[height, width]) => (height, width, 1),
            (PixelLayout::Hwc, &[height, width, channels]) => (height, width, channels),
            (PixelLayout::Chw, &[channels, height, width]) => (height, width, channels),
            _ => return None,
        };
        let bytes = product(shape).filter(|&bytes| bytes > 0 && bytes <= MAX_IMAGE_BYTES)? as usize;
        let header = match channels {
            1 => format!("P5\n{width} {height}\n255\n"),
            3 => format!("P6\n{width} {height}\n255\n"),
            4 => format!(
                "P7\nWIDTH {width}\nHEIGHT {height}\nDEPTH 4\nMAXVAL 255\nTUPLTYPE RGB_ALPHA\nENDHDR\n"
            ),
            _ => return None,
        };
        let convert = if layout == PixelLayout::Chw && channels > 1 {
            Convert::Interleave { channels: channels as usize, plane: (height * width) as usize }
        } else {
            Convert::Plain
        };
        let size = u32::try_from(width).ok().zip(u32::try_from(height).ok());
        Some(Self { header: header.into_bytes(), stored: bytes, written: bytes, convert, size })
    }

    /// Rows of pixels that are an image of their own: as [`pixels`](Self::pixels), and gray ones of 16 bits (in `P5`,
    /// whose order is big-endian) or of true and false, as 1 and 0.
    pub(crate) fn picture(stored: Stored, shape: &[u64], layout: PixelLayout) -> Option<Self> {
        let as_u8 = |shape: &[u64]| {
            Self::pixels(ElementType::U8, shape, layout)
                .or_else(|| Self::pixels(ElementType::U8, shape, PixelLayout::Auto))
        };
        let mut part = as_u8(shape)?;
        let (width, height) = part.size?;
        let is_gray = u64::from(width) * u64::from(height) == part.stored as u64;
        match stored.element {
            ElementType::U8 => {}
            ElementType::Bool if is_gray => part.convert = Convert::Bool,
            ElementType::U16 if is_gray => {
                part.header = format!("P5\n{width} {height}\n65535\n").into_bytes();
                (part.stored, part.written) = (2 * part.stored, 2 * part.written);
                part.convert = if stored.big { Convert::Plain } else { Convert::Swap(2) };
            }
            _ => return None,
        }
        // With its header: one of exactly the limit is too large.
        (part.written() as u64 <= MAX_PART_BYTES).then_some(part)
    }

    /// Width and height of each image, if rows are pixels.
    pub(crate) fn image_size(&self) -> Option<(u32, u32)> {
        self.size
    }

    /// Bytes of a row as stored.
    pub(crate) fn stored(&self) -> usize {
        self.stored
    }

    /// Bytes of a row in the record, its header included.
    pub(crate) fn written(&self) -> usize {
        self.header.len() + self.written
    }

    /// Whether a row's bytes are the record's bytes.
    pub(crate) fn is_plain(&self) -> bool {
        self.header.is_empty() && self.convert == Convert::Plain
    }

    /// Writes one row. Both lengths are those of [`stored`](Self::stored) and [`written`](Self::written).
    ///
    /// # Errors
    /// What is wrong with the row's bytes.
    pub(crate) fn write(&self, row: &[u8], record: &mut [u8]) -> Result<(), String> {
        let (header, body) = record.split_at_mut(self.header.len());
        header.copy_from_slice(&self.header);
        match self.convert {
            Convert::Plain => body.copy_from_slice(row),
            Convert::Bool => {
                body.iter_mut().zip(row).for_each(|(to, from)| *to = u8::from(*from != 0));
            }
            Convert::Swap(size) => {
                for (to, from) in body.chunks_exact_mut(size).zip(row.chunks_exact(size)) {
                    to.iter_mut().zip(from.iter().rev()).for_each(|(to, from)| *to = *from);
                }
            }
            Convert::Interleave { channels, plane } => {
                for (channel, pixels) in row.chunks_exact(plane).enumerate() {
                    body[channel..]
                        .iter_mut()
                        .step_by(channels)
                        .zip(pixels)
                        .for_each(|(to, from)| *to = *from);
                }
            }
            Convert::Integers { from, to } => {
                let (read, write) = (from.element.size(), to.size());
                for (at, (to_bytes, from_bytes)) in
                    body.chunks_exact_mut(write).zip(row.chunks_exact(read)).enumerate()
                {
                    let value = from.integer(from_bytes);
                    let bytes = value.to_le_bytes();
                    if !fits(value, to) {
                        return Err(format!("element {at} is {value}, which is not a valid {to}"));
                    }
                    to_bytes.copy_from_slice(&bytes[..write]);
                }
            }
        }
        Ok(())
    }
}

/// Why rows of an array called `name` are no pictures beside a record's own image, and what to do.
pub(crate) fn no_picture(name: &str, stored: Stored, row: &[u64]) -> String {
    let may_be = matches!(stored.element, ElementType::U8 | ElementType::U16 | ElementType::Bool);
    let bytes = product(row).and_then(|count| count.checked_mul(stored.element.size() as u64));
    if may_be && bytes.is_none_or(|bytes| bytes >= MAX_PART_BYTES) {
        return format!(
            "its rows of shape {row:?} are {} MiB or more, which is too large for a part; save them in smaller pieces",
            MAX_PART_BYTES >> 20
        );
    }
    no_pixels(name, stored, row)
}

/// Why rows of an array called `name` are no images, and what makes images of them.
pub(crate) fn no_pixels(name: &str, stored: Stored, row: &[u64]) -> String {
    let is_shaped = match row {
        [_, _] => true,
        &[first, _, last] => [1, 3, 4].contains(&first) || [1, 3, 4].contains(&last),
        _ => false,
    };
    let element = stored.element;
    let into_u8 = match element {
        ElementType::U8 => None,
        ElementType::F16 | ElementType::F32 | ElementType::F64 => {
            Some(format!("({name} * 255).round().astype(np.uint8) if they lie between 0 and 1"))
        }
        ElementType::U16 => Some(format!("({name} >> 8).astype(np.uint8)")),
        ElementType::Bool => Some(format!("{name}.astype(np.uint8) * 255")),
        _ => Some(format!("{name}.astype(np.uint8) if they lie between 0 and 255")),
    };
    if let Some(remedy) = into_u8.filter(|_| is_shaped) {
        return format!(
            "its pixels are {element}, and those of images are uint8: save {remedy}, or deliver it as a field \
             (fields=[{name:?}])"
        );
    }
    if let (ElementType::U8, &[len]) = (element, row) {
        let square = |len: u64| len.isqrt().pow(2) == len;
        let side = if len % 3 == 0 && square(len / 3) { (len / 3).isqrt() } else { len.isqrt() };
        let shape = match (side * side == len, side * side * 3 == len) {
            (true, _) => format!("-1, {side}, {side}"),
            (_, true) => format!("-1, 3, {side}, {side}"),
            _ => "-1, height, width".into(),
        };
        return format!("its rows are flat; save {name}.reshape({shape})");
    }
    let is_u8 = element == ElementType::U8;
    format!(
        "its rows are {element} of shape {row:?}, and those of images are uint8 of (height, width), or with 1, 3 or 4 channels \
         first or last{}",
        if is_u8 && is_shaped { "; set layout to hw, hwc or chw" } else { "" }
    )
}

impl Stored {
    /// Whether its elements are integers.
    pub(crate) fn is_integer(self) -> bool {
        use ElementType::*;
        matches!(self.element, U8 | I8 | U16 | I16 | U32 | I32 | U64 | I64)
    }

    /// Whether its elements may be labels: whole numbers are, wherever they are stored as such or as floats.
    pub(crate) fn is_label(self) -> bool {
        self.is_integer() || self.is_float() || self.element == ElementType::Bool
    }

    /// Whether its elements are floats.
    pub(crate) fn is_float(self) -> bool {
        matches!(self.element, ElementType::F16 | ElementType::F32 | ElementType::F64)
    }

    /// What one element is as a label. `bytes` has its size.
    pub(crate) fn raw(self, bytes: &[u8]) -> Raw<'static> {
        let mut wide = [0; 8];
        let place = &mut wide[..bytes.len()];
        place.copy_from_slice(bytes);
        if self.big {
            place.reverse();
        }
        let bits = u64::from_le_bytes(wide);
        match self.element {
            ElementType::Bool => Raw::Number(i64::from(bits != 0)),
            ElementType::F16 => Raw::float(f16::from_bits(bits as u16).into()),
            ElementType::F32 => Raw::float(f32::from_bits(bits as u32).into()),
            ElementType::F64 => Raw::float(f64::from_bits(bits)),
            _ => Raw::whole(self.integer(bytes)),
        }
    }

    /// The value of one integer element. `bytes` has its size.
    pub(crate) fn integer(self, bytes: &[u8]) -> i128 {
        use ElementType::*;
        let mut wide = [0; 8];
        let place = &mut wide[..bytes.len()];
        place.copy_from_slice(bytes);
        if self.big {
            place.reverse();
        }
        let unsigned = u64::from_le_bytes(wide);
        let unused = 64 - 8 * bytes.len() as u32;
        match self.element {
            I8 | I16 | I32 | I64 => i128::from((unsigned << unused) as i64 >> unused),
            _ => i128::from(unsigned),
        }
    }
}

fn fits(value: i128, element: ElementType) -> bool {
    use ElementType::*;
    let bits = 8 * element.size() as u32;
    match element {
        I8 | I16 | I32 | I64 => (-(1i128 << (bits - 1))..1i128 << (bits - 1)).contains(&value),
        _ => (0..1i128 << bits).contains(&value),
    }
}

/// The number of elements, if a u64 can say it.
pub(crate) fn product(shape: &[u64]) -> Option<u64> {
    shape.iter().try_fold(1u64, |product, &n| product.checked_mul(n))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn written(part: &Part, row: &[u8]) -> Vec<u8> {
        assert_eq!(row.len(), part.stored());
        let mut record = vec![0xee; part.written()];
        part.write(row, &mut record).unwrap();
        record
    }

    #[test]
    fn pixels_become_images_with_a_header() {
        let row: Vec<u8> = (0..24).collect();
        let pixels = |shape: &[u64], layout| Part::pixels(ElementType::U8, shape, layout);
        let image = |shape: &[u64]| written(&pixels(shape, PixelLayout::Auto).unwrap(), &row[..]);
        assert_eq!(image(&[4, 6]), [b"P5\n6 4\n255\n", &row[..]].concat());
        assert_eq!(image(&[4, 6, 1]), [b"P5\n6 4\n255\n", &row[..]].concat());
        assert_eq!(image(&[4, 2, 3]), [b"P6\n2 4\n255\n", &row[..]].concat());
        assert!(image(&[3, 2, 4]).starts_with(b"P7\nWIDTH 2\nHEIGHT 3\nDEPTH 4\n"));
        let planes = image(&[3, 4, 2]);
        assert_eq!(planes[..11], *b"P6\n2 4\n255\n");
        assert_eq!(planes[11..17], [0, 8, 16, 1, 9, 17]);
        for (shape, layout) in [
            (&[24][..], PixelLayout::Auto),
            (&[2, 6, 2], PixelLayout::Auto),
            (&[0, 4], PixelLayout::Auto),
            (&[4, 6], PixelLayout::Hwc),
            (&[1 << 40, 1 << 40], PixelLayout::Auto),
            (&[1 << 20, 1 << 20], PixelLayout::Hw),
        ] {
            assert_eq!(pixels(shape, layout), None, "{shape:?}");
        }
        assert_eq!(Part::pixels(ElementType::I8, &[4, 6], PixelLayout::Auto), None);
    }

    #[test]
    fn gray_pixels_of_16_bits_and_truths_are_pictures_too() {
        let picture =
            |element, big, shape: &[u64]| Part::picture(Stored { element, big }, shape, PixelLayout::Hwc);
        let row = [1, 2, 3, 4];
        let deep = |big| written(&picture(ElementType::U16, big, &[1, 2]).unwrap(), &row);
        assert_eq!(deep(false), [b"P5\n2 1\n65535\n", &[2, 1, 4, 3][..]].concat());
        assert_eq!(deep(true), [b"P5\n2 1\n65535\n", &row[..]].concat());
        let truth = picture(ElementType::Bool, false, &[2, 2, 1]).unwrap();
        assert_eq!(written(&truth, &[0, 9, 1, 0]), [b"P5\n2 2\n255\n", &[0, 1, 1, 0][..]].concat());
        assert_eq!(
            picture(ElementType::U8, false, &[2, 2]),
            Part::pixels(ElementType::U8, &[2, 2], PixelLayout::Hw)
        );
        for (element, shape) in
            [(ElementType::U16, &[2, 2, 3][..]), (ElementType::F32, &[2, 2]), (ElementType::U16, &[4])]
        {
            assert_eq!(picture(element, false, shape), None);
        }
    }

    #[test]
    fn a_picture_with_its_header_is_no_larger_than_a_part_may_be() {
        for (element, width) in
            [(ElementType::U8, 1 << 15), (ElementType::Bool, 1 << 15), (ElementType::U16, 1 << 14)]
        {
            let stored = Stored { element, big: false };
            let picture = |height| Part::picture(stored, &[height, width], PixelLayout::Auto);
            assert!(picture((1 << 15) - 1).unwrap().written() as u64 <= MAX_PART_BYTES);
            assert_eq!(picture(1 << 15), None);
            let why = no_picture("x", stored, &[1 << 15, width]);
            assert!(why.contains("1024 MiB or more"), "{why}");
        }
        // A record's own image is no part.
        assert!(Part::pixels(ElementType::U8, &[1 << 15, 1 << 15], PixelLayout::Auto).is_some());
    }

    #[test]
    fn rows_that_are_no_images_are_told_what_makes_images_of_them() {
        use ElementType::*;
        for (element, row, expected) in [
            (F32, &[32u64, 32, 3][..], "(x * 255).round()"),
            (U16, &[28, 28], "(x >> 8)"),
            (Bool, &[28, 28, 1], "x.astype(np.uint8) * 255"),
            (I64, &[3, 8, 8], "x.astype(np.uint8) if"),
            (U8, &[784], "x.reshape(-1, 28, 28)"),
            (U8, &[3072], "x.reshape(-1, 3, 32, 32)"),
            (U8, &[7], "x.reshape(-1, height, width)"),
            (U8, &[8, 8, 2], "with 1, 3 or 4 channels"),
            (F32, &[8], "f32 of shape [8]"),
            (U8, &[], "uint8 of (height, width)"),
        ] {
            let why = no_pixels("x", Stored { element, big: false }, row);
            assert!(why.contains(expected), "{element} {row:?}: {why}");
        }
    }

    #[test]
    fn tokens_are_widened_and_what_does_not_fit_is_named() {
        let from = Stored { element: ElementType::U16, big: true };
        let (part, spec) = Part::tokens(2, from, ElementType::I64).unwrap();
        assert_eq!((spec.shape, spec.dtype), (vec![2], ElementType::I64));
        assert_eq!(
            written(&part, &[0x01, 0x02, 0xff, 0xff]),
            [2, 1, 0, 0, 0, 0, 0, 0, 255, 255, 0, 0, 0, 0, 0, 0]
        );
        let (part, _) = Part::tokens(1, from, ElementType::I16).unwrap();
        assert_eq!(
            part.write(&[0x80, 0], &mut [0; 2]),
            Err("element 0 is 32768, which is not a valid i16".into())
        );
    }

    #[test]
    fn elements_of_every_type_are_labels_if_they_are_whole() {
        let raw = |element, big, bytes: &[u8]| Stored { element, big }.raw(bytes);
        assert_eq!(raw(ElementType::F32, true, &3f32.to_be_bytes()), Raw::Number(3));
        assert_eq!(raw(ElementType::F64, false, &f64::NAN.to_le_bytes()), Raw::Missing);
        assert_eq!(raw(ElementType::F16, false, &f16::from_f32(0.5).to_le_bytes()), Raw::Fraction(0.5));
        assert_eq!(raw(ElementType::Bool, false, &[7]), Raw::Number(1));
        assert_eq!(raw(ElementType::I16, true, &(-2i16).to_be_bytes()), Raw::Number(-2));
        assert!(matches!(raw(ElementType::U64, false, &[255; 8]), Raw::Wrong(_)));
    }

    proptest! {
        #[test]
        fn integers_of_every_type_keep_their_value(value: i64) {
            let check = |element: ElementType, little: &[u8], expected: i128| {
                let big: Vec<u8> = little.iter().rev().copied().collect();
                assert_eq!(Stored { element, big: false }.integer(little), expected);
                assert_eq!(Stored { element, big: true }.integer(&big), expected);
            };
            check(ElementType::I8, &(value as i8).to_le_bytes(), i128::from(value as i8));
            check(ElementType::U8, &(value as u8).to_le_bytes(), i128::from(value as u8));
            check(ElementType::I16, &(value as i16).to_le_bytes(), i128::from(value as i16));
            check(ElementType::U32, &(value as u32).to_le_bytes(), i128::from(value as u32));
            check(ElementType::I64, &value.to_le_bytes(), i128::from(value));
            check(ElementType::U64, &(value as u64).to_le_bytes(), i128::from(value as u64));
        }

        #[test]
        fn numbers_are_little_endian_in_a_record(values in prop::collection::vec(any::<f32>(), 1..20)) {
            let stored = Stored { element: ElementType::F32, big: true };
            let (part, _) = Part::field("x", stored, &[values.len() as u64]).unwrap();
            let row: Vec<u8> = values.iter().flat_map(|value| value.to_be_bytes()).collect();
            let expected: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
            prop_assert_eq!(written(&part, &row), expected);
        }
    }
}
