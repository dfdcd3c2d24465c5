//! Sizes and times as people write them: `512MiB`, `30s`. Pure.
//!
//! Both read from the command line and from the configuration file; a number without a unit is a number of bytes for a
//! size and is refused for a time, because Kafka's settings are in ms and nobody should have to guess.

use std::{fmt, str::FromStr, time::Duration};

use serde::{Deserialize, Deserializer, de};

/// A number of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ByteSize(pub(crate) u64);

/// A span of time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Span(pub(crate) Duration);

impl ByteSize {
    pub(crate) const fn mib(count: u64) -> Self {
        Self(count << 20)
    }

    /// The size for this machine's memory.
    pub(crate) fn as_usize(self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }
}

/// Longest first, so that no unit hides another one that ends in it.
const BYTE_UNITS: [(&str, u64); 14] = [
    ("kib", 1 << 10),
    ("mib", 1 << 20),
    ("gib", 1 << 30),
    ("tib", 1 << 40),
    ("kb", 1_000),
    ("mb", 1_000_000),
    ("gb", 1_000_000_000),
    ("tb", 1_000_000_000_000),
    ("k", 1 << 10),
    ("m", 1 << 20),
    ("g", 1 << 30),
    ("t", 1 << 40),
    ("b", 1),
    ("", 1),
];

const TIME_UNITS: [(&str, u64); 5] = [("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000)];

impl FromStr for ByteSize {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (number, unit) = split(text);
        let unit = unit.to_ascii_lowercase();
        let factor = BYTE_UNITS.iter().find(|(name, _)| *name == unit).map(|(_, factor)| *factor);
        number
            .zip(factor)
            .and_then(|(number, factor)| scaled(number, factor))
            .map(Self)
            .ok_or_else(|| format!("'{text}' is not a size: write bytes or a unit, as in 512MiB or 1GiB"))
    }
}

impl FromStr for Span {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (number, unit) = split(text);
        let factor = TIME_UNITS.iter().find(|(name, _)| *name == unit).map(|(_, factor)| *factor);
        number
            .zip(factor)
            .and_then(|(number, factor)| scaled(number, factor))
            .map(|ms| Self(Duration::from_millis(ms)))
            .ok_or_else(|| format!("'{text}' is not a time: write a number and ms, s, m, h or d, as in 30s or 7d"))
    }
}

/// Number and unit of a text; `None` for the number when there is none.
fn split(text: &str) -> (Option<&str>, &str) {
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    ((!number.is_empty()).then_some(number), unit.trim())
}

/// Whole numbers exactly, fractions to the nearest unit; `None` beyond `u64`.
fn scaled(number: &str, factor: u64) -> Option<u64> {
    if let Ok(whole) = number.parse::<u64>() {
        return whole.checked_mul(factor);
    }
    let (whole, fraction) = number.split_once('.')?;
    let whole = whole.parse::<u64>().ok()?.checked_mul(factor)?;
    if fraction.is_empty() || fraction.len() > 9 {
        return None;
    }
    let scale = 10u128.pow(u32::try_from(fraction.len()).ok()?);
    let part = fraction.parse::<u128>().ok()? * u128::from(factor) / scale;
    whole.checked_add(u64::try_from(part).ok()?)
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = [(1u64 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
        for (size, name) in units {
            if self.0 >= size && self.0.is_multiple_of(size) {
                return write!(f, "{}{name}", self.0 / size);
            }
            if self.0 >= size {
                let tenths = u128::from(self.0) * 10 / u128::from(size);
                return write!(f, "{}.{}{name}", tenths / 10, tenths % 10);
            }
        }
        write!(f, "{}B", self.0)
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = self.0.as_millis();
        let exact = TIME_UNITS.iter().rev().find(|(_, factor)| ms > 0 && ms.is_multiple_of(u128::from(*factor)));
        match exact {
            Some((name, factor)) => write!(f, "{}{name}", ms / u128::from(*factor)),
            None => write!(f, "{ms}ms"),
        }
    }
}

/// A number or a text in the configuration file.
#[derive(Deserialize)]
#[serde(untagged)]
enum Written {
    Number(u64),
    Text(String),
}

impl<'de> Deserialize<'de> for ByteSize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Written::deserialize(deserializer) {
            Ok(Written::Number(bytes)) => Ok(Self(bytes)),
            Ok(Written::Text(text)) => text.parse().map_err(de::Error::custom),
            Err(_) => Err(de::Error::custom("expected a size, as in \"512MiB\" or a number of bytes")),
        }
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)
            .map_err(|_| de::Error::custom("expected a time, as in \"30s\" or \"7d\""))?;
        text.parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size(text: &str) -> Option<u64> {
        text.parse::<ByteSize>().ok().map(|s| s.0)
    }

    fn ms(text: &str) -> Option<u128> {
        text.parse::<Span>().ok().map(|s| s.0.as_millis())
    }

    #[test]
    fn sizes_are_read_with_binary_and_decimal_units() {
        assert_eq!(size("512MiB"), Some(512 << 20));
        assert_eq!(size("1 GiB"), Some(1 << 30));
        assert_eq!(size("1.5g"), Some(3 << 29));
        assert_eq!(size("10MB"), Some(10_000_000));
        assert_eq!(size("4096"), Some(4096));
        for bad in ["", "MiB", "1 apple", "-1", "1.2.3k", "99999999999TiB", "1.", "0x10"] {
            assert_eq!(size(bad), None, "{bad}");
        }
    }

    #[test]
    fn times_need_a_unit() {
        assert_eq!(ms("250ms"), Some(250));
        assert_eq!(ms("7d"), Some(604_800_000));
        assert_eq!(ms("1.5h"), Some(5_400_000));
        for bad in ["10", "s", "1 year", "-5s"] {
            assert_eq!(ms(bad), None, "{bad}");
        }
    }

    #[test]
    fn what_is_printed_reads_back() {
        for bytes in [0, 1, 1023, 1024, 1 << 20, 512 << 20, 3 << 30, 5 << 40] {
            let text = ByteSize(bytes).to_string();
            assert_eq!(size(&text), Some(bytes), "{text}");
        }
        assert_eq!(ByteSize((1 << 30) + (1 << 29)).to_string(), "1.5GiB");
        for millis in [0, 1, 999, 1000, 60_000, 90_000, 86_400_000] {
            let text = Span(Duration::from_millis(millis)).to_string();
            assert_eq!(ms(&text), Some(u128::from(millis)), "{text}");
        }
    }
}
