//! Runs a chain on one image and writes the row, for comparison with other implementations:
//!
//! ```text
//! cargo run --release -p fuelrail-transforms --example apply -- chain.json image.jpg out.raw [repeat]
//! ```
//!
//! `chain.json` is `{"transforms": [...], "output": {"dtype": "u8", "layout": "nhwc"}, "seed": 0, "position": 0}`, of
//! which only `transforms` is needed. Prints the output's shape; with `repeat`, the mean time of that many runs too.
//! `image` may be a folder: then every file in it is run once per repetition and nothing is written.

use std::error::Error;
use std::path::Path;
use std::time::Instant;

use fuelrail_transforms::{Limits, OutputConfig, SampleKey, Scratch, TransformConfig, compile};
use serde::Deserialize;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Job {
    transforms: Vec<TransformConfig>,
    #[serde(default)]
    output: OutputConfig,
    #[serde(default)]
    seed: u64,
    #[serde(default)]
    position: u64,
}

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [job, image, out, rest @ ..] = &args[..] else {
        return Err("usage: apply chain.json image out.raw [repeat]".into());
    };
    let repeat: u64 = rest.first().map_or(Ok(1), |n| n.parse())?;
    let job: Job = serde_json::from_slice(&std::fs::read(job)?)?;
    let chain = compile(&job.transforms, &job.output, Limits::default())?;
    let mut scratch = Scratch::default();
    let mut row = vec![0; chain.output().row_bytes()];
    let files = files(Path::new(image))?;
    let started = Instant::now();
    let mut failed = 0;
    for turn in 0..repeat {
        for (i, (name, bytes)) in files.iter().enumerate() {
            let position = job.position + turn * files.len() as u64 + i as u64;
            let key = SampleKey { seed: job.seed, epoch: 0, position };
            if let Err(error) = chain.apply(bytes, key, &mut scratch, &mut row) {
                failed += 1;
                eprintln!("{name}: {error}");
            }
        }
    }
    let runs = repeat * files.len() as u64;
    println!("{:?}", chain.output());
    println!(
        "{runs} runs, {failed} refused, {:.1} us each, scratch {} bytes",
        started.elapsed().as_secs_f64() * 1e6 / runs as f64,
        scratch.bytes()
    );
    if files.len() == 1 {
        std::fs::write(out, &row)?;
    }
    if failed > 0 && files.len() == 1 { Err("the image was refused".into()) } else { Ok(()) }
}

/// A name and its bytes.
type File = (String, Vec<u8>);

fn files(path: &Path) -> Result<Vec<File>, Box<dyn Error>> {
    if !path.is_dir() {
        return Ok(vec![(path.display().to_string(), std::fs::read(path)?)]);
    }
    let mut all = Vec::new();
    let mut entries: Vec<_> = std::fs::read_dir(path)?.collect::<Result<_, _>>()?;
    entries.sort_by_key(std::fs::DirEntry::path);
    for entry in entries {
        all.extend(files(&entry.path())?);
    }
    Ok(all)
}
