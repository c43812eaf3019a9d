//! Kafka against librdkafka's own mock of a cluster: every record once, in the same windows, whatever the brokers do.
//!
//! The mock drops records beyond 5 MiB or 100,000 a partition, so these tests stay below.

use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use fuelrail_connectors::{
    Follower, KafkaConfig, KafkaProducer, KafkaProperties, Place, Sink, SourceError, StreamSource, Window,
    open_stream,
};
use rdkafka::mocking::MockCluster;
use rdkafka::producer::DefaultProducerContext;

type Mock = MockCluster<'static, DefaultProducerContext>;

/// Longer than anything here takes.
const WATCHDOG: Duration = Duration::from_secs(60);

fn cluster(brokers: i32, topics: &[(&str, i32)]) -> Mock {
    let cluster = MockCluster::new(brokers).unwrap();
    for (topic, partitions) in topics {
        cluster.create_topic(topic, *partitions, brokers.min(3)).unwrap();
    }
    cluster
}

fn servers(cluster: &Mock) -> Vec<String> {
    cluster.bootstrap_servers().split(',').map(str::to_owned).collect()
}

fn config(cluster: &Mock, options: serde_json::Value) -> KafkaConfig {
    let mut config = serde_json::json!({"servers": servers(cluster)});
    config.as_object_mut().unwrap().extend(options.as_object().unwrap().clone());
    serde_json::from_value(config).unwrap()
}

fn source(cluster: &Mock, options: serde_json::Value) -> Arc<dyn StreamSource> {
    open_stream(&config(cluster, options)).unwrap()
}

/// Writes records, each to the partition that is its number modulo their count.
fn produce(cluster: &Mock, topic: &str, partitions: u32, records: std::ops::Range<u32>, size: usize) {
    produce_with(cluster, topic, partitions, records, size, &[]);
}

fn produce_with(
    cluster: &Mock,
    topic: &str,
    partitions: u32,
    records: std::ops::Range<u32>,
    size: usize,
    properties: &[(&str, &str)],
) {
    let properties = KafkaProperties::new(properties.iter().copied());
    let producer = KafkaProducer::open(&servers(cluster), topic, &properties).unwrap();
    for number in records.clone() {
        let label = (number % 10).to_string();
        let value = value(topic, number, size);
        producer
            .send_to(Some(number % partitions), None, Some(&value), &[("label", label.as_bytes())])
            .unwrap();
    }
    producer.flush(WATCHDOG).unwrap();
    assert_eq!(producer.delivered(), u64::from(records.end - records.start));
}

fn value(topic: &str, number: u32, size: usize) -> Vec<u8> {
    let mut value = format!("{topic} {number} ").into_bytes();
    value.resize(size.max(value.len()), b'.');
    value
}

/// Collects windows; has room for a given number of them.
#[derive(Default)]
struct Collector {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    room: usize,
    windows: Vec<Window>,
    error: Option<SourceError>,
}

impl Sink for Collector {
    fn has_room(&self) -> bool {
        let state = self.state.lock().unwrap();
        state.windows.len() < state.room
    }

    fn window(&self, window: Window) {
        self.state.lock().unwrap().windows.push(window);
        self.changed.notify_all();
    }

    fn failed(&self, error: SourceError) {
        self.state.lock().unwrap().error = Some(error);
        self.changed.notify_all();
    }
}

impl Collector {
    fn new(room: usize) -> Arc<Self> {
        let collector = Self::default();
        collector.state.lock().unwrap().room = room;
        Arc::new(collector)
    }

    /// Waits until this is so of the windows.
    fn until(&self, what: &str, mut done: impl FnMut(&[Window]) -> bool) {
        let deadline = Instant::now() + WATCHDOG;
        let mut state = self.state.lock().unwrap();
        while !done(&state.windows) {
            if let Some(error) = &state.error {
                panic!("waiting for {what}: {error}");
            }
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "waited for {what}; got {} windows", state.windows.len());
            state = self.changed.wait_timeout(state, left).unwrap().0;
        }
    }

    fn error(&self) -> String {
        let deadline = Instant::now() + WATCHDOG;
        let mut state = self.state.lock().unwrap();
        loop {
            if let Some(error) = &state.error {
                return error.to_string();
            }
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "waited for an error; got {} windows", state.windows.len());
            state = self.changed.wait_timeout(state, left).unwrap().0;
        }
    }

    fn places(&self) -> Vec<Place> {
        self.state.lock().unwrap().windows.iter().map(|window| window.place.clone()).collect()
    }

    /// What all records are, in order of position.
    fn texts(&self) -> Vec<String> {
        let state = self.state.lock().unwrap();
        state.windows.iter().flat_map(texts).collect()
    }

    fn set_room(&self, room: usize) {
        self.state.lock().unwrap().room = room;
    }
}

/// What a window's records are, without their padding.
fn texts(window: &Window) -> Vec<String> {
    (0..window.place.count)
        .map(|index| match window.read(index) {
            Ok(record) => String::from_utf8_lossy(&record.bytes).trim_end_matches('.').trim_end().to_owned(),
            Err(error) => error.to_string(),
        })
        .collect()
}

fn follow(
    source: &Arc<dyn StreamSource>,
    from: &Place,
    again: bool,
    sink: &Arc<Collector>,
) -> Box<dyn Follower> {
    source.clone().follow(from, again, sink.clone()).unwrap()
}

/// Reads until so many records have come.
fn read(source: &Arc<dyn StreamSource>, from: &Place, records: u64) -> Arc<Collector> {
    let sink = Collector::new(usize::MAX);
    let follower = follow(source, from, false, &sink);
    sink.until("all records", |windows| {
        windows.iter().map(|window| window.place.count).sum::<u64>() >= records
    });
    drop(follower);
    sink
}

fn expected(topic: &str, records: std::ops::Range<u32>) -> Vec<String> {
    let mut all: Vec<_> = records.map(|number| format!("{topic} {number}")).collect();
    all.sort_unstable();
    all
}

fn sorted(mut texts: Vec<String>) -> Vec<String> {
    texts.sort_unstable();
    texts
}

#[test]
fn every_record_is_in_a_window_once() {
    let cluster = cluster(1, &[("images", 3)]);
    produce(&cluster, "images", 3, 0..1000, 100);
    let source =
        source(&cluster, serde_json::json!({"topics": ["images"], "window_records": 150, "end": "end"}));
    let sink = read(&source, &source.origin(0), 1000);
    assert_eq!(sorted(sink.texts()), expected("images", 0..1000));
    let places = sink.places();
    assert_eq!(places.len(), 7);
    for (before, after) in places.iter().zip(&places[1..]) {
        assert_eq!((before.window + 1, before.end()), (after.window, after.first));
    }
    let state = sink.state.lock().unwrap();
    assert!(state.windows.iter().rev().skip(1).all(|window| !window.last) && state.windows[6].last);
    assert_eq!(state.windows[0].key(0), "images/0/0");
    assert_eq!(state.windows[0].label(1), 3);
}

#[test]
fn a_window_read_again_is_the_same_and_so_is_what_follows() {
    let cluster = cluster(1, &[("a", 2), ("b", 3)]);
    produce(&cluster, "a", 2, 0..300, 50);
    produce(&cluster, "b", 3, 0..500, 80);
    let options =
        serde_json::json!({"topics": ["a", "b"], "window_records": 100, "window_bytes": 9000, "end": "end"});
    let source = source(&cluster, options);
    let whole = read(&source, &source.origin(0), 800);
    let (places, all) = (whole.places(), whole.texts());
    assert!(places.len() >= 8, "{places:?}");
    for (at, place) in places.iter().enumerate() {
        for again in [true, false] {
            let first = if again { place.first } else { place.end() } as usize;
            let skip = if again { at } else { at + 1 };
            if skip == places.len() {
                continue;
            }
            let sink = Collector::new(usize::MAX);
            // Through JSON, as a token has it.
            let place: Place = serde_json::from_str(&serde_json::to_string(place).unwrap()).unwrap();
            let follower = follow(&source, &place, again, &sink);
            sink.until("the rest", |windows| windows.last().is_some_and(|window| window.last));
            drop(follower);
            let state = sink.state.lock().unwrap();
            let rest: Vec<String> =
                state.windows.iter().take_while(|window| window.place.epoch == 0).flat_map(texts).collect();
            assert_eq!(rest, all[first..], "from window {at}");
            assert_eq!(state.windows[0].place, places[skip]);
        }
    }
}
