//! `fuelrail serve`.

use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

use clap::Args;

use super::{Failure, signals};
use crate::config::DaemonConfig;
use crate::server;
use fuelrail_connectors::shown;

#[derive(Debug, Args)]
pub(super) struct Serve {
    /// Configuration file: [pipelines.NAME] tables with source, transforms, batch_size, …
    #[arg(value_name = "PIPELINES.TOML")]
    config: Option<PathBuf>,
    /// Socket to listen on [default: fuelrail.sock in $XDG_RUNTIME_DIR, else /tmp/fuelrail-UID.sock]
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// Allow clients to read below this folder with pipelines of their own (can be repeated)
    #[arg(long, value_name = "DIR")]
    root: Vec<PathBuf>,
    /// Serve the one process at the other end of standard input, and end with it (used by the Python package)
    #[arg(long, hide = true, conflicts_with_all = ["config", "socket", "root"])]
    private: bool,
    /// Serve the processes of a job on this node over the listening socket that is standard input, and end with the
    /// last of them (used by the Python package)
    #[arg(long, hide = true, conflicts_with_all = ["config", "socket", "root", "private"])]
    job: bool,
    /// As --job, in a process that is no child of the one which starts it
    #[arg(long, hide = true, conflicts_with_all = ["config", "socket", "root", "private", "job"])]
    orphaned_job: bool,
}

impl Serve {
    pub fn run(self) -> Result<(), Failure> {
        if self.private {
            return Ok(server::serve_private()?);
        }
        if self.job {
            return Ok(server::serve_job()?);
        }
        if self.orphaned_job {
            // Not waited for: with the end of this process it belongs to nobody.
            Command::new(std::env::current_exe()?).args(["serve", "--job"]).process_group(0).spawn()?;
            return Ok(());
        }
        let mut config = match &self.config {
            None => DaemonConfig::default(),
            Some(path) => DaemonConfig::from_file(path)?,
        };
        config.roots.extend(self.root);
        for root in config.roots.iter().filter(|root| !root.is_dir()) {
            // It may be mounted later.
            eprintln!("note: the root {} is not a folder now; clients cannot read below it", shown(&root));
        }
        if config.pipelines.is_empty() && config.roots.is_empty() {
            return Err("nothing to serve: give a configuration file with [pipelines.NAME] tables, or use --root DIR to \
                        allow clients to bring their own pipelines"
                .into());
        }
        // It serves until a signal stops it.
        signals::note(server::serve(config, &self.socket.unwrap_or_else(default_socket))?);
        Ok(())
    }
}

fn default_socket() -> PathBuf {
    match std::env::var_os("XDG_RUNTIME_DIR") {
        Some(folder) if !folder.is_empty() => PathBuf::from(folder).join("fuelrail.sock"),
        _ => PathBuf::from(format!("/tmp/fuelrail-{}.sock", rustix::process::geteuid().as_raw())),
    }
}
