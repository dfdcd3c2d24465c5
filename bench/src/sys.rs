//! Waiting for sockets with nanosecond timeouts, and the few other system calls that std does not offer.
#![expect(unsafe_code, reason = "libc calls: ppoll, epoll, prctl, sched_setaffinity, getrusage, kill, sysconf")]

use std::{
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
    time::Duration,
};

/// A socket to wait for.
#[derive(Debug, Clone, Copy)]
pub struct Interest {
    /// Its descriptor.
    pub fd: RawFd,
    /// Also wake when it can be written.
    pub writable: bool,
}

/// Waits until one of the sockets is ready (readable always counts) or the timeout is over; answers which ones are.
pub fn wait(
    interests: &[Interest],
    timeout: Duration,
    ready: &mut Vec<usize>,
    buffer: &mut Vec<libc::pollfd>,
) -> io::Result<()> {
    ready.clear();
    buffer.clear();
    buffer.extend(interests.iter().map(|interest| libc::pollfd {
        fd: interest.fd,
        events: libc::POLLIN | if interest.writable { libc::POLLOUT } else { 0 },
        revents: 0,
    }));
    let timeout = libc::timespec {
        tv_sec: timeout.as_secs() as libc::time_t,
        tv_nsec: libc::c_long::from(timeout.subsec_nanos() as i32),
    };
    // SAFETY: the pointer and length are those of `buffer`, which lives across the call; the signal mask may be null.
    let n = unsafe { libc::ppoll(buffer.as_mut_ptr(), buffer.len() as libc::nfds_t, &timeout, std::ptr::null()) };
    if n < 0 {
        let error = io::Error::last_os_error();
        return if error.kind() == io::ErrorKind::Interrupted { Ok(()) } else { Err(error) };
    }
    ready.extend(buffer.iter().enumerate().filter(|(_, fd)| fd.revents != 0).map(|(index, _)| index));
    Ok(())
}

/// Sockets that are waited for again and again: what a wait costs grows with those that are ready, not with their number.
#[derive(Debug)]
pub struct Watch {
    epoll: OwnedFd,
    known: Vec<Interest>,
}

impl Watch {
    /// Watches nothing yet.
    pub fn new() -> io::Result<Watch> {
        // SAFETY: the call takes no pointer.
        let fd = unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor was just created and nobody else knows it.
        Ok(Watch { epoll: unsafe { OwnedFd::from_raw_fd(fd) }, known: Vec::new() })
    }

    /// Adds the next socket, or says what is wanted of a known one from now on.
    pub fn set(&mut self, index: usize, interest: Interest) -> io::Result<()> {
        let operation = match self.known.get(index) {
            Some(known) if known.writable == interest.writable => return Ok(()),
            Some(_) => libc::EPOLL_CTL_MOD,
            None => libc::EPOLL_CTL_ADD,
        };
        let events = libc::EPOLLIN | if interest.writable { libc::EPOLLOUT } else { 0 };
        let mut event = libc::epoll_event { events: events as u32, u64: index as u64 };
        // SAFETY: `event` lives across the call; the kernel copies it.
        if unsafe { libc::epoll_ctl(self.epoll.as_raw_fd(), operation, interest.fd, &mut event) } < 0 {
            return Err(io::Error::last_os_error());
        }
        match self.known.get_mut(index) {
            Some(known) => *known = interest,
            None => self.known.push(interest),
        }
        Ok(())
    }

    /// Waits until one of the sockets is ready (readable always counts) or the timeout, in whole milliseconds, is over;
    /// answers which ones are, some of them at least.
    pub fn wait(&self, timeout: Duration, ready: &mut Vec<usize>) -> io::Result<()> {
        const EVENTS_MAX: usize = 256;
        ready.clear();
        let mut events = [libc::epoll_event { events: 0, u64: 0 }; EVENTS_MAX];
        let timeout_ms = timeout.as_millis() as libc::c_int;
        // SAFETY: `events` has room for as many events as the call is told.
        let n = unsafe {
            libc::epoll_wait(self.epoll.as_raw_fd(), events.as_mut_ptr(), EVENTS_MAX as libc::c_int, timeout_ms)
        };
        if n < 0 {
            let error = io::Error::last_os_error();
            return if error.kind() == io::ErrorKind::Interrupted { Ok(()) } else { Err(error) };
        }
        ready.extend(events[..n as usize].iter().map(|event| event.u64 as usize));
        Ok(())
    }
}

/// Makes this thread's timers exact: Linux rounds them to 50 us otherwise.
pub fn exact_timers() {
    // SAFETY: PR_SET_TIMERSLACK takes one number and touches no memory.
    unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, 1u64) };
}

/// Binds the process' calling thread, and what it starts later, to CPUs.
pub fn pin(cpus: &[usize]) -> io::Result<()> {
    // SAFETY: an all-zero cpu_set_t is the empty set.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    for &cpu in cpus {
        if cpu >= libc::CPU_SETSIZE as usize {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("no CPU {cpu}")));
        }
        // SAFETY: `cpu` is below CPU_SETSIZE, so the bit lies inside the set.
        unsafe { libc::CPU_SET(cpu, &mut set) };
    }
    // SAFETY: the set lives across the call and its true size is given; 0 is the calling thread.
    let rc = unsafe { libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &set) };
    if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// CPU time that this process has used so far.
pub fn own_cpu() -> Duration {
    // SAFETY: an all-zero rusage is a valid value of it.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: the pointer is to a live rusage.
    unsafe { libc::getrusage(libc::RUSAGE_SELF, &mut usage) };
    let duration = |t: libc::timeval| Duration::new(t.tv_sec as u64, t.tv_usec as u32 * 1000);
    duration(usage.ru_utime) + duration(usage.ru_stime)
}

/// Clock ticks per second in /proc.
pub fn clock_ticks() -> u64 {
    // SAFETY: sysconf reads a number.
    unsafe { libc::sysconf(libc::_SC_CLK_TCK) as u64 }
}

/// Sends a signal to a process.
pub fn signal(pid: u32, signal: i32) -> io::Result<()> {
    // SAFETY: kill touches no memory of ours.
    let rc = unsafe { libc::kill(pid as libc::pid_t, signal) };
    if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
