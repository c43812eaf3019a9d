//! What one sample may cost, checked against its header before anything is allocated.

use serde::{Deserialize, Serialize};

use crate::error::SampleError;

/// What becomes of a picture whose data end before it does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Truncated {
    /// It is a bad record.
    #[default]
    Bad,
    /// What is there is delivered, the rest as the decoder leaves it: gray in a JPEG, black in a PNG,
    /// the background in a GIF.
    Fill,
}

/// Bounds on what decoding and transforming one sample may allocate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The most bytes one decoded image may take, at four bytes a pixel as it lies in memory; the coefficients of a
    /// progressive JPEG (two bytes each) and every intermediate image of a chain are held to the same number.
    /// A sample may hold two or three such images at once.
    pub max_sample_bytes: u64,
    /// Whether a picture that is not all there is refused.
    pub truncated: Truncated,
}

impl Default for Limits {
    /// 256 MiB: 67 million pixels.
    fn default() -> Self {
        Limits { max_sample_bytes: 256 << 20, truncated: Truncated::Bad }
    }
}

impl Limits {
    /// Refuses an image of this size if its pixels would not fit; `what` opens the sentence, such as "the image".
    pub(crate) fn check_pixels(&self, what: &str, width: u64, height: u64) -> Result<(), SampleError> {
        let bytes = width.saturating_mul(height).saturating_mul(4);
        if bytes > self.max_sample_bytes {
            return Err(SampleError::too_large(format!(
                "{what} is {width} x {height} pixels, {bytes} bytes when decoded, and the limit is {} bytes",
                self.max_sample_bytes
            )));
        }
        Ok(())
    }
}
