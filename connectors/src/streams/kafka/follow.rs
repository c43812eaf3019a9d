//! A stream being read: its thread, and what its owner may ask of it.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::JoinHandle;

use super::Kafka;
use super::place::{Range, Ranges};
use super::reading::{Reading, Shared};
use crate::workers::panic_text;
use crate::{Follower, Place, Sink, SourceError, StreamStats};

/// A stream being read.
pub(super) struct Following {
    shared: Arc<Shared>,
    /// Whether its epochs end.
    bounded: bool,
    thread: Option<JoinHandle<()>>,
}

impl Following {
    pub(super) fn start(
        opened: Arc<Kafka>,
        from: Place,
        ranges: Ranges,
        again: bool,
        sink: Arc<dyn Sink>,
    ) -> Result<Self, SourceError> {
        let stats = StreamStats {
            window: from.window,
            partitions: ranges.partitions.len() as u64,
            ..StreamStats::default()
        };
        let bounded = opened.core.bounded;
        let shared = Arc::new(Shared::new(stats));
        let mut reading = Reading::new(opened, from, ranges, shared.clone(), sink.clone())?;
        let thread = std::thread::Builder::new()
            .name("kafka".into())
            .spawn(move || match catch_unwind(AssertUnwindSafe(|| reading.run(again))) {
                Ok(Ok(())) => {}
                Ok(Err(error)) => sink.failed(error),
                Err(panic) => sink.failed(SourceError::data(format!(
                    "reading {} panicked ({}); this is a bug, please report it",
                    reading.name(),
                    panic_text(&*panic)
                ))),
            })
            .map_err(|error| {
                SourceError::backend(format!("could not start a thread to read Kafka: {error}"))
            })?;
        Ok(Self { shared, bounded, thread: Some(thread) })
    }
}

impl Follower for Following {
    fn saved(&self, place: &Place, position: u64) {
        let ranges = match Ranges::read(place, self.bounded) {
            Ok(ranges) => ranges,
            Err(error) => {
                return tracing::warn!("Kafka: could not commit the offsets of a checkpoint: {error}");
            }
        };
        let offset = |range: &Range| match range.bounds {
            // All of the range was read in the epoch before.
            Some((_, hi)) if place.epoch > 0 => hi,
            _ if position >= place.end() => range.to,
            _ => range.from,
        };
        let offsets = ranges.partitions.iter().cloned().zip(ranges.ranges.iter().map(offset)).collect();
        self.shared.save(offsets);
    }

    fn stats(&self) -> StreamStats {
        self.shared.stats().clone()
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        self.shared.stop();
        if let Some(thread) = self.thread.take() {
            // It has told the sink of a panic.
            let _ = thread.join();
        }
    }
}
