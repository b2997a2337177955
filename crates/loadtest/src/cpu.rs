//! Processor time of the load generator itself.

/// Processor time of this process since its start, seconds; `None` on systems without `/proc/self/stat`.
pub(super) fn process_seconds() -> Option<f64> {
    // User and system time are the 12th and 13th number after the name, which is in parentheses and may contain any
    // character. Their unit is the tick; Linux reports 100 ticks per second to programs.
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    let (_, numbers) = stat.rsplit_once(')')?;
    let mut numbers = numbers.split_whitespace().skip(11);
    let user: f64 = numbers.next()?.parse().ok()?;
    let system: f64 = numbers.next()?.parse().ok()?;
    Some((user + system) / 100.0)
}

#[cfg(all(test, target_os = "linux"))]
#[allow(clippy::unwrap_used)]
mod tests {
    #[test]
    fn processor_time_grows_with_work() {
        let before = super::process_seconds().unwrap();
        let start = std::time::Instant::now();
        let mut sum = 0u64;
        while super::process_seconds().unwrap() - before < 0.02 {
            sum = std::hint::black_box(sum.wrapping_mul(31) + 1);
            assert!(start.elapsed().as_secs() < 30);
        }
    }
}
