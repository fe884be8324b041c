package e2e

import (
	"bufio"
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"wsbridge/holder"
)

// crash is a program under talkers.
type crash struct {
	*sidecar
	party   *party
	witness *witness
	random  *rand.Rand
	env     []string
	path    string // of the program, which is this test's own
}

// startCrash starts a program for a test that kills it.
func startCrash(t *testing.T, retry string, env ...string) *crash {
	t.Helper()
	seed := uint64(time.Now().UnixNano())
	if text := os.Getenv("WSBRIDGE_SEED"); text != "" {
		seed, _ = strconv.ParseUint(text, 10, 64)
	}
	c := &crash{witness: newWitness(retry == "always"), random: rand.New(rand.NewPCG(seed, 0)), path: filepath.Join(tempDir(t), "wsbridge")}
	c.install(t, 0)
	backend := httptest.NewServer(c.witness)
	t.Cleanup(backend.Close)
	c.env = append([]string{"WSBRIDGE_BACKEND_URL=" + backend.URL, "WSBRIDGE_BACKEND_RETRY=" + retry, "WSBRIDGE_COMPRESSION=on",
		"WSBRIDGE_BACKEND_MAX_CONCURRENT=32", "WSBRIDGE_LISTEN=127.0.0.1:" + freePort(t), "WSBRIDGE_PUSH_LISTEN=127.0.0.1:" + freePort(t)}, env...)
	c.sidecar = serveFrom(t, c.path, c.env...)
	c.party = &party{t: t, seed: seed, dial: (&net.Dialer{}).DialContext, clients: c.clients, pushes: c.pushes, over: make(chan struct{})}
	if retry == "safe" {
		c.party.closes = []int{1011}
	}
	return c
}

func (c *crash) status() holder.StatusReport {
	status, err := holder.Status(c.party.t.Context(), c.cmd.Process.Pid)
	if err != nil {
		c.party.failf("status: %v", err)
	}
	return status
}

// worker returns the process id of the worker, as soon as one serves.
func (c *crash) worker() int {
	for end := time.Now().Add(patience); time.Now().Before(end); {
		if status := c.status(); status.Worker != 0 || c.party.t.Failed() {
			return status.Worker
		}
	}
	c.party.failf("no worker serves")
	return 0
}

// moment waits until any moment.
func (c *crash) moment(longest time.Duration) {
	time.Sleep(time.Duration(c.random.Int64N(int64(longest))))
}

// kill kills the worker, or several in a row: those that have just been started, too.
func (c *crash) kill() {
	worker := c.worker()
	if worker == 0 {
		return
	}
	syscall.Kill(worker, syscall.SIGKILL)
	for range c.random.IntN(3) {
		c.moment(8 * time.Millisecond)
		workers, _ := children(c.cmd.Process.Pid)
		for _, pid := range workers {
			if c.random.IntN(2) == 0 {
				syscall.Kill(pid, syscall.SIGKILL)
			}
		}
	}
}

// install puts a version of the program in the place of the one before. They differ in what is behind the program in the file.
func (c *crash) install(t *testing.T, version int) {
	t.Helper()
	data, err := os.ReadFile(program(t))
	if err != nil {
		t.Fatal(err)
	}
	c.replace(t, append(data, fmt.Sprintf("version %d", version)...))
}

// replace does so with whatever it is.
func (c *crash) replace(t *testing.T, data []byte) {
	t.Helper()
	// A process that is started meanwhile would have the file open as well, for a moment: nobody could run it.
	syscall.ForkLock.RLock()
	err := os.WriteFile(c.path+".new", data, 0o755)
	syscall.ForkLock.RUnlock()
	if err == nil {
		err = os.Rename(c.path+".new", c.path)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// reload reloads the program with its environment and some more, and returns what the command said.
func (c *crash) reload(more ...string) (string, error) {
	cmd := exec.Command(program(c.party.t), "reload", strconv.Itoa(c.cmd.Process.Pid))
	cmd.Env = append(append([]string{"PATH=" + os.Getenv("PATH"), raceDetector, "WSBRIDGE_LOG_FORMAT=json", "WSBRIDGE_NODE=here"}, c.env...), more...)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// check looks at what is left when all talkers have gone.
func (c *crash) check(t *testing.T) {
	t.Helper()
	if t.Failed() {
		return
	}
	for end := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		ended, all := c.witness.ended()
		sockets := c.sockets(t, c.cmd.Process.Pid) + c.sockets(t, c.worker())
		held := c.status().Connections
		if ended == all && sockets == 0 && held == 0 {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("%d of %d disconnect events; %d connections are held, and %d sockets are open", ended, all, held, sockets)
		}
	}
	for _, wrong := range c.witness.verdict() {
		c.party.failf("the backend: %s", wrong)
	}
	_, all := c.witness.ended()
	t.Logf("%d connections, %d answers, %d messages repeated, %d connections closed; workers: %v", all, c.party.answers.Load(), c.witness.again, c.party.closed.Load(), c.status().Starts)
	c.signal(t, syscall.SIGTERM)
	c.exits(t, 0)
}

// sockets returns how many of clients' sockets the process has open.
func (c *crash) sockets(t *testing.T, pid int) (n int) {
	_, port, err := net.SplitHostPort(c.clients)
	if err != nil {
		return 0 // a unix socket: the holder's count says it
	}
	number, _ := strconv.Atoi(port)
	table, err := os.Open("/proc/net/tcp")
	if err != nil {
		t.Fatal(err)
	}
	defer table.Close()
	inodes := map[string]bool{}
	for lines := bufio.NewScanner(table); lines.Scan(); {
		fields := strings.Fields(lines.Text())
		if len(fields) > 9 && strings.HasSuffix(fields[1], fmt.Sprintf(":%04X", number)) && fields[3] != "0A" { // listening
			inodes["socket:["+fields[9]+"]"] = true
		}
	}
	files, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	for _, file := range files {
		if at, err := os.Readlink(file); err == nil && inodes[at] {
			n++
		}
	}
	return n
}

// TestKilledInAContainer kills workers where the holder is the first process of a container, which has all that are orphans as its children.
func TestKilledInAContainer(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Fatal("this test makes a namespace of processes, which takes root: run it as root")
	}
	b := newBackend(t, echo)
	address := "127.0.0.1:" + freePort(t)
	env := []string{"WSBRIDGE_BACKEND_URL=" + b.URL + "/events", "WSBRIDGE_LISTEN=" + address, "WSBRIDGE_PUSH_LISTEN=127.0.0.1:" + freePort(t), "HOME=/"}
	// The shell leaves an orphan, and becomes the program.
	script := `(sleep 0.1 &); exec "$0"`
	s := start(t, env, tool(t, "unshare", "util-linux"), "--pid", "--fork", "--kill-child=SIGTERM", "--mount-proc", "/bin/sh", "-c", script, program(t))
	s.awaitLine(t, "msg=serving cause=start")
	c := connect(t, websocket.Dialer{}, "ws://"+address+"/ws", nil)
	b.expect(t, "connect")
	first, _ := children(s.cmd.Process.Pid)
	if len(first) != 1 {
		t.Fatalf("the children of unshare are %d", first)
	}
	for i := range 3 {
		workers, _ := children(first[0])
		for _, worker := range workers {
			syscall.Kill(worker, syscall.SIGKILL)
		}
		s.awaitLines(t, i+1, "msg=serving cause=crash")
		c.isEchoed(t, b, "behind")
	}
	c.leaves(t, 1000)
	b.expect(t, "disconnect")
	for end := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) { // the orphan has ended long since
		var dead []int
		left, _ := children(first[0])
		for _, child := range left {
			if stat, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", child)); strings.Contains(string(stat), ") Z ") {
				dead = append(dead, child)
			}
		}
		if len(dead) == 0 {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("zombies: %d", dead)
		}
	}
	syscall.Kill(first[0], syscall.SIGTERM)
	s.exits(t, 0)
}

// crashes is how often something is done to the program.
const crashes = 14

// TestKilledAgainAndAgain kills workers at random moments, also those that have just begun, under talkers of every kind. With a backend that keeps ids
// nobody is closed.
func TestKilledAgainAndAgain(t *testing.T) {
	t.Parallel()
	c := startCrash(t, "always")
	c.party.talk(4, func() { c.killed(crashes) })
	c.check(t)
}

func (c *crash) killed(times int) {
	for range times {
		c.moment(250 * time.Millisecond)
		c.kill()
	}
	c.worker()
}

// TestKilledWithoutRepeats does the same where nothing may be sent twice: who has a message at the backend at a kill is closed with 1011, and nobody else.
func TestKilledWithoutRepeats(t *testing.T) {
	t.Parallel()
	c := startCrash(t, "safe")
	c.party.talk(4, func() { c.killed(crashes) })
	if c.witness.again > 0 {
		c.party.failf("%d messages were sent again", c.witness.again)
	}
	c.check(t)
}

// TestReloadedAgainAndAgain reloads the program, each time from another version, and once in a while from a file or with settings that can't start. Nobody notices.
func TestReloadedAgainAndAgain(t *testing.T) {
	t.Parallel()
	c := startCrash(t, "safe")
	c.party.planned, c.party.closes = true, nil
	c.party.talk(4, func() { c.reloaded(t, crashes) })
	if c.witness.again > 0 {
		c.party.failf("%d messages were sent again", c.witness.again)
	}
	c.goneOver(t)
	c.check(t)
}

// goneOver waits until the process that holds the connections has gone over to the program on disk as well.
func (c *crash) goneOver(t *testing.T) {
	last, err := os.Stat(c.path)
	if err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(patience); ; {
		runs, err := os.Stat(fmt.Sprintf("/proc/%d/exe", c.cmd.Process.Pid))
		if err == nil && os.SameFile(last, runs) {
			return
		}
		if time.Now().After(end) || t.Failed() {
			t.Fatalf("the holder runs another version: %v", err)
		}
	}
}

// TestAskedWhileTheHolderGoesOver asks and signals the process that holds the connections while it becomes another program.
func TestAskedWhileTheHolderGoesOver(t *testing.T) {
	t.Parallel()
	b := newBackend(t, echo)
	c := &crash{party: &party{t: t}, path: filepath.Join(tempDir(t), "wsbridge")}
	c.env = []string{"WSBRIDGE_BACKEND_URL=" + b.URL + "/events", "WSBRIDGE_LISTEN=127.0.0.1:" + freePort(t), "WSBRIDGE_PUSH_LISTEN=127.0.0.1:" + freePort(t)}
	c.install(t, 0)
	c.sidecar = serveFrom(t, c.path, c.env...)
	client := connect(t, websocket.Dialer{}, "ws://"+c.clients+"/ws", nil)
	b.expect(t, "connect")
	for version := range 5 {
		c.install(t, version+1)
		if out, err := c.reload(); err != nil {
			t.Fatalf("reload: %v %s", err, out)
		}
		over := make(chan struct{})
		var asking sync.WaitGroup
		for range 2 {
			asking.Go(func() {
				for {
					select {
					case <-over:
						return
					default:
						c.status()
					}
				}
			})
		}
		c.goneOver(t)
		// Nothing of ours runs yet: these would end a process.
		c.signal(t, syscall.SIGHUP)
		c.signal(t, syscall.SIGUSR1)
		client.isEchoed(t, b, "behind")
		close(over)
		asking.Wait()
		if status := c.status(); status.Connections != 1 {
			t.Errorf("behind: %+v", status)
		}
	}
	client.leaves(t, 1000)
	b.expect(t, "disconnect")
}

func (c *crash) reloaded(t *testing.T, times int) {
	for i := range times {
		c.moment(400 * time.Millisecond)
		switch i % 5 {
		case 2: // the new version with the environment there was
			c.goneOver(t) // or it may be lost
			before := c.status().Starts[holder.CauseReload]
			c.install(t, i)
			c.signal(t, syscall.SIGHUP)
			for end := time.Now().Add(patience); c.status().Starts[holder.CauseReload] == before && !t.Failed(); time.Sleep(time.Millisecond) {
				if time.Now().After(end) {
					c.party.failf("nothing comes of SIGHUP")
				}
			}
			c.worker()
			continue
		case 3:
			if out, err := c.reload("WSBRIDGE_PING_INTERVAL=often"); err == nil || !strings.Contains(out, "WSBRIDGE_PING_INTERVAL") {
				c.party.failf("a reload with a fault in the settings: %v %s", err, out)
			}
			continue
		case 4:
			for _, broken := range []string{"#!/bin/sh\nexit 1\n", "no program"} {
				c.replace(t, []byte(broken))
				if out, err := c.reload(); err == nil || out == "" {
					c.party.failf("a reload with %q in the place of the program: %v %s", broken, err, out)
				}
			}
		}
		c.install(t, i)
		if out, err := c.reload(); err != nil {
			c.party.failf("reload: %v %s", err, out)
		}
	}
}

// TestKilledAndReloadedAtOnce lets kills meet reloads.
func TestKilledAndReloadedAtOnce(t *testing.T) {
	t.Parallel()
	c := startCrash(t, "always")
	c.party.talk(4, func() {
		for range crashes {
			reloaded := make(chan struct{})
			go func() {
				c.reload() // it may fail: the worker is killed meanwhile
				close(reloaded)
			}()
			c.moment(150 * time.Millisecond)
			c.kill()
			<-reloaded
		}
		c.worker()
	})
	c.check(t)
}

// TestKilledBehindNginx kills workers behind the shipped nginx configuration.
func TestKilledBehindNginx(t *testing.T) {
	t.Parallel()
	c := startCrash(t, "always", "WSBRIDGE_TRUSTED_PROXIES=127.0.0.1/32")
	s := startNginx(t, c.clients, "127.0.0.1:"+freePort(t), `^/ws(/|$)`, `^/ws(/.*|$)`)
	c.party.clients = s.public
	c.party.talk(3, func() { c.killed(crashes / 2) })
	c.check(t)
}

// TestKilledOnAUnixSocket kills workers whose clients come over a unix socket: the kernel does not count what goes over it, so that a write that was
// under way ends its connection.
func TestKilledOnAUnixSocket(t *testing.T) {
	t.Parallel()
	path := filepath.Join(tempDir(t), "ws.sock")
	c := startCrash(t, "always", "WSBRIDGE_LISTEN=unix:"+path)
	c.party.clients, c.party.closes = "example.org", []int{1011, 1012, 1006}
	c.witness.always = false // whose connection ends is told nothing more of the message that was under way
	c.party.dial = func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", path)
	}
	c.party.talk(3, func() { c.killed(crashes / 2) })
	c.check(t)
}
