//! Waiting for sockets with nanosecond timeouts, and the few other system calls that std does not offer.
#![expect(unsafe_code, reason = "libc calls: ppoll, prctl, sched_setaffinity, getrusage, kill, sysconf")]

use std::{io, os::fd::RawFd, time::Duration};

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
