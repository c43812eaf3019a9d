//! Kafka against librdkafka's own mock of a cluster: every record once, in the same windows, whatever the brokers do.
//!
//! The mock drops records beyond 5 MiB or 100,000 a partition, so these tests stay below.

use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use fuelrail_connectors::{
    Follower, KafkaConfig, KafkaProducer, KafkaProperties, Place, Sink, SourceError, StreamSource, Window,
    open_stream,
};
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::mocking::MockCluster;
use rdkafka::producer::DefaultProducerContext;
use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};

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
fn produce(at: &[String], topic: &str, partitions: u32, records: std::ops::Range<u32>, size: usize) {
    produce_with(at, topic, partitions, records, size, &[]);
}

fn produce_with(
    at: &[String],
    topic: &str,
    partitions: u32,
    records: std::ops::Range<u32>,
    size: usize,
    properties: &[(&str, &str)],
) {
    let properties = KafkaProperties::new(properties.iter().copied());
    let producer = KafkaProducer::open(at, topic, &properties).unwrap();
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

/// Named parts out of headers, keys and values, in the order in which the records lie in their log.
#[test]
fn messages_deliver_named_parts() {
    let cluster = cluster(1, &[("parts", 1)]);
    let producer = KafkaProducer::open(&servers(&cluster), "parts", &KafkaProperties::default()).unwrap();
    for number in 0..50 {
        let caption = format!("caption {number}").repeat(number % 3);
        let value = serde_json::json!({"boxes": vec![[number, 1]; number % 4], "meta": {"n": number}});
        let headers = [("caption", &b"an older one"[..]), ("caption", caption.as_bytes())];
        let (key, value) = (format!("k{number}"), value.to_string());
        let key = (number % 2 == 0).then_some(key.as_bytes());
        producer.send_to(Some(0), key, Some(value.as_bytes()), &headers).unwrap();
    }
    producer.flush(WATCHDOG).unwrap();
    let options = serde_json::json!({"topics": ["parts"], "value": "json", "end": "end", "label": "", "deliver": [
        {"part": "key", "kind": "text"},
        {"part": "header:caption", "kind": "text"},
        {"part": "boxes", "kind": "ragged", "dtype": "u8", "row": [2]},
        {"part": "meta", "kind": "json"},
        {"part": "meta.n", "kind": "numbers"},
    ]});
    let source = source(&cluster, options);
    let schema = source.schema();
    let collector = Collector::new(100);
    let _reading = source.clone().follow(&source.origin(0), false, collector.clone()).unwrap();
    collector.until("the end", |windows| windows.last().is_some_and(|window| window.last));
    let state = collector.state.lock().unwrap();
    let records: Vec<_> = state.windows.iter().flat_map(|window| &window.records).collect();
    assert_eq!(records.len(), 50);
    for (number, record) in records.into_iter().enumerate() {
        let body = record.body.as_ref().unwrap();
        let cut = schema.cut(body).unwrap();
        let key = (number % 2 == 0).then(|| format!("k{number}"));
        assert_eq!(cut.parts[0], key.as_deref().map(str::as_bytes));
        assert_eq!(cut.parts[1], Some(format!("caption {number}").repeat(number % 3).as_bytes()));
        assert_eq!(cut.parts[2], Some(&[number as u8, 1].repeat(number % 4)[..]));
        assert_eq!(cut.parts[3], Some(format!("{{\"n\":{number}}}").as_bytes()));
        assert_eq!(cut.fields, (number as f32).to_le_bytes());
    }
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

/// Reads until so many records have come. A follower goes on meanwhile, with the next epoch where the range is bounded:
/// what it was quick enough to hand over is left out.
fn read(source: &Arc<dyn StreamSource>, from: &Place, records: u64) -> Arc<Collector> {
    let sink = Collector::new(usize::MAX);
    let follower = follow(source, from, false, &sink);
    sink.until("all records", |windows| {
        windows.iter().map(|window| window.place.count).sum::<u64>() >= records
    });
    drop(follower);
    let mut before = 0;
    sink.state.lock().unwrap().windows.retain(|window| {
        let wanted = before < records;
        before += window.place.count;
        wanted
    });
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
    produce(&servers(&cluster), "images", 3, 0..1000, 100);
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
    produce(&servers(&cluster), "a", 2, 0..300, 50);
    produce(&servers(&cluster), "b", 3, 0..500, 80);
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

#[test]
fn each_limit_closes_a_window() {
    let cluster = cluster(1, &[("t", 4)]);
    produce(&servers(&cluster), "t", 4, 0..400, 1000);
    let windows = |options: serde_json::Value, records| {
        let mut all = serde_json::json!({"topics": ["t"]});
        all.as_object_mut().unwrap().extend(options.as_object().unwrap().clone());
        let source = source(&cluster, all);
        let sink = read(&source, &source.origin(0), records);
        assert_eq!(sorted(sink.texts()), expected("t", 0..records as u32));
        let state = sink.state.lock().unwrap();
        state
            .windows
            .iter()
            .map(|window| (window.place.count, window.bytes(), window.last))
            .collect::<Vec<_>>()
    };
    // Records: four windows, the same number of each partition.
    let by_records = windows(serde_json::json!({"window_records": 100, "end": 100}), 400);
    assert!(by_records.iter().all(|window| window.0 == 100), "{by_records:?}");
    assert_eq!(by_records.len(), 4);
    // Bytes: no window larger, and none much smaller.
    let limit = 20_000;
    let by_bytes = windows(serde_json::json!({"window_bytes": limit, "end": 100}), 400);
    for window in &by_bytes {
        assert!(window.1 <= limit && (window.2 || window.1 > limit - 1100), "{by_bytes:?}");
    }
    // Offsets: exactly so many of each partition; the last window has what is left.
    let by_offsets = windows(serde_json::json!({"window_offsets": 30, "end": 100}), 400);
    assert_eq!(by_offsets.iter().map(|window| window.0).collect::<Vec<_>>(), [120, 120, 120, 40]);
    // Time: an endless stream hands out what there is.
    let by_time = windows(serde_json::json!({"window_records": 1000, "window_seconds": 0.3}), 400);
    assert_eq!(by_time, [(400, by_time[0].1, false)]);
}

#[test]
fn one_record_may_be_larger_than_a_window() {
    let cluster = cluster(1, &[("t", 1)]);
    produce(&servers(&cluster), "t", 1, 0..5, 5000);
    let source = source(&cluster, serde_json::json!({"topics": ["t"], "window_bytes": 1000, "end": "end"}));
    let sink = read(&source, &source.origin(0), 5);
    assert_eq!(sink.places().iter().map(|place| place.count).collect::<Vec<_>>(), [1; 5]);
    assert_eq!(sorted(sink.texts()), expected("t", 0..5));
}

#[test]
fn epochs_over_the_same_range_are_the_same() {
    let cluster = cluster(1, &[("t", 2)]);
    produce(&servers(&cluster), "t", 2, 0..200, 30);
    let options = serde_json::json!({"topics": ["t"], "window_records": 60, "start": 10, "end": 70});
    let source = source(&cluster, options);
    assert!(source.is_bounded() && source.is_uniform());
    let sink = read(&source, &source.origin(0), 3 * 120);
    let state = sink.state.lock().unwrap();
    let epoch = |epoch| {
        let of = state.windows.iter().filter(move |window| window.place.epoch == epoch);
        of.map(|window| (window.place.window, window.place.first, window.last, texts(window)))
            .collect::<Vec<_>>()
    };
    assert_eq!(epoch(0).len(), 2);
    assert_eq!(sorted(epoch(0).into_iter().flat_map(|window| window.3).collect()), expected("t", 20..140));
    assert_eq!(epoch(0), epoch(1));
    assert_eq!(epoch(0), epoch(2));
    // Behind the last window of an epoch it ends, without a record, and the next one begins.
    let last = state.windows.iter().rfind(|window| window.place.epoch == 0).unwrap().place.clone();
    let next = state.windows.iter().find(|window| window.place.epoch == 1).unwrap().place.clone();
    drop(state);
    let behind = read(&source, &last, 1);
    {
        let state = behind.state.lock().unwrap();
        let end = &state.windows[0];
        assert!(end.last && end.place.count == 0 && end.place.first == last.end(), "{end:?}");
        assert_eq!(state.windows[1].place, next);
    }
    assert_eq!(read(&source, &source.origin(1), 1).places()[0], next);
}

#[test]
fn a_trainer_that_takes_its_time_loses_nothing_and_is_committed_only_when_saved() {
    let cluster = cluster(1, &[("t", 3)]);
    let options = serde_json::json!({
        "topics": ["t"], "window_records": 30, "window_seconds": 0.2, "properties": {"group.id": "trainer"},
    });
    let source = source(&cluster, options);
    let sink = Collector::new(0);
    let follower = follow(&source, &source.origin(0), false, &sink);
    // It does not read at all, while more and more is written.
    produce(&servers(&cluster), "t", 3, 0..500, 200);
    let seen = |what: &str, done: &dyn Fn() -> bool| {
        let deadline = Instant::now() + WATCHDOG;
        while !done() {
            assert!(Instant::now() < deadline, "waited for {what}");
            std::thread::sleep(Duration::from_millis(10));
        }
    };
    seen("the lag", &|| follower.stats().lag == Some(500));
    assert_eq!(follower.stats().records, 0);
    sink.set_room(2);
    sink.until("two windows", |windows| windows.len() == 2);
    produce(&servers(&cluster), "t", 3, 500..900, 200);
    assert_eq!(committed(&cluster, "trainer", "t", 3), [None; 3]);

    // In the middle of the second window, what lies before it is consumed; at its end, so is it.
    let places = sink.places();
    follower.saved(&places[1], places[1].first + 3);
    seen("a commit", &|| committed(&cluster, "trainer", "t", 3) == [Some(10); 3]);
    follower.saved(&places[1], places[1].end());
    seen("another", &|| committed(&cluster, "trainer", "t", 3) == [Some(20); 3]);

    sink.set_room(usize::MAX);
    sink.until("everything", |windows| windows.iter().map(|window| window.place.count).sum::<u64>() == 900);
    assert_eq!(sorted(sink.texts()), expected("t", 0..900));
    let stats = follower.stats();
    assert_eq!((stats.records, stats.partitions), (900, 3));
    assert!(stats.bytes >= 900 * 200);
    seen("no lag", &|| follower.stats().lag == Some(0));
    let dropped = Instant::now();
    drop(follower);
    assert!(dropped.elapsed() < Duration::from_secs(5), "{:?}", dropped.elapsed());
}

/// What a consumer group has committed.
fn committed(cluster: &Mock, group: &str, topic: &str, partitions: i32) -> Vec<Option<i64>> {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", cluster.bootstrap_servers())
        .set("group.id", group)
        .create()
        .unwrap();
    let mut list = TopicPartitionList::new();
    list.add_partition_range(topic, 0, partitions - 1);
    let offsets = consumer.committed_offsets(list, WATCHDOG).unwrap();
    let offset = |element: &rdkafka::topic_partition_list::TopicPartitionListElem<'_>| match element.offset()
    {
        Offset::Offset(offset) => Some(offset),
        _ => None,
    };
    offsets.elements().iter().map(offset).collect()
}

#[test]
fn daemons_that_do_not_talk_cut_the_same_windows() {
    let cluster = cluster(1, &[("a", 2), ("b", 1)]);
    let options = serde_json::json!({"topics": ["^[ab]$"], "window_offsets": 25});
    let sources = [source(&cluster, options.clone()), source(&cluster, options)];
    assert_eq!(sources[0].fingerprint(), sources[1].fingerprint());
    assert!(sources[0].is_uniform() && !sources[0].is_bounded());
    let sinks = [Collector::new(usize::MAX), Collector::new(3)];
    let _followers = [0, 1].map(|at| follow(&sources[at], &sources[at].origin(0), false, &sinks[at]));
    let at = servers(&cluster);
    std::thread::scope(|scope| {
        scope.spawn(|| produce(&at, "b", 1, 0..250, 20));
        for step in 0..10 {
            produce(&at, "a", 2, step * 50..(step + 1) * 50, 20);
        }
    });
    sinks[0].until("ten windows", |windows| windows.len() == 10);
    sinks[1].set_room(usize::MAX);
    sinks[1].until("ten windows", |windows| windows.len() == 10);
    assert_eq!(sinks[0].places(), sinks[1].places());
    assert_eq!(sinks[0].texts(), sinks[1].texts());
}

#[test]
fn a_bad_record_has_its_place_and_its_reason() {
    let cluster = cluster(1, &[("t", 1)]);
    let producer = KafkaProducer::open(&servers(&cluster), "t", &KafkaProperties::default()).unwrap();
    let long = vec![b'x'; 3000];
    for (value, label) in [
        (Some(&b"first"[..]), &b"0"[..]),
        (None, b"0"),
        (Some(&long), b"0"),
        (Some(b"poison"), b"dog"),
        (Some(b"last"), b"1"),
    ] {
        producer.send(Some(b"key"), value, &[("label", label)]).unwrap();
    }
    producer.flush(WATCHDOG).unwrap();
    let options = serde_json::json!({"topics": ["t"], "end": "end", "max_record_bytes": 1000});
    let source = source(&cluster, options);
    let sink = read(&source, &source.origin(0), 5);
    let texts = sink.texts();
    assert_eq!((&*texts[0], &*texts[4]), ("first", "last"));
    for (text, reason) in texts[1..4].iter().zip(["no value", "3000 bytes; max_record_bytes", "\"dog\""]) {
        assert!(text.starts_with("t/0/") && text.contains(reason), "{text}");
    }
    // It is bad again when it is read again.
    let again = Collector::new(usize::MAX);
    let _follower = follow(&source, &sink.places()[0], true, &again);
    again.until("it again", |windows| !windows.is_empty());
    assert_eq!(again.texts()[..5], texts);
}

#[test]
fn every_compression_is_read() {
    for codec in ["gzip", "snappy", "lz4", "zstd"] {
        let cluster = cluster(1, &[(codec, 2)]);
        produce_with(
            &servers(&cluster),
            codec,
            2,
            0..600,
            700,
            // Without it a slow machine's retries are messages of their own.
            &[("compression.type", codec), ("batch.size", "100000"), ("enable.idempotence", "true")],
        );
        let options = serde_json::json!({"topics": [codec], "window_records": 250, "end": "end"});
        let source = source(&cluster, options);
        let sink = read(&source, &source.origin(0), 600);
        assert_eq!(sorted(sink.texts()), expected(codec, 0..600), "{codec}");
    }
}

#[test]
fn json_values_become_images_and_fields() {
    let cluster = cluster(1, &[("t", 1)]);
    let producer = KafkaProducer::open(&servers(&cluster), "t", &KafkaProperties::default()).unwrap();
    for value in
        [r#"{"image": "aGVsbG8=", "box": [1, 2], "kind": "dog"}"#, r#"{"image": "aGVsbG8=", "box": 7}"#]
    {
        producer.send(None, Some(value.as_bytes()), &[]).unwrap();
    }
    producer.flush(WATCHDOG).unwrap();
    let options = serde_json::json!({
        "topics": ["t"], "end": "end", "value": "json", "image": "image", "fields": ["box[2]:i16"],
        "label": "kind", "classes": ["cat", "dog"],
    });
    let source = source(&cluster, options);
    assert_eq!(source.classes(), ["cat", "dog"]);
    let sink = read(&source, &source.origin(0), 2);
    let state = sink.state.lock().unwrap();
    let record = state.windows[0].read(0).unwrap();
    assert_eq!(&*record.bytes, b"hello\x01\0\x02\0");
    assert_eq!(source.schema().cut(&record.bytes).unwrap().image, b"hello");
    assert_eq!(state.windows[0].label(0), 1);
    assert!(state.windows[0].read(1).unwrap_err().to_string().contains("\"box\" is 7"));
}

/// How many: a few in the short form, what the guarantee promises in the gate.
fn counts() -> (u32, u32) {
    if std::env::var_os("FUELRAIL_GATE").is_some() { (500_000, 100) } else { (40_000, 12) }
}

/// A small generator whose seed is printed.
struct Random(u64);

impl Random {
    fn new() -> Self {
        let seed =
            std::env::var("FUELRAIL_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(|| {
                use std::hash::{BuildHasher, Hasher};
                std::collections::hash_map::RandomState::new().build_hasher().finish()
            });
        println!("FUELRAIL_SEED={seed}");
        Self(seed)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % limit
    }
}

/// One thing that goes wrong and comes right again by itself.
fn harm(cluster: &Mock, random: &mut Random, topic: &str, partitions: u32, brokers: i32) -> String {
    use RDKafkaApiKey as Key;
    use RDKafkaRespErr as Error;
    let broker = 1 + random.below(brokers as u64) as i32;
    match random.below(6) {
        0 => {
            let errors = [
                Error::RD_KAFKA_RESP_ERR__TRANSPORT,
                Error::RD_KAFKA_RESP_ERR_NOT_LEADER_FOR_PARTITION,
                Error::RD_KAFKA_RESP_ERR_REQUEST_TIMED_OUT,
                Error::RD_KAFKA_RESP_ERR_KAFKA_STORAGE_ERROR,
                Error::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART,
                Error::RD_KAFKA_RESP_ERR_OFFSET_NOT_AVAILABLE,
            ];
            let keys = [Key::Fetch, Key::ListOffsets, Key::Metadata];
            let key = keys[random.below(3) as usize];
            let some: Vec<_> = (0..1 + random.below(4)).map(|_| errors[random.below(6) as usize]).collect();
            let text = format!("{some:?} for {key:?}");
            cluster.request_errors(key, &some);
            text
        }
        1 => {
            cluster.broker_down(broker).unwrap();
            std::thread::sleep(Duration::from_millis(random.below(700)));
            cluster.broker_up(broker).unwrap();
            format!("broker {broker} was down")
        }
        2 => {
            let slow = Duration::from_millis(random.below(2000));
            cluster.broker_round_trip_time(broker, slow).unwrap();
            std::thread::sleep(Duration::from_millis(random.below(600)));
            cluster.broker_round_trip_time(broker, Duration::ZERO).unwrap();
            format!("broker {broker} took {slow:?}")
        }
        _ => {
            let partition = random.below(u64::from(partitions)) as i32;
            cluster.partition_leader(topic, partition, Some(broker)).unwrap();
            format!("broker {broker} leads {partition}")
        }
    }
}

#[test]
fn faults_of_brokers_lose_nothing_and_repeat_nothing() {
    let (records, faults) = counts();
    let cluster = cluster(3, &[("t", 8)]);
    produce(&servers(&cluster), "t", 8, 0..records, 32);
    let options = serde_json::json!({"topics": ["t"], "window_records": 1000, "end": "end"});
    let source = source(&cluster, options);
    let calm = read(&source, &source.origin(0), u64::from(records));

    let mut random = Random::new();
    // Room comes as faults come, so that they meet it at every stage.
    let sink = Collector::new(1);
    let follower = follow(&source, &source.origin(0), false, &sink);
    let windows = calm.places().len();
    for fault in 0..faults {
        println!("{}", harm(&cluster, &mut random, "t", 8, 3));
        sink.set_room(2 + windows * fault as usize / faults as usize);
    }
    sink.set_room(windows);
    sink.until("all windows", |seen| seen.len() == windows);
    drop(follower);
    assert_eq!(sink.places(), calm.places());
    assert!(sink.texts() == calm.texts());
    assert!(sorted(sink.texts()) == expected("t", 0..records));
}

#[test]
fn what_is_written_while_leaders_move_is_read_once() {
    let (records, faults) = counts();
    let records = records / 4;
    let cluster = cluster(3, &[("t", 4)]);
    let options = serde_json::json!({"topics": ["t"], "window_records": 500, "window_seconds": 0.3});
    let source = source(&cluster, options);
    let sink = Collector::new(usize::MAX);
    let follower = follow(&source, &source.origin(0), false, &sink);
    let mut random = Random::new();
    let at = servers(&cluster);
    std::thread::scope(|scope| {
        // In parts, so that it lasts.
        scope.spawn(|| {
            for part in 0..20 {
                produce(&at, "t", 4, records * part / 20..records * (part + 1) / 20, 32);
            }
        });
        for _ in 0..faults {
            // Leaders only: the mock's producer side does not recognise a batch that is sent again.
            let (partition, broker) = (random.below(4) as i32, 1 + random.below(3) as i32);
            cluster.partition_leader("t", partition, Some(broker)).unwrap();
            std::thread::sleep(Duration::from_millis(random.below(150)));
        }
    });
    sink.until("everything", |windows| {
        windows.iter().map(|window| window.place.count).sum::<u64>() >= u64::from(records)
    });
    assert!(sorted(sink.texts()) == expected("t", 0..records));
    // A window that the clock closed is read again as it was.
    let places = sink.places();
    let place = &places[random.below(places.len() as u64) as usize];
    let again = Collector::new(1);
    let _again = follow(&source, place, true, &again);
    again.until("it again", |windows| windows.len() == 1);
    assert_eq!(again.places()[0], *place);
    drop(follower);
}

/// The state of a place with its one range changed.
fn moved(place: &Place, from: i64, to: i64) -> Place {
    let mut place = place.clone();
    place.state["partitions"][0]["t"][0][1] = from.into();
    place.state["partitions"][0]["t"][0][2] = to.into();
    place
}

#[test]
fn what_is_gone_stops_the_run_with_partition_range_and_count() {
    let cluster = cluster(1, &[("t", 1)]);
    produce(&servers(&cluster), "t", 1, 0..1000, 1000);
    let source = source(&cluster, serde_json::json!({"topics": ["t"], "window_records": 100}));
    let origin = source.origin(0);
    let first = read(&source, &origin, 100).places()[0].clone();
    // The mock keeps 5 MiB of a partition.
    produce(&servers(&cluster), "t", 1, 1000..8000, 1000);
    let low = open_stream(&config(&cluster, serde_json::json!({"topics": ["t"]}))).unwrap().origin(0);
    let low = low.state["partitions"][0]["t"][0][1].as_i64().unwrap();
    assert!(low > 1000, "the mock has removed nothing: {low}");
    for (place, again, from) in [(&origin, false, 0), (&first, false, 100), (&first, true, 0)] {
        let sink = Collector::new(usize::MAX);
        let started = Instant::now();
        let _follower = follow(&source, place, again, &sink);
        let error = sink.error();
        assert!(
            error.contains(&format!("t/0: offsets {from} to {} ({}) are gone", low - 1, low - from)),
            "{error}"
        );
        // Promised within ten seconds.
        assert!(started.elapsed() < Duration::from_secs(50));
        assert!(sink.places().is_empty());
    }
    // A start that is gone stops whoever begins there, and nobody who goes on from beyond it.
    let late = open_stream(&config(&cluster, serde_json::json!({"topics": ["t"], "start": 5}))).unwrap();
    let sink = Collector::new(usize::MAX);
    let _follower = follow(&late, &late.origin(0), false, &sink);
    assert!(sink.error().contains("offsets 5 to"));
}

#[test]
fn a_log_that_ends_before_the_checkpoint_stops_the_run() {
    let cluster = cluster(1, &[("t", 1)]);
    produce(&servers(&cluster), "t", 1, 0..100, 10);
    let source = source(&cluster, serde_json::json!({"topics": ["t"], "window_records": 50}));
    let first = read(&source, &source.origin(0), 50).places()[0].clone();
    let beyond = moved(&first, 450, 500);
    for again in [false, true] {
        let sink = Collector::new(usize::MAX);
        let _follower = follow(&source, &beyond, again, &sink);
        let error = sink.error();
        let from = if again { 450 } else { 500 };
        assert!(error.contains(&format!("t/0: offset {from} is beyond the end")), "{error}");
        assert!(error.contains("re-created"), "{error}");
    }
}

#[test]
fn a_window_that_is_not_what_it_was_stops_the_run() {
    let cluster = cluster(1, &[("t", 1)]);
    produce(&servers(&cluster), "t", 1, 0..100, 10);
    let source = source(&cluster, serde_json::json!({"topics": ["t"], "window_records": 50}));
    let first = read(&source, &source.origin(0), 50).places()[0].clone();
    let mut fewer = first.clone();
    fewer.count -= 1;
    let other = moved(&first, 1, 51);
    for place in [fewer, other] {
        let sink = Collector::new(usize::MAX);
        let _follower = follow(&source, &place, true, &sink);
        let error = sink.error();
        assert!(error.contains("t/0 offsets") && error.contains("Compaction"), "{error}");
        assert!(sink.places().is_empty());
    }
}

#[test]
fn a_topic_that_was_deleted_stops_the_run() {
    let cluster = cluster(1, &[("t", 2)]);
    produce(&servers(&cluster), "t", 2, 0..100, 10);
    let source = source(&cluster, serde_json::json!({"topics": ["t"], "window_records": 50}));
    let sink = Collector::new(usize::MAX);
    let _follower = follow(&source, &source.origin(0), false, &sink);
    sink.until("the first windows", |windows| windows.len() == 2);
    let started = Instant::now();
    cluster.topic_error("t", RDKafkaRespErr::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART).unwrap();
    // The mock's other answers do not look at the topic's error, so they are given it one by one.
    cluster.request_errors(
        RDKafkaApiKey::ListOffsets,
        &[RDKafkaRespErr::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART; 1000],
    );
    let error = sink.error();
    assert!(error.contains('t') && error.contains("deleted"), "{error}");
    assert!(started.elapsed() < Duration::from_secs(50));
}

#[test]
fn what_cannot_be_opened_says_why() {
    let cluster = cluster(1, &[("images", 1), ("labels", 2)]);
    let open =
        |options: serde_json::Value| open_stream(&config(&cluster, options)).err().unwrap().to_string();
    let error = open(serde_json::json!({"topics": ["imagse"]}));
    assert!(error.contains("did you mean \"images\"") && error.contains("labels"), "{error}");
    let error = open(serde_json::json!({"topics": ["x*"]}));
    assert!(error.contains("\"x*\"") && error.contains("images, labels"), "{error}");
    let error = open(serde_json::json!({"topics": ["images"], "end": "end"}));
    assert!(error.contains("no record between start and end"), "{error}");
    let error = open(serde_json::json!({"topics": ["images"], "start": 5}));
    assert!(error.contains("images/0 ends at offset 0"), "{error}");
    let error = open(serde_json::json!({"topics": ["images"], "start": {"labels": {"0": 0}}}));
    assert!(error.contains("labels/0"), "{error}");
    let error = open(serde_json::json!({"topics": ["images"], "end": "2999-01-01T00:00:00Z"}));
    assert!(error.contains("in the future"), "{error}");
    let error = open(serde_json::json!({"topics": ["images"], "properties": {"fetch.max.byte": 1}}));
    assert!(error.contains("did you mean \"fetch.max.bytes\""), "{error}");
    cluster.topic_error("images", RDKafkaRespErr::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED).unwrap();
    let error = open(serde_json::json!({"topics": ["images"]}));
    assert!(error.contains("may not be read by this user"), "{error}");

    let indexed = fuelrail_connectors::open(&fuelrail_connectors::SourceConfig::Kafka(config(
        &cluster,
        serde_json::json!({"topics": ["images"]}),
    )));
    assert!(indexed.err().unwrap().to_string().contains("is a stream"));
}

#[test]
fn no_broker_is_an_error_that_names_the_address_within_the_deadline() {
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let started = Instant::now();
    let config = serde_json::json!({"servers": [closed.to_string()], "topics": ["t"]});
    let error = open_stream(&serde_json::from_value(config).unwrap()).err().unwrap().to_string();
    assert!(error.contains(&closed.to_string()) && error.contains("Connection refused"), "{error}");
    assert!(started.elapsed() < Duration::from_secs(50));
}

#[test]
fn a_place_of_another_stream_is_refused() {
    let cluster = cluster(1, &[("t", 1), ("u", 1)]);
    produce(&servers(&cluster), "t", 1, 0..10, 10);
    let of = |options| source(&cluster, options);
    let t = of(serde_json::json!({"topics": ["t"]}));
    let u = of(serde_json::json!({"topics": ["u"]}));
    let bounded = of(serde_json::json!({"topics": ["t"], "end": "end"}));
    assert!(u.check(&t.origin(0)).unwrap_err().to_string().contains("topic \"t\""));
    assert!(bounded.check(&t.origin(0)).unwrap_err().to_string().contains("bounds"));
    assert!(t.check(&bounded.origin(0)).unwrap_err().to_string().contains("bounds"));
    assert!(t.check(&t.origin(1)).unwrap_err().to_string().contains("epoch 1"));
    assert!(t.fingerprint() != u.fingerprint() && t.fingerprint() != bounded.fingerprint());
    assert_eq!(t.key(7).as_deref(), Some("t/0/7"));
    assert_eq!((t.key(-1), t.key(5 << 48)), (None, None));
}

#[test]
fn a_thousand_partitions_are_read_in_step() {
    let cluster = cluster(3, &[("t", 1000)]);
    produce(&servers(&cluster), "t", 1000, 0..5000, 20);
    let source = source(&cluster, serde_json::json!({"topics": ["t"], "window_records": 2500, "end": "end"}));
    assert!(source.memory() < 1 << 30, "{}", source.memory());
    let sink = read(&source, &source.origin(0), 5000);
    assert_eq!(sorted(sink.texts()), expected("t", 0..5000));
    let size = serde_json::to_string(&sink.places()[0]).unwrap().len();
    assert!(size < 64 << 10, "{size}");
}
