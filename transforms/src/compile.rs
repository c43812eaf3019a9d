//! From configuration to a checked list of steps, and the list's meaning on one sample.

use std::sync::Arc;

use crate::SampleKey;
use crate::config::{Dtype, Finish, Layout, OutputConfig};
use crate::error::{ConfigError, SampleError};
use crate::geometry::Rect;
use crate::limits::Limits;
use crate::output::{Finishing, OutputSpec, Pass};
use crate::plan::{Picture, Sketch};
use crate::random::Draws;
use crate::steps::{At, Erasing, State, Step, TransformConfig};

/// A compiled chain before its output pass.
#[derive(Clone, Debug)]
pub(crate) struct Program {
    /// Each with its place in the configuration, which its randomness depends on.
    steps: Arc<[(usize, Box<dyn Step>)]>,
    pub pass: Pass,
    erasings: Arc<[(usize, Erasing)]>,
    /// What is left to whoever takes the rows; the erasings too, then.
    pub finishing: Option<Arc<Finishing>>,
}

/// `transforms` checked, for images of one size if there is a `size` (width, height).
pub(crate) fn program(
    transforms: &[TransformConfig],
    output: &OutputConfig,
    size: Option<(usize, usize)>,
) -> Result<Program, ConfigError> {
    let Resolved { steps, erasings, state, dtype } = resolve(transforms, output, size)?;
    let Some((width, height)) = state.size else {
        return Err(ConfigError(match state.culprit {
            Some(culprit) => format!(
                "images in a batch must all have the same size, and the chain has no fixed output size: {culprit}. Add CenterCrop or RandomCrop \
                 after it, or a Resize with size = [height, width]"
            ),
            None => "images in a batch must all have the same size, and the chain has no fixed output size: it keeps the size of each image. Add \
                     RandomResizedCrop, CenterCrop or Resize with size = [height, width]"
                .to_owned(),
        }));
    };
    let (scale, bias) = levels(&state);
    let finishing = finishing(output, &erasings, &state, dtype).map(Arc::new);
    let dtype = if finishing.is_some() { Dtype::U8 } else { dtype };
    let spec = OutputSpec { channels: state.channels, height, width, dtype, layout: output.layout };
    let pass = Pass { spec, scale, bias };
    Ok(Program { steps: steps.into(), pass, erasings: erasings.into(), finishing })
}

/// Scale and bias of each channel.
fn levels(state: &State) -> ([f32; 3], [f32; 3]) {
    let (mean, std) = state.normalize.unwrap_or(([0.0; 3], [1.0; 3]));
    (std.map(|std| (1.0 / (255.0 * std)) as f32), std::array::from_fn(|c| (-mean[c] / std[c]) as f32))
}

fn finishing(
    output: &OutputConfig,
    erasings: &[(usize, Erasing)],
    state: &State,
    dtype: Dtype,
) -> Option<Finishing> {
    if output.finish == Finish::Here || dtype == Dtype::U8 {
        return None;
    }
    let (scale, bias) = levels(state);
    let channels = |values: [f32; 3]| values[..state.channels].to_vec();
    let values: Vec<_> = erasings.iter().map(|(_, erasing)| erasing.fixed()).collect::<Option<_>>()?;
    let erasings = values.into_iter().flatten().map(channels).collect();
    Some(Finishing { dtype, scale: channels(scale), bias: channels(bias), erasings })
}

/// How many erasings of a chain are left to whoever takes its rows.
///
/// # Errors
/// As [`crate::compile`], but for a size that is not fixed.
pub fn erasings_left(transforms: &[TransformConfig], output: &OutputConfig) -> Result<usize, ConfigError> {
    let Resolved { erasings, state, dtype, .. } = resolve(transforms, output, None)?;
    Ok(finishing(output, &erasings, &state, dtype).map_or(0, |finishing| finishing.erasings.len()))
}

/// A chain of which all is known but perhaps the size of what comes out.
pub(crate) struct Resolved {
    steps: Vec<(usize, Box<dyn Step>)>,
    erasings: Vec<(usize, Erasing)>,
    state: State,
    dtype: Dtype,
}

/// Checks `transforms` and resolves them into steps.
pub(crate) fn resolve(
    transforms: &[TransformConfig],
    output: &OutputConfig,
    size: Option<(usize, usize)>,
) -> Result<Resolved, ConfigError> {
    let mut state = State { size, channels: 3, culprit: None, normalize: None };
    let mut steps = Vec::new();
    let mut erasings = Vec::new();
    for (place, transform) in transforms.iter().enumerate() {
        let at = At::new(place, transform.name());
        if state.normalize.is_some() {
            erasings.push((place, transform.transform().after_normalize(&at, &state)?));
        } else if let Some(step) = transform.transform().step(&at, &mut state)? {
            steps.push((place, step));
        }
    }
    let dtype = output.dtype.unwrap_or(if state.normalize.is_some() { Dtype::F32 } else { Dtype::U8 });
    if dtype == Dtype::U16 {
        return Err(ConfigError(
            "dtype u16 is for masks; an image is u8, f32, f16 or bf16, and has no more than 8 bits a channel"
                .to_owned(),
        ));
    }
    if dtype == Dtype::U8 && state.normalize.is_some() {
        return Err(ConfigError(
            "dtype u8 cannot hold normalised values: ask for f32, f16 or bf16, or leave Normalize out"
                .to_owned(),
        ));
    }
    Ok(Resolved { steps, erasings, state, dtype })
}

/// Where the draws of a chain come from: the record, and the number of the chain among its independent ones.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stream {
    pub key: SampleKey,
    pub number: u32,
}

impl Stream {
    /// The only chain of a record, or its first.
    pub(crate) fn first(key: SampleKey) -> Self {
        Stream { key, number: 0 }
    }

    fn draws(self, place: usize) -> Draws {
        Draws::new(self.key, place as u64 | u64::from(self.number) << 32)
    }
}

impl Program {
    /// What makes the mask that goes with the image, of this type (u8 or u16).
    pub(crate) fn like_mask(&self, dtype: Dtype) -> Program {
        let steps = self.steps.iter().filter_map(|(place, step)| Some((*place, step.like_mask()?))).collect();
        let spec = OutputSpec { channels: 1, dtype, layout: Layout::Nchw, ..self.pass.spec };
        Program { steps, pass: Pass { spec, ..self.pass }, erasings: Arc::new([]), finishing: None }
    }

    /// The rectangles of each erasing that is left to whoever takes the row; `None` in place of one that is not erased.
    pub(crate) fn erased(&self, stream: Stream) -> impl Iterator<Item = Option<Rect>> {
        let OutputSpec { width, height, .. } = self.pass.spec;
        self.erasings.iter().flat_map(move |(place, erasing)| {
            let mut rects = erasing.area.draw(width, height, &mut stream.draws(*place)).into_iter();
            (0..erasing.area.most()).map(move |_| rects.next())
        })
    }

    /// The place of a step behind which a rectangle of the image is none of the original.
    pub(crate) fn turns(&self) -> Option<usize> {
        self.steps.iter().find(|(_, step)| !step.keeps_rectangles()).map(|(place, _)| *place)
    }

    /// Whether a step may move what the image shows.
    pub(crate) fn moves(&self) -> bool {
        self.steps.iter().any(|(_, step)| step.like_mask().is_some())
    }

    /// The place of the first step that decides by boxes, or changes which there are.
    pub(crate) fn needs_boxes(&self) -> Option<usize> {
        self.steps.iter().find(|(_, step)| step.needs_boxes()).map(|(place, _)| *place)
    }

    /// The place of a step on whose result no mask can lie, and no box.
    pub(crate) fn mixes(&self) -> Option<usize> {
        self.steps.iter().find(|(_, step)| !step.takes_masks()).map(|(place, _)| *place)
    }

    /// Follows the geometry of all steps, without a pixel.
    pub(crate) fn sketch(
        &self,
        mut picture: Picture<'_>,
        stream: Stream,
        limits: &Limits,
    ) -> Result<Sketch, SampleError> {
        for (place, step) in self.steps.iter() {
            step.apply(&mut picture, &mut stream.draws(*place), limits)?;
        }
        picture.sketched()
    }

    /// As [`Program::sketch`], looking at the picture after each step.
    #[cfg(test)]
    pub(crate) fn trace(
        &self,
        mut picture: Picture<'_>,
        stream: Stream,
        limits: &Limits,
        mut look: impl FnMut(&Picture<'_>),
    ) -> Result<(), SampleError> {
        for (place, step) in self.steps.iter() {
            step.apply(&mut picture, &mut stream.draws(*place), limits)?;
            look(&picture);
        }
        Ok(())
    }

    /// Brings `picture` through all steps. With `stepwise`, each is carried out before the next one begins, which must
    /// give the same bytes.
    pub(crate) fn run(
        &self,
        mut picture: Picture<'_>,
        stream: Stream,
        stepwise: bool,
        limits: &Limits,
        row: &mut [u8],
    ) -> Result<(), SampleError> {
        if stepwise {
            picture.settle_flips()?;
        }
        for (place, step) in self.steps.iter() {
            step.apply(&mut picture, &mut stream.draws(*place), limits)?;
            if stepwise {
                picture.settle_flips()?;
            }
        }
        let (image, flip_x, flip_y) = picture.finish()?;
        self.pass.write(image, flip_x, flip_y, row);
        let erasings = if self.finishing.is_none() { &self.erasings[..] } else { &[] };
        for (place, erasing) in erasings {
            erasing.apply(&self.pass, &mut stream.draws(*place), row);
        }
        Ok(())
    }
}
