//! Which form of an answer a client accepts (RFC 9110, 12.5.1).

use http::{HeaderMap, header};

use crate::server::problem::Problem;
use crate::service::Code;

/// The first of the forms offered that the client likes best; the first of all if it says nothing.
pub(super) fn choose<F: Copy>(headers: &HeaderMap, offered: &[(&'static str, F)]) -> Result<F, Problem> {
    let names = || offered.iter().map(|(name, _)| format!("`{name}`")).collect::<Vec<_>>().join(", ");
    let values: Vec<_> = headers.get_all(header::ACCEPT).iter().filter_map(|v| v.to_str().ok()).collect();
    let ranges: Vec<Range<'_>> = values.iter().flat_map(|v| v.split(',')).filter_map(Range::parse).collect();
    let mut best: Option<(f32, F)> = None;
    for (name, form) in offered {
        let quality = if ranges.is_empty() { 1.0 } else { quality(&ranges, name) };
        if quality > best.map_or(0.0, |(best, _)| best) {
            best = Some((quality, *form));
        }
    }
    best.map(|(_, form)| form).ok_or_else(|| {
        Problem::new(Code::NotAcceptable, format!("`Accept` allows none of the forms there are: {}", names()))
    })
}

struct Range<'a> {
    kind: &'a str,
    quality: f32,
}

impl<'a> Range<'a> {
    fn parse(text: &'a str) -> Option<Self> {
        let mut parts = text.split(';').map(str::trim);
        let kind = parts.next().filter(|kind| !kind.is_empty())?;
        let quality = parts.find_map(|p| p.strip_prefix("q=").or_else(|| p.strip_prefix("Q="))?.parse().ok());
        Some(Self { kind, quality: quality.unwrap_or(1.0) })
    }

    /// How closely it names a media type; `None` if it does not.
    fn matches(&self, name: &str) -> Option<u8> {
        let group = name.split('/').next().unwrap_or_default();
        match self.kind {
            "*/*" | "*" => Some(0),
            kind if kind.strip_suffix("/*").is_some_and(|k| k.eq_ignore_ascii_case(group)) => Some(1),
            kind => kind.eq_ignore_ascii_case(name).then_some(2),
        }
    }
}

/// The closest range decides.
fn quality(ranges: &[Range<'_>], name: &str) -> f32 {
    let matching = ranges.iter().filter_map(|range| Some((range.matches(name)?, range.quality)));
    matching.max_by_key(|(close, _)| *close).map_or(0.0, |(_, quality)| quality)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use http::HeaderValue;

    use super::*;

    const OFFERED: [(&str, u8); 3] = [("application/json", 0), ("application/x-npz", 1), ("image/png", 2)];

    fn of(accept: &'static str) -> Option<u8> {
        choose(&HeaderMap::from_iter([(header::ACCEPT, HeaderValue::from_static(accept))]), &OFFERED).ok()
    }

    #[test]
    fn the_best_liked_form_is_chosen_and_ours_among_equals() {
        assert_eq!(choose(&HeaderMap::new(), &OFFERED).ok(), Some(0));
        for (accept, form) in [
            ("*/*", Some(0)),
            ("", Some(0)),
            ("application/x-npz", Some(1)),
            ("Application/X-NPZ; q=0.3", Some(1)),
            ("image/*", Some(2)),
            ("application/json;q=0.1, image/png;q=0.9", Some(2)),
            ("text/html, application/xml;q=0.9, image/avif, */*;q=0.8", Some(0)),
            ("*/*, application/json;q=0", Some(1)),
            ("text/html", None),
            ("image/png;q=0", None),
        ] {
            assert_eq!(of(accept), form, "{accept}");
        }
    }
}
