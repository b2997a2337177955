//! The files of a repository at one commit, as the hub describes them, and the choice of the weights among them.

use serde::{Deserialize, Serialize};

use super::reference::{is_commit, is_file_name, is_hex};
use super::{HubError, Reference};

/// A repository at a commit. The cache stores it as JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Snapshot {
    /// The commit, 40 hexadecimal digits.
    pub(super) commit: String,
    /// The licence that the repository's card declares.
    pub(super) licence: Option<String>,
    /// All files of the commit.
    pub(super) files: Vec<RemoteFile>,
}

/// A file of a [`Snapshot`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct RemoteFile {
    /// Its path in the repository.
    pub(super) name: String,
    /// Size in bytes, where the hub declares it.
    pub(super) size: Option<u64>,
    /// The declared digest.
    pub(super) identity: ContentIdentity,
}

/// The hub's declaration about a file's content.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum ContentIdentity {
    /// SHA-256, for files in Git LFS: weights.
    Sha256(String),
    /// Git's own SHA-1, for small files.
    GitBlob(String),
    /// No declaration: some mirrors leave it out.
    Undeclared,
}

impl RemoteFile {
    /// The end of the name, such as `safetensors`, `bin` or `pth`.
    pub(super) fn extension(&self) -> &str {
        self.name.rsplit_once('.').map_or("", |(_, extension)| extension)
    }
}

/// The fields of the hub's JSON that are used.
#[derive(Deserialize)]
struct RawInfo {
    sha: String,
    siblings: Vec<RawFile>,
    #[serde(default, rename = "cardData")]
    card: Option<serde_json::Value>,
    #[serde(default)]
    tags: Vec<String>,
}

#[derive(Deserialize)]
struct RawFile {
    rfilename: String,
    size: Option<u64>,
    #[serde(rename = "blobId")]
    blob_id: Option<String>,
    lfs: Option<RawLfs>,
}

#[derive(Deserialize)]
struct RawLfs {
    sha256: String,
    size: u64,
}

impl Snapshot {
    /// Parses the hub's JSON. Checks everything that later becomes part of a path or an address.
    pub(super) fn parse(json: &[u8]) -> Result<Self, String> {
        let raw: RawInfo = serde_json::from_slice(json).map_err(|e| e.to_string())?;
        if !is_commit(&raw.sha) {
            return Err(format!("`sha` is no commit: `{}`", raw.sha.escape_debug()));
        }
        let licence = declared_licence(&raw);
        let files = raw.siblings.into_iter().map(RemoteFile::try_from).collect::<Result<_, _>>()?;
        Ok(Self { commit: raw.sha, licence, files })
    }

    /// The file called `name`.
    pub(super) fn file(&self, reference: &Reference, name: &str) -> Result<&RemoteFile, HubError> {
        let what = || format!("file {name} in {}@{}", reference.repository(), reference.revision());
        self.files.iter().find(|f| f.name == name).ok_or_else(|| HubError::NotFound { what: what() })
    }

    /// The file of weights: `name` if it is given, else the usual one.
    pub(super) fn weights(&self, reference: &Reference, name: Option<&str>) -> Result<&RemoteFile, HubError> {
        const READABLE: [&str; 3] = ["safetensors", "bin", "pth"];
        let found = match name {
            Some(name) => self.file(reference, name)?,
            None => self
                .usual_weights()
                .map_err(|reason| HubError::Weights { repository: reference.repository(), reason })?,
        };
        if READABLE.contains(&found.extension()) {
            Ok(found)
        } else {
            let expected = "a .safetensors, .bin or .pth file".to_owned();
            Err(HubError::Invalid { what: "weights", expected, found: found.name.clone() })
        }
    }

    /// The file of weights in the usual order of preference, or the reason why there is no clear choice.
    fn usual_weights(&self) -> Result<&RemoteFile, String> {
        let named = |name: &str| self.files.iter().find(|f| f.name == name);
        if let Some(file) = named("model.safetensors") {
            return Ok(file);
        }
        // One kind after the other: safetensors cannot hold code, pickles can.
        let top_level = |extension: &str| -> Vec<&RemoteFile> {
            self.files.iter().filter(|f| !f.name.contains('/') && f.extension() == extension).collect()
        };
        for candidates in [top_level("safetensors"), named("pytorch_model.bin").into_iter().collect(), top_level("pth")]
        {
            match candidates[..] {
                [] => {}
                [only] => return Ok(only),
                _ => {
                    let names: Vec<&str> = candidates.iter().map(|f| &f.name[..]).collect();
                    return Err(format!("several files of weights ({}): choose with --file", names.join(", ")));
                }
            }
        }
        Err("no model.safetensors, pytorch_model.bin or .pth file: choose with --file".to_owned())
    }
}

impl TryFrom<RawFile> for RemoteFile {
    type Error = String;

    fn try_from(raw: RawFile) -> Result<Self, String> {
        let name = raw.rfilename;
        if !is_file_name(&name) {
            return Err(format!("a file is called `{}`", name.escape_debug()));
        }
        let (size, identity) = match (raw.lfs, raw.blob_id) {
            (Some(lfs), _) if is_hex(&lfs.sha256, 64) => (Some(lfs.size), ContentIdentity::Sha256(lfs.sha256)),
            (Some(lfs), _) => return Err(format!("{name}: no SHA-256: `{}`", lfs.sha256.escape_debug())),
            (None, Some(id)) if is_hex(&id, 40) => (raw.size, ContentIdentity::GitBlob(id)),
            (None, Some(id)) => return Err(format!("{name}: no git object: `{}`", id.escape_debug())),
            (None, None) => (raw.size, ContentIdentity::Undeclared),
        };
        Ok(Self { name, size, identity })
    }
}

/// The licence in the card's metadata, else in the tags that the hub derives from it.
fn declared_licence(raw: &RawInfo) -> Option<String> {
    let card = raw.card.as_ref().and_then(|card| card.get("license"));
    let listed = |value: &serde_json::Value| -> Option<String> {
        let names: Vec<&str> = value.as_array()?.iter().filter_map(|v| v.as_str()).collect();
        Some(names.join(", "))
    };
    let in_card = card.and_then(|value| value.as_str().map(str::to_owned).or_else(|| listed(value)));
    in_card.or_else(|| raw.tags.iter().find_map(|tag| tag.strip_prefix("license:").map(str::to_owned)))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

    fn snapshot_of(names: &[&str]) -> Snapshot {
        let siblings: Vec<_> = names.iter().map(|name| serde_json::json!({"rfilename": name, "size": 1})).collect();
        let info = serde_json::json!({"sha": COMMIT, "siblings": siblings, "tags": ["license:apache-2.0"]});
        Snapshot::parse(info.to_string().as_bytes()).unwrap()
    }

    #[test]
    fn the_usual_file_is_chosen_and_ambiguity_is_an_error() {
        let reference = Reference::parse("a/b").unwrap();
        for (names, expected) in [
            (&["x.safetensors", "model.safetensors", "pytorch_model.bin"][..], Some("model.safetensors")),
            (&["x.safetensors", "pytorch_model.bin"], Some("x.safetensors")),
            (&["pytorch_model.bin", "old.pth"], Some("pytorch_model.bin")),
            (&["net.pth", "README.md"], Some("net.pth")),
            (&["a.safetensors", "b.safetensors", "pytorch_model.bin"], None),
            (&["sub/model.safetensors"], None),
            (&["README.md"], None),
        ] {
            let snapshot = snapshot_of(names);
            let found = snapshot.weights(&reference, None).ok().map(|f| &f.name[..]);
            assert_eq!(found, expected, "{names:?}");
        }
        let snapshot = snapshot_of(&["sub/model.safetensors", "model.onnx"]);
        assert!(snapshot.weights(&reference, Some("sub/model.safetensors")).is_ok());
        assert!(snapshot.weights(&reference, Some("model.onnx")).is_err());
        assert!(snapshot.weights(&reference, Some("nothing")).is_err());
        assert_eq!(snapshot.licence.as_deref(), Some("apache-2.0"));
    }

    #[test]
    fn values_that_become_paths_are_checked() {
        let parse_with = |file: serde_json::Value| {
            let info = serde_json::json!({"sha": COMMIT, "siblings": [file]});
            Snapshot::parse(info.to_string().as_bytes())
        };
        assert!(parse_with(serde_json::json!({"rfilename": "ok", "blobId": COMMIT, "size": 3})).is_ok());
        for bad in [
            serde_json::json!({"rfilename": "../../etc/passwd"}),
            serde_json::json!({"rfilename": "ok", "blobId": "../x"}),
            serde_json::json!({"rfilename": "ok", "lfs": {"sha256": "../x", "size": 1}}),
            serde_json::json!({"rfilename": "ok", "size": -1}),
        ] {
            assert!(parse_with(bad.clone()).is_err(), "{bad}");
        }
        assert!(Snapshot::parse(br#"{"sha": "../../x", "siblings": []}"#).is_err());
        assert!(Snapshot::parse(b"<html>").is_err());
    }
}
