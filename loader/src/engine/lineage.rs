//! Which records stand at which positions, without reading them into a batch: the engine's own course, asked by a
//! person.

use std::sync::Arc;
use std::sync::mpsc;
use std::time::Duration;

use super::course::{Ahead, PlannedRow, Seat};
use crate::pipeline::Pipeline;
use crate::plan::{Batching, Cursor};
use crate::protocol::ErrorKind;
use crate::refusal::Refusal;
use crate::token::Place;

/// A record at its position.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Named {
    /// Position in the epoch.
    pub position: u64,
    /// Its number: `batch["index"]`.
    pub index: i64,
    /// Its name.
    pub key: String,
    /// Its label.
    pub label: Option<i64>,
}

/// The records planned at `cursor` and the `count - 1` positions behind it, fewer at the end of the epoch. Of a stream,
/// `place` is the window in or behind which the cursor lies. `interrupt` is asked now and then while windows are waited
/// for.
///
/// # Errors
/// What keeps the source from being read; `None` when interrupted.
pub fn which(
    pipeline: &Pipeline,
    cursor: Cursor,
    place: Option<Place>,
    count: u64,
    interrupt: &mut dyn FnMut() -> bool,
) -> Result<Option<Vec<Named>>, Refusal> {
    let (news, arrived) = mpsc::channel();
    let notify = Arc::new(move || {
        let _ = news.send(());
    });
    let len = pipeline.supply.len();
    let batching = Batching {
        len,
        batch_size: count,
        world_size: 1,
        drop_last: false,
        foreseen: true,
        together: false,
        epochs: pipeline.supply.epochs(),
    };
    batching.check_epoch(cursor.epoch).map_err(|why| Refusal::new(ErrorKind::Config, why))?;
    let mut course = pipeline.supply.course(Seat { rank: 0, batching }, notify);
    course.seek(cursor, place.map(Into::into))?;
    if let Some(len) = len.filter(|len| cursor.position > *len) {
        return Err(Refusal::new(
            ErrorKind::Config,
            format!("position {} is after the last of {len} samples", cursor.position),
        ));
    }
    loop {
        match course.ahead(cursor, true) {
            Ahead::Batch { rows, .. } => return Ok(Some(rows.iter().map(named).collect())),
            Ahead::EpochEnds { .. } => return Ok(Some(Vec::new())),
            Ahead::Failed(refusal) => return Err(refusal),
            Ahead::Unknown if interrupt() => return Ok(None),
            Ahead::Unknown => drop(arrived.recv_timeout(Duration::from_millis(100))),
        }
    }
}

fn named(row: &PlannedRow) -> Named {
    let PlannedRow { position, index, stretch } = row;
    Named {
        position: *position,
        index: stretch.id(*index),
        key: stretch.key(*index),
        label: stretch.verdict(*index).is_none().then(|| stretch.label(*index)),
    }
}
