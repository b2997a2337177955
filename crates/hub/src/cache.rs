//! Files of hubs on this disk. Contents are kept under their digests and read again before they are used, so whatever
//! happens to a cache, nothing wrong comes out of it; it may be deleted at any time.
//!
//! ```text
//! blobs/<identity>            whole and verified
//! blobs/<identity>.part       what has arrived so far
//! locks/<identity>            held while one process fetches
//! hubs/<hub>/<owner--name>/refs/<revision>          a commit
//! hubs/<hub>/<owner--name>/commits/<commit>.json    what the repository holds there
//! ```

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};

use sha2::Digest as _;

use super::client::Endpoint;
use super::reference::{is_commit, percent_encoded};
use super::snapshot::{Identity, RemoteFile, Snapshot};
use super::{HubError, Reference};
use ghostserve_manifest::Digest;

/// A cache's folder, and the part of it that is this hub's.
#[derive(Clone, Debug)]
pub(super) struct Cache {
    root: PathBuf,
    hub: PathBuf,
}

/// A whole file in the cache.
#[derive(Clone, Debug)]
pub(super) struct Blob {
    pub(super) path: PathBuf,
    /// Of all its bytes, just read.
    pub(super) digest: Digest,
    /// Bytes.
    pub(super) size: u64,
}

impl Cache {
    /// Makes nothing yet.
    pub(super) fn new(root: PathBuf, endpoint: &Endpoint) -> Self {
        let hub = root.join("hubs").join(percent_encoded(endpoint.name()));
        Self { root, hub }
    }

    pub(super) fn root(&self) -> String {
        self.root.display().to_string()
    }

    /// What a revision was when it was last asked for.
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

    /// Remembers what a revision is.
    pub(super) fn remember(&self, reference: &Reference, snapshot: &Snapshot) -> Result<(), HubError> {
        let folder = self.hub.join(reference.folder());
        let json = serde_json::to_vec_pretty(snapshot).unwrap_or_default();
        write(&folder.join("commits").join(format!("{}.json", snapshot.commit)), &json)?;
        write(&folder.join("refs").join(percent_encoded(reference.revision())), snapshot.commit.as_bytes())
    }

    /// What a file is called here: by its content where that is known, else by where it is from.
    pub(super) fn key(&self, reference: &Reference, commit: &str, file: &RemoteFile) -> String {
        match &file.identity {
            Identity::Sha256(hex) => format!("sha256-{hex}"),
            Identity::GitBlob(hex) => format!("git-{hex}"),
            Identity::Undeclared => {
                let place = format!("{} {} {commit} {}", self.hub.display(), reference.folder(), file.name);
                format!("place-{}", Digest::of(place.as_bytes()).as_str().trim_start_matches("sha256:"))
            }
        }
    }

    /// A whole file, if it is there. One that has been damaged is thrown away.
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

    /// Waits until no other process fetches this file. The lock ends with the value, and with the process.
    pub(super) fn lock(&self, key: &str, waiting: impl FnOnce()) -> Result<File, HubError> {
        let path = self.root.join("locks").join(key);
        make_parent(&path)?;
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

    /// What has arrived so far. To be called under the file's lock.
    pub(super) fn part(&self, key: &str) -> Result<Part, HubError> {
        let path = self.root.join("blobs").join(format!("{key}.part"));
        make_parent(&path)?;
        let open = || -> io::Result<Part> {
            let mut file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path)?;
            let len = file.seek(io::SeekFrom::End(0))?;
            Ok(Part { path: path.clone(), file, len })
        };
        open().map_err(HubError::io("open", &path))
    }

    /// Gives a part that has arrived its final name, if it is what was declared; otherwise it is removed.
    pub(super) fn finish(&self, part: Part, key: &str, file: &RemoteFile) -> Result<Blob, HubError> {
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

/// A file that is arriving.
#[derive(Debug)]
pub(super) struct Part {
    path: PathBuf,
    file: File,
    len: u64,
}

impl Part {
    /// Bytes so far.
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    pub(super) fn append(&mut self, bytes: &[u8]) -> Result<(), HubError> {
        self.file.write_all(bytes).map_err(HubError::io("write", &self.path))?;
        self.len += bytes.len() as u64;
        Ok(())
    }

    /// Forgets what has arrived.
    pub(super) fn restart(&mut self) -> Result<(), HubError> {
        let result = self.file.set_len(0).and_then(|()| self.file.rewind());
        self.len = 0;
        result.map_err(HubError::io("empty", &self.path))
    }

    /// Ends it without a trace.
    pub(super) fn discard(self) -> Result<(), HubError> {
        fs::remove_file(&self.path).map_err(HubError::io("remove", &self.path))
    }
}

/// Reads a whole file and holds it against what the hub declares. The outer error is the disk's.
fn verify(path: &Path, file: &RemoteFile) -> Result<Result<Blob, HubError>, HubError> {
    let (digest, git, size) = hashes(path).map_err(HubError::io("read", path))?;
    if let Some(declared) = file.size.filter(|declared| *declared != size) {
        let (expected, found) = (format!("{declared} bytes"), size.to_string());
        return Ok(Err(HubError::Size { file: file.name.clone(), expected, found }));
    }
    let expected = match &file.identity {
        Identity::Sha256(hex) if *digest.as_str() != format!("sha256:{hex}") => format!("sha256:{hex}"),
        Identity::GitBlob(hex) if *hex != git => format!("git object {hex}"),
        _ => return Ok(Ok(Blob { path: path.to_owned(), digest, size })),
    };
    Ok(Err(HubError::Digest { file: file.name.clone(), expected, found: digest }))
}

/// SHA-256, git's object id, and the number of bytes.
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
    let git = sha1.finalize().iter().map(|b| format!("{b:02x}")).collect();
    Ok((Digest::from_sha256(&sha256.finalize().into()), git, size))
}

/// Writes a small file in one step: a reader sees the old one or the new one.
pub(super) fn write(path: &Path, content: &[u8]) -> Result<(), HubError> {
    make_parent(path)?;
    let unique = path.with_file_name(format!(".{}", uuid::Uuid::new_v4()));
    let result = fs::write(&unique, content).and_then(|()| fs::rename(&unique, path));
    if result.is_err() {
        // The first error counts.
        let _ = fs::remove_file(&unique);
    }
    result.map_err(HubError::io("write", path))
}

fn make_parent(path: &Path) -> Result<(), HubError> {
    let parent = path.parent().unwrap_or(path);
    fs::create_dir_all(parent).map_err(HubError::io("make the folder", parent))
}
