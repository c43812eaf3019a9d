//! The same members as others find: Python's `tarfile`, in what it, GNU tar and damage made.

use super::*;

/// What Python's `tarfile` finds: name and content of each regular file; `None` when it refuses.
const TARFILE: &str = r#"
import hashlib, json, sys, tarfile
for path in json.load(sys.stdin):
    try:
        with tarfile.open(path, "r:") as archive:
            rows = [(m.name.encode("utf-8", "surrogateescape").hex(), hashlib.md5(archive.extractfile(m).read()).hexdigest(), m.offset_data, m.size)
                    for m in archive if m.isreg() and not m.issparse()]
            special = any(not (m.isreg() or m.isdir()) or m.issparse() for m in archive)
        print(json.dumps([rows, special]))
    except Exception as error:
        print(json.dumps(None))
"#;

/// Name (in hexadecimal digits), hash, offset and size.
type Row = (String, String, u64, u64);

/// The regular files of an archive, and whether there is anything else in it but folders.
type Found = (Vec<Row>, bool);

fn tarfile(paths: &[PathBuf]) -> Option<Vec<Option<Found>>> {
    let output = run("python3", &["-c", TARFILE], &serde_json::to_string(paths).unwrap())?;
    let lines = String::from_utf8(output).unwrap();
    Some(lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect())
}

/// Opens a shard whose members are all of them images to us, each under a key of its own.
fn images(shards: &Shards, path: &Path) -> Result<HashMap<String, Vec<u8>>, String> {
    let config =
        TarConfig { shards: vec![path.display().to_string()], label: Some("none".into()), ..shards.config() };
    let source = open(&SourceConfig::Tar(config)).map_err(|error| error.to_string())?;
    let prefix = format!("{}/", path.file_name().unwrap().to_str().unwrap());
    Ok(contents(&source)
        .into_iter()
        .map(|(key, _, bytes)| (key.strip_prefix(&prefix).unwrap().to_owned(), bytes))
        .collect())
}

/// Makes the files to be packed: names of all lengths and scripts, sizes around the block.
const FILES: &str = r#"
import os, random, sys
root, seed = sys.argv[1], int(sys.argv[2])
rng = random.Random(seed)
for n in range(120):
    parts = ["".join(rng.choices("abcXYZ019 -_é漢", k=rng.choice([1, 5, 40]))).strip() or "x" for _ in range(rng.choice([1, 1, 2, 4]))]
    name = "/".join(parts[:-1] + [f"{parts[-1]}{n:03}.jpg"])
    os.makedirs(os.path.dirname(os.path.join(root, name)), exist_ok=True)
    with open(os.path.join(root, name), "wb") as file:
        file.write(rng.randbytes(rng.choice([0, 1, 511, 512, 513, 1024, rng.randrange(20000)])))
"#;

const PACK: &str = r#"
import io, os, random, sys, tarfile
root, out = sys.argv[1:]
formats = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}
for name, format in formats.items():
    with tarfile.open(f"{out}/{name}.tar", "w", format=format, pax_headers={"comment": "é"} if name == "pax" else None) as archive:
        for folder, folders, files in sorted(os.walk(root)):
            for file in sorted(files):
                path = os.path.join(folder, file)
                try:
                    archive.add(path, os.path.relpath(path, root))
                except ValueError:
                    pass  # too long for ustar
            if folder != root:
                archive.add(folder, os.path.relpath(folder, root), recursive=False)
"#;

#[test]
fn the_members_are_those_of_pythons_tarfile_and_gnu_tar() {
    for seed in 0..3 {
        let shards = Shards::new();
        let files = shards.path("files");
        let folder = shards.path("");
        fs::create_dir_all(&files).unwrap();
        let files = files.to_str().unwrap();
        let out = folder.to_str().unwrap();
        if run("python3", &["-c", FILES, files, &seed.to_string()], "").is_none() {
            return;
        }
        run("python3", &["-c", PACK, files, out], "").unwrap();
        for format in ["v7", "oldgnu", "gnu", "ustar", "posix"] {
            let path = shards.path(&format!("tar-{format}.tar"));
            // v7 and ustar leave out long names and say so by their status.
            let made = Command::new("tar")
                .args([
                    "--sort=name",
                    &format!("--format={format}"),
                    "-C",
                    files,
                    "-cf",
                    path.to_str().unwrap(),
                    ".",
                ])
                .stderr(Stdio::null())
                .status();
            if made.is_err() {
                eprintln!("skipped: there is no GNU tar");
            }
        }
        let mut paths: Vec<_> = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
        paths.retain(|path| path.extension().is_some_and(|ending| ending == "tar"));
        paths.sort();
        for (path, expected) in paths.iter().zip(tarfile(&paths).unwrap()) {
            let (rows, _) = expected.expect("tarfile reads what it wrote");
            let found = images(&shards, path).unwrap_or_else(|error| panic!("{error}"));
            let bytes = fs::read(path).unwrap();
            assert!(
                rows.len() > 20 && rows.len() == found.len(),
                "{}: {} and {}",
                path.display(),
                rows.len(),
                found.len()
            );
            for (name, _, offset, size) in rows {
                let name =
                    (0..name.len() / 2).map(|at| u8::from_str_radix(&name[at * 2..][..2], 16).unwrap());
                let name = String::from_utf8(name.collect()).unwrap();
                assert!(
                    found[&name] == bytes[offset as usize..][..size as usize],
                    "{}: {name}",
                    path.display()
                );
            }
        }
    }
}

/// Hostile bytes as the whole shard, or the front of one: an error, or what `tarfile` finds.
#[test]
fn damaged_archives_give_an_error_or_what_tarfile_finds() {
    let shards = Shards::new();
    let text = "é".repeat(90);
    let pax = format!("{} path={text}.jpg\n", text.len() + 14);
    let whole = archive(&[
        member("a.jpg", &noise(1, 700)),
        raw_member(b"././@LongLink", b'L', 151, &[&[b'y'; 146], b".jpg\0".as_slice()].concat()),
        member("cut.jpg", b"long"),
        raw_member(b"pax", b'x', pax.len() as u64, pax.as_bytes()),
        member("short.jpg", b"pax"),
        member("b.cls", b"1"),
        member("b.jpg", &noise(2, 100)),
    ]);
    let mut paths = Vec::new();
    let mut keep = |bytes: &[u8]| paths.push(shards.write(&format!("{:05}.tar", paths.len()), bytes));
    keep(&whole);
    for seed in 0..600u64 {
        let random = noise(seed, 64);
        let number = |at: usize| u64::from_le_bytes(random[at..at + 8].try_into().unwrap()) as usize;
        let mut bytes = whole.clone();
        for change in 0..1 + number(0) % 3 {
            let header = [0, 1536, 2560, 3584, 4608, 5632][number(8 + change) % 6];
            let at = header + number(16 + change) % 512;
            bytes[at] = random[30 + change];
            // Half of them with a checksum that is right again.
            if seed % 2 == 0 {
                sum(&mut bytes[header..header + 512]);
            }
        }
        if seed % 5 == 0 {
            bytes.truncate(number(40) % bytes.len());
        }
        keep(&bytes);
    }
    if let Some(corpus) = data().map(|data| data.join("malformed")) {
        let mut folders = vec![corpus];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                } else {
                    paths.push(path);
                }
            }
        }
    }
    let Some(expected) = tarfile(&paths) else { return };
    let (mut same, mut refused) = (0, 0);
    for (path, expected) in paths.iter().zip(expected) {
        let found = match images(&shards, path) {
            Ok(found) => found,
            Err(error) => {
                let name = path.file_name().unwrap().to_str().unwrap();
                assert!(error.contains(name), "{}: {error}", path.display());
                refused += 1;
                continue;
            }
        };
        let (rows, special) = expected.unwrap_or_else(|| panic!("tarfile refuses {}", path.display()));
        assert!(!special, "{} has members that are no files", path.display());
        let bytes = fs::read(path).unwrap();
        // Whatever has an ending of an image, under the name it has.
        let rows: Vec<_> = rows
            .into_iter()
            .map(|(name, _, offset, size)| {
                let name: Vec<u8> = (0..name.len() / 2)
                    .map(|at| u8::from_str_radix(&name[at * 2..][..2], 16).unwrap())
                    .collect();
                (name, bytes[offset as usize..][..size as usize].to_vec())
            })
            .filter(|(name, _)| {
                let base = name.rsplit(|&b| b == b'/').next().unwrap();
                let dot = base.iter().position(|&b| b == b'.');
                dot.is_some_and(|dot| dot > 0 && base[dot..].eq_ignore_ascii_case(b".jpg"))
            })
            .collect();
        assert_eq!(rows.len(), found.len(), "{}", path.display());
        let mut expected: Vec<_> = rows.into_iter().map(|(_, bytes)| bytes).collect();
        let mut found: Vec<_> = found.into_values().collect();
        expected.sort();
        found.sort();
        assert!(expected == found, "{}", path.display());
        same += 1;
    }
    assert!(same > 50 && refused > 200, "{same} read as tarfile does, {refused} refused");
}

/// The optional test data.
fn data() -> Option<PathBuf> {
    let path = std::env::var_os("FUELRAIL_DATA")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/data"), PathBuf::from);
    if !path.is_dir() {
        eprintln!("skipped: no test data at {}", path.display());
        return None;
    }
    Some(path)
}
