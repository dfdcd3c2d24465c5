//! What a run leaves behind: one JSON file with the machine, the commit, the whole configuration, and the figures.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::Context;
use base64::Engine as _;
use hdrhistogram::{
    Histogram,
    serialization::{Serializer, V2DeflateSerializer},
};
use serde::Serialize;
use serde_json::Value;

/// The machine a run was made on.
#[derive(Debug, Clone, Serialize)]
pub struct Machine {
    /// Kernel release.
    pub kernel: String,
    /// CPUs online.
    pub cpus: usize,
    /// Model of the first CPU.
    pub cpu_model: String,
    /// Memory in bytes.
    pub memory_bytes: u64,
}

impl Machine {
    /// This one.
    pub fn here() -> Machine {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let field = |text: &str, key: &str| {
            text.lines().find_map(|line| Some(line.strip_prefix(key)?.trim_start_matches([' ', '\t', ':']).to_owned()))
        };
        let memory = field(&read("/proc/meminfo"), "MemTotal").unwrap_or_default();
        Machine {
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            cpus: std::thread::available_parallelism().map_or(0, usize::from),
            cpu_model: field(&read("/proc/cpuinfo"), "model name").unwrap_or_default(),
            memory_bytes: memory.trim_end_matches(" kB").parse::<u64>().unwrap_or(0) * 1024,
        }
    }
}

/// One figure over all repetitions.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Figure {
    /// The median.
    pub median: f64,
    /// The smallest.
    pub min: f64,
    /// The largest.
    pub max: f64,
    /// In the order of the repetitions.
    pub values: Vec<f64>,
}

impl Figure {
    /// Sums up values; there is at least one.
    pub fn of(values: Vec<f64>) -> Figure {
        let mut sorted = values.clone();
        sorted.sort_by(f64::total_cmp);
        let middle = sorted.len() / 2;
        let median = if sorted.len() % 2 == 1 { sorted[middle] } else { (sorted[middle - 1] + sorted[middle]) / 2.0 };
        Figure { median, min: sorted[0], max: sorted[sorted.len() - 1], values }
    }
}

/// Names and values that one repetition measured. A unit is part of each name.
pub type Figures = BTreeMap<String, f64>;

/// A run as it is written down.
#[derive(Debug, Clone, Serialize)]
pub struct Run {
    /// What was measured: the subcommand.
    pub kind: String,
    /// The user's name for it.
    pub name: String,
    /// What was measured against, as the user calls it: "millrace", "kafka 4.3.1".
    pub target: String,
    /// Durability class: "D", "R", "X", or "-" where it does not apply.
    pub class: String,
    /// Seconds since the epoch.
    pub unix_time: u64,
    /// Commit of the tool's working copy, with "+" when it had changes.
    pub commit: String,
    /// The machine.
    pub machine: Machine,
    /// Everything that was asked for.
    pub config: Value,
    /// Median, smallest and largest over the repetitions.
    pub figures: BTreeMap<String, Figure>,
    /// Remarks that belong beside the figures, such as a client short of CPU.
    pub remarks: Vec<String>,
    /// Raw latency histograms in us by name, one per repetition: HdrHistogram V2, deflated, base64.
    pub histograms: BTreeMap<String, Vec<String>>,
}

impl Run {
    /// A run without figures.
    pub fn new(kind: &str, name: &str, target: &str, class: &str, config: &impl Serialize) -> anyhow::Result<Run> {
        Ok(Run {
            kind: kind.to_owned(),
            name: name.to_owned(),
            target: target.to_owned(),
            class: class.to_owned(),
            unix_time: SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs(),
            commit: commit(),
            machine: Machine::here(),
            config: without_paths(serde_json::to_value(config)?),
            figures: BTreeMap::new(),
            remarks: Vec::new(),
            histograms: BTreeMap::new(),
        })
    }

    /// Adds the figures of repetitions; one that is missing in some repetition is summed up over the others.
    pub fn add_repetitions(&mut self, repetitions: &[Figures]) {
        let mut by_name: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
        for (name, value) in repetitions.iter().flatten() {
            by_name.entry(name).or_default().push(*value);
        }
        let figures = by_name.into_iter().map(|(name, values)| (name.to_owned(), Figure::of(values)));
        self.figures.extend(figures);
    }

    /// Keeps a raw histogram.
    pub fn add_histogram(&mut self, name: &str, histogram: &Histogram<u64>) -> anyhow::Result<()> {
        let mut bytes = Vec::new();
        V2DeflateSerializer::new()
            .serialize(histogram, &mut bytes)
            .map_err(|error| anyhow::anyhow!("histogram {name}: {error:?}"))?;
        let text = base64::engine::general_purpose::STANDARD.encode(bytes);
        self.histograms.entry(name.to_owned()).or_default().push(text);
        Ok(())
    }

    /// Prints the figures, and writes the JSON file when a directory is given.
    pub fn finish(&self, directory: Option<&Path>) -> anyhow::Result<()> {
        println!("{} {} against {} (class {})", self.kind, self.name, self.target, self.class);
        for (name, figure) in &self.figures {
            let spread = if figure.values.len() > 1 {
                format!("  ({}-{})", number(figure.min), number(figure.max))
            } else {
                String::new()
            };
            println!("  {name:<36} {:>12}{spread}", number(figure.median));
        }
        self.remarks.iter().for_each(|remark| println!("  note: {remark}"));
        if let Some(directory) = directory {
            println!("  written to {}", self.write(directory)?.display());
        }
        Ok(())
    }

    fn write(&self, directory: &Path) -> anyhow::Result<PathBuf> {
        fs::create_dir_all(directory).with_context(|| format!("{}", directory.display()))?;
        let stem = format!("{}-{}", date(self.unix_time), self.name);
        let path = (1..)
            .map(|n| if n == 1 { format!("{stem}.json") } else { format!("{stem}-{n}.json") })
            .map(|name| directory.join(name))
            .find(|path| !path.exists())
            .context("no free name")?;
        fs::write(&path, serde_json::to_string_pretty(self)? + "\n").with_context(|| format!("{}", path.display()))?;
        Ok(path)
    }
}

/// Adds the usual percentiles of a histogram in us to the figures, in ms.
pub fn add_percentiles(figures: &mut Figures, name: &str, histogram: &Histogram<u64>) {
    if histogram.is_empty() {
        return;
    }
    for (label, percentile) in [("p50", 50.0), ("p90", 90.0), ("p99", 99.0), ("p99.9", 99.9), ("p99.99", 99.99)] {
        let ms = histogram.value_at_percentile(percentile) as f64 / 1000.0;
        figures.insert(format!("{name} {label} ms"), ms);
    }
    figures.insert(format!("{name} max ms"), histogram.max() as f64 / 1000.0);
}

fn number(value: f64) -> String {
    match value.abs() {
        0.0 => "0".to_owned(),
        magnitude if magnitude >= 1000.0 => format!("{value:.0}"),
        magnitude if magnitude >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.3}"),
    }
}

/// Configuration as it may be published: where this machine keeps things is nobody's business and tells nobody anything.
fn without_paths(value: Value) -> Value {
    let base = |word: &str| match word.trim_matches('\'').rsplit_once('/') {
        Some((folder, name)) if folder.is_empty() || folder.starts_with('/') => format!(".../{name}"),
        _ => word.to_owned(),
    };
    match value {
        Value::String(text) if text.contains('/') => {
            Value::String(text.split(' ').map(base).collect::<Vec<_>>().join(" "))
        }
        Value::Array(values) => values.into_iter().map(without_paths).collect(),
        Value::Object(map) => map.into_iter().map(|(key, value)| (key, without_paths(value))).collect(),
        other => other,
    }
}

fn commit() -> String {
    // the tool is built inside its working copy, from wherever it is called
    let folder = std::env::current_exe().ok().and_then(|exe| exe.parent().map(Path::to_owned)).unwrap_or_default();
    let git = |arguments: &[&str]| {
        let output = Command::new("git").arg("-C").arg(&folder).args(arguments).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    match (git(&["rev-parse", "HEAD"]), git(&["status", "--porcelain", "--untracked-files=no"])) {
        (Some(commit), Some(changes)) if !changes.is_empty() => commit + "+",
        (Some(commit), _) => commit,
        _ => "unknown".to_owned(),
    }
}

/// Day of a time, as YYYY-MM-DD in UTC (the civil-from-days algorithm of Howard Hinnant).
fn date(unix_time: u64) -> String {
    let z = (unix_time / 86_400) as i64 + 719_468;
    let era = z.div_euclid(146_097);
    let day_of_era = z.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_civil() {
        for (time, text) in [(0, "1970-01-01"), (951_782_400, "2000-02-29"), (1_767_225_599, "2025-12-31")] {
            assert_eq!(date(time), text);
        }
    }

    #[test]
    fn paths_of_this_machine_are_not_published() {
        let config =
            serde_json::json!({"command": "/a/b/broker serve --data '/x/y' --name a/b", "list": ["/tmp/z"], "n": 1});
        let expected =
            serde_json::json!({"command": ".../broker serve --data .../y --name a/b", "list": [".../z"], "n": 1});
        assert_eq!(without_paths(config), expected);
    }

    #[test]
    fn figures_are_summed_up_over_repetitions() {
        let mut run = Run::new("t", "n", "x", "-", &"c").expect("serialises");
        let one = |value| Figures::from([("MB/s".to_owned(), value)]);
        run.add_repetitions(&[one(3.0), one(1.0), one(2.0), one(9.0)]);
        let expected = Figure { median: 2.5, min: 1.0, max: 9.0, values: vec![3.0, 1.0, 2.0, 9.0] };
        assert_eq!(run.figures["MB/s"], expected);
    }

    #[test]
    fn raw_histograms_can_be_read_again_and_runs_do_not_overwrite() {
        let directory = tempfile::tempdir().expect("a temporary folder");
        let mut run = Run::new("t", "n", "x", "-", &"c").expect("serialises");
        let mut histogram = Histogram::<u64>::new(3).expect("legal");
        histogram.record_n(77, 5).expect("in range");
        run.add_histogram("latency", &histogram).expect("serialises");
        let first = run.write(directory.path()).expect("written");
        let second = run.write(directory.path()).expect("written");
        assert_ne!(first, second);
        let json: Value = serde_json::from_slice(&fs::read(first).expect("there")).expect("JSON");
        let text = json["histograms"]["latency"][0].as_str().expect("text");
        let bytes = base64::engine::general_purpose::STANDARD.decode(text).expect("base64");
        let back: Histogram<u64> =
            hdrhistogram::serialization::Deserializer::new().deserialize(&mut bytes.as_slice()).expect("a histogram");
        assert_eq!(back, histogram);
    }
}
