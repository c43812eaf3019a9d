//! The engine against a synthetic source: what is delivered does not depend on how it was made.

use std::cell::RefCell;
use std::collections::HashSet;
use std::sync::mpsc;
use std::time::Duration;

use serde_json::{Value, json};

use super::*;
use crate::config::PipelineConfig;
use crate::layout::Column;
use crate::ring::{Access, Mapping};

mod streams;

/// A client in the same process: takes what the engine says, copies slots, gives them back.
struct Client {
    engine: Engine,
    attached: Attached,
    mapping: Mapping,
    inbox: mpsc::Receiver<Reply>,
    generation: u64,
    /// Of a stream: the windows told of, and where epochs ended.
    windows: RefCell<Vec<Place>>,
    ends: RefCell<Vec<(u64, u64)>>,
}

#[derive(Clone, Debug, PartialEq)]
struct Taken {
    cursor: Cursor,
    image: Vec<u8>,
    index: Vec<i64>,
    position: Vec<i64>,
    substituted: Vec<u8>,
}

impl Client {
    fn start(overrides: Value, rank: u64, world_size: u64, start: Cursor) -> Self {
        let mut config = json!({
            "source": {"type": "synthetic", "count": 50, "width": 24, "height": 16, "classes": 3},
            "transforms": [{"type": "RandomResizedCrop", "size": 8}, {"type": "ColorJitter", "brightness": 0.5},
                {"type": "RandomHorizontalFlip"}],
            "batch_size": 4, "shuffle": true, "seed": 5, "num_workers": 2, "max_sample_bytes": 1 << 20,
        });
        merge(&mut config, overrides);
        Self::of(
            Pipeline::open(PipelineConfig::from_json(config).unwrap(), None).unwrap(),
            rank,
            world_size,
            start,
        )
    }

    fn of(pipeline: Pipeline, rank: u64, world_size: u64, start: Cursor) -> Self {
        let (sender, inbox) = mpsc::channel();
        let out = Box::new(move |reply| drop(sender.send(reply)));
        let (engine, attached, ring) =
            Engine::start(Arc::new(pipeline), rank, world_size, start, None, out).unwrap();
        let mapping = Mapping::new(std::os::fd::AsFd::as_fd(&ring), ring.bytes(), Access::ReadOnly).unwrap();
        Self {
            engine,
            attached,
            mapping,
            inbox,
            generation: 0,
            windows: RefCell::default(),
            ends: RefCell::default(),
        }
    }

    fn reply(&self) -> Reply {
        self.inbox.recv_timeout(Duration::from_secs(60)).expect("the engine says something within a minute")
    }

    /// The next batch of the generation in force; what a log line says is passed over.
    fn ready(&self) -> Result<Ready, String> {
        loop {
            match self.reply() {
                Reply::Ready(ready) if ready.generation == self.generation => return Ok(ready),
                Reply::Ready(stale) => self.engine.release(FIRST, stale.slot),
                Reply::Failed { generation, message, .. } if generation == self.generation => {
                    return Err(message);
                }
                Reply::Window { generation, place } if generation == self.generation => {
                    self.windows.borrow_mut().push(place);
                }
                Reply::End { generation, epoch, len } if generation == self.generation => {
                    self.ends.borrow_mut().push((epoch, len));
                }
                _ => {}
            }
        }
    }

    fn take(&self) -> Taken {
        self.copy(self.ready().unwrap())
    }

    fn copy(&self, ready: Ready) -> Taken {
        let taken = self.read(&ready);
        self.engine.release(FIRST, ready.slot);
        taken
    }

    fn read(&self, ready: &Ready) -> Taken {
        let layout = &self.attached.layout;
        let base = ready.slot as usize * layout.slot_bytes as usize;
        let bytes = |offset: u64, row_bytes: u64| {
            let mut bytes = vec![0; ready.rows as usize * row_bytes as usize];
            self.mapping.copy_to(base + offset as usize, &mut bytes);
            bytes
        };
        let column = |name| {
            let column = layout.column(name).unwrap();
            bytes(column.offset, column.dtype.size())
        };
        let numbers = |name| -> Vec<i64> {
            column(name).chunks_exact(8).map(|bytes| i64::from_le_bytes(bytes.try_into().unwrap())).collect()
        };
        Taken {
            cursor: ready.cursor,
            image: bytes(layout.fields[0].offset, layout.fields[0].row_bytes),
            index: numbers(Column::Index),
            position: numbers(Column::Position),
            substituted: column(Column::Substituted),
        }
    }

    fn take_many(&self, count: usize) -> Vec<Taken> {
        (0..count).map(|_| self.take()).collect()
    }

    fn seek(&mut self, cursor: Cursor) {
        self.generation += 1;
        self.engine.seek(FIRST, self.generation, cursor, None);
    }

    fn stats(&self) -> Stats {
        let (sender, receiver) = mpsc::channel();
        self.engine.stats(Measured::default(), move |stats| drop(sender.send(stats)));
        receiver.recv_timeout(Duration::from_secs(60)).unwrap()
    }
}

fn merge(into: &mut Value, from: Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            for (key, value) in from {
                merge(into.entry(key).or_insert(Value::Null), value);
            }
        }
        (into, from) => *into = from,
    }
}

fn at(epoch: u64, position: u64) -> Cursor {
    Cursor { epoch, position }
}

#[test]
fn batches_are_the_same_whatever_the_threads_queues_and_delays() {
    // Two epochs of 13 batches, tails included.
    let reference = Client::start(json!({}), 0, 1, at(0, 0)).take_many(26);
    assert_eq!(reference[13].cursor, at(1, 0));
    let settings = [
        json!({"num_workers": 1, "prefetch_factor": 1}),
        json!({"num_workers": 8, "prefetch_factor": 7}),
        json!({"read_ahead_bytes": 1}),
        json!({"source": {"straggler_every": 5, "straggler_ms": 20}, "num_workers": 3}),
        json!({"source": {"delay_us": 700, "flaky_rate": 0.2}}),
    ];
    for setting in settings {
        assert_eq!(Client::start(setting.clone(), 0, 1, at(0, 0)).take_many(26), reference, "{setting}");
    }
}

#[test]
fn a_seek_goes_on_exactly_and_voids_what_was_on_its_way() {
    let reference = Client::start(json!({}), 0, 1, at(0, 0)).take_many(30);
    let mut client = Client::start(json!({"source": {"delay_us": 300}}), 0, 1, at(0, 0));
    for (epoch, position) in [(1, 8), (0, 20), (1, 48), (0, 0), (0, 0), (2, 4)] {
        client.seek(at(epoch, position));
        let batch = (epoch * 13 + position / 4) as usize;
        assert_eq!(client.take_many(2), reference[batch..batch + 2], "from {epoch}, {position}");
    }
}

#[test]
fn a_start_anywhere_is_the_rest_of_the_unbroken_run() {
    let reference = Client::start(json!({}), 0, 1, at(0, 0)).take_many(13);
    for position in (0..50).step_by(4) {
        let rest = Client::start(json!({}), 0, 1, at(0, position)).take_many(13 - position as usize / 4);
        assert_eq!(rest, reference[position as usize / 4..]);
    }
}

#[test]
fn ranks_together_are_the_single_rank_and_share_a_tail_or_deliver_it_empty() {
    for (batch_size, batches, last) in [(4, 5, [1, 1, 1]), (1, 17, [1, 1, 0])] {
        let take = |batch_size, rank, world| {
            Client::start(json!({"batch_size": batch_size}), rank, world, at(0, 0)).take_many(batches)
        };
        let single = take(3 * batch_size, 0, 1);
        let ranks: Vec<_> = (0..3).map(|rank| take(batch_size, rank, 3)).collect();
        let joined: Vec<i64> = (0..batches)
            .flat_map(|batch| {
                let rows = ranks.iter().map(|rank| rank[batch].index.len()).sum();
                (0..rows).map(move |row: usize| (row, batch))
            })
            .map(|(row, batch)| ranks[row % 3][batch].index[row / 3])
            .collect();
        assert_eq!(joined, single.iter().flat_map(|batch| batch.index.clone()).collect::<Vec<_>>());
        // 50 = 4 x 12 + 2: the batch before gives up a row, unless a rank has only one.
        let rows = |at: usize| [0, 1, 2].map(|rank: usize| ranks[rank][at].index.len());
        assert_eq!(rows(batches - 1), last);
        assert_eq!(rows(batches - 2), if batch_size == 1 { [1, 1, 1] } else { [4, 4, 3] });
    }
}

#[test]
fn bad_records_are_substituted_alike_in_every_run() {
    let corrupt = |more: Value| {
        let mut config = json!({"source": {"corrupt_rate": 0.2}, "error_budget": 40});
        merge(&mut config, more);
        Client::start(config, 0, 1, at(0, 0)).take_many(13)
    };
    let one = corrupt(json!({"num_workers": 1}));
    assert_eq!(one, corrupt(json!({"num_workers": 6, "source": {"straggler_every": 3, "straggler_ms": 5}})));
    let substituted = one.iter().flat_map(|batch| &batch.substituted).filter(|&&flag| flag == 1).count();
    assert!((1..30).contains(&substituted), "{substituted} of 50 rows");
    assert!(one.iter().take(12).all(|batch| batch.index.len() == 4), "batches keep their shape");
}

#[test]
fn dropping_bad_records_shortens_batches_and_keeps_the_good_rows_in_order() {
    let config = json!({"source": {"corrupt_rate": 0.2}, "error_budget": 40, "on_error": "drop"});
    let batches = Client::start(config, 0, 1, at(0, 0)).take_many(13);
    let clean = Client::start(json!({}), 0, 1, at(0, 0)).take_many(13);
    let rows: usize = batches.iter().map(|batch| batch.index.len()).sum();
    assert!((20..50).contains(&rows), "{rows} rows");
    for (batch, clean) in batches.iter().zip(&clean) {
        let row_bytes = clean.image.len() / clean.index.len();
        for (row, position) in batch.position.iter().enumerate() {
            let at = clean.position.iter().position(|other| other == position).expect("the same batch");
            assert_eq!(
                batch.image[row * row_bytes..][..row_bytes],
                clean.image[at * row_bytes..][..row_bytes]
            );
        }
    }
}

#[test]
fn one_bad_record_too_many_ends_the_run_at_the_same_batch_each_time() {
    let end = |workers: u32| {
        let config = json!({"source": {"corrupt_rate": 0.2}, "error_budget": 2, "num_workers": workers});
        let client = Client::start(config, 0, 1, at(0, 0));
        let mut batches = 0;
        loop {
            match client.ready() {
                Ok(ready) => client.engine.release(FIRST, ready.slot),
                Err(message) => return (batches, message),
            }
            batches += 1;
        }
    };
    let (batches, message) = end(1);
    assert!(message.contains("3 bad records exceed the limit of"), "{message}");
    assert_eq!(end(8), (batches, message));
}

#[test]
fn a_read_that_fails_for_good_stops_the_run_and_a_seek_elsewhere_starts_it_again() {
    let mut client = Client::start(json!({"source": {"fail_rate": 0.1}, "shuffle": false}), 0, 1, at(0, 0));
    let mut good = 0;
    let message = loop {
        match client.ready() {
            Ok(ready) => client.engine.release(FIRST, ready.slot),
            Err(message) => break message,
        }
        good += 1;
    };
    assert!(good < 13 && !message.is_empty());
    client.seek(at(0, 0));
    for _ in 0..good {
        client.engine.release(FIRST, client.ready().unwrap().slot);
    }
    assert_eq!(client.ready(), Err(message));
}

#[test]
fn a_record_above_the_limit_is_bad_before_it_is_read() {
    let config = json!({"source": {"width": 700, "height": 700, "format": "pnm"}, "on_error": "fail"});
    let message = Client::start(config, 0, 1, at(0, 0)).ready().unwrap_err();
    assert!(message.contains("max_sample_bytes"), "{message}");
}

#[test]
fn a_consumer_that_stops_stops_the_reading_and_nothing_grows() {
    let client = Client::start(json!({"read_ahead_bytes": 8000, "prefetch_factor": 2}), 0, 1, at(0, 0));
    let held: Vec<_> = (0..4).map(|_| client.ready().unwrap()).collect();
    let reads = client.stats().reads;
    assert_eq!(reads, 16, "four slots of four rows were read");
    assert_eq!(client.stats().reads, reads, "a full ring reads nothing more");
    assert!(client.stats().peak_in_flight_bytes <= 8000);
    for ready in held {
        client.engine.release(FIRST, ready.slot);
    }
    client.ready().unwrap();
}

#[test]
fn a_forged_release_is_reported_and_harmless() {
    let client = Client::start(json!({}), 0, 1, at(0, 0));
    let first = client.ready().unwrap();
    for slot in [99, u32::MAX] {
        client.engine.release(FIRST, slot);
    }
    client.engine.release(FIRST, first.slot);
    client.engine.release(FIRST, first.slot);
    let reference = Client::start(json!({}), 0, 1, at(0, 4)).take_many(12);
    assert_eq!(client.take_many(12), reference);
}

#[test]
fn dropping_the_engine_in_the_middle_is_prompt() {
    let client = Client::start(json!({"source": {"delay_us": 60_000_000}}), 0, 1, at(0, 0));
    let since = Instant::now();
    drop(client);
    assert!(since.elapsed() < Duration::from_secs(5), "{:?}", since.elapsed());
}

#[test]
fn what_cannot_work_is_refused_at_start() {
    let refuse = |config: Value| {
        let mut whole = json!({"source": {"type": "synthetic", "count": 5, "width": 8, "height": 8}});
        merge(&mut whole, config);
        let pipeline = Pipeline::open(PipelineConfig::from_json(whole).unwrap(), None).map(Arc::new);
        match pipeline {
            Err(refusal) => refusal.message,
            Ok(pipeline) => match Engine::start(pipeline, 0, 1, at(0, 0), None, Box::new(|_| {})) {
                Err(refusal) => refusal.message,
                Ok(_) => "started".into(),
            },
        }
    };
    let resize = json!([{"type": "Resize", "size": [8, 8]}]);
    assert_eq!(refuse(json!({"transforms": resize, "max_sample_bytes": 1 << 20})), "started");
    assert!(refuse(json!({"transforms": resize, "batch_size": 9, "drop_last": true})).contains("drop_last"));
    assert!(refuse(json!({"transforms": [{"type": "Resize", "size": 8}]})).contains("Resize"));
    let huge = json!([{"type": "Resize", "size": [8000, 8000]}]);
    assert!(
        refuse(json!({"transforms": huge, "batch_size": 5, "prefetch_factor": 64}))
            .contains("lower batch_size")
    );
}

/// Another consumer of a client's feed.
struct Other {
    id: ConsumerId,
    start: Cursor,
    inbox: mpsc::Receiver<Reply>,
}

impl Other {
    fn join(client: &Client) -> Self {
        let (sender, inbox) = mpsc::channel();
        let joined = client.engine.join(Box::new(move |reply| drop(sender.send(reply)))).unwrap();
        Self { id: ConsumerId(joined.member), start: joined.start, inbox }
    }

    fn ready(&self) -> Ready {
        loop {
            match self.inbox.recv_timeout(Duration::from_secs(60)).expect("a batch within a minute") {
                Reply::Ready(ready) => return ready,
                Reply::Failed { message, .. } => panic!("{message}"),
                _ => {}
            }
        }
    }

    fn take(&self, client: &Client) -> Taken {
        let ready = self.ready();
        let taken = client.read(&ready);
        client.engine.release(self.id, ready.slot);
        taken
    }
}

fn sharing(overrides: Value) -> Client {
    let mut config = json!({"share": {"name": "trials"}, "prefetch_factor": 2});
    merge(&mut config, overrides);
    Client::start(config, 0, 1, at(0, 0))
}

/// The batches of the first epochs, by a feed that is not shared: 13 an epoch.
fn expected(count: usize) -> Vec<Taken> {
    let alone = Client::start(json!({}), 0, 1, at(0, 0));
    (0..count).map(|_| alone.take()).collect()
}

#[test]
fn clients_that_begin_together_get_every_batch_of_one_decode() {
    let first = sharing(json!({"share": {"clients": 2}}));
    let second = Other::join(&first);
    assert_eq!(second.start, at(0, 0));
    for expected in expected(30) {
        assert_eq!(first.take(), expected);
        assert_eq!(second.take(&first), expected);
    }
    assert!(first.stats().reads < 30 * 4 + 4 * 6, "each record was read once");
}

#[test]
fn who_joins_begins_with_the_next_epoch_and_moves_nobody() {
    let (first, expected) = (sharing(json!({})), expected(40));
    for expected in &expected[..3] {
        assert_eq!(first.take(), *expected);
    }
    let second = Other::join(&first);
    assert_eq!(second.start, at(1, 0));
    for expected in &expected[3..13] {
        assert_eq!(first.take(), *expected);
    }
    for expected in &expected[13..] {
        assert_eq!(first.take(), *expected);
        assert_eq!(second.take(&first), *expected);
    }
}

#[test]
fn who_goes_ahead_sits_out_and_who_leaves_holds_up_nobody() {
    let (first, expected) = (sharing(json!({"share": {"clients": 2}})), expected(26));
    let second = Other::join(&first);
    let held = second.ready();
    // The rest of the epoch is not for it.
    first.engine.seek(second.id, 1, at(1, 0), None);
    first.engine.release(second.id, held.slot);
    for (number, expected) in expected[..13].iter().enumerate() {
        assert_eq!(first.take(), *expected, "{number}");
    }
    let again = loop {
        let ready = second.ready();
        if ready.generation == 1 {
            break ready;
        }
        first.engine.release(second.id, ready.slot);
    };
    assert_eq!(again.cursor, at(1, 0));
    // It goes with a slot in its hands.
    first.engine.leave(second.id);
    for expected in &expected[13..] {
        assert_eq!(first.take(), *expected);
    }
}

#[test]
fn a_place_of_an_earlier_epoch_is_refused_to_one_of_several_and_granted_to_one_alone() {
    let (mut first, expected) = (sharing(json!({"share": {"clients": 2}})), expected(26));
    let second = Other::join(&first);
    for expected in &expected[..20] {
        assert_eq!(first.take(), *expected);
        assert_eq!(second.take(&first), *expected);
    }
    first.seek(at(0, 8));
    assert!(first.ready().unwrap_err().contains("the shared feed is at epoch 1"));
    first.engine.leave(second.id);
    first.seek(at(0, 8));
    assert_eq!(first.take(), expected[2]);
}

#[test]
fn a_client_that_holds_up_the_others_is_detached_by_name() {
    let first = sharing(json!({"share": {"clients": 2, "laggards": "detach", "patience_s": 1}}));
    let (second, expected) = (Other::join(&first), expected(20));
    for expected in &expected {
        assert_eq!(first.take(), *expected);
    }
    let told: Vec<Reply> = second.inbox.try_iter().collect();
    assert!(
        told.iter().any(|reply| matches!(reply, Reply::Failed { kind: ErrorKind::Detached, message, .. }
            if message.contains("held 4 batches for 1 s"))),
        "{told:?}"
    );
}

#[test]
fn slots_that_a_client_holds_are_not_written_when_it_leaves() {
    let client = Client::start(json!({"prefetch_factor": 1}), 0, 1, at(0, 0));
    let held: Vec<Ready> = (0..3).map(|_| client.ready().unwrap()).collect();
    let seen: Vec<Taken> = held.iter().map(|ready| client.read(ready)).collect();
    let reads = client.stats().reads;
    client.engine.leave(FIRST);
    for _ in 0..500 {
        assert_eq!(client.stats().reads, reads, "nothing is made for nobody");
    }
    assert_eq!(held.iter().map(|ready| client.read(ready)).collect::<Vec<_>>(), seen);
}
