package holder

import (
	"encoding/base64"
	"maps"
	"net"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// The names of what systemd keeps for a holder that dies, in its descriptor store (FileDescriptorStoreMax=). A listener's name says what it is for and its address.
const (
	storedPrefix   = "wsbridge-"
	storedTable    = storedPrefix + "table"
	storedLink     = storedPrefix + "link"
	storedListener = storedPrefix + "listener-"
)

// store is what systemd keeps.
type store struct {
	kept map[string]int // descriptors, as they were given, by name
}

// deposit lets systemd keep what a new holder needs if this one dies: the table, the listeners, and the link to the worker that serves. The lock is held.
func (h *holding) deposit() {
	want := map[string]int{}
	if !h.over {
		want[storedTable] = h.table.Fd()
	}
	if h.active != nil && h.active.serves && !h.draining {
		if raw, err := h.active.line.SyscallConn(); err == nil {
			raw.Control(func(fd uintptr) { want[storedLink] = int(fd) })
		}
	}
	for _, l := range h.listeners {
		if l.Name != "" { // systemd has the others itself
			want[storedListener+l.Name+"-"+base64.RawURLEncoding.EncodeToString([]byte(l.Address))] = l.fd
		}
	}
	h.store.hold(want)
}

// hold makes what systemd keeps what is wanted.
func (s *store) hold(want map[string]int) {
	if os.Getenv("NOTIFY_SOCKET") == "" {
		return
	}
	for name := range s.kept {
		if _, ok := want[name]; !ok {
			notify("FDSTOREREMOVE=1\nFDNAME="+name, -1)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(want)) {
		if fd, ok := s.kept[name]; ok && fd == want[name] && name != storedLink {
			continue // a link's number may be another link's by now
		}
		notify("FDSTOREREMOVE=1\nFDNAME="+name, -1) // or the one before is found, too
		notify("FDSTORE=1\nFDNAME="+name, want[name])
	}
	s.kept = want
}

// empty takes all back.
func (s *store) empty() { s.hold(nil) }

// notify tells systemd something (sd_notify(3)), with a descriptor if there is one.
func notify(state string, fd int) {
	place := os.Getenv("NOTIFY_SOCKET")
	c, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Net: "unixgram", Name: place})
	if err != nil {
		return // who has no systemd needs none
	}
	defer c.Close()
	raw, err := c.SyscallConn()
	if err != nil {
		return
	}
	var rights []byte
	if fd >= 0 {
		rights = unix.UnixRights(fd)
	}
	c.SetWriteDeadline(time.Now().Add(time.Second)) // the state is locked meanwhile
	raw.Write(func(to uintptr) bool { return unix.Sendmsg(int(to), []byte(state), rights, nil, 0) != unix.EAGAIN })
}

// inheritStored takes a descriptor that systemd has kept. It returns false for one that comes from elsewhere.
func (h *holding) inheritStored(left *estate, name string, fd int) bool {
	switch {
	case name == storedTable:
		table, err := OpenTable(fd)
		if err != nil {
			h.config.Log.Error("what the holder before has left can't be read: its connections end", "error", err)
		}
		left.table = table
	case name == storedLink:
		left.link = fd
	case strings.HasPrefix(name, storedListener):
		what, code, _ := strings.Cut(strings.TrimPrefix(name, storedListener), "-")
		if at, err := base64.RawURLEncoding.DecodeString(code); err == nil {
			left.listeners = append(left.listeners, kept{address{what, string(at)}, fd, 0})
		}
	default:
		return false
	}
	if h.store.kept == nil {
		h.store.kept = map[string]int{}
	}
	h.store.kept[name] = fd
	return true
}
