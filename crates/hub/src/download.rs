//! Fetching: from the cache, else from the hub, with retries that go on where the last one stopped.

use std::io::Read;
use std::time::Duration;

use http::{HeaderMap, StatusCode};

use super::cache::{Blob, Part};
use super::client::{Answer, Failure, Resume};
use super::reference::{is_commit, percent_encoded};
use super::snapshot::{RemoteFile, Snapshot};
use super::{Event, Hub, HubError, Observer, Reference};

/// The largest description of a repository: thousands of files.
const MAX_METADATA: u64 = 16 << 20;

/// The largest configuration: one with the names of many classes.
const MAX_CONFIG: u64 = 16 << 20;

/// An attempt that brought this much does not count: a line that breaks now and then still gets there.
const PROGRESS: u64 = 1 << 20;

/// Fetches for one pull.
pub(super) struct Fetcher<'a> {
    pub(super) hub: &'a Hub,
    pub(super) reference: &'a Reference,
    pub(super) observer: Observer<'a>,
}

impl Fetcher<'_> {
    /// Which commit the revision is, and what it holds.
    pub(super) fn snapshot(&self) -> Result<Snapshot, HubError> {
        let Self { hub, reference, .. } = self;
        let cached = hub.cache.snapshot(reference);
        let what = || format!("{}@{}", reference.repository(), reference.revision());
        match cached {
            // A commit never changes; what a branch is, only the hub knows.
            Some(snapshot) if hub.offline || is_commit(reference.revision()) => return Ok(snapshot),
            None if hub.offline => return Err(self.offline(what())),
            _ => {}
        }
        let revision = percent_encoded(reference.revision());
        let path = format!("api/models/{}/revision/{revision}?blobs=true", reference.repository());
        let url = hub.client.endpoint().url(&path);
        let json = self.attempts(&url, |_| {
            let answer = hub.client.get(&path, &what(), None)?;
            let mut json = Vec::new();
            match answer.body.take(MAX_METADATA + 1).read_to_end(&mut json) {
                Ok(_) => Ok(json),
                Err(error) => Err(Failure::Retry { reason: error.to_string(), wait: None }),
            }
        })?;
        let answer = |reason| HubError::Answer { url: url.clone(), reason };
        if json.len() as u64 > MAX_METADATA {
            return Err(answer(format!("more than {MAX_METADATA} bytes")));
        }
        let snapshot = Snapshot::parse(&json).map_err(answer)?;
        if is_commit(reference.revision()) && snapshot.commit != reference.revision() {
            return Err(answer(format!("it is of another commit, {}", snapshot.commit)));
        }
        hub.cache.remember(reference, &snapshot)?;
        Ok(snapshot)
    }

    /// A small file's text.
    pub(super) fn small_text(&self, snapshot: &Snapshot, file: &RemoteFile) -> Result<String, HubError> {
        if let Some(size) = file.size.filter(|size| *size > MAX_CONFIG) {
            let (expected, found) = (format!("at most {MAX_CONFIG} bytes"), size.to_string());
            return Err(HubError::Size { file: file.name.clone(), expected, found });
        }
        // Where nothing is declared, this is the declaration.
        let blob = self.fetch(snapshot, file, MAX_CONFIG)?;
        std::fs::read_to_string(&blob.path).map_err(HubError::io("read", &blob.path))
    }

    /// A file of any size, in the cache and verified.
    pub(super) fn blob(&self, snapshot: &Snapshot, file: &RemoteFile) -> Result<Blob, HubError> {
        self.fetch(snapshot, file, self.hub.limits.max_file)
    }

    fn fetch(&self, snapshot: &Snapshot, file: &RemoteFile, limit: u64) -> Result<Blob, HubError> {
        let Hub { cache, .. } = self.hub;
        let key = cache.key(self.reference, &snapshot.commit, file);
        if let Some(blob) = cache.blob(&key, file)? {
            return Ok(blob);
        }
        if self.hub.offline {
            return Err(self.offline(format!("{} of {}", file.name, self.reference.repository())));
        }
        let refused = |found: String| HubError::Size {
            file: file.name.clone(),
            expected: format!("at most {limit} bytes"),
            found,
        };
        let size = file.size.ok_or_else(|| refused("no declared size".to_owned()))?;
        if size > limit {
            return Err(refused(size.to_string()));
        }

        let _lock = cache.lock(&key, || (self.observer)(Event::Waiting { file: &file.name }))?;
        // Whoever held it may have fetched the same.
        if let Some(blob) = cache.blob(&key, file)? {
            return Ok(blob);
        }
        let part = cache.part(&key)?;
        let inherited = part.len() > 0;
        (self.observer)(Event::Started { file: &file.name, size });
        let download = Download { fetcher: self, file, size, commit: &snapshot.commit };
        let blob = match download.run(part).and_then(|part| cache.finish(part, &key, file)) {
            // What an earlier process left may have been damaged: once more, from nothing.
            Err(HubError::Digest { .. } | HubError::Size { .. }) if inherited => {
                download.run(cache.part(&key)?).and_then(|part| cache.finish(part, &key, file))
            }
            other => other,
        }?;
        (self.observer)(Event::Finished);
        Ok(blob)
    }

    /// Tries until it works, cannot work, or has been tried often enough. `attempt` is given whether the one before it got
    /// somewhere, through the cell it sets.
    fn attempts<T>(&self, url: &str, mut attempt: impl FnMut(&mut u64) -> Result<T, Failure>) -> Result<T, HubError> {
        let limits = &self.hub.limits;
        let (mut tried, mut delay) = (0, limits.backoff);
        let url = super::client::without_query(url);
        loop {
            let mut brought = 0;
            let (reason, wait) = match attempt(&mut brought) {
                Ok(value) => return Ok(value),
                Err(Failure::Final(error)) => return Err(error),
                Err(Failure::Retry { reason, wait }) => (reason, wait),
            };
            if brought >= PROGRESS {
                (tried, delay) = (0, limits.backoff);
            }
            tried += 1;
            if tried >= limits.attempts {
                return Err(HubError::Broken { url, reason, attempts: tried });
            }
            if let Some(asked) = wait.filter(|asked| *asked > limits.longest_wait) {
                return Err(HubError::Busy { url, seconds: asked.as_secs() });
            }
            let wait = wait.unwrap_or(delay).max(Duration::from_millis(1));
            (self.observer)(Event::Retrying { reason: &reason, wait });
            std::thread::sleep(wait);
            delay = (delay * 2).min(limits.longest_wait);
        }
    }

    fn offline(&self, what: String) -> HubError {
        HubError::Offline { what, cache: self.hub.cache.root() }
    }
}

/// One file on its way.
struct Download<'a> {
    fetcher: &'a Fetcher<'a>,
    file: &'a RemoteFile,
    /// Declared, within the limit.
    size: u64,
    commit: &'a str,
}

impl Download<'_> {
    /// Appends to `part` until it is as long as declared. If more comes, nothing is kept.
    fn run(&self, mut part: Part) -> Result<Part, HubError> {
        let repository = self.fetcher.reference.repository();
        let name: Vec<String> = self.file.name.split('/').map(percent_encoded).collect();
        let path = format!("{repository}/resolve/{}/{}", self.commit, name.join("/"));
        let url = self.fetcher.hub.client.endpoint().url(&path);
        if part.len() > self.size {
            part.restart()?;
        }
        let mut etag = None;
        let result = self.fetcher.attempts(&url, |brought| {
            let before = part.len();
            let result = self.attempt(&path, &mut part, &mut etag);
            *brought = part.len().saturating_sub(before);
            result
        });
        match result {
            Ok(()) => Ok(part),
            Err(error @ HubError::Size { .. }) => part.discard().and(Err(error)),
            Err(error) => Err(error),
        }
    }

    fn attempt(&self, path: &str, part: &mut Part, etag: &mut Option<String>) -> Result<(), Failure> {
        if part.len() == self.size {
            return Ok(());
        }
        let resume = (part.len() > 0).then(|| Resume { from: part.len(), etag: etag.clone() });
        let what = format!("{} in {}", self.file.name, self.fetcher.reference.repository());
        let mut answer = self.fetcher.hub.client.get(path, &what, resume.as_ref())?;
        self.same_file(&answer.hub_headers)?;
        match (answer.status, answer.range()) {
            (StatusCode::PARTIAL_CONTENT, Some((first, total)))
                if first == part.len() && total.is_none_or(|total| total == self.size) => {}
            (StatusCode::OK, _) => part.restart()?,
            // A part that the server cannot continue is of no use.
            (status, _) => {
                part.restart()?;
                let reason = format!("the answer to a range was {} with another range", status.as_u16());
                return Err(Failure::Retry { reason, wait: None });
            }
        }
        *etag = answer.etag();
        (self.fetcher.observer)(Event::Position(part.len()));
        self.receive(&mut answer, part)
    }

    fn receive(&self, answer: &mut Answer, part: &mut Part) -> Result<(), Failure> {
        let mut buffer = vec![0; 1 << 16];
        loop {
            let read = match answer.body.read(&mut buffer) {
                Ok(0) if part.len() == self.size => return Ok(()),
                Ok(0) => {
                    let reason = format!("it ended after {} of {} bytes", part.len(), self.size);
                    return Err(Failure::Retry { reason, wait: None });
                }
                Ok(read) => read,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(Failure::Retry { reason: error.to_string(), wait: None }),
            };
            if part.len() + read as u64 > self.size {
                let (expected, found) = (format!("{} bytes", self.size), "more".to_owned());
                return Err(HubError::Size { file: self.file.name.clone(), expected, found }.into());
            }
            part.append(&buffer[..read])?;
            (self.fetcher.observer)(Event::Position(part.len()));
        }
    }

    /// What the endpoint says beside the file, or beside the redirection to it, must be about this file.
    fn same_file(&self, headers: &HeaderMap) -> Result<(), HubError> {
        let value = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        let size = self.size.to_string();
        for (name, expected) in [("x-repo-commit", self.commit), ("x-linked-size", &size)] {
            if let Some(found) = value(name).filter(|found| *found != expected) {
                let what = "the hub's answer for a file";
                let expected = format!("{name}: {expected}");
                return Err(HubError::Invalid { what, expected, found: found.escape_debug().to_string() });
            }
        }
        Ok(())
    }
}
