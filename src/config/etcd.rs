//! How an etcd is written in options and in the configuration file.

use std::str::FromStr;

use serde::{Deserialize, Deserializer, de};

use super::address::HostPort;

/// Port of an etcd for its clients, when nothing is said; its peers use the one after it.
const ETCD_PORT: u16 = 2379;

/// One of the nodes that run an etcd: `ID=HOST` or `ID=HOST:PORT`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct EtcdMember {
    pub(crate) node_id: i32,
    pub(crate) host: String,
    /// For clients; other members use the port after it.
    pub(crate) port: u16,
}

impl EtcdMember {
    /// Where clients reach it.
    pub(crate) fn client(&self) -> HostPort {
        HostPort { host: self.host.clone(), port: self.port }
    }

    /// Where other members reach it.
    pub(crate) fn peer(&self) -> HostPort {
        HostPort { host: self.host.clone(), port: self.port + 1 }
    }
}

impl FromStr for EtcdMember {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wanted = || format!("'{text}' is no member: write ID=HOST or ID=HOST:PORT, as in 1=10.0.0.1");
        let (id, address) = text.trim().split_once('=').ok_or_else(wanted)?;
        let node_id = id.trim().parse().ok().filter(|id| *id >= 0).ok_or_else(wanted)?;
        let address = address.trim();
        let with_port = || address.parse::<HostPort>().or_else(|_| format!("{address}:{ETCD_PORT}").parse());
        let HostPort { host, port } = with_port()?;
        match port {
            0 | u16::MAX => Err(format!("'{text}': the port must be one that another one follows")),
            _ => Ok(Self { node_id, host, port }),
        }
    }
}

impl<'de> Deserialize<'de> for EtcdMember {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

/// `--etcd`: addresses, or the word for one that the node runs itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum EtcdPlace {
    Url(String),
    Managed,
    /// None: one of two nodes keeps what it would keep.
    Mirror,
}

impl FromStr for EtcdPlace {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.trim().trim_end_matches('/');
        if text.eq_ignore_ascii_case("managed") {
            return Ok(Self::Managed);
        }
        if text.eq_ignore_ascii_case("mirror") {
            return Ok(Self::Mirror);
        }
        let text = if text.contains("://") { text.to_owned() } else { format!("http://{text}") };
        let address = text.strip_prefix("http://").or_else(|| text.strip_prefix("https://"));
        let address =
            address.ok_or_else(|| format!("'{text}': write http://HOST:PORT, https://HOST:PORT, managed or mirror"))?;
        address.parse::<HostPort>()?;
        Ok(Self::Url(text))
    }
}

impl<'de> Deserialize<'de> for EtcdPlace {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}
