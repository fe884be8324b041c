package holder

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
	"unsafe"

	"github.com/coreos/go-systemd/v22/daemon"
	"golang.org/x/sys/unix"
)

const (
	// suspendTime is how long a worker may take to stop reading, for another to take over. One that takes longer hangs.
	suspendTime = 10 * time.Second
	// defaultSilence is Config.Silence where it is not set, and pingEvery how often in that time the worker is asked.
	defaultSilence = 10 * time.Second
	pingEvery      = 5
	// A worker that has died within a moment after it was told to serve would do so again and again: the first few are succeeded at once, the
	// later ones after a pause that doubles.
	shortLife  = time.Second
	shortLives = 3
	firstPause = 100 * time.Millisecond
	lastPause  = 5 * time.Second
)

// holding is a holder at work.
type holding struct {
	config Config
	table  *Table
	epoll  int
	done   chan struct{} // closed when it is over

	reloading sync.Mutex // held by the reload that is under way

	mu        sync.Mutex // guards the following
	sockets   []socket   // by slot
	count     int        // of sockets held
	listeners []kept
	environ   []string
	serial    uint32
	starts    map[string]uint64
	active    *worker // serves, or is about to
	next      *worker // is to take over from it
	lingering []*worker
	served    bool // a worker has served
	draining  bool
	why       string // we drain
	short     int    // lives in a row that were short
	exit      int
	over      bool
}

// socket is a duplicate of a client's socket; 0 stands for none.
type socket struct {
	fd  int32
	gen uint32
}

// kept is a listener that is held.
type kept struct {
	address
	fd int
	by uint32 // serial of the worker that opened it
}

// worker is a process that serves, has served or is to serve.
type worker struct {
	serial    uint32
	process   *os.Process
	pid       int
	line      *line
	environ   []string
	told      time.Time // to serve; zero: it was not
	cause     string    // it was told to serve for
	failure   string    // what it said before it ended
	hung      bool      // we killed it since it did not answer
	asked     int       // pings without an answer
	posts     int       // under way, behind Suspended
	ready     chan struct{}
	suspended chan struct{}
	serving   chan struct{}
	dead      chan struct{} // closed once nothing is left of the process
	isReady   bool
	serves    bool
}

// Run holds until ctx ends and the workers have drained, or until the first worker has ended without ever having served. It returns the exit
// code of the worker that was the last to serve. An error says why there could be none.
func Run(ctx context.Context, config Config) (exit int, err error) {
	if config.Silence == 0 {
		config.Silence = defaultSilence
	}
	h := &holding{config: config, environ: config.Environ, starts: map[string]uint64{}, done: make(chan struct{})}
	if h.table, err = NewTable(config.Slots); err != nil {
		return 0, err
	}
	if h.epoll, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return 0, fmt.Errorf("epoll: %w", err)
	}
	h.inherit()
	stop, err := h.control()
	if err != nil {
		return 0, err
	}
	defer stop()
	h.mu.Lock()
	if h.active, err = h.spawn(h.environ); err == nil {
		h.active.cause = CauseStart
	}
	h.mu.Unlock()
	if err != nil {
		return 0, err
	}
	go h.watchSockets()
	go h.reap()
	h.loop(ctx)
	return h.exit, nil
}

// loop does what comes by time, and what comes from whoever runs the holder.
func (h *holding) loop(ctx context.Context) {
	every := h.config.Silence / pingEvery
	pings := time.NewTicker(every)
	defer pings.Stop()
	last := time.Now()
	ending := ctx.Done()
	for {
		select {
		case <-h.done:
			return
		case <-ending:
			ending = nil
			h.drain(context.Cause(ctx).Error())
		case <-h.config.Reload:
			go func() {
				h.mu.Lock()
				environ := h.environ
				h.mu.Unlock()
				if err := h.reload(environ); err != nil {
					h.config.Log.Error("reload failed: the worker before goes on", "error", err)
				}
			}()
		case now := <-pings.C:
			late := now.Sub(last) > 2*every // this process has stood itself: nobody could answer
			last = now
			h.ask(late)
		}
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
	h.serial++
	w := &worker{
		serial: h.serial, process: process, pid: process.Pid, line: line, environ: environ,
		ready: make(chan struct{}), suspended: make(chan struct{}), serving: make(chan struct{}), dead: make(chan struct{}),
	}
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
		case "NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES":
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
		w.process.Kill()
	}
}

// serve hears what a worker says, until it is dead.
func (h *holding) serve(w *worker) {
	r := newReader(w.line)
	for {
		p, err := r.read()
		if err != nil {
			break
		}
		h.hear(w, p)
	}
	w.process.Kill() // one that has closed its link and lives on is out of its mind
	state, err := w.process.Wait()
	w.line.Close()
	h.died(w, state, err)
}

// hear does what a worker says.
func (h *holding) hear(w *worker, p packet) {
	h.mu.Lock()
	defer h.mu.Unlock()
	switch p.op {
	case opReady:
		if !w.isReady {
			w.isReady = true
			close(w.ready)
		}
		if w == h.active && w.told.IsZero() {
			h.start(w, w.cause)
		}
	case opServing:
		h.serves(w)
	case opSuspended:
		h.suspended(w, int(p.a))
	case opBusy:
		w.posts = int(p.a)
		h.lend()
	case opRelease:
		if h.active != nil && h.active != w && !h.active.told.IsZero() {
			h.hand(h.active, []Conn{h.conn(p.a)})
		}
	case opKeep:
		for _, fd := range p.fds {
			h.keep(p.a, p.b, fd)
		}
	case opKeepListener:
		var of address
		if err := json.Unmarshal(p.body, &of); err != nil || len(p.fds) != 1 {
			p.close()
			return
		}
		h.listeners = append(h.listeners, kept{of, p.fds[0], w.serial})
	case opFailed:
		w.failure = string(p.body)
	case opPong:
		w.asked = 0
	default:
		p.close()
	}
}

// keep holds a socket. The lock is held, here and in what follows.
func (h *holding) keep(slot, gen uint32, fd int) {
	if int(slot) >= h.table.Slots() {
		unix.Close(fd)
		return
	}
	for len(h.sockets) <= int(slot) {
		h.sockets = append(h.sockets, socket{})
	}
	h.drop(slot)
	h.sockets[slot] = socket{int32(fd), gen}
	h.count++
	// No event is asked for: that both sides have ended, or that it is broken, comes anyway, and what a client sends wakes nobody.
	unix.EpollCtl(h.epoll, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: unix.EPOLLET & 0xffffffff, Fd: int32(slot), Pad: int32(gen)})
}

// drop lets go of a socket.
func (h *holding) drop(slot uint32) {
	if int(slot) >= len(h.sockets) || h.sockets[slot].fd == 0 {
		return
	}
	fd := int(h.sockets[slot].fd)
	unix.EpollCtl(h.epoll, unix.EPOLL_CTL_DEL, fd, nil) // closing does not do that while others have it open
	unix.Close(fd)
	h.sockets[slot] = socket{}
	h.count--
}

// watchSockets lets go of sockets that are over.
func (h *holding) watchSockets() {
	events := make([]unix.EpollEvent, 256)
	for {
		n, err := unix.EpollWait(h.epoll, events, -1)
		if err != nil && err != unix.EINTR {
			return // it is closed
		}
		h.mu.Lock()
		for i := range max(n, 0) {
			slot, gen := uint32(events[i].Fd), uint32(events[i].Pad)
			if int(slot) < len(h.sockets) && h.sockets[slot].gen == gen {
				h.drop(slot)
			}
		}
		over := h.over
		h.mu.Unlock()
		if over {
			return
		}
	}
}

// conn returns what is held of a slot.
func (h *holding) conn(slot uint32) Conn {
	if int(slot) < len(h.sockets) && h.sockets[slot].fd != 0 {
		return Conn{slot, h.sockets[slot].gen, int(h.sockets[slot].fd)}
	}
	c := Conn{Slot: slot, Fd: -1}
	if int(slot) < h.table.Slots() {
		c.Gen = h.table.Slot(slot).Gen.Load()
	}
	return c
}

// hand hands connections over to a worker.
func (h *holding) hand(w *worker, conns []Conn) {
	for _, p := range takePackets(conns) {
		h.tell(w, p)
	}
}

// start tells a worker to serve, with everything that no other has.
func (h *holding) start(w *worker, cause string) {
	w.told, w.cause = time.Now(), cause
	start := Start{Cause: cause}
	for _, other := range h.lingering {
		start.Lingering = append(start.Lingering, other.serial)
	}
	h.starts[cause]++
	start.Starts = h.starts
	var conns []Conn
	for i, s := range h.sockets {
		if slot := h.table.Slot(uint32(i)); s.fd != 0 && !slices.ContainsFunc(start.Lingering, slot.Has) {
			conns = append(conns, Conn{uint32(i), s.gen, int(s.fd)})
		}
	}
	h.hand(w, conns)
	body, _ := json.Marshal(start)
	h.tell(w, packet{op: byte(Go), body: body})
	h.lend()
}

// lend tells the worker that serves how many POSTs the others have under way.
func (h *holding) lend() {
	if h.active == nil || h.active.told.IsZero() {
		return
	}
	posts := 0
	for _, w := range h.lingering {
		posts += w.posts
	}
	h.tell(h.active, packet{op: byte(Lent), a: uint32(posts)})
}

// serves takes note that a worker accepts and reads.
func (h *holding) serves(w *worker) {
	if w != h.active || w.serves {
		return
	}
	w.serves = true
	close(w.serving)
	h.served = true
	// Those of other addresses are not needed any more.
	newest := map[string]uint32{}
	for _, l := range h.listeners {
		newest[l.Name] = max(newest[l.Name], l.by)
	}
	h.listeners = slices.DeleteFunc(h.listeners, func(l kept) bool {
		if l.Name != "" && l.by < newest[l.Name] {
			unix.Close(l.fd)
			return true
		}
		return false
	})
	daemon.SdNotify(false, "READY=1\nSTATUS=worker "+strconv.Itoa(w.pid)+" serves") // without systemd it does nothing
}

// suspended takes note that a worker reads nothing any more: its successor begins.
func (h *holding) suspended(w *worker, posts int) {
	w.posts = posts
	close(w.suspended)
	w.suspended = make(chan struct{}) // it may be told to serve once more
	h.lingering = append(h.lingering, w)
	if w != h.active {
		return
	}
	if h.next == nil { // that has died meanwhile
		h.active = w
		h.lingering = slices.DeleteFunc(h.lingering, func(other *worker) bool { return other == w })
		h.restart(w)
		return
	}
	h.active, h.next = h.next, nil
	h.start(h.active, CauseReload)
}

// restart lets a worker that was suspended serve again.
func (h *holding) restart(w *worker) {
	h.active = w
	w.serves, w.serving = false, make(chan struct{})
	h.start(w, CauseReloadFailed)
}

// died takes note that nothing is left of a worker.
func (h *holding) died(w *worker, state *os.ProcessState, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	defer close(w.dead)
	how := "unknown"
	if state != nil {
		how = state.String()
	}
	if i := slices.Index(h.lingering, w); i >= 0 {
		h.lingering = slices.Delete(h.lingering, i, i+1)
		if state == nil || !state.Success() {
			h.config.Log.Error("a worker has died while it handed over", "pid", w.pid, "how", how)
		}
		h.takeFrom(w)
		h.finishIfDrained()
		return
	}
	if w == h.next {
		h.next = nil
		return
	}
	if w != h.active {
		return
	}
	h.active = nil
	if h.draining || !h.served {
		if h.exit = 1; state != nil && state.ExitCode() >= 0 {
			h.exit = state.ExitCode()
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
	if i := slices.IndexFunc(h.lingering, func(other *worker) bool { return !w.serves && w.cause == CauseReload && other.serial == w.before() }); i >= 0 {
		old := h.lingering[i]
		h.lingering = slices.Delete(h.lingering, i, i+1)
		h.restart(old)
		return
	}
	h.succeed(w, cause)
}

// before returns the serial of the worker that the candidate of a reload was to take over from.
func (w *worker) before() uint32 { return w.serial - 1 }

// takeFrom gives the connections of a worker that has died while it handed over to the one that serves.
func (h *holding) takeFrom(w *worker) {
	if h.active == nil || h.active.told.IsZero() {
		return // whoever is told to serve is given them with the others
	}
	var conns []Conn
	for i, s := range h.sockets {
		if s.fd != 0 && h.table.Slot(uint32(i)).Had(w.serial) {
			conns = append(conns, Conn{uint32(i), s.gen, int(s.fd)})
		}
	}
	h.hand(h.active, conns)
	h.tell(h.active, packet{op: byte(Gone), a: w.serial})
	h.lend()
}

// succeed finds a worker to take the place of one that has died.
func (h *holding) succeed(w *worker, cause string) {
	if !w.told.IsZero() && time.Since(w.told) >= shortLife {
		h.short = 0
	} else {
		h.short++
	}
	if h.next != nil { // the candidate of a reload
		h.active, h.next = h.next, nil
		h.active.cause = cause
		if h.active.isReady {
			h.start(h.active, cause)
		}
		return
	}
	if h.short < shortLives {
		h.again(cause)
		return
	}
	pause := min(firstPause<<min(h.short-shortLives, 10), lastPause)
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
		h.config.Log.Error("no worker can be started: trying again", "error", err, "pause", lastPause.String(), "connections", h.count)
		time.AfterFunc(lastPause, func() {
			h.mu.Lock()
			defer h.mu.Unlock()
			h.again(cause)
		})
		return
	}
	w.cause = cause
	h.active = w
}

// ask asks the workers whether they live, and kills those that don't answer.
func (h *holding) ask(late bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, w := range append([]*worker{h.active, h.next}, h.lingering...) {
		if w == nil || !w.isReady {
			continue
		}
		if late {
			w.asked = 0
		}
		if w.asked++; w.asked > pingEvery {
			h.config.Log.Error("a worker does not answer: it is killed", "pid", w.pid, "seconds", h.config.Silence.Seconds())
			w.hung = true
			w.process.Kill()
			continue
		}
		h.tell(w, packet{op: opPing})
	}
}

// drain tells the workers to end.
func (h *holding) drain(why string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.draining, h.why = true, why
	for _, l := range h.listeners { // so that whoever comes now is refused, and does not wait for nobody
		unix.Close(l.fd)
	}
	h.listeners = nil
	daemon.SdNotify(false, daemon.SdNotifyStopping)
	if h.next != nil {
		h.next.process.Kill()
	}
	for _, w := range append([]*worker{h.active}, h.lingering...) {
		if w != nil {
			h.tell(w, packet{op: byte(Drain), body: []byte(why)})
		}
	}
	h.finishIfDrained()
}

// finishIfDrained ends the holding once no worker is left.
func (h *holding) finishIfDrained() {
	if h.draining && h.active == nil && len(h.lingering) == 0 && !h.over {
		h.over = true
		close(h.done)
	}
}

// reload lets a new worker take over, and returns when it serves. On an error the one before goes on.
func (h *holding) reload(environ []string) error {
	if !h.reloading.TryLock() {
		return errors.New("another reload is under way: try again when that is through")
	}
	defer h.reloading.Unlock()
	h.mu.Lock()
	for end := time.Now().Add(h.config.Patience); !h.draining && (h.active == nil || !h.active.serves); h.mu.Lock() {
		h.mu.Unlock()
		if time.Now().After(end) {
			return fmt.Errorf("no worker has served for %s: try again when one does", h.config.Patience)
		}
		time.Sleep(10 * time.Millisecond) // one has just died, and its successor is on its way
	}
	old := h.active
	if h.draining {
		h.mu.Unlock()
		return errors.New("this wsbridge is stopping")
	}
	daemon.SdNotify(false, "RELOADING=1\nMONOTONIC_USEC="+monotonic())
	defer daemon.SdNotify(false, daemon.SdNotifyReady)
	w, err := h.spawn(environ)
	if err != nil {
		h.mu.Unlock()
		return err
	}
	h.next = w
	h.mu.Unlock()

	patience := time.NewTimer(h.config.Patience)
	defer patience.Stop()
	select {
	case <-w.ready:
	case <-w.dead:
		return h.failed(w)
	case <-patience.C:
		w.process.Kill()
		<-w.dead
		return fmt.Errorf("the new version is not ready after %s", h.config.Patience)
	}
	h.mu.Lock()
	suspended, serving := old.suspended, w.serving
	if h.active == old {
		h.tell(old, packet{op: byte(Suspend)})
	}
	h.mu.Unlock()
	select {
	case <-suspended:
	case <-old.dead: // w takes over all the same
	case <-w.dead:
		return h.failed(w)
	case <-time.After(suspendTime):
		h.config.Log.Error("the worker does not hand over: it is killed", "pid", old.pid)
		old.process.Kill()
	}
	select {
	case <-serving:
	case <-w.dead:
		return h.failed(w)
	}
	h.mu.Lock()
	h.environ = environ
	h.mu.Unlock()
	return nil
}

// failed says why a candidate has ended.
func (h *holding) failed(w *worker) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if w.failure != "" {
		return errors.New(w.failure)
	}
	return errors.New("the new version has ended before it served; its log says why")
}

// inherit takes the listening sockets that systemd has passed on (sd_listen_fds(3)): workers find them by their addresses.
func (h *holding) inherit() {
	if os.Getenv("LISTEN_PID") != strconv.Itoa(os.Getpid()) {
		return
	}
	n, _ := strconv.Atoi(os.Getenv("LISTEN_FDS"))
	for fd := 3; fd < 3+n; fd++ {
		unix.CloseOnExec(fd)
		if listening, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ACCEPTCONN); err != nil || listening == 0 {
			continue
		}
		if name, err := unix.Getsockname(fd); err == nil {
			h.listeners = append(h.listeners, kept{address{Address: addressOf(name)}, fd, 0})
		}
	}
}

// addressOf returns an address as a setting has it.
func addressOf(name unix.Sockaddr) string {
	switch a := name.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(a.Addr), uint16(a.Port)).String()
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(a.Addr), uint16(a.Port)).String()
	case *unix.SockaddrUnix:
		return "unix:" + a.Name
	}
	return ""
}

// monotonic is the time as systemd wants it with RELOADING=1.
func monotonic() string {
	var now unix.Timespec
	unix.ClockGettime(unix.CLOCK_MONOTONIC, &now)
	return strconv.FormatInt(now.Nano()/1000, 10)
}

// reap takes leave of strangers' orphans, where this is the first process of a container. Workers are waited for by those who started them.
func (h *holding) reap() {
	if os.Getpid() != 1 {
		return
	}
	for range time.Tick(time.Second) {
		for {
			var info unix.Siginfo
			if unix.Waitid(unix.P_ALL, 0, &info, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT, nil) != nil {
				break
			}
			pid := int(*(*int32)(unsafe.Add(unsafe.Pointer(&info), 16))) // si_pid (sigaction(2)), which the package has no name for
			h.mu.Lock()
			ours := slices.ContainsFunc(append([]*worker{h.active, h.next}, h.lingering...), func(w *worker) bool { return w != nil && w.pid == pid })
			h.mu.Unlock()
			if pid == 0 || ours {
				break
			}
			syscall.Wait4(pid, nil, 0, nil)
		}
	}
}
