//! Fetches files from the cache, else from the hub. A retry continues where the previous attempt stopped.

use std::io::Read;
use std::time::Duration;

use http::{HeaderMap, StatusCode};

use super::cache::{Blob, PartialFile};
use super::client::{HubResponse, RequestFailure, ResumePoint};
use super::reference::{is_commit, percent_encoded};
use super::snapshot::{RemoteFile, Snapshot};
use super::{Hub, HubError, PullEvent, PullObserver, Reference};

/// Largest description of a repository, bytes: enough for thousands of files.
const MAX_METADATA: u64 = 16 << 20;

/// Largest configuration, bytes: enough for the names of many classes.
const MAX_CONFIG: u64 = 16 << 20;

/// Received bytes from which an attempt does not count: a connection that breaks now and then still completes the file.
const SUFFICIENT_PROGRESS: u64 = 1 << 20;

/// Fetches the files of one pull.
pub(super) struct Fetcher<'a> {
    pub(super) hub: &'a Hub,
    pub(super) reference: &'a Reference,
    pub(super) observer: PullObserver<'a>,
}

impl Fetcher<'_> {
    /// The commit of the revision, and its files.
    pub(super) fn snapshot(&self) -> Result<Snapshot, HubError> {
        let Self { hub, reference, .. } = self;
        let cached = hub.cache.snapshot(reference);
        let what = || format!("{}@{}", reference.repository(), reference.revision());
        match cached {
            // A commit never changes; the commit of a branch is known only to the hub.
            Some(snapshot) if hub.offline || is_commit(reference.revision()) => return Ok(snapshot),
            None if hub.offline => return Err(self.offline(what())),
            _ => {}
        }
        let revision = percent_encoded(reference.revision());
        let path = format!("api/models/{}/revision/{revision}?blobs=true", reference.repository());
        let url = hub.client.endpoint().url(&path);
        let json = self.with_retries(&url, |_| {
            let response = hub.client.get(&path, &what(), None)?;
            let mut json = Vec::new();
            match response.body.take(MAX_METADATA + 1).read_to_end(&mut json) {
                Ok(_) => Ok(json),
                Err(error) => Err(RequestFailure::Retry { reason: error.to_string(), wait: None }),
            }
        })?;
        let invalid = |reason| HubError::InvalidDescription { url: url.clone(), reason };
        if json.len() as u64 > MAX_METADATA {
            return Err(invalid(format!("more than {MAX_METADATA} bytes")));
        }
        let snapshot = Snapshot::parse(&json).map_err(invalid)?;
        if is_commit(reference.revision()) && snapshot.commit != reference.revision() {
            return Err(invalid(format!("it is of another commit, {}", snapshot.commit)));
        }
        hub.cache.store_snapshot(reference, &snapshot)?;
        Ok(snapshot)
    }

    /// The text of a small file.
    pub(super) fn small_text(&self, snapshot: &Snapshot, file: &RemoteFile) -> Result<String, HubError> {
        if let Some(size) = file.size.filter(|size| *size > MAX_CONFIG) {
            let (expected, found) = (format!("at most {MAX_CONFIG} bytes"), size.to_string());
            return Err(HubError::Size { file: file.name.clone(), expected, found });
        }
        // A file without a declared size fails in `fetch`.
        let blob = self.fetch(snapshot, file, MAX_CONFIG)?;
        std::fs::read_to_string(&blob.path).map_err(HubError::io("read", &blob.path))
    }

    /// A file of any permitted size, verified and in the cache.
    pub(super) fn blob(&self, snapshot: &Snapshot, file: &RemoteFile) -> Result<Blob, HubError> {
        self.fetch(snapshot, file, self.hub.limits.max_file_size)
    }

    /// Fetches a file of at most `limit` bytes into the cache, unless it is there.
    fn fetch(&self, snapshot: &Snapshot, file: &RemoteFile, limit: u64) -> Result<Blob, HubError> {
        let Hub { cache, .. } = self.hub;
        let key = cache.key(self.reference, &snapshot.commit, file);
        if let Some(blob) = cache.blob(&key, file)? {
            return Ok(blob);
        }
        if self.hub.offline {
            return Err(self.offline(format!("{} of {}", file.name, self.reference.repository())));
        }
        let too_large = |found: String| HubError::Size {
            file: file.name.clone(),
            expected: format!("at most {limit} bytes"),
            found,
        };
        let size = file.size.ok_or_else(|| too_large("no declared size".to_owned()))?;
        if size > limit {
            return Err(too_large(size.to_string()));
        }

        let _lock = cache.lock(&key, || (self.observer)(PullEvent::Waiting { file: &file.name }))?;
        // The previous holder of the lock may have fetched this file.
        if let Some(blob) = cache.blob(&key, file)? {
            return Ok(blob);
        }
        let part = cache.partial_file(&key)?;
        let inherited = part.len() > 0;
        (self.observer)(PullEvent::Started { file: &file.name, size });
        let download = Download { fetcher: self, file, size, commit: &snapshot.commit };
        let blob = match download.run(part).and_then(|part| cache.finish(part, &key, file)) {
            // The partial file of an earlier process may be damaged: try once more from the start.
            Err(HubError::Digest { .. } | HubError::Size { .. }) if inherited => {
                download.run(cache.partial_file(&key)?).and_then(|part| cache.finish(part, &key, file))
            }
            other => other,
        }?;
        (self.observer)(PullEvent::Finished);
        Ok(blob)
    }

    /// Repeats `attempt` until it succeeds, fails finally, or the attempts are used up. `attempt` sets its argument
    /// to the number of bytes that it received; with enough of them, the count and the backoff start anew.
    fn with_retries<T>(
        &self,
        url: &str,
        mut attempt: impl FnMut(&mut u64) -> Result<T, RequestFailure>,
    ) -> Result<T, HubError> {
        let limits = &self.hub.limits;
        let (mut attempts, mut backoff) = (0, limits.initial_backoff);
        let url = super::client::without_query(url);
        loop {
            let mut received = 0;
            let (reason, requested_wait) = match attempt(&mut received) {
                Ok(value) => return Ok(value),
                Err(RequestFailure::Final(error)) => return Err(error),
                Err(RequestFailure::Retry { reason, wait }) => (reason, wait),
            };
            if received >= SUFFICIENT_PROGRESS {
                (attempts, backoff) = (0, limits.initial_backoff);
            }
            attempts += 1;
            if attempts >= limits.attempts {
                return Err(HubError::Broken { url, reason, attempts });
            }
            if let Some(wait) = requested_wait.filter(|wait| *wait > limits.max_backoff) {
                return Err(HubError::Busy { url, seconds: wait.as_secs() });
            }
            let wait = requested_wait.unwrap_or(backoff).max(Duration::from_millis(1));
            (self.observer)(PullEvent::Retrying { reason: &reason, wait });
            std::thread::sleep(wait);
            backoff = (backoff * 2).min(limits.max_backoff);
        }
    }

    fn offline(&self, what: String) -> HubError {
        HubError::Offline { what, cache: self.hub.cache.root() }
    }
}

/// The download of one file.
struct Download<'a> {
    fetcher: &'a Fetcher<'a>,
    file: &'a RemoteFile,
    /// Declared size, within the limit; bytes.
    size: u64,
    commit: &'a str,
}

impl Download<'_> {
    /// Appends to `part` until it has the declared size. If more bytes arrive, the partial file is removed.
    fn run(&self, mut part: PartialFile) -> Result<PartialFile, HubError> {
        let repository = self.fetcher.reference.repository();
        let segments: Vec<String> = self.file.name.split('/').map(percent_encoded).collect();
        let path = format!("{repository}/resolve/{}/{}", self.commit, segments.join("/"));
        let url = self.fetcher.hub.client.endpoint().url(&path);
        if part.len() > self.size {
            part.restart()?;
        }
        let mut etag = None;
        let result = self.fetcher.with_retries(&url, |received| {
            let before = part.len();
            let result = self.attempt(&path, &mut part, &mut etag);
            *received = part.len().saturating_sub(before);
            result
        });
        match result {
            Ok(()) => Ok(part),
            Err(error @ HubError::Size { .. }) => part.discard().and(Err(error)),
            Err(error) => Err(error),
        }
    }

    /// Makes one request for the missing bytes. `etag` is the version of those that have arrived, where it is known.
    fn attempt(&self, path: &str, part: &mut PartialFile, etag: &mut Option<String>) -> Result<(), RequestFailure> {
        if part.len() == self.size {
            return Ok(());
        }
        let resume = (part.len() > 0).then(|| ResumePoint { from: part.len(), etag: etag.clone() });
        let what = format!("{} in {}", self.file.name, self.fetcher.reference.repository());
        let mut response = self.fetcher.hub.client.get(path, &what, resume.as_ref())?;
        self.check_headers(&response.hub_headers)?;
        match (response.status, response.range()) {
            (StatusCode::PARTIAL_CONTENT, Some((first, total)))
                if first == part.len() && total.is_none_or(|total| total == self.size) => {}
            (StatusCode::OK, _) => part.restart()?,
            // A partial file that the server cannot continue is useless.
            (status, _) => {
                part.restart()?;
                let reason = format!("the answer to a range was {} with another range", status.as_u16());
                return Err(RequestFailure::Retry { reason, wait: None });
            }
        }
        *etag = response.etag();
        (self.fetcher.observer)(PullEvent::Position(part.len()));
        self.receive(&mut response, part)
    }

    /// Appends the body of `response` to `part`. It must end at the declared size.
    fn receive(&self, response: &mut HubResponse, part: &mut PartialFile) -> Result<(), RequestFailure> {
        let mut buffer = vec![0; 1 << 16];
        loop {
            let read = match response.body.read(&mut buffer) {
                Ok(0) if part.len() == self.size => return Ok(()),
                Ok(0) => {
                    let reason = format!("it ended after {} of {} bytes", part.len(), self.size);
                    return Err(RequestFailure::Retry { reason, wait: None });
                }
                Ok(read) => read,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(RequestFailure::Retry { reason: error.to_string(), wait: None }),
            };
            if part.len() + read as u64 > self.size {
                let (expected, found) = (format!("{} bytes", self.size), "more".to_owned());
                return Err(HubError::Size { file: self.file.name.clone(), expected, found }.into());
            }
            part.append(&buffer[..read])?;
            (self.fetcher.observer)(PullEvent::Position(part.len()));
        }
    }

    /// Checks that the endpoint's headers, of the file or of the redirection to it, belong to this file.
    fn check_headers(&self, headers: &HeaderMap) -> Result<(), HubError> {
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
