//! A limit on the processor time that decoding one image takes.
//!
//! Small files can keep a decoder busy for minutes without a large picture in them: a GIF of codes that only clear the table, a
//! PNG of compressed blocks that hold nothing. Their decoders read through a [`LimitedReader`], which fails once the thread has
//! computed for too long. It is the thread's own time that counts, so a busy machine makes no difference.

use std::borrow::Cow;
use std::cell::Cell;
use std::io::{self, BufRead, Cursor, Read, Seek, SeekFrom};
use std::rc::Rc;
use std::time::Duration;

/// What a decoder gets at a time. The clock is read each time.
const PIECE: usize = 16 << 10;

/// The time that one image may take on this thread.
#[derive(Clone, Debug)]
pub(super) struct CpuLimit {
    /// Of the thread's clock.
    end: Duration,
    exceeded: Rc<Cell<bool>>,
}

impl CpuLimit {
    /// Counts from now.
    pub(super) fn new(limit: Duration) -> Self {
        Self { end: thread_time().saturating_add(limit), exceeded: Rc::default() }
    }

    /// Whether a reader failed because of it.
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

/// The processor time that the calling thread has used; zero where that is not known, which is no limit.
pub(super) fn thread_time() -> Duration {
    #[cfg(unix)]
    {
        let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
        Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0))
    }
    #[cfg(not(unix))]
    Duration::ZERO
}

/// A file that is read within a limit.
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
        let most = out.len().min(PIECE);
        self.file.read(&mut out[..most])
    }
}

impl BufRead for LimitedReader<'_> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.limit.check()?;
        let rest = self.file.fill_buf()?;
        Ok(&rest[..rest.len().min(PIECE)])
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
    fn reading_ends_when_the_time_is_over() {
        let limit = CpuLimit::new(Duration::from_millis(5));
        let mut reader = LimitedReader::new(Cow::Owned(vec![0; 100_000]), limit.clone());
        assert_eq!(reader.fill_buf().unwrap().len(), PIECE);
        assert!(reader.read(&mut [0; 50_000]).is_ok_and(|read| read == PIECE) && !limit.was_exceeded());
        let begin = thread_time();
        while thread_time() - begin < Duration::from_millis(10) {
            std::hint::spin_loop();
        }
        assert!(reader.read(&mut [0; 1]).is_err() && reader.fill_buf().is_err() && limit.was_exceeded());
    }
}
