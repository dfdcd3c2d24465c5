//! An etcd as a child of this node: started with what a cluster needs, watched, started again when it ends, stopped last.
//!
//! A thread of its own has it. The child has a process group of its own, so that Ctrl-C means the node, which needs etcd
//! until it has handed over its partitions; and it goes with the node, however that ends.
#![expect(unsafe_code, reason = "only between fork and exec can a child be told to end with its parent")]

use std::{
    io::{self, BufRead, BufReader},
    os::unix::process::CommandExt,
    path::Path,
    process::{Child, ChildStderr, Command, Stdio},
    sync::mpsc,
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use super::{
    etcd_options::{EtcdOptions, member_name, url},
    rejoin::{self, Begin},
};

/// Pause before a child that ended is started again.
const RESTART_PAUSE: Duration = Duration::from_secs(1);
/// The longest of these pauses: they grow while it ends at once.
const RESTART_PAUSE_MAX: Duration = Duration::from_secs(30);
/// One that ran for so long did not end at once.
const LIFE_MIN: Duration = Duration::from_secs(20);
/// Ends in a row, of every so many of which it is said what to do.
const ENDS_TOLD: u32 = 5;
/// How often the child is looked at.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);
/// How long it may take to stop before it is killed.
const STOP_PATIENCE: Duration = Duration::from_secs(5);

/// The running child; stopped when dropped.
#[derive(Debug)]
pub(in crate::serve) struct Supervisor {
    stop: Option<mpsc::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Supervisor {
    /// Starts the child and the thread that has it.
    pub(super) fn start(options: EtcdOptions) -> io::Result<Self> {
        let (stop, stopped) = mpsc::channel();
        let (started, start) = mpsc::channel();
        // The child ends with the thread that started it: that is the one which lives as long as the node.
        let body = move || supervise(&options, &stopped, &started);
        let thread = thread::Builder::new().name("etcd".to_owned()).spawn(body)?;
        start.recv().map_err(io::Error::other)??;
        Ok(Self { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _a_panic_was_said = thread.join();
        }
    }
}

fn supervise(options: &EtcdOptions, stopped: &mpsc::Receiver<()>, started: &mpsc::Sender<io::Result<()>>) {
    // A dropped sender ends the wait at once.
    let goes_on = |pause| matches!(stopped.recv_timeout(pause), Err(mpsc::RecvTimeoutError::Timeout));
    let mut child = match spawn(options) {
        Ok(child) => Some(child),
        Err(error) => return drop(started.send(Err(error))),
    };
    let _ = started.send(Ok(())); // whoever started this waits for it
    let (mut pause, mut began, mut ends) = (LOOK_INTERVAL, Instant::now(), 0u32);
    while goes_on(pause) {
        pause = LOOK_INTERVAL;
        match &mut child {
            Some(running) => {
                if let Ok(Some(status)) = running.try_wait() {
                    // its number may be another process's from here on
                    child = None;
                    ends = if began.elapsed() < LIFE_MIN { ends + 1 } else { 1 };
                    pause = (RESTART_PAUSE * ends).min(RESTART_PAUSE_MAX);
                    tracing::error!(target: "etcd", "ended ({status}); it is started again in {} s", pause.as_secs());
                    if ends % ENDS_TOLD == 0 {
                        tracing::error!(target: "etcd", "{}", hint(options, ends));
                    }
                }
            }
            None => match spawn(options) {
                Ok(again) => (child, began) = (Some(again), Instant::now()),
                Err(error) => {
                    tracing::error!(target: "etcd", "cannot be started again: {error}");
                    pause = RESTART_PAUSE;
                }
            },
        }
    }
    if let Some(child) = child {
        stop(child);
    }
}

/// What to do about one that ends again and again.
fn hint(options: &EtcdOptions, ends: u32) -> String {
    format!(
        "ended {ends} times in a row: its own words are above. The cluster goes on while a majority of its etcds runs, and this \
         node asks the others. If its disk is full, make room; if {folder} is damaged, stop this node, move that folder away and \
         start again: a new member takes its place",
        folder = options.data.display()
    )
}

fn stop(mut child: Child) {
    let id = libc::pid_t::try_from(child.id()).expect("the kernel's own number");
    // SAFETY: no memory is involved; the child was not waited for, so the number is still its own.
    unsafe { libc::kill(id, libc::SIGTERM) };
    let begun = Instant::now();
    while begun.elapsed() < STOP_PATIENCE {
        if !matches!(child.try_wait(), Ok(None)) {
            return;
        }
        thread::sleep(LOOK_INTERVAL / 10);
    }
    tracing::warn!(target: "etcd", "does not stop: killed");
    let _ = child.kill(); // it may have ended just now
    let _ = child.wait();
}

fn spawn(options: &EtcdOptions) -> io::Result<Child> {
    let mut command = Command::new(&options.program);
    command
        .args(arguments(options, rejoin::begin(options)))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    // Variables named ETCD_* would be options of its own.
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.as_encoded_bytes().starts_with(b"ETCD_")) {
        command.env_remove(name);
    }
    command.process_group(0);
    let die_with_parent = || {
        // SAFETY: the call takes no pointer and is one of those that are allowed between fork and exec.
        match unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    };
    // SAFETY: the closure makes one system call and neither allocates nor locks.
    unsafe { command.pre_exec(die_with_parent) };
    let mut child = command.spawn()?;
    if let Some(said) = child.stderr.take() {
        thread::Builder::new().name("etcd-log".to_owned()).spawn(move || pass_on(said))?;
    }
    Ok(child)
}

/// Its log lines as ours, until it closes the pipe.
fn pass_on(said: ChildStderr) {
    for line in BufReader::new(said).lines().map_while(Result::ok) {
        match level(&line) {
            "error" | "fatal" | "panic" | "dpanic" => tracing::error!(target: "etcd", "{line}"),
            "warn" => tracing::warn!(target: "etcd", "{line}"),
            _ => tracing::info!(target: "etcd", "{line}"),
        }
    }
}

/// The level of a line of its log, which is JSON; nothing for any other line.
fn level(line: &str) -> &str {
    let rest = line.split_once("\"level\":\"").map(|(_, rest)| rest);
    rest.and_then(|rest| rest.split_once('"')).map_or("", |(level, _)| level)
}

/// Options of a Debian etcd, of 3.4 and later.
fn arguments(options: &EtcdOptions, begin: Begin) -> Vec<String> {
    let members = options.managed.members.iter();
    let cluster = members.map(|member| format!("{}={}", member_name(member), url(&member.peer()))).collect::<Vec<_>>();
    let pairs = [
        ("name", member_name(&options.own)),
        ("data-dir", options.data.display().to_string()),
        ("listen-client-urls", format!("http://{}", options.listen.0)),
        ("advertise-client-urls", url(&options.own.client())),
        ("listen-peer-urls", format!("http://{}", options.listen.1)),
        ("initial-advertise-peer-urls", url(&options.own.peer())),
        ("initial-cluster", cluster.join(",")),
        ("initial-cluster-token", options.token.clone()),
        ("initial-cluster-state", begin.as_option().to_owned()),
        ("heartbeat-interval", "100".to_owned()),
        ("election-timeout", "1000".to_owned()),
        // without these its history grows until it refuses every write
        ("auto-compaction-mode", "periodic".to_owned()),
        ("auto-compaction-retention", "5m".to_owned()),
        ("quota-backend-bytes", (8u64 << 30).to_string()),
        ("logger", "zap".to_owned()),
        ("log-outputs", "stderr".to_owned()),
        ("log-level", "warn".to_owned()),
    ];
    pairs.into_iter().map(|(name, value)| format!("--{name}={value}")).collect()
}

/// What to do when it cannot be started.
pub(super) fn explain(program: &Path, error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => format!(
            "--etcd managed: there is no program '{}'\n  fix: apt-get install etcd-server, or put one into the PATH",
            program.display()
        ),
        _ => format!("--etcd managed: cannot run {}: {error}", program.display()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{EtcdMember, ManagedEtcd};

    fn options(program: &str) -> EtcdOptions {
        let members: Vec<EtcdMember> = "1=a,2=b:3379,3=c".split(',').map(|text| text.parse().unwrap()).collect();
        EtcdOptions {
            program: program.into(),
            data: "/data/etcd".into(),
            token: "orders".to_owned(),
            own: members[1].clone(),
            managed: ManagedEtcd { members },
            listen: ("10.0.0.2:3379".parse().unwrap(), "10.0.0.2:3380".parse().unwrap()),
            was_there: false,
        }
    }

    #[test]
    fn every_member_gets_the_same_list_and_its_own_addresses() {
        let arguments = arguments(&options("etcd"), Begin::New);
        for wanted in [
            "--name=node-2",
            "--listen-client-urls=http://10.0.0.2:3379",
            "--initial-advertise-peer-urls=http://b:3380",
            "--initial-cluster=node-1=http://a:2380,node-2=http://b:3380,node-3=http://c:2380",
            "--auto-compaction-retention=5m",
            "--initial-cluster-state=new",
        ] {
            assert!(arguments.iter().any(|argument| argument == wanted), "{wanted}: {arguments:?}");
        }
    }

    #[test]
    fn levels_are_read_from_its_lines() {
        assert_eq!(level(r#"{"level":"warn","ts":"2026","msg":"slow"}"#), "warn");
        assert_eq!(level("[WARNING] Deprecated"), "");
    }

    #[test]
    fn a_program_that_is_not_there_is_said_at_once() {
        let options = options("no-such-program-of-etcd");
        let error = Supervisor::start(options.clone()).unwrap_err();
        assert!(explain(&options.program, &error).contains("apt-get install etcd-server"), "{error}");
    }

    #[test]
    fn a_child_that_ends_is_started_again_and_stopped_with_the_supervisor() {
        let folder = tempfile::tempdir().unwrap();
        let (written, program) = (folder.path().join("written"), folder.path().join("etcd"));
        let script = "#!/bin/sh\necho $$ >> \"$(dirname \"$0\")/starts\"\n\
                      [ \"$(wc -l < \"$(dirname \"$0\")/starts\")\" -gt 1 ] || exit 1\nexec sleep 60\n";
        std::fs::write(&written, script).unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(&written, mode).unwrap();
        // What is run is never open for writing here: a child that another test's thread starts at that moment has all
        // that is open until it runs its own program, and what somebody may write to cannot be run.
        assert!(Command::new("cp").arg("-p").args([&written, &program]).status().unwrap().success());
        let supervisor = Supervisor::start(options(program.to_str().unwrap())).unwrap();
        let starts = || std::fs::read_to_string(folder.path().join("starts")).unwrap_or_default();
        while starts().lines().count() < 2 {
            thread::sleep(LOOK_INTERVAL);
        }
        drop(supervisor);
        let last = starts().lines().last().unwrap().to_owned();
        assert!(!Path::new("/proc").join(last).exists(), "it goes with the supervisor");
    }
}
