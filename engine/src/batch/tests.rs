//! Properties of batches as a whole.

use bytes::Bytes;
use proptest::{collection::vec, option, prelude::*};

use super::{header::CHECKED_FROM, *};

const CODECS: [Codec; 5] = [Codec::None, Codec::Gzip, Codec::Snappy, Codec::Lz4, Codec::Zstd];
pub(super) const NOW_MS: i64 = 1_700_000_000_000;

pub(super) fn rules() -> Rules {
    Rules {
        origin: AppendOrigin::Client,
        max_bytes: 1 << 20,
        now_ms: NOW_MS,
        timestamp_type: TimestampType::CreateTime,
        before_max_ms: i64::MAX,
        after_max_ms: 3_600_000,
        key_required: false,
    }
}

fn bytes(max: usize) -> impl Strategy<Value = Bytes> {
    vec(any::<u8>(), 0..max).prop_map(Bytes::from)
}

fn record() -> impl Strategy<Value = Record> {
    let headers = vec((bytes(9), option::of(bytes(9))), 0..3);
    (option::of(bytes(20)), option::of(bytes(200)), headers, -1..NOW_MS)
        .prop_map(|(key, value, headers, timestamp)| Record { offset: 0, timestamp, key, value, headers })
}

/// Records of ascending offsets: `gaps[i]` offsets are missing before the i-th.
fn place(mut records: Vec<Record>, base_offset: i64, gaps: &[i64]) -> Vec<Record> {
    let mut next = base_offset;
    for (record, gap) in records.iter_mut().zip(gaps.iter().chain(std::iter::repeat(&0))) {
        record.offset = next + gap;
        next = record.offset + 1;
    }
    records
}

fn build(codec: Codec, base_offset: i64, records: &[Record]) -> Vec<u8> {
    let mut builder = BatchBuilder::new(codec, base_offset).producer(7, 1, 40);
    records.iter().for_each(|record| builder.push(record));
    builder.finish()
}

fn plain(offset: i64, timestamp: i64, value: &str) -> Record {
    let value = Some(Bytes::copy_from_slice(value.as_bytes()));
    Record { offset, timestamp, key: None, value, headers: Vec::new() }
}

/// Makes the checksum right after the test changed checksummed bytes.
fn seal(batch: &mut [u8]) {
    let crc = crc32c::crc32c(&batch[CHECKED_FROM..]);
    batch[17..CHECKED_FROM].copy_from_slice(&crc.to_be_bytes());
}

/// A batch around records that the test encoded itself.
fn around(codec: Codec, count: i32, body: &[u8]) -> Vec<u8> {
    let mut batch = build(codec, 0, &[plain(0, 5, "x")]);
    batch.truncate(BATCH_HEADER_BYTES);
    batch.extend_from_slice(&codec::compress(codec, body));
    let length = i32::try_from(batch.len() - 12).unwrap();
    batch[8..12].copy_from_slice(&length.to_be_bytes());
    batch[23..27].copy_from_slice(&(count - 1).to_be_bytes());
    batch[57..61].copy_from_slice(&count.to_be_bytes());
    seal(&mut batch);
    batch
}

/// Offset, timestamp, key and value.
type Read = (i64, i64, Option<Vec<u8>>, Option<Vec<u8>>);

/// What a reader shows, one record at a time.
fn read(batch: &[u8]) -> Result<Vec<Read>, BatchError> {
    let mut reader = RecordReader::new(batch)?;
    let mut seen = Vec::new();
    while let Some(record) = reader.next_record()? {
        let owned = |field: Option<&[u8]>| field.map(<[u8]>::to_vec);
        seen.push((record.offset, record.timestamp, owned(record.key), owned(record.value)));
    }
    Ok(seen)
}

proptest! {
    #[test]
    fn what_was_built_passes_and_reads_back(list in vec(record(), 1..12), which in 0..5usize) {
        let list = place(list, 0, &[]);
        let mut batch = build(CODECS[which], 0, &list);
        let info = check(&batch, &rules()).unwrap();
        prop_assert_eq!(info.record_count as usize, list.len());
        prop_assert_eq!(info.size, batch.len());
        prop_assert_eq!(info.max_timestamp, list.iter().map(|r| r.timestamp).max().unwrap());
        prop_assert!(!correct_header(&mut batch, &info), "the builder does not lie");
        assign(&mut batch, 1_000, 3, None);
        prop_assert!(verify_crc(&batch));
        prop_assert_eq!(records(&batch).unwrap(), place(list, 1_000, &[]));
    }

    #[test]
    fn gaps_that_compaction_leaves_are_kept(
        list in vec(record(), 1..9), gaps in vec(0..5i64, 9), which in 0..5usize, tail in 0..4,
    ) {
        let list = place(list, 500, &gaps);
        let dense = build(CODECS[which], 500, &place(vec![plain(0, 9, "v"); 60], 500, &[]));
        let mut original = BatchInfo::parse(&dense).unwrap();
        original.last_offset_delta = i32::try_from(list.last().unwrap().offset - 500).unwrap() + tail;
        let mut builder = BatchBuilder::like(&original).unwrap();
        list.iter().for_each(|record| builder.push(record));
        let batch = builder.finish();
        let info = BatchInfo::parse(&batch).unwrap();
        prop_assert!(verify_crc(&batch));
        prop_assert_eq!((info.base_offset, info.last_offset()), (500, original.last_offset()));
        prop_assert_eq!((info.producer_id, info.base_sequence, info.last_sequence()),
            (7, 40, original.last_sequence()));
        prop_assert_eq!(records(&batch).unwrap(), list);
    }

    #[test]
    fn records_that_are_kept_are_kept_as_they_were(
        list in vec(record(), 1..9), gaps in vec(0..5i64, 9), which in 0..5usize, keep in vec(any::<bool>(), 9),
        horizon in option::of(0..NOW_MS),
    ) {
        let list = place(list, 500, &gaps);
        let original = build(CODECS[which], 500, &list);
        let mut builder = BatchBuilder::like(&BatchInfo::parse(&original).unwrap()).unwrap();
        if let Some(horizon) = horizon {
            builder = builder.delete_horizon(horizon);
        }
        let mut reader = RecordReader::new(&original).unwrap();
        let mut seen = 0;
        while let Some(record) = reader.next_record().unwrap() {
            let plain = &list[seen];
            prop_assert_eq!((record.offset, record.timestamp), (plain.offset, plain.timestamp));
            prop_assert_eq!((record.key, record.value), (plain.key.as_deref(), plain.value.as_deref()));
            if keep[seen] {
                builder.push_ref(&record);
            }
            seen += 1;
        }
        prop_assert_eq!(seen, list.len());
        let batch = builder.finish();
        prop_assert!(verify_crc(&batch));
        prop_assert_eq!(BatchInfo::parse(&batch).unwrap().delete_horizon_ms(), horizon);
        let kept: Vec<Record> = list.into_iter().zip(&keep).filter(|(_, keep)| **keep).map(|(r, _)| r).collect();
        prop_assert_eq!(records(&batch).unwrap(), kept);
    }

    #[test]
    fn lookups_by_time_equal_a_naive_search(
        times in vec(0..50i64, 1..40), gaps in vec(0..3i64, 40), asked in 0..60i64, from in 0..120i64, which in 0..5usize,
    ) {
        let list = place(times.iter().map(|&t| plain(0, t, "v")).collect(), 10, &gaps);
        let batch = build(CODECS[which], 10, &list);
        let naive = |from| list.iter().find(|r| r.timestamp >= asked && r.offset >= from).map(|r| (r.offset, r.timestamp));
        prop_assert_eq!(find_timestamp(&batch, asked, i64::MIN).unwrap(), naive(0));
        prop_assert_eq!(find_timestamp(&batch, asked, from).unwrap(), naive(from));
    }

    #[test]
    fn arbitrary_bytes_never_panic(mut data in vec(any::<u8>(), 0..300), shape in any::<u8>()) {
        if shape & 1 == 1 && data.len() > BATCH_HEADER_BYTES {
            let length = i32::try_from(data.len() - 12).unwrap();
            data[8..12].copy_from_slice(&length.to_be_bytes());
            data[16] = 2;
            data[21..23].copy_from_slice(&i16::from(shape >> 2 & 7).to_be_bytes());
            data[57..61].copy_from_slice(&i32::from(shape).to_be_bytes());
            seal(&mut data);
        }
        let _ = (check(&data, &rules()), records(&data), find_timestamp(&data, 5, 0));
        let _ = (batches(&data).count(), verify_crc(&data));
        prop_assert_eq!(read(&data).map(|seen| seen.len()).ok(), records(&data).map(|seen| seen.len()).ok());
    }

    #[test]
    fn damaged_compressed_bytes_never_panic(
        list in vec(record(), 1..5), which in 1..5usize, at in any::<prop::sample::Index>(), to in any::<u8>(), cut in 0..9usize,
    ) {
        let mut batch = build(CODECS[which], 0, &place(list, 0, &[]));
        batch.truncate(batch.len() - cut.min(batch.len() - BATCH_HEADER_BYTES));
        let length = i32::try_from(batch.len() - 12).unwrap();
        batch[8..12].copy_from_slice(&length.to_be_bytes());
        if batch.len() > BATCH_HEADER_BYTES {
            let at = BATCH_HEADER_BYTES + at.index(batch.len() - BATCH_HEADER_BYTES);
            batch[at] = to;
        }
        seal(&mut batch);
        // What the check accepts can be read, and says the same.
        if let Ok(info) = check(&batch, &rules()) {
            let read = records(&batch).unwrap();
            prop_assert_eq!(read.len(), info.record_count as usize);
            prop_assert_eq!(read.iter().map(|r| r.timestamp).max().unwrap().max(-1), info.max_timestamp);
        }
    }
}

#[test]
fn every_flipped_bit_is_refused() {
    for codec in CODECS {
        let list = place((0..4).map(|i| plain(0, 100 + i, "some value")).collect(), 0, &[]);
        let good = build(codec, 0, &list);
        check(&good, &rules()).unwrap();
        // The leader epoch lies outside the checksum and is the broker's to set.
        for bit in (0..good.len() * 8).filter(|bit| !(12..16).contains(&(bit / 8))) {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(check(&bad, &rules()).is_err(), "{codec:?}: bit {bit}");
        }
    }
}

#[test]
fn log_append_time_sets_attribute_time_and_checksum() {
    for codec in CODECS {
        let mut batch = build(codec, 0, &[plain(0, 5, "a"), plain(1, 9, "b")]);
        let by_broker = Rules { timestamp_type: TimestampType::LogAppendTime, before_max_ms: 0, ..rules() };
        let info = check(&batch, &by_broker).unwrap();
        assert!(!correct_header(&mut batch, &info));
        assign(&mut batch, 70, 2, Some(NOW_MS));
        assert!(verify_crc(&batch));
        let info = BatchInfo::parse(&batch).unwrap();
        assert_eq!(info.timestamp_type(), TimestampType::LogAppendTime);
        assert_eq!((info.base_offset, info.leader_epoch, info.max_timestamp), (70, 2, NOW_MS));
        assert_eq!(find_timestamp(&batch, 8, 0).unwrap(), Some((70, NOW_MS)));
        assert_eq!(find_timestamp(&batch, NOW_MS + 1, 0).unwrap(), None);
        assert!(records(&batch).unwrap().iter().all(|r| r.timestamp == NOW_MS));
        assert!(matches!(check(&batch, &by_broker), Err(BatchError::Invalid(_))), "base offset is not 0");
    }
}

#[test]
fn a_max_timestamp_that_lies_is_corrected() {
    let mut batch = build(Codec::Lz4, 0, &[plain(0, 50, "a"), plain(1, 40, "b")]);
    batch[35..43].copy_from_slice(&9_000i64.to_be_bytes());
    seal(&mut batch);
    let info = check(&batch, &rules()).unwrap();
    assert_eq!(info.max_timestamp, 50);
    assert!(correct_header(&mut batch, &info));
    assert_eq!(BatchInfo::parse(&batch).unwrap(), info);
    assert!(verify_crc(&batch));
}

/// Such batches were refused; Kafka takes them. What it keeps of their attributes was read off Kafka 4.4.0.
#[test]
fn attributes_that_are_not_a_producers_are_cleared() {
    let by_broker = Rules { timestamp_type: TimestampType::LogAppendTime, ..rules() };
    for codec in CODECS {
        let good = build(codec, 0, &[plain(0, 50, "a"), plain(1, 40, "b")]);
        let own = BatchInfo::parse(&good).unwrap().attributes;
        let kept = |attributes: u16, rules: &Rules| {
            let mut batch = good.clone();
            batch[21..23].copy_from_slice(&(attributes.cast_signed() | own).to_be_bytes());
            batch[35..43].copy_from_slice(&50i64.to_be_bytes());
            seal(&mut batch);
            let info = check(&batch, rules)?;
            let is_corrected = correct_header(&mut batch, &info);
            assign(&mut batch, 70, 2, (rules.timestamp_type == TimestampType::LogAppendTime).then_some(NOW_MS));
            assert!(verify_crc(&batch));
            let kept = BatchInfo::parse(&batch).unwrap();
            let timestamps: Vec<_> = records(&batch).unwrap().iter().map(|record| record.timestamp).collect();
            match rules.timestamp_type {
                TimestampType::CreateTime => assert_eq!((kept.max_timestamp, &timestamps[..]), (50, &[50, 40][..])),
                TimestampType::LogAppendTime => assert_eq!(timestamps, [NOW_MS; 2]),
            }
            Ok::<_, BatchError>(((kept.attributes & !own).cast_unsigned(), is_corrected))
        };
        for (sent, expected) in [
            (0, (0, false)),
            (0x08, (0, true)),
            (0x40, (0, true)),
            (0x48, (0, true)),
            (0x80, (0x80, false)),
            (0x7f80, (0x7f80, false)),
            (0x8000, (0x8000, false)),
            (0xffc8, (0, true)),
        ] {
            assert_eq!(kept(sent, &rules()), Ok(expected), "{sent:#x}");
        }
        for sent in [0, 0x40, 0x80, 0x7f80, 0x8000] {
            assert_eq!(kept(sent, &by_broker).unwrap().0, 0x08, "{sent:#x}");
        }
        for sent in [0x08, 0x48, 0xffc8] {
            assert_eq!(kept(sent, &by_broker), Err(BatchError::ForeignAppendTime), "{sent:#x}");
        }
    }
}

/// The time of an append elsewhere may be any; -1 is none.
#[test]
fn append_time_without_a_time_is_refused() {
    let mut batch = build(Codec::None, 0, &[plain(0, 50, "a")]);
    batch[21..23].copy_from_slice(&0x08i16.to_be_bytes());
    batch[35..43].copy_from_slice(&9_000i64.to_be_bytes());
    seal(&mut batch);
    assert_eq!(check(&batch, &rules()).unwrap().max_timestamp, 50);
    batch[35..43].copy_from_slice(&(-1i64).to_be_bytes());
    seal(&mut batch);
    assert_eq!(check(&batch, &rules()), Err(BatchError::ForeignAppendTime));
}

#[test]
fn timestamps_out_of_bounds_are_refused() {
    let batch = |timestamp| build(Codec::Zstd, 0, &[plain(0, 5, "a"), plain(1, timestamp, "b")]);
    let refused = |timestamp, rules: Rules| match check(&batch(timestamp), &rules) {
        Err(BatchError::Records(refused)) => {
            let [RefusedRecord { index: 1, reason: RefusedReason::Timestamp { timestamp_ms, .. } }] = refused.first[..]
            else {
                panic!("{refused:?}")
            };
            refused.has_timestamp && timestamp_ms == timestamp
        }
        other => {
            other.unwrap();
            false
        }
    };
    assert!(!refused(NOW_MS + 3_600_000, rules()));
    assert!(refused(NOW_MS + 3_600_001, rules()));
    assert!(!refused(-1, rules()), "no timestamp is no wrong timestamp");
    let recent = Rules { before_max_ms: NOW_MS - 5, ..rules() };
    assert!(!refused(5, recent));
    assert!(refused(4, recent));
    let by_broker = Rules { timestamp_type: TimestampType::LogAppendTime, ..recent };
    assert!(!refused(4, by_broker), "the producer's time does not count");
    // 5 + i64::MAX wraps; no bound of the topic can make that valid.
    let boundless = Rules { after_max_ms: i64::MAX, ..rules() };
    let delta = varlong(i64::MAX);
    let body = [&varlong(delta.len() as i64 + 6), &[0][..], &delta, &[0, 1, 2, b'v', 0]].concat();
    let Err(BatchError::Records(refused)) = check(&around(Codec::None, 1, &body), &boundless) else { panic!("kept") };
    assert_eq!(refused.first, [RefusedRecord { index: 0, reason: RefusedReason::TimestampOverflow }]);
}

#[test]
fn every_record_that_is_refused_is_named() {
    let keyed = |delta, timestamp| Record { key: Some(Bytes::from_static(b"k")), ..plain(delta, timestamp, "v") };
    let compacted = Rules { key_required: true, before_max_ms: NOW_MS - 5, ..rules() };
    for codec in CODECS {
        let batch = build(codec, 0, &[plain(0, 5, "v"), keyed(1, 6), plain(2, 7, "v")]);
        let Err(BatchError::Records(refused)) = check(&batch, &compacted) else { panic!("kept") };
        let named: Vec<_> = refused.first.iter().map(|record| (record.index, record.reason.clone())).collect();
        assert_eq!(named, [(0, RefusedReason::NoKey), (2, RefusedReason::NoKey)]);
        assert_eq!((refused.count, refused.has_timestamp), (2, false));
        let batch = build(codec, 0, &[plain(0, 5, "v"), keyed(1, 4)]);
        let Err(BatchError::Records(refused)) = check(&batch, &compacted) else { panic!("kept") };
        assert_eq!((refused.count, refused.has_timestamp), (2, true));
    }
    let many: Vec<_> = (0..REFUSED_RECORDS_MAX as i64 + 5).map(|delta| plain(delta, 9, "v")).collect();
    let Err(BatchError::Records(refused)) = check(&build(Codec::None, 0, &many), &compacted) else { panic!("kept") };
    assert_eq!((refused.first.len(), refused.count), (REFUSED_RECORDS_MAX, many.len()));
}

fn varlong(value: i64) -> Vec<u8> {
    let mut rest = ((value << 1) ^ (value >> 63)).cast_unsigned();
    let mut out = Vec::new();
    while rest >= 0x80 {
        out.push(0x80 | (rest & 0x7f) as u8);
        rest >>= 7;
    }
    out.push(u8::try_from(rest).unwrap());
    out
}

/// Length 6, no attributes, timestamp delta 0, offset delta 0, null key, value "v", no header.
const GOOD_RECORD: [u8; 8] = [14, 0, 0, 0, 1, 2, b'v', 0];

#[test]
fn misshapen_records_are_refused_in_every_codec() {
    let second = [14, 0, 0, 2, 1, 2, b'v', 0];
    let cases: &[(&str, i32, Vec<u8>)] = &[
        ("negative length", 1, vec![13, 0, 0, 0, 1, 2, b'v', 0]),
        ("length too short", 1, vec![12, 0, 0, 0, 1, 2, b'v', 0]),
        ("length too long", 1, vec![16, 0, 0, 0, 1, 2, b'v', 0]),
        ("key longer than its record", 1, vec![14, 0, 0, 0, 40, 2, b'v', 0]),
        ("null by -2", 1, vec![14, 0, 0, 0, 3, 2, b'v', 0]),
        ("offset delta 1 first", 1, vec![14, 0, 0, 2, 1, 2, b'v', 0]),
        ("negative number of headers", 1, vec![14, 0, 0, 0, 1, 2, b'v', 1]),
        ("more headers than bytes", 1, vec![14, 0, 0, 0, 1, 2, b'v', 60]),
        ("null header name", 1, vec![18, 0, 0, 0, 1, 2, b'v', 2, 1, 1]),
        ("endless number", 1, vec![0x80; 30]),
        ("bytes left over", 1, [&GOOD_RECORD[..], &[0]].concat()),
        ("a record too many", 1, [GOOD_RECORD, second].concat()),
        ("a record missing", 3, [GOOD_RECORD, second].concat()),
        ("same offset delta twice", 2, [GOOD_RECORD, GOOD_RECORD].concat()),
        ("no bytes at all", 1, vec![]),
    ];
    for codec in CODECS {
        check(&around(codec, 1, &GOOD_RECORD), &rules()).unwrap();
        check(&around(codec, 2, &[GOOD_RECORD, second].concat()), &rules()).unwrap();
        for (what, count, body) in cases {
            let batch = around(codec, *count, body);
            assert!(matches!(check(&batch, &rules()), Err(BatchError::Invalid(_))), "{codec:?}: {what}");
        }
    }
}

#[test]
fn control_batches_are_for_coordinators() {
    let mut control = BatchBuilder::new(Codec::None, 0).control();
    control.push(&plain(0, 5, "a"));
    let control = control.finish();
    assert!(matches!(check(&control, &rules()), Err(BatchError::Invalid(_))));
    let by_coordinator = Rules { origin: AppendOrigin::Coordinator, ..rules() };
    assert!(matches!(check(&control, &by_coordinator), Err(BatchError::Invalid(_))), "only to end a transaction");
    let end = EndMarker { outcome: Outcome::Commit, coordinator_epoch: 3 };
    let marker = marker(1, 0, end, 5);
    let as_marker = Rules { origin: AppendOrigin::Marker, ..rules() };
    assert!(check(&marker, &as_marker).is_ok_and(|info| info.is_control()));
    for other in [rules(), by_coordinator] {
        assert!(matches!(check(&marker, &other), Err(BatchError::Invalid(_))));
    }
    assert!(matches!(check(&build(Codec::None, 0, &[plain(0, 5, "a")]), &as_marker), Err(BatchError::Invalid(_))));
}

#[test]
fn batches_of_a_transaction_have_a_sequence_if_a_client_wrote_them() {
    let of_sequence = |sequence| {
        let mut batch = BatchBuilder::new(Codec::None, 0).producer(1, 0, sequence).transactional();
        batch.push(&plain(0, 5, "a"));
        batch.finish()
    };
    let by_coordinator = Rules { origin: AppendOrigin::Coordinator, ..rules() };
    assert!(check(&of_sequence(0), &rules()).is_ok_and(|info| info.is_transactional()));
    assert!(matches!(check(&of_sequence(-1), &rules()), Err(BatchError::Invalid(_))));
    assert!(check(&of_sequence(-1), &by_coordinator).is_ok_and(|info| info.is_transactional()));
    assert!(matches!(check(&of_sequence(0), &by_coordinator), Err(BatchError::Invalid(_))));
    let mut of_nobody = BatchBuilder::new(Codec::None, 0).transactional();
    of_nobody.push(&plain(0, 5, "a"));
    assert!(matches!(check(&of_nobody.finish(), &rules()), Err(BatchError::Invalid(_))));
}

#[test]
fn headers_that_no_client_may_send_are_refused() {
    let good = build(Codec::None, 0, &[plain(0, 5, "a"), plain(1, 6, "b")]);
    let case = |at: usize, bytes: &[u8]| {
        let mut bad = good.clone();
        bad[at..at + bytes.len()].copy_from_slice(bytes);
        seal(&mut bad);
        check(&bad, &rules()).unwrap_err()
    };
    let is_invalid = |error: BatchError| matches!(error, BatchError::Invalid(_));
    assert!(is_invalid(case(0, &7i64.to_be_bytes())), "base offset");
    assert!(is_invalid(case(23, &2i32.to_be_bytes())), "last offset delta");
    assert!(is_invalid(case(23, &(-1i32).to_be_bytes())), "negative last offset delta");
    assert!(is_invalid(case(57, &1i32.to_be_bytes())), "record count");
    assert!(is_invalid(case(57, &(-1i32).to_be_bytes())), "negative record count");
    assert!(is_invalid(case(53, &(-1i32).to_be_bytes())), "base sequence");
    assert!(is_invalid(case(51, &(-1i16).to_be_bytes())), "producer epoch");
    assert!(is_invalid(case(21, &0x20i16.to_be_bytes())), "control batch");
    assert_eq!(case(21, &5i16.to_be_bytes()), BatchError::UnsupportedCodec(5));
    assert_eq!(case(16, &[1]), BatchError::UnsupportedMagic(1));
    assert!(matches!(case(16, &[9]), BatchError::Corrupt(_)));
    assert!(matches!(case(8, &20i32.to_be_bytes()), BatchError::Corrupt(_)), "shorter than a header");
    assert!(matches!(case(8, &900i32.to_be_bytes()), BatchError::Corrupt(_)), "longer than the bytes");
    let mut ends_one = BatchBuilder::new(Codec::None, 0).producer(1, 0, 0).transactional().control();
    ends_one.push(&plain(0, 5, "a"));
    assert!(is_invalid(check(&ends_one.finish(), &rules()).unwrap_err()), "end of a transaction");
    assert!(is_invalid(check(&[good.clone(), good.clone()].concat(), &rules()).unwrap_err()), "two batches");
    let small = Rules { max_bytes: good.len() - 1, ..rules() };
    assert_eq!(check(&good, &small), Err(BatchError::TooLarge { size: good.len(), max: good.len() - 1 }));
}

#[test]
fn bombs_are_refused_without_being_held() {
    // One record whose value is a GiB of zeroes, compressed to some 30 KiB (zstd) or 1 MiB (gzip).
    for codec in [Codec::Zstd, Codec::Gzip] {
        let mut body = varlong(1 << 30);
        body.extend([0, 0, 0, 1]);
        body.extend(varlong((1 << 30) - 20));
        body.resize(usize::try_from(DECOMPRESSED_BYTES_MAX).unwrap() + 100, 0);
        let batch = around(codec, 1, &body);
        let expected = Err(BatchError::Invalid("records decompress to more than 268435456 bytes".into()));
        assert_eq!(check(&batch, &Rules { max_bytes: 16 << 20, ..rules() }), expected);
    }
    // A snappy block that claims more than its bytes can make.
    let mut batch = around(Codec::Snappy, 1, &[]);
    batch.truncate(BATCH_HEADER_BYTES);
    batch.extend([0xff, 0xff, 0xff, 0x1f, 0, b'x']);
    let length = i32::try_from(batch.len() - 12).unwrap();
    batch[8..12].copy_from_slice(&length.to_be_bytes());
    seal(&mut batch);
    assert!(matches!(check(&batch, &rules()), Err(BatchError::Invalid(why)) if why.contains("declares")));
}

#[test]
fn bare_snappy_blocks_and_joined_xerial_streams_are_read() {
    let value = "v".repeat(100_000);
    let list = place(vec![plain(0, 5, &value), plain(0, 6, "w")], 0, &[]);
    let body = build(Codec::None, 0, &list).split_off(BATCH_HEADER_BYTES);
    let bare = snap::raw::Encoder::new().compress_vec(&body).unwrap();
    let (a, b) = body.split_at(50_000);
    let joined = [codec::compress(Codec::Snappy, a), codec::compress(Codec::Snappy, b)].concat();
    for compressed in [bare, joined] {
        let mut batch = build(Codec::Snappy, 0, &list);
        batch.truncate(BATCH_HEADER_BYTES);
        batch.extend(compressed);
        let length = i32::try_from(batch.len() - 12).unwrap();
        batch[8..12].copy_from_slice(&length.to_be_bytes());
        seal(&mut batch);
        check(&batch, &rules()).unwrap();
        assert_eq!(records(&batch).unwrap(), list);
    }
}

#[test]
fn an_emptied_batch_keeps_its_identity() {
    let full = build(Codec::Zstd, 30, &[plain(30, 5, "a"), plain(31, 8, "b")]);
    let info = BatchInfo::parse(&full).unwrap();
    let empty = BatchBuilder::like(&info).unwrap().finish();
    let kept = BatchInfo::parse(&empty).unwrap();
    assert!(verify_crc(&empty));
    assert_eq!((kept.base_offset, kept.last_offset(), kept.record_count), (30, 31, 0));
    assert_eq!((kept.producer_id, kept.last_sequence(), kept.max_timestamp), (7, 41, 8));
    assert_eq!(records(&empty).unwrap(), []);
    assert_eq!(find_timestamp(&empty, 5, 0).unwrap(), None);
}

#[test]
fn a_delete_horizon_does_not_change_timestamps() {
    let list = [plain(0, 5, "a"), plain(1, 8, "b")];
    let mut builder = BatchBuilder::new(Codec::Gzip, 0).delete_horizon(NOW_MS);
    list.iter().for_each(|record| builder.push(record));
    let batch = builder.finish();
    let info = BatchInfo::parse(&batch).unwrap();
    assert_eq!(info.delete_horizon_ms(), Some(NOW_MS));
    assert_eq!(records(&batch).unwrap(), list);
    assert_eq!(BatchBuilder::like(&info).unwrap().finish()[27..35], NOW_MS.to_be_bytes());
}

#[test]
fn a_cut_off_batch_ends_a_run_and_nonsense_is_an_error() {
    let one = build(Codec::None, 0, &[plain(0, 5, "a")]);
    let two = build(Codec::Gzip, 1, &[plain(1, 5, "b"), plain(2, 5, "c")]);
    let run = [one.clone(), two.clone()].concat();
    let found: Vec<_> = batches(&run).map(|item| item.unwrap()).collect();
    assert_eq!(found.iter().map(|(_, bytes)| *bytes).collect::<Vec<_>>(), [&one[..], &two]);
    for cut in 1..two.len() {
        assert_eq!(batches(&run[..run.len() - cut]).filter_map(Result::ok).count(), 1, "{cut} bytes missing");
        assert!(batches(&run[..run.len() - cut]).all(|item| item.is_ok()));
    }
    let nonsense = [one.clone(), vec![0xee; 100]].concat();
    let found: Vec<_> = batches(&nonsense).collect();
    assert_eq!(found.len(), 2);
    assert!(found[0].is_ok() && found[1].is_err());
}

#[test]
fn lz4_frames_that_java_cannot_read_are_refused() {
    use std::io::Write;
    let mut linked = lz4_flex::frame::FrameEncoder::with_frame_info(
        lz4_flex::frame::FrameInfo::new().block_mode(lz4_flex::frame::BlockMode::Linked),
        Vec::new(),
    );
    linked.write_all(&GOOD_RECORD).unwrap();
    let linked = linked.finish().unwrap();
    let mut batch = around(Codec::Lz4, 1, &GOOD_RECORD);
    batch.truncate(BATCH_HEADER_BYTES);
    batch.extend(linked);
    let length = i32::try_from(batch.len() - 12).unwrap();
    batch[8..12].copy_from_slice(&length.to_be_bytes());
    seal(&mut batch);
    assert!(matches!(check(&batch, &rules()), Err(BatchError::Invalid(why)) if why.contains("depend")));
}
