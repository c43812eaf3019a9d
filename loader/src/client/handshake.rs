//! The first messages of a connection, before there is a feed: greeting, attaching, and what the daemon announces.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::net::RecvFlags;

use super::lease::Link;
use super::private::Private;
use super::{ClientError, INTERRUPT_PERIOD, Interrupt, News, Watch};
use crate::protocol::{Attached, Decoder, Reply, Request};

/// The first two messages of a connection, before there is a feed.
pub(super) struct Handshake {
    pub link: Link,
    pub private: Option<Arc<Private>>,
    pub decoder: Decoder,
    pub daemon_pid: u32,
}

impl Handshake {
    pub fn send(&self, request: &Request) -> Result<(), ClientError> {
        self.link.send(request).map_err(|error| self.died(&error.to_string()))
    }

    /// The answer to what was sent last. As long as there is progress, time does not run out.
    pub fn reply(
        &mut self,
        timeout: Option<Duration>,
        interrupt: Interrupt<'_>,
        watch: Watch<'_>,
    ) -> Result<Reply, ClientError> {
        let (mut asked, mut last) = (Instant::now(), None);
        loop {
            let next = self.decoder.message();
            // A line that was written before a message is here when the message is, and is told first.
            self.link.lines.take_in();
            self.link.lines.heard(watch);
            match next.map_err(|error| ClientError::protocol(error.to_string()))? {
                Some(Reply::Log { level, text }) => self.link.lines.push(level, text),
                Some(Reply::Progress(now)) => {
                    asked = Instant::now();
                    watch(News::Progress(&now));
                    last = Some(now.to_string());
                }
                Some(Reply::Refused { kind, message }) => return Err(ClientError::Daemon { kind, message }),
                Some(reply) => return Ok(reply),
                None => {
                    if timeout.is_some_and(|timeout| asked.elapsed() >= timeout) {
                        return Err(ClientError::Timeout(
                            match &last {
                                None => "the daemon did not begin to open the source within the timeout: a disk, file system or \
                                     server that does not answer, or a machine that is short of memory or processors (raise \
                                     timeout= to wait longer)"
                                    .into(),
                                Some(last) => format!(
                                    "opening the source did not get on within the timeout, it stands at \"{last}\": a disk, file \
                                     system or server that does not answer (what is tried again is in the log), or a machine that \
                                     is short of memory or processors (raise timeout= to wait longer)"
                                ),
                            },
                        ));
                    }
                    if interrupt() {
                        return Err(ClientError::Interrupted);
                    }
                    self.link.wait(INTERRUPT_PERIOD);
                    match self.decoder.receive(self.link.socket.as_fd(), RecvFlags::DONTWAIT) {
                        Ok(0) => return Err(self.ended("it closed the connection", watch)),
                        Err(error) if error.kind() != io::ErrorKind::WouldBlock => {
                            return Err(self.ended(&error.to_string(), watch));
                        }
                        _ => {}
                    }
                }
            }
        }
    }

    /// How it ended, after its last words.
    fn ended(&self, how: &str, watch: Watch<'_>) -> ClientError {
        let died = self.died(how);
        self.link.lines.take_in();
        self.link.lines.heard(watch);
        died
    }

    fn died(&self, how: &str) -> ClientError {
        let obituary = self.private.as_ref().and_then(|private| private.wait_for_obituary());
        ClientError::Died(format!("the fuelrail daemon is gone: {}", obituary.as_deref().unwrap_or(how)))
    }
}

/// What the daemon announces is checked before any address is computed from it.
pub(super) fn check(attached: &Attached) -> Result<(), ClientError> {
    let Attached { layout, slots, batching, .. } = attached;
    if batching.batch_size == 0
        || batching.world_size == 0
        || !layout.fits(batching.most_rows())
        || u64::from(*slots).checked_mul(layout.slot_bytes).is_none()
    {
        return Err(ClientError::protocol("the daemon announced a batch layout that does not fit its slots"));
    }
    Ok(())
}
