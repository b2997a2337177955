//! What a user names (a repository and a revision) and what a hub names (files): checked here, before it becomes part of a
//! path or an address.

use std::fmt::Write as _;

use super::HubError;
use super::catalogue::{CATALOGUE, CATALOGUE_OWNER};

/// The revision meant when none is named.
const DEFAULT_REVISION: &str = "main";

/// A repository at a revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reference {
    owner: String,
    name: String,
    revision: String,
}

impl Reference {
    /// Reads `NAME` of the catalogue, `owner/name`, either with `@revision` behind it.
    ///
    /// # Errors
    /// [`HubError::Invalid`].
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

    /// The same repository at another revision: a branch, a tag, a commit.
    ///
    /// # Errors
    /// [`HubError::Invalid`].
    pub fn at(self, revision: &str) -> Result<Self, HubError> {
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | '/' | '+');
        let parts_named = revision.split('/').all(|part| !matches!(part, "" | "." | ".."));
        if revision.len() > 200 || !revision.chars().all(plain) || !parts_named {
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

    /// The name without its owner: what the model is served under, and its folder's name unless told otherwise.
    #[must_use]
    pub fn model_id(&self) -> String {
        self.name.clone()
    }

    /// The branch, tag or commit.
    #[must_use]
    pub fn revision(&self) -> &str {
        &self.revision
    }

    /// The repository as the name of one folder.
    pub(super) fn folder(&self) -> String {
        format!("{}--{}", self.owner, self.name)
    }
}

/// Owners and repositories: what the hub allows, which is also safe in paths.
fn is_name(text: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    (1..=96).contains(&text.len()) && text.chars().all(plain) && !text.starts_with('.') && !text.contains("..")
}

/// Whether a repository's file name stays inside the repository and on one line.
pub(super) fn is_file_name(text: &str) -> bool {
    let part = |p: &str| !matches!(p, "" | "." | "..") && !p.contains(['\\', ':']) && !p.chars().any(char::is_control);
    text.len() <= 1024 && text.split('/').all(part)
}

/// A commit as git writes it.
pub(super) fn is_commit(text: &str) -> bool {
    is_hex(text, 40)
}

/// `digits` lower-case hexadecimal digits.
pub(super) fn is_hex(text: &str, digits: usize) -> bool {
    text.len() == digits && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// `text` as one segment of an address, or as one name of a file.
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
    fn short_names_full_names_and_revisions() {
        let short = Reference::parse("ghostnetv2_100.in1k").unwrap();
        assert_eq!((short.repository(), short.revision()), ("timm/ghostnetv2_100.in1k".into(), "main"));
        let full = Reference::parse("me/my-net@refs/pr/1").unwrap();
        assert_eq!((full.repository(), full.revision()), ("me/my-net".into(), "refs/pr/1"));
        assert_eq!(percent_encoded(full.revision()), "refs%2Fpr%2F1");
        assert_eq!(full.at("v1.0").unwrap().revision(), "v1.0");
    }

    #[test]
    fn what_is_no_name_is_refused() {
        for text in
            ["", "ghostnet", "a/b/c", "../b", "a/..", "a/", "/b", "a b/c", "a/b@", "a/b@..", "a/b@x/../y", "a/b@é"]
        {
            assert!(Reference::parse(text).is_err(), "{text}");
        }
        let error = Reference::parse("ghostnet").unwrap_err().to_string();
        assert!(error.contains("ghostnetv2_100.in1k"), "{error}");
    }

    #[test]
    fn file_names_stay_inside() {
        assert!(is_file_name("model.safetensors") && is_file_name("onnx/model.onnx"));
        for name in ["", "/etc/passwd", "../x", "a/../b", "a//b", "a\\b", "c:x", "a\nb"] {
            assert!(!is_file_name(name), "{name:?}");
        }
    }
}
