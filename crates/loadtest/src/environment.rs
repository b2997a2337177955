//! Conditions of a campaign: when, on which machine and with which command it ran.

use std::fs;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;

/// Words that mark the name of a query parameter as a credential.
const SECRET_WORDS: [&str; 10] =
    ["key", "token", "secret", "password", "passwd", "pwd", "sig", "auth", "code", "credential"];

/// Replaces a value that may be a credential.
const HIDDEN: &str = "…";

/// When, where and with which command a campaign ran.
#[derive(Clone, Debug, Serialize)]
pub struct Environment {
    /// Start of the campaign, UTC, as `2026-01-31T12:00:00Z`.
    pub started: String,
    /// The machine of the load generator.
    pub machine: Machine,
    /// The command line, without what looks like a credential; empty if the caller did not set it.
    pub command: String,
}

/// A machine. What the system does not report is `None`.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Machine {
    /// Operating system and kernel.
    pub system: String,
    /// Instruction set, such as `x86_64`.
    pub architecture: String,
    /// Model of the processor.
    pub processor: Option<String>,
    /// Logical cores that this process may use.
    pub cores: Option<usize>,
    /// Memory of the machine, bytes.
    pub memory_bytes: Option<u64>,
}

impl Environment {
    /// Describes this moment and this machine. The command is empty.
    #[must_use]
    pub fn now() -> Self {
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self { started: utc_time(since_epoch.as_secs()), machine: Machine::this(), command: String::new() }
    }

    /// Start of the campaign for people, as `2026-01-31 12:00:00 UTC`.
    pub(super) fn started_for_people(&self) -> String {
        self.started.replace('T', " ").replace('Z', " UTC")
    }
}

impl Machine {
    /// Describes the machine of this process.
    #[must_use]
    pub fn this() -> Self {
        Self {
            system: system(),
            architecture: std::env::consts::ARCH.to_owned(),
            processor: processor(),
            cores: std::thread::available_parallelism().ok().map(Into::into),
            memory_bytes: memory_bytes(),
        }
    }

    /// The machine in one line.
    pub(super) fn summary(&self) -> String {
        let processor = self.processor.as_deref().unwrap_or("processor unknown");
        let cores = self.cores.map(|cores| format!("{cores} core{}", if cores == 1 { "" } else { "s" }));
        let memory = self.memory_bytes.map(|bytes| format!("{:.1} GiB of memory", bytes as f64 / f64::from(1 << 30)));
        let parts = [
            Some(format!("{processor} ({})", self.architecture)),
            cores,
            memory,
            Some(self.system.clone()).filter(|system| !system.is_empty()),
        ];
        parts.into_iter().flatten().collect::<Vec<_>>().join(", ")
    }
}

/// Joins arguments to a command line that can be published: values of headers and query parameters that look like
/// credentials are replaced, and arguments with special characters are quoted for a shell.
#[must_use]
pub fn command_without_credentials(arguments: impl IntoIterator<Item = String>) -> String {
    let mut header_follows = false;
    let mut words = Vec::new();
    for argument in arguments {
        let is_header = std::mem::take(&mut header_follows);
        let shown = if is_header {
            hide_header(&argument)
        } else if let Some(line) = argument.strip_prefix("--header=") {
            format!("--header={}", hide_header(line))
        } else if let Some(line) = argument.strip_prefix("-H").filter(|line| !line.is_empty()) {
            format!("-H{}", hide_header(line.strip_prefix('=').unwrap_or(line)))
        } else {
            header_follows = matches!(argument.as_str(), "--header" | "-H");
            without_credentials(&argument)
        };
        words.push(quote(&shown));
    }
    words.join(" ")
}

/// Replaces user information and the values of query parameters whose name marks a credential, in one or several URLs.
pub(super) fn without_credentials(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find("://").map(|at| at + 3) {
        let end = start + rest[start..].find(['/', '?', '#']).unwrap_or(rest.len() - start);
        shown.push_str(&rest[..start]);
        match rest[start..end].rsplit_once('@') {
            Some((_, host)) => shown.extend([HIDDEN, "@", host]),
            None => shown.push_str(&rest[start..end]),
        }
        rest = &rest[end..];
    }
    shown.push_str(rest);

    hide_secret_parameters(&shown)
}

/// Replaces the values of query parameters whose name marks a credential.
fn hide_secret_parameters(text: &str) -> String {
    let is_secret = |name: &str| SECRET_WORDS.iter().any(|word| name.to_ascii_lowercase().contains(word));
    let (mut shown, mut rest) = (String::with_capacity(text.len()), text);
    while let Some(start) = rest.find(['?', '&']).map(|at| at + 1) {
        shown.push_str(&rest[..start]);
        rest = &rest[start..];
        // A `+` ends a value only where the next target of a mix follows.
        let ends = [rest.find(['&', '#']), rest.find("+http://"), rest.find("+grpc://")];
        let end = ends.into_iter().flatten().min().unwrap_or(rest.len());
        if let Some((name, _)) = rest[..end].split_once('=').filter(|(name, _)| is_secret(name)) {
            shown.extend([name, "=", HIDDEN]);
            rest = &rest[end..];
        }
    }
    shown + rest
}

/// A header line with its value replaced. The names of values that are never secret keep theirs.
fn hide_header(line: &str) -> String {
    match line.split_once(':') {
        Some((name, _)) if matches!(name.trim().to_ascii_lowercase().as_str(), "accept" | "host" | "user-agent") => {
            line.to_owned()
        }
        Some((name, _)) => format!("{name}: {HIDDEN}"),
        None => HIDDEN.to_owned(),
    }
}

/// Quotes a word for a shell if it has characters that a shell interprets.
fn quote(word: &str) -> String {
    let plain = |c: char| c.is_alphanumeric() || "-_./:=+,@%…".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

/// Formats seconds since 1970 as `2026-01-31T12:00:00Z`.
fn utc_time(seconds: u64) -> String {
    let is_leap = |year: u64| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    let (mut days, second) = (seconds / 86_400, seconds % 86_400);
    let mut year = 1970;
    while days >= 365 + u64::from(is_leap(year)) {
        days -= 365 + u64::from(is_leap(year));
        year += 1;
    }
    let february = 28 + u64::from(is_leap(year));
    let mut month = 1;
    for length in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30] {
        if days < length {
            break;
        }
        days -= length;
        month += 1;
    }
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{:02}T{hour:02}:{minute:02}:{second:02}Z", days + 1)
}

/// Name of the operating system, with the kernel's version where `/proc` has it.
fn system() -> String {
    let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let pretty = release.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
    let name = pretty.map_or(std::env::consts::OS, |name| name.trim_matches('"')).to_owned();
    match fs::read_to_string("/proc/sys/kernel/osrelease") {
        Ok(kernel) => format!("{name}, {} {}", std::env::consts::OS, kernel.trim()),
        Err(_) => name,
    }
}

/// Model of the processor.
fn processor() -> Option<String> {
    if cfg!(target_os = "macos") {
        return sysctl("machdep.cpu.brand_string");
    }
    let text = fs::read_to_string("/proc/cpuinfo").ok()?;
    // arm64 kernels report numbers of the implementer and the part instead of a name.
    cpuinfo_field(&text, "model name").or_else(|| {
        let (implementer, part) = (cpuinfo_field(&text, "CPU implementer")?, cpuinfo_field(&text, "CPU part")?);
        Some(format!("implementer {implementer}, part {part}"))
    })
}

/// First value of a field of `/proc/cpuinfo`.
fn cpuinfo_field(text: &str, name: &str) -> Option<String> {
    let mut fields = text.lines().filter_map(|line| line.split_once(':'));
    fields.find(|(key, _)| key.trim() == name).map(|(_, value)| value.trim().to_owned())
}

/// Memory of the machine, bytes.
fn memory_bytes() -> Option<u64> {
    if cfg!(target_os = "macos") {
        return sysctl("hw.memsize")?.parse().ok();
    }
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let total = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kibibytes: u64 = total.split_whitespace().next()?.parse().ok()?;
    Some(kibibytes << 10)
}

/// A value of `sysctl`; `None` if the program cannot be run.
fn sysctl(name: &str) -> Option<String> {
    let output = std::process::Command::new("/usr/sbin/sysctl").args(["-n", name]).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    Some(text.trim().to_owned()).filter(|text| !text.is_empty())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn times_are_utc_also_around_leap_days() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (951_868_800, "2000-03-01T00:00:00Z"),
            (1_798_761_599, "2026-12-31T23:59:59Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ] {
            assert_eq!(utc_time(seconds), text);
        }
    }

    #[test]
    fn a_command_keeps_its_flags_and_loses_its_credentials() {
        let shown = |words: &[&str]| command_without_credentials(words.iter().map(|word| (*word).to_owned()));
        assert_eq!(shown(&["ghostserve", "bench", "-c", "4", "a b"]), "ghostserve bench -c 4 'a b'");
        for words in [
            &["--header", "authorization: Bearer s3cret"][..],
            &["--header=authorization: Bearer s3cret"],
            &["-H", "X-Api-Key: s3cret"],
            &["-Hcookie:s3cret"],
            &["a=http://host/x?api_key=s3cret&top_k=1+grpc://host?token=s3cret"],
            &["http://me:s3cret@host/x"],
            &["http://host/x?token=ab+s3cret?s3cret"],
        ] {
            let text = shown(words);
            assert!(!text.contains("s3cret") && text.contains(HIDDEN), "{text}");
        }
        assert_eq!(shown(&["http://h/x?key=s&top_k=1"]), "'http://h/x?key=…&top_k=1'");
        assert_eq!(shown(&["--header", "accept: image/png"]), "--header 'accept: image/png'");
    }

    #[test]
    fn this_machine_has_cores_and_where_the_system_tells_a_processor_and_memory() {
        let machine = Machine::this();
        assert!(machine.cores.unwrap() >= 1 && !machine.system.is_empty());
        if cfg!(target_os = "linux") {
            assert!(machine.memory_bytes.unwrap() > 1 << 20);
        }
        assert!(machine.summary().contains("core"), "{}", machine.summary());
        let cpuinfo = "processor\t: 0\nmodel name\t: Some CPU @ 2 GHz\n\nprocessor\t: 1\nmodel name\t: Other\n";
        assert_eq!(cpuinfo_field(cpuinfo, "model name").as_deref(), Some("Some CPU @ 2 GHz"));
    }
}
