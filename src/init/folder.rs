//! Writes a model folder under a temporary name first, so that a model that does not run leaves nothing behind.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::InitError;
use ghostserve_hub::FolderOutcome;

/// A folder of files that are not yet in their place. It is removed on drop.
#[derive(Debug)]
pub(super) struct StagedFolder {
    path: PathBuf,
    /// The folder to make or to fill.
    target: PathBuf,
    /// Paths of the files, relative to the folder. The manifest is the last: a folder without it is not a model.
    files: Vec<PathBuf>,
}

impl StagedFolder {
    /// Makes an empty temporary folder: in `target` if that exists, because it may be on another disk than its parent,
    /// and its parent may be read-only; else beside it, so that the finished folder appears in one step.
    pub(super) fn create(target: &Path) -> Result<Self, InitError> {
        let beside = || target.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let parent = if target.is_dir() { target } else { beside() };
        fs::create_dir_all(parent).map_err(InitError::io("make the folder", parent))?;
        let path = parent.join(format!(".init-{}", uuid::Uuid::new_v4()));
        fs::create_dir(&path).map_err(InitError::io("make the folder", &path))?;
        Ok(Self { path, target: target.to_owned(), files: Vec::new() })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Writes a file.
    pub(super) fn write(&mut self, name: &str, bytes: &[u8]) -> Result<(), InitError> {
        let path = self.path.join(name);
        fs::write(&path, bytes).map_err(InitError::io("write", &path))?;
        self.files.push(name.into());
        Ok(())
    }

    /// Copies a file to the relative path `name`. It is no hard link: a training script that writes its file again
    /// would change the model that is served.
    pub(super) fn copy(&mut self, from: &Path, name: &Path) -> Result<(), InitError> {
        let path = self.path.join(name);
        let folder = path.parent().unwrap_or(&self.path);
        fs::create_dir_all(folder).map_err(InitError::io("make the folder", folder))?;
        fs::copy(from, &path).map_err(InitError::io("copy", from))?;
        self.files.push(name.to_owned());
        Ok(())
    }

    /// The first file of the target that has other contents; `None` if nothing would be lost.
    pub(super) fn conflict(&self) -> Result<Option<PathBuf>, InitError> {
        for file in &self.files {
            let target = self.target.join(file);
            // A link that leads nowhere is the user's, too: it has no contents that could be the same.
            let is_link_to_nothing = !target.exists() && fs::symlink_metadata(&target).is_ok();
            let is_other =
                || Ok(!same_contents(&self.path.join(file), &target).map_err(InitError::io("read", &target))?);
            if is_link_to_nothing || (target.exists() && is_other()?) {
                return Ok(Some(target));
            }
        }
        Ok(None)
    }

    /// Moves the files to the target. Other files in it stay.
    pub(super) fn place(self) -> Result<FolderOutcome, InitError> {
        if fs::symlink_metadata(&self.target).is_err() {
            fs::rename(&self.path, &self.target).map_err(InitError::io("make the folder", &self.target))?;
            return Ok(FolderOutcome::Written);
        }
        let mut outcome = FolderOutcome::Unchanged;
        for file in &self.files {
            let (from, to) = (self.path.join(file), self.target.join(file));
            let existed = to.exists();
            if existed && same_contents(&from, &to).map_err(InitError::io("read", &to))? {
                continue;
            }
            let folder = to.parent().unwrap_or(&self.target);
            fs::create_dir_all(folder).map_err(InitError::io("make the folder", folder))?;
            fs::rename(&from, &to).map_err(InitError::io("write", &to))?;
            if outcome != FolderOutcome::Replaced {
                outcome = if existed { FolderOutcome::Replaced } else { FolderOutcome::Written };
            }
        }
        Ok(outcome)
    }
}

impl Drop for StagedFolder {
    fn drop(&mut self) {
        // After a rename the folder no longer exists, and other errors cannot be handled here.
        let _ = fs::remove_dir_all(&self.path);
    }
}

fn same_contents(a: &Path, b: &Path) -> io::Result<bool> {
    if fs::metadata(a)?.len() != fs::metadata(b)?.len() {
        return Ok(false);
    }
    Ok(fs::read(a)? == fs::read(b)?)
}
