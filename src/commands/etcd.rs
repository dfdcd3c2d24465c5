//! What `millrace doctor` says of a cluster's etcd: whether it answers, its version, its size, its disk.

use std::{
    net::{SocketAddr, TcpListener, ToSocketAddrs},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::Duration,
};

use millrace_replica::cluster::etcd::{Etcd, EtcdOptions};
use millrace_tuning::{Finding, network};

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
/// One with all of so many revisions is surely never compacted: it is told of long before its database is large.
const REVISIONS_MANY: i64 = 50_000;
/// What to start one with.
const COMPACTING: &str = "--auto-compaction-mode=periodic --auto-compaction-retention=5m";

/// Looks at every etcd that the configuration names.
pub(super) fn examine(config: &Config) -> Vec<Finding> {
    let Some(cluster) = &config.cluster else { return Vec::new() };
    let mut findings = Vec::new();
    if cluster.etcd.managed.is_some() {
        findings.extend(program());
        let folder = config.data_dir.join("etcd");
        findings.extend(disk(&config.data_dir, &folder, "mount another disk there"));
    }
    match etcd_options(&cluster.name, &cluster.etcd) {
        Ok(options) => {
            findings.extend(options.endpoints.iter().flat_map(|endpoint| member(cluster, &options, endpoint)));
            if cluster.etcd.managed.is_none() {
                let folders = options.endpoints.iter().filter_map(|endpoint| folder_here(endpoint));
                findings.extend(folders.filter_map(|folder| disk(&config.data_dir, &folder, "give it another disk")));
            }
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
    let size = etcd.database_bytes().ok().and_then(|bytes| judge_size(endpoint, bytes));
    let history = || judge_history(endpoint, etcd.uncompacted_revisions().ok().flatten()?);
    findings.extend(size.or_else(history));
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
            format!("start it with {COMPACTING}, then 'etcdctl defrag'"),
        )
    })
}

fn judge_history(endpoint: &str, revisions: i64) -> Option<Finding> {
    (revisions >= REVISIONS_MANY).then(|| {
        Finding::warning(
            CHECK,
            format!("{endpoint} keeps all of its {revisions} revisions"),
            "its history is never compacted: it grows until etcd refuses every write, at 2 GiB by default",
            format!("start each of its members with {COMPACTING}"),
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

/// The folder of an etcd that runs on this machine, by the database that its process has open; `None` if it runs elsewhere, or
/// is somebody else's whom this user may not look at.
fn folder_here(endpoint: &str) -> Option<PathBuf> {
    let authority = endpoint.split_once("://").map_or(endpoint, |(_, rest)| rest).trim_end_matches('/');
    let found = authority.to_socket_addrs().ok()?;
    // whoever listens on all addresses takes no connections to those of other machines
    let is_here = |address: &SocketAddr| TcpListener::bind(SocketAddr::new(address.ip(), 0)).is_ok();
    let process = found.into_iter().filter(is_here).find_map(network::process_on)?;
    let open = std::fs::read_dir(format!("/proc/{process}/fd")).ok()?.flatten();
    let mut files = open.filter_map(|file| std::fs::read_link(file.path()).ok());
    let database = files.find(|path| path.ends_with("member/snap/db"))?;
    database.ancestors().nth(DATABASE_DEPTH).map(Path::to_owned)
}

/// Folders between an etcd's own and its database, with that: `member/snap/db`.
const DATABASE_DEPTH: usize = 3;

/// Both flush all the time.
fn disk(data_dir: &Path, folder: &Path, fix: &str) -> Option<Finding> {
    let device = |path: &Path| path.metadata().ok().map(|data| data.dev());
    let own = device(data_dir)?;
    (device(folder).unwrap_or(own) == own).then(|| {
        Finding::warning(
            CHECK,
            format!("{} is on the disk of the log", folder.display()),
            "both flush all the time and wait for each other; an etcd that is slow for long loses its leader",
            fix,
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
    fn a_history_that_is_never_compacted_is_told_of_early() {
        assert!(
            judge_history("x", 60_000).is_some_and(|finding| finding.fix.contains("--auto-compaction-mode=periodic"))
        );
        assert!(judge_history("x", 100).is_none());
    }

    #[test]
    fn an_etcd_of_this_machine_is_found_by_what_it_has_open() {
        let folder = tempfile::tempdir().unwrap();
        let snapshots = folder.path().join("member/snap");
        std::fs::create_dir_all(&snapshots).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}/", listener.local_addr().unwrap());
        assert_eq!(folder_here(&endpoint), None, "it has no database open");
        let _database = std::fs::File::create(snapshots.join("db")).unwrap();
        assert_eq!(folder_here(&endpoint).as_deref(), Some(folder.path()));
        assert!(disk(folder.path(), folder.path(), "give it another disk").is_some());
        assert!(disk(Path::new("/proc"), folder.path(), "").is_none());
        assert_eq!(folder_here("http://192.0.2.1:2379"), None, "that is another machine");
    }

    #[test]
    fn a_large_database_is_told_of() {
        assert!(judge_size("x", 2 << 30).is_some_and(|finding| finding.what.contains("2048 MiB")));
        assert!(judge_size("x", 1 << 20).is_none());
    }
}
