//! The fuelrail daemon and its clients.
//!
//! ```text
//!            one feed
//!  source ──▶ reader ──▶ workers ──▶ slot ──▶ ready ──▶ client lease ──▶ release
//!            (io_uring)  (rayon)    (ring)   (socket)                      │
//!               ▲                     ▲                                    │
//!               └── coordinator ──────┴────────────────────────────────────┘
//! ```
//!
//! One *coordinator* thread per feed owns all state: which batches are under construction, which slots are free, how
//! many encoded bytes are in flight. It walks the order ([`order`], pure), opens a batch whenever a slot is free, asks
//! the reader for its rows as far as the byte budget reaches, and hands finished batches over in order. Who waits for
//! whom:
//!
//! - the coordinator waits for events only (a finished row, a released slot, a command);
//! - the reader waits for requests and for the disk; a finished read goes straight to a worker;
//! - workers wait for bytes; each writes its row's final form into the slot the GPU copies from;
//! - the client waits for `ready`. When it does not come back for more, slots stay taken, no batch is opened, nothing
//!   is read: back-pressure is the absence of free slots.
//!
//! Several batches are under construction at once, so one slow record delays its own batch's hand-over, not the work on
//! the next ones; delivery is in order all the same.
//!
//! Features: `client` is what a training process links (protocol, mapping, tokens); `daemon` adds everything else.

pub mod layout;
mod memory;
pub mod order;
pub mod plan;
pub mod protocol;
pub mod ring;
pub mod token;

#[cfg(feature = "client")]
pub mod bagging;
#[cfg(feature = "client")]
pub mod client;

#[cfg(feature = "daemon")]
pub mod cli;
#[cfg(feature = "daemon")]
pub mod config;
#[cfg(feature = "daemon")]
pub mod engine;
#[cfg(feature = "daemon")]
pub mod fields;
#[cfg(feature = "daemon")]
pub mod log;
#[cfg(feature = "daemon")]
pub mod metrics;
#[cfg(feature = "daemon")]
mod ordering;
#[cfg(feature = "daemon")]
pub mod peer;
#[cfg(feature = "daemon")]
mod permission;
#[cfg(feature = "daemon")]
pub mod pipeline;
#[cfg(feature = "daemon")]
pub mod quarantine;
#[cfg(feature = "daemon")]
pub mod refusal;
#[cfg(feature = "daemon")]
pub mod server;
#[cfg(feature = "daemon")]
mod sharing;
