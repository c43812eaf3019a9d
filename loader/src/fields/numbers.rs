//! Numbers of one type as numbers of another: exactly, or rounded where the target is a float, or not at all.

use fuelrail_connectors::ElementType;
use half::f16;

/// From one type to another, for a fixed number of elements.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cast {
    from: ElementType,
    to: ElementType,
    count: usize,
}

/// A number of any type. Whole numbers of 64 bits do not all fit in a float.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd)]
pub(crate) enum Number {
    Whole(i128),
    Real(f64),
}

impl Cast {
    /// # Errors
    /// When numbers of one type cannot be meant as the other: fractions as whole numbers, numbers as booleans.
    pub fn new(from: ElementType, to: ElementType, count: u64) -> Result<Self, String> {
        let is_float = |dtype| matches!(dtype, ElementType::F16 | ElementType::F32 | ElementType::F64);
        let is_bool = |dtype| dtype == ElementType::Bool;
        if from != to && (is_bool(to) || (is_float(from) && !is_float(to))) {
            return Err(format!(
                "its numbers are stored as {from}, which dtype = {to} cannot hold; leave dtype out, or convert \
                 the batch"
            ));
        }
        Ok(Self { from, to, count: count as usize })
    }

    /// The type of what is read.
    pub fn from(self) -> ElementType {
        self.from
    }

    /// The type of what is written.
    pub fn to(self) -> ElementType {
        self.to
    }

    /// Bytes that are written.
    pub fn bytes(self) -> usize {
        self.count * self.to.size()
    }

    /// Bytes that are read.
    pub fn stored_bytes(self) -> usize {
        self.count * self.from.size()
    }

    /// Writes the first numbers of `stored` into `row`.
    ///
    /// # Errors
    /// When one of them is out of the range of the target.
    pub fn write(self, stored: &[u8], row: &mut [u8]) -> Result<(), String> {
        let stored = &stored[..self.stored_bytes()];
        if self.from == self.to {
            row.copy_from_slice(stored);
            return Ok(());
        }
        let (from, to) = (stored.chunks_exact(self.from.size()), row.chunks_exact_mut(self.to.size()));
        for (from, to) in from.zip(to) {
            write(read(self.from, from), self.to, to)?;
        }
        Ok(())
    }
}

/// The number that these bytes are.
pub(crate) fn read(dtype: ElementType, bytes: &[u8]) -> Number {
    macro_rules! number {
        ($type:ty) => {
            <$type>::from_le_bytes(bytes.try_into().expect("a number of this type"))
        };
    }
    match dtype {
        ElementType::Bool => Number::Whole(i128::from(bytes[0] != 0)),
        ElementType::U8 => Number::Whole(bytes[0].into()),
        ElementType::I8 => Number::Whole(number!(i8).into()),
        ElementType::U16 => Number::Whole(number!(u16).into()),
        ElementType::I16 => Number::Whole(number!(i16).into()),
        ElementType::U32 => Number::Whole(number!(u32).into()),
        ElementType::I32 => Number::Whole(number!(i32).into()),
        ElementType::U64 => Number::Whole(number!(u64).into()),
        ElementType::I64 => Number::Whole(number!(i64).into()),
        ElementType::F16 => Number::Real(number!(f16).into()),
        ElementType::F32 => Number::Real(number!(f32).into()),
        ElementType::F64 => Number::Real(number!(f64)),
    }
}

fn write(number: Number, dtype: ElementType, row: &mut [u8]) -> Result<(), String> {
    macro_rules! whole {
        ($type:ty) => {{
            let Number::Whole(number) = number else { unreachable!("refused when it was made") };
            let fits = <$type>::try_from(number);
            let fits = fits.map_err(|_| format!("{number} does not fit in dtype {dtype}"))?;
            row.copy_from_slice(&fits.to_le_bytes());
        }};
    }
    let real = || match number {
        Number::Whole(number) => number as f64,
        Number::Real(number) => number,
    };
    match dtype {
        ElementType::Bool => unreachable!("refused when it was made"),
        ElementType::U8 => whole!(u8),
        ElementType::I8 => whole!(i8),
        ElementType::U16 => whole!(u16),
        ElementType::I16 => whole!(i16),
        ElementType::U32 => whole!(u32),
        ElementType::I32 => whole!(i32),
        ElementType::U64 => whole!(u64),
        ElementType::I64 => whole!(i64),
        ElementType::F16 => row.copy_from_slice(&f16::from_f64(real()).to_le_bytes()),
        ElementType::F32 => row.copy_from_slice(&(real() as f32).to_le_bytes()),
        ElementType::F64 => row.copy_from_slice(&real().to_le_bytes()),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn numbers_that_cannot_be_meant_are_refused() {
        assert!(Cast::new(ElementType::F32, ElementType::I64, 1).unwrap_err().contains("f32"));
        assert!(Cast::new(ElementType::U8, ElementType::Bool, 1).is_err());
        let cast = Cast::new(ElementType::I64, ElementType::U8, 2).unwrap();
        let stored = [3i64, 256].map(i64::to_le_bytes).concat();
        assert!(cast.write(&stored, &mut [0; 2]).unwrap_err().contains("256 does not fit in dtype u8"));
        let mut row = [0; 2];
        Cast::new(ElementType::Bool, ElementType::U8, 2).unwrap().write(&[1, 0], &mut row).unwrap();
        assert_eq!(row, [1, 0]);
    }

    proptest! {
        #[test]
        fn whole_numbers_keep_their_value(values in prop::collection::vec(any::<i32>(), 0..9)) {
            let cast = |to| Cast::new(ElementType::I32, to, values.len() as u64).unwrap();
            let stored: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
            let expected: Vec<u8> = values.iter().flat_map(|&value| i64::from(value).to_le_bytes()).collect();
            let mut row = vec![0; expected.len()];
            cast(ElementType::I64).write(&stored, &mut row).unwrap();
            prop_assert_eq!(&row, &expected);
            let expected: Vec<u8> = values.iter().flat_map(|&value| (value as f64).to_le_bytes()).collect();
            cast(ElementType::F64).write(&stored, &mut row).unwrap();
            prop_assert_eq!(&row, &expected);
        }
    }
}
