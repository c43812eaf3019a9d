//! Integer rectangles, the eight symmetries of a rectangle, and the image buffer they act on.

/// Bytes of a pixel in every intermediate image: red, green, blue and one byte without meaning, which keeps rows
/// aligned for the kernels. A gray image holds its value three times.
pub(crate) const PIXEL: usize = 4;

/// A rectangle of whole pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rect {
    pub x: usize,
    pub y: usize,
    pub w: usize,
    pub h: usize,
}

impl Rect {
    pub(crate) fn sized(w: usize, h: usize) -> Self {
        Rect { x: 0, y: 0, w, h }
    }

    pub(crate) fn is_whole(&self, (w, h): (usize, usize)) -> bool {
        *self == Rect::sized(w, h)
    }

    /// The smallest rectangle that holds both.
    pub(crate) fn around(&self, other: Rect) -> Rect {
        let (x, y) = (self.x.min(other.x), self.y.min(other.y));
        let (right, bottom) =
            ((self.x + self.w).max(other.x + other.w), (self.y + self.h).max(other.y + other.h));
        Rect { x, y, w: right - x, h: bottom - y }
    }

    /// `inner`, given in this rectangle's coordinates, in the coordinates this rectangle is given in.
    pub(crate) fn sub(&self, inner: Rect) -> Rect {
        debug_assert!(inner.x + inner.w <= self.w && inner.y + inner.h <= self.h);
        Rect { x: self.x + inner.x, y: self.y + inner.y, ..inner }
    }
}

/// One of the eight ways to put a rectangle on itself or its transpose: first transpose, then flip.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Symmetry {
    pub transpose: bool,
    pub flip_x: bool,
    pub flip_y: bool,
}

impl Symmetry {
    pub(crate) const IDENTITY: Symmetry = Symmetry { transpose: false, flip_x: false, flip_y: false };
    pub(crate) const FLIP_X: Symmetry = Symmetry { transpose: false, flip_x: true, flip_y: false };
    pub(crate) const FLIP_Y: Symmetry = Symmetry { transpose: false, flip_x: false, flip_y: true };

    pub(crate) fn is_identity(&self) -> bool {
        *self == Symmetry::IDENTITY
    }

    /// The size of an image of size `(w, h)` afterwards.
    pub(crate) fn size(&self, (w, h): (usize, usize)) -> (usize, usize) {
        if self.transpose { (h, w) } else { (w, h) }
    }

    /// This symmetry and then flips along x and y.
    pub(crate) fn then_flip(mut self, flip_x: bool, flip_y: bool) -> Self {
        self.flip_x ^= flip_x;
        self.flip_y ^= flip_y;
        self
    }

    /// Where `rect` of the result comes from: a rectangle of the source, whose result has size `(w, h)`.
    pub(crate) fn source_of(&self, rect: Rect, (w, h): (usize, usize)) -> Rect {
        let unflipped = flip_rect(rect, (w, h), self.flip_x, self.flip_y);
        if self.transpose {
            Rect { x: unflipped.y, y: unflipped.x, w: unflipped.h, h: unflipped.w }
        } else {
            unflipped
        }
    }

    /// Writes the symmetric image of `source` into `out`, which becomes an image of its own.
    pub(crate) fn apply(&self, source: View<'_>, out: &mut Image) {
        let (w, h) = self.size((source.w, source.h));
        out.reset(w, h);
        for y in 0..h {
            let from_y = if self.flip_y { h - 1 - y } else { y };
            let row = &mut out.data[y * w * PIXEL..(y + 1) * w * PIXEL];
            let pixels = row.as_chunks_mut::<PIXEL>().0;
            if self.transpose {
                for (x, pixel) in pixels.iter_mut().enumerate() {
                    let from_x = if self.flip_x { w - 1 - x } else { x };
                    *pixel = source.row(from_x).as_chunks::<PIXEL>().0[from_y];
                }
            } else {
                let from = source.row(from_y).as_chunks::<PIXEL>().0;
                if self.flip_x {
                    for (pixel, from) in pixels.iter_mut().zip(from.iter().rev()) {
                        *pixel = *from;
                    }
                } else {
                    pixels.copy_from_slice(from);
                }
            }
        }
    }
}

/// `rect` of an image of size `(w, h)` in the coordinates of that image flipped.
pub(crate) fn flip_rect(rect: Rect, (w, h): (usize, usize), flip_x: bool, flip_y: bool) -> Rect {
    Rect {
        x: if flip_x { w - rect.x - rect.w } else { rect.x },
        y: if flip_y { h - rect.y - rect.h } else { rect.y },
        ..rect
    }
}

/// An image of RGBX pixels. Its allocation is kept when it is reset, so that steady work allocates nothing.
#[derive(Default)]
pub(crate) struct Image {
    data: Vec<u8>,
    w: usize,
    h: usize,
}

impl Image {
    /// Makes this an image of `w` x `h` pixels of unspecified content.
    pub(crate) fn reset(&mut self, w: usize, h: usize) {
        self.w = w;
        self.h = h;
        // Never shortened: a buffer that has once been long enough is not zeroed again for every larger image.
        if self.data.len() < w * h * PIXEL {
            self.data.resize(w * h * PIXEL, 0);
        }
    }

    pub(crate) fn size(&self) -> (usize, usize) {
        (self.w, self.h)
    }

    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.data[..self.w * self.h * PIXEL]
    }

    pub(crate) fn pixels(&self) -> &[[u8; PIXEL]] {
        self.data[..self.w * self.h * PIXEL].as_chunks().0
    }

    pub(crate) fn pixels_mut(&mut self) -> &mut [[u8; PIXEL]] {
        self.bytes_mut().as_chunks_mut().0
    }

    pub(crate) fn row_mut(&mut self, y: usize) -> &mut [u8] {
        &mut self.data[y * self.w * PIXEL..(y + 1) * self.w * PIXEL]
    }

    pub(crate) fn view_rows(&self) -> impl Iterator<Item = &[u8]> {
        let view = self.view();
        (0..self.h).map(move |y| view.row(y))
    }

    pub(crate) fn view(&self) -> View<'_> {
        View { data: &self.data[..self.w * self.h * PIXEL], stride: self.w * PIXEL, w: self.w, h: self.h }
    }

    /// Bytes of memory held.
    pub(crate) fn capacity(&self) -> usize {
        self.data.capacity()
    }

    /// Gives back memory beyond `bytes`.
    pub(crate) fn shrink(&mut self, bytes: usize) {
        if self.data.capacity() > bytes {
            *self = Image::default();
        }
    }
}

/// A rectangle of an image, borrowed.
#[derive(Clone, Copy)]
pub(crate) struct View<'a> {
    data: &'a [u8],
    stride: usize,
    pub w: usize,
    pub h: usize,
}

impl<'a> View<'a> {
    pub(crate) fn row(&self, y: usize) -> &'a [u8] {
        &self.data[y * self.stride..y * self.stride + self.w * PIXEL]
    }

    /// The bytes from row `y` on, and how far apart its rows begin.
    pub(crate) fn rows_from(&self, y: usize) -> (&'a [u8], usize) {
        (&self.data[y * self.stride..], self.stride)
    }

    pub(crate) fn pixel(&self, x: usize, y: usize) -> [u8; PIXEL] {
        self.row(y).as_chunks().0[x]
    }

    pub(crate) fn crop(&self, rect: Rect) -> View<'a> {
        assert!(rect.x + rect.w <= self.w && rect.y + rect.h <= self.h, "a crop lies inside its image");
        if rect.w == 0 || rect.h == 0 {
            return View { data: &[], stride: 0, w: rect.w, h: rect.h };
        }
        View {
            data: &self.data[rect.y * self.stride + rect.x * PIXEL..],
            stride: self.stride,
            w: rect.w,
            h: rect.h,
        }
    }

    /// Copies it into `out`.
    pub(crate) fn copy_to(&self, out: &mut Image) {
        Symmetry::IDENTITY.apply(*self, out);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Symmetry; 8] = {
        let mut all = [Symmetry::IDENTITY; 8];
        let mut i = 0;
        while i < 8 {
            all[i] = Symmetry { transpose: i & 1 != 0, flip_x: i & 2 != 0, flip_y: i & 4 != 0 };
            i += 1;
        }
        all
    };

    fn numbered(w: usize, h: usize) -> Image {
        let mut image = Image::default();
        image.reset(w, h);
        for (i, pixel) in image.pixels_mut().iter_mut().enumerate() {
            *pixel = [i as u8, (i >> 8) as u8, 7, 0];
        }
        image
    }

    #[test]
    fn a_crop_before_a_symmetry_is_the_same_crop_after_it() {
        let image = numbered(7, 5);
        for symmetry in ALL {
            let mut whole = Image::default();
            symmetry.apply(image.view(), &mut whole);
            let size = symmetry.size((7, 5));
            assert_eq!(whole.size(), size);
            for rect in [
                Rect { x: 0, y: 0, w: 1, h: 1 },
                Rect { x: 1, y: 2, w: 3, h: 2 },
                Rect::sized(size.0, size.1),
            ] {
                let mut part = Image::default();
                symmetry.apply(image.view().crop(symmetry.source_of(rect, size)), &mut part);
                let mut expected = Image::default();
                whole.view().crop(rect).copy_to(&mut expected);
                assert_eq!(part.pixels(), expected.pixels(), "{symmetry:?} {rect:?}");
            }
        }
    }

    #[test]
    fn the_eight_orientations_are_those_of_the_exif_standard() {
        // For each orientation: the corner (row, column) where the stored image's first pixel belongs, and whether
        // stored rows become columns.
        let corner = [(0, 0), (0, 1), (1, 1), (1, 0), (0, 0), (0, 1), (1, 1), (1, 0)];
        let image = numbered(7, 5);
        for orientation in 1..=8u16 {
            let symmetry = crate::decode::exif::symmetry(orientation);
            let mut upright = Image::default();
            symmetry.apply(image.view(), &mut upright);
            let (w, h) = upright.size();
            assert_eq!((w, h), if orientation < 5 { (7, 5) } else { (5, 7) });
            let (bottom, right) = corner[usize::from(orientation) - 1];
            assert_eq!(
                upright.view().pixel(right * (w - 1), bottom * (h - 1))[0],
                0,
                "orientation {orientation}"
            );
        }
    }
}
