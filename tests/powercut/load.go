package main

import (
	"context"
	"fmt"
	"math/rand"
	"sync"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
)

// bounds each wait for a client that goes away
const clientPatience = time.Minute

// All that is written over the cuts of one file system, and what is known of it.
type world struct {
	*report
	addresses []string
	replicas  int16
	topics    []*topic
	survivors []*loader
	admin     *expectations
	senders   atomic.Uint32
	mutex     sync.Mutex
	ids       map[int64]string // producer ids, and whose they are
	acked     atomic.Int64
	ackedSize atomic.Int64
	cutAt     time.Time
}

func newWorld(report *report, topics []*topic, replicas int16, addresses ...string) *world {
	return &world{report: report, addresses: addresses, replicas: replicas, topics: topics, ids: map[int64]string{}, admin: newExpectations()}
}

func allTopics() []*topic {
	return []*topic{
		newTopic("small", 6, durable, map[string]string{"segment.bytes": "1048576"}),
		newTopic("plain", 2, durable, nil),
		newTopic("large", 3, durable, map[string]string{"segment.bytes": "4194304", "max.message.bytes": "8388608"}),
		newTopic("written", 3, written, map[string]string{"flush.messages": "10000"}),
		newTopic("written-large", 2, written, map[string]string{
			"flush.messages": "100000", "max.message.bytes": "8388608", "segment.bytes": "4194304"}),
		newTopic("compacted", 2, compacted, map[string]string{
			"cleanup.policy": "compact", "segment.bytes": "1048576", "min.cleanable.dirty.ratio": "0.01"}),
		newTopic("retained", 2, trimmed, map[string]string{"retention.bytes": "3145728", "segment.bytes": "1048576"}),
		newTopic("trimmed", 2, trimmed, map[string]string{"segment.bytes": "1048576"}),
	}
}

func (w *world) topic(name string) *topic {
	for _, t := range w.topics {
		if t.name == name {
			return t
		}
	}
	panic("no topic " + name)
}

func (w *world) create() {
	client, err := kgo.NewClient(kgo.SeedBrokers(w.addresses...))
	must(err)
	defer client.Close()
	admin := kadm.NewClient(client)
	ctx, cancel := context.WithTimeout(context.Background(), clientPatience)
	defer cancel()
	for _, t := range w.topics {
		settings := map[string]*string{}
		for key, value := range t.settings {
			settings[key] = &value
		}
		if w.replicas > 1 { // who acknowledges is never alone with it
			enough := fmt.Sprint(w.replicas - 1)
			settings["min.insync.replicas"] = &enough
		}
		made, err := admin.CreateTopic(ctx, int32(len(t.partitions)), w.replicas, settings, t.name)
		must(err)
		must(made.Err)
	}
	backoff := "200"
	_, err = admin.AlterBrokerConfigs(ctx, []kadm.AlterConfig{{Op: kadm.SetConfig, Name: "log.cleaner.backoff.ms", Value: &backoff}})
	must(err)
}

// What a producer writes, and how.
type shape struct {
	name             string
	topics           []string
	bytesMin, bytes  int
	burst            int
	linger, pauseMax time.Duration
	batchBytes       int32
}

// One idempotent producer.
type loader struct {
	*world
	shape
	client *kgo.Client
	sender uint32
	next   map[*partition]uint64
	stop   chan struct{}
	done   sync.WaitGroup
	gone   atomic.Bool
	failed atomic.Int64
}

func (w *world) load(s shape, seed int64) *loader {
	l := &loader{world: w, shape: s, next: map[*partition]uint64{}, stop: make(chan struct{}), sender: w.senders.Add(1)}
	client, err := kgo.NewClient(kgo.SeedBrokers(w.addresses...), kgo.RequiredAcks(kgo.AllISRAcks()),
		kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.ProducerBatchCompression(kgo.NoCompression()),
		kgo.ProducerLinger(s.linger), kgo.ProducerBatchMaxBytes(s.batchBytes), kgo.MaxBufferedRecords(4*s.burst),
		kgo.MaxBufferedBytes(32<<20), kgo.UnknownTopicRetries(-1), kgo.RecordRetries(1<<30),
		// a producer that outlives the cuts goes on for as long as they take
		kgo.RetryTimeout(10*time.Minute), kgo.RetryBackoffFn(func(int) time.Duration { return 100 * time.Millisecond }),
		kgo.DialTimeout(2*time.Second))
	must(err)
	l.client = client
	l.done.Add(1)
	go func() {
		defer l.done.Done()
		random := rand.New(rand.NewSource(seed))
		for !l.stopped() {
			t := w.topic(s.topics[random.Intn(len(s.topics))])
			p := t.partitions[random.Intn(len(t.partitions))]
			for range 1 + random.Intn(s.burst) {
				l.produce(t, p, random)
			}
			time.Sleep(time.Duration(random.Int63n(int64(s.pauseMax))))
		}
	}()
	go l.noteID()
	return l
}

func (l *loader) stopped() bool {
	select {
	case <-l.stop:
		return true
	default:
		return false
	}
}

func (l *loader) produce(t *topic, p *partition, random *rand.Rand) {
	number := l.next[p]
	l.next[p]++
	value := makeValue(l.sender, number, l.bytesMin+random.Intn(l.bytes-l.bytesMin))
	record := &kgo.Record{Topic: t.name, Partition: p.number, Value: value}
	if t.promise == compacted {
		record.Key = fmt.Appendf(nil, "key-%03d", random.Intn(300))
	}
	l.client.Produce(context.Background(), record, func(record *kgo.Record, err error) {
		if err != nil {
			if !l.gone.Load() && l.failed.Add(1) == 1 {
				l.say("%s: %s/%d: %v", l.name, record.Topic, record.Partition, err)
			}
			return
		}
		l.acked.Add(1)
		l.ackedSize.Add(int64(len(record.Value)))
		if t.promise == compacted {
			p.noteKey(string(record.Key), record.Offset, l.sender, number)
		} else {
			p.note(l.report, record.Offset, l.sender, number, true, "an acknowledgement")
		}
	})
}

// A producer id is never given twice.
func (l *loader) noteID() {
	ctx, cancel := context.WithTimeout(context.Background(), clientPatience)
	defer cancel()
	id, _, err := l.client.ProducerID(ctx)
	if err != nil {
		return
	}
	l.mutex.Lock()
	defer l.mutex.Unlock()
	if other, ok := l.ids[id]; ok && other != l.name {
		l.fault("producer id %d was given to %s and to %s", id, other, l.name)
	}
	l.ids[id] = l.name
}

// The producer is gone, with whatever it had under way.
func (l *loader) crash() {
	l.gone.Store(true)
	close(l.stop)
	ctx, cancel := context.WithTimeout(context.Background(), clientPatience)
	defer cancel()
	go l.client.Close()
	_ = l.client.AbortBufferedRecords(ctx)
	l.done.Wait()
}

// Everything is acknowledged in the end.
func (l *loader) finish() {
	close(l.stop)
	l.done.Wait()
	ctx, cancel := context.WithTimeout(context.Background(), clientPatience)
	defer cancel()
	if err := l.client.Flush(ctx); err != nil {
		l.fault("%s, which lived on over all cuts, cannot finish: %v", l.name, err)
	}
	if failed := l.failed.Load(); failed > 0 {
		l.fault("%d records of %s, which lived on over all cuts, failed", failed, l.name)
	}
	l.gone.Store(true)
	go l.client.Close()
}

// A consumer at the end of everything that is durable: what it has seen must stay too.
func (w *world) tail(stop chan struct{}) *sync.WaitGroup {
	at := map[string]map[int32]kgo.Offset{}
	for _, t := range w.topics {
		if t.promise == durable || t.promise == trimmed {
			at[t.name] = map[int32]kgo.Offset{}
			for _, p := range t.partitions {
				at[t.name][p.number] = kgo.NewOffset().AtEnd()
			}
		}
	}
	client, err := kgo.NewClient(kgo.SeedBrokers(w.addresses...), kgo.ConsumePartitions(at), kgo.FetchMaxWait(100*time.Millisecond))
	must(err)
	var ended sync.WaitGroup
	ended.Add(1)
	go func() {
		defer ended.Done()
		defer func() { go client.Close() }()
		for {
			ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
			fetches := client.PollFetches(ctx)
			cancel()
			fetches.EachRecord(func(record *kgo.Record) {
				sender, number, err := parseValue(record.Value)
				if err != nil {
					w.fault("%s/%d offset %d: a consumer at the end got %v", record.Topic, record.Partition, record.Offset, err)
					return
				}
				p := w.topic(record.Topic).partitions[record.Partition]
				p.note(w.report, record.Offset, sender, number, false, "a consumer at the end")
			})
			select {
			case <-stop:
				return
			default:
			}
		}
	}()
	return &ended
}
