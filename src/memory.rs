//! The process's limits on system resources: memory and open files.
//!
//! When the process's memory nears its limit, new work is rejected before the system kills the process. Every queue
//! and buffer has a bound of its own. This limit covers what those bounds do not see: allocators that keep pages, the
//! sessions' arenas, and limits whose sum is larger than the container's memory.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::thread;
use std::time::Duration;

/// Interval between two measurements of the process's memory.
const INTERVAL: Duration = Duration::from_millis(100);

/// Tells whether the process uses more memory than its limit.
#[derive(Debug)]
pub struct MemoryGuard {
    limit: u64,
    over: AtomicBool,
}

impl MemoryGuard {
    /// Starts a thread that measures the process's memory as long as the guard lives. `limit` is in bytes. Returns
    /// `None` if the limit is 0, or if the process's memory cannot be read on this system.
    #[must_use]
    pub fn start(limit: u64) -> Option<Arc<Self>> {
        if limit == 0 || resident().is_none() {
            return None;
        }
        let guard = Arc::new(Self { limit, over: AtomicBool::new(false) });
        let weak = Arc::downgrade(&guard);
        let thread = thread::Builder::new().name("memory".to_owned()).spawn(move || watch(&weak));
        match thread {
            Ok(_) => Some(guard),
            Err(error) => {
                tracing::warn!(%error, "cannot start the thread that measures memory: the memory limit is off");
                None
            }
        }
    }

    /// Whether new work should be rejected.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }
}

/// Number of measurements between two trims of the allocator while the process is over its limit. A trim takes the
/// locks of all heaps.
const TRIM_INTERVAL: u32 = 30;

fn watch(guard: &Weak<MemoryGuard>) {
    let mut measurements_over = 0;
    while let Some(guard) = guard.upgrade() {
        let resident_bytes = resident().unwrap_or(0);
        let mut over = resident_bytes > guard.limit;
        measurements_over = if over { measurements_over + 1 } else { 0 };
        if measurements_over % TRIM_INTERVAL == 1 {
            // Part of the memory may be free pages that the allocator keeps.
            trim();
            over = resident().unwrap_or(0) > guard.limit;
        }
        if guard.over.swap(over, Ordering::Relaxed) != over {
            match over {
                true => tracing::warn!(
                    resident = resident_bytes,
                    limit = guard.limit,
                    "the process is over its memory limit: requests are rejected"
                ),
                false => tracing::info!(
                    resident = resident_bytes,
                    limit = guard.limit,
                    "the process is below its memory limit again"
                ),
            }
        }
        drop(guard);
        thread::sleep(INTERVAL);
    }
}

/// Makes the C library's allocator return large blocks to the system as soon as they are free, and use few heaps. By
/// default, the first large block that is freed makes it keep blocks of up to 32 MiB, and it has eight heaps per
/// core. Bodies, images and maps that many threads allocate once then stay resident. Must be called before threads
/// are started.
pub fn tune_allocator() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    for (parameter, value) in
        [(libc::M_MMAP_THRESHOLD, 4 << 20), (libc::M_TRIM_THRESHOLD, 16 << 20), (libc::M_ARENA_MAX, 8)]
    {
        #[allow(unsafe_code)]
        // SAFETY: `mallopt` takes no pointer and rejects an unknown parameter or value.
        let accepted = unsafe { libc::mallopt(parameter, value) };
        if accepted == 0 {
            tracing::debug!(parameter, value, "the allocator rejected a setting");
        }
    }
}

/// Makes the allocator return the free pages that it keeps.
pub fn trim() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        #[allow(unsafe_code)]
        // SAFETY: `malloc_trim` takes no pointer and may be called from any thread.
        unsafe {
            libc::malloc_trim(0);
        }
    }
}

/// Raises the process's limit on open files to the maximum that the system allows. Every connection is an open file,
/// and the usual limit of 1,024 is far below the server's limit on connections.
pub fn raise_file_limit() {
    #[cfg(unix)]
    {
        use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
        let limit = getrlimit(Resource::Nofile);
        if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum }) {
            tracing::debug!(%error, "cannot raise the limit on open files");
        }
    }
}

/// Returns the process's resident memory in bytes; `None` where it cannot be read.
#[must_use]
pub fn resident() -> Option<u64> {
    // The fields are counts of pages: size, resident, shared, …
    let statm = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = statm.split_ascii_whitespace().nth(1)?.parse().ok()?;
    Some(pages * rustix::param::page_size() as u64)
}

/// Returns nine tenths of the memory available to the process, in bytes: of its cgroup's limit or of the machine's
/// memory. 0 where neither is known.
#[must_use]
pub fn default_limit() -> u64 {
    available().map_or(0, |bytes| bytes / 10 * 9)
}

/// Returns the smallest of the machine's memory and the limits of the process's cgroups, in bytes.
fn available() -> Option<u64> {
    let machine = std::fs::read_to_string("/proc/meminfo").ok().and_then(|text| parse_total(&text));
    let groups = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let limits = limit_files(&groups).into_iter().filter_map(|path| {
        // The value "max" means no limit.
        std::fs::read_to_string(path).ok()?.trim().parse::<u64>().ok()
    });
    limits.chain(machine).min()
}

/// Parses the machine's memory from `/proc/meminfo`, in bytes. The line reads `MemTotal:       24689764 kB`.
fn parse_total(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    Some(1024 * line.split_ascii_whitespace().next()?.parse::<u64>().ok()?)
}

/// Returns the paths of the files with the memory limits of a process: its own group's limit and those of all
/// enclosing groups. `groups` is the content of `/proc/self/cgroup`. Inside a container the root is the container's
/// own group.
fn limit_files(groups: &str) -> Vec<String> {
    let mut files = Vec::new();
    for line in groups.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else { continue };
        let (root, name) = match controllers {
            "" => ("/sys/fs/cgroup", "memory.max"),
            list if list.split(',').any(|controller| controller == "memory") => {
                ("/sys/fs/cgroup/memory", "memory.limit_in_bytes")
            }
            _ => continue,
        };
        let mut path = path.trim_end_matches('/');
        loop {
            files.push(format!("{root}{path}/{name}"));
            match path.rfind('/') {
                Some(slash) => path = &path[..slash],
                None => break,
            }
        }
    }
    files
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn limits_of_every_enclosing_group_are_read() {
        assert_eq!(
            limit_files("0::/a/b\n"),
            ["/sys/fs/cgroup/a/b/memory.max", "/sys/fs/cgroup/a/memory.max", "/sys/fs/cgroup/memory.max"]
        );
        assert_eq!(limit_files("0::/\n"), ["/sys/fs/cgroup/memory.max"]);
        assert_eq!(limit_files("5:cpu,cpuacct:/x\n4:memory:/\n"), ["/sys/fs/cgroup/memory/memory.limit_in_bytes"]);
        assert_eq!(limit_files("nonsense\n"), Vec::<String>::new());
    }

    #[test]
    fn the_machines_memory_is_parsed() {
        assert_eq!(parse_total("MemTotal:       2000 kB\nMemFree: 1 kB\n"), Some(2_048_000));
        assert_eq!(parse_total(""), None);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn a_process_over_its_limit_is_detected() {
        assert!(MemoryGuard::start(0).is_none());
        let exceeds = |guard: &MemoryGuard| {
            (0..50).any(|_| {
                thread::sleep(INTERVAL / 5);
                guard.is_over()
            })
        };
        assert!(exceeds(&MemoryGuard::start(1).unwrap()));
        assert!(!exceeds(&MemoryGuard::start(u64::MAX).unwrap()));
    }
}
