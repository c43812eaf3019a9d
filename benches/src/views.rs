//! Views of one photograph on shared decodes, by one thread: what `benches/views.py` and `benches/policies.py` compare
//! with their peers.
//!
//! The files are read before the clock starts; then each is decoded and made into one view or ten.

use std::error::Error;
use std::path::{Path, PathBuf};

use clap::Parser;
use fuelrail_transforms::{Limits, OutputConfig, PictureConfig, SampleKey, Scratch, What, compile_pictures};
use serde_json::json;

#[derive(Parser)]
struct Settings {
    /// One view of 224 pixels, or DINO's ten: two of 224 and eight of 96.
    #[arg(long, value_parser = ["one", "ten"], default_value = "one")]
    task: String,
    /// One view by this chain instead: a JSON list.
    #[arg(long)]
    transforms: Option<String>,
    #[arg(long)]
    data: PathBuf,
    #[arg(long, default_value_t = 500)]
    images: usize,
}

fn views(count: u32, size: u32, scale: [f64; 2]) -> Result<PictureConfig, Box<dyn Error>> {
    let transforms = serde_json::from_value(json!([
        {"type": "RandomResizedCrop", "size": size, "scale": scale},
        {"type": "RandomHorizontalFlip"},
        {"type": "ColorJitter", "brightness": 0.4, "contrast": 0.4, "saturation": 0.2, "hue": 0.1},
        {"type": "RandomGrayscale", "p": 0.2},
        {"type": "GaussianBlur", "kernel_size": 9},
        {"type": "Normalize", "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]},
    ]))?;
    let output = OutputConfig::default();
    Ok(PictureConfig { image: 0, what: What::Views(count), transforms, output })
}

fn main() -> Result<(), Box<dyn Error>> {
    let settings = Settings::parse();
    let pictures = match (&settings.transforms, settings.task.as_str()) {
        (Some(json), _) => {
            let (transforms, output) = (serde_json::from_str(json)?, OutputConfig::default());
            vec![PictureConfig { image: 0, what: What::Image, transforms, output }]
        }
        (None, "one") => vec![views(1, 224, [0.4, 1.0])?],
        (None, _) => vec![views(2, 224, [0.4, 1.0])?, views(8, 96, [0.05, 0.4])?],
    };
    let pictures = compile_pictures(&pictures, Limits::default(), &[])?;
    let mut files = Vec::new();
    read(&settings.data, &mut files)?;
    let mut rows: Vec<Vec<u8>> = pictures.outputs().iter().map(|spec| vec![0; spec.row_bytes()]).collect();
    let mut scratch = Scratch::default();
    let mut run = |position: usize| {
        let mut rows: Vec<&mut [u8]> = rows.iter_mut().map(Vec::as_mut_slice).collect();
        let key = SampleKey { seed: 0, epoch: 0, position: position as u64 };
        pictures.apply(&[Some(&files[position % files.len()])], key, &mut scratch, &mut rows)
    };
    // Buffers are there before the clock starts.
    (0..10).try_for_each(&mut run)?;
    let began = cpu_seconds();
    (0..settings.images).try_for_each(&mut run)?;
    let cpu = cpu_seconds() - began;
    println!("{}", json!({"images": settings.images, "cpu_ms": 1000.0 * cpu / settings.images as f64}));
    Ok(())
}

fn cpu_seconds() -> f64 {
    let cpu = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    cpu.tv_sec as f64 + cpu.tv_nsec as f64 / 1e9
}

/// The contents of the files below `folder`, in the order of their paths.
fn read(folder: &Path, files: &mut Vec<Vec<u8>>) -> Result<(), Box<dyn Error>> {
    let mut paths: Vec<PathBuf> =
        std::fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect::<std::io::Result<_>>()?;
    paths.sort();
    for path in paths {
        if path.is_dir() {
            read(&path, files)?;
        } else {
            files.push(std::fs::read(path)?);
        }
    }
    Ok(())
}
