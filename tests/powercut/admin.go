package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand"
	"sync"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
)

const (
	group = "committed"
	// of "small", which the group commits
	committedPartitions = 6
	// retention.ms of "plain" counts up from there
	settingBase = 1_000_000
	// bounds a request that the power may cut off
	adminPatience = 3 * time.Second
)

// How far the life of a short-lived topic has got.
type life int

const (
	asked life = iota
	created
	filled
	deleteAsked
	deleted
)

// Records in each short-lived topic, over its partitions in turn.
const (
	shortLivedRecords    = 6
	shortLivedPartitions = 3
)

// What must be true of topics, offsets and settings: at least what was acknowledged, at most what was sent.
type expectations struct {
	mutex         sync.Mutex
	lives         map[string]life
	committed     [committedPartitions]atomic.Int64
	commitsSent   [committedPartitions]atomic.Int64
	setting, sent atomic.Int64
}

func newExpectations() *expectations { return &expectations{lives: map[string]life{}} }

func (e *expectations) set(name string, l life) {
	e.mutex.Lock()
	defer e.mutex.Unlock()
	e.lives[name] = l
}

// Topics come and go, offsets are committed, a setting changes, records are deleted, until "stop".
func (w *world) administrate(stop chan struct{}, seed int64) *sync.WaitGroup {
	client, err := kgo.NewClient(kgo.SeedBrokers(w.addresses...), kgo.RequiredAcks(kgo.AllISRAcks()),
		kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.DisableIdempotentWrite(), kgo.UnknownTopicRetries(3),
		kgo.RetryTimeout(adminPatience), kgo.RecordDeliveryTimeout(adminPatience))
	must(err)
	admin := kadm.NewClient(client)
	var ended sync.WaitGroup
	repeat := func(pauseMax time.Duration, do func(ctx context.Context, random *rand.Rand)) {
		ended.Add(1)
		random := rand.New(rand.NewSource(seed))
		seed++
		go func() {
			defer ended.Done()
			for {
				select {
				case <-stop:
					return
				case <-time.After(time.Duration(random.Int63n(int64(pauseMax)))):
				}
				ctx, cancel := context.WithTimeout(context.Background(), adminPatience)
				do(ctx, random)
				cancel()
			}
		}()
	}
	repeat(300*time.Millisecond, w.shortLived(client, admin, seed))
	repeat(10*time.Millisecond, func(ctx context.Context, random *rand.Rand) { w.commit(ctx, admin, random) })
	repeat(400*time.Millisecond, func(ctx context.Context, _ *rand.Rand) { w.alter(ctx, admin) })
	repeat(300*time.Millisecond, func(ctx context.Context, random *rand.Rand) { w.deleteRecords(ctx, admin, random) })
	go func() { <-stop; client.Close() }()
	return &ended
}

func (w *world) shortLived(client *kgo.Client, admin *kadm.Client, seed int64) func(context.Context, *rand.Rand) {
	serial, alive := 0, []string{}
	return func(ctx context.Context, random *rand.Rand) {
		serial++
		name := fmt.Sprintf("short-lived-%d-%d", seed, serial)
		w.admin.set(name, asked)
		made, err := admin.CreateTopic(ctx, shortLivedPartitions, w.replicas, nil, name)
		if err != nil || made.Err != nil {
			return
		}
		w.admin.set(name, created)
		alive = append(alive, name)
		var records []*kgo.Record
		for number := range shortLivedRecords {
			value := makeValue(0, uint64(number), 100+number*1000)
			records = append(records, &kgo.Record{Topic: name, Partition: int32(number % shortLivedPartitions), Value: value})
		}
		if client.ProduceSync(ctx, records...).FirstErr() == nil {
			w.admin.set(name, filled)
		}
		if len(alive) > 4 {
			at := random.Intn(len(alive))
			name := alive[at]
			alive = append(alive[:at], alive[at+1:]...)
			w.admin.set(name, deleteAsked)
			if done, err := admin.DeleteTopic(ctx, name); err == nil && done.Err == nil {
				w.admin.set(name, deleted)
			}
		}
	}
}

func (w *world) commit(ctx context.Context, admin *kadm.Client, random *rand.Rand) {
	p := random.Intn(committedPartitions)
	value := w.admin.commitsSent[p].Add(1)
	offsets := kadm.Offsets{}
	offsets.AddOffset("small", int32(p), value, -1)
	if done, err := admin.CommitOffsets(ctx, group, offsets); err == nil && done.Error() == nil {
		w.admin.committed[p].Store(value)
	}
}

func (w *world) alter(ctx context.Context, admin *kadm.Client) {
	value := w.admin.sent.Add(1)
	text := fmt.Sprint(settingBase + value)
	change := []kadm.AlterConfig{{Op: kadm.SetConfig, Name: "retention.ms", Value: &text}}
	if done, err := admin.AlterTopicConfigs(ctx, change, "plain"); err == nil && len(done) == 1 && done[0].Err == nil {
		w.admin.setting.Store(value)
	}
}

func (w *world) deleteRecords(ctx context.Context, admin *kadm.Client, random *rand.Rand) {
	t := w.topic("trimmed")
	p := t.partitions[random.Intn(len(t.partitions))]
	p.mutex.Lock()
	known := int64(len(p.entries))
	p.mutex.Unlock()
	if known < 50 {
		return
	}
	to := known - 1 - random.Int63n(min(known-1, 200))
	offsets := kadm.Offsets{}
	offsets.AddOffset(t.name, p.number, to, -1)
	if done, err := admin.DeleteRecords(ctx, offsets); err == nil && done.Error() == nil {
		p.mutex.Lock()
		p.start = max(p.start, to)
		p.mutex.Unlock()
	}
}

// Asks until there is an answer, or an error that does not pass: a broker that was just started looks for who leads what, and
// one on a busy machine may answer late.
func untilAnswered(ctx context.Context, ask func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, clientPatience)
	defer cancel()
	for {
		err := ask(ctx)
		var said *kerr.Error
		if err == nil || ctx.Err() != nil || errors.As(err, &said) && !said.Retriable {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// After a cut.
func (w *world) verifyAdministration(ctx context.Context, admin *kadm.Client) {
	w.verifyLives(ctx, admin)
	var got kadm.OffsetResponses
	if err := untilAnswered(ctx, func(ctx context.Context) (err error) {
		got, err = admin.FetchOffsets(ctx, group)
		return errors.Join(err, got.Error())
	}); err == nil {
		for p := range w.admin.committed {
			offset, _ := got.Lookup("small", int32(p))
			at := max(offset.At, 0)
			if acked, sent := w.admin.committed[p].Load(), w.admin.commitsSent[p].Load(); at < acked || at > sent {
				w.fault("partition %d of the group: commit %d was acknowledged, %d is there, %d was sent", p, acked, at, sent)
			} else {
				w.admin.committed[p].Store(at)
			}
		}
	} else if w.admin.committed[0].Load() > 0 {
		w.fault("committed offsets: %v", err)
	}
	var described kadm.ResourceConfigs
	err := untilAnswered(ctx, func(ctx context.Context) (err error) {
		if described, err = admin.DescribeTopicConfigs(ctx, "plain"); err == nil && len(described) == 1 {
			err = described[0].Err
		}
		return err
	})
	if err != nil || len(described) != 1 {
		w.fault("settings: %v", err)
		return
	}
	for _, setting := range described[0].Configs {
		if setting.Key == "retention.ms" && w.admin.setting.Load() > 0 {
			var is int64
			_, _ = fmt.Sscan(setting.MaybeValue(), &is)
			if is -= settingBase; is < w.admin.setting.Load() || is > w.admin.sent.Load() {
				w.fault("setting %d was acknowledged, %d is there", w.admin.setting.Load(), is)
			}
		}
	}
}

func (w *world) verifyLives(ctx context.Context, admin *kadm.Client) {
	var list kadm.TopicDetails
	if err := untilAnswered(ctx, func(ctx context.Context) (err error) {
		list, err = admin.ListTopics(ctx)
		return err
	}); err != nil {
		w.fault("list of topics: %v", err)
		return
	}
	w.admin.mutex.Lock()
	defer w.admin.mutex.Unlock()
	for name, life := range w.admin.lives {
		detail, there := list[name]
		there = there && detail.Err == nil
		switch {
		case (life == created || life == filled) && !there:
			w.fault("topic %s was created and is gone", name)
		case life == deleted && there:
			w.fault("topic %s was deleted and is back", name)
		}
		if life == filled && there {
			w.verifyShortLived(name)
		}
		switch {
		case !there:
			w.admin.lives[name] = deleted
		case life == asked || life == deleteAsked:
			w.admin.lives[name] = created
		}
	}
}

func (w *world) verifyShortLived(name string) {
	at := map[int32]kgo.Offset{}
	for number := range int32(shortLivedPartitions) {
		at[number] = kgo.NewOffset().At(0)
	}
	client, err := kgo.NewClient(kgo.SeedBrokers(w.addresses...), kgo.FetchMaxWait(50*time.Millisecond),
		kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{name: at}))
	must(err)
	defer client.Close()
	got := map[uint64]bool{}
	ctx, cancel := context.WithTimeout(context.Background(), clientPatience)
	defer cancel()
	for len(got) < shortLivedRecords && ctx.Err() == nil {
		client.PollFetches(ctx).EachRecord(func(record *kgo.Record) {
			sender, number, err := parseValue(record.Value)
			if err != nil || sender != 0 || int32(number%shortLivedPartitions) != record.Partition ||
				record.Offset != int64(number/shortLivedPartitions) {
				w.fault("%s/%d offset %d: another record than was written", name, record.Partition, record.Offset)
			}
			got[number] = true
		})
	}
	if len(got) != shortLivedRecords {
		w.fault("%s: %d of %d acknowledged records are there", name, len(got), shortLivedRecords)
	}
}
