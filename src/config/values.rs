//! Values as users type them: durations and sizes, each a number with a unit, and addresses.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, ToSocketAddrs};
use std::time::Duration;

/// Parses an address: `127.0.0.1:8080`, `[::1]:8080`, `localhost:8080`; `:8080` or `8080` is all IPv4 addresses of
/// the machine. Of a name with several addresses, the first IPv4 address is taken.
pub(crate) fn address(text: &str) -> Result<SocketAddr, String> {
    let text = text.trim();
    let wrong = |reason: &str| {
        format!("{reason}; expected HOST:PORT, :PORT or PORT, such as 127.0.0.1:8080, localhost:8080, [::1]:8080, 8080")
    };
    if let Ok(address) = text.parse() {
        return Ok(address);
    }
    if text.contains("://") {
        return Err(wrong("an address has no scheme and no path"));
    }
    if text.parse::<IpAddr>().is_ok() {
        return Err(wrong("the port is missing"));
    }
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) => (host, port),
        None if text.is_empty() => return Err(wrong("the address is empty")),
        None if text.bytes().all(|b| b.is_ascii_digit()) => ("", text),
        None => return Err(wrong("the port is missing")),
    };
    let port: u16 = port.parse().map_err(|_| wrong(&format!("a port is 0 to 65535, found `{port}`")))?;
    if host.is_empty() {
        return Ok(SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)));
    }
    if host.contains(['[', ']', ':', '/']) {
        return Err(wrong(&format!("`{host}` is neither a name nor an address")));
    }
    let found = (host, port).to_socket_addrs().map_err(|error| wrong(&format!("cannot find `{host}`: {error}")))?;
    // IPv4 addresses first, otherwise in the system's order.
    found.min_by_key(SocketAddr::is_ipv6).ok_or_else(|| wrong(&format!("`{host}` has no address")))
}

/// Parses `250ms`, `5s` or `2m`.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let (number, unit) = split_unit(text);
    let seconds = match unit {
        "ms" => 0.001,
        "s" => 1.0,
        "m" => 60.0,
        _ => return Err(format!("expected a number with a unit (250ms, 5s, 2m), found `{text}`")),
    };
    let number: f64 = number.parse().map_err(|_| format!("expected a number before `{unit}`, found `{number}`"))?;
    Duration::try_from_secs_f64(number * seconds).map_err(|e| e.to_string())
}

/// Parses a number of bytes: `65536`, `512KiB`, `10MiB` or `1GiB`.
pub(crate) fn bytes(text: &str) -> Result<u64, String> {
    let (number, unit) = split_unit(text);
    let factor: u64 = match unit {
        "" | "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        _ => return Err(format!("expected bytes, or a number with KiB, MiB or GiB, found `{text}`")),
    };
    let number: u64 = number.parse().map_err(|_| format!("expected a whole number, found `{number}`"))?;
    number.checked_mul(factor).ok_or_else(|| format!("`{text}` is too large"))
}

/// Parses a number of bytes that must fit this machine's memory.
pub(crate) fn size(text: &str) -> Result<usize, String> {
    usize::try_from(bytes(text)?).map_err(|_| format!("`{text}` is too large for this machine"))
}

/// Splits after the digits: `10 MiB` is `10` and `MiB`.
fn split_unit(text: &str) -> (&str, &str) {
    let text = text.trim();
    let at = text.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(text.len());
    (&text[..at], text[at..].trim_start())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn durations_need_a_unit() {
        assert_eq!(duration("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(duration("1.5s"), Ok(Duration::from_millis(1500)));
        assert_eq!(duration("2m"), Ok(Duration::from_secs(120)));
        assert!(duration("5").is_err());
        assert!(duration("-5s").is_err());
        assert!(duration("fast").is_err());
    }

    #[test]
    fn addresses_have_several_spellings() {
        for (text, expected) in [
            ("127.0.0.1:80", "127.0.0.1:80"),
            (" 127.0.0.1:80 ", "127.0.0.1:80"),
            ("[::1]:8080", "[::1]:8080"),
            (":8080", "0.0.0.0:8080"),
            ("8080", "0.0.0.0:8080"),
            ("0", "0.0.0.0:0"),
        ] {
            assert_eq!(address(text).map(|found| found.to_string()), Ok(expected.to_owned()), "{text}");
        }
        // Some machines know `localhost` only as ::1.
        assert!(address("localhost:9000").is_ok_and(|found| found.ip().is_loopback() && found.port() == 9000));
        for (text, words) in [
            ("", "the address is empty"),
            ("localhost", "the port is missing"),
            ("127.0.0.1", "the port is missing"),
            ("::1", "the port is missing"),
            ("99999", "a port is 0 to 65535, found `99999`"),
            ("localhost:http", "found `http`"),
            ("http://localhost:8080", "no scheme"),
            ("[localhost]:80", "neither a name nor an address"),
        ] {
            let error = address(text).unwrap_err();
            assert!(error.contains(words) && error.contains("expected HOST:PORT, :PORT or PORT"), "{text}: {error}");
        }
    }

    #[test]
    fn sizes_may_have_a_unit() {
        assert_eq!(bytes("65536"), Ok(65536));
        assert_eq!(bytes("10MiB"), Ok(10 << 20));
        assert_eq!(bytes("1 GiB"), Ok(1 << 30));
        assert!(bytes("10MB").is_err());
        assert!(bytes("99999999999GiB").is_err());
    }
}
