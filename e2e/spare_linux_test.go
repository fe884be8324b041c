package e2e

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"wsbridge/holder"
)

// TestNobodyWhoConnectsWakesTheSpareWorker looks which sockets the two workers wait on: each client and each pusher that comes wakes whoever waits on the listener.
func TestNobodyWhoConnectsWakesTheSpareWorker(t *testing.T) {
	t.Parallel()
	b := newBackend(t, echo)
	s := serve(t, "WSBRIDGE_HOLDER=on", "WSBRIDGE_BACKEND_URL="+b.URL+"/events")
	var status holder.StatusReport
	for end := time.Now().Add(patience); status.Spare == 0; time.Sleep(10 * time.Millisecond) {
		var err error
		if status, err = holder.Status(t.Context(), s.cmd.Process.Pid); err != nil || time.Now().After(end) {
			t.Fatalf("no spare worker is ready: %+v, %v", status, err)
		}
	}
	for _, address := range []string{s.clients, s.pushes} {
		socket := listeningSocket(t, address)
		if !slices.Contains(watched(t, status.Worker), socket) {
			t.Errorf("the worker that serves does not wait on %s: this test looks at the wrong place", address)
		}
		if slices.Contains(watched(t, status.Spare), socket) {
			t.Errorf("the spare worker waits on %s too", address)
		}
	}
}

// listeningSocket returns the number of the socket that listens at an address of IPv4.
func listeningSocket(t *testing.T, address string) uint64 {
	t.Helper()
	_, port, err := net.SplitHostPort(address)
	if err != nil {
		t.Fatal(err)
	}
	number, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		t.Fatal(err)
	}
	sockets, err := os.ReadFile("/proc/net/tcp")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(sockets)) { // proc_net_tcp.rst of the kernel
		fields := strings.Fields(line)
		if len(fields) > 9 && strings.HasSuffix(fields[1], fmt.Sprintf(":%04X", number)) && fields[3] == "0A" {
			inode, err := strconv.ParseUint(fields[9], 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			return inode
		}
	}
	t.Fatalf("nobody listens at %s", address)
	return 0
}

// watched returns the numbers of all files that a process has in an epoll(7).
func watched(t *testing.T, pid int) (inodes []uint64) {
	t.Helper()
	infos, err := filepath.Glob(fmt.Sprintf("/proc/%d/fdinfo/*", pid))
	if err != nil || len(infos) == 0 {
		t.Fatalf("process %d has no open files, %v", pid, err)
	}
	for _, path := range infos {
		info, _ := os.ReadFile(path) // it may have been closed by now
		for line := range strings.Lines(string(info)) {
			if _, rest, ok := strings.Cut(line, " ino:"); ok && strings.HasPrefix(line, "tfd:") {
				inode, err := strconv.ParseUint(strings.Fields(rest)[0], 16, 64)
				if err != nil {
					t.Fatalf("%q: %v", line, err)
				}
				inodes = append(inodes, inode)
			}
		}
	}
	return inodes
}
