//! `fuelrail inspect`: what a source holds, before anything is trained on it.
//!
//! Records, classes and sizes are counted over the whole source, from its index. Formats, dimensions and unreadable
//! records, lengths of parts and ranges of numbers are found by reading: all records of a small source, and of a large
//! one N, spread evenly.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;
use fuelrail_connectors::{Blocks, Cut, IndexedSource, ReadError, ReadErrorKind, Record, Schema, shown};
use fuelrail_transforms::{
    Chain, Dtype, ImageInfo, Layout, Limits, OutputConfig, SampleKey, Scratch, TransformConfig, compile,
};
use image::RgbImage;
use indicatif::{HumanBytes, HumanCount};
use serde_json::{Value, json};

use super::bars::{Bar, counted};
use super::{Failure, parts, preview, ranges, read, signals, source};

/// Unreadable records and classes that are written out; all are counted.
const LISTED: usize = 20;

/// Side of a picture on the contact sheet.
const TILE: u32 = 160;

/// Upper ends of the histogram's rows, in pixels of the longer side.
const STEPS: [u32; 12] = [32, 64, 128, 256, 384, 512, 768, 1024, 1536, 2048, 4096, u32::MAX];

#[derive(Debug, Args)]
pub(super) struct Inspect {
    #[arg(value_name = "SOURCE", help = source::SOURCE)]
    source: String,
    #[arg(long = "source-option", alias = "option", short_alias = 'o', value_name = "KEY=VALUE", help = source::OPTION)]
    options: Vec<String>,
    #[arg(long, value_name = "JSON", help = parts::FIELDS)]
    fields: Option<String>,
    /// Read at most N records, spread evenly over the source
    #[arg(long, default_value_t = 20_000, value_name = "N", allow_negative_numbers = true, value_parser = super::at_least::<u64, 1>)]
    sample: u64,
    /// Decode every image that is read, instead of its header only
    #[arg(long)]
    decode: bool,
    /// Write a contact sheet of the source as a PNG
    #[arg(long, value_name = "FILE")]
    sheet: Option<PathBuf>,
    /// Number of pictures on the sheet
    #[arg(long, value_name = "N", default_value_t = 24, value_parser = clap::value_parser!(u64).range(1..=1024), requires = "sheet")]
    count: u64,
    /// Print one JSON object instead of the report
    #[arg(long, conflicts_with = "list")]
    json: bool,
    /// Print one JSON object per record instead: key, label, bytes and CRC-32, in the order of the source
    #[arg(long, conflicts_with = "sheet")]
    list: bool,
}

/// What is found out about one record.
#[derive(Debug)]
struct Look {
    format: &'static str,
    width: u32,
    height: u32,
    chroma: Option<&'static str>,
}

impl Inspect {
    pub fn run(self) -> Result<(), Failure> {
        signals::watch()?;
        if let Some(sheet) = &self.sheet {
            preview::writable("--sheet", sheet)?;
        }
        let source = read::open(&self.source, &self.options, self.fields.as_deref())?;
        if self.list {
            return list(&source);
        }
        let mut report = Report::new(&source);
        let schema = source.schema();
        self.look(&source, &schema, &mut report)?;
        if let Some(path) = &self.sheet {
            self.draw(&source, &schema, path)?;
        }
        if self.json {
            say!("{}", serde_json::to_string_pretty(&report.json(&source))?);
        } else {
            report.print(&self.source, &source);
            if let Some(path) = &self.sheet {
                say!("\ncontact sheet   {}", shown(&path));
            }
        }
        Ok(())
    }

    fn look(
        &self,
        source: &Arc<dyn IndexedSource>,
        schema: &Schema,
        report: &mut Report,
    ) -> Result<(), Failure> {
        let len = source.len();
        report.sampled = len.min(self.sample);
        let sampled = report.sampled;
        let bar =
            Bar::new(Some(sampled), "reading {wide_bar} {human_pos} of {human_len}  {rate}  {eta} left");
        let chain = self.decode.then(|| thumbnail(8)).transpose()?.map(Arc::new);
        let cut = schema.clone();
        read::in_order(
            source,
            sampled,
            |at| spread(at, sampled, len),
            move |_, result| {
                let bytes = result.as_ref().ok().map(|record| record.bytes.len() as u64);
                (bytes, look(result, &cut, chain.as_deref()))
            },
            |at, (bytes, found)| {
                bar.inc(1);
                if let Some(bytes) = bytes {
                    report.weigh(spread(at, sampled, len), bytes);
                }
                match found {
                    Found::Record(image, parts, numbers) => {
                        ranges::add(&mut report.ranges, &numbers);
                        image.iter().for_each(|look| report.add(look));
                        let key = || source.key(spread(at, sampled, len));
                        report.parts.resize_with(parts.len(), parts::Found::default);
                        for (found, seen) in report.parts.iter_mut().zip(parts) {
                            found.add(seen, key);
                        }
                    }
                    Found::Unreadable(why) => {
                        report.unreadable.push((source.key(spread(at, sampled, len)), why));
                    }
                    Found::Failed(why) => return Err(why.into()),
                }
                Ok(())
            },
        )?;
        drop(bar);
        report.settle(len);
        Ok(())
    }

    fn draw(&self, source: &Arc<dyn IndexedSource>, schema: &Schema, path: &Path) -> Result<(), Failure> {
        if !schema.image {
            return Err("--sheet: the source holds no images".into());
        }
        let chain = Arc::new(thumbnail(TILE)?);
        let (count, cut) = (self.count.min(source.len()), schema.clone());
        let mut tiles = Vec::new();
        let mut captions = Vec::new();
        read::in_order(
            source,
            count,
            |at| spread(at, count, source.len()),
            move |_, result| {
                let mut row = vec![0; chain.output().row_bytes()];
                let record = result.ok()?;
                let image = cut.cut(&record.bytes)?.image;
                with_scratch(|scratch| chain.apply(image, KEY, scratch, &mut row)).ok()?;
                RgbImage::from_raw(TILE, TILE, row)
            },
            |at, tile| {
                // What cannot be read is a red tile, so that the others stay in their places.
                tiles.push(
                    tile.unwrap_or_else(|| RgbImage::from_pixel(TILE, TILE, image::Rgb([200, 40, 40]))),
                );
                let (row, column) = (at / 6 + 1, at % 6 + 1);
                captions.push(format!(
                    "row {row} column {column}: {}",
                    source.key(spread(at, count, source.len()))
                ));
                Ok(())
            },
        )?;
        let sheet = preview::contact_sheet(&tiles, 6);
        preview::save(&sheet, path)?;
        // After the file is written: a reader that takes only the first lines has it all the same.
        captions.iter().filter(|_| !self.json).for_each(|caption| say!("{caption}"));
        Ok(())
    }
}

/// The `at`th of `count` records spread evenly over `len`.
fn spread(at: u64, count: u64, len: u64) -> u64 {
    (u128::from(at) * u128::from(len) / u128::from(count)) as u64
}

const KEY: SampleKey = SampleKey { seed: 0, epoch: 0, position: 0 };

fn with_scratch<T>(work: impl FnOnce(&mut Scratch) -> T) -> T {
    thread_local! {
        static SCRATCH: RefCell<Scratch> = RefCell::default();
    }
    SCRATCH.with_borrow_mut(work)
}

/// The middle square of an image, in `side` x `side` pixels.
fn thumbnail(side: u32) -> Result<Chain, Failure> {
    let chain: Vec<TransformConfig> = serde_json::from_value(json!([
        {"type": "Resize", "size": side},
        {"type": "CenterCrop", "size": [side, side]},
    ]))?;
    let output = OutputConfig { dtype: Some(Dtype::U8), layout: Layout::Nhwc, ..OutputConfig::default() };
    Ok(compile(&chain, &output, Limits::default())?)
}

enum Found {
    /// Its own image, if it has one, its parts and its numbers.
    Record(Option<Look>, Vec<parts::Seen>, Vec<ranges::Range>),
    Unreadable(String),
    Failed(String),
}

fn look(result: Result<Record, ReadError>, schema: &Schema, chain: Option<&Chain>) -> Found {
    let record = match result {
        Ok(record) => record,
        Err(error) if error.kind() == ReadErrorKind::Bad => {
            return Found::Unreadable(error.detail().to_owned());
        }
        Err(error) => return Found::Failed(error.to_string()),
    };
    let Some(Cut { image, parts, fields }) = schema.cut(&record.bytes) else {
        return Found::Unreadable("it is shorter than its fields".into());
    };
    let parts = schema.parts.iter().zip(parts);
    let parts =
        with_scratch(|scratch| parts.map(|(part, bytes)| parts::look(part, bytes, scratch)).collect());
    let numbers = ranges::look(&schema.fields, fields);
    if !schema.image {
        return Found::Record(None, parts, numbers);
    }
    let read = with_scratch(|scratch| {
        let info = ImageInfo::read(image, &Limits::default(), scratch)?;
        if let Some(chain) = chain {
            chain.apply(image, KEY, scratch, &mut vec![0; chain.output().row_bytes()])?;
        }
        Ok::<_, fuelrail_transforms::SampleError>(info)
    });
    match read {
        Err(error) => Found::Unreadable(error.to_string()),
        Ok(ImageInfo { format, width, height }) => {
            let chroma = (format == "jpeg").then(|| chroma(image)).flatten();
            Found::Record(Some(Look { format, width, height, chroma }), parts, numbers)
        }
    }
}

/// How a JPEG stores its colours, from the frame header.
fn chroma(jpeg: &[u8]) -> Option<&'static str> {
    let mut rest = jpeg.get(2..)?;
    loop {
        let [0xff, marker, ..] = rest else { return None };
        match *marker {
            0xff => rest = &rest[1..],
            0x01 | 0xd0..=0xd8 => rest = &rest[2..],
            0xda | 0xd9 => return None,
            0xc0..=0xcf if ![0xc4, 0xc8, 0xcc].contains(marker) => {
                let frame = rest.get(4..)?;
                let count = usize::from(*frame.get(5)?);
                let factors: Vec<u8> = (0..count).map_while(|n| frame.get(6 + n * 3 + 1).copied()).collect();
                return Some(match factors[..] {
                    [_] => "gray",
                    [0x11, 0x11, 0x11] => "4:4:4",
                    [0x21, 0x11, 0x11] => "4:2:2",
                    [0x22, 0x11, 0x11] => "4:2:0",
                    [0x12, 0x11, 0x11] => "4:4:0",
                    [0x41, 0x11, 0x11] => "4:1:1",
                    [_, _, _, _] => "four inks",
                    _ => "other",
                });
            }
            _ => {
                let len = usize::from(u16::from_be_bytes([*rest.get(2)?, *rest.get(3)?]));
                rest = rest.get(2 + len..)?;
            }
        }
    }
}

/// A record's label, if it has one.
fn label(source: &Arc<dyn IndexedSource>, index: u64) -> Option<i64> {
    (source.is_labelled() && source.verdict(index).is_none()).then(|| source.label(index))
}

/// One line per record.
fn list(source: &Arc<dyn IndexedSource>) -> Result<(), Failure> {
    let mut out = BufWriter::new(std::io::stdout().lock());
    read::in_order(
        source,
        source.len(),
        |at| at,
        |_, result| result.map(|record| (record.bytes.len(), crc32fast::hash(&record.bytes))),
        |at, found| {
            let line = match found {
                Ok((bytes, crc32)) => {
                    json!({"key": source.key(at), "label": label(source, at), "bytes": bytes, "crc32": crc32})
                }
                Err(error) if error.kind() == ReadErrorKind::Bad => {
                    json!({"key": source.key(at), "label": label(source, at), "error": error.detail()})
                }
                Err(error) => return Err(error.to_string().into()),
            };
            writeln!(out, "{line}")?;
            Ok(())
        },
    )?;
    out.flush()?;
    Ok(())
}

/// Everything that was found out.
struct Report {
    sampled: u64,
    total_bytes: u64,
    /// As the index knows them; of a table's records that is an average. Of a source that was read whole, as they are.
    largest: (u64, u64),
    smallest: (u64, u64),
    labels: BTreeMap<i64, u64>,
    formats: BTreeMap<&'static str, u64>,
    chroma: BTreeMap<&'static str, u64>,
    widths: Vec<u32>,
    heights: Vec<u32>,
    steps: [u64; STEPS.len()],
    unreadable: Vec<(String, String)>,
    read: Weights,
    /// Of each named part.
    parts: Vec<parts::Found>,
    /// Of each field of numbers.
    ranges: Vec<ranges::Range>,
}

/// Sizes of records that were read.
struct Weights {
    records: u64,
    bytes: u64,
    largest: (u64, u64),
    smallest: (u64, u64),
}

impl Report {
    /// What the index knows.
    fn new(source: &Arc<dyn IndexedSource>) -> Self {
        let mut report = Self {
            sampled: 0,
            total_bytes: 0,
            largest: (0, 0),
            smallest: (u64::MAX, 0),
            labels: BTreeMap::new(),
            formats: BTreeMap::new(),
            chroma: BTreeMap::new(),
            widths: Vec::new(),
            heights: Vec::new(),
            steps: [0; STEPS.len()],
            unreadable: Vec::new(),
            read: Weights { records: 0, bytes: 0, largest: (0, 0), smallest: (u64::MAX, 0) },
            parts: Vec::new(),
            ranges: Vec::new(),
        };
        for index in 0..source.len() {
            let size = source.size(index);
            report.total_bytes += size;
            report.largest = report.largest.max((size, index));
            report.smallest = report.smallest.min((size, index));
            if let Some(label) = label(source, index) {
                *report.labels.entry(label).or_default() += 1;
            }
        }
        report
    }

    fn weigh(&mut self, index: u64, bytes: u64) {
        self.read.records += 1;
        self.read.bytes += bytes;
        self.read.largest = self.read.largest.max((bytes, index));
        self.read.smallest = self.read.smallest.min((bytes, index));
    }

    /// Takes the sizes that were read for those of the index, when all were.
    fn settle(&mut self, len: u64) {
        if self.read.records == len {
            (self.total_bytes, self.largest, self.smallest) =
                (self.read.bytes, self.read.largest, self.read.smallest);
        }
    }

    fn add(&mut self, look: &Look) {
        *self.formats.entry(look.format).or_default() += 1;
        if let Some(chroma) = look.chroma {
            *self.chroma.entry(chroma).or_default() += 1;
        }
        self.widths.push(look.width);
        self.heights.push(look.height);
        let longer = look.width.max(look.height);
        self.steps[STEPS.partition_point(|&step| step < longer)] += 1;
    }

    fn class(source: &Arc<dyn IndexedSource>, label: i64) -> String {
        let name = usize::try_from(label).ok().and_then(|label| source.classes().get(label));
        name.cloned().unwrap_or_else(|| label.to_string())
    }

    fn json(&self, source: &Arc<dyn IndexedSource>) -> Value {
        let [widths, heights] = [&self.widths, &self.heights].map(|values| {
            parts::spread(values)
                .map(|[min, median, _, max]| json!({"min": min, "median": median, "max": max}))
        });
        let steps: Vec<Value> = STEPS
            .iter()
            .zip(self.steps)
            .filter(|&(_, count)| count > 0)
            .map(|(&step, count)| json!({"longer_side_up_to": (step != u32::MAX).then_some(step), "images": count}))
            .collect();
        let labels: Vec<Value> = self
            .labels
            .iter()
            .map(|(&label, &records)| json!({"label": label, "class": Self::class(source, label), "records": records}))
            .collect();
        let schema = source.schema();
        let parts = schema.parts.iter().zip(&self.parts).map(|(part, found)| found.json(part));
        let parts: Vec<Value> = parts.collect();
        json!({
            "records": source.len(),
            "bytes": self.total_bytes,
            "fingerprint": source.fingerprint(),
            "index_memory_bytes": source.memory(),
            "blocks": match source.blocks() { Blocks::None => 0, Blocks::Lengths { lengths, .. } => lengths.len() },
            "schema": source.schema(),
            "labelled": source.is_labelled(),
            "classes": source.classes(),
            "labels": labels,
            "record_bytes": {"min": self.smallest.0, "mean": self.total_bytes / source.len(), "max": self.largest.0},
            "sampled": self.sampled,
            "formats": self.formats,
            "chroma": self.chroma,
            "width": widths,
            "height": heights,
            "histogram": steps,
            "parts": parts,
            "numbers": ranges::json(&schema.fields, &self.ranges),
            "unreadable": self.unreadable.len(),
            "unreadable_records":
                self.unreadable.iter().map(|(key, why)| json!({"key": key, "why": why})).collect::<Vec<_>>(),
        })
    }

    fn print(&self, address: &str, source: &Arc<dyn IndexedSource>) {
        let len = source.len();
        say!("source          {address}");
        say!("records         {}", HumanCount(len));
        say!(
            "bytes           {} (per record: {} to {}, {} on average)",
            HumanBytes(self.total_bytes),
            HumanBytes(self.smallest.0),
            HumanBytes(self.largest.0),
            HumanBytes(self.total_bytes / len)
        );
        say!("largest         {}", source.key(self.largest.1));
        if let Blocks::Lengths { lengths, .. } = source.blocks() {
            say!("blocks          {}", HumanCount(lengths.len() as u64));
        }
        say!("index           {} of memory", HumanBytes(source.memory()));
        say!("fingerprint     {}", source.fingerprint());
        let schema = source.schema();
        let fields =
            schema.fields.iter().map(|field| format!("{} ({} {:?})", field.name, field.dtype, field.shape));
        let image = schema.image.then(|| "image".to_owned());
        let parts = schema.parts.iter().map(|part| part.name.clone());
        say!(
            "a record holds  {}",
            image.into_iter().chain(parts).chain(fields).collect::<Vec<_>>().join(", ")
        );
        if let Some(beside) = source.beside() {
            say!("other members   {beside}; use --fields to inspect them");
        }
        self.print_labels(source);
        let all =
            if self.sampled == len { "all" } else { "spread evenly over the source; --sample N reads more" };
        say!("\nread            {}, {all}", counted(self.sampled, "record"));
        for (part, found) in schema.parts.iter().zip(&self.parts) {
            found.print(part);
        }
        ranges::print(&schema.fields, &self.ranges);
        if schema.image {
            self.print_images();
        }
        self.print_unreadable();
    }

    fn print_images(&self) {
        let counts = |counts: &BTreeMap<&str, u64>| {
            let mut counts: Vec<_> = counts.iter().collect();
            counts.sort_by_key(|&(_, &count)| std::cmp::Reverse(count));
            counts
                .iter()
                .map(|(name, count)| format!("{name} {}", HumanCount(**count)))
                .collect::<Vec<_>>()
                .join(", ")
        };
        say!("formats         {}", counts(&self.formats));
        if !self.chroma.is_empty() {
            say!("JPEG colours    {}", counts(&self.chroma));
        }
        for (what, values) in [("width", &self.widths), ("height", &self.heights)] {
            if let Some([min, median, _, max]) = parts::spread(values) {
                say!("{what:<15} {min} to {max} pixels, median {median}");
            }
        }
        say!("longer side     images");
        let most = self.steps.iter().copied().max().unwrap_or_default().max(1);
        let first = self.steps.iter().position(|&count| count > 0).unwrap_or_default();
        let last = self.steps.iter().rposition(|&count| count > 0).unwrap_or_default();
        for (step, count) in STEPS.iter().zip(self.steps).take(last + 1).skip(first) {
            let step = if *step == u32::MAX { "> 4096".to_owned() } else { format!("<= {step}") };
            // At least one mark for whatever is there.
            let marks = (count * 50).div_ceil(most) as usize;
            say!("  {step:<13} {:<50} {}", "#".repeat(marks), HumanCount(count));
        }
    }

    fn print_unreadable(&self) {
        match self.unreadable.len() {
            0 => say!("unreadable      none"),
            count => {
                say!("unreadable      {}", HumanCount(count as u64));
                for (key, why) in self.unreadable.iter().take(LISTED) {
                    say!("  {key}: {why}");
                }
                if count > LISTED {
                    say!("  … and {} more; --json lists them all", count - LISTED);
                }
            }
        }
    }

    fn print_labels(&self, source: &Arc<dyn IndexedSource>) {
        if !source.is_labelled() {
            say!("labels          none found; if there are any, say where with -o label=…");
            return;
        }
        let named = if source.classes().is_empty() { "labels" } else { "classes" };
        say!("{named:<15} {}", HumanCount(source.classes().len().max(self.labels.len()) as u64));
        let mut counts: Vec<_> = self.labels.iter().collect();
        counts.sort_by_key(|&(label, &count)| (std::cmp::Reverse(count), *label));
        let line = |(label, count): &(&i64, &u64)| {
            say!("  {:<30} {}", Self::class(source, **label), HumanCount(**count));
        };
        if counts.len() > LISTED {
            counts[..LISTED / 2].iter().for_each(line);
            say!("  …");
            counts[counts.len() - LISTED / 2..].iter().for_each(line);
        } else if counts.len() > 1 {
            counts.iter().for_each(line);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_frame_header_says_how_colours_are_stored() {
        let jpeg = |factors: &[u8]| {
            let mut bytes = vec![0xff, 0xd8, 0xff, 0xe0, 0, 4, 0, 0, 0xff, 0xff, 0xc0, 0, 0, 8, 0, 1, 0, 1];
            bytes.push(factors.len() as u8);
            factors.iter().enumerate().for_each(|(n, &factor)| bytes.extend([n as u8, factor, 0]));
            bytes
        };
        assert_eq!(chroma(&jpeg(&[0x22, 0x11, 0x11])), Some("4:2:0"));
        assert_eq!(chroma(&jpeg(&[0x11, 0x11, 0x11])), Some("4:4:4"));
        assert_eq!(chroma(&jpeg(&[0x11])), Some("gray"));
        assert_eq!(chroma(&jpeg(&[0x13, 0x11, 0x11])), Some("other"));
        let whole = jpeg(&[0x22, 0x11, 0x11]);
        for cut in 0..whole.len() {
            // Whatever it says of half a header, it says something.
            let _ = chroma(&whole[..cut]);
        }
    }

    #[test]
    fn a_sample_is_spread_over_the_source() {
        let all: Vec<u64> = (0..10).map(|at| spread(at, 10, 10)).collect();
        assert_eq!(all, (0..10).collect::<Vec<_>>());
        let some: Vec<u64> = (0..4).map(|at| spread(at, 4, 1_000_000)).collect();
        assert_eq!(some, [0, 250_000, 500_000, 750_000]);
        assert_eq!(spread(19_999, 20_000, u64::MAX / 2), ((u64::MAX / 2) as u128 * 19_999 / 20_000) as u64);
    }
}
