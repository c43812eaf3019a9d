//! Waiting for what a conversation brings: the one loop, whoever waits and whatever for.
//!
//! ```text
//!  until ──▶ step: take in what has arrived ──▶ tell the log's lines ──▶ step: take what is wanted ──▶ found
//!    ▲                                                                            │ not yet
//!    └── asked to stop? ◀── wait for the socket, with nothing held ◀── time left? ┘
//! ```
//!
//! Promises
//! - a step neither waits nor runs the caller's code, and between two steps nothing is held: whoever shares a feed
//!   behind a lock takes the lock for a step only;
//! - lines of the log are told before anything is taken, so one whose listener fails costs the caller no batch;
//! - a time-out counts the time spent waiting, not what listeners and signal handlers do meanwhile.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::lease::Link;
use super::{ClientError, Interrupt, Watch};

/// How often a waiting client looks whether it is to stop.
pub const INTERRUPT_PERIOD: Duration = Duration::from_millis(100);

/// What is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// The daemon's next word while it opens the source.
    Opening,
    /// The next batch.
    Batch,
    /// The answer to a question.
    Answer,
}

/// What steps are taken of.
pub trait Steps {
    /// Takes in what has arrived. Does not wait, and hands out nothing.
    ///
    /// # Errors
    /// When it cannot be used, or the daemon says what it never should.
    fn look(&mut self) -> Result<(), ClientError>;

    /// A caller has waited this long.
    fn waited(&mut self, wanted: Wanted, time: Duration);

    /// The error of a wait that took too long, with what is stuck.
    fn timed_out(&self, wanted: Wanted, timeout: Duration) -> ClientError;
}

/// Who waits: how a step is taken, and what is done between two of them.
pub trait Caller {
    /// What steps are taken of.
    type Of: Steps;
    /// How a call fails.
    type Error;

    /// Takes a step.
    ///
    /// # Errors
    /// Those of the step.
    fn step<T: Send>(
        &mut self,
        step: impl FnOnce(&mut Self::Of) -> Result<T, ClientError> + Send,
    ) -> Result<T, Self::Error>;

    /// Tells the lines of the daemon's log that have arrived.
    ///
    /// # Errors
    /// Those of whoever listens.
    fn tell(&mut self) -> Result<(), Self::Error>;

    /// Waits until something has arrived, but not longer than `patience`; how long that was.
    fn wait(&mut self, patience: Duration) -> Duration;

    /// Whether to go on waiting.
    ///
    /// # Errors
    /// When not.
    fn interrupted(&mut self) -> Result<(), Self::Error>;
}

/// Waits until `take` gives something.
///
/// # Errors
/// Those of its steps; of whoever listens to the log or interrupts; the time-out.
pub fn until<C: Caller, T: Send>(
    caller: &mut C,
    wanted: Wanted,
    timeout: Option<Duration>,
    mut take: impl FnMut(&mut C) -> Result<Option<T>, C::Error>,
) -> Result<T, C::Error> {
    let mut waited = Duration::ZERO;
    loop {
        let looked = caller.step(Steps::look);
        caller.tell()?;
        looked?;
        if let Some(found) = take(caller)? {
            return Ok(found);
        }
        if let Some(timeout) = timeout.filter(|&timeout| waited >= timeout) {
            return caller.step(|of| Err(of.timed_out(wanted, timeout)));
        }
        let time = caller.wait(timeout.map_or(Duration::MAX, |timeout| timeout - waited));
        waited += time;
        caller.step(|of| {
            of.waited(wanted, time);
            Ok(())
        })?;
        caller.interrupted()?;
    }
}

/// A way to wait for a feed's socket without the feed, which others may use meanwhile.
#[derive(Clone, Debug)]
pub struct Waiting(pub(super) Arc<Link>);

impl Waiting {
    /// Waits until something has arrived or `patience` is over; how long that was. A signal ends it early.
    pub fn wait(&self, patience: Duration) -> Duration {
        let began = Instant::now();
        self.0.wait(patience);
        began.elapsed()
    }

    /// Tells the lines of the daemon's log that have arrived, (level, text), each once and in order, with nothing held.
    /// While somebody is being told, nobody else is. After an error the rest waits for the next time.
    ///
    /// # Errors
    /// That of `tell`.
    pub fn tell<E>(&self, tell: impl FnMut(&str, &str) -> Result<(), E>) -> Result<(), E> {
        self.0.lines.tell(tell)
    }
}

/// A caller who shares what it waits for with nobody.
pub(super) struct Alone<'a, S> {
    pub of: &'a mut S,
    pub waiting: Waiting,
    pub interrupt: Interrupt<'a>,
    pub watch: Watch<'a>,
}

impl<S: Steps> Caller for Alone<'_, S> {
    type Of = S;
    type Error = ClientError;

    fn step<T: Send>(
        &mut self,
        step: impl FnOnce(&mut S) -> Result<T, ClientError> + Send,
    ) -> Result<T, ClientError> {
        step(self.of)
    }

    fn tell(&mut self) -> Result<(), ClientError> {
        self.waiting.0.lines.heard(self.watch);
        Ok(())
    }

    fn wait(&mut self, patience: Duration) -> Duration {
        self.waiting.wait(patience.min(INTERRUPT_PERIOD))
    }

    fn interrupted(&mut self) -> Result<(), ClientError> {
        if (self.interrupt)() { Err(ClientError::Interrupted) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Has what is wanted after so many looks, and keeps what happened.
    struct Told {
        log: Vec<&'static str>,
        looks: usize,
    }

    impl Steps for Told {
        fn look(&mut self) -> Result<(), ClientError> {
            self.log.push("look");
            self.looks = self.looks.saturating_sub(1);
            Ok(())
        }

        fn waited(&mut self, _: Wanted, time: Duration) {
            assert!(time <= Duration::from_secs(1));
            self.log.push("waited");
        }

        fn timed_out(&self, _: Wanted, timeout: Duration) -> ClientError {
            ClientError::Timeout(format!("{timeout:?}"))
        }
    }

    /// Whose waits take a second each, or what is left.
    struct Someone {
        of: Told,
        interrupts: bool,
        listens: bool,
    }

    impl Caller for Someone {
        type Of = Told;
        type Error = String;

        fn step<T: Send>(
            &mut self,
            step: impl FnOnce(&mut Told) -> Result<T, ClientError> + Send,
        ) -> Result<T, String> {
            step(&mut self.of).map_err(|error| error.to_string())
        }

        fn tell(&mut self) -> Result<(), String> {
            self.of.log.push("tell");
            if self.listens { Ok(()) } else { Err("raised".into()) }
        }

        fn wait(&mut self, patience: Duration) -> Duration {
            patience.min(Duration::from_secs(1))
        }

        fn interrupted(&mut self) -> Result<(), String> {
            if self.interrupts { Err("interrupted".into()) } else { Ok(()) }
        }
    }

    fn someone(looks: usize) -> Someone {
        Someone { of: Told { log: Vec::new(), looks }, interrupts: false, listens: true }
    }

    fn wait(someone: &mut Someone, timeout: Option<Duration>) -> Result<(), String> {
        until(someone, Wanted::Batch, timeout, |someone| {
            someone.step(|of| {
                of.log.push("take");
                Ok((of.looks == 0).then_some(()))
            })
        })
    }

    #[test]
    fn what_is_here_is_taken_without_a_wait_after_the_lines_are_told() {
        let mut here = someone(1);
        assert_eq!(wait(&mut here, Some(Duration::ZERO)), Ok(()));
        assert_eq!(here.of.log, ["look", "tell", "take"]);
    }

    #[test]
    fn a_wait_goes_on_until_the_time_is_over_and_not_longer() {
        assert_eq!(wait(&mut someone(50), None), Ok(()));
        let mut late = someone(50);
        assert_eq!(wait(&mut late, Some(Duration::from_millis(2500))), Err("2.5s".into()));
        assert_eq!(late.of.log.iter().filter(|&&what| what == "waited").count(), 3);
        assert_eq!(late.of.log.last(), Some(&"take"), "it looks once more when time is over");
    }

    #[test]
    fn who_stops_or_fails_to_listen_has_taken_nothing() {
        let mut stopped = Someone { interrupts: true, ..someone(2) };
        assert_eq!(wait(&mut stopped, None), Err("interrupted".into()));
        assert_eq!(stopped.of.log, ["look", "tell", "take", "waited"]);
        let mut deaf = Someone { listens: false, ..someone(1) };
        assert_eq!(wait(&mut deaf, None), Err("raised".into()));
        assert_eq!(deaf.of.log, ["look", "tell"]);
    }
}
