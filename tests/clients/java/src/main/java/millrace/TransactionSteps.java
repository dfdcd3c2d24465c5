package millrace;

import java.time.Duration;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.stream.IntStream;
import org.apache.kafka.clients.admin.AbortTransactionSpec;
import org.apache.kafka.clients.admin.ListOffsetsOptions;
import org.apache.kafka.clients.admin.OffsetSpec;
import org.apache.kafka.clients.admin.ProducerState;
import org.apache.kafka.clients.admin.TransactionDescription;
import org.apache.kafka.clients.admin.TransactionListing;
import org.apache.kafka.clients.admin.TransactionState;
import org.apache.kafka.clients.consumer.ConsumerRecord;
import org.apache.kafka.clients.consumer.ConsumerRecords;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.clients.consumer.OffsetAndMetadata;
import org.apache.kafka.clients.producer.KafkaProducer;
import org.apache.kafka.clients.producer.ProducerRecord;
import org.apache.kafka.common.IsolationLevel;
import org.apache.kafka.common.KafkaException;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.errors.InvalidProducerEpochException;
import org.apache.kafka.common.errors.ProducerFencedException;

/** What users of transactions do. */
final class TransactionSteps {
  private final ClientTest test;

  TransactionSteps(ClientTest test) {
    this.test = test;
  }

  void all() {
    test.step("transactions", this::committedAndAborted);
    test.step("transactions-many-partitions", this::manyPartitions);
    test.step("transactions-back-to-back", this::backToBack);
    test.step("transactions-fenced", this::fenced);
    test.step("transactions-timed-out", this::timedOut);
    test.step("transactions-admin", this::administration);
    test.step("transactions-hanging", this::endedFromOutside);
    for (String protocol : ClientTest.groupProtocols()) {
      test.step("transactions-group-" + protocol, () -> consumeTransformProduce(protocol));
    }
  }

  private KafkaProducer<byte[], byte[]> producer(String id, Map<String, Object> configs) {
    Map<String, Object> all = new HashMap<>(configs);
    all.put("transactional.id", id);
    KafkaProducer<byte[], byte[]> producer = test.producer(all);
    producer.initTransactions();
    return producer;
  }

  private String id(String name) {
    return "java-" + test.run + "-" + name;
  }

  private static void send(KafkaProducer<byte[], byte[]> producer, String topic, int partition, int from, int to) {
    for (int i = from; i < to; i++) {
      producer.send(new ProducerRecord<>(topic, partition, null, ClientTest.bytes("" + i)));
    }
  }

  /** Values of everything up to the end that this isolation level shows. */
  private List<Integer> readAll(String topic, int partition, String isolation) {
    TopicPartition from = new TopicPartition(topic, partition);
    List<Integer> values = new ArrayList<>();
    try (KafkaConsumer<byte[], byte[]> consumer = test.consumer(Map.of("isolation.level", isolation))) {
      consumer.assign(List.of(from));
      consumer.seekToBeginning(List.of(from));
      long end = consumer.endOffsets(List.of(from)).get(from);
      long deadline = System.currentTimeMillis() + 60000;
      while (consumer.position(from) < end && System.currentTimeMillis() < deadline) {
        for (ConsumerRecord<byte[], byte[]> record : consumer.poll(Duration.ofMillis(500))) {
          values.add(Integer.parseInt(ClientTest.text(record.value())));
        }
      }
      ClientTest.expect(consumer.position(from), end);
    }
    return values;
  }

  private static List<Integer> range(int... bounds) {
    List<Integer> all = new ArrayList<>();
    for (int i = 0; i < bounds.length; i += 2) {
      IntStream.range(bounds[i], bounds[i + 1]).forEach(all::add);
    }
    return all;
  }

  private long end(String topic, IsolationLevel level) throws Exception {
    TopicPartition partition = new TopicPartition(topic, 0);
    return ClientTest.get(test.admin.listOffsets(Map.of(partition, OffsetSpec.latest()), new ListOffsetsOptions(level))
        .partitionResult(partition)).offset();
  }

  private void committedAndAborted() throws Exception {
    String topic = test.newTopic("transactions");
    try (KafkaProducer<byte[], byte[]> producer = producer(id("plain"), Map.of("batch.size", 500))) {
      producer.beginTransaction();
      send(producer, topic, 0, 0, 100);
      producer.commitTransaction();
      producer.beginTransaction();
      send(producer, topic, 0, 100, 200);
      producer.flush();
      producer.abortTransaction();
      producer.beginTransaction();
      send(producer, topic, 0, 200, 300);
      producer.flush();
      ClientTest.expect(List.of(end(topic, IsolationLevel.READ_COMMITTED), end(topic, IsolationLevel.READ_UNCOMMITTED)),
          List.of(202L, 302L));
      ClientTest.expect(readAll(topic, 0, "read_committed"), range(0, 100));
      ClientTest.expect(readAll(topic, 0, "read_uncommitted"), range(0, 300));
      producer.commitTransaction();
    }
    // Kafka answers a commit before its markers are written
    long deadline = System.currentTimeMillis() + 30000;
    while (end(topic, IsolationLevel.READ_COMMITTED) < 303 && System.currentTimeMillis() < deadline) {
      Thread.sleep(20);
    }
    ClientTest.expect(readAll(topic, 0, "read_committed"), range(0, 100, 200, 300));
    ClientTest.expect(readAll(topic, 0, "read_uncommitted"), range(0, 300));
  }

  private void manyPartitions() throws Exception {
    String topic = test.newTopic("transactions-many", 12, Map.of());
    try (KafkaProducer<byte[], byte[]> producer = producer(id("many"), Map.of())) {
      for (int transaction = 0; transaction < 10; transaction++) {
        producer.beginTransaction();
        for (int partition = 0; partition < 12; partition++) {
          send(producer, topic, partition, transaction * 10, transaction * 10 + 10);
        }
        if (transaction % 3 == 1) {
          producer.flush();
          producer.abortTransaction();
        } else {
          producer.commitTransaction();
        }
      }
    }
    for (int partition = 0; partition < 12; partition++) {
      ClientTest.expect(readAll(topic, partition, "read_committed"), range(0, 10, 20, 40, 50, 70, 80, 100));
    }
  }

  /** Ends of all kinds right after each other, empty transactions too. */
  private void backToBack() throws Exception {
    String topic = test.newTopic("transactions-back-to-back");
    List<Integer> expected = new ArrayList<>();
    try (KafkaProducer<byte[], byte[]> producer = producer(id("back-to-back"), Map.of())) {
      for (int i = 0; i < 200; i++) {
        producer.beginTransaction();
        if (i % 5 != 4) {
          send(producer, topic, 0, i, i + 1);
        }
        if (i % 2 == 0) {
          producer.commitTransaction();
        } else {
          producer.abortTransaction();
        }
        if (i % 2 == 0 && i % 5 != 4) {
          expected.add(i);
        }
      }
    }
    ClientTest.expect(readAll(topic, 0, "read_committed"), expected);
  }

  private void fenced() throws Exception {
    String topic = test.newTopic("transactions-fenced");
    try (KafkaProducer<byte[], byte[]> zombie = producer(id("fenced"), Map.of())) {
      zombie.beginTransaction();
      send(zombie, topic, 0, 0, 10);
      zombie.flush();
      try (KafkaProducer<byte[], byte[]> successor = producer(id("fenced"), Map.of())) {
        successor.beginTransaction();
        send(successor, topic, 0, 10, 20);
        successor.commitTransaction();
        try {
          send(zombie, topic, 0, 20, 30);
          zombie.commitTransaction();
          throw new AssertionError("a producer committed whose id was another's already");
        } catch (ProducerFencedException | InvalidProducerEpochException expected) {
          // either says so
        } catch (KafkaException error) {
          boolean isFenced = error.getCause() instanceof ProducerFencedException
              || error.getCause() instanceof InvalidProducerEpochException;
          ClientTest.expect(isFenced, true);
        }
      }
    }
    ClientTest.expect(readAll(topic, 0, "read_committed"), range(10, 20));
  }

  private void timedOut() throws Exception {
    String topic = test.newTopic("transactions-timed-out");
    try (KafkaProducer<byte[], byte[]> producer = producer(id("timed-out"), Map.of("transaction.timeout.ms", 1000))) {
      producer.beginTransaction();
      send(producer, topic, 0, 0, 10);
      producer.flush();
      long deadline = System.currentTimeMillis() + 60000;
      while (end(topic, IsolationLevel.READ_COMMITTED) < 11 && System.currentTimeMillis() < deadline) {
        Thread.sleep(100);
      }
      ClientTest.expect(readAll(topic, 0, "read_committed"), List.of());
      try {
        producer.commitTransaction();
        throw new AssertionError("a transaction was committed that had been aborted");
      } catch (KafkaException expected) {
        // what it is called depends on the version of both
      }
    }
  }

  private void administration() throws Exception {
    String topic = test.newTopic("transactions-admin", 2, Map.of());
    String id = id("admin");
    try (KafkaProducer<byte[], byte[]> producer = producer(id, Map.of("transaction.timeout.ms", 50000))) {
      producer.beginTransaction();
      send(producer, topic, 1, 0, 5);
      producer.flush();
      TransactionDescription described =
          ClientTest.get(test.admin.describeTransactions(List.of(id)).description(id));
      ClientTest.expect(described.state(), TransactionState.ONGOING);
      ClientTest.expect(described.topicPartitions(), Set.of(new TopicPartition(topic, 1)));
      ClientTest.expect(described.transactionTimeoutMs(), 50000L);
      List<TransactionListing> listed = ClientTest.get(test.admin.listTransactions().all()).stream()
          .filter(listing -> listing.transactionalId().equals(id)).toList();
      ClientTest.expect(listed.stream().map(TransactionListing::producerId).toList(), List.of(described.producerId()));
      TopicPartition partition = new TopicPartition(topic, 1);
      ProducerState state = ClientTest.get(test.admin.describeProducers(List.of(partition)).partitionResult(partition))
          .activeProducers().get(0);
      ClientTest.expect(state.producerId(), described.producerId());
      ClientTest.expect(state.currentTransactionStartOffset().getAsLong(), 0L);
      ClientTest.get(test.admin.fenceProducers(List.of(id)).all());
      try {
        producer.commitTransaction();
        throw new AssertionError("a fenced producer committed");
      } catch (KafkaException expected) {
        ClientTest.expect(readAll(topic, 1, "read_committed"), List.of());
      }
    }
  }

  /** Kafka's way to end what a coordinator does not know of: a marker is written by the administrator. */
  private void endedFromOutside() throws Exception {
    String topic = test.newTopic("transactions-hanging");
    TopicPartition partition = new TopicPartition(topic, 0);
    try (KafkaProducer<byte[], byte[]> producer = producer(id("hanging"), Map.of())) {
      producer.beginTransaction();
      send(producer, topic, 0, 0, 5);
      producer.flush();
      ProducerState state = ClientTest.get(test.admin.describeProducers(List.of(partition)).partitionResult(partition))
          .activeProducers().get(0);
      ClientTest.get(test.admin.abortTransaction(new AbortTransactionSpec(partition, state.producerId(),
          (short) state.producerEpoch(), state.coordinatorEpoch().orElse(0))).all());
      ClientTest.expect(end(topic, IsolationLevel.READ_COMMITTED), 6L);
      ClientTest.expect(readAll(topic, 0, "read_committed"), List.of());
      producer.abortTransaction();
    } catch (KafkaException error) {
      // the transaction goes on for its coordinator; what it says of that differs
      ClientTest.expect(readAll(topic, 0, "read_committed"), List.of());
    }
  }

  /** Every input once, though every third transaction is aborted and members come and go. */
  private void consumeTransformProduce(String protocol) throws Exception {
    String input = test.newTopic("transactions-in-" + protocol, 3, Map.of());
    String output = test.newTopic("transactions-out-" + protocol);
    int count = 300;
    test.produce(IntStream.range(0, count)
        .mapToObj(i -> new ProducerRecord<byte[], byte[]>(input, i % 3, null, ClientTest.bytes("" + i))).toList(), Map.of());
    String group = id("group-" + protocol);
    int rounds = 0;
    int done = 0;
    for (int member = 0; member < 3; member++) {
      try (KafkaConsumer<byte[], byte[]> consumer = test.consumer(Map.of("group.id", group, "auto.offset.reset",
              "earliest", "group.protocol", protocol, "max.poll.records", 20, "isolation.level", "read_committed"));
          KafkaProducer<byte[], byte[]> producer = producer(id("ctp-" + protocol), Map.of())) {
        consumer.subscribe(List.of(input));
        long deadline = System.currentTimeMillis() + 60000;
        // the first two members leave in the middle
        int goal = member < 2 ? done + 80 : count;
        while (done < goal && System.currentTimeMillis() < deadline) {
          ConsumerRecords<byte[], byte[]> records = consumer.poll(Duration.ofSeconds(1));
          if (records.isEmpty()) {
            continue;
          }
          producer.beginTransaction();
          Map<TopicPartition, OffsetAndMetadata> offsets = new HashMap<>();
          for (ConsumerRecord<byte[], byte[]> record : records) {
            producer.send(new ProducerRecord<>(output, 0, null, record.value()));
            offsets.put(new TopicPartition(input, record.partition()), new OffsetAndMetadata(record.offset() + 1));
          }
          producer.sendOffsetsToTransaction(offsets, consumer.groupMetadata());
          if (rounds++ % 3 == 2) {
            producer.abortTransaction();
            Map<TopicPartition, OffsetAndMetadata> committed = consumer.committed(offsets.keySet());
            for (TopicPartition partition : offsets.keySet()) {
              OffsetAndMetadata at = committed.get(partition);
              consumer.seek(partition, at == null ? 0 : at.offset());
            }
          } else {
            producer.commitTransaction();
            done += records.count();
          }
        }
      }
    }
    ClientTest.expect(readAll(output, 0, "read_committed").stream().sorted().toList(), range(0, count));
  }
}
