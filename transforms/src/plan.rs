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

use crate::color::Blur;
use crate::decode::Opened;
use crate::error::SampleError;
use crate::geometry::{Image, Rect, Symmetry, View, flip_rect};
use crate::limits::Limits;
use crate::resize::{Resize, Resizer};

/// The buffers of a thread, reused from sample to sample.
#[derive(Default)]
pub(crate) struct Buffers {
    /// The pixels at hand, once decoded.
    front: Image,
    /// Where the next step writes; then the two are swapped.
    back: Image,
    resizer: Resizer,
    blur: Blur,
}

impl Buffers {
    pub(crate) fn bytes(&self) -> usize {
        self.front.capacity() + self.back.capacity() + self.resizer.bytes() + self.blur.bytes()
    }

    pub(crate) fn shrink(&mut self, bytes: usize) {
        self.front.shrink(bytes);
        self.back.shrink(bytes);
        self.resizer.shrink(bytes);
        self.blur.shrink(bytes);
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

enum Source<'a> {
    Encoded(Opened<'a>),
    /// The front buffer, in stored orientation.
    Front,
}

/// An image under way: encoded or decoded, with the geometry that is still to be done.
pub(crate) struct Picture<'a> {
    source: Source<'a>,
    geometry: Geometry,
    buffers: &'a mut Buffers,
    limits: Limits,
}

impl<'a> Picture<'a> {
    pub(crate) fn new(opened: Opened<'a>, buffers: &'a mut Buffers, limits: Limits) -> Self {
        let geometry = Geometry::new(opened.stored_size(), opened.symmetry());
        Picture { source: Source::Encoded(opened), geometry, buffers, limits }
    }

    /// (width, height) after all steps so far.
    pub(crate) fn size(&self) -> (usize, usize) {
        self.geometry.size()
    }

    /// Cuts `rect` out, which must lie inside the image and not be empty.
    pub(crate) fn crop(&mut self, rect: Rect) {
        self.geometry.crop(rect);
    }

    pub(crate) fn flip(&mut self, x: bool, y: bool) {
        self.geometry.flip_x ^= x;
        self.geometry.flip_y ^= y;
    }

    pub(crate) fn resize(&mut self, resize: Resize) -> Result<(), SampleError> {
        // Resizing to the size it has changes nothing, with every filter.
        if self.size() == (resize.w, resize.h) {
            return Ok(());
        }
        if self.geometry.resize.is_some() {
            self.settle()?;
        }
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
        make(self.buffers.front.view().crop(self.geometry.region), &mut self.buffers.back);
        self.swap();
        Ok(())
    }

    /// Changes pixels one by one, without regard to where they are: pending flips stay pending.
    pub(crate) fn each_pixel(&mut self, change: impl FnOnce(&mut [[u8; 4]])) -> Result<(), SampleError> {
        self.settle()?;
        if !self.geometry.region.is_whole(self.buffers.front.size()) {
            let (flip_x, flip_y) = (self.geometry.flip_x, self.geometry.flip_y);
            self.buffers.front.view().crop(self.geometry.region).copy_to(&mut self.buffers.back);
            self.swap();
            (self.geometry.flip_x, self.geometry.flip_y) = (flip_x, flip_y);
        }
        change(self.buffers.front.pixels_mut());
        Ok(())
    }

    /// Changes the image in place; every step so far has been done to it.
    pub(crate) fn in_place(&mut self, change: impl FnOnce(&mut Image, &mut Blur)) -> Result<(), SampleError> {
        self.settle_flips()?;
        if !self.geometry.region.is_whole(self.buffers.front.size()) {
            self.buffers.front.view().crop(self.geometry.region).copy_to(&mut self.buffers.back);
            self.swap();
        }
        change(&mut self.buffers.front, &mut self.buffers.blur);
        Ok(())
    }

    /// Carries everything out but the last flips, which it returns with the pixels.
    pub(crate) fn finish(mut self) -> Result<(View<'a>, bool, bool), SampleError> {
        self.settle()?;
        let Geometry { region, flip_x, flip_y, .. } = self.geometry;
        let front: &'a Image = &self.buffers.front;
        Ok((front.view().crop(region), flip_x, flip_y))
    }

    /// Carries the geometry out. Afterwards the image is a region of the front buffer, with flips pending.
    pub(crate) fn settle(&mut self) -> Result<(), SampleError> {
        let geometry = self.geometry;
        let resize = geometry.resize;
        if matches!(self.source, Source::Front) && resize.is_none() && geometry.symmetry.is_identity() {
            return Ok(());
        }
        let Buffers { front, back, resizer, .. } = &mut *self.buffers;
        let (region, window) = (geometry.region, geometry.window);
        let needed = match &resize {
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
        let mut at = match std::mem::replace(&mut self.source, Source::Front) {
            Source::Encoded(opened) => opened.decode(stored, front)?,
            Source::Front => stored,
        };
        if !geometry.symmetry.is_identity() {
            geometry.symmetry.apply(front.view().crop(at), back);
            std::mem::swap(front, back);
            at = Rect::sized(needed.w, needed.h);
        }
        if let Some(resize) = &resize {
            resizer.run(front.view().crop(at), resize, back);
            std::mem::swap(front, back);
            at = Rect::sized(window.w, window.h);
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

    /// Carries the geometry out, flips included.
    pub(crate) fn settle_flips(&mut self) -> Result<(), SampleError> {
        self.settle()?;
        let Geometry { region, flip_x, flip_y, .. } = self.geometry;
        if flip_x || flip_y {
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
