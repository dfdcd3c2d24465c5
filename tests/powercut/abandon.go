package main

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
)

const (
	// Whether what a flush forgets belongs to somebody else than who asked for it is chance.
	forgetAttempts = 12
	forgetShards   = 2
	// what "log abandon" wants typed
	abandonWord = "abandon"
)

var (
	damagedOthers     = regexp.MustCompile(`(\.log|manifest-\S+|catalog)\s+DAMAGED`)
	doubtfulPartition = regexp.MustCompile(`(?m)^ +(\S+)/(\d+): offsets (\d+) to (\d+) are in doubt`)
	doubtfulGroup     = regexp.MustCompile(`(?m)^ +group \d+ of run \d+ was durable and cannot be read`)
	abandonCode       = regexp.MustCompile(`--yes-lose (\S+)`)
)

// What "log abandon" says it goes on without.
type doubts struct {
	code   string
	groups int
	// the first offset in doubt, of each partition that has one
	from map[string]int64
}

// A disk fails one flush, forgets what it covered, and confirms later ones, until that leaves a hole.
func (x *run) abandon() {
	for attempt := range forgetAttempts {
		x.rig.begin(diskMiB)
		refused, ok := x.forget(attempt)
		x.total.acked += x.world.acked.Load()
		x.total.ackedSize += x.world.ackedSize.Load()
		if !ok {
			return
		}
		x.rig.end()
		if refused {
			return
		}
	}
	x.skipped = fmt.Sprintf("no flush of %d left a hole in a log alone", forgetAttempts)
}

// One disk that forgets; whether a start was refused, and whether all was as it must be.
func (x *run) forget(attempt int) (refused, ok bool) {
	x.world = newWorld(x.report, []*topic{
		newTopic("calm", 6, durable, nil),
		newTopic("bulky", 4, durable, map[string]string{"max.message.bytes": "8388608"}),
	}, 1, x.broker.address)
	name := fmt.Sprintf("forgets-%d", attempt)
	x.broker.start(name, forgetShards)
	if err := x.broker.ready(never); err != nil {
		x.fault("%s: the broker does not start: %v", name, err)
		return false, false
	}
	x.world.create()
	ms := time.Millisecond
	var loaders []*loader
	for at, s := range []shape{
		{name + "-calm", []string{"calm"}, 100, 2000, 10, 0, 10 * ms, 1 << 20},
		{name + "-bulky", []string{"bulky"}, 300000, 3500000, 2, 0, 40 * ms, 4 << 20},
	} {
		loaders = append(loaders, x.world.load(s, x.random.Int63()+int64(at)))
	}
	x.rig.do("delay 10000")
	time.Sleep(time.Duration(500+x.random.Intn(500)) * ms)
	x.rig.do("forget %d", 1+x.random.Intn(20))
	// long enough for groups behind the hole
	time.Sleep(1500 * ms)
	x.broker.kill()
	for _, l := range loaders {
		l.crash()
	}
	x.rig.do("cut all 0 fail")
	x.broker.powerOff()
	status := x.rig.do("stats")
	if err := x.rig.powerOn(); err != nil {
		x.say("%s: the file system lost too much: %v", name, err)
		return false, true
	}
	if err := x.broker.dump(); err != nil && damagedOthers.MatchString(err.Error()) {
		// no start reads them, and giving up a log does not mend them
		x.say("%s: the disk forgot segments or journals: %v, %s", name, err, status)
		return false, true
	}
	x.broker.start(name+"-again", forgetShards)
	err := x.broker.ready(never)
	if err == nil {
		lost := x.compareForgotten(doubts{})
		x.say("%s: the broker starts, %d acknowledged records are gone from ends of partitions, %s", name, lost, status)
		return false, x.stopCleanly()
	}
	x.say("%s: %v, %s", name, err, status)
	return true, x.goOn(name)
}

// Goes on without what is in doubt, and nothing else may be gone.
func (x *run) goOn(name string) bool {
	d, err := x.showDoubts()
	if err != nil {
		x.fault("%s: %v", name, err)
		return false
	}
	command := exec.Command(x.broker.binary, "log", "abandon", x.broker.data, "--yes-lose", d.code)
	command.Stdin = strings.NewReader(abandonWord + "\n")
	if output, err := command.CombinedOutput(); err != nil {
		x.fault("%s: log abandon: %v: %s", name, err, output)
		return false
	}
	x.broker.start(name+"-abandoned", forgetShards)
	if err := x.broker.ready(never); err != nil {
		x.fault("%s: the broker does not start after log abandon: %v", name, err)
		return false
	}
	lost := x.compareForgotten(d)
	x.say("%s: went on without %d acknowledged records, of %d partitions in doubt and %d groups", name, lost, len(d.from), d.groups)
	return x.stopCleanly()
}

// The first call of "log abandon" shows what is in doubt, and changes nothing.
func (x *run) showDoubts() (doubts, error) {
	output, err := exec.Command(x.broker.binary, "log", "abandon", x.broker.data).CombinedOutput()
	text := string(output)
	var status *exec.ExitError
	code := abandonCode.FindStringSubmatch(text)
	if !errors.As(err, &status) || code == nil {
		return doubts{}, fmt.Errorf("log abandon does not say how to go on (%v): %s", err, text)
	}
	d := doubts{code: code[1], from: map[string]int64{}}
	d.groups = len(doubtfulGroup.FindAllString(text, -1))
	for _, found := range doubtfulPartition.FindAllStringSubmatch(text, -1) {
		from, _ := strconv.ParseInt(found[3], 10, 64)
		d.from[found[1]+"/"+found[2]] = from
	}
	x.say("%s", strings.ReplaceAll(strings.TrimSpace(text), "\n", " | "))
	return d, nil
}

// Every partition holds its known records from 0 on, without a gap. One in doubt ends where the doubt begins. Another may
// end early, which is told: what a lying disk took from the very end of a log, or all that names a partition in a group,
// cannot be told from what was never there.
func (x *run) compareForgotten(d doubts) (lost int) {
	client, err := kgo.NewClient(kgo.SeedBrokers(x.broker.address))
	must(err)
	defer client.Close()
	admin := kadm.NewClient(client)
	ctx, cancel := context.WithTimeout(context.Background(), verifyPatience)
	defer cancel()
	for _, t := range x.world.topics {
		readings := x.world.readings(ctx, admin, t)
		x.world.readBack(ctx, admin, t, readings, &verified{})
		for _, r := range readings {
			if r.skipped {
				continue
			}
			gone := 0
			for offset := r.end; offset < r.known; offset++ {
				if r.entries[offset].acked {
					gone++
				}
			}
			lost += gone
			where := fmt.Sprintf("%s/%d", t.name, r.number)
			from, isInDoubt := d.from[where]
			if isInDoubt && r.end != from {
				x.fault("%s: in doubt from offset %d on, and ends at %d", where, from, r.end)
			}
			if !isInDoubt && gone > 0 {
				x.say("%s: the last %d acknowledged records are gone, and nothing tells of them", where, gone)
			}
		}
	}
	return lost
}
