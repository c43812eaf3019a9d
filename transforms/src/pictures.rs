//! Several pictures of one record, made on shared draws: images, views, and what goes with an image.

use crate::config::{Dtype, Layout, OutputConfig};
use crate::error::{ConfigError, SampleError};
use crate::limits::Limits;
use crate::output::OutputSpec;
use crate::steps::TransformConfig;
use crate::{Chain, SampleKey, Scratch, compile_for};

/// One picture that a record's row is to hold.
#[derive(Clone, Debug, PartialEq)]
pub struct PictureConfig {
    /// Which of the record's encoded images it is made from.
    pub image: usize,
    /// What it is.
    pub what: What,
    /// Its chain; empty for a mask and a geometry, which follow the chain of their image.
    pub transforms: Vec<TransformConfig>,
    /// Element type and memory order of its row.
    pub output: OutputConfig,
}

/// What a picture is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// The image through one chain: a row of (C, H, W).
    Image,
    /// The chain so many times, each with draws of its own: a row of (N, C, H, W).
    Views(u32),
    /// A map of classes that goes with an image, with the geometry of that image's chain and its draws: a row of (H, W),
    /// of u8 or u16.
    Mask {
        /// The place in the list of the [`What::Image`] that it goes with.
        like: usize,
    },
    /// Where an image comes from, a row of eight f32: top, left, height and width of the crop in the upright original,
    /// flip_x and flip_y (0 or 1), height and width of the original.
    Geometry {
        /// The place in the list of that [`What::Image`].
        of: usize,
    },
}

/// Type, shape and memory order of one row of a picture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RowSpec {
    /// Type of each element.
    pub dtype: Dtype,
    /// Elements along each dimension; (C, H, W) for an image whatever the memory order.
    pub shape: Vec<usize>,
    /// How far apart neighbours along each dimension lie, in elements.
    pub strides: Vec<usize>,
}

impl RowSpec {
    /// Bytes of one row.
    pub fn row_bytes(&self) -> usize {
        self.shape.iter().product::<usize>() * self.dtype.bytes()
    }

    fn of_image(spec: &OutputSpec) -> Self {
        let OutputSpec { channels: c, height: h, width: w, dtype, layout } = *spec;
        let strides = match layout {
            Layout::Nchw => vec![h * w, w, 1],
            Layout::Nhwc => vec![1, w * c, c],
        };
        RowSpec { dtype, shape: vec![c, h, w], strides }
    }
}

/// A picture that cannot be made as configured.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{error}")]
pub struct PictureError {
    /// Its place in the list.
    pub picture: usize,
    /// Why.
    pub error: ConfigError,
}

/// A picture that cannot be made of a record.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{error}")]
pub struct PictureFault {
    /// Its place in the list.
    pub picture: usize,
    /// Why.
    pub error: SampleError,
}

/// Checks pictures and compiles their chains. `sizes` are width and height of each encoded image where all records have
/// the same; an image that is not in the list has no known size.
///
/// # Errors
/// As [`crate::compile`], and for a picture that follows one which it cannot follow.
pub fn compile_pictures(
    pictures: &[PictureConfig],
    limits: Limits,
    sizes: &[Option<(u32, u32)>],
) -> Result<Pictures, PictureError> {
    let (mut chains, mut outputs) = (Vec::new(), Vec::new());
    for (picture, config) in pictures.iter().enumerate() {
        let refused = |error| PictureError { picture, error };
        if config.what != What::Image || picture > 0 {
            return Err(refused(ConfigError("a record has one image in this version".into())));
        }
        let size = sizes.get(config.image).copied().flatten();
        let chain = compile_for(&config.transforms, &config.output, limits, size).map_err(refused)?;
        outputs.push(RowSpec::of_image(chain.output()));
        chains.push((config.image, chain));
    }
    Ok(Pictures { chains, outputs })
}

/// Compiled pictures, shared by all threads.
#[derive(Clone, Debug)]
pub struct Pictures {
    chains: Vec<(usize, Chain)>,
    outputs: Vec<RowSpec>,
}

impl Pictures {
    /// What the row of each picture is.
    pub fn outputs(&self) -> &[RowSpec] {
        &self.outputs
    }

    /// Makes all pictures of a record. `encoded` are the record's images, `rows` a row each picture, all of which is
    /// written. On an error the content of the rows is unspecified.
    ///
    /// # Errors
    /// As [`Chain::apply`], with the picture that cannot be made.
    ///
    /// # Panics
    /// If an image or a row is missing, or a row has another length: a bug of the caller.
    pub fn apply(
        &self,
        encoded: &[&[u8]],
        key: SampleKey,
        scratch: &mut Scratch,
        rows: &mut [&mut [u8]],
    ) -> Result<(), PictureFault> {
        assert_eq!(rows.len(), self.outputs.len(), "a row for each picture");
        for (picture, ((image, chain), row)) in self.chains.iter().zip(rows).enumerate() {
            chain
                .apply(encoded[*image], key, scratch, row)
                .map_err(|error| PictureFault { picture, error })?;
        }
        Ok(())
    }
}
