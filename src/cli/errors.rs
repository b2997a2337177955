//! The text of an error for people: its message and the causes that the message does not contain.

/// An error's message, followed by its causes. Most of our messages already contain their cause, so a cause is added
/// only if its text is not there, and a message that its cause repeats at its start is replaced by the cause.
pub(super) fn describe(error: &anyhow::Error) -> String {
    let mut parts: Vec<String> = Vec::new();
    for cause in error.chain() {
        let cause = cause.to_string();
        let cause = cause.trim_end();
        if parts.iter().any(|part| part.contains(cause)) {
            continue;
        }
        if parts.last().is_some_and(|last| cause.starts_with(last.as_str())) {
            parts.pop();
        }
        parts.push(cause.to_owned());
    }
    parts.join(": ")
}

#[cfg(test)]
mod tests {
    use anyhow::anyhow;

    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("cannot read a.jpg: {source}; check the path")]
    struct WithCause {
        source: std::io::Error,
    }

    #[test]
    fn a_cause_that_the_message_contains_is_not_repeated() {
        let error = anyhow::Error::new(WithCause { source: std::io::Error::other("no such file") });
        assert_eq!(describe(&error), "cannot read a.jpg: no such file; check the path");
        let error = error.context("--model a.jpg");
        assert_eq!(describe(&error), "--model a.jpg: cannot read a.jpg: no such file; check the path");
    }

    #[test]
    fn a_cause_that_the_message_lacks_is_added() {
        assert_eq!(describe(&anyhow!("no such file").context("cannot read a.jpg")), "cannot read a.jpg: no such file");
        assert_eq!(describe(&anyhow!("a.jpg: no such file\n").context("a.jpg")), "a.jpg: no such file");
    }
}
