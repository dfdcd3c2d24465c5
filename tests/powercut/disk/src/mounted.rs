//! What the kernel sees: a folder with one file. Reads, writes and fsyncs of the file are the disk's owner's.

use std::{
    ffi::OsStr,
    io,
    path::Path,
    sync::mpsc::SyncSender,
    time::{Duration, SystemTime},
};

use fuser::{
    BsdFileFlags, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo,
    InitFlags, KernelConfig, LockOwner, MountOption, OpenFlags, ReplyAttr, ReplyData, ReplyDirectory, ReplyEmpty,
    ReplyEntry, ReplyOpen, ReplyWrite, TimeOrNow, WriteFlags,
};

use crate::owner::Request;

const NAME: &str = "disk.img";
const FILE: INodeNo = INodeNo(2);
/// Nothing ever changes.
const VALID: Duration = Duration::from_secs(3600);
const WRITE_BYTES_MAX: u32 = 1 << 20;
/// Requests that the kernel sends without waiting: a loop device has 128 under way.
const BACKGROUND_MAX: u16 = 256;

struct Mounted {
    size: u64,
    requests: SyncSender<Request>,
}

/// Mounts, and serves until it is unmounted.
pub(crate) fn mount(mountpoint: &Path, size: u64, requests: SyncSender<Request>) -> io::Result<()> {
    let mut config = Config::default();
    config.mount_options = vec![MountOption::FSName("powercut".to_owned())];
    fuser::mount(Mounted { size, requests }, mountpoint, &config)
}

impl Mounted {
    fn attributes(&self, inode: INodeNo) -> FileAttr {
        let is_file = inode == FILE;
        let never = SystemTime::UNIX_EPOCH;
        FileAttr {
            ino: inode,
            size: if is_file { self.size } else { 0 },
            blocks: self.size / 512,
            atime: never,
            mtime: never,
            ctime: never,
            crtime: never,
            kind: if is_file { FileType::RegularFile } else { FileType::Directory },
            perm: if is_file { 0o600 } else { 0o700 },
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        }
    }

    /// Without an owner the process is ending, and the reply that goes with the request answers EIO by itself.
    fn send(&self, request: Request) {
        let _ = self.requests.send(request);
    }
}

impl Filesystem for Mounted {
    fn init(&mut self, _: &fuser::Request, config: &mut KernelConfig) -> io::Result<()> {
        // where the kernel grants less, requests are smaller or fewer, and no less true
        let _ = config.set_max_write(WRITE_BYTES_MAX);
        let _ = config.set_max_background(BACKGROUND_MAX);
        for flag in [InitFlags::FUSE_ASYNC_DIO, InitFlags::FUSE_BIG_WRITES, InitFlags::FUSE_MAX_PAGES] {
            let _ = config.add_capabilities(flag);
        }
        Ok(())
    }

    fn lookup(&self, _: &fuser::Request, _: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match name == NAME {
            true => reply.entry(&VALID, &self.attributes(FILE), Generation(0)),
            false => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _: &fuser::Request, inode: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(&VALID, &self.attributes(inode));
    }

    fn setattr(
        &self,
        _: &fuser::Request,
        inode: INodeNo,
        _: Option<u32>,
        _: Option<u32>,
        _: Option<u32>,
        _: Option<u64>,
        _: Option<TimeOrNow>,
        _: Option<TimeOrNow>,
        _: Option<SystemTime>,
        _: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        reply.attr(&VALID, &self.attributes(inode));
    }

    fn open(&self, _: &fuser::Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        // the page cache of this file would be a second cache, which no power cut empties
        reply.opened(FileHandle(1), FopenFlags::FOPEN_DIRECT_IO | FopenFlags::FOPEN_PARALLEL_DIRECT_WRITES);
    }

    fn read(
        &self,
        _: &fuser::Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        length: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        self.send(Request::Read { offset, length, reply });
    }

    fn write(
        &self,
        _: &fuser::Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        self.send(Request::Write { offset, data: data.to_vec(), reply });
    }

    fn fsync(&self, _: &fuser::Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        self.send(Request::Flush { reply });
    }

    fn flush(&self, _: &fuser::Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok(); // a close, not a flush of a disk
    }

    fn readdir(&self, _: &fuser::Request, _: INodeNo, _: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        if offset == 0 {
            // one entry fits
            let _ = reply.add(FILE, 1, FileType::RegularFile, NAME);
        }
        reply.ok();
    }

    fn fallocate(&self, _: &fuser::Request, _: INodeNo, _: FileHandle, _: u64, _: u64, _: i32, reply: ReplyEmpty) {
        reply.error(Errno::EOPNOTSUPP);
    }
}
