//! The daemon that belongs to this process: a child, shared by the process's feeds, ending with the last of them.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::time::{Duration, Instant};

use xxhash_rust::xxh3::Xxh3;

use super::ClientError;
use super::lines::Lines;
use super::node::Node;
use crate::protocol::{self, ErrorKind, Request};

/// The daemon that belongs to this process.
#[derive(Debug)]
pub(super) struct Private {
    pid: u32,
    control: UnixStream,
    child: Mutex<Child>,
    lines: Arc<Lines>,
    /// What it was born with.
    settings: Settings,
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

/// A digest of them; their values are secrets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Settings(pub u128);

impl Settings {
    /// Of those that are set now.
    pub fn now() -> Self {
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
        Self(hasher.digest128())
    }
}

/// The daemons of each process in a line of forks, this one's last. A process takes only its own lock: that of its
/// parent may have been held, by another thread, when it was forked, and then nobody will ever open it.
pub(super) struct Generation {
    pid: u32,
    private: Mutex<Weak<Private>>,
    pub node: Mutex<Weak<Node>>,
    child: OnceLock<Box<Generation>>,
}

impl Generation {
    fn new() -> Self {
        Self {
            pid: std::process::id(),
            private: Mutex::default(),
            node: Mutex::default(),
            child: OnceLock::new(),
        }
    }

    pub fn own() -> &'static Self {
        static FIRST: OnceLock<Generation> = OnceLock::new();
        let mut at = FIRST.get_or_init(Self::new);
        while at.pid != std::process::id() {
            at = at.child.get_or_init(|| Box::new(Self::new()));
        }
        at
    }
}

impl Private {
    /// The one that runs, or a new one: also when the environment has changed in a way that matters, as in a notebook
    /// where credentials are set after the first loader was made. The old one goes on for the feeds that it has.
    pub fn get(binary: &Path) -> Result<Arc<Self>, ClientError> {
        let settings = Settings::now();
        let mut slot = Generation::own().private.lock().unwrap_or_else(PoisonError::into_inner);
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

    fn spawn(binary: &Path, settings: Settings) -> Result<Self, ClientError> {
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
        ended(&mut self.child.lock().unwrap_or_else(PoisonError::into_inner), Duration::ZERO).map(how)
    }

    /// A process whose sockets are closed is about to be reaped; gives it a moment, so that the error can say how.
    pub fn wait_for_obituary(&self) -> Option<String> {
        ended(&mut self.child.lock().unwrap_or_else(PoisonError::into_inner), Duration::from_millis(500))
            .map(how)
    }
}

/// How a child ended, if it does within a time.
pub(super) fn ended(child: &mut Child, within: Duration) -> Option<ExitStatus> {
    let deadline = Instant::now() + within;
    loop {
        // One that cannot be waited for is nobody's: somebody else has.
        if let Some(status) = child.try_wait().ok()? {
            return Some(status);
        }
        if Instant::now() >= deadline {
            return None;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// In words.
pub(super) fn how(status: ExitStatus) -> String {
    match (status.signal(), status.code()) {
        (Some(signal), _) => format!("killed by signal {signal}"),
        (_, code) => format!("exit status {}", code.unwrap_or(-1)),
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
