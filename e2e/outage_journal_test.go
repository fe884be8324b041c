package e2e

import (
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/gorilla/websocket"
)

const leavers = 20

// leftGoodbyes stops a program whose backend does not take disconnect events, being away or not, and returns what the program has left in the
// directory: the ids of the events, in order.
func leftGoodbyes(t *testing.T, dir string, away bool) []string {
	t.Helper()
	b := newBackend(t, func(w http.ResponseWriter, e event) {
		if e.kind == "disconnect" {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	})
	s := serve(t, "WSBRIDGE_BACKEND_URL="+b.URL, "WSBRIDGE_STATE_DIR="+dir, "WSBRIDGE_DRAIN_TIMEOUT=1s")
	c := gather(t, s.clients, leavers)
	var open []string
	for range leavers {
		open = append(open, b.expect(t, "connect").connection)
	}
	held := 0
	if away {
		b.CloseClientConnections()
		b.Close()
		held = 5
		say(t, c.chatters[:held])
		s.awaitLine(t, "the backend is down")
	}
	s.signal(t, syscall.SIGTERM)
	for i, ch := range c.chatters {
		code := websocket.CloseGoingAway
		if i < held {
			code = websocket.CloseTryAgainLater // its message was not delivered
		}
		(&client{Conn: ch.Conn}).ends(t, code)
	}
	s.exits(t, 0)

	ids, connections := readGoodbyes(t, dir)
	slices.Sort(open)
	if slices.Sort(connections); !slices.Equal(connections, open) {
		t.Errorf("kept are goodbyes of %v, want %v", connections, open)
	}
	for len(b.events) > 0 {
		if e := <-b.events; !slices.Contains(ids, e.header.Get("ce-id")) {
			t.Errorf("%s was posted under the id %s, which is not among those that are kept", e.connection, e.header.Get("ce-id"))
		}
	}
	return ids
}

// readGoodbyes returns the events of the directory's only file, which nobody else may read.
func readGoodbyes(t *testing.T, dir string) (ids, connections []string) {
	t.Helper()
	files, err := os.ReadDir(dir)
	if err != nil || len(files) != 1 {
		t.Fatalf("the directory holds %v %v, want one file", files, err)
	}
	if info, err := files[0].Info(); err != nil {
		t.Error(err)
	} else if info.Mode() != 0o600 {
		t.Errorf("mode = %s, want 0600", info.Mode())
	}
	content, err := os.ReadFile(filepath.Join(dir, files[0].Name()))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(content)) {
		var entry struct {
			Event struct{ ID, ConnectionID string }
		}
		if err := json.Unmarshal([]byte(line), &entry); err != nil {
			t.Fatalf("%v: %s", err, line)
		}
		ids, connections = append(ids, entry.Event.ID), append(connections, entry.Event.ConnectionID)
	}
	slices.Sort(ids)
	return ids, connections
}

// postsWhatIsLeft starts a program with the directory, which must post exactly these events, and leave nothing there.
func postsWhatIsLeft(t *testing.T, dir string, ids []string) {
	t.Helper()
	b := newBackend(t, nil)
	s := serve(t, "WSBRIDGE_BACKEND_URL="+b.URL, "WSBRIDGE_STATE_DIR="+dir)
	var posted []string
	for range ids {
		e := b.expect(t, "disconnect")
		if !strings.Contains(e.body, `"by":"bridge"`) || !strings.HasPrefix(e.path, "/ws/") {
			t.Errorf("disconnect event of %s: %s, want what the drain did, and the path of the connection", e.path, e.body)
		}
		posted = append(posted, e.header.Get("ce-id"))
	}
	if slices.Sort(posted); !slices.Equal(posted, ids) {
		t.Errorf("posted = %v, want %v", posted, ids)
	}
	s.signal(t, syscall.SIGTERM)
	s.exits(t, 0)
	if len(b.events) > 0 {
		t.Errorf("posted on top: %+v", <-b.events)
	}
	if files, err := os.ReadDir(dir); err != nil || len(files) > 0 {
		t.Errorf("left behind: %v %v", files, err)
	}
}

func TestGoodbyesThatAreLeftBehindADrainArePostedAtTheNextStart(t *testing.T) {
	t.Parallel()
	for _, away := range []bool{true, false} {
		t.Run(map[bool]string{true: "the backend was away", false: "the backend said later"}[away], func(t *testing.T) {
			dir := filepath.Join(tempDir(t), "state")
			ids := leftGoodbyes(t, dir, away)
			postsWhatIsLeft(t, dir, ids)
		})
	}
}

// oneProcess makes a kill the end of everything: with a holder, the worker would say goodbye to everyone first.
const oneProcess = "WSBRIDGE_HOLDER=off"

func TestNeitherAKillNorAnotherDrainLosesAGoodbyeThatWasLeft(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(tempDir(t), "state")
	ids := leftGoodbyes(t, dir, true)

	nobody := "http://127.0.0.1:" + freePort(t)
	s := serve(t, "WSBRIDGE_BACKEND_URL="+nobody, "WSBRIDGE_STATE_DIR="+dir, oneProcess)
	s.awaitLine(t, "the backend is down") // all of them wait
	s.signal(t, syscall.SIGKILL)
	<-s.end
	if left, _ := readGoodbyes(t, dir); !slices.Equal(left, ids) {
		t.Errorf("behind a kill while the backend was away: %v, want %v", left, ids)
	}

	s = serve(t, "WSBRIDGE_BACKEND_URL="+nobody, "WSBRIDGE_STATE_DIR="+dir, oneProcess, "WSBRIDGE_DRAIN_TIMEOUT=100ms")
	s.signal(t, syscall.SIGTERM)
	s.exits(t, 0)
	if left, _ := readGoodbyes(t, dir); !slices.Equal(left, ids) {
		t.Errorf("behind another drain: %v, want %v", left, ids)
	}

	// A file goes as a whole: what the backend has taken it is sent once more, under the same id.
	const taken = 5
	turn := make(chan struct{}, taken) // as many as are taken
	for range taken {
		turn <- struct{}{}
	}
	b := newBackend(t, func(http.ResponseWriter, event) { <-turn })
	s = serve(t, "WSBRIDGE_BACKEND_URL="+b.URL, "WSBRIDGE_STATE_DIR="+dir, oneProcess)
	for range taken + 1 {
		b.expect(t, "disconnect")
	}
	s.signal(t, syscall.SIGKILL)
	<-s.end
	close(turn)
	if left, _ := readGoodbyes(t, dir); !slices.Equal(left, ids) {
		t.Errorf("behind a kill while the backend took them: %v, want %v", left, ids)
	}
	postsWhatIsLeft(t, dir, ids)
}
