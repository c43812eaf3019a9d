"""The errors, grouped by who can fix them. Every message names the file, key or argument and what to do."""


class FuelrailError(Exception):
    """Base of all errors that fuelrail raises on purpose."""


class ConfigError(FuelrailError, ValueError):
    """A wrong argument: an unknown transform, a misspelt name, a value out of range."""


class SourceError(FuelrailError, OSError):
    """The data is not there: a missing or empty folder, an unreadable file, a file that changed under the
    run.
    """


class DataError(FuelrailError):
    """More bad records than `error_budget` tolerates, or one and `on_error="fail"`."""


class DaemonDied(FuelrailError):
    """The daemon died; batches that it had finished were delivered first."""


class Detached(FuelrailError):
    """This client of a shared feed held up the others, which continued without it."""


class LoaderTimeout(FuelrailError, TimeoutError):
    """No batch arrived within `timeout` seconds; the message says what is stuck."""


class TokenError(FuelrailError, ValueError):
    """A state that was changed, truncated, or belongs to another run. It is refused, never reinterpreted."""


class ProtocolError(FuelrailError):
    """Client and daemon do not understand each other, usually because their versions differ."""


class EnvironmentFailure(FuelrailError):
    """The machine lacks something that is needed: memory, threads, descriptors, the daemon's binary."""
