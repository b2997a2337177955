//! The servers under test, parsed from URLs.

use http::Uri;

use super::LoadTestError;
use super::grpc::CLASSIFY;

/// A server under test, or a mix of several: its name in the report and its address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoadTarget {
    /// Name in the report.
    pub name: String,
    /// URL as it was given, without the name.
    pub url: String,
    /// Host name or address, without brackets.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// Host and port, as sent in the `Host` header.
    pub authority: String,
    /// HTTP: path and query. gRPC: path of the method.
    pub path: String,
    /// Protocol of the requests.
    pub protocol: TargetProtocol,
    /// Further targets of a mix; connections are distributed over this target and these in turn.
    pub others: Vec<LoadTarget>,
}

/// Protocol of a target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TargetProtocol {
    /// HTTP/1.1.
    Http,
    /// gRPC: one `ghostserve.v1.ClassifyRequest` with one image per call.
    Grpc,
}

impl LoadTarget {
    /// Parses `http://host:8080/path` or `grpc://host:8080`, with an optional name: `ours=http://host:8080/path`.
    /// Several URLs joined by `+` are one target, a mix.
    ///
    /// # Errors
    /// The URL is malformed or its scheme is not supported.
    pub fn parse(text: &str) -> Result<Self, LoadTestError> {
        let (name, url) = match text.split_once('=') {
            // After a slash, an `=` belongs to the query.
            Some((name, url)) if !name.contains(['/', ':', '?']) && !name.trim().is_empty() => (Some(name.trim()), url),
            _ => (None, text),
        };
        // A `+` that no scheme follows belongs to a query.
        let joint = ["+http://", "+grpc://"].iter().filter_map(|next| url.find(next)).min();
        if let Some(joint) = joint {
            let first = Self::parse(&url[..joint])?;
            let rest = Self::parse(&url[joint + 1..])?;
            let others = [vec![Self { others: Vec::new(), ..rest.clone() }], rest.others].concat();
            let name = name.map_or_else(|| url.to_owned(), str::to_owned);
            return Ok(Self { name, url: url.to_owned(), others, ..first });
        }
        let url_error = |reason: &str| LoadTestError::Url { url: url.to_owned(), reason: reason.to_owned() };
        let uri: Uri = url.parse().map_err(|error| url_error(&format!("{error}; expected http://HOST:PORT/PATH")))?;
        let protocol = match uri.scheme_str() {
            Some("http") => TargetProtocol::Http,
            Some("grpc") => TargetProtocol::Grpc,
            Some("https") => {
                return Err(url_error(
                    "https is not supported: measure the server's plain HTTP port, without encryption's cost",
                ));
            }
            _ => return Err(url_error("expected http://HOST:PORT/PATH or grpc://HOST:PORT")),
        };
        let authority = uri.authority().ok_or_else(|| url_error("expected a host"))?;
        if authority.as_str().contains('@') {
            return Err(url_error("credentials in a URL are not sent: use --header 'authorization: …'"));
        }
        let path = match (uri.path_and_query().map_or("/", http::uri::PathAndQuery::as_str), protocol) {
            ("/", TargetProtocol::Grpc) => CLASSIFY,
            (path, _) => path,
        };
        Ok(Self {
            name: name.map_or_else(|| format!("{authority}{path}"), str::to_owned),
            url: url.to_owned(),
            host: authority.host().trim_matches(['[', ']']).to_owned(),
            port: authority.port_u16().unwrap_or(80),
            authority: authority.as_str().to_owned(),
            path: path.to_owned(),
            protocol,
            others: Vec::new(),
        })
    }

    /// Parses several targets.
    ///
    /// # Errors
    /// A target cannot be parsed, or two have the same name.
    pub fn parse_all(texts: &[String]) -> Result<Vec<Self>, LoadTestError> {
        let targets = texts.iter().map(|text| Self::parse(text)).collect::<Result<Vec<_>, _>>()?;
        let duplicate =
            targets.iter().enumerate().find(|(i, t)| targets[..*i].iter().any(|other| other.name == t.name));
        match duplicate {
            Some((_, target)) => Err(LoadTestError::SameName(target.name.clone())),
            None => Ok(targets),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_target_has_a_name_an_address_and_a_path() {
        let target = LoadTarget::parse("ours=http://localhost:8080/v1/classify?top_k=1").unwrap();
        assert_eq!((target.name.as_str(), target.host.as_str(), target.port), ("ours", "localhost", 8080));
        assert_eq!((target.authority.as_str(), target.path.as_str()), ("localhost:8080", "/v1/classify?top_k=1"));

        let target = LoadTarget::parse("http://[::1]/?a=b").unwrap();
        assert_eq!((target.name.as_str(), target.host.as_str(), target.port), ("[::1]/?a=b", "::1", 80));
        assert_eq!((target.authority.as_str(), target.path.as_str()), ("[::1]", "/?a=b"));
    }

    #[test]
    fn a_mix_has_several_addresses_under_one_name() {
        let mix = LoadTarget::parse("mix=http://a:1/v1/classify?x=1+2+grpc://b:2+http://c/").unwrap();
        assert_eq!((&mix.name[..], &mix.path[..], mix.protocol), ("mix", "/v1/classify?x=1+2", TargetProtocol::Http));
        let others: Vec<_> = mix.others.iter().map(|o| (o.authority.as_str(), o.path.as_str(), o.protocol)).collect();
        assert_eq!(others, [("b:2", CLASSIFY, TargetProtocol::Grpc), ("c", "/", TargetProtocol::Http)]);
        assert!(mix.others.iter().all(|other| other.others.is_empty()));
        assert!(LoadTarget::parse("http://a/+grpc://").is_err());
    }

    #[test]
    fn unsupported_urls_are_refused_with_a_reason() {
        for (url, words) in [
            ("https://localhost/", "https is not supported"),
            ("localhost:8080/x", "http://HOST:PORT/PATH"),
            ("ftp://localhost/", "http://HOST:PORT/PATH"),
            ("http://me:secret@localhost/", "--header"),
            ("a=b=c", "http://HOST:PORT/PATH"),
        ] {
            let error = LoadTarget::parse(url).unwrap_err().to_string();
            assert!(error.contains(words), "{url}: {error}");
        }
        let same_names = ["http://a/".to_owned(), "http://a/".to_owned()];
        assert!(LoadTarget::parse_all(&same_names).unwrap_err().to_string().contains("two targets"));
    }
}
