//! The daemon that belongs to this process: a child, shared by the process's feeds, ending with the last of them.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::time::{Duration, Instant};

use xxhash_rust::xxh3::Xxh3;

use super::ClientError;
use super::lines::Lines;
use crate::protocol::{self, ErrorKind, Request};

/// The daemon that belongs to this process.
#[derive(Debug)]
pub(super) struct Private {
    pid: u32,
    control: UnixStream,
    child: Mutex<Child>,
    lines: Arc<Lines>,
    /// What it was born with.
    settings: u128,
}

/// Beginnings of the names of variables that decide what a daemon finds and who it is there: credentials and endpoints
/// of stores, certificates, proxies, folders for caches, our own.
const SETTINGS: [&str; 15] = [
    "ALL_PROXY",
    "AWS_",
    "AZURE_",
    "FUELRAIL_",
    "GOOGLE_",
    "HOME",
    "HTTPS_PROXY",
    "HTTP_PROXY",
    "IDENTITY_",
    "KRB5",
    "MSI_",
    "NO_PROXY",
    "SERVICE_ACCOUNT",
    "SSL_CERT_",
    "XDG_",
];

/// A digest of those that are set now; their values are secrets.
fn settings() -> u128 {
    let decides = |name: &OsStr| {
        let name = name.to_string_lossy().to_ascii_uppercase();
        SETTINGS.iter().any(|beginning| name.starts_with(beginning))
    };
    let mut settings: Vec<_> = std::env::vars_os().filter(|(name, _)| decides(name)).collect();
    settings.sort();
    let mut hasher = Xxh3::new();
    for text in settings.iter().flat_map(|(name, value)| [name, value]) {
        hasher.update(text.as_bytes());
        hasher.update(&[0]);
    }
    hasher.digest128()
}

/// The daemon of each process in a line of forks, this one's last. A process takes only its own lock: that of its
/// parent may have been held, by another thread, when it was forked, and then nobody will ever open it.
struct Generation {
    pid: u32,
    private: Mutex<Weak<Private>>,
    child: OnceLock<Box<Generation>>,
}

impl Generation {
    fn new() -> Self {
        Self { pid: std::process::id(), private: Mutex::new(Weak::new()), child: OnceLock::new() }
    }

    fn own() -> &'static Mutex<Weak<Private>> {
        static FIRST: OnceLock<Generation> = OnceLock::new();
        let mut at = FIRST.get_or_init(Self::new);
        while at.pid != std::process::id() {
            at = at.child.get_or_init(|| Box::new(Self::new()));
        }
        &at.private
    }
}

impl Private {
    /// The one that runs, or a new one: also when the environment has changed in a way that matters, as in a notebook
    /// where credentials are set after the first loader was made. The old one goes on for the feeds that it has.
    pub fn get(binary: &Path) -> Result<Arc<Self>, ClientError> {
        let settings = settings();
        let mut slot = Generation::own().lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(private) = slot.upgrade()
            && private.pid == std::process::id()
            && private.settings == settings
            && private.obituary().is_none()
        {
            return Ok(private);
        }
        let private = Arc::new(Self::spawn(binary, settings)?);
        *slot = Arc::downgrade(&private);
        Ok(private)
    }

    fn spawn(binary: &Path, settings: u128) -> Result<Self, ClientError> {
        let failed = |error: io::Error| ClientError::Daemon {
            kind: ErrorKind::Environment,
            message: format!("the daemon {binary:?} cannot be started: {error}"),
        };
        let (control, theirs) = UnixStream::pair().map_err(failed)?;
        let (log, written) = UnixStream::pair().map_err(failed)?;
        // The sockets are the child's standard input and output: nothing to inherit by number, nothing with a name on
        // disk. Its own process group keeps the terminal's ctrl-C from it until it has made a session of its own.
        let child = Command::new(binary)
            .args(["serve", "--private"])
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::from(OwnedFd::from(written)))
            .process_group(0)
            .spawn()
            .map_err(failed)?;
        let lines = Arc::new(Lines::new(Some(log)));
        Ok(Self { pid: std::process::id(), control, child: Mutex::new(child), lines, settings })
    }

    /// The lines of its log.
    pub fn lines(&self) -> Arc<Lines> {
        self.lines.clone()
    }

    /// A new connection to it: one end of a fresh pair travels over the control socket.
    pub fn connect(&self) -> io::Result<UnixStream> {
        let (ours, theirs) = UnixStream::pair()?;
        protocol::send_all(&self.control, &Request::Adopt, Some(theirs.as_fd()))?;
        Ok(ours)
    }

    /// How it died, if it did.
    fn obituary(&self) -> Option<String> {
        let status = self.child.lock().unwrap_or_else(PoisonError::into_inner).try_wait().ok()??;
        Some(match (status.signal(), status.code()) {
            (Some(signal), _) => format!("killed by signal {signal}"),
            (_, code) => format!("exit status {}", code.unwrap_or(-1)),
        })
    }

    /// A process whose sockets are closed is about to be reaped; gives it a moment, so that the error can say how.
    pub fn wait_for_obituary(&self) -> Option<String> {
        let deadline = Instant::now() + Duration::from_millis(500);
        loop {
            if let Some(obituary) = self.obituary() {
                return Some(obituary);
            }
            if Instant::now() > deadline {
                return None;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

impl Drop for Private {
    fn drop(&mut self) {
        if self.pid != std::process::id() {
            return;
        }
        let _ = self.control.shutdown(std::net::Shutdown::Both);
        let child = self.child.get_mut().unwrap_or_else(PoisonError::into_inner);
        let deadline = Instant::now() + Duration::from_secs(2);
        while Instant::now() < deadline {
            if !matches!(child.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        let _ = child.kill();
        let _ = child.wait();
    }
}
