//! Steps made of steps: `RandomApply`, `RandomChoice` and `RandomOrder`.
//!
//! Each step inside has a sequence of draws of its own ([`Draws::child`]), by its place in the list: whether another
//! one is carried out, and when, does not change what it draws. Masks take part in the same choices.

use serde::{Deserialize, Serialize};

use super::arguments::At;
use super::{State, Step, Transform, TransformConfig};
use crate::error::{ConfigError, SampleError};
use crate::limits::Limits;
use crate::plan::Picture;
use crate::random::Draws;

/// Carries out all of `transforms`, in order, with probability `p`, and else none of them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RandomApply {
    /// The steps.
    pub transforms: Vec<TransformConfig>,
    /// Probability, 0 to 1.
    #[serde(default = "half")]
    pub p: f64,
}

/// Carries out one of `transforms`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RandomChoice {
    /// The steps to choose from.
    pub transforms: Vec<TransformConfig>,
    /// A weight for each of them; absent: all have the same.
    #[serde(default)]
    pub p: Option<Vec<f64>>,
}

/// Carries out all of `transforms` in a random order.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RandomOrder {
    /// The steps.
    pub transforms: Vec<TransformConfig>,
}

fn half() -> f64 {
    0.5
}

/// A step with its place in the list, which its draws depend on.
type Placed = (u64, Box<dyn Step>);

type Steps = Vec<Placed>;

/// Checks the step at `place` of a list inside `at`.
fn inner(
    at: &At,
    place: usize,
    transform: &TransformConfig,
    state: &mut State,
) -> Result<Option<Placed>, ConfigError> {
    let inside = at.inside(place, transform.name());
    let step = transform.transform().step(&inside, state)?;
    if state.normalize.is_some() {
        return Err(inside
            .error("Normalize belongs to the end of the whole chain: move it out, after all other steps"));
    }
    Ok(step.map(|step| (place as u64, step)))
}

fn not_empty(at: &At, transforms: &[TransformConfig]) -> Result<(), ConfigError> {
    at.check(!transforms.is_empty(), || "transforms is empty: give at least one step".to_owned())
}

/// What is known after one of several ways that an image may take: of a size that differs among them, nothing.
fn after_one_of(at: &At, ways: &[State], state: &mut State) -> Result<(), ConfigError> {
    let Some(first) = ways.first() else { return Ok(()) };
    at.check(ways.iter().all(|way| way.channels == first.channels), || {
        "some images would have 1 channel and others 3: use Grayscale(3), which keeps the channels".to_owned()
    })?;
    let differing = ways.iter().any(|way| way.size != first.size);
    *state = ways.iter().find(|way| way.size.is_none()).unwrap_or(first).clone();
    if differing {
        state.size = None;
        state.culprit = Some(format!("{} does not give all images the same size", at.text()));
    }
    Ok(())
}

fn masks(steps: &Steps) -> Steps {
    steps.iter().filter_map(|(place, step)| Some((*place, step.like_mask()?))).collect()
}

#[derive(Debug)]
struct Apply {
    steps: Steps,
    p: f64,
}

impl Transform for RandomApply {
    fn step(&self, at: &At, state: &mut State) -> Result<Option<Box<dyn Step>>, ConfigError> {
        not_empty(at, &self.transforms)?;
        let p = at.probability(self.p)?;
        let (before, mut after) = (state.clone(), state.clone());
        let mut steps = Steps::new();
        for (place, transform) in self.transforms.iter().enumerate() {
            steps.extend(inner(at, place, transform, &mut after)?);
        }
        if p == 1.0 {
            *state = after;
        } else if p > 0.0 {
            after_one_of(at, &[before, after], state)?;
        }
        Ok(if steps.is_empty() || p == 0.0 { None } else { Some(Box::new(Apply { steps, p })) })
    }
}

impl Step for Apply {
    fn apply(
        &self,
        picture: &mut Picture<'_>,
        draws: &mut Draws,
        limits: &Limits,
    ) -> Result<(), SampleError> {
        if !draws.chance(self.p) {
            return Ok(());
        }
        self.steps.iter().try_for_each(|(place, step)| step.apply(picture, &mut draws.child(*place), limits))
    }

    fn like_mask(&self) -> Option<Box<dyn Step>> {
        let steps = masks(&self.steps);
        if steps.is_empty() { None } else { Some(Box::new(Apply { steps, p: self.p })) }
    }

    fn keeps_rectangles(&self) -> bool {
        self.steps.iter().all(|(_, step)| step.keeps_rectangles())
    }

    fn takes_masks(&self) -> bool {
        self.steps.iter().all(|(_, step)| step.takes_masks())
    }

    fn needs_boxes(&self) -> bool {
        self.steps.iter().any(|(_, step)| step.needs_boxes())
    }
}

/// One of several steps, some of which may do nothing.
#[derive(Debug)]
struct Choice {
    steps: Steps,
    weights: Vec<f64>,
}

impl Transform for RandomChoice {
    fn step(&self, at: &At, state: &mut State) -> Result<Option<Box<dyn Step>>, ConfigError> {
        not_empty(at, &self.transforms)?;
        let count = self.transforms.len();
        let weights = self.p.clone().unwrap_or_else(|| vec![1.0; count]);
        at.check(weights.len() == count, || {
            format!("p has {} numbers, and there are {count} transforms: give one for each", weights.len())
        })?;
        at.check(weights.iter().all(|weight| *weight >= 0.0 && weight.is_finite()), || {
            format!("p must be weights of 0 or more, not {weights:?}")
        })?;
        at.check(weights.iter().sum::<f64>() > 0.0, || "p is 0 for all transforms".to_owned())?;
        let (mut steps, mut ways) = (Steps::new(), Vec::new());
        for (place, transform) in self.transforms.iter().enumerate() {
            let mut way = state.clone();
            steps.extend(inner(at, place, transform, &mut way)?);
            if weights[place] > 0.0 {
                ways.push(way);
            }
        }
        after_one_of(at, &ways, state)?;
        Ok(if steps.is_empty() { None } else { Some(Box::new(Choice { steps, weights })) })
    }
}

impl Step for Choice {
    fn apply(
        &self,
        picture: &mut Picture<'_>,
        draws: &mut Draws,
        limits: &Limits,
    ) -> Result<(), SampleError> {
        let chosen = draws.weighted(&self.weights) as u64;
        match self.steps.iter().find(|(place, _)| *place == chosen) {
            Some((place, step)) => step.apply(picture, &mut draws.child(*place), limits),
            None => Ok(()),
        }
    }

    fn like_mask(&self) -> Option<Box<dyn Step>> {
        let steps = masks(&self.steps);
        if steps.is_empty() {
            return None;
        }
        Some(Box::new(Choice { steps, weights: self.weights.clone() }))
    }

    fn keeps_rectangles(&self) -> bool {
        self.steps.iter().all(|(_, step)| step.keeps_rectangles())
    }

    fn takes_masks(&self) -> bool {
        self.steps.iter().all(|(_, step)| step.takes_masks())
    }

    fn needs_boxes(&self) -> bool {
        self.steps.iter().any(|(_, step)| step.needs_boxes())
    }
}

/// All steps, in a random order of `count` places.
#[derive(Debug)]
struct Order {
    steps: Steps,
    count: u64,
}

impl Transform for RandomOrder {
    fn step(&self, at: &At, state: &mut State) -> Result<Option<Box<dyn Step>>, ConfigError> {
        not_empty(at, &self.transforms)?;
        let (mut steps, mut changed) = (Steps::new(), Vec::new());
        for (place, transform) in self.transforms.iter().enumerate() {
            // Any of them may be the first.
            let mut way = state.clone();
            steps.extend(inner(at, place, transform, &mut way)?);
            at.check(way.channels == state.channels, || {
                "Grayscale(1) changes the channels, and steps in a random order must keep them: use Grayscale(3)"
                    .to_owned()
            })?;
            if way.size != state.size {
                changed.push(way);
            }
        }
        // One step that changes the size does so wherever it comes; of several the order decides.
        if let [way] = &changed[..] {
            *state = way.clone();
        } else if !changed.is_empty() {
            state.size = None;
            state.culprit = Some(format!("{} changes the size in a random order", at.text()));
        }
        let count = self.transforms.len() as u64;
        Ok(if steps.is_empty() { None } else { Some(Box::new(Order { steps, count })) })
    }
}

impl Step for Order {
    fn apply(
        &self,
        picture: &mut Picture<'_>,
        draws: &mut Draws,
        limits: &Limits,
    ) -> Result<(), SampleError> {
        let mut order: Vec<u64> = (0..self.count).collect();
        draws.shuffle(&mut order);
        for next in order {
            if let Some((place, step)) = self.steps.iter().find(|(place, _)| *place == next) {
                step.apply(picture, &mut draws.child(*place), limits)?;
            }
        }
        Ok(())
    }

    fn like_mask(&self) -> Option<Box<dyn Step>> {
        let steps = masks(&self.steps);
        if steps.is_empty() { None } else { Some(Box::new(Order { steps, count: self.count })) }
    }

    fn keeps_rectangles(&self) -> bool {
        self.steps.iter().all(|(_, step)| step.keeps_rectangles())
    }

    fn takes_masks(&self) -> bool {
        self.steps.iter().all(|(_, step)| step.takes_masks())
    }

    fn needs_boxes(&self) -> bool {
        self.steps.iter().any(|(_, step)| step.needs_boxes())
    }
}
