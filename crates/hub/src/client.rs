//! One HTTP request to a hub: redirections under our rules, the token only where it belongs, a status as a decision (go on,
//! try again, give up). Retries are the caller's.

use std::io::Read;
use std::sync::Arc;
use std::time::Duration;

use http::header::{AUTHORIZATION, CONTENT_RANGE, ETAG, HeaderMap, IF_RANGE, LOCATION, RANGE, RETRY_AFTER};
use http::{StatusCode, Uri};
use ureq::tls::{RootCerts, TlsConfig, TlsProvider};

use super::proxy::Proxies;
use super::{HubError, Limits, Token};

/// Redirections in a row. The hub needs two.
const MAX_REDIRECTS: usize = 5;

/// The hub's address.
#[derive(Clone, Debug)]
pub(super) struct Endpoint {
    base: String,
    origin: Origin,
}

impl Endpoint {
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

    /// Without its scheme: what a hub's part of the cache is called.
    pub(super) fn name(&self) -> &str {
        self.base.split_once("://").map_or("", |(_, name)| name)
    }
}

/// Who answers: what a token may be shown to.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Origin {
    https: bool,
    host: String,
    port: u16,
}

impl Origin {
    fn of(uri: &Uri) -> Option<Self> {
        let https = match uri.scheme_str()? {
            "https" => true,
            "http" => false,
            _ => return None,
        };
        // A user and password in an address would go to logs and caches.
        let authority = uri.authority().filter(|a| !a.as_str().contains('@'))?;
        let port = authority.port_u16().unwrap_or(if https { 443 } else { 80 });
        let host = authority.host().to_ascii_lowercase();
        (!host.is_empty()).then_some(Self { https, host, port })
    }
}

/// Why a request brought nothing.
#[derive(Debug)]
pub(super) enum Failure {
    /// Trying again would not help.
    Final(HubError),
    /// It might.
    Retry {
        /// What happened.
        reason: String,
        /// How long the hub wants to be left alone.
        wait: Option<Duration>,
    },
}

impl From<HubError> for Failure {
    fn from(error: HubError) -> Self {
        Self::Final(error)
    }
}

/// From where a download goes on.
#[derive(Clone, Debug)]
pub(super) struct Resume {
    /// Bytes that are there.
    pub(super) from: u64,
    /// The version they are of, where it is known.
    pub(super) etag: Option<String>,
}

/// An answer whose body is still to be read.
pub(super) struct Answer {
    /// 200, 206, or 416 to a request that resumes.
    pub(super) status: StatusCode,
    /// Of the last answer.
    pub(super) headers: HeaderMap,
    /// Of the endpoint's own answer, which may have been a redirection.
    pub(super) hub_headers: HeaderMap,
    /// The body. Reading fails if nothing comes for as long as [`Limits::stall`].
    pub(super) body: Box<dyn Read>,
}

impl Answer {
    /// The first byte and the total that a `Content-Range` tells.
    pub(super) fn range(&self) -> Option<(u64, Option<u64>)> {
        let text = self.headers.get(CONTENT_RANGE)?.to_str().ok()?;
        let (span, total) = text.strip_prefix("bytes ")?.split_once('/')?;
        let (first, _) = span.split_once('-')?;
        Some((first.parse().ok()?, total.parse().ok()))
    }

    /// A version that `If-Range` may name: a strong one.
    pub(super) fn etag(&self) -> Option<String> {
        let text = self.headers.get(ETAG)?.to_str().ok()?;
        text.starts_with('"').then(|| text.to_owned())
    }
}

/// Speaks to one hub, and to where it redirects.
#[derive(Debug)]
pub(super) struct Client {
    agent: ureq::Agent,
    endpoint: Endpoint,
    token: Option<Token>,
    proxies: Proxies,
}

impl Client {
    pub(super) fn new(
        endpoint: Endpoint,
        token: Option<Token>,
        proxies: Proxies,
        limits: &Limits,
    ) -> Result<Self, HubError> {
        // The system's certificates, so that a company's own root counts. The provider is named because none is the
        // process's default.
        let tls = TlsConfig::builder()
            .provider(TlsProvider::Rustls)
            .root_certs(RootCerts::PlatformVerifier)
            .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .build();
        let config = ureq::Agent::config_builder()
            .tls_config(tls)
            .user_agent(concat!("ghostserve/", env!("CARGO_PKG_VERSION")))
            // A body that is packed on the way would not have the length and the ranges that are asked for.
            .accept_encoding("identity")
            .http_status_as_error(false)
            .max_redirects(0)
            // ureq would read the environment: proxies are chosen for each address.
            .proxy(None)
            .timeout_connect(Some(limits.connect))
            .timeout_recv_response(Some(limits.stall))
            .timeout_per_read(Some(limits.stall))
            .timeout_per_write(Some(limits.stall))
            .build();
        let agent = config.new_agent();
        // A proxy that is no address is told at once.
        proxies.choose(&Uri::from_static("https://localhost"))?;
        proxies.choose(&Uri::from_static("http://localhost"))?;
        Ok(Self { agent, endpoint, token, proxies })
    }

    pub(super) fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// Asks for a path of the hub, following where it leads. `repository` is for messages.
    pub(super) fn get(&self, path: &str, repository: &str, resume: Option<&Resume>) -> Result<Answer, Failure> {
        let mut url = self.endpoint.url(path);
        let mut hub_headers = None;
        for _ in 0..=MAX_REDIRECTS {
            let uri: Uri = url.parse().map_err(|_| redirect(&url, "not an address"))?;
            let response = self.send(&uri, resume)?;
            let (parts, body) = response.into_parts();
            let (status, headers) = (parts.status, parts.headers);
            hub_headers.get_or_insert_with(|| headers.clone());
            match status.as_u16() {
                200 | 206 => {}
                416 if resume.is_some() => {}
                301 | 302 | 303 | 307 | 308 => {
                    url = target(&uri, &headers).map_err(|reason| redirect(&url, &reason))?;
                    continue;
                }
                _ => return Err(refusal(&url, &headers, status, (repository, self.token.is_some()))),
            }
            let hub_headers = hub_headers.unwrap_or_default();
            return Ok(Answer { status, headers, hub_headers, body: Box::new(body.into_reader()) });
        }
        Err(redirect(&self.endpoint.url(path), &format!("more than {MAX_REDIRECTS} redirections in a row")).into())
    }

    fn send(&self, uri: &Uri, resume: Option<&Resume>) -> Result<http::Response<ureq::Body>, Failure> {
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
        request.config().proxy(proxy).build().call().map_err(|error| failure(&uri.to_string(), &error))
    }
}

/// Where a redirection leads, if it may be followed.
fn target(from: &Uri, headers: &HeaderMap) -> Result<String, String> {
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

/// An error status as a decision.
fn refusal(url: &str, headers: &HeaderMap, status: StatusCode, (repository, with_token): (&str, bool)) -> Failure {
    let url = without_query(url);
    let code = headers.get("x-error-code").and_then(|c| c.to_str().ok()).unwrap_or_default();
    let status_code = status.as_u16();
    match status_code {
        401 | 403 => {
            let advice = match (code, with_token) {
                ("GatedRepo", true) => "it is gated: accept its conditions on the hub with the account of HF_TOKEN",
                ("GatedRepo", false) => "it is gated: accept its conditions on the hub, then set HF_TOKEN",
                // The hub answers 401 also where there is no such repository, so as not to tell what is private.
                (_, true) => "there is no such repository, or it is private and HF_TOKEN does not open it",
                (_, false) => "there is no such repository, or it is private or gated: check the name, or set HF_TOKEN",
            };
            HubError::Denied { repository: repository.to_owned(), status: status_code, advice }.into()
        }
        404 => HubError::NotFound { what: format!("{repository} ({url})") }.into(),
        408 | 425 | 429 | 500..=599 => {
            let wait = headers.get(RETRY_AFTER).and_then(|w| w.to_str().ok()).and_then(|w| w.trim().parse().ok());
            Failure::Retry { reason: format!("the answer was {status_code}"), wait: wait.map(Duration::from_secs) }
        }
        _ => HubError::Status { url, status: status_code }.into(),
    }
}

fn redirect(url: &str, reason: &str) -> HubError {
    HubError::Redirect { url: without_query(url), reason: reason.to_owned() }
}

fn failure(url: &str, error: &ureq::Error) -> Failure {
    // Certificates and settings do not change by asking again; ureq hands a failed handshake out as invalid data.
    let again = match error {
        ureq::Error::Io(e) => e.kind() != std::io::ErrorKind::InvalidData,
        ureq::Error::Timeout(_) | ureq::Error::Protocol(_) => true,
        ureq::Error::HostNotFound | ureq::Error::ConnectionFailed => true,
        _ => false,
    };
    if again {
        return Failure::Retry { reason: error.to_string(), wait: None };
    }
    HubError::Connection { url: without_query(url), reason: error.to_string() }.into()
}

/// Behind the question mark are signatures: not for messages.
pub(super) fn without_query(url: &str) -> String {
    url.split(['?', '#']).next().unwrap_or_default().to_owned()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn redirections_follow_our_rules() {
        let to = |from: &str, location: &str| {
            let headers = HeaderMap::from_iter([(LOCATION, location.parse().unwrap())]);
            target(&from.parse().unwrap(), &headers)
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
    fn a_token_is_for_the_same_scheme_host_and_port() {
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
