package holder

import (
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"golang.org/x/sys/unix"
)

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
	w.from = old
	h.next = w
	h.mu.Unlock()

	patience := time.NewTimer(h.config.Patience)
	defer patience.Stop()
	select {
	case <-w.ready:
	case <-w.dead:
		return h.failed(w)
	case <-patience.C:
		w.kill()
		<-w.dead
		return fmt.Errorf("the new version is not ready after %s", h.config.Patience)
	}
	h.mu.Lock()
	suspended, serving := old.suspended, w.serving
	if h.active == old {
		old.leaving = true
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
		old.kill()
	}
	select {
	case <-serving:
		return nil
	case <-w.dead:
		return h.failed(w)
	}
}

// suspended takes note that a worker reads nothing any more: its successor begins. The lock is held.
func (h *holding) suspended(w *worker, posts int) {
	w.posts, w.leaving = posts, false
	close(w.suspended)
	w.suspended = make(chan struct{}) // it may be told to serve once more
	if w != h.active {
		h.lingering = append(h.lingering, w)
		return
	}
	if h.next == nil { // that has died meanwhile
		h.restart(w)
		return
	}
	h.lingering = append(h.lingering, w)
	h.dismiss() // it is of the version before
	h.active, h.next = h.next, nil
	h.start(h.active, CauseReload)
}

// restart lets a worker that was suspended serve again. The lock is held.
func (h *holding) restart(w *worker) {
	h.active = w
	w.serves, w.serving = false, make(chan struct{})
	h.start(w, CauseReloadFailed)
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

// monotonic is the time as systemd wants it with RELOADING=1.
func monotonic() string {
	var now unix.Timespec
	unix.ClockGettime(unix.CLOCK_MONOTONIC, &now)
	return strconv.FormatInt(now.Nano()/1000, 10)
}
