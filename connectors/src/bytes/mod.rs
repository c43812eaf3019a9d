//! Where bytes come from: files here and objects elsewhere, read in ranges, and the memory they travel in.

pub(crate) mod buffer;
pub(crate) mod cache;
pub(crate) mod disk;
pub(crate) mod remote;
pub(crate) mod shards;
