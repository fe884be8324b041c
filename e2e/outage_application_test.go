package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// application is a backend that echoes messages and keeps a record of all it is sent, in the order in which it comes.
type application struct {
	delay time.Duration // of each answer
	held  chan struct{} // each message and each probe waits for something from here, unless it is nil
	file  *os.File      // the record, where it has to outlive the process; or nil
	last  atomic.Bool   // each answer is the last on its connection

	server *http.Server // the one that was opened last

	mu      sync.Mutex // guards the following
	busy    int        // requests under way
	highest int        // the most of them at once
	answers int
	record  []entry
	changed chan struct{} // closed, and made anew, when one of these has changed
}

// entry is a request of the record.
type entry struct {
	at         time.Time
	busy       int // requests under way, this one included
	answers    int // that had been given before
	kind       string
	id         string
	attempt    int
	connection string
	body       string // of a connect event: the path
}

func (a *application) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path == "/highest" {
		a.mu.Lock()
		fmt.Fprint(w, a.highest)
		a.mu.Unlock()
		return
	}
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	attempt, _ := strconv.Atoi(r.Header.Get("ce-attempt"))
	e := entry{kind: strings.TrimPrefix(r.Header.Get("ce-type"), "wsbridge."), id: r.Header.Get("ce-id"), attempt: attempt,
		connection: r.Header.Get("ce-connectionid"), body: string(body)}
	switch e.kind {
	case "":
		e.kind = r.Method // a probe
	case "connect":
		e.body = r.URL.Path
	}
	if err := a.begin(e); err != nil {
		fmt.Fprintln(os.Stderr, "the record:", err)
		os.Exit(1)
	}
	time.Sleep(a.delay)
	if a.held != nil && (e.kind == "message" || e.kind == http.MethodOptions) {
		<-a.held
	}
	if a.last.Load() {
		w.Header().Set("Connection", "close")
	}
	a.end() // before the answer: when that is there, the next request may be as well
	if e.kind == "message" {
		w.Header().Set("Content-Type", r.Header.Get("Content-Type"))
		w.Write(body)
	}
}

func (a *application) begin(e entry) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.busy++
	a.highest = max(a.highest, a.busy)
	e.at, e.busy, e.answers = time.Now(), a.busy, a.answers
	a.record = append(a.record, e)
	a.changes()
	if a.file == nil {
		return nil
	}
	_, err := fmt.Fprintf(a.file, "%s %s %d %s %s\n", e.kind, e.id, e.attempt, e.connection, e.body)
	return err
}

func (a *application) end() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.busy--
	a.answers++
	a.changes()
}

// changes wakes those who wait. The lock is held.
func (a *application) changes() {
	if a.changed != nil {
		close(a.changed)
		a.changed = nil
	}
}

// await waits until the record is as it should be.
func (a *application) await(t testing.TB, what string, is func() bool) {
	t.Helper()
	giveUp := time.After(patience)
	for {
		a.mu.Lock()
		if is() {
			a.mu.Unlock()
			return
		}
		if a.changed == nil {
			a.changed = make(chan struct{})
		}
		changed, busy, answers := a.changed, a.busy, a.answers
		a.mu.Unlock()
		select {
		case <-changed:
		case <-giveUp:
			t.Fatalf("not %s: %d requests under way, %d answered", what, busy, answers)
		}
	}
}

// kept returns the record so far, and how many requests were under way at once.
func (a *application) kept() (record []entry, highest int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.record[:len(a.record):len(a.record)], a.highest
}

// open serves the application on an address until the function that it returns closes the door; what it has begun then goes on.
func (a *application) open(t testing.TB, address string) (at string, closeDoor func()) {
	t.Helper()
	listener, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: a}
	a.server = server
	go server.Serve(listener)
	t.Cleanup(func() { server.Close() })
	return listener.Addr().String(), func() { listener.Close() }
}

// kill cuts all connections.
func (a *application) kill() { a.server.Close() }

// The environment of a process of this test that is to be the application: its address and the file of its record.
const (
	applicationAddress = "E2E_APPLICATION_ADDRESS"
	applicationRecord  = "E2E_APPLICATION_RECORD"
)

// applicationProcess starts the application as a process of its own, which can be killed.
func applicationProcess(t *testing.T, address, record string) *process {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	p := start(t, []string{applicationAddress + "=" + address, applicationRecord + "=" + record}, self)
	p.awaitLine(t, "the application serves")
	return p
}

// runApplication is that process. Told to stop, it leaves no request without its answer.
func runApplication() error {
	file, err := os.OpenFile(os.Getenv(applicationRecord), os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	var plain net.ListenConfig
	plain.SetMultipathTCP(false) // emptyBacklog can't do it with that
	listener, err := plain.Listen(context.Background(), "tcp", os.Getenv(applicationAddress))
	if err != nil {
		return err
	}
	told, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	a := &application{delay: 5 * time.Millisecond, file: file}
	var conns sync.WaitGroup
	server := &http.Server{Handler: a, ConnState: func(_ net.Conn, state http.ConnState) {
		switch state {
		case http.StateNew:
			conns.Add(1)
		case http.StateClosed, http.StateHijacked:
			conns.Done()
		}
	}}
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	if _, err := fmt.Fprintf(file, "start\n"); err != nil {
		return err
	}
	fmt.Println("the application serves")
	select {
	case err := <-served:
		return err
	case <-told.Done():
	}
	// http.Server.Shutdown resets connections that wait to be accepted, and can close one that looks idle just when it has read a request. Here the
	// door is closed when nobody stands in it, and connections go with their last answer, or when the client closes them.
	a.last.Store(true)
	if err := emptyBacklog(listener.(*net.TCPListener)); err != nil {
		return err
	}
	listener.Close()
	if err := <-served; !errors.Is(err, net.ErrClosed) {
		return err
	}
	conns.Wait()
	return nil
}

// readRecord returns the record that the processes with this file have kept. An entry of the kind "start" stands for each start.
func readRecord(t *testing.T, path string) []entry {
	t.Helper()
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var record []entry
	for line := range strings.Lines(string(content)) {
		whole, ok := strings.CutSuffix(line, "\n")
		fields := strings.SplitN(whole, " ", 5)
		switch {
		case whole == "start":
			record = append(record, entry{kind: "start"})
		case !ok || len(fields) < 5:
			t.Fatalf("a line of the record is %q", line)
		default:
			attempt, _ := strconv.Atoi(fields[2])
			record = append(record, entry{kind: fields[0], id: fields[1], attempt: attempt, connection: fields[3], body: fields[4]})
		}
	}
	return record
}
