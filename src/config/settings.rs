//! `KEY=VALUE` as an option and as a table of the configuration file. Pure.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, de};

/// One setting by name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Setting {
    pub(crate) key: String,
    pub(crate) value: String,
}

impl FromStr for Setting {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('=') {
            Some((key, value)) if !key.trim().is_empty() => {
                Ok(Self { key: key.trim().to_owned(), value: value.trim().to_owned() })
            }
            _ => Err(format!("'{text}' is not NAME=VALUE")),
        }
    }
}

impl From<Setting> for (String, String) {
    fn from(setting: Setting) -> Self {
        (setting.key, setting.value)
    }
}

impl fmt::Display for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.key, self.value)
    }
}

/// A table of settings, dotted or quoted keys alike, or an array of `KEY=VALUE`.
pub(super) fn table<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Setting>, D::Error> {
    let mut settings = Vec::new();
    match toml::Value::deserialize(deserializer)? {
        toml::Value::Table(table) => flatten("", &table, &mut settings).map_err(de::Error::custom)?,
        toml::Value::Array(items) => {
            for item in items {
                let text = item.as_str().ok_or_else(|| de::Error::custom(TABLE_WANTED))?;
                settings.push(text.parse().map_err(de::Error::custom)?);
            }
        }
        _ => return Err(de::Error::custom(TABLE_WANTED)),
    }
    Ok(settings)
}

const TABLE_WANTED: &str = "expected a table of settings, as in { \"retention.ms\" = 86400000 }";

fn flatten(prefix: &str, table: &toml::Table, out: &mut Vec<Setting>) -> Result<(), String> {
    for (key, value) in table {
        let key = format!("{prefix}{key}");
        let value = match value {
            toml::Value::Table(inner) => {
                flatten(&format!("{key}."), inner, out)?;
                continue;
            }
            toml::Value::String(text) => text.clone(),
            toml::Value::Integer(number) => number.to_string(),
            toml::Value::Float(number) => number.to_string(),
            toml::Value::Boolean(flag) => flag.to_string(),
            other => return Err(format!("{key}: a setting cannot be {}", other.type_str())),
        };
        out.push(Setting { key, value });
    }
    Ok(())
}

/// One address or an array of them, if any are given.
pub(super) fn some_or_more<'de, D, T>(deserializer: D) -> Result<Option<Vec<T>>, D::Error>
where
    D: Deserializer<'de>,
    T: FromStr<Err = String>,
{
    one_or_more(deserializer).map(Some)
}

/// One address or an array of them.
pub(super) fn one_or_more<'de, D, T>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    D: Deserializer<'de>,
    T: FromStr<Err = String>,
{
    let items = match toml::Value::deserialize(deserializer)? {
        toml::Value::Array(items) => items,
        one => vec![one],
    };
    let parse = |item: toml::Value| {
        let text = item.as_str().ok_or_else(|| de::Error::custom("expected HOST:PORT in quotes"))?;
        text.parse().map_err(de::Error::custom)
    };
    items.into_iter().map(parse).collect()
}
