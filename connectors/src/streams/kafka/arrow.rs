//! A row of an Arrow IPC message as a record.
//!
//! The bytes are a stream, or a file, which is a stream behind a padded magic number. Before Arrow's own reader sees
//! them, what they claim is looked at: one row, and compressed buffers that unpack to no more than a record may have.

use std::io::Cursor;
use std::panic::{AssertUnwindSafe, catch_unwind};

use super::columns::{Columns, IMAGES, ImageColumn};
use crate::arrow::array::{Array, ArrayRef, AsArray, RecordBatch};
use crate::arrow::ipc::reader::StreamReader;
use crate::arrow::ipc::{self, root_as_message};
use crate::labels::Raw;
use crate::sources::table::columns::{append, bytes_at, numeric};
use crate::sources::table::label::raw_at;
use crate::workers::panic_text;

/// How a file begins; zeros follow up to a multiple of at most 64 bytes.
const FILE: &[u8; 6] = b"ARROW1";

/// The row that a value is. It unpacks to no more than `limit` bytes.
pub(super) fn open(bytes: &[u8], limit: u64) -> Result<RecordBatch, String> {
    let stream = match bytes.strip_prefix(FILE) {
        Some(padded) => {
            let zeros = padded.iter().take(58).take_while(|byte| **byte == 0).count();
            &padded[zeros..]
        }
        None => bytes,
    };
    let decoded = catch_unwind(AssertUnwindSafe(|| {
        check(stream, limit)?;
        row(stream)
    }));
    match decoded {
        Ok(row) => row.map_err(|why| format!("its value is not an Arrow row: {why}")),
        Err(panic) => Err(format!("its value breaks the Arrow library ({})", panic_text(&*panic))),
    }
}

/// Writes a row's image and fields, and hands over its label.
pub(super) fn read(
    row: &RecordBatch,
    columns: &Columns,
    body: &mut Vec<u8>,
    label: impl FnOnce(Raw<'_>) -> Result<(), String>,
) -> Result<(), String> {
    let image = match &columns.image {
        ImageColumn::None => None,
        ImageColumn::Named(name) => Some((name.as_str(), row.column_by_name(name))),
        ImageColumn::Usual => {
            let found = IMAGES.iter().find_map(|name| Some((*name, row.column_by_name(name)?)));
            let Some((name, column)) = found else {
                return Err(format!("it has no image (looked for {})", IMAGES.join(", ")));
            };
            Some((name, Some(column)))
        }
    };
    if let Some((name, column)) = image {
        let column = column.ok_or_else(|| format!("it has no image {name:?}"))?;
        let inner = inner(column);
        let found = bytes_at(inner.as_ref(), 0);
        let found =
            found.ok_or_else(|| format!("its image {name:?} is {}; bytes are expected", kind(column)))?;
        body.extend_from_slice(found);
    }
    for field in &columns.fields {
        let Some(column) = row.column_by_name(&field.name) else {
            return Err(format!("its field {:?} is missing", field.name));
        };
        match numeric(column.data_type()) {
            Some((found, _)) if found == field.dtype => {}
            Some((found, _)) => {
                return Err(format!(
                    "its field {:?} is of type {found} and not {}; say so (\"{}:{found}\")",
                    field.name, field.dtype, field.name
                ));
            }
            None => {
                return Err(format!("its field {:?} is {}, which is not a number", field.name, kind(column)));
            }
        }
        let end = body.len() + field.bytes();
        append(column.as_ref(), 0, field, body)?;
        if body.len() != end {
            return Err(format!(
                "its field {:?} is {}, not of shape {:?}",
                field.name,
                kind(column),
                field.shape
            ));
        }
    }
    let schema = row.schema();
    match columns.label.find(schema.fields().iter().map(|field| field.name().as_str()))? {
        Some(name) => {
            let column =
                row.column_by_name(name).ok_or_else(|| format!("it has no {name:?}, which is its label"))?;
            label(raw_at(column.as_ref(), 0))
        }
        None => Ok(()),
    }
}

/// Hugging Face's images are structs of bytes and path.
fn inner(column: &ArrayRef) -> ArrayRef {
    let bytes = column.as_struct_opt().and_then(|parts| parts.column_by_name("bytes"));
    bytes.unwrap_or(column).clone()
}

fn kind(column: &ArrayRef) -> String {
    if column.is_null(0) { "null".into() } else { format!("of type {}", column.data_type()) }
}

/// The only row.
fn row(stream: &[u8]) -> Result<RecordBatch, String> {
    let mut found = None;
    for batch in StreamReader::try_new(Cursor::new(stream), None).map_err(|error| error.to_string())? {
        let batch = batch.map_err(|error| error.to_string())?;
        if batch.num_rows() > 0 && found.replace(batch).is_some() {
            return Err("it has several rows; each message is one record".into());
        }
    }
    found.filter(|batch: &RecordBatch| batch.num_rows() == 1).ok_or_else(|| "it has no row".into())
}

/// Looks at what all messages of a stream claim.
fn check(stream: &[u8], limit: u64) -> Result<(), String> {
    let (mut left, mut rest, mut rows) = (limit, stream, 0i64);
    loop {
        let Some((length, after)) = length(rest) else { return Ok(()) };
        if length == 0 {
            return Ok(());
        }
        let (description, after) = after.split_at_checked(length).ok_or("it is cut short")?;
        let message = root_as_message(description).map_err(|error| error.to_string())?;
        let size = usize::try_from(message.bodyLength()).map_err(|_| "a body of negative length")?;
        let (body, after) = after.split_at_checked(size).ok_or("it is cut short")?;
        let batch = match message.header_as_dictionary_batch() {
            Some(dictionary) => dictionary.data(),
            None => {
                let batch = message.header_as_record_batch();
                rows = rows.saturating_add(batch.map_or(0, |batch| batch.length()));
                if !(0..=1).contains(&rows) {
                    return Err(format!("it has {rows} rows; each message is one record"));
                }
                batch
            }
        };
        if let Some(batch) = batch {
            left = left
                .checked_sub(unpacked(&batch, body)?)
                .ok_or_else(|| format!("it unpacks to more than {limit} bytes (max_record_bytes)"))?;
        }
        rest = after;
    }
}

/// The length before a message, and what follows.
fn length(rest: &[u8]) -> Option<(usize, &[u8])> {
    let (first, mut after) = rest.split_first_chunk::<4>()?;
    let mut length = u32::from_le_bytes(*first);
    // Before version 0.15 there was no marker.
    if length == u32::MAX {
        let (second, further) = after.split_first_chunk::<4>()?;
        (length, after) = (u32::from_le_bytes(*second), further);
    }
    Some((length as usize, after))
}

/// Bytes that a batch's buffers have once unpacked.
fn unpacked(batch: &ipc::RecordBatch<'_>, body: &[u8]) -> Result<u64, String> {
    let mut sum = body.len() as u64;
    if batch.compression().is_none() {
        return Ok(sum);
    }
    for buffer in batch.buffers().into_iter().flatten() {
        let place = usize::try_from(buffer.offset()).ok().zip(usize::try_from(buffer.length()).ok());
        let (offset, length) = place.ok_or("a buffer at no possible place")?;
        let bytes =
            body.get(offset..).and_then(|body| body.get(..length)).ok_or("a buffer outside its body")?;
        let Some((prefix, _)) = bytes.split_first_chunk::<8>() else { continue };
        // -1 says that it is not compressed.
        sum = sum.saturating_add(u64::try_from(i64::from_le_bytes(*prefix)).unwrap_or(0));
    }
    Ok(sum)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;
    use crate::arrow::array::{
        BinaryArray, FixedSizeListArray, Float32Array, Int64Array, StringArray, StructArray,
    };
    use crate::arrow::datatypes::{DataType, Field, Schema};
    use crate::arrow::ipc::writer::{FileWriter, IpcWriteOptions, StreamWriter};
    use crate::streams::kafka::value::{Parts, Values};

    fn batch(rows: usize) -> RecordBatch {
        let box_of = FixedSizeListArray::new(
            Arc::new(Field::new_list_field(DataType::Float32, false)),
            4,
            Arc::new(Float32Array::from_iter_values((0..4 * rows).map(|number| number as f32))),
            None,
        );
        let columns: Vec<(&str, ArrayRef)> = vec![
            ("image", Arc::new(BinaryArray::from_iter_values((0..rows).map(|_| vec![b'x'; 3000])))),
            ("label", Arc::new(StringArray::from_iter_values((0..rows).map(|_| "dog")))),
            ("box", Arc::new(box_of)),
            ("age", Arc::new(Int64Array::from_iter_values((0..rows).map(|row| row as i64 + 7)))),
        ];
        RecordBatch::try_from_iter(columns).unwrap()
    }

    fn stream(batch: &RecordBatch, options: IpcWriteOptions) -> Vec<u8> {
        let mut writer = StreamWriter::try_new_with_options(Vec::new(), &batch.schema(), options).unwrap();
        writer.write(batch).unwrap();
        writer.into_inner().unwrap()
    }

    fn values(config: serde_json::Value) -> Values {
        let mut all = serde_json::json!({"value": "arrow", "image": "image", "classes": ["cat", "dog"]});
        all.as_object_mut().unwrap().extend(config.as_object().unwrap().clone());
        Values::new(&serde_json::from_value(all).unwrap()).unwrap()
    }

    fn record(values: &Values, value: &[u8]) -> Result<(i64, Arc<[u8]>), String> {
        let (label, body) = values.read(Parts { value: Some(value), ..Parts::default() });
        body.map(|body| (label, body)).map_err(|why| why.to_string())
    }

    #[test]
    fn a_row_becomes_a_record_from_streams_and_files_compressed_or_not() {
        let values = values(serde_json::json!({"fields": ["box[4]", "age:i64"]}));
        let one = batch(1);
        let mut file = FileWriter::try_new(Vec::new(), &one.schema()).unwrap();
        file.write(&one).unwrap();
        let compressed = IpcWriteOptions::default()
            .try_with_compression(Some(crate::arrow::ipc::CompressionType::ZSTD))
            .unwrap();
        for bytes in
            [stream(&one, IpcWriteOptions::default()), stream(&one, compressed), file.into_inner().unwrap()]
        {
            let (label, body) = record(&values, &bytes).unwrap();
            assert_eq!(label, 1);
            let schema = values.schema();
            let crate::Cut { image, fields, .. } = schema.cut(&body).unwrap();
            assert_eq!(image, [b'x'; 3000]);
            assert_eq!(fields.len(), 24);
            assert_eq!(fields[12..16], 3f32.to_le_bytes());
            assert_eq!(fields[16..], 7i64.to_le_bytes());
        }
    }

    #[test]
    fn what_is_no_row_is_a_bad_record_with_the_reason() {
        let plain = |rows| stream(&batch(rows), IpcWriteOptions::default());
        let reason = |config, bytes: &[u8]| record(&values(config), bytes).unwrap_err();
        let none = || serde_json::json!({});
        assert!(reason(none(), b"").contains("not an Arrow row"));
        assert!(reason(none(), b"GIF89a").contains("not an Arrow row"));
        assert!(reason(none(), &plain(3)).contains("3 rows"));
        assert!(reason(none(), &plain(1)[..900]).contains("cut short"));
        assert!(reason(serde_json::json!({"fields": ["box[5]"]}), &plain(1)).contains("list of 4"));
        assert!(reason(serde_json::json!({"fields": ["age"]}), &plain(1)).contains("age:i64"));
        assert!(reason(serde_json::json!({"fields": ["size"]}), &plain(1)).contains("size"));
        assert!(reason(serde_json::json!({"label": "kind"}), &plain(1)).contains("kind"));
        assert!(reason(serde_json::json!({"classes": ["cat"]}), &plain(1)).contains("\"dog\""));
        // A small message that unpacks to a large one.
        let zeros: ArrayRef = Arc::new(BinaryArray::from_iter_values([vec![0; 4 << 20]]));
        let options = IpcWriteOptions::default()
            .try_with_compression(Some(crate::arrow::ipc::CompressionType::ZSTD))
            .unwrap();
        let bomb = stream(&RecordBatch::try_from_iter([("image", zeros)]).unwrap(), options);
        assert!(bomb.len() < 64 << 10);
        assert!(reason(serde_json::json!({"max_record_bytes": "1 MiB"}), &bomb).contains("unpacks"));
    }

    #[test]
    fn an_image_may_be_a_struct_as_hugging_face_has_it() {
        let bytes: ArrayRef = Arc::new(BinaryArray::from_iter_values([b"png"]));
        let fields = Schema::new(vec![Field::new("bytes", DataType::Binary, false)]).fields;
        let image: ArrayRef = Arc::new(StructArray::new(fields, vec![bytes], None));
        let label: ArrayRef = Arc::new(Float32Array::from_iter_values([1.0]));
        let batch = RecordBatch::try_from_iter([("image", image), ("label", label)]).unwrap();
        let (label, body) =
            record(&values(serde_json::json!({})), &stream(&batch, IpcWriteOptions::default())).unwrap();
        assert_eq!((label, &*body), (1, &b"png"[..]), "a whole number stored as a float is one");
    }

    proptest! {
        #[test]
        fn a_mutated_message_is_a_record_or_a_bad_one(
            changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6), compress: bool,
        ) {
            let kind = compress.then_some(crate::arrow::ipc::CompressionType::LZ4_FRAME);
            let options = IpcWriteOptions::default().try_with_compression(kind).unwrap();
            let mut bytes = stream(&batch(1), options);
            for (at, to) in changes {
                let at = at.index(bytes.len());
                bytes[at] = to;
            }
            let values = values(serde_json::json!({"fields": ["box[4]"]}));
            if let Ok((_, body)) = record(&values, &bytes) {
                prop_assert!(values.schema().cut(&body).is_some());
            }
        }
    }
}
