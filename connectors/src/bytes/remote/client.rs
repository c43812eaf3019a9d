//! Connections to stores, made from the process's environment, and what their failures mean.
//!
//! Credentials are never in a configuration, a log or an error: they come from the environment variables that the
//! stores' own tools read, and of a failed request only the status and the store's own code and message are shown.

use std::error::Error;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::azure::{AzureConfigKey, MicrosoftAzureBuilder};
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse, HttpService,
    ReqwestConnector,
};
use object_store::gcp::{GoogleCloudStorageBuilder, GoogleConfigKey};
use object_store::http::HttpBuilder;
use object_store::path::Path;
use object_store::{BackoffConfig, ClientConfigKey, ClientOptions, ObjectStore, RetryConfig};

use super::url::{Place, Scheme};
use crate::SourceError;

/// How long a server may be silent and how often a request is made again.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Patience {
    /// Until a connection stands.
    pub connect: Duration,
    /// Until an answer begins, and between two pieces of one.
    pub silence: Duration,
    /// Before the second attempt; doubled for each further one.
    pub first_wait: Duration,
    /// The longest wait between attempts, also when the server asks for more.
    pub longest_wait: Duration,
    /// Attempts without a byte of progress.
    pub attempts: u32,
}

impl Patience {
    /// For reads while training: about a minute and a half of errors, then the run stops.
    pub(crate) const READ: Self = Self {
        connect: Duration::from_secs(10),
        silence: Duration::from_secs(20),
        first_wait: Duration::from_millis(200),
        longest_wait: Duration::from_secs(20),
        attempts: 11,
    };

    /// The wait before the next attempt, after `failures` of them. A part is random, so that many readers do not come
    /// back at the same moment.
    pub(super) fn wait(&self, failures: u32, asked: Option<Duration>) -> Duration {
        use std::hash::{BuildHasher, Hasher};
        let random = std::hash::RandomState::new().build_hasher().finish() as f64 / u64::MAX as f64;
        let wait =
            self.first_wait.saturating_mul(1 << failures.saturating_sub(1).min(16)).min(self.longest_wait);
        let wait = wait.mul_f64(0.5 + random / 2.0);
        // What a server asks for is a promise that earlier attempts are in vain.
        wait.max(asked.unwrap_or_default().min(self.longest_wait.max(Duration::from_secs(60))))
    }
}

/// The store at a place, whatever its kind.
#[derive(Debug)]
pub(crate) enum Client {
    Store(Arc<dyn ObjectStore>),
    /// Web servers: each address is a store with one object, over the same connections.
    Web {
        base: String,
        shared: Shared,
    },
}

impl Client {
    /// # Errors
    /// [`SourceError`] when what the environment says makes no sense.
    pub(crate) fn connect(place: &Place, patience: Patience) -> Result<Self, SourceError> {
        let failed = |error: object_store::Error| {
            SourceError::config(format!("{place} cannot be used: {}", cause(&error)))
        };
        // Chosen at compile time for the requests' signatures, at run time for TLS. An error says that one is there
        // already.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let connector = Watching { patience, is_web: place.scheme.is_http() };
        let timeouts = [
            // A request as a whole may take as long as bytes come; `Watch` and the reader mind the silences.
            (ClientConfigKey::Timeout, "1 day".to_owned()),
            (ClientConfigKey::ConnectTimeout, format!("{} ms", patience.connect.as_millis())),
        ];
        Ok(Self::Store(match place.scheme {
            Scheme::S3 => {
                let mut builder =
                    AmazonS3Builder::from_env().with_bucket_name(&place.host).with_retry(no_retries());
                for (key, value) in timeouts {
                    builder = builder.with_config(AmazonS3ConfigKey::Client(key), value);
                }
                let endpoint = s3_endpoint(&builder);
                if endpoint.is_some_and(|endpoint| endpoint.starts_with("http://")) {
                    builder = builder.with_allow_http(true);
                }
                let known = [
                    "AWS_ACCESS_KEY_ID",
                    "AWS_SECRET_ACCESS_KEY",
                    "AWS_WEB_IDENTITY_TOKEN_FILE",
                    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
                    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
                    "AWS_METADATA_ENDPOINT",
                    "AWS_SKIP_SIGNATURE",
                ];
                if unsigned(place, &known, "Amazon") {
                    builder = builder.with_skip_signature(true);
                }
                Arc::new(builder.with_http_connector(connector).build().map_err(failed)?)
            }
            Scheme::Gs => {
                let mut builder = GoogleCloudStorageBuilder::from_env()
                    .with_bucket_name(&place.host)
                    .with_retry(no_retries());
                for (key, value) in timeouts {
                    builder = builder.with_config(GoogleConfigKey::Client(key), value);
                }
                let base = builder.get_config_value(&GoogleConfigKey::BaseUrl);
                if base.is_some_and(|base| base.starts_with("http://")) {
                    builder =
                        builder.with_config(GoogleConfigKey::Client(ClientConfigKey::AllowHttp), "true");
                }
                let known = [
                    "SERVICE_ACCOUNT",
                    "GOOGLE_SERVICE_ACCOUNT",
                    "GOOGLE_SERVICE_ACCOUNT_PATH",
                    "GOOGLE_SERVICE_ACCOUNT_KEY",
                    "GOOGLE_APPLICATION_CREDENTIALS",
                    "GOOGLE_BEARER_TOKEN",
                    "GOOGLE_SKIP_SIGNATURE",
                ];
                let login = std::env::var_os("HOME").is_some_and(|home| {
                    let file = ".config/gcloud/application_default_credentials.json";
                    std::path::Path::new(&home).join(file).exists()
                });
                if !login && unsigned(place, &known, "Google") {
                    builder = builder.with_skip_signature(true);
                }
                Arc::new(builder.with_http_connector(connector).build().map_err(failed)?)
            }
            Scheme::Az => {
                let mut builder = MicrosoftAzureBuilder::from_env()
                    .with_container_name(&place.host)
                    .with_retry(no_retries());
                for (key, value) in timeouts {
                    builder = builder.with_config(AzureConfigKey::Client(key), value);
                }
                let endpoint = builder.get_config_value(&AzureConfigKey::Endpoint);
                if endpoint.is_some_and(|endpoint| endpoint.starts_with("http://")) {
                    builder = builder.with_allow_http(true);
                }
                let known = [
                    "AZURE_STORAGE_ACCOUNT_KEY",
                    "AZURE_STORAGE_ACCESS_KEY",
                    "AZURE_STORAGE_SAS_KEY",
                    "AZURE_STORAGE_SAS_TOKEN",
                    "AZURE_STORAGE_CLIENT_ID",
                    "AZURE_CLIENT_ID",
                    "AZURE_STORAGE_TOKEN",
                    "AZURE_FEDERATED_TOKEN_FILE",
                    "AZURE_STORAGE_USE_EMULATOR",
                    "AZURE_USE_AZURE_CLI",
                    "AZURE_SKIP_SIGNATURE",
                    "IDENTITY_ENDPOINT",
                ];
                if unsigned(place, &known, "Microsoft") {
                    builder = builder.with_skip_signature(true);
                }
                Arc::new(builder.with_http_connector(connector).build().map_err(failed)?)
            }
            Scheme::Http | Scheme::Https => {
                let mut options = ClientOptions::new().with_allow_http(true);
                for (key, value) in timeouts {
                    options = options.with_config(key, value);
                }
                let shared = Shared(connector.connect(&options).map_err(failed)?);
                return Ok(Self::Web { base: place.to_string(), shared });
            }
        }))
    }

    /// The store that has an object, and its name there.
    ///
    /// # Errors
    /// The store's, for a name that it cannot have.
    pub(super) fn object(
        &self,
        path: &str,
        query: &str,
    ) -> object_store::Result<(Arc<dyn ObjectStore>, Path)> {
        match self {
            Self::Store(store) => Ok((store.clone(), Path::parse(path)?)),
            Self::Web { base, shared } => {
                let store = HttpBuilder::new()
                    .with_url(format!("{base}/{path}{query}"))
                    .with_retry(no_retries())
                    .with_http_connector(shared.clone())
                    .build()?;
                Ok((Arc::new(store), Path::default()))
            }
        }
    }
}

/// What tells apart two stores whose buckets have the same name.
pub(crate) fn endpoint(place: &Place) -> String {
    let found = match place.scheme {
        Scheme::S3 => s3_endpoint(&AmazonS3Builder::from_env()),
        Scheme::Gs => GoogleCloudStorageBuilder::from_env().get_config_value(&GoogleConfigKey::BaseUrl),
        Scheme::Az => {
            let builder = MicrosoftAzureBuilder::from_env();
            let part = |key| builder.get_config_value(&key).unwrap_or_default();
            Some(format!("{} {}", part(AzureConfigKey::AccountName), part(AzureConfigKey::Endpoint)))
        }
        Scheme::Http | Scheme::Https => None,
    };
    found.unwrap_or_default()
}

fn s3_endpoint(builder: &AmazonS3Builder) -> Option<String> {
    builder
        .get_config_value(&AmazonS3ConfigKey::S3Endpoint)
        .or_else(|| builder.get_config_value(&AmazonS3ConfigKey::Endpoint))
}

/// Requests are repeated here, where a half-read body and a server's wish to be left alone are known, and not below.
fn no_retries() -> RetryConfig {
    RetryConfig { backoff: BackoffConfig::default(), max_retries: 0, retry_timeout: Duration::ZERO }
}

/// Whether requests go without a signature: when the environment has no credentials and this is no machine of the
/// store's own cloud, which would give some to whoever asks. Asking anywhere else is a wait for nobody.
fn unsigned(place: &Place, variables: &[&str], vendor: &str) -> bool {
    let vendor_here = ["sys_vendor", "product_name", "board_vendor"].iter().any(|file| {
        std::fs::read_to_string(format!("/sys/class/dmi/id/{file}")).is_ok_and(|text| text.contains(vendor))
    });
    let unsigned = !vendor_here && variables.iter().all(|name| std::env::var_os(name).is_none());
    if unsigned {
        tracing::info!("{place}: the environment has no credentials, so requests are not signed");
    }
    unsigned
}

/// Makes clients that watch.
#[derive(Debug)]
struct Watching {
    patience: Patience,
    is_web: bool,
}

impl HttpConnector for Watching {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        let inner = ReqwestConnector::default().connect(options)?;
        Ok(HttpClient::new(Watch { inner, patience: self.patience, is_web: self.is_web }))
    }
}

/// The connections of a web server, for each of its addresses.
#[derive(Clone, Debug)]
pub(crate) struct Shared(HttpClient);

impl HttpConnector for Shared {
    fn connect(&self, _: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(self.0.clone())
    }
}

/// Bytes of a refusal that are looked at for its reason.
const REASON_BYTES: usize = 16 << 10;

/// A client that does not wait for ever and keeps what a refusal says.
#[derive(Debug)]
struct Watch {
    inner: HttpClient,
    patience: Patience,
    /// A plain web server may answer in chunks, without saying how long the answer is.
    is_web: bool,
}

impl HttpService for Watch {
    // What `#[async_trait]`, which the trait is written with, expands to: one macro crate less.
    fn call<'life, 'out>(
        &'life self,
        request: HttpRequest,
    ) -> BoxFuture<'out, Result<HttpResponse, HttpError>>
    where
        'life: 'out,
        Self: 'out,
    {
        Box::pin(async move {
            // Services that hand out credentials on the machine itself answer in a language of their own.
            let link_local = request.uri().host().is_some_and(|host| host.starts_with("169.254."));
            let answer = tokio::time::timeout(self.patience.silence, self.inner.execute(request)).await;
            let response = answer
                .map_err(|_| HttpError::new(HttpErrorKind::Timeout, Silence(self.patience.silence)))??;
            if response.status().is_success() && self.is_web && !has_length(&response) {
                return measured(response, self.patience.silence).await;
            }
            if response.status().is_success() || link_local {
                return Ok(response);
            }
            let status = response.status().as_u16();
            let header = |name| response.headers().get(name).and_then(|value| value.to_str().ok());
            // A date instead of seconds is rare; the usual wait does for it.
            let wait =
                header("retry-after").and_then(|text| text.trim().parse().ok()).map(Duration::from_secs);
            let region = header("x-amz-bucket-region").map(str::to_owned);
            let reason =
                tokio::time::timeout(self.patience.silence, reason_of(response)).await.unwrap_or_default();
            let refusal = Refusal { status, reason, wait, region };
            Err(HttpError::new(HttpErrorKind::Unknown, refusal))
        })
    }
}

fn has_length(response: &HttpResponse) -> bool {
    response.headers().contains_key("content-length")
}

/// An answer in chunks with its length written to it: that of its range, or that of a short body, which is taken in
/// whole. Longer files are read by ranges.
async fn measured(response: HttpResponse, silence: Duration) -> Result<HttpResponse, HttpError> {
    use futures_util::StreamExt;
    let (mut head, body) = response.into_parts();
    let of_range = || {
        let text = head.headers.get("content-range")?.to_str().ok()?;
        let (first, last) = text.strip_prefix("bytes ")?.split('/').next()?.split_once('-')?;
        last.trim().parse::<u64>().ok()?.checked_sub(first.trim().parse::<u64>().ok()?)?.checked_add(1)
    };
    if let Some(len) = of_range() {
        head.headers.insert("content-length", len.into());
        return Ok(HttpResponse::from_parts(head, body));
    }
    let mut bytes = Vec::new();
    let mut stream = body.bytes_stream();
    loop {
        let next = tokio::time::timeout(silence, stream.next()).await;
        match next.map_err(|_| HttpError::new(HttpErrorKind::Timeout, Silence(silence)))? {
            None if bytes.is_empty() => return Err(HttpError::new(HttpErrorKind::Unknown, NoLength)),
            None => break,
            Some(piece) => bytes.extend_from_slice(&piece?),
        }
        if bytes.len() as u64 > super::BLOCK {
            return Err(HttpError::new(HttpErrorKind::Unknown, NoLength));
        }
    }
    head.headers.insert("content-length", (bytes.len() as u64).into());
    Ok(HttpResponse::from_parts(head, bytes.into()))
}

/// An answer of unknown length that is more than a short file, or none.
#[derive(Debug, thiserror::Error)]
#[error(
    "the server neither reports the file's length nor answers range requests; use a server that does (nginx, \
     S3), or copy the file here"
)]
struct NoLength;

/// No byte for this long.
#[derive(Debug, thiserror::Error)]
#[error("no answer within {:.1} s", .0.as_secs_f64())]
pub(super) struct Silence(pub Duration);

/// An answer that is no data.
#[derive(Clone, Debug)]
pub(super) struct Refusal {
    status: u16,
    reason: String,
    wait: Option<Duration>,
    region: Option<String>,
}

impl Error for Refusal {}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "status {}", self.status)?;
        if !self.reason.is_empty() {
            write!(f, " ({})", self.reason)?;
        }
        match &self.region {
            Some(region) if (300..500).contains(&self.status) => {
                write!(f, ", the bucket is in region {region}")
            }
            _ => Ok(()),
        }
    }
}

/// The code and message of a store's XML; nothing else of a body is fit to be shown.
async fn reason_of(response: HttpResponse) -> String {
    use futures_util::StreamExt;
    let mut body = Vec::new();
    let mut stream = response.into_body().bytes_stream();
    while let Some(Ok(bytes)) = stream.next().await {
        body.extend_from_slice(&bytes[..bytes.len().min(REASON_BYTES - body.len())]);
        if body.len() == REASON_BYTES {
            break;
        }
    }
    let body = String::from_utf8_lossy(&body);
    let part = |name: &str| {
        let begin = body.find(&format!("<{name}>"))? + name.len() + 2;
        let end = begin + body[begin..].find(&format!("</{name}>"))?;
        let text: String = body[begin..end].chars().filter(|c| !c.is_control()).take(200).collect();
        (!text.is_empty()).then_some(text)
    };
    [part("Code"), part("Message")].into_iter().flatten().collect::<Vec<_>>().join(": ")
}

/// What a failed request means for whoever made it.
#[derive(Debug)]
pub(super) enum Verdict {
    /// The object is not there; the text says what the store says about it.
    Gone(String),
    /// It has another version, or is shorter than it was.
    Changed,
    /// Credentials; the text says which.
    Denied(String),
    /// The server does not do ranges, or not this one.
    NoRange,
    /// Worth another attempt, after a wait that the server asked for.
    Again(String, Option<Duration>),
    /// The same answer would come again.
    Never(String),
}

/// Reads a failure.
pub(super) fn verdict(error: &object_store::Error) -> Verdict {
    use object_store::Error as E;
    if let Some(refusal) = find::<Refusal>(error) {
        let text = refusal.to_string();
        return match refusal.status {
            401 | 403 => Verdict::Denied(text),
            404 | 410 => Verdict::Gone(text),
            304 | 412 | 416 => Verdict::Changed,
            408 | 425 | 429 | 500..=599 => Verdict::Again(text, refusal.wait),
            _ => Verdict::Never(text),
        };
    }
    if find::<NoLength>(error).is_some() {
        return Verdict::Never(NoLength.to_string());
    }
    match error {
        E::NotFound { .. } => Verdict::Gone("not found".into()),
        E::Precondition { .. } | E::NotModified { .. } => Verdict::Changed,
        E::NotSupported { .. } => Verdict::NoRange,
        E::InvalidPath { .. } | E::NotImplemented { .. } | E::UnknownConfigurationKey { .. } => {
            Verdict::Never(cause(error))
        }
        _ => Verdict::Again(cause(error), None),
    }
}

/// An error of a certain type among the causes.
fn find<'a, T: Error + 'static>(error: &'a (dyn Error + 'static)) -> Option<&'a T> {
    let mut at = Some(error);
    while let Some(error) = at {
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        at = error.source();
    }
    None
}

/// The innermost cause. The outer ones repeat the address, which may be signed.
pub(super) fn cause(error: &(dyn Error + 'static)) -> String {
    let mut at = error;
    while let Some(source) = at.source() {
        at = source;
    }
    let text: String = at.to_string().chars().filter(|c| !c.is_control()).take(300).collect();
    text
}

/// What to do about refused credentials.
pub(super) fn advice(scheme: Scheme) -> &'static str {
    match scheme {
        Scheme::S3 => {
            "credentials come from the environment: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN, AWS_REGION, \
             AWS_ENDPOINT_URL (profiles in ~/.aws are not read: eval \"$(aws configure export-credentials --format env)\"); \
             for a public bucket set AWS_SKIP_SIGNATURE=true; S3 also says 403 for an object that does not exist when the \
             bucket may not be listed"
        }
        Scheme::Gs => {
            "credentials come from the environment: GOOGLE_APPLICATION_CREDENTIALS or GOOGLE_SERVICE_ACCOUNT names a key file; \
             for a public bucket set GOOGLE_SKIP_SIGNATURE=true"
        }
        Scheme::Az => {
            "credentials come from the environment: AZURE_STORAGE_ACCOUNT_NAME with AZURE_STORAGE_ACCOUNT_KEY or \
             AZURE_STORAGE_SAS_TOKEN; for a public container set AZURE_SKIP_SIGNATURE=true"
        }
        Scheme::Http | Scheme::Https => {
            "the server wants credentials, or the signature in the address has expired; get a fresh address"
        }
    }
}
