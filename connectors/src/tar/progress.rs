//! How far a long look at many shards has come, for people: a bar on a terminal, a line in the log now and then elsewhere.

use std::collections::HashMap;
use std::io::IsTerminal;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use crate::workers::lock;

/// Nothing is shown before this: most data sets are done by then.
const PATIENCE: Duration = Duration::from_secs(1);

/// Time between lines in the log.
const BETWEEN: Duration = Duration::from_secs(10);

/// Bytes done of bytes to do. Shared by threads.
pub(super) struct Progress {
    what: &'static str,
    total: u64,
    began: Instant,
    state: Mutex<State>,
    is_silent: bool,
}

struct State {
    done: u64,
    /// How far each shard has been read.
    reached: HashMap<usize, u64>,
    bar: Option<ProgressBar>,
    said: Instant,
}

impl Progress {
    pub fn new(what: &'static str, total: u64) -> Self {
        let now = Instant::now();
        let state = State { done: 0, reached: HashMap::new(), bar: None, said: now };
        Self { what, total, began: now, state: Mutex::new(state), is_silent: false }
    }

    /// One that shows nothing.
    pub fn silent() -> Self {
        let mut progress = Self::new("", 0);
        progress.is_silent = true;
        progress
    }

    /// So many bytes more are done.
    pub fn add(&self, bytes: u64) {
        if !self.is_silent {
            let mut state = lock(&self.state);
            state.done += bytes;
            self.show(&mut state);
        }
    }

    /// A shard has been read up to this byte.
    pub fn reached(&self, shard: usize, byte: u64) {
        if !self.is_silent {
            let mut state = lock(&self.state);
            let before = state.reached.insert(shard, byte).unwrap_or_default();
            state.done += byte.saturating_sub(before);
            self.show(&mut state);
        }
    }

    fn show(&self, state: &mut State) {
        if self.began.elapsed() < PATIENCE {
            return;
        }
        if std::io::stderr().is_terminal() {
            let bar = state.bar.get_or_insert_with(|| {
                let style = ProgressStyle::with_template(
                    "{prefix} [{bar:30}] {bytes} of {total_bytes}, {bytes_per_sec}, {eta} left",
                );
                let style = style.unwrap_or_else(|_| ProgressStyle::default_bar());
                ProgressBar::new(self.total).with_style(style).with_prefix(self.what)
            });
            bar.set_position(state.done);
        } else if state.said.elapsed() >= BETWEEN {
            state.said = Instant::now();
            let gigabytes = |bytes: u64| bytes as f64 / 1e9;
            tracing::info!("{}: {:.1} of {:.1} GB", self.what, gigabytes(state.done), gigabytes(self.total));
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = lock(&self.state).bar.take() {
            bar.finish_and_clear();
        }
    }
}
