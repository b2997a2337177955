//! Sends one HTTP request to a hub. Follows redirections by rules of its own, sends the token to the hub only, and
//! turns a status into a decision: continue, retry, or fail. The caller does the retries.

use std::io::Read;
use std::sync::Arc;
use std::time::Duration;

use http::header::{AUTHORIZATION, CONTENT_RANGE, ETAG, HeaderMap, IF_RANGE, LOCATION, RANGE, RETRY_AFTER};
use http::{StatusCode, Uri};
use ureq::tls::{RootCerts, TlsConfig, TlsProvider};

use super::proxy::Proxies;
use super::{HubError, Token, TransferLimits};

/// Maximum number of redirections in a row. The hub needs two.
const MAX_REDIRECTS: usize = 5;

/// The hub's address.
#[derive(Clone, Debug)]
pub(super) struct Endpoint {
    base: String,
    origin: Origin,
}

impl Endpoint {
    /// Parses an `http://` or `https://` address without a query.
    pub(super) fn parse(text: &str) -> Result<Self, HubError> {
        let base = text.trim_end_matches('/');
        let uri = base.parse::<Uri>().ok().filter(|uri| uri.query().is_none());
        let origin = uri.as_ref().and_then(Origin::of).ok_or_else(|| HubError::Invalid {
            what: "endpoint",
            expected: "an http:// or https:// address".to_owned(),
            found: text.to_owned(),
        })?;
        Ok(Self { base: base.to_owned(), origin })
    }

    /// The address of `path` on the hub.
    pub(super) fn url(&self, path: &str) -> String {
        format!("{}/{path}", self.base)
    }

    /// The address without its scheme: the name of the hub's subfolder in the cache.
    pub(super) fn name(&self) -> &str {
        self.base.split_once("://").map_or("", |(_, name)| name)
    }
}

/// Scheme, host and port of an address. A token is sent to one origin only.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Origin {
    https: bool,
    host: String,
    port: u16,
}

impl Origin {
    /// The origin of `uri`; `None` unless it is an `http(s)` address with a host and without a user name.
    fn of(uri: &Uri) -> Option<Self> {
        let https = match uri.scheme_str()? {
            "https" => true,
            "http" => false,
            _ => return None,
        };
        // A user name and password in an address would end up in logs and caches.
        let authority = uri.authority().filter(|a| !a.as_str().contains('@'))?;
        let port = authority.port_u16().unwrap_or(if https { 443 } else { 80 });
        let host = authority.host().to_ascii_lowercase();
        (!host.is_empty()).then_some(Self { https, host, port })
    }
}

/// The failure of a request.
#[derive(Debug)]
pub(super) enum RequestFailure {
    /// A retry would not help.
    Final(HubError),
    /// A retry may help.
    Retry {
        /// The cause.
        reason: String,
        /// The wait that the hub requests.
        wait: Option<Duration>,
    },
}

impl From<HubError> for RequestFailure {
    fn from(error: HubError) -> Self {
        Self::Final(error)
    }
}

/// The point from which a download continues.
#[derive(Clone, Debug)]
pub(super) struct ResumePoint {
    /// Number of bytes that have arrived.
    pub(super) from: u64,
    /// The version of the file that they are from, where it is known.
    pub(super) etag: Option<String>,
}

/// A response whose body has not been read.
pub(super) struct HubResponse {
    /// 200, 206, or 416 to a request that resumes.
    pub(super) status: StatusCode,
    /// Headers of the last response.
    pub(super) headers: HeaderMap,
    /// Headers of the endpoint's own response, which may have been a redirection.
    pub(super) hub_headers: HeaderMap,
    /// The body. Reading fails if no bytes arrive for [`TransferLimits::stall_timeout`].
    pub(super) body: Box<dyn Read>,
}

impl HubResponse {
    /// The first byte and the total in `Content-Range`.
    pub(super) fn range(&self) -> Option<(u64, Option<u64>)> {
        let text = self.headers.get(CONTENT_RANGE)?.to_str().ok()?;
        let (span, total) = text.strip_prefix("bytes ")?.split_once('/')?;
        let (first, _) = span.split_once('-')?;
        Some((first.parse().ok()?, total.parse().ok()))
    }

    /// The file's version for `If-Range`, which must be a strong one.
    pub(super) fn etag(&self) -> Option<String> {
        let text = self.headers.get(ETAG)?.to_str().ok()?;
        text.starts_with('"').then(|| text.to_owned())
    }
}

/// An HTTP client of one hub and of the hosts that it redirects to.
#[derive(Debug)]
pub(super) struct HubClient {
    agent: ureq::Agent,
    endpoint: Endpoint,
    token: Option<Token>,
    proxies: Proxies,
}

impl HubClient {
    /// Prepares the client; sends nothing.
    pub(super) fn new(
        endpoint: Endpoint,
        token: Option<Token>,
        proxies: Proxies,
        limits: &TransferLimits,
    ) -> Result<Self, HubError> {
        // The system's certificates, which include a company's own root. The provider is named because the process
        // has no default provider.
        let tls = TlsConfig::builder()
            .provider(TlsProvider::Rustls)
            .root_certs(RootCerts::PlatformVerifier)
            .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .build();
        let config = ureq::Agent::config_builder()
            .tls_config(tls)
            .user_agent(concat!("ghostserve/", env!("CARGO_PKG_VERSION")))
            // A compressed body would not have the length and the ranges that are requested.
            .accept_encoding("identity")
            .http_status_as_error(false)
            .max_redirects(0)
            // Without this, ureq reads the environment. The proxy is chosen for each address.
            .proxy(None)
            .timeout_connect(Some(limits.connect_timeout))
            .timeout_recv_response(Some(limits.stall_timeout))
            .timeout_per_read(Some(limits.stall_timeout))
            .timeout_per_write(Some(limits.stall_timeout))
            .build();
        let agent = config.new_agent();
        // Reports an invalid proxy now instead of at the first request.
        proxies.choose(&Uri::from_static("https://localhost"))?;
        proxies.choose(&Uri::from_static("http://localhost"))?;
        Ok(Self { agent, endpoint, token, proxies })
    }

    pub(super) fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// Requests a path of the hub and follows redirections. `repository` is for messages.
    pub(super) fn get(
        &self,
        path: &str,
        repository: &str,
        resume: Option<&ResumePoint>,
    ) -> Result<HubResponse, RequestFailure> {
        let mut url = self.endpoint.url(path);
        let mut hub_headers = None;
        for _ in 0..=MAX_REDIRECTS {
            let uri: Uri = url.parse().map_err(|_| redirect_error(&url, "not an address"))?;
            let response = self.send(&uri, resume)?;
            let (parts, body) = response.into_parts();
            let (status, headers) = (parts.status, parts.headers);
            hub_headers.get_or_insert_with(|| headers.clone());
            match status.as_u16() {
                200 | 206 => {}
                416 if resume.is_some() => {}
                301 | 302 | 303 | 307 | 308 => {
                    url = redirect_target(&uri, &headers).map_err(|reason| redirect_error(&url, &reason))?;
                    continue;
                }
                _ => return Err(status_failure(&url, status, &headers, repository, self.token.is_some())),
            }
            let hub_headers = hub_headers.unwrap_or_default();
            return Ok(HubResponse { status, headers, hub_headers, body: Box::new(body.into_reader()) });
        }
        Err(redirect_error(&self.endpoint.url(path), &format!("more than {MAX_REDIRECTS} redirections in a row"))
            .into())
    }

    /// Sends one request, with the token if `uri` is of the endpoint's own origin.
    fn send(&self, uri: &Uri, resume: Option<&ResumePoint>) -> Result<http::Response<ureq::Body>, RequestFailure> {
        let mut request = self.agent.get(uri.clone());
        if let Some(token) = self.token.as_ref().filter(|_| Origin::of(uri).as_ref() == Some(&self.endpoint.origin)) {
            request = request.header(AUTHORIZATION, format!("Bearer {}", token.0));
        }
        if let Some(resume) = resume {
            request = request.header(RANGE, format!("bytes={}-", resume.from));
            if let Some(etag) = &resume.etag {
                request = request.header(IF_RANGE, etag);
            }
        }
        let proxy = self.proxies.choose(uri)?;
        request.config().proxy(proxy).build().call().map_err(|error| connection_failure(&uri.to_string(), &error))
    }
}

/// The target of a redirection, or the reason why it is not followed.
fn redirect_target(from: &Uri, headers: &HeaderMap) -> Result<String, String> {
    let location = headers.get(LOCATION).and_then(|l| l.to_str().ok()).ok_or("redirects to nowhere")?;
    let scheme = from.scheme_str().unwrap_or_default();
    let authority = from.authority().map(|a| a.as_str()).unwrap_or_default();
    let url = if location.starts_with("//") {
        format!("{scheme}:{location}")
    } else if location.starts_with('/') {
        format!("{scheme}://{authority}{location}")
    } else {
        location.to_owned()
    };
    let origin = url.parse::<Uri>().ok().as_ref().and_then(Origin::of);
    match origin {
        None => Err(format!("redirects to something that is no http(s) address: `{}`", without_query(location))),
        Some(to) if scheme == "https" && !to.https => Err("redirects from https to http: not followed".to_owned()),
        Some(_) => Ok(url),
    }
}

/// The failure that an error status stands for.
fn status_failure(
    url: &str,
    status: StatusCode,
    headers: &HeaderMap,
    repository: &str,
    with_token: bool,
) -> RequestFailure {
    let url = without_query(url);
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let (code, message) = (text("x-error-code"), text("x-error-message"));
    let status_code = status.as_u16();
    match status_code {
        401 | 403 => {
            let advice = match (code, with_token) {
                // The hub refuses a token that it does not know also where none is needed.
                (_, true) if message.contains("Invalid credentials") => {
                    "it does not know the token in HF_TOKEN: renew it, or unset HF_TOKEN for a public repository"
                }
                ("GatedRepo", true) => "it is gated: accept its conditions on the hub with the account of HF_TOKEN",
                ("GatedRepo", false) => "it is gated: accept its conditions on the hub, then set HF_TOKEN",
                // The hub also answers 401 for missing repositories, so that it does not reveal private ones.
                (_, true) => "there is no such repository, or it is private and HF_TOKEN does not open it",
                (_, false) => "there is no such repository, or it is private or gated: check the name, or set HF_TOKEN",
            };
            HubError::Denied { repository: repository.to_owned(), status: status_code, advice }.into()
        }
        404 => HubError::NotFound { what: format!("{repository} ({url})") }.into(),
        408 | 425 | 429 | 500..=599 => {
            let rate_limit = (status_code == 429).then(|| rate_limit_reset(text("ratelimit"))).flatten();
            let wait = rate_limit.or_else(|| text(RETRY_AFTER.as_str()).trim().parse().ok()).map(Duration::from_secs);
            RequestFailure::Retry { reason: format!("the answer was {status_code}"), wait }
        }
        _ => HubError::Status { url, status: status_code }.into(),
    }
}

/// Seconds until requests are allowed again, from a `RateLimit` header such as `"api";r=0;t=55`. One more is because
/// the hub rounds them down.
fn rate_limit_reset(header: &str) -> Option<u64> {
    let reset = header.split([';', ',']).find_map(|part| part.trim().strip_prefix("t="))?;
    reset.trim().parse::<u64>().ok().map(|seconds| seconds.saturating_add(1))
}

fn redirect_error(url: &str, reason: &str) -> HubError {
    HubError::Redirect { url: without_query(url), reason: reason.to_owned() }
}

/// The failure that an error of the connection stands for.
fn connection_failure(url: &str, error: &ureq::Error) -> RequestFailure {
    // A retry does not change certificates and settings. ureq reports a failed handshake as invalid data.
    let may_recover = match error {
        ureq::Error::Io(e) => e.kind() != std::io::ErrorKind::InvalidData,
        ureq::Error::Timeout(_) | ureq::Error::Protocol(_) => true,
        ureq::Error::HostNotFound | ureq::Error::ConnectionFailed => true,
        _ => false,
    };
    if may_recover {
        return RequestFailure::Retry { reason: error.to_string(), wait: None };
    }
    HubError::Connection { url: without_query(url), reason: error.to_string() }.into()
}

/// `url` without query and fragment, for messages: a query may hold a signature.
pub(super) fn without_query(url: &str) -> String {
    url.split(['?', '#']).next().unwrap_or_default().to_owned()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)]
mod tests {
    use super::*;

    #[test]
    fn the_wait_of_a_rate_limit_is_read() {
        let wait = |status: u16, headers: &[(&'static str, &str)]| {
            let headers =
                headers.iter().map(|(name, value)| (http::HeaderName::from_static(name), value.parse().unwrap()));
            let status = StatusCode::from_u16(status).unwrap();
            match status_failure("https://hub/x", status, &headers.collect(), "a/b", false) {
                RequestFailure::Retry { wait, .. } => wait.map(|wait| wait.as_secs()),
                RequestFailure::Final(error) => panic!("{error}"),
            }
        };
        let limit = ("ratelimit", "\"api\";r=0;t=55");
        assert_eq!(wait(429, &[limit]), Some(56));
        assert_eq!(wait(429, &[limit, ("retry-after", "3")]), Some(56));
        assert_eq!(wait(503, &[limit, ("retry-after", "3")]), Some(3), "the limit is not the cause");
        assert_eq!(wait(429, &[("ratelimit", "\"api\";r=0;t=soon")]), None);
    }

    #[test]
    fn a_token_that_the_hub_does_not_know_is_named() {
        let headers = HeaderMap::from_iter([(
            http::HeaderName::from_static("x-error-message"),
            "Invalid credentials in Authorization header".parse().unwrap(),
        )]);
        let refused =
            |with_token| match status_failure("https://h/x", StatusCode::UNAUTHORIZED, &headers, "a/b", with_token) {
                RequestFailure::Final(error) => error.to_string(),
                RequestFailure::Retry { reason, .. } => panic!("{reason}"),
            };
        assert!(refused(true).contains("renew it, or unset HF_TOKEN"), "{}", refused(true));
        assert!(refused(false).contains("there is no such repository"), "{}", refused(false));
    }

    #[test]
    fn redirections_follow_our_rules() {
        let to = |from: &str, location: &str| {
            let headers = HeaderMap::from_iter([(LOCATION, location.parse().unwrap())]);
            redirect_target(&from.parse().unwrap(), &headers)
        };
        assert_eq!(to("https://a/x", "https://b/y?s=1").unwrap(), "https://b/y?s=1");
        assert_eq!(to("https://a:1/x", "/y?z").unwrap(), "https://a:1/y?z");
        assert_eq!(to("https://a/x", "//b/y").unwrap(), "https://b/y");
        assert!(to("http://a/x", "https://b/y").is_ok());
        assert!(to("https://a/x", "http://b/y").unwrap_err().contains("https to http"));
        for bad in ["ftp://b/y", "file:///etc/passwd", "y", "", "https://user:password@b/y"] {
            assert!(to("https://a/x", bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_token_is_sent_to_the_same_scheme_host_and_port() {
        let origin = |url: &str| Origin::of(&url.parse().unwrap());
        let endpoint = Endpoint::parse("https://Hub.example/").unwrap();
        assert_eq!(origin("https://hub.example:443/x").as_ref(), Some(&endpoint.origin));
        for other in ["http://hub.example/x", "https://hub.example:8443/", "https://hub.example.evil/", "https://cdn/"]
        {
            assert_ne!(origin(other).as_ref(), Some(&endpoint.origin), "{other}");
        }
        assert_eq!(endpoint.url("a/b"), "https://Hub.example/a/b");
        for bad in ["", "hub.example", "ftp://hub", "https://user:pw@hub", "https://hub/?x"] {
            assert!(Endpoint::parse(bad).is_err(), "{bad}");
        }
        assert_eq!(format!("{:?}", Token::new(" secret ")), "Some(Token(…))");
    }
}
