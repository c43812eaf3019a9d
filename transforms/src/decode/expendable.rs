//! Work on a thread that a panic may cost: for a decoder whose panics cannot be caught, because they would have to pass
//! an
//! `extern "C"` function, where Rust ends the process.
//!
//! The panic hook runs before any unwinding. On such a thread it reports that the work has failed and then never
//! returns, so that the frame which would end the process is not reached. The thread sleeps until the process ends, and
//! what it held is lost: a few megabytes, for a bug that has not been seen yet. std's lock of the hook is held by it
//! too: nobody may set another hook later, and the daemon sets its own when it starts.

use std::cell::Cell;
use std::panic;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Once, mpsc};
use std::thread;

/// Threads that may be lost before a panic ends the process after all, which by then has lost too much memory.
const MOST_LOST: u32 = 64;

type Job = Box<dyn FnOnce() + Send>;

thread_local! {
    /// On a thread that asks: the one that works for it. It is kept, because a fresh one, with fresh memory, costs as
    /// much as a small picture; it ends with the thread that asks.
    static HELPER: Cell<Option<mpsc::Sender<Job>>> = const { Cell::new(None) };
    /// On a thread that works: what tells whoever asked that the work has failed.
    static FAILED: Cell<Option<Job>> = const { Cell::new(None) };
}

/// What `work` returns; `None` if it panicked.
///
/// # Errors
/// The system has no thread for it.
pub(super) fn run<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> std::io::Result<Option<T>> {
    let (sender, receiver) = mpsc::sync_channel(1);
    let job: Job = Box::new(move || {
        let failed = sender.clone();
        FAILED.set(Some(Box::new(move || {
            let _ = failed.send(None);
        })));
        let result = work();
        FAILED.set(None);
        let _ = sender.send(Some(result));
    });
    let helper = HELPER.take().map_or_else(start, Ok)?;
    // It takes jobs until it is lost, and then it is not kept.
    let _ = helper.send(job);
    let result = receiver.recv().ok().flatten();
    if result.is_some() {
        HELPER.set(Some(helper));
    }
    Ok(result)
}

fn start() -> std::io::Result<mpsc::Sender<Job>> {
    static HOOK: Once = Once::new();
    HOOK.call_once(install);
    let (helper, jobs) = mpsc::channel::<Job>();
    // The daemon's log knows by the beginning of the name that a panic here is a record's.
    thread::Builder::new()
        .name("fuelrail-work-expendable".into())
        .spawn(move || jobs.into_iter().for_each(|job| job()))?;
    Ok(helper)
}

fn install() {
    static LOST: AtomicU32 = AtomicU32::new(0);
    let before = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        before(info);
        let Ok(Some(failed)) = FAILED.try_with(Cell::take) else { return };
        if LOST.fetch_add(1, Ordering::Relaxed) >= MOST_LOST {
            eprintln!("fuelrail: a decoder has panicked on more than {MOST_LOST} images: {info}");
            return;
        }
        failed();
        loop {
            thread::park();
        }
    }));
}

#[cfg(test)]
mod tests {
    use std::panic::catch_unwind;

    use super::*;

    extern "C" fn has_a_bug(input: u32) -> u32 {
        assert!(input != 7, "a bug that ends the process");
        input + 1
    }

    /// In a process of its own: libtest sets the hook once more at its end, and a lost thread is inside it.
    const ALONE: &str = "FUELRAIL_TEST_EXPENDABLE";

    #[test]
    fn a_panic_that_cannot_be_caught_costs_its_thread_and_nothing_else() {
        if std::env::var_os(ALONE).is_none() {
            let name = "a_panic_that_cannot_be_caught_costs_its_thread_and_nothing_else";
            let mut again = std::process::Command::new(std::env::current_exe().unwrap());
            let output = again.args([name, "--nocapture"]).env(ALONE, "1").output().unwrap();
            assert!(output.status.code() == Some(77), "{output:?}");
            return;
        }
        for _ in 0..3 {
            assert_eq!(run(|| has_a_bug(7)).unwrap(), None);
            assert_eq!(run(|| has_a_bug(8)).unwrap(), Some(9));
        }
        // Elsewhere panics are what they were.
        assert!(catch_unwind(|| panic!("caught")).is_err());
        std::process::exit(77);
    }
}
