//! The cache of hubs' files on this disk. Files are named by their digests and verified again before each use, so a
//! damaged cache cannot supply wrong files. The cache may be deleted at any time.
//!
//! ```text
//! blobs/<identity>            a complete and verified file
//! blobs/<identity>.part       the bytes of a file that have arrived so far
//! locks/<identity>            locked while one process fetches the file
//! hubs/<hub>/<owner--name>/refs/<revision>          the commit of a revision
//! hubs/<hub>/<owner--name>/commits/<commit>.json    the files of the repository at a commit
//! ```

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};

use sha2::Digest as _;

use super::client::Endpoint;
use super::reference::{is_commit, percent_encoded};
use super::snapshot::{ContentIdentity, RemoteFile, Snapshot};
use super::{HubError, Reference};
use ghostserve_manifest::{Digest, to_hex, write_atomically};

/// The cache's folder, and the subfolder of one hub.
#[derive(Clone, Debug)]
pub(super) struct Cache {
    root: PathBuf,
    hub: PathBuf,
}

/// A complete and verified file in the cache.
#[derive(Clone, Debug)]
pub(super) struct Blob {
    pub(super) path: PathBuf,
    /// Digest of the file's bytes, computed just now.
    pub(super) digest: Digest,
    /// Size in bytes.
    pub(super) size: u64,
}

impl Cache {
    /// Creates no folders yet.
    pub(super) fn new(root: PathBuf, endpoint: &Endpoint) -> Self {
        let hub = root.join("hubs").join(percent_encoded(endpoint.name()));
        Self { root, hub }
    }

    /// The cache's folder, for messages.
    pub(super) fn root(&self) -> String {
        self.root.display().to_string()
    }

    /// The stored state of a revision when it was last requested from the hub.
    pub(super) fn snapshot(&self, reference: &Reference) -> Option<Snapshot> {
        let folder = self.hub.join(reference.folder());
        let revision = reference.revision();
        let commit = if is_commit(revision) {
            revision.to_owned()
        } else {
            fs::read_to_string(folder.join("refs").join(percent_encoded(revision))).ok()?.trim().to_owned()
        };
        let json = fs::read(folder.join("commits").join(format!("{commit}.json"))).ok()?;
        serde_json::from_slice::<Snapshot>(&json).ok().filter(|s| is_commit(&commit) && s.commit == commit)
    }

    /// Stores the current state of a revision.
    pub(super) fn store_snapshot(&self, reference: &Reference, snapshot: &Snapshot) -> Result<(), HubError> {
        let folder = self.hub.join(reference.folder());
        let json = serde_json::to_vec_pretty(snapshot).unwrap_or_default();
        write_file(&folder.join("commits").join(format!("{}.json", snapshot.commit)), &json)?;
        write_file(&folder.join("refs").join(percent_encoded(reference.revision())), snapshot.commit.as_bytes())
    }

    /// The name of a file in the cache: from its declared digest if there is one, else from its origin.
    pub(super) fn key(&self, reference: &Reference, commit: &str, file: &RemoteFile) -> String {
        match &file.identity {
            ContentIdentity::Sha256(hex) => format!("sha256-{hex}"),
            ContentIdentity::GitBlob(hex) => format!("git-{hex}"),
            ContentIdentity::Undeclared => {
                let origin = format!("{} {} {commit} {}", self.hub.display(), reference.folder(), file.name);
                format!("place-{}", Digest::of(origin.as_bytes()).as_str().trim_start_matches("sha256:"))
            }
        }
    }

    /// The complete file `key`, if the cache has it. A damaged file is removed.
    pub(super) fn blob(&self, key: &str, file: &RemoteFile) -> Result<Option<Blob>, HubError> {
        let path = self.root.join("blobs").join(key);
        if !path.is_file() {
            return Ok(None);
        }
        match verify(&path, file)? {
            Ok(blob) => Ok(Some(blob)),
            Err(_) => fs::remove_file(&path).map_err(HubError::io("remove the damaged", &path)).map(|()| None),
        }
    }

    /// Waits until no other process fetches this file; calls `waiting` if it has to wait. Dropping the returned file,
    /// or the end of the process, releases the lock.
    pub(super) fn lock(&self, key: &str, waiting: impl FnOnce()) -> Result<File, HubError> {
        let path = self.root.join("locks").join(key);
        create_parent(&path)?;
        let error = || HubError::io("lock", &path);
        let file = File::create(&path).map_err(error())?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                waiting();
                file.lock().map_err(error())?;
            }
            Err(TryLockError::Error(source)) => return Err(error()(source)),
        }
        Ok(file)
    }

    /// Opens the partial file `key`, empty if there is none. The caller must hold the file's lock.
    pub(super) fn partial_file(&self, key: &str) -> Result<PartialFile, HubError> {
        let path = self.root.join("blobs").join(format!("{key}.part"));
        create_parent(&path)?;
        let open = || -> io::Result<PartialFile> {
            let mut file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path)?;
            let len = file.seek(io::SeekFrom::End(0))?;
            Ok(PartialFile { path: path.clone(), file, len })
        };
        open().map_err(HubError::io("open", &path))
    }

    /// Gives a complete partial file its final name if it matches the hub's declaration, and removes it otherwise.
    pub(super) fn finish(&self, part: PartialFile, key: &str, file: &RemoteFile) -> Result<Blob, HubError> {
        part.file.sync_all().map_err(HubError::io("write", &part.path))?;
        let mut blob = match verify(&part.path, file)? {
            Ok(blob) => blob,
            Err(error) => {
                part.discard()?;
                return Err(error);
            }
        };
        let path = self.root.join("blobs").join(key);
        fs::rename(&part.path, &path).map_err(HubError::io("rename to", &path))?;
        blob.path = path;
        Ok(blob)
    }
}

/// A file whose download is not complete.
#[derive(Debug)]
pub(super) struct PartialFile {
    path: PathBuf,
    file: File,
    len: u64,
}

impl PartialFile {
    /// Number of bytes that have arrived.
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    pub(super) fn append(&mut self, bytes: &[u8]) -> Result<(), HubError> {
        self.file.write_all(bytes).map_err(HubError::io("write", &self.path))?;
        self.len += bytes.len() as u64;
        Ok(())
    }

    /// Removes all bytes from the file.
    pub(super) fn restart(&mut self) -> Result<(), HubError> {
        let result = self.file.set_len(0).and_then(|()| self.file.rewind());
        self.len = 0;
        result.map_err(HubError::io("empty", &self.path))
    }

    /// Removes the file.
    pub(super) fn discard(self) -> Result<(), HubError> {
        fs::remove_file(&self.path).map_err(HubError::io("remove", &self.path))
    }
}

/// Reads a whole file and compares it with the hub's declaration. The outer error is the disk's, the inner one that
/// of the comparison.
fn verify(path: &Path, file: &RemoteFile) -> Result<Result<Blob, HubError>, HubError> {
    let (digest, git_hash, size) = hashes(path).map_err(HubError::io("read", path))?;
    if let Some(declared) = file.size.filter(|declared| *declared != size) {
        let (expected, found) = (format!("{declared} bytes"), size.to_string());
        return Ok(Err(HubError::Size { file: file.name.clone(), expected, found }));
    }
    let expected = match &file.identity {
        ContentIdentity::Sha256(hex) if *digest.as_str() != format!("sha256:{hex}") => format!("sha256:{hex}"),
        ContentIdentity::GitBlob(hex) if *hex != git_hash => format!("git object {hex}"),
        _ => return Ok(Ok(Blob { path: path.to_owned(), digest, size })),
    };
    Ok(Err(HubError::Digest { file: file.name.clone(), expected, found: digest }))
}

/// The SHA-256, git's object id (in hexadecimal) and the size of a file.
fn hashes(path: &Path) -> io::Result<(Digest, String, u64)> {
    let mut file = File::open(path)?;
    let size = file.metadata()?.len();
    let (mut sha256, mut sha1) = (sha2::Sha256::new(), sha1::Sha1::new());
    sha1.update(format!("blob {size}\0"));
    let mut buffer = vec![0; 1 << 16];
    loop {
        match file.read(&mut buffer)? {
            0 => break,
            n => {
                sha256.update(&buffer[..n]);
                sha1.update(&buffer[..n]);
            }
        }
    }
    Ok((Digest::from_sha256(&sha256.finalize().into()), to_hex(&sha1.finalize()), size))
}

/// Writes a small file in one step and creates its folder if needed.
pub(super) fn write_file(path: &Path, content: &[u8]) -> Result<(), HubError> {
    create_parent(path)?;
    write_atomically(path, content).map_err(HubError::io("write", path))
}

fn create_parent(path: &Path) -> Result<(), HubError> {
    let parent = path.parent().unwrap_or(path);
    fs::create_dir_all(parent).map_err(HubError::io("make the folder", parent))
}
