//! A disk whose power can be cut: a FUSE file system with one file, `disk.img`.
//!
//! ```text
//! millrace-powercut-disk MOUNTPOINT FOLDER SIZE_MIB SOCKET
//! ```
//!
//! A write reaches a volatile cache, which is what the host reads, at once, and the platter only by an fsync of the file:
//! a loop device on top sends one for each flush, and after each write that must reach the medium. A cut decides by a
//! seed, sector by sector, which of the writes since the last flush the platter keeps.
//!
//! One thread owns the disk ([`owner`]); the kernel's requests ([`mounted`]) and commands ([`control`]) come to it as
//! messages. What it decides is in [`disk`], without threads, clock or kernel.

use std::{io, path::Path, sync::mpsc, thread};

mod control;
mod disk;
mod mounted;
mod owner;
mod random;

/// Requests that wait for the owner; the kernel holds back the rest.
const REQUESTS_MAX: usize = 256;

fn main() -> io::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [mountpoint, folder, mib, socket] = &arguments[..] else {
        eprintln!("usage: millrace-powercut-disk MOUNTPOINT FOLDER SIZE_MIB SOCKET");
        std::process::exit(2);
    };
    let mib: u64 = mib.parse().map_err(io::Error::other)?;
    let size = mib << 20;
    let disk = disk::Disk::new(Path::new(folder), size)?;
    let (requests, received) = mpsc::sync_channel(REQUESTS_MAX);
    control::listen(Path::new(socket), requests.clone())?;
    let mountpoint = mountpoint.clone();
    let session = thread::spawn(move || mounted::mount(Path::new(&mountpoint), size, requests));
    thread::spawn(move || owner::Owner::new(disk).run(&received));
    session.join().map_err(|_| io::Error::other("the file system's thread panicked"))?
}
