package main

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand"
	"os"
	"sync"
	"time"
)

// What is said on the way, and what is wrong: every fault counts.
type report struct {
	mutex  sync.Mutex
	began  time.Time
	faults []string
}

func (r *report) say(format string, arguments ...any) {
	fmt.Fprintf(os.Stderr, "%6.1f s  %s\n", time.Since(r.began).Seconds(), fmt.Sprintf(format, arguments...))
}

func (r *report) fault(format string, arguments ...any) {
	r.mutex.Lock()
	defer r.mutex.Unlock()
	text := fmt.Sprintf(format, arguments...)
	r.faults = append(r.faults, text)
	r.say("FAULT %s", text)
}

func (r *report) count() int {
	r.mutex.Lock()
	defer r.mutex.Unlock()
	return len(r.faults)
}

// Values tell who sent them and the how manyth of its partition they are, and the rest of their bytes follows from that.
const (
	valueMagic       = 0xfeedbeef
	valueHeaderBytes = 20
)

var valuePool = func() []byte {
	pool := make([]byte, 8<<20)
	rand.New(rand.NewSource(7)).Read(pool)
	return pool
}()

func valueBody(sender uint32, number uint64, bytes int) []byte {
	hash := (uint64(sender)*0x9E3779B97F4A7C15 ^ number*0xD1B54A32D192ED03) >> 8
	return valuePool[hash%uint64(len(valuePool)-bytes):][:bytes]
}

func makeValue(sender uint32, number uint64, bytes int) []byte {
	value := make([]byte, valueHeaderBytes, valueHeaderBytes+bytes)
	binary.BigEndian.PutUint32(value, valueMagic)
	binary.BigEndian.PutUint32(value[4:], sender)
	binary.BigEndian.PutUint64(value[8:], number)
	binary.BigEndian.PutUint32(value[16:], uint32(bytes))
	return append(value, valueBody(sender, number, bytes)...)
}

func parseValue(value []byte) (sender uint32, number uint64, err error) {
	if len(value) < valueHeaderBytes || binary.BigEndian.Uint32(value) != valueMagic {
		return 0, 0, errors.New("a value that nobody sent")
	}
	sender, number = binary.BigEndian.Uint32(value[4:]), binary.BigEndian.Uint64(value[8:])
	size := int(binary.BigEndian.Uint32(value[16:]))
	if size != len(value)-valueHeaderBytes || !bytes.Equal(value[valueHeaderBytes:], valueBody(sender, number, size)) {
		return sender, number, errors.New("other bytes than were sent")
	}
	return sender, number, nil
}

// What is known of an offset: who had it acknowledged, or read it.
type entry struct {
	sender       uint32
	known, acked bool
	number       uint64
	at           time.Time
}

// The newest acknowledged value of a key.
type keyed struct {
	offset int64
	sender uint32
	number uint64
}

type partition struct {
	mutex   sync.Mutex
	topic   string
	number  int32
	entries []entry
	start   int64 // what DeleteRecords was acknowledged for
	keys    map[string]keyed
}

// What a power cut may take of a topic, and what else does.
type promise int

const (
	durable   promise = iota // nothing
	written                  // a tail: flush.messages is above 1
	compacted                // nothing but values with newer ones
	trimmed                  // nothing but what retention or DeleteRecords takes
)

type topic struct {
	name       string
	promise    promise
	partitions []*partition
	settings   map[string]string
}

func newTopic(name string, partitions int, promise promise, settings map[string]string) *topic {
	t := &topic{name: name, promise: promise, settings: settings}
	for number := range partitions {
		t.partitions = append(t.partitions, &partition{topic: name, number: int32(number), keys: map[string]keyed{}})
	}
	return t
}

// Notes that an offset holds a record, as "who" says.
func (p *partition) note(r *report, offset int64, sender uint32, number uint64, acked bool, who string) {
	p.mutex.Lock()
	defer p.mutex.Unlock()
	for int64(len(p.entries)) <= offset {
		p.entries = append(p.entries, entry{})
	}
	e := &p.entries[offset]
	if e.known && (e.sender != sender || e.number != number) {
		r.fault("%s/%d offset %d: %s has record %d of %d, known was %d of %d",
			p.topic, p.number, offset, who, number, sender, e.number, e.sender)
	}
	if !e.known || acked && !e.acked {
		e.at = time.Now()
	}
	e.known, e.sender, e.number = true, sender, number
	e.acked = e.acked || acked
}

// Notes an acknowledged value of a key.
func (p *partition) noteKey(key string, offset int64, sender uint32, number uint64) {
	p.mutex.Lock()
	defer p.mutex.Unlock()
	if k, ok := p.keys[key]; !ok || offset >= k.offset {
		p.keys[key] = keyed{offset, sender, number}
	}
}
