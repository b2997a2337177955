//! What a repository holds at one commit, as the hub tells it, and which of its files are the weights.

use serde::{Deserialize, Serialize};

use super::reference::{is_commit, is_file_name, is_hex};
use super::{HubError, Reference};

/// A repository at a commit. Kept in the cache as JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Snapshot {
    /// 40 hexadecimal digits.
    pub(super) commit: String,
    /// As the repository's card tells it.
    pub(super) licence: Option<String>,
    /// All files.
    pub(super) files: Vec<RemoteFile>,
}

/// A file at that commit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct RemoteFile {
    /// Its path in the repository.
    pub(super) name: String,
    /// Bytes, where the hub tells.
    pub(super) size: Option<u64>,
    /// How its content is recognised.
    pub(super) identity: Identity,
}

/// What the hub declares about a file's content.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Identity {
    /// SHA-256, of files that git keeps elsewhere (LFS): weights.
    Sha256(String),
    /// Git's own SHA-1, of small files.
    GitBlob(String),
    /// Nothing: some mirrors leave it out.
    Undeclared,
}

impl RemoteFile {
    /// `safetensors`, `bin`, `pth`.
    pub(super) fn extension(&self) -> &str {
        self.name.rsplit_once('.').map_or("", |(_, extension)| extension)
    }
}

/// The hub's answer, as far as it is used.
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
    /// Reads the hub's answer. Everything that later becomes part of a path or an address is checked here.
    pub(super) fn parse(json: &[u8]) -> Result<Self, String> {
        let raw: RawInfo = serde_json::from_slice(json).map_err(|e| e.to_string())?;
        if !is_commit(&raw.sha) {
            return Err(format!("`sha` is no commit: `{}`", raw.sha.escape_debug()));
        }
        let licence = licence(&raw);
        let files = raw.siblings.into_iter().map(RemoteFile::try_from).collect::<Result<_, _>>()?;
        Ok(Self { commit: raw.sha, licence, files })
    }

    /// The file called `name`.
    pub(super) fn file(&self, reference: &Reference, name: &str) -> Result<&RemoteFile, HubError> {
        let what = || format!("file {name} in {}@{}", reference.repository(), reference.revision());
        self.files.iter().find(|f| f.name == name).ok_or_else(|| HubError::NotFound { what: what() })
    }

    /// The weights: the file asked for, or the usual one.
    pub(super) fn weights(&self, reference: &Reference, asked: Option<&str>) -> Result<&RemoteFile, HubError> {
        const READ: [&str; 3] = ["safetensors", "bin", "pth"];
        let found = match asked {
            Some(name) => self.file(reference, name)?,
            None => self
                .usual_weights()
                .map_err(|reason| HubError::Weights { repository: reference.repository(), reason })?,
        };
        if READ.contains(&found.extension()) {
            Ok(found)
        } else {
            let expected = "a .safetensors, .bin or .pth file".to_owned();
            Err(HubError::Invalid { what: "weights", expected, found: found.name.clone() })
        }
    }

    fn usual_weights(&self) -> Result<&RemoteFile, String> {
        let named = |name: &str| self.files.iter().find(|f| f.name == name);
        if let Some(file) = named("model.safetensors") {
            return Ok(file);
        }
        // A kind at a time: safetensors cannot hold code, pickles can.
        let top = |extension: &str| -> Vec<&RemoteFile> {
            self.files.iter().filter(|f| !f.name.contains('/') && f.extension() == extension).collect()
        };
        for candidates in [top("safetensors"), named("pytorch_model.bin").into_iter().collect(), top("pth")] {
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
            (Some(lfs), _) if is_hex(&lfs.sha256, 64) => (Some(lfs.size), Identity::Sha256(lfs.sha256)),
            (Some(lfs), _) => return Err(format!("{name}: no SHA-256: `{}`", lfs.sha256.escape_debug())),
            (None, Some(id)) if is_hex(&id, 40) => (raw.size, Identity::GitBlob(id)),
            (None, Some(id)) => return Err(format!("{name}: no git object: `{}`", id.escape_debug())),
            (None, None) => (raw.size, Identity::Undeclared),
        };
        Ok(Self { name, size, identity })
    }
}

/// From the card's head, else from the tags that the hub makes of it.
fn licence(raw: &RawInfo) -> Option<String> {
    let card = raw.card.as_ref().and_then(|card| card.get("license"));
    let listed = |value: &serde_json::Value| -> Option<String> {
        let names: Vec<&str> = value.as_array()?.iter().filter_map(|v| v.as_str()).collect();
        Some(names.join(", "))
    };
    let told = card.and_then(|value| value.as_str().map(str::to_owned).or_else(|| listed(value)));
    told.or_else(|| raw.tags.iter().find_map(|tag| tag.strip_prefix("license:").map(str::to_owned)))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

    fn of(names: &[&str]) -> Snapshot {
        let siblings: Vec<_> = names.iter().map(|name| serde_json::json!({"rfilename": name, "size": 1})).collect();
        let info = serde_json::json!({"sha": COMMIT, "siblings": siblings, "tags": ["license:apache-2.0"]});
        Snapshot::parse(info.to_string().as_bytes()).unwrap()
    }

    #[test]
    fn the_usual_file_is_chosen_and_doubt_is_an_error() {
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
            let snapshot = of(names);
            let found = snapshot.weights(&reference, None).ok().map(|f| &f.name[..]);
            assert_eq!(found, expected, "{names:?}");
        }
        let snapshot = of(&["sub/model.safetensors", "model.onnx"]);
        assert!(snapshot.weights(&reference, Some("sub/model.safetensors")).is_ok());
        assert!(snapshot.weights(&reference, Some("model.onnx")).is_err());
        assert!(snapshot.weights(&reference, Some("nothing")).is_err());
        assert_eq!(snapshot.licence.as_deref(), Some("apache-2.0"));
    }

    #[test]
    fn what_would_become_a_path_is_checked() {
        let sibling = |file: serde_json::Value| {
            let info = serde_json::json!({"sha": COMMIT, "siblings": [file]});
            Snapshot::parse(info.to_string().as_bytes())
        };
        assert!(sibling(serde_json::json!({"rfilename": "ok", "blobId": COMMIT, "size": 3})).is_ok());
        for bad in [
            serde_json::json!({"rfilename": "../../etc/passwd"}),
            serde_json::json!({"rfilename": "ok", "blobId": "../x"}),
            serde_json::json!({"rfilename": "ok", "lfs": {"sha256": "../x", "size": 1}}),
            serde_json::json!({"rfilename": "ok", "size": -1}),
        ] {
            assert!(sibling(bad.clone()).is_err(), "{bad}");
        }
        assert!(Snapshot::parse(br#"{"sha": "../../x", "siblings": []}"#).is_err());
        assert!(Snapshot::parse(b"<html>").is_err());
    }
}
