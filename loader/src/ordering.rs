//! From a pipeline's configuration and an open source to its order: shuffled, blocked, mixed, or sampled by weight.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use fuelrail_connectors::{Blocks, IndexedSource, apportion, shown};
use serde::Serialize;
use xxhash_rust::xxh3::xxh3_128;

use crate::config::{BlockedConfig, PipelineConfig, Sampling};
use crate::order::{Order, Rounds};
use crate::protocol::ErrorKind;
use crate::refusal::Refusal;

/// Integer labels without names are sampled as classes up to this one; larger ones are no class numbers.
const MAX_LABEL: i64 = 1 << 20;

/// The order of a pipeline.
pub(crate) struct Ordered {
    pub order: Order,
    /// Of everything that decides which record comes at which position.
    pub fingerprint: String,
    /// What of that has a name of its own, for those who compare.
    pub chosen: Vec<(&'static str, String)>,
}

impl Ordered {
    fn plain(order: Order, fingerprint: String) -> Self {
        Self { order, fingerprint, chosen: Vec::new() }
    }
}

/// The order of a pipeline.
///
/// # Errors
/// With the key that is wrong, and why.
pub(crate) fn order(config: &PipelineConfig, source: &dyn IndexedSource) -> Result<Ordered, Refusal> {
    match &config.sampling {
        Some(Sampling::Order { indices }) => given(config, source, indices),
        Some(Sampling::Repeated { repeats, samples_per_epoch }) => {
            repeated(config, source, *repeats, *samples_per_epoch)
        }
        Some(Sampling::PerClass { per_class, samples_per_epoch }) => {
            by_class(config, source, *per_class, *samples_per_epoch)
        }
        sampling => each_or_sampled(config, source, sampling.as_ref()),
    }
}

/// Each record once, or drawn by weight.
fn each_or_sampled(
    config: &PipelineConfig,
    source: &dyn IndexedSource,
    sampling: Option<&Sampling>,
) -> Result<Ordered, Refusal> {
    let (len, seed) = (source.len(), config.seed);
    let parts = source.portions();
    if let Some(sampling) = sampling {
        once_from_parts(source, "sampling draws records by weight")?;
        let (order, weights) = sampled(sampling, source, seed)?;
        let identity = (sampling_kind(sampling), order_len(source, sampling), weights, config.on_error);
        return Ok(Ordered::plain(order, fingerprint(&identity)));
    }
    if !parts.is_empty() {
        let draws: Vec<u64> = parts.iter().map(|part| part.per_epoch).collect();
        let blocks: Vec<_> = parts.iter().map(|part| blocked(config, &part.blocks)).collect();
        let order = Order::mixed(&draws, seed, config.shuffle, |at, seed| {
            plain(config, parts[at].len, &parts[at].blocks, seed)
        });
        let identity = (config.shuffle, config.shuffle.then_some(blocks), config.on_error, draws);
        return Ok(Ordered::plain(order, fingerprint(&identity)));
    }
    let blocks = source.blocks();
    let identity = (config.shuffle, config.shuffle.then_some(blocked(config, &blocks)), config.on_error);
    Ok(Ordered::plain(plain(config, len, &blocks, seed), fingerprint(&identity)))
}

/// Refuses a mixture that does not draw each record of its parts once an epoch.
fn once_from_parts(source: &dyn IndexedSource, what: &str) -> Result<(), Refusal> {
    if source.portions().iter().any(|part| part.per_epoch != part.len) {
        return refuse(format!(
            "{what}, and so do the weights and repeats of the mixture: leave one of them out"
        ));
    }
    Ok(())
}

/// An order from outside.
fn given(config: &PipelineConfig, source: &dyn IndexedSource, file: &Path) -> Result<Ordered, Refusal> {
    if config.shuffle {
        return refuse(
            "shuffle makes an order of its own, and sampling.indices gives one: leave one of them out",
        );
    }
    if config.blocked.is_some() {
        return refuse(
            "blocked makes an order of its own, and sampling.indices gives one: leave one of them out",
        );
    }
    once_from_parts(source, "sampling.indices says which records an epoch has")?;
    let (indices, epochs) = fuelrail_connectors::read_indices(file, source.len())
        .map_err(|error| Refusal::new(ErrorKind::Config, format!("sampling.indices: {error}")))?;
    let bytes: Vec<u8> = indices.iter().flat_map(|index| index.to_le_bytes()).collect();
    let hash = format!("{:032x}", xxh3_128(&bytes));
    let order = Order::given(&indices, epochs, source.len());
    let of_epochs = epochs.map_or(String::new(), |epochs| format!(" in each of {epochs} epochs"));
    let said = format!("{} records{of_epochs}, with hash {}", order.len(), &hash[..16]);
    let fingerprint = fingerprint(&("order", hash, epochs, config.on_error));
    Ok(Ordered { order, fingerprint, chosen: vec![("order", said)] })
}

/// Each record at several positions next to each other.
fn repeated(
    config: &PipelineConfig,
    source: &dyn IndexedSource,
    repeats: u32,
    wanted: Option<u64>,
) -> Result<Ordered, Refusal> {
    if !(1..=1 << 16).contains(&repeats) {
        return refuse(format!("sampling.repeats is {repeats}, which is not between 1 and {}", 1 << 16));
    }
    let each = each_or_sampled(config, source, None)?;
    let most = each.order.len() * u64::from(repeats);
    let len = wanted.unwrap_or(most);
    if len == 0 || len > most {
        return refuse(format!(
            "sampling.samples_per_epoch is {len}, which is not between 1 and {most}, {repeats} times {} records",
            each.order.len()
        ));
    }
    let fingerprint = fingerprint(&("repeated", repeats, len, each.fingerprint));
    let order = Order::repeated(each.order, repeats.into(), len);
    let said = format!("{repeats}, {len} samples per epoch");
    Ok(Ordered { order, fingerprint, chosen: vec![("repeats", said)] })
}

/// So many records of a class in each batch that has the class.
fn by_class(
    config: &PipelineConfig,
    source: &dyn IndexedSource,
    each: u64,
    wanted: Option<u64>,
) -> Result<Ordered, Refusal> {
    let batch = config.batch_size;
    if each == 0 || !batch.is_multiple_of(each) {
        return refuse(format!(
            "sampling.per_class is {each}, which does not divide the batch_size of {batch}: a batch is made of whole \
             classes of {each} records"
        ));
    }
    once_from_parts(source, "sampling.per_class says which records an epoch has")?;
    let classes = Counted::new(source)?;
    let present = classes.counts.iter().filter(|&&count| count > 0).count() as u64;
    if batch / each > present {
        return refuse(format!(
            "sampling.per_class is {each}, so a batch_size of {batch} needs {} classes in each batch, and the source \
             has {present} with records: lower batch_size, or raise per_class",
            batch / each
        ));
    }
    let wanted = wanted.unwrap_or(source.len());
    if wanted == 0 || wanted > 1 << 48 {
        return refuse(format!("sampling.samples_per_epoch is {wanted}, which is not between 1 and 2^48"));
    }
    let small = classes.counts.iter().filter(|&&count| (1..each).contains(&count)).count();
    if small > 0 {
        tracing::warn!(
            "per_class = {each}: {small} of {present} classes have fewer records, which come several times in a batch"
        );
    }
    let rounds = Rounds { each, batch, count: (wanted / batch).max(1) };
    let order = classes.rounds(rounds, config.seed);
    let fingerprint = fingerprint(&("per_class", each, batch, rounds.count, config.on_error));
    let said = format!("{each} in a batch of {batch}, {} batches per epoch", rounds.count);
    Ok(Ordered { order, fingerprint, chosen: vec![("per_class", said)] })
}

/// The fingerprint of what decides the order inside a stream's windows.
///
/// # Errors
/// With the key that a stream cannot have.
pub(crate) fn of_stream(config: &PipelineConfig) -> Result<String, Refusal> {
    if let Some(sampling) = &config.sampling {
        return refuse(format!(
            "sampling ({}) draws from all records of a source, and a stream's are not known beforehand: leave it out \
             (to change the shares, produce other records or use a second topic)",
            sampling_kind(sampling)
        ));
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
        Sampling::Order { .. } => "order",
        Sampling::Repeated { .. } => "repeats",
        Sampling::PerClass { .. } => "per_class",
    }
}

fn order_len(source: &dyn IndexedSource, sampling: &Sampling) -> u64 {
    match sampling {
        Sampling::ClassBalanced { samples_per_epoch }
        | Sampling::ClassShares { samples_per_epoch, .. }
        | Sampling::Weights { samples_per_epoch, .. }
        | Sampling::Repeated { samples_per_epoch, .. }
        | Sampling::PerClass { samples_per_epoch, .. } => samples_per_epoch.unwrap_or_else(|| source.len()),
        Sampling::Order { .. } => source.len(),
    }
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
        Sampling::Order { .. } | Sampling::Repeated { .. } | Sampling::PerClass { .. } => {
            unreachable!("these are no weights, and were taken before")
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
                "drawing by class needs labels, and this source has none: say where they are (label), or draw without \
                 classes",
            );
        }
        let mut counts = vec![0u64; source.classes().len()];
        for index in (0..source.len()).filter(|&index| source.verdict(index).is_none()) {
            let label = source.label(index);
            if !(0..MAX_LABEL).contains(&label) {
                return refuse(format!(
                    "drawing by class needs labels from 0 to {}; {} has label {label}",
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

    /// The class of a record. One that is known to be bad is in none: in one behind the last.
    fn class(&self, index: u64) -> usize {
        match self.source.verdict(index) {
            Some(_) => self.counts.len(),
            None => self.source.label(index) as usize,
        }
    }

    /// The order that draws each class so often.
    fn order(&self, mut per_class: Vec<u64>, seed: u64) -> Order {
        if (0..self.source.len()).any(|index| self.source.verdict(index).is_some()) {
            per_class.push(0);
        }
        Order::by_class(self.source.len(), |index| self.class(index), &per_class, seed)
    }

    /// The order in rounds of classes.
    fn rounds(&self, rounds: Rounds, seed: u64) -> Order {
        Order::per_class(self.source.len(), |index| self.class(index), &self.counts, rounds, seed)
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
        let ordered = order(&config, &*source).map_err(|error| error.message)?;
        Ok((ordered.order, ordered.fingerprint))
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

    /// Writes a .npy file.
    fn npy(file: &std::path::Path, descr: &str, shape: &str, data: &[[u8; 8]]) {
        let header = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}");
        let header = format!("{header:<117}\n");
        let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
        bytes.extend((header.len() as u16).to_le_bytes());
        bytes.extend(header.as_bytes());
        bytes.extend(data.concat());
        std::fs::write(file, bytes).unwrap();
    }

    #[test]
    fn an_order_from_outside_is_followed_and_is_part_of_the_fingerprint() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("order.npy");
        let given = |shape: &str, indices: &[i64]| {
            npy(&file, "<i8", shape, &indices.iter().map(|index| index.to_le_bytes()).collect::<Vec<_>>());
            with(json!({"type": "order", "indices": file}))
        };
        let (order, one) = given("(4,)", &[7, 299, 7, 0]).unwrap();
        let epoch = order.epoch(3);
        assert_eq!((0..4).map(|at| epoch.index(at)).collect::<Vec<_>>(), [7, 299, 7, 0]);
        let (order, two) = given("(2, 2)", &[7, 299, 7, 0]).unwrap();
        assert_eq!((order.len(), order.epochs(), order.epoch(1).index(1)), (2, Some(2), 0));
        assert_ne!(one, two, "the same numbers in other rows are another order");
        assert_ne!(one, given("(4,)", &[7, 299, 0, 7]).unwrap().1);
        let error = given("(2, 2)", &[7, 299, 300, 0]).unwrap_err();
        assert!(error.contains("sampling.indices") && error.contains("[1, 0] is 300"), "{error}");
        let config = |extra: serde_json::Value| {
            let mut config =
                json!({"source": synthetic(300, 3), "sampling": {"type": "order", "indices": file}});
            config.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
            open(config).unwrap_err()
        };
        assert!(config(json!({"shuffle": true})).contains("shuffle makes an order of its own"));
        assert!(config(json!({"blocked": {}})).contains("blocked makes an order of its own"));
    }

    #[test]
    fn records_are_repeated_in_the_order_that_they_would_have_and_as_often_as_told() {
        let repeated = |shuffle: bool, sampling: serde_json::Value| {
            open(json!({"source": synthetic(50, 2), "shuffle": shuffle, "sampling": sampling}))
        };
        let (order, one) = repeated(true, json!({"type": "repeated", "repeats": 3})).unwrap();
        let (each, _) = open(json!({"source": synthetic(50, 2), "shuffle": true})).unwrap();
        let (epoch, each) = (order.epoch(4), each.epoch(4));
        assert!((0..150).all(|at| epoch.index(at) == each.index(at / 3)));
        let cut = |samples: u64| {
            repeated(true, json!({"type": "repeated", "repeats": 3, "samples_per_epoch": samples}))
        };
        assert_eq!(cut(50).unwrap().0.len(), 50);
        assert_ne!(cut(50).unwrap().1, one);
        assert!(cut(151).unwrap_err().contains("not between 1 and 150, 3 times 50 records"));
        let error = repeated(false, json!({"type": "repeated", "repeats": 0})).unwrap_err();
        assert!(error.contains("sampling.repeats is 0"), "{error}");
        let (order, _) = repeated(false, json!({"type": "repeated", "repeats": 2})).unwrap();
        assert_eq!((0..4).map(|at| order.epoch(9).index(at)).collect::<Vec<_>>(), [0, 0, 1, 1]);
    }

    #[test]
    fn batches_have_so_many_of_a_class_or_are_refused_with_the_numbers() {
        let per_class = |each: u64, batch: u64| {
            let sampling = json!({"type": "per_class", "per_class": each});
            open(json!({"source": synthetic(300, 3), "batch_size": batch, "sampling": sampling}))
        };
        let (order, one) = per_class(4, 8).unwrap();
        assert_eq!(order.len(), 296, "the records, in whole batches");
        let config = PipelineConfig::from_json(json!({"source": synthetic(300, 3)})).unwrap();
        let source = fuelrail_connectors::open(&config.source).unwrap();
        let epoch = order.epoch(1);
        for batch in 0..37 {
            let mut labels: Vec<i64> = (0..8).map(|at| source.label(epoch.index(batch * 8 + at))).collect();
            labels.dedup();
            assert_eq!(labels.len(), 2, "batch {batch}");
        }
        assert_ne!(one, per_class(2, 4).unwrap().1);
        assert!(per_class(3, 8).unwrap_err().contains("does not divide the batch_size of 8"));
        assert!(per_class(2, 8).unwrap_err().contains("needs 4 classes in each batch, and the source has 3"));
        assert!(per_class(0, 8).unwrap_err().contains("does not divide"));
    }

    #[test]
    fn records_are_drawn_by_the_weights_of_a_file() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("weights.npy");
        let write = |weights: &[f64]| {
            let shape = format!("({},)", weights.len());
            npy(&file, "<f8", &shape, &weights.iter().map(|weight| weight.to_le_bytes()).collect::<Vec<_>>());
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
