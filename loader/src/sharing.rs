//! What feeds of one daemon share: open sources, and the data that all ranks of a run must have found.

mod agreement;
mod cores;

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, PoisonError, Weak};
use std::time::Duration;

use fuelrail_connectors::{IndexedSource, Opening};
use serde_json::Value;

use crate::config::{Finish, PipelineConfig};
use crate::engine::flow::Flows;
use crate::engine::{ConsumerId, Engine, FIRST, Out};
use crate::pipeline::{Opened, Pipeline, Supply};
use crate::plan::Cursor;
use crate::protocol::{Attached, ErrorKind, Member};
use crate::refusal::Refusal;
use crate::ring::Ring;
pub(crate) use agreement::{Agreement, Party};
pub(crate) use cores::Cores;

/// Poll interval of whoever waits for another's opening, and may be gone meanwhile.
const LOOK: Duration = Duration::from_millis(100);

/// A client's part of a feed: of its own, or of one that it shares. Dropping it gives that back.
pub(crate) struct Seat {
    /// The feed.
    pub engine: Arc<Engine>,
    /// Which of its consumers the client is.
    pub consumer: ConsumerId,
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.engine.leave(self.consumer);
    }
}

/// What a client is given: its part, what it is told, and the memory.
pub(crate) type Given = (Seat, Attached, OwnedFd);

/// A feed that clients share, for as long as one of them is there.
struct SharedFeed {
    /// What its clients must all ask for.
    asked: Value,
    finish: Finish,
    rank: u64,
    engine: Weak<Engine>,
    attached: Attached,
    ring: Ring,
}

/// Of one daemon.
#[derive(Default)]
pub(crate) struct Sharing {
    /// Feeds that several clients share, by the name that they give it.
    feeds: Mutex<HashMap<String, SharedFeed>>,
    /// Sources that feeds have open, by their configuration, so that the ranks of a run share one index.
    sources: Mutex<HashMap<String, Shared>>,
    /// Who opens which of them now.
    turns: Mutex<HashMap<String, Arc<Turn>>>,
    /// What the ranks of each run have been given.
    runs: Mutex<HashMap<String, Run>>,
    /// What the processes of a job have asked for.
    pub agreement: Agreement,
    /// The threads of all of them.
    pub cores: Cores,
}

/// Ranks that come together open their source one after the other: the first reads its index, the others share it.
#[derive(Default)]
struct Turn {
    whose: Mutex<Option<Opening>>,
    over: Condvar,
}

impl Turn {
    /// Waits for those who came before, with their progress.
    fn take(self: &Arc<Self>, opening: &Opening) -> Result<Taken, Refusal> {
        let mut whose = self.whose.lock().unwrap_or_else(PoisonError::into_inner);
        while whose.is_some() {
            opening.awaits(whose.clone());
            (whose, _) = self.over.wait_timeout(whose, LOOK).unwrap_or_else(PoisonError::into_inner);
            if opening.is_cancelled() {
                return Err(Refusal::new(ErrorKind::Environment, "the client is gone"));
            }
        }
        opening.awaits(None);
        *whose = Some(opening.clone());
        Ok(Taken(self.clone()))
    }
}

/// A turn that is taken, until this is dropped.
struct Taken(Arc<Turn>);

impl Drop for Taken {
    fn drop(&mut self) {
        *self.0.whose.lock().unwrap_or_else(PoisonError::into_inner) = None;
        self.0.over.notify_all();
    }
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
    ranks: HashMap<Who, Weak<Pipeline>>,
}

/// A rank, and of which process, where replicas have the same.
type Who = (u64, Option<u64>);

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
        let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        turns.retain(|_, turn| Arc::strong_count(turn) > 1);
        let turn = turns.entry(name.clone()).or_default().clone();
        drop(turns);
        let _taken = turn.take(opening)?;
        let known = shared().and_then(|shared| shared.open(opening));
        let is_new = known.is_none();
        let pipeline = Pipeline::open_watched(config, known, opening)?;
        if is_new {
            let known = Known::of(&pipeline.supply);
            lock().insert(name, Shared { known, opening: opening.clone() });
        }
        lock().retain(|_, shared| shared.known.open().is_some());
        Ok(pipeline)
    }

    /// A client's feed: the one that it shares, if it shares one that runs, else a new one.
    ///
    /// # Errors
    /// As [`Engine::start`]; where the feed of that name is another one, with the difference.
    pub fn feed(
        &self,
        pipeline: Arc<Pipeline>,
        rank: u64,
        world_size: u64,
        start: Cursor,
        workers: Option<Arc<rayon::ThreadPool>>,
        out: Out,
    ) -> Result<Given, Refusal> {
        let descriptor = |ring: &Ring| {
            ring.as_fd().try_clone_to_owned().map_err(|error| {
                Refusal::new(ErrorKind::Environment, format!("no descriptor is left: {error}"))
            })
        };
        let Some(share) = pipeline.config.share.clone() else {
            let (engine, attached, ring) = Engine::start(pipeline, rank, world_size, start, workers, out)?;
            return Ok((Seat { engine: Arc::new(engine), consumer: FIRST }, attached, descriptor(&ring)?));
        };
        if matches!(pipeline.supply, Supply::Stream { .. }) {
            return Err(Refusal::new(
                ErrorKind::Config,
                "share: a stream has no epochs that a client could join with; leave share out, or read a bounded \
                 copy of it",
            ));
        }
        let asked = agreement::asked(&pipeline.config, world_size);
        // Held while a feed is started, so that two that come at once share one.
        let mut feeds = self.feeds.lock().unwrap_or_else(PoisonError::into_inner);
        feeds.retain(|_, feed| feed.engine.strong_count() > 0);
        if let Some(feed) = feeds.get(&share.name)
            && let Some(engine) = feed.engine.upgrade()
        {
            if let Some(differs) = difference(feed, &pipeline, &asked, rank) {
                return Err(Refusal::new(
                    ErrorKind::Config,
                    format!(
                        "the shared feed {:?} runs with other settings: {differs}. Clients of one feed get the same \
                         batches: give it the same settings, or another name",
                        share.name
                    ),
                ));
            }
            let joined = engine.join(out)?;
            let seat = Seat { engine, consumer: ConsumerId(joined.member) };
            let attached = Attached { share: Some(joined), ..feed.attached.clone() };
            return Ok((seat, attached, descriptor(&feed.ring)?));
        }
        let finish = pipeline.config.finish;
        let (engine, attached, ring) = Engine::start(pipeline, rank, world_size, start, workers, out)?;
        let (engine, memory) = (Arc::new(engine), descriptor(&ring)?);
        let (weak, told) = (Arc::downgrade(&engine), attached.clone());
        feeds.insert(share.name, SharedFeed { asked, finish, rank, engine: weak, attached: told, ring });
        Ok((Seat { engine, consumer: FIRST }, attached, memory))
    }

    /// Takes a rank into its run. Ranks of one run train on the same data: one that finds other files than those before
    /// it is refused.
    pub fn join(
        &self,
        pipeline: &Arc<Pipeline>,
        rank: u64,
        world_size: u64,
        member: Option<&Member>,
    ) -> Result<(), Refusal> {
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
        let who = (rank, member.map(|member| member.process));
        if run.ranks.contains_key(&who) {
            *run = new();
        }
        if run.dataset != dataset {
            return Err(Refusal::new(
                ErrorKind::Source,
                format!(
                    "rank {rank} sees different data than the ranks of this run that attached before it: files \
                     of the source changed in between. Restart all ranks"
                ),
            ));
        }
        run.ranks.insert(who, Arc::downgrade(pipeline));
        Ok(())
    }
}

/// Where what a client asks for differs from a shared feed, if it does.
fn difference(feed: &SharedFeed, pipeline: &Pipeline, asked: &Value, rank: u64) -> Option<String> {
    if let Some(differences) = agreement::differences(asked, &feed.asked) {
        return Some(differences);
    }
    if feed.rank != rank {
        return Some(format!("rank is {rank} here, {} there", feed.rank));
    }
    // One ring holds either bytes or floats.
    if feed.finish != pipeline.config.finish {
        return Some(
            "some of its clients copy batches to a GPU (device=\"cuda\") and some do not".to_owned(),
        );
    }
    (feed.attached.identity != pipeline.identity)
        .then(|| "files of the source changed since it began".to_owned())
}

/// Ranks whose daemons do not know of each other must cut the same windows of a stream. Those of a job whose processes
/// are all on this node have one daemon.
///
/// # Errors
/// [`ErrorKind::Config`] where they would not.
pub(crate) fn alone(pipeline: &Pipeline, world_size: u64, member: Option<&Member>) -> Result<(), Refusal> {
    if member.is_some_and(|member| member.here >= member.processes) {
        return Ok(());
    }
    match &pipeline.supply {
        Supply::Stream { flows, .. } if world_size > 1 && !flows.source().is_uniform() => Err(Refusal::new(
            ErrorKind::Config,
            format!(
                "the {world_size} ranks have more than one daemon here, and windows that close by time or size \
                 would differ between them: set window_offsets=N (N offsets of every partition), or serve all \
                 ranks from one daemon (`fuelrail serve`, Loader(\"unix://...\", pipeline=...))"
            ),
        )),
        _ => Ok(()),
    }
}
