package main

import (
	"context"
	"errors"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
)

const (
	// bounds a verification
	verifyPatience = 5 * time.Minute
	// without a record, while some are missing
	silencePatience = 30 * time.Second
)

// What a verification found of topics of which a cut may take a tail.
type verified struct {
	records, acked, lostTail int
	oldestLost               time.Duration // before the cut
}

// Reads everything back and compares it with what is known.
func (w *world) verify() (v verified) {
	client, err := kgo.NewClient(kgo.SeedBrokers(w.addresses...))
	must(err)
	defer client.Close()
	admin := kadm.NewClient(client)
	ctx, cancel := context.WithTimeout(context.Background(), verifyPatience)
	defer cancel()
	w.verifyAdministration(ctx, admin)
	for _, t := range w.topics {
		w.verifyTopic(ctx, admin, t, &v)
	}
	return v
}

// What has been read of a partition.
type reading struct {
	*partition
	start, next, end int64
	// records that were known before the end was asked for: producers that live on may write meanwhile
	known int64
	// the next number of each sender
	numbers map[uint32]uint64
	keys    map[string]keyed
	skipped bool
}

func (r *reading) isDone() bool { return r.skipped || r.next >= r.end }

func (w *world) verifyTopic(ctx context.Context, admin *kadm.Client, t *topic, v *verified) {
	readings := w.readings(ctx, admin, t)
	w.readBack(ctx, admin, t, readings, v)
	for _, r := range readings {
		if r.skipped {
			continue
		}
		r.mutex.Lock()
		switch t.promise {
		case compacted:
			w.compareKeys(r, v)
		case written:
			w.compareWritten(r, v)
		default:
			w.compareAll(r, v)
		}
		r.mutex.Unlock()
	}
}

func (w *world) readings(ctx context.Context, admin *kadm.Client, t *topic) []*reading {
	var readings []*reading
	for _, p := range t.partitions {
		p.mutex.Lock()
		known := int64(len(p.entries))
		p.mutex.Unlock()
		readings = append(readings, &reading{partition: p, known: known, numbers: map[uint32]uint64{}, keys: map[string]keyed{}})
	}
	var starts, ends kadm.ListedOffsets
	var err, err2 error
	// what is left of errors of partitions is told of each below
	_ = untilAnswered(ctx, func(ctx context.Context) error {
		starts, err = admin.ListStartOffsets(ctx, t.name)
		return errors.Join(err, starts.Error())
	})
	_ = untilAnswered(ctx, func(ctx context.Context) error {
		ends, err2 = admin.ListEndOffsets(ctx, t.name)
		return errors.Join(err2, ends.Error())
	})
	for _, r := range readings {
		start, _ := starts.Lookup(t.name, r.number)
		end, _ := ends.Lookup(t.name, r.number)
		if err := errors.Join(err, err2, start.Err, end.Err); err != nil {
			w.fault("%s/%d: its offsets: %v", t.name, r.number, err)
			r.skipped = true
			continue
		}
		r.start, r.next, r.end = start.Offset, start.Offset, end.Offset
		if start.Offset < r.partition.start {
			w.fault("%s/%d: log start %d was acknowledged, %d is there", t.name, r.number, r.partition.start, start.Offset)
		}
		if t.promise == durable && start.Offset != 0 {
			w.fault("%s/%d: log start %d", t.name, r.number, start.Offset)
		}
	}
	return readings
}

func (w *world) readBack(ctx context.Context, admin *kadm.Client, t *topic, readings []*reading, v *verified) {
	at, left := map[int32]kgo.Offset{}, 0
	for _, r := range readings {
		if !r.isDone() {
			at[r.number] = kgo.NewOffset().At(r.start)
			left++
		}
	}
	if left == 0 {
		return
	}
	client, err := kgo.NewClient(kgo.SeedBrokers(w.addresses...), kgo.FetchMaxWait(50*time.Millisecond), kgo.FetchMaxBytes(16<<20),
		kgo.FetchMaxPartitionBytes(9<<20), kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{t.name: at}),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
	must(err)
	defer client.Close()
	for last := time.Now(); left > 0; {
		poll, cancel := context.WithTimeout(ctx, time.Second)
		fetches := client.PollFetches(poll)
		cancel()
		fetches.EachError(func(topic string, number int32, err error) {
			if !errors.Is(err, context.DeadlineExceeded) {
				w.fault("%s/%d: fetch at offset %d: %v", topic, number, readings[number].next, err)
			}
		})
		fetches.EachRecord(func(record *kgo.Record) {
			r := readings[record.Partition]
			if r.isDone() {
				return
			}
			last = time.Now()
			w.take(ctx, admin, t, r, record)
			v.records++
			if r.isDone() {
				left--
			}
		})
		if left > 0 && time.Since(last) > silencePatience {
			for _, r := range readings {
				if !r.isDone() {
					w.fault("%s/%d: nothing comes after offset %d of %d to %d", t.name, r.number, r.next, r.start, r.end)
				}
			}
			return
		}
	}
}

// Takes a record: its bytes, its offset, and its place among those of its sender.
func (w *world) take(ctx context.Context, admin *kadm.Client, t *topic, r *reading, record *kgo.Record) {
	sender, number, err := parseValue(record.Value)
	if err != nil {
		w.fault("%s/%d offset %d: %v", t.name, r.number, record.Offset, err)
	}
	expected, seen := r.numbers[sender]
	switch {
	case t.promise == compacted:
		if record.Offset < r.next {
			w.fault("%s/%d: offset %d after %d", t.name, r.number, record.Offset, r.next-1)
		}
		if seen && number < expected {
			w.fault("%s/%d offset %d: record %d of %d comes again or late", t.name, r.number, record.Offset, number, sender)
		}
		r.keys[string(record.Key)] = keyed{record.Offset, sender, number}
	default:
		if record.Offset != r.next {
			if t.promise == trimmed && record.Offset > r.next && logStart(ctx, admin, t.name, r.number) >= record.Offset {
				// retention went on meanwhile, and took what came next, maybe between two fetches
				r.start, r.numbers = record.Offset, map[uint32]uint64{}
				seen = false
			} else {
				w.fault("%s/%d: offset %d after %d", t.name, r.number, record.Offset, r.next-1)
			}
		}
		// a sender's first record is 0, unless it may have been trimmed
		if (seen || t.promise != trimmed) && number != expected {
			w.fault("%s/%d offset %d: record %d of %d instead of %d: lost, twice or out of order",
				t.name, r.number, record.Offset, number, sender, expected)
		}
		if t.promise == written {
			w.compareKnown(r, record.Offset, sender, number)
		} else {
			r.note(w.report, record.Offset, sender, number, false, "the log")
		}
	}
	r.numbers[sender] = number + 1
	r.next = record.Offset + 1
}

// The offset that a partition's log starts with now, or -1.
func logStart(ctx context.Context, admin *kadm.Client, topic string, number int32) int64 {
	var starts kadm.ListedOffsets
	err := untilAnswered(ctx, func(ctx context.Context) (err error) {
		if starts, err = admin.ListStartOffsets(ctx, topic); err == nil {
			start, _ := starts.Lookup(topic, number)
			err = start.Err
		}
		return err
	})
	if start, ok := starts.Lookup(topic, number); err == nil && ok && start.Err == nil {
		return start.Offset
	}
	return -1
}

func (w *world) compareKnown(r *reading, offset int64, sender uint32, number uint64) {
	r.mutex.Lock()
	defer r.mutex.Unlock()
	if offset >= int64(len(r.entries)) {
		return
	}
	if e := r.entries[offset]; e.known && (e.sender != sender || e.number != number) {
		w.fault("%s/%d offset %d: record %d of %d instead of %d of %d", r.topic, r.number, offset, number, sender, e.number, e.sender)
	}
}

func (w *world) compareKeys(r *reading, v *verified) {
	for key, acked := range r.partition.keys {
		v.acked++
		if newest, ok := r.keys[key]; !ok || newest.offset < acked.offset {
			w.fault("%s/%d %s: offset %d was acknowledged, the newest is %d", r.topic, r.number, key, acked.offset, newest.offset)
		}
	}
	for key, newest := range r.keys {
		r.partition.keys[key] = newest
	}
}

// Of "written", a tail may be gone; what it was is noted.
func (w *world) compareWritten(r *reading, v *verified) {
	for offset := r.end; offset < r.known; offset++ {
		if e := r.entries[offset]; e.acked {
			v.lostTail++
			v.oldestLost = max(v.oldestLost, w.cutAt.Sub(e.at))
		}
	}
	if r.end < int64(len(r.entries)) {
		r.entries = r.entries[:r.end]
	}
	v.acked += len(r.entries)
}

// Nothing that is known may be gone behind the start.
func (w *world) compareAll(r *reading, v *verified) {
	lost := 0
	for offset := r.start; offset < r.known; offset++ {
		e := r.entries[offset]
		if e.acked {
			v.acked++
		}
		if !e.known || offset < r.end {
			continue
		}
		if lost == 0 {
			who := "seen by a consumer"
			if e.acked {
				who = "acknowledged"
			}
			w.fault("%s/%d: offset %d was %s, the log ends at %d", r.topic, r.number, offset, who, r.end)
		}
		lost++
	}
	if lost > 0 {
		w.fault("%s/%d: %d known records are lost", r.topic, r.number, lost)
		r.entries = r.entries[:r.end]
	}
}
