//! Batches as others write them: bytes kept from Kafka 4.3.1's Java producer, and kafka-protocol's encoder and decoder.

#![expect(clippy::unwrap_used, reason = "what helps a test is in no test function, and may panic too")]

use bytes::{Bytes, BytesMut};
use kafka_protocol::{
    indexmap::IndexMap,
    protocol::StrBytes,
    records::{
        Compression, Record as Foreign, RecordBatchDecoder, RecordBatchEncoder, RecordEncodeOptions,
        TimestampType as ForeignTimestampType,
    },
};
use millrace_engine::batch::{self, AppendOrigin, BatchBuilder, BatchInfo, Codec, Record, Rules, TimestampType};
use proptest::{collection::vec, option, prelude::*};

const RULES: Rules = Rules {
    origin: AppendOrigin::Client,
    max_bytes: 1 << 20,
    now_ms: i64::MAX / 2,
    timestamp_type: TimestampType::CreateTime,
    before_max_ms: i64::MAX,
    after_max_ms: 0,
    key_required: false,
};

const CODECS: [(Codec, Compression); 5] = [
    (Codec::None, Compression::None),
    (Codec::Gzip, Compression::Gzip),
    (Codec::Snappy, Compression::Snappy),
    (Codec::Lz4, Compression::Lz4),
    (Codec::Zstd, Compression::Zstd),
];

fn golden(name: &str) -> Vec<u8> {
    let path = format!("{}/tests/golden/kafka-4.3.1-{name}.batch", env!("CARGO_MANIFEST_DIR"));
    std::fs::read(&path).unwrap_or_else(|e| panic!("{path}: {e}"))
}

fn text(field: Option<&Bytes>) -> Option<&str> {
    field.map(|bytes| std::str::from_utf8(bytes).unwrap())
}

fn headers(record: &Record) -> Vec<(&str, Option<&str>)> {
    record.headers.iter().map(|(name, value)| (text(Some(name)).unwrap(), text(value.as_ref()))).collect()
}

/// What Java's console producer was given for every codec.
fn expect_console_records(records: &[Record]) {
    let [one, two, three] = records else { panic!("{} records", records.len()) };
    assert_eq!(records.iter().map(|r| r.offset).collect::<Vec<_>>(), [0, 1, 2]);
    assert_eq!(text(one.key.as_ref()), Some("key1"));
    assert_eq!(text(one.value.as_ref()).unwrap(), "value one, long enough to compress. ".repeat(6));
    assert_eq!(headers(one), [("colour", Some("red")), ("empty", Some(""))]);
    assert_eq!((text(two.key.as_ref()), text(two.value.as_ref())), (Some("key2"), Some("v2")));
    assert_eq!(headers(two), [("plain", Some("1"))]);
    assert_eq!((text(three.key.as_ref()), text(three.value.as_ref())), (Some("key3"), Some("v3")));
}

#[test]
fn batches_of_java_pass_and_read_back_in_every_codec() {
    for (codec, _) in CODECS {
        let bytes = golden(codec.name());
        let info = batch::check(&bytes, &RULES).unwrap_or_else(|e| panic!("{codec:?}: {e}"));
        assert_eq!(info, BatchInfo::parse(&bytes).unwrap(), "{codec:?}: Java's largest timestamp is right");
        assert_eq!(info.codec(), Ok(codec));
        assert_eq!((info.record_count, info.producer_epoch, info.base_sequence), (3, 0, 0));
        assert!(info.has_producer_id() && !info.is_transactional() && !info.is_control());
        let records = batch::records(&bytes).unwrap();
        expect_console_records(&records);
        assert!(records.iter().all(|r| r.timestamp <= info.max_timestamp && r.timestamp > 1_600_000_000_000));
    }
}

#[test]
fn kafka_and_we_set_log_append_time_to_the_same_bytes() {
    let theirs = golden("append");
    let info = BatchInfo::parse(&theirs).unwrap();
    assert_eq!(info.timestamp_type(), TimestampType::LogAppendTime);
    // What the producer had sent: no such attribute. Its largest timestamp is lost; any other one does.
    let mut ours = theirs.clone();
    ours[22] &= !0x08;
    ours[35..43].copy_from_slice(&info.base_timestamp.to_be_bytes());
    batch::assign(&mut ours, 0, info.leader_epoch, Some(info.max_timestamp));
    assert_eq!(ours, theirs);
}

#[test]
fn an_uncompressed_batch_is_rebuilt_to_the_same_bytes() {
    let theirs = golden("none");
    let info = BatchInfo::parse(&theirs).unwrap();
    let mut builder = BatchBuilder::like(&info).unwrap();
    batch::records(&theirs).unwrap().iter().for_each(|record| builder.push(record));
    assert_eq!(builder.finish(), theirs);
}

fn bytes(max: usize) -> impl Strategy<Value = Bytes> {
    vec(any::<u8>(), 0..max).prop_map(Bytes::from)
}

fn record() -> impl Strategy<Value = Record> {
    let name = "[a-zA-Z0-9]{0,8}".prop_map(Bytes::from);
    // Their headers are a map, so names must differ: one at most.
    let headers = vec((name, option::of(bytes(9))), 0..2);
    (option::of(bytes(20)), option::of(bytes(5_000)), headers, 0..i64::MAX / 2)
        .prop_map(|(key, value, headers, timestamp)| Record { offset: 0, timestamp, key, value, headers })
}

fn foreign(record: &Record) -> Foreign {
    let header = |(name, value): &(Bytes, Option<Bytes>)| (StrBytes::try_from(name.clone()).unwrap(), value.clone());
    Foreign {
        transactional: false,
        control: false,
        delete_horizon: false,
        partition_leader_epoch: -1,
        producer_id: 12,
        producer_epoch: 3,
        timestamp_type: ForeignTimestampType::Creation,
        offset: record.offset,
        sequence: i32::try_from(record.offset).unwrap() + 100,
        timestamp: record.timestamp,
        key: record.key.clone(),
        value: record.value.clone(),
        headers: record.headers.iter().map(header).collect::<IndexMap<_, _>>(),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn we_read_what_kafka_protocol_writes_and_it_reads_what_we_write(
        mut list in vec(record(), 1..20), which in 0..5usize,
    ) {
        (0..).zip(&mut list).for_each(|(offset, record)| record.offset = offset);
        let (codec, compression) = CODECS[which];
        let theirs: Vec<Foreign> = list.iter().map(foreign).collect();

        let mut written = BytesMut::new();
        let options = RecordEncodeOptions { version: 2, compression };
        RecordBatchEncoder::encode(&mut written, &theirs, &options).unwrap();
        let info = batch::check(&written, &RULES).unwrap();
        prop_assert_eq!((info.producer_id, info.producer_epoch, info.base_sequence), (12, 3, 100));
        prop_assert_eq!(info.codec(), Ok(codec));
        prop_assert_eq!(batch::records(&written).unwrap(), list.clone());

        let mut builder = BatchBuilder::new(codec, 0).producer(12, 3, 100);
        list.iter().for_each(|record| builder.push(record));
        let read = RecordBatchDecoder::decode(&mut Bytes::from(builder.finish())).unwrap();
        prop_assert_eq!(read.compression, compression);
        prop_assert_eq!(read.records, theirs);
    }
}
