package holder

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// worker is a process that serves, has served or is to serve.
type worker struct {
	serial    uint32
	process   *os.Process // nil of one that another process has started
	pidfd     int         // of such a one
	pid       int
	line      *line
	environ   []string
	file      identity  // of its program
	told      time.Time // to serve; zero: it was not
	cause     string    // it was told to serve for
	from      *worker   // it was to take over from, by a reload
	failure   string    // what it said before it ended
	hung      bool      // we killed it since it did not answer
	asked     int       // pings without an answer
	posts     int       // under way, behind Suspended
	ready     chan struct{}
	suspended chan struct{}
	serving   chan struct{}
	dead      chan struct{} // closed once nothing is left of the process
	paused    chan struct{} // told that nothing is read of what it says, when the line's deadline has been set to a time that is over
	goOn      chan struct{} // and that it is read again
	isReady   bool
	serves    bool
	leaving   bool // it has been told to suspend, and has not said that it has
}

func newWorker(serial uint32, environ []string) *worker {
	return &worker{
		serial: serial, environ: environ, ready: make(chan struct{}), suspended: make(chan struct{}), serving: make(chan struct{}), dead: make(chan struct{}),
		paused: make(chan struct{}), goOn: make(chan struct{}),
	}
}

// spawn starts a worker. The lock is held.
func (h *holding) spawn(environ []string) (*worker, error) {
	mine, theirs, err := linkPair()
	if err != nil {
		return nil, fmt.Errorf("a link for a worker: %w", err)
	}
	link := os.NewFile(uintptr(theirs), "link")
	defer link.Close()
	path, err := programAt(h.config.Path)
	if err != nil {
		unix.Close(mine)
		return nil, err
	}
	file := identify(path)
	process, err := os.StartProcess(path, h.config.Args, &os.ProcAttr{
		Env: workerEnviron(environ), Files: []*os.File{nil, h.config.Stdout, h.config.Stderr, link},
	})
	if err != nil {
		unix.Close(mine)
		return nil, fmt.Errorf("a worker can't be started: %w", err)
	}
	line, err := newLine(mine)
	if err != nil {
		process.Kill()
		process.Wait()
		return nil, fmt.Errorf("a link for a worker: %w", err)
	}
	w := newWorker(h.table.nextSerial(), environ)
	w.process, w.pid, w.line, w.file = process, process.Pid, line, file
	p := packet{op: opWelcome, a: w.serial, fds: []int{h.table.Fd()}}
	var said welcome
	for _, l := range h.listeners {
		said.Listeners, p.fds = append(said.Listeners, l.address), append(p.fds, l.fd)
	}
	p.body, _ = json.Marshal(said)
	h.tell(w, p)
	go h.serve(w)
	return w, nil
}

// programAt returns the file to run, now: a new version may have taken the place of the one before.
func programAt(path string) (string, error) {
	// What /proc/self/exe says of a file that another has replaced.
	path = strings.TrimSuffix(path, " (deleted)")
	if _, err := os.Stat(path); err != nil {
		return "", fmt.Errorf("the program is not where it was: %w", err)
	}
	return path, nil
}

// workerEnviron returns what a worker is given of an environment: what systemd says to this process is not for it.
func workerEnviron(environ []string) []string {
	return slices.DeleteFunc(slices.Clone(environ), func(line string) bool {
		name, _, _ := strings.Cut(line, "=")
		switch name {
		case "NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES", heldVariable:
			return true
		}
		return false
	})
}

// tell sends a worker a packet. One that can't be told anything hangs or is dead.
func (h *holding) tell(w *worker, p packet) {
	w.line.SetWriteDeadline(time.Now().Add(h.config.Silence))
	err := w.line.write(p)
	for errors.Is(err, unix.ETOOMANYREFS) { // it has not taken the descriptors before these
		time.Sleep(time.Millisecond)
		err = w.line.write(p)
	}
	if err != nil {
		w.kill()
	}
}

// kill ends the process.
func (w *worker) kill() {
	if w.process != nil {
		w.process.Kill()
	} else if w.pidfd != 0 {
		unix.PidfdSendSignal(w.pidfd, unix.SIGKILL, nil, 0)
	}
}

// wait returns once nothing is left of the process. How it has ended is not known of one that another process has started.
func (w *worker) wait() *os.ProcessState {
	if w.process != nil {
		state, _ := w.process.Wait()
		return state
	}
	if w.pidfd != 0 {
		poll := []unix.PollFd{{Fd: int32(w.pidfd), Events: unix.POLLIN}}
		for {
			if _, err := unix.Poll(poll, -1); err != unix.EINTR {
				break
			}
		}
		unix.Close(w.pidfd)
	}
	return nil
}

// serve hears what a worker says, until it is dead.
func (h *holding) serve(w *worker) {
	r := newReader(w.line)
	for {
		p, err := r.read()
		if errors.Is(err, os.ErrDeadlineExceeded) {
			w.paused <- struct{}{}
			<-w.goOn
			continue
		}
		if err != nil {
			break
		}
		h.hear(w, p)
	}
	w.kill() // one that has closed its link and lives on is out of its mind
	state := w.wait()
	w.line.Close()
	h.died(w, state)
}

// died takes note that nothing is left of a worker.
func (h *holding) died(w *worker, state *os.ProcessState) {
	h.mu.Lock()
	defer h.mu.Unlock()
	defer close(w.dead)
	how := "unknown"
	if state != nil {
		how = state.String()
	}
	if i := slices.Index(h.lingering, w); i >= 0 {
		h.lingering = slices.Delete(h.lingering, i, i+1)
		left := h.left(w)
		// How one ends that another holder has started, nobody can tell: but one that has handed over all has no reason to go on.
		if state != nil && !state.Success() || state == nil && len(left) > 0 {
			h.config.Log.Error("a worker has died while it handed over", "pid", w.pid, "how", how, "connections", len(left))
		}
		h.takeFrom(w, left)
		h.finishIfDrained()
		return
	}
	switch w {
	case h.next:
		h.next = nil
		return
	case h.spare:
		h.spare = nil
		h.config.Log.Warn("the spare worker has died", "pid", w.pid, "how", how)
		h.prepare(retryPause)
		return
	case h.active:
		h.active = nil
	default:
		return
	}
	if h.draining || !h.served {
		if state != nil && state.ExitCode() >= 0 {
			h.exit = state.ExitCode()
		} else if state != nil {
			h.exit = 1
		}
		h.draining = true
		h.finishIfDrained()
		return
	}
	cause := CauseCrash
	if w.hung {
		cause = CauseHang
	}
	h.config.Log.Error("the worker has died: another takes over", "pid", w.pid, "how", how, "cause", cause, "connections", h.count)
	// A reload has failed behind the point where the old worker could just have gone on.
	if i := slices.IndexFunc(h.lingering, func(other *worker) bool { return !w.serves && other == w.from }); i >= 0 {
		old := h.lingering[i]
		h.lingering = slices.Delete(h.lingering, i, i+1)
		h.restart(old)
		return
	}
	h.succeed(cause)
}

// left returns the connections that a worker has not handed over.
func (h *holding) left(w *worker) (conns []Conn) {
	for i, s := range h.sockets {
		if s.fd != 0 && h.table.Slot(uint32(i)).Had(w.serial) {
			conns = append(conns, Conn{uint32(i), s.gen, int(s.fd)})
		}
	}
	return conns
}

// takes reports whether the worker that serves is given what others leave, now. One that has been told to suspend is not: its successor is given everything as it begins,
// and what both took would have two masters.
func (h *holding) takes() bool {
	return h.active != nil && !h.active.told.IsZero() && !h.active.leaving
}

// takeFrom gives the connections of a worker that has died while it handed over to the one that serves.
func (h *holding) takeFrom(w *worker, left []Conn) {
	if !h.takes() {
		return // whoever is told to serve is given them with the others
	}
	h.hand(h.active, left)
	h.tell(h.active, packet{op: byte(Gone), a: w.serial})
	h.lend()
}

// succeed finds a worker to take the place of one that has died.
func (h *holding) succeed(cause string) {
	pause := h.deaths.Reserve().Delay()
	if h.next != nil { // the candidate of a reload
		h.active, h.next = h.next, nil
	} else {
		h.active, h.spare = h.spare, nil
	}
	if h.active != nil {
		h.active.cause = cause
		if h.active.isReady {
			h.start(h.active, cause)
		}
		return
	}
	if pause == 0 {
		h.again(cause)
		return
	}
	h.config.Log.Error("workers keep dying: a pause before the next", "pause", pause.String(), "connections", h.count)
	time.AfterFunc(pause, func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		h.again(cause)
	})
}

// again starts a worker in the place of one that has died.
func (h *holding) again(cause string) {
	if h.active != nil || h.over {
		return
	}
	if h.draining {
		h.finishIfDrained()
		return
	}
	w, err := h.spawn(h.environ)
	if err != nil {
		h.config.Log.Error("no worker can be started: trying again", "error", err, "pause", retryPause.String(), "connections", h.count)
		time.AfterFunc(retryPause, func() {
			h.mu.Lock()
			defer h.mu.Unlock()
			h.again(cause)
		})
		return
	}
	w.cause = cause
	h.active = w
}

// prepare starts a spare worker after a pause, so that the one that serves has begun in peace: a process that has started when it is needed.
func (h *holding) prepare(pause time.Duration) {
	if !h.config.Spare {
		return
	}
	time.AfterFunc(pause, func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		if h.spare != nil || h.draining || h.active == nil || !h.active.serves {
			return
		}
		w, err := h.spawn(h.environ)
		if err != nil {
			h.config.Log.Warn("no spare worker can be started", "error", err)
			return
		}
		h.spare = w
	})
}

// dismiss ends the spare worker.
func (h *holding) dismiss() {
	if h.spare != nil {
		h.spare.kill()
		h.spare = nil
	}
}

// ask asks the workers whether they live, and kills those that don't answer.
func (h *holding) ask(late bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, w := range append([]*worker{h.active, h.next, h.spare}, h.lingering...) {
		if w == nil || !w.isReady {
			continue
		}
		if late {
			w.asked = 0
		}
		if w.asked++; w.asked > pingEvery {
			h.config.Log.Error("a worker does not answer: it is killed", "pid", w.pid, "seconds", h.config.Silence.Seconds())
			w.hung = true
			w.kill()
			continue
		}
		h.tell(w, packet{op: opPing})
	}
}
