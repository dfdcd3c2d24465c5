//! The thread that owns the disk: answers requests in the order in which they come, except flushes, which take their time
//! and end one after the other while writes go on; a cut may fall in between.

use std::{
    collections::VecDeque,
    io, mem,
    sync::mpsc::{Receiver, RecvTimeoutError, SyncSender},
    time::{Duration, Instant},
};

use fuser::{Errno, ReplyData, ReplyEmpty, ReplyWrite};

use crate::{
    control::Command,
    disk::{Answer, Disk, Flush},
    random::Random,
};

/// What comes to the disk.
pub(crate) enum Request {
    /// Of the host.
    Read { offset: u64, length: u32, reply: ReplyData },
    /// Of the host.
    Write { offset: u64, data: Vec<u8>, reply: ReplyWrite },
    /// Of the host.
    Flush { reply: ReplyEmpty },
    /// Of who plays with the power.
    Command { command: Command, answer: SyncSender<String> },
}

/// Who waits for an answer that may never come.
enum Reply {
    Write(ReplyWrite, u32),
    Flush(ReplyEmpty),
    Read(ReplyData),
}

impl Reply {
    fn done(self) {
        match self {
            Reply::Write(reply, bytes) => reply.written(bytes),
            Reply::Flush(reply) => reply.ok(),
            Reply::Read(reply) => reply.error(Errno::EIO),
        }
    }

    fn fail(self) {
        match self {
            Reply::Write(reply, _) => reply.error(Errno::EIO),
            Reply::Flush(reply) => reply.error(Errno::EIO),
            Reply::Read(reply) => reply.error(Errno::EIO),
        }
    }
}

/// A flush that is not done yet.
struct UnderWay {
    due: Instant,
    flush: Flush,
    reply: ReplyEmpty,
}

/// The owner.
pub(crate) struct Owner {
    disk: Disk,
    /// In the order in which they came, which is that of `due`.
    flushes: VecDeque<UnderWay>,
    /// A flush takes a random time up to that.
    delay_max: Duration,
    random: Random,
    /// Requests without an answer; the kernel bounds them.
    hanging: Vec<Reply>,
}

impl Owner {
    /// Of a disk with its power on.
    pub(crate) fn new(disk: Disk) -> Self {
        let (flushes, hanging) = (VecDeque::new(), Vec::new());
        Self { disk, flushes, delay_max: Duration::ZERO, random: Random(1), hanging }
    }

    /// Until nobody can ask any more. The images' own errors end the process: nothing could be told from what follows.
    pub(crate) fn run(mut self, requests: &Receiver<Request>) {
        while let Some(request) = self.next(requests) {
            let handled = match request {
                Some(request) => self.handle(request),
                None => self.end_flush(),
            };
            if let Err(error) = handled {
                eprintln!("the images of the disk: {error}");
                std::process::exit(1);
            }
        }
    }

    /// A request, or none when a flush is due.
    fn next(&self, requests: &Receiver<Request>) -> Option<Option<Request>> {
        let Some(first) = self.flushes.front() else { return requests.recv().ok().map(Some) };
        let left = first.due.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Some(None);
        }
        match requests.recv_timeout(left) {
            Ok(request) => Some(Some(request)),
            Err(RecvTimeoutError::Timeout) => Some(None),
            Err(RecvTimeoutError::Disconnected) => None,
        }
    }

    fn handle(&mut self, request: Request) -> io::Result<()> {
        match request {
            Request::Read { offset, length, reply } => match self.disk.read(offset, length)? {
                Ok(bytes) => reply.data(&bytes),
                Err(answer) => self.answer(Reply::Read(reply), answer),
            },
            Request::Write { offset, data, reply } => {
                let reply = Reply::Write(reply, data.len() as u32);
                let answer = self.disk.write(offset, data)?;
                self.answer(reply, answer);
            }
            Request::Flush { reply } => match self.disk.begin_flush()? {
                Ok(flush) => {
                    let due = self.due();
                    self.flushes.push_back(UnderWay { due, flush, reply });
                }
                Err(answer) => self.answer(Reply::Flush(reply), answer),
            },
            Request::Command { command, answer } => {
                let said = self.obey(command)?;
                // who asked may be gone
                let _ = answer.send(said);
            }
        }
        Ok(())
    }

    fn due(&mut self) -> Instant {
        let micros = self.delay_max.as_micros() as u64;
        let takes = Duration::from_micros(if micros > 0 { self.random.below(micros) } else { 0 });
        let now = Instant::now();
        self.flushes.back().map_or(now, |last| last.due.max(now)) + takes
    }

    fn end_flush(&mut self) -> io::Result<()> {
        if let Some(UnderWay { flush, reply, .. }) = self.flushes.pop_front() {
            let answer = self.disk.end_flush(flush)?;
            self.answer(Reply::Flush(reply), answer);
        }
        Ok(())
    }

    fn answer(&mut self, reply: Reply, answer: Answer) {
        match answer {
            Answer::Done => reply.done(),
            Answer::Failed => reply.fail(),
            Answer::Never => self.hanging.push(reply),
        }
    }

    fn obey(&mut self, command: Command) -> io::Result<String> {
        match command {
            Command::Status => return Ok(self.disk.status()),
            Command::Statistics => return Ok(self.disk.statistics()),
            Command::Delay(delay_max) => self.delay_max = delay_max,
            Command::Cut(cut) => self.disk.cut(cut)?,
            Command::Plan(plan) => self.disk.plan(plan),
            Command::Forget(flushes) => self.disk.forget_in(flushes),
            Command::Off => {
                self.disk.power_off();
                mem::take(&mut self.hanging).into_iter().for_each(Reply::fail);
            }
            Command::On => self.disk.power_on()?,
        }
        Ok("ok".to_owned())
    }
}
