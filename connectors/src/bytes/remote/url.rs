//! Addresses of remote data: `s3://bucket/path`, `gs://bucket/path`, `az://container/path`,
//! `http(s)://host/path?query`.
//!
//! In bucket addresses the path is the object's key as it is stored, with nothing encoded; in http addresses it is what
//! a browser would take. A query may be a signature, so it is never shown.

use std::fmt;

use crate::SourceError;

/// What kind of store it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scheme {
    S3,
    Gs,
    Az,
    Http,
    Https,
}

impl Scheme {
    const ALL: [(&str, Self); 5] = [
        ("s3://", Self::S3),
        ("gs://", Self::Gs),
        ("az://", Self::Az),
        ("http://", Self::Http),
        ("https://", Self::Https),
    ];

    /// The scheme of an address and the rest of it. `None` for a local path.
    fn split(text: &str) -> Option<(Self, &str)> {
        Self::ALL.iter().find_map(|(prefix, scheme)| Some((*scheme, text.strip_prefix(prefix)?)))
    }

    /// Whether it is a plain web server, which lists nothing.
    pub(crate) fn is_http(self) -> bool {
        matches!(self, Self::Http | Self::Https)
    }

    fn prefix(self) -> &'static str {
        Self::ALL.iter().find(|(_, scheme)| *scheme == self).expect("every scheme has one").0
    }
}

/// Whether this is an address and not a local path.
pub(crate) fn is_url(text: &str) -> bool {
    Scheme::split(text).is_some()
}

/// A bucket, a container, or a web server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub scheme: Scheme,
    /// The bucket's name, or host and port.
    pub host: String,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.scheme.prefix(), self.host)
    }
}

/// An address taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Address {
    pub place: Place,
    /// Without a slash at the front; one at the end says "everything below".
    pub path: String,
    /// With its `?`; empty where there is none.
    pub query: String,
}

impl Address {
    /// # Errors
    /// [`SourceError`] that shows the address without its secrets.
    pub(crate) fn parse(text: &str) -> Result<Self, SourceError> {
        let Some((scheme, rest)) = Scheme::split(text) else {
            return Err(SourceError::config(format!(
                "{text} is not an address (s3://, gs://, az://, http://, https://)"
            )));
        };
        let (rest, query) = match rest.find('?') {
            Some(at) if scheme.is_http() => rest.split_at(at),
            _ => (rest, ""),
        };
        let rest = if scheme.is_http() { rest.split('#').next().unwrap_or_default() } else { rest };
        let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
        if let Some((_, host)) = host.rsplit_once('@') {
            return Err(SourceError::config(format!(
                "{}{host}/{path}: a name or password in the address is not supported (it would end up in logs); use an \
                 address that is signed in its query, or a store with credentials in the environment",
                scheme.prefix()
            )));
        }
        let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.:[]".contains(&b);
        if host.is_empty() || !host.bytes().all(plain) {
            let what = if scheme.is_http() { "host" } else { "bucket" };
            return Err(SourceError::config(format!(
                "{}{host}/{path} names no {what}; write {}{what}/path",
                scheme.prefix(),
                scheme.prefix()
            )));
        }
        let place = Place { scheme, host: host.to_owned() };
        Ok(Self { place, path: path.trim_start_matches('/').to_owned(), query: query.to_owned() })
    }
}

/// An address as it may be shown: without its query, which may be a signature, and without a name and password.
pub(crate) fn shown(text: &str) -> String {
    let Some((scheme, rest)) = Scheme::split(text) else { return text.to_owned() };
    if !scheme.is_http() {
        return text.to_owned();
    }
    let rest = rest.split('?').next().unwrap_or_default();
    let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
    let host = host.rsplit_once('@').map_or(host, |(_, host)| host);
    format!("{}{host}/{path}", scheme.prefix())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_address_is_taken_apart_and_shown_without_secrets() {
        let parse = |text| Address::parse(text).unwrap();
        let s3 = parse("s3://bucket/a b/x?.tar");
        assert_eq!(
            (s3.place.to_string(), s3.path, s3.query),
            ("s3://bucket".into(), "a b/x?.tar".into(), String::new())
        );
        let http = parse("https://host:8443/a/x.tar?X-Amz-Signature=secret#part");
        assert_eq!((http.place.to_string().as_str(), http.path.as_str()), ("https://host:8443", "a/x.tar"));
        assert!(http.query.starts_with("?X-Amz"));
        assert_eq!(shown("https://me:secret@host/x?sig=secret"), "https://host/x");
        assert_eq!(shown("s3://bucket/x?.tar"), "s3://bucket/x?.tar");
        assert_eq!(parse("gs://bucket").path, "");
        for (wrong, part) in [
            ("https://me:secret@host/x", "password in the address"),
            ("s3:///x", "names no bucket"),
            ("http:///x", "names no host"),
            ("s3://bu cket/x", "names no bucket"),
        ] {
            let error = Address::parse(wrong).unwrap_err();
            assert!(error.is_config() && error.to_string().contains(part), "{error}");
            assert!(!error.to_string().contains("secret"), "{error}");
        }
        assert!(is_url("az://c/x") && !is_url("/s3://x") && !is_url("ftp://x"));
    }

    proptest! {
        #[test]
        fn no_text_is_a_panic(text in "(s3|https?|gs)://.{0,40}") {
            let _ = (Address::parse(&text), shown(&text));
        }
    }
}
