//! Lines of a daemon's log that have arrived and that nobody has been told yet.
//!
//! A private daemon writes its log to a socket that all loaders of a process share: whichever of them waits tells the
//! lines, whatever they are about. They are told one after the other, in the order they came, with nothing held: who
//! listens may call any method, raise, or take its time. Meanwhile others only add to the queue, so a line is never
//! told twice nor overtaken.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::net::RecvFlags;

use super::{News, Watch};
use crate::protocol::{Decoder, Reply};

/// Lines that are kept while whoever is told takes its time; further ones are counted.
const MAX_LINES: usize = 1000;

#[derive(Debug)]
pub(super) struct Lines {
    pid: u32,
    /// Where a private daemon's log arrives.
    socket: Option<UnixStream>,
    /// The other end of that is gone.
    ended: AtomicBool,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    decoder: Decoder,
    queue: VecDeque<(String, String)>,
    missed: u64,
    /// Somebody is being told, and will be told what else comes.
    telling: bool,
}

impl State {
    fn push(&mut self, level: String, text: String) {
        if self.queue.len() < MAX_LINES {
            self.queue.push_back((level, text));
        } else {
            self.missed += 1;
        }
    }

    /// The next line; without one the telling is over, so that a line which comes after this finds nobody being told.
    fn next(&mut self) -> Option<(String, String)> {
        let next = self.queue.pop_front().or_else(|| match std::mem::take(&mut self.missed) {
            0 => None,
            missed => Some(("warn".into(), format!("{missed} more lines of the daemon's log were not kept"))),
        });
        self.telling = next.is_some();
        next
    }
}

impl Lines {
    /// Those of one feed (`None`), or of a private daemon whose log arrives at a socket.
    pub fn new(socket: Option<UnixStream>) -> Self {
        Self { pid: std::process::id(), socket, ended: AtomicBool::new(false), state: Mutex::default() }
    }

    /// `None` in a forked child: the lines are the parent's, and so may the lock be.
    fn state(&self) -> Option<MutexGuard<'_, State>> {
        (self.pid == std::process::id()).then(|| self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// What to wait for.
    pub fn socket(&self) -> Option<&UnixStream> {
        self.socket.as_ref().filter(|_| !self.ended.load(Ordering::Relaxed))
    }

    /// A line that came another way.
    pub fn push(&self, level: String, text: String) {
        if let Some(mut state) = self.state() {
            state.push(level, text);
        }
    }

    /// Files every line that has arrived. Does not wait.
    pub fn take_in(&self) {
        let (Some(mut state), Some(socket)) = (self.state(), self.socket()) else { return };
        loop {
            while let Ok(Some(reply)) = state.decoder.message() {
                if let Reply::Log { level, text } = reply {
                    state.push(level, text);
                }
            }
            match state.decoder.receive(socket.as_fd(), RecvFlags::DONTWAIT) {
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return,
                Ok(0) | Err(_) => return self.ended.store(true, Ordering::Relaxed),
                Ok(_) => {}
            }
        }
    }

    /// Tells the lines that are here, and those that come meanwhile, unless somebody is being told already. After an
    /// error the rest waits for the next time.
    pub fn tell<E>(&self, mut tell: impl FnMut(&str, &str) -> Result<(), E>) -> Result<(), E> {
        let is_told = |mut state: MutexGuard<'_, State>| std::mem::replace(&mut state.telling, true);
        if self.state().is_none_or(is_told) {
            return Ok(());
        }
        let turn = Turn(self);
        while let Some((level, text)) = self.state().and_then(|mut state| state.next()) {
            tell(&level, &text)?;
        }
        std::mem::forget(turn);
        Ok(())
    }

    /// As [`tell`](Self::tell), where listening cannot fail.
    pub fn heard(&self, watch: Watch<'_>) {
        let told = self.tell(|level, text| {
            watch(News::Log { level, text });
            Ok::<(), Infallible>(())
        });
        let Ok(()) = told;
    }
}

/// Ends a telling that ends early: by an error, or a panic.
struct Turn<'a>(&'a Lines);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        if let Some(mut state) = self.0.state() {
            state.telling = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(texts: &[&str]) -> Lines {
        let lines = Lines::new(None);
        texts.iter().for_each(|text| lines.push("info".into(), (*text).into()));
        lines
    }

    fn told(lines: &Lines) -> Vec<String> {
        let mut told = Vec::new();
        let all = lines.tell(|_, text| {
            told.push(text.to_owned());
            Ok::<(), ()>(())
        });
        assert_eq!(all, Ok(()));
        told
    }

    #[test]
    fn what_comes_while_somebody_is_told_is_told_after_it() {
        let lines = lines(&["a", "b"]);
        let mut order = Vec::new();
        let all = lines.tell(|_, text| {
            if text == "a" {
                lines.push("info".into(), "c".into());
                assert!(told(&lines).is_empty(), "nothing overtakes");
            }
            order.push(text.to_owned());
            Ok::<(), ()>(())
        });
        assert_eq!((all, order), (Ok(()), vec!["a".to_owned(), "b".into(), "c".into()]));
        lines.push("info".into(), "d".into());
        assert_eq!(told(&lines), ["d"]);
    }

    #[test]
    fn a_listener_that_fails_has_heard_one_line_and_the_rest_waits() {
        let lines = lines(&["a", "b", "c"]);
        assert_eq!(lines.tell(|_, text| Err(text.to_owned())), Err("a".to_owned()));
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let _ = lines.tell(|_, _| -> Result<(), ()> { panic!("in a listener") });
        }));
        assert!(panicked.is_err());
        assert_eq!(told(&lines), ["c"]);
    }

    #[test]
    fn lines_that_nobody_takes_are_counted() {
        let texts: Vec<_> = (0..MAX_LINES + 3).map(|at| at.to_string()).collect();
        let lines = lines(&texts.iter().map(String::as_str).collect::<Vec<_>>());
        let told = told(&lines);
        assert_eq!(told.len(), MAX_LINES + 1);
        assert_eq!(told[MAX_LINES], "3 more lines of the daemon's log were not kept");
    }

    #[test]
    fn a_log_that_has_ended_is_not_waited_for_and_its_last_lines_are_told() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let lines = Lines::new(Some(ours));
        let line = Reply::Log { level: "warn".into(), text: "last words".into() };
        crate::protocol::send_all(&theirs, &line, None).unwrap();
        lines.take_in();
        assert!(lines.socket().is_some());
        drop(theirs);
        lines.take_in();
        assert!(lines.socket().is_none());
        assert_eq!(told(&lines), ["last words"]);
    }
}
