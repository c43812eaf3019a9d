//! A web server with faults on purpose.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use xxhash_rust::xxh3::xxh3_64;

use crate::workers::lock;

/// What may go wrong with one answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Trouble {
    Status(u16),
    TooMany,
    /// Closed with a reset, before or inside the body.
    Reset,
    /// Nothing more comes, inside the body.
    Stall,
    /// Nothing comes at all.
    Silence,
    /// The connection ends before the length announced.
    Short,
    /// A consistent answer with fewer bytes than its range says.
    ShortOnPurpose,
    /// All of the object instead of the range.
    WholeObject,
    /// Another range than was asked for.
    OtherRange,
    /// No HTTP.
    Garbage,
    /// The bytes and the tag of another version, once.
    OtherVersion,
}

/// Those after which a reader must still get the bytes.
pub(super) const PASSING: [Trouble; 12] = [
    Trouble::Status(500),
    Trouble::Status(503),
    Trouble::Status(408),
    Trouble::TooMany,
    Trouble::Reset,
    Trouble::Stall,
    Trouble::Silence,
    Trouble::Short,
    Trouble::ShortOnPurpose,
    Trouble::WholeObject,
    Trouble::OtherRange,
    Trouble::Garbage,
];

/// One object. The tag of the answer follows from version and kind.
#[derive(Clone)]
pub(super) struct Stored {
    pub bytes: Arc<Vec<u8>>,
    pub tag: Option<String>,
    pub modified: Option<&'static str>,
}

/// Decides the fate of a request: its number and path.
type Plan = dyn Fn(u64, &str) -> Option<Trouble> + Send + Sync;

pub(super) struct Server {
    pub address: String,
    shared: Arc<Shared>,
}

struct Shared {
    objects: Mutex<HashMap<String, Stored>>,
    plan: Mutex<Arc<Plan>>,
    /// Whether `If-Match` and `Range` mean anything to it.
    conditional: AtomicBool,
    ranges: AtomicBool,
    /// Whether bodies come in chunks, their length unsaid; `HEAD` says it.
    chunked: AtomicBool,
    requests: AtomicU64,
    bytes: AtomicU64,
    troubles: Mutex<HashMap<Trouble, u64>>,
    ended: AtomicBool,
}

/// Bytes that depend on a seed alone.
pub(super) fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    for (at, word) in bytes.chunks_mut(8).enumerate() {
        let random = xxh3_64(&(seed << 32 | at as u64).to_le_bytes()).to_le_bytes();
        word.copy_from_slice(&random[..word.len()]);
    }
    bytes
}

impl Server {
    pub(super) fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let shared = Arc::new(Shared {
            objects: Mutex::default(),
            plan: Mutex::new(Arc::new(|_, _| None)),
            conditional: AtomicBool::new(true),
            ranges: AtomicBool::new(true),
            chunked: AtomicBool::new(false),
            requests: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            troubles: Mutex::default(),
            ended: AtomicBool::new(false),
        });
        let serving = shared.clone();
        thread::spawn(move || {
            for stream in listener.incoming() {
                if serving.ended.load(Ordering::Relaxed) {
                    return;
                }
                let (serving, Ok(stream)) = (serving.clone(), stream) else { continue };
                // A client that goes away is an everyday matter here.
                thread::spawn(move || drop(serving.serve(stream)));
            }
        });
        Self { address, shared }
    }

    pub(super) fn put(&self, path: &str, tag: &str, bytes: Vec<u8>) {
        let tag = (!tag.is_empty()).then(|| tag.to_owned());
        self.put_as(
            path,
            Stored { bytes: Arc::new(bytes), tag, modified: Some("Sun, 06 Nov 1994 08:49:37 GMT") },
        );
    }

    pub(super) fn put_as(&self, path: &str, stored: Stored) {
        lock(&self.shared.objects).insert(path.to_owned(), stored);
    }

    pub(super) fn remove(&self, path: &str) {
        lock(&self.shared.objects).remove(path);
    }

    pub(super) fn plan(&self, plan: impl Fn(u64, &str) -> Option<Trouble> + Send + Sync + 'static) {
        *lock(&self.shared.plan) = Arc::new(plan);
    }

    /// From now on it knows no `If-Match`, or no `Range`.
    pub(super) fn forget(&self, conditional: bool, ranges: bool) {
        self.shared.conditional.store(conditional, Ordering::Relaxed);
        self.shared.ranges.store(ranges, Ordering::Relaxed);
    }

    /// From now on bodies come in chunks.
    pub(super) fn chunk(&self) {
        self.shared.chunked.store(true, Ordering::Relaxed);
    }

    /// Requests so far, the faulty ones included.
    pub(super) fn requests(&self) -> u64 {
        self.shared.requests.load(Ordering::Relaxed)
    }

    /// Bytes of bodies so far.
    pub(super) fn bytes(&self) -> u64 {
        self.shared.bytes.load(Ordering::Relaxed)
    }

    pub(super) fn troubles(&self) -> HashMap<Trouble, u64> {
        lock(&self.shared.troubles).clone()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::Relaxed);
        // Wakes the one that accepts.
        drop(TcpStream::connect(self.address.trim_start_matches("http://")));
    }
}

impl Shared {
    fn serve(&self, mut stream: TcpStream) -> std::io::Result<()> {
        stream.set_nodelay(true)?;
        let mut reader = BufReader::new(stream.try_clone()?);
        loop {
            let mut lines = Vec::new();
            loop {
                let mut line = String::new();
                if reader.read_line(&mut line)? == 0 {
                    return Ok(());
                }
                let line = line.trim_end().to_owned();
                if line.is_empty() {
                    break;
                }
                lines.push(line);
            }
            if !self.answer(&mut stream, &lines)? {
                return Ok(());
            }
        }
    }

    /// Answers one request. False when the connection is to be closed.
    fn answer(&self, stream: &mut TcpStream, lines: &[String]) -> std::io::Result<bool> {
        let number = self.requests.fetch_add(1, Ordering::Relaxed);
        let mut first = lines[0].split(' ');
        let (method, target) = (first.next().unwrap(), first.next().unwrap());
        let path = target.split('?').next().unwrap().trim_start_matches('/').to_owned();
        let header = |name: &str| {
            lines[1..].iter().find_map(|line| {
                let (key, value) = line.split_once(':')?;
                key.eq_ignore_ascii_case(name).then(|| value.trim().to_owned())
            })
        };
        let plan = lock(&self.plan).clone();
        let trouble = plan(number, &path);
        if let Some(trouble) = trouble {
            *lock(&self.troubles).entry(trouble).or_default() += 1;
        }
        match trouble {
            Some(Trouble::Status(status)) => return refuse(stream, &format!("{status} Trouble"), ""),
            Some(Trouble::TooMany) => return refuse(stream, "429 Too Many Requests", "Retry-After: 0\r\n"),
            Some(Trouble::Silence) => {
                hold(stream);
                return Ok(false);
            }
            Some(Trouble::Garbage) => {
                stream.write_all(b"\x00\x01 220 this is another protocol\r\n\r\n")?;
                return Ok(false);
            }
            _ => {}
        }
        let Some(mut stored) = lock(&self.objects).get(&path).cloned() else {
            return refuse(stream, "404 Not Found", "");
        };
        if trouble == Some(Trouble::OtherVersion) {
            stored.bytes = Arc::new(noise(u64::MAX >> 33, stored.bytes.len()));
            stored.tag = Some("\"other\"".into());
        } else if let (Some(wanted), Some(tag)) = (header("if-match"), &stored.tag)
            && self.conditional.load(Ordering::Relaxed)
            && (wanted != *tag || tag.starts_with("W/"))
        {
            return refuse(stream, "412 Precondition Failed", "");
        }
        let Ok(range) = self.range(header("range"), stored.bytes.len(), trouble) else {
            return refuse(stream, "416 Range Not Satisfiable", "");
        };
        let mut body = &stored.bytes[range.clone().unwrap_or(0..stored.bytes.len())];
        if let (Some(Trouble::ShortOnPurpose), Some(_)) = (trouble, &range) {
            body = &body[..body.len() / 2];
        }
        let chunked = method != "HEAD" && self.chunked.load(Ordering::Relaxed);
        let length = (!chunked).then_some(body.len());
        stream.write_all(head(&stored, range, length).as_bytes())?;
        if method == "HEAD" {
            return Ok(true);
        }
        self.bytes.fetch_add(body.len() as u64, Ordering::Relaxed);
        if chunked { send_chunks(stream, body) } else { send(stream, body, trouble) }
    }

    /// The bytes that are answered with, `None` for all of them. An error when there are none of those asked for.
    fn range(
        &self,
        asked: Option<String>,
        len: usize,
        trouble: Option<Trouble>,
    ) -> Result<Option<Range<usize>>, ()> {
        if !self.ranges.load(Ordering::Relaxed) || trouble == Some(Trouble::WholeObject) {
            return Ok(None);
        }
        let mut range = asked.and_then(|range| {
            let (from, to) = range.strip_prefix("bytes=")?.split_once('-')?;
            Some(from.parse::<usize>().ok()?..to.parse::<usize>().ok()?.saturating_add(1).min(len))
        });
        if range.as_ref().is_some_and(|range| range.start >= len) {
            return Err(());
        }
        if let (Some(Trouble::OtherRange), Some(range)) = (trouble, &mut range) {
            range.end = (range.end - range.len() / 2).max(range.start + 1);
        }
        Ok(range)
    }
}

/// An answer without a body.
fn refuse(stream: &mut TcpStream, status: &str, more: &str) -> std::io::Result<bool> {
    write!(stream, "HTTP/1.1 {status}\r\nContent-Length: 0\r\n{more}\r\n")?;
    Ok(true)
}

/// What comes before a body, whose length may be unsaid.
fn head(stored: &Stored, range: Option<Range<usize>>, length: Option<usize>) -> String {
    let mut head = match range {
        Some(Range { start, end }) => {
            let (last, len) = (end - 1, stored.bytes.len());
            format!("HTTP/1.1 206 Partial Content\r\nContent-Range: bytes {start}-{last}/{len}\r\n")
        }
        None => "HTTP/1.1 200 OK\r\n".to_owned(),
    };
    head += &match length {
        None => "Transfer-Encoding: chunked\r\n".to_owned(),
        Some(length) => format!("Content-Length: {length}\r\n"),
    };
    if let Some(tag) = &stored.tag {
        head += &format!("ETag: {tag}\r\n");
    }
    if let Some(modified) = stored.modified {
        head += &format!("Last-Modified: {modified}\r\n");
    }
    head + "\r\n"
}

fn send_chunks(stream: &mut TcpStream, body: &[u8]) -> std::io::Result<bool> {
    for piece in body.chunks(50_000) {
        write!(stream, "{:x}\r\n", piece.len())?;
        stream.write_all(piece)?;
        stream.write_all(b"\r\n")?;
    }
    stream.write_all(b"0\r\n\r\n")?;
    Ok(true)
}

/// Sends a body, or as much of it as the trouble lets through. False when the connection is to be closed.
fn send(stream: &mut TcpStream, body: &[u8], trouble: Option<Trouble>) -> std::io::Result<bool> {
    let half = &body[..body.len() / 2];
    match trouble {
        Some(Trouble::Reset) => {
            stream.write_all(half)?;
            rustix::net::sockopt::set_socket_linger(&*stream, Some(Duration::ZERO))?;
            Ok(false)
        }
        Some(Trouble::Stall) => {
            stream.write_all(half)?;
            hold(stream);
            Ok(false)
        }
        Some(Trouble::Short) => {
            stream.write_all(half)?;
            Ok(false)
        }
        _ => {
            stream.write_all(body)?;
            Ok(true)
        }
    }
}

/// Keeps a connection open until the other side has had enough.
fn hold(stream: &mut TcpStream) {
    let _ = stream.read(&mut [0]);
}
