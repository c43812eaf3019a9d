//! Prints the records of a source, one JSON object a line: key, label, the image's length and CRC-32, and the fields.
//!
//! ```sh
//! cargo run --release -p fuelrail-connectors --example dump -- '{"type":"table","files":["/data/a.parquet"],"fields":["*"]}'
//! ```
//!
//! A record that is bad is printed with its error; a source that cannot be opened ends the program with 1.

use std::io::Write;
use std::process::ExitCode;
use std::sync::mpsc;

use fuelrail_connectors::{Cut, ElementType, FieldSpec, ReadRequest, ReaderConfig, SourceConfig, open};
use serde_json::{Value, json};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [config, rest @ ..] = arguments.as_slice() else {
        eprintln!("usage: dump CONFIG_JSON [MOST_RECORDS]");
        return ExitCode::from(2);
    };
    let limit = rest.first().and_then(|text| text.parse().ok()).unwrap_or(u64::MAX);
    match dump(config, limit) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn dump(config: &str, limit: u64) -> Result<(), Box<dyn std::error::Error>> {
    let config: SourceConfig = serde_json::from_str(config)?;
    let source = open(&config)?;
    let schema = source.schema();
    let reader = source.clone().reader(&ReaderConfig::default())?;
    let len = source.len().min(limit);
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    let mut next = 0;
    while next < len {
        let end = (next + 256).min(len);
        let (tell, told) = mpsc::channel();
        let request = |index| {
            let tell = tell.clone();
            ReadRequest { index, done: Box::new(move |result| drop(tell.send((index, result)))) }
        };
        reader.submit((next..end).map(request).collect());
        drop(tell);
        let mut results: Vec<_> = told.iter().collect();
        results.sort_by_key(|(index, _)| *index);
        for (index, result) in results {
            let mut line = json!({"key": source.key(index), "label": source.label(index)});
            match result {
                Err(error) => line["error"] = format!("{:?}: {error}", error.kind()).into(),
                Ok(record) => {
                    let Cut { image, mut fields, .. } =
                        schema.cut(&record.bytes).ok_or("a record is too short")?;
                    if schema.image {
                        let mut crc = flate2::Crc::new();
                        crc.update(image);
                        line["image"] = json!([image.len(), crc.sum()]);
                    }
                    for spec in &schema.fields {
                        let (bytes, rest) = fields.split_at(spec.bytes());
                        line["fields"][&spec.name] = value(spec, bytes);
                        fields = rest;
                    }
                }
            }
            writeln!(out, "{line}")?;
        }
        next = end;
    }
    Ok(())
}

/// A field's value, flat.
fn value(spec: &FieldSpec, bytes: &[u8]) -> Value {
    let mut values: Vec<Value> =
        bytes.chunks_exact(spec.dtype.size()).map(|bytes| element(spec.dtype, bytes)).collect();
    if spec.shape.is_empty() { values.remove(0) } else { values.into() }
}

fn element(dtype: ElementType, bytes: &[u8]) -> Value {
    macro_rules! number {
        ($type:ty) => {
            <$type>::from_le_bytes(bytes.try_into().expect("an element's bytes"))
        };
    }
    let float = |value: f64| if value.is_finite() { json!(value) } else { json!(value.to_string()) };
    match dtype {
        ElementType::Bool => (bytes[0] != 0).into(),
        ElementType::U8 => bytes[0].into(),
        ElementType::I8 => number!(i8).into(),
        ElementType::U16 => number!(u16).into(),
        ElementType::I16 => number!(i16).into(),
        ElementType::U32 => number!(u32).into(),
        ElementType::I32 => number!(i32).into(),
        ElementType::U64 => number!(u64).into(),
        ElementType::I64 => number!(i64).into(),
        ElementType::F16 => float(half::f16::from_le_bytes([bytes[0], bytes[1]]).to_f64()),
        ElementType::F32 => float(f64::from(number!(f32))),
        ElementType::F64 => float(number!(f64)),
    }
}
