package e2e

import (
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"wsbridge/holder"
)

// TestTheHolderIsKilledAndNobodyTakesItsPlace kills the holder where no systemd starts another: its worker says goodbye to everyone, and ends.
func TestTheHolderIsKilledAndNobodyTakesItsPlace(t *testing.T) {
	t.Parallel()
	b := newBackend(t, echo)
	s := serve(t, "WSBRIDGE_BACKEND_URL="+b.URL+"/events")
	c := connect(t, websocket.Dialer{}, "ws://"+s.clients+"/ws", nil)
	b.expect(t, "connect")
	s.signal(t, syscall.SIGKILL)
	c.ends(t, 1012)
	if e := b.expect(t, "disconnect"); !strings.Contains(e.body, `"code":1012`) {
		t.Errorf("disconnect event: %s, want code 1012", e.body)
	}
	select { // all that had its output open has ended
	case <-s.end:
	case <-time.After(patience):
		t.Error("a worker goes on without its holder")
	}
}

// TestEverythingIsKilledAtOnceAndTheNextStartSaysGoodbye kills holder and worker together: what is then still owed is known from the state directory alone.
func TestEverythingIsKilledAtOnceAndTheNextStartSaysGoodbye(t *testing.T) {
	t.Parallel()
	b := newBackend(t, func(w http.ResponseWriter, e event) {
		if e.kind == "message" {
			w.Header().Set("Ws-User", e.body)
			echo(w, e)
		}
	})
	state := filepath.Join(tempDir(t), "state")
	env := []string{"WSBRIDGE_BACKEND_URL=" + b.URL + "/events", "WSBRIDGE_STATE_DIR=" + state,
		"WSBRIDGE_LISTEN=127.0.0.1:" + freePort(t), "WSBRIDGE_PUSH_LISTEN=127.0.0.1:" + freePort(t)}
	s := serve(t, env...)
	url := "ws://" + s.clients + "/ws"
	open := map[string]string{} // user and sequence of the event that is owed, by connection
	for _, user := range []string{"ann", "bob", "cid"} {
		c := connect(t, websocket.Dialer{}, url, nil)
		id := b.expect(t, "connect").header.Get("ce-connectionid")
		c.isEchoed(t, b, user)
		open[id] = user + " 3"
		if user == "bob" {
			c.leaves(t, 1000)
			b.expect(t, "disconnect")
			delete(open, id)
		}
	}
	answered := time.Now()
	for end := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		if numbers, err := os.Stat(filepath.Join(state, "connections.numbers")); err == nil && numbers.ModTime().After(answered) {
			break
		} else if time.Now().After(end) {
			t.Fatalf("the journal's numbers are not written: %v", err)
		}
	}
	late := connect(t, websocket.Dialer{}, url, nil)
	id := b.expect(t, "connect").header.Get("ce-connectionid")
	open[id] = " 2"
	for end := time.Now().Add(patience); ; time.Sleep(time.Millisecond) { // the holder writes it down as it is given the socket, which is before the 101
		if journal, err := os.ReadFile(filepath.Join(state, "connections.journal")); err == nil && strings.Contains(string(journal), id) {
			break
		} else if time.Now().After(end) {
			t.Fatalf("the journal does not have the connection: %v", err)
		}
	}
	// The holder is stopped first, so that it starts nobody.
	pid := s.cmd.Process.Pid
	status, err := holder.Status(t.Context(), pid)
	if err != nil {
		t.Fatal(err)
	}
	syscall.Kill(pid, syscall.SIGSTOP)
	for _, worker := range []int{status.Worker, status.Spare} {
		if worker != 0 {
			syscall.Kill(worker, syscall.SIGKILL)
		}
	}
	syscall.Kill(pid, syscall.SIGKILL)
	<-s.end
	if _, _, err := late.ReadMessage(); err == nil {
		t.Error("a connection has outlived everybody who could hold it")
	}

	s = serve(t, env...)
	s.awaitLine(t, "everything was killed at once", `"connections":3`)
	for range 3 {
		e := b.expect(t, "disconnect")
		id := e.header.Get("ce-connectionid")
		if got := e.header.Get("ce-userid") + " " + e.header.Get("ce-sequence"); got != open[id] || !strings.Contains(e.body, `"code":1006`) {
			t.Errorf("disconnect event of %s: %q %s, want %q and code 1006", id, got, e.body, open[id])
		}
		delete(open, id)
	}
	if len(open) > 0 {
		t.Errorf("no disconnect event for %q", open)
	}
	s.signal(t, syscall.SIGTERM)
	s.exits(t, 0)
	left, _ := filepath.Glob(filepath.Join(state, "*"))
	if slices.ContainsFunc(left, func(path string) bool { return strings.Contains(path, "connections") }) {
		t.Errorf("left behind: %q", left)
	}
}
