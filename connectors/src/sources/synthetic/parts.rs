//! Named parts of synthetic records: what there is, and how it is made.
//!
//! | part | what it is |
//! |---|---|
//! | `mask` | a gray image of the image's size: 1 where its red is at least 128, 0 elsewhere |
//! | `caption` | text of 0 to 200 bytes, in several scripts |
//! | `meta` | JSON: an object with the record's `index` and a list |
//! | `values` | 0 to 20 numbers, f32 |
//! | `boxes` | 0 to 10 rows of 4 numbers, f32 |
//! | `score` | one number, f32, in every record that has it |

use std::borrow::Cow;

use super::{Choice, Draws, Synthetic, SyntheticConfig, SyntheticFormat};
use crate::schema::{wanted_parts, wants_image};
use crate::settings::similar;
use crate::{ElementType, FieldSpec, PartKind, Schema, SourceError, Wanted, WantedKind};

/// What can be asked for beside the image.
const NAMES: [&str; 6] = ["mask", "caption", "meta", "values", "boxes", "score"];

/// The number that every record has.
const SCORE: &str = "score";

/// A caption is at most this long.
const LONGEST_CAPTION: usize = 200;

/// No JSON is longer: 20 digits of an index, and ten numbers.
const LONGEST_META: usize = 96;

const MOST_VALUES: u64 = 20;
const MOST_BOXES: u64 = 10;
const BOX: [u64; 1] = [4];

/// Captions are made of these.
const WORDS: [&str; 10] = ["a", "striped", "disc", "on", "gray", "größer", "кот", "犬", "naïve", "🦤"];

/// A part that can be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Made {
    Mask,
    Caption,
    Meta,
    Values,
    Boxes,
    /// Asked for as something that the source may lack, and it does.
    Nothing,
}

impl Made {
    fn named(name: &str) -> Option<Self> {
        Some(match name {
            "mask" => Self::Mask,
            "caption" => Self::Caption,
            "meta" => Self::Meta,
            "values" => Self::Values,
            "boxes" => Self::Boxes,
            _ => return None,
        })
    }

    /// What it is, for those who ask for something else.
    fn what(self) -> &'static str {
        match self {
            Self::Mask => "an image",
            Self::Caption => "text",
            Self::Meta => "JSON",
            Self::Values | Self::Boxes => "rows of numbers, f32",
            Self::Nothing => "nothing",
        }
    }

    fn row(self) -> &'static [u64] {
        if self == Self::Boxes { &BOX } else { &[] }
    }

    fn can_be(self, wanted: &Wanted) -> bool {
        match self {
            Self::Mask => wanted.kind == WantedKind::Image,
            Self::Caption => matches!(wanted.kind, WantedKind::Text | WantedKind::Bytes),
            Self::Meta => matches!(wanted.kind, WantedKind::Json | WantedKind::Text | WantedKind::Bytes),
            Self::Values | Self::Boxes => {
                let fits = wanted.row.as_deref().is_none_or(|row| row == self.row());
                wanted.kind == WantedKind::Ragged
                    && fits
                    && wanted.dtype.is_none_or(|dtype| dtype == ElementType::F32)
            }
            Self::Nothing => true,
        }
    }
}

/// What records hold, and how each of the schema's parts is made.
#[derive(Debug)]
pub(super) struct Parts {
    pub schema: Schema,
    pub made: Vec<Made>,
}

impl Parts {
    /// # Errors
    /// [`SourceError`] for a part that is not made here.
    pub fn new(config: &SyntheticConfig) -> Result<Self, SourceError> {
        let mut parts =
            Self { schema: Schema::of(wants_image(&config.deliver), Vec::new()), made: Vec::new() };
        for wanted in
            config.deliver.iter().flatten().filter(|wanted| !wanted.is_part() && !wanted.is_own_image())
        {
            if wanted.part != SCORE {
                return Err(refuse(wanted, "its only numbers of fixed shape are \"score\""));
            }
            parts.schema.fields.push(FieldSpec {
                name: SCORE.into(),
                dtype: ElementType::F32,
                shape: Vec::new(),
            });
        }
        for wanted in wanted_parts(&config.deliver) {
            let made = match Made::named(&wanted.part) {
                Some(made) if made.can_be(wanted) => made,
                Some(made) => return Err(refuse(wanted, &format!("there it is {}", made.what()))),
                None if wanted.part == SCORE => {
                    return Err(refuse(wanted, "there it is one number in each record"));
                }
                None if wanted.optional => Made::Nothing,
                None => {
                    let near = similar(&wanted.part, NAMES);
                    let near = near.map_or(String::new(), |near| format!("; did you mean {near:?}?"));
                    return Err(refuse(wanted, &format!("it has {}{near}", NAMES.join(", "))));
                }
            };
            let dtype = wanted.dtype.unwrap_or(ElementType::F32);
            let row = wanted.row.as_deref().unwrap_or(made.row());
            parts.schema.parts.push(wanted.spec(dtype, row));
            parts.made.push(made);
        }
        parts.schema.check_shapes().map_err(|why| SourceError::config(format!("deliver: {why}")))?;
        Ok(parts)
    }
}

fn refuse(wanted: &Wanted, why: &str) -> SourceError {
    let asked = match wanted.kind {
        WantedKind::Image => "an image",
        WantedKind::Bytes => "bytes",
        WantedKind::Text => "text",
        WantedKind::Json => "JSON",
        WantedKind::Numbers => "numbers of one shape",
        WantedKind::Ragged => "rows of numbers",
        WantedKind::Value => "a value for a condition",
    };
    SourceError::config(format!(
        "part {:?} of a synthetic source is not available as {asked}: {why}",
        wanted.part
    ))
}

impl Synthetic {
    /// The record of what was asked for, part by part.
    ///
    /// # Errors
    /// When it lacks its score.
    pub(super) fn record(&self, index: u64) -> Result<Vec<u8>, String> {
        let Parts { schema, made } = &self.parts;
        let image = if schema.image { self.encode(index) } else { Vec::new() };
        let parts: Vec<Option<Cow<'_, [u8]>>> =
            made.iter().map(|&made| self.part(index, made).map(Cow::Owned)).collect();
        let mut fields = Vec::new();
        for _ in &schema.fields {
            if self.lacks(index, Choice::Score) {
                return Err(format!("the field {SCORE:?} is missing"));
            }
            fields.extend(Draws(self.random(index, Choice::Score)).number(1000.0).to_le_bytes());
        }
        let lengths = parts.iter().map(|part| part.as_ref().map(|part| part.len()));
        let mut record = vec![0; schema.record_bytes(image.len(), lengths)];
        schema.join(&image, parts.iter().map(|part| part.as_deref()), &fields, &mut record);
        Ok(record)
    }

    fn lacks(&self, index: u64, choice: Choice) -> bool {
        self.chance(index, choice, self.config.missing_rate)
    }

    fn part(&self, index: u64, made: Made) -> Option<Vec<u8>> {
        let choice = match made {
            Made::Mask => return Some(self.mask(index)),
            Made::Nothing => return None,
            Made::Caption => Choice::Caption,
            Made::Meta => Choice::Meta,
            Made::Values => Choice::Values,
            Made::Boxes => Choice::Boxes,
        };
        if self.lacks(index, choice) {
            return None;
        }
        let mut draws = Draws(self.random(index, choice));
        Some(match made {
            Made::Caption => draws.caption().into_bytes(),
            Made::Meta => draws.meta(index).into_bytes(),
            Made::Values => draws.rows(MOST_VALUES, 1),
            _ => draws.rows(MOST_BOXES, BOX[0]),
        })
    }

    /// Where the image is rather red.
    fn mask(&self, index: u64) -> Vec<u8> {
        let (width, height, pixels) = self.pixels(index);
        let gray: Vec<u8> = pixels.chunks_exact(3).map(|pixel| u8::from(pixel[0] >= 128)).collect();
        let mut bytes = match self.config.format {
            SyntheticFormat::Bmp | SyntheticFormat::Pnm => {
                let mut bytes = format!("P5\n{width} {height}\n255\n").into_bytes();
                bytes.extend(gray);
                bytes
            }
            SyntheticFormat::Png | SyntheticFormat::Jpeg => {
                super::png(&gray, width, height, image::ExtendedColorType::L8)
            }
        };
        // Whoever reads the image as well is told by that.
        if !self.parts.schema.image {
            self.corrupt(index, &mut bytes);
        }
        bytes
    }

    /// Bytes of a record at most.
    pub(super) fn most_bytes(&self, index: u64, image: u64) -> u64 {
        let Parts { schema, made } = &self.parts;
        let (width, height) = self.size_of_picture(index);
        let most = |made: &Made| match made {
            Made::Mask => 2048 + (u64::from(width) + 1) * u64::from(height) * 101 / 100,
            Made::Caption => LONGEST_CAPTION as u64,
            Made::Meta => LONGEST_META as u64,
            Made::Values => MOST_VALUES * 4,
            Made::Boxes => MOST_BOXES * BOX[0] * 4,
            Made::Nothing => 0,
        };
        let image = if schema.image { image } else { 0 };
        image + made.iter().map(most).sum::<u64>() + schema.fixed_bytes() as u64
    }

    /// Tells the parts to a fingerprint; of images alone, which have none, nothing.
    pub(super) fn hash_parts(&self, hash: &mut xxhash_rust::xxh3::Xxh3) {
        let Schema { image, parts, fields } = &self.parts.schema;
        for part in parts {
            let kind = match &part.kind {
                PartKind::Ragged { dtype, row } => format!("{dtype} {row:?}"),
                kind => format!("{kind:?}"),
            };
            hash.update(format!("part {} {kind}\0", part.name).as_bytes());
        }
        for field in fields {
            hash.update(format!("field {}\0", field.name).as_bytes());
        }
        if !parts.is_empty() || !fields.is_empty() {
            hash.update(&[u8::from(*image)]);
            hash.update(&self.config.missing_rate.to_bits().to_le_bytes());
        }
    }
}

impl Draws {
    fn number(&mut self, below: f32) -> f32 {
        (self.next() >> 40) as f32 / (1u32 << 24) as f32 * below
    }

    fn caption(&mut self) -> String {
        let most = (self.next() % (LONGEST_CAPTION as u64 + 1)) as usize;
        let mut caption = String::new();
        loop {
            let word = WORDS[(self.next() % WORDS.len() as u64) as usize];
            let space = if caption.is_empty() { "" } else { " " };
            if caption.len() + space.len() + word.len() > most {
                return caption;
            }
            caption += space;
            caption += word;
        }
    }

    fn meta(&mut self, index: u64) -> String {
        let count = self.next() % 10;
        let list: Vec<String> = (0..count).map(|_| (self.next() % 1000).to_string()).collect();
        format!("{{\"index\": {index}, \"list\": [{}]}}", list.join(", "))
    }

    fn rows(&mut self, most: u64, row: u64) -> Vec<u8> {
        let count = self.next() % (most + 1) * row;
        (0..count).flat_map(|_| self.number(100.0).to_le_bytes()).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::IndexedSource;

    fn all() -> Vec<Wanted> {
        vec![
            Wanted::own_image(),
            Wanted::new("mask", WantedKind::Image),
            Wanted::new("caption", WantedKind::Text),
            Wanted::new("meta", WantedKind::Json),
            Wanted::new("values", WantedKind::Ragged),
            Wanted::new("boxes", WantedKind::Ragged),
            Wanted::new("score", WantedKind::Numbers),
        ]
    }

    fn open(config: SyntheticConfig) -> Result<Synthetic, SourceError> {
        Synthetic::open(&config)
    }

    fn config(wanted: Vec<Wanted>) -> SyntheticConfig {
        SyntheticConfig {
            count: 400,
            width: 20,
            height: 10,
            deliver: Some(wanted),
            ..SyntheticConfig::default()
        }
    }

    fn gray(mask: &[u8]) -> Vec<u8> {
        match mask.strip_prefix(b"P5\n20 10\n255\n") {
            Some(gray) => gray.to_vec(),
            None => image::load_from_memory(mask).unwrap().to_luma8().into_raw(),
        }
    }

    #[test]
    fn every_part_is_what_it_says_and_of_many_lengths() {
        for format in [SyntheticFormat::Bmp, SyntheticFormat::Png, SyntheticFormat::Jpeg] {
            let source = open(SyntheticConfig { format, ..config(all()) }).unwrap();
            let plain = open(SyntheticConfig { format, deliver: None, ..config(all()) }).unwrap();
            let mut lengths = vec![BTreeSet::new(); 5];
            for index in 0..400 {
                let record = source.record(index).unwrap();
                assert!(record.len() as u64 <= source.size(index));
                let cut = source.schema().cut(&record).map(|cut| (cut.image, cut.parts, cut.fields));
                let (image, parts, score) = cut.unwrap();
                assert_eq!(image, plain.encode(index), "the image is the one that it was");
                assert!((0.0..1000.0).contains(&f32::from_le_bytes(score.try_into().unwrap())));
                for (lengths, part) in lengths.iter_mut().zip(&parts) {
                    lengths.insert(part.unwrap().len());
                }
                let mask = gray(parts[0].unwrap());
                let pixels = source.pixels(index).2;
                assert!(
                    mask.iter().zip(pixels.chunks(3)).all(|(&mask, pixel)| mask == u8::from(pixel[0] >= 128))
                );
                std::str::from_utf8(parts[1].unwrap()).unwrap();
                let meta: serde_json::Value = serde_json::from_slice(parts[2].unwrap()).unwrap();
                assert_eq!(meta["index"], index);
                assert!(meta["list"].is_array());
                assert_eq!((parts[3].unwrap().len() % 4, parts[4].unwrap().len() % 16), (0, 0));
            }
            let counts: Vec<usize> = lengths.iter().map(BTreeSet::len).collect();
            assert!(counts[1] > 60 && counts[2] > 9 && counts[3] == 21 && counts[4] == 11, "{counts:?}");
        }
    }

    #[test]
    fn a_share_of_records_lacks_a_part_and_images_are_never_lacking() {
        let source = open(SyntheticConfig { missing_rate: 0.25, ..config(all()[..6].to_vec()) }).unwrap();
        let mut missing = [0; 5];
        for index in 0..400 {
            let record = source.record(index).unwrap();
            let cut = source.schema().cut(&record).unwrap();
            missing.iter_mut().zip(&cut.parts).for_each(|(count, part)| *count += u32::from(part.is_none()));
        }
        assert!(missing[0] == 0 && missing[1..].iter().all(|count| (60..140).contains(count)), "{missing:?}");
        let score = open(SyntheticConfig { missing_rate: 0.25, ..config(all()) }).unwrap();
        let bad = (0..400).filter(|&index| score.record(index).is_err()).count();
        assert!((60..140).contains(&bad), "{bad}");
        assert_ne!(source.fingerprint(), score.fingerprint());
    }

    #[test]
    fn without_the_image_its_mask_is_what_is_corrupt() {
        let mask = || Wanted::new("mask", WantedKind::Image);
        let corrupt =
            |wanted| SyntheticConfig { corrupt_rate: 0.5, format: SyntheticFormat::Png, ..config(wanted) };
        let (alone, both) =
            (open(corrupt(vec![mask()])).unwrap(), open(corrupt(vec![Wanted::own_image(), mask()])).unwrap());
        for index in 0..400 {
            let (mask, record) = (alone.record(index).unwrap(), both.record(index).unwrap());
            let mask = alone.schema().cut(&mask).unwrap().parts[0].unwrap().to_vec();
            let schema = both.schema();
            let cut = schema.cut(&record).unwrap();
            let is_whole = |bytes: &[u8]| image::load_from_memory(bytes).is_ok();
            assert_eq!(is_whole(&mask), is_whole(cut.image));
            assert!(is_whole(cut.parts[0].unwrap()));
        }
    }

    #[test]
    fn parts_that_are_not_made_are_refused_by_name_or_lacking() {
        let refused = |wanted: Wanted| open(config(vec![wanted])).unwrap_err().to_string();
        let text = refused(Wanted::new("capton", WantedKind::Text));
        assert!(text.contains("\"capton\"") && text.contains("did you mean \"caption\"?"), "{text}");
        for (name, kind, why) in [
            ("caption", WantedKind::Ragged, "there it is text"),
            ("mask", WantedKind::Bytes, "there it is an image"),
            ("score", WantedKind::Text, "one number in each record"),
            ("boxes", WantedKind::Numbers, "\"score\""),
        ] {
            assert!(refused(Wanted::new(name, kind)).contains(why), "{}", refused(Wanted::new(name, kind)));
        }
        let row = Wanted { row: Some(vec![5]), ..Wanted::new("boxes", WantedKind::Ragged) };
        assert!(refused(row).contains("rows of numbers"));
        let lacking = Wanted { optional: true, ..Wanted::new("nothing", WantedKind::Text) };
        let source = open(config(vec![lacking])).unwrap();
        let record = source.record(3).unwrap();
        assert_eq!(source.schema().cut(&record).unwrap().parts, [None]);
    }
}
