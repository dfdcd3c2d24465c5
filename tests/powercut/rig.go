package main

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
	"unsafe"
)

const (
	// for whatever the kernel does after the power is off: unmounting a file system whose disk fails, above all
	rigPatience = time.Minute
	// of linux/loop.h
	loopGetFree   = 0x4c82
	loopConfigure = 0x4c0a
	loopAutoclear = 4
	loopDirect    = 16
)

// A file system on a loop device on a disk whose power can be cut. What cannot be done panics: nothing is left to test.
// It lives in a mount namespace that ends with this program, and loop devices let go by themselves once nothing is
// mounted, so nothing stays however this program ends.
type rig struct {
	program, folder, fileSystem, options string
	process                              *exec.Cmd
	control                              net.Conn
	answers                              *bufio.Reader
	loop                                 string
}

func must(err error) {
	if err != nil {
		panic(err)
	}
}

func command(name string, arguments ...string) (string, error) {
	output, err := exec.Command(name, arguments...).CombinedOutput()
	text := strings.TrimSpace(string(output))
	if err != nil {
		err = fmt.Errorf("%s %s: %w: %s", name, strings.Join(arguments, " "), err, text)
	}
	return text, err
}

func (r *rig) path(name string) string { return filepath.Join(r.folder, name) }
func (r *rig) mountpoint() string      { return r.path("mount") }
func (r *rig) image() string           { return r.path("fuse/disk.img") }
func (r *rig) data() string            { return r.path("mount/data") }

// A new disk with an empty file system, mounted.
func (r *rig) begin(mib int) {
	for _, name := range []string{"fuse", "images", "mount", "logs"} {
		must(os.MkdirAll(r.path(name), 0o755))
	}
	log, err := os.Create(r.path("logs/disk"))
	must(err)
	defer log.Close()
	_ = os.Remove(r.path("control"))
	r.process = exec.Command(r.program, r.path("fuse"), r.path("images"), fmt.Sprint(mib), r.path("control"))
	r.process.Stdout, r.process.Stderr = log, log
	must(r.process.Start())
	for began := time.Now(); ; time.Sleep(10 * time.Millisecond) {
		if r.control, err = net.Dial("unix", r.path("control")); err == nil {
			if _, err = os.Stat(r.image()); err == nil {
				break
			}
			r.control.Close()
		}
		if time.Since(began) > rigPatience {
			text, _ := os.ReadFile(r.path("logs/disk"))
			panic(fmt.Sprintf("the disk does not start: %v: %s", err, text))
		}
	}
	r.answers = bufio.NewReader(r.control)
	file := r.attach()
	make := []string{"mkfs.ext4", "-q", "-F", "-E", "nodiscard", r.loop}
	if r.fileSystem == "xfs" {
		make = []string{"mkfs.xfs", "-q", "-f", "-K", r.loop}
	}
	_, err = command(make[0], make[1:]...)
	must(err)
	must(r.mount(file))
}

// Unmounts and lets go of the disk.
func (r *rig) end() {
	r.detach()
	r.control.Close()
	must(syscall.Unmount(r.path("fuse"), 0))
	must(r.process.Wait())
}

func (r *rig) do(format string, arguments ...any) string {
	_, err := fmt.Fprintf(r.control, format+"\n", arguments...)
	must(err)
	must(r.control.SetReadDeadline(time.Now().Add(rigPatience)))
	answer, err := r.answers.ReadString('\n')
	must(err)
	answer = strings.TrimSpace(answer)
	if strings.HasPrefix(answer, "not understood") {
		panic(answer)
	}
	return answer
}

func (r *rig) isCut() bool { return strings.HasPrefix(r.do("status"), "cut") }

// Puts the disk's file behind a loop device, which lasts as long as the file returned, or as something is mounted.
func (r *rig) attach() *os.File {
	image, err := os.OpenFile(r.image(), os.O_RDWR, 0)
	must(err)
	defer image.Close()
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	must(err)
	defer control.Close()
	// of linux/loop.h, struct loop_config: the file, a block size, and a loop_info64 whose flags are at 52
	var config [304]byte
	binary.NativeEndian.PutUint32(config[0:], uint32(image.Fd()))
	binary.NativeEndian.PutUint32(config[8+52:], loopAutoclear|loopDirect)
	for began := time.Now(); ; {
		number, _, errno := syscall.Syscall(syscall.SYS_IOCTL, control.Fd(), loopGetFree, 0)
		if errno != 0 {
			panic(fmt.Sprintf("no loop device: %v", errno))
		}
		r.loop = fmt.Sprintf("/dev/loop%d", number)
		if _, err := os.Stat(r.loop); err != nil {
			must(syscall.Mknod(r.loop, syscall.S_IFBLK|0o600, 7<<8|int(number)))
		}
		device, err := os.OpenFile(r.loop, os.O_RDWR, 0)
		must(err)
		_, _, errno = syscall.Syscall(syscall.SYS_IOCTL, device.Fd(), loopConfigure, uintptr(unsafe.Pointer(&config)))
		if errno == 0 {
			return device
		}
		device.Close()
		// somebody else was faster
		if errno != syscall.EBUSY || time.Since(began) > rigPatience {
			panic(fmt.Sprintf("%s: %v", r.loop, errno))
		}
	}
}

func (r *rig) mount(device *os.File) error {
	defer device.Close()
	return syscall.Mount(r.loop, r.mountpoint(), r.fileSystem, 0, r.options)
}

// Unmounts, and waits until nothing writes to the disk any more.
func (r *rig) detach() {
	began := time.Now()
	for ; ; time.Sleep(20 * time.Millisecond) {
		err := syscall.Unmount(r.mountpoint(), 0)
		if err == nil || err == syscall.EINVAL {
			break
		}
		if time.Since(began) > rigPatience {
			panic(fmt.Sprintf("unmount: %v", err))
		}
	}
	backing := "/sys/block/" + filepath.Base(r.loop) + "/loop/backing_file"
	for ; ; time.Sleep(20 * time.Millisecond) {
		if file, err := os.ReadFile(backing); err != nil || strings.TrimSpace(string(file)) != r.image() {
			return
		}
		if time.Since(began) > rigPatience {
			panic(r.loop + " does not let go of the disk")
		}
	}
}

// Unmounts what is left, and mounts what the platter has.
func (r *rig) powerOn() error {
	r.detach()
	r.do("on")
	return r.mount(r.attach())
}
