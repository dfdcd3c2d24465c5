//! A folder of format 1 goes to this one while the power fails at any operation: it is of one of the two afterwards, and
//! whole.
use std::{
    path::{Path, PathBuf},
    rc::Rc,
};

use super::{Known, Store, StoreOptions};
use crate::{
    api::{Acks, FetchPartition, ProducePartition, ReadBound, TopicPartition},
    batch::{AppendOrigin, BatchBuilder, Codec, Record, batches, records},
    boot::{read_catalog, upgrade},
    config::TopicConfig,
    format::{
        catalog::{Catalog, FORMAT_VERSION},
        journal::Journal,
    },
    io::{
        BLOCK, Buffer, File, IO_BYTES_MAX, Io, Open,
        sim::{Sim, SimIo},
    },
};

#[path = "../../tests/fixtures/unpack.rs"]
mod unpack;

const DIR: &str = "/d";
/// First and end offset of both partitions of the folder.
const HELD: [(i64, i64); 2] = [(3, 11), (0, 1)];

fn catalog_path() -> PathBuf {
    Path::new(DIR).join("catalog")
}

/// A machine with the folder. Files of the shared log are shorter, as unit tests have them.
fn machine(seed: u64, files: &[unpack::Packed]) -> Sim {
    let sim = Sim::new(seed);
    let io = sim.io();
    let install = async {
        for (name, _, bytes) in files {
            let path = Path::new(DIR).join(name);
            let dir = path.parent().unwrap();
            io.create_dir(dir).await.unwrap();
            let file = io.open(&path, Open::Write).await.unwrap();
            for at in (0..bytes.len().next_multiple_of(BLOCK)).step_by(IO_BYTES_MAX) {
                let own = &bytes[at..bytes.len().min(at + IO_BYTES_MAX)];
                let mut buffer = io.buffer(own.len().next_multiple_of(BLOCK));
                buffer.bytes_mut().fill(0);
                buffer.bytes_mut()[..own.len()].copy_from_slice(own);
                file.write(Rc::new(buffer), at as u64).await.unwrap();
            }
            file.flush().await.unwrap();
            file.close().await.unwrap();
            io.sync_dir(dir).await.unwrap();
        }
    };
    sim.run_until(install).unwrap();
    sim.crash();
    sim
}

fn ids(catalog: &Catalog) -> [TopicPartition; 2] {
    let (topic, _) = catalog.topics.iter().find(|(_, topic)| topic.name == "orders").unwrap();
    [0, 1].map(|partition| TopicPartition { topic: *topic, partition })
}

/// What a start does with catalog and store, and what is there then; then one record more of partition 1.
async fn start(io: SimIo) {
    let mut catalog = read_catalog(&io, &catalog_path()).await.unwrap().unwrap();
    upgrade(&io, &catalog_path(), &mut catalog).await.unwrap();
    catalog.run += 1;
    let journal = Journal::create(io.clone(), catalog_path(), &catalog.payloads()).await.unwrap();
    let options = StoreOptions { generation: catalog.generation, ..StoreOptions::of_test(catalog.run) };
    let config =
        Rc::new(TopicConfig::parse(&Default::default(), &catalog.topics[&ids(&catalog)[0].topic].overrides).unwrap());
    let known: Known = ids(&catalog).into_iter().map(|id| (id, config.clone())).collect();
    let store = Store::open(io, options, &known).await.unwrap_or_else(|error| panic!("{error}"));
    for (id, (first, end)) in ids(&catalog).into_iter().zip(HELD) {
        let found = store.bounds(id).unwrap();
        assert!(found.0 == first && found.1 >= end, "{id:?} is {found:?}");
        check(&store, id, first, end).await;
        let cell = store.partition(id).unwrap();
        let epochs = cell.borrow().state().epochs;
        let starts: Vec<_> =
            epochs.starts().iter().map(|start| (start.epoch.get(), start.start_offset.get())).collect();
        assert_eq!(starts, [(0, first)], "what version 1 wrote is of the first epoch");
    }
    let mut builder = BatchBuilder::new(Codec::None, 0);
    builder.push(&Record { offset: 0, timestamp: 5, key: None, value: Some("more".into()), headers: vec![] });
    let part = ProducePartition { partition: ids(&catalog)[1], batch: builder.finish().into() };
    if let Some(wait) = store.append(part, AppendOrigin::Client, Acks::All).appended().await.unwrap().1 {
        wait.wait().await.unwrap();
    }
    drop(journal);
}

async fn check(store: &Rc<Store<SimIo>>, id: TopicPartition, mut offset: i64, end: i64) {
    while offset < end {
        let part = FetchPartition {
            partition: id,
            offset,
            max_bytes: 1 << 20,
            leader_epoch: -1,
            bound: ReadBound::HighWatermark,
        };
        for chunk in store.read(&part, 1 << 20, true).await.unwrap().records.chunks {
            for batch in batches(chunk.as_slice().unwrap()) {
                let record = records(batch.unwrap().1).unwrap().remove(0);
                let value = record.value.unwrap();
                assert!(record.offset >= end || value.starts_with(format!("{}-", record.offset).as_bytes()));
                offset = record.offset + 1;
            }
        }
    }
}

#[test]
fn the_power_fails_at_every_operation_of_an_upgrade() {
    let files = unpack::unpack(include_bytes!("../../tests/fixtures/data-v1.gz"));
    let mut formats = [0; 2];
    for crash_at in 1.. {
        let sim = machine(crash_at, &files);
        let io = sim.restart();
        sim.crash_after(crash_at);
        let ended = sim.run_until(start(io)).is_some();
        let io = sim.restart();
        let found = sim.run_until(read_catalog(&io, &catalog_path())).unwrap().unwrap().unwrap();
        formats[found.format as usize - 1] += 1;
        if found.format < FORMAT_VERSION {
            for (name, _, bytes) in &files {
                let now = sim.file(Path::new(DIR).join(name)).unwrap();
                assert!(now.starts_with(bytes), "{name} was changed before the catalog");
            }
        }
        sim.run_until(start(io)).unwrap();
        if ended {
            break;
        }
    }
    assert!(formats.iter().all(|count| *count > 1), "the power failed before and after: {formats:?}");
}
