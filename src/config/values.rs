//! Values as users type them: durations and sizes, each a number with a unit.

use std::time::Duration;

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
    fn sizes_may_have_a_unit() {
        assert_eq!(bytes("65536"), Ok(65536));
        assert_eq!(bytes("10MiB"), Ok(10 << 20));
        assert_eq!(bytes("1 GiB"), Ok(1 << 30));
        assert!(bytes("10MB").is_err());
        assert!(bytes("99999999999GiB").is_err());
    }
}
