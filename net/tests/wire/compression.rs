//! compression.type as clients, Connect and MirrorMaker use it.

use bytes::Bytes;
use kafka_protocol::{
    messages::{
        CreateTopicsRequest, DescribeConfigsRequest, IncrementalAlterConfigsRequest,
        create_topics_request::{CreatableTopic, CreatableTopicConfig},
        describe_configs_request::DescribeConfigsResource,
        incremental_alter_configs_request::{AlterConfigsResource, AlterableConfig},
    },
    protocol::StrBytes,
    records::{Compression, RecordBatchDecoder, RecordBatchEncoder, RecordEncodeOptions},
};
use millrace_engine::batch::{BatchBuilder, Codec, Record, batches};

use crate::{
    client::{Client, batch, fetch_request, produce_request, topic_name},
    node::{Node, config},
};

const CODECS: [(&str, Codec); 5] = [
    ("uncompressed", Codec::None),
    ("gzip", Codec::Gzip),
    ("snappy", Codec::Snappy),
    ("lz4", Codec::Lz4),
    ("zstd", Codec::Zstd),
];
const MESSAGE_TOO_LARGE: i16 = 10;
const UNSUPPORTED_COMPRESSION_TYPE: i16 = 76;

fn text(text: &str) -> StrBytes {
    StrBytes::from_string(text.to_owned())
}

fn create(client: &mut Client, name: &'static str, configs: &[(&str, &str)]) -> i16 {
    let config = |(name, value): &(&str, &str)| {
        CreatableTopicConfig::default().with_name(text(name)).with_value(Some(text(value)))
    };
    let topic = CreatableTopic::default()
        .with_name(topic_name(name))
        .with_num_partitions(1)
        .with_replication_factor(-1)
        .with_configs(configs.iter().map(config).collect());
    let request = CreateTopicsRequest::default().with_topics(vec![topic]).with_timeout_ms(1000);
    client.call(7, &request).topics[0].error_code
}

fn alter(client: &mut Client, kind: i8, resource: &str, configs: &[(&str, &str)]) -> i16 {
    let config =
        |(name, value): &(&str, &str)| AlterableConfig::default().with_name(text(name)).with_value(Some(text(value)));
    let resource = AlterConfigsResource::default()
        .with_resource_type(kind)
        .with_resource_name(text(resource))
        .with_configs(configs.iter().map(config).collect());
    let request = IncrementalAlterConfigsRequest::default().with_resources(vec![resource]);
    client.call(1, &request).responses[0].error_code
}

fn value(size: usize) -> Bytes {
    Bytes::from("words that come again ".repeat(size / 22))
}

/// A batch as another implementation of the protocol compresses it.
fn foreign(compression: Compression) -> Bytes {
    let sent = RecordBatchDecoder::decode(&mut batch(&[value(3_000).to_vec(), b"second".to_vec()])).expect("ours");
    let mut bytes = bytes::BytesMut::new();
    let options = RecordEncodeOptions { version: 2, compression };
    RecordBatchEncoder::encode(&mut bytes, sent.records.iter(), &options).expect("records");
    bytes.freeze()
}

/// Codecs of the batches of a partition, each of which another implementation reads.
fn fetched(client: &mut Client, topic: &'static str) -> Vec<Codec> {
    let response = client.fetch(11, &fetch_request(topic, 0, 0, 5_000));
    let mut records = response.responses[0].partitions[0].records.clone().expect("records");
    let codecs = batches(&records).map(|found| found.expect("a batch").0.codec().expect("known")).collect();
    while !records.is_empty() {
        let read = RecordBatchDecoder::decode(&mut records).expect("legal").records;
        assert_eq!(read.len(), 2);
        assert_eq!((read[0].value.clone(), read[1].value.as_deref()), (Some(value(3_000)), Some(&b"second"[..])));
    }
    codecs
}

/// Every codec of a client into every kind of topic, with every kind of acknowledgement.
#[test]
fn clients_get_the_codec_that_the_topic_is_set_to() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(dir.path(), 2, config());
    let mut client = node.client();
    let all = [Compression::None, Compression::Gzip, Compression::Snappy, Compression::Lz4, Compression::Zstd];
    for (name, codec) in CODECS {
        assert_eq!(create(&mut client, name, &[("compression.type", name)]), 0, "{name}");
        for (at, compression) in (0..).zip(all) {
            // Nobody hears of the first ones, but they come first.
            client.send(9, &produce_request(name, 0, 0, foreign(compression)));
            client.send(9, &produce_request(name, 0, 0, foreign(compression)));
            let answer = client.call(9, &produce_request(name, 0, -1, foreign(compression)));
            let answer = &answer.responses[0].partition_responses[0];
            assert_eq!((answer.error_code, answer.base_offset), (0, 6 * at + 4), "{name} {compression:?}");
        }
        assert_eq!(fetched(&mut client, name), [codec; 15], "{name}");
    }
    // As Kafka: a client that cannot know zstd is not given a topic that is set to it.
    for (version, error) in [(9, UNSUPPORTED_COMPRESSION_TYPE), (10, 0)] {
        let response = client.fetch(version, &fetch_request("zstd", 0, 0, 0));
        assert_eq!(response.responses[0].partitions[0].error_code, error);
        let response = client.fetch(version, &fetch_request("lz4", 0, 0, 0));
        assert_eq!(response.responses[0].partitions[0].error_code, 0);
    }
}

/// What MirrorMaker copies, in one request; and Connect's topics with Debezium's documented settings.
#[test]
fn settings_that_tools_set_are_kept_shown_and_kept_to() {
    const TOPIC: i8 = 2;
    const BROKER: i8 = 4;
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(dir.path(), 1, config());
    let mut client = node.client();
    let connect = [("cleanup.policy", "compact"), ("compression.type", "lz4")];
    assert_eq!(create(&mut client, "connect", &connect), 0);
    client.create_topic("mirror", 1);
    let mirror = [
        ("cleanup.policy", "delete"),
        ("compression.type", "gzip"),
        ("compression.gzip.level", "9"),
        ("compression.lz4.level", "17"),
        ("compression.zstd.level", "-7"),
        ("max.message.bytes", "52428800"),
        ("retention.ms", "1000000"),
        ("segment.bytes", "104857600"),
    ];
    assert_eq!(alter(&mut client, TOPIC, "mirror", &mirror), 0);
    let resource = DescribeConfigsResource::default()
        .with_resource_type(TOPIC)
        .with_resource_name(text("mirror"))
        .with_configuration_keys(None);
    let shown = client.call(4, &DescribeConfigsRequest::default().with_resources(vec![resource])).results.remove(0);
    for (name, value) in mirror {
        let config = shown.configs.iter().find(|config| &*config.name == name).expect("a known setting");
        assert_eq!(config.value.as_deref(), Some(value), "{name}");
    }

    // Larger than a node takes, and larger than that once it is uncompressed.
    let large = [vec![7; (16 << 20) + 1]];
    assert_eq!(client.produce("mirror", 0, &large).0, MESSAGE_TOO_LARGE);
    assert_eq!(alter(&mut client, TOPIC, "mirror", &[("compression.type", "uncompressed")]), 0);
    let mut bomb = BatchBuilder::new(Codec::Zstd, 0);
    let [value] = large;
    bomb.push(&Record { offset: 0, timestamp: 1, key: None, value: Some(value.into()), headers: vec![] });
    let answer = client.call(9, &produce_request("mirror", 0, -1, bomb.finish().into()));
    assert_eq!(answer.responses[0].partition_responses[0].error_code, MESSAGE_TOO_LARGE);

    // The broker's default, which topics follow that say nothing.
    client.create_topic("follower", 1);
    assert_eq!(alter(&mut client, BROKER, "", &[("compression.type", "snappy"), ("message.max.bytes", "52428800")]), 0);
    assert_eq!(client.call(9, &produce_request("follower", 0, -1, foreign(Compression::Zstd))).responses.len(), 1);
    assert_eq!(fetched(&mut client, "follower"), [Codec::Snappy]);
    assert_ne!(create(&mut client, "wrong", &[("compression.type", "brotli")]), 0);
    assert_ne!(create(&mut client, "wrong", &[("compression.gzip.level", "10")]), 0);
}
