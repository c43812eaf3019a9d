//! The resize passes with AVX2: 32-bit multiplies of eight channel values at a time.

// Loads and stores through pointers, whose bounds are asserted in front of each loop.
#![allow(unsafe_code)]

use std::arch::x86_64::*;

use super::{PRECISION, ROUND, Windows};
use crate::geometry::{Image, PIXEL, View};

/// The fewest bytes of a row that [`vertical`] takes.
pub(super) const VERTICAL_BYTES: usize = 32;

/// Rows done at once in the horizontal pass, so that a weight is loaded once for all of them.
const ROWS: usize = 4;

/// The horizontal pass. The windows must lie inside the source and hold an even number of taps.
pub(super) fn horizontal(source: View<'_>, windows: &Windows<'_>, out: &mut Image) {
    assert!(windows.inside(source.w) && windows.taps.is_multiple_of(2));
    assert_eq!(out.size(), (windows.first.len(), source.h));
    assert_eq!(windows.weights.len(), windows.first.len() * windows.taps);
    assert!(std::arch::is_x86_feature_detected!("avx2"));
    let mut y = 0;
    while y < source.h {
        // The last group repeats its last row, which costs little and needs no second kernel.
        let rows: [&[u8]; ROWS] = std::array::from_fn(|i| source.row((y + i).min(source.h - 1)));
        let count = ROWS.min(source.h - y);
        let out_row = windows.first.len() * PIXEL;
        let group = &mut out.bytes_mut()[y * out_row..(y + count) * out_row];
        // SAFETY: AVX2 was detected, and the windows lie inside rows of `source.w` pixels, both asserted above.
        unsafe { horizontal_rows(rows, windows, group, count) };
        y += ROWS;
    }
}

/// # Safety
/// Every window of `windows`, padding included, must lie inside each of `rows`, and hold an even number of taps.
#[target_feature(enable = "avx2")]
unsafe fn horizontal_rows(rows: [&[u8]; ROWS], windows: &Windows<'_>, out: &mut [u8], count: usize) {
    let spread = _mm256_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1);
    // The rounding in one of the two halves that are added up at the end.
    let round = _mm256_setr_epi32(ROUND, ROUND, ROUND, ROUND, 0, 0, 0, 0);
    let width = windows.first.len();
    let mut weights = windows.weights.as_ptr();
    for (x, first) in windows.first.iter().enumerate() {
        let start = (*first as usize - windows.offset) * PIXEL;
        let mut sums = [round; ROWS];
        for pair in 0..windows.taps / 2 {
            // SAFETY: `weights` points at weight 2 * pair of output x, and there are `taps` (even) of each output.
            let two = unsafe { _mm_loadl_epi64(weights.add(2 * pair).cast()) };
            let two = _mm256_permutevar8x32_epi32(_mm256_castsi128_si256(two), spread);
            for (sum, row) in sums.iter_mut().zip(&rows) {
                // SAFETY: pixels start/4 + 2 * pair and the one after it are in the window, which the caller keeps
                // inside the row: eight bytes from there on.
                let pixels = unsafe { _mm_loadl_epi64(row.as_ptr().add(start + 2 * pair * PIXEL).cast()) };
                let products = _mm256_mullo_epi32(_mm256_cvtepu8_epi32(pixels), two);
                *sum = _mm256_add_epi32(*sum, products);
            }
        }
        // SAFETY: at most one past the last output's weights, where the slice ends.
        weights = unsafe { weights.add(windows.taps) };
        // Adds the halves of two rows at a time, which leaves a row in each half.
        let both = |a: __m256i, b: __m256i| {
            let sum = _mm256_add_epi32(
                _mm256_permute2x128_si256::<0x20>(a, b),
                _mm256_permute2x128_si256::<0x31>(a, b),
            );
            _mm256_srai_epi32::<{ PRECISION as i32 }>(sum)
        };
        let words = _mm256_packs_epi32(both(sums[0], sums[1]), both(sums[2], sums[3]));
        let bytes = _mm256_packus_epi16(words, words);
        let (even, odd) = (_mm256_castsi256_si128(bytes), _mm256_extracti128_si256::<1>(bytes));
        let (even, odd) = (_mm_cvtsi128_si64(even) as u64, _mm_cvtsi128_si64(odd) as u64);
        let pixels = [even as u32, odd as u32, (even >> 32) as u32, (odd >> 32) as u32];
        for (i, pixel) in pixels.into_iter().enumerate().take(count) {
            let at = (i * width + x) * PIXEL;
            out[at..at + PIXEL].copy_from_slice(&pixel.to_le_bytes());
        }
    }
}

/// The vertical pass, for rows of at least [`VERTICAL_BYTES`].
pub(super) fn vertical(source: View<'_>, windows: &Windows<'_>, out: &mut Image) {
    let bytes = source.w * PIXEL;
    assert!(bytes >= VERTICAL_BYTES && windows.inside(source.h));
    assert_eq!(out.size(), (source.w, windows.first.len()));
    assert!(std::arch::is_x86_feature_detected!("avx2"));
    for y in 0..windows.first.len() {
        let (start, weights) = windows.of(y);
        let (data, stride) = source.rows_from(start);
        assert!(weights.len() <= source.h - start && (weights.len() - 1) * stride + bytes <= data.len());
        // SAFETY: AVX2 was detected, and that each row of the window has `bytes` bytes in `data` was asserted, as
        // was that these are at least 32; the output row has the same number, its image being source.w wide.
        unsafe { vertical_row(data, stride, weights, out.row_mut(y)) };
    }
}

/// # Safety
/// `data` must hold `out.len()` bytes, at least 32, at each of the first `weights.len()` multiples of `stride`.
#[target_feature(enable = "avx2")]
unsafe fn vertical_row(data: &[u8], stride: usize, weights: &[i32], out: &mut [u8]) {
    let round = _mm256_set1_epi32(ROUND);
    let mut at = 0;
    while at < out.len() {
        // The last step starts earlier, so as to end with the row; it writes some bytes twice, the same.
        let from = at.min(out.len() - VERTICAL_BYTES);
        let mut sums = [round; 4];
        for (row, weight) in weights.iter().enumerate() {
            let weight = _mm256_set1_epi32(*weight);
            for (part, sum) in sums.iter_mut().enumerate() {
                // SAFETY: the row begins at `row * stride` and has out.len() bytes (the caller's promise), and
                // `from + part * 8 + 8 <= from + 32 <= out.len()`.
                let values =
                    unsafe { _mm_loadl_epi64(data.as_ptr().add(row * stride + from + part * 8).cast()) };
                *sum = _mm256_add_epi32(*sum, _mm256_mullo_epi32(_mm256_cvtepu8_epi32(values), weight));
            }
        }
        let [a, b, c, d] = sums.map(|sum| _mm256_srai_epi32::<{ PRECISION as i32 }>(sum));
        // Packing works within 128-bit lanes; the permutation puts the lanes' halves back in order.
        let bytes = _mm256_packus_epi16(_mm256_packs_epi32(a, b), _mm256_packs_epi32(c, d));
        let bytes = _mm256_permutevar8x32_epi32(bytes, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
        // SAFETY: `from + 32 <= out.len()`.
        unsafe { _mm256_storeu_si256(out.as_mut_ptr().add(from).cast(), bytes) };
        at += VERTICAL_BYTES;
    }
}
