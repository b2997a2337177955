//! Selects the format of an answer from the `Accept` header (RFC 9110, section 12.5.1).

use http::{HeaderMap, header};

use crate::server::problem::Problem;
use crate::service::Code;

/// Returns the offered format with the highest quality. Among equals, and without the header, the first one.
///
/// # Errors
/// The header accepts none of the formats.
pub(super) fn choose<F: Copy>(headers: &HeaderMap, offered: &[(&'static str, F)]) -> Result<F, Problem> {
    let names = || offered.iter().map(|(name, _)| format!("`{name}`")).collect::<Vec<_>>().join(", ");
    let values: Vec<_> = headers.get_all(header::ACCEPT).iter().filter_map(|v| v.to_str().ok()).collect();
    let ranges: Vec<MediaRange<'_>> = values.iter().flat_map(|v| v.split(',')).filter_map(MediaRange::parse).collect();
    let mut best: Option<(f32, F)> = None;
    for (name, format) in offered {
        let quality = if ranges.is_empty() { 1.0 } else { quality_of(name, &ranges) };
        if quality > best.map_or(0.0, |(best_quality, _)| best_quality) {
            best = Some((quality, *format));
        }
    }
    best.map(|(_, format)| format).ok_or_else(|| {
        Problem::new(Code::NotAcceptable, format!("`Accept` allows none of the forms there are: {}", names()))
    })
}

/// One element of `Accept`.
struct MediaRange<'a> {
    kind: &'a str,
    quality: f32,
}

impl<'a> MediaRange<'a> {
    fn parse(text: &'a str) -> Option<Self> {
        let mut parts = text.split(';').map(str::trim);
        let kind = parts.next().filter(|kind| !kind.is_empty())?;
        let quality = parts.find_map(|p| p.strip_prefix("q=").or_else(|| p.strip_prefix("Q="))?.parse().ok());
        Some(Self { kind, quality: quality.unwrap_or(1.0) })
    }

    /// How specifically the range matches a media type: 0 for all types, 1 for a group, 2 for the type. `None` if it
    /// does not match.
    fn specificity(&self, name: &str) -> Option<u8> {
        let group = name.split('/').next().unwrap_or_default();
        match self.kind {
            "*/*" | "*" => Some(0),
            kind if kind.strip_suffix("/*").is_some_and(|k| k.eq_ignore_ascii_case(group)) => Some(1),
            kind => kind.eq_ignore_ascii_case(name).then_some(2),
        }
    }
}

/// Quality of a media type, from the most specific range that matches it. 0 if none matches.
fn quality_of(name: &str, ranges: &[MediaRange<'_>]) -> f32 {
    let matching = ranges.iter().filter_map(|range| Some((range.specificity(name)?, range.quality)));
    matching.max_by_key(|(specificity, _)| *specificity).map_or(0.0, |(_, quality)| quality)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use http::HeaderValue;

    use super::*;

    const OFFERED: [(&str, u8); 3] = [("application/json", 0), ("application/x-npz", 1), ("image/png", 2)];

    fn selected(accept: &'static str) -> Option<u8> {
        choose(&HeaderMap::from_iter([(header::ACCEPT, HeaderValue::from_static(accept))]), &OFFERED).ok()
    }

    #[test]
    fn the_first_format_with_the_highest_quality_is_selected() {
        assert_eq!(choose(&HeaderMap::new(), &OFFERED).ok(), Some(0));
        for (accept, format) in [
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
            assert_eq!(selected(accept), format, "{accept}");
        }
    }
}
