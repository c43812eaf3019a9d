"""fuelrail keeps accelerators fed: a data loader that does its work in a daemon written in Rust.

`from fuelrail.torch import Loader` in a PyTorch script, `from fuelrail.numpy import Loader` elsewhere;
transforms are in `fuelrail.transforms`, the training loop in `fuelrail.train`. Importing this package imports
neither torch nor numpy.
"""

from fuelrail import fields, transforms
from fuelrail._native import __version__
from fuelrail.errors import (
    ConfigError,
    DaemonDied,
    DataError,
    Detached,
    EnvironmentFailure,
    FuelrailError,
    LoaderTimeout,
    ProtocolError,
    SourceError,
    TokenError,
)
from fuelrail.options import AUTO
from fuelrail.ranks import World, from_env
from fuelrail.sources import Mix, Source

__all__ = [
    "AUTO",
    "ConfigError",
    "DaemonDied",
    "DataError",
    "Detached",
    "EnvironmentFailure",
    "FuelrailError",
    "LoaderTimeout",
    "Mix",
    "ProtocolError",
    "Source",
    "SourceError",
    "TokenError",
    "World",
    "__version__",
    "fields",
    "from_env",
    "transforms",
]
