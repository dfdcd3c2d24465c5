//! What a data directory remembers of its node's lives in a cluster: a small file of its own, `member.toml`.
//!
//! It says which directory this is and which life was the last, so that the next one may go on with what that one was
//! promised. It is written whole, beside the old one, and put in its place; without it the node is new to the cluster.

use std::{
    fs::{self, File},
    io::{self, Write},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use millrace_replica::cluster::{
    adoption::{Claimed, Kept},
    restored::Remembered,
};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Name of the file in the data directory.
const FILE: &str = "member.toml";

/// What the file says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(super) struct Life {
    /// The cluster's name.
    pub(super) cluster: String,
    /// This data directory, whatever it is called.
    #[serde(with = "as_text")]
    pub(super) directory: Uuid,
    /// The cluster's id, once it was heard: another etcd may have a cluster of the same name.
    #[serde(with = "as_text", default = "Uuid::nil")]
    cluster_id: Uuid,
    /// The last life's epoch; 0 before the first.
    pub(super) epoch: i64,
    /// Which etcd it was, and how far that was: another one, or one below that, has forgotten something.
    #[serde(default)]
    pub(super) etcd: Option<SeenEtcd>,
    /// The boot of the machine in which that was.
    pub(super) boot: String,
    /// The node was alone and has topics that are not all written down in its cluster yet: until they are, what the
    /// cluster says of topics must not be acted on here.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    joining: bool,
    /// Adoptions of the cluster, after its etcd was restored from a backup, before its last life.
    #[serde(default, skip_serializing_if = "is_none_yet")]
    adopted: u64,
    /// Of a node that has claimed what it has, and had no life since.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    claimed: Option<Claimed>,
    /// The etcd is the one that it was claimed in.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    accepted: bool,
}

fn is_none_yet(count: &u64) -> bool {
    *count == 0
}

/// What was seen of an etcd.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(super) struct SeenEtcd {
    /// Its cluster id, as text: it does not fit TOML's integers.
    id: String,
    revision: i64,
}

/// Where the topics stand that a data directory held before it was in a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Topics {
    /// There were none, or all are the cluster's.
    OfCluster,
    /// None is the cluster's yet, which must have no others.
    ToJoin,
    /// Some may be the cluster's already: a former process began it.
    HalfJoined,
}

/// Whether the machine was restarted since the last life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Since {
    /// Only the process ended: what was written is there.
    ProcessEnded,
    /// What was not flushed may be gone.
    MachineRestarted,
}

impl Life {
    /// Reads the file, or makes up a new directory's, of which nothing is written before its first life.
    pub(super) fn open(data_dir: &Path, cluster: &str) -> io::Result<Life> {
        fs::create_dir_all(data_dir)?;
        match read(data_dir)? {
            Some(life) if life.cluster == cluster => Ok(life),
            Some(life) => Err(io::Error::other(format!(
                "{} belongs to cluster '{}', not to '{cluster}': give it that --cluster, or another --data",
                data_dir.display(),
                life.cluster
            ))),
            None => {
                let directory = Uuid::new_v4();
                Ok(Life {
                    cluster: cluster.to_owned(),
                    directory,
                    cluster_id: Uuid::nil(),
                    epoch: 0,
                    etcd: None,
                    boot: boot_id()?,
                    joining: false,
                    adopted: 0,
                    claimed: None,
                    accepted: false,
                })
            }
        }
    }

    /// The life that ended before this process, if there was one.
    pub(super) fn former(&self) -> io::Result<Option<(i64, Since)>> {
        let since = if self.boot == boot_id()? { Since::ProcessEnded } else { Since::MachineRestarted };
        Ok((self.epoch > 0).then_some((self.epoch, since)))
    }

    /// A new life has begun in the cluster with that id, of which the node is a member from here on, and of no other.
    /// It knows of all adoptions of that cluster until now. Durable when this returns, which has to be before anything is done
    /// in it.
    pub(super) fn begin(&mut self, data_dir: &Path, epoch: i64, (cluster_id, adopted): (Uuid, u64)) -> io::Result<()> {
        (self.epoch, self.cluster_id, self.adopted) = (epoch, cluster_id, self.adopted.max(adopted));
        (self.claimed, self.accepted) = (None, false);
        self.boot = boot_id()?;
        self.write(data_dir)
    }

    /// Whether the topics of the directory, if it has any, are still to become those of the cluster.
    pub(super) fn topics(&self, has_topics: bool) -> Topics {
        match self.joining {
            true => Topics::HalfJoined,
            // a directory that gave records up is new too, but of a cluster that has its topics
            false if has_topics && self.epoch == 0 && self.cluster_id.is_nil() => Topics::ToJoin,
            false => Topics::OfCluster,
        }
    }

    /// The node's own topics are about to be written down in the cluster: with the next life that is durable.
    pub(super) fn begin_joining(&mut self) {
        self.joining = true;
    }

    /// All topics of the node are those of the cluster.
    pub(super) fn end_joining(&mut self, data_dir: &Path) -> io::Result<()> {
        match std::mem::take(&mut self.joining) {
            true => self.write(data_dir),
            false => Ok(()),
        }
    }

    /// The id of the cluster that the node is a member of, once it was one.
    pub(super) fn cluster_id(&self) -> Option<Uuid> {
        (!self.cluster_id.is_nil()).then_some(self.cluster_id)
    }

    /// etcd was seen to be so far.
    pub(super) fn remember(&mut self, data_dir: &Path, seen: Remembered) -> io::Result<()> {
        self.etcd = Some(SeenEtcd { id: seen.store.to_string(), revision: seen.revision });
        match self.epoch {
            0 => Ok(()), // a directory is of a cluster only once its node was a member
            _ => self.write(data_dir),
        }
    }

    /// What was seen of etcd last.
    pub(super) fn remembered(&self) -> Option<Remembered> {
        let seen = self.etcd.as_ref()?;
        Some(Remembered { store: seen.id.parse().ok()?, revision: seen.revision })
    }

    /// How often the cluster was adopted, as far as the node knows.
    pub(super) fn adopted(&self) -> u64 {
        self.adopted
    }

    /// What an adoption goes by.
    pub(super) fn kept(&self) -> Kept {
        Kept {
            directory: self.directory,
            epoch: self.epoch,
            adopted: self.adopted,
            claimed: self.claimed,
            remembered: self.remembered(),
            has_accepted: self.accepted,
        }
    }

    /// What it comes to. Durable when this returns.
    pub(super) fn keep(&mut self, data_dir: &Path, kept: &Kept) -> io::Result<()> {
        if kept.epoch != self.epoch {
            // by what is there in this boot
            self.boot = boot_id()?;
        }
        (self.directory, self.epoch, self.adopted) = (kept.directory, kept.epoch, kept.adopted);
        (self.claimed, self.accepted) = (kept.claimed, kept.has_accepted);
        self.etcd = kept.remembered.map(|seen| SeenEtcd { id: seen.store.to_string(), revision: seen.revision });
        self.write(data_dir)
    }

    fn write(&self, data_dir: &Path) -> io::Result<()> {
        let text = toml::to_string(self).map_err(io::Error::other)?;
        let new: PathBuf = data_dir.join(format!("{FILE}.new"));
        let mut file = File::create(&new)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&new, data_dir.join(FILE))?;
        File::open(data_dir)?.sync_all()
    }
}

/// What a data directory says, if it was ever in a cluster.
fn read(data_dir: &Path) -> io::Result<Option<Life>> {
    match fs::read_to_string(data_dir.join(FILE)) {
        Ok(text) => toml::from_str(&text).map(Some).map_err(|error| damaged(data_dir, &error)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Whether a data directory was ever in a cluster, and in which.
///
/// # Errors
/// If what it says of that cannot be read: then nobody may take it for one that was in none.
pub(crate) fn cluster_of(data_dir: &Path) -> io::Result<Option<String>> {
    Ok(read(data_dir)?.map(|life| life.cluster))
}

/// Records of a data directory were given up: its node is in the cluster as before, but it is another directory, which was
/// promised nothing. So it is neither in sync nor eligible until it has caught up. Durable when this returns.
///
/// # Errors
/// If what is there cannot be read or written. A directory that was never in a cluster stays as it is.
pub(crate) fn forget_lives(data_dir: &Path) -> io::Result<()> {
    let Some(cluster) = cluster_of(data_dir)? else { return Ok(()) };
    let mut life = Life::open(data_dir, &cluster)?;
    (life.directory, life.epoch) = (Uuid::new_v4(), 0);
    life.write(data_dir)
}

/// The directory is of no cluster any more. Durable when this returns.
pub(super) fn end(data_dir: &Path) -> io::Result<()> {
    fs::remove_file(data_dir.join(FILE))?;
    File::open(data_dir)?.sync_all()
}

/// An id in a file that people may read.
mod as_text {
    use serde::{Deserialize, Deserializer, Serializer, de};
    use uuid::Uuid;

    pub(super) fn serialize<S: Serializer>(id: &Uuid, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(id)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Uuid, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

fn damaged(data_dir: &Path, error: &toml::de::Error) -> io::Error {
    let file = data_dir.join(FILE);
    io::Error::other(format!(
        "{} cannot be read ({}); without it the node joins as a new one and fetches what others have: remove it if that \
         is meant",
        file.display(),
        error.message()
    ))
}

/// Another one with each start of the machine.
fn boot_id() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

/// The machine and the directory on it: two processes to which this is the same cannot both hold the directory's lock.
pub(super) fn machine_id(data_dir: &Path) -> io::Result<String> {
    let read = |path| fs::read_to_string(path).ok().map(|text| text.trim().to_owned()).filter(|text| !text.is_empty());
    // in a container without one, the boot stands for the machine
    let machine = read("/etc/machine-id").map_or_else(boot_id, Ok)?;
    let folder = fs::metadata(data_dir)?;
    Ok(format!("{machine}/{}/{}", folder.dev(), folder.ino()))
}

#[cfg(test)]
mod tests {
    use millrace_replica::cluster::adoption::Heard;

    use super::*;

    #[test]
    fn a_life_is_remembered_and_is_of_one_cluster() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(cluster_of(folder.path()).unwrap(), None);
        let mut life = Life::open(folder.path(), "a").unwrap();
        assert_eq!((life.former().unwrap(), cluster_of(folder.path()).unwrap()), (None, None), "it may still go alone");
        life.begin(folder.path(), 7, (Uuid::from_u128(1), 0)).unwrap();
        let again = Life::open(folder.path(), "a").unwrap();
        assert_eq!((again.former().unwrap(), again.directory), (Some((7, Since::ProcessEnded)), life.directory));
        let error = Life::open(folder.path(), "b").unwrap_err();
        assert!(error.to_string().contains("belongs to cluster 'a'"), "{error}");
        assert_eq!(cluster_of(folder.path()).unwrap().as_deref(), Some("a"));
    }

    #[test]
    fn what_was_seen_of_etcd_is_remembered() {
        let folder = tempfile::tempdir().unwrap();
        let mut life = Life::open(folder.path(), "a").unwrap();
        assert_eq!(life.remembered(), None);
        let seen = Remembered { store: u64::MAX, revision: 20 };
        life.remember(folder.path(), seen).unwrap();
        assert_eq!(cluster_of(folder.path()).unwrap(), None, "the node was no member yet");
        life.begin(folder.path(), 7, (Uuid::from_u128(1), 0)).unwrap();
        let again = Life::open(folder.path(), "a").unwrap();
        assert_eq!((again.remembered(), again.cluster_id()), (Some(seen), Some(Uuid::from_u128(1))));
    }

    /// A claim is by what is there in this boot, though the life before it was of another.
    #[test]
    fn a_claim_is_kept_until_the_next_life_begins() {
        let folder = tempfile::tempdir().unwrap();
        let mut life = Life::open(folder.path(), "a").unwrap();
        let (before, restored) = (Remembered { store: 1, revision: 20 }, Remembered { store: u64::MAX, revision: 10 });
        life.begin(folder.path(), 7, (Uuid::from_u128(1), 0)).unwrap();
        life.remember(folder.path(), before).unwrap();
        life.boot = "another".to_owned();
        let heard = Heard { before: true, adoptions: 0, revision: 20 };
        let claim = Kept { epoch: 9, adopted: 1, claimed: Some(Claimed { times: 3, heard }), ..life.kept() };
        life.keep(folder.path(), &claim).unwrap();
        let mut again = Life::open(folder.path(), "a").unwrap();
        assert_eq!((again.kept(), again.former().unwrap()), (claim.clone(), Some((9, Since::ProcessEnded))));
        again.boot = "another".to_owned();
        again.keep(folder.path(), &Kept { remembered: Some(restored), has_accepted: true, ..claim }).unwrap();
        assert_eq!(again.former().unwrap(), Some((9, Since::MachineRestarted)), "what was claimed may be lost since");
        let mut again = Life::open(folder.path(), "a").unwrap();
        assert_eq!((again.remembered(), again.kept().has_accepted), (Some(restored), true));
        again.begin(folder.path(), 11, (Uuid::from_u128(1), 2)).unwrap();
        let begun = Life::open(folder.path(), "a").unwrap().kept();
        assert_eq!(
            (begun.adopted, begun.claimed, begun.has_accepted),
            (2, None, false),
            "a life knows of all adoptions"
        );
    }

    #[test]
    fn a_directory_that_lost_records_is_another_one_of_the_same_cluster() {
        let folder = tempfile::tempdir().unwrap();
        forget_lives(folder.path()).unwrap();
        assert_eq!(cluster_of(folder.path()).unwrap(), None);
        let mut life = Life::open(folder.path(), "a").unwrap();
        life.begin(folder.path(), 7, (Uuid::from_u128(1), 0)).unwrap();
        forget_lives(folder.path()).unwrap();
        let again = Life::open(folder.path(), "a").unwrap();
        assert_eq!((again.former().unwrap(), again.cluster_id()), (None, life.cluster_id()));
        assert_ne!(again.directory, life.directory);
        assert_eq!(again.topics(true), Topics::OfCluster, "it brings nothing along");
    }

    #[test]
    fn a_node_that_brings_topics_remembers_until_all_are_there() {
        let folder = tempfile::tempdir().unwrap();
        let mut life = Life::open(folder.path(), "a").unwrap();
        assert_eq!((life.topics(false), life.topics(true)), (Topics::OfCluster, Topics::ToJoin));
        life.begin_joining();
        life.begin(folder.path(), 7, (Uuid::from_u128(1), 0)).unwrap();
        let mut again = Life::open(folder.path(), "a").unwrap();
        assert_eq!(again.topics(true), Topics::HalfJoined);
        again.begin(folder.path(), 9, (Uuid::from_u128(1), 0)).unwrap();
        again.end_joining(folder.path()).unwrap();
        assert_eq!(Life::open(folder.path(), "a").unwrap().topics(true), Topics::OfCluster);
    }

    #[test]
    fn a_copied_folder_is_another_place() {
        let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        assert_eq!(machine_id(one.path()).unwrap(), machine_id(one.path()).unwrap());
        assert_ne!(machine_id(one.path()).unwrap(), machine_id(other.path()).unwrap());
    }

    #[test]
    fn after_a_restart_of_the_machine_only_what_was_flushed_is_sure() {
        let folder = tempfile::tempdir().unwrap();
        let mut life = Life::open(folder.path(), "a").unwrap();
        life.begin(folder.path(), 3, (Uuid::from_u128(1), 0)).unwrap();
        life.boot = "before".to_owned();
        assert_eq!(life.former().unwrap(), Some((3, Since::MachineRestarted)));
    }

    #[test]
    fn a_damaged_file_is_no_new_life() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(FILE), "epoch = ").unwrap();
        let error = Life::open(folder.path(), "a").unwrap_err();
        assert!(error.to_string().contains("remove it if that is meant"), "{error}");
    }

    #[test]
    fn a_directory_that_cannot_say_what_it_is_of_is_not_taken_for_one_of_no_cluster() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(FILE), "cluster = 'a'\nof_a_later_version = 1\n").unwrap();
        assert!(cluster_of(folder.path()).is_err());
        assert!(forget_lives(folder.path()).is_err());
    }
}
