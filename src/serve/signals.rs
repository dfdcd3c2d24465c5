//! SIGTERM, SIGINT and SIGHUP ask for a clean stop; the second of them stops at once.
//!
//! They are blocked in every thread and taken by one that waits for them, so that no system call of a shard is ever
//! interrupted and no code runs inside a handler.
#![expect(unsafe_code, reason = "signal masks have no safe interface in std")]

use std::{io, mem::MaybeUninit, ptr, thread};

use super::stop;
use crate::output::say;

/// A signal that asks to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct StopSignal(i32);

const STOP_SIGNALS: [i32; 3] = [libc::SIGTERM, libc::SIGINT, libc::SIGHUP];

impl StopSignal {
    /// Its name.
    pub(super) fn name(self) -> &'static str {
        match self.0 {
            libc::SIGTERM => "SIGTERM",
            libc::SIGINT => "SIGINT",
            _ => "SIGHUP",
        }
    }

    /// What a shell shows for a process that died of it.
    pub(super) fn exit_code(self) -> i32 {
        128 + self.0
    }
}

/// Blocks the stop signals in this thread and those it starts from now on. Call first, in the main thread.
pub(super) fn block() -> io::Result<()> {
    let set = stop_set();
    // SAFETY: `set` was initialised; the old mask is not asked for.
    match unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &set, ptr::null_mut()) } {
        0 => Ok(()),
        error => Err(io::Error::from_raw_os_error(error)),
    }
}

/// Starts the thread that waits for them. `first` hears of the first one and must not block; the second ends the process.
pub(super) fn watch(first: impl FnOnce(StopSignal) + Send + 'static) -> io::Result<()> {
    let wait = move || {
        first(next());
        let second = next();
        stop::briefly(move || say(format_args!("{} again: stopping at once", second.name())));
        std::process::exit(second.exit_code());
    };
    thread::Builder::new().name("signals".to_owned()).spawn(wait).map(drop)
}

/// Waits for the next stop signal.
fn next() -> StopSignal {
    let set = stop_set();
    let mut signal = 0;
    loop {
        // SAFETY: both are valid; the signals of the set are blocked in all threads.
        if unsafe { libc::sigwait(&set, &mut signal) } == 0 {
            return StopSignal(signal);
        }
    }
}

fn stop_set() -> libc::sigset_t {
    let mut set = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: sigemptyset initialises what it is given.
    unsafe { libc::sigemptyset(set.as_mut_ptr()) };
    // SAFETY: initialised by the call above.
    let mut set = unsafe { set.assume_init() };
    for signal in STOP_SIGNALS {
        // SAFETY: the set is initialised and the signal number is valid.
        unsafe { libc::sigaddset(&mut set, signal) };
    }
    set
}
