package holder

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// heldVariable names the descriptor of the state that this process has left to itself. It is in no environment but that of an upgrade.
const heldVariable = "_WSBRIDGE_HELD"

// errPutOff says that an upgrade is not made now.
var errPutOff = errors.New("put off")

// identity tells a program's file from another one in its place.
type identity struct {
	Dev, Inode  uint64
	Size, Mtime int64
}

func identify(path string) identity {
	var stat unix.Stat_t
	if unix.Stat(path, &stat) != nil {
		return identity{}
	}
	return identity{uint64(stat.Dev), stat.Ino, stat.Size, stat.Mtim.Nano()}
}

// state is what this process leaves to itself, apart from what the table says. Descriptors stay what they are.
type state struct {
	Table     int
	Link      int
	Control   int
	Listeners []stateListener
	Sockets   []byte // slot, generation and descriptor of each, 4 bytes each
	Starts    map[string]uint64
	Environ   []string
	Cause     string
	Told      time.Time
}

type stateListener struct {
	Name, Address string
	By            uint32
	Fd            int
}

func (s *state) conns() []Conn {
	conns := make([]Conn, 0, len(s.Sockets)/12)
	for p := s.Sockets; len(p) >= 12; p = p[12:] {
		fd := int(binary.LittleEndian.Uint32(p[8:]))
		unix.CloseOnExec(fd)
		conns = append(conns, Conn{binary.LittleEndian.Uint32(p), binary.LittleEndian.Uint32(p[4:]), fd})
	}
	return conns
}

// inheritState takes what this process was before it executed this program.
func (h *holding) inheritState() (left estate, ok bool) {
	text := os.Getenv(heldVariable)
	if text == "" {
		return left, false
	}
	os.Unsetenv(heldVariable)
	fd, err := strconv.Atoi(text)
	if err == nil {
		unix.CloseOnExec(fd)
		left.own, err = readState(fd)
	}
	if err == nil {
		unix.CloseOnExec(left.own.Table)
		unix.CloseOnExec(left.own.Link)
		unix.CloseOnExec(left.own.Control)
		left.table, err = OpenTable(left.own.Table)
	}
	if err != nil {
		// The link closes with this: the worker ends, and its connections are closed with 1012.
		h.config.Log.Error("what the version before has left can't be read: its connections end", "error", err)
		if left.own != nil {
			unix.Close(left.own.Link)
			for _, c := range left.own.conns() {
				unix.Close(c.Fd)
			}
		}
		return estate{}, true
	}
	h.environ = left.own.Environ
	left.link = left.own.Link
	for _, l := range left.own.Listeners {
		left.listeners = append(left.listeners, kept{address{l.Name, l.Address}, l.Fd, l.By})
	}
	return left, true
}

// upgrade makes this process one of the program that its worker runs by now, if that is another: it executes it in place, and keeps what it holds. Nothing
// else may be under way, and nobody's wish may be lost with what this process was: requests wait, and a signal that has come puts it off.
func (h *holding) upgrade(ctx context.Context) {
	h.mu.Lock()
	w := h.active
	due := h.due(w)
	h.mu.Unlock()
	if !due {
		return
	}
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, unix.SIGTERM, unix.SIGINT, unix.SIGHUP)
	defer signal.Stop(signals)
	defer h.listenAgain()
	if !h.quiet() || !h.reloading.TryLock() {
		return
	}
	defer h.reloading.Unlock()
	h.mu.Lock()
	spare := h.spare
	h.dismiss()
	h.mu.Unlock()
	if spare != nil {
		<-spare.dead
	}
	// What it says from now on is for what this process is then.
	w.line.SetReadDeadline(time.Unix(1, 0))
	select {
	case <-w.paused:
	case <-w.dead:
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.due(w) {
		err := h.execute(w, func() bool {
			signal.Stop(signals) // what was caught before is in there now
			return len(signals) > 0 || len(h.config.Reload) > 0 || ctx.Err() != nil
		})
		if !errors.Is(err, errPutOff) {
			h.config.Log.Error("this process can't go over to the program on disk: it stays what it is", "error", err)
			h.file = w.file // not again
		}
	}
	w.line.SetReadDeadline(time.Time{})
	w.goOn <- struct{}{}
	h.prepare(sparePause)
}

// due reports whether an upgrade is. The lock is held.
func (h *holding) due(w *worker) bool {
	return len(h.config.Self) > 0 && w != nil && w == h.active && w.serves && w.file != h.file && len(h.lingering) == 0 && h.next == nil && !h.draining &&
		identify(strings.TrimSuffix(h.config.Path, " (deleted)")) == w.file
}

// execute executes the program on disk. It returns if that fails, or is put off by what has come. The lock is held.
func (h *holding) execute(w *worker, putOff func() bool) error {
	path, err := programAt(h.config.Path)
	if err != nil {
		return err
	}
	s := state{Table: h.table.Fd(), Starts: h.starts, Environ: w.environ, Cause: w.cause, Told: w.told}
	raw, err := w.line.SyscallConn()
	if err != nil {
		return err
	}
	raw.Control(func(fd uintptr) { s.Link = int(fd) })
	if raw, err = h.asked.SyscallConn(); err != nil {
		return err
	}
	raw.Control(func(fd uintptr) { s.Control = int(fd) }) // who asks meanwhile waits
	stay := []int{s.Table, s.Link, s.Control}
	for _, l := range h.listeners {
		s.Listeners = append(s.Listeners, stateListener{l.Name, l.Address, l.by, l.fd})
		stay = append(stay, l.fd)
	}
	for slot, socket := range h.sockets {
		if socket.fd != 0 {
			s.Sockets = binary.LittleEndian.AppendUint32(s.Sockets, uint32(slot))
			s.Sockets = binary.LittleEndian.AppendUint32(s.Sockets, socket.gen)
			s.Sockets = binary.LittleEndian.AppendUint32(s.Sockets, uint32(socket.fd))
			stay = append(stay, int(socket.fd))
		}
	}
	data, err := json.Marshal(s)
	if err != nil {
		return err
	}
	fd, err := unix.MemfdCreate("wsbridge-state", 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if n, err := unix.Pwrite(fd, data, 0); err != nil || n != len(data) {
		return errors.Join(errors.New("the state can't be written"), err)
	}
	for _, fd := range stay {
		unix.FcntlInt(uintptr(fd), unix.F_SETFD, 0)
	}
	defer func() {
		for _, fd := range stay {
			unix.CloseOnExec(fd)
		}
	}()
	// The settings of the worker fit its program, and what systemd says to this process it says once.
	environ := workerEnviron(w.environ)
	for _, name := range []string{"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"} {
		if value, ok := os.LookupEnv(name); ok {
			environ = append(environ, name+"="+value)
		}
	}
	environ = append(environ, heldVariable+"="+strconv.Itoa(fd))
	defer forgetSignals()()
	if putOff() {
		return errPutOff
	}
	return syscall.Exec(path, slices.Clone(h.config.Self), environ)
}
