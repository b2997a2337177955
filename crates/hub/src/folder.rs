//! Writes the model folder under a temporary name and renames it, so that an interrupted pull leaves nothing that looks
//! like a model.

use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};

use super::HubError;
use super::cache;
use ghostserve_manifest::{Digest, MANIFEST_FILE, Manifest};

/// The change of a model folder by a pull.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FolderOutcome {
    /// The folder is new, or was empty.
    Written,
    /// The folder already held this model.
    Unchanged,
    /// Files of the folder were replaced.
    Replaced,
}

/// The files of a model folder.
pub(super) struct FolderContent<'a> {
    pub(super) manifest: &'a Manifest,
    /// The text of the manifest.
    pub(super) text: &'a str,
    /// The text of the labels file.
    pub(super) labels: &'a str,
    /// A verified file in the cache.
    pub(super) weights: &'a Path,
}

impl FolderContent<'_> {
    /// Writes the files into `folder`, the manifest last: a folder without it is not a model.
    fn write_into(&self, folder: &Path) -> Result<(), HubError> {
        let weights = folder.join(&self.manifest.network.weights);
        link_or_copy(self.weights, &weights).map_err(HubError::io("write", &weights))?;
        cache::write_file(&folder.join(&self.manifest.labels_file), self.labels.as_bytes())?;
        cache::write_file(&folder.join(MANIFEST_FILE), self.text.as_bytes())
    }

    /// The first file in which an existing folder differs from this content; `None` if it is the same model.
    fn difference(&self, folder: &Path) -> Option<String> {
        let same_text =
            |name: &str, text: &str| fs::read(folder.join(name)).is_ok_and(|bytes| bytes == text.as_bytes());
        let manifest = &self.manifest;
        let weights = &manifest.network.weights;
        if !same_text(MANIFEST_FILE, self.text) {
            Some(format!("its {MANIFEST_FILE}"))
        } else if !same_text(&manifest.labels_file, self.labels) {
            Some(format!("its {}", manifest.labels_file))
        } else if fs::read(folder.join(weights)).is_ok_and(|bytes| Some(Digest::of(&bytes)) == manifest.network.digest)
        {
            None
        } else {
            Some(format!("its {weights}"))
        }
    }
}

/// Writes the model into `folder`. If the folder holds something else, its files are replaced one by one with
/// `force`, and it is an error without. Other files in the folder stay.
pub(super) fn write(folder: &Path, content: &FolderContent<'_>, force: bool) -> Result<FolderOutcome, HubError> {
    let exists =
        |difference: &str| HubError::Exists { path: folder.display().to_string(), difference: difference.to_owned() };
    if fs::symlink_metadata(folder).is_err() {
        return create(folder, content).map(|()| FolderOutcome::Written);
    }
    if !folder.is_dir() {
        return Err(exists("it is no folder"));
    }
    let empty = fs::read_dir(folder).map_err(HubError::io("read", folder))?.next().is_none();
    let Some(difference) = content.difference(folder) else { return Ok(FolderOutcome::Unchanged) };
    if !empty && !force {
        return Err(exists(&difference));
    }
    content.write_into(folder)?;
    Ok(if empty { FolderOutcome::Written } else { FolderOutcome::Replaced })
}

/// Creates `folder`, which does not exist, in one step.
fn create(folder: &Path, content: &FolderContent<'_>) -> Result<(), HubError> {
    if !matches!(folder.components().next_back(), Some(Component::Normal(_))) {
        let expected = "the path of a folder to make".to_owned();
        return Err(HubError::Invalid { what: "folder", expected, found: folder.display().to_string() });
    }
    let parent = folder.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::create_dir_all(parent).map_err(HubError::io("make the folder", parent))?;
    let temporary = TemporaryFolder(parent.join(format!(".pull-{}", uuid::Uuid::new_v4())));
    fs::create_dir(&temporary.0).map_err(HubError::io("make the folder", &temporary.0))?;
    content.write_into(&temporary.0)?;
    match fs::rename(&temporary.0, folder) {
        Ok(()) => Ok(()),
        // Another pull was faster; that is fine if it wrote the same model.
        Err(_) if folder.is_dir() && content.difference(folder).is_none() => Ok(()),
        Err(source) => Err(HubError::io("make the folder", folder)(source)),
    }
}

/// A folder that is removed on drop unless it has been renamed.
struct TemporaryFolder(PathBuf);

impl Drop for TemporaryFolder {
    fn drop(&mut self) {
        // After a rename the folder no longer exists, and other errors cannot be handled here.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Gives the cached file another name: by a hard link where possible, else by a copy. Replaces an existing file.
fn link_or_copy(from: &Path, to: &Path) -> io::Result<()> {
    let unique = to.with_file_name(format!(".{}", uuid::Uuid::new_v4()));
    let result = fs::hard_link(from, &unique)
        .or_else(|_| fs::copy(from, &unique).map(|_| ()))
        .and_then(|()| fs::rename(&unique, to));
    // A rename between two names of one file does nothing and leaves the old name.
    let _ = fs::remove_file(&unique);
    result
}
