//! A watch: an answer that does not end, one JSON object a line, read by a thread of its own.

use std::{
    io::{BufRead, BufReader, Read},
    sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel},
    thread,
    time::Duration,
};

use super::{
    gateway::{ANSWER_BYTES_MAX, Gateway},
    messages::{Streamed, WatchRequest, WatchResponse},
};
use crate::cluster::store::{Change, StoreError, Watch, Watched};

/// Lines that are read ahead of who takes them.
const LINES_MAX: usize = 64;

type Line = Result<Watched, StoreError>;

/// A watch. Dropped, its thread ends with the next line, or when the connection was silent for too long.
#[derive(Debug)]
pub struct EtcdWatch {
    lines: Receiver<Line>,
}

impl EtcdWatch {
    pub(super) fn start(gateway: &mut Gateway, request: &WatchRequest, prefix: String) -> Result<Self, StoreError> {
        let body = gateway.stream("/v3/watch", request)?;
        let (sender, lines) = sync_channel(LINES_MAX);
        let thread = thread::Builder::new().name("etcd-watch".to_owned());
        let started = thread.spawn(move || read_lines(body, &prefix, &sender));
        started.map_err(|error| StoreError::Away(format!("no thread for a watch: {error}")))?;
        Ok(Self { lines })
    }
}

impl Watch for EtcdWatch {
    fn next(&mut self, wait: Duration) -> Result<Watched, StoreError> {
        match self.lines.recv_timeout(wait) {
            Ok(line) => line,
            Err(RecvTimeoutError::Timeout) => Ok(Watched::Quiet),
            Err(RecvTimeoutError::Disconnected) => Err(StoreError::Away("the watch broke off".to_owned())),
        }
    }
}

fn read_lines(body: impl Read, prefix: &str, lines: &SyncSender<Line>) {
    let mut body = BufReader::new(body);
    loop {
        let line = read_line(&mut body).and_then(|line| parse(&line, prefix));
        let ends = line.is_err();
        // whoever watched may have gone
        if lines.send(line).is_err() || ends {
            return;
        }
    }
}

fn read_line(body: &mut impl BufRead) -> Result<Vec<u8>, StoreError> {
    let mut line = Vec::new();
    let read = body.take(ANSWER_BYTES_MAX).read_until(b'\n', &mut line);
    match read {
        Err(error) => Err(StoreError::Away(format!("the watch broke off: {error}"))),
        Ok(_) if line.last() == Some(&b'\n') => Ok(line),
        Ok(_) => Err(StoreError::Away("the watch broke off".to_owned())),
    }
}

fn parse(line: &[u8], prefix: &str) -> Line {
    let answer: Streamed<WatchResponse> =
        serde_json::from_slice(line).map_err(|error| StoreError::Nonsense(error.to_string()))?;
    let answer = answer.into_result()?;
    if answer.canceled {
        return Err(match answer.compact_revision {
            0 => StoreError::Away(format!("the watch was cancelled: {}", answer.cancel_reason)),
            revision => StoreError::Compacted(revision),
        });
    }
    // the header's revision is the store's: changes before it may still be on their way
    let changes = answer.events.into_iter().map(|event| match event.kind.as_str() {
        "DELETE" => Ok(Change::Gone { revision: event.kv.revision(), key: event.kv.name(prefix)? }),
        _ => Ok(Change::Put(event.kv.into_entry(prefix)?)),
    });
    Ok(Watched::Changes(changes.collect::<Result<_, _>>()?))
}
