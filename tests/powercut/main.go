// A broker whose disk loses its power again and again, on a real file system.
//
//	powercut --binary PATH --disk PATH --folder EMPTY [--fs ext4|xfs] [--cuts N] [--chain N] [--shards 0..4] [--recut SHARE]
//	         [--fail SHARE] [--written] [--abandon] [--cluster] [--mount-options LIST] [--seed N]
//
// PATH of --disk is the program in disk/. On each file system it writes, cuts the power at a random write or flush, starts
// the broker again, in a share of the starts cuts that too, and verifies; at the chain's end comes a clean stop. Checked is
// that every acknowledged record, and every one that a consumer saw, is at its offset with its bytes; that no producer's
// records have a gap, repeat or change order; that two idempotent producers that live on over all cuts of a chain have
// everything acknowledged in the end; compaction, retention, DeleteRecords, committed offsets, topics, a setting, producer
// ids; that topics with flush.messages above 1 lose a tail only; and that "log dump" finds no damage, ever.
//
// --abandon instead lets the disk fail one flush and forget what it covered: the broker then has all that it acknowledged,
// or refuses to start and goes on after "log abandon", without the records that it named and no others.
//
// --cluster has three nodes, each on a disk of its own, and topics with a replica on each: the power goes from one at such a
// moment, and from none, one or both of the others as soon as word of that is there, and everything above has to hold whoever
// leads then. There is no --cluster --abandon.
//
// Wants a mount namespace of its own, as "run" makes it. When what happens comes is chance, so a seed gives the same kind
// of cuts, not the same bytes. Prints "passed NAME" or "FAILED NAME"; what happens meanwhile goes to standard error.
package main

import (
	"flag"
	"fmt"
	"math/rand"
	"os"
	"strings"
	"sync"
	"time"
)

type options struct {
	cuts, chain, shards int
	recut, fail         float64
	written             bool
}

type run struct {
	*report
	options
	rig    *rig
	broker *broker
	random *rand.Rand
	world  *world
	total  tally
	// why there was nothing to check
	skipped string
}

type tally struct {
	cuts, startCuts, lostTail int
	acked, ackedSize          int64
	oldestLost                time.Duration
}

// Of the disk: blocks of a chain's logs and segments, with room.
const diskMiB = 3072

func main() {
	var o options
	r := &rig{}
	binary := flag.String("binary", "", "the broker's `PATH`")
	flag.StringVar(&r.program, "disk", "", "the disk's `PATH`")
	flag.StringVar(&r.folder, "folder", "", "an empty `PATH` for everything")
	flag.StringVar(&r.fileSystem, "fs", "ext4", "ext4 or xfs")
	flag.StringVar(&r.options, "mount-options", "", "of the file system")
	flag.IntVar(&o.cuts, "cuts", 6, "power cuts under load")
	flag.IntVar(&o.chain, "chain", 6, "cuts of one file system")
	flag.IntVar(&o.shards, "shards", 2, "of the broker; 0: other ones at every start")
	flag.Float64Var(&o.recut, "recut", 0.3, "share of the starts that are cut too")
	flag.Float64Var(&o.fail, "fail", 0.15, "share of the cuts after which the disk fails instead of hanging")
	flag.BoolVar(&o.written, "written", false, "write only to topics with flush.messages above 1")
	abandon := flag.Bool("abandon", false, "a disk that forgets, and log abandon")
	nodes := flag.Bool("cluster", false, "three nodes, each with a disk of its own")
	seed := flag.Int64("seed", time.Now().UnixNano(), "of what is done when")
	flag.Parse()
	if *nodes && *abandon {
		fmt.Fprintln(os.Stderr, "--abandon is of one broker, not of a --cluster")
		os.Exit(2)
	}
	if *binary == "" || r.program == "" || r.folder == "" || flag.NArg() > 0 || (r.fileSystem != "ext4" && r.fileSystem != "xfs") {
		flag.Usage()
		os.Exit(2)
	}
	x := &run{report: &report{began: time.Now()}, options: o, rig: r, random: rand.New(rand.NewSource(*seed))}
	name := fmt.Sprintf("powercut-%s-%d", r.fileSystem, o.shards)
	what := x.chains
	switch {
	case *nodes:
		name, what = "powercut-cluster-"+r.fileSystem, x.clusters
	case *abandon:
		name, what = "powercut-abandon-"+r.fileSystem, x.abandon
	}
	if o.written && !*abandon {
		name += "-written"
	}
	x.guarded(*binary, what)
	t := x.total
	x.say("%d cuts under load, %d of a start, %d records acknowledged (%.1f MB), %d lost of those that may be (the oldest %v before the cut), %d faults",
		t.cuts, t.startCuts, t.acked, float64(t.ackedSize)/1e6, t.lostTail, t.oldestLost.Round(time.Millisecond), x.count())
	if x.count() > 0 {
		fmt.Printf("FAILED %s (seed %d)\n    %s\n", name, *seed, strings.Join(x.faults[:min(len(x.faults), 20)], "\n    "))
		os.Exit(1)
	}
	if x.skipped != "" {
		fmt.Printf("skipped: %s: %s\n", name, x.skipped)
		return
	}
	fmt.Printf("passed %s\n", name)
}

// What stops the rig is a fault as well.
func (x *run) guarded(binary string, what func()) {
	defer func() {
		if trouble := recover(); trouble != nil {
			x.fault("%v", trouble)
		}
	}()
	x.broker = newBroker(binary, x.rig)
	what()
}

func (x *run) chains() {
	for left := x.cuts; left > 0 && x.count() == 0; left -= x.chain {
		x.rig.begin(diskMiB)
		if x.oneChain(min(left, x.chain)) {
			x.rig.end()
		}
		x.total.acked += x.world.acked.Load()
		x.total.ackedSize += x.world.ackedSize.Load()
	}
}

// Cuts of one file system; false when nothing can be done with it any more.
func (x *run) oneChain(cuts int) bool {
	topics := allTopics()
	x.world = newWorld(x.report, topics, 1, x.broker.address)
	for at := range cuts {
		x.rig.do("delay %d", []int{500, 3000, 8000, 30000, 60000}[x.random.Intn(5)])
		name := fmt.Sprintf("cut-%03d", x.total.cuts)
		if !x.startUp(name, at > 0) {
			return false
		}
		v := verified{}
		if at == 0 {
			x.world.create()
		} else {
			v = x.world.verify()
		}
		x.note(v)
		status := x.loadAndCut(name, at == 0)
		x.total.cuts++
		x.say("%s: %d records were there, %d acknowledged, tail of %d lost | now %d acknowledged | %s",
			name, v.records, v.acked, v.lostTail, x.world.acked.Load(), status)
		if !x.powerOn(name, x.broker) || x.count() > 0 {
			return false
		}
	}
	return x.finish()
}

func (x *run) note(v verified) {
	x.total.lostTail += v.lostTail
	x.total.oldestLost = max(x.total.oldestLost, v.oldestLost)
}

func (x *run) shardsNow() int {
	if x.shards > 0 {
		return x.shards
	}
	return 1 + x.random.Intn(4)
}

// What a cut leaves of what was not flushed; most disks keep some of it.
func (x *run) keep() string {
	return []string{"nothing", "some", "some", "some", "sectors", "torn", "prefix", "late", "late", "all"}[x.random.Intn(10)]
}

// Starts the broker, and cuts some of the starts: the power goes while the broker rests, then again within its start.
func (x *run) startUp(name string, mayBeCut bool) bool {
	cutsMax := 0
	for mayBeCut && cutsMax < 2 && x.random.Float64() < x.recut {
		cutsMax++
	}
	x.broker.start(name+"-0", x.shardsNow())
	for life, planned := 1, false; ; life++ {
		if err := x.broker.ready(x.rig.isCut); err != nil {
			x.fault("%s: the broker does not start: %v", name, err)
			return false
		}
		switch {
		case x.rig.isCut():
			x.total.startCuts++
			x.say("%s: the start was cut: %s", name, x.rig.do("status"))
		case cutsMax > 0:
			cutsMax--
			x.rig.do("plan none")
			x.rig.do("cut %s %d hang", x.keep(), x.random.Int63())
		default:
			x.rig.do("plan none")
			if !x.rig.isCut() {
				return true
			}
			x.total.startCuts++
		}
		x.broker.powerOff()
		if !x.powerOn(name, x.broker) {
			return false
		}
		if planned = !planned; planned {
			moment := []string{"write", "flush", "flushed"}[x.random.Intn(3)]
			x.rig.do("plan %s %d %s %d hang", moment, 1+x.random.Intn(12), x.keep(), x.random.Int63())
		}
		x.broker.start(fmt.Sprintf("%s-%d", name, life), x.shardsNow())
	}
}

// The power of a broker's disk is back, and what is in the data folder is whole.
func (x *run) powerOn(name string, b *broker) bool {
	if err := b.rig.powerOn(); err != nil {
		x.fault("%s: mount: %v", name, err)
		return false
	}
	if err := b.dump(); err != nil {
		x.fault("%s: after the cut: %v", name, err)
	}
	return true
}

func (x *run) shapes(name string, isFirst bool) (crashing, surviving []shape) {
	ms := time.Millisecond
	if x.written {
		return []shape{
			{name + "-small", []string{"written"}, 20, 1500, 30, 0, 8 * ms, 1 << 20},
			{name + "-large", []string{"written", "written-large"}, 20000, 250000, 6, 20 * ms, 150 * ms, 1 << 20},
		}, nil
	}
	crashing = []shape{
		{name + "-small", []string{"small", "plain", "written", "trimmed"}, 20, 1500, 30, 0, 8 * ms, 1 << 20},
		{name + "-mixed", []string{"small", "plain", "written", "compacted", "retained", "trimmed"}, 500, 12000, 40, 2 * ms, 25 * ms, 1 << 20},
		{name + "-large", []string{"large", "written-large", "retained"}, 20000, 250000, 12, 20 * ms, 120 * ms, 1 << 20},
		{name + "-huge", []string{"large", "written-large"}, 300000, 3500000, 2, 0, 300 * ms, 4 << 20},
	}
	if isFirst {
		surviving = []shape{
			{name + "-survivor", []string{"small", "plain"}, 100, 3000, 20, 0, 20 * ms, 1 << 20},
			{name + "-large-survivor", []string{"large", "small"}, 1000, 200000, 6, 5 * ms, 100 * ms, 1 << 20},
		}
	}
	return crashing, surviving
}

// Starts all producers, and gives those that end with the power.
func (x *run) startLoad(name string, isFirst bool) (loaders []*loader) {
	crashing, surviving := x.shapes(name, isFirst)
	for _, s := range crashing {
		loaders = append(loaders, x.world.load(s, x.random.Int63()))
	}
	for _, s := range surviving {
		x.world.survivors = append(x.world.survivors, x.world.load(s, x.random.Int63()))
	}
	return loaders
}

// Writes, and cuts the power; says what the cut did.
func (x *run) loadAndCut(name string, isFirst bool) string {
	stop := make(chan struct{})
	loaders := x.startLoad(name, isFirst)
	ends := []*sync.WaitGroup{x.world.tail(stop)}
	if !x.written {
		ends = append(ends, x.world.administrate(stop, x.random.Int63()))
	}
	time.Sleep(time.Duration(300+x.random.Intn(2500)) * time.Millisecond)
	moment := x.cutAtMoment(x.broker, x.how())
	x.world.cutAt = time.Now()
	status := moment + ", " + x.rig.do("status")
	time.Sleep(300 * time.Millisecond) // answers that are on their way
	close(stop)
	x.broker.kill()
	for _, l := range loaders {
		l.crash()
	}
	x.broker.powerOff()
	for _, end := range ends {
		end.Wait()
	}
	return status
}

// What a disk without power does with what is asked of it.
func (x *run) how() string {
	if x.random.Float64() < x.fail {
		return "fail"
	}
	return "hang"
}

// Cuts the power of a broker's disk at a write or a flush of its own, waits for that, and says which.
func (x *run) cutAtMoment(b *broker, how string) string {
	moment := []string{"write", "write", "flush", "flushed"}[x.random.Intn(4)]
	if x.written {
		moment = "write"
	}
	keep, seed := x.keep(), x.random.Int63()
	b.rig.do("plan %s %d %s %d %s", moment, 1+x.random.Intn(40), keep, seed, how)
	for began := time.Now(); !b.rig.isCut(); time.Sleep(time.Millisecond) {
		if time.Since(began) > 10*time.Second { // nothing was written
			b.rig.do("cut %s %d %s", keep, seed, how)
		}
	}
	return moment
}

// A start, the end of the producers that lived on, a clean stop, a dump, and a start again.
func (x *run) finish() bool {
	if !x.startUp("finish", false) {
		return false
	}
	x.note(x.world.verify())
	for _, l := range x.world.survivors {
		l.finish()
	}
	x.note(x.world.verify())
	if !x.stopCleanly() || !x.startUp("clean", false) {
		return false
	}
	x.note(x.world.verify())
	return x.stopCleanly()
}

func (x *run) stopCleanly() bool {
	if err := x.broker.stop(); err != nil {
		x.fault("a clean stop: %v", err)
		return false
	}
	if err := x.broker.dump(); err != nil {
		x.fault("after a clean stop: %v", err)
		return false
	}
	return true
}
