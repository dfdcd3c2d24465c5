package millrace;

import java.time.Duration;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.Random;
import java.util.stream.Collectors;
import org.apache.kafka.clients.consumer.ConsumerRecord;
import org.apache.kafka.clients.consumer.ConsumerRecords;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.clients.consumer.OffsetAndMetadata;
import org.apache.kafka.clients.producer.KafkaProducer;
import org.apache.kafka.clients.producer.ProducerRecord;
import org.apache.kafka.common.KafkaException;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.errors.TimeoutException;
import org.apache.kafka.common.serialization.StringDeserializer;
import org.apache.kafka.common.serialization.StringSerializer;

/** What tests/clients/transactions/worker.py does, with Kafka's own client. */
public final class TransactionWorker {
  private static final long PATIENCE_MS = 60_000;

  private final String broker;
  private final String name;
  private KafkaProducer<String, String> producer;

  private TransactionWorker(String broker, String name) {
    this.broker = broker;
    this.name = name;
  }

  /** Takes HOST:PORT write|transform NAME SEED and what worker.py takes after that. */
  public static void main(String[] arguments) throws Exception {
    TransactionWorker worker = new TransactionWorker(arguments[0], arguments[2]);
    if (arguments[1].equals("write")) {
      worker.write(Long.parseLong(arguments[3]), arguments[4], Integer.parseInt(arguments[5]));
    } else {
      worker.transform(arguments[4], arguments[5]);
    }
    System.exit(0);
  }

  private static void say(String fields) {
    System.out.println("{\"at\": " + System.nanoTime() / 1e9 + ", " + fields + "}");
    System.out.flush();
  }

  private static void note(String what, Exception error) {
    say("\"note\": \"" + what + ": " + String.valueOf(error).replaceAll("[\"\\\\\n]", " ") + "\"");
  }

  private static boolean isOver() throws Exception {
    // what is said to us is nothing but the end
    return System.in.available() > 0;
  }

  private Map<String, Object> config() {
    return new HashMap<>(Map.of("bootstrap.servers", broker, "reconnect.backoff.max.ms", 500, "retry.backoff.max.ms", 500,
        "socket.connection.setup.timeout.ms", 2000, "request.timeout.ms", 5000, "default.api.timeout.ms", 60000));
  }

  private void begin() throws Exception {
    while (producer == null) {
      Map<String, Object> config = config();
      config.remove("default.api.timeout.ms");
      config.putAll(Map.of("transactional.id", name, "transaction.timeout.ms", 10_000, "delivery.timeout.ms", 10_000,
          "max.block.ms", 15_000));
      KafkaProducer<String, String> fresh = new KafkaProducer<>(config, new StringSerializer(), new StringSerializer());
      try {
        fresh.initTransactions();
        producer = fresh;
      } catch (KafkaException error) {
        note("init", error);
        fresh.close(Duration.ZERO);
        Thread.sleep(100);
      }
    }
    producer.beginTransaction();
  }

  private interface Call {
    void run();
  }

  /** A commit that timed out is under way still, and may be asked for again. */
  private static void retried(Call call) {
    long deadline = System.currentTimeMillis() + PATIENCE_MS;
    while (true) {
      try {
        call.run();
        return;
      } catch (TimeoutException late) {
        if (System.currentTimeMillis() > deadline) {
          throw late;
        }
      }
    }
  }

  private String end(boolean commit) {
    try {
      if (commit) {
        retried(producer::commitTransaction);
        return "committed";
      }
      retried(producer::abortTransaction);
      return "aborted";
    } catch (KafkaException error) {
      note("end", error);
      // as the client says: only an abortable one can go on; whether the commit was begun is not known of others
      producer.close(Duration.ZERO);
      producer = null;
      return commit ? "unknown" : "aborted";
    }
  }

  private void write(long seed, String topic, int partitions) throws Exception {
    Random chance = new Random(seed);
    for (int number = 1; !isOver(); number++) {
      String transaction = name + "-" + number;
      List<ProducerRecord<String, String>> records = new ArrayList<>();
      int count = 1 + chance.nextInt(6);
      for (int i = 0; i < count; i++) {
        records.add(new ProducerRecord<>(topic, chance.nextInt(partitions), null, transaction + "-" + i));
      }
      boolean commit = chance.nextInt(4) > 0;
      begin();
      String writes = records.stream().map(r -> "[\"" + topic + "\", " + r.partition() + ", \"" + r.value() + "\"]")
          .collect(Collectors.joining(", "));
      say("\"transaction\": \"" + transaction + "\", \"writes\": [" + writes + "]");
      try {
        records.forEach(producer::send);
        if (!commit) {
          producer.flush();
        }
      } catch (KafkaException error) {
        note("produce", error);
        commit = false;
      }
      if (commit) {
        say("\"transaction\": \"" + transaction + "\", \"state\": \"committing\"");
      }
      say("\"transaction\": \"" + transaction + "\", \"state\": \"" + end(commit) + "\"");
    }
  }

  private void transform(String source, String sink) throws Exception {
    Map<String, Object> config = config();
    // for how long a member of such a group may be silent, its broker says
    config.putAll(Map.of("group.id", name + "-group", "auto.offset.reset", "earliest", "enable.auto.commit", false,
        "isolation.level", "read_committed", "max.poll.records", 50, "group.protocol", "consumer"));
    long taken = 0;
    try (KafkaConsumer<String, String> consumer =
        new KafkaConsumer<>(config, new StringDeserializer(), new StringDeserializer())) {
      consumer.subscribe(List.of(source));
      while (!isOver()) {
        ConsumerRecords<String, String> records = consumer.poll(Duration.ofMillis(500));
        if (records.isEmpty()) {
          continue;
        }
        begin();
        String state;
        try {
          Map<TopicPartition, OffsetAndMetadata> offsets = new HashMap<>();
          for (ConsumerRecord<String, String> record : records) {
            producer.send(new ProducerRecord<>(sink, record.partition(), null, record.value()));
            offsets.put(new TopicPartition(source, record.partition()), new OffsetAndMetadata(record.offset() + 1));
          }
          producer.sendOffsetsToTransaction(offsets, consumer.groupMetadata());
          state = end(true);
        } catch (KafkaException error) {
          note("transform", error);
          state = end(false);
        }
        if (state.equals("committed")) {
          taken += records.count();
          say("\"taken\": " + taken);
        } else {
          rewind(consumer);
        }
      }
    }
  }

  /** To what is committed: it is not known what became of the last transaction, or it was aborted. */
  private static void rewind(KafkaConsumer<String, String> consumer) {
    long deadline = System.currentTimeMillis() + PATIENCE_MS;
    while (System.currentTimeMillis() < deadline) {
      try {
        Map<TopicPartition, OffsetAndMetadata> committed = consumer.committed(consumer.assignment());
        committed.forEach((partition, at) -> consumer.seek(partition, at == null ? 0 : at.offset()));
        return;
      } catch (KafkaException error) {
        note("rewind", error);
      }
    }
  }
}
