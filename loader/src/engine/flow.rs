//! One reading of a stream, shared by the ranks of a run: they all see the same windows, and each window is kept until
//! the last of them is done with it.
//!
//! ```text
//!  Follower ─ window ─▶ Flow: [ n: ranks 1, 2 ] [ n + 1: ranks 0, 1, 2 ]      has_room() while these fit the budget
//!                          │            ▲
//!                     Member::take      ╰ Hold::drop, when a rank's last row of the window is written
//! ```
//!
//! Ranks of one run must cut the same windows. Where they come out the same wherever they are cut
//! ([`StreamSource::is_uniform`]) each daemon has its own flow and nobody waits for a rank that is elsewhere; otherwise
//! one flow serves all ranks of the run, and keeps its first windows until the last of them has come.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

use fuelrail_connectors::{Follower, Place, Sink, SourceError, StreamSource, StreamStats, Window};

/// What windows may cost beside their records: their places, as data.
const PLACES: u64 = 1 << 20;

/// Called when there is news for a rank: a window, or the end of it all.
pub(super) type Notify = Arc<dyn Fn() + Send + Sync>;

/// All readings of one stream by this daemon.
pub struct Flows {
    source: Arc<dyn StreamSource>,
    running: Mutex<Vec<(From, Weak<Flow>)>>,
}

/// Where a flow began. Ranks that begin at the same place share it.
#[derive(Clone, PartialEq)]
struct From {
    place: Place,
    again: bool,
    world_size: u64,
}

impl Flows {
    /// None yet.
    pub fn new(source: Arc<dyn StreamSource>) -> Arc<Self> {
        Arc::new(Self { source, running: Mutex::default() })
    }

    /// The stream.
    pub fn source(&self) -> &Arc<dyn StreamSource> {
        &self.source
    }

    /// Bytes that the windows of a flow may hold.
    pub fn window_memory(&self) -> u64 {
        // One in use and the next.
        2 * (self.source.window_bytes() + PLACES)
    }

    /// Becomes a rank's part of the flow from a place on. With `again`, the window of the place itself comes first.
    ///
    /// # Errors
    /// When the place is none of this stream, or a rank of the same number is there already.
    pub(super) fn join(
        &self,
        place: &Place,
        again: bool,
        rank: u64,
        world_size: u64,
        notify: Notify,
    ) -> Result<Member, SourceError> {
        let from = From { place: place.clone(), again, world_size };
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        running.retain(|(_, flow)| flow.strong_count() > 0);
        for (of, flow) in running.iter() {
            let Some(flow) = flow.upgrade().filter(|_| *of == from) else { continue };
            match flow.state.admit(rank, &notify) {
                Admission::Welcome => return Ok(Member { flow, rank }),
                Admission::Taken if world_size > 1 && !self.source.is_uniform() => {
                    return Err(SourceError::config(format!(
                        "rank {rank} of {world_size} reads this stream from the same place already: a second run \
                         needs its own daemon, or window_offsets, so that all daemons cut the same windows"
                    )));
                }
                Admission::Taken | Admission::Late => {}
            }
        }
        let state = Arc::new(State::new(world_size, self.source.is_uniform(), self.source.window_bytes()));
        assert!(matches!(state.admit(rank, &notify), Admission::Welcome), "a new flow has no ranks");
        let follower = self.source.clone().follow(place, again, state.clone())?;
        let flow = Arc::new(Flow { follower, state });
        running.push((from, Arc::downgrade(&flow)));
        Ok(Member { flow, rank })
    }
}

/// A follower and the windows it has delivered. Ends with its last member.
struct Flow {
    // Dropped first: its thread calls into the state.
    follower: Box<dyn Follower>,
    state: Arc<State>,
}

/// A rank's part of a flow.
pub(super) struct Member {
    flow: Arc<Flow>,
    rank: u64,
}

impl Member {
    /// The windows that came since the last call.
    pub fn take(&self) -> Vec<(Arc<Window>, Hold)> {
        self.flow.state.take(self.rank)
    }

    /// Why nothing more comes, if so.
    pub fn failed(&self) -> Option<SourceError> {
        self.flow.state.failed.get().cloned()
    }

    /// To be called when this rank waits for a window and has nothing in hand. True when that would be for ever: every
    /// rank does so, and what they all wait for does not fit beside what is held for them.
    pub fn is_stuck(&self) -> bool {
        self.flow.state.is_stuck(self.rank)
    }

    /// A checkpoint holds this place.
    pub fn saved(&self, place: &Place, position: u64) {
        self.flow.follower.saved(place, position);
    }

    /// The follower's counters.
    pub fn stats(&self) -> StreamStats {
        self.flow.follower.stats()
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.flow.state.leave(self.rank);
    }
}

/// Keeps a window for a rank.
pub(super) struct Hold {
    state: Arc<State>,
    rank: u64,
    number: u64,
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.state.passed(self.rank, self.number);
    }
}

struct State {
    world_size: u64,
    uniform: bool,
    window_bytes: u64,
    failed: OnceLock<SourceError>,
    held: Mutex<Held>,
}

#[derive(Default)]
struct Held {
    /// In the order in which they came; `first` is the number of the oldest.
    windows: VecDeque<Entry>,
    first: u64,
    bytes: u64,
    /// Everyone who ever joined.
    ranks: BTreeMap<u64, Rank>,
}

struct Entry {
    window: Arc<Window>,
    bytes: u64,
    /// Ranks that are done with it.
    done: Vec<u64>,
}

struct Rank {
    /// `None`: it has left, and holds nothing.
    notify: Option<Notify>,
    /// Number of the next window it takes.
    next: u64,
    /// Waits with empty hands.
    idle: bool,
}

enum Admission {
    Welcome,
    /// A rank of this number is or was there.
    Taken,
    /// The first windows are gone.
    Late,
}

impl State {
    fn new(world_size: u64, uniform: bool, window_bytes: u64) -> Self {
        Self { world_size, uniform, window_bytes, failed: OnceLock::new(), held: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn admit(&self, rank: u64, notify: &Notify) -> Admission {
        let mut held = self.lock();
        if held.ranks.contains_key(&rank) {
            return Admission::Taken;
        }
        if held.first > 0 {
            return Admission::Late;
        }
        held.ranks.insert(rank, Rank { notify: Some(notify.clone()), next: 0, idle: false });
        Admission::Welcome
    }

    fn take(self: &Arc<Self>, rank: u64) -> Vec<(Arc<Window>, Hold)> {
        let mut held = self.lock();
        let Held { windows, first, ranks, .. } = &mut *held;
        let me = ranks.get_mut(&rank).expect("a member has joined");
        let new = windows.iter().skip((me.next - *first) as usize);
        let taken: Vec<_> = new
            .zip(me.next..)
            .map(|(entry, number)| (entry.window.clone(), Hold { state: self.clone(), rank, number }))
            .collect();
        me.next += taken.len() as u64;
        me.idle &= taken.is_empty();
        taken
    }

    fn passed(&self, rank: u64, number: u64) {
        let mut held = self.lock();
        let at = number.checked_sub(held.first);
        if let Some(entry) = at.and_then(|at| held.windows.get_mut(at as usize)) {
            entry.done.push(rank);
        }
        self.let_go(&mut held);
    }

    fn leave(&self, rank: u64) {
        let mut held = self.lock();
        if let Some(rank) = held.ranks.get_mut(&rank) {
            rank.notify = None;
        }
        self.let_go(&mut held);
    }

    /// Drops the oldest windows that nobody needs any more.
    fn let_go(&self, held: &mut Held) {
        let expected = self.uniform || held.ranks.len() as u64 == self.world_size;
        while let Some(entry) = held.windows.front().filter(|_| expected) {
            let needed =
                |(number, rank): (&u64, &Rank)| rank.notify.is_some() && !entry.done.contains(number);
            if held.ranks.iter().any(needed) {
                return;
            }
            let entry = held.windows.pop_front().expect("just seen");
            held.bytes -= entry.bytes;
            held.first += 1;
        }
    }

    fn room(&self, held: &Held) -> bool {
        // A full window leaves room for the next: a batch may lie across their border.
        held.bytes <= self.window_bytes + PLACES
    }

    fn is_stuck(&self, rank: u64) -> bool {
        let mut held = self.lock();
        held.ranks.get_mut(&rank).expect("a member has joined").idle = true;
        let all_here = self.uniform || held.ranks.len() as u64 == self.world_size;
        let end = held.first + held.windows.len() as u64;
        // One that has been told of a window and has not taken it yet is not stuck.
        let stuck = |rank: &Rank| rank.notify.is_none() || (rank.idle && rank.next == end);
        !self.room(&held) && all_here && held.ranks.values().all(stuck)
    }

    fn notify(&self, held: MutexGuard<'_, Held>) {
        let everyone: Vec<_> = held.ranks.values().filter_map(|rank| rank.notify.clone()).collect();
        drop(held);
        everyone.iter().for_each(|notify| notify());
    }
}

impl Sink for State {
    fn has_room(&self) -> bool {
        self.room(&self.lock())
    }

    fn window(&self, window: Window) {
        // As a tree in memory it takes a few times what it takes as text.
        let bytes = window.bytes() + 4 * window.place.state.to_string().len() as u64;
        let mut held = self.lock();
        held.bytes += bytes;
        held.windows.push_back(Entry { window: Arc::new(window), bytes, done: Vec::new() });
        self.notify(held);
    }

    fn failed(&self, error: SourceError) {
        let _ = self.failed.set(error);
        self.notify(self.lock());
    }
}
