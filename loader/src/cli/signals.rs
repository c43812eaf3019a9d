//! Ctrl-C and SIGTERM while a command works.

use std::sync::atomic::{AtomicBool, Ordering};

use super::Failure;

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Whether ctrl-C or SIGTERM came, once [`watch`] was called.
pub(super) fn interrupted() -> bool {
    INTERRUPTED.load(Ordering::Relaxed)
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
            tokio::select! { _ = interrupt.recv() => {}, _ = terminate.recv() => {} }
            INTERRUPTED.store(true, Ordering::Relaxed);
            // A second one means it.
            tokio::select! { _ = interrupt.recv() => {}, _ = terminate.recv() => {} }
            std::process::exit(130);
        });
    })?;
    Ok(())
}
