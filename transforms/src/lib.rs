//! Decoding and augmentation of training images: one encoded sample in, one row of a batch out; or several pictures of
//! one record, with the masks that go with them ([`Pictures`]).
//!
//! ```text
//!  TransformConfig list --compile--> Chain
//!  bytes --header--> plan (crops, flips, one resize) --decode what is needed--> u8 pixels --steps--> output pass --> row
//!
//!  PictureConfig list --compile_pictures--> Pictures
//!  bytes of each image --one decode each--> image, views, mask, geometry --> a row each
//! ```
//!
//! ```
//! use fuelrail_transforms::*;
//! # use serde_json::json;
//! let transforms: Vec<TransformConfig> = serde_json::from_value(json!([
//!     {"type": "RandomResizedCrop", "size": 8},
//!     {"type": "RandomHorizontalFlip"},
//!     {"type": "Normalize", "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]},
//! ])).unwrap();
//! let chain = compile(&transforms, &OutputConfig::default(), Limits::default()).unwrap();
//! assert_eq!((chain.output().channels, chain.output().dtype), (3, Dtype::F32));
//!
//! let image = b"P6 2 2 255 rgbrgbrgbrgb"; // a PNM file
//! let mut row = vec![0; chain.output().row_bytes()];
//! let key = SampleKey { seed: 0, epoch: 0, position: 17 };
//! chain.apply(image, key, &mut Scratch::default(), &mut row).unwrap();
//! ```
//!
//! # Promises
//! - **Pure**: a row depends on the bytes, the chain and the [`SampleKey`] only, never on the thread, the [`Scratch`]
//!   or what was done before.
//! - **torchvision's semantics** on PIL images: names, arguments, defaults, the order of operations, Pillow's rounding
//!   after every step. Resizing (with antialias), cropping, padding, flipping, rotation, affine maps and all changes of
//!   colour are bit-identical to torchvision 0.29 on Pillow 13.0; blurring, perspective and elastic maps are within one
//!   level. `antialias = false` follows torchvision's tensors, within two levels. `GaussianNoise` rounds where
//!   torchvision cuts off.
//! - **Exact fusion**: crops, flips and a resize become one plan, and steps that map levels one table, whose result is
//!   that of doing them one by one.
//! - **Pictures of one record agree**: each is, byte for byte, what its chain makes alone; a mask and a geometry take
//!   the draws of their image, and each view has draws of its own.
//! - **Masks** move as torchvision's `tv_tensors.Mask` do: nearest neighbours, no colour steps, not erased. They keep
//!   the numbers that their files store, and are 255 where there is a constant border or a rotation's corner. They turn
//!   by Pillow's map, as their images do, where torchvision turns tensors by one of its own.
//! - **Bounded**: what a header announces is checked against [`Limits`] before anything is allocated; malformed bytes
//!   give a [`SampleError`].
//!
//! # Decided here
//! - The **EXIF orientation is applied** (torchvision's default loader does not): the picture is trained on as it is
//!   seen. It costs a transposed copy of the decoded region for the files that have one.
//! - **Alpha is dropped**, not blended, as `convert("RGB")` does (a TIFF whose colours are premultiplied keeps them so,
//!   where Pillow divides); **gray and palettes** become RGB; of **more than 8 bits** the upper 8 are taken. Pillow
//!   does that for RGB, but clips 16-bit gray at 255, which turns nearly all of it white.
//! - **CMYK and YCCK JPEGs** are taken as inverted (Adobe) and converted by Pillow's formula, without a colour profile.
//! - An animated GIF, PNG, WebP or AVIF gives its **first frame**; a TIFF its first page. Where that frame leaves part
//!   of the canvas open, or an RLE BMP skips pixels, these are black; Pillow fills them from the palette.
//! - **Refused as unsupported**, by name and with the remedy: TIFF in Lab or with float or 32-bit samples, lossless and
//!   12-bit JPEG, and the formats that `decode/formats.rs` lists, such as HEIC and JPEG XL.
//! - The **format is recognised by content**, never by the file's name.
//! - An image **whose data end before its picture does is malformed**, unless [`Truncated::Fill`] takes what is there;
//!   one that lacks only its end marker is whole. A JPEG with damaged data inside is decoded as libjpeg does it.
//! - **Nothing is remembered from one image to the next**: every image has a decoder of its own.
//!
//! `docs/images.md` says the same for users.
//!
//! # What it does not do
//! Read files, know labels or batches, or use global randomness or clocks.

mod color;
mod compile;
mod config;
mod decode;
mod error;
mod geometry;
mod levels;
mod limits;
mod output;
mod pictures;
mod plan;
mod random;
mod resize;
mod smooth;
mod steps;
mod targets;
#[cfg(test)]
mod tests;
mod warp;

pub use compile::erasings_left;
pub use config::{Dtype, Finish, Layout, OutputConfig};
pub use error::{ConfigError, SampleError, SampleErrorKind};
pub use limits::{Limits, Truncated};
pub use output::{Finishing, OutputSpec};
pub use pictures::{
    MAX_VIEWS, PictureConfig, PictureError, PictureFault, Pictures, RowSpec, What, compile_pictures,
};
pub use random::SampleKey;
pub use resize::Interpolation;
pub use steps::{
    AugMix, AutoAugment, AutoAugmentPolicy, CenterCrop, ClampBoundingBoxes, ColorJitter, ElasticTransform,
    EraseMode, EraseValue, GaussianBlur, GaussianNoise, Grayscale, Letterbox, Normalize, Numbers, Pad,
    PaddingMode, RandAugment, RandomAdjustSharpness, RandomAffine, RandomApply, RandomAutocontrast,
    RandomChannelPermutation, RandomChoice, RandomCrop, RandomEqualize, RandomErasing, RandomGrayscale,
    RandomHorizontalFlip, RandomInvert, RandomIoUCrop, RandomOrder, RandomPerspective,
    RandomPhotometricDistort, RandomPosterize, RandomResizedCrop, RandomRotation, RandomShortestSize,
    RandomSolarize, RandomVerticalFlip, RandomZoomOut, Resize, SanitizeBoundingBoxes, ScaleJitter, Sides,
    Size, TRANSFORM_NAMES, TimmAutoAugment, TimmRandomErasing, TransformConfig, TrivialAugmentWide,
};
pub use targets::{Points, TargetSet, Targets};

/// Checks a chain and resolves it; no image is needed for that.
///
/// # Errors
/// An argument out of its range, a transform behind `Normalize` that cannot stand there, a chain whose output has no
/// fixed size, or an output type that cannot hold the values. The text names the transform by place and name.
pub fn compile(
    transforms: &[TransformConfig],
    output: &OutputConfig,
    limits: Limits,
) -> Result<Chain, ConfigError> {
    compile_for(transforms, output, limits, None)
}

/// As [`compile`], for images that all have one `size` (width, height), if there is one: then the chain need not fix
/// it.
///
/// # Errors
/// As [`compile`].
pub fn compile_for(
    transforms: &[TransformConfig],
    output: &OutputConfig,
    limits: Limits,
    size: Option<(u32, u32)>,
) -> Result<Chain, ConfigError> {
    Ok(Chain { program: compile_program(transforms, output, limits, size)?, limits })
}

fn compile_program(
    transforms: &[TransformConfig],
    output: &OutputConfig,
    limits: Limits,
    size: Option<(u32, u32)>,
) -> Result<compile::Program, ConfigError> {
    let size = size.map(|(width, height)| (width as usize, height as usize));
    let program = compile::program(transforms, output, size)?;
    let OutputSpec { width, height, .. } = program.pass.spec;
    limits
        .check_pixels("the output of the chain", width as u64, height as u64)
        .map_err(|error| ConfigError(error.message().to_owned()))?;
    Ok(program)
}

/// Checks all of a chain that does not depend on the size of images.
///
/// # Errors
/// As [`compile`], but for the size of its output.
pub fn check(transforms: &[TransformConfig], output: &OutputConfig) -> Result<(), ConfigError> {
    compile::resolve(transforms, output, None).map(drop)
}

/// A compiled chain of transforms, shared by all threads.
#[derive(Clone, Debug)]
pub struct Chain {
    program: compile::Program,
    limits: Limits,
}

impl Chain {
    /// Shape, type and memory order of a row.
    pub fn output(&self) -> &OutputSpec {
        &self.program.pass.spec
    }

    /// Decodes `encoded`, transforms it, and writes all of `row`, which must be `output().row_bytes()` long. On an
    /// error the content of `row` is unspecified.
    ///
    /// # Errors
    /// The sample cannot be used: malformed, of a kind that is not decoded or too small for a crop, or beyond the
    /// limits. The verdict is a function of the bytes and the chain, and for a rare cut JPEG of the crop too.
    ///
    /// # Panics
    /// If `row` has another length: a bug of the caller.
    pub fn apply(
        &self,
        encoded: &[u8],
        key: SampleKey,
        scratch: &mut Scratch,
        row: &mut [u8],
    ) -> Result<(), SampleError> {
        self.apply_with(encoded, key, scratch, row, false)
    }

    fn apply_with(
        &self,
        encoded: &[u8],
        key: SampleKey,
        scratch: &mut Scratch,
        row: &mut [u8],
        stepwise: bool,
    ) -> Result<(), SampleError> {
        assert_eq!(row.len(), self.output().row_bytes(), "a row has the size that the chain announced");
        let result = scratch.decoders.open(encoded, &self.limits, decode::Want::Colors).and_then(|opened| {
            let picture = plan::Picture::encoded(opened, &mut scratch.buffers, self.limits);
            self.program.run(picture, compile::Stream::first(key), stepwise, &self.limits, row)
        });
        scratch.settle();
        result
    }
}

/// What an image's header says, before any pixel is decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImageInfo {
    /// `"jpeg"`, `"png"`, `"webp"`, `"gif"`, `"bmp"`, `"tiff"`, `"pnm"` or `"avif"`.
    pub format: &'static str,
    /// Pixels from left to right, as the picture is seen: with the EXIF orientation applied.
    pub width: u32,
    /// Pixels from top to bottom.
    pub height: u32,
}

impl ImageInfo {
    /// Reads a header. A JPEG whose last bytes do not show that it is whole is decoded as well.
    ///
    /// # Errors
    /// As [`Chain::apply`], as far as that is known without decoding.
    pub fn read(encoded: &[u8], limits: &Limits, scratch: &mut Scratch) -> Result<Self, SampleError> {
        let opened = scratch.decoders.open(encoded, limits, decode::Want::Colors)?;
        let (w, h) = opened.stored_size();
        let (width, height) = opened.symmetry().size((w, h));
        let format = opened.format.id();
        if opened.is_undecided() {
            opened.decode(geometry::Rect { x: 0, y: 0, w, h }, &mut geometry::Image::default())?;
        }
        Ok(Self { format, width: width as u32, height: height as u32 })
    }
}

/// What a worker thread keeps from sample to sample: decoder handles and buffers, so that steady work allocates little.
/// It holds no state that a result depends on; after a panic inside [`Chain::apply`] replace it by a new one.
#[derive(Default)]
pub struct Scratch {
    decoders: decode::Decoders,
    buffers: plan::Buffers,
}

impl Scratch {
    /// A single buffer beyond this is given back after the sample that needed it: 16 MiB hold 4 million pixels.
    const KEPT: usize = 16 << 20;

    /// Bytes held between samples.
    pub fn bytes(&self) -> usize {
        self.decoders.bytes() + self.buffers.bytes()
    }

    fn settle(&mut self) {
        self.decoders.shrink(Self::KEPT);
        self.buffers.shrink(Self::KEPT);
    }
}
