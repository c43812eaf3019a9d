//! Named parts of tables: the same in every format, as long as they are, and refused or bad where they cannot be what
//! was asked for.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use fuelrail_connectors::{
    ElementType, IndexedSource, PartKind, ReadErrorKind, SourceConfig, TableConfig, Wanted, WantedKind, open,
};
use parquet::file::properties::WriterProperties;
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::arrow::array::{
    ArrayRef, BinaryArray, DictionaryArray, FixedSizeBinaryArray, FixedSizeListArray, Int64Array, ListArray,
    ListBuilder, MapBuilder, PrimitiveBuilder, RecordBatch, StringArray, StringBuilder, StructArray,
    TimestampMicrosecondArray,
};
use crate::arrow::datatypes::{DataType, Field, Fields, Float32Type, Float64Type, Int32Type, Int64Type};
use crate::arrow::ipc::writer::{FileWriter, StreamWriter};
use crate::conformance::{self, Sizes, parts_of};
use crate::{image, read_all, table, write_parquet};

fn deliver(path: &Path, wanted: &[Wanted]) -> TableConfig {
    TableConfig { deliver: Some(wanted.to_vec()), label: Some(String::new()), ..table(path) }
}

fn want(part: &str, kind: WantedKind) -> Wanted {
    Wanted::new(part, kind)
}

type Parts = Vec<Vec<Option<Vec<u8>>>>;

/// The parts of all records, as the conformance suite has seen them.
fn parts(config: &TableConfig) -> Parts {
    let (source, records) = conformance::conforms(&SourceConfig::Table(config.clone()), Sizes::Estimates);
    parts_of(&source.schema(), &records)
}

fn opened(config: &TableConfig) -> Arc<dyn IndexedSource> {
    open(&SourceConfig::Table(config.clone())).unwrap()
}

fn refused(config: &TableConfig) -> String {
    open(&SourceConfig::Table(config.clone())).map(|_| ()).unwrap_err().to_string()
}

/// What is wrong with the only record.
fn bad(config: &TableConfig) -> String {
    let mut records = read_all(&opened(config), 2);
    let error = records.remove(0).unwrap_err();
    assert_eq!(error.kind(), ReadErrorKind::Bad);
    error.to_string()
}

fn batch(columns: Vec<(&str, ArrayRef)>) -> RecordBatch {
    RecordBatch::try_from_iter_with_nullable(columns.into_iter().map(|(name, column)| (name, column, true)))
        .unwrap()
}

/// Files of one batch as Parquet, as an Arrow file and as a stream.
fn binary_files(folder: &Path, batch: &RecordBatch) -> Vec<std::path::PathBuf> {
    let path = |name: &str| folder.join(name);
    write_parquet(
        &path("t.parquet"),
        std::slice::from_ref(batch),
        WriterProperties::builder().set_max_row_group_row_count(Some(7)),
    );
    let mut file = FileWriter::try_new(fs::File::create(path("t.arrow")).unwrap(), &batch.schema()).unwrap();
    file.write(batch).unwrap();
    file.finish().unwrap();
    let mut stream =
        StreamWriter::try_new(fs::File::create(path("t.arrows")).unwrap(), &batch.schema()).unwrap();
    stream.write(batch).unwrap();
    stream.finish().unwrap();
    ["t.parquet", "t.arrow", "t.arrows"].map(path).to_vec()
}

fn le<T: Copy>(numbers: &[T], bytes: impl Fn(T) -> Vec<u8>) -> Vec<u8> {
    numbers.iter().flat_map(|&number| bytes(number)).collect()
}

fn le_f64(numbers: &[f64]) -> Vec<u8> {
    le(numbers, |number| number.to_le_bytes().to_vec())
}

/// A row of a made-up table.
#[derive(Clone, Debug)]
struct Row {
    caption: Option<String>,
    scores: Option<Vec<f64>>,
    boxes: Option<Vec<[f64; 2]>>,
    meta: Option<(Option<i64>, Option<String>)>,
}

fn row() -> impl Strategy<Value = Row> {
    let number = || (-1000i32..1000).prop_map(|number| f64::from(number) / 8.0);
    let text = || prop_oneof![Just(String::new()), "\\PC{0,12}", "[a-c\"\\\\\n\u{1f600}]{0,8}"];
    (
        prop::option::of(text()),
        prop::option::of(prop::collection::vec(number(), 0..5)),
        prop::option::of(prop::collection::vec([number(), number()], 0..4)),
        prop::option::of((prop::option::of(any::<i64>()), prop::option::of(text()))),
    )
        .prop_map(|(caption, scores, boxes, meta)| Row { caption, scores, boxes, meta })
}

impl Row {
    fn json(&self) -> Value {
        let Self { caption, scores, boxes, meta } = self;
        let meta = meta.as_ref().map(|(number, text)| json!({"number": number, "text": text}));
        json!({"caption": caption, "scores": scores, "boxes": boxes, "meta": meta})
    }

    fn parts(&self) -> Vec<Option<Vec<u8>>> {
        let text = |text: &Option<String>| text.clone().map(String::into_bytes);
        let meta = self.json()["meta"].clone();
        vec![
            text(&self.caption),
            self.scores.as_deref().map(le_f64),
            self.boxes.as_ref().map(|boxes| le_f64(boxes.as_flattened())),
            self.meta.is_some().then(|| meta.to_string().into_bytes()),
            self.meta.as_ref().and_then(|(_, inner)| text(inner)),
        ]
    }
}

fn columns(rows: &[Row]) -> RecordBatch {
    let captions = StringArray::from_iter(rows.iter().map(|row| row.caption.as_deref()));
    let scores = ListArray::from_iter_primitive::<Float64Type, _, _>(
        rows.iter().map(|row| row.scores.as_ref().map(|list| list.iter().copied().map(Some))),
    );
    let mut boxes = ListBuilder::new(ListBuilder::new(PrimitiveBuilder::<Float64Type>::new()));
    for row in rows {
        for pair in row.boxes.iter().flatten() {
            boxes.values().append_value(pair.map(Some));
        }
        boxes.append(row.boxes.is_some());
    }
    let numbers = Int64Array::from_iter(rows.iter().map(|row| row.meta.as_ref().and_then(|meta| meta.0)));
    let texts =
        StringArray::from_iter(rows.iter().map(|row| row.meta.as_ref().and_then(|meta| meta.1.as_deref())));
    let fields = Fields::from(vec![
        Field::new("number", DataType::Int64, true),
        Field::new("text", DataType::Utf8, true),
    ]);
    let meta = StructArray::new(
        fields,
        vec![Arc::new(numbers), Arc::new(texts)],
        Some(rows.iter().map(|row| row.meta.is_some()).collect()),
    );
    batch(vec![
        ("caption", Arc::new(captions)),
        ("scores", Arc::new(scores)),
        ("boxes", Arc::new(boxes.finish())),
        ("meta", Arc::new(meta)),
    ])
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn every_format_gives_the_values_that_were_put_in(mut rows in prop::collection::vec(row(), 1..40)) {
        // The shapes of rows are those of the first list with anything in it.
        rows[0].scores = Some(vec![0.5]);
        rows[0].boxes = Some(vec![[1.0, 2.0]]);
        let folder = tempfile::tempdir().unwrap();
        let typed = |part: &str| Wanted { dtype: Some(ElementType::F64), ..want(part, WantedKind::Ragged) };
        let wanted = [
            want("caption", WantedKind::Text),
            typed("scores"),
            typed("boxes"),
            want("meta", WantedKind::Json),
            want("meta.text", WantedKind::Text),
        ];
        let mut files = binary_files(folder.path(), &columns(&rows));
        let objects: Vec<String> = rows.iter().map(|row| row.json().to_string()).collect();
        for (name, text) in
            [("t.jsonl", objects.join("\n")), ("t.json", format!("[{}]", objects.join(" ,\n")))]
        {
            fs::write(folder.path().join(name), text).unwrap();
            files.push(folder.path().join(name));
        }
        let expected: Parts = rows.iter().map(Row::parts).collect();
        for file in files {
            let found = parts(&deliver(&file, &wanted));
            prop_assert_eq!(&found, &expected, "{}", file.display());
        }
    }
}

/// Every kind of column that can be a part.
#[test]
fn columns_of_every_type_are_parts() {
    let folder = tempfile::tempdir().unwrap();
    let names: DictionaryArray<Int32Type> =
        [Some("cat"), None, Some("cat and a long name")].into_iter().collect();
    let ids = FixedSizeBinaryArray::try_from_iter([[1u8, 2], [3, 4], [5, 6]].into_iter()).unwrap();
    let boxes = FixedSizeListArray::from_iter_primitive::<Float32Type, _, _>(
        (0..3).map(|row| Some((0..4).map(move |at| Some((row * 4 + at) as f32)))),
        4,
    );
    let mut map = MapBuilder::new(None, StringBuilder::new(), PrimitiveBuilder::<Int64Type>::new());
    for row in 0..3 {
        for at in 0..row {
            map.keys().append_value(format!("k{at}"));
            map.values().append_value(at);
        }
        map.append(true).unwrap();
    }
    let times = TimestampMicrosecondArray::from(vec![0, 1, 1_700_000_000_500_000]).with_timezone("UTC");
    let nested: ArrayRef = Arc::new(StringArray::from(vec![r#"{"a": {"b": "x"}}"#, "{}", "null"]));
    let all = batch(vec![
        ("name", Arc::new(names)),
        ("id", Arc::new(ids)),
        ("box", Arc::new(boxes)),
        ("map", Arc::new(map.finish())),
        ("time", Arc::new(times)),
        ("raw", Arc::new(BinaryArray::from_opt_vec(vec![Some(b"\xff"), None, Some(b"")]))),
        ("text", nested),
        ("n", Arc::new(Int64Array::from(vec![Some(1), None, Some(3)]))),
    ]);
    let wanted = [
        want("name", WantedKind::Text),
        want("id", WantedKind::Bytes),
        want("box", WantedKind::Ragged),
        want("box", WantedKind::Json),
        want("map", WantedKind::Json),
        want("time", WantedKind::Json),
        want("raw", WantedKind::Text),
        want("text", WantedKind::Json),
        want("text.a.b", WantedKind::Text),
        want("n", WantedKind::Json),
        want("raw", WantedKind::Image),
    ];
    let some = |text: &str| Some(text.as_bytes().to_vec());
    for file in binary_files(folder.path(), &all) {
        let config = deliver(&file, &wanted);
        let found = parts(&config);
        let row: Vec<f32> = vec![0.0, 1.0, 2.0, 3.0];
        assert_eq!(found[0][0], some("cat"));
        assert_eq!(found[0][1], Some(vec![1, 2]));
        assert_eq!(found[0][2], Some(le(&row, |number| number.to_le_bytes().to_vec())));
        assert_eq!(found[0][3], some("[0.0,1.0,2.0,3.0]"));
        assert_eq!(found[2][4], some(r#"{"k0":0,"k1":1}"#));
        assert_eq!(found[0][5], some("\"1970-01-01T00:00:00Z\""));
        assert_eq!(found[2][5], some("\"2023-11-14T22:13:20.500Z\""));
        assert_eq!((&found[0][6], &found[1][6], &found[2][6]), (&Some(vec![0xff]), &None, &Some(vec![])));
        assert_eq!(found[0][7], some(r#"{"a": {"b": "x"}}"#));
        assert_eq!((&found[0][8], &found[1][8], &found[2][8]), (&some("x"), &None, &None));
        assert_eq!((&found[0][9], &found[1][9]), (&some("1"), &None));
        assert_eq!(found[0][10], Some(vec![0xff]));
        assert_eq!((&found[1][0], &found[2][0]), (&None, &some("cat and a long name")));
        let schema = opened(&config).schema();
        assert!(!schema.image);
        assert_eq!(schema.parts[2].kind, PartKind::Ragged { dtype: ElementType::F32, row: vec![] });
        assert_eq!(schema.parts[8].name, "text.a.b");
    }
}

#[test]
fn parts_stand_beside_the_image_and_numbers_and_change_the_fingerprint() {
    let folder = tempfile::tempdir().unwrap();
    let images: Vec<Vec<u8>> = (0..30).map(image).collect();
    let captions: Vec<String> = (0..30).map(|row| format!("caption {row}").repeat(row % 4)).collect();
    let all = batch(vec![
        ("image", Arc::new(BinaryArray::from_iter_values(&images))),
        ("caption", Arc::new(StringArray::from_iter_values(&captions))),
        ("age", Arc::new(Int64Array::from_iter_values(0..30))),
    ]);
    for file in binary_files(folder.path(), &all) {
        let wanted =
            [Wanted::own_image(), want("age", WantedKind::Numbers), want("caption", WantedKind::Text)];
        let config = deliver(&file, &wanted);
        let (source, records) = conformance::conforms(&SourceConfig::Table(config.clone()), Sizes::Estimates);
        let schema = source.schema();
        assert_eq!((schema.parts.len(), schema.fields.len()), (1, 1));
        for (row, record) in records.iter().enumerate() {
            let cut = schema.cut(record).unwrap();
            assert!(cut.image == images[row] && cut.parts == [Some(captions[row].as_bytes())]);
            assert_eq!(cut.fields, (row as i64).to_le_bytes());
        }
        let as_bytes = deliver(&file, &[Wanted::own_image(), want("caption", WantedKind::Bytes)]);
        let plain = TableConfig { deliver: None, ..config.clone() };
        let prints = [&config, &as_bytes, &plain].map(|config| opened(config).fingerprint());
        assert!(prints[0] != prints[1] && prints[1] != prints[2] && prints[0] != prints[2]);
        let own = deliver(&file, &[Wanted::own_image()]);
        assert_eq!(opened(&own).fingerprint(), prints[2], "nothing but the image is what it was");
    }
}

#[test]
fn cells_are_text_as_they_are_written() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("t.csv");
    fs::write(&path, "path,text,list,more\nx,\" a, b\",\"[1, 2]\",1.50\ny,,,\nz,NA,[]\nw,1,[3],x,y\n")
        .unwrap();
    let wanted = [
        want("text", WantedKind::Text),
        want("list", WantedKind::Ragged),
        want("more", WantedKind::Text),
        want("list", WantedKind::Json),
    ];
    let config = deliver(&path, &wanted);
    let source = opened(&config);
    let records = read_all(&source, 2);
    let some = |text: &str| Some(text.as_bytes().to_vec());
    let good: Vec<Vec<u8>> = records[..3].iter().map(|record| record.as_ref().unwrap().clone()).collect();
    let found = parts_of(&source.schema(), &good);
    let list = le(&[1f32, 2.0], |number| number.to_le_bytes().to_vec());
    assert_eq!(found[0], [some(" a, b"), Some(list), some("1.50"), some("[1, 2]")]);
    assert_eq!(found[1], [some(""), None, some(""), None], "an empty cell is an empty text and no JSON");
    assert_eq!(found[2], [some("NA"), Some(vec![]), None, some("[]")], "a cell that is not there is none");
    let why = records[3].as_ref().unwrap_err().to_string();
    assert!(why.contains("5 cells where the first has 4"), "{why}");
}

#[test]
fn paths_of_images_have_parts_beside_them() {
    let folder = tempfile::tempdir().unwrap();
    let mut list = String::from("path,caption,points\n");
    for row in 0..25 {
        fs::write(folder.path().join(format!("{row}.jpg")), image(row)).unwrap();
        let points: Vec<String> = (0..row % 4).map(|at| format!("[{at}, {row}]")).collect();
        list += &format!("{row}.jpg,caption {row},\"[{}]\"\n", points.join(", "));
    }
    let path = folder.path().join("list.csv");
    fs::write(&path, list).unwrap();
    let wanted = [
        Wanted::own_image(),
        want("caption", WantedKind::Text),
        Wanted { dtype: Some(ElementType::U8), ..want("points", WantedKind::Ragged) },
    ];
    let (source, records) =
        conformance::conforms(&SourceConfig::Table(deliver(&path, &wanted)), Sizes::Bounds);
    let schema = source.schema();
    assert_eq!(schema.parts[1].kind, PartKind::Ragged { dtype: ElementType::U8, row: vec![2] });
    for (row, record) in records.iter().enumerate() {
        let cut = schema.cut(record).unwrap();
        assert!(cut.image == image(row));
        assert_eq!(cut.parts[0], Some(format!("caption {row}").as_bytes()));
        let points: Vec<u8> = (0..row % 4).flat_map(|at| [at as u8, row as u8]).collect();
        assert_eq!(cut.parts[1], Some(&points[..]));
    }
}

#[test]
fn what_can_never_be_a_part_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let inner = Fields::from(vec![Field::new("x", DataType::Int64, true)]);
    let all = batch(vec![
        ("age", Arc::new(Int64Array::from(vec![1, 2]))),
        (
            "list",
            Arc::new(ListArray::from_iter_primitive::<Int64Type, _, _>([Some([Some(1)]), Some([Some(2)])])),
        ),
        ("text", Arc::new(StringArray::from(vec!["a", "b"]))),
        ("meta", Arc::new(StructArray::new(inner, vec![Arc::new(Int64Array::from(vec![1, 2]))], None))),
        ("raw", Arc::new(BinaryArray::from_vec(vec![b"a", b"b"]))),
    ]);
    let row = |row: &[u64]| Wanted { row: Some(row.to_vec()), ..want("list", WantedKind::Ragged) };
    for file in binary_files(folder.path(), &all) {
        for (wanted, why) in [
            (want("captoin", WantedKind::Text), "\"captoin\" is not a column of"),
            (want("captoin", WantedKind::Text), "text (Utf8)"),
            (want("captoin", WantedKind::Numbers), "\"captoin\" are not a column of"),
            (want("age", WantedKind::Text), "ask for numbers: Numbers(\"age\")"),
            (want("age", WantedKind::Bytes), "ask for numbers: Numbers(\"age\")"),
            (want("age", WantedKind::Ragged), "without max_rows"),
            (want("age", WantedKind::Image), "holds whole numbers; an image is bytes"),
            (want("list", WantedKind::Text), "Numbers(\"list\", max_rows"),
            (want("meta", WantedKind::Text), "Json(\"meta\""),
            (want("meta", WantedKind::Ragged), "lists of numbers"),
            (want("meta.y", WantedKind::Json), "it has x"),
            (want("age.y", WantedKind::Json), "inside the column \"age\""),
            (row(&[2]), "rows of shape [2]"),
            (row(&[1 << 40]), "rows of shape"),
        ] {
            let found = refused(&deliver(&file, std::slice::from_ref(&wanted)));
            assert!(found.contains(why), "{wanted:?}: {found}");
        }
    }
    let path = folder.path().join("t.jsonl");
    fs::write(&path, "{\"age\": 1, \"text\": \"a\", \"meta\": {\"caption\": 1, \"b\": {}}}\n").unwrap();
    let found = refused(&deliver(&path, &[want("meta.captoin", WantedKind::Text)]));
    assert!(found.contains("\"meta.captoin\" is not in the first records"), "{found}");
    assert!(found.contains("\"meta\" has b, caption there"), "{found}");
    for part in ["meta.captoin", "captoin"] {
        let wanted = Wanted { optional: true, ..want(part, WantedKind::Text) };
        assert_eq!(parts(&deliver(&path, &[want("age", WantedKind::Json), wanted]))[0][1], None);
    }
    let found = refused(&deliver(&path, &[want("captoin", WantedKind::Text)]));
    assert!(found.contains("\"captoin\" is not a column of") && found.contains("text"), "{found}");
}

#[test]
fn a_value_that_is_not_what_was_asked_for_is_a_bad_record() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("t.jsonl");
    let ragged = |row: &[u64]| Wanted { row: Some(row.to_vec()), ..want("a", WantedKind::Ragged) };
    for (value, wanted, why) in [
        ("5", want("a", WantedKind::Text), "part \"a\": it is a number; text is expected"),
        ("{}", want("a", WantedKind::Bytes), "it is an object"),
        ("[1, \"x\"]", ragged(&[]), "part \"a\": it has a text in it where a number"),
        ("[[1, 2], [3]]", ragged(&[2]), "a list of 1 where 2"),
        ("[1, null]", ragged(&[]), "a null in it"),
        ("[16777217]", ragged(&[]), "f32 does not hold exactly"),
        ("\"x\"", want("a.b", WantedKind::Text), "in a text, which is not an object"),
    ] {
        fs::write(&path, format!("{{\"a\": {value}}}\n")).unwrap();
        let found = bad(&deliver(&path, &[wanted]));
        assert!(found.contains(why), "{value}: {found}");
    }
    // A line that is damaged has no parts, and is not one that lacks them.
    fs::write(&path, "{\"a\": \"x\"}\n{\"a\": \n{\"a\": \"y\"}\n").unwrap();
    let records = read_all(&opened(&deliver(&path, &[want("a", WantedKind::Text)])), 2);
    assert!(records[0].is_ok() && records[2].is_ok());
    assert!(records[1].as_ref().unwrap_err().to_string().contains("not a JSON object"));

    let mut lists = ListBuilder::new(PrimitiveBuilder::<Int64Type>::new());
    lists.append_value([Some(1), None]);
    let mut uneven = ListBuilder::new(ListBuilder::new(PrimitiveBuilder::<Int64Type>::new()));
    uneven.append_value([Some(vec![Some(1), Some(2)]), Some(vec![Some(3)])]);
    let all = batch(vec![("list", Arc::new(lists.finish())), ("uneven", Arc::new(uneven.finish()))]);
    for file in binary_files(folder.path(), &all) {
        let found = bad(&deliver(&file, &[want("list", WantedKind::Ragged)]));
        assert!(found.contains("part \"list\": it has a null in it"), "{found}");
        let found = bad(&deliver(&file, &[want("uneven", WantedKind::Ragged)]));
        assert!(found.contains("a list of 1 where 2"), "{found}");
    }
}

/// A text that comes again and again takes no more memory than it has to, and its records are counted as long as they
/// are.
#[test]
fn texts_that_repeat_are_counted_as_long_as_they_are() {
    let folder = tempfile::tempdir().unwrap();
    let long = "a caption ".repeat(500);
    let all = batch(vec![("caption", Arc::new(StringArray::from_iter_values((0..3000).map(|_| &long))))]);
    for file in binary_files(folder.path(), &all) {
        let config = deliver(&file, &[want("caption", WantedKind::Text)]);
        let found = parts(&config);
        assert!(found.iter().all(|parts| parts[0].as_deref() == Some(long.as_bytes())));
    }
}

#[test]
fn json_nested_without_end_is_refused_or_bad() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("t.jsonl");
    let bomb = format!("{{\"a\": {}{}}}\n", "[".repeat(100_000), "]".repeat(100_000));
    fs::write(&path, format!("{{\"a\": [1]}}\n{bomb}{{\"a\": [2]}}\n")).unwrap();
    for kind in [WantedKind::Json, WantedKind::Ragged] {
        let records = read_all(&opened(&deliver(&path, &[want("a", kind)])), 2);
        assert_eq!(records.iter().map(Result::is_ok).collect::<Vec<_>>(), [true, false, true]);
    }
    let texts: ArrayRef = Arc::new(StringArray::from(vec!["[1]".to_owned(), "[".repeat(200_000)]));
    for file in binary_files(folder.path(), &batch(vec![("a", texts)])) {
        let ragged = read_all(&opened(&deliver(&file, &[want("a", WantedKind::Ragged)])), 2);
        assert!(ragged[0].is_ok() && ragged[1].is_err());
        let inside = read_all(&opened(&deliver(&file, &[want("a.b", WantedKind::Text)])), 2);
        assert!(inside.iter().all(Result::is_err));
    }
}

/// Files with the images and masks of so many rows.
fn images_and_masks(folder: &Path, rows: usize) {
    for row in 0..rows {
        fs::write(folder.join(format!("{row}.jpg")), image(row)).unwrap();
        fs::write(folder.join(format!("{row}-mask.png")), image(row + 1000)).unwrap();
    }
}

#[test]
fn masks_are_read_from_the_paths_beside_those_of_the_images() {
    let folder = tempfile::tempdir().unwrap();
    images_and_masks(folder.path(), 30);
    let mask = |row: usize| if row % 5 == 3 { String::new() } else { format!("{row}-mask.png") };
    let lines: Vec<String> = (0..30).map(|row| format!("{row}.jpg,{},word {row}\n", mask(row))).collect();
    fs::write(folder.path().join("t.csv"), format!("path,mask,caption\n{}", lines.concat())).unwrap();
    let object = |row: usize| {
        let mask = Some(mask(row)).filter(|mask| !mask.is_empty());
        json!({"path": format!("{row}.jpg"), "mask": mask, "caption": format!("word {row}")}).to_string()
    };
    let objects: Vec<String> = (0..30).map(object).collect();
    fs::write(folder.path().join("t.jsonl"), objects.join("\n")).unwrap();
    for file in ["t.csv", "t.jsonl"] {
        let path = folder.path().join(file);
        let wanted =
            [Wanted::own_image(), want("mask", WantedKind::Image), want("caption", WantedKind::Text)];
        let config = SourceConfig::Table(deliver(&path, &wanted));
        let (source, records) = conformance::conforms(&config, Sizes::Bounds);
        let schema = source.schema();
        assert!(schema.image && source.extent(0).is_none() && source.reader_memory() > 0);
        for (row, record) in records.iter().enumerate() {
            let cut = schema.cut(record).unwrap();
            let mask = (row % 5 != 3).then(|| image(row + 1000));
            assert!(cut.image == image(row) && cut.parts[0] == mask.as_deref(), "{file} {row}");
            assert_eq!(cut.parts[1], Some(format!("word {row}").as_bytes()));
        }
        // Images that are all parts, in the order that was asked for.
        let wanted = [want("mask", WantedKind::Image), want("path", WantedKind::Image)];
        let config = SourceConfig::Table(deliver(&path, &wanted));
        let (source, records) = conformance::conforms(&config, Sizes::Bounds);
        let found = parts_of(&source.schema(), &records);
        assert_eq!(found[3], [None, Some(image(3))]);
        assert_eq!(found[7], [Some(image(1007)), Some(image(7))]);
    }
    fs::remove_file(folder.path().join("7-mask.png")).unwrap();
    let config = deliver(
        &folder.path().join("t.csv"),
        &[Wanted::own_image(), want("mask", WantedKind::Image), want("caption", WantedKind::Text)],
    );
    let records = read_all(&opened(&config), 4);
    for (row, record) in records.iter().enumerate() {
        assert_eq!(record.is_ok(), row != 7, "{row}");
    }
    let error = records[7].as_ref().unwrap_err();
    assert_eq!(error.kind(), ReadErrorKind::Bad);
    assert!(error.to_string().contains("part \"mask\": \"7-mask.png\" does not exist"), "{error}");
}

#[test]
fn images_as_bytes_structs_and_paths_may_stand_side_by_side() {
    let folder = tempfile::tempdir().unwrap();
    images_and_masks(folder.path(), 20);
    let images: Vec<Vec<u8>> = (0..20).map(image).collect();
    let depth: Vec<Option<Vec<u8>>> = (0..20).map(|row| (row % 3 > 0).then(|| image(row + 500))).collect();
    let paths = StringArray::from_iter_values((0..20).map(|row| format!("{row}-mask.png")));
    let fields = Fields::from(vec![
        Field::new("bytes", DataType::Binary, true),
        Field::new("path", DataType::Utf8, true),
    ]);
    let both = StructArray::new(
        fields,
        vec![
            Arc::new(BinaryArray::from_iter(depth.iter().map(Option::as_deref))),
            Arc::new(StringArray::from_iter((0..20).map(|row| (row != 6).then(|| format!("{row}.jpg"))))),
        ],
        None,
    );
    let all = batch(vec![
        ("image", Arc::new(BinaryArray::from_iter_values(&images))),
        ("mask", Arc::new(paths)),
        ("depth", Arc::new(both)),
        ("again", Arc::new(BinaryArray::from_iter_values(images.iter().rev()))),
    ]);
    for file in binary_files(folder.path(), &all) {
        let wanted = ["again", "mask", "depth"].map(|part| want(part, WantedKind::Image));
        let config = deliver(&file, &[&[Wanted::own_image()], &wanted[..]].concat());
        let (source, records) = conformance::conforms(&SourceConfig::Table(config), Sizes::Estimates);
        for (row, record) in records.iter().enumerate() {
            let schema = source.schema();
            let cut = schema.cut(record).unwrap();
            let depth = depth[row].clone().or((row != 6).then(|| image(row)));
            assert!(cut.image == image(row) && cut.parts[0] == Some(&images[19 - row][..]));
            assert!(
                cut.parts[1] == Some(&image(row + 1000)[..]) && cut.parts[2] == depth.as_deref(),
                "{row}"
            );
        }
    }
    fs::remove_file(folder.path().join("7-mask.png")).unwrap();
    let config =
        deliver(&folder.path().join("t.parquet"), &[Wanted::own_image(), want("mask", WantedKind::Image)]);
    let error = read_all(&opened(&config), 2).remove(7).unwrap_err();
    assert!(
        error.to_string().contains("part \"mask\" is not there: \"7-mask.png\" does not exist"),
        "{error}"
    );
}

/// Whatever a damaged file claims: it is refused, or its records are good or bad ones, and no more than they are.
#[test]
fn any_byte_may_be_wrong_in_a_table_of_parts() {
    let folder = tempfile::tempdir().unwrap();
    let row = |number: usize| Row {
        caption: Some(format!("caption \"{number}\" \u{1f600}")),
        scores: (!number.is_multiple_of(3)).then(|| vec![0.5; number]),
        boxes: Some(vec![[1.0, number as f64]; number % 4]),
        meta: (!number.is_multiple_of(5)).then(|| (Some(number as i64), Some("x".repeat(number)))),
    };
    let rows: Vec<Row> = (1..21).map(row).collect();
    let mut files = binary_files(folder.path(), &columns(&rows));
    let objects: Vec<String> = rows.iter().map(|row| row.json().to_string()).collect();
    files.push(folder.path().join("t.jsonl"));
    fs::write(&files[3], objects.join("\n")).unwrap();
    let typed = |part: &str| Wanted { dtype: Some(ElementType::F64), ..want(part, WantedKind::Ragged) };
    let wanted = [
        want("caption", WantedKind::Text),
        typed("scores"),
        typed("boxes"),
        want("meta", WantedKind::Json),
        want("meta.text", WantedKind::Bytes),
        want("boxes", WantedKind::Json),
    ];
    for path in files {
        let good = fs::read(&path).unwrap();
        let config = deliver(&path, &wanted);
        for at in (0..good.len()).step_by(good.len() / 120) {
            for wrong in [good[at] ^ 0xff, good[at].wrapping_add(1)] {
                let mut bytes = good.clone();
                bytes[at] = wrong;
                fs::write(&path, bytes).unwrap();
                let Ok(source) = open(&SourceConfig::Table(config.clone())) else { continue };
                for result in read_all(&source, 4) {
                    match result {
                        Ok(bytes) => assert!(source.schema().cut(&bytes).is_some() && bytes.len() < 1 << 20),
                        Err(error) => assert_eq!(error.kind(), ReadErrorKind::Bad, "byte {at}: {error}"),
                    }
                }
            }
        }
    }
}
