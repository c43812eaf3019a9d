//! `fuelrail bench`: the real path (daemon, ring, client), with a consumer that only touches the data.

use std::time::{Duration, Instant};

use clap::Args;

use super::bars::{Bar, counted, grouped, rounded};
use super::{Failure, signals, spec};
use crate::client::{Batch, ClientError, Feed};
use crate::layout::Content;
use crate::metrics;
use crate::plan::Cursor;
use crate::protocol::{Stats, StreamCounters};

#[derive(Debug, Args)]
pub(super) struct Bench {
    #[command(flatten)]
    spec: spec::Spec,
    /// Measure for this many seconds
    #[arg(long, default_value = "10", value_name = "S", allow_negative_numbers = true, value_parser = positive)]
    seconds: f64,
    /// Measure this many epochs instead
    #[arg(long, conflicts_with = "seconds", value_name = "N", allow_negative_numbers = true, value_parser = super::at_least::<u64, 1>)]
    epochs: Option<u64>,
    /// Hold each batch for this many milliseconds, as a training step would
    #[arg(long, default_value_t = 0, value_name = "MS", allow_negative_numbers = true, value_parser = super::at_least::<u64, 0>)]
    step_ms: u64,
    /// Print one JSON object instead of the report
    #[arg(long)]
    json: bool,
    /// Measure training steps on a GPU and how much of their time waits for data; has flags of its own (--gpu --help)
    #[arg(long)]
    gpu: bool,
}

/// Without a batch for this long the measurement is given up.
const PATIENCE: Duration = Duration::from_secs(300);

fn positive(text: &str) -> Result<f64, String> {
    text.parse::<f64>()
        .ok()
        .filter(|&value| value > 0.0 && value.is_finite())
        .ok_or_else(|| "not a positive number".into())
}

impl Bench {
    pub fn run(self) -> Result<(), Failure> {
        if self.gpu {
            return Err(
                "bench --gpu runs in Python, with torch: use the `fuelrail` command of the Python package \
                        (pip install)"
                    .into(),
            );
        }
        signals::watch()?;
        let asked = Instant::now();
        let mut feed = spec::private_feed(&self.spec, self.spec.pipeline()?)?;
        if let Some(samples) = feed.attached().batching.len {
            self.spec.warn_of_batch(samples);
        }
        let mut run = Run { step: Duration::from_millis(self.step_ms), ..Run::default() };
        let first = next(&mut feed, None, spec::show)?.ok_or("the source has no records")?;
        let first_batch = asked.elapsed();
        run.consume(&feed, &first);
        drop(first);
        let bar = self.bar(&feed);
        let since = Instant::now();
        // None where epochs are counted, and for more seconds than a clock has.
        let seconds = self.epochs.is_none().then(|| Duration::try_from_secs_f64(self.seconds).ok()).flatten();
        let end = seconds.and_then(|seconds| since.checked_add(seconds));
        let is_over = |end: Option<Instant>| end.is_some_and(|end| Instant::now() >= end);
        let done = |epoch: u64| self.epochs.map_or_else(|| is_over(end), |epochs| epoch >= epochs);
        let tell = |level: &str, text: &str| bar.suspend(|| spec::show(level, text));
        let before = run;
        let mut epoch = 0;
        // Whoever never has to wait for a batch is not asked by `next`.
        while !done(epoch) && !signals::interrupted() {
            // A stream may have nothing more for now: what has come by the end is measured.
            let end = end.filter(|_| run.rows > before.rows);
            match next(&mut feed, end, tell) {
                Ok(Some(batch)) => {
                    run.consume(&feed, &batch);
                    match self.epochs {
                        Some(_) => bar.set_position(run.rows),
                        None => bar.set_position(since.elapsed().as_millis() as u64),
                    }
                }
                Ok(None) => {
                    epoch += 1;
                    feed.seek(Cursor { epoch, position: 0 })?;
                }
                Err(ClientError::Interrupted) if run.rows > before.rows => break,
                Err(ClientError::Timeout(_)) if is_over(end) => break,
                Err(error) => return Err(error.into()),
            }
        }
        let wall = since.elapsed();
        let stats = feed.stats(Some(Duration::from_secs(10)), &mut || false, &mut spec::lines(tell))?;
        drop(bar);
        // Where the first batch is all there is, that is what was measured, start included.
        let (rows, wall) =
            if run.rows > before.rows { (run.rows - before.rows, wall) } else { (run.rows, asked.elapsed()) };
        let report = Report { feed: &feed, stats: &stats, wall, rows, first_batch };
        if self.json {
            report.print_json()
        } else {
            report.print()
        }
        // Also after ctrl-C: what was measured until then. The exit code says that it was stopped.
        Ok(())
    }

    fn bar(&self, feed: &Feed) -> Bar {
        let len = match (self.epochs, feed.attached().batching.len) {
            (Some(_), None) => return Bar::new(None, "measuring {spinner} {human_pos} records  {rate}"),
            (Some(epochs), Some(samples)) => epochs.saturating_mul(samples),
            (None, _) => (self.seconds * 1000.0) as u64,
        };
        Bar::new(Some(len), "measuring {wide_bar} {percent:>3}%  {eta} left")
    }
}

/// The next batch; a time-out at `end`, if there is one. What the daemon logs meanwhile is shown meanwhile.
fn next(
    feed: &mut Feed,
    end: Option<Instant>,
    tell: impl Fn(&str, &str),
) -> Result<Option<Batch>, ClientError> {
    let left = end.map_or(PATIENCE, |end| end.saturating_duration_since(Instant::now()).min(PATIENCE));
    let next = feed.next(Some(left), &mut signals::interrupted, &mut spec::lines(tell));
    match next {
        Err(ClientError::Timeout(text)) if end.is_none() => {
            let why = text.split_once(": ").map_or(text.as_str(), |(_, why)| why);
            let seconds = PATIENCE.as_secs();
            Err(ClientError::Timeout(format!("no batch came within {seconds} s: {why}")))
        }
        next => next,
    }
}

/// The consumer.
#[derive(Clone, Copy, Debug, Default)]
struct Run {
    rows: u64,
    touched: u64,
    step: Duration,
}

impl Run {
    /// Touches one byte of each page, as a copy to a device would at least, and pretends to compute.
    fn consume(&mut self, feed: &Feed, batch: &Batch) {
        let attached = feed.attached();
        for field in &attached.layout.fields {
            let bytes = batch.ready.rows as usize * field.row_bytes as usize;
            let mut byte = [0];
            for offset in (0..bytes).step_by(crate::ring::PAGE) {
                batch.memory.copy_to(field, offset, &mut byte);
                self.touched = self.touched.wrapping_add(u64::from(byte[0]));
            }
        }
        self.rows += u64::from(batch.ready.rows);
        std::thread::sleep(self.step);
    }
}

struct Report<'a> {
    feed: &'a Feed,
    stats: &'a Stats,
    wall: Duration,
    rows: u64,
    first_batch: Duration,
}

impl Report<'_> {
    fn images_per_s(&self) -> f64 {
        self.rows as f64 / self.wall.as_secs_f64()
    }

    /// CPU seconds of daemon and client per 1,000 images, start-up included.
    fn cpu_s_per_1000(&self) -> f64 {
        (self.stats.cpu_ns + metrics::cpu_ns()) as f64 / 1e9 / (self.stats.rows.max(1) as f64 / 1000.0)
    }

    /// Mapped slots are counted in both processes' VmHWM; the ring is taken off once.
    fn peak_bytes(&self) -> u64 {
        let ring = self.feed.attached().budget.get("ring").copied().unwrap_or(0);
        (self.stats.peak_rss_bytes + metrics::peak_rss_bytes()).saturating_sub(ring)
    }

    fn reads_per_submission(&self) -> f64 {
        self.stats.reads as f64 / self.stats.submissions.max(1) as f64
    }

    fn data_wait(&self) -> f64 {
        let counters = self.feed.counters();
        counters.data_wait_ns as f64 / counters.iteration_ns.max(1) as f64
    }

    fn print(&self) {
        let mib = |bytes: u64| format!("{:.0} MiB", bytes as f64 / f64::from(1 << 20));
        let (attached, stats) = (self.feed.attached(), self.stats);
        // Tokens and tables of numbers are not images.
        let has_images = attached.layout.fields.first().is_some_and(|field| field.content == Content::Image);
        let unit = if has_images { "image" } else { "record" };
        let own: Vec<_> = attached
            .layout
            .fields
            .iter()
            .filter_map(|field| {
                let (name, shape, dtype) = (&field.name, &field.shape, field.dtype);
                Some(match field.content {
                    Content::Lengths => return None,
                    Content::Text => format!("{name} text up to {} bytes", shape[0]),
                    Content::Json => format!("{name} JSON up to {} bytes", shape[0]),
                    Content::Bytes => format!("{name} up to {} bytes", shape[0]),
                    Content::Ragged => format!("{name} up to {} rows of {:?} {dtype}", shape[0], &shape[1..]),
                    Content::Dense | Content::Image | Content::Mask | Content::Geometry | Content::Erased => {
                        format!("{name} {shape:?} {dtype}")
                    }
                })
            })
            .collect();
        match (attached.batching.len, &attached.stream) {
            (Some(samples), _) => {
                let classes = match attached.classes.len() as u64 {
                    1 => "1 class".into(),
                    classes => format!("{} classes", grouped(classes)),
                };
                say!("source       {}, {classes}", counted(samples, "sample"));
            }
            (None, Some(kind)) if kind.bounded => say!("source       a range of a stream"),
            (None, _) => say!("source       an endless stream"),
        }
        say!("batch        {} x {}, {} slots", attached.batching.batch_size, own.join(", "), attached.slots);
        say!(
            "throughput   {} {unit}s/s over {:.1} s ({})",
            rounded(self.images_per_s()),
            self.wall.as_secs_f64(),
            counted(self.rows, unit)
        );
        if let Some(stream) = &stats.stream {
            say!("stream       {}", stream_text(stream, self.wall));
        }
        say!("cpu          {:.3} s per 1,000 {unit}s, daemon and client", self.cpu_s_per_1000());
        say!("first batch  {:.0} ms after start", self.first_batch.as_secs_f64() * 1e3);
        // A stream's records come from memory; its own line says how they got there.
        if stats.stream.is_none() {
            say!(
                "reading      {}: {:.1} reads per submission, {} in {}, at most {} in flight",
                stats.backend,
                self.reads_per_submission(),
                mib(stats.read_bytes),
                counted(stats.reads, "read"),
                mib(stats.peak_in_flight_bytes)
            );
        }
        let total = attached.budget.get("total").copied().unwrap_or(0);
        let lines: Vec<_> = attached
            .budget
            .iter()
            .filter(|(owner, _)| *owner != "total")
            .map(|(owner, &bytes)| format!("{owner} {}", mib(bytes)))
            .collect();
        say!(
            "memory       peak {} of daemon and client; budget {} = {}",
            mib(self.peak_bytes()),
            mib(total),
            lines.join(" + ")
        );
        if stats.substituted + stats.dropped > 0 {
            say!("bad records  {} rows substituted, {} dropped", stats.substituted, stats.dropped);
        }
        say!("data wait    {:.1}% of the loop's time", 100.0 * self.data_wait());
        say!("bottleneck   {}", stats.verdict.trim_start_matches("Bottleneck: "));
    }

    fn print_json(&self) {
        let report = serde_json::json!({
            "images_per_s": self.images_per_s(),
            "cpu_s_per_1000": self.cpu_s_per_1000(),
            "first_batch_s": self.first_batch.as_secs_f64(),
            "images": self.rows,
            "wall_s": self.wall.as_secs_f64(),
            "reads_per_submission": self.reads_per_submission(),
            "data_wait": self.data_wait(),
            "peak_bytes": self.peak_bytes(),
            "budget": self.feed.attached().budget,
            "stats": self.stats,
        });
        say!("{report}");
    }
}

/// Where a stream stands: "window 12 of 16 partitions, 120,000 records received (2,400/s), 35 behind the end".
fn stream_text(stream: &StreamCounters, wall: Duration) -> String {
    let StreamCounters { window, records, partitions, lag, .. } = stream;
    let behind = match lag {
        Some(0) => "at its end".to_string(),
        Some(lag) => format!("{} behind the end", grouped(*lag)),
        None => "its end is not known yet".to_string(),
    };
    let rate = *records as f64 / wall.as_secs_f64();
    format!(
        "window {window} of {}, {} received ({}/s), {behind}",
        counted(*partitions, "partition"),
        counted(*records, "record"),
        rounded(rate)
    )
}
