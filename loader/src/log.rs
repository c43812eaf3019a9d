//! Where the daemon's log lines go: a standalone daemon writes to stderr, a private one to a socket that its client
//! reads, that of a node to one of its clients: of the process with the lowest number, the feed that spoke last.

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::io::IsTerminal as _;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use fuelrail_connectors::{RECOGNISED, printable};
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, fmt};

use crate::protocol::{self, Reply};

/// How the line about a feed's threads and memory begins.
pub const FEED: &str = "feed of rank";

/// Whether a command shows a line of its daemon's log: all that `FUELRAIL_LOG` asks for, else what is about the data.
pub fn is_for_people(text: &str) -> bool {
    !text.starts_with(FEED) || std::env::var_os("FUELRAIL_LOG").is_some()
}

/// Bytes that wait for a client which does not read; further lines are counted.
const MAX_UNSENT: usize = 1 << 20;

/// The way to the client. Lines are sent by whoever logs them, so that each is there before anything that is said after
/// it.
struct Channel {
    way: Way,
    unsent: VecDeque<u8>,
    missed: u64,
}

enum Way {
    Socket(OwnedFd),
    /// Of several clients, the one that spoke last at the end.
    Listeners(Vec<(u64, Listener)>),
}

impl Way {
    /// How much of these frames is on its way now.
    fn take(&self, frames: &[u8]) -> Option<usize> {
        match self {
            Self::Socket(socket) => protocol::send(socket.as_fd(), frames, None).ok(),
            Self::Listeners(listeners) => {
                let (_, first) = listeners.iter().rev().min_by_key(|(_, listener)| listener.process)?;
                (first.hear)(frames.to_vec()).then_some(frames.len())
            }
        }
    }
}

/// A client that hears the log.
struct Listener {
    /// Its process's number.
    process: u64,
    /// Sends frames to it, unless too many wait already.
    hear: Box<dyn Fn(Vec<u8>) -> bool + Send>,
}

/// A client's part of the log; it ends when this is dropped.
pub struct Listening(u64);

impl Listening {
    /// From now on the client of this process may hear the log.
    pub fn new(process: u64, hear: impl Fn(Vec<u8>) -> bool + Send + 'static) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let own = Self(NEXT.fetch_add(1, Ordering::Relaxed));
        own.among(|listeners| listeners.push((own.0, Listener { process, hear: Box::new(hear) })));
        own
    }

    /// It has just spoken, so it will soon listen.
    pub fn spoke(&self) {
        self.among(|listeners| {
            let at = listeners.iter().position(|(id, _)| *id == self.0);
            at.into_iter().for_each(|at| listeners[at..].rotate_left(1));
        });
    }

    fn among(&self, change: impl FnOnce(&mut Vec<(u64, Listener)>)) {
        let mut channel = CHANNEL.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(Channel { way: Way::Listeners(listeners), .. }) = channel.as_mut() {
            change(listeners);
        }
        channel.iter_mut().for_each(Channel::flush);
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.among(|listeners| listeners.retain(|(id, _)| *id != self.0));
    }
}

static CHANNEL: Mutex<Option<Channel>> = Mutex::new(None);

impl Channel {
    fn say(&mut self, level: &str, text: String) {
        let frame = protocol::encode(&Reply::Log { level: level.into(), text });
        if self.unsent.len() + frame.len() > MAX_UNSENT {
            self.missed += 1;
        } else {
            self.unsent.extend(frame);
            self.flush();
        }
    }

    /// Sends what the socket takes.
    fn flush(&mut self) {
        while !self.unsent.is_empty() {
            // A client that is gone ends the daemon by that; its log is nobody's.
            let Some(sent) = self.way.take(self.unsent.make_contiguous()) else { return };
            self.unsent.drain(..sent);
        }
        if self.missed > 0 {
            let text = format!(
                "{} lines of the log were dropped: nobody read them",
                std::mem::take(&mut self.missed)
            );
            self.say("warn", text);
        }
    }
}

/// Sends what a client that had not read was not sent yet.
pub fn flush() {
    if let Some(channel) = CHANNEL.lock().unwrap_or_else(PoisonError::into_inner).as_mut() {
        channel.flush();
    }
}

/// Lines to stderr, filtered by `FUELRAIL_LOG` (default "info").
pub fn to_stderr() {
    quiet_worker_panics();
    let filter = EnvFilter::try_from_env("FUELRAIL_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let _ = tracing_subscriber::registry()
        .with(filter)
        .with(
            fmt::layer()
                .with_writer(std::io::stderr)
                .with_ansi(is_coloured())
                .with_target(false)
                .fmt_fields(fmt::format::debug_fn(write_field)),
        )
        .try_init();
}

/// Warnings and errors to stderr, for commands, and what was recognised: what a person should know about the source.
pub fn warnings_to_stderr() {
    let filter = EnvFilter::try_from_env("FUELRAIL_LOG")
        .unwrap_or_else(|_| EnvFilter::new(format!("warn,{RECOGNISED}=info")));
    let lines = fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(is_coloured())
        .with_target(false)
        .without_time()
        .fmt_fields(fmt::format::debug_fn(write_field));
    let _ = tracing_subscriber::registry().with(filter).with(lines).try_init();
}

/// One field of a line. Names of files in it are shown so that no terminal or log obeys them.
fn write_field(
    writer: &mut fmt::format::Writer<'_>,
    field: &Field,
    value: &dyn std::fmt::Debug,
) -> std::fmt::Result {
    let value = format!("{value:?}");
    match field.name() {
        "message" => write!(writer, "{}", printable(&value)),
        name => write!(writer, " {name}={}", printable(&value)),
    }
}

/// Colours are for a person at a terminal who has not refused them (<https://no-color.org>).
fn is_coloured() -> bool {
    let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let can_show = std::env::var_os("TERM").is_none_or(|terminal| terminal != "dumb");
    !refused && can_show && std::io::stderr().is_terminal()
}

/// Lines to the client at the other end of a socket, which is made non-blocking.
pub fn to_client(socket: OwnedFd) {
    quiet_worker_panics();
    // What is no socket takes no line.
    let _ = rustix::io::ioctl_fionbio(&socket, true);
    to(Way::Socket(socket));
}

/// Lines to the clients that are [`Listening`], each to one of them; before there is one they wait.
pub fn to_listeners() {
    quiet_worker_panics();
    to(Way::Listeners(Vec::new()));
}

fn to(way: Way) {
    let channel = Channel { way, unsent: VecDeque::new(), missed: 0 };
    *CHANNEL.lock().unwrap_or_else(PoisonError::into_inner) = Some(channel);
    let filter = EnvFilter::try_from_env("FUELRAIL_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let _ = tracing_subscriber::registry().with(filter).with(ClientLayer).try_init();
}

/// A panic while a record is decoded is caught and reported with the record's key; its text is for whoever debugs a
/// decoder, not for the trainer's terminal. Any other panic is a bug of ours and is printed.
fn quiet_worker_panics() {
    let print = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        let worker = std::thread::current().name().is_some_and(|name| name.starts_with("fuelrail-work"));
        if worker { tracing::debug!("caught while decoding: {panic}") } else { print(panic) }
    }));
}

struct ClientLayer;

impl<S: Subscriber> Layer<S> for ClientLayer {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let level = match *event.metadata().level() {
            Level::ERROR => "error",
            Level::WARN => "warn",
            Level::INFO => "info",
            Level::DEBUG | Level::TRACE => "debug",
        };
        let mut text = Text::default();
        event.record(&mut text);
        let text = printable(&(text.message + &text.fields)).into_owned();
        if let Some(channel) = CHANNEL.lock().unwrap_or_else(PoisonError::into_inner).as_mut() {
            channel.say(level, text);
        }
    }
}

#[derive(Default)]
struct Text {
    message: String,
    fields: String,
}

impl Visit for Text {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        let _ = if field.name() == "message" {
            write!(self.message, "{value:?}")
        } else {
            write!(self.fields, " {}={value:?}", field.name())
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[test]
    fn a_line_goes_to_one_listener_of_the_lowest_process_the_one_that_spoke_last() {
        let heard: Arc<Mutex<Vec<&str>>> = Arc::default();
        let listener = |process, name, takes| {
            let heard = heard.clone();
            let hear = move |_| {
                if takes {
                    heard.lock().unwrap().push(name);
                }
                takes
            };
            (process, Listener { process, hear: Box::new(hear) })
        };
        let heard_by = |listeners| {
            let taken = Way::Listeners(listeners).take(b"line");
            (taken, std::mem::take(&mut *heard.lock().unwrap()))
        };
        let three = vec![listener(1, "c", true), listener(0, "a", true), listener(0, "b", true)];
        assert_eq!(heard_by(three), (Some(4), vec!["b"]));
        assert_eq!(heard_by(vec![listener(2, "d", false)]), (None, vec![]), "it waits for one that reads");
        assert_eq!(heard_by(vec![]), (None, vec![]));
    }
}
