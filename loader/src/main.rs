//! The `fuelrail` command.

fn main() -> std::process::ExitCode {
    fuelrail_loader::cli::main()
}
