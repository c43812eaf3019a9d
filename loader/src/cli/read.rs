//! Reading a source on the command line, without a daemon: records in a given order, prepared on all cores, handed over
//! one after the other.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use fuelrail_connectors::{
    IndexedSource, ReadError, ReadRequest, ReaderConfig, Record, SourceConfig, settings,
};

use super::{Failure, opening, parts, signals, source};
use crate::client::ClientError;

/// Records that are read ahead of the one handed over, and their bytes.
const AHEAD_RECORDS: usize = 256;
const AHEAD_BYTES: u64 = 256 << 20;

/// A source by its address, with `KEY=VALUE` options of its configuration, asked for the parts that `--fields` is made
/// of.
pub(super) fn open(
    address: &str,
    options: &[String],
    fields: Option<&str>,
) -> Result<Arc<dyn IndexedSource>, Failure> {
    let described = source::described(address, options)?;
    opening::open(parts::asked(settings::read::<SourceConfig>(&described.into())?, fields)?)
}

/// Reads records `index(0)`, `index(1)`, … up to `count`, lets `work` prepare each on some core, and gives the
/// results to `sink` in this order. Ends early, with [`ClientError::Interrupted`], after ctrl-C.
///
/// # Errors
/// What `sink` returns, and what keeps the source from being read at all.
pub(super) fn in_order<T: Send + 'static>(
    source: &Arc<dyn IndexedSource>,
    count: u64,
    index: impl Fn(u64) -> u64,
    work: impl Fn(u64, Result<Record, ReadError>) -> T + Send + Sync + 'static,
    mut sink: impl FnMut(u64, T) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let (tell, told) = mpsc::channel();
    let work = Arc::new(work);
    let reader = source.clone().reader(&ReaderConfig::default())?;
    let (mut asked, mut given, mut ahead) = (0u64, 0u64, 0u64);
    let mut ready: BTreeMap<u64, T> = BTreeMap::new();
    while given < count {
        let mut requests = Vec::new();
        while asked < count
            && (asked == given || (((asked - given) as usize) < AHEAD_RECORDS && ahead < AHEAD_BYTES))
        {
            let record = index(asked);
            ahead += source.size(record);
            let refused = source.refused(record);
            let (place, tell, work) = (asked, tell.clone(), work.clone());
            let done = move |result| {
                rayon::spawn(move || {
                    let prepared = catch_unwind(AssertUnwindSafe(|| work(record, result)));
                    // The receiver goes first only when everything is given up.
                    let _ = tell.send((place, prepared));
                });
            };
            match refused {
                Some(refused) => done(Err(refused)),
                None => requests.push(ReadRequest { index: record, done: Box::new(done) }),
            }
            asked += 1;
        }
        if !requests.is_empty() {
            reader.submit(requests);
        }
        while !ready.contains_key(&given) {
            if signals::interrupted() {
                return Err(ClientError::Interrupted.into());
            }
            match told.recv_timeout(Duration::from_millis(100)) {
                Ok((place, Ok(prepared))) => {
                    ready.insert(place, prepared);
                }
                Ok((place, Err(_))) => {
                    let key = source.key(index(place));
                    return Err(format!("{key}: preparing it panicked; this is a bug in fuelrail").into());
                }
                Err(_) => {}
            }
        }
        while let Some(prepared) = ready.remove(&given) {
            ahead -= source.size(index(given));
            sink(given, prepared)?;
            given += 1;
        }
    }
    Ok(())
}
