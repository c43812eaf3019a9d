//! The commands of the `fuelrail` binary. (`fuelrail train` is Python, and runs in the wheel's launcher before this is
//! reached.)

/// A line on the standard output. When nobody reads it any more (`fuelrail inspect … | head`), the command ends like
/// one that SIGPIPE ended, without a word.
macro_rules! say {
    ($($text:tt)*) => { $crate::cli::print_line(format_args!($($text)*)) };
}

mod bars;
mod bench;
mod inspect;
mod opening;
mod pack;
mod parts;
mod preview;
mod produce;
mod ranges;
mod read;
mod serve;
mod signals;
mod source;
mod spec;
mod tiles;
mod which;

use std::io::{self, Write};
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::client::ClientError;

/// Keeps accelerators fed: an input pipeline and data-loader daemon for training.
#[derive(Debug, Parser)]
#[command(name = "fuelrail", version, after_help = EXIT_CODES)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the daemon: serve pipelines to training processes over a Unix socket.
    Serve(serve::Serve),
    /// Measure a pipeline: images/s, CPU seconds, memory against its budget, and the bottleneck.
    Bench(bench::Bench),
    /// Write a contact sheet of a pipeline's output, as one PNG.
    Preview(preview::Preview),
    /// Write any source as tar shards: indexed, checksummed, restartable.
    Pack(pack::Pack),
    /// Fill a Kafka topic from any source.
    Produce(produce::Produce),
    /// Summarize a data source: records, classes, formats, sizes, unreadable files.
    Inspect(inspect::Inspect),
    /// Name the samples at a position of a run, such as the batch after (or before) a saved state.
    Which(which::Which),
    /// Train an image classifier (part of the Python package).
    #[command(disable_help_flag = true)]
    Train(InPython),
    /// Measure a trained model on labelled images (part of the Python package).
    #[command(disable_help_flag = true)]
    Eval(InPython),
    /// Say what a trained model sees in images (part of the Python package).
    #[command(disable_help_flag = true)]
    Predict(InPython),
    /// Write a trained model as safetensors, ONNX and 8-bit ONNX (part of the Python package).
    #[command(disable_help_flag = true)]
    Export(InPython),
    /// Compare training runs in a table (part of the Python package).
    #[command(disable_help_flag = true)]
    Runs(InPython),
}

/// A command of the Python package, which its launcher runs before this binary is asked.
#[derive(Debug, clap::Args)]
struct InPython {
    /// See `python -m fuelrail COMMAND --help`
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<String>,
}

impl InPython {
    fn refuse(&self, command: &str) -> ExitCode {
        eprintln!(
            "fuelrail: `fuelrail {command}` is part of the Python package: run it from an environment with that \
             package, or as `python -m fuelrail {command} {}`",
            self.arguments.join(" ").trim()
        );
        ExitCode::from(2)
    }
}

const EXIT_CODES: &str = "\
Exit codes: 0 done, 1 failed, 2 wrong arguments, 130 stopped by ctrl-C, 143 by SIGTERM.";

/// The status of a program that SIGPIPE ended, as shells give it.
const BROKEN_PIPE: u8 = 141;

fn print_line(text: std::fmt::Arguments<'_>) {
    if let Err(error) = writeln!(io::stdout(), "{text}") {
        if error.kind() == io::ErrorKind::BrokenPipe {
            std::process::exit(BROKEN_PIPE.into());
        }
        eprintln!("fuelrail: cannot write to standard output: {error}");
        std::process::exit(1);
    }
}

/// A whole number of at least `LEAST`, as an argument.
fn at_least<T: TryFrom<u64>, const LEAST: u64>(text: &str) -> Result<T, String> {
    let number =
        text.parse().ok().filter(|number| *number >= LEAST).and_then(|number| T::try_from(number).ok());
    number.ok_or_else(|| match LEAST {
        0 => "not a whole number, 0 or more".into(),
        _ => format!("not a whole number of at least {LEAST}"),
    })
}

/// The system's errors without their numbers: "No such file or directory (os error 2)" says the same twice.
fn without_numbers(text: &str) -> String {
    let mut parts = text.split(" (os error ");
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |text, part| {
        let (number, rest) = part.split_once(')').unwrap_or((part, ""));
        if number.bytes().all(|b| b.is_ascii_digit()) {
            text + rest
        } else {
            format!("{text} (os error {part}")
        }
    })
}

/// Why a command failed, for people.
pub(crate) type Failure = Box<dyn std::error::Error>;

/// Parses the arguments and runs the command; its exit codes are those of `EXIT_CODES`.
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
        Command::Train(command) => return command.refuse("train"),
        Command::Eval(command) => return command.refuse("eval"),
        Command::Predict(command) => return command.refuse("predict"),
        Command::Export(command) => return command.refuse("export"),
        Command::Runs(command) => return command.refuse("runs"),
    };
    let is_interrupted =
        |error: &Failure| matches!(error.downcast_ref::<ClientError>(), Some(ClientError::Interrupted));
    // One rule for all commands: what a signal stopped never ends with 0, however much of it was done.
    if result.as_ref().map_or_else(is_interrupted, |()| signals::interrupted()) {
        eprintln!("fuelrail: interrupted");
        return ExitCode::from(signals::status());
    }
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            if error
                .downcast_ref::<io::Error>()
                .is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
            {
                return ExitCode::from(BROKEN_PIPE);
            }
            eprintln!("fuelrail: {}", without_numbers(&error.to_string()));
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_arguments_are_consistent() {
        use clap::CommandFactory;
        Arguments::command().debug_assert();
    }

    #[test]
    fn the_systems_numbers_are_left_out() {
        let text = "a: Is a directory (os error 21); b: No such file or directory (os error 2)";
        assert_eq!(without_numbers(text), "a: Is a directory; b: No such file or directory");
        assert_eq!(without_numbers("(os error x) (os error y)"), "(os error x) (os error y)");
    }

    #[test]
    fn numbers_are_whole() {
        assert_eq!(at_least::<u64, 0>("18446744073709551615"), Ok(u64::MAX));
        assert_eq!(at_least::<u32, 1>("1"), Ok(1));
        for text in ["-1", "0", "1.5", "", "x", "4294967296"] {
            assert_eq!(at_least::<u32, 1>(text), Err("not a whole number of at least 1".into()));
        }
    }
}
