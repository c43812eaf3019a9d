//! fuelrail-loader
