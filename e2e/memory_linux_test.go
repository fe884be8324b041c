package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// memoryGroup is a control group with a limit of memory, of the test's own.
type memoryGroup struct{ dir, kills string }

// limitMemory makes a control group whose processes may have so many bytes.
func limitMemory(t *testing.T, limit int) memoryGroup {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("this test makes a control group, which takes root: run it as root")
	}
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		t.Fatal(err)
	}
	name := fmt.Sprintf("wsbridge-e2e-memory-%d", os.Getpid())
	var g memoryGroup
	var limits map[string]string
	for line := range strings.Lines(string(mounts)) {
		at := strings.Fields(line)
		switch {
		case at[2] == "cgroup" && strings.Contains(","+at[3]+",", ",memory,"):
			g = memoryGroup{filepath.Join(at[1], name), "memory.oom_control"}
			limits = map[string]string{"memory.limit_in_bytes": strconv.Itoa(limit), "memory.swappiness": "0"}
		case at[2] == "cgroup2" && g.dir == "":
			if controllers, _ := os.ReadFile(filepath.Join(at[1], "cgroup.controllers")); strings.Contains(string(controllers), "memory") {
				os.WriteFile(filepath.Join(at[1], "cgroup.subtree_control"), []byte("+memory"), 0)
				g = memoryGroup{filepath.Join(at[1], name), "memory.events"}
				limits = map[string]string{"memory.max": strconv.Itoa(limit), "memory.swap.max": "0"}
			}
		}
	}
	if g.dir == "" {
		t.Fatal("no control groups for memory are mounted here (mount -t cgroup2 none /sys/fs/cgroup)")
	}
	if err := os.Mkdir(g.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for end := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) { // whoever was killed in there may not be quite gone
			if err := os.Remove(g.dir); err == nil {
				return
			} else if time.Now().After(end) {
				t.Errorf("left behind: %v", err)
				return
			}
		}
	})
	for file, value := range limits {
		if err := os.WriteFile(filepath.Join(g.dir, file), []byte(value), 0); err != nil && !strings.Contains(file, "swap") { // not everywhere is there any
			t.Fatal(err)
		}
	}
	return g
}

// killed returns how many processes were killed for want of memory.
func (g memoryGroup) killed(t *testing.T) int {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(g.dir, g.kills))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if number, ok := strings.CutPrefix(line, "oom_kill "); ok {
			n, _ := strconv.Atoi(strings.TrimSpace(number))
			return n
		}
	}
	t.Fatalf("%s does not say how many were killed:\n%s", g.kills, text)
	return 0
}

// TestKilledForWantOfMemory lets the kernel kill the worker, which has more to remember than its control group allows.
func TestKilledForWantOfMemory(t *testing.T) {
	t.Parallel()
	group := limitMemory(t, 8<<20)
	// The limit is one: who has no end is killed.
	control := exec.Command("/bin/sh", "-c", `echo $$ >"$0/cgroup.procs" && exec tail /dev/zero`, group.dir)
	err := control.Run()
	if status, ok := control.ProcessState.Sys().(syscall.WaitStatus); !ok || status.Signal() != syscall.SIGKILL || group.killed(t) != 1 {
		t.Fatalf("a process that takes all the memory it gets: %v, and %d were killed", err, group.killed(t))
	}

	c := startCrash(t, "always")
	c.party.talk(4, func() {
		before := 0
		for n := 2; n < 5 && !t.Failed(); n++ {
			worker := c.worker()
			for worker == before { // its end is not known yet
				worker = c.worker()
			}
			before = worker
			if err := os.WriteFile(filepath.Join(group.dir, "cgroup.procs"), []byte(strconv.Itoa(worker)), 0); err != nil {
				c.party.failf("%v", err)
			}
			for end := time.Now().Add(patience); group.killed(t) < n; time.Sleep(time.Millisecond) {
				if time.Now().After(end) {
					c.party.failf("the worker is not killed")
					return
				}
			}
		}
		c.worker()
	})
	c.check(t)
}
