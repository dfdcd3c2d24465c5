//! Values of settings as text: checking them one by one, and reading checked ones.

use std::{collections::BTreeMap, str::FromStr};

use super::{
    ConfigKey, ConfigType, Effect, Valid,
    keys::{INTERNAL_SEGMENT_BYTES, find},
};

/// A topic's checked values, by name.
pub(super) struct Values<'a> {
    defaults: &'a BTreeMap<String, String>,
    overrides: &'a BTreeMap<String, String>,
}

/// Longest value that is kept, as in Kafka: lists grow by appending.
const VALUE_BYTES_MAX: usize = 32_767;

impl<'a> Values<'a> {
    /// Checks that every name is known and every value valid for itself.
    pub(super) fn new(
        defaults: &'a BTreeMap<String, String>,
        overrides: &'a BTreeMap<String, String>,
    ) -> Result<Self, String> {
        for (name, value) in defaults.iter().chain(overrides) {
            let key = find(name).ok_or_else(|| format!("unknown topic setting {name}"))?;
            check_value(key, name, value).map_err(|refusal| refusal.0)?;
        }
        Ok(Self { defaults, overrides })
    }

    /// The value in force, without blanks around it.
    pub(super) fn text(&self, name: &str) -> &'a str {
        let set = self.overrides.get(name).or_else(|| self.defaults.get(name));
        match set {
            Some(value) => value.trim(),
            None => find(name).expect("only known settings are read").default,
        }
    }

    pub(super) fn integer<T: FromStr>(&self, name: &str) -> Result<T, String> {
        self.text(name).parse().map_err(|_| refuse(name, self.text(name), "it does not fit"))
    }

    pub(super) fn number(&self, name: &str) -> Result<f64, String> {
        self.text(name).parse().map_err(|_| refuse(name, self.text(name), "not a number"))
    }

    pub(super) fn list(&self, name: &str) -> Vec<&'a str> {
        members(self.text(name))
    }
}

/// Size of segments below the least that `segment.bytes` takes, if a topic has `internal.segment.bytes`: for tests.
pub fn segment_bytes_override(
    defaults: &BTreeMap<String, String>,
    overrides: &BTreeMap<String, String>,
) -> Option<Result<u64, String>> {
    let name = INTERNAL_SEGMENT_BYTES.name;
    let value = overrides.get(name).or_else(|| defaults.get(name))?;
    Some(value.trim().parse().map_err(|_| refuse(name, value, "not a number of bytes")))
}

/// The members of a list; none for an empty text.
pub(super) fn members(text: &str) -> Vec<&str> {
    match text.trim() {
        "" => Vec::new(),
        text => text.split(',').map(str::trim).collect(),
    }
}

/// Why a value is refused: name, value and reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal(
    /// For people.
    pub String,
    /// It is a valid value that is not supported here.
    pub bool,
);

/// Checks a value for a setting, which the caller may know by another name: that of the broker's default.
pub fn check_value(key: &ConfigKey, name: &str, value: &str) -> Result<(), Refusal> {
    let trimmed = value.trim();
    let reason = if value.len() > VALUE_BYTES_MAX {
        Some(format!("longer than {VALUE_BYTES_MAX} bytes"))
    } else {
        match key.kind {
            ConfigType::Boolean => (!is_boolean(trimmed)).then(|| "neither true nor false".to_owned()),
            ConfigType::Int => wrong_integer(trimmed.parse::<i32>().ok().map(i64::from), 32, key.valid),
            ConfigType::Long => wrong_integer(trimmed.parse().ok(), 64, key.valid),
            ConfigType::Double => wrong_number(trimmed, key.valid),
            ConfigType::String => wrong_string(trimmed, key.valid),
            ConfigType::List => wrong_list(&members(trimmed), key.valid),
        }
    };
    if let Some(reason) = reason {
        return Err(Refusal(refuse(name, value, &reason), false));
    }
    match key.effect {
        Effect::Only { value: only, reason } if !trimmed.eq_ignore_ascii_case(only) => {
            Err(Refusal(refuse(name, value, reason), true))
        }
        _ => Ok(()),
    }
}

pub(super) fn refuse(name: &str, value: &str, reason: &str) -> String {
    let shown: String = value.chars().take(100).collect();
    format!("invalid value {shown} for {name}: {reason}")
}

fn is_boolean(text: &str) -> bool {
    text.eq_ignore_ascii_case("true") || text.eq_ignore_ascii_case("false")
}

fn wrong_integer(value: Option<i64>, bits: u32, valid: Valid) -> Option<String> {
    let Some(value) = value else {
        return Some(format!("not an integer of {bits} bits"));
    };
    match valid {
        Valid::AtLeast(min) if value < min => Some(format!("must be at least {min}")),
        Valid::Between(min, max) if !(min..=max).contains(&value) => Some(format!("must lie between {min} and {max}")),
        Valid::BetweenOr(min, max, or) if !(min..=max).contains(&value) && value != or => {
            Some(format!("must lie between {min} and {max}, or be {or}"))
        }
        _ => None,
    }
}

fn wrong_number(text: &str, valid: Valid) -> Option<String> {
    match (text.parse::<f64>(), valid) {
        (Err(_), _) => Some("not a number".to_owned()),
        (Ok(value), Valid::Ratio) if !(0.0..=1.0).contains(&value) => Some("must lie between 0 and 1".to_owned()),
        (Ok(_), _) => None,
    }
}

fn wrong_string(text: &str, valid: Valid) -> Option<String> {
    match valid {
        Valid::OneOf(values) if !values.contains(&text) => Some(format!("must be one of {}", values.join(", "))),
        _ => None,
    }
}

fn wrong_list(list: &[&str], valid: Valid) -> Option<String> {
    match valid {
        Valid::Members(values) if !list.iter().all(|member| values.contains(member)) => {
            Some(format!("its members must be of {}", values.join(", ")))
        }
        Valid::ThrottledReplicas if !is_throttled_replicas(list) => {
            Some("must be * or a list of partition:broker".to_owned())
        }
        _ => None,
    }
}

fn is_throttled_replicas(list: &[&str]) -> bool {
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let pair = |member: &str| member.split_once(':').is_some_and(|(a, b)| digits(a) && digits(b));
    list == ["*"] || list.iter().all(|member| member.is_empty() || pair(member))
}
