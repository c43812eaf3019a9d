//! The commands of the `fuelrail` binary. (`fuelrail train` is Python; the wheel's launcher knows both.)

mod bench;
mod inspect;
mod opening;
mod pack;
mod preview;
mod produce;
mod read;
mod serve;
mod spec;
mod which;

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

/// Why a command failed, for people.
pub(crate) type Failure = Box<dyn std::error::Error>;

/// Parses the arguments and runs the command. Exit codes: 0 done, 1 failed, 2 wrong arguments, 130 interrupted.
pub fn main() -> ExitCode {
    let result = match Arguments::parse().command {
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
            eprintln!("fuelrail: {error}");
            ExitCode::FAILURE
        }
    }
}
