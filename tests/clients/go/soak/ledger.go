package main

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
)

// Everything that happened, and whether it was right.
type ledger struct {
	mutex sync.Mutex
	// value of each record by partition and offset
	acked, arrived map[int32]map[int64]string
	ackedCount     int
	deliveries     int
	// the furthest commit of each partition that was answered, and the furthest that was seen by OffsetFetch
	commits, seen map[int32]int64
	owner         map[int32]*member
	members       map[*member]*standing
	// partitions that were given to a member while another one still had them
	doubts []doubt
	errors map[string]int
	bad    []string
	looks  int
}

// How a live member is doing.
type standing struct {
	owned    map[int32]struct{}
	records  int
	lastAt   time.Time
	sinceAt  int
	assigned int
}

// A partition with two owners: right only if the first one learns that it is out of the group.
type doubt struct {
	first, second *member
	partition     int32
}

func newLedger() *ledger {
	return &ledger{
		acked: map[int32]map[int64]string{}, arrived: map[int32]map[int64]string{},
		commits: map[int32]int64{}, seen: map[int32]int64{}, owner: map[int32]*member{},
		members: map[*member]*standing{}, errors: map[string]int{},
	}
}

func (l *ledger) complain(format string, arguments ...any) {
	l.mutex.Lock()
	defer l.mutex.Unlock()
	l.complainLocked(format, arguments...)
}

func (l *ledger) complainLocked(format string, arguments ...any) {
	if len(l.bad) < 20 {
		l.bad = append(l.bad, fmt.Sprintf(format, arguments...))
	}
}

func (l *ledger) wrong() error {
	l.mutex.Lock()
	defer l.mutex.Unlock()
	if len(l.bad) == 0 {
		return nil
	}
	return errors.New(strings.Join(l.bad, "\n    "))
}

func (l *ledger) count(what string) {
	l.mutex.Lock()
	defer l.mutex.Unlock()
	l.errors[what]++
}

func (l *ledger) looked() {
	l.mutex.Lock()
	defer l.mutex.Unlock()
	l.looks++
}

func (l *ledger) counts() string {
	l.mutex.Lock()
	defer l.mutex.Unlock()
	return fmt.Sprintf("%d acknowledged, %d delivered, %d looks, %v", l.ackedCount, l.deliveries, l.looks, l.errors)
}

func put(records map[int32]map[int64]string, record *kgo.Record) (before string, again bool) {
	if records[record.Partition] == nil {
		records[record.Partition] = map[int64]string{}
	}
	before, again = records[record.Partition][record.Offset]
	records[record.Partition][record.Offset] = string(record.Value)
	return before, again
}

func (l *ledger) acknowledged(record *kgo.Record) {
	l.mutex.Lock()
	defer l.mutex.Unlock()
	l.ackedCount++
	if _, again := put(l.acked, record); again {
		l.complainLocked("offset %d of partition %d was given out twice", record.Offset, record.Partition)
	}
}

// Notes what a member got; false when that member is no more.
func (l *ledger) delivered(m *member, records []*kgo.Record) bool {
	l.mutex.Lock()
	defer l.mutex.Unlock()
	standing := l.members[m]
	if standing == nil {
		return false
	}
	standing.lastAt = time.Now()
	standing.records += len(records)
	l.deliveries += len(records)
	for _, record := range records {
		if before, again := put(l.arrived, record); again && before != string(record.Value) {
			l.complainLocked("offset %d of partition %d was %q and is %q", record.Offset, record.Partition, before, record.Value)
		}
	}
	return true
}

func (l *ledger) committed(records []*kgo.Record) {
	l.mutex.Lock()
	defer l.mutex.Unlock()
	for _, record := range records {
		l.commits[record.Partition] = max(l.commits[record.Partition], record.Offset+1)
	}
}

// What OffsetFetch may answer at least from now on.
func (l *ledger) leastCommitted() map[int32]int64 {
	l.mutex.Lock()
	defer l.mutex.Unlock()
	least := map[int32]int64{}
	for _, known := range []map[int32]int64{l.commits, l.seen} {
		for partition, offset := range known {
			least[partition] = max(least[partition], offset)
		}
	}
	return least
}

func (l *ledger) observe(least, found map[int32]int64) {
	l.mutex.Lock()
	defer l.mutex.Unlock()
	for partition, offset := range least {
		if at, ok := found[partition]; !ok || at < offset {
			l.complainLocked("partition %d was committed up to %d, and now up to %d (%t)", partition, offset, at, ok)
		}
	}
	for partition, offset := range found {
		l.seen[partition] = max(l.seen[partition], offset)
	}
}

func (l *ledger) begin(m *member) {
	l.mutex.Lock()
	defer l.mutex.Unlock()
	l.members[m] = &standing{owned: map[int32]struct{}{}, lastAt: time.Now()}
}

// A member is no more: it owns nothing, and nothing that it still says counts.
func (l *ledger) end(m *member) {
	l.mutex.Lock()
	defer l.mutex.Unlock()
	if standing := l.members[m]; standing != nil {
		for partition := range standing.owned {
			l.giveUp(m, standing, partition)
			l.settleDoubts(m, partition)
		}
	}
	delete(l.members, m)
}

func (l *ledger) assigned(m *member, partitions []int32) {
	l.mutex.Lock()
	defer l.mutex.Unlock()
	standing := l.members[m]
	if standing == nil {
		return
	}
	standing.assigned++
	for _, partition := range partitions {
		if first := l.owner[partition]; first != nil && first != m {
			l.doubts = append(l.doubts, doubt{first, m, partition})
		}
		l.owner[partition] = m
		standing.owned[partition] = struct{}{}
	}
}

func (l *ledger) giveUp(m *member, standing *standing, partition int32) {
	delete(standing.owned, partition)
	if l.owner[partition] == m {
		delete(l.owner, partition)
	}
}

// A member gives partitions back because it was asked to: until then nobody else may have them.
func (l *ledger) revoked(m *member, partitions []int32) {
	l.mutex.Lock()
	defer l.mutex.Unlock()
	standing := l.members[m]
	if standing == nil {
		return
	}
	for _, partition := range partitions {
		l.giveUp(m, standing, partition)
		if second := l.settleDoubts(m, partition); second != nil {
			l.complainLocked("partition %d was given to %s before %s had given it back", partition, second.name, m.name)
		}
	}
}

// A member learns that it is out of the group: somebody else may have had its partitions for a while.
func (l *ledger) lost(m *member, partitions []int32) {
	l.mutex.Lock()
	defer l.mutex.Unlock()
	standing := l.members[m]
	if standing == nil {
		return
	}
	l.errors["lost"]++
	for _, partition := range partitions {
		l.giveUp(m, standing, partition)
		l.settleDoubts(m, partition)
	}
}

func (l *ledger) settleDoubts(first *member, partition int32) (second *member) {
	kept := l.doubts[:0]
	for _, doubt := range l.doubts {
		if doubt.first == first && doubt.partition == partition {
			second = doubt.second
		} else {
			kept = append(kept, doubt)
		}
	}
	l.doubts = kept
	return second
}

func (l *ledger) ownedCount() int {
	l.mutex.Lock()
	defer l.mutex.Unlock()
	return len(l.owner)
}

// From here on progress is asked for.
func (l *ledger) mark() time.Time {
	l.mutex.Lock()
	defer l.mutex.Unlock()
	for _, standing := range l.members {
		standing.sinceAt = standing.records
	}
	return time.Now()
}

func (l *ledger) progress(m *member, since time.Time) error {
	l.mutex.Lock()
	defer l.mutex.Unlock()
	standing := l.members[m]
	if len(standing.owned) == 0 {
		return fmt.Errorf("%s has no partition", m.name)
	}
	if standing.records == standing.sinceAt {
		return fmt.Errorf("%s has %d partitions and got nothing for %s", m.name, len(standing.owned), time.Since(since).Round(time.Second))
	}
	return nil
}

func (l *ledger) describe(m *member) string {
	id, generation := m.client.GroupMetadata()
	l.mutex.Lock()
	defer l.mutex.Unlock()
	standing := l.members[m]
	if standing == nil {
		return m.name + " is leaving"
	}
	return fmt.Sprintf("%s (%s, generation %d): %d partitions, assigned %d times, %d records, the last %s ago", m.name, id, generation,
		len(standing.owned), standing.assigned, standing.records, time.Since(standing.lastAt).Round(time.Second))
}

// Whether every acknowledged record was delivered as it was sent, and is committed.
func (l *ledger) complete() error {
	l.mutex.Lock()
	defer l.mutex.Unlock()
	missing, example := 0, ""
	for partition, records := range l.acked {
		for offset, value := range records {
			if got, ok := l.arrived[partition][offset]; !ok || got != value {
				missing++
				example = fmt.Sprintf("partition %d offset %d was acknowledged as %q and delivered as %q; committed is %d", partition, offset,
					value, got, l.seen[partition])
			} else if l.seen[partition] <= offset {
				missing++
				example = fmt.Sprintf("partition %d is committed up to %d, not beyond %d", partition, l.seen[partition], offset)
			}
		}
	}
	if missing > 0 {
		return fmt.Errorf("%d acknowledged records are not delivered and committed: %s", missing, example)
	}
	return nil
}

// What only the end can tell.
func (l *ledger) verdict() error {
	l.mutex.Lock()
	for _, doubt := range l.doubts {
		l.complainLocked("partition %d was given to %s, and %s never learnt it", doubt.partition, doubt.second.name, doubt.first.name)
	}
	if l.ackedCount < recordsPerSecond {
		l.complainLocked("hardly anything was produced: %d records", l.ackedCount)
	}
	l.mutex.Unlock()
	return errors.Join(l.wrong(), l.complete())
}
