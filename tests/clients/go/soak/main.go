// A consumer group in trouble: members come, leave and crash, the broker is killed, a producer goes on all the time.
//
//	soak --binary PATH [--protocol classic|consumer] [--members N] [--partitions N] [--seconds N] [--kills N] [--seed N]
//
// It starts PATH serve itself, on an empty folder. Checked is that every acknowledged record is delivered at least once,
// that committed offsets never go back, that no partition has two owners within a generation, and that in the end every
// member has partitions and gets on with them. Prints a line per step; what happens meanwhile goes to standard error.
package main

import (
	"context"
	"flag"
	"fmt"
	"math/rand"
	"os"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
)

const (
	topic = "soak"
	group = "soak"
	// bounds each wait for something that must happen: several session and rebalance timeouts
	patience = 3 * time.Minute
)

type soak struct {
	protocol   string
	members    int
	partitions int32
	seconds    int
	kills      int
	random     *rand.Rand
	broker     *broker
	ledger     *ledger
	admin      *kadm.Client
	live       []*member
	started    int
	began      time.Time
	disturbed  map[string]int
}

func main() {
	binary := flag.String("binary", "", "the broker's `PATH`")
	s := soak{disturbed: map[string]int{}, began: time.Now()}
	flag.StringVar(&s.protocol, "protocol", "consumer", "classic or consumer")
	flag.IntVar(&s.members, "members", 6, "members of the group")
	partitions := flag.Int("partitions", 60, "partitions of the topic")
	flag.IntVar(&s.seconds, "seconds", 30, "how long it is disturbed")
	flag.IntVar(&s.kills, "kills", 2, "how often the broker is killed meanwhile")
	seed := flag.Int64("seed", time.Now().UnixNano(), "of what is done when")
	flag.Parse()
	s.partitions = int32(*partitions)
	s.random = rand.New(rand.NewSource(*seed))
	s.ledger = newLedger()
	if *binary == "" || flag.NArg() > 0 || (s.protocol != "classic" && s.protocol != "consumer") || int(s.partitions) < s.members {
		flag.Usage()
		os.Exit(2)
	}
	name := "group-soak-" + s.protocol
	err := s.run(*binary)
	if s.broker != nil {
		s.broker.remove()
	}
	if err != nil {
		fmt.Printf("FAILED %s (seed %d)\n    %s\n", name, *seed, err)
		os.Exit(1)
	}
	fmt.Printf("passed %s\n", name)
}

func (s *soak) say(format string, arguments ...any) {
	fmt.Fprintf(os.Stderr, "%4.0f s  %s\n", time.Since(s.began).Seconds(), fmt.Sprintf(format, arguments...))
}

func (s *soak) run(binary string) (err error) {
	if s.broker, err = newBroker(binary); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = fmt.Errorf("%w%s\n    the broker's last words:\n%s", err, s.describe(), s.broker.lastWords())
		}
	}()
	if err := s.broker.start(); err != nil {
		return err
	}
	client, err := kgo.NewClient(kgo.SeedBrokers(s.broker.address), kgo.MetadataMinAge(100*time.Millisecond))
	if err != nil {
		return err
	}
	defer client.Close()
	s.admin = kadm.NewClient(client)
	if err := s.createTopic(); err != nil {
		return err
	}
	s.say("before: %s", s.broker.usage())
	producer, err := newProducer(s.broker.address, s.partitions, s.ledger)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	watching := make(chan struct{})
	go func() { s.watch(ctx); close(watching) }()
	defer func() { cancel(); <-watching }()

	if err := s.disturb(); err != nil {
		return err
	}
	s.say("left in peace; so far %v, %s", s.disturbed, s.ledger.counts())
	if err := s.settle(); err != nil {
		return err
	}
	s.say("settled")
	if err := producer.stop(); err != nil {
		return err
	}
	if err := s.drain(); err != nil {
		return err
	}
	s.say("drained: %s", s.ledger.counts())
	for len(s.live) > 0 {
		s.leave(0)
	}
	if err := s.afterwards(); err != nil {
		return err
	}
	cancel()
	<-watching
	if s.ledger.looks == 0 {
		return fmt.Errorf("committed offsets and owners were never looked at")
	}
	return s.ledger.verdict()
}

func (s *soak) createTopic() error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if _, err := s.admin.CreateTopic(ctx, s.partitions, 1, nil, topic); err != nil {
		return err
	}
	return nil
}

// Disturbs for as long as wanted.
func (s *soak) disturb() error {
	end := time.Now().Add(time.Duration(s.seconds) * time.Second)
	every := time.Duration(s.seconds) * time.Second / time.Duration(s.kills+1)
	kill := time.Now().Add(every)
	for len(s.live) < s.members {
		if err := s.join(); err != nil {
			return err
		}
	}
	report := time.Now()
	for time.Now().Before(end) {
		time.Sleep(time.Duration(s.random.Int63n(int64(4 * time.Second))))
		if time.Now().After(kill) && s.disturbed["killed"] < s.kills {
			kill = kill.Add(every)
			if err := s.killBroker(); err != nil {
				return err
			}
		} else if err := s.disturbMembers(); err != nil {
			return err
		}
		if time.Since(report) > 15*time.Second {
			report = time.Now()
			s.say("%d members, %s, %s", len(s.live), s.ledger.counts(), s.broker.usage())
		}
		if err := s.ledger.wrong(); err != nil {
			return err
		}
	}
	for len(s.live) < s.members {
		if err := s.join(); err != nil {
			return err
		}
	}
	return nil
}

func (s *soak) disturbMembers() error {
	count := 1
	if s.random.Intn(8) == 0 {
		count += s.members / 10
	}
	what := s.random.Intn(3)
	for range count {
		switch {
		case len(s.live) <= s.members*6/10 || (what == 0 && len(s.live) < s.members+s.members/10):
			if err := s.join(); err != nil {
				return err
			}
		case what == 1:
			s.leave(s.random.Intn(len(s.live)))
		default:
			s.disturbed["crashed"]++
			i := s.random.Intn(len(s.live))
			s.live[i].crash()
			s.live = append(s.live[:i], s.live[i+1:]...)
		}
	}
	return nil
}

func (s *soak) join() error {
	s.disturbed["joined"]++
	s.started++
	m, err := newMember(fmt.Sprintf("member-%d", s.started), s.broker.address, s.protocol, s.ledger)
	if err == nil {
		s.live = append(s.live, m)
	}
	return err
}

func (s *soak) leave(i int) {
	s.disturbed["left"]++
	s.live[i].leave()
	s.live = append(s.live[:i], s.live[i+1:]...)
}

func (s *soak) killBroker() error {
	s.disturbed["killed"]++
	before := s.broker.usage()
	s.broker.kill()
	time.Sleep(time.Duration(s.random.Int63n(int64(2 * time.Second))))
	start := time.Now()
	if err := s.broker.start(); err != nil {
		return err
	}
	s.say("broker killed (%s), back after %d ms", before, time.Since(start).Milliseconds())
	return s.await("committed offsets after a restart", func(ctx context.Context) error {
		return s.lookAtOffsets(ctx)
	})
}

// Waits until every member has partitions and has got records of them.
func (s *soak) settle() error {
	since := s.ledger.mark()
	return s.await("every member to get on", func(context.Context) error {
		if owned := s.ledger.ownedCount(); owned != int(s.partitions) {
			return fmt.Errorf("%d of %d partitions have an owner", owned, s.partitions)
		}
		for _, m := range s.live {
			if err := s.ledger.progress(m, since); err != nil {
				return err
			}
		}
		return nil
	})
}

// Waits until all that was acknowledged is delivered and committed.
func (s *soak) drain() error {
	return s.await("everything to be delivered and committed", func(ctx context.Context) error {
		if err := s.lookAtOffsets(ctx); err != nil {
			return err
		}
		return s.ledger.complete()
	})
}

// Waits until a check finds nothing wrong.
func (s *soak) await(what string, check func(context.Context) error) error {
	start := time.Now()
	for {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		err := check(ctx)
		cancel()
		if bad := s.ledger.wrong(); bad != nil {
			return bad
		}
		if err == nil {
			return nil
		}
		if time.Since(start) > patience {
			return fmt.Errorf("waited %s for %s: %w", patience, what, err)
		}
		time.Sleep(200 * time.Millisecond)
	}
}

// Looks at the group from outside, again and again.
func (s *soak) watch(ctx context.Context) {
	for ctx.Err() == nil {
		look, cancel := context.WithTimeout(ctx, 10*time.Second)
		// while the broker is down neither can work; after every restart the offsets are waited for
		if s.lookAtOffsets(look) == nil && s.lookAtOwners(look) == nil {
			s.ledger.looked()
		}
		cancel()
		time.Sleep(500 * time.Millisecond)
	}
}

func (s *soak) lookAtOffsets(ctx context.Context) error {
	least := s.ledger.leastCommitted()
	offsets, err := s.admin.FetchOffsets(ctx, group)
	if err != nil {
		return err
	}
	if err := offsets.Error(); err != nil {
		return err
	}
	found := map[int32]int64{}
	for partition, offset := range offsets[topic] {
		found[partition] = offset.At
	}
	s.ledger.observe(least, found)
	return nil
}

// No partition may be with two members at once, as the coordinator tells it.
func (s *soak) lookAtOwners(ctx context.Context) error {
	owner := map[int32]string{}
	take := func(id string, partition int32) {
		if other, taken := owner[partition]; taken {
			s.ledger.complain("the coordinator says that partition %d is with %s and %s", partition, other, id)
		}
		owner[partition] = id
	}
	if s.protocol == "consumer" {
		groups, err := s.admin.DescribeConsumerGroups(ctx, group)
		if err != nil || groups.Error() != nil {
			return fmt.Errorf("%v %v", err, groups.Error())
		}
		for _, m := range groups[group].Members {
			for partition := range m.Assignment[topic] {
				take(m.MemberID, partition)
			}
		}
		return nil
	}
	groups, err := s.admin.DescribeGroups(ctx, group)
	if err != nil || groups.Error() != nil {
		return fmt.Errorf("%v %v", err, groups.Error())
	}
	for _, m := range groups[group].Members {
		if assigned, ok := m.Assigned.AsConsumer(); ok {
			for _, t := range assigned.Topics {
				for _, partition := range t.Partitions {
					take(m.MemberID, partition)
				}
			}
		}
	}
	return nil
}

// What is left once everybody is gone, and after one more crash.
func (s *soak) afterwards() error {
	err := s.await("the broker to close the connections", func(context.Context) error {
		if sockets := s.broker.sockets(); sockets > socketsAtRest {
			return fmt.Errorf("%d sockets are open", sockets)
		}
		return nil
	})
	if err != nil {
		return err
	}
	s.say("after: %s", s.broker.usage())
	s.broker.kill()
	if err := s.broker.start(); err != nil {
		return err
	}
	if err := s.await("committed offsets after the last restart", s.lookAtOffsets); err != nil {
		return err
	}
	s.say("after a restart: %s", s.broker.usage())
	s.broker.printLog()
	return s.broker.stop()
}

// How the group looks, for whoever has to find out what went wrong.
func (s *soak) describe() string {
	text := fmt.Sprintf("\n    %v, %s", s.disturbed, s.ledger.counts())
	for _, m := range s.live {
		text += "\n    " + s.ledger.describe(m)
	}
	return text
}
