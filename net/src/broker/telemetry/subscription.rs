//! Subscriptions: which clients are to push which metrics, how often. Pure.
//!
//! Names, ranges, defaults and errors are those of Kafka 4.3's `ClientMetricsConfigs`. Patterns are regular expressions
//! without look-around and back-references, which no input makes slow; others are refused as illegal.

use std::collections::{BTreeMap, BTreeSet};

use kafka_protocol::ResponseError;
use regex::Regex;

use crate::errors::ApiError;

pub(crate) const METRICS: &str = "metrics";
pub(crate) const INTERVAL_MS: &str = "interval.ms";
pub(crate) const MATCH: &str = "match";

/// Push interval of clients that no subscription says another one for.
pub(crate) const INTERVAL_MS_DEFAULT: i32 = 300_000;
const INTERVAL_MS_MIN: i32 = 100;
const INTERVAL_MS_MAX: i32 = 3_600_000;

/// Stands for all metrics.
const ALL_METRICS: &str = "*";

/// What a client is recognised by.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Attributes {
    pub(crate) client_instance_id: String,
    pub(crate) client_id: Option<String>,
    pub(crate) software: Option<(String, String)>,
    pub(crate) source_address: String,
    pub(crate) source_port: u16,
}

impl Attributes {
    fn find(&self, parameter: Parameter) -> Option<String> {
        match parameter {
            Parameter::InstanceId => Some(self.client_instance_id.clone()),
            Parameter::ClientId => self.client_id.clone(),
            Parameter::SoftwareName => self.software.as_ref().map(|(name, _)| name.clone()),
            Parameter::SoftwareVersion => self.software.as_ref().map(|(_, version)| version.clone()),
            Parameter::SourceAddress => Some(self.source_address.clone()),
            Parameter::SourcePort => Some(self.source_port.to_string()),
        }
    }
}

/// What a pattern looks at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Parameter {
    InstanceId,
    ClientId,
    SoftwareName,
    SoftwareVersion,
    SourceAddress,
    SourcePort,
}

impl Parameter {
    fn parse(name: &str) -> Option<Parameter> {
        Some(match name {
            "client_instance_id" => Parameter::InstanceId,
            "client_id" => Parameter::ClientId,
            "client_software_name" => Parameter::SoftwareName,
            "client_software_version" => Parameter::SoftwareVersion,
            "client_source_address" => Parameter::SourceAddress,
            "client_source_port" => Parameter::SourcePort,
            _ => return None,
        })
    }
}

/// One subscription.
#[derive(Debug, Clone)]
pub(crate) struct Subscription {
    /// Prefixes of names of metrics.
    pub(crate) metrics: Vec<String>,
    pub(crate) interval_ms: i32,
    /// All of them must match the whole of their attribute.
    patterns: BTreeMap<Parameter, Regex>,
}

impl Subscription {
    /// Parses a subscription's own settings; refuses them as Kafka does.
    pub(crate) fn parse(own: &BTreeMap<String, String>) -> Result<Subscription, ApiError> {
        if let Some(unknown) = own.keys().find(|name| ![METRICS, INTERVAL_MS, MATCH].contains(&name.as_str())) {
            let reason = format!("Unknown client metrics configuration: {unknown}");
            return Err(ApiError::new(ResponseError::InvalidRequest, reason));
        }
        let metrics = list(METRICS, own.get(METRICS))?;
        let interval_ms = own.get(INTERVAL_MS).map_or(Ok(INTERVAL_MS_DEFAULT), |text| interval(text))?;
        let matches = list(MATCH, own.get(MATCH))?;
        if !(INTERVAL_MS_MIN..=INTERVAL_MS_MAX).contains(&interval_ms) {
            let reason = format!(
                "Invalid value {interval_ms} for {INTERVAL_MS}, interval must be between {INTERVAL_MS_MIN} and \
                 {INTERVAL_MS_MAX} (1 hour)"
            );
            return Err(ApiError::new(ResponseError::InvalidRequest, reason));
        }
        let patterns = matches.iter().map(|text| pattern(text)).collect::<Result<_, _>>()?;
        Ok(Subscription { metrics, interval_ms, patterns })
    }

    fn is_match(&self, attributes: &Attributes) -> bool {
        let fits = |(parameter, regex): (&Parameter, &Regex)| {
            attributes.find(*parameter).is_some_and(|value| regex.is_match(&value))
        };
        self.patterns.iter().all(fits)
    }
}

/// What is asked of one client, by all subscriptions that match it together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Asked {
    /// Prefixes of names, sorted; [`ALL_METRICS`] alone for all.
    pub(crate) metrics: BTreeSet<String>,
    pub(crate) interval_ms: i32,
}

impl Asked {
    /// Puts together what matches.
    pub(crate) fn of<'a>(subscriptions: impl Iterator<Item = &'a Subscription>, attributes: &Attributes) -> Asked {
        let mut asked = Asked { metrics: BTreeSet::new(), interval_ms: INTERVAL_MS_DEFAULT };
        for subscription in subscriptions.filter(|subscription| subscription.is_match(attributes)) {
            asked.metrics.extend(subscription.metrics.iter().cloned());
            asked.interval_ms = asked.interval_ms.min(subscription.interval_ms);
        }
        if asked.metrics.contains(ALL_METRICS) {
            asked.metrics = BTreeSet::from([ALL_METRICS.to_owned()]);
        }
        asked
    }

    /// The subscription id that a client must name: a checksum over what is asked, mixed with the client's id.
    pub(crate) fn id(&self, client_instance_id: uuid::Uuid) -> i32 {
        let names: Vec<_> = self.metrics.iter().map(String::as_str).collect();
        let checksum = crc32c::crc32c(format!("[{}]{}", names.join(", "), self.interval_ms).as_bytes());
        let (most, least) = client_instance_id.as_u64_pair();
        let halves = most ^ least;
        let [high, low] = [halves >> 32, halves & u64::from(u32::MAX)];
        (checksum ^ u32::try_from(high ^ low).expect("both have 32 bits")).cast_signed()
    }
}

/// A list's members without space around them, each once.
pub(crate) fn members(text: &str) -> Vec<&str> {
    let mut members = Vec::new();
    for member in text.trim().split(',').map(str::trim).filter(|_| !text.trim().is_empty()) {
        if !members.contains(&member) {
            members.push(member);
        }
    }
    members
}

/// A list's members, none of them empty.
fn list(name: &str, value: Option<&String>) -> Result<Vec<String>, ApiError> {
    let members = members(value.map_or("", String::as_str));
    if members.contains(&"") {
        let reason = format!("Configuration '{name}' values must not be empty.");
        return Err(ApiError::new(ResponseError::InvalidConfig, reason));
    }
    Ok(members.into_iter().map(str::to_owned).collect())
}

fn interval(text: &str) -> Result<i32, ApiError> {
    text.trim().parse().map_err(|_| {
        let reason = format!("Invalid value {text} for configuration {INTERVAL_MS}: Not a number of type INT");
        ApiError::new(ResponseError::InvalidConfig, reason)
    })
}

/// `parameter=regex`, with exactly one equals sign.
fn pattern(text: &str) -> Result<(Parameter, Regex), ApiError> {
    let illegal = || ApiError::new(ResponseError::InvalidConfig, format!("Illegal client matching pattern: {text}"));
    // Java's split, by which Kafka takes a pattern apart, leaves out what is empty at the end.
    let (name, value) = text.trim_end_matches('=').split_once('=').ok_or_else(illegal)?;
    if value.contains('=') {
        return Err(illegal());
    }
    let parameter = Parameter::parse(name.trim()).ok_or_else(illegal)?;
    let regex = crate::coordinator::group::compile_regex(value.trim()).map_err(|_| illegal())?;
    Ok((parameter, regex))
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    fn parse(own: &[(&str, &str)]) -> Result<Subscription, ApiError> {
        Subscription::parse(&own.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect())
    }

    fn attributes() -> Attributes {
        Attributes {
            client_instance_id: "AAAA".to_owned(),
            client_id: Some("app-1".to_owned()),
            software: Some(("apache-kafka-java".to_owned(), "4.3.1".to_owned())),
            source_address: "10.0.0.1".to_owned(),
            source_port: 4711,
        }
    }

    #[test]
    fn settings_are_refused_as_kafka_refuses_them() {
        let code = |own: &[(&str, &str)]| parse(own).err().map(|error| error.error);
        let (request, config) = (Some(ResponseError::InvalidRequest), Some(ResponseError::InvalidConfig));
        assert_eq!(code(&[]), None);
        assert_eq!(code(&[("metrics", " a.b. , c "), ("interval.ms", "100"), ("match", "")]), None);
        assert_eq!(code(&[("metrics", "")]), None);
        assert_eq!(code(&[("metrcs", "a")]), request);
        assert_eq!(code(&[("interval.ms", "99")]), request);
        assert_eq!(code(&[("interval.ms", "3600001")]), request);
        assert_eq!(code(&[("interval.ms", "soon")]), config);
        assert_eq!(parse(&[("metrics", "a, b,a")]).unwrap().metrics, ["a", "b"]);
        assert_eq!(code(&[("metrics", "a,,b")]), config);
        for bad in ["a", "client_id", "client_id=", "=x", "id=x", "client_id==x", "client_id=[", "client_id=(?=x)"] {
            assert_eq!(code(&[("match", bad)]), config, "{bad}");
        }
        assert_eq!(code(&[("match", "client_id=x=")]), None);
        assert_eq!(code(&[("match", "client_id = x.*, client_source_port=[0-9]+")]), None);
    }

    #[test]
    fn all_patterns_must_match_all_of_their_attribute() {
        let asked = |pattern: &str| {
            let subscription = parse(&[("metrics", "m"), ("match", pattern)]).unwrap();
            !Asked::of([&subscription].into_iter(), &attributes()).metrics.is_empty()
        };
        assert!(asked("") && asked("client_id=app-.*,client_software_version=4\\.3.*"));
        assert!(asked("client_source_address=10.0.0.1,client_source_port=4711,client_instance_id=A+"));
        assert!(!asked("client_id=app") && !asked("client_id=app-.*,client_software_name=librdkafka"));
        let nameless = Attributes { client_id: None, ..attributes() };
        let any = parse(&[("metrics", "m"), ("match", "client_id=.*")]).unwrap();
        assert!(Asked::of([&any].into_iter(), &nameless).metrics.is_empty(), "nothing matches no name");
    }

    #[test]
    fn subscriptions_add_up() {
        let one = parse(&[("metrics", "b,a"), ("interval.ms", "5000")]).unwrap();
        let two = parse(&[("metrics", "a,c"), ("interval.ms", "1000")]).unwrap();
        let all = parse(&[("metrics", "*")]).unwrap();
        let asked = Asked::of([&one, &two].into_iter(), &attributes());
        assert_eq!(asked.metrics.iter().collect::<Vec<_>>(), ["a", "b", "c"]);
        assert_eq!(asked.interval_ms, 1000);
        let more = Asked::of([&one, &all].into_iter(), &attributes());
        assert_eq!(more.metrics.iter().collect::<Vec<_>>(), ["*"]);
        let none = Asked::of([].into_iter(), &attributes());
        assert_eq!((none.metrics.len(), none.interval_ms), (0, INTERVAL_MS_DEFAULT));
        let id = Uuid::from_u128(0x0102_0304_0506_0708_1112_1314_1516_1718);
        assert_eq!(asked.id(id), asked.clone().id(id));
        assert_ne!(asked.id(id), more.id(id));
        assert_ne!(asked.id(id), asked.id(Uuid::from_u128(9)));
    }
}
