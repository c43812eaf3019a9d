//! Ctrl-C and SIGTERM while a command works.

use std::sync::atomic::{AtomicU8, Ordering};

use rustix::process::Signal;

use super::Failure;

/// The signal that came, 0 while none did.
static SIGNAL: AtomicU8 = AtomicU8::new(0);

/// Whether ctrl-C or SIGTERM came, once [`watch`] was called.
pub(super) fn interrupted() -> bool {
    SIGNAL.load(Ordering::Relaxed) != 0
}

/// Notes a signal that somebody else waited for.
pub(super) fn note(signal: Signal) {
    SIGNAL.store(signal.as_raw() as u8, Ordering::Relaxed);
}

/// The exit status of a command that a signal ended, as shells give it: 130 after ctrl-C, 143 after SIGTERM.
pub(super) fn status() -> u8 {
    let signal = SIGNAL.load(Ordering::Relaxed);
    128 + if signal == 0 { Signal::INT.as_raw() as u8 } else { signal }
}

/// From now on ctrl-C and SIGTERM set a flag instead of ending the process where it stands.
pub(super) fn watch() -> Result<(), Failure> {
    use tokio::signal::unix::{SignalKind, signal};
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (mut interrupt, mut terminate) = {
        let _inside = runtime.enter();
        (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?)
    };
    std::thread::Builder::new().name("fuelrail-signals".into()).spawn(move || {
        runtime.block_on(async {
            let signal =
                tokio::select! { _ = interrupt.recv() => Signal::INT, _ = terminate.recv() => Signal::TERM };
            note(signal);
            // A second one means it.
            tokio::select! { _ = interrupt.recv() => {}, _ = terminate.recv() => {} }
            std::process::exit(status().into());
        });
    })?;
    Ok(())
}
