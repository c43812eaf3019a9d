//! Opening a source on the command line: a bar while it takes long, and an end to it on ctrl-C.

use std::io::IsTerminal;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use fuelrail_connectors::{IndexedSource, Opening, SourceConfig};

use super::bars::Bar;
use super::{Failure, signals, spec};
use crate::client::ClientError;
use crate::protocol::Progress;

/// Nothing is shown before this: most sources are open by then.
const PATIENCE: Duration = Duration::from_secs(1);

/// Time between lines where there is no terminal to draw a bar on.
const BETWEEN: Duration = Duration::from_secs(10);

/// The poll interval of an opening.
const LOOK: Duration = Duration::from_millis(50);

/// After ctrl-C an opening gets this long to delete what it has half written; a disk that hangs is not waited for.
const TIDYING: Duration = Duration::from_millis(800);

/// Opens a source on a thread of its own, and shows how far that has come. Ends early, with
/// [`ClientError::Interrupted`], after ctrl-C.
pub(super) fn open(config: SourceConfig) -> Result<Arc<dyn IndexedSource>, Failure> {
    watched(move |opening| fuelrail_connectors::open_watched(&config, opening))
}

/// As [`open`], of anything that reports to an [`Opening`].
pub(super) fn watched<T, E>(
    open: impl FnOnce(&Opening) -> Result<T, E> + Send + 'static,
) -> Result<T, Failure>
where
    T: Send + 'static,
    E: Into<Failure> + Send + 'static,
{
    let opening = Opening::new();
    let (tell, told) = mpsc::channel();
    let watched = opening.clone();
    std::thread::Builder::new().name("fuelrail-open".into()).spawn(move || {
        // The receiver goes first only after ctrl-C.
        let _ = tell.send(open(&watched));
    })?;
    let mut display = Display::new();
    loop {
        match told.recv_timeout(LOOK) {
            Ok(opened) => return opened.map_err(Into::into),
            Err(mpsc::RecvTimeoutError::Disconnected) => {
                return Err("opening the source panicked; this is a bug in fuelrail".into());
            }
            Err(mpsc::RecvTimeoutError::Timeout) => {}
        }
        if signals::interrupted() {
            opening.cancel();
            let _ = told.recv_timeout(TIDYING);
            return Err(ClientError::Interrupted.into());
        }
        if let Some(progress) = opening.progress() {
            display.show(&progress.into());
        }
    }
}

/// What is shown of an opening: a bar on a terminal, now and then a line elsewhere.
pub(super) struct Display {
    bar: Option<(String, Bar)>,
    begun: Instant,
    said: Instant,
}

impl Display {
    pub fn new() -> Self {
        let now = Instant::now();
        Self { bar: None, begun: now, said: now }
    }

    pub fn show(&mut self, progress: &Progress) {
        let is_due = self.begun.elapsed() >= PATIENCE;
        if !std::io::stderr().is_terminal() {
            if is_due && self.said.elapsed() >= BETWEEN {
                self.said = Instant::now();
                eprintln!("{progress}");
            }
            return;
        }
        if self.bar.as_ref().is_none_or(|(what, _)| *what != progress.what) {
            self.bar = None;
            // It counts from now on, so that its rate is right when it is first drawn.
            self.bar = Some((progress.what.clone(), bar(progress)));
        }
        if let Some((_, bar)) = &self.bar {
            bar.set_position(progress.done);
        }
        if is_due && self.bar.as_ref().is_some_and(|(_, bar)| bar.is_hidden()) {
            self.bar = self.bar.take().map(|(what, bar)| (what, bar.shown()));
        }
    }

    /// Shows a line of the log above it, unless it is about the daemon's inner life.
    pub fn log(&self, level: &str, text: &str) {
        match &self.bar {
            Some((_, bar)) => bar.suspend(|| spec::show(level, text)),
            None => spec::show(level, text),
        }
    }
}

fn bar(progress: &Progress) -> Bar {
    let counts = match (progress.counted.as_str(), progress.total) {
        ("bytes", Some(_)) => "{wide_bar} {bytes} of {total_bytes}  {bytes_per_sec}  {eta} left",
        ("bytes", None) => "{spinner} {bytes}  {bytes_per_sec}",
        (_, Some(_)) => "{wide_bar} {human_pos} of {human_len} {msg}  {rate}  {eta} left",
        (_, None) => "{spinner} {human_pos} {msg}  {rate}",
    };
    let bar = Bar::hidden(progress.total, &format!("{{prefix}} {counts}"));
    bar.set_prefix(progress.what.clone());
    bar.set_message(progress.counted.clone());
    bar
}
