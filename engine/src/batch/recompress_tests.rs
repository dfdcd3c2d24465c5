//! From every codec to every codec: nothing of a batch changes but how its records are compressed.

use bytes::Bytes;
use proptest::{collection::vec, option, prelude::*};

use super::{records::RecordReader, tests::NOW_MS, *};

const STEP_BYTES: usize = 10_000;

/// Every codec, at the ends of its levels and at its default.
fn compressions() -> Vec<Compression> {
    let of = |codec, levels: &[i32]| levels.iter().map(move |&level| Compression { codec, level }).collect::<Vec<_>>();
    [
        of(Codec::None, &[0]),
        of(Codec::Gzip, &[-1, 1, 9]),
        of(Codec::Snappy, &[0]),
        of(Codec::Lz4, &[1, 9, 10, 17]),
        of(Codec::Zstd, &[-131_072, -1, 3, 9, 10, 19, 22]),
    ]
    .concat()
}

fn rules() -> Rules {
    Rules { max_bytes: 64 << 20, ..tests::rules() }
}

fn bytes(max: usize) -> impl Strategy<Value = Bytes> {
    vec(any::<u8>(), 0..max).prop_map(Bytes::from)
}

fn record() -> impl Strategy<Value = Record> {
    let headers = vec((bytes(9), option::of(bytes(9))), 0..3);
    (option::of(bytes(20)), option::of(bytes(3_000)), headers, -1..NOW_MS)
        .prop_map(|(key, value, headers, timestamp)| Record { offset: 0, timestamp, key, value, headers })
}

fn build(codec: Codec, records: &[Record]) -> Bytes {
    let mut builder = BatchBuilder::new(codec, 0).producer(7, 3, i32::MAX - 1).leader_epoch(5);
    for (at, record) in records.iter().enumerate() {
        builder.push(&Record { offset: at as i64, ..record.clone() });
    }
    builder.finish().into()
}

/// Checks a batch and recompresses it.
fn recompress(batch: &Bytes, to: Compression, bytes_max: usize) -> Result<(Bytes, BatchInfo), BatchError> {
    let checked = check(batch, &rules())?;
    let mut rest = Recompress::new(batch, &checked, to, bytes_max)?;
    loop {
        match rest.step(STEP_BYTES)? {
            Recompressed::More(more) => rest = more,
            Recompressed::Done(bytes, info) => return Ok((bytes, info)),
        }
    }
}

/// The records as they are encoded, with what no reader shows: their attributes.
fn raw(batch: &[u8]) -> Vec<(u8, i64, Vec<u8>)> {
    let mut reader = RecordReader::new(batch).unwrap();
    let mut all = Vec::new();
    while let Some(record) = reader.next_record().unwrap() {
        all.push((record.attributes, record.timestamp, record.from_offset.to_vec()));
    }
    all
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    #[test]
    fn only_the_codec_changes(list in vec(record(), 1..20), from in 0..5usize) {
        let codec = [Codec::None, Codec::Gzip, Codec::Snappy, Codec::Lz4, Codec::Zstd][from];
        let batch = build(codec, &list);
        let before = check(&batch, &rules()).unwrap();
        for to in compressions() {
            let (made, info) = recompress(&batch, to, 1 << 20).unwrap();
            prop_assert!(verify_crc(&made));
            prop_assert_eq!(BatchInfo::parse(&made).unwrap(), info);
            prop_assert_eq!(info, BatchInfo { size: made.len(), attributes: to.codec as i16, ..before });
            prop_assert_eq!(raw(&made), raw(&batch));
            prop_assert_eq!(records(&made).unwrap(), records(&batch).unwrap());
            // What a client would check of it when it is sent on, e.g. by a mirror.
            prop_assert_eq!(check(&made, &rules()), Ok(info));
        }
    }
}

/// Another implementation of Kafka's codecs reads what was made, and its batches are read here.
#[test]
fn others_read_what_was_made() {
    use kafka_protocol::records::{Compression as Theirs, RecordBatchDecoder, RecordBatchEncoder, RecordEncodeOptions};
    let value = Bytes::from("some words that come again and again, ".repeat(6_000));
    let list: Vec<_> = (0..3)
        .map(|at| Record { offset: at, timestamp: 1_000 + at, key: None, value: Some(value.clone()), headers: vec![] })
        .collect();
    let decode = |batch: &Bytes| RecordBatchDecoder::decode(&mut batch.clone()).unwrap().records;
    let theirs = decode(&build(Codec::None, &list));
    for compression in [Theirs::None, Theirs::Gzip, Theirs::Snappy, Theirs::Lz4, Theirs::Zstd] {
        let mut sent = bytes::BytesMut::new();
        RecordBatchEncoder::encode(&mut sent, theirs.iter(), &RecordEncodeOptions { version: 2, compression }).unwrap();
        for to in compressions() {
            let (made, _) = recompress(&sent.clone().freeze(), to, 1 << 20).unwrap();
            let read = decode(&made);
            assert_eq!(read.len(), 3);
            assert!(read.iter().all(|record| record.value.as_ref() == Some(&value)), "{compression:?} to {to:?}");
        }
    }
}

/// Higher levels are of use: for a text they make smaller batches.
#[test]
fn levels_count() {
    let words: Vec<u8> =
        (0..40_000u64).flat_map(|n| format!("{} ", n * n * 2_654_435_761 % 9_973).into_bytes()).collect();
    let list = [Record { offset: 0, timestamp: 5, key: None, value: Some(words.into()), headers: vec![] }];
    let batch = build(Codec::None, &list);
    let size = |codec, level| recompress(&batch, Compression { codec, level }, 1 << 20).unwrap().0.len();
    for (codec, levels) in [(Codec::Gzip, [1, 6, 9]), (Codec::Lz4, [9, 3, 12]), (Codec::Zstd, [-50, 3, 19])] {
        let [worst, middle, best] = levels.map(|level| size(codec, level));
        assert!(worst > middle && middle >= best, "{codec:?}: {worst}, {middle}, {best}");
    }
    assert_eq!(size(Codec::Gzip, -1), size(Codec::Gzip, 6));
}

#[test]
fn a_largest_timestamp_that_lies_is_corrected() {
    let plain = |timestamp| Record { offset: 0, timestamp, key: None, value: None, headers: vec![] };
    let mut batch = build(Codec::None, &[plain(50), plain(40)]).to_vec();
    batch[35..43].copy_from_slice(&9_000i64.to_be_bytes());
    let crc = crc32c::crc32c(&batch[header::CHECKED_FROM..]);
    batch[17..header::CHECKED_FROM].copy_from_slice(&crc.to_be_bytes());
    let (made, info) = recompress(&batch.into(), Codec::Lz4.into(), 1 << 20).unwrap();
    assert_eq!(info.max_timestamp, 50);
    assert_eq!(BatchInfo::parse(&made).unwrap(), info);
    assert!(verify_crc(&made));
}

/// Kafka looks at the size of a batch again once it has recompressed it. What would be too large is not made.
#[test]
fn a_batch_that_grows_too_large_is_refused_early() {
    let zeroes = Record { offset: 0, timestamp: 5, key: None, value: Some(vec![0; 40 << 20].into()), headers: vec![] };
    let bomb = build(Codec::Zstd, &[zeroes]);
    assert!(bomb.len() < 10_000);
    let max = 1 << 20;
    let checked = check(&bomb, &rules()).unwrap();
    for codec in [Codec::None, Codec::Snappy] {
        let mut rest = Recompress::new(&bomb, &checked, codec.into(), max).unwrap();
        let mut steps = 0;
        let error = loop {
            match rest.step(1 << 20) {
                Ok(Recompressed::More(more)) => rest = more,
                Ok(Recompressed::Done(..)) => panic!("kept"),
                Err(error) => break error,
            }
            steps += 1;
        };
        assert_eq!(error, BatchError::TooLargeRecompressed { codec: codec.name(), max });
        assert!(steps < 30, "{codec:?}: {steps} MiB were gone through");
    }
    let (made, _) = recompress(&bomb, Codec::Gzip.into(), max).unwrap();
    assert_eq!(records(&made).unwrap()[0].value.as_ref().unwrap().len(), 40 << 20);
    let limit = made.len();
    recompress(&bomb, Codec::Gzip.into(), limit).unwrap();
    assert!(matches!(recompress(&bomb, Codec::Gzip.into(), limit - 1), Err(BatchError::TooLargeRecompressed { .. })));
}
