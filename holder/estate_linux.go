package holder

import (
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// estate is what an earlier holder has left: this very process, before it executed another version of its program, or one that has died, by way of systemd's
// descriptor store.
type estate struct {
	table     *Table // nil: nothing was left
	listeners []kept
	link      int // to the worker that serves; 0: none was left
	own       *state
}

// inherit takes what has been left, and the listening sockets that systemd has passed on (sd_listen_fds(3)), which workers find by their addresses.
func (h *holding) inherit() estate {
	if left, ok := h.inheritState(); ok {
		return left
	}
	var left estate
	if os.Getenv("LISTEN_PID") != strconv.Itoa(os.Getpid()) {
		return left
	}
	n, _ := strconv.Atoi(os.Getenv("LISTEN_FDS"))
	names := strings.Split(os.Getenv("LISTEN_FDNAMES"), ":")
	for fd := 3; fd < 3+n; fd++ {
		unix.CloseOnExec(fd)
		name := ""
		if fd-3 < len(names) {
			name = names[fd-3]
		}
		if !h.inheritStored(&left, name, fd) {
			left.inheritListener(fd)
		}
	}
	return left
}

func (left *estate) inheritListener(fd int) {
	if listening, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ACCEPTCONN); err != nil || listening == 0 {
		return
	}
	unix.SetNonblock(fd, true) // systemd has just made it wait, for the worker that serves there, too (NonBlocking=)
	if name, err := unix.Getsockname(fd); err == nil {
		left.listeners = append(left.listeners, kept{address{Address: addressOf(name)}, fd, 0})
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

// takeOver goes on with what was left. The lock is held.
func (h *holding) takeOver(left estate) {
	var line *line
	err := errors.New("there is no link to it")
	if left.link != 0 {
		line, err = newLine(left.link)
	}
	if err != nil {
		h.config.Log.Error("the holder before has ended with its worker: another takes over", "error", err)
		h.findPlaces()
		h.again(CauseCrash)
		return
	}
	serial, pid := h.table.server()
	w := newWorker(serial, h.environ)
	w.pid, w.line, w.told, w.cause = pid, line, time.Now(), CauseStart
	w.isReady = true
	close(w.ready)
	h.active = w
	if left.own != nil {
		h.goOnAs(w, left.own)
	} else {
		// It is no child of this process. Whether it lives is known from its descriptor, and what it has from itself.
		if w.pidfd, err = unix.PidfdOpen(pid, 0); err != nil {
			h.config.Log.Error("the worker of the holder before has ended with it", "pid", pid, "error", err)
		}
		h.tell(w, packet{op: opGiveBack})
	}
	go h.serve(w)
}

// goOnAs goes on in the place of what this process was before. The lock is held.
func (h *holding) goOnAs(w *worker, was *state) {
	w.process, _ = os.FindProcess(w.pid) // it is this process's child, which is there until it is waited for
	w.environ, w.cause, w.told, w.file = h.environ, was.Cause, was.Told, h.file
	w.serves = true
	close(w.serving)
	h.starts = was.Starts
	for _, s := range was.conns() {
		h.keep(s.Slot, s.Gen, s.Fd)
	}
	for _, l := range h.listeners {
		unix.CloseOnExec(l.fd)
	}
	h.config.Log.Info("this process has gone over to the program on disk", "connections", h.count)
	h.prepare(sparePause)
}

// gaveBack takes note that a worker which had another holder has said all it has. The lock is held.
func (h *holding) gaveBack(w *worker, body []byte) {
	var said handBack
	if err := json.Unmarshal(body, &said); err != nil || w != h.active {
		w.kill()
		return
	}
	h.config.Log.Info("the holder before has died: its worker goes on", "pid", w.pid, "connections", h.count, "serving", said.Serving)
	if len(said.Environ) > 0 {
		w.environ = said.Environ
	}
	if !said.Serving {
		h.restart(w)
		return
	}
	h.serves(w)
	if before := len(h.listeners); h.findPlaces() < before {
		// Whoever connects finds nobody there. A new worker opens them anew.
		go func() {
			if err := h.reload(w.environ); err != nil {
				h.config.Log.Error("a listener's socket is gone, and can't be opened anew: wsbridge reload tries again", "error", err)
			}
		}()
	}
}

// findPlaces gives up the listeners at paths that are there no more, and returns how many are left: with a main process that dies systemd removes the
// directory that it has made for it (RuntimeDirectory=), and what is in there. The lock is held.
func (h *holding) findPlaces() int {
	h.listeners = slices.DeleteFunc(h.listeners, func(l kept) bool {
		path, ok := strings.CutPrefix(l.Address, "unix:")
		if !ok {
			return false
		}
		if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
			return false
		}
		unix.Close(l.fd)
		return true
	})
	return len(h.listeners)
}

// readState returns what the descriptor's file says.
func readState(fd int) (s *state, err error) {
	file := os.NewFile(uintptr(fd), "state")
	defer file.Close()
	data, err := io.ReadAll(file)
	if err == nil {
		err = json.Unmarshal(data, &s)
	}
	return s, err
}
