//! The commands of the `fuelrail` binary. (`fuelrail train` is Python; the wheel's launcher knows both.)

/// A line on the standard output. When nobody reads it any more (`fuelrail inspect … | head`), the command ends like one
/// that SIGPIPE ended, without a word.
macro_rules! say {
    ($($text:tt)*) => { $crate::cli::print_line(format_args!($($text)*)) };
}

mod bench;
mod inspect;
mod opening;
mod pack;
mod preview;
mod produce;
mod read;
mod serve;
mod signals;
mod spec;
mod which;

use std::io::{self, Write};
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Keeps accelerators fed: a streaming input pipeline and data-loader daemon.
#[derive(Debug, Parser)]
#[command(name = "fuelrail", version, about, after_help = "`fuelrail train` comes with the Python package.")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the daemon: serve pipelines to training processes over a Unix socket.
    Serve(serve::Serve),
    /// Measure a pipeline: images/s, CPU seconds, memory against its budget, and which stage is the limit.
    Bench(bench::Bench),
    /// Write a contact sheet of what a pipeline delivers, as one PNG.
    Preview(preview::Preview),
    /// Write any source as tar shards: indexed, checksummed, restartable.
    Pack(pack::Pack),
    /// Fill a Kafka topic from any source.
    Produce(produce::Produce),
    /// Say what a source holds: records, classes, formats, sizes, what cannot be read.
    Inspect(inspect::Inspect),
    /// Name the samples at a place in a run, such as those of the batch after (or before) a saved state.
    Which(which::Which),
}

/// The status of a program that SIGPIPE ended, as shells give it.
const BROKEN_PIPE: u8 = 141;

fn print_line(text: std::fmt::Arguments<'_>) {
    if let Err(error) = writeln!(io::stdout(), "{text}") {
        if error.kind() == io::ErrorKind::BrokenPipe {
            std::process::exit(BROKEN_PIPE.into());
        }
        eprintln!("fuelrail: the standard output cannot be written: {error}");
        std::process::exit(1);
    }
}

/// Why a command failed, for people.
pub(crate) type Failure = Box<dyn std::error::Error>;

/// Parses the arguments and runs the command. Exit codes: 0 done, 1 failed, 2 wrong arguments, 130 interrupted.
pub fn main() -> ExitCode {
    let command = Arguments::parse().command;
    if matches!(command, Command::Pack(_) | Command::Inspect(_) | Command::Which(_) | Command::Produce(_)) {
        // They open the source in this process; the others have their daemon's log.
        crate::log::warnings_to_stderr();
    }
    let result = match command {
        Command::Serve(command) => command.run(),
        Command::Bench(command) => command.run(),
        Command::Preview(command) => command.run(),
        Command::Pack(command) => command.run(),
        Command::Produce(command) => command.run(),
        Command::Inspect(command) => command.run(),
        Command::Which(command) => command.run(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let interrupted = matches!(
                error.downcast_ref::<crate::client::ClientError>(),
                Some(crate::client::ClientError::Interrupted)
            );
            if interrupted {
                return ExitCode::from(130);
            }
            if error
                .downcast_ref::<io::Error>()
                .is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
            {
                return ExitCode::from(BROKEN_PIPE);
            }
            eprintln!("fuelrail: {error}");
            ExitCode::FAILURE
        }
    }
}
