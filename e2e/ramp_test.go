package e2e

import (
	"encoding/json"
	"fmt"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

const rampTurns = 16

// rampAllows returns how many POSTs there may be at once behind so many answers of a backend that is back: one, and one more for each two
// answers behind the first.
func rampAllows(answers int) int { return min(1+max(answers-1, 0)/2, rampTurns) }

func TestABackendThatIsBackIsAskedMoreAndMoreButNeverAllAtOnce(t *testing.T) {
	t.Parallel()
	app := &application{}
	address, stop := app.open(t, "127.0.0.1:"+freePort(t))
	s := serve(t, "WSBRIDGE_BACKEND_URL=http://"+address, fmt.Sprintf("WSBRIDGE_BACKEND_MAX_CONCURRENT=%d", rampTurns), "WSBRIDGE_DRAIN_TIMEOUT=1s")
	c := gather(t, s.clients, 100)
	stop()
	app.kill()
	say(t, c.chatters)
	s.awaitLine(t, "the backend is down")
	// What has begun before that must not reach the backend that is back: it is not part of the ramp.
	for begun := true; begun; time.Sleep(time.Millisecond) {
		_, metrics := request(t, "GET", "http://"+s.pushes+"/metrics", nil, "")
		begun = !strings.Contains(metrics, "\nwsbridge_events_in_flight 0\n")
	}
	back := &application{held: make(chan struct{})}
	back.open(t, address)
	for answers := range 2*rampTurns + 2 {
		back.await(t, fmt.Sprintf("asked %d times at once behind %d answers", rampAllows(answers), answers), func() bool {
			return back.busy == rampAllows(answers) && back.answers == answers
		})
		back.held <- struct{}{}
	}
	close(back.held)
	hear(t, c.chatters)
	record, _ := back.kept()
	for i, e := range record {
		if want := rampAllows(e.answers); e.busy > want {
			t.Errorf("request %d behind %d answers: %d at once, want at most %d", i+1, e.answers, e.busy, want)
		}
	}
	s.hasOneOutage(t)
	c.close()
	s.signal(t, syscall.SIGTERM)
	s.exits(t, 0)
}

// Clients wait for a backend that is away, and chat when it is back. It takes 20 ms for each answer and keeps a record of how many POSTs it has at
// once.
func BenchmarkRampAfterAnOutage(b *testing.B) {
	const clients, rounds = 200, 5
	for b.Loop() {
		app := &application{}
		address, stop := app.open(b, "127.0.0.1:0")
		s := serveForBenchmark(b, "WSBRIDGE_BACKEND_URL=http://"+address, fmt.Sprintf("WSBRIDGE_BACKEND_MAX_CONCURRENT=%d", rampTurns))
		c := gather(b, s.clients, clients)
		stop()
		app.kill()
		chatted := c.answered(rounds)
		c.chat()
		s.awaitText(b, "the backend is down")
		back := &application{delay: 20 * time.Millisecond}
		back.open(b, address)
		await(b, "answered", chatted)
		c.leave()
		s.stop(b)

		record, most := back.kept()
		start := record[slices.IndexFunc(record, func(e entry) bool { return e.answers > 0 })].at
		reached := record[slices.IndexFunc(record, func(e entry) bool { return e.busy == most })]
		plot(record, start, reached.at.Sub(start))
		b.ReportMetric(float64(reached.at.Sub(start).Milliseconds()), "ms-to-the-most")
		b.ReportMetric(float64(reached.answers), "answers-to-the-most")
		b.ReportMetric(float64(most), "most-at-once")
	}
}

// plot prints the most POSTs at once in each span of time from start on, for so long and a few spans more.
func plot(record []entry, start time.Time, length time.Duration) {
	const span = 20 * time.Millisecond
	most := make([]int, length/span+4)
	for _, e := range record {
		if i := int(e.at.Sub(start) / span); i < len(most) {
			most[max(i, 0)] = max(most[max(i, 0)], e.busy)
		}
	}
	fmt.Println("\nPOSTs at once since the first answer of a backend that is back:")
	for i, n := range most {
		fmt.Printf("%6s %3d %s\n", time.Duration(i)*span, n, strings.Repeat("#", n))
	}
}

// benchmarked is the program, serving. What starts it for tests takes a *testing.T.
type benchmarked struct {
	cmd     *exec.Cmd
	out     output
	clients string
}

func serveForBenchmark(b *testing.B, env ...string) *benchmarked {
	b.Helper()
	path, err := build()
	if err != nil {
		b.Fatal(err)
	}
	s := &benchmarked{cmd: exec.Command(path)}
	s.cmd.Env = append([]string{"WSBRIDGE_LISTEN=127.0.0.1:0", "WSBRIDGE_PUSH_LISTEN=127.0.0.1:0", "WSBRIDGE_LOG_FORMAT=json", raceDetector}, env...)
	s.cmd.Stdout, s.cmd.Stderr, s.cmd.SysProcAttr = &s.out, &s.out, apart()
	if err := s.cmd.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { s.cmd.Process.Kill() })
	s.awaitText(b, `"msg":"serving"`)
	var serving struct{ Listen string }
	if err := json.NewDecoder(strings.NewReader(s.out.String())).Decode(&serving); err != nil {
		b.Fatal(err)
	}
	s.clients = serving.Listen
	return s
}

func (s *benchmarked) stop(b *testing.B) {
	b.Helper()
	s.cmd.Process.Signal(syscall.SIGTERM)
	if err := s.cmd.Wait(); err != nil {
		b.Fatalf("%v; it wrote:\n%s", err, &s.out)
	}
}

func (s *benchmarked) awaitText(b *testing.B, text string) {
	b.Helper()
	giveUp := time.After(patience)
	for {
		sofar, changed := s.out.soFar()
		if strings.Contains(sofar, text) {
			return
		}
		select {
		case <-changed:
		case <-giveUp:
			b.Fatalf("no %s in:\n%s", text, sofar)
		}
	}
}
