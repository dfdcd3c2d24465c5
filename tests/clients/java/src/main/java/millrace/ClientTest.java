package millrace;

import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.nio.charset.StandardCharsets;
import java.time.Duration;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Collection;
import java.util.Collections;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.Properties;
import java.util.Random;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.Future;
import java.util.concurrent.TimeUnit;
import java.util.stream.Collectors;
import java.util.stream.IntStream;
import org.apache.kafka.clients.admin.Admin;
import org.apache.kafka.clients.admin.AlterConfigOp;
import org.apache.kafka.clients.admin.Config;
import org.apache.kafka.clients.admin.ConfigEntry;
import org.apache.kafka.clients.admin.NewPartitions;
import org.apache.kafka.clients.admin.NewTopic;
import org.apache.kafka.clients.admin.OffsetSpec;
import org.apache.kafka.clients.admin.ProducerState;
import org.apache.kafka.clients.admin.RecordsToDelete;
import org.apache.kafka.clients.admin.TopicDescription;
import org.apache.kafka.clients.consumer.ConsumerRecord;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.clients.consumer.OffsetAndTimestamp;
import org.apache.kafka.clients.producer.KafkaProducer;
import org.apache.kafka.clients.producer.ProducerRecord;
import org.apache.kafka.clients.producer.RecordMetadata;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.config.ConfigResource;
import org.apache.kafka.common.errors.RecordTooLargeException;
import org.apache.kafka.common.errors.TopicExistsException;
import org.apache.kafka.common.header.Header;
import org.apache.kafka.common.header.internals.RecordHeader;
import org.apache.kafka.common.serialization.ByteArrayDeserializer;
import org.apache.kafka.common.serialization.ByteArraySerializer;

/** Steps that users of the Java client take, one after the other; each passes when it returns. */
public final class ClientTest {
  interface Step {
    void run() throws Exception;
  }

  private final String broker;
  final String run = Long.toHexString(new Random().nextLong());
  final Admin admin;
  private int failed;

  private ClientTest(String broker) {
    this.broker = broker;
    Properties config = new Properties();
    config.put("bootstrap.servers", broker);
    this.admin = Admin.create(config);
  }

  /** Takes HOST:PORT; exits with 1 when a step failed. */
  public static void main(String[] arguments) {
    ClientTest test = new ClientTest(arguments[0]);
    test.all();
    test.admin.close(Duration.ofSeconds(5));
    System.exit(test.failed == 0 ? 0 : 1);
  }

  private void all() {
    step("admin", this::administration);
    for (String codec : List.of("none", "gzip", "snappy", "lz4", "zstd")) {
      step("codec-" + codec, () -> codec(codec));
    }
    step("keys-and-headers", this::keysAndHeaders);
    step("by-offset", this::byOffset);
    step("by-timestamp", this::byTimestamp);
    step("list-offsets", this::listOffsets);
    step("log-append-time", this::logAppendTime);
    step("idempotent", this::idempotent);
    step("many-partitions", this::manyPartitions);
    step("delete-records", this::deleteRecords);
    step("too-large-is-refused", this::tooLargeIsRefused);
    if (System.getenv("CLIENT_METRICS") != null) {
      step("pushes-metrics", this::pushesMetrics);
    }
    for (String protocol : groupProtocols()) {
      step("group-" + protocol, () -> group(protocol));
    }
    new TransactionSteps(this).all();
  }

  static List<String> groupProtocols() {
    return Arrays.stream(System.getenv().getOrDefault("CLIENT_GROUPS", "").split(" ")).filter(p -> !p.isEmpty()).toList();
  }

  void step(String name, Step step) {
    try {
      step.run();
      System.out.println("passed java-" + name);
    } catch (Throwable error) { // a failing step must not keep the others from running
      failed++;
      System.out.println("FAILED java-" + name);
      System.out.println("    " + error);
      Throwable cause = error.getCause() == null ? error : error.getCause();
      Arrays.stream(cause.getStackTrace()).filter(frame -> frame.getClassName().startsWith("millrace")).limit(3)
          .forEach(frame -> System.out.println("    at " + frame));
    }
  }

  /** KIP-714: a subscription makes a producer push, and what it pushes can be read. */
  private void pushesMetrics() throws Exception {
    String name = "metrics-" + run;
    ConfigResource subscription = new ConfigResource(ConfigResource.Type.CLIENT_METRICS, name);
    List<AlterConfigOp> settings = new ArrayList<>();
    settings.add(new AlterConfigOp(new ConfigEntry("metrics", "org.apache.kafka.producer."), AlterConfigOp.OpType.SET));
    settings.add(new AlterConfigOp(new ConfigEntry("interval.ms", "500"), AlterConfigOp.OpType.SET));
    settings.add(new AlterConfigOp(new ConfigEntry("match", "client_id=" + name), AlterConfigOp.OpType.SET));
    admin.incrementalAlterConfigs(Map.of(subscription, settings)).all().get(30, TimeUnit.SECONDS);
    Properties config = new Properties();
    config.put("bootstrap.servers", broker);
    config.put("client.id", name);
    config.put("key.serializer", ByteArraySerializer.class.getName());
    config.put("value.serializer", ByteArraySerializer.class.getName());
    HttpClient http = HttpClient.newHttpClient();
    URI address = URI.create(System.getenv("CLIENT_METRICS"));
    HttpRequest page = HttpRequest.newBuilder(address).timeout(Duration.ofSeconds(30)).build();
    try (KafkaProducer<byte[], byte[]> producer = new KafkaProducer<>(config)) {
      for (int sent = 0; sent < 100; sent++) {
        producer.send(new ProducerRecord<>(name, new byte[10])).get(30, TimeUnit.SECONDS);
      }
      String id = producer.clientInstanceId(Duration.ofSeconds(30)).toString();
      String labels = "{client_id=\"" + name + "\",client_instance_id=\"" + id + "\"}";
      String sample = "org_apache_kafka_producer_record_send_total" + labels + " 100";
      long patience = System.nanoTime() + TimeUnit.SECONDS.toNanos(60);
      String text;
      do {
        Thread.sleep(100);
        text = http.send(page, HttpResponse.BodyHandlers.ofString()).body();
      } while (text.lines().noneMatch(sample::equals) && System.nanoTime() < patience);
      expect(text.lines().filter(sample::equals).count(), 1L);
    }
  }

  static void expect(Object actual, Object expected) {
    if (!expected.equals(actual)) {
      throw new AssertionError("expected " + cut(expected) + ", got " + cut(actual));
    }
  }

  private static String cut(Object what) {
    String text = String.valueOf(what);
    return text.length() > 300 ? text.substring(0, 300) + "..." : text;
  }

  static <T> T get(Future<T> future) throws Exception {
    return future.get(60, TimeUnit.SECONDS);
  }

  static byte[] bytes(String text) {
    return text == null ? null : text.getBytes(StandardCharsets.UTF_8);
  }

  static String text(byte[] bytes) {
    return bytes == null ? null : new String(bytes, StandardCharsets.UTF_8);
  }

  String newTopic(String name, int partitions, Map<String, String> configs) throws Exception {
    String topic = "java-" + run + "-" + name;
    get(admin.createTopics(List.of(new NewTopic(topic, partitions, (short) 1).configs(configs))).all());
    // Kafka answers before each partition is served, and its idempotent producer stumbles over what is not served yet
    Map<TopicPartition, OffsetSpec> ends = IntStream.range(0, partitions).boxed()
        .collect(Collectors.toMap(p -> new TopicPartition(topic, p), p -> OffsetSpec.latest()));
    long deadline = System.currentTimeMillis() + 30000;
    while (true) {
      try {
        get(admin.listOffsets(ends).all());
        return topic;
      } catch (ExecutionException error) {
        if (System.currentTimeMillis() > deadline) {
          throw error;
        }
        Thread.sleep(20);
      }
    }
  }

  String newTopic(String name) throws Exception {
    return newTopic(name, 1, Map.of());
  }

  KafkaProducer<byte[], byte[]> producer(Map<String, Object> configs) {
    Map<String, Object> all = new HashMap<>(configs);
    all.put("bootstrap.servers", broker);
    all.put("delivery.timeout.ms", 60000);
    all.put("request.timeout.ms", 30000);
    return new KafkaProducer<>(all, new ByteArraySerializer(), new ByteArraySerializer());
  }

  KafkaConsumer<byte[], byte[]> consumer(Map<String, Object> configs) {
    Map<String, Object> all = new HashMap<>(configs);
    all.put("bootstrap.servers", broker);
    all.put("enable.auto.commit", false);
    return new KafkaConsumer<>(all, new ByteArrayDeserializer(), new ByteArrayDeserializer());
  }

  List<RecordMetadata> produce(Collection<ProducerRecord<byte[], byte[]>> records, Map<String, Object> configs)
      throws Exception {
    try (KafkaProducer<byte[], byte[]> producer = producer(configs)) {
      List<Future<RecordMetadata>> futures = records.stream().map(producer::send).toList();
      List<RecordMetadata> done = new ArrayList<>();
      for (Future<RecordMetadata> future : futures) {
        done.add(get(future));
      }
      return done;
    }
  }

  private List<ConsumerRecord<byte[], byte[]>> read(String topic, List<Integer> partitions, long start, int count) {
    List<ConsumerRecord<byte[], byte[]>> records = new ArrayList<>();
    try (KafkaConsumer<byte[], byte[]> consumer = consumer(Map.of())) {
      List<TopicPartition> assigned = partitions.stream().map(p -> new TopicPartition(topic, p)).toList();
      consumer.assign(assigned);
      assigned.forEach(partition -> consumer.seek(partition, start));
      long deadline = System.currentTimeMillis() + 60000;
      while (records.size() < count && System.currentTimeMillis() < deadline) {
        consumer.poll(Duration.ofSeconds(1)).forEach(records::add);
      }
    }
    if (records.size() < count) {
      throw new AssertionError("only " + records.size() + " of " + count + " records came back");
    }
    return records.subList(0, count);
  }

  private List<ProducerRecord<byte[], byte[]>> values(String topic, int count, int size) {
    String filler = "x".repeat(size);
    return IntStream.range(0, count)
        .mapToObj(i -> new ProducerRecord<>(topic, 0, bytes("k" + i), bytes(i + filler))).toList();
  }

  private static List<String> texts(List<ConsumerRecord<byte[], byte[]>> records) {
    return records.stream().map(r -> r.offset() + " " + text(r.key()) + " " + text(r.value())).toList();
  }

  private static List<String> expectedTexts(List<ProducerRecord<byte[], byte[]>> records) {
    return IntStream.range(0, records.size())
        .mapToObj(i -> i + " " + text(records.get(i).key()) + " " + text(records.get(i).value())).toList();
  }

  private void codec(String codec) throws Exception {
    for (String kept : List.of("producer", "uncompressed", "gzip", "snappy", "lz4", "zstd")) {
      String topic = newTopic("codec-" + codec + "-" + kept, 1, Map.of("compression.type", kept));
      List<ProducerRecord<byte[], byte[]>> records = values(topic, 2000, 200);
      produce(records, Map.of("compression.type", codec, "linger.ms", 20));
      expect(texts(read(topic, List.of(0), 0, records.size())), expectedTexts(records));
    }
  }

  private void keysAndHeaders() throws Exception {
    String topic = newTopic("headers");
    List<Header> headers = List.of(new RecordHeader("a", bytes("1")), new RecordHeader("b", new byte[] {0, -1}),
        new RecordHeader("a", bytes("2")), new RecordHeader("none", null), new RecordHeader("", new byte[0]));
    produce(List.of(new ProducerRecord<>(topic, 0, bytes("key"), bytes("value"), headers),
        new ProducerRecord<>(topic, 0, null, bytes("no key")), new ProducerRecord<>(topic, 0, bytes("no value"), null),
        new ProducerRecord<>(topic, 0, bytes(""), bytes(""))), Map.of());
    List<ConsumerRecord<byte[], byte[]>> back = read(topic, List.of(0), 0, 4);
    expect(Arrays.asList(back.get(0).headers().toArray()), headers);
    expect(back.get(1).headers().toArray().length, 0);
    expect(texts(back), List.of("0 key value", "1 null no key", "2 no value null", "3  "));
  }

  private void byOffset() throws Exception {
    String topic = newTopic("offset");
    List<RecordMetadata> done = produce(values(topic, 100, 10), Map.of());
    expect(done.stream().map(RecordMetadata::offset).toList(), IntStream.range(0, 100).mapToObj(i -> (long) i).toList());
    expect(read(topic, List.of(0), 57, 3).stream().map(ConsumerRecord::offset).toList(), List.of(57L, 58L, 59L));
  }

  private void byTimestamp() throws Exception {
    String topic = newTopic("timestamp");
    long base = System.currentTimeMillis() - 100000;
    produce(IntStream.range(0, 20)
        .mapToObj(i -> new ProducerRecord<byte[], byte[]>(topic, 0, base + i * 1000L, null, bytes("x"))).toList(), Map.of());
    TopicPartition partition = new TopicPartition(topic, 0);
    try (KafkaConsumer<byte[], byte[]> consumer = consumer(Map.of())) {
      OffsetAndTimestamp found = consumer.offsetsForTimes(Map.of(partition, base + 4001)).get(partition);
      expect(List.of(found.offset(), found.timestamp()), List.of(5L, base + 5000));
      expect(consumer.offsetsForTimes(Map.of(partition, base + 19001)).get(partition) == null, true);
      expect(consumer.beginningOffsets(List.of(partition)).get(partition), 0L);
      expect(consumer.endOffsets(List.of(partition)).get(partition), 20L);
    }
  }

  private void listOffsets() throws Exception {
    String topic = newTopic("list-offsets");
    long base = System.currentTimeMillis() - 50000;
    produce(IntStream.range(0, 10)
        .mapToObj(i -> new ProducerRecord<byte[], byte[]>(topic, 0, base + 1000L * ((i * 7) % 10), null, bytes("x")))
        .toList(), Map.of());
    TopicPartition partition = new TopicPartition(topic, 0);
    Map<OffsetSpec, Long> expected = Map.of(OffsetSpec.earliest(), 0L, OffsetSpec.latest(), 10L,
        OffsetSpec.maxTimestamp(), 7L, OffsetSpec.forTimestamp(base + 8500), 7L);
    for (Map.Entry<OffsetSpec, Long> entry : expected.entrySet()) {
      long offset = get(admin.listOffsets(Map.of(partition, entry.getKey())).partitionResult(partition)).offset();
      expect(entry.getKey().getClass().getSimpleName() + offset, entry.getKey().getClass().getSimpleName() + entry.getValue());
    }
  }

  private void logAppendTime() throws Exception {
    String topic = newTopic("append-time", 1, Map.of("message.timestamp.type", "LogAppendTime"));
    long before = System.currentTimeMillis();
    RecordMetadata done = produce(List.of(new ProducerRecord<byte[], byte[]>(topic, 0, 1000L, null, bytes("x"))), Map.of())
        .get(0);
    ConsumerRecord<byte[], byte[]> back = read(topic, List.of(0), 0, 1).get(0);
    expect(back.timestampType().toString(), "LogAppendTime");
    expect(back.timestamp() >= before && back.timestamp() <= System.currentTimeMillis(), true);
    expect(done.timestamp(), back.timestamp());
  }

  private void idempotent() throws Exception {
    String topic = newTopic("idempotent");
    List<ProducerRecord<byte[], byte[]>> records = values(topic, 5000, 50);
    produce(records, Map.of("enable.idempotence", true, "acks", "all", "batch.size", 2000));
    expect(texts(read(topic, List.of(0), 0, records.size())), expectedTexts(records));
    TopicPartition partition = new TopicPartition(topic, 0);
    List<ProducerState> states = get(admin.describeProducers(List.of(partition)).partitionResult(partition)).activeProducers();
    expect(states.stream().map(ProducerState::lastSequence).toList(), List.of(4999));
  }

  private void manyPartitions() throws Exception {
    String topic = newTopic("many", 30, Map.of());
    List<ProducerRecord<byte[], byte[]>> records = IntStream.range(0, 6000)
        .mapToObj(i -> new ProducerRecord<>(topic, bytes("key-" + i), bytes("value-" + i))).toList();
    produce(records, Map.of("linger.ms", 5));
    List<ConsumerRecord<byte[], byte[]>> back = read(topic, IntStream.range(0, 30).boxed().toList(), 0, 6000);
    Map<Integer, Long> last = new HashMap<>();
    for (ConsumerRecord<byte[], byte[]> record : back) {
      expect(record.offset(), last.merge(record.partition(), 1L, Long::sum) - 1);
    }
    List<String> values = back.stream().map(r -> text(r.value())).sorted().toList();
    expect(values, records.stream().map(r -> text(r.value())).sorted().collect(Collectors.toList()));
  }

  private void deleteRecords() throws Exception {
    String topic = newTopic("delete-records");
    produce(values(topic, 100, 10), Map.of());
    TopicPartition partition = new TopicPartition(topic, 0);
    long low = get(admin.deleteRecords(Map.of(partition, RecordsToDelete.beforeOffset(40))).lowWatermarks().get(partition))
        .lowWatermark();
    expect(low, 40L);
    try (KafkaConsumer<byte[], byte[]> consumer = consumer(Map.of())) {
      expect(consumer.beginningOffsets(List.of(partition)), Map.of(partition, 40L));
      expect(consumer.endOffsets(List.of(partition)), Map.of(partition, 100L));
    }
    expect(read(topic, List.of(0), 40, 1).get(0).offset(), 40L);
  }

  private void tooLargeIsRefused() throws Exception {
    String topic = newTopic("large", 1, Map.of("max.message.bytes", "10000"));
    try {
      produce(List.of(new ProducerRecord<>(topic, 0, null, new byte[50000])), Map.of());
    } catch (ExecutionException error) {
      expect(error.getCause().getClass(), RecordTooLargeException.class);
      return;
    }
    throw new AssertionError("a record above max.message.bytes was taken");
  }

  private void administration() throws Exception {
    String topic = newTopic("admin", 3, Map.of("retention.ms", "7200000"));
    try {
      newTopic("admin", 3, Map.of());
      throw new AssertionError("a topic was created twice");
    } catch (ExecutionException error) {
      expect(error.getCause().getClass(), TopicExistsException.class);
    }
    TopicDescription description = get(admin.describeTopics(List.of(topic)).allTopicNames()).get(topic);
    expect(description.partitions().size(), 3);
    get(admin.createPartitions(Map.of(topic, NewPartitions.increaseTo(5))).all());
    expect(get(admin.describeTopics(List.of(topic)).allTopicNames()).get(topic).partitions().size(), 5);
    ConfigResource resource = new ConfigResource(ConfigResource.Type.TOPIC, topic);
    get(admin.incrementalAlterConfigs(Map.of(resource,
        List.of(new AlterConfigOp(new ConfigEntry("max.message.bytes", "300000"), AlterConfigOp.OpType.SET)))).all());
    Config config = get(admin.describeConfigs(List.of(resource)).all()).get(resource);
    expect(config.get("max.message.bytes").value(), "300000");
    expect(config.get("retention.ms").value(), "7200000");
    expect(config.get("retention.ms").isDefault(), false);
    expect(get(admin.describeCluster().nodes()).isEmpty(), false);
    get(admin.deleteTopics(List.of(topic)).all());
    long deadline = System.currentTimeMillis() + 30000;
    while (get(admin.listTopics().names()).contains(topic)) {
      expect(System.currentTimeMillis() < deadline, true);
      Thread.sleep(100);
    }
  }

  private void group(String protocol) throws Exception {
    String topic = newTopic("group-" + protocol, 4, Map.of());
    produce(IntStream.range(0, 200).mapToObj(i -> new ProducerRecord<byte[], byte[]>(topic, i % 4, null, bytes("" + i)))
        .toList(), Map.of());
    List<Integer> seen = new ArrayList<>();
    for (int count : new int[] {120, 80}) {
      try (KafkaConsumer<byte[], byte[]> consumer = consumer(Map.of("group.id", "java-" + run + protocol,
          "auto.offset.reset", "earliest", "group.protocol", protocol, "max.poll.records", 10))) {
        consumer.subscribe(List.of(topic));
        int taken = 0;
        long deadline = System.currentTimeMillis() + 60000;
        while (taken < count && System.currentTimeMillis() < deadline) {
          for (ConsumerRecord<byte[], byte[]> record : consumer.poll(Duration.ofSeconds(1))) {
            seen.add(Integer.parseInt(text(record.value())));
            taken++;
          }
          consumer.commitSync();
        }
      }
    }
    Collections.sort(seen);
    expect(seen, IntStream.range(0, 200).boxed().toList());
  }
}
