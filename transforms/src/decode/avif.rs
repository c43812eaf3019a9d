//! AVIF: the container, read here, and AV1 pictures, decoded by rav1d (`av1.rs`).
//!
//! The picture is the primary item: one AV1 picture or a grid of them, turned and mirrored as its properties say
//! (EXIF's orientation means nothing here, by the standard). An alpha picture is not decoded. Colours become RGB as
//! libavif, and so Pillow, converts them, up to rounding; of 10 and 12 bits the upper eight are taken.

mod av1;
mod boxes;

use self::boxes::{Container, Item};
use super::{Session, Want, check_size, values};
use crate::error::SampleError;
use crate::geometry::{Image, Symmetry};
use crate::limits::Limits;

struct Avif<'a> {
    container: Container<'a>,
    item: Item,
    size: (usize, usize),
    symmetry: Symmetry,
    limits: Limits,
    want: Want,
}

pub(crate) fn open<'a>(
    bytes: &'a [u8],
    limits: &Limits,
    want: Want,
) -> Result<impl Session + 'a, SampleError> {
    let container =
        Container::parse(bytes).ok_or_else(|| malformed("its boxes are damaged or end too early"))?;
    let item = container.primary().ok_or_else(|| {
        SampleError::unsupported(
            "AVIF: a file without a still picture; extract its frames, for example with ffmpeg",
        )
    })?;
    let size = check_size("AVIF", item.size.ok_or_else(|| malformed("a picture without a size"))?, limits)?;
    let symmetry = item.symmetry();
    Ok(Avif { container, item, size, symmetry, limits: *limits, want })
}

fn malformed(what: &str) -> SampleError {
    SampleError::malformed(format!("AVIF: {what}"))
}

impl Session for Avif<'_> {
    fn size(&self) -> (usize, usize) {
        self.size
    }

    fn symmetry(&self) -> Symmetry {
        self.symmetry
    }

    fn decode(self: Box<Self>, out: &mut Image) -> Result<(), SampleError> {
        match &self.item.kind {
            b"av01" => self.picture(&self.item, (0, 0), out)?,
            b"grid" => self.grid(out)?,
            other => {
                return Err(SampleError::unsupported(format!(
                    "AVIF: pictures of type \"{}\" are not decoded; convert the file to JPEG or PNG",
                    other.escape_ascii()
                )));
            }
        }
        if self.want.is_values() { values::of_colors("AVIF", out) } else { Ok(()) }
    }
}

impl Avif<'_> {
    /// Decodes one AV1 picture to the place (x, y) of `out`; what reaches beyond it is cut off.
    fn picture(&self, item: &Item, at: (usize, usize), out: &mut Image) -> Result<(), SampleError> {
        let data = self.container.data(item).ok_or_else(|| super::truncated("AVIF"))?;
        let size = item.size.ok_or_else(|| malformed("a picture without a size"))?;
        let size = check_size("AVIF", size, &self.limits)?;
        let picture = av1::decode(data, size)?;
        picture.write(item.colors, at, out)
    }

    fn grid(&self, out: &mut Image) -> Result<(), SampleError> {
        let data = self.container.data(&self.item).ok_or_else(|| super::truncated("AVIF"))?;
        let grid = boxes::Grid::parse(&data).ok_or_else(|| malformed("a damaged grid"))?;
        let tiles = self.container.tiles(&self.item);
        if grid.size != self.size || tiles.len() != grid.columns * grid.rows {
            return Err(malformed("a grid that does not fit its tiles"));
        }
        let tile = tiles[0].size.ok_or_else(|| malformed("a picture without a size"))?;
        let (w, h) = (tile.0 as usize, tile.1 as usize);
        // All tiles are of one size, and together cover the picture.
        if tiles.iter().any(|other| other.size != Some(tile) || other.kind != *b"av01")
            || w.saturating_mul(grid.columns) < self.size.0
            || h.saturating_mul(grid.rows) < self.size.1
            || w.saturating_mul(grid.columns - 1) >= self.size.0
            || h.saturating_mul(grid.rows - 1) >= self.size.1
        {
            return Err(malformed("a grid that does not fit its tiles"));
        }
        for (index, item) in tiles.iter().enumerate() {
            self.picture(item, (index % grid.columns * w, index / grid.columns * h), out)?;
        }
        Ok(())
    }
}
