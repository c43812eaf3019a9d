//! What feeds of one daemon share: open sources, and the data that all ranks of a run must have found.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use fuelrail_connectors::{Fingerprint, IndexedSource, Opening};

use crate::config::PipelineConfig;
use crate::engine::flow::Flows;
use crate::pipeline::{Opened, Pipeline, Supply};
use crate::protocol::ErrorKind;
use crate::refusal::Refusal;

/// Of one daemon.
#[derive(Default)]
pub(crate) struct Sharing {
    /// Sources that feeds have open, by their configuration, so that the ranks of a run share one index.
    sources: Mutex<HashMap<String, Shared>>,
    /// What the ranks of each run have been given.
    runs: Mutex<HashMap<String, Run>>,
}

/// A source that is open, and the opening that knows what it was opened from.
#[derive(Clone)]
struct Shared {
    known: Known,
    opening: Opening,
}

impl Shared {
    /// The source, if it is still used and what it was opened from is still the same. Which windows of a stream there
    /// are is settled by its flow; files may have changed since.
    fn open(&self, asking: &Opening) -> Option<Opened> {
        let opened = self.known.open()?;
        let is_current = matches!(opened, Opened::Stream(_)) || self.opening.is_current(asking);
        is_current.then_some(opened)
    }
}

/// The ranks of a run that attached so far, and the data that the first of them found.
struct Run {
    dataset: String,
    ranks: HashMap<u64, Weak<Pipeline>>,
}

/// A source that is open as long as a feed uses it.
#[derive(Clone)]
enum Known {
    Indexed(Weak<dyn IndexedSource>),
    Stream(Weak<Flows>),
}

impl Known {
    fn of(supply: &Supply) -> Self {
        match supply {
            Supply::Indexed { source, .. } => Self::Indexed(Arc::downgrade(source)),
            Supply::Stream { flows, .. } => Self::Stream(Arc::downgrade(flows)),
        }
    }

    /// Identity of an indexed source that is still used.
    fn fingerprint(&self) -> Option<Fingerprint> {
        match self {
            Self::Indexed(source) => source.upgrade().map(|source| source.fingerprint()),
            Self::Stream(_) => None,
        }
    }

    fn open(&self) -> Option<Opened> {
        match self {
            Self::Indexed(source) => source.upgrade().map(Opened::Indexed),
            Self::Stream(flows) => flows.upgrade().map(Opened::Stream),
        }
    }
}

impl Sharing {
    /// Opens a pipeline on a source that is open already, if it is one of the same data.
    ///
    /// # Errors
    /// As [`Pipeline::open_watched`].
    pub fn open(&self, mut config: PipelineConfig, opening: &Opening) -> Result<Pipeline, Refusal> {
        // By what it stands for now: another file beside it may make it something else.
        config.source = config.source_of_fields().resolve().map_err(Refusal::of_source)?;
        let name = serde_json::to_string(&config.source).expect("configuration is plain data");
        let lock = || self.sources.lock().unwrap_or_else(PoisonError::into_inner);
        let shared = || lock().get(&name).cloned();
        let known = shared().and_then(|shared| shared.open(opening));
        let is_new = known.is_none();
        let mut pipeline = Pipeline::open_watched(config, known, opening)?;
        if is_new {
            // Another rank may have opened it meanwhile: then one of the two is enough.
            let meanwhile =
                shared().filter(|other| other.known.fingerprint() == pipeline.supply.fingerprint());
            match meanwhile.and_then(|other| other.open(opening)) {
                Some(Opened::Indexed(source)) => pipeline.supply.share(source),
                _ => {
                    let known = Known::of(&pipeline.supply);
                    lock().insert(name, Shared { known, opening: opening.clone() });
                }
            }
        }
        lock().retain(|_, shared| shared.known.open().is_some());
        Ok(pipeline)
    }

    /// Takes a rank into its run. Ranks of one run train on the same data: one that finds other files than those before
    /// it is refused.
    pub fn join(&self, pipeline: &Arc<Pipeline>, rank: u64, world_size: u64) -> Result<(), Refusal> {
        if world_size < 2 {
            return Ok(());
        }
        let config = serde_json::to_string(&pipeline.config).expect("configuration is plain data");
        let mut runs = self.runs.lock().unwrap_or_else(PoisonError::into_inner);
        for run in runs.values_mut() {
            run.ranks.retain(|_, feed| feed.strong_count() > 0);
        }
        runs.retain(|_, run| !run.ranks.is_empty());
        let dataset = pipeline.identity.dataset.clone();
        let new = || Run { dataset: dataset.clone(), ranks: HashMap::new() };
        let run = runs.entry(format!("{world_size} {config}")).or_insert_with(new);
        // The same rank again is another run.
        if run.ranks.contains_key(&rank) {
            *run = new();
        }
        if run.dataset != dataset {
            return Err(Refusal::new(
                ErrorKind::Source,
                format!(
                    "rank {rank} finds other data than the ranks of this run that attached before it: files of the source \
                     changed in between; start all ranks again"
                ),
            ));
        }
        run.ranks.insert(rank, Arc::downgrade(pipeline));
        Ok(())
    }
}

/// Ranks whose daemons do not know of each other must cut the same windows of a stream.
///
/// # Errors
/// [`ErrorKind::Config`] where they would not.
pub(crate) fn alone(pipeline: &Pipeline, world_size: u64) -> Result<(), Refusal> {
    match &pipeline.supply {
        Supply::Stream { flows, .. } if world_size > 1 && !flows.source().is_uniform() => Err(Refusal::new(
            ErrorKind::Config,
            format!(
                "each of {world_size} ranks has a daemon of its own here, and windows that close by time or by what \
                     has arrived would differ between them: give window_offsets=N (so many offsets of every partition), \
                     or serve all ranks from one daemon (`fuelrail serve`, Loader(\"unix://...\", pipeline=...))"
            ),
        )),
        _ => Ok(()),
    }
}
