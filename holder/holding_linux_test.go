package holder

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The worker of these tests is the test's own program. It tells the test what it is told, and does what the test says: nothing depends on time.

const (
	stageVariable = "HOLDER_TEST_STAGE" // where the test listens
	askVariable   = "HOLDER_TEST_ASK"   // process id to be asked for its status
	peers         = ".peers"            // behind the stage's address: who connects there is a client
)

func TestMain(m *testing.M) {
	switch {
	case len(os.Args) > 1 && os.Args[1] == "worker":
		os.Exit(act())
	case os.Getenv(askVariable) != "":
		pid, _ := strconv.Atoi(os.Getenv(askVariable))
		_, err := Status(context.Background(), pid)
		fmt.Println(err)
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// cue is what a worker is told to do.
type cue struct {
	Do        string
	Slot, Gen uint32
	N         int
}

// told is what it says.
type told struct {
	Pid    int
	Serial uint32
	Order  Order
	End    string // why there is no more
}

// act is a worker.
func act() int {
	link, ok, err := Attach()
	if err != nil || !ok {
		return 3
	}
	stage, err := net.Dial("unix", os.Getenv(stageVariable))
	if err != nil {
		return 4
	}
	say := json.NewEncoder(stage)
	say.Encode(told{Pid: os.Getpid(), Serial: link.Serial()})
	go func() {
		for {
			order, err := link.Receive()
			if err != nil {
				say.Encode(told{End: err.Error()})
				return
			}
			for i := range order.Conns { // its own, and of no use to the test
				if order.Conns[i].Fd >= 0 {
					syscall.Close(order.Conns[i].Fd)
					order.Conns[i].Fd = 0
				}
			}
			say.Encode(told{Order: order})
		}
	}()
	cues := json.NewDecoder(stage)
	for {
		var c cue
		if cues.Decode(&c) != nil {
			return 0
		}
		switch c.Do {
		case "ready":
			link.Ready()
		case "serving":
			link.Serving("test")
		case "suspended":
			link.Suspended(c.N)
		case "busy":
			link.Busy(c.N)
		case "release":
			link.Table().Slot(c.Slot).Release(link.Serial(), true)
			link.Release(c.Slot)
		case "grow":
			link.Table().Grow()
		case "own":
			link.Table().Slot(c.Slot).Owner.Store(link.Serial())
		case "keep": // a socket of which the test has the other end
			peer, err := net.Dial("unix", os.Getenv(stageVariable)+peers)
			if err != nil {
				return 5
			}
			file, _ := peer.(*net.UnixConn).File()
			link.Table().Slot(c.Slot).Owner.Store(link.Serial())
			link.Keep(c.Slot, c.Gen, int(file.Fd()))
			sockets[c.Slot] = file
		case "end": // of a connection
			unix.Shutdown(int(sockets[c.Slot].Fd()), unix.SHUT_RDWR)
		case "failed":
			link.Failed(errors.New("it is the wrong day"))
			return c.N
		case "exit":
			return c.N
		}
	}
}

var sockets = map[uint32]*os.File{} // of a worker

// theatre is a holder, and the stage on which its workers appear.
type theatre struct {
	t      *testing.T
	log    *lockedBuffer
	actors chan *actor
	cancel context.CancelCauseFunc
	done   chan struct{}
	exit   int
	err    error
}

// actor is a worker as the test sees it.
type actor struct {
	t      *testing.T
	pid    int
	serial uint32
	orders chan Order
	end    chan string
	cues   *json.Encoder
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

const patience = 30 * time.Second

func open(t *testing.T, change func(*Config)) *theatre {
	t.Helper()
	place := filepath.Join(t.TempDir(), "stage")
	stage, err := net.Listen("unix", place)
	if err != nil {
		t.Fatal(err)
	}
	clients, err := net.Listen("unix", place+peers)
	if err != nil {
		t.Fatal(err)
	}
	path, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	th := &theatre{t: t, log: &lockedBuffer{}, actors: make(chan *actor, 100), done: make(chan struct{})}
	config := Config{
		Path: path, Args: []string{path, "worker"}, Environ: append(os.Environ(), stageVariable+"="+place), Stdout: os.Stdout, Stderr: os.Stderr, Slots: 100,
		Log: slog.New(slog.NewTextHandler(th.log, nil)), Patience: patience,
	}
	if change != nil {
		change(&config)
	}
	go func() {
		for {
			c, err := stage.Accept()
			if err != nil {
				return
			}
			go th.enter(c)
		}
	}()
	go func() {
		var open []net.Conn // until the test ends
		for {
			c, err := clients.Accept()
			if err != nil {
				break
			}
			open = append(open, c)
		}
		for _, c := range open {
			c.Close()
		}
	}()
	ctx, cancel := context.WithCancelCause(context.Background())
	th.cancel = cancel
	go func() {
		th.exit, th.err = Run(ctx, config)
		close(th.done)
	}()
	t.Cleanup(func() {
		stage.Close()
		clients.Close()
		select {
		case <-th.done:
		default: // the test has failed
			cancel(errors.New("the test has failed"))
			for s, err := Status(context.Background(), os.Getpid()); err == nil; s, err = Status(context.Background(), os.Getpid()) {
				for _, pid := range append(s.Lingering, s.Worker, s.Spare) {
					if pid > 0 {
						syscall.Kill(pid, syscall.SIGKILL)
					}
				}
				if s.Worker == 0 {
					break
				}
			}
			<-th.done
		}
		if t.Failed() {
			t.Logf("the log:\n%s", th.log)
		}
	})
	return th
}

// enter hears one worker.
func (th *theatre) enter(c net.Conn) {
	defer c.Close()
	lines := json.NewDecoder(bufio.NewReader(c))
	var first told
	if lines.Decode(&first) != nil {
		return
	}
	a := &actor{t: th.t, pid: first.Pid, serial: first.Serial, orders: make(chan Order, 100), end: make(chan string, 1), cues: json.NewEncoder(c)}
	th.actors <- a
	for {
		var said told
		if err := lines.Decode(&said); err != nil {
			return
		}
		if said.End != "" {
			a.end <- said.End
		} else {
			a.orders <- said.Order
		}
	}
}

// next returns the worker that is started next.
func (th *theatre) next() *actor {
	th.t.Helper()
	select {
	case a := <-th.actors:
		return a
	case <-th.done:
		th.t.Fatalf("the holder has ended with %d, %v:\n%s", th.exit, th.err, th.log)
	case <-time.After(patience):
		th.t.Fatalf("no worker is started:\n%s", th.log)
	}
	return nil
}

// first returns a first worker that serves.
func (th *theatre) first() *actor {
	th.t.Helper()
	a := th.next()
	a.do(cue{Do: "ready"})
	a.expect(Go, CauseStart)
	a.do(cue{Do: "serving"})
	th.serves(a)
	return a
}

func (th *theatre) status() StatusReport {
	th.t.Helper()
	s, err := Status(th.t.Context(), os.Getpid())
	if err != nil {
		th.t.Fatal(err)
	}
	return s
}

// serves waits until the holder knows that the worker serves.
func (th *theatre) serves(a *actor) {
	th.t.Helper()
	th.until("worker to serve", func(s StatusReport) bool { return s.Worker == a.pid })
}

func (th *theatre) until(what string, so func(StatusReport) bool) {
	th.t.Helper()
	for end := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		s := th.status()
		if so(s) {
			return
		}
		if time.Now().After(end) {
			th.t.Fatalf("waiting for the %s: %+v\n%s", what, s, th.log)
		}
	}
}

// stop ends the holder, whose worker is told to drain and ends.
func (th *theatre) stop(a *actor) {
	th.t.Helper()
	th.cancel(errors.New("the play is over"))
	if o := a.expect(Drain, ""); o.Why != "the play is over" {
		th.t.Errorf("it drains for %q", o.Why)
	}
	a.do(cue{Do: "exit"})
	th.ends(0)
}

func (th *theatre) ends(exit int) {
	th.t.Helper()
	select {
	case <-th.done:
	case <-time.After(patience):
		th.t.Fatalf("the holder does not end:\n%s", th.log)
	}
	if th.exit != exit || th.err != nil {
		th.t.Errorf("the holder has ended with %d, %v; want %d", th.exit, th.err, exit)
	}
}

func (a *actor) do(c cue) {
	a.t.Helper()
	if err := a.cues.Encode(c); err != nil {
		a.t.Errorf("worker %d can't be told to %s: %v", a.serial, c.Do, err)
	}
}

// expect returns the next order of the kind, of which a Go must have the cause. Lent comes with each.
func (a *actor) expect(kind OrderKind, cause string) Order {
	a.t.Helper()
	for {
		select {
		case o := <-a.orders:
			if o.Kind == Lent && kind != Lent {
				continue
			}
			if o.Kind != kind || o.Start.Cause != cause {
				a.t.Fatalf("worker %d: order %+v, want kind %d %s", a.serial, o, kind, cause)
			}
			return o
		case <-time.After(patience):
			a.t.Fatalf("worker %d is not given order %d %s", a.serial, kind, cause)
		}
	}
}

func (a *actor) kill() { syscall.Kill(a.pid, syscall.SIGKILL) }

func slots(conns []Conn) (slots []uint32) {
	for _, c := range conns {
		if c.Fd >= 0 {
			slots = append(slots, c.Slot)
		}
	}
	return slots
}

func TestAFirstWorkerThatFailsEndsTheHolderWithItsCode(t *testing.T) {
	th := open(t, nil)
	th.next().do(cue{Do: "exit", N: 7})
	th.ends(7)
}

func TestAWorkerThatDiesIsSucceededAndConnectionsAreHandedOver(t *testing.T) {
	th := open(t, nil)
	a := th.first()
	for slot := range uint32(5) {
		a.do(cue{Do: "keep", Slot: slot, Gen: 10 + slot})
	}
	a.do(cue{Do: "end", Slot: 3})
	th.until("sockets, less the one that is over", func(s StatusReport) bool { return s.Connections == 4 })
	open := th.status().Descriptors
	for range 10 {
		a.kill()
		a = th.next()
		a.do(cue{Do: "ready"})
		take := a.expect(Take, "")
		if got := slots(take.Conns); !slices.Equal(got, []uint32{0, 1, 2, 4}) || take.Conns[3].Gen != 14 {
			t.Errorf("handed over: %+v", take.Conns)
		}
		a.expect(Go, CauseCrash)
		a.do(cue{Do: "serving"})
		th.serves(a)
	}
	th.until("descriptors to be those there were", func(s StatusReport) bool { return s.Descriptors <= open })
	th.stop(a)
}

func TestAWorkerMayDieAtAnyPointOfItsBeginning(t *testing.T) {
	th := open(t, nil)
	a := th.first()
	a.do(cue{Do: "keep", Slot: 1, Gen: 2})
	th.until("socket", func(s StatusReport) bool { return s.Connections == 1 })
	a.kill()
	th.next().kill() // before it is ready
	a = th.next()
	a.do(cue{Do: "ready"})
	a.expect(Take, "")
	a.kill() // before it has heard of its start, or behind that
	a = th.next()
	a.do(cue{Do: "ready"})
	if take := a.expect(Take, ""); !slices.Equal(slots(take.Conns), []uint32{1}) {
		t.Errorf("handed over: %+v", take.Conns)
	}
	a.expect(Go, CauseCrash)
	a.do(cue{Do: "serving"})
	th.serves(a)
	th.stop(a)
}

func TestWorkersThatKeepDyingAreSucceededAfterAPause(t *testing.T) {
	th := open(t, nil)
	a := th.first()
	deaths := 0
	for !strings.Contains(th.log.String(), "workers keep dying") { // some are forgotten with time, on a slow machine
		if deaths == 10*deathBurst {
			t.Fatalf("no pause after %d deaths", deaths)
		}
		deaths++
		a.kill()
		a = th.next()
	}
	if deaths <= deathBurst {
		t.Errorf("a pause after %d deaths", deaths)
	}
	a.do(cue{Do: "ready"})
	a.expect(Go, CauseCrash)
	a.do(cue{Do: "serving"})
	th.serves(a)
	th.stop(a)
}

func TestAWorkerThatHangsIsKilled(t *testing.T) {
	th := open(t, func(c *Config) { c.Silence = 500 * time.Millisecond })
	a := th.first()
	syscall.Kill(a.pid, syscall.SIGSTOP)
	a = th.next()
	a.do(cue{Do: "ready"})
	a.expect(Go, CauseHang)
	a.do(cue{Do: "serving"})
	th.serves(a)
	th.stop(a)
}

func TestASpareWorkerTakesOverAtOnce(t *testing.T) {
	th := open(t, func(c *Config) { c.Spare = true })
	a := th.first()
	spare := th.next()
	spare.do(cue{Do: "ready"})
	th.until("spare", func(s StatusReport) bool { return s.Spare == spare.pid })
	a.do(cue{Do: "keep", Slot: 1, Gen: 2})
	th.until("socket", func(s StatusReport) bool { return s.Connections == 1 })
	a.kill()
	if take := spare.expect(Take, ""); !slices.Equal(slots(take.Conns), []uint32{1}) {
		t.Errorf("handed over: %+v", take.Conns)
	}
	spare.expect(Go, CauseCrash)
	spare.do(cue{Do: "serving"})
	th.serves(spare)
	another := th.next()
	another.kill() // a spare that dies is no loss
	th.serves(spare)
	th.stop(spare)
}

// reload reloads, and returns the candidate and what comes of it.
func (th *theatre) reload() (*actor, <-chan error) {
	th.t.Helper()
	result := make(chan error, 1)
	environ := append(os.Environ(), stageVariable+"="+os.Getenv(stageVariable))
	go func() { result <- Reload(context.Background(), os.Getpid(), environ) }()
	return th.next(), result
}

// reloads opens a theatre whose stage a reload's environment knows.
func reloads(t *testing.T, change func(*Config)) (*theatre, *actor) {
	th := open(t, func(c *Config) {
		for _, line := range c.Environ {
			if value, ok := strings.CutPrefix(line, stageVariable+"="); ok {
				t.Setenv(stageVariable, value)
			}
		}
		if change != nil {
			change(c)
		}
	})
	return th, th.first()
}

func TestAReloadHandsOverWhatIsFreeAndThenTheRest(t *testing.T) {
	th, old := reloads(t, nil)
	for slot := range uint32(3) {
		old.do(cue{Do: "keep", Slot: slot, Gen: 1})
	}
	th.until("sockets", func(s StatusReport) bool { return s.Connections == 3 })
	a, result := th.reload()
	a.do(cue{Do: "ready"})
	old.expect(Suspend, "")
	old.do(cue{Do: "release", Slot: 0}) // before it says that it is suspended: the holder looks at the table
	old.do(cue{Do: "suspended", N: 2})
	// A word of the first slot comes before the holder knows of the next worker: it is given with all that is free.
	if take := a.expect(Take, ""); !slices.Equal(slots(take.Conns), []uint32{0}) {
		t.Errorf("handed over at first: %+v", take.Conns)
	}
	if start := a.expect(Go, CauseReload).Start; !slices.Equal(start.Lingering, []uint32{old.serial}) || start.Starts[CauseReload] != 1 {
		t.Errorf("start: %+v", start)
	}
	if lent := a.expect(Lent, ""); lent.Posts != 2 {
		t.Errorf("%d POSTs are under way elsewhere, want 2", lent.Posts)
	}
	a.do(cue{Do: "serving"})
	if err := <-result; err != nil {
		t.Errorf("reload: %v", err)
	}
	old.do(cue{Do: "busy", N: 1})
	if lent := a.expect(Lent, ""); lent.Posts != 1 {
		t.Errorf("%d POSTs are under way elsewhere, want 1", lent.Posts)
	}
	old.do(cue{Do: "release", Slot: 1})
	if take := a.expect(Take, ""); !slices.Equal(slots(take.Conns), []uint32{1}) {
		t.Errorf("handed over then: %+v", take.Conns)
	}
	a.do(cue{Do: "own", Slot: 0})
	a.do(cue{Do: "own", Slot: 1})
	a.do(cue{Do: "keep", Slot: 9})
	th.until("new connection, behind which the others are its own", func(s StatusReport) bool { return s.Connections == 4 })
	old.kill()
	if take := a.expect(Take, ""); !slices.Equal(slots(take.Conns), []uint32{2}) {
		t.Errorf("handed over in the end: %+v", take.Conns)
	}
	if gone := a.expect(Gone, ""); gone.Lost != old.serial {
		t.Errorf("gone is %d, want %d", gone.Lost, old.serial)
	}
	th.stop(a)
}

// Both would take the same connections, and the same memory in the table.
func TestWhatIsLeftWhileAWorkerHandsOverGoesToItsSuccessorAlone(t *testing.T) {
	th, first := reloads(t, nil)
	for slot := range uint32(3) {
		first.do(cue{Do: "grow"})
		if slot < 2 {
			first.do(cue{Do: "keep", Slot: slot, Gen: 1})
		}
	}
	th.until("sockets", func(s StatusReport) bool { return s.Connections == 2 })
	second, result := th.reload()
	second.do(cue{Do: "ready"})
	first.expect(Suspend, "")
	first.do(cue{Do: "suspended"})
	second.expect(Go, CauseReload)
	second.do(cue{Do: "serving"})
	if err := <-result; err != nil {
		t.Errorf("reload: %v", err)
	}
	third, result := th.reload()
	third.do(cue{Do: "ready"})
	second.expect(Suspend, "")
	first.do(cue{Do: "release", Slot: 0})
	first.do(cue{Do: "release", Slot: 2}) // which has no socket
	first.do(cue{Do: "busy", N: 7})
	for second.expect(Lent, "").Posts != 7 { // by then the holder has heard all that
	}
	first.kill()
	th.until("end of the first", func(s StatusReport) bool { return len(s.Lingering) == 0 })
	second.do(cue{Do: "suspended"})
	var given []Conn
	for len(given) < 3 {
		given = append(given, third.expect(Take, "").Conns...)
	}
	if got := slots(given); !slices.Equal(got, []uint32{0, 1}) || given[2].Slot != 2 {
		t.Errorf("the successor is given %+v, want 0 and 1 with their sockets, and 2", given)
	}
	if start := third.expect(Go, CauseReload).Start; !slices.Equal(start.Lingering, []uint32{second.serial}) {
		t.Errorf("start: %+v", start)
	}
	third.do(cue{Do: "serving"})
	if err := <-result; err != nil {
		t.Errorf("reload: %v", err)
	}
	th.cancel(errors.New("the end"))
	second.expect(Drain, "") // and nothing before
	third.expect(Drain, "")
	second.do(cue{Do: "exit"})
	third.do(cue{Do: "exit"})
	th.ends(0)
}

func TestAReloadThatFailsLeavesTheWorkerServing(t *testing.T) {
	th, old := reloads(t, func(c *Config) { c.Patience = 2 * time.Second })
	a, result := th.reload()
	a.do(cue{Do: "failed", N: 2})
	if err := <-result; err == nil || !strings.Contains(err.Error(), "the wrong day") {
		t.Errorf("a candidate that says why it can't: %v", err)
	}
	a, result = th.reload()
	a.kill()
	if err := <-result; err == nil {
		t.Error("a candidate that is killed has taken over")
	}
	_, result = th.reload()
	if err := <-result; err == nil || !strings.Contains(err.Error(), "not ready") {
		t.Errorf("a candidate that never is ready: %v", err)
	}
	th.serves(old)
	// And one that dies when the other has stopped for it.
	a, result = th.reload()
	a.do(cue{Do: "ready"})
	old.expect(Suspend, "")
	old.do(cue{Do: "suspended"})
	a.expect(Go, CauseReload)
	a.kill()
	if err := <-result; err == nil {
		t.Error("a candidate that is killed as it begins has taken over")
	}
	old.expect(Go, CauseReloadFailed)
	old.do(cue{Do: "serving"})
	th.serves(old)
	th.stop(old)
}

func TestAWorkerThatIsNotToldToEndIsTold(t *testing.T) {
	if os.Getenv("HOLDER_TEST_PROCESS") != "" { // the holder, in a process of its own
		path, _ := os.Executable()
		Run(context.Background(), Config{Path: path, Args: []string{path, "worker"}, Environ: os.Environ(), Slots: 10, Log: slog.New(slog.DiscardHandler), Patience: patience})
		return
	}
	place := filepath.Join(t.TempDir(), "stage")
	stage, err := net.Listen("unix", place)
	if err != nil {
		t.Fatal(err)
	}
	defer stage.Close()
	cmd := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$")
	cmd.Env = append(os.Environ(), "HOLDER_TEST_PROCESS=1", stageVariable+"="+place)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	th := &theatre{t: t, log: &lockedBuffer{}, actors: make(chan *actor, 1)}
	c, err := stage.Accept()
	if err != nil {
		t.Fatal(err)
	}
	go th.enter(c)
	a := th.next()
	cmd.Process.Kill()
	cmd.Wait()
	select {
	case why := <-a.end:
		if why != io.EOF.Error() && !strings.Contains(why, "EOF") {
			t.Errorf("the link has ended with %q", why)
		}
	case <-time.After(patience):
		t.Error("the worker does not know that its holder is dead")
	}
	a.do(cue{Do: "exit"})
}

func TestNobodyElseIsAnswered(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("this test asks as another user, which takes root: run it as root")
	}
	th := open(t, nil)
	a := th.first()
	// Another user may not run what is in the test's own directory.
	path := filepath.Join(os.TempDir(), fmt.Sprintf("holder-ask-%d", os.Getpid()))
	data, err := os.ReadFile(os.Args[0])
	if err == nil {
		// A process that is started meanwhile would have the file open as well, for a moment: nobody could run it.
		syscall.ForkLock.RLock()
		err = os.WriteFile(path, data, 0o755)
		syscall.ForkLock.RUnlock()
	}
	if err != nil {
		t.Fatal(err)
	}
	defer os.Remove(path)
	ask := exec.Command(path)
	ask.Env = []string{askVariable + "=" + strconv.Itoa(os.Getpid())}
	ask.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	out, err := ask.CombinedOutput()
	if err != nil || strings.TrimSpace(string(out)) == "<nil>" {
		t.Errorf("asked by another user it says %q, %v", out, err)
	}
	if s := th.status(); s.Worker != a.pid {
		t.Errorf("status: %+v", s)
	}
	th.stop(a)
}
