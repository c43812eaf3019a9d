//! The engine against a stream whose windows are made up: what is delivered is a function of the stream, the seed and
//! the place.

use std::sync::Mutex;
use std::sync::atomic::AtomicBool;

use fuelrail_connectors::{
    Fingerprint, Follower, Schema, Sink, SourceError, StreamRecord, StreamSource, StreamStats, Window,
};

use super::*;
use crate::engine::flow::Flows;
use crate::pipeline::Opened;

/// Records `0..end`, `window` at a time; the id is the record's number.
struct Fake {
    window: u64,
    /// Records an epoch has; `None` without end.
    end: Option<u64>,
    /// Records that have been produced so far.
    produced: AtomicU64,
    uniform: bool,
    /// Every such record is a tombstone.
    bad_every: u64,
    /// The record at which the broker says no.
    fails_at: u64,
    /// Bytes that records have beside their image, so that windows are larger than what is always allowed for places.
    padding: u64,
    windows_made: AtomicU64,
    saved: Mutex<Vec<(u64, u64)>>,
}

impl Default for Fake {
    fn default() -> Self {
        Self {
            window: 10,
            end: Some(47),
            produced: AtomicU64::new(u64::MAX),
            uniform: true,
            bad_every: u64::MAX,
            fails_at: u64::MAX,
            padding: 200_000,
            windows_made: AtomicU64::new(0),
            saved: Mutex::default(),
        }
    }
}

struct Following {
    source: Arc<Fake>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Fake {
    fn record(&self, number: u64) -> StreamRecord {
        let mut image = b"P6 4 4 255\n".to_vec();
        image.extend((0..48).map(|at| (number * 7 + at) as u8));
        image.resize(image.len() + self.padding as usize, 0);
        let bad = number % self.bad_every == self.bad_every - 1;
        StreamRecord {
            id: number as i64,
            label: number as i64 % 3,
            stored: image.len() as u64,
            body: if bad { Err("a tombstone".into()) } else { Ok(image.into()) },
        }
    }

    fn behind(&self, place: &connectors::Place) -> connectors::Place {
        let done = self.end.is_some_and(|end| place.end() >= end && place.window > 0);
        let (epoch, number, first) =
            if done { (place.epoch + 1, 1, 0) } else { (place.epoch, place.window + 1, place.end()) };
        let count = self.window.min(self.end.unwrap_or(u64::MAX) - first);
        connectors::Place {
            epoch,
            window: number,
            first,
            count,
            state: json!({"from": first, "to": first + count}),
        }
    }

    fn make(self: &Arc<Self>, place: connectors::Place) -> Window {
        self.windows_made.fetch_add(1, Relaxed);
        let records = (place.first..place.end()).map(|number| self.record(number)).collect();
        let last = self.end == Some(place.end());
        Window { place, last, records, source: self.clone() }
    }

    /// One window after the other, as they are produced and there is room.
    fn run(self: &Arc<Self>, mut place: connectors::Place, sink: &dyn Sink, stop: &AtomicBool) {
        loop {
            let due = || sink.has_room() && self.produced.load(Relaxed) >= place.end();
            while !stop.load(Relaxed) && !due() {
                std::thread::yield_now();
            }
            if stop.load(Relaxed) {
                return;
            }
            if place.end() > self.fails_at {
                return sink.failed(SourceError::data(format!("offsets {} and on are gone", self.fails_at)));
            }
            let next = self.behind(&place);
            sink.window(self.make(std::mem::replace(&mut place, next)));
        }
    }
}

impl StreamSource for Fake {
    fn is_labelled(&self) -> bool {
        true
    }

    fn schema(&self) -> Schema {
        Schema::images()
    }
    fn classes(&self) -> &[String] {
        &[]
    }
    fn fingerprint(&self) -> Fingerprint {
        Fingerprint(7)
    }
    fn is_bounded(&self) -> bool {
        self.end.is_some()
    }
    fn is_uniform(&self) -> bool {
        self.uniform
    }
    fn origin(&self, epoch: u64) -> connectors::Place {
        connectors::Place { epoch, window: 0, first: 0, count: 0, state: json!({"from": 0, "to": 0}) }
    }
    fn key(&self, id: i64) -> Option<String> {
        (id >= 0).then(|| format!("topic/0/{id}"))
    }
    fn window_bytes(&self) -> u64 {
        // Exactly a window of ten: another must fit beside it, or a batch across their border never comes.
        10 * (59 + self.padding + size_of::<StreamRecord>() as u64)
    }
    fn memory(&self) -> u64 {
        1 << 20
    }
    fn check(&self, _: &connectors::Place) -> Result<(), SourceError> {
        Ok(())
    }
    fn follow(
        self: Arc<Self>,
        from: &connectors::Place,
        again: bool,
        sink: Arc<dyn Sink>,
    ) -> Result<Box<dyn Follower>, SourceError> {
        let first = match again {
            true => from.clone(),
            false if from.window > 0 && self.end == Some(from.end()) => {
                connectors::Place { window: from.window + 1, first: from.end(), count: 0, ..from.clone() }
            }
            false => self.behind(from),
        };
        let stop = Arc::new(AtomicBool::new(false));
        let (source, stopped) = (self.clone(), stop.clone());
        let thread = std::thread::spawn(move || source.run(first, &*sink, &stopped));
        Ok(Box::new(Following { source: self, stop, thread: Some(thread) }))
    }
}

impl Follower for Following {
    fn saved(&self, place: &connectors::Place, position: u64) {
        self.source.saved.lock().unwrap().push((place.window, position));
    }
    fn stats(&self) -> StreamStats {
        StreamStats { lag: Some(5), ..StreamStats::default() }
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
        self.thread.take().unwrap().join().unwrap();
    }
}

fn client(flows: &Arc<Flows>, overrides: Value, rank: u64, world_size: u64) -> Client {
    let mut config = json!({
        "source": {"type": "synthetic"}, "transforms": [{"type": "RandomCrop", "size": 3}],
        "batch_size": 4, "shuffle": true, "seed": 5, "num_workers": 2, "max_sample_bytes": 1 << 20,
    });
    merge(&mut config, overrides);
    let config = PipelineConfig::from_json(config).unwrap();
    Client::of(
        Pipeline::open(config, Some(Opened::Stream(flows.clone()))).unwrap(),
        rank,
        world_size,
        at(0, 0),
    )
}

fn begun(flows: &Arc<Flows>, overrides: Value, rank: u64, world_size: u64) -> Client {
    let mut client = client(flows, overrides, rank, world_size);
    client.seek(at(0, 0));
    client
}

/// Batches to the end of the epoch.
fn epoch(client: &Client, epoch: u64) -> Vec<Taken> {
    let mut batches: Vec<Taken> = Vec::new();
    loop {
        let ready = client.ready().unwrap();
        if ready.cursor.epoch > epoch {
            client.engine.release(FIRST, ready.slot);
            return batches;
        }
        batches.push(client.copy(ready));
    }
}

fn ids(batches: &[Taken]) -> Vec<i64> {
    batches.iter().flat_map(|batch| batch.index.clone()).collect()
}

#[test]
fn every_record_of_every_epoch_comes_once_in_an_order_of_its_own() {
    let client = begun(&Flows::new(Arc::new(Fake::default())), json!({}), 0, 1);
    let first = epoch(&client, 0);
    let mut seen = ids(&first);
    assert_ne!(seen, (0..47).collect::<Vec<_>>(), "shuffled");
    for (window, chunk) in seen.clone().chunks(10).enumerate() {
        assert!(chunk.iter().all(|&id| id as usize / 10 == window), "within its window");
    }
    seen.sort_unstable();
    assert_eq!(seen, (0..47).collect::<Vec<_>>());
    assert_eq!(client.ends.borrow()[0], (0, 47));
    let positions: Vec<i64> = first.iter().flat_map(|batch| batch.position.clone()).collect();
    assert_eq!(positions, (0..47).collect::<Vec<_>>());
    assert_eq!(first.last().unwrap().index.len(), 3, "the tail");
}

#[test]
fn later_epochs_have_the_same_records_in_another_order() {
    let flows = Flows::new(Arc::new(Fake { end: Some(40), ..Fake::default() }));
    let client = begun(&flows, json!({}), 0, 1);
    let (one, two) = (client.take_many(10), client.take_many(10));
    assert_ne!(ids(&one), ids(&two));
    assert_eq!(ids(&one).iter().collect::<HashSet<_>>(), ids(&two).iter().collect::<HashSet<_>>());
    let repeated = begun(&flows, json!({}), 0, 1);
    assert_eq!(repeated.take_many(20), [one, two].concat());
}

#[test]
fn without_shuffle_records_come_as_they_are_stored() {
    let client = begun(&Flows::new(Arc::new(Fake::default())), json!({"shuffle": false}), 0, 1);
    assert_eq!(ids(&epoch(&client, 0)), (0..47).collect::<Vec<_>>());
}

#[test]
fn drop_last_ends_the_epoch_with_the_last_whole_batch() {
    let client = begun(&Flows::new(Arc::new(Fake::default())), json!({"drop_last": true}), 0, 1);
    let batches = epoch(&client, 0);
    assert_eq!((batches.len(), batches.last().unwrap().index.len()), (11, 4));
    assert_eq!(client.ends.borrow()[0], (0, 47));
}

#[test]
fn drop_last_that_leaves_no_batch_of_a_range_is_refused() {
    let flows = Flows::new(Arc::new(Fake { end: Some(9), ..Fake::default() }));
    let client = begun(&flows, json!({"drop_last": true, "batch_size": 10}), 0, 1);
    let error = client.ready().unwrap_err();
    assert!(error.contains("the 9 records of the range are fewer than batch_size 10"), "{error}");
}

#[test]
fn ranks_together_see_what_one_rank_sees() {
    for uniform in [true, false] {
        let whole = begun(&Flows::new(Arc::new(Fake::default())), json!({"batch_size": 6}), 0, 1);
        let whole = epoch(&whole, 0);
        for world in [2, 3] {
            let flows = Flows::new(Arc::new(Fake { uniform, ..Fake::default() }));
            let size = json!({"batch_size": 6 / world});
            let ranks: Vec<_> = (0..world).map(|rank| begun(&flows, size.clone(), rank, world)).collect();
            // One after the other would wait for ever: a window is kept for the slower rank.
            let taken: Vec<Vec<Taken>> = std::thread::scope(|scope| {
                let threads: Vec<_> =
                    ranks.into_iter().map(|client| scope.spawn(move || epoch(&client, 0))).collect();
                threads.into_iter().map(|thread| thread.join().unwrap()).collect()
            });
            for (number, global) in whole.iter().enumerate() {
                for (row, &id) in global.index.iter().enumerate() {
                    let rank = &taken[row % world as usize][number];
                    let bytes = global.image.len() / global.index.len();
                    assert_eq!(rank.index[row / world as usize], id);
                    let own = &rank.image[row / world as usize * bytes..][..bytes];
                    assert_eq!(own, &global.image[row * bytes..][..bytes], "row {row} of batch {number}");
                }
            }
        }
    }
}

#[test]
fn a_resume_at_any_step_and_batch_size_sees_the_complement() {
    let source = Arc::new(Fake::default());
    let unbroken = epoch(&begun(&Flows::new(source.clone()), json!({}), 0, 1), 0);
    let all = ids(&unbroken);
    for (steps, batch_size) in (0..=12).flat_map(|steps| [(steps, 4), (steps, 7)]) {
        let mut client = begun(&Flows::new(source.clone()), json!({}), 0, 1);
        client.take_many(steps);
        let stood = at(0, (steps as u64 * 4).min(47));
        let windows = client.windows.borrow().clone();
        let place = windows.iter().find(|place| place.holds(stood)).cloned();
        assert!(place.is_some() || steps == 0, "told in time");
        drop(client);
        client = self::client(&Flows::new(source.clone()), json!({"batch_size": batch_size}), 0, 1);
        client.generation = 1;
        client.engine.seek(FIRST, 1, stood, place);
        let rest = epoch(&client, 0);
        assert_eq!(ids(&rest), all[stood.position as usize..], "after {steps} steps");
        if batch_size == 4 {
            assert_eq!(rest, unbroken[steps..]);
        }
    }
}

#[test]
fn a_live_stream_waits_for_what_is_produced() {
    let source = Arc::new(Fake { end: None, produced: AtomicU64::new(20), ..Fake::default() });
    let client = begun(&Flows::new(source.clone()), json!({}), 0, 1);
    assert_eq!(client.take_many(5).len(), 5);
    assert!(client.inbox.recv_timeout(Duration::from_millis(50)).is_err(), "nothing is there");
    source.produced.store(24, Relaxed);
    assert!(client.inbox.recv_timeout(Duration::from_millis(50)).is_err(), "no window is whole");
    source.produced.store(30, Relaxed);
    assert_eq!(client.take().position, [20, 21, 22, 23]);
    assert_eq!(client.stats().stream.unwrap().lag, Some(5));
}

#[test]
fn a_consumer_that_stops_stops_the_stream() {
    let source = Arc::new(Fake { end: None, ..Fake::default() });
    let client = begun(&Flows::new(source.clone()), json!({}), 0, 1);
    let mut held = Vec::new();
    while held.len() < client.attached.slots as usize {
        held.push(client.ready().unwrap());
    }
    // Rows of four batches are written; two windows more are in memory.
    let made = || source.windows_made.load(Relaxed);
    let limit = (4 * client.attached.slots as u64).div_ceil(10) + 2;
    let since = Instant::now();
    while since.elapsed() < Duration::from_millis(200) {
        assert!(made() <= limit, "{} windows", made());
        std::thread::yield_now();
    }
    held.into_iter().for_each(|ready| client.engine.release(FIRST, ready.slot));
    client.take_many(20);
}

#[test]
fn a_batch_that_fits_into_no_two_windows_is_refused_instead_of_waited_for() {
    let client = begun(&Flows::new(Arc::new(Fake::default())), json!({"batch_size": 45}), 0, 1);
    let error = client.ready().unwrap_err();
    assert!(error.contains("raise window_bytes, or lower batch_size"), "{error}");
}

#[test]
fn what_came_before_a_failure_is_delivered() {
    let client = begun(&Flows::new(Arc::new(Fake { fails_at: 20, ..Fake::default() })), json!({}), 0, 1);
    assert_eq!(client.take_many(5).len(), 5);
    assert_eq!(client.ready().unwrap_err(), "offsets 20 and on are gone");
}

#[test]
fn a_bad_record_is_substituted_from_its_own_window() {
    let source = Arc::new(Fake { bad_every: 5, ..Fake::default() });
    let client = begun(&Flows::new(source), json!({"error_budget": 100}), 0, 1);
    let batches = epoch(&client, 0);
    let mut substituted = 0;
    for batch in &batches {
        for ((&id, &position), &flag) in batch.index.iter().zip(&batch.position).zip(&batch.substituted) {
            assert_eq!(id / 10, position / 10, "of the window of its position");
            assert_ne!(id % 5, 4, "a tombstone was delivered");
            substituted += u64::from(flag);
        }
    }
    assert_eq!(substituted, 9);
}

#[test]
fn windows_are_kept_for_a_rank_that_is_not_there_yet_unless_it_can_cut_them_itself() {
    let kept = Flows::new(Arc::new(Fake { uniform: false, ..Fake::default() }));
    let size = json!({"batch_size": 2});
    let early = begun(&kept, size.clone(), 0, 2);
    early.take_many(2);
    let late = begun(&kept, size.clone(), 1, 2);
    std::thread::scope(|scope| {
        let late = scope.spawn(move || epoch(&late, 0).len());
        assert_eq!((epoch(&early, 0).len(), late.join().unwrap()), (10, 12));
    });
    let mut second = client(&kept, size.clone(), 0, 2);
    second.seek(at(0, 0));
    assert!(second.ready().unwrap_err().contains("a second run needs its own daemon"));
    drop(early);
    let second = [begun(&kept, size.clone(), 0, 2), begun(&kept, size.clone(), 1, 2)];
    second.iter().for_each(|rank| drop(rank.take()));

    let alone = begun(&Flows::new(Arc::new(Fake::default())), size.clone(), 0, 2);
    assert_eq!(epoch(&alone, 0).len(), 12, "the other rank is served by another daemon");
}

#[test]
fn a_saved_checkpoint_is_told_to_the_source() {
    let source = Arc::new(Fake::default());
    let client = begun(&Flows::new(source.clone()), json!({}), 0, 1);
    client.take_many(3);
    let place = client.windows.borrow().iter().find(|place| place.holds(at(0, 12))).unwrap().clone();
    client.engine.saved(place, 12);
    client.stats();
    assert_eq!(*source.saved.lock().unwrap(), [(2, 12)]);
}

#[test]
fn a_stream_refuses_what_needs_all_records() {
    let flows = Flows::new(Arc::new(Fake { end: None, ..Fake::default() }));
    for (key, value) in [("sampling", json!({"type": "class_balanced"})), ("blocked", json!({"lanes": 2}))] {
        let mut config =
            json!({"source": {"type": "synthetic"}, "transforms": [{"type": "CenterCrop", "size": 3}]});
        config[key] = value;
        let config = PipelineConfig::from_json(config).unwrap();
        let refusal = Pipeline::open(config, Some(Opened::Stream(flows.clone()))).err().expect("refused");
        assert!(refusal.message.starts_with(key), "{refusal}");
    }
    let mut client = begun(&flows, json!({}), 0, 1);
    client.seek(at(1, 0));
    assert!(client.ready().unwrap_err().contains("epoch 1 does not exist"));
    client.seek(at(0, 3));
    assert!(client.ready().unwrap_err().contains("without its window"));
}
