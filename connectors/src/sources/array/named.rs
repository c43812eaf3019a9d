//! Arrays as named parts of records.
//!
//! | rows of | can be |
//! |---|---|
//! | texts (`U`, `S`) | text, bytes, JSON |
//! | `uint8` pixels; gray ones of `uint16` or `bool` | an image, with its values as they are |
//! | numbers | numbers; with an axis for them, rows of numbers, as many in each record; `uint8`: bytes |

use super::choose::{Chosen, Opened, Rows, text_rows};
use super::source::{Array, Form, Named};
use crate::column::{self, Part, Stored, product};
use crate::schema::{Schema, wants_image};
use crate::settings::similar;
use crate::{ElementType, MAX_PART_BYTES, PartSpec, SourceError, Wanted, WantedKind};

impl Opened<'_> {
    /// The arrays that are asked for by name.
    pub(super) fn deliver(&self, wanted: &[Wanted]) -> Result<Array, SourceError> {
        let config = self.config;
        let found = |wanted: &Wanted| -> Result<Option<Chosen<'_>>, SourceError> { self.wanted(wanted) };
        let others: Vec<&Wanted> = wanted.iter().filter(|wanted| !wanted.is_own_image()).collect();
        let arrays = others.iter().map(|wanted| found(wanted)).collect::<Result<Vec<_>, _>>()?;
        let named: Vec<Chosen<'_>> = arrays.iter().flatten().cloned().collect();
        let label = config.label.as_deref().filter(|name| !name.is_empty());
        let label = label.map(|name| self.named(name)).transpose()?;
        let image = match config.image.as_deref().filter(|name| !name.is_empty()) {
            _ if !wants_image(&config.deliver) => None,
            Some(name) => Some(self.named(name)?),
            None => Some(self.guess_image(&label, &named)?.ok_or_else(|| self.no_images())?),
        };

        let mut columns = Vec::new();
        let mut schema = Schema::of(image.is_some(), Vec::new());
        if let Some(image) = &image {
            let (rows, part) = self.pixels(image)?;
            let step = rows.step;
            columns.push((rows, Form::Rows { step, part }));
        }
        let mut parts = Vec::new();
        for (wanted, array) in others.iter().zip(&arrays).filter(|(wanted, _)| wanted.is_part()) {
            let Some(array) = array else {
                let dtype = wanted.dtype.unwrap_or(ElementType::F32);
                schema.parts.push(wanted.spec(dtype, wanted.row.as_deref().unwrap_or_default()));
                parts.push(None);
                continue;
            };
            let (rows, form, spec) = self.part(wanted, array)?;
            parts.push(Some(columns.len()));
            columns.push((rows, form));
            schema.parts.push(spec);
        }
        for (wanted, array) in others.iter().zip(&arrays).filter(|(wanted, _)| !wanted.is_part()) {
            let array = array.as_ref().expect("numbers that are not there are refused");
            let rows = self.rows(array)?;
            let (part, spec) = Part::field(&wanted.part, rows.stored, rows.shape)
                .map_err(|why| self.refuse(format!("the array {:?}: {why}", array.name)))?;
            schema.fields.push(spec);
            let step = rows.step;
            columns.push((rows, Form::Rows { step, part }));
        }
        if columns.is_empty() {
            return Err(self.refuse(format!("it has none of the parts ({})", self.arrays.list())));
        }
        let label = match label {
            None if config.label.is_none() => {
                let all = self.arrays.0.iter();
                let all = all.map(|(name, pieces)| Chosen { name, pieces: pieces.iter().collect() });
                let free = all.filter(|array| !image.iter().chain(&named).any(|taken| taken.same(array)));
                self.guess_label(free.collect(), image.as_ref(), Some(columns[0].0.count))?
            }
            label => label,
        };
        let len = self.one_length(&columns)?;
        schema.check_shapes().map_err(|why| self.refuse(why))?;
        let labels = self.labels_of(label.as_ref(), len, &columns[0].0)?;
        let label = label.map(|label| format!("array {:?}", label.name));
        let named = Named { schema: schema.clone(), parts };
        self.build(columns, Some(named), schema, labels, label.as_deref())
    }

    /// The array that a part is in; `None` for one that need not be there.
    fn wanted<'arrays>(&'arrays self, wanted: &Wanted) -> Result<Option<Chosen<'arrays>>, SourceError> {
        let Err(error) = self.named(&wanted.part) else { return self.named(&wanted.part).map(Some) };
        if wanted.optional && wanted.is_part() {
            return Ok(None);
        }
        let near = similar(&wanted.part, self.arrays.0.iter().map(|(name, _)| name.as_str()));
        let near = near.map_or(String::new(), |near| format!("; did you mean {near:?}?"));
        Err(error.with(&format!(" (part {:?}){near}", wanted.part)))
    }

    fn no_images(&self) -> SourceError {
        let all = self.arrays.0.iter();
        let all = all.map(|(name, pieces)| Chosen { name, pieces: pieces.iter().collect() });
        let reasons: Vec<String> = all.filter_map(|array| self.why_not(&array)).take(5).collect();
        self.refuse(format!(
            "no array there can be a record's image ({}): {}",
            self.arrays.list(),
            reasons.join("; ")
        ))
    }

    /// An array as a part of variable length.
    fn part<'arrays>(
        &self,
        wanted: &Wanted,
        array: &Chosen<'arrays>,
    ) -> Result<(Rows<'arrays>, Form, PartSpec), SourceError> {
        let name = &wanted.part;
        let refuse =
            |why: String| Err(self.refuse(format!("part {name:?}: the array {:?} {why}", array.name)));
        let is_text = array.pieces.iter().all(|piece| piece.npy.texts().is_some());
        if is_text && !matches!(wanted.kind, WantedKind::Text | WantedKind::Bytes | WantedKind::Json) {
            return refuse("holds texts, which can be text, bytes or JSON".into());
        }
        if is_text {
            let Some(rows) = text_rows(array) else {
                return refuse(
                    "holds several texts for each record; save each column as an array of its own".into(),
                );
            };
            let runs = array.pieces.iter().filter(|piece| piece.npy.shape[0] > 0);
            let runs: Vec<_> = runs.filter_map(|piece| piece.npy.texts()).collect();
            if runs.iter().any(|texts| texts.size() > MAX_PART_BYTES) {
                return refuse(format!("holds texts of more than {} MiB", MAX_PART_BYTES >> 20));
            }
            let rows = Rows {
                name: array.name,
                pieces: array.pieces.clone(),
                counts: array.pieces.iter().map(|piece| piece.npy.shape[0]).collect(),
                stored: Stored { element: ElementType::U8, big: false },
                shape: &[],
                count: rows,
                step: 0,
            };
            let form = Form::Texts { runs, is_json: wanted.kind == WantedKind::Json };
            return Ok((rows, form, wanted.spec(ElementType::U8, &[])));
        }
        let rows = self.rows(array)?;
        let numbers = || {
            Part::field(name, rows.stored, rows.shape)
                .map_err(|why| self.refuse(format!("part {name:?}: the array {:?}: {why}", array.name)))
        };
        let element = rows.stored.element;
        let (part, spec) = match (wanted.kind, rows.shape) {
            (WantedKind::Image, shape) => match Part::picture(rows.stored, shape, self.config.layout) {
                Some(part) => (part, wanted.spec(element, &[])),
                None => {
                    let why = column::no_picture(array.name, rows.stored, shape);
                    return refuse(format!("holds no images: {why}"));
                }
            },
            (WantedKind::Ragged, [_, row @ ..]) if product(row).is_some_and(|count| count > 0) => {
                (numbers()?.0, wanted.spec(element, row))
            }
            (WantedKind::Bytes, _) if element == ElementType::U8 => (numbers()?.0, wanted.spec(element, &[])),
            (WantedKind::Ragged, _) => {
                return refuse("holds one number for each record; ask for it without max_rows".into());
            }
            _ => return refuse(format!("holds {element} {:?}, which is not text", rows.whole_shape())),
        };
        let step = rows.step;
        Ok((rows, Form::Rows { step, part }, spec))
    }
}
