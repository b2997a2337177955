//! The model folder: made beside its place and renamed, so that an interrupted pull leaves nothing that looks like a model.

use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};

use super::HubError;
use super::cache;
use ghostserve_manifest::{Digest, MANIFEST_FILE, Manifest};

/// What was done to a folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is new.
    Written,
    /// It held this model already.
    Unchanged,
    /// Its files were replaced.
    Replaced,
}

/// What a folder is to hold.
pub(super) struct Content<'a> {
    pub(super) manifest: &'a Manifest,
    /// The manifest as written.
    pub(super) text: &'a str,
    pub(super) labels: &'a str,
    /// A verified file.
    pub(super) weights: &'a Path,
}

impl Content<'_> {
    /// Puts the files into `folder`, the manifest last: without it, it is no model.
    fn write_into(&self, folder: &Path) -> Result<(), HubError> {
        let weights = folder.join(&self.manifest.network.weights);
        place(self.weights, &weights).map_err(HubError::io("write", &weights))?;
        cache::write(&folder.join(&self.manifest.labels_file), self.labels.as_bytes())?;
        cache::write(&folder.join(MANIFEST_FILE), self.text.as_bytes())
    }

    /// The first thing in which an existing folder is not this.
    fn difference(&self, folder: &Path) -> Option<String> {
        let same_text =
            |name: &str, text: &str| fs::read(folder.join(name)).is_ok_and(|there| there == text.as_bytes());
        let manifest = &self.manifest;
        let weights = &manifest.network.weights;
        if !same_text(MANIFEST_FILE, self.text) {
            Some(format!("its {MANIFEST_FILE}"))
        } else if !same_text(&manifest.labels_file, self.labels) {
            Some(format!("its {}", manifest.labels_file))
        } else if fs::read(folder.join(weights)).is_ok_and(|bytes| Digest::of(&bytes) == manifest.network.digest) {
            None
        } else {
            Some(format!("its {weights}"))
        }
    }
}

/// Makes `folder` hold the model. A folder that holds something else is replaced file by file if `force` says so; what
/// else lies there stays.
pub(super) fn write(folder: &Path, content: &Content<'_>, force: bool) -> Result<Outcome, HubError> {
    let exists =
        |difference: &str| HubError::Exists { path: folder.display().to_string(), difference: difference.to_owned() };
    if fs::symlink_metadata(folder).is_err() {
        return fresh(folder, content).map(|()| Outcome::Written);
    }
    if !folder.is_dir() {
        return Err(exists("it is no folder"));
    }
    let empty = fs::read_dir(folder).map_err(HubError::io("read", folder))?.next().is_none();
    let Some(difference) = content.difference(folder) else { return Ok(Outcome::Unchanged) };
    if !empty && !force {
        return Err(exists(&difference));
    }
    content.write_into(folder)?;
    Ok(if empty { Outcome::Written } else { Outcome::Replaced })
}

fn fresh(folder: &Path, content: &Content<'_>) -> Result<(), HubError> {
    if !matches!(folder.components().next_back(), Some(Component::Normal(_))) {
        let expected = "the path of a folder to make".to_owned();
        return Err(HubError::Invalid { what: "folder", expected, found: folder.display().to_string() });
    }
    let parent = folder.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::create_dir_all(parent).map_err(HubError::io("make the folder", parent))?;
    let temporary = Temporary(parent.join(format!(".pull-{}", uuid::Uuid::new_v4())));
    fs::create_dir(&temporary.0).map_err(HubError::io("make the folder", &temporary.0))?;
    content.write_into(&temporary.0)?;
    match fs::rename(&temporary.0, folder) {
        Ok(()) => Ok(()),
        // Another pull was faster: fine if it was of the same.
        Err(_) if folder.is_dir() && content.difference(folder).is_none() => Ok(()),
        Err(source) => Err(HubError::io("make the folder", folder)(source)),
    }
}

/// A folder that is removed if it has not been renamed.
struct Temporary(PathBuf);

impl Drop for Temporary {
    fn drop(&mut self) {
        // Gone if all went well, and nothing can be done about it otherwise.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// The cached file under another name: one file on the disk where that can be, else a copy. Replaces what is there.
fn place(from: &Path, to: &Path) -> io::Result<()> {
    let unique = to.with_file_name(format!(".{}", uuid::Uuid::new_v4()));
    let result = fs::hard_link(from, &unique)
        .or_else(|_| fs::copy(from, &unique).map(|_| ()))
        .and_then(|()| fs::rename(&unique, to));
    // Renaming between two names of one file does nothing, also not removing the old name.
    let _ = fs::remove_file(&unique);
    result
}
