//! How fast windows are read, next to a bare loop over librdkafka's consumer: A B A B, the same records, the same
//! settings.
//!
//! `cargo run --release -p fuelrail-connectors --example kafka_bench -- [SERVERS [TOPIC]]`. Without servers it starts
//! librdkafka's mock of a cluster in this process, fills it with 100 KB records, and reads those over and over.

use std::error::Error;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use fuelrail_connectors::{
    KafkaConfig, KafkaProducer, KafkaProperties, Sink, SourceError, Window, open_stream,
};
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::mocking::MockCluster;
use rdkafka::{ClientConfig, Offset, TopicPartitionList};

const PARTITIONS: i32 = 128;
const RECORD: usize = 100_000;
/// The mock keeps 5 MiB a partition.
const EACH: i64 = 45;
const ROUNDS: usize = 5;

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let (servers, mock) = match arguments.next() {
        Some(servers) => (servers, None),
        None => {
            let mock = MockCluster::new(1)?;
            mock.create_topic("bench", PARTITIONS, 1)?;
            (mock.bootstrap_servers(), Some(mock))
        }
    };
    let topic = arguments.next().unwrap_or_else(|| "bench".into());
    let properties: serde_json::Value =
        arguments.next().map_or(Ok(serde_json::json!({})), |text| text.parse())?;
    let servers: Vec<String> = servers.split(',').map(str::to_owned).collect();
    if mock.is_some() {
        // A record a batch, as producers with the usual settings send records of this size: the mock answers a request
        // with one batch of each partition.
        let properties = KafkaProperties::new([("batch.size", "100000")]);
        let producer = KafkaProducer::open(&servers, &topic, &properties)?;
        for record in 0..PARTITIONS as i64 * EACH {
            let value = vec![record as u8; RECORD];
            producer.send_to(Some((record % i64::from(PARTITIONS)) as u32), None, Some(&value), &[])?;
        }
        producer.flush(Duration::from_secs(60))?;
    }
    let config: KafkaConfig = serde_json::from_value(serde_json::json!({
        "servers": servers, "topics": [topic], "end": "end", "window_bytes": 16 << 20, "properties": properties,
    }))?;
    let source = open_stream(&config)?;
    let origin = source.origin(0);
    let ranges: Vec<(i32, i64, i64)> = origin.state["partitions"][0][&topic]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|range| Some((range[0].as_i64()? as i32, range[3].as_i64()?, range[4].as_i64()?)))
        .collect();
    let (mut bare, mut ours) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        bare.push(read_bare(&servers.join(","), &topic, &ranges)?);
        ours.push(read_windows(&config)?);
        println!(
            "bare {:7.1} MB/s    windows {:7.1} MB/s",
            bare.last().copied().unwrap_or_default(),
            ours.last().copied().unwrap_or_default()
        );
    }
    let middle = |rates: &mut Vec<f64>| {
        rates.sort_by(f64::total_cmp);
        rates[rates.len() / 2]
    };
    let (bare, ours) = (middle(&mut bare), middle(&mut ours));
    println!("median: bare {bare:.1} MB/s, windows {ours:.1} MB/s: {:.0} %", 100.0 * ours / bare);
    Ok(())
}

/// Megabytes a second of a loop that looks at every message and keeps none. Connecting is counted.
fn read_bare(servers: &str, topic: &str, ranges: &[(i32, i64, i64)]) -> Result<f64, Box<dyn Error>> {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", servers)
        .set("group.id", "bare")
        .set("enable.auto.commit", "false")
        .set("check.crcs", "true")
        .create()?;
    let mut list = TopicPartitionList::new();
    for &(partition, lo, _) in ranges {
        list.add_partition_offset(topic, partition, Offset::Offset(lo))?;
    }
    let started = Instant::now();
    consumer.assign(&list)?;
    let mut left: i64 = ranges.iter().map(|(_, lo, hi)| hi - lo).sum();
    let mut bytes = 0;
    while left > 0 {
        let Some(message) = consumer.poll(Duration::from_secs(10)) else { return Err("no message".into()) };
        bytes += message?.payload_len();
        left -= 1;
    }
    Ok(bytes as f64 / started.elapsed().as_secs_f64() / 1e6)
}

/// Takes windows as fast as they come.
struct Taker(Mutex<SyncSender<Result<Window, SourceError>>>);

impl Sink for Taker {
    fn has_room(&self) -> bool {
        true
    }

    fn window(&self, window: Window) {
        if let Ok(sender) = self.0.lock() {
            let _ = sender.try_send(Ok(window));
        }
    }

    fn failed(&self, error: SourceError) {
        if let Ok(sender) = self.0.lock() {
            let _ = sender.try_send(Err(error));
        }
    }
}

/// Megabytes a second of windows, from connecting to the end of the epoch.
fn read_windows(config: &KafkaConfig) -> Result<f64, Box<dyn Error>> {
    let source = open_stream(config)?;
    let (sender, windows): (_, Receiver<Result<Window, SourceError>>) = sync_channel(1 << 20);
    let started = Instant::now();
    let follower = source.clone().follow(&source.origin(0), false, Arc::new(Taker(Mutex::new(sender))))?;
    let mut bytes = 0;
    loop {
        let window = windows.recv_timeout(Duration::from_secs(60))??;
        bytes += window.records.iter().map(|record| record.stored).sum::<u64>();
        if window.last {
            break;
        }
    }
    let seconds = started.elapsed().as_secs_f64();
    drop(follower);
    Ok(bytes as f64 / seconds / 1e6)
}
