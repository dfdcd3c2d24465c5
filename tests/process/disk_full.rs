//! A full disk is a mode, not an accident. Needs a small file system of its own: root, losetup and mkfs.ext4.

use std::{path::Path, process::Command};

use millrace_bench::{batch::BatchShape, client};
use tempfile::TempDir;

use crate::{broker::Broker, writer::Writer};

/// A small ext4 on a loop device; unmounted when dropped.
pub(crate) struct SmallDisk {
    folder: TempDir,
}

/// Runs a command; an error says what went wrong.
pub(crate) fn run(program: &str, arguments: &[&str]) -> Result<(), String> {
    let output = Command::new(program).args(arguments).output().map_err(|error| format!("{program}: {error}"))?;
    match output.status.success() {
        true => Ok(()),
        false => Err(format!("{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr).trim())),
    }
}

impl SmallDisk {
    /// Makes one and mounts it.
    pub(crate) fn mount(mib: u32) -> Result<SmallDisk, String> {
        let folder = tempfile::Builder::new().prefix("millrace-disk-").tempdir().map_err(|error| error.to_string())?;
        let path = |name: &str| folder.path().join(name).display().to_string();
        run("truncate", &["-s", &format!("{mib}M"), &path("image")])?;
        run("mkfs.ext4", &["-q", "-F", "-m", "0", &path("image")])?;
        std::fs::create_dir(path("mount")).map_err(|error| error.to_string())?;
        run("mount", &["-o", "loop", &path("image"), &path("mount")])?;
        Ok(SmallDisk { folder })
    }

    /// Where it is mounted.
    pub(crate) fn path(&self) -> std::path::PathBuf {
        self.folder.path().join("mount")
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // a broker that is just being killed may hold it for a moment longer
        let mount = self.path().display().to_string();
        for _ in 0..50 {
            if run("umount", &[&mount]).is_ok() {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(100));
        }
        eprintln!("cannot unmount {mount}");
    }
}

/// The disk, or nothing with a line that says why not.
fn small_disk() -> Option<SmallDisk> {
    match SmallDisk::mount(400) {
        Ok(disk) => Some(disk),
        Err(error) => {
            println!("skipped: no small file system here ({error})");
            None
        }
    }
}

fn start_on(disk: &SmallDisk) -> Broker {
    let folder = tempfile::tempdir().unwrap();
    Broker::start_in(folder, disk.path().join("data"), "--shards 1 --reserve-bytes 32MiB")
}

fn fat_writer(broker: &Broker, topic: &str) -> Writer {
    let shape = BatchShape { records: 30, value_bytes: 20_000, key_bytes: 0 };
    Writer::new(broker.address, topic, 1, 1, 0).shape(shape)
}

fn fill_up(path: &Path) {
    let full = run("dd", &["if=/dev/zero", &format!("of={}", path.display()), "bs=64K"]);
    assert!(full.is_err_and(|error| error.contains("No space left")), "the disk did not fill up");
}

/// Takes what a buffered write leaves, which is some blocks for the file system's own use, and what others give back.
fn fill_to_the_last_block(disk: &SmallDisk, name: &str) {
    for at in 0..100 {
        let path = disk.path().join(format!("{name}-{at}")).display().to_string();
        let _none_is_left = run("dd", &["if=/dev/zero", &format!("of={path}"), "bs=4K", "oflag=direct"]);
        let output = Command::new("stat").args(["--file-system", "--format=%a"]).arg(disk.path()).output().unwrap();
        if String::from_utf8(output.stdout).unwrap().trim() == "0" {
            return;
        }
    }
    panic!("there are blocks left");
}

/// KAFKA_STORAGE_ERROR: clients try again on it.
pub(crate) const STORAGE_ERROR: i16 = 56;

#[test]
fn produce_is_refused_below_the_reserve_while_reads_and_deletes_go_on() {
    let Some(disk) = small_disk() else { return };
    let mut broker = start_on(&disk);
    broker.create_topic("full", 1);
    broker.create_topic("ballast", 1);
    let mut ballast = fat_writer(&broker, "ballast");
    ballast.write(100);
    let mut writer = fat_writer(&broker, "full");
    let code = writer.write_until_refused(2_000);
    assert_eq!(code, Some(STORAGE_ERROR), "{}", broker.log());
    let tally = broker.verify("full", 1, &writer.acknowledged);
    assert!(tally.records > 30, "{tally}");
    // it starts, and serves reads, though nothing has become better
    broker.kill();
    broker.restart();
    broker.verify("full", 1, &writer.acknowledged);
    broker.verify("ballast", 1, &ballast.acknowledged);
    writer.disconnect();
    assert_eq!(writer.write_until_refused(100), Some(STORAGE_ERROR), "{}", broker.log());
    client::delete_topic(&mut broker.connect(), "ballast").unwrap();
    write_again(&mut writer);
    broker.verify("full", 1, &writer.acknowledged);
    assert!(broker.terminate().success(), "{}", broker.log());
}

/// Space is given back a moment after a delete.
fn write_again(writer: &mut Writer) {
    for _ in 0..100 {
        if writer.write_until_refused(3).is_none() {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    panic!("produce is refused though there is space again");
}

#[test]
fn broker_starts_and_serves_reads_on_a_full_disk() {
    let Some(disk) = small_disk() else { return };
    let mut broker = start_on(&disk);
    broker.create_topic("brim", 1);
    broker.create_topic("ballast", 1);
    broker.create_topic("more-ballast", 1);
    let mut writer = fat_writer(&broker, "brim");
    writer.write(60);
    for topic in ["ballast", "more-ballast"] {
        fat_writer(&broker, topic).write(100);
    }
    fill_up(&disk.path().join("filler"));
    assert_eq!(writer.write_until_refused(2_000), Some(STORAGE_ERROR), "{}", broker.log());
    broker.verify("brim", 1, &writer.acknowledged);
    let mut connection = broker.connect();
    let mut create = |at| client::create_topic(&mut connection, &format!("one-more-{at}"), 1, &[]);
    assert!((0..200).any(|at| create(at).is_err()), "what space is left is for deletes");
    client::delete_topic(&mut broker.connect(), "ballast").unwrap();
    write_again(&mut writer);
    fill_up(&disk.path().join("more-filler"));
    broker.kill();
    for again in 0..3 {
        fill_to_the_last_block(&disk, &format!("last-filler-{again}"));
        broker.restart();
        broker.verify("brim", 1, &writer.acknowledged);
        writer.disconnect();
        assert_eq!(writer.write_until_refused(1), Some(STORAGE_ERROR), "{}", broker.log());
        broker.kill();
    }
    broker.restart();
    client::delete_topic(&mut broker.connect(), "more-ballast").unwrap();
    writer.disconnect();
    write_again(&mut writer);
    broker.verify("brim", 1, &writer.acknowledged);
}
