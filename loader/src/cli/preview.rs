//! `fuelrail preview`: a contact sheet of what a pipeline delivers, augmentation included.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use fuelrail_connectors::shown;
use image::{Rgb, RgbImage, imageops};
use serde_json::{Value, json};

use super::bars::counted;
use super::tiles::Tiles;
use super::{Failure, signals, spec};
use crate::layout::Column;

/// Pixels between pictures.
const GAP: u32 = 6;

#[derive(Debug, Args)]
pub(super) struct Preview {
    #[command(flatten)]
    spec: spec::Spec,
    /// The PNG file to write
    #[arg(long, short_alias = 'o', default_value = "preview.png", value_name = "FILE")]
    out: PathBuf,
    /// Number of pictures
    #[arg(long, value_name = "N", default_value_t = 24, value_parser = clap::value_parser!(u64).range(1..=1024))]
    count: u64,
    /// Pictures per row
    #[arg(long, value_name = "N", default_value_t = 6, value_parser = clap::value_parser!(u32).range(1..=64))]
    columns: u32,
    /// Show one row of records in this many epochs, to see the augmentation
    #[arg(long, value_name = "EPOCHS", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=64))]
    epochs: u64,
    /// Print the key of each picture
    #[arg(long)]
    keys: bool,
}

impl Preview {
    pub fn run(self) -> Result<(), Failure> {
        signals::watch()?;
        writable("--out", &self.out)?;
        let mut pipeline = self.spec.pipeline()?;
        // Pixels, not numbers: what there is before Normalize can be seen.
        for field in pipeline.get_mut("fields").and_then(Value::as_array_mut).into_iter().flatten() {
            without_normalize(field);
        }
        without_normalize(&mut pipeline);
        pipeline["dtype"] = json!("u8");
        pipeline["layout"] = json!("nhwc");
        pipeline["batch_size"] = json!(self.count);
        if self.epochs > 1 {
            // The same records in every row; only the augmentation is another one.
            pipeline["shuffle"] = json!(false);
            pipeline["batch_size"] = json!(self.count.min(u64::from(self.columns)));
        }
        let asked = pipeline.clone();
        let mut feed = spec::private_feed(&self.spec, pipeline)?;
        let mut tiles = Vec::new();
        for epoch in 0..self.epochs {
            feed.seek(crate::plan::Cursor { epoch, position: 0 })?;
            let batch = feed
                .next(
                    Some(Duration::from_secs(300)),
                    &mut signals::interrupted,
                    &mut spec::lines(spec::show),
                )?
                .ok_or("the source has no records")?;
            let drawn = Tiles::new(&feed.attached().layout, &asked);
            if !drawn.is_visible() {
                return Err(
                    "the source has no images to show; `fuelrail inspect` describes its fields".into()
                );
            }
            tiles.extend((0..batch.ready.rows as usize).map(|row| drawn.draw(&batch, row)));
            let columns = &feed.attached().layout.columns;
            let at = columns.iter().position(|column| column.name == Column::Index);
            let indices = batch.columns[at.ok_or("the batch has no index")?]
                .chunks_exact(8)
                .map(|bytes| i64::from_le_bytes(bytes.try_into().expect("8 bytes")))
                .collect();
            if epoch == 0 && self.keys {
                let keys =
                    feed.keys(indices, None, &mut signals::interrupted, &mut spec::lines(spec::show))?;
                for (at, key) in keys.iter().enumerate() {
                    say!(
                        "row {} column {}: {key}",
                        at as u32 / self.columns + 1,
                        at as u32 % self.columns + 1
                    );
                }
            }
        }
        let sheet = contact_sheet(&tiles, self.columns);
        save(&sheet, &self.out)?;
        say!("{}: {}", shown(&self.out), counted(tiles.len() as u64, "picture"));
        Ok(())
    }
}

/// Makes the result of a chain pixels.
fn without_normalize(of: &mut Value) {
    if let Some(chain) = of.get_mut("transforms").and_then(Value::as_array_mut) {
        chain.retain(|transform| transform["type"] != "Normalize");
    }
}

/// Refuses a file that cannot be written, before the work whose result it takes.
pub(super) fn writable(flag: &str, path: &Path) -> Result<(), Failure> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let place = shown(path);
    if path == Path::new("-") {
        return Err(format!("{flag} -: a picture is not written to standard output; name a file").into());
    }
    if path.is_dir() {
        return Err(
            format!("{flag} {place}: it is a folder; name a file, such as {place}/preview.png").into()
        );
    }
    if path.extension().is_none_or(|ending| !ending.eq_ignore_ascii_case("png")) {
        return Err(
            format!("{flag} {place}: pictures are written as PNG; name a file that ends in .png").into()
        );
    }
    if !folder.is_dir() {
        return Err(format!("{flag} {place}: there is no folder {}; create it first", shown(&folder)).into());
    }
    rustix::fs::access(folder, rustix::fs::Access::WRITE_OK)
        .map_err(|error| format!("{flag} {place}: cannot write to {}: {error}", shown(&folder)).into())
}

/// Writes the sheet whole or not at all.
pub(super) fn save(sheet: &RgbImage, path: &Path) -> Result<(), Failure> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.tmp", std::process::id()));
    let temporary = path.with_file_name(name);
    let written = sheet
        .save_with_format(&temporary, image::ImageFormat::Png)
        .map_err(|error| error.to_string())
        .and_then(|()| std::fs::rename(&temporary, path).map_err(|error| error.to_string()));
    written.map_err(|why| {
        let _ = std::fs::remove_file(&temporary);
        format!("{}: {why}", shown(&path)).into()
    })
}

/// Pictures of one size in rows.
pub(super) fn contact_sheet(tiles: &[RgbImage], columns: u32) -> RgbImage {
    let (width, height) = tiles.first().map_or((1, 1), RgbImage::dimensions);
    let columns = columns.min(tiles.len() as u32).max(1);
    let rows = (tiles.len() as u32).div_ceil(columns);
    let side = |count: u32, size: u32| count * (size + GAP) + GAP;
    let mut sheet = RgbImage::from_pixel(side(columns, width), side(rows, height), Rgb([246, 246, 244]));
    for (at, tile) in tiles.iter().enumerate() {
        let (column, row) = (at as u32 % columns, at as u32 / columns);
        let place = |cell: u32, size: u32| i64::from(GAP + cell * (size + GAP));
        imageops::replace(&mut sheet, tile, place(column, width), place(row, height));
    }
    sheet
}
