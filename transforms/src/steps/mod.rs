//! The transforms: torchvision v2's names, arguments and defaults, one file a family.
//!
//! One entry of a chain is a table with a `type`, in TOML or JSON alike:
//!
//! ```json
//! {"type": "RandomResizedCrop", "size": 224, "scale": [0.08, 1.0]}
//! ```
//!
//! Unknown types and arguments are refused; who reads a configuration says which are known. A transform is added by its
//! file (arguments, how they are checked, what they do, tests) and its line in the list below.

mod affine;
mod apply;
mod arguments;
mod blur;
mod boxes;
mod color;
mod crop;
mod distort;
mod elastic;
mod erase;
mod flip;
mod levels;
mod noise;
mod normalize;
mod pad;
mod perspective;
mod policy;
mod resize;
mod rotation;
mod scale;

use std::fmt::Debug;

use serde::de::Deserializer;
use serde::ser::Serializer;
use serde::{Deserialize, Serialize};

use crate::error::{ConfigError, SampleError};
use crate::limits::Limits;
use crate::plan::Picture;
use crate::random::Draws;

pub use affine::RandomAffine;
pub use apply::{RandomApply, RandomChoice, RandomOrder};
pub use arguments::{Numbers, Sides, Size};
pub use blur::GaussianBlur;
pub use boxes::{ClampBoundingBoxes, RandomIoUCrop, SanitizeBoundingBoxes};
pub use color::{ColorJitter, Grayscale, RandomGrayscale};
pub use crop::{CenterCrop, RandomCrop, RandomResizedCrop};
pub use distort::{RandomChannelPermutation, RandomPhotometricDistort};
pub use elastic::ElasticTransform;
pub use erase::{EraseMode, EraseValue, RandomErasing, TimmRandomErasing};
pub use flip::{RandomHorizontalFlip, RandomVerticalFlip};
pub use levels::{
    RandomAdjustSharpness, RandomAutocontrast, RandomEqualize, RandomInvert, RandomPosterize, RandomSolarize,
};
pub use noise::GaussianNoise;
pub use normalize::Normalize;
pub use pad::{Pad, PaddingMode};
pub use perspective::RandomPerspective;
pub use policy::{AugMix, AutoAugment, AutoAugmentPolicy, RandAugment, TimmAutoAugment, TrivialAugmentWide};
pub use resize::Resize;
pub use rotation::RandomRotation;
pub use scale::{Letterbox, RandomShortestSize, RandomZoomOut, ScaleJitter};

pub(crate) use arguments::At;
#[cfg(test)]
pub(crate) use crop::resized_crop;
pub(crate) use erase::Erasing;

/// What a transform is before an image is seen: arguments that are checked and become a step.
pub(crate) trait Transform {
    /// The step in front of the normalisation, after what it does to what is known of the image; `None` where it
    /// changes no pixel there.
    fn step(&self, at: &At, state: &mut State) -> Result<Option<Box<dyn Step>>, ConfigError>;

    /// The step behind the normalisation, for those few that may stand there.
    fn after_normalize(&self, at: &At, state: &State) -> Result<Erasing, ConfigError> {
        let _ = state;
        Err(at.error(
            "comes after Normalize, and only RandomErasing and TimmRandomErasing may follow it; pixels are u8 up to \
             Normalize, so move it before Normalize",
        ))
    }
}

/// What a transform does to one image.
pub(crate) trait Step: Debug + Send + Sync {
    /// Changes `picture`, with randomness from `draws` alone.
    fn apply(&self, picture: &mut Picture<'_>, draws: &mut Draws, limits: &Limits)
    -> Result<(), SampleError>;

    /// What it does to a mask that goes with the image, with the same draws: the same geometry, each pixel one of those
    /// there were. `None` where it only changes colours.
    fn like_mask(&self) -> Option<Box<dyn Step>>;

    /// Whether it decides by the boxes of the image, or changes which there are.
    fn needs_boxes(&self) -> bool {
        false
    }

    /// Whether a rectangle of the image was one before, with sides along the same axes.
    fn keeps_rectangles(&self) -> bool {
        true
    }

    /// Whether a mask can lie on the result, or a box; none can where pictures of several geometries are mixed.
    fn takes_masks(&self) -> bool {
        true
    }
}

/// What is known of the image at a place in the chain.
#[derive(Clone)]
pub(crate) struct State {
    /// (width, height) where every image has the same.
    pub size: Option<(usize, usize)>,
    pub channels: usize,
    /// The last transform that made the size depend on the image.
    pub culprit: Option<String>,
    /// Mean and standard deviation, once there was a `Normalize`.
    pub normalize: Option<([f64; 3], [f64; 3])>,
}

/// Makes the list: one line a transform, with what it is for.
macro_rules! transforms {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// One transform of a chain.
        ///
        /// Pixels are `u8` after each of them, rounded as Pillow does. Sizes are in pixels, (height, width); factors
        /// and probabilities have no unit; `fill` is in levels 0 to 255.
        #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
        #[serde(tag = "type", remote = "Self")]
        pub enum TransformConfig {
            $($(#[$doc])* $name($name),)*
        }

        /// The names of all transforms.
        pub const TRANSFORM_NAMES: &[&str] = &[$(stringify!($name)),*];

        impl TransformConfig {
            /// The transform's name, as in `type`.
            pub fn name(&self) -> &'static str {
                match self {
                    $(Self::$name(_) => stringify!($name),)*
                }
            }

            pub(crate) fn transform(&self) -> &dyn Transform {
                match self {
                    $(Self::$name(transform) => transform,)*
                }
            }
        }
    };
}

transforms! {
    /// Resizes the whole image.
    Resize,
    /// Cuts the middle out.
    CenterCrop,
    /// Cuts a window of fixed size out at a random place.
    RandomCrop,
    /// Cuts out a random share of the image at a random aspect and resizes it.
    RandomResizedCrop,
    /// Resizes the whole image into a frame, and fills the rest of it.
    Letterbox,
    /// Resizes the whole image by a random factor.
    ScaleJitter,
    /// Resizes the whole image so that its shorter edge has one of several lengths.
    RandomShortestSize,
    /// Puts some images at a random place of a larger one.
    RandomZoomOut,
    /// Cuts out a random part that overlaps a box by enough.
    RandomIoUCrop,
    /// Cuts boxes off where the image ends.
    ClampBoundingBoxes,
    /// Removes boxes that are too small or lie outside, with what belongs to them.
    SanitizeBoundingBoxes,
    /// Mirrors left and right.
    RandomHorizontalFlip,
    /// Mirrors top and bottom.
    RandomVerticalFlip,
    /// Rotates by a random angle.
    RandomRotation,
    /// Rotates, moves, scales and shears.
    RandomAffine,
    /// Moves the corners.
    RandomPerspective,
    /// Moves each pixel by a smooth random field.
    ElasticTransform,
    /// Makes the image gray.
    Grayscale,
    /// Makes some images gray.
    RandomGrayscale,
    /// Changes brightness, contrast, saturation and hue.
    ColorJitter,
    /// Distorts colours as SSD does.
    RandomPhotometricDistort,
    /// Puts the channels into a random order.
    RandomChannelPermutation,
    /// Inverts bright levels.
    RandomSolarize,
    /// Keeps the upper bits.
    RandomPosterize,
    /// Spreads levels evenly.
    RandomEqualize,
    /// Stretches levels to the whole range.
    RandomAutocontrast,
    /// Makes a negative.
    RandomInvert,
    /// Sharpens or blurs.
    RandomAdjustSharpness,
    /// Blurs.
    GaussianBlur,
    /// Adds a border.
    Pad,
    /// Adds normally distributed noise.
    GaussianNoise,
    /// Carries steps out, or not.
    RandomApply,
    /// Carries one of several steps out.
    RandomChoice,
    /// Carries steps out in a random order.
    RandomOrder,
    /// Carries out operations of a list, with one magnitude.
    RandAugment,
    /// Carries out one operation of a list, with any magnitude.
    TrivialAugmentWide,
    /// Carries out one of the pairs of operations that were found on a data set.
    AutoAugment,
    /// Mixes the image with what chains of operations make of it.
    AugMix,
    /// A policy of timm, by its configuration string.
    TimmAutoAugment,
    /// Overwrites a random rectangle.
    RandomErasing,
    /// Overwrites random rectangles as timm does.
    TimmRandomErasing,
    /// Subtracts the mean and divides by the standard deviation.
    Normalize,
}

impl Serialize for TransformConfig {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        TransformConfig::serialize(self, serializer)
    }
}

impl<'de> Deserialize<'de> for TransformConfig {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        TransformConfig::deserialize(deserializer)
    }
}
