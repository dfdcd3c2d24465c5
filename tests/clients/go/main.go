// Steps that users of franz-go take, one after the other: main HOST:PORT. Prints a line per step.
package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand"
	"os"
	"reflect"
	"sort"
	"strconv"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
)

var (
	broker string
	run    = strconv.FormatInt(rand.Int63(), 36)
	admin  *kadm.Client
	failed = 0
)

func step(name string, f func(context.Context) error) {
	ctx, cancel := context.WithTimeout(context.Background(), 90*time.Second)
	defer cancel()
	if err := f(ctx); err != nil {
		failed++
		fmt.Printf("FAILED franz-go-%s\n    %.600s\n", name, err.Error())
		return
	}
	fmt.Printf("passed franz-go-%s\n", name)
}

func expect(actual, expected any) error {
	if !reflect.DeepEqual(actual, expected) {
		return fmt.Errorf("expected %.300s, got %.300s", fmt.Sprint(expected), fmt.Sprint(actual))
	}
	return nil
}

func client(opts ...kgo.Opt) (*kgo.Client, error) {
	return kgo.NewClient(append([]kgo.Opt{kgo.SeedBrokers(broker), kgo.RecordPartitioner(kgo.ManualPartitioner())}, opts...)...)
}

func newTopic(ctx context.Context, name string, partitions int32, configs map[string]*string) (string, error) {
	topic := fmt.Sprintf("franz-go-%s-%s", run, name)
	if _, err := admin.CreateTopic(ctx, partitions, 1, configs, topic); err != nil {
		return "", err
	}
	// Kafka answers before each partition is served
	for ctx.Err() == nil {
		if ends, err := admin.ListEndOffsets(ctx, topic); err == nil && ends.Error() == nil {
			return topic, nil
		}
		time.Sleep(20 * time.Millisecond)
	}
	return "", fmt.Errorf("%s is never served", topic)
}

func produce(ctx context.Context, records []*kgo.Record, opts ...kgo.Opt) error {
	c, err := client(opts...)
	if err != nil {
		return err
	}
	defer c.Close()
	return c.ProduceSync(ctx, records...).FirstErr()
}

func read(ctx context.Context, topic string, partition int32, from kgo.Offset, count int) ([]*kgo.Record, error) {
	c, err := client(kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{topic: {partition: from}}))
	if err != nil {
		return nil, err
	}
	defer c.Close()
	var records []*kgo.Record
	for len(records) < count {
		fetches := c.PollFetches(ctx)
		if err := fetches.Err(); err != nil {
			return nil, fmt.Errorf("%d of %d records: %w", len(records), count, err)
		}
		records = append(records, fetches.Records()...)
	}
	return records[:count], nil
}

func values(topic string, count, size int) []*kgo.Record {
	var records []*kgo.Record
	for i := range count {
		records = append(records, &kgo.Record{Topic: topic, Key: []byte("k" + strconv.Itoa(i)), Value: []byte(strconv.Itoa(i) + "-" + strings.Repeat("x", size))})
	}
	return records
}

func same(sent, back []*kgo.Record) error {
	for i := range sent {
		if back[i].Offset != int64(i) || !bytes.Equal(sent[i].Key, back[i].Key) || !bytes.Equal(sent[i].Value, back[i].Value) {
			return fmt.Errorf("record %d came back as offset %d, key %q, value %.50q", i, back[i].Offset, back[i].Key, back[i].Value)
		}
	}
	return nil
}

func codec(name string, codec kgo.CompressionCodec) {
	step("codec-"+name, func(ctx context.Context) error {
		topic, err := newTopic(ctx, "codec-"+name, 1, nil)
		if err != nil {
			return err
		}
		sent := values(topic, 2000, 200)
		if err := produce(ctx, sent, kgo.ProducerBatchCompression(codec)); err != nil {
			return err
		}
		back, err := read(ctx, topic, 0, kgo.NewOffset().AtStart(), len(sent))
		if err != nil {
			return err
		}
		return same(sent, back)
	})
}

func keysAndHeaders(ctx context.Context) error {
	topic, err := newTopic(ctx, "headers", 1, nil)
	if err != nil {
		return err
	}
	headers := []kgo.RecordHeader{{Key: "a", Value: []byte("1")}, {Key: "b", Value: []byte{0, 255}}, {Key: "a", Value: []byte("2")}, {Key: "none", Value: nil}}
	sent := []*kgo.Record{
		{Topic: topic, Key: []byte("key"), Value: []byte("value"), Headers: headers},
		{Topic: topic, Value: []byte("no key")},
		{Topic: topic, Key: []byte("no value")},
	}
	if err := produce(ctx, sent); err != nil {
		return err
	}
	back, err := read(ctx, topic, 0, kgo.NewOffset().AtStart(), len(sent))
	if err != nil {
		return err
	}
	if err := errors.Join(same(sent, back), expect(back[0].Headers, headers)); err != nil {
		return err
	}
	return errors.Join(expect(back[1].Key == nil, true), expect(back[2].Value == nil, true), expect(len(back[1].Headers), 0))
}

func byOffset(ctx context.Context) error {
	topic, err := newTopic(ctx, "offset", 1, nil)
	if err != nil {
		return err
	}
	if err := produce(ctx, values(topic, 100, 10)); err != nil {
		return err
	}
	back, err := read(ctx, topic, 0, kgo.NewOffset().At(57), 3)
	if err != nil {
		return err
	}
	return expect([]int64{back[0].Offset, back[1].Offset, back[2].Offset}, []int64{57, 58, 59})
}

func byTimestamp(ctx context.Context) error {
	topic, err := newTopic(ctx, "timestamp", 1, nil)
	if err != nil {
		return err
	}
	base := time.Now().Add(-100 * time.Second).Truncate(time.Millisecond)
	sent := values(topic, 20, 1)
	for i, record := range sent {
		record.Timestamp = base.Add(time.Duration(i) * time.Second)
	}
	if err := produce(ctx, sent); err != nil {
		return err
	}
	back, err := read(ctx, topic, 0, kgo.NewOffset().AfterMilli(base.UnixMilli()+4001), 1)
	if err != nil {
		return err
	}
	listed, err := admin.ListOffsetsAfterMilli(ctx, base.UnixMilli()+11000, topic)
	if err != nil {
		return err
	}
	found, _ := listed.Lookup(topic, 0)
	return errors.Join(expect(back[0].Offset, int64(5)), expect(back[0].Timestamp.UnixMilli(), base.UnixMilli()+5000), expect(found.Offset, int64(11)))
}

func idempotent(ctx context.Context) error {
	topic, err := newTopic(ctx, "idempotent", 1, nil)
	if err != nil {
		return err
	}
	sent := values(topic, 5000, 50)
	if err := produce(ctx, sent, kgo.ProducerBatchMaxBytes(4096), kgo.RequiredAcks(kgo.AllISRAcks())); err != nil {
		return err
	}
	back, err := read(ctx, topic, 0, kgo.NewOffset().AtStart(), len(sent))
	if err != nil {
		return err
	}
	return same(sent, back)
}

func manyPartitions(ctx context.Context) error {
	topic, err := newTopic(ctx, "many", 30, nil)
	if err != nil {
		return err
	}
	sent := values(topic, 6000, 20)
	for i, record := range sent {
		record.Partition = int32(i % 30)
	}
	if err := produce(ctx, sent); err != nil {
		return err
	}
	for partition := range int32(30) {
		back, err := read(ctx, topic, partition, kgo.NewOffset().AtStart(), 200)
		if err != nil {
			return err
		}
		for i, record := range back {
			if want := sent[i*30+int(partition)]; record.Offset != int64(i) || !bytes.Equal(record.Value, want.Value) {
				return fmt.Errorf("partition %d offset %d holds %q instead of %q", partition, record.Offset, record.Value, want.Value)
			}
		}
	}
	return nil
}

func administration(ctx context.Context) error {
	topic, err := newTopic(ctx, "admin", 3, map[string]*string{"retention.ms": kadm.StringPtr("7200000")})
	if err != nil {
		return err
	}
	if _, err := newTopic(ctx, "admin", 3, nil); !errors.Is(err, kerr.TopicAlreadyExists) {
		return fmt.Errorf("a topic was created twice: %v", err)
	}
	grown, err := admin.UpdatePartitions(ctx, 5, topic)
	if err != nil || grown.Error() != nil {
		return errors.Join(err, grown.Error())
	}
	listed, err := admin.ListTopics(ctx, topic)
	if err != nil {
		return err
	}
	if err := expect(len(listed[topic].Partitions), 5); err != nil {
		return err
	}
	altered, err := admin.AlterTopicConfigs(ctx, []kadm.AlterConfig{{Name: "max.message.bytes", Value: kadm.StringPtr("300000")}}, topic)
	if err != nil || altered[0].Err != nil {
		return errors.Join(err, altered[0].Err)
	}
	described, err := admin.DescribeTopicConfigs(ctx, topic)
	if err != nil {
		return err
	}
	seen := map[string]string{}
	for _, config := range described[0].Configs {
		seen[config.Key] = config.MaybeValue()
	}
	if err := errors.Join(expect(seen["retention.ms"], "7200000"), expect(seen["max.message.bytes"], "300000")); err != nil {
		return err
	}
	deleted, err := admin.DeleteTopics(ctx, topic)
	if err != nil || deleted.Error() != nil {
		return errors.Join(err, deleted.Error())
	}
	for ctx.Err() == nil {
		listed, err := admin.ListTopics(ctx)
		if err != nil {
			return err
		}
		if !listed.Has(topic) {
			return nil
		}
		time.Sleep(100 * time.Millisecond)
	}
	return fmt.Errorf("a deleted topic is still there")
}

func deleteRecords(ctx context.Context) error {
	topic, err := newTopic(ctx, "delete-records", 1, nil)
	if err != nil {
		return err
	}
	if err := produce(ctx, values(topic, 100, 10)); err != nil {
		return err
	}
	var offsets kadm.Offsets
	offsets.AddOffset(topic, 0, 40, -1)
	deleted, err := admin.DeleteRecords(ctx, offsets)
	if err != nil {
		return err
	}
	back, err := read(ctx, topic, 0, kgo.NewOffset().AtStart(), 1)
	if err != nil {
		return err
	}
	return errors.Join(expect(deleted[topic][0].LowWatermark, int64(40)), expect(back[0].Offset, int64(40)))
}

func tooLargeIsRefused(ctx context.Context) error {
	topic, err := newTopic(ctx, "large", 1, map[string]*string{"max.message.bytes": kadm.StringPtr("10000")})
	if err != nil {
		return err
	}
	err = produce(ctx, []*kgo.Record{{Topic: topic, Value: make([]byte, 50000)}}, kgo.ProducerBatchCompression(kgo.NoCompression()))
	if !errors.Is(err, kerr.MessageTooLarge) {
		return fmt.Errorf("a record above max.message.bytes: %v", err)
	}
	return nil
}

func group(ctx context.Context) error {
	topic, err := newTopic(ctx, "group", 4, nil)
	if err != nil {
		return err
	}
	sent := values(topic, 200, 1)
	for i, record := range sent {
		record.Partition = int32(i % 4)
	}
	if err := produce(ctx, sent); err != nil {
		return err
	}
	var seen []int
	for _, count := range []int{120, 80} {
		c, err := client(kgo.ConsumerGroup("franz-go-"+run), kgo.ConsumeTopics(topic), kgo.DisableAutoCommit(),
			kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
		if err != nil {
			return err
		}
		taken := 0
		for taken < count {
			fetches := c.PollRecords(ctx, min(10, count-taken))
			if err := fetches.Err(); err != nil {
				return err
			}
			for _, record := range fetches.Records() {
				number, _, _ := strings.Cut(string(record.Value), "-")
				i, err := strconv.Atoi(number)
				if err != nil {
					return err
				}
				seen = append(seen, i)
				taken++
			}
			if err := c.CommitRecords(ctx, fetches.Records()...); err != nil {
				return err
			}
		}
		c.Close()
	}
	sort.Ints(seen)
	for i, value := range seen {
		if i != value {
			return fmt.Errorf("record %d is missing or doubled", i)
		}
	}
	return expect(len(seen), 200)
}

func main() {
	broker = os.Args[1]
	c, err := kgo.NewClient(kgo.SeedBrokers(broker))
	if err != nil {
		fmt.Println("FAILED franz-go-start", err)
		os.Exit(1)
	}
	admin = kadm.NewClient(c)
	step("admin", administration)
	codec("none", kgo.NoCompression())
	codec("gzip", kgo.GzipCompression())
	codec("snappy", kgo.SnappyCompression())
	codec("lz4", kgo.Lz4Compression())
	codec("zstd", kgo.ZstdCompression())
	step("keys-and-headers", keysAndHeaders)
	step("by-offset", byOffset)
	step("by-timestamp", byTimestamp)
	step("idempotent", idempotent)
	step("many-partitions", manyPartitions)
	step("delete-records", deleteRecords)
	step("too-large-is-refused", tooLargeIsRefused)
	step("transactions", transactions)
	step("transactions-fenced", transactionsFenced)
	if strings.Contains(os.Getenv("CLIENT_GROUPS"), "classic") {
		step("group-classic", group)
		step("transactions-group", transactSessions)
	}
	if failed > 0 {
		os.Exit(1)
	}
}
