package main

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"strings"
	"syscall"
	"time"
)

// Sockets of a broker whom only this program's admin client and producer are still connected to, with room for its own.
const socketsAtRest = 16

// A broker's process over all its lives.
type broker struct {
	binary, folder, address string
	process                 *exec.Cmd
}

func newBroker(binary string) (*broker, error) {
	folder, err := os.MkdirTemp("", "millrace-soak-")
	if err != nil {
		return nil, err
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	defer listener.Close()
	return &broker{binary: binary, folder: folder, address: listener.Addr().String()}, nil
}

// Starts it, and waits until it takes connections.
func (b *broker) start() error {
	log, err := os.OpenFile(b.log(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	b.process = exec.Command(b.binary, "serve", "--data", filepath.Join(b.folder, "data"), "--listen", b.address,
		"--shards", "2", "--memory", "256MiB", "--wal-bytes", "64MiB",
		// crashed members are noticed within seconds, so that there is more than one rebalance in a minute
		"--group-setting", "group.consumer.min.session.timeout.ms=10000",
		"--group-setting", "group.consumer.session.timeout.ms=10000",
		"--group-setting", "group.consumer.min.heartbeat.interval.ms=1000",
		"--group-setting", "group.consumer.heartbeat.interval.ms=1000")
	b.process.Stdout, b.process.Stderr = log, log
	if err := b.process.Start(); err != nil {
		return err
	}
	for start := time.Now(); time.Since(start) < patience; time.Sleep(5 * time.Millisecond) {
		if c, err := net.Dial("tcp", b.address); err == nil {
			return c.Close()
		}
		if stat, _ := os.ReadFile(b.proc("stat")); strings.Contains(string(stat), ") Z ") {
			return fmt.Errorf("the broker ended at once: %v", b.process.Wait())
		}
	}
	return fmt.Errorf("the broker does not start")
}

func (b *broker) kill() {
	_ = b.process.Process.Kill()
	_ = b.process.Wait()
}

func (b *broker) stop() error {
	if err := b.process.Process.Signal(syscall.SIGTERM); err != nil {
		return fmt.Errorf("the broker ended by itself: %w", err)
	}
	return b.process.Wait()
}

func (b *broker) remove() {
	if b.process != nil && b.process.ProcessState == nil {
		b.kill()
	}
	_ = os.RemoveAll(b.folder)
}

func (b *broker) log() string { return filepath.Join(b.folder, "log") }

func (b *broker) proc(name string) string {
	return fmt.Sprintf("/proc/%d/%s", b.process.Process.Pid, name)
}

func (b *broker) usage() string {
	status, _ := os.ReadFile(b.proc("status"))
	rss := "?"
	for line := range strings.Lines(string(status)) {
		if value, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			rss = strings.TrimSpace(value)
		}
	}
	all, _ := os.ReadDir(b.proc("fd"))
	return fmt.Sprintf("RSS %s, %d descriptors, %d sockets", rss, len(all), b.sockets())
}

func (b *broker) sockets() int {
	count := 0
	all, _ := os.ReadDir(b.proc("fd"))
	for _, entry := range all {
		if target, err := os.Readlink(b.proc("fd/" + entry.Name())); err == nil && strings.HasPrefix(target, "socket:") {
			count++
		}
	}
	return count
}

// Lines of the log without their times, how often each came.
func (b *broker) printLog() {
	text, _ := os.ReadFile(b.log())
	counts := map[string]int{}
	for line := range strings.Lines(string(text)) {
		if strings.Contains(line, " WARN ") || strings.Contains(line, "ERROR") || strings.Contains(line, "panicked") {
			_, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
			counts[fmt.Sprintf("%.160s", rest)]++
		}
	}
	var lines []string
	for line, count := range counts {
		lines = append(lines, fmt.Sprintf("%6d  %s", count, line))
	}
	sort.Sort(sort.Reverse(sort.StringSlice(lines)))
	for _, line := range lines[:min(len(lines), 20)] {
		fmt.Fprintln(os.Stderr, line)
	}
}

func (b *broker) lastWords() string {
	text, _ := os.ReadFile(b.log())
	lines := bytes.Split(bytes.TrimSpace(text), []byte("\n"))
	return string(bytes.Join(lines[max(0, len(lines)-15):], []byte("\n")))
}
