package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
)

// bounds a start and a stop: both take a second or two here
const brokerPatience = 2 * time.Minute

// A broker's process over all its lives, on a disk.
type broker struct {
	rig                         *rig
	binary, address, data, logs string
	memory                      string
	more                        []string // arguments
	log                         string   // of this life
	process                     *exec.Cmd
	done                        chan error
}

// Ports to listen on: below those that Linux gives to outgoing connections, one of which may take a port that a broker gave up
// for the moment of a restart.
const portMin, portEnd = 10_000, 32_000

var portsGiven = rand.Intn(portEnd - portMin)

// An address of this machine that nobody listens on; another one with every call.
func freeAddress() string {
	for range portEnd - portMin {
		portsGiven++
		address := fmt.Sprintf("127.0.0.1:%d", portMin+portsGiven%(portEnd-portMin))
		if listener, err := net.Listen("tcp", address); err == nil {
			listener.Close()
			return address
		}
	}
	panic("no free port")
}

func newBroker(binary string, r *rig) *broker {
	return &broker{rig: r, binary: binary, address: freeAddress(), data: r.data(), logs: r.path("logs"), memory: "512MiB"}
}

// Starts it; "name" is that of its log.
func (b *broker) start(name string, shards int) {
	b.log = filepath.Join(b.logs, name)
	log, err := os.Create(b.log)
	must(err)
	arguments := append([]string{"serve", "--data", b.data, "--listen", b.address, "--shards", fmt.Sprint(shards),
		"--memory", b.memory, "--wal-bytes", "64MiB", "--retention-check", "1s", "--auto-create-topics=false",
		"--group-setting", "group.initial.rebalance.delay.ms=0"}, b.more...)
	process := exec.Command(b.binary, arguments...)
	process.Stdout, process.Stderr = log, log
	must(process.Start())
	done := make(chan error, 1)
	go func() { done <- process.Wait(); log.Close() }()
	b.process, b.done = process, done
}

var bootLine = regexp.MustCompile(`(?m)^boot = ".*"$`)

// Its machine was started anew: the boot that a node of a cluster remembers is another one than this machine's, so that it knows
// that what it had not flushed may be gone. Nothing before its first life is durable.
func (b *broker) bootAnew() {
	path := filepath.Join(b.data, "member.toml")
	text, err := os.ReadFile(path)
	if os.IsNotExist(err) {
		return
	}
	must(err)
	if !bootLine.Match(text) {
		must(fmt.Errorf("%s names no boot", path))
	}
	must(os.WriteFile(path, bootLine.ReplaceAll(text, []byte(`boot = "before the power cut"`)), 0o600))
}

// Waits until it answers, or until "interrupted" says that this will not be.
func (b *broker) ready(interrupted func() bool) error {
	client, err := kgo.NewClient(kgo.SeedBrokers(b.address))
	must(err)
	defer client.Close()
	for began := time.Now(); time.Since(began) < brokerPatience; time.Sleep(20 * time.Millisecond) {
		select {
		case err := <-b.done:
			b.done <- err
			return fmt.Errorf("it ended (%v): %s", err, b.lastWords())
		default:
		}
		if interrupted() {
			return nil
		}
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
		err := client.Ping(ctx)
		cancel()
		if err == nil {
			return nil
		}
	}
	return fmt.Errorf("it does not answer within %v: %s", brokerPatience, b.lastWords())
}

func never() bool { return false }

// Ends it with the power, or because the disk is about to fail anyway.
func (b *broker) kill() { _ = b.process.Process.Kill() }

// It dies with its disk.
func (b *broker) powerOff() {
	b.kill()
	b.rig.do("off")
	must(ignoreStatus(b.ended()))
}

// A clean stop.
func (b *broker) stop() error {
	if err := b.process.Process.Signal(syscall.SIGTERM); err != nil {
		return fmt.Errorf("it ended by itself: %s", b.lastWords())
	}
	return b.ended()
}

// Waits for its end.
func (b *broker) ended() error {
	select {
	case err := <-b.done:
		b.done <- err
		return err
	case <-time.After(brokerPatience):
		return fmt.Errorf("it does not end within %v", brokerPatience)
	}
}

func (b *broker) lastWords() string {
	text, _ := os.ReadFile(b.log)
	lines := bytes.Split(bytes.TrimSpace(text), []byte("\n"))
	return string(bytes.Join(lines[max(0, len(lines)-5):], []byte(" | ")))
}

// What the dump of the data folder says: nothing may be damaged in it, however the power went.
func (b *broker) dump() error {
	output, err := exec.Command(b.binary, "log", "dump", b.data).CombinedOutput()
	if err == nil {
		return nil
	}
	var damage []string
	file := ""
	for line := range strings.Lines(string(output)) {
		line = strings.TrimRight(line, "\n")
		switch {
		case strings.Contains(line, b.data+"/"):
			file = line
		case strings.Contains(line, "DAMAGED") && len(damage) < 10:
			damage = append(damage, file+line)
		}
	}
	if len(damage) == 0 {
		lines := strings.Split(strings.TrimSpace(string(output)), "\n")
		damage = lines[max(0, len(lines)-3):]
	}
	return fmt.Errorf("log dump (%w): %s", err, strings.Join(damage, " | "))
}

// A broker that was killed ends with a status, which is no trouble.
func ignoreStatus(err error) error {
	var status *exec.ExitError
	if errors.As(err, &status) {
		return nil
	}
	return err
}
