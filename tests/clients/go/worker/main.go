// One client of franz-go: worker write|transform BROKER NAME SEED [ARGUMENT...], as worker.py of tests/clients/transactions
// does it with librdkafka. Says what it does on standard output, a JSON object a line, with the time by the system's
// monotonic clock. Ends when its standard input does: what it has begun by then it ends.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"github.com/twmb/franz-go/pkg/kgo"
)

const patience = 60 * time.Second

var over atomic.Bool

// Seconds since some moment, by the clock that all processes of the machine have.
func monotonic() float64 {
	const clockMonotonic = 1
	var at syscall.Timespec
	if _, _, errno := syscall.Syscall(syscall.SYS_CLOCK_GETTIME, clockMonotonic, uintptr(unsafe.Pointer(&at)), 0); errno != 0 {
		panic(errno)
	}
	return float64(at.Sec) + float64(at.Nsec)/1e9
}

func say(fields map[string]any) {
	fields["at"] = monotonic()
	line, err := json.Marshal(fields)
	if err != nil {
		panic(err)
	}
	fmt.Println(string(line))
}

func note(what string, err error) {
	say(map[string]any{"note": fmt.Sprintf("%s: %v", what, err)})
}

func limited() (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.Background(), patience)
}

func options(broker, name string) []kgo.Opt {
	return []kgo.Opt{
		kgo.SeedBrokers(strings.Split(broker, ",")...), kgo.TransactionalID(name), kgo.TransactionTimeout(10 * time.Second),
		kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.RecordDeliveryTimeout(10 * time.Second),
		kgo.RetryTimeout(30 * time.Second), kgo.DialTimeout(2 * time.Second), kgo.DisableClientMetrics(),
	}
}

// Produces and waits for all of it: the first error.
func produce(produce func(context.Context, *kgo.Record, func(*kgo.Record, error)), records []*kgo.Record) error {
	ctx, cancel := limited()
	defer cancel()
	answers := make(chan error, len(records))
	for _, record := range records {
		produce(ctx, record, func(_ *kgo.Record, err error) { answers <- err })
	}
	var first error
	for range records {
		if err := <-answers; err != nil && first == nil {
			first = err
		}
	}
	return first
}

// Ends the client's transaction; answers how. After an error the client cannot go on, or is not to.
func end(client *kgo.Client, commit bool) (string, error) {
	ctx, cancel := limited()
	defer cancel()
	if commit {
		if err := client.EndTransaction(ctx, kgo.TryCommit); err != nil {
			return "unknown", err
		}
		return "committed", nil
	}
	// an abort was begun by nobody but us, so that it cannot have become a commit
	if err := client.AbortBufferedRecords(ctx); err != nil {
		return "aborted", err
	}
	return "aborted", client.EndTransaction(ctx, kgo.TryAbort)
}

// Values are NAME-TRANSACTION-PLACE.
func write(broker, name string, chance *rand.Rand, topic string, partitions int) error {
	var client *kgo.Client
	for number := 1; !over.Load(); number++ {
		if client == nil {
			var err error
			if client, err = kgo.NewClient(options(broker, name)...); err != nil {
				return err
			}
		}
		if err := client.BeginTransaction(); err != nil {
			note("begin", err)
			client.Close()
			client = nil
			continue
		}
		transaction := fmt.Sprintf("%s-%d", name, number)
		var writes [][]any
		var records []*kgo.Record
		for i := range 1 + chance.Intn(6) {
			partition, value := chance.Intn(partitions), fmt.Sprintf("%s-%d", transaction, i)
			writes = append(writes, []any{topic, partition, value})
			records = append(records, &kgo.Record{Topic: topic, Partition: int32(partition), Value: []byte(value)})
		}
		commit := chance.Intn(4) > 0
		say(map[string]any{"transaction": transaction, "writes": writes})
		if err := produce(client.Produce, records); err != nil {
			note("produce", err)
			commit = false
		}
		if commit {
			say(map[string]any{"transaction": transaction, "state": "committing"})
		}
		state, err := end(client, commit)
		say(map[string]any{"transaction": transaction, "state": state})
		if err != nil {
			note("end", err)
			client.Close()
			client = nil
		}
	}
	return nil
}

// Every committed value of the source once.
func transform(broker, name, source, sink string) error {
	taken := 0
	for !over.Load() {
		session, err := kgo.NewGroupTransactSession(append(options(broker, name),
			kgo.ConsumerGroup(name+"-group"), kgo.ConsumeTopics(source), kgo.RequireStableFetchOffsets(),
			// the broker's minimum: a member that stands still is one no more before it goes on
			kgo.SessionTimeout(6*time.Second), kgo.HeartbeatInterval(2*time.Second),
			kgo.FetchIsolationLevel(kgo.ReadCommitted()), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))...)
		if err != nil {
			return err
		}
		if err := copyOn(session, sink, &taken); err != nil {
			note("transform", err)
		}
		session.Close()
	}
	return nil
}

// Copies until something goes wrong that only another session mends.
func copyOn(session *kgo.GroupTransactSession, sink string, taken *int) error {
	for !over.Load() {
		ctx, cancel := context.WithTimeout(context.Background(), 500*time.Millisecond)
		fetches := session.PollRecords(ctx, 50)
		cancel()
		records := fetches.Records()
		if len(records) == 0 {
			continue
		}
		if err := session.Begin(); err != nil {
			return err
		}
		copies := make([]*kgo.Record, len(records))
		for i, record := range records {
			copies[i] = &kgo.Record{Topic: sink, Partition: record.Partition, Value: record.Value}
		}
		failed := produce(session.Produce, copies)
		end, cancel := limited()
		committed, err := session.End(end, kgo.TransactionEndTry(failed == nil))
		cancel()
		if err != nil {
			return err
		}
		if committed {
			*taken += len(records)
			say(map[string]any{"taken": *taken})
		} else {
			note("transform", fmt.Errorf("aborted after %v", failed))
		}
	}
	return nil
}

func main() {
	if len(os.Args) != 7 {
		fmt.Fprintln(os.Stderr, "worker write BROKER NAME SEED TOPIC PARTITIONS | worker transform BROKER NAME SEED SOURCE SINK")
		os.Exit(2)
	}
	go func() {
		io.Copy(io.Discard, os.Stdin)
		over.Store(true)
	}()
	kind, broker, name := os.Args[1], os.Args[2], os.Args[3]
	seed, err := strconv.ParseInt(os.Args[4], 10, 64)
	switch {
	case err != nil:
	case kind == "write":
		var partitions int
		if partitions, err = strconv.Atoi(os.Args[6]); err == nil {
			err = write(broker, name, rand.New(rand.NewSource(seed)), os.Args[5], partitions)
		}
	case kind == "transform":
		err = transform(broker, name, os.Args[5], os.Args[6])
	default:
		err = fmt.Errorf("there is no %s", kind)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
