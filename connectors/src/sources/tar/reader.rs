//! Records out of ranges of shards: the image, the arrays beside it, and the pieces that the index was made of.
//!
//! ```text
//!   in the shard   │ header │ emb.npy │ header │ cls │ header │ image │      one range where the pieces are near,
//!                  ╰───────────╯      ╰──────────────────╯                   several where they are not
//!   the record     │ image │ emb │ numbers of the json member │
//! ```
//!
//! What is there now is compared with what was indexed, so that an image is never delivered with the label of another.
//!
//! The ranges are read by the shards' own readers; here they are put together on the thread that finished the last one.

use std::sync::{Arc, Mutex};

use super::fields::Place;
use super::proof::{self, digest, seal};
use super::{Shard, Tar};
use crate::bytes::shards::Ranges;
use crate::workers::{Meter, finish, lock};
use crate::{
    Buffer, Done, IndexedSource, POOL_BYTES, ReadError, ReadRequest, ReadStats, Reader, ReaderConfig,
    SourceError,
};

/// Pieces this near to each other are read as one: a second read costs more than these bytes.
const NEAR: u64 = 16 << 10;

/// Records that wait for a part of theirs, about: the depth of a reader.
const WAITING: u64 = 32;

/// Starts a reader.
pub(super) fn start(tar: Arc<Tar>, config: &ReaderConfig) -> Result<Box<dyn Reader>, SourceError> {
    let mut lanes = [None, None];
    for (number, lane) in lanes.iter_mut().enumerate() {
        if let Some(shards) = tar.lane(number)
            && tar.shards.iter().any(|part| part.place.lane == number)
        {
            let ranges = Arc::new(Spans { tar: tar.clone() });
            *lane = Some(shards.clone().reader(ranges, config)?);
        }
    }
    Ok(Box::new(Pieces { tar, lanes, meter: Arc::default() }))
}

/// What a reader holds beside what the engine counts: with fields, records exist twice while they are put together.
pub(super) fn memory(tar: &Tar) -> u64 {
    let lanes = if tar.shards.iter().any(|part| part.place.lane != tar.shards[0].place.lane) { 2 } else { 1 };
    // The readers of two lanes have a pool each.
    let pools = (lanes - 1) * POOL_BYTES;
    let proof = |part: &Shard| part.index.pieces.iter().map(proof::Pieces::longest).sum::<u64>();
    let gaps = tar.shards[0].index.pieces.len() as u64 - 1;
    let beside = tar.shards.iter().map(proof).max().unwrap_or(0) + gaps * NEAR;
    let twice = if tar.schema == crate::Schema::images() { 0 } else { tar.largest };
    pools + WAITING * (beside + twice)
}

/// A stretch of a shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Span {
    offset: u64,
    len: u64,
}

impl Span {
    fn end(self) -> u64 {
        self.offset + self.len
    }
}

impl Tar {
    /// The most spans that a record may have.
    fn stride(&self) -> u64 {
        let arrays =
            self.shards[0].index.fields.iter().filter(|field| matches!(field.place, Place::Shard(_)));
        let index = &self.shards[0].index;
        (1 + index.pieces.len() + index.members.len() + arrays.count()) as u64
    }

    /// The image, in a shard.
    fn image(part: &Shard, record: usize) -> Span {
        Span { offset: part.index.offsets[record], len: part.index.size(record) }
    }

    /// What has to be read for a record: its pieces, the near ones together. What is only compared stays alone where it
    /// is long, for what is read with the image is kept as long as that.
    fn spans(&self, part: &Shard, record: usize) -> Vec<Span> {
        let mut pieces = Vec::new();
        if self.schema.image {
            pieces.push(Self::image(part, record));
        }
        let offset = part.index.offsets[record];
        let members = part.index.members.iter().filter_map(|members| members.get(record, offset));
        pieces.extend(members.map(|(offset, len)| Span { offset, len }));
        let mut alone = Vec::new();
        for (offset, len) in part.index.proof(record) {
            if len > NEAR { &mut alone } else { &mut pieces }.push(Span { offset, len });
        }
        for field in &part.index.fields {
            if let Place::Shard(offsets) = &field.place {
                pieces.push(Span { offset: offsets[record], len: field.bytes() as u64 });
            }
        }
        pieces.sort_unstable_by_key(|piece| piece.offset);
        let mut spans: Vec<Span> = Vec::with_capacity(pieces.len());
        for piece in pieces {
            match spans.last_mut() {
                Some(last) if piece.offset <= last.end().saturating_add(NEAR) => {
                    last.len = last.end().max(piece.end()) - last.offset;
                }
                _ => spans.push(piece),
            }
        }
        spans.append(&mut alone);
        spans
    }

    /// The error of a record that was made of something else.
    fn changed(&self, index: u64, part: &Shard) -> ReadError {
        let shard = self.given.display(part.place.shard);
        ReadError::replaced(
            self.key(index),
            format!(
                "{shard} has changed since it was indexed: another member is where this one, its label or a field of it was; \
                 keep the shards unchanged while they are in use, or start again (and delete {shard}.idx if it is older)"
            ),
        )
    }

    /// A record from the spans that were read for it.
    fn assemble(&self, index: u64, spans: &[Span], mut read: Vec<Buffer>) -> Result<Buffer, ReadError> {
        let (part, record) = self.part(index);
        let find = |piece: Span| {
            let at = spans.iter().position(|span| span.offset <= piece.offset && piece.end() <= span.end());
            let at = at.expect("each piece is in a span");
            let begin = (piece.offset - spans[at].offset) as usize;
            (at, begin..begin + piece.len as usize)
        };
        let digests = part.index.proof(record).map(|(offset, len)| {
            let (at, range) = find(Span { offset, len });
            digest(&read[at][range])
        });
        if seal(digests) != part.index.checks[record] {
            return Err(self.changed(index, part));
        }
        let mut fields = Vec::with_capacity(self.fields_bytes as usize);
        for field in &part.index.fields {
            match &field.place {
                Place::Here(values) => {
                    fields.extend_from_slice(&values[record * field.bytes()..][..field.bytes()])
                }
                Place::Shard(offsets) => {
                    let (at, range) = find(Span { offset: offsets[record], len: field.bytes() as u64 });
                    fields.extend_from_slice(&read[at][range]);
                }
            }
        }
        if self.schema.parts.is_empty() && self.schema.image {
            let (at, range) = find(Self::image(part, record));
            return self.behind(index, read.swap_remove(at), range, &fields);
        }
        let image = match self.schema.image {
            true => {
                let (at, range) = find(Self::image(part, record));
                &read[at][range]
            }
            false => &[],
        };
        let mut parts = Vec::with_capacity(self.parts.len());
        for (of, spec) in self.parts.iter().zip(&self.schema.parts) {
            let place = part.index.members[of.file].get(record, part.index.offsets[record]);
            parts.push(match place {
                None => None,
                Some((offset, len)) => {
                    let (at, range) = find(Span { offset, len });
                    let made = of.make(&read[at][range], &spec.kind);
                    made.map_err(|why| ReadError::bad(self.key(index), why))?
                }
            });
        }
        let len = self
            .schema
            .record_bytes(image.len(), parts.iter().map(|part| part.as_ref().map(|part| part.len())));
        let mut whole = self.room(index, len)?;
        whole.resize(len, 0);
        self.schema.join(image, parts.iter().map(|part| part.as_deref()), &fields, &mut whole);
        Ok(Buffer::from(whole))
    }

    /// Memory for a record that is put together.
    fn room(&self, index: u64, len: usize) -> Result<Vec<u8>, ReadError> {
        let mut whole = Vec::new();
        let lack = |_| ReadError::io(self.key(index), format!("{len} bytes do not fit in memory"), true);
        whole.try_reserve_exact(len).map_err(lack)?;
        Ok(whole)
    }

    /// An image that was read with other things, and its fields: it stays where it is if there is room behind it.
    fn behind(
        &self,
        index: u64,
        mut bytes: Buffer,
        range: std::ops::Range<usize>,
        fields: &[u8],
    ) -> Result<Buffer, ReadError> {
        let len = range.len() + fields.len();
        let room = bytes.capacity();
        let begin = if range.start + len <= room { range.start } else { 0 };
        if begin + len > room {
            let mut whole = self.room(index, len)?;
            whole.extend_from_slice(&bytes[range]);
            whole.extend_from_slice(fields);
            return Ok(Buffer::from(whole));
        }
        let storage = bytes.storage();
        if begin != range.start {
            storage.copy_within(range.clone(), begin);
        }
        storage[begin + range.len()..begin + len].copy_from_slice(fields);
        bytes.set_range(begin, len);
        Ok(bytes)
    }
}

/// Spans as records of their own: span `s` of record `r` is number `r * stride + s`.
struct Spans {
    tar: Arc<Tar>,
}

impl Ranges for Spans {
    fn locate(&self, index: u64) -> (usize, u64, u64) {
        let stride = self.tar.stride();
        let (part, record) = self.tar.part(index / stride);
        let span = self.tar.spans(part, record)[(index % stride) as usize];
        (part.place.file, span.offset, span.len)
    }

    fn key(&self, index: u64) -> String {
        self.tar.key(index / self.tar.stride())
    }
}

/// The reader.
struct Pieces {
    tar: Arc<Tar>,
    /// Readers of the shards as given, and of those that were unpacked.
    lanes: [Option<Box<dyn Reader>>; 2],
    meter: Arc<Meter>,
}

/// A record that is being read in pieces.
struct Joint {
    index: u64,
    spans: Vec<Span>,
    state: Mutex<JointState>,
}

struct JointState {
    /// Taken by whoever ends the request.
    done: Option<Done>,
    read: Vec<Option<Buffer>>,
}

impl Joint {
    /// One span is there; the last one, and the first error, end the request.
    fn arrive(&self, tar: &Tar, meter: &Meter, place: usize, result: Result<Buffer, ReadError>) {
        let mut state = lock(&self.state);
        let result = match result {
            Ok(bytes) => {
                state.read[place] = Some(bytes);
                if state.read.iter().any(Option::is_none) {
                    return;
                }
                Ok(state.read.drain(..).flatten().collect())
            }
            Err(error) => Err(error),
        };
        let Some(done) = state.done.take() else { return };
        drop(state);
        end(meter, self.index, done, result.and_then(|read| tar.assemble(self.index, &self.spans, read)));
    }
}

fn end(meter: &Meter, index: u64, done: Done, result: Result<Buffer, ReadError>) {
    meter.end(&result);
    finish(ReadRequest { index, done }, result);
}

impl Reader for Pieces {
    fn submit(&self, requests: Vec<ReadRequest>) {
        self.meter.begin(requests.len() as u64);
        let stride = self.tar.stride();
        let mut lanes = [Vec::new(), Vec::new()];
        for ReadRequest { index, done } in requests {
            let (part, record) = self.tar.part(index);
            let (tar, meter) = (self.tar.clone(), self.meter.clone());
            let lane = &mut lanes[part.place.lane];
            if let Some(why) = tar.bad.get(index) {
                end(&meter, index, done, Err(ReadError::bad(tar.key(index), why.to_owned())));
                continue;
            }
            let spans = self.tar.spans(part, record);
            if spans.len() == 1 {
                let whole = move |result: Result<crate::Record, ReadError>| {
                    let record = result.map(|record| vec![record.bytes]);
                    let record = record.and_then(|read| tar.assemble(index, &spans, read));
                    end(&meter, index, done, record);
                };
                lane.push(ReadRequest { index: index * stride, done: Box::new(whole) });
                continue;
            }
            let state = JointState { done: Some(done), read: spans.iter().map(|_| None).collect() };
            let joint = Arc::new(Joint { index, spans, state: Mutex::new(state) });
            for place in 0..joint.spans.len() {
                let (joint, tar, meter) = (joint.clone(), tar.clone(), meter.clone());
                let arrived = move |result: Result<crate::Record, ReadError>| {
                    joint.arrive(&tar, &meter, place, result.map(|record| record.bytes));
                };
                lane.push(ReadRequest { index: index * stride + place as u64, done: Box::new(arrived) });
            }
        }
        for (reader, requests) in self.lanes.iter().zip(lanes) {
            if let Some(reader) = reader
                && !requests.is_empty()
            {
                reader.submit(requests);
            }
        }
    }

    fn stats(&self) -> ReadStats {
        let mut stats = self.meter.stats("none");
        for inner in self.lanes.iter().flatten().map(|lane| lane.stats()) {
            stats.backend = inner.backend;
            stats.submissions += inner.submissions;
        }
        stats
    }
}
