package holder

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"golang.org/x/sys/unix"
	"golang.org/x/time/rate"
)

const (
	// suspendTime is how long a worker may take to stop reading, for another to take over. One that takes longer hangs.
	suspendTime = 10 * time.Second
	// defaultSilence is Config.Silence where it is not set, and pingEvery how often in that time the worker is asked.
	defaultSilence = 10 * time.Second
	pingEvery      = 5
	// Workers that die are succeeded at once, unless they keep dying: that many at first, and then one in each deathEvery.
	deathBurst = 20
	deathEvery = time.Second
	// sparePause is how long a worker has served before a spare is started, and retryPause how long it takes until what has failed is tried again.
	sparePause = time.Second
	retryPause = 5 * time.Second
)

// holding is a holder at work.
type holding struct {
	config  Config
	table   *Table
	epoll   int
	done    chan struct{} // closed when it is over
	store   store
	journal *journal          // nil: there is none
	asked   *net.UnixListener // where it is asked
	file    identity          // of the program that this process runs

	deaths    *rate.Limiter
	reloading sync.Mutex    // held by the reload or the upgrade that is under way
	answering atomic.Int64  // requests and signals that are being answered
	deaf      chan struct{} // told that no request is accepted, when the deadline of asked has been set to a time that is over
	hears     chan struct{} // and that they are again

	mu        sync.Mutex // guards the following
	sockets   []socket   // by slot
	count     int        // of sockets held
	listeners []kept
	environ   []string // of the worker that serves
	starts    map[string]uint64
	active    *worker // serves, or is about to
	next      *worker // is to take over from it
	spare     *worker // is ready to do so if it dies
	lingering []*worker
	unclaimed []uint32 // slots that were released while nobody was given them
	served    bool     // a worker has served
	draining  bool
	why       string // we drain
	exit      int
	over      bool
}

// kept is a listener that is held.
type kept struct {
	address
	fd int
	by uint32 // serial of the worker that opened it
}

// Run holds until ctx ends and the workers have drained, or until the first worker has ended without ever having served. It returns the exit
// code of the worker that was the last to serve. An error says why there could be none.
func Run(ctx context.Context, config Config) (exit int, err error) {
	if config.Silence == 0 {
		config.Silence = defaultSilence
	}
	h := &holding{config: config, environ: config.Environ, starts: map[string]uint64{}, done: make(chan struct{}), deaf: make(chan struct{}), hears: make(chan struct{}),
		deaths: rate.NewLimiter(rate.Every(deathEvery), deathBurst), file: identify("/proc/self/exe")}
	if h.epoll, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return 0, fmt.Errorf("epoll: %w", err)
	}
	left := h.inherit()
	if h.table = left.table; h.table == nil {
		if h.table, err = NewTable(config.Slots); err != nil {
			return 0, err
		}
	}
	if config.StateDir != "" {
		h.journal = openJournal(config.StateDir, h.table, config.Log)
	}
	if h.journal != nil {
		if left.table == nil {
			if n := h.journal.load(h.table.nextSerial()); n > 0 {
				config.Log.Warn("everything was killed at once: disconnect events are sent for what was open", "connections", n)
			}
		}
		h.journal.begin()
		go h.journal.keep(h.done)
	}
	stop, err := h.control(left.own)
	if err != nil {
		return 0, err
	}
	defer stop()
	h.mu.Lock()
	err = h.begin(left)
	h.mu.Unlock()
	if err != nil {
		return 0, err
	}
	go h.watchSockets()
	go h.reap()
	h.loop(ctx)
	return h.exit, nil
}

// begin starts the first worker, or goes on with what an earlier holder has left. The lock is held.
func (h *holding) begin(left estate) (err error) {
	h.listeners = left.listeners
	for _, l := range h.config.Listeners {
		fd, err := unix.FcntlInt(l.File.Fd(), unix.F_DUPFD_CLOEXEC, 3)
		if err != nil {
			return fmt.Errorf("the listener on %s: %w", l.Address, err)
		}
		h.listeners = append(h.listeners, kept{address{Address: l.Address}, fd, 0})
	}
	if left.table != nil {
		h.served = true // whatever happens now is no fault in the settings
		h.takeOver(left)
		return nil
	}
	if h.active, err = h.spawn(h.environ); err == nil {
		h.active.cause = CauseStart
	}
	return err
}

// loop does what comes by time, and what comes from whoever runs the holder.
func (h *holding) loop(ctx context.Context) {
	every := h.config.Silence / pingEvery
	pings := time.NewTicker(every)
	defer pings.Stop()
	var feeding <-chan time.Time
	if hunger, err := daemon.SdWatchdogEnabled(false); err == nil && hunger > 0 {
		feed := time.NewTicker(hunger / 2)
		defer feed.Stop()
		feeding = feed.C
	}
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
			h.answering.Add(1)
			go func() {
				defer h.answering.Add(-1)
				h.mu.Lock()
				environ := h.environ
				h.mu.Unlock()
				if err := h.reload(environ); err != nil {
					h.config.Log.Error("reload failed: the worker before goes on", "error", err)
				}
			}()
		case <-h.config.Verbose:
			h.mu.Lock()
			if h.active != nil {
				h.tell(h.active, packet{op: byte(Verbose)})
			}
			h.mu.Unlock()
		case now := <-pings.C:
			late := now.Sub(last) > 2*every // this process has stood itself: nobody could answer
			last = now
			h.ask(late)
			h.upgrade(ctx)
		case <-feeding:
			h.mu.Lock() // who can't get at its own state is not alive
			h.mu.Unlock()
			daemon.SdNotify(false, daemon.SdNotifyWatchdog)
		}
	}
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
		switch {
		case h.active == w:
		case h.takes():
			h.hand(h.active, []Conn{h.conn(p.a)})
		default:
			h.unclaimed = append(h.unclaimed, p.a)
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
	case opGaveBack:
		h.gaveBack(w, p.body)
	case opPong:
		w.asked = 0
	default:
		p.close()
	}
}

// hand hands connections over to a worker. The lock is held, here and in what follows.
func (h *holding) hand(w *worker, conns []Conn) {
	for _, p := range takePackets(conns) {
		h.tell(w, p)
	}
}

// start tells a worker to serve, with everything that no other has.
func (h *holding) start(w *worker, cause string) {
	w.told, w.cause = time.Now(), cause
	h.table.serves(w.serial, w.pid)
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
	for _, i := range h.unclaimed { // those that have a socket are among the others
		if c := h.conn(i); c.Fd < 0 && i < h.table.Used() && h.table.Slot(i).isReleased() {
			conns = append(conns, c)
		}
	}
	h.unclaimed = nil
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
	h.environ, w.from = w.environ, nil
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
	h.deposit()
	daemon.SdNotify(false, "READY=1\nSTATUS=worker "+strconv.Itoa(w.pid)+" serves") // without systemd it does nothing
	h.prepare(sparePause)
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
	h.deposit()
	h.dismiss()
	if h.next != nil {
		h.next.kill()
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
		h.store.empty()
		if h.exit == 0 {
			h.journal.remove()
		}
		close(h.done)
	}
}
