//! A batch under construction: which rows are out, which came back, which record stands in each.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::config::OnError;
use crate::layout::{Column, Layout};
use crate::plan::Cursor;
use crate::protocol::ErrorKind;
use crate::quarantine::Refused;
use crate::refusal::Refusal;
use crate::ring::{RowWriter, SlotWriter};

use super::course::PlannedRow;
use super::stretch::Stretch;

/// Draws for one row before the batch is given up.
const MAX_ATTEMPTS: u32 = 8;

/// One row: which record, for which position, and where it goes. Travels to the reader, a worker, and back.
pub(super) struct Row {
    /// Place in the batch.
    pub at: usize,
    /// Position in the epoch; decides the randomness, whichever record stands in.
    pub position: u64,
    /// The record, in the stretch.
    pub index: u64,
    /// Where it is drawn from.
    pub stretch: Arc<Stretch>,
    /// 0: as planned; n: the n-th substitute.
    pub attempt: u32,
    /// Where its bytes go.
    pub writer: RowWriter,
}

impl Row {
    /// The record is bad: its name, and why.
    pub fn refused(&self, reason: String, bytes: u64, hash: String) -> Refused {
        let (key, index) = (self.stretch.key(self.index), self.stretch.id(self.index));
        Refused { key, index, reason, bytes, hash }
    }
}

/// What stands in a row.
#[derive(Clone, Copy, Debug)]
enum Content {
    Pending,
    Written { id: i64, label: i64, part: i64, position: u64, substituted: bool },
    Dropped,
}

pub(super) struct Batch {
    pub id: u64,
    pub cursor: Cursor,
    pub next: Cursor,
    slot: SlotWriter,
    waiting: VecDeque<Row>,
    contents: Vec<Content>,
    out: usize,
    refused: Vec<(usize, Refused)>,
    verdict: Verdict,
}

/// Whether the batch can be handed over.
pub(super) enum Verdict {
    Good,
    Failed(Refusal),
}

/// What a finished batch holds.
pub(super) struct Counts {
    pub rows: u32,
    pub substituted: u32,
    pub dropped: u32,
}

impl Batch {
    pub fn new(
        id: u64,
        cursor: Cursor,
        next: Cursor,
        slot: SlotWriter,
        rows: Vec<PlannedRow>,
        writers: Vec<RowWriter>,
    ) -> Self {
        let contents = vec![Content::Pending; rows.len()];
        let waiting = rows
            .into_iter()
            .zip(writers)
            .enumerate()
            .map(|(at, (row, writer))| {
                let PlannedRow { position, index, stretch } = row;
                Row { at, position, index, stretch, attempt: 0, writer }
            })
            .collect();
        Self {
            id,
            cursor,
            next,
            slot,
            waiting,
            contents,
            out: 0,
            refused: Vec::new(),
            verdict: Verdict::Good,
        }
    }

    /// The slot, written.
    pub fn into_slot(self) -> SlotWriter {
        self.slot
    }

    /// The next row to ask for.
    pub fn peek(&self) -> Option<&Row> {
        self.waiting.front()
    }

    /// Takes that row out.
    pub fn take(&mut self) -> Row {
        self.out += 1;
        self.waiting.pop_front().expect("peek gave a row")
    }

    /// One of the rows taken is back.
    pub fn came_back(&mut self) {
        self.out -= 1;
    }

    pub fn is_finished(&self) -> bool {
        self.out == 0 && self.waiting.is_empty()
    }

    pub fn written(&mut self, row: Row) {
        let Row { at, position, index, stretch, attempt, writer: _ } = row;
        self.contents[at] = Content::Written {
            id: stretch.id(index),
            label: stretch.label(index),
            part: stretch.part(index).unwrap_or(0),
            position,
            substituted: attempt > 0,
        };
    }

    /// A record turned out bad: draws another, leaves the row out, or gives the batch up.
    pub fn refused(&mut self, mut row: Row, refused: Refused, on_error: OnError) {
        let last = format!("{}: {}", refused.key, refused.reason);
        self.refused.push((row.at, refused));
        match on_error {
            OnError::Substitute if row.attempt < MAX_ATTEMPTS => {
                row.attempt += 1;
                row.index = row.stretch.substitute(row.position, row.attempt);
                // Ahead of the rest: this batch is the one that waits for it.
                self.waiting.push_front(row);
            }
            OnError::Substitute => self.fail(Refusal::new(
                ErrorKind::Data,
                format!("{MAX_ATTEMPTS} substitutes in a row were bad records too; the last: {last}"),
            )),
            OnError::Drop => self.contents[row.at] = Content::Dropped,
            // Whoever hands the batch over knows the record's key and says why the run stops.
            OnError::Fail => {
                self.contents[row.at] = Content::Dropped;
                self.waiting.clear();
            }
        }
    }

    /// Gives the batch up; its remaining rows are not asked for.
    pub fn fail(&mut self, refusal: Refusal) {
        self.waiting.clear();
        if matches!(self.verdict, Verdict::Good) {
            self.verdict = Verdict::Failed(refusal);
        }
    }

    pub fn verdict(&self) -> &Verdict {
        &self.verdict
    }

    /// The refused records in row order, which does not depend on which worker was first.
    pub fn take_refused(&mut self) -> Vec<(usize, Refused)> {
        let mut refused = std::mem::take(&mut self.refused);
        refused.sort_by_key(|(at, _)| *at);
        refused
    }

    /// Closes the gaps of dropped rows and writes the columns.
    pub fn finish(&mut self, layout: &Layout) -> Counts {
        let memory = self.slot.whole().expect("every row is back");
        let mut counts = Counts { rows: 0, substituted: 0, dropped: 0 };
        for (at, content) in self.contents.iter().enumerate() {
            let (id, label, part, position, substituted) = match *content {
                Content::Written { id, label, part, position, substituted } => {
                    (id, label, part, position, substituted)
                }
                Content::Dropped => {
                    counts.dropped += 1;
                    continue;
                }
                Content::Pending => unreachable!("a finished batch has no pending row"),
            };
            let to = counts.rows as usize;
            if to != at {
                // The only time the daemon reads a slot back: on_error = "drop" met a bad record.
                for field in &layout.fields {
                    let (offset, row_bytes) = (field.offset as usize, field.row_bytes as usize);
                    let from = offset + at * row_bytes;
                    memory.copy_within(from..from + row_bytes, offset + to * row_bytes);
                }
            }
            for column in &layout.columns {
                let offset = (column.offset + to as u64 * column.dtype.size()) as usize;
                let number = match column.name {
                    Column::Label => label,
                    Column::Index => id,
                    Column::Position => position as i64,
                    Column::Substituted => i64::from(substituted),
                    Column::Part => part,
                };
                let bytes = column.dtype.size() as usize;
                memory[offset..offset + bytes].copy_from_slice(&number.to_le_bytes()[..bytes]);
            }
            counts.rows += 1;
            counts.substituted += u32::from(substituted);
        }
        counts
    }
}
