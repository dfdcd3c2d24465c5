//! What `millrace doctor` says of a cluster's etcd: whether it answers, its version, its size, its disk.

use std::{os::unix::fs::MetadataExt, path::Path, time::Duration};

use millrace_replica::cluster::etcd::{Etcd, EtcdOptions};
use millrace_tuning::Finding;

use crate::{
    config::{ClusterConfig, Config},
    serve::cluster::etcd_options,
};

const CHECK: &str = "etcd";
/// How long an etcd may take to answer here.
const PATIENCE: Duration = Duration::from_secs(2);
/// Oldest releases without the bugs that are told of, of each line that is maintained: major, minor, patch.
const SOUND: [(u32, u32, u32); 2] = [(3, 5, 33), (3, 6, 14)];
/// An etcd with that much is most likely never compacted; by default it refuses writes at 2 GiB.
const DATABASE_BYTES_MANY: i64 = 1 << 30;

/// Looks at every etcd that the configuration names.
pub(super) fn examine(config: &Config) -> Vec<Finding> {
    let Some(cluster) = &config.cluster else { return Vec::new() };
    let mut findings = Vec::new();
    if cluster.etcd.managed.is_some() {
        findings.extend(program());
        findings.extend(disk(&config.data_dir));
    }
    match etcd_options(&cluster.name, &cluster.etcd) {
        Ok(options) => {
            findings.extend(options.endpoints.iter().flat_map(|endpoint| member(cluster, &options, endpoint)))
        }
        Err(error) => findings.push(Finding::error(CHECK, error, "etcd cannot be asked", "correct that file")),
    }
    findings
}

fn member(cluster: &ClusterConfig, options: &EtcdOptions, endpoint: &str) -> Vec<Finding> {
    let options = EtcdOptions { endpoints: vec![endpoint.to_owned()], timeout: PATIENCE, ..options.clone() };
    let mut etcd = match Etcd::new(&options) {
        Ok(etcd) => etcd,
        Err(error) => {
            return vec![Finding::error(
                CHECK,
                error.to_string(),
                "etcd cannot be asked",
                "correct --etcd and its files",
            )];
        }
    };
    let version = match etcd.server_version() {
        Ok(version) => version,
        Err(error) if cluster.etcd.managed.is_some() => {
            return vec![Finding::good(CHECK, format!("{endpoint} does not run yet ({error}); its node starts it"))];
        }
        Err(error) => {
            return vec![Finding::warning(
                CHECK,
                format!("{endpoint}: {error}"),
                "without a majority of its members nobody is elected, and a node that starts waits",
                "start it, or correct --etcd",
            )];
        }
    };
    let mut findings = vec![judge(endpoint, &version)];
    findings.extend(etcd.database_bytes().ok().and_then(|bytes| judge_size(endpoint, bytes)));
    findings.extend(etcd.is_full().is_ok_and(|is_full| is_full).then(|| full(endpoint)));
    findings
}

fn judge(endpoint: &str, version: &str) -> Finding {
    let what = format!("{endpoint} is etcd {version}");
    match is_sound(version) {
        true => Finding::good(CHECK, what),
        false => Finding::warning(
            CHECK,
            what,
            "it has bugs that were fixed later: watches that skip changes, leases that are taken away too early, stale \
             reads, ways around its users. Changes of the cluster are safe all the same, but may take longer",
            "upgrade to 3.5.33, 3.6.14 or later; until then have it on loopback or behind client certificates only",
        ),
    }
}

fn is_sound(version: &str) -> bool {
    let mut parts = version.split(['.', '-']).map(|part| part.parse::<u32>().unwrap_or(0));
    let mut next = || parts.next().unwrap_or(0);
    let (major, minor, patch) = (next(), next(), next());
    let newest = SOUND[SOUND.len() - 1];
    SOUND.iter().any(|sound| (sound.0, sound.1) == (major, minor) && patch >= sound.2)
        || (major, minor) > (newest.0, newest.1)
}

fn judge_size(endpoint: &str, bytes: i64) -> Option<Finding> {
    (bytes >= DATABASE_BYTES_MANY).then(|| {
        Finding::warning(
            CHECK,
            format!("{endpoint} has a database of {} MiB", bytes >> 20),
            "history that is never compacted fills it until it refuses every write",
            "start it with --auto-compaction-mode periodic --auto-compaction-retention 5m, then 'etcdctl defrag'",
        )
    })
}

/// It raised the alarm NOSPACE.
fn full(endpoint: &str) -> Finding {
    Finding::error(
        CHECK,
        format!("{endpoint} takes no writes: its space is used up"),
        "nobody is elected and no topic is created; produce and fetch go on where there are leaders",
        "'etcdctl compact' up to its revision, 'etcdctl defrag', 'etcdctl alarm disarm'",
    )
}

/// Whether there is a program to run.
fn program() -> Option<Finding> {
    let found = std::env::split_paths(&std::env::var_os("PATH")?).any(|folder| folder.join("etcd").is_file());
    (!found).then(|| {
        Finding::error(
            CHECK,
            "there is no program 'etcd' in the PATH",
            "--etcd managed runs it",
            "apt-get install etcd-server",
        )
    })
}

/// Both flush all the time.
fn disk(data_dir: &Path) -> Option<Finding> {
    let device = |path: &Path| path.metadata().ok().map(|data| data.dev());
    let own = device(data_dir)?;
    let folder = data_dir.join("etcd");
    (device(&folder).unwrap_or(own) == own).then(|| {
        Finding::warning(
            CHECK,
            format!("{} is on the disk of the log", folder.display()),
            "both flush all the time and wait for each other; an etcd that is slow for long loses its leader",
            "mount another disk there",
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_with_known_bugs_are_told_of() {
        for (version, is_good) in [
            ("3.4.23", false),
            ("3.5.32", false),
            ("3.5.33", true),
            ("3.6.13", false),
            ("3.6.14", true),
            ("3.7.0", true),
            ("3.7.0-rc.1", true),
            ("4.0.0", true),
            ("", false),
        ] {
            assert_eq!(is_sound(version), is_good, "{version}");
        }
    }

    #[test]
    fn a_large_database_is_told_of() {
        assert!(judge_size("x", 2 << 30).is_some_and(|finding| finding.what.contains("2048 MiB")));
        assert!(judge_size("x", 1 << 20).is_none());
    }
}
