package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
)

const (
	clusterNodes = 3
	// until every replica of every partition is in sync again, and counts as stuck otherwise
	syncPatience = 2 * time.Minute
	// of each node's disk
	nodeDiskMiB = 4096
)

// Three nodes, each on a disk of its own, and an etcd whose disk never fails. A cut takes one, two or all of the disks, the
// others within milliseconds of the first: whoever leads then may be a node that lost all it had not flushed.
type cluster struct {
	*run
	nodes []*node
	etcd  *exec.Cmd
}

type node struct {
	*broker
	isCut bool
}

// Chains of cuts, each with a cluster that is new.
func (x *run) clusters() {
	if _, err := exec.LookPath("etcd"); err != nil {
		x.skipped = "no etcd"
		return
	}
	for left := x.cuts; left > 0 && x.count() == 0; left -= x.chain {
		c := &cluster{run: x}
		c.begin()
		if c.oneChain(min(left, x.chain)) {
			for _, n := range c.nodes {
				n.rig.end()
			}
		}
		c.endEtcd()
		x.total.acked += x.world.acked.Load()
		x.total.ackedSize += x.world.ackedSize.Load()
	}
}

// New disks and an etcd.
func (c *cluster) begin() {
	client := "http://" + freeAddress()
	folder := c.rig.path(fmt.Sprintf("etcd-%d", c.total.cuts))
	must(os.MkdirAll(folder, 0o700))
	log, err := os.Create(folder + ".log")
	must(err)
	defer log.Close()
	peer := "http://" + freeAddress()
	c.etcd = exec.Command("etcd", "--name", "one", "--data-dir", folder, "--listen-client-urls", client,
		"--advertise-client-urls", client, "--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer,
		"--initial-cluster", "one="+peer, "--log-level", "warn")
	c.etcd.Stdout, c.etcd.Stderr = log, log
	must(c.etcd.Start())
	for id := 1; id <= clusterNodes; id++ {
		r := *c.rig
		r.folder = c.rig.path(fmt.Sprintf("node-%d", id))
		must(os.RemoveAll(r.folder))
		r.begin(nodeDiskMiB)
		b := newBroker(c.broker.binary, &r)
		b.more = []string{"--cluster", "powercut", "--etcd", client, "--node-id", fmt.Sprint(id), "--peer-listen", freeAddress()}
		b.memory = "256MiB"
		c.nodes = append(c.nodes, &node{broker: b})
	}
}

func (c *cluster) endEtcd() {
	_ = c.etcd.Process.Kill()
	_ = c.etcd.Wait()
}

func (c *cluster) addresses() (all []string) {
	for _, n := range c.nodes {
		all = append(all, n.address)
	}
	return all
}

// Cuts of one cluster; false when nothing can be done with it any more.
func (c *cluster) oneChain(cuts int) bool {
	c.world = newWorld(c.report, allTopics(), clusterNodes, c.addresses()...)
	for at, n := range c.nodes {
		n.start(fmt.Sprintf("begin-%d", at), c.shardsNow())
	}
	if !c.ready("begin") {
		return false
	}
	c.world.create()
	for at := range cuts {
		name := fmt.Sprintf("cut-%03d", c.total.cuts)
		for _, n := range c.nodes {
			n.rig.do("delay %d", []int{500, 3000, 8000, 30000}[c.random.Intn(4)])
		}
		if !c.inSync(name) {
			return false
		}
		status := c.loadAndCut(name, at == 0)
		c.total.cuts++
		if !c.restart(name) {
			return false
		}
		v := c.world.verify()
		c.noteCluster(name, v)
		c.say("%s: %s | %d records there, %d acknowledged, tail of %d lost", name, status, v.records, v.acked, v.lostTail)
		if c.count() > 0 {
			return false
		}
		for _, n := range c.nodes {
			n.isCut = false
		}
	}
	return c.finish()
}

// What is only written may go with the power of all replicas that had it. Those are two at least (min.insync.replicas), so that
// nothing may go with one node's power. Two that lose theirs may be all that had it.
func (c *cluster) noteCluster(name string, v verified) {
	c.note(v)
	if cut := c.cutCount(); v.lostTail > 0 && cut == 1 {
		c.fault("%s: %d records that were written to other nodes are gone with the power of one", name, v.lostTail)
	}
}

func (c *cluster) cutCount() (cut int) {
	for _, n := range c.nodes {
		if n.isCut {
			cut++
		}
	}
	return cut
}

// Every node answers.
func (c *cluster) ready(name string) bool {
	for at, n := range c.nodes {
		if err := n.ready(n.rig.isCut); err != nil {
			c.fault("%s: node %d does not start: %v", name, at+1, err)
			return false
		}
	}
	return true
}

// Waits until every partition has a leader and all its replicas in sync, and tells an end.
func (c *cluster) inSync(name string) bool {
	client, err := kgo.NewClient(kgo.SeedBrokers(c.addresses()...))
	must(err)
	defer client.Close()
	admin := kadm.NewClient(client)
	missing := ""
	for began := time.Now(); time.Since(began) < syncPatience; time.Sleep(50 * time.Millisecond) {
		ctx, cancel := context.WithTimeout(context.Background(), adminPatience)
		missing = outOfSync(ctx, admin)
		cancel()
		if missing == "" {
			return true
		}
	}
	c.fault("%s: not in sync within %v: %s", name, syncPatience, missing)
	return false
}

func outOfSync(ctx context.Context, admin *kadm.Client) string {
	topics, err := admin.ListTopicsWithInternal(ctx)
	if err != nil {
		return err.Error()
	}
	for _, topic := range topics {
		for _, p := range topic.Partitions {
			if p.Err != nil || len(p.ISR) < len(p.Replicas) {
				return fmt.Sprintf("%s/%d has leader %d, replicas %v, in sync %v: %v", p.Topic, p.Partition, p.Leader, p.Replicas, p.ISR, p.Err)
			}
		}
	}
	ends, err := admin.ListEndOffsets(ctx, topics.Names()...)
	if err == nil {
		err = ends.Error()
	}
	if err != nil {
		return "ends: " + err.Error()
	}
	return ""
}

// Writes, and cuts the power of some nodes; says what the cuts did.
func (c *cluster) loadAndCut(name string, isFirst bool) string {
	stop := make(chan struct{})
	loaders := c.startLoad(name, isFirst)
	ends := []*sync.WaitGroup{c.world.tail(stop)}
	if !c.written {
		ends = append(ends, c.world.administrate(stop, c.random.Int63()))
	}
	time.Sleep(time.Duration(300+c.random.Intn(2500)) * time.Millisecond)
	told := c.cutSome()
	c.world.cutAt = time.Now()
	time.Sleep(300 * time.Millisecond) // answers that are on their way, and an election or none
	close(stop)
	for _, n := range c.nodes {
		if n.isCut {
			n.kill()
		}
	}
	for _, l := range loaders {
		l.crash()
	}
	for _, n := range c.nodes {
		if n.isCut {
			n.powerOff()
		}
	}
	for _, end := range ends {
		end.Wait()
	}
	return told
}

// Cuts the power of any one, two or all nodes: of the first at a moment of its own, of the others as soon as that is known. Says
// what the cuts did.
func (c *cluster) cutSome() string {
	cut := c.random.Perm(clusterNodes)[:1+c.random.Intn(clusterNodes)]
	told := []string{c.cutAtMoment(c.nodes[cut[0]].broker, c.how())}
	for _, at := range cut[1:] {
		c.nodes[at].rig.do("cut %s %d %s", c.keep(), c.random.Int63(), c.how())
	}
	for _, at := range cut {
		c.nodes[at].isCut = true
		told = append(told, fmt.Sprintf("node %d %s", at+1, c.nodes[at].rig.do("status")))
	}
	return strings.Join(told, ", ")
}

// Power and nodes come back one after the other, in any order; in a share of the starts the power of one goes again while
// it cuts its log to what its leader has, or catches up.
func (c *cluster) restart(name string) bool {
	for _, at := range c.random.Perm(clusterNodes) {
		n := c.nodes[at]
		if !n.isCut {
			continue
		}
		for life := 0; ; life++ {
			if !c.powerOn(fmt.Sprintf("%s: node %d", name, at+1), n.broker) {
				return false
			}
			n.bootAnew()
			again := life < 2 && c.random.Float64() < c.recut
			if again {
				moment := []string{"write", "flush", "flushed"}[c.random.Intn(3)]
				n.rig.do("plan %s %d %s %d hang", moment, 1+c.random.Intn(60), c.keep(), c.random.Int63())
			}
			n.start(fmt.Sprintf("%s-%d-%d", name, at+1, life), c.shardsNow())
			if !again || !c.cutAgain(n) {
				break
			}
			n.powerOff()
		}
		time.Sleep(time.Duration(c.random.Intn(1500)) * time.Millisecond)
	}
	return c.ready(name) && c.inSync(name)
}

// Whether the plan of a cut came about before long.
func (c *cluster) cutAgain(n *node) bool {
	for began := time.Now(); time.Since(began) < 5*time.Second; time.Sleep(5 * time.Millisecond) {
		if n.rig.isCut() {
			c.total.startCuts++
			return true
		}
	}
	n.rig.do("plan none")
	if !n.rig.isCut() {
		return false
	}
	c.total.startCuts++
	return true
}

// The end of the producers that lived on, and a clean stop.
func (c *cluster) finish() bool {
	for _, l := range c.world.survivors {
		l.finish()
	}
	c.note(c.world.verify())
	for at, n := range c.nodes {
		if err := n.stop(); err != nil {
			c.fault("a clean stop of node %d: %v", at+1, err)
			return false
		}
		if err := n.dump(); err != nil {
			c.fault("node %d after a clean stop: %v", at+1, err)
		}
	}
	return c.count() == 0
}
