//! The output pass with AVX2 and F16C: eight pixels at a time.

// Loads and stores through pointers, whose bounds are asserted at the top.
#![allow(unsafe_code)]

use std::arch::x86_64::*;

use super::Pass;
use crate::config::{Dtype, Layout};
use crate::geometry::PIXEL;

/// Pixels of a step; narrower rows are the plain kernel's. The last step of a row starts earlier, so as to end with
/// the row, and writes some elements twice, the same.
pub(super) const MIN_WIDTH: usize = 8;

/// Writes row `y` of the image, whose pixels are `source`, into the sample's memory `out`.
pub(super) fn row(pass: &Pass, source: &[u8], flip: bool, y: usize, out: &mut [u8]) {
    let spec = &pass.spec;
    assert!(spec.width >= MIN_WIDTH && y < spec.height && matches!(spec.channels, 1 | 3));
    assert_eq!(source.len(), spec.width * PIXEL);
    assert_eq!(out.len(), spec.row_bytes());
    assert!(std::arch::is_x86_feature_detected!("avx2") && std::arch::is_x86_feature_detected!("f16c"));
    // SAFETY: both features were detected, and the lengths are those the kernels ask for, asserted above.
    unsafe {
        match spec.dtype {
            Dtype::U8 => bytes(pass, source, flip, y, out),
            Dtype::F32 => floats::<F32>(pass, source, flip, y, out),
            Dtype::F16 => floats::<F16>(pass, source, flip, y, out),
            Dtype::Bf16 => floats::<BF16>(pass, source, flip, y, out),
            Dtype::U16 => unreachable!("the type of masks, which this pass does not write"),
        }
    }
}

const F32: u8 = 0;
const F16: u8 = 1;
const BF16: u8 = 2;

/// Stores eight values of a type, at element `index` of `out`.
///
/// # Safety
/// `index + 8` elements of that type must fit `out`.
#[inline]
#[target_feature(enable = "avx2,f16c")]
unsafe fn store<const TYPE: u8>(out: &mut [u8], index: usize, v: __m256) {
    let size = if TYPE == F32 { 4 } else { 2 };
    debug_assert!((index + 8) * size <= out.len());
    // SAFETY: the caller's promise; the stores are unaligned ones of 32 and of 16 bytes.
    unsafe {
        let to = out.as_mut_ptr().add(index * size);
        match TYPE {
            F32 => _mm256_storeu_ps(to.cast(), v),
            F16 => _mm_storeu_si128(to.cast(), _mm256_cvtps_ph::<{ _MM_FROUND_TO_NEAREST_INT }>(v)),
            _ => _mm_storeu_si128(to.cast(), bf16(v)),
        }
    }
}

/// Eight pixels that become columns `x..x + 8` of the result, in their order.
///
/// # Safety
/// `source` must hold `width` pixels and `x + 8 <= width`.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn load(source: &[u8], width: usize, flip: bool, x: usize) -> __m256i {
    let from = if flip { width - 8 - x } else { x };
    // SAFETY: from + 8 <= width in both cases, so the 32 bytes lie in the row.
    let pixels = unsafe { _mm256_loadu_si256(source.as_ptr().add(from * PIXEL).cast()) };
    if flip { _mm256_permutevar8x32_epi32(pixels, _mm256_setr_epi32(7, 6, 5, 4, 3, 2, 1, 0)) } else { pixels }
}

/// RGBX of eight pixels to 24 bytes of RGB at the front.
#[inline]
#[target_feature(enable = "avx2")]
fn pack_rgb(pixels: __m256i) -> __m256i {
    #[rustfmt::skip]
    let drop_x = _mm256_setr_epi8(
        0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14, -1, -1, -1, -1,
        0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14, -1, -1, -1, -1,
    );
    let packed = _mm256_shuffle_epi8(pixels, drop_x);
    _mm256_permutevar8x32_epi32(packed, _mm256_setr_epi32(0, 1, 2, 4, 5, 6, 3, 7))
}

/// Channel `c` of eight pixels, as 32-bit integers.
#[inline]
#[target_feature(enable = "avx2")]
fn channel(pixels: __m256i, c: usize) -> __m256i {
    let shift = _mm_cvtsi32_si128(8 * c as i32);
    _mm256_and_si256(_mm256_srl_epi32(pixels, shift), _mm256_set1_epi32(255))
}

/// Rounds to nearest even; the values are finite.
#[inline]
#[target_feature(enable = "avx2")]
fn bf16(v: __m256) -> __m128i {
    let bits = _mm256_castps_si256(v);
    let odd = _mm256_and_si256(_mm256_srli_epi32::<16>(bits), _mm256_set1_epi32(1));
    let rounded = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7FFF)), odd);
    let upper = _mm256_srli_epi32::<16>(rounded);
    _mm_packus_epi32(_mm256_castsi256_si128(upper), _mm256_extracti128_si256::<1>(upper))
}

/// # Safety
/// The lengths that `row` asserts.
#[target_feature(enable = "avx2")]
unsafe fn bytes(pass: &Pass, source: &[u8], flip: bool, y: usize, out: &mut [u8]) {
    let (width, height) = (pass.spec.width, pass.spec.height);
    let mut x = 0;
    while x < width {
        let at = x.min(width - 8);
        // SAFETY: at + 8 <= width.
        let pixels = unsafe { load(source, width, flip, at) };
        if pass.spec.layout == Layout::Nhwc && pass.spec.channels == 3 {
            let rgb = pack_rgb(pixels);
            // SAFETY: the row's 3 * width bytes begin at 3 * width * y, and 3 * at + 24 <= 3 * width.
            unsafe {
                let to = out.as_mut_ptr().add((y * width + at) * 3);
                _mm_storeu_si128(to.cast(), _mm256_castsi256_si128(rgb));
                _mm_storel_epi64(to.add(16).cast(), _mm256_extracti128_si256::<1>(rgb));
            }
        } else {
            for c in 0..pass.spec.channels {
                let values = channel(pixels, c);
                let words =
                    _mm_packus_epi32(_mm256_castsi256_si128(values), _mm256_extracti128_si256::<1>(values));
                // SAFETY: row y of plane c begins at (c * height + y) * width and has width bytes; at + 8 <= width.
                // With one channel both layouts are this one.
                unsafe {
                    let to = out.as_mut_ptr().add((c * height + y) * width + at);
                    _mm_storel_epi64(to.cast(), _mm_packus_epi16(words, words));
                }
            }
        }
        x += 8;
    }
}

#[inline]
#[target_feature(enable = "avx2")]
fn affine(values: __m256i, scale: __m256, bias: __m256) -> __m256 {
    _mm256_add_ps(_mm256_mul_ps(_mm256_cvtepi32_ps(values), scale), bias)
}

/// # Safety
/// The lengths that `row` asserts, for elements of `TYPE`.
#[target_feature(enable = "avx2,f16c")]
unsafe fn floats<const TYPE: u8>(pass: &Pass, source: &[u8], flip: bool, y: usize, out: &mut [u8]) {
    let (width, height) = (pass.spec.width, pass.spec.height);
    if pass.spec.layout == Layout::Nhwc && pass.spec.channels == 3 {
        // Channels repeat every 24 elements: three vectors of factors.
        let pattern = |v: &[f32; 3], start: usize| -> __m256 {
            let at = |i: usize| v[(start + i) % 3];
            _mm256_setr_ps(at(0), at(1), at(2), at(3), at(4), at(5), at(6), at(7))
        };
        let scales: [__m256; 3] = std::array::from_fn(|i| pattern(&pass.scale, 8 * i));
        let biases: [__m256; 3] = std::array::from_fn(|i| pattern(&pass.bias, 8 * i));
        let mut x = 0;
        while x < width {
            let at = x.min(width - 8);
            // SAFETY: at + 8 <= width.
            let rgb = pack_rgb(unsafe { load(source, width, flip, at) });
            let low = _mm256_castsi256_si128(rgb);
            let parts = [low, _mm_srli_si128::<8>(low), _mm256_extracti128_si256::<1>(rgb)];
            for (i, part) in parts.into_iter().enumerate() {
                let values = affine(_mm256_cvtepu8_epi32(part), scales[i], biases[i]);
                // SAFETY: elements 3 * at + 8 * i .. + 8 of row y: 3 * at + 24 <= 3 * width.
                unsafe { store::<TYPE>(out, (y * width + at) * 3 + 8 * i, values) };
            }
            x += 8;
        }
        return;
    }
    for c in 0..pass.spec.channels {
        let (scale, bias) = (_mm256_set1_ps(pass.scale[c]), _mm256_set1_ps(pass.bias[c]));
        let mut x = 0;
        while x < width {
            let at = x.min(width - 8);
            // SAFETY: at + 8 <= width.
            let values = affine(channel(unsafe { load(source, width, flip, at) }, c), scale, bias);
            // SAFETY: elements at .. at + 8 of row y of plane c, which has width elements. With one channel both
            // layouts are this one.
            unsafe { store::<TYPE>(out, (c * height + y) * width + at, values) };
            x += 8;
        }
    }
}
