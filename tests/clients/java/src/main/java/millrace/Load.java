package millrace;

import java.util.Properties;
import java.util.Random;
import org.apache.kafka.clients.producer.KafkaProducer;
import org.apache.kafka.clients.producer.ProducerRecord;
import org.apache.kafka.common.serialization.ByteArraySerializer;

/** Produces for a while as fast as answers come, and says for how long none came while some were due. */
public final class Load {
  private long due;
  private long since;
  private long longest;
  private long acknowledged;
  private Exception refused;

  /** Takes HOST:PORT TOPIC SECONDS BYTES; exits with 1 when a record was refused. */
  public static void main(String[] arguments) {
    Load load = new Load();
    load.run(arguments[0], arguments[1], Double.parseDouble(arguments[2]), Integer.parseInt(arguments[3]));
    System.out.println(load.acknowledged + " records, longest wait " + load.longest / 1_000_000 + " ms");
    if (load.refused != null) {
      System.out.println(load.refused);
      System.exit(1);
    }
  }

  private void run(String broker, String topic, double seconds, int bytes) {
    Properties config = new Properties();
    config.put("bootstrap.servers", broker);
    config.put("key.serializer", ByteArraySerializer.class.getName());
    config.put("value.serializer", ByteArraySerializer.class.getName());
    config.put("linger.ms", "5");
    config.put("max.block.ms", "120000");
    byte[] value = new byte[bytes];
    new Random(bytes).nextBytes(value);
    long end = System.nanoTime() + (long) (seconds * 1e9);
    try (KafkaProducer<byte[], byte[]> producer = new KafkaProducer<>(config)) {
      producer.partitionsFor(topic);
      while (System.nanoTime() < end) {
        sent();
        producer.send(new ProducerRecord<>(topic, value), (metadata, error) -> answered(error));
      }
    }
  }

  private synchronized void sent() {
    if (due++ == 0) {
      since = System.nanoTime();
    }
  }

  private synchronized void answered(Exception error) {
    long now = System.nanoTime();
    longest = Math.max(longest, now - since);
    since = now;
    due--;
    if (error == null) {
      acknowledged++;
    } else {
      refused = error;
    }
  }
}
