//! `HOST:PORT` as an option. Pure; names are looked up when the node starts.

use std::{fmt, net::IpAddr, str::FromStr};

use serde::{Deserialize, Deserializer, de};

/// A host, by name or address, and a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct HostPort {
    /// Name, IPv4 address, or IPv6 address without brackets.
    pub(crate) host: String,
    /// Port; 0 only for listening, where it means any free one.
    pub(crate) port: u16,
}

impl HostPort {
    /// Whether it means every address of the machine, and so no place to connect to.
    pub(crate) fn is_wildcard(&self) -> bool {
        self.host.parse::<IpAddr>().is_ok_and(|ip| ip.to_canonical().is_unspecified())
    }
}

impl FromStr for HostPort {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let text = text.strip_prefix("PLAINTEXT://").unwrap_or(text);
        let (host, port) = text
            .rsplit_once(':')
            .ok_or_else(|| format!("'{text}' has no port: write HOST:PORT, as in 127.0.0.1:9092"))?;
        if host.is_empty() || host.contains(char::is_whitespace) || host.contains('/') {
            return Err(format!("'{text}' has no host: write HOST:PORT, as in 127.0.0.1:9092"));
        }
        let bracketed = host.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
        let host = bracketed.unwrap_or(host);
        if bracketed.is_none() && host.contains(':') {
            return Err(format!("'{text}': write an IPv6 address in brackets, as in [::1]:9092"));
        }
        let port = port.parse().map_err(|_| format!("'{port}' is not a port: 0 to 65535"))?;
        Ok(Self { host: host.to_owned(), port })
    }
}

impl From<HostPort> for (String, u16) {
    fn from(address: HostPort) -> Self {
        (address.host, address.port)
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host.contains(':') {
            true => write!(f, "[{}]:{}", self.host, self.port),
            false => write!(f, "{}:{}", self.host, self.port),
        }
    }
}

impl<'de> Deserialize<'de> for HostPort {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_and_ports_are_told_apart() {
        for (text, host, port) in [
            ("127.0.0.1:9092", "127.0.0.1", 9092),
            ("broker.example:0", "broker.example", 0),
            ("[::1]:9092", "::1", 9092),
            ("PLAINTEXT://0.0.0.0:9092", "0.0.0.0", 9092),
        ] {
            let parsed: HostPort = text.parse().unwrap();
            assert_eq!((parsed.host.as_str(), parsed.port), (host, port));
        }
        let v6: HostPort = "[::1]:9092".parse().unwrap();
        assert_eq!(v6.to_string(), "[::1]:9092");
        for (text, is_wildcard) in [("0.0.0.0:1", true), ("[::]:1", true), ("[0:0::0]:1", true), ("[::1]:1", false)] {
            assert_eq!(text.parse::<HostPort>().unwrap().is_wildcard(), is_wildcard, "{text}");
        }
    }

    #[test]
    fn what_is_no_address_is_refused_with_a_reason() {
        for (text, reason) in [
            ("9092", "no port"),
            (":9092", "no host"),
            ("host:99999", "not a port"),
            ("::1:9092", "brackets"),
            ("http://x:1", "no host"),
            ("a b:1", "no host"),
        ] {
            let error = text.parse::<HostPort>().unwrap_err();
            assert!(error.contains(reason), "{text}: {error}");
        }
    }
}
