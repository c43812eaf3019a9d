//! The compressions of TIFF. Each fills a buffer of known length, so that none can produce more.

use std::convert::Infallible;
use std::io::Read;

use fax::maps::{black, white};
use fax::{BitReader, ByteReader, Color};
use liblzma::bufread::XzDecoder;

use crate::error::SampleError;

/// Twice what xz's largest preset needs; a header may ask for gigabytes.
const MOST_LZMA_MEMORY: u64 = 128 << 20;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Compression {
    None,
    /// Run lengths of black and white, each row from a new byte on.
    Fax,
    /// The same with marks between the rows.
    Group3,
    Group4,
    Lzw,
    Jpeg,
    Deflate,
    PackBits,
    Zstd,
    Lzma,
}

impl Compression {
    pub(super) fn of(number: u64) -> Result<Self, SampleError> {
        Ok(match number {
            1 => Compression::None,
            2 => Compression::Fax,
            3 => Compression::Group3,
            4 => Compression::Group4,
            5 => Compression::Lzw,
            7 => Compression::Jpeg,
            8 | 32_946 => Compression::Deflate,
            32_773 => Compression::PackBits,
            34_925 => Compression::Lzma,
            50_000 => Compression::Zstd,
            other => {
                let name = match other {
                    6 => "the old JPEG",
                    34_712 | 33_003 | 33_005 => "JPEG 2000",
                    50_001 => "WebP",
                    50_002 => "JPEG XL",
                    34_887 => "LERC",
                    _ => "unknown",
                };
                return Err(super::unsupported(
                    &format!("{name} compression ({other})"),
                    "write it again with another, for example with `tiffcp -c lzw in.tif out.tif`",
                ));
            }
        })
    }
}

/// Unpacks `packed` into all of `out`, which holds rows of `width` pixels. False if there is too little of it.
pub(super) fn unpack(
    compression: Compression,
    packed: &[u8],
    reversed: bool,
    options: u64,
    width: usize,
    out: &mut [u8],
) -> Result<bool, SampleError> {
    let turned;
    let packed = if reversed {
        turned = packed.iter().map(|byte| byte.reverse_bits()).collect::<Vec<_>>();
        &turned[..]
    } else {
        packed
    };
    Ok(match compression {
        Compression::None => match packed.get(..out.len()) {
            Some(packed) => {
                out.copy_from_slice(packed);
                true
            }
            None => false,
        },
        Compression::PackBits => pack_bits(packed, out),
        Compression::Lzw => lzw(packed, out),
        Compression::Deflate => flate2::read::ZlibDecoder::new(packed).read_exact(out).is_ok(),
        Compression::Zstd => {
            let decoder = zstd::stream::read::Decoder::with_buffer(packed);
            decoder.is_ok_and(|mut decoder| decoder.read_exact(out).is_ok())
        }
        Compression::Lzma => {
            let stream = liblzma::stream::Stream::new_stream_decoder(MOST_LZMA_MEMORY, 0);
            stream.is_ok_and(|stream| XzDecoder::new_stream(packed, stream).read_exact(out).is_ok())
        }
        Compression::Fax | Compression::Group3 if options & 1 != 0 => {
            return Err(super::unsupported(
                "two-dimensional fax codes of group 3",
                "write it again with another compression, for example with `tiffcp -c lzw in.tif out.tif`",
            ));
        }
        Compression::Fax => fax_rows(packed, false, width, out),
        Compression::Group3 => fax_rows(packed, true, width, out),
        Compression::Group4 => group_4(packed, width, out),
        Compression::Jpeg => {
            return Err(super::unsupported("JPEG streams of single planes", super::CONVERT));
        }
    })
}

fn pack_bits(mut packed: &[u8], out: &mut [u8]) -> bool {
    let mut done = 0;
    while done < out.len() {
        let Some((&control, rest)) = packed.split_first() else { return false };
        let count = match control {
            0..=127 => usize::from(control) + 1,
            128 => 0,
            _ => 257 - usize::from(control),
        };
        let end = out.len().min(done + count);
        if control < 128 {
            let Some(bytes) = rest.get(..count) else { return false };
            out[done..end].copy_from_slice(&bytes[..end - done]);
            packed = &rest[count..];
        } else if control == 128 {
            packed = rest;
        } else {
            let Some((&byte, rest)) = rest.split_first() else { return false };
            out[done..end].fill(byte);
            packed = rest;
        }
        done = end;
    }
    true
}

fn lzw(mut packed: &[u8], out: &mut [u8]) -> bool {
    let mut decoder = weezl::decode::Decoder::with_tiff_size_switch(weezl::BitOrder::Msb, 8);
    let mut done = 0;
    while done < out.len() {
        let result = decoder.decode_bytes(packed, &mut out[done..]);
        packed = &packed[result.consumed_in..];
        done += result.consumed_out;
        match result.status {
            Ok(weezl::LzwStatus::Ok) if result.consumed_in > 0 || result.consumed_out > 0 => {}
            _ => break,
        }
    }
    done == out.len()
}

/// Makes the pixels from `from` to `to` of a row black: ones.
fn blacken(row: &mut [u8], from: usize, to: usize) {
    for at in from..to {
        row[at / 8] |= 0x80 >> (at % 8);
    }
}

fn fax_rows(packed: &[u8], marks: bool, width: usize, out: &mut [u8]) -> bool {
    const MARK: u16 = 1;
    // The codes are looked up by more bits than they have.
    let padded = packed.iter().copied().chain([0; 4]).map(Ok::<u8, Infallible>);
    let Ok(mut bits) = ByteReader::new(padded);
    for row in out.chunks_exact_mut(width.div_ceil(8)) {
        if marks {
            // Fill bits may stand before the mark; a code never begins with so many zeros.
            while bits.peek(12) == Some(0) {
                let _ = bits.consume(1);
            }
            if bits.peek(12) == Some(MARK) {
                let _ = bits.consume(12);
            } else if bits.peek(8) == Some(0) {
                while bits.peek(12).is_some_and(|code| code != MARK) {
                    let _ = bits.consume(1);
                }
                let _ = bits.consume(12);
            }
        }
        let (mut at, mut color) = (0, Color::White);
        while at < width {
            let mut run = 0;
            loop {
                let code = match color {
                    Color::White => white::decode(&mut bits),
                    Color::Black => black::decode(&mut bits),
                };
                let Some(code) = code else { return false };
                run += usize::from(code);
                if code < 64 {
                    break;
                }
            }
            let end = width.min(at + run);
            if color == Color::Black {
                blacken(row, at, end);
            }
            (at, color) = (end, !color);
        }
        if !marks {
            let _ = bits.consume(bits.bits_to_byte_boundary());
        }
    }
    true
}

fn group_4(packed: &[u8], width: usize, out: &mut [u8]) -> bool {
    let rows = out.len() / width.div_ceil(8);
    let (Ok(width), Ok(height)) = (u16::try_from(width), u16::try_from(rows)) else { return false };
    let mut rows = out.chunks_exact_mut(usize::from(width).div_ceil(8));
    let whole = fax::decoder::decode_g4(packed.iter().copied(), width, Some(height), |changes| {
        let Some(row) = rows.next() else { return };
        for pair in changes.chunks(2) {
            let end = pair.get(1).copied().unwrap_or(width).min(width);
            blacken(row, pair[0].min(end).into(), end.into());
        }
    });
    whole.is_some()
}
