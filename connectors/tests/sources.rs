//! What every source promises, asked of every source through the public interface.

use std::fs;

use fuelrail_connectors::{
    CacheConfig, FolderConfig, MixConfig, MixPart, SourceConfig, Split, SplitPart, SubsetConfig,
    SyntheticConfig, SyntheticFormat, Wanted, WantedKind,
};

mod conformance;

fn conforms(config: &SourceConfig) {
    conformance::conforms(config, conformance::Sizes::Bounds);
}

#[test]
fn an_image_folder_conforms() {
    let root = tempfile::tempdir().unwrap();
    for index in 0..500u32 {
        let folder = root.path().join(["cat", "dog", "dog/small", "emu"][index as usize % 4]);
        fs::create_dir_all(&folder).unwrap();
        fs::write(
            folder.join(format!("{index}.jpg")),
            index.to_le_bytes().repeat(index as usize * 11 % 3000),
        )
        .unwrap();
    }
    conforms(&SourceConfig::Folder(FolderConfig {
        root: root.path().to_owned(),
        classes: None,
        label: None,
        split: None,
        deliver: None,
        cache: CacheConfig::default(),
    }));
}

#[test]
fn an_image_folder_with_parts_conforms() {
    let root = tempfile::tempdir().unwrap();
    let images = root.path().join("images");
    for index in 0..300usize {
        let class = ["cat", "dog", "dog/small"][index % 3];
        let write = |folder: &str, ending: &str, bytes: &[u8]| {
            let folder = root.path().join(folder).join(class);
            fs::create_dir_all(&folder).unwrap();
            fs::write(folder.join(format!("{index}{ending}")), bytes).unwrap();
        };
        write("images", ".jpg", &index.to_le_bytes().repeat(index * 11 % 300));
        write("images", ["", ".txt", ".TXT"][index % 3], "käse ".repeat(index % 50).as_bytes());
        write("images", ".seg.png", &[7; 99]);
        let boxes: Vec<[f32; 4]> = (0..index % 7).map(|at| [at as f32, 1.5, 2.0, 3.0]).collect();
        let json = serde_json::json!({"boxes": boxes, "id": index, "meta": {"name": index.to_string()}});
        write("images", ".json", json.to_string().as_bytes());
        if index % 5 > 0 {
            write("depth", ".png", &index.to_le_bytes());
        }
    }
    let wanted = [
        Wanted::own_image(),
        Wanted::new("txt", WantedKind::Text),
        Wanted::new("seg.png", WantedKind::Image),
        Wanted::new("../depth/{path}.png", WantedKind::Image),
        Wanted::new("json:boxes", WantedKind::Ragged),
        Wanted::new("json:meta", WantedKind::Json),
        Wanted::new("json:id", WantedKind::Numbers),
    ];
    let config = |wanted: &[Wanted]| {
        let config = FolderConfig {
            root: images.clone(),
            classes: None,
            label: None,
            split: Some(Split::fraction(SplitPart::Train, 0.2)),
            deliver: None,
            cache: CacheConfig::default(),
        };
        SourceConfig::Folder(config).delivering(wanted)
    };
    let (source, records) = conformance::conforms(&config(&wanted), conformance::Sizes::Bounds);
    let lacking = conformance::parts_of(&source.schema(), &records);
    assert!(lacking.iter().any(|parts| parts[0].is_none() && parts[2].is_some()));
    assert!(lacking.iter().all(|parts| parts[1].is_some() && parts[3].is_some()));
    conforms(&config(&wanted[1..]));
}

#[test]
fn a_flat_folder_conforms() {
    let root = tempfile::tempdir().unwrap();
    for index in 0..20 {
        fs::write(root.path().join(format!("{index}.png")), vec![7; index]).unwrap();
    }
    conforms(&SourceConfig::Folder(FolderConfig {
        root: root.path().to_owned(),
        classes: None,
        label: None,
        split: None,
        deliver: None,
        cache: CacheConfig::default(),
    }));
}

#[test]
fn a_synthetic_source_conforms_in_every_format() {
    for format in [SyntheticFormat::Bmp, SyntheticFormat::Pnm, SyntheticFormat::Png, SyntheticFormat::Jpeg] {
        conforms(&SourceConfig::Synthetic(SyntheticConfig {
            count: 101,
            width: 5,
            width_max: Some(90),
            format,
            block_records: Some(10),
            corrupt_rate: 0.1,
            flaky_rate: 0.02,
            ..SyntheticConfig::default()
        }));
    }
}

#[test]
fn a_synthetic_source_with_parts_conforms() {
    let wanted = [
        Wanted::own_image(),
        Wanted::new("mask", WantedKind::Image),
        Wanted::new("caption", WantedKind::Text),
        Wanted::new("meta", WantedKind::Json),
        Wanted::new("values", WantedKind::Ragged),
        Wanted::new("boxes", WantedKind::Ragged),
        Wanted::new("score", WantedKind::Numbers),
    ];
    for format in [SyntheticFormat::Bmp, SyntheticFormat::Pnm, SyntheticFormat::Png, SyntheticFormat::Jpeg] {
        let config = |missing_rate| {
            SourceConfig::Synthetic(SyntheticConfig {
                count: 101,
                width: 5,
                width_max: Some(90),
                format,
                corrupt_rate: 0.1,
                missing_rate,
                ..SyntheticConfig::default()
            })
        };
        conforms(&config(0.0).delivering(&wanted));
        conforms(&config(0.5).delivering(&wanted[1..6]));
    }
}

#[test]
fn a_mixture_and_a_split_conform() {
    let synthetic = |count, seed| {
        let source = SyntheticConfig { count, seed, block_records: Some(10), ..SyntheticConfig::default() };
        SourceConfig::Synthetic(source)
    };
    let part = |source| MixPart { source, name: None, weight: None, repeat: None };
    let parts = vec![part(synthetic(70, 1)), part(synthetic(31, 2))];
    conforms(&SourceConfig::Mix(MixConfig { parts, samples_per_epoch: None }));
    let wanted = [
        Wanted::new("caption", WantedKind::Text),
        Wanted::own_image(),
        Wanted::new("boxes", WantedKind::Ragged),
    ];
    let parts = vec![part(synthetic(70, 1)), part(synthetic(31, 2))];
    let mix = SourceConfig::Mix(MixConfig { parts, samples_per_epoch: None }).delivering(&wanted);
    let (source, records) = conformance::conforms(&mix, conformance::Sizes::Bounds);
    assert!(conformance::parts_of(&source.schema(), &records).iter().all(|parts| parts.len() == 2));
    let subset = SourceConfig::Subset(SubsetConfig {
        source: Box::new(synthetic(200, 3)),
        split: Some(Split::fraction(SplitPart::Val, 0.4)),
        condition: None,
    });
    conforms(&subset.delivering(&wanted));
    conforms(&SourceConfig::Subset(SubsetConfig {
        source: Box::new(synthetic(200, 3)),
        split: Some(Split::fraction(SplitPart::Val, 0.4)),
        condition: None,
    }));
}
