//! Large images made small: decoded and resized as training would do it, then encoded as JPEG.

use std::cell::RefCell;

use fuelrail_transforms::{
    Dtype, ImageInfo, Layout, Limits, OutputConfig, SampleKey, Scratch, TransformConfig, compile,
};
use jpeg_encoder::{ColorType, Encoder, SamplingFactor};

/// What `--max-side` and `--quality` ask for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shrink {
    pub side: u32,
    pub quality: u8,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// Reads an image's header, and shrinks it if it is too large. The ending for its name, and the new bytes if there are.
///
/// # Errors
/// Why it cannot be read.
pub(super) fn look(image: &[u8], shrink: Option<Shrink>) -> Result<(&'static str, Option<Vec<u8>>), String> {
    SCRATCH.with_borrow_mut(|scratch| {
        let info = ImageInfo::read(image, &Limits::default(), scratch).map_err(|error| error.to_string())?;
        let ending = if info.format == "jpeg" { "jpg" } else { info.format };
        match shrink {
            Some(shrink) if info.width.max(info.height) > shrink.side => {
                Ok(("jpg", Some(shrink.apply(image, info, scratch)?)))
            }
            _ => Ok((ending, None)),
        }
    })
}

impl Shrink {
    fn apply(self, image: &[u8], info: ImageInfo, scratch: &mut Scratch) -> Result<Vec<u8>, String> {
        let longer = f64::from(info.width.max(info.height));
        let scaled = |side: u32| ((f64::from(side) * f64::from(self.side) / longer).round() as u32).max(1);
        let (width, height) = (scaled(info.width), scaled(info.height));
        let resize: TransformConfig = serde_json::from_value(serde_json::json!({
            "type": "Resize", "size": [height, width], "interpolation": "bicubic"
        }))
        .map_err(|error| error.to_string())?;
        let output = OutputConfig { dtype: Some(Dtype::U8), layout: Layout::Nhwc, ..OutputConfig::default() };
        let chain = compile(&[resize], &output, Limits::default()).map_err(|error| error.to_string())?;
        let mut pixels = vec![0; chain.output().row_bytes()];
        let key = SampleKey { seed: 0, epoch: 0, position: 0 };
        chain.apply(image, key, scratch, &mut pixels).map_err(|error| error.to_string())?;
        let mut bytes = Vec::with_capacity(pixels.len() / 6);
        let mut encoder = Encoder::new(&mut bytes, self.quality);
        encoder.set_sampling_factor(SamplingFactor::R_4_2_0);
        encoder.set_optimized_huffman_tables(true);
        let side = |side: u32| u16::try_from(side).map_err(|_| "it is too large for JPEG".to_owned());
        encoder
            .encode(&pixels, side(width)?, side(height)?, ColorType::Rgb)
            .map_err(|error| error.to_string())?;
        Ok(bytes)
    }
}
