//! Where requests go.

use http::Uri;

use super::LoadError;
use super::grpc::CLASSIFY;

/// A server to be measured: a name for the report, and where it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// What the report calls it.
    pub name: String,
    /// As it was given, without the name.
    pub url: String,
    /// Host without brackets, to be looked up.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// Host and port as the `Host` header has them.
    pub authority: String,
    /// Path and query; of gRPC the call.
    pub path: String,
    /// What is spoken there.
    pub protocol: Protocol,
    /// Whom its connections go to in turns with this, if it is a mix.
    pub others: Vec<Target>,
}

/// What a target speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// HTTP/1.1.
    Http,
    /// gRPC: `ghostserve.v1.ClassifyRequest` with one image.
    Grpc,
}

impl Target {
    /// `http://host:8080/path` or `grpc://host:8080`, or with a name: `ours=http://host:8080/path`. Several with a plus between them
    /// are one target, among which connections take turns.
    pub fn parse(text: &str) -> Result<Self, LoadError> {
        let (name, url) = match text.split_once('=') {
            // An `=` behind a slash belongs to the query.
            Some((name, url)) if !name.contains(['/', ':', '?']) && !name.trim().is_empty() => (Some(name.trim()), url),
            _ => (None, text),
        };
        // A plus elsewhere belongs to a query.
        let cut = ["+http://", "+grpc://"].iter().filter_map(|next| url.find(next)).min();
        if let Some(cut) = cut {
            let first = Self::parse(&url[..cut])?;
            let Self { others, .. } = {
                let rest = Self::parse(&url[cut + 1..])?;
                let others = [vec![Self { others: Vec::new(), ..rest.clone() }], rest.others].concat();
                Self { others, ..first.clone() }
            };
            let name = name.map_or_else(|| url.to_owned(), str::to_owned);
            return Ok(Self { name, url: url.to_owned(), others, ..first });
        }
        let wrong = |reason: &str| LoadError::Url { url: url.to_owned(), reason: reason.to_owned() };
        let uri: Uri = url.parse().map_err(|error| wrong(&format!("{error}; expected http://HOST:PORT/PATH")))?;
        let protocol = match uri.scheme_str() {
            Some("http") => Protocol::Http,
            Some("grpc") => Protocol::Grpc,
            Some("https") => {
                return Err(wrong(
                    "https is not supported: measure the server's plain HTTP port, without encryption's cost",
                ));
            }
            _ => return Err(wrong("expected http://HOST:PORT/PATH or grpc://HOST:PORT")),
        };
        let authority = uri.authority().ok_or_else(|| wrong("expected a host"))?;
        if authority.as_str().contains('@') {
            return Err(wrong("credentials in a URL are not sent: use --header 'authorization: …'"));
        }
        let path = match (uri.path_and_query().map_or("/", http::uri::PathAndQuery::as_str), protocol) {
            ("/", Protocol::Grpc) => CLASSIFY,
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

    /// Several; their names must differ.
    pub fn parse_all(texts: &[String]) -> Result<Vec<Self>, LoadError> {
        let targets = texts.iter().map(|text| Self::parse(text)).collect::<Result<Vec<_>, _>>()?;
        let twice = targets.iter().enumerate().find(|(i, t)| targets[..*i].iter().any(|other| other.name == t.name));
        match twice {
            Some((_, target)) => Err(LoadError::SameName(target.name.clone())),
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
        let target = Target::parse("ours=http://localhost:8080/v1/classify?top_k=1").unwrap();
        assert_eq!((target.name.as_str(), target.host.as_str(), target.port), ("ours", "localhost", 8080));
        assert_eq!((target.authority.as_str(), target.path.as_str()), ("localhost:8080", "/v1/classify?top_k=1"));

        let target = Target::parse("http://[::1]/?a=b").unwrap();
        assert_eq!((target.name.as_str(), target.host.as_str(), target.port), ("[::1]/?a=b", "::1", 80));
        assert_eq!((target.authority.as_str(), target.path.as_str()), ("[::1]", "/?a=b"));
    }

    #[test]
    fn a_mix_has_several_parts_under_one_name() {
        let mix = Target::parse("mix=http://a:1/v1/classify?x=1+2+grpc://b:2+http://c/").unwrap();
        assert_eq!((&mix.name[..], &mix.path[..], mix.protocol), ("mix", "/v1/classify?x=1+2", Protocol::Http));
        let others: Vec<_> = mix.others.iter().map(|o| (o.authority.as_str(), o.path.as_str(), o.protocol)).collect();
        assert_eq!(others, [("b:2", CLASSIFY, Protocol::Grpc), ("c", "/", Protocol::Http)]);
        assert!(mix.others.iter().all(|other| other.others.is_empty()));
        assert!(Target::parse("http://a/+grpc://").is_err());
    }

    #[test]
    fn what_cannot_be_asked_is_refused_with_a_reason() {
        for (url, words) in [
            ("https://localhost/", "https is not supported"),
            ("localhost:8080/x", "http://HOST:PORT/PATH"),
            ("ftp://localhost/", "http://HOST:PORT/PATH"),
            ("http://me:secret@localhost/", "--header"),
            ("a=b=c", "http://HOST:PORT/PATH"),
        ] {
            let error = Target::parse(url).unwrap_err().to_string();
            assert!(error.contains(words), "{url}: {error}");
        }
        let twice = ["http://a/".to_owned(), "http://a/".to_owned()];
        assert!(Target::parse_all(&twice).unwrap_err().to_string().contains("two targets"));
    }
}
