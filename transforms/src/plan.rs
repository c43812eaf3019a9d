//! One record's plan: crops, flips and one resize resolved into a single geometry before a byte is decoded.
//!
//! ```text
//!  stored image --symmetry--> upright --region--> part --resize--> result --window--> part of it --flips--> image
//! ```
//!
//! The **symmetry** is the EXIF orientation and every flip before the resize. The **region** is what the crops before
//! the resize leave; the resize's filter does not see beyond it. The **window** is what the crops after the resize
//! leave; only the source pixels under its filter windows are decoded, and what is computed is bit-identical to
//! resizing everything and cutting then. The **flips** after the resize stay pending to the very end, where the output
//! pass reads rows and columns backwards.
//!
//! A second resize, a rotation, a padding or a colour step needs pixels: the plan is carried out ("settled") and a new
//! one begins on the result. Two resizes are therefore always two.
//!
//! A colour step that is a table of levels needs them only to be looked at: the table stays pending, through crops and
//! flips, until the next step that is none ([`Levels`]).
//!
//! The same steps can be followed without pixels, as a [`Sketch`]: then what they would do to pixels is left out. It
//! says which part of the stored image a chain needs, so that several chains can share one decode, and where in the
//! original its result lies.

use crate::color::Blur;
use crate::decode::{Header, Opened};
use crate::error::SampleError;
use crate::geometry::{Image, PIXEL, Rect, Symmetry, View, flip_rect};
use crate::levels::{Levels, Seen, Table};
use crate::limits::Limits;
use crate::resize::{Resize, Resizer};
use crate::steps::Sides;
use crate::targets::Targets;
use crate::warp::Map;

/// The buffers of a thread, reused from sample to sample.
#[derive(Default)]
pub(crate) struct Buffers {
    /// The pixels at hand, once decoded.
    front: Image,
    /// Where the next step writes; then the two are swapped.
    back: Image,
    resizer: Resizer,
    blur: Blur,
    /// What several pictures of one image share.
    shared: Image,
    /// What is mixed: an image, and sums of bytes of several.
    mixed: Image,
    sums: Vec<f32>,
}

impl Buffers {
    /// Decodes `stored`, a rectangle of the stored image, for several pictures.
    pub(crate) fn share(&mut self, opened: Opened<'_>, stored: Rect) -> Result<Shared, SampleError> {
        let header = opened.header();
        let at = opened.decode(stored, &mut self.shared)?;
        Ok(Shared { header, stored, at })
    }

    pub(crate) fn bytes(&self) -> usize {
        self.front.capacity()
            + self.back.capacity()
            + self.resizer.bytes()
            + self.blur.bytes()
            + self.shared.capacity()
            + self.mixed.capacity()
            + 4 * self.sums.capacity()
    }

    pub(crate) fn shrink(&mut self, bytes: usize) {
        self.front.shrink(bytes);
        self.back.shrink(bytes);
        self.resizer.shrink(bytes);
        self.blur.shrink(bytes);
        self.shared.shrink(bytes);
        self.mixed.shrink(bytes);
        if 4 * self.sums.capacity() > bytes {
            self.sums = Vec::new();
        }
    }
}

/// The picture drawn at the top of this file, without its source.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Geometry {
    /// Size of the upright image.
    upright: (usize, usize),
    symmetry: Symmetry,
    region: Rect,
    resize: Option<Resize>,
    /// In coordinates of the resize's result; without a resize, all of the region.
    window: Rect,
    flip_x: bool,
    flip_y: bool,
}

impl Geometry {
    fn new(stored: (usize, usize), symmetry: Symmetry) -> Self {
        let upright = symmetry.size(stored);
        let whole = Rect::sized(upright.0, upright.1);
        Geometry {
            upright,
            symmetry,
            region: whole,
            resize: None,
            window: whole,
            flip_x: false,
            flip_y: false,
        }
    }

    fn size(&self) -> (usize, usize) {
        (self.window.w, self.window.h)
    }

    fn crop(&mut self, rect: Rect) {
        let unflipped = flip_rect(rect, self.size(), self.flip_x, self.flip_y);
        if self.resize.is_some() {
            self.window = self.window.sub(unflipped);
        } else {
            self.region = self.region.sub(unflipped);
            self.window = Rect::sized(rect.w, rect.h);
        }
    }

    /// Only where there is no resize yet.
    fn resize(&mut self, resize: Resize) {
        // Flips so far come before the resize: filter windows are not symmetric to the last bit, so the pixels must be
        // flipped first.
        self.symmetry = self.symmetry.then_flip(self.flip_x, self.flip_y);
        self.region = flip_rect(self.region, self.upright, self.flip_x, self.flip_y);
        (self.flip_x, self.flip_y) = (false, false);
        self.window = Rect::sized(resize.w, resize.h);
        self.resize = Some(resize);
    }
}

/// A rectangle of a stored image that has been decoded for several pictures, and where it lies in their buffer.
#[derive(Clone, Copy)]
pub(crate) struct Shared {
    header: Header,
    stored: Rect,
    at: Rect,
}

/// What the geometry of a chain says of one image.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Sketch {
    /// The rectangle of the stored image that is needed, or a little more.
    pub stored: Rect,
    pub origin: Origin,
    /// What moved with it.
    pub targets: Targets,
}

/// Where the result lies in the upright original, in the original's pixels: fractions where a resized image was cut,
/// and beyond its edges where there is a border.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Origin {
    pub x: f64,
    pub y: f64,
    pub w: f64,
    pub h: f64,
    pub flip_x: bool,
    pub flip_y: bool,
}

impl Origin {
    fn whole((w, h): (usize, usize)) -> Self {
        Origin { x: 0.0, y: 0.0, w: w as f64, h: h as f64, flip_x: false, flip_y: false }
    }

    /// Only `rect` of an image of `size` is left.
    fn cut(&mut self, rect: Rect, size: (usize, usize)) {
        let rect = flip_rect(rect, size, self.flip_x, self.flip_y);
        // The product first: it is exact, so that a cut of everything changes nothing.
        self.x += rect.x as f64 * self.w / size.0 as f64;
        self.y += rect.y as f64 * self.h / size.1 as f64;
        self.w = rect.w as f64 * self.w / size.0 as f64;
        self.h = rect.h as f64 * self.h / size.1 as f64;
    }

    /// An image of `size` gets borders.
    fn widen(&mut self, sides: Sides, size: (usize, usize)) {
        let [left, right, top, bottom] = [sides.left, sides.right, sides.top, sides.bottom].map(f64::from);
        let (x, y) = (self.w / size.0 as f64, self.h / size.1 as f64);
        self.x -= x * if self.flip_x { right } else { left };
        self.y -= y * if self.flip_y { bottom } else { top };
        self.w += x * (left + right);
        self.h += y * (top + bottom);
    }
}

enum Source<'a> {
    Encoded(Opened<'a>),
    Shared(Shared),
    /// Nowhere: there are no pixels. What was needed first is kept.
    Sketch(Option<Rect>),
    /// The front buffer, in stored orientation.
    Front,
}

/// An image under way: encoded or decoded, with the geometry that is still to be done.
pub(crate) struct Picture<'a> {
    source: Source<'a>,
    geometry: Geometry,
    origin: Origin,
    /// What moves with the image.
    targets: Targets,
    /// What the pixels of the region are still to go through.
    levels: Levels,
    buffers: &'a mut Buffers,
    limits: Limits,
}

impl<'a> Picture<'a> {
    fn new(source: Source<'a>, header: Header, buffers: &'a mut Buffers, limits: Limits) -> Self {
        let geometry = Geometry::new(header.stored, header.symmetry);
        let (origin, targets) = (Origin::whole(header.upright()), Targets::default());
        Picture { source, geometry, origin, targets, levels: Levels::default(), buffers, limits }
    }

    /// Decodes what it needs.
    pub(crate) fn encoded(opened: Opened<'a>, buffers: &'a mut Buffers, limits: Limits) -> Self {
        let header = opened.header();
        Picture::new(Source::Encoded(opened), header, buffers, limits)
    }

    /// Takes what it needs from pixels that are there.
    pub(crate) fn shared(shared: Shared, buffers: &'a mut Buffers, limits: Limits) -> Self {
        Picture::new(Source::Shared(shared), shared.header, buffers, limits)
    }

    /// Has no pixels.
    pub(crate) fn sketch(header: Header, buffers: &'a mut Buffers, limits: Limits) -> Self {
        Picture::new(Source::Sketch(None), header, buffers, limits)
    }

    /// The picture with what moves with it.
    pub(crate) fn with(self, targets: Targets) -> Self {
        Picture { targets, ..self }
    }

    /// What moves with the image, where it is by now.
    pub(crate) fn targets(&self) -> &Targets {
        &self.targets
    }

    pub(crate) fn targets_mut(&mut self) -> &mut Targets {
        &mut self.targets
    }

    /// Says that the image is about to be replaced by one of `size`, in which a point is where `forward` says.
    pub(crate) fn carry(&mut self, size: (usize, usize), forward: impl Fn([f64; 2]) -> [f64; 2]) {
        self.targets.carry(forward);
        self.targets.clamp(size);
    }

    /// Says that the image is about to be replaced by one of `size`, whose points come from where `map` says. Where the
    /// plane becomes a line, all that moves with it ends in the corner.
    pub(crate) fn follow(&mut self, map: &Map, size: (usize, usize)) {
        let forward = map.inverse();
        self.carry(size, |[x, y]| forward.map_or([0.0; 2], |forward| forward.at(x, y).into()));
    }

    /// Pixels of the original to one of the image, along the axis that has more.
    #[cfg(test)]
    pub(crate) fn pitch(&self) -> f64 {
        let (w, h) = self.size();
        (self.origin.w / w as f64).max(self.origin.h / h as f64)
    }

    /// Whether it has pixels, or will have them.
    pub(crate) fn has_pixels(&self) -> bool {
        !self.is_sketch()
    }

    fn is_sketch(&self) -> bool {
        matches!(self.source, Source::Sketch(_))
    }

    /// What a picture without pixels has learned.
    pub(crate) fn sketched(mut self) -> Result<Sketch, SampleError> {
        self.settle()?;
        match self.source {
            Source::Sketch(Some(stored)) => Ok(Sketch { stored, origin: self.origin, targets: self.targets }),
            _ => unreachable!("a sketch that is settled knows what it needs"),
        }
    }

    /// (width, height) after all steps so far.
    pub(crate) fn size(&self) -> (usize, usize) {
        self.geometry.size()
    }

    /// Cuts `rect` out, which must lie inside the image and not be empty.
    pub(crate) fn crop(&mut self, rect: Rect) {
        self.origin.cut(rect, self.size());
        self.targets.shift(-(rect.x as f64), -(rect.y as f64));
        self.targets.clamp((rect.w, rect.h));
        self.geometry.crop(rect);
        self.levels.forget_counts();
    }

    /// Says that the image is about to be replaced by one with borders.
    pub(crate) fn widen(&mut self, sides: Sides) {
        self.origin.widen(sides, self.size());
        self.targets.shift(f64::from(sides.left), f64::from(sides.top));
        self.targets.clamp(sides.around(self.size()));
    }

    pub(crate) fn flip(&mut self, x: bool, y: bool) {
        self.targets.flip(self.size(), x, y);
        self.origin.flip_x ^= x;
        self.origin.flip_y ^= y;
        self.geometry.flip_x ^= x;
        self.geometry.flip_y ^= y;
    }

    pub(crate) fn resize(&mut self, resize: Resize) -> Result<(), SampleError> {
        // Resizing to the size it has changes nothing, with every filter.
        if self.size() == (resize.w, resize.h) {
            return Ok(());
        }
        self.targets.scale(self.size(), (resize.w, resize.h));
        if self.geometry.resize.is_some() {
            self.settle()?;
        }
        self.settle_levels();
        self.geometry.resize(resize);
        Ok(())
    }

    /// Replaces the image by what `make` writes into its second argument, an image of `size`.
    pub(crate) fn replace(
        &mut self,
        what: &str,
        size: (usize, usize),
        make: impl FnOnce(View<'_>, &mut Image),
    ) -> Result<(), SampleError> {
        self.limits.check_pixels(what, size.0 as u64, size.1 as u64)?;
        self.settle_flips()?;
        if self.is_sketch() {
            self.geometry = Geometry::new(size, Symmetry::IDENTITY);
            return Ok(());
        }
        make(self.buffers.front.view().crop(self.geometry.region), &mut self.buffers.back);
        self.swap();
        Ok(())
    }

    /// Changes pixels one by one, without regard to where they are: pending flips stay pending.
    pub(crate) fn each_pixel(&mut self, change: impl FnOnce(&mut [[u8; 4]])) -> Result<(), SampleError> {
        self.settle_whole()?;
        if self.is_sketch() {
            return Ok(());
        }
        self.settle_levels();
        change(self.buffers.front.pixels_mut());
        Ok(())
    }

    /// Changes levels by tables, a channel each, which `make` makes from the image. They stay pending, as flips do.
    pub(crate) fn look_up(
        &mut self,
        make: impl FnOnce(&mut Seen<'_>) -> [Table; 3],
    ) -> Result<(), SampleError> {
        self.settle_whole()?;
        if self.is_sketch() {
            return Ok(());
        }
        let tables = make(&mut Seen { pixels: self.buffers.front.pixels(), levels: &mut self.levels });
        self.levels.then(&tables);
        Ok(())
    }

    /// Carries the geometry out, so that the image is all of the front buffer, with flips and tables pending.
    fn settle_whole(&mut self) -> Result<(), SampleError> {
        self.settle()?;
        if !self.is_sketch() && !self.geometry.region.is_whole(self.buffers.front.size()) {
            let (flip_x, flip_y) = (self.geometry.flip_x, self.geometry.flip_y);
            self.buffers.front.view().crop(self.geometry.region).copy_to(&mut self.buffers.back);
            self.swap();
            (self.geometry.flip_x, self.geometry.flip_y) = (flip_x, flip_y);
        }
        Ok(())
    }

    /// Takes the pixels at hand through the pending tables.
    fn settle_levels(&mut self) {
        if self.levels.is_pending() {
            let Rect { x, y, w, h } = self.geometry.region;
            for y in y..y + h {
                self.levels.apply(&mut self.buffers.front.row_mut(y).as_chunks_mut().0[x..x + w]);
            }
        }
        self.levels = Levels::default();
    }

    /// Changes the image in place; every step so far has been done to it.
    pub(crate) fn in_place(&mut self, change: impl FnOnce(&mut Image, &mut Blur)) -> Result<(), SampleError> {
        self.settle_flips()?;
        if self.is_sketch() {
            return Ok(());
        }
        if !self.geometry.region.is_whole(self.buffers.front.size()) {
            self.buffers.front.view().crop(self.geometry.region).copy_to(&mut self.buffers.back);
            self.swap();
        }
        change(&mut self.buffers.front, &mut self.buffers.blur);
        Ok(())
    }

    /// Replaces the image by a mixture. `chain` is called for each of `weights`, on a copy of the image whose size it
    /// keeps; the weighted bytes of the copies are added to those of the image, whose weight is `own`. Each byte
    /// becomes what `finish` makes of it and of its sum. What moves with the image stays where it is.
    pub(crate) fn mix(
        &mut self,
        own: f32,
        weights: &[f32],
        mut chain: impl FnMut(usize, &mut Picture<'_>) -> Result<(), SampleError>,
        finish: impl Fn(u8, f32) -> u8,
    ) -> Result<(), SampleError> {
        let (w, h) = self.size();
        self.limits.check_pixels("the images to mix, in f32,", w as u64, 4 * h as u64)?;
        self.settle_flips()?;
        if self.is_sketch() {
            return Ok(());
        }
        self.buffers.front.view().crop(self.geometry.region).copy_to(&mut self.buffers.mixed);
        let mut sums = std::mem::take(&mut self.buffers.sums);
        sums.clear();
        sums.extend(self.buffers.mixed.view_rows().flatten().map(|byte| own * f32::from(*byte)));
        let targets = std::mem::take(&mut self.targets);
        for (number, weight) in weights.iter().enumerate() {
            self.buffers.mixed.view().copy_to(&mut self.buffers.front);
            self.geometry = Geometry::new((w, h), Symmetry::IDENTITY);
            chain(number, self)?;
            self.settle_flips()?;
            let copy = self.buffers.front.view().crop(self.geometry.region);
            for (sums, y) in sums.chunks_exact_mut(w * PIXEL).zip(0..h) {
                sums.iter_mut().zip(copy.row(y)).for_each(|(sum, byte)| *sum += weight * f32::from(*byte));
            }
        }
        let Buffers { front, mixed, .. } = &mut *self.buffers;
        mixed.view().copy_to(front);
        for (byte, sum) in front.bytes_mut().iter_mut().zip(&sums) {
            *byte = finish(*byte, *sum);
        }
        self.geometry = Geometry::new((w, h), Symmetry::IDENTITY);
        (self.targets, self.buffers.sums) = (targets, sums);
        Ok(())
    }

    /// Carries everything out but the last flips, which it returns with the pixels.
    pub(crate) fn finish(mut self) -> Result<(View<'a>, bool, bool), SampleError> {
        self.settle()?;
        self.settle_levels();
        let Geometry { region, flip_x, flip_y, .. } = self.geometry;
        let front: &'a Image = &self.buffers.front;
        Ok((front.view().crop(region), flip_x, flip_y))
    }

    /// Carries the geometry out. Afterwards the image is a region of the front buffer, with flips pending.
    pub(crate) fn settle(&mut self) -> Result<(), SampleError> {
        let geometry = self.geometry;
        let resize = geometry.resize;
        let at_hand = matches!(self.source, Source::Front | Source::Sketch(Some(_)));
        if at_hand && resize.is_none() && geometry.symmetry.is_identity() {
            return Ok(());
        }
        let Buffers { front, back, resizer, shared, .. } = &mut *self.buffers;
        let (region, window) = (geometry.region, geometry.window);
        let is_sketch = matches!(self.source, Source::Sketch(_));
        let needed = match &resize {
            // All of the result takes all of the region, or nearly.
            Some(resize) if is_sketch && (at_hand || window.is_whole((resize.w, resize.h))) => {
                self.limits.check_pixels("the resized image", window.w as u64, window.h as u64)?;
                region
            }
            Some(resize) => {
                self.limits.check_pixels("the resized image", window.w as u64, window.h as u64)?;
                let needed = resizer.plan((region.w, region.h), resize, window);
                let (w, h) = resizer.between_size(window);
                self.limits.check_pixels("the image between the passes of a resize", w as u64, h as u64)?;
                region.sub(needed)
            }
            None => region,
        };
        let stored = geometry.symmetry.source_of(needed, geometry.upright);
        if let Source::Sketch(first) = &mut self.source {
            first.get_or_insert(stored);
            let (flip_x, flip_y) = (geometry.flip_x, geometry.flip_y);
            let size = (window.w, window.h);
            self.geometry = Geometry { flip_x, flip_y, ..Geometry::new(size, Symmetry::IDENTITY) };
            return Ok(());
        }
        let (mut at, mut in_shared) = match std::mem::replace(&mut self.source, Source::Front) {
            Source::Encoded(opened) => (opened.decode(stored, front)?, false),
            Source::Shared(Shared { stored: from, at, .. }) => {
                (at.sub(Rect { x: stored.x - from.x, y: stored.y - from.y, ..stored }), true)
            }
            Source::Front | Source::Sketch(_) => (stored, false),
        };
        if !geometry.symmetry.is_identity() {
            let from = if std::mem::take(&mut in_shared) { &*shared } else { &*front };
            geometry.symmetry.apply(from.view().crop(at), back);
            std::mem::swap(front, back);
            at = Rect::sized(needed.w, needed.h);
        }
        if let Some(resize) = &resize {
            let from = if std::mem::take(&mut in_shared) { &*shared } else { &*front };
            resizer.run(from.view().crop(at), resize, back);
            std::mem::swap(front, back);
            at = Rect::sized(window.w, window.h);
        }
        if in_shared {
            // Others need the shared pixels as they are.
            shared.view().crop(at).copy_to(front);
            at = Rect::sized(needed.w, needed.h);
        }
        self.geometry = Geometry {
            flip_x: geometry.flip_x,
            flip_y: geometry.flip_y,
            region: at,
            window: Rect::sized(at.w, at.h),
            ..Geometry::new(front.size(), Symmetry::IDENTITY)
        };
        Ok(())
    }

    /// Carries everything out, flips and tables included.
    pub(crate) fn settle_flips(&mut self) -> Result<(), SampleError> {
        self.settle()?;
        self.settle_levels();
        let Geometry { region, flip_x, flip_y, .. } = self.geometry;
        if self.is_sketch() {
            (self.geometry.flip_x, self.geometry.flip_y) = (false, false);
        } else if flip_x || flip_y {
            let flips = Symmetry::IDENTITY.then_flip(flip_x, flip_y);
            flips.apply(self.buffers.front.view().crop(region), &mut self.buffers.back);
            self.swap();
        }
        Ok(())
    }

    /// The back buffer holds the image now, with nothing pending.
    fn swap(&mut self) {
        std::mem::swap(&mut self.buffers.front, &mut self.buffers.back);
        self.geometry = Geometry::new(self.buffers.front.size(), Symmetry::IDENTITY);
    }
}
