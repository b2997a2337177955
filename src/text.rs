//! Text for messages.

/// The first `max_chars` characters of `text`, or all of it. Messages repeat what a client sent, which may be
/// megabytes.
pub(crate) fn shortened(text: &str, max_chars: usize) -> &str {
    text.char_indices().nth(max_chars).map_or(text, |(end, _)| &text[..end])
}

#[cfg(test)]
mod tests {
    use super::shortened;

    #[test]
    fn characters_are_counted_and_stay_whole() {
        assert_eq!(shortened("größer", 3), "grö");
        assert_eq!(shortened("größer", 6), "größer");
        assert_eq!(shortened("größer", 99), "größer");
        assert_eq!(shortened("größer", 0), "");
    }
}
