//! What the process may take of the system: memory and open files.
//!
//! When the process's memory nears its limit, new work is refused before the system kills it. Every queue and buffer has a bound of its own; this is for what those bounds do not see: allocators that keep pages, sessions'
//! arenas, and limits that are larger together than the container they run in.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::thread;
use std::time::Duration;

/// How often the process is looked at.
const INTERVAL: Duration = Duration::from_millis(100);

/// Whether the process takes more memory than it may.
#[derive(Debug)]
pub struct MemoryGuard {
    limit: u64,
    over: AtomicBool,
}

impl MemoryGuard {
    /// Watches the process from a thread of its own, for as long as the guard lives. `None` if there is no limit, or the
    /// process's memory cannot be read on this system.
    #[must_use]
    pub fn start(limit: u64) -> Option<Arc<Self>> {
        if limit == 0 || resident().is_none() {
            return None;
        }
        let guard = Arc::new(Self { limit, over: AtomicBool::new(false) });
        let watched = Arc::downgrade(&guard);
        let thread = thread::Builder::new().name("memory".to_owned()).spawn(move || watch(&watched));
        match thread {
            Ok(_) => Some(guard),
            Err(error) => {
                tracing::warn!(%error, "the process's memory is not watched");
                None
            }
        }
    }

    /// Whether new work should be refused.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }
}

/// How often the allocator is asked for free pages while memory stays short: it takes the locks of all heaps.
const TRIM_EVERY: u32 = 30;

fn watch(guard: &Weak<MemoryGuard>) {
    let mut looks_over = 0;
    while let Some(guard) = guard.upgrade() {
        let resident = resident().unwrap_or(0);
        let mut over = resident > guard.limit;
        looks_over = if over { looks_over + 1 } else { 0 };
        if looks_over % TRIM_EVERY == 1 {
            // Part of it may be free pages that the allocator kept.
            trim();
            over = self::resident().unwrap_or(0) > guard.limit;
        }
        if guard.over.swap(over, Ordering::Relaxed) != over {
            match over {
                true => tracing::warn!(resident, limit = guard.limit, "the memory limit is reached: requests are shed"),
                false => tracing::info!(resident, limit = guard.limit, "there is memory again"),
            }
        }
        drop(guard);
        thread::sleep(INTERVAL);
    }
}

/// Has the C library's allocator return large blocks to the system as soon as they are free, and keep few heaps. By itself it
/// learns from the first large block that is freed to keep those of up to 32 MiB, and has eight heaps a core: bodies, pictures
/// and maps that many threads allocate once then stay resident. To be called before threads are started.
pub fn tune_allocator() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    for (parameter, value) in
        [(libc::M_MMAP_THRESHOLD, 4 << 20), (libc::M_TRIM_THRESHOLD, 16 << 20), (libc::M_ARENA_MAX, 8)]
    {
        #[allow(unsafe_code)]
        // SAFETY: it takes no pointer; an unknown parameter or value is refused.
        let taken = unsafe { libc::mallopt(parameter, value) };
        if taken == 0 {
            tracing::debug!(parameter, value, "the allocator does not take a setting");
        }
    }
}

/// Has the allocator return the pages that it keeps for later.
pub fn trim() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        #[allow(unsafe_code)]
        // SAFETY: it takes no pointer, and may be called from any thread.
        unsafe {
            libc::malloc_trim(0);
        }
    }
}

/// Lets the process open as many files as the system allows it. Every connection is one, and the usual limit of 1,024 is far below
/// the connections that the server is set to take.
pub fn raise_file_limit() {
    #[cfg(unix)]
    {
        use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
        let limit = getrlimit(Resource::Nofile);
        if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum }) {
            tracing::debug!(%error, "the limit on open files stays as it is");
        }
    }
}

/// Bytes of memory that the process takes; `None` where that cannot be read.
#[must_use]
pub fn resident() -> Option<u64> {
    // Pages: size, resident, shared, …
    let statm = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = statm.split_ascii_whitespace().nth(1)?.parse().ok()?;
    Some(pages * rustix::param::page_size() as u64)
}

/// Nine tenths of what the process may take: of its cgroup's limit, or of the machine's memory. 0 where neither is known.
#[must_use]
pub fn default_limit() -> u64 {
    available().map_or(0, |bytes| bytes / 10 * 9)
}

/// The smallest of the machine's memory and the limits of the process's cgroups.
fn available() -> Option<u64> {
    let machine = std::fs::read_to_string("/proc/meminfo").ok().and_then(|text| total_of(&text));
    let groups = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let limits = limit_files(&groups).into_iter().filter_map(|path| {
        // "max" is no limit.
        std::fs::read_to_string(path).ok()?.trim().parse::<u64>().ok()
    });
    limits.chain(machine).min()
}

/// `MemTotal:       24689764 kB`
fn total_of(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    Some(1024 * line.split_ascii_whitespace().next()?.parse::<u64>().ok()?)
}

/// Where the limits of a process are, by what `/proc/self/cgroup` says: its own group's and those of all groups around it. Inside
/// a container the root is the container's own group.
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
                Some(at) => path = &path[..at],
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
    fn limits_are_looked_for_in_every_group_around_the_process() {
        assert_eq!(
            limit_files("0::/a/b\n"),
            ["/sys/fs/cgroup/a/b/memory.max", "/sys/fs/cgroup/a/memory.max", "/sys/fs/cgroup/memory.max"]
        );
        assert_eq!(limit_files("0::/\n"), ["/sys/fs/cgroup/memory.max"]);
        assert_eq!(limit_files("5:cpu,cpuacct:/x\n4:memory:/\n"), ["/sys/fs/cgroup/memory/memory.limit_in_bytes"]);
        assert_eq!(limit_files("nonsense\n"), Vec::<String>::new());
    }

    #[test]
    fn the_machine_has_so_much() {
        assert_eq!(total_of("MemTotal:       2000 kB\nMemFree: 1 kB\n"), Some(2_048_000));
        assert_eq!(total_of(""), None);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn a_process_past_its_limit_is_noticed() {
        assert!(MemoryGuard::start(0).is_none());
        let waits = |guard: &MemoryGuard| {
            (0..50).any(|_| {
                thread::sleep(INTERVAL / 5);
                guard.is_over()
            })
        };
        assert!(waits(&MemoryGuard::start(1).unwrap()));
        assert!(!waits(&MemoryGuard::start(u64::MAX).unwrap()));
    }
}
