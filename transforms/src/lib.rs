//! fuelrail-transforms
