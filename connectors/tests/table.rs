//! Tables through the public interface: every format and layout, what is chosen of them, and what damage does.

#[path = "../src/arrow.rs"]
mod arrow;

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use arrow::array::{
    Array, ArrayRef, BinaryArray, BooleanArray, DictionaryArray, FixedSizeListArray, Float16Array,
    Int32Array, Int64Array, LargeBinaryArray, ListArray, RecordBatch, StringArray, StructArray,
    TimestampMicrosecondArray,
};
use arrow::buffer::NullBuffer;
use arrow::datatypes::{DataType, Field, Float32Type, Int32Type, Schema as Columns};
use arrow::ipc::CompressionType;
use arrow::ipc::writer::{FileWriter, IpcWriteOptions, StreamWriter};
use fuelrail_connectors::{
    Blocks, IndexedSource, ReadError, ReadErrorKind, ReadRequest, ReaderConfig, Record, SourceConfig,
    SourceError, TableConfig, TableFormat, TokenMode, TokenTail, TokensConfig, open,
};
use parquet::arrow::ArrowWriter;
use parquet::basic::Compression;
use parquet::file::properties::{
    EnabledStatistics, WriterProperties, WriterPropertiesBuilder, WriterVersion,
};

mod conformance;
#[path = "table/parts.rs"]
mod parts;

use conformance::{Sizes, ask};

fn conforms(config: &TableConfig) -> Vec<Vec<u8>> {
    conformance::conforms(&SourceConfig::Table(config.clone()), Sizes::Estimates).1
}

fn read_all(source: &Arc<dyn IndexedSource>, depth: u32) -> Vec<Result<Vec<u8>, ReadError>> {
    conformance::try_all(source, ReaderConfig::default().backend, depth)
}

fn table(path: &Path) -> TableConfig {
    TableConfig { files: vec![path.to_str().unwrap().to_owned()], ..TableConfig::default() }
}

fn opened(config: &TableConfig) -> Arc<dyn IndexedSource> {
    open(&SourceConfig::Table(config.clone())).unwrap()
}

fn refused(config: &TableConfig) -> SourceError {
    match open(&SourceConfig::Table(config.clone())) {
        Ok(_) => panic!("this was to be refused"),
        Err(error) => error,
    }
}

/// Bytes that no codec makes much smaller.
fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..len)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as u8
        })
        .collect()
}

/// The image of a row.
fn image(row: usize) -> Vec<u8> {
    noise(row as u64 + 1, 200 + row * 37 % 900)
}

/// A batch with an image, an int label, a text label and fields.
fn batch(rows: std::ops::Range<usize>) -> RecordBatch {
    let all = || rows.clone();
    let images: Vec<Vec<u8>> = all().map(image).collect();
    let boxes = FixedSizeListArray::from_iter_primitive::<Float32Type, _, _>(
        all().map(|row| Some((0..4).map(move |at| Some((row * 4 + at) as f32)))),
        4,
    );
    let lists = ListArray::from_iter_primitive::<Int32Type, _, _>(
        all().map(|row| Some((0..3).map(move |at| Some((row + at) as i32)))),
    );
    let names: DictionaryArray<Int32Type> = all().map(|row| ["cat", "emu", "dog"][row % 3]).collect();
    let columns: Vec<(&str, ArrayRef)> = vec![
        ("image", Arc::new(BinaryArray::from_iter_values(&images))),
        ("label", Arc::new(Int64Array::from_iter_values(all().map(|row| row as i64 % 7)))),
        ("name", Arc::new(names)),
        ("age", Arc::new(Int32Array::from_iter_values(all().map(|row| row as i32 - 5)))),
        ("box", Arc::new(boxes)),
        ("list", Arc::new(lists)),
        ("flag", Arc::new(BooleanArray::from_iter(all().map(|row| Some(row % 3 == 0))))),
        (
            "half",
            Arc::new(Float16Array::from_iter_values(all().map(|row| half::f16::from_f32(row as f32 / 8.0)))),
        ),
        (
            "time",
            Arc::new(TimestampMicrosecondArray::from_iter_values(all().map(|row| row as i64 * 1_000_003))),
        ),
        (
            "unused",
            Arc::new(StringArray::from_iter_values(all().map(|row| format!("text {row}").repeat(20)))),
        ),
    ];
    RecordBatch::try_from_iter(columns).unwrap()
}

const FIELDS: [&str; 6] = ["age", "box", "list[3]", "flag", "half", "time"];

/// The record that `batch` makes of a row with all of FIELDS.
fn record(row: usize) -> Vec<u8> {
    let mut bytes = image(row);
    bytes.extend((row as i32 - 5).to_le_bytes());
    bytes.extend((0..4).flat_map(|at| ((row * 4 + at) as f32).to_le_bytes()));
    bytes.extend((0..3).flat_map(|at| ((row + at) as i32).to_le_bytes()));
    bytes.push(u8::from(row.is_multiple_of(3)));
    bytes.extend(half::f16::from_f32(row as f32 / 8.0).to_le_bytes());
    bytes.extend((row as i64 * 1_000_003).to_le_bytes());
    bytes
}

fn write_parquet(path: &Path, batches: &[RecordBatch], properties: WriterPropertiesBuilder) {
    let mut writer =
        ArrowWriter::try_new(fs::File::create(path).unwrap(), batches[0].schema(), Some(properties.build()))
            .unwrap();
    for batch in batches {
        writer.write(batch).unwrap();
    }
    writer.close().unwrap();
}

fn with_fields(path: &Path) -> TableConfig {
    TableConfig { fields: Some(FIELDS.map(str::to_owned).to_vec()), ..table(path) }
}

fn check_all(path: &Path, rows: usize) {
    let records = conforms(&with_fields(path));
    assert_eq!(records.len(), rows);
    for (row, bytes) in records.iter().enumerate() {
        assert!(*bytes == record(row), "row {row}");
    }
}

#[test]
fn parquet_conforms_in_every_compression_and_version() {
    let folder = tempfile::tempdir().unwrap();
    let codecs = [
        Compression::UNCOMPRESSED,
        Compression::SNAPPY,
        Compression::ZSTD(Default::default()),
        Compression::LZ4,
        Compression::LZ4_RAW,
        Compression::GZIP(Default::default()),
        Compression::BROTLI(Default::default()),
    ];
    for (number, codec) in codecs.into_iter().enumerate() {
        for version in [WriterVersion::PARQUET_1_0, WriterVersion::PARQUET_2_0] {
            for dictionary in [false, true] {
                let path = folder.path().join(format!("{number}-{dictionary}-{version:?}.parquet"));
                let properties = WriterProperties::builder()
                    .set_compression(codec)
                    .set_writer_version(version)
                    .set_dictionary_enabled(dictionary)
                    .set_max_row_group_row_count(Some(40))
                    .set_data_page_row_count_limit(16)
                    .set_write_batch_size(8);
                write_parquet(&path, &[batch(0..101)], properties);
                check_all(&path, 101);
            }
        }
    }
}

/// Row groups large enough to be decoded in runs.
#[test]
fn large_row_groups_are_read_in_runs_with_and_without_a_page_index() {
    let folder = tempfile::tempdir().unwrap();
    let rows = 60;
    let images: Vec<Vec<u8>> = (0..rows).map(|row| noise(row as u64, 700_000 + row * 1000)).collect();
    let values = Int32Array::from_iter_values(0..rows as i32);
    let columns: Vec<(&str, ArrayRef)> =
        vec![("image", Arc::new(LargeBinaryArray::from_iter_values(&images))), ("value", Arc::new(values))];
    let batch = RecordBatch::try_from_iter(columns).unwrap();
    for index in [true, false] {
        for version in [WriterVersion::PARQUET_1_0, WriterVersion::PARQUET_2_0] {
            let path = folder.path().join("large.parquet");
            let properties = WriterProperties::builder()
                .set_writer_version(version)
                .set_write_batch_size(2)
                .set_offset_index_disabled(!index)
                .set_statistics_enabled(if index {
                    EnabledStatistics::Page
                } else {
                    EnabledStatistics::None
                });
            write_parquet(&path, std::slice::from_ref(&batch), properties);
            let config = TableConfig { fields: Some(vec!["value".into()]), ..table(&path) };
            let source = opened(&config);
            let Blocks::Lengths { lengths, .. } = source.blocks() else { panic!("a table has blocks") };
            assert!(lengths.len() > 3, "{lengths:?}");
            for (row, bytes) in conforms(&config).iter().enumerate() {
                assert!(bytes[..bytes.len() - 4] == images[row][..], "row {row}");
                assert_eq!(bytes[bytes.len() - 4..], (row as i32).to_le_bytes());
            }
        }
    }
}

#[test]
fn arrow_files_and_streams_conform_with_and_without_compression() {
    let folder = tempfile::tempdir().unwrap();
    for codec in [None, Some(CompressionType::LZ4_FRAME), Some(CompressionType::ZSTD)] {
        let options = || IpcWriteOptions::default().try_with_compression(codec).unwrap();
        let batches = [batch(0..40), batch(40..41), batch(41..41), batch(41..101)];
        // A file has one dictionary a column; in a stream each batch may bring another.
        let kept: Vec<usize> = (0..10).filter(|&column| column != 2).collect();
        let file: Vec<RecordBatch> = batches.iter().map(|batch| batch.project(&kept).unwrap()).collect();
        let path = folder.path().join("file.arrow");
        let mut writer =
            FileWriter::try_new_with_options(fs::File::create(&path).unwrap(), &file[0].schema(), options())
                .unwrap();
        file.iter().for_each(|batch| writer.write(batch).unwrap());
        writer.finish().unwrap();
        check_all(&path, 101);
        let path = folder.path().join("stream.arrow");
        let mut writer = StreamWriter::try_new_with_options(
            fs::File::create(&path).unwrap(),
            &batches[0].schema(),
            options(),
        )
        .unwrap();
        batches.iter().for_each(|batch| writer.write(batch).unwrap());
        writer.finish().unwrap();
        check_all(&path, 101);
        let source = opened(&TableConfig { label: Some("name".into()), ..table(&path) });
        assert_eq!(source.classes(), ["cat", "dog", "emu"]);
        assert!((0..101).all(|row| source.label(row) == [0, 2, 1][row as usize % 3]));
        // A stream that ends without its mark is whole all the same.
        let bytes = fs::read(&path).unwrap();
        fs::write(&path, &bytes[..bytes.len() - 8]).unwrap();
        check_all(&path, 101);
    }
}

#[test]
fn a_large_record_batch_is_read_in_runs() {
    let folder = tempfile::tempdir().unwrap();
    let rows = 60;
    let images: Vec<Vec<u8>> = (0..rows).map(|row| noise(row as u64, 700_000 + row * 1000)).collect();
    let lists = ListArray::from_iter_primitive::<Int32Type, _, _>(
        (0..rows).map(|row| (row != 17).then(|| (0..row as i32).map(Some).collect::<Vec<_>>())),
    );
    let columns: Vec<(&str, ArrayRef)> =
        vec![("image", Arc::new(BinaryArray::from_iter_values(&images))), ("list", Arc::new(lists))];
    let batch = RecordBatch::try_from_iter(columns).unwrap();
    let path = folder.path().join("large.arrow");
    let mut writer = FileWriter::try_new(fs::File::create(&path).unwrap(), &batch.schema()).unwrap();
    writer.write(&batch).unwrap();
    writer.finish().unwrap();
    let Blocks::Lengths { lengths, .. } = opened(&table(&path)).blocks() else {
        panic!("a table has blocks")
    };
    assert!(lengths.len() > 3, "{lengths:?}");
    assert!(conforms(&table(&path)) == images);
    // Only the row with a list of 23 fits this shape.
    let config = TableConfig { fields: Some(vec!["list[23]".into()]), ..table(&path) };
    for (row, result) in read_all(&opened(&config), 8).into_iter().enumerate() {
        match result {
            Ok(_) => assert_eq!(row, 23),
            Err(error) => assert_eq!(error.kind(), ReadErrorKind::Bad, "{row}: {error}"),
        }
    }
}

#[test]
fn labels_are_numbers_or_classes_and_classes_can_be_fixed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.parquet");
    write_parquet(&path, &[batch(0..50)], WriterProperties::builder().set_max_row_group_row_count(Some(9)));
    let source = opened(&table(&path));
    assert!(source.classes().is_empty());
    assert_eq!(
        (0..50).map(|row| source.label(row)).collect::<Vec<_>>(),
        (0..50).map(|row| row % 7).collect::<Vec<_>>()
    );

    let by_name = TableConfig { label: Some("name".into()), ..table(&path) };
    let source = opened(&by_name);
    assert_eq!(source.classes(), ["cat", "dog", "emu"]);
    assert_eq!([0, 1, 2, 3].map(|row| source.label(row)), [0, 2, 1, 0]);

    let fixed = |classes: &[&str]| TableConfig {
        classes: Some(classes.iter().map(|&c| c.to_owned()).collect()),
        ..by_name.clone()
    };
    assert_eq!([0, 1, 2].map(|row| opened(&fixed(&["emu", "dog", "cat", "owl"])).label(row)), [2, 0, 1]);
    let source = opened(&fixed(&["emu", "cat"]));
    assert!(
        (0..50).all(|row| source.verdict(row).is_some() == (row % 3 == 2)),
        "those without a class are bad"
    );
    assert!(
        source.verdict(2).unwrap().contains("\"dog\"") && source.refused(2).unwrap().key().ends_with(":2")
    );
    assert_eq!([0, 1].map(|row| source.label(row)), [1, 0]);
    let error = refused(&fixed(&["dog"]));
    assert!(error.is_data() && error.to_string().contains("34 of 50 records"), "{error}");
    let source = opened(&TableConfig { label: Some(String::new()), ..table(&path) });
    assert!(!source.is_labelled() && source.classes().is_empty());
    assert!(refused(&fixed(&["a", "a"])).is_config());

    let names: Vec<String> = (0..7).map(|n| format!("class {n}")).collect();
    let source = opened(&TableConfig { classes: Some(names.clone()), ..table(&path) });
    assert_eq!((source.classes(), source.label(8)), (&names[..], 1));
    let error = refused(&TableConfig { classes: Some(names[..3].to_vec()), ..table(&path) });
    assert!(error.to_string().contains("row 3") && error.to_string().contains("3 classes"), "{error}");
}

/// A struct of bytes and path with the metadata that `datasets` writes.
#[test]
fn hugging_faces_layout_is_recognised() {
    let whole = tempfile::tempdir().unwrap();
    fs::write(whole.path().join("outside-of-the-table.jpg"), b"no").unwrap();
    let folder = tempfile::tempdir_in(whole.path()).unwrap();
    fs::write(folder.path().join("lone.jpg"), b"lone file").unwrap();
    let bytes = BinaryArray::from_opt_vec(vec![Some(b"first"), None, Some(b"third"), None, None]);
    let paths = StringArray::from(vec![
        Some("a.jpg"),
        Some("lone.jpg"),
        None,
        None,
        Some("../outside-of-the-table.jpg"),
    ]);
    let fields = vec![Field::new("bytes", DataType::Binary, true), Field::new("path", DataType::Utf8, true)];
    let images = StructArray::new(fields.into(), vec![Arc::new(bytes) as ArrayRef, Arc::new(paths)], None);
    let labels = Int64Array::from(vec![0, 1, 1, 0, 1]);
    let features = r#"{"info":{"features":{"pic":{"_type":"Image"},"kind":{"names":["cat","dog"],"_type":"ClassLabel"}}}}"#;
    let schema = Columns::new(vec![
        Field::new("pic", images.data_type().clone(), true),
        Field::new("kind", DataType::Int64, true),
    ])
    .with_metadata(HashMap::from([("huggingface".to_owned(), features.to_owned())]));
    let batch = RecordBatch::try_new(Arc::new(schema), vec![Arc::new(images), Arc::new(labels)]).unwrap();
    let parquet = folder.path().join("hf.parquet");
    write_parquet(&parquet, std::slice::from_ref(&batch), WriterProperties::builder());
    let arrow = folder.path().join("hf.arrow");
    let mut writer = StreamWriter::try_new(fs::File::create(&arrow).unwrap(), &batch.schema()).unwrap();
    writer.write(&batch).unwrap();
    writer.finish().unwrap();
    for path in [parquet, arrow] {
        let source = opened(&table(&path));
        assert_eq!(source.classes(), ["cat", "dog"]);
        assert_eq!((0..5).map(|row| source.label(row)).collect::<Vec<_>>(), [0, 1, 1, 0, 1]);
        let records = read_all(&source, 4);
        assert_eq!(records[0].as_ref().unwrap(), b"first");
        assert_eq!(records[1].as_ref().unwrap(), b"lone file");
        assert_eq!(records[2].as_ref().unwrap(), b"third");
        for (row, expected) in [(3, "neither bytes nor a path"), (4, "lies outside")] {
            let error = records[row].as_ref().unwrap_err();
            assert_eq!(error.kind(), ReadErrorKind::Bad);
            assert!(error.to_string().contains(expected), "{error}");
        }
    }
}

#[test]
fn what_cannot_be_chosen_is_said_with_the_columns_there_are() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.parquet");
    write_parquet(&path, &[batch(0..5)], WriterProperties::builder());
    let fields = |names: &[&str]| TableConfig {
        fields: Some(names.iter().map(|&n| n.to_owned()).collect()),
        ..table(&path)
    };
    for (config, expected) in [
        (
            TableConfig { image: Some("picture".into()), ..table(&path) },
            "it has image (Binary), label (Int64)",
        ),
        (TableConfig { image: Some("age".into()), ..table(&path) }, "Int32"),
        (
            TableConfig { label: Some("box".into()), ..table(&path) },
            "holds lists; a label is a whole number or a class name. Deliver it with fields=[\"box\"] and label=None",
        ),
        (fields(&["list"]), "\"list[N]\""),
        (fields(&["box[5]"]), "does not fit"),
        (fields(&["unused"]), "holds texts, not numbers"),
        (fields(&["box[x]"]), "\"box[4]\""),
        (fields(&["age", "age"]), "twice"),
        (TableConfig { label: Some("name".into()), ..fields(&["label"]) }, "\"label\""),
        (TableConfig { image: Some(String::new()), ..table(&path) }, "a record would hold nothing"),
    ] {
        let error = refused(&config);
        assert!(error.is_config() && error.to_string().contains(expected), "{error}");
        assert!(error.to_string().contains("a.parquet") || expected.contains("4]"), "{error}");
    }
    let star = opened(&fields(&["*"])).schema();
    let names: Vec<_> = star.fields.iter().map(|field| field.name.as_str()).collect();
    assert_eq!(names, ["age", "box", "flag", "half", "time"]);

    let without = batch(0..5).project(&[3, 4]).unwrap();
    write_parquet(&path, &[without], WriterProperties::builder());
    let error = refused(&table(&path));
    assert!(error.to_string().contains("age (Int32)"), "{error}");
    assert_eq!(conforms(&fields(&["age"])).len(), 5);
}

#[test]
fn nulls_and_lists_of_another_length_make_their_records_bad_and_no_others() {
    let folder = tempfile::tempdir().unwrap();
    let images = BinaryArray::from_opt_vec(vec![Some(b"a"), None, Some(b"c"), Some(b"d"), Some(b"e")]);
    let ages = Int32Array::from(vec![Some(1), Some(2), None, Some(4), Some(5)]);
    let lists = ListArray::from_iter_primitive::<Int32Type, _, _>([
        Some(vec![Some(1), Some(2)]),
        Some(vec![Some(1), Some(2)]),
        Some(vec![Some(1), Some(2)]),
        Some(vec![Some(1)]),
        Some(vec![Some(1), Some(2)]),
    ]);
    let columns: Vec<(&str, ArrayRef)> =
        vec![("image", Arc::new(images)), ("age", Arc::new(ages)), ("list", Arc::new(lists))];
    let batch = RecordBatch::try_from_iter_with_nullable(
        columns.into_iter().map(|(name, array)| (name, array, true)),
    )
    .unwrap();
    let path = folder.path().join("a.parquet");
    write_parquet(&path, std::slice::from_ref(&batch), WriterProperties::builder());
    let arrow = folder.path().join("a.feather");
    let mut writer = FileWriter::try_new(fs::File::create(&arrow).unwrap(), &batch.schema()).unwrap();
    writer.write(&batch).unwrap();
    writer.finish().unwrap();
    for path in [path, arrow] {
        let config = TableConfig { fields: Some(vec!["age".into(), "list[2]".into()]), ..table(&path) };
        let records = read_all(&opened(&config), 4);
        for (row, expected) in [(1, "null"), (2, "\"age\" is null"), (3, "list of 1 where 2")] {
            let error = records[row].as_ref().unwrap_err();
            assert_eq!(error.kind(), ReadErrorKind::Bad);
            assert!(
                error.to_string().contains(expected) && error.key().ends_with(&format!(":{row}")),
                "{error}"
            );
        }
        assert_eq!(records[0].as_ref().unwrap()[..5], [b'a', 1, 0, 0, 0]);
        assert_eq!(records[4].as_ref().unwrap()[0], b'e');
        let source = opened(&TableConfig { label: Some("age".into()), ..table(&path) });
        let bad: Vec<u64> = (0..5).filter(|&row| source.verdict(row).is_some()).collect();
        assert_eq!((bad, source.label(4)), (vec![2], 5));
    }
}

/// Offsets of `needle` in a file.
fn find(bytes: &[u8], needle: &[u8]) -> usize {
    bytes.windows(needle.len()).position(|window| window == needle).expect("it is in the file")
}

#[test]
fn a_damaged_page_makes_its_rows_bad_and_no_others() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.parquet");
    let images: Vec<Vec<u8>> = (0..100).map(|row| noise(row, 5000)).collect();
    let columns: Vec<(&str, ArrayRef)> = vec![("image", Arc::new(BinaryArray::from_iter_values(&images)))];
    let batch = RecordBatch::try_from_iter(columns).unwrap();
    for codec in [Compression::UNCOMPRESSED, Compression::ZSTD(Default::default())] {
        let properties = WriterProperties::builder()
            .set_compression(codec)
            .set_dictionary_enabled(false)
            .set_max_row_group_row_count(Some(50))
            .set_write_batch_size(5)
            .set_data_page_row_count_limit(10);
        write_parquet(&path, std::slice::from_ref(&batch), properties);
        let mut bytes = fs::read(&path).unwrap();
        // In the page of rows 20 to 29: a length that runs away, or a block that does not unpack.
        let at = find(&bytes, &images[22][..64]);
        match codec {
            Compression::UNCOMPRESSED => bytes[at - 4..at].copy_from_slice(&u32::MAX.to_le_bytes()),
            _ => {
                let page =
                    bytes[..at].windows(4).rposition(|window| window == [0x28, 0xb5, 0x2f, 0xfd]).unwrap();
                bytes[page + 6..page + 40].fill(0xff);
            }
        }
        fs::write(&path, &bytes).unwrap();
        let records = read_all(&opened(&table(&path)), 4);
        for (row, result) in records.iter().enumerate() {
            match result {
                Ok(bytes) => assert!(*bytes == images[row], "row {row}"),
                Err(error) => {
                    assert!((20..30).contains(&row), "row {row}: {error}");
                    assert_eq!(error.kind(), ReadErrorKind::Bad);
                }
            }
        }
        assert!(records[22].is_err());
    }
}

#[test]
fn an_empty_table_and_files_that_disagree_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (a, b) = (folder.path().join("a.parquet"), folder.path().join("b.parquet"));
    write_parquet(&a, &[batch(0..0)], WriterProperties::builder());
    assert!(refused(&table(&a)).to_string().contains("has no rows"));

    write_parquet(&a, &[batch(0..10)], WriterProperties::builder());
    write_parquet(&b, &[batch(10..15)], WriterProperties::builder());
    assert_eq!(conforms(&table(folder.path())).len(), 15);
    let source = opened(&table(folder.path()));
    assert_eq!([source.key(9), source.key(10)], ["a.parquet:9", "b.parquet:0"]);

    // A column that is not needed may differ, and columns may come in another order.
    write_parquet(&b, &[batch(10..15).project(&[1, 0, 3]).unwrap()], WriterProperties::builder());
    assert_eq!(conforms(&table(folder.path())).len(), 15);
    let config = TableConfig { fields: Some(vec!["flag".into()]), ..table(folder.path()) };
    let error = refused(&config).to_string();
    assert!(error.contains("b.parquet") && error.contains("\"flag\""), "{error}");
    let text = StringArray::from(vec!["x"; 5]);
    let mut columns = batch(10..15).columns().to_vec();
    columns[3] = Arc::new(text);
    let names = batch(10..15).schema();
    let odd =
        RecordBatch::try_from_iter(names.fields().iter().map(|field| field.name().clone()).zip(columns))
            .unwrap();
    write_parquet(&b, &[odd], WriterProperties::builder());
    let config = TableConfig { fields: Some(vec!["age".into()]), ..table(folder.path()) };
    let error = refused(&config).to_string();
    assert!(error.contains("b.parquet") && error.contains("\"age\" is of type Utf8"), "{error}");
    // Of a folder, what lies beside is not meant; named, it is.
    let c = folder.path().join("c.csv");
    fs::write(&c, "path\n").unwrap();
    assert_eq!(conforms(&table(folder.path())).len(), 15);
    let files = [a, c].map(|path| path.display().to_string()).to_vec();
    let error = refused(&TableConfig { files, ..TableConfig::default() }).to_string();
    assert!(error.contains("different formats"), "{error}");
}

#[test]
fn a_file_that_changes_is_noticed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.parquet");
    let write = |rows| {
        write_parquet(
            &path,
            &[batch(rows)],
            WriterProperties::builder().set_max_row_group_row_count(Some(10)),
        )
    };
    write(0..100);
    let source = opened(&table(&path));
    let reader = source.clone().reader(&ReaderConfig::default()).unwrap();
    assert!(ask(&*reader, [5])[0].1.is_ok());
    write(100..200);
    let (_, result) = ask(&*reader, [50]).remove(0);
    let error = result.unwrap_err();
    assert_eq!(error.kind(), ReadErrorKind::Changed);
    assert!(error.to_string().contains("a.parquet"), "{error}");
    fs::remove_file(&path).unwrap();
    assert_eq!(ask(&*reader, [70]).remove(0).1.unwrap_err().kind(), ReadErrorKind::Gone);
}

#[test]
fn a_reader_that_is_dropped_in_the_middle_ends_soon_and_calls_nobody() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.parquet");
    let images: Vec<Vec<u8>> = (0..2000).map(|row| noise(row, 20_000)).collect();
    let columns: Vec<(&str, ArrayRef)> = vec![("image", Arc::new(BinaryArray::from_iter_values(&images)))];
    let batch = RecordBatch::try_from_iter(columns).unwrap();
    write_parquet(&path, &[batch], WriterProperties::builder().set_max_row_group_row_count(Some(50)));
    for wait_for in [0, 1, 60, 1000] {
        let source = opened(&table(&path));
        let reader = source.reader(&ReaderConfig::default()).unwrap();
        let (tell, told) = mpsc::channel();
        let alive = Arc::new(());
        let request = |index: u64| {
            let (tell, alive) = (tell.clone(), alive.clone());
            let done = move |result: Result<Record, ReadError>| {
                let _alive = alive;
                let _ = tell.send(result.unwrap().index);
            };
            ReadRequest { index: index * 7919 % 2000, done: Box::new(done) }
        };
        reader.submit((0..2000).map(request).collect());
        told.iter().take(wait_for).for_each(drop);
        let begin = Instant::now();
        drop(reader);
        // A watchdog, not a speed: the promise is milliseconds.
        assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
        assert_eq!(Arc::strong_count(&alive), 1);
    }
}

/// The blocked order over a table that is larger than the cache.
#[test]
fn lanes_and_window_fit_in_the_cache_and_each_unit_is_decoded_about_once() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.parquet");
    let columns = |part: u64| -> Vec<(&'static str, ArrayRef)> {
        let images: Vec<Vec<u8>> = (0..100).map(|row| noise(part * 100 + row, 100_000)).collect();
        vec![("image", Arc::new(BinaryArray::from_iter_values(&images)))]
    };
    let first = RecordBatch::try_from_iter(columns(0)).unwrap();
    let properties = WriterProperties::builder()
        .set_max_row_group_row_count(Some(100))
        .set_dictionary_enabled(false)
        .build();
    let mut writer =
        ArrowWriter::try_new(fs::File::create(&path).unwrap(), first.schema(), Some(properties)).unwrap();
    let parts = 40;
    for part in 0..parts {
        writer.write(&RecordBatch::try_from_iter(columns(part)).unwrap()).unwrap();
    }
    writer.close().unwrap();
    let source = opened(&table(&path));
    let Blocks::Lengths { lengths, lanes, window } = source.blocks() else { panic!("a table has blocks") };
    assert!(lanes >= 4 && window >= 25, "{lanes} lanes, {window} records");
    assert!(source.reader_memory() <= 512 << 20, "{}", source.reader_memory());
    // As the blocked order reads: lanes side by side, windows shuffled.
    let len = source.len();
    let lane = len / lanes;
    let mut order = Vec::new();
    for row in 0..lane {
        for number in 0..lanes {
            let first = row / window * window;
            let rows = window.min(lane - first);
            let stride = (1..rows).rev().find(|stride| gcd(*stride, rows) == 1).unwrap_or(1);
            order.push(number * lane + first + (row - first) * stride % rows);
        }
    }
    let reader = source.clone().reader(&ReaderConfig::default()).unwrap();
    for chunk in order.chunks(128) {
        for (_, result) in ask(&*reader, chunk.iter().copied()) {
            assert_eq!(result.unwrap().bytes.len(), 100_000);
        }
    }
    let decoded = reader.stats().submissions;
    assert!(decoded <= lengths.len() as u64 + lanes, "{decoded} units were decoded of {}", lengths.len());
}

#[test]
fn units_that_are_expected_are_decoded_before_anyone_asks_and_not_too_many() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.parquet");
    let properties = WriterProperties::builder().set_max_row_group_row_count(Some(10));
    write_parquet(&path, &[batch(0..200)], properties);
    let source = opened(&with_fields(&path));
    let reader = source.clone().reader(&ReaderConfig::default()).unwrap();
    let decoded = |wanted: u64| {
        let begun = Instant::now();
        while reader.stats().submissions < wanted {
            assert!(begun.elapsed() < Duration::from_secs(30), "{} units", reader.stats().submissions);
            std::thread::sleep(Duration::from_millis(1));
        }
    };
    let horizon = reader.horizon();
    assert!((20..=200).contains(&horizon), "{horizon}");
    reader.expect(&(30..50).collect::<Vec<_>>());
    decoded(2);
    // They are there: asking decodes nothing more.
    for (index, result) in ask(&*reader, 30..50) {
        assert_eq!(result.unwrap().bytes[..], record(index as usize)[..]);
    }
    assert_eq!(reader.stats().submissions, 2);
    // However much is expected, what was decoded early has to be asked for before more is.
    reader.expect(&(0..200).collect::<Vec<_>>());
    let most = 2 + horizon / 10;
    decoded(most);
    let mut records = ask(&*reader, 150..151);
    assert_eq!(records.pop().unwrap().1.unwrap().bytes[..], record(150)[..]);
    let now = reader.stats().submissions;
    assert!((most + 1..=most + 2).contains(&now), "{now} units for {most} expected and one asked for");
    // A reader that goes while it looks ahead goes at once.
    reader.expect(&(0..200).rev().collect::<Vec<_>>());
    let begun = Instant::now();
    drop(reader);
    assert!(begun.elapsed() < Duration::from_secs(10));
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[test]
fn a_list_of_paths_is_a_source_of_files() {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir_all(folder.path().join("data/x")).unwrap();
    for row in 0..30 {
        fs::write(folder.path().join(format!("data/x/{row}.jpg")), image(row)).unwrap();
    }
    let rows: String =
        (0..30).map(|row| format!("x/{row}.jpg,{},{}.5\n", ["dog", "cat"][row % 2], row)).collect();
    let csv = folder.path().join("data/list.csv");
    fs::write(&csv, format!("path,label,weight\n{rows}")).unwrap();
    let tsv = folder.path().join("data/list.tsv");
    fs::write(&tsv, format!("path,label,weight\n{rows}").replace(',', "\t")).unwrap();
    let bare = folder.path().join("data/bare.csv");
    fs::write(
        &bare,
        rows.lines().map(|row| row.rsplit_once(',').unwrap().0.to_owned() + "\n").collect::<String>(),
    )
    .unwrap();
    let jsonl = folder.path().join("list.jsonl");
    let line = |row: usize| {
        format!(
            r#"{{"file_name": "x/{row}.jpg", "label": "{}", "weight": {row}.5, "box": [[{row}, 2], [3, 4]]}}"#,
            ["dog", "cat"][row % 2]
        )
    };
    fs::write(&jsonl, (0..30).map(|row| line(row) + "\n\n").collect::<String>()).unwrap();
    let parquet = folder.path().join("data/list.parquet");
    let columns: Vec<(&str, ArrayRef)> = vec![
        ("file", Arc::new(StringArray::from_iter_values((0..30).map(|row| format!("x/{row}.jpg"))))),
        ("label", Arc::new(StringArray::from_iter_values((0..30).map(|row| ["dog", "cat"][row % 2])))),
    ];
    write_parquet(&parquet, &[RecordBatch::try_from_iter(columns).unwrap()], WriterProperties::builder());

    let root = Some(folder.path().join("data"));
    for config in [
        table(&csv),
        table(&tsv),
        table(&bare),
        TableConfig { root: root.clone(), ..table(&jsonl) },
        TableConfig { image: Some("file".into()), ..table(&parquet) },
    ] {
        let source = opened(&config);
        assert_eq!(source.classes(), ["cat", "dog"]);
        assert_eq!([source.label(0), source.label(1)], [1, 0]);
        let extent = source.extent(7).unwrap();
        assert!(extent.file.ends_with("x/7.jpg") && extent.len == image(7).len() as u64);
        assert!(conforms(&config).into_iter().enumerate().all(|(row, bytes)| bytes == image(row)));
    }
    let fields = |config: TableConfig, names: &[&str]| TableConfig {
        fields: Some(names.iter().map(|&n| n.to_owned()).collect()),
        ..config
    };
    for (row, bytes) in conforms(&fields(table(&csv), &["weight"])).into_iter().enumerate() {
        assert!(bytes == [image(row), (row as f64 + 0.5).to_le_bytes().to_vec()].concat());
    }
    let config = fields(TableConfig { root, ..table(&jsonl) }, &["box[2,2]", "weight"]);
    for (row, bytes) in conforms(&config).into_iter().enumerate() {
        let numbers = [row as i64, 2, 3, 4].map(i64::to_le_bytes).concat();
        assert!(bytes == [image(row), numbers, (row as f64 + 0.5).to_le_bytes().to_vec()].concat());
    }
}

#[test]
fn paths_that_leave_the_root_and_lines_that_are_wrong_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("root");
    fs::create_dir(&root).unwrap();
    fs::write(folder.path().join("secret.jpg"), b"secret").unwrap();
    fs::write(root.join("a.jpg"), b"a").unwrap();
    std::os::unix::fs::symlink("../secret.jpg", root.join("link.jpg")).unwrap();
    std::os::unix::fs::symlink("a.jpg", root.join("good.jpg")).unwrap();
    std::os::unix::fs::symlink("..", root.join("up")).unwrap();
    fs::create_dir(root.join("folder")).unwrap();
    let path = root.join("list.csv");
    let secret = folder.path().join("secret.jpg");
    // One bad row is one bad record, named; all else is there.
    for (row, expected) in [
        ("../secret.jpg".to_owned(), "lies outside"),
        (secret.display().to_string(), "lies outside"),
        ("link.jpg".to_owned(), "lies outside"),
        ("up/secret.jpg".to_owned(), "lies outside"),
        ("none.jpg".to_owned(), "\"none.jpg\" does not exist in"),
        ("folder".to_owned(), "regular file"),
        ("\"\"".to_owned(), "the path of its image is missing"),
        ("a.jpg,1".to_owned(), "the path of its image is missing"),
    ] {
        fs::write(&path, format!("path\na.jpg\n{row}\ngood.jpg\n")).unwrap();
        let source = opened(&table(&path));
        for depth in [1, 8] {
            let read = read_all(&source, depth);
            assert_eq!(
                (read[0].as_ref().unwrap(), read[2].as_ref().unwrap()),
                (&b"a".to_vec(), &b"a".to_vec())
            );
            let error = read[1].as_ref().unwrap_err();
            assert_eq!(error.kind(), ReadErrorKind::Bad, "{row}: {error}");
            assert!(error.to_string().contains(expected), "{row}: {error}");
        }
    }
    for (text, expected) in [
        (
            "path\n../secret.jpg\n".to_owned(),
            format!("say root=\"{}\"", folder.path().canonicalize().unwrap().display()),
        ),
        (format!("path\n{}\n", secret.display()), format!("say root=\"{}\"", folder.path().display())),
        (
            "path\nroot/a.jpg\n".to_owned(),
            format!("say root=\"{}\"", folder.path().canonicalize().unwrap().display()),
        ),
        (
            "path\nnone.jpg\n".to_owned(),
            "1 of 1 rows name no image: \"none.jpg\" (row 0) does not exist".to_owned(),
        ),
        ("path\na.jpg,1,2\n".to_owned(), "list.csv:2: 3 cells where the first line has 1".to_owned()),
        ("path,label\na.jpg,1\na.jpg,\na.jpg,\n".to_owned(), "row 1".to_owned()),
        ("name\nx\n".to_owned(), "no column that is clearly an image".to_owned()),
        ("path\n".to_owned(), "no rows".to_owned()),
        (String::new(), "no rows".to_owned()),
        ("path,label\na.jpg,\"1\na.jpg,2\n".to_owned(), "list.csv:2: a quoted cell".to_owned()),
        (
            "a.jpg,1,cat\na.jpg,1,dog\n".to_owned(),
            "list.csv:1: the first line should name the columns".to_owned(),
        ),
        ("a,b;c\n1,2;3\n".to_owned(), "delimiter=".to_owned()),
        ("\u{0}p\0a\0t\0h\0".to_owned(), "UTF-16".to_owned()),
    ] {
        fs::write(&path, &text).unwrap();
        let error = refused(&table(&path)).to_string();
        assert!(error.contains(&expected) && error.contains("list.csv"), "{text:?}: {error}");
    }
    fs::write(&path, "path\ngood.jpg\n").unwrap();
    assert_eq!(read_all(&opened(&table(&path)), 1)[0].as_ref().unwrap(), b"a");
    let path = root.join("list.jsonl");
    for (text, expected) in [
        ("{\"path\": ".to_owned(), "it is one JSON object (with \"path\")"),
        ("[1]\n".to_owned(), "list.jsonl:1: a record must be a JSON object"),
        ("[{\"path\": \"a.jpg\"}".to_owned(), "list.jsonl:1: the array is cut off"),
        ("[{\"path\": \"a.jpg\"} {}]".to_owned(), "list.jsonl:1: a comma is missing"),
        ("[{\"path\": \"a.jpg\"}]\n{}".to_owned(), "list.jsonl:2: something follows"),
        (
            "{\n \"path\": [\"a.jpg\"],\n \"x\": {\"y\": 1}\n}\n".to_owned(),
            "one JSON object (with \"path\", \"x\")",
        ),
        ("{\"info\": {}, \"images\": [], \"annotations\": []}".to_owned(), "has no images"),
        (
            "{\"images\": [{\"id\": 1}], \"annotations\": []}".to_owned(),
            "these COCO annotations cannot be read",
        ),
        ("\u{feff}\u{0}".to_owned(), "UTF-16"),
        (format!("{{\"path\": \"{}\"}}\n", "a".repeat(20 << 20)), "longer than 16 MiB"),
    ] {
        fs::write(&path, &text).unwrap();
        let error = refused(&table(&path)).to_string();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn a_list_is_read_however_it_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    fs::create_dir(here.join("x")).unwrap();
    for row in 0..3 {
        fs::write(here.join(format!("x/{row}.jpg")), image(row)).unwrap();
    }
    let list = |separator: &str, end: &str| -> String {
        let rows = (0..3).map(|row| format!("x/{row}.jpg{separator}{row}{end}"));
        format!("path{separator}label{end}{}", rows.collect::<String>())
    };
    let absolute = list(",", "\n").replace("x/", &format!("{}/x/", here.display()));
    let objects: Vec<String> =
        (0..3).map(|row| format!("{{\"path\": \"x/{row}.jpg\", \"label\": {row}}}")).collect();
    let cases = [
        ("a.csv", list(",", "\n")),
        ("a.csv", list(";", "\r\n")),
        ("a.csv", list("\t", "\n")),
        ("a.csv", list("|", "\n")),
        ("a.csv", list(",", "\r")),
        ("a.tsv", list(",", "\n")),
        ("a.csv", format!("sep=;\r\n{}", list(";", "\r\n"))),
        ("a.csv", format!("\u{feff}{}", list(",", "\n"))),
        ("a.csv", format!("\u{feff}{}", list(",", "\n").split_once('\n').unwrap().1)),
        ("a.csv", format!("# a list, made today\n\n{}\n\n", list(",", "\n"))),
        ("a.csv", list(",", ",,\n")),
        ("a.csv", list(",", "\n").replace("x/", "\"x/").replace(".jpg", ".jpg\"")),
        ("a.csv", list(",", "\n").replace("path", "Image_Path").replace("label", "Label")),
        ("a.csv", list(",", "\n").replace("path", "which")),
        ("a.csv", list(",", "\n").replace("x/", "./x/")),
        ("a.csv", list(",", "\n").replace("x/", "x\\")),
        ("a.csv", list(",", "\n").replace(".jpg,", ".jpg ,")),
        ("a.csv", absolute.clone()),
        ("a.csv", absolute.replace("/x/", "/./x/../x/")),
        ("a.csv", absolute.replace(&here.display().to_string(), &format!("file://{}", here.display()))),
        ("a.jsonl", objects.join("\n")),
        ("a.jsonl", format!("\u{feff}{}\r\n\r\n", objects.join("\r\n"))),
        ("a.jsonl", objects.join("\n").replace('}', ", \"score\": NaN}")),
        ("a.json", objects.join("\n")),
        ("a.json", format!("[{}]", objects.join(","))),
        ("a.json", format!("\u{feff}[\n  {}\n]\n", objects.join(",\n  ").replace(", ", ",\n    "))),
        ("a.json", format!("[{}]", objects.join(",").replace('}', ", \"note\": \"]},\\\"{\"}"))),
    ];
    for (name, text) in cases {
        let path = here.join(name);
        fs::write(&path, &text).unwrap();
        let config = TableConfig { label: None, ..table(&path) };
        let read: Vec<Vec<u8>> = conforms(&config);
        assert_eq!(read, (0..3).map(image).collect::<Vec<_>>(), "{text:?}");
        fs::remove_file(&path).unwrap();
    }
    fs::write(here.join("a.csv"), "path label\nx/1.jpg 1\n").unwrap();
    let config = TableConfig { delimiter: Some(" ".into()), ..table(&here.join("a.csv")) };
    assert_eq!(conforms(&config), [image(1)]);
    // Its own root, and that of everything.
    fs::create_dir(here.join("lists")).unwrap();
    fs::write(here.join("lists/b.csv"), &absolute).unwrap();
    for root in [here, std::path::Path::new("/")] {
        let config = TableConfig { root: Some(root.to_owned()), ..table(&here.join("lists/b.csv")) };
        assert_eq!(conforms(&config), (0..3).map(image).collect::<Vec<_>>());
    }
}

#[test]
fn a_column_that_nobody_asks_for_may_hold_anything() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    fs::write(here.join("a.jpg"), image(1)).unwrap();
    fs::write(here.join("a.csv"), b"path,note\na.jpg,caf\xe9\na.jpg,th\xe9\n").unwrap();
    assert_eq!(conforms(&table(&here.join("a.csv"))), [image(1), image(1)]);
}

#[test]
fn bad_lines_are_bad_records_and_no_others() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    fs::write(here.join("a.jpg"), image(1)).unwrap();
    let json = "{\"path\": \"a.jpg\"}\n{\"path\": \n{\"path\": \"a.jpg\"}\n[1]\n{\"path\": \"a.jpg\"}\n";
    let csv = b"path,x\na.jpg,1\n\xff.jpg,1\na.jpg,2\na.jpg,1,2,3\na.jpg,3\n";
    for (name, bytes) in [("a.jsonl", json.as_bytes()), ("a.csv", csv)] {
        fs::write(here.join(name), bytes).unwrap();
        let read = read_all(&opened(&table(&here.join(name))), 4);
        for (row, read) in read.iter().enumerate() {
            match read {
                Ok(bytes) => assert!(row % 2 == 0 && *bytes == image(1), "{name} {row}"),
                Err(error) => {
                    assert!(row % 2 == 1 && error.kind() == ReadErrorKind::Bad, "{name} {row}: {error}")
                }
            }
        }
        assert_eq!(read.len(), 5);
    }
}

#[test]
fn text_tables_of_numbers_need_no_images() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("numbers.csv");
    let rows: String = (0..40_000).map(|row| format!("{row},{}.25,{}\n", row, row % 10)).collect();
    fs::write(&path, format!("a,b,label\n{rows}")).unwrap();
    let config = TableConfig { fields: Some(vec!["*".into()]), ..table(&path) };
    for (row, bytes) in conforms(&config).into_iter().enumerate() {
        assert!(bytes == [(row as i64).to_le_bytes(), (row as f64 + 0.25).to_le_bytes()].concat());
    }
    let source = opened(&config);
    assert_eq!((source.label(123), source.classes().len()), (3, 0));
}

fn tokens(config: TokensConfig, path: &Path) -> TableConfig {
    TableConfig { tokens: Some(config), ..table(path) }
}

/// Documents of 0, 1, 2, … tokens; document d has the tokens d·100, d·100 + 1, …
fn documents(count: i32) -> Vec<Vec<i32>> {
    (0..count).map(|document| (0..document % 11).map(|at| document * 100 + at).collect()).collect()
}

#[test]
fn tokens_are_padded_or_packed_over_the_borders_of_units_and_files() {
    let folder = tempfile::tempdir().unwrap();
    let documents = documents(97);
    let list = |documents: &[Vec<i32>]| {
        let list = ListArray::from_iter_primitive::<Int32Type, _, _>(
            documents.iter().map(|document| Some(document.iter().map(|&token| Some(token)))),
        );
        RecordBatch::try_from_iter([("input_ids", Arc::new(list) as ArrayRef)]).unwrap()
    };
    let parquet = folder.path().join("parquet");
    fs::create_dir(&parquet).unwrap();
    for (number, part) in documents.chunks(33).enumerate() {
        let path = parquet.join(format!("{number}.parquet"));
        write_parquet(&path, &[list(part)], WriterProperties::builder().set_max_row_group_row_count(Some(7)));
    }
    let arrow = folder.path().join("a.arrow");
    let mut writer =
        FileWriter::try_new(fs::File::create(&arrow).unwrap(), &list(&documents).schema()).unwrap();
    documents.chunks(10).for_each(|part| writer.write(&list(part)).unwrap());
    writer.finish().unwrap();
    let jsonl = folder.path().join("a.jsonl");
    let lines: String =
        documents.iter().map(|document| format!("{{\"input_ids\": {document:?}}}\n")).collect();
    fs::write(&jsonl, lines).unwrap();

    let cache =
        fuelrail_connectors::CacheConfig { dir: Some(folder.path().join("cache")), ..Default::default() };
    for path in [parquet, arrow, jsonl] {
        let config = TokensConfig { length: 6, pad_id: -1, ..TokensConfig::default() };
        let padded = conforms(&tokens(config, &path));
        assert_eq!(padded.len(), documents.len());
        for (document, bytes) in documents.iter().zip(padded) {
            let mut expected: Vec<i64> = document.iter().take(6).map(|&token| i64::from(token)).collect();
            let length = expected.len() as i64;
            expected.resize(6, -1);
            expected.push(length);
            assert!(bytes == expected.into_iter().flat_map(i64::to_le_bytes).collect::<Vec<u8>>());
        }
        for (eos, tail) in [(None, TokenTail::Drop), (Some(7), TokenTail::Drop), (Some(7), TokenTail::Pad)] {
            let config = TokensConfig {
                length: 23,
                mode: TokenMode::Pack,
                eos_id: eos.map(i64::from),
                tail,
                dtype: fuelrail_connectors::ElementType::I32,
                ..TokensConfig::default()
            };
            let config = TableConfig { cache: cache.clone(), ..tokens(config, &path) };
            // Token, document, place of all on one line.
            let mut line = Vec::new();
            for (number, document) in documents.iter().enumerate() {
                let all = document.iter().copied().chain(eos);
                line.extend(all.enumerate().map(|(place, token)| (token, number as i32, place as i32)));
            }
            let records = conforms(&config);
            let whole = line.len() / 23;
            assert_eq!(records.len(), if tail == TokenTail::Drop { whole } else { line.len().div_ceil(23) });
            for (chunk, bytes) in line.chunks(23).zip(&records) {
                let first = chunk[0].1;
                let mut numbers: Vec<i32> = chunk.iter().map(|&(token, ..)| token).collect();
                numbers.resize(23, 0);
                // Documents without tokens do not count.
                let mut seen = first;
                let mut number = 0;
                for &(_, document, _) in chunk {
                    if document != seen {
                        (seen, number) = (document, number + 1);
                    }
                    numbers.push(number);
                }
                numbers.resize(46, -1);
                numbers.extend(chunk.iter().map(|&(.., place)| place));
                numbers.resize(69, 0);
                assert!(*bytes == numbers.into_iter().flat_map(i32::to_le_bytes).collect::<Vec<u8>>());
            }
        }
    }
    let kept = fs::read_dir(folder.path().join("cache/fuelrail-cache")).unwrap();
    let names = kept.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    assert_eq!(names.filter(|name| name.starts_with("documents-")).count(), 3, "lengths are kept");
}

#[test]
fn token_settings_that_make_no_sense_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.jsonl");
    fs::write(&path, "{\"tokens\": [1, 2, 3], \"x\": [0.5], \"y\": 1}\n").unwrap();
    let length = TokensConfig { length: 4, ..TokensConfig::default() };
    let cache =
        fuelrail_connectors::CacheConfig { dir: Some(folder.path().join("cache")), ..Default::default() };
    for (config, expected) in [
        (TokensConfig::default(), "tokens.length"),
        (TokensConfig { column: Some("x".into()), ..length.clone() }, "lists of integers"),
        (TokensConfig { column: Some("z".into()), ..length.clone() }, "no such column"),
        (
            TokensConfig { pad_id: 300, dtype: fuelrail_connectors::ElementType::U8, ..length.clone() },
            "pad_id",
        ),
        (TokensConfig { eos_id: Some(1), ..length.clone() }, "eos_id"),
        (TokensConfig { mode: TokenMode::Pack, ..length.clone() }, "fewer than tokens.length 4"),
    ] {
        let error = refused(&TableConfig { cache: cache.clone(), ..tokens(config, &path) });
        assert!(error.to_string().contains(expected), "{error}");
    }
    let both = TableConfig { image: Some("y".into()), ..tokens(length, &path) };
    assert!(refused(&both).to_string().contains("no image"));
}

#[test]
fn bytes_that_are_no_table_are_refused_in_words() {
    let folder = tempfile::tempdir().unwrap();
    let good = folder.path().join("good.parquet");
    write_parquet(&good, &[batch(0..20)], WriterProperties::builder());
    let bytes = fs::read(&good).unwrap();
    let bad = folder.path().join("bad.parquet");
    let footer = |len: u32| [&b"PAR1abcdefgh"[..], &len.to_le_bytes(), b"PAR1"].concat();
    for (content, expected) in [
        (Vec::new(), "only 0 bytes"),
        (b"PAR1PAR1PAR1".to_vec(), "claims"),
        (footer(u32::MAX), "claims"),
        (footer(8), "in its footer"),
        (bytes[..bytes.len() - 1].to_vec(), "cut short"),
        (bytes[bytes.len() / 2..].to_vec(), ""),
        ([&bytes[..bytes.len() - 4], b"PARE"].concat(), "encrypted"),
    ] {
        fs::write(&bad, &content).unwrap();
        let error = refused(&table(&bad));
        assert!(error.is_data() && error.to_string().contains(expected), "{error}");
        assert!(error.to_string().contains("bad.parquet"), "{error}");
    }
    let arrow = TableConfig { format: Some(TableFormat::Arrow), ..table(&bad) };
    for content in [&b""[..], b"ARROW1", b"ARROW1\0\0xxxxxxxxxxxxxARROW1", &[0xff; 64], &[0; 64]] {
        fs::write(&bad, content).unwrap();
        assert!(refused(&arrow).is_data());
    }
}

/// One byte of a good file is changed, at many places: whatever that does, nothing hangs, panics or delivers another
/// length.
#[test]
fn any_byte_may_be_wrong() {
    let folder = tempfile::tempdir().unwrap();
    let parquet = folder.path().join("a.parquet");
    let properties = WriterProperties::builder()
        .set_compression(Compression::SNAPPY)
        .set_max_row_group_row_count(Some(10))
        .set_data_page_row_count_limit(4)
        .set_write_batch_size(2);
    write_parquet(&parquet, &[batch(0..20)], properties);
    let arrow = folder.path().join("a.arrow");
    let options = IpcWriteOptions::default().try_with_compression(Some(CompressionType::LZ4_FRAME)).unwrap();
    let mut writer =
        FileWriter::try_new_with_options(fs::File::create(&arrow).unwrap(), &batch(0..1).schema(), options)
            .unwrap();
    writer.write(&batch(0..20)).unwrap();
    writer.finish().unwrap();
    for path in [parquet, arrow] {
        let good = fs::read(&path).unwrap();
        let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
        for at in (0..good.len()).step_by(good.len() / 150) {
            for wrong in [good[at] ^ 0xff, good[at].wrapping_add(1)] {
                file.write_all_at(&[wrong], at as u64).unwrap();
                if let Ok(source) = open(&SourceConfig::Table(with_fields(&path))) {
                    for result in read_all(&source, 4) {
                        match result {
                            Ok(bytes) => assert!(bytes.len() >= source.schema().fields_bytes()),
                            Err(error) => assert_eq!(error.kind(), ReadErrorKind::Bad, "byte {at}: {error}"),
                        }
                    }
                }
                file.write_all_at(&good[at..=at], at as u64).unwrap();
            }
        }
    }
}

#[test]
fn a_validity_bitmap_inside_a_list_is_respected() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.arrow");
    let values = Int32Array::new(
        (0..12).collect::<Vec<_>>().into(),
        Some(NullBuffer::from_iter((0..12).map(|at| at != 7))),
    );
    let field = Arc::new(Field::new_list_field(DataType::Int32, true));
    let list = FixedSizeListArray::new(field, 2, Arc::new(values), None);
    let batch = RecordBatch::try_from_iter([("x", Arc::new(list) as ArrayRef)]).unwrap();
    let mut writer = FileWriter::try_new(fs::File::create(&path).unwrap(), &batch.schema()).unwrap();
    writer.write(&batch).unwrap();
    writer.finish().unwrap();
    let config = TableConfig { fields: Some(vec!["x".into()]), ..table(&path) };
    let bad: Vec<usize> = read_all(&opened(&config), 2)
        .iter()
        .enumerate()
        .filter(|(_, result)| result.is_err())
        .map(|(row, _)| row)
        .collect();
    assert_eq!(bad, [3]);
}
