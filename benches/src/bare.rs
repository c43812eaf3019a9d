//! The bare chain: read a file, transform it, write the row. No daemon, no queue, no message, no Python.
//!
//! It does exactly the work of the fuelrail peer (same order, same randomness, same rows), so the difference between
//! the two is what everything else costs: reading ahead, queues, hand-over, the client. Prints what `benches/tasks.py`
//! does.

use std::cell::RefCell;
use std::error::Error;
use std::path::PathBuf;
use std::time::Instant;

use clap::Parser;
use fuelrail_connectors::{CacheConfig, FolderConfig, SourceConfig};
use fuelrail_loader::order::Order;
use fuelrail_transforms::{Layout, Limits, OutputConfig, SampleKey, Scratch, TransformConfig, compile};
use rayon::prelude::*;
use serde_json::json;

#[derive(Parser)]
struct Settings {
    #[arg(long, value_parser = ["A", "B", "C"])]
    task: String,
    #[arg(long)]
    data: PathBuf,
    #[arg(long, default_value_t = 2000)]
    images: u64,
    #[arg(long, default_value_t = 64)]
    batch_size: u64,
    #[arg(long, default_value_t = 2)]
    workers: usize,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

fn main() -> Result<(), Box<dyn Error>> {
    let settings = Settings::parse();
    println!("ready");
    let began = Instant::now();
    let normalize = json!({"type": "Normalize", "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]});
    let crop = [json!({"type": "RandomResizedCrop", "size": 224}), json!({"type": "RandomHorizontalFlip"})];
    let chain = match settings.task.as_str() {
        "A" => json!([crop[0], crop[1], normalize]),
        "B" => json!([{"type": "Resize", "size": 256}, {"type": "CenterCrop", "size": 224}, normalize]),
        _ => json!(crop),
    };
    let layout = if settings.task == "C" { Layout::Nhwc } else { Layout::Nchw };
    let chain: Vec<TransformConfig> = serde_json::from_value(chain)?;
    let chain = compile(&chain, &OutputConfig { layout, ..OutputConfig::default() }, Limits::default())?;
    let config = FolderConfig {
        root: settings.data.clone(),
        classes: None,
        label: None,
        split: None,
        deliver: None,
        cache: CacheConfig::default(),
    };
    let source = fuelrail_connectors::open(&SourceConfig::Folder(config))?;
    let order = Order::shuffled(source.len(), 0);
    let pool = rayon::ThreadPoolBuilder::new().num_threads(settings.workers).build()?;

    let row_bytes = chain.output().row_bytes();
    let mut batch = vec![0u8; row_bytes * settings.batch_size as usize];
    let (mut seen, mut first, mut touched) = (0, 0.0, 0u64);
    let (mut epoch, mut position) = (0, 0);
    while seen < settings.images {
        let mapping = order.epoch(epoch);
        let rows = settings.batch_size.min(source.len() - position);
        let filled = &mut batch[..rows as usize * row_bytes];
        pool.install(|| {
            filled.par_chunks_mut(row_bytes).enumerate().try_for_each(|(row, bytes)| {
                let position = position + row as u64;
                let index = mapping.index(position);
                let extent = source.extent(index).expect("a folder's records lie in files");
                let encoded = std::fs::read(&extent.file).map_err(|error| error.to_string())?;
                let key = SampleKey { seed: 0, epoch, position };
                SCRATCH
                    .with_borrow_mut(|scratch| chain.apply(&encoded, key, scratch, bytes))
                    .map_err(|error| format!("{}: {error}", source.key(index)))
            })
        })?;
        touched += filled.iter().step_by(4096).map(|&byte| u64::from(byte)).sum::<u64>();
        seen += rows;
        if first == 0.0 {
            first = began.elapsed().as_secs_f64();
        }
        position += rows;
        if position == source.len() {
            (epoch, position) = (epoch + 1, 0);
        }
    }
    let seconds = began.elapsed().as_secs_f64();
    let cpu = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    let cpu = cpu.tv_sec as f64 + cpu.tv_nsec as f64 / 1e9;
    println!(
        "{}",
        json!({
            "images": seen,
            "first_batch_s": first,
            "seconds": seconds,
            "images_per_s": seen as f64 / seconds,
            "cpu_s_per_1000": 1000.0 * cpu / seen as f64,
            "touched": touched,
            "settings": {"task": settings.task, "data": settings.data, "images": settings.images,
                "batch_size": settings.batch_size, "workers": settings.workers},
        })
    );
    Ok(())
}
