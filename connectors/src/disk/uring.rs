//! io_uring
use super::*;
use crate::{ReadRequest, ReadStats};
pub(super) type Setup = fn(u32) -> io::Result<()>;
pub(super) fn setup(_depth: u32) -> io::Result<()> {
    Err(io::Error::other("not yet"))
}
pub(super) struct Uring;
impl Uring {
    pub(super) fn start(_o: Arc<Opened>, depth: u32, setup: Setup) -> io::Result<Self> {
        setup(depth)?;
        Ok(Self)
    }
}
impl Reader for Uring {
    fn submit(&self, _r: Vec<ReadRequest>) {}
    fn stats(&self) -> ReadStats {
        unreachable!()
    }
}
