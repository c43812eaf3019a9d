//! Which objects there are: those named outright, those that match `*` and `?` in the last part, those below a path.

use futures_util::stream::{self, StreamExt, TryStreamExt};
use object_store::path::Path;
use object_store::{GetOptions, GetRange, ObjectMeta};
use tokio::time::timeout;

use super::client::{Client, Silence, Verdict, verdict};
use super::fetch::Attempts;
use super::url::Address;
use super::{Remote, Version, shown};
use crate::bytes::shards::{ends_with, matches};
use crate::error::Fault;
use crate::opening::{Counted, Step};
use crate::{ReadErrorKind, SourceError};

/// Requests about single objects at a time.
const HEADS: usize = 16;

/// Fewer attempts than for reads: whoever opens a source sits in front of it.
const ATTEMPTS: u32 = 5;

/// More objects than this below one path are an address that went wrong.
const MOST_OBJECTS: u64 = 64 << 20;

/// An object as it was found.
#[derive(Clone, Debug)]
pub(crate) struct Listed {
    pub path: String,
    /// Of an http address.
    pub query: String,
    pub size: u64,
    pub version: Version,
}

impl Listed {
    fn of(meta: ObjectMeta) -> Self {
        let version = Version::of(&meta);
        Self { path: meta.location.into(), query: String::new(), size: meta.size, version }
    }
}

impl Remote {
    /// The objects that addresses of this place stand for, in their order. `endings` choose those of a path that ends
    /// in
    /// `/` or turns out to be no object; an object named outright may be called anything.
    ///
    /// # Errors
    /// [`SourceError`] that names the address.
    pub(crate) fn find(&self, addresses: &[Address], endings: &[&str]) -> Result<Vec<Listed>, SourceError> {
        let step = &Step::begin("looking at objects", Counted::Objects, Some(addresses.len() as u64));
        let find_one = |address| async move {
            let found = self.find_one(address, endings).await;
            step.add(1);
            found
        };
        let found =
            self.wait(stream::iter(addresses).map(find_one).buffered(HEADS).try_collect::<Vec<_>>())?;
        Ok(found.into_iter().flatten().collect())
    }

    async fn find_one(&self, address: &Address, endings: &[&str]) -> Result<Vec<Listed>, Fault> {
        let path = &address.path;
        let (folder, name) = path.rsplit_once('/').unwrap_or(("", path));
        let refuse = |why: &str| Err(Fault::io(format!("{}: {why}", self.display(path)), false));
        if self.place.scheme.is_http() && (name.is_empty() || name.contains('*')) {
            return refuse(
                "a web server does not list its files; name each, with braces for many of them (x-{000..127}.tar)",
            );
        }
        let kinds = endings.join(", ");
        if name.contains(['*', '?']) && !self.place.scheme.is_http() {
            let mut found = self.list_folder(folder).await?;
            found.retain(|object| {
                let last = object.path.rsplit('/').next().unwrap_or_default();
                !last.starts_with('.') && matches(name.as_bytes(), last.as_bytes())
            });
            if found.is_empty() {
                return refuse("no object there matches");
            }
            found.sort_unstable_by(|a, b| a.path.cmp(&b.path));
            return Ok(found);
        }
        if !name.is_empty() {
            match self.head(path, &address.query).await {
                Err(fault) if fault.kind == ReadErrorKind::Gone && !self.place.scheme.is_http() => {}
                other => return Ok(vec![other?]),
            }
        }
        let below = path.trim_end_matches('/');
        let skip = if below.is_empty() { 0 } else { below.len() + 1 };
        let mut found = self
            .list(below, |meta| {
                let relative = meta.location.as_ref().get(skip..).unwrap_or_default();
                let hidden = relative.split('/').any(|part| part.starts_with('.'));
                (!hidden && ends_with(relative, endings)).then(|| Listed::of(meta))
            })
            .await?;
        if found.is_empty() {
            return refuse(&if name.is_empty() {
                format!("no object below it has one of the endings {kinds}")
            } else {
                format!("there is no such object, and none below it with one of the endings {kinds}")
            });
        }
        found.sort_unstable_by(|a, b| a.path.cmp(&b.path));
        Ok(found)
    }

    /// Size and version of one object.
    pub(super) async fn head(&self, path: &str, query: &str) -> Result<Listed, Fault> {
        let mut attempts = Attempts::new(self).at_most(ATTEMPTS);
        // An address signed for reading often permits nothing else.
        let mut by_reading = false;
        loop {
            let asked = async {
                let (store, place) = self.client.object(path, query)?;
                let options = match by_reading {
                    true => GetOptions { range: Some(GetRange::Bounded(0..1)), ..GetOptions::default() },
                    false => GetOptions { head: true, ..GetOptions::default() },
                };
                Ok(store.get_opts(&place, options).await?.meta)
            };
            match asked.await.map_err(|error| verdict(&error)) {
                Ok(meta) => {
                    let found = Listed { path: path.to_owned(), query: query.to_owned(), ..Listed::of(meta) };
                    if found.version == Version::Text(String::new()) {
                        tracing::warn!(
                            "{}: the server sends neither ETag nor Last-Modified, so a change during the run \
                             goes unnoticed, and later runs cannot use a cached copy",
                            self.display(path)
                        );
                    }
                    return Ok(found);
                }
                Err(Verdict::Again(text, wait)) => attempts.next(path, text, wait).await?,
                Err(Verdict::Denied(_) | Verdict::Never(_)) if !by_reading && self.place.scheme.is_http() => {
                    by_reading = true;
                }
                Err(other) => return Err(self.fault(path, other)),
            }
        }
    }

    /// What `keep` makes of every object below a path, in the order in which the store lists them.
    pub(crate) async fn list<T>(
        &self,
        below: &str,
        mut keep: impl FnMut(ObjectMeta) -> Option<T>,
    ) -> Result<Vec<T>, Fault> {
        let Client::Store(store) = &self.client else {
            return Err(self.fault(below, Verdict::Never("a web server does not list its files".into())));
        };
        let prefix = Path::parse(below).map_err(|error| self.fault(below, verdict(&error.into())))?;
        let mut attempts = Attempts::new(self).at_most(ATTEMPTS);
        let step = Step::begin("listing objects", Counted::Objects, None);
        let (mut kept, mut last, mut seen, mut sorted) = (Vec::new(), Path::default(), 0u64, true);
        loop {
            let mut objects = match seen {
                0 => store.list(Some(&prefix)),
                // The pages before are not asked for again.
                _ => store.list_with_offset(Some(&prefix), &last),
            };
            let trouble = loop {
                match timeout(self.patience.silence * 2, objects.next()).await {
                    Err(_) => break Verdict::Again(Silence(self.patience.silence * 2).to_string(), None),
                    Ok(None) => return Ok(kept),
                    Ok(Some(Err(error))) => break verdict(&error),
                    Ok(Some(Ok(meta))) => {
                        sorted &= last.as_ref() < meta.location.as_ref();
                        (last, seen) = (meta.location.clone(), seen + 1);
                        step.reached(seen);
                        if seen > MOST_OBJECTS {
                            let text = format!("there are more than {MOST_OBJECTS} objects below it");
                            return Err(self.fault(below, Verdict::Never(text)));
                        }
                        attempts.progress();
                        kept.extend(keep(meta));
                    }
                }
            };
            let Verdict::Again(text, wait) = trouble else { return Err(self.fault(below, trouble)) };
            if !sorted {
                // Going on from the last name would leave out others.
                (kept, last, seen, sorted) = (Vec::new(), Path::default(), 0, true);
            }
            attempts.next(below, text, wait).await?;
        }
    }

    /// The objects directly in a folder.
    async fn list_folder(&self, folder: &str) -> Result<Vec<Listed>, Fault> {
        let Client::Store(store) = &self.client else {
            return Err(self.fault(folder, Verdict::Never("a web server does not list its files".into())));
        };
        let prefix = Path::parse(folder).map_err(|error| self.fault(folder, verdict(&error.into())))?;
        let mut attempts = Attempts::new(self).at_most(ATTEMPTS);
        loop {
            match store.list_with_delimiter(Some(&prefix)).await.map_err(|error| verdict(&error)) {
                Ok(list) => return Ok(list.objects.into_iter().map(Listed::of).collect()),
                Err(Verdict::Again(text, wait)) => attempts.next(folder, text, wait).await?,
                Err(other) => return Err(self.fault(folder, other)),
            }
        }
    }
}

/// The addresses that patterns write out.
///
/// # Errors
/// [`SourceError`] for a brace that does not close, an address without a host, or addresses of several places: one
/// source reads from one.
pub(crate) fn addresses(patterns: &[String]) -> Result<Vec<Address>, SourceError> {
    let mut addresses: Vec<Address> = Vec::new();
    for pattern in patterns {
        if !super::is_url(pattern) {
            return Err(SourceError::config(format!(
                "{pattern} is a local path and {} is not; a source reads from one place, so copy the files to one",
                shown(patterns.iter().find(|other| super::is_url(other)).map_or("", String::as_str))
            )));
        }
        // What is in the query is no pattern.
        let (path, query) = match pattern.find('?') {
            Some(at) if pattern.starts_with("http") => pattern.split_at(at),
            _ => (pattern.as_str(), ""),
        };
        for text in crate::bytes::shards::expand_braces(path)? {
            let address = Address::parse(&format!("{text}{query}"))?;
            if let Some(first) = addresses.first().filter(|first| first.place != address.place) {
                return Err(SourceError::config(format!(
                    "{} and {} are two places; a source reads from one bucket or server",
                    first.place, address.place
                )));
            }
            addresses.push(address);
        }
    }
    Ok(addresses)
}
