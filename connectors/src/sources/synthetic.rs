//! Synthetic source: procedural images of chosen size, cost and faults, made on the fly.
//!
//! It needs no data on disk, so it drives the tests of everything behind it, measures the loader without a disk, and
//! gives a model something to learn: the class of a record decides the colour, the outline and the fineness of the
//! stripes of one object in its image; place, size, tilt and background are random. Flips, crops and small rotations
//! keep the class.
//!
//! Every record is a pure function of (seed, index): bytes, size of the picture, faults and delays. What a fault does:
//!
//! | key | what happens | what the pipeline should do |
//! |---|---|---|
//! | `corrupt_rate` | the bytes are cut short, replaced by text, or empty | a verdict on bytes: substitute, quarantine |
//! | `fail_rate` | the read fails for good | stop the run, naming the record |
//! | `flaky_rate` | the first try of a read fails, the second succeeds | nothing: the reader retries |
//! | `delay_us` | every read takes this much longer | wait for the read stage |
//! | `straggler_every`, `straggler_ms` | one record in so many takes much longer | let other batches pass it |
//! | `missing_rate` | records lack parts that were asked for | what the field's `missing` says |
//!
//! Its named parts are in [`parts`].

mod parts;

use std::io::Cursor;
use std::sync::Arc;
use std::time::Duration;

use image::codecs::jpeg::JpegEncoder;
use image::codecs::png::{CompressionType, FilterType, PngEncoder};
use image::{ExtendedColorType, ImageEncoder};
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::{Xxh3, xxh3_64_with_seed};

use self::parts::Parts;
use crate::bytes::buffer::{Buffer, POOL_BYTES, Pool};
use crate::labels;
use crate::workers::{Stop, Workers};
use crate::{
    Blocks, Extent, Fingerprint, IndexedSource, ReadError, Reader, ReaderConfig, Schema, SourceError,
};

/// More threads than this make no image sooner; they only overlap injected delays.
const MAX_THREADS: u32 = 16;

/// How long a flaky read waits before its second try, as the disk readers do.
const FLAKY_RETRY: Duration = Duration::from_millis(10);

/// JPEG quality of synthetic images, that of most photographs in the wild.
const JPEG_QUALITY: u8 = 90;

/// Configuration of a synthetic source.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SyntheticConfig {
    /// Number of records.
    pub count: u64,
    /// Width of the images in pixels, or the smallest width when `width_max` is given.
    pub width: u32,
    /// Height of the images in pixels, or the smallest height when `height_max` is given.
    pub height: u32,
    /// Widths vary from `width` to this.
    pub width_max: Option<u32>,
    /// Heights vary from `height` to this.
    pub height_max: Option<u32>,
    /// Number of classes; a record's label is random, the same in every epoch.
    pub classes: u32,
    /// `""` or null: images without labels.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "labels::name_or_none")]
    pub label: Option<String>,
    /// File format of the records.
    pub format: SyntheticFormat,
    /// Another seed gives other images, labels and faults.
    pub seed: u64,
    /// Records per block, for the blocked order; default: no blocks. The last block may be shorter.
    pub block_records: Option<u64>,
    /// Extra time every read takes, in microseconds.
    pub delay_us: u64,
    /// On average one record in so many is a straggler; 0: none.
    pub straggler_every: u64,
    /// Extra time a straggler's read takes, in milliseconds.
    pub straggler_ms: u64,
    /// Fraction of records (0 to 1) whose bytes are no valid image.
    pub corrupt_rate: f64,
    /// Fraction of records (0 to 1) whose read fails for good.
    pub fail_rate: f64,
    /// Fraction of records (0 to 1) whose read fails at the first try only.
    pub flaky_rate: f64,
    /// Fraction of records (0 to 1) that lack a part that was asked for, for each part but images.
    #[serde(skip_serializing_if = "is_zero")]
    pub missing_rate: f64,
    /// What records are to hold, by part. Filled in by a pipeline's fields.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deliver: crate::Deliver,
}

impl Default for SyntheticConfig {
    fn default() -> Self {
        Self {
            count: 1000,
            width: 64,
            height: 64,
            width_max: None,
            height_max: None,
            classes: 10,
            label: None,
            format: SyntheticFormat::Bmp,
            seed: 0,
            block_records: None,
            delay_us: 0,
            straggler_every: 0,
            straggler_ms: 0,
            corrupt_rate: 0.0,
            fail_rate: 0.0,
            flaky_rate: 0.0,
            missing_rate: 0.0,
            deliver: None,
        }
    }
}

fn is_zero(rate: &f64) -> bool {
    *rate == 0.0
}

/// File format of synthetic records.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SyntheticFormat {
    /// Uncompressed, 24 bits: the cheapest to make and to decode.
    Bmp,
    /// Uncompressed, `P6`.
    Pnm,
    /// Compressed fast and without loss.
    Png,
    /// Quality 90.
    Jpeg,
}

impl SyntheticFormat {
    fn ending(self) -> &'static str {
        match self {
            Self::Bmp => "bmp",
            Self::Pnm => "ppm",
            Self::Png => "png",
            Self::Jpeg => "jpg",
        }
    }
}

/// What a random choice is for; every choice has a stream of its own.
#[derive(Clone, Copy)]
enum Choice {
    Label,
    Width,
    Height,
    Picture,
    Corrupt,
    Fail,
    Flaky,
    Straggler,
    Caption,
    Meta,
    Values,
    Boxes,
    Score,
}

/// An open synthetic source.
#[derive(Debug)]
pub(crate) struct Synthetic {
    config: SyntheticConfig,
    classes: Vec<String>,
    is_labelled: bool,
    parts: Parts,
    fingerprint: Fingerprint,
}

impl Synthetic {
    pub(crate) fn open(config: &SyntheticConfig) -> Result<Self, SourceError> {
        check(config)?;
        let digits = (config.classes.saturating_sub(1)).to_string().len();
        let classes: Vec<String> =
            (0..config.classes).map(|class| format!("class-{class:0digits$}")).collect();
        let is_labelled = !labels::only_none(config.label.as_deref(), "synthetic labels are made up")?;
        let parts = Parts::new(config)?;
        let mut source =
            Self { is_labelled, classes, parts, fingerprint: Fingerprint(0), config: config.clone() };
        source.fingerprint = source.hash();
        Ok(source)
    }

    /// Identity of the records. Delays and failures of reads change no byte and are left out.
    fn hash(&self) -> Fingerprint {
        let config = &self.config;
        let mut hash = Xxh3::new();
        hash.update(b"fuelrail synthetic 1\0");
        let numbers = [
            config.count,
            config.width.into(),
            config.width_max.unwrap_or(config.width).into(),
            config.height.into(),
            config.height_max.unwrap_or(config.height).into(),
            config.classes.into(),
            config.format as u64,
            config.seed,
            config.corrupt_rate.to_bits(),
        ];
        for number in numbers {
            hash.update(&number.to_le_bytes());
        }
        self.hash_parts(&mut hash);
        Fingerprint(hash.digest128())
    }

    /// A random number for one choice about one record.
    fn random(&self, index: u64, choice: Choice) -> u64 {
        xxh3_64_with_seed(&[index, choice as u64].map(u64::to_le_bytes).concat(), self.config.seed)
    }

    fn chance(&self, index: u64, choice: Choice, rate: f64) -> bool {
        ((self.random(index, choice) >> 11) as f64 / (1u64 << 53) as f64) < rate
    }

    fn size_of_picture(&self, index: u64) -> (u32, u32) {
        let between = |from: u32, to: Option<u32>, choice| {
            let span = u64::from(to.unwrap_or(from) - from) + 1;
            from + (self.random(index, choice) % span) as u32
        };
        let config = &self.config;
        (
            between(config.width, config.width_max, Choice::Width),
            between(config.height, config.height_max, Choice::Height),
        )
    }

    fn class(&self, index: u64) -> u32 {
        (self.random(index, Choice::Label) % u64::from(self.config.classes)) as u32
    }

    fn delay(&self, index: u64) -> Duration {
        let config = &self.config;
        let straggles = config.straggler_every > 0
            && self.random(index, Choice::Straggler).is_multiple_of(config.straggler_every);
        let extra = if straggles { Duration::from_millis(config.straggler_ms) } else { Duration::ZERO };
        Duration::from_micros(config.delay_us) + extra
    }

    /// Width, height and RGB rows of a record's image.
    fn pixels(&self, index: u64) -> (u32, u32, Vec<u8>) {
        let (width, height) = self.size_of_picture(index);
        let random = self.random(index, Choice::Picture);
        (width, height, picture(width, height, self.class(index), self.config.classes, random))
    }

    /// A record's image as it is "stored".
    fn encode(&self, index: u64) -> Vec<u8> {
        let (width, height, pixels) = self.pixels(index);
        let mut bytes = match self.config.format {
            SyntheticFormat::Bmp => bmp(width, height, &pixels),
            SyntheticFormat::Pnm => pnm(width, height, &pixels),
            SyntheticFormat::Png => png(&pixels, width, height, ExtendedColorType::Rgb8),
            SyntheticFormat::Jpeg => {
                let mut bytes = Vec::new();
                JpegEncoder::new_with_quality(&mut bytes, JPEG_QUALITY)
                    .write_image(&pixels, width, height, ExtendedColorType::Rgb8)
                    .expect("an image of checked size is written to memory");
                bytes
            }
        };
        self.corrupt(index, &mut bytes);
        bytes
    }

    /// Damages the image of a corrupt record.
    fn corrupt(&self, index: u64, bytes: &mut Vec<u8>) {
        if self.chance(index, Choice::Corrupt, self.config.corrupt_rate) {
            match self.random(index, Choice::Corrupt) % 3 {
                0 => bytes.truncate(bytes.len() / 2),
                1 => *bytes = b"This is not an image.\n".to_vec(),
                _ => bytes.clear(),
            }
        }
    }

    fn read(&self, index: u64, pool: &Arc<Pool>, stop: &Stop) -> Option<Result<Buffer, ReadError>> {
        let delay = self.delay(index);
        if !delay.is_zero() && stop.wait(delay) {
            return None;
        }
        if self.chance(index, Choice::Fail, self.config.fail_rate) {
            let detail = "injected failure of a read (fail_rate of the synthetic source)".to_owned();
            return Some(Err(ReadError::io(self.key(index), detail, false)));
        }
        if self.chance(index, Choice::Flaky, self.config.flaky_rate) && stop.wait(FLAKY_RETRY) {
            return None;
        }
        let bytes = match self.config.deliver {
            None => self.encode(index),
            Some(_) => match self.record(index) {
                Ok(bytes) => bytes,
                Err(why) => return Some(Err(ReadError::bad(self.key(index), why))),
            },
        };
        let Some(mut buffer) = pool.take(bytes.len()) else {
            let detail = format!("no memory for its {} bytes", bytes.len());
            return Some(Err(ReadError::io(self.key(index), detail, true)));
        };
        buffer.storage()[..bytes.len()].copy_from_slice(&bytes);
        buffer.set_len(bytes.len());
        Some(Ok(buffer))
    }
}

impl IndexedSource for Synthetic {
    fn len(&self) -> u64 {
        self.config.count
    }

    fn key(&self, index: u64) -> String {
        let class = &self.classes[self.class(index) as usize];
        format!("{class}/{index:08}.{}", self.config.format.ending())
    }

    fn label(&self, index: u64) -> i64 {
        assert!(index < self.config.count, "record {index} of a source of {}", self.config.count);
        i64::from(self.class(index))
    }

    fn is_labelled(&self) -> bool {
        self.is_labelled
    }

    fn classes(&self) -> &[String] {
        if self.is_labelled { &self.classes } else { &[] }
    }

    fn schema(&self) -> Schema {
        self.parts.schema.clone()
    }

    fn size(&self, index: u64) -> u64 {
        let (width, height) = self.size_of_picture(index);
        let (width, height) = (u64::from(width), u64::from(height));
        let image = match self.config.format {
            SyntheticFormat::Bmp => BMP_HEADER as u64 + bmp_row(width as usize) as u64 * height,
            SyntheticFormat::Pnm => pnm_header(width as u32, height as u32).len() as u64 + 3 * width * height,
            // Not known before it is made. A PNG is at most its rows, stored; a JPEG at this quality is far below its
            // pixels but has tables, and blocks of 8x8 even for one pixel.
            SyntheticFormat::Png => 2048 + (3 * width + 1) * height * 101 / 100,
            SyntheticFormat::Jpeg => 2048 + 3 * width.next_multiple_of(16) * height.next_multiple_of(16),
        };
        if self.config.deliver.is_some() { self.most_bytes(index, image) } else { image }
    }

    fn extent(&self, _index: u64) -> Option<Extent> {
        None
    }

    fn blocks(&self) -> Blocks {
        let Some(records) = self.config.block_records else { return Blocks::None };
        let count = self.config.count;
        let full = std::iter::repeat_n(records, (count / records) as usize);
        let rest = Some(count % records).filter(|&rest| rest > 0);
        Blocks::seekable(full.chain(rest))
    }

    fn fingerprint(&self) -> Fingerprint {
        self.fingerprint
    }

    fn memory(&self) -> u64 {
        let names: usize = self.classes.iter().map(|name| name.capacity() + size_of::<String>()).sum();
        (size_of::<Self>() + names) as u64
    }

    fn reader(self: Arc<Self>, config: &ReaderConfig) -> Result<Box<dyn Reader>, SourceError> {
        config.check()?;
        let pool = Pool::new(POOL_BYTES);
        let source = self.clone();
        let workers = Workers::start(
            "synthetic",
            config.depth.min(MAX_THREADS) as usize,
            Box::new(move |index| source.key(index)),
            Box::new(move |index, stop| self.read(index, &pool, stop)),
        )?;
        Ok(Box::new(workers))
    }
}

/// Refuses what could not be made.
fn check(config: &SyntheticConfig) -> Result<(), SourceError> {
    let refuse = |key: &str, value: String, must: &str| {
        Err(SourceError::config(format!("synthetic source: {key} is {value}; it must be {must}")))
    };
    if config.count == 0 || config.count > 1 << 40 {
        return refuse("count", config.count.to_string(), "1 to 2^40");
    }
    if config.classes == 0 || config.classes > 1 << 20 {
        return refuse("classes", config.classes.to_string(), "1 to 1048576");
    }
    for (key, from, to) in
        [("width", config.width, config.width_max), ("height", config.height, config.height_max)]
    {
        if from == 0 || from > 16384 {
            return refuse(key, from.to_string(), "1 to 16384 pixels");
        }
        if let Some(to) = to
            && !(from..=16384).contains(&to)
        {
            return refuse(&format!("{key}_max"), to.to_string(), &format!("{key} ({from}) to 16384 pixels"));
        }
    }
    let rates = [
        ("corrupt_rate", config.corrupt_rate),
        ("fail_rate", config.fail_rate),
        ("flaky_rate", config.flaky_rate),
        ("missing_rate", config.missing_rate),
    ];
    for (key, rate) in rates {
        if !(0.0..=1.0).contains(&rate) {
            return refuse(key, rate.to_string(), "a fraction from 0 to 1");
        }
    }
    if config.block_records == Some(0) {
        return refuse("block_records", "0".to_owned(), "at least 1 (leave it out for no blocks)");
    }
    if config.delay_us > 600_000_000 {
        return refuse("delay_us", config.delay_us.to_string(), "at most 600000000 (ten minutes)");
    }
    if config.straggler_ms > 600_000 {
        return refuse("straggler_ms", config.straggler_ms.to_string(), "at most 600000 (ten minutes)");
    }
    Ok(())
}

/// Random numbers in a row: SplitMix64.
struct Draws(u64);

impl Draws {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut value = self.0;
        value = (value ^ (value >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        value = (value ^ (value >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        value ^ (value >> 31)
    }
}

/// One object on a background, as RGB rows. `random` decides everything but the class.
fn picture(width: u32, height: u32, class: u32, classes: u32, random: u64) -> Vec<u8> {
    let mut draws = Draws(random);
    // One draw per attribute, in fixed order.
    let mut next = |below: i32| (draws.next() % below.max(1) as u64) as i32;
    let (w, h) = (width as i32, height as i32);
    let short = w.min(h);
    let hue = class as f32 / classes as f32 + (next(1000) as f32 / 1000.0 - 0.5) * 0.4 / classes as f32;
    let (bright, dark) = (colour(hue, 0.95), colour(hue, 0.45));
    let base = 60 + next(120);
    let (slope_x, slope_y) = (next(121) - 60, next(121) - 60);
    let radius = (short / 4 + next(short / 5)).max(1);
    let (cx, cy) = (w / 2 + next(w / 3) - w / 6, h / 2 + next(h / 3) - h / 6);
    let outline = class % 3;
    // Two to six stripes across the object; their direction is free, so that a flip changes no class.
    let stripe = (radius / (1 + (class % 5) as i32)).max(1);
    let (lean_x, lean_y) = [(4, 0), (3, 3), (0, 4), (3, -3)][next(4) as usize];
    let phase = next(stripe.max(2)) + (1 << 16) * stripe;
    let mut grain = next(i32::MAX) as u32 | 1;

    let mut pixels = vec![0; width as usize * height as usize * 3];
    for (y, row) in pixels.chunks_exact_mut(width as usize * 3).enumerate() {
        let dy = y as i32 - cy;
        let shade = base + slope_y * y as i32 / h;
        for (x, pixel) in row.chunks_exact_mut(3).enumerate() {
            let dx = x as i32 - cx;
            let inside = match outline {
                0 => dx * dx + dy * dy <= radius * radius,
                1 => dx.abs().max(dy.abs()) * 8 <= radius * 7,
                _ => dx.abs() + dy.abs() <= radius * 5 / 4,
            };
            // A little noise keeps compressed sizes honest: xorshift, two bits.
            grain ^= grain << 13;
            grain ^= grain >> 17;
            grain ^= grain << 5;
            let noise = (grain & 7) as i32 - 4;
            let colour = if inside {
                let along = (dx * lean_x + dy * lean_y) / 4 + phase;
                if (along / stripe) % 2 == 0 { bright } else { dark }
            } else {
                let value = shade + slope_x * x as i32 / w;
                [value, value, value]
            };
            for (channel, value) in pixel.iter_mut().zip(colour) {
                *channel = (value + noise).clamp(0, 255) as u8;
            }
        }
    }
    pixels
}

/// A strong colour of the given hue (whole turns) and brightness (0 to 1).
fn colour(hue: f32, brightness: f32) -> [i32; 3] {
    [0.0, 1.0 / 3.0, 2.0 / 3.0].map(|shift| {
        let distance = ((hue + shift).rem_euclid(1.0) - 0.5).abs() * 6.0;
        (255.0 * brightness * (0.15 + 0.85 * (distance - 1.0).clamp(0.0, 1.0))) as i32
    })
}

const BMP_HEADER: usize = 54;

/// Bytes of a BMP row: three per pixel, padded to four.
fn bmp_row(width: usize) -> usize {
    (width * 3).next_multiple_of(4)
}

fn bmp(width: u32, height: u32, pixels: &[u8]) -> Vec<u8> {
    let row = bmp_row(width as usize);
    let size = BMP_HEADER + row * height as usize;
    let mut bytes = Vec::with_capacity(size);
    bytes.extend_from_slice(b"BM");
    for field in [size as u32, 0, BMP_HEADER as u32, 40, width, height] {
        bytes.extend_from_slice(&field.to_le_bytes());
    }
    bytes.extend_from_slice(&1u16.to_le_bytes());
    bytes.extend_from_slice(&24u16.to_le_bytes());
    for field in [0, (row * height as usize) as u32, 2835, 2835, 0, 0] {
        bytes.extend_from_slice(&u32::to_le_bytes(field));
    }
    // Rows from the bottom up, pixels as blue, green, red.
    for line in pixels.chunks_exact(width as usize * 3).rev() {
        let end = bytes.len() + row;
        bytes.extend(line.chunks_exact(3).flat_map(|pixel| [pixel[2], pixel[1], pixel[0]]));
        bytes.resize(end, 0);
    }
    bytes
}

fn png(pixels: &[u8], width: u32, height: u32, colour: ExtendedColorType) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    PngEncoder::new_with_quality(&mut bytes, CompressionType::Fast, FilterType::Up)
        .write_image(pixels, width, height, colour)
        .expect("an image of checked size is written to memory");
    bytes.into_inner()
}

fn pnm_header(width: u32, height: u32) -> String {
    format!("P6\n{width} {height}\n255\n")
}

fn pnm(width: u32, height: u32, pixels: &[u8]) -> Vec<u8> {
    let mut bytes = pnm_header(width, height).into_bytes();
    bytes.extend_from_slice(pixels);
    bytes
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::sync::mpsc;
    use std::time::Instant;

    use super::*;
    use crate::{ReadErrorKind, ReadRequest};

    const FORMATS: [SyntheticFormat; 4] =
        [SyntheticFormat::Bmp, SyntheticFormat::Pnm, SyntheticFormat::Png, SyntheticFormat::Jpeg];

    fn open(config: SyntheticConfig) -> Arc<Synthetic> {
        Arc::new(Synthetic::open(&config).unwrap())
    }

    fn read_all(source: &Arc<Synthetic>) -> HashMap<u64, Result<Buffer, ReadError>> {
        let reader = source.clone().reader(&ReaderConfig::default()).unwrap();
        let (tell, told) = mpsc::channel();
        let request = |index| {
            let tell = tell.clone();
            ReadRequest {
                index,
                done: Box::new(move |result| tell.send((index, result.map(|r| r.bytes))).unwrap()),
            }
        };
        reader.submit((0..source.len()).map(request).collect());
        drop(tell);
        told.iter().collect()
    }

    #[test]
    fn records_are_images_of_the_size_that_was_asked_for() {
        for format in FORMATS {
            let source = open(SyntheticConfig {
                count: 60,
                width: 1,
                width_max: Some(70),
                height: 3,
                height_max: Some(40),
                format,
                ..SyntheticConfig::default()
            });
            let mut sizes = std::collections::HashSet::new();
            for (index, bytes) in read_all(&source) {
                let bytes = bytes.unwrap();
                let (width, height) = source.size_of_picture(index);
                sizes.insert((width, height));
                assert!((1..=70).contains(&width) && (3..=40).contains(&height));
                assert!(
                    bytes.len() as u64 <= source.size(index),
                    "{format:?} {width}x{height}: {}",
                    bytes.len()
                );
                if matches!(format, SyntheticFormat::Bmp | SyntheticFormat::Pnm) {
                    assert_eq!(bytes.len() as u64, source.size(index));
                }
                let header = match format {
                    SyntheticFormat::Bmp => [&b"BM"[..], &(bytes.len() as u32).to_le_bytes()].concat(),
                    SyntheticFormat::Pnm => pnm_header(width, height).into_bytes(),
                    SyntheticFormat::Png => b"\x89PNG\r\n\x1a\n".to_vec(),
                    SyntheticFormat::Jpeg => b"\xff\xd8\xff".to_vec(),
                };
                assert!(bytes.starts_with(&header));
            }
            assert!(sizes.len() > 40);
        }
    }

    #[test]
    fn png_holds_the_very_pixels_and_jpeg_nearly() {
        for format in [SyntheticFormat::Png, SyntheticFormat::Jpeg] {
            let source = open(SyntheticConfig {
                count: 4,
                width: 37,
                height: 21,
                format,
                ..SyntheticConfig::default()
            });
            for index in 0..4 {
                let decoded = image::load_from_memory(&source.encode(index)).unwrap().to_rgb8();
                assert_eq!(decoded.dimensions(), (37, 21));
                let pixels = picture(37, 21, source.class(index), 10, source.random(index, Choice::Picture));
                let difference: u64 =
                    decoded.iter().zip(&pixels).map(|(a, b)| u64::from(a.abs_diff(*b))).sum();
                let mean = difference as f64 / pixels.len() as f64;
                assert!(mean <= if format == SyntheticFormat::Png { 0.0 } else { 10.0 }, "{mean}");
            }
        }
    }

    #[test]
    fn a_record_is_a_function_of_seed_and_index_alone() {
        let config =
            |seed| SyntheticConfig { count: 50, seed, corrupt_rate: 0.2, ..SyntheticConfig::default() };
        let bytes = |source: &Arc<Synthetic>| {
            let mut all: Vec<_> =
                read_all(source).into_iter().map(|(index, bytes)| (index, bytes.unwrap().to_vec())).collect();
            all.sort_unstable();
            all
        };
        let (one, two, other) = (open(config(1)), open(config(1)), open(config(2)));
        assert_eq!(bytes(&one), bytes(&two));
        assert_eq!(one.fingerprint(), two.fingerprint());
        assert_ne!(bytes(&one), bytes(&other));
        assert_ne!(one.fingerprint(), other.fingerprint());
        let slow = open(SyntheticConfig { delay_us: 10, flaky_rate: 0.5, ..config(1) });
        assert_eq!(slow.fingerprint(), one.fingerprint(), "delays change no byte");
        assert_eq!(bytes(&slow), bytes(&one));
    }

    #[test]
    fn every_class_occurs_and_looks_different() {
        let source = open(SyntheticConfig { count: 2000, classes: 12, ..SyntheticConfig::default() });
        assert_eq!(source.classes().len(), 12);
        assert_eq!(source.classes()[3], "class-03");
        let mut counts = [0; 12];
        (0..2000).for_each(|index| counts[source.label(index) as usize] += 1);
        assert!(counts.iter().all(|&count| count > 100), "{counts:?}");
        assert_eq!(source.key(7), format!("{}/00000007.bmp", source.classes()[source.label(7) as usize]));
        // The mean colour of the middle, less the gray, tells neighbouring classes of thirds apart.
        let colourful = |class| {
            let mut sum = [0i64; 3];
            for random in 0..50 {
                let pixels = picture(32, 32, class, 12, random);
                pixels.chunks_exact(3).for_each(|p| (0..3).for_each(|c| sum[c] += i64::from(p[c])));
            }
            (0..3).max_by_key(|&channel| sum[channel]).unwrap()
        };
        assert_eq!(std::collections::HashSet::from([colourful(0), colourful(4), colourful(8)]).len(), 3);
    }

    #[test]
    fn faults_are_what_was_asked_for_and_always_the_same() {
        let config = SyntheticConfig {
            count: 1000,
            width: 8,
            height: 8,
            corrupt_rate: 0.1,
            fail_rate: 0.05,
            flaky_rate: 0.02,
            ..SyntheticConfig::default()
        };
        let source = open(config.clone());
        let (first, second) = (read_all(&source), read_all(&source));
        let (mut failed, mut corrupt) = (0, 0);
        for index in 0..1000 {
            match (&first[&index], &second[&index]) {
                (Ok(a), Ok(b)) => {
                    assert_eq!(**a, **b);
                    corrupt += u32::from(a.len() as u64 != source.size(index));
                }
                (Err(a), Err(b)) => {
                    failed += 1;
                    assert_eq!(a.to_string(), b.to_string());
                    assert_eq!(a.kind(), ReadErrorKind::Io);
                    assert_eq!(a.key(), source.key(index));
                    assert!(!a.is_transient() && a.to_string().contains("injected"));
                }
                _ => panic!("record {index} fails only sometimes"),
            }
        }
        assert!((60..140).contains(&corrupt), "{corrupt}");
        assert!((25..80).contains(&failed), "{failed}");
    }

    #[test]
    fn delays_overlap_and_are_cut_short_when_the_reader_goes() {
        let source = open(SyntheticConfig {
            count: 64,
            straggler_every: 8,
            straggler_ms: 600_000,
            ..SyntheticConfig::default()
        });
        let stragglers = (0..64).filter(|&index| !source.delay(index).is_zero()).count();
        assert!((1..16).contains(&stragglers), "{stragglers}: fewer than the reader has threads");
        let reader = source.clone().reader(&ReaderConfig::default()).unwrap();
        let (tell, told) = mpsc::channel();
        let request = |index| {
            let tell = tell.clone();
            ReadRequest { index, done: Box::new(move |result| tell.send(result.unwrap().index).unwrap()) }
        };
        reader.submit((0..64).map(request).collect());
        drop(tell);
        for _ in 0..64 - stragglers {
            told.recv().unwrap();
        }
        let begin = Instant::now();
        drop(reader);
        assert!(begin.elapsed() < Duration::from_secs(5));
        assert!(told.recv().is_err(), "stragglers are dropped uncalled");
    }

    #[test]
    fn blocks_add_up_to_the_length() {
        let blocks = |block_records| {
            open(SyntheticConfig { count: 10, block_records, ..SyntheticConfig::default() }).blocks()
        };
        assert_eq!(blocks(None), Blocks::None);
        assert_eq!(blocks(Some(4)), Blocks::seekable([4, 4, 2]));
        assert_eq!(blocks(Some(5)), Blocks::seekable([5, 5]));
        assert_eq!(blocks(Some(11)), Blocks::seekable([10]));
    }

    #[test]
    fn values_that_cannot_be_are_refused_by_name() {
        let default = SyntheticConfig::default;
        let cases = [
            ("count", SyntheticConfig { count: 0, ..default() }),
            ("width", SyntheticConfig { width: 0, ..default() }),
            ("height", SyntheticConfig { height: 20_000, ..default() }),
            ("width_max", SyntheticConfig { width_max: Some(63), ..default() }),
            ("height_max", SyntheticConfig { height_max: Some(u32::MAX), ..default() }),
            ("classes", SyntheticConfig { classes: 0, ..default() }),
            ("corrupt_rate", SyntheticConfig { corrupt_rate: 1.5, ..default() }),
            ("fail_rate", SyntheticConfig { fail_rate: f64::NAN, ..default() }),
            ("flaky_rate", SyntheticConfig { flaky_rate: -0.1, ..default() }),
            ("missing_rate", SyntheticConfig { missing_rate: 2.0, ..default() }),
            ("block_records", SyntheticConfig { block_records: Some(0), ..default() }),
            ("delay_us", SyntheticConfig { delay_us: u64::MAX, ..default() }),
            ("straggler_ms", SyntheticConfig { straggler_ms: u64::MAX, ..default() }),
        ];
        for (key, config) in cases {
            let error = Synthetic::open(&config).unwrap_err();
            assert!(error.is_config() && error.to_string().contains(&format!("{key} is ")), "{error}");
        }
    }
}
