//! The native half of the Python package: converts, releases the interpreter lock, calls, maps errors; nothing else.
//!
//! It links the `client` part of the loader only: importing fuelrail loads no decoder, no source and no async runtime
//! into the trainer.

mod dlpack;
mod error;
mod feed;
mod upload;

use pyo3::prelude::*;

/// `fuelrail._native`.
#[pymodule]
fn _native(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    module.add_class::<feed::Feed>()?;
    module.add_class::<feed::Batch>()?;
    module.add_class::<dlpack::Tensor>()?;
    module.add_class::<upload::Uploader>()?;
    module.add_class::<upload::Copied>()
}
