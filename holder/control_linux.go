package holder

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// controlName is the name of the socket over which a holder is asked, in the namespace that has no files: there is none to leave behind, and who asks
// and who answers is checked by the kernel's word.
const controlName = "@wsbridge-holder/"

const (
	// maxRequest bounds a request, in bytes: an environment of the size that exec takes, escaped.
	maxRequest = 1 << 20
	// askTime is how long a request may take to arrive.
	askTime = 5 * time.Second
	// quietTime is how long an upgrade waits for requests that are under way. It is tried again later.
	quietTime = time.Second
)

type request struct {
	Command string   // reload or status
	Environ []string // of reload
}

type response struct {
	Error  string
	Status StatusReport
}

// control answers requests, until it is stopped.
func (h *holding) control(was *state) (stop func(), err error) {
	l, err := listenControl(was)
	if err != nil {
		return nil, fmt.Errorf("the socket for wsbridge reload: %w", err)
	}
	h.asked = l
	go func() {
		for {
			c, err := l.AcceptUnix()
			if errors.Is(err, os.ErrDeadlineExceeded) {
				h.deaf <- struct{}{}
				<-h.hears
				continue
			}
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err != nil { // there are no descriptors left, say
				time.Sleep(10 * time.Millisecond)
				continue
			}
			h.answering.Add(1)
			go func() {
				defer h.answering.Add(-1)
				h.answer(c)
			}()
		}
	}()
	return func() { l.Close() }, nil
}

// quiet lets requests wait, and reports whether those that had begun have been answered.
func (h *holding) quiet() bool {
	h.asked.SetDeadline(time.Unix(1, 0))
	<-h.deaf
	for end := time.Now().Add(quietTime); h.answering.Load() > 0; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			return false
		}
	}
	return true
}

// listenAgain lets requests come again behind quiet.
func (h *holding) listenAgain() {
	h.asked.SetDeadline(time.Time{})
	h.hears <- struct{}{}
}

// listenControl opens the socket, or takes the one that this process has had before.
func listenControl(was *state) (*net.UnixListener, error) {
	if was == nil {
		return net.ListenUnix("unix", &net.UnixAddr{Net: "unix", Name: controlName + strconv.Itoa(os.Getpid())})
	}
	file := os.NewFile(uintptr(was.Control), "control")
	defer file.Close()
	l, err := net.FileListener(file)
	if err != nil {
		return nil, err
	}
	return l.(*net.UnixListener), nil
}

// answer answers one request, of this user or root.
func (h *holding) answer(c *net.UnixConn) {
	defer c.Close()
	if _, err := trusted(c); err != nil {
		return
	}
	c.SetReadDeadline(time.Now().Add(askTime))
	var q request
	if err := json.NewDecoder(io.LimitReader(c, maxRequest)).Decode(&q); err != nil {
		return
	}
	var r response
	switch q.Command {
	case "reload":
		if err := h.reload(q.Environ); err != nil {
			h.config.Log.Error("reload failed: the worker before goes on", "error", err)
			r.Error = err.Error()
		}
	case "status":
		r.Status = h.status()
	default:
		r.Error = fmt.Sprintf("there is no %q here: the holder is of another version", q.Command)
	}
	json.NewEncoder(c).Encode(r)
}

func (h *holding) status() StatusReport {
	h.mu.Lock()
	defer h.mu.Unlock()
	s := StatusReport{Holder: os.Getpid(), Connections: h.count, Starts: map[string]uint64{}}
	if h.active != nil && h.active.serves {
		s.Worker = h.active.pid
	}
	if h.spare != nil && h.spare.isReady {
		s.Spare = h.spare.pid
	}
	for _, w := range h.lingering {
		s.Lingering = append(s.Lingering, w.pid)
	}
	for cause, n := range h.starts {
		s.Starts[cause] = n
	}
	if entries, err := os.ReadDir("/proc/self/fd"); err == nil {
		s.Descriptors = len(entries) - 1 // less the directory's own
	}
	return s
}

// trusted returns the process at the other end, or an error where that is another user's.
func trusted(c *net.UnixConn) (pid int, err error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return 0, err
	}
	var peer *unix.Ucred
	failed := raw.Control(func(fd uintptr) { peer, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) })
	if err = errors.Join(err, failed); err != nil {
		return 0, err
	}
	if peer.Uid != 0 && int(peer.Uid) != os.Geteuid() {
		return 0, fmt.Errorf("process %d is another user's", peer.Pid)
	}
	return int(peer.Pid), nil
}

// Reload lets the holder with that process id, or 0 for the only one there is, go on with the program on disk and the environment. It returns when
// the new worker serves; an error says why the old one goes on.
func Reload(ctx context.Context, pid int, environ []string) error {
	_, err := ask(ctx, pid, request{Command: "reload", Environ: environ})
	return err
}

// Status asks the holder with that process id, or 0 for the only one there is, how it is.
func Status(ctx context.Context, pid int) (StatusReport, error) {
	r, err := ask(ctx, pid, request{Command: "status"})
	return r.Status, err
}

func ask(ctx context.Context, pid int, q request) (r response, err error) {
	if pid == 0 {
		if pid, err = onlyHolder(); err != nil {
			return r, err
		}
	}
	c, err := new(net.Dialer).DialContext(ctx, "unix", controlName+strconv.Itoa(pid))
	if err != nil {
		return r, fmt.Errorf("process %d is no wsbridge that holds connections (WSBRIDGE_HOLDER=off?): %w", pid, err)
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { c.SetDeadline(time.Unix(1, 0)) })()
	// The environment has secrets: they go to nobody else.
	if _, err := trusted(c.(*net.UnixConn)); err != nil {
		return r, err
	}
	if err := json.NewEncoder(c).Encode(q); err != nil {
		return r, err
	}
	if err := json.NewDecoder(c).Decode(&r); err != nil {
		return r, fmt.Errorf("process %d gives no answer: %w", pid, err)
	}
	if r.Error != "" {
		return r, errors.New(r.Error)
	}
	return r, nil
}

// onlyHolder returns the process id of the only holder that answers to this user.
func onlyHolder() (int, error) {
	sockets, err := os.ReadFile("/proc/net/unix")
	if err != nil {
		return 0, err
	}
	var pids []int
	for line := range strings.Lines(string(sockets)) {
		_, text, found := strings.Cut(strings.TrimSpace(line), controlName)
		pid, err := strconv.Atoi(text)
		if !found || err != nil {
			continue
		}
		c, err := net.DialUnix("unix", nil, &net.UnixAddr{Net: "unix", Name: controlName + text})
		if err != nil {
			continue
		}
		if _, err := trusted(c); err == nil {
			pids = append(pids, pid)
		}
		c.Close()
	}
	switch len(pids) {
	case 0:
		return 0, errors.New("no wsbridge that holds connections runs here for this user (WSBRIDGE_HOLDER=off?)")
	case 1:
		return pids[0], nil
	}
	return 0, fmt.Errorf("several run here: say which by its process id %v", pids)
}
