//! Errors of the client as the exceptions of `fuelrail.errors`.

use fuelrail_loader::client::ClientError;
use fuelrail_loader::protocol::ErrorKind;
use pyo3::prelude::*;

/// The exception for an error; `Interrupted` is the caller's, who knows which signal handler raised what.
pub fn exception(py: Python<'_>, error: &ClientError) -> PyErr {
    let name = match error {
        ClientError::Daemon { kind: ErrorKind::Config, .. } => "ConfigError",
        ClientError::Daemon { kind: ErrorKind::Source, .. } => "SourceError",
        ClientError::Daemon { kind: ErrorKind::Data, .. } => "DataError",
        ClientError::Daemon { kind: ErrorKind::Protocol, .. } => "ProtocolError",
        ClientError::Daemon { kind: ErrorKind::Environment, .. } => "EnvironmentFailure",
        ClientError::Daemon { kind: ErrorKind::Detached, .. } => "Detached",
        ClientError::Died(_) => "DaemonDied",
        ClientError::Timeout(_) => "LoaderTimeout",
        ClientError::Token(_) => "TokenError",
        ClientError::Misuse(_) | ClientError::Interrupted => "FuelrailError",
    };
    let class = py.import("fuelrail.errors").and_then(|module| module.getattr(name));
    match class.and_then(|class| class.call1((error.to_string(),))) {
        Ok(exception) => PyErr::from_value(exception),
        Err(error) => error,
    }
}
