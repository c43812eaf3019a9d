//! Tables of levels: what a step makes of each level of each channel, whatever pixel has it.
//!
//! Steps of this kind that follow each other become one table, which is applied once ([`Levels`]): the bytes are those
//! of doing them one by one. What such a step needs to know of the image (the mean gray, how often each level occurs)
//! is counted through the table so far. The arithmetic is Pillow's.

use crate::color::luma;
use crate::geometry::PIXEL;

type Pixel = [u8; PIXEL];

/// What becomes of each level.
pub(crate) type Table = [u8; 256];

/// How many pixels have each level, a channel each.
type Counts = [[u32; 256]; 3];

/// The tables that the pixels at hand are still to go through.
#[derive(Clone, Default)]
pub(crate) struct Levels {
    tables: Option<Box<[Table; 3]>>,
    /// Of the pixels as they lie there, if they have been counted.
    counts: Option<Box<Counts>>,
}

/// The image that a table is made for.
pub(crate) struct Seen<'a> {
    pub pixels: &'a [Pixel],
    pub levels: &'a mut Levels,
}

impl Seen<'_> {
    fn now(&self, [r, g, b, x]: Pixel) -> Pixel {
        match &self.levels.tables {
            None => [r, g, b, x],
            Some(tables) => {
                [tables[0][usize::from(r)], tables[1][usize::from(g)], tables[2][usize::from(b)], x]
            }
        }
    }

    /// The mean gray, rounded as Pillow's `ImageEnhance.Contrast` does.
    pub(crate) fn mean_gray(&self) -> u8 {
        let sum: u64 = self.pixels.iter().map(|pixel| u64::from(luma(self.now(*pixel)))).sum();
        (sum as f64 / self.pixels.len() as f64 + 0.5) as u8
    }

    fn counts(&mut self) -> Counts {
        let stored = self.levels.counts.get_or_insert_with(|| {
            let mut counts = Box::new([[0; 256]; 3]);
            for [r, g, b, _] in self.pixels {
                counts[0][usize::from(*r)] += 1;
                counts[1][usize::from(*g)] += 1;
                counts[2][usize::from(*b)] += 1;
            }
            counts
        });
        let Some(tables) = &self.levels.tables else { return **stored };
        let mut counts = [[0; 256]; 3];
        for ((now, stored), table) in counts.iter_mut().zip(stored.iter()).zip(tables.iter()) {
            for (count, level) in stored.iter().zip(table) {
                now[usize::from(*level)] += count;
            }
        }
        counts
    }

    /// A table for each channel from how often its levels occur.
    pub(crate) fn by_counts(&mut self, make: impl Fn(&[u32; 256]) -> Table) -> [Table; 3] {
        let counts = self.counts();
        std::array::from_fn(|channel| make(&counts[channel]))
    }
}

impl Levels {
    pub(crate) fn then(&mut self, next: &[Table; 3]) {
        match &mut self.tables {
            None => self.tables = Some(Box::new(*next)),
            Some(tables) => {
                for (table, next) in tables.iter_mut().zip(next) {
                    table.iter_mut().for_each(|level| *level = next[usize::from(*level)]);
                }
            }
        }
    }

    pub(crate) fn is_pending(&self) -> bool {
        self.tables.is_some()
    }

    /// The pixels at hand are others now.
    pub(crate) fn forget_counts(&mut self) {
        self.counts = None;
    }

    /// Takes pixels through the tables.
    pub(crate) fn apply(&self, pixels: &mut [Pixel]) {
        let Some(tables) = &self.tables else { return };
        let [red, green, blue] = &**tables;
        for [r, g, b, _] in pixels {
            *r = red[usize::from(*r)];
            *g = green[usize::from(*g)];
            *b = blue[usize::from(*b)];
        }
    }
}

pub(crate) fn table(of: impl Fn(u8) -> u8) -> Table {
    std::array::from_fn(|level| of(level as u8))
}

pub(crate) fn invert() -> Table {
    table(|level| 255 - level)
}

/// Keeps the upper `bits` bits.
pub(crate) fn posterize(bits: u32) -> Table {
    // All eight are shifted out for 0.
    let mask = (0xFF00u32 >> bits.min(8)) as u8;
    table(|level| level & mask)
}

/// Inverts levels of at least `threshold`.
pub(crate) fn solarize(threshold: f64) -> Table {
    table(|level| if f64::from(level) < threshold { level } else { 255 - level })
}

/// timm's `solarize_add`: brightens levels below 128.
pub(crate) fn solarize_add(add: u8) -> Table {
    table(|level| if level < 128 { level.saturating_add(add) } else { level })
}

/// Pillow's `ImageOps.autocontrast`: the darkest level that occurs becomes 0, the brightest 255.
pub(crate) fn autocontrast(counts: &[u32; 256]) -> Table {
    let low = counts.iter().position(|count| *count > 0).unwrap_or(0);
    let high = counts.iter().rposition(|count| *count > 0).unwrap_or(0);
    if high <= low {
        return table(|level| level);
    }
    let scale = 255.0 / (high - low) as f64;
    let offset = -(low as f64) * scale;
    // `as` cuts off and saturates, as Python's int and Pillow's bounds do.
    table(|level| (f64::from(level) * scale + offset) as u8)
}

/// Pillow's `ImageOps.equalize`: levels occur about equally often.
pub(crate) fn equalize(counts: &[u32; 256]) -> Table {
    let total: u64 = counts.iter().copied().map(u64::from).sum();
    let last = counts.iter().copied().rfind(|count| *count > 0).unwrap_or(0);
    let step = (total - u64::from(last)) / 255;
    if step == 0 {
        return table(|level| level);
    }
    let mut n = step / 2;
    std::array::from_fn(|level| {
        let to = (n / step).min(255) as u8;
        n += u64::from(counts[level]);
        to
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    // Lines of ten levels as Pillow 13.0 makes them.
    #[test]
    fn tables_are_pillows() {
        let mut counts = [0u32; 256];
        for (level, count) in [(10, 500), (11, 20), (60, 300), (200, 1000), (240, 7)] {
            counts[level] = count;
        }
        let at = |table: Table| [0, 10, 11, 60, 128, 200, 240, 255].map(|level: usize| table[level]);
        assert_eq!(at(autocontrast(&counts)), [0, 0, 1, 55, 130, 210, 255, 255]);
        assert_eq!(at(equalize(&counts)), [0, 0, 71, 74, 117, 117, 255, 255]);
        assert_eq!(at(posterize(3)), [0, 0, 0, 32, 128, 192, 224, 224]);
        assert_eq!((posterize(8)[201], posterize(0)[201]), (201, 0));
        assert_eq!(at(solarize(60.0)), [0, 10, 11, 195, 127, 55, 15, 0]);
        assert_eq!((solarize(60.5)[60], solarize(256.0)[255], solarize(0.0)[0]), (60, 255, 255));
        assert_eq!(at(solarize_add(110)), [110, 120, 121, 170, 128, 200, 240, 255]);
        let one = std::array::from_fn(|level| u32::from(level == 77) * 9);
        assert_eq!((autocontrast(&one)[3], equalize(&one)[3]), (3, 3));
    }

    #[test]
    fn tables_after_each_other_are_one_table_and_counts_go_through_it() {
        let mut image = crate::resize::tests::noise(40, 30, 3);
        let mut stepwise = image.pixels().to_vec();
        let steps: [fn(&mut Seen<'_>) -> [Table; 3]; 6] = [
            |seen| seen.by_counts(autocontrast),
            |_| [posterize(3), invert(), solarize(77.0)],
            |seen| seen.by_counts(equalize),
            |seen| [table(|level| level / 2 + seen.mean_gray() / 3); 3],
            |seen| seen.by_counts(equalize),
            |seen| seen.by_counts(autocontrast),
        ];
        let mut levels = Levels::default();
        for step in steps {
            let mut alone = Levels::default();
            let next = step(&mut Seen { pixels: &stepwise, levels: &mut alone });
            alone.then(&next);
            alone.apply(&mut stepwise);
            let next = step(&mut Seen { pixels: image.pixels(), levels: &mut levels });
            levels.then(&next);
        }
        levels.apply(image.pixels_mut());
        assert_eq!(image.pixels(), stepwise);
    }
}
