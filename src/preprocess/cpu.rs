//! A limit on the processor time that decoding one image takes.
//!
//! Small files can keep a decoder busy for minutes without a large image in them: a GIF of codes that only clear the
//! table, or a PNG of compressed blocks without content. Their decoders read through a [`LimitedReader`], which fails
//! once the thread has computed for too long. The limit counts the thread's own processor time, so the load of the
//! machine makes no difference.

use std::borrow::Cow;
use std::cell::Cell;
use std::io::{self, BufRead, Cursor, Read, Seek, SeekFrom};
use std::rc::Rc;
use std::time::Duration;

/// Maximum number of bytes that a decoder gets per read. The clock is read each time.
const READ_BYTES: usize = 16 << 10;

/// A limit on the processor time that one image may take on this thread.
#[derive(Clone, Debug)]
pub(super) struct CpuLimit {
    /// Value of the thread's clock at which the time is used up.
    end: Duration,
    exceeded: Rc<Cell<bool>>,
}

impl CpuLimit {
    /// Creates a limit that counts from now.
    pub(super) fn new(limit: Duration) -> Self {
        Self { end: thread_time().saturating_add(limit), exceeded: Rc::default() }
    }

    /// Whether a reader failed because of this limit.
    pub(super) fn was_exceeded(&self) -> bool {
        self.exceeded.get()
    }

    fn check(&self) -> io::Result<()> {
        if thread_time() <= self.end {
            return Ok(());
        }
        self.exceeded.set(true);
        Err(io::Error::other("decoding takes too long"))
    }
}

/// Returns the processor time that the calling thread has used. Zero where it is not known, so there is no limit.
pub(super) fn thread_time() -> Duration {
    #[cfg(unix)]
    {
        let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
        Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0))
    }
    #[cfg(not(unix))]
    Duration::ZERO
}

/// Reads a file within a [`CpuLimit`].
pub(super) struct LimitedReader<'a> {
    file: Cursor<Cow<'a, [u8]>>,
    limit: CpuLimit,
}

impl<'a> LimitedReader<'a> {
    pub(super) fn new(file: Cow<'a, [u8]>, limit: CpuLimit) -> Self {
        Self { file: Cursor::new(file), limit }
    }
}

impl Read for LimitedReader<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        self.limit.check()?;
        let length = out.len().min(READ_BYTES);
        self.file.read(&mut out[..length])
    }
}

impl BufRead for LimitedReader<'_> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.limit.check()?;
        let rest = self.file.fill_buf()?;
        Ok(&rest[..rest.len().min(READ_BYTES)])
    }

    fn consume(&mut self, bytes: usize) {
        self.file.consume(bytes);
    }
}

impl Seek for LimitedReader<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.file.seek(to)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn reading_fails_when_the_time_is_used_up() {
        let limit = CpuLimit::new(Duration::from_millis(5));
        let mut reader = LimitedReader::new(Cow::Owned(vec![0; 100_000]), limit.clone());
        assert_eq!(reader.fill_buf().unwrap().len(), READ_BYTES);
        assert!(reader.read(&mut [0; 50_000]).is_ok_and(|read| read == READ_BYTES) && !limit.was_exceeded());
        let start = thread_time();
        while thread_time() - start < Duration::from_millis(10) {
            std::hint::spin_loop();
        }
        assert!(reader.read(&mut [0; 1]).is_err() && reader.fill_buf().is_err() && limit.was_exceeded());
    }
}
