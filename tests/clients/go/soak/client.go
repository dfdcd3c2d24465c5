package main

import (
	"context"
	"fmt"
	"net"
	"strconv"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
)

// Connections that can be cut all at once and for good.
type wires struct {
	mutex sync.Mutex
	open  map[net.Conn]struct{}
	cut   bool
}

func (w *wires) dial(ctx context.Context, network, host string) (net.Conn, error) {
	c, err := (&net.Dialer{Timeout: 5 * time.Second}).DialContext(ctx, network, host)
	if err != nil {
		return nil, err
	}
	w.mutex.Lock()
	defer w.mutex.Unlock()
	if w.cut {
		c.Close()
		return nil, net.ErrClosed
	}
	w.open[c] = struct{}{}
	return c, nil
}

func (w *wires) cutAll() {
	w.mutex.Lock()
	defer w.mutex.Unlock()
	w.cut = true
	for c := range w.open {
		c.Close()
	}
}

// A consumer. Records count as delivered before they are committed, and not at all once it has crashed.
type member struct {
	name   string
	client *kgo.Client
	wires  *wires
	ledger *ledger
	cancel context.CancelFunc
	done   chan struct{}
}

func newMember(name, address, protocol string, l *ledger) (*member, error) {
	ctx, cancel := context.WithCancel(context.Background())
	m := &member{name: name, wires: &wires{open: map[net.Conn]struct{}{}}, ledger: l, cancel: cancel, done: make(chan struct{})}
	opts := []kgo.Opt{
		kgo.SeedBrokers(address), kgo.ClientID(name), kgo.Dialer(m.wires.dial), kgo.DisableClientMetrics(),
		kgo.ConsumerGroup(group), kgo.ConsumeTopics(topic), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()),
		kgo.DisableAutoCommit(), kgo.BlockRebalanceOnPoll(), kgo.FetchMaxWait(time.Second),
		kgo.SessionTimeout(10 * time.Second), kgo.HeartbeatInterval(time.Second), kgo.MetadataMinAge(250 * time.Millisecond),
		kgo.OnPartitionsAssigned(func(_ context.Context, _ *kgo.Client, given map[string][]int32) { l.assigned(m, given[topic]) }),
		kgo.OnPartitionsRevoked(func(_ context.Context, _ *kgo.Client, taken map[string][]int32) { l.revoked(m, taken[topic]) }),
		kgo.OnPartitionsLost(func(_ context.Context, _ *kgo.Client, lost map[string][]int32) { l.lost(m, lost[topic]) }),
	}
	if protocol == "consumer" {
		opts = append(opts, kgo.ServerSideBalancer(), kgo.Balancers(kgo.StickyBalancer()))
	}
	var err error
	if m.client, err = kgo.NewClient(opts...); err != nil {
		cancel()
		return nil, err
	}
	l.begin(m)
	go m.consume(ctx)
	return m, nil
}

func (m *member) consume(ctx context.Context) {
	defer close(m.done)
	for {
		fetches := m.client.PollRecords(ctx, 500)
		if ctx.Err() != nil {
			m.client.AllowRebalance()
			return
		}
		fetches.EachError(func(_ string, _ int32, err error) { m.ledger.count("fetch: " + err.Error()) })
		records := fetches.Records()
		if len(records) > 0 && m.ledger.delivered(m, records) {
			commit, cancel := context.WithTimeout(ctx, 30*time.Second)
			if err := m.client.CommitRecords(commit, records...); err != nil {
				m.ledger.count("commit: " + err.Error())
			} else {
				m.ledger.committed(records)
			}
			cancel()
		}
		m.client.AllowRebalance()
	}
}

// Ends as a process that is killed: nobody hears of it.
func (m *member) crash() {
	m.ledger.end(m)
	m.wires.cutAll()
	m.cancel()
	go m.client.CloseAllowingRebalance()
}

// Ends as a process that is stopped: leaves the group and closes its connections.
func (m *member) leave() {
	m.cancel()
	go func() {
		<-m.done
		m.client.CloseAllowingRebalance()
		m.ledger.end(m)
	}()
}

// Writes to all partitions in turn for as long as it is not stopped.
type producer struct {
	client *kgo.Client
	stopIt chan struct{}
	done   chan struct{}
}

// Records of a second over all partitions.
const recordsPerSecond = 500

func newProducer(address string, partitions int32, l *ledger) (*producer, error) {
	client, err := kgo.NewClient(kgo.SeedBrokers(address), kgo.RecordPartitioner(kgo.ManualPartitioner()),
		kgo.DisableClientMetrics(), kgo.ProducerLinger(5*time.Millisecond), kgo.MetadataMinAge(100*time.Millisecond))
	if err != nil {
		return nil, err
	}
	p := &producer{client: client, stopIt: make(chan struct{}), done: make(chan struct{})}
	go func() {
		defer close(p.done)
		for number := uint64(0); ; number++ {
			select {
			case <-p.stopIt:
				return
			case <-time.After(time.Second / recordsPerSecond):
			}
			record := &kgo.Record{Topic: topic, Partition: int32(number % uint64(partitions)), Value: []byte(strconv.FormatUint(number, 10))}
			client.Produce(context.Background(), record, func(record *kgo.Record, err error) {
				if err != nil {
					l.complain("a record was not acknowledged: %v", err)
				} else {
					l.acknowledged(record)
				}
			})
		}
	}()
	return p, nil
}

// Stops, once all is acknowledged.
func (p *producer) stop() error {
	close(p.stopIt)
	<-p.done
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := p.client.Flush(ctx); err != nil {
		return fmt.Errorf("what was produced is never acknowledged: %w", err)
	}
	p.client.Close()
	return nil
}
