//! Disks of followers. Needs a small file system of its own: root, losetup and mkfs.ext4.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use crate::{load::Load, rig::Rig};

/// A small ext4 on a loop device; unmounted when dropped.
struct SmallDisk {
    mount: PathBuf,
}

fn run(program: &str, arguments: &[&str]) -> Result<(), String> {
    let output = Command::new(program).args(arguments).output().map_err(|error| format!("{program}: {error}"))?;
    match output.status.success() {
        true => Ok(()),
        false => Err(format!("{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr).trim())),
    }
}

impl SmallDisk {
    /// `None`, and a line that says so: none can be made here.
    fn mount(at: &Path, mib: u32) -> Option<SmallDisk> {
        let (image, mount) = (at.with_extension("image").display().to_string(), at.display().to_string());
        let made = run("truncate", &["-s", &format!("{mib}M"), &image])
            .and_then(|()| run("mkfs.ext4", &["-q", "-F", "-m", "0", &image]))
            .and_then(|()| run("mount", &["-o", "loop", &image, &mount]));
        match made {
            Ok(()) => Some(SmallDisk { mount: at.to_owned() }),
            Err(error) => {
                println!("skipped: no small file system here ({error})");
                None
            }
        }
    }

    /// Takes all that is free.
    fn fill(&self) {
        let ballast = self.mount.join("ballast").display().to_string();
        let _none_is_left = run("dd", &["if=/dev/zero", &format!("of={ballast}"), "bs=1M"]);
    }

    fn empty(&self) {
        std::fs::remove_file(self.mount.join("ballast")).unwrap();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let mount = self.mount.display().to_string();
        // what is being killed may hold it for a moment longer
        for _ in 0..50 {
            if run("umount", &[&mount]).is_ok() {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(100));
        }
        let _ = run("umount", &["-l", &mount]);
    }
}

#[test]
fn a_follower_whose_disk_is_full_holds_nobody_up_and_comes_back() {
    let Some(mut rig) = Rig::start(2, "") else { return };
    let Some(disk) = SmallDisk::mount(&rig.folder_of(3), 400) else { return };
    rig.add(3);
    rig.await_all();
    // one that node 3 follows
    let mut topics = (0..10).map(|number| format!("orders-{number}"));
    let topic = topics.find(|name| {
        rig.create_topic(name, 1, 3, &[("min.insync.replicas", "2")]);
        rig.leader(name, 0) != 3
    });
    let topic = topic.expect("leaders take turns");
    let load = Load::start(&rig, &topic, 1, 2);
    load.await_more(&rig, 50);
    disk.fill();
    rig.await_in_sync(&topic, 2);
    assert!(rig.topic(&topic).partitions[&0].in_sync.iter().all(|id| *id != 3));
    load.await_more(&rig, 100);
    disk.empty();
    rig.await_in_sync(&topic, 3);
    load.await_more(&rig, 50);
    let produced = load.finish();
    rig.verify(&topic, produced.run, &produced.acknowledged);
    // the disk goes after the node
    rig.kill(3);
}
