//! From a pipeline's configuration and an open source to its order: shuffled, blocked, mixed, or sampled by weight.

use std::collections::BTreeMap;
use std::sync::Arc;

use fuelrail_connectors::{Blocks, IndexedSource, apportion, shown};
use serde::Serialize;
use xxhash_rust::xxh3::xxh3_128;

use crate::config::{BlockedConfig, PipelineConfig, Sampling};
use crate::order::Order;
use crate::protocol::ErrorKind;
use crate::refusal::Refusal;

/// Integer labels without names are sampled as classes up to this one; larger ones are no class numbers.
const MAX_LABEL: i64 = 1 << 20;

/// The order of a pipeline, and the fingerprint of everything that decides which record comes at which position.
///
/// # Errors
/// With the key that is wrong, and why.
pub(crate) fn order(config: &PipelineConfig, source: &dyn IndexedSource) -> Result<(Order, String), Refusal> {
    let (len, seed) = (source.len(), config.seed);
    let parts = source.portions();
    if let Some(sampling) = &config.sampling {
        if !parts.is_empty() && parts.iter().any(|part| part.per_epoch != part.len) {
            return refuse(
                "sampling draws records by weight, and so do the weights and repeats of the mixture: leave one of them out",
            );
        }
        let (order, weights) = sampled(sampling, source, seed)?;
        return Ok((
            order,
            fingerprint(&(sampling_kind(sampling), order_len(source, sampling), weights, config.on_error)),
        ));
    }
    if !parts.is_empty() {
        let draws: Vec<u64> = parts.iter().map(|part| part.per_epoch).collect();
        let blocks: Vec<_> = parts.iter().map(|part| blocked(config, &part.blocks)).collect();
        let order = Order::mixed(&draws, seed, config.shuffle, |at, seed| {
            plain(config, parts[at].len, &parts[at].blocks, seed)
        });
        let identity = (config.shuffle, config.shuffle.then_some(blocks), config.on_error, draws);
        return Ok((order, fingerprint(&identity)));
    }
    let blocks = source.blocks();
    let identity = (config.shuffle, config.shuffle.then_some(blocked(config, &blocks)), config.on_error);
    Ok((plain(config, len, &blocks, seed), fingerprint(&identity)))
}

/// The fingerprint of what decides the order inside a stream's windows.
///
/// # Errors
/// With the key that a stream cannot have.
pub(crate) fn of_stream(config: &PipelineConfig) -> Result<String, Refusal> {
    if config.sampling.is_some() {
        return refuse(
            "sampling draws from all records of a source, and a stream's are not known beforehand: leave it out \
             (to change the shares, produce other records or use a second topic)",
        );
    }
    if config.blocked.is_some() {
        return refuse(
            "blocked is for sources with shards: a stream is shuffled within its windows (window_records)",
        );
    }
    Ok(fingerprint(&(config.shuffle, config.on_error)))
}

/// Each record once.
fn plain(config: &PipelineConfig, len: u64, blocks: &Blocks, seed: u64) -> Order {
    match (config.shuffle, blocked(config, blocks), blocks) {
        (false, ..) => Order::sequential(len, seed),
        (true, None, _) => Order::shuffled(len, seed),
        (true, Some(BlockedConfig { lanes, window }), Blocks::Lengths { lengths, .. }) => {
            Order::blocked(lengths.clone(), seed, lanes, window)
        }
        // A folder has no shards: the blocked order then keeps directory neighbours together.
        (true, Some(BlockedConfig { lanes, window }), Blocks::None) => {
            Order::blocked(Arc::from([len]), seed, lanes, window)
        }
    }
}

/// The blocked order's figures: as configured, or as the source would have them.
fn blocked(config: &PipelineConfig, blocks: &Blocks) -> Option<BlockedConfig> {
    config.blocked.or(match *blocks {
        Blocks::None => None,
        Blocks::Lengths { lanes, window, .. } => Some(BlockedConfig { lanes, window }),
    })
}

fn sampling_kind(sampling: &Sampling) -> &'static str {
    match sampling {
        Sampling::ClassBalanced { .. } => "class_balanced",
        Sampling::ClassShares { .. } => "class_shares",
        Sampling::Weights { .. } => "weights",
    }
}

fn order_len(source: &dyn IndexedSource, sampling: &Sampling) -> u64 {
    let (Sampling::ClassBalanced { samples_per_epoch }
    | Sampling::ClassShares { samples_per_epoch, .. }
    | Sampling::Weights { samples_per_epoch, .. }) = sampling;
    samples_per_epoch.unwrap_or_else(|| source.len())
}

/// The order and what of the weights goes into the fingerprint.
fn sampled(sampling: &Sampling, source: &dyn IndexedSource, seed: u64) -> Result<(Order, String), Refusal> {
    let draws = order_len(source, sampling);
    if draws == 0 || draws > 1 << 48 {
        return refuse(format!("sampling.samples_per_epoch = {draws} is not between 1 and 2^48"));
    }
    match sampling {
        Sampling::ClassBalanced { .. } => {
            let classes = Counted::new(source)?;
            let present = classes.counts.iter().filter(|&&count| count > 0).count() as u64;
            let each = draws.div_ceil(present);
            let per_class: Vec<u64> =
                classes.counts.iter().map(|&count| if count > 0 { each } else { 0 }).collect();
            Ok((classes.order(per_class, seed), String::new()))
        }
        Sampling::ClassShares { shares, .. } => {
            let classes = Counted::new(source)?;
            let per_class = classes.draws(shares, draws)?;
            Ok((classes.order(per_class, seed), fingerprint(shares)))
        }
        Sampling::Weights { file, .. } => {
            let weights = fuelrail_connectors::read_numbers(file, source.len())
                .map_err(|error| Refusal::new(ErrorKind::Config, format!("sampling.file: {error}")))?;
            let file = shown(&file);
            if let Some(at) = weights.iter().position(|weight| !weight.is_finite() || *weight < 0.0) {
                return refuse(format!(
                    "sampling.file {file}: weight {at} is {}; weights are finite and not below 0",
                    weights[at]
                ));
            }
            let sum: f64 = weights.iter().sum();
            if sum <= 0.0 || !sum.is_finite() {
                return refuse(format!(
                    "sampling.file {file}: the weights add up to {sum}; no record could be drawn"
                ));
            }
            let bytes: Vec<u8> = weights.iter().flat_map(|weight| weight.to_le_bytes()).collect();
            let hash = format!("{:032x}", xxh3_128(&bytes));
            Ok((Order::by_weight(weights.into_iter(), draws, seed), hash))
        }
    }
}

/// Records per class.
struct Counted<'a> {
    source: &'a dyn IndexedSource,
    counts: Vec<u64>,
}

impl<'a> Counted<'a> {
    fn new(source: &'a dyn IndexedSource) -> Result<Self, Refusal> {
        if !source.is_labelled() {
            return refuse(
                "sampling by class needs labels, and this source has none: say where they are (label), or leave out sampling",
            );
        }
        let mut counts = vec![0u64; source.classes().len()];
        for index in (0..source.len()).filter(|&index| source.verdict(index).is_none()) {
            let label = source.label(index);
            if !(0..MAX_LABEL).contains(&label) {
                return refuse(format!(
                    "sampling by class needs labels from 0 to {}; {} has label {label}",
                    MAX_LABEL - 1,
                    source.key(index)
                ));
            }
            if counts.len() <= label as usize {
                counts.resize(label as usize + 1, 0);
            }
            counts[label as usize] += 1;
        }
        Ok(Self { source, counts })
    }

    /// The order that draws each class so often. Records that are known to be bad ones are in none.
    fn order(&self, mut per_class: Vec<u64>, seed: u64) -> Order {
        let nowhere = per_class.len();
        if (0..self.source.len()).any(|index| self.source.verdict(index).is_some()) {
            per_class.push(0);
        }
        let class = |index| match self.source.verdict(index) {
            Some(_) => nowhere,
            None => self.source.label(index) as usize,
        };
        Order::by_class(self.source.len(), class, &per_class, seed)
    }

    fn name(&self, class: usize) -> String {
        self.source.classes().get(class).cloned().unwrap_or_else(|| class.to_string())
    }

    /// Draws per class for shares by name.
    fn draws(&self, shares: &BTreeMap<String, f64>, draws: u64) -> Result<Vec<u64>, Refusal> {
        let mut left = shares.clone();
        let mut weights = Vec::with_capacity(self.counts.len());
        for (class, &count) in self.counts.iter().enumerate() {
            let name = self.name(class);
            let share = match left.remove(&name) {
                Some(share) if !share.is_finite() || share < 0.0 => {
                    return refuse(format!(
                        "sampling.shares.{name} is {share}; a share is finite and not below 0"
                    ));
                }
                Some(share) if share > 0.0 && count == 0 => {
                    return refuse(format!("sampling.shares.{name} is {share}, but the class has no record"));
                }
                Some(share) => share,
                None if count == 0 => 0.0,
                None => {
                    return refuse(format!(
                        "sampling.shares has no share for class {name:?}; give every class one (0 leaves it out)"
                    ));
                }
            };
            weights.push(share);
        }
        if let Some(unknown) = left.keys().next() {
            return refuse(format!("sampling.shares.{unknown}: the source has no class of this name"));
        }
        if weights.iter().sum::<f64>() <= 0.0 {
            return refuse("sampling.shares are all 0; no record could be drawn");
        }
        let mut per_class = apportion(draws, &weights);
        // A class with a share is drawn at least once, however small the epoch.
        for (draws, weight) in per_class.iter_mut().zip(&weights) {
            *draws = (*draws).max(u64::from(*weight > 0.0));
        }
        Ok(per_class)
    }
}

fn refuse<T>(message: impl Into<String>) -> Result<T, Refusal> {
    Err(Refusal::new(ErrorKind::Config, message))
}

fn fingerprint<T: Serialize>(value: &T) -> String {
    format!("{:032x}", xxh3_128(&serde_json::to_vec(value).expect("configuration is plain data")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn open(config: serde_json::Value) -> Result<(Order, String), String> {
        let config = PipelineConfig::from_json(config).unwrap();
        let source = fuelrail_connectors::open(&config.source).unwrap();
        order(&config, &*source).map_err(|error| error.message)
    }

    fn synthetic(count: u64, classes: u64) -> serde_json::Value {
        json!({"type": "synthetic", "count": count, "classes": classes})
    }

    fn with(sampling: serde_json::Value) -> Result<(Order, String), String> {
        open(json!({"source": synthetic(300, 3), "sampling": sampling}))
    }

    fn drawn(order: &Order, source: &dyn IndexedSource, epoch: u64) -> Vec<u64> {
        let (mut counts, epoch) = (vec![0; source.classes().len()], order.epoch(epoch));
        (0..order.len()).for_each(|position| counts[source.label(epoch.index(position)) as usize] += 1);
        counts
    }

    #[test]
    fn classes_are_drawn_in_their_shares() {
        let config = PipelineConfig::from_json(json!({"source": synthetic(300, 3)})).unwrap();
        let source = fuelrail_connectors::open(&config.source).unwrap();
        let (order, balanced) = with(json!({"type": "class_balanced"})).unwrap();
        assert_eq!(drawn(&order, &*source, 4), [100, 100, 100]);
        let shares = json!({"class-0": 1, "class-1": 3, "class-2": 0});
        let (order, shared) =
            with(json!({"type": "class_shares", "shares": shares, "samples_per_epoch": 40})).unwrap();
        assert_eq!(drawn(&order, &*source, 0), [10, 30, 0]);
        assert_ne!(balanced, shared);
    }

    #[test]
    fn shares_that_make_no_sense_are_named() {
        let shares = |shares| with(json!({"type": "class_shares", "shares": shares})).unwrap_err();
        assert!(shares(json!({"class-0": 1})).contains("no share for class \"class-1\""));
        assert!(shares(json!({"class-0": 1, "class-1": 1, "class-2": 1, "x": 1})).contains("shares.x"));
        assert!(shares(json!({"class-0": -1, "class-1": 1, "class-2": 1})).contains("shares.class-0 is -1"));
        assert!(shares(json!({"class-0": 0, "class-1": 0, "class-2": 0})).contains("all 0"));
        assert!(
            with(json!({"type": "class_balanced", "samples_per_epoch": 0}))
                .unwrap_err()
                .contains("samples_per_epoch")
        );
    }

    #[test]
    fn a_mixture_is_as_long_as_its_draws_and_its_weights_are_part_of_the_order() {
        let mix = |weight: f64, extra: serde_json::Value| {
            let mut config = json!({"shuffle": true, "source": {"type": "mix", "samples_per_epoch": 1000, "parts": [
                {"source": synthetic(300, 3), "weight": weight}, {"source": synthetic(50, 3), "weight": 1},
            ]}});
            for (key, value) in extra.as_object().unwrap() {
                config[key] = value.clone();
            }
            open(config)
        };
        let (order, one) = mix(3.0, json!({})).unwrap();
        assert_eq!(order.len(), 1000);
        let epoch = order.epoch(2);
        let first = (0..1000).filter(|&position| epoch.index(position) < 300).count();
        assert_eq!(first, 750);
        assert_ne!(one, mix(4.0, json!({})).unwrap().1);
        let error = mix(3.0, json!({"sampling": {"type": "class_balanced"}})).unwrap_err();
        assert!(error.contains("leave one of them out"), "{error}");
    }

    #[test]
    fn records_are_drawn_by_the_weights_of_a_file() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("weights.npy");
        let write = |weights: &[f64]| {
            let header =
                format!("{{'descr': '<f8', 'fortran_order': False, 'shape': ({},), }}", weights.len());
            let header = format!("{header:<117}\n");
            let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
            bytes.extend((header.len() as u16).to_le_bytes());
            bytes.extend(header.as_bytes());
            bytes.extend(weights.iter().flat_map(|weight| weight.to_le_bytes()));
            std::fs::write(&file, bytes).unwrap();
        };
        let sampled = || with(json!({"type": "weights", "file": file, "samples_per_epoch": 60}));
        let mut weights = vec![0.0; 300];
        (weights[7], weights[9]) = (1.0, 2.0);
        write(&weights);
        let (order, one) = sampled().unwrap();
        let epoch = order.epoch(0);
        let mut counts = BTreeMap::new();
        (0..60).for_each(|position| *counts.entry(epoch.index(position)).or_insert(0) += 1);
        assert_eq!(counts, BTreeMap::from([(7, 20), (9, 40)]));
        weights[9] = 3.0;
        write(&weights);
        assert_ne!(one, sampled().unwrap().1, "other weights are another order");
        weights[5] = -1.0;
        write(&weights);
        assert!(sampled().unwrap_err().contains("weight 5 is -1"));
        write(&[1.0; 20]);
        assert!(sampled().unwrap_err().contains("one number for each of 300 records"));
    }
}
