//! Chooses the proxy for a host by curl's conventional rules. The caller reads the environment and supplies the values.

use http::Uri;

use super::HubError;

/// Proxies by the scheme of the requested address.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Proxies {
    /// Proxy for `https://` addresses.
    pub https: Option<String>,
    /// Proxy for `http://` addresses.
    pub http: Option<String>,
    /// Proxy for schemes without one of their own.
    pub all: Option<String>,
    /// Hosts reached directly, separated by commas: `*`, names, and domains with or without a leading dot.
    pub none: String,
}

impl Proxies {
    /// The proxy for an address; `None` for a direct connection.
    ///
    /// # Errors
    /// [`HubError::Invalid`]: the proxy is not an address.
    pub(super) fn choose(&self, uri: &Uri) -> Result<Option<ureq::Proxy>, HubError> {
        let for_scheme = if uri.scheme_str() == Some("http") { &self.http } else { &self.https };
        let Some(proxy) = for_scheme.as_ref().or(self.all.as_ref()).filter(|p| !p.is_empty()) else { return Ok(None) };
        if self.is_bypassed(uri.host().unwrap_or_default()) {
            return Ok(None);
        }
        // The address may hold a password, so the message does not repeat it.
        ureq::Proxy::new(proxy).map(Some).map_err(|_| HubError::Invalid {
            what: "proxy",
            expected: "an address such as http://host:port or socks5://host:port".to_owned(),
            found: "something else in HTTPS_PROXY, HTTP_PROXY or ALL_PROXY".to_owned(),
        })
    }

    /// Whether `host` matches one of the rules for direct connections.
    fn is_bypassed(&self, host: &str) -> bool {
        let host = host.trim_matches(['[', ']']).to_ascii_lowercase();
        self.none.split([',', ' ']).filter(|rule| !rule.is_empty()).any(|rule| {
            let rule = rule.to_ascii_lowercase();
            let domain = rule.trim_start_matches('*').trim_start_matches('.').trim_matches(['[', ']']);
            rule == "*" || host == domain || host.strip_suffix(domain).is_some_and(|rest| rest.ends_with('.'))
        })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_scheme_selects_a_proxy_and_the_list_bypasses_it() {
        let proxies = Proxies {
            https: Some("http://one:1".into()),
            http: None,
            all: Some("socks5://two:2".into()),
            none: "localhost, .corp.example,10.0.0.1".into(),
        };
        let proxy_port = |uri: &'static str| proxies.choose(&Uri::from_static(uri)).unwrap().map(|p| p.port());
        assert_eq!(proxy_port("https://hub.example/x"), Some(1));
        assert_eq!(proxy_port("http://hub.example/x"), Some(2));
        for direct in ["http://localhost:80/", "https://a.corp.example/", "https://corp.example/", "http://10.0.0.1/"] {
            assert_eq!(proxies.choose(&direct.parse().unwrap()).unwrap(), None, "{direct}");
        }
        assert_eq!(proxy_port("https://notcorp.example/"), Some(1));
        assert_eq!(proxy_port("https://10.0.0.11/"), Some(1));
    }
}
