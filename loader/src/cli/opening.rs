//! Opening a source on the command line: a bar while it takes long, and an end to it on ctrl-C.

use std::io::IsTerminal;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use fuelrail_connectors::{IndexedSource, Opening, SourceConfig};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::{Failure, signals};
use crate::client::ClientError;
use crate::protocol::Progress;

/// Nothing is shown before this: most sources are open by then.
const PATIENCE: Duration = Duration::from_secs(1);

/// Time between lines where there is no terminal to draw a bar on.
const BETWEEN: Duration = Duration::from_secs(10);

/// Time between two looks at an opening.
const LOOK: Duration = Duration::from_millis(50);

/// After ctrl-C an opening gets this long to delete what it has half written; a disk that hangs is not waited for.
const TIDYING: Duration = Duration::from_millis(800);

/// Opens a source on a thread of its own, and shows how far that has come. Ends early, with [`ClientError::Interrupted`],
/// after ctrl-C.
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
    bar: Option<(String, ProgressBar)>,
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
            self.clear();
            // It counts from now on, so that its rate is right when it is first drawn.
            self.bar = Some((progress.what.clone(), bar(progress)));
        }
        if let Some((_, bar)) = &self.bar {
            if is_due && bar.is_hidden() {
                bar.set_draw_target(ProgressDrawTarget::stderr_with_hz(10));
            }
            bar.set_position(progress.done);
        }
    }

    /// Shows a line of the log above it.
    pub fn log(&self, level: &str, text: &str) {
        let show = || eprintln!("{level}: {text}");
        match &self.bar {
            Some((_, bar)) => bar.suspend(show),
            None => show(),
        }
    }

    fn clear(&mut self) {
        if let Some((_, bar)) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}

impl Drop for Display {
    fn drop(&mut self) {
        self.clear();
    }
}

fn bar(progress: &Progress) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(progress.total, ProgressDrawTarget::hidden());
    let counts = match (progress.counted.as_str(), progress.total) {
        ("bytes", Some(_)) => "{wide_bar} {bytes} of {total_bytes}  {bytes_per_sec}  {eta} left",
        ("bytes", None) => "{spinner} {bytes}  {bytes_per_sec}",
        (_, Some(_)) => "{wide_bar} {human_pos} of {human_len} {msg}  {per_sec}  {eta} left",
        (_, None) => "{spinner} {human_pos} {msg}  {per_sec}",
    };
    let style = ProgressStyle::with_template(&format!("{{prefix}} {counts}")).expect("a valid template");
    bar.with_style(style).with_prefix(progress.what.clone()).with_message(progress.counted.clone())
}
