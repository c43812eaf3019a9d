//! The daemon of a job on this node: one for all its processes there, without configuration.
//!
//! ```text
//!  connect ──▶ somebody listens ─────────────────────────────────▶ hello
//!     ▲  │
//!     │  └─ nobody: bind ──▶ ours: start the daemon with the listening socket ──┐
//!     │              └─ somebody else's just now                                │
//!     └──────────────────────────────────────────────────────────────────────────┘
//! ```
//!
//! The name of the socket is the job's, of this user, in this place: abstract, so that it is nowhere on disk, and ends
//! with the last process that holds it. Whoever can bind it starts the daemon and hands the socket over; what others
//! send meanwhile waits in it. So no lock can be left behind, and nobody has to wait until the daemon is there. It ends
//! after its last connection: one that it has not greeted comes too late, and is made again.

use std::fs::File;
use std::io::{self, Read, Seek};
use std::os::fd::{AsFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::fs::MemfdFlags;
use xxhash_rust::xxh3::Xxh3;

use super::ClientError;
use super::private::{Generation, Settings, ended, how};
use crate::protocol::ErrorKind;

/// Between two looks at a socket that somebody else is about to listen on.
const LOOK: Duration = Duration::from_millis(5);

/// So long is waited for somebody else to listen.
const PATIENCE: Duration = Duration::from_secs(20);

/// So long is waited for a daemon that may have ended with our last connection, to take its entry out of the table of
/// processes.
const FAREWELL: Duration = Duration::from_millis(100);

/// What is shown of the last words of a daemon that did not start.
const WORDS: usize = 2000;

/// This process's part in a job, shared by its feeds.
#[derive(Debug)]
pub(super) struct Node {
    pid: u32,
    name: String,
    /// The daemon, if it is a child of this process.
    started: Mutex<Option<Started>>,
}

#[derive(Debug)]
struct Started {
    child: Child,
    /// What it says before it can be heard.
    words: File,
}

impl Node {
    /// The one of this job.
    pub fn get(job: &str) -> Arc<Self> {
        let name = name(job);
        let mut slot = Generation::own().node.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(node) = slot.upgrade()
            && node.pid == std::process::id()
            && node.name == name
        {
            return node;
        }
        let node = Arc::new(Self { pid: std::process::id(), name, started: Mutex::new(None) });
        *slot = Arc::downgrade(&node);
        node
    }

    /// A new connection to the daemon, which is started when there is none.
    pub fn connect(&self, binary: &Path) -> Result<UnixStream, ClientError> {
        let failed = |error: io::Error| refused(format!("the daemon {binary:?} cannot be started: {error}"));
        let address = SocketAddr::from_abstract_name(&self.name).map_err(failed)?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            match UnixStream::connect_addr(&address) {
                Ok(stream) => return self.is_ours(&stream).map(|()| stream),
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
                Err(error) => return Err(failed(error)),
            }
            match UnixListener::bind_addr(&address) {
                Ok(listener) => *self.started() = Some(start(binary, listener).map_err(failed)?),
                Err(error) if error.kind() == io::ErrorKind::AddrInUse && Instant::now() < deadline => {
                    std::thread::sleep(LOOK);
                }
                Err(error) => return Err(failed(error)),
            }
        }
    }

    fn started(&self) -> MutexGuard<'_, Option<Started>> {
        self.started.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Anyone may bind an abstract name.
    fn is_ours(&self, stream: &UnixStream) -> Result<(), ClientError> {
        let peer = rustix::net::sockopt::socket_peercred(stream);
        match peer.map(|peer| peer.uid) {
            Ok(uid) if uid == rustix::process::geteuid() => Ok(()),
            Ok(uid) => Err(refused(format!(
                "the socket of this job's daemon (@{}) is held by a process of user {}: end that process",
                self.name,
                uid.as_raw()
            ))),
            Err(error) => Err(refused(format!("who listens at @{} is not known: {error}", self.name))),
        }
    }

    /// How the daemon ended, if this process started it and it did, waited for a moment.
    pub fn wait_for_obituary(&self, daemon: Option<u32>) -> Option<String> {
        let mut started = self.started();
        let Started { child, .. } = started.as_mut()?;
        if daemon.is_some_and(|daemon| daemon != child.id()) {
            return None;
        }
        // What started an orphan, and ended at once, is no daemon.
        ended(child, Duration::from_millis(500)).filter(|status| !status.success()).map(how)
    }

    /// Why the daemon that this process started did not come to greet anybody, if it ended for a reason.
    pub fn why_not_started(&self) -> Option<ClientError> {
        let mut started = self.started();
        let Started { child, words } = started.as_mut()?;
        let status = ended(child, Duration::from_millis(500))?;
        let mut said = Vec::new();
        let _ = words.rewind().and_then(|()| words.take(WORDS as u64).read_to_end(&mut said));
        let said = String::from_utf8_lossy(&said);
        let said = said.trim();
        // An orphan's status is nobody's to know.
        let status = if status.success() { String::new() } else { format!(" ({})", how(status)) };
        if said.is_empty() && status.is_empty() {
            return None;
        }
        let said = if said.is_empty() { String::new() } else { format!(": {said}") };
        Some(refused(format!("the daemon of this job could not start{status}{said}")))
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if self.pid != std::process::id() {
            return;
        }
        // It goes on for the other processes of the job; but if ours was the last connection, it ends now.
        if let Some(Started { child, .. }) = self.started.get_mut().unwrap_or_else(PoisonError::into_inner) {
            ended(child, FAREWELL);
        }
    }
}

fn refused(message: String) -> ClientError {
    ClientError::Daemon { kind: ErrorKind::Environment, message }
}

/// What a socket is called: of the same job, user, place and settings.
fn name(job: &str) -> String {
    let mut hasher = Xxh3::new();
    hasher.update(job.as_bytes());
    hasher.update(&Settings::now().0.to_le_bytes());
    // Processes in containers of their own may see other files, and not each other.
    for namespace in ["mnt", "pid", "user"] {
        let of = std::fs::read_link(format!("/proc/self/ns/{namespace}")).unwrap_or_default();
        hasher.update(of.as_os_str().as_bytes());
    }
    format!("fuelrail-{}-{:032x}", rustix::process::geteuid().as_raw(), hasher.digest128())
}

fn start(binary: &Path, listener: UnixListener) -> io::Result<Started> {
    let words = rustix::fs::memfd_create("fuelrail-start", MemfdFlags::CLOEXEC)?;
    // Where it writes once it has started: our standard error, whatever becomes of us.
    let later = rustix::io::dup(rustix::stdio::stderr()).map_or_else(|_| Stdio::null(), Stdio::from);
    // Its own process group, until it has a session: what ends our group is not meant for the others' daemon.
    let child = Command::new(binary)
        .arg("serve")
        // Ray kills the children of a worker that has ended, and the daemon may be needed by others.
        .arg(if std::env::var_os("RAY_RAYLET_PID").is_some() { "--orphaned-job" } else { "--job" })
        .stdin(Stdio::from(OwnedFd::from(listener)))
        .stdout(later)
        .stderr(Stdio::from(words.as_fd().try_clone_to_owned()?))
        .process_group(0)
        .spawn()?;
    Ok(Started { child, words: File::from(words) })
}
