//! Counters of a feed, figures of this process, and the verdict drawn from them.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use crate::protocol::Stats;

/// What a feed counts; written by its threads, read by `stats`.
#[derive(Debug)]
pub struct Metrics {
    since: Instant,
    /// Batches handed over.
    pub batches: AtomicU64,
    /// Rows handed over.
    pub rows: AtomicU64,
    /// Rows that held a substitute.
    pub substituted: AtomicU64,
    /// Rows left out.
    pub dropped: AtomicU64,
    /// Request to bytes, summed over records.
    pub read_ns: AtomicU64,
    /// Bytes to worker, summed over records.
    pub queue_ns: AtomicU64,
    /// In the chain, summed over records.
    pub transform_ns: AtomicU64,
    /// Coordinator waited with every slot taken and nothing under construction.
    pub ring_full_ns: AtomicU64,
    /// Largest sum of encoded bytes in flight.
    pub peak_in_flight_bytes: AtomicU64,
}

impl Default for Metrics {
    fn default() -> Self {
        let zero = || AtomicU64::new(0);
        Self {
            since: Instant::now(),
            batches: zero(),
            rows: zero(),
            substituted: zero(),
            dropped: zero(),
            read_ns: zero(),
            queue_ns: zero(),
            transform_ns: zero(),
            ring_full_ns: zero(),
            peak_in_flight_bytes: zero(),
        }
    }
}

/// Adds a duration to a counter of nanoseconds.
pub fn add(counter: &AtomicU64, duration: Duration) {
    counter.fetch_add(duration.as_nanos() as u64, Relaxed);
}

/// What the client measured: nanoseconds spent waiting for data, and in iteration altogether.
#[derive(Clone, Copy, Debug, Default)]
pub struct Consumer {
    /// Waiting in `next()`.
    pub data_wait_ns: u64,
    /// Between the first `next()` of an epoch and its end, validation and pauses between epochs left out.
    pub iteration_ns: u64,
}

impl Metrics {
    /// The counters; the reader's figures and the verdict are added by the engine. Of its threads a feed has one in
    /// `sharers`.
    pub fn stats(&self, threads: usize, sharers: usize) -> Stats {
        let read = |counter: &AtomicU64| counter.load(Relaxed);
        let wall_ns = self.since.elapsed().as_nanos() as u64;
        let (ring_full_ns, transform_ns) = (read(&self.ring_full_ns), read(&self.transform_ns));
        let active_ns = wall_ns.saturating_sub(ring_full_ns);
        Stats {
            wall_ns,
            batches: read(&self.batches),
            rows: read(&self.rows),
            substituted: read(&self.substituted),
            dropped: read(&self.dropped),
            read_ns: read(&self.read_ns),
            queue_ns: read(&self.queue_ns),
            transform_ns,
            ring_full_ns,
            starved_ns: active_ns.saturating_sub(transform_ns * sharers as u64 / threads as u64),
            threads: threads as u32,
            peak_rss_bytes: peak_rss_bytes(),
            cpu_ns: cpu_ns(),
            peak_in_flight_bytes: read(&self.peak_in_flight_bytes),
            ..Stats::default()
        }
    }
}

/// Which stage was the limit, from where the others waited.
///
/// A consumer that hardly waited for data was the limit itself. Otherwise it is the workers when they were busy for
/// most of the time in which a slot was free, and reading when they were not. Without a consumer's figures the share of
/// the time in which every slot was taken stands for them. Threads that `sharers` have together are busy for all of
/// them when each has them busy for its part.
pub fn verdict(stats: &Stats, sharers: usize, consumer: Consumer) -> (String, String) {
    let share = |part: u64, whole: u64| if whole == 0 { 0.0 } else { part as f64 / whole as f64 };
    let active_ns = stats.wall_ns.saturating_sub(stats.ring_full_ns);
    let busy =
        share(stats.transform_ns * sharers as u64 / u64::from(stats.threads.max(1)), active_ns).min(1.0);
    let (train_is_limit, waited) = if consumer.iteration_ns > 0 {
        let waited = share(consumer.data_wait_ns, consumer.iteration_ns);
        (waited < 0.05, format!("the loop waited for data {:.1}% of the time", 100.0 * waited))
    } else {
        let full = share(stats.ring_full_ns, stats.wall_ns);
        (full > 0.5, format!("all batches were ready and waiting {:.0}% of the time", 100.0 * full))
    };
    let plural = if stats.threads == 1 { "" } else { "s" };
    let workers = format!("{} worker thread{plural} {:.0}% busy", stats.threads, 100.0 * busy);
    let (stage, name, advice) = if train_is_limit {
        ("train", "the training step", "a faster loader would not help".into())
    } else if busy >= 0.5 {
        ("transform", "transforms", transform_advice(stats.threads))
    } else {
        ("read", "reading", reading_advice(stats).into())
    };
    (stage.into(), format!("Bottleneck: {name}. {}, with {workers}; {advice}.", capitalised(&waited)))
}

fn capitalised(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect())
}

/// More threads than cores do not help.
fn transform_advice(threads: u32) -> String {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    if (threads as usize) < cores {
        format!("increase num_workers (there are {cores} cores) or use cheaper transforms")
    } else {
        "all cores are in use: use cheaper transforms, smaller images or more cores".into()
    }
}

fn reading_advice(stats: &Stats) -> &'static str {
    match stats.stream.as_ref().map(|stream| stream.lag) {
        None => "use a faster disk or more read-ahead (read_ahead_bytes, read depth)",
        Some(Some(0)) => "the stream is read to its end, so only more data would help",
        Some(_) => "use a faster broker or network, or larger windows (window_records, window_bytes)",
    }
}

/// Peak resident bytes of this process (VmHWM).
pub fn peak_rss_bytes() -> u64 {
    status_kib("VmHWM:") << 10
}

fn status_kib(key: &str) -> u64 {
    std::fs::read_to_string("/proc/self/status")
        .ok()
        .and_then(|status| crate::memory::kib(&status, key))
        .unwrap_or(0)
}

/// User and system time of this process.
pub fn cpu_ns() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stats(ring_full: u64, transform: u64) -> Stats {
        Stats {
            wall_ns: 1000,
            ring_full_ns: ring_full,
            transform_ns: transform,
            threads: 2,
            ..Stats::default()
        }
    }

    #[test]
    fn the_stage_that_the_others_wait_for_is_the_limit() {
        let waits = Consumer { data_wait_ns: 600, iteration_ns: 1000 };
        let fed = Consumer { data_wait_ns: 10, iteration_ns: 1000 };
        let limit = |stats: &Stats, consumer| verdict(stats, 1, consumer).0;
        assert_eq!(limit(&stats(0, 1900), waits), "transform");
        assert_eq!(limit(&stats(0, 200), waits), "read");
        assert_eq!(limit(&stats(800, 300), fed), "train");
        assert_eq!(limit(&stats(800, 300), Consumer::default()), "train");
        assert_eq!(limit(&stats(100, 1700), Consumer::default()), "transform");
        assert_eq!(verdict(&stats(0, 480), 4, waits).0, "transform", "four ranks keep the threads busy");
    }

    #[test]
    fn this_process_has_figures() {
        assert!(peak_rss_bytes() > 1 << 20 && cpu_ns() > 0);
    }
}
