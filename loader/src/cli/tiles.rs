//! The picture of one row of a batch: its images and views side by side, masks as outlines, boxes and keypoints drawn
//! in, texts below.
//!
//! ```text
//!  ┌ image ┐┌ image with the ┐┌ view ┐┌ view ┐
//!  │       ││ mask's borders ││      ││      │
//!  └───────┘└────────────────┘└──────┘└──────┘
//!  caption: two dogs on a sofa
//! ```

use std::collections::HashMap;

use font8x8::UnicodeFonts;
use image::{Rgb, RgbImage, imageops};
use serde_json::Value;

use crate::client::Batch;
use crate::fields::BoxFormat;
use crate::layout::{Content, Element, Field, Layout};

/// Pixels between pictures of one record.
const BETWEEN: u32 = 2;

/// Pixels of a letter, and of a line.
const LETTER: u32 = 8;
const LINE: u32 = 10;

/// Lines of text below a record.
const LINES: usize = 3;

const PAPER: Rgb<u8> = Rgb([246, 246, 244]);
const INK: Rgb<u8> = Rgb([30, 30, 30]);

/// Borders between classes of a mask, edges of boxes, and keypoints.
const BORDER: Rgb<u8> = Rgb([255, 0, 255]);

/// What is drawn into an image.
#[derive(Clone, Copy)]
enum Drawn {
    Mask,
    Boxes(BoxFormat),
    Keypoints,
}

/// Draws rows of the batches of one pipeline, whose images are u8 and NHWC in memory.
pub(super) struct Tiles<'a> {
    layout: &'a Layout,
    /// Which image a field goes with, and what it is there.
    likes: HashMap<String, (String, Drawn)>,
}

impl<'a> Tiles<'a> {
    /// `pipeline` is what the batches were asked for with.
    pub fn new(layout: &'a Layout, pipeline: &Value) -> Self {
        let text = |value: &Value, or: &str| value.as_str().unwrap_or(or).to_owned();
        let mut likes: HashMap<String, (String, Drawn)> = HashMap::new();
        let fields = || pipeline["fields"].as_array().into_iter().flatten();
        let mut add = |kind: &str, drawn: &dyn Fn(&Value) -> Drawn| {
            for field in fields().filter(|field| field["type"] == kind) {
                let like = text(&field["like"], "image");
                // Keypoints may follow boxes, which follow the image.
                let like = likes.get(&like).map_or(like, |(image, _)| image.clone());
                likes.insert(text(&field["name"], ""), (like, drawn(field)));
            }
        };
        add("Mask", &|_| Drawn::Mask);
        add("Boxes", &|field| {
            let format = [&field["to"], &field["format"]].into_iter().find(|format| !format.is_null());
            let format = format.and_then(|format| serde_json::from_value(format.clone()).ok());
            Drawn::Boxes(format.unwrap_or_default())
        });
        add("Keypoints", &|_| Drawn::Keypoints);
        Self { layout, likes }
    }

    /// Whether there is anything to draw.
    pub fn is_visible(&self) -> bool {
        self.layout.fields.iter().any(|field| is_image(field) || field.content == Content::Text)
    }

    /// The picture of a row.
    pub fn draw(&self, batch: &Batch, row: usize) -> RgbImage {
        let (mut pictures, mut lines) = (Vec::new(), Vec::new());
        let mut images: HashMap<&str, RgbImage> = HashMap::new();
        for (at, field) in self.layout.fields.iter().enumerate() {
            let bytes = || {
                let mut bytes = vec![0; field.row_bytes as usize];
                batch.memory.copy_to(field, row * bytes.len(), &mut bytes);
                bytes
            };
            let count = || {
                let mut length = [0; 8];
                batch.memory.copy_to(&self.layout.fields[at + 1], row * 8, &mut length);
                i64::from_le_bytes(length).clamp(0, field.row_bytes as i64) as usize
            };
            if field.content == Content::Lengths {
                continue;
            }
            if let Some((like, drawn)) = self.likes.get(&field.name) {
                let Some(image) = images.get(like.as_str()) else { continue };
                let image = image.clone();
                pictures.push(match drawn {
                    Drawn::Mask => outlined(image, &bytes(), field.dtype.size() as usize),
                    Drawn::Boxes(format) => boxed(image, &floats(&bytes())[..4 * count()], *format),
                    Drawn::Keypoints => {
                        let each = field.shape[2..].iter().product::<u64>() as usize;
                        let dims = field.shape.last().map_or(3, |dims| if *dims == 2 { 2 } else { 3 });
                        dotted(image, &floats(&bytes())[..each * count()], dims)
                    }
                });
            } else if is_image(field) {
                let views = views(field, &bytes());
                if let ([image], false) = (&views[..], field.shape.len() > 3) {
                    images.insert(&field.name, image.clone());
                }
                pictures.extend(views);
            } else if field.content == Content::Text {
                let bytes = bytes();
                let text = std::str::from_utf8(&bytes[..count()]).unwrap_or("?");
                lines.push(format!("{}: {text}", field.name));
            }
        }
        beside(&pictures, &lines)
    }
}

/// An image or a list of views, whose pixels are bytes.
fn is_image(field: &Field) -> bool {
    field.content == Content::Image && field.dtype == Element::U8
}

fn views(field: &Field, bytes: &[u8]) -> Vec<RgbImage> {
    let [channels, height, width] = [3, 2, 1].map(|back| field.shape[field.shape.len() - back] as u32);
    let one = (channels * height * width) as usize;
    let view = |bytes: &[u8]| {
        RgbImage::from_fn(width, height, |x, y| {
            let at = ((y * width + x) * channels) as usize;
            if channels == 1 { Rgb([bytes[at]; 3]) } else { Rgb([bytes[at], bytes[at + 1], bytes[at + 2]]) }
        })
    };
    bytes.chunks_exact(one.max(1)).map(view).collect()
}

/// An image with the borders of its mask.
fn outlined(mut image: RgbImage, mask: &[u8], size: usize) -> RgbImage {
    let (width, height) = image.dimensions();
    let class = |x: u32, y: u32| &mask[(y * width + x) as usize * size..][..size];
    for y in 0..height {
        for x in 0..width {
            let is_border = (x + 1 < width && class(x, y) != class(x + 1, y))
                || (y + 1 < height && class(x, y) != class(x, y + 1));
            if is_border {
                image.put_pixel(x, y, BORDER);
            }
        }
    }
    image
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks::<4>().0.iter().map(|four| f32::from_le_bytes(*four)).collect()
}

/// An image with the edges of its boxes.
fn boxed(mut image: RgbImage, boxes: &[f32], format: BoxFormat) -> RgbImage {
    let (width, height) = image.dimensions();
    let (w, h) = if format.is_relative() { (f64::from(width), f64::from(height)) } else { (1.0, 1.0) };
    for four in boxes.as_chunks::<4>().0 {
        let Ok([left, top, right, bottom]) = format.edges(four.map(f64::from)) else { continue };
        // The last pixel that is inside.
        let pixel = |edge: f64, most: u32| (edge.max(0.0) as u32).min(most - 1);
        let (x0, x1) = (pixel(left * w, width), pixel((right * w - 1.0).max(left * w), width));
        let (y0, y1) = (pixel(top * h, height), pixel((bottom * h - 1.0).max(top * h), height));
        for x in x0..=x1 {
            image.put_pixel(x, y0, BORDER);
            image.put_pixel(x, y1, BORDER);
        }
        for y in y0..=y1 {
            image.put_pixel(x0, y, BORDER);
            image.put_pixel(x1, y, BORDER);
        }
    }
    image
}

/// An image with its keypoints, but for those that are not there.
fn dotted(mut image: RgbImage, points: &[f32], dims: usize) -> RgbImage {
    let (width, height) = image.dimensions();
    for point in points.chunks_exact(dims) {
        if dims == 3 && point[2] == 0.0 {
            continue;
        }
        for (right, down) in [(0, 0), (1, 0), (-1, 0), (0, 1), (0, -1)] {
            let (x, y) = (point[0] as i64 + right, point[1] as i64 + down);
            if (0..i64::from(width)).contains(&x) && (0..i64::from(height)).contains(&y) {
                image.put_pixel(x as u32, y as u32, BORDER);
            }
        }
    }
    image
}

/// Pictures from left to right, and lines below.
fn beside(pictures: &[RgbImage], lines: &[String]) -> RgbImage {
    let wide: u32 = pictures.iter().map(|picture| picture.width() + BETWEEN).sum();
    let width = if pictures.is_empty() { 40 * LETTER } else { wide - BETWEEN };
    let high = pictures.iter().map(RgbImage::height).max().unwrap_or(0);
    let lines: Vec<&String> = lines.iter().take(LINES).collect();
    let mut tile = RgbImage::from_pixel(width.max(1), (high + lines.len() as u32 * LINE).max(1), PAPER);
    let mut left = 0;
    for picture in pictures {
        imageops::replace(&mut tile, picture, i64::from(left), 0);
        left += picture.width() + BETWEEN;
    }
    for (at, line) in lines.iter().enumerate() {
        write(&mut tile, line, high + at as u32 * LINE + 1);
    }
    tile
}

/// Writes a line as far as it goes; a letter that the font lacks is a question mark.
fn write(tile: &mut RgbImage, line: &str, top: u32) {
    let most = (tile.width() / LETTER) as usize;
    for (at, letter) in line.chars().take(most).enumerate() {
        let known = font8x8::BASIC_FONTS.get(letter).or_else(|| font8x8::LATIN_FONTS.get(letter));
        let rows = known.or_else(|| font8x8::BASIC_FONTS.get('?')).unwrap_or_default();
        for (y, bits) in rows.iter().enumerate() {
            for x in (0..LETTER).filter(|x| bits >> x & 1 == 1) {
                let (x, y) = (at as u32 * LETTER + x, top + y as u32);
                if x < tile.width() && y < tile.height() {
                    tile.put_pixel(x, y, INK);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mask_is_drawn_where_its_classes_meet() {
        let image = RgbImage::from_pixel(4, 2, Rgb([1, 2, 3]));
        let drawn = outlined(image, &[0, 0, 1, 1, 0, 0, 1, 1], 1);
        let border: Vec<(u32, u32)> = drawn
            .enumerate_pixels()
            .filter(|(_, _, pixel)| **pixel == BORDER)
            .map(|(x, y, _)| (x, y))
            .collect();
        assert_eq!(border, [(1, 0), (1, 1)]);
    }

    fn drawn(image: &RgbImage) -> Vec<(u32, u32)> {
        let drawn = image.enumerate_pixels().filter(|(_, _, pixel)| **pixel == BORDER);
        drawn.map(|(x, y, _)| (x, y)).collect()
    }

    #[test]
    fn a_box_is_drawn_on_its_outermost_pixels_and_keypoints_where_they_are() {
        let image = || RgbImage::from_pixel(6, 5, Rgb([1, 2, 3]));
        let square = [(1, 1), (2, 1), (3, 1), (1, 2), (3, 2), (1, 3), (2, 3), (3, 3)];
        assert_eq!(drawn(&boxed(image(), &[1.0, 1.0, 4.0, 4.0], BoxFormat::Xyxy)), square);
        assert_eq!(drawn(&boxed(image(), &[2.5, 2.5, 3.0, 3.0], BoxFormat::Cxcywh)), square);
        // Whatever it is, it ends inside of the image.
        boxed(image(), &[-9.0, -9.0, 90.0, 90.0, 5.9, 4.9, 5.9, 4.9], BoxFormat::Xyxy);
        boxed(image(), &[f32::NAN; 4], BoxFormat::Xyxyn);
        assert_eq!(drawn(&dotted(image(), &[0.0, 0.0, 2.0, 3.0, 3.0, 0.0], 3)), [(0, 0), (1, 0), (0, 1)]);
    }

    #[test]
    fn pictures_of_any_size_and_texts_in_any_script_fit_in_a_tile() {
        let pictures = [RgbImage::new(5, 9), RgbImage::new(3, 2)];
        let tile = beside(&pictures, &["caption: größer кот 犬".repeat(9)]);
        assert_eq!(tile.dimensions(), (10, 19));
        assert_eq!(beside(&[], &["a".into()]).dimensions(), (320, 10));
    }
}
