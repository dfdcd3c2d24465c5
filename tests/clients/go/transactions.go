package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
)

func numbers(topic string, from, to int) []*kgo.Record {
	var records []*kgo.Record
	for i := from; i < to; i++ {
		records = append(records, &kgo.Record{Topic: topic, Value: []byte(strconv.Itoa(i))})
	}
	return records
}

func sequence(bounds ...int) []int {
	var all []int
	for i := 0; i < len(bounds); i += 2 {
		for number := bounds[i]; number < bounds[i+1]; number++ {
			all = append(all, number)
		}
	}
	return all
}

// Numbers of everything up to the end that is committed.
func readCommitted(ctx context.Context, topic string) ([]int, error) {
	ends, err := admin.ListCommittedOffsets(ctx, topic)
	if err != nil {
		return nil, err
	}
	end, _ := ends.Lookup(topic, 0)
	c, err := client(kgo.FetchIsolationLevel(kgo.ReadCommitted()), kgo.KeepControlRecords(),
		kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{topic: {0: kgo.NewOffset().AtStart()}}))
	if err != nil {
		return nil, err
	}
	defer c.Close()
	var found []int
	for next := int64(0); next < end.Offset; {
		fetches := c.PollFetches(ctx)
		if err := fetches.Err(); err != nil {
			return nil, fmt.Errorf("at offset %d of %d: %w", next, end.Offset, err)
		}
		for _, record := range fetches.Records() {
			next = record.Offset + 1
			if record.Attrs.IsControl() {
				continue
			}
			number, err := strconv.Atoi(string(record.Value))
			if err != nil {
				return nil, err
			}
			found = append(found, number)
		}
	}
	return found, nil
}

// Kafka answers a commit before its markers are written: waits until that offset is stable.
func stable(ctx context.Context, topic string, offset int64) error {
	for ctx.Err() == nil {
		ends, err := admin.ListCommittedOffsets(ctx, topic)
		if err != nil {
			return err
		}
		if end, _ := ends.Lookup(topic, 0); end.Offset >= offset {
			return nil
		}
		time.Sleep(20 * time.Millisecond)
	}
	return fmt.Errorf("offset %d is never stable", offset)
}

func transactions(ctx context.Context) error {
	topic, err := newTopic(ctx, "transactions", 1, nil)
	if err != nil {
		return err
	}
	c, err := client(kgo.TransactionalID("franz-go-plain-" + run))
	if err != nil {
		return err
	}
	defer c.Close()
	var expected []int
	for i := range 60 {
		if err := c.BeginTransaction(); err != nil {
			return err
		}
		if i%5 != 4 { // empty ones too
			if err := c.ProduceSync(ctx, numbers(topic, i*10, i*10+10)...).FirstErr(); err != nil {
				return err
			}
		}
		end := kgo.TryCommit
		if i%2 == 1 {
			end = kgo.TryAbort
		} else if i%5 != 4 {
			expected = append(expected, sequence(i*10, i*10+10)...)
		}
		if err := c.EndTransaction(ctx, end); err != nil {
			return fmt.Errorf("transaction %d: %w", i, err)
		}
	}
	if err := stable(ctx, topic, 48*11); err != nil {
		return err
	}
	found, err := readCommitted(ctx, topic)
	return errors.Join(err, expect(found, expected))
}

func transactionsFenced(ctx context.Context) error {
	topic, err := newTopic(ctx, "transactions-fenced", 1, nil)
	if err != nil {
		return err
	}
	open := func(from, to int) (*kgo.Client, error) {
		c, err := client(kgo.TransactionalID("franz-go-fenced-" + run))
		if err != nil {
			return nil, err
		}
		if err := c.BeginTransaction(); err != nil {
			return c, err
		}
		return c, c.ProduceSync(ctx, numbers(topic, from, to)...).FirstErr()
	}
	zombie, err := open(0, 10)
	if err != nil {
		return err
	}
	defer zombie.Close()
	successor, err := open(10, 20)
	if err != nil {
		return err
	}
	defer successor.Close()
	if err := successor.EndTransaction(ctx, kgo.TryCommit); err != nil {
		return err
	}
	err = zombie.EndTransaction(ctx, kgo.TryCommit)
	isFenced := errors.Is(err, kerr.ProducerFenced) || errors.Is(err, kerr.InvalidProducerEpoch) || errors.Is(err, kerr.InvalidTxnState)
	if !isFenced {
		return fmt.Errorf("a producer whose id is another's already: %v", err)
	}
	if err := stable(ctx, topic, 22); err != nil {
		return err
	}
	found, err := readCommitted(ctx, topic)
	return errors.Join(err, expect(found, sequence(10, 20)))
}

// Three sessions share what there is, each third transaction is aborted: every input comes out once.
func transactSessions(ctx context.Context) error {
	const count = 400
	input, err := newTopic(ctx, "transactions-in", 4, nil)
	if err != nil {
		return err
	}
	output, err := newTopic(ctx, "transactions-out", 1, nil)
	if err != nil {
		return err
	}
	sent := numbers(input, 0, count)
	for i, record := range sent {
		record.Partition = int32(i % 4)
	}
	if err := produce(ctx, sent); err != nil {
		return err
	}
	sessions, done := 3, make(chan error, 3)
	var committed, rounds atomic.Int64
	inner, cancel := context.WithCancel(ctx)
	defer cancel()
	for i := range sessions {
		go func() { done <- transact(inner, i, input, output, count, &committed, &rounds) }()
	}
	for range sessions {
		if err := <-done; err != nil {
			return err
		}
	}
	var found []int
	for len(found) < count && ctx.Err() == nil {
		if found, err = readCommitted(ctx, output); err != nil {
			return err
		}
	}
	slices.Sort(found)
	return expect(found, sequence(0, count))
}

// One session until everything is committed.
func transact(ctx context.Context, i int, input, output string, count int, committed, rounds *atomic.Int64) error {
	session, err := kgo.NewGroupTransactSession(kgo.SeedBrokers(broker), kgo.TransactionalID(fmt.Sprintf("franz-go-%s-%d", run, i)),
		kgo.ConsumerGroup("franz-go-transactions-"+run), kgo.ConsumeTopics(input), kgo.RequireStableFetchOffsets(),
		kgo.FetchIsolationLevel(kgo.ReadCommitted()), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()),
		kgo.RecordPartitioner(kgo.ManualPartitioner()))
	if err != nil {
		return err
	}
	defer session.Close()
	for committed.Load() < int64(count) && ctx.Err() == nil {
		poll, cancel := context.WithTimeout(ctx, time.Second)
		fetches := session.PollRecords(poll, 20)
		cancel()
		records := fetches.Records()
		if len(records) == 0 {
			continue
		}
		if err := session.Begin(); err != nil {
			return err
		}
		for _, record := range records {
			session.Produce(ctx, &kgo.Record{Topic: output, Value: record.Value}, nil)
		}
		end := kgo.TryCommit
		if rounds.Add(1)%3 == 0 {
			end = kgo.TryAbort
		}
		isCommitted, err := session.End(ctx, end)
		if err != nil {
			return err
		}
		if isCommitted {
			committed.Add(int64(len(records)))
		}
	}
	return ctx.Err()
}
