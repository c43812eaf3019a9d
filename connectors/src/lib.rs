//! fuelrail-connectors
