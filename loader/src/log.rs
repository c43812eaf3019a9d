//! Where the daemon's log lines go: a standalone daemon writes to stderr, a private one to the log of its client.

use std::fmt::Write as _;
use std::io::IsTerminal as _;
use std::sync::{Mutex, PoisonError};

use fuelrail_connectors::{RECOGNISED, printable};
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, fmt};

use crate::protocol::Reply;

/// How the line about a feed's threads and memory begins.
pub const FEED: &str = "feed of rank";

/// Whether a command shows a line of its daemon's log: all that `FUELRAIL_LOG` asks for, else what is about the data.
pub fn is_for_people(text: &str) -> bool {
    !text.starts_with(FEED) || std::env::var_os("FUELRAIL_LOG").is_some()
}

/// Takes log lines to one client; false when that client is gone.
pub type Sink = Box<dyn Fn(Reply) -> bool + Send>;

static SINKS: Mutex<Vec<Sink>> = Mutex::new(Vec::new());

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

/// Lines to the first client that is still there.
pub fn to_clients() {
    quiet_worker_panics();
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

/// Adds a client.
pub fn add_sink(sink: Sink) {
    SINKS.lock().unwrap_or_else(PoisonError::into_inner).push(sink);
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
        let reply =
            Reply::Log { level: level.into(), text: printable(&(text.message + &text.fields)).into_owned() };
        let mut sinks = SINKS.lock().unwrap_or_else(PoisonError::into_inner);
        while let Some(first) = sinks.first() {
            if first(reply.clone()) {
                return;
            }
            drop(sinks.remove(0));
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
