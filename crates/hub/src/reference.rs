//! Checks the names that come from the user (a repository and a revision) and from the hub (files), before they become
//! part of a path or an address.

use std::fmt::Write as _;

use super::HubError;
use super::catalogue::{CATALOGUE, CATALOGUE_OWNER};

/// The revision if none is given.
const DEFAULT_REVISION: &str = "main";

/// A repository at a revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reference {
    owner: String,
    name: String,
    revision: String,
}

impl Reference {
    /// Parses a name of the catalogue or `owner/name`, either of them with or without `@revision`.
    ///
    /// # Errors
    /// [`HubError::Invalid`]: it is neither.
    pub fn parse(text: &str) -> Result<Self, HubError> {
        let (repository, revision) = text.split_once('@').unwrap_or((text, DEFAULT_REVISION));
        let invalid = || HubError::Invalid {
            what: "model",
            expected: format!("`owner/repository` or one of {}", CATALOGUE.join(", ")),
            found: text.to_owned(),
        };
        let (owner, name) = match repository.split_once('/') {
            Some(parts) => parts,
            None if CATALOGUE.contains(&repository) => (CATALOGUE_OWNER, repository),
            None => return Err(invalid()),
        };
        if !is_name(owner) || !is_name(name) {
            return Err(invalid());
        }
        Self { owner: owner.to_owned(), name: name.to_owned(), revision: String::new() }.at(revision)
    }

    /// The same repository at another revision: a branch, a tag or a commit.
    ///
    /// # Errors
    /// [`HubError::Invalid`]: `revision` cannot be the name of one.
    pub fn at(self, revision: &str) -> Result<Self, HubError> {
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | '/' | '+');
        let valid_parts = revision.split('/').all(|part| !matches!(part, "" | "." | ".."));
        if revision.len() > 200 || !revision.chars().all(allowed) || !valid_parts {
            let expected = "a branch, a tag or a commit".to_owned();
            return Err(HubError::Invalid { what: "revision", expected, found: revision.to_owned() });
        }
        Ok(Self { revision: revision.to_owned(), ..self })
    }

    /// `owner/name`.
    #[must_use]
    pub fn repository(&self) -> String {
        format!("{}/{}", self.owner, self.name)
    }

    /// The name without its owner: the model's id, and the default name of its folder.
    #[must_use]
    pub fn model_id(&self) -> String {
        self.name.clone()
    }

    /// The branch, tag or commit.
    #[must_use]
    pub fn revision(&self) -> &str {
        &self.revision
    }

    /// The name of the repository's folder in the cache.
    pub(super) fn folder(&self) -> String {
        format!("{}--{}", self.owner, self.name)
    }
}

/// Whether `text` can name an owner or a repository. The hub's rules also make it safe in paths.
fn is_name(text: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    (1..=96).contains(&text.len()) && text.chars().all(allowed) && !text.starts_with('.') && !text.contains("..")
}

/// Whether a repository's file name stays inside the repository and on one line.
pub(super) fn is_file_name(text: &str) -> bool {
    let valid_part =
        |p: &str| !matches!(p, "" | "." | "..") && !p.contains(['\\', ':']) && !p.chars().any(char::is_control);
    text.len() <= 1024 && text.split('/').all(valid_part)
}

/// Whether `text` is a commit as git writes it.
pub(super) fn is_commit(text: &str) -> bool {
    is_hex(text, 40)
}

/// Whether `text` consists of `digits` lower-case hexadecimal digits.
pub(super) fn is_hex(text: &str, digits: usize) -> bool {
    text.len() == digits && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// Percent-encodes `text` for use as one segment of an address or as the name of a file.
pub(super) fn percent_encoded(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-' | b'~') {
            encoded.push(char::from(byte));
        } else {
            // Writing to a String cannot fail.
            let _ = write!(encoded, "%{byte:02X}");
        }
    }
    encoded
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn short_names_full_names_and_revisions_are_parsed() {
        let short = Reference::parse("ghostnetv2_100.in1k").unwrap();
        assert_eq!((short.repository(), short.revision()), ("timm/ghostnetv2_100.in1k".into(), "main"));
        let full = Reference::parse("me/my-net@refs/pr/1").unwrap();
        assert_eq!((full.repository(), full.revision()), ("me/my-net".into(), "refs/pr/1"));
        assert_eq!(percent_encoded(full.revision()), "refs%2Fpr%2F1");
        assert_eq!(full.at("v1.0").unwrap().revision(), "v1.0");
    }

    #[test]
    fn invalid_names_are_refused() {
        for text in
            ["", "ghostnet", "a/b/c", "../b", "a/..", "a/", "/b", "a b/c", "a/b@", "a/b@..", "a/b@x/../y", "a/b@é"]
        {
            assert!(Reference::parse(text).is_err(), "{text}");
        }
        let error = Reference::parse("ghostnet").unwrap_err().to_string();
        assert!(error.contains("ghostnetv2_100.in1k"), "{error}");
    }

    #[test]
    fn file_names_stay_inside_the_repository() {
        assert!(is_file_name("model.safetensors") && is_file_name("onnx/model.onnx"));
        for name in ["", "/etc/passwd", "../x", "a/../b", "a//b", "a\\b", "c:x", "a\nb"] {
            assert!(!is_file_name(name), "{name:?}");
        }
    }
}
