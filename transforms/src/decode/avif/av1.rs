//! One AV1 picture: decoded by rav1d, then to RGB. rav1d is dav1d's C interface inside, which no panic can leave: it
//! works on a thread that may be lost (`expendable.rs`).

use re_rav1d::{Decoder, Error, Picture, PixelLayout, PlanarImageComponent, Settings};

use super::super::{expendable, gave_up};
use super::boxes::Colors;
use super::malformed;
use crate::error::SampleError;
use crate::geometry::Image;

/// Frames that the data of a still picture may hold: one, or a few layers. Each frame of a few bytes can cost as much
/// as the whole picture.
const MOST_FRAMES: usize = 16;

pub(super) struct Decoded(Picture);

/// Decodes the picture in `data`, which must have this size.
pub(super) fn decode(data: Vec<u8>, (w, h): (usize, usize)) -> Result<Decoded, SampleError> {
    if frames(&data) > MOST_FRAMES {
        return Err(SampleError::too_large(format!("AVIF: a picture of more than {MOST_FRAMES} frames")));
    }
    match expendable::run(move || run(data, (w, h))) {
        Ok(Some(decoded)) => decoded,
        Ok(None) => Err(gave_up("AVIF")),
        Err(error) => Err(SampleError::too_large(format!("AVIF: no thread to decode it: {error}"))),
    }
}

fn run(data: Vec<u8>, (w, h): (usize, usize)) -> Result<Decoded, SampleError> {
    let mut settings = Settings::new();
    // One thread a record, as for every other format; and no frame that is larger than it should be.
    settings.set_n_threads(1);
    settings.set_max_frame_delay(1);
    settings.set_all_layers(false);
    settings.set_frame_size_limit(u32::try_from(w * h).unwrap_or(u32::MAX));
    let mut decoder = Decoder::with_settings(&settings).map_err(refuse)?;
    let mut sent = decoder.send_data(data, None, None, None);
    let picture = loop {
        match decoder.get_picture() {
            Ok(picture) => break picture,
            Err(Error::Again) if sent == Err(Error::Again) => sent = decoder.send_pending_data(),
            Err(Error::Again) => return Err(malformed("damaged or truncated AV1 data")),
            Err(error) => return Err(refuse(error)),
        }
        match sent {
            Ok(()) | Err(Error::Again) => {}
            Err(error) => return Err(refuse(error)),
        }
    };
    if (picture.width() as usize, picture.height() as usize) != (w, h) {
        return Err(malformed(&format!(
            "a picture of {} x {} pixels where the file announces {w} x {h}",
            picture.width(),
            picture.height()
        )));
    }
    Ok(Decoded(picture))
}

/// How many frames the data hold, as far as they are in order.
fn frames(mut data: &[u8]) -> usize {
    let mut frames = 0;
    while let Some((&header, rest)) = data.split_first() {
        // Frame headers, frames, and headers repeated.
        frames += usize::from(matches!(header >> 3 & 0xF, 3 | 6 | 7));
        let rest = rest.get(usize::from(header >> 2 & 1)..).unwrap_or_default();
        if header & 2 == 0 {
            break;
        }
        let Some(bytes) = rest.iter().take(8).position(|byte| byte & 0x80 == 0) else { break };
        let size = rest[..=bytes].iter().rev().fold(0, |sum: u64, byte| sum << 7 | u64::from(byte & 0x7F));
        let Some(after) =
            usize::try_from(size).ok().and_then(|size| rest.get((bytes + 1).checked_add(size)?..))
        else {
            break;
        };
        data = after;
    }
    frames
}

fn refuse(error: Error) -> SampleError {
    match error {
        Error::NotEnoughMemory => SampleError::too_large("AVIF: there is not enough memory to decode it"),
        Error::UnsupportedBitstream => {
            SampleError::unsupported("AVIF: a kind of AV1 data that is not decoded")
        }
        _ => malformed("damaged AV1 data"),
    }
}

/// How luma and chroma become red, green and blue.
enum Matrix {
    /// They are green, blue and red.
    Identity,
    YCgCo,
    /// The weights of red and blue in luma.
    Weights(f32, f32),
}

/// By the numbers of ITU-T H.273.
fn matrix(matrix: u16, primaries: u16) -> Result<Matrix, SampleError> {
    Ok(match matrix {
        0 => Matrix::Identity,
        1 => Matrix::Weights(0.2126, 0.0722),
        4 => Matrix::Weights(0.30, 0.11),
        7 => Matrix::Weights(0.212, 0.087),
        8 => Matrix::YCgCo,
        9 => Matrix::Weights(0.2627, 0.0593),
        10 | 11 | 14 => {
            return Err(SampleError::unsupported(format!(
                "AVIF: colours of matrix {matrix}, which are not decoded; convert the file to sRGB"
            )));
        }
        // Said by the primaries.
        12 => match primaries {
            1 => Matrix::Weights(0.2126, 0.0722),
            9 => Matrix::Weights(0.2627, 0.0593),
            12 => Matrix::Weights(0.228_974_6, 0.079_286_9),
            _ => Matrix::Weights(0.299, 0.114),
        },
        _ => Matrix::Weights(0.299, 0.114),
    })
}

/// A plane of samples, of one byte each or two.
struct Plane {
    data: re_rav1d::Plane,
    stride: usize,
    wide: bool,
    w: usize,
    h: usize,
}

impl Plane {
    fn row<'a>(&self, y: usize, out: &'a mut Vec<u16>) -> &'a [u16] {
        let at = y.min(self.h - 1) * self.stride;
        out.clear();
        if self.wide {
            let row = self.data[at..at + 2 * self.w].as_chunks::<2>().0;
            out.extend(row.iter().map(|pair| u16::from_ne_bytes(*pair)));
        } else {
            out.extend(self.data[at..at + self.w].iter().map(|value| u16::from(*value)));
        }
        out
    }
}

impl Decoded {
    fn plane(&self, component: PlanarImageComponent, (w, h): (usize, usize)) -> Plane {
        let (stride, _) = self.0.plane_data_geometry(component);
        let wide = self.0.bits_per_component().is_some_and(|bits| bits.0 > 8);
        Plane { data: self.0.plane(component), stride: stride as usize, wide, w, h }
    }

    /// Writes the picture's pixels into `out`, from (x, y) on and as far as there is room.
    pub(super) fn write(
        &self,
        said: Option<Colors>,
        (x, y): (usize, usize),
        out: &mut Image,
    ) -> Result<(), SampleError> {
        let (w, h) = (self.0.width() as usize, self.0.height() as usize);
        let bits = self.0.bits_per_component().map_or(8, |bits| bits.0) as u32;
        // What the file says goes before what the picture says.
        let colors = said.unwrap_or_else(|| self.colors());
        let layout = self.0.pixel_layout();
        let matrix = matrix(colors.matrix, colors.primaries)?;
        let to_rgb = ToRgb::new(&matrix, bits, colors.full_range);
        let luma = self.plane(PlanarImageComponent::Y, (w, h));
        let (across, down) = match layout {
            PixelLayout::I420 => (2, 2),
            PixelLayout::I422 => (2, 1),
            PixelLayout::I444 | PixelLayout::I400 => (1, 1),
        };
        let chroma = (layout != PixelLayout::I400).then(|| {
            let size = (w.div_ceil(across), h.div_ceil(down));
            (self.plane(PlanarImageComponent::U, size), self.plane(PlanarImageComponent::V, size))
        });
        let (out_w, out_h) = out.size();
        let columns = w.min(out_w - x);
        let [mut ys, mut us, mut vs] = [Vec::new(), vec![1 << (bits - 1); w], vec![1 << (bits - 1); w]];
        let [mut near, mut far] = [Vec::new(), Vec::new()];
        for row in 0..h.min(out_h - y) {
            let ys = luma.row(row, &mut ys);
            if let Some((u, v)) = &chroma {
                for (plane, to) in [(u, &mut us), (v, &mut vs)] {
                    upsample(plane, row, (across, down), (&mut near, &mut far), to);
                }
            }
            let to = &mut out.pixels_mut()[(y + row) * out_w + x..][..columns];
            for (((pixel, y), u), v) in to.iter_mut().zip(ys).zip(&us).zip(&vs) {
                *pixel = to_rgb.pixel(&matrix, chroma.is_none(), [*y, *u, *v]);
            }
        }
        Ok(())
    }

    /// What the picture itself says of its colours.
    fn colors(&self) -> Colors {
        use re_rav1d::pixel::{ColorPrimaries, MatrixCoefficients as Of, YUVRange};
        let matrix = match self.0.matrix_coefficients() {
            Of::Identity => 0,
            Of::BT709 => 1,
            Of::BT470M => 4,
            Of::ST240M => 7,
            Of::YCgCo => 8,
            Of::BT2020NonConstantLuminance => 9,
            Of::BT2020ConstantLuminance => 10,
            Of::ST2085 => 11,
            Of::ChromaticityDerivedNonConstantLuminance => 12,
            Of::ChromaticityDerivedConstantLuminance | Of::ICtCp => 14,
            _ => 2,
        };
        let primaries = match self.0.color_primaries() {
            ColorPrimaries::BT709 => 1,
            ColorPrimaries::BT2020 => 9,
            ColorPrimaries::P3Display => 12,
            _ => 2,
        };
        Colors { primaries, matrix, full_range: self.0.color_range() == YUVRange::Full }
    }
}

/// A row of chroma at luma's resolution: between four samples by their distances, as JPEG decoders do it.
fn upsample(
    plane: &Plane,
    row: usize,
    (across, down): (usize, usize),
    (near, far): (&mut Vec<u16>, &mut Vec<u16>),
    out: &mut Vec<u16>,
) {
    let (w, near_row) = (out.len(), row / down);
    let near = plane.row(near_row, near);
    if across == 1 {
        out.clear();
        out.extend(near);
        return;
    }
    let far_row = if row % 2 == 1 { near_row + 1 } else { near_row.saturating_sub(1) };
    let far = if down == 2 { plane.row(far_row, far) } else { near };
    let sum = |at: usize| 3 * u32::from(near[at]) + u32::from(far[at]);
    out.clear();
    for x in 0..w {
        let at = x / 2;
        // The last column has its own sample, as libyuv does it for libavif.
        let other = match x % 2 {
            _ if x == w - 1 => at,
            0 => at.saturating_sub(1),
            _ => at + 1,
        };
        out.push(((3 * sum(at) + sum(other) + 8) >> 4) as u16);
    }
}

/// The arithmetic from samples to eight bits, in 16.16 fixed point.
struct ToRgb {
    bits: u32,
    black: i64,
    /// Luma's and chroma's scale to the full range.
    luma: i64,
    chroma: i64,
    /// Cr in red, Cb and Cr in green, Cb in blue.
    weights: [i64; 4],
}

impl ToRgb {
    const ONE: f32 = 65_536.0;

    fn new(matrix: &Matrix, bits: u32, full_range: bool) -> Self {
        let most = ((1u32 << bits) - 1) as f32;
        let unit = (1u32 << (bits - 8)) as f32;
        let (luma, chroma, black) = if full_range {
            (1.0, 1.0, 0)
        } else {
            (most / (219.0 * unit), most / (224.0 * unit), 16 << (bits - 8))
        };
        let weights = match *matrix {
            Matrix::Weights(red, blue) => {
                let green = 1.0 - red - blue;
                [
                    2.0 * (1.0 - red),
                    2.0 * blue * (1.0 - blue) / green,
                    2.0 * red * (1.0 - red) / green,
                    2.0 * (1.0 - blue),
                ]
            }
            _ => [0.0; 4],
        };
        let fixed = |value: f32| f64::from(value * Self::ONE).round() as i64;
        ToRgb {
            bits,
            black,
            luma: fixed(luma),
            chroma: fixed(chroma),
            weights: weights.map(|weight| fixed(weight * chroma)),
        }
    }

    fn pixel(&self, matrix: &Matrix, gray: bool, [y, u, v]: [u16; 3]) -> [u8; 4] {
        let half = 1i64 << (self.bits - 1);
        let most = (1i64 << self.bits) - 1;
        let luma = |y: u16| (i64::from(y) - self.black) * self.luma;
        // Rounded at the picture's own depth, of which the upper eight bits are taken.
        let byte = |value: i64| (((value + 0x8000) >> 16).clamp(0, most) >> (self.bits - 8)) as u8;
        if gray {
            let value = byte(luma(y));
            return [value, value, value, 255];
        }
        let (cb, cr) = (i64::from(u) - half, i64::from(v) - half);
        match matrix {
            Matrix::Identity => [byte(luma(v)), byte(luma(y)), byte(luma(u)), 255],
            Matrix::YCgCo => {
                let (y, cg, co) = (luma(y), cb * self.chroma, cr * self.chroma);
                [byte(y - cg + co), byte(y + cg), byte(y - cg - co), 255]
            }
            Matrix::Weights(..) => {
                let y = luma(y);
                let [red, green_b, green_r, blue] = self.weights;
                [byte(y + red * cr), byte(y - green_b * cb - green_r * cr), byte(y + blue * cb), 255]
            }
        }
    }
}
