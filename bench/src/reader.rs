//! Reading back: partitions in offset order over one connection per reader, everything verified on the way.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use crate::{
    batch::{self, FetchedRecord},
    client::{self, ClientError, Connection, FetchLimits, Leaders},
    ledger::Ledger,
};

/// Reads some partitions of one topic from one broker.
#[derive(Debug)]
pub struct Reader {
    connection: Connection,
    topic: String,
    /// Partition and the next offset to read, rotated with every fetch so that none starves.
    positions: Vec<(i32, i64)>,
    limits: FetchLimits,
}

/// What one fetch brought.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Fetched {
    /// Bytes of record batches.
    pub bytes: u64,
    /// Records visited.
    pub records: u64,
}

impl Reader {
    /// A reader that starts at the given offsets.
    pub fn new(connection: Connection, topic: &str, positions: Vec<(i32, i64)>, limits: FetchLimits) -> Reader {
        Reader { connection, topic: topic.to_owned(), positions, limits }
    }

    /// Next offsets to read, by partition.
    pub fn positions(&self) -> &[(i32, i64)] {
        &self.positions
    }

    /// End offsets now, in the order of [`Reader::positions`].
    pub fn end_offsets(&mut self) -> Result<Vec<i64>, ClientError> {
        let partitions: Vec<i32> = self.positions.iter().map(|position| position.0).collect();
        client::list_offsets(&mut self.connection, &self.topic, &partitions, -1)
    }

    /// One fetch over the partitions that `wanted` names; visits the records of each partition in offset order.
    pub fn fetch(
        &mut self,
        wanted: impl Fn(i32, i64) -> bool,
        mut visit: impl FnMut(i32, &FetchedRecord<'_>),
    ) -> Result<Fetched, ClientError> {
        let step = 1.min(self.positions.len());
        self.positions.rotate_left(step);
        let asked = self.positions.iter().copied().filter(|&(partition, offset)| wanted(partition, offset));
        let answers = client::fetch(&mut self.connection, &self.topic, asked, self.limits)?;
        let mut fetched = Fetched::default();
        for answer in answers {
            client::check(|| format!("fetch from {}-{}", self.topic, answer.partition), answer.code)?;
            let position = self.positions.iter_mut().find(|position| position.0 == answer.partition);
            let position = position.ok_or_else(|| ClientError::Unexpected("a partition nobody asked for".into()))?;
            let mut expected = position.1;
            let mut skipped = None;
            let next = batch::for_each_record(&answer.records, |record| {
                if record.offset < position.1 {
                    return; // whole batches are returned, the first may start before the offset asked for
                }
                if record.offset != expected {
                    skipped.get_or_insert((expected, record.offset));
                }
                expected = record.offset + 1;
                fetched.records += 1;
                visit(answer.partition, &record);
            })
            .map_err(|error| ClientError::Unexpected(format!("{}-{}: {error}", self.topic, answer.partition)))?;
            if let Some((expected, found)) = skipped {
                let what = format!("{}-{}: offset {found} follows {expected}", self.topic, answer.partition);
                return Err(ClientError::Unexpected(what));
            }
            position.1 = next.unwrap_or(position.1).max(position.1);
            fetched.bytes += answer.records.len() as u64;
        }
        Ok(fetched)
    }
}

/// Result of reading a topic from its start to its end.
#[derive(Debug, Clone)]
pub struct ReadBack {
    /// What was seen.
    pub ledger: Ledger,
    /// Bytes of record batches.
    pub bytes: u64,
    /// Records of any run.
    pub records: u64,
    /// From the first fetch to the last.
    pub elapsed: Duration,
}

/// Splits partitions over readers: at least one per broker, about `readers` in all.
pub fn assign(leaders: &Leaders, readers: usize) -> Vec<(SocketAddr, Vec<i32>)> {
    let by_address = leaders.by_address();
    let per_broker = readers.div_ceil(by_address.len().max(1)).max(1);
    let mut shares = Vec::new();
    for (address, partitions) in by_address {
        let share = partitions.len().div_ceil(per_broker).max(1);
        shares.extend(partitions.chunks(share).map(|chunk| (address, chunk.to_vec())));
    }
    shares
}

/// Reads everything that is in a topic now with about `readers` threads, and verifies it.
pub fn read_back(
    topic: &str,
    leaders: &Leaders,
    run: u64,
    readers: usize,
    limits: FetchLimits,
    timeout: Duration,
) -> Result<ReadBack, ClientError> {
    let start = Instant::now();
    let results: Vec<_> = std::thread::scope(|scope| {
        let handles: Vec<_> = assign(leaders, readers)
            .into_iter()
            .map(|(address, partitions)| {
                scope.spawn(move || read_share(topic, address, &partitions, run, limits, timeout))
            })
            .collect();
        handles.into_iter().map(|handle| handle.join().expect("a reader panicked")).collect()
    });
    let mut all = ReadBack { ledger: Ledger::new(run), bytes: 0, records: 0, elapsed: start.elapsed() };
    for result in results {
        let (ledger, fetched) = result?;
        all.ledger.merge(ledger);
        all.bytes += fetched.bytes;
        all.records += fetched.records;
    }
    Ok(all)
}

fn read_share(
    topic: &str,
    address: SocketAddr,
    partitions: &[i32],
    run: u64,
    limits: FetchLimits,
    timeout: Duration,
) -> Result<(Ledger, Fetched), ClientError> {
    let mut connection = client::connect(address, timeout)?;
    let starts = client::list_offsets(&mut connection, topic, partitions, -2)?;
    let ends = client::list_offsets(&mut connection, topic, partitions, -1)?;
    let end_of = |partition: i32| ends[partitions.binary_search(&partition).expect("one of ours, and they are sorted")];
    let positions = partitions.iter().copied().zip(starts).collect();
    let mut reader = Reader::new(connection, topic, positions, limits);
    let (mut ledger, mut total) = (Ledger::new(run), Fetched::default());
    let mut progressed = Instant::now();
    while reader.positions().iter().any(|&(partition, offset)| offset < end_of(partition)) {
        let fetched = reader.fetch(
            |partition, offset| offset < end_of(partition),
            |partition, record| _ = ledger.record(partition as u32, record.value),
        )?;
        total.bytes += fetched.bytes;
        total.records += fetched.records;
        if fetched.records > 0 {
            progressed = Instant::now();
        } else if progressed.elapsed() > timeout {
            let what =
                format!("{topic}: no records for {timeout:?} though {:?} are not at {ends:?}", reader.positions());
            return Err(ClientError::Unexpected(what));
        }
    }
    Ok((ledger, total))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_partition_is_read_by_exactly_one_reader_of_its_broker() {
        let address = |port| SocketAddr::from(([127, 0, 0, 1], port));
        let leaders = Leaders { by_partition: (0..10).map(|p| address(1 + p % 3)).collect() };
        for readers in [1, 2, 3, 7, 50] {
            let shares = assign(&leaders, readers);
            let mut all: Vec<i32> = shares.iter().flat_map(|(_, partitions)| partitions.clone()).collect();
            all.sort_unstable();
            assert_eq!(all, (0..10).collect::<Vec<_>>());
            for (broker, partitions) in shares {
                assert!(partitions.iter().all(|&p| leaders.by_partition[p as usize] == broker));
            }
        }
    }
}
