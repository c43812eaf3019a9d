//! The process at the other end of a socket: whose it is, and when it dies.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::process::{Pid, PidfdFlags};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// A peer whose credentials were taken when it connected.
pub struct Peer {
    /// Its process.
    pub pid: Pid,
    death: Option<AsyncFd<OwnedFd>>,
}

impl Peer {
    /// Identifies the peer of a socket. To be called inside the runtime.
    ///
    /// # Errors
    /// When it has another uid than this process, or none can be had.
    pub fn identify(socket: impl AsFd) -> io::Result<Self> {
        let peer = rustix::net::sockopt::socket_peercred(socket).map_err(|error| match error.raw_os_error() {
            // The kernel names process 0 where it can name none.
            0 => io::Error::other(
                "the client's process is in a PID namespace that this daemon cannot see: share the namespace \
                 (Kubernetes: shareProcessNamespace, Docker: --pid), or start the daemon outside of it",
            ),
            _ => error.into(),
        })?;
        if peer.uid != rustix::process::geteuid() {
            return Err(io::Error::other(format!(
                "the client runs as user {} and this daemon as {}: start both as the same user",
                peer.uid.as_raw(),
                rustix::process::geteuid().as_raw()
            )));
        }
        let death = rustix::process::pidfd_open(peer.pid, PidfdFlags::NONBLOCK).ok().and_then(|pidfd| {
            // SAFETY: the descriptor must stay registered to the same open file for as long as the AsyncFd lives: it
            // is owned by the AsyncFd, and nothing here takes it out, duplicates over it or closes it.
            unsafe { AsyncFd::register_with_interest(pidfd, Interest::READABLE) }.ok()
        });
        Ok(Self { pid: peer.pid, death })
    }

    /// Resolves when the process has ended, even where a forked child of it still holds the socket. Never, where the
    /// kernel gave no pidfd: end-of-file has to do there.
    pub async fn death(&self) {
        match &self.death {
            Some(pidfd) => drop(pidfd.readable().await),
            None => std::future::pending().await,
        }
    }
}
