//! The parts of Arrow that are used, under the names of the `arrow` crate, which is an umbrella over these and seven
//! more (casts, arithmetic, regular expressions, CSV, JSON) that cost minutes of building and are used nowhere here.
#![allow(unused_imports, missing_docs, reason = "names, some of which only tests use")]

pub use arrow_buffer as buffer;
pub use arrow_ipc as ipc;

pub mod array {
    pub use arrow_array::array::*;
    pub use arrow_array::builder::*;
    pub use arrow_array::cast::*;
    pub use arrow_array::{RecordBatch, RecordBatchReader};
    pub use arrow_data::ArrayData;
}

pub mod datatypes {
    pub use arrow_array::types::*;
    pub use arrow_schema::*;
}

pub mod compute {
    pub use arrow_select::concat::concat;
}
