//! How many JPEGs that were cut, and then given an end marker, pass as whole; and how many of these show it:
//!
//! ```text
//! cargo run --release -p fuelrail-transforms --example cut_jpegs -- folder [trials]
//! ```
//!
//! Each trial cuts one file of the folder at a random byte of its first scan and appends `FF D9`. A cut picture that
//! passes is
//! *wrong* where its row differs from that of the whole file, and *right* where the crop does not reach what is
//! missing.

use std::error::Error;
use std::path::{Path, PathBuf};

use fuelrail_transforms::{Limits, OutputConfig, SampleKey, Scratch, compile};

const CHAINS: [(&str, &str); 4] = [
    ("all of it", r#"[{"type": "Resize", "size": [224, 224]}]"#),
    ("task A: RandomResizedCrop(224)", r#"[{"type": "RandomResizedCrop", "size": 224}]"#),
    (
        "task B: Resize(256), CenterCrop(224)",
        r#"[{"type": "Resize", "size": 256}, {"type": "CenterCrop", "size": 224}]"#,
    ),
    ("CenterCrop(64)", r#"[{"type": "CenterCrop", "size": 64}]"#),
];

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [folder, rest @ ..] = &args[..] else { return Err("usage: cut_jpegs folder [trials]".into()) };
    let trials: usize = rest.first().map_or(Ok(1000), |n| n.parse())?;
    let mut paths = Vec::new();
    files(Path::new(folder), &mut paths)?;
    let output: OutputConfig = serde_json::from_str(r#"{"dtype": "u8", "layout": "nhwc"}"#)?;
    let mut scratch = Scratch::default();
    for (name, chain) in CHAINS {
        let chain = compile(&serde_json::from_str::<Vec<_>>(chain)?, &output, Limits::default())?;
        let rows = || vec![0; chain.output().row_bytes()];
        let (mut whole, mut cut) = (rows(), rows());
        let (mut done, mut right, mut wrong) = (0, 0, 0);
        for trial in 0..trials {
            let bytes = std::fs::read(&paths[trial % paths.len()])?;
            let key = SampleKey { seed: 0, epoch: 0, position: trial as u64 };
            let Some(scan) = bytes.array_windows().position(|pair| pair == &[0xFF, 0xDA]) else { continue };
            if bytes.len() < scan + 20 || chain.apply(&bytes, key, &mut scratch, &mut whole).is_err() {
                continue;
            }
            let start = scan + 16;
            let keep = start + mixed(trial as u64) as usize % (bytes.len() - 2 - start);
            let damaged = [&bytes[..keep], &[0xFF, 0xD9]].concat();
            done += 1;
            if chain.apply(&damaged, key, &mut scratch, &mut cut).is_ok() {
                *if cut == whole { &mut right } else { &mut wrong } += 1;
            }
        }
        println!("{name}: {done} cuts, {wrong} pass and are wrong, {right} pass and are right");
    }
    Ok(())
}

fn files(folder: &Path, all: &mut Vec<PathBuf>) -> Result<(), Box<dyn Error>> {
    let mut entries: Vec<_> = std::fs::read_dir(folder)?.collect::<Result<_, _>>()?;
    entries.sort_by_key(std::fs::DirEntry::path);
    for entry in entries {
        let path = entry.path();
        if path.is_dir() {
            files(&path, all)?;
        } else {
            all.push(path);
        }
    }
    Ok(())
}

/// SplitMix64.
fn mixed(seed: u64) -> u64 {
    let z = seed.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let z = (z ^ z >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let z = (z ^ z >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ z >> 31
}
